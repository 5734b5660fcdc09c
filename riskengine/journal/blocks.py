"""Decided events in blocks of bytes: what a batch leaves to the journal, written by a kernel, and read back.

A block is a head (names that its records speak of by number), offsets, and a record an event. A record is
MessagePack: [decision as JSON, kind, event, row, trace, content]. `kind` is twice the number of the event's
type, plus 1 where the event brought no time; None in a record that names everything itself. A hash is an
extension of type 1, 8 bytes. One block a batch costs a tenth of one row an event (39 us an event, of masking
and encoding in Python, binding and stepping).
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from riskengine.entries import Entry
from riskengine.kernel import Call, Holder, jit, jit_inline, word_in
from riskengine.packing import put_bytes

Bytes = NDArray[np.uint8]
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
Words = NDArray[np.uint64]
Float64s = NDArray[np.float64]

# What is done with a field's value.
KEPT, NUMBER, BOOL, TIME, PLACE, HASHED, UNKNOWN = range(7)
HASH_EXT: Final = 1
_PLACES: Final = struct.Struct("<II")
# Eight bytes as an int64: a newline in each, a 1 in each, and the highest bit of each.
NEWLINES: Final = 0x0A0A0A0A0A0A0A0A
ONES: Final = 0x0101010101010101
HIGHS: Final = 0x8080808080808080 - (1 << 64)


class Head(msgspec.Struct, frozen=True, gc=False):
    """What the records of a block leave out: the names of fields and of event types."""

    names: tuple[str, ...] = ()
    types: tuple[str, ...] = ()


class Block(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Decided events on their way into the journal, first to last. `sealed`: see sealing.py."""

    ids: list[str]
    at_ms: int  # when the first of them was judged, ...
    until_ms: int  # ... and the last
    body: bytes
    sealed: bytes | None = None


class Record(NamedTuple):
    """Events that were decided together: with others that have the same head they make one block."""

    head: bytes
    body: bytes
    ends: list[int]  # in it, of each
    at_ms: int  # when the first was judged, ...
    until_ms: int  # ... and the last


class Pending(Protocol):
    """Decided events that wait for the writer (served.py)."""

    @property
    def event_ids(self) -> Sequence[str]:
        """What they are ids of."""

    @property
    def record(self) -> Record | None:
        """What there is to join to others; None where they are to be a block of their own."""

    def block(self) -> Block:
        """The block, of as many events and in the order of `event_ids`; the same from any thread."""


class Arrays(NamedTuple):
    """What `write_records` takes of a batch of n events; see `served.Served`."""

    lines: Bytes  # their decisions as lines of JSON
    fields: Int32s  # (types, most fields of any, 3): number of the name, what is done, column
    counts: Int32s  # (types): fields
    type_index: Int32s
    stamped: NDArray[np.bool_]
    numbers: Float64s
    str_off: Int64s
    str_len: Int32s
    str_hash: Words
    text: Bytes
    extras: Bytes  # MessagePack of the undeclared fields, names and values, one event after another
    extra_ends: Int64s
    extra_counts: Int64s
    row: Int64s  # places of a row: a column of cells, or -1 - a column of the strings below
    cells: Float64s  # (columns of numbers in a row, n)
    seen_off: Int64s
    seen_len: Int32s
    seen_hash: Words
    seen_text: Bytes
    layout: Bytes  # MessagePack of the fingerprint of the features' plan
    marks: Words
    keys: Words
    masks: Int64s
    now: Int64s
    content: Words


def pack_head(names: Sequence[str], types: Sequence[str]) -> bytes:
    """The head of blocks under one policy."""
    return msgspec.msgpack.encode(Head(tuple(names), tuple(types)))


def pack(arrays: Arrays) -> tuple[bytes, list[int]]:
    """The records of a batch, and where each ends."""
    offsets = np.zeros(len(arrays.type_index) + 1, np.uint32)
    out = np.empty(room_for(arrays), np.uint8)
    used = writing(arrays, out, offsets, partial)()
    return out[:used].tobytes(), offsets[1:].tolist()


def room_for(arrays: Arrays) -> int:
    """How many bytes the records of a batch take at most."""
    a_record = (
        64
        + 32 * arrays.fields.shape[1]
        + 32 * len(arrays.row)
        + len(arrays.layout)
        + 24 * arrays.keys.shape[1]
    )
    strings = int(arrays.str_len.sum()) + arrays.str_len.size  # of an absent one the length is -1
    texts = len(arrays.lines) + len(arrays.extras) + strings
    return texts + len(arrays.type_index) * int(a_record)


def writing(arrays: Arrays, out: Bytes, offsets: NDArray[np.uint32], hold: Holder) -> Call:
    """The call that writes a batch's records into `out`, and where each begins; it returns the bytes used."""
    narrow = np.empty(1, np.float32)
    wide = np.empty(1, np.float64)
    return hold(
        write_records, *arrays, out, offsets, narrow, narrow.view(np.uint32), wide, wide.view(np.uint64)
    )


def join(ids: Sequence[str], records: Sequence[Record]) -> Block:
    """A block of records that all have one head."""
    head = records[0].head
    places = [0]
    for record in records:
        start = places[-1]
        places += [start + end for end in record.ends]
    parts = [_PLACES.pack(len(ids), len(head)), head, np.array(places, np.uint32).tobytes()]
    body = b"".join([*parts, *[record.body for record in records]])
    at_ms = min([record.at_ms for record in records])
    return Block(list(ids), at_ms, max([record.until_ms for record in records]), body)


def pack_entries(entries: Sequence[Entry]) -> Block:
    """A block of entries, by plain Python. What JSON and MessagePack cannot say of an event is named."""
    head = msgspec.msgpack.encode(Head())
    records = [
        msgspec.msgpack.encode(
            (
                entry.decision,
                None,
                msgspec.Raw(_event_bytes(entry.event)),
                msgspec.Raw(entry.row or b"\x90"),
                msgspec.Raw(entry.trace or b"\xc0"),
                entry.content,
            )
        )
        for entry in entries
    ]
    offsets = np.cumsum([0, *map(len, records)], dtype=np.uint32)
    times = [entry.event_time_ms for entry in entries]
    body = b"".join((_PLACES.pack(len(records), len(head)), head, offsets.tobytes(), *records))
    return Block([entry.event_id for entry in entries], min(times), max(times), body)


def unpack(
    body: bytes, seq: int | None, only: int | None = None, dropped: Container[int] = ()
) -> Iterator[Entry]:
    """The entries of a block whose first is numbered `seq`: all but those dropped, or `only` one."""
    n, size = _PLACES.unpack_from(body)
    start = _PLACES.size + size
    head = _HEADS.decode(body[_PLACES.size : start])
    offsets = np.frombuffer(body, "<u4", n + 1, start).tolist()
    start += 4 * (n + 1)
    for i in range(n) if only is None else (only,):
        if i not in dropped:
            record = _RECORDS.decode(body[start + offsets[i] : start + offsets[i + 1]])
            yield _entry(head, record, 0 if seq is None else seq + i)


def ids_of(body: bytes, dropped: Mapping[int, str]) -> list[str]:
    """The ids of all events of a block, of those dropped too."""
    kept = unpack(body, None, dropped=dropped)
    return [dropped[i] if i in dropped else next(kept).event_id for i in range(count(body))]


def pack_dropped(dropped: Mapping[int, str]) -> bytes:
    """Which places of a block are no entries, as these events had been decided before, and their ids."""
    return msgspec.msgpack.encode(dropped)


def dropped_of(packed: bytes | None) -> dict[int, str]:
    """What `pack_dropped` packed. A journal that is older has no ids of them: they are empty here."""
    found = _DROPPED.decode(packed) if packed else {}
    return found if isinstance(found, dict) else dict.fromkeys(found, "")


def without(body: bytes, dropped: Container[int]) -> bytes:
    """A block in which nothing is left of some of its records but their places."""
    n, size = _PLACES.unpack_from(body)
    start = _PLACES.size + size
    offsets = np.frombuffer(body, "<u4", n + 1, start).tolist()
    first = start + 4 * (n + 1)
    records = [
        b"" if i in dropped else body[first + at : first + end]
        for i, (at, end) in enumerate(pairwise(offsets))
    ]
    places = np.cumsum([0, *map(len, records)], dtype=np.uint32)
    return b"".join((body[:start], places.tobytes(), *records))


def pack_row(values: Iterable[float | str | None]) -> bytes:
    """A feature row (float64 with NaN for missing, or strings) as MessagePack, bit for bit."""
    return msgspec.msgpack.encode(list(values))


def unpack_row(row: bytes) -> list[float | str | None]:
    """What `pack_row` packed, or the kernel."""
    return msgspec.msgpack.decode(row, type=list[float | str | None])


def count(body: bytes) -> int:
    """How many records a block has, dropped ones too."""
    return int(_PLACES.unpack_from(body)[0])


class _Record(msgspec.Struct, frozen=True, gc=False, array_like=True):
    decision: bytes
    kind: int | None
    event: msgspec.Raw
    row: msgspec.Raw
    trace: msgspec.Raw
    content: bytes


class _Said(msgspec.Struct, frozen=True, gc=False):
    """What is read of a decision."""

    event_id: str
    decision_id: str
    action: str
    risk: float
    policy: str
    flags: tuple[str, ...]
    time: int


def _entry(head: Head, record: _Record, seq: int) -> Entry:
    said = _DECISIONS.decode(record.decision)
    kept = _EVENTS.decode(record.event)
    trace = bytes(record.trace)
    event: dict[str, Any]
    if record.kind is None:
        event = {str(name): value for name, value in kept.items()}
        kind = str(event.get("type", ""))
    else:
        kind = head.types[record.kind >> 1]
        event = {"event_id": said.event_id, "type": kind}
        if not record.kind & 1:
            event["time"] = said.time
        for name, value in kept.items():
            event[head.names[name] if isinstance(name, int) else name] = value
    return Entry(
        event_id=said.event_id,
        decision_id=said.decision_id,
        event_time_ms=said.time,
        type=kind,
        action=said.action,
        risk=said.risk,
        decision=record.decision,
        event=event,
        row=bytes(record.row),
        policy=said.policy,
        features=_layout(trace),
        flags=said.flags,
        trace=trace,
        content=record.content,
        seq=seq,
    )


def _layout(trace: bytes) -> str:
    if trace[:1] != b"\x94":
        return ""
    size = trace[1] - 0xA0 if trace[1] < 0xC0 else trace[2]
    at = 2 if trace[1] < 0xC0 else 3
    return trace[at : at + size].decode()


def _hash_text(code: int, data: memoryview) -> object:
    if code != HASH_EXT:
        raise ValueError(f"an extension of type {code}")
    return f"#{data.hex()}"


def _event_bytes(event: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.msgpack.encode(event)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return msgspec.msgpack.encode({name: _sayable(value) for name, value in event.items()})


def _sayable(value: object) -> object:
    try:
        msgspec.msgpack.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return f"<{type(value).__name__}>"
    return value


# ---- the kernel


@jit_inline
def _put_uint(out: Bytes, at: int, value: np.uint64) -> int:
    """Write an unsigned integer in as few bytes as MessagePack has for it; return where it ends."""
    if value < np.uint64(128):
        out[at] = value
        return at + 1
    if value < np.uint64(256):
        out[at] = 0xCC
        size = 1
    elif value < np.uint64(65_536):
        out[at] = 0xCD
        size = 2
    elif value < np.uint64(4_294_967_296):
        out[at] = 0xCE
        size = 4
    else:
        out[at] = 0xCF
        size = 8
    return _put_bytes(out, at + 1, value, size)


@jit_inline
def _put_bytes(out: Bytes, at: int, value: np.uint64, size: int) -> int:
    """Write the lowest `size` bytes, the highest of them first."""
    for i in range(size):
        out[at + i] = (value >> np.uint64(8 * (size - 1 - i))) & np.uint64(255)
    return at + size


@jit_inline
def _line_end(lines: Bytes, at: int) -> int:
    """Where the line that begins at `at` ends: its newline."""
    while at + 8 <= len(lines):
        mixed = word_in(lines, at) ^ NEWLINES  # a newline is a zero now, ...
        if (mixed - ONES) & ~mixed & HIGHS != 0:  # ... and only a zero borrows (Warren, "Hacker's Delight")
            break
        at += 8
    while lines[at] != 10:
        at += 1
    return at


@jit_inline
def _put_int(out: Bytes, at: int, value: int) -> int:
    if value >= 0:
        return _put_uint(out, at, np.uint64(value))
    out[at] = 0xD3
    return _put_bytes(out, at + 1, np.uint64(value), 8)


@jit_inline
def _put_float(
    out: Bytes, at: int, value: float, narrow: NDArray[np.float32], narrow_bits: NDArray[np.uint32],
    wide: Float64s, wide_bits: Words,
) -> int:  # fmt: skip
    """Write a float64 in 1, 5 or 9 bytes: a small whole number, a float32, or itself. NaN takes 5."""
    wide[0] = value
    if value >= 0.0 and value < 128.0 and wide_bits[0] != np.uint64(1) << np.uint64(63):
        whole = int(value)
        if whole == value:
            out[at] = whole
            return at + 1
    narrow[0] = value
    if narrow[0] == value or value != value:
        out[at] = 0xCA
        bits = np.uint64(0x7FC00000) if value != value else np.uint64(narrow_bits[0])
        return _put_bytes(out, at + 1, bits, 4)
    out[at] = 0xCB
    return _put_bytes(out, at + 1, wide_bits[0], 8)


@jit_inline
def _put_text(out: Bytes, at: int, text: Bytes, off: int, size: int) -> int:
    if size < 32:
        out[at] = 0xA0 + size
        at += 1
    else:
        out[at] = 0xDB
        at = _put_bytes(out, at + 1, np.uint64(size), 4)
    return put_bytes(out, at, text, off, size)


@jit_inline
def _put_count(out: Bytes, at: int, small: int, large: int, n: int) -> int:
    """Write the head of an array or a map of n."""
    if n < 16:
        out[at] = small + n
        return at + 1
    out[at] = large
    return _put_bytes(out, at + 1, np.uint64(n), 2)


@jit_inline
def _whole_characters(text: Bytes, off: int, size: int) -> int:
    """How many of these bytes of UTF-8 are left when a character that was cut at the end is taken off."""
    last = size - 1
    while last >= 0 and last > size - 4 and text[off + last] & 0xC0 == 0x80:
        last -= 1
    if last < 0:
        return 0
    lead = text[off + last]
    length = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    return size if last + length <= size else last


@jit
def write_records(
    lines: Bytes,
    fields: Int32s,
    counts: Int32s,
    type_index: Int32s,
    stamped: NDArray[np.bool_],
    numbers: Float64s,
    str_off: Int64s,
    str_len: Int32s,
    str_hash: Words,
    text: Bytes,
    extras: Bytes,
    extra_ends: Int64s,
    extra_counts: Int64s,
    row: Int64s,
    cells: Float64s,
    seen_off: Int64s,
    seen_len: Int32s,
    seen_hash: Words,
    seen_text: Bytes,
    layout: Bytes,
    marks: Words,
    keys: Words,
    masks: Int64s,
    now: Int64s,
    content: Words,
    out: Bytes,
    offsets: NDArray[np.uint32],
    narrow: NDArray[np.float32],
    narrow_bits: NDArray[np.uint32],
    wide: Float64s,
    wide_bits: Words,
) -> int:
    """Write n records (`Arrays` says of what) into `out`, and where each begins; return the bytes used."""
    at = 0
    line = 0
    extra = 0
    for i in range(len(type_index)):
        offsets[i] = at
        out[at] = 0x96
        end = _line_end(lines, line)
        out[at + 1] = 0xC6
        at = _put_bytes(out, at + 2, np.uint64(end - line), 4)
        at = put_bytes(out, at, lines, line, end - line)
        line = end + 1
        kind = type_index[i]
        at = _put_uint(out, at, np.uint64(2 * kind + (1 if stamped[i] else 0)))

        head = at
        at += 3
        found = 0
        for f in range(counts[kind]):
            name, how, column = fields[kind, f, 0], fields[kind, f, 1], fields[kind, f, 2]
            if how == KEPT or how == HASHED:
                size = str_len[i, column]
                if size < 0:
                    continue
                at = _put_uint(out, at, np.uint64(name))
                if how == KEPT:
                    at = _put_text(out, at, text, str_off[i, column], size)
                else:
                    out[at] = 0xD7
                    out[at + 1] = HASH_EXT
                    at = _put_bytes(out, at + 2, str_hash[i, column], 8)
            else:
                value = numbers[i, column]
                if value != value:
                    continue
                at = _put_uint(out, at, np.uint64(name))
                if how == BOOL:
                    out[at] = 0xC3 if value != 0.0 else 0xC2
                    at += 1
                elif how == PLACE:
                    out[at] = 0x82
                    for k in range(2):
                        out[at + 1] = 0xA3
                        out[at + 2] = 0x6C  # "lat", "lon"
                        out[at + 3] = 0x61 if k == 0 else 0x6F
                        out[at + 4] = 0x74 if k == 0 else 0x6E
                        near = np.floor(numbers[i, column + k] * 10.0 + 0.5) / 10.0
                        out[at + 5] = 0xCB
                        wide[0] = near
                        at = _put_bytes(out, at + 6, wide_bits[0], 8) - 1
                    at += 1
                elif value == np.floor(value) and abs(value) < 9007199254740992.0:
                    at = _put_int(out, at, int(value))
                else:
                    at = _put_float(out, at, value, narrow, narrow_bits, wide, wide_bits)
            found += 1
        at = put_bytes(out, at, extras, extra, extra_ends[i] - extra)
        extra = extra_ends[i]
        out[head] = 0xDE
        _put_bytes(out, head + 1, np.uint64(found + extra_counts[i]), 2)

        at = _put_count(out, at, 0x90, 0xDC, len(row))
        number = 0
        for column in row:
            if column >= 0:
                at = _put_float(out, at, cells[number, i], narrow, narrow_bits, wide, wide_bits)
                number += 1
                continue
            column = -1 - column
            size = seen_len[i, column]
            if size < 0:
                out[at] = 0xC0
                at += 1
            elif size == 0:
                out[at] = 0xB0
                for k in range(16):
                    nibble = (seen_hash[i, column] >> np.uint64(60 - 4 * k)) & np.uint64(15)
                    out[at + 1 + k] = nibble + (np.uint64(48) if nibble < np.uint64(10) else np.uint64(87))
                at += 17
            else:
                off = seen_off[i, column]
                at = _put_text(out, at, seen_text, off, _whole_characters(seen_text, off, size))

        out[at] = 0x94
        at += 1
        at = put_bytes(out, at, layout, 0, len(layout))
        known = 0
        for e in range(len(marks)):
            known += 1 if keys[i, e] != np.uint64(0) else 0
        at = _put_count(out, at, 0x80, 0xDE, known)
        for e in range(len(marks)):
            if keys[i, e] != np.uint64(0):
                at = _put_uint(out, at, marks[e])
                at = _put_uint(out, at, keys[i, e])
        at = _put_count(out, at, 0x90, 0xDC, masks.shape[1])
        for e in range(masks.shape[1]):
            at = _put_int(out, at, masks[i, e])
        at = _put_int(out, at, now[i])

        out[at] = 0xC4
        out[at + 1] = 16
        at += 2
        for k in range(2):
            for b in range(8):  # the lowest byte first: as the array lies in memory
                out[at] = (content[i, k] >> np.uint64(8 * b)) & np.uint64(255)
                at += 1
    offsets[len(type_index)] = at
    return at


_HEADS: Final = msgspec.msgpack.Decoder(Head)
_RECORDS: Final = msgspec.msgpack.Decoder(_Record)
_DROPPED: Final = msgspec.msgpack.Decoder(dict[int, str] | list[int])
_DECISIONS: Final = msgspec.json.Decoder(_Said)
_EVENTS: Final = msgspec.msgpack.Decoder(dict[int | str, Any], ext_hook=_hash_text)
