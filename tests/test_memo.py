"""Values that are remembered come to the same as values that are folded anew, whatever is read after what."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage import KEY, T0, claim, policy, write

from riskengine import packing
from riskengine.engine import Engine
from riskengine.features import FeatureSet
from riskengine.hashing import signed
from riskengine.layout import Int64s
from riskengine.stores import memo, slabs, unfolding, values
from riskengine.stores.plans import LaidOut, Plans
from riskengine.stores.resp import as_array
from riskengine.stores.scratch import Scratch
from riskengine.stores.workspace import Workspace

HOUR = 3_600_000
TAIL = 24
FEATURES = {
    "claims": {"count": "coupon_claim", "by": "user", "over": "1h"},
    "devices": {"distinct": "device", "on": "coupon_claim", "by": "user", "over": "3h"},
    "users": {"distinct": "user", "on": "coupon_claim", "by": "device", "over": "1h"},
    "ago": {"since_last": "coupon_claim", "by": "device"},
}
LIMITS = {"few": {"count": "coupon_claim", "by": "device", "over": "1h", "max": 4, "then": "deny"}}
WHO = (("user", "u1"), ("user", "u2"), ("device", "d1"), ("device", "d2"))


class History(NamedTuple):
    """Everything that the values of a few entities were, one after the other."""

    features: FeatureSet
    spots: list[tuple[int, int]]  # entity and key
    were: list[list[bytes]]


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    folder = write(tmp_path_factory.mktemp("policy"), policy(features=FEATURES, limits=LIMITS))
    scratch = Scratch((b"",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unfolding, "TAIL_RECORDS", TAIL)
        with Engine.open(folder, key=KEY) as plain:
            definition = plain.definition
        now = T0
        with Engine.open(definition, scratch.store, None, lambda: now, KEY) as engine:
            features = engine.policy.features
            spots = [
                (features.entities.index(entity), signed(engine.policy.schema.entity_key(entity, value)))
                for entity, value in WHO
            ]
            names = [scratch.place.entity_name(features.entities[e], key) for e, key in spots]
            were: list[list[bytes]] = [[] for _ in names]
            for n in range(160):
                now += 3 * 60_000
                at = now - T0 - (HOUR // 3 if n % 9 == 8 else 0)
                device = ("d1", "d2", "other")[n % 3]
                engine.score(claim(f"e{n}", at, user_id=f"u{n % 5 % 2 + 1}", device_id=device))
                for name, versions in zip(names, were, strict=True):
                    value = scratch._values.get(name)
                    if value is not None and (not versions or versions[-1] != value):
                        versions.append(value)
            yield History(features, spots, were)


class Reader:
    """Folds values, with what it remembers or with nothing."""

    def __init__(self, features: FeatureSet, remembered: Int64s) -> None:
        self.features, self.plan = features, LaidOut.of(features)
        self.work, self.plans = Workspace(), Plans(lambda _: None)
        self.work.serve(features, 1)
        self.memo = remembered

    def read(self, spots: list[tuple[int, int]], found: list[bytes], time: int) -> tuple[object, ...]:
        """All that comes of values: what is told of them, and their slabs in canonical form."""
        count, work = len(found), self.work
        lengths = np.array([len(value) if value else -1 for value in found], np.int64)
        offsets = np.concatenate(([0], np.cumsum(lengths.clip(0))[:-1])).astype(np.int64)
        data = np.frombuffer(bytearray(b"".join(found) + bytes(8)), np.uint8)
        work.begin(count, len(data), count)
        tails, outcome = np.zeros((count, values.TAIL_SIZE), np.int64), np.empty(count, np.int64)
        long = np.empty(count, np.int64)
        other, n = values.unfold(
            self.features.flat, self.plans.partial(self.plan), self.plan.tag, self.plan.number, *work.arrays,
            data, offsets, lengths, np.arange(count), count, np.array([(key, e, 0, 0) for e, key in spots]),
            work.row, 0, 0, self.memo, np.array([time]), TAIL, tails, outcome, long,
        )  # fmt: skip
        held = [slabs.locate(*work.arrays[1:], key) for _, key in spots]
        marked = [data[offsets[k] : offsets[k] + lengths[k]].tobytes() for k in long[:n]]
        return other, tails.tolist(), outcome.tolist(), long[:n].tolist(), marked, [
            self._packed(s, e) if s else b"" for s, (e, _) in zip(held, spots, strict=True)
        ]  # fmt: skip

    def _packed(self, s: int, e: int) -> bytes:
        out = np.empty(packing.packed_size_max(self.work.words, s), np.uint8)
        end = packing.pack(self.features.flat, self.work.words, s, e, self.plan.number, out, 0)
        return out[:end].tobytes()


def spoilt(value: bytes, how: int) -> bytes:
    """A value as it is, or with its last record taken back, or with another byte in it."""
    if how == 1 and len(value) > 24 and value[:2] != packing.MAGIC.to_bytes(2, "little"):
        return bytes((values.VOID,)) + value[1:] if value[0] == values.RECORD else value
    if how == 2 and len(value) > 32:
        at = len(value) // 2
        return value[:at] + bytes((value[at] ^ 1,)) + value[at + 1 :]
    return value


reads = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1), st.sampled_from((0, 0, 0, 1, 2))), max_size=4),
    max_size=30,
)


@given(
    reads=reads,
    ring=st.sampled_from((1 << 9, 1 << 11, 1 << 16)),
    slots=st.sampled_from((1, 4, 64)),
    hours=st.integers(0, 8),
)
def test_what_is_remembered_is_what_it_would_be_anew(
    history: History, reads: list[list[tuple[int, float, int]]], ring: int, slots: int, hours: int
) -> None:
    """In any order: values grow, are folded by others, lose their end, and are changed where they stand."""
    remembers = Reader(history.features, memo.memory(ring, slots))
    forgets = Reader(history.features, memo.NOTHING)
    for read in reads:
        asked = {who: (at, how) for who, at, how in read}
        spots = [history.spots[who] for who in asked]
        found = []
        for who, (at, how) in asked.items():
            were = history.were[who]
            found.append(spoilt(were[round(at * (len(were) - 1))], how))
        if found:
            assert remembers.read(spots, found, T0 + hours * HOUR) == forgets.read(
                spots, found, T0 + hours * HOUR
            )


def test_a_value_that_grows_is_found(history: History) -> None:
    """Nearly every time, where no snapshot was written meanwhile."""
    remembered = memo.memory(1 << 12, 64)
    reader, found, grown = Reader(history.features, remembered), 0, 0
    (e, key), were = history.spots[2], history.were[2]
    for before, value in pairwise(were):
        reader.read([(e, key)], [before], T0)
        data = as_array(value)
        if value.startswith(before) and len(before) >= memo.BYTES_MIN:
            grown += 1
            found += memo.recall(remembered, key, data, 0, len(data)) >= 0
        elif not value.startswith(before):
            assert memo.recall(remembered, key, data, 0, len(data)) < 0
    assert grown >= 5
    assert found == grown
    memo.forget(remembered)
    assert memo.recall(remembered, key, as_array(were[-1]), 0, len(were[-1])) < 0


@given(data=st.binary(max_size=90), at=st.integers(0, 89), bit=st.integers(0, 7))
def test_a_digest_tells_one_bit(data: bytes, at: int, bit: int) -> None:
    other = bytearray(data)
    if at < len(data):
        other[at] ^= 1 << bit
    padded = as_array(data + bytes(8)), as_array(bytes(other) + bytes(8))
    first, second = (packing.digest(array, 0, len(data)) for array in padded)
    assert 0 <= first < 1 << 63
    assert (first == second) == (at >= len(data))
    assert packing.digest(padded[0], 0, len(data)) == first
