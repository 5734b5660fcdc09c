"""One contract, every store: what the in-process store answers, the shared one answers too, with ==."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from clusters import cluster
from hypothesis import HealthCheck, given, settings
from servers import apart, redis_server, valkey
from stage import KEY as STAGE_KEY
from stage import T0, Stage, action, claim, payment, policy, standing_still, store_of, write
from strategies import Step, World
from test_naive import SCENARIOS, Scenario, a_feature_taken_out_and_put_back_starts_empty
from test_parity import KEY, EngineSubject, Tables, comparable, singly, stories, take, write_policy
from typer.testing import CliRunner

from riskengine.cli import app
from riskengine.decision import Decision
from riskengine.engine import Engine
from riskengine.entries import Entry
from riskengine.errors import EventError, RiskEngineError
from riskengine.features import Touches
from riskengine.journal import Journal
from riskengine.judge import Judge
from riskengine.policy import load_definition
from riskengine.rebuild import Rebuilt, count_entries
from riskengine.replay import replay_journal
from riskengine.rows import RowsFile
from riskengine.stores import Followed, kept
from riskengine.stores.address import begin
from riskengine.stores.grants import Grants
from riskengine.stores.link import Call
from riskengine.stores.place import kind_of
from riskengine.stores.redis import RedisStore, rows_of
from riskengine.stores.requests import Asked
from riskengine.turns import Turns

REDIS = shutil.which("redis-server")
DENYING = policy(
    limits={"two": {"count": "coupon_claim", "by": "device", "over": "1h", "max": 2, "then": "deny"}},
    rules={"bad": {"on": "any", "when": "user_id == 'bad'", "then": "deny", "mode": "live"}},
)


@pytest.fixture(scope="module", params=["valkey", *(["redis"] if REDIS else []), "cluster"])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a Valkey, a Redis where one is found, and a cluster of three masters with replicas."""
    with ExitStack() as stack:
        if request.param == "cluster":
            yield stack.enter_context(cluster()).url
        else:
            other = redis_server(REDIS) if request.param == "redis" and REDIS else valkey()
            yield stack.enter_context(other)


class SharedSubject(EngineSubject):
    """An engine on a store of its own on a real server."""

    def __init__(
        self, folder: Path, policy: Mapping[str, Any], *, tables: Tables | None = None, url: str
    ) -> None:
        self.folder, self.now = folder, 0
        write_policy(folder, policy, tables or {})
        store = apart(url)
        begin(store, policy["policy"])
        self.engine = Engine.open(folder, store=store, clock=lambda: self.now, key=KEY)


class InTurnsSubject(SharedSubject):
    """One whose events come to its doors in turns, as those of many threads would."""

    def __init__(
        self, folder: Path, policy: Mapping[str, Any], *, tables: Tables | None = None, url: str
    ) -> None:
        super().__init__(folder, policy, tables=tables, url=url)
        self.engine._turns = InTurns(self.engine._turns.judges)


class InTurns(Turns):
    """Hands out one judge after another."""

    def take(self) -> Judge:
        self.judges.reverse()
        self._locks.reverse()
        return super().take()


# Where many engines share a store, one that takes a feature out cannot know that all have: its cells stay.
SHARED = [play for play in SCENARIOS if play is not a_feature_taken_out_and_put_back_starts_empty]


@pytest.mark.parametrize("play", SHARED, ids=lambda play: play.__name__)
def test_a_shared_store_plays(play: Scenario, server: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        opened = 0

        def open_subject(policy: Mapping[str, Any], *, tables: Tables | None = None) -> SharedSubject:
            nonlocal opened
            opened += 1
            folder = tmp_path / f"policy-{opened}"
            folder.mkdir()
            return stack.enter_context(SharedSubject(folder, policy, tables=tables, url=server))

        play(open_subject)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], max_examples=25)
@given(story=stories())
def test_shared_and_in_process_stores_agree(story: tuple[World, list[Step]], server: str) -> None:
    world, steps = story
    with (
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as two,
        tempfile.TemporaryDirectory() as three,
        EngineSubject(Path(one), world.policy, tables=world.tables) as in_process,
        SharedSubject(Path(two), world.policy, tables=world.tables, url=server) as in_batches,
        InTurnsSubject(Path(three), world.policy, tables=world.tables, url=server) as one_by_one,
    ):
        for number, step in enumerate(steps):
            expected = comparable(take(in_process, step))
            assert comparable(take(in_batches, step)) == expected, f"in batches, at step {number}"
            lone = [part for single in singly(step) for part in take(one_by_one, single)]
            assert comparable(lone) == expected, f"one by one, at step {number}"


def test_engines_that_share_a_limit_never_pass_it(server: str, tmp_path: Path) -> None:
    """Three engines in turns and in batches: of 60 claims on a budget of 25, 25 are granted."""
    budget = {"budget": {"count": "coupon_claim", "by": "campaign", "per": "day", "max": 25, "then": "deny"}}
    store = apart(server)
    begin(store, "stage")
    with ExitStack() as stack:
        engines = [
            stack.enter_context(Stage(tmp_path / str(i), policy(limits=budget), store=store))
            for i in range(3)
        ]
        said: list[str] = []
        for turn in range(20):
            events = [claim(f"e{turn}-{i}", campaign_id="c1") for i in range(3)]
            said += engines[turn % 3].actions(events)
    assert (said.count("allow"), said.count("deny")) == (25, 35)
    assert said[:25] == ["allow"] * 25


@pytest.mark.parametrize("afterwards", ["has nothing more to do", "is closed"])
def test_what_a_denied_event_held_is_free_for_others_at_once(
    afterwards: str, server: str, tmp_path: Path
) -> None:
    sections = policy(
        limits={"one": {"count": "coupon_claim", "by": "device", "over": "1h", "max": 1, "then": "deny"}},
        rules={"low": {"on": "any", "when": "score < 0", "then": "deny", "mode": "live"}},
    )
    store = apart(server)
    begin(store, "stage")
    with Stage(tmp_path / "other", sections, store=store) as other:
        for n in range(4):  # a cluster has each device in another partition
            device = {"device_id": f"d{n}"}
            with Stage(tmp_path / f"{n}", sections, store=store) as stage:
                events = [claim(f"{n}-{k}", k, score=-1, **device) for k in range(1 + n % 2)]
                assert set(stage.actions(events)) == {"deny"}
                if afterwards == "is closed":
                    stage.engine.close()
                assert other.actions([claim(f"{n}-after", 9, score=1, **device)]) == ["allow"]


def test_what_many_wrote_is_compacted_and_counts_the_same(server: str, tmp_path: Path) -> None:
    """Two engines write one user's state by turns, past many compactions; nothing is lost or doubled."""
    features = {"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}}
    store = apart(server)
    begin(store, "stage")
    with (
        Stage(tmp_path / "one", policy(features=features), store=store) as one,
        Stage(tmp_path / "two", policy(features=features), store=store) as two,
    ):
        for n in range(300):
            stage = (one, two)[n % 2]
            assert stage.row(claim(f"e{n}", n))["claims"] == n + 1
        shared = store_of(one.engine)
        ((call, name),) = keys_of(shared, b"e" + kind_of("user"))
        value = call("GET", name)[0]
        assert isinstance(value, bytes)
        assert len(value) < 4000, "300 records are 9,600 bytes"


def test_two_policies_in_turns_keep_the_counters_of_both(server: str, tmp_path: Path) -> None:
    """While a new policy is rolled out both write: what they define alike counts for both."""
    both = {"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}}
    old = {**both, "devices": {"distinct": "device", "on": "coupon_claim", "by": "user", "over": "1h"}}
    new = {**both, "spent": {"sum": "amount", "on": "payment", "by": "user", "over": "1h"}}
    store = apart(server)
    begin(store, "stage")
    with (
        Stage(tmp_path / "old", policy(features=old), store=store) as before,
        Stage(tmp_path / "new", policy(features=new), store=store) as after,
    ):
        for n in range(100):
            row = before.row(claim(f"o{n}", 4 * n, device_id=f"d{n}"))
            assert (row["claims"], row["devices"]) == (2 * n + 1, n + 1)
            assert after.row(claim(f"n{n}", 4 * n + 1))["claims"] == 2 * n + 2
            assert after.row(payment(f"p{n}", 4 * n + 2, 2.5))["spent"] == 2.5 * (n + 1)


def test_an_event_whose_engine_died_before_it_decided_counts_once(server: str, tmp_path: Path) -> None:
    features = {"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}}
    one_a_day = {"one": {"count": "coupon_claim", "by": "device", "per": "day", "max": 1, "then": "deny"}}
    store = apart(server)
    begin(store, "stage")
    sections = policy(features=features, limits=one_a_day)
    with (
        Stage(tmp_path / "one", sections, store=store) as one,
        Stage(tmp_path / "two", sections, store=store) as two,
    ):
        event = claim("e1", device_id="d1")
        dying = store_of(one.engine)
        dying.conclude = lambda *_: {}  # type: ignore[method-assign]  # as if killed after the wait
        one.engine.score(event)
        late = two.engine.score(claim("e2", 1000, device_id="d1"), features=True)
        assert (late.action, late.features) == ("deny", {"claims": 2.0})
        again = two.engine.score(event, features=True)
        assert (again.action, again.features, again.flags) == ("allow", {"claims": 1.0}, ("redecided",))
        assert two.engine.score(event) == again
        assert two.engine.release("e1")
        assert two.engine.score(claim("e3", 2000, device_id="d1")).action == "allow"


@pytest.mark.parametrize(
    ("size", "taken"), [(1, 0), (3, 0), (3, 1)], ids=["alone", "first of a batch", "within a batch"]
)
def test_who_stood_still_answers_what_another_has_decided_meanwhile(
    size: int, taken: int, server: str, tmp_path: Path
) -> None:
    features = {"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}}
    one_a_day = {"one": {"count": "coupon_claim", "by": "device", "per": "day", "max": 1, "then": "deny"}}
    store, journal = apart(server), f"sqlite:///{tmp_path / 'journal.db'}"
    begin(store, "stage")
    sections = policy(features=features, limits=one_a_day)
    with (
        Stage(tmp_path / "one", sections, store=store, journal=journal) as one,
        Stage(tmp_path / "two", sections, store=store) as two,
        ThreadPoolExecutor(1) as pool,
    ):
        entered, go_on = standing_still(store_of(one.engine), "settle")
        events = [claim(f"e{n}", device_id=f"d{n}") for n in range(size)]
        first = pool.submit(one.engine.score_many, events)
        assert entered.wait(60)
        second = two.engine.score(events[taken])
        assert (second.action, second.flags) == ("allow", ("redecided",))
        go_on.set()
        answers = first.result(60)
        assert answers[taken] == second, "or one event had two answers"
        assert [action(decision) for decision in answers] == ["allow"] * len(events)
        assert two.engine.score_many(events) == answers
        assert one.engine.journal is not None
        one.engine.journal.flush()
        entry = one.engine.journal.decision(f"e{taken}")
        assert entry is not None
        assert msgspec.json.decode(entry.decision, type=Decision) == second
        last = two.engine.score(claim("last", device_id="d0"), features=True)
        assert (last.action, last.features) == ("deny", {"claims": len(events) + 1.0})


def test_a_denied_event_gives_back_what_it_held_though_another_engine_had_taken_it_up(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That one stops what is given back before the decision: then the decision does it, if it stands."""
    monkeypatch.setattr(kept, "IN_FLIGHT_MS", 0)
    store = apart(server)
    begin(store, "stage")
    with (
        Stage(tmp_path / "one", DENYING, store=store) as one,
        Stage(tmp_path / "two", DENYING, store=store) as two,
    ):
        deciding: Any = store_of(one.engine)
        settle = deciding.settle

        def settles(touches: Touches, *given: Any) -> int:
            store_of(two.engine)._grants.stand_in(rows_of(touches, 0))
            at: int = settle(touches, *given)
            return at

        deciding.settle = settles
        batch = [claim(f"e{n}", n, user_id="u" if n else "bad", device_id="d") for n in range(3)]
        assert one.actions(batch) == ["deny", "allow", "deny"]
        del deciding.settle
        more = [claim(f"e{n}", n, device_id="d") for n in (3, 4)]
        assert one.actions(more) == ["allow", "deny"]
        assert one.engine.score(batch[0]).fired == ("bad",)


@pytest.mark.parametrize("taken", [0, 1])
def test_what_two_engines_deny_of_one_batch_is_given_back_once(
    taken: int, server: str, tmp_path: Path
) -> None:
    store = apart(server)
    begin(store, "stage")
    with (
        Stage(tmp_path / "one", DENYING, store=store) as one,
        Stage(tmp_path / "two", DENYING, store=store) as two,
        ThreadPoolExecutor(1) as pool,
    ):
        entered, go_on = standing_still(store_of(one.engine), "settle")
        batch = [claim(f"e{n}", n, device_id="full") for n in range(3)]
        batch[taken] |= {"user_id": "bad", "device_id": "free"}
        first = pool.submit(one.engine.score_many, batch)
        assert entered.wait(60)
        assert action(two.engine.score(batch[taken])) == "deny"
        go_on.set()
        assert [action(decision) for decision in first.result(60)].count("deny") == 1
        assert one.actions([claim("more", 10, device_id="full")]) == ["deny"]
        more = [claim(f"more{n}", 10 + n, device_id="free") for n in range(4)]
        assert one.actions(more) == ["allow", "allow", "deny", "deny"]


def test_a_batch_that_only_the_journal_has_is_answered_from_it_and_counts_once(
    server: str, tmp_path: Path
) -> None:
    features = {"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}}
    one = {"one": {"count": "coupon_claim", "by": "device", "over": "1h", "max": 1, "then": "deny"}}
    store, journal = apart(server), f"sqlite:///{tmp_path / 'journal.db'}"
    begin(store, "stage")
    events = [claim(f"e{n}", n, device_id="d1") for n in range(4)]
    sections = policy(features=features, limits=one)
    with Stage(tmp_path / "one", sections, store=store, journal=journal) as dying:
        opened = store_of(dying.engine)
        opened.conclude = lambda *_: {}  # type: ignore[method-assign]  # as if killed before it told
        said = dying.engine.score_many(events)
    with Stage(tmp_path / "two", sections, store=store, journal=journal) as after:
        new, other = claim("new", 10, device_id="d2"), claim("e2", 2, device_id="d9")
        first = after.engine.score_many([other, *events, *events, other, new])
        assert first[1:9] == [*said, *said], "each of them, however often it comes at once"
        assert isinstance(first[0], EventError)
        assert isinstance(first[9], EventError)
        assert after.engine.score_many(events) == said
        assert after.row(claim("last", 20))["claims"] == 6
        assert after.actions([claim("late", 30, device_id="d1")]) == ["deny"]
        assert after.engine.release("e0")
        assert after.actions([claim("free", 40, device_id="d1")]) == ["allow"]


@pytest.mark.parametrize("alone", [True, False])
def test_what_was_told_and_not_journaled_is_journaled_by_who_is_asked_again(
    server: str, tmp_path: Path, alone: bool
) -> None:
    """Once, as it was answered, whoever asks how often: an acknowledged decision is in a journal."""
    store, journal = apart(server), f"sqlite:///{tmp_path / 'journal.db'}?commit=sync"
    begin(store, "stage")
    events = [claim(f"e{n}", n, device_id=f"d{n % 3}") for n in range(1 if alone else 5)]
    one = {"one": {"count": "coupon_claim", "by": "device", "over": "1h", "max": 1, "then": "deny"}}
    sections = policy(limits=one)
    with Stage(tmp_path / "one", sections, store=store) as dying:  # as if killed before it was journaled
        said = dying.engine.score_many(events)
    with Stage(tmp_path / "two", sections, store=store, journal=journal) as after:
        for turn in range(3):
            own = claim(f"own{turn}", 10, device_id="d9")
            asked = [*events, *events] if alone else [own, *events[:2], *events]
            again = [after.engine.score_many([event])[0] for event in asked]
            together = after.engine.score_many(asked, features=True)
            expected = {decision.event_id: decision for decision in said if isinstance(decision, Decision)}
            for answer in (*again, *together):
                assert isinstance(answer, Decision)
                assert answer == expected.get(answer.event_id, answer)
        assert after.engine.journal is not None
        entries = [entry for entry in after.engine.journal.replay() if isinstance(entry, Entry)]
    kept = {entry.event_id: entry for entry in entries}
    assert len(kept) == len(entries) == len(events) + (0 if alone else 3)
    for decision in said:
        assert isinstance(decision, Decision)
        entry = kept[decision.event_id]
        assert entry.decision == msgspec.json.encode(decision)
        assert (entry.event["event_id"], entry.event["time"]) == (decision.event_id, decision.time)


def test_what_is_journaled_by_who_is_asked_late_counts_in_a_rebuild(server: str, tmp_path: Path) -> None:
    """It came in time to the engine that decided it, and was killed before that was journaled."""
    store, journal = apart(server), f"sqlite:///{tmp_path / 'journal.db'}"
    begin(store, "stage")
    features = {"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}}
    sections = policy(features=features)
    with Stage(tmp_path / "one", sections, store=store) as one:
        said = one.engine.score(claim("e0"))
    with Stage(tmp_path / "two", sections, store=store, journal=journal) as two:
        two.now = T0 + one.engine.definition.lateness_ms + 1_000
        assert two.engine.score(claim("e0")) == said
        assert two.engine.journal is not None
        two.engine.journal.flush()
        entries = list(two.engine.journal.replay())
    with Stage(tmp_path / "again", sections) as again:
        count_entries(again.engine, entries, Rebuilt())
        assert again.row(claim("e1", 1))["claims"] == 2


def test_a_row_of_another_policy_than_the_decision_is_not_compared(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is asked again goes by another policy already, and journals what the first had decided."""
    monkeypatch.setenv("RISKENGINE_HASH_KEY", STAGE_KEY.decode())
    store, journal = apart(server), f"sqlite:///{tmp_path / 'journal.db'}"
    begin(store, "stage")
    claims = {"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}}
    more = {**claims, "devices": {"distinct": "device", "on": "coupon_claim", "by": "user", "over": "1h"}}
    with Stage(tmp_path / "one", policy(features=claims), store=store) as one:
        said = one.engine.score(claim("e0"))
    with Stage(tmp_path / "two", policy(features=more), store=store, journal=journal) as two:
        assert two.engine.score(claim("e0")) == said
    out = str(tmp_path / "rows.parquet")
    with Journal.open(journal, create=False) as kept:
        done = replay_journal(load_definition(tmp_path / "one"), kept.replay(), lambda p: RowsFile(out, p))
    assert (done.events, done.same, done.other, done.incomparable) == (1, 0, 0, 1)


def test_a_decision_that_is_no_longer_kept_is_made_again_and_moves_nothing(
    server: str, tmp_path: Path
) -> None:
    features = {"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}}
    one_a_day = {"one": {"count": "coupon_claim", "by": "device", "per": "day", "max": 2, "then": "review"}}
    store = apart(server)
    begin(store, "stage")
    with Stage(tmp_path, policy(features=features, limits=one_a_day), store=store) as stage:
        event = claim("e1", device_id="d1")
        assert stage.engine.score(event).action == "allow"
        assert stage.row(claim("e2"))["claims"] == 2
        shared = store_of(stage.engine)
        own = shared.place.claim_name(b"d", stage.engine._claim_key("e1"))
        (call,) = [call for call, name in keys_of(shared, b"d") if name == own]
        call("DEL", own)
        again = stage.engine.score(event, features=True)
        assert (again.action, again.features, again.flags) == ("review", {"claims": 2.0}, ("redecided",))
        assert stage.engine.score(event) == again
        assert stage.engine.score(claim("e3", device_id="d1")).action == "allow", "it holds one of two"
        assert stage.engine.release("e1")
        assert stage.engine.score(claim("e4", device_id="d1")).action == "allow"
        assert stage.engine.score(claim("e5", device_id="d1")).action == "review"


def test_an_event_that_is_lost_as_it_comes_again_is_held_to_its_limits(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that follows another asks for no limits where it is known to be decided: it is not any more."""
    limits = {"one": {"count": "coupon_claim", "by": "device", "over": "1h", "max": 1, "then": "deny"}}
    features = {"claims": {"count": "coupon_claim", "by": "device", "over": "1h"}}
    store = apart(server)
    begin(store, "stage")
    with Stage(tmp_path, policy(features=features, limits=limits), store=store) as stage:
        shared = store_of(stage.engine)
        assert stage.engine.score(claim("e0", device_id="d0")).action == "allow"
        follows = claim("f0", 1, device_id="d0", follows="e0")
        assert stage.engine.score(follows).action == "allow", "it takes over what is held"
        key, device = stage.engine._claim_key("f0"), stage.engine.policy.schema.entity_key("device", "d0")
        known, take_over = kept.claim_of, Grants._take_over

        def lost(*asked: Any) -> bytes | None:
            found = known(*asked)
            monkeypatch.setattr(kept, "claim_of", known)
            for letter in (b"c", b"d", b"m"):
                for part in {shared.place.part_of(key), shared.place.part_of(device)}:
                    shared._link.call("DEL", shared.place.claim_name(letter, key, part), at=part)
            return found

        def meanwhile(grants: Grants, asked: Asked, followed: Followed) -> None:
            monkeypatch.setattr(Grants, "_take_over", take_over)
            monkeypatch.setattr(kept, "claim_of", lost)
            take_over(grants, asked, followed)

        monkeypatch.setattr(Grants, "_take_over", meanwhile)
        again = stage.engine.score(follows, features=True)
        assert (again.action, again.features) == ("allow", {"claims": 1}), again
        assert stage.engine.score(claim("e1", 2, device_id="d0")).action == "deny", "it holds what it held"


def test_what_others_list_and_tabulate_is_seen_at_once(server: str, tmp_path: Path) -> None:
    sections = policy(
        lists={"blocked": {"of": ["user"]}},
        tables={"campaigns": {"key": "campaign", "columns": {"ends": "time"}}},
        rules={
            "listed": {"on": "any", "when": "listed('blocked', user)", "then": "deny", "mode": "live"},
            "over": {"on": "any", "when": "time > campaigns.ends", "then": "review", "mode": "live"},
        },
    )
    store = apart(server)
    begin(store, "stage")
    with (
        Stage(tmp_path / "one", sections, store=store) as one,
        Stage(tmp_path / "two", sections, store=store) as two,
    ):
        assert one.engine.score(claim("e1", campaign_id="c1")).action == "allow"
        two.engine.table_put("campaigns", "c1", {"ends": T0 - 1})
        assert one.engine.table_get("campaigns", "c1") == {"ends": T0 - 1}, "before any event"
        assert one.engine.score(claim("e2", campaign_id="c1")).action == "review"
        two.engine.list_put("blocked", "user", "u1")
        assert one.engine.score(claim("e3", campaign_id="c1")).action == "deny"
        assert one.engine.list_delete("blocked", "user", "u1")
        two.engine.table_delete("campaigns", "c1")
        assert two.engine.score(claim("e4", campaign_id="c1")).action == "allow"
        for n in range(1100):  # more than the log of edits holds
            two.engine.list_put("blocked", "user", f"v{n}")
        assert one.engine.score(claim("e5", user_id="v0")).action == "deny"


def test_an_event_loop_goes_on_meanwhile(server: str, tmp_path: Path) -> None:
    features = {"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}}
    store = apart(server)
    begin(store, "stage")

    async def all_at_once(stage: Stage) -> list[Any]:
        return await asyncio.gather(*(stage.engine.ascore(claim(f"e{n}"), features=True) for n in range(20)))

    with Stage(tmp_path, policy(features=features), store=store) as stage:
        counts = sorted(decision.features["claims"] for decision in asyncio.run(all_at_once(stage)))
    assert counts == list(range(1, 21))


def test_a_store_is_begun_and_looked_into(server: str, tmp_path: Path) -> None:
    store = apart(server)
    folder = write(
        tmp_path, policy(features={"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}})
    )
    runner = CliRunner()
    begun = runner.invoke(app, ["store", "init", "--store", store, "--rules", str(folder)])
    assert (begun.exit_code, "is ready" in begun.output) == (0, True)
    again = runner.invoke(app, ["store", "init", "--store", store, "--rules", str(folder)])
    assert again.output == begun.output, "what has begun stays as it is"
    with Engine.open(folder, store=store, key=KEY, clock=lambda: T0) as engine:
        engine.score_many([claim(f"e{n}", user_id=f"u{n}") for n in range(10)])
        engine.label("e1", "fraud")
    told = runner.invoke(app, ["store", "info", "--store", store, "--rules", str(folder), "--json"])
    kinds = json.loads(told.output)["kinds"]
    assert (kinds.pop("copies", (0, 0))[0] > 0) == ("cluster" in server)
    decisions, traces = (10, 0) if "cluster" in server else (1, 1)  # a batch has its own together
    assert {kind: keys for kind, (keys, _) in kinds.items()} == {
        "entities": 10, "claims": 10, "decisions": decisions, "traces": traces, "labels": 1, "settled": 0,
        "owed": 0, "plans": 1, "other": 1,
    }  # fmt: skip
    assert all(size > 0 for keys, size in kinds.values() if keys)
    assert "10 keys" in runner.invoke(app, ["store", "info", "--store", store, "--rules", str(folder)]).output


def test_an_engine_of_another_hash_key_is_not_let_in(server: str, tmp_path: Path) -> None:
    """It would find nobody there, and let each have once more what is limited."""
    store = apart(server)
    begin(store, "stage")
    with Stage(tmp_path, policy(), store=store), pytest.raises(RiskEngineError, match="another hash key"):
        Engine.open(tmp_path, store=store, key=b"another key")
    with Stage(tmp_path, policy(), store=store) as stage:
        assert stage.engine.epoch is not None


def keys_of(shared: RedisStore, kind: bytes) -> list[tuple[Call, bytes]]:
    """The keys of a kind, each with the way to the server that has it."""
    found = [(call, name) for call in shared._link.each() for name in call("KEYS", shared.place.data + b"*")]
    at = len(shared.place.within(0))
    return [(call, name) for call, name in found if isinstance(name, bytes) and name[at:].startswith(kind)]


def test_a_batch_keeps_what_it_decided_in_two_keys(server: str, tmp_path: Path) -> None:
    """Whatever is asked of one of its events later: a retry, a release, a label; also when forgotten."""
    features = {
        "claims": {"count": "coupon_claim", "by": "user", "over": "1h"},
        "frauds": {"count": "fraud", "on": "coupon_claim", "by": "user", "over": "1h"},
    }
    limits = {"two": {"count": "coupon_claim", "by": "device", "per": "day", "max": 2, "then": "deny"}}
    store = apart(server)
    begin(store, "stage")
    batch = [claim(f"e{n}", n, device_id="d1", user_id="u1") for n in range(4)]
    with Stage(tmp_path / "one", policy(features=features, limits=limits), store=store) as stage:

        def scored() -> list[Decision]:
            return [found for found in stage.engine.score_many(batch) if isinstance(found, Decision)]

        decided = scored()
        assert [decision.action for decision in decided] == ["allow", "allow", "deny", "deny"]
        shared = store_of(stage.engine)
        together = len(shared.place.tags) == 1
        assert [sum(1 for _ in keys_of(shared, letter)) for letter in (b"t", b"k", b"d")] == (
            [1, 1, 0] if together else [0, 0, 4]
        )
        assert scored() == decided, "each finds its own"
        assert stage.engine.score(batch[3]) == decided[3]
        for call, name in [*keys_of(shared, b"k"), *keys_of(shared, b"d")]:
            call("DEL", name)
        again = scored()
        assert {decision.action for decision in again} == {"deny"}, "nobody knows any more who was granted"
        assert {decision.flags for decision in again} == {("redecided",)}
        assert scored() == again
        assert stage.engine.release("e0")
        assert not stage.engine.release("e0")
        assert not stage.engine.release("e2"), "it was denied, and holds nothing"
        stage.engine.label("e1", "fraud", time=T0 + 4000)
        row = stage.row(claim("e9", 5, device_id="d1", user_id="u1"))
        assert row == {"claims": 5, "frauds": 1}
        assert stage.engine.score(claim("e10", 6, device_id="d1")).action == "deny", "one was free again"
