"""Which rules fire: type, mode, expiry and rollout, for batches as for single events."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_expression import HERE, Names, hasher

from riskengine.calendar import timezone_table
from riskengine.definition import ACTIONS, CHALLENGES, Rule
from riskengine.expression import Expression, Symbol, parse_and_check
from riskengine.program import Layout
from riskengine.rules import RuleSet, rollout_bucket

TYPES = ("coupon_claim", "payment")
NO_TEXT = (
    np.zeros((0, 1), np.int64), np.zeros((0, 1), np.int32), np.zeros((0, 1), np.uint64),
    np.zeros(1, np.uint8), np.zeros(1, np.uint8),
)  # fmt: skip


def when(source: str) -> Expression:
    expression = parse_and_check(source, HERE, Names(), ("bool",))
    assert isinstance(expression, Expression)
    return expression


def rule(name: str, source: str = "amount > 5", **more: Any) -> Rule:
    values: dict[str, Any] = {"name": name, "types": TYPES, "when": when(source), "mode": "live"}
    return Rule(**values | more)


def compiled(*rules: Rule) -> tuple[RuleSet, Layout]:
    layout = Layout()
    layout.add_number("amount")
    layout.add_number("verified")
    return RuleSet.compile(rules, TYPES, layout, hasher), layout


def fire(
    rules: tuple[RuleSet, Layout],
    amount: list[float],
    kind: list[int] | None = None,
    time: list[int] | None = None,
    who: list[int] | None = None,
    verified: float = np.nan,
) -> NDArray[np.uint8]:
    rule_set, layout = rules
    n = len(amount)
    cells = np.full((layout.width, n), np.nan)
    cells[layout.number("amount")] = amount
    cells[layout.number("verified")] = verified
    fired = np.ones((n, len(rule_set.names)), np.uint8)
    rule_set.fire(
        cells,
        *NO_TEXT,
        timezone_table("UTC"),
        np.array(kind or [0] * n, np.int32),
        np.array(time or [0] * n, np.int64),
        np.array(who or [0] * n, np.uint64),
        fired,
    )
    return fired


def test_a_rule_fires_where_it_holds_and_is_silent_on_missing() -> None:
    assert fire(compiled(rule("big")), [6.0, 5.0, np.nan]).tolist() == [[1], [0], [0]]


def test_a_missing_bool_does_not_fire() -> None:
    assert fire(compiled(rule("verified", "verified")), [1.0]).tolist() == [[0]]
    assert fire(compiled(rule("verified", "verified")), [1.0], verified=1.0).tolist() == [[1]]


def test_a_rule_speaks_of_its_own_event_types() -> None:
    rules = compiled(rule("claims", types=("coupon_claim",)), rule("payments", types=("payment",)))
    assert fire(rules, [6.0, 6.0], kind=[0, 1]).tolist() == [[1, 0], [0, 1]]


def test_an_expired_rule_is_inert_from_that_very_moment() -> None:
    rules = compiled(rule("campaign", expires_ms=1_000))
    assert fire(rules, [6.0] * 3, time=[999, 1_000, 1_001]).tolist() == [[1], [0], [0]]


def test_off_is_left_out_and_shadow_fires_apart() -> None:
    rule_set, layout = compiled(rule("a", mode="off"), rule("b", mode="shadow"), rule("c"))
    assert rule_set.names == ("b", "c")
    assert rule_set.live.tolist() == [0, 1]
    assert fire((rule_set, layout), [6.0]).tolist() == [[1, 1]]


def test_what_firing_leads_to_stands_in_policy_order() -> None:
    rule_set, _ = compiled(
        rule("flag", risk=0.25),
        rule("allow", then="allow", expires_ms=5),
        rule("review", then="review", firm=True),
        rule("challenge", then="challenge", challenge="voice"),
        rule("challenge-plain", then="challenge"),
        rule("deny", then="deny", risk=1.0),
    )
    severities = [ACTIONS[s] for s in rule_set.severity]
    assert severities == ["allow", "allow", "review", "challenge", "challenge", "deny"]
    assert rule_set.allows.tolist() == [0, 1, 0, 0, 0, 0]
    assert rule_set.firm.tolist() == [0, 0, 1, 0, 0, 0]
    assert rule_set.risk.tolist() == [0.25, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert [CHALLENGES[c] if c >= 0 else None for c in rule_set.challenge] == [
        None, None, None, "voice", "captcha", None,
    ]  # fmt: skip


def test_no_rules_at_all() -> None:
    assert fire(compiled(), [1.0, 2.0]).shape == (2, 0)


def test_no_events_at_all() -> None:
    assert fire(compiled(rule("big")), []).shape == (0, 1)


@pytest.mark.parametrize(("rollout", "everyone"), [(0.0, 0), (1.0, 1)])
def test_rollout_of_none_and_all(rollout: float, everyone: int) -> None:
    rules = compiled(rule("new", rollout=rollout))
    assert fire(rules, [6.0] * 500, who=list(range(500))).ravel().tolist() == [everyone] * 500


@given(st.text(max_size=20), st.integers(0, 2**64 - 1), st.floats(0.0, 1.0))
def test_rollout_goes_by_the_bucket_of_rule_and_user(name: str, who: int, rollout: float) -> None:
    bucket = rollout_bucket(name, who)
    assert 0 <= bucket < 10_000
    fired = fire(compiled(rule(name, rollout=rollout)), [6.0], who=[who])
    assert fired.tolist() == [[int(bucket < round(rollout * 10_000))]]


def test_rollout_is_stable_and_spread() -> None:
    assert [rollout_bucket("new-device", who) for who in (1, 2, 2**63)] == [2332, 4996, 3228]
    share = np.mean([rollout_bucket("new-device", who) < 500 for who in range(20_000)])
    assert 0.04 < share < 0.06
    both = np.mean([rollout_bucket(name, who) < 500 for name in ("a", "b") for who in range(20_000)])
    assert 0.04 < both < 0.06
    together = [max(rollout_bucket("a", who), rollout_bucket("b", who)) < 5_000 for who in range(20_000)]
    assert 0.22 < np.mean(together) < 0.28  # two rules pick their users independently


@given(st.lists(st.tuples(st.floats(allow_nan=True), st.integers(0, 1), st.integers(0, 20)), max_size=150))
def test_a_batch_fires_as_its_events_do_one_by_one(events: list[tuple[float, int, int]]) -> None:
    rules = compiled(
        rule("big"),
        rule("claims", "amount < 0 or missing(amount)", types=("coupon_claim",)),
        rule("campaign", "amount != 3", expires_ms=10, mode="shadow"),
        rule("half", "not amount < 0", rollout=0.5),
    )
    amount, kind, time = [a for a, _, _ in events], [k for _, k, _ in events], [t for _, _, t in events]
    batch = fire(rules, amount, kind, time, who=time)
    single = [fire(rules, [a], [k], [t], who=[t])[0].tolist() for a, k, t in events]
    assert batch.tolist() == single


def test_results_shared_by_rules_fire_for_both() -> None:
    assert fire(compiled(rule("a"), rule("b")), [6.0, 1.0]).tolist() == [[1, 1], [0, 0]]


def test_symbols_of_a_rule_are_its_columns() -> None:
    with pytest.raises(KeyError, match="region"):
        compiled(rule("region", "region == 'CN'"))
    assert when("amount > 5").symbols() == {Symbol("amount", "number")}
