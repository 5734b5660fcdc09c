"""The in-process store: slabs for entities, claims for events, lists and live tables, all in memory."""

from __future__ import annotations

import mmap
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import numpy as np

from riskengine import layout, ledger, packing
from riskengine.decision import Decision, Verdict
from riskengine.errors import RiskEngineError
from riskengine.event import Batch
from riskengine.features import FeatureSet, Touches
from riskengine.kernel import Call, Holder, bind
from riskengine.layout import FRAUD, L_CELL, L_ENTITY, LEGIT, NONE, Int64s
from riskengine.packing import Bytes
from riskengine.stores import (
    NONE_MET,
    Claim,
    Followed,
    Info,
    Links,
    Lives,
    Met,
    Released,
    Restored,
    Spot,
    statefile,
)  # fmt: skip
from riskengine.stores import slabs as kernels
from riskengine.stores.lists import Lists
from riskengine.stores.paths import PathEdit
from riskengine.stores.statefile import Row, Value
from riskengine.stores.traces import FOLLOWS_MAX, Trace, Traces, exclude_all
from riskengine.stores.transition import Transition, translate

SIZE_DEFAULT: Final = 4 << 30  # bytes
SIZE_MIN: Final = 1 << 20
UNITS: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
NO_RESERVE: Final = 0x4000 if sys.platform == "linux" else 0  # mmap names it from Python 3.13 on
TABLE_SLOTS_MIN: Final = 1 << 10
LOAD_MAX: Final = 0.7
# Of the keys that a table may have, with so many left the next one is made. Its memory comes from the system
# page by page as it is written: of 32 MB, what the first batch after growing met took it 75 ms.
AHEAD: Final = 0.0625
AHEAD_WORDS: Final = 1 << 17  # are written with each batch: every other meets a new page of 2 MB
SWEEP_EVENTS: Final = 64  # between looks for entities to forget
SWEEP_BLOCKS: Final = 4  # looked at for each event
SWEEP_CLAIMS: Final = 4096  # forgotten at once, and two for each event: nobody waits for a day's
TRACES_MAX: Final = (
    1_000_000  # events that can be labelled, released or followed, 0.8 KB each; the oldest go first
)
GENERATIONS_MAX: Final = 0xFFFF
NO_TABLE: Final = np.zeros(2, np.int64)
NOTHING_HELD: Final = np.empty((0, 2), np.int64)
NO_KEYS: Final = np.empty(0, np.int64)


class MemoryStore:
    """Entities, claims, lists and live rows of one engine. Not shared, not locked: the engine locks.

    For a batch: `observe`, `settle`, then `sweep`. For one event: `claim` when it is new, `trace` and
    `hand_over` when another follows it, `label` and `release` when more is known. `claims`, `lists` and
    `tables` are there to be read.

    `size` bytes of address space are reserved, of which only what is used is ever touched; when they are
    full the longest silent entities make room, which `info().evictions` counts. Raises RiskEngineError for
    a size that cannot be had.
    """

    waits: Final = False
    place: Final = None
    at_once: Final = 1
    is_behind: Final = False
    losses: Final = ()
    is_at_hand: Final = True
    is_to_be_opened: Final = False
    batch_max: Final = 1024  # more gain nothing, and others wait for the lock

    def __init__(self, features: FeatureSet, size: int = SIZE_DEFAULT) -> None:
        self.features = features
        self.claims: dict[bytes, Claim] = {}
        self.lists = Lists(features)
        self.tables: dict[str, dict[int, Row]] = {}  # live rows, by entity key
        self._begin(_reserve(size))
        self._scratch = np.zeros(features.scratch_words, np.int64)
        self._traces = [Traces(features, 0)]
        self._partials: dict[str, Int64s] = {}  # the plan as records of earlier ones move it, by fingerprint
        self._fresh: deque[Claim] = deque()  # those whose decision is kept, and then the others
        self._aged: deque[Claim] = deque()
        self._unswept = 0  # events since the last sweep

    def another(self) -> MemoryStore:
        """There is but one door: what is kept here has no locks."""
        raise NotImplementedError

    def stand_back(self, batch: Batch) -> None:
        """For nobody."""

    def reach(self) -> bool:
        """There is no way to it."""
        return True

    def _begin(self, words: Int64s) -> None:
        """Know of no entity, in fresh memory."""
        self._words = words
        self._meta = np.zeros(kernels.META_SIZE, np.int64)
        self._table = np.zeros(2 * TABLE_SLOTS_MIN, np.int64)
        self._old_table = NO_TABLE.copy()
        self._moving = False  # whether the old table has slots yet to move
        self._next_table = NO_TABLE.copy()  # what is written of it is zeros
        self._written = len(NO_TABLE)
        self._room = 0  # keys that may come before the table is looked at
        self._old: dict[int, tuple[FeatureSet, Transition]] = {}  # plans that slabs may be of, by generation
        kernels.lay_out(self._words, self._meta)

    # -- the wait

    def catch_up(self) -> None:
        """Nothing is ever decided without it."""

    def keyed_by(self, check: bytes) -> None:
        """Nobody else has hashed what is here."""

    def open_among(self, claims: Sequence[bytes]) -> set[bytes]:
        """Who enters an event here decides it, or dies with it."""
        return set()

    def observe(self, touches: Touches, counted: bool = True, followed: Followed | None = None) -> Met:
        """Fold a batch's records in order and fill in each event's features, list and text columns."""
        features = self.features
        if not counted:
            exclude_all(features, touches)
        self._make_way(touches.keys)
        lone = touches.lone
        if lone is None:
            self._counting(touches, partial)()
        else:
            known = lone.counting
            if known is None or known[0] is not self._table or known[1] is not self._old_table:
                known = self._table, self._old_table, self._counting(touches, bind)
                lone.counting = known
            known[2]()
        self.lists.look_up(touches)
        return NONE_MET

    def _counting(self, touches: Touches, hold: Holder) -> Call:
        """The call that folds a batch."""
        return hold(
            kernels.observe,
            self.features.flat,
            self._words,
            self._meta,
            self._table,
            self._old_table,
            touches.keys,
            touches.records,
            touches.read_at,
            touches.cells,
            touches.bits,
            self._scratch,
            touches.texts,
        )

    def settle(
        self,
        touches: Touches,
        verdict: Verdict,
        counted: bool = True,
        followed: Followed | None = None,
    ) -> int:
        """Try limits event by event, decide, hold what is granted, and keep what each event moved.

        Which limits refused goes into the last columns of `verdict.hits`, what is done into its severity.
        Returns the number of the first trace.
        """
        lone = touches.lone
        block, self._meta[kernels.TRACED], first = self._traces[-1].take(touches.batch.n)
        if lone is None or followed is not None or not counted:
            prior = NOTHING_HELD, NO_KEYS
            if followed is not None:
                prior = followed.chain[0].held_in(self.features)
            self._settling(touches, verdict, counted, *prior, block, partial)()
            if followed is not None and counted and not touches.batch.late[0]:
                self._hand_over(followed.claim)
            return first
        known = lone.settling
        if (
            known is None
            or known[0] is not self._table
            or known[1] is not self._old_table
            or known[2] is not block
        ):
            settle = self._settling(touches, verdict, True, NOTHING_HELD, NO_KEYS, block, bind)
            known = lone.settling = self._table, self._old_table, block, settle
        known[3]()
        return first

    def _settling(
        self, touches: Touches, verdict: Verdict, counted: bool, held_before: Int64s, keys_before: Int64s,
        block: Int64s, hold: Holder,
    ) -> Call:  # fmt: skip
        """The call that settles a batch."""
        batch, traces = touches.batch, self._traces[-1]
        return hold(
            kernels.settle,
            self.features.flat,
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
            verdict.base,
            held_before,
            keys_before,
            verdict.hits,
            verdict.severity,
            batch.event_hash,
            touches.masks,
            touches.records,
            traces.kept,
            block,
            traces.at_holds,
        )

    def conclude(self, touches: Touches, decisions: Sequence[Decision], horizon_ms: int) -> Met:
        """Nothing is left to keep, as the engine's claims are the store's own; and there are no others."""
        return NONE_MET

    def postponed(self, batch: Batch) -> Met:
        """None: this store is never away."""
        return NONE_MET

    def postpone(
        self,
        touches: Touches,
        decisions: Sequence[Decision],
        held: Bytes,
        followed: Followed | None,
        horizon_ms: int,
        met: Met,
    ) -> None:
        """Never asked: this store is never away."""

    def restore(
        self,
        touches: Touches,
        decisions: Sequence[Decision],
        held: Bytes,
        followed: Followed | None,
        now: Int64s,
        lives: Lives,
    ) -> Restored:
        """Count events that were decided before, hold what they hold, and keep what was decided."""
        from riskengine.stores import reservations  # whose kernels nobody else here needs

        batch, features = touches.batch, self.features
        self.observe(touches)
        shape = held.shape
        asked, amounts, mosts = (
            np.zeros(shape, np.uint8),
            np.zeros(shape, np.int64),
            np.zeros(shape, np.int64),
        )
        prior, prior_keys = NOTHING_HELD, NO_KEYS
        if followed is not None and not batch.late[0]:
            prior, prior_keys = followed.chain[0].held_in(self.features)
            self._hand_over(followed.claim)
        flat, own = features.flat, (self._words, self._meta, self._table, self._old_table)
        reservations.ask(
            flat, batch.type_index, batch.late, touches.keys, touches.cells, prior, prior_keys, asked,
            amounts, mosts,
        )  # fmt: skip
        buckets = np.empty(shape, np.int64)
        reservations.place_buckets(flat, batch.time, np.zeros(held.shape[1], np.uint8), buckets)
        taken = held * (asked == reservations.HANDED)
        for limit in np.flatnonzero(prior[:, 1] != NONE).tolist() if len(prior) else ():
            bucket, amount = prior[limit].tolist()
            buckets[0, limit] = bucket if taken[0, limit] else buckets[0, limit]
            if not taken[0, limit]:
                e, cell = int(features.plan.limits[limit, L_ENTITY]), int(features.plan.limits[limit, L_CELL])
                kernels.give_hold_back(flat, *own, e, cell, int(prior_keys[e]), bucket, amount)
        mosts[:] = kernels.AMOUNT_MAX
        reservations.book_all(
            flat, *own, touches.keys, batch.time, held * (taken == 0), amounts, mosts, np.empty_like(asked)
        )
        traces = self._traces[-1]
        block, at, first = traces.take(batch.n)
        rows = block[at : at + batch.n]
        traces.fill(rows, touches)
        rows[:, traces.at_holds :: 2] = np.where(held, buckets, 0)
        rows[:, traces.at_holds + 1 :: 2] = np.where(held, amounts, NONE)
        keys = batch.claim.tobytes()
        for i, decision in enumerate(decisions):
            claim = self.claim(keys[16 * i : 16 * i + 16], batch.content[i].tobytes(), int(now[i]), -1)
            claim.decision, claim.trace = decision, first + i
            claim.follows = followed.claim if followed is not None else None
        return Restored(batch.n, ())

    def sweep(self, now: int, events: int, horizon_ms: int, fresh_ms: int) -> None:
        """Forget a little: entities past their windows, decisions past retries, traces past any use.

        Decisions are kept `fresh_ms`, traces `horizon_ms` (at least as long).
        """
        self._unswept += events
        if self._unswept >= SWEEP_EVENTS:
            kernels.sweep(
                self.features.flat,
                self._words,
                self._meta,
                self._table,
                self._old_table,
                now,
                SWEEP_BLOCKS * self._unswept,
            )
            self._unswept = 0
        if self._fresh and now - self._fresh[0].time > fresh_ms:
            self._age(now, SWEEP_CLAIMS + 2 * events, fresh_ms)
        if self._aged and (now - self._aged[0].time > horizon_ms or len(self._aged) > TRACES_MAX):
            self._forget(now, SWEEP_CLAIMS + 2 * events, horizon_ms)

    def _age(self, now: int, most: int, fresh_ms: int) -> None:
        """Forget decisions that are too old to be asked for again."""
        for _ in range(min(len(self._fresh), most)):
            claim = self._fresh[0]
            if now - claim.time <= fresh_ms:
                break
            self._aged.append(self._fresh.popleft())
            if claim.decision is not None:
                claim.decision = None
                claim.forgotten = True

    def _forget(self, now: int, most: int, horizon_ms: int) -> None:
        """Forget events that nothing can come after any more."""
        for _ in range(min(len(self._aged), most)):
            claim = self._aged[0]
            if now - claim.time <= horizon_ms and len(self._aged) <= TRACES_MAX:
                break
            self._aged.popleft()
            del self.claims[claim.key]
            if claim.trace >= 0:
                self._drop_traces(claim.trace)

    def claim(self, key: bytes, content: bytes, time: int, serial: int) -> Claim:
        """Enter a new event. The caller has looked that `claims` has no such key."""
        claim = self.claims[key] = Claim(key, content, time, -1, serial)
        self._fresh.append(claim)
        return claim

    # -- what comes after an event

    def followed(self, key: bytes, by: bytes) -> Followed | None:
        """What an event moved that `by` follows; None where nothing is known of it any more."""
        chain: list[Trace] = []
        at: bytes | None = key
        while at is not None and len(chain) < FOLLOWS_MAX:
            claim = self.claims.get(at)
            trace = self._trace(claim.trace) if claim is not None else None
            if claim is None or trace is None:
                break
            chain.append(trace)
            at = claim.follows
        return Followed(key, tuple(chain)) if chain else None

    def _trace(self, number: int) -> Trace | None:
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

    def _hand_over(self, key: bytes) -> None:
        """Empty the holds of an event whose follow-up has taken them."""
        traces, row = self._row(self.claims[key].trace)
        if traces is not None and row is not None:
            traces.holds(row)[:, 1] = NONE

    def release(self, key: bytes) -> Released:
        """Return every grant that an event still holds, and say whether there was any."""
        claim = self.claims.get(key)
        traces, row = self._row(claim.trace) if claim is not None else (None, None)
        if traces is None or row is None:
            return "nothing"
        held = traces.holds(row)
        any_held = False
        for old, name in enumerate(traces.features.limit_names):
            if held[old, 1] == NONE:
                continue
            any_held = True
            if name in self.features.limit_names:
                limit = self.features.plan.limits[self.features.limit_names.index(name)]
                e = int(limit[L_ENTITY])
                entity_key = self._key_of(traces, row, self.features.entities[e])
                self._make_way(np.array([[entity_key]], np.int64))
                kernels.give_hold_back(
                    self.features.flat,
                    self._words,
                    self._meta,
                    self._table,
                    self._old_table,
                    e,
                    int(limit[L_CELL]),
                    entity_key,
                    int(held[old, 0]),
                    int(held[old, 1]),
                )
            held[old, 1] = NONE
        return "now" if any_held else "nothing"

    def label(self, key: bytes, label: str, time: int) -> bool:
        """Let a label count for the event's entities, in the place of the one it had; False when too old."""
        claim = self.claims.get(key)
        if claim is None:
            return False
        if claim.label is not None and time < claim.label_time:
            return True
        before, claim.label, claim.label_time = claim.label, label, time
        if before == label:
            return True
        traces, row = self._row(claim.trace)
        if traces is None or row is None:
            return False
        if traces.labelled:
            for name, sign in ((before, 1 << layout.SIGN_BIT), (label, 0)):
                if name is not None:
                    self._count_label(traces, row, FRAUD if name == "fraud" else LEGIT, sign)
        return True

    def _count_label(self, traces: Traces, row: Int64s, kind: int, sign: int) -> None:
        """Fold the event's record again, moving the cells of a label only."""
        features = self.features
        if not features.plan.kinds[kind].any():
            return
        keys, entities, records = [], [], []
        old = traces.features
        own = traces.record(row)
        flat = features.flat if old is features else self._partial(old)
        for e in range(len(old.entities)):
            mask = int(row[traces.at_masks + e]) & int(old.plan.kinds[kind, e])
            if not mask:
                continue
            if old is features:
                record, now = own.copy(), e
            else:
                translated = translate(old, features, e, own, mask)
                if translated is None:
                    continue
                record, mask, now = translated
            record[features.plan.entities[now, layout.E_RECORD] + layout.RECORD_MASK] = mask | sign
            keys.append(int(row[Traces.HEAD + e]))
            entities.append(now)
            records.append(record)
        if keys:
            self._make_way(np.array([keys], np.int64))
            self.amend(
                flat, np.array(keys, np.int64), np.array(entities, np.int64), np.array(records, np.int64)
            )

    def amend(self, plan: Int64s, keys: Int64s, entities: Int64s, records: Int64s) -> None:
        """Fold records that come after their event: row k of `records` into entity `entities[k]`, `keys[k]`.

        `plan` says what they move. There is room for the keys.
        """
        kernels.amend(plan, self._words, self._meta, self._table, self._old_table, keys, entities, records)

    def _partial(self, old: FeatureSet) -> Int64s:
        """The plan as records of an earlier one move it."""
        if old.fingerprint not in self._partials:
            self._partials[old.fingerprint] = Transition.between(old, self.features).partial(self.features)
        return self._partials[old.fingerprint]

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
        self._traces[0].drop(number)

    # -- lists and live tables

    def list_put(self, name: str, entity: str, key: int, entry: Mapping[str, Any]) -> None:
        """Enter or replace an entry; `entry['expires']` is ms or None."""
        self.lists.put((name, entity, key), entry)

    def list_get(self, name: str, entity: str, key: int) -> dict[str, Any] | None:
        """An entry, or None."""
        return self.lists.get((name, entity, key))

    def list_entries(self, name: str, entity: str) -> Mapping[int, dict[str, Any]]:
        """Every entry by its key, as far as they are known here."""
        return self.lists.of(name, entity)

    def list_delete(self, name: str, entity: str, key: int) -> bool:
        """Remove an entry; whether it was there."""
        return self.lists.delete((name, entity, key))

    def look_at_edits(self) -> None:
        """Nobody else edits them."""

    def spread(self, edits: Sequence[PathEdit]) -> None:
        """Enter and take out paths from listed entities."""
        for edit in edits:
            self.lists.apply(edit)

    def members(self, spots: Sequence[Spot], links: Links, time: int) -> list[list[Int64s]]:
        """The members that entities have at a time: of each a list by its links."""
        self._make_way(np.array([[key for _, key in spots]], np.int64))
        return kernels.members(
            self.features.flat, self._words, self._meta, self._table, self._old_table, spots, links, time
        )

    def table_put(self, name: str, key: int, row: Row) -> None:
        """Enter or replace a live row."""
        self.tables = {**self.tables, name: {**self.tables.get(name, {}), key: row}}

    def table_delete(self, name: str, key: int) -> bool:
        """Remove a live row; whether it was there."""
        rows = self.tables.get(name, {})
        self.tables = {**self.tables, name: {k: row for k, row in rows.items() if k != key}}
        return key in rows

    # -- plans

    def reload(self, features: FeatureSet) -> None:
        """Serve another plan. Cells of equal definition keep what they know; slabs move as they are met."""
        before, self.features = self.features, features
        self._partials = {}
        if before.fingerprint != features.fingerprint:
            generation = int(self._meta[kernels.GENERATION])
            step = Transition.between(before, features)
            self._old = {g: (plan, old.then(step, before.plan)) for g, (plan, old) in self._old.items()}
            self._old[generation] = (before, step)
            self._meta[kernels.GENERATION] = (generation + 1) % GENERATIONS_MAX
            self._meta[kernels.MIGRATED] = kernels.FIRST
        newest = self._traces[-1]
        self._traces.append(Traces(features, newest.next))
        self._traces = [t for t in self._traces[:-1] if t.first < t.next] + self._traces[-1:]
        self._scratch = np.zeros(features.scratch_words, np.int64)
        self.lists.reload(features)

    # -- growing

    def _make_way(self, keys: Int64s) -> None:
        """Before a batch touches `keys`: go on moving and migrating, and start to grow when that is due."""
        self._room -= keys.size
        if self._moving and kernels.move(self._meta, self._table, self._old_table, 4 * keys.size + 256):
            self._moving = False
            self._old_table = NO_TABLE.copy()
        if self._written < len(self._next_table):
            self._next_table[self._written : self._written + AHEAD_WORDS] = 0
            self._written += AHEAD_WORDS
        if self._room < 0:
            self._grow(keys.size)
        if self._old:
            self._migrate(keys.ravel())
            others = np.empty(4 * keys.size + 256, np.int64)
            last = kernels.next_keys(self._words, self._meta, others)
            self._migrate(others)
            if last:
                self._old = {}

    def _grow(self, coming: int) -> None:
        """Start a larger table when `coming` more keys may not fit this one, or make it when that is near."""
        meta = self._meta
        slots = len(self._table) // 2
        most = int(LOAD_MAX * slots)
        self._room = most - int(meta[kernels.FILLED]) - coming
        if self._room >= 0:
            ahead = int(AHEAD * most)
            if self._room > ahead:
                self._room -= ahead
            elif len(self._next_table) == len(NO_TABLE):
                until_then = self._room + 2 * coming + 1
                self._next_table = np.zeros(2 * self._slots(slots, until_then), np.int64)
                self._written = 0
            return
        if self._moving:  # cannot happen at four slots a key, unless a batch is larger than the table
            kernels.move(meta, self._table, self._old_table, len(self._old_table))
        slots = self._slots(slots, coming)
        if len(self._next_table) != 2 * slots:
            self._next_table = np.zeros(2 * slots, np.int64)
        self._old_table, self._table, self._next_table = self._table, self._next_table, NO_TABLE.copy()
        self._written = len(NO_TABLE)
        meta[kernels.FILLED] = meta[kernels.MOVED] = 0
        self._moving = True
        # What has yet to move takes slots too.
        self._room = int((1 - AHEAD) * LOAD_MAX * slots) - int(meta[kernels.ENTITIES]) - coming

    def _slots(self, slots: int, coming: int) -> int:
        """How many the next table is to have."""
        while self._meta[kernels.ENTITIES] + coming > LOAD_MAX / 2 * slots:
            slots *= 2
        return slots

    def _migrate(self, keys: Int64s) -> None:
        for generation, (old, step) in self._old.items():
            kernels.migrate(
                old.flat,
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
        """Complete growing and migrating, so that the table and every slab can be read."""
        kernels.move(self._meta, self._table, self._old_table, len(self._old_table))
        self._moving = False
        self._old_table = NO_TABLE.copy()
        self._migrate(self._table[::2].copy())
        self._old = {}

    # -- looking in, out and back

    def info(self) -> Info:
        """Sizes and losses so far."""
        meta = self._meta
        table = 8 * (len(self._table) + len(self._old_table) + min(self._written, len(self._next_table)))
        return Info(
            entities=int(meta[kernels.ENTITIES]),
            bytes=8 * int(meta[kernels.TOP] - meta[kernels.FREED]) + table,
            reserved=8 * len(self._words),
            evictions=int(meta[kernels.EVICTIONS]),
            expired=int(meta[kernels.EXPIRED]),
            lost=int(meta[kernels.LOST]),
            claims=len(self.claims),
        )

    def look(self, touches: Touches) -> Int64s:
        """Read the features of entities at a time (n = 1) without an event; what each limit holds then."""
        self._make_way(touches.keys)
        arrays = self._words, self._meta, self._table, self._old_table
        return kernels.look(self.features, arrays, touches, self._scratch)

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
        try:
            self._put(key, self._unpack(key, entity, value))
        except ValueError as error:
            raise RiskEngineError(f"an entity's state cannot be taken in: {error}") from None

    def _unpack(self, key: int, entity: str, value: bytes) -> _Unpacked:
        """A value's slab and records; ValueError says what is wrong with it."""
        features = self.features
        if entity not in features.entities:
            raise ValueError(f"it is of an entity the policy does not have: {entity}")
        if not key or not -(2**63) <= key < 2**63:
            raise ValueError(f"{key} is not an entity's key")
        problem = packing.examine(value, features.fingerprint)
        if problem is not None:
            raise ValueError(problem)
        e = features.entities.index(entity)
        end = packing.HEADER + packing.snapshot_size(value)
        room = 64 + (end - packing.HEADER) * 8
        words = np.zeros(room, np.int64)
        head = e | (int(self._meta[kernels.GENERATION]) << layout.META_PLAN)
        ledger.empty_slab(features.flat, words, 0, e, head)
        data = np.frombuffer(value, np.uint8)
        used = packing.unpack(features.flat, data, packing.HEADER, end, words, 0, e, room)
        tail = value[end:]
        width = int(features.plan.entities[e, layout.E_WIDTH])
        if used < 0 or len(tail) % (8 * width):
            raise ValueError("its bytes are broken")
        records = np.zeros((len(tail) // (8 * width), features.record_words), np.int64)
        at = int(features.plan.entities[e, layout.E_RECORD])
        records[:, at : at + width] = np.frombuffer(tail, "<i8").reshape(-1, width)
        return _Unpacked(e, words[:used], records)

    def _put(self, key: int, known: _Unpacked) -> None:
        self._make_way(np.array([[key]], np.int64))
        s = kernels.locate(self._meta, self._table, self._old_table, key)
        kernels.move_in(
            self._words, self._meta, self._table, self._old_table, key, s, known.slab, len(known.slab)
        )
        n = len(known.records)
        self.amend(self.features.flat, np.full(n, key), np.full(n, known.entity), known.records)

    def export(self, path: Path) -> int:
        """Write entities, lists and live tables to a file; return the number of entities.

        Claims stay behind: what was decided is answered from the journal.
        """
        lists = [(*key, entry) for key, entry in self.lists.items()]
        paths = list(self.lists.all_paths())
        head = statefile.Head(self.features.fingerprint, lists, self.tables, paths)
        return statefile.write(path, head, self.values())

    def take_in(self, path: Path) -> int:
        """Read a file written by `export` under the same plan; return the number of entities.

        Raises RiskEngineError and takes nothing in unless the whole file is sound.
        """
        with statefile.opened(path) as state:
            if state.head.plan != self.features.fingerprint:
                raise RiskEngineError(
                    f"{path} was written under plan {state.head.plan}, this one's is "
                    f"{self.features.fingerprint}: open the policy that wrote it, take the state in, then "
                    "reload this one"
                )
            n = 0
            for key, entity, value in state:
                n += 1
                try:
                    self._unpack(key, entity, value)
                except ValueError as error:
                    raise RiskEngineError(f"{path} cannot be taken in: of value {n}, {error}") from None
            for key, entity, value in state:
                self._put(key, self._unpack(key, entity, value))
        for name, entity, key, entry in state.head.lists:
            self.list_put(name, entity, key, entry)
        self.spread([PathEdit(*path) for path in state.head.paths])
        self.tables = {**self.tables, **state.head.tables}
        return n

    def close(self) -> None:
        """Give the memory back. Whatever still comes meets an empty store."""
        self._begin(np.zeros(SIZE_MIN // 8, np.int64))
        self.claims.clear()
        self._fresh.clear()
        self._aged.clear()


@dataclass(frozen=True, eq=False, slots=True)
class _Unpacked:
    """The state of an entity out of its packed value: a slab, and records to fold into it."""

    entity: int
    slab: Int64s
    records: Int64s


def size_of(url: str) -> int:
    """Bytes that a memory:// URL asks for. Raises RiskEngineError for another URL and for no such number."""
    store, _, query = url.partition("?")
    if store != "memory://":
        raise RiskEngineError(
            f"store {url!r} is not known: the in-process store is memory:// (memory://?size=2GiB), "
            "a shared one redis://HOST:PORT/0"
        )
    options = parse_qs(query, keep_blank_values=True)
    if set(options) - {"size"}:
        raise RiskEngineError(f"store {url!r}: memory:// takes size= only, such as memory://?size=2GiB")
    if "size" not in options:
        return SIZE_DEFAULT
    size = re.fullmatch(r"([0-9]{1,30})(|KiB|MiB|GiB)", options["size"][-1])
    if size is None:
        raise RiskEngineError(f"store {url!r}: size is a number of bytes such as 536870912, 512MiB or 2GiB")
    return int(size[1]) * UNITS[size[2]]


def _reserve(size: int) -> Int64s:
    """That many bytes of address space, as words."""
    if size < SIZE_MIN:
        raise RiskEngineError(f"the memory store needs at least {SIZE_MIN} bytes, got {size}: raise size=")
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    except (OSError, OverflowError):
        raise RiskEngineError(
            f"the memory store cannot reserve {size} bytes, more than this machine has addresses or lets a "
            "process have: lower size="
        ) from None
    if hasattr(mmap, "MADV_HUGEPAGE"):  # slabs are met at random: fewer pages are found faster
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.int64, size // 8)
