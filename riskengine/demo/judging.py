"""A simulated day lived through and judged: counts and money by kind of abuse, rule, time and risk."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from msgspec import UnsetType

from riskengine.decision import Decision
from riskengine.definition import Definition, Limit, Rule
from riskengine.demo.stories import Story, choose
from riskengine.engine import Engine
from riskengine.entries import AlertEntry
from riskengine.errors import EventError, RiskEngineError
from riskengine.models import load_models
from riskengine.simulate import (
    CAMPAIGN_DAY_MS,
    DAY_MS,
    HONEST,
    IN_VAIN,
    KINDS,
    Outcome,
    Told,
    Traffic,
    at_stake,
    simulate,
    trusted_devices,
)

ALLOW: Final = "allow"
SLOT_MS: Final = 900_000  # pictures show quarters of an hour
BINS: Final = 10
DAYS: Final = 4  # the campaign's day is the last: those before let the engine get to know people
ALLOWED, ASKED, HELD, FAILED, DENIED = "allowed", "asked", "held", "failed", "denied"
ENDS: Final = (ALLOWED, ASKED, HELD, FAILED, DENIED)  # asked: and passed
SHIPPED_MODEL: Final = "campaign-v1"
SUSPECTED: Final = 0.5  # where a policy names no threshold

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Day:
    """What was simulated, the decision on each event, and how long the deciding took."""

    traffic: Traffic
    decisions: list[Decision]
    seconds: float
    alerts: Sequence[AlertEntry] = ()  # episodes that began on the campaign's day


@dataclass(frozen=True, slots=True)
class Tally:
    """Events, and what they were after, in fen: the coupon, the red packet, the charge."""

    events: int = 0
    fen: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.events + other.events, self.fen + other.fen)


@dataclass(frozen=True, slots=True)
class KindReport:
    """One kind of abuse, by attempts: stopped (denied, or asked and failed), held for review, or let through.

    `first_stop_ms` is how long it went on before the first was stopped; None where none was.
    """

    kind: str
    stopped: Tally
    held: Tally
    missed: Tally
    first_stop_ms: int | None


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
class AlertReport:
    """An alert of which episodes began that day: how many, when the first, and what that was counted by."""

    name: str
    episodes: int
    first_ms: int
    key: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """The day in numbers, with decisions told in words."""

    policy: str
    seed: int
    events: int  # of that day
    customers: dict[str, int]  # attempts of honest customers by what became of them
    hit_fen: int  # what those among them were after who did not get it
    in_vain: int  # attempts of theirs at what they had already, or nobody has
    kinds: tuple[KindReport, ...]
    rules: tuple[RuleReport, ...]  # what did most first
    slots: tuple[Slot, ...]
    bins: tuple[Bin, ...]
    stories: tuple[Story, ...]
    alerts: tuple[AlertReport, ...]  # the first to begin first

    @property
    def stopped(self) -> Tally:
        """Abuse that was denied, or that failed when it was asked."""
        return sum((kind.stopped for kind in self.kinds), Tally())

    @property
    def held(self) -> Tally:
        """Abuse that waits for a person to look at it."""
        return sum((kind.held for kind in self.kinds), Tally())

    @property
    def missed(self) -> Tally:
        """Abuse that got what it wanted."""
        return sum((kind.missed for kind in self.kinds), Tally())

    @property
    def abuse(self) -> Tally:
        """All of it."""
        return self.stopped + self.held + self.missed

    @property
    def hit(self) -> int:
        """Attempts of customers that were not simply allowed."""
        return sum(self.customers.values()) - self.customers[ALLOWED]


def play(
    engine: Engine,
    seed: int,
    users: int,
    shown: Callable[[int], None] = lambda done: None,
    clock: Callable[[], float] = lambda: 0.0,
) -> Day:
    """Let customers and abusers live through DAYS that end with the campaign's, and decide on each event.

    They learn what is decided, and react. `shown` is told how many events are done; `clock` tells seconds, to
    time the decisions by. Raises RiskEngineError where the policy does not take these events.
    """
    for device in trusted_devices(users):
        with suppress(RiskEngineError):  # a policy without such a list trusts nobody
            engine.list_put("trusted", "device", device)
    decisions: list[Decision] = []
    alerts: list[AlertEntry] = []
    seconds = 0.0
    newest_ms = 0
    engine.on_alert(
        lambda entry: alerts.append(entry) if entry.begins and entry.start_ms >= CAMPAIGN_DAY_MS else None
    )

    def decide(events: list[Event]) -> list[Outcome]:
        nonlocal seconds, newest_ms
        now = np.maximum.accumulate([newest_ms, *(event["time"] for event in events)])[1:]
        newest_ms = int(now[-1])
        began = clock()
        results = engine.score_many(events, features=newest_ms >= CAMPAIGN_DAY_MS, now=now)
        seconds += clock() - began
        outcomes = []
        for event, result in zip(events, results, strict=True):
            if isinstance(result, EventError):
                raise RiskEngineError(
                    f"this policy cannot score the simulated events: {result}. The demo needs the event "
                    "types of the shipped policy: coupon_claim, qr_scan, payment, refund, credential_change."
                )
            outcomes.append(Outcome(event["event_id"], result.action, result.challenge))
            decisions.append(result)
        return outcomes

    traffic = simulate(seed, DAYS, users, shown, decide)
    return Day(traffic, decisions, seconds, alerts)


def with_shipped_model(definition: Definition) -> Definition:
    """The policy with the shipped model acting, where it has no model and that one fits its features."""
    if definition.model is not None or definition.challengers:
        return definition
    modelled = replace(definition, model=SHIPPED_MODEL)
    try:
        load_models(modelled)
    except RiskEngineError:  # the policy counts something else than the model knows
        return definition
    return modelled


def judge(seed: int, day: Day, definition: Definition) -> Report:
    """Hold the decisions of the campaign's day against what only the simulation knows."""
    judged = [
        (one.event, decision, one.kind)
        for one, decision in zip(day.traffic.told, day.decisions, strict=True)
        if one.event["time"] >= CAMPAIGN_DAY_MS
    ]
    attempts = list(_attempts(day.traffic))
    customers = Counter(attempt.end for attempt in attempts if attempt.kind == HONEST)
    return Report(
        policy=definition.name,
        seed=seed,
        events=len(judged),
        customers={end: customers[end] for end in ENDS},
        hit_fen=sum(one.fen for one in attempts if one.kind == HONEST and one.end in (DENIED, FAILED)),
        in_vain=sum(attempt.kind == IN_VAIN for attempt in attempts),
        kinds=tuple(_kinds(attempts)),
        rules=tuple(
            sorted(_rules(judged, definition), key=lambda rule: (rule.is_shadow, -rule.abuse.events))
        ),
        slots=tuple(_slots(attempts)),
        bins=tuple(_bins(judged)),
        stories=choose(judged, definition),
        alerts=tuple(_alerts(day.alerts)),
    )


def _alerts(began: Sequence[AlertEntry]) -> Iterator[AlertReport]:
    by_name: dict[str, list[AlertEntry]] = {}
    for entry in began:
        by_name.setdefault(entry.alert, []).append(entry)
    for name, entries in by_name.items():
        yield AlertReport(name, len(entries), entries[0].start_ms, entries[0].key)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What somebody was after, from the first event to what became of it in the end."""

    at_ms: int
    kind: str
    fen: int
    end: str


def _attempts(traffic: Traffic) -> Iterator[_Attempt]:
    """Of the campaign's day, by time."""
    chains: dict[str, list[Told]] = defaultdict(list)
    for one in traffic.told:
        if one.event["time"] >= CAMPAIGN_DAY_MS:
            chains[one.attempt].append(one)
    for chain in chains.values():
        first, last = chain[0], chain[-1].outcome.action
        fen = at_stake(first.event)
        if not fen and first.kind in KINDS:  # a step on the way: there is nothing to be had by it
            continue
        end = {"allow": ASKED if len(chain) > 1 else ALLOWED, "deny": DENIED, "review": HELD}.get(
            last, FAILED
        )
        yield _Attempt(first.event["time"], first.kind, fen, end)


def _kinds(attempts: Sequence[_Attempt]) -> Iterator[KindReport]:
    sides: dict[tuple[str, str], Tally] = defaultdict(Tally)
    first: dict[str, int] = {}
    stopped_ms: dict[str, int] = {}
    for one in attempts:
        side = {DENIED: DENIED, FAILED: DENIED, HELD: HELD}.get(one.end, ALLOWED)
        sides[one.kind, side] += Tally(1, one.fen)
        first.setdefault(one.kind, one.at_ms)
        if side == DENIED:
            stopped_ms.setdefault(one.kind, one.at_ms)
    for kind in KINDS:
        waited = stopped_ms[kind] - first[kind] if kind in stopped_ms else None
        yield KindReport(kind, sides[kind, DENIED], sides[kind, HELD], sides[kind, ALLOWED], waited)


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
            if kind == HONEST:
                customers[name] += 1
            elif kind != IN_VAIN:
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


def _slots(attempts: Sequence[_Attempt]) -> Iterator[Slot]:
    """Quarters of an hour of the day; what is held for review is not missed."""
    counts = [[0, 0, 0, 0] for _ in range(DAY_MS // SLOT_MS)]
    for one in attempts:
        slot = (one.at_ms - CAMPAIGN_DAY_MS) // SLOT_MS
        if slot < len(counts) and one.kind != IN_VAIN:
            side = int(one.end != ALLOWED) if one.kind == HONEST else 3 if one.end in (ALLOWED, ASKED) else 2
            counts[slot][side] += 1
    for i, (allowed, hit, stopped, missed) in enumerate(counts):
        yield Slot(CAMPAIGN_DAY_MS + i * SLOT_MS, allowed, hit, stopped, missed)


def _bins(judged: Judged) -> Iterator[Bin]:
    counts = Counter(
        (min(int(decision.risk * BINS), BINS - 1), kind == HONEST)
        for _, decision, kind in judged
        if kind != IN_VAIN
    )
    for i in range(BINS):
        yield Bin(i / BINS, (i + 1) / BINS, counts[i, True], counts[i, False])
