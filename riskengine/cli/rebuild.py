"""`riskengine rebuild`: the counters of a shared store made anew from what was kept."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from riskengine.cli.compiling import compiling_told
from riskengine.cli.exits import FINDINGS, GOOD
from riskengine.cli.folders import RulesOption, rules_folder
from riskengine.cli.sources import journal_url
from riskengine.cli.terminal import bar, count, say, show_json


def rebuild(
    store: Annotated[
        str, typer.Option(metavar="URL", help="The shared store: redis://HOST:PORT/DB.", show_default=False)
    ],
    from_: Annotated[
        list[str],
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="A journal (sqlite:///FILE, or its file), or events (.jsonl, .parquet); may be given again.",
            show_default=False,
        ),
    ],
    labels: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Labels, where events come from files.", show_default=False),
    ] = None,
    rules: RulesOption = None,
    rejects: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Where lines go that cannot be used.", show_default=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, to standard output.")
    ] = False,
) -> None:
    """Make the counters of a shared store anew, and switch to them when they are whole.

    Until then what is there serves on, and Ctrl-C leaves it as it was; from then on it waits for the end.
    Where there is nothing to count nothing is done. Several sidecars have several journals:
    name them all. A journal is counted as it was decided. Events of files are judged again, by the policy
    and its model. A sidecar on the memory store does this by itself when it starts.
    """
    journals = [journal for source in from_ if (journal := journal_url(source, "--from")) is not None]
    if journals and len(journals) < len(from_):
        raise typer.BadParameter("journals and files of events do not go together", param_hint="--from")
    if journals and labels is not None:
        raise typer.BadParameter("a journal has its labels in it: leave --labels out")
    if store.startswith("memory:"):
        raise typer.BadParameter(
            "the memory store lives in one process, which rebuilds it from its journal when it starts: "
            "name a shared store",
            param_hint="--store",
        )
    folder = rules_folder(rules)
    began = time.perf_counter()
    with compiling_told():
        from riskengine import files
        from riskengine import rebuild as rebuilding
        from riskengine.policy import load_definition
        from riskengine.replay import blurred

        definition = load_definition(folder)
        done = rebuilding.Rebuilt()
        with files.Rejects(rejects) as refused, bar("rebuilding") as moved:
            if journals:
                rebuilding.from_journal_urls(store, definition, journals, done, moved)
            else:
                rebuilding.from_files(store, definition, from_, labels, refused.add, done, moved)
    inexact = blurred(definition) if journals else {}
    if as_json:
        show_json(
            {
                "ok": not refused.count,
                "events": done.events,
                "labels": done.labels,
                "releases": done.releases,
                "edits": done.edits,
                "known": done.known,
                "foreign": done.foreign,
                "unknown": done.unknown,
                "rejected": refused.count,
                "blurred": inexact,
            }
        )
        raise typer.Exit(FINDINGS if refused.count else GOOD)
    for reject in refused.first:
        say(str(reject))
    if refused.count:
        say(f"{count(refused.count, 'line')} could not be used: name a file with --rejects to keep them")
    if done.foreign:
        say(f"{count(done.foreign, 'event')} of a kind that this policy does not have: not counted")
    for name, reason in inexact.items():
        say(f"{name} is not what it was, exactly: {reason}")
    say(
        f"rebuilt from {count(done.events, 'event')}, {count(done.labels, 'label')}, "
        f"{count(done.releases, 'release')} and {count(done.edits, 'edit')} in "
        f"{time.perf_counter() - began:.1f} s: the new counters serve"
    )
    raise typer.Exit(FINDINGS if refused.count else GOOD)
