"""Decisions, labels, edits and releases to a database, in the order they happened, and back.

The journal is the truth that counters are remade from. One writer thread encodes and commits groups. With
commit=async nobody waits for the disk: a kill -9 loses at most what came in the last LOSS_SECONDS, or the
last LOSS_ENTRIES entries, whichever is more. With commit=sync what was answered is committed. What the
database does not take goes to a spool file, and from there into the database when it takes it again.
"""

from __future__ import annotations

import atexit
import heapq
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import sqlalchemy as sa

from riskengine.entries import Activation, AlertEntry, AnyEntry, Entry, LabelEntry
from riskengine.journal import tables
from riskengine.journal.address import Address
from riskengine.journal.blocks import Block, Pending, Record, dropped_of, join, pack_entries, unpack
from riskengine.journal.database import Database, Item, explain, spools_taken
from riskengine.journal.sealing import VARIABLE, Sealer
from riskengine.journal.spool import Spool, SpoolError
from riskengine.journal.tables import Row
from riskengine.journal.trouble import JournalError

LOSS_ENTRIES: Final = 1_000  # commit=async may lose so many entries to a kill -9, ...
LOSS_SECONDS: Final = 0.1  # ... or what came in so many seconds, whichever is more
# One commit carries this many entries, and the rest of the batch it ends in. With 500 the last hundredth of
# what 32 callers ask waited for 4.9 ms instead of 4.4, as the writer has their core for longer at a time.
GROUP_ENTRIES: Final = 250
GROUP_SECONDS: Final = 0.04  # it begins at most this long after the first of them came
QUEUE_ENTRIES = 32_768  # 190 MB of events scored alone (5.8 KB each), less of batches
ROOM_SECONDS = 1.0  # how long one waits for room in a full queue while the disk keeps writing
RETRY_SECONDS = 1.0  # between attempts while the database does not take anything
SPOOLED_IDS: Final = 200_000  # of the newest entries in the spool: these are found by id without the database
READ_ENTRIES: Final = 4_096  # a replay reads in pages, so that no long read holds back the WAL's checkpoint
READ_BLOCKS: Final = 64

_log = logging.getLogger(__name__)


class _Parcel:
    """What one call queued: items, or what will be."""

    __slots__ = ("_items", "_pending", "ids", "seconds", "size")

    def __init__(
        self, size: int, ids: Sequence[str], items: list[Item] | None, pending: Pending | None
    ) -> None:
        self.size = size
        self.ids = ids  # of its decided events
        self.seconds = 0.0  # when it came
        self._items = items
        self._pending = pending

    def items(self) -> list[Item]:
        """What is to be written. Two threads may make it at once; they make the same."""
        items = self._items
        if items is None:
            assert self._pending is not None
            items = self._items = [self._pending.block()]
        return items

    @property
    def record(self) -> Record | None:
        return None if self._pending is None else self._pending.record

    def decision(self, event_id: str) -> Entry | None:
        return _among(self.items(), event_id) if event_id in self.ids else None


class Journal:
    """Entries in arrival order. Safe to share between threads; each process opens its own.

    Several processes may write one database: `seq` counts all kinds of entries together over all of them.
    An event that is in the journal already is not written again: its first decision stands.
    """

    def __init__(self, address: Address | None, queue_entries: int = QUEUE_ENTRIES) -> None:
        """Use `Journal.open`."""
        self.sealer: Sealer | None = None
        self.was_cut_off = False  # a process that wrote it here, on this machine, was killed before
        self._address = address
        self._queue_entries = queue_entries
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._queue: deque[_Parcel] = deque()
        self._queued = 0  # entries in it
        self._appended = 0
        self._settled = 0  # of those, in the database or in the spool
        self._committed = 0  # of those, in the database
        self._refused = 0
        self._hurry = 0  # somebody waits for so many to be settled
        self._closing = False
        self._failure: str | None = None  # why the database takes nothing
        self._stuck: str | None = None  # why the spool does not either
        self._failures = 0
        self._database: Database | None = None
        self._writer: threading.Thread | None = None
        self._spool: Spool | None = None
        self._waiting: deque[Spool] = deque()  # files with something in them, the oldest first
        self._taken: dict[str, int] = {}  # how far each is in the database
        self._spooled: dict[str, int] = {}  # where in our spool the newest events are

    @classmethod
    def open(
        cls,
        url: str | None,
        *,
        create: bool = True,
        queue_entries: int | None = None,
        key: str | None = None,
    ) -> Journal:
        """Open sqlite:///FILE or postgresql://USER@HOST/DATABASE, made where it is missing and `create`.

        The URL may say commit=sync and spool=PREFIX (of the files for what the database does not take).
        `key`: see sealing.py; RISKENGINE_JOURNAL_KEY unless given. None keeps nothing. Raises JournalError.
        """
        if url is None:
            return cls(None)
        address = Address.parse(url)
        journal = cls(address, queue_entries or QUEUE_ENTRIES)
        journal.sealer = Sealer.read(os.environ.get(VARIABLE) if key is None else key)
        journal._database = Database.open(address, create)
        if create:
            try:
                left, journal.was_cut_off = Spool.left_behind(address.spool)
                journal._waiting.extend(left)
                journal._spool = Spool.claim(address.spool)
            except SpoolError as error:
                journal._database.close()
                raise JournalError(
                    f"the journal's spool cannot be made: {error}. Name files that can, with ?spool=PREFIX "
                    "at the end of the journal's URL."
                ) from error
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

    @property
    def is_sync(self) -> bool:
        """Whether an answer waits for its commit (`settle`)."""
        return self._address is not None and self._address.commit == "sync"

    @property
    def is_away(self) -> bool:
        """Whether the database takes nothing just now: what is appended waits in the spool."""
        return self._failure is not None

    # -- appending

    def append(self, entries: Iterable[AnyEntry]) -> None:
        """Queue entries and return at once; they are written in this order, after all that came before.

        Only where events come faster than the disk takes them, and the queue is full, does this wait.
        Raises JournalError where neither database nor spool can be written: with `kept`, these entries wait
        in memory with the others; without, the queue is full and none of this call's entries were taken.
        """
        if self._address is None:
            return
        items = _items(entries)
        size = sum(len(item.ids) if isinstance(item, Block) else 1 for item in items)
        ids = [event_id for item in items if isinstance(item, Block) for event_id in item.ids]
        with self._changed:
            self._check_open()
            room = self._queue_entries - size
            if room >= 0:
                self._wait_until(room)
            if self._queued > room:
                raise JournalError(
                    f"{self._full()}. What was given just now is NOT journaled: append it again when there "
                    "is room, or set journal=None to go without."
                )
            self._enter(_Parcel(size, ids, items, None))
            if self._stuck is not None:
                raise self._failed()

    def append_later(self, pending: Pending) -> None:
        """Queue decided events and return at once: the writer thread makes their block.

        They are taken even where the queue is full (each caller looks before, with `wait_for_room`) and while
        nothing can be written (`status` and the log tell of that): they have been counted.
        """
        if self._address is None:
            return
        ids = pending.event_ids
        if ids:
            with self._changed:
                self._check_open()
                self._enter(_Parcel(len(ids), ids, None, pending))

    def wait_for_room(self) -> None:
        """Return when what would be lost is within its bound: traffic goes no faster than the disk.

        Call before counting. Raises JournalError where the queue stays full for ROOM_SECONDS, and with
        commit=sync where nothing can be written.
        """
        if self._address is None:
            return
        if self._stuck is not None and (self.is_sync or self._queued >= self._queue_entries):
            with self._changed:
                self._check_open()
                raise self._no_room()
        if self._queued < LOSS_ENTRIES:
            return
        with self._changed:
            self._check_open()
            first = self._queue[0].seconds if self._queue else 0.0
            if self._queued >= LOSS_ENTRIES and time.monotonic() - first > LOSS_SECONDS:
                self._wait_until(LOSS_ENTRIES - 1)
            if self._queued >= self._queue_entries:
                self._wait_until(self._queue_entries - 1)
                if self._queued >= self._queue_entries:
                    raise self._no_room()

    @property
    def may_wait(self) -> bool:
        """Whether appending may wait, by `wait_for_room` or by `settle`."""
        return self.is_sync or self._queued >= LOSS_ENTRIES or self._stuck is not None

    def settle(self) -> None:
        """With commit=sync, return when all that was appended before is committed; with async, at once.

        While the database is away the spool will do. Raises JournalError where it is in neither of them: it
        waits in memory then.
        """
        if self._address is None or self._address.commit != "sync":
            return
        with self._changed:
            target = self._appended
            self._hurry = max(self._hurry, target)
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._settled >= target or self._stuck is not None or self._closing
            )
            if self._settled < target:
                raise self._failed()

    def flush(self, timeout_s: float | None = None) -> None:
        """Return when everything appended before this call is in the database. Raises JournalError."""
        if self._address is None:
            return
        with self._changed:
            self._check_open()
            target, failures = self._appended, self._failures
            self._hurry = max(self._hurry, target)
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._committed >= target or self._is_put_off(target, failures), timeout_s
            )
            if self._committed >= target:
                return
            if self._failure is None:
                raise JournalError(f"the journal could not be written within {timeout_s} s.", kept=True)
            raise self._failed()

    def close(self, timeout_s: float = 30.0) -> None:
        """Write what is queued and close. Raises JournalError saying how many entries were lost.

        What the database does not take stays in the spool, for the next to open the journal.
        """
        if self._address is None or self._closing:
            return
        atexit.unregister(self._close_at_exit)
        if os.getpid() != self._pid:  # the parent's file and the parent's queue: not ours to close
            self._closing = True
            return
        lost: JournalError | None = None
        with self._changed:
            target = self._appended
            self._hurry = max(self._hurry, target)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._settled >= target, timeout_s)
            if self._settled < target:
                lost = JournalError(
                    f"{self._queued:,} entries are lost, because the journal was closed while it could "
                    f"not be written: {self._stuck or self._failure or 'the disk was too slow'}"
                )
            self._closing = True
            self._changed.notify_all()
        assert self._writer is not None
        self._writer.join()
        left = self._appended - self._committed - self._queued
        for spool in {*self._waiting, *([self._spool] if self._spool is not None else [])}:
            spool.close(keep=self.was_cut_off and not self._appended)  # for who goes on: we only looked
        if left > 0:
            _log.warning(
                "%d entries wait in %s: the next to open the journal %s takes them in",
                left, self._address.spool, self._address.shown,
            )  # fmt: skip
        if self._database is not None:
            self._database.close()
        if lost is not None:
            raise lost

    @property
    def status(self) -> dict[str, Any]:
        """For metrics: entries `queued`, `spooled`, `committed` and `refused`, `failures` so far, the present
        `failure` or None.
        """  # fmt: skip
        with self._changed:
            return {
                "queued": self._queued,
                "spooled": self._settled - self._committed,
                "committed": self._committed,
                "refused": self._refused,
                "failures": self._failures,
                "failure": self._failure,
            }

    @property
    def spools_left(self) -> int:
        """How many spool files are still to be taken in."""
        return len(self._waiting)

    # -- reading

    @property
    def database(self) -> Database:
        """The database, for those who keep it (keeping.py)."""
        assert self._database is not None
        return self._database

    def decision(self, event_id: str) -> Entry | None:
        """What was decided for this event, also while it is still queued. Raises JournalError."""
        if self._address is None:
            return None
        with self._changed:
            self._check_open()
            queued = list(self._queue)
            spooled = self._spooled.get(event_id)
        away: JournalError | None = None
        try:
            entry = self._stored(event_id)
        except JournalError as error:
            away, entry = error, None
        if entry is None and spooled is not None and self._spool is not None:
            for _, items in islice(self._spool.read(spooled), 1):
                entry = _among(items, event_id)
            if entry is None and away is None:  # it has gone into the database meanwhile
                entry = self._stored(event_id)
        if entry is None:
            found = (parcel.decision(event_id) for parcel in queued)
            entry = next((one for one in found if one is not None), None)
        if entry is None and away is not None:
            raise away
        return entry

    def decisions(self, event_ids: Sequence[str]) -> dict[str, Entry]:
        """`decision` of several, those that there are: mostly none, so that one look is for all."""
        if self._address is None:
            return {}
        wanted = set(event_ids)
        with self._changed:
            self._check_open()
            queued = list(self._queue)
            known = wanted & self._spooled.keys()
        known |= {event_id for parcel in queued for event_id in parcel.ids if event_id in wanted}
        known |= self.database.places_of(wanted - known).keys()
        found = ((event_id, self.decision(event_id)) for event_id in known)
        return {event_id: entry for event_id, entry in found if entry is not None}

    def labels(self, event_id: str) -> list[LabelEntry]:
        """The labels of this event in arrival order, also those still queued. Raises JournalError."""
        waiting, stored = self._of_event(tables.labels, event_id)
        # What was committed between the two looks is in both; entries are told apart by their whole content.
        labels = [tables.label(row) for row in stored]
        seen = {msgspec.structs.replace(label, seq=0) for label in labels}
        return labels + [label for row in waiting if (label := tables.label(row)) not in seen]

    def released(self, event_id: str) -> int | None:
        """When what this event held was given back first (ms); None where it was not. Raises JournalError."""
        waiting, stored = self._of_event(tables.releases, event_id)
        return min((tables.release(row).time_ms for row in (*waiting, *stored)), default=None)

    def _of_event(self, table: sa.Table, event_id: str) -> tuple[list[Row], list[Row]]:
        """Rows of a table about an event: those still queued, and those in the database."""
        if self._address is None:
            return [], []
        with self._changed:
            self._check_open()
            waiting = [
                item[1]
                for parcel in self._queue
                if not parcel.ids
                for item in parcel.items()
                if not isinstance(item, Block) and item[0] == table.name and item[1][1] == event_id
            ]
        return waiting, self.database.of_event(table, event_id)

    def activations(self) -> list[Activation]:
        """Every activation of a policy that is committed by now, the oldest first. Raises JournalError."""
        if self._address is None:
            return []
        with self._changed:
            self._check_open()
        policies = tables.policies
        query = sa.select(policies).where(policies.c.activation.is_not(None)).order_by(policies.c.seq)
        found = (tables.policy(row).activation for row in self.database.select(query))
        return [activation for activation in found if activation is not None]

    def alerts(self, *, open_only: bool = False, most: int | None = None) -> list[AlertEntry]:
        """Episodes of alerts as they stood last, of every process; the newest first. Raises JournalError."""
        if self._address is None:
            return []
        with self._changed:
            self._check_open()
        alerts = tables.alerts
        latest = sa.select(sa.func.max(alerts.c.seq)).group_by(alerts.c.id)
        query = sa.select(alerts).where(alerts.c.seq.in_(latest))
        if open_only:
            query = query.where(alerts.c.ended.is_(None))
        rows = self.database.select(query.order_by(alerts.c.start.desc(), alerts.c.seq.desc()).limit(most))
        return [tables.alert(row) for row in rows]

    def replay(self, after: int = 0) -> Iterator[AnyEntry]:
        """Every entry with `seq` above `after` that is committed by now, of every kind, in arrival order.

        Raises JournalError.
        """
        if self._address is None:
            return
        last = self._last()
        others = [self._pages(table, unpack, after, last) for table, unpack in tables.KINDS]
        yield from heapq.merge(self._decisions(after, last), *others, key=lambda entry: entry.seq)

    def flagged(self, start: str, most: int) -> Iterator[Entry]:
        """Decisions that have a flag which starts so, among the last `most` entries, in arrival order.

        Blocks without such a text are passed over unread. Raises JournalError.
        """
        if self._address is None:
            return
        last = self._last()
        text = start.encode()
        for row in blocks_between(self.database, max(last - most, 0), last):
            if text in row[4]:
                entries = unpack(row[4], row[0], dropped=dropped_of(row[3]))
                yield from (one for one in entries if any(flag.startswith(start) for flag in one.flags))

    def recent(self, most: int) -> Iterator[Entry]:
        """Decisions among the last `most` entries, in arrival order. Raises JournalError."""
        if self._address is not None:
            last = self._last()
            yield from self._decisions(max(last - most, 0), last)

    def _last(self) -> int:
        """The `seq` of the last entry that is committed by now."""
        with self._changed:
            self._check_open()
        last: int = self.database.select(sa.select(tables.about.c.last))[0][0]
        return last

    def _stored(self, event_id: str) -> Entry | None:
        seq = self.database.place_of(event_id)
        if seq is None:
            return None
        blocks = tables.blocks
        query = (
            sa.select(blocks.c.seq, blocks.c.body)
            .where(blocks.c.seq <= seq)
            .order_by(blocks.c.seq.desc())
            .limit(1)
        )
        found = self.database.select(query)
        return next(unpack(found[0][1], found[0][0], only=seq - found[0][0])) if found else None

    def _decisions(self, after: int, last: int) -> Iterator[Entry]:
        for row in blocks_between(self.database, after, last):
            for entry in unpack(row[4], row[0], dropped=dropped_of(row[3])):
                if entry.seq > after:
                    yield entry

    def _pages(
        self, table: sa.Table, unpack: Callable[[Row], AnyEntry], after: int, last: int
    ) -> Iterator[AnyEntry]:
        seq = table.c.seq
        query = sa.select(table).where(seq <= last).order_by(seq).limit(READ_ENTRIES)
        while rows := self.database.select(query.where(seq > after)):
            yield from map(unpack, rows)
            after = rows[-1][0]

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
        parcel.seconds = time.monotonic()
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
                lambda: self._queued <= queued or self._stuck is not None or self._closing, ROOM_SECONDS
            )
            self._check_open()

    def _full(self) -> str:
        why = f": {self._stuck.removesuffix('.')}" if self._stuck else ""
        return f"the journal's queue is full ({self._queue_entries:,} entries wait){why}"

    def _no_room(self) -> JournalError:
        what = self._full() if self._queued >= self._queue_entries else (self._stuck or "").removesuffix(".")
        return JournalError(
            f"{what}. What was given just now is neither counted nor decided: give it again when there is "
            "room, or set journal=None to go without."
        )

    def _is_put_off(self, target: int, failures: int) -> bool:
        """Whether it failed since, and everything up to `target` lies where it waits."""
        spooled = self._failure is not None and self._settled >= target
        return self._failures > failures and (spooled or self._stuck is not None)

    def _failed(self) -> JournalError:
        if self._stuck is None:
            spooled = self._settled - self._committed
            where = self._spool.path if self._spool is not None else ""
            return JournalError(
                f"{self._failure} Meanwhile {spooled:,} entries wait in {where}; they are written when "
                "it can be.",
                kept=True,
            )
        return JournalError(
            f"{self._stuck} Meanwhile {self._queued:,} entries wait in memory (room for "
            f"{self._queue_entries:,}); they are written when the file can be, and lost if the process ends.",
            kept=True,
        )

    # -- the writer thread

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if not self._closing and self._failure is not None and not self._queue:
                    self._changed.wait_for(lambda: self._closing or self._queue, RETRY_SECONDS)
                elif not self._closing and self._stuck is not None:
                    self._changed.wait_for(lambda: self._closing or self._is_hurried(), RETRY_SECONDS)
                elif not self._closing and self._queue:
                    self._changed.wait_for(
                        lambda: self._queued >= GROUP_ENTRIES or self._is_hurried() or self._closing,
                        GROUP_SECONDS,
                    )
                if self._closing:  # `close` has drained the queue already, or has given it up
                    return
                parcels = self._group()
            self._settle_parcels(parcels)
            self._take_in()

    def _has_work(self) -> bool:
        return bool(self._queue or self._waiting or self._closing)

    def _is_hurried(self) -> bool:
        return self._hurry > self._settled

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

    def _settle_parcels(self, parcels: list[_Parcel]) -> None:
        """Write parcels to the database, or to the spool; where neither takes them they stay queued."""
        if not parcels:
            return
        try:
            items = _packed(parcels)
            where = "spool"
            if not self._waiting:
                where = "database" if self._commit(items) else "spool"
            if where == "spool":
                self._to_spool(items)
        except Exception as error:  # whatever it is: this thread must outlive it, and its entries too
            with self._changed:
                self._stuck = self._told(error)
                self._failures += 1
                self._hurry = self._settled
                self._changed.notify_all()
            return
        size = sum(parcel.size for parcel in parcels)
        with self._changed:
            for _ in parcels:
                self._queue.popleft()
            self._queued -= size
            self._settled += size
            self._committed += size if where == "database" else 0
            self._stuck = None
            self._changed.notify_all()

    def _commit(self, items: list[Item], spool: tuple[str, int] | None = None) -> bool:
        """Write items to the database; whether it took them. What it takes never is left out."""
        try:
            self._call(items, spool)
        except Exception as error:
            if _is_refusal(error):
                self._commit_apart(items, spool)
            else:
                self._away(error)
                return False
        with self._changed:
            if self._failure is not None:
                _log.warning("the journal is written again")
            self._failure = None
        return True

    def _call(self, items: list[Item], spool: tuple[str, int] | None = None) -> None:
        assert self._database is not None
        assert self._address is not None
        if self._database.is_replaced():  # say by a restored copy; raises where it is gone
            if self._address.file is not None and not os.path.exists(self._address.file):
                raise JournalError(
                    f"the journal {self._address.file} is gone. Put it back, or a copy of it; restart to "
                    "begin a new one."
                )
            old = self._database
            self._database = Database.open(self._address, create=False)
            old.close()
        self._database.write(items, spool)

    def _commit_apart(self, items: list[Item], spool: tuple[str, int] | None) -> None:
        """Write one by one what was refused together; what no database can hold is told and left out."""
        for item in items:
            try:
                self._call([item])
            except Exception as error:
                if not _is_refusal(error):
                    raise
                self._refused += 1
                what = f"{len(item.ids)} decisions" if isinstance(item, Block) else f"a row of {item[0]}"
                _log.error("the journal cannot hold %s, and goes on without: %s", what, type(error).__name__)
        if spool is not None:
            self._call([], spool)

    def _away(self, error: Exception) -> None:
        assert self._address is not None
        told = explain(self._address, error)
        with self._changed:
            if self._failure is None:
                _log.error("%s", told)
            self._failure = told
            self._failures += 1
            self._changed.notify_all()

    def _told(self, error: Exception) -> str:
        assert self._address is not None
        if isinstance(error, SpoolError):
            return f"{self._failure or ''} Its spool cannot be written either: {error}.".strip()
        return explain(self._address, error)

    # -- the spool

    def _to_spool(self, items: list[Item]) -> None:
        assert self._address is not None
        if self._spool is None:  # a reader's journal, which nobody appends to
            self._spool = Spool.claim(self._address.spool)
        if self._spool not in self._waiting:
            self._taken[self._spool.name] = 0
            self._waiting.append(self._spool)
        place = self._spool.append(items, self.is_sync)
        with self._changed:
            for item in items:
                if isinstance(item, Block):
                    for event_id in item.ids:
                        self._spooled.setdefault(event_id, place)
            while len(self._spooled) > SPOOLED_IDS:
                del self._spooled[next(iter(self._spooled))]

    def _take_in(self) -> None:
        """Bring what is in the spools into the database, in order, while it takes it and nobody waits."""
        while self._waiting and not self._closing:
            spool = self._waiting[0]
            try:
                if spool.name not in self._taken:
                    self._taken |= {spool.name: 0} | spools_taken(self.database, [spool.name])
                record = next(spool.read(self._taken[spool.name]), None)
            except Exception as error:
                self._away(error)
                return
            if record is None:
                self._forget(spool)
                continue
            end, items = record
            if not self._commit(items, (spool.name, end)):
                return
            self._taken[spool.name] = end
            with self._changed:
                if spool is self._spool:
                    self._committed += sum(len(i.ids) if isinstance(i, Block) else 1 for i in items)
                self._changed.notify_all()
                if self._queued >= GROUP_ENTRIES or self._is_hurried():
                    return  # what has come meanwhile goes to the spool, behind the rest

    def _forget(self, spool: Spool) -> None:
        """A spool is in the database to its end."""
        name = spool.name
        self._waiting.popleft()
        self._taken.pop(name, None)
        if spool is self._spool:
            spool.clear()
            with self._changed:
                self._spooled.clear()
        else:
            spool.remove()
        try:
            self.database.script(sa.delete(tables.spools).where(tables.spools.c.id == name))
        except Exception:  # a row that nothing refers to: it is in nobody's way
            _log.info("the journal keeps a note of a spool that is gone")

    def _close_at_exit(self) -> None:
        """A process that ends without `close` still writes what it has."""
        try:
            self.close()
        except JournalError as error:
            _log.error("%s", error)


def blocks_between(database: Database, after: int, last: int) -> Iterator[Row]:
    """(seq, n, until, dropped, body, sealed) of the blocks with entries above `after`, to `last`, paged."""
    blocks = tables.blocks
    before = database.select(sa.select(sa.func.max(blocks.c.seq)).where(blocks.c.seq <= after + 1))[0][0]
    after = after if before is None else before - 1
    columns = (blocks.c.seq, blocks.c.n, blocks.c.until, blocks.c.dropped, blocks.c.body, blocks.c.sealed)
    limit = READ_BLOCKS
    while rows := database.select(
        sa.select(*columns)
        .where(blocks.c.seq > after, blocks.c.seq <= last)
        .order_by(blocks.c.seq)
        .limit(limit)
    ):
        yield from rows
        after = rows[-1][0]
        entries = sum(row[1] for row in rows)
        limit = max(1, min(READ_ENTRIES, READ_ENTRIES * len(rows) // entries))


def _packed(parcels: Iterable[_Parcel]) -> list[Item]:
    """What parcels hold, in their order; events one after another make one block.

    A block for each batch cost 300 us, whatever its size: pages that are begun, and none of them full.
    """
    items: list[Item] = []
    ids: list[str] = []
    together: list[Record] = []
    for parcel in parcels:
        record = parcel.record
        if together and (record is None or record.head != together[0].head):
            items.append(join(ids, together))
            ids, together = [], []
        if record is not None:
            ids += parcel.ids
            together.append(record)
        else:
            items += parcel.items()
            time.sleep(0)  # an event that is being scored waits for no more than one parcel
    if together:
        items.append(join(ids, together))
    return items


def _among(items: Sequence[Item], event_id: str) -> Entry | None:
    for item in items:
        if isinstance(item, Block) and event_id in item.ids:
            return next(unpack(item.body, None, only=item.ids.index(event_id)), None)
    return None


def _items(entries: Iterable[AnyEntry]) -> list[Item]:
    items: list[Item] = []
    together: list[Entry] = []
    for entry in entries:
        if isinstance(entry, Entry):
            together.append(entry)
            continue
        if together:
            items.append(pack_entries(together))
            together = []
        items.append(tables.pack(entry))
    if together:
        items.append(pack_entries(together))
    return items


def _is_refusal(error: Exception) -> bool:
    """Whether it is what was to be written that is wrong, and not the database."""
    return isinstance(error, OverflowError | ValueError | TypeError) or type(error).__name__ in (
        "DataError",
        "IntegrityError",
    )
