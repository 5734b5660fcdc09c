"""`riskengine lists`: says what stands on a list, and shares lists with partners, as keyed hashes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from riskengine.cli.compiling import compiling_told
from riskengine.cli.folders import RulesOption, rules_folder
from riskengine.cli.store import StoreOption
from riskengine.cli.terminal import count, say, show, show_json
from riskengine.errors import RiskEngineError

if TYPE_CHECKING:
    from riskengine.engine import Engine

lists = typer.Typer(no_args_is_help=True, help="Look at lists, and share them with partners.")
ListArgument = Annotated[
    str, typer.Argument(metavar="LIST", help="One with `shared: PARTNER` in the policy.")
]


@lists.command("show")
def show_list(
    name: Annotated[str, typer.Argument(metavar="LIST", help="Any list of the policy.")],
    store: StoreOption,
    entity: Annotated[
        str | None, typer.Argument(metavar="[ENTITY]", help="Only what it has of user, device, ...")
    ] = None,
    rules: RulesOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what stands on a list now: until when, why, by whom, and by which path a block reached it.

    Values are shown as the keyed hashes that they are kept as; `store show` says that of a value.
    """
    with compiling_told(), _opened(store, rules) as engine:
        known = engine.definition.lists.get(name)
        asked = [entity] if entity is not None or known is None else list(known.of)
        standing = [(of, entry) for of in asked for entry in engine.list_standing(name, of or "")]
    if as_json:
        show_json([{"entity": of, **entry} for of, entry in standing])
        return
    for of, entry in standing:
        show(f"{of} {entry['key']}  {_told(entry)}")
    say(f"{_entries(len(standing))} on {name}")


def _told(entry: Mapping[str, Any]) -> str:
    until = "for good" if entry["expires"] is None else f"until {_date(entry['expires'])}"
    said = [until, f"since {_date(entry['time'])}"]
    said += [entry["reason"]] if entry["reason"] else []
    said += [f"by {entry['author']}"] if entry["author"] else []
    if "path" in entry:
        said.append(f"path {entry['path']}")
    for path in entry.get("paths", ()):
        by = " -> ".join(f"{one['entity']} {one['key']}" for one in path["via"])
        said.append(f"path {path['path']} from {path['list']} in {count(path['distance'], 'step')}: {by}")
    return ", ".join(said)


def _date(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1_000, UTC):%Y-%m-%dT%H:%M:%SZ}"


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
    say(f"wrote {_entries(len(records))} to {output}")


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


def _entries(number: int) -> str:
    return count(number, "entry").replace("entrys", "entries")


def _opened(store: str, rules: Path | None, journal: str | None = None) -> Engine:
    from riskengine.engine import Engine
    from riskengine.models import NONE

    if store.startswith("memory:"):
        raise RiskEngineError(
            "lists of the memory store are in the process that serves: ask for and enter single values there "
            "(GET and PUT /v1/lists/LIST/ENTITY/VALUE), or serve on a shared store (redis://HOST:PORT/DB) to "
            "show, export or import whole lists"
        )
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
