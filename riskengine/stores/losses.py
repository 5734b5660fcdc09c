"""What servers lost of what they had answered for, found by asking for the last events once more.

A server loses from the end of its log: a replica that takes over lacks what had not reached it, a server that
starts again what its file did not have. So where one is reached anew, or another has taken its place, the
newest events that it had answered for are looked for first, and older ones until some are there.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from riskengine.layout import Int64s
from riskengine.stores import Loss, StoreError, wire
from riskengine.stores.cluster import AnyLink
from riskengine.stores.place import Place
from riskengine.stores.requests import Asked, together
from riskengine.stores.resp import command

EVENTS_MAX: Final = 1 << 16  # of a door that are remembered; a few seconds' at the rates it can have
BATCHES_MAX: Final = 1 << 14
STEADY: Final = 8  # claims in a row that are there: one alone may have been sent again meanwhile
NAMES_MAX: Final = 512  # claims that are looked for while a batch waits; the next one goes on
PAUSE_S: Final = 0.1  # after a look that failed
NO_CLAIMANTS: Final = np.empty(0, np.int64)
NONE_KNOWN: Final[AbstractSet[tuple[int, int]]] = frozenset()

_log = logging.getLogger(__name__)


class Told(NamedTuple):
    """Events of one call that were new and have been answered, as they were entered."""

    when_s: float  # of the monotonic clock
    time: int  # of the last event, ms
    epoch: bytes
    claims: bytes
    known: AbstractSet[tuple[int, int]]  # events that were not new
    groups: Int64s | None  # on a cluster as wire.share_out has them, with the claimants
    claimants: Int64s

    def entered(self, parts: AbstractSet[int]) -> Iterator[tuple[int, bytes]]:
        """Partition and claim of what was entered in some partitions."""
        n = len(self.claims) // 16
        spots: Iterator[tuple[int, int]] = ((0, i) for i in range(n))
        if self.groups is not None:
            calls = self.groups.tolist()
            spots = (
                (call[wire.PART], i)
                for call, after in pairwise(calls)
                if call[wire.PART] in parts
                for i in self.claimants[call[wire.FIRST_CLAIM] : after[wire.FIRST_CLAIM]].tolist()
            )
        known = {i for i, _ in self.known}
        return ((part, self.claims[16 * i : 16 * i + 16]) for part, i in spots if i not in known)


class Answered:
    """The last events that one door has had answered; kept for each batch as it is, at the cost of a copy."""

    def __init__(self) -> None:
        self.told: deque[tuple[Any, ...]] = deque()  # what Told has
        self._events = 0
        self._dropped = False
        self._lock = threading.Lock()

    def add(self, asked: Asked, epoch: bytes) -> None:
        """Remember a batch whose call has just been answered."""
        batch = asked.touches.batch
        groups, claimants = None, NO_CLAIMANTS
        if len(asked.scratch.parts) > 1:
            groups = asked.scratch.groups[: asked.calls + 1].copy()
            claimants = asked.scratch.claimants[: int(groups[-1, wire.FIRST_CLAIM])].copy()
        known = asked.known or NONE_KNOWN
        # A plain tuple: to make a Told of it here would take 0.2 us more, of 0.6.
        told = time.monotonic(), batch.time.item(-1), epoch, batch.claim.tobytes(), known, groups, claimants
        with self._lock:
            self.told.append(told)
            self._events += batch.n
            if self._events > EVENTS_MAX or len(self.told) > BATCHES_MAX:
                self._events -= len(self.told.popleft()[3]) // 16
                self._dropped = True

    def suspect(self, parts: frozenset[int], epoch: bytes, age_max_s: float) -> _Search | None:
        """Begin to look for what was entered in partitions that had one log; None where nothing was."""
        with self._lock:
            told, is_all = [Told(*one) for one in self.told], not self._dropped
        live = [one for one in told if one.epoch == epoch]
        young = [one for one in live if time.monotonic() - one.when_s < age_max_s]
        return _Search(young, parts, is_all and len(young) == len(live)) if young else None


class _Search:
    """Goes back over events until some are there. `lost` is what is not."""

    def __init__(self, told: list[Told], parts: frozenset[int], is_all: bool) -> None:
        self.lost: set[bytes] = set()
        self.time = told[-1].time
        self.more = False  # whether older ones may be lost too, of which nobody knows any more
        self._told, self._parts, self._is_all = told, parts, is_all

    def look(self, link: AnyLink, place: Place) -> bool:
        """Look for as many as may be looked for at a time; whether that was all. Raises StoreError."""
        looked, width = 0, STEADY
        while looked < NAMES_MAX:
            spots: list[tuple[int, bytes]] = []
            at = len(self._told)
            while at and len(spots) < width:
                at -= 1
                spots += self._told[at].entered(self._parts)
            there = _are_there(link, place, spots)
            del self._told[at:]
            self.lost.update(claim for (_, claim), is_there in zip(spots, there, strict=True) if not is_there)
            looked, width = looked + len(spots), min(4 * width, NAMES_MAX)
            if len(there) >= STEADY and all(there[-STEADY:]):
                return True
            if not self._told:
                self.more = bool(self.lost) and not self._is_all and not (there and there[-1])
                return True
        return False


class Losses:
    """What the doors of one engine had answered, and what of it is being looked for."""

    def __init__(self) -> None:
        self.is_looking = False
        # Whether something may be lost that nobody has been told of: what has just begun to be looked for
        # mostly is there, as where one of several connections is the first to be needed again.
        self.is_in_doubt = False
        self._doors: list[Answered] = []
        self._searches: list[_Search] = []
        self._lock = threading.Lock()  # of these
        # Of whoever looks:
        self._found: list[_Search] = []
        self._news: dict[str, Loss] = {}
        self._counted: set[bytes] = set()  # claims: what is lost may be looked for again
        self._looker = threading.Lock()
        self._not_before_s = 0.0

    def door(self) -> Answered:
        """What one more door remembers."""
        door = Answered()
        with self._lock:
            self._doors.append(door)
        return door

    def suspect(self, parts: frozenset[int], epoch: bytes, age_max_s: float) -> None:
        """Of these partitions, which had one log, what came last may be lost. Older claims expire."""
        with self._lock:
            begun = (door.suspect(parts, epoch, age_max_s) for door in self._doors)
            self._searches += (search for search in begun if search is not None)
            self.is_looking = bool(self._searches or self._found or self._news)

    def forget(self) -> None:
        """The data has another life: what the one before lost is no loss of it."""
        with self._lock:
            for some in (self._searches, self._found, self._news):
                some.clear()
            self.is_looking = self.is_in_doubt = False

    def look(self, link: AnyLink, place: Place, tell: Callable[[str, Loss], None]) -> None:
        """Go on looking, and `tell` what was lost, by a name. Where the store is away it waits."""
        if time.monotonic() < self._not_before_s or not self._looker.acquire(blocking=False):
            return
        try:
            for search in list(self._searches):
                ended = search.look(link, place)
                self.is_in_doubt = self.is_in_doubt or not ended or bool(search.lost)
                if not ended:
                    return
                with self._lock:
                    if search in self._searches:
                        self._searches.remove(search)
                        self._found.append(search)
            self._count()
            for name, loss in list(self._news.items()):
                tell(name, loss)
                with self._lock:
                    self._news.pop(name, None)
                    self.is_looking = bool(self._searches or self._news)
            self.is_in_doubt = False  # what others suspect by now has just begun to be looked for
        except StoreError:
            self.is_in_doubt = True
            self._not_before_s = time.monotonic() + PAUSE_S
        finally:
            self._looker.release()

    def _count(self) -> None:
        """What was found to be lost is news, under a name of its own: told twice it is the same."""
        found = self._found
        lost = {claim for one in found for claim in one.lost} - self._counted
        if lost:
            more = any(one.more for one in found)
            loss = Loss(len(lost), max(one.time for one in found), more)
            self._news[secrets.token_hex(8)] = loss
            self._counted = lost | (self._counted if len(self._counted) < EVENTS_MAX else set())
            _log.warning(
                "the store lost %s%d events that it had answered for, as it changed hands or started again: "
                "counters lack them until they are rebuilt, and decisions say so",
                "at least " if more else "",
                loss.events,
            )
        with self._lock:
            found.clear()
            self.is_looking = bool(self._searches or self._news)


def _are_there(link: AnyLink, place: Place, spots: Sequence[tuple[int, bytes]]) -> list[bool]:
    """Whether partitions have claims. Raises StoreError, also where the data has another epoch by now."""
    if not spots:
        return []
    by_part: dict[int, list[int]] = {}
    for at, (part, _) in enumerate(spots):
        by_part.setdefault(part, []).append(at)
    requests = [
        command(
            ("MGET", place.epoch_name(part), *(place.claim_name(b"c", spots[at][1], part) for at in places))
        )
        for part, places in by_part.items()
    ]
    reply = link.ask_all(*together(requests, list(by_part)))
    there = [False] * len(spots)
    for call, places in enumerate(by_part.values()):
        epoch, *claims = reply.of(call)
        if epoch != place.epoch:
            raise StoreError("epoch", "the data begins anew, and with it what may be lost of it")
        for at, claim in zip(places, claims, strict=True):
            there[at] = claim is not None
    return there
