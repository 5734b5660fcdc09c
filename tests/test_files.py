"""Files in and out: every line is an event or a reject with its reason, and nothing is lost between."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riskengine import files
from riskengine.event import Label
from riskengine.files import (
    Chunk,
    FileError,
    Progress,
    Reject,
    Rejects,
    merge,
    open_output,
    parse_time,
    read_events,
    read_labels,
)


class Reason(msgspec.Struct):
    rule: str
    message: dict[str, str] | None
    risk: float


class Decision(msgspec.Struct):
    event_id: str
    action: str = "deny"
    risk: float = 0.75
    decision_id: str = "d"
    challenge: str | None = None
    reasons: tuple[Reason, ...] = (Reason("r1", {"zh": "已结束", "en": "over"}, 0.5), Reason("r2", None, 0.0))
    fired: tuple[str, ...] = ("r1", "r2")
    shadow: tuple[str, ...] = ()
    model: None = None
    policy: str = "p"
    flags: tuple[str, ...] = ("late",)
    time: int = 1_800_000_000_000
    features: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


def read(path: Path | str, **options: Any) -> tuple[list[Chunk], list[Reject]]:
    rejects: list[Reject] = []
    return list(read_events(str(path), rejects.append, **options)), rejects


def events_of(chunks: list[Chunk]) -> list[dict[str, Any]]:
    return [dict(event) for chunk in chunks for event in chunk.events]


def known_ms(label: Label) -> int:
    assert label.time is not None
    return label.time


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_json_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "e.jsonl",
        b'\xef\xbb\xbf{"event_id":"e1"}\r\n\n   \n{"event_id":"e2","n":"\xe8\xa1\x97"}\n{"event_id":"e3"}',
    )
    progress = Progress()
    chunks, rejects = read(path, size=2, progress=progress)
    assert [(chunk.file, chunk.lines) for chunk in chunks] == [(str(path), [1, 4]), (str(path), [5])]
    assert events_of(chunks) == [{"event_id": "e1"}, {"event_id": "e2", "n": "街"}, {"event_id": "e3"}]
    assert chunks[0].raw[0] == b'{"event_id":"e1"}'
    assert rejects == []
    assert progress.total == path.stat().st_size
    assert progress.done == path.stat().st_size - 3


def test_bad_lines_are_told_by_line_and_kept_verbatim(tmp_path: Path) -> None:
    lines = [
        b'{"event_id":"e1"}',
        b"[1]",
        b'{"event_id":',
        b'{"a":NaN}',
        b'"text"',
        b'{"a":"\xff\xfe"}',
        b'{"a":' + b"[" * 5000 + b"}",
        b'{"a":1} {"b":2}',
        b'{"event_id":"e2"}',
    ]
    path = write(tmp_path / "e.jsonl", b"\n".join(lines) + b"\n")
    chunks, rejects = read(path)
    assert [event["event_id"] for event in events_of(chunks)] == ["e1", "e2"]
    assert [reject.line for reject in rejects] == [2, 3, 4, 5, 6, 7, 8]
    assert [reject.raw for reject in rejects] == lines[1:8]
    assert [str(reject).removeprefix(f"{path}:") for reject in rejects] == [
        "2: a line is one JSON object",
        "3: this is not JSON: Input data was truncated",
        "4: this is not JSON: JSON is malformed: invalid character (byte 5)",
        "5: a line is one JSON object",
        "6: this is not JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        "7: this is not JSON: maximum recursion depth exceeded while deserializing an object",
        "8: this is not JSON: JSON is malformed: trailing characters (byte 9)",
    ]


def test_rejects_go_to_a_file(tmp_path: Path) -> None:
    with Rejects(str(tmp_path / "r.jsonl")) as rejects:
        rejects.add(Reject("e.jsonl", 3, "why", '{"店":'.encode()))
        rejects.add(Reject("e.jsonl", 9, "why", b"\xff"))
        for line in range(20):
            rejects.add(Reject("e.jsonl", line, "again", b""))
    assert rejects.count == 22
    assert len(rejects.first) == 10
    said = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text("utf-8").splitlines()]
    assert said[:2] == [
        {"file": "e.jsonl", "line": 3, "reason": "why", "raw": '{"店":'},
        {"file": "e.jsonl", "line": 9, "reason": "why", "raw_base64": "/w=="},
    ]
    assert len(said) == 22
    with pytest.raises(FileError, match="cannot be written"):
        Rejects(str(tmp_path / "no" / "r.jsonl"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("e.json", b' \n[{"event_id":"e1"}]', "one JSON array.*jq -c"),
        ("e.jsonl", '{"a":1}'.encode("utf-16"), "UTF-16"),
        ("e.jsonl", b"\x1f\x8b\x08\x00", "gzip"),
        ("e.jsonl", b"PAR1...", "Parquet"),
        ("e.csv", b"a,b", "suffix tells no format"),
        ("e.parquet", b'{"a":1}', "cannot be read as Parquet"),
    ],
)
def test_a_file_of_another_format_is_refused_as_a_whole(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    path = write(tmp_path / name, data)
    for sort in (False, True):
        with pytest.raises(FileError, match=message):
            read(path, sort=sort)


@pytest.mark.parametrize("name", ["none.jsonl", "none.parquet"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match=r"none\.\w+ cannot be read: [Nn]o such file"):
        read(tmp_path / name)


def test_an_empty_file_has_no_events(tmp_path: Path) -> None:
    for data in (b"", b"\n\n", b"\xef\xbb\xbf"):
        for sort in (False, True):
            assert read(write(tmp_path / "e.jsonl", data), sort=sort) == ([], [])


def test_lines_that_are_too_long_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 64)
    monkeypatch.setattr(files, "LINE_BYTES_MAX", 200)
    long = b'{"a":"' + b"x" * 1000 + b'"}'
    padded = b'{"event_id":"e0"}' + b" " * 1000
    path = write(tmp_path / "e.jsonl", b"\n".join([b'{"a":1}', long, b'{"a":2}', padded, b'{"a":3}', long]))
    chunks, rejects = read(path)
    assert events_of(chunks) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert [reject.line for reject in rejects] == [2, 4, 6]
    assert all("longer than" in reject.reason for reject in rejects)
    assert all(len(reject.raw) < 300 for reject in rejects)


@given(
    events=st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=40), max_size=4), max_size=12),
    block=st.integers(1, 90),
    size=st.integers(1, 5),
    ending=st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
)
def test_however_the_blocks_fall_the_lines_are_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    events: list[dict[str, str]],
    block: int,
    size: int,
    ending: bytes,
) -> None:
    path = tmp_path_factory.getbasetemp() / "blocks.jsonl"
    path.write_bytes(ending.join(msgspec.json.encode(event) for event in events))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK_BYTES", block)
        chunks, rejects = read(path, size=size)
    assert events_of(chunks) == events
    assert rejects == []
    assert all(0 < len(chunk) <= size for chunk in chunks)


def test_a_pipe_gives_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone who pipes events one by one gets decisions one by one."""
    reading, writing = os.pipe()
    stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(reading)))
    monkeypatch.setattr(sys, "stdin", stdin)
    chunks = read_events("-", lambda reject: None)
    os.write(writing, b'{"event_id":"e1"}\n{"event')
    assert next(chunks).events == [{"event_id": "e1"}]
    os.write(writing, b'_id":"e2"}\n')
    second = next(chunks)
    assert (second.file, second.lines, second.events) == ("<stdin>", [2], [{"event_id": "e2"}])
    os.close(writing)
    assert list(chunks) == []
    stdin.close()


def test_a_pipe_can_be_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(reading)))
    monkeypatch.setattr(sys, "stdin", stdin)

    def feed() -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(b'{"time":2}\n{"time":1}\n')

    feeder = threading.Thread(target=feed)
    feeder.start()
    chunks, _ = read("-", sort=True)
    feeder.join()
    stdin.close()
    assert events_of(chunks) == [{"time": 1}, {"time": 2}]


def test_sorting_is_by_time_and_otherwise_as_in_the_file(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"i":0,"time":"2026-11-11T00:00:01Z"}',
        b'{"i":1,"time":"2026-11-11T00:00:01+08:00"}',
        b"",
        b"broken",
        b'{"i":2}\r',
        b'{"i":3,"time":1794355201000}',
        b'{"i":4,"time":0}',
    ]
    path = write(tmp_path / "e.jsonl", b"\n".join(lines))
    chunks, rejects = read(path, sort=True)
    assert [event["i"] for event in events_of(chunks)] == [2, 4, 1, 0, 3]
    assert [line for chunk in chunks for line in chunk.lines] == [5, 7, 2, 1, 6]
    assert [(reject.line, reject.raw) for reject in rejects] == [(4, b"broken")]


def table(**columns: Any) -> pa.Table:
    return pa.table(columns)


def test_parquet_says_what_json_would_have_said(tmp_path: Path) -> None:
    china = timezone(timedelta(hours=8))
    pq.write_table(
        table(
            event_id=pa.array(["e1", "e2"]).dictionary_encode(),
            time=pa.array([datetime(2026, 11, 11, tzinfo=china), None], pa.timestamp("us", "Asia/Shanghai")),
            amount=pa.array([Decimal("12.34"), None], pa.decimal128(10, 2)),
            location=pa.array(
                [{"lat": 31.5, "lon": 121.0}, None], pa.struct([("lat", pa.float64()), ("lon", pa.float64())])
            ),
            phone_verified=pa.array([None, True]),
            count=pa.array([3, None]),
        ),
        tmp_path / "e.parquet",
    )
    progress = Progress()
    chunks, _ = read(tmp_path / "e.parquet", progress=progress)
    assert events_of(chunks) == [
        {
            "event_id": "e1",
            "time": 1794326400000,
            "amount": 12.34,
            "location": {"lat": 31.5, "lon": 121.0},
            "count": 3,
        },
        {"event_id": "e2", "phone_verified": True},
    ]
    assert type(events_of(chunks)[0]["count"]) is int
    assert (progress.done, progress.total) == (2, 2)


def test_parquet_comes_in_chunks_numbered_by_row(tmp_path: Path) -> None:
    path = tmp_path / "e.parquet"
    pq.write_table(table(i=list(range(25)), time=[-i for i in range(25)]), path, row_group_size=10)
    chunks, _ = read(path, size=8)
    assert [event["i"] for event in events_of(chunks)] == list(range(25))
    assert [line for chunk in chunks for line in chunk.lines] == list(range(1, 26))
    assert max(map(len, chunks)) == 8
    chunks, _ = read(path, size=8, sort=True)
    assert [event["i"] for event in events_of(chunks)] == list(range(24, -1, -1))
    assert [line for chunk in chunks for line in chunk.lines] == list(range(25, 0, -1))
    assert chunks[0].raw[0] == b'{"i":24,"time":-24}'


def test_parquet_times_without_a_zone_are_refused(tmp_path: Path) -> None:
    pq.write_table(table(time=pa.array([0], pa.timestamp("ms"))), tmp_path / "e.parquet")
    with pytest.raises(FileError, match="'time' has times without a time zone"):
        read(tmp_path / "e.parquet")
    pq.write_table(table(a=[1]), tmp_path / "a.parquet")
    with pytest.raises(FileError, match="no column `time` to sort by"):
        read(tmp_path / "a.parquet", sort=True)


def test_labels(tmp_path: Path) -> None:
    lines = [
        b'{"event_id":"e2","label":"legit","time":2000,"source":"bank"}',
        b'{"event_id":"e1","label":"fraud","time":"1970-01-01T00:00:01Z"}',
        b'{"event_id":"e1","label":"fraud","time":2000}',
        b'{"label":"fraud","time":1}',
        b'{"event_id":"e1","label":"bad","time":1}',
        b'{"event_id":"e1","label":"fraud"}',
        b'{"event_id":"e1","label":"fraud","time":"yesterday"}',
        b'{"event_id":"e1","label":"fraud","time":1,"source":7}',
        b"{",
    ]
    rejects: list[Reject] = []
    labels = read_labels(str(write(tmp_path / "l.jsonl", b"\n".join(lines))), rejects.append)
    assert labels == [
        Label("e1", "fraud", 1000),
        Label("e2", "legit", 2000, "bank"),
        Label("e1", "fraud", 2000),
    ]
    expected = [  # by line; how the event module words its half is held by its own tests
        (4, "/event_id: "),
        (5, "/label: "),
        (6, "/time: a label in a file says when it became known"),
        (7, "/time: "),
        (8, "/source: "),
        (9, "this is not JSON: "),
    ]
    found = sorted((reject.line, reject.reason) for reject in rejects)
    assert [line for line, _ in found] == [line for line, _ in expected]
    assert all(why.startswith(start) for (_, why), (_, start) in zip(found, expected, strict=True)), found


def test_labels_from_parquet(tmp_path: Path) -> None:
    when = pa.array([datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)], pa.timestamp("ms", "UTC"))
    pq.write_table(table(event_id=["e1"], label=["fraud"], time=when), tmp_path / "l.parquet")
    rejects: list[Reject] = []
    labels = read_labels(str(tmp_path / "l.parquet"), rejects.append)
    assert (labels, rejects) == ([Label("e1", "fraud", 1000)], [])


@given(
    times=st.lists(st.one_of(st.none(), st.integers(0, 8)), max_size=20),
    known=st.lists(st.integers(0, 8), max_size=12),
    size=st.integers(1, 6),
)
def test_a_label_goes_in_before_the_first_event_strictly_later(
    times: list[int | None], known: list[int], size: int
) -> None:
    events = [{"i": i} if time is None else {"i": i, "time": time} for i, time in enumerate(times)]
    chunks = [
        Chunk("f", events[i : i + size], list(range(i + 1, i + 1 + len(events[i : i + size]))), [])
        for i in range(0, len(events), size)
    ]
    labels = [Label(str(i), "fraud", time) for i, time in enumerate(sorted(known))]

    expected: list[object] = []
    waiting = list(labels)
    for event in events:
        while waiting and "time" in event and known_ms(waiting[0]) < event["time"]:
            expected.append(waiting.pop(0))
        expected.append(event["i"])
    expected += waiting

    flow: list[object] = []
    lines: list[int] = []
    for part in merge(chunks, labels):
        if isinstance(part, Chunk):
            assert len(part)
            flow += [event["i"] for event in part.events]
            lines += part.lines
        else:
            flow.append(part)
    assert flow == expected
    assert lines == list(range(1, len(events) + 1))


def test_labels_that_move_nothing_cut_no_chunk() -> None:
    events: list[dict[str, object]] = [{"event_id": str(i), "time": 10 * i} for i in range(6)]
    chunk = Chunk("f", events, list(range(1, 7)), [])
    labels = [
        Label("0", "legit", 5),
        Label("1", "fraud", 25),
        Label("1", "legit", 35),
        Label("2", "legit", 36),
    ]

    flow: list[object] = []
    for part in merge([chunk], labels, {"fraud"}):
        flow.append([event["event_id"] for event in part.events] if isinstance(part, Chunk) else part)
    # The first waits for the next cut; the third takes back a fraud, so it cuts; the last waits for the end.
    assert flow == [["0", "1", "2"], labels[0], labels[1], ["3"], labels[2], ["4", "5"], labels[3]]


def test_times() -> None:
    assert parse_time(5) == 5
    assert parse_time("2026-11-11T00:00:00+08:00") == 1794326400000
    assert parse_time("2026-11-11T00:00:00.1239Z") == 1794355200123
    for bad in (None, True, 1.5, "2026-11-11T00:00:00", "soon", ["x"]):
        assert parse_time(bad) is None


def test_decisions_as_json_lines_are_readable_while_written(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with open_output(str(path)) as output:
        output.write([Decision("e1")])
        assert json.loads(path.read_text())["event_id"] == "e1"
        output.write([Decision("e2"), Decision("e3")])
        output.write([])
    assert [json.loads(line)["event_id"] for line in path.read_text().splitlines()] == ["e1", "e2", "e3"]
    assert output.written == 3


def test_decisions_to_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with open_output("-") as output:
        output.write([Decision("e1")])
    assert capfdbinary.readouterr().out == msgspec.json.encode(Decision("e1")) + b"\n"


def test_decisions_as_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ROW_GROUP_ROWS", 2)
    path = tmp_path / "d.parquet"
    kinds = {"n": "number", "s": "string", "b": "bool", "t": "time", "p": "location"}
    row = {"n": 1.5, "s": "x", "b": True, "t": 5, "p": {"lat": 1.0, "lon": 2.0}}
    with open_output(str(path), kinds) as output:
        output.write([Decision(f"e{i}") for i in range(2)])
        assert not path.exists()
        output.write([Decision("e2", features=row), Decision("e3", features={"n": None})])
        output.write([Decision("e4")])
    found = pq.read_table(path)
    assert found.column_names == [
        "event_id", "decision_id", "action", "risk", "challenge", "reasons", "fired", "shadow", "model",
        "policy", "flags", "time", "challengers", "features",
    ]  # fmt: skip
    rows = found.to_pylist()
    assert [row["event_id"] for row in rows] == ["e0", "e1", "e2", "e3", "e4"]
    assert rows[0]["reasons"] == [
        {"rule": "r1", "message": {"zh": "已结束", "en": "over"}, "risk": 0.5},
        {"rule": "r2", "message": None, "risk": 0.0},
    ]
    assert rows[0]["features"] is None
    assert rows[0]["time"] == datetime(2027, 1, 15, 8, tzinfo=UTC)
    assert rows[2]["features"] == {**row, "t": datetime(1970, 1, 1, 0, 0, 0, 5000, tzinfo=UTC)}
    assert list(tmp_path.iterdir()) == [path]


def test_parquet_that_was_interrupted_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"

    def interrupted() -> None:
        with open_output(str(path)) as output:
            output.write([Decision("e1")])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert pq.read_table(path).column("event_id").to_pylist() == ["e1"]
    assert "features" not in pq.read_table(path).column_names


@pytest.mark.parametrize("name", ["no/d.jsonl", "no/d.parquet"])
def test_an_output_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileError, match="cannot be written"):
        open_output(str(tmp_path / name))
    with pytest.raises(FileError, match="suffix tells no format"):
        open_output(str(tmp_path / "d.txt"))
