"""An Arrow batch of events as cells, column by column, without a mapping for each event.

Whatever a column holds, the result is that of `Schema.parse` on the same rows as mappings. Columns of the
types that files have are taken as arrays; any other is read value by value, as one event would be.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from riskengine.definition import Field
from riskengine.hashing import Bytes
from riskengine.intake import (
    BAD,
    TODO,
    Bools,
    Cells,
    Floats,
    Int32s,
    Ints,
    parse_times,
    put_numbers,
    put_texts,
)
from riskengine.reading import ASCII_SPACE, WrongError, read_time, read_value

if TYPE_CHECKING:
    from riskengine.event import Schema

_TIME = Field("time", "time")
_ID = Field("event_id", "string")
_TEXT_TYPES = ("string", "phone", "ip")
_EPOCH = datetime(1970, 1, 1)
_ALL = np.empty(0, np.bool_)  # what `_valid` gives where there is no null


class Rows(Sequence[Mapping[str, object]]):
    """The rows of an Arrow batch as mappings, made when they are asked for; a null is absent."""

    def __init__(self, batch: Any) -> None:
        self._size = int(batch.num_rows)
        self._columns = list(zip(batch.schema.names, batch.columns, strict=True))

    def __len__(self) -> int:
        """How many rows."""
        return self._size

    def __getitem__(self, at: Any) -> Any:
        """One row, or the rows of a slice."""
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(self._size))]
        if not -self._size <= at < self._size:
            raise IndexError(at)
        found = ((name, _value(column[at])) for name, column in self._columns)
        return {name: value for name, value in found if value is not None}

    def undeclared(self, declared: Sequence[Container[str]]) -> list[int]:
        """The rows with a value under a name that is not among those `declared` for the row."""
        found: set[int] = set()
        for name, column in self._columns:
            strange = [i for i, names in enumerate(declared) if name not in names]
            if strange:
                valid = column.is_valid().to_numpy(zero_copy_only=False)
                found.update(i for i in strange if valid[i])
        return sorted(found)

    def __iter__(self) -> Iterator[Mapping[str, object]]:
        """All rows, one after another."""
        return (self[i] for i in range(self._size))


def as_record_batch(events: Any) -> Any:
    """A record batch of a record batch or table. ValueError where two columns have one name."""
    names = events.schema.names
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"more than one column is named {', '.join(twice)}")
    if isinstance(events, pa.Table):
        arrays = [
            pa.concat_arrays(c.chunks) if c.num_chunks else pa.array([], c.type) for c in events.columns
        ]
        return pa.RecordBatch.from_arrays(arrays, names=names)
    return events


class Columns:
    """Fills the cells of a batch of n events; `text` are the bytes of all strings."""

    def __init__(self, schema: Schema, batch: Any, cells: Cells) -> None:
        self._schema = schema
        self._batch = batch
        self._cells = cells
        n = int(batch.num_rows)
        self._state = cells.scratch[:n]
        self._spans = cells.scratch[n : 5 * n].reshape(n, 4)
        self._pieces: list[Bytes] = []
        self._size = 0
        self.ids: list[str] = [""] * n
        self.follows: list[str | None] | None = None

    def fill(self) -> None:
        """Read every column the schema knows; a row with a value of a wrong type is BAD."""
        cells = self._cells
        self._state.fill(TODO)
        self._spans[:] = (0, 0, 0, -1)
        cells.str_off.fill(0)
        cells.str_len.fill(-1)
        cells.numbers.fill(np.nan)
        columns = dict(zip(self._batch.schema.names, self._batch.columns, strict=True))
        for name in columns:
            if pa.types.is_dictionary(columns[name].type):
                columns[name] = columns[name].dictionary_decode()
        self._types(columns.get("type"))
        everyone = np.ones(len(self._schema.types), np.bool_)
        if "event_id" in columns:
            column = self._as_text(columns["event_id"], _ID, everyone)
            self._spans[:, 0], self._spans[:, 1] = self._strings(column)
            self.ids = column.to_pylist()
            np.maximum(self._spans[:, 1], 0, out=self._spans[:, 1])
        if "follows" in columns:
            column = self._as_text(columns["follows"], _ID, everyone)
            self._spans[:, 2], self._spans[:, 3] = self._strings(column)
            said = [text if text and text.strip(ASCII_SPACE) else None for text in column.to_pylist()]
            self.follows = said if any(said) else None
        if "time" in columns:
            self._put(0, *self._times(columns["time"], _TIME, everyone), everyone)
        for name, column in columns.items():
            if name in self._schema.declared:
                field = self._schema.definition.fields[name]
                self._field(column, field, self._schema.declared[name])

    def text(self, room: int) -> Bytes:
        """All strings as one, and `room` bytes more."""
        return np.concatenate((*self._pieces, np.zeros(room, np.uint8)))

    def _types(self, column: Any) -> None:
        self._cells.type_index.fill(0)
        if column is None or not _is_text(column.type) or not _is_utf8(column):
            self._state.fill(BAD)
            return
        coded = column.dictionary_encode()
        known = [self._schema.type_at.get(_value(name), -1) for name in coded.dictionary]
        codes = coded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)
        at = np.array([*known, -1], np.int32)[codes]
        self._state[at < 0] = BAD
        np.maximum(at, 0, out=self._cells.type_index)

    def _field(self, column: Any, field: Field, wanted: Bools) -> None:
        """Put one column where it belongs, in the rows whose event type (bool[types]) declares it."""
        cells, schema = self._cells, self._schema
        if field.type in _TEXT_TYPES:
            data, ends, valid = _layout(self._as_text(column, field, wanted))
            put_texts(
                ends, self._size, valid, wanted, cells.type_index, cells.str_off, cells.str_len,
                schema.string_at[field.name],
            )  # fmt: skip
            self._take(data)
        elif field.type == "location":
            at = schema.number_at[f"{field.name}.lat"]
            lat, lon, valid = self._places(column, field, wanted)
            self._put(at, lat, valid, wanted)
            self._put(at + 1, lon, valid, wanted)
        else:
            read = self._times if field.type == "time" else self._numbers
            self._put(schema.number_at[field.name], *read(column, field, wanted), wanted)

    def _put(self, column: int, found: Floats, valid: Bools, wanted: Bools) -> None:
        """Put numbers where they belong; where one should be (`valid`) and is none, its row is BAD."""
        cells = self._cells
        put_numbers(found, valid, wanted, cells.type_index, self._state, cells.numbers, column)

    def _as_text(self, column: Any, field: Field, wanted: Bools) -> Any:
        """A column of strings; one of another type is read value by value."""
        if _is_text(column.type) and _is_utf8(column):
            return column
        return pa.array(self._slowly(column, field, wanted), pa.large_string())

    def _strings(self, column: Any) -> tuple[Ints, Int32s]:
        """Offset and length (-1: null) of each string of a column, now in `text`."""
        data, ends, valid = _layout(column)
        off, size = ends[:-1] - ends[0] + self._size, np.diff(ends).astype(np.int32)
        if len(valid):
            size[~valid] = -1
        self._take(data)
        return off, size

    def _take(self, data: Bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)

    def _numbers(self, column: Any, field: Field, wanted: Bools) -> tuple[Floats, Bools]:
        """Numbers, nulls as NaN, and which of them must be finite (none given: all)."""
        kind = column.type
        if field.type == "bool" and pa.types.is_boolean(kind):
            return _floats(column.cast(pa.uint8())), _valid(column)
        if field.type == "number" and _is_number(kind):
            return _floats(column), _valid(column)  # a NaN that the column has of its own is a wrong value
        return self._read_slowly(column, field, wanted)

    def _times(self, column: Any, field: Field, wanted: Bools) -> tuple[Floats, Bools]:
        kind = column.type
        if _is_number(kind):
            return _floats(column), _valid(column)
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            ticks = column.cast(pa.int64())
            if kind.unit == "s":
                return _floats(ticks) * 1000.0, _valid(column)
            ms = ticks.fill_null(0).to_numpy() // {"ms": 1, "us": 1_000, "ns": 1_000_000}[kind.unit]
            valid = _valid(column)
            return (np.where(valid, ms, np.nan) if len(valid) else ms.astype(np.float64)), valid
        if _is_text(kind) and _is_utf8(column):
            data, ends, valid = _layout(column)
            size = np.diff(ends).astype(np.int32)
            if len(valid):
                size[~valid] = -1
            out = np.empty(len(self._state))
            state = np.full(len(self._state), TODO)
            parse_times(data.copy(), ends[:-1] - ends[0], size, out, state)
            self._state[wanted[self._cells.type_index] & (state == BAD)] = BAD
            return out, np.zeros(len(out), np.bool_)
        return self._read_slowly(column, field, wanted)

    def _places(self, column: Any, field: Field, wanted: Bools) -> tuple[Floats, Floats, Bools]:
        kind = column.type
        if pa.types.is_struct(kind):
            parts = [kind.field(j).name for j in range(kind.num_fields)]
            if parts.count("lat") == parts.count("lon") == 1:
                flat = dict(zip(parts, column.flatten(), strict=True))
                lat, lon = flat["lat"], flat["lon"]
                if _is_number(lat.type) and _is_number(lon.type):
                    return _floats(lat), _floats(lon), _valid(column)
        places: list[Any] = [place or {} for place in self._slowly(column, field, wanted)]
        nan = float("nan")
        lat_lon = [(place.get("lat", nan), place.get("lon", nan)) for place in places]
        both = np.array(lat_lon, np.float64).reshape(-1, 2)
        return both[:, 0].copy(), both[:, 1].copy(), np.zeros(len(places), np.bool_)

    def _read_slowly(self, column: Any, field: Field, wanted: Bools) -> tuple[Floats, Bools]:
        """Numbers that are looked at one by one; what is wrong with them has been told."""
        found = np.array(self._slowly(column, field, wanted), np.float64)
        return found, np.zeros(len(found), np.bool_)

    def _slowly(self, column: Any, field: Field, wanted: Bools) -> list[Any]:
        """Each value as an event's would be read; None where null, wrong (its row is BAD) or unwanted."""
        values: list[Any] = []
        for i, wants in enumerate(wanted[self._cells.type_index].tolist()):
            value = None
            if wants:
                try:
                    given = _value(column[i])
                    if given is not None:
                        value = read_time(given) if field.type == "time" else read_value(field, given)
                except WrongError:
                    self._state[i] = BAD
            values.append(value)
        return values


def _value(scalar: Any) -> Any:
    """A value as plain Python; a timestamp of nanoseconds rounded down, broken text as its bytes."""
    kind = scalar.type
    if pa.types.is_timestamp(kind) and scalar.is_valid:
        per_s = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[kind.unit]
        try:
            moment = _EPOCH + timedelta(microseconds=scalar.value * 1_000_000 // per_s)
        except OverflowError:
            return scalar.value * 1_000 // per_s  # no year has it: as a number it says so
        return moment if kind.tz is None else moment.replace(tzinfo=UTC)
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes()


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_utf8(column: Any) -> bool:
    """Files may say that bytes are text which are not."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind))


def _valid(column: Any) -> Bools:
    """Which values are no nulls; empty where all are."""
    if column.null_count == 0:
        return _ALL
    return np.array(column.is_valid().to_numpy(zero_copy_only=False))


def _floats(column: Any) -> Floats:
    """Numbers as float64, nulls as NaN."""
    return np.array(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def _layout(column: Any) -> tuple[Bytes, Ints, Bools]:
    """The bytes of a string column, where each string ends (behind where the first begins), and nulls."""
    _validity, offsets, data = column.buffers()
    n = len(column)
    if offsets is None or n == 0:
        return np.zeros(0, np.uint8), np.zeros(n + 1, np.int64), np.zeros(n, np.bool_)
    width = np.int64 if pa.types.is_large_string(column.type) else np.int32
    ends = np.frombuffer(offsets, width)[column.offset : column.offset + n + 1].astype(np.int64)
    used = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
    return used, ends, _valid(column)
