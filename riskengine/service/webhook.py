"""Episodes of alerts, posted to an address of the operator's: signed, tried again, and never inwards.

A policy's author is not always who runs the sidecar, and a name may come to mean another address: so the name
is looked up for each attempt, what it means must be an address of the public internet (unless that is
allowed), and that very address is called. Redirects are not followed.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import logging
import queue
import random
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Final, NamedTuple, Self
from urllib.parse import urlsplit

from riskengine.errors import RiskEngineError

SECRET_VARIABLE: Final = "RISKENGINE_ALERT_SECRET"  # the name of a variable, not a secret
SECRET_BYTES_MIN: Final = 16
QUEUE: Final = 1_000  # deliveries waiting; what comes past it is dropped, counted and logged
ATTEMPTS: Final = 8
PAUSE_SECONDS: Final = 1.0  # before the second attempt; doubled for each further one, ...
PAUSE_SECONDS_MAX: Final = 60.0  # ... up to this, of which a random half is waited
CALL_SECONDS: Final = 5.0
AGAIN: Final = frozenset({408, 425, 429})  # of 4xx: those that another attempt may mend
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

_log = logging.getLogger(__name__)


class Target(NamedTuple):
    """Where a webhook is: a URL in its parts."""

    tls: bool
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises RiskEngineError for what is no URL of a webhook."""
        mend = "give http(s)://HOST[:PORT]/PATH, without user, password or fragment"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise RiskEngineError(f"the alerts' webhook is no URL: {mend}") from None
        odd = parts.username is not None or parts.fragment or any(sign <= " " or sign > "~" for sign in url)
        if parts.scheme not in ("http", "https") or not parts.hostname or odd:
            raise RiskEngineError(f"the alerts' webhook is no such URL: {mend}")
        tls = parts.scheme == "https"
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(tls, parts.hostname, port or (443 if tls else 80), path)


class Delivery(NamedTuple):
    """A body to be posted. `id` is the same for every attempt: a receiver can tell what it has."""

    id: str
    body: bytes


def secret_of(environment: Mapping[str, str]) -> bytes:
    """The secret that deliveries are signed with; empty where there is none."""
    return environment.get(SECRET_VARIABLE, "").encode()


def check(url: str, secret: bytes) -> Target:
    """Where a webhook is. Raises RiskEngineError for a URL or a secret that will not do."""
    if len(secret) < SECRET_BYTES_MIN:
        raise RiskEngineError(
            f"the alerts' webhook is signed with {SECRET_VARIABLE}, which is to have {SECRET_BYTES_MIN} "
            "characters or more: openssl rand -hex 32, and the same at the receiver"
        )
    return Target.parse(url)


def sign(secret: bytes, timestamp: int, body: bytes) -> str:
    """The signature of a body at a time (seconds): hex of HMAC-SHA256 over `TIMESTAMP.BODY`."""
    return hmac.new(secret, b"%d." % timestamp + body, hashlib.sha256).hexdigest()


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet, also what an IPv6 address carries in itself."""
    found = ipaddress.ip_address(address.partition("%")[0])
    inner: list[ipaddress.IPv4Address | None] = []
    if isinstance(found, ipaddress.IPv6Address):
        inner = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
        if found in _NAT64:
            inner.append(ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF))
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
    each = [found, *(one for one in inner if one is not None)]
    return all(one.is_global and not one.is_multicast for one in each)


class Webhook:
    """Posts deliveries one after another, in a thread of its own."""

    def __init__(
        self, url: str, secret: bytes, private: bool = False, pause_seconds: float = PAUSE_SECONDS
    ) -> None:
        """`private` allows addresses that are not public. Raises RiskEngineError."""
        self._target = check(url, secret)
        self._secret = secret
        self._private = private
        self._pause_seconds = pause_seconds
        self._queue: queue.Queue[Delivery | None] = queue.Queue(QUEUE)
        self._closing = threading.Event()
        self._counts = {"sent": 0, "retried": 0, "failed": 0, "dropped": 0}
        self._thread = threading.Thread(target=self._work, name="riskengine-webhook", daemon=True)
        self._thread.start()

    def put(self, delivery: Delivery) -> None:
        """Have it posted, and return at once."""
        try:
            self._queue.put_nowait(delivery)
        except queue.Full:
            self._counts["dropped"] += 1
            if self._counts["dropped"] == 1:
                _log.error("the alerts' webhook is too slow: deliveries are dropped")

    def close(self, timeout_seconds: float = CALL_SECONDS) -> None:
        """Try what waits once more, for so long, and end."""
        self._closing.set()
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            _log.error("the alerts' webhook was closed with %d deliveries waiting", self._queue.qsize())
        self._thread.join(timeout_seconds)

    @property
    def status(self) -> Mapping[str, int]:
        """For metrics: deliveries sent, attempts made again, deliveries failed for good and dropped."""
        return dict(self._counts)

    def _work(self) -> None:
        while (delivery := self._queue.get()) is not None:
            self._deliver(delivery)

    def _deliver(self, delivery: Delivery) -> None:
        pause = self._pause_seconds
        for attempt in range(ATTEMPTS):
            why, again = self._attempt(delivery)
            if why is None:
                self._counts["sent"] += 1
                return
            if not again or attempt == ATTEMPTS - 1 or self._closing.is_set():
                break
            self._counts["retried"] += 1
            self._closing.wait(pause * random.uniform(0.5, 1.0))  # jitter is no secret
            pause = min(2 * pause, PAUSE_SECONDS_MAX)
        self._counts["failed"] += 1
        _log.error("the alerts' webhook did not take a delivery: %s", why, extra={"delivery": delivery.id})

    def _attempt(self, delivery: Delivery) -> tuple[str | None, bool]:
        """None, or why it was not taken; whether another attempt may do better."""
        try:
            address = self._resolve()
        except OSError as error:
            return f"its host cannot be found ({type(error).__name__})", True
        if address is None:
            return "its host is no public address: --alert-webhook-private allows it", False
        timestamp = time.time_ns() // 1_000_000_000
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "riskengine",
            "X-Riskengine-Delivery": delivery.id,
            "X-Riskengine-Timestamp": str(timestamp),
            "X-Riskengine-Signature": f"v1={sign(self._secret, timestamp, delivery.body)}",
        }
        connection = _Pinned(self._target, address)
        try:
            connection.request("POST", self._target.path, delivery.body, headers)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            return f"it cannot be reached ({type(error).__name__})", True
        finally:
            connection.close()
        if 200 <= status < 300:
            return None, False
        if 300 <= status < 400:
            return f"it redirects ({status}), and redirects are not followed", False
        return f"it answered {status}", status >= 500 or status in AGAIN

    def _resolve(self) -> str | None:
        """The address to call; None where one of those that the host has is not public, and has to be."""
        target = self._target
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        addresses = [str(one[4][0]) for one in found]
        if not self._private and not all(map(is_public, addresses)):
            return None
        return addresses[0]


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was looked at, under the name that was asked for."""

    def __init__(self, target: Target, address: str) -> None:
        super().__init__(target.host, target.port, timeout=CALL_SECONDS)
        self._target = target
        self._address = address

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self._target.port), CALL_SECONDS)
        if self._target.tls:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self._target.host)
