"""A whole batch encoded at one go, and cut: msgspec, one value at a time, is the oracle."""

from __future__ import annotations

from itertools import accumulate

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from riskengine.stores.items import encoded

sizes = st.sampled_from([0, 1, 15, 16, 31, 32, 255, 256, 65_535, 65_536])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.sampled_from([sign * 2**power + more for power in range(63) for sign in (1, -1) for more in (-1, 0)])
    | st.floats()
    | st.text(max_size=40)
    | sizes.map(lambda size: "x" * size)
    | sizes.map(bytes)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=20)
        | st.dictionaries(st.text(max_size=5), inner, max_size=20)
        | sizes.map(lambda size: [None] * size)
        | sizes.map(lambda size: dict.fromkeys(range(size), True))
    ),
    max_leaves=20,
)


def alone(many: list[object]) -> tuple[bytes, list[int]]:
    each = [msgspec.msgpack.encode(value) for value in many]
    return b"".join(each), list(accumulate(map(len, each)))


@given(st.lists(values, max_size=20) | values.map(lambda value: [value] * 16))
def test_items_are_those_that_are_encoded_one_by_one(many: list[object]) -> None:
    data, ends = encoded(many)
    assert (data.tobytes(), ends.tolist()) == alone(many)


def test_a_large_batch_has_a_head_of_five_bytes() -> None:
    many: list[object] = ["x" * (i % 40) for i in range(70_000)]
    data, ends = encoded(many)
    assert (data.tobytes(), ends.tolist()) == alone(many)
