"""Faults caused for real, and what holds through them: each event counts once, no limit is passed.

Engines and servers are killed with -9, and meet a proxy of ours that delays, cuts and delivers late.
RISKENGINE_KILLS, RISKENGINE_PROCESSES, RISKENGINE_ROUNDS and RISKENGINE_CLAIMS make the runs longer: the full
ones are 50 kills, 8 processes, 100 rounds and 10000 claims.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from servers import apart, running, valkey
from stage import KEY, T0, Stage, claim, policy, write

from riskengine.engine import Engine
from riskengine.stores.address import begin

KILLS = int(os.environ.get("RISKENGINE_KILLS", "3"))
PROCESSES = int(os.environ.get("RISKENGINE_PROCESSES", "2"))
ROUNDS = int(os.environ.get("RISKENGINE_ROUNDS", "5"))
CLAIMS = int(os.environ.get("RISKENGINE_CLAIMS", "600"))
TOGETHER = 25
COUNTS = {"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}}
FEW = 40
SECTIONS = policy(
    events={"coupon_claim": {"required": ["user_id"], "fail": "review"}},
    features=COUNTS,
    limits={
        "one": {"count": "coupon_claim", "by": "device", "over": "1h", "max": 1, "then": "deny"},
        "budget": {"count": "coupon_claim", "by": "campaign", "over": "1h", "max": FEW, "then": "review"},
    },
)


class Proxy:
    """A TCP proxy in front of a server, that does to one request in a few what `fault` draws."""

    def __init__(self, port: int, seed: int) -> None:
        self.draw = random.Random(seed)
        self.faulty = False
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._between, args=(client,), daemon=True).start()

    def _between(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._port))
        except OSError:  # the test is over, and its server gone
            client.close()
            return
        cut = threading.Event()  # what the server says from now on is lost
        threading.Thread(target=self._back, args=(server, client, cut), daemon=True).start()
        with suppress(OSError):
            while data := client.recv(1 << 16):
                fault = (
                    self.draw.choice(("", "", "", "delay", "cut", "half", "late", "lost"))
                    if self.faulty
                    else ""
                )
                if fault == "delay":
                    time.sleep(0.01)
                elif fault == "half":  # the request breaks off in its middle
                    server.sendall(data[: len(data) // 2])
                    break
                elif fault == "late":  # it arrives after the client has hung up, and perhaps asked again
                    cut.set()
                    client.close()
                    time.sleep(self.draw.choice((0, 0.005, 0.03)))
                    server.sendall(data)
                    time.sleep(0.02)
                    break
                elif fault == "lost":  # it is served, and its answer lost
                    cut.set()
                    server.sendall(data)
                    time.sleep(0.005)
                    break
                elif fault == "cut":
                    break
                server.sendall(data)
        server.close()
        client.close()

    def _back(self, server: socket.socket, client: socket.socket, cut: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 16):
                if not cut.is_set():
                    client.sendall(data)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxied(url: str, seed: int) -> Iterator[tuple[Proxy, str]]:
    proxy = Proxy(int(url.rpartition(":")[2].partition("/")[0]), seed)
    try:
        yield proxy, f"redis://127.0.0.1:{proxy.port}/0"
    finally:
        proxy.close()


def settled(stage: Stage, budget_max: int, device_events: dict[str, list[str]], granted: set[str]) -> None:
    """No device has two grants, and the budget no more than its own."""
    assert len(granted) <= budget_max
    for events in device_events.values():
        assert len(granted & set(events)) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_a_bad_network_doubles_nothing(seed: int, tmp_path: Path) -> None:
    """Whatever is answered meanwhile: with the network well again every event has counted once."""
    draw = random.Random(seed)
    with valkey() as url, proxied(url, seed) as (proxy, through):
        store = apart(through, timeout=300)
        begin(store, "stage")
        direct = store.replace(through, url)
        with Stage(tmp_path / "one", SECTIONS, store=store) as one:
            one.engine.score(claim("e-first", device_id="first", campaign_id="c1"))
            proxy.faulty = True
            events = [
                claim(f"e{n}", n, device_id=f"d{draw.randrange(30)}", campaign_id="c1") for n in range(60)
            ]
            answers: dict[str, list[str]] = {}
            for event in events:
                for _ in range(draw.choice((1, 1, 2))):
                    answers.setdefault(event["event_id"], []).append(one.engine.score(event).action)
            proxy.faulty = False
            until_well(one)
            for event in events:
                answers[event["event_id"]].append(one.engine.score(event).action)
            with Stage(tmp_path / "two", SECTIONS, store=direct) as two:
                last = two.row(claim("last", 1000))
                probes = one.engine._store
                wells = int(getattr(one, "wells", 0))
                assert last["claims"] == len(events) + 2 + wells, probes
                again = [two.engine.score(event).action for event in events]
        for event, action in zip(events, again, strict=True):
            assert set(answers[event["event_id"]]) == {action}, event["event_id"]
        granted = {
            event["event_id"] for event, action in zip(events, again, strict=True) if action == "allow"
        }
        by_device: dict[str, list[str]] = {}
        for event in events:
            by_device.setdefault(event["device_id"], []).append(event["event_id"])
        settled(one, FEW, by_device, granted)


def until_well(stage: Stage) -> None:
    """Ask until the store answers again; each time is an event of user u1 more."""
    asked = 0
    deadline = time.monotonic() + 15
    while stage.engine.score(claim(f"well-{asked}", 500)).flags:
        asked += 1
        assert time.monotonic() < deadline, "it never came back"
        time.sleep(0.05)
    stage.wells = asked + 1  # type: ignore[attr-defined]  # counted with the others


ENGINE = """
import json, sys, time
from riskengine.engine import Engine
folder, store, count, start = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
engine = Engine.open(folder, store=store, key=b"a key of the stage", clock=lambda: {T0} + 1000)
print("open", flush=True)
for n in range(start, count):
    event = {{"event_id": f"k{{n}}", "type": "coupon_claim", "time": {T0} + n % 900, "user_id": "u1",
             "device_id": f"d{{n // 2}}", "campaign_id": "c1"}}
    decision = engine.score(event)
    degraded = any(flag.startswith("degraded") for flag in decision.flags)
    if degraded:
        time.sleep(0.02)
    print(json.dumps([n, decision.action, degraded]), flush=True)
"""


def test_killed_engines_and_servers_lose_and_double_nothing(tmp_path: Path) -> None:
    """An engine and its server (its file written at once) are killed in turns, at random moments."""
    draw = random.Random(1)
    folder = write(tmp_path / "policy", SECTIONS)
    script = tmp_path / "engine.py"
    script.write_text(ENGINE.format(T0=T0))
    count = 150 * KILLS
    said: dict[int, set[str]] = {}
    with running(appendonly="yes", appendfsync="always") as server:
        store = apart(server.url, timeout=500)
        begin(store, "stage")
        start = kills = 0
        while start < count:
            words = [sys.executable, str(script), str(folder), store, str(count), str(start)]
            with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as engine:
                assert engine.stdout is not None
                if engine.stdout.readline() != "open\n":
                    continue
                quota = draw.randrange(20, 140) if kills < KILLS else count
                alone: dict[int, str] = {}  # decided without the server, which does not know of it yet
                for line in engine.stdout:
                    n, action, degraded = json.loads(line)
                    alone[n] = action
                    if not degraded:
                        for m, other in alone.items():
                            said.setdefault(m, set()).add(other)
                        alone.clear()
                        start = n
                    quota -= 1
                    if quota == 0 and kills < KILLS:
                        kills += 1
                        if draw.random() < 0.5:
                            engine.kill()
                            break
                        server.kill()
                        server.start()
                        quota = draw.randrange(20, 140)
                else:
                    start = count
        with Stage(tmp_path / "policy", SECTIONS, store=store) as stage:
            assert stage.row(claim("last", 1000))["claims"] == count + 1
    assert kills == KILLS
    assert {len(actions) for actions in said.values()} == {1}, "a retry is answered as the first time"
    allowed = [n for n, actions in said.items() if actions != {"deny"}]
    assert len({n // 2 for n in allowed}) == len(allowed), "one for each device"
    granted = [n for n in allowed if said[n] == {"allow"}]
    assert len(granted) == FEW


def at_once(folder: str, store: str, barrier: Any, rounds: int, together: int, me: int, answers: Any) -> None:
    """A process of its own: with the others, ask for what only one may have."""
    with Engine.open(folder, store=store, key=KEY, clock=lambda: T0) as engine:
        engine.score_many([claim(f"warm{me}-{n}") for n in range(2)])
        granted = []
        for turn in range(rounds):
            events = [
                claim(f"{turn}-{me}-{n}", device_id=f"d{turn}", campaign_id=f"c{turn}")
                for n in range(together)
            ]
            barrier.wait(120)
            for event in events:
                decision = engine.score(event)
                if isinstance(decision, Exception) or decision.flags:
                    raise AssertionError(decision)
                if decision.action == "allow":
                    granted.append(turn)
        answers.put(granted)


def claiming(folder: str, store: str, barrier: Any, count: int, me: int, answers: Any) -> None:
    """A process of its own: claim on one budget, in batches of any size."""
    draw = random.Random(me)
    with Engine.open(folder, store=store, key=KEY, clock=lambda: T0) as engine:
        engine.score_many([claim(f"warm{me}-{n}") for n in range(2)])
        barrier.wait(120)
        granted = done = 0
        while done < count:
            size = min(draw.choice((1, 3, 20)), count - done)
            events = [claim(f"{me}-{done + n}", campaign_id="c1") for n in range(size)]
            granted += sum(
                not isinstance(d, Exception) and d.action == "allow" for d in engine.score_many(events)
            )
            done += size
        answers.put(granted)


def started(target: Any, folder: Path, store: str, *words: Any) -> list[Any]:
    """Run it in PROCESSES processes at once; what each answers."""
    spawning = multiprocessing.get_context("spawn")
    barrier, answers = spawning.Barrier(PROCESSES), spawning.Queue()
    processes = [
        spawning.Process(target=target, args=(str(folder), store, barrier, *words, me, answers))
        for me in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    try:
        return [answers.get(timeout=600) for _ in processes]
    finally:
        for process in processes:
            process.join(30)
            process.kill()


def test_of_simultaneous_claims_on_one_device_one_is_granted(tmp_path: Path) -> None:
    folder = write(tmp_path, SECTIONS)
    with valkey() as url:
        store = apart(url, timeout=10_000)
        begin(store, "stage")
        granted = started(at_once, folder, store, ROUNDS, TOGETHER)
    assert sorted(turn for turns in granted for turn in turns) == list(range(ROUNDS))


def test_a_budget_is_spent_to_the_last_and_never_passed(tmp_path: Path) -> None:
    most = CLAIMS // 2
    budget = {"count": "coupon_claim", "by": "campaign", "over": "1h", "max": most, "then": "deny"}
    folder = write(tmp_path, policy(features=COUNTS, limits={"budget": budget}))
    with valkey() as url:
        store = apart(url, timeout=10_000)
        begin(store, "stage")
        granted = started(claiming, folder, store, CLAIMS // PROCESSES)
    assert sum(granted) == most


def test_a_server_that_is_full_counts_nothing_by_half(tmp_path: Path) -> None:
    with valkey(**{"maxmemory-policy": "noeviction"}) as url, redis.Redis.from_url(url) as client:
        store = apart(url)
        begin(store, "stage")
        with Stage(tmp_path, SECTIONS, store=store) as stage:
            for n in range(20):
                client.config_set("maxmemory", "1mb" if n % 3 == 1 else "0")
                stage.engine.score(claim(f"e{n}", n, device_id=f"d{n}", campaign_id="c1"))
            client.config_set("maxmemory", "0")
            assert stage.row(claim("last", 100))["claims"] == 21
