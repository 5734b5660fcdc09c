"""Another life of a shared store in the making, while the one before it serves on.

The new one's epoch is kept under a mark of its own, which lasts only as long as somebody renews it: who began
a rebuild and went away neither blocks the next one nor writes on. `switch` makes it the one that serves.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from riskengine.errors import RiskEngineError
from riskengine.features import FeatureSet
from riskengine.stores import StoreError
from riskengine.stores.address import EPOCH_CHARS, Address, check_server, each_part, find
from riskengine.stores.cluster import AnyLink
from riskengine.stores.line import Item
from riskengine.stores.place import Place
from riskengine.stores.redis import RedisStore
from riskengine.stores.scanning import remove, scan

MARK: Final = "rebuilding"
MARK_MS: Final = 60_000
KEEP_S: Final = 5.0
PATIENCE_MS: Final = 10_000  # who rebuilds is in no hurry

# Renew the mark, or let the new life begin: only where it is still ours.
KEEP: Final = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0"
DROP: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end return 1"
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

    def __init__(self, address: Address, tenant: str, link: AnyLink) -> None:
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
        self._store = RedisStore(features, self._address.link(PATIENCE_MS), self.place)
        return self._store

    def keep(self) -> None:
        """Say that we are still at it; call it now and then. Raises RiskEngineError where it is not ours."""
        if not self.switched and time.monotonic() - self._kept_at > KEEP_S:
            self._kept_at = time.monotonic()
            place = self.place
            kept = _each(
                self._link, place, lambda part: (KEEP, 1, place.epoch_name(part), place.epoch, MARK_MS)
            )
            if any(said != 1 for said in kept):
                raise RiskEngineError(_overtaken(self.place))

    def switch(self) -> None:
        """Let the new life serve: whoever asks next finds it. Of partitions the first comes last."""
        made = self.place
        place = msgspec.structs.replace(made, mark=self.before.mark)
        switched = _each(
            self._link,
            made,
            lambda part: (SWITCH, 2, made.epoch_name(part), place.epoch_name(part), made.epoch),
        )
        if any(said != 1 for said in switched):
            raise RiskEngineError(_overtaken(self.place))
        self.switched, self.place = True, place
        if self._store is not None:
            self._store.move(place)

    def clean(self) -> int:
        """Remove what belongs to no life of the store that serves or is being made; how many keys it was."""
        serving = find(self._link, self._address, self._tenant)
        making = msgspec.structs.replace(self.place, mark=MARK)
        begins = self.place.prefix.encode()
        # Other things of this tenant, which belong to no life of the store, are named otherwise.
        life = re.compile(re.escape(begins) + b"[0-9a-f]{%d}:" % EPOCH_CHARS)
        removed = 0
        for call, names in scan(self._link, begins):
            ours = serving.data, making.data
            dead = [name for name in names if life.match(name) and not name.startswith(ours)]
            if dead:
                remove(call, dead)
                removed += len(dead)
        return removed


@contextmanager
def renewal(url: str, tenant: str) -> Iterator[Renewal]:
    """Begin another life of a store. Unless it is switched to, nothing is left of it at the end.

    Raises RiskEngineError for a URL or a server that will not do, and where somebody else is at it.
    """
    address = Address.read(url)
    link = address.link(PATIENCE_MS)
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
            others = range(1, len(place.tags))
            marks = [("SET", place.epoch_name(part), place.epoch, "PX", str(MARK_MS)) for part in others]
            each_part(link, others, marks)
            made.clean()
            yield made
        finally:
            if not made.switched:
                _forget(link, place)
    finally:
        link.close()


def _forget(link: AnyLink, place: Place) -> None:
    """Remove a life that never served. Where the server is away, the next rebuild does it."""
    try:
        _each(link, place, lambda part: (DROP, 1, place.epoch_name(part), place.epoch))
        for call, names in scan(link, place.data):
            remove(call, names)
    except StoreError:
        return


def _each(link: AnyLink, place: Place, script: Callable[[int], Sequence[bytes | str | int]]) -> list[Item]:
    """Run a script for every partition, the first one last, and return what each answers."""
    others = range(1, len(place.tags))
    said = each_part(link, others, [("EVAL", *script(part)) for part in others])
    return [*said, link.call("EVAL", *script(0))[0]]


def _overtaken(place: Place) -> str:
    return (
        f"the rebuild of the store at {place.prefix} stood still for more than {MARK_MS // 1000} s, and is "
        "not ours any more: begin it again"
    )
