"""What an event that nobody decided may hold of limits: in the tails of entities, and beside its claim.

A reservation stands in the tail of its entity until the tail is folded; compact.lua then keeps, beside the
claim of an event that has not been decided, what would give it back. Both are read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from riskengine import packing
from riskengine.stores import values, wire
from riskengine.stores.line import Item
from riskengine.stores.place import kind_of, read_word
from riskengine.stores.plans import LaidOut, Plans
from riskengine.stores.resp import as_array


class Hold(NamedTuple):
    """What an event holds of a limit. `release` is the record that gives it back."""

    claim: bytes  # empty where it was kept beside the claim
    entity: str
    key: int
    cell: int  # of the plan at hand, by entity
    time: int
    amount: int
    release: bytes


def held_of(kept: Item, plans: Plans, plan: LaidOut) -> Iterator[Hold]:
    """What is kept beside a claim (compact.lua), as far as the plan at hand has it too."""
    if not isinstance(kept, bytes):
        return
    kinds = {kind_of(name): name for name in plan.entities}
    for at in range(0, len(kept), wire.HELD_BYTES):
        piece = kept[at : at + wire.HELD_BYTES]
        name, record = kinds.get(piece[1:3]), piece[3 + wire.KEY_CHARS :]
        if name is None or len(record) != values.BOOKING:
            continue
        own = plans.adapted(record, name, plan)
        if own:
            key = read_word(piece[3 : 3 + wire.KEY_CHARS])
            words = np.frombuffer(own, "<i8", offset=values.HEAD).tolist()
            yield Hold(b"", name, key, own[2], words[0], words[2], own)


def holds_in(value: Item, entity: str, key: int, plans: Plans, plan: LaidOut) -> Iterator[Hold]:
    """Every reservation that stands in a value's tail and was granted. ValueError for a broken value."""
    if not isinstance(value, bytes) or entity not in plan.entities:
        return
    e = plan.entities.index(entity)
    data, at = plans.fold(value, entity, plan)
    end = len(data)
    while at < end:
        if data[at] == values.RESERVE and packing.get_raw(data, at + values.AT_MOST, 8) == values.GRANTED:
            out = np.empty(wire.HELD_BYTES, np.uint8)
            kinds = as_array(b"".join(kind_of(name) for name in plan.entities))
            wire.put_held(out, 0, plan.flat, kinds, key, e, data, at)
            release = out[3 + wire.KEY_CHARS :].tobytes()
            claim = (
                data[at + values.HEAD + 8 : at + values.HEAD + 16].tobytes()
                + data[at + values.AT_CLAIM : at + values.AT_CLAIM + 8].tobytes()
            )
            words = np.frombuffer(release, "<i8", offset=values.HEAD).tolist()
            yield Hold(claim, entity, key, int(data[at + 2]), words[0], words[2], release)
        at += values.HEAD + 8 * int(data[at + 1])
