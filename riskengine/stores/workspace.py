"""Memory that the values of a batch are unfolded in: slabs for as long as one answer is at hand."""

from __future__ import annotations

import numpy as np

from riskengine import ledger
from riskengine.features import FeatureSet
from riskengine.ledger import Int64s
from riskengine.stores import slabs
from riskengine.stores.transition import NOTHING, blank


class Workspace:
    """Memory that values are unfolded in, laid out as that of the in-process store, and used again."""

    def __init__(self) -> None:
        self.words = np.zeros(1 << 16, np.int64)
        self.meta = np.zeros(slabs.META_SIZE, np.int64)
        self.table = np.zeros(8, np.int64)
        self.old_table = np.zeros(2, np.int64)
        self.slots = np.zeros(8, np.int64)
        self.row = np.zeros((1, 1), np.int64)

    @property
    def arrays(self) -> tuple[Int64s, Int64s, Int64s, Int64s]:
        """What the kernels of slabs.py share."""
        return self.words, self.meta, self.table, self.old_table

    def prepare(self, slots: int) -> None:
        """Empty the tables that find `slots` keys."""
        if len(self.slots) != 2 * slots:
            self.slots, self.table = np.zeros(2 * slots, np.int64), np.zeros(2 * slots, np.int64)
        else:
            self.slots[:] = 0

    def begin(self, features: FeatureSet, entities: Int64s, lengths: Int64s, events: int) -> None:
        """Know of nothing, with room for values of these lengths and what a batch adds to them."""
        needed = int(np.maximum(lengths, 0).sum())
        plan = features.plan.entities
        fixed = int(
            (
                plan[:, ledger.E_FIXED]
                + plan[:, ledger.E_FIXED_N]
                + 2 * plan[:, ledger.E_GROWTH]
                + features.plan.running[:, ledger.T_WORDS]
            ).max(initial=8)
        )
        needed = 4 * (
            needed
            + (len(entities) + 16) * (fixed + 64) * 2
            + events * 2 * int(plan[:, ledger.E_GROWTH].sum())
        )
        if len(self.words) < needed:
            self.words = np.zeros(2 * needed, np.int64)
        slots = 8
        while slots < 4 * len(entities):
            slots *= 2
        if len(self.table) < 2 * slots:
            self.table = np.zeros(2 * slots, np.int64)
        self.table[:] = 0
        self.meta[:] = 0
        slabs.lay_out(self.words, self.meta)
        if self.row.shape[1] != features.record_words + len(NOTHING):
            self.row = blank(features)[np.newaxis]
