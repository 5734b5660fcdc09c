"""All commands under one roof, in the order in which a newcomer meets them."""

from __future__ import annotations

from typing import Annotated

import typer

from riskengine.cli import (
    alerts,
    check,
    demo,
    evaluate,
    init,
    journal,
    keys,
    lists,
    rebuild,
    replay,
    ruletests,
    score,
    serve,
    simulate,
    store,
    train,
)
from riskengine.cli.commands import Commands

app = Commands(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Real-time fraud and anti-abuse scoring: counters, analysts' rules and a model.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        try:
            number = metadata.version("riskengine")
        except metadata.PackageNotFoundError:
            number = "(not installed: a checkout)"
        typer.echo(f"riskengine {number}")
        raise typer.Exit


@app.callback()
def _before(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """What stands before a command."""


app.command("demo")(demo.demo)
app.command("init")(init.init)
app.command("check")(check.check)
app.command("test")(ruletests.test)
app.command("score")(score.score)
app.command("simulate")(simulate.simulate)
app.command("replay")(replay.replay)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.add_typer(store.store, name="store")
app.command("serve")(serve.serve)
app.command("rebuild")(rebuild.rebuild)
app.add_typer(keys.keys, name="keys")
app.add_typer(journal.journal, name="journal")
app.command("alerts")(alerts.alerts)
app.add_typer(lists.lists, name="lists")
