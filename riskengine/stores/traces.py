"""What each event moved, kept as long as it can be labelled, released or followed: rows of int64."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from riskengine.features import FeatureSet, Touches
from riskengine.ledger import E_RECORD, E_WIDTH, EVENT, FRAUD, RECORD_MASK, Int64s

BLOCK_ROWS: Final = 1 << 12
FOLLOWS_MAX: Final = 32  # how far a chain of follow-ups is walked back


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
    """Rows of int64, one an event, laid out by one FeatureSet: time, event hash, keys, masks, records, holds.

    They lie in blocks, so that nothing moves when there are more, and the oldest go a block at a time.
    """

    features: FeatureSet
    first: int  # number of the oldest row kept
    next: int = field(init=False)
    blocks: deque[Int64s] = field(init=False)
    begin: int = field(init=False)  # number of the first row of the first block
    labelled: bool = field(init=False)
    at_masks: int = field(init=False)
    at_records: int = field(init=False)
    at_holds: int = field(init=False)
    width: int = field(init=False)

    HEAD = 2  # time, event hash

    def __post_init__(self) -> None:
        self.next = self.begin = self.first
        self.blocks = deque()
        entities = len(self.features.specs)
        self.labelled = bool(self.features.plan.kinds[FRAUD:].any())
        self.at_masks = self.HEAD + entities
        self.at_records = self.at_masks + entities
        self.at_holds = self.at_records + (self.features.record_words if self.labelled else 0)
        self.width = self.at_holds + 2 * len(self.features.limit_names)

    def take(self, n: int) -> tuple[Int64s, int]:
        """Rows for a batch of n, at most BLOCK_ROWS: where they lie, and the number of the first."""
        end = self.begin + BLOCK_ROWS * len(self.blocks)
        if self.next + n > end or not self.blocks:  # a batch lies in one block
            self.blocks.append(np.empty((BLOCK_ROWS, self.width), np.int64))
            self.next = end
        number = self.next
        self.next += n
        at = (number - self.begin) % BLOCK_ROWS
        return self.blocks[-1][at : at + n], number

    def fill(self, rows: Int64s, touches: Touches) -> None:
        """Write what a batch moved into its rows; what it holds is left to be written."""
        rows[:, 0], rows[:, 1] = touches.batch.time, touches.batch.event_hash.view(np.int64)
        rows[:, self.HEAD : self.at_masks] = touches.keys
        rows[:, self.at_masks : self.at_masks + touches.masks.shape[1]] = touches.masks
        if self.labelled:
            rows[:, self.at_records : self.at_holds] = touches.records

    def row(self, number: int) -> Int64s | None:
        """One row, to be read and changed in place; None when it is gone."""
        if not self.first <= number < self.next:
            return None
        block, at = divmod(number - self.begin, BLOCK_ROWS)
        row: Int64s = self.blocks[block][at]
        return row

    def drop(self, number: int) -> None:
        """Forget every row up to this one."""
        self.first = max(self.first, min(number + 1, self.next))
        while self.blocks and self.begin + BLOCK_ROWS <= self.first:
            self.blocks.popleft()
            self.begin += BLOCK_ROWS

    def holds(self, row: Int64s) -> Int64s:
        """Bucket and amount (L, 2) of a row."""
        return row[self.at_holds :].reshape(-1, 2)
