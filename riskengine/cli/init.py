"""`riskengine init`: the shipped policy, copied out to be changed."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from riskengine.cli.terminal import count, show, show_json
from riskengine.errors import RiskEngineError
from riskengine.shipped import shipped


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder, or an empty one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Copy the shipped policy into a folder, ready to edit.

    Nothing that is there already is overwritten.
    """
    source = shipped("rules")
    _refuse_what_is_there(folder)
    copied = _copy(source, folder)
    if as_json:
        show_json({"ok": True, "folder": str(folder), "files": copied})
        return
    show(f"{count(len(copied), 'file')} in {folder}: a policy with its tests and a sample of events.")
    named = "" if folder == Path("rules") else f" {folder}"
    option = "" if folder == Path("rules") else f" --rules {folder}"
    show("Change a rule there, then:")
    for command, why in (
        (f"riskengine check{named}", "every error with its place and its mend"),
        (f"riskengine test{named}", "the examples in *.test.yaml"),
        (f"riskengine score{option} --in {folder}/samples/events.jsonl --out -", ""),
        (f"riskengine demo --rules {folder}", "a campaign day under your rules"),
    ):
        show(f"  {command:36}  {f'# {why}' if why else ''}".rstrip())


def _refuse_what_is_there(folder: Path) -> None:
    if folder.is_dir():
        if any(folder.iterdir()):
            raise RiskEngineError(
                f"{folder} is there already and is not empty, so nothing was written. Name another folder: "
                f"riskengine init {folder}-new"
            )
    elif folder.exists() or folder.is_symlink():
        raise RiskEngineError(f"{folder} is a file. Name a folder that does not exist yet.")
    elif any(parent.is_file() for parent in folder.parents):
        raise RiskEngineError(f"{folder} cannot be made: {folder.parent} is a file.")


def _copy(source: Path, folder: Path) -> list[str]:
    """Copy under another name beside it first, so that the folder is there whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return _copy_whole(source, folder)
    except OSError as error:
        raise RiskEngineError(
            f"{folder} cannot be made: {error.strerror}. Name a folder in a place where you may write."
        ) from error


def _copy_whole(source: Path, folder: Path) -> list[str]:
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as room:
        made = Path(room) / "rules"
        shutil.copytree(source, made, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        os.replace(made, folder)  # over an empty folder too
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
