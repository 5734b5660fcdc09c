"""What denied events are to give back on a cluster, noted beside their claims until it is done.

There a decision is in the event's own partition, and what the event held is in those of entities. An engine
that is killed between the two would leave it held: so it is noted first, and the note is removed when the
last of the partitions has answered. What notes are left is given back when an operator asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from riskengine.features import FeatureSet
from riskengine.layout import L_ENTITY
from riskengine.stores.cluster import AnyLink
from riskengine.stores.line import Item
from riskengine.stores.past import Past
from riskengine.stores.place import Place
from riskengine.stores.requests import Asked
from riskengine.stores.resp import command
from riskengine.stores.scanning import by_part
from riskengine.stores.terms import Terms
from riskengine.stores.undecided import UNDECIDED_MS, claim_of, give_back, giving_back

# By more than any engine stands still it is less than what says that it was done: nothing is done twice.
NOTED_MS: Final = UNDECIDED_MS // 2


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """What is to be given back of one limit: a record for the value of an entity."""

    limit: str
    amount: int
    entity: str
    key: int
    record: bytes


class Owed(msgspec.Struct, frozen=True):
    """An event that was denied, and what it held all the same; its time, and how long ago it came (ms)."""

    claim: bytes
    time: int
    age_ms: int
    pieces: Sequence[Piece]


class _Denied(NamedTuple):
    """An event of a batch, and what it gives back when its decision stands."""

    claim: bytes
    time: int
    pieces: list[Piece]


class Owing(NamedTuple):
    """What events give back on a cluster under one plan."""

    link: AnyLink
    place: Place
    features: FeatureSet
    terms: Terms

    def denied(self, asked: Asked, rows: Sequence[int]) -> Callable[[int, list[Item]], None]:
        """Note what events are to give back; decisions come next. Returns what is to be told of those.

        That is for `tell_all`: it has partitions give back what is of events whose decision stands. It gets
        the number of a call of conclude.lua, and its answer: a digit for each of its events.
        """
        homes = (asked.claims[:, 0] & self.terms.mask).tolist()
        owing = set(np.nonzero(asked.give_back)[0].tolist())
        calls: dict[int, list[_Denied | None]] = {}  # by partition, in the order of the calls
        for i in rows:
            one = self._denied(asked, i) if i in owing else None
            calls.setdefault(homes[i], []).append(one)
            if one is not None:
                said = msgspec.msgpack.encode((one.time, one.pieces))
                self.link.later(command(("SET", self._note(one.claim), said, "PX", NOTED_MS)), homes[i])
        in_order = list(calls.values())

        def after(call: int, answer: list[Item]) -> None:
            stood = answer[0] if isinstance(answer[0], bytes) else b""
            for mark, one in zip(stood, in_order[call], strict=False):
                if one is not None and mark == ord("1"):
                    self._tell(one)

        return after

    def give_back(self, past: Past, older_ms: int) -> list[Owed]:
        """Give back what notes are left of events that came at least so long ago; return it in their order.

        Engines that are at it just now do no harm: each of it is given back once.
        """
        found: list[Owed] = []
        for part, names in by_part(self.link, self.place, b"o") if self.terms.mask else ():
            for name in names:
                said, left = self.link.call("GET", name, at=part)[0], self.link.call("PTTL", name, at=part)[0]
                if not isinstance(said, bytes) or not isinstance(left, int) or NOTED_MS - left < older_ms:
                    continue
                claim = claim_of(name)
                known = past.recall(claim)
                if known is None:  # it is not decided: it may be listed as such
                    continue
                time, pieces = msgspec.msgpack.decode(said, type=tuple[int, list[Piece]])
                held = known.trace(self.features).holds
                ours = [piece for piece in pieces if piece.limit not in held]  # else another decision stood
                given: list[Piece] = []
                for there, some in self._by_part(ours).items():
                    if give_back(self.link, self.place, claim, there, records_of(some)):
                        given += some
                self.link.call("DEL", name, at=part)
                if given:
                    found.append(Owed(claim, time, NOTED_MS - left, given))
        return sorted(found, key=lambda one: (one.time, one.claim))

    def _denied(self, asked: Asked, i: int) -> _Denied:
        features, touches, batch = self.features, asked.touches, asked.touches.batch
        claim, time = batch.claim[i].tobytes(), int(batch.time[i])
        pieces: list[Piece] = []
        for limit in np.flatnonzero(asked.give_back[i]).tolist():
            e, amount = int(features.plan.limits[limit, L_ENTITY]), int(asked.amounts[i, limit])
            record = self.terms.release(limit, time, claim, amount, int(asked.buckets[i, limit]))
            key = int(touches.keys[i, e])
            pieces.append(Piece(features.limit_names[limit], amount, features.entities[e], key, record))
        return _Denied(claim, time, pieces)

    def _tell(self, one: _Denied) -> None:
        """Tell partitions; when all of them have answered nothing is owed any more."""
        shares = self._by_part(one.pieces)
        left = len(shares)

        def answered(_: list[Item]) -> None:
            nonlocal left
            left -= 1
            if not left:
                self.link.later(command(("DEL", self._note(one.claim))), self.place.part_of(one.claim))

        for part, pieces in shares.items():
            words = giving_back(self.link, self.place, one.claim, part, records_of(pieces))
            self.link.later(command(words), part, after=answered)

    def _note(self, claim: bytes) -> bytes:
        return self.place.claim_name(b"o", claim)

    def _by_part(self, pieces: Iterable[Piece]) -> dict[int, list[Piece]]:
        shares: dict[int, list[Piece]] = {}
        for piece in pieces:
            shares.setdefault(self.place.part_of(piece.key), []).append(piece)
        return shares


def records_of(pieces: Iterable[Piece]) -> list[tuple[str, int, bytes]]:
    """By entity and key."""
    return [(piece.entity, piece.key, piece.record) for piece in pieces]
