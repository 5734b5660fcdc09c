"""Figures against scikit-learn and against plain Python; intervals, slices, money and pages."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from riskengine import charts
from riskengine.charts import Line
from riskengine.evaluation import (
    Inputs,
    auc,
    average_precision,
    days_of,
    evaluate,
    precision_by_day,
)
from riskengine.reporting import render
from riskengine.samples import TrainingError

DAY_MS = 86_400_000
START_MS = 1_794_326_400_000


def inputs(n: int = 4_000, seed: int = 1) -> Inputs:
    """Rows of ten days whose scores are worth what they say."""
    draw = np.random.default_rng(seed)
    scores = draw.beta(0.3, 3.0, n)
    return Inputs(
        times=np.sort(draw.integers(START_MS, START_MS + 10 * DAY_MS, n)),
        types=np.array(["payment", "coupon_claim"], object)[draw.integers(0, 2, n)],
        scores=scores,
        fraud=draw.random(n) < scores,
        keys=draw.integers(1, 300, n).astype(np.uint64),
        amounts=draw.uniform(1, 100, n),
        timezone="Asia/Shanghai",
    )


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9, 1.0]), st.booleans()), min_size=2, max_size=40
    )
)
def test_ranks_are_those_of_scikit_learn(rows: list[tuple[float, bool]]) -> None:
    scores = np.array([score for score, _ in rows])
    fraud = np.array([told for _, told in rows])
    if fraud.all() or not fraud.any():
        assert math.isnan(auc(scores, fraud))
        return
    assert auc(scores, fraud) == pytest.approx(roc_auc_score(fraud, scores))
    assert average_precision(scores, fraud) == pytest.approx(average_precision_score(fraud, scores))


@settings(max_examples=50)
@given(st.data())
def test_the_top_of_each_day_is_counted_as_in_words(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 40))
    days = np.sort(np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))))
    keys = np.array(data.draw(st.lists(st.integers(1, 6), min_size=n, max_size=n)), np.uint64)
    scores = np.array(data.draw(st.permutations([i / n for i in range(n)])))
    fraud = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    top = data.draw(st.integers(1, 4))
    expected = {}
    found: set[int] = set()
    for day in sorted(set(days.tolist())):
        best: dict[int, float] = {}
        for key, score in zip(keys[days == day].tolist(), scores[days == day].tolist(), strict=True):
            best[key] = max(score, best.get(key, -1.0))
        looked_at = sorted((key for key in best if key not in found), key=lambda key: -best[key])[:top]
        guilty = set(keys[(days == day) & fraud].tolist()) & set(looked_at)
        expected[day] = len(guilty) / top
        found |= guilty
    assert precision_by_day(days, keys, scores, fraud, top) == expected


def test_a_day_begins_at_midnight_of_the_policy() -> None:
    midnight = int(datetime(2026, 11, 10, 16, tzinfo=UTC).timestamp() * 1000)  # in Shanghai
    times = np.array([midnight - 1, midnight])
    assert np.diff(days_of(times, "Asia/Shanghai")).tolist() == [1]
    assert np.diff(days_of(times, "UTC")).tolist() == [0]


def test_a_report_holds_together() -> None:
    given_rows = inputs()
    report = evaluate(given_rows, top=20, review_cost=5.0, drawn="user")
    assert report == evaluate(given_rows, top=20, review_cost=5.0, drawn="user"), (
        "the same input, the same report"
    )
    assert set(report.metrics) == {
        "auc",
        "average_precision",
        "recall_at_0.1pct_false",
        "recall_at_0.5pct_false",
        "recall_at_1.0pct_false",
        "calibration_error",
        "precision_at_k",
    }
    for name, one in report.metrics.items():
        if name != "calibration_error":  # drawing again adds to a mean of absolute values
            assert one.low <= one.value <= one.high
    assert sum(one.rows for one in report.by_day) == sum(one.rows for one in report.by_type) == report.rows
    assert sum(one.rows for one in report.calibration) == report.rows
    assert sum(one.frauds for one in report.by_day) == report.frauds
    assert [one.score for one in report.calibration] == sorted(one.score for one in report.calibration)
    assert report.metrics["calibration_error"].value < 0.03
    assert report.best.cost == min(one.cost for one in report.costs)
    assert report.costs[0].reviewed == 0
    page = render("m", report)
    assert page.count("<svg") == 5
    assert "<script" not in page
    assert msgspec.json.decode(msgspec.json.encode(report))["rows"] == report.rows


def test_recall_at_a_false_positive_rate_is_counted() -> None:
    scores = np.linspace(1, 0, 1_000)
    fraud = np.zeros(1_000, bool)
    fraud[[0, 1, 5, 500]] = True  # three others stand before the third
    report = evaluate(
        Inputs(times=np.arange(1_000), types=np.full(1_000, "payment", object), scores=scores, fraud=fraud)
    )
    assert report.metrics["recall_at_0.1pct_false"].value == 0.5
    assert report.metrics["recall_at_0.5pct_false"].value == 0.75
    assert "precision_at_k" not in report.metrics


def test_what_is_missed_costs_its_amount_and_a_look_costs_a_review() -> None:
    given_rows = Inputs(
        times=np.arange(4),
        types=np.full(4, "payment", object),
        scores=np.array([0.9, 0.8, 0.3, 0.1]),
        fraud=np.array([True, False, True, False]),
        amounts=np.array([100.0, 1.0, 2.0, 1.0]),
    )
    report = evaluate(given_rows, review_cost=3.0)
    assert [(one.reviewed, one.missed, one.cost) for one in report.costs] == [
        (0, 102.0, 102.0),
        (1, 2.0, 5.0),
        (2, 2.0, 8.0),
        (3, 0.0, 9.0),
        (4, 0.0, 12.0),
    ]
    assert report.best.score == 0.9


def test_one_kind_of_row_is_no_test() -> None:
    fraud: NDArray[np.bool_] = np.zeros(5, bool)
    with pytest.raises(TrainingError, match="found 0 frauds among 5 labelled rows"):
        evaluate(Inputs(times=np.arange(5), types=np.full(5, "t", object), scores=np.ones(5), fraud=fraud))


def test_charts_say_what_they_show() -> None:
    drawn = charts.lines(
        "A & B", "x", "y", [Line("one", [(0.0, 0.0), (1.0, 2.0)]), Line("two", [(0.5, 1.0)], True)]
    )
    assert "A &amp; B" in drawn
    assert drawn.count("<polyline") == drawn.count("<circle") == 1
    assert charts.bars("t", "x", "y", ["a", "b"], [Line("n", [(0, 1.0), (0, 0.0)])]).count("<rect") == 2
    assert "longest" in charts.ranking("t", [("longest", 2.0), ("short", 1.0)])
    assert charts.lines("empty", "x", "y", []).startswith("<svg")
