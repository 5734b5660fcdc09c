"""The engine: one event or a batch in, decisions out. The flow of `_judge` reads once, downward."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from riskengine import event as parsing
from riskengine import features as planning
from riskengine import hashing, motions, sharing, warming
from riskengine.compiled import Policy, at_a_stretch
from riskengine.decision import Decision
from riskengine.definition import LABELS, Definition, Label, Table
from riskengine.entries import Activation, AlertEntry, EditEntry, LabelEntry, PolicyEntry, ReleaseEntry
from riskengine.errors import EventError, Problem, RiskEngineError, nearest
from riskengine.event import Batch, Event
from riskengine.features import Touches
from riskengine.fibers import afloat, mine
from riskengine.hashing import signed, unsigned
from riskengine.journaled import recount
from riskengine.judge import Judge, Result, Serving
from riskengine.layout import L_DIGITS
from riskengine.models import asked_for, load_models
from riskengine.policy import load_definition
from riskengine.reading import WrongError, describe, read_time
from riskengine.rooms import ROOM_MAX, Empty, Rooms
from riskengine.spreading import Spreading, described, journaled, shown, standing
from riskengine.stores import Info, Store, StoreError
from riskengine.stores.memory import MemoryStore, size_of
from riskengine.stores.paths import Name, PathEdit, Trail, path_id
from riskengine.turns import Turns
from riskengine.watch import Watch

if TYPE_CHECKING:
    import pyarrow as pa

    from riskengine.journal import Journal
    from riskengine.stores.scratch import Scratch

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]
Clock = Callable[[], int]

_BATCHES: Final = (list, tuple)
Opener = Callable[[planning.FeatureSet], Store]

SHARED: Final = (
    "redis",
    "rediss",
    "unix",
    "redis+cluster",
    "rediss+cluster",
)  # schemes of stores that engines share
HASH_KEY_VARIABLE: Final = "RISKENGINE_HASH_KEY"
# State in memory never leaves the process unless it is exported or journaled, so a known key is no leak;
# it makes runs repeatable. What leaves the process wants a key of its own.
HASH_KEY_IN_PROCESS: Final = b"riskengine: state of one process"


class Engine:
    """Scores events against a policy. Safe to share between threads; open with `Engine.open`."""

    def __init__(
        self,
        policy: Policy,
        store: Store,
        journal: Journal | None,
        clock: Clock,
        key: bytes,
        model: str | None,
        origin: str = "",
    ) -> None:
        """Use `Engine.open`."""
        self._policy = policy
        self._journal = journal
        self._clock = clock
        self._key = key
        self._model = model
        self._rooms = _Rooms()
        self._closed = False
        self._warming: Mapping[str, int] = {}  # changed features, and until when
        self._partners: Mapping[str, bytes] = _partner_keys(
            policy.definition, journal is not None or store.waits
        )
        self._watch = Watch(policy.alerts, origin, journal)
        serving = Serving(policy, self._warming, self._partners)
        stores = [store, *(store.another() for _ in range(store.at_once - 1))]
        # A shared store knows what its journal has lost; here nothing does, but that something may be.
        forgetful = journal is not None and journal.was_cut_off and not journal.is_sync and not store.waits
        lost_until = clock() if forgetful else 0
        self._turns = Turns(
            [Judge(serving, each, journal, clock, self._watch, lost_until) for each in stores]
        )
        self._store = store  # the first judge's, for what is no scoring

    @classmethod
    def open(
        cls,
        rules: str | Path | Definition = "rules",
        store: str | Opener = "memory://",
        journal: str | None = None,
        clock: Clock | None = None,
        key: bytes | None = None,
        model: str | None = None,
        origin: str = "",
    ) -> Self:
        """Open an engine on a policy folder.

        `store` is memory:// (memory://?size=512MiB bounds it) or redis://HOST:PORT/DB (rediss://, unix://,
        redis+cluster://HOST:PORT,HOST:PORT), shared by all that open it, or what opens one for features;
        `journal` is a URL or None; `clock` returns ms UTC, for tests; `key` hashes personal values
        and defaults to RISKENGINE_HASH_KEY; `model` takes the place of the policy's (here and in every
        reload), and "none" does without any; `origin` names this process in the episodes of alerts, and one
        of the same origin goes on with those that are open in its journal.
        A journal (sqlite:///FILE or postgresql://USER@HOST/DATABASE) is written behind: a kill -9 loses at
        most the last 100 ms or 1,000 decisions, whichever is more; with ?commit=sync at its end, nothing that
        was answered. While it cannot be written, each event type's `fail` says the least that is done,
        decisions are flagged degraded:journal, and they wait in a file beside it; where that cannot be
        written either, scoring raises JournalError with nothing counted. What it has of events that were
        decided without the shared store, by an engine that did not live to tell it, is counted as this opens
        (of its last 100,000 entries), and what was decided with it is told it, where it had not heard of that
        (of the last 1,000).
        Raises PolicyError with every finding, RiskEngineError for a store or journal that cannot be opened,
        and either for a model that is not there or does not fit the features.
        """
        shared = not isinstance(store, str) or store.partition(":")[0] in SHARED
        size = size_of(store) if isinstance(store, str) and not shared else 0
        chosen = key or os.environ.get(HASH_KEY_VARIABLE, "").encode()
        if shared and not chosen:
            raise RiskEngineError(
                "a shared store keeps hashes of personal values, and they need a key: set "
                f"{HASH_KEY_VARIABLE} to the same random text for every engine (openssl rand -hex 32)"
            )
        chosen = chosen or HASH_KEY_IN_PROCESS
        policy = _compile(rules, chosen, model)
        state: Store
        if not isinstance(store, str):
            state = store(policy.features)
        else:
            state = _open_shared(store, policy) if shared else MemoryStore(policy.features, size)
        with ExitStack() as unfinished:  # what is open already is closed again where something fails
            unfinished.callback(state.close)
            state.keyed_by(hashing.check_value(chosen, policy.definition.tenant))
            opened = _open_journal(journal) if journal is not None else None
            if opened is not None:
                unfinished.callback(opened.close)
            engine = cls(policy, state, opened, clock or _wall_clock, chosen, model, origin)
            unfinished.pop_all()
            unfinished.callback(engine.close)
            if opened is not None:
                opened.append([PolicyEntry(fingerprint=policy.fingerprint, time_ms=engine._clock())])
                engine._watch.resume(engine._clock())
            if warming.is_cold(policy, state.waits):
                scratch = engine.scratch() if isinstance(store, str) else None
                if scratch is None:
                    with engine._open() as judge:
                        judge.rehearse()
                else:
                    with cls.open(
                        policy.definition, scratch.store, clock=lambda: motions.NOW, key=chosen, model=model
                    ) as other:
                        motions.go_through(other, policy.definition, scratch)
            if opened is not None and shared:
                recount(opened, engine, engine._clock())
            unfinished.pop_all()
        return engine

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def definition(self) -> Definition:
        """The policy now serving."""
        return self._policy.definition

    @property
    def policy(self) -> Policy:
        """The policy now serving, compiled."""
        return self._policy

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the policy now serving, as decisions carry it."""
        return self._policy.fingerprint

    @property
    def epoch(self) -> str | None:
        """Which life of a shared store's data counts now; None in memory."""
        place = self._store.place
        return None if place is None else place.epoch.decode()

    def scratch(self) -> Scratch | None:
        """What a store can be rehearsed on that is shared as this one's is; None where it is in memory."""
        place = self._store.place
        if place is None:
            return None
        from riskengine.stores.scratch import Scratch  # and with it redis-py, as for a shared store

        return Scratch(place.tags)

    @property
    def journal(self) -> Journal | None:
        """Where decisions are kept, to be read; None where they are not."""
        return self._journal

    @property
    def at_once(self) -> int:
        """How many batches may be scored at a time, each for a thread of its own."""
        return len(self._turns.judges)

    @property
    def waits(self) -> bool:
        """Whether scoring would wait now: for a shared store, a disk, or others at work on this engine."""
        if self._store.waits or (self._journal is not None and self._journal.may_wait):
            return True
        return not self._turns.is_free

    @property
    def floats(self) -> bool:
        """Whether scoring would wait for replies of a shared store now, and for nothing else (fibers.py)."""
        if not self._store.waits or (self._journal is not None and self._journal.may_wait):
            return False
        return self._turns.is_at_hand

    @property
    def is_behind(self) -> bool:
        """Whether something was decided without the shared store and is not counted there yet."""
        return any(judge.store.is_behind for judge in self._turns.judges)

    def catch_up(self) -> None:
        """Count what was decided without the shared store, where it is back; the next event would, too."""
        with suppress(StoreError):  # it is not
            self._catch_up()

    def _catch_up(self) -> None:
        for _ in self._turns.judges:
            if self._closed or not self.is_behind:
                return
            judge = self._turns.take()  # one that is
            try:
                if not self._closed:
                    judge.store.catch_up()
            finally:
                self._turns.give(judge)

    @property
    def store_errors(self) -> Counter[str]:
        """By StoreError.kind: how many batches were judged without the store."""
        return sum((judge.errors.copy() for judge in self._turns.judges), Counter())  # others go on counting

    # -- scoring

    def score(self, event: Event, features: bool = False) -> Decision:
        """Decide one event. Raises EventError with every problem of it."""
        result = self._score((event,), features, None)[0]
        if isinstance(result, EventError):
            raise result
        return result

    def score_many(
        self, events: Sequence[Event], features: bool = False, now: Int64s | None = None
    ) -> list[Result]:
        """Decide events in order, as one by one; a bad one gets its EventError in its place.

        `now` int64 (n) ms is given when history is read (the newest event time so far); else the engine's
        clock is.
        """
        most = self._store.batch_max
        if len(events) <= most:
            return self._score(events, features, now)
        results: list[Result] = []
        for start in range(0, len(events), most):
            end = start + most
            results += self._score(events[start:end], features, None if now is None else now[start:end])
        return results

    def score_told(
        self, events: Sequence[Event], features: bool = False
    ) -> list[tuple[Result, bytes | None]]:
        """`score_many`, each decision with its JSON where the journal has been given it, else None."""
        if len(events) > self._store.batch_max:
            return [(result, None) for result in self.score_many(events, features)]
        lines: list[bytes] = []
        results = self._score(events, features, None, lines)
        told: Sequence[bytes | None] = lines or [None] * len(results)
        return list(zip(results, told, strict=True))

    def score_columns(
        self, events: pa.RecordBatch, features: bool = False, now: Int64s | None = None
    ) -> list[Result]:
        """Decide the rows of an Arrow record batch, as `score_many` decides them as dicts."""
        results: list[Result] = []
        most = self._store.batch_max
        for start in range(0, events.num_rows, most):
            nows = None if now is None else now[start : start + most]
            results += self._score(events.slice(start, most), features, nows)
        return results

    async def ascore(self, event: Event, features: bool = False) -> Decision:
        """`score`, for callers in an event loop: it goes on while a shared store is waited for."""
        if not self._store.waits:
            return self.score(event, features)
        if self.floats:
            return await afloat(lambda: self.score(event, features))
        import asyncio  # who calls this has it; the others need not wait for it

        return await asyncio.to_thread(self.score, event, features)

    # -- history

    def replay(self, batch: Batch, now: Int64s, shown: Callable[[Touches], None]) -> list[Result]:
        """Decide a batch of history that `policy.schema` has parsed, at the times `now` (n).

        `shown` gets the finished rows in order, in one or more parts; a retry has none. What it gets is good
        until it returns.
        """
        with self._open() as judge:
            return judge.replay(batch, now, shown)

    def restore(self, batch: Batch, now: Int64s, decisions: Sequence[Decision]) -> int:
        """Count a batch that was judged before, at the times `now` (n), and keep what was decided then.

        No rule is asked: what each event holds of limits is what its decision says. One that the store knows
        already moves nothing. Returns how many it did not know.
        """
        with self._open() as judge:
            return judge.restore(batch, now, decisions)

    def restore_open(self, batch: Batch, now: Int64s, decisions: Sequence[Decision]) -> int:
        """`restore` those events of a batch that the store has had entered, and never decided; how many."""
        claims = batch.claims()
        with self._open() as judge:
            open_ = judge.store.open_among(claims)
        if not open_:
            return 0
        rows = [i for i, claim in enumerate(claims) if claim in open_]
        return self.restore(batch.take(np.array(rows)), now[rows], [decisions[i] for i in rows])

    def redo(self, entry: LabelEntry | ReleaseEntry | EditEntry) -> bool:
        """Let a journaled label, release or edit act again; edits of what the policy has no more do not.

        Nothing of it is journaled. Returns False for a label or release of an event that is not known.
        """
        with self._open():
            if isinstance(entry, LabelEntry):
                return self._store.label(self._claim_key(entry.event_id), entry.label, entry.time_ms)
            if isinstance(entry, ReleaseEntry):
                return self._store.release(self._claim_key(entry.event_id)) == "now"
            self._redo_edit(entry)
            return True

    # -- what comes after a decision

    def label(self, event_id: str, label: Label, time: int | None = None, source: str | None = None) -> bool:
        """Say what became known of an event, at `time` (ms; now unless said). The latest label wins.

        Returns False for an event that is not known (any more): then nothing moves.
        """
        if label not in LABELS:
            raise EventError(
                [Problem("/label", "unknown-label", "a label is fraud or legit", "fraud or legit")]
            )
        _check_words(event_id=event_id, source=source)
        self._catch_up()  # else what was decided without the store would not be known there
        with self._open():
            when = self._clock() if time is None else time
            known = self._store.label(self._claim_key(event_id), label, when)
            if not known and self._journal is not None:
                known = self._journal.decision(event_id) is not None
            if known and self._journal is not None:
                entry = LabelEntry(
                    event_id=event_id, label=label, time_ms=when, source=source, received_ms=self._clock()
                )
                self._journal.append([entry])
        self._settle()
        return known

    def release(self, event_id: str) -> bool:
        """Give back what an event holds of limits (the order was cancelled); whether it held anything."""
        _check_words(event_id=event_id)
        self._catch_up()
        with self._open():
            released = self._store.release(self._claim_key(event_id))
            journal = self._journal
            # Whoever released it before may never have heard of it, and then nobody has written it down.
            if journal is not None and (
                released == "now" or (released == "before" and journal.released(event_id) is None)
            ):
                journal.append([ReleaseEntry(event_id=event_id, time_ms=self._clock())])
        self._settle()
        return released == "now"

    # -- lists and live tables

    def list_put(
        self,
        name: str,
        entity: str,
        value: str | Sequence[str],
        expires: int | None = None,
        reason: str | None = None,
        author: str | None = None,
    ) -> None:
        """Enter a value into a list, until `expires` (ms; for good unless said). Replaces what was there."""
        _check_words(reason=reason, author=author)
        with self._open():
            key = self._list_key(name, entity, value)
            now = self._clock()
            entry = {"expires": expires, "reason": reason, "author": author, "time": now}
            spreading = self._policy.spreading
            if spreading is None or not spreading.reaches(name, entity):
                self._store.list_put(name, entity, signed(key), entry)
                self._edited("list", "put", name, entity, key, now, None, expires, reason, author)
            else:
                self._put_spreading(spreading, (name, entity, signed(key)), entry)
        self._settle()

    def _put_spreading(self, spreading: Spreading, name: Name, entry: dict[str, Any]) -> None:
        """Enter what reaches others, and them. What stands already goes on under the id it has."""
        store, now = self._store, entry["time"]
        before = store.list_get(*name)
        stands = before is not None and (before["expires"] is None or now < before["expires"])
        id = entry["path"] = store.lists.id_of(name) if stands else path_id(name, now)
        store.list_put(*name, entry)
        said = msgspec.json.encode({"path": id})
        self._edited(
            "list", "put", *name[:2], unsigned(name[2]), now, said, entry["expires"], entry["reason"],
            entry["author"],
        )  # fmt: skip
        edits = spreading.walk(store.lists, name, now, store.members)
        store.spread([*store.lists.void(now), *edits])
        self._spread_edited(edits, now)

    def list_get(self, name: str, entity: str, value: str | Sequence[str]) -> dict[str, Any] | None:
        """The entry of a value: expires, reason, author, time; None when it is not listed.

        Of what a block has reached: those of the nearest block, `distance` in steps, and `paths`: of each its
        id, distance and time, and what it leads through (`via`: entity and key, a keyed hash).
        """
        with self._open():
            key = name, entity, signed(self._list_key(name, entity, value))
            own = self._store.list_get(*key)
            return shown(self._store.lists, key, own, self._clock())

    def list_standing(self, name: str, entity: str) -> list[dict[str, Any]]:
        """All that stands on a list of an entity: `key`, a keyed hash, and what `list_get` says of it."""
        with self._open():
            self._check_list(name, entity)
            self._store.look_at_edits()
            return standing(self._store.lists, name, entity, self._clock())

    def path(self, id: str) -> dict[str, Any] | None:
        """The entry that paths of an id come from, and what they reach; None where none has it."""
        with self._open():
            name = self._found(id)
            return None if name is None else described(self._store.lists, name, id)

    def lift(self, id: str, author: str | None = None) -> bool:
        """Take what paths of an id come from off its list, and with it all that they reach; False without."""
        _check_words(author=author)
        with self._open():
            name = self._found(id)
            there = name is not None and self._unlist(name)
            if there and name is not None:
                self._edited("list", "delete", *name[:2], unsigned(name[2]), self._clock(), author=author)
        self._settle()
        return there

    def _found(self, id: str) -> Name | None:
        self._store.look_at_edits()
        return self._store.lists.find(id)

    def _unlist(self, name: Name) -> bool:
        """Remove an entry, what it reached, and the paths to it; whether there was anything."""
        store = self._store
        id = store.lists.id_of(name)
        there = store.list_delete(*name)
        edits = [PathEdit(other, id, None) for other in store.lists.reached(id)]
        edits += [PathEdit(name, id, None) for id in store.lists.paths(name)]
        there = there or bool(store.lists.paths(name))
        with suppress(StoreError):  # they are of no effect any more, and are taken out some other time
            store.spread(edits)
        return there

    def list_delete(
        self, name: str, entity: str, value: str | Sequence[str], author: str | None = None
    ) -> bool:
        """Remove a value from a list; whether it was there."""
        _check_words(author=author)
        with self._open():
            key = self._list_key(name, entity, value)
            there = self._unlist((name, entity, signed(key)))
            # Also where it was not: who asks again was answered by nobody, and nobody has written it down.
            self._edited("list", "delete", name, entity, key, self._clock(), author=author)
        self._settle()
        return there

    def share(self, name: str, entity: str) -> list[sharing.Record]:
        """The entries of a shared list that are not over, as a partner may have them."""
        with self._open():
            self._shared_list(name, entity)
            self._store.list_get(name, entity, 0)  # what other engines entered is seen by now
            now = self._clock()
            return [
                sharing.Record(f"{key & (1 << 64) - 1:016x}", said["author"], said["reason"], said["expires"])
                for key, said in sorted(self._store.list_entries(name, entity).items())
                if said["expires"] is None or said["expires"] > now
            ]

    def take_shared(
        self, name: str, entity: str, records: Sequence[sharing.Record], dry_run: bool = False
    ) -> dict[str, int]:
        """Enter what a partner shared; how many were new, extended, there already, expired.

        An entry that is there already gets the later end of the two. With `dry_run` nothing is entered.
        """
        done = dict.fromkeys(("new", "extended", "already", "expired"), 0)
        with self._open():
            self._shared_list(name, entity)
            now = self._clock()
            for record in records:
                _check_words(reason=record.reason, source=record.source)
                key = int(record.hash, 16)
                there = self._store.list_get(name, entity, signed(key))
                if record.expires is not None and record.expires <= now:
                    done["expired"] += 1
                    continue
                if there is not None and not _ends_later(record.expires, there["expires"]):
                    done["already"] += 1
                    continue
                done["new" if there is None else "extended"] += 1
                if not dry_run:
                    said = {"reason": record.reason, "author": record.source, "time": now}
                    self._store.list_put(name, entity, signed(key), {"expires": record.expires, **said})
                    self._edited(
                        "list", "put", name, entity, key, now, None, record.expires, record.reason,
                        record.source,
                    )  # fmt: skip
        self._settle()
        return done

    def _shared_list(self, name: str, entity: str) -> None:
        known = self._policy.definition.lists.get(name)
        if known is None or known.shared is None or entity not in known.of:
            shared = [
                f"{x.name} of {', '.join(x.of)}" for x in self._policy.definition.lists.values() if x.shared
            ]
            raise RiskEngineError(
                f"the policy shares no list {name} of {entity} with anybody: there are "
                f"{'; '.join(shared) or 'none: write `shared: PARTNER` below a list'}"
            )

    def table_put(self, name: str, key: str, row: Mapping[str, Any], author: str | None = None) -> None:
        """Enter or replace a row of a live table. EventError tells every column that does not fit."""
        _check_words(author=author)
        with self._open():
            table = self._live_table(name)
            number = self._table_key(table, key)
            self._store.table_put(name, signed(number), _typed_row(table, row))
            said = msgspec.json.encode(dict(row))
            self._edited("table", "put", name, table.key, number, self._clock(), said, author=author)
        self._settle()

    def table_get(self, name: str, key: str) -> dict[str, Any] | None:
        """A row of a table, resident or live (times in ms); None when there is none."""
        with self._open():
            table = self._table(name)
            number = signed(self._table_key(table, key))
            if table.rows is not None:
                row = self._policy.resident[name].get(number)
            else:
                self._store.look_at_edits()
                row = self._store.tables.get(name, {}).get(number)
            return None if row is None else dict(row)

    def table_delete(self, name: str, key: str, author: str | None = None) -> bool:
        """Remove a row of a live table; whether it was there."""
        _check_words(author=author)
        with self._open():
            table = self._live_table(name)
            number = self._table_key(table, key)
            there = self._store.table_delete(name, signed(number))
            self._edited("table", "delete", name, table.key, number, self._clock(), author=author)
        self._settle()
        return there

    # -- policy and life

    def reload(self, rules: str | Path | Definition) -> None:
        """Serve another policy from the next batch on. Raises PolicyError and keeps serving the old one.

        Unchanged features keep their history; changed ones are `warming` until their window has passed.
        """
        self.switch(self.prepare(rules))

    def prepare(self, rules: str | Path | Definition, pause: Callable[[], None] = at_a_stretch) -> Policy:
        """A policy compiled for this engine, which goes on serving the other. Raises as `reload` does.

        `pause` is called between its parts of some milliseconds, for whoever wants the interpreter too.
        """
        policy = _compile(rules, self._key, self._model, pause)
        if policy.definition.tenant != self._policy.definition.tenant:
            raise RiskEngineError(
                f"the policy's tenant is {policy.definition.tenant}, the one serving is "
                f"{self._policy.definition.tenant}: another tenant shares no history, open another engine"
            )
        _partner_keys(policy.definition, self._journal is not None or self._store.waits)
        return policy

    def switch(self, policy: Policy, activation: Activation | None = None) -> None:
        """Serve what `prepare` made. The journal tells of `activation`, where somebody asked for it."""
        with self._turns.all() as judges:
            self._check_open()
            now = self._clock()
            before = self._policy
            warming = {}
            for name, feature in policy.definition.features.items():
                if before.feature_fingerprints.get(name) == policy.feature_fingerprints[name]:
                    if name in self._warming:
                        warming[name] = self._warming[name]
                elif feature.window is not None:
                    warming[name] = (
                        now
                        + feature.window.delay_ms
                        + (
                            feature.window.width_ms
                            or {"day": 1, "week": 7, "month": 31}[feature.window.kind] * 86_400_000
                        )
                    )
            partners = _partner_keys(policy.definition, self._journal is not None or self._store.waits)
            serving = Serving(policy, warming, partners)
            for judge in judges:
                judge.move_on(serving)
            self._policy, self._warming, self._partners = serving
            self._watch.adopt(policy.alerts, now)
            if self._journal is not None:
                entry = PolicyEntry(fingerprint=policy.fingerprint, time_ms=now, activation=activation)
                self._journal.append([entry])
        self._settle()

    # -- alerts

    def on_alert(self, told: Callable[[AlertEntry], None]) -> None:
        """Have `told` called when an episode of an alert begins and ends, and now and then between.

        Whichever thread scores calls it, and others wait for that: it must return at once.
        """
        self._watch.on_alert(told)

    def alerts(self) -> list[AlertEntry]:
        """Episodes of alerts of this process, open ones and the latest that ended, the newest first."""
        return self._watch.episodes()

    def look_at_alerts(self) -> None:
        """End the episodes that have ended by the clock, where no event has come since."""
        self._watch.look(self._clock())

    @property
    def alert_status(self) -> Mapping[str, int]:
        """Open episodes, keys evicted, what found no room; empty where the policy has no alerts."""
        return self._watch.status

    def info(self) -> Info:
        """Sizes and losses of the store."""
        with self._open():
            return self._store.info()

    def look(self, entity: str, value: str | Sequence[str]) -> State:
        """What is known of an entity just now. RiskEngineError for one that the policy has not."""
        policy = self._policy
        if entity not in policy.definition.entities:
            raise RiskEngineError(_unknown("entity", entity, policy.definition.entities))
        with self._open():
            key = policy.schema.entity_key(entity, value)
            batch = policy.schema.nothing(self._clock())
            touches = policy.features.touches(batch, batch.time, policy.tables(self._store.tables))
            touches.records[:] = 0
            if entity in policy.features.entities:
                touches.keys[0, policy.features.entities.index(entity)] = signed(key)
            held = self._store.look(touches)
            row = policy.features.row(policy.features.rows(touches), 0)
            features = {
                name: row[name] for name, spec in policy.definition.features.items() if spec.by == entity
            }
            digits = policy.features.plan.limits[:, L_DIGITS].tolist()
            holds = {
                name: int(amount) / 10**places
                for name, amount, places in zip(policy.features.limit_names, held, digits, strict=True)
                if policy.definition.limits[name].by == entity
            }
            return State(f"{key:016x}", features, holds)

    def export_state(self, path: str | Path) -> int:
        """Write entities, lists and live tables to a file; return how many entities."""
        with self._open():
            return self._store.export(Path(path))

    def import_state(self, path: str | Path) -> int:
        """Take in a file written by `export_state` under the same policy; return how many entities."""
        with self._open():
            return self._store.take_in(Path(path))

    def close(self) -> None:
        """Write what is queued for the journal and let go of the state. Closing twice is fine."""
        with self._turns.all() as judges:
            if not self._closed:
                self._watch.close()
                self._closed = True
                for judge in judges:
                    judge.close()
                if self._journal is not None:
                    self._journal.close()

    # -- the flow

    def _score(
        self,
        events: Sequence[Event] | pa.RecordBatch,
        features: bool,
        now: Int64s | None,
        lines: list[bytes] | None = None,
    ) -> list[Result]:
        """`lines` are filled with the JSON of all, or are left empty."""
        turns = self._turns
        while True:
            policy = self._policy
            nows = self._clock() if now is None else now
            room = None
            if isinstance(events, _BATCHES):
                if 0 < len(events) <= ROOM_MAX:
                    rooms = mine(self._rooms) if self._store.waits else self._rooms
                    room = rooms.of(policy, len(events))
                batch, errors = policy.schema.parse(events, nows, room)
            elif isinstance(events, Sequence):
                batch, errors = policy.schema.parse(events, nows)
            else:
                batch, errors = policy.schema.parse_columns(events, nows)
            if self._journal is not None:
                self._journal.wait_for_room()  # before anything is counted, and while nobody waits for us
            judge = turns.take()
            try:
                self._check_open()
                if policy is not judge.policy:
                    continue  # reloaded while this was parsed
                own = nows if isinstance(nows, int) else nows[batch.index]
                decided = judge.decide(batch, own, features, room is not None)
                if lines is not None and judge.lines is not None and not errors:
                    lines += judge.lines.split(b"\n")[:-1]  # each ends so; splitlines() takes thrice that
            finally:
                turns.give(judge)
            self._settle()
            if not errors:
                return decided
            by_place: dict[int, Result] = {**errors, **dict(zip(batch.index.tolist(), decided, strict=True))}
            return [by_place[i] for i in range(len(by_place))]

    # -- the journal

    def _settle(self) -> None:
        """Wait for the commit, where the journal is to be waited for; while nobody waits for us."""
        if self._journal is not None:
            self._journal.settle()

    def _edited(
        self,
        kind: Literal["list", "table"],
        op: Literal["put", "delete"],
        name: str,
        entity: str,
        key: int,
        now: int,
        value: bytes | None = None,
        expires: int | None = None,
        reason: str | None = None,
        author: str | None = None,
    ) -> None:
        if self._journal is not None:
            self._journal.append(
                [
                    EditEntry(
                        kind=kind,
                        op=op,
                        name=name,
                        entity=entity,
                        key=key,
                        value=value,
                        expires_ms=expires,
                        reason=reason,
                        author=author,
                        time_ms=now,
                    )
                ]
            )

    def _spread_edited(self, edits: Sequence[PathEdit], now: int) -> None:
        """Journal the paths that an edit came to."""
        if edits and self._journal is not None:
            self._journal.append(journaled(edits, now))

    def _redo_edit(self, entry: EditEntry) -> None:
        definition, store, key = self._policy.definition, self._store, signed(entry.key)
        if entry.kind == "list":
            known = definition.lists.get(entry.name)
            if known is None or entry.entity not in known.of:
                return
            if entry.op == "delete":
                self._unlist((entry.name, entry.entity, key))
            else:
                said = {"reason": entry.reason, "author": entry.author, "time": entry.time_ms}
                more = msgspec.json.decode(entry.value) if entry.value is not None else {}
                store.list_put(entry.name, entry.entity, key, {"expires": entry.expires_ms, **said, **more})
            return
        if entry.kind == "path":
            id, path = msgspec.json.decode(entry.value or b"", type=tuple[str, Trail | None])
            store.spread([PathEdit((entry.name, entry.entity, key), id, path)])
            return
        table = definition.tables.get(entry.name)
        if table is None or table.rows is not None:
            return
        if entry.op == "delete":
            store.table_delete(entry.name, key)
        else:
            store.table_put(entry.name, key, _typed_row(table, msgspec.json.decode(entry.value or b"{}")))

    # -- names

    @contextmanager
    def _open(self) -> Iterator[Judge]:
        """The first judge, for what is no scoring."""
        with self._turns.first() as judge:
            self._check_open()
            yield judge

    def _check_open(self) -> None:
        if self._closed:
            raise RiskEngineError("this engine is closed: open another with Engine.open")

    def _claim_key(self, event_id: str) -> bytes:
        return np.array(hashing.claim(event_id, self._policy.schema.sip), np.uint64).tobytes()

    def _check_list(self, name: str, entity: str) -> None:
        lists = self._policy.definition.lists
        if name not in lists:
            raise RiskEngineError(_unknown("list", name, lists))
        if entity not in lists[name].of:
            raise RiskEngineError(_unknown(f"entity of list {name}", entity, lists[name].of))

    def _list_key(self, name: str, entity: str, value: str | Sequence[str]) -> int:
        self._check_list(name, entity)
        for part in (value,) if isinstance(value, str) else value:
            _check_words(value=part)
        schema = self._policy.schema
        partner = self._partners.get(name)
        try:
            key = schema.entity_key(entity, value)
        except ValueError as error:
            raise RiskEngineError(str(error)) from None
        if not key:
            raise RiskEngineError(f"a blank value cannot be listed: give the {entity}")
        if partner is not None:
            (field,) = self._policy.definition.entities[entity].fields
            said = value if isinstance(value, str) else value[0]
            return sharing.member(partner, entity, schema.normal(field, said))
        return key

    def _table(self, name: str) -> Table:
        tables = self._policy.definition.tables
        if name not in tables:
            raise RiskEngineError(_unknown("table", name, tables))
        return tables[name]

    def _table_key(self, table: Table, key: str) -> int:
        _check_words(key=key)
        return self._policy.schema.entity_key(table.key, key)

    def _live_table(self, name: str) -> Table:
        table = self._table(name)
        if table.rows is not None:
            raise RiskEngineError(
                f"table {name} comes from a file and is read-only here: edit the file, then reload"
            )
        return table


class State(NamedTuple):
    """What is known of an entity: the hash it goes by, its features, and what is held of its limits."""

    key: str
    features: dict[str, Any]
    holds: dict[str, float]


class _Rooms(Rooms[Policy, parsing.Room]):
    """To parse events in."""

    def make(self, policy: Policy, n: int, empty: Empty) -> parsing.Room:
        return policy.schema.room(n, empty)


def _open_shared(url: str, policy: Policy) -> Store:
    from riskengine.stores.address import open_store  # and with it redis-py, which takes 0.14 s

    return open_store(url, policy.features, policy.definition.tenant)


def _open_journal(url: str) -> Journal:
    from riskengine.journal import Journal  # and with it SQLAlchemy, which takes 0.16 s

    return Journal.open(url)


def _partner_keys(definition: Definition, kept: bool) -> dict[str, bytes]:
    """The keys of shared lists, by list. What is `kept` beyond this process wants the key agreed on."""
    found: dict[str, bytes] = {}
    for known in definition.lists.values():
        if known.shared is None:
            continue
        key = sharing.key_of(known.shared, os.environ)
        if key is None and kept:
            raise RiskEngineError(
                f"the list {known.name} is shared with {known.shared}: set "
                f"{sharing.variable_of(known.shared)} (or ..._FILE) to the key that was agreed on"
            )
        found[known.name] = key or HASH_KEY_IN_PROCESS
    return found


def _ends_later(expires: int | None, known: int | None) -> bool:
    return known is not None and (expires is None or expires > known)


def _compile(
    rules: str | Path | Definition,
    key: bytes,
    model: str | None,
    pause: Callable[[], None] = at_a_stretch,
) -> Policy:
    definition = rules if isinstance(rules, Definition) else load_definition(rules)
    definition = asked_for(definition, model)
    pause()
    models = load_models(definition)
    pause()
    return Policy.compile(definition, key, models, pause)


def _typed_row(table: Table, row: Mapping[str, Any]) -> dict[str, float | str | None]:
    """A live row checked against its table's columns; times become ms, bools 0.0 or 1.0."""
    problems = []
    typed: dict[str, float | str | None] = {}
    for name, value in row.items():
        kind = table.columns.get(name)
        if kind is None:
            problems.append(Problem(f"/{name}", "unknown-column", _unknown("column", name, table.columns)))
        elif value is None:
            typed[name] = None
        elif kind == "string" and isinstance(value, str):
            problems += _unsayable(name, value)
            typed[name] = value
        elif (kind == "bool" and isinstance(value, bool)) or (
            kind == "number" and isinstance(value, int | float) and not isinstance(value, bool)
        ):
            typed[name] = float(value)
        elif kind == "time" and (at := _time_of(value)) is not None:
            typed[name] = float(at)
        else:
            problems.append(
                Problem(f"/{name}", "wrong-type", f"column {name} holds a {kind}", kind, type(value).__name__)
            )
    if problems:
        raise EventError(problems)
    return typed


def _time_of(value: object) -> int | None:
    try:
        return read_time(value)
    except WrongError:
        return None


def _check_words(**words: str | None) -> None:
    """Refuse text that no file can hold: in the journal's queue it would stop all that comes after it."""
    problems = [
        problem for name, word in words.items() if word is not None for problem in _unsayable(name, word)
    ]
    if problems:
        raise EventError(problems)


def _unsayable(name: str, word: str) -> list[Problem]:
    try:
        word.encode()
    except UnicodeEncodeError:
        found = f"{describe(word)} with half a surrogate pair"
        return [
            Problem(f"/{name}", "unicode", f"expected Unicode text, found {found}", "Unicode text", found)
        ]
    return []


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = nearest(name, known)
    mend = f"did you mean {near}?" if near else f"there are: {', '.join(known) or 'none'}"
    return f"there is no {what} {name!r}: {mend}"


def _wall_clock() -> int:
    return time.time_ns() // 1_000_000
