"""Many connections that are held open and ask a server, each again as soon as it is answered.

What wrk cannot do: count answers by status, look into them, and think between questions.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_TIMING: Final = re.compile(rb"server-timing: queue;dur=([\d.]+), engine;dur=([\d.]+)")


@dataclass(slots=True)
class Told:
    """What a crowd was answered. A lost connection has the status 0."""

    statuses: Counter[int] = field(default_factory=Counter)
    waits: dict[int, list[float]] = field(default_factory=dict)  # seconds, by status
    own: list[float] = field(default_factory=list)  # seconds that answers of 200 took by the server's clock
    degraded: int = 0  # answers of 200 with an event that was decided by contract
    without_retry: int = 0  # answers of 503 that do not say when to come again

    def p(self, share: float, status: int = 200) -> float:
        """A quantile of the seconds that answers of this status took."""
        waits = sorted(self.waits.get(status, ()))
        return waits[min(int(share * len(waits)), len(waits) - 1)] if waits else float("nan")

    def take_in(self, other: Told) -> None:
        """Add what others were told."""
        self.statuses += other.statuses
        for status, waits in other.waits.items():
            self.waits.setdefault(status, []).extend(waits)
        self.own += other.own
        self.degraded += other.degraded
        self.without_retry += other.without_retry


async def crowd(
    port: int,
    connections: int,
    requests: Iterator[bytes],
    seconds: float = float("inf"),
    think_seconds: float = 0.0,
    each: Callable[[float, int, float], None] | None = None,
    pause_seconds: float = 0.0,
) -> Told:
    """Hold so many connections open and send the requests through them, for as long as said.

    Each thinks before it asks again, and pauses where it was refused. `each` is told of every answer: when it
    was asked for (time.perf_counter), its status, and the seconds.
    """
    loop = asyncio.get_running_loop()
    told = Told()
    until = time.perf_counter() + seconds
    people = [_Person(told, requests, until, think_seconds, pause_seconds, each) for _ in range(connections)]
    for at in range(0, connections, 500):  # a listening socket's queue has its bound too
        await asyncio.gather(
            *(loop.create_connection(lambda p=p: p, "127.0.0.1", port) for p in people[at : at + 500])  # type: ignore[misc]  # a default in a lambda
        )
    for person in people:
        person.ask()
    await asyncio.gather(*(person.done for person in people))
    for person in people:
        person.transport.close()
    return told


class _Person(asyncio.Protocol):
    """One connection."""

    def __init__(
        self,
        told: Told,
        requests: Iterator[bytes],
        until: float,
        think_seconds: float,
        pause_seconds: float,
        each: Callable[[float, int, float], None] | None,
    ) -> None:
        self._told, self._requests, self._until, self._each = told, requests, until, each
        self._think_seconds, self._pause_seconds = think_seconds, pause_seconds
        self._heard = b""
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport
        self.done: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self) -> None:
        began = self._asked = time.perf_counter()
        request = next(self._requests, None) if began < self._until else None
        if request is None:
            if not self.done.done():
                self.done.set_result(None)
        else:
            self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._heard += data
        head, end, body = self._heard.partition(b"\r\n\r\n")
        if not end:
            return
        head = head.lower()
        if len(body) < int(head.partition(b"\r\ncontent-length: ")[2].split(b"\r\n", 1)[0]):
            return
        self._heard = b""
        status = int(head[9:12])
        self._count(status)
        if timing := _TIMING.search(head):
            self._told.own.append(sum(map(float, timing.groups())) / 1e3)
        self._told.degraded += b'"degraded:' in body
        self._told.without_retry += status == 503 and b"\r\nretry-after: " not in head
        wait = self._pause_seconds if status == 503 else self._think_seconds
        if wait:
            self._loop.call_later(wait, self.ask)
        else:
            self.ask()

    def _count(self, status: int) -> None:
        took = time.perf_counter() - self._asked
        self._told.statuses[status] += 1
        self._told.waits.setdefault(status, []).append(took)
        if self._each is not None:
            self._each(self._asked, status, took)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._count(0)
            self.done.set_result(None)


def resident_mb(pid: int) -> float:
    """What a process has in memory, by proc(5)."""
    said = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(said.partition("VmRSS:")[2].split()[0]) / 1024
