"""One connection to a Redis server: redis-py opens it, then the socket is used as it is.

Requests go out in one write, replies are found in one buffer that is used again. Whatever goes wrong is a
`StoreError` of one kind, and the connection is closed unless the server itself said what is wrong.
"""

from __future__ import annotations

import hashlib
import os
import random
import select
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import numpy as np
import redis

from riskengine.errors import RiskEngineError
from riskengine.fibers import current, ready
from riskengine.stores import Kind, StoreError, resp
from riskengine.stores.resp import Bytes, Int64s

if TYPE_CHECKING:
    import socket

Item = bytes | int | None

# Where there is one processor, who is waited for needs it.
YIELD: Final = getattr(os, "sched_yield", None) if (os.cpu_count() or 1) > 1 else None

SCRIPTS: Final = ("observe", "conclude", "conclude_all", "compact", "undo", "take_back", "give_back", "edit")
PATIENCE: Final = 3  # tries in a row without an answer
ALONE_S: Final = 0.25  # at most, until the next try
# A processor that sleeps for the time of a reply forgets what it was at: of a lone event on a machine with
# two, what came after took three times as long. Who was answered within this last time stays awake for it.
AWAKE_S: Final = 200e-6
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

# What a server says that does nothing just now: what it was told is told again when it does.
PUT_OFF: Final = (
    "NOSCRIPT", "OOM", "READONLY", "NOAUTH", "NOPERM", "BUSY", "LOADING", "MASTERDOWN", "CLUSTERDOWN",
    "TRYAGAIN",
)  # fmt: skip


class Reply:
    """The items of one reply, or of several: offsets and lengths (see `resp.scan`) in a buffer.

    `firsts` has the number of each reply's first item.
    """

    __slots__ = (
        "_table",
        "_wrong",
        "count",
        "data",
        "end",
        "firsts",
        "lengths",
        "offsets",
        "replies",
        "start",
    )

    def __init__(self) -> None:
        self.data: Bytes = np.empty(BUFFER_BYTES, np.uint8)
        self.offsets: Int64s = np.empty(ITEMS, np.int64)
        self.lengths: Int64s = np.empty(ITEMS, np.int64)
        self.firsts: Int64s = np.zeros(ITEMS >> 4, np.int64)
        self._table = self.firsts
        self._wrong = 0  # before this one none of them is an error
        self.count = 0
        self.replies = 1
        self.start = self.end = 0  # of the buffer, what holds them

    def item(self, k: int) -> Item:
        """One item, copied out."""
        length = int(self.lengths[k])
        at = int(self.offsets[k])
        if length == resp.INTEGER:
            return at
        return None if length == resp.NIL else self.data[at : at + length].tobytes()

    def of(self, reply: int) -> list[Item]:
        """Those of one reply."""
        return [self.item(k) for k in range(int(self.firsts[reply]), self._end(reply))]

    def error(self, reply: int = 0) -> str | None:
        """The server's message where a reply is an error."""
        first = int(self.firsts[reply])
        if first == self._end(reply) or self.lengths[first] != resp.ERROR:
            return None
        return self.message(first)

    def message(self, k: int) -> str:
        """What the server says in an item that is an error."""
        start = int(self.offsets[k])
        return self.data[start : start + ERROR_SHOWN].tobytes().split(b"\r")[0].decode("utf-8", "replace")

    def begin(self, replies: int) -> None:
        """Have room for so many, and none yet."""
        if replies > len(self._table):
            self._table = np.empty(2 * replies, np.int64)
        self.firsts = self._table
        self.replies = replies
        self._wrong = 0

    def look(self) -> None:
        """Find the first one that is an error, once all are there: most often there is none."""
        self._wrong = resp.first_error(self.lengths, self.firsts, self.replies)

    def errors(self, replies: int) -> dict[int, str]:
        """The server's messages of the first so many replies, by number, where there are any."""
        if self._wrong >= replies:
            return {}
        each = ((k, self.error(k)) for k in range(self._wrong, replies))
        return {k: message for k, message in each if message is not None}

    def leave_out(self, replies: int) -> None:
        """Have the first so many replies in it no more."""
        self.replies -= replies
        self.firsts = self.firsts[replies:]
        self._wrong = max(self._wrong - replies, 0)

    def _end(self, reply: int) -> int:
        return self.count if reply + 1 == self.replies else int(self.firsts[reply + 1])


class Breaker:
    """Leaves a server that does not answer alone for a moment after some tries, and then tries it once."""

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0

    @property
    def leaves_alone(self) -> bool:
        """Whether the server is to be left alone still."""
        return self._failures >= PATIENCE and time.monotonic() < self._until

    def check(self) -> None:
        """StoreError where the server is to be left alone still."""
        if self.leaves_alone:
            raise StoreError("away", "the store did not answer, and is tried again in a moment")

    def answered(self) -> None:
        """It is there."""
        self._failures = 0

    def failed(self, error: StoreError) -> None:
        """It did not answer; what it says itself is an answer."""
        if error.kind not in ("away", "slow"):
            return
        self._failures += 1
        if self._failures >= PATIENCE:  # not all at once, where many wait for it
            self._until = time.monotonic() + random.uniform(0.5, 1.0) * ALONE_S


class Line:
    """A connection, opened when first needed. Not shared between threads.

    Several requests may be on the way; their replies come in order, and are read together or one by one.
    """

    def __init__(self, url: str, connect_s: float) -> None:
        self.url = url
        self.reply = Reply()
        self.connect_s = connect_s
        self._connection: Any = None
        self._socket: socket.socket | None = None
        self._poll = select.poll()  # of this socket, whose number is
        self._number = -1
        self._began_s = 0.0  # of the monotonic clock, where what is at hand has been waited for
        self._waited_s = 0.0  # for what came last
        self.transacts = False  # whether the server takes transactions, as far as is known
        self._from = 0  # where in the buffer the next reply begins
        self._to = 0  # and where what has come ends

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._socket is not None

    def load(self) -> None:
        """Let the server know our scripts, and find out whether it lets us have transactions."""
        deadline = time.monotonic() + self.connect_s
        for code in scripts().values():
            self.send(resp.command(("SCRIPT", "LOAD", code)), deadline)
            self.receive(deadline)
            message = self.reply.error()
            if message is not None:
                self.close()
                raise said(message)
        self.send(resp.command(("MULTI",)) + resp.command(("EXEC",)), deadline)
        self.transacts = not self.receive(deadline, 2).errors(2)

    def close(self) -> None:
        """Hang up."""
        connection, self._connection, self._socket = self._connection, None, None
        self._poll = select.poll()
        self._from = self._to = 0
        if connection is not None:
            connection.disconnect()

    def open(self) -> socket.socket:
        """Connect, and let the server know our scripts."""
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
            raise StoreError("away", unreached(f"the store at {spot_of(self.url)}", error)) from None
        except ValueError as error:
            raise RiskEngineError(f"the store's URL cannot be used: {_short(error)}") from None
        self._socket = self._connection._sock
        assert self._socket is not None, "a connection that is open has a socket"
        self._socket.setblocking(False)
        self._number = self._socket.fileno()
        self._poll.register(self._number)
        self.load()
        return self._socket

    def send(self, request: bytes | memoryview, deadline: float) -> None:
        """Send requests, which may be several. StoreError where they cannot all be sent."""
        link = self.open()
        self._began_s = 0.0
        try:
            sent = self._tried(link.send, request, select.POLLOUT, deadline)
            while sent < len(request):
                sent += self._tried(link.send, memoryview(request)[sent:], select.POLLOUT, deadline)
        except OSError as error:
            self.close()
            raise _gone(error) from None

    def receive(self, deadline: float, replies: int = 1) -> Reply:
        """Wait until so many replies have come whole, and find their items. Good until the next call."""
        reply = self.reply
        self._began_s = 0.0
        reply.begin(replies)
        at, done, total, read = self._from, 0, -1, 0
        try:
            if self._from == self._to:  # nothing has come yet
                self._from = self._to = at = 0
                at = self._fill(at, done, deadline)
            while True:
                at, done, total, read = resp.scan_all(
                    reply.data, at, self._to, reply.offsets, reply.lengths, done, total, reply.firsts, read,
                    replies,
                )  # fmt: skip
                if read == replies:
                    break
                if at == resp.BROKEN:
                    raise StoreError("broken", "the store answers what is no RESP2: look at the URL")
                needed = reply.firsts[read] + total
                if needed > len(reply.offsets):
                    more = np.empty(needed, np.int64)
                    reply.offsets = np.concatenate((reply.offsets, more))
                    reply.lengths = np.concatenate((reply.lengths, more))
                    continue
                at = self._fill(at, done, deadline)
        except (OSError, StoreError) as error:
            self.close()
            raise _gone(error) if isinstance(error, OSError) else error from None
        except BaseException:  # a reply that nobody has read would be taken for that of the next request
            self.close()
            raise
        if self._began_s:
            self._waited_s = time.monotonic() - self._began_s
        reply.start, reply.end = self._from, at
        self._from = at
        reply.count = done
        reply.look()
        return reply

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
        room = reply.data[self._to :].data
        count = self._tried(self._socket.recv_into, room, select.POLLIN, deadline)
        if count == 0:
            raise ConnectionResetError("it hung up")
        self._to += count
        return at

    def _tried(self, call: Callable[[Any], int], data: Any, event: int, deadline: float) -> int:
        """Send or receive some of the data as soon as it can be done: when there is such an `event`.

        Tried first, and waited for after: a socket with a timeout of its own asks each time whether it may.
        """
        while True:
            try:
                return call(data)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                if isinstance(error, ssl.SSLWantReadError):
                    event = select.POLLIN
                elif isinstance(error, ssl.SSLWantWriteError):
                    event = select.POLLOUT
            now = time.monotonic()
            self._began_s = self._began_s or now
            waits_awake = self._waited_s < AWAKE_S and now - self._began_s < AWAKE_S
            if waits_awake and YIELD is not None and current() is None:
                YIELD()  # others are let in between tries, at the processor and the interpreter
            else:
                self._wait(event, deadline)

    def _wait(self, event: int, deadline: float) -> None:
        """Wait for an event of the connection. TimeoutError where there is none before the deadline."""
        self._poll.modify(self._number, event)
        if not ready(self._number, event, deadline - time.monotonic(), self._poll):
            raise TimeoutError


@cache
def scripts() -> Mapping[str, bytes]:
    """The code of our scripts by name."""
    here = resources.files(__package__)
    return {name: here.joinpath(f"{name}.lua").read_bytes() for name in SCRIPTS}


@cache
def enter() -> bytes:
    """The code of the script that is sent with every transaction: one that is not there would spoil it."""
    lines = resources.files(__package__).joinpath("enter.lua").read_bytes().splitlines()
    return b"\n".join(line.strip() for line in lines if line and not line.startswith(b"--"))


@cache
def script_names() -> Mapping[str, str]:
    """What a server calls them by, once it knows them."""
    return {name: hashlib.sha1(code).hexdigest() for name, code in scripts().items()}


def said(message: str) -> StoreError:
    """The error that a server's message stands for."""
    for start, kind, mend in SAID:
        if message.startswith(start):
            return StoreError(kind, f"{mend} (it says: {message})")
    return StoreError("broken", f"the store does not do as asked (it says: {message})")


def spot_of(url: str) -> str:
    """Where a server is, for people: its host and port or its socket, without user and password."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return unquote(parts.path)
    host = parts.netloc.rpartition("@")[2] or "localhost"
    return host if parts.port is not None else f"{host.rstrip(':')}:6379"


def unreached(what: str, error: BaseException) -> str:
    """What is said where a server cannot be reached, and the mend."""
    why = _short(error).rstrip(".")
    return f"{what} cannot be reached: {why}. Check that the server runs there, and the URL."


def facts_of(info: bytes) -> dict[str, str]:
    """What INFO says, by name."""
    lines = info.decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _gone(error: OSError) -> StoreError:
    if isinstance(error, TimeoutError):
        return StoreError(
            "slow",
            "the store did not answer in time: look at its load, and at riskengine store info",
        )
    return StoreError("away", f"the connection to the store broke: {_short(error)}")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:ERROR_SHOWN] or type(error).__name__
