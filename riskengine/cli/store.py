"""`riskengine store`: begins a shared store, and looks into it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riskengine.cli.commands import Commands
from riskengine.cli.compiling import compiling_told
from riskengine.cli.exits import FINDINGS, GOOD
from riskengine.cli.folders import RulesOption, rules_folder
from riskengine.cli.terminal import show, show_json

StoreOption = Annotated[
    str, typer.Option("--store", metavar="URL", help="Where it is: redis://HOST:PORT/DB.", show_default=False)
]

store = Commands(no_args_is_help=True, help="Begin a shared store, and look into it.")


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
    if facts.lost_events:
        show(
            f"{facts.lost_events:,} events were answered and lost by a server: riskengine rebuild counts them"
        )
    for kind, (keys, size) in facts.kinds.items():
        show(f"{kind:12} {keys:12,} keys {size:14,} bytes")


@store.command("show")
def show_entity(
    entity: Annotated[str, typer.Argument(help="What it is: user, device, ...")],
    value: Annotated[list[str], typer.Argument(help="Its value; of a composite entity its values.")],
    store: StoreOption,
    rules: RulesOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what a store knows of one entity just now: its features, and what it holds of limits."""
    from riskengine.engine import Engine
    from riskengine.models import NONE

    with compiling_told(), Engine.open(rules_folder(rules), store=store, model=NONE) as engine:
        definition = engine.definition
        if entity in definition.entities and len(definition.entities[entity].fields) != len(value):
            fields = definition.entities[entity].fields
            raise typer.BadParameter(f"{entity} is made of {', '.join(fields)}: give each")
        state = engine.look(entity, value)
    if as_json:
        show_json(state._asdict())
        return
    show(f"{entity} {' '.join(value)} goes by {state.key}")
    for name, feature in state.features.items():
        show(f"  {name} = {'missing' if feature is None else feature}")
    for name, amount in state.holds.items():
        show(f"  holds {amount:g} of {name}")
    if not state.features and not state.holds:
        show("  no feature and no limit of this policy goes by it")


@store.command("export")
def export_(
    store: StoreOption,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to.", show_default=False)],
    rules: RulesOption = None,
) -> None:
    """Write the counters, lists and live tables of a store to a file, for another store.

    Decisions stay behind: a retry that comes to the other store is a new event, unless a journal knows it.
    """
    from riskengine.engine import Engine
    from riskengine.models import NONE

    with compiling_told(), Engine.open(rules_folder(rules), store=store, model=NONE) as engine:
        n = engine.export_state(out)
    show(f"{n:,} {'entity' if n == 1 else 'entities'} written to {out}")


@store.command("import")
def import_(
    store: StoreOption,
    in_: Annotated[Path, typer.Option("--in", metavar="FILE", help="What to read.", show_default=False)],
    rules: RulesOption = None,
) -> None:
    """Take a file written by `export` into a store, in the place of what is there of the same entities."""
    from riskengine.engine import Engine
    from riskengine.models import NONE

    if store.startswith("memory:"):
        raise typer.BadParameter("the memory store ends with its process: name a shared store")
    with compiling_told(), Engine.open(rules_folder(rules), store=store, model=NONE) as engine:
        n = engine.import_state(in_)
    show(f"{n:,} {'entity' if n == 1 else 'entities'} read from {in_}")


@store.command()
def holds(
    store: StoreOption,
    journal: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Ask it what was decided; may be given again.", show_default=False),
    ] = None,
    release: Annotated[
        bool, typer.Option("--release", help="Give back what no journal has a decision for.")
    ] = False,
    minutes: Annotated[int, typer.Option(min=1, help="Only events that came so long ago.")] = 10,
    rules: RulesOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List events that were begun and never decided, as their engine died, and what they hold of limits.

    What a journal has a decision for is settled by it. The rest stays held until its windows have passed, it
    comes again, or you give it back with --release: then it is decided anew when it comes again. On a cluster
    what denied events hold still, as their engine died before it gave that back, is listed and settled too.
    """
    from riskengine.policy import load_definition
    from riskengine.rebuild import left_open

    definition = load_definition(rules_folder(rules))
    with compiling_told():
        found = left_open(store, definition, journal or (), minutes * 60_000, release)
    if as_json:
        show_json(found)
    else:
        for one in found:
            held = ", ".join(f"{amount:g} of {name}" for name, amount in one.holds.items()) or "nothing"
            show(f"{one.claim} at {one.time}, {one.age_s:,} s ago: held {held}; {one.outcome}")
        if not found:
            show("nothing was left open")
    raise typer.Exit(FINDINGS if any(one.outcome == "left open" and one.holds for one in found) else GOOD)
