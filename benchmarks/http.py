"""The sidecar against a FastAPI + pydantic endpoint of the same body that does nothing.

The same uvicorn for both: the server on one core, the load on another (wrk where it is found, else Python's,
which is slow itself). The sidecar scores the shipped policy with the shipped model and journals everything;
first its answers are checked. It does so with counters in the process, and again with a Redis, which shares
the load's core. Rates move with whatever else runs on a machine: servers take turns, and the ratios are of
turns side by side.

No event comes twice, nor do its people: every 20,000 are an hour of their own, and of those about half are
allowed. (When one hour came again and again all were refused from its second time on, and to say why took a
tenth more of the processor.) A fast machine has used up all hours that an IP can tell apart before it is
through: then they come again, of another day.

Then 10,000 connections are held open with 100,000 requests through them; and ten callers become 100, who
send ten events at once and do not wait (`step_`): what is let in is to be answered within its deadline, the
rest refused at once, and 2 s later all is to be as it was. Last, 32 callers go on while other policies are
activated over HTTP, checked and tested each time (`reload_`): none may fail, or wait for long. Of both the
medians of some rounds are told: another machine's work is in one of them, now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.crowd import crowd, resident_mb
from benchmarks.engine import traffic

TITLE = "the sidecar over HTTP, one core, against FastAPI doing nothing"
TARGETS = {
    "times_fastapi_32": ">= 2",
    "p99_of_fastapi_32": "<= 1",
    "redis_times_fastapi_32": ">= 1.5",
    "held_other": "<= 0",
    "held_mb": "<= 700",
    "step_p99_ms": "<= 50",
    "step_recovered_s": "<= 2",
    "reload_failed": "<= 0",
    "reload_p99_of_before": "<= 2",
}

TURNS: Final = {1: 3, 32: 7, 256: 3}  # by connections
SECONDS: Final = 2.0
ROUNDS: Final = 3  # of a step and of a reload
EVENTS: Final = 20_000  # of a busy hour; after it comes the next one, of other people
HOURS: Final = range(100, 256)  # three digits that an IP can begin with
DAYS: Final = 10  # one digit of a phone
MODEL: Final = "campaign-v1"
HASH_KEY: Final = {"RISKENGINE_HASH_KEY": "0" * 32}
HELD: Final = 10_000
HELD_REQUESTS: Final = 100_000
STEP_EVENTS: Final = 10
STEP_SECONDS: Final = 4.0
ROOT: Final = Path(__file__).resolve().parent.parent
PEER: Final = """
from fastapi import FastAPI
from pydantic import BaseModel
import uvicorn
class Location(BaseModel):
    lat: float
    lon: float
class Event(BaseModel):
    event_id: str
    type: str
    time: int | str | None = None
    user_id: str
    device_id: str | None = None
    ip: str | None = None
    phone: str | None = None
    phone_verified: bool | None = None
    phone_kind: str | None = None
    account_created: int | str | None = None
    channel: str | None = None
    region: str | None = None
    location: Location | None = None
    campaign_id: str | None = None
    coupon_type: str | None = None
    funder: str | None = None
    merchant_id: str | None = None
    amount: float | None = None
    captcha_passed: bool | None = None
    address: str | None = None
    code_id: str | None = None
    batch_id: str | None = None
    terminal_id: str | None = None
    order_id: str | None = None
    payment_account: str | None = None
    currency: str | None = None
    recipient: str | None = None
    pages_viewed: int | None = None
    dwell_s: float | None = None
    list_price: float | None = None
class Answer(BaseModel):
    event_id: str
    action: str
app = FastAPI()
@app.post("/v1/score")
async def score(event: Event) -> Answer:
    return Answer(event_id=event.event_id, action="allow")
uvicorn.run(app, host="127.0.0.1", port=0, access_log=False)
"""
# A rule more, so that each policy that is activated is another one.
_EXTRA: Final = """rules:
  never-%d: {on: payment, when: amount < 0, then: flag, mode: shadow, owner: benchmarks}
"""
_TEST: Final = """start: 2026-11-11T00:00:00+08:00
tests:
  - name: a payment of a new user is decided
    events:
      - {at: 0s, type: payment, user_id: u1, order_id: o1, payment_account: a1, merchant_id: m1, amount: 5,
         expect: {fired: []}}
"""
# Every thread of wrk runs this; there is one. Bodies are cut where their hour goes.
SCRIPT: Final = r"""
local pieces, n, serial, first = {}, 0, tonumber(os.getenv("SERIAL")), tonumber(os.getenv("HOUR"))
for line in io.lines(os.getenv("BODIES")) do
  local cut = {}
  for piece in line:gmatch("[^@]+") do cut[#cut + 1] = piece end
  local head = 'POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n'
  head = head .. 'Content-Length: ' .. (#line + 2 * (#cut - 1)) .. '\r\n\r\n'
  cut[1] = head .. cut[1]
  n = n + 1
  pieces[n] = cut
end
request = function()
  local hour, at = first + math.floor(serial / n), serial % n + 1
  serial = serial + 1
  return table.concat(pieces[at], hour)
end
done = function(summary, latency, requests)
  local bad = summary.errors.connect + summary.errors.read + summary.errors.write
  bad = bad + summary.errors.status + summary.errors.timeout
  io.write(string.format("RESULT %d %d %d %d\n", summary.requests, summary.duration, bad,
                         latency:percentile(99)))
end
"""


class Server(NamedTuple):
    """Where a server listens, and its process."""

    port: int
    pid: int


class Turn(NamedTuple):
    """What one round of load came to."""

    requests: int
    seconds: float
    p99_ms: float
    cpu_us: float = 0.0  # of the server, a request
    refused: int = 0  # 503, beside `requests`


def measure() -> dict[str, Any]:
    """Requests a second, p99 in ms and the server's CPU us a request; medians of the turns."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            room = Path(folder)
            rules = with_model(room)
            load = Load(room)
            servers = {
                "riskengine": stack.enter_context(sidecar(room / "memory", rules, cores[0])),
                "fastapi": stack.enter_context(running([sys.executable, "-c", PEER], room, cores[0])),
            }
            if (redis := shutil.which("redis-server") or shutil.which("valkey-server")) is not None:
                store = stack.enter_context(redis_server(redis, room))
                begin(store, rules)
                servers["redis"] = stack.enter_context(
                    sidecar(room / "redis", rules, cores[0], "--store", store)
                )
            for name in servers.keys() - {"fastapi"}:
                check(servers[name].port)
            taken = {
                connections: [
                    {name: load.press(server, connections, SECONDS) for name, server in servers.items()}
                    for _ in range(turns + 1)
                ][1:]  # the first one warms up
                for connections, turns in TURNS.items()
            }
            own = servers["riskengine"]
            crowded = held(load, own) | steps(load, own) | reloads(load, own, rules)
            degraded = {name: flagged(servers[name].port) for name in servers.keys() - {"fastapi"}}
    finally:
        os.sched_setaffinity(0, cores)
    return {
        **told(taken),
        **crowded,
        **{f"{name}_degraded": n for name, n in degraded.items()},
        "load_by": load.by,
    }


def told(taken: dict[int, list[dict[str, Turn]]]) -> dict[str, Any]:
    """Medians over turns, by name."""
    results: dict[str, Any] = {}
    for connections, turns in taken.items():
        for name in turns[0]:
            own = [turn[name] for turn in turns]
            results[f"{name}_per_s_{connections}"] = round(
                statistics.median(turn.requests / turn.seconds for turn in own)
            )
            results[f"{name}_p99_ms_{connections}"] = round(statistics.median(t.p99_ms for t in own), 2)
            results[f"{name}_cpu_us_{connections}"] = round(statistics.median(t.cpu_us for t in own), 1)
        for name in turns[0].keys() - {"fastapi"}:
            results[f"{name}_refused_{connections}"] = sum(turn[name].refused for turn in turns)
            prefix = "" if name == "riskengine" else f"{name}_"
            pairs = [(turn[name], turn["fastapi"]) for turn in turns]
            results[f"{prefix}times_fastapi_{connections}"] = round(
                statistics.median(
                    (our.requests / our.seconds) / (peer.requests / peer.seconds) for our, peer in pairs
                ),
                2,
            )
            results[f"{prefix}p99_of_fastapi_{connections}"] = round(
                statistics.median(our.p99_ms / peer.p99_ms for our, peer in pairs), 2
            )
    return results


def held(load: Load, server: Server) -> dict[str, Any]:
    """A crowd that holds its connections open: what it is told, and what the server has in memory for it."""
    connections = min(HELD, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500)
    before = resident_mb(server.pid)
    began = time.perf_counter()
    answers = asyncio.run(crowd(server.port, connections, itertools.islice(load.requests(), HELD_REQUESTS)))
    seconds = time.perf_counter() - began
    assert answers.without_retry == 0
    return {
        "held_connections": connections,
        "held_200": answers.statuses[200],
        "held_503": answers.statuses[503],
        "held_other": HELD_REQUESTS - answers.statuses[200] - answers.statuses[503],
        "held_per_s": round(HELD_REQUESTS / seconds),
        "held_mb": round(resident_mb(server.pid) - before),
    }


def steps(load: Load, server: Server) -> dict[str, Any]:
    """Ten callers become a hundred who do not wait, and go again: medians of some rounds."""
    rounds = [asyncio.run(_step(load, server)) for _ in range(ROUNDS)]
    return _medians(rounds)


async def _step(load: Load, server: Server) -> dict[str, float]:
    late = [0.0]  # when answers were last as slow as in the step, after it
    calm = await crowd(server.port, 10, load.requests(), 1.0, think_seconds=0.01)
    rush = await crowd(server.port, 100, load.requests(STEP_EVENTS), STEP_SECONDS)
    ended, slow = time.perf_counter(), 2 * calm.p(0.99)
    await crowd(
        server.port, 10, load.requests(), 3.0, think_seconds=0.01,
        each=lambda at, status, took: late.append(at - ended) if status != 200 or took > slow else None,
    )  # fmt: skip
    return {
        "step_before_p99_ms": round(1e3 * calm.p(0.99), 2),
        "step_p99_ms": round(1e3 * rush.p(0.99), 2),
        "step_admitted_per_s": round(STEP_EVENTS * rush.statuses[200] / STEP_SECONDS),
        "step_degraded": rush.degraded,
        "step_refused": rush.statuses[503],
        "step_refused_p50_ms": round(1e3 * rush.p(0.5, 503), 2),
        "step_recovered_s": round(statistics.quantiles(late, n=20)[-1] if len(late) > 30 else late[0], 2),
    }


def reloads(load: Load, server: Server, rules: Path) -> dict[str, Any]:
    """32 callers with pauses, and while a policy is activated: medians of some rounds, but all failures."""
    files = {
        str(path.relative_to(rules)): path.read_text(encoding="utf-8")
        for path in sorted(rules.rglob("*"))
        if path.is_file() and not path.name.endswith(".test.yaml")  # those were written for no model
    }
    rounds = []
    for i in range(ROUNDS):
        said = files | {
            "policy.yaml": f"{files['policy.yaml']}\n# {i}\n",
            "extra.yaml": _EXTRA % i,
            "extra.test.yaml": _TEST,
        }
        rounds.append(asyncio.run(_reload(load, server, said)))
    return _medians(rounds) | {"reload_failed": sum(one["reload_failed"] for one in rounds)}


async def _reload(load: Load, server: Server, files: dict[str, str]) -> dict[str, float]:
    seconds = [0.0]

    def activate() -> None:
        began = time.perf_counter()
        _posted(server.port, "/v1/policy/activate", {"files": files})
        seconds[0] = time.perf_counter() - began

    before = await crowd(server.port, 32, load.requests(), STEP_SECONDS, think_seconds=0.02)
    done = asyncio.create_task(asyncio.to_thread(activate))
    meanwhile = itertools.takewhile(lambda _: not done.done(), load.requests())
    during = await crowd(server.port, 32, meanwhile, think_seconds=0.02)
    await done
    return {
        "reload_activate_s": round(seconds[0], 2),
        "reload_requests": during.statuses.total(),
        "reload_failed": during.statuses.total() - during.statuses[200],
        "reload_degraded": during.degraded,
        "reload_before_p99_ms": round(1e3 * before.p(0.99), 2),
        "reload_p99_ms": round(1e3 * during.p(0.99), 2),
        "reload_p99_of_before": round(during.p(0.99) / before.p(0.99), 2),
    }


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


# -- servers


def with_model(room: Path) -> Path:
    """The shipped rules, naming the shipped model."""
    rules = room / "rules"
    shutil.copytree(ROOT / "rules", rules)
    shutil.copytree(ROOT / "models", room / "models")
    settings = rules / "policy.yaml"
    said = settings.read_text(encoding="utf-8")
    settings.write_text(re.sub("^model: .*$", f"model: {MODEL}", said, flags=re.MULTILINE), encoding="utf-8")
    return rules


@contextlib.contextmanager
def sidecar(room: Path, rules: Path, core: int, *arguments: str, **variables: str) -> Iterator[Server]:
    """A sidecar on these rules, with its journal in `room`."""
    room.mkdir()
    command = [sys.executable, "-m", "riskengine", "serve", "--rules", str(rules), "--port", "0", *arguments]
    with running(command, room, core, **variables) as server:
        yield server


@contextlib.contextmanager
def running(command: Sequence[str], room: Path, core: int, **variables: str) -> Iterator[Server]:
    """A server that is pinned to a core, for as long as it is needed."""
    process = subprocess.Popen(
        command,
        cwd=room,
        env={**os.environ, "PYTHONPATH": str(ROOT), **HASH_KEY, **variables},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    assert process.stderr is not None
    told = []
    try:
        for line in process.stderr:
            told.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                # Where nobody reads what a server logs, its next line waits for ever once the pipe is full.
                threading.Thread(target=process.stderr.read, daemon=True).start()
                yield Server(int(found[1]), process.pid)
                return
        raise AssertionError(f"{command[1:3]} did not start: {''.join(told)}")
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def redis_server(program: str, room: Path) -> Iterator[str]:
    """The URL of a Redis with nothing in it, on this process's core."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(room)],
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.01)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def begin(store: str, rules: Path) -> None:
    """Let a new store's counters begin at nothing."""
    command = [sys.executable, "-m", "riskengine", "store", "init", "--store", store, "--rules", str(rules)]
    subprocess.run(command, env={**os.environ, **HASH_KEY}, check=True, stdout=subprocess.DEVNULL)


def check(port: int) -> None:
    """The sidecar decides: a second claim of a device in a day is refused, and the model is asked."""
    event = {
        "event_id": "first", "type": "coupon_claim", "user_id": "one", "device_id": "one",
        "campaign_id": "everyday-coupons", "coupon_type": "ten-off", "amount": 1, "address": "1 Garden Road",
    }  # fmt: skip
    first, second, again = (
        _asked(port, {**event, "event_id": name}) for name in ("first", "second", "first")
    )
    assert first["model"] is not None, first
    assert first["model"]["name"] == MODEL
    assert second["action"] == "deny"
    assert again == first


def flagged(port: int) -> int:
    """How many answers were degraded, over everything that was asked."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.findall(r'^riskengine_flags_total\{flag="degraded:[^}]*\} (\S+)', text, flags=re.MULTILINE)
    return int(sum(map(float, found)))


def _asked(port: int, body: object) -> Any:
    return _posted(port, "/v1/score", body)


def _posted(port: int, path: str, body: object) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Content-Type": "application/json", "X-Deadline-Ms": "10000"}
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    said = answer.read()
    assert answer.status == 200, said
    connection.close()
    return json.loads(said)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and all its threads, by proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- load


class Load:
    """Presses a server with unique events. `by` says what with."""

    def __init__(self, room: Path) -> None:
        self._events = traffic(EVENTS)
        self._wrk = shutil.which("wrk")
        self.by = "wrk" if self._wrk is not None else "python"
        self._script, self._file = room / "load.lua", room / "bodies"
        self._script.write_text(SCRIPT, encoding="utf-8")
        self._begin(day=0)

    def press(self, server: Server, connections: int, seconds: float) -> Turn:
        """So many connections, each asking again as soon as it is answered."""
        self._have_hours()
        worked = cpu_seconds(server.pid)
        if self._wrk is not None:
            turn = self._by_wrk(self._wrk, server, connections, seconds)
        else:
            turn = asyncio.run(self._by_hand(server, connections, seconds))
        self._serial += turn.requests + turn.refused + connections
        assert self._serial < len(HOURS) * EVENTS, "there is no hour left"
        return turn._replace(cpu_us=1e6 * (cpu_seconds(server.pid) - worked) / turn.requests)

    def requests(self, together: int = 0) -> Iterator[bytes]:
        """Requests as long as the day has hours: single events, or batches of so many."""
        self._have_hours()
        return self._requests(together)

    def _requests(self, together: int) -> Iterator[bytes]:
        while True:
            bodies = []
            for _ in range(together or 1):
                hour, at = divmod(self._serial, EVENTS)
                bodies.append(self._bodies[at].replace("@", str(HOURS[hour])))
                self._serial += 1
            body = (f"[{','.join(bodies)}]" if together else bodies[0]).encode()
            yield (_HEAD_BATCH if together else _HEAD) % len(body) + body

    def _have_hours(self) -> None:
        """Go on with another day where less than half of this one is left."""
        if self._serial > len(HOURS) * EVENTS // 2:
            self._begin(self._day + 1)

    def _begin(self, day: int) -> None:
        assert day < DAYS, "there is no day left"
        self._day, self._serial = day, 0
        self._bodies = [json.dumps(_of_any_hour(event, day)) for event in self._events]
        self._file.write_text("\n".join(self._bodies), encoding="utf-8")

    def _by_wrk(self, wrk: str, server: Server, connections: int, seconds: float) -> Turn:
        command = [wrk, "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "-s", str(self._script)]
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{server.port}/v1/score"],
            env={
                **os.environ,
                "BODIES": str(self._file),
                "SERIAL": str(self._serial),
                "HOUR": str(HOURS[0]),
            },
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+)", done.stdout)
        assert found is not None, done.stdout
        requests, taken_us, bad, p99_us = map(int, found.groups())
        refused = int((re.findall(r"Non-2xx or 3xx responses: (\d+)", done.stdout) or ["0"])[0])
        assert bad == refused, done.stdout  # nothing else went wrong
        return Turn(requests - refused, taken_us / 1e6, p99_us / 1e3, refused=refused)

    async def _by_hand(self, server: Server, connections: int, seconds: float) -> Turn:
        began, serial = time.perf_counter(), self._serial
        answers = await crowd(server.port, connections, self.requests(), seconds)
        self._serial = serial
        n = answers.statuses[200]
        assert answers.statuses == {200: n}, answers.statuses
        return Turn(n, time.perf_counter() - began, 1e3 * answers.p(0.99))


def _of_any_hour(event: dict[str, Any], day: int) -> dict[str, Any]:
    """An event of now, with @ where the number of its hour goes.

    Each hour of a day has its own people, codes, orders and addresses; merchants, terminals, campaigns stay.
    Coupons are of the campaign that always runs, codes of a pack that is sold where they are scanned.
    """
    told = {name: value for name, value in event.items() if name != "time"}
    for name in _OWN & told.keys():
        told[name] += f" {day}.@"
    told["ip"] = f"@.{day}." + event["ip"].removeprefix("10.0.")
    told["phone"] = f"{event['phone'][:2]}@{day}{event['phone'][6:]}"
    if event["type"] == "coupon_claim":
        told["campaign_id"] = "everyday-coupons"
    if event["type"] == "qr_scan":
        pack = int(event["batch_id"].removeprefix("b"))
        told["batch_id"] = f"b{pack - pack % 8 + _SOLD_IN.index(event['region'])}"
    return told


_OWN: Final = {
    "event_id", "user_id", "device_id", "address", "code_id", "order_id", "payment_account", "recipient",
}  # fmt: skip
_SOLD_IN: Final = ("CN-SH", "CN-BJ", "CN-GD")  # b0, b1 and b2, and so on in eights, by tables/batches.csv
_HEAD: Final = (
    b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)
_HEAD_BATCH: Final = _HEAD.replace(b"/v1/score", b"/v1/score/batch")
