"""Single decisions in words: what happened, which rules spoke, what they saw, and how the risk came about."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

from riskengine.decision import Decision
from riskengine.definition import Definition, Limit, Rule
from riskengine.models import REASON
from riskengine.simulate import HONEST, IN_VAIN

NAME: Final = re.compile(r"[A-Za-z_]\w*")
WHAT: Final = {
    "coupon_claim": "a coupon claim",
    "qr_scan": "a scan of a red packet",
    "payment": "a payment",
    "refund": "a refund",
}
DONE: Final = {"allow": "allowed", "review": "held for review", "challenge": "challenged", "deny": "denied"}
DOES: Final = {"review": "holds for review", "challenge": "challenges", "deny": "denies", "allow": "allows"}

Event = Mapping[str, Any]
Judged = Sequence[tuple[Event, Decision, str]]


@dataclass(frozen=True, slots=True)
class Because:
    """One rule or limit that spoke: what it does, what people are told, its condition, what it saw."""

    name: str
    does: str
    message: str
    asks: str
    saw: str


@dataclass(frozen=True, slots=True)
class Story:
    """One decision: a title, one sentence, its reasons, and the arithmetic of its risk."""

    title: str
    what: str
    because: tuple[Because, ...]
    risk: str


def choose(judged: Judged, definition: Definition) -> tuple[Story, ...]:
    """Up to three decisions worth telling: a hard fact, several soft signals, a customer hit by mistake.

    Of each the first with the fewest reasons: the rest of a long story says the same in other words.
    """
    wanted: tuple[tuple[str, Callable[[Decision, str], bool]], ...] = (
        (
            "Denied on a hard fact",
            lambda d, kind: kind not in (HONEST, IN_VAIN) and d.action == "deny" and _is_hard(d, definition),
        ),
        (
            "Soft signals that add up",
            lambda d, kind: kind not in (HONEST, IN_VAIN) and _adds_up(d, definition),
        ),
        ("A customer who was hit by mistake", lambda d, kind: kind == HONEST and d.action != "allow"),
    )
    stories = []
    for title, is_wanted in wanted:
        fit = (one for one in judged if is_wanted(one[1], one[2]))
        shortest = min(fit, key=lambda one: len(one[1].reasons), default=None)
        if shortest is not None:
            stories.append(tell(title, *shortest, definition))
    return tuple(stories)


def tell(title: str, event: Event, decision: Decision, kind: str, definition: Definition) -> Story:
    """A decision in words. It carries features."""
    zone = ZoneInfo(definition.timezone)
    at = datetime.fromtimestamp(decision.time / 1_000, zone)
    who = "an ordinary customer" if kind == HONEST else f"{kind.replace('-', ' ')}"
    what = f"{at:%H:%M:%S}, {WHAT.get(event['type'], event['type'])}"
    if "amount" in event:
        what += f" of {event['amount']:.2f} yuan"
    asked = f" ({decision.challenge})" if decision.challenge else ""
    return Story(
        title=title,
        what=f"{what} by {event['user_id']} ({who}) was {DONE[decision.action]}{asked}.",
        because=tuple(_reasons(event, decision, definition)),
        risk=_risk(event, decision, definition),
    )


def _is_hard(decision: Decision, definition: Definition) -> bool:
    rules = [definition.rules.get(name) for name in decision.fired]
    return any(rule is not None and rule.then == "deny" for rule in rules)


def _adds_up(decision: Decision, definition: Definition) -> bool:
    """Held or denied by its risk alone: no rule or limit that fired says more than `flag`."""
    rules = [definition.rules.get(name) for name in decision.fired]
    return (
        decision.action in ("review", "deny")
        and bool(rules)
        and len(decision.reasons) >= 2
        and all(rule is not None and rule.then == "flag" for rule in rules)
    )


def _reasons(event: Event, decision: Decision, definition: Definition) -> Iterator[Because]:
    for reason in decision.reasons:
        message = (reason.message and reason.message.en) or reason.rule
        if reason.rule.startswith(REASON):
            yield Because(reason.rule, f"{reason.risk:.2f} of the model's risk", message, "", "")
        elif reason.rule in definition.rules:
            rule = definition.rules[reason.rule]
            yield Because(
                reason.rule,
                _rule_does(rule),
                message,
                rule.when.source,
                _saw(rule, event, decision, definition),
            )
        else:
            limit = definition.limits[reason.rule]
            yield Because(reason.rule, DOES[limit.then], message, _limit_asks(limit), "")


def _rule_does(rule: Rule) -> str:
    said = [DOES[rule.then]] if rule.then in DOES else []
    return " and ".join([*said, *([f"adds risk {rule.risk:.2f}"] if rule.risk else [])])


def _limit_asks(limit: Limit) -> str:
    window = limit.window.kind if limit.window.kind != "over" else _duration(limit.window.width_ms / 1_000)
    what = f"sum of {limit.field}" if limit.field else "count"
    return f"{what} of {', '.join(limit.types)} by {limit.by} a {window}: at most {limit.max.source}"


def _saw(rule: Rule, event: Event, decision: Decision, definition: Definition) -> str:
    """The features and plain fields of the condition, with their values at that moment."""
    row = decision.features if isinstance(decision.features, Mapping) else {}
    numbers = {field.name for field in definition.fields.values() if field.type == "number"}
    personal = {name for entity in definition.entities.values() for name in entity.fields} - numbers
    seen: dict[str, str] = {}
    for name in NAME.findall(rule.when.source):
        value = row.get(name, event.get(name) if name not in personal else None)
        if isinstance(value, bool):
            seen[name] = "yes" if value else "no"
        elif isinstance(value, str):
            seen[name] = value
        elif isinstance(value, int | float) and name in definition.features:
            is_duration = definition.features[name].type == "duration"
            seen[name] = _duration(value) if is_duration else f"{value:,.4g}"
        elif isinstance(value, int | float) and name in numbers:
            seen[name] = f"{value:,.2f}".removesuffix(".00")
    return ", ".join(f"{name} was {value}" for name, value in seen.items())


def _risk(event: Event, decision: Decision, definition: Definition) -> str:
    parts = [decision.model.p] if decision.model is not None and decision.model.p >= 0.005 else []
    parts += [
        reason.risk for reason in decision.reasons if reason.risk and not reason.rule.startswith(REASON)
    ]
    if not parts:
        return "No rule added risk." if decision.model is None else "Neither rule nor model added risk."
    product = " x ".join(f"(1 - {part:.2f})" for part in parts)
    thresholds = definition.decide.get(event["type"])
    said = f"Risk = 1 - {product} = {decision.risk:.2f}"
    if thresholds is not None and thresholds.review is not None:
        said += f"; review begins at {thresholds.review:.2f}"
    return said + "."


def _duration(seconds: float) -> str:
    for name, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}{'' if seconds == size else 's'}"
    return f"{seconds:.3g} seconds"
