"""The typed tree of an expression, and the arithmetic of what in it is constant."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Final, Literal

import msgspec

Type = Literal["number", "string", "bool", "time", "duration", "location"]


class Symbol(msgspec.Struct, frozen=True, gc=False):
    """A name that stands for a value of the row: 'amount', 'campaigns.ends', 'listed:blocked:device'.

    A string of kind 'text' has all its bytes at hand; one of kind 'hash' (a previous value) can only be
    compared for equality. A location takes two number columns, NAME.lat and NAME.lon.
    """

    name: str
    type: Type
    kind: Literal["text", "hash"] = "text"


class Term(msgspec.Struct, frozen=True, gc=False):
    """A node of the typed tree.

    op          args              value
    number      -                 float (times in ms, durations in s, bools 0.0 or 1.0)
    text        -                 str; stands only inside other text terms, never in a finished tree
    symbol      -                 Symbol
    pair        latitude, longitude                            (a location)
    neg abs log not missing hour weekday       1 arg
    add sub mul div mod min max                2 args
    lt le gt ge eq ne                          2 args of one numeric type
    and or      2 or more
    if          condition, then, otherwise
    default     value, otherwise
    distance    latitude, longitude, latitude, longitude
    one_of      1 arg             tuple[float, ...]; not_one_of alike
    text_in     1 text symbol     tuple[str, ...]; text_not_in alike
    text_eq     2 text symbols    ; text_ne alike
    text_missing 1 text symbol
    matches     1 text symbol     str, the glob
    """

    op: str
    type: Type
    args: tuple[Term, ...] = ()
    value: float | str | Symbol | tuple[float, ...] | tuple[str, ...] | None = None


def made(op: str, type: Type, args: tuple[Term, ...], values: tuple[float, ...] | None = None) -> Term:
    """Return the term, or the constant that it is for every row."""
    for arg in args:
        if arg.op != "number":
            return Term(op, type, args, values)
    numbers = [arg.value for arg in args if isinstance(arg.value, float)]
    if op in ("hour", "weekday"):  # depends on the time zone
        return Term(op, type, args)
    if values is not None:
        numbers.append(float(numbers[0] in values))
    return Term("number", type, (), float(_FOLDS[op](*numbers)))


def milliseconds(duration: Term) -> Term:
    """Return a duration in seconds as the milliseconds that are added to a time."""
    if isinstance(duration.value, float):
        return Term("number", "duration", (), duration.value * 1000.0)
    return made("mul", "duration", (duration, THOUSAND))


def choose(test: Term, then: Term, other: Term) -> Term:
    """Return `then` where the test holds, else `other`; of locations by their parts."""
    if then.type == "location":
        parts = zip(then.args, other.args, strict=True)
        return Term("pair", "location", tuple(made("if", "number", (test, a, b)) for a, b in parts))
    return made("if", then.type, (test, then, other))


def canonical(term: Term) -> str:
    """Return a text of the tree that is the same however it was written."""
    value = term.value.name if isinstance(term.value, Symbol) else term.value
    head = term.op if value is None else f"{term.op}:{value!r}"
    return f"{head}({','.join(map(canonical, term.args))})" if term.args else head


TRUE: Final = Term("number", "bool", (), 1.0)
FALSE: Final = Term("number", "bool", (), 0.0)
THOUSAND: Final = Term("number", "number", (), 1000.0)

_FOLDS: Final[dict[str, Callable[..., float]]] = {  # the arithmetic of program.run, on constants
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": lambda x, y: x / y if y else math.nan,
    "mod": lambda x, y: math.nan if y == 0.0 or math.isinf(x) else x % y,
    "min": lambda x, y: y if y < x or y != y else x,
    "max": lambda x, y: y if y > x or y != y else x,
    "neg": operator.neg,
    "abs": abs,
    "log": lambda x: math.log(x) if x > 0.0 else math.nan,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": lambda x, y: x < y or x > y,
    "and": lambda *args: all(x == 1.0 for x in args),
    "or": lambda *args: any(x == 1.0 for x in args),
    "not": lambda x: x != 1.0,
    "if": lambda test, then, other: then if test == 1.0 else other,
    "default": lambda x, other: x if x == x else other,
    "missing": lambda x: x != x,
    "one_of": lambda x, found: x == x and found,
    "not_one_of": lambda x, found: x == x and not found,
}
