"""Lists of entities as a table that a batch is looked up in: a hash of list and entity, and until when."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

import numpy as np

from riskengine.features import FeatureSet, Touches
from riskengine.kernel import Call, Holder, bind
from riskengine.ledger import Int64s
from riskengine.stores import slabs

Name = tuple[str, str, int]  # list, entity, key

SLOTS_MIN: Final = 16
NEVER: Final = 2**63 - 1


class Lists:
    """Entries of every list, by name; an entry's `expires` is ms or None."""

    def __init__(self, features: FeatureSet) -> None:
        self._by_name: dict[Name, dict[str, Any]] = {}
        self.entries = np.zeros(2 * SLOTS_MIN, np.int64)  # as `slabs.find` reads them
        self._entered = 0  # slots of these in use
        self.reload(features)

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Name]:
        return iter(self._by_name)

    def items(self) -> Iterator[tuple[Name, dict[str, Any]]]:
        """Every entry with its name."""
        return iter(self._by_name.items())

    def reload(self, features: FeatureSet) -> None:
        """Look entities up for another plan."""
        pairs = [(features.lists[row[0]], features.entities[row[1]]) for row in features.listed.tolist()]
        self._listed = features.listed
        self._salts: Int64s = np.array([_salt(*pair) for pair in pairs], np.int64)

    def look_up(self, touches: Touches) -> None:
        """Write, for every list and entity, whether each event's entity is listed at its time."""
        if not len(self._salts):
            return
        lone = touches.lone
        if lone is None:
            self._looking(touches, partial)()
            return
        known = lone.look_up
        if known is None or known[0] is not self.entries:
            known = lone.look_up = self.entries, self._looking(touches, bind)
        known[1]()

    def _looking(self, touches: Touches, hold: Holder) -> Call:
        """The call that looks a batch up."""
        return hold(
            slabs.look_up, self._listed, self._salts, self.entries, touches.keys, touches.batch.time,
            touches.cells,
        )  # fmt: skip

    def get(self, name: Name) -> dict[str, Any] | None:
        """A copy of an entry, or None."""
        entry = self._by_name.get(name)
        return None if entry is None else dict(entry)

    def put(self, name: Name, entry: Mapping[str, Any]) -> None:
        """Enter or replace an entry."""
        self._by_name[name] = dict(entry)
        self._enter(name)

    def delete(self, name: Name) -> bool:
        """Remove an entry; whether it was there."""
        there = self._by_name.pop(name, None) is not None
        if there:
            self._enter(name)
        return there

    def clear(self) -> None:
        """Remove every entry."""
        self._by_name.clear()
        self.entries = np.zeros(2 * SLOTS_MIN, np.int64)
        self._entered = 0

    def _enter(self, name: Name) -> None:
        """Bring the table that events are looked up in to what is said of an entry."""
        expires: int | None = self._by_name.get(name, {"expires": 0})["expires"]
        until = NEVER if expires is None else expires if expires > 0 else slabs.TOMBSTONE
        self._entered += slabs.enter(self.entries, name[2] ^ _salt(*name[:2]), until)
        if 4 * self._entered > len(self.entries):  # half full: make it anew, without those taken out
            slots = SLOTS_MIN
            while slots < 4 * len(self._by_name):
                slots *= 2
            self.entries = np.zeros(2 * slots, np.int64)
            self._entered = 0
            for other in self._by_name:
                self._enter(other)


def _salt(name: str, entity: str) -> int:
    digest = hashlib.blake2b(f"{name}\0{entity}".encode(), digest_size=8, person=b"riskengine.list").digest()
    return int.from_bytes(digest, "little", signed=True)
