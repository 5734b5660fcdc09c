"""`riskengine lists`: shares lists with partners, as keyed hashes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from riskengine.cli.compiling import compiling_told
from riskengine.cli.folders import RulesOption, rules_folder
from riskengine.cli.store import StoreOption
from riskengine.cli.terminal import count, say, show, show_json
from riskengine.errors import RiskEngineError

if TYPE_CHECKING:
    from riskengine.engine import Engine

lists = typer.Typer(no_args_is_help=True, help="Share lists with partners, as keyed hashes.")
ListArgument = Annotated[
    str, typer.Argument(metavar="LIST", help="One with `shared: PARTNER` in the policy.")
]


@lists.command("export")
def export(
    name: ListArgument,
    entity: Annotated[str, typer.Argument(metavar="ENTITY", help="What of it: phone, device, ...")],
    output: Annotated[Path, typer.Option("--out", metavar="FILE", help="JSON Lines.")],
    store: StoreOption,
    rules: RulesOption = None,
) -> None:
    """Write the entries of a shared list for the partner, without those that are over."""
    from riskengine import sharing

    with compiling_told(), _opened(store, rules) as engine:
        records = engine.share(name, entity)
        partner, key = _partner(engine, name)
    try:
        sharing.write(output, key, partner, name, entity, time.time_ns() // 1_000_000, records)
    except OSError as error:
        raise RiskEngineError(f"{output} cannot be written: {error.strerror}") from None
    say(f"wrote {count(len(records), 'entry').replace('entrys', 'entries')} to {output}")


@lists.command("import")
def import_(
    name: ListArgument,
    file: Annotated[Path, typer.Option("--in", metavar="FILE", help="What the partner wrote.")],
    store: StoreOption,
    rules: RulesOption = None,
    journal: Annotated[
        str | None, typer.Option(metavar="URL", help="The sidecars' journal, so that a rebuild has it too.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Enter what a partner shared: with its source, reason and end, whole or not at all."""
    from riskengine import sharing

    with compiling_told(), _opened(store, rules, journal) as engine:
        partner, key = _partner(engine, name)
        try:
            header, records = sharing.read(file, key, partner)
        except OSError as error:
            raise RiskEngineError(f"{file} cannot be read: {error.strerror}") from None
        done = engine.take_shared(name, header.entity, records, dry_run)
    if as_json:
        show_json({"list": name, "entity": header.entity, "dry_run": dry_run, **done})
        return
    would = "would be " if dry_run else ""
    show(
        f"{header.entity} of {name}: {done['new']:,} {would}new, {done['extended']:,} {would}extended, "
        f"{done['already']:,} there already, {done['expired']:,} expired"
    )


def _opened(store: str, rules: Path | None, journal: str | None = None) -> Engine:
    from riskengine.engine import Engine
    from riskengine.models import NONE

    return Engine.open(rules_folder(rules), store=store, journal=journal, model=NONE)


def _partner(engine: Engine, name: str) -> tuple[str, bytes]:
    from riskengine import sharing

    known = engine.definition.lists.get(name)
    if known is None or known.shared is None:
        raise RiskEngineError(f"the policy has no shared list {name}: write `shared: PARTNER` below it")
    key = sharing.key_of(known.shared, os.environ)
    if key is None:
        raise RiskEngineError(
            f"set {sharing.variable_of(known.shared)} to the key agreed with {known.shared}"
        )
    return known.shared, key
