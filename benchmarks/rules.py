"""Analysts' rules: what 100 cost an event, beside rule-engine and zen-engine, and what a reload costs.

All three are given the same texts and rows, and must agree with Python itself on every rule before any is
timed. They are timed in turns.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import medians
from riskengine.calendar import timezone_table
from riskengine.compiled import Policy
from riskengine.definition import Rule
from riskengine.errors import Place
from riskengine.expression import Expression, Symbol, parse_and_check
from riskengine.policy import load_definition
from riskengine.program import Layout, run
from riskengine.rules import RuleSet

TITLE = "100 rules of three comparisons over 64 features, and a reload of 1,000"
COMMAND = "python -m benchmarks --only rules"
TARGETS: Mapping[str, str] = {
    "event_us": "<= 1",
    "lone_event_us": "<= 6",
    "times_rule_engine": ">= 500",
    "times_zen_engine": ">= 500",
    "parse_check_compile_ms": "<= 60",
    "reload_ms": "<= 100",
}

FEATURES: Final = tuple(f"f{i}" for i in range(64))
TYPES: Final = ("payment",)
RULES: Final = 100
RELOADED: Final = 1_000
BATCH: Final = 64
PEER_ROWS: Final = 4  # the peers take milliseconds an event
CALLS: Final = 200  # timed together, where one is too short for the clock
KEY: Final = bytes(range(16))
NO_TEXT: Final = np.zeros(1, np.uint8)


def measure() -> dict[str, Any]:
    """Time an event with each engine, and the reloads. AssertionError where an answer is wrong."""
    import rule_engine
    import zen

    texts, thousand = rule_texts(RULES, seed=0), rule_texts(RELOADED, seed=1)
    values = np.random.default_rng(0).random((len(FEATURES), BATCH)).round(3)
    rows = [dict(zip(FEATURES, map(float, values[:, j]), strict=True)) for j in range(BATCH)]
    batch, lone = rules_over(texts, values), rules_over(texts, values[:, :1])
    of_rule_engine = [rule_engine.Rule(text) for text in texts]
    of_zen = [zen.compile_expression(text) for text in texts]

    right = [[eval(text, {}, row) for text in texts] for row in rows]
    assert batch().astype(bool).tolist() == right
    assert lone().astype(bool).tolist() == right[:1]
    assert [[rule.matches(row) for rule in of_rule_engine] for row in rows] == right
    assert [[expression.evaluate(row) for expression in of_zen] for row in rows] == right

    compiled_kernels = len(getattr(run, "signatures", ()))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "policy.yaml").write_text(policy_text(thousand), encoding="utf-8")
        assert len(reload(folder).rules.names) == RELOADED
        seconds = medians(
            {
                "ours": lambda: [batch() for _ in range(CALLS)],
                "lone": lambda: [lone() for _ in range(CALLS)],
                "rule_engine": lambda: [
                    rule.matches(row) for row in rows[:PEER_ROWS] for rule in of_rule_engine
                ],
                "zen_engine": lambda: [rule.evaluate(row) for row in rows[:PEER_ROWS] for rule in of_zen],
                "parse_check_compile": lambda: rule_set(thousand),
                "reload": lambda: reload(folder),
            }
        )
    assert len(getattr(run, "signatures", ())) == compiled_kernels, "a reload compiled a kernel"
    event_s = seconds["ours"] / CALLS / BATCH
    rule_engine_s, zen_s = seconds["rule_engine"] / PEER_ROWS, seconds["zen_engine"] / PEER_ROWS
    return {
        "event_us": event_s * 1e6,
        "lone_event_us": seconds["lone"] / CALLS * 1e6,
        "rule_engine_event_us": rule_engine_s * 1e6,
        "zen_engine_event_us": zen_s * 1e6,
        "times_rule_engine": rule_engine_s / event_s,
        "times_zen_engine": zen_s / event_s,
        "parse_check_compile_ms": seconds["parse_check_compile"] * 1e3,
        "reload_ms": seconds["reload"] * 1e3,
    }


def rule_texts(count: int, seed: int) -> list[str]:
    """Rules that are an expression in all three engines and in Python."""
    draw = random.Random(seed)

    def compared(sign: str) -> str:
        return f"{draw.choice(FEATURES)} {sign} {draw.random():.3f}"

    return [f"{compared('>')} and ({compared('<')} or {compared('>=')})" for _ in range(count)]


class Features:
    """The scope of the texts: 64 numbers."""

    symbols: Final = {name: Symbol(name, "number") for name in FEATURES}

    def lookup(self, name: str) -> Symbol | None:
        return self.symbols.get(name)

    def names(self) -> Sequence[str]:
        return FEATURES

    def listed(self, name: str, entity: str) -> str:
        return f"there is no list {name}"


def rule_set(texts: Sequence[str]) -> tuple[RuleSet, Layout]:
    """Texts to arrays: parsed, checked and compiled, as every reload does."""
    layout = Layout()
    for name in FEATURES:
        layout.add_number(name)
    rules = []
    for i, text in enumerate(texts):
        when = parse_and_check(text, Place("rules.yaml", i + 1, 1), Features(), ("bool",))
        assert isinstance(when, Expression)
        rules.append(Rule(f"rule-{i}", TYPES, when, mode="live"))
    return RuleSet.compile(rules, TYPES, layout, hash), layout


def rules_over(texts: Sequence[str], values: NDArray[np.float64]) -> Callable[[], NDArray[np.uint8]]:
    """A call that fires the rules for `values` (features, n)."""
    rules, layout = rule_set(texts)
    n = values.shape[1]
    cells = np.empty((layout.width, n))
    cells[: len(FEATURES)] = values
    strings = np.zeros((n, 1), np.int64), np.zeros((n, 1), np.int32), np.zeros((n, 1), np.uint64)
    timezone = timezone_table("UTC")
    kind, time, who = np.zeros(n, np.int32), np.zeros(n, np.int64), np.zeros(n, np.uint64)
    fired = np.empty((n, len(texts)), np.uint8)

    def fire() -> NDArray[np.uint8]:
        rules.fire(cells, *strings, NO_TEXT, NO_TEXT, timezone, kind, time, who, fired)
        return fired

    return fire


def policy_text(texts: Sequence[str]) -> str:
    """A policy folder's one file: 64 value features, and the rules."""
    features = "".join(f"  {name}: {{value: amount + {i}}}\n" for i, name in enumerate(FEATURES))
    rules = "".join(
        f"  rule-{i}:\n    on: payment\n    when: {text}\n"
        "    then: review\n    risk: 0.1\n    owner: growth-risk\n"
        for i, text in enumerate(texts)
    )
    return (
        "policy: many-rules\ntimezone: UTC\nmodel: none\nentities: {user: user_id}\n"
        f"events:\n  payment: {{required: [user_id, amount]}}\nfeatures:\n{features}rules:\n{rules}"
    )


def reload(folder: str) -> Policy:
    """All that a reload does: YAML to arrays."""
    return Policy.compile(load_definition(folder), KEY)
