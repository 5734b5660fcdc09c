"""Memory that the values of a batch are unfolded in: slabs for as long as one answer is at hand."""

from __future__ import annotations

import secrets
from itertools import count

import numpy as np

from riskengine import layout
from riskengine.features import FeatureSet
from riskengine.layout import Int64s
from riskengine.packing import Bytes
from riskengine.stores import memo, slabs, values, wire
from riskengine.stores.transition import blank


class Scratch:
    """Arrays that batches of up to n events are asked and concluded with; nobody asks how long they are."""

    def __init__(self, n: int, kinds: int, parts: int) -> None:
        self.n = n
        size = n * kinds + 1
        self.entities = np.empty((size, 4), np.int64)
        self.sizes, self.pieces, self.items = np.empty((3, size), np.int64)
        self.outcome, self.long = np.empty((2, size), np.int64)
        self.tails = np.empty((size, values.TAIL_SIZE), np.int64)
        self.numbers = np.empty(n, np.int64)
        self.groups = np.empty((min(parts, size + n) + 1, wire.GROUP_SIZE), np.int64)
        self.claimants = np.empty(n + (size if parts > 1 else 0), np.int64)
        self.ends = np.empty(size + n + parts, np.int64)
        self.parts = np.empty(parts, np.int64)


class Room:
    """Arrays that a batch of n events is asked and concluded with; the next one of as many finds them again.

    To make them took 30 of the 90 us of a lone event.
    """

    def __init__(self, n: int, kinds: int, limits: int, slots: Int64s, scratch: Scratch) -> None:
        self.scratch = scratch
        self.flags = np.zeros((4, n, limits), np.uint8)
        self.asked, self.granted, self.give_back, self.again = self.flags
        self.handed = np.zeros(limits, np.uint8)
        self.amounts, self.mosts, self.buckets = np.zeros((3, n, limits), np.int64)
        self.slots = slots
        self.after = np.empty((n, kinds), np.int64)
        self.order = np.arange(n)

    def empty(self) -> None:
        """Nothing is asked for, nor granted."""
        self.flags.fill(0)
        self.handed.fill(0)


class Workspace:
    """Memory that values are unfolded in, laid out as that of the in-process store, and used again."""

    def __init__(self) -> None:
        self.words = np.zeros(1 << 16, np.int64)
        self.meta = np.zeros(slabs.META_SIZE, np.int64)
        self._tables: dict[int, Int64s] = {}  # by size
        self._slots: dict[int, Int64s] = {}
        self.table = self._table(1, self._tables)
        self.old_table = np.zeros(2, np.int64)
        self.row = np.zeros((1, 1), np.int64)
        self.memo = memo.memory()
        self.snapshot = np.empty(1 << 15, np.uint8)  # room to pack one in
        self._out = np.empty(1 << 16, np.uint8)
        self._traces = np.empty(0, np.uint8)
        self._rooms: dict[int, Room] = {}
        self._kinds, self._limits, self._parts = 0, 0, 1
        self._scratch = Scratch(_power(0), 0, 1)
        self._fixed = self._growth = 0
        self._batches = count(secrets.randbits(62))

    @property
    def arrays(self) -> tuple[Int64s, Int64s, Int64s, Int64s]:
        """What the kernels of slabs.py share."""
        return self.words, self.meta, self.table, self.old_table

    def serve(self, features: FeatureSet, parts: int) -> None:
        """Unfold values of another plan from now on, which are in so many partitions."""
        plan = features.plan.entities
        fixed = plan[:, layout.E_FIXED] + plan[:, layout.E_FIXED_N] + 2 * plan[:, layout.E_GROWTH]
        self._fixed = int((fixed + features.plan.running[:, layout.T_WORDS]).max(initial=8))
        self._growth = int(plan[:, layout.E_GROWTH].sum())
        self.row = blank(features)[np.newaxis]
        memo.forget(self.memo)
        self._kinds, self._limits, self._parts = len(features.entities), len(features.limit_names), parts
        self._scratch = Scratch(_power(0), self._kinds, parts)  # also for a batch of none
        self._rooms.clear()

    def room(self, n: int) -> Room:
        """Room for a batch of n events, in which nothing is asked for yet."""
        room = self._rooms.get(n)
        if room is None:
            if n > self._scratch.n:
                self._scratch = Scratch(_power(n), self._kinds, self._parts)
                self._rooms.clear()
            slots = self._table(n * self._kinds, self._slots)
            room = self._rooms[n] = Room(n, self._kinds, self._limits, slots, self._scratch)
        room.empty()
        return room

    def name_batch(self) -> Bytes:
        """A name that no other batch has, of whichever engine: they are counted, from one at random on."""
        name = np.empty(wire.KEY_CHARS, np.uint8)
        wire.put_word(name, 0, next(self._batches))
        return name

    def room_for_traces(self, size: int) -> Bytes:
        """So many bytes."""
        if len(self._traces) < size:
            self._traces = np.empty(2 * size, np.uint8)
        return self._traces

    def room_for_request(self, size: int) -> Bytes:
        """So many bytes, good until the next request is written."""
        if len(self._out) < size:
            self._out = np.empty(2 * size, np.uint8)
        return self._out

    def grow(self) -> None:
        """Have twice the room for a request, and for a snapshot in it."""
        self._out = np.empty(2 * len(self._out), np.uint8)
        self.snapshot = np.empty(2 * len(self.snapshot), np.uint8)

    def begin(self, count: int, size: int, events: int) -> None:
        """Have room for so many values of `size` bytes together, and for what a batch adds to them."""
        needed = 4 * (size + (count + 16) * (self._fixed + 64) * 2 + events * 2 * self._growth)
        if len(self.words) < needed:
            self.words = np.zeros(2 * needed, np.int64)
        self.table = self._table(count, self._tables)

    def _table(self, count: int, known: dict[int, Int64s]) -> Int64s:
        """One that finds so many keys, and no larger: it is emptied for each batch."""
        slots = _power(4 * count)
        table = known.get(slots)
        if table is None:
            table = known[slots] = np.zeros(2 * slots, np.int64)
        return table


def _power(least: int) -> int:
    """The power of two that is at least so large."""
    return 1 << max(3, (least - 1).bit_length())
