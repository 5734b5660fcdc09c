"""What a shared store is told of a batch once it is decided: the kernels that write it."""

from __future__ import annotations

from riskengine import layout
from riskengine.kernel import jit
from riskengine.layout import (
    E_CELLS,
    E_RECORD,
    E_WIDTH,
    L_CELL,
    L_ENTITY,
    NONE,
    P_LIMITS_N,
    Int64s,
    entity_of,
    limit_of,
)
from riskengine.packing import Bytes, put_bytes, put_raw, put_varint
from riskengine.stores.resp import DOLLAR, STAR, put_bulk, put_end, put_line
from riskengine.stores.values import BOOKING
from riskengine.stores.wire import (
    CLAIM_BYTES,
    KEY_CHARS,
    put_claim,
    put_claim_name,
    put_entity_name,
    put_number,
    put_release,
    put_word,
)


@jit
def put_trace(
    out: Bytes,
    at: int,
    plan: Int64s,
    fingerprint: int,
    labelled: bool,
    keys: Int64s,
    masks: Int64s,
    records: Int64s,
    traces: Int64s,
    at_holds: int,
    follows: Int64s,
    i: int,
) -> int:
    """Write what an event moved and holds: what a label, a release or a follow-up needs to know of it.

    Plan (8), number of entities, and of each its number, key (8), cells moved and, where labels may count,
    the slots of its record; number of holds, and of each limit, bucket, amount; the claim it follows (16, or
    nothing).
    """
    at = put_raw(out, at, fingerprint, 8)
    counted_at = at
    out[at] = 0
    at += 1
    for e in range(keys.shape[1]):
        width = entity_of(plan, e, E_WIDTH)
        if keys[i, e] == 0 or width == 0:
            continue
        out[counted_at] += 1
        out[at] = e
        at = put_raw(out, at + 1, keys[i, e], 8)
        at = put_varint(out, at, masks[i, e])
        if labelled and masks[i, e] != 0:
            first = entity_of(plan, e, E_RECORD)
            for k in range(layout.RECORD_SLOTS, width):
                at = put_varint(out, at, records[i, first + k])
    counted_at = at
    out[at] = 0
    at += 1
    for limit in range(plan[P_LIMITS_N]):
        if traces[i, at_holds + 2 * limit + 1] != NONE:
            out[counted_at] += 1
            out[at] = limit
            at = put_varint(out, at + 1, traces[i, at_holds + 2 * limit])
            at = put_varint(out, at, traces[i, at_holds + 2 * limit + 1])
    if len(follows) > 0 and (follows[i, 0] != 0 or follows[i, 1] != 0):
        at = put_raw(out, at, follows[i, 0], 8)
        at = put_raw(out, at, follows[i, 1], 8)
    return at


@jit
def put_receivers(
    out: Bytes,
    at: int,
    plan: Int64s,
    prefixes: Bytes,
    prefix_size: int,
    part: int,
    kinds: Bytes,
    rows: Int64s,
    j_from: int,
    j_to: int,
    keys: Int64s,
    give_back: Bytes,
) -> int:
    """Write the names of entities that the events rows[j_from:j_to] give something back to, in order."""
    for j in range(j_from, j_to):
        for limit in range(plan[P_LIMITS_N]):
            if give_back[rows[j], limit]:
                e = limit_of(plan, limit, L_ENTITY)
                at = put_entity_name(out, at, prefixes, prefix_size, part, kinds, e, keys[rows[j], e])
    return at


@jit
def put_given_back(
    out: Bytes,
    at: int,
    plan: Int64s,
    tag: int,
    rows: Int64s,
    j_from: int,
    j_to: int,
    time: Int64s,
    event_hash: Int64s,
    give_back: Bytes,
    amounts: Int64s,
    buckets: Int64s,
) -> int:
    """Write what they give back: number of the event, of the entity among `put_receivers`, and a release."""
    place = 0
    for j in range(j_from, j_to):
        i = rows[j]
        for limit in range(plan[P_LIMITS_N]):
            if give_back[i, limit]:
                place += 1
                e = limit_of(plan, limit, L_ENTITY)
                cell = limit_of(plan, limit, L_CELL) - entity_of(plan, e, E_CELLS)
                at = put_number(out, at, j - j_from + 1)
                at = put_number(out, at, place)
                at = put_line(out, at, DOLLAR, BOOKING)
                at = put_release(
                    out, at, cell, tag, time[i], event_hash[i], amounts[i, limit], buckets[i, limit]
                )
                at = put_end(out, at)
    return at


@jit
def write_conclude_all(
    out: Bytes,
    plan: Int64s,
    tag: int,
    fingerprint: int,
    labelled: bool,
    prefixes: Bytes,
    prefix_size: int,
    kinds: Bytes,
    opening: Bytes,
    epoch_keys: Bytes,
    epoch: Bytes,
    lives: Bytes,
    batch: Bytes,
    rows: Int64s,
    claims: Int64s,
    event_hash: Int64s,
    time: Int64s,
    keys: Int64s,
    masks: Int64s,
    records: Int64s,
    traces: Int64s,
    at_holds: int,
    follows: Int64s,
    give_back: Bytes,
    amounts: Int64s,
    buckets: Int64s,
    decisions: Bytes,
    decision_ends: Int64s,
    room: Bytes,
) -> int:
    """Write the call of conclude_all.lua for the events `rows` of a batch, in order; return its bytes.

    Decision j of `decisions` ends at decision_ends[j]. `lives` are three strings of RESP. `room` has room for
    the traces of all.
    """
    limits = plan[P_LIMITS_N]
    n = len(rows)
    back = 0
    for j in range(n):
        for limit in range(limits):
            back += give_back[rows[j], limit]
    at = put_line(out, 0, STAR, 3 + 3 + back + 8 + 3 * back)
    at = put_bytes(out, at, opening, 0, len(opening))
    at = put_number(out, at, 3 + back)
    at = put_bytes(out, at, epoch_keys, 0, len(epoch_keys))
    for letter in (116, 107):  # t, k
        at = put_line(out, at, DOLLAR, prefix_size + 1 + len(batch))
        at = put_bytes(out, at, prefixes, 0, prefix_size)
        out[at] = letter
        at = put_end(out, put_bytes(out, at + 1, batch, 0, len(batch)))
    at = put_receivers(out, at, plan, prefixes, prefix_size, 0, kinds, rows, 0, n, keys, give_back)
    at = put_bytes(out, at, epoch, 0, len(epoch))
    at = put_bytes(out, at, lives, 0, len(lives))
    at = put_bulk(out, at, batch, 0, len(batch))

    table = 4 * (len(claims) + 1)
    size = table
    j = 0
    for i in range(len(claims)):
        put_raw(room, 4 * i, size, 4)
        if j < n and rows[j] == i:
            size = put_trace(
                room, size, plan, fingerprint, labelled, keys, masks, records, traces, at_holds, follows, i
            )
            j += 1
    put_raw(room, 4 * len(claims), size, 4)
    at = put_bulk(out, at, room, 0, size)

    size = decision_ends[n - 1]
    at = put_line(out, at, DOLLAR, table + size)
    j = 0
    for i in range(len(claims) + 1):
        at = put_raw(out, at, table + (decision_ends[j - 1] if j > 0 else 0), 4)
        j += j < n and rows[j] == i
    at = put_end(out, put_bytes(out, at, decisions, 0, size))

    at = put_line(out, at, DOLLAR, 2 * KEY_CHARS * n)
    for j in range(n):
        at = put_word(out, put_word(out, at, claims[rows[j], 0]), claims[rows[j], 1])
    at = put_end(out, at)
    return put_given_back(out, at, plan, tag, rows, 0, n, time, event_hash, give_back, amounts, buckets)


@jit
def write_conclude(
    out: Bytes,
    plan: Int64s,
    tag: int,
    fingerprint: int,
    labelled: bool,
    prefixes: Bytes,
    prefix_size: int,
    kinds: Bytes,
    opening: Bytes,
    epoch_keys: Bytes,
    epoch_size: int,
    epoch: Bytes,
    lives: Bytes,
    alone: Bytes,
    rows: Int64s,
    mask: int,
    claims: Int64s,
    contents: Int64s,
    time: Int64s,
    event_hash: Int64s,
    keys: Int64s,
    masks: Int64s,
    records: Int64s,
    traces: Int64s,
    at_holds: int,
    follows: Int64s,
    give_back: Bytes,
    amounts: Int64s,
    buckets: Int64s,
    decisions: Bytes,
    decision_ends: Int64s,
    room: Bytes,
    ends: Int64s,
    parts: Int64s,
) -> int:
    """Write the calls of conclude.lua for the events `rows`, sorted by partition; return how many.

    Decision j of `decisions` ends at decision_ends[j]. `room` has room for the largest trace. `ends` and
    `parts` get where each call ends, and its partition. What is given back is part of a call where there is
    one partition.
    """
    limits = plan[P_LIMITS_N]
    calls = 0
    at = 0
    j_from = 0
    while j_from < len(rows):
        part = claims[rows[j_from], 0] & mask
        j_to = j_from
        back = 0
        while j_to < len(rows) and claims[rows[j_to], 0] & mask == part:
            for limit in range(limits):
                back += give_back[rows[j_to], limit] and mask == 0
            j_to += 1
        n = j_to - j_from
        at = put_line(out, at, STAR, 3 + 1 + n + back + 6 + 2 * n + 3 * back)
        at = put_bytes(out, at, opening, 0, len(opening))
        at = put_number(out, at, 1 + n + back)
        at = put_bytes(out, at, epoch_keys, part * epoch_size, epoch_size)
        for j in range(j_from, j_to):
            at = put_claim_name(
                out, at, prefixes, prefix_size, part, 99, claims[rows[j], 0], claims[rows[j], 1]
            )
        if back:
            at = put_receivers(
                out, at, plan, prefixes, prefix_size, part, kinds, rows, j_from, j_to, keys, give_back
            )
        at = put_bytes(out, at, epoch, 0, len(epoch))
        at = put_number(out, at, n)
        at = put_number(out, at, back)
        at = put_bytes(out, at, lives, 0, len(lives))
        for j in range(j_from, j_to):
            i = rows[j]
            size = put_trace(
                room, 0, plan, fingerprint, labelled, keys, masks, records, traces, at_holds, follows, i
            )
            at = put_line(out, at, DOLLAR, CLAIM_BYTES + size)
            at = put_claim(out, at, contents, time, 0, alone, i)
            at = put_end(out, put_bytes(out, at, room, 0, size))
            start = decision_ends[j - 1] if j > 0 else 0
            at = put_bulk(out, at, decisions, start, decision_ends[j] - start)
        if back:
            at = put_given_back(
                out, at, plan, tag, rows, j_from, j_to, time, event_hash, give_back, amounts, buckets
            )
        ends[calls] = at
        parts[calls] = part
        calls += 1
        j_from = j_to
    return calls
