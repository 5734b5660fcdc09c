"""The sidecar against a FastAPI + pydantic endpoint of the same body that does nothing.

The same uvicorn for both: the server on one core, the load on another. The sidecar scores the shipped policy
with its journal; it is asked once before anything is timed. The load is Python too, and may be what is slow:
the processor time that each server takes for a request tells them apart even then.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.engine import RULES, traffic

TITLE = "the sidecar over HTTP, one core, against FastAPI doing nothing"
TARGETS = {"times_fastapi_32": ">= 2"}

CONNECTIONS: Final = (1, 32, 256)
SECONDS: Final = 2.0
TURNS: Final = 3
EVENTS: Final = 60_000
ROOT: Final = Path(__file__).resolve().parent.parent
PEER: Final = """
import sys
from pydantic import BaseModel, ConfigDict
from fastapi import FastAPI
import uvicorn
app = FastAPI()
class Event(BaseModel):
    model_config = ConfigDict(extra="allow")
    event_id: str
    type: str
    user_id: str
    device_id: str | None = None
    ip: str | None = None
    phone: str | None = None
    campaign_id: str | None = None
    amount: float | None = None
@app.post("/v1/score")
async def score(event: Event):
    return {"event_id": event.event_id, "action": "allow"}
uvicorn.run(app, host="127.0.0.1", port=0, access_log=False)
"""


class Turn(NamedTuple):
    """What one round of load came to."""

    rate: float  # requests a second
    p99_ms: float
    cpu_us: float  # of the server, a request
    degraded: float  # share of answers


def measure() -> dict[str, Any]:
    """Requests a second, p99 in ms and the server's CPU us a request; medians of the turns."""
    events = [{**event, "time": None} for event in traffic(EVENTS)]
    results: dict[str, Any] = {}
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    try:
        with tempfile.TemporaryDirectory() as room:
            ours = [sys.executable, "-m", "riskengine", "serve", "--rules", str(RULES), "--port", "0"]
            with (
                _running(ours, Path(room), cores[0]) as sidecar,
                _running([sys.executable, "-c", PEER], Path(room), cores[0]) as peer,
            ):
                _check(sidecar[0], events[0])
                taken = _measured({"riskengine": sidecar, "fastapi": peer}, events)
    finally:
        os.sched_setaffinity(0, cores)
    for (name, connections), turns in taken.items():
        results[f"{name}_per_s_{connections}"] = round(statistics.median(turn.rate for turn in turns))
        results[f"{name}_p99_ms_{connections}"] = round(statistics.median(turn.p99_ms for turn in turns), 2)
        results[f"{name}_cpu_us_{connections}"] = round(statistics.median(turn.cpu_us for turn in turns), 1)
        if name == "riskengine":
            results[f"degraded_share_{connections}"] = statistics.median(turn.degraded for turn in turns)
    for connections in CONNECTIONS:
        ratio = results[f"riskengine_per_s_{connections}"] / results[f"fastapi_per_s_{connections}"]
        results[f"times_fastapi_{connections}"] = round(ratio, 2)
        spared = results[f"fastapi_cpu_us_{connections}"] / results[f"riskengine_cpu_us_{connections}"]
        results[f"times_fastapi_cpu_{connections}"] = round(spared, 2)
    return results


def _measured(
    servers: dict[str, tuple[int, int]], events: Sequence[dict[str, Any]]
) -> dict[tuple[str, int], list[Turn]]:
    taken: dict[tuple[str, int], list[Turn]] = {}
    serial = 0
    for connections in CONNECTIONS:
        for turn in range(TURNS + 1):
            for name, server in servers.items():
                requests = []
                for event in events:
                    serial += 1
                    requests.append(_request({**event, "event_id": f"e{serial}"}))
                found = asyncio.run(_load(*server, requests, connections))
                if turn:  # the first one warms up
                    taken.setdefault((name, connections), []).append(found)
    return taken


def _request(event: dict[str, Any]) -> bytes:
    body = json.dumps({name: value for name, value in event.items() if value is not None}).encode()
    head = (
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    return head % len(body) + body


async def _load(port: int, pid: int, requests: Sequence[bytes], connections: int) -> Turn:
    """Ask for SECONDS, or as far as the requests reach."""
    waits: list[float] = []
    degraded = 0
    left = iter(requests)
    until = time.perf_counter() + SECONDS

    async def ask() -> None:
        nonlocal degraded
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for request in left:
            began = time.perf_counter()
            if began > until:
                break
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n", 1)[0])
            body = await reader.readexactly(size)
            waits.append(time.perf_counter() - began)
            degraded += b'"degraded:' in body
        writer.close()

    began, worked = time.perf_counter(), _cpu_seconds(pid)
    await asyncio.gather(*(ask() for _ in range(connections)))
    seconds = time.perf_counter() - began
    worked = _cpu_seconds(pid) - worked
    waits.sort()
    n = len(waits)
    return Turn(n / seconds, 1e3 * waits[int(0.99 * n)], 1e6 * worked / n, degraded / n)


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process and all its threads, by proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _check(port: int, event: dict[str, Any]) -> None:
    """The sidecar decides."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/score", json.dumps(event), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert answer["event_id"] == event["event_id"]
    assert answer["action"] in ("allow", "review", "challenge", "deny")


@contextlib.contextmanager
def _running(command: Sequence[str], room: Path, core: int) -> Iterator[tuple[int, int]]:
    """Port and process id of a server that is pinned to a core, for as long as it is needed."""
    process = subprocess.Popen(
        command,
        cwd=room,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                yield int(found[1]), process.pid
                return
        raise AssertionError(f"{command[1:3]} did not start")
    finally:
        process.terminate()
        process.communicate()
