"""Expressions: what is refused and how it is said, and that the kernel computes what plain Python does."""

from __future__ import annotations

import hashlib
import math
import os
import struct
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive import Duration, Evaluation, Location, Time, Value

from riskengine.calendar import timezone_table
from riskengine.errors import Finding, Place, render
from riskengine.expression import (
    CHARACTERS_MAX,
    Expression,
    Node,
    Symbol,
    parse,
    parse_and_check,
    rfc3339_ms,
)
from riskengine.program import Layout, Program, compile, execute, fits

ZONE = "America/New_York"
HERE = Place("rules.yaml", 12, 11)
ROOT = Path(__file__).resolve().parent.parent

NUMBERS = ("amount", "count", "t.budget")
TEXTS = ("region", "city", "t.region")
SYMBOLS = {
    symbol.name: symbol
    for symbol in (
        *(Symbol(name, "number") for name in NUMBERS),
        *(Symbol(name, "string") for name in TEXTS),
        Symbol("prev_region", "string", "hash"),
        Symbol("verified", "bool"),
        Symbol("time", "time"),
        Symbol("t.ends", "time"),
        Symbol("user_age", "duration"),
        Symbol("location", "location"),
        Symbol("prev_location", "location"),
    )
}


class Names:
    def lookup(self, name: str) -> Symbol | None:
        return SYMBOLS.get(name)

    def names(self) -> Iterable[str]:
        return SYMBOLS

    def listed(self, name: str, entity: str) -> Symbol | str:
        if (name, entity) == ("blocked", "device"):
            return Symbol("listed:blocked:device", "bool")
        return f"there is no list '{name}' of {entity}"


def read(source: str) -> Expression:
    expression = parse_and_check(source, HERE, Names())
    assert isinstance(expression, Expression), [finding.message for finding in expression]
    return expression


def refused(source: str) -> list[Finding]:
    findings = parse_and_check(source, HERE, Names())
    assert isinstance(findings, list), source
    return findings


def hasher(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


# Rows as arrays.


Row = Mapping[str, Value]


@dataclass(frozen=True)
class Table:
    """Rows laid out as the engine does it: fields as text, one table column in the tables' pool."""

    layout: Layout
    str_off: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    str_len: np.ndarray[tuple[int, int], np.dtype[np.int32]]
    str_hash: np.ndarray[tuple[int, int], np.dtype[np.uint64]]
    text: np.ndarray[tuple[int], np.dtype[np.uint8]]
    pool: np.ndarray[tuple[int], np.dtype[np.uint8]]
    rows: Sequence[Row]

    def cells(self) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        cells = np.full((self.layout.width, len(self.rows)), np.nan)
        for name, column in self.layout.numbers.items():
            cells[column] = [plain(row, name) for row in self.rows]
        return cells

    def run(self, program: Program) -> list[list[float]]:
        cells = self.cells()
        execute(
            program, cells, self.str_off, self.str_len, self.str_hash, self.text, self.pool,
            timezone_table(ZONE),
        )  # fmt: skip
        return [[float(x) for x in cells[column]] for column in program.outputs]


def table(rows: Sequence[Row]) -> Table:
    layout = Layout()
    for symbol in SYMBOLS.values():
        if symbol.type == "string":
            layout.add_string(symbol.name, symbol.kind)
        elif symbol.type == "location":
            layout.add_number(symbol.name + ".lat")
            layout.add_number(symbol.name + ".lon")
        else:
            layout.add_number(symbol.name)
    shape = len(rows), layout.strings_width
    off, length = np.zeros(shape, np.int64), np.full(shape, -1, np.int32)
    hashes = np.zeros(shape, np.uint64)
    text, pool = bytearray(b"?"), bytearray()
    for j, row in enumerate(rows):
        for name, column in layout.strings.items():
            value = row.get(name)
            if not isinstance(value, str):
                continue
            data = value.encode()
            kept = data[:24] if name == "prev_region" else data
            length[j, column] = len(kept)
            hashes[j, column] = hasher(data)
            if name.startswith("t."):
                off[j, column] = -1 - len(pool)
                pool += kept
            else:
                off[j, column] = len(text)
                text += kept
    as_bytes = [np.frombuffer(bytes(part) + b"!", np.uint8).copy() for part in (text, pool)]
    return Table(layout, off, length, hashes, as_bytes[0], as_bytes[1], rows)


def plain(row: Row, name: str) -> float:
    value = row.get(name.removesuffix(".lat").removesuffix(".lon") if "location" in name else name)
    match value:
        case None:
            return math.nan
        case Time(ms):
            return ms
        case Duration(seconds):
            return seconds
        case Location(lat, lon):
            return lat if name.endswith(".lat") else lon
        case str():
            raise AssertionError(name)
    return float(value)


def values_of(sources: Sequence[str], rows: Sequence[Row]) -> list[list[float]]:
    """One list a source, of one value a row."""
    rows_table = table(rows)
    return rows_table.run(compile([read(source) for source in sources], rows_table.layout, hasher))


def value_of(source: str, **row: Value) -> float:
    return values_of([source], [{name.replace("t_", "t."): value for name, value in row.items()}])[0][0]


def naive_value(source: str, row: Row) -> float:
    found = Evaluation(row.get, ZoneInfo(ZONE), column=lambda a, b: row.get(f"{a}.{b}")).value_of(source)
    return plain({"found": found}, "found")


def bits(values: Iterable[float]) -> list[bytes]:
    return [struct.pack("<d", math.nan if value != value else value) for value in values]


# The kernel against plain Python, over drawn trees and rows.

numbers = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, 100.0, 1e300, -1e300, 5e-324]),
    st.floats(-1e6, 1e6).map(lambda x: round(x, 3)),
)
texts = st.sampled_from(["CN", "US", "cn", "上海", "上海市", "é", "a*", "", "x" * 30, "x" * 31, "AB12", "A"])
globs = st.sampled_from(["*", "", "A*", "?", "??", "*海*", "?海", "*?", "a*", "*x?x*", "A*1?", "**"])
instants = st.integers(0, 4_102_444_800_000).map(float)

VALUES: dict[str, st.SearchStrategy[Value]] = {
    "number": st.one_of(numbers, st.sampled_from([math.inf, -math.inf])),
    "string": texts,
    "bool": st.booleans(),
    "time": instants.map(Time),
    "duration": st.one_of(numbers.filter(lambda x: abs(x) < 1e9), st.just(86_400.0)).map(Duration),
    "location": st.builds(Location, st.floats(-90.0, 90.0), st.floats(-180.0, 180.0)),
}
rows = st.fixed_dictionaries({name: st.none() | VALUES[symbol.type] for name, symbol in SYMBOLS.items()})


def literal(value: float) -> str:
    return f"({value!r})" if value < 0 or math.copysign(1.0, value) < 0 else repr(value)


def sources() -> dict[str, st.SearchStrategy[str]]:
    """Strategies for well-typed source texts of every type."""
    made: dict[str, st.SearchStrategy[str]] = {}
    number, duration, time, bool_, text, whole_text, location = (
        st.deferred(lambda name=name: made[name])  # type: ignore[misc]  # a default binds the loop's name
        for name in ("number", "duration", "time", "bool", "text", "whole_text", "location")
    )

    def form(pattern: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.tuples(*parts).map(lambda drawn: pattern.format(*drawn))

    def common(own: st.SearchStrategy[str]) -> list[st.SearchStrategy[str]]:
        return [form("({0} if {1} else {2})", own, bool_, own), form("default({0}, {1})", own, own)]

    def arithmetic(own: st.SearchStrategy[str]) -> list[st.SearchStrategy[str]]:
        return [
            form("abs({0})", own),
            form("(-{0})", own),
            form("({0} {1} {2})", own, st.sampled_from(["+", "-"]), own),
            form("{0}({1}, {2})", st.sampled_from(["min", "max"]), own, own),
        ]

    quoted = texts.map(repr)
    orders = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    equals = st.sampled_from(["==", "!="])
    contains = st.sampled_from(["in", "not in"])
    made["number"] = st.one_of(
        st.sampled_from(NUMBERS),
        numbers.map(literal),
        *arithmetic(number),
        *common(number),
        form("({0} {1} {2})", number, st.sampled_from(["*", "/", "%"]), number),
        form("({0} / {1})", duration, duration),
        form("log({0})", number),
        form("{0}({1})", st.sampled_from(["hour", "weekday"]), st.sampled_from(["time", "t.ends"])),
        form("distance_km({0}, {1})", location, location),
    )
    made["duration"] = st.one_of(
        st.just("user_age"),
        form("{0}({1})", st.sampled_from(["days", "hours", "minutes"]), st.integers(-9, 99).map(str)),
        form("minutes({0})", number),
        form("({0} - {1})", time, time),
        form("({0} * {1})", duration, number),
        form("({0} * {1})", number, duration),
        form("({0} / {1})", duration, number),
        *arithmetic(duration),
        *common(duration),
    )
    made["time"] = st.one_of(
        st.sampled_from(["time", "t.ends"]),
        form("({0} {1} {2})", time, st.sampled_from(["+", "-"]), duration),
        form("({0} + {1})", duration, time),
        *common(time),
    )
    made["location"] = st.one_of(st.sampled_from(["location", "prev_location"]), *common(location))
    made["whole_text"] = st.one_of(st.sampled_from(TEXTS), quoted, *common(whole_text))
    made["text"] = st.one_of(whole_text, st.just("prev_region"), *common(text))
    made["bool"] = st.one_of(
        st.sampled_from(["verified", "true", "False"]),
        form("({0} {1} {2})", number, orders, number),
        form("({0} {1} {2} {3} {4})", number, orders, number, orders, number),
        form("({0} {1} {2})", duration, orders, duration),
        form("({0} {1} {2})", time, orders, st.one_of(time, st.just("'2026-11-11T00:00:00+08:00'"))),
        form("({0} {1} {2})", bool_, equals, bool_),
        form("({0} {1} {2})", text, equals, text),
        form("({0} {1} [{2}, {3}, {2}])", text, contains, quoted, quoted),
        form("({0} {1} [{2}, {3}, 0])", number, contains, numbers.map(literal), numbers.map(literal)),
        form("({0} and {1})", bool_, bool_),
        form("({0} or {1} or {2})", bool_, bool_, bool_),
        form("({0} and {1} and {2} and {3})", bool_, bool_, bool_, bool_),
        form("(not {0})", bool_),
        form("missing({0})", st.one_of(number, duration, time, bool_, text, location)),
        form("matches({0}, {1})", whole_text, globs.map(repr)),
        *common(bool_),
    )
    return made


SOURCES = sources()
drawn_sources = st.one_of(*(SOURCES[name] for name in ("bool", "bool", "number", "duration", "time")))


@given(st.lists(drawn_sources, min_size=1, max_size=4), st.lists(rows, min_size=1, max_size=5))
def test_the_kernel_computes_what_plain_python_does(texts: list[str], drawn: list[dict[str, Value]]) -> None:
    small = [text for text in texts if isinstance(parse_and_check(text, HERE, Names()), Expression)]
    for source, found in zip(small, values_of(small, drawn), strict=True):
        assert bits(found) == bits(naive_value(source, row) for row in drawn), source


@given(st.lists(drawn_sources, min_size=1, max_size=4), st.lists(rows, min_size=1, max_size=3))
def test_a_row_alone_and_a_row_among_many_are_the_same(
    texts: list[str], drawn: list[dict[str, Value]]
) -> None:
    small = [text for text in texts if isinstance(parse_and_check(text, HERE, Names()), Expression)]
    many = [drawn[i % len(drawn)] for i in range(150)]  # two blocks of lanes, and part of a third
    alone = [values_of(small, [row]) for row in drawn]
    for k, column in enumerate(values_of(small, many)):
        assert bits(column) == bits(alone[j % len(drawn)][k][0] for j in range(150))


@given(st.text("ab海é*?", max_size=8), st.text("ab海é", max_size=12))
def test_globs_fit_whole_characters(glob: str, text: str) -> None:
    def fits_here(g: str, t: str) -> bool:
        if not g:
            return not t
        if g[0] == "*":
            return any(fits_here(g[1:], t[i:]) for i in range(len(t) + 1))
        return bool(t) and g[0] in ("?", t[0]) and fits_here(g[1:], t[1:])

    pool, data = (np.frombuffer(b"#" + s.encode() + b"#", np.uint8).copy() for s in (glob, text))
    assert fits(pool, 1, len(pool) - 1, data, 1, len(data) - 1) == fits_here(glob, text)


CORPUS = [
    "amount * 1.1 - count / 3", "amount % 7", "-amount % -0.3", "log(amount) + abs(count)", "hour(time)",
    "weekday(t.ends - days(1))", "distance_km(location, prev_location)", "user_age / minutes(1)",
    "region == 'CN' and city != t.region", "region != prev_region", "matches(region, '*?海*')",
    "city in ['CN', 'US', '上海'] or prev_region not in ['CN']", "amount in [1, 2.5, 100]",
    "min(amount, count, t.budget) < max(amount, 0)", "default(amount, 5) if verified else default(count, -1)",
    "missing(region) or missing(location) or not verified", "1 < amount <= 100 != count",
    "time + user_age > t.ends", "amount * 1e308 * 10 - count * 1e308 * 10",
]  # fmt: skip


def corpus_values() -> list[str]:
    """What the corpus gives for fixed rows, as hexadecimal floats."""
    fixed: list[dict[str, Value]] = [
        {},
        dict.fromkeys(SYMBOLS),
        {
            "amount": 2.5, "count": 0.0, "t.budget": -7.25, "region": "上海市", "city": "CN",
            "t.region": "CN", "prev_region": "上海市", "verified": True, "time": Time(1_793_548_799_999.0),
            "t.ends": Time(1_793_602_800_000.0), "user_age": Duration(86_399.5),
            "location": Location(31.2304, 121.4737), "prev_location": Location(-31.2304, -58.5263),
        },
        {"amount": math.inf, "count": -math.inf, "region": "", "verified": False, "time": Time(0.0)},
        {"amount": -5.0, "count": 1e300, "region": "é", "city": "US", "user_age": Duration(0.0)},
    ]  # fmt: skip
    return [float(x).hex() for column in values_of(CORPUS, fixed) for x in column]


def test_the_kernel_without_numba_is_the_same_to_the_bit() -> None:
    program = "from test_expression import corpus_values; print(*corpus_values())"
    shown = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert shown.split() == corpus_values()


# Semantics worth an example each.


@pytest.mark.parametrize(
    ("source", "row", "value"),
    [
        ("amount > 5", {}, 0.0),
        ("not amount > 5", {}, 1.0),
        ("amount != 5", {}, 0.0),
        ("amount not in [5]", {}, 0.0),
        ("region not in ['CN']", {}, 0.0),
        ("region != 'CN'", {}, 0.0),
        ("not region == 'CN'", {}, 1.0),
        ("not verified", {}, 1.0),
        ("verified and true", {}, 0.0),
        ("1 if verified else 2", {}, 2.0),
        ("missing(amount / 0)", {"amount": 1.0}, 1.0),
        ("missing(log(0))", {}, 1.0),
        ("missing(min(amount, 1))", {}, 1.0),
        ("default(amount, 7)", {}, 7.0),
        ("amount % 3", {"amount": -1.0}, 2.0),
        ("1 < amount < 3", {"amount": 2.0}, 1.0),
        ("1 < amount < 3", {"amount": 3.0}, 0.0),
        ("time > '2026-11-11T00:00:00+08:00'", {"time": Time(1_794_326_400_000.0)}, 0.0),
        ("time >= '2026-11-11T00:00:00+08:00'", {"time": Time(1_794_326_400_000.0)}, 1.0),
        ("(time - '2026-11-11T00:00:00+08:00') / hours(1)", {"time": Time(1_794_330_000_000.0)}, 1.0),
        ("days(1) / hours(1)", {}, 24.0),
        ("region == 'cafe\u0301'", {"region": "café"}, 1.0),  # literals are composed, as values are
        ("matches(region, 'é?')", {"region": "é海"}, 1.0),
        ("prev_region == '12345678901234567890123456'", {"prev_region": "1234567890123456789012345"}, 0.0),
        ("region == default(city, 'none')", {"region": "none"}, 1.0),
        ("missing(default(region, city))", {}, 1.0),
    ],
)  # fmt: skip
def test_semantics(source: str, row: dict[str, Value], value: float) -> None:
    assert value_of(source, **row) == value


def test_hours_and_weekdays_are_the_policys() -> None:
    monday_early_utc = Time(1_762_131_600_000.0)  # 2025-11-03T01:00:00Z, still Sunday 20:00 in New York
    assert value_of("hour(time)", time=monday_early_utc) == 20.0
    assert value_of("weekday(time)", time=monday_early_utc) == 7.0


def test_a_list_is_a_column() -> None:
    expression = read("listed('blocked', device)")
    layout = Layout()
    column = layout.add_number("listed:blocked:device")
    assert expression.symbols() == {Symbol("listed:blocked:device", "bool")}
    assert compile([expression], layout, hasher).outputs.tolist() == [column]


# What an expression is, beside its value.


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("2 * 3 + 1", 7.0),
        ("days(7)", 604_800.0),
        ("true", 1.0),
        ("1 > 2 or 'a' == 'b'", 0.0),
        ("min(3, 2) if 1 in [1] else 0", 2.0),
        ("matches('上海', '?海')", 1.0),
        ("amount", None),
        ("hour('2026-11-11T00:00:00Z')", None),  # depends on the policy's time zone
    ],
)
def test_constants(source: str, value: float | None) -> None:
    assert read(source).constant() == value


def test_a_missing_constant_is_nan() -> None:
    constant = read("1 / 0").constant()
    assert constant is not None
    assert math.isnan(constant)


def test_symbols_are_those_named() -> None:
    names = {
        symbol.name for symbol in read("amount > t.budget and distance_km(location, location) < 1").symbols()
    }
    assert names == {"amount", "t.budget", "location"}


def test_canonical_text_ignores_how_it_is_written() -> None:
    assert read("amount>50").canonical() == read(" ( amount  >  5e1 )").canonical()
    assert read("amount > 50").canonical() != read("amount >= 50").canonical()
    assert read("region == 'a'").canonical() != read("city == 'a'").canonical()


# Compilation.


def test_what_rules_share_is_computed_once() -> None:
    layout = table([]).layout
    shared = [read("amount / 12 > 3 and verified"), read("region == 'CN' and amount / 12 > 3")]
    both = compile(shared, layout, hasher)
    alone = [compile([one], layout, hasher) for one in shared]
    assert len(both.code) == sum(len(one.code) for one in alone) - 2


def test_passing_results_share_columns() -> None:
    layout = table([]).layout
    before = layout.width
    compile([read(f"amount > {i} and count < {i} or verified") for i in range(100)], layout, hasher)
    assert layout.width - before == 100 + 3  # a result each, and the most that is alive at once
    compile([read("amount > 0 and count < 0 or verified")], layout, hasher)
    assert layout.width - before == 100 + 3 + 1


def test_results_go_where_later_expressions_look() -> None:
    rows_table = table([{"amount": 4.0}, {}])
    layout = rows_table.layout
    into = [layout.number("count"), layout.number("t.budget"), layout.number("user_age")]
    program = compile([read("amount * 2"), read("count + 1"), read("count")], layout, hasher, into=into)
    assert program.outputs.tolist() == into
    assert [column[0] for column in rows_table.run(program)] == [8.0, 9.0, 8.0]
    assert all(math.isnan(column[1]) for column in rows_table.run(program))


def test_a_program_of_nothing_runs() -> None:
    rows_table = table([{}])
    assert rows_table.run(compile([], rows_table.layout, hasher)) == []


def test_large_sets_are_searched_exactly() -> None:
    words = [f"w{i}" * (i % 3 + 1) for i in range(200)]
    source = f"region in {words!r}"
    found = values_of(
        [source, source.replace("region", "prev_region")], [{"region": w, "prev_region": w} for w in words]
    )
    assert found == [[1.0] * 200] * 2
    absent = values_of([source], [{"region": w + "x"} for w in words])
    assert absent == [[0.0] * 200]


# Errors. One line of each: what it says, where, and the mend.

ERRORS = [
    ("amout > 5", "12:11+5 unknown-name", "nothing here is named amout", "did you mean amount?"),
    ("amount > regoin", "12:20+6 unknown-name", "nothing here is named regoin", "did you mean region?"),
    ("t.end > time", "12:11+5 unknown-name", "nothing here is named t.end", "did you mean t.ends?"),
    ("missing", "12:11+7 unknown-name", "missing is a function", "write missing(x)"),
    ("lenght(region) > 1", "12:11+6 unknown-name", "there is no function lenght", None),
    ("mising(region)", "12:11+6 unknown-name", "there is no function mising", "did you mean missing?"),
    ("listed('blokced', device)", "12:11+25 unknown-name", "there is no list 'blokced' of device", None),
    (
        "listed(blocked, device)",
        "12:18+7 type",
        "listed needs the list's name as a string",
        "write 'blocked'",
    ),
    (
        "amount > '5'",
        "12:11+12 type",
        "amount is a number and '5' is a string: `>` does not take the two together",
        "write 5 for a number",
    ),
    (
        "region == 5",
        "12:11+11 type",
        "region is a string and 5 is a number: `==` does not take the two together",
        "write '5' for a string",
    ),
    (
        "user_age < 7",
        "12:11+12 type",
        "user_age is a duration and 7 is a number: `<` does not take the two together",
        "write days(7), hours(7) or minutes(7)",
    ),
    (
        "verified == 1",
        "12:11+13 type",
        "verified is a bool and 1 is a number: `==` does not take the two together",
        "a bool is not a number: write x or not x",
    ),
    (
        "time + 5 > time",
        "12:11+8 type",
        "time is a time and 5 is a number: `+` does not take the two together",
        "add a duration such as hours(1), or compare with a time such as '2026-11-11T00:00:00+08:00'",
    ),
    ("region < city", "12:11+13 type", "'<' does not compare a string with a string", None),
    (
        "location == prev_location",
        "12:11+25 type",
        "'==' does not compare a location with a location",
        "write distance_km(a, b) < 0.1",
    ),
    (
        "amount and verified",
        "12:11+6 type",
        "`and` needs a bool, and amount is a number",
        "compare it, as in x > 0",
    ),
    ("not region", "12:15+6 type", "`not` needs a bool, and region is a string", None),
    ("region", "12:11+6 type", "this is a string, where a number or bool or time or duration stands", None),
    ("-verified", "12:11+9 type", "'-' needs a number or a duration, and verified is a bool", None),
    ("hour(amount)", "12:16+6 type", "hour needs a time, and amount is a number", None),
    (
        "matches(prev_region, 'a*')",
        "12:11+26 type",
        "prev_region is kept as a hash, so no pattern can be held against it",
        "compare it with == or in",
    ),
    ("matches(region, city)", "12:27+4 type", "matches needs a pattern in quotes", None),
    (
        "region in ['a', 5]",
        "12:27+1 type",
        "region is a string and 5 is a number: `in` does not take the two together",
        "write '5' for a string",
    ),
    (
        "region in blocked",
        "12:21+7 not-allowed",
        "`in` needs a list in brackets",
        "for a list of the policy write listed('blocked', entity)",
    ),
    ("amount in [count]", "12:22+5 not-allowed", "a list holds literals only", None),
    ("region in []", "12:21+2 not-allowed", "this list is empty, so `in` never holds", None),
    (
        "region in ('a', 'b')",
        "12:21+10 not-allowed",
        "a tuple is not part of expressions",
        "in a membership test write x in ['a', 'b']",
    ),
    (
        "time > '2026-11-11'",
        "12:18+12 literal",
        "'2026-11-11' is not a time",
        "write '2026-11-11T00:00:00+08:00'",
    ),
    ("default(amount)", "12:11+15 arguments", "default is called as default(x, 0)", None),
    ("min(amount)", "12:11+11 arguments", "min is called as min(a, b)", None),
    ("default(amount, v=1)", "12:11+20 arguments", "default is called as default(x, 0)", None),
    ("amount == None", "12:21+4 not-allowed", "None is not a value here", "write missing(x)"),
    (
        "amount is 5",
        "12:11+11 not-allowed",
        "the operator `is` is not part of expressions",
        "write `==`, or missing(x)",
    ),
    (
        "amount > 1 & verified",
        "12:20+12 not-allowed",
        "the operator `&` is not part of expressions",
        "write `and`",
    ),
    ("amount ** 2", "12:11+11 not-allowed", "the operator `**` is not part of expressions", "write x * x"),
    ("amount > 1e999", "12:20+5 not-allowed", "1e999 is too big for a number", None),
    ("amount = 5", "12:18+1 syntax", "'=' does not compare", "write `==`"),
    ("amount > 5 && verified", "12:22+2 syntax", "'&&' is not an operator", "write `and`"),
    ("!verified", "12:11+1 syntax", "'!' is not an operator", "write `not`"),
    ("user_age < 7d", "12:22+2 syntax", "a duration is written with a function", "write days(7)"),
    (
        "amount > 5 # big",
        "12:22+1 syntax",
        "a comment inside of an expression would hide what follows it",
        "move the comment to its own line of the YAML file",
    ),
    ("  ", "12:11+1 empty", "this expression is empty", None),
    ("上海 == region", "12:11+2 unknown-name", "nothing here is named 上海", None),
    (
        "region == '上海' and amout > 1",
        "12:30+5 unknown-name",
        "nothing here is named amout",
        "did you mean amount?",
    ),
    (
        "amount > 1 and\n  regoin == 'a'",
        "13:3+6 unknown-name",
        "nothing here is named regoin",
        "did you mean region?",
    ),
]


@pytest.mark.parametrize(("source", "where", "message", "mend"), ERRORS)
def test_errors_say_where_what_and_the_mend(source: str, where: str, message: str, mend: str | None) -> None:
    (finding,) = refused(source)
    place = finding.place
    assert f"{place.line}:{place.column}+{finding.length} {finding.code}" == where
    assert (finding.message, finding.mend) == (message, mend)


def test_an_error_points_into_the_file() -> None:
    (finding,) = refused("amount > 1 and regoin == 'a'")
    line = "    when: amount > 1 and regoin == 'a'"
    shown = render(
        Finding(
            **{name: getattr(finding, name) for name in finding.__struct_fields__} | {"source_line": line}
        )
    )
    assert shown.splitlines()[2].index("^") == shown.splitlines()[1].index("regoin")


def test_all_errors_are_reported() -> None:
    findings = refused("amout > 5 and regoin == 1 or hour(amount) > '3' and not count")
    assert [(finding.place.column, finding.code) for finding in findings] == [
        (11, "unknown-name"), (25, "unknown-name"), (45, "type"), (67, "type"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "source",
    [
        "__import__('os').system('true')", "().__class__", "amount.__class__", "region.upper() == 'A'",
        "[x for x in [1]][0] > 0", "(lambda: 1)() > 0", "f'{amount}' == 'a'", "region[0] == 'a'",
        "{'a': 1}", "{1, 2}", "(amount := 5) > 1", "await amount", "*amount", "amount if verified",
        "...", "b'a' == region", "1j > amount", "print(amount)", "eval('1')", "amount; count",
        "import os", "missing(*[1])", "amount > 1\x00", "region == '\\x41'", "amount > 1and verified",
        "lambda", "x" * 10, "(" * 300, "-" * 3000 + "1", "not " * 900 + "verified", "\ud800 > 1",
        "a.b.c.d > 1", "amount > > 1", "amount)", "(amount", "'", "1 in 2", "amount in [1] in [2]",
        "distance_km(amount, location)", "listed('blocked')", "abs('a')",
        "min(verified, true)",
    ],
)  # fmt: skip
def test_what_is_not_on_the_whitelist_is_refused(source: str) -> None:
    findings = refused(source)
    assert findings
    assert all(finding.severity == "error" and finding.message for finding in findings)


@given(st.text("amount()[]<>=!&|+-*/%.'\"# \n0123eandortif,\\é", max_size=40))
def test_no_text_breaks_the_parser(source: str) -> None:
    read = parse_and_check(source, HERE, Names())
    assert isinstance(read, Expression) or (read and all(isinstance(finding, Finding) for finding in read))


def test_bounds() -> None:
    deep = "amount" + " + 1" * 48
    assert read(f"{deep} > 0")
    (finding,) = refused(f"{deep} + 1 + 1 > 0")
    assert finding.code == "too-deep"
    wide = " or ".join(f"amount == {i}" for i in range(166))  # 166 x 3 + 1 = 499
    assert read(wide)
    (finding,) = refused(wide + " or amount > 0")
    assert (finding.code, finding.expected) == ("too-big", "at most 500 names, values and operators")
    (finding,) = refused("amount > 1" + " " * CHARACTERS_MAX)
    assert finding.code == "too-long"


def test_conditional_texts_stay_bounded() -> None:
    """Each side's branches are compared with each of the other's: that product is bounded too."""
    chain = "region"
    for _ in range(40):
        chain = f"default({chain}, city)"
    (finding,) = refused(f"{chain} == {chain}")
    assert finding.code == "too-big"


def test_parsing_alone_keeps_the_text() -> None:
    node = parse(" amount > 5 ", HERE)
    assert isinstance(node, Node)
    assert (node.source, node.place) == (" amount > 5 ", HERE)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00.0019z", 1),
        ("1969-12-31T23:59:59.999+00:00", -1),
        ("2026-11-11T00:00:00+08:00", 1_794_326_400_000),
        ("2026-11-11T00:00:00", None),
        ("2026-11-11", None),
        ("2026-02-30T00:00:00Z", None),
        ("20261111T000000Z", None),
        ("٢٠٢٦-11-11T00:00:00Z", None),
    ],
)
def test_rfc3339(text: str, ms: int | None) -> None:
    assert rfc3339_ms(text) == ms
