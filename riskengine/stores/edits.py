"""Lists and live tables that many engines share: edits made through one script, learned of by everyone.

Every engine keeps them whole. How many edits there were comes with every answer of the store, and one that
has missed some reads them from a log of the latest, or all entries anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from riskengine.features import FeatureSet
from riskengine.stores import Loss, Row, StoreError
from riskengine.stores.cluster import AnyLink
from riskengine.stores.line import Item
from riskengine.stores.lists import Lists
from riskengine.stores.paths import PathEdit, Trail
from riskengine.stores.place import Place, missing_epoch

LOG_EDITS: Final = 1000  # edits that are learned one by one; as edit.lua has it
LOSSES_MS: Final = 900 * 86_400_000  # no window reaches further back
OF_LOSSES: Final = msgspec.msgpack.encode(("loss", "", "", 0))[:6] + b"*"  # as their names begin
# Answers are flat arrays here, and HSCAN's is not.
LOSSES: Final = """
local found = redis.call('HSCAN', KEYS[1], ARGV[1], 'MATCH', ARGV[2], 'COUNT', 1000)
return {found[1], unpack(found[2])}
"""
TOGETHER: Final = 100  # edits of one call: the server does nothing else meanwhile

# Which, name, entity (of a list), key. A path has the name of its list, a slash, and its id; a loss, an id.
Name = tuple[Literal["list", "table", "path", "loss"], str, str, int]
_Change = tuple[Name, Any]


class Edits:
    """What is known of lists and live tables, and of losses that some engine has noticed.

    `tables` and `losses` are replaced as a whole where they change.
    """

    def __init__(self, features: FeatureSet, link: AnyLink, place: Place) -> None:
        self.lists = Lists(features)
        self.tables: dict[str, dict[int, Row]] = {}
        self.losses: tuple[Loss, ...] = ()
        self._losses: dict[str, Loss] = {}  # by id
        self._link = link
        self._place = place
        self._known = -1  # how many edits are

    def begin(self, place: Place) -> None:
        """Know nothing of a life of the data that is not the one before."""
        if place != self._place:
            self._place, self._known = place, -1

    def catch_up(self, there: int) -> None:
        """Learn of those made since the last look, where the store has another number of them."""
        if there != self._known:
            self._learn()

    def look(self) -> None:
        """Ask how many there are, and learn of those not known."""
        self._learn()

    def edit(self, name: Name, entry: Mapping[str, Any] | None) -> bool:
        """Make an edit (None removes) and learn of those of others; whether there was an entry before."""
        return self._make([(name, entry)]) == b"1"

    def lose(self, name: str, loss: Loss) -> None:
        """Let every engine know what the servers lost, once by its name, and forget what was long ago."""
        old = [id for id, one in self._losses.items() if one.time < loss.time - LOSSES_MS]
        made: list[tuple[Name, Any]] = [(("loss", id, "", 0), None) for id in old]
        self._make([*made, (("loss", name, "", 0), msgspec.structs.asdict(loss))])

    def spread(self, edits: Sequence[PathEdit]) -> None:
        """Enter and take out paths."""
        made: list[tuple[Name, Any]] = [
            (("path", f"{name}/{id}", entity, key), path) for (name, entity, key), id, path in edits
        ]
        for start in range(0, len(made), TOGETHER):
            self._make(made[start : start + TOGETHER])

    def _make(self, edits: Sequence[tuple[Name, Any]]) -> bytes:
        place, encode = self._place, msgspec.msgpack.encode
        said: list[bytes] = []
        for name, entry in edits:
            said += (encode(name), encode(entry) if entry is not None else b"", encode((name, entry)))
        answer = self._link.call(
            "EVALSHA", self._link.names["edit"], 4, place.epoch_key, place.name("edits"),
            place.name("entries"), place.name("log"), place.epoch, *said,
        )[0]  # fmt: skip
        if not isinstance(answer, bytes):
            raise StoreError("epoch", missing_epoch(place))
        self._learn()
        return answer

    def _learn(self) -> None:
        """From the log of the latest, else from all entries."""
        place = self._place
        epoch, edits = self._link.call("MGET", place.epoch_key, place.name("edits"))
        if epoch != place.epoch:
            raise StoreError("epoch", missing_epoch(place))
        there = int(edits or b"0")
        if there == self._known:
            return
        missed = there - self._known if self._known >= 0 else LOG_EDITS + 1
        if missed <= LOG_EDITS:
            # Edits made meanwhile may come along: to take one in twice changes nothing.
            log = self._link.call("LRANGE", place.name("log"), -missed, -1)
            changes = [msgspec.msgpack.decode(item, type=_Change) for item in log if isinstance(item, bytes)]
        else:
            items = self._link.call("HGETALL", place.name("entries"))
            self.lists.clear()
            self._losses.clear()
            self.tables, self.losses = {}, ()
            changes = [
                (msgspec.msgpack.decode(field, type=Name), msgspec.msgpack.decode(value))
                for field, value in zip(items[::2], items[1::2], strict=True)
                if isinstance(field, bytes) and isinstance(value, bytes)
            ]
        self._known = there
        for (kind, name, entity, key), entry in changes:
            if kind == "list" and entry is not None:
                self.lists.put((name, entity, key), entry)
            elif kind == "list":
                self.lists.delete((name, entity, key))
            elif kind == "path":
                name, _, id = name.rpartition("/")
                path = None if entry is None else msgspec.convert(entry, Trail)
                self.lists.apply(PathEdit((name, entity, key), id, path))
            elif kind == "loss":
                self._losses.pop(name, None)
                if entry is not None:
                    self._losses[name] = msgspec.convert(entry, Loss)
                self.losses = tuple(self._losses.values())
            else:
                rows = {k: row for k, row in self.tables.get(name, {}).items() if k != key}
                self.tables = {**self.tables, name: rows if entry is None else {**rows, key: entry}}


def losses_of(link: AnyLink, place: Place) -> list[Loss]:
    """What engines have told of losses, in this life of the data."""
    found: dict[bytes, Loss] = {}
    cursor: Item = b"0"
    while True:
        cursor, *items = link.call("EVAL", LOSSES, 1, place.name("entries"), cursor or b"0", OF_LOSSES)
        for field, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(field, bytes) and isinstance(value, bytes):
                found[field] = msgspec.msgpack.decode(value, type=Loss)
        if cursor == b"0":
            return list(found.values())
