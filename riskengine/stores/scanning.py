"""Every key of a store, some at a time: for what looks through all of it, and holds nobody up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from riskengine.stores.cluster import AnyLink
from riskengine.stores.link import Call

# Answers are flat arrays here, and SCAN's is not.
SCAN: Final = """
local found = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', 1000)
return {found[1], unpack(found[2])}
"""


def scan(link: AnyLink, start: bytes) -> Iterator[tuple[Call, list[bytes]]]:
    """Keys whose names begin so, a few hundred together, each time with `call` of the server that has them.

    One that is there all the while comes at least once. Names of ours have no character that means something
    to MATCH.
    """
    for call in link.each():
        cursor = b"0"
        while True:
            reply = call("EVAL", SCAN, 0, cursor, start + b"*")
            assert isinstance(reply[0], bytes), "SCAN answers a cursor"
            cursor = reply[0]
            names = [name for name in reply[1:] if isinstance(name, bytes)]
            if names:
                yield call, names
            if cursor == b"0":
                break


def remove(call: Call, names: Iterable[bytes]) -> None:
    """Remove keys of one server. Of a cluster only those of one slot can be named together."""
    slots: dict[bytes, list[bytes]] = {}
    for name in names:
        slots.setdefault(name.partition(b"{")[2].partition(b"}")[0], []).append(name)
    for some in slots.values():
        call("UNLINK", *some)
