"""Labelled traffic of a campaign under attack: the same seed gives the same events, byte for byte.

Honest people (`people.py`) and those who prey on the campaign (`farming.py`, `codes.py`, `spending.py`) are
agents of one `World`. With `decide` they learn what is decided, and change their ways; without, all is
allowed. Nothing here knows a rule. Labels name what only an investigation would find out, when it would.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from riskengine.simulate.goods import at_stake
from riskengine.simulate.people import (
    DAY_MS,
    HONEST,
    IN_VAIN,
    VISITS_A_USER,
    Person,
    population,
    shop_tablets,
    tablet_of,
    visits,
)
from riskengine.simulate.scenario import DEFAULT, EVERY_DAY, KINDS, Scenario
from riskengine.simulate.world import Agent, Arrival, Decide, Outcome, Told, World

__all__ = [
    "CAMPAIGN_DAY_MS",
    "DAY_MS",
    "DEFAULT",
    "HONEST",
    "IN_VAIN",
    "KINDS",
    "Outcome",
    "Scenario",
    "Told",
    "Traffic",
    "at_stake",
    "expected",
    "kind_of",
    "simulate",
    "trusted_devices",
]

CAMPAIGN_DAY_MS: Final = (
    1_794_326_400_000  # 2026-11-11T00:00:00+08:00: the double-eleven campaign at its height
)
SOURCE: Final = "simulated:"
NEVER_FOUND: Final = 0.15  # of abuse: nobody complains, or nobody looks


@dataclass(frozen=True, slots=True)
class Traffic:
    """Events by time with what came of each, and the labels by the time they became known."""

    told: list[Told]
    labels: list[dict[str, Any]]

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events alone."""
        return [one.event for one in self.told]


def simulate(
    seed: int = 7,
    days: int = 1,
    users: int = 10_000,
    shown: Callable[[int], None] = lambda done: None,
    decide: Decide | None = None,
    scenario: Scenario = DEFAULT,
) -> Traffic:
    """Traffic of `users` customers over `days` that end with the campaign day, and of those who prey on it.

    The campaign day is several times as busy as those before it. `shown` is told now and then how many
    events there are. Raises ValueError below one day or user.
    """
    if days < 1 or users < 1:
        raise ValueError(f"at least one day and one user are needed, got {days} and {users}")
    draw = random.Random(seed)
    people = population(draw, users, CAMPAIGN_DAY_MS)
    world = World(decide, shown)
    world.run(_arrivals(seed, people, days, users, scenario))
    labels = list(_labels(random.Random(f"{seed}/labels"), world.told))
    return Traffic(world.told, labels)


def trusted_devices(users: int, scenario: Scenario = DEFAULT) -> list[str]:
    """The tablets of shops, which the brand knows and lists as trusted."""
    return [tablet_of(shop) for shop in range(round(scenario.shop_tablets * users / 10_000))]


def expected(days: int, users: int) -> int:
    """About how many events of customers there will be."""
    return round(users * ((days - 1) * VISITS_A_USER[False] + VISITS_A_USER[True]))


def kind_of(label: dict[str, Any]) -> str:
    """The kind of abuse a simulated label stands for, or HONEST. Raises ValueError for any other label."""
    source = str(label.get("source", ""))
    if not source.startswith(SOURCE):
        raise ValueError(f"the label of {label.get('event_id')} is not one of `simulate`")
    return source.removeprefix(SOURCE)


def _arrivals(
    seed: int, people: list[Person], days: int, users: int, scenario: Scenario
) -> Iterator[Arrival]:
    for day in range(days):
        is_campaign = day == days - 1
        start_ms = CAMPAIGN_DAY_MS - (days - 1 - day) * DAY_MS
        draw = random.Random(f"{seed}/{day}")
        coming = [
            visits(draw, people, start_ms, is_campaign, scenario.rush if is_campaign else None),
            shop_tablets(
                random.Random(f"{seed}/{day}/shops"), people, start_ms, len(trusted_devices(users, scenario))
            ),
        ]
        yield from _crews(seed, day, start_ms, users, scenario, is_campaign)
        yield from heapq.merge(*coming, key=lambda one: one[0])


def _crews(
    seed: int, day: int, start_ms: int, users: int, scenario: Scenario, is_campaign: bool
) -> Iterator[Arrival]:
    """Crews prepare at the beginning of their day, whenever their first act is."""
    for kind, begin in KINDS.items():
        draw = random.Random(f"{seed}/{day}/{kind}")
        for number in range(scenario.crews(kind, users, is_campaign, draw)):
            name = f"{kind}-{number}" if kind in EVERY_DAY else f"{kind}-{day}-{number}"
            for agent in begin(random.Random(f"{seed}/{day}/{name}"), start_ms, name):
                yield start_ms, partial(_itself, agent)


def _itself(agent: Agent) -> Agent:
    return agent


def _labels(draw: random.Random, told: list[Told]) -> Iterator[dict[str, Any]]:
    """What becomes known, by time: a chargeback takes weeks, a complaint days, some abuse is never found."""
    known = []
    for one in told:
        if one.kind in (HONEST, IN_VAIN):
            after_ms = 30 * DAY_MS
        elif draw.random() < NEVER_FOUND:
            continue
        elif one.event["type"] == "payment":
            after_ms = int(DAY_MS * min(draw.lognormvariate(2.3, 0.6), 60))
        else:
            after_ms = draw.randrange(DAY_MS, 12 * DAY_MS)
        known.append(
            {
                "event_id": one.event["event_id"],
                "label": "legit" if one.kind in (HONEST, IN_VAIN) else "fraud",
                "time": one.event["time"] + after_ms,
                "source": SOURCE + one.kind,
            }
        )
    known.sort(key=lambda label: label["time"])
    yield from known
