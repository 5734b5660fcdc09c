"""`riskengine evaluate`: how good a model is on rows whose labels are known."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from riskengine.cli.compiling import compiling_told
from riskengine.cli.folders import RulesOption, rules_folder
from riskengine.cli.terminal import bar, paint, say, show, show_json
from riskengine.cli.train import (
    AmountOption,
    ByOption,
    LabelsOption,
    ReviewOption,
    RowsOption,
    TypesOption,
    show_metrics,
)

if TYPE_CHECKING:
    from riskengine.evaluation import Report, Slice
    from riskengine.judging import Explanation


def evaluate(
    input_: RowsOption,
    labels: LabelsOption,
    model: Annotated[Path, typer.Option(metavar="DIR", help="The model's folder, as models/NAME.")],
    rules: RulesOption = None,
    since: Annotated[
        datetime | None,
        typer.Option(help="Rows from this day on (UTC); it should be after training.", show_default=False),
    ] = None,
    types: TypesOption = None,
    by: ByOption = None,
    top: Annotated[int, typer.Option(min=1, help="Entities looked at a day.")] = 100,
    amount: AmountOption = None,
    review_cost: ReviewOption = 1.0,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page with plots.", show_default=False)
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="EVENT_ID", help="Instead, why this event has its score: TreeSHAP.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Judge a model: how well it ranks, how far its scores can be believed, and what it saves.

    Rows that the model learned from flatter it: name later ones, or --since.
    """
    folder = rules_folder(rules)
    with compiling_told():
        from riskengine import evaluation, judging
        from riskengine.card import load_model

        card, forest = load_model(model)
        features = list(dict.fromkeys([*card.features, *([amount] if amount else [])]))
        samples = judging.read_samples(input_, labels, folder, features, types, by, say)
        card.check(samples.rows.head.fingerprints, f"the rows {input_}")
        if explain is not None:
            why = judging.explain_event(model, card, forest, samples, explain)
            show_json(why) if as_json else _show_why(card.name, why)
            return
        first_ms = int(since.replace(tzinfo=UTC).timestamp() * 1000) if since is not None else None
        end_ms = int(samples.times[-1]) + 1 if len(samples) else 0
        chosen = samples.between(first_ms if first_ms is not None else -(2**62), end_ms)
        if len(chosen) and int(samples.times[chosen[0]]) <= card.trained.last_ms:
            say("some of these rows are no later than those the model learned from: they flatter it")
        scores = judging.score(card, forest, samples, chosen)
        given = judging.inputs_of(samples, chosen, scores, amount)
        with bar("judging") as moved:
            report = evaluation.evaluate(given, top, review_cost, by or "events", moved)
    if html is not None:
        _write(html, card.name, report)
    if as_json:
        show_json(report)
        return
    show(paint(f"model {card.name}: {report.rows:,} rows with {report.frauds:,} frauds", "bold"))
    show_metrics(report)
    show(
        f"  cheapest: review {report.best.reviewed:,} rows from a score of {report.best.score:.3f} on; it "
        f"costs {report.best.cost:,.2f}, with {report.best.missed:,.2f} missed"
    )
    _show_slices("by event type", report.by_type, report.top)
    _show_slices("by day", report.by_day, report.top)
    if html is not None:
        say(f"the page is {html}")


def _show_why(name: str, why: Explanation) -> None:
    show(paint(f"model {name}: event {why.event_id} has a score of {why.score:.4f}", "bold"))
    width = max(map(len, (one.feature for one in why.shares)))
    show(f"  {'':{width}} {'value':>12} {'adds':>8}")
    for one in why.shares:
        value = "missing" if one.value is None else f"{one.value:,.6g}"
        show(f"  {one.feature:{width}} {value:>12} {one.share:+8.4f}")
    show(
        f"  to {why.bias:.4f}, the mean raw score; all together {why.raw:.4f}, before sigmoid and calibration"
    )


def _show_slices(title: str, slices: tuple[Slice, ...], top: int) -> None:
    show(paint(title, "bold"))
    show(f"  {'':22} {'rows':>10} {'frauds':>7} {'auc':>7} {'ap':>7} {f'top {top}':>8}")
    for one in slices:
        figures = [_figure(one.auc, 7), _figure(one.average_precision, 7), _figure(one.precision_at_k, 8)]
        show(f"  {one.name:22} {one.rows:10,} {one.frauds:7,} {' '.join(figures)}")


def _figure(value: float | None, width: int) -> str:
    return f"{value:{width}.3f}" if value is not None else f"{'-':>{width}}"


def _write(path: Path, name: str, report: Report) -> None:
    from riskengine.reporting import render

    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(render(name, report), encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
