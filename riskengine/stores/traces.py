"""What each event moved, kept as long as it can be labelled, released or followed: rows of int64."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from riskengine.features import FeatureSet, Touches
from riskengine.layout import E_RECORD, E_WIDTH, EVENT, FRAUD, NONE, RECORD_MASK, Int64s

BLOCK_BYTES: Final = 1 << 21  # a huge page
BLOCK_ROWS_MIN: Final = 1 << 10  # a batch
FOLLOWS_MAX: Final = 32  # how far a chain of follow-ups is walked back


@dataclass(frozen=True, slots=True)
class Trace:
    """What one event moved, free of any plan: entity to its key and the cells moved, and what is held."""

    keys: Mapping[str, int]
    moved: Mapping[str, frozenset[tuple[object, ...]]]
    holds: Mapping[str, tuple[int, int]]  # limit to bucket, amount

    def held_in(self, features: FeatureSet) -> tuple[Int64s, Int64s]:
        """What is held in a plan: bucket and amount by limit (L, 2; NONE: nothing), and keys by entity."""
        held = np.full((len(features.limit_names), 2), NONE, np.int64)
        for i, name in enumerate(features.limit_names):
            if name in self.holds:
                held[i] = self.holds[name]
        return held, np.array([self.keys.get(name, 0) for name in features.entities], np.int64)


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
    """Rows of int64, one an event, laid out by one FeatureSet: time, event hash, keys, masks, record, holds.

    Of the record there is what a label may move: the words `kept`. Rows lie in blocks, so that nothing moves
    when there are more, and the oldest go a block at a time.
    """

    features: FeatureSet
    first: int  # number of the oldest row kept
    next: int = field(init=False)
    blocks: deque[Int64s] = field(init=False)
    begin: int = field(init=False)  # number of the first row of the first block
    kept: Int64s = field(init=False)
    at_masks: int = field(init=False)
    at_records: int = field(init=False)
    at_holds: int = field(init=False)
    width: int = field(init=False)
    block_rows: int = field(init=False)

    HEAD = 2  # time, event hash

    def __post_init__(self) -> None:
        self.next = self.begin = self.first
        self.blocks = deque()
        plan = self.features.plan
        entities = len(self.features.specs)
        words = [
            word
            for e, row in enumerate(plan.entities.tolist())
            if plan.kinds[FRAUD:, e].any()
            for word in range(row[E_RECORD], row[E_RECORD] + row[E_WIDTH])
        ]
        self.kept = np.array(words, np.int64)
        self.at_masks = self.HEAD + entities
        self.at_records = self.at_masks + entities
        self.at_holds = self.at_records + len(words)
        self.width = self.at_holds + 2 * len(self.features.limit_names)
        self.block_rows = max(BLOCK_ROWS_MIN, BLOCK_BYTES // (8 * self.width))

    @property
    def labelled(self) -> bool:
        """Whether a label moves anything."""
        return len(self.kept) > 0

    def take(self, n: int) -> tuple[Int64s, int, int]:
        """Rows for a batch of n, at most BLOCK_ROWS_MIN: block, place in it, number of the first."""
        end = self.begin + self.block_rows * len(self.blocks)
        if self.next + n > end or not self.blocks:  # a batch lies in one block
            self.blocks.append(self._block())
            self.next = end
        number = self.next
        self.next += n
        return self.blocks[-1], (number - self.begin) % self.block_rows, number

    def _block(self) -> Int64s:
        """Fresh rows. In pages of 4 KiB a fifth of the time of a busy store went into getting these."""
        size = self.block_rows * self.width * 8
        memory = mmap.mmap(-1, -(-size // BLOCK_BYTES) * BLOCK_BYTES)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(memory, np.int64, size // 8).reshape(self.block_rows, self.width)

    def fill(self, rows: Int64s, touches: Touches) -> None:
        """Write what a batch moved into its rows; what it holds is left to be written."""
        rows[:, 0], rows[:, 1] = touches.batch.time, touches.batch.event_hash.view(np.int64)
        rows[:, self.HEAD : self.at_masks] = touches.keys
        rows[:, self.at_masks : self.at_masks + touches.masks.shape[1]] = touches.masks
        if self.labelled:
            rows[:, self.at_records : self.at_holds] = touches.records[:, self.kept]

    def row(self, number: int) -> Int64s | None:
        """One row, to be read and changed in place; None when it is gone."""
        if not self.first <= number < self.next:
            return None
        block, at = divmod(number - self.begin, self.block_rows)
        row: Int64s = self.blocks[block][at]
        return row

    def record(self, row: Int64s) -> Int64s:
        """The record (record_words) that was kept in a row; the words that no label moves are 0."""
        record = np.zeros(self.features.record_words, np.int64)
        record[self.kept] = row[self.at_records : self.at_holds]
        return record

    def drop(self, number: int) -> None:
        """Forget every row up to this one."""
        self.first = max(self.first, min(number + 1, self.next))
        while self.blocks and self.begin + self.block_rows <= self.first:
            self.blocks.popleft()
            self.begin += self.block_rows

    def holds(self, row: Int64s) -> Int64s:
        """Bucket and amount (L, 2) of a row."""
        return row[self.at_holds :].reshape(-1, 2)
