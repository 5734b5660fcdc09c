"""Counters made anew: whatever is asked afterwards is answered as if nothing had been lost."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, assume, given, settings
from servers import apart, running, until, valkey
from stage import KEY, MINUTE, T0, Stage, caught_up, claim, payment, policy, store_of, write
from strategies import Reload, Step, World
from test_parity import KEY as PARITY_KEY
from test_parity import EngineSubject, Tables, comparable, stories, take, write_policy
from test_replay import POLICY, labels_of, traffic, write_lines
from typer.testing import CliRunner

from riskengine import rebuild as rebuilding
from riskengine.cli import app
from riskengine.engine import Engine
from riskengine.entries import LabelEntry
from riskengine.errors import RiskEngineError
from riskengine.journal import Journal
from riskengine.policy import load_definition
from riskengine.rebuild import Journals, Rebuilt, count_entries, from_journals, resume
from riskengine.replay import blurred
from riskengine.stores.address import begin
from riskengine.stores.renewal import Renewal

ONE = {"one": {"count": "coupon_claim", "by": "device", "per": "day", "max": 1, "then": "deny"}}
COUNTS = {"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}}


class Journaled(EngineSubject):
    """An engine with a journal."""

    def __init__(
        self, folder: Path, policy: Mapping[str, Any], *, tables: Tables | None = None, store: str
    ) -> None:
        self.folder, self.now = folder, 0
        write_policy(folder, policy, tables or {})
        journal = f"sqlite:///{folder.parent / 'journal.db'}"
        self.engine = Engine.open(
            folder, store=store, journal=journal, clock=lambda: self.now, key=PARITY_KEY
        )


class Other(EngineSubject):
    """An engine without."""

    def __init__(
        self, folder: Path, policy: Mapping[str, Any], *, tables: Tables | None = None, store: str
    ) -> None:
        self.folder, self.now = folder, 0
        write_policy(folder, policy, tables or {})
        self.engine = Engine.open(folder, store=store, clock=lambda: self.now, key=PARITY_KEY)


@pytest.mark.parametrize("kind", ["memory", "redis"])
@settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    max_examples=15,
    phases=(Phase.explicit, Phase.generate),  # to shrink one of these takes minutes
)
@given(story=stories())
def test_what_was_journaled_is_all_that_there_is(
    story: tuple[World, list[Step]], kind: str, server: str
) -> None:
    """A stream is served, its counters are rebuilt, and the rest is answered as by who never lost them."""
    world, steps = story
    before, after = steps[: len(steps) // 2], steps[len(steps) // 2 :]
    assume(not any(isinstance(step, Reload) for step in before))
    store = "memory://" if kind == "memory" else apart(server)
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as folder,
        Journaled(Path(folder, "one"), world.policy, tables=world.tables, store="memory://") as served,
    ):
        patch.setenv("RISKENGINE_HASH_KEY", PARITY_KEY.decode())
        patch.setattr(rebuilding, "SETTLES_S", 0)
        definition = load_definition(served.folder)
        assume(not blurred(definition))
        for step in before:
            take(served, step)
        journal = served.engine.journal
        assert journal is not None
        journal.flush()
        if kind == "redis":
            from_journals(store, definition, [journal], Rebuilt(), clock=lambda: served.now)
        with Other(Path(folder, "two"), world.policy, tables=world.tables, store=store) as rebuilt:
            rebuilt.now = served.now
            if kind == "memory":
                count_entries(rebuilt.engine, Journals([journal]).more(), Rebuilt())
            for number, step in enumerate(after):
                expected, answers = take(served, step), take(rebuilt, step)
                for answer, other in zip(answers, expected, strict=True):
                    if isinstance(answer, dict) and "features" not in answer:  # a retry: none are kept
                        answer["features"] = other["features"]
                assert comparable(answers) == comparable(expected), f"{number} steps later"


def command(*words: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["rebuild", *words])
    return ended.exit_code, ended.output + (str(ended.exception) if ended.exception else "")


def test_a_store_that_was_emptied_is_rebuilt_from_its_journal(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an engine serves: what it decides without counters is counted, its limits hold what they held."""
    monkeypatch.setenv("RISKENGINE_HASH_KEY", KEY.decode())
    with valkey() as url:
        store = apart(url)
        begin(store, "stage")
        sections = policy(features=COUNTS, limits=ONE)
        journal = f"sqlite:///{tmp_path / 'journal.db'}"
        with (
            Stage(tmp_path / "policy", sections, store=store, journal=journal) as stage,
            redis.Redis.from_url(url) as client,
        ):
            shared = store_of(stage.engine)
            for n in range(20):
                stage.row(claim(f"e{n}", n * MINUTE, device_id=f"d{n % 8}"))
            assert stage.engine.release("e0")
            first = stage.engine.score(claim("e1", MINUTE, device_id="d1"))
            client.flushall()
            lost = stage.engine.score(claim("lost", 20 * MINUTE, device_id="new"))
            assert lost.flags == ("degraded:epoch",)
            assert stage.engine.journal is not None
            stage.engine.journal.flush()
            done = Rebuilt()
            from_journals(
                store, stage.engine.definition, [stage.engine.journal], done, clock=lambda: stage.now
            )
            assert (done.events, done.releases, done.unknown) == (21, 1, 0)
            assert stage.engine.score(payment("p0", 20 * MINUTE)).flags == (), (
                "it finds the new epoch by itself"
            )
            assert stage.engine.score(claim("e1", MINUTE, device_id="d1")) == first
            assert stage.row(claim("e20", 21 * MINUTE))["claims"] == 22
            assert stage.engine.score(claim("e21", 22 * MINUTE, device_id="d1")).action == "deny"
            assert stage.engine.score(claim("e22", 22 * MINUTE, device_id="d0")).action == "allow", "released"
            assert stage.engine.score(claim("e23", 22 * MINUTE, device_id="d2")).action == "deny"
            assert stage.engine.release("e2"), "what it holds came back with it"
            assert stage.engine.score(claim("e24", 22 * MINUTE, device_id="d2")).action == "allow"
            stage.engine.journal.flush()
            words = "--store", store, "--from", journal, "--rules", str(tmp_path / "policy")
            code, told = command(*words, "--json")
            assert (code, json.loads(told)["events"]) == (0, 27)
            assert stage.engine.score(payment("p1", 20 * MINUTE)).flags == ()
            assert stage.row(claim("e25", 23 * MINUTE))["claims"] == 27
            ours = (shared.place.data, shared.place.epoch_key)
            assert [name for name in client.scan_iter() if not name.startswith(ours)] == [], (
                "no old life is left"
            )


def test_what_followed_an_event_that_was_not_known_counts_by_itself_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal knows the event that the store could not tell of: what was decided is what counts."""
    monkeypatch.setenv("RISKENGINE_HASH_KEY", KEY.decode())
    with running() as server:
        store, journal = apart(server.url, timeout=400), f"sqlite:///{tmp_path / 'journal.db'}"
        begin(store, "stage")
        sections = policy(features=COUNTS, limits=ONE)
        with Stage(tmp_path / "policy", sections, store=store, journal=journal) as stage:
            assert stage.engine.score(claim("e0", device_id="d0")).action == "allow"
            server.hold(True)
            follow = stage.engine.score(claim("f0", MINUTE, device_id="d0", follows="e0"))
            assert (follow.action, follow.flags) == ("deny", ("degraded:store", "follows:unknown"))
            server.hold(False)
            until(lambda: stage.engine.score(payment(f"p{time.monotonic()}")).flags == ())
            assert stage.row(claim("e1", 2 * MINUTE, device_id="d0"))["claims"] == 3
            assert stage.engine.journal is not None
            stage.engine.journal.flush()
            definition, done = stage.engine.definition, Rebuilt()
            from_journals(store, definition, [stage.engine.journal], done, clock=lambda: stage.now)
            until(lambda: stage.engine.score(payment(f"p{time.monotonic()}")).flags == ())
            assert stage.row(claim("e2", 3 * MINUTE, device_id="d0"))["claims"] == 4
            assert stage.engine.score(claim("e3", 3 * MINUTE, device_id="d0")).action == "deny", "e0 holds it"


def test_of_two_answers_that_of_who_had_the_store_counts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the other was given first: it is what the store went by."""
    monkeypatch.setenv("RISKENGINE_HASH_KEY", KEY.decode())
    with running() as server:
        store = apart(server.url, timeout=400)
        begin(store, "stage")
        claims = {"required": ["user_id"], "fail": "closed"}
        sections = policy(events={"coupon_claim": claims}, features=COUNTS, limits=ONE)
        journals = [f"sqlite:///{tmp_path / name}.db" for name in ("one", "two")]
        with (
            Stage(tmp_path / "one", sections, store=store, journal=journals[0]) as one,
            Stage(tmp_path / "two", sections, store=store, journal=journals[1]) as two,
        ):
            event = claim("e0", device_id="d0")
            for stage in (one, two):
                assert stage.engine.score(claim(f"f{stage.folder.name}")).flags == ()
            server.hold(True)
            alone = one.engine.score(event)
            server.hold(False)
            stood = two.engine.score(event)
            assert (alone.action, alone.flags) == ("deny", ("degraded:store",))
            assert (stood.action, stood.flags) == ("allow", ("redecided",)), "the server had heard of it"
            until(lambda: caught_up(one.engine))
            opened = [stage.engine.journal for stage in (one, two)]
            kept = [journal for journal in opened if journal is not None]
            for journal in kept:
                journal.flush()
            from_journals(store, one.engine.definition, kept, Rebuilt(), clock=lambda: one.now)
            again = claim("e1", 2 * MINUTE, device_id="d0")
            until(lambda: two.engine.score(claim(f"p{time.monotonic()}", user_id="u9")).flags == ())
            assert two.engine.score(again).action == "deny", "e0 holds it"
            assert two.engine.score(event) == stood


def test_what_is_said_of_an_event_may_stand_before_it(tmp_path: Path) -> None:
    """Where engines share a journal, and that was away for one of them."""
    features = {"frauds": {"count": "fraud", "on": "any", "by": "user", "over": "30d"}}
    sections, journal = policy(features=features, limits=ONE), f"sqlite:///{tmp_path / 'journal.db'}"
    with Stage(tmp_path / "served", sections, journal=journal) as served:
        served.engine.score_many([claim("e0", device_id="d0"), claim("e1", 1, device_id="d1")])
        served.engine.label("e0", "fraud")
        served.engine.release("e1")
        assert served.engine.journal is not None
        served.engine.journal.flush()
        entries = list(served.engine.journal.replay())
    stray = LabelEntry(event_id="nobody", label="fraud", time_ms=T0)
    with Stage(tmp_path / "again", sections) as again:
        rebuilt = Rebuilt()
        count_entries(again.engine, [stray, *reversed(entries)], rebuilt)
        count_entries(again.engine, [], rebuilt)
        assert (rebuilt.events, rebuilt.labels, rebuilt.releases, rebuilt.unknown) == (2, 1, 1, 1)
        assert again.row(claim("e2", 2))["frauds"] == 1
        assert again.actions([claim("e3", 3, device_id="d1")]) == ["allow"]


def test_an_event_that_several_journals_have_is_one(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RISKENGINE_HASH_KEY", KEY.decode())
    sections, journal = policy(features=COUNTS, limits=ONE), f"sqlite:///{tmp_path / 'one.db'}"
    now = int(time.time() * 1000)
    with Stage(tmp_path / "policy", sections, journal=journal) as served:
        served.now = now
        served.engine.score_many([claim(f"e{n}", now - T0, device_id=f"d{n}") for n in range(5)])
    shutil.copy(tmp_path / "one.db", tmp_path / "two.db")
    store = apart(server)
    words = ("--store", store, "--from", journal, "--from", str(tmp_path / "two.db"))
    code, told = command(*words, "--rules", str(tmp_path / "policy"), "--json")
    said = json.loads(told)
    assert (code, said["events"], said["known"]) == (0, 5, 5)
    with Stage(tmp_path / "other", sections, store=store) as other:
        assert other.row(claim("later", now - T0))["claims"] == 6


def test_a_retry_just_after_a_rebuild_gets_the_first_answer(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also under a policy to which no event may come late: its decisions were restored for a millisecond."""
    monkeypatch.setenv("RISKENGINE_HASH_KEY", KEY.decode())
    monkeypatch.setattr(rebuilding, "SETTLES_S", 0)
    store = apart(server)
    sections = {**policy(features=COUNTS, limits=ONE), "lateness": "0s", "skew": "0s"}
    journal = f"sqlite:///{tmp_path / 'journal.db'}"
    with Stage(tmp_path / "served", sections, journal=journal) as served:
        first = served.engine.score(claim("e0", device_id="d0"))
        assert first.action == "allow"
        assert served.engine.journal is not None
        served.engine.journal.flush()
        definition, journals = served.engine.definition, [served.engine.journal]
        from_journals(store, definition, journals, Rebuilt(), clock=lambda: served.now)
    with Stage(tmp_path / "other", sections, store=store) as other:
        assert other.engine.score(claim("e0", device_id="d0")) == first


def test_a_store_is_rebuilt_from_files(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are judged as they would have been: the counters are those of an engine that saw them all."""
    monkeypatch.setenv("RISKENGINE_HASH_KEY", KEY.decode())
    folder = write(tmp_path / "policy", POLICY)
    events = traffic(3, 200)
    labels = sorted(labels_of(events, 4), key=lambda label: label["time"])
    store = apart(server)
    words = "--store", store, "--rules", str(folder), "--labels", write_lines(tmp_path / "l.jsonl", labels)
    code, told = command(*words, "--from", write_lines(tmp_path / "e.jsonl", events))
    assert (code, "rebuilt from 200 events" in told) == (0, True), told
    end = events[-1]["time"]
    with (
        Engine.open(folder, clock=lambda: end, key=KEY) as reference,
        Engine.open(folder, store=store, clock=lambda: end, key=KEY) as engine,
    ):
        due = list(labels)
        for event in events:
            while due and due[0]["time"] < event["time"]:
                reference.label(due[0]["event_id"], due[0]["label"], due[0]["time"])
                due.pop(0)
            reference.score_many([event], now=_now(event))
        for label in due:
            reference.label(label["event_id"], label["label"], label["time"])
        for n, event in enumerate(events[::7]):
            probe = {**event, "event_id": f"probe{n}", "time": end}
            assert engine.score(probe, features=True) == reference.score(probe, features=True)


def _now(event: Mapping[str, Any]) -> Any:
    import numpy as np

    return np.array([event["time"]], np.int64)


@contextmanager
def counted(store: str, tmp_path: Path, n: int) -> Iterator[tuple[Stage, Journal]]:
    """An engine that has counted so many events, and its journal for who rebuilds."""
    journal = f"sqlite:///{tmp_path / 'journal.db'}"
    with Stage(tmp_path / "policy", policy(features=COUNTS), store=store, journal=journal) as stage:
        for i in range(n):
            stage.engine.score(claim(f"e{i}", i))
        assert stage.engine.journal is not None
        stage.engine.journal.flush()
        with Journal.open(journal, create=False) as read:
            yield stage, read


def test_whoever_stops_a_rebuild_loses_nothing(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RISKENGINE_HASH_KEY", KEY.decode())
    with counted(store, tmp_path, 10) as (stage, read):
        keys = keys_of(store)

        def interrupted(done: int, total: int | None) -> None:
            assert not isinstance(stage.engine.info(), int)
            with pytest.raises(RiskEngineError, match="another rebuild"):
                from_journals(store, stage.engine.definition, [], Rebuilt())
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            from_journals(store, stage.engine.definition, [read], Rebuilt(), interrupted)
        assert keys_of(store) == keys
        assert stage.row(claim("e10", 11))["claims"] == 11


def test_whoever_stops_a_rebuild_when_it_serves_waits_for_its_end(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RISKENGINE_HASH_KEY", KEY.decode())
    with counted(store, tmp_path, 1) as (stage, read):
        keys = keys_of(store)
        switch = Renewal.switch

        def interrupted(renewal: Renewal) -> None:
            switch(renewal)
            stage.engine.score(claim("later", 1))
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(Renewal, "switch", interrupted)
        heeded = signal.getsignal(signal.SIGINT)
        from_journals(store, stage.engine.definition, [read], Rebuilt())
        assert signal.getsignal(signal.SIGINT) is heeded
        left = set(keys) & set(keys_of(store))
        assert [name.rpartition(b":")[2] for name in left] == [b"epoch"]
        assert stage.row(claim("e3", 2))["claims"] == 3


def test_nothing_to_count_leaves_counters_as_they_are(store: str, tmp_path: Path) -> None:
    with Stage(tmp_path / "policy", policy(features=COUNTS), store=store) as stage:
        stage.engine.score(claim("e1"))
        with (
            Journal.open(f"sqlite:///{tmp_path / 'journal.db'}") as empty,
            pytest.raises(RiskEngineError, match="the counters stay as they are"),
        ):
            from_journals(store, stage.engine.definition, [empty], Rebuilt())
        assert stage.row(claim("e2", 1))["claims"] == 2


def test_a_rebuild_refuses_what_will_not_do(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(write(tmp_path / "policy", policy(features=COUNTS)))
    store = apart(server)
    journal = f"sqlite:///{tmp_path / 'journal.db'}"
    (tmp_path / "note.txt").write_text("no events")
    (tmp_path / "e.jsonl").write_text("")
    with Engine.open(folder, journal=journal, key=KEY, clock=lambda: T0) as engine:
        engine.score(claim("e1"))
    for words, message in (
        (("--store", "memory://", "--from", journal), "lives in one process"),
        (("--store", store, "--from", str(tmp_path / "none.db")), "there is no"),
        (("--store", store, "--from", str(tmp_path / "note.txt")), "neither a journal nor events"),
        (("--store", store, "--from", journal, "--labels", "l.jsonl"), "has its labels in it"),
        (("--store", store, "--from", journal, "--from", str(tmp_path / "e.jsonl")), "do not go together"),
        (("--store", store, "--from", "sqlite:////nowhere/j.db"), "no journal at"),
        (("--store", "redis://127.0.0.1:1/0", "--from", journal), "cannot be reached"),
        (("--store", store, "--from", journal), "another hash key"),
        (("--store", store, "--from", str(tmp_path / "e.jsonl")), "there is nothing in it"),
    ):
        code, told = command(*words, "--rules", folder)
        assert code != 0
        assert message in " ".join(told.replace("│", " ").split()), told
    assert keys_of(store) == []


def test_events_that_the_policy_does_not_know_are_counted_as_such(server: str, tmp_path: Path) -> None:
    journal = f"sqlite:///{tmp_path / 'journal.db'}"
    both = policy(features=COUNTS)
    with Stage(tmp_path / "both", both, journal=journal) as stage:
        stage.engine.score_many([claim("e1"), payment("p1"), claim("e2", MINUTE)])
    fewer = {**both, "events": {"coupon_claim": both["events"]["coupon_claim"]}}
    with (
        Stage(tmp_path / "fewer", fewer) as stage,
        Journal.open(journal, create=False) as read,
    ):
        rebuilt = Rebuilt()
        assert count_entries(stage.engine, Journals([read]).more(), rebuilt) == 3
        assert (rebuilt.events, rebuilt.foreign) == (2, 1)
        assert stage.row(claim("e3", MINUTE))["claims"] == 3


def test_an_engine_goes_on_where_its_journal_ends(tmp_path: Path) -> None:
    """As `serve` begins on the memory store. An event that is in the journal is a retry afterwards."""
    journal = f"sqlite:///{tmp_path / 'journal.db'}"
    sections = policy(features=COUNTS, limits=ONE, lists={"blocked": {"of": ["user"]}})
    with Stage(tmp_path, sections, journal=journal) as stage:
        decisions = [stage.engine.score(claim(f"e{n}", n, device_id="d1")) for n in range(3)]
        stage.engine.list_put("blocked", "user", "u9")
    with Stage(tmp_path, sections, journal=journal) as stage:
        done = resume(stage.engine)
        assert (done.events, done.edits) == (3, 1)
        assert [stage.engine.score(claim(f"e{n}", n, device_id="d1")) for n in range(3)] == decisions
        assert stage.row(claim("e3", 4, device_id="d1"))["claims"] == 4
        assert stage.engine.list_get("blocked", "user", "u9") is not None
        assert stage.engine.journal is not None
        stage.engine.journal.flush()
        again = resume(stage.engine)
        assert (again.events, again.known) == (0, 4)
        assert stage.row(claim("e4", 5))["claims"] == 5, "what is known already moves nothing"


def keys_of(url: str) -> list[bytes]:
    prefix = url.partition("prefix=")[2].partition("&")[0]
    with redis.Redis.from_url(url.partition("?")[0]) as client:
        return sorted(client.scan_iter(match=f"{prefix}:*"))
