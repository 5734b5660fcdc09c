"""The engine: one event or a batch in, decisions out. The flow of `_judge` reads once, downward."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from riskengine import event as parsing
from riskengine import features as planning
from riskengine import hashing, sharing, warming
from riskengine.alerts import Alerts
from riskengine.compiled import Policy, signed, unsigned
from riskengine.decision import ALLOW, CHALLENGE, Decision, ModelScore, Verdict, decide, name_decisions
from riskengine.definition import ACTIONS, LABELS, Definition, Label, Table
from riskengine.entries import Activation, AlertEntry, EditEntry, LabelEntry, PolicyEntry, ReleaseEntry
from riskengine.errors import EventError, Problem, RiskEngineError, nearest
from riskengine.event import Batch, Event
from riskengine.features import Touches
from riskengine.kernel import Call, Holder, bind
from riskengine.ledger import L_DIGITS
from riskengine.models import REASON_RISK_MIN, asked_for, load_models
from riskengine.policy import load_definition
from riskengine.reading import WrongError, describe, read_time
from riskengine.served import Served
from riskengine.spreading import Found, Spreading, Touch, described, shown
from riskengine.stores import NONE_MET, Claim, Followed, Info, Lives, Met, Store, StoreError
from riskengine.stores.memory import MemoryStore, size_of
from riskengine.stores.paths import Name, PathEdit, Trail, path_id
from riskengine.stores.traces import exclude
from riskengine.tables import TableSet

if TYPE_CHECKING:
    import pyarrow as pa

    from riskengine.journal import Journal

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]
Result = Decision | EventError
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
TOUCHES_MAX: Final = 10_000  # events that touched a block while the store was away; the oldest go first
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
        self._store = store
        self._journal = journal
        self._clock = clock
        self._key = key
        self._model = model
        self._tables: TableSet | None = policy.tables(store.tables)  # None: edited since it was made
        self._rows = store.tables  # those that `_tables` was made of
        self._lock = threading.RLock()
        self._warming: dict[str, int] = {}  # changed features, and until when
        self._serial = 0  # of the batch being judged
        self._shown: Callable[[Touches], None] | None = None  # whom rows are shown to, in a replay
        self._rooms = _Rooms()
        self._unfollowed: deque[Touch] = deque(maxlen=TOUCHES_MAX)  # of the listed, while the store was away
        self._closed = False
        self._partners = _partner_keys(policy.definition, journal is not None or store.waits)
        self._origin = origin
        self._alerts = Alerts(policy.alerts, origin) if policy.alerts is not None else None
        self._alerted: list[Callable[[AlertEntry], None]] = []  # who is told of episodes
        self.store_errors: Counter[str] = Counter()  # by StoreError.kind: batches judged without the store

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
        written either, scoring raises JournalError with nothing counted.
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
        opened = _open_journal(journal) if journal is not None else None
        engine = cls(policy, state, opened, clock or _wall_clock, chosen, model, origin)
        if opened is not None:
            opened.append([PolicyEntry(fingerprint=policy.fingerprint, time_ms=engine._clock())])
            engine._resume_alerts()
        if warming.is_cold(policy):
            engine._rehearse()
        return engine

    def _rehearse(self) -> None:
        """Go through the motions with no event at all, so that the kernels are compiled before one comes."""
        policy = self._policy
        with warming.store_elsewhere():
            batch, _ = policy.schema.parse((), 0)
            room = _Room.make(policy, 0, None)
            found = policy.features.touches(batch, batch.time, policy.tables({}), room.planned)
            self._predict(policy.features.rows(found), room.verdict)
            self._weigh(found, room.verdict)
        self._judge(batch, 0, True, None, False, None)
        if self._journal is not None:
            Served(policy, found, (), 0).block()

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
        place = getattr(self._store, "place", None)
        return None if place is None else str(place.epoch.decode())

    @property
    def journal(self) -> Journal | None:
        """Where decisions are kept, to be read; None where they are not."""
        return self._journal

    @property
    def waits(self) -> bool:
        """Whether scoring would wait now: for a shared store, a disk, or others at work on this engine."""
        if self._store.waits or (self._journal is not None and self._journal.may_wait):
            return True
        if not self._lock.acquire(blocking=False):
            return True
        self._lock.release()
        return False

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
        if self._store.waits:
            import asyncio  # who calls this has it; the others need not wait for it

            return await asyncio.to_thread(self.score, event, features)
        return self.score(event, features)

    # -- history

    def replay(self, batch: Batch, now: Int64s, shown: Callable[[Touches], None]) -> list[Result]:
        """Decide a batch of history that `policy.schema` has parsed, at the times `now` (n).

        `shown` gets the finished rows in order, in one or more parts; a retry has none. What it gets is good
        until it returns.
        """
        with self._open():
            self._shown = shown
            try:
                return self._decide(batch, now, False)
            finally:
                self._shown = None

    def redo(self, entry: LabelEntry | ReleaseEntry | EditEntry) -> bool:
        """Let a journaled label, release or edit act again; edits of what the policy has no more do not.

        Nothing of it is journaled. Returns False for a label or release of an event that is not known.
        """
        with self._open():
            if isinstance(entry, LabelEntry):
                return self._store.label(self._claim_key(entry.event_id), entry.label, entry.time_ms)
            if isinstance(entry, ReleaseEntry):
                return self._store.release(self._claim_key(entry.event_id))
            self._redo_edit(entry)
            return True

    def restore(self, batch: Batch, now: Int64s, decisions: Sequence[Decision]) -> None:
        """Count a batch that was judged before, at the times `now` (n), and keep what was decided then.

        No rule is asked: what each event holds of limits is what its decision says. One that the store knows
        already moves nothing.
        """
        policy, store = self._policy, self._store
        fresh_ms = policy.definition.lateness_ms + policy.definition.skew_ms
        with self._open():
            keys = batch.claim.tobytes()
            first: dict[bytes, int] = {}
            for i in range(batch.n):
                key = keys[16 * i : 16 * i + 16]
                if key not in store.claims:
                    first.setdefault(key, i)
            left: list[int] = []
            for part, _ in chain(_parts(batch, list(first.values()), [], []), (([i], True) for i in left)):
                rows = None if part is None else np.array(part, np.int64)
                own, nows = (batch, now) if rows is None else (batch.take(rows), now[rows])
                followed = store.followed(own.follows_claim.tobytes()) if own.follows is not None else None
                if self._tables is None:
                    self._tables = policy.tables(store.tables)
                read_at = np.maximum(own.time, nows - policy.definition.lateness_ms)
                touches = policy.features.touches(own, read_at, self._tables)
                for trace in followed.chain if followed is not None else ():
                    exclude(policy.features, touches, trace)
                decided = decisions if part is None else [decisions[i] for i in part]
                held = policy.held_by(touches, decided)
                age_ms = max(self._clock() - int(nows.max()), 0)
                lives = Lives(max(policy.horizon_ms - age_ms, 1), max(fresh_ms - age_ms, 1))
                undecided = store.restore(touches, decided, held, followed, nows, lives)
                left += [i if part is None else part[i] for i in undecided]
                self._sweep(int(nows[-1]), own.n)

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
        with self._open():
            released = self._store.release(self._claim_key(event_id))
            if released and self._journal is not None:
                self._journal.append([ReleaseEntry(event_id=event_id, time_ms=self._clock())])
        self._settle()
        return released

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
        self._store.look_at_lists()
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
            if there:
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
            self._tables = None
            said = msgspec.json.encode(dict(row))
            self._edited("table", "put", name, table.key, number, self._clock(), said, author=author)
        self._settle()

    def table_get(self, name: str, key: str) -> dict[str, Any] | None:
        """A row of a table, resident or live (times in ms); None when there is none."""
        with self._open():
            table = self._table(name)
            number = signed(self._table_key(table, key))
            rows = self._policy.resident.get(name) or self._store.tables.get(name, {})
            row = rows.get(number)
            return None if row is None else dict(row)

    def table_delete(self, name: str, key: str, author: str | None = None) -> bool:
        """Remove a row of a live table; whether it was there."""
        _check_words(author=author)
        with self._open():
            table = self._live_table(name)
            number = self._table_key(table, key)
            there = self._store.table_delete(name, signed(number))
            if there:
                self._tables = None
                self._edited("table", "delete", name, table.key, number, self._clock(), author=author)
        self._settle()
        return there

    # -- policy and life

    def reload(self, rules: str | Path | Definition) -> None:
        """Serve another policy from the next batch on. Raises PolicyError and keeps serving the old one.

        Unchanged features keep their history; changed ones are `warming` until their window has passed.
        """
        self.switch(self.prepare(rules))

    def prepare(self, rules: str | Path | Definition) -> Policy:
        """A policy compiled for this engine, which goes on serving the other. Raises as `reload` does."""
        policy = _compile(rules, self._key, self._model)
        if policy.definition.tenant != self._policy.definition.tenant:
            raise RiskEngineError(
                f"the policy's tenant is {policy.definition.tenant}, the one serving is "
                f"{self._policy.definition.tenant}: another tenant shares no history, open another engine"
            )
        _partner_keys(policy.definition, self._journal is not None or self._store.waits)
        return policy

    def switch(self, policy: Policy, activation: Activation | None = None) -> None:
        """Serve what `prepare` made. The journal tells of `activation`, where somebody asked for it."""
        with self._open():
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
            tables = policy.tables(self._store.tables)
            self._store.reload(policy.features)
            self._partners = partners
            self._policy, self._tables, self._warming = policy, tables, warming
            self._adopt_alerts(now)
            if self._journal is not None:
                entry = PolicyEntry(fingerprint=policy.fingerprint, time_ms=now, activation=activation)
                self._journal.append([entry])
        self._settle()

    def _adopt_alerts(self, now: int) -> None:
        compiled, alerts = self._policy.alerts, self._alerts
        if alerts is None:
            self._alerts = Alerts(compiled, self._origin) if compiled is not None else None
        elif compiled is None:
            self._alerts = None
            self._tell(alerts.close_all(now))
        else:
            self._tell(alerts.adopt(compiled, now))

    # -- alerts

    def on_alert(self, told: Callable[[AlertEntry], None]) -> None:
        """Have `told` called when an episode of an alert begins and ends, and now and then between.

        It is called with the engine's lock held, by whichever thread scores: it must return at once.
        """
        with self._open():
            self._alerted.append(told)

    def alerts(self) -> list[AlertEntry]:
        """Episodes of alerts of this process, open ones and the latest that ended, the newest first."""
        with self._open():
            return self._alerts.episodes() if self._alerts is not None else []

    def look_at_alerts(self) -> None:
        """End the episodes that have ended by the clock, where no event has come since."""
        with self._open():
            if self._alerts is not None:
                self._tell(self._alerts.look(self._clock()))

    @property
    def alert_status(self) -> Mapping[str, int]:
        """Open episodes, keys evicted, what found no room; empty where the policy has no alerts."""
        return {} if self._alerts is None else self._alerts.status

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
            n = self._store.take_in(Path(path))
            self._tables = None
            return n

    def close(self) -> None:
        """Write what is queued for the journal and let go of the state. Closing twice is fine."""
        with self._lock:
            if not self._closed:
                if self._alerts is not None and self._journal is not None:
                    with suppress(RiskEngineError):  # it will be told by closing it
                        self._journal.append(self._alerts.open_now())
                self._closed = True
                self._rooms = _Rooms()  # which hold on to the store's arrays
                self._store.close()
                if self._journal is not None:
                    self._journal.close()

    # -- the flow

    def _score(
        self, events: Sequence[Event] | pa.RecordBatch, features: bool, now: Int64s | None
    ) -> list[Result]:
        while True:
            policy = self._policy
            nows = self._clock() if now is None else now
            room = None
            if isinstance(events, _BATCHES):
                room = self._rooms.of(policy) if len(events) == 1 else None
                batch, errors = policy.schema.parse(events, nows, room.parsed if room is not None else None)
            elif isinstance(events, Sequence):
                batch, errors = policy.schema.parse(events, nows)
            else:
                batch, errors = policy.schema.parse_columns(events, nows)
            if self._journal is not None:
                self._journal.wait_for_room()  # before anything is counted, and while nobody waits for us
            with self._open():
                if policy is not self._policy:
                    continue  # reloaded while this was parsed
                own = nows if isinstance(nows, int) else nows[batch.index]
                decided = self._decide(batch, own, features, room)
            self._settle()
            if not errors:
                return decided
            by_place: dict[int, Result] = {**errors, **dict(zip(batch.index.tolist(), decided, strict=True))}
            return [by_place[i] for i in range(len(by_place))]

    def _decide(
        self, batch: Batch, now: int | Int64s, features: bool, room: _Room | None = None
    ) -> list[Result]:
        """Tell retries from new events, and judge the new ones in order."""
        if batch.n == 1:
            decided = self._decide_one(batch, now if isinstance(now, int) else int(now[0]), features, room)
            if decided is not None:
                return [decided]
        store = self._store
        claims = store.claims
        self._serial += 1
        serial = self._serial
        keys = batch.claim.tobytes()
        contents = batch.content.tobytes()
        arrived = [now] * batch.n if isinstance(now, int) else now.tolist()
        if batch.follows is None and self._journal is None and not store.waits:
            names = [keys[at : at + 16] for at in range(0, 16 * batch.n, 16)]
            if len(set(names)) == batch.n and claims.keys().isdisjoint(names):
                return self._decide_new(batch, names, contents, arrived, now, features)
        results: list[Result | None] = [None] * batch.n
        entered: list[Claim] = []
        new: list[int] = []
        again: list[int] = []  # undecided, or decided but forgotten
        for i in range(batch.n):
            key = keys[16 * i : 16 * i + 16]
            content = contents[16 * i : 16 * i + 16]
            claim = claims.get(key)
            if claim is None:
                if self._journal is not None and batch.late[i]:
                    results[i] = self._journaled(batch.ids[i], content)
                    if results[i] is not None:
                        entered.append(Claim(key, content, arrived[i], -1, serial))
                        continue
                claim = store.claim(key, content, arrived[i], serial)
                new.append(i)
            elif claim.content != content:
                results[i] = _conflict()
            elif claim.decision is None and claim.serial != serial:
                results[i] = self._journaled(batch.ids[i], content) if self._journal is not None else None
                if results[i] is None:
                    claim.serial = serial
                    again.append(i)
            entered.append(claim)
        undecided: list[int] = []  # as the store says, when asked
        for part, counted in _parts(batch, new, again, undecided):
            rows = None if part is None else np.array(part, np.int64)
            own = batch if rows is None else batch.take(rows)
            nows = now if isinstance(now, int) or rows is None else now[rows]
            followed = None
            if own.follows is not None:
                with suppress(StoreError):  # `observe` will meet it too
                    followed = store.followed(own.follows_claim.tobytes())
            judged, first, met = self._judge(own, nows, counted, followed, features, room)
            places = range(batch.n) if part is None else part
            for trace, i, decision in zip(range(first, first + own.n), places, judged, strict=True):
                claim = entered[i]
                claim.decision = decision
                if counted:
                    claim.trace = trace
            if followed is not None:
                entered[places[0]].follows = followed.claim
            for at, answer in met.items():
                i = places[at]
                if answer == "undecided":
                    known = None
                    if self._journal is not None:
                        known = results[i] = self._journaled(batch.ids[i], entered[i].content)
                    if known is None:
                        undecided.append(i)
                    elif isinstance(known, Decision):  # the engine that journaled it never told the store
                        del store.claims[keys[16 * i : 16 * i + 16]]
                        own = batch.take(np.array([i]))
                        self.restore(own, np.array([arrived[i]], np.int64), [known])
                elif answer == "conflict":
                    del store.claims[keys[16 * i : 16 * i + 16]]
                    results[i] = _conflict()
                    for j in range(i + 1, batch.n):  # others of this event_id may be the event that is known
                        if entered[j] is entered[i]:
                            own = batch.take(np.array([j]))
                            results[j] = self._decide(own, arrived[j], features)[0]
                else:
                    entered[i].decision = answer
        answers = [
            result if result is not None else _decided(claim)
            for result, claim in zip(results, entered, strict=True)
        ]
        if batch.n:
            self._sweep(now if isinstance(now, int) else int(now[-1]), batch.n)
        return answers

    def _decide_new(
        self, batch: Batch, names: list[bytes], contents: bytes, arrived: list[int], now: int | Int64s,
        features: bool,
    ) -> list[Result]:  # fmt: skip
        """`_decide` where every event is new and no store can say otherwise: in half the time."""
        serial, claim = self._serial, self._store.claim
        entered = [
            claim(name, contents[at : at + 16], when, serial)
            for name, at, when in zip(names, range(0, 16 * batch.n, 16), arrived, strict=True)
        ]
        judged, first, _ = self._judge(batch, now, True, None, features, None)
        for trace, known, decision in zip(range(first, first + batch.n), entered, judged, strict=True):
            known.decision = decision
            known.trace = trace
        if batch.n:
            self._sweep(now if isinstance(now, int) else int(now[-1]), batch.n)
        return list(judged)

    def _decide_one(self, batch: Batch, now: int, features: bool, room: _Room | None) -> Decision | None:
        """`_decide` of an event that comes alone, where it is new or a retry of a decided one; else None.

        It needs none of the lists that keep a batch in order.
        """
        store = self._store
        key = batch.claim.tobytes()
        content = batch.content.tobytes()
        claim = store.claims.get(key)
        if claim is not None:
            return claim.decision if claim.content == content else None
        if batch.follows is not None or (self._journal is not None and batch.late[0]):
            return None
        self._serial += 1
        claim = store.claim(key, content, now, self._serial)
        judged, claim.trace, met = self._judge(batch, now, True, None, features, room)
        decision = claim.decision = judged[0]
        if met:  # not new after all
            del store.claims[key]
            return None
        self._sweep(now, 1)
        return decision

    def _sweep(self, now: int, events: int) -> None:
        settings = self._policy.definition
        self._store.sweep(now, events, self._policy.horizon_ms, settings.lateness_ms + settings.skew_ms)

    def _judge(
        self,
        batch: Batch,
        now: int | Int64s,
        counted: bool,
        followed: Followed | None,
        features: bool,
        room: _Room | None,
    ) -> tuple[list[Decision], int, Met]:
        """Plan, wait, read, predict, fire, decide, settle: decisions, first trace, who was met."""
        policy, store = self._policy, self._store
        lasting = room is not None
        if room is None:
            room = _Room.make(policy, batch.n, None)
        read_at = batch.time
        any_late = b"\1" in batch.late.tobytes()  # of one event .any() takes 1 us longer
        if any_late:
            room = _Room.make(policy, batch.n, None)
            read_at = np.maximum(batch.time, now - policy.definition.lateness_ms)
        if self._tables is None:  # once for any number of edits
            self._tables = policy.tables(store.tables)
        touches = policy.features.touches(batch, read_at, self._tables, room.planned)
        for trace in followed.chain if followed is not None else ():
            exclude(policy.features, touches, trace)
        try:
            met = store.observe(touches, counted, followed)
        except StoreError as error:
            verdict = room.verdict
            alone = self._judge_alone(touches, verdict, now, followed, features, error, lasting)
            return alone, 0, NONE_MET
        spread = None
        spreading = policy.spreading
        if spreading is not None and store.lists.met & spreading.mask:
            spread = self._follow(spreading, touches, met)
        if store.tables is not self._rows:  # another engine has changed some
            touches = self._see_rows(touches)
        if self._partners:
            self._look_up_shared(touches)
        found = policy.features.rows(touches)
        if self._shown is not None:
            self._shown(found)
        verdict = room.verdict
        challenged = self._predict(found, verdict)
        self._weigh(found, verdict)
        unkept = self._journal is not None and self._journal.is_away
        if unkept:
            policy.heed_contract(found, verdict)
        first = store.settle(touches, verdict, counted, followed)
        flags = self._flags(batch, now, any_late, counted, followed, unkept)
        decisions = self._answer(found, verdict, challenged, flags, features)
        if spread is not None:
            self._explain(decisions, spread)
        store.conclude(touches, decisions, policy.horizon_ms)
        if self._journal is not None and decisions:
            sealer = self._journal.sealer
            self._journal.append_later(Served(policy, found, decisions, now, met, sealer, lasting))
        if self._alerts is not None and counted and followed is None and self._shown is None:
            self._tell(self._alerts.take(found, verdict, now, met))
        if spread is not None and spread.edits:
            with suppress(RiskEngineError):  # its status and the log tell of a journal that takes nothing
                self._spread_edited(spread.edits, self._clock())
        if self._unfollowed and spreading is not None:
            self._catch_up(spreading)
        return decisions, first, met

    def _look_up_shared(self, touches: Touches) -> None:
        """Find the events' values on lists that are shared with partners, by the partners' hashes."""
        policy, batch, cells = self._policy, touches.batch, touches.cells
        for name, partner in self._partners.items():
            for entity in policy.definition.lists[name].of:
                entries = self._store.list_entries(name, entity)
                if not entries:
                    continue
                (field,) = policy.definition.entities[entity].fields
                column, at = policy.layout.number(f"listed:{name}:{entity}"), policy.schema.string_at[field]
                for i in range(batch.n):
                    size, off = int(batch.str_len[i, at]), int(batch.str_off[i, at])
                    if size < 0:
                        continue
                    value = bytes(batch.text[off : off + size]).decode()
                    entry = entries.get(signed(sharing.member(partner, entity, value)))
                    if entry is not None:
                        until = entry["expires"]
                        cells[column, i] = float(until is None or batch.time[i] < until)

    def _predict(self, found: Touches, verdict: Verdict) -> list[dict[str, float]] | None:
        """The champion's p, also where rules find it; return what the challengers say, if there are any."""
        policy, cells, types = self._policy, found.cells, found.batch.type_index
        champion = policy.champion
        if champion is not None:
            champion.score(cells, types, verdict.p)
            cells[policy.model_column] = verdict.p
            if champion.strange is not None:
                verdict.p[np.isnan(verdict.p)] = 0.0
        if not policy.challengers:
            return None
        said: list[dict[str, float]] = [{} for _ in range(found.batch.n)]
        p = np.empty(found.batch.n)
        for challenger in policy.challengers:
            challenger.score(cells, types, p)
            for i, value in enumerate(p.tolist()):
                if value == value:
                    said[i][challenger.name] = value
        return said

    def _judge_alone(
        self,
        touches: Touches,
        verdict: Verdict,
        now: int | Int64s,
        followed: Followed | None,
        features: bool,
        error: StoreError,
        lasting: bool,
    ) -> list[Decision]:
        """Decide without the store, by what is known here and what each event's type says of that (`fail`).

        What it was to count is counted when it is back.
        """
        self.store_errors[error.kind] += 1
        policy, batch = self._policy, touches.batch
        if self._partners:
            self._look_up_shared(touches)
        found = policy.features.rows(touches)
        challenged = self._predict(found, verdict)
        self._weigh(found, verdict)
        held = policy.refuse_alone(found, verdict)
        any_late = bool(batch.late.any())
        what = "store" if error.kind in ("away", "behind", "busy", "loading") else error.kind
        unkept = self._journal is not None and self._journal.is_away
        flags = self._flags(batch, now, any_late, True, followed, unkept)
        flags = [(f"degraded:{what}", *flag) for flag in flags]
        decisions = self._answer(found, verdict, challenged, flags, features)
        spreading = policy.spreading
        if spreading is not None and self._store.lists.met & spreading.mask:
            self._explain(decisions, Found([], spreading.named(touches, self._store.lists)))
            self._unfollowed += spreading.touches(touches)
        self._store.postpone(touches, decisions, held, policy.horizon_ms)
        if self._journal is not None and decisions:
            sealer = self._journal.sealer
            self._journal.append_later(Served(policy, found, decisions, now, (), sealer, lasting))
        if self._alerts is not None and followed is None:
            self._tell(self._alerts.take(found, verdict, now, ()))
        return decisions

    def _tell(self, changed: Sequence[AlertEntry]) -> None:
        """Journal what became of episodes, and tell those who asked; neither may fail what was decided."""
        if not changed:
            return
        if self._journal is not None:
            with suppress(RiskEngineError):  # its status and the log tell of a journal that takes nothing
                self._journal.append(changed)
        for told in self._alerted:
            for entry in changed:
                told(entry)

    def _resume_alerts(self) -> None:
        """Go on with the episodes that the journal has as open."""
        assert self._journal is not None
        if self._alerts is not None:
            self._tell(self._alerts.resume(self._journal.alerts(open_only=True), self._clock()))

    def _follow(self, spreading: Spreading, touches: Touches, met: Met) -> Found:
        """Let events that touch what is listed pass it on, in order: the next of the batch meet it."""
        spread = spreading.follow(touches, self._store.lists, met)
        if spread.edits:
            try:
                self._store.spread(spread.edits)
            except StoreError:
                self._unfollowed += spreading.touches(touches)
                return spread._replace(edits=[])
        return spread

    def _catch_up(self, spreading: Spreading) -> None:
        """Let those events pass it on that came while the store was away."""
        store = self._store
        with suppress(RiskEngineError):  # it is away again, or the journal
            edits = spreading.catch_up(self._unfollowed, store.lists, store.members)
            store.spread(edits)
            self._unfollowed.clear()
            self._spread_edited(edits, self._clock())

    def _explain(self, decisions: list[Decision], spread: Found) -> None:
        """Name the paths by which events met what is listed, where a rule asked for it."""
        spreading = self._policy.spreading
        assert spreading is not None
        for i, named in spread.named.items():
            if named and decisions[i].reasons:
                reasons = spreading.explained(decisions[i].reasons, named)
                decisions[i] = msgspec.structs.replace(decisions[i], reasons=reasons)

    def _see_rows(self, touches: Touches) -> Touches:
        """Take in live rows that others changed, for this batch too."""
        self._rows = self._store.tables
        self._tables = self._policy.tables(self._rows)
        return self._policy.features.refill(touches, self._tables)

    def _weigh(self, found: Touches, verdict: Verdict) -> None:
        """What fires, risk and severity before limits, who may say the kind of a challenge, and ids."""
        lone = found.lone
        if lone is None or self._policy.rules.rolls_out:
            judging = self._judging(found, verdict, partial)
        else:
            if not lone.judging:
                lone.judging = self._judging(found, verdict, bind)
            judging = lone.judging
        for call in judging:
            call()

    def _judging(self, found: Touches, verdict: Verdict, hold: Holder) -> list[Call]:
        """The calls that judge a batch by rules and thresholds; the columns of limits are filled later."""
        policy, batch, strings = self._policy, found.batch, found.strings
        rules = policy.rules
        who = batch.event_hash
        if policy.user_entity >= 0 and rules.rolls_out:
            users = batch.keys[:, policy.user_entity]
            who = np.where(users != 0, users, who)
        return [
            *rules.firing(
                found.cells,
                strings.off,
                strings.len,
                strings.hash,
                strings.text,
                found.tables.pool,
                policy.features.timezone,
                batch.type_index,
                batch.time,
                who,
                verdict.hits,
                hold,
            ),
            hold(
                decide,
                verdict.hits,
                rules.live,
                rules.severity,
                rules.risk,
                rules.firm,
                rules.allows,
                policy.thresholds,
                batch.type_index,
                verdict.p,
                found.cells,
                policy.blocked_columns,
                verdict.risk,
                verdict.base,
                verdict.voices,
            ),
            hold(name_decisions, batch.claim, batch.content, policy.salt, verdict.names),
        ]

    def _flags(
        self,
        batch: Batch,
        now: int | Int64s,
        any_late: bool,
        counted: bool,
        followed: Followed | None,
        unkept: bool,
    ) -> list[tuple[str, ...]]:
        common: tuple[str, ...] = ()
        if self._warming:
            latest = now if isinstance(now, int) else int(now[0])
            common = tuple(
                sorted(f"warming:{name}" for name, until in self._warming.items() if latest < until)
            )
        if not counted:
            common = ("redecided", *common)
        if unkept:
            common = ("degraded:journal", *common)
        if batch.follows is not None and followed is None:
            common = ("follows:unknown", *common)
        if not any_late:
            return [common] * batch.n
        return [("late", *common) if late else common for late in batch.late.tolist()]

    def _answer(
        self,
        found: Touches,
        verdict: Verdict,
        challenged: list[dict[str, float]] | None,
        flags: list[tuple[str, ...]],
        features: bool,
    ) -> list[Decision]:
        """Decisions of a batch, from its arrays."""
        policy, batch = self._policy, found.batch
        if batch.n == 1 and policy.champion is None and challenged is None and not features:
            return [self._answer_one(found, verdict, flags[0])]
        hexes = verdict.names.tobytes().hex()
        width = verdict.hits.shape[1]
        masks = verdict.hits.tobytes()
        outcomes = [policy.outcome(masks[width * i : width * i + width]) for i in range(batch.n)]
        fingerprint = policy.fingerprint
        severities = verdict.severity.tolist()
        kinds: list[str | None] = [None] * batch.n
        for i, level in enumerate(severities):
            if level == CHALLENGE:
                kinds[i] = policy.challenge(outcomes[i], verdict.voices[i], batch.type_index[i])
        reasons = [outcome.reasons for outcome in outcomes]
        models: list[ModelScore | None] = [None] * batch.n
        champion = policy.champion
        if champion is not None:
            scores = found.cells[policy.model_column].tolist()
            models = [ModelScore(champion.name, p) if p == p else None for p in scores]
            blamed = [
                i
                for i, level, p in zip(range(batch.n), severities, scores, strict=True)
                if level != ALLOW and p >= REASON_RISK_MIN
            ]
            if blamed:
                for i, more in zip(blamed, champion.reasons(found.cells, blamed, verdict.p), strict=True):
                    reasons[i] += more
        others: list[Any] = [msgspec.UNSET] * batch.n if challenged is None else challenged
        rows: list[Any] = [msgspec.UNSET] * batch.n
        if features:
            rows = [policy.features.row(found, i) for i in range(batch.n)]
        return [
            Decision(
                event_id,
                hexes[at : at + 32],
                ACTIONS[level],
                risk,
                kind,
                why,
                outcome.fired,
                outcome.shadow,
                model,
                fingerprint,
                flag,
                when,
                other,
                row,
            )
            for event_id, at, level, risk, kind, outcome, why, model, flag, when, other, row in zip(
                batch.ids,
                range(0, 32 * batch.n, 32),
                severities,
                verdict.risk.tolist(),
                kinds,
                outcomes,
                reasons,
                models,
                flags,
                batch.time.tolist(),
                others,
                rows,
                strict=True,
            )
        ]

    def _answer_one(self, found: Touches, verdict: Verdict, flags: tuple[str, ...]) -> Decision:
        """`_answer` of a lone event where there is no model: without its lists, in 1.2 us instead of 2.5."""
        policy, batch = self._policy, found.batch
        outcome = policy.outcome(verdict.hits.tobytes())
        level = verdict.severity.item()
        kind = None
        if level == CHALLENGE:
            kind = policy.challenge(outcome, verdict.voices[0], batch.type_index[0])
        return Decision(
            batch.ids[0],
            verdict.names.tobytes().hex(),
            ACTIONS[level],
            verdict.risk.item(),
            kind,
            outcome.reasons,
            outcome.fired,
            outcome.shadow,
            None,
            policy.fingerprint,
            flags,
            batch.time.item(),
        )

    # -- the journal

    def _settle(self) -> None:
        """Wait for the commit, where the journal is to be waited for; while nobody waits for us."""
        if self._journal is not None:
            self._journal.settle()

    def _journaled(self, event_id: str, content: bytes) -> Result | None:
        """The answer to a retry that only the journal remembers."""
        assert self._journal is not None
        try:
            entry = self._journal.decision(event_id)
        except RiskEngineError:
            if not self._journal.is_away:
                raise
            return None  # nobody can tell: it is decided, and flagged
        if entry is None:
            return None
        return msgspec.json.decode(entry.decision, type=Decision) if entry.content == content else _conflict()

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

    def _spread_edited(self, edits: Iterable[PathEdit], now: int) -> None:
        """Journal paths: what an edit came to, or an event."""
        if self._journal is not None:
            entries = [
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
            if entries:
                self._journal.append(entries)

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
        self._tables = None

    # -- names

    def _open(self) -> threading.RLock:
        if self._closed:
            raise RiskEngineError("this engine is closed: open another with Engine.open")
        return self._lock

    def _claim_key(self, event_id: str) -> bytes:
        return np.array(hashing.claim(event_id, self._policy.schema.sip), np.uint64).tobytes()

    def _list_key(self, name: str, entity: str, value: str | Sequence[str]) -> int:
        lists = self._policy.definition.lists
        if name not in lists:
            raise RiskEngineError(_unknown("list", name, lists))
        if entity not in lists[name].of:
            raise RiskEngineError(_unknown(f"entity of list {name}", entity, lists[name].of))
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


class _Room(NamedTuple):
    """Arrays that a batch is parsed, planned and judged in."""

    parsed: parsing.Room | None
    planned: planning.Room
    verdict: Verdict

    @classmethod
    def make(cls, policy: Policy, n: int, parsed: parsing.Room | None) -> _Room:
        width = len(policy.rules.names) + len(policy.features.limit_names)
        return cls(parsed, policy.features.room(n, parsed is not None), Verdict.room(n, width))


class _Rooms(threading.local):
    """Each thread's room for lone events, used again for the next one: making it took 16 of 66 us."""

    _policy: Policy | None = None
    _room: _Room

    def of(self, policy: Policy) -> _Room:
        if self._policy is not policy:
            self._policy, self._room = policy, _Room.make(policy, 1, policy.schema.room(1))
        return self._room


def _parts(
    batch: Batch, new: list[int], again: list[int], undecided: list[int]
) -> Iterator[tuple[list[int] | None, bool]]:
    """Cut a batch where order matters: follow-ups, and events seen before, are judged alone.

    Each part is its rows (None: the whole batch) and whether it counts. What is `undecided` by the time that
    the others are judged comes last.
    """
    if batch.follows is None and not again:
        if new:
            yield None if len(new) == batch.n else new, True
        yield from (([i], False) for i in undecided)
        return
    plain: list[int] = []
    for i in sorted(new + again):
        if i not in again and (batch.follows is None or batch.follows[i] is None):
            plain.append(i)
            continue
        if plain:
            yield plain, True
            plain = []
        yield [i], i not in again
    if plain:
        yield plain, True
    yield from (([i], False) for i in undecided)


def _decided(claim: Claim) -> Decision:
    assert claim.decision is not None, "every event of a batch is decided before its retries are answered"
    return claim.decision


def _conflict() -> EventError:
    return EventError(
        [
            Problem(
                "/event_id",
                "conflict",
                "another event has this event_id: a retry must be the same event",
                "the same content",
                "other content",
            )
        ]
    )


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


def _compile(rules: str | Path | Definition, key: bytes, model: str | None) -> Policy:
    definition = rules if isinstance(rules, Definition) else load_definition(rules)
    definition = asked_for(definition, model)
    return Policy.compile(definition, key, load_models(definition))


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
