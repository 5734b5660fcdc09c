"""The journal through kill -9, a crashing PostgreSQL, and years: what is lost, kept, sealed and deleted."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
from postgres import Postgres, running
from test_journal import Lock, entry, found

from riskengine import Engine, cli
from riskengine.entries import AlertEntry, AnyEntry, EditEntry, Entry, LabelEntry, PolicyEntry, ReleaseEntry
from riskengine.journal import Journal, JournalError, database, door, keeping, tables
from riskengine.journal.sealing import Sealer

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = int(os.environ.get("FAULT_ROUNDS", "3"))
OLD, NEW = "11" * 32, "22" * 32
DAY_MS = 86_400_000
T0 = 1_800_000_000_000


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running() as server:
        yield server


@pytest.fixture
def postgres(server: Postgres) -> Postgres:
    server.empty()
    return server


LOAD = """
import os, sys, time
from riskengine.journal import Journal
from tests.test_journal import Later
url, name = sys.argv[1:]
journal = Journal.open(url)
for i in range(1_000_000):
    before = time.monotonic_ns()
    journal.wait_for_room()
    journal.append_later(Later(*(f"{name}-{i}-{k}" for k in range(9))))
    after = time.monotonic_ns()
    journal.settle()
    os.write(1, b"%d %d %d\\n" % (i, before, after))
"""


@pytest.mark.parametrize("commit", ["async", "sync"])
def test_what_a_kill_loses_is_within_what_is_said(tmp_path: Path, commit: str) -> None:
    url = f"sqlite:///{tmp_path}/j.db?commit={commit}"
    draw = random.Random()
    lost_most = 0
    for turn in range(ROUNDS):
        with subprocess.Popen(
            [sys.executable, "-c", LOAD, url, f"t{turn}"], stdout=subprocess.PIPE, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            timer = threading.Timer(0.1 + draw.random() / 2, process.send_signal, [signal.SIGKILL])
            timer.start()
            lines = [line.split() for line in (first + process.stdout.read()).splitlines()]
        timer.join()
        answered = {
            f"t{turn}-{int(i)}-{k}": (int(before), int(after)) for i, before, after in lines for k in range(9)
        }
        with Journal.open(url, create=False) as journal:
            kept = [one.event_id for one in journal.replay() if isinstance(one, Entry)]
        assert len(kept) == len(set(kept))
        mine = [one for one in kept if one.startswith(f"t{turn}-")]
        assert mine == [f"t{turn}-{i // 9}-{i % 9}" for i in range(len(mine))], (
            "in order, and nothing between"
        )
        there = set(mine)
        lost = sorted(times for event_id, times in answered.items() if event_id not in there)
        lost_most = max(lost_most, len(lost))
        if commit == "sync":
            assert not lost
        else:
            assert len(lost) <= door.LOSS_ENTRIES + 9 or lost[-1][0] - lost[0][1] <= door.LOSS_SECONDS * 1e9
    assert commit == "sync" or lost_most > 0, "the kill came in mid-write"


def kinds() -> list[AnyEntry]:
    return [
        PolicyEntry(fingerprint="p1", time_ms=1),
        entry("e1"),
        LabelEntry(event_id="e1", label="fraud", time_ms=5, source="a\0b", received_ms=6),
        EditEntry(
            kind="list", op="put", name="blocked", entity="device", key=2**64 - 1,
            expires_ms=9, reason="farm", author="li", time_ms=7,
        ),
        entry("e2"),
        ReleaseEntry(event_id="e2", time_ms=8),
        entry("odd\0name"),
    ]  # fmt: skip


def test_postgresql_keeps_what_sqlite_keeps(postgres: Postgres, tmp_path: Path) -> None:
    told = []
    for url in (f"sqlite:///{tmp_path}/j.db", f"{postgres.url}?spool={tmp_path}/spool"):
        with Journal.open(url) as journal:
            journal.append(kinds())
            journal.flush()
            journal.append([entry("e1", action="allow"), entry("e3")])
            journal.flush()
            assert journal.status["refused"] == 0
            assert found(journal, "odd\0name").decision_id == "d-odd\0name"
            assert [label.label for label in journal.labels("e1")] == ["fraud"]
            assert keeping.info(journal)["bytes"] > 0
        with Journal.open(url, create=False) as journal:
            entries = list(journal.replay())
            told.append([one for one in entries if not isinstance(one, LabelEntry)])
            assert [one.seq for one in journal.replay(after=5)] == [6, 7, 9]
    assert told[0] == told[1]
    assert [one.seq for one in told[0]] == [1, 2, 4, 5, 6, 7, 9]


def test_a_postgresql_that_crashes_loses_nothing(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With commit=sync: every append that was settled is there once, in order, after the restart."""
    monkeypatch.setattr(door, "RETRY_SECONDS", 0.1)
    url = f"{postgres.url}?commit=sync&spool={tmp_path}/spool"
    with Journal.open(url) as journal:
        for i in range(300):
            if i in (50, 200):
                postgres.stop()
            journal.append([entry(f"e{i}")])
            journal.settle()
            if i == 60:
                assert journal.is_away
                assert found(journal, "e55").event_id == "e55"
                with pytest.raises(JournalError, match="cannot be read"):
                    journal.decision("nobody")
            if i in (100, 250):
                postgres.start()
        until = time.monotonic() + 20
        while journal.status["spooled"] and time.monotonic() < until:
            time.sleep(0.05)
        kept = [one.event_id for one in journal.replay() if isinstance(one, Entry)]
    assert kept == [f"e{i}" for i in range(300)]
    assert list(tmp_path.iterdir()) == []


def test_a_postgresql_that_is_not_there_or_not_ours(postgres: Postgres, tmp_path: Path) -> None:
    import psycopg

    spool = f"?spool={tmp_path}/spool"
    with pytest.raises(JournalError, match=r"cannot be opened.*Check that the server runs"):
        Journal.open(f"postgresql://tester:secret@127.0.0.1:1/postgres{spool}")
    with pytest.raises(JournalError, match="there is no journal in postgresql://tester@127"):
        Journal.open(postgres.url, create=False)
    with psycopg.connect(postgres.url) as connection:
        connection.execute("CREATE TABLE labels (a int)")
    with pytest.raises(JournalError, match=r"tables of another program \(labels\)"):
        Journal.open(postgres.url + spool)


def test_a_postgresql_journal_of_the_layout_before_goes_on(postgres: Postgres, tmp_path: Path) -> None:
    import psycopg

    url = f"{postgres.url}?spool={tmp_path}/spool"
    with Journal.open(url) as journal:
        journal.append([entry("e1")])
    with psycopg.connect(postgres.url) as connection:
        connection.execute("DROP TABLE fresh")
        connection.execute("UPDATE about SET version = 3")
    for _ in range(2):
        with Journal.open(url) as journal:
            journal.append([entry("e1"), entry("e2")])
            journal.flush()
            assert [one.event_id for one in journal.recent(10)] == ["e1", "e2"]
    with psycopg.connect(postgres.url) as connection:
        assert connection.execute("SELECT version FROM about").fetchone() == (tables.SCHEMA_VERSION,)


def policy(folder: Path) -> Path:
    folder.mkdir()
    (folder / "policy.yaml").write_text(
        "policy: kept\nentities: {user: user_id}\n"
        "events: {visit: {required: [user_id], fields: {place: location}}}\n"
        "features: {visits: {count: visit, by: user, over: 1d}}\n",
        encoding="utf-8",
    )
    return folder


def visit(i: int) -> dict[str, object]:
    spot = {"lat": 31.23456, "lon": 121.45678}
    return {"event_id": f"e{i}", "type": "visit", "user_id": f"alice{i}", "place": spot, "email": "a@b.c"}


def test_personal_values_are_read_by_whoever_has_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, rules = f"sqlite:///{tmp_path}/j.db", policy(tmp_path / "rules")
    told = {"user_id": "alice3", "place": {"lat": 31.23456, "lon": 121.45678}, "email": "a@b.c"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RISKENGINE_JOURNAL_KEY", OLD)
        with Engine.open(rules, journal=url) as engine:
            engine.score_many([visit(i) for i in range(5)])
        assert cli.run(["journal", "show", "e3", "--journal", url]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["personal"] == told
        assert shown["event"]["user_id"].startswith("#")
        assert b"alice" not in b"".join(path.read_bytes() for path in tmp_path.glob("j.db*"))
        patch.setenv("RISKENGINE_JOURNAL_KEY", NEW)
        assert cli.run(["journal", "show", "e3", "--journal", url]) == 2
        said = capsys.readouterr()
        assert "encrypted with key" in said.err
        shown = json.loads(said.out)
        assert shown["decision"]["event_id"] == "e3"
        assert "personal" not in shown
        patch.setenv("RISKENGINE_JOURNAL_KEY", f"{NEW},{OLD}")
        with Engine.open(rules, journal=url) as engine:
            engine.score(visit(6))
        with Journal.open(url) as journal:
            assert keeping.in_clear(journal, "e3") == told
        assert cli.run(["journal", "reseal", "--journal", url]) == 0
        assert "1 block anew" in capsys.readouterr().err
        patch.setenv("RISKENGINE_JOURNAL_KEY", NEW)
        with Journal.open(url) as journal:
            assert keeping.in_clear(journal, "e3") == told
            assert keeping.in_clear(journal, "e6")["user_id"] == "alice6"
        patch.setenv("RISKENGINE_JOURNAL_KEY", "short")
        assert cli.run(["journal", "show", "e3", "--journal", url]) == 2
        assert "64 hexadecimal digits" in capsys.readouterr().err
    with Journal.open(url) as journal, pytest.raises(JournalError, match="set RISKENGINE_JOURNAL_KEY"):
        keeping.in_clear(journal, "e3")


def test_an_event_that_was_journaled_without_a_key_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/j.db"
    with Journal.open(url) as journal:
        journal.append([entry("e1")])
    monkeypatch.setenv("RISKENGINE_JOURNAL_KEY", OLD)
    assert cli.run(["journal", "show", "e1", "--journal", url]) == 0
    said = capsys.readouterr()
    assert "nothing was encrypted when this event was journaled" in said.err
    shown = json.loads(said.out)
    assert shown["decision"]["event_id"] == "e1"
    assert "personal" not in shown


def test_a_block_with_an_event_that_another_engine_decided_is_kept_as_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, rules = f"sqlite:///{tmp_path}/j.db", policy(tmp_path / "rules")
    monkeypatch.setenv("RISKENGINE_JOURNAL_KEY", OLD)
    with Engine.open(rules, journal=url) as engine, Engine.open(rules, journal=url) as other:
        engine.score(visit(1))
        assert engine.journal is not None
        engine.journal.flush()
        other.score_many([visit(2), visit(1), visit(3)])
    monkeypatch.setenv("RISKENGINE_JOURNAL_KEY", f"{NEW},{OLD}")
    with Journal.open(url) as journal:
        assert [one.event_id for one in journal.recent(9)] == ["e1", "e2", "e3"]
        assert keeping.reseal(journal) == 2
    monkeypatch.setenv("RISKENGINE_JOURNAL_KEY", NEW)
    with Journal.open(url) as journal:
        assert [keeping.in_clear(journal, f"e{i}")["user_id"] for i in (1, 2, 3)] == [
            "alice1",
            "alice2",
            "alice3",
        ]
        assert keeping.prune(journal, before_ms=2**60) == 3
        assert list(journal.recent(9)) == []


def test_what_was_exchanged_or_damaged_is_not_opened() -> None:
    sealer = Sealer([bytes.fromhex(OLD)])
    sealed = sealer.seal([{"a": 1}], ["e1"])
    assert sealer.open(sealed, ["e1"]) == [{"a": 1}]
    for wrong, ids in ((sealed, ["e2"]), (sealed[:-1] + bytes([sealed[-1] ^ 1]), ["e1"])):
        with pytest.raises(JournalError, match="damaged or has been exchanged"):
            sealer.open(wrong, ids)


def aged(journal: Journal, days: int) -> None:
    """Ten events a day, the first day first, each with a label."""
    for day in range(days):
        at = T0 + day * DAY_MS
        for i in range(10):
            trace = msgspec.msgpack.encode(("f" * 16, {}, [], at))
            one = entry(f"d{day}-{i}", event={"type": "payment", "who": f"person{day}-{i}"}, trace=trace)
            journal.append([msgspec.structs.replace(one, event_time_ms=at)])
            journal.append([LabelEntry(event_id=f"d{day}-{i}", label="legit", time_ms=at, received_ms=at)])


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_pruning_deletes_for_good_while_others_write(
    where: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "PRUNE_BLOCKS", 7)
    url = f"sqlite:///{tmp_path}/j.db"
    if where == "postgresql":
        url = f"{request.getfixturevalue('postgres').url}?spool={tmp_path}/spool"
    with Journal.open(url) as journal:
        journal.append([EditEntry(kind="list", op="put", name="b", entity="user", key=1, time_ms=T0)])
        aged(journal, 20)
        journal.flush()
        steps = []

        def moved(done: int, total: int | None) -> None:
            steps.append((done, total))
            late = entry(f"during{done}", event={"type": "payment"})
            journal.append([msgspec.structs.replace(late, event_time_ms=T0 + 99 * DAY_MS)])
            journal.flush(10)

        assert keeping.prune(journal, T0 + 15 * DAY_MS, moved) == 150
        assert len(steps) > 10
        assert steps[-1] == (150, 150)
        assert journal.decision("d3-3") is None
        assert found(journal, "d15-0").event["who"] == "person15-0"
        kept = list(journal.replay())
        assert sum(isinstance(one, EditEntry) for one in kept) == 1
        assert sum(isinstance(one, LabelEntry) for one in kept) == 50
        assert sum(isinstance(one, Entry) for one in kept) == 50 + len(steps)
        assert keeping.prune(journal, T0) == 0
    if where == "sqlite":
        left = b"".join(path.read_bytes() for path in tmp_path.glob("j.db*"))
        assert b"person15-0" in left
        assert b"person14-9" not in left
        assert b"d14-9" not in left
        assert sqlite3.connect(tmp_path / "j.db").execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_pruning_leaves_how_an_open_episode_stands(
    where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/j.db"
    if where == "postgresql":
        url = f"{request.getfixturevalue('postgres').url}?spool={tmp_path}/spool"

    def episode(name: str, updated: int, end: int | None = None) -> AlertEntry:
        return AlertEntry(
            id=name, alert="busy", by=None, key=None, key_hash=0, start_ms=1, peak=1, peak_ms=1,
            updated_ms=updated, end_ms=end, above=0, share=False, over_ms=60_000, events=(),
        )  # fmt: skip

    with Journal.open(url) as journal:
        journal.append([episode("open", 1), episode("ended", 2), episode("open", 3), episode("later", 4)])
        journal.append([episode("ended", 5, end=5), episode("later", 20), episode("new", 30, end=30)])
        journal.flush()
        keeping.prune(journal, before_ms=10)
        kept = [(one.id, one.updated_ms) for one in journal.replay() if isinstance(one, AlertEntry)]
        assert kept == [("open", 3), ("later", 20), ("new", 30)]
        assert {one.id for one in journal.alerts(open_only=True)} == {"open", "later"}


def test_what_was_decided_before_is_not_counted(tmp_path: Path) -> None:
    steps: list[tuple[int, int | None]] = []

    def moved(done: int, total: int | None) -> None:
        steps.append((done, total))

    with Journal.open(f"sqlite:///{tmp_path}/j.db") as journal:
        aged(journal, 3)
        for day in range(2):
            again = [entry(f"d{day}-0"), entry(f"again{day}")]
            journal.append([msgspec.structs.replace(one, event_time_ms=T0 + DAY_MS) for one in again])
            journal.flush()
        assert keeping.info(journal)["decisions"] == 32
        assert keeping.export(journal, str(tmp_path / "o.parquet"), 0, 2**62, moved) == 32
        assert steps.pop() == (32, 32)
        assert keeping.export(journal, str(tmp_path / "o.parquet"), T0 + DAY_MS, 2**62, moved) == 20
        assert steps.pop() == (22, 22), "two of those read were judged before it"
        assert keeping.prune(journal, T0 + 9 * DAY_MS, moved) == 32
        assert steps[-1] == (32, 32)
        assert keeping.info(journal)["decisions"] == 0


def test_a_span_is_exported_to_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, out = f"sqlite:///{tmp_path}/j.db", tmp_path / "out.parquet"
    with Journal.open(url) as journal:
        aged(journal, 5)
        journal.flush()

        def interrupted(done: int, total: int | None) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            keeping.export(journal, str(out), 0, 2**62, interrupted)
        assert [path.name for path in tmp_path.glob("out*")] == []
    span = ["--from", "2027-01-16T08:00:00Z", "--to", "2027-01-18T08:00:00+00:00"]
    assert cli.run(["journal", "export", *span, "--out", str(out), "--journal", url]) == 0
    assert "wrote 20 decisions" in capsys.readouterr().err
    rows = pq.read_table(out).to_pylist()
    assert [row["event_id"] for row in rows] == [f"d{day}-{i}" for day in (1, 2) for i in range(10)]
    assert {tuple(row["labels"]) for row in rows} == {("legit",)}
    assert json.loads(rows[0]["event"])["who"] == "person1-0"
    assert rows[0]["action"] == "deny"
    assert cli.run(["journal", "export", "--from", "soon", "--out", str(out), "--journal", url]) == 2
    assert "write 2026-11-11T08:00:00Z" in capsys.readouterr().err
    out.unlink()
    for to in ("2027-01-17", "2027-01-18T02:00:00+02:00"):
        span = ["--from", "2027-01-18", "--to", to]
        assert cli.run(["journal", "export", *span, "--out", str(out), "--journal", url]) == 2
        said = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert "begin at 2027-01-18T00:00:00Z (--from) and end at 2027-01-1" in said
        assert "--from must be the earlier of the two" in said
        assert not out.exists()


def test_the_commands_tell_of_what_waits_beside_a_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    url, spool, out = f"sqlite:///{tmp_path}/j.db", tmp_path / "j.db-spool.0", tmp_path / "o.parquet"
    commands = [["info", "--json"], ["show", "e1"], ["export", "--out", str(out)], ["prune", "--older", "9d"]]

    def told() -> list[str]:
        said = []
        for command in commands:
            cli.run(["journal", *command, "--journal", url])
            said.append(capsys.readouterr())
        assert json.loads(said[0].out)["spool_files"] == ("wait beside" in said[0].err)
        return [
            str(spool) for one in said for line in one.err.splitlines() if f"beside it, in {spool}:" in line
        ]

    with Journal.open(url) as journal:
        journal.append([entry("e1")])
        journal.flush()
        assert spool.exists()
        assert told() == [], "room of a process that runs"
        with Lock(url):
            journal.append([entry("e2")])
            with pytest.raises(JournalError, match="1 entries wait"):
                journal.flush()
            del commands[3]  # it writes
            assert told() == [str(spool)] * 3, "of a process that runs"
        journal.flush(10)
        assert told() == []
        with Lock(url):
            journal.append([entry("e3")])
            journal.close()
            assert told() == [str(spool)] * 3, "of one that has ended"
            before = spool.read_bytes()
    assert cli.run(["journal", "reseal", "--journal", url]) == 2
    assert "wait beside it" in capsys.readouterr().err
    assert spool.read_bytes() == before
    with sqlite3.connect(tmp_path / "j.db") as file:  # it was killed when all had been taken in
        file.execute("INSERT INTO spools VALUES (?, ?)", (before[8:24].hex(), len(before)))
    file.close()
    assert told() == []


def test_the_command_tells_and_prunes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/j.db"
    assert cli.run(["journal", "info", "--journal", url]) == 2
    assert "there is no journal at" in capsys.readouterr().err
    with Journal.open(url) as journal:
        journal.append(kinds())
    assert cli.run(["journal", "info", "--json", "--journal", url]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {name: facts[name] for name in ("decisions", "labels", "edits", "releases", "policies")} == {
        "decisions": 3, "labels": 1, "edits": 1, "releases": 1, "policies": 1,
    }  # fmt: skip
    assert cli.run(["journal", "info", "--journal", url]) == 0
    assert "3 decisions from 2027-01-15T08:00:00Z" in capsys.readouterr().out
    assert cli.run(["journal", "show", "nobody", "--journal", url]) == 2
    assert "no event of this id" in capsys.readouterr().err
    assert cli.run(["journal", "prune", "--older", "soon", "--journal", url]) == 2
    assert "write 400d" in capsys.readouterr().err
    assert cli.run(["journal", "prune", "--older", "36500d", "--journal", url]) == 0
    assert "deleted 0 decisions" in capsys.readouterr().err
