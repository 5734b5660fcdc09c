"""Ids of decided events that SQLite's table of them does not have yet.

An id that tells no order (a UUID) has a page of that table to itself: to enter the 500 of a commit wrote 500
pages of 8 KB, and those once more from the WAL. It took 11 us of processor time an event where the table
had 100,000 ids, 26 where it had 400,000, and 1.8 where ids came in their order. So those of a commit become
one row of `fresh`, and go to `ids` in their order once there are ENOUGH: some with each commit, those that
share a few pages. Until they all have, their rows stay; whoever writes has them in memory, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

# Twice as many wait at most: 5 MB of memory. The slowest commit takes 7 ms; with 30,000 it took 14, and an
# event 0.2 to 0.9 us less.
ENOUGH: Final = 15_000
MORE: Final = 1.25  # times as many as come go to `ids`: through before there are enough again

_KNOWN: Final = "SELECT event_id FROM json_each(?) JOIN ids ON event_id = value"
_ENTER: Final = (
    "INSERT OR IGNORE INTO ids "
    "SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)"
)  # fmt: skip
SPAN: Final = "SELECT (SELECT min(seq) FROM fresh), (SELECT max(seq) FROM fresh)"

Span = tuple[int | None, int | None]  # the first row's `seq` and the last one's


class Fresh:
    """What the rows of `fresh` say, for one who writes; brought up to date in each transaction.

    Other processes write rows as well, and delete them. One thread calls this, but for `places`.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._is_true = False  # all this is what the table has
        self._places: dict[str, int] = {}  # their numbers, of all ids below; a reader may have it, too
        self._rows: deque[int] = deque()
        self._runs: list[list[str]] = []  # ids in order; each run is longer than the next
        self._going: list[str] = []  # to `ids`, in order, ...
        self._gone = 0  # ... of which so many have
        self._until = 0  # the last of their rows

    def places(self, span: Span) -> dict[str, int] | None:
        """Ids and their numbers as the rows of this span say, and maybe newer ones; None if not known here.

        For readers of other threads. An id that it has not got is in `ids` by now, or is not committed.
        """
        places, (first, last) = self._places, self._span()
        is_whole = span[0] == first and (span[1] or 0) <= (last or 0)
        return places if self._is_true and is_whole else None

    def enter(self, cursor: Any, first: int, event_ids: Sequence[str]) -> list[int]:
        """Number the ids of events from `first` on; return the numbers of those that had one before.

        In a transaction; where that fails call `failed`.
        """
        self._catch_up(cursor)
        places = self._places
        unknown = [event_id for event_id in event_ids if event_id not in places]
        cursor.execute(_KNOWN, (_json(unknown),))
        known = {event_id for (event_id,) in cursor.fetchall()}
        kept, again = list[str | None](event_ids), []
        if known or len(set(unknown)) < len(event_ids):
            for i, event_id in enumerate(event_ids):
                if event_id in known or event_id in places:
                    kept[i] = None
                    again.append(first + i)
                known.add(event_id)
        if len(again) < len(kept):
            cursor.execute("INSERT INTO fresh VALUES (?, ?)", (first, _json(kept)))
            self._take(first, kept)
        if not self._going and len(places) >= ENOUGH:
            self._let_go()
        self._move(cursor, int(MORE * len(kept)) + 1)
        return again

    def move(self, cursor: Any, most: int, through: int) -> bool:
        """Move some ids to `ids`, in a transaction; whether there are more in rows up to `through`."""
        self._catch_up(cursor)
        if not self._going and self._rows:
            self._let_go()
        self._move(cursor, most)
        return bool(self._going) and self._rows[0] <= through

    def failed(self) -> None:
        """What was done is not in the database, or may not be."""
        self._forget()

    def _span(self) -> Span:
        rows = self._rows
        try:
            return rows[0], rows[-1]
        except IndexError:  # also where another thread takes the last one away just now
            return None, None

    def _catch_up(self, cursor: Any) -> None:
        """Take in what other processes wrote; begin anew where one has moved and deleted rows."""
        cursor.execute(SPAN)
        span: Span = cursor.fetchone()
        if not self._is_true or span[0] != self._span()[0]:
            self._forget()
        if span != self._span():
            last = self._rows[-1] if self._rows else -1
            cursor.execute("SELECT seq, ids FROM fresh WHERE seq > ? ORDER BY seq", (last,))
            for seq, packed in cursor.fetchall():
                self._take(seq, ids_of(packed))
        self._is_true = True

    def _take(self, first: int, event_ids: Iterable[str | None]) -> None:
        self._rows.append(first)
        numbers = {
            event_id: number for number, event_id in enumerate(event_ids, first) if event_id is not None
        }
        self._places.update(numbers)
        run = sorted(numbers)
        while self._runs and len(self._runs[-1]) <= len(run):
            run = sorted(self._runs.pop() + run)  # two runs, which it merges
        self._runs.append(run)

    def _let_go(self) -> None:
        """Have all that is here go to `ids` from now on."""
        self._going = sorted([event_id for run in self._runs for event_id in run])
        self._runs, self._until = [], self._rows[-1]

    def _move(self, cursor: Any, most: int) -> None:
        if not self._going:
            return
        some = self._going[self._gone : self._gone + most]
        cursor.execute(_ENTER, (_json([(event_id, self._places[event_id]) for event_id in some]),))
        self._gone += len(some)
        if self._gone == len(self._going):
            cursor.execute("DELETE FROM fresh WHERE seq <= ?", (self._until,))
            while self._rows and self._rows[0] <= self._until:
                self._rows.popleft()
            self._places = {event_id: self._places[event_id] for run in self._runs for event_id in run}
            self._going, self._gone = [], 0


def ids_of(packed: str) -> list[str | None]:
    """What a row has: the ids of events that follow each other, None where one was known before."""
    return _IDS.decode(packed)


def numbered(rows: Iterable[tuple[int, str]]) -> Iterator[tuple[str, int]]:
    """Ids and their numbers, of rows."""
    for first, packed in rows:
        for number, event_id in enumerate(ids_of(packed), first):
            if event_id is not None:
                yield event_id, number


def _json(values: object) -> str:
    return msgspec.json.encode(values).decode()


_IDS: Final = msgspec.json.Decoder(list[str | None])
