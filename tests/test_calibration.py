"""Calibration against its twin in plain Python, scikit-learn's isotonic curve and Platt's formula."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from riskengine.calibration import Calibration
from riskengine.modeltext import ModelError

SHARES = st.floats(0, 1)
TABLES = st.lists(SHARES, min_size=1, max_size=12, unique=True).flatmap(
    lambda x: st.tuples(st.just(sorted(x)), st.lists(SHARES, min_size=len(x), max_size=len(x)).map(sorted))
)
SCORES = st.lists(SHARES | st.sampled_from([math.nan, -math.inf, math.inf, -0.0, 5e-324]), max_size=30)


def twin(x: list[float], y: list[float], score: float) -> float:
    """The table read by looking at every pair of knots."""
    if math.isnan(score):
        return score
    if score <= x[0]:
        return y[0]
    for (a, low), (b, high) in zip(zip(x, y, strict=True), list(zip(x, y, strict=True))[1:], strict=False):
        if a <= score < b:
            return min(low + (score - a) * (high - low) / (b - a), high)
    return y[-1]


def applied(calibration: Calibration, scores: list[float]) -> list[float]:
    p = np.array(scores, np.float64)
    calibration.apply(p)
    return [float(one) for one in p]


@given(TABLES, SCORES)
def test_the_kernel_is_its_twin(table: tuple[list[float], list[float]], scores: list[float]) -> None:
    x, y = table
    calibration = Calibration.from_json({"kind": "isotonic", "x": x, "y": y})
    for score in (scores + x)[:30]:
        found, want = applied(calibration, [score])[0], twin(x, y, score)
        assert found == want or (math.isnan(found) and math.isnan(want))
    assert applied(calibration, x) == y


@given(TABLES, st.lists(SHARES, max_size=30))
def test_a_higher_score_is_never_worth_less(
    table: tuple[list[float], list[float]], scores: list[float]
) -> None:
    calibration = Calibration.from_json({"kind": "isotonic", "x": table[0], "y": table[1]})
    worth = applied(calibration, sorted(scores))
    assert worth == sorted(worth)
    assert all(0 <= one <= 1 for one in worth)


@given(TABLES)
def test_json_gives_the_same_table_back(table: tuple[list[float], list[float]]) -> None:
    calibration = Calibration.from_json({"kind": "isotonic", "x": table[0], "y": table[1]})
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert (again.kind, again.x.tolist(), again.y.tolist()) == ("isotonic", *table)


def test_none_changes_nothing() -> None:
    scores = [0.0, 0.3, 1.0]
    assert applied(Calibration.none(), scores) == scores
    assert Calibration.from_json(Calibration.none().to_json()).kind == "none"


def test_isotonic_is_scikit_learns() -> None:
    rng = np.random.default_rng(3)
    scores = rng.random(2000).round(3)
    fraud = (rng.random(2000) < scores**2).astype(float)
    peer = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, fraud)
    ours = Calibration.isotonic(peer.X_thresholds_, peer.y_thresholds_)
    asked = np.concatenate([rng.random(500), scores, [0.0, 1.0]])
    np.testing.assert_allclose(applied(ours, asked.tolist()), peer.predict(asked), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.4, -3.0), (4.0, 2.0)])
def test_platt_is_the_formula(slope: float, intercept: float) -> None:
    calibration = Calibration.platt(slope, intercept)
    scores = 1 / (1 + np.exp(-np.random.default_rng(5).uniform(-19, 19, 3000)))
    odds = np.log(scores / (1 - scores))
    want = 1 / (1 + np.exp(np.clip(-(slope * odds + intercept), -700, 700)))
    error = 1e-9 if slope == 1 else 8e-4
    np.testing.assert_allclose(applied(calibration, scores.tolist()), want, rtol=0, atol=error)
    Calibration.from_json(calibration.to_json())


def test_a_steep_platt_is_a_step() -> None:
    assert applied(Calibration.platt(1e6, 0.0), [0.2, 0.5, 0.8]) == [pytest.approx(0, abs=1e-300), 0.5, 1.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, r"card.json: calibration.kind: found None, expected one of none, isotonic, platt. Train"),
        ({"kind": "isotonic"}, r"calibration.x: expected a list of finite numbers"),
        ({"kind": "isotonic", "x": [0.5], "y": [True]}, r"calibration.y: expected a list of finite numbers"),
        ({"kind": "isotonic", "x": [math.nan], "y": [0.5]}, r"calibration.x: expected a list of finite"),
        ({"kind": "platt", "x": [0.1, 0.2], "y": [0.5]}, r"found 2 and 1 knots, expected as many x as y"),
        ({"kind": "platt", "x": [], "y": []}, r"found 0 and 0 knots"),
        ({"kind": "platt", "x": [0.2, 0.2], "y": [0.5, 0.6]}, r"calibration.x: found numbers that do not"),
        ({"kind": "platt", "x": [0.1, 0.2], "y": [0.6, 0.5]}, r"calibration.y: found a curve that is not"),
        ({"kind": "platt", "x": [0.1, 0.2], "y": [0.6, 1.5]}, r"calibration.y: found a curve that is not"),
    ],
)
def test_a_damaged_table_is_refused(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Calibration.from_json(value, "card.json: calibration")


@pytest.mark.parametrize(("slope", "intercept"), [(0.0, 1.0), (-1.0, 0.0), (math.nan, 0.0), (1.0, math.inf)])
def test_a_score_that_says_nothing_is_refused(slope: float, intercept: float) -> None:
    with pytest.raises(ModelError, match="expected a slope above 0"):
        Calibration.platt(slope, intercept)
