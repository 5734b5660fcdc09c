"""What servers lose of what they had answered for is counted, and the decisions of every engine say so.

The faults are real: a server that starts again from an older snapshot, a replica in the place of its master
that had not got the last events (test_failover.py has that of a cluster). How many are gone is known by other
means: each event has a user of its own, whose counter stands at nothing where it is gone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from clusters import client, has_all, hold_back
from servers import apart, running
from stage import HOUR, KEY, T0, Stage, claim, policy, standing_still, store_of
from test_stores_faults import proxied

from riskengine.decision import Decision
from riskengine.rebuild import Rebuilt, from_journals
from riskengine.stores import losses
from riskengine.stores.address import begin, survey

SECTIONS = policy(
    features={"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}},
    limits={"one": {"count": "coupon_claim", "by": "device", "over": "2h", "max": 1, "then": "deny"}},
)
BATCHES = (1, 3, 1, 1, 40, 2, 1)  # events of a call


def asked(stage: Stage, name: str, sizes: Sequence[int]) -> list[str]:
    """Have batches decided, of which each event has a user of its own; who these are."""
    users = []
    for b, size in enumerate(sizes):
        names = [f"{name}{b}.{n}" for n in range(size)]
        events = [claim(one, user_id=one, device_id=one) for one in names]
        for decision in stage.engine.score_many(events):
            assert isinstance(decision, Decision), decision
            assert decision.flags == ()
        users += names
    return users


def gone(stage: Stage, users: Sequence[str]) -> int:
    """How many of these have not been counted."""
    return sum(stage.engine.look("user", user).features["claims"] == 0 for user in users)


def flags(stage: Stage, event_id: str) -> tuple[str, ...]:
    return stage.engine.score(claim(event_id, stage.now - T0, user_id=event_id)).flags


def heard(stage: Stage, name: str) -> None:
    """The store is reached again, however long a busy machine takes."""
    for n in count():
        if flags(stage, f"{name}-{n}") != ("degraded:store",):
            return
        assert n < 600, "it never came"
        time.sleep(0.05)


@contextmanager
def two(folder: Path, store: str) -> Iterator[tuple[Stage, Stage]]:
    begin(store, "stage")
    with (
        Stage(folder / "one", SECTIONS, store=store, journal=f"sqlite:///{folder / 'one.db'}") as one,
        Stage(folder / "two", SECTIONS, store=store, journal=f"sqlite:///{folder / 'two.db'}") as two,
    ):
        yield one, two


def test_a_server_that_starts_again_from_a_snapshot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has its epoch, and lacks what came since, until it is rebuilt or no window would have it."""
    monkeypatch.setenv("RISKENGINE_HASH_KEY", KEY.decode())
    with running() as server:
        store = apart(server.url)
        with two(tmp_path, store) as (one, other):
            kept = asked(one, "a", BATCHES) + asked(other, "b", BATCHES)
            with client(server) as node:
                node.save()
            mine, theirs = asked(one, "c", BATCHES), asked(other, "d", (1, 5))
            with one.engine._turns.first():  # so that another door of this engine is taken
                mine += asked(one, "e", (2, 1))
            server.kill()
            server.start()
            assert flags(one, "after") == (f"lost:{len(mine)}",), "by the decision that finds it"
            assert flags(other, "after-too") == (f"lost:{len(mine) + len(theirs)}",)
            assert flags(one, "later") == (f"lost:{len(mine) + len(theirs)}",), "it has heard of the others'"
            assert gone(one, mine + theirs) == len(mine + theirs)
            assert gone(one, kept) == 0
            assert one.engine.info().lost_events == len(mine + theirs)
            assert survey(store, "stage").lost_events == len(mine + theirs)
            assert f"the store lost {len(mine)} events" in caplog.text
            # What comes again counts, and its limit is free: no engine says that it holds anything there.
            again = claim(mine[0], user_id=mine[0], device_id=mine[0])
            assert one.engine.score({**again, "event_id": "anew"}).action == "allow"
            one.now = T0 + 4 * HOUR  # 2 h, what a bucket takes, and how late and how early an event may be
            assert flags(one, "long after") == ()
            one.now = T0
            journals = [stage.engine.journal for stage in (one, other)]
            from_journals(
                store, one.engine.definition, [j for j in journals if j], Rebuilt(), clock=lambda: T0
            )
            assert [flags(stage, f"rebuilt{n}") for n, stage in enumerate((one, other))] == [(), ()]
            assert gone(one, kept + mine + theirs) == 0
            assert one.engine.info().lost_events == 0


def test_of_a_batch_that_is_lost_before_it_is_decided_nothing_is_given_back(tmp_path: Path) -> None:
    sections = policy(
        limits={"two": {"count": "coupon_claim", "by": "device", "over": "2h", "max": 2, "then": "deny"}},
        rules={"bad": {"on": "any", "when": "user_id == 'bad'", "then": "deny", "mode": "live"}},
    )
    with running() as server:
        store = apart(server.url)
        begin(store, "stage")
        with Stage(tmp_path, sections, store=store) as stage, ThreadPoolExecutor(1) as pool:
            assert stage.actions([claim("a", device_id="d"), claim("b")]) == ["allow"] * 2
            stage.engine.catch_up()
            with client(server) as node:
                node.save()
            entered, go_on = standing_still(store_of(stage.engine), "settle")
            batch = [claim(f"bad{n}", 1, user_id="bad", device_id="d") for n in range(2)]
            answers = pool.submit(stage.actions, batch)
            assert entered.wait(60)
            server.kill()
            server.start()
            go_on.set()
            assert answers.result(60) == ["deny"] * 2
            heard(stage, "again")
            assert stage.actions([claim(f"c{n}", 2, device_id="d") for n in range(2)]) == ["allow", "deny"]


def test_nothing_is_said_where_nothing_is_lost(tmp_path: Path) -> None:
    """Of what was decided while the server was away nothing is lost either: it counts when it is back."""
    with running(appendonly="yes", appendfsync="always") as server, two(tmp_path, apart(server.url)) as both:
        users = [user for n, stage in enumerate(both) for user in asked(stage, f"a{n}", BATCHES)]
        for stage in both:
            store_of(stage.engine)._link.hurry(300, 1000)
        server.kill()
        for n, stage in enumerate(both):
            assert flags(stage, f"away{n}") == ("degraded:store",)
        server.start()
        for n, stage in enumerate(both):
            heard(stage, f"back{n}")
            assert stage.engine.info().lost_events == 0
            assert gone(stage, [*users, f"away{n}"]) == 0


def test_a_replica_that_had_not_got_it_all_takes_the_place_of_its_master(tmp_path: Path) -> None:
    """At the same address: promoted by hand, or by what stands in front of it."""
    with (
        running(**{"repl-diskless-sync-delay": "0"}) as master,
        running(**{"repl-diskless-sync-delay": "0"}) as replica,
        proxied(master.url, 0) as (proxy, through),
        client(replica) as promoted,
        two(tmp_path, apart(through)) as (one, other),
    ):
        promoted.replicaof("127.0.0.1", master.port)
        asked(one, "a", BATCHES)
        asked(other, "b", (1,))
        has_all(master, replica)
        hold_back(master, replica)
        mine = asked(one, "c", BATCHES)
        master.kill()
        promoted.replicaof("no", "one")
        proxy._port = replica.port
        heard(one, "after")
        assert flags(one, "later") == (f"lost:{len(mine)}",)
        heard(other, "after-too")
        assert flags(other, "later-too") == (f"lost:{len(mine)}",)
        assert gone(other, mine) == len(mine)


def test_more_may_be_lost_than_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "EVENTS_MAX", 10)
    monkeypatch.setattr(losses, "NAMES_MAX", 4)  # so that several batches go on looking
    with running() as server:
        store = apart(server.url)
        begin(store, "stage")
        with Stage(tmp_path, SECTIONS, store=store) as stage, client(server) as node:
            node.save()
            asked(stage, "a", (1,) * 14)
            server.kill()
            server.start()
            said = [flags(stage, f"after{n}") for n in range(6)]
    assert said[0] == ("lost:0+",), "it is being counted"
    assert said[-1] == ("lost:10+",)
    assert set(said) == {said[0], said[-1]}
