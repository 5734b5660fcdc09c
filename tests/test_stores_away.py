"""What is decided while the shared store cannot answer, and that nothing is lost or doubled when it can."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from clusters import cluster
from servers import Server, apart, running, until, valkey
from stage import T0, Stage, caught_up, claim, payment, policy, store_of

from riskengine import cli
from riskengine.decision import Decision
from riskengine.engine import Engine
from riskengine.entries import EditEntry, Entry, ReleaseEntry
from riskengine.errors import EventError, RiskEngineError
from riskengine.features import Touches
from riskengine.hashing import signed
from riskengine.journal import Journal
from riskengine.layout import RECORD_TIME
from riskengine.stores import StoreError
from riskengine.stores.address import Address, begin
from riskengine.stores.cluster import ClusterLink
from riskengine.stores.grants import Grants
from riskengine.stores.line import ALONE_S, PATIENCE, Line
from riskengine.stores.link import Link
from riskengine.stores.place import kind_of
from riskengine.stores.redis import CLOSE_S
from riskengine.stores.resp import command
from riskengine.stores.values import HEAD

COUNTS = {"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}}
SOON_S = 10  # a store that is back is asked again
ONE = {"one": {"count": "coupon_claim", "by": "device", "per": "day", "max": 1, "then": "deny"}}


def serving(kind: str, stack: ExitStack, **settings: Any) -> tuple[list[Server], str]:
    """A server or the masters of a cluster, and their URL."""
    if kind == "server":
        one = stack.enter_context(running(**settings))
        return [one], one.url
    made = stack.enter_context(cluster(replicas=False, **settings))
    return [*made.servers], made.url


def failing(fail: str) -> dict[str, Any]:
    """A policy whose claims fail as said, and whose payments are reviewed."""
    events = {
        "coupon_claim": {"required": ["user_id"], "fail": fail},
        "payment": {"required": ["user_id", "amount"]},
    }
    return policy(events=events, features=COUNTS, limits=ONE)


@pytest.mark.parametrize(
    ("fail", "action", "after"),
    [("open", "allow", "deny"), ("review", "deny", "allow"), ("closed", "deny", "allow")],
)
def test_a_store_that_stands_still(fail: str, action: str, after: str, tmp_path: Path) -> None:
    """It holds nobody up past the deadline; what was decided meanwhile counts once it goes on."""
    with running() as server:
        store = apart(server.url, timeout=400)
        begin(store, "stage")
        with Stage(tmp_path, failing(fail), store=store) as stage:
            stage.engine.score(claim("e0"))
            server.hold(True)
            begun = time.monotonic()
            # What went out before the silence was noticed is served later: it keeps what it reserved.
            assert stage.engine.score(payment("p0")).flags == ("degraded:store",)
            decision = stage.engine.score(claim("e1", device_id="d1"), features=True)
            assert time.monotonic() - begun < 10, "three deadlines, and some load on this machine"
            assert (decision.action, decision.flags) == (action, ("degraded:store",))
            assert decision.features == {"claims": None}
            assert stage.engine.score(payment("p1")).action == "review"
            for n in range(2, 7):
                stage.engine.score(claim(f"e{n}"))
            assert stage.engine.score(claim("e1", device_id="d1")) == decision, "a retry, by heart"
            server.hold(False)
            until(lambda: stage.engine.score(payment(f"p{time.monotonic()}")).flags == (), SOON_S)
            assert stage.row(claim("e8", 1))["claims"] == 8
            assert stage.engine.score(claim("e1", device_id="d1")).action == action
            assert stage.engine.score(claim("e9", 2, device_id="d1")).action == after


@pytest.mark.parametrize("doors", [1, 2])
def test_a_retry_meanwhile_is_told_what_the_journal_has(doors: int, tmp_path: Path) -> None:
    """What was denied is not let through because the store has gone away since."""
    with running() as server:
        store = apart(server.url, timeout=50)
        begin(store, "stage")
        url, journal = f"{store}&at_once={doors}", f"sqlite:///{tmp_path / 'journal.db'}"
        with Stage(tmp_path, failing("open"), store=url, journal=journal) as stage:
            engine = stage.engine
            events = [claim(f"e{n}", device_id="d1") for n in range(4)]
            said = engine.score_many(events)
            assert [d.action for d in said if isinstance(d, Decision)] == ["allow", "deny", "deny", "deny"]
            server.hold(True)
            new, other = claim("new", device_id="d2"), claim("e2", device_id="d9")
            assert engine.score(events[1]) == said[1]
            *again, last, alone = engine.score_many([*events, events[1], other, new])
            assert again == [*said, said[1]]
            assert isinstance(last, EventError)
            assert isinstance(alone, Decision)
            assert (alone.action, alone.flags) == ("allow", ("degraded:store",))
            with pytest.raises(EventError):
                engine.score(other)
            assert engine.score(new) == alone
            server.hold(False)
            until(lambda: engine.score(payment(f"p{time.monotonic()}")).flags == (), SOON_S)
            assert engine.score_many([*events, new]) == [*said, alone]
            assert stage.row(claim("last"))["claims"] == 6
            assert engine._journal is not None
            engine._journal.settle()
        with Journal.open(journal, create=False) as kept:
            ids = Counter(entry.event_id for entry in kept.replay() if isinstance(entry, Entry))
        assert {n for event_id, n in ids.items() if event_id[0] in "en"} == {1}


def test_what_follows_another_meanwhile_goes_by_itself(tmp_path: Path) -> None:
    """Of what it follows nothing can be known: it counts, holds what its decision says, and is kept."""
    with running() as server:
        store = apart(server.url, timeout=400)
        begin(store, "stage")
        with Stage(tmp_path, failing("open"), store=store) as stage:
            stage.engine.score(claim("e0", device_id="d0"))
            server.hold(True)
            follow = claim("f0", 1, device_id="d0", follows="e0")
            decision = stage.engine.score(follow)
            assert (decision.action, decision.flags) == ("allow", ("degraded:store", "follows:unknown"))
            server.hold(False)
            until(lambda: stage.engine.score(payment(f"p{time.monotonic()}")).flags == (), SOON_S)
            assert stage.row(claim("e1", 2))["claims"] == 3
        with Stage(tmp_path / "other", failing("open"), store=store) as stage:
            assert stage.engine.score(follow) == decision


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize(
    ("fail", "action", "after"), [("open", "allow", "deny"), ("closed", "deny", "allow")]
)
@pytest.mark.parametrize("call", [2, 3])  # that takes over what is held, and that asks of the event itself
def test_what_follows_a_known_event_takes_its_place_later(
    call: int,
    fail: str,
    action: str,
    after: str,
    is_lost: bool,
    tmp_path: Path,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store went away when the event that is followed had been found: it is settled all the same."""
    store = apart(server)
    begin(store, "stage")
    with Stage(tmp_path, failing(fail), store=store) as stage:
        assert stage.engine.score(claim("e0", device_id="d0")).action == "allow"
        link, calls = store_of(stage.engine)._link, count(1)
        ask_all, ask = link.ask_all, link.ask

        def asked(ask: Any, *words: Any) -> Any:
            if next(calls) != call:
                return ask(*words)
            if is_lost:
                ask(*words)
                link.unsure = True
            raise StoreError("away", "on the way there, or back")

        def asked_one(request: Any, at: int = 0, *replies: int) -> Any:  # several, where it is a transaction
            return asked(ask, request, at, *replies) if replies else ask(request, at)

        monkeypatch.setattr(link, "ask_all", partial(asked, ask_all))
        monkeypatch.setattr(link, "ask", asked_one)
        decision = stage.engine.score(claim("f0", 1, device_id="d0", follows="e0"))
        assert (decision.action, decision.flags) == (action, ("degraded:store",))
        assert stage.engine.score(claim("f0", 1, device_id="d0", follows="e0")) == decision
        assert stage.row(claim("e1", 2, device_id="d1"))["claims"] == 2, "of a follow-up nothing is counted"
        assert stage.engine.score(claim("e2", 3, device_id="d0")).action == after
        assert not stage.engine.release("e0"), "it has been taken over"
        assert stage.engine.release("f0") == (action == "allow")


@pytest.mark.parametrize("journaled", [False, True])
def test_what_is_said_of_an_event_that_was_missed_counts(journaled: bool, tmp_path: Path) -> None:
    """A label and a release come before any other event: the store is told first what they are of."""
    sections = failing("open")
    frauds = {"frauds": {"count": "fraud", "on": "coupon_claim", "by": "user", "over": "1h"}}
    sections["features"] = COUNTS | frauds
    with running() as server:
        store = apart(server.url, timeout=400)
        begin(store, "stage")
        options = {"journal": f"sqlite:///{tmp_path}/journal.db"} if journaled else {}
        with Stage(tmp_path / "policy", sections, store=store, **options) as stage:
            assert stage.engine.score(payment("p0")).flags == ()
            server.hold(True)
            assert stage.engine.score(claim("e0", device_id="d0")).action == "allow"
            with pytest.raises(StoreError):
                stage.engine.label("e0", "fraud")
            server.hold(False)
            time.sleep(0.1)  # what it was asked has come by now, and is not being decided any more
            assert stage.engine.label("e0", "fraud")
            assert stage.engine.release("e0")
            assert stage.row(claim("e1", 1, device_id="d0"))["frauds"] == 1
            assert stage.engine.score(claim("e2", 2, device_id="d0")).action == "deny", "e1 was granted it"


def test_a_release_whose_answer_was_lost_is_journaled_when_it_is_asked_again(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whichever engine: a rebuild, and whoever asks when it was released, go by the journal."""
    store, journals = apart(server), [f"sqlite:///{tmp_path}/{name}.db" for name in ("one", "two")]
    begin(store, "stage")
    with (
        Stage(tmp_path / "one", failing("closed"), store=store, journal=journals[0]) as one,
        Stage(tmp_path / "two", failing("closed"), store=store, journal=journals[1]) as two,
    ):
        assert one.engine.score(claim("e0", device_id="d0")).action == "allow"
        link = store_of(one.engine)._link
        ask_all = link.ask_all

        def ask(*words: Any) -> Any:
            ask_all(*words)
            raise StoreError("away", "on the way back")

        with monkeypatch.context() as patch:
            patch.setattr(link, "ask_all", ask)
            with pytest.raises(StoreError):
                one.engine.release("e0")
        assert two.engine.score(claim("e1", 1, device_id="d0")).action == "allow", "it was released"
        for stage in (one, two):
            assert stage.engine.journal is not None
            assert stage.engine.journal.released("e0") is None
            for _ in range(2):
                assert not stage.engine.release("e0"), "there is nothing left to release"
            stage.engine.journal.flush()
            found = [e for e in stage.engine.journal.replay() if isinstance(e, ReleaseEntry)]
            assert [entry.event_id for entry in found] == ["e0"]


def test_a_removal_whose_answer_was_lost_is_journaled_when_it_is_asked_again(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a rebuild would enter again what was taken off a list, or out of a table."""
    store, journal = apart(server), f"sqlite:///{tmp_path / 'journal.db'}"
    begin(store, "stage")
    sections = policy(
        lists={"blocked": {"of": ["user"]}},
        tables={"shops": {"key": "campaign", "columns": {"open": "bool"}}},
    )
    with Stage(tmp_path, sections, store=store, journal=journal) as stage:
        engine = stage.engine
        engine.list_put("blocked", "user", "u1")
        engine.table_put("shops", "c1", {"open": True})
        link = store_of(engine)._link
        call, key = link.call, signed(engine._list_key("blocked", "user", "u1"))

        def lost(*words: Any, **at: Any) -> Any:
            call(*words, **at)
            raise StoreError("away", "on the way back")

        with monkeypatch.context() as patch:
            patch.setattr(link, "call", lost)
            with pytest.raises(StoreError):
                store_of(engine).list_delete("blocked", "user", key)
            with pytest.raises(StoreError):
                engine.table_delete("shops", "c1")
        assert not engine.list_delete("blocked", "user", "u1"), "it is not there any more"
        assert not engine.table_delete("shops", "c1")
        assert engine.journal is not None
        engine.journal.flush()
        edits = [entry for entry in engine.journal.replay() if isinstance(entry, EditEntry)]
        assert [(edit.kind, edit.op) for edit in edits] == [
            ("list", "put"), ("table", "put"), ("list", "delete"), ("table", "delete"),
        ]  # fmt: skip


def test_what_two_engines_decided_without_the_store_holds_nothing(tmp_path: Path) -> None:
    """One had asked, and what that had reserved was nobody's where the other told first what it decided."""
    with running() as server:
        store = apart(server.url, timeout=400)
        begin(store, "stage")
        with (
            Stage(tmp_path / "one", failing("closed"), store=store) as one,
            Stage(tmp_path / "two", failing("closed"), store=store) as two,
        ):
            for stage in (one, two):
                assert stage.engine.score(payment(f"p{time.monotonic()}")).flags == ()
            server.hold(True)
            assert one.engine.score(claim("e0", device_id="d0")).action == "deny"
            for n in range(PATIENCE):
                two.engine.score(payment(f"q{n}"))
            assert two.engine.score(claim("e0", device_id="d0")).action == "deny", "nobody is asked any more"
            server.hold(False)
            until(lambda: caught_up(two.engine), SOON_S)
            until(lambda: caught_up(one.engine), SOON_S)
            assert one.engine.score(claim("e1", 1, device_id="d0")).action == "allow"
            assert one.row(claim("e2", 2, device_id="d2"))["claims"] == 3


@pytest.mark.parametrize("kind", ["server", "cluster"])
def test_what_was_missed_is_counted_before_an_engine_ends(kind: str, tmp_path: Path) -> None:
    """No event comes any more: it is told when the engine is asked to, and when it closes."""
    with ExitStack() as stack:
        servers, url = serving(kind, stack, appendonly="yes", appendfsync="always")
        store = apart(url, timeout=2_000)
        begin(store, "stage")
        other = stack.enter_context(Stage(tmp_path / "other", failing("open"), store=store))

        def kill() -> None:
            for server in servers:
                server.kill()

        def restart() -> None:
            for server in servers:
                server.start()
            until(lambda: other.engine.score(payment(f"p{time.monotonic()}")).flags == (), SOON_S)

        with Stage(tmp_path / "one", failing("open"), store=store) as stage:
            assert stage.engine.score(claim("e0", device_id="d0")).flags == ()
            assert not stage.engine.is_behind
            kill()
            alone = stage.engine.score_many([claim(f"a{n}", device_id=f"a{n}") for n in range(5)])
            assert {d.flags for d in alone if isinstance(d, Decision)} == {("degraded:store",)}
            stage.engine.catch_up()
            assert stage.engine.is_behind
            restart()
            until(lambda: caught_up(stage.engine), SOON_S)
            assert other.row(claim("e1", 1))["claims"] == 7
            kill()
            assert stage.engine.score(claim("b0", device_id="b0")).flags == ("degraded:store",)
            restart()
        stage.engine.catch_up()  # it is closed
        assert other.row(claim("e2", 2))["claims"] == 9
        assert other.engine.score(claim("e3", 3, device_id="b0")).action == "deny", "it holds what it got"


def test_who_ends_while_the_store_is_away_says_what_is_not_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running() as server:
        store = apart(server.url, timeout=30_000)
        begin(store, "stage")
        with Stage(tmp_path, failing("open"), store=store) as stage:
            stage.engine.score(claim("e0"))
            server.kill()
            stage.engine.score_many([claim("a0"), claim("a1")])
            server.start()
            server.hold(True)
            began = time.monotonic()
        assert time.monotonic() - began < 20, "no longer than CLOSE_S or so, whatever an event may wait"
        (told,) = [record.getMessage() for record in caplog.records]
        assert told.startswith("2 events were decided while the store did not answer, and are not counted")
        assert "riskengine rebuild" in told
        server.hold(False)


def test_who_goes_on_with_what_another_had_entered_settles_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine dies over an event; the store goes away as the next one is about to decide it."""
    with running() as server:
        store = apart(server.url, timeout=400)
        begin(store, "stage")
        with (
            Stage(tmp_path / "one", failing("closed"), store=store) as one,
            Stage(tmp_path / "two", failing("closed"), store=store) as two,
        ):
            event = claim("e0", device_id="d0")
            monkeypatch.setattr(store_of(one.engine), "conclude", lambda *_: {})  # as if killed then
            assert one.engine.score(event).action == "allow"
            stand_in = Grants.stand_in

            def away(grants: Grants, touches: Touches) -> None:
                server.hold(True)
                for _ in range(PATIENCE):  # from then on it is not even asked
                    with suppress(StoreError):
                        grants.link.call("PING")
                stand_in(grants, touches)

            with monkeypatch.context() as patch:
                patch.setattr(Grants, "stand_in", away)
                decided = two.engine.score(event)
            server.hold(False)
            assert (decided.action, decided.flags) == ("deny", ("degraded:store",))
            until(lambda: caught_up(two.engine))
            assert two.engine.score(event) == decided
            assert store_of(two.engine).undecided(0) == []
            assert two.actions([claim("e1", 1, device_id="d0")]) == ["allow"], "what is denied holds nothing"


def deciding(folder: Path, store: str, journal: str, asked: Connection) -> None:
    """An engine in a process of its own."""
    with Stage(folder, failing("open"), store=store, journal=journal) as stage:
        while True:
            asked.send(stage.engine.score_many(asked.recv()))


@pytest.mark.parametrize("kind", ["server", "cluster"])
def test_what_an_engine_that_was_killed_had_missed_is_counted_by_the_next(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was killed before the store was back. What its journal has is the answer to a retry, too."""
    journal = f"sqlite:///{tmp_path / 'journal.db'}?commit=sync"
    missed = [claim(f"a{n}", n, device_id=f"d{n}") for n in range(12)]
    with ExitStack() as stack:
        servers, url = serving(kind, stack)
        store = apart(url, timeout=30_000)
        begin(store, "stage")
        ours, asked = Pipe()
        words = tmp_path / "one", store.replace("timeout=30000", "timeout=100"), journal, asked
        process = get_context("spawn").Process(target=deciding, args=words, daemon=True)
        process.start()
        first, flags = 0, ("degraded:store",)
        while flags:  # on a busy machine it may be late
            ours.send([claim(f"e{first}", device_id="e")])
            flags, first = ours.recv()[0].flags, first + 1
        for one in servers:
            one.hold(True)
        decided = []
        for event in missed:  # the first may come to the servers in the end, the last are not sent any more
            ours.send([event])
            decided += ours.recv()
        assert {(decision.action, decision.flags) for decision in decided} == {("allow", ("degraded:store",))}
        process.kill()
        process.join()
        for one in servers:
            one.hold(False)
        with Stage(tmp_path / "two", failing("open"), store=store, journal=journal) as stage:
            assert stage.engine.score_many(missed) == decided
            assert stage.row(claim("later", 20))["claims"] == first + 13
            denied = stage.actions([claim(f"d{n}", 20, device_id=f"d{n}") for n in range(12)])
            assert denied == ["deny"] * 12, "each is held"
        (told,) = [record.getMessage() for record in caplog.records if "counted" in record.getMessage()]
        assert "events that had been decided while the store did not answer are counted" in told
        caplog.clear()
        with Stage(tmp_path / "three", failing("open"), store=store, journal=journal) as stage:
            assert stage.row(claim("last", 21))["claims"] == first + 13 + 13
        assert not [record for record in caplog.records if "counted" in record.getMessage()], "once"
        elsewhere = apart(url, timeout=30_000)
        begin(elsewhere, "stage")
        other = {"store": elsewhere, "journal": journal, "key": b"another key, as long"}
        with Stage(tmp_path / "four", failing("open"), **other) as stage:
            assert stage.engine.score(claim("other", 22)).flags == ()
        (told,) = [record.getMessage() for record in caplog.records if "counted" in record.getMessage()]
        assert "may not be counted in it (the journal was written with another hash key" in told


@pytest.mark.parametrize("kind", ["server", "cluster"])
def test_what_the_store_had_not_heard_is_concluded_by_the_journal_as_the_next_engine_begins(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine was killed, and what it had told of a batch was lost with it; nobody sends that again."""
    journal = f"sqlite:///{tmp_path / 'journal.db'}?commit=sync"
    batch = [claim(f"a{n}", n, device_id=f"d{n // 2}") for n in range(6)]
    with ExitStack() as stack:
        _, url = serving(kind, stack)
        store = apart(url, timeout=30_000)
        begin(store, "stage")
        with Stage(tmp_path / "one", failing("open"), store=store, journal=journal) as stage:
            kept = stage.engine.score_many([claim("kept", device_id="k")])
            assert caught_up(stage.engine)
            with monkeypatch.context() as patch:
                patch.setattr(store_of(stage.engine), "conclude", lambda *_: {})  # as if killed then
                told = stage.actions(batch)
            assert told == ["allow", "deny"] * 3
            assert len(store_of(stage.engine).undecided(0)) == 6
        with Stage(tmp_path / "two", failing("open"), store=store, journal=journal) as stage:
            assert store_of(stage.engine).undecided(0) == []
            with monkeypatch.context() as patch:  # the store itself has them now
                patch.setattr(stage.engine._journal, "decisions", lambda ids: {})
                patch.setattr(stage.engine._journal, "decision", lambda id: None)
                assert stage.actions(batch) == told
                assert stage.engine.score_many([claim("kept", device_id="k")]) == kept
            assert stage.row(claim("later", 20))["claims"] == 8, "each is counted once"
            left = stage.actions([claim(f"b{n}", 20, device_id=f"d{n}") for n in range(3)])
            assert left == ["deny"] * 3, "each holds the place of one, and of no more"
            assert stage.engine.release("a0")
            assert stage.actions([claim("c0", 20, device_id="d0")]) == ["allow"]
        concluded = "6 events that the store had not heard the decision of are concluded in it now"
        assert [concluded in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("comes_back", [True, False])
def test_who_ends_waits_for_the_store_to_hear_what_was_decided_last(
    comes_back: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(appendonly="yes", appendfsync="always") as server:
        store = apart(server.url, timeout=500)
        begin(store, "stage")
        with Stage(tmp_path / "one", failing("open"), store=store) as stage:
            link = store_of(stage.engine)._link
            stage.engine.score(claim("e0", device_id="d0"))
            assert caught_up(stage.engine)
            server.kill()
            name = store_of(stage.engine).place.within(0) + b"said"
            link.tell(command(("SET", name, "heard")))  # which nobody waits for
            soon = threading.Timer(0.5 if comes_back else 2 * CLOSE_S, server.start)
            soon.start()
        told = [record.getMessage()[:63] for record in caplog.records]
        assert (
            told == [] if comes_back else ["the store may not have heard all that was decided last (the sto"]
        )
        soon.join()
        if not comes_back:
            return
        with redis.Redis.from_url(server.url) as client:
            assert client.get(name) == b"heard"


def test_a_store_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    """With its file written at once, kill -9 loses nothing that was answered."""
    with running(appendonly="yes", appendfsync="always") as server:
        store = apart(server.url, timeout=500)
        begin(store, "stage")
        with Stage(tmp_path, failing("review"), store=store) as stage:
            for n in range(10):
                stage.engine.score(claim(f"e{n}"))
            server.kill()
            assert stage.engine.score(claim("away")).flags == ("degraded:store",)
            server.start()
            until(lambda: stage.engine.score(payment(f"p{time.monotonic()}")).flags == (), SOON_S)
            assert stage.row(claim("e10", 1))["claims"] == 12


def test_a_store_that_lost_its_data_is_noticed(tmp_path: Path) -> None:
    with valkey() as url:
        store = apart(url)
        begin(store, "stage")
        with Stage(tmp_path, failing("closed"), store=store) as stage:
            stage.engine.score(claim("e0"))
            with redis.Redis.from_url(url) as client:
                client.flushall()
            decision = stage.engine.score(claim("e1"))
            assert (decision.action, decision.flags) == ("deny", ("degraded:epoch",))
            begin(store, "stage")
            stage.engine.score(claim("e2"))
            assert stage.row(claim("e3"))["claims"] == 2, "it begins anew, as someone decided: with e2"


def test_a_server_that_forgot_our_scripts_is_told_them_again(tmp_path: Path) -> None:
    with valkey() as url:
        store = apart(url)
        begin(store, "stage")
        with Stage(tmp_path, failing("review"), store=store) as stage, redis.Redis.from_url(url) as client:
            assert stage.engine.score(claim("e0")).flags == ()
            client.script_flush()
            assert stage.row(claim("e1"))["claims"] == 2
            assert stage.engine.score(claim("e2")).flags == ()


def test_a_password_is_asked_for(tmp_path: Path) -> None:
    with running() as server, redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "secret")
        try:
            with pytest.raises(StoreError, match="password"):
                begin(apart(server.url), "stage")
            with pytest.raises(StoreError, match="password"):
                begin(apart(server.url.replace("//", "//:wrong@")), "stage")
            store = apart(server.url.replace("//", "//:secret@"))
            begin(store, "stage")
            with Stage(tmp_path, failing("review"), store=store) as stage:
                assert stage.engine.score(claim("e0")).flags == ()
        finally:
            client.config_set("requirepass", "")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://h:x/0", "cannot be read"),
        ("redis+sentinel://h", "no store is known by redis\\+sentinel"),
        ("redis://h:1,i:2/0", "several hosts are those of redis\\+cluster"),
        ("redis+cluster://h:1/3", "no databases but 0"),
        ("redis://h?prefix=a:b", "prefix="),
        ("redis://h?timeout=fast", "timeout="),
        ("memory://", "a store in memory ends with its process.*name a shared store"),
        ("redis://h/x", "the database 'x': it is a number"),
        ("rediss://h/1/2", "the database '1/2': it is a number"),
        ("redis+cluster://h/x", "no databases but 0"),
        ("redis://h?db=x", "Invalid value for 'db'"),
        ("redis+cluster://h?socket_timeout=x", "Invalid value for 'socket_timeout'"),
        (
            "redis://h?timout=20",
            r"option 'timout' \(did you mean timeout\?\): ours are prefix, timeout, conn",
        ),
        ("rediss://h?ssl_ca_cert=x", r"option 'ssl_ca_cert' \(did you mean ssl_ca_certs\?\).*ssl_keyfile"),
        ("unix:///s?socket_keepalive=1", "option 'socket_keepalive'"),
        ("redis+cluster://h:1,i:2?retry=1", "option 'retry'.*socket_keepalive"),
        ("rediss+cluster://h?parser_class=x", "option 'parser_class'.*ssl_ca_certs"),
        ("redis://h?ssl_ca_certs=x", "ssl_ca_certs= is for TLS: open it with rediss://"),
    ],
)
def test_an_address_that_is_none_is_explained(url: str, message: str) -> None:
    with pytest.raises(RiskEngineError, match=message):
        Address.read(url)


@pytest.mark.parametrize("scheme", ["redis", "rediss+cluster"])
@pytest.mark.parametrize(
    "password", ["77/pw", "pw/77", "77?pw", "77?pw=1&pw", "pw?77", "77#pw", "77[pw", "pw"]
)
def test_no_piece_of_a_password_is_shown(scheme: str, password: str) -> None:
    with pytest.raises(RiskEngineError) as error:
        begin(f"{scheme}://u:{password}@127.0.0.1:1/0?connect=50", "stage")
    assert not re.search("pw|77", str(error.value))


@pytest.mark.parametrize(
    "options",
    ["", "client_name=a@b&health_check_interval=3&max_connections=2", "db=1&retry_on_timeout=1&protocol=2"],
)
def test_options_of_redis_py_go_through(options: str) -> None:
    with running() as server:
        for url in (server.url, f"unix://{server.socket}"):
            assert begin(f"{url}?{options}", "stage").epoch
        assert begin(f"{server.url}?socket_keepalive=1&{options}", "stage").epoch


def test_an_unknown_option_is_told_before_anybody_is_asked(capfd: pytest.CaptureFixture[str]) -> None:
    url = "redis://127.0.0.1:1/0?timout=20"
    with pytest.raises(RiskEngineError, match="unknown option 'timout'"):
        Engine.open(store=url, key=b"a key")
    assert cli.run(["store", "init", "--store", url]) == 2
    assert "unknown option 'timout'" in capfd.readouterr().err


def test_who_cannot_be_reached_is_named(tmp_path: Path) -> None:
    check = r"Check that the server runs there, and the URL\.$"
    nowhere = tmp_path / "no.sock"
    for url, spot in [
        ("redis://u:secret@127.0.0.1:1/0", r"the store at 127\.0\.0\.1:1 cannot"),
        (f"unix://u:secret@{nowhere}", f"the store at {re.escape(str(nowhere))} cannot"),
        ("redis+cluster://u:secret@127.0.0.1:1,127.0.0.1:2", r"at 127\.0\.0\.1:1, 127\.0\.0\.1:2 cannot"),
    ]:
        with pytest.raises(StoreError, match=f"{spot} be reached: .*{check}") as error:
            begin(url, "stage")
        assert "secret" not in str(error.value)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        with ExitStack() as stack:
            for _ in range(3):  # the next one is not let in
                one = stack.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
            line = Line(f"redis://:secret@127.0.0.1:{port}", 0.1)
            with pytest.raises(
                StoreError, match=rf"the store at 127\.0\.0\.1:{port} cannot .*Timeout.*{check}"
            ):
                line.open()


def test_servers_that_will_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = failing("review")
    with valkey(maxmemory="10mb", **{"maxmemory-policy": "allkeys-lru"}) as url:
        with pytest.raises(RiskEngineError, match="noeviction"):
            begin(apart(url), "stage")
        with pytest.raises(RiskEngineError, match="cannot be reached"):
            begin("redis://127.0.0.1:1/0", "stage")
        monkeypatch.delenv("RISKENGINE_HASH_KEY")
        with pytest.raises(RiskEngineError, match="RISKENGINE_HASH_KEY"):
            Stage(tmp_path, sections, store=apart(url), key=None)
    with valkey() as url, pytest.raises(StoreError, match="riskengine store init"):
        Engine.open(tmp_path, store=apart(url), key=b"a key")


def test_a_loss_is_noticed_by_all_who_are_at_work(tmp_path: Path) -> None:
    """Two engines decide without a pause while the data goes: no answer of theirs starts from nothing."""
    with valkey() as url, redis.Redis.from_url(url) as client:
        store = apart(url)
        begin(store, "stage")
        lost, stopped = threading.Event(), threading.Event()

        def work(name: str) -> list[Decision]:
            said: list[Decision] = []
            with Stage(tmp_path / name, failing("closed"), store=store) as stage:
                while not stopped.is_set():
                    said.append(stage.engine.score(claim(f"{name}{len(said)}"), features=True))
                    if len(said) == 100:
                        reached.release()
                    if lost.is_set() and said[-1].flags:
                        noticed.release()
                        lost.clear()
            return said

        reached, noticed = threading.Semaphore(0), threading.Semaphore(0)
        with ThreadPoolExecutor(2) as pool:
            working = [pool.submit(work, name) for name in ("one", "two")]
            try:
                for _ in working:
                    assert reached.acquire(timeout=60)
                client.flushall()
                lost.set()
                assert noticed.acquire(timeout=60)
                time.sleep(0.2)
            finally:
                stopped.set()
            both = [future.result(60) for future in working]
    for said in both:
        sound = [decision for decision in said if not decision.flags]
        counts = [decision.features["claims"] for decision in sound if isinstance(decision.features, dict)]
        assert counts == sorted(set(counts)), "each counts on"
        assert len(counts) >= 100
        after = said[len(sound) :]
        assert after, "it went on"
        assert {decision.flags for decision in after} == {("degraded:epoch",)}
        assert {decision.action for decision in after} == {"deny"}


def test_what_was_missed_is_told_in_its_order(tmp_path: Path) -> None:
    """The log of an entity has what was decided without the store as it was decided, whatever its time."""
    with running() as server:
        store = apart(server.url)
        begin(store, "stage")
        with Stage(tmp_path, failing("review"), store=store) as stage:
            stage.engine.score(claim("e0"))
            opened = store_of(stage.engine)
            opened._link.hurry(300, 1000)
            server.hold(True)
            times = [40, 10, 30, 20]
            for n, at in enumerate(times):  # the first may have been served, and comes last for that
                assert stage.engine.score(claim(f"a{n}", at)).flags == ("degraded:store",)
            server.hold(False)
            until(lambda: stage.engine.score(payment(f"p{time.monotonic()}")).flags == (), SOON_S)
            until(lambda: not opened.is_behind, SOON_S)
            assert stage.row(claim("e1", 50))["claims"] == 6
            with redis.Redis.from_url(server.url) as client:
                (name,) = client.scan_iter(match=f"*:e{kind_of('user').decode()}*")
                value = client.get(name)
        assert isinstance(value, bytes)
        found, at = [], 0
        while at < len(value):  # records, of which none is folded yet
            size = HEAD + 8 * value[at + 1]
            words = np.frombuffer(value[at + HEAD : at + size], "<i8")
            found.append(int(words[RECORD_TIME]) - T0)
            at += size
        kept = [at for at in found if at in times[1:]]
        assert kept == times[1:]


def test_what_was_missed_is_counted_by_the_policy_that_it_came_under(tmp_path: Path) -> None:
    """Another one, with other cells and records, may serve by the time that the store is back."""
    kept = {
        "claims": {"count": "coupon_claim", "by": "user", "over": "1h"},
        "was": {"previous": "location", "on": "any", "by": "user"},
    }
    dropped = {
        "before": {"previous": "region", "on": "any", "by": "user"},
        "spent": {"sum": "amount", "on": "coupon_claim", "by": "user", "over": "1h"},
    }
    with running(appendonly="yes", appendfsync="always") as server:
        store = apart(server.url)
        begin(store, "stage")
        with Stage(tmp_path, policy(features=dropped | kept), store=store) as stage:
            stage.engine.score(claim("e0"))
            store_of(stage.engine)._link.hurry(300, 1000)
            server.hold(True)
            missed = stage.engine.score(claim("e1", 1, region="CN-SH", amount=5))
            assert missed.flags == ("degraded:store",)
            server.kill()  # it has not read what it was asked, and nobody knows
            server.start()
            stage.reload(policy(features=kept))
            until(lambda: caught_up(stage.engine), SOON_S)
            assert stage.row(claim("e2", 2)) == {"claims": 3.0, "was": None}


def test_a_server_that_does_not_answer_is_left_alone_between_tries(tmp_path: Path) -> None:
    """After some tries in a row one a moment is made, and the first that is answered ends it."""
    with running() as server:
        store = apart(server.url)
        begin(store, "stage")
        with Stage(tmp_path, failing("review"), store=store) as stage:
            stage.engine.score(claim("e0"))
            opened = store_of(stage.engine)
            assert isinstance(opened._link, Link)
            line = opened._link._line
            tries: list[float] = []
            open_ = line.open

            def noted() -> socket.socket:
                if not line.is_open:
                    tries.append(time.monotonic())
                return open_()

            line.open = noted  # type: ignore[method-assign]  # in the place of the class's own
            server.kill()
            begun, asked = time.monotonic(), 0
            while time.monotonic() < begun + 4 * ALONE_S:
                asked += 1
                assert stage.engine.score(claim(f"away{asked}")).flags == ("degraded:store",)
            most = 2 * (PATIENCE + 1 + (tries[-1] - begun) / (ALONE_S / 2))  # each is made twice
            assert len(tries) <= most < 40
            assert asked > 2 * len(tries), "most were decided without a try"
            server.start()
            begin(store, "stage")
            tries.clear()
            until(lambda: stage.engine.score(payment(f"p{time.monotonic()}")).flags == (), SOON_S)
            assert len(tries) <= 2, "the first try that is answered ends it"


@pytest.mark.parametrize("kind", ["server", "cluster"])
def test_a_server_that_is_back_is_found_however_often_it_is_asked_meanwhile(
    kind: str, tmp_path: Path
) -> None:
    """To be refused while it is left alone puts the next try off no further, also where there is to tell."""
    with ExitStack() as stack:
        servers, url = serving(kind, stack)
        store = apart(url, timeout=100)
        begin(store, "stage")
        stage = stack.enter_context(Stage(tmp_path, failing("open"), store=store))
        until(lambda: stage.engine.score(payment(f"p{time.monotonic()}")).flags == (), SOON_S)
        for server in servers:
            server.hold(True)
        away = [stage.engine.score(claim(f"away{n}", n)) for n in range(10 * PATIENCE)]
        assert {decision.flags for decision in away} == {("degraded:store",)}
        assert stage.engine.is_behind
        for server in servers:
            server.hold(False)
        until(lambda: stage.engine.score(claim(f"c{time.monotonic()}", 1)).flags == (), SOON_S)
        assert stage.engine.label("away0", "fraud")


def test_what_a_denied_event_held_is_given_back_where_the_answer_to_its_decision_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decision is told again, and stands: it is that of who tells it."""
    limits = {
        "one": {"count": "coupon_claim", "by": "device", "over": "1h", "max": 1, "then": "deny"},
        "few": {"count": "coupon_claim", "by": "user", "over": "1h", "max": 3, "then": "deny"},
    }
    with ExitStack() as stack:
        _, url = serving("cluster", stack)
        store = apart(url, timeout=20_000)
        begin(store, "stage")
        stage = stack.enter_context(Stage(tmp_path, policy(limits=limits), store=store))
        assert stage.engine.score(claim("e0", user_id="u0", device_id="d0")).action == "allow"
        link, cuts = store_of(stage.engine)._link, [0]
        assert isinstance(link, ClusterLink)
        acknowledge = link._acknowledge

        def cut(node: Any, deadline: float) -> None:
            if not cuts[0] and any(told.after is not None for told in node.flight):
                cuts[0] += 1
                node.line.receive(deadline, len(node.flight))
                node.line.close()
                raise StoreError("away", "the answer was lost")
            acknowledge(node, deadline)

        monkeypatch.setattr(link, "_acknowledge", cut)
        assert stage.engine.score(claim("e1", user_id="u1", device_id="d0")).action == "deny"
        assert cuts == [1]
        until(lambda: caught_up(stage.engine))
        assert stage.engine.look("user", "u1").holds == {"few": 0}
        assert store_of(stage.engine).give_back_owed(0) == [], "nothing is left to an operator"
