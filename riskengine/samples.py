"""Rows with what became of them: features and labels side by side, each label with when it became known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from riskengine.errors import RiskEngineError
from riskengine.event import Label
from riskengine.rows import Rows

Int64s = NDArray[np.int64]
Bools = NDArray[np.bool_]

NEVER: Final = 2**63 - 1


class TrainingError(RiskEngineError):
    """Data that a model cannot be trained on or judged by, and why."""


@dataclass(frozen=True, eq=False, slots=True)
class Samples:
    """Rows (n) by time; `fraud` (n) as the latest label says; `known_ms` (n), NEVER where there is none."""

    rows: Rows
    fraud: Bools
    known_ms: Int64s

    def __len__(self) -> int:
        """How many rows, labelled or not."""
        return len(self.rows)

    @property
    def times(self) -> Int64s:
        """Event times (n), ms, ascending."""
        return self.rows.times

    def between(self, first_ms: int, end_ms: int, known_by_ms: int = NEVER - 1) -> Int64s:
        """Which rows are of that time, the end not in it, and have a label that was known by then."""
        first, end = np.searchsorted(self.times, [first_ms, end_ms])
        found: Int64s = first + np.flatnonzero(self.known_ms[first:end] <= known_by_ms)
        return found


def join(rows: Rows, labels: Sequence[Label]) -> Samples:
    """Give rows their labels; of several labels of an event the latest counts (`labels` are by time)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    latest = {label.event_id: i for i, label in enumerate(labels)}
    places = np.fromiter(latest.values(), np.int64, len(latest))
    fraud = np.array([label.label == "fraud" for label in labels], bool)[places]
    known = np.array([label.time for label in labels], np.int64)[places]
    at = pc.index_in(rows.ids, value_set=pa.array(list(latest), pa.string()))
    found = pa.chunked_array([at]) if isinstance(at, pa.Array) else at
    index = found.fill_null(-1).to_numpy().astype(np.int64)
    there = index >= 0
    return Samples(
        rows,
        np.where(there, fraud[index], False) if len(fraud) else np.zeros(len(rows), bool),
        np.where(there, known[index], NEVER) if len(known) else np.full(len(rows), NEVER),
    )
