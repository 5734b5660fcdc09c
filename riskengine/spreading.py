"""Blocks that reach a person's other accounts: by a walk when one is made, and by the events that touch it.

`Spreading` is what a policy's `spreads:` compile to. It reads lists and member cells and says which paths are
to be entered; the engine enters them in the store. Entities are (name, signed key), as stores carry keys.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from riskengine.decision import Message, Reason
from riskengine.definition import Definition, Rule, Spread
from riskengine.entries import EditEntry
from riskengine.features import FeatureSet, Touches
from riskengine.hashing import unsigned
from riskengine.layout import DISTINCT, R_CELL, R_OP, R_OUT, R_WINDOW, Int64s
from riskengine.spreads import links_of
from riskengine.stores import Links, Spot
from riskengine.stores.lists import Lists
from riskengine.stores.paths import PATHS_MAX, Name, PathEdit, Trail

Entity = tuple[str, int]
Members = Callable[[Sequence[Spot], Links, int], list[list[Int64s]]]
BY_KEY_MAX = 62  # of Lists.met: pairs of list and entity that have a bit of their own


class Touch(NamedTuple):
    """An event as far as blocks spread by it: when it was, and its entities that are walked along."""

    time: int
    here: tuple[Entity, ...]


class Found(NamedTuple):
    """What a batch comes to: paths to be entered, and of events the nearest path to each listed entity."""

    edits: list[PathEdit]
    named: dict[int, dict[tuple[str, str], tuple[str, Trail]]]  # by row: list and entity to id and path


class _Link(NamedTuple):
    feature: str
    to: str
    column: int  # of cells: how many members it counts
    cell: int
    window: int


class Spreading:
    """The lists of a policy that spread, and what it takes to follow them."""

    def __init__(self, definition: Definition, features: FeatureSet) -> None:
        """Compile what `definition` says; see `Spreading.of`."""
        self._spreads = {
            name: known.spreads for name, known in definition.lists.items() if known.spreads is not None
        }
        self._numbers = {name: e for e, name in enumerate(features.entities)}
        self._columns = {
            (features.lists[number], features.entities[e]): column
            for number, e, column in features.listed.tolist()
        }
        self._links = {
            name: _compile_links(spread, definition, features) for name, spread in self._spreads.items()
        }
        reaching = {pair for name in self._spreads for pair in self._pairs(name)}
        self.mask = 0  # of Lists.met: what spreads, and what is reached
        for bit, (number, e, _) in enumerate(features.listed.tolist()):
            if (features.lists[number], features.entities[e]) in reaching:
                self.mask |= 1 << min(bit, BY_KEY_MAX)
        self._asking = {
            rule.name: asked
            for rule in definition.rules.values()
            if (asked := tuple(_asked_of(rule, {to for s in self._spreads.values() for to in s.to})))
        }

    @classmethod
    def of(cls, definition: Definition, features: FeatureSet) -> Spreading | None:
        """What a definition says of lists that spread; None where none does."""
        return (
            cls(definition, features) if any(known.spreads for known in definition.lists.values()) else None
        )

    def _pairs(self, name: str) -> Iterator[tuple[str, str]]:
        """Lists and entities that an event passes on by, or that are reached, by the list `name`."""
        spread = self._spreads[name]
        for entity in spread.along:
            for known in (name, *spread.to):
                if (known, entity) in self._columns:
                    yield known, entity

    # -- when an entry is made

    def reaches(self, name: str, entity: str) -> bool:
        """Whether an entry of a list spreads."""
        return name in self._spreads and entity in self._spreads[name].along

    def walk(self, lists: Lists, origin: Name, now: int, members: Members) -> list[PathEdit]:
        """Paths from an entry to what belongs to its entity, by the members of cells at `now` (ms).

        Nearest first; of several paths of one length that by the entity that comes first in `along`, and then
        by the lesser keys.
        """
        name, entity, key = origin
        spread, links = self._spreads[name], self._links[name]
        marks = _Marks(lists)
        level: dict[Entity, tuple[Entity, ...]] = {(entity, key): ((entity, key),)}
        seen = set(level)
        for _ in range(spread.hops):
            reached: dict[Entity, tuple[Entity, ...]] = {}
            for (_, via), others in zip(level.items(), self._read(name, level, now, members), strict=True):
                if any(len(keys) > spread.degree for keys in others):
                    continue  # shared
                for to in spread.along:
                    keys = {
                        key
                        for link, own in zip(links[via[-1][0]], others, strict=True)
                        if link.to == to
                        for key in own.tolist()
                    }
                    for key in sorted(keys):
                        if (to, key) not in seen:
                            seen.add((to, key))
                            reached[to, key] = (*via, (to, key))
            for one, via in reached.items():
                marks.offer(spread, one, lists.id_of(origin), Trail(name, via, now), now)
            level = reached
            if not level:
                break
        return marks.edits

    def _read(self, name: str, level: Iterable[Entity], now: int, members: Members) -> list[list[Int64s]]:
        """The members of entities, of each a list by its links."""
        by_number = {
            self._numbers[entity]: [(link.cell, link.window) for link in links]
            for entity, links in self._links[name].items()
        }
        return members([(self._numbers[entity], key) for entity, key in level], by_number, now)

    # -- when events come

    def follow(self, found: Touches, lists: Lists, met: Collection[int]) -> Found:
        """What the events of a batch pass on, in their order: later ones are listed in `cells` at once.

        The batch has been counted and looked up; `met` are rows that are no new events. What is late passes
        nothing on.
        """
        batch, cells = found.batch, found.cells
        marks = _Marks(lists)
        named: dict[int, dict[tuple[str, str], tuple[str, Trail]]] = {}
        for name, spread in self._spreads.items():
            columns = [self._columns[pair] for pair in self._pairs(name)]
            rows = np.flatnonzero((cells[columns] == 1.0).any(axis=0)).tolist()
            waiting = set(rows)
            while rows:
                i = heapq.heappop(rows)
                if i in met:
                    continue
                touch = self._touch(spread, found, i)
                named.setdefault(i, {}).update(self._name(name, marks, touch))
                if batch.late[i]:
                    continue
                shared = {
                    entity
                    for entity, links in self._links[name].items()
                    if any(cells[link.column, i] > spread.degree for link in links)
                }
                for edit in self._pass_on(name, marks, touch, shared):
                    assert edit.path is not None
                    to, entity, key = edit.name
                    until = lists.path_until(edit.id, edit.path)
                    same = found.keys[i + 1 :, self._numbers[entity]] == key
                    later = np.flatnonzero(same & (batch.time[i + 1 :] < until)) + i + 1
                    cells[self._columns[to, entity], later] = 1.0
                    for j in later.tolist():
                        if j not in waiting:
                            waiting.add(j)
                            heapq.heappush(rows, j)
        return Found(marks.edits, named)

    def named(self, found: Touches, lists: Lists) -> dict[int, dict[tuple[str, str], tuple[str, Trail]]]:
        """Of the events of a batch, the nearest path to each entity that is listed by one."""
        marks = _Marks(lists)
        named: dict[int, dict[tuple[str, str], tuple[str, Trail]]] = {}
        for name, spread in self._spreads.items():
            columns = [self._columns[to, entity] for to in spread.to for entity in spread.along]
            for i in np.flatnonzero((found.cells[columns] == 1.0).any(axis=0)).tolist():
                named.setdefault(i, {}).update(self._name(name, marks, self._touch(spread, found, i)))
        return named

    def touches(self, found: Touches) -> list[Touch]:
        """Events of a batch that touched what is listed, kept for when it can be followed (`catch_up`)."""
        kept = []
        columns = [self._columns[pair] for name in self._spreads for pair in self._pairs(name)]
        along = dict.fromkeys(entity for spread in self._spreads.values() for entity in spread.along)
        for i in np.flatnonzero((found.cells[columns] == 1.0).any(axis=0)).tolist():
            if not found.batch.late[i]:
                kept.append(Touch(int(found.batch.time[i]), self._here(along, found, i)))
        return kept

    def catch_up(self, touches: Iterable[Touch], lists: Lists, members: Members) -> list[PathEdit]:
        """What events pass on that came while nobody could be asked; who is shared is looked up now."""
        marks = _Marks(lists)
        for touch in touches:
            for name, spread in self._spreads.items():
                here = tuple(entity for entity in touch.here if entity[0] in spread.along)
                own = Touch(touch.time, here)
                if not here or not any(True for _ in self._sources(name, marks, own)):
                    continue
                read = self._read(name, here, touch.time, members)
                shared = {
                    entity
                    for (entity, _), others in zip(here, read, strict=True)
                    if any(len(keys) > spread.degree for keys in others)
                }
                self._pass_on(name, marks, own, shared)
        return marks.edits

    def _touch(self, spread: Spread, found: Touches, i: int) -> Touch:
        return Touch(int(found.batch.time[i]), self._here(spread.along, found, i))

    def _here(self, along: Iterable[str], found: Touches, i: int) -> tuple[Entity, ...]:
        here = ((entity, int(found.keys[i, self._numbers[entity]])) for entity in along)
        return tuple((entity, key) for entity, key in here if key)

    def _sources(self, name: str, marks: _Marks, touch: Touch) -> Iterator[tuple[Entity, str, Trail]]:
        """What an event can pass on: paths, of entities that are listed, and that others lead to."""
        spread = self._spreads[name]
        for entity in touch.here:
            origin = (name, *entity)
            if touch.time < marks.lists.until(origin):
                yield entity, marks.lists.id_of(origin), Trail(name, (entity,), touch.time)
            for id, path in marks.standing(name, spread, entity, touch.time).items():
                if path.distance < spread.hops:
                    yield entity, id, path

    def _pass_on(self, name: str, marks: _Marks, touch: Touch, shared: Collection[str]) -> list[PathEdit]:
        """Lead paths from each entity of an event to its others, as they were before it."""
        spread = self._spreads[name]
        best: dict[tuple[Entity, str], Trail] = {}
        for source, id, path in list(self._sources(name, marks, touch)):
            if source[0] in shared:
                continue
            for entity in touch.here:
                if entity not in path.via:
                    longer = Trail(name, (*path.via, entity), touch.time)
                    known = best.get((entity, id))
                    if known is None or longer.distance < known.distance:
                        best[entity, id] = longer
        edits: list[PathEdit] = []
        for (entity, id), path in sorted(best.items(), key=lambda item: (item[1].distance, item[0][1])):
            edits += marks.offer(spread, entity, id, path, touch.time)
        return edits

    # -- in words

    def _name(self, name: str, marks: _Marks, touch: Touch) -> dict[tuple[str, str], tuple[str, Trail]]:
        """The nearest path to each entity of an event, by the list that it is on and the entity."""
        spread = self._spreads[name]
        nearest: dict[tuple[str, str], tuple[str, Trail]] = {}
        for entity in touch.here:
            standing = marks.standing(name, spread, entity, touch.time)
            for id, path in sorted(standing.items(), key=lambda item: (item[1].distance, item[0])):
                nearest.setdefault((_list_at(spread, path.distance), entity[0]), (id, path))
        return nearest

    def explained(
        self, reasons: tuple[Reason, ...], named: Mapping[tuple[str, str], tuple[str, Trail]]
    ) -> tuple[Reason, ...]:
        """Reasons whose rules ask for a list that is reached, with the path in their message."""
        told = []
        for reason in reasons:
            paths = [named[pair] for pair in self._asking.get(reason.rule, ()) if pair in named]
            if paths:
                id, path = min(paths, key=lambda item: (item[1].distance, item[0]))
                reason = msgspec.structs.replace(reason, message=_with_path(reason.message, id, path))
            told.append(reason)
        return tuple(told)


def shown(lists: Lists, name: Name, own: dict[str, Any] | None, now: int) -> dict[str, Any] | None:
    """An entity's entry as people see it: its own, and paths that lead to it; None where it is not listed."""
    standing = [
        (path.distance, id, path)
        for id, path in lists.paths(name).items()
        if now < lists.path_until(id, path)
    ]
    if not standing:
        return own
    standing.sort(key=lambda item: item[:2])
    nearest = standing[0][2]
    said = dict(own or lists.get(nearest.origin) or {})
    said.pop("path", None)
    return {
        **said,
        "distance": nearest.distance,
        "paths": [
            {"path": id, "list": path.list, "distance": distance, "time": path.time, "via": _via(path)}
            for distance, id, path in standing
        ],
    }


def standing(lists: Lists, name: str, entity: str, now: int) -> list[dict[str, Any]]:
    """What stands on a list of an entity at a time, as `shown` says it, each with its key."""
    told = []
    for spot in lists.names(name, entity):
        own = lists.get(spot)
        if own is not None and own["expires"] is not None and own["expires"] <= now:
            own = None
        if (entry := shown(lists, spot, own, now)) is not None:
            told.append({"key": _hex(spot[2]), **entry})
    return told


def described(lists: Lists, name: Name, id: str) -> dict[str, Any]:
    """The entry that paths of an id come from, and what they lead to."""
    reached = []
    for other in lists.reached(id):
        path = lists.paths(other)[id]
        reached.append({"list": other[0], "distance": path.distance, "time": path.time, "via": _via(path)})
    reached.sort(key=lambda one: (one["distance"], str(one["via"])))
    entry = lists.get(name) or {}
    entry.pop("path", None)
    return {"path": id, "list": name[0], "entity": name[1], "key": _hex(name[2]), **entry, "reached": reached}


def _via(path: Trail) -> list[dict[str, str]]:
    return [{"entity": entity, "key": _hex(key)} for entity, key in path.via]


def _hex(key: int) -> str:
    return f"{key & (1 << 64) - 1:016x}"


class _Marks:
    """Paths that are to be entered, over those that lists have."""

    def __init__(self, lists: Lists) -> None:
        self.lists = lists
        self.edits: list[PathEdit] = []
        self._over: dict[Name, dict[str, Trail | None]] = {}

    def standing(self, source: str, spread: Spread, entity: Entity, time: int) -> dict[str, Trail]:
        """Paths to an entity, from entries of the list `source`, that are in effect at a time, by id."""
        standing: dict[str, Trail] = {}
        for to in spread.to:
            name = (to, *entity)
            for id, path in {**self.lists.paths(name), **self._over.get(name, {})}.items():
                if path is not None and path.list == source and time < self.lists.path_until(id, path):
                    standing[id] = path
        return standing

    def offer(self, spread: Spread, entity: Entity, id: str, path: Trail, time: int) -> list[PathEdit]:
        """Enter a path, unless there is one of the id that is as short, or the entity has too many."""
        standing = self.standing(path.list, spread, entity, time)
        known = standing.get(id)
        if known is not None and known.distance <= path.distance:
            return []
        if known is None and len(standing) >= PATHS_MAX:
            return []
        name = (_list_at(spread, path.distance), *entity)
        entered = [PathEdit(name, id, path)]
        if known is not None and (before := (_list_at(spread, known.distance), *entity)) != name:
            self._over.setdefault(before, {})[id] = None
            self.edits.append(PathEdit(before, id, None))
        self._over.setdefault(name, {})[id] = path
        self.edits += entered
        return entered


def _list_at(spread: Spread, distance: int) -> str:
    """The list that entities so many steps away are on."""
    return spread.to[min(distance, len(spread.to)) - 1]


def _compile_links(
    spread: Spread, definition: Definition, features: FeatureSet
) -> dict[str, tuple[_Link, ...]]:
    plan = features.plan
    links: dict[str, list[_Link]] = {entity: [] for entity in spread.along}
    for feature in links_of(spread, definition.features):
        assert feature.by is not None
        assert feature.field is not None
        column = features.columns[feature.name]
        (read,) = np.flatnonzero((plan.reads[:, R_OP] == DISTINCT) & (plan.reads[:, R_OUT] == column))
        cell, window = int(plan.reads[read, R_CELL]), int(plan.reads[read, R_WINDOW])
        links[feature.by].append(_Link(feature.name, feature.field, column, cell, window))
    return {entity: tuple(found) for entity, found in links.items()}


def _asked_of(rule: Rule, lists: Collection[str]) -> Iterator[tuple[str, str]]:
    """Lists that are reached, and entities, that a rule asks for."""
    for symbol in rule.when.symbols():
        kind, _, pair = symbol.name.partition(":")
        name, _, entity = pair.rpartition(":")
        if kind == "listed" and name in lists:
            yield name, entity


def _with_path(message: Message | None, id: str, path: Trail) -> Message:
    kinds = [entity for entity, _ in path.via]
    steps = f"{path.distance} step{'s' if path.distance > 1 else ''}"
    en = f"{path.list}: {' -> '.join(kinds)} ({steps}, path {id})"
    zh = f"{path.list}：{' → '.join(kinds)}（{path.distance} 步，路径 {id}）"
    said = message or Message()
    return Message(f"{said.zh} · {zh}" if said.zh else zh, f"{said.en} - {en}" if said.en else en)


def journaled(edits: Iterable[PathEdit], now: int) -> list[EditEntry]:
    """Paths as a journal keeps them: what an edit came to, or an event."""
    return [
        EditEntry(
            kind="path",
            op="put" if path is not None else "delete",
            name=name,
            entity=entity,
            key=unsigned(key),
            value=msgspec.json.encode((id, path)),
            time_ms=now,
        )
        for (name, entity, key), id, path in edits
    ]
