"""What scores on an event loop and waits for a shared store: the loop goes on, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from servers import Server, apart, running
from stage import Stage, claim, payment, policy

from riskengine.decision import Decision
from riskengine.engine import Engine
from riskengine.fibers import Fiber, Fibers, Waker, afloat, current, help_out, mine, pause
from riskengine.stores.address import begin

T = TypeVar("T")
SLOW_MS = 300  # that a held server is waited for
RULES = policy(
    features={"claims": {"count": "coupon_claim", "by": "user", "per": "day"}},
    limits={"one": {"count": "coupon_claim", "by": "device", "per": "day", "max": 1, "then": "deny"}},
)


class Own(threading.local):
    """What each has one of."""

    value = 0


@pytest.fixture(params=["asyncio", "uvloop"])
def loops(request: pytest.FixtureRequest) -> Any:
    """What makes a loop: there are two kinds of it."""
    return asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop


def run(work: Coroutine[Any, Any, T], loops: Any) -> T:
    with asyncio.Runner(loop_factory=loops) as runner:
        return runner.run(work)


def at_hand(engine: Engine) -> None:
    """Let each of its doors have a connection."""
    for judge in engine._turns.judges:
        link: Any = judge.store
        link._link.call("PING")
    assert engine.floats


@contextmanager
def held_up(folder: Path, timeout_ms: int) -> Iterator[tuple[Server, Stage]]:
    """An engine with every door open, on a server of its own, which a test may hold up."""
    with running() as server:
        url = apart(server.url, timeout=timeout_ms)
        begin(url, "stage")
        with Stage(folder, RULES, store=url) as stage:
            at_hand(stage.engine)
            yield server, stage


def test_a_loop_goes_on_while_fibers_wait(loops: Any) -> None:
    async def play() -> tuple[list[int], list[str]]:
        said: list[str] = []

        def work(i: int) -> int:
            said.append(f"begins {i}")
            pause(0.02 * (3 - i))
            said.append(f"ends {i}")
            return 10 * i

        results = await asyncio.gather(*(afloat(partial(work, i)) for i in range(3)))
        return list(results), said

    results, said = run(play(), loops)
    assert results == [0, 10, 20]
    assert said == ["begins 0", "begins 1", "begins 2", "ends 2", "ends 1", "ends 0"]


def test_what_is_raised_in_a_fiber_is_raised_where_it_is_awaited(loops: Any) -> None:
    def fails() -> None:
        pause(0.001)
        raise ValueError("so it is")

    async def play() -> None:
        with pytest.raises(ValueError, match="so it is"):
            await afloat(fails)
        assert await afloat(lambda: 1) == 1, "another work in the same fiber"

    run(play(), loops)


def test_each_fiber_has_its_own() -> None:
    local = Own()
    local.value = 1

    def work() -> tuple[int, int]:
        before = mine(local).value
        mine(local).value += 10
        pause(0.001)
        return before, mine(local).value

    async def play() -> list[tuple[int, int]]:
        return list(await asyncio.gather(afloat(work), afloat(work)))

    assert run(play(), asyncio.new_event_loop) == [(0, 10), (0, 10)]
    assert mine(local).value == 1
    assert current() is None


def test_who_holds_up_the_loop_does_what_fibers_wait_for() -> None:
    """A lock that a fiber holds, wanted by the thread of its loop."""
    ended: list[int] = []

    async def play() -> None:
        fibers = Fibers(asyncio.get_running_loop())
        for seconds in (0.05, 0.01):
            fibers.run(partial(pause, seconds), lambda *_: ended.append(1))
        assert ended == []
        while help_out():
            pass
        assert ended == [1, 1]
        await asyncio.sleep(0.1)  # nobody lets them go on a second time
        assert ended == [1, 1]

    run(play(), asyncio.new_event_loop)


def test_a_waker_of_a_closed_loop_says_so() -> None:
    wakers: list[Waker] = []

    async def play() -> None:
        def work() -> None:
            fiber = current()
            assert fiber is not None
            wakers.append(Waker(fiber))
            wakers[0].wait()

        fibers = Fibers(asyncio.get_running_loop())
        fibers.run(work, lambda *_: None)

    run(play(), asyncio.new_event_loop)
    assert not wakers[0].wake()
    wakers.clear()
    gc.collect()


def test_lone_events_on_a_loop_are_decided_as_by_threads(store: str, tmp_path: Path, loops: Any) -> None:
    """Several at once, in rooms of their own: once a device, every count once, and no thread is begun."""
    n = 200
    events = [claim(f"e{i}", device_id=f"d{i % 50}", user_id=f"u{i % 4}") for i in range(n)]
    with Stage(tmp_path, RULES, store=store) as stage:
        at_hand(stage.engine)
        stage.engine.score(payment("first", user_id="another"))
        threads = threading.active_count()

        async def play() -> list[Decision]:
            decided: list[Decision] = []
            for _ in range(2):  # those of the second time are retries
                decided += await asyncio.gather(
                    *(stage.engine.ascore(event, features=True) for event in events)
                )
            assert threading.active_count() == threads
            return decided

        decided = run(play(), loops)
        assert [decision.event_id for decision in decided] == [
            event["event_id"] for event in (*events, *events)
        ]
        assert decided[:n] == decided[n:], "a retry has the same answer"
        allowed = Counter(
            e["device_id"] for e, d in zip(events, decided, strict=False) if d.action == "allow"
        )
        assert allowed == Counter(f"d{i}" for i in range(50))
        counts = Counter(
            (event["user_id"], decision.features["claims"])
            for event, decision in zip(events, decided, strict=False)
            if isinstance(decision.features, dict)
        )
        assert counts == Counter((f"u{u}", c) for u in range(4) for c in range(1, n // 4 + 1))
        assert {flag for decision in decided for flag in decision.flags} == set()


def test_others_go_on_while_the_store_is_slow(tmp_path: Path, loops: Any) -> None:
    """A store that is held up: the loop ticks, what was asked is decided by its deadline, and flagged."""
    with held_up(tmp_path, SLOW_MS) as (server, stage):
        ticks: list[float] = []

        async def tick() -> None:
            while True:
                ticks.append(time.monotonic())
                await asyncio.sleep(0.005)

        async def play() -> tuple[Decision, Decision, float]:
            ticking = asyncio.create_task(tick())
            first = await stage.engine.ascore(claim("e1"))
            server.hold(True)
            began = time.monotonic()
            ticks.clear()
            alone = await stage.engine.ascore(claim("e2"))
            took = time.monotonic() - began
            server.hold(False)
            ticking.cancel()
            return first, alone, took

        first, alone, took = run(play(), loops)
        assert first.flags == ()
        assert alone.flags == ("degraded:store",)
        assert SLOW_MS / 1000 <= took < 20
        assert len(ticks) > 5, "the loop went on"
        deadline = time.monotonic() + 60
        while stage.engine.score(payment(f"p{time.monotonic_ns()}")).flags or not stage.engine.floats:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert stage.row(claim("e3"))["claims"] == 3, "what was decided alone is counted"


def test_one_event_by_several_doors_is_one_where_the_store_is_slow(tmp_path: Path, loops: Any) -> None:
    """Each waits by itself, and has the answer of the first that need not wait any more."""
    with held_up(tmp_path, SLOW_MS) as (server, stage):
        event = {name: value for name, value in claim("e1").items() if name != "time"}

        async def play() -> list[Decision]:
            server.hold(True)
            asked = []
            for _ in range(3):
                asked.append(asyncio.create_task(stage.engine.ascore(event)))
                await asyncio.sleep(0.02)
                stage.now += 1  # each would be stamped anew
            return await asyncio.gather(*asked)

        decided = run(play(), loops)
        server.hold(False)
        assert decided[0].flags == ("degraded:store",)
        assert decided == [decided[0]] * 3


def test_calls_on_the_loop_s_own_thread_do_not_wait_for_ever(tmp_path: Path, loops: Any) -> None:
    """A label, a score, a reload and a close, each while fibers hold every door and wait for a slow store."""
    with held_up(tmp_path, 20_000) as (server, stage):
        engine = stage.engine

        async def begun(name: str) -> list[asyncio.Task[Decision]]:
            server.hold(True)
            tasks = [asyncio.create_task(engine.ascore(claim(f"{name}{i}"))) for i in range(4)]
            await asyncio.sleep(0)
            assert not engine._turns.is_free
            threading.Timer(0.05, server.hold, (False,)).start()
            return tasks

        async def play() -> None:
            tasks = await begun("a")
            assert engine.label("none", "fraud") is False
            await asyncio.gather(*tasks)
            tasks = await begun("b")
            assert engine.score(claim("sync")).flags == ()
            await asyncio.gather(*tasks)
            tasks = await begun("c")
            stage.reload(RULES)
            await asyncio.gather(*tasks)
            tasks = await begun("d")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert engine._turns.is_free, "who was cancelled holds nothing"
            tasks = await begun("e")
            engine.close()
            for done in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(done, Decision) or "closed" in str(done)

        run(play(), loops)


def test_who_waits_no_more_keeps_nobody_else_from_being_woken(store: str, tmp_path: Path) -> None:
    """A fiber that got its turn after all, in front of one that still waits for its own."""
    with Stage(tmp_path, RULES, store=f"{store}&at_once=1") as stage:
        turns = stage.engine._turns
        at_hand(stage.engine)

        async def play() -> Decision:
            judge = turns.take()
            task = asyncio.create_task(stage.engine.ascore(claim("e1")))
            await asyncio.sleep(0)
            assert len(turns._asleep) == 1
            gone = Waker(Fiber(Fibers(asyncio.get_running_loop())))
            gone.cancel()
            turns._asleep.appendleft(gone)
            turns.give(judge)
            return await asyncio.wait_for(task, 60)

        assert run(play(), asyncio.new_event_loop).flags == ()


def test_fibers_and_threads_take_turns(store: str, tmp_path: Path) -> None:
    """Threads that score on the same engine while a loop does: each event counts once."""
    with Stage(tmp_path, RULES, store=store) as stage:
        engine = stage.engine
        at_hand(engine)

        async def play() -> list[Decision]:
            found: list[Decision] = []
            for at in range(0, 120, 6):
                found += await asyncio.gather(
                    *(engine.ascore(claim(f"f{i}"), features=True) for i in range(at, at + 6))
                )
            return found

        def score(thread: int) -> list[Decision]:
            return [engine.score(claim(f"t{thread}-{i}"), features=True) for i in range(60)]

        with ThreadPoolExecutor(2) as pool:
            threads = [pool.submit(score, thread) for thread in range(2)]
            decided = run(play(), uvloop.new_event_loop)
            for thread in threads:
                decided += thread.result(60)
        counts = Counter(d.features["claims"] for d in decided if isinstance(d.features, dict))
        assert counts == Counter(range(1, 241))
