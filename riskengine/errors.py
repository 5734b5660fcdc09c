"""What can go wrong, told to people: where, what was found, what was expected, and the mend.

Everything riskengine raises on purpose is a `RiskEngineError`; anything else is a bug of ours.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

Severity = Literal["error", "warning"]


class Place(msgspec.Struct, frozen=True, order=True, gc=False):
    """A spot in a file, for people: lines and columns count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        """`file:line:column`, as editors and terminals make links of."""
        return f"{self.file}:{self.line}:{self.column}"


class Finding(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One thing to say about a policy. `length` is how many characters of `source_line` it concerns.

    `code` is stable and short ('unknown-name'); `source_line` is the whole line of the file, or None
    where there is none to show (a folder that does not exist).
    """

    severity: Severity = "error"
    code: str
    place: Place
    message: str
    found: str | None = None
    expected: str | None = None
    mend: str | None = None
    source_line: str | None = None
    length: int = 1


class Problem(msgspec.Struct, frozen=True, gc=False):
    """One thing wrong with an event. `pointer` is a JSON pointer into it ('/amount')."""

    pointer: str
    code: str
    message: str
    expected: str | None = None
    found: str | None = None


class RiskEngineError(Exception):
    """The root of everything raised on purpose. Its text says what happened and what to do."""


class PolicyError(RiskEngineError):
    """A policy that may not be used. `findings` holds every finding, warnings too."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings: tuple[Finding, ...] = tuple(findings)
        errors = sum(finding.severity == "error" for finding in self.findings)
        shown = "\n\n".join(render(finding) for finding in self.findings)
        super().__init__(f"the policy has {errors} error{'' if errors == 1 else 's'}\n\n{shown}")


class EventError(RiskEngineError):
    """An event that may not be scored. `problems` holds every problem found in it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("; ".join(f"{p.pointer}: {p.message}" if p.pointer else p.message for p in problems))


def render(finding: Finding) -> str:
    """A finding as text: `file:line:column: severity: message [code]`, the source line, a caret, the mend."""
    lines = [f"{finding.place}: {finding.severity}: {finding.message} [{finding.code}]"]
    if finding.source_line is not None:
        number = str(finding.place.line)
        before = finding.source_line[: finding.place.column - 1]
        marked = finding.source_line[finding.place.column - 1 :][: max(finding.length, 1)]
        # A tab stays a tab so that the caret stands under its character at any tab width.
        pad = "".join(c if c == "\t" else " " * _cells(c) for c in before)
        lines.append(f"  {number} | {finding.source_line}")
        lines.append(f"  {' ' * len(number)} | {pad}{'^' * max(1, sum(map(_cells, marked)))}")
    for name, text in (("found", finding.found), ("expected", finding.expected), ("mend", finding.mend)):
        if text is not None:
            lines.append(f"  {name}: {text}")
    return "\n".join(lines)


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when nothing is near."""
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return close[0] if close else None


def _cells(character: str) -> int:
    """Columns a character takes on a terminal: 2 for wide ones, 0 for combining ones."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
