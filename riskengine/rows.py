"""Rows of features on disk: Parquet with one row an event, written by replay and read by training.

A file says which policy made it and what each of its features meant, so that nothing is trained on, or
judged by, features that are others by now.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from riskengine.card import MODEL_TYPES
from riskengine.compiled import Policy
from riskengine.errors import RiskEngineError, nearest
from riskengine.features import Touches, text_at

if TYPE_CHECKING:
    import pyarrow as pa

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]

GROUP_ROWS: Final = 65_536
ENVELOPE: Final = ("event_id", "type", "time")
BY: Final = "by:"  # before an entity's name: the column of its keys
META: Final = b"riskengine.rows"
MEND: Final = "Make the rows again with riskengine replay."


class RowsError(RiskEngineError):
    """A file of rows that cannot be written or read, or does not hold what is asked of it."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a file of rows says of itself, in its Parquet metadata."""

    policy: str
    policy_fingerprint: str
    timezone: str = "UTC"
    types: Mapping[str, str]  # by feature
    fingerprints: Mapping[str, str]  # by feature: `policy.feature_fingerprint`
    by: tuple[str, ...] = ()  # entities whose keys are there

    @property
    def usable(self) -> list[str]:
        """The features that a model can be asked with."""
        return [name for name, kind in self.types.items() if kind in MODEL_TYPES]


class RowsFile:
    """A file of rows being written: under another name, until it is whole. Leaving on an error drops it.

    `by` names entities whose keyed hashes are written too. Raises RowsError.
    """

    def __init__(self, path: str, policy: Policy, by: Sequence[str] = ()) -> None:
        import pyarrow.parquet as pq

        unknown = [name for name in by if name not in policy.schema.entity_at]
        if unknown:
            near = nearest(unknown[0], policy.schema.entities)
            raise RowsError(
                f"the policy has no entity {unknown[0]}: "
                + (f"did you mean {near}?" if near else f"it has {', '.join(policy.schema.entities)}")
            )
        features = policy.features
        self._path, self._partial = path, f"{path}.partial"
        self._policy = policy
        self._names = features.names
        self._numbers = [name for name in self._names if features.columns[name] >= 0]
        columns = [
            column
            for name in self._numbers
            for column in range(features.columns[name], features.columns[name] + _width(features.types[name]))
        ]
        self._columns = np.array(columns, np.int64)
        self._texts = [name for name in self._names if features.columns[name] < 0]
        self._by = [policy.schema.entity_at[name] for name in by]
        self._schema = _schema(policy, by)
        self.written = 0
        self._begin()
        try:
            self._writer: Any = pq.ParquetWriter(
                self._partial,
                self._schema,
                compression="zstd",
                use_dictionary=["type", *self._texts],  # numbers repeat too little for one to pay
            )
        except OSError as error:
            raise RowsError(f"{path} cannot be written: {error.strerror or error}.") from error

    def write(self, found: Touches) -> None:
        """Add the rows of a batch that is read."""
        batch, at = found.batch, 0
        while at < batch.n:
            n = min(batch.n - at, GROUP_ROWS - self._filled)
            here = slice(self._filled, self._filled + n)
            self._ids += batch.ids[at : at + n]
            self._types[here] = batch.type_index[at : at + n]
            self._times[here] = batch.time[at : at + n]
            self._cells[:, here] = found.cells[self._columns, at : at + n]
            for place, entity in enumerate(self._by):
                self._keys[place, here] = batch.keys[at : at + n, entity]
            for name, texts in self._strings.items():
                column = self._policy.features.layout.string(name)
                texts += [text_at(found.strings, column, i) for i in range(at, at + n)]
            self._filled += n
            at += n
            if self._filled == GROUP_ROWS:
                self._write_group()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the file its name, or drop it."""
        try:
            if kind is None and self._filled:
                self._write_group()
            self._writer.close()
            if kind is None:
                os.replace(self._partial, self._path)
        finally:
            Path(self._partial).unlink(missing_ok=True)

    def _begin(self) -> None:
        self._filled = 0
        self._ids: list[str] = []
        self._types = np.empty(GROUP_ROWS, np.int32)
        self._times = np.empty(GROUP_ROWS, np.int64)
        self._cells = np.empty((len(self._columns), GROUP_ROWS))
        self._keys = np.empty((len(self._by), GROUP_ROWS), np.uint64)
        self._strings: dict[str, list[str | None]] = {name: [] for name in self._texts}

    def _write_group(self) -> None:
        import pyarrow as pa

        n = self._filled
        types = pa.DictionaryArray.from_arrays(self._types[:n], list(self._policy.schema.types))
        arrays = [pa.array(self._ids, pa.string()), types.cast(pa.string()), _times(self._times[:n])]
        at = 0
        for name in self._names:
            if name in self._strings:
                arrays.append(pa.array(self._strings[name], pa.string()))
                continue
            kind = self._policy.features.types[name]
            arrays.append(_array(kind, self._cells[at : at + _width(kind), :n]))
            at += _width(kind)
        arrays += [pa.array(self._keys[place, :n]) for place in range(len(self._by))]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self.written += n
        self._begin()


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """Rows (n) in memory, by time: ids and types, times int64 ms, one float64 column a feature (NaN missing).

    `values` is (n, features), each feature contiguous; `keys` uint64 (n) where an entity was asked for.
    """

    head: Head
    ids: Any  # pa.ChunkedArray of strings
    types: Any  # the same
    times: Int64s
    features: tuple[str, ...]
    values: Float64s
    keys: NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        """How many."""
        return len(self.times)

    def column(self, feature: str) -> Float64s:
        """One feature's values (n)."""
        found: Float64s = self.values[:, self.features.index(feature)]
        return found


def read_head(path: str) -> Head:
    """What a file of rows says of itself. Raises RowsError."""
    with _opened(path) as file:
        return _head(file, path)


def read_rows(
    path: str,
    features: Sequence[str] | None = None,
    by: str | None = None,
    between: tuple[int, int] | None = None,
) -> Rows:
    """Rows by time (ties in the order of the file), with `features` (every number unless said).

    `by` also reads the keys of an entity; `between` takes the times from the first up to the second (ms).
    Raises RowsError.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    with _opened(path) as file:
        head = _head(file, path)
        names = tuple(head.usable if features is None else features)
        for name in names:
            if head.types.get(name) not in MODEL_TYPES:
                raise RowsError(_no_feature(path, name, head))
        if by is not None and by not in head.by:
            raise RowsError(f"{path} has no keys of {by}: write them with riskengine replay --by {by}.")
        wanted = [*ENVELOPE, *names, *([BY + by] if by is not None else [])]
        parts = []
        for group in range(file.num_row_groups):
            if between is not None and not _touches(file, group, between):
                continue
            part = file.read_row_group(group, wanted)
            if between is not None:
                time = part["time"].cast(pa.int64())
                part = part.filter(pc.and_(pc.greater_equal(time, between[0]), pc.less(time, between[1])))
            parts.append(part)
        table = pa.concat_tables(parts) if parts else file.schema_arrow.empty_table().select(wanted)
    times = table["time"].cast(pa.int64()).to_numpy().astype(np.int64)
    if (np.diff(times) < 0).any():
        order = np.argsort(times, kind="stable")
        table, times = table.take(order), times[order]
    values = np.empty((len(names), len(times))).T
    for place, name in enumerate(names):
        values[:, place] = _floats(table[name])
    keys = table[BY + by].to_numpy() if by is not None else None
    return Rows(head, table["event_id"], table["type"], times, names, values, keys)


def _schema(policy: Policy, by: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    types = policy.features.types
    head = Head(
        policy=policy.definition.name,
        policy_fingerprint=policy.fingerprint,
        timezone=policy.definition.timezone,
        types={name: types[name] for name in policy.features.names},
        fingerprints=dict(policy.feature_fingerprints),
        by=tuple(by),
    )
    arrow = {
        "string": pa.string(),
        "bool": pa.bool_(),
        "time": pa.timestamp("ms", "UTC"),
        "location": pa.struct([("lat", pa.float64()), ("lon", pa.float64())]),
    }
    columns = [("event_id", pa.string()), ("type", pa.string()), ("time", pa.timestamp("ms", "UTC"))]
    columns += [(name, arrow.get(types[name], pa.float64())) for name in policy.features.names]
    columns += [(BY + name, pa.uint64()) for name in by]
    return pa.schema(columns, metadata={META: msgspec.json.encode(head)})


def _width(kind: str) -> int:
    return 2 if kind == "location" else 1


def _array(kind: str, cells: Float64s) -> pa.Array:
    """A feature's column; what is missing is null."""
    import pyarrow as pa

    missing = np.isnan(cells[0])
    if kind == "location":
        mask = pa.array(missing) if missing.any() else None
        return pa.StructArray.from_arrays(
            [pa.array(cells[0]), pa.array(cells[1])], names=["lat", "lon"], mask=mask
        )
    if kind == "bool":
        return pa.array(cells[0] != 0.0, mask=missing)
    if kind == "time":
        return pa.array(np.where(missing, 0.0, cells[0]).astype(np.int64), mask=missing).cast(
            pa.timestamp("ms", "UTC")
        )
    return pa.array(cells[0], mask=missing)


def _times(times: Int64s) -> pa.Array:
    import pyarrow as pa

    return pa.array(times).cast(pa.timestamp("ms", "UTC"))


def _floats(column: Any) -> Float64s:
    import pyarrow as pa

    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    found: Float64s = column.cast(pa.float64()).to_numpy()
    return found


def _opened(path: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except OSError as error:
        raise RowsError(f"{path} cannot be read: {error.strerror or 'no such file'}.") from error
    except pa.ArrowException as error:
        raise RowsError(f"{path} is not a Parquet file of rows: {error}. {MEND}") from error


def _head(file: Any, path: str) -> Head:
    said = (file.schema_arrow.metadata or {}).get(META)
    if said is None:
        raise RowsError(f"{path} does not say which policy made it, as rows do. {MEND}")
    try:
        return msgspec.json.decode(said, type=Head)
    except msgspec.DecodeError as error:
        raise RowsError(f"{path}: its metadata cannot be read: {error}. {MEND}") from error


def _touches(file: Any, group: int, between: tuple[int, int]) -> bool:
    """Whether a row group may hold rows of that time."""
    place = file.schema_arrow.get_field_index("time")
    column = file.metadata.row_group(group).column(place)
    if column.statistics is None or not column.statistics.has_min_max:
        return True
    least, most = column.statistics.min, column.statistics.max
    return bool(least.timestamp() * 1000 < between[1] and most.timestamp() * 1000 >= between[0])


def _no_feature(path: str, name: str, head: Head) -> str:
    if name in head.types:
        return f"{path}: {name} is a {head.types[name]}, and a model is asked with numbers: leave it out."
    near = nearest(name, head.usable)
    mend = f"did you mean {near}?" if near else MEND
    return f"{path} has no feature {name}: {mend}"
