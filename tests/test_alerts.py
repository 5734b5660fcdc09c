"""Alerts: what they count, when episodes begin and end, and that nothing counts twice or names a person."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_alerts import NaiveAlerts
from servers import apart, running, valkey

from riskengine import Decision, Engine, cli
from riskengine import alerts as counting
from riskengine.check import explain_text, findings_of
from riskengine.definition import Definition
from riskengine.entries import AlertEntry
from riskengine.journal import Journal
from riskengine.policy import examine, load_definition
from riskengine.ruletest import run_tests
from riskengine.stores.address import begin

T0 = 1_794_326_400_000
MINUTE = 60_000
POLICY: dict[str, Any] = {
    "policy": "alert-tests",
    "entities": {"user": "user_id", "terminal": "terminal_id", "pair": ["terminal_id", "batch_id"]},
    "events": {"scan": {"required": ["user_id"], "fields": {"bad": "bool", "note": "string"}}, "other": {}},
    "rules": {
        "bad": {"on": "scan", "when": "bad", "then": "deny", "message": "no", "mode": "live"},
        "odd": {"on": "scan", "when": "note == 'odd'", "risk": 0.1, "mode": "live"},
        "seen": {"on": "scan", "when": "bad", "mode": "shadow"},
    },
    "limits": {"three": {"count": "scan", "by": "user", "over": "1h", "max": 3, "message": "no"}},
}


class Clock:
    """The edge's clock, moved by hand."""

    def __init__(self) -> None:
        self.ms = T0

    def __call__(self) -> int:
        return self.ms


class Heard(list[AlertEntry]):
    """What an engine told of episodes."""

    @property
    def began(self) -> list[str]:
        return [one.alert for one in self if one.begins]

    @property
    def ended(self) -> list[str]:
        return [one.alert for one in self if one.end_ms is not None]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(alerts: Mapping[str, Any], **more: Any) -> Path:
        folder = tmp_path / "rules"
        folder.mkdir(exist_ok=True)
        (folder / "policy.yaml").write_text(
            json.dumps({**POLICY, "alerts": alerts, **more}), encoding="utf-8"
        )
        return folder

    return write


def scan(i: int, **fields: Any) -> dict[str, Any]:
    return {"event_id": f"e{i}", "type": "scan", "user_id": f"u{i}", **fields}


def heard_of(engine: Engine) -> Heard:
    heard = Heard()
    engine.on_alert(heard.append)
    return heard


# -- what counts


def test_an_episode_begins_peaks_and_ends(write: Callable[..., Path]) -> None:
    clock = Clock()
    alert = {"on": "scan", "by": "terminal", "over": "10m", "above": 2, "clear": 1, "message": {"en": "Busy"}}
    with Engine.open(write({"busy": alert}), clock=clock) as engine:
        heard = heard_of(engine)
        for i in range(5):
            clock.ms += MINUTE
            engine.score(scan(i, terminal_id="till-7"))
        assert heard.began == ["busy"]
        (open_,) = engine.alerts()
        assert (open_.key, open_.start_ms, open_.end_ms, open_.peak) == ("till-7", T0 + 3 * MINUTE, None, 5)
        assert open_.peak_ms == T0 + 5 * MINUTE
        assert open_.events == ("e2", "e3", "e4")
        assert open_.en == "Busy"
        clock.ms += 8 * MINUTE  # of five, three have left the window
        engine.look_at_alerts()
        assert heard.ended == []
        clock.ms += MINUTE
        engine.look_at_alerts()
        assert heard.ended == ["busy"]
        assert engine.alerts()[0].end_ms == clock.ms
        assert engine.alert_status["open"] == 0
        for i in range(10, 13):
            engine.score(scan(i, terminal_id="till-7"))
        assert heard.began == ["busy", "busy"]
        assert len({one.id for one in engine.alerts()}) == 2


def test_a_condition_an_action_and_a_hit_must_all_hold(write: Callable[..., Path]) -> None:
    level = {"on": "scan", "over": "10m", "above": 0}
    alerts = {
        "when": {**level, "when": "bad"},
        "denied": {**level, "action": "deny"},
        "asked": {**level, "action": ["review", "challenge"]},
        "hit": {**level, "hits": "odd"},
        "in-shadow": {**level, "hits": "seen"},
        "limit": {**level, "hits": "three"},
        "both": {**level, "when": "bad", "hits": "odd"},
    }
    clock = Clock()
    with Engine.open(write(alerts), clock=clock) as engine:
        heard = heard_of(engine)
        engine.score(scan(0))
        assert heard.began == []
        engine.score(scan(1, bad=True))
        assert sorted(heard.began) == ["denied", "in-shadow", "when"]
        heard.clear()
        engine.score(scan(2, note="odd"))
        assert heard.began == ["hit"]
        engine.score(scan(3, note="odd", bad=True))
        assert heard.began == ["hit", "both"]
        for i in range(4, 8):
            engine.score(scan(i, user_id="one"))
        assert heard.began == ["hit", "both", "limit"]


def test_a_share_needs_enough_events(write: Callable[..., Path]) -> None:
    clock = Clock()
    alert = {"when": "bad", "on": "scan", "over": "1h", "above": "30%", "clear": "10%", "at_least": 10}
    with Engine.open(write({"bad-share": alert}), clock=clock) as engine:
        heard = heard_of(engine)
        for i in range(9):
            engine.score(scan(i, bad=True))
        assert heard.began == []
        engine.score(scan(9, bad=False))  # ten, but this one does not count
        assert heard.began == []
        engine.score(scan(10, bad=True))
        assert heard.began == ["bad-share"]
        for i in range(11, 120):
            engine.score(scan(i, bad=False))
        assert heard.ended == ["bad-share"]
        assert engine.alerts()[0].peak == 10 / 11


def test_every_rule_has_its_own_count(write: Callable[..., Path]) -> None:
    clock = Clock()
    alerts = {
        "share": {"by": "rule", "action": "deny", "over": "10m", "above": "40%", "at_least": 4},
        "count": {"by": "rule", "over": "10m", "above": 2},
    }
    with Engine.open(write(alerts), clock=clock) as engine:
        heard = heard_of(engine)
        for i in range(6):
            engine.score(scan(i, bad=i % 2 == 0, note="odd" if i < 3 else "even"))
        told = [(one.alert, one.key) for one in heard if one.begins]
        assert told == [("count", "odd"), ("share", "bad"), ("count", "bad")]  # never `seen`, in shadow


def test_what_names_a_person_is_shown_as_its_hash(write: Callable[..., Path]) -> None:
    level = {"on": "scan", "over": "10m", "above": 0}
    by = ("user", "terminal", "pair", "phone", "note", "region", "user_agent")
    clock = Clock()
    with Engine.open(write({f"by-{name}": {**level, "by": name} for name in by}), clock=clock) as engine:
        engine.score(
            scan(1, terminal_id="till", batch_id="b1", phone="+8613800138000", note="plain", region="east",
                 user_agent="agent")
        )  # fmt: skip
        shown = {one.by: one.key or "" for one in engine.alerts()}
    assert {name: key for name, key in shown.items() if not key.startswith("#")} == {
        "terminal": "till", "pair": "till/b1", "note": "plain", "region": "east",
    }  # fmt: skip
    assert len({shown[name] for name in ("user", "phone", "user_agent")}) == 3
    assert all(len(shown[name]) == 17 for name in ("user", "phone", "user_agent"))


def test_nothing_counts_twice_or_late(write: Callable[..., Path]) -> None:
    clock = Clock()
    with Engine.open(write({"any": {"over": "1h", "above": 2}}), clock=clock) as engine:
        heard = heard_of(engine)
        event = scan(1, time=clock.ms)
        for _ in range(3):
            engine.score(event)
        engine.score_many([event, scan(2, time=clock.ms), scan(2, time=clock.ms)])
        late = engine.score(scan(3, time=clock.ms - 20 * MINUTE))
        assert "late" in late.flags
        engine.score(scan(4, follows="e2", user_id="u2"))
        assert heard.began == []
        engine.score(scan(5))
        assert heard.began == ["any"]


def test_an_event_within_lateness_counts_in_its_own_bucket(write: Callable[..., Path]) -> None:
    clock = Clock()
    with Engine.open(write({"any": {"over": "10m", "above": 1}}), clock=clock) as engine:
        heard = heard_of(engine)
        engine.score(scan(1))
        engine.score(scan(2, time=clock.ms - 11 * MINUTE))  # in time, and older than the window
        assert heard.began == []
        engine.score(scan(3, time=clock.ms - 9 * MINUTE))
        assert heard.began == ["any"]


# -- the twin


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    share = draw(st.booleans())
    above, clear = sorted(draw(st.tuples(st.integers(0, 9), st.integers(0, 9))), reverse=True)
    alert: dict[str, Any] = {
        "over": draw(st.sampled_from(["60s", "61s", "10m", "1h"])),
        "above": f"{above * 10}%" if share else above,
        "clear": f"{clear * 10}%" if share else clear,
        "when": "bad",
    }
    by = draw(st.sampled_from([None, "rule", "terminal_id", "region"]))
    if by is not None:
        alert["by"] = "terminal" if by == "terminal_id" else by
    if share:
        alert["at_least"] = draw(st.integers(1, 5))
    if draw(st.booleans()):
        alert["on"] = "scan"
    events, now = [], T0
    for i in range(draw(st.integers(1, 40))):
        now += draw(st.sampled_from([0, 1, 500, 1_000, 20_000, 61_000, 400_000]))
        back = draw(st.sampled_from([0, 0, 0, 1_000, 30_000, 200_000, 1_000_000]))
        events.append(
            {
                "event_id": f"e{i}",
                "type": draw(st.sampled_from(["scan", "scan", "other"])),
                "user_id": f"u{i}",
                "time": now - back,
                "now": now,
                "bad": draw(st.booleans()),
                "note": draw(st.sampled_from(["odd", "even"])),
                **draw(st.sampled_from([{}, {"terminal_id": "t1", "region": "a"}, {"terminal_id": "t2"}])),
            }
        )
    return {**alert, "_by": by}, events


@settings(max_examples=120, deadline=None)
@given(histories(), st.integers(1, 7))
def test_alerts_count_as_the_naive_twin_does(
    history: tuple[dict[str, Any], list[dict[str, Any]]], batch: int
) -> None:
    alert, events = history
    by = alert.pop("_by")
    definition = _definition({"one": alert})
    made = definition.alerts["one"]
    twin = NaiveAlerts(
        "one",
        {
            "on": made.types, "over_ms": made.over_ms, "above": made.above, "clear": made.clear,
            "share": made.is_share, "least": made.least, "by": by,
        },
    )  # fmt: skip
    clock = Clock()
    looked, every = 0, max(made.over_ms // 60, 1_000)
    with Engine.open(definition, clock=clock) as engine:
        for start in range(0, len(events), batch):
            some = events[start : start + batch]
            clock.ms = some[-1]["now"]
            plain = [{name: value for name, value in one.items() if name != "now"} for one in some]
            for one, decision in zip(plain, engine.score_many(plain), strict=True):
                assert isinstance(decision, Decision)
                hit = one["type"] == "scan" and one["bad"]
                twin.see(one, hit, decision.fired, "late" in decision.flags)
            if clock.ms - looked >= every:
                looked = clock.ms
                twin.look(clock.ms)
        found = [
            {
                "alert": one.alert, "key": one.key, "start": one.start_ms, "end": one.end_ms,
                "peak": one.peak, "peak_time": one.peak_ms, "events": list(one.events),
            }
            for one in engine.alerts()
        ]  # fmt: skip
    if by == "terminal_id":
        assert all(one["key"] in ("t1", "t2") for one in found)
    assert sorted(found, key=repr) == sorted(twin.episodes, key=repr)


def _definition(alerts: dict[str, Any]) -> Definition:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "policy.yaml").write_text(json.dumps({**POLICY, "alerts": alerts}), encoding="utf-8")
        return load_definition(folder)


# -- bounds


def test_keys_beyond_its_seats_make_room_for_others_but_no_open_episode_does(
    write: Callable[..., Path],
) -> None:
    clock = Clock()
    alerts = {
        "busy": {"on": "scan", "by": "user", "over": "1h", "above": 2},
        "first": {"on": "scan", "by": "terminal", "over": "1h", "above": 0},
    }
    with Engine.open(write(alerts), clock=clock) as engine:
        heard = heard_of(engine)
        engine.score_many([scan(i, user_id="hot") for i in range(3)])
        engine.score(scan(3, terminal_id="t"))
        flood = [scan(i, user_id=f"u{i}") for i in range(10, 20_010)]
        engine.score_many(flood)
        assert heard.began == ["busy", "first"]
        assert engine.alert_status["evicted"] > 10_000
        assert engine.alert_status["open"] == 2
        engine.score(scan(20_010, user_id="hot"))
        assert {one.alert: one.peak for one in engine.alerts()} == {"busy": 4, "first": 1}


def test_more_open_episodes_than_anybody_reads_are_only_counted(write: Callable[..., Path]) -> None:
    clock = Clock()
    with Engine.open(
        write({"all": {"on": "scan", "by": "user", "over": "1h", "above": 0}}), clock=clock
    ) as engine:
        heard = heard_of(engine)
        engine.score_many([scan(i) for i in range(3_000)])
        assert len(heard) == counting.OPEN_MAX
        assert engine.alert_status["overflown"] == 3_000 - counting.OPEN_MAX
        clock.ms += 2 * 3_600_000
        engine.look_at_alerts()
        assert engine.alert_status["open"] == 0
        assert len(engine.alerts()) == counting.EPISODES_KEPT


def test_an_alert_by_rule_with_more_hits_than_notes_have_room(write: Callable[..., Path]) -> None:
    """The kernel stops at a row's end, and goes on where it stopped."""
    rules = {
        f"r{i}": {"on": "scan", "when": f"bad or note == 'n{i}'", "risk": 0.01, "mode": "live"}
        for i in range(300)
    }
    clock = Clock()
    with Engine.open(
        write({"hot": {"by": "rule", "over": "1h", "above": 1}}, rules=rules), clock=clock
    ) as engine:
        heard = heard_of(engine)
        engine.score_many([scan(i, bad=True) for i in range(20)])
        assert len(heard.began) == 300
        assert all(len(one.events) == counting.SAMPLES for one in engine.alerts())
        assert {one.peak for one in engine.alerts()} == {20}


# -- several engines


def test_engines_on_one_store_each_count_what_they_decided(write: Callable[..., Path]) -> None:
    folder = write({"any": {"over": "1h", "above": 1}})
    clock = Clock()
    with valkey() as server:
        url = apart(server)
        begin(url, "alert-tests")
        key = b"a key of the tests"
        with (
            Engine.open(folder, store=url, clock=clock, key=key) as one,
            Engine.open(folder, store=url, clock=clock, key=key) as other,
        ):
            heard, elsewhere = heard_of(one), heard_of(other)
            events = [scan(i, time=clock.ms) for i in range(3)]
            one.score(events[0])
            assert one.score(events[1]) == other.score(events[1])
            other.score_many([*events[:2], events[2], events[2]])
            assert heard.began == ["any"]
            assert elsewhere.began == []  # of what it was asked, one event was new
            other.score(scan(3, time=clock.ms))
            assert elsewhere.began == ["any"]


def test_what_is_decided_without_the_store_counts_once(write: Callable[..., Path]) -> None:
    clock = Clock()
    folder = write({"any": {"over": "1h", "above": 2}})
    with running() as server:
        url = apart(server.url, timeout=2_000)
        begin(url, "alert-tests")
        with Engine.open(folder, store=url, clock=clock, key=b"key") as engine:
            heard = heard_of(engine)
            engine.score(scan(0, time=clock.ms))
            server.hold(True)
            event = scan(1, time=clock.ms)
            assert "degraded:store" in engine.score(event).flags
            engine.score(event)
            server.hold(False)
            assert heard.began == []
            for i in range(2, 20):
                engine.score(scan(i, time=clock.ms))
            assert heard.began == ["any"]
            assert engine.alerts()[0].peak == 20


# -- other policies, restarts


def test_a_reload_goes_on_with_what_means_the_same(write: Callable[..., Path]) -> None:
    clock = Clock()
    same = {"on": "scan", "by": "terminal", "over": "10m", "above": 2}
    with Engine.open(write({"same": same, "gone": {**same, "above": 1}}), clock=clock) as engine:
        heard = heard_of(engine)
        for i in range(2):
            engine.score(scan(i, terminal_id="t"))
        assert heard.began == ["gone"]
        engine.reload(write({"new": {**same, "above": 9}, "same": same}))
        assert heard.ended == ["gone"]
        engine.score(scan(2, terminal_id="t"))
        assert heard.began == ["gone", "same"]
        engine.reload(write({}))
        assert heard.ended == ["gone", "same"]
        assert engine.alerts() == []
        assert engine.alert_status == {}
        engine.reload(write({"same": same}))
        for i in range(3, 6):
            engine.score(scan(i, terminal_id="t"))
        assert heard.began == ["gone", "same", "same"]


def test_open_episodes_survive_a_restart(write: Callable[..., Path], tmp_path: Path) -> None:
    clock = Clock()
    url = f"sqlite:///{tmp_path}/j.db"
    folder = write({"busy": {"on": "scan", "by": "terminal", "over": "10m", "above": 1}})
    with Engine.open(folder, clock=clock, journal=url, origin="a") as engine:
        engine.score_many([scan(i, terminal_id="t") for i in range(4)])
        first = engine.alerts()[0]
    with Engine.open(folder, clock=clock, journal=url, origin="b") as other:
        assert other.alerts() == []  # it is another's
    clock.ms += MINUTE
    with Engine.open(folder, clock=clock, journal=url, origin="a") as engine:
        heard = heard_of(engine)
        (again,) = engine.alerts()
        assert (again.id, again.peak, again.events) == (first.id, 4, first.events)
        engine.score_many([scan(i, terminal_id="t") for i in range(10, 16)])
        assert heard.began == []  # the same episode
        assert engine.alerts()[0].peak == 6
        clock.ms += 5 * MINUTE
        engine.look_at_alerts()
        assert heard.ended == []  # what was counted before the restart may still be in the window
        clock.ms += 6 * MINUTE
        engine.look_at_alerts()
        assert heard.ended == ["busy"]
    with Journal.open(url, create=False) as journal:
        (kept,) = journal.alerts()
        assert (kept.id, kept.peak, kept.end_ms) == (first.id, 6, clock.ms)
        assert journal.alerts(open_only=True) == []


def test_what_a_process_left_that_never_came_back_is_over(write: Callable[..., Path], tmp_path: Path) -> None:
    clock = Clock()
    url = f"sqlite:///{tmp_path}/j.db"
    folder = write({"busy": {"on": "scan", "over": "10m", "above": 1}})
    with Engine.open(folder, clock=clock, journal=url, origin="a") as engine:
        engine.score_many([scan(i) for i in range(4)])
    clock.ms += 3_600_000
    with Engine.open(folder, clock=clock, journal=url, origin="b"):
        pass
    with Journal.open(url, create=False) as journal:
        (kept,) = journal.alerts()
        assert kept.end_ms == kept.updated_ms == T0
    with Engine.open(folder, clock=clock, journal=url, origin="a") as engine:
        assert engine.alerts() == []


def test_an_alert_that_changed_over_a_restart_ends(write: Callable[..., Path], tmp_path: Path) -> None:
    clock = Clock()
    url = f"sqlite:///{tmp_path}/j.db"
    with Engine.open(write({"a": {"over": "10m", "above": 1}}), clock=clock, journal=url) as engine:
        engine.score_many([scan(i) for i in range(4)])
    with Engine.open(write({"a": {"over": "10m", "above": 2}}), clock=clock, journal=url) as engine:
        assert engine.alerts() == []
    with Journal.open(url, create=False) as journal:
        assert [one.end_ms for one in journal.alerts()] == [T0]


def test_a_long_episode_is_told_to_the_journal_now_and_then(write: Callable[..., Path]) -> None:
    clock = Clock()
    with Engine.open(write({"a": {"over": "10m", "above": 1}}), clock=clock) as engine:
        heard = heard_of(engine)
        for i in range(30):
            clock.ms += MINUTE
            engine.score(scan(i))
        between = [one for one in heard if not one.begins]
        assert [one.updated_ms - T0 for one in between] == [MINUTE * (2 + 5 * n) for n in range(1, 6)]
        assert between[-1].peak == 10


def test_a_journal_of_before_has_alerts_from_now_on(write: Callable[..., Path], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/j.db"
    folder = write({"a": {"over": "10m", "above": 0}})
    Engine.open(folder, journal=url).close()
    with sqlite3.connect(tmp_path / "j.db") as file:
        file.executescript(
            "DROP TABLE alerts; DROP TABLE fresh; UPDATE about SET version = 3; PRAGMA user_version = 3"
        )
    with Journal.open(url, create=False) as journal:
        assert journal.alerts() == []
    with Engine.open(folder, journal=url) as engine:
        engine.score(scan(1))
    with Journal.open(url, create=False) as journal:
        assert [one.alert for one in journal.alerts()] == ["a"]
        assert [one.alert for one in journal.replay() if isinstance(one, AlertEntry)] == ["a", "a"]


# -- the format


_LEVEL: dict[str, Any] = {"over": "1h", "above": 3}
WRONG = {
    "no level": ({"a": {"over": "1h"}}, "missing-key", "the alert a has no `above`"),
    "no window": ({"a": {"above": 3}}, "missing-key", "the alert a has no `over`"),
    "short": ({"a": {"over": "1s", "above": 3}}, "wrong-value", "`over` is a duration"),
    "a number that is no count": ({"a": {"over": "1h", "above": 0.3}}, "wrong-value", "`above` is a count"),
    "clear above": ({"a": {**_LEVEL, "clear": 4}}, "wrong-value", "an episode ends at `clear`"),
    "clear of another kind": (
        {"a": {**_LEVEL, "clear": "4%"}}, "wrong-value", "an episode ends at `clear`"
    ),
    "at_least of a count": ({"a": {**_LEVEL, "at_least": 4}}, "no-meaning", "`at_least` says"),
    "no such rule": ({"a": {**_LEVEL, "hits": "bat"}}, "unknown-name", "'bat'"),
    "no such key": ({"a": {**_LEVEL, "by": "terminol"}}, "unknown-name", "alerts are counted by"),
    "by a number": ({"a": {**_LEVEL, "by": "amount"}}, "unknown-name", "alerts are counted by"),
    "no such action": ({"a": {**_LEVEL, "action": "refuse"}}, "unknown-name", "`action`"),
    "no action": ({"a": {**_LEVEL, "action": []}}, "wrong-value", "`action` names no action"),
    "no such type": ({"a": {**_LEVEL, "on": "scam"}}, "unknown-name", "'scam'"),
    "no condition": ({"a": {**_LEVEL, "when": "bat"}}, "unknown-name", "bat"),
    "another key": ({"a": {**_LEVEL, "whem": "bad"}}, "unknown-name", "whem"),
    "a name": ({"-a": {"over": "1h", "above": 3}}, "wrong-name", "'-a'"),
    "too many": ({f"a{i}": {"over": "1h", "above": 3} for i in range(65)}, "too-many-alerts", "at most 64"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_an_alert_is_said_at_its_place(name: str, write: Callable[..., Path]) -> None:
    alerts, code, said = WRONG[name]
    found = findings_of(examine(write(alerts)))
    assert [one.code for one in found] == [code]
    assert said in found[0].message
    assert found[0].place.line == 1
    assert found[0].place.column > 500  # the policy is one line of JSON, and alerts are its end


def test_an_alert_that_can_count_nothing_is_warned_of(write: Callable[..., Path]) -> None:
    level = {"over": "1h", "above": 3}
    rules = {**POLICY["rules"], "bad": {**POLICY["rules"]["bad"], "mode": "off"}}
    folder = write({"a": {**level, "hits": "bad"}, "b": {**level, "when": "1 > 2"}}, rules=rules)
    found = findings_of(examine(folder))
    assert [(one.severity, one.code) for one in found] == [("warning", "never")] * 2
    with Engine.open(folder) as engine:
        engine.score_many([scan(i, bad=True) for i in range(9)])
        assert engine.alerts() == []


def test_check_explains_alerts(write: Callable[..., Path]) -> None:
    alert = {
        "by": "terminal",
        "when": "bad",
        "over": "1h",
        "above": "30%",
        "clear": "12.5%",
        "action": "deny",
    }
    told = explain_text(load_definition(write({"a": {**alert, "hits": "bad"}})))
    line = told.splitlines()[-1]
    assert line.split("  ")[0] == "a"
    assert "any, answered with deny, hit by bad, when bad" in line
    assert "30% of 20 or more" in line
    assert line.endswith("12.5%")


def test_a_rule_test_expects_alerts(write: Callable[..., Path]) -> None:
    folder = write({"busy": {"on": "scan", "by": "terminal", "over": "10m", "above": 1}})
    event = "{at: 0s, type: scan, user_id: u, terminal_id: t, expect: {alerts: %s}}"
    lines = ["start: 2026-11-11T10:00:00+08:00", "tests:"]
    for name, expected in (("right", "[busy]"), ("wrong", "[]")):
        lines += [
            f"  - name: {name}",
            "    events:",
            f"      - {event % '[]'}",
            f"      - {event % expected}",
        ]
    (folder / "a.test.yaml").write_text("\n".join(lines), encoding="utf-8")
    report = run_tests(folder, coverage=True)
    assert [result.passed for result in report.results] == [True, False]
    (mismatch,) = report.results[1].failures[0].mismatches
    assert (mismatch.what, mismatch.expected, mismatch.found) == ("alerts", "none", "busy")
    assert report.gaps is not None
    assert not any(gap.kind == "alert" for gap in report.gaps)
    lines[4:] = lines[4:5]
    (folder / "a.test.yaml").write_text("\n".join(lines), encoding="utf-8")
    gaps = run_tests(folder, coverage=True).gaps or ()
    assert [(gap.name, gap.lacks) for gap in gaps if gap.kind == "alert"] == [("busy", ("firing",))]


# -- commands


def test_score_and_alerts_tell_of_episodes(write: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    folder = write({"busy": {"on": "scan", "by": "terminal", "over": "10m", "above": "50%", "at_least": 2}})
    lines = [msgspec.json.encode(scan(i, terminal_id="till", time=T0 + i)) for i in range(5)]
    (tmp_path / "e.jsonl").write_bytes(b"\n".join(lines))
    journal = f"sqlite:///{tmp_path}/j.db"
    files = ["--in", str(tmp_path / "e.jsonl"), "--out", str(tmp_path / "d.jsonl"), "--rules", str(folder)]
    assert cli.run(["score", *files, "--journal", journal]) == 0
    assert "alerts: busy 1" in capsys.readouterr().err
    assert cli.run(["score", *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["alerts"] == {"busy": 1}
    assert cli.run(["alerts", "--journal", journal]) == 0
    told = capsys.readouterr().out
    assert "goes on: busy at terminal till, 100.0% (above 50.0%); e1, e2, e3" in told
    assert cli.run(["alerts", "--journal", journal, "--open", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["alert"], shown["key"], shown["end"], shown["over"]) == ("busy", "till", None, 600)
    assert cli.run(["alerts", "--journal", f"sqlite:///{tmp_path}/none.db"]) == 2
