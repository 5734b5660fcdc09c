"""A judged batch on its way to the journal: frozen when it is decided, masked and encoded by the writer.

On the caller's side that is a copy of the row's columns, and of the few fields that the policy does not know.
A lone event is written at once, from the arrays of the room that the next one is judged in: making it arrays
of its own took 120 of its 190 us, and a block of its own cost the writer 100 more.
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
from riskengine.event import Batch, Event
from riskengine.features import Strings, Touches
from riskengine.journal.blocks import Arrays, Block, Record, join, pack, room_for, unpack, writing
from riskengine.journal.sealing import Sealer
from riskengine.kernel import bind

_JSON = msgspec.json.Encoder()
_NOTHING = np.empty(0, np.uint8)
_NEVER = 2**63 - 1
_LINE_BYTES_MAX = 4_096  # of a decision that is written at once


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

    It holds on to the arrays of the batch, so these must not be used again for another, unless it is
    `lasting`: then all is written here. With a `sealer` what is personal is kept too, encrypted.
    """

    __slots__ = (
        "_block",
        "_cells",
        "_decisions",
        "_events",
        "_extras",
        "_found",
        "_masks",
        "_now",
        "_policy",
        "_rows",
        "_sealer",
        "event_ids",
        "record",
    )

    def __init__(
        self,
        policy: Policy,
        found: Touches,
        decisions: Sequence[Decision],
        now: int | NDArray[np.int64],
        met: Collection[int] = (),
        sealer: Sealer | None = None,
        lasting: bool = False,
    ) -> None:
        batch = found.batch
        extras = policy.masking.extras(batch)
        self._block: Block | None = None
        self.record: Record | None = None
        if lasting and not (met or extras or sealer):
            self.record = _written(policy, found, decisions[0], now)
            if self.record is not None:
                self.event_ids = batch.ids.copy()
                return
        self._rows: NDArray[np.int64] | None = None
        if met:  # they are journaled already
            left = [i for i in range(batch.n) if i not in met]
            decisions = [decisions[i] for i in left]
            self._rows = np.array(left, np.int64)
        self.event_ids = [decision.event_id for decision in decisions] if met else batch.ids
        self._policy = policy
        self._found = batch, found.strings
        self._decisions = decisions
        self._now = now
        self._cells = found.cells.take(policy.row_columns, 0)  # by [] it takes 4 us longer for a lone event
        self._masks = found.masks.copy()
        # The caller may change its dicts from now on.
        self._extras = extras
        self._sealer = sealer
        self._events = [_copy(event) for event in batch.raw] if sealer is not None else None
        if lasting:
            self.event_ids = list(self.event_ids)
            self._block = self.block()

    def block(self) -> Block:
        """All as the journal writes it, with nothing raw about a person in it."""
        if self.record is not None:
            return join(self.event_ids, [self.record])
        if self._block is not None:
            return self._block
        policy, (batch, strings) = self._policy, self._found
        now = np.full(batch.n, self._now) if isinstance(self._now, int) else self._now
        cells, masks, rows = self._cells, self._masks, self._rows
        extras = self._extras
        if rows is not None:
            batch, cells, masks, now = batch.take(rows), cells[:, rows].copy(), masks[rows], now[rows]
            strings = Strings(strings.off[rows], strings.len[rows], strings.hash[rows], strings.text)
            extras = {at: extras[i] for at, i in enumerate(rows.tolist()) if i in extras}
        lines = _JSON.encode_lines(
            self._decisions
            if not self._decisions or self._decisions[0].features is msgspec.UNSET
            else [msgspec.structs.replace(decision, features=msgspec.UNSET) for decision in self._decisions]
        )
        arrays = _arrays(
            policy, batch, strings, masks, bytearray(lines), _joined(batch.n, extras), cells, now
        )
        body = pack(policy.masking.head, arrays)
        sealed = None
        if self._sealer is not None and self._events is not None:
            events = self._events if rows is None else [self._events[i] for i in rows.tolist()]
            hide = policy.masking.personal_of
            personal = [hide(e, t) for e, t in zip(events, batch.type_index.tolist(), strict=True)]
            sealed = self._sealer.seal(personal, self.event_ids)
        return Block(self.event_ids, int(now.min(initial=_NEVER)), int(now.max(initial=0)), body, sealed)

    def entries(self) -> list[Entry]:
        """What can be read of `block`."""
        return list(unpack(self.block().body, None))


class _Desk:
    """Where the record of one lone event after another is written, from the arrays of their room."""

    def __init__(self, policy: Policy, found: Touches) -> None:
        batch, strings = found.batch, found.strings
        self.line = bytearray(_LINE_BYTES_MAX)
        self.cells = np.empty((len(policy.row_columns), 1))
        self.now = np.empty(1, np.int64)
        nothing = _joined(1, {})
        arrays = _arrays(policy, batch, strings, found.masks, self.line, nothing, self.cells, self.now)
        # No field's text is longer than all of them, which lie in a buffer of this event.
        self.out = bytearray(room_for(arrays) + len(arrays.text) * (1 + arrays.fields.shape[1]))
        self.write = writing(arrays, np.frombuffer(self.out, np.uint8), np.zeros(2, np.uint32), bind)


def _arrays(
    policy: Policy,
    batch: Batch,
    strings: Strings,
    masks: NDArray[np.int64],
    lines: bytearray,
    extras: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]],
    cells: NDArray[np.float64],
    now: NDArray[np.int64],
) -> Arrays:
    """What a block is packed from; `lines` are the decisions as JSON, `extras` what `_joined` made."""
    ends, counts, more = extras
    return Arrays(
        np.frombuffer(lines, np.uint8),
        policy.masking.table,
        policy.masking.counts,
        batch.type_index,
        batch.stamped,
        batch.numbers,
        batch.str_off,
        batch.str_len,
        batch.str_hash,
        batch.text,
        more,
        ends,
        counts,
        policy.row_places,
        cells,
        strings.off,
        strings.len,
        strings.hash,
        strings.text,
        policy.layout_text,
        policy.mark_words,
        batch.keys,
        masks,
        now,
        batch.content,
    )


def _written(
    policy: Policy, found: Touches, decision: Decision, now: int | NDArray[np.int64]
) -> Record | None:
    """The record of a lone event, or None where it is too long to be written at the desk, or has none."""
    if found.lone is None:
        return None
    desk = found.lone.writing
    if not isinstance(desk, _Desk):
        desk = found.lone.writing = _Desk(policy, found)
    if decision.features is not msgspec.UNSET:
        decision = msgspec.structs.replace(decision, features=msgspec.UNSET)
    line = _JSON.encode_lines((decision,))
    if len(line) > _LINE_BYTES_MAX:
        return None
    at_ms = now if isinstance(now, int) else int(now[0])
    desk.line[: len(line)] = line
    desk.now[0] = at_ms
    found.cells.take(policy.row_columns, 0, desk.cells)
    return Record(policy.masking.head, bytes(memoryview(desk.out)[: desk.write()]), at_ms)


def _joined(
    n: int, extras: dict[int, tuple[int, bytes]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    counts, sizes = np.zeros(n, np.int64), np.zeros(n, np.int64)
    if not extras:
        return counts, sizes, _NOTHING
    for i, (count, data) in extras.items():
        counts[i], sizes[i] = count, len(data)
    joined = bytearray(b"".join(data for _, (_, data) in sorted(extras.items())))
    return np.cumsum(sizes), counts, np.frombuffer(joined, np.uint8)


def _copy(event: Event) -> Event:
    try:
        return dict(event)
    except Exception:  # a mapping of its own kind, which was read before and now fails: it has been counted
        return {}
