"""`riskengine score`: a file of events in, a file of decisions out."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from riskengine.cli.compiling import compiling_told
from riskengine.cli.exits import FINDINGS, GOOD, INTERRUPTED
from riskengine.cli.folders import RulesOption, rules_folder
from riskengine.cli.terminal import bar, count, interrupts_wait, say, show_json
from riskengine.errors import EventError

if TYPE_CHECKING:
    from riskengine.engine import Engine
    from riskengine.event import Label
    from riskengine.files import Chunk, Output, Rejects


def score(
    input_: Annotated[
        str, typer.Option("--in", metavar="FILE", help="Events: .jsonl or .parquet; - is standard input.")
    ],
    output: Annotated[
        str,
        typer.Option("--out", metavar="FILE", help="Decisions: .jsonl or .parquet; - is standard output."),
    ],
    rules: RulesOption = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Labels; each goes in before the first later event."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another model than the policy's, or none.", show_default=False),
    ] = None,
    store: Annotated[str, typer.Option(metavar="URL", help="Where counters are kept.")] = "memory://",
    journal: Annotated[
        str | None, typer.Option(metavar="URL", help="Keep a journal, as sqlite:///FILE.", show_default=False)
    ] = None,
    features: Annotated[bool, typer.Option("--features", help="Also write every feature.")] = False,
    sort: Annotated[
        bool, typer.Option("--sort", help="Score by time; without, the file's order is arrival order.")
    ] = False,
    rejects: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Where lines go that cannot be scored.", show_default=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, to standard output.")
    ] = False,
) -> None:
    """Score a file of events.

    Time is the events' own: "now" is the latest time seen so far.
    Lines that cannot be scored are told and counted; the exit code is then 1.
    """
    if as_json and output == "-":
        raise typer.BadParameter("--json prints the summary where --out - prints the decisions: choose one")
    _refuse_same_file(input_, output)
    folder = rules_folder(rules)
    actions: Counter[str] = Counter()
    alerts: Counter[str] = Counter()
    interrupted, unknown = False, 0
    with compiling_told():
        from riskengine import files
        from riskengine.engine import Engine

        progress = files.Progress()
        with (
            Engine.open(folder, store=store, journal=journal, model=model) as engine,
            files.Rejects(rejects) as refused,
            files.open_output(output, _feature_types(engine) if features else None) as written,
            bar("scoring") as moved,
        ):
            began = time.perf_counter()
            engine.on_alert(lambda entry: alerts.update([entry.alert] if entry.begins else []))
            try:
                known = files.read_labels(labels, refused.add) if labels is not None else []
                chunks = files.read_events(input_, refused.add, sort=sort, progress=progress)
                counted = {f.label for f in engine.definition.features.values() if f.label is not None}
                parts = files.merge(chunks, known, counted)
                unknown = _score_all(
                    engine,
                    parts,
                    features,
                    written,
                    refused,
                    actions,
                    lambda: moved(progress.done, progress.total),
                )
            except KeyboardInterrupt:
                interrupted = True
    seconds = time.perf_counter() - began
    _tell_rejects(refused, rejects)
    if as_json:
        show_json(
            {
                "ok": not (interrupted or refused.count),
                "events": actions.total(),
                "actions": actions,
                "alerts": alerts,
                "rejected": refused.count,
                "unknown_labels": unknown,
                "interrupted": interrupted,
                "seconds": seconds,
            }
        )
    else:
        _summarise(actions, seconds)
        if alerts:
            say("alerts: " + ", ".join(f"{name} {n:,}" for name, n in alerts.most_common()))
    if unknown:
        say(f"{count(unknown, 'label')} {'is' if unknown == 1 else 'are'} of no event seen before it")
    if interrupted:
        say(f"interrupted: the {count(written.written, 'decision')} made until then are in {output}")
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(FINDINGS if refused.count else GOOD)


def _score_all(
    engine: Engine,
    parts: Iterator[Chunk | Label],
    features: bool,
    output: Output,
    rejects: Rejects,
    actions: Counter[str],
    shown: Callable[[], None],
) -> int:
    """Score, write and count; return how many labels were of no event seen before them."""
    from riskengine.files import Chunk

    latest_ms = unknown = 0
    for part in parts:
        if not isinstance(part, Chunk):
            unknown += not engine.label(part.event_id, part.label, part.time, part.source)
            continue
        # A batch is scored and written whole or not at all, so that no line is cut in the middle.
        with interrupts_wait():
            now = part.now(latest_ms)
            latest_ms = int(now[-1])
            decisions = []
            results = (
                engine.score_many(part.events, features, now=now)
                if part.columns is None
                else engine.score_columns(part.columns, features, now=now)
            )
            for i, result in enumerate(results):
                if isinstance(result, EventError):
                    rejects.add(part.reject(i, str(result)))
                else:
                    decisions.append(result)
            output.write(decisions)
            actions.update(decision.action for decision in decisions)
        shown()
    return unknown


def _summarise(actions: Counter[str], seconds: float) -> None:
    total = actions.total()
    say(f"scored {count(total, 'event')} in {seconds:.1f} s ({total / seconds:,.0f}/s)")
    if total:
        say(", ".join(f"{name} {n:,} ({n / total:.1%})" for name, n in actions.most_common()))


def _tell_rejects(rejects: Rejects, file: str | None) -> None:
    for reject in rejects.first:
        say(str(reject))
    if rejects.count > len(rejects.first):
        say(f"... and {rejects.count - len(rejects.first):,} more")
    if rejects.count:
        where = f"they are in {file}" if file else "name a file with --rejects to keep them"
        say(f"{count(rejects.count, 'line')} could not be used: {where}")


def _feature_types(engine: Engine) -> dict[str, str]:
    return {name: feature.type for name, feature in engine.definition.features.items()}


def _refuse_same_file(source: str, target: str) -> None:
    if source == "-" or target == "-" or not (os.path.exists(source) and os.path.exists(target)):
        return
    if os.path.samefile(source, target):
        raise typer.BadParameter(f"--out is the same file as --in: {target}")
