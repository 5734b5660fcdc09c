"""Scores and what became of the events: how good a model is, how sure that is, and what it saves.

Figures come with 95 % intervals by bootstrap: whole entities are drawn, or rows where no entity is known,
because what one entity does hangs together; figures by day draw days. The same input gives the same report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
from numpy.typing import NDArray

from riskengine.card import Estimate
from riskengine.samples import TrainingError

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]
Bools = NDArray[np.bool_]

DRAWS: Final = 200
SEED: Final = 7  # of the bootstrap
FALSE_POSITIVE_RATES: Final = (0.001, 0.005, 0.01)
BINS: Final = 15
POINTS: Final = 200  # of a curve
TOP: Final = 100


class Inputs(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """Rows to judge by (n), ascending in time: times ms, types, calibrated scores, and what became of them.

    `keys`: the entity each belongs to, if known. `amounts`: what a missed fraud costs; 1 each unless given.
    """

    times: Int64s
    types: NDArray[np.object_]
    scores: Float64s
    fraud: Bools
    keys: NDArray[np.uint64] | None = None
    amounts: Float64s | None = None
    timezone: str = "UTC"


class Slice(msgspec.Struct, frozen=True):
    """Part of the rows: of one type, or of one day. Figures only where there are frauds and others."""

    name: str
    rows: int
    frauds: int
    auc: float | None
    average_precision: float | None
    precision_at_k: float | None = None


class Bin(msgspec.Struct, frozen=True):
    """Rows of like score: what was foretold, and what came."""

    rows: int
    score: float
    fraud: float


class Cost(msgspec.Struct, frozen=True):
    """What it costs to review all from a score on: the money of missed frauds, and the reviews."""

    score: float
    reviewed: int
    missed: float
    cost: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that `evaluate` found. Curves are lists of points (x, y)."""

    rows: int
    frauds: int
    first_ms: int
    last_ms: int
    top: int
    drawn: str  # what the bootstrap draws
    metrics: Mapping[str, Estimate]
    by_type: tuple[Slice, ...]
    by_day: tuple[Slice, ...]
    precision_recall: tuple[tuple[float, float], ...]
    calibration: tuple[Bin, ...]
    histogram: tuple[tuple[float, float, float], ...]  # score, share of frauds, share of the others
    costs: tuple[Cost, ...]
    best: Cost
    review_cost: float


def evaluate(
    given: Inputs,
    top: int = TOP,
    review_cost: float = 1.0,
    drawn: str = "events",
    shown: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Judge scores. `top`: entities looked at a day; `drawn`: what `keys` are. Raises TrainingError."""
    n, frauds = len(given.scores), int(given.fraud.sum())
    if not 0 < frauds < n:
        raise TrainingError(
            f"found {frauds} frauds among {n} labelled rows, expected some of both: give more rows or labels."
        )
    days = days_of(given.times, given.timezone)
    ranked = _Ranked.of(given.scores, given.fraud)
    ones = np.ones(n)
    figures = _figures(ranked, ones)
    entities = given.keys if given.keys is not None else np.arange(n, dtype=np.uint64)
    names, places = np.unique(entities, return_inverse=True)
    draw = np.random.default_rng(SEED)
    drawn_figures = []
    for i in range(DRAWS):
        weights = np.bincount(draw.integers(len(names), size=len(names)), minlength=len(names))[places]
        drawn_figures.append(_figures(ranked, weights.astype(np.float64)))
        shown(i + 1, DRAWS)
    metrics = {
        name: _estimate(value, [one[name] for one in drawn_figures]) for name, value in figures.items()
    }
    if given.keys is not None:
        daily = list(precision_by_day(days, given.keys, given.scores, given.fraud, top).values())
        resampled = np.array(daily)[draw.integers(len(daily), size=(DRAWS, len(daily)))].mean(1)
        metrics["precision_at_k"] = _estimate(float(np.mean(daily)), resampled.tolist())
    costs, best = _costs(given, review_cost)
    return Report(
        rows=n,
        frauds=frauds,
        first_ms=int(given.times[0]),
        last_ms=int(given.times[-1]),
        top=top,
        drawn=drawn,
        metrics=metrics,
        by_type=_by_type(given),
        by_day=_by_day(given, days, top),
        precision_recall=_precision_recall(ranked),
        calibration=_calibration(given.scores, given.fraud),
        histogram=_histogram(given.scores, given.fraud),
        costs=costs,
        best=best,
        review_cost=review_cost,
    )


def auc(scores: Float64s, fraud: Bools) -> float:
    """Area under the ROC curve; ties count half."""
    return _figures(_Ranked.of(scores, fraud), np.ones(len(scores)))["auc"]


def average_precision(scores: Float64s, fraud: Bools) -> float:
    """Precision at each threshold weighted by the recall it adds, as in scikit-learn."""
    return _figures(_Ranked.of(scores, fraud), np.ones(len(scores)))["average_precision"]


def precision_by_day(
    days: Int64s, keys: NDArray[np.uint64], scores: Float64s, fraud: Bools, top: int
) -> dict[int, float]:
    """Of each day's `top` entities by their highest score, the share with a fraud that day.

    An entity that was found so is not looked at on later days. The card precision of Le Borgne et al.,
    "Reproducible Machine Learning for Credit Card Fraud Detection", chapter 4.
    """
    found: set[int] = set()
    precisions = {}
    for day in np.unique(days).tolist():
        today = np.flatnonzero(days == day)
        names, places = np.unique(keys[today], return_inverse=True)
        highest = np.full(len(names), -np.inf)
        np.maximum.at(highest, places, scores[today])
        defrauded = np.zeros(len(names), bool)
        np.logical_or.at(defrauded, places, fraud[today])
        left = np.array([name not in found for name in names.tolist()], bool)
        order = np.flatnonzero(left)[np.argsort(-highest[left], kind="stable")][:top]
        hits = order[defrauded[order]]
        precisions[day] = len(hits) / top
        found.update(names[hits].tolist())
    return precisions


def days_of(times: Int64s, timezone: str) -> Int64s:
    """Which day each time (n, ms) is of, in days since 1970-01-01, by a zone's clocks."""
    zone = ZoneInfo(timezone)
    hours, places = np.unique(times // 900_000, return_inverse=True)  # no zone shifts within a quarter hour
    days = [datetime.fromtimestamp(hour * 900, zone).date().toordinal() - 719_163 for hour in hours.tolist()]
    found: Int64s = np.array(days, np.int64)[places]
    return found


class _Ranked(msgspec.Struct, frozen=True, eq=False):
    """Rows by score, highest first, and where runs of equal scores end."""

    order: Int64s
    ends: Int64s
    scores: Float64s
    fraud: Float64s

    @classmethod
    def of(cls, scores: Float64s, fraud: Bools) -> _Ranked:
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        ends = np.append(np.flatnonzero(np.diff(ranked) != 0), len(ranked) - 1)
        return cls(order, ends, ranked, fraud[order].astype(np.float64))


def _figures(ranked: _Ranked, weights: Float64s) -> dict[str, float]:
    """Every figure of one (weighted) sample; NaN where there is only one kind of row."""
    by_rank = weights[ranked.order]
    found = np.cumsum(by_rank * ranked.fraud)[ranked.ends]
    false = np.cumsum(by_rank * (1 - ranked.fraud))[ranked.ends]
    frauds, others = found[-1], false[-1]
    if frauds == 0 or others == 0:
        return dict.fromkeys(_NAMES, math.nan)
    recall, rate = found / frauds, false / others
    with np.errstate(invalid="ignore"):
        precision = np.where(found + false > 0, found / (found + false), 0.0)
    before = np.concatenate(([0.0], recall[:-1]))
    figures = {
        "auc": float(np.sum((rate - np.concatenate(([0.0], rate[:-1]))) * (recall + before) / 2)),
        "average_precision": float(np.sum((recall - before) * precision)),
    }
    for allowed in FALSE_POSITIVE_RATES:
        at = int(np.searchsorted(rate, allowed, "right")) - 1
        figures[_recall_name(allowed)] = float(recall[at]) if at >= 0 else 0.0
    edges = _edges(len(by_rank))
    weight = np.add.reduceat(by_rank, edges)
    foretold = np.add.reduceat(by_rank * ranked.scores, edges)
    came = np.add.reduceat(by_rank * ranked.fraud, edges)
    figures["calibration_error"] = float(np.abs(foretold - came).sum() / weight.sum())
    return figures


def _recall_name(rate: float) -> str:
    return f"recall_at_{rate:.1%}_false".replace("%", "pct")


_NAMES: Final = ("auc", "average_precision", *map(_recall_name, FALSE_POSITIVE_RATES), "calibration_error")


def _edges(n: int) -> Int64s:
    """Where bins of ranked rows begin: the first are small, since the highest scores are few."""
    shares = 1 - np.concatenate(([1.0], np.geomspace(0.5, max(2 / n, 1e-4), BINS - 1)))
    edges = np.unique(n - 1 - np.floor(shares * (n - 1)).astype(np.int64))
    edges[0] = 0
    return edges


def _estimate(value: float, drawn: list[float]) -> Estimate:
    sound = np.array(drawn)[~np.isnan(drawn)]
    low, high = np.quantile(sound, (0.025, 0.975)) if len(sound) else (value, value)
    return Estimate(value, float(low), float(high))


def _slice(name: str, scores: Float64s, fraud: Bools, precision: float | None = None) -> Slice:
    frauds = int(fraud.sum())
    sound = 0 < frauds < len(fraud)
    return Slice(
        name,
        len(fraud),
        frauds,
        auc(scores, fraud) if sound else None,
        average_precision(scores, fraud) if sound else None,
        precision,
    )


def _by_type(given: Inputs) -> tuple[Slice, ...]:
    return tuple(
        _slice(name, given.scores[given.types == name], given.fraud[given.types == name])
        for name in sorted(set(given.types.tolist()))
    )


def _by_day(given: Inputs, days: Int64s, top: int) -> tuple[Slice, ...]:
    precisions = (
        precision_by_day(days, given.keys, given.scores, given.fraud, top) if given.keys is not None else {}
    )
    return tuple(
        _slice(
            str(np.datetime64(int(day), "D")),
            given.scores[days == day],
            given.fraud[days == day],
            precisions.get(int(day)),
        )
        for day in np.unique(days)
    )


def _precision_recall(ranked: _Ranked) -> tuple[tuple[float, float], ...]:
    found = np.cumsum(ranked.fraud)[ranked.ends]
    precision, recall = found / (ranked.ends + 1), found / found[-1]
    # Of each stretch of recall the best precision is shown.
    at = np.unique(np.searchsorted(recall, np.linspace(0, 1, POINTS)).clip(0, len(recall) - 1))
    return tuple(zip(recall[at].tolist(), precision[at].tolist(), strict=True))


def _calibration(scores: Float64s, fraud: Bools) -> tuple[Bin, ...]:
    order = np.argsort(-scores, kind="stable")
    parts = np.split(order, _edges(len(order))[1:])
    return tuple(
        Bin(len(part), float(scores[part].mean()), float(fraud[part].mean())) for part in reversed(parts)
    )


def _histogram(scores: Float64s, fraud: Bools) -> tuple[tuple[float, float, float], ...]:
    edges = np.linspace(0, 1, 21)
    told = np.histogram(scores[fraud], edges)[0] / max(1, int(fraud.sum()))
    others = np.histogram(scores[~fraud], edges)[0] / max(1, int((~fraud).sum()))
    return tuple(zip(edges[:-1].tolist(), told.tolist(), others.tolist(), strict=True))


def _costs(given: Inputs, review_cost: float) -> tuple[tuple[Cost, ...], Cost]:
    """What each threshold costs, from reviewing nothing on; and the cheapest."""
    amounts = np.ones(len(given.scores)) if given.amounts is None else np.nan_to_num(given.amounts)
    ranked = _Ranked.of(given.scores, given.fraud)
    caught = np.cumsum(amounts[ranked.order] * ranked.fraud)[ranked.ends]
    missed = np.concatenate(([caught[-1]], caught[-1] - caught))
    reviewed = np.concatenate(([0], ranked.ends + 1))
    scores = np.concatenate(([1.0], ranked.scores[ranked.ends]))
    cost = missed + review_cost * reviewed
    best = int(np.argmin(cost))
    shares = np.searchsorted(reviewed, np.geomspace(1, reviewed[-1], POINTS))
    chosen = np.unique(np.concatenate(([0, best], shares.clip(0, len(cost) - 1))))
    told = [Cost(float(scores[i]), int(reviewed[i]), float(missed[i]), float(cost[i])) for i in chosen]
    return tuple(told), Cost(float(scores[best]), int(reviewed[best]), float(missed[best]), float(cost[best]))
