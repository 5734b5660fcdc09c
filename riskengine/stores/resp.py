"""The wire of Redis in numba: requests written into one buffer, replies found in another, nothing copied.

RESP2, as the protocol specification of Redis has it (https://redis.io/docs/latest/develop/reference/protocol-spec).
A reply is one item or an array of items, which is all that our scripts answer; of arrays in an array, as
transactions have them, the items are read as if they were its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from riskengine.kernel import jit
from riskengine.packing import put_bytes

Bytes = NDArray[np.uint8]
Int64s = NDArray[np.int64]

NIL: Final = -1  # lengths of items that are no string
INTEGER: Final = -2  # its value stands where other items have their offset
ERROR: Final = -3  # offset is where its text begins, which CR ends
BROKEN: Final = -1  # instead of a position: this is no RESP2
DIGITS_MAX: Final = 19

STAR, DOLLAR, COLON, MINUS, PLUS, CR, LF = (ord(mark) for mark in "*$:-+\r\n")
ZERO: Final = ord("0")


@jit
def put_int(out: Bytes, at: int, value: int) -> int:
    """Write a number that is not negative in decimal digits; return the position behind it."""
    end = at + digits_of(value)
    for k in range(end - 1, at - 1, -1):
        out[k] = ZERO + value % 10
        value //= 10
    return end


@jit
def digits_of(value: int) -> int:
    """How many decimal digits a number has that is not negative."""
    digits = 1
    while value > 9:
        digits += 1
        value //= 10
    return digits


@jit
def put_line(out: Bytes, at: int, mark: int, value: int) -> int:
    """Write a header: STAR before an array's size, DOLLAR before a string's."""
    out[at] = mark
    at = put_int(out, at + 1, value)
    out[at] = CR
    out[at + 1] = LF
    return at + 2


@jit
def put_end(out: Bytes, at: int) -> int:
    """End a string."""
    out[at] = CR
    out[at + 1] = LF
    return at + 2


@jit
def put_bulk(out: Bytes, at: int, data: Bytes, start: int, size: int) -> int:
    """Write data[start : start + size] as a string of RESP."""
    at = put_line(out, at, DOLLAR, size)
    return put_end(out, put_bytes(out, at, data, start, size))


@jit
def number_at(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """The number on the line from data[at] on, and where the next line begins.

    0 there says that the line has not come whole, BROKEN that it holds no number.
    """
    sign = 1
    if at < end and data[at] == MINUS:
        sign = -1
        at += 1
    value = 0
    digits = 0
    while at < end and data[at] != CR:
        digit = int(data[at]) - ZERO
        if digit < 0 or digit > 9 or digits == DIGITS_MAX:
            return 0, BROKEN
        value = value * 10 + digit
        digits += 1
        at += 1
    if at + 1 >= end:
        return 0, 0
    if digits == 0 or data[at + 1] != LF:
        return 0, BROKEN
    return sign * value, at + 2


@jit
def scan(
    data: Bytes, at: int, end: int, offsets: Int64s, lengths: Int64s, done: int, total: int
) -> tuple[int, int, int]:
    """Find the items of one reply in data[at:end]; return how far it was read, how many, of how many.

    Called again with what it returned when more has come. A `total` of -1 says that the reply has not begun;
    one larger than the tables have room for is returned at once, to be called again with larger ones.
    """
    while total < 0 or done < total:
        if total > len(offsets):
            return at, done, total
        if at >= end:
            break
        mark = data[at]
        if mark == MINUS or mark == PLUS:
            stop = at + 1
            while stop < end and data[stop] != CR:
                stop += 1
            if stop + 1 >= end:
                break
            if data[stop + 1] != LF:
                return BROKEN, done, total
            total = max(total, 1)
            if total > len(offsets):
                return at, done, total
            offsets[done] = at + 1
            lengths[done] = ERROR if mark == MINUS else stop - at - 1
            done += 1
            at = stop + 2
            continue
        value, after = number_at(data, at + 1, end)
        if after == BROKEN:
            return BROKEN, done, total
        if after == 0:
            break
        if mark == STAR:
            total = max(value, 0) + max(total - 1, 0)
            at = after
            continue
        total = max(total, 1)
        if total > len(offsets):
            return at, done, total
        if mark == COLON:
            offsets[done] = value
            lengths[done] = INTEGER
        elif mark == DOLLAR and value < 0:
            offsets[done] = after
            lengths[done] = NIL
        elif mark == DOLLAR:
            if after + value + 2 > end:
                break
            if data[after + value] != CR or data[after + value + 1] != LF:
                return BROKEN, done, total
            offsets[done] = after
            lengths[done] = value
            after += value + 2
        else:
            return BROKEN, done, total
        done += 1
        at = after
    return at, done, total


@jit
def scan_all(
    data: Bytes,
    at: int,
    end: int,
    offsets: Int64s,
    lengths: Int64s,
    done: int,
    total: int,
    firsts: Int64s,
    read: int,
    replies: int,
) -> tuple[int, int, int, int]:
    """`scan` of several replies, one behind the other: `firsts` gets the number of the first item of each.

    Returns what `scan` does, where `total` is of the reply at hand, and how many replies are `read`.
    """
    while read < replies:
        first = done if total < 0 else firsts[read]
        firsts[read] = first
        at, items, total = scan(data, at, end, offsets[first:], lengths[first:], done - first, total)
        done = first + items
        if at == BROKEN or total < 0 or items < total:
            return at, done, total, read
        read += 1
        total = -1
    return at, done, total, read


@jit
def first_error(lengths: Int64s, firsts: Int64s, replies: int) -> int:
    """The first of so many replies that may be an error; their number where none is.

    NumPy would let go of the interpreter to look at so many, and have to wait for it.
    """
    for k in range(replies):
        if firsts[k] < len(lengths) and lengths[firsts[k]] == ERROR:
            return k
    return replies


def command(words: Iterable[bytes | str | int]) -> bytes:
    """A command off the hot path."""
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def split(requests: bytes) -> Iterator[list[bytes]]:
    """The words of each command of RESP."""
    at = 0
    while at < len(requests):
        start = requests.index(b"\n", at) + 1
        words, count = [], int(requests[at + 1 : start])
        at = start
        for _ in range(count):
            start = requests.index(b"\n", at) + 1
            end = start + int(requests[at + 1 : start])
            words.append(requests[start:end])
            at = end + 2
        yield words


def bulk(data: bytes) -> bytes:
    """A string of RESP."""
    return b"$%d\r\n%b\r\n" % (len(data), data)


def as_array(data: bytes) -> Bytes:
    """Bytes as kernels take them."""
    return np.frombuffer(bytearray(data) + b"\0", np.uint8)[:-1]
