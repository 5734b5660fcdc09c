"""Every limit of the shipped policy under a burst: from threads, and from engines that share a store.

Whoever is refused by nothing else is granted until the limit is full, and not one more. The events differ in
all but what the limit goes by; with the shipped rules beside them fewer may be granted, and never more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from servers import apart, valkey

from riskengine import Decision, Engine
from riskengine.definition import Definition, Limit
from riskengine.policy import load_definition
from riskengine.stores.address import begin

RULES = Path(__file__).resolve().parent.parent / "rules"
T0 = 1_794_362_400_000  # 2026-11-11T10:00:00+08:00
KEY = b"a key of bursts"
SHIPPED = load_definition(RULES)
THREADS = 6
AMOUNT = 10.0
CAMPAIGN = "red-packet-east"  # it has the smallest budget
OF_TYPE: dict[str, dict[str, Any]] = {
    "coupon_claim": {"campaign_id": "everyday-coupons", "coupon_type": "c-*"},
    "qr_scan": {"campaign_id": "red-packet-2026"},
    "payment": {"coupon_type": "c-*"},
}
DIFFERING = (
    "user_id", "device_id", "phone", "payment_account", "merchant_id", "order_id", "code_id", "terminal_id",
)  # fmt: skip


def quiet(definition: Definition) -> Definition:
    """The policy with its limits alone: nothing else refuses."""
    return replace(definition, rules={}, alerts={})


def room_of(limit: Limit) -> int:
    """How many events of AMOUNT fit."""
    budget = {"campaigns.daily_budget": 5_000.0}
    most = budget.get(limit.max.source) or float(limit.max.source)
    return int(most // AMOUNT) if limit.field else int(most)


def burst(limit: Limit, run: str, definition: Definition = SHIPPED) -> list[dict[str, Any]]:
    """More events than the limit has room for, which share what it goes by and nothing else."""
    same = set(definition.entities[limit.by].fields)
    events = []
    for i in range(room_of(limit) + 24):
        type = limit.types[i % len(limit.types)]
        event: dict[str, Any] = {"event_id": f"{run}-{limit.name}-{i}", "type": type, "time": T0}
        event |= {name: f"{run}-{limit.name}-{name}-{i}" for name in DIFFERING}
        event |= OF_TYPE[type] | {"amount": AMOUNT}
        if "new-" in str(limit.where and limit.where.source):
            event["coupon_type"] = "new-*"
        for name in same:
            event[name] = {"campaign_id": CAMPAIGN, "amount": AMOUNT}.get(name, f"{run}-{limit.name}-{name}")
        if "coupon_type" in event and "coupon_type" not in same:
            event["coupon_type"] = event["coupon_type"].replace("*", str(i))
        event["phone"] = f"138{crc32(event['phone'].encode()) % 10**8:08}"
        events.append(event)
    return events


def at_once(engines: Sequence[Engine], events: Sequence[dict[str, Any]]) -> list[Decision]:
    """Each event from one of many threads, all of which begin together: alone, or in small batches."""
    barrier = threading.Barrier(THREADS)
    decisions: list[Decision] = []

    def work(number: int) -> None:
        engine, mine = engines[number % len(engines)], events[number::THREADS]
        barrier.wait()
        size = 1 if number % 2 else 3
        for first in range(0, len(mine), size):
            for decision in engine.score_many(mine[first : first + size]):
                assert isinstance(decision, Decision), decision
                decisions.append(decision)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(decisions) == len(events)
    return decisions


def granted(limit: Limit, decisions: Sequence[Decision]) -> int:
    return sum(limit.name not in (*decision.fired, *decision.shadow) for decision in decisions)


def allowed(decisions: Sequence[Decision]) -> int:
    return sum(decision.action == "allow" for decision in decisions)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Engine, Engine]]:
    """Two engines on one store."""
    with valkey() as server:
        url = apart(server)
        begin(url, SHIPPED.tenant)
        definition = quiet(SHIPPED)
        with (
            Engine.open(definition, store=url, key=KEY, clock=lambda: T0) as one,
            Engine.open(definition, store=url, key=KEY, clock=lambda: T0) as other,
        ):
            yield one, other


@pytest.mark.parametrize("name", SHIPPED.limits)
def test_a_burst_from_threads_gets_what_there_is(name: str) -> None:
    limit = SHIPPED.limits[name]
    with Engine.open(quiet(SHIPPED), key=KEY, clock=lambda: T0) as engine:
        decisions = at_once([engine], burst(limit, "a"))
        assert granted(limit, decisions) == room_of(limit)
        if limit.mode == "live":
            assert allowed(decisions) == room_of(limit)


@pytest.mark.parametrize("name", SHIPPED.limits)
def test_a_burst_through_two_engines_gets_what_there_is(name: str, pair: tuple[Engine, Engine]) -> None:
    limit = SHIPPED.limits[name]
    decisions = at_once(pair, burst(limit, "b"))
    assert granted(limit, decisions) == room_of(limit)
    if limit.mode == "live":
        assert allowed(decisions) == room_of(limit)


def test_beside_the_rules_never_more() -> None:
    """What rules refuse takes no room for good; what they hold may leave less than there is."""
    with Engine.open(SHIPPED, key=KEY, clock=lambda: T0) as engine:
        for limit in SHIPPED.limits.values():
            decisions = at_once([engine], burst(limit, "c"))
            assert granted(limit, decisions) > 0
            if limit.mode == "live":
                assert allowed(decisions) <= room_of(limit)
