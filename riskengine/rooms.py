"""Rooms: the arrays that batches are made and judged in, kept by each thread and fiber for its next batch.

To make them for each batch took a sixteenth of what it takes to score. The rooms of all sizes share a
memory, as a thread has one batch at a time; that of a lone event has its own, which whoever it is handed to
may bind calls to.
"""

from __future__ import annotations

import math
import threading
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

P = TypeVar("P")  # the policy
R = TypeVar("R")

ROOM_MAX: Final = 64  # events of a batch that has a room; larger ones make their arrays
ALIGNED: Final = 64  # bytes: a cache line


class Empty(Protocol):
    """What makes arrays: np.empty, or that of an arena."""

    def __call__(self, shape: Any, dtype: Any = ..., /) -> NDArray[Any]:
        """An array of anything."""


class Arena:
    """One memory that arrays are cut from, one behind the other."""

    def __init__(self, size: int) -> None:
        self.used = 0  # bytes, also of what found no place
        self._memory = np.empty(size + ALIGNED, np.uint8)
        self._first = -self._memory.ctypes.data % ALIGNED

    def empty(self, shape: Any, dtype: Any = np.float64, /) -> NDArray[Any]:
        """As np.empty."""
        kind = np.dtype(dtype)
        size = kind.itemsize * (math.prod(shape) if isinstance(shape, tuple) else shape)
        at = self._first + self.used
        self.used += -(-size // ALIGNED) * ALIGNED
        if at + size > len(self._memory):
            return np.empty(shape, kind)
        cut: NDArray[Any] = self._memory[at : at + size].view(kind).reshape(shape)
        return cut

    def begin(self) -> None:
        """Cut from the beginning again: what was cut before is not used at the same time."""
        self.used = 0


class Rooms(threading.local, Generic[P, R]):
    """The rooms of a thread, or of a fiber (`fibers.mine`), by the number of events."""

    def __init__(self) -> None:
        self._policy: P | None = None
        self._rooms: dict[int, R] = {}
        self._arena = Arena(0)

    def make(self, policy: P, n: int, empty: Empty) -> R:
        """A room for n events."""
        raise NotImplementedError

    def of(self, policy: P, n: int) -> R:
        """The room for n events, ROOM_MAX at most; what is in it is good until the next is asked for."""
        if self._policy is not policy:
            self._begin(policy)
        room = self._rooms.get(n)
        if room is None:
            self._arena.begin()
            room = self._rooms[n] = self.make(policy, n, np.empty if n == 1 else self._arena.empty)
        return room

    def _begin(self, policy: P) -> None:
        self._policy, self._rooms = policy, {}
        largest = Arena(0)
        self.make(policy, ROOM_MAX, largest.empty)
        self._arena = Arena(largest.used)
