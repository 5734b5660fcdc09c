"""The engine as applications use it: retries, threads, reloads, lists, tables, the journal."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from stage import memory

from riskengine import Decision, Engine, EventError, PolicyError, RiskEngineError
from riskengine import features as planning
from riskengine.entries import Entry, LabelEntry, PolicyEntry
from riskengine.errors import Problem
from riskengine.journal import Journal, JournalError, database, door, unpack_row
from riskengine.judge import Judge

T0 = 1_794_326_400_000
HOUR = 3_600_000
POLICY: dict[str, Any] = {
    "policy": "engine-tests",
    "entities": {"user": "user_id", "device": "device_id", "campaign": "campaign_id"},
    "events": {"coupon_claim": {"required": ["user_id"]}},
    "lists": {"blocked": {"of": ["user", "device"]}},
    "tables": {
        "campaigns": {"key": "campaign", "columns": {"stopped": "bool"}},
        "notes": {"key": "campaign", "columns": {"said": "string", "stops": "time"}},
    },
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


def test_nothing_is_bound_for_a_lone_event_with_arrays_of_its_own(
    clock: Clock, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To bind all calls for an event that Python has to spell, or that follows another, took 5 ms."""
    odd: list[dict[str, Any]] = [{"region": "\N{PARTY POPPER}"}, {"region": "cafe\u0301"}, {"follows": "e0"}]
    events = [claim(f"e{i}", f"u{i % 3}") | (odd[i // 2 % 3] if i % 2 else {}) for i in range(24)]
    bound: list[object] = []
    folder = write()
    with Engine.open(folder, clock=clock) as many:
        expected = many.score_many(events)
    with Engine.open(folder, clock=clock) as one:
        decided = [one.score_many([event])[0] for event in events[:3]]
        monkeypatch.setattr(planning, "bind", lambda kernel, *_: bound.append(kernel))
        decided += [one.score_many([event])[0] for event in events[3:]]
    assert decided == expected
    assert not bound


def test_lone_events_follow_all_that_their_room_is_bound_to(
    clock: Clock, write: Callable[..., Path], tmp_path: Path
) -> None:
    """The key table grows, traces begin another block, lists, tables and the policy change.

    And what the journal keeps of them is what it keeps of batches.
    """
    more = {**POLICY["features"], "region_before": {"previous": "region", "by": "user"}}
    stricter = {"twice": {"count": "coupon_claim", "by": "user", "per": "day", "max": 2, "then": "review"}}
    moved = {"on": "any", "when": "region_before == 'SH'", "then": "challenge", "mode": "live"}
    rules = {**POLICY["rules"], "moved": moved}
    folder = write(features=more, rules=rules)
    changes: list[Callable[[Engine], Any]] = [
        lambda engine: engine.list_put("blocked", "user", "u7"),
        lambda engine: engine.table_put("campaigns", "c1", {"stopped": True}),
        lambda engine: engine.reload(write("stricter", features=more, rules=rules, limits=stricter)),
        lambda engine: engine.list_delete("blocked", "user", "u7"),
    ]
    draw = np.random.default_rng(3)
    users, regions = draw.integers(0, 4_000, 15_000).tolist(), draw.integers(0, 3, 15_000).tolist()
    events = [
        claim(f"e{i}", f"u{users[i]}", region=("SH", "BJ", "x" * 30)[regions[i]], campaign_id=f"c{i % 3}")
        | ({} if i % 11 else {"time": T0 - HOUR})
        | ({} if i % 13 else {"odd": "x" * (i % 7)})
        for i in range(15_000)
    ]
    events[100] = claim("bad", user="")
    events[200] |= {"event_id": "e" * 200, "region": "上海" * 50}
    kept = [f"sqlite:///{tmp_path}/{name}.db" for name in ("one", "many")]
    with (
        Engine.open(folder, clock=clock, journal=kept[0]) as one,
        Engine.open(folder, clock=clock, journal=kept[1]) as many,
    ):
        for part, change in enumerate(changes):
            chunk = events[3_750 * part : 3_750 * part + 3_750]
            assert [one.score_many([event])[0] for event in chunk if event["event_id"] != "bad"] == [
                result for result in many.score_many(chunk) if isinstance(result, Decision)
            ]
            with pytest.raises(EventError):
                one.score(events[100])
            change(one)
            change(many)
        for engine in (one, many):
            assert engine.journal is not None
            engine.journal.flush()
        entries = [list(journal.replay()) for journal in (one.journal, many.journal) if journal is not None]
        assert len(entries[0]) > 14_000
        for alone, together in zip(*entries, strict=True):
            assert alone == together
        assert len({decided(many.score(claim(f"z{i}", f"u{i}"))).action for i in range(50)}) > 1


def test_a_closed_engine_keeps_no_state_in_any_room(clock: Clock, write: Callable[..., Path]) -> None:
    engine = Engine.open(write(), clock=clock)
    engine.score(claim("e1"))
    engine.score(claim("e2", "u2"))
    words = weakref.ref(memory(engine)._words)
    assert words() is not None
    engine.close()
    assert words() is None


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


def journaled(url: str) -> list[Entry]:
    with Journal.open(url, create=False) as journal:
        return [entry for entry in journal.replay() if isinstance(entry, Entry)]


def test_nothing_raw_about_a_person_is_journaled(
    clock: Clock, write: Callable[..., Path], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/journal.db"
    event = claim(
        "e1", "alice", device_id="d-77", phone="+8613800138000", ip="203.0.113.77", user_agent="Browser 7",
        location={"lat": 31.23456, "lon": 121.45678}, region="SH", amount=10, phone_verified=True,
        account_created="2020-01-01T00:00:00Z", email="a@example.com", card=6222020200112233, tries=3,
    )  # fmt: skip
    with Engine.open(write(), clock=clock, journal=url) as engine:
        engine.score(event)
        engine.score_columns(pa.RecordBatch.from_pylist([{**event, "event_id": "e2"}]))
    one, two = journaled(url)
    hashed = {"user_id", "device_id", "phone", "ip", "user_agent", "email", "card"}
    assert {name for name, value in one.event.items() if str(value).startswith("#")} == hashed
    assert {name: value for name, value in one.event.items() if name not in hashed} == {
        "event_id": "e1", "type": "coupon_claim", "time": T0, "location": {"lat": 31.2, "lon": 121.5},
        "region": "SH", "amount": 10, "phone_verified": True, "tries": 3,
        "account_created": 1_577_836_800_000,
    }  # fmt: skip
    assert {**two.event, "event_id": "e1"} == one.event
    raw = (tmp_path / "journal.db").read_bytes()
    for secret in (
        "alice",
        "d-77",
        "13800138000",
        "203.0.113",
        "Browser",
        "31.23",
        "a@ex",
        "6222020200112233",
    ):
        assert secret.encode() not in raw


def test_an_event_is_journaled_as_its_own_policy_sees_it(
    clock: Clock, write: Callable[..., Path], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/journal.db"
    entities = {**POLICY["entities"], "region": "region", "wallet": "wallet_id"}
    event = claim("e1", region="SH", wallet_id="w1", grade=5)
    with Engine.open(write(), clock=clock, journal=url) as engine:
        engine.score(event)
        events = {"coupon_claim": {"fields": {"note": "string"}}}
        engine.reload(write("more", entities=entities, events=events))
        engine.score({**event, "event_id": "e2", "note": "said"})
        engine.reload(write("less", events={"coupon_claim": {"fields": {"wallet_id": "string"}}}))
        engine.score({**event, "event_id": "e3", "note": "said"})
        prints = engine.fingerprint
    before, between, after = (entry.event for entry in journaled(url))
    assert (before["region"], between["region"], after["region"]) == ("SH", between["region"], "SH")
    assert between["region"].startswith("#")
    assert between["wallet_id"] == before["wallet_id"] != "w1"  # undeclared text is hashed like any other
    assert after["wallet_id"] == "w1"
    assert between["note"] == "said"
    assert after["note"].startswith("#")
    with Journal.open(url) as journal:
        policies = [entry for entry in journal.replay() if isinstance(entry, PolicyEntry)]
    assert len(policies) == 3
    assert policies[-1].fingerprint == prints


def test_whatever_an_event_carries_is_journaled(
    clock: Clock, write: Callable[..., Path], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/journal.db"
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    odd: dict[str, Any] = {
        "half": "\ud800", "half\udc00": 1, "nan": float("nan"), "inf": float("inf"), "set": {1},
        "bytes": b"x", "object": object(), "deep": deep, "list": ["138"], "huge": 10**5000, "yes": True,
        "none": None,
    }  # fmt: skip
    events = [claim(f"e{i}") for i in range(9)]
    events[4] |= odd
    with Engine.open(write(), clock=clock, journal=url) as engine:
        assert all(isinstance(result, Decision) for result in engine.score_many(events))
        assert engine.score(events[4]).event_id == "e4"
    kept = journaled(url)
    assert [entry.event_id for entry in kept] == [f"e{i}" for i in range(9)]
    own = {name: value for name, value in kept[4].event.items() if name not in claim("e4")}
    assert own.pop("half").startswith("#")
    assert own.pop("huge").startswith("#")
    assert own == {
        "half?": 1, "nan": None, "inf": None, "set": "<set>", "bytes": "<bytes>", "object": "<object>",
        "deep": "<list>", "list": "<list>", "yes": True, "none": None,
    }  # fmt: skip
    while deep:  # a list so deep would take C's stack to forget
        deep = deep[0]


def test_what_is_journaled_is_what_was_decided_and_served(
    clock: Clock, write: Callable[..., Path], tmp_path: Path
) -> None:
    """Whatever the caller does to its events afterwards."""
    url = f"sqlite:///{tmp_path}/journal.db"
    features = {
        "before": {"previous": "region", "by": "user"},
        "claims_1h": {"count": "coupon_claim", "by": "user", "over": "1h"},
        "place": {"previous": "location", "by": "user"},
        "half": {"value": "claims_1h / 2 > 0.5"},
        "was": {"previous": "channel", "by": "user"},
        "mean": {"mean": "amount", "on": "coupon_claim", "by": "user", "over": "1h"},
    }
    decisions = []
    with Engine.open(write(features=features), clock=clock, journal=url) as engine:
        for i in range(3):
            event = claim(f"e{i}", region=f"R{i}", location={"lat": i, "lon": -i})
            decisions.append(engine.score(event, features=True))
            event["location"]["lat"] = event["region"] = "changed"
            event.clear()
    kept = journaled(url)
    assert [entry.event["region"] for entry in kept] == ["R0", "R1", "R2"]
    assert [entry.event["location"]["lat"] for entry in kept] == [0.0, 1.0, 2.0]
    nan = float("nan")
    rows = [unpack_row(entry.row) for entry in kept]
    assert repr(rows) == repr([
        [None, 1.0, nan, nan, 0.0, None, nan],
        ["R0", 2.0, 0.0, 0.0, 1.0, None, nan],
        ["R1", 3.0, 1.0, -1.0, 1.0, None, nan],
    ])  # fmt: skip
    for decision, entry in zip(decisions, kept, strict=True):
        answer = msgspec.json.decode(entry.decision, type=Decision)
        assert answer == msgspec.structs.replace(decision, features=msgspec.UNSET)
        assert (entry.action, entry.type, entry.event_time_ms) == (decision.action, "coupon_claim", T0)


@pytest.mark.parametrize(("fail", "least"), [("open", "allow"), ("review", "review"), ("closed", "deny")])
@pytest.mark.parametrize("commit", ["async", "sync"])
def test_while_the_journal_is_away_the_contract_decides(
    clock: Clock,
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail: str,
    least: str,
    commit: str,
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(door, "RETRY_SECONDS", 0.05)
    file = tmp_path / "journal.db"
    folder = write(events={"coupon_claim": {"fail": fail}})
    with Engine.open(folder, clock=clock, journal=f"sqlite:///{file}?commit={commit}") as engine:
        assert engine.journal is not None
        before = engine.score(claim("e0"))
        lock = sqlite3.connect(file, isolation_level=None)
        engine.journal.flush()
        lock.execute("BEGIN EXCLUSIVE")
        first = engine.score(claim("e1"))  # nobody knows yet
        with pytest.raises(JournalError, match="database is locked"):
            engine.journal.flush()
        away = engine.score_many([claim(f"e{i}") for i in range(2, 300)])
        assert engine.label("e2", "fraud")
        again = engine.score_many([claim(f"e{i}") for i in range(300)])
        lock.execute("ROLLBACK")
        lock.close()
        engine.journal.flush(10)
        after = engine.score(claim("e300"), features=True)
    assert before.flags == first.flags == after.flags == ()
    assert {decision.flags for decision in away if isinstance(decision, Decision)} == {("degraded:journal",)}
    assert {decision.action for decision in away if isinstance(decision, Decision)} == {least}
    assert again == [before, first, *away]
    assert after.features == {"claims_1h": 301.0}
    kept = journaled(f"sqlite:///{file}")
    assert [entry.event_id for entry in kept] == [f"e{i}" for i in range(301)]
    said = [msgspec.json.decode(entry.decision, type=Decision) for entry in kept[:-1]]
    assert said == again


def test_words_that_cannot_be_written_are_refused(
    clock: Clock, write: Callable[..., Path], tmp_path: Path
) -> None:
    """One of them in the journal's queue would stop all that comes after it."""
    half = "a\ud800"
    with Engine.open(write(), clock=clock, journal=f"sqlite:///{tmp_path}/journal.db") as engine:
        engine.score(claim("e1", campaign_id="c1"))
        refused: list[tuple[str, Callable[[], object]]] = [
            ("/event_id", lambda: engine.label(half, "fraud")),
            ("/source", lambda: engine.label("e1", "fraud", source=half)),
            ("/event_id", lambda: engine.release(half)),
            ("/value", lambda: engine.list_put("blocked", "user", half)),
            ("/reason", lambda: engine.list_put("blocked", "user", "u1", reason=half)),
            ("/author", lambda: engine.list_put("blocked", "user", "u1", author=half)),
            ("/value", lambda: engine.list_get("blocked", "user", half)),
            ("/key", lambda: engine.table_put("campaigns", half, {"stopped": True})),
            ("/key", lambda: engine.table_delete("campaigns", half)),
            ("/stops", lambda: engine.table_put("notes", "c1", {"stops": "soon"})),
            ("/said", lambda: engine.table_put("notes", "c1", {"said": half})),
        ]
        for pointer, call in refused:
            with pytest.raises(EventError) as caught:
                call()
            assert [problem.pointer for problem in caught.value.problems] == [pointer]
        assert engine.label("e1", "fraud")
        engine.table_put("notes", "c1", {"said": "fine", "stops": T0})


def test_ascore_is_score(clock: Clock, write: Callable[..., Path]) -> None:
    with Engine.open(write(), clock=clock) as engine, Engine.open(write(), clock=clock) as other:

        async def all_at_once() -> list[Decision]:
            return await asyncio.gather(*(engine.ascore(claim(f"e{i}"), features=True) for i in range(9)))

        assert asyncio.run(all_at_once()) == [other.score(claim(f"e{i}"), features=True) for i in range(9)]
        with pytest.raises(EventError, match="user_id"):
            asyncio.run(engine.ascore({"event_id": "x", "type": "coupon_claim"}))


def test_what_was_counted_but_not_answered_is_decided_again_and_counted_once(
    clock: Clock, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine.open(write(), clock=clock) as engine:
        with monkeypatch.context() as broken:
            broken.setattr(Judge, "_answer", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                engine.score(claim("e1"))
        again = engine.score(claim("e1"), features=True)
        assert (again.features, again.flags) == ({"claims_1h": 1.0}, ("redecided",))
        assert engine.score(claim("e1")) == again
        batch = engine.score_many([claim("e2"), claim("e1"), claim("e2")], features=True)
        assert [decided(result).features for result in batch] == [
            {"claims_1h": 2.0},
            again.features,
            {"claims_1h": 2.0},
        ]


def test_a_retry_that_nobody_remembers_moves_nothing(clock: Clock, write: Callable[..., Path]) -> None:
    """Without a journal a decision is known for lateness and skew, and that it was counted for longer."""
    with Engine.open(write(), clock=clock) as engine:
        first = engine.score(claim("e1", device_id="d1"))
        clock.ms += HOUR // 2
        engine.score({**claim("e2", "u2"), "time": clock.ms})
        again = engine.score(claim("e1", device_id="d1"), features=True)
        assert again.flags == ("late", "redecided")
        assert (first.action, again.features) == ("allow", {"claims_1h": 1.0})
        assert engine.release("e1"), "it holds its place all the while"
        with pytest.raises(EventError, match="another event has this event_id"):
            engine.score(claim("e1", device_id="d2"))


def test_bad_rows_of_columns_fail_alone(clock: Clock, write: Callable[..., Path]) -> None:
    rows = [claim(f"e{i}", f"u{i}") for i in range(5)]
    rows[1]["user_id"] = None
    rows[3]["type"] = "coupon_clam"
    with Engine.open(write(), clock=clock) as engine:
        results = engine.score_columns(pa.RecordBatch.from_pylist(rows))
        assert [isinstance(result, Decision) for result in results] == [True, False, True, False, True]


def test_history_is_read_with_its_own_now(clock: Clock, write: Callable[..., Path]) -> None:
    events = [{**claim(f"e{i}"), "time": T0 + i * HOUR // 2} for i in range(-5, 5)]
    times = np.array([event["time"] for event in events], np.int64)
    with Engine.open(write(), clock=clock) as one, Engine.open(write(), clock=clock) as two:
        results = one.score_many(events, features=True, now=times)
        assert [decided(result).features for result in results] == [
            {"claims_1h": float(min(i, 2) + 1) if i < 2 else 2.0} for i in range(10)
        ]
        assert two.score_columns(pa.RecordBatch.from_pylist(events), True, times) == results
        assert all("late" not in decided(result).flags for result in results)


def test_state_of_another_plan_is_refused(clock: Clock, write: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "state"
    with Engine.open(write(), clock=clock) as engine:
        engine.score(claim("e1"))
        engine.export_state(file)
    features = {"claims_1d": {"count": "coupon_claim", "by": "device", "over": "1d"}}
    with Engine.open(write("more", features=features, rules={}), clock=clock) as engine:
        with pytest.raises(RiskEngineError, match="was written under plan"):
            engine.import_state(file)
        file.write_bytes(b"something else")
        with pytest.raises(RiskEngineError, match="not an exported state"):
            engine.import_state(file)
        assert engine.info().entities == 0


def test_everything_at_once_from_many_threads(
    clock: Clock, write: Callable[..., Path], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/journal.db"
    features = {
        **POLICY["features"],
        "frauds": {"count": "fraud", "on": "coupon_claim", "by": "user", "over": "1h"},
    }
    folders = [
        write("a", features=features),
        write("b", features=features, decide={"coupon_claim": {"review": 0.9}}),
    ]
    failures: list[BaseException] = []

    def guarded(work: Callable[[int], object], times: int) -> threading.Thread:
        def run() -> None:
            try:
                for i in range(times):
                    work(i)
            except BaseException as error:
                failures.append(error)

        return threading.Thread(target=run)

    with Engine.open(folders[0], clock=clock, journal=url) as engine:
        for i in range(100):
            engine.score(claim(f"old{i}", "hot", device_id=f"d{i}"))
        threads = [
            guarded(lambda i: engine.score(claim(f"a{i}", "hot")), 300),
            guarded(lambda i: engine.score_many([claim(f"b{i}-{k}", "hot") for k in range(20)]), 30),
            guarded(lambda i: engine.score(claim(f"a{i}", "hot")), 300),
            guarded(lambda i: engine.label(f"old{i}", "fraud"), 100),
            guarded(lambda i: engine.label(f"old{i}", "fraud"), 100),
            guarded(lambda i: engine.release(f"old{i}"), 100),
            guarded(lambda i: engine.list_put("blocked", "user", f"u{i}"), 100),
            guarded(lambda i: engine.table_put("campaigns", f"c{i}", {"stopped": True}), 100),
            guarded(lambda i: engine.reload(folders[i % 2]), 6),
            guarded(lambda i: engine.info(), 100),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        last = engine.score(claim("last", "hot"), features=True)
        assert last.features == {"claims_1h": 100 + 300 + 600 + 1.0, "frauds": 100.0}
        assert all(
            engine.score(claim(f"new{i}", f"n{i}", device_id=f"d{i}")).action == "allow" for i in range(100)
        )
        assert engine.list_get("blocked", "user", "u99") is not None
        assert engine.table_get("campaigns", "c99") == {"stopped": 1.0}
    ids = [entry.event_id for entry in journaled(url)]
    assert len(ids) == len(set(ids)) == 100 + 300 + 600 + 1 + 100


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
    "url", ["rodis://h", "memory://x", "memory://?size=much", "memory://?side=1", "memory://?size=5"]
)
def test_a_store_that_is_none_is_explained(url: str, write: Callable[..., Path]) -> None:
    with pytest.raises(RiskEngineError, match="memory"):
        Engine.open(write(), store=url)
