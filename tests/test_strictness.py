"""Names twice and depth, found by a kernel: the json module, which hands out each object, is the oracle."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from riskengine.service.settings import DEPTH_MAX
from riskengine.service.strictness import NAMES_MAX, is_plain

spaces = st.text(" \t\r\n", max_size=2)
odd = "{", "[", ":", "]}", "\u00e9", "\U0001f600"
names = st.sampled_from(["a", "b", "ab", "ba", "", *odd]) | st.text(max_size=3)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    pairs = draw(st.lists(st.tuples(names, inner), max_size=4))
    said = []
    for name, value in pairs:
        before, after, behind = draw(st.tuples(spaces, spaces, spaces))
        said.append(f"{before}{json.dumps(name, ensure_ascii=False)}{after}:{behind}{value}")
    return "{" + ",".join(said) + "}"


texts = st.recursive(
    scalars.map(lambda value: json.dumps(value, ensure_ascii=False)),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: "[" + " ,".join(items) + "]") | objects(inner)
    ),
    max_leaves=12,
)


def plain(text: bytes) -> bool:
    return bool(is_plain(np.frombuffer(bytearray(text), np.uint8)))


def oracle(text: str) -> tuple[bool, int, int]:
    """Whether some object has a name twice; the depth, and how many names there are."""
    found = {"twice": False, "names": 0}

    def look(pairs: list[tuple[str, Any]]) -> Any:
        found["twice"] = found["twice"] or len({name for name, _ in pairs}) < len(pairs)
        found["names"] += len(pairs)
        return [value for _, value in pairs]

    def depth(value: Any) -> int:
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    value = json.loads(text, object_pairs_hook=look)
    return bool(found["twice"]), depth(value), found["names"]


@given(texts)
@example('{"a":1,"a":1}')
@example('{"a" \n:1,"b":{"a":1},"c":[{"a":":"},{"a":1}]}')
@example('{"a":{"b":1},"b":{"a":1},"c":"\\"","c":2}')
def test_a_text_is_plain_where_json_finds_nothing(text: str) -> None:
    twice, depth, count = oracle(text)
    if "\\" in text or count > NAMES_MAX:
        assert not (twice and plain(text.encode()))
    else:
        assert plain(text.encode()) is (not twice and depth <= DEPTH_MAX)


@given(st.binary(max_size=60) | st.text('{}[]":, \\a', max_size=60).map(str.encode))
def test_bytes_that_are_no_json_do_no_harm(text: bytes) -> None:
    plain(text)


@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_depth_is_bounded(brackets: str) -> None:
    def nested(depth: int) -> bytes:
        inside = ('"a":' if brackets == "{}" else "") if depth else ""
        return (f"{brackets[0]}{inside}" * depth + "1" + brackets[1] * depth).encode()

    assert plain(nested(DEPTH_MAX))
    assert not plain(nested(DEPTH_MAX + 1))
    assert not plain(nested(10_000))


def test_names_are_counted_where_they_are_open() -> None:
    many = json.dumps([{f"n{k}": k for k in range(NAMES_MAX)} for _ in range(3)])
    assert plain(many.encode())
    assert not plain(json.dumps({f"n{k}": k for k in range(NAMES_MAX + 1)}).encode())
