"""Decisions of a simulated day against its labels: counts and money by kind of abuse, rule, time and risk."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from msgspec import UnsetType

from riskengine.decision import Decision
from riskengine.definition import ACTIONS, Definition, Limit, Rule
from riskengine.demo.stories import Story, choose
from riskengine.engine import Engine
from riskengine.errors import EventError, RiskEngineError
from riskengine.models import load_models
from riskengine.simulate import DAY_MS, KINDS, ORDINARY, Traffic, kind_of

ALLOW: Final = "allow"
SLOT_MS: Final = 900_000  # pictures show quarters of an hour
BINS: Final = 10
CHUNK_EVENTS: Final = 512
SHIPPED_MODEL: Final = "campaign-v1"
SUSPECTED: Final = 0.5  # where a policy names no threshold

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tally:
    """Events, and what they were after, in fen: the coupon, the red packet, the charge."""

    events: int = 0
    fen: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.events + other.events, self.fen + other.fen)


@dataclass(frozen=True, slots=True)
class KindReport:
    """One kind of abuse: what got through, and what did not (denied, challenged or held for review)."""

    kind: str
    stopped: Tally
    missed: Tally


@dataclass(frozen=True, slots=True)
class RuleReport:
    """A rule, a limit, or a model in shadow: events that it fired on and that were not simply allowed.

    In shadow it never acts: `abuse` and `customers` are then all that it fired on, and `abuse_missed` those
    among them that nothing else stopped.
    """

    name: str
    is_limit: bool
    is_shadow: bool
    abuse: Tally
    customers: int
    abuse_missed: int = 0


@dataclass(frozen=True, slots=True)
class Slot:
    """A quarter of an hour."""

    start_ms: int
    allowed: int
    hit: int  # customers
    stopped: int
    missed: int  # abuse


@dataclass(frozen=True, slots=True)
class Bin:
    """Events whose risk is at least `low` and below `high` (the last bin includes 1)."""

    low: float
    high: float
    customers: int
    abuse: int


@dataclass(frozen=True, slots=True)
class Report:
    """The day in numbers, with decisions told in words."""

    policy: str
    seed: int
    customers: dict[str, int]  # events of ordinary customers by action
    kinds: tuple[KindReport, ...]
    rules: tuple[RuleReport, ...]  # what did most first
    slots: tuple[Slot, ...]
    bins: tuple[Bin, ...]
    stories: tuple[Story, ...]

    @property
    def stopped(self) -> Tally:
        """Abuse that was denied, challenged or held for review."""
        return sum((kind.stopped for kind in self.kinds), Tally())

    @property
    def missed(self) -> Tally:
        """Abuse that was allowed."""
        return sum((kind.missed for kind in self.kinds), Tally())

    @property
    def events(self) -> int:
        """Of customers and of abuse."""
        return self.stopped.events + self.missed.events + sum(self.customers.values())

    @property
    def hit(self) -> int:
        """Events of customers that were not simply allowed."""
        return sum(self.customers.values()) - self.customers.get(ALLOW, 0)


def play(engine: Engine, events: Sequence[Event], shown: Callable[[int], None]) -> list[Decision]:
    """Score a day in its order, with features; `shown` is told how many events are done.

    Raises RiskEngineError where the policy does not take these events.
    """
    now = np.maximum.accumulate(np.array([event["time"] for event in events], np.int64))
    decisions: list[Decision] = []
    for start in range(0, len(events), CHUNK_EVENTS):
        end = start + CHUNK_EVENTS
        for result in engine.score_many(events[start:end], features=True, now=now[start:end]):
            if isinstance(result, EventError):
                raise RiskEngineError(
                    f"this policy cannot score the simulated events: {result}. The demo needs the event "
                    "types coupon_claim, qr_scan and payment as the shipped policy has them."
                )
            decisions.append(result)
        shown(len(decisions))
    return decisions


def watched_by_model(definition: Definition) -> Definition:
    """The policy with the shipped model in shadow, where it has no model and that one fits its features."""
    if definition.model is not None or definition.challengers:
        return definition
    watched = replace(definition, challengers=(SHIPPED_MODEL,))
    try:
        load_models(watched)
    except RiskEngineError:  # the policy counts something else than the model knows
        return definition
    return watched


def judge(seed: int, traffic: Traffic, decisions: Sequence[Decision], definition: Definition) -> Report:
    """Hold the decisions of a day against its labels. The decisions carry features."""
    kinds = {label["event_id"]: kind_of(label) for label in traffic.labels}
    judged = [
        (event, decision, kinds[event["event_id"]])
        for event, decision in zip(traffic.events, decisions, strict=True)
    ]
    stopped: dict[str, Tally] = defaultdict(Tally)
    missed: dict[str, Tally] = defaultdict(Tally)
    customers: Counter[str] = Counter()
    for event, decision, kind in judged:
        if kind == ORDINARY:
            customers[decision.action] += 1
        else:
            side = missed if decision.action == ALLOW else stopped
            side[kind] += Tally(1, at_stake(event))
    return Report(
        policy=definition.name,
        seed=seed,
        customers={action: customers[action] for action in ACTIONS},
        kinds=tuple(KindReport(kind, stopped[kind], missed[kind]) for kind in KINDS),
        rules=tuple(
            sorted(_rules(judged, definition), key=lambda rule: (rule.is_shadow, -rule.abuse.events))
        ),
        slots=tuple(_slots(judged)),
        bins=tuple(_bins(judged)),
        stories=choose(judged, definition),
    )


def at_stake(event: Event) -> int:
    """What an event is after, in fen: of a payment with a coupon its discount, else its amount."""
    name = "discount" if "coupon_type" in event and event["type"] == "payment" else "amount"
    return round(float(event.get(name, 0)) * 100)


Judged = Sequence[tuple[Event, Decision, str]]


def _rules(judged: Judged, definition: Definition) -> Iterator[RuleReport]:
    abuse: dict[str, Tally] = defaultdict(Tally)
    missed: Counter[str] = Counter()
    customers: Counter[str] = Counter()
    for event, decision, kind in judged:
        names = decision.fired if decision.action != ALLOW else ()
        suspects = [
            name for name, p in _challenged(decision).items() if p >= _least(definition, event["type"])
        ]
        for name in (*names, *decision.shadow, *map(model_row, suspects)):
            if kind == ORDINARY:
                customers[name] += 1
            else:
                abuse[name] += Tally(1, at_stake(event))
                missed[name] += decision.action == ALLOW
    items: list[Rule | Limit] = [*definition.rules.values(), *definition.limits.values()]
    for item in items:
        name = item.name
        if abuse[name].events or customers[name]:
            is_shadow = item.mode == "shadow"
            is_limit = name in definition.limits
            yield RuleReport(name, is_limit, is_shadow, abuse[name], customers[name], missed[name])
    for name in map(model_row, definition.challengers):
        yield RuleReport(name, False, True, abuse[name], customers[name], missed[name])


def _challenged(decision: Decision) -> dict[str, float]:
    """What models in shadow said."""
    return {} if isinstance(decision.challengers, UnsetType) else decision.challengers


def model_row(name: str) -> str:
    """What a model in shadow is called among the rules."""
    return f"model {name}"


def _least(definition: Definition, kind: str) -> float:
    """The risk from which an event of this type is not simply allowed."""
    decide = definition.decide.get(kind)
    levels = [] if decide is None else [decide.review, decide.challenge, decide.deny]
    return min((level for level in levels if level is not None), default=SUSPECTED)


def _slots(judged: Judged) -> Iterator[Slot]:
    first_ms = min(event["time"] for event, *_ in judged)
    first_ms -= (first_ms + 8 * 3_600_000) % DAY_MS  # from midnight in the campaign's city
    last_ms = max(event["time"] for event, *_ in judged)
    slots = max(DAY_MS // SLOT_MS, (last_ms - first_ms) // SLOT_MS + 1)
    counts = [[0, 0, 0, 0] for _ in range(slots)]
    for event, decision, kind in judged:
        side = (2 if decision.action != ALLOW else 3) if kind != ORDINARY else int(decision.action != ALLOW)
        counts[(event["time"] - first_ms) // SLOT_MS][side] += 1
    for i, (allowed, hit, stopped, missed) in enumerate(counts):
        yield Slot(first_ms + i * SLOT_MS, allowed, hit, stopped, missed)


def _bins(judged: Judged) -> Iterator[Bin]:
    counts = Counter(
        (min(int(decision.risk * BINS), BINS - 1), kind == ORDINARY) for _, decision, kind in judged
    )
    for i in range(BINS):
        yield Bin(i / BINS, (i + 1) / BINS, counts[i, True], counts[i, False])
