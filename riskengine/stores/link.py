"""One connection to a Redis server: redis-py opens it, and on the hot path the socket is used as it is.

Requests go out in one write, replies are found in one buffer that is used again. Whatever goes wrong is a
`StoreError` of one kind, and the connection is closed unless the server itself said what is wrong.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from riskengine.errors import RiskEngineError
from riskengine.stores import resp
from riskengine.stores.resp import Bytes, Int64s

if TYPE_CHECKING:
    import socket

Kind = Literal["away", "full", "read-only", "wrong-type", "denied", "busy", "loading", "epoch", "broken"]
Item = bytes | int | None

SCRIPTS: Final = ("observe", "conclude", "compact", "edit")
BUFFER_BYTES: Final = 1 << 18
BUFFER_BYTES_MAX: Final = 1 << 30  # a reply larger than this is none of ours
ITEMS: Final = 1 << 12
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


class StoreError(RiskEngineError):
    """The store could not answer. `kind` is one word for metrics and flags."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


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

    `timeout_ms` bounds each wait for a reply as a whole, `connect_ms` opening.
    """

    def __init__(self, url: str, timeout_ms: int, connect_ms: int) -> None:
        self.url = url
        self.timeout_s = timeout_ms / 1000
        self.connect_s = connect_ms / 1000
        self.scripts = {
            name: resources.files(__package__).joinpath(f"{name}.lua").read_bytes() for name in SCRIPTS
        }
        self.names = {name: hashlib.sha1(code).hexdigest() for name, code in self.scripts.items()}
        self.reply = Reply()
        self._connection: Any = None
        self._socket: socket.socket | None = None
        self._owed = 0  # replies to requests that nobody waited for
        self._from = 0  # where in the buffer the next reply begins
        self._to = 0  # and where what has come ends
        self.lost: str | None = None  # what the last request that nobody waited for met

    def ask(self, request: bytes | memoryview) -> Reply:
        """Send one request and wait for its reply, good until the next. StoreError where it fails."""
        deadline = time.monotonic() + self.timeout_s
        self._send(request, deadline)
        while self._owed:
            self._receive(deadline)
            self._owed -= 1
            self.lost = self.reply.error() or self.lost
        self._receive(deadline)
        message = self.reply.error()
        if message is not None:
            raise said(message)
        return self.reply

    def tell(self, request: bytes | memoryview) -> None:
        """Send one request whose reply is only looked at before the next `ask`."""
        self._send(request, time.monotonic() + self.timeout_s)
        self._owed += 1

    def call(self, *words: bytes | str | int) -> list[Item]:
        """A command off the hot path, and what it answers."""
        return self.ask(resp.command(words)).items()

    def load(self) -> None:
        """Let the server know our scripts."""
        for code in self.scripts.values():
            self.call("SCRIPT", "LOAD", code)

    def close(self) -> None:
        """Hang up."""
        connection, self._connection, self._socket = self._connection, None, None
        self._owed = self._from = self._to = 0
        if connection is not None:
            connection.disconnect()

    def _open(self) -> socket.socket:
        if self._socket is not None:
            return self._socket
        import redis

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
            raise StoreError("denied", f"the store does not let us in: {_short(error)}") from None
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


def _gone(error: OSError) -> StoreError:
    if isinstance(error, TimeoutError):
        return StoreError("away", "the store did not answer in time")
    return StoreError("away", f"the connection to the store broke: {_short(error)}")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:ERROR_SHOWN] or type(error).__name__
