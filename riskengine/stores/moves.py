"""What is done for an event off the hot path, once each: claims entered together with what they move."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from riskengine.stores import StoreError
from riskengine.stores.cluster import AnyLink
from riskengine.stores.line import Item
from riskengine.stores.place import Place
from riskengine.stores.requests import together
from riskengine.stores.resp import command
from riskengine.stores.terms import Terms


class Entry(NamedTuple):
    """A claim to be entered: the letter of its name, the event's, its value, and what its name ends with."""

    letter: bytes
    key: bytes
    value: bytes
    end: bytes = b""


Pieces = Mapping[tuple[int, int], Sequence[tuple[int, bytes]]]  # by entity and key: number of claim, record


class Moved(NamedTuple):
    """What calls off the hot path came to: which claims were new, by number and partition; the values of
    those that were not; and what entities were before.
    """

    new: dict[tuple[int, int], bool]
    known: dict[tuple[int, int], Item]
    spots: list[tuple[int, int]]
    values: list[Item]


class Moves(NamedTuple):
    """Calls of observe.lua off the hot path. `other_life` is the error where the epoch is not ours."""

    link: AnyLink
    place: Place
    terms: Terms
    other_life: Callable[[Item], StoreError]

    def together(self, claims: Sequence[Entry], pieces: Pieces) -> Moved:
        """Call observe.lua off the hot path: enter claims, and append to entities what is of new ones.

        On a cluster each partition enters those that it appends something of.
        """
        groups: dict[int, list[tuple[int, int]]] = {}
        for spot in pieces:
            groups.setdefault(self.place.part_of(spot[1]), []).append(spot)
        parts = sorted(groups)
        calls = []
        for part in parts:
            numbers = sorted({number for spot in groups[part] for number, _ in pieces[spot]})
            calls.append((part, numbers if self.terms.mask else range(len(claims)), groups[part]))
        return self._called(claims, pieces, calls)

    def once(self, claim: Entry, pieces: Pieces) -> tuple[bool, Item]:
        """Enter one claim, and append to entities where it is new: whether it was, or its value.

        On a cluster the event's own partition says so, and the others are asked then; also where the claim
        was entered with this very value before: what is called again finishes what a crash left undone.
        """
        if not self.terms.mask:
            moved = self._called([claim], pieces, [(0, range(1), list(pieces))])
            return moved.new[0, 0], moved.known.get((0, 0))
        part = self.place.part_of(claim.key)
        moved = self._called([claim], {}, [(part, range(1), [])])
        new, known = moved.new[0, part], moved.known.get((0, part))
        if pieces and (new or known == claim.value):
            end = claim.end + b".there"  # that it is entered says nothing of what others have appended
            self.together([claim._replace(end=end)], pieces)
        return new, known

    def _called(
        self,
        claims: Sequence[Entry],
        pieces: Pieces,
        calls: Sequence[tuple[int, Sequence[int], Sequence[tuple[int, int]]]],
    ) -> Moved:
        """`calls` are partition, numbers of claims, and entities."""
        texts = [self.request(claims, pieces, *call) for call in calls]
        reply = self.link.ask_all(*together(texts, [part for part, _, _ in calls]))
        moved = Moved({}, {}, [], [])
        for call, (part, numbers, spots) in enumerate(calls):
            at = int(reply.firsts[call])
            if reply.item(at) != self.place.epoch:
                raise self.other_life(reply.item(at))
            marks = reply.item(at + 2)
            assert isinstance(marks, bytes), "observe.lua answers marks as a string"
            at += 3
            for c, number in enumerate(numbers):
                moved.new[number, part] = not marks or marks[c] == ord("0")
                if not moved.new[number, part]:
                    moved.known[number, part] = reply.item(at)
                    at += 2
            moved.spots.extend(spots)
            moved.values.extend(reply.item(at + k) for k in range(len(spots)))
        return moved

    def request(
        self,
        claims: Sequence[Entry],
        pieces: Pieces,
        part: int,
        numbers: Sequence[int],
        spots: Sequence[tuple[int, int]],
    ) -> bytes:
        """One call of observe.lua, with claims by their numbers."""
        recipe, records = b"", []
        places = {number: at for at, number in enumerate(numbers, 1)}
        for spot in spots:
            parts = pieces[spot]
            recipe += len(parts).to_bytes(2, "little")
            for number, piece in parts:
                recipe += places[number].to_bytes(2, "little") + len(piece).to_bytes(2, "little")
            records.append(b"".join(piece for _, piece in parts))
        entered = [claims[number] for number in numbers]
        place = self.place
        return command(
            ("EVALSHA", self.link.names["observe"], 2 + len(entered) + len(spots),
             place.epoch_name(part), place.within(part) + b"edits",
             *(place.claim_name(c.letter, c.key, part) + c.end for c in entered),
             *(place.entity_name(self.terms.features.entities[e], key) for e, key in spots),
             place.epoch, len(entered), len(entered), *self.terms.lives, bytes(e for e, _ in spots), recipe,
             *(c.value for c in entered), *records)
        )  # fmt: skip
