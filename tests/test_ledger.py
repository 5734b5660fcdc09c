"""The fold: no order of records changes it, no packing loses any of it, and its arithmetic is exact."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stage import DAY, HOUR, KEY, MINUTE, SECOND, T0, claim, payment, policy, write

from riskengine import aggregates, layout, ledger, packing
from riskengine.cells import GREATEST, LEAST, TEXT_WORDS
from riskengine.compiled import Policy
from riskengine.features import FeatureSet, Touches
from riskengine.layout import NONE, Int64s
from riskengine.policy import load_definition
from riskengine.stores.memory import MemoryStore

Event = dict[str, Any]
Row = dict[str, Any]
STEPS_MS = (0, 0, 0, 1, 10, SECOND, 10 * SECOND, MINUTE, 7 * MINUTE, HOUR, 5 * HOUR, DAY, 3 * DAY, 9 * DAY)
WORDS = 1 << 16  # room for any slab of these tests

# Every aggregate that keeps state, over windows short and long, shared streams and streams of their own.
EVERYTHING: dict[str, Any] = {
    "claims_1m": {"count": "coupon_claim", "by": "user", "over": "1m"},
    "claims_1h": {"count": "coupon_claim", "by": "user", "over": "1h"},
    "claims_30d": {"count": "coupon_claim", "by": "user", "over": "30d"},
    "claims_today": {"count": "coupon_claim", "by": "user", "per": "day"},
    "claims_month": {"count": "coupon_claim", "by": "user", "per": "month", "delay": "1d"},
    "big_1h": {"count": "any", "by": "user", "over": "1h", "where": "amount > 5"},
    "spent_1h": {"sum": "amount", "on": "payment", "by": "user", "over": "1h"},
    "spent_week": {"sum": "amount", "on": "payment", "by": "user", "per": "week"},
    "mean_7d": {"mean": "amount", "on": "any", "by": "user", "over": "7d", "delay": "1h"},
    "least_1h": {"min": "amount", "on": "any", "by": "user", "over": "1h"},
    "most_1d": {"max": "amount", "on": "any", "by": "user", "over": "1d", "before": True},
    "spread_1d": {"std": "amount", "on": "any", "by": "user", "over": "1d"},
    "devices_1h": {"distinct": "device", "on": "any", "by": "user", "over": "1h", "cap": 32},
    "devices_7d": {"distinct": "device", "on": "any", "by": "user", "over": "7d", "cap": 4},
    "regions_today": {"distinct": "region", "on": "any", "by": "user", "per": "day", "cap": 3},
    "age": {"since_first": "any", "by": "user"},
    "idle": {"since_last": "coupon_claim", "by": "user"},
    "previous_region": {"previous": "region", "by": "user"},
    "previous_amount": {"previous": "amount", "by": "user"},
    "previous_place": {"previous": "location", "by": "user"},
    "speed": {"speed": "location", "on": "any", "by": "user"},
}
LABELLED: dict[str, Any] = {
    "frauds_1h": {"count": "fraud", "on": "any", "by": "user", "over": "1h"},
    "fraud_rate_7d": {"rate": "fraud", "on": "any", "by": "user", "over": "7d", "delay": "1m"},
    "fraud_spent_1d": {"sum": "amount", "on": "fraud", "by": "user", "over": "1d"},
    "legit_30d": {"count": "legit", "on": "any", "by": "user", "over": "30d"},
    "last_fraud": {"since_last": "fraud", "on": "any", "by": "user"},
}


@cache
def compiled(**features: str) -> Policy:
    """A policy with these features (each as JSON, so that a call can be cached)."""
    with TemporaryDirectory() as folder:
        spelt = {name: json.loads(text) for name, text in features.items()}
        sections = policy(features=spelt, lateness="1s", skew="1s")
        return Policy.compile(load_definition(write(Path(folder), sections)), KEY)


def policy_of(features: dict[str, Any]) -> Policy:
    return compiled(**{name: json.dumps(spec) for name, spec in features.items()})


def touches(compiled_policy: Policy, events: Sequence[Event]) -> Touches:
    """What these events ask of a store, all of them counted."""
    newest = max((event["time"] for event in events), default=T0)
    batch, errors = compiled_policy.schema.parse(
        events, np.array([min(event["time"], newest) for event in events])
    )
    assert not errors
    return compiled_policy.features.touches(batch, batch.time, compiled_policy.tables({}))


class Slab:
    """One user's state, folded by the kernels alone."""

    def __init__(self, features: FeatureSet) -> None:
        self.features = features
        self.words = np.zeros(WORDS, np.int64)
        self.e = features.entities.index("user")
        ledger.empty_slab(features.flat, self.words, 0, self.e, self.e)

    def run_totals(self) -> Slab:
        ledger.run_totals(self.features.flat, self.words, 0, self.e)
        assert ledger.totals_run(self.words, 0)
        return self

    def fold(self, records: Int64s) -> Slab:
        for row in range(len(records)):
            ledger.apply(self.features.flat, self.words, 0, self.e, records[row])
        return self

    def packed(self) -> bytes:
        """The value; packing brings the slab to its canonical form."""
        out = np.zeros(packing.packed_size_max(self.words, 0), np.uint8)
        return bytes(out[: packing.pack(self.features.flat, self.words, 0, self.e, 0, out, 0)])

    def unpack(self, value: bytes) -> Slab:
        data = np.frombuffer(value, np.uint8)
        used = packing.unpack(
            self.features.flat, data, packing.HEADER, len(data), self.words, 0, self.e, WORDS
        )
        assert used == ledger.used_words(self.words, 0)
        return self

    def step(self, record: Int64s) -> list[float | int]:
        """Fold a record and read every feature but texts, at once; nothing where the kernel cannot."""
        cells = np.full(self.features.layout.width, np.nan)
        taken = aggregates.step(self.features.flat, self.words, 0, self.e, record, cells, 1, WORDS)
        found: list[float | int] = [*cells.view(np.int64).tolist()]
        return found if taken else []

    def read(self, at: int) -> list[float | int]:
        """Every feature at a time, bit by bit."""
        cells = np.full(self.features.layout.width, np.nan)
        texts = np.zeros(max(1, len(self.features.texts)) * TEXT_WORDS, np.int64)
        scratch = np.zeros(self.features.scratch_words, np.int64)
        for before in (1, 0):
            aggregates.read(
                self.features.flat, self.words, 0, self.e, at, before, cells, cells.view(np.int64), 1, texts,
                scratch,
            )  # fmt: skip
        return [*cells.view(np.int64).tolist(), *texts.tolist()]


@st.composite
def pasts(draw: st.DrawFn, most: int = 30) -> list[Event]:
    """Events of one user, in any order of time."""
    events = []
    at = 0
    for number in range(draw(st.integers(1, most))):
        at += draw(st.sampled_from(STEPS_MS))
        fields: dict[str, Any] = {"user_id": "u1"}
        if draw(st.booleans()):
            fields["device_id"] = f"d{draw(st.integers(0, 6))}"
        if draw(st.booleans()):
            fields["region"] = draw(
                st.sampled_from(("SH", "BJ", "GZ", "SZ", "a region of more than 24 bytes"))
            )
        if draw(st.booleans()):
            fields["location"] = {"lat": draw(st.integers(-90, 90)), "lon": draw(st.integers(-180, 180))}
        amount = draw(st.sampled_from((0, 1, 5.01, 9.99, -3, 1e9, 2**43 / 100, -(2**43) / 100)))
        if draw(st.booleans()):
            events.append(payment(f"e{number}", at, amount, **fields))
        else:
            fields |= {"amount": amount} if draw(st.booleans()) else {}
            events.append(claim(f"e{number}", at, **fields))
    return events


def labelled(features: FeatureSet, asked: Touches, labels: Sequence[tuple[int, str, bool]]) -> Int64s:
    """Records of labels: (event, label, whether it is taken back)."""
    e = features.entities.index("user")
    at = int(features.plan.entities[e, layout.E_RECORD]) + layout.RECORD_MASK
    records = asked.records[[event for event, _, _ in labels]].copy()
    for k, (event, label, back) in enumerate(labels):
        cells = int(asked.masks[event, e]) & int(
            features.plan.kinds[layout.FRAUD if label == "fraud" else layout.LEGIT, e]
        )
        records[k, at] = cells | (1 << layout.SIGN_BIT if back else 0)
    return records


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Event], list[tuple[int, str, bool]]]:
    """Events, and labels of some: fraud, legit, or fraud and then legit after all."""
    events = draw(pasts())
    labels: list[tuple[int, str, bool]] = []
    for event in range(len(events)):
        match draw(st.integers(0, 5)):
            case 0:
                labels.append((event, "fraud", False))
            case 1:
                labels.append((event, "legit", False))
            case 2:
                labels += [(event, "fraud", False), (event, "fraud", True), (event, "legit", False)]
    return events, labels


def records_of(
    history: tuple[list[Event], list[tuple[int, str, bool]]], features: dict[str, Any]
) -> tuple[FeatureSet, Int64s]:
    events, labels = history
    compiled_policy = policy_of(features)
    asked = touches(compiled_policy, events)
    return compiled_policy.features, np.concatenate(
        (asked.records, labelled(compiled_policy.features, asked, labels))
    )


# ---- the fold -------------------------------------------------------------------------------------------


@given(history=histories(), order=st.randoms(use_true_random=False))
def test_no_order_of_records_changes_the_state(history: Any, order: Any) -> None:
    features, records = records_of(history, EVERYTHING | LABELLED)
    shuffled = list(range(len(records)))
    order.shuffle(shuffled)
    expected = Slab(features).fold(records).packed()
    assert Slab(features).fold(records[shuffled]).packed() == expected
    assert Slab(features).fold(records[::-1]).packed() == expected


def test_every_order_of_a_few_records_is_the_same() -> None:
    """All 5,040 orders of seven events around the edges of windows, tied in time and past a cap."""
    at = (0, 0, 1, HOUR, HOUR + 1, DAY, 8 * DAY)
    events = [
        payment(f"e{k}", at[k], k + 0.5, device_id=f"d{k}", region="SH" if k % 2 else "BJ") for k in range(7)
    ]
    compiled_policy = policy_of(EVERYTHING)
    records = touches(compiled_policy, events).records
    orders = itertools.permutations(range(7))
    assert len({Slab(compiled_policy.features).fold(records[list(order)]).packed() for order in orders}) == 1


@given(history=histories(), later=st.sampled_from((0, 1, MINUTE, HOUR, DAY, 31 * DAY)))
def test_packing_loses_nothing(history: Any, later: int) -> None:
    features, records = records_of(history, EVERYTHING | LABELLED)
    slab = Slab(features).fold(records)
    newest = int(slab.words[0])
    slack = int(features.plan.slack_ms)
    times = (newest - slack, newest - slack // 2, newest, newest + later)
    untouched = [slab.read(at) for at in times]
    value = slab.packed()
    assert [slab.read(at) for at in times] == untouched, "the canonical form reads as what it was made of"
    back = Slab(features).unpack(value)
    assert [back.read(at) for at in times] == untouched
    assert back.packed() == value
    assert packing.examine(value, "0" * 16) is None


@given(history=histories())
def test_a_snapshot_and_its_tail_fold_to_the_same_at_every_split(history: Any) -> None:
    features, records = records_of(history, EVERYTHING | LABELLED)
    expected = Slab(features).fold(records).packed()
    for split in range(len(records) + 1):
        snapshot = Slab(features).fold(records[:split]).packed()
        assert Slab(features).unpack(snapshot).fold(records[split:]).packed() == expected, f"split at {split}"


@given(history=histories(), tidied=st.sets(st.integers(0, 60)), back=st.lists(st.integers(0, 2 * DAY)))
def test_running_totals_are_the_sums_they_stand_for(history: Any, tidied: set[int], back: list[int]) -> None:
    """Read after every record, at its time and before and after it, the slab tidied now and then."""
    features, records = records_of(history, EVERYTHING | LABELLED)
    plain, running = Slab(features), Slab(features).run_totals()
    time_at = int(features.plan.entities[plain.e, layout.E_RECORD]) + layout.RECORD_TIME
    for row in range(len(records)):
        assert running.fold(records[row : row + 1]).read(T0) == plain.fold(records[row : row + 1]).read(T0)
        if row in tidied:
            ledger.tidy(features.flat, plain.words, 0, plain.e)
            ledger.tidy(features.flat, running.words, 0, plain.e)
        newest = int(plain.words[0])
        for at in (int(records[row, time_at]), newest, newest + MINUTE, *(newest - ms for ms in back)):
            assert running.read(at) == plain.read(at)
    assert running.packed() == plain.packed()


COUNTED: dict[str, Any] = {
    f"{name}_{over}": {**what, "on": "payment", "by": "user", "over": over}
    for over in ("1m", "1h", "7h", "30d")
    for name, what in {"mean": {"mean": "amount"}, "spent": {"sum": "amount"}}.items()
} | {"payments_1h": {"count": "payment", "by": "user", "over": "1h"}}


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(STEPS_MS), st.integers(-(2**43), 2**43)), min_size=1, max_size=80
    ),
    tidied=st.sets(st.integers(0, 80)),
)
def test_a_step_is_a_fold_and_a_read(steps: list[tuple[int, int]], tidied: set[int]) -> None:
    events = []
    at = 0
    for number, (wait, minor) in enumerate(steps):
        at += wait
        events.append(payment(f"e{number}", at, minor / 100, user_id="u1"))
    compiled_policy = policy_of(COUNTED)
    features, records = compiled_policy.features, touches(compiled_policy, events).records
    plain, stepped = Slab(features), Slab(features).run_totals()
    assert features.plan.running[plain.e, layout.T_PLAIN]
    before = NONE
    for row, event in enumerate(events):
        expected = plain.fold(records[row : row + 1]).read(event["time"])[: features.layout.width]
        found = stepped.step(records[row])
        assert (
            found
            or row == 0
            or event["time"] // SECOND == before // SECOND
            or event["time"] - before > 31 * DAY
        )
        if not found:
            found = stepped.fold(records[row : row + 1]).read(event["time"])[: features.layout.width]
        assert found == expected
        if row in tidied:
            ledger.tidy(features.flat, plain.words, 0, plain.e)
            ledger.tidy(features.flat, stepped.words, 0, plain.e)
        before = event["time"]
    assert stepped.packed() == plain.packed()


def test_a_step_leaves_other_entities_alone() -> None:
    """What it does not know it refuses, and touches nothing."""
    for features in (EVERYTHING, {"most": {"max": "amount", "on": "payment", "by": "user", "over": "1h"}}):
        assert not policy_of(features).features.plan.running[:, layout.T_PLAIN].any()
    compiled_policy = policy_of(COUNTED)
    events = [payment("e0", HOUR, 1, user_id="u1"), payment("e1", 0, 2, user_id="u1")]
    records = touches(compiled_policy, events).records
    slab = Slab(compiled_policy.features)
    assert slab.fold(records[:1]).step(records[1]) == [], "no totals run"
    slab.run_totals()
    before = slab.words.copy()
    assert slab.step(records[1]) == [], "the record is an old one"
    assert (slab.words == before).all()


@settings(max_examples=20)
@given(events=pasts(), order=st.randoms(use_true_random=False))
def test_a_store_takes_in_snapshots_with_tails(events: list[Event], order: Any) -> None:
    """The same by the doors of a store: `values` gives snapshots, `put_value` takes them with a tail."""
    compiled_policy = policy_of(EVERYTHING)
    features = compiled_policy.features
    order.shuffle(events)
    whole = values_after(compiled_policy, events)
    e = features.entities.index("user")
    first = int(features.plan.entities[e, layout.E_RECORD])
    width = int(features.plan.entities[e, layout.E_WIDTH])
    for split in {1, len(events) // 2, len(events) - 1} - {0}:
        tail = touches(compiled_policy, events[split:]).records[:, first : first + width]
        other = MemoryStore(features)
        for (key, entity), value in values_after(compiled_policy, events[:split]).items():
            if entity == "user":
                value += np.ascontiguousarray(tail, "<i8").tobytes()
            other.put_value(key, entity, value)
        assert {(k, n): v for k, n, v in other.values() if n == "user"} == {
            place: value for place, value in whole.items() if place[1] == "user"
        }


def values_after(compiled_policy: Policy, events: Sequence[Event]) -> dict[tuple[int, str], bytes]:
    store = MemoryStore(compiled_policy.features)
    store.observe(touches(compiled_policy, events))
    return {(key, entity): value for key, entity, value in store.values()}


def test_silence_longer_than_every_window_forgets_everything() -> None:
    compiled_policy = policy_of({"claims_1h": EVERYTHING["claims_1h"]})
    features = compiled_policy.features
    gap = int(features.plan.entities[features.entities.index("user"), layout.E_RETENTION])
    kept = touches(compiled_policy, [claim("e1"), claim("e2", gap)]).records
    gone = touches(compiled_policy, [claim("e1"), claim("e2", gap + 1)]).records
    only = touches(compiled_policy, [claim("e2", gap + 1)]).records
    assert Slab(features).fold(gone).packed() == Slab(features).fold(only).packed()
    assert Slab(features).fold(kept).read(T0 + gap)[features.columns["claims_1h"]] == bits(1.0)


def test_a_value_does_not_grow_with_the_events_behind_it() -> None:
    """Ten times the events in the same buckets: counts have more digits, and that is all."""
    compiled_policy = policy_of({name: EVERYTHING[name] for name in ("claims_1h", "claims_30d", "spent_1h")})

    def size(step: int) -> int:
        events = [claim(f"e{k}", k * step) for k in range(2 * DAY // step)]
        return len(Slab(compiled_policy.features).fold(touches(compiled_policy, events).records).packed())

    assert size(6 * SECOND) < 1.3 * size(MINUTE)


@given(history=histories(), data=st.data())
def test_a_broken_value_is_told_and_never_read_past_its_end(history: Any, data: st.DataObject) -> None:
    features, records = records_of(history, EVERYTHING | LABELLED)
    value = Slab(features).fold(records).packed()
    fingerprint = "0" * 16
    cut = data.draw(st.integers(0, len(value) - 1))
    assert packing.examine(value[:cut], fingerprint) is not None
    broken = bytearray(value)
    at = data.draw(st.integers(packing.HEADER, len(value) - 1))
    broken[at] ^= data.draw(st.integers(1, 255))
    assert packing.examine(bytes(broken), fingerprint) is not None
    assert packing.examine(value, "0123456789abcdef") is not None
    # Even where the check says nothing, a slab has bounds: run as plain Python, which minds every index.
    room = 2000
    words = np.zeros(room, np.int64)
    plain = getattr(packing.unpack, "py_func", packing.unpack)
    ledger.empty_slab(features.flat, words, 0, 0, 0)
    used = plain(
        features.flat, np.frombuffer(bytes(broken), np.uint8), packing.HEADER, len(broken), words, 0, 0, room
    )
    assert -1 <= used <= room


def test_without_compiled_kernels_the_answers_are_the_same(tmp_path: Path) -> None:
    """A story of every kind of record, once compiled and once as plain Python, in processes of their own."""
    write(tmp_path, STORY_POLICY)
    answers = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", STORY, str(tmp_path)],
            env={**os.environ, "NUMBA_DISABLE_JIT": disabled, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, timeout=300, check=False,
        )
        for disabled in ("0", "1")
    ]  # fmt: skip
    assert [answer.stderr for answer in answers] == ["", ""]
    compiled_lines, plain_lines = (answer.stdout.splitlines() for answer in answers)
    assert len(compiled_lines) > 60
    assert compiled_lines == plain_lines


STORY_POLICY = policy(
    lateness="1m",
    skew="1s",
    features=EVERYTHING | LABELLED | {"jump": {"value": "claims_1m / claims_1h"}},
    lists={"blocked": {"of": ["user", "device"]}},
    limits={
        "five-an-hour": {"count": "any", "by": "device", "over": "1h", "max": 5, "then": "challenge"},
        "budget": {"sum": "amount", "on": "payment", "by": "campaign", "per": "day", "max": 100.05},
    },
    rules={
        "busy": {"on": "any", "when": "claims_1h > 2 or jump > 0.5", "risk": 0.3, "mode": "live"},
        "known": {"on": "any", "when": "listed('blocked', user)", "then": "deny", "mode": "live"},
        "other-region": {"on": "any", "when": "previous_region != region", "risk": 0.2, "mode": "live"},
    },
    decide={"payment": {"review": 0.3, "deny": 0.6}},
)
STORY = """
import random, sys
import msgspec
from riskengine.engine import Engine
from riskengine.errors import EventError

T0, now = 1_794_362_400_000, [1_794_362_400_000]
dice = random.Random(7)
engine = Engine.open(sys.argv[1], clock=lambda: now[0], key=b"a key for both")
for step in range(24):
    now[0] += dice.choice((0, 1000, 60_000, 3_600_000, 90_000_000))
    events = []
    for k in range(dice.choice((1, 1, 4))):
        event = {
            "event_id": f"e{step}-{k}", "type": dice.choice(("coupon_claim", "payment")),
            "time": now[0] - dice.choice((0, 0, 500, 600_000, 7_200_000)),
            "amount": dice.choice((1, 5.5, 60)), "user_id": dice.choice(("u1", "u1", "u2")),
            "device_id": dice.choice(("d1", "d2")), "campaign_id": "c1", "region": dice.choice(("SH", "BJ")),
            "location": {"lat": dice.randint(-90, 90), "lon": dice.randint(-180, 180)},
        }
        if dice.random() < 0.2 and step:
            event["follows"] = f"e{dice.randrange(step)}-0"
        events.append(event)
    for answer in engine.score_many(events, features=True):
        print(repr(answer) if isinstance(answer, EventError) else msgspec.json.encode(answer).decode())
    before = f"e{dice.randrange(step + 1)}-0"
    print(engine.label(before, dice.choice(("fraud", "legit"))) if step % 3 else engine.release(before))
    if step == 9:
        engine.list_put("blocked", "user", "u2", expires=now[0] + 5_000_000)
for value in engine._store.values():
    print(value[0], value[1], value[2].hex())
engine.close()
"""


# ---- its arithmetic, beside plain Python ----------------------------------------------------------------

MINOR_MAX = 2**43
minors = st.one_of(
    st.integers(-MINOR_MAX, MINOR_MAX),
    st.integers(0, 44).flatmap(lambda k: st.sampled_from((2**k, 2**k - 1, -(2**k)))).filter(
        lambda v: abs(v) <= MINOR_MAX
    ),
)  # fmt: skip
words = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-300, 300), minors)


def bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))


@given(value=minors)
def test_a_square_is_kept_in_two_halves(value: int) -> None:
    high, low = ledger.square_high(value), ledger.square_low(value)
    assert (high << layout.SQUARE_SHIFT) + low == value * value
    assert 0 <= low < 1 << layout.SQUARE_SHIFT


@given(values=st.lists(st.tuples(minors, st.integers(1, 2**18)), min_size=1, max_size=6))
def test_the_variance_is_exact_until_it_is_rounded_once(values: list[tuple[int, int]]) -> None:
    n = sum(times for _, times in values)
    total = sum(value * times for value, times in values)
    high = sum(ledger.square_high(value) * times for value, times in values)
    low = sum(ledger.square_low(value) * times for value, times in values)
    exact = n * sum(value * value * times for value, times in values) - total * total
    room = np.full(20, 77, np.int64)
    found = aggregates.variance_numerator(n, total, high, low, room[4:])
    assert found == float(Fraction(exact))
    assert [*room[:4], *room[16:]] == [77] * 8, "only the limbs given are written"


@given(value=words)
def test_varints_come_back(value: int) -> None:
    out = np.zeros(16, np.uint8)
    end = packing.put_varint(out, 2, value)
    assert 3 <= end <= 12
    assert packing.get_varint(out, 2, end) == (value, end)
    assert packing.get_varint(out, 2, end - 1)[1] == -1
    assert packing.put_raw(out, 3, value, 8) == 11
    assert packing.get_raw(out, 3, 8) == value


@given(
    lat=st.integers(-900_000_000, 900_000_000), lon=st.integers(-1_800_000_000, 1_800_000_000)
)  # fmt: skip
def test_a_location_fits_a_word(lat: int, lon: int) -> None:
    word = layout.pack_location(lat / 1e7, lon / 1e7)
    assert -(2**63) <= word < 2**63
    assert (layout.latitude(word), layout.longitude(word)) == (lat / 1e7, lon / 1e7)


@given(minor=minors, digits=st.integers(-6, 9))
def test_minor_units_are_found_again(minor: int, digits: int) -> None:
    """A value is minor / 10**digits in floats; from it the minor units are exact."""
    value = minor / 10**digits if digits >= 0 else float(minor * 10**-digits)
    assert layout.minor_of(value, digits) == minor
    assert layout.unscaled(float(minor), digits) == value


@given(keys=st.lists(words, max_size=40, unique=True), key=words)
def test_a_key_is_found_where_it_belongs(keys: list[int], key: int) -> None:
    region = np.array([word for k in sorted(keys) for word in (k, 0, 0)] or [0], np.int64)
    for wanted in (key, *keys):
        expected = 3 * sum(k < wanted for k in keys)
        assert ledger.find_key(region, 0, len(keys), 3, wanted) == expected


@given(a=st.one_of(minors, st.just(NONE)), b=st.one_of(minors, st.just(NONE)))
def test_extremes_pass_over_nothing(a: int, b: int) -> None:
    known = [v for v in (a, b) if v != NONE]
    assert ledger.extreme(LEAST, a, b) == min(known, default=NONE)
    assert ledger.extreme(GREATEST, a, b) == max(known, default=NONE)


# ---- windows --------------------------------------------------------------------------------------------

WINDOWED = {
    "w1s": {"count": "coupon_claim", "by": "user", "over": "1s"},
    "w7m": {"count": "coupon_claim", "by": "user", "over": "7m", "delay": "3s"},
    "w90d": {"count": "coupon_claim", "by": "user", "over": "90d"},
    "day": {"count": "coupon_claim", "by": "user", "per": "day"},
    "week": {"count": "coupon_claim", "by": "user", "per": "week", "delay": "1h"},
    "month": {"count": "coupon_claim", "by": "user", "per": "month"},
}
WINDOWS = (
    (1 * SECOND, 0), (7 * MINUTE, 3 * SECOND), (90 * DAY, 0), ("day", 0), ("week", HOUR), ("month", 0),
)  # fmt: skip
EPOCH_DAYS = datetime(1970, 1, 1, tzinfo=UTC).toordinal()
times = st.integers(0, 4_000_000_000_000)


@cache
def windowed() -> Int64s:
    """The flat plan of a policy with one stream and six windows, in this order."""
    return policy_of(WINDOWED).features.flat


def divisor(width: int) -> int:
    """The largest divisor of a width that is at most a sixtieth of it."""
    return next(g for g in range(width // 60, 0, -1) if width % g == 0)


def bucket(window: int, at: int) -> int:
    width, _ = WINDOWS[window]
    if isinstance(width, int):
        return at // divisor(width)
    local = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at)
    local = local.astimezone(ZoneInfo("Asia/Shanghai"))
    day = local.toordinal() - EPOCH_DAYS
    if width == "day":
        return day
    return (day + 3) // 7 if width == "week" else (local.year - 1970) * 12 + local.month - 1


@given(at=times, window=st.integers(0, 5))
def test_buckets_are_whole_divisors_or_periods(at: int, window: int) -> None:
    assert ledger.bucket_of(windowed(), window, at) == bucket(window, at)


@given(newest=times, window=st.integers(0, 5))
def test_what_is_dead_is_what_no_read_can_count(newest: int, window: int) -> None:
    """The oldest read is made at T - slack; what lies before its window is dead, and nothing else."""
    width, delay = WINDOWS[window]
    slack = 2 * SECOND
    buckets = width // divisor(width) if isinstance(width, int) else 1
    oldest_counted = bucket(window, newest - slack - delay) - buckets + 1
    assert ledger.last_dead(windowed(), window, newest) == oldest_counted - 1


@given(
    a=st.integers(0, 3000), b=st.integers(0, 3000), newest=st.integers(3_000, 6_000)
)  # fmt: skip
def test_entries_merge_when_no_read_tells_them_apart(a: int, b: int, newest: int) -> None:
    """Against every read that can still come, of a window of a second (buckets of 10 ms)."""
    plan = policy_of({"w": WINDOWED["w1s"]}).features.flat
    slack = 2 * SECOND
    g = divisor(SECOND)

    def counted(record: int, at: int) -> bool:
        return at // g - SECOND // g + 1 <= record // g <= at // g

    reads = range((newest - slack) // g * g, max(a, b) + 2 * SECOND, g)
    apart = any(counted(a, at) != counted(b, at) for at in (newest - slack, *reads[1:]))
    assert ledger.indistinct(plan, 0, 1, min(a, b), max(a, b), newest) == (a == b or not apart)
    alive = any(counted(a, at) for at in (newest - slack, *reads[1:]))
    assert ledger.all_dead(plan, 0, 1, a, newest) == (not alive)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu", "America/New_York", "Australia/Lord_Howe"])
def test_offsets_are_those_of_the_time_zone(zone: str) -> None:
    with TemporaryDirectory() as folder:
        features = {"f": WINDOWED["day"]}
        definition = load_definition(write(Path(folder), policy(timezone=zone, features=features)))
        plan = Policy.compile(definition, KEY).features.flat
    for at in range(1_735_000_000_000, 1_830_000_000_000, 7_777_777_777):
        there = datetime.fromtimestamp(at // 1000, ZoneInfo(zone))
        assert layout.offset_in(plan, at) == (there.utcoffset() or timedelta()) // timedelta(milliseconds=1)
