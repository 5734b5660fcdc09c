"""Another life of a shared store in the making, while the one before it serves on.

The new one's epoch is kept under a mark of its own, which lasts only as long as somebody renews it: who began
a rebuild and went away neither blocks the next one nor writes on. `switch` makes it the one that serves.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from riskengine.errors import RiskEngineError
from riskengine.features import FeatureSet
from riskengine.stores import StoreError
from riskengine.stores.address import EPOCH_CHARS, Address, check_server, find
from riskengine.stores.link import Link
from riskengine.stores.place import Place
from riskengine.stores.redis import RedisStore
from riskengine.stores.scanning import scan

MARK: Final = "rebuilding"
MARK_MS: Final = 60_000
KEEP_S: Final = 5.0
PATIENCE_MS: Final = 10_000  # who rebuilds is in no hurry

# Renew the mark, or let the new life begin: only where it is still ours.
KEEP: Final = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0"
SWITCH: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[1])
return 1
"""


class Renewal:
    """A new life of a store: fill `store`, then `switch`. Use `renewal`."""

    def __init__(self, address: Address, tenant: str, link: Link) -> None:
        before = self.before = find(link, address, tenant)
        self.switched = False
        self._address, self._tenant = address, tenant
        self._link = link
        epoch = before.epoch
        while epoch == before.epoch:
            epoch = secrets.token_hex(EPOCH_CHARS // 2).encode()
        self.place = msgspec.structs.replace(before, epoch=epoch, mark=MARK)
        self._store: RedisStore | None = None
        self._kept_at = time.monotonic()

    def store(self, features: FeatureSet) -> RedisStore:
        """The store of the new life, over a connection of its own."""
        address = self._address
        link = Link(address.url, max(address.timeout_ms, PATIENCE_MS), address.connect_ms)
        self._store = RedisStore(features, link, self.place)
        return self._store

    def keep(self) -> None:
        """Say that we are still at it; call it now and then. Raises RiskEngineError where it is not ours."""
        if not self.switched and time.monotonic() - self._kept_at > KEEP_S:
            self._kept_at = time.monotonic()
            if self._link.call("EVAL", KEEP, 1, self.place.epoch_key, self.place.epoch, MARK_MS)[0] != 1:
                raise RiskEngineError(_overtaken(self.place))

    def switch(self) -> None:
        """Let the new life serve: whoever asks next finds it."""
        place = msgspec.structs.replace(self.place, mark=self.before.mark)
        keys = self.place.epoch_key, place.epoch_key
        if self._link.call("EVAL", SWITCH, 2, *keys, self.place.epoch)[0] != 1:
            raise RiskEngineError(_overtaken(self.place))
        self.switched, self.place = True, place
        if self._store is not None:
            self._store.move(place)

    def clean(self) -> int:
        """Remove what belongs to no life of the store that serves or is being made; how many keys it was."""
        serving = find(self._link, self._address, self._tenant)
        making = msgspec.structs.replace(self.place, mark=MARK)
        ours = making.data, making.epoch_key, serving.data, serving.epoch_key
        removed = 0
        for names in scan(self._link, self.place.prefix.encode()):
            dead = [name for name in names if not name.startswith(ours)]
            if dead:
                self._link.call("UNLINK", *dead)
                removed += len(dead)
        return removed


@contextmanager
def renewal(url: str, tenant: str) -> Iterator[Renewal]:
    """Begin another life of a store. Unless it is switched to, nothing is left of it at the end.

    Raises RiskEngineError for a URL or a server that will not do, and where somebody else is at it.
    """
    address = Address.read(url)
    link = Link(address.url, max(address.timeout_ms, PATIENCE_MS), address.connect_ms)
    try:
        check_server(link)
        made = Renewal(address, tenant, link)
        place = made.place
        if link.call("SET", place.epoch_key, place.epoch, "NX", "PX", MARK_MS)[0] is None:
            raise RiskEngineError(
                f"another rebuild of the store at {place.prefix} is under way: wait for it. One that was "
                f"killed is forgotten after {MARK_MS // 1000} s"
            )
        try:
            made.clean()
            yield made
        finally:
            if not made.switched:
                _forget(link, place)
    finally:
        link.close()


def _forget(link: Link, place: Place) -> None:
    """Remove a life that never served. Where the server is away, the next rebuild does it."""
    try:
        link.call("EVAL", "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end", 1,
                  place.epoch_key, place.epoch)  # fmt: skip
        for names in scan(link, place.data):
            link.call("UNLINK", *names)
    except StoreError:
        return


def _overtaken(place: Place) -> str:
    return (
        f"the rebuild of the store at {place.prefix} stood still for more than {MARK_MS // 1000} s, and is "
        "not ours any more: begin it again"
    )
