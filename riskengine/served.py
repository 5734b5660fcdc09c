"""A judged batch on its way to the journal: masked and encoded where it was judged, from the very arrays.

The writer did this once, and the two threads took the interpreter from each other all the time: of a server
on one core that was 12 us a request more. A lone event is written from the arrays of the room that the next
one is judged in: making it arrays of its own took 120 of its 190 us. The writer seals, where there is a key.
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

    `left_out` are rows that it keeps nothing of. Nothing of the batch is held on to but, with a `sealer`,
    copies of the events: what is personal in them is kept too, encrypted.
    """

    __slots__ = ("_personal", "_record", "event_ids", "lines")

    def __init__(
        self,
        policy: Policy,
        found: Touches,
        decisions: Sequence[Decision],
        left_out: Collection[int],
        now: int | NDArray[np.int64],
        sealer: Sealer | None = None,
    ) -> None:
        batch = found.batch
        extras = policy.masking.extras(batch)
        self._personal: _Personal | None = None
        if found.lone is not None and not (left_out or extras or sealer):
            line = _lines(decisions)
            if len(line) <= _LINE_BYTES_MAX:
                self.lines = line
                self._record = _written(policy, found, line, now)
                self.event_ids = batch.ids.copy()
                return
        rows: list[int] | None = None
        if left_out:
            rows = [i for i in range(batch.n) if i not in left_out]
            decisions = [decisions[i] for i in rows]
        self.event_ids = [batch.ids[i] for i in rows] if rows is not None else list(batch.ids)
        if sealer is not None:
            places = range(batch.n) if rows is None else rows
            events = [(_copy(batch.raw[i]), int(batch.type_index[i])) for i in places]
            self._personal = _Personal(policy, sealer, events)
        self.lines = _lines(decisions)  # JSON of the decisions, without features
        self._record = _encoded(policy, found, self.lines, now, extras, rows)

    @property
    def record(self) -> Record | None:
        """What there is to join to others: None where something is sealed with it."""
        return self._record if self._personal is None else None

    def block(self) -> Block:
        """All as the journal writes it, with nothing raw about a person in it."""
        block = join(self.event_ids, [self._record])
        if self._personal is None:
            return block
        return msgspec.structs.replace(block, sealed=self._personal.sealed(self.event_ids))

    def entries(self) -> list[Entry]:
        """What can be read of `block`."""
        return list(unpack(self.block().body, None))


class _Personal(NamedTuple):
    """Events, with the numbers of their types, that are to be sealed."""

    policy: Policy
    sealer: Sealer
    events: list[tuple[Event, int]]

    def sealed(self, event_ids: list[str]) -> bytes:
        hide = self.policy.masking.personal_of
        return self.sealer.seal([hide(event, kind) for event, kind in self.events], event_ids)


def _encoded(
    policy: Policy,
    found: Touches,
    lines: bytes,
    now: int | NDArray[np.int64],
    extras: dict[int, tuple[int, bytes]],
    rows: list[int] | None,
) -> Record:
    """The record of a batch, or of some `rows` of it."""
    batch, strings, masks = found.batch, found.strings, found.masks
    cells = found.cells.take(policy.row_columns, 0)  # by [] it takes 4 us longer for a lone event
    nows = np.full(batch.n, now) if isinstance(now, int) else now
    if rows is not None:
        at = np.array(rows, np.int64)
        batch, cells, masks, nows = batch.take(at), cells[:, at].copy(), masks[at], nows[at]
        strings = Strings(strings.off[at], strings.len[at], strings.hash[at], strings.text)
        extras = {place: extras[i] for place, i in enumerate(rows) if i in extras}
    more = _joined(batch.n, extras)
    arrays = _arrays(policy, batch, strings, masks, bytearray(lines), more, cells, nows)
    body, ends = pack(arrays)
    first, last = int(nows.min(initial=_NEVER)), int(nows.max(initial=0))
    return Record(policy.masking.head, body, ends, first, last)


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


def _lines(decisions: Sequence[Decision]) -> bytes:
    if any(decision.features is not msgspec.UNSET for decision in decisions):
        decisions = [msgspec.structs.replace(decision, features=msgspec.UNSET) for decision in decisions]
    return _JSON.encode_lines(decisions)


def _written(policy: Policy, found: Touches, line: bytes, now: int | NDArray[np.int64]) -> Record:
    """The record of a lone event, whose decision is not too long to be written at the desk."""
    assert found.lone is not None
    desk = found.lone.writing
    if not isinstance(desk, _Desk):
        desk = found.lone.writing = _Desk(policy, found)
    at_ms = now if isinstance(now, int) else int(now[0])
    desk.line[: len(line)] = line
    desk.now[0] = at_ms
    found.cells.take(policy.row_columns, 0, desk.cells)
    body = bytes(memoryview(desk.out)[: desk.write()])
    return Record(policy.masking.head, body, [len(body)], at_ms, at_ms)


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
