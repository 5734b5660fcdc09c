"""A batch as requests to a shared store, and values that are folded for good: the kernels that write them.

Names of keys are the prefix, on a cluster the tag of a partition, a letter, and 64 bits of hash in 11
characters: `e` and two characters that tell the kind for an entity; twice 64 bits for an event: `c` for its
claim, `d` for its decision, `r` for who settled its holds, `b` for what it gave back or reserved anew before
it was decided, `p` for what it gave back when it was, `h` for what it may hold and was folded before. A batch
has 64 bits too, for what is kept together of its events: `t` for traces, `k` for decisions. On a cluster a
partition other than the event's own has a claim too, for what is appended there, and its own `b`, `p`, `h`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from riskengine import layout, ledger, packing
from riskengine.kernel import jit
from riskengine.layout import (
    E_CELLS,
    E_RECORD,
    E_WIDTH,
    L_CELL,
    L_ENTITY,
    P_LIMITS_N,
    RECORD_MASK,
    Int64s,
    cell_of,
    entity_of,
    limit_of,
)
from riskengine.packing import Bytes, get_raw, put_bytes, put_raw
from riskengine.stores import slabs
from riskengine.stores.resp import DOLLAR, STAR, digits_of, put_bulk, put_end, put_int, put_line
from riskengine.stores.values import (
    AT_CLAIM,
    AT_MOST,
    BOOKING,
    GRANTED,
    HEAD,
    MAGIC_0,
    MAGIC_1,
    RECORD,
    RELEASE,
    RESERVATION,
    RESERVE,
    SNAPSHOT_BYTES,
)

KEY_CHARS: Final = 11
ENTITY_CHARS: Final = 3 + KEY_CHARS  # behind what all names begin with
HELD_BYTES: Final = ENTITY_CHARS + BOOKING  # of an entity's name, and the release of what is held there
CLAIM_BYTES: Final = 41  # of a claim's value before its trace: see kept.py
PART, FIRST_CLAIM, HOMES, FIRST_ENTITY, GROUP_SIZE = range(5)  # columns of what is told of calls

ALPHABET: Final = np.frombuffer(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", np.uint8
).copy()


# ---- names ------------------------------------------------------------------------------------------


@jit
def put_word(out: Bytes, at: int, word: int) -> int:
    """Write 64 bits in 11 characters of base64url."""
    for k in range(10):
        out[at + k] = ALPHABET[(word >> (58 - 6 * k)) & 63]
    out[at + 10] = ALPHABET[word & 15]
    return at + KEY_CHARS


@jit
def put_claim_name(
    out: Bytes, at: int, prefixes: Bytes, size: int, part: int, letter: int, high: int, low: int
) -> int:
    """Write the name of a claim's key as a string of RESP. Prefixes of all parts have one size."""
    at = put_line(out, at, DOLLAR, size + 1 + 2 * KEY_CHARS)
    at = put_bytes(out, at, prefixes, part * size, size)
    out[at] = letter
    at = put_word(out, at + 1, high)
    return put_end(out, put_word(out, at, low))


@jit
def put_entity_name(
    out: Bytes, at: int, prefixes: Bytes, size: int, part: int, kinds: Bytes, e: int, key: int
) -> int:
    """Write the name of an entity's key as a string of RESP."""
    at = put_line(out, at, DOLLAR, size + ENTITY_CHARS)
    at = put_bytes(out, at, prefixes, part * size, size)
    return put_end(out, put_entity(out, at, kinds, e, key))


@jit
def put_entity(out: Bytes, at: int, kinds: Bytes, e: int, key: int) -> int:
    """Write what the name of an entity's key ends with."""
    out[at] = 101  # e
    out[at + 1] = kinds[2 * e]
    out[at + 2] = kinds[2 * e + 1]
    return put_word(out, at + 3, key)


@jit
def put_number(out: Bytes, at: int, value: int) -> int:
    """Write a number that is not negative as a string of RESP."""
    at = put_line(out, at, DOLLAR, digits_of(value))
    return put_end(out, put_int(out, at, value))


# ---- before the wait --------------------------------------------------------------------------------


@jit
def gather(
    plan: Int64s,
    keys: Int64s,
    records: Int64s,
    asked: Bytes,
    slots: Int64s,
    entities: Int64s,
    sizes: Int64s,
    pieces: Int64s,
    after: Int64s,
) -> tuple[int, int]:
    """The distinct entities of a batch: how many, and how many bytes their records take.

    `slots` (2 S, S a power of two) is to find their places; `entities` (K, 4) are key, entity, first and last
    event of each; `sizes` and `pieces` (K) what is appended to each; `after` (n, E) the next event of the
    same entity, -1 behind the last.
    """
    count = 0
    total = 0
    mask = (len(slots) >> 1) - 1
    for at in range(len(slots)):
        slots[at] = 0
    for i in range(keys.shape[0]):
        for e in range(keys.shape[1]):
            key = keys[i, e]
            if key == 0 or entity_of(plan, e, E_WIDTH) == 0:
                continue
            size = piece_size(plan, records, asked, i, e)
            at = key & mask
            while slots[2 * at + 1] != 0 and slots[2 * at] != key:
                at = (at + 1) & mask
            place = slots[2 * at + 1] - 1
            if place < 0:
                place = count
                slots[2 * at] = key
                slots[2 * at + 1] = place + 1
                entities[place, 0] = key
                entities[place, 1] = e
                entities[place, 2] = -1
                sizes[place] = 0
                pieces[place] = 0
                count += 1
            if size == 0:
                continue
            after[i, e] = -1
            if entities[place, 2] < 0:
                entities[place, 2] = i
            else:
                after[entities[place, 3], e] = i
            entities[place, 3] = i
            sizes[place] += size
            pieces[place] += 1
            total += size
    return count, total


@jit
def piece_size(plan: Int64s, records: Int64s, asked: Bytes, i: int, e: int) -> int:
    """Bytes that an event appends to one of its entities."""
    size = 0
    if records[i, entity_of(plan, e, E_RECORD) + RECORD_MASK] != 0:
        size = HEAD + 8 * entity_of(plan, e, E_WIDTH)
    for limit in range(plan[P_LIMITS_N]):
        if asked[i, limit] and limit_of(plan, limit, L_ENTITY) == e:
            size += RESERVATION
    return size


@jit
def put_piece(
    out: Bytes,
    at: int,
    plan: Int64s,
    tag: int,
    records: Int64s,
    asked: Bytes,
    amounts: Int64s,
    mosts: Int64s,
    time: Int64s,
    claims: Int64s,
    i: int,
    e: int,
) -> int:
    """Write what an event appends to one of its entities: its record, and what it wants of limits."""
    first = entity_of(plan, e, E_RECORD)
    if records[i, first + RECORD_MASK] != 0:
        width = entity_of(plan, e, E_WIDTH)
        at = put_head(out, at, RECORD, width, 0, tag)
        for k in range(width):
            at = put_raw(out, at, records[i, first + k], 8)
    for limit in range(plan[P_LIMITS_N]):
        if asked[i, limit] and limit_of(plan, limit, L_ENTITY) == e:
            cell = limit_of(plan, limit, L_CELL) - entity_of(plan, e, E_CELLS)
            at = put_reservation(
                out,
                at,
                cell,
                tag,
                time[i],
                claims[i, 0],
                claims[i, 1],
                amounts[i, limit],
                mosts[i, limit],
            )
    return at


@jit
def put_head(out: Bytes, at: int, kind: int, size: int, cell: int, tag: int) -> int:
    """Write a record's first eight bytes."""
    return put_raw(out, at, kind | int(size) << 8 | int(cell) << 16 | int(tag) << 24, 8)


@jit
def put_reservation(
    out: Bytes, at: int, cell: int, tag: int, time: int, event: int, claim: int, amount: int, most: int
) -> int:
    """Write what an event wants of a limit; `event` and `claim` are the halves of its claim."""
    at = put_head(out, at, RESERVE, 5, cell, tag)
    at = put_raw(out, at, time, 8)
    at = put_raw(out, at, event, 8)
    at = put_raw(out, at, amount, 8)
    at = put_raw(out, at, most, 8)
    return put_raw(out, at, claim, 8)


@jit
def put_release(
    out: Bytes, at: int, cell: int, tag: int, time: int, event: int, amount: int, bucket: int
) -> int:
    """Write what an event gives back."""
    at = put_head(out, at, RELEASE, 4, cell, tag)
    at = put_raw(out, at, time, 8)
    at = put_raw(out, at, event, 8)
    at = put_raw(out, at, amount, 8)
    return put_raw(out, at, bucket, 8)


@jit
def share_out(
    entities: Int64s,
    count: int,
    claims: Int64s,
    order: Int64s,
    after: Int64s,
    mask: int,
    stamps: Int64s,
    groups: Int64s,
    claimants: Int64s,
) -> int:
    """Cut a batch into one call a partition, the first always among them; return how many.

    `entities` and `order` (of events) are sorted by partition. `groups` (calls + 1, GROUP_SIZE) says of each
    call its partition, its first claim, how many of its claims are of its own events, and its first entity;
    `claimants` whose each claim is; `stamps` (n, zeros) is scratch.
    """
    n = len(order)
    calls = 0
    e_at = 0
    c_at = 0
    total = 0
    part = 0
    while True:
        groups[calls, PART] = part
        groups[calls, FIRST_CLAIM] = total
        groups[calls, FIRST_ENTITY] = e_at
        while c_at < n and claims[order[c_at], 0] & mask == part:
            claimants[total] = order[c_at]
            stamps[order[c_at]] = calls + 1
            total += 1
            c_at += 1
        groups[calls, HOMES] = total - groups[calls, FIRST_CLAIM]
        while e_at < count and entities[e_at, 0] & mask == part:
            i = entities[e_at, 2]
            while i >= 0:
                if stamps[i] != calls + 1:
                    stamps[i] = calls + 1
                    claimants[total] = i
                    total += 1
                i = after[i, entities[e_at, 1]]
            e_at += 1
        calls += 1
        groups[calls, FIRST_CLAIM] = total
        groups[calls, FIRST_ENTITY] = e_at
        if e_at == count and c_at == n:
            return calls
        part = mask + 1
        if e_at < count:
            part = min(part, entities[e_at, 0] & mask)
        if c_at < n:
            part = min(part, claims[order[c_at], 0] & mask)


@jit
def write_observe(
    out: Bytes,
    plan: Int64s,
    tag: int,
    prefixes: Bytes,
    prefix_size: int,
    kinds: Bytes,
    opening: Bytes,
    shared: Bytes,
    shared_size: int,
    epoch: Bytes,
    lives: Bytes,
    life_s: int,
    batch: Bytes,
    contents: Int64s,
    time: Int64s,
    claims: Int64s,
    records: Int64s,
    asked: Bytes,
    amounts: Int64s,
    mosts: Int64s,
    order: Int64s,
    mask: int,
    groups: Int64s,
    claimants: Int64s,
    numbers: Int64s,
    entities: Int64s,
    count: int,
    sizes: Int64s,
    pieces: Int64s,
    after: Int64s,
    ends: Int64s,
) -> int:
    """Write the calls of observe.lua for a batch; return how many. `ends` gets where each ends.

    `order`, `mask`, `groups`, `claimants`, `entities` and `count` are as `share_out` has them. `opening`,
    `shared` (two keys a partition), `epoch` and `lives` (three arguments) are strings of RESP made
    beforehand; `numbers` (n) is scratch. Claims are entered for `life_s`, with the name of their `batch`.
    """
    for i in range(len(order)):
        numbers[i] = 0
    calls = share_out(entities, count, claims, order, after, mask, numbers, groups, claimants)
    at = 0
    for call in range(calls):
        part = groups[call, PART]
        first, first_claim = groups[call, FIRST_ENTITY], groups[call, FIRST_CLAIM]
        last = groups[call + 1, FIRST_ENTITY]
        n, own = groups[call + 1, FIRST_CLAIM] - first_claim, last - first
        at = put_line(out, at, STAR, 13 + 2 * n + 2 * own)
        at = put_bytes(out, at, opening, 0, len(opening))
        at = put_number(out, at, 2 + n + own)
        at = put_bytes(out, at, shared, part * shared_size, shared_size)
        for c in range(n):
            i = claimants[first_claim + c]
            numbers[i] = c + 1
            at = put_claim_name(out, at, prefixes, prefix_size, part, 99, claims[i, 0], claims[i, 1])
        for k in range(first, last):
            at = put_entity_name(out, at, prefixes, prefix_size, part, kinds, entities[k, 1], entities[k, 0])
        at = put_bytes(out, at, epoch, 0, len(epoch))
        at = put_number(out, at, n)
        at = put_number(out, at, groups[call, HOMES])
        at = put_bytes(out, at, lives, 0, len(lives))
        at = put_line(out, at, DOLLAR, own)
        for k in range(first, last):
            out[at] = entities[k, 1]
            at += 1
        at = put_end(out, at)
        total = 0
        for k in range(first, last):
            total += 2 + 4 * pieces[k]
        at = put_line(out, at, DOLLAR, total)
        for k in range(first, last):
            at = put_raw(out, at, pieces[k], 2)
            i = entities[k, 2]
            while i >= 0:
                at = put_raw(out, at, numbers[i], 2)
                at = put_raw(out, at, piece_size(plan, records, asked, i, entities[k, 1]), 2)
                i = after[i, entities[k, 1]]
        at = put_end(out, at)
        for c in range(n):
            i = claimants[first_claim + c]
            at = put_line(out, at, DOLLAR, CLAIM_BYTES)
            at = put_end(out, put_claim(out, at, contents, time, life_s, batch, i))
        for k in range(first, last):
            at = put_pieces(
                out, at, plan, tag, records, asked, amounts, mosts, time, claims, entities, k, sizes, after
            )
        ends[call] = at
    return calls


@jit
def put_pieces(
    out: Bytes,
    at: int,
    plan: Int64s,
    tag: int,
    records: Int64s,
    asked: Bytes,
    amounts: Int64s,
    mosts: Int64s,
    time: Int64s,
    claims: Int64s,
    entities: Int64s,
    k: int,
    sizes: Int64s,
    after: Int64s,
) -> int:
    """Write what a batch appends to its entity k, as a string of RESP."""
    at = put_line(out, at, DOLLAR, sizes[k])
    e, i = entities[k, 1], entities[k, 2]
    while i >= 0:
        at = put_piece(out, at, plan, tag, records, asked, amounts, mosts, time, claims, i, e)
        i = after[i, e]
    return put_end(out, at)


@jit
def put_claim(out: Bytes, at: int, contents: Int64s, time: Int64s, life_s: int, batch: Bytes, i: int) -> int:
    """Write the value of event i's claim."""
    at = put_raw(out, at, contents[i, 0], 8)
    at = put_raw(out, at, contents[i, 1], 8)
    at = put_raw(out, at, time[i], 8)
    at = put_raw(out, at, life_s, 4)
    at = put_raw(out, at, i, 2)
    return put_bytes(out, at, batch, 0, len(batch))


# ---- after it ---------------------------------------------------------------------------------------


@jit
def read_calls(
    data: Bytes,
    offsets: Int64s,
    lengths: Int64s,
    firsts: Int64s,
    calls: int,
    groups: Int64s,
    epoch: Bytes,
    values: Int64s,
) -> tuple[int, bool, int]:
    """Look through the answers of observe.lua: `values` gets the number of each entity's item.

    Returns the first call whose epoch is not the one expected, or -1; whether a claim was known; and how many
    bytes all values have.
    """
    met = False
    size = 0
    for call in range(calls):
        at = firsts[call]
        if lengths[at] != len(epoch):
            return call, met, size
        for k in range(len(epoch)):
            if data[offsets[at] + k] != epoch[k]:
                return call, met, size
        known = 0
        for k in range(lengths[at + 2]):
            known += data[offsets[at + 2] + k] == 49  # 1
        met = met or known > 0
        at += 3 + 2 * known
        for k in range(groups[call, FIRST_ENTITY], groups[call + 1, FIRST_ENTITY]):
            values[k] = at
            size += max(lengths[at], 0)
            at += 1
    return -1, met, size


@jit
def write_compact(
    out: Bytes,
    plan: Int64s,
    prefixes: Bytes,
    prefix_size: int,
    part: int,
    kinds: Bytes,
    opening: Bytes,
    life_ms: int,
    claim_ms: int,
    key: int,
    e: int,
    head: Bytes,
    length: int,
    value: Bytes,
    data: Bytes,
    at: int,
    end: int,
) -> int:
    """Write the call of compact.lua; return its bytes. An undecided claim lives `claim_ms`.

    data[at:end] is the tail that was folded: of every reservation granted there goes along what would give it
    back, for where nobody has decided that event yet.
    """
    n = 0
    place = at
    while place < end:
        n += data[place] == RESERVE and get_raw(data, place + AT_MOST, 8) == GRANTED
        place += HEAD + 8 * int(data[place + 1])
    to = put_line(out, 0, STAR, 3 + 1 + n + 5 + n)
    to = put_bytes(out, to, opening, 0, len(opening))
    to = put_number(out, to, 1 + n)
    to = put_entity_name(out, to, prefixes, prefix_size, part, kinds, e, key)
    place = at
    while place < end:
        if data[place] == RESERVE and get_raw(data, place + AT_MOST, 8) == GRANTED:
            high, low = get_raw(data, place + HEAD + 8, 8), get_raw(data, place + AT_CLAIM, 8)
            to = put_claim_name(out, to, prefixes, prefix_size, part, 99, high, low)
        place += HEAD + 8 * int(data[place + 1])
    to = put_bulk(out, to, head, 0, len(head))
    to = put_number(out, to, length)
    to = put_bulk(out, to, value, 0, len(value))
    to = put_number(out, to, life_ms)
    to = put_number(out, to, claim_ms)
    place = at
    while place < end:
        if data[place] == RESERVE and get_raw(data, place + AT_MOST, 8) == GRANTED:
            to = put_line(out, to, DOLLAR, HELD_BYTES)
            to = put_end(out, put_held(out, to, plan, kinds, key, e, data, place))
        place += HEAD + 8 * int(data[place + 1])
    return to


@jit
def write_compacts(
    out: Bytes,
    plan: Int64s,
    fingerprint: int,
    prefixes: Bytes,
    prefix_size: int,
    mask: int,
    kinds: Bytes,
    opening: Bytes,
    lives_ms: Int64s,
    claim_ms: int,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    entities: Int64s,
    data: Bytes,
    offsets: Int64s,
    lengths: Int64s,
    items: Int64s,
    tails: Int64s,
    long: Int64s,
    first: int,
    count: int,
    room: Bytes,
    ends: Int64s,
) -> int:
    """Write the calls of compact.lua for values long[first:count], as `unfold` found them.

    Returns the first that finds no room any more; `ends` gets where each ends: with the one before, of what
    stands for nothing. Entities live `lives_ms` (E); `room` is scratch.
    """
    at = 0
    for j in range(first, count):
        k = long[j]
        key, e = entities[k, 0], entities[k, 1]
        s = slabs.locate(meta, table, old_table, key)
        ends[j] = at
        if s == 0:
            continue
        start, length = offsets[items[k]], lengths[items[k]]
        tail = start + tails[k, SNAPSHOT_BYTES]
        reservations = (start + length - tail) // RESERVATION + 1
        largest = packing.packed_size_max(words, s)
        if at + 400 + largest + reservations * (prefix_size + 64 + HELD_BYTES) > len(out) or largest > len(
            room
        ):
            return j
        size = packing.pack(plan, words, s, e, fingerprint, room, 0)
        snapshots = 1
        if data[start] == MAGIC_0 and data[start + 1] == MAGIC_1:
            snapshots += get_raw(data, start + 2, 2)
        put_raw(room, 2, snapshots, 2)
        at += write_compact(
            out[at:], plan, prefixes, prefix_size, key & mask, kinds, opening,
            lives_ms[e], claim_ms, key, e,
            data[start : start + packing.HEADER], length, room[:size], data, tail, start + length,
        )  # fmt: skip
        ends[j] = at
    return count


@jit
def put_held(out: Bytes, to: int, plan: Int64s, kinds: Bytes, key: int, e: int, data: Bytes, at: int) -> int:
    """Write where a granted reservation (data[at:]) is held, and the record that would give it back."""
    out[to] = 101  # e
    out[to + 1] = kinds[2 * e]
    out[to + 2] = kinds[2 * e + 1]
    to = put_word(out, to + 3, key)
    cell, tag = int(data[at + 2]), get_raw(data, at + 3, 5)
    time, event = get_raw(data, at + HEAD, 8), get_raw(data, at + HEAD + 8, 8)
    window = cell_of(plan, entity_of(plan, e, E_CELLS) + cell, layout.C_WINDOWS)
    bucket = ledger.bucket_of(plan, window, time)
    return put_release(out, to, cell, tag, time, event, get_raw(data, at + HEAD + 16, 8), bucket)
