"""`riskengine replay`: history in, the rows that a model is trained on out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from riskengine.cli.compiling import compiling_told
from riskengine.cli.exits import FINDINGS, GOOD
from riskengine.cli.folders import RulesOption, rules_folder
from riskengine.cli.sources import journal_url
from riskengine.cli.terminal import bar, count, say, show_json

if TYPE_CHECKING:
    from riskengine.compiled import Policy
    from riskengine.definition import Definition
    from riskengine.files import Rejects
    from riskengine.rows import RowsFile


def replay(
    input_: Annotated[
        str,
        typer.Option(
            "--in", metavar="SOURCE", help="Events: .jsonl or .parquet; or a journal: its URL, or its file."
        ),
    ],
    output: Annotated[str, typer.Option("--out", metavar="FILE", help="Rows: .parquet.")],
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Labels; each goes in before the first later event.", show_default=False
        ),
    ] = None,
    rules: RulesOption = None,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="ENTITY", help="Also write this entity's keyed hash.", show_default=False),
    ] = None,
    sort: Annotated[
        bool, typer.Option("--sort", help="Replay by time; without, the file's order is arrival order.")
    ] = False,
    rejects: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Where lines go that cannot be used.", show_default=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, to standard output.")
    ] = False,
) -> None:
    """Make rows of history: for each event its features, as they were at that moment.

    One row an event, in the order of the input: event_id, type, time and every feature by name.
    A journal is replayed as it was served, and its rows are held against the served ones.
    """
    if not output.endswith((".parquet", ".pq")):
        raise typer.BadParameter(f"rows are written as Parquet: name {output} .parquet", param_hint="--out")
    if os.path.exists(input_) and os.path.exists(output) and os.path.samefile(input_, output):
        raise typer.BadParameter(f"--out is the same file as --in: {output}")
    journal = journal_url(input_, "--in")
    if labels is not None and journal is not None:
        raise typer.BadParameter("a journal has its labels in it: leave --labels out")
    folder = rules_folder(rules)
    with compiling_told():
        from riskengine import files
        from riskengine.policy import load_definition
        from riskengine.rows import RowsFile

        definition = load_definition(folder)

        def opened(policy: Policy) -> RowsFile:
            return RowsFile(output, policy, by or ())

        if journal is not None:
            _from_journal(definition, journal, opened, as_json)
            return
        from riskengine import replay as replaying

        progress = files.Progress()
        with files.Rejects(rejects) as refused, bar("replaying") as moved:
            began = time.perf_counter()
            done = replaying.replay_files(
                definition,
                input_,
                labels,
                opened,
                refused.add,
                progress,
                sort,
                lambda: moved(progress.done, progress.total),
            )
    seconds = time.perf_counter() - began
    if as_json:
        show_json(
            {
                "ok": not refused.count,
                "events": done.events,
                "again": done.again,
                "unknown_labels": done.unknown_labels,
                "rejected": refused.count,
                "seconds": seconds,
            }
        )
    else:
        _tell(refused)
        say(f"replayed {count(done.events, 'event')} in {seconds:.1f} s ({done.events / seconds:,.0f}/s)")
        if done.again:
            say(f"{count(done.again, 'event')} came again with the same content: one row each")
        if done.unknown_labels:
            say(f"{count(done.unknown_labels, 'label')} of no event seen before")
    raise typer.Exit(FINDINGS if refused.count else GOOD)


def _from_journal(
    definition: Definition, url: str, opened: Callable[[Policy], RowsFile], as_json: bool
) -> None:
    from riskengine import replay as replaying
    from riskengine.journal import Journal

    with Journal.open(url, create=False) as journal, bar("replaying") as moved:
        done = replaying.replay_journal(definition, journal.replay(), opened, lambda seq: moved(seq, None))
    blurred = replaying.blurred(definition)
    told = {name: n for name, n in (done.features or {}).items() if name not in blurred}
    if as_json:
        show_json(
            {
                "ok": not told,
                "events": done.events,
                "same": done.same,
                "other": done.other,
                "incomparable": done.incomparable,
                "differing": done.features,
                "blurred": blurred,
            }
        )
    else:
        say(f"replayed {count(done.events, 'event')}: {done.same:,} rows are what was served, bit for bit")
        for name, reason in blurred.items():
            say(f"{name} is not to be had exactly: {reason}")
        for name, n in told.items():
            say(f"{name} differs in {count(n, 'row')}")
        if done.incomparable:
            say(f"{count(done.incomparable, 'row')} served by another policy")
    raise typer.Exit(FINDINGS if told else GOOD)


def _tell(rejects: Rejects) -> None:
    for reject in rejects.first:
        say(str(reject))
    if rejects.count > len(rejects.first):
        say(f"... and {rejects.count - len(rejects.first):,} more")
    if rejects.count:
        say(f"{count(rejects.count, 'line')} could not be used: name a file with --rejects to keep them")
