"""Threads that score at once on a shared store: each by a door of its own, and all as one engine."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from servers import apart, running, until
from stage import Stage, claim, payment, policy, standing_still, write

from riskengine.decision import Decision
from riskengine.engine import Engine
from riskengine.judge import Judge
from riskengine.stores import kept
from riskengine.stores.address import begin
from riskengine.turns import Turns

COUNTS = {"claims": {"count": "coupon_claim", "by": "user", "per": "day"}}
ONE = {"one": {"count": "coupon_claim", "by": "device", "per": "day", "max": 1, "then": "deny"}}
BLOCKED = {"lists": {"blocked": {"of": ["user"]}}}


def counting(**more: Any) -> dict[str, Any]:
    """A policy that counts a user's claims, and lets a device claim once."""
    return policy(features=COUNTS, limits=ONE, **more)


@contextmanager
def taken(turns: Turns) -> Iterator[Judge]:
    """One of an engine's judges, busy meanwhile."""
    judge = turns.take()
    try:
        yield judge
    finally:
        turns.give(judge)


def other_way_round(turns: Turns) -> None:
    """Let the door that was the last to be asked be the first."""
    turns.judges.reverse()
    turns._locks.reverse()


def at_once(calls: Sequence[Callable[[], Any]], threads: int = 8) -> list[Any]:
    """What calls return that are made by threads which begin together."""
    ready = threading.Barrier(threads)
    with ThreadPoolExecutor(threads, initializer=ready.wait) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def test_two_doors_are_open_at_once(store: str, tmp_path: Path) -> None:
    """While one batch is under way, another is scored, and sees what the first has counted."""
    with Stage(tmp_path, counting(), store=f"{store}&at_once=2") as stage:
        turns = stage.engine._turns
        stage.engine.score(claim("e1"))
        with ThreadPoolExecutor(1) as pool, taken(turns) as first:
            assert turns.is_free
            assert stage.row(claim("e2"))["claims"] == 2, "by the second door"
            with taken(turns) as second:
                assert second is not first
                assert not turns.is_free
                waiting = pool.submit(stage.row, claim("e3"))
                while turns._waiting == 0:
                    time.sleep(0.001)
            assert waiting.result(60)["claims"] == 3, "as soon as either is free"


def test_a_thread_opens_the_door_that_a_fiber_would_have_to_wait_for(store: str, tmp_path: Path) -> None:
    """What comes while the first is busy is for a thread, until the second is open as well."""
    with Stage(tmp_path, counting(), store=f"{store}&at_once=2") as stage:
        engine = stage.engine
        assert engine.score(claim("e1")).flags == ()
        assert engine.floats, "by the first, which is open and free"
        with taken(engine._turns):
            assert not engine.floats
            assert stage.row(claim("e2"))["claims"] == 2
            assert engine.floats, "by the second"
            with taken(engine._turns):
                assert engine.floats, "there is nothing to open: it waits for its turn"


def test_a_door_that_cannot_be_opened_leaves_its_work_to_the_others(tmp_path: Path) -> None:
    """A server that lets nobody else in: what would go by another door waits for the one that is open."""
    with running() as server:
        url = apart(server.url, timeout=20_000)
        begin(url, "stage")
        with (
            Stage(tmp_path, counting(), store=f"{url}&at_once=2") as stage,
            redis.from_url(server.url) as own,
        ):
            engine = stage.engine
            assert stage.row(claim("e1"))["claims"] == 1
            own.config_set("maxclients", len(own.client_list()))
            with ThreadPoolExecutor(1) as pool, taken(engine._turns):
                waiting = pool.submit(stage.row, claim("e2"))
                while engine._turns._waiting == 0:
                    time.sleep(0.001)
                assert engine.floats, "it is not tried again at once"
                assert not waiting.done()
            assert waiting.result(60)["claims"] == 2
            own.config_set("maxclients", 100)
            with taken(engine._turns):
                while engine.floats:  # until it is worth another try
                    time.sleep(0.01)
                assert stage.row(claim("e3"))["claims"] == 3
                assert engine.floats
            assert engine.score(claim("e4")).flags == ()
            assert not engine.store_errors


def test_a_retry_waits_for_the_door_that_is_at_its_event(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as for a reply of the store: no door decides what another is deciding."""
    monkeypatch.setattr(kept, "IN_FLIGHT_MS", 0)  # by the store alone nobody would be deciding it
    with Stage(tmp_path, counting(), store=f"{store}&at_once=2") as stage, ThreadPoolExecutor(2) as pool:
        engine, event = stage.engine, claim("e1", device_id="d1")
        engine.score(claim("e0"))
        at_it, go_on = standing_still(engine._turns.judges[0].store, "conclude")
        one = pool.submit(engine.score, event)
        assert at_it.wait(60)
        other = pool.submit(engine.score_many, [claim("e2"), event])
        until(lambda: not engine._turns.is_free)
        time.sleep(0.1)
        assert not other.done()
        go_on.set()
        decided = one.result(60)
        assert (decided.action, decided.flags) == ("allow", ())
        assert other.result(60)[1] == decided


def test_a_url_says_how_many_doors_there_are(store: str, tmp_path: Path) -> None:
    with Stage(tmp_path, counting(), store=f"{store}&at_once=1") as stage:
        assert len(stage.engine._turns.judges) == 1


def test_threads_count_each_event_once(store: str, tmp_path: Path) -> None:
    """Batches of 8 threads, each event in two of them: every count from 1 to n is seen once."""
    n = 400
    with Stage(tmp_path, counting(), store=store) as stage:
        events = [claim(f"e{i}", device_id=f"d{i % 100}") for i in range(n)]
        batches = [events[at : at + 10] for at in range(0, n, 10)]

        def score(batch: list[Any]) -> list[Decision]:
            results = stage.engine.score_many(batch, features=True)
            return [result for result in results if isinstance(result, Decision)]

        decided = at_once([partial(score, batch) for batch in (*batches, *batches)])
    by_event: dict[str, Decision] = {}
    for decision in (decision for batch in decided for decision in batch):
        assert by_event.setdefault(decision.event_id, decision) == decision, "a retry has the same answer"
    counts = Counter(d.features["claims"] for d in by_event.values() if isinstance(d.features, dict))
    assert counts == Counter(range(1, n + 1))
    allowed = Counter(event["device_id"] for event in events if by_event[event["event_id"]].action == "allow")
    assert allowed == Counter(f"d{i}" for i in range(100)), "once a device"


def test_what_follows_at_once_is_known_at_each_door(store: str, tmp_path: Path) -> None:
    """A label, a release and a follow-up that come the moment an event is answered, at another door."""
    with Stage(tmp_path, counting(), store=store) as stage:
        turns = stage.engine._turns
        for i in range(50):
            event = claim(f"e{i}", device_id=f"d{i}")
            assert stage.engine.score(event).action == "allow"
            other_way_round(turns)
            follow = claim(f"f{i}", device_id=f"d{i}", follows=f"e{i}")
            decision = stage.engine.score(follow)
            assert (decision.action, decision.flags) == ("allow", ()), "it has what the first held"


def test_lists_and_policies_are_the_same_at_each_door(store: str, tmp_path: Path) -> None:
    rule = {"stop": {"on": "any", "when": "listed('blocked', user)", "then": "deny", "mode": "live"}}
    rules = counting(rules=rule, **BLOCKED)
    with Stage(tmp_path, rules, store=store) as stage:
        turns, engine = stage.engine._turns, stage.engine
        for listed in (True, False) * 3:
            if listed:
                engine.list_put("blocked", "user", "u1")
            else:
                engine.list_delete("blocked", "user", "u1")
            for _ in turns.judges:
                action = engine.score(payment(f"p{time.monotonic_ns()}", user_id="u1")).action
                assert action == ("deny" if listed else "allow")
                other_way_round(turns)


def test_a_reload_while_threads_score_is_whole(store: str, tmp_path: Path) -> None:
    """Each decision is by one policy or by the other."""
    rules = [
        counting(rules={name: {"on": "any", "when": "true", "then": "review", "risk": risk, "mode": "live"}})
        for name, risk in (("first", 0.1), ("second", 0.2))
    ]
    with Stage(tmp_path, rules[0], store=store) as stage:
        done = threading.Event()

        def score(thread: int) -> set[tuple[str, tuple[str, ...], float]]:
            seen: set[tuple[str, tuple[str, ...], float]] = set()
            i = 0
            while not done.is_set() or i < 20:
                decision = stage.engine.score(payment(f"{thread}-{i}"))
                seen.add((decision.policy, decision.fired, round(decision.risk, 6)))
                i += 1
            return seen

        with ThreadPoolExecutor(4) as pool:
            scoring = [pool.submit(score, thread) for thread in range(4)]
            prints = []
            for n in range(20):
                stage.reload(rules[n % 2])
                prints.append(stage.engine.fingerprint)
            done.set()
            seen = set().union(*(future.result(60) for future in scoring))
    assert seen <= {(prints[0], ("first",), 0.1), (prints[1], ("second",), 0.2)}


def test_what_was_decided_without_the_store_is_known_at_each_door(tmp_path: Path) -> None:
    """A retry has the same answer, whichever door it comes to, while the store is away and after."""
    with running() as server:
        store = apart(server.url, timeout=300)
        begin(store, "stage")
        with Stage(tmp_path, counting(), store=store) as stage:
            turns, engine = stage.engine._turns, stage.engine
            engine.score(claim("e0"))
            with taken(turns):
                engine.score(claim("e1", device_id="d1"))
            server.hold(True)
            events = [claim(f"a{i}", device_id=f"a{i}") for i in range(12)]
            alone = at_once([partial(engine.score, event) for event in events], threads=4)
            assert {flag for decision in alone for flag in decision.flags} == {"degraded:store"}
            assert [engine.score(event) for event in events] == alone, "by heart"
            server.hold(False)
            deadline = time.monotonic() + 60
            while engine.score(payment(f"p{time.monotonic_ns()}")).flags or any(
                judge.store.is_behind for judge in turns.judges
            ):
                assert time.monotonic() < deadline, "it never caught up"
                time.sleep(0.01)
            for _ in turns.judges:
                assert [engine.score(event) for event in events] == alone, "as the store has it"
                other_way_round(turns)
            assert stage.row(claim("e2"))["claims"] == 15


def test_engines_of_many_threads_never_pass_a_limit(store: str, tmp_path: Path) -> None:
    """Two engines, eight threads each, 400 claims of 20 devices: one is allowed each."""
    folder = write(tmp_path, counting())
    engines = [Engine.open(folder, store=store, key=b"k", clock=lambda: claim("e")["time"]) for _ in "12"]
    events = [claim(f"e{i}", device_id=f"d{i % 20}") for i in range(400)]
    calls = [partial(engines[i % 2].score, event) for i, event in enumerate(events)]
    actions = [decision.action for decision in at_once(calls, threads=16)]
    for engine in engines:
        engine.close()
    assert Counter(i % 20 for i, action in enumerate(actions) if action == "allow") == Counter(range(20))
