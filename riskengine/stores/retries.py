"""Events of a batch that a shared store has met before: which they are, and what is void of the batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from riskengine.features import FeatureSet, Touches
from riskengine.layout import E_RECORD, E_WIDTH, L_ENTITY, RECORD_MASK, RECORD_TIME, Int64s
from riskengine.stores import kept, values, wire
from riskengine.stores.line import Item, Reply
from riskengine.stores.place import Place
from riskengine.stores.requests import Asked
from riskengine.stores.terms import Terms


class Retries(NamedTuple):
    """What a store knew of the events of a batch, under one plan and in one life of its data."""

    place: Place
    features: FeatureSet
    terms: Terms

    def read_marks(self, asked: Asked, reply: Reply, counted: bool) -> None:
        """Find out which events are not new, and void what was planned for them."""
        batch = asked.touches.batch
        told: dict[int, tuple[Item, Item]] = {}  # claim and decision, where an event's own partition knows it
        for call in range(asked.calls):
            part, first, homes = asked.scratch.groups[call, : wire.FIRST_ENTITY].tolist()
            at = int(reply.firsts[call]) + 2
            marks = reply.item(at)
            assert isinstance(marks, bytes), "observe.lua answers marks as a string"
            for c, mark in enumerate(marks):
                if mark == ord("1"):
                    i = int(asked.scratch.claimants[first + c])
                    asked.known.add((i, part))
                    claim, decision = reply.item(at + 1), reply.item(at + 2)
                    if c < homes:
                        told[i] = claim, decision
                    elif isinstance(claim, bytes) and claim[:16] != batch.content[i].tobytes():
                        asked.is_contested = True
                    at += 2
        met: dict[int, Any] = {}
        for i in sorted({i for i, _ in asked.known}):
            claim, decision = told.get(i, (b"", None))
            assert isinstance(claim, bytes), "a claim that is known has a value"
            if not claim:  # it had come to other partitions before, and not to its own
                if counted:
                    met[i] = "undecided"
                asked.resumed = asked.resumed or not counted
                continue
            undone = True
            if claim[:16] != batch.content[i].tobytes():
                met[i] = "conflict"
            elif isinstance(decision, bytes) and decision:
                met[i] = kept.decision_of(decision)
            elif counted:
                met[i] = "undecided"
                first = int.from_bytes(claim[16:24], "little", signed=True)
                # What other partitions do not know they may have known once.
                undone = int(batch.time[i]) - first > self.terms.elsewhere_ms
            elif len(claim) > wire.CLAIM_BYTES:
                asked.forgotten = True
            else:
                asked.resumed, undone = True, False
                self._first_stamp(asked.touches, int.from_bytes(claim[16:24], "little", signed=True))
            if undone and self.terms.mask:
                self._note_undone(asked, i)
        if met or asked.forgotten:
            self._void(asked, list(met) if met else range(batch.n))
        asked.met = met

    def _note_undone(self, asked: Asked, i: int) -> None:
        """Keep what partitions appended of an event that they did not know, though another does."""
        touches = asked.touches
        for e, row in enumerate(self.features.plan.entities.tolist()):
            first, width = row[E_RECORD], row[E_WIDTH]
            key = int(touches.keys[i, e])
            if not key or not width or (i, self.place.part_of(key)) in asked.known:
                continue
            words = touches.records[i, first : first + width]
            head = bytes((values.RECORD, width, 0)) + self.terms.tag.to_bytes(5, "little")
            asked.undone[i, e] = head + words.astype("<i8").tobytes() if words[RECORD_MASK] else b""

    def _first_stamp(self, touches: Touches, time: int) -> None:
        """An event that came without a time was stamped when it first came, and that is its time."""
        if touches.batch.stamped[0]:
            touches.batch.time[0] = time
            touches.cells[0, 0] = time
            for row in self.features.plan.entities:
                if row[E_WIDTH]:
                    touches.records[0, row[E_RECORD] + RECORD_TIME] = time

    def _void(self, asked: Asked, rows: Iterable[int]) -> None:
        """Let events move nothing and ask for nothing, but where it has been appended just now."""
        touches, plan = asked.touches, self.features.plan
        for i in rows:
            touches.masks[i] = 0
            for e, row in enumerate(plan.entities.tolist()):
                key = int(touches.keys[i, e])
                appended = self.terms.mask and (i, self.place.part_of(key)) not in asked.known
                if not appended:
                    asked.asked[i, plan.limits[:, L_ENTITY] == e] = 0
                if row[E_WIDTH] and (not appended or (i, e) in asked.undone):
                    touches.records[i, row[E_RECORD] + RECORD_MASK] = 0

    def keep_found(self, asked: Asked, outcome: Int64s) -> None:
        """Of an event that was entered before: where its record has been folded already, it moves no more."""
        touches, plan = asked.touches, self.features.plan
        found = {
            int(e) for e, state in zip(asked.entities[:, 1], outcome, strict=True) if state == values.STOPPED
        }
        if self.terms.mask:  # a partition that it had not come to before has it now, behind what was read
            parts = (asked.touches.keys[0] & self.terms.mask).tolist()
            found |= {e for e, part in enumerate(parts) if (0, part) not in asked.known}
        for e, row in enumerate(plan.entities):
            if row[E_WIDTH] and e not in found:
                touches.records[0, row[E_RECORD] + RECORD_MASK] = 0
        for limit, row in enumerate(plan.limits):
            if int(row[L_ENTITY]) not in found:
                asked.asked[0, limit] = 0
