"""A master of a cluster stands still or is killed while engines are at work, and its replica takes over.

What it had acknowledged and not copied yet is lost then: at most what came in the moment before. Nothing else
is, nothing counts twice, and no limit is passed by more than what was lost of it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from clusters import NODE_TIMEOUT_MS, Cluster, client, cluster, facts, has_all, hold_back, is_synced
from servers import Server, apart, until
from stage import Stage, claim, policy, store_of

from riskengine.decision import Decision
from riskengine.hashing import signed
from riskengine.layout import Int64s
from riskengine.stores import kept, losses
from riskengine.stores.address import begin
from riskengine.stores.cluster import ClusterLink
from riskengine.stores.line import Reply
from riskengine.stores.requests import together
from riskengine.stores.resp import command

USERS, BUDGET = 20, 300
SECTIONS = policy(
    events={"coupon_claim": {"required": ["user_id"], "fail": "review"}},
    features={"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}},
    limits={
        "one": {"count": "coupon_claim", "by": "device", "over": "1h", "max": 1, "then": "deny"},
        "budget": {"count": "coupon_claim", "by": "campaign", "over": "1h", "max": BUDGET, "then": "deny"},
    },
)


class Caller:
    """An engine that decides one event after another, alone or a few together, until it is told to stop."""

    def __init__(self, folder: Path, store: str, name: str) -> None:
        self.stage = Stage(folder, SECTIONS, store=store)
        opened = store_of(self.stage.engine)
        self.store = opened
        self.stage.engine.score_many([claim(f"{name}-well{n}", user_id=f"well{n}") for n in range(50)])
        opened._link.hurry(400, 1000)  # from here on: to open it takes what it takes on a busy machine
        self.answers: list[tuple[dict[str, Any], Decision, float]] = []  # and when each was there
        self.error: BaseException | None = None
        self._name = name
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._call, daemon=True)
        self._thread.start()

    def _call(self) -> None:
        try:
            while not self._stopped.wait(0.004):
                first = len(self.answers)
                events = [self._event(first + k) for k in range(1 if first % 3 else 5)]
                decisions = self.stage.engine.score_many(events)
                for event, decision in zip(events, decisions, strict=True):
                    assert isinstance(decision, Decision), decision
                    self.answers.append((event, decision, time.monotonic()))
        except BaseException as error:  # whoever joins it raises this
            self.error = error

    def _event(self, n: int) -> dict[str, Any]:
        """Two engines have two claims on each device between them."""
        return claim(
            f"{self._name}-{n}", n % 1000, user_id=f"u{n % USERS}", device_id=f"d{n}", campaign_id="c"
        )

    def join(self) -> None:
        """Stop, and tell the store all that it missed."""
        self._stopped.set()
        self._thread.join(60)
        if self.error is not None:
            raise self.error
        wells = 0

        def well() -> bool:
            nonlocal wells
            wells += 1
            said = self.stage.engine.score(claim(f"{self._name}-well-{wells}", user_id="well"))
            return is_sound(said) and not self.store.is_behind

        until(well, 60)
        assert self.stage.engine.info().failovers == 1, "operators are told"
        self.stage.engine.close()


@pytest.fixture(scope="module")
def servers() -> Iterator[Cluster]:
    with cluster() as found:
        yield found


def test_what_masters_answer_together_is_told_apart(servers: Cluster, tmp_path: Path) -> None:
    """Each of some requests has its own items, however many those are and whoever answers first."""
    store = apart(servers.url)
    begin(store, "stage")
    with Stage(tmp_path, SECTIONS, store=store) as stage:
        opened = store_of(stage.engine)
        link, place = opened._link, opened.place
        parts = [11 * k % len(place.tags) for k in range(30)]  # each third with another master
        names = [[place.within(part) + b"%d" % n for n in range(1 + part % 4)] for part in parts]
        for part, some in zip(parts, names, strict=True):
            for name in some:
                link.call("SET", name, name, at=part)
        reply = link.ask_all(*together([command(("MGET", *some)) for some in names], parts))
        assert [reply.of(k) for k in range(len(parts))] == names
        claims = [(part, b"%016d" % part) for part in parts]
        assert losses._are_there(link, place, claims) == [False] * len(parts)
        for part, claim_ in claims:
            link.call("SET", place.claim_name(b"c", claim_, part), "", at=part)
        assert losses._are_there(link, place, claims) == [True] * len(parts)


def test_a_failover_is_told_whichever_way_to_the_store_has_seen_it(servers: Cluster, tmp_path: Path) -> None:
    store = apart(servers.url)
    begin(store, "stage")
    with Stage(tmp_path, SECTIONS, store=store) as stage:
        links = [shared._link for shared in store_of(stage.engine)._doors.stores]
        assert len(links) > 1
        for seen, link in enumerate(links, 1):
            assert isinstance(link, ClusterLink)
            link.topology.failovers = seen
            assert stage.engine.info().failovers == seen


def test_whether_a_batch_was_overtaken_is_asked_of_all_masters_at_once(
    servers: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "SURE_MS", 0)
    store = apart(servers.url)
    begin(store, "stage")
    with Stage(tmp_path, SECTIONS, store=store) as stage:
        stage.engine.score(claim("first"))
        link, asked = store_of(stage.engine)._link, list[int]()
        ask_all = link.ask_all

        def counted(requests: memoryview, ends: Sequence[int], parts: Int64s) -> Reply:
            asked.append(len(set(parts.tolist())))
            return ask_all(requests, ends, parts)

        monkeypatch.setattr(link, "ask_all", counted)
        events = [claim(f"{n}", user_id=f"{n}") for n in range(30)]
        first = stage.engine.score_many(events)
        assert len(asked) == 2, "of the events, and of what stands of them"
        assert min(asked) > 15
        assert stage.engine.score_many(events) == first, "nothing of them is asked where all are known"
        assert len(asked) == 3


@pytest.mark.parametrize("fault", ["stands still", "is killed"])
def test_a_replica_takes_over_under_load(fault: str, servers: Cluster, tmp_path: Path) -> None:
    number = 0 if fault == "stands still" else 1
    master, replica = servers.masters[number], servers.servers[len(servers.masters) + number]
    store = apart(servers.url)
    begin(store, "stage")
    with client(replica) as promoted:
        until(lambda: is_synced(promoted), 30)
        callers = [Caller(tmp_path / name, store, name) for name in ("a", "b")]
        until(lambda: all(len(caller.answers) > 150 for caller in callers), 30)
        begun = time.monotonic()
        if fault == "stands still":
            master.hold(True)
        else:
            master.kill()
        until(lambda: promoted.info("replication")["role"] == "master", 60)
        lives_on(master, fault)
        until(lambda: facts(promoted)["cluster_state"] == "ok", 30)
        taken = [len(caller.answers) for caller in callers]
        until(
            lambda: all(
                len(caller.answers) > n + 100 and is_sound(caller.answers[-1][1])
                for caller, n in zip(callers, taken, strict=True)
            ),
            60,
        )
        for caller in callers:
            caller.join()
    answers = [answer for caller in callers for answer in caller.answers]
    assert any("degraded:store" in decision.flags for _, decision, _ in answers), "it was noticed"
    last = {
        event["event_id"]
        for event, decision, when in answers
        if is_sound(decision) and begun - NODE_TIMEOUT_MS / 1000 < when < begun + 1
    }
    check(answers, last, tmp_path, store)


def is_sound(decision: Decision) -> bool:
    """Whether it was made with the store, and says at most that something had been lost."""
    return all(flag.startswith("lost:") for flag in decision.flags)


def test_what_a_replica_had_not_got_is_counted_and_told(servers: Cluster, tmp_path: Path) -> None:
    """A master dies whose replica had got nothing of late: each engine counts its own, and both say so."""
    master, replica = servers.masters[2], servers.servers[2 + len(servers.masters)]
    store = apart(servers.url)
    begin(store, "stage")
    with (
        client(replica) as promoted,
        Stage(tmp_path / "one", SECTIONS, store=store) as one,
        Stage(tmp_path / "two", SECTIONS, store=store) as two,
    ):
        told(one, "before", (60, 1))
        told(two, "before-too", (60, 1))
        has_all(master, replica)
        hold_back(master, replica)
        lost = [
            told(stage, name, sizes, master.port)
            for stage, name, sizes in ((one, "last", (1, 30, 1, 5, 1)), (two, "last-too", (20, 1, 1)))
        ]
        assert min(lost) > 5
        master.kill()
        until(lambda: promoted.info("replication")["role"] == "master", 60)
        until(lambda: facts(promoted)["cluster_state"] == "ok", 30)
        assert heard(one, "after") == {(f"lost:{lost[0]}",)}, "by the decisions that find it"
        assert heard(two, "after-too") == {(f"lost:{sum(lost)}",)}
        assert heard(one, "later") == {(f"lost:{sum(lost)}",)}, "of the other engine's it is told"
        assert [stage.engine.info().lost_events for stage in (one, two)] == [sum(lost)] * 2
        assert [stage.engine.info().failovers for stage in (one, two)] == [1, 1]


def told(stage: Stage, name: str, sizes: Sequence[int], port: int = 0) -> int:
    """Have batches decided; how many of their events the master at a port has something of."""
    opened, count = store_of(stage.engine), 0
    assert isinstance(opened._link, ClusterLink)
    owners, place = opened._link.topology.owners, opened.place
    for b, size in enumerate(sizes):
        names = [f"{name}{b}.{n}" for n in range(size)]
        for decision in stage.engine.score_many([claim(n, user_id=n, device_id=n) for n in names]):
            assert isinstance(decision, Decision)
            assert decision.flags == ()
        for n in names:
            keys = [signed(stage.engine.policy.schema.entity_key(entity, n)) for entity in ("user", "device")]
            parts = {place.part_of(stage.engine._claim_key(n)), *map(place.part_of, keys)}
            count += any(owners[part].endswith(f":{port}") for part in parts)
    return count


def heard(stage: Stage, name: str) -> set[tuple[str, ...]]:
    """What decisions say once all masters are reached again."""
    for k in range(600):
        decisions = stage.engine.score_many(
            [claim(f"{name}{k}.{n}", user_id=f"{name}{n}") for n in range(60)]
        )
        flags = {decision.flags for decision in decisions if isinstance(decision, Decision)}
        if flags != {("degraded:store",)}:
            return flags
        time.sleep(0.05)
    raise AssertionError("they never were")


def lives_on(master: Server, fault: str) -> None:
    """It goes on, or starts again, and finds that it is a replica now."""
    if fault == "stands still":
        master.hold(False)
    else:
        master.start()
    with client(master) as node:
        until(lambda: is_synced(node), 60)


def check(
    answers: list[tuple[dict[str, Any], Decision, float]], last: set[str], folder: Path, store: str
) -> None:
    """Each event has counted once, but for those of the `last` moment; and of limits no more is granted."""
    sent = Counter(event["user_id"] for event, _, _ in answers)
    sure = Counter(event["user_id"] for event, _, _ in answers if event["event_id"] not in last)
    with Stage(folder / "check", SECTIONS, store=store) as stage:
        missing = 0
        for n in range(USERS):
            counted = stage.row(claim(f"check-{n}", 1500, user_id=f"u{n}"))["claims"] - 1
            assert sure[f"u{n}"] <= counted <= sent[f"u{n}"]
            missing += sent[f"u{n}"] - int(counted)
        assert missing <= stage.engine.info().lost_events, "what is lost is told"
        again = stage.engine.score_many([event for event, _, _ in answers])
    changed = [
        event["event_id"]
        for (event, decision, _), after in zip(answers, again, strict=True)
        if not isinstance(after, Decision) or after.action != decision.action
    ]
    assert set(changed) <= last, "a retry is answered as the first time"
    allowed = [event for event, decision, _ in answers if decision.action == "allow"]
    devices = Counter(event["device_id"] for event in allowed)
    over = {device for device, count in devices.items() if count > 1}
    assert over <= {event["device_id"] for event in allowed if event["event_id"] in last}
    assert len(allowed) <= BUDGET + len(last & {event["event_id"] for event in allowed})
