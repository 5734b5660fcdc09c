"""The engine and the naive twin side by side: the same scenarios, and the same answers on random streams.

Floats are compared with ==. The engine sees each stream twice, in batches and one by one.
"""

from __future__ import annotations

import contextlib
import csv
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from modelled import predicted, usable, write_model
from naive import Naive, ProblemError
from strategies import (
    STARTS,
    Label,
    ListEdit,
    Release,
    Reload,
    Score,
    Step,
    TableEdit,
    World,
    streams,
    worlds,
)
from test_naive import SCENARIOS, Scenario

from riskengine import hashing
from riskengine.engine import Engine
from riskengine.errors import EventError
from riskengine.models import REASON
from riskengine.policy import load_definition

KEY = b"a key for tests of parity"
Tables = Mapping[str, Mapping[str, Mapping[str, Any]]]


class EngineSubject:
    """An engine behind the same door as the twin: its policy in a folder, its clock as told."""

    def __init__(self, folder: Path, policy: Mapping[str, Any], *, tables: Tables | None = None) -> None:
        self.folder, self.now = folder, 0
        write_policy(folder, policy, tables or {})
        self.engine = Engine.open(folder, store="memory://", clock=lambda: self.now, key=KEY)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()

    def score(self, event: Mapping[str, Any], now: int | None = None) -> dict[str, Any]:
        answer = self.score_many([event], now)[0]
        if isinstance(answer, ProblemError):
            raise answer
        return answer

    def score_many(
        self, events: Sequence[Mapping[str, Any]], now: int | None = None
    ) -> list[dict[str, Any] | ProblemError]:
        times = [event["time"] for event in events if isinstance(event.get("time"), int)]
        self.now = max([self.now, *times]) if now is None else now
        return [plain(answer) for answer in self.engine.score_many(list(events), features=True)]

    def label(
        self,
        event_id: str,
        label: str,
        time: int | None = None,
        source: str | None = None,
        now: int | None = None,
    ) -> bool:
        self._tick(now)
        return self.engine.label(event_id, "fraud" if label == "fraud" else "legit", time, source)

    def release(self, event_id: str, now: int | None = None) -> bool:
        self._tick(now)
        return self.engine.release(event_id)

    def list_put(
        self, name: str, entity: str, value: str, expires: int | None = None, now: int | None = None
    ) -> None:
        self._tick(now)
        self.engine.list_put(name, entity, value, expires=expires)

    def list_delete(self, name: str, entity: str, value: str, now: int | None = None) -> None:
        self._tick(now)
        self.engine.list_delete(name, entity, value)

    def table_put(self, name: str, key: str, row: Mapping[str, Any], now: int | None = None) -> None:
        self._tick(now)
        self.engine.table_put(name, key, row)

    def reload(
        self, policy: Mapping[str, Any], *, tables: Tables | None = None, now: int | None = None
    ) -> None:
        self._tick(now)
        write_policy(self.folder, policy, tables or {})
        self.engine.reload(self.folder)

    def _tick(self, now: int | None) -> None:
        self.now = self.now if now is None else now


def plain(answer: Any) -> dict[str, Any] | ProblemError:
    if isinstance(answer, EventError):
        return ProblemError(answer.problems[0].code)
    built: dict[str, Any] = msgspec.to_builtins(answer)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in built.items()}


def write_policy(folder: Path, policy: Mapping[str, Any], tables: Tables) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "policy.yaml").write_text(json.dumps(policy, ensure_ascii=False), encoding="utf-8")
    for name, spec in policy.get("tables", {}).items():
        if "from" not in spec:
            continue
        path = folder / spec["from"]
        path.parent.mkdir(exist_ok=True)
        columns = list(spec["columns"])
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["key", *columns])
            for key, row in tables.get(name, {}).items():
                rows.writerow([key, *("" if row.get(column) is None else row[column] for column in columns)])


def twin_of(world: World, model: Callable[[str, Mapping[str, Any]], float | None] | None = None) -> Naive:
    """The twin with the engine's order of ties and its numbers for values that are only known by hash."""
    keys = hashing.derive_keys(KEY, world.policy["policy"])

    def event_hash(event_id: str) -> int:
        number = hashing.event_hash(event_id, keys)
        return number - (1 << 64) if number >= 1 << 63 else number

    def member_key(_name: str, value: str) -> str:
        return f"{hashing.string_hash(value.encode(), keys):016x}"

    return Naive(world.policy, tables=world.tables, event_hash=event_hash, member_key=member_key, model=model)


@pytest.mark.parametrize("play", SCENARIOS, ids=lambda play: play.__name__)
def test_the_engine_plays(play: Scenario, tmp_path: Path) -> None:
    opened: list[EngineSubject] = []

    def open_subject(policy: Mapping[str, Any], *, tables: Tables | None = None) -> EngineSubject:
        folder = tmp_path / f"policy-{len(opened)}"
        folder.mkdir()
        opened.append(EngineSubject(folder, policy, tables=tables))
        return opened[-1]

    play(open_subject)
    for subject in opened:
        subject.engine.close()


class Recorder(EngineSubject):
    """An engine that keeps what it answers."""

    said: list[Any]

    def score_many(
        self, events: Sequence[Mapping[str, Any]], now: int | None = None
    ) -> list[dict[str, Any] | ProblemError]:
        answers = super().score_many(events, now)
        self.said += [str(answer) if isinstance(answer, ProblemError) else answer for answer in answers]
        return answers


def told(step: int) -> dict[str, list[Any]]:
    """What the engine answers in every `step`th scenario."""
    answers = {}
    for play in SCENARIOS[::step]:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            said: list[Any] = []

            def open_subject(
                policy: Mapping[str, Any],
                *,
                tables: Tables | None = None,
                folder: str = folder,
                said: list[Any] = said,
                stack: contextlib.ExitStack = stack,
            ) -> EngineSubject:
                subject = Recorder(Path(folder), policy, tables=tables)
                subject.said = said
                return stack.enter_context(subject)

            play(open_subject)
            answers[play.__name__] = said
    return answers


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(world=worlds())
def test_every_drawn_policy_is_valid(world: World) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_policy(Path(folder), world.policy, world.tables)
        assert list(load_definition(folder).features) == list(world.policy["features"])


@st.composite
def stories(draw: st.DrawFn) -> tuple[World, list[Step]]:
    world = draw(worlds())
    start_ms = int(datetime.fromisoformat(draw(st.sampled_from(STARTS))).timestamp()) * 1000
    return world, draw(streams(world, start_ms))


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(story=stories())
def test_engine_and_twin_agree(story: tuple[World, list[Step]]) -> None:
    world, steps = story
    with tempfile.TemporaryDirectory() as folder:
        agree(Path(folder), world, steps, twin_of(world))


@settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
)
@given(
    story=stories(), seed=st.integers(0, 9), types=st.sampled_from((("coupon_claim",), ("payment", "login")))
)
def test_engine_and_twin_agree_with_a_model(
    story: tuple[World, list[Step]], seed: int, types: tuple[str, ...]
) -> None:
    """Until the first reload, whose features may be others."""
    world, steps = story
    world.policy["model"] = "drawn"
    world.policy["rules"] |= {
        "likely": {"on": "any", "when": "model.p >= 0.4", "then": "review", "risk": 0.25, "mode": "live"},
        "unasked": {"on": "any", "when": "missing(model.p)", "then": "challenge"},
    }
    world.policy["decide"].setdefault("coupon_claim", {"review": 0.3, "deny": 0.7})
    with tempfile.TemporaryDirectory() as folder:
        write_policy(Path(folder), world.policy, world.tables)
        definition = load_definition(folder)
        assume(usable(definition))
        booster = write_model(Path(folder, "models", "drawn"), definition, types=types, seed=seed)

        def model(kind: str, row: Mapping[str, Any]) -> float | None:
            return predicted(booster, row) if kind in types else None

        twin = twin_of(world, model)
        agree(Path(folder), world, [*takewhile(lambda step: not isinstance(step, Reload), steps)], twin)


def agree(folder: Path, world: World, steps: Sequence[Step], twin: Naive) -> None:
    """Hold an engine asked in batches, and another one by one, to the twin. `folder` has the models."""
    with (
        EngineSubject(folder / "batches", world.policy, tables=world.tables) as in_batches,
        EngineSubject(folder / "lone", world.policy, tables=world.tables) as one_by_one,
    ):
        for number, step in enumerate(steps):
            expected = take(twin, step)
            assert comparable(take(in_batches, step)) == comparable(expected), f"in batches, at step {number}"
            lone = [part for single in singly(step) for part in take(one_by_one, single)]
            assert comparable(lone) == comparable(expected), f"one by one, at step {number}"


def take(subject: Naive | EngineSubject, step: Step) -> list[Any]:
    """Do one step of a story; what came of it."""
    match step:
        case Score(now, events):
            return list(subject.score_many(events, now))
        case Label(now, event_id, label, time):
            subject.label(event_id, label, time, now=now)
        case Release(now, event_id):
            return [subject.release(event_id, now)]
        case ListEdit(now, True, name, entity, value, expires):
            subject.list_put(name, entity, value, expires, now)
        case ListEdit(now, _, name, entity, value):
            subject.list_delete(name, entity, value, now)
        case TableEdit(now, name, key, row):
            subject.table_put(name, key, row, now)
        case Reload(now, world):
            subject.reload(world.policy, tables=world.tables, now=now)
    return []


def singly(step: Step) -> list[Step]:
    return [Score(step.now, (event,)) for event in step.events] if isinstance(step, Score) else [step]


SAID = (
    "event_id", "action", "risk", "challenge", "reasons", "fired", "shadow", "model", "flags", "time",
    "features",
)  # fmt: skip


def reasons_of_rules(answer: Mapping[str, Any]) -> list[Any]:
    return [reason for reason in answer["reasons"] if not reason["rule"].startswith(REASON)]


def comparable(answers: list[Any]) -> list[Any]:
    """What both must say. Of a problem, that there is one (and whether it is a conflict).

    What the model says of its p is no part of it (test_serving.py).
    """
    return [
        ("problem", answer.code == "conflict")
        if isinstance(answer, ProblemError)
        else {name: answer[name] for name in SAID} | {"reasons": reasons_of_rules(answer)}
        if isinstance(answer, dict)
        else answer
        for answer in answers
    ]
