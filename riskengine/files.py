"""Event and label files in, decision files out: JSON Lines, Parquet and the standard streams.

Files are streamed, so that their size does not matter. Nothing is dropped in silence: whatever cannot be
read is a `Reject` with its file, its line and the reason.
"""

from __future__ import annotations

import base64
import errno
import io
import os
import re
import shutil
import stat
import sys
import tempfile
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from riskengine import normal
from riskengine.definition import LABELS
from riskengine.errors import EventError, Problem, RiskEngineError, nearest
from riskengine.event import Label, decode_line
from riskengine.hashing import as_bytes

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_EVENTS = 1_024
LINE_BYTES_MAX = 1 << 20  # an event is a few hundred bytes; a file without line ends must not fill the memory
BLOCK_BYTES = 1 << 20
ROW_GROUP_ROWS = 16_384

JSON_LINES = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")

SPREAD = re.compile(rb'\s*\{\s*\n\s*"')  # as editors and `jq .` lay out an object

Event = Mapping[str, Any]


class FileError(RiskEngineError):
    """A file that cannot be read or written as a whole."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A line (JSON Lines) or row (Parquet), both counted from 1, that could not be used. `raw`: verbatim."""

    file: str
    line: int
    reason: str
    raw: bytes

    def __str__(self) -> str:
        """As people read it: `file:line: reason`."""
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some events of a file, in its order, with the line and the verbatim bytes of each.

    From Parquet `columns` is the Arrow record batch itself, and mappings are made only where asked for.
    """

    file: str
    events: Sequence[Event]
    lines: Sequence[int]
    raw: Sequence[bytes]
    columns: pa.RecordBatch | None = None

    def __len__(self) -> int:
        """How many events."""
        return len(self.events)

    def times(self) -> list[int | None]:
        """Epoch ms of each event, None where it is absent or cannot be read."""
        if self.columns is None:
            return [parse_time(event.get("time")) for event in self.events]
        if "time" not in self.columns.schema.names:
            return [None] * len(self)
        return [parse_time(time) for time in self.columns.column("time").to_pylist()]

    def now(self, latest_ms: int) -> NDArray[np.int64]:
        """The running maximum of event time, epoch ms for each event; `latest_ms` is what it was before."""
        known = [latest_ms if time is None else time for time in self.times()]
        return np.maximum.accumulate(np.maximum(np.array(known, np.int64), latest_ms))

    def part(self, start: int, stop: int) -> Chunk:
        """The events from `start` up to `stop`."""
        columns = self.columns.slice(start, stop - start) if self.columns is not None else None
        return Chunk(
            self.file, self.events[start:stop], self.lines[start:stop], self.raw[start:stop], columns
        )

    def reject(self, index: int, reason: str) -> Reject:
        """Why the event at `index` could not be used."""
        return Reject(self.file, self.lines[index], reason, self.raw[index])


@dataclass(slots=True)
class Progress:
    """How much of the input is read, in whatever unit the input has; `total` is None for a stream."""

    done: int = 0
    total: int | None = None


class Rejects(AbstractContextManager["Rejects"]):
    """Where rejects go: counted, the first few kept to be shown, all of them into a file if there is one.

    The file has JSON Lines: {"file", "line", "reason", "raw"}, or "raw_base64" where a line is not UTF-8.
    """

    SHOWN = 10

    def __init__(self, path: str | None = None) -> None:
        self.count = 0
        self.first: list[Reject] = []
        self._file: BinaryIO | None = _create(path) if path is not None else None

    def add(self, reject: Reject) -> None:
        """Take one."""
        self.count += 1
        if len(self.first) < self.SHOWN:
            self.first.append(reject)
        if self._file is not None:
            said: dict[str, Any] = {"file": reject.file, "line": reject.line, "reason": reject.reason}
            try:
                said["raw"] = reject.raw.decode()
            except UnicodeDecodeError:
                said["raw_base64"] = base64.b64encode(reject.raw).decode()
            self._file.write(msgspec.json.encode(said) + b"\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def read_events(
    path: str,
    rejects: Callable[[Reject], None],
    *,
    sort: bool = False,
    size: int = CHUNK_EVENTS,
    progress: Progress | None = None,
) -> Iterator[Chunk]:
    """The events of a file (`-` is standard input, as JSON Lines) in chunks of at most `size`.

    A pipe gives what it has: a chunk does not wait to be full. With `sort` they come by their `time`,
    those of equal time (and first of all those without one) in the order of the file.
    Raises FileError; what is wrong with one line goes to `rejects`.
    """
    progress = progress if progress is not None else Progress()
    kind = _format_of(path)
    if kind == "parquet":
        yield from _parquet(path, rejects, sort, size, progress)
        return
    name = "<stdin>" if path == "-" else path
    with _open_lines(path, sort) as source:
        progress.total = _size_of(source)
        lines = _sorted_lines(source, name, progress) if sort else _lines(source, name, progress)
        yield from _chunks(lines, name, rejects, size)


def read_labels(
    path: str, rejects: Callable[[Reject], None], moving: Collection[str] | None = None
) -> list[Label]:
    """The labels of a file, by time; those of equal time in the order of the file.

    With `moving`, only labels of events that have one of these: nearly all labels say that nothing was
    wrong, and where nothing counts them 1.75M need 600 MB for nothing. The file is then read twice.
    Raises FileError; what is wrong with one line goes to `rejects`.
    """
    moved = None if moving is None or path == "-" else _events_labelled(path, moving)
    labels: list[Label] = []
    for chunk in read_events(path, rejects):
        for i, said in enumerate(chunk.events):
            if moved is not None and said.get("label") in LABELS and said.get("event_id") not in moved:
                continue
            try:
                label = Label.parse(said)
            except EventError as error:
                rejects(chunk.reject(i, str(error)))
                continue
            if label.time is None:
                rejects(chunk.reject(i, "/time: a label in a file says when it became known"))
            else:
                labels.append(label)
    return sorted(labels, key=_known_ms)


def merge(
    chunks: Iterable[Chunk], labels: Sequence[Label], moving: Collection[str] = LABELS
) -> Iterator[Chunk | Label]:
    """Labels among the events: each goes in before the first event strictly later than it.

    `labels` are by time. What is left of them comes after the last event. Labels that are not `moving` (no
    feature counts them) and take back none that was wait for the end of their chunk, in order: batches cut
    at each of as many labels as events took 8 minutes for what takes one without the needless cuts.
    """
    due = 0
    moved: set[str] = set()
    for chunk in chunks:
        start = 0
        quiet = due
        if due < len(labels):
            for i, time_ms in enumerate(chunk.times()):
                while time_ms is not None and due < len(labels) and _known_ms(labels[due]) < time_ms:
                    label = labels[due]
                    due += 1
                    if label.label in moving or label.event_id in moved:
                        moved.add(label.event_id)
                        if i > start:
                            yield chunk.part(start, i)
                        yield from labels[quiet:due]
                        start, quiet = i, due
        if start < len(chunk):
            yield chunk.part(start, len(chunk)) if start else chunk
        yield from labels[quiet:due]
    yield from labels[due:]


def parse_time(value: object) -> int | None:
    """An event's `time` as epoch ms, or None where it is absent or cannot be read."""
    if type(value) is int:
        return value if normal.TIME_MIN_MS <= value <= normal.TIME_MAX_MS else None
    if type(value) is not str:
        return None
    text = value.strip().encode()
    time_ms = normal.parse_time(as_bytes(text), 0, len(text))
    return None if time_ms == normal.NO_TIME else time_ms


def _events_labelled(path: str, labels: Collection[str]) -> set[object]:
    """The ids of events that have one of these labels."""
    found: set[object] = set()
    for chunk in read_events(path, lambda reject: None):
        told = [said for said in chunk.events if said.get("label") in labels]
        found.update(said["event_id"] for said in told if isinstance(said.get("event_id"), str))
    return found


def _known_ms(label: Label) -> int:
    assert label.time is not None
    return label.time


class Output(ABC):
    """A file of decisions being written. `close` keeps what was written; so does leaving on an exception."""

    written: int = 0

    @abstractmethod
    def write(self, decisions: Sequence[Any]) -> None:
        """Write msgspec structs with the fields of a decision."""

    @abstractmethod
    def close(self) -> None:
        """Finish the file."""

    def __enter__(self) -> Self:
        """Itself: `with` closes it at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def open_output(path: str, features: Mapping[str, str] | None = None) -> Output:
    """A file for decisions, by its suffix; `-` is standard output, as JSON Lines.

    JSON Lines appear as they are written. Parquet is written under another name beside it and takes its
    own when it is complete; `features` gives the columns and types of `features` where they are asked for.
    Raises FileError.
    """
    if _format_of(path) == "parquet":
        return _ParquetOutput(path, features)
    return _LinesOutput(path)


def check_writable(path: str) -> None:
    """Raise FileError where `write_records` would, before the work is done whose outcome is to be written."""
    _format_of(path)
    if path != "-" and not os.access(Path(path).parent, os.W_OK | os.X_OK):
        raise FileError(unwritable(path, os.strerror(errno.EACCES)))


def write_records(path: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Write events or labels by the suffix of the file; `-` is standard output, as JSON Lines.

    It is written under another name beside it and takes its own when it is complete. Raises FileError.
    """
    if path == "-":
        encoded = [msgspec.json.encode(record) for record in records]
        sys.stdout.buffer.write(b"\n".join([*encoded, b""]))
        sys.stdout.buffer.flush()
        return
    check_writable(path)
    partial = f"{path}.partial"
    try:
        if _format_of(path) == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            names = dict.fromkeys(name for record in records for name in record)
            columns = {name: [record.get(name) for record in records] for name in names}
            pq.write_table(pa.table(columns), partial, compression="zstd")
        else:
            with _create(partial) as file:
                for record in records:
                    file.write(msgspec.json.encode(record) + b"\n")
        os.replace(partial, path)
    except OSError as error:
        raise FileError(unwritable(path, error.strerror)) from error
    finally:
        Path(partial).unlink(missing_ok=True)


# -- JSON Lines in

_TOO_LONG = Problem(
    "", "too-long", f"the line is longer than {LINE_BYTES_MAX:,} bytes (its beginning is kept)"
)
Line = tuple[int, bytes]  # number from 1, bytes without the line end


def _format_of(path: str) -> str:
    if path == "-":
        return "lines"
    suffix = Path(path).suffix.lower()
    if suffix in JSON_LINES:
        return "lines"
    if suffix in PARQUET:
        return "parquet"
    raise FileError(
        f"{path}: its suffix tells no format. Name it .jsonl (JSON Lines) or .parquet, or use - for the "
        "standard streams."
    )


@contextmanager
def _open_lines(path: str, seekable: bool) -> Iterator[BinaryIO]:
    if path == "-" and not (seekable and not sys.stdin.buffer.seekable()):
        yield sys.stdin.buffer
    elif path == "-":
        with tempfile.TemporaryFile() as spool:
            shutil.copyfileobj(sys.stdin.buffer, spool)
            spool.seek(0)
            yield spool
    else:
        try:
            source = Path(path).open("rb")  # noqa: SIM115  # closed below; here only opening is guarded
        except OSError as error:
            raise FileError(f"{path} cannot be read: {error.strerror}.{_nearby(path)}") from error
        with source:
            yield source


def _size_of(source: BinaryIO) -> int | None:
    try:
        found = os.fstat(source.fileno())
    except (OSError, io.UnsupportedOperation):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _chunks(
    lines: Iterator[Line | None], name: str, rejects: Callable[[Reject], None], size: int
) -> Iterator[Chunk]:
    """Decoded events; a None among the lines says that nothing more is there for now."""
    events: list[Event] = []
    numbers: list[int] = []
    raws: list[bytes] = []
    for line in lines:
        if line is not None:
            number, raw = line
            try:
                if len(raw) > LINE_BYTES_MAX:
                    raise EventError([_TOO_LONG])
                events.append(decode_line(raw))
            except EventError as error:
                rejects(Reject(name, number, str(error), raw))
                continue
            numbers.append(number)
            raws.append(raw)
        if events and (line is None or len(events) >= size):
            yield Chunk(name, events, numbers, raws)
            events, numbers, raws = [], [], []
    if events:
        yield Chunk(name, events, numbers, raws)


def _lines(source: BinaryIO, name: str, progress: Progress) -> Iterator[Line | None]:
    """Lines that are not blank. None where a pipe has nothing more for now."""
    number = 0
    pending = b""
    too_long = False  # in a line that is given up; `pending` is its beginning
    read: Callable[[int], bytes] = getattr(source, "read1", source.read)
    is_pipe = progress.total is None
    while block := read(BLOCK_BYTES):
        if not progress.done:
            block = _checked_start(block, name)
        progress.done += len(block)
        *complete, rest = block.split(b"\n")
        for line in complete:
            number += 1
            if pending or too_long:
                line, pending, too_long = (pending if too_long else pending + line), b"", False
            line = line.removesuffix(b"\r")
            if line and not line.isspace():
                yield number, line
        if not too_long:
            pending += rest
            too_long = len(pending) > LINE_BYTES_MAX
        if is_pipe:
            yield None
    if pending and not pending.isspace():
        yield number + 1, pending.removesuffix(b"\r")


def _checked_start(block: bytes, name: str) -> bytes:
    """The first block without its byte order mark. Raises FileError where it is another format altogether."""
    if block.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise FileError(f"{name} is UTF-16. Save it as UTF-8.")
    if block.startswith(b"\x1f\x8b"):
        raise FileError(
            f"{name} is compressed by gzip. Unpack it first: gunzip -c FILE | riskengine ... --in -"
        )
    if block.startswith(b"PAR1"):
        raise FileError(f"{name} is a Parquet file. Give it a name that ends in .parquet")
    block = block.removeprefix(b"\xef\xbb\xbf")
    if block.lstrip()[:1] == b"[":
        raise FileError(
            f"{name} is one JSON array, and JSON Lines are expected: one object a line. "
            "Convert it: jq -c '.[]' FILE > events.jsonl"
        )
    if SPREAD.match(block):
        raise FileError(
            f"{name} has an object spread over several lines, and JSON Lines are expected: one object a "
            "line. Convert it: jq -c . FILE > events.jsonl"
        )
    return block


def _sorted_lines(source: BinaryIO, name: str, progress: Progress) -> Iterator[Line]:
    """Lines by the time of their events. Only times and offsets are held: 24 bytes a line."""
    times, offsets, numbers = array("q"), array("q"), array("q")
    start = source.read(BLOCK_BYTES)
    offset = len(start) - len(_checked_start(start, name))
    source.seek(offset)
    for number, line in enumerate(source, 1):
        if line.strip():
            try:
                time_ms = parse_time(decode_line(line).get("time"))
            except EventError:
                time_ms = None
            times.append(time_ms if time_ms is not None else -(2**63))
            offsets.append(offset)
            numbers.append(number)
        offset += len(line)
    for i in np.argsort(np.frombuffer(times, np.int64), kind="stable").tolist() if times else ():
        source.seek(offsets[i])
        line = source.readline()
        progress.done += len(line)
        yield numbers[i], line.removesuffix(b"\n").removesuffix(b"\r")


# -- Parquet in


def _parquet(
    path: str, rejects: Callable[[Reject], None], sort: bool, size: int, progress: Progress
) -> Iterator[Chunk]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise FileError(f"{path} cannot be read: no such file.") from error
    except (OSError, pa.ArrowException) as error:
        raise FileError(f"{path} cannot be read as Parquet: {error}") from error
    with file:
        progress.total = file.metadata.num_rows
        batches: Iterable[tuple[Sequence[int], pa.RecordBatch]] = _batches(file, size)
        if sort:
            batches = _sorted_batches(file, path, size)
        for numbers, batch in batches:
            rows = _Rows(_plain(batch, path))
            progress.done += len(rows)
            yield Chunk(path, rows, numbers, _RawRows(rows), rows.batch)


@dataclass(frozen=True, slots=True)
class _Rows(Sequence[Event]):
    """The rows of a record batch as mappings without its nulls, made when they are looked at."""

    batch: pa.RecordBatch

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def __iter__(self) -> Iterator[Event]:
        for row in self.batch.to_pylist():
            yield {name: value for name, value in row.items() if value is not None}

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> _Rows: ...
    def __getitem__(self, index: int | slice) -> Event | _Rows:
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            return _Rows(self.batch.slice(start, max(0, stop - start)))
        return next(iter(_Rows(self.batch.slice(index, 1))))


@dataclass(frozen=True, slots=True)
class _RawRows(Sequence[bytes]):
    """The rows as JSON, for rejects."""

    rows: _Rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> _RawRows: ...
    def __getitem__(self, index: int | slice) -> bytes | _RawRows:
        return (
            _RawRows(self.rows[index]) if isinstance(index, slice) else msgspec.json.encode(self.rows[index])
        )


def _batches(file: Any, size: int) -> Iterator[tuple[range, pa.RecordBatch]]:
    row = 1
    for batch in file.iter_batches(batch_size=size):
        yield range(row, row + len(batch)), batch
        row += len(batch)


def _sorted_batches(file: Any, path: str, size: int) -> Iterator[tuple[list[int], pa.RecordBatch]]:
    """Parquet is sorted in memory, where it takes a few times its size on disk."""
    table = file.read()
    if "time" not in table.column_names:
        raise FileError(f"{path} has no column `time` to sort by.")
    times = [parse_time(value) for value in _plain(table.select(["time"]), path).column("time").to_pylist()]
    order = np.argsort(np.array([t if t is not None else -(2**63) for t in times], np.int64), kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield (rows + 1).tolist(), table.take(rows)


def _plain(batch: Any, path: str) -> Any:
    """Timestamps as epoch ms and decimals as numbers, which is what JSON would have said."""
    import pyarrow as pa

    for i, column in enumerate(batch.schema):
        cast = None
        if pa.types.is_timestamp(column.type):
            if column.type.tz is None:
                raise FileError(
                    f"{path}: the column {column.name!r} has times without a time zone, which may be any "
                    "hour. Write it with one (in pandas: .dt.tz_localize('UTC'))."
                )
            cast = pa.timestamp("ms", column.type.tz)
        elif pa.types.is_decimal(column.type):
            cast = pa.float64()
        if cast is None:
            continue
        values = batch.column(i).cast(cast, safe=False)
        batch = batch.set_column(
            i, column.name, values if pa.types.is_floating(cast) else values.cast("int64")
        )
    return batch


# -- decisions out


class _LinesOutput(Output):
    def __init__(self, path: str) -> None:
        self._encoder = msgspec.json.Encoder()
        self._buffer = bytearray()
        self._is_stdout = path == "-"
        self._file: BinaryIO = sys.stdout.buffer if self._is_stdout else _create(path)

    def write(self, decisions: Sequence[Any]) -> None:
        lines = [self._encoder.encode(decision) for decision in decisions]
        self._file.write(b"\n".join([*lines, b""]))
        self._file.flush()  # whoever reads along sees whole chunks
        self.written += len(decisions)

    def close(self) -> None:
        if not self._is_stdout:
            self._file.close()


class _ParquetOutput(Output):
    def __init__(self, path: str, features: Mapping[str, str] | None) -> None:
        import pyarrow.parquet as pq

        self._path = path
        self._partial = f"{path}.partial"
        self._schema = _decision_schema(features)
        self._rows: list[dict[str, Any]] = []
        self._features = features is not None
        try:
            self._writer: Any = pq.ParquetWriter(self._partial, self._schema, compression="zstd")
        except OSError as error:
            raise FileError(unwritable(path, error.strerror or str(error))) from error

    def write(self, decisions: Sequence[Any]) -> None:
        for decision in decisions:
            row = msgspec.to_builtins(decision)
            if not self._features:
                row.pop("features", None)
            self._rows.append(row)
        self.written += len(decisions)
        if len(self._rows) >= ROW_GROUP_ROWS:
            self._write_group()

    def close(self) -> None:
        if self._rows:
            self._write_group()
        self._writer.close()
        os.replace(self._partial, self._path)

    def _write_group(self) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()


def unwritable(path: str, reason: str | None) -> str:
    """What is said of a file that cannot be written, and the mend."""
    folder = Path(path).parent
    if not folder.is_dir():
        return f"{path} cannot be written: there is no folder {folder}. Make it first."
    return f"{path} cannot be written: {reason}. Name a file in a folder where you may write."


def _nearby(path: str) -> str:
    """Where a file of this name is not, the one that was probably meant."""
    wanted = Path(path)
    if wanted.exists() or not wanted.parent.is_dir():
        return ""
    near = nearest(wanted.name, (file.name for file in wanted.parent.iterdir()))
    return f" Did you mean {wanted.parent / near}?" if near else ""


def _create(path: str) -> BinaryIO:
    try:
        return io.BufferedWriter(io.FileIO(path, "w"))
    except OSError as error:
        raise FileError(unwritable(path, error.strerror)) from error


def _decision_schema(features: Mapping[str, str] | None) -> pa.Schema:
    import pyarrow as pa

    text, texts = pa.string(), pa.list_(pa.string())
    message = pa.struct([("zh", text), ("en", text)])
    columns = [
        ("event_id", text),
        ("decision_id", text),
        ("action", text),
        ("risk", pa.float64()),
        ("challenge", text),
        ("reasons", pa.list_(pa.struct([("rule", text), ("message", message), ("risk", pa.float64())]))),
        ("fired", texts),
        ("shadow", texts),
        ("model", pa.struct([("name", text), ("p", pa.float64())])),
        ("policy", text),
        ("flags", texts),
        ("time", pa.timestamp("ms", "UTC")),
        ("challengers", pa.map_(text, pa.float64())),
    ]
    if features is not None:
        types = {
            "string": text,
            "bool": pa.bool_(),
            "time": pa.timestamp("ms", "UTC"),
            "location": pa.struct([("lat", pa.float64()), ("lon", pa.float64())]),
        }
        columns.append(
            (
                "features",
                pa.struct([(name, types.get(kind, pa.float64())) for name, kind in features.items()]),
            )
        )
    return pa.schema(columns)
