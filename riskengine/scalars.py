"""Single values of a policy file: names, choices, shares, durations.

Each reader returns the value, or leaves an error at its place and returns None or the default.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

from riskengine import vocabulary
from riskengine.source import Item, Node, ScalarNode, Source, describe

ANY: Final = "any"  # every event type

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_NAME = re.compile(r"[^\W_][\w.-]{0,127}")
_DURATION = re.compile(r"(?:[0-9]+(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"([0-9]+)(ms|s|m|h|d)")
_UNIT_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*%")
_RESERVED: Final = frozenset(keyword.kwlist) | vocabulary.ENVELOPE | {"true", "false", "model", ANY}

T = TypeVar("T", bound=str)


@lru_cache(maxsize=1024)
def parse_duration(text: str) -> int | None:
    """Milliseconds of a duration such as `15m`, `7d` or `1h30m`; None when it is none."""
    if not _DURATION.fullmatch(text):
        return None
    return sum(int(count) * _UNIT_MS[unit] for count, unit in _DURATION_PART.findall(text))


@lru_cache(maxsize=1024)
def share_of(percent: str) -> float | None:
    """The share, 0 to 1, of a percentage such as `25%`; None when it is none."""
    match = _PERCENT.fullmatch(percent)
    share = float(match.group(1)) / 100 if match else 2.0
    return share if share <= 1.0 else None


def tell_missing(source: Source, node: Node, what: str, *keys: str, expected: str | None = None) -> None:
    """Leave the error for keys that have to be there."""
    names = " and ".join(f"`{key}`" for key in sorted(keys))
    source.error(node, "missing-key", f"{what} has no {names}", expected=expected or names)


def check_identifier(source: Source, node: Node, name: str, what: str) -> bool:
    """Whether a name may stand in expressions; else an error."""
    if name in _RESERVED:
        source.error(
            node,
            "reserved",
            f"{name} means something else in expressions or events",
            mend="choose another name",
        )
    elif not _IDENTIFIER.fullmatch(name):
        source.error(
            node,
            "wrong-name",
            f"{name!r} cannot be the name of {what}",
            expected="letters, digits and _, not beginning with a digit; at most 64",
            mend=_identifier_of(name),
        )
    else:
        return True
    return False


def check_name(source: Source, node: Node, name: str, what: str) -> bool:
    """Whether a name may be that of a rule, a limit or a list; else an error."""
    if _NAME.fullmatch(name):
        return True
    source.error(
        node,
        "wrong-name",
        f"{name!r} cannot be the name of {what}",
        expected="letters, digits, '-', '_' and '.', beginning with a letter or digit; at most 128",
    )
    return False


def read_name(source: Source, node: Node, what: str) -> str | None:
    """A name of that kind."""
    name = source.text_of(node, what)
    return name if name is not None and check_name(source, node, name, what) else None


def read_choice(source: Source, item: Item | None, what: str, known: Sequence[T], default: Any) -> Any:
    """One of `known`; the default where nothing is said or something else."""
    if item is None:
        return default
    node = item[1]
    if type(node) is ScalarNode and node.value in known and not node.tag:
        return node.value
    name = source.text_of(node, f"`{what}`")
    if name is not None:
        source.unknown(node, f"`{what}` cannot be {name!r}", known, expected=", ".join(known))
    return default


def read_bool(source: Source, item: Item | None, what: str) -> bool:
    """True or false; false where nothing is said."""
    if item is None:
        return False
    value = source.scalar(item[1]) if type(item[1]) is ScalarNode else None
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else ""
    mend = {"yes": "write true", "on": "write true", "no": "write false", "off": "write false"}.get(word)
    source.error(
        item[1],
        "wrong-type",
        f"`{what}` is true or false",
        found=describe(item[1]),
        expected="true or false",
        mend=mend,
    )
    return False


def read_share(source: Source, node: Node, what: str) -> float | None:
    """A number from 0 to 1."""
    value = source.scalar(node) if type(node) is ScalarNode else None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    mend = None
    percent = _PERCENT.fullmatch(node.value) if type(node) is ScalarNode else None
    if percent and float(percent.group(1)) <= 100:
        mend = f"write {float(percent.group(1)) / 100:g}"
    source.error(
        node,
        "wrong-value",
        f"{what} is a number from 0 to 1",
        found=describe(node),
        expected="0 to 1",
        mend=mend,
    )
    return None


def read_whole(source: Source, node: Node, what: str, least: int, most: int) -> int | None:
    """A whole number."""
    value = source.scalar(node) if type(node) is ScalarNode else None
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    source.error(
        node,
        "wrong-value",
        f"{what} is a whole number",
        found=describe(node),
        expected=f"{least:,} to {most:,}",
    )
    return None


def read_duration(source: Source, node: Node, what: str, least_ms: int, most_ms: int) -> int | None:
    """A duration in ms."""
    text = node.value if type(node) is ScalarNode and not node.tag else ""
    ms = parse_duration(text)
    if ms is not None and least_ms <= ms <= most_ms:
        return ms
    expected = "a duration such as 30s, 15m, 1h30m or 7d"
    if ms is not None:
        expected = f"{say_ms(least_ms)} to {say_ms(most_ms)}"
    mend = "write 0s" if text == "0" else f"write {text}s for seconds" if text.isdecimal() else None
    source.error(
        node, "wrong-value", f"{what} is a duration", found=describe(node), expected=expected, mend=mend
    )
    return None


def say_ms(ms: int) -> str:
    """A duration as people write it, in its largest whole unit."""
    for unit in ("d", "h", "m", "s"):
        if ms and ms % _UNIT_MS[unit] == 0:
            return f"{ms // _UNIT_MS[unit]}{unit}"
    return f"{ms}ms" if ms else "0s"


def _identifier_of(name: str) -> str | None:
    made = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")
    return f"write {made}" if _IDENTIFIER.fullmatch(made) and made not in _RESERVED else None
