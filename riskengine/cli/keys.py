"""`riskengine keys`: the API keys of a sidecar."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from riskengine.cli.commands import Commands
from riskengine.cli.terminal import say, show, show_json

keys = Commands(no_args_is_help=True, help="API keys of the sidecar: make, list, rotate, revoke.")
FileOption = Annotated[
    Path,
    typer.Option("--file", metavar="FILE", envvar="RISKENGINE_KEYS", help="Where their hashes are kept."),
]
FILE = Path("keys.json")


@keys.command("make")
def make(
    name: Annotated[str, typer.Argument(help="Whose it is: a service or a person.")],
    scope: Annotated[
        list[str], typer.Option(help="score, label, lists, policy, read or admin; may be given again.")
    ],
    per_second: Annotated[
        int | None, typer.Option(min=1, help="Requests it may make in a second.", show_default="any number")
    ] = None,
    file: FileOption = FILE,
) -> None:
    """Make a key and print it, this once."""
    from riskengine.service.access import SCOPES, make_key, read_keys

    scopes = tuple(known for known in SCOPES if known in scope)
    wrong = [given for given in scope if given not in SCOPES]
    if wrong:
        raise typer.BadParameter(f"there is no scope {wrong[0]!r}: there are {', '.join(SCOPES)}")
    had_keys = bool(read_keys(file))
    show(make_key(file, name, scopes, per_second, time.time_ns() // 1_000_000))
    begun = "" if had_keys else "; one that began without any is open to all until you restart it"
    say(f"keep it: it cannot be shown again. A sidecar with keys takes it in within a second{begun}")


@keys.command("list")
def list_(
    file: FileOption = FILE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List the keys: what each may do, never the key."""
    from riskengine.service.access import read_keys

    found = read_keys(file)
    if as_json:
        show_json(
            [
                {name: getattr(key, name) for name in ("id", "name", "scopes", "made_ms", "per_second")}
                for key in found
            ]
        )
        return
    for key in found:
        rate = f"{key.per_second}/s" if key.per_second is not None else ""
        show(f"{key.id}  {key.name:20} {','.join(key.scopes)}  {rate}".rstrip())
    if not found:
        say(f"{file} has no keys")


@keys.command("rotate")
def rotate(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As the list shows it.")],
    file: FileOption = FILE,
) -> None:
    """Give a key another secret and print it; the old one ends within a second."""
    from riskengine.service.access import rotate_key

    show(rotate_key(file, key_id, time.time_ns() // 1_000_000))


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As the list shows it.")],
    file: FileOption = FILE,
) -> None:
    """End a key, within a second."""
    from riskengine.service.access import revoke_key

    revoke_key(file, key_id)
    say(f"{key_id} is revoked")
