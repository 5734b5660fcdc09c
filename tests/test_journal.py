"""The journal: arrival order, what is queued, what goes wrong with files, and kill -9 in mid-write."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riskengine.decision import Decision
from riskengine.entries import (
    Activation,
    AlertEntry,
    AnyEntry,
    EditEntry,
    Entry,
    LabelEntry,
    PolicyEntry,
    ReleaseEntry,
)
from riskengine.journal import (
    Journal,
    JournalError,
    database,
    door,
    keeping,
    pack_row,
    spool,
    tables,
    unpack_row,
)
from riskengine.journal.blocks import Block, pack_entries

ROOT = Path(__file__).resolve().parent.parent
ACTIVATION = Activation(
    id="a1", action="activate", fingerprint="p2", files={"a.yaml": "policy: 策略\n" * 99}, time_ms=2,
    author="ann", reason="a farm", difference="+policy: 策略\n",
)  # fmt: skip


def entry(event_id: str, action: str = "deny", **changes: Any) -> Entry:
    risk, flags, policy, layout = 0.1 + 0.2, ("late", "follows:unknown"), "p" * 16, "f" * 16
    decision = Decision(
        event_id, f"d-{event_id}", action, risk, None, (), (), (), None, policy, flags, 1_800_000_000_000
    )
    return msgspec.structs.replace(
        Entry(
            event_id=event_id,
            decision_id=decision.decision_id,
            event_time_ms=decision.time,
            type="payment",
            action=action,
            risk=risk,
            decision=msgspec.json.encode(decision),
            event={"event_id": event_id, "type": "payment", "note": "新年快乐"},
            row=pack_row([1.0, float("nan"), "cn", 0.1 + 0.2]),
            policy=policy,
            features=layout,
            flags=flags,
            trace=msgspec.msgpack.encode((layout, {7: 2**64 - 1}, [3], 1_800_000_000_001)),
            content=bytes(range(16)),
        ),
        **changes,
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/j.db"


def as_read(written: Entry, seq: int) -> Entry:
    return msgspec.structs.replace(written, seq=seq)


def test_a_decision_is_read_back_as_it_was_while_queued_and_after(url: str) -> None:
    with Journal.open(url) as journal:
        journal.append([entry("e1")])
        assert msgspec.structs.replace(found(journal, "e1"), seq=0) == as_read(entry("e1"), 0)
        journal.flush()
        assert found(journal, "e1") == as_read(entry("e1"), 1)
        assert journal.decision("e2") is None
    with Journal.open(url) as again:
        assert found(again, "e1") == as_read(entry("e1"), 1)


def found(journal: Journal, event_id: str) -> Entry:
    entry = journal.decision(event_id)
    assert entry is not None
    return entry


def test_rows_keep_every_bit() -> None:
    values: list[float | str | None] = [0.1 + 0.2, float("nan"), float("-inf"), -0.0, 5e-324, "街", None]
    back = unpack_row(pack_row(values))
    assert repr(back) == repr(values)


def test_all_kinds_are_replayed_in_arrival_order(url: str) -> None:
    entries: list[AnyEntry] = [
        PolicyEntry(fingerprint="p1", time_ms=1),
        PolicyEntry(fingerprint="p2", time_ms=2, activation=ACTIVATION),
        entry("e1"),
        LabelEntry(event_id="e1", label="fraud", time_ms=5, source="bank", received_ms=6),
        EditEntry(
            kind="list", op="put", name="blocked", entity="device", key=2**64 - 1,
            expires_ms=9, reason="farm", author="li", time_ms=7,
        ),
        entry("e2"),
        EditEntry(kind="table", op="put", name="shops", entity="merchant", key=0, value=b"{}", time_ms=7),
        ReleaseEntry(event_id="e2", time_ms=8),
        EditEntry(kind="list", op="delete", name="blocked", entity="device", key=2**64 - 1, time_ms=9),
        LabelEntry(event_id="e1", label="legit", time_ms=9),
        entry("e3", event={"type": "payment"}),
        AlertEntry(
            id="a", alert="busy", by="terminal", key="till-7", key_hash=2**64 - 1, start_ms=3, peak=0.5,
            peak_ms=4, updated_ms=5, above=0.3, share=True, over_ms=60_000, events=("e1", "e2"), zh="忙",
        ),
    ]  # fmt: skip
    with Journal.open(url) as journal:
        for one in entries:
            journal.append([one])
        journal.flush()
        numbered = [
            as_read(one, i) if isinstance(one, Entry) else msgspec.structs.replace(one, seq=i)
            for i, one in enumerate(entries, 1)
        ]
        assert list(journal.replay()) == numbered
        assert journal.activations() == [ACTIVATION]
        assert list(journal.replay(after=8)) == numbered[8:]
        assert [label.label for label in journal.labels("e1")] == ["fraud", "legit"]
        assert journal.labels("e2") == []
        assert journal.alerts() == numbered[-1:]
        journal.append([msgspec.structs.replace(entries[-1], updated_ms=9, end_ms=9)])
        journal.flush()
        assert [one.end_ms for one in journal.alerts()] == [9]
        assert journal.alerts(open_only=True) == []


def test_replay_reads_many_pages_and_stops_at_what_was_there(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "READ_ENTRIES", 7)
    monkeypatch.setattr(door, "READ_BLOCKS", 3)
    with Journal.open(url) as journal:
        for i in range(50):
            journal.append([entry(f"e{i}"), LabelEntry(event_id=f"e{i}", label="legit", time_ms=i)])
        journal.flush()
        replay = journal.replay()
        first = next(replay)
        journal.append([entry("later")])
        journal.flush()
        assert [one.seq for one in (first, *replay)] == list(range(1, 101))


def test_labels_are_seen_while_queued(url: str) -> None:
    with Journal.open(url) as journal:
        journal.append([LabelEntry(event_id="e1", label="fraud", time_ms=1)])
        journal.flush()
        with Lock(url):
            journal.append([LabelEntry(event_id="e1", label="legit", time_ms=2)])
            assert [label.label for label in journal.labels("e1")] == ["fraud", "legit"]


def test_the_first_decision_of_an_event_stands(url: str) -> None:
    with Journal.open(url) as journal:
        journal.append([entry("e1"), entry("e1", action="allow")])
        assert found(journal, "e1").action == "deny"
        journal.flush()
        journal.append([entry("e1", action="allow")])
        assert found(journal, "e1").action == "deny"
        journal.flush()
        assert [one.seq for one in journal.replay()] == [1]
        assert keeping.info(journal)["decisions"] == 1
        assert journal.status == {
            "queued": 0, "spooled": 0, "committed": 3, "refused": 0, "failures": 0, "failure": None,
        }  # fmt: skip


def test_a_block_of_events_that_were_all_known_is_not_kept(url: str) -> None:
    with Journal.open(url) as journal:
        journal.append([entry("e1"), entry("e2")])
        journal.flush()
        for _ in range(5):
            journal.append([entry("e2", action="allow"), entry("e1", action="allow")])
            journal.flush()
        journal.append([entry("e3"), entry("e1")])
        journal.append([LabelEntry(event_id="e1", label="fraud", time_ms=1)])
        journal.flush()
        assert keeping.info(journal)["blocks"] == 2
        assert [one.seq for one in journal.replay()] == [1, 2, 13, 15]
        for after in range(15):
            assert [one.seq for one in journal.replay(after)] == [n for n in (1, 2, 13, 15) if n > after]
        assert [one.event_id for one in journal.recent(15)] == ["e1", "e2", "e3"]
        assert [found(journal, f"e{i}").seq for i in (1, 2, 3)] == [1, 2, 13]
    with Journal.open(url) as journal:
        journal.append([entry("e2"), entry("e4")])
        journal.flush()
        assert [found(journal, f"e{i}").seq for i in (1, 2, 3, 4)] == [1, 2, 13, 17]


def test_no_journal_keeps_nothing() -> None:
    with Journal.open(None) as journal:
        journal.append([entry("e1")])
        journal.flush()
        assert journal.decision("e1") is None
        assert journal.labels("e1") == []
        assert list(journal.replay()) == []


def test_an_event_that_json_cannot_say_is_kept_without_that_field(url: str) -> None:
    event = {"event_id": "e1", "odd": object(), "huge": 10**30, "fine": {"a": [1, None]}, "bad": "\ud800"}
    with Journal.open(url) as journal:
        journal.append([entry("e1", event=event)])
        journal.flush()
        assert found(journal, "e1").event == {
            "event_id": "e1", "odd": "<object>", "huge": "<int>", "fine": {"a": [1, None]}, "bad": "<str>",
        }  # fmt: skip


def test_the_event_is_kept_as_it_was_when_appended(url: str) -> None:
    event = {"event_id": "e1", "deep": {"a": 1}}
    with Journal.open(url) as journal, Lock(url):
        journal.append([entry("e1", event=event)])
        event["deep"] = {}
        assert found(journal, "e1").event == {"event_id": "e1", "deep": {"a": 1}}


@given(st.lists(st.sampled_from(["e", "l", "r", "flush"]), max_size=30))
def test_any_mixture_keeps_its_order(tmp_path_factory: pytest.TempPathFactory, kinds: list[str]) -> None:
    url = f"sqlite:///{tmp_path_factory.mktemp('j')}/j.db"
    with Journal.open(url) as journal:
        written: list[str] = []
        for i, kind in enumerate(kinds):
            if kind == "flush":
                journal.flush()
                continue
            one: AnyEntry = (
                entry(f"x{i}")
                if kind == "e"
                else LabelEntry(event_id=f"x{i}", label="fraud", time_ms=i)
                if kind == "l"
                else ReleaseEntry(event_id=f"x{i}", time_ms=i)
            )
            journal.append([one])
            written.append(f"x{i}")
        journal.flush()
        replayed = [
            one.event_id for one in journal.replay() if isinstance(one, Entry | LabelEntry | ReleaseEntry)
        ]
        assert replayed == written


def test_many_threads_lose_nothing(url: str) -> None:
    with Journal.open(url) as journal:

        def append(worker: int) -> None:
            for i in range(200):
                journal.append([entry(f"{worker}-{i}")])

        threads = [threading.Thread(target=append, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        journal.flush()
        ids = [one.event_id for one in journal.replay() if isinstance(one, Entry)]
        assert len(ids) == len(set(ids)) == 800
        for worker in range(4):
            assert [i for i in ids if i.startswith(f"{worker}-")] == [f"{worker}-{i}" for i in range(200)]


WRITER = """
import sys
from tests.test_journal import entry
from riskengine.journal import Journal
name, count, url = sys.argv[1], int(sys.argv[2]), sys.argv[3]
journal = Journal.open(url)
for i in range(count):
    journal.append([entry(f"{name}-{i}")])
    if i % 50 == 0:
        journal.flush()
        print(i, flush=True)
"""


def test_two_processes_share_one_file(url: str) -> None:
    """Both make the file at once, and both end without `close`: what is queued is written at exit."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, name, "120", url], stdout=subprocess.DEVNULL, cwd=ROOT
        )
        for name in ("a", "b")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    with Journal.open(url, create=False) as journal:
        replayed = list(journal.replay())
    assert [one.seq for one in replayed] == list(range(1, 241))
    ids = [one.event_id for one in replayed if isinstance(one, Entry)]
    for name in ("a", "b"):
        assert [i for i in ids if i.startswith(name)] == [f"{name}-{i}" for i in range(120)]


def test_kill_in_mid_write_loses_nothing_that_was_flushed(url: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, "k", "100000", url], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as writer:
        assert writer.stdout is not None
        flushed = 0
        while flushed < 300:
            flushed = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        said = writer.stdout.read().split()
        flushed = max([flushed, *map(int, said)])
    assert writer.returncode == -signal.SIGKILL
    with Journal.open(url, create=False) as journal:
        ids = [one.event_id for one in journal.replay() if isinstance(one, Entry)]
        assert len(ids) > flushed
        assert ids == [f"k-{i}" for i in range(len(ids))]
        journal.append([entry("after")])
        journal.flush()
        assert [one.event_id for one in journal.replay(after=len(ids)) if isinstance(one, Entry)] == ["after"]


class Lock:
    """Another process's write lock on the journal."""

    def __init__(self, url: str, make: bool = False) -> None:
        self.file = url.removeprefix("sqlite:///")
        if make:
            Journal.open(url).close()

    def __enter__(self) -> None:
        self.connection = sqlite3.connect(self.file, isolation_level=None)
        self.connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        self.connection.execute("ROLLBACK")
        self.connection.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(door, "RETRY_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
def test_what_a_locked_file_does_not_take_waits_in_the_spool(url: str, tmp_path: Path) -> None:
    with Journal.open(url, queue_entries=3) as journal:
        assert (tmp_path / "j.db-spool.0").stat().st_size == spool.RESERVED_BYTES
        with Lock(url):
            journal.append([entry("e1")])
            with pytest.raises(JournalError, match=r"database is locked.*1 entries wait.*spool\.0") as told:
                journal.flush()
            assert told.value.kept
            assert journal.is_away
            for i in range(2, 20):  # more than the queue holds
                journal.append([entry(f"e{i}"), LabelEntry(event_id=f"e{i}", label="fraud", time_ms=i)])
                journal.wait_for_room()
            assert found(journal, "e1").decision_id == "d-e1"
            assert found(journal, "e19").decision_id == "d-e19"
            assert journal.decision("e20") is None
        journal.flush(10)
        assert not journal.is_away
        journal.append([entry("e20"), entry("e1")])
        journal.flush()
        replayed = list(journal.replay())
        assert [one.event_id for one in replayed if isinstance(one, Entry)] == [f"e{i}" for i in range(1, 21)]
        labels = [one.event_id for one in replayed if isinstance(one, LabelEntry)]
        assert labels == [f"e{i}" for i in range(2, 20)]
        assert journal.status["spooled"] == 0
    assert not (tmp_path / "j.db-spool.0").exists()


@pytest.mark.usefixtures("impatient")
def test_a_spool_outlives_its_process_and_is_taken_in_once(url: str, tmp_path: Path) -> None:
    """Also when the taking in is killed between two records, and other processes come and go."""
    with Lock(url, make=True):
        for name in ("a", "b"):
            journal = Journal.open(url)
            for i in range(40):
                journal.append([entry(f"{name}{i}"), ReleaseEntry(event_id=f"{name}{i}", time_ms=i)])
                with contextlib.suppress(JournalError):
                    journal.flush(0.001)
            journal.close()
        assert len(list(tmp_path.glob("j.db-spool.*"))) == 2
    for _ in range(6):
        script = f"import time\nfrom riskengine.journal import Journal\nJournal.open({url!r})\ntime.sleep(9)"
        with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as taker:
            time.sleep(0.35 + random.random() / 5)
            taker.kill()
    with Journal.open(url) as journal:
        until = time.monotonic() + 20
        while journal.spools_left and time.monotonic() < until:
            time.sleep(0.01)
        kept = [one.event_id for one in journal.replay() if isinstance(one, Entry)]
        released = [one.event_id for one in journal.replay() if isinstance(one, ReleaseEntry)]
    assert kept == released
    assert sorted(kept) == sorted(f"{name}{i}" for name in ("a", "b") for i in range(40))
    for name in ("a", "b"):
        assert [one for one in kept if one.startswith(name)] == [f"{name}{i}" for i in range(40)]
    with Journal.open(url) as journal:
        assert journal.was_cut_off, "of which a sign stays until somebody goes on"
        journal.append([entry("last")])
    assert list(tmp_path.glob("j.db-spool.*")) == []


def test_a_full_queue_waits_for_a_disk_that_keeps_writing(url: str) -> None:
    with Journal.open(url, queue_entries=10) as journal:
        for i in range(0, 60, 6):
            journal.append([entry(f"e{k}") for k in range(i, i + 6)])
        with pytest.raises(JournalError, match="queue is full"):
            journal.append([entry(f"x{k}") for k in range(11)])
        journal.flush()
        replayed = [one.event_id for one in journal.replay() if isinstance(one, Entry)]
        assert replayed == [f"e{k}" for k in range(60)]


class Later:
    """Decided events that become a block when they are asked for."""

    def __init__(self, *event_ids: str) -> None:
        self.event_ids = event_ids
        self.made_by: set[str] = set()

    record = None

    def block(self) -> Block:
        self.made_by.add(threading.current_thread().name)
        return pack_entries([entry(event_id) for event_id in self.event_ids])


def test_what_is_left_for_later_is_made_by_the_writer_in_its_place(url: str) -> None:
    later = [Later(*(f"e{i}-{k}" for k in range(3))) for i in range(400)]
    with Journal.open(url) as journal:
        for i, several in enumerate(later):
            journal.append_later(several)
            journal.append([ReleaseEntry(event_id=f"e{i}", time_ms=i)])
        journal.flush()
        ids = [one.event_id for one in journal.replay() if isinstance(one, Entry | ReleaseEntry)]
        assert ids == [event_id for i, one in enumerate(later) for event_id in (*one.event_ids, f"e{i}")]
        assert {name for one in later for name in one.made_by} == {"riskengine-journal"}
        assert journal.status["queued"] == 0


def test_what_is_left_for_later_is_found_while_queued(url: str) -> None:
    with Journal.open(url) as journal, Lock(url):
        journal.append_later(Later("e1", "e2", "e1"))
        assert found(journal, "e2") == entry("e2")
        assert found(journal, "e1") == entry("e1")
        assert journal.decision("e3") is None


def test_traffic_goes_no_faster_than_what_may_be_lost(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "LOSS_ENTRIES", 10)
    monkeypatch.setattr(door, "LOSS_SECONDS", 0.0)
    with Journal.open(url) as journal:
        for i in range(100):
            journal.wait_for_room()
            journal.append_later(Later(f"x{i}-0", f"x{i}-1"))
            assert journal.status["queued"] <= 11
        journal.flush()
        assert sum(1 for _ in journal.replay()) == 200


@pytest.mark.usefixtures("impatient")
def test_a_deleted_file_is_noticed_and_a_restored_one_taken_up(url: str, tmp_path: Path) -> None:
    file = tmp_path / "j.db"
    with Journal.open(url) as journal:
        journal.append([entry("e1")])
        journal.flush()
        copy = sqlite3.connect(tmp_path / "copy.db")
        with sqlite3.connect(file) as source:
            source.backup(copy)
        source.close()
        copy.close()
        for path in tmp_path.glob("j.db*"):
            path.unlink()
        journal.append([entry("e2")])
        with pytest.raises(JournalError, match=r"is gone\. Put it back"):
            journal.flush()
        assert not file.exists()
        (tmp_path / "copy.db").rename(file)
        journal.flush(10)
        assert [one.event_id for one in journal.replay() if isinstance(one, Entry)] == ["e1", "e2"]


FULL = """
import resource, sys
from riskengine.journal import Journal, JournalError, spool
from tests.test_journal import Later, entry
url, reserved = sys.argv[1], int(sys.argv[2])
spool.RESERVED_BYTES = reserved
journal = Journal.open(url, queue_entries=50)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
told = set()
try:
    for i in range(4_000):
        journal.wait_for_room()
        journal.append_later(Later(f"e{i}"))
        if i % 10 == 0:
            try:
                journal.flush()
            except JournalError as error:
                told.add(str(error))
    raise SystemExit("no end of the room")
except JournalError as error:
    print(i, journal.status["queued"], error)
print(" ".join(told))
print([journal.decision(f"e{k}") is not None for k in (0, i - 1, i)])
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
while journal.status["queued"] or journal.status["spooled"]:
    try:
        journal.flush(10)
    except JournalError:
        pass
print(*(one.event_id for one in journal.replay()))
journal.close()
"""


def test_a_full_disk_is_told_and_nothing_is_lost(url: str) -> None:
    """First the database is full, then the spool, then the memory: the rest is refused uncounted."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, url, "100000"], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    end, told, known, kept = done.stdout.strip().splitlines()
    last, queued, text = end.split(" ", 2)
    assert queued == "50"
    assert "spool cannot be written either" in text
    assert "neither counted nor decided" in text
    assert "entries wait in" in told
    assert known == "[True, True, False]"
    assert kept.split() == [f"e{i}" for i in range(int(last))]


def test_a_fork_is_refused_in_the_child_and_harmless_to_the_parent(url: str) -> None:
    script = f"""
import os
from tests.test_journal import entry
from riskengine.journal import Journal, JournalError
journal = Journal.open({url!r})
journal.append([entry("e1")])
child = os.fork()
if child == 0:
    try:
        journal.append([entry("e2")])
    except JournalError as error:
        print(error, flush=True)
        journal.close()
        raise SystemExit(7)
status = os.waitpid(child, 0)[1]
print(os.waitstatus_to_exitcode(status))
journal.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "opened before a fork" in done.stdout
    assert done.stdout.splitlines()[-1] == "7"
    with Journal.open(url) as journal:
        assert [one.event_id for one in journal.replay() if isinstance(one, Entry)] == ["e1"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://u:secret@h/db", "kept in SQLite or PostgreSQL, not in mysql"),
        ("postgresql://u:secret@h", "names no database"),
        ("sqlite:///j.db?commit=never", "another commit than async or sync"),
        ("sqlite:///j.db?cache=1", "says cache: it may say commit and spool"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("journal.db", "Write it as sqlite:///journal.db"),
        ("sqlite:////no/such/folder/j.db", "there is no folder /no/such/folder"),
        ("sqlite:////proc", "it is a folder. Name a file in it"),
        ("sqlite:////proc/j.db", "the right to write the file and its folder, or name another place"),
    ],
)
def test_a_url_that_will_not_do(url: str, message: str) -> None:
    with pytest.raises(JournalError, match=message) as caught:
        Journal.open(url)
    assert "secret" not in str(caught.value)


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.db"
    text.write_text("not a database at all, but long enough to look like one" * 30)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE t (a)")
    connection.close()
    for file, message in ((text, "is not a SQLite file"), (other, "not a riskengine journal")):
        before = file.read_bytes()
        with pytest.raises(JournalError, match=message):
            Journal.open(f"sqlite:///{file}")
        assert file.read_bytes() == before


def test_a_damaged_file_is_told_with_a_mend(url: str, tmp_path: Path) -> None:
    file, mend = tmp_path / "j.db", r"malformed\. The file is damaged: move it aside and put a copy"
    with Journal.open(url) as journal:
        for i in range(200):
            journal.append([entry(f"e{i}"), LabelEntry(event_id=f"e{i}", label="fraud", time_ms=i)])
        journal.flush()
    whole = file.read_bytes()
    file.write_bytes(whole[: database.PAGE_BYTES])
    with pytest.raises(JournalError, match=f"cannot be opened: .*{mend}"):
        Journal.open(url, create=False)
    file.write_bytes(whole[: 2 * database.PAGE_BYTES] + bytes(len(whole) - 2 * database.PAGE_BYTES))
    with Journal.open(url, create=False) as journal, pytest.raises(JournalError) as told:
        list(journal.replay())
    assert re.search(f"cannot be read: .*{mend}", str(told.value))


def test_another_layout_is_refused(url: str, tmp_path: Path) -> None:
    Journal.open(url).close()
    with sqlite3.connect(tmp_path / "j.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    ours = tables.SCHEMA_VERSION
    with pytest.raises(JournalError, match=f"layout 99, and this riskengine reads and writes layout {ours}"):
        Journal.open(url)


def test_a_missing_journal_is_not_made_for_a_reader(url: str, tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="there is no journal at"):
        Journal.open(url, create=False)
    assert list(tmp_path.iterdir()) == []
    os.close(os.open(tmp_path / "j.db", os.O_CREAT))
    with pytest.raises(JournalError, match="is empty"):
        Journal.open(url, create=False)
