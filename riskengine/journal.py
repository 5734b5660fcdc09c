"""Decisions, labels, edits and releases to SQLite, in the order they happened, and back.

The journal is the truth that counters are remade from. Nothing here waits for the disk while the queue has
room: one writer thread encodes and commits groups. What a kill -9 can lose is what came in the last
GROUP_SECONDS and the commit under way (where the disk is slower than the traffic, the queue); a power cut
may take the last commits too.
"""

from __future__ import annotations

import atexit
import functools
import heapq
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Connection, make_url

from riskengine.entries import (
    Activation,
    AnyEntry,
    EditEntry,
    Entry,
    LabelEntry,
    Pending,
    PolicyEntry,
    ReleaseEntry,
)
from riskengine.errors import RiskEngineError

SCHEMA_VERSION = 2
GROUP_ENTRIES = 1_000  # one commit carries this many entries, and the rest of the batch it ends in, ...
GROUP_SECONDS = 0.1  # ... and begins at most this long after the first of them came
QUEUE_ENTRIES = 32_768  # 190 MB of events scored alone (5.8 KB each), less of batches; 2 s of full load
ROOM_SECONDS = 1.0  # how long one waits for room in a full queue while the disk keeps writing
RETRY_SECONDS = 1.0  # between attempts while the file cannot be written
BUSY_SECONDS = 1.0  # how long SQLite waits for another process's write lock
READ_ROWS = 1_000  # a replay reads in pages, so that no long read holds back the WAL's checkpoint

_APPLICATION_ID = 0x5249534B  # "RISK", in the file's header: what tells a journal from another SQLite file
_log = logging.getLogger(__name__)


Row = tuple[Any, ...]  # the columns of a table, in its order; `seq` is first, and 0 while queued


class _Parcel:
    """What one call queued: rows, or what will be."""

    __slots__ = ("_pending", "_rows", "size")

    def __init__(self, size: int, rows: list[tuple[sa.Table, Row]] | None, pending: Pending | None) -> None:
        self.size = size
        self._rows = rows
        self._pending = pending

    def rows(self) -> list[tuple[sa.Table, Row]]:
        """Its rows, each with its table. Two threads may make them at once; they make the same."""
        rows = self._rows
        if rows is None:
            assert self._pending is not None
            rows = self._rows = [_pack(entry) for entry in self._pending.entries()]
        return rows


class JournalError(RiskEngineError):
    """The journal cannot be opened, read or written. `kept`: the call's entries wait in memory."""

    def __init__(self, message: str, kept: bool = False) -> None:
        self.kept = kept
        super().__init__(message)


class Journal:
    """A file of entries in arrival order. Safe to share between threads; each process opens its own.

    Several processes may write one file: `seq` counts all kinds of entries together over all of them.
    An event that is in the journal already is not written again: its first decision stands.
    """

    def __init__(self, file: str | None, queue_entries: int = QUEUE_ENTRIES) -> None:
        """Use `Journal.open`."""
        self.file = file
        self._queue_entries = queue_entries
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._queue: deque[_Parcel] = deque()
        self._queued = 0  # entries in it
        self._waiting: dict[str, tuple[_Parcel, int]] = {}  # the queue's decisions by event id
        self._waiting_labels: dict[str, list[Row]] = {}
        self._appended = 0
        self._committed = 0
        self._hurry = 0  # a flush waits for this many to be committed
        self._closing = False
        self._failure: str | None = None
        self._failures = 0
        self._file: tuple[int, int] | None = None
        self._database: sa.Engine | None = None
        self._writer: threading.Thread | None = None

    @classmethod
    def open(
        cls,
        url: str | None,
        *,
        create: bool = True,
        queue_entries: int | None = None,
    ) -> Journal:
        """Open 'sqlite:///file', made where it is missing and `create`; None keeps nothing.

        Raises JournalError.
        """
        if url is None:
            return cls(None)
        journal = cls(_parse_url(url), queue_entries or QUEUE_ENTRIES)
        journal._connect(create)
        journal._writer = threading.Thread(target=journal._write, name="riskengine-journal", daemon=True)
        journal._writer.start()
        atexit.register(journal._close_at_exit)
        return journal

    def __enter__(self) -> Self:
        """Itself: `with` closes it at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def append(self, entries: Iterable[AnyEntry]) -> None:
        """Queue entries and return at once; they are written in this order, after all that came before.

        Only where events come faster than the disk takes them, and the queue is full, does this wait.
        Raises JournalError while the file cannot be written: with `kept`, these entries wait in memory
        with the others and are written when the file can be; without, the queue is full and none of this
        call's entries were taken.
        """
        if self.file is None:
            return
        rows = [_pack(entry) for entry in entries]
        with self._changed:
            self._check_open()
            room = self._queue_entries - len(rows)
            if room >= 0:
                self._wait_until(room)
            if self._queued > room:
                raise JournalError(
                    f"{self._full()}. What was given just now is NOT journaled: append it again when there "
                    "is room, or set journal=None to go without."
                )
            parcel = _Parcel(len(rows), rows, None)
            for i, (table, row) in enumerate(rows):
                if table is _decisions:
                    self._waiting.setdefault(row[_EVENT_ID], (parcel, i))
                elif table is _labels:
                    self._waiting_labels.setdefault(row[_EVENT_ID], []).append(row)
            self._enter(parcel)
            if self._failure is not None:
                raise self._failed()

    def append_later(self, pending: Pending) -> None:
        """Queue decided events and return at once: the writer thread makes their entries.

        They are taken even where the queue is full (each caller looks before, with `wait_for_room`) and while
        the file cannot be written (`status` and the log tell of that): they have been counted.
        """
        if self.file is None:
            return
        ids = pending.event_ids
        parcel = _Parcel(len(ids), None, pending)
        with self._changed:
            self._check_open()
            for i, event_id in enumerate(ids):
                self._waiting.setdefault(event_id, (parcel, i))
            self._enter(parcel)

    def wait_for_room(self) -> None:
        """Return when the queue has room, so that traffic goes no faster than the disk. Call before counting.

        Raises JournalError where it stays full for ROOM_SECONDS or the file cannot be written.
        """
        if self.file is None or self._queued < self._queue_entries:
            return
        with self._changed:
            self._check_open()
            self._wait_until(self._queue_entries - 1)
            if self._queued >= self._queue_entries:
                raise JournalError(
                    f"{self._full()}. What was given just now is neither counted nor decided: give it again "
                    "when there is room, or set journal=None to go without."
                )

    @property
    def is_full(self) -> bool:
        """Whether `wait_for_room` would wait."""
        return self.file is not None and self._queued >= self._queue_entries

    def flush(self, timeout_s: float | None = None) -> None:
        """Return when everything appended before this call is committed. Raises JournalError."""
        if self.file is None:
            return
        with self._changed:
            self._check_open()
            self._drain(timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what is queued and close the file. Raises JournalError saying how many entries were lost."""
        if self.file is None or self._closing:
            return
        atexit.unregister(self._close_at_exit)
        if os.getpid() != self._pid:  # the parent's file and the parent's queue: not ours to close
            self._closing = True
            return
        lost: JournalError | None = None
        with self._changed:
            try:
                self._drain(timeout_s, patient=True)
            except JournalError as error:
                lost = JournalError(
                    f"{self._queued:,} entries are lost, because the journal was closed while it could "
                    f"not be written: {self._failure or error}"
                )
            self._closing = True
            self._changed.notify_all()
        assert self._writer is not None
        self._writer.join()
        self._disconnect()
        if lost is not None:
            raise lost

    @property
    def status(self) -> dict[str, Any]:
        """For metrics: entries `queued` and `committed`, `failures` so far, the present `failure` or None."""
        with self._changed:
            return {
                "queued": self._queued,
                "committed": self._committed,
                "failures": self._failures,
                "failure": self._failure,
            }

    def decision(self, event_id: str) -> Entry | None:
        """What was decided for this event, also while it is still queued. Raises JournalError."""
        if self.file is None:
            return None
        with self._changed:
            self._check_open()
            waiting = self._waiting.get(event_id)
        found = self._select(sa.select(_decisions).where(_decisions.c.event_id == event_id))
        if found:
            return _entry(found[0])
        if waiting is None:
            return None
        parcel, i = waiting
        return _entry(parcel.rows()[i][1])

    def labels(self, event_id: str) -> list[LabelEntry]:
        """The labels of this event in arrival order, also those still queued. Raises JournalError."""
        if self.file is None:
            return []
        with self._changed:
            self._check_open()
            waiting = list(self._waiting_labels.get(event_id, ()))
        query = sa.select(_labels).where(_labels.c.event_id == event_id).order_by(_labels.c.seq)
        found = self._select(query)
        # What was committed between the two looks is in both; entries are told apart by their whole content.
        stored = [_label(row) for row in found]
        seen = {msgspec.structs.replace(label, seq=0) for label in stored}
        return stored + [label for row in waiting if (label := _label(row)) not in seen]

    def activations(self) -> list[Activation]:
        """Every activation of a policy that is committed by now, the oldest first. Raises JournalError."""
        if self.file is None:
            return []
        with self._changed:
            self._check_open()
        query = sa.select(_policies).where(_policies.c.activation.is_not(None)).order_by(_policies.c.seq)
        return [act for row in self._select(query) if (act := _policy(row).activation) is not None]

    def replay(self, after: int = 0) -> Iterator[AnyEntry]:
        """Every entry with `seq` above `after` that is committed by now, of every kind, in arrival order.

        Raises JournalError.
        """
        if self.file is None:
            return
        with self._changed:
            self._check_open()
        last = self._select(sa.select(_counter.c.last))[0][0]
        pages = [self._pages(table, unpack, after, last) for table, unpack in _KINDS]
        yield from heapq.merge(*pages, key=lambda entry: entry.seq)

    # -- queue

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise JournalError(
                "this journal was opened before a fork. Open it again in the child process: neither its "
                "thread nor its connections survive a fork."
            )
        if self._closing:
            raise JournalError("the journal is closed.")

    def _enter(self, parcel: _Parcel) -> None:
        """Put a parcel behind the others, holding the lock."""
        was = self._queued
        self._queue.append(parcel)
        self._queued += parcel.size
        self._appended += parcel.size
        if not was or was < GROUP_ENTRIES <= self._queued:
            self._changed.notify_all()

    def _wait_until(self, queued: int) -> None:
        """Wait, holding the lock, until no more than so many entries are queued, or it is no use."""
        if self._queued > queued:
            self._changed.wait_for(
                lambda: self._queued <= queued or self._failure is not None or self._closing, ROOM_SECONDS
            )
            self._check_open()

    def _full(self) -> str:
        why = f": {self._failure.removesuffix('.')}" if self._failure else ""
        return f"the journal's queue is full ({self._queue_entries:,} entries wait){why}"

    def _failed(self) -> JournalError:
        return JournalError(
            f"{self._failure} Meanwhile {self._queued:,} entries wait in memory (room for "
            f"{self._queue_entries:,}); they are written when the file can be, and lost if the process ends.",
            kept=True,
        )

    def _drain(self, timeout_s: float | None, patient: bool = False) -> None:
        """Wait, holding the lock, for all that is queued now; the `patient` wait on through failures."""
        target, failures = self._appended, self._failures
        self._hurry = max(self._hurry, target)
        self._changed.notify_all()
        self._changed.wait_for(
            lambda: self._committed >= target or (not patient and self._failures > failures), timeout_s
        )
        if self._committed >= target:
            return
        if self._failure is None:
            raise JournalError(f"the journal could not be written within {timeout_s} s.", kept=True)
        raise self._failed()

    # -- the writer thread

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._closing and self._failure is not None:
                    self._changed.wait_for(
                        lambda: self._closing or self._hurry > self._committed, RETRY_SECONDS
                    )
                elif not self._closing:
                    self._changed.wait_for(
                        lambda: (
                            self._queued >= GROUP_ENTRIES or self._hurry > self._committed or self._closing
                        ),
                        GROUP_SECONDS,
                    )
                if self._closing:  # `close` has drained the queue already, or has given it up
                    return
                parcels = self._group()
            try:
                group: list[tuple[sa.Table, Row]] = []
                for parcel in parcels:
                    group += parcel.rows()
                    time.sleep(0)  # an event that is being scored waits for no more than one parcel
                self._commit(group)
            except Exception as error:  # whatever it is: this thread must outlive it, and its entries too
                with self._changed:
                    if self._failure is None:
                        _log.error("%s", self._explain(error))
                    self._failure = self._explain(error)
                    self._failures += 1
                    self._hurry = self._committed
                    self._changed.notify_all()
                continue
            with self._changed:
                for parcel in parcels:
                    self._queue.popleft()
                    self._queued -= parcel.size
                    for table, row in parcel.rows():
                        event_id = row[_EVENT_ID]
                        if table is _decisions and self._waiting.get(event_id, _NOWHERE)[0] is parcel:
                            del self._waiting[event_id]
                        elif table is _labels:
                            rows = self._waiting_labels[event_id]
                            rows.pop(0)
                            if not rows:
                                del self._waiting_labels[event_id]
                self._committed += len(group)
                self._failure = None
                self._changed.notify_all()

    def _group(self) -> list[_Parcel]:
        """Parcels for one commit, holding the lock: GROUP_ENTRIES entries, more where the last has more."""
        parcels: list[_Parcel] = []
        size = 0
        for parcel in self._queue:
            parcels.append(parcel)
            size += parcel.size
            if size >= GROUP_ENTRIES:
                break
        return parcels

    def _commit(self, group: Sequence[tuple[sa.Table, Row]]) -> None:
        """Write one group in one transaction, numbered after everything that is in the file."""
        assert self.file is not None
        assert self._database is not None
        if _identity(self.file) != self._file:
            old = self._database
            self._connect(create=False)  # it was replaced, say by a restored copy; raises where it is gone
            old.dispose()
        rows: dict[str, list[Row]] = {}
        with self._database.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            seq: int = connection.execute(sa.select(_counter.c.last)).scalar_one()
            for table, row in group:
                seq += 1
                rows.setdefault(table.name, []).append((seq, *row[1:]))
            for name, many in rows.items():
                connection.exec_driver_sql(_INSERTS[name], many)
            connection.execute(sa.update(_counter).values(last=seq))
            connection.commit()

    def _explain(self, error: Exception) -> str:
        """One paragraph for people: what happened and what to do."""
        file = self.file
        if isinstance(error, JournalError):
            return str(error)
        text = str(getattr(error, "orig", None) or error)
        if "locked" in text or "busy" in text:
            mend = "Another process holds a write lock on it for long: end that process, or its transaction."
        elif "full" in text:
            mend = "Free space on that disk."
        elif "readonly" in text or "read-only" in text:
            mend = "Give this process the right to write the file and its folder."
        elif "malformed" in text or "not a database" in text:
            mend = "The file is damaged: move it aside and put a copy of it in its place."
        else:
            mend = "Check the disk and the file's permissions."
        return f"the journal {file} cannot be written: {text}. {mend}"

    # -- the file

    def _connect(self, create: bool) -> None:
        assert self.file is not None
        file = self.file
        if not os.path.exists(file):
            folder = os.path.dirname(file) or "."
            if not create:
                raise JournalError(
                    f"the journal {file} is gone. Put it back, or a copy of it; restart to begin a new one."
                    if self._file
                    else f"there is no journal at {file}. Check the path."
                )
            if not os.path.isdir(folder):
                raise JournalError(f"the journal {file} cannot be made: there is no folder {folder}.")
        # Only `create` may make a file: a reader that came after a deletion would leave an empty one behind.
        uri = f"{Path(file).absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
        database = sa.create_engine(
            "sqlite+pysqlite://", poolclass=sa.QueuePool, creator=functools.partial(_dial, uri)
        )
        try:
            with database.connect() as connection:
                _check_schema(connection, file, create)
        except sa.exc.DatabaseError as error:
            database.dispose()
            if "not a database" in str(error.orig):
                raise JournalError(
                    f"{file} is not a SQLite file. Name another file for the journal."
                ) from error
            raise JournalError(
                f"the journal {file} cannot be opened: {error.orig}. Check its permissions, and its folder's."
            ) from error
        except JournalError:
            database.dispose()
            raise
        self._database = database
        self._file = _identity(file)

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.dispose()

    def _close_at_exit(self) -> None:
        """A process that ends without `close` still writes what it has."""
        try:
            self.close()
        except JournalError as error:
            _log.error("%s", error)

    # -- reading

    def _select(self, query: sa.Select[Any]) -> list[Row]:
        assert self._database is not None
        try:
            with self._database.connect() as connection:
                return [tuple(row) for row in connection.execute(query)]
        except sa.exc.DatabaseError as error:
            raise JournalError(f"the journal {self.file} cannot be read: {error.orig}.") from error

    def _pages(
        self, table: sa.Table, unpack: Callable[[Row], AnyEntry], after: int, last: int
    ) -> Iterator[AnyEntry]:
        seq = table.c.seq
        while rows := self._select(
            sa.select(table).where(seq > after, seq <= last).order_by(seq).limit(READ_ROWS)
        ):
            yield from map(unpack, rows)
            after = rows[-1][0]


def pack_row(values: Iterable[float | str | None]) -> bytes:
    """A feature row (float64 with NaN for missing, or strings) as MessagePack, bit for bit."""
    return msgspec.msgpack.encode(list(values))


def unpack_row(row: bytes) -> list[float | str | None]:
    """What `pack_row` packed."""
    return msgspec.msgpack.decode(row, type=list[float | str | None])


# -- what an entry is in the file

_schema = sa.MetaData()
_counter = sa.Table(  # one row: the last `seq` given out, to entries of any kind
    "counter",
    _schema,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("last", sa.Integer, nullable=False),
)
_decisions = sa.Table(
    "decisions",
    _schema,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("event_id", sa.Text, nullable=False, unique=True),
    sa.Column("decision_id", sa.Text, nullable=False),
    sa.Column("event_time", sa.Integer, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("risk", sa.Float, nullable=False),
    sa.Column("decision", sa.Text, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("row", sa.LargeBinary, nullable=False),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("features", sa.Text, nullable=False),
    sa.Column("flags", sa.Text, nullable=False),
    sa.Column("trace", sa.LargeBinary, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
)
_labels = sa.Table(
    "labels",
    _schema,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("event_id", sa.Text, nullable=False, index=True),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("time", sa.Integer, nullable=False),
    sa.Column("source", sa.Text),
    sa.Column("received", sa.Integer, nullable=False),
)
_edits = sa.Table(
    "edits",
    _schema,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("op", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("entity", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),  # 16 hex digits: SQLite's integers are signed
    sa.Column("value", sa.Text),
    sa.Column("expires", sa.Integer),
    sa.Column("reason", sa.Text),
    sa.Column("author", sa.Text),
    sa.Column("time", sa.Integer, nullable=False),
)
_releases = sa.Table(
    "releases",
    _schema,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("event_id", sa.Text, nullable=False, index=True),
    sa.Column("time", sa.Integer, nullable=False),
)
_policies = sa.Table(
    "policies",
    _schema,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("time", sa.Integer, nullable=False),
    sa.Column("author", sa.Text),
    sa.Column("activation", sa.LargeBinary),
)


_NOWHERE: tuple[None, int] = (None, 0)
_EVENT_ID = 1  # the column, in `decisions` and in `labels`


def _pack(entry: AnyEntry) -> tuple[sa.Table, Row]:
    match entry:
        case Entry():
            return _decisions, (
                0,
                entry.event_id,
                entry.decision_id,
                entry.event_time_ms,
                entry.type,
                entry.action,
                entry.risk,
                entry.decision.decode(),
                _event_json(entry.event),
                entry.row,
                entry.policy,
                entry.features,
                msgspec.json.encode(entry.flags).decode(),
                entry.trace,
                entry.content,
            )
        case LabelEntry():
            return _labels, (
                0,
                entry.event_id,
                entry.label,
                entry.time_ms,
                entry.source,
                entry.received_ms,
            )
        case EditEntry():
            return _edits, (
                0,
                entry.kind,
                entry.op,
                entry.name,
                entry.entity,
                f"{entry.key:016x}",
                None if entry.value is None else entry.value.decode(),
                entry.expires_ms,
                entry.reason,
                entry.author,
                entry.time_ms,
            )
        case ReleaseEntry():
            return _releases, (0, entry.event_id, entry.time_ms)
        case PolicyEntry():
            act = entry.activation
            return _policies, (
                0,
                entry.fingerprint,
                entry.time_ms,
                None if act is None else act.author,
                None if act is None else act.encode(),
            )


def _entry(row: Row) -> Entry:
    seq, event_id, decision_id, event_time, kind, action, risk, decision, event, values, *rest = row
    policy, features, flags, trace, content = rest
    return Entry(
        event_id=event_id,
        decision_id=decision_id,
        event_time_ms=event_time,
        type=kind,
        action=action,
        risk=risk,
        decision=decision.encode(),
        event=msgspec.json.decode(event),
        row=values,
        policy=policy,
        features=features,
        flags=msgspec.json.decode(flags, type=tuple[str, ...]),
        trace=trace,
        content=content,
        seq=seq,
    )


def _label(row: Row) -> LabelEntry:
    seq, event_id, label, time_ms, source, received_ms = row
    return LabelEntry(
        event_id=event_id, label=label, time_ms=time_ms, source=source, received_ms=received_ms, seq=seq
    )


def _edit(row: Row) -> EditEntry:
    seq, kind, op, name, entity, key, value, expires, reason, author, time_ms = row
    return EditEntry(
        kind=kind,
        op=op,
        name=name,
        entity=entity,
        key=int(key, 16),
        value=None if value is None else value.encode(),
        expires_ms=expires,
        reason=reason,
        author=author,
        time_ms=time_ms,
        seq=seq,
    )


def _release(row: Row) -> ReleaseEntry:
    seq, event_id, time_ms = row
    return ReleaseEntry(event_id=event_id, time_ms=time_ms, seq=seq)


def _policy(row: Row) -> PolicyEntry:
    seq, fingerprint, time_ms, _, packed = row
    activation = None if packed is None else Activation.decode(packed)
    return PolicyEntry(fingerprint=fingerprint, time_ms=time_ms, activation=activation, seq=seq)


_KINDS: tuple[tuple[sa.Table, Callable[[Row], AnyEntry]], ...] = (
    (_decisions, _entry),
    (_labels, _label),
    (_edits, _edit),
    (_releases, _release),
    (_policies, _policy),
)


def _insert(table: sa.Table) -> str:
    """SQL that takes `Row`s. As text: through SQLAlchemy's own inserts a row took 46 us, and takes 22 so."""
    insert = sqlite.insert(table)
    if table is _decisions:
        insert = insert.on_conflict_do_nothing(index_elements=["event_id"])
    return str(insert.compile(dialect=sqlite.dialect(paramstyle="qmark")))


_INSERTS = {table.name: _insert(table) for table, _ in _KINDS}


def _event_json(event: Mapping[str, Any]) -> str:
    """The event as JSON; an unknown field that JSON cannot say is replaced by what type it was."""
    try:
        return msgspec.json.encode(event).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        return msgspec.json.encode({name: _sayable(value) for name, value in event.items()}).decode()


def _sayable(value: object) -> object:
    try:
        msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return f"<{type(value).__name__}>"
    return value


# -- the file


def _parse_url(text: str) -> str:
    """The file a URL names. What is wrong with it is said without repeating it: it may hold a password."""
    try:
        url = make_url(text)
    except sa.exc.ArgumentError as error:
        raise JournalError("the journal's URL cannot be read. Write it as sqlite:///journal.db") from error
    if url.get_backend_name() != "sqlite":
        raise JournalError(
            f"a journal is kept in SQLite, not in {url.get_backend_name()}. Write sqlite:///journal.db"
        )
    if url.database in (None, "", ":memory:"):
        raise JournalError("the journal's URL names no file. Write sqlite:///journal.db")
    return str(url.database)


def _identity(file: str) -> tuple[int, int] | None:
    """Device and inode: SQLite goes on writing to a file that was deleted, and nobody would ever know."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _dial(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri,
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,  # transactions are begun by us, and immediate
        check_same_thread=False,  # the pool lends a connection to one thread at a time
    )
    connection.execute("PRAGMA synchronous = NORMAL")  # in WAL: survives kill -9; a power cut costs the tail
    return connection


def _check_schema(connection: Connection, file: str, create: bool) -> None:
    """Make the tables in a new file; refuse another program's file and another version's."""
    if _is_journal(connection, file):
        return
    if not create:
        raise JournalError(f"the journal {file} is empty. Put a copy of it in its place.")
    patience, pause = 100, threading.Event()
    while True:  # other processes may be making it at this moment; WAL's switch does not wait for them
        try:
            mode = connection.exec_driver_sql("PRAGMA journal_mode = WAL").scalar_one()
            break
        except sa.exc.OperationalError as error:
            patience -= 1
            if "locked" not in str(error.orig) or not patience:
                raise
            pause.wait(0.01)
    if mode != "wal":
        raise JournalError(
            f"the journal {file} cannot be read while it is written there: SQLite's WAL does not work "
            "there (a network file system?). Put it on a local disk."
        )
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    if not _is_journal(connection, file):
        _schema.create_all(connection)
        connection.execute(sa.insert(_counter).values(id=1, last=0))
        connection.exec_driver_sql(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.commit()


def _is_journal(connection: Connection, file: str) -> bool:
    """False where the file is still empty. Raises JournalError where it is something else."""
    application = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    tables = connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()
    if application == _APPLICATION_ID:
        if version == SCHEMA_VERSION:
            return True
        mend = "Open it with the riskengine that made it, and give this one a new file."
        raise JournalError(
            f"the journal {file} has layout {version}, and this riskengine reads and writes layout "
            f"{SCHEMA_VERSION}. {mend}"
        )
    if application or tables:
        raise JournalError(
            f"{file} is a SQLite file, but not a riskengine journal. Name another file for the journal."
        )
    return False
