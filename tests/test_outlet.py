"""Standard error that nobody reads, that is read late, and that cannot be written: nothing waits for it."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import until
from test_service import Served, claim, lay_out, start

from riskengine.service.outlet import BYTES_MAX, DRAIN_SECONDS, Outlet

MOST = 20_000  # bytes
LINE = "x" * 90
PIPE_BYTES = 65_536


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The ends to read from and to write to."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):  # the test did
            os.close(fd)


@contextlib.contextmanager
def made(fd: int | None, bytes_max: int = MOST) -> Iterator[Outlet]:
    """An outlet that has written all it took at the end."""
    outlet = Outlet(fd, "utf-8", report, bytes_max)
    yield outlet
    assert outlet.end(20)


def report(n: int) -> str:
    return f"dropped {n}"


def fill(fd: int) -> str:
    """A pipe takes no byte more after this line."""
    os.set_blocking(fd, False)
    said = os.write(fd, b"-" * (1 << 20)) * "-"
    os.set_blocking(fd, True)
    return said


def read(fd: int, last: str) -> list[str]:
    """Lines until this one."""
    said = b""
    while not said.endswith(f"{last}\n".encode()):
        assert select.select([fd], [], [], 20)[0], said[-1_000:]
        said += os.read(fd, 1_000)
    return said.decode().splitlines()


def test_who_reads_late_has_lines_in_order_and_how_many_are_missing(pipe: tuple[int, int]) -> None:
    filled = fill(pipe[1])
    with made(pipe[1]) as outlet:
        before = time.monotonic()
        for i in range(3_000):  # 290 kB
            print(i, LINE, file=outlet)
        assert time.monotonic() - before < 2
        assert not outlet.drain(0.05)
        dropped = outlet.dropped
        assert 3_000 - MOST // 90 < dropped < 3_000 - MOST // 110
        told = read(pipe[0], report(dropped))
        told[0] = told[0].removeprefix(filled)
        assert told[:-1] == [f"{i} {LINE}" for i in range(3_000 - dropped)]
        print("ü and", "so on", file=outlet)
        assert read(pipe[0], "ü and so on") == ["ü and so on"]
        assert outlet.drain(5)
        assert outlet.dropped == dropped


def test_lines_that_come_while_it_is_read_again_stand_after_the_count(pipe: tuple[int, int]) -> None:
    """And a reader who is slow all the time is told once in half a queue, not at each line."""
    with made(pipe[1]) as outlet:
        told: list[str] = []
        reader = threading.Thread(target=lambda: told.extend(read(pipe[0], "the end")))
        for i in range(5_000):
            print(i, LINE, file=outlet)
            if i == 2_000:
                reader.start()
            if i > 2_000:
                time.sleep(0.0001)
        assert outlet.drain(10)
        print("the end", file=outlet)
        reader.join(10)
        assert not reader.is_alive()
        at = 0
        missing = 0
        for line in told[:-1]:
            if found := re.fullmatch(r"dropped (\d+)", line):
                missing += int(found[1])
                at += int(found[1])
            else:
                assert line == f"{at} {LINE}"
                at += 1
        assert (at, missing) == (5_000, outlet.dropped)
        assert 0 < sum(line.startswith("dropped") for line in told) < 50


def test_a_reader_that_is_gone_costs_lines_only(pipe: tuple[int, int]) -> None:
    with made(pipe[1]) as outlet:
        os.close(pipe[0])
        for i in range(100):
            print(i, file=outlet)
        assert outlet.drain(5)
        assert outlet.dropped == 100
    with made(None) as outlet:
        print("nowhere", file=outlet)
        assert outlet.drain(5)
        assert outlet.dropped == 1
        assert not outlet.isatty()
        with pytest.raises(io.UnsupportedOperation):
            outlet.fileno()


def test_a_descriptor_that_does_not_wait_is_waited_for(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    with made(pipe[1], 1 << 20) as outlet:
        print("y" * (3 * PIPE_BYTES), file=outlet)  # more than it takes at once
        print("begun", end="", file=outlet, flush=True)
        print(" and ended", file=outlet)
        assert read(pipe[0], "begun and ended") == ["y" * (3 * PIPE_BYTES), "begun and ended"]
        assert outlet.dropped == 0


def ask_often(server: Served, n: int) -> None:
    """n requests, refused at once, each of which the log tells of."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        head = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n"
        one = b"%bx-request-id: %b\r\n\r\n{}" % (head, b"r" * 64)
        for _ in range(n // 50):
            connection.sendall(50 * one)
            said = b""
            while said.count(b"HTTP/1.1 415 ") < 50 or not said.endswith(b"}"):
                said += connection.recv(65_536)


def test_scoring_goes_on_when_nobody_reads_the_log(tmp_path: Path) -> None:
    """Its lines are counted, told of once somebody reads again, and do not keep it from ending."""
    lay_out(tmp_path / "rules")
    server = start(tmp_path, "--log", "json", RISKENGINE_LOG_REQUESTS="1")
    try:
        ask_often(server, (BYTES_MAX + PIPE_BYTES) // 200 + 2_000)
        slowest = 0.0
        for i in range(100):
            began = time.monotonic()
            assert server.score(claim(f"e{i}")).status == 200
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 5
        text = server.ask("GET", "/metrics").body.decode()
        found = re.search(r"^riskengine_log_records_dropped_total (\d+)\.0$", text, flags=re.MULTILINE)
        assert found is not None
        assert int(found[1]) >= 100

        assert server.process.stderr is not None
        records = []
        while "dropped" not in (record := json.loads(server.process.stderr.readline())):
            records.append(record)
        assert (record["level"], record["dropped"]) == ("warning", int(found[1]) + 1)  # with that of /metrics
        assert {(r["message"], r["status"]) for r in records if "route" in r} == {("request", 415)}

        ask_often(server, PIPE_BYTES // 200 + 1_000)  # and full again
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert time.monotonic() - began < DRAIN_SECONDS + 10
    finally:
        server.process.kill()
        assert server.process.stderr is not None
        server.process.stderr.close()


def test_a_log_that_was_closed_or_left(tmp_path: Path) -> None:
    """Without a standard error, or with one whose reader has gone, it serves; a start that fails says why."""
    lay_out(tmp_path / "rules")
    server = start(tmp_path)
    assert server.process.stderr is not None
    server.process.stderr.close()
    try:
        for i in range(3):
            server.problem(server.ask("PUT", "/v1/tables/none/x", {}), 404, "not-found")
            assert server.score(claim(f"e{i}")).status == 200
        until(lambda: b"records_dropped_total 3.0" in server.ask("GET", "/metrics").body, 5)
    finally:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = [sys.executable, "-m", "riskengine", "serve", "--port", str(port)]
    closed = subprocess.Popen(["sh", "-c", 'exec "$@" 2>&-', "sh", *run], cwd=tmp_path)
    try:
        until(lambda: _serves(port), 60)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            other = [*run[:-1], str(taken.getsockname()[1])]
            said = subprocess.run(other, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (said.returncode, said.stdout) == (2, "")
        assert said.stderr.startswith("error: ")
    finally:
        closed.terminate()
        assert closed.wait(30) == 0


def _serves(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    return False
