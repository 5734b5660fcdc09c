"""Labelled traffic of a campaign under attack: the same seed gives the same events, byte for byte.

Ordinary customers follow the hours of a day (`customers.py`); abuse comes on top, each kind as it is done in
the field (`abuse.py`). Labels name what only an investigation would find out, and when it would.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from riskengine.simulate.abuse import KINDS, attack
from riskengine.simulate.customers import DAY_MS, customers, events_of_a_day, ordinary

__all__ = ["CAMPAIGN_DAY_MS", "DAY_MS", "KINDS", "ORDINARY", "Traffic", "kind_of", "simulate"]

CAMPAIGN_DAY_MS: Final = (
    1_794_326_400_000  # 2026-11-11T00:00:00+08:00: the double-eleven campaign at its height
)
ORDINARY: Final = "ordinary"
SOURCE: Final = "simulated:"
SHOWN_EVENTS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Traffic:
    """Events by time, and one label for each of them, by the time it became known."""

    events: list[dict[str, Any]]
    labels: list[dict[str, Any]]


def simulate(
    seed: int = 7,
    days: int = 1,
    users: int = 10_000,
    shown: Callable[[int, int], None] = lambda done, total: None,
) -> Traffic:
    """Traffic of `users` customers over `days` that end with the campaign day, and of those who prey on it.

    The campaign day is several times as busy as those before it. `shown` is told now and then how many
    events there are, of about how many. Raises ValueError below one day or user.
    """
    if days < 1 or users < 1:
        raise ValueError(f"at least one day and one user are needed, got {days} and {users}")
    draw = random.Random(seed)
    people = customers(draw, users, CAMPAIGN_DAY_MS)
    total = sum(events_of_a_day(users, day == days - 1) for day in range(days))
    told: list[tuple[dict[str, Any], str]] = []
    for day in range(days):
        start_ms = CAMPAIGN_DAY_MS - (days - 1 - day) * DAY_MS
        is_campaign = day == days - 1
        for event in ordinary(draw, people, start_ms, is_campaign):
            told.append((event, ORDINARY))
            if len(told) % SHOWN_EVENTS == 0:
                shown(len(told), total)
        if is_campaign:
            told += attack(draw, start_ms, scale=users / 10_000)
    told.sort(key=lambda pair: (pair[0]["time"], pair[0]["user_id"]))
    for number, (event, _) in enumerate(told, 1):
        event["event_id"] = f"e{number:07}"
    labels = [_label(draw, event, kind) for event, kind in told]
    labels.sort(key=lambda label: label["time"])
    return Traffic([{"event_id": event.pop("event_id"), **event} for event, _ in told], labels)


def kind_of(label: dict[str, Any]) -> str:
    """The kind of abuse a simulated label stands for, or ORDINARY. Raises ValueError for any other label."""
    source = str(label.get("source", ""))
    if not source.startswith(SOURCE):
        raise ValueError(f"the label of {label.get('event_id')} is not one of `simulate`")
    return source.removeprefix(SOURCE)


def _label(draw: random.Random, event: dict[str, Any], kind: str) -> dict[str, Any]:
    """Fraud is found out within days (a complaint, a chargeback); the rest counts as legit after a month."""
    after_ms = 30 * DAY_MS if kind == ORDINARY else draw.randrange(2 * DAY_MS, 12 * DAY_MS)
    return {
        "event_id": event["event_id"],
        "label": "legit" if kind == ORDINARY else "fraud",
        "time": event["time"] + after_ms,
        "source": SOURCE + kind,
    }
