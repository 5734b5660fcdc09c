"""One connection to a Redis server: redis-py opens it, and on the hot path the socket is used as it is.

Requests go out in one write, replies are found in one buffer that is used again. Whatever goes wrong is a
`StoreError` of one kind, and the connection is closed unless the server itself said what is wrong.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import redis

from riskengine.errors import RiskEngineError
from riskengine.stores import Kind, StoreError, resp
from riskengine.stores.resp import Bytes, Int64s

if TYPE_CHECKING:
    import socket

Item = bytes | int | None

SCRIPTS: Final = ("observe", "conclude", "compact", "edit")
BUFFER_BYTES: Final = 1 << 18
BUFFER_BYTES_MAX: Final = 1 << 30  # a reply larger than this is none of ours
ITEMS: Final = 1 << 12
TOLD_BYTES_MAX: Final = 1 << 28  # what is kept for a store that is away
AHEAD_MAX: Final = 64  # requests on the way whose replies have not been read
PATIENCE: Final = 3  # tries in a row without an answer
ALONE_S: Final = 0.25  # at most, until the next try
ERROR_SHOWN: Final = 200  # characters of a server's message

# How the server says each kind, and what to do about it. The message of the server itself is shown too.
SAID: Final[Sequence[tuple[str, Kind, str]]] = (
    ("OOM", "full", "the store is full: raise maxmemory or take load from it"),
    ("READONLY", "read-only", "the store is a replica that takes no writes: give the address of its master"),
    ("WRONGTYPE", "wrong-type", "a key of ours holds something else: give this store a prefix of its own"),
    ("NOAUTH", "denied", "the store asks for a password: give it in the URL"),
    ("WRONGPASS", "denied", "the store does not take this user and password: look at the URL"),
    ("NOPERM", "denied", "the store does not let this user do it: allow it scripts and our keys"),
    ("BUSY", "busy", "the store is held up by a script: SCRIPT KILL ends one that wrote nothing"),
    ("LOADING", "loading", "the store is reading its data after a start: wait for it"),
    ("MASTERDOWN", "away", "the store is a replica whose master is down"),
    ("CLUSTERDOWN", "away", "the cluster is down: some of its slots are served by nobody"),
    ("TRYAGAIN", "away", "the cluster is moving these keys just now"),
    ("MOVED", "away", "the server is a cluster: open it with redis+cluster://"),
)  # fmt: skip


class Reply:
    """The items of one reply: offsets and lengths (see `resp.scan`) in the buffer of its link."""

    __slots__ = ("count", "data", "lengths", "offsets")

    def __init__(self) -> None:
        self.data: Bytes = np.empty(BUFFER_BYTES, np.uint8)
        self.offsets: Int64s = np.empty(ITEMS, np.int64)
        self.lengths: Int64s = np.empty(ITEMS, np.int64)
        self.count = 0

    def item(self, k: int) -> Item:
        """One item, copied out."""
        length = int(self.lengths[k])
        at = int(self.offsets[k])
        if length == resp.INTEGER:
            return at
        return None if length == resp.NIL else self.data[at : at + length].tobytes()

    def items(self) -> list[Item]:
        """All of them."""
        return [self.item(k) for k in range(self.count)]

    def error(self) -> str | None:
        """The server's message where the reply is an error."""
        if self.count != 1 or self.lengths[0] != resp.ERROR:
            return None
        start = int(self.offsets[0])
        return self.data[start : start + ERROR_SHOWN].tobytes().split(b"\r")[0].decode("utf-8", "replace")


class Link:
    """A connection, opened when first needed and again after it broke. Not shared between threads.

    `timeout_ms` bounds each wait for a reply as a whole, `connect_ms` opening. What is told is kept until the
    server has answered it, and sent again over the next connection: it must be such that twice does no harm.
    A server that does not answer is left alone for a moment after PATIENCE tries, and then tried once.
    """

    def __init__(self, url: str, timeout_ms: int, connect_ms: int) -> None:
        self.url = url
        self.timeout_s = timeout_ms / 1000
        self.connect_s = connect_ms / 1000
        here = resources.files(__package__)
        self.scripts = {name: here.joinpath(f"{name}.lua").read_bytes() for name in SCRIPTS}
        self.names = {name: hashlib.sha1(code).hexdigest() for name, code in self.scripts.items()}
        self.reply = Reply()
        self.refused: str | None = None  # what the server said last of something that was told
        self.dropped = 0  # of what was told, as there was too much of it
        self._connection: Any = None
        self._socket: socket.socket | None = None
        self._told: deque[bytes] = deque()  # not answered yet
        self._told_bytes = 0
        self._sent = 0  # how many of these went out over this connection
        self._from = 0  # where in the buffer the next reply begins
        self._to = 0  # and where what has come ends
        self._failures = 0
        self._alone_until = 0.0

    @property
    def waiting(self) -> int:
        """How many requests that were told have not been answered."""
        return len(self._told)

    def ask(self, request: bytes | memoryview) -> Reply:
        """Send one request and wait for its reply, which is good until the next. StoreError where it fails.

        One that a broken connection may have lost is sent once more: the server may have served it twice.
        """
        now = time.monotonic()
        if now < self._alone_until:
            raise StoreError("away", "the store did not answer, and is tried again in a moment")
        deadline = now + self.timeout_s
        try:
            reply = self._asked(request, deadline)
        except StoreError as error:
            if error.kind != "away" or time.monotonic() >= deadline:
                self._failed(error)
                raise
            try:
                reply = self._asked(request, deadline)
            except StoreError as again:
                self._failed(again)
                raise
        self._failures = 0
        message = reply.error()
        if message is not None and message.startswith("NOSCRIPT"):  # then it did nothing
            self.load()
            message = self._asked(request, deadline).error()
        if message is not None:
            raise said(message)
        return reply

    def tell(self, request: bytes | memoryview) -> None:
        """Send one request and do not wait. It is kept, and sent again where it may have been lost."""
        self.later(request)
        if self._socket is not None and self._sent == len(self._told) - 1:
            with suppress(StoreError):  # the next `ask` sends it again
                self._send(self._told[-1], time.monotonic() + self.timeout_s)
                self._sent += 1

    def later(self, request: bytes | memoryview) -> None:
        """Keep a request until the server can be asked again."""
        self._told.append(bytes(request))
        self._told_bytes += len(self._told[-1])
        while self._told_bytes > TOLD_BYTES_MAX and not self._sent:
            self._told_bytes -= len(self._told.popleft())
            self.dropped += 1

    def _asked(self, request: bytes | memoryview, deadline: float) -> Reply:
        if self._socket is None:  # opening has a deadline of its own
            self._open()
            deadline = time.monotonic() + self.timeout_s
        while self._sent < len(self._told):
            self._send(self._told[self._sent], deadline)
            self._sent += 1
            if self._sent > AHEAD_MAX:
                self._acknowledge(deadline)
                if time.monotonic() > deadline - self.timeout_s / 2:
                    raise StoreError("behind", "the store is back, and still catching up with what it missed")
        self._send(request, deadline)
        while self._sent:
            self._acknowledge(deadline)
        self._receive(deadline)
        return self.reply

    def _acknowledge(self, deadline: float) -> None:
        """Read the reply to the first of what was told."""
        self._receive(deadline)
        self._sent -= 1
        request, message = self._told.popleft(), self.reply.error()
        if message is not None and message.startswith("NOSCRIPT"):
            self._told.append(request)  # our next request meets the same, and has the scripts loaded
            return
        self._told_bytes -= len(request)
        self.refused = message or self.refused

    def _failed(self, error: StoreError) -> None:
        if error.kind != "away":
            return
        self._failures += 1
        if self._failures >= PATIENCE:
            self._alone_until = time.monotonic() + random.uniform(0.5, 1.0) * ALONE_S

    def call(self, *words: bytes | str | int) -> list[Item]:
        """A command off the hot path, and what it answers."""
        return self.ask(resp.command(words)).items()

    def load(self) -> None:
        """Let the server know our scripts."""
        deadline = time.monotonic() + self.connect_s
        for code in self.scripts.values():
            self._send(resp.command(("SCRIPT", "LOAD", code)), deadline)
            self._receive(deadline)
            message = self.reply.error()
            if message is not None:
                self.close()
                raise said(message)

    def close(self) -> None:
        """Hang up."""
        connection, self._connection, self._socket = self._connection, None, None
        self._sent = self._from = self._to = 0
        if connection is not None:
            connection.disconnect()

    def _open(self) -> socket.socket:
        if self._socket is not None:
            return self._socket
        try:
            pool = redis.ConnectionPool.from_url(
                self.url,
                socket_connect_timeout=self.connect_s,
                socket_timeout=self.connect_s,
                protocol=2,
            )
            self._connection = pool.make_connection()
            self._connection.connect()
        except redis.AuthenticationError as error:
            self.close()
            raise StoreError(
                "denied", f"the store does not let us in ({_short(error)}): give user and password in its URL"
            ) from None
        except redis.ResponseError as error:
            self.close()
            raise said(str(error)) from None
        except (redis.RedisError, OSError) as error:
            self.close()
            raise StoreError("away", f"the store cannot be reached: {_short(error)}") from None
        except ValueError as error:
            raise RiskEngineError(f"the store's URL cannot be used: {_short(error)}") from None
        self._socket = self._connection._sock
        assert self._socket is not None, "a connection that is open has a socket"
        self.load()
        return self._socket

    def _send(self, request: bytes | memoryview, deadline: float) -> None:
        link = self._open()
        try:
            link.settimeout(max(deadline - time.monotonic(), 0.001))
            link.sendall(request)
        except OSError as error:
            self.close()
            raise _gone(error) from None

    def _receive(self, deadline: float) -> None:
        """Wait until a reply has come whole, and find its items."""
        reply = self.reply
        at, done, total = self._from, 0, -1
        try:
            while True:
                if self._from == self._to and done == 0:
                    self._from = self._to = at = 0
                at, done, total = resp.scan(
                    reply.data, at, self._to, reply.offsets, reply.lengths, done, total
                )
                if at == resp.BROKEN:
                    raise StoreError("broken", "the store answers what is no RESP2: look at the URL")
                if total > len(reply.offsets):
                    reply.offsets = np.concatenate((reply.offsets, np.empty(total, np.int64)))
                    reply.lengths = np.concatenate((reply.lengths, np.empty(total, np.int64)))
                    continue
                if done == total:
                    break
                at = self._fill(at, done, deadline)
        except (OSError, StoreError) as error:
            self.close()
            raise _gone(error) if isinstance(error, OSError) else error from None
        self._from = at
        reply.count = done

    def _fill(self, at: int, done: int, deadline: float) -> int:
        """Read what has come into the buffer, making room for it; return where `at` is now."""
        reply = self.reply
        if self._to == len(reply.data):
            start = self._from
            left = self._to - start
            if 2 * left > len(reply.data):
                if len(reply.data) >= BUFFER_BYTES_MAX:
                    raise StoreError("broken", "the store answers more than any of our requests can ask for")
                larger = np.empty(2 * len(reply.data), np.uint8)
                larger[:left] = reply.data[start : self._to]
                reply.data = larger
            else:
                reply.data[:left] = reply.data[start : self._to].copy()
            strings = reply.lengths[:done] != resp.INTEGER
            reply.offsets[:done][strings] -= start
            at -= start
            self._from, self._to = 0, left
        assert self._socket is not None, "nobody waits at a connection that is closed"
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        count = self._socket.recv_into(reply.data[self._to :].data)
        if count == 0:
            raise ConnectionResetError("it hung up")
        self._to += count
        return at


def said(message: str) -> StoreError:
    """The error that a server's message stands for."""
    for start, kind, mend in SAID:
        if message.startswith(start):
            return StoreError(kind, f"{mend} (it says: {message})")
    return StoreError("broken", f"the store does not do as asked (it says: {message})")


def facts_of(info: bytes) -> dict[str, str]:
    """What INFO says, by name."""
    lines = info.decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _gone(error: OSError) -> StoreError:
    if isinstance(error, TimeoutError):
        return StoreError("away", "the store did not answer in time")
    return StoreError("away", f"the connection to the store broke: {_short(error)}")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:ERROR_SHOWN] or type(error).__name__
