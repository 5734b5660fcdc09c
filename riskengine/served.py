"""A judged batch on its way to the journal: frozen when it is decided, masked and encoded by the writer.

On the caller's side that is a copy of the row's columns and a shallow one of each event.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from riskengine.compiled import Policy
from riskengine.decision import Decision
from riskengine.entries import Entry
from riskengine.event import Event
from riskengine.features import Touches, text_at

_JSON = msgspec.json.Encoder()
_PACK = msgspec.msgpack.Encoder()


class Moved(NamedTuple):
    """`Entry.trace` as MessagePack keeps it: what an event moved, and when it was judged."""

    layout: str  # fingerprint of the plan that gives entities and cells their order
    keys: dict[int, int]  # of the event's entities, by their marks (`Policy.entity_marks`)
    masks: list[int]  # by entity: cells moved
    now_ms: int


_TRACE = msgspec.msgpack.Decoder(Moved)


def read_trace(trace: bytes) -> Moved:
    """Read what `Served` wrote. Raises msgspec.DecodeError."""
    return _TRACE.decode(trace)


class Served:
    """Decisions (n) with all that the journal keeps beside them: an `entries.Pending`.

    It holds on to the arrays of the batch, so these must not be used again for another.
    """

    __slots__ = (
        "_cells",
        "_decisions",
        "_events",
        "_found",
        "_masks",
        "_met",
        "_now",
        "_policy",
        "event_ids",
    )

    def __init__(
        self,
        policy: Policy,
        found: Touches,
        decisions: Sequence[Decision],
        now: int | NDArray[np.int64],
        met: Collection[int] = (),
    ) -> None:
        raw = found.batch.raw
        ids = found.batch.ids
        self.event_ids = ids if not met else [ids[i] for i in range(len(ids)) if i not in met]
        self._met = met
        self._policy = policy
        self._found = found.batch, found.strings
        self._decisions = decisions
        self._now = now
        self._cells = found.cells.take(policy.row_columns, 0)  # by [] it takes 4 us longer for a lone event
        self._masks = found.masks.copy()
        # The caller may change its dicts from now on; the rows of an Arrow batch never change.
        self._events = [_copy(event) for event in raw] if isinstance(raw, list) else raw

    def entries(self) -> list[Entry]:
        """One entry a decision, with nothing raw about a person in it."""
        policy, (batch, strings) = self._policy, self._found
        contents = batch.content.tobytes()
        rows: list[list[float | str | None]] = self._cells.T.tolist()
        for place, column in policy.row_texts:
            for i, row in enumerate(rows):
                row.insert(place, text_at(strings, column, i))
        events = policy.masking.mask(batch, self._events)
        layout, marks = policy.features.fingerprint, policy.entity_marks
        nows = [self._now] * batch.n if isinstance(self._now, int) else self._now.tolist()
        return [
            Entry(
                event_id=decision.event_id,
                decision_id=decision.decision_id,
                event_time_ms=decision.time,
                type=policy.schema.types[type_index],
                action=decision.action,
                risk=decision.risk,
                decision=_JSON.encode(msgspec.structs.replace(decision, features=msgspec.UNSET)),
                event=event,
                row=_PACK.encode(row),
                policy=policy.fingerprint,
                features=layout,
                flags=decision.flags,
                trace=_PACK.encode(
                    Moved(layout, {m: key for m, key in zip(marks, keys, strict=True) if key}, masks, now)
                ),
                content=contents[16 * i : 16 * i + 16],
            )
            for i, (decision, type_index, event, row, keys, masks, now) in enumerate(
                zip(
                    self._decisions,
                    batch.type_index.tolist(),
                    events,
                    rows,
                    batch.keys.tolist(),
                    self._masks.tolist(),
                    nows,
                    strict=True,
                )
            )
            if i not in self._met
        ]


def _copy(event: Event) -> Event:
    try:
        return dict(event)
    except Exception:  # a mapping of its own kind, which was read before and now fails: it has been counted
        return {}
