"""`riskengine test`: runs the rule tests of a policy."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from riskengine.cli.compiling import compiling_told
from riskengine.cli.exits import FINDINGS, GOOD
from riskengine.cli.folders import RulesArgument, rules_folder
from riskengine.cli.terminal import show, show_json
from riskengine.errors import PolicyError


def test(
    rules: RulesArgument = None,
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Fail where a rule has no firing or no non-firing example.")
    ] = False,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="PATTERN", help="Only tests with this in 'file: name'; * and ? work."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Run the rule tests (*.test.yaml) of a policy.

    No test at all is a failure.
    """
    folder = rules_folder(rules)
    with compiling_told():
        from riskengine import ruletest

        try:
            report = ruletest.run_tests(folder, run, coverage=coverage, stopwatch=time.perf_counter)
        except PolicyError as error:
            if not as_json:
                raise
            show_json({"ok": False, "findings": error.findings})
            raise typer.Exit(FINDINGS) from None
    show(ruletest.to_json(report).decode() if as_json else ruletest.render_report(report))
    raise typer.Exit(GOOD if report.ok else FINDINGS)
