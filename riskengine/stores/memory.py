"""The in-process store: slabs for entities, claims for events, lists and live tables, all in memory."""

from __future__ import annotations

import hashlib
import mmap
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from riskengine import ledger, packing
from riskengine.decision import Decision
from riskengine.errors import RiskEngineError
from riskengine.features import FeatureSet, Touches
from riskengine.ledger import EVENT, FRAUD, L_CELL, L_ENTITY, LEGIT, NONE, Int64s, Plan
from riskengine.stores import slabs as kernels

TABLE_SLOTS_MIN: Final = 1 << 10
LOAD_MAX: Final = 0.7
SWEEP_EVENTS: Final = 64  # between looks at four times as many slots for entities to forget
SIZE_DEFAULT: Final = 4 << 30  # bytes reserved; only what is used is ever touched
SIZE_MIN: Final = 1 << 20
TRACE_ROWS_MIN: Final = 1 << 10
TRACES_MAX: Final = 4_000_000  # events that can be labelled, released or followed; the oldest go first
GENERATIONS_MAX: Final = 0xFFFF
EXPORT_MAGIC: Final = b"riskengine-state-1\n"
NEVER: Final = 2**63 - 1
NO_RESERVE: Final = 0x4000 if sys.platform == "linux" else 0  # mmap names it from Python 3.13 on
NOTHING_HELD: Final = np.empty((0, 2), np.int64)
NO_KEYS: Final = np.empty(0, np.int64)
Value = tuple[int, str, bytes]  # key, entity, packed value


class Claim(msgspec.Struct, gc=False):
    """What is kept of an event once seen: enough to answer a retry and to find what it moved."""

    content: bytes
    time: int  # when it arrived, ms
    trace: int  # row number, or -1
    serial: int  # of the batch that entered it
    follows: bytes | None = None
    decision: Decision | None = None
    label: str | None = None
    label_time: int = NONE
    forgotten: bool = False  # decided, but the decision itself is no longer kept


@dataclass(frozen=True, slots=True)
class Trace:
    """What one event moved, free of any plan: entity to its key and the cells moved, and what is held."""

    keys: Mapping[str, int]
    moved: Mapping[str, frozenset[tuple[object, ...]]]
    holds: Mapping[str, tuple[int, int]]  # limit to bucket, amount


@dataclass(eq=False, slots=True)
class Traces:
    """A ring of int64 rows, one an event, laid out by one FeatureSet."""

    features: FeatureSet
    first: int  # number of the oldest row kept
    next: int
    rows: Int64s
    labelled: bool = field(init=False)
    at_masks: int = field(init=False)
    at_records: int = field(init=False)
    at_holds: int = field(init=False)

    HEAD = 2  # time, event hash

    def __post_init__(self) -> None:
        entities = len(self.features.specs)
        self.labelled = bool(self.features.plan.kinds[FRAUD:].any())
        self.at_masks = self.HEAD + entities
        self.at_records = self.at_masks + entities
        self.at_holds = self.at_records + (self.features.record_words if self.labelled else 0)
        width = self.at_holds + 2 * len(self.features.limit_names)
        if self.rows.shape[1] != width:
            self.rows = np.empty((TRACE_ROWS_MIN, width), np.int64)

    def append(self, touches: Touches, holds: Int64s) -> int:
        """Keep a batch; return the number of its first row."""
        n = len(holds)
        while self.next + n - self.first > len(self.rows):
            grown = np.empty((2 * len(self.rows), self.rows.shape[1]), np.int64)
            numbers = np.arange(self.first, self.next)
            grown[numbers % len(grown)] = self.rows[numbers % len(self.rows)]
            self.rows = grown
        at = self.next % len(self.rows)
        if at + n > len(self.rows):  # a batch does not wrap: go on at the start of the ring
            self.next += len(self.rows) - at
            return self.append(touches, holds)
        batch = touches.batch
        kernels.remember(
            self.rows,
            at,
            batch.time,
            batch.event_hash.view(np.int64),
            touches.keys,
            touches.masks,
            touches.records,
            self.labelled,
            holds,
        )
        self.next += n
        return self.next - n

    def row(self, number: int) -> Int64s | None:
        """One row, to be read and changed in place; None when it is gone."""
        if not self.first <= number < self.next:
            return None
        row: Int64s = self.rows[number % len(self.rows)]
        return row

    def holds(self, row: Int64s) -> Int64s:
        """Bucket and amount (L, 2) of a row."""
        return row[self.at_holds :].reshape(-1, 2)


@dataclass(frozen=True, eq=False, slots=True)
class Settled:
    """What limits made of a batch: severity int64 (n), and the number of the first trace."""

    severity: Int64s
    trace: int


@dataclass(frozen=True, slots=True)
class Info:
    """Sizes and losses, for operators. `bytes` is what entities take, the key table included."""

    entities: int
    bytes: int
    reserved: int
    evictions: int
    expired: int
    lost: int
    claims: int


class MemoryStore:
    """Entities, claims, lists and live rows of one engine. Not shared, not locked: the engine locks.

    `size` bytes of address space are reserved; past them the longest silent entities make room, which
    `info().evictions` counts.
    """

    def __init__(self, features: FeatureSet, size: int = SIZE_DEFAULT) -> None:
        if size < SIZE_MIN:
            raise RiskEngineError(
                f"the memory store needs at least {SIZE_MIN} bytes, got {size}: raise size="
            )
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # slabs are met at random: fewer pages are found faster
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._words = np.frombuffer(self._memory, np.int64)
        self._meta = np.zeros(kernels.META_SIZE, np.int64)
        self._table = np.zeros(2 * TABLE_SLOTS_MIN, np.int64)
        self._old_table = np.zeros(2, np.int64)
        self._meta[kernels.TOP] = 8
        self._meta[kernels.MOVED] = 1
        self.features = features
        self._old: dict[int, tuple[Plan, _Step]] = {}
        self._migrated = 0  # slots looked over for slabs of older plans
        self._moving = False  # whether the old table has slots yet to move
        self._room = 0  # keys that may come before the table is looked at
        self._unswept = 0
        self._scratch = np.zeros(0, np.int64)
        self._empty = np.zeros(0, np.int64)
        self._salts = np.zeros(0, np.int64)
        self._lay_out(features)
        self._traces = [Traces(features, 0, 0, np.empty((0, 0), np.int64))]
        self.claims: dict[bytes, Claim] = {}
        self._fresh: deque[bytes] = deque()
        self._aged: deque[bytes] = deque()
        self._entries = np.zeros(32, np.int64)  # of lists, as `slabs.find` reads them
        self.lists: dict[tuple[str, str, int], dict[str, Any]] = {}
        self.tables: dict[str, dict[int, dict[str, float | str | None]]] = {}  # live rows, by entity key

    # -- the wait

    def observe(self, touches: Touches) -> None:
        """Fold a batch's records in order and fill in each event's features, list and text columns."""
        features = self.features
        self._make_way(touches.keys)
        kernels.observe(
            features.flat,
            self._words,
            self._meta,
            self._table,
            self._old_table,
            self._empty,
            touches.keys,
            touches.records,
            touches.read_at,
            touches.cells,
            touches.bits,
            self._scratch,
            touches.texts,
        )
        if len(self._salts):
            kernels.look_up(
                features.listed, self._salts, self._entries, touches.keys, touches.batch.time, touches.cells
            )

    def settle(
        self,
        touches: Touches,
        base: Int64s,
        hits: NDArray[np.uint8],
        counted: bool = True,
        prior: Trace | None = None,
    ) -> Settled:
        """Try limits event by event, decide, hold what is granted, and keep what each event moved.

        `base` (n) are severities without limits; which limits refused goes into the last columns of `hits`.
        """
        features, batch = self.features, touches.batch
        limits = len(features.limit_names)
        severity = np.empty(batch.n, np.int64)
        holds = np.empty((batch.n, 2 * limits), np.int64)
        held_before, keys_before = self._prior(prior) if prior is not None else (NOTHING_HELD, NO_KEYS)
        kernels.settle(
            features.flat,
            self._words,
            self._meta,
            self._table,
            self._old_table,
            batch.type_index,
            batch.time,
            batch.late,
            counted,
            touches.keys,
            touches.cells,
            base,
            held_before,
            keys_before,
            hits,
            hits.shape[1] - limits,
            severity,
            holds,
        )
        return Settled(severity, self._traces[-1].append(touches, holds))

    def sweep(self, now: int, events: int, horizon_ms: int, fresh_ms: int) -> None:
        """Forget a little: entities past their windows, decisions past retries, traces past any use.

        Decisions are kept `fresh_ms`, traces `horizon_ms` (at least as long).
        """
        self._unswept += events
        if self._unswept >= SWEEP_EVENTS:
            kernels.sweep(self.features.flat, self._words, self._meta, self._table, now, 4 * self._unswept)
            self._unswept = 0
        while self._fresh:
            claim = self.claims[self._fresh[0]]
            if now - claim.time <= fresh_ms:
                break
            key = self._fresh.popleft()
            if claim.decision is not None:
                claim.decision = None
                claim.forgotten = True
            self._aged.append(key)
        while self._aged:
            claim = self.claims[self._aged[0]]
            if now - claim.time <= horizon_ms and len(self._aged) <= TRACES_MAX:
                break
            del self.claims[self._aged.popleft()]
            if claim.trace >= 0:
                self._drop_traces(claim.trace)

    def claim(self, key: bytes, content: bytes, time: int, serial: int) -> Claim:
        """Enter a new event. The caller has looked that `claims` has no such key."""
        claim = self.claims[key] = Claim(content, time, -1, serial)
        self._fresh.append(key)
        return claim

    # -- what comes after an event

    def trace(self, number: int) -> Trace | None:
        """What an event moved and what is still held for it; None when that is no longer kept."""
        traces, row = self._row(number)
        if traces is None or row is None:
            return None
        features = traces.features
        keys = {}
        moved = {}
        for e, specs in enumerate(features.specs):
            key = int(row[Traces.HEAD + e])
            mask = int(row[traces.at_masks + e])
            if key:
                keys[features.entities[e]] = key
                moved[features.entities[e]] = frozenset(s.key for c, s in enumerate(specs) if (mask >> c) & 1)
        held = traces.holds(row)
        holds = {
            name: (int(held[i, 0]), int(held[i, 1]))
            for i, name in enumerate(features.limit_names)
            if held[i, 1] != NONE
        }
        return Trace(keys, moved, holds)

    def exclude(self, touches: Touches, moved: Trace) -> None:
        """Take from a lone event's record what the event it follows has moved already."""
        features = self.features
        for e, name in enumerate(features.entities):
            if moved.keys.get(name) != int(touches.keys[0, e]):
                continue
            for c, spec in enumerate(features.specs[e]):
                if spec.key in moved.moved[name]:
                    touches.masks[0, e] &= ~(1 << c)
            width = int(features.plan.entities[e, ledger.E_WIDTH])
            if width:
                at = int(features.plan.entities[e, ledger.E_RECORD]) + ledger.RECORD_MASK
                touches.records[0, at] = touches.masks[0, e] & features.plan.kinds[EVENT, e]

    def exclude_all(self, touches: Touches) -> None:
        """Let a batch move nothing: its events have been counted before."""
        touches.masks[:] = 0
        for row in self.features.plan.entities.tolist():
            if row[ledger.E_WIDTH]:
                touches.records[:, row[ledger.E_RECORD] + ledger.RECORD_MASK] = 0

    def hand_over(self, number: int) -> None:
        """Empty the holds of an event whose follow-up has taken them."""
        traces, row = self._row(number)
        if traces is not None and row is not None:
            traces.holds(row)[:, 1] = NONE

    def release(self, claim: Claim) -> bool:
        """Return every grant that an event still holds; whether there was any."""
        traces, row = self._row(claim.trace)
        if traces is None or row is None:
            return False
        held = traces.holds(row)
        any_held = False
        for old, name in enumerate(traces.features.limit_names):
            if held[old, 1] == NONE:
                continue
            any_held = True
            if name in self.features.limit_names:
                limit = self.features.plan.limits[self.features.limit_names.index(name)]
                e = int(limit[L_ENTITY])
                key = self._key_of(traces, row, self.features.entities[e])
                self._make_way(np.array([[key]], np.int64))
                kernels.give_hold_back(
                    self.features.flat,
                    self._words,
                    self._meta,
                    self._table,
                    self._old_table,
                    e,
                    int(limit[L_CELL]),
                    key,
                    int(held[old, 0]),
                    int(held[old, 1]),
                )
            held[old, 1] = NONE
        return any_held

    def label(self, claim: Claim, label: str, time: int) -> bool:
        """Let a label count for the event's entities, in the place of the one it had; False when too old."""
        if claim.label is not None and time < claim.label_time:
            return True
        before, claim.label, claim.label_time = claim.label, label, time
        if before == label:
            return True
        traces, row = self._row(claim.trace)
        if traces is None or row is None:
            return False
        if traces.labelled:
            for name, sign in ((before, 1 << ledger.SIGN_BIT), (label, 0)):
                if name is not None:
                    self._amend(traces, row, FRAUD if name == "fraud" else LEGIT, sign)
        return True

    def _amend(self, traces: Traces, row: Int64s, kind: int, sign: int) -> None:
        """Fold the event's record again, moving the cells of a label only."""
        features = self.features
        if not features.plan.kinds[kind].any():
            return
        keys, entities, records = [], [], []
        old = traces.features
        for e in range(len(old.entities)):
            mask = int(row[traces.at_masks + e]) & int(old.plan.kinds[kind, e])
            if not mask:
                continue
            own = row[traces.at_records : traces.at_holds]
            if old is features:
                record, now = own.copy(), e
            else:
                translated = _translate(old, features, e, own, mask)
                if translated is None:
                    continue
                record, mask, now = translated
            record[features.plan.entities[now, ledger.E_RECORD] + ledger.RECORD_MASK] = mask | sign
            keys.append(int(row[Traces.HEAD + e]))
            entities.append(now)
            records.append(record)
        if keys:
            self._make_way(np.array([keys], np.int64))
            kernels.amend(
                features.flat,
                self._words,
                self._meta,
                self._table,
                self._old_table,
                np.array(keys, np.int64),
                np.array(entities, np.int64),
                np.array(records, np.int64),
            )

    def _row(self, number: int) -> tuple[Traces | None, Int64s | None]:
        for traces in reversed(self._traces):
            row = traces.row(number)
            if row is not None:
                return traces, row
        return None, None

    def _key_of(self, traces: Traces, row: Int64s, entity: str) -> int:
        if entity not in traces.features.entities:
            return 0
        return int(row[Traces.HEAD + traces.features.entities.index(entity)])

    def _drop_traces(self, number: int) -> None:
        """Forget every trace up to this one: claims go in the order they came."""
        while len(self._traces) > 1 and self._traces[0].next <= number + 1:
            del self._traces[0]
        self._traces[0].first = max(self._traces[0].first, min(number + 1, self._traces[0].next))

    def _prior(self, prior: Trace) -> tuple[Int64s, Int64s]:
        """What a followed event holds, in this plan's order of limits and entities."""
        features = self.features
        held = np.full((len(features.limit_names), 2), NONE, np.int64)
        for i, name in enumerate(features.limit_names):
            if name in prior.holds:
                held[i] = prior.holds[name]
        return held, np.array([prior.keys.get(name, 0) for name in features.entities], np.int64)

    # -- lists and live tables

    def list_put(self, name: str, entity: str, key: int, entry: Mapping[str, Any]) -> None:
        """Enter or replace an entry; `entry['expires']` is ms or None."""
        self.lists[name, entity, key] = dict(entry)
        self._index_lists()

    def list_delete(self, name: str, entity: str, key: int) -> bool:
        """Remove an entry; whether it was there."""
        there = self.lists.pop((name, entity, key), None) is not None
        self._index_lists()
        return there

    def _index_lists(self) -> None:
        """Rebuild the lookup arrays: edits are rare, and every event looks."""
        slots = 16
        while slots < 2 * len(self.lists) + 1:
            slots *= 2
        entries = np.zeros(2 * slots, np.int64)
        for (name, entity, key), entry in self.lists.items():
            expires = entry.get("expires")
            if expires is None or expires > 0:
                kernels.enter(entries, key ^ _salt(name, entity), NEVER if expires is None else expires)
        self._entries = entries

    # -- plans

    def reload(self, features: FeatureSet) -> None:
        """Serve another plan. Cells of equal definition keep what they know; slabs move as they are met."""
        before, self.features = self.features, features
        if before.fingerprint != features.fingerprint:
            generation = int(self._meta[kernels.GENERATION])
            step = _Step.between(before, features)
            self._old = {g: (plan, old.then(step, before.plan)) for g, (plan, old) in self._old.items()}
            self._old[generation] = (before.plan, step)
            self._meta[kernels.GENERATION] = (generation + 1) % GENERATIONS_MAX
            self._migrated = 0
        newest = self._traces[-1]
        self._traces.append(Traces(features, newest.next, newest.next, np.empty((0, 0), np.int64)))
        self._traces = [t for t in self._traces[:-1] if t.first < t.next] + self._traces[-1:]
        self._lay_out(features)

    def _lay_out(self, features: FeatureSet) -> None:
        """Make what the kernels need beside the plan: scratch, salts, and an empty slab of each entity."""
        self._scratch = np.zeros(features.scratch_words, np.int64)
        pairs = [(features.lists[row[0]], features.entities[row[1]]) for row in features.listed.tolist()]
        self._salts = np.array([_salt(*pair) for pair in pairs], np.int64)
        self._empty = np.zeros(len(features.entities), np.int64)
        for e in range(len(features.entities)):
            words = int(
                features.plan.entities[e, ledger.E_FIXED] + features.plan.entities[e, ledger.E_FIXED_N]
            )
            self._empty[e] = kernels.take(self._words, self._meta, kernels.class_of(words))
            ledger.empty_slab(features.flat, self._words, int(self._empty[e]), e, e)

    # -- growing

    def _make_way(self, keys: Int64s) -> None:
        """Before a batch touches `keys`: go on moving and migrating, and start to grow when that is due."""
        self._room -= keys.size
        if self._moving and kernels.move(self._meta, self._table, self._old_table, 4 * keys.size + 256):
            self._moving = False
            self._old_table = np.zeros(2, np.int64)
        if self._room < 0:
            self._grow(keys.size)
        if self._old:
            self._migrate(keys.ravel())
            if not self._moving:
                end = self._migrated + 512
                self._migrate(self._table[2 * self._migrated : 2 * end : 2].copy())
                self._migrated = end
                if 2 * end >= len(self._table):
                    self._old = {}

    def _grow(self, coming: int) -> None:
        """Start a larger table when `coming` more keys may not fit this one."""
        meta = self._meta
        slots = len(self._table) // 2
        if meta[kernels.FILLED] + coming > LOAD_MAX * slots:
            if self._moving:  # cannot happen at four slots a key, unless a batch is larger than the table
                kernels.move(meta, self._table, self._old_table, len(self._old_table))
            while meta[kernels.ENTITIES] + coming > LOAD_MAX / 2 * slots:
                slots *= 2
            self._old_table, self._table = self._table, np.zeros(2 * slots, np.int64)
            meta[kernels.FILLED] = meta[kernels.MOVED] = self._migrated = 0
            self._moving = True
            # What has yet to move takes slots too.
            self._room = int(LOAD_MAX * slots) - int(meta[kernels.ENTITIES]) - coming
        else:
            self._room = int(LOAD_MAX * slots) - int(meta[kernels.FILLED]) - coming

    def _migrate(self, keys: Int64s) -> None:
        for generation, (plan, step) in self._old.items():
            kernels.migrate(
                plan.flatten(),
                self.features.flat,
                step.entities,
                step.cells,
                step.columns,
                generation,
                self._words,
                self._meta,
                self._table,
                self._old_table,
                keys,
            )

    def _finish(self) -> None:
        """Complete growing and migrating, so that the table can be walked."""
        kernels.move(self._meta, self._table, self._old_table, len(self._old_table))
        self._moving = False
        self._old_table = np.zeros(2, np.int64)
        self._migrate(self._table[::2].copy())
        self._old = {}

    # -- looking in, out and back

    def info(self) -> Info:
        """Sizes and losses so far."""
        meta = self._meta
        table = 8 * (len(self._table) + len(self._old_table))
        return Info(
            entities=int(meta[kernels.ENTITIES]),
            bytes=8 * int(meta[kernels.TOP] - meta[kernels.FREED]) + table,
            reserved=8 * len(self._words),
            evictions=int(meta[kernels.EVICTIONS]),
            expired=int(meta[kernels.EXPIRED]),
            lost=int(meta[kernels.LOST]),
            claims=len(self.claims),
        )

    def values(self) -> Iterator[Value]:
        """Every entity as (key, entity name, packed value), as Redis keeps it."""
        self._finish()
        features = self.features
        fingerprint = int.from_bytes(bytes.fromhex(features.fingerprint), "little", signed=True)
        for slot in np.flatnonzero(self._table[1::2] > 0).tolist():
            s = int(self._table[2 * slot + 1])
            e = int(self._words[s + 1]) & 0xFF
            out = np.empty(packing.packed_size_max(self._words, s), np.uint8)
            end = packing.pack(features.flat, self._words, s, e, fingerprint, out, 0)
            yield int(self._table[2 * slot]), features.entities[e], out[:end].tobytes()

    def put_value(self, key: int, entity: str, value: bytes) -> None:
        """Take in a value made by `values` under the same plan, in the place of what is known.

        Raises RiskEngineError for a value that is broken or of another plan.
        """
        features = self.features
        data = np.frombuffer(value, np.uint8)
        problem = packing.examine(value, features.fingerprint)
        if entity not in features.entities:
            problem = f"it is of an entity the policy does not have: {entity}"
        if problem is not None:
            raise RiskEngineError(f"an entity's state cannot be taken in: {problem}")
        e = features.entities.index(entity)
        plan = features.flat
        end = packing.HEADER + packing.snapshot_size(value)
        room = 64 + (end - packing.HEADER) * 8
        width = int(features.plan.entities[e, ledger.E_WIDTH])
        words = np.zeros(room, np.int64)
        meta = e | (int(self._meta[kernels.GENERATION]) << ledger.META_PLAN)
        ledger.empty_slab(plan, words, 0, e, meta)
        used = packing.unpack(plan, data, packing.HEADER, end, words, 0, e, room)
        tail = value[end:]
        if used < 0 or len(tail) % (8 * width):
            raise RiskEngineError("an entity's state cannot be taken in: its bytes are broken")
        self._make_way(np.array([[key]], np.int64))
        s = kernels.locate(self._meta, self._table, self._old_table, key)
        kernels.move_in(self._words, self._meta, self._table, key, s, words, used)
        records = np.zeros((len(tail) // (8 * width), features.record_words), np.int64)
        at = int(features.plan.entities[e, ledger.E_RECORD])
        records[:, at : at + width] = np.frombuffer(tail, "<i8").reshape(-1, width)
        n = len(records)
        kernels.amend(
            plan,
            self._words,
            self._meta,
            self._table,
            self._old_table,
            np.full(n, key),
            np.full(n, e),
            records,
        )

    def export(self, path: Path) -> int:
        """Write entities, lists and live tables to a file; return the number of entities.

        Claims stay behind: what was decided is answered from the journal.
        """
        with path.open("wb") as out:
            head = {
                "plan": self.features.fingerprint,
                "lists": [[*key, entry] for key, entry in self.lists.items()],
                "tables": self.tables,
            }
            data = msgspec.msgpack.encode(head)
            out.write(EXPORT_MAGIC + len(data).to_bytes(8, "little") + data)
            n = 0
            for value in self.values():
                n += 1
                data = msgspec.msgpack.encode(value)
                out.write(len(data).to_bytes(4, "little") + data)
            out.write(bytes(4))
        return n

    def take_in(self, path: Path) -> int:
        """Read a file written by `export` under the same plan; return the number of entities.

        Nothing is taken in unless the whole file is sound.
        """
        data = path.read_bytes()
        magic = len(EXPORT_MAGIC)
        if data[:magic] != EXPORT_MAGIC:
            raise RiskEngineError(f"{path} is not an exported state: expected a file made by export")
        try:
            at = magic + 8
            size = int.from_bytes(data[magic:at], "little")
            head = msgspec.msgpack.decode(data[at : at + size])
            at += size
            values: list[Value] = []
            while size := int.from_bytes(data[at : at + 4], "little"):
                values.append(msgspec.msgpack.decode(data[at + 4 : at + 4 + size], type=Value))
                at += 4 + size
            whole = len(data) == at + 4
        except msgspec.DecodeError:
            whole = False
        if not whole:
            raise RiskEngineError(f"{path} is cut short or damaged: export the state again")
        if head["plan"] != self.features.fingerprint:
            raise RiskEngineError(
                f"{path} was written under plan {head['plan']}, this one's is {self.features.fingerprint}: "
                "open the policy that wrote it, take the state in, then reload this one"
            )
        for key, entity, value in values:
            self.put_value(key, entity, value)
        for name, entity, key, entry in head["lists"]:
            self.lists[name, entity, key] = entry
        self._index_lists()
        self.tables.update(head["tables"])
        return len(values)

    def close(self) -> None:
        """Give the memory back."""
        self._words = np.zeros(0, np.int64)
        self.claims.clear()


@dataclass(frozen=True, eq=False, slots=True)
class _Step:
    """How one plan's slabs become another's, see `slabs.migrate`."""

    entities: Int64s
    cells: Int64s
    columns: Int64s
    spans: Sequence[tuple[int, int]]  # of each new cell, where its columns begin and end

    @classmethod
    def between(cls, old: FeatureSet, new: FeatureSet) -> _Step:
        entities = [new.entities.index(name) if name in new.entities else -1 for name in old.entities]
        cells = np.full(len(new.plan.cells), -1, np.int64)
        columns = np.full(len(new.plan.columns), -1, np.int64)
        for e, specs in enumerate(new.specs):
            name = new.entities[e]
            if name not in old.entities or old.entity_fields[name] != new.entity_fields[name]:
                continue
            at = old.entities.index(name)
            known = {spec.key: c for c, spec in enumerate(old.specs[at])}
            for c, spec in enumerate(specs):
                if spec.key not in known:
                    continue
                cell = int(new.plan.entities[e, ledger.E_CELLS]) + c
                source = known[spec.key]
                cells[cell] = int(old.plan.entities[at, ledger.E_CELLS]) + source
                first = int(new.plan.cells[cell, ledger.C_COLUMNS])
                before = old.specs[at][source].columns
                for k, column in enumerate(spec.columns):
                    if column in before:
                        columns[first + k] = before.index(column)
        spans = [
            (int(row[ledger.C_COLUMNS]), int(row[ledger.C_COLUMNS] + row[ledger.C_COLUMNS_N]))
            for row in new.plan.cells
        ]
        return cls(np.array(entities, np.int64), cells, columns, spans)

    def then(self, step: _Step, middle: Plan) -> _Step:
        """This step and then another; `middle` is the plan between them."""
        entities = np.array([step.entities[e] if e >= 0 else -1 for e in self.entities.tolist()], np.int64)
        cells = np.array([self.cells[c] if c >= 0 else -1 for c in step.cells.tolist()], np.int64)
        columns = np.full_like(step.columns, -1)
        # A column's number within its timeline leads to the middle plan's column, and that further back.
        for cell, source in enumerate(step.cells.tolist()):
            if source >= 0 and cells[cell] >= 0:
                first = int(middle.cells[source, ledger.C_COLUMNS])
                for k in range(*step.spans[cell]):
                    if step.columns[k] >= 0:
                        columns[k] = self.columns[first + step.columns[k]]
        return _Step(entities, cells, columns, step.spans)


def _salt(name: str, entity: str) -> int:
    digest = hashlib.blake2b(f"{name}\0{entity}".encode(), digest_size=8, person=b"riskengine.list").digest()
    return int.from_bytes(digest, "little", signed=True)


def _translate(
    old: FeatureSet, new: FeatureSet, e: int, record: Int64s, mask: int
) -> tuple[Int64s, int, int] | None:
    """A record of an old plan's entity as the new plan has it: record, mask, entity; None if it is gone."""
    name = old.entities[e]
    if name not in new.entities or old.entity_fields[name] != new.entity_fields[name]:
        return None
    now = new.entities.index(name)
    at_old = int(old.plan.entities[e, ledger.E_RECORD])
    at = int(new.plan.entities[now, ledger.E_RECORD])
    out = np.full(new.record_words, NONE, np.int64)
    out[at : at + 2] = record[at_old : at_old + 2]
    for slot, place in new.entity_slots[now].items():
        if slot in old.entity_slots[e]:
            out[at + ledger.RECORD_SLOTS + place] = record[
                at_old + ledger.RECORD_SLOTS + old.entity_slots[e][slot]
            ]
    known = {spec.key: c for c, spec in enumerate(old.specs[e])}
    translated = 0
    for c, spec in enumerate(new.specs[now]):
        if spec.key in known and (mask >> known[spec.key]) & 1:
            translated |= 1 << c
    return out, translated, now
