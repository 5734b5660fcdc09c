"""Parsing against a twin in plain Python: what is kept, what is refused, and that no batch changes either."""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from types import MappingProxyType
from typing import Any

import numpy as np
import phonenumbers
import pyarrow as pa
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from riskengine import hashing, normal
from riskengine.definition import Definition, Entity, EventType, Field
from riskengine.errors import EventError
from riskengine.event import KEYS_MAX, PLANS_MAX, Batch, Label, Schema, decode_line, event_hash, to_minor
from riskengine.reading import read

NOW = 1_700_000_000_000
FIELDS = {
    field.name: field
    for field in (
        Field("user_id", "string"), Field("device_id", "string"), Field("region", "string"),
        Field("ip", "ip"), Field("phone", "phone"), Field("amount", "number", 2),
        Field("pages", "number", 0), Field("budget", "number", -3), Field("ratio", "number"),
        Field("verified", "bool"), Field("created", "time"), Field("location", "location"),
        Field("code_id", "string"),
    )
}  # fmt: skip
CLAIM = (
    "amount", "budget", "created", "device_id", "ip", "location", "pages", "phone", "ratio", "region",
    "user_id", "verified",
)  # fmt: skip
DEFINITION = Definition(
    name="p", tenant="t", timezone="Asia/Shanghai", country="CN", lateness_ms=900_000, skew_ms=300_000,
    model=None, fields=FIELDS,
    events={
        "claim": EventType("claim", ("user_id", "amount"), CLAIM),
        "scan": EventType("scan", ("code_id",), ("code_id", "created", "location", "user_id")),
    },
    entities={
        "user": Entity("user", ("user_id",)), "device": Entity("device", ("device_id",)),
        "ip": Entity("ip", ("ip",)), "ip_net": Entity("ip_net", ("ip",), "subnet24"),
        "phone": Entity("phone", ("phone",)), "pair": Entity("pair", ("user_id", "device_id")),
        "charge": Entity("charge", ("user_id", "amount")), "bulk": Entity("bulk", ("budget", "user_id")),
    },
)  # fmt: skip
KEY = b"a secret"
SCHEMA = Schema.compile(DEFINITION, KEY)
ARRAYS = (
    "type_index", "time", "stamped", "late", "numbers", "str_len", "str_hash", "keys", "event_hash", "claim",
    "content", "follows_claim",
)  # fmt: skip


def claim(**fields: object) -> dict[str, Any]:
    return {"event_id": "e1", "type": "claim", "user_id": "u1", "amount": 1, **fields}


def one(event: Any, schema: Schema = SCHEMA, now: int = NOW) -> Batch:
    batch, errors = schema.parse([event], now)
    assert not errors, errors
    return batch


def number(batch: Batch, name: str, row: int = 0) -> float:
    return float(batch.numbers[row, SCHEMA.number_at[name]])


def string(batch: Batch, name: str, row: int = 0) -> str | None:
    off, size = batch.str_off[row, SCHEMA.string_at[name]], batch.str_len[row, SCHEMA.string_at[name]]
    return None if size < 0 else batch.text[off : off + size].tobytes().decode()


def key(batch: Batch, entity: str, row: int = 0) -> int:
    return int(batch.keys[row, SCHEMA.entity_at[entity]])


def problems(event: Any, schema: Schema = SCHEMA, now: int = NOW) -> dict[str, str]:
    batch, errors = schema.parse([event], now)
    assert batch.n == 0
    return {problem.pointer: problem.code for problem in errors[0].problems}


def same(a: Batch, b: Batch) -> None:
    assert a.n == b.n
    assert a.ids == b.ids
    assert a.follows == b.follows
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for row in range(a.n):
        for name in SCHEMA.strings:
            assert string(a, name, row) == string(b, name, row), name


# The twin: one event, with the libraries' own functions.


def twin_text(name: str, given: str) -> str:
    text = unicodedata.normalize("NFC", given).strip()
    if FIELDS[name].type == "phone":
        try:
            parsed = phonenumbers.parse(text, "CN")
        except phonenumbers.NumberParseException:
            return text
        return str(phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164))
    if FIELDS[name].type == "ip":
        return twin_ip(text)
    return text


def twin_ip(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    mapped = getattr(address, "ipv4_mapped", None)
    return text if "%" in text else str(mapped or address)


def twin_minor(given: float, digits: int) -> int:
    with localcontext(prec=700):
        return int(Decimal(repr(given)).scaleb(digits).to_integral_value(ROUND_HALF_EVEN))


def twin_time(given: str | int) -> int:
    if isinstance(given, int):
        return given
    moment = datetime.fromisoformat(given.strip().upper())
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def twin_values(event: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    numbers: dict[str, float] = {}
    strings: dict[str, str] = {}
    for name in DEFINITION.events[event["type"]].fields:
        given = event.get(name)
        if given is None or (isinstance(given, str) and not given.strip()):
            continue
        field = FIELDS[name]
        if field.type in ("string", "phone", "ip"):
            strings[name] = twin_text(name, given)
        elif field.type == "location":
            for part in ("lat", "lon"):
                numbers[f"{name}.{part}"] = round(given[part] * 1e7) / 1e7
        elif field.type == "time":
            numbers[name] = twin_time(given)
        elif field.digits is not None:
            minor = twin_minor(given, field.digits)
            numbers[name] = minor / 10**field.digits if field.digits >= 0 else minor * 10**-field.digits
        else:
            numbers[name] = float(given)
    return numbers, strings


def twin_keys(strings: Mapping[str, str], numbers: Mapping[str, float]) -> list[int]:
    found = []
    for entity in DEFINITION.entities.values():
        parts: list[bytes | int] = [strings.get(name, "").encode() for name in entity.fields]
        for at, name in enumerate(entity.fields):
            if FIELDS[name].digits is not None and name in numbers:  # the bits of the double, under its name
                bits = int.from_bytes(struct.pack("<d", numbers[name] + 0.0), "little")
                parts[at] = bits ^ hashing.name_hash("field", name, SCHEMA.sip)
        if entity.derive:
            try:
                address = ipaddress.ip_address(strings.get(entity.fields[0], ""))
            except ValueError:
                parts = [b""]
            else:
                version = address.version
                parts = [bytes([version]) + address.packed[: 3 if version == 4 else 8]]
        found.append(hashing.entity_key(entity.name, parts, SCHEMA.sip))
    return found


# What events may hold.

TRICKY = (
    "",
    " ",
    "\t上海\n",
    "é",
    "e\u0301",
    "\u3000中\u3000",
    "a\x00b",
    "\x00",
    "ｱﾞ",
    "\u1100\u1161",
    "\x85a",
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(TRICKY)
IPS = (
    st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).map(str)
    | st.ip_addresses(v=6).map(lambda address: address.exploded.upper())
    | st.sampled_from(
        ["::ffff:1.2.3.4", "::1", "1::", " 1.2.3.4 ", "01.2.3.4", "fe80::1%eth0", "1.2.3", "no"]
    )
)
PHONES = (
    st.from_regex(r"(\+86|\+86 |\+86-|)1[3-9]\d[ -]?\d{4}[ -]?\d{4}", fullmatch=True)
    | st.from_regex(r"\+?[0-9 ()-]{3,16}", fullmatch=True)
    | st.sampled_from(
        ["１３８１２３４５６７８", "no phone", "+44 20 7946 0958", "17912345678", "+8617912345678"]
    )
)
TIMES = st.integers(normal.TIME_MIN_MS, normal.TIME_MAX_MS) | st.datetimes(
    datetime(2, 1, 1),
    datetime(9998, 1, 1),
    timezones=st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m))),
).map(datetime.isoformat)
MONEY = (
    st.integers(-(2**43 // 100), 2**43 // 100)
    | st.floats(-8e10, 8e10)
    | st.decimals(-9_999_999, 9_999_999, places=3).map(float)
    | st.sampled_from([0.005, 0.015, 1.005, -0.0, -0.001, 2.675, 1e-300, 0.125])
)
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "user_id": TEXTS, "device_id": TEXTS, "region": TEXTS, "code_id": TEXTS, "ip": IPS | TEXTS,
    "phone": PHONES | TEXTS, "amount": MONEY, "pages": st.integers(-9, 9) | st.floats(-9, 9),
    "budget": st.floats(-1e15, 1e15) | st.integers(-(10**15), 10**15),
    "ratio": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30),
    "verified": st.booleans(), "created": TIMES,
    "location": st.fixed_dictionaries(
        {"lat": st.floats(-90, 90) | st.integers(-90, 90), "lon": st.floats(-180, 180)},
        optional={"accuracy": st.integers()},
    ),
}  # fmt: skip
IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


def events(values: Mapping[str, st.SearchStrategy[Any]], required: bool) -> st.SearchStrategy[dict[str, Any]]:
    envelope = {"event_id": IDS, "type": st.sampled_from(["claim", "scan"])}
    needed = {"user_id": IDS, "code_id": IDS, "amount": values["amount"]} if required else {}
    optional = {name: value for name, value in values.items() if name not in needed}
    times = st.integers(NOW - 10**7, NOW + 300_000)
    return st.fixed_dictionaries(
        {**envelope, **needed},
        optional={
            **optional,
            "time": times,
            "follows": IDS,
            "unknown": st.none() | st.integers() | st.text(),
        },
    )


GOOD_EVENTS = events(GOOD, True)
RUBBISH = (
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.just(10**400) | st.just("\ud800")
    | st.lists(st.integers(), max_size=2) | st.dictionaries(st.sampled_from(["lat", "lon"]), st.floats())
    | st.dictionaries(st.sampled_from(["lat", "lon"]), st.integers() | st.none() | st.booleans())
    | st.sampled_from([np.float64(1.5), np.int32(7), np.bool_(True), np.str_("x"), Decimal("1.25"), b"x"])
    | st.sampled_from([datetime(2020, 1, 1), datetime(2020, 1, 1, tzinfo=UTC), "2020-01-01T00:00:00Z"])
)  # fmt: skip
ANY_EVENTS = (
    events({name: value | RUBBISH for name, value in GOOD.items()}, False)
    | st.builds(
        lambda event, name, value: {**event, name: value},
        GOOD_EVENTS,
        st.sampled_from(["event_id", "type", "time", "follows", "amount", "user_id", "location", "created"]),
        RUBBISH,
    )
    | RUBBISH
    | st.builds(lambda event: MappingProxyType(event), GOOD_EVENTS)
    | st.builds(lambda event: {**event, 1: 2}, GOOD_EVENTS)
)


@given(GOOD_EVENTS)
def test_a_good_event_is_its_twin(event: dict[str, Any]) -> None:
    batch = one(event)
    numbers, strings = twin_values(event)
    assert batch.ids == [event["event_id"]]
    assert SCHEMA.types[batch.type_index[0]] == event["type"]
    assert batch.raw == [event]
    assert batch.time[0] == event.get("time", NOW) == batch.numbers[0, 0]
    assert batch.stamped[0] == ("time" not in event)
    assert batch.late[0] == (batch.time[0] < NOW - 900_000)
    for name in SCHEMA.numbers[1:]:
        found = number(batch, name)
        assert (None if np.isnan(found) else found) == numbers.get(name), name
    for at, name in enumerate(SCHEMA.strings):
        assert string(batch, name) == (strings.get(name) or None), name
        assert batch.str_hash[0, at] == hashing.string_hash(strings.get(name, "").encode(), SCHEMA.sip)
    assert batch.keys[0].tolist() == twin_keys(strings, numbers)
    assert tuple(batch.claim[0].tolist()) == hashing.claim(event["event_id"], SCHEMA.sip)
    assert batch.event_hash[0] == event_hash(event["event_id"], SCHEMA.sip)
    follows = event.get("follows")
    assert batch.follows == (None if follows is None else [follows])
    expected = (0, 0) if follows is None else hashing.claim(follows, SCHEMA.sip)
    assert tuple(batch.follows_claim[0].tolist()) == expected


@given(st.lists(ANY_EVENTS, max_size=12))
def test_a_batch_is_its_events_one_by_one(several: list[Any]) -> None:
    batch, errors = SCHEMA.parse(several, NOW)
    assert sorted([*errors, *batch.index.tolist()]) == list(range(len(several)))
    for row, place in enumerate(batch.index.tolist()):
        same(one(several[place], Schema.compile(DEFINITION, KEY)), batch.take(np.array([row])))
        assert batch.raw[row] is several[place]
        assert not read(DEFINITION, several[place], NOW).problems
    for place, error in errors.items():
        assert error.problems == read(DEFINITION, several[place], NOW).problems
        assert len({(problem.pointer, problem.code) for problem in error.problems}) == len(error.problems)


@given(st.lists(ANY_EVENTS, max_size=6))
def test_a_room_used_again_changes_nothing(several: list[Any]) -> None:
    """Each event twice: the second time its shape is known."""
    room = SCHEMA.room(1)
    for event in several:
        plain, problems = SCHEMA.parse([event], NOW)
        for _ in range(2):
            batch, errors = SCHEMA.parse([event], NOW, room)
            assert [error.problems for error in errors.values()] == [e.problems for e in problems.values()]
            same(batch, plain)


@given(GOOD_EVENTS, st.randoms())
def test_the_order_of_names_means_nothing(event: dict[str, Any], random: Any) -> None:
    names = list(event)
    random.shuffle(names)
    same(one(event), one({name: event[name] for name in names}))


@given(GOOD_EVENTS, GOOD_EVENTS)
def test_content_is_equal_for_equal_values_only(a: dict[str, Any], b: dict[str, Any]) -> None:
    def content(event: dict[str, Any]) -> tuple[object, ...]:
        numbers, strings = twin_values(event)
        given = [event["type"], event.get("follows"), event.get("time")]
        return (*given, numbers, {name: text for name, text in strings.items() if text})

    b = {**a, **b} if len(b) % 2 else b
    equal = (one(a).content == one(b).content).all()
    assert equal == (content(a) == content(b))


def test_content_does_not_know_of_what_is_not_there() -> None:
    event = claim(region="x")
    fields = {**FIELDS, "newer": Field("newer", "string"), "count": Field("count", "number")}
    claims = EventType("claim", (), (*CLAIM, "newer", "count"))
    newer = Definition(**{**{name: getattr(DEFINITION, name) for name in DEFINITION.__slots__},
                          "fields": fields, "events": {"claim": claims}})  # fmt: skip
    schema = Schema.compile(newer, KEY)
    np.testing.assert_array_equal(one(event).content, one(event, schema).content)
    np.testing.assert_array_equal(one(event).content, one(claim(region=" x", unknown=3)).content)
    assert (one(event).content != one(claim(region="x", time=NOW)).content).any()


# Columns.


def arrow(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a batch with a column for every name that any of them has."""
    names = sorted({name for row in rows for name in row})
    return pa.RecordBatch.from_pydict({name: [row.get(name) for row in rows] for name in names})


def of_one_type(event: Mapping[str, Any]) -> dict[str, Any]:
    """The event with each value of the one type that its column shall have."""
    plain = {**event, "unknown": None}
    for name in plain.keys() & {"amount", "pages", "budget", "ratio"}:
        plain[name] = float(plain[name])
    if "location" in plain:
        plain["location"] = {part: float(plain["location"][part]) for part in ("lat", "lon")}
    if not isinstance(plain.get("created"), str):
        plain.pop("created", None)
    return plain


@given(st.lists(GOOD_EVENTS.map(of_one_type), max_size=6), st.booleans())
def test_columns_are_their_rows(several: list[dict[str, Any]], coded: bool) -> None:
    batch = arrow(several)
    if coded:
        batch = pa.RecordBatch.from_arrays(
            [c.dictionary_encode() if pa.types.is_string(c.type) else c for c in batch.columns],
            names=batch.schema.names,
        )
    check_columns(batch)


def check_columns(batch: Any, now: int = NOW) -> tuple[Batch, dict[int, EventError]]:
    found, errors = SCHEMA.parse_columns(batch, now)
    rows, row_errors = SCHEMA.parse(batch.to_pylist(), now)
    same(found, rows)
    assert {i: error.problems for i, error in errors.items()} == {
        i: error.problems for i, error in row_errors.items()
    }
    for i in range(found.n):
        kept, given = ({k: repr(v) if isinstance(v, float) else v for k, v in raw.items() if v is not None}
                       for raw in (found.raw[i], rows.raw[i]))  # fmt: skip
        assert kept == given
    return found, errors


COLUMNS = {
    "strings": pa.array(["a", None, "", "上海 "]),
    "large": pa.array(["a", None, "", "上海 "], pa.large_string()),
    "view": pa.array(["a", None, "", "b"], pa.string_view()),
    "coded": pa.array(["a", None, "a", "b"]).dictionary_encode(),
    "coded numbers": pa.array([1, None, 1, 2]).dictionary_encode(),
    "bytes": pa.array([b"a", None, b"", b"b"]),
    "broken": pa.Array.from_buffers(
        pa.string(), 4, [None, pa.py_buffer(np.array([0, 1, 2, 2, 3], np.int32)), pa.py_buffer(b"a\xe4b")]
    ),
    "ints": pa.array([1, None, 2**40, -3]),
    "huge ints": pa.array([2**63, None, 2**62 + 1, 3], pa.uint64()),
    "small ints": pa.array([1, None, 0, -3], pa.int8()),
    "floats": pa.array([1.5, None, float("nan"), float("inf")]),
    "halves": pa.array([1.005, None, 0.125, 2.675]),
    "float32": pa.array([0.1, None, 2.5, 0.125], pa.float32()),
    "decimals": pa.array([Decimal("1.25"), None, Decimal("0.05"), Decimal("3.10")]),
    "bools": pa.array([True, None, False, True]),
    "nulls": pa.nulls(4),
    "lists": pa.array([[1], None, [], [2]]),
    "seconds": pa.array([1_600_000_000, None, 0, -1], pa.timestamp("s", "UTC")),
    "times": pa.array([1_600_000_000_123, None, 0, -1], pa.timestamp("ms", "UTC")),
    "micros": pa.array([1_600_000_000_123_999, None, 0, -1], pa.timestamp("us", "Asia/Shanghai")),
    "local times": pa.array([1_600_000_000_123, None, 0, -1], pa.timestamp("ms")),
    "time texts": pa.array(["2020-01-01T00:00:00Z", None, " ", "2020-01-01"]),
    "dates": pa.array([1, None, 0, 3], pa.date32()),
    "places": pa.array(
        [{"lat": 1.0, "lon": 2.0}, None, {"lat": None, "lon": 2.0}, {"lat": 91.0, "lon": 0.0}]
    ),
    "int places": pa.array([{"lon": 1, "lat": 2}, None, {"lat": 2, "lon": 1}, {"lat": 0, "lon": 0}]),
    "half places": pa.array([{"lat": 1.0}, None, {"lat": 2.0}, {"lat": 0.0}]),
    "text places": pa.array([{"lat": "1", "lon": "2"}, None, {"lat": "", "lon": ""}, None]),
}


@pytest.mark.parametrize("name", [*FIELDS, "time", "event_id", "follows", "type", "unknown"])
@pytest.mark.parametrize("kind", COLUMNS)
def test_any_column_is_read_as_its_values(kind: str, name: str) -> None:
    columns = {
        "event_id": pa.array(["e1", "e2", "e3", "e4"]),
        "type": pa.array(["claim", "claim", "claim", "scan"]),
        "user_id": pa.array(["u", "u", "u", "u"]),
        "code_id": pa.array(["c", "c", "c", "c"]),
        "amount": pa.array([1, 2, 3, 4]),
        name: COLUMNS[kind],
    }
    batch = pa.RecordBatch.from_pydict(columns)
    if kind == "broken":  # as a mapping it cannot even be made
        found, errors = SCHEMA.parse_columns(batch, NOW)
        assert found.n == 4 - len(errors)
        assert (1 in errors) == (name not in ("unknown", "code_id"))
        return
    check_columns(batch)
    check_columns(batch.slice(1, 2))


def test_nanoseconds_are_rounded_down() -> None:
    columns = pa.RecordBatch.from_pydict({
        "event_id": ["e1", "e2"], "type": ["scan", "scan"], "code_id": ["c", "c"],
        "time": pa.array([1_600_000_000_123_999_999, -1], pa.timestamp("ns", "UTC")),
    })  # fmt: skip
    batch, errors = SCHEMA.parse_columns(columns, NOW)
    assert not errors
    assert batch.time.tolist() == [1_600_000_000_123, -1]
    assert batch.raw[1]["time"] == datetime(1969, 12, 31, 23, 59, 59, 999999, UTC)


def test_a_table_is_read_as_its_batches() -> None:
    rows = [claim(event_id=f"e{i}", region="中" * i) for i in range(5)]
    table = pa.concat_tables([pa.Table.from_pylist(rows[:2]), pa.Table.from_pylist(rows[2:])])
    batch, errors = SCHEMA.parse_columns(table, NOW)
    assert not errors
    same(batch, SCHEMA.parse(rows, NOW)[0])
    assert list(batch.raw) == rows
    assert batch.raw[1:3] == rows[1:3]


def test_two_columns_of_one_name_are_refused() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2])], names=["amount", "amount"])
    with pytest.raises(ValueError, match="amount"):
        SCHEMA.parse_columns(batch, NOW)


# Kernels and their twins.


def test_settled_characters_stay_as_they_are_in_any_company() -> None:
    settled = {point for point in range(0x80, 0x10000) if normal.is_settled(point)}
    second: set[int] = set()
    for point in range(0x110000):
        parts = unicodedata.decomposition(chr(point)).split()
        if parts and not parts[0].startswith("<"):
            second.update(int(part, 16) for part in parts[1:])
    assert len(settled) > 30_000
    for point in settled:
        char = chr(point)
        assert unicodedata.normalize("NFC", char) == char
        assert not unicodedata.combining(char)
        assert not char.isspace()
    assert not settled & second


@given(TEXTS | st.text(st.sampled_from(" \t中ée\u0301a\u3000\x85\x1c\U0001f600\u2003"), max_size=20))
def test_tidy_is_normal_or_asks(text: str) -> None:
    data = text.encode()
    off, size, done = normal.tidy(hashing.as_bytes(b"xx" + data), 2, len(data))
    left = data[off - 2 : off - 2 + size].decode()
    assert normal.tidy_text(left) == normal.tidy_text(text)
    if done:
        assert left == normal.tidy_text(text)


IP_TEXTS = IPS | st.lists(
    st.sampled_from(["0", "1", "::", ":", "ffff", "0A", ".", "255", "1.2.3.4", "00ab", ""]), max_size=16
).map("".join)  # fmt: skip


@given(IP_TEXTS | st.lists(st.sampled_from(["0", "0", "1", "fF", ""]), min_size=6, max_size=9).map(":".join))
@example("1:2::4:5:6:7:8")
@example("::ffff:0:1")
@example("1::2::3")
@example(":::")
def test_the_ip_kernels_are_the_library(text: str) -> None:
    data = text.encode()
    room = hashing.as_bytes(data + bytes(normal.IP_BYTES_MAX))
    groups = np.zeros(8, np.int64)
    found = None
    if normal.parse_ipv4(room, 0, len(data)) >= 0:
        found = text
    elif normal.parse_ipv6(room, 0, len(data), groups):
        size = normal.format_ip(groups, room, len(data))
        found = room[len(data) : len(data) + size].tobytes().decode()
    try:
        ipaddress.ip_address(text)
    except ValueError:
        expected = None
    else:
        expected = None if "%" in text else twin_ip(text)
    assert found == expected
    assert normal.ip_text(text) == (expected or text)


@given(PHONES, st.booleans())
def test_the_phone_kernel_is_the_library(text: str, china: bool) -> None:
    data = text.encode()
    room = hashing.as_bytes(data + bytes(normal.PHONE_BYTES_MAX))
    spelt = normal.mobile(room, 0, len(data), china, len(data))
    if spelt >= 0:
        found = room[len(data) : len(data) + 14].tobytes().decode() if spelt else text
        assert found == normal.phone_text(text, "CN" if china else None)


@given(
    TIMES.filter(lambda given: isinstance(given, str))
    | st.from_regex(
        r"\d{4}-[01]\d-[0-3]\d[Tt ][0-2]\d:[0-5]\d:[0-6]\d(\.\d{1,9})?(Z|z|[+-]\d\d:\d\d)", fullmatch=True
    )
    | st.text("0123456789-:.TZ+ ", max_size=30)
)
@example("2020-02-30T00:00:00Z")
@example("1900-02-29T00:00:00Z")
@example("2000-02-29T23:59:59.9999999-23:59")
@example("2016-12-31T23:59:60Z")
@example("2020-01-01T00:00:00.Z")
@example("2020-01-01T00:00:00")
def test_the_time_kernel_is_the_library(text: str) -> None:
    data = text.encode()
    found = normal.parse_time(hashing.as_bytes(data), 0, len(data))
    strict = r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)"
    try:
        expected = twin_time(text) if re.fullmatch(strict, text, re.ASCII) else None
    except (ValueError, OverflowError):
        expected = None
    if expected is None:
        assert found == normal.NO_TIME or not normal.TIME_MIN_MS <= found <= normal.TIME_MAX_MS
    else:
        assert found == expected


@given(MONEY, st.integers(-6, 9))
def test_money_is_rounded_as_it_is_printed(value: float, digits: int) -> None:
    assume(abs(value) * 10.0**digits < 2**43)
    definition = Definition(
        name="p", tenant="t", timezone="UTC", country=None, lateness_ms=0, skew_ms=0, model=None,
        fields={"x": Field("x", "number", digits)}, events={"e": EventType("e", (), ("x",))}, entities={},
    )  # fmt: skip
    batch = one({"event_id": "1", "type": "e", "x": value}, Schema.compile(definition, KEY))
    minor = twin_minor(value, digits)
    assert normal.quantise(value, digits) == minor
    assert batch.numbers[0, 1] == (minor / 10**digits if digits >= 0 else minor * 10**-digits)
    assert to_minor(batch.numbers[0, 1], digits) == minor


# What is wrong, told.

WRONG: dict[str, tuple[Any, dict[str, str]]] = {
    "no mapping": ([1], {"": "not-an-object"}),
    "a string": ("claim", {"": "not-an-object"}),
    "nothing": ({}, {"/event_id": "required", "/type": "required"}),
    "null id": (claim(event_id=None), {"/event_id": "required"}),
    "blank id": (claim(event_id=" "), {"/event_id": "required"}),
    "number id": (claim(event_id=7), {"/event_id": "string"}),
    "long id": (claim(event_id="é" * 129), {"/event_id": "too-long"}),
    "type": (claim(type="claims"), {"/type": "unknown-type"}),
    "type of no type": (claim(type=["claim"]), {"/type": "string"}),
    "follows": (claim(follows=3), {"/follows": "string"}),
    "names": ({**claim(), 5: 1}, {"": "key"}),
    "missing": (
        {"event_id": "e", "type": "claim"}, {"/user_id": "required", "/amount": "required"},
    ),
    "blank": (claim(user_id=" \u3000"), {"/user_id": "required"}),
    "all": (
        claim(amount="1", verified=1, created="yesterday", ip=4, location={"lat": 1}, ratio=True, time=1.5),
        {
            "/amount": "number", "/verified": "bool", "/created": "time", "/ip": "ip",
            "/location": "location", "/ratio": "number", "/time": "time",
        },
    ),
    "nan": (claim(amount=float("nan"), ratio=float("inf")), {"/amount": "number", "/ratio": "number"}),
    "huge": (claim(amount=10**400, ratio=-(10**400)), {"/amount": "number", "/ratio": "number"}),
    "too much": (claim(amount=2**43 / 100 + 0.01), {"/amount": "number-range"}),
    "latitude": (claim(location={"lat": 90.1, "lon": 0}), {"/location/lat": "location-range"}),
    "longitude": (claim(location={"lat": 0, "lon": float("nan")}), {"/location/lon": "number"}),
    "place of text": (claim(location={"lat": "1", "lon": 0}), {"/location/lat": "number"}),
    "future": (claim(time=NOW + 300_001), {"/time": "future"}),
    "no such time": (
        claim(time=10**18, created=-(10**18)), {"/time": "time-range", "/created": "time-range"},
    ),
    "no zone": (claim(time="2023-11-14T00:00:00", created=datetime(2020, 1, 1)),
                {"/time": "time", "/created": "time"}),
    "surrogate": (claim(region="\ud800", event_id="\udfff"), {"/region": "unicode", "/event_id": "unicode"}),
    "long": (claim(region="é" * 2049), {"/region": "too-long"}),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_all_that_is_wrong_is_told(case: str) -> None:
    event, expected = WRONG[case]
    assert problems(event, Schema.compile(DEFINITION, KEY)) == expected
    SCHEMA.parse([claim()], NOW)
    assert problems(event) == expected


@pytest.mark.parametrize("case", WRONG)
def test_a_poisoned_event_fails_alone(case: str) -> None:
    event, _ = WRONG[case]
    several = [claim(event_id=f"e{i}", region="上海") for i in range(4)]
    batch, errors = SCHEMA.parse([several[0], several[1], event, *several[2:]], NOW)
    assert list(errors) == [2]
    assert batch.index.tolist() == [0, 1, 3, 4]
    same(batch, SCHEMA.parse(several, NOW)[0])


class Moody(Mapping[str, Any]):
    """An event that says something else at each reading, or nothing."""

    def __init__(self, name: str, *says: Any) -> None:
        self.event = claim(event_id="moody", region="BJ", verified=True, location={"lat": 1, "lon": 2})
        self.name, self.says, self.asked = name, says, 0

    def __getitem__(self, name: str) -> Any:
        if name != self.name:
            return self.event[name]
        self.asked += 1
        said = self.says[min(self.asked, len(self.says)) - 1]
        if isinstance(said, Exception):
            raise said
        return said

    def __iter__(self) -> Iterator[str]:
        return iter(self.event)

    def __len__(self) -> int:
        return len(self.event)


MOODS: dict[str, list[Any]] = {
    "amount": [1.5, "x", 10**400, float("nan"), 2**60, KeyError("amount"), 0.125, None],
    "verified": [True, 1, ValueError("138"), None],
    "region": ["SH", "\ud800", 7, "é" * 3000, RecursionError(), None],
    "location": [{"lat": 1, "lon": 2}, {"lat": "1"}, {"lat": 91, "lon": 0}, TypeError()],
    "event_id": ["moody", 3, "", RuntimeError()],
    "type": ["claim", "clam", [], OSError()],
    "time": [NOW, "soon", NOW + 10**9, 1.5, ZeroDivisionError()],
}


@pytest.mark.parametrize("name", MOODS)
def test_an_event_that_changes_as_it_is_read_fails_alone(name: str) -> None:
    schema = Schema.compile(DEFINITION, KEY)
    good = [claim(event_id=f"e{i}", region="上海", amount=1.005) for i in range(3)]
    schema.parse([Moody("none").event], NOW)  # a shape that is known
    expected = schema.parse(good, NOW)[0]
    for says in itertools.product(MOODS[name], repeat=3):
        batch, errors = schema.parse([good[0], Moody(name, *says), *good[1:]], NOW)
        assert set(errors) <= {1}
        rows = np.flatnonzero(batch.index != 1)
        for cells in ("event_hash", "content", "keys", "str_hash", "numbers", "time"):
            np.testing.assert_array_equal(
                getattr(batch, cells)[rows], getattr(expected, cells), err_msg=cells
            )
        assert all("138" not in str(error) for error in errors.values())


def test_problems_read_well() -> None:
    error = SCHEMA.parse([claim(type="clam")], NOW)[1][0]
    assert str(error) == "/type: the policy knows no event type 'clam'; did you mean 'claim'?"
    event = claim(amount="12", user_id=None, time=NOW + 400_000, location={"lat": 1, "lon": 200})
    assert str(SCHEMA.parse([event], NOW)[1][0]) == (
        "/time: the event is 400000 ms ahead of now; 300000 ms are allowed; "
        "/amount: expected a finite number, found string of 2 characters; "
        "/location/lon: expected a number from -180 to 180, found 200; "
        "/user_id: claim events need user_id"
    )


@given(
    st.dictionaries(
        st.sampled_from([*FIELDS, "event_id", "follows", "type", "time"]), st.just("138secret4567")
    )
)
def test_no_message_shows_a_personal_value(fields: dict[str, Any]) -> None:
    for value in ("138secret4567", "138secret\ud800", "138secret" * 600, ["138secret"], {"lat": "138secret"}):
        event = claim(**{**dict.fromkeys(fields, value), "created": "138secret"})
        error = SCHEMA.parse([event], NOW)[1][0]
        told = str(error) + repr([(p.message, p.expected, p.found) for p in error.problems])
        assert "138" not in told


# Time.


def test_time_is_stamped_late_or_refused() -> None:
    times = [None, NOW - 900_000, NOW - 900_001, NOW + 300_000, "2023-11-14T22:13:20Z", " "]
    several = [claim(event_id=f"e{i}", time=time) for i, time in enumerate(times)]
    batch, errors = SCHEMA.parse([*several, claim(time=NOW + 300_001)], NOW)
    assert list(errors) == [6]
    assert batch.stamped.tolist() == [True, False, False, False, False, True]
    assert batch.late.tolist() == [False, False, True, False, False, False]
    assert batch.time.tolist() == [NOW, NOW - 900_000, NOW - 900_001, NOW + 300_000, NOW, NOW]


def test_now_may_be_each_events_own() -> None:
    several: list[Any] = [claim(time=1000), "rubbish", claim(time=2_000_000), claim()]
    batch, errors = SCHEMA.parse(several, np.array([1000, 0, 1000, 3000]))
    assert list(errors) == [1, 2]
    assert batch.time.tolist() == [1000, 3000]
    with pytest.raises(ValueError, match="4 events need 4"):
        SCHEMA.parse(several, np.array([1]))


def test_the_first_stamp_is_not_content() -> None:
    np.testing.assert_array_equal(one(claim(), now=NOW).content, one(claim(), now=NOW + 5).content)
    iso = one(claim(time="2023-11-14T22:13:20Z")).content
    np.testing.assert_array_equal(iso, one(claim(time=NOW)).content)


# What is remembered of shapes.


class Text(str):
    """A str that is not one exactly, and lies about itself."""

    def __len__(self) -> int:
        return 99

    def __str__(self) -> str:
        return "lie"


class Number(float):
    """A float that is not one exactly."""


def test_nobody_is_fooled_by_what_came_before() -> None:
    schema = Schema.compile(DEFINITION, KEY)
    full = claim(time=NOW, verified=True, region="r", created=5, location={"lat": 1, "lon": 2})
    for _ in range(2):
        one(full, schema)
        assert problems({**full, "amount": True}, schema) == {"/amount": "number"}
        assert problems({**full, "verified": 1}, schema) == {"/verified": "bool"}
        assert problems({**full, "region": 5}, schema) == {"/region": "string"}
        assert problems({**full, "time": True}, schema) == {"/time": "time"}
        assert problems({**full, "time": 5.5}, schema) == {"/time": "time"}
        assert problems({**full, "created": 5.5}, schema) == {"/created": "time"}
        same(one({**full, "time": float(NOW), "created": 5.0}, schema), one(full, schema))
        assert problems({**full, "location": {"lat": True, "lon": 2}}, schema) == {"/location/lat": "number"}
        assert problems({**full, "location": [1, 2]}, schema) == {"/location": "location"}
        assert np.isnan(number(one({**full, "created": None}, schema), "created"))
        assert number(one(full, schema), "created") == 5
        assert np.isnan(number(one({**full, "created": " "}, schema), "created"))
        assert number(one({**full, "created": "1970-01-01T00:00:01Z"}, schema), "created") == 1000
        odd = {
            **full,
            "event_id": Text("e1"),
            "user_id": Text("u1"),
            "amount": Number(1),
            "region": np.str_("r"),
        }
        batch = one(
            {**odd, "verified": np.bool_(True), "created": np.int64(5), "time": np.uint64(NOW)}, schema
        )
        same(batch, one(full, schema))
        assert type(batch.ids[0]) is str


def test_a_null_is_not_remembered_as_absence() -> None:
    schema = Schema.compile(DEFINITION, KEY)
    assert string(one(claim(region=None), schema), "region") is None
    assert string(one(claim(region="r"), schema), "region") == "r"
    assert string(one(claim(region=None), schema), "region") is None


def test_what_is_remembered_is_bounded() -> None:
    schema = Schema.compile(DEFINITION, KEY)
    for start in range(0, 6 * PLANS_MAX, 256):
        several = [claim(event_id=f"e{i}", **{f"unknown{i}": 1}) for i in range(start, start + 256)]
        schema.parse(several, NOW)
    schema.parse([claim(**{f"u{i}": 1 for i in range(KEYS_MAX)})], NOW)
    plans = schema._plans
    assert max(len(plans.shapes), len(plans.exact), len(plans.made)) <= 4 * PLANS_MAX
    assert max(len(names) for names in plans.shapes) <= KEYS_MAX + 1


def test_threads_share_a_schema() -> None:
    schema = Schema.compile(DEFINITION, KEY)
    names = [name for name in FIELDS if name in CLAIM and name not in ("user_id", "amount")]
    values = {"ip": "1.2.3.4", "phone": "13812345678", "verified": True, "location": {"lat": 1, "lon": 2},
              "region": "r", "device_id": "d", "pages": 1, "budget": 1000, "ratio": 0.5,
              "created": 5}  # fmt: skip
    several = [
        claim(event_id=f"e{i}", **{name: values[name] for j, name in enumerate(names) if i >> j & 1})
        for i in range(2 ** len(names))
    ]
    expected = SCHEMA.parse(several, NOW)[0]
    found: list[Batch] = []

    def parse(step: int) -> None:
        order = several[::step]
        parts = [schema.parse(order[i : i + 16], NOW) for i in range(0, len(order), 16)]
        rows = {batch.ids[i]: batch.take(np.array([i])) for batch, _ in parts for i in range(batch.n)}
        for i in range(0, len(several), 37):
            same(rows[f"e{i}"], expected.take(np.array([i])))
        found.append(parts[0][0])

    threads = [threading.Thread(target=parse, args=(step,)) for step in (1, -1, 1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4


# Names of one thing.


def test_one_off_keys_are_the_batchs() -> None:
    event = claim(device_id=" d ", ip="2001:DB8::0001", phone="138 1234 5678", region="e\u0301")
    batch = one(event)
    assert key(batch, "user") == SCHEMA.entity_key("user", "u1")
    assert key(batch, "phone") == SCHEMA.entity_key("phone", "+8613812345678")
    assert key(batch, "ip") == SCHEMA.entity_key("ip", "2001:db8:0::1")
    assert key(batch, "ip_net") == SCHEMA.entity_key("ip_net", "2001:db8::ffff")
    assert key(batch, "ip_net") != SCHEMA.entity_key("ip_net", "2001:db8:0:1::1")
    assert key(batch, "pair") == SCHEMA.entity_key("pair", ("u1", "d"))
    for amount in (19.9, 0.1 + 0.2, 0.005, 0.015, 1, 0, -0.0, 8e10):
        paid = one(claim(amount=amount, budget=amount * 10))
        assert key(paid, "charge") == SCHEMA.entity_key("charge", ("u1", f" {amount!r} ")) != 0
        assert key(paid, "bulk") == SCHEMA.entity_key("bulk", (repr(float(amount * 10)), "u1")) != 0
    assert SCHEMA.entity_key("charge", ("u1", "19.90")) == SCHEMA.entity_key("charge", ("u1", "19.9"))
    for wrong in ("nineteen", "nan", "inf", "1e300", ""):
        with pytest.raises(ValueError, match="amount is a number"):
            SCHEMA.entity_key("charge", ("u1", wrong))
    assert batch.str_hash[0, SCHEMA.string_at["region"]] == SCHEMA.text_hash("é")
    assert SCHEMA.entity_key("ip_net", "nowhere") == 0
    assert key(one(claim(ip="nowhere")), "ip_net") == 0
    assert key(one(claim(ip="nowhere")), "ip") != 0
    assert key(one(claim()), "pair") == 0
    with pytest.raises(ValueError, match="user_id, device_id: 1 values"):
        SCHEMA.entity_key("pair", "u1")
    with pytest.raises(KeyError):
        SCHEMA.entity_key("nobody", "u1")


def test_addresses_of_a_network_share_its_key() -> None:
    keys = {key(one(claim(ip=f"10.1.2.{host}")), "ip_net") for host in (0, 7, 255)}
    assert keys == {SCHEMA.entity_key("ip_net", "::ffff:10.1.2.9")}
    assert key(one(claim(ip="10.1.3.0")), "ip_net") not in keys


def test_only_what_a_type_may_carry_can_be_required_of_it() -> None:
    fields = {"x": Field("x", "number"), "y": Field("y", "string")}
    definition = Definition(
        name="p", tenant="t", timezone="UTC", country=None, lateness_ms=0, skew_ms=0, model=None,
        fields=fields, events={"e": EventType("e", ("x", "y", "time"), ("x",))}, entities={},
    )  # fmt: skip
    schema = Schema.compile(definition, KEY)
    assert one({"event_id": "1", "type": "e", "x": 1}, schema).n == 1
    assert problems({"event_id": "1", "type": "e", "y": "y"}, schema) == {"/x": "required"}


def test_an_entity_must_be_text() -> None:
    fields = {"x": Field("x", "number")}
    definition = Definition(
        name="p", tenant="t", timezone="UTC", country=None, lateness_ms=0, skew_ms=0, model=None,
        fields=fields, events={}, entities={"thing": Entity("thing", ("x",))},
    )  # fmt: skip
    with pytest.raises(ValueError, match="thing is made of x, which is a number"):
        Schema.compile(definition, KEY)


def test_columns_are_named_in_order() -> None:
    assert SCHEMA.types == ("claim", "scan")
    assert SCHEMA.strings == ("code_id", "device_id", "ip", "phone", "region", "user_id")
    assert SCHEMA.numbers == (
        "time", "amount", "budget", "created", "location.lat", "location.lon", "pages", "ratio", "verified",
    )  # fmt: skip
    assert SCHEMA.entities == ("user", "device", "ip", "ip_net", "phone", "pair", "charge", "bulk")


# Lines and labels.


def test_a_line_is_one_object() -> None:
    assert decode_line(b'{"event_id": "e1", "n": 12345678901234567890123}')["event_id"] == "e1"
    for line, code in ((b"", "json"), (b"{", "json"), (b'{"a": "\xff"}', "json"), (b"[" * 5000, "json"),
                       (b"[1]", "not-an-object"), (b"null", "not-an-object")):  # fmt: skip
        with pytest.raises(EventError) as caught:
            decode_line(line)
        assert [problem.code for problem in caught.value.problems] == [code]


def test_a_line_of_rubbish_is_not_shown() -> None:
    with pytest.raises(EventError) as caught:
        decode_line(b'{"phone": 13812345678x}')
    assert "138" not in str(caught.value)


def test_labels() -> None:
    assert Label.parse({"event_id": "e1", "label": "fraud"}) == Label("e1", "fraud")
    full = {"event_id": "e1", "label": "legit", "time": "1970-01-01T00:00:01Z", "source": "chargeback"}
    assert Label.parse(full) == Label("e1", "legit", 1000, "chargeback")
    with pytest.raises(EventError) as caught:
        Label.parse({"event_id": " ", "label": "bad", "time": 1.5, "source": 3})
    found = {problem.pointer: problem.code for problem in caught.value.problems}
    assert found == {"/event_id": "required", "/label": "label", "/time": "time", "/source": "string"}
    with pytest.raises(EventError, match="a label is an object"):
        Label.parse("fraud")


# Without numba.

SAMPLE: Sequence[dict[str, Any]] = (
    claim(ip="2001:DB8::1", phone="138 1234 5678", region="上海 ", amount=1.005,
          created="2020-02-29T01:02:03.5+08:00"),
    claim(event_id="e2", ip="1.2.3.4", phone="+442079460958", region="e\u0301", verified=True, budget=1500),
    claim(event_id="e3", location={"lat": 31.2, "lon": -121.5}, ratio=-0.0, follows="e1", time=-NOW),
    claim(event_id="e4", amount="no"),
)  # fmt: skip


def digest() -> list[object]:
    batch, errors = SCHEMA.parse(SAMPLE, NOW)
    columns, _ = SCHEMA.parse_columns(arrow(SAMPLE[:3]), NOW)
    same(batch, columns)
    arrays = [getattr(batch, name).tolist() for name in ARRAYS if name != "numbers"]
    numbers = np.nan_to_num(batch.numbers, nan=-1.5).tolist()
    strings = [string(batch, name, row) for row in range(batch.n) for name in SCHEMA.strings]
    return [*arrays, numbers, strings, [str(error) for error in errors.values()]]


def test_it_works_without_numba() -> None:
    code = "import json, test_event\nprint(json.dumps(test_event.digest()))"
    found = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(["tests", "."])},
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not found.stderr
    assert json.loads(found.stdout) == digest()
