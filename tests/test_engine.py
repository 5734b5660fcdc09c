"""The engine as applications use it: retries, threads, reloads, lists, tables, the journal."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from riskengine import Decision, Engine, EventError, PolicyError, RiskEngineError
from riskengine.errors import Problem
from riskengine.journal import Journal, LabelEntry

T0 = 1_794_326_400_000
HOUR = 3_600_000
POLICY: dict[str, Any] = {
    "policy": "engine-tests",
    "entities": {"user": "user_id", "device": "device_id", "campaign": "campaign_id"},
    "events": {"coupon_claim": {"required": ["user_id"]}},
    "lists": {"blocked": {"of": ["user", "device"]}},
    "tables": {"campaigns": {"key": "campaign", "columns": {"stopped": "bool"}}},
    "features": {"claims_1h": {"count": "coupon_claim", "by": "user", "over": "1h"}},
    "limits": {"one": {"count": "coupon_claim", "by": "device", "per": "day", "max": 1, "then": "deny"}},
    "rules": {
        "listed": {"on": "any", "when": "listed('blocked', user)", "then": "deny", "mode": "live"},
        "stopped": {"on": "any", "when": "campaigns.stopped", "then": "review", "mode": "live"},
        "busy": {"on": "any", "when": "claims_1h > 3", "risk": 0.5, "mode": "live"},
    },
}


class Clock:
    def __init__(self) -> None:
        self.ms = T0

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = "rules", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "policy.yaml").write_text(json.dumps({**POLICY, **changes}), "utf-8")
        return folder

    return write


def claim(event_id: str, user: str = "u1", **more: Any) -> dict[str, Any]:
    return {"event_id": event_id, "type": "coupon_claim", "time": T0, "user_id": user, **more}


def decided(result: Decision | EventError) -> Decision:
    assert isinstance(result, Decision)
    return result


def test_alone_in_a_batch_and_from_columns_is_the_same(clock: Clock, write: Callable[..., Path]) -> None:
    folder = write()
    events = [claim(f"e{i}", f"u{i % 7}", device_id=f"d{i % 50}") for i in range(2_500)]
    with Engine.open(folder, clock=clock) as one, Engine.open(folder, clock=clock) as many:
        alone = [one.score(event, features=True) for event in events]
        assert many.score_many(events, features=True) == alone
    with Engine.open(folder, clock=clock) as columns:
        assert columns.score_columns(pa.RecordBatch.from_pylist(events), features=True) == alone
    assert sum(decision.action == "allow" for decision in alone) == 50


def test_of_200_threads_one_claims(clock: Clock, write: Callable[..., Path]) -> None:
    with Engine.open(write(), clock=clock) as engine:
        for day in range(3):
            barrier = threading.Barrier(200)
            decisions: list[Decision] = []

            def ask(i: int, device: str, barrier: threading.Barrier, into: list[Decision]) -> None:
                barrier.wait()
                into.append(engine.score(claim(f"{device}-{i}", f"u{device}{i}", device_id=device)))

            threads = [
                threading.Thread(target=ask, args=(i, f"d{day}", barrier, decisions)) for i in range(200)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(decisions) == 200
            assert sum(decision.action == "allow" for decision in decisions) == 1
            assert {d.fired for d in decisions if d.action == "deny"} == {("one",)}


def test_a_retry_moves_nothing_even_from_many_threads(clock: Clock, write: Callable[..., Path]) -> None:
    with Engine.open(write(), clock=clock) as engine:
        answers: list[Decision] = []
        threads = [
            threading.Thread(target=lambda: answers.append(engine.score(claim("e1", device_id="d1"))))
            for _ in range(50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [answers[0]] * 50
        assert answers[0].action == "allow"
        last = engine.score(claim("e2"), features=True)
        assert last.features == {"claims_1h": 2.0}
        with pytest.raises(EventError, match="another event has this event_id"):
            engine.score(claim("e1", device_id="d2"))


def test_a_bad_event_fails_alone(clock: Clock, write: Callable[..., Path]) -> None:
    with Engine.open(write(), clock=clock) as engine:
        results = engine.score_many([claim("e1"), {"event_id": "e2", "type": "coupon_claim"}, claim("e3")])
        assert [isinstance(result, Decision) for result in results] == [True, False, True]
        assert isinstance(results[1], EventError)
        assert [problem.pointer for problem in results[1].problems] == ["/user_id"]
        assert all(isinstance(problem, Problem) for problem in results[1].problems)
        assert engine.score_many([]) == []


def test_a_reload_keeps_history_and_warms_what_changed(clock: Clock, write: Callable[..., Path]) -> None:
    with Engine.open(write(), clock=clock) as engine:
        engine.score(claim("e1"))
        features = {**POLICY["features"], "claims_1d": {"count": "coupon_claim", "by": "user", "over": "1d"}}
        engine.reload(write("more", features=features))
        decision = engine.score(claim("e2"), features=True)
        assert decision.features == {"claims_1h": 2.0, "claims_1d": 2.0}
        assert decision.flags == ("warming:claims_1d",)
        clock.ms += 25 * HOUR
        assert engine.score({**claim("e3"), "time": clock.ms}).flags == ()


def test_a_policy_that_does_not_check_is_refused(clock: Clock, write: Callable[..., Path]) -> None:
    with Engine.open(write(), clock=clock) as engine:
        before = engine.score(claim("e1")).policy
        rules = {"bad": {"on": "any", "when": "claims_1hh > 1", "mode": "live"}}
        with pytest.raises(PolicyError, match="claims_1h"):
            engine.reload(write("bad", rules=rules))
        with pytest.raises(RiskEngineError, match="open another engine"):
            engine.reload(write("other", policy="other"))
        assert engine.score(claim("e2")).policy == before


def test_threads_score_through_reloads(clock: Clock, write: Callable[..., Path]) -> None:
    folders = [write("a"), write("b", decide={"coupon_claim": {"review": 0.9}})]
    with Engine.open(folders[0], clock=clock) as engine:
        decisions: list[Decision] = []
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                decisions.append(engine.score(claim(f"e{len(decisions)}-{threading.get_ident()}", "hot")))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for i in range(10):
            engine.reload(folders[i % 2])
        stop.set()
        for thread in threads:
            thread.join()
        asked = {decision.event_id for decision in decisions}
        assert len({decision.policy for decision in decisions} | {engine.fingerprint}) == 2
        final = engine.score(claim("last", "hot"), features=True)
        assert final.features == {"claims_1h": len(asked) + 1.0}


def test_lists_and_live_tables_act_at_the_next_event(clock: Clock, write: Callable[..., Path]) -> None:
    with Engine.open(write(), clock=clock) as engine:
        engine.list_put("blocked", "user", "u1", expires=T0 + HOUR, reason="chargeback", author="ann")
        assert engine.list_get("blocked", "user", "u1") == {
            "expires": T0 + HOUR, "reason": "chargeback", "author": "ann", "time": T0,
        }  # fmt: skip
        assert engine.score(claim("e1")).fired == ("listed",)
        clock.ms = T0 + HOUR
        assert engine.score({**claim("e2"), "time": clock.ms}).fired == ()
        assert engine.list_delete("blocked", "user", "u1")
        assert not engine.list_delete("blocked", "user", "u1")
        with pytest.raises(RiskEngineError, match="did you mean blocked"):
            engine.list_put("bloked", "user", "u1")

        engine.table_put("campaigns", "c1", {"stopped": True})
        assert engine.table_get("campaigns", "c1") == {"stopped": 1.0}
        stopped = engine.score({**claim("e3", "u3", campaign_id="c1"), "time": clock.ms})
        assert (stopped.action, stopped.fired) == ("review", ("stopped",))
        assert engine.table_delete("campaigns", "c1")
        assert engine.score({**claim("e4", "u3", campaign_id="c1"), "time": clock.ms}).fired == ()
        with pytest.raises(EventError, match="stopped holds a bool"):
            engine.table_put("campaigns", "c1", {"stopped": "yes"})


def test_state_leaves_and_returns(clock: Clock, write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write()
    file = tmp_path / "state"
    with Engine.open(folder, clock=clock) as engine:
        for i in range(300):
            engine.score(claim(f"e{i}", f"u{i % 100}", device_id=f"d{i}"))
        engine.list_put("blocked", "device", "d1")
        assert engine.export_state(file) == engine.info().entities == 400
    with Engine.open(folder, clock=clock) as engine:
        assert engine.import_state(file) == 400
        decision = engine.score(claim("x", "u5", device_id="d5"), features=True)
        assert decision.features == {"claims_1h": 4.0}
        assert decision.fired == ("busy", "one")
        assert engine.list_get("blocked", "device", "d1") is not None
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(RiskEngineError, match="cut short or damaged"):
            engine.import_state(file)


def test_the_journal_answers_when_the_claim_is_gone(
    clock: Clock, write: Callable[..., Path], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/journal.db"
    with Engine.open(write(), clock=clock, journal=url) as engine:
        first = engine.score(claim("e1", device_id="d1"))
        assert engine.label("e1", "fraud", source="bank")
        assert not engine.label("nobody", "fraud")
        clock.ms += 80 * HOUR
        engine.score({**claim("e2", "u2"), "time": clock.ms})
        assert engine.score(claim("e1", device_id="d1")) == first
        with pytest.raises(EventError, match="another event has this event_id"):
            engine.score(claim("e1", device_id="d2"))
    with Journal.open(url) as journal:
        entry = journal.decision("e1")
        assert entry is not None
        assert (entry.action, entry.policy, entry.seq > 0) == ("allow", first.policy, True)
        assert "u1" not in json.dumps(entry.event)
        labels = [label for label in journal.replay() if isinstance(label, LabelEntry)]
        assert [(label.event_id, label.label, label.source) for label in labels] == [("e1", "fraud", "bank")]


def test_release_returns_a_grant_once(clock: Clock, write: Callable[..., Path]) -> None:
    with Engine.open(write(), clock=clock) as engine:
        engine.score(claim("e1", device_id="d1"))
        assert engine.score(claim("e2", device_id="d1")).action == "deny"
        assert engine.release("e1")
        assert not engine.release("e1")
        assert not engine.release("nobody")
        assert engine.score(claim("e3", device_id="d1")).action == "allow"


def test_a_closed_engine_says_so(clock: Clock, write: Callable[..., Path]) -> None:
    engine = Engine.open(write(), clock=clock)
    decision = engine.score(claim("e1"))
    with pytest.raises(AttributeError):
        decision.action = "deny"  # type: ignore[misc]  # that it cannot be set is what is tested
    engine.close()
    engine.close()
    with pytest.raises(RiskEngineError, match="closed"):
        engine.score(claim("e2"))


@pytest.mark.parametrize(
    "url", ["redis://h", "memory://x", "memory://?size=much", "memory://?side=1", "memory://?size=5"]
)
def test_a_store_that_is_none_is_explained(url: str, write: Callable[..., Path]) -> None:
    with pytest.raises(RiskEngineError, match="memory"):
        Engine.open(write(), store=url)
