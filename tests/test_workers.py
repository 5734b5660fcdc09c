"""Several workers on one port and one Redis: they answer as one, the dead are replaced, all end in peace."""

from __future__ import annotations

import http.client
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import apart, until, valkey
from test_policies import SHARED, SOON_SECONDS, activate, files, lay_out
from test_service import JSON, Served, claim, start

from riskengine import cli
from riskengine.journal import Journal
from riskengine.policy import load_definition
from riskengine.service.access import make_key
from riskengine.service.metrics import WRITE_SECONDS
from riskengine.stores.address import begin


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    with valkey() as url:
        yield url


def pressed(room: Path, redis: str, workers: int = 2) -> Served:
    """Workers on a store of their own."""
    store = apart(redis, timeout=10_000)
    if not (room / "rules").is_dir():
        lay_out(room / "rules", files("allow"))
    begin(store, load_definition(room / "rules").tenant)
    return start(room, "--store", store, "--workers", str(workers), **SHARED)


def children(pid: int) -> list[int]:
    return [int(found) for found in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def decided(server: Served) -> int:
    text = server.ask("GET", "/metrics").body.decode()
    return sum(
        int(float(n)) for n in re.findall(r"^riskengine_decisions_total\{.*\} (\S+)$", text, re.MULTILINE)
    )


def test_workers_answer_as_one_and_the_dead_are_replaced(tmp_path: Path, redis: str) -> None:
    server = pressed(tmp_path, redis)
    try:
        workers = children(server.process.pid)
        assert len(workers) == 2
        with ThreadPoolExecutor(16) as pool:  # by turns to both: each connection is its own
            answers = list(pool.map(lambda i: server.score(claim(f"e{i}")), range(200)))
        assert {answer.status for answer in answers} == {200}
        time.sleep(2 * WRITE_SECONDS)
        for _ in range(4):  # whichever is asked
            assert decided(server) == 200

        fingerprint = activate(server, files("deny")).value["activation"]["fingerprint"]
        time.sleep(2)
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda i: server.score(claim(f"n{i}")), range(100)))
        assert {answer.value["policy"] for answer in answers} == {fingerprint}
        until(lambda: decided(server) == 300, SOON_SECONDS)
        time.sleep(2 * WRITE_SECONDS)

        os.kill(workers[0], signal.SIGKILL)
        assert server.score(claim("orphan")).status == 200
        until(lambda: len(set(children(server.process.pid)) - {workers[0]}) == 2, 10)
        until(lambda: server.ask("GET", "/readyz").status == 200, 30)
        assert decided(server) >= 300  # what the dead one counted is not lost

        os.kill(server.process.pid, signal.SIGHUP)  # the folders serve again, for both
        until(
            lambda: (
                {server.score(claim(f"h{time.monotonic_ns()}")).value["action"] for _ in range(8)}
                == {"allow"}
            ),
            20,
        )
        acts = server.ask("GET", "/v1/policy/history").value["activations"]
        assert [act["action"] for act in acts] == ["folder", "activate"]
    finally:
        assert server.stop() == 0
    assert any("has died (SIGKILL)" in line for line in server.told)
    assert server.told[-1].startswith("stopped: ")


def test_what_workers_acknowledged_is_journaled_when_they_are_stopped(tmp_path: Path, redis: str) -> None:
    server = pressed(tmp_path, redis)
    acknowledged: list[str] = []

    def press(who: int) -> None:
        for i in range(10_000):
            try:
                answer = server.score(claim(f"{who}-{i}"))
            except (OSError, http.client.HTTPException):  # they take no more
                return
            if answer.status == 200:
                acknowledged.append(answer.value["event_id"])

    with ThreadPoolExecutor(4) as pool:
        for who in range(4):
            pool.submit(press, who)
        while len(acknowledged) < 100:
            time.sleep(0.01)
        assert server.stop() == 0
    with Journal.open(f"sqlite:///{tmp_path / 'journal.db'}", create=False) as journal:
        assert [event_id for event_id in acknowledged if journal.decision(event_id) is None] == []


def test_a_key_has_one_rate_over_all_workers_and_they_end_with_their_supervisor(
    tmp_path: Path, redis: str
) -> None:
    key = make_key(tmp_path / "keys.json", "shop", ("read",), 20, 0)
    server = pressed(tmp_path, redis)
    try:
        headers = {**JSON, "authorization": f"Bearer {key}"}
        with ThreadPoolExecutor(16) as pool:
            began = time.monotonic()
            answers = list(pool.map(lambda _: server.ask("GET", "/v1/policy", None, headers), range(120)))
            seconds = time.monotonic() - began
        admitted = sum(answer.status == 200 for answer in answers)
        assert 20 <= admitted <= 20 + 20 * seconds + 1
        assert {answer.status for answer in answers} == {200, 429}
        workers = children(server.process.pid)
    finally:
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers), 20)


def test_workers_that_cannot_start_end_it(tmp_path: Path, redis: str) -> None:
    rules = lay_out(tmp_path / "rules", {"policy.yaml": "policy: x\nruels: 1\n"})
    with pytest.raises(AssertionError, match="did you mean 'rules'"):
        start(tmp_path, "--store", apart(redis, timeout=10_000), "--workers", "2", **SHARED)
    lay_out(rules, files())
    with pytest.raises(AssertionError, match=r"riskengine store init.*a worker did not start"):
        start(tmp_path, "--store", apart(redis, timeout=10_000), "--workers", "2", **SHARED)


def test_the_memory_store_has_one_worker(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(("serve", "--workers", "2", "--port", "0")) == 2
    assert "2 workers cannot share the store memory://" in capfd.readouterr().err


def test_no_thread_is_left() -> None:
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("riskengine")]
