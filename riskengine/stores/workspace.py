"""Memory that the values of a batch are unfolded in: slabs for as long as one answer is at hand."""

from __future__ import annotations

import numpy as np

from riskengine import ledger
from riskengine.features import FeatureSet
from riskengine.ledger import Int64s
from riskengine.stores import slabs, wire
from riskengine.stores.transition import blank


class Workspace:
    """Memory that values are unfolded in, laid out as that of the in-process store, and used again."""

    def __init__(self) -> None:
        self.words = np.zeros(1 << 16, np.int64)
        self.meta = np.zeros(slabs.META_SIZE, np.int64)
        self.table = np.zeros(8, np.int64)
        self.old_table = np.zeros(2, np.int64)
        self.row = np.zeros((1, 1), np.int64)
        self.snapshot = np.empty(1 << 15, np.uint8)  # room to pack one in
        self._shape = -1, -1
        self._fixed = self._growth = 0
        self.prepare(1, 1)

    @property
    def arrays(self) -> tuple[Int64s, Int64s, Int64s, Int64s]:
        """What the kernels of slabs.py share."""
        return self.words, self.meta, self.table, self.old_table

    def prepare(self, events: int, kinds: int) -> None:
        """Have room for a batch of so many events, each with an entity of every kind."""
        if (events, kinds) == self._shape:
            return
        self._shape = events, kinds
        size = events * kinds + 1
        self.slots = np.zeros(2 * _power(4 * size), np.int64)
        self.entities = np.empty((size, 4), np.int64)
        self.after = np.empty((events, kinds), np.int64)
        self.sizes, self.pieces, self.items, self.outcome, self.long, self.ends = np.empty(
            (6, size), np.int64
        )
        self.tails = np.empty((size, wire.TAIL_SIZE), np.int64)

    def serve(self, features: FeatureSet) -> None:
        """Unfold values of another plan from now on."""
        plan = features.plan.entities
        fixed = plan[:, ledger.E_FIXED] + plan[:, ledger.E_FIXED_N] + 2 * plan[:, ledger.E_GROWTH]
        self._fixed = int((fixed + features.plan.running[:, ledger.T_WORDS]).max(initial=8))
        self._growth = int(plan[:, ledger.E_GROWTH].sum())
        self.row = blank(features)[np.newaxis]

    def begin(self, count: int, size: int, events: int) -> None:
        """Have room for so many values of `size` bytes together, and for what a batch adds to them."""
        needed = 4 * (size + (count + 16) * (self._fixed + 64) * 2 + events * 2 * self._growth)
        if len(self.words) < needed:
            self.words = np.zeros(2 * needed, np.int64)
        if len(self.table) < 8 * count:
            self.table = np.zeros(2 * _power(4 * count), np.int64)


def _power(least: int) -> int:
    """The power of two that is at least so large."""
    return 1 << max(3, (least - 1).bit_length())
