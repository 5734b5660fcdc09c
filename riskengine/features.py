"""Features and limits compiled to a plan: which entities an event touches, and what its row says.

`touches` turns a batch of events into keys and records (pure); a store folds them and fills in what it
knows; `rows` adds what follows from that. There is no other feature code, online or offline.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from riskengine import calendar, layout
from riskengine.cells import (
    ADD,
    CELLS_MAX,
    FIRST,
    HASH_OF,
    HOLDS,
    KEY_OF,
    LAST,
    LOCATION_OF,
    MARKS,
    MINOR,
    NUMBER_OF,
    ONE,
    SIGHT,
    SLOT_WORDS,
    TEXT_OF,
    TEXT_WORDS,
    TIMELINE,
    Cell,
    Cells,
)
from riskengine.definition import Definition, Feature, Limit, Window
from riskengine.errors import RiskEngineError
from riskengine.event import Batch, Schema
from riskengine.expression import Expression
from riskengine.kernel import Call, Holder, bind, jit
from riskengine.layout import (
    EVENT,
    FRAUD,
    L_SIZE,
    LEGIT,
    M_LABEL,
    M_NEEDS,
    M_SIZE,
    M_WHERE,
    NONE,
    S_AT,
    S_DIGITS,
    S_ENTITY,
    S_KIND,
    S_SIZE,
    S_SOURCE,
    Float64s,
    Int64s,
    Plan,
)
from riskengine.program import Layout, Program, compile, executing
from riskengine.rooms import Empty
from riskengine.tables import TableSet

SEVERITY: Final = {"allow": 0, "review": 1, "challenge": 2, "deny": 3}


@dataclass(frozen=True, slots=True)
class CellSpec:
    """One cell of an entity's state, named by its definition so that a reload can find it again."""

    key: tuple[object, ...]
    kind: int
    columns: tuple[tuple[int, str, int], ...] = ()  # (operation, field, digits) of a timeline


class Strings(msgspec.Struct, frozen=True, eq=False, gc=False):
    """The string columns of a batch: int64 offsets into `text`, or -1 - offset into the tables' pool."""

    off: Int64s  # (n, S)
    len: NDArray[np.int32]  # (n, S), -1 is missing
    hash: NDArray[np.uint64]  # (n, S)
    text: NDArray[np.uint8]


class Touches(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What a batch asks of the store, and where the answer goes.

    records int64 (n, W), each entity's at Plan.entities[:, E_RECORD]; masks int64 (n, E): cells moved by the
    event or by a label on it (FeatureSet.kinds tells which); cells float64 (columns, n); texts int64
    (n, remembered strings * 4); read_at int64 (n) ms.
    """

    batch: Batch
    keys: Int64s  # (n, E): Batch.keys as stores carry them
    records: Int64s
    masks: Int64s
    cells: Float64s
    bits: Int64s  # the memory of cells
    texts: Int64s
    strings: Strings
    tables: TableSet
    read_at: Int64s
    lone: Lone | None = None  # where one after another is made in the same room


class Lone:
    """What is the same for every lone event that is planned in a room: calls of kernels with its arrays.

    Whoever calls a kernel for a lone event keeps the call here, and makes it anew where an array is another.
    """

    __slots__ = ("counting", "judging", "look_up", "planning", "reading", "settling", "watching", "writing")

    def __init__(self) -> None:
        self.planning: list[Call] = []
        self.reading: Call | None = None
        self.judging: list[Call] = []
        self.watching: tuple[Int64s, list[Call]] | None = None
        # Behind the arrays that may be others by the next event:
        self.look_up: tuple[object, Call] | None = None
        self.counting: tuple[object, object, Call] | None = None
        self.settling: tuple[object, object, object, Call] | None = None
        self.writing: object | None = None  # where its record is written (served.py)


class Room(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Arrays that a batch of n events is planned in; Touches made in one are good until the next are."""

    cells: Float64s
    bits: Int64s
    records: Int64s
    masks: Int64s
    texts: Int64s
    strings: (
        tuple[Int64s, NDArray[np.int32], NDArray[np.uint64]] | None
    )  # where there are more than the batch's
    lasting: list[Touches] | None  # the latest, where one lone event after another is planned here


@dataclass(frozen=True, eq=False, slots=True)
class FeatureSet:
    """Every feature and limit of a policy as arrays. Compile with `FeatureSet.compile`."""

    names: tuple[str, ...]  # features, in policy order
    types: Mapping[str, str]
    columns: Mapping[str, int]  # feature to its column in cells (the first, of a location; -1 of a string)
    texts: tuple[str, ...]  # features that are remembered strings, by their place in Touches.texts
    entities: tuple[str, ...]
    plan: Plan
    flat: Int64s  # the plan, as kernels take it
    specs: tuple[tuple[CellSpec, ...], ...]  # per entity, in plan order
    limit_names: tuple[str, ...]
    listed: Int64s  # (pairs, 3): list, entity, column
    lists: tuple[str, ...]
    layout: Layout
    before_wait: Program  # where and max
    after_wait: Program | None  # value features
    timezone: tuple[Int64s, Int64s]
    data_width: int  # columns of cells that hold data, before those of programs
    more_strings: bool  # whether tables or features add string columns
    record_words: int
    scratch_words: int
    entity_fields: Mapping[str, tuple[object, ...]]
    entity_slots: tuple[Mapping[tuple[int, str], int], ...]  # (kind, field) to its first word among the slots
    fingerprint: str  # of the plan: what lays out records and state

    @classmethod
    def compile(
        cls, definition: Definition, schema: Schema, layout: Layout, hasher: Callable[[bytes], int]
    ) -> FeatureSet:
        """Compile a definition's features and limits onto a layout that starts with the event's fields.

        `hasher` is the keyed hash of a string's bytes. Raises RiskEngineError past the bounds of a plan.
        """
        return _Compiler(definition, schema, layout, hasher).compile()

    def room(self, n: int, lasting: bool = False, empty: Empty = np.empty) -> Room:
        """Room for a batch of n events; a lasting one is for one lone event after another."""
        cells = empty((self.layout.width, n))
        strings = n, self.layout.strings_width
        return Room(
            cells,
            cells.view(np.int64),
            empty((n, self.record_words), np.int64),
            empty((n, len(self.entities)), np.int64),
            empty((n, len(self.texts) * TEXT_WORDS), np.int64),
            (empty(strings, np.int64), empty(strings, np.int32), empty(strings, np.uint64))
            if self.more_strings
            else None,
            [] if lasting else None,
        )

    def touches(self, batch: Batch, read_at: Int64s, tables: TableSet, room: Room | None = None) -> Touches:
        """Plan a batch: fill the event's own columns, decide what it moves, write its records."""
        room = room or self.room(batch.n)
        for known in room.lasting or ():
            if (
                known.lone is not None
                and known.batch is batch
                and known.tables is tables
                and known.read_at is read_at
            ):
                for call in known.lone.planning:
                    call()
                return known
        # Of others nothing is bound: an event with an emoji, or that follows another, took 5 ms for that.
        lone = Lone() if room.lasting is not None and batch.lasting else None
        touches = Touches(
            batch, batch.keys.view(np.int64), room.records, room.masks, room.cells, room.bits, room.texts,
            self._strings(batch, room), tables, read_at, lone,
        )  # fmt: skip
        hold: Holder = partial if lone is None else bind
        planning = self._planning(touches, hold)
        for call in planning:
            call()
        if lone is not None and room.lasting is not None:
            lone.planning, lone.reading = planning, self._reading(touches, hold)
            room.lasting[:] = [touches]
        return touches

    def _planning(self, touches: Touches, hold: Holder) -> list[Call]:
        """The calls that plan a batch."""
        batch, cells, strings, tables = touches.batch, touches.cells, touches.strings, touches.tables
        calls: list[Call | None] = [
            hold(
                lay_out, batch.numbers, cells, self.data_width, batch.str_off, batch.str_len, batch.str_hash,
                strings.off, strings.len, strings.hash,
            ),
            tables.filling(touches.keys, cells, strings.off, strings.len, strings.hash, hold),
            self._executing(self.before_wait, touches, hold) if len(self.before_wait.code) else None,
            hold(
                touch, self.flat, touches.keys, batch.type_index, batch.time, batch.late, batch.event_hash,
                batch.str_hash, batch.str_off, batch.str_len, batch.text, cells, touches.bits,
                touches.records, touches.masks,
            ),
        ]  # fmt: skip
        if self.texts:
            calls.insert(0, partial(np.copyto, strings.text[: len(batch.text)], batch.text))
            calls.append(partial(touches.texts.fill, 0))
        return [call for call in calls if call is not None]

    def refill(self, touches: Touches, tables: TableSet) -> Touches:
        """The same batch with the rows of other tables in it."""
        for _, _, is_text, column in tables.columns.tolist():
            if is_text:
                touches.strings.len[:, column] = -1
            else:
                touches.cells[column] = np.nan
        strings = touches.strings
        fill = tables.filling(touches.keys, touches.cells, strings.off, strings.len, strings.hash, partial)
        if fill is not None:
            fill()
        return msgspec.structs.replace(touches, tables=tables, lone=None)

    def rows(self, found: Touches) -> Touches:
        """Complete the rows of a batch that the store has answered: remembered strings, value features."""
        if self.texts:
            first = self.layout.string(self.texts[0])
            base = len(found.strings.text) - 24 * len(self.texts) * found.batch.n
            strings = found.strings
            spell(
                found.texts,
                len(self.texts),
                first,
                base,
                strings.off,
                strings.len,
                strings.hash.view(np.int64),
                strings.text,
            )
        read = self._reading(found, partial) if found.lone is None else found.lone.reading
        if read is not None:
            read()
        return found

    def _reading(self, touches: Touches, hold: Holder) -> Call | None:
        """The call that computes value features."""
        return None if self.after_wait is None else self._executing(self.after_wait, touches, hold)

    def row(self, found: Touches, i: int) -> dict[str, float | str | bool | dict[str, float] | None]:
        """One event's features by name; a missing one is None, durations are seconds, times ms."""
        row: dict[str, float | str | bool | dict[str, float] | None] = {}
        for name in self.names:
            column = self.columns[name]
            if column < 0:
                row[name] = text_at(found.strings, self.layout.string(name), i)
                continue
            value = float(found.cells[column, i])
            if math.isnan(value):
                row[name] = None
            elif self.types[name] == "location":
                row[name] = {"lat": value, "lon": float(found.cells[column + 1, i])}
            else:
                row[name] = value != 0.0 if self.types[name] == "bool" else value
        return row

    def _strings(self, batch: Batch, room: Room) -> Strings:
        """The string columns of a batch: its own, and where there are more, room for all of them."""
        if room.strings is None:
            return Strings(batch.str_off, batch.str_len, batch.str_hash, batch.text)
        text = batch.text
        if self.texts:
            text = np.empty(len(text) + 24 * len(self.texts) * batch.n, np.uint8)
        return Strings(*room.strings, text)

    def _executing(self, program: Program, touches: Touches, hold: Holder) -> Call:
        strings, pool = touches.strings, touches.tables.pool
        return executing(
            program, touches.cells, strings.off, strings.len, strings.hash, strings.text, pool,
            self.timezone, hold,
        )  # fmt: skip


def text_at(strings: Strings, column: int, i: int) -> str | None:
    """A remembered string, as far as it is known (24 bytes); one of an entity reads as its hash."""
    length = int(strings.len[i, column])
    if length < 0:
        return None
    if length == 0:
        return f"{int(strings.hash[i, column]):016x}"
    start = int(strings.off[i, column])
    return bytes(strings.text[start : start + length]).decode("utf-8", "ignore")


# ---- kernels ----------------------------------------------------------------------------------------


@jit
def lay_out(
    numbers: Float64s, cells: Float64s, data_width: int, str_off: Int64s, str_len: NDArray[np.int32],
    str_hash: NDArray[np.uint64], off: Int64s, length: NDArray[np.int32], hashes: NDArray[np.uint64],
) -> None:  # fmt: skip
    """Turn the batch's numbers (n, K) into the first columns of cells; the other data is missing as yet.

    Its string columns are the first of `off`, `length`, `hashes` (n, S or more): those of a lone event took
    6 us as slices of numpy.
    """
    fields = numbers.shape[1]
    for column in range(data_width):
        for i in range(cells.shape[1]):
            cells[column, i] = numbers[i, column] if column < fields else np.nan
    own = str_off.shape[1]
    if off.shape[1] == own:
        return  # they are the batch's own
    for i in range(off.shape[0]):
        for s in range(off.shape[1]):
            off[i, s] = str_off[i, s] if s < own else 0
            length[i, s] = str_len[i, s] if s < own else -1
            hashes[i, s] = str_hash[i, s] if s < own else np.uint64(0)


@jit
def touch(
    plan: Int64s,
    keys: Int64s,
    type_index: NDArray[np.int32],
    time: Int64s,
    late: NDArray[np.bool_],
    event_hash: NDArray[np.uint64],
    str_hash: NDArray[np.uint64],
    str_off: Int64s,
    str_len: NDArray[np.int32],
    text: NDArray[np.uint8],
    cells: Float64s,
    bits: Int64s,
    records: Int64s,
    masks: Int64s,
) -> None:
    """Write the record of every entity that an event names, and which of its cells the event moves."""
    n_entities = plan[layout.P_ENTITIES_N]
    for i in range(len(time)):
        for e in range(n_entities):
            if keys[i, e] != 0 and layout.entity_of(plan, e, layout.E_WIDTH) > 0:
                r = layout.entity_of(plan, e, layout.E_RECORD)
                records[i, r + layout.RECORD_TIME] = time[i]
                records[i, r + layout.RECORD_HASH] = np.int64(event_hash[i])
        for j in range(plan[layout.P_SLOTS_N]):
            e = layout.slot_of(plan, j, S_ENTITY)
            if keys[i, e] == 0:
                continue
            at = (
                layout.entity_of(plan, e, layout.E_RECORD)
                + layout.RECORD_SLOTS
                + layout.slot_of(plan, j, S_AT)
            )
            source = layout.slot_of(plan, j, S_SOURCE)
            kind = layout.slot_of(plan, j, S_KIND)
            if kind == MINOR:
                value = cells[source, i]
                records[i, at] = (
                    NONE if np.isnan(value) else layout.minor_of(value, layout.slot_of(plan, j, S_DIGITS))
                )
            elif kind == KEY_OF:
                records[i, at] = keys[i, source] if keys[i, source] != 0 else NONE
            elif kind == HASH_OF:
                records[i, at] = np.int64(str_hash[i, source]) if str_len[i, source] >= 0 else NONE
            elif kind == NUMBER_OF:
                records[i, at] = NONE if np.isnan(cells[source, i]) else bits[source, i]
            elif kind == LOCATION_OF:
                here = not np.isnan(cells[source, i])
                records[i, at] = (
                    layout.pack_location(cells[source, i], cells[source + 1, i]) if here else NONE
                )
            else:
                records[i, at] = np.int64(str_hash[i, source]) if str_len[i, source] >= 0 else NONE
                for k in range(3):
                    records[i, at + 1 + k] = word_of_text(text, str_off[i, source], str_len[i, source], 8 * k)
        for e in range(n_entities):
            masks[i, e] = 0
            if keys[i, e] == 0 or layout.entity_of(plan, e, layout.E_WIDTH) == 0:
                continue
            r = layout.entity_of(plan, e, layout.E_RECORD)
            first = layout.entity_of(plan, e, layout.E_CELLS)
            for c in range(0 if late[i] else layout.entity_of(plan, e, layout.E_CELLS_N)):
                cell = first + c
                where = layout.mover_of(plan, cell, M_WHERE)
                needs = layout.mover_of(plan, cell, M_NEEDS)
                if (
                    plan[plan[layout.P_MOVES] + cell * plan[layout.P_TYPES_N] + type_index[i]]
                    and (where < 0 or cells[where, i] == 1.0)
                    and (needs < 0 or records[i, r + layout.RECORD_SLOTS + needs] != NONE)
                ):
                    masks[i, e] |= 1 << c
            records[i, r + layout.RECORD_MASK] = (
                masks[i, e] & plan[plan[layout.P_KINDS] + EVENT * n_entities + e]
            )


@jit
def word_of_text(text: NDArray[np.uint8], off: int, length: int, skip: int) -> int:
    """Eight bytes of a string from byte `skip` on, little-endian, zeros behind its end."""
    word = 0
    for k in range(min(8, length - skip)):
        byte = int(text[off + skip + k])
        if k == 7:
            word |= (byte - 256 if byte >= 128 else byte) << 56
        else:
            word |= byte << (8 * k)
    return word


@jit
def spell(
    texts: Int64s,
    n_texts: int,
    first: int,
    base: int,
    off: Int64s,
    length: NDArray[np.int32],
    hashes: Int64s,
    text: NDArray[np.uint8],
) -> None:
    """Write remembered strings into the string columns from `first` on, their bytes into text[base:]."""
    for i in range(texts.shape[0]):
        for p in range(n_texts):
            word = texts[i, p * TEXT_WORDS]
            column = first + p
            length[i, column] = -1
            if word == 0:
                continue
            at = base + 24 * (i * n_texts + p)
            hashes[i, column] = word
            off[i, column] = at
            end = 0
            for k in range(24):
                byte = (texts[i, p * TEXT_WORDS + 1 + k // 8] >> (8 * (k % 8))) & 0xFF
                text[at + k] = byte
                if byte != 0:
                    end = k + 1
            length[i, column] = end


# ---- compiling --------------------------------------------------------------------------------------


class _Compiler:
    """Definitions in, arrays out. One method a step, in the order of `compile`."""

    def __init__(
        self, definition: Definition, schema: Schema, layout: Layout, hasher: Callable[[bytes], int]
    ) -> None:
        self.definition = definition
        self.schema = schema
        self.layout = layout
        self.hasher = hasher
        self.kept = Cells(definition)
        self.entities = self.kept.entities

    def compile(self) -> FeatureSet:
        definition = self.definition
        stored = [f for f in definition.features.values() if f.aggregate != "value"]
        limits = [definition.limits[name] for name in self.kept.limits]
        for table in definition.tables.values():
            for column, kind in table.columns.items():
                add = self.layout.add_string if kind == "string" else self.layout.add_number
                add(f"{table.name}.{column}")
        columns, texts = self._columns(stored)
        pairs, lists = self._listed()
        data_width = self.layout.width
        before = self._before_wait(limits)
        values = [f for f in definition.features.values() if f.aggregate == "value"]
        after = self._after_wait(values, columns)
        plan, specs, scratch = self._plan(columns, texts, before[1], limits)
        return FeatureSet(
            names=tuple(definition.features),
            types={f.name: f.type for f in definition.features.values()},
            columns=columns,
            texts=texts,
            entities=self.schema.entities,
            plan=plan,
            flat=plan.flatten(),
            specs=specs,
            limit_names=tuple(limit.name for limit in limits),
            listed=pairs,
            lists=lists,
            layout=self.layout,
            before_wait=before[0],
            after_wait=after,
            timezone=(plan.transitions, plan.offsets),
            data_width=data_width,
            more_strings=self.layout.strings_width > len(self.schema.strings),
            record_words=int(plan.entities[:, layout.E_WIDTH].sum()) or 1,
            scratch_words=scratch,
            entity_fields={e.name: (e.fields, e.derive) for e in definition.entities.values()},
            entity_slots=tuple({s: at for s, (at, _) in e.slots.items()} for e in self.entities.values()),
            fingerprint=_fingerprint(plan, specs, self.entities),
        )

    # -- columns and programs

    def _columns(self, stored: Sequence[Feature]) -> tuple[dict[str, int], tuple[str, ...]]:
        columns: dict[str, int] = {}
        texts = []
        for feature in stored:
            if feature.type == "string":
                self.layout.add_string(feature.name, "hash")
                columns[feature.name] = -1
                texts.append(feature.name)
            elif feature.type == "location":
                columns[feature.name] = self.layout.add_number(f"{feature.name}.lat")
                self.layout.add_number(f"{feature.name}.lon")
            else:
                columns[feature.name] = self.layout.add_number(feature.name)
        return columns, tuple(texts)

    def _listed(self) -> tuple[Int64s, tuple[str, ...]]:
        """Columns for list membership: every pair a policy could ask about."""
        lists = tuple(self.definition.lists)
        rows = []
        for at, name in enumerate(lists):
            for entity in self.definition.lists[name].of:
                column = self.layout.add_number(f"listed:{name}:{entity}")
                rows.append((at, self.schema.entities.index(entity), column))
        return np.array(rows, np.int64).reshape(-1, 3), lists

    def _before_wait(self, limits: Sequence[Limit]) -> tuple[Program, dict[str, int]]:
        """One program for every `where` and `max`; the columns of their results by source text."""
        wanted: dict[str, Expression] = {}
        for entity in self.entities.values():
            for cell in entity.cells:
                if cell.where is not None:
                    wanted[cell.where.source] = cell.where
        for limit in limits:
            wanted[limit.max.source] = limit.max
            if limit.where is not None:
                wanted[limit.where.source] = limit.where
        program = compile(list(wanted.values()), self.layout, self.hasher)
        return program, dict(zip(wanted, map(int, program.outputs), strict=True))

    def _after_wait(self, values: Sequence[Feature], columns: dict[str, int]) -> Program | None:
        """One program for every value feature, in an order that has each after what it uses."""
        if not values:
            return None
        ordered: list[Feature] = []

        def visit(feature: Feature) -> None:
            assert feature.value is not None
            uses = _names(feature.value)
            for used in values:
                if used.name in uses and used not in ordered:
                    visit(used)
            if feature not in ordered:
                ordered.append(feature)

        for feature in values:
            visit(feature)
        for feature in ordered:
            columns[feature.name] = self.layout.add_number(feature.name)
        expressions = [f.value for f in ordered if f.value is not None]
        return compile(expressions, self.layout, self.hasher, into=[columns[f.name] for f in ordered])

    # -- arrays

    def _plan(
        self,
        columns: Mapping[str, int],
        texts: tuple[str, ...],
        before: Mapping[str, int],
        limits: Sequence[Limit],
    ) -> tuple[Plan, tuple[tuple[CellSpec, ...], ...], int]:
        entities: list[list[int]] = []
        cells: list[tuple[int, ...]] = []
        columns_of: list[tuple[int, int]] = []
        windows: list[tuple[int, ...]] = []
        regions: list[int] = []
        reads: list[list[int]] = []
        slots, movers, moves, specs = [], [], [], []
        record = 0
        widest = 1
        for e, (name, entity) in enumerate(self.entities.items()):
            if len(entity.cells) > CELLS_MAX:
                raise RiskEngineError(
                    f"entity {name} needs {len(entity.cells)} kinds of counters, and the most is "
                    f"{CELLS_MAX}: give features of it the same `on` and `where`, or drop some"
                )
            row = [0] * layout.E_SIZE
            first_cell, first_read, first_region = len(cells), len(reads), len(regions)
            width = layout.RECORD_SLOTS + entity.slot_words if entity.cells else 0
            of_region = [c for c in entity.cells if c.kind <= HOLDS]
            fixed_at = 2 + (len(of_region) + 1) // 2
            fixed = 0
            growth = 0
            window_at: dict[tuple[int, int], int] = {}
            for cell in entity.cells:
                words = cell.words
                at = fixed
                if cell.kind <= HOLDS:
                    words = 1 + len(cell.columns) if cell.kind == TIMELINE else 2
                    words = 3 if cell.kind == MARKS else words
                    at = len(regions) - first_region
                    regions.append(words)
                    growth += words
                else:
                    fixed += words
                widest = max(widest, words)
                # The finest first: a wider window's sums go on from a narrower one's; periods come last.
                order = sorted(range(len(cell.windows)), key=lambda w: _fineness(cell.windows[w]))
                window_at.update({(id(cell), w): len(windows) + place for place, w in enumerate(order)})
                cells.append(
                    (
                        cell.kind,
                        at,
                        words,
                        len(columns_of),
                        len(cell.columns),
                        len(windows),
                        len(cell.windows),
                        cell.slot,
                        cell.cap,
                    )
                )
                for op, source in cell.columns:
                    slot = entity.slots[MINOR, source][0] if source else 0
                    columns_of.append((op, slot))
                windows.extend(_window_row(cell.windows[w]) for w in order)
                label = {None: EVENT, "fraud": FRAUD, "legit": LEGIT}[cell.label]
                where = before[cell.where.source] if cell.where is not None else -1
                movers.append((where, cell.needs, label))
                moves.append([t in cell.types for t in self.schema.types])
            cell_at = {id(cell): first_cell + c for c, cell in enumerate(entity.cells)}
            for feature, cell, window, own, other in sorted(
                entity.reads,
                key=lambda r: (not _is_before(r[0]), cell_at[id(r[1])], window_at.get((id(r[1]), r[2]), -1)),
            ):
                reads.append(
                    self._read(
                        feature,
                        cell_at,
                        cell,
                        window_at.get((id(cell), window), -1),
                        own,
                        other,
                        columns,
                        texts,
                    )
                )
            for (kind, source), (at, digits) in entity.slots.items():
                slots.append((e, at, kind, self._source(kind, source), digits))
            row[layout.E_RECORD], row[layout.E_WIDTH] = record, width
            row[layout.E_CELLS], row[layout.E_CELLS_N] = first_cell, len(entity.cells)
            row[layout.E_FIXED], row[layout.E_FIXED_N] = fixed_at, fixed
            row[layout.E_REGIONS], row[layout.E_REGIONS_N] = first_region, len(of_region)
            row[layout.E_READS] = first_read
            row[layout.E_BEFORE_N] = sum(_is_before(r[0]) for r in entity.reads)
            row[layout.E_AFTER_N] = len(entity.reads) - row[layout.E_BEFORE_N]
            row[layout.E_RETENTION], row[layout.E_GROWTH] = entity.retention_ms, growth
            entities.append(row)
            record += width
            specs.append(tuple(self._spec(cell) for cell in entity.cells))
        kinds = np.zeros((3, len(self.entities)), np.int64)
        for e, row in enumerate(entities):
            for c in range(row[layout.E_CELLS_N]):
                kinds[movers[row[layout.E_CELLS] + c][M_LABEL], e] |= 1 << c
        totals, running = self._totals(entities, cells, columns_of, windows, reads)
        types = len(self.schema.types)
        transitions, offsets = calendar.timezone_table(self.definition.timezone)
        plan = Plan(
            entities=_table(entities, layout.E_SIZE),
            cells=_table(cells, layout.C_SIZE),
            columns=_table(columns_of, layout.K_SIZE),
            windows=_table(windows, layout.W_SIZE),
            regions=np.array(regions, np.int64),
            reads=_table(reads, layout.R_SIZE),
            transitions=transitions,
            offsets=offsets,
            slots=_table(slots, S_SIZE),
            movers=_table(movers, M_SIZE),
            moves=_table(moves, types),
            kinds=kinds,
            limits=_table([self._limit(limit, entities, before) for limit in limits], L_SIZE),
            limit_types=_table([[t in limit.types for t in self.schema.types] for limit in limits], types),
            totals=totals,
            running=running,
            slack_ms=self.kept.slack_ms,
        )
        return plan, tuple(specs), 2 * widest

    def _totals(
        self,
        entities: Sequence[Sequence[int]],
        cells: Sequence[Sequence[int]],
        columns: Sequence[tuple[int, int]],
        windows: Sequence[Sequence[int]],
        reads: Sequence[Sequence[int]],
    ) -> tuple[Int64s, Int64s]:
        """Plan.totals and Plan.running: sliding windows without a delay have totals."""
        places = np.full(len(windows), -1, np.int64)
        running = np.zeros((len(entities), layout.T_SIZE), np.int64)
        for e, entity in enumerate(entities):
            first = entity[layout.E_CELLS]
            running[e, layout.T_ALL] = 1
            for cell in cells[first : first + entity[layout.E_CELLS_N]]:
                running[e, layout.T_ALL] &= cell[layout.C_KIND] in (TIMELINE, FIRST, LAST, SIGHT)
                at = cell[layout.C_WINDOWS]
                for window in range(at, at + cell[layout.C_WINDOWS_N]):
                    row = windows[window]
                    if (
                        cell[layout.C_KIND] == TIMELINE
                        and row[layout.W_KIND] == layout.SLIDING
                        and row[layout.W_DELAY] == 0
                    ):
                        places[window] = running[e, layout.T_WORDS]
                        running[e, layout.T_WORDS] += layout.T_SINCE + cell[layout.C_WORDS]
                    else:
                        running[e, layout.T_ALL] = 0
            kept = cells[first] if entity[layout.E_CELLS_N] == 1 else (HOLDS,) * layout.C_SIZE
            added = columns[kept[layout.C_COLUMNS] :][: kept[layout.C_COLUMNS_N]]
            read = reads[entity[layout.E_READS] :][: entity[layout.E_AFTER_N]]
            running[e, layout.T_PLAIN] = (
                kept[layout.C_KIND] == TIMELINE
                and running[e, layout.T_ALL]
                and entity[layout.E_BEFORE_N] == 0
                and all(op in (ONE, ADD) for op, _ in added)
                and all(row[layout.R_OP] in (layout.COUNT, layout.SUM, layout.MEAN) for row in read)
            )
        return places, running

    def _spec(self, cell: Cell) -> CellSpec:
        """A cell's name for later plans: another unit makes another column."""
        fields = self.definition.fields
        columns = ((op, source, fields[source].digits or 0 if source else 0) for op, source in cell.columns)
        return CellSpec(cell.spec_key, cell.kind, tuple(columns))

    def _source(self, kind: int, source: str) -> int:
        """Where a slot's value comes from: a column of cells, of the keys, or of the strings."""
        if kind == KEY_OF:
            return self.schema.entities.index(source)
        if kind in (HASH_OF, TEXT_OF):
            return self.schema.strings.index(source)
        return self.schema.numbers.index(f"{source}.lat" if kind == LOCATION_OF else source)

    def _read(
        self,
        feature: Feature,
        cell_at: Mapping[int, int],
        cell: Cell,
        window: int,
        own: tuple[int, ...],
        other: Cell | None,
        columns: Mapping[str, int],
        texts: tuple[str, ...],
    ) -> list[int]:
        row = [0] * layout.R_SIZE
        op = _operation(feature, self.definition)
        row[layout.R_OP], row[layout.R_CELL], row[layout.R_WINDOW] = op, cell_at[id(cell)], window
        if op == layout.PREVIOUS_TEXT:
            row[layout.R_OUT] = texts.index(feature.name)
            row[layout.R_EXTRA] = SLOT_WORDS[self.kept.remembered(feature)[0]]
        else:
            row[layout.R_OUT] = columns[feature.name]
        if own:
            row[layout.R_COLUMN], row[layout.R_COLUMN2] = own[0], own[-1] if len(own) < 3 else own[1]
        if len(own) == 4:
            row[layout.R_OTHER], row[layout.R_EXTRA] = own[2], own[3]
        if op == layout.SPEED:
            assert feature.field is not None
            row[layout.R_OTHER] = self.schema.numbers.index(f"{feature.field}.lat")
        if other is not None:
            row[layout.R_OTHER] = cell_at[id(other)]
        if feature.field is not None and feature.field in self.definition.fields:
            row[layout.R_DIGITS] = self.definition.fields[feature.field].digits or 0
        return row

    def _limit(
        self, limit: Limit, entities: Sequence[Sequence[int]], before: Mapping[str, int]
    ) -> tuple[int, ...]:
        e = self.schema.entities.index(limit.by)
        cell = self.entities[limit.by].cells.index(self.kept.limits[limit.name])
        summed = self.definition.fields[limit.field] if limit.field is not None else None
        return (
            e,
            entities[e][layout.E_CELLS] + cell,
            before[limit.where.source] if limit.where is not None else -1,
            before[limit.max.source],
            self.schema.numbers.index(summed.name) if summed is not None else -1,
            (summed.digits or 0) if summed is not None else 0,
            SEVERITY[limit.then],
            int(limit.mode == "live"),
        )


def _names(expression: Expression) -> set[str]:
    return {symbol.name for symbol in expression.symbols()}


def _is_before(feature: Feature) -> bool:
    return feature.before or feature.aggregate in ("previous", "speed")


def _operation(feature: Feature, definition: Definition) -> int:
    if feature.aggregate == "previous":
        if feature.type == "string":
            return layout.PREVIOUS_TEXT
        return layout.PREVIOUS_LOCATION if feature.type == "location" else layout.PREVIOUS_NUMBER
    if feature.aggregate == "since_last" and feature.label is not None:
        return layout.SINCE_MARK
    return {
        "count": layout.COUNT,
        "sum": layout.SUM,
        "mean": layout.MEAN,
        "min": layout.MIN,
        "max": layout.MAX,
        "std": layout.STD,
        "rate": layout.RATE,
        "distinct": layout.DISTINCT,
        "speed": layout.SPEED,
        "since_first": layout.SINCE_FIRST,
        "since_last": layout.SINCE_LAST,
    }[feature.aggregate]


def _window_row(window: Window) -> tuple[int, int, int, int]:
    if window.kind == "over":
        return layout.SLIDING, window.bucket_ms, window.width_ms // window.bucket_ms, window.delay_ms
    return calendar.KINDS[window.kind], 0, 1, window.delay_ms


def _fineness(window: Window) -> tuple[int, int, int]:
    return (
        calendar.KINDS.get(window.kind, layout.SLIDING),
        window.bucket_ms,
        window.width_ms + window.delay_ms,
    )


def _table(rows: Sequence[Sequence[int]], width: int) -> Int64s:
    return np.array(rows, np.int64).reshape(-1, width)


def _fingerprint(plan: Plan, specs: tuple[tuple[CellSpec, ...], ...], entities: Iterable[str]) -> str:
    """16 hex digits that change with anything the layout of records or state depends on."""
    layout = [table.tolist() for table in (*plan[:8], plan.slots)]
    meaning = repr((tuple(entities), specs, plan.slack_ms, layout))
    return hashlib.blake2b(meaning.encode(), digest_size=8).hexdigest()
