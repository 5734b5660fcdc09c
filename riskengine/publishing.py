"""A trained model becomes a folder: model.txt, the card that says what it is, and pictures of its worth."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from riskengine import charts
from riskengine.card import MODEL_FILE, Card, Span, Spread, model_digest
from riskengine.charts import Line
from riskengine.evaluation import Report
from riskengine.samples import Samples
from riskengine.training import FIXED, Trained

Float64s = NDArray[np.float64]

PLOTS: Final = "plots"
QUANTILES_AT: Final = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
IMPORTANT: Final = 25  # features shown


def make_card(
    name: str,
    samples: Samples,
    trained: Trained,
    report: Report,
    gap_ms: int,
    seed: int,
    monotone: Mapping[str, int],
    note: str | None = None,
) -> Card:
    """All that is to be known of a model."""
    head = samples.rows.head
    types = samples.rows.types.take(trained.train).unique().to_pylist()
    return Card(
        name=name,
        note=note,
        model=model_digest(trained.model.encode()),
        policy=head.policy,
        policy_fingerprint=head.policy_fingerprint,
        types=tuple(sorted(types)),
        features=trained.features,
        fingerprints={feature: head.fingerprints[feature] for feature in trained.features},
        monotone=dict(monotone),
        calibration=trained.calibration.to_json(),
        quantiles_at=QUANTILES_AT,
        spreads={name: spread(samples.rows.column(name)[trained.train]) for name in trained.features},
        scores=spread(trained.scores),
        trained=_span(samples, trained.train),
        held_out=_span(samples, trained.held_out),
        gap_ms=gap_ms,
        unlabelled=trained.unlabelled,
        metrics=report.metrics,
        rounds=trained.found.rounds,
        parameters={**FIXED, **trained.found.parameters, "trials": trained.found.tried},
        versions=trained.versions,
        seed=seed,
    )


def publish(folder: Path, card: Card, trained: Trained, report: Report) -> None:
    """Write the folder whole, in the place of one of that name. Raises OSError."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / PLOTS).mkdir(parents=True)
        (partial / MODEL_FILE).write_text(trained.model, encoding="utf-8", newline="\n")
        card.save(partial)
        for name, picture in {**pictures(report), "importance": importance(trained)}.items():
            (partial / PLOTS / f"{name}.svg").write_text(picture, encoding="utf-8")
        if folder.exists():
            retired = folder.with_name(f"{folder.name}.old")
            shutil.rmtree(retired, ignore_errors=True)
            os.replace(folder, retired)
            os.replace(partial, folder)
            shutil.rmtree(retired)
        else:
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def pictures(report: Report) -> dict[str, str]:
    """A report's curves as SVG, by name."""
    days = [one.name[5:] for one in report.by_day]
    daily = [Line("average precision", [(0.0, one.average_precision or 0.0) for one in report.by_day])]
    if any(one.precision_at_k is not None for one in report.by_day):
        points = [(0.0, one.precision_at_k or 0.0) for one in report.by_day]
        daily.append(Line(f"precision at {report.top}", points))
    bins = [(one.score, one.fraud) for one in report.calibration]
    high = max([max(point) for point in bins] or [1.0]) or 1.0
    return {
        "precision-recall": charts.lines(
            "Precision against recall", "recall", "precision", [Line("model", report.precision_recall)], 1.0
        ),
        "calibration": charts.lines(
            "Calibration: what was foretold, and what came",
            "mean score",
            "share of fraud",
            [Line("perfect", [(0.0, 0.0), (high, high)]), Line("model", bins, dots=True)],
        ),
        "scores": charts.bars(
            "How scores lie (square root of the share)",
            "score",
            "share",
            [f"{low:.2f}" for low, _, _ in report.histogram],
            [
                Line("fraud", [(0.0, told**0.5) for _, told, _ in report.histogram]),
                Line("others", [(0.0, others**0.5) for _, _, others in report.histogram]),
            ],
        ),
        "by-day": charts.bars("By day", "day", "", days, daily),
        "cost": charts.lines(
            f"Cost of missed fraud and of reviews ({report.review_cost:g} each)",
            "share reviewed",
            "cost",
            [
                Line("all", [(one.reviewed / report.rows, one.cost) for one in report.costs]),
                Line("missed fraud", [(one.reviewed / report.rows, one.missed) for one in report.costs]),
            ],
        ),
    }


def importance(trained: Trained) -> str:
    """The features that took part most, by the gain of their splits."""
    ranked = sorted(trained.importance.items(), key=lambda pair: -pair[1])[:IMPORTANT]
    return charts.ranking("Gain by feature", [pair for pair in ranked if pair[1] > 0])


def spread(values: Float64s) -> Spread:
    """How values lie."""
    known = values[~np.isnan(values)]
    missing = 1 - len(known) / len(values) if len(values) else 0.0
    if not len(known) or not np.isfinite(known).all():
        return Spread(missing)
    return Spread(missing, tuple(np.quantile(known, QUANTILES_AT).tolist()))


def _span(samples: Samples, rows: NDArray[np.int64]) -> Span:
    times = samples.times[rows]
    return Span(int(times[0]), int(times[-1]), len(rows), int(samples.fraud[rows].sum()))
