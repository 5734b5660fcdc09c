"""What each event moved, kept as long as it can be labelled, released or followed: a ring of int64 rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from riskengine.features import FeatureSet, Touches
from riskengine.ledger import E_RECORD, E_WIDTH, EVENT, FRAUD, RECORD_MASK, Int64s
from riskengine.stores import slabs as kernels

TRACE_ROWS_MIN: Final = 1 << 10


@dataclass(frozen=True, slots=True)
class Trace:
    """What one event moved, free of any plan: entity to its key and the cells moved, and what is held."""

    keys: Mapping[str, int]
    moved: Mapping[str, frozenset[tuple[object, ...]]]
    holds: Mapping[str, tuple[int, int]]  # limit to bucket, amount


def exclude(features: FeatureSet, touches: Touches, moved: Trace) -> None:
    """Take from a lone event's record what the event it follows has moved already."""
    for e, name in enumerate(features.entities):
        if moved.keys.get(name) != int(touches.keys[0, e]):
            continue
        for c, spec in enumerate(features.specs[e]):
            if spec.key in moved.moved[name]:
                touches.masks[0, e] &= ~(1 << c)
        if features.plan.entities[e, E_WIDTH]:
            at = int(features.plan.entities[e, E_RECORD]) + RECORD_MASK
            touches.records[0, at] = touches.masks[0, e] & features.plan.kinds[EVENT, e]


def exclude_all(features: FeatureSet, touches: Touches) -> None:
    """Let a batch move nothing: its events have been counted before."""
    touches.masks[:] = 0
    for row in features.plan.entities.tolist():
        if row[E_WIDTH]:
            touches.records[:, row[E_RECORD] + RECORD_MASK] = 0


@dataclass(eq=False, slots=True)
class Traces:
    """A ring of int64 rows, one an event, laid out by one FeatureSet."""

    features: FeatureSet
    first: int  # number of the oldest row kept
    next: int
    rows: Int64s
    labelled: bool = field(init=False)
    at_masks: int = field(init=False)
    at_records: int = field(init=False)
    at_holds: int = field(init=False)

    HEAD = 2  # time, event hash

    def __post_init__(self) -> None:
        entities = len(self.features.specs)
        self.labelled = bool(self.features.plan.kinds[FRAUD:].any())
        self.at_masks = self.HEAD + entities
        self.at_records = self.at_masks + entities
        self.at_holds = self.at_records + (self.features.record_words if self.labelled else 0)
        width = self.at_holds + 2 * len(self.features.limit_names)
        if self.rows.shape[1] != width:
            self.rows = np.empty((TRACE_ROWS_MIN, width), np.int64)

    def append(self, touches: Touches, holds: Int64s) -> int:
        """Keep a batch; return the number of its first row."""
        n = len(holds)
        while self.next + n - self.first > len(self.rows):
            grown = np.empty((2 * len(self.rows), self.rows.shape[1]), np.int64)
            numbers = np.arange(self.first, self.next)
            grown[numbers % len(grown)] = self.rows[numbers % len(self.rows)]
            self.rows = grown
        at = self.next % len(self.rows)
        if at + n > len(self.rows):  # a batch does not wrap: go on at the start of the ring
            self.next += len(self.rows) - at
            return self.append(touches, holds)
        batch = touches.batch
        kernels.remember(
            self.rows,
            at,
            batch.time,
            batch.event_hash.view(np.int64),
            touches.keys,
            touches.masks,
            touches.records,
            self.labelled,
            holds,
        )
        self.next += n
        return self.next - n

    def row(self, number: int) -> Int64s | None:
        """One row, to be read and changed in place; None when it is gone."""
        if not self.first <= number < self.next:
            return None
        row: Int64s = self.rows[number % len(self.rows)]
        return row

    def holds(self, row: Int64s) -> Int64s:
        """Bucket and amount (L, 2) of a row."""
        return row[self.at_holds :].reshape(-1, 2)
