"""`riskengine train`: rows and labels in, a model's folder out."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from riskengine.cli.compiling import compiling_told
from riskengine.cli.folders import RulesOption, rules_folder
from riskengine.cli.terminal import bar, count, paint, say, show, show_json

if TYPE_CHECKING:
    from riskengine.card import Card
    from riskengine.evaluation import Report
    from riskengine.samples import Samples

RowsOption = Annotated[
    str, typer.Option("--in", metavar="FILE", help="Rows, as riskengine replay writes them.")
]
LabelsOption = Annotated[str, typer.Option(metavar="FILE", help="Labels: .jsonl or .parquet.")]
ByOption = Annotated[
    str | None,
    typer.Option(
        metavar="ENTITY",
        help="Judge by entities: replay --by must have written it.",
        show_default=False,
    ),
]
AmountOption = Annotated[
    str | None,
    typer.Option(metavar="FEATURE", help="The money that a missed fraud costs.", show_default=False),
]
ReviewOption = Annotated[float, typer.Option(min=0, help="What one review costs.")]
TypesOption = Annotated[
    list[str] | None,
    typer.Option("--type", metavar="TYPE", help="Events of this type only.", show_default=False),
]
GAP_MS: Final = 7 * 86_400_000


def train(
    name: Annotated[str, typer.Option(metavar="NAME", help="What the model is called.")],
    input_: Annotated[
        str | None,
        typer.Option(
            "--in", metavar="FILE", help="Rows, as riskengine replay writes them.", show_default=False
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="FILE", help="Labels: .jsonl or .parquet.", show_default=False)
    ] = None,
    simulated: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            help="Instead of files: learn from N simulated campaigns, eight weeks apart.",
            show_default=False,
        ),
    ] = None,
    users: Annotated[int, typer.Option(min=100, help="Customers of each simulated campaign.")] = 10_000,
    output: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the model's folder goes.")
    ] = Path("models"),
    rules: RulesOption = None,
    gap: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Left out before the held-out rows, since labels come late (7d).",
            show_default=False,
        ),
    ] = None,
    hold_out: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="The last rows, to judge by (a fifth).", show_default=False),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option("--feature", metavar="NAME", help="Use only these.", show_default=False),
    ] = None,
    monotone: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=1", help="1: more is never less risk; -1: never more.", show_default=False
        ),
    ] = None,
    types: TypesOption = None,
    trials: Annotated[int, typer.Option(min=1, help="Parameters tried, at most.")] = 12,
    trees: Annotated[int, typer.Option(min=1, help="At most; each is asked at every decision.")] = 300,
    minutes: Annotated[float, typer.Option(min=0, help="No further trial is begun after that.")] = 10.0,
    seed: Annotated[int, typer.Option(help="The same rows and seed give the same model.")] = 7,
    by: ByOption = None,
    amount: AmountOption = None,
    review_cost: ReviewOption = 1.0,
    note: Annotated[
        str | None, typer.Option(help="What its users must know, for the card.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Train a model on rows, and judge it by the last of them.

    Rows are split by time, never at random. Parameters are searched on earlier folds, and the score is
    calibrated. The folder NAME gets model.txt, card.json and plots. A model of simulated campaigns
    (--simulated) shows how it works; it knows no traffic but the generator's.
    """
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise typer.BadParameter("a model's name has letters, digits, - _ and .", param_hint="--name")
    if (simulated is None) != (input_ is not None and labels is not None):
        raise typer.BadParameter("name --in and --labels, or --simulated N")
    gap_ms = _duration(gap, "--gap") if gap is not None else None
    held_out_ms = _duration(hold_out, "--hold-out") if hold_out is not None else None
    directions = dict(_direction(said) for said in monotone or ())
    _refuse_unwritable(output)
    folder = rules_folder(rules)
    with compiling_told():
        from riskengine import rehearsal, training
        from riskengine.evaluation import evaluate
        from riskengine.judging import inputs_of
        from riskengine.publishing import make_card, publish

        samples = _samples(input_, labels, folder, features, types, by, simulated, users, seed)
        unknown = [feature for feature in directions if feature not in samples.rows.features]
        if unknown:
            raise typer.BadParameter(f"{unknown[0]} is no feature of the model", param_hint="--monotone")
        if gap_ms is None:
            gap_ms = rehearsal.GAP_MS if simulated is not None else GAP_MS
        if held_out_ms is None:
            span_ms = int(samples.times[-1] - samples.times[0]) if len(samples) else 0
            held_out_ms = rehearsal.HELD_OUT_MS if simulated is not None else span_ms // 5
        end = time.monotonic() + 60 * minutes
        with bar("training") as moved:
            trained = training.train(
                samples,
                held_out_ms,
                gap_ms,
                seed,
                trials,
                directions,
                lambda: time.monotonic() < end,
                moved,
                trees,
            )
        if trained.found.tried < trials:
            say(
                f"{count(trained.found.tried, 'trial')} of {trials} fitted into {minutes:g} minutes: with "
                f"--trials {trained.found.tried} the same model comes out again"
            )
        given = inputs_of(samples, trained.held_out, trained.scores, amount)
        with bar("judging") as moved:
            report = evaluate(given, review_cost=review_cost, drawn=by or "events", shown=moved)
        card = make_card(name, samples, trained, report, gap_ms, seed, directions, note)
        publish(output / name, card, trained, report)
    if as_json:
        show_json(card)
        return
    _tell(card, report)
    say(f"the model is in {output / name}: name it in the policy (model: {name})")


def _samples(
    rows: str | None,
    labels: str | None,
    rules: Path,
    features: list[str] | None,
    types: list[str] | None,
    by: str | None,
    simulated: int | None,
    users: int,
    seed: int,
) -> Samples:
    """Rows with their labels: from files, or from campaigns that are simulated now."""
    from riskengine import judging

    if rows is not None and labels is not None:
        return judging.read_samples(rows, labels, rules, features, types, by, say)
    from riskengine.policy import load_definition
    from riskengine.rehearsal import rehearse

    assert simulated is not None
    with tempfile.TemporaryDirectory() as place, bar("simulating") as moved:
        made = str(Path(place) / "rows.parquet")
        told = str(Path(place) / "labels.jsonl")
        rehearse(load_definition(rules), simulated, users, seed, made, told, by, moved)
        return judging.read_samples(made, told, rules, features, types, by, say)


def _tell(card: Card, report: Report) -> None:
    trained, held_out = card.trained, card.held_out
    show(paint(f"model {card.name}", "bold"))
    show(f"{card.rounds} trees on {trained.rows:,} rows with {trained.frauds:,} frauds")
    if held_out is not None:
        show(f"judged by {held_out.rows:,} later rows with {held_out.frauds:,} frauds:")
    show_metrics(report)


def show_metrics(report: Report) -> None:
    """The figures, with their intervals."""
    width = max(map(len, report.metrics))
    for name, one in report.metrics.items():
        show(f"  {name:{width}}  {one.value:.4f}  ({one.low:.4f} to {one.high:.4f})")
    show(f"  95 % intervals: bootstrap of {report.drawn}; precision_at_k is of {report.top} a day, by day")


def _refuse_unwritable(folder: Path) -> None:
    """Before the minutes are spent: where the nearest folder that there is cannot be written."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise typer.BadParameter(f"{there} is no folder that can be written", param_hint="--out")


def _duration(text: str, option: str) -> int:
    from riskengine.scalars import parse_duration

    found = parse_duration(text)
    if found is None or found < 0:
        raise typer.BadParameter(f"{text!r} is no time: write 7d, 12h or 30m", param_hint=option)
    return found


def _direction(said: str) -> tuple[str, int]:
    name, _, direction = said.partition("=")
    if direction not in ("1", "+1", "-1"):
        raise typer.BadParameter(f"{said!r}: write FEATURE=1 or FEATURE=-1", param_hint="--monotone")
    return name, int(direction)
