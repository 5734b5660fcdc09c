"""The command line: what it takes, what it prints, and how it fails. Work is done by the modules below.

One module a command. Answers go to standard output, the rest to standard error. Heavy imports happen inside
the commands, so that `--help` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from riskengine.cli.app import app
from riskengine.cli.exits import ended, heed_interrupts

__all__ = ["app", "main", "run"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and end the process. RISKENGINE_DEBUG=1 shows tracebacks."""
    heed_interrupts()
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    given = list(arguments) if arguments is not None else None
    return ended(lambda: app(args=given, prog_name="riskengine"))
