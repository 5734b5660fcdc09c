"""A batch as requests to a shared store: what it asks, and what it is told when the batch is decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec
import numpy as np

from riskengine.decision import Decision
from riskengine.features import Touches
from riskengine.layout import Int64s
from riskengine.stores import Lives, Met, conclusions, kept, transaction, values, wire
from riskengine.stores.line import Reply
from riskengine.stores.plans import MAGIC
from riskengine.stores.resp import Bytes, as_array, bulk, command, split
from riskengine.stores.terms import Terms
from riskengine.stores.workspace import Room, Scratch, Workspace

_ENCODE: Final = msgspec.msgpack.Encoder().encode_into
ALONE: Final = as_array(kept.ALONE)
NO_CLAIMS: Final = np.empty((0, 2), np.int64)
NO_ENTITIES: Final = np.empty((0, 4), np.int64)


@dataclass(eq=False, slots=True)
class Asked:
    """What a batch asked of Redis, kept from `observe` to `conclude`."""

    touches: Touches
    room: Room  # what is in it, and in the scratch, is good until the next batch
    scratch: Scratch
    asked: Bytes  # (n, L)
    amounts: Int64s
    mosts: Int64s
    granted: Bytes
    give_back: Bytes
    buckets: Int64s
    handed: Bytes  # (L)
    claims: Int64s  # (n, 2)
    contents: Int64s
    met: Met
    entities: Int64s = field(default_factory=lambda: NO_ENTITIES)  # (K, 4), by partition
    sent_s: float = 0.0  # of the monotonic clock: no claim was entered before
    calls: int = 0  # of observe.lua: one, or on a cluster one a partition
    resumed: bool = False  # an event that was entered before, and not decided
    gave_back: set[int] = field(default_factory=set)  # and partitions where it gave back what it reserved
    was_known: bool = False  # a lone one that follows, before it was asked of: so it asked for no limits
    left_open: set[int] = field(default_factory=set)  # events of which nobody knows what they hold
    is_contested: bool = False  # a partition knew another event of that id
    forgotten: bool = False  # one that was decided, but the decision is not kept any more
    known: set[tuple[int, int]] = field(default_factory=set)  # events that partitions had a claim of
    # Records that a partition appended of events which another knew already: they are taken back.
    undone: dict[tuple[int, int], bytes] = field(default_factory=dict)
    # The name under which its events are concluded together.
    batch: Bytes = field(default_factory=lambda: ALONE)
    claims_live_s: int = 0
    follows: Int64s = field(default_factory=lambda: NO_CLAIMS)
    traces: Int64s = field(default_factory=lambda: NO_CLAIMS)


class Requests(NamedTuple):
    """Requests in one buffer, by where each ends, and the partition of each."""

    data: memoryview
    ends: list[int]
    parts: Int64s

    def each(self) -> Iterator[tuple[memoryview, int]]:
        """One by one."""
        start = 0
        for end, part in zip(self.ends, self.parts.tolist(), strict=True):
            yield self.data[start:end], part
            start = end


def together(texts: Sequence[bytes], parts: Sequence[int]) -> Requests:
    """Requests that were written one by one, each for a partition."""
    ends = np.cumsum([len(text) for text in texts]).tolist()
    return Requests(memoryview(b"".join(texts)), ends, np.array(parts))


def transacting(terms: Terms, work: Workspace, asked: Asked) -> tuple[memoryview, int]:
    """A batch as a transaction of a lone server, and how many replies come before that of EXEC."""
    touches, room, scratch = asked.touches, asked.room, asked.scratch
    batch = touches.batch
    _begin(terms, work, asked)
    out = work.room_for_request(terms.transaction_bytes + batch.n * terms.event_bytes)
    end, before, count = transaction.write(
        out, terms.features.flat, terms.tag, terms.prefixes, terms.kinds, terms.shared, terms.entering,
        terms.epoch_keys, terms.epoch, asked.claims_live_s, asked.batch, asked.contents, batch.time,
        asked.claims, touches.keys, touches.records, asked.asked, asked.amounts, asked.mosts, room.slots,
        scratch.entities, scratch.sizes, scratch.pieces, scratch.items, room.after,
    )  # fmt: skip
    asked.entities = scratch.entities[:count]
    return out[:end].data, before


def living(terms: Terms, work: Workspace, asked: Asked, reply: Reply) -> tuple[memoryview, int]:
    """For how long the entities of a batch live that there were none of before; and how many they are."""
    scratch, count = asked.scratch, len(asked.entities)
    out = work.room_for_request(count * (terms.prefix_size + 80))
    end, found = transaction.write_lives(
        out, terms.prefixes, terms.kinds, terms.entities_live, reply.lengths, scratch.items, asked.entities,
        count, scratch.sizes,
    )  # fmt: skip
    return out[:end].data, found


def taking_back(request: bytes, reply: Reply, script: str, batch: Bytes) -> bytes:
    """The call of take_back.lua for a transaction of which a command failed, by its request and its reply."""
    words = list(split(request))
    appends = [(name, records) for word, name, records in words[2:-2]]
    entering = words[-2]
    were_entered = reply.item(reply.count - 1) == 1
    claims = entering[4 : 3 + int(entering[2])] if were_entered else []
    first = reply.count - 1 - len(appends)
    keys, pieces = list(claims), list[bytes | int]()
    for (name, records), length in zip(appends, map(reply.item, range(first, reply.count)), strict=False):
        if isinstance(length, int):
            keys.append(name)
            pieces += [length - len(records), records]
    return command(("EVALSHA", script, len(keys), *keys, len(claims), batch.tobytes(), *pieces))


def _begin(terms: Terms, work: Workspace, asked: Asked) -> None:
    """Say how long the claims of a batch live, and by which name it is concluded."""
    asked.claims_live_s = terms.claims_live_s
    if asked.touches.batch.n > 1 and not terms.mask and asked.batch is ALONE:
        asked.batch = work.name_batch()


def observing(terms: Terms, work: Workspace, asked: Asked, booked: Bytes) -> Requests:
    """The calls of observe.lua for a batch, with reservations of what is `booked` (n, L)."""
    touches, features, claims = asked.touches, terms.features, asked.claims
    room, scratch = asked.room, asked.scratch
    batch = touches.batch
    _begin(terms, work, asked)
    count, total = wire.gather(
        features.flat, touches.keys, touches.records, booked, room.slots, scratch.entities, scratch.sizes,
        scratch.pieces, room.after,
    )  # fmt: skip
    entities, sizes, pieces, order = scratch.entities, scratch.sizes, scratch.pieces, room.order
    if terms.mask:
        order = np.argsort(claims[:, 0] & terms.mask, kind="stable")
        places = np.argsort(entities[:count, 0] & terms.mask, kind="stable")
        entities, sizes, pieces = entities[places], sizes[places], pieces[places]
    asked.entities = entities[:count]
    lives = terms.lives_said
    names = terms.prefix_size + 40
    needed = len(scratch.groups) * (400 + len(lives)) + len(scratch.claimants) * (names + 80)
    out = work.room_for_request(needed + count * (names + 40) + total + 4 * touches.keys.size)
    asked.calls = calls = wire.write_observe(
        out,
        features.flat,
        terms.tag,
        terms.prefixes,
        terms.prefix_size,
        terms.kinds,
        terms.opening["observe"],
        terms.shared,
        terms.shared_size,
        terms.epoch,
        lives,
        asked.claims_live_s,
        asked.batch,
        asked.contents,
        batch.time,
        claims,
        touches.records,
        booked,
        asked.amounts,
        asked.mosts,
        order,
        terms.mask,
        scratch.groups,
        scratch.claimants,
        scratch.numbers,
        entities,
        count,
        sizes,
        pieces,
        room.after,
        scratch.ends,
    )
    ends = scratch.ends[:calls].tolist()
    return Requests(out[: ends[-1]].data, ends, scratch.groups[:calls, wire.PART])


def folding(
    terms: Terms, work: Workspace, asked: Asked, reply: Reply, count: int
) -> Iterator[tuple[bytes, int, int]]:
    """Calls of compact.lua for the values that values.unfold found to be long: their partition, and how many.

    A single server is told all at once: by themselves they took as long to tell as to write.
    """
    done = 0
    while done < count:
        out = work.room_for_request(1 << 16)
        first = done
        done = wire.write_compacts(
            out, terms.features.flat, terms.fingerprint, terms.prefixes, terms.prefix_size, terms.mask,
            terms.kinds, terms.opening["compact"], terms.entities_live, terms.claims_there_ms,
            *work.arrays, asked.entities, reply.data, reply.offsets, reply.lengths, asked.scratch.items,
            asked.scratch.tails, asked.scratch.long, first, count, work.snapshot, asked.scratch.ends,
        )  # fmt: skip
        start, calls = 0, 0
        for k, end in enumerate(asked.scratch.ends[first:done].tolist(), first):
            if end > start and not terms.mask:
                calls += 1
            elif end > start:
                part = int(asked.entities[asked.scratch.long[k], 0]) & terms.mask
                yield out[start:end].tobytes(), part, 1
            start = end
        if calls:
            yield out[:start].tobytes(), 0, calls
        if done == first:  # larger than there is room for
            work.grow()


def folding_one(
    terms: Terms, e: int, key: int, head: bytes, length: int, sections: bytes, data: Bytes, at: int, end: int
) -> tuple[bytes, int, int]:
    """The call of compact.lua that puts snapshots in the place of what was read, as `folding` has them.

    data[at:end] is the tail that was folded. Snapshots are counted: no two values begin alike.
    """
    count = int.from_bytes(head[2:4], "little") + 1 if head[:2] == MAGIC else 1
    value = sections[:2] + (count & 0xFFFF).to_bytes(2, "little") + sections[4:]
    part = key & terms.mask
    reservations = (end - at) // values.RESERVATION + 1
    size = 400 + len(value) + reservations * (terms.prefix_size + 64 + wire.HELD_BYTES)
    out = np.empty(size, np.uint8)
    end = wire.write_compact(
        out, terms.features.flat, terms.prefixes, terms.prefix_size, part, terms.kinds,
        terms.opening["compact"], terms.lives_ms[e], terms.claims_there_ms, key, e, as_array(head),
        length, as_array(value), data, at, end,
    )  # fmt: skip
    return out[:end].tobytes(), part, 1


def concluding(
    terms: Terms,
    work: Workspace,
    asked: Asked,
    rows: Sequence[int],
    decisions: Sequence[Decision],
    lives: Lives,
    ours_only: bool = False,
) -> Requests:
    """The calls of conclude.lua for the events `rows` of a batch, which are in order of partitions.

    With `ours_only` it decides none that another has entered before.
    """
    touches, batch, scratch = asked.touches, asked.touches.batch, asked.scratch
    answers, at = _encoded(decisions, rows)
    trace, n, names = terms.trace_bytes, len(rows), terms.prefix_size + 40
    back = asked.give_back.size
    whose = asked.batch.tobytes() if ours_only else b"%d" % asked.resumed
    out = work.room_for_request(
        len(scratch.parts) * 400 + n * (names + trace + 112) + len(answers) + back * (names + 96)
    )
    calls = conclusions.write_conclude(
        out,
        terms.features.flat,
        terms.tag,
        terms.fingerprint,
        terms.traces.labelled,
        terms.prefixes,
        terms.prefix_size,
        terms.kinds,
        terms.opening["conclude"],
        terms.epoch_keys,
        terms.epoch_size,
        terms.epoch,
        _times(lives.horizon_ms, lives.fresh_ms, whose),
        ALONE,
        _numbers(asked, rows),
        terms.mask,
        asked.claims,
        asked.contents,
        batch.time,
        batch.event_hash.view(np.int64),
        touches.keys,
        touches.masks,
        touches.records,
        asked.traces,
        terms.traces.at_holds,
        asked.follows,
        asked.give_back,
        asked.amounts,
        asked.buckets,
        answers,
        at,
        work.room_for_traces(trace),
        scratch.ends,
        scratch.parts,
    )
    ends = scratch.ends[:calls].tolist()
    return Requests(out[: ends[-1]].data, ends, scratch.parts[:calls])


def concluding_all(
    terms: Terms,
    work: Workspace,
    asked: Asked,
    rows: Sequence[int],
    decisions: Sequence[Decision],
    lives: Lives,
) -> memoryview:
    """The call of conclude_all.lua for the events `rows` of a batch."""
    touches, batch = asked.touches, asked.touches.batch
    answers, at = _encoded(decisions, rows)
    names, traces = terms.prefix_size + 40, batch.n * (terms.trace_bytes + 4)
    back = asked.give_back.size
    out = work.room_for_request(
        1000 + 3 * names + 2 * wire.KEY_CHARS * len(rows) + 2 * traces + len(answers) + back * (names + 96)
    )
    live = not 0 <= 1000 * asked.claims_live_s - lives.horizon_ms < 1000
    # No claim outlives its traces, or it would look undecided: they are counted in seconds there.
    times = _times(lives.horizon_ms + 1000, lives.fresh_ms, b"%d" % live)
    end = conclusions.write_conclude_all(
        out,
        terms.features.flat,
        terms.tag,
        terms.fingerprint,
        terms.traces.labelled,
        terms.prefixes,
        terms.prefix_size,
        terms.kinds,
        terms.opening["conclude_all"],
        terms.epoch_keys,
        terms.epoch,
        times,
        asked.batch,
        _numbers(asked, rows),
        asked.claims,
        batch.event_hash.view(np.int64),
        batch.time,
        touches.keys,
        touches.masks,
        touches.records,
        asked.traces,
        terms.traces.at_holds,
        asked.follows,
        asked.give_back,
        asked.amounts,
        asked.buckets,
        answers,
        at,
        work.room_for_traces(traces + 8),
    )
    return out[:end].data


def _encoded(decisions: Sequence[Decision], rows: Sequence[int]) -> tuple[Bytes, Int64s]:
    """The decisions `rows` one behind the other, and where each ends."""
    out, ends = bytearray(), []
    for i in rows:
        _ENCODE(decisions[i], out, -1)
        ends.append(len(out))
    return np.frombuffer(out, np.uint8), np.array(ends)


def _numbers(asked: Asked, rows: Sequence[int]) -> Int64s:
    return asked.room.order if isinstance(rows, range) else np.array(rows, np.int64)


@lru_cache(maxsize=16)
def _times(first_ms: int, second_ms: int, said: bytes) -> Bytes:
    """Three arguments of conclude.lua and conclude_all.lua."""
    return as_array(bulk(b"%d" % first_ms) + bulk(b"%d" % second_ms) + bulk(said))
