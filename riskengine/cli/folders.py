"""Which policy a command means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from riskengine.cli.terminal import say
from riskengine.shipped import shipped

RulesArgument = Annotated[
    Path | None,
    typer.Argument(help="The policy folder (./rules, else the shipped one).", show_default=False),
]
RulesOption = Annotated[
    Path | None,
    typer.Option(
        "--rules",
        metavar="DIR",
        help="The policy folder (./rules, else the shipped one).",
        show_default=False,
    ),
]


def rules_folder(given: Path | None) -> Path:
    """What was named, else ./rules, else the policy that ships with the package."""
    if given is not None:
        return given
    here = Path("rules")
    if here.is_dir():
        return here
    found = shipped("rules")
    if Path("policy.yaml").is_file():
        say("this folder has a policy.yaml: if you mean that policy, name its folder, which is . (a dot)")
    say(f"there is no ./rules: using the policy that ships with riskengine ({found})")
    return found
