"""Rule tests (`*.test.yaml`): events at virtual times through a fresh engine, and what is expected of each.

A test file that says something wrong (an unknown rule, a misspelled field, no expectation at all) is a
finding with its place, like any error of a policy: a test must be able to fail.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from riskengine.definition import ACTIONS, CHALLENGES, LABELS, Definition, Feature, Limit, Rule
from riskengine.errors import EventError, Finding, Place, nearest, render
from riskengine.expression import rfc3339_ms
from riskengine.policy import load_definition
from riskengine.scalars import parse_duration
from riskengine.source import MappingNode, Node, ScalarNode, SequenceNode, Source, read_source
from riskengine.vocabulary import ENVELOPE

if TYPE_CHECKING:
    from riskengine.decision import Decision
    from riskengine.entries import AlertEntry

RISK_TOLERANCE = 1e-6
FEATURE_TOLERANCE = 1e-9  # relative: a mean of cents may differ from its decimal text in the last place

REPEAT_MAX = 10_000
EXPECTED_UNDER = {"live": "expect it under `fired`", "shadow": "expect it under `shadow`"}  # by mode

Value = float | int | str | bool | None  # of a feature; None is missing
Items = Mapping[str, tuple[ScalarNode, Node]]


class Judge(Protocol):
    """What a rule test needs of an engine (`riskengine.Engine`)."""

    def score(self, event: Mapping[str, Any], features: bool = False) -> Decision:
        """Decide one event; EventError where it may not be scored."""

    def label(self, event_id: str, label: Any, time: int | None = None) -> bool:
        """Say what became known of an event; False where it is not known."""

    def release(self, event_id: str) -> bool:
        """Give back what an event holds of limits."""

    def on_alert(self, told: Callable[[AlertEntry], None]) -> None:
        """Have `told` called with what becomes of episodes. Asked for only where the policy has alerts."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One expectation that did not hold."""

    what: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Failure:
    """What one step did otherwise than expected. `features`: the event's row, missing values left out."""

    place: Place
    step: str
    mismatches: tuple[Mismatch, ...]
    features: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """One test, run."""

    name: str
    place: Place
    failures: tuple[Failure, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every expectation held."""
        return not self.failures


@dataclass(frozen=True, slots=True)
class Gap:
    """A rule, limit or alert that no test shows firing, or none shows not firing."""

    kind: str  # rule | limit | alert
    name: str
    lacks: tuple[str, ...]  # firing, non-firing
    place: Place | None


@dataclass(frozen=True, slots=True)
class Report:
    """All tests of a folder, run. `gaps` is None where coverage was not asked for."""

    results: tuple[Result, ...]
    findings: tuple[Finding, ...]
    gaps: tuple[Gap, ...] | None
    pattern: str | None
    seconds: float

    @property
    def ok(self) -> bool:
        """At least one test, all passed, every file in order, and no gap where coverage was asked for."""
        return bool(self.results) and not self.findings and not self.failed and not self.gaps

    @property
    def failed(self) -> int:
        """How many tests failed."""
        return sum(not result.passed for result in self.results)


def run_tests(
    rules: str | Path,
    pattern: str | None = None,
    *,
    coverage: bool = False,
    stopwatch: Callable[[], float] | None = None,
    open_engine: Callable[[Definition, Callable[[], int]], Judge] | None = None,
) -> Report:
    """Run every `*.test.yaml` below a policy folder.

    `pattern` picks tests by a part of `file: name` (a glob if it has `*` or `?`). `stopwatch` gives
    seconds; without one no times are measured. `open_engine` makes the engine of one test from the policy
    and a clock in epoch ms; it is riskengine's own unless said. Raises PolicyError for the policy itself.
    """
    definition = load_definition(rules)
    open_engine = open_engine or _open_engine
    stopwatch = stopwatch or (lambda: 0.0)
    tests, findings = _read_tests(Path(rules), definition)
    seen = _Coverage(definition)
    results = []
    began = stopwatch()
    for test in tests:
        if pattern is None or _picked(pattern, test):
            results.append(_run(test, definition, seen, open_engine, stopwatch))
    return Report(
        results=tuple(results),
        findings=tuple(findings),
        gaps=tuple(seen.gaps()) if coverage else None,
        pattern=pattern,
        seconds=stopwatch() - began,
    )


def render_report(report: Report) -> str:
    """The report as text for a terminal of 80 columns."""
    return "\n".join(_render(report))


def to_json(report: Report) -> bytes:
    """The report as one JSON object."""
    return msgspec.json.encode(
        {
            "ok": report.ok,
            "passed": len(report.results) - report.failed,
            "failed": report.failed,
            "seconds": report.seconds,
            "tests": [{**_fields(result), "passed": result.passed} for result in report.results],
            "findings": report.findings,
            "gaps": report.gaps,
        }
    )


# -- what a test file says


@dataclass(frozen=True, slots=True)
class _Between:
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class _Expected:
    """None: nothing is expected of it."""

    action: str | None = None
    challenge: str | None = None
    fired: tuple[str, ...] | None = None
    not_fired: tuple[str, ...] = ()
    shadow: tuple[str, ...] | None = None
    flags: tuple[str, ...] | None = None
    risk: _Between | None = None
    features: Mapping[str, Value] = field(default_factory=dict)
    problem: str | None = None
    alerts: tuple[str, ...] | None = None  # whose episode begins with this event


@dataclass(frozen=True, slots=True)
class _Step:
    place: Place
    at_ms: int  # since the start


@dataclass(frozen=True, slots=True)
class _EventStep(_Step):
    event: Mapping[str, Any]
    expected: _Expected | None


@dataclass(frozen=True, slots=True)
class _Call(_Step):
    """A label, a release or an edit: a method of the engine, and what must come back from it."""

    what: str
    method: str
    arguments: tuple[Any, ...]
    expected: bool | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Test:
    name: str
    place: Place
    start_ms: int
    steps: tuple[_EventStep | _Call, ...]


def _read_tests(root: Path, definition: Definition) -> tuple[list[_Test], list[Finding]]:
    paths = sorted(
        path for suffix in ("*.test.yaml", "*.test.yml") for path in root.rglob(suffix) if path.is_file()
    )
    tests: list[_Test] = []
    findings: list[Finding] = []
    for path in paths:
        source = read_source(path, str(path))
        tests += _Reader(source, definition).tests()
        findings += source.findings
    if not paths:
        findings.append(
            Finding(
                code="no-tests",
                place=Place(str(root), 1, 1),
                message="the folder has no *.test.yaml file",
                mend="write one beside the rules: a policy without tests is not tested",
            )
        )
    return tests, sorted(findings, key=lambda finding: finding.place)


class _Reader:
    """One test file. A test with an error in it is not run; the others are."""

    def __init__(self, source: Source, definition: Definition) -> None:
        self.source = source
        self.definition = definition
        self.start_ms = 0
        self.ids: list[str] = []

    def tests(self) -> Iterator[_Test]:
        source = self.source
        if source.root is None:
            if not source.findings:
                source.error_at(1, 1, "no-tests", "the file is empty", expected="start: and tests:")
            return
        items = source.items(source.root, "a test file", ("start", "tests"))
        for key in ("start", "tests"):
            if key not in items and not source.findings:
                source.error(source.root, "missing-key", f"a test file needs `{key}:`")
        if "start" in items:
            self.start_ms = self.time(items["start"][1], "`start`") or 0
        names: set[str] = set()
        nodes = source.sequence(items["tests"][1], "`tests`") if "tests" in items else []
        if "tests" in items and not nodes and not source.findings:
            source.error(items["tests"][1], "no-tests", "`tests` is empty", expected="at least one test")
        file_findings = len(source.findings)
        for node in nodes:
            before = len(source.findings)
            test = self.test(node)
            if test is not None and test.name in names:
                source.error(node, "duplicate-name", f"there is a test {test.name!r} already in this file")
            if test is not None and len(source.findings) == before and not file_findings:
                names.add(test.name)
                yield test

    def test(self, node: Node) -> _Test | None:
        items = self.source.items(node, "a test", ("name", "lists", "events"))
        for key in ("name", "events"):
            if items and key not in items:
                self.source.error(node, "missing-key", f"a test needs `{key}:`")
        if "name" not in items or "events" not in items:
            return None
        name = self.source.text_of(items["name"][1], "a test's name")
        self.ids = []
        steps: list[_EventStep | _Call] = [*self.lists(items["lists"][1])] if "lists" in items else []
        at_ms = 0
        for step_node in self.source.sequence(items["events"][1], "`events`"):
            more = self.step(step_node, at_ms)
            at_ms = more[-1].at_ms if more else at_ms
            steps += more
        if not any(isinstance(step, _EventStep) and step.expected for step in steps):
            self.source.error(
                items["name"][0],
                "expects-nothing",
                "this test expects nothing, so it cannot fail",
                mend="give an event an `expect: {action: ...}`",
            )
        return _Test(name, self.source.place(node), self.start_ms, tuple(steps)) if name else None

    def lists(self, node: Node) -> Iterator[_Call]:
        """What stands on the lists before the first event: {list: {entity: [values]}}."""
        source, known = self.source, self.definition.lists
        for name, (key, entities) in source.items(node, "`lists`").items():
            if name not in known:
                source.unknown(key, f"there is no list {name!r}", known)
                continue
            for entity, (_, values) in source.items(entities, f"the list {name}", known[name].of).items():
                for part in source.sequence(values, f"the entries of {name}"):
                    value = self.entry(part)
                    if value is not None:
                        yield _Call(
                            source.place(part),
                            0,
                            f"add to the list {name}",
                            "list_put",
                            (name, entity, value),
                        )

    def step(self, node: Node, at_ms: int) -> Sequence[_EventStep | _Call]:
        items = self.source.items(node, "a step")
        if not items:
            return ()
        if "at" in items:
            at_ms = self.at(items["at"][1], at_ms)
        place = self.source.place(node)
        if "type" in items:
            return self.event(node, place, at_ms)
        kinds = [kind for kind in _STEPS if kind in items]
        if len(kinds) != 1:
            self.source.error(
                node,
                "wrong-step",
                "a step is an event with its `type`, or one of " + ", ".join(f"`{kind}`" for kind in _STEPS),
                found=", ".join(items),
            )
            return ()
        known = ("at", kinds[0], "of", "time") if kinds[0] == "label" else ("at", kinds[0])
        items = self.source.items(node, f"a {kinds[0]} step", known)
        call = _STEPS[kinds[0]](self, items[kinds[0]][1], place, at_ms, items)
        return () if call is None else (call,)

    def event(self, node: Node, place: Place, at_ms: int) -> Sequence[_EventStep]:
        items = self.source.items(node, "an event")
        type_name = self.source.text_of(items["type"][1], "an event's type")
        known = self.definition.events
        if type_name is None:
            return ()
        if type_name not in known:
            self.source.unknown(items["type"][1], f"there is no event type {type_name!r}", known)
            return ()
        fields = {*ENVELOPE, *known[type_name].fields}
        event: dict[str, Any] = {}
        for name, (key, value) in items.items():
            if name == "id":
                event["event_id"] = self.value(value)
            elif name in fields:
                event[name] = self.value(value)
            elif name not in _EVENT_KEYS:
                self.source.unknown(key, f"{type_name} has no field {name!r}", fields | _EVENT_KEYS)
        if "follows" in items:
            self.known_id(items["follows"][1])
        expected = self.expected(items["expect"][1]) if "expect" in items else None
        times, every_ms = self.repeat(node, items)
        steps = []
        for n in range(1, times + 1):
            one = _numbered(event, str(n)) if times > 1 else event
            one = {"event_id": f"t{len(self.ids) + 1}", **one}
            self.ids.append(str(one["event_id"]))
            steps.append(_EventStep(place, at_ms + (n - 1) * every_ms, one, expected))
        return steps

    def repeat(self, node: Node, items: Items) -> tuple[int, int]:
        """How many times an event comes, and how far apart in ms."""
        if "repeat" not in items:
            if "every" in items:
                self.source.error(items["every"][0], "missing-key", "`every` needs `repeat: TIMES`")
            return 1, 0
        times = self.source.scalar(items["repeat"][1]) if type(items["repeat"][1]) is ScalarNode else None
        if type(times) is not int or not 2 <= times <= REPEAT_MAX:
            self.source.error(
                items["repeat"][1], "wrong-value", "`repeat` is how many times the event comes",
                expected=f"a whole number from 2 to {REPEAT_MAX:,}",
            )  # fmt: skip
            return 1, 0
        if "every" not in items:
            self.source.error(node, "missing-key", "`repeat` needs `every: DURATION`")
            return 1, 0
        return times, self.duration(items["every"][1], "`every` is how far apart the events are") or 0

    def label(self, node: Node, place: Place, at_ms: int, items: Items) -> _Call | None:
        """`label: fraud, of: ID`, or `label: {event: ID, label: fraud}`."""
        of = "of"
        if type(node) is MappingNode:
            items, of = self.source.items(node, "a label", ("event", "label", "time")), "event"
        event_id = self.needed(node, items, of)
        label = self.needed(node, items, "label")
        if event_id is None or label is None:
            return None
        self.known_id(items[of][1])
        self.one_of(items["label"][1], "a label", LABELS)
        time_ms = self.time(items["time"][1], "a label's time") if "time" in items else self.start_ms + at_ms
        return _Call(place, at_ms, f"label {event_id}", "label", (event_id, label), True, {"time": time_ms})

    def release(self, node: Node, place: Place, at_ms: int, _: Items) -> _Call | None:
        event_id = self.known_id(node)
        return (
            None if event_id is None else _Call(place, at_ms, f"release {event_id}", "release", (event_id,))
        )

    def list_edit(self, node: Node, place: Place, at_ms: int, _: Items) -> _Call | None:
        items = self.source.items(node, "a list edit", ("add", "remove", "entity", "value", "expires"))
        op = self.operation(node, items, ("add", "remove"))
        if op is None:
            return None
        name = self.one_of(items[op][1], "the list", self.definition.lists)
        entity = self.needed(node, items, "entity")
        if "value" not in items:
            self.source.error(node, "missing-key", "`value:` is missing here")
        value = self.entry(items["value"][1]) if "value" in items else None
        if name is None or entity is None or value is None:
            return None
        self.one_of(items["entity"][1], f"an entity of {name}", self.definition.lists[name].of)
        options: dict[str, Any] = {}
        if "expires" in items:
            if op == "remove":
                self.source.error(items["expires"][0], "wrong-key", "what is removed has no `expires`")
            options["expires"] = self.moment(items["expires"][1], at_ms)
        method = "list_put" if op == "add" else "list_delete"
        return _Call(place, at_ms, f"{op} on the list {name}", method, (name, entity, value), None, options)

    def entry(self, node: Node) -> str | tuple[str, ...] | None:
        """A list's entry: a text, or the texts of a composite entity."""
        if type(node) is SequenceNode:
            parts = [self.source.text_of(part, "an entry", literal=True) for part in node.value]
            return tuple(part for part in parts if part is not None)
        return self.source.text_of(node, "an entry", literal=True)

    def table_edit(self, node: Node, place: Place, at_ms: int, _: Items) -> _Call | None:
        items = self.source.items(node, "a table edit", ("put", "delete", "key", "row"))
        op = self.operation(node, items, ("put", "delete"))
        if op is None:
            return None
        live = [name for name, table in self.definition.tables.items() if table.rows is None]
        name = self.one_of(items[op][1], "a table without `from:`", live)
        key = self.needed(node, items, "key")
        if name is None or key is None:
            return None
        if op == "delete":
            if "row" in items:
                self.source.error(items["row"][0], "wrong-key", "what is deleted has no `row`")
            return _Call(place, at_ms, f"delete from {name}", "table_delete", (name, key))
        if "row" not in items:
            self.source.error(node, "missing-key", "a table edit needs `row:`")
            return None
        columns = self.source.items(items["row"][1], f"a row of {name}", self.definition.tables[name].columns)
        row = {column: self.value(value) for column, (_, value) in columns.items()}
        return _Call(place, at_ms, f"put into {name}", "table_put", (name, key, row))

    # Expectations

    def expected(self, node: Node) -> _Expected | None:
        source = self.source
        items = source.items(node, "an expectation", _EXPECTABLE)
        if not items:
            if type(node) is MappingNode and not node.value:
                source.error(node, "expects-nothing", "this expects nothing", expected=", ".join(_EXPECTABLE))
            return None
        said: dict[str, Any] = {}
        for name, (_, value) in items.items():
            match name:
                case "action":
                    said[name] = self.one_of(value, "an action", ACTIONS)
                case "challenge":
                    said[name] = self.one_of(value, "a challenge", CHALLENGES)
                case "fired" | "not_fired" | "shadow":
                    said[name] = self.hits(value, name)
                case "flags":
                    texts = [source.text_of(part, "a flag") for part in source.sequence(value, "`flags`")]
                    said[name] = tuple(text for text in texts if text is not None)
                case "risk":
                    said[name] = self.risk(value)
                case "features":
                    said[name] = self.features(value)
                case "alerts":
                    parts = source.sequence(value, "`alerts`")
                    names = [self.one_of(part, "an alert", self.definition.alerts) for part in parts]
                    said[name] = tuple(alert for alert in names if alert is not None)
                case "problem":
                    said[name] = source.text_of(value, "a problem's code")
        if "problem" in said and len(said) > 1:
            source.error(
                items["problem"][0], "wrong-key", "an event with a problem has no decision to expect"
            )
        return _Expected(**said)

    def hits(self, node: Node, which: str) -> tuple[str, ...]:
        hits: dict[str, Rule | Limit] = {**self.definition.rules, **self.definition.limits}
        names = []
        for part in self.source.sequence(node, f"`{which}`"):
            name = self.source.text_of(part, "a rule or limit")
            if name is None:
                continue
            if name not in hits:
                self.source.unknown(part, f"there is no rule or limit {name!r}", hits)
            elif which != "not_fired" and hits[name].mode != ("shadow" if which == "shadow" else "live"):
                self.source.error(
                    part,
                    "wrong-mode",
                    f"{name} is {hits[name].mode}, so it is never among `{which}`",
                    mend=EXPECTED_UNDER.get(hits[name].mode),
                )
            else:
                names.append(name)
        return tuple(names)

    def risk(self, node: Node) -> _Between | None:
        if type(node) is MappingNode:
            items = self.source.items(node, "a range of risk", ("min", "max"))
            least = self.number(items["min"][1], "`min`") if "min" in items else 0.0
            most = self.number(items["max"][1], "`max`") if "max" in items else 1.0
        else:
            least = most = self.number(node, "`risk`")
        if least is None or most is None:
            return None
        if not 0.0 <= least <= most <= 1.0:
            self.source.error(node, "wrong-value", "a risk is from 0 to 1, and `min` is at most `max`")
        return _Between(least - RISK_TOLERANCE, most + RISK_TOLERANCE)

    def features(self, node: Node) -> dict[str, Value]:
        expected: dict[str, Value] = {}
        known = self.definition.features
        for name, (key, value) in self.source.items(node, "`features`").items():
            if name not in known:
                self.source.unknown(key, f"there is no feature {name!r}", known)
            else:
                expected[name] = self.feature(value, known[name])
        return expected

    def feature(self, node: Node, feature: Feature) -> Value:
        """null is missing; durations may be written as `1h`, times as RFC 3339."""
        if self.source.is_null(node):
            return None
        value = self.source.scalar(node) if type(node) is ScalarNode else node
        match feature.type, value:
            case "bool", bool():
                return value
            case "string", str():
                return value
            case "number" | "duration" | "time", int() | float() if not isinstance(value, bool):
                return value
            case "duration", str() if (duration_ms := parse_duration(value)) is not None:
                return duration_ms / 1000
            case "time", str() if (time_ms := rfc3339_ms(value)) is not None:
                return time_ms
        self.source.error(
            node, "wrong-type", f"{feature.name} is a {feature.type}", expected=f"a {feature.type}, or null"
        )
        return None

    # Values

    def value(self, node: Node) -> Any:
        """Plain Python, as JSON would have given it."""
        if type(node) is MappingNode:
            return {name: self.value(value) for name, (_, value) in self.source.items(node, "a map").items()}
        if type(node) is SequenceNode:
            return [self.value(part) for part in self.source.sequence(node, "a list")]
        return self.source.scalar(node)

    def number(self, node: Node, what: str) -> float | None:
        value = self.source.scalar(node) if type(node) is ScalarNode else None
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        self.source.error(node, "wrong-type", f"{what} is a number")
        return None

    def time(self, node: Node, what: str) -> int | None:
        value = self.source.scalar(node) if type(node) is ScalarNode else None
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        time_ms = rfc3339_ms(value) if isinstance(value, str) else None
        if time_ms is None:
            self.source.error(
                node,
                "wrong-time",
                f"{what} is a time with its offset, or epoch milliseconds",
                mend="write it like 2026-11-11T00:00:00+08:00",
            )
        return time_ms

    def duration(self, node: Node, what: str) -> int | None:
        value = self.source.scalar(node) if type(node) is ScalarNode else None
        duration_ms = parse_duration(value) if isinstance(value, str) else None
        if duration_ms is None:
            self.source.error(
                node,
                "wrong-time",
                what,
                found=str(value) if value is not None else None,
                expected="a duration such as 0s, 90m, 1d or 1h30m",
            )
        return duration_ms

    def at(self, node: Node, before_ms: int) -> int:
        at_ms = self.duration(node, "`at` is how long after the start")
        if at_ms is None:
            return before_ms
        if at_ms < before_ms:
            self.source.error(
                node,
                "wrong-time",
                "steps come in the order in which they happen",
                found=f"{node.value}, after a step at {before_ms / 1000:g} s",
                mend="move the step up; an event that comes late has its own `time:`",
            )
            return before_ms
        return at_ms

    def moment(self, node: Node, at_ms: int) -> int | None:
        """A time, or how long from now."""
        value = self.source.scalar(node) if type(node) is ScalarNode else None
        duration_ms = parse_duration(value) if isinstance(value, str) else None
        if duration_ms is not None:
            return self.start_ms + at_ms + duration_ms
        return self.time(node, "`expires`")

    def needed(self, node: Node, items: Items, name: str) -> str | None:
        if name not in items:
            self.source.error(node, "missing-key", f"`{name}:` is missing here")
            return None
        return self.source.text_of(items[name][1], f"`{name}`")

    def operation(self, node: Node, items: Mapping[str, object], names: Sequence[str]) -> str | None:
        given = [name for name in names if name in items]
        if len(given) == 1:
            return given[0]
        if items:
            self.source.error(
                node, "wrong-step", "say one of " + " and ".join(f"`{name}: NAME`" for name in names)
            )
        return None

    def one_of(self, node: Node, what: str, known: Iterable[str]) -> str | None:
        name = self.source.text_of(node, what)
        if name is None or name in known:
            return name
        self.source.unknown(node, f"{what} cannot be {name!r}", known)
        return None

    def known_id(self, node: Node) -> str | None:
        event_id = self.source.text_of(node, "an event's id")
        if event_id is not None and event_id not in self.ids:
            near = nearest(event_id, self.ids)
            self.source.error(
                node,
                "unknown-name",
                f"no event {event_id!r} comes before this",
                expected=", ".join(self.ids) or "an event before it",
                mend=f"did you mean {near!r}?" if near else None,
            )
            return None
        return event_id


_EXPECTABLE = tuple(_Expected.__dataclass_fields__)
_EVENT_KEYS = frozenset({"at", "id", "repeat", "every", "expect"})  # of an event step, beside the event's own
_STEPS: Mapping[str, Callable[[_Reader, Node, Place, int, Items], _Call | None]] = {
    "label": _Reader.label,
    "release": _Reader.release,
    "list": _Reader.list_edit,
    "table": _Reader.table_edit,
}


def _numbered(value: Any, n: str) -> Any:
    """A copy with `{n}` in every text replaced."""
    match value:
        case str():
            return value.replace("{n}", n)
        case dict():
            return {name: _numbered(part, n) for name, part in value.items()}
        case list():
            return [_numbered(part, n) for part in value]
    return value


# -- running


def _open_engine(definition: Definition, clock: Callable[[], int]) -> Judge:
    from riskengine.engine import Engine

    return Engine.open(definition, clock=clock)


def _picked(pattern: str, test: _Test) -> bool:
    name = f"{Path(test.place.file).name}: {test.name}".casefold()
    pattern = pattern.casefold()
    return fnmatch.fnmatchcase(name, f"*{pattern}*") if set("*?") & set(pattern) else pattern in name


def _run(
    test: _Test,
    definition: Definition,
    seen: _Coverage,
    open_engine: Callable[[Definition, Callable[[], int]], Judge],
    stopwatch: Callable[[], float],
) -> Result:
    began = stopwatch()
    now = [test.start_ms]
    engine = open_engine(definition, lambda: now[0])
    began_now: list[str] = []
    if definition.alerts:
        engine.on_alert(lambda entry: began_now.append(entry.alert) if entry.begins else None)
    try:
        failures = []
        for step in test.steps:
            now[0] = test.start_ms + step.at_ms
            began_now.clear()
            failure = (
                _score(engine, step, seen, began_now) if isinstance(step, _EventStep) else _call(engine, step)
            )
            if failure is not None:
                failures.append(failure)
    finally:
        close = getattr(engine, "close", None)
        if close is not None:
            close()
    return Result(test.name, test.place, tuple(failures), stopwatch() - began)


def _score(engine: Judge, step: _EventStep, seen: _Coverage, alerts: Sequence[str]) -> Failure | None:
    name = f"event {step.event['event_id']}"
    expected = step.expected
    wanted = expected.problem if expected is not None else None
    try:
        decision = engine.score(step.event, features=True)
    except EventError as error:
        codes = [problem.code for problem in error.problems]
        if wanted in codes:
            return None
        text = "; ".join(f"{problem.code} ({problem.message})" for problem in error.problems)
        return Failure(step.place, name, (Mismatch("problem", wanted or "none", text),))
    if expected is None:
        return None
    seen.add(step.event["type"], decision)
    if expected.alerts is not None:
        seen.add_alerts(alerts)
    row = _row(decision)
    if wanted is not None:
        mismatches = [Mismatch("problem", wanted, f"none: the action is {decision.action}")]
    else:
        mismatches = list(_mismatches(expected, decision, row))
        if expected.alerts is not None and {*expected.alerts} != {*alerts}:
            mismatches.append(
                Mismatch("alerts", ", ".join(expected.alerts) or "none", ", ".join(alerts) or "none")
            )
    return Failure(step.place, name, tuple(mismatches), row) if mismatches else None


def _call(engine: Judge, step: _Call) -> Failure | None:
    try:
        found = getattr(engine, step.method)(*step.arguments, **step.options)
    except EventError as error:
        return Failure(step.place, step.what, (Mismatch("problem", "none", str(error)),))
    if step.expected is not None and found is not step.expected:
        return Failure(
            step.place, step.what, (Mismatch("result", "done", "the engine does not know that event"),)
        )
    return None


def _row(decision: Decision) -> dict[str, Value]:
    """The features of a decision that are not missing."""
    features = decision.features
    if isinstance(features, msgspec.UnsetType):
        return {}
    return {name: value for name, value in features.items() if not _is_missing(value)}


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _mismatches(expected: _Expected, decision: Decision, row: Mapping[str, Value]) -> Iterator[Mismatch]:
    if expected.action is not None and decision.action != expected.action:
        yield Mismatch("action", expected.action, decision.action)
    if expected.challenge is not None and decision.challenge != expected.challenge:
        yield Mismatch("challenge", expected.challenge, str(decision.challenge))
    for name in ("fired", "shadow", "flags"):
        wanted, found = getattr(expected, name), getattr(decision, name)
        if wanted is not None and set(wanted) != set(found):
            yield Mismatch(name, _names(wanted), _names(found))
    wrongly = [name for name in expected.not_fired if name in (*decision.fired, *decision.shadow)]
    if wrongly:
        yield Mismatch("not_fired", _names(expected.not_fired), f"fired: {_names(wrongly)}")
    risk = expected.risk
    if risk is not None and not risk.least <= decision.risk <= risk.most:
        least, most = risk.least + RISK_TOLERANCE, risk.most - RISK_TOLERANCE
        wanted = f"{least:.10g}" if most - least < RISK_TOLERANCE else f"{least:.10g} to {most:.10g}"
        yield Mismatch("risk", wanted, f"{decision.risk:.10g}")
    for name, value in expected.features.items():
        if not _agree(value, row.get(name)):
            yield Mismatch(name, _show(value), _show(row.get(name)))


def _agree(expected: Value, found: Value) -> bool:
    if isinstance(expected, str) or isinstance(found, str) or expected is None or found is None:
        return expected == found
    return math.isclose(expected, found, rel_tol=FEATURE_TOLERANCE, abs_tol=FEATURE_TOLERANCE)


class _Coverage:
    """Which rules and limits fired, and which did not, on events of which something was expected."""

    def __init__(self, definition: Definition) -> None:
        self.hits = {
            name: (kind, hit.types, hit.place)
            for kind, hits in (("rule", definition.rules), ("limit", definition.limits))
            for name, hit in hits.items()
            if hit.mode != "off"
        }
        self.alerts = definition.alerts
        self.began: set[str] = set()
        self.quiet: set[str] = set()
        self.fired: set[str] = set()
        self.silent: set[str] = set()

    def add_alerts(self, began: Sequence[str]) -> None:
        self.began.update(began)
        self.quiet.update(self.alerts.keys() - set(began))

    def add(self, type_name: str, decision: Decision) -> None:
        hits = {*decision.fired, *decision.shadow}
        self.fired |= hits
        self.silent.update(
            name for name, (_, types, _) in self.hits.items() if type_name in types and name not in hits
        )

    def gaps(self) -> Iterator[Gap]:
        for name, (kind, _, place) in self.hits.items():
            lacks = tuple(
                what
                for what, seen in (("firing", self.fired), ("non-firing", self.silent))
                if name not in seen
            )
            if lacks:
                yield Gap(kind, name, lacks, place)
        for name, alert in self.alerts.items():
            shown = (("firing", self.began), ("non-firing", self.quiet))
            lacks = tuple(what for what, seen in shown if name not in seen)
            if lacks:
                yield Gap("alert", name, lacks, alert.place)


# -- the report as text


def _render(report: Report) -> Iterator[str]:
    for finding in report.findings:
        yield from (render(finding), "")
    file = ""
    for result in report.results:
        if result.place.file != file:
            file = result.place.file
            yield file
        took = f"  ({result.seconds * 1000:.0f} ms)" if result.seconds else ""
        yield f"  {'ok  ' if result.passed else 'FAIL'} {result.name}{took}"
        for failure in result.failures:
            yield from _render_failure(failure)
    if report.gaps:
        yield from ("", "without an example:")
        width = max(len(gap.name) for gap in report.gaps)
        for gap in report.gaps:
            where = f"  {gap.place}" if gap.place else ""
            yield f"  {gap.kind:5} {gap.name:{width}}  no {' and no '.join(gap.lacks)} example{where}"
    if report.results or report.findings:
        yield ""
    yield _summary(report)


def _render_failure(failure: Failure) -> Iterator[str]:
    yield f"       {failure.place}: {failure.step}"
    width = max(len(mismatch.what) for mismatch in failure.mismatches)
    for mismatch in failure.mismatches:
        yield f"         {mismatch.what:{width}}  expected  {mismatch.expected}"
        yield f"         {'':{width}}  found     {mismatch.found}"
    if failure.features:
        yield "         features:"
        width = max(map(len, failure.features))
        for name, value in failure.features.items():
            yield f"           {name:{width}}  {_show(value)}"


def _summary(report: Report) -> str:
    if not report.results:
        if report.findings:
            return "no test was run"
        picked = f" matches {report.pattern!r}" if report.pattern is not None else " was found"
        return f"no test{picked}: that counts as a failure"
    passed = len(report.results) - report.failed
    took = f" in {report.seconds:.2f} s" if report.seconds else ""
    parts = [f"{passed} passed", f"{report.failed} failed"]
    if report.findings:
        parts.append(f"{len(report.findings)} error{'s' if len(report.findings) != 1 else ''} in test files")
    if report.gaps is not None:
        parts.append(f"{len(report.gaps)} without an example")
    return ", ".join(parts) + took


def _names(names: Iterable[str]) -> str:
    return f"[{', '.join(names)}]"


def _show(value: Value) -> str:
    match value:
        case None:
            return "missing"
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:.12g}"
    return str(value)


def _fields(result: Result) -> dict[str, Any]:
    return {name: getattr(result, name) for name in Result.__dataclass_fields__}
