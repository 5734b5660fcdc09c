"""How a block reaches others: paths from a listed entity to those that belong to it, as stores keep them.

A path is in effect as long as the entry that it came from stands under the path's id, on whichever engine it
is looked at: who lifts a block has undone all that it reached by that, and what is left only takes room.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec

Name = tuple[str, str, int]  # list, entity, key

PATHS_MAX = 16  # of one entity: those that came first, so that no shared thing collects them without end


class Trail(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """From the entity that was listed, by entities and their keys, to the one that it reaches; both included.

    `time` is when it was found, ms.
    """

    list: str
    via: tuple[tuple[str, int], ...]
    time: int

    @property
    def distance(self) -> int:
        """Steps from the listed entity."""
        return len(self.via) - 1

    @property
    def origin(self) -> Name:
        """The entry that it came from."""
        return self.list, *self.via[0]


class PathEdit(NamedTuple):
    """A path to be entered for an entity of a list, or (None) taken out."""

    name: Name
    id: str
    path: Trail | None


def path_id(name: Name, time: int) -> str:
    """The id of all paths from an entry that was made at `time` (ms): 16 hex digits."""
    said = "\0".join(map(str, (*name, time)))
    return hashlib.blake2b(said.encode(), digest_size=8, person=b"riskengine.path").hexdigest()
