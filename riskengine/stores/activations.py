"""Which policies were activated, for all engines of one store: a stream in Redis, in the server's order.

It stands beside the store's data and belongs to no epoch, so that a rebuild keeps it.
"""

from __future__ import annotations

import zlib
from typing import Any, Final, NoReturn

import msgspec
import redis
from redis.cluster import RedisCluster

from riskengine.entries import Activation
from riskengine.errors import RiskEngineError
from riskengine.stores import StoreError
from riskengine.stores.address import Address

KEPT: Final = 100  # activations, the newest


class Activations:
    """The activations of one tenant. Raises StoreError where the server cannot be asked."""

    def __init__(self, client: Any, key: str) -> None:
        """Use `Activations.open`."""
        self._client = client
        self._key = key
        self._last: Any = b"0-0"  # the stream's id of the newest one that was read

    @classmethod
    def open(cls, url: str, tenant: str) -> Activations:
        """Those of a shared store's URL. Raises RiskEngineError."""
        address = Address.read(url)
        seconds = {"socket_timeout": address.timeout_ms / 1e3, "socket_connect_timeout": 1.0}
        try:
            client: Any
            if address.cluster:
                client = RedisCluster.from_url(address.urls[0], **seconds)
            else:
                client = redis.Redis.from_url(address.urls[0], protocol=2, **seconds)
        except redis.RedisError as error:
            _refuse(error)
        except ValueError as error:
            raise RiskEngineError(f"the store's URL cannot be used: {error}") from None
        return cls(client, f"{address.prefix}:{tenant}:activations")

    def append(self, activation: Activation) -> None:
        """Make it the newest."""
        try:
            self._client.xadd(self._key, {b"a": activation.encode()}, maxlen=KEPT, approximate=False)
        except redis.RedisError as error:
            _refuse(error)

    def newer(self) -> list[Activation]:
        """Those that came since the last look (all of them, at the first), the oldest first."""
        try:
            found = self._client.xread({self._key: self._last})
        except redis.RedisError as error:
            _refuse(error)
        entries = found[0][1] if found else []
        if entries:
            self._last = entries[-1][0]
        return _decoded(entries)

    def all(self) -> list[Activation]:
        """Those that are kept, the oldest first."""
        try:
            return _decoded(self._client.xrange(self._key))
        except redis.RedisError as error:
            _refuse(error)

    def close(self) -> None:
        """Hang up."""
        self._client.close()


def _decoded(entries: list[tuple[bytes, dict[bytes, bytes]]]) -> list[Activation]:
    try:
        return [Activation.decode(fields[b"a"]) for _, fields in entries]
    except (KeyError, zlib.error, msgspec.DecodeError) as error:
        message = f"an activation in the store is none that this version reads ({type(error).__name__})"
        raise StoreError("wrong-type", message) from None


def _refuse(error: redis.RedisError) -> NoReturn:
    raise StoreError(
        "away", f"the store cannot be asked which policy serves: {' '.join(str(error).split())[:200]}"
    ) from None
