"""Every key of a store, some at a time: for what looks through all of it, and holds nobody up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from riskengine.stores.link import Link

# Answers are flat arrays here, and SCAN's is not.
SCAN: Final = """
local found = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 1000)
return {found[1], unpack(found[2])}
"""


def scan(link: Link, start: bytes) -> Iterator[list[bytes]]:
    """Keys whose names begin so, a few hundred together; one that is there all the while comes at least once.

    Names of ours have no character that means something to MATCH.
    """
    cursor = b"0"
    while True:
        reply = link.call("EVAL", SCAN, 0, cursor, start + b"*")
        assert isinstance(reply[0], bytes), "SCAN answers a cursor"
        cursor = reply[0]
        names = [name for name in reply[1:] if isinstance(name, bytes)]
        if names:
            yield names
        if cursor == b"0":
            return
