"""What the shared store keeps of a decided event, for the label, release or follow-up that comes later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from riskengine import packing
from riskengine.features import FeatureSet
from riskengine.layout import E_WIDTH, FRAUD, NONE, RECORD_HASH, RECORD_MASK, RECORD_SLOTS, RECORD_TIME
from riskengine.stores import values, wire
from riskengine.stores.line import Item
from riskengine.stores.plans import LaidOut, Plans
from riskengine.stores.resp import as_array
from riskengine.stores.traces import Trace


@dataclass(frozen=True, slots=True)
class Known:
    """What is kept of a decided event (conclusions.put_trace), by the plan it was written under."""

    plan: LaidOut
    time: int
    event: int
    keys: Mapping[int, int]
    masks: Mapping[int, int]
    slots: Mapping[int, list[int]]
    holds: Sequence[tuple[int, int, int]]  # limit, bucket, amount
    follows: bytes | None
    settled: Item  # by whom its holds are: a release, or an event that follows it

    @classmethod
    def read(cls, claim: bytes, key: bytes, settled: Item, plans: Plans) -> Known | None:
        """Read a claim's value; None where its plan is not known."""
        data = as_array(claim)
        end = len(claim)
        laid_out = plans.of(packing.get_raw(data, wire.CLAIM_BYTES, 5))
        if laid_out is None:
            return None
        labelled = bool(laid_out.plan.kinds[FRAUD:].any())
        at = wire.CLAIM_BYTES + 8
        keys: dict[int, int] = {}
        masks: dict[int, int] = {}
        slots: dict[int, list[int]] = {}
        for _ in range(claim[at]):
            e = claim[at + 1]
            keys[e] = packing.get_raw(data, at + 2, 8)
            masks[e], at = packing.get_varint(data, at + 10, end)
            slots[e] = []
            if labelled and masks[e]:
                for _ in range(RECORD_SLOTS, int(laid_out.plan.entities[e, E_WIDTH])):
                    word, at = packing.get_varint(data, at, end)
                    slots[e].append(word)
            at -= 1
        at += 1
        holds = []
        count = claim[at]
        at += 1
        for _ in range(count):
            limit = claim[at]
            bucket, at = packing.get_varint(data, at + 1, end)
            amount, at = packing.get_varint(data, at, end)
            holds.append((limit, bucket, amount))
        return cls(
            laid_out,
            int.from_bytes(claim[16:24], "little", signed=True),
            int.from_bytes(key[:8], "little", signed=True),
            keys, masks, slots, holds, claim[at : at + 16] or None, settled,
        )  # fmt: skip

    def trace(self, features: FeatureSet) -> Trace:
        """The same in the names of another plan: of the cells moved those that it has too."""
        old = self.plan
        moved = {}
        for e in self.keys:
            name = old.entities[e]
            texts = {str(s.key[0]) for c, s in enumerate(old.specs[e]) if (self.masks[e] >> c) & 1}
            own = features.specs[features.entities.index(name)] if name in features.entities else ()
            moved[name] = frozenset(spec.key for spec in own if repr(spec.key) in texts)
        return Trace(
            {old.entities[e]: key for e, key in self.keys.items()},
            moved,
            {old.limit_names[limit]: (bucket, amount) for limit, bucket, amount in self.holds},
        )

    def labelled(self, new: LaidOut, plans: Plans, kind: int, sign: int) -> Iterator[tuple[int, int, bytes]]:
        """The records that a label of a kind moves: entity of another plan, key, record.

        By that plan, or where they are partial there by the event's own: their readers see that they are.
        """
        old = self.plan
        for e, key in self.keys.items():
            mask = self.masks[e] & int(old.plan.kinds[kind, e])
            if not mask:
                continue
            record = np.full(int(old.plan.entities[e, E_WIDTH]), NONE, np.int64)
            record[RECORD_TIME], record[RECORD_HASH], record[RECORD_MASK] = self.time, self.event, mask | sign
            record[RECORD_SLOTS : RECORD_SLOTS + len(self.slots[e])] = self.slots[e]
            head = bytes((values.RECORD, len(record), 0)) + old.tag.to_bytes(5, "little")
            piece = head + record.astype("<i8").tobytes()
            own = plans.adapted(piece, old.entities[e], new)
            if own:
                partial = own[2]
                yield new.entities.index(old.entities[e]), key, piece if partial else own
