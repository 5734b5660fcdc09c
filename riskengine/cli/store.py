"""`riskengine store`: begins a shared store, and looks into it."""

from __future__ import annotations

from typing import Annotated

import typer

from riskengine.cli.folders import RulesOption, rules_folder
from riskengine.cli.terminal import show, show_json

StoreOption = Annotated[
    str, typer.Option("--store", metavar="URL", help="Where it is: redis://HOST:PORT/DB.", show_default=False)
]

store = typer.Typer(no_args_is_help=True, help="Begin a shared store, and look into it.")


@store.command()
def init(store: StoreOption, rules: RulesOption = None) -> None:
    """Begin a shared store without any counters; one that has begun stays as it is."""
    from riskengine.policy import load_definition
    from riskengine.stores.address import begin

    place = begin(store, load_definition(rules_folder(rules)).tenant)
    show(f"the store of {place.prefix.rstrip(':')} is ready (epoch {place.epoch.decode()})")


@store.command()
def info(
    store: StoreOption,
    rules: RulesOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what a shared store holds: keys and bytes by kind, memory, slow calls."""
    from riskengine.policy import load_definition
    from riskengine.stores.address import survey

    facts = survey(store, load_definition(rules_folder(rules)).tenant)
    if as_json:
        show_json(facts)
        return
    show(f"server {facts.server}, epoch {facts.epoch}, {facts.memory:,} bytes of {facts.memory_max or 'any'}")
    show(f"{facts.slow_calls} slow calls in the server's log")
    for kind, (keys, size) in facts.kinds.items():
        show(f"{kind:12} {keys:12,} keys {size:14,} bytes")
