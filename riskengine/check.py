"""What is wrong with a policy folder, and what merely looks it; told to people and to programs.

Errors come from reading the folder (`policy.examine`) and the models it names (`models.examine_models`);
the warnings here are about policies that load:
rules that cannot fire, features that nothing uses. `explain` says what the counters cost.
"""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from riskengine.definition import (
    ACTIONS,
    ALERT_BUCKETS,
    Alert,
    Definition,
    Feature,
    Limit,
    Rule,
    Spread,
    Window,
)
from riskengine.errors import Finding, Place, render
from riskengine.expression import Expression, Symbol, Term
from riskengine.footprint import ENTITY_BYTES_MAX, cells, state_bytes
from riskengine.policy import Examination, examine
from riskengine.spreads import links_of

Format = Literal["text", "json", "github", "sarif"]
FORMATS: Final[tuple[Format, ...]] = ("text", "json", "github", "sarif")


def check(folder: str | Path) -> list[Finding]:
    """Every error and warning of a policy folder, in the order of its files."""
    return findings_of(examine(folder))


def findings_of(examined: Examination) -> list[Finding]:
    """The findings of a folder that was read already, with the warnings added where it loads."""
    findings = list(examined.findings)
    if examined.definition is not None:
        findings += _unfit_models(examined.definition)
        findings += [_with_line(finding, examined) for finding in _warnings(examined.definition)]
    return sorted(findings, key=lambda finding: finding.place)


def report(findings: Sequence[Finding], format: Format = "text") -> str:
    """Findings as text for people, JSON, GitHub workflow commands or SARIF 2.1.0."""
    return _REPORTS[format](findings)


def explain(definition: Definition) -> dict[str, Any]:
    """What each feature and limit keeps, in plain values.

    `features` and `limits` by name: entity, window, bucket_ms (0 for calendar windows and where there is
    none), error_ms_max (how much of the oldest end of a window may be missing, or for a limit too much),
    cap (members of a distinct), cells (entries kept at most), bytes_max (share of the entity's state).
    `rules` by name, of limits too: then, risk, mode, wrong_when (whom it may hit that it is not meant for).
    `alerts` by name: of (what counts), by, over_ms, bucket_ms, above, clear, share, at_least.
    `entities` by name: bytes_max, and bytes_bound, past which a policy is refused.
    `spreads`, where lists do, by list: to, along, hops, degree, and links (entity, feature, other entity).
    """
    costs = state_bytes(definition)
    slack_ms = definition.lateness_ms + definition.skew_ms

    everything: list[Rule | Limit] = [*definition.rules.values(), *definition.limits.values()]

    def row(value: Feature | Limit) -> dict[str, Any]:
        bucket_ms = value.window.bucket_ms if value.window is not None else 0
        distinct = isinstance(value, Feature) and value.aggregate == "distinct"
        return {
            "entity": value.by,
            "window": _say_window(value.window),
            "bucket_ms": bucket_ms,
            "error_ms_max": bucket_ms,
            "cap": value.cap if isinstance(value, Feature) and distinct else None,
            "cells": cells(value, slack_ms),
            "bytes_max": costs[value.by].get(value.name, 0) if value.by is not None else 0,
        }

    spreads = {name: known.spreads for name, known in definition.lists.items() if known.spreads is not None}
    more = {"spreads": {name: _said_of(spread, definition) for name, spread in spreads.items()}}
    return {
        **(more if spreads else {}),
        "features": {name: row(feature) for name, feature in definition.features.items()},
        "limits": {name: row(limit) for name, limit in definition.limits.items()},
        "rules": {
            rule.name: {
                "then": rule.then,
                "risk": rule.risk if isinstance(rule, Rule) else 0.0,
                "mode": rule.mode,
                "wrong_when": rule.wrong_when,
            }
            for rule in everything
        },
        "alerts": {name: _explain_alert(alert, definition) for name, alert in definition.alerts.items()},
        "entities": {
            name: {"bytes_max": sum(cost.values()), "bytes_bound": ENTITY_BYTES_MAX}
            for name, cost in costs.items()
        },
    }


def _said_of(spread: Spread, definition: Definition) -> dict[str, Any]:
    links = [(link.by, link.name, link.field) for link in links_of(spread, definition.features)]
    said = {"to": spread.to, "along": spread.along, "hops": spread.hops, "degree": spread.degree}
    return {**said, "links": links}


def explain_text(definition: Definition) -> str:
    """`explain` as tables for people."""
    explained = explain(definition)
    rows = []
    for name, row in (*explained["features"].items(), *explained["limits"].items()):
        limit = name in explained["limits"]
        error = ""
        if row["bucket_ms"]:
            edge = "up to {} too much" if limit else "up to the oldest {} missing"
            error = edge.format(_say_ms(row["error_ms_max"]))
        elif row["window"]:
            error = "exact"
        rows.append(
            (
                name + (" (limit)" if limit else ""),
                row["entity"] or "",
                row["window"],
                _say_ms(row["bucket_ms"]) if row["bucket_ms"] else "",
                error,
                "" if row["cap"] is None else f"{row['cap']:,}",
                f"{row['cells']:,}",
                f"{row['bytes_max']:,}",
            )
        )
    counters = _table(
        ("feature", "entity", "window", "bucket", "window's edge", "cap", "cells", "bytes"), rows, right=3
    )
    totals = [
        (name, f"{row['bytes_max']:,}", f"{row['bytes_max'] / row['bytes_bound']:.0%}")
        for name, row in explained["entities"].items()
    ]
    entities = _table(("entity", "bytes at most", f"of {ENTITY_BYTES_MAX:,}"), totals, right=2)
    told = [
        (name, row["then"], row["mode"], row["wrong_when"])
        for name, row in explained["rules"].items()
        if row["wrong_when"] is not None
    ]
    if told:
        entities += "\n\n" + _table(("rule or limit", "then", "mode", "wrong when"), told, right=0)
    walks = "".join(
        f"\nA block on {name} is walked {said['hops']} steps at most, and through nothing that has more than "
        f"{said['degree']} others of a kind:\n"
        + "".join(f"  from a {by} to each {to} that {link} counts\n" for by, link, to in said["links"])
        for name, said in explained.get("spreads", {}).items()
    )
    if not definition.alerts:
        return f"{counters}\n\n{entities}\n{walks}"
    alerts = _table(
        ("alert", "counts", "by", "window", "begins above", "ends at"),
        [
            (
                name, row["of"], row["by"] or "", _say_ms(row["over_ms"]),
                _say_level(row["above"], row["share"], row["at_least"]),
                _say_level(row["clear"], row["share"]),
            )
            for name, row in explained["alerts"].items()
        ],
        right=0,
    )  # fmt: skip
    return f"{counters}\n\n{entities}\n\n{alerts}\n{walks}"


def _explain_alert(alert: Alert, definition: Definition) -> dict[str, Any]:
    """What counts, in words, and when an episode begins and ends."""
    of = ["any" if len(alert.types) == len(definition.events) else " or ".join(alert.types)]
    if alert.actions != ACTIONS:
        of.append(f"answered with {' or '.join(alert.actions)}")
    if alert.hits is not None:
        of.append(f"hit by {alert.hits}")
    if alert.when is not None:
        of.append(f"when {alert.when.source}")
    return {
        "of": ", ".join(of),
        "by": alert.by,
        "over_ms": alert.over_ms,
        "bucket_ms": alert.over_ms // ALERT_BUCKETS,
        "above": alert.above,
        "clear": alert.clear,
        "share": alert.is_share,
        "at_least": alert.least,
    }


def _say_level(level: float, is_share: bool, least: int = 0) -> str:
    text = f"{level:.4g}" if not is_share else f"{level * 100:.4g}%"
    return f"{text} of {least:,} or more" if least else text


def _unfit_models(definition: Definition) -> list[Finding]:
    if definition.model is None and not definition.challengers:
        return []
    from riskengine.models import examine_models  # and with it numba, which takes 0.3 s

    return examine_models(definition)[1]


# ---- warnings ---------------------------------------------------------------------------------------


def _warnings(definition: Definition) -> list[Finding]:
    return [
        *_never(definition),
        *_unused_features(definition),
        *_denied_in_silence(definition),
        *_same_condition(definition),
        *_idle_challenges(definition),
    ]


def _never(definition: Definition) -> Iterable[Finding]:
    """Conditions that hold for no event."""
    parts: list[tuple[str, tuple[str, ...], Expression | None]] = []
    for rule in definition.rules.values():
        if rule.mode != "off":
            parts.append((f"the rule {rule.name} can never fire", rule.types, rule.when))
    for limit in definition.limits.values():
        if limit.mode != "off":
            parts.append((f"the limit {limit.name} never applies", limit.types, limit.where))
    for feature in definition.features.values():
        parts.append((f"the feature {feature.name} never counts anything", feature.types, feature.where))
    for alert in definition.alerts.values():
        parts.append((f"the alert {alert.name} never counts anything", alert.types, alert.when))
        hit = definition.rules.get(alert.hits or "") or definition.limits.get(alert.hits or "")
        if hit is not None and hit.mode == "off":
            yield _warning(
                "never", alert.place, f"the alert {alert.name} never counts anything", length=len(alert.name),
                found=f"{hit.name} is off", mend="count what another rule hits, or remove the alert",
            )  # fmt: skip
    for rule in definition.rules.values():
        if rule.mode != "off" and rule.rollout == 0.0:
            yield _warning(
                "never", rule.place, f"the rule {rule.name} can never fire", length=len(rule.name),
                found="its rollout is 0%", mend="write `mode: off`, or roll it out to more than nobody",
            )  # fmt: skip
    for message, types, condition in parts:
        if condition is None:
            continue
        why = _why_never(definition, types, condition)
        if why is not None:
            yield _warning(
                "never", condition.place, message, length=len(condition.source), found=why,
                mend="correct the condition, or remove it",
            )  # fmt: skip


def _why_never(definition: Definition, types: Sequence[str], condition: Expression) -> str | None:
    reasons = []
    bounds = {name: _BOUNDS[f.aggregate] for name, f in definition.features.items() if f.aggregate in _BOUNDS}
    for name in types:
        carried = definition.events[name].fields
        absent = frozenset(field for field in definition.fields if field not in carried)
        mind = _Mind(absent, bounds)
        if mind.value(condition.term) is not False:
            return None
        reasons.append((name, mind.why))
    unconditional = [why for _, why in reasons if why]
    if len(unconditional) == len(reasons):
        return unconditional[0] if unconditional else None
    names = {symbol.name for symbol in condition.symbols() if symbol.name in definition.fields}
    told = []
    for name, _ in reasons:
        lacking = sorted(names.difference(definition.events[name].fields))
        if lacking:
            told.append(f"{name} has no field {', '.join(lacking)}")
    return "; ".join(told) or "it is false whatever the event says"


class _Unknown:
    """Any value at all."""


class _Missing:
    """A value that is not there."""


_UNKNOWN: Final = _Unknown()
_MISSING: Final = _Missing()
_Value = float | bool | _Unknown | _Missing

_STRICT: Final[Mapping[str, Callable[..., float]]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "mod": lambda a, b: math.fmod(math.fmod(a, b) + b, b),
    "min": min,
    "max": max,
    "neg": lambda a: -a,
    "abs": abs,
    "log": math.log,
}
_COMPARED: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}
# What the values of a feature lie between.
_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    **dict.fromkeys(("count", "distinct", "std", "speed", "since_first", "since_last"), (0.0, math.inf)),
    "rate": (0.0, 1.0),
}
_TURNED: Final = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}
_SIGNS: Final = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}


class _Mind:
    """What can be said of an expression knowing only which fields an event cannot have.

    It errs to not knowing: False means false for every such event. `why` then says so in words, unless
    it is only for the lack of a field.
    """

    def __init__(self, absent: frozenset[str], bounds: Mapping[str, tuple[float, float]]) -> None:
        self.absent = absent
        self.bounds = bounds  # of features: what their values lie between
        self.why: str | None = None

    def value(self, term: Term) -> _Value:
        op = term.op
        if op == "number":
            assert isinstance(term.value, float)
            return term.value != 0.0 if term.type == "bool" else term.value
        if op == "symbol":
            return _MISSING if self._is_absent(term) else _UNKNOWN
        if op in _COMPARED:
            return self._compared(term)
        if op == "and":
            return self._all(term)
        if op == "or":
            return self._any(term)
        if op == "not":
            value = self.value(term.args[0])
            return not value if isinstance(value, bool) else _UNKNOWN
        if op == "missing":
            value = self.value(term.args[0])
            return _UNKNOWN if isinstance(value, _Unknown) else isinstance(value, _Missing)
        if op == "text_missing":
            return True if self._is_absent(term.args[0]) else _UNKNOWN
        if op in ("text_in", "text_eq", "matches"):
            return False if any(map(self._is_absent, term.args)) else _UNKNOWN
        if op == "one_of":
            value = self.value(term.args[0])
            if isinstance(value, _Missing):
                return False
            assert isinstance(term.value, tuple)
            return _UNKNOWN if isinstance(value, _Unknown) else value in term.value
        if op == "if":
            test = self.value(term.args[0])
            if isinstance(test, _Unknown):
                then, other = self.value(term.args[1]), self.value(term.args[2])
                return then if then is other else _UNKNOWN
            return self.value(term.args[1] if test is True else term.args[2])
        if op == "default":
            value = self.value(term.args[0])
            return self.value(term.args[1]) if isinstance(value, _Missing) else value
        if op in _STRICT or op in ("hour", "weekday", "distance"):
            return self._strict(term)
        return _UNKNOWN

    def _is_absent(self, term: Term) -> bool:
        symbol = term.value
        return (
            isinstance(symbol, Symbol)
            and symbol.name.removesuffix(".lat").removesuffix(".lon") in self.absent
        )

    def _strict(self, term: Term) -> _Value:
        values = [self.value(arg) for arg in term.args]
        if any(isinstance(value, _Missing) for value in values):
            return _MISSING
        if any(isinstance(value, _Unknown) for value in values) or term.op not in _STRICT:
            return _UNKNOWN
        try:
            result = _STRICT[term.op](*values)
        except (ZeroDivisionError, ValueError):
            return _MISSING
        return result if math.isfinite(result) else _UNKNOWN

    def _compared(self, term: Term) -> _Value:
        left, right = self.value(term.args[0]), self.value(term.args[1])
        if isinstance(left, _Missing) or isinstance(right, _Missing):
            return False
        if isinstance(left, _Unknown) or isinstance(right, _Unknown):
            if term.op in ("lt", "gt", "ne") and term.args[0] == term.args[1]:
                self.why = "it compares a value with itself"
                return False
            if isinstance(left, float) or isinstance(right, float):
                return self._out_of_bounds(term, left, right)
            return _UNKNOWN
        return _COMPARED[term.op](left, right)

    def _out_of_bounds(self, term: Term, left: _Value, right: _Value) -> _Value:
        """Of a feature beside a constant: false where no value it can have compares so."""
        op, feature, constant = term.op, term.args[0], right
        if isinstance(left, float):
            op, feature, constant = _TURNED[op], term.args[1], left
        name = feature.value.name if isinstance(feature.value, Symbol) else ""
        if feature.op != "symbol" or name not in self.bounds or not isinstance(constant, float):
            return _UNKNOWN
        low, high = self.bounds[name]
        possible = {
            "lt": low < constant, "le": low <= constant, "gt": high > constant, "ge": high >= constant,
            "eq": low <= constant <= high, "ne": True,
        }  # fmt: skip
        if possible[op]:
            return _UNKNOWN
        self.why = f"{name} is never " + (f"below {low:g}" if constant <= low else f"above {high:g}")
        return False

    def _any(self, term: Term) -> _Value:
        values = [self.value(arg) for arg in term.args]
        if any(value is True for value in values):
            return True
        return False if all(value is False or isinstance(value, _Missing) for value in values) else _UNKNOWN

    def _all(self, term: Term) -> _Value:
        """Of a conjunction: also false when its parts leave no value for one variable."""
        parts = list(_parts(term))
        unknown = False
        for part in parts:
            value = self.value(part)
            if value is False or isinstance(value, _Missing):
                self.why = self.why or ("it is false" if part.op == "number" else None)
                return False
            unknown = unknown or isinstance(value, _Unknown)
        self.why = None
        clash = self._clash(parts)
        if clash is not None:
            self.why = clash
            return False
        return _UNKNOWN if unknown else True

    def _clash(self, parts: Sequence[Term]) -> str | None:
        ranges: dict[str, _Range] = {}
        texts: dict[str, frozenset[str]] = {}
        held = {_key(part) for part in parts}
        for part in parts:
            if part.op == "not" and _key(part.args[0]) in held:
                return f"{_say(part.args[0])} and its opposite cannot both hold"
            if part.op == "text_in":
                name = _key(part.args[0])
                assert isinstance(part.value, tuple)
                wanted = frozenset(str(value) for value in part.value)
                left = texts[name] = texts.get(name, wanted) & wanted
                if not left:
                    return f"{_say(part.args[0])} cannot be two texts at once"
            for term, op, bound in self._bounds(part):
                found = ranges.setdefault(_key(term), _Range())
                before = found.said
                if not found.narrow(op, bound, term.type):
                    now = f"{_say(term)} {_SIGNS[op]} {_bound(bound, term.type)}"
                    return f"{_say(term)} {before} and {now} cannot both hold"
        return None

    def _bounds(self, part: Term) -> Iterable[tuple[Term, str, float]]:
        if part.op not in _SIGNS:
            return
        left, right = part.args
        here, there = self.value(left), self.value(right)
        if isinstance(here, _Unknown) and isinstance(there, int | float):
            yield left, part.op, float(there)
        elif isinstance(there, _Unknown) and isinstance(here, int | float):
            yield right, _TURNED[part.op], float(here)


class _Range:
    """The values that are left for one variable."""

    def __init__(self) -> None:
        self.low, self.low_open = -math.inf, False
        self.high, self.high_open = math.inf, False
        self.said = ""

    def narrow(self, op: str, bound: float, type: str) -> bool:
        """Take in one comparison; False when nothing is left."""
        if op in ("gt", "ge", "eq") and (bound, op == "gt") > (self.low, self.low_open):
            self.low, self.low_open = bound, op == "gt"
        if op in ("lt", "le", "eq") and (bound, op != "lt") < (self.high, not self.high_open):
            self.high, self.high_open = bound, op == "lt"
        empty = self.low > self.high or (self.low == self.high and (self.low_open or self.high_open))
        if not empty:
            self.said = f"{self.said} and {_SIGNS[op]} {_bound(bound, type)}".removeprefix(" and ")
        return not empty


def _parts(term: Term) -> Iterable[Term]:
    if term.op != "and":
        yield term
        return
    for arg in term.args:
        yield from _parts(arg)


def _unused_features(definition: Definition) -> Iterable[Finding]:
    if definition.model is not None or definition.challengers:  # a model may be made of any of them
        return
    spreads = [known.spreads for known in definition.lists.values() if known.spreads is not None]
    used = {link.name for spread in spreads for link in links_of(spread, definition.features)}
    open_: list[Expression] = [rule.when for rule in definition.rules.values()]
    open_ += [alert.when for alert in definition.alerts.values() if alert.when is not None]
    while open_:
        for symbol in open_.pop().symbols():
            feature = definition.features.get(symbol.name)
            if feature is not None and feature.name not in used:
                used.add(feature.name)
                if feature.value is not None:
                    open_.append(feature.value)
    for feature in definition.features.values():
        if feature.name not in used:
            yield _warning(
                "unused-feature", feature.place, f"nothing uses the feature {feature.name}",
                length=len(feature.name), mend="use it in a rule, or remove it: it costs memory and time",
            )  # fmt: skip


def _denied_in_silence(definition: Definition) -> Iterable[Finding]:
    everything: list[tuple[str, Rule | Limit]] = [("rule", rule) for rule in definition.rules.values()]
    everything += [("limit", limit) for limit in definition.limits.values()]
    for what, value in everything:
        if value.mode != "off" and value.then == "deny" and value.message is None:
            yield _warning(
                "no-message", value.place, f"the {what} {value.name} denies without a message",
                length=len(value.name), expected="a message that can be shown",
                mend="add `message: {zh: ..., en: ...}`",
            )  # fmt: skip


def _same_condition(definition: Definition) -> Iterable[Finding]:
    seen: dict[str, list[Rule]] = {}
    for rule in definition.rules.values():
        if rule.mode == "off":
            continue
        others = seen.setdefault(_key(rule.when.term), [])
        first = next((other for other in others if set(other.types) & set(rule.types)), None)
        others.append(rule)
        if first is not None:
            yield _warning(
                "same-condition", rule.when.place, f"the rule {rule.name} has the condition of {first.name}",
                length=len(rule.when.source), found=f"{first.name} at {first.place}",
                mend="make one rule of the two, or tell their conditions apart",
            )  # fmt: skip


def _idle_challenges(definition: Definition) -> Iterable[Finding]:
    everything: list[Rule | Limit] = [*definition.rules.values(), *definition.limits.values()]
    for value in everything:
        if value.challenge is not None and value.then != "challenge":
            yield _warning(
                "idle-challenge", value.place,
                f"`challenge` of {value.name} does nothing: its `then` is {value.then}",
                length=len(value.name), mend="write `then: challenge`, or remove `challenge`",
            )  # fmt: skip


def _key(term: Term) -> str:
    """A text that is one for conditions that mean the same, whatever order they are written in."""
    op, args = term.op, [_key(arg) for arg in term.args]
    if op in ("gt", "ge"):
        op, args = _TURNED[op], args[::-1]
    if op in ("and", "or"):
        flat = [part for arg in term.args for part in (_parts(arg) if op == "and" else (arg,))]
        args = [_key(part) for part in flat]
    if op in ("and", "or", "eq", "ne", "add", "mul", "text_eq", "text_ne"):
        args.sort()
    value = term.value.name if isinstance(term.value, Symbol) else term.value
    return f"{op}:{value!r}({','.join(args)})"


def _say(term: Term) -> str:
    """A term in a few words."""
    if isinstance(term.value, Symbol):
        return term.value.name
    return "the condition" if term.type == "bool" else "the value"


def _bound(value: float, type: str) -> str:
    if type == "time":
        return "a time"
    return _say_ms(round(value * 1000)) if type == "duration" and value > 0 else f"{value:g}"


def _warning(
    code: str,
    place: Place | None,
    message: str,
    *,
    length: int,
    found: str | None = None,
    expected: str | None = None,
    mend: str | None = None,
) -> Finding:
    return Finding(
        severity="warning",
        code=code,
        place=place or Place("", 1, 1),
        message=message,
        found=found,
        expected=expected,
        mend=mend,
        length=length,
    )


def _with_line(finding: Finding, examined: Examination) -> Finding:
    source = examined.sources.get(finding.place.file)
    if source is None or finding.place.line > len(source.lines):
        return finding
    line = source.lines[finding.place.line - 1]
    length = min(finding.length, max(1, len(line.rstrip()) - finding.place.column + 1))
    return msgspec.structs.replace(finding, source_line=line, length=length)


# ---- formats ----------------------------------------------------------------------------------------


def _text(findings: Sequence[Finding]) -> str:
    shown = [render(finding) for finding in findings]
    return "\n\n".join((*shown, _summary(findings))) + "\n"


def _summary(findings: Sequence[Finding]) -> str:
    if not findings:
        return "no findings"
    errors = sum(finding.severity == "error" for finding in findings)
    counts = ((errors, "error"), (len(findings) - errors, "warning"))
    return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts if count)


def _json(findings: Sequence[Finding]) -> str:
    errors = sum(finding.severity == "error" for finding in findings)
    value = {
        "errors": errors,
        "warnings": len(findings) - errors,
        "findings": [
            {
                "severity": finding.severity,
                "code": finding.code,
                "file": finding.place.file,
                "line": finding.place.line,
                "column": finding.place.column,
                "length": finding.length,
                "message": finding.message,
                "found": finding.found,
                "expected": finding.expected,
                "mend": finding.mend,
            }
            for finding in findings
        ],
    }
    return _pretty(value)


def _github(findings: Sequence[Finding]) -> str:
    """https://docs.github.com/actions/reference/workflow-commands-for-github-actions"""
    lines = []
    for finding in findings:
        place = finding.place
        properties = {
            "file": place.file,
            "line": str(place.line),
            "col": str(place.column),
            "endColumn": str(place.column + finding.length),
            "title": finding.code,
        }
        said = ",".join(f"{name}={_github_property(value)}" for name, value in properties.items())
        lines.append(f"::{finding.severity} {said}::{_github_data(_told(finding))}\n")
    return "".join(lines)


def _github_data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _github_property(text: str) -> str:
    return _github_data(text).replace(":", "%3A").replace(",", "%2C")


def _sarif(findings: Sequence[Finding]) -> str:
    """https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html"""
    codes = sorted({finding.code for finding in findings})
    value = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "riskengine", "rules": [{"id": code} for code in codes]}},
                "columnKind": "unicodeCodePoints",
                "results": [
                    {
                        "ruleId": finding.code,
                        "ruleIndex": codes.index(finding.code),
                        "level": finding.severity,
                        "message": {"text": _told(finding)},
                        "locations": [
                            {
                                "physicalLocation": {
                                    "artifactLocation": {"uri": _uri(finding.place.file)},
                                    "region": {
                                        "startLine": finding.place.line,
                                        "startColumn": finding.place.column,
                                        "endColumn": finding.place.column + finding.length,
                                    },
                                }
                            }
                        ],
                    }
                    for finding in findings
                ],
            }
        ],
    }
    return _pretty(value)


def _told(finding: Finding) -> str:
    """A finding in one paragraph, for programs that show no caret."""
    more = (("found", finding.found), ("expected", finding.expected), ("mend", finding.mend))
    return "\n".join((finding.message, *(f"{name}: {text}" for name, text in more if text is not None)))


def _uri(file: str) -> str:
    path = Path(file)
    return path.as_uri() if path.is_absolute() else urllib.parse.quote(path.as_posix())


def _pretty(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


_REPORTS: Final[Mapping[Format, Callable[[Sequence[Finding]], str]]] = {
    "text": _text,
    "json": _json,
    "github": _github,
    "sarif": _sarif,
}


# ---- small texts ------------------------------------------------------------------------------------


def _say_window(window: Window | None) -> str:
    if window is None:
        return ""
    said = f"over {_say_ms(window.width_ms)}" if window.kind == "over" else f"per {window.kind}"
    return f"{said}, delay {_say_ms(window.delay_ms)}" if window.delay_ms else said


def _say_ms(ms: int) -> str:
    """`2h48m` for 10,080,000."""
    said = ""
    for name, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)):
        count, ms = divmod(ms, size)
        if count:
            said += f"{count}{name}"
    return said or "0s"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: int) -> str:
    """Columns under a head; the last `right` of them are numbers."""
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    left = len(head) - right
    lines = []
    for row in (head, ["-" * width for width in widths], *rows):
        padded = [
            text.ljust(width) if at < left else text.rjust(width)
            for at, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
