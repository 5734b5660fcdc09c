"""Lists of entities as a table that a batch is looked up in: a hash of list and entity, and until when."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

import numpy as np

from riskengine.features import FeatureSet, Touches
from riskengine.kernel import Call, Holder, bind
from riskengine.layout import Int64s
from riskengine.stores import slabs
from riskengine.stores.paths import Name, PathEdit, Trail, path_id

SLOTS_MIN: Final = 16
NEVER: Final = 2**63 - 1


class Lists:
    """Entries of every list, by name; an entry's `expires` is ms or None.

    An entity is on a list by an entry of its own, or by paths from entries that stand (see paths.py). `met`
    says of the batch that was looked up last which pairs of list and entity were met, a bit each.
    """

    def __init__(self, features: FeatureSet) -> None:
        self.met = 0
        self._by_name: dict[Name, dict[str, Any]] = {}
        self._paths: dict[Name, dict[str, Trail]] = {}  # by id
        self._reached: dict[str, set[Name]] = {}  # by id of paths: what they lead to
        self._of: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}  # the same, by list and entity
        self.entries = np.zeros(2 * SLOTS_MIN, np.int64)  # as `slabs.find` reads them
        self._entered = 0  # slots of these in use
        self.reload(features)

    def __len__(self) -> int:
        return len(self._by_name.keys() | self._paths.keys())

    def items(self) -> Iterator[tuple[Name, dict[str, Any]]]:
        """Every entry of its own with its name."""
        return iter(self._by_name.items())

    def reload(self, features: FeatureSet) -> None:
        """Look entities up for another plan."""
        self.met = 0
        pairs = [(features.lists[row[0]], features.entities[row[1]]) for row in features.listed.tolist()]
        self._listed = features.listed
        self._salts: Int64s = np.array([_salt(*pair) for pair in pairs], np.int64)

    def look_up(self, touches: Touches) -> None:
        """Write, for every list and entity, whether each event's entity is listed at its time."""
        if not len(self._salts):
            return
        lone = touches.lone
        if lone is None:
            self.met = self._looking(touches, partial)()
            return
        known = lone.look_up
        if known is None or known[0] is not self.entries:
            known = lone.look_up = self.entries, self._looking(touches, bind)
        self.met = known[1]()

    def _looking(self, touches: Touches, hold: Holder) -> Call:
        """The call that looks a batch up."""
        return hold(
            slabs.look_up, self._listed, self._salts, self.entries, touches.keys, touches.batch.time,
            touches.cells,
        )  # fmt: skip

    def of(self, name: str, entity: str) -> Mapping[int, dict[str, Any]]:
        """The entries of a list for an entity, by key; not to be changed."""
        return self._of.get((name, entity), {})

    def names(self, name: str, entity: str) -> list[Name]:
        """What a list names of an entity, by entries of its own or by paths; in the order of the keys."""
        named = {known for known in self._paths if known[:2] == (name, entity)}
        named.update((name, entity, key) for key in self.of(name, entity))
        return sorted(named, key=lambda one: one[2] & (1 << 64) - 1)

    def get(self, name: Name) -> dict[str, Any] | None:
        """A copy of an entry, or None."""
        entry = self._by_name.get(name)
        return None if entry is None else dict(entry)

    def put(self, name: Name, entry: Mapping[str, Any]) -> None:
        """Enter or replace an entry."""
        before = self.id_of(name)
        made = self._by_name[name] = dict(entry)
        self._of.setdefault(name[:2], {})[name[2]] = made
        self._enter(name)
        if self._reached:
            self._enter_reached(before, self.id_of(name))

    def delete(self, name: Name) -> bool:
        """Remove an entry; whether it was there."""
        before = self.id_of(name)
        there = self._by_name.pop(name, None) is not None
        if there:
            del self._of[name[:2]][name[2]]
            self._enter(name)
            self._enter_reached(before)
        return there

    def clear(self) -> None:
        """Remove every entry and path."""
        self._by_name.clear()
        self._paths.clear()
        self._reached.clear()
        self._of.clear()
        self.entries = np.zeros(2 * SLOTS_MIN, np.int64)
        self._entered = 0

    # -- paths

    def apply(self, edit: PathEdit) -> None:
        """Enter a path, in the place of one of the same id, or take it out."""
        name, id, path = edit
        if path is not None:
            self._paths.setdefault(name, {})[id] = path
            self._reached.setdefault(id, set()).add(name)
        else:
            self._paths.get(name, {}).pop(id, None)
            self._reached.get(id, set()).discard(name)
            if not self._paths.get(name):
                self._paths.pop(name, None)
            if not self._reached.get(id):
                self._reached.pop(id, None)
        self._enter(name)

    def paths(self, name: Name) -> Mapping[str, Trail]:
        """Paths to an entity by id, those that are not in effect any more included."""
        return self._paths.get(name, {})

    def all_paths(self) -> Iterator[tuple[Name, str, Trail]]:
        """Every path with what it leads to and its id."""
        for name, paths in self._paths.items():
            for id, path in paths.items():
                yield name, id, path

    def reached(self, id: str) -> list[Name]:
        """What paths of an id lead to."""
        return sorted(self._reached.get(id, ()))

    def id_of(self, name: Name) -> str:
        """The id of the paths from an entry; empty where there is none."""
        entry = self._by_name.get(name)
        return "" if entry is None else entry.get("path") or path_id(name, entry.get("time") or 0)

    def until(self, name: Name) -> int:
        """When an entry of its own ends, ms; 0 where there is none, NEVER where it stays."""
        expires: int | None = self._by_name.get(name, {"expires": 0})["expires"]
        return NEVER if expires is None else expires

    def path_until(self, id: str, path: Trail) -> int:
        """When the entry ends that a path comes from; 0 where it does not stand any more."""
        return self.until(path.origin) if self.id_of(path.origin) == id else 0

    def find(self, id: str) -> Name | None:
        """The entry whose paths have an id."""
        for name in self._reached.get(id, ()):
            origin = self._paths[name][id].origin
            if self.id_of(origin) == id:
                return origin
        return next((name for name in self._by_name if self.id_of(name) == id), None)  # it reached nothing

    def void(self, now: int, looked_at: int = 8) -> list[PathEdit]:
        """Edits that take out paths of no effect any more; each call looks at the next few ids."""
        edits = []
        for id in [id for id, _ in zip(self._reached, range(looked_at), strict=False)]:
            names = self._reached[id] = self._reached.pop(id)  # the next call begins behind it
            edits += [
                PathEdit(name, id, None)
                for name in sorted(names)
                if self.path_until(id, self._paths[name][id]) <= now
            ]
        return edits

    def _enter_reached(self, *ids: str) -> None:
        """What paths of these ids lead to is on its list for as long as they now say."""
        for id in dict.fromkeys(ids):
            for name in self.reached(id):
                self._enter(name)

    def _enter(self, name: Name) -> None:
        """Bring the table that events are looked up in to what is said of an entity."""
        until = self.until(name)
        for id, path in self.paths(name).items():
            until = max(until, self.path_until(id, path))
        if until <= 0:
            until = slabs.TOMBSTONE
        self._entered += slabs.enter(self.entries, name[2] ^ _salt(*name[:2]), until)
        if 4 * self._entered > len(self.entries):  # half full: make it anew, without those taken out
            slots = SLOTS_MIN
            names = dict.fromkeys((*self._by_name, *self._paths))
            while slots < 4 * len(names):
                slots *= 2
            self.entries = np.zeros(2 * slots, np.int64)
            self._entered = 0
            for other in names:
                self._enter(other)


def _salt(name: str, entity: str) -> int:
    digest = hashlib.blake2b(f"{name}\0{entity}".encode(), digest_size=8, person=b"riskengine.list").digest()
    return int.from_bytes(digest, "little", signed=True)
