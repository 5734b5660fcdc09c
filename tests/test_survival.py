"""Faults of the real server under load, with clients that retry: what was acknowledged stays, once.

RISKENGINE_KILLS=50 is the full run of kill -9.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import resource
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import Server, running
from test_service import JSON, Served, claim, lay_out, start

from riskengine import cli
from riskengine.entries import Entry
from riskengine.journal import Journal

KILLS = int(os.environ.get("RISKENGINE_KILLS", "2"))
CALLERS = 4
USERS = 25
DEVICES = 40
LOST_EACH_MAX = 1_000  # decisions that a kill may take from a journal with commit=async
SYNC, ASYNC = "sqlite:///journal.db?commit=sync", "sqlite:///journal.db"


class Callers:
    """Ask about new events without end, each again until it is answered with 200."""

    def __init__(self, name: str, port: int) -> None:
        self._name, self._port = name, port
        self.answers: dict[str, bytes] = {}  # the first one, by event
        self.events: dict[str, dict[str, Any]] = {}
        self.retries = 0
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(who,), daemon=True) for who in range(CALLERS)
        ]
        for thread in self._threads:
            thread.start()

    def _call(self, who: int) -> None:
        draw = random.Random(f"{self._name}{who}")
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        serial = 0
        while not self._stopped.is_set():
            serial += 1
            user, device = draw.randrange(USERS), draw.randrange(DEVICES)
            event = claim(
                f"{self._name}-{who}-{serial}",
                user_id=f"u{user}",
                device_id=f"d{device}",
                time=time.time_ns() // 1_000_000,
            )  # fmt: skip
            self.events[event["event_id"]] = event
            while True:  # what was asked is asked until it is answered, also at the end
                try:
                    connection.request("POST", "/v1/score", json.dumps(event).encode(), JSON)
                    answer = connection.getresponse()
                    body = answer.read()
                except (OSError, http.client.HTTPException):
                    connection.close()
                    answer = None
                if answer is not None and answer.status == 200:
                    self.answers[event["event_id"]] = body
                    break
                if answer is not None:
                    assert answer.status == 503, body
                self.retries += 1
                time.sleep(0.02)
        connection.close()

    def wait(self, n: int) -> None:
        """Until so many more are answered."""
        goal = len(self.answers) + n
        until = time.monotonic() + 120
        while len(self.answers) < goal:
            assert time.monotonic() < until, (len(self.answers), self.retries)
            assert any(thread.is_alive() for thread in self._threads)
            time.sleep(0.005)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def journaled(folder: Path) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    with Journal.open(f"sqlite:///{folder / 'journal.db'}", create=False) as journal:
        for entry in journal.replay():
            if isinstance(entry, Entry):
                found.setdefault(entry.event_id, []).append(entry)
    return found


def check_counters(server: Served, known: dict[str, dict[str, Any]]) -> None:
    """What the server counts is what a naive count of all events says."""
    by_user = Counter(event["user_id"] for event in known.values())
    for user, n in by_user.items():
        probe = claim(f"probe-{user}-{time.monotonic_ns()}", user_id=user)
        answer = server.score(probe, "?features=true")
        assert answer.value["flags"] == [], answer.value
        assert answer.value["features"]["user_claims"] == n + 1, user


def check_limits(answers: dict[str, bytes], known: dict[str, dict[str, Any]]) -> None:
    """Of one a device, exactly one was granted."""
    granted = Counter(
        known[event_id]["device_id"]
        for event_id, body in answers.items()
        if json.loads(body)["action"] == "allow"
    )
    assert granted == dict.fromkeys({known[event_id]["device_id"] for event_id in answers}, 1)


def check_journal(folder: Path, answers: dict[str, bytes]) -> None:
    """Every acknowledged decision is there, once, as it was answered."""
    entries = journaled(folder)
    assert {len(found) for found in entries.values()} <= {1}
    missing = [event_id for event_id in answers if event_id not in entries]
    assert missing == []
    for event_id, body in answers.items():
        assert entries[event_id][0].decision == body


@contextlib.contextmanager
def serving(folder: Path, port: int, *arguments: str) -> Iterator[list[Served]]:
    """A sidecar that may be replaced by another on its port: the last one is stopped in peace."""
    lay_out(folder / "rules")
    servers = [start(folder, "--port", str(port), *arguments)]
    try:
        yield servers
    except BaseException:
        kill(servers[-1])
        raise
    assert servers[-1].stop() == 0, servers[-1].told


def kill(server: Served) -> None:
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    assert server.process.stderr is not None
    server.process.stderr.close()


def killed_at_random(
    folder: Path, port: int, arguments: tuple[str, ...], servers: list[Served], name: str
) -> Callers:
    draw = random.Random(name)
    callers = Callers(name, port)
    for _ in range(KILLS):
        callers.wait(1)
        time.sleep(draw.uniform(0.0, 0.4))
        kill(servers[-1])
        servers.append(start(folder, "--port", str(port), *arguments))
    callers.wait(20)
    callers.stop()
    assert callers.retries >= KILLS
    return callers


def test_kill_9_with_a_journal_that_is_waited_for(tmp_path: Path) -> None:
    """The counters are made again out of the journal: nothing is lost, nothing counts twice."""
    port = free_port()
    with serving(tmp_path, port, "--journal", SYNC) as servers:
        callers = killed_at_random(tmp_path, port, ("--journal", SYNC), servers, "sync")
        check_limits(callers.answers, callers.events)
        for event_id in random.Random(0).sample(sorted(callers.answers), 20):
            assert servers[-1].score(callers.events[event_id]).body == callers.answers[event_id]
        check_counters(servers[-1], callers.events)
    check_journal(tmp_path, callers.answers)


def test_kill_9_with_a_journal_that_is_not_waited_for(tmp_path: Path) -> None:
    """Each kill may take the journal's last decisions, no more, and a retry brings them back."""
    port = free_port()
    with serving(tmp_path, port, "--journal", ASYNC) as servers:
        callers = killed_at_random(tmp_path, port, ("--journal", ASYNC), servers, "async")
        known = journaled(tmp_path)
        servers[-1].score(claim("flushed", user_id="nobody"))
        time.sleep(0.5)
        known = journaled(tmp_path)
        lost = [event_id for event_id in callers.answers if event_id not in known]
        assert len(lost) <= KILLS * LOST_EACH_MAX
        for event_id in lost:
            assert servers[-1].score(callers.events[event_id]).value["flags"] == ["redecided"]
        check_counters(servers[-1], callers.events)
    entries = journaled(tmp_path)
    assert [event_id for event_id in callers.answers if len(entries.get(event_id, ())) != 1] == []


@pytest.fixture
def redis() -> Iterator[Server]:
    with running(appendonly="yes", appendfsync="always") as server:
        yield server


def begun(folder: Path, server: Server) -> str:
    lay_out(folder / "rules")
    patient = f"{server.url}?timeout=20000"  # it waits for a disk that others wait for too
    assert cli.run(("store", "init", "--store", patient, "--rules", str(folder / "rules"))) == 0
    return f"{server.url}?timeout=2000"


@pytest.mark.parametrize("journal", [ASYNC, SYNC])
def test_kill_9_on_a_store_that_lives_on(journal: str, tmp_path: Path, redis: Server) -> None:
    """What the journal lost is known to the store, or decided again and flagged; with commit=sync neither."""
    port = free_port()
    arguments = ("--journal", journal, "--store", begun(tmp_path, redis))
    with serving(tmp_path, port, *arguments) as servers:
        callers = killed_at_random(tmp_path, port, arguments, servers, "shared")
        for event_id, body in callers.answers.items():
            again = servers[-1].score(callers.events[event_id]).body
            assert again == body or (journal == ASYNC and "redecided" in json.loads(again)["flags"])
        check_counters(servers[-1], callers.events)
    assert callers.answers.keys() <= journaled(tmp_path).keys()  # asked again, what was lost is there again
    if journal == SYNC:
        check_journal(tmp_path, callers.answers)
    granted = Counter(
        callers.events[event_id]["device_id"]
        for event_id, body in callers.answers.items()
        if json.loads(body)["action"] == "allow"
    )
    assert max(granted.values()) == 1  # what an answer lost held may stay held


def test_a_store_that_dies_and_returns(tmp_path: Path, redis: Server) -> None:
    port = free_port()
    arguments = ("--journal", SYNC, "--store", begun(tmp_path, redis))
    with serving(tmp_path, port, *arguments) as servers:
        callers = Callers("away", port)
        callers.wait(50)
        redis.kill()
        callers.wait(50)
        redis.start()
        callers.wait(50)
        until = time.monotonic() + 60
        for i in itertools.count():  # each another event: a retry is told again what was decided without it
            answer = servers[-1].score(claim(f"back{i}", user_id="nobody"))
            if answer.value["flags"] == []:
                break
            assert time.monotonic() < until, (answer.value, servers[-1].ask("GET", "/readyz?verbose").body)
            time.sleep(0.1)
        callers.stop()
        degraded = [body for body in callers.answers.values() if json.loads(body)["flags"]]
        assert degraded
        assert {json.loads(body)["action"] for body in degraded} <= {"review", "deny"}  # its `fail:`
        check_counters(servers[-1], callers.events)
    check_journal(tmp_path, callers.answers)


def test_a_database_that_is_locked(tmp_path: Path) -> None:
    """Another process holds the write lock for longer than anybody waits for it."""
    port = free_port()
    with serving(tmp_path, port, "--journal", SYNC) as servers:
        callers = Callers("locked", port)
        callers.wait(20)
        with contextlib.closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            time.sleep(2.5)
            assert servers[-1].ask("GET", "/livez").status == 200
            other.execute("ROLLBACK")
        callers.wait(20)
        callers.stop()
        check_counters(servers[-1], callers.events)
    check_journal(tmp_path, callers.answers)


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """No file may grow any more (RLIMIT_FSIZE), then they may again."""
    port = free_port()
    with serving(tmp_path, port, "--journal", SYNC) as servers:
        callers = Callers("full", port)
        callers.wait(20)
        pid = servers[-1].process.pid
        _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4_096, most))
        before = callers.retries
        until = time.monotonic() + 60
        while callers.retries == before:
            if any(json.loads(body)["flags"] for body in list(callers.answers.values())):
                break
            assert time.monotonic() < until
            time.sleep(0.1)
        assert servers[-1].ask("GET", "/livez").status == 200
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
        callers.wait(20)
        callers.stop()
        check_counters(servers[-1], callers.events)
    check_journal(tmp_path, callers.answers)


def test_sigterm_under_load(tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path, port, "--journal", SYNC) as servers:
        callers = Callers("term", port)
        callers.wait(30)
        assert servers[-1].stop(signal.SIGTERM) == 0
        assert servers[-1].told[-1].startswith("stopped: ")
        acknowledged = dict(callers.answers)
        check_journal(tmp_path, acknowledged)
        servers.append(start(tmp_path, "--port", str(port), "--journal", SYNC))
        callers.wait(30)
        callers.stop()
        check_counters(servers[-1], callers.events)
        check_limits(callers.answers, callers.events)
    check_journal(tmp_path, callers.answers)
