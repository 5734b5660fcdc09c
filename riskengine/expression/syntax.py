"""The text of an expression to Python's tree of it, or to the finding that says why there is none.

Nothing is evaluated, and nothing is allowed yet: the checker holds the tree against the whitelist.
"""

from __future__ import annotations

import ast
import re
import warnings
from datetime import UTC, datetime
from typing import Final

import msgspec

from riskengine.errors import Finding, Place

CHARACTERS_MAX: Final = 4_000
DEPTH_MAX: Final = 50


class Node(msgspec.Struct, frozen=True):
    """Text that parsed: Python's tree of it, not yet held against the whitelist (`check` does)."""

    source: str
    place: Place
    tree: ast.expr
    shift: int  # characters of white space before the tree's text


def parse(source: str, place: Place) -> Node | list[Finding]:
    """Read the text of an expression that starts at `place`.

    Findings have no `source_line`: who holds the file adds it.
    """
    if len(source) > CHARACTERS_MAX:
        return [
            Finding(
                code="too-long",
                place=place,
                message=f"this expression has {len(source):,} characters",
                found=f"{len(source):,} characters",
                expected=f"at most {CHARACTERS_MAX:,}",
                mend="split it into several rules, or name a part of it as a `value` feature",
            )
        ]
    text = source.strip()
    if not text:
        return [
            Finding(
                code="empty",
                place=place,
                message="this expression is empty",
                expected="an expression such as amount > 100",
            )
        ]
    flat = text.replace("\n", " ").replace("\r", " ")
    shift = len(source) - len(source.lstrip())
    if "\\" in flat:
        return [_backslash_finding(source, place, flat, shift)]
    try:
        if _GLUED.search(flat):  # "1and 2" only warns; here it is a mistake
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                tree = compile(flat, "<expression>", "eval", ast.PyCF_ONLY_AST)
        else:
            tree = compile(flat, "<expression>", "eval", ast.PyCF_ONLY_AST)
    except SyntaxError as error:
        return [_syntax_finding(source, place, flat, shift, error)]
    except (RecursionError, MemoryError):
        return [too_deep(place, len(text))]
    except ValueError as error:  # a NUL, or half of a surrogate pair
        return [Finding(code="syntax", place=place, message=f"this is not an expression: {error}")]
    assert isinstance(tree, ast.Expression)
    if "#" in flat and (finding := _comment_finding(source, place, flat, shift, tree.body)):
        return [finding]
    return Node(source, place, tree.body, shift)


def rfc3339_ms(text: str) -> int | None:
    """Return epoch milliseconds of an RFC 3339 time with an offset, or None if `text` is none."""
    if not _RFC3339.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:
        return None
    since = moment - _EPOCH
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_GLUED: Final = re.compile(r"(?<![\w.])[0-9][0-9a-fA-FxXoO._]*[A-Za-z]")
_STRINGS: Final = re.compile(r"'[^']*'|\"[^\"]*\"")

# What people write who come from another language: pattern, message, mend.
_SLIPS: Final = [
    (re.compile(r"&&"), "'&&' is not an operator", "write `and`"),
    (re.compile(r"\|\|"), "'||' is not an operator", "write `or`"),
    (re.compile(r"<>"), "'<>' is not an operator", "write `!=`"),
    (re.compile(r"!(?!=)"), "'!' is not an operator", "write `not`"),
    (re.compile(r"(?<![=<>!:])=(?!=)"), "'=' does not compare", "write `==`"),
    (re.compile(r"(?<![\w.])[0-9.]+d\b"), "a duration is written with a function", "write days(7)"),
    (re.compile(r"(?<![\w.])[0-9.]+h\b"), "a duration is written with a function", "write hours(1)"),
    (re.compile(r"(?<![\w.])[0-9.]+m\b"), "a duration is written with a function", "write minutes(30)"),
    (re.compile(r"(?<![\w.])[0-9.]+%(?!\s*[\w(])"), "'%' is the remainder here", "write 0.05 for 5%"),
]


def place_at(source: str, place: Place, offset: int) -> Place:
    """Return the place of the character `offset` of a text that starts at `place`."""
    before = source[:offset]
    line = before.count("\n")
    if line == 0:
        return Place(place.file, place.line, place.column + offset)
    return Place(place.file, place.line + line, offset - before.rfind("\n"))


def _syntax_finding(source: str, place: Place, flat: str, shift: int, error: SyntaxError) -> Finding:
    if "too many nested" in error.msg:
        return too_deep(place, len(flat))
    plain = _STRINGS.sub(lambda match: "_" * len(match.group()), flat)
    for pattern, message, mend in _SLIPS:
        if match := pattern.search(plain):
            return Finding(
                code="syntax",
                place=place_at(source, place, shift + match.start()),
                message=message,
                found=match.group(),
                mend=mend,
                length=match.end() - match.start(),
            )
    offset = min(max((error.offset or 1) - 1, 0), len(flat) - 1)
    return Finding(
        code="syntax",
        place=place_at(source, place, shift + offset),
        message=f"this is not an expression: {error.msg}",
        found=flat[offset : offset + 20],
        expected="an expression such as amount > 100 and region == 'CN'",
    )


def _comment_finding(source: str, place: Place, flat: str, shift: int, tree: ast.expr) -> Finding | None:
    end = len(flat.encode()[: tree.end_col_offset].decode())
    tail = flat[end:]
    if "#" not in tail:
        return None
    return Finding(
        code="syntax",
        place=place_at(source, place, shift + end + tail.index("#")),
        message="a comment inside of an expression would hide what follows it",
        found=tail[tail.index("#") :][:20],
        mend="move the comment to its own line of the YAML file",
    )


def _backslash_finding(source: str, place: Place, flat: str, shift: int) -> Finding:
    return Finding(
        code="syntax",
        place=place_at(source, place, shift + flat.index("\\")),
        message="a backslash means nothing in an expression",
        found=flat[flat.index("\\") :][:20],
        mend="write the character itself; a quote stands between quotes of the other kind",
    )


def too_deep(place: Place, length: int) -> Finding:
    """Return the finding for nesting past the bound."""
    return Finding(
        code="too-deep",
        place=place,
        message=f"this expression is nested more than {DEPTH_MAX} deep",
        expected=f"at most {DEPTH_MAX} operators inside one another",
        mend="name a part of it as a `value` feature",
        length=max(1, length),
    )
