"""Every key of a store, some at a time: for what looks through all of it, and holds nobody up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from riskengine.stores.cluster import AnyLink
from riskengine.stores.link import Call
from riskengine.stores.place import Place

TOGETHER: Final = 200  # names of one partition

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


def by_part(link: AnyLink, place: Place, letter: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Keys of one kind, by the letter of it, some of one partition at a time: they can be named together."""
    at, size = len(place.data), len(place.tags[0])
    parts = {tag: part for part, tag in enumerate(place.tags)}
    waiting: dict[int, list[bytes]] = {}
    for _, names in scan(link, place.data + (b"{??}" if size else b"") + letter):
        for name in names:
            part = parts.get(name[at : at + size])
            if part is None:
                continue
            some = waiting.setdefault(part, [])
            some.append(name)
            if len(some) == TOGETHER:
                yield part, waiting.pop(part)
    yield from waiting.items()


def remove(call: Call, names: Iterable[bytes]) -> None:
    """Remove keys of one server. Of a cluster only those of one slot can be named together."""
    slots: dict[bytes, list[bytes]] = {}
    for name in names:
        slots.setdefault(name.partition(b"{")[2].partition(b"}")[0], []).append(name)
    for some in slots.values():
        call("UNLINK", *some)
