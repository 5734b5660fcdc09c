"""`riskengine check`: lints a policy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from riskengine.cli.exits import FINDINGS, GOOD
from riskengine.cli.folders import RulesArgument, rules_folder
from riskengine.cli.terminal import show, show_json


def check(
    rules: RulesArgument = None,
    format: Annotated[
        Literal["text", "json", "github", "sarif"], typer.Option("--format", help="How findings are told.")
    ] = "text",
    explain: Annotated[bool, typer.Option("--explain", help="Also say what each counter costs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Lint a policy: every error and warning, with its place.

    Warnings alone are no failure.
    """
    from riskengine import check as checker
    from riskengine.policy import examine

    examined = examine(rules_folder(rules))
    findings = checker.findings_of(examined)
    errors = sum(finding.severity == "error" for finding in findings)
    if as_json or format == "json":
        answer: dict[str, Any] = {"ok": not errors, "findings": findings}
        if explain and examined.definition is not None:
            answer["explain"] = checker.explain(examined.definition)
        show_json(answer)
    else:
        show(checker.report(findings, format))
        if explain and examined.definition is not None:
            show(checker.explain_text(examined.definition))
    raise typer.Exit(FINDINGS if errors else GOOD)
