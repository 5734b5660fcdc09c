"""Two engines of a cluster get different events of one id at once, and partitions meet them in other orders.

The event's own partition says which of the two there is. The other one has been counted elsewhere before its
engine knows: it is taken back from there, and the first is counted in its place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from clusters import Cluster, cluster
from servers import apart
from stage import Stage, action, claim, policy, store_of

from riskengine.hashing import signed
from riskengine.stores.address import begin
from riskengine.stores.cluster import ClusterLink
from riskengine.stores.kept import IN_FLIGHT_MS
from riskengine.stores.line import Line

SECTIONS = policy(
    events={"coupon_claim": {"required": ["user_id"], "fields": {"score": {"type": "number", "unit": 1}}}},
    features={
        "of_user": {"count": "coupon_claim", "by": "user", "over": "1h"},
        "of_device": {"count": "coupon_claim", "by": "device", "over": "1h"},
        "highest": {"max": "score", "on": "coupon_claim", "by": "device", "over": "1h"},
    },
    limits={"few": {"count": "coupon_claim", "by": "device", "over": "1h", "max": 2, "then": "deny"}},
)
LATE_SECONDS = (
    3 * IN_FLIGHT_MS / 1000
)  # nobody takes an event that came so long ago for one that is being decided


@pytest.fixture(scope="module")
def servers() -> Iterator[Cluster]:
    with cluster(replicas=False) as found:
        yield found


@pytest.mark.parametrize("late_seconds", [0.0, LATE_SECONDS], ids=["soon", "late"])
@pytest.mark.parametrize("users", [("x", "x"), ("x", "y")], ids=["one user", "two users"])
def test_the_event_that_stands_counts_everywhere_and_the_other_nowhere(
    users: tuple[str, str], late_seconds: float, servers: Cluster, tmp_path: Path
) -> None:
    store = apart(servers.url, timeout=20_000)
    begin(store, "stage")
    with (
        Stage(tmp_path / "a", SECTIONS, store=store) as one,
        Stage(tmp_path / "b", SECTIONS, store=store) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        for stage in (one, two):
            stage.engine.score_many([claim(f"{stage.folder.name}{n}", device_id=f"w{n}") for n in range(50)])
        for n in range(3):
            event_id, device = apart_in(one, n)
            first = claim(event_id, user_id=f"{users[0]}{n}", device_id=device, score=1)
            second = claim(event_id, user_id=f"{users[1]}{n}", device_id=device, score=100)
            with in_orders(one, two, event_id, device, late_seconds):
                said = list(pool.map(scored, (one, two), (first, second)))
            assert said == ["allow", "conflict"]
            row = two.row(claim(f"then{n}", user_id=f"{users[1]}{n}", device_id=device, score=2))
            assert row == {"of_device": 2.0, "highest": 2.0, "of_user": 2.0 if users[0] == users[1] else 1.0}
            assert scored(one, claim(f"last{n}", device_id=device, score=3)) == "deny", "two of two are held"
            assert scored(two, first) == "allow", "its answer stays what it was"
            assert scored(one, second) == "conflict"


def scored(stage: Stage, event: dict[str, Any]) -> str:
    return action(stage.engine.score_many([event])[0])


def apart_in(stage: Stage, n: int) -> tuple[str, str]:
    """The id of an event that the master asked first has, and a device that another one has."""
    owners = link_of(stage).topology.owners
    for k in range(10_000):
        event_id, device = f"e{n}-{k}", f"d{n}-{k}"
        home, part = parts_of(stage, event_id, device)
        if owners[0] == owners[home] != owners[part]:
            return event_id, device
    raise AssertionError("no id is of the first master")


def parts_of(stage: Stage, event_id: str, device: str) -> tuple[int, int]:
    """The partitions of an event and of a device."""
    place, engine = store_of(stage.engine).place, stage.engine
    key = signed(engine.policy.schema.entity_key("device", device))
    return place.part_of(engine._claim_key(event_id)), place.part_of(key)


def link_of(stage: Stage) -> ClusterLink:
    link = store_of(stage.engine)._link
    assert isinstance(link, ClusterLink)
    return link


@contextmanager
def in_orders(one: Stage, two: Stage, event_id: str, device: str, late_seconds: float) -> Iterator[None]:
    """The first engine is the first at the event's master, and the second at the device's.

    What the second one sends there after that, which takes its event back, is late.
    """
    home, part = parts_of(one, event_id, device)
    links, owners = (link_of(one), link_of(two)), link_of(one).topology.owners
    at_home, at_device = threading.Event(), threading.Event()

    def before(gate: threading.Event, late: float, send: Callable[..., None]) -> Callable[..., None]:
        def sending(*request: Any) -> None:
            if gate.is_set():
                time.sleep(late)
            send(*request)
            if not gate.is_set():
                time.sleep(0.02)  # until it is served
                gate.set()

        return sending

    def behind(gate: threading.Event, send: Callable[..., None]) -> Callable[..., None]:
        def sending(*request: Any) -> None:
            assert gate.wait(20), "the other engine came to neither"
            send(*request)

        return sending

    with pytest.MonkeyPatch.context() as patch:
        for link, number, how in (
            (links[0], home, partial(before, at_home, 0.0)),
            (links[1], home, partial(behind, at_home)),
            (links[1], part, partial(before, at_device, late_seconds)),
            (links[0], part, partial(behind, at_device)),
        ):
            line: Line = link._nodes[owners[number]].line
            patch.setattr(line, "send", how(line.send))
        yield
