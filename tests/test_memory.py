"""The in-process store: what an entity costs, and that growing, expiring and evicting keep counts right."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive import floor_minor
from numpy.typing import NDArray
from stage import DAY, HOUR, KEY, MINUTE, SECOND, T0, Stage, claim, memory, payment, policy, write

from riskengine.compiled import Policy
from riskengine.errors import RiskEngineError
from riskengine.event import Batch
from riskengine.features import FeatureSet
from riskengine.footprint import ENTITY_BYTES_MAX, state_bytes
from riskengine.policy import load_definition
from riskengine.stores import slabs, statefile
from riskengine.stores.memory import AHEAD_WORDS, MemoryStore

Int64s = NDArray[np.int64]

# As card-fraud handbooks have it: how many, and how much on average, over three windows.
HANDBOOK: dict[str, Any] = {
    f"user_{name}_{window}": {**spec, "by": "user", "over": window}
    for window in ("1d", "7d", "30d")
    for name, spec in (("count", {"count": "payment"}), ("mean", {"mean": "amount", "on": "payment"}))
}
COUNTED = {
    "claims_1h": {"count": "coupon_claim", "by": "user", "over": "1h"},
    "claims_30d": {"count": "coupon_claim", "by": "user", "over": "30d"},
    "idle": {"since_last": "coupon_claim", "by": "user"},
}


@cache
def handbook() -> Policy:
    return compiled(policy(entities={"user": "user_id"}, features=HANDBOOK))


def compiled(sections: dict[str, Any]) -> Policy:
    with TemporaryDirectory() as folder:
        return Policy.compile(load_definition(write(Path(folder), sections)), KEY)


class Crowd:
    """Many users in a store without an engine: batches of payments, one row a user."""

    def __init__(self, of: Policy, batch: int = 1024) -> None:
        self.policy = of
        self.store = MemoryStore(of.features)
        self.shape, _ = of.schema.parse([payment(f"e{k}", 0, k % 100) for k in range(batch)], T0)

    def observe(self, users: Int64s, at: int | Int64s) -> Int64s:
        """One event of each user at a time, or each at its own; what they count over 30 days then."""
        found = []
        for start in range(0, len(users), self.shape.n):
            part = users[start : start + self.shape.n]
            touches = self.policy.features.touches(
                self._batch(part, at), np.full(len(part), at), self.policy.tables({})
            )
            self.store.observe(touches)
            found.append(touches.cells[self.policy.features.columns["user_count_30d"]].copy())
        return np.concatenate(found).astype(np.int64)

    def _batch(self, users: Int64s, at: int | Int64s) -> Batch:
        shape = self.shape.take(np.arange(len(users)))
        keys = np.zeros_like(shape.keys)
        keys[:, self.policy.features.entities.index("user")] = users.view(np.uint64)
        return msgspec.structs.replace(shape, keys=keys, time=np.full(len(users), at))


def users(n: int, seed: int = 1) -> Int64s:
    """Keys as hashes are: any 64 bits but none."""
    return np.random.default_rng(seed).integers(1, 2**63, n, np.int64) * 2 + 1


def check_blocks(store: MemoryStore) -> None:
    """Blocks tile memory; each is free and on the list of its class, or an entity's that a table knows."""
    words, meta = store._words, store._meta
    tables = np.concatenate((store._table, store._old_table)).reshape(-1, 2)
    known = {int(ref): int(key) for key, ref in tables.tolist() if ref > 0}
    free: Counter[int] = Counter()
    at, entities = slabs.FIRST, 0
    walks = {int(meta[slabs.SWEPT]), int(meta[slabs.MIGRATED])}
    while at < meta[slabs.TOP]:
        walks.discard(at)
        s = at + 1
        size_class = slabs.slab_class(words, s)
        if words[at]:
            entities += 1
            assert known[s] == words[at]
        else:
            free[size_class] += 1
        at += int(slabs.SIZES[size_class])
    assert at == meta[slabs.TOP] <= len(words)
    assert walks <= {at}, "walks go on at the beginning of a block"
    assert entities == len(known) == meta[slabs.ENTITIES]
    for size_class in range(slabs.CLASSES):
        before, s = 0, int(meta[slabs.FREE + size_class])
        while s:
            assert (int(words[s - 1]), slabs.slab_class(words, s), int(words[s + 2])) == (
                0,
                size_class,
                before,
            )
            free[size_class] -= 1
            before, s = s, int(words[s])
    assert not any(free.values())
    sizes = slabs.SIZES[[slabs.slab_class(words, s) for s in known]].sum()
    assert sizes == meta[slabs.TOP] - slabs.FIRST - meta[slabs.FREED]


def bytes_an_entity(crowd: Crowd) -> float:
    info = crowd.store.info()
    return info.bytes / info.entities


# ---- what it costs --------------------------------------------------------------------------------------


def test_an_entity_of_four_events_takes_at_most_256_bytes() -> None:
    """Slab and its share of the key table, at the table's best and worst (just grown, both tables there)."""
    crowd = Crowd(handbook())
    everyone = users(100_000)
    for visit in range(4):
        crowd.observe(everyone, T0 + visit * DAY)
    assert bytes_an_entity(crowd) <= 256
    newcomers = users(64_000, seed=2)
    worst = 0.0
    for start in range(0, len(newcomers), 2_000):
        for visit in range(4):
            crowd.observe(newcomers[start : start + 2_000], T0 + 4 * DAY + visit * HOUR)
        worst = max(worst, bytes_an_entity(crowd))
    assert worst <= 256


def test_an_entity_of_one_event_takes_less_than_one_of_four() -> None:
    crowd = Crowd(handbook())
    crowd.observe(users(100_000), T0)
    assert bytes_an_entity(crowd) <= 144


def test_a_hot_entity_is_bounded_by_its_windows() -> None:
    """240,000 payments of one user over 40 days: as many buckets as the windows have, and no more."""
    crowd, calm = Crowd(handbook()), Crowd(handbook())
    hot = np.full(1000, 77, np.int64)
    calm.observe(hot, T0)
    size = 0
    for visit in range(40 * 6):
        counts = crowd.observe(hot, T0 + visit * 4 * HOUR)
        size = max(size, crowd.store.info().bytes - calm.store.info().bytes)
    assert counts[-1] == 180 * 1000, "thirty days of six thousand a day"
    assert size < 8 * 1024
    ((_, _, value),) = crowd.store.values()
    assert len(value) < 4 * 1024


def test_no_entity_outgrows_what_check_says_it_may_cost(tmp_path: Path) -> None:
    """Busy in every bucket of every window, with every kind of cell: inside the bound that `check` tells."""
    features = {
        "n_1h": {"count": "any", "by": "user", "over": "1h"},
        "mean_7d": {"mean": "amount", "on": "any", "by": "user", "over": "7d", "delay": "1h"},
        "std_1d": {"std": "amount", "on": "any", "by": "user", "over": "1d"},
        "devices": {"distinct": "device", "on": "any", "by": "user", "over": "1d", "cap": 100},
        "few_devices": {"distinct": "device", "on": "any", "by": "user", "over": "1d", "cap": 99},
        "region_before": {"previous": "region", "by": "user"},
        "month": {"max": "amount", "on": "any", "by": "user", "per": "month"},
    }
    limits = {"many": {"count": "any", "by": "user", "over": "1h", "max": 1_000_000}}
    with Stage(tmp_path, policy(features=features, limits=limits, lateness="1m", skew="1m")) as stage:
        bound = sum(state_bytes(stage.engine.definition)["user"].values())
        assert bound < ENTITY_BYTES_MAX
        for hour in range(8 * 24 + 1):
            stage.now = T0 + hour * HOUR
            minutes = range(-59, 1) if hour % 24 == 0 or hour == 8 * 24 else (0,)
            events = [
                payment(
                    f"e{hour}-{m}", hour * HOUR + m * MINUTE, (2**43 - 60 - m) / 100,
                    device_id=f"d{hour}{m}", region="a region of more than 24 bytes",
                )
                for m in minutes if hour * HOUR + m * MINUTE >= -MINUTE
            ]  # fmt: skip
            for event in events:
                stage.now = max(T0, event["time"])
                stage.engine.score(event)
        sizes = {entity: len(value) for _, entity, value in memory(stage.engine).values()}
        assert sizes["user"] <= bound


# ---- growing --------------------------------------------------------------------------------------------


def test_growing_keeps_every_count() -> None:
    """From one user to 50,000, in batches of every size; each user comes a number of times of his own."""
    crowd = Crowd(handbook(), batch=512)
    dice = np.random.default_rng(3)
    everyone = users(50_000)
    times = np.zeros(len(everyone), np.int64)
    met = 1
    at = T0
    while met < len(everyone):
        met = min(len(everyone), met + int(dice.integers(1, 3000)))
        chosen = np.concatenate((np.arange(max(0, met - 700), met), dice.integers(0, met, 500)))
        chosen = np.unique(chosen)
        at += SECOND
        counts = crowd.observe(everyone[chosen], at)
        times[chosen] += 1
        assert np.array_equal(counts, times[chosen])
    known = np.flatnonzero(times)
    assert crowd.store.info().entities == len(known)
    for start in range(0, len(known), 10_000):
        part = known[start : start + 10_000]
        assert np.array_equal(crowd.observe(everyone[part], at), times[part] + 1)
    assert len(list(crowd.store.values())) == len(known)
    assert crowd.store.info().lost == crowd.store.info().evictions == 0


def test_who_moves_within_a_batch_is_found_again() -> None:
    """Few users over and over: where their slabs were is known to touches that come after they have moved."""
    dice = np.random.default_rng(5)
    everyone, at = users(7), T0 + 2 * HOUR * np.arange(600)
    chosen = dice.choice(everyone, len(at))
    at_once, one_by_one = Crowd(handbook(), batch=len(at)), Crowd(handbook(), batch=1)
    lone = [int(one_by_one.observe(chosen[k : k + 1], int(at[k]))[0]) for k in range(len(at))]
    assert at_once.observe(chosen, at).tolist() == lone
    check_blocks(at_once.store)


def test_the_key_table_grows_by_a_few_slots_a_batch() -> None:
    """No batch waits for more than its share, and the old table is empty long before the next one is due.

    Nor does one wait for the system to give memory: the next table was written before it is needed.
    """
    crowd = Crowd(handbook(), batch=64)
    keys_a_batch = 64 * len(crowd.policy.features.entities)
    grown = prepared_for = 0
    moved = 1
    slots = len(crowd.store._table)
    for batch in users(64 * 1024).reshape(-1, 64):
        prepared, written = crowd.store._next_table, crowd.store._written
        crowd.observe(batch, T0)
        if len(crowd.store._table) != slots:
            if slots >= 32 * keys_a_batch:
                prepared_for += 1
                assert crowd.store._table is prepared
                assert written + AHEAD_WORDS >= len(prepared)
            grown, moved, slots = grown + 1, 0, len(crowd.store._table)
        now = int(crowd.store._meta[slabs.MOVED])
        assert now - moved <= 4 * keys_a_batch + 256
        moved = now
    assert grown >= 4
    assert prepared_for >= 2
    assert len(crowd.store._old_table) == 2, "everything has moved"


def test_keys_that_share_their_low_bits_are_told_apart() -> None:
    """All of them want the same slot of the table."""
    crowd = Crowd(handbook())
    alike = np.arange(1, 3001, dtype=np.int64) << 40
    assert crowd.observe(alike, T0).tolist() == [1] * 3000
    assert crowd.observe(alike[::-1].copy(), T0 + 1).tolist() == [2] * 3000


def test_a_table_growing_under_one_large_batch_keeps_its_counts(tmp_path: Path) -> None:
    with Stage(tmp_path, policy(features=COUNTED)) as stage:
        events = [claim(f"e{k}", user_id=f"u{k % 3000}", device_id=f"d{k}") for k in range(9000)]
        found = stage.engine.score_many(events, features=True)
        assert [row["claims_30d"] for row in rows(found)] == [1.0] * 3000 + [2.0] * 3000 + [3.0] * 3000


def rows(found: Sequence[Any]) -> Iterator[dict[str, Any]]:
    return (decision.features for decision in found)


# ---- expiring -------------------------------------------------------------------------------------------


def test_the_silent_are_forgotten_and_counted(tmp_path: Path) -> None:
    features = {"claims_1h": COUNTED["claims_1h"]}
    with Stage(tmp_path, policy(entities={"user": "user_id"}, features=features)) as stage:
        stage.engine.score_many([claim(f"e{k}", user_id=f"u{k}") for k in range(5000)])
        full = stage.engine.info()
        assert (full.entities, full.expired) == (5000, 0)
        for k in range(50):  # the sweep goes on by a few slots an event
            stage.now = T0 + 2 * HOUR + k * MINUTE
            tick = [claim(f"tick{k}-{m}", 2 * HOUR + k * MINUTE, user_id="somebody") for m in range(200)]
            stage.engine.score_many(tick)
        swept = stage.engine.info()
        assert (swept.entities, swept.expired) == (1, 5000)
        assert swept.bytes < full.bytes - 5000 * 40, "their memory is free again"
        assert stage.row(claim("back", 4 * HOUR, user_id="u7"))["claims_1h"] == 1.0
        events = [claim(f"again{k}", 4 * HOUR, user_id=f"w{k}") for k in range(5000)]
        stage.engine.score_many(events)
        assert stage.engine.info().bytes <= full.bytes + 4096, "and is used again"


def test_after_a_long_silence_nobody_waits_for_all_the_claims(tmp_path: Path) -> None:
    """They go some thousands at a time; those of retries that may still come stay."""
    features = {"claims_1h": COUNTED["claims_1h"]}
    with Stage(tmp_path, policy(entities={"user": "user_id"}, features=features)) as stage:
        stage.engine.score_many([claim(f"e{k}") for k in range(12_000)])
        stage.now = T0 + 500 * DAY
        found = []
        for k in range(4):
            stage.engine.score(claim(f"late{k}", 500 * DAY))
            found.append(stage.engine.info().claims)
        assert found == [12_001 - 4_098, 12_002 - 8_196, 3, 4]


def test_who_is_still_inside_a_window_is_not_forgotten(tmp_path: Path) -> None:
    """Swept many times over at the last moment at which each could still be read."""
    features = {"claims_1h": COUNTED["claims_1h"]}
    with Stage(tmp_path, policy(entities={"user": "user_id"}, features=features)) as stage:
        stage.engine.score_many([claim(f"e{k}", user_id=f"u{k}") for k in range(2000)])
        stage.now = T0 + HOUR - MINUTE
        for k in range(50):
            tick = [claim(f"tick{k}-{m}", HOUR - MINUTE, user_id="somebody") for m in range(200)]
            stage.engine.score_many(tick)
        again = [claim(f"again{k}", HOUR - MINUTE, user_id=f"u{k}") for k in range(2000)]
        found = stage.engine.score_many(again, features=True)
        assert {row["claims_1h"] for row in rows(found)} == {2.0}
        assert stage.engine.info().expired == 0


# ---- full -----------------------------------------------------------------------------------------------


def test_a_full_store_lets_the_longest_silent_go(tmp_path: Path) -> None:
    """Long enough for the key table to be made anew while memory is full: then, too, there is who can go."""
    sections = policy(entities={"user": "user_id"}, features=COUNTED)
    with Stage(tmp_path, sections, store="memory://?size=1MiB") as stage:
        visits = [0] * 72_000
        for step in range(120):
            stage.now = T0 + step * SECOND
            coming = [*range(step * 600, step * 600 + 600), *range(max(0, step * 600 - 600), step * 600)]
            for start in range(0, len(coming), 25):
                part = coming[start : start + 25]
                events = [claim(f"e{step}-{u}", step * SECOND, user_id=f"u{u}") for u in part]
                for u, row in zip(part, rows(stage.engine.score_many(events, features=True)), strict=True):
                    visits[u] += 1
                    assert row == {"claims_1h": visits[u], "claims_30d": visits[u], "idle": 0.0}
                assert stage.engine.info().lost == 0
        info = stage.engine.info()
        assert info.evictions > 10_000
        assert info.entities + info.evictions == 120 * 600
        assert info.bytes < 2**21 + 2**20, "the slabs in a mebibyte, and a table of keys"


def test_a_full_store_still_has_room_for_who_grows(tmp_path: Path) -> None:
    """Memory full of small slabs: a busy user wants a large one, and must not cost everybody else theirs."""
    sections = policy(features=COUNTED, entities={"user": "user_id"})
    with Stage(tmp_path, sections, store="memory://?size=1MiB") as stage:
        for step in range(30):
            stage.now = T0 + step * SECOND
            stage.engine.score_many(
                [claim(f"e{step}-{k}", step * SECOND, user_id=f"u{step}-{k}") for k in range(1000)]
            )
        before = stage.engine.info()
        assert before.evictions > 0
        for k in range(55):
            busy = stage.row(claim(f"busy{k}", 30 * SECOND + k * MINUTE, user_id="busy"))
            assert (busy["claims_1h"], busy["claims_30d"]) == (k + 1.0, k + 1.0)
            assert stage.engine.info().lost == 0
        after = stage.engine.info()
        assert after.lost == 0
        assert after.entities > before.entities // 2
        recent = [claim(f"again{k}", HOUR - MINUTE, user_id=f"u29-{k}") for k in range(1000)]
        stage.now = T0 + HOUR - MINUTE
        found = [row["claims_1h"] for row in rows(stage.engine.score_many(recent, features=True))]
        assert found.count(2.0) > 500, "who came last is still known"


def test_a_full_store_takes_another_policy(tmp_path: Path) -> None:
    """What a reload sets aside for itself is never taken from an entity."""
    sections = policy(features=COUNTED)
    with Stage(tmp_path, sections, store="memory://?size=1MiB") as stage:
        for step in range(30):
            stage.now = T0 + step * SECOND
            stage.engine.score_many(
                [claim(f"e{step}-{k}", step * SECOND, user_id=f"u{step}-{k}") for k in range(1000)]
            )
        more = {f"previous_{what}": {"previous": what, "by": "device"} for what in ("region", "channel")}
        stage.reload({**sections, "features": COUNTED | more})
        absent = {"claims_1h": 1.0, "claims_30d": 1.0, "idle": 0.0, "previous_region": None}
        for k in range(200):
            row = stage.row(claim(f"new{k}", 31 * SECOND, user_id=f"new{k}", device_id=f"d{k}", region="SH"))
            assert row == absent | {"previous_channel": None}
            assert stage.engine.info().lost == 0
        for k in range(200):
            row = stage.row(claim(f"old{k}", 32 * SECOND, user_id=f"new{k}", device_id=f"d{k}"))
            assert (row["claims_30d"], row["previous_region"]) == (2.0, "SH")


def test_reloading_again_and_again_costs_no_memory(tmp_path: Path) -> None:
    sections = policy(features=COUNTED)
    with Stage(tmp_path, sections) as stage:
        stage.row(claim("e1"))
        stage.reload(sections)
        before = stage.engine.info().bytes
        for _ in range(50):
            stage.reload(sections)
        assert stage.engine.info().bytes == before


def test_memory_stays_whole_whatever_comes(tmp_path: Path) -> None:
    """Newcomers, visitors, busy ones, silence and reloads in a store that is full most of the time."""
    dice = np.random.default_rng(7)
    plain = policy(features=COUNTED)
    wide = policy(features=COUNTED | {"region_before": {"previous": "region", "by": "user"}})
    with Stage(tmp_path, plain, store="memory://?size=1MiB") as stage:
        at = 0
        for step in range(150):
            at += int(dice.choice([SECOND, MINUTE, HOUR]))
            stage.now = T0 + at
            newcomers = [f"n{step}-{k}" for k in range(int(dice.integers(0, 300)))]
            crowd = [*newcomers, *(f"u{k}" for k in dice.integers(0, 3000, 60)), *(["busy"] * 5)]
            stage.engine.score_many(
                [claim(f"e{step}-{k}", at, user_id=u, device_id=f"d-{u}") for k, u in enumerate(crowd)]
            )
            if step % 40 == 20:
                stage.reload(wide if step % 80 == 20 else plain)
            if step % 10 == 0:
                check_blocks(memory(stage.engine))
        info = stage.engine.info()
        assert info.evictions > 5_000
        assert info.lost == 0
        check_blocks(memory(stage.engine))
        memory(stage.engine)._finish()
        check_blocks(memory(stage.engine))


def test_memory_of_the_forgotten_is_joined_for_who_needs_more(tmp_path: Path) -> None:
    """All of it is free, in small blocks, but for one busy user: nobody need go, and nothing is lost."""
    features = {"devices": {"distinct": "device", "on": "any", "by": "user", "over": "1h", "cap": 2000}}
    sections = policy(entities={"user": "user_id", "device": "device_id"}, features=features)
    with Stage(tmp_path, sections, store="memory://?size=1MiB") as stage:
        stage.engine.score_many([claim(f"e{k}", user_id=f"u{k}", device_id="d") for k in range(20_000)])
        stage.now = T0 + 2 * HOUR
        stage.engine.score_many(
            [claim(f"b{k}", 2 * HOUR, user_id="busy", device_id="d") for k in range(5000)]
        )
        calm = stage.engine.info()
        assert (calm.entities, calm.evictions > 0) == (1, True)
        for k in range(2_000):
            busy = stage.row(claim(f"busy{k}", 2 * HOUR, user_id="busy", device_id=f"d{k}"))
            assert busy == {"devices": min(k + 2.0, 2_000.0)}
        info = stage.engine.info()
        assert (info.entities, info.evictions, info.lost) == (1, calm.evictions, 0)
        check_blocks(memory(stage.engine))


@pytest.mark.parametrize("staying", [0, 1, 50, 98, 99])
def test_room_is_found_before_or_behind_the_one_that_stays(staying: int) -> None:
    """A hundred blocks of eight words, of which one may not go: the longer side of it is joined."""
    words = np.zeros(slabs.FIRST + 800, np.int64)
    meta = np.zeros(slabs.META_SIZE, np.int64)
    slabs.lay_out(words, meta)
    table, old_table = np.zeros(512, np.int64), np.zeros(2, np.int64)
    starts = [slabs.obtain(words, meta, table, old_table, key, 0, 0) for key in range(1, 101)]
    for key, s in enumerate(starts, 1):
        words[s] = T0
        slabs.put(meta, table, key, s)
    meta[slabs.ENTITIES] = 100
    keep = starts[staying]
    room = 8 * max(staying, 99 - staying)
    fits = int(np.searchsorted(slabs.SIZES, room - 8, "right")) - 1  # so that a rest makes a block
    assert slabs.obtain(words, meta, table, old_table, 101, fits + 2, keep) == 0
    assert slabs.obtain(words, meta, table, old_table, 101, fits, keep) > 0
    assert slabs.find(table, staying + 1) >= 0
    assert meta[slabs.EVICTIONS] < 100
    assert meta[slabs.ENTITIES] == 100 - meta[slabs.EVICTIONS]


def test_who_outgrows_all_memory_is_counted_as_lost() -> None:
    """The largest slab there can be is refused, and memory stays whole."""
    words = np.zeros(2**17, np.int64)
    meta = np.zeros(slabs.META_SIZE, np.int64)
    slabs.lay_out(words, meta)
    table, old_table = np.zeros(32, np.int64), np.zeros(2, np.int64)
    too_large = slabs.class_of(int(slabs.SIZES[-1]))
    assert too_large == slabs.CLASSES
    for wanted in (too_large, slabs.CLASSES - 1):
        assert slabs.obtain(words, meta, table, old_table, 7, wanted, 0) == 0
    assert (meta[slabs.LOST], meta[slabs.TOP]) == (2, slabs.FIRST)


# ---- limits ---------------------------------------------------------------------------------------------


@st.composite
def maxima(draw: st.DrawFn) -> float:
    """Amounts as people write them, their neighbours, sums, halves of the last digit, and any float."""
    written = draw(st.integers(0, 10**18)) / 10 ** draw(st.integers(0, 9))
    binary = math.ldexp(draw(st.integers(1, 2**53 - 1)), draw(st.integers(-60, 12)))
    other = draw(st.floats(0, allow_infinity=True, allow_nan=False) | st.floats(0, 1e6))
    value: float = draw(
        st.sampled_from([written, written + 0.1, binary, other, 2.0 ** draw(st.integers(-30, 63))])
    )
    for _ in range(draw(st.integers(0, 2))):
        value = math.nextafter(value, draw(st.sampled_from([0.0, math.inf])))
    return value


@given(maxima(), st.integers(-6, 9))
def test_a_maximum_is_its_decimal_rounded_down(most: float, digits: int) -> None:
    assert slabs.amount_of(digits, most) == floor_minor(most, digits)
    assert slabs.amount_of(digits, -most) == floor_minor(-most, digits)


@pytest.mark.parametrize(
    ("most", "digits", "minor"),
    [
        (0.29, 2, 29),  # 0.29 * 100 is 28.999999999999996
        (0.7 + 0.1, 2, 79),  # 0.7999999999999999
        (0.1 + 0.2, 2, 30),  # 0.30000000000000004
        (8388608.0009765625, 9, 8388608000976562),  # halfway between two: repr ends evenly
        (2.0**60, 0, 1152921504606847000),  # 1.152921504606847e+18, for 1152921504606846976
        (1e23, -6, 9 * 10**18),
        (1999999.9999999998, -6, 1),
        (2e6, -6, 2),
        (5e-324, 9, 0),
        (-0.0, 2, 0),
        (-0.001, 2, -1),
        (math.inf, 2, 9 * 10**18),
    ],
)
def test_a_maximum_in_minor_units(most: float, digits: int, minor: int) -> None:
    assert slabs.amount_of(digits, most) == minor == floor_minor(most, digits)


# ---- lists ----------------------------------------------------------------------------------------------


def test_a_long_list_is_entered_one_by_one() -> None:
    """In and out, by the thousand: the table that events are looked up in follows."""
    store = MemoryStore(handbook().features)
    for key in range(1, 20_001):
        store.list_put("blocked", "user", key, {"expires": None})
        if key % 2:
            assert store.list_delete("blocked", "user", key)
            assert not store.list_delete("blocked", "user", key)
    assert len(store.lists) == np.count_nonzero(store.lists.entries[1::2] > 0) == 10_000
    assert len(store.lists.entries) <= 2 * 8 * 10_000, "what was taken out leaves no trace"
    for key in range(2, 20_001, 2):
        store.list_delete("blocked", "user", key)
    assert not np.any(store.lists.entries[1::2] > 0)


# ---- out and back ---------------------------------------------------------------------------------------


def test_an_exported_state_reads_the_same(tmp_path: Path) -> None:
    sections = policy(
        features=COUNTED | {"prev": {"previous": "region", "by": "user"}},
        lists={"blocked": {"of": ["user"]}},
        limits={"one": {"count": "coupon_claim", "by": "device", "per": "day", "max": 1}},
        tables={"shops": {"key": "campaign", "columns": {"region": "string", "open": "bool"}}},
        rules={
            "blocked": {"on": "any", "when": "listed('blocked', user)", "then": "review", "mode": "live"},
            "closed": {"on": "any", "when": "not default(shops.open, true)", "risk": 0.5, "mode": "live"},
        },
    )
    events = [
        claim(f"e{k}", k * MINUTE, user_id=f"u{k % 7}", device_id=f"d{k % 30}", region=f"r{k % 4}")
        for k in range(100)
    ]
    again = [
        claim(f"f{k}", 2 * HOUR, user_id=f"u{k}", device_id=f"d{k}", campaign_id="c1") for k in range(40)
    ]
    with Stage(tmp_path / "one", sections) as one, Stage(tmp_path / "two", sections) as two:
        one.now = two.now = T0 + 100 * MINUTE
        one.engine.score_many(events)
        one.engine.list_put("blocked", "user", "u3", expires=T0 + DAY, reason="seen", author="ann")
        one.engine.table_put("shops", "c1", {"region": "SH", "open": False})
        n = one.engine.export_state(tmp_path / "state")
        assert n == one.engine.info().entities
        assert two.engine.import_state(tmp_path / "state") == n
        assert two.engine.list_get("blocked", "user", "u3") == one.engine.list_get("blocked", "user", "u3")
        assert two.engine.table_get("shops", "c1") == {"region": "SH", "open": 0.0}
        one.now = two.now = T0 + 2 * HOUR
        assert two.engine.score_many(again, features=True) == one.engine.score_many(again, features=True)
        two.engine.export_state(tmp_path / "back")
        one.engine.export_state(tmp_path / "forth")
        assert values_in(two) == values_in(one)


def values_in(stage: Stage) -> list[tuple[int, str, bytes]]:
    return sorted(memory(stage.engine).values())


def test_a_damaged_state_is_refused_whole(tmp_path: Path) -> None:
    sections = policy(features=COUNTED)
    with Stage(tmp_path / "one", sections) as one, Stage(tmp_path / "two", sections) as two:
        one.engine.score_many([claim(f"e{k}", user_id=f"u{k}") for k in range(50)])
        one.engine.export_state(tmp_path / "state")
        good = (tmp_path / "state").read_bytes()
        broken = tmp_path / "broken"
        for size in (0, 10, 30, 100, len(good) // 2, len(good) - 1):
            broken.write_bytes(good[:size])
            with pytest.raises(RiskEngineError, match="broken is"):
                two.engine.import_state(broken)
        for at in range(len(good) - 200, len(good) - 4, 7):
            broken.write_bytes(good[:at] + bytes([good[at] ^ 0x20]) + good[at + 1 :])
            with pytest.raises(RiskEngineError):
                two.engine.import_state(broken)
            assert two.engine.info().entities == 0, "nothing of it was taken in"


def test_a_state_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    with Stage(tmp_path / "one", policy(features=COUNTED)) as stage:
        stage.row(claim("e1"))
        state = tmp_path / "state"
        stage.engine.export_state(state)
        whole = state.read_bytes()
        (tmp_path / "state.part").mkdir()
        with pytest.raises(RiskEngineError, match="state cannot be written: "):
            stage.engine.export_state(state)
        assert state.read_bytes() == whole
        with pytest.raises(RiskEngineError, match="cannot be written: there is no folder"):
            stage.engine.export_state(tmp_path / "nowhere" / "state")


def test_a_value_of_nobody_is_told_by_its_place(tmp_path: Path) -> None:
    """A sound file with one value that the plan cannot hold: nothing of it is taken in."""
    state = tmp_path / "state"
    with Stage(tmp_path / "one", policy(features=COUNTED)) as one:
        one.row(claim("e1"))
        store = memory(one.engine)
        ((key, entity, value),) = [v for v in store.values() if v[1] == "user"]
        head = statefile.Head(store.features.fingerprint, [], {})
        for bad, message in (
            ((key, "nobody", value), "it is of an entity the policy does not have: nobody"),
            ((0, entity, value), "0 is not an entity's key"),
            ((key, entity, value[:-1] + b"?"), "its bytes are broken"),
        ):
            assert statefile.write(state, head, [(key, entity, value), bad]) == 2
            with Stage(tmp_path / "two", policy(features=COUNTED)) as two:
                with pytest.raises(RiskEngineError, match=f"cannot be taken in: of value 2, {message}"):
                    two.engine.import_state(state)
                assert two.engine.info().entities == 0


def test_a_state_of_another_plan_is_refused(tmp_path: Path) -> None:
    sections = policy(features=COUNTED)
    other = policy(features={"claims_1h": COUNTED["claims_1h"]})
    state = tmp_path / "state"
    with Stage(tmp_path / "one", sections) as one:
        one.row(claim("e1"))
        one.engine.export_state(state)
    with (
        Stage(tmp_path / "two", other) as two,
        pytest.raises(RiskEngineError, match="was written under plan"),
    ):
        two.engine.import_state(state)


def test_a_missing_state_is_told(tmp_path: Path) -> None:
    with (
        Stage(tmp_path, policy()) as stage,
        pytest.raises(RiskEngineError, match="no-such-file cannot be read"),
    ):
        stage.engine.import_state(tmp_path / "no-such-file")


def test_a_closed_store_is_an_empty_one() -> None:
    """A thread that comes too late finds nobody, and no memory that is gone."""
    crowd = Crowd(handbook())
    crowd.observe(users(1000), T0)
    crowd.store.close()
    assert crowd.store.info().entities == 0
    assert crowd.observe(users(1000), T0).tolist() == [1] * 1000


# ---- doors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("kafka://h:9092", "store 'kafka://h:9092' is not known: the in-process store is memory://"),
        ("memory://elsewhere", "is not known"),
        ("", "store '' is not known"),
        ("memory://?size=2TB", "size is a number of bytes such as 536870912, 512MiB or 2GiB"),
        ("memory://?size=", "size is a number of bytes"),
        ("memory://?size=²", "size is a number of bytes"),
        ("memory://?size=-1MiB", "size is a number of bytes"),
        ("memory://?size=1.5GiB", "size is a number of bytes"),
        ("memory://?size=" + 5000 * "9", "size is a number of bytes"),
        ("memory://?size=0", "needs at least 1048576 bytes, got 0"),
        ("memory://[", "is not known"),
        ("memory://?sise=1GiB", "memory:// takes size= only"),
        ("memory://?size=1KiB", "needs at least 1048576 bytes, got 1024"),
        ("memory://?size=900000000GiB", "cannot reserve 966367641600000000 bytes"),
        ("memory://?size=99999999999999999999GiB", "cannot reserve 107374182399999999998926258176 bytes"),
    ],
)
def test_a_wrong_store_is_told(store: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RiskEngineError) as caught:
        Stage(tmp_path, policy(), store=store)
    assert message in str(caught.value)


@pytest.mark.parametrize("size", ["1048577", "1MiB", "1025KiB", "1GiB"])
def test_any_size_from_a_mebibyte_on_will_do(size: str, tmp_path: Path) -> None:
    with Stage(tmp_path, policy(features=COUNTED), store=f"memory://?size={size}") as stage:
        assert stage.row(claim("e1"))["claims_1h"] == 1.0


def test_a_value_that_does_not_fit_is_refused() -> None:
    features: FeatureSet = handbook().features
    crowd = Crowd(handbook())
    crowd.observe(users(1), T0)
    ((key, entity, value),) = crowd.store.values()
    other = MemoryStore(features)
    with pytest.raises(RiskEngineError, match="an entity the policy does not have: device"):
        other.put_value(key, "device", value)
    with pytest.raises(RiskEngineError, match="it does not begin as a value does"):
        other.put_value(key, entity, b"nothing of the kind, whatever it may be")
    with pytest.raises(RiskEngineError, match="it was written under plan"):
        other.put_value(key, entity, value[:8] + bytes(8) + value[16:])
    with pytest.raises(RiskEngineError, match="its bytes are broken"):
        other.put_value(key, entity, value + b"half a record")
    assert other.info().entities == 0
    other.put_value(key, entity, value)
    assert list(other.values()) == [(key, entity, value)]
