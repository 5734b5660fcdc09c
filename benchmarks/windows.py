"""Sliding counts and means over a million payments: the engine's feature path beside Polars' rolling windows.

Timed of ours is what answers the windows, event by event: records laid out, state read and folded, rows
complete and kept. Reading the columns and hashing the keys stands beside it (`parse_s`), as reading the file
and sorting by time do for Polars: neither side is timed building its own form of the data. Polars groups by
the strings, as its users do; by integers made of them before it is at most a tenth faster. Decisions, claims
and traces are not part of it.

Seconds are processor time of either process, both held to one core and one thread: what else the machine does
meanwhile is in neither.

Two entities, three windows, count and mean of each. Every value is checked before anything is timed: ours
equal a plain count over the same buckets, and lie between the exact windows of width W - g and W, which
Polars' equal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.handbook import convert
from riskengine.compiled import Policy
from riskengine.event import Batch
from riskengine.policy import load_definition
from riskengine.stores.memory import MemoryStore

TITLE = "sliding windows: 2 entities x 3 windows x (count, mean), one core"
TARGETS: Mapping[str, str] = {"ratio": ">= 5"}

EVENTS: Final = 1_000_000
BATCH: Final = 8_192
REPEATS: Final = 3
DAY_MS: Final = 86_400_000
DAYS: Final = (1, 7, 30)
ENTITIES: Final = {"user": "user_id", "merchant": "merchant_id"}
KEY: Final = bytes(range(16))
POLICY: Final = (
    "policy: windows\ntimezone: UTC\nmodel: none\n"
    "entities: {user: user_id, merchant: merchant_id}\n"
    "events: {payment: {required: [user_id, merchant_id, amount]}}\n"
    "features:\n"
) + "".join(
    f"  {entity}_count_{days}d: {{count: payment, by: {entity}, over: {days}d}}\n"
    f"  {entity}_mean_{days}d: {{mean: amount, on: payment, by: {entity}, over: {days}d}}\n"
    for entity in ENTITIES
    for days in DAYS
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def measure() -> dict[str, Any]:
    """Seconds of both for the same events, and how many times faster ours is. Raises if a value is wrong."""
    source, events = stream()
    with tempfile.TemporaryDirectory() as room, one_core():
        (Path(room) / "policy.yaml").write_text(POLICY, encoding="utf-8")
        policy = Policy.compile(load_definition(room), KEY)
        peer = polars(events, Path(room))
        parsed(policy, events)  # the first time also compiles or loads the kernels
        began = time.process_time()
        batches = parsed(policy, events)
        parse_s = time.process_time() - began
        found = np.empty((len(policy.features.names), len(events)))
        names, _ = ours(policy, batches, found)
        check(events, names, found, peer)
        seconds = min(ours(policy, batches, found)[1] for _ in range(REPEATS))
    return {
        "data": source,
        "events": len(events),
        "ours_s": seconds,
        "polars_s": float(peer["seconds"]),
        "ratio": float(peer["seconds"]) / seconds,
        "events_per_s": len(events) / seconds,
        "parse_s": parse_s,
    }


def stream() -> tuple[str, pa.Table]:
    """The first million payments of the handbook, else as many of the same shape; says which."""
    path = os.environ.get("RISKENGINE_HANDBOOK")
    if path is not None:
        return "handbook", convert.events(convert.read(Path(path)).slice(0, EVENTS))
    print(
        "RISKENGINE_HANDBOOK names no handbook data (--data FILE): using a generated stream of its shape",
        file=sys.stderr,
    )
    return "generated", generated()


def generated(n: int = EVENTS, seed: int = 1) -> pa.Table:
    """5,000 customers and 10,000 terminals, as unevenly busy as the handbook's, over the same 104 days."""
    draw = np.random.default_rng(seed)
    start_ms = 1_522_540_800_000
    time_ms = start_ms + 1_000 * np.sort(draw.integers(0, 104 * 86_400, n))
    busy = draw.gamma(1.5, 1.0, 5_000)
    user = draw.choice(5_000, n, p=busy / busy.sum())
    return pa.table(
        {
            "event_id": pa.array(np.arange(n)).cast(pa.string()),
            "type": pa.repeat(pa.scalar("payment"), n),
            "time": time_ms,
            "user_id": convert.prefixed("c", pa.chunked_array([user])),
            "merchant_id": convert.prefixed("t", pa.chunked_array([draw.integers(0, 10_000, n)])),
            "amount": np.round(draw.gamma(2.0, 27.0, n), 2),
        }
    )


def parsed(policy: Policy, events: pa.Table) -> list[Batch]:
    """The events as the engine takes them: normalised, their entities' keys hashed."""
    clocks = running_max(events)
    batches = []
    at = 0
    for part in events.combine_chunks().to_batches(max_chunksize=BATCH):
        batch, errors = policy.schema.parse_columns(part, clocks[at : at + len(part)])
        assert not errors
        batches.append(batch)
        at += len(part)
    return batches


def ours(policy: Policy, batches: Sequence[Batch], found: Floats) -> tuple[list[str], float]:
    """Feature names, and the processor seconds from batches to values, in `found` (features, events).

    It is the same memory at every run, as Polars' allocator gives the next one what the last gave back.
    """
    features = policy.features
    store = MemoryStore(features)
    tables = policy.tables({})
    columns = [features.columns[name] for name in features.names]
    began = time.process_time()
    at = 0
    for batch in batches:
        touches = features.touches(batch, batch.time, tables)
        store.observe(touches)
        cells = features.rows(touches).cells
        for values, column in zip(found, columns, strict=True):
            values[at : at + batch.n] = cells[column]
        at += batch.n
    return list(features.names), time.process_time() - began


def running_max(events: pa.Table) -> Ints:
    clocks: Ints = np.maximum.accumulate(events["time"].to_numpy())
    return clocks


def polars(events: pa.Table, room: Path) -> dict[str, Any]:
    """The same windows by Polars in a process of its own with one thread: seconds, and values by feature."""
    import pyarrow.parquet as pq

    pq.write_table(events, room / "events.parquet")
    environment = {**os.environ, "POLARS_MAX_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "benchmarks.windows", str(room)],
        check=True,
        env=environment,
        stdout=sys.stderr,
    )
    values = dict(np.load(room / "peer.npz"))
    return {**values, **json.loads((room / "peer.json").read_text())}


def check(events: pa.Table, names: list[str], found: Floats, peer: Mapping[str, Any]) -> None:
    """Ours equal a plain count over the same buckets; Polars' lies as far from it as the buckets allow."""
    time_ms = events["time"].to_numpy()
    minor = np.rint(events["amount"].to_numpy() * 100).astype(np.int64)
    for entity, field in ENTITIES.items():
        who = events[field].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        order = np.lexsort((np.arange(len(who)), who))
        who, when, sums = who[order], time_ms[order], np.concatenate(([0], np.cumsum(minor[order])))
        last = np.arange(1, len(who) + 1)
        final = np.append((who[1:] != who[:-1]) | (when[1:] != when[:-1]), True)  # Polars counts ties at once
        for days in DAYS:
            width_ms = days * DAY_MS
            grain_ms = max(g for g in range(1, width_ms // 60 + 1) if width_ms % g == 0)
            bucket = when // grain_ms
            first = since(who, bucket, bucket - width_ms // grain_ms + 1)
            count = found[names.index(f"{entity}_count_{days}d")][order]
            mean = found[names.index(f"{entity}_mean_{days}d")][order]
            assert np.array_equal(count, last - first)
            assert np.array_equal(mean, (sums[last] - sums[first]) / (last - first) / 100.0)
            exact = last - since(who, when, when - width_ms + 1)
            assert np.all(count <= exact)
            assert np.all(count >= last - since(who, when, when - width_ms + grain_ms))
            assert np.array_equal(peer[f"{entity}_count_{days}d"][order][final], exact[final])


def since(who: Ints, when: Ints, least: Ints) -> Ints:
    """For each event the first of its entity with `when >= least`; all ordered by (who, when)."""
    base = int(min(when.min(), least.min()))
    span = int(when.max()) - base + 1
    return np.searchsorted(who * span + (when - base), who * span + (least - base), side="left")


def peer_main(room: Path) -> None:
    """Run in the process of the peer: time six rolling aggregations and leave the values in `room`."""
    import polars as pl

    assert pl.thread_pool_size() == 1
    frame = pl.read_parquet(room / "events.parquet").with_columns(pl.from_epoch("time", "ms"))
    frame = frame.with_columns(pl.int_range(pl.len()).alias("row")).sort("time", maintain_order=True)
    seconds = min(roll(frame)[0] for _ in range(REPEATS))
    np.savez(room / "peer.npz", **align(frame))
    (room / "peer.json").write_text(json.dumps({"seconds": seconds}))


def roll(frame: Any) -> tuple[float, dict[str, Any]]:
    """Seconds, and the result of each rolling aggregation as Polars returns it: grouped by entity."""
    import polars as pl

    began = time.process_time()
    rolled = {
        f"{entity}_{days}": frame.rolling("time", period=f"{days}d", group_by=field).agg(
            pl.len().alias("count"), pl.col("amount").mean().alias("mean")
        )
        for entity, field in ENTITIES.items()
        for days in DAYS
    }
    return time.process_time() - began, rolled


def align(frame: Any) -> dict[str, Any]:
    """Polars' values in the order of the events: the same aggregation with each row's number beside it."""
    import polars as pl

    aligned = {}
    for entity, field in ENTITIES.items():
        for days in DAYS:
            rolled = frame.rolling("time", period=f"{days}d", group_by=field).agg(
                pl.len().alias("count"), pl.col("row").last().alias("last")
            )
            # a group's rows come in their own order, so its numbers do too
            numbers = frame.select(field, "row").sort(field, "row", maintain_order=True)["row"].to_numpy()
            values = rolled.sort(field, "time", maintain_order=True)["count"].to_numpy()
            count = np.empty(len(values))
            count[numbers] = values
            aligned[f"{entity}_count_{days}d"] = count
    return aligned


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process, and those it starts meanwhile, on one core where the system lets us."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


if __name__ == "__main__":
    peer_main(Path(sys.argv[1]))
