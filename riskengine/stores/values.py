"""Values of entities as slabs: the kernels that read what a shared store keeps.

value     sections, tail
section   header (24 bytes) and snapshot of one plan, as in packing.py; bytes 2-3 count the snapshots
tail      records not folded in yet, in the order of the log
record    kind (1), words (1), cell (1), plan (5), words (8 each)

The words are those of the entity's record (RECORD); or time, event hash, amount, and bucket of what an event
gives back of a limit (RELEASE); or time, event hash, amount, maximum, and the other half of the event's
claim, of what it wants of one (RESERVE). A reservation is granted when what is held where it stands in the
log leaves room for it: every reader finds the same. A record taken back is VOID.
"""

from __future__ import annotations

from typing import Final

from riskengine import layout, ledger, packing
from riskengine.cells import HOLDS
from riskengine.kernel import jit, jit_inline, pointer
from riskengine.layout import (
    E_CELLS,
    E_GROWTH,
    E_RECORD,
    E_RETENTION,
    E_WIDTH,
    NONE,
    Int64s,
    cell_of,
    entity_of,
)
from riskengine.packing import Bytes, digest, get_raw, put_raw
from riskengine.stores import memo as memory
from riskengine.stores import slabs
from riskengine.stores.memo import (
    BYTES_MIN,
    DIGEST,
    LENGTH,
    call_entry,
    call_slot,
    keep,
    recall,
)
from riskengine.stores.resp import NIL

RECORD, RESERVE, RELEASE, VOID = 1, 2, 3, 4
HEAD: Final = 8  # bytes before a record's words
BOOKING: Final = HEAD + 32  # bytes of a release
RESERVATION: Final = BOOKING + 8
AT_MOST, AT_CLAIM = HEAD + 24, HEAD + 32  # where a reservation has its maximum, and half of its claim
GRANTED: Final = NONE + 1  # what is written over the maximum of one that was granted, in what was read
WORDS_MAX: Final = 255
AHEAD: Final = 4  # values between calling in what is remembered of one and using it, at each of two steps
MAGIC_0, MAGIC_1 = packing.MAGIC & 0xFF, packing.MAGIC >> 8
FOLDED, FOREIGN, BROKEN, STOPPED = range(4)  # what became of a value
RECORDS, SNAPSHOT_BYTES, TAIL_BYTES, SINCE, TAIL_SIZE = range(5)  # columns of what is told of values


@jit
def unfold(
    plan: Int64s,
    partial: Int64s,
    tag: int,
    fingerprint: int,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    data: Bytes,
    offsets: Int64s,
    lengths: Int64s,
    items: Int64s,
    count: int,
    entities: Int64s,
    row: Int64s,
    stop_event: int,
    stop_time: int,
    memo: Int64s,
    time: Int64s,
    records_max: int,
    tails: Int64s,
    outcome: Int64s,
    long: Int64s,
) -> tuple[bool, int]:
    """`take_in` to an empty workspace, for events of these times: whether a value was other than FOLDED.

    Returns also of how many values the tail is to be folded for good (`is_long`), whose numbers `long` (K)
    gets.
    """
    for at in range(len(table)):
        table[at] = 0
    for at in range(len(meta)):
        meta[at] = 0
    slabs.lay_out(words, meta)
    newest = 0
    for i in range(len(time)):
        newest = max(newest, time[i])
    take_in(
        plan, partial, tag, fingerprint, words, meta, table, old_table, data, offsets, lengths, items, count,
        entities, row, stop_event, stop_time, memo, newest, records_max, tails, outcome,
    )  # fmt: skip
    other = False
    found = 0
    for k in range(count):
        if outcome[k] != FOLDED:
            other = True
        elif is_long(plan, entities[k, 1], tails, k, newest, records_max):
            long[found] = k
            found += 1
    return other, found


@jit
def is_long(plan: Int64s, e: int, tails: Int64s, k: int, newest: int, records_max: int) -> bool:
    """Whether a tail is to be folded for good.

    It has more than `records_max` records and more bytes than the snapshot, or the snapshot is so old that it
    may soon be forgotten.
    """
    size = tails[k, TAIL_BYTES]
    is_long = tails[k, RECORDS] > records_max and size > tails[k, SNAPSHOT_BYTES]
    return bool(is_long or (size > 0 and newest - tails[k, SINCE] > entity_of(plan, e, E_RETENTION)))


@jit
def take_in(
    plan: Int64s,
    partial: Int64s,
    tag: int,
    fingerprint: int,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    data: Bytes,
    offsets: Int64s,
    lengths: Int64s,
    items: Int64s,
    count: int,
    entities: Int64s,
    row: Int64s,
    stop_event: int,
    stop_time: int,
    memo: Int64s,
    newest: int,
    records_max: int,
    tails: Int64s,
    outcome: Int64s,
) -> None:
    """Fold values (item items[k] of `offsets`, `lengths` for entity k of `entities`) into slabs.

    Reservations that are granted are marked in `data` (GRANTED). `partial` is the plan as records of others
    move it, a row for each way (Plans.converted); `row` (1, W) is a `transition.blank`. A value is folded up
    to the first record of event `stop_event` at `stop_time` (STOPPED), where that is not 0. Writes of each
    value what its columns say (tails (K, TAIL_SIZE); SINCE is the time of its snapshot, else of its first
    record), and what became of it (outcome (K)). Of one that is FOREIGN, that is of another plan, or BROKEN,
    no slab is made.

    What is in `memo` (memo.py; empty: nothing) is not folded again, where the tail is not long (`is_long`):
    of those all marks are needed.
    """
    plan = pointer(plan, 0)
    ahead = len(memo) > 0
    for k in range(-2 * AHEAD if ahead else 0, count):
        if ahead and k + 2 * AHEAD < count and lengths[items[k + 2 * AHEAD]] >= BYTES_MIN:
            call_slot(memo, entities[k + 2 * AHEAD, 0])
        if ahead and 0 <= k + AHEAD < count and lengths[items[k + AHEAD]] >= BYTES_MIN:
            call_entry(memo, entities[k + AHEAD, 0])
        if k < 0:
            continue
        for column in range(TAIL_SIZE):
            tails[k, column] = 0
        outcome[k] = FOLDED
        item = items[k]
        if lengths[item] != NIL:
            outcome[k] = take_in_one(
                plan, partial, tag, fingerprint, words, meta, table, old_table, data, offsets[item],
                offsets[item] + lengths[item], entities[k, 0], entities[k, 1], row, stop_event, stop_time,
                memo, newest, records_max, tails, k,
            )  # fmt: skip


@jit_inline
def take_in_one(
    plan: Int64s,
    partial: Int64s,
    tag: int,
    fingerprint: int,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    data: Bytes,
    at: int,
    end: int,
    key: int,
    e: int,
    row: Int64s,
    stop_event: int,
    stop_time: int,
    memo: Int64s,
    newest: int,
    records_max: int,
    tails: Int64s,
    k: int,
) -> int:
    """`take_in` of one value, data[at:end]."""
    length = end - at
    remembers = len(memo) > 0 and length >= BYTES_MIN and stop_event == 0
    entry = recall(memo, key, data, at, end) if remembers else -1
    mark = 0
    if remembers:  # before anything in it is marked as granted
        same = entry >= 0 and memo[entry + LENGTH] == length
        mark = memo[entry + DIGEST] if same else digest(data, at, end)
    s = known = 0
    if entry >= 0:
        s = take_up(
            plan, len(partial), tag, fingerprint, words, meta, table, old_table, data, at, end, key, e, memo,
            entry, newest, records_max, tails, k,
        )  # fmt: skip
    if s != 0:
        known = memo[entry + LENGTH]
        at += known
    else:
        judged = survey(plan, len(partial), tag, fingerprint, data, at, end, e)
        if judged != FOLDED:
            return judged
        s, at = begin(plan, fingerprint, words, meta, table, old_table, data, at, end, key, e, tails, k)
        if at < 0:
            return BROKEN
    ended, s = fold_tail(
        plan, partial, words, meta, table, old_table, data, at, end, key, s, e, row, stop_event, stop_time,
        tails, k,
    )  # fmt: skip
    if remembers and s != 0 and known < length:
        keep(memo, key, length, mark, tails[k, RECORDS], tails[k, SNAPSHOT_BYTES], tails[k, SINCE], words, s)
    return ended


@jit_inline
def take_up(
    plan: Int64s,
    partials: int,
    tag: int,
    fingerprint: int,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    data: Bytes,
    at: int,
    end: int,
    key: int,
    e: int,
    memo: Int64s,
    entry: int,
    newest: int,
    records_max: int,
    tails: Int64s,
    k: int,
) -> int:
    """The slab that the beginning of a value came to; 0 where the tail is long, or not all of this plan."""
    length = end - at
    at += memo[entry + LENGTH]
    if survey(plan, partials, tag, fingerprint, data, at, end, e) != FOLDED:
        return 0
    more = 0
    while at < end:
        more += 1
        at += HEAD + 8 * int(data[at + 1])
    tails[k, RECORDS] = memo[entry + memory.RECORDS] + more
    tails[k, SNAPSHOT_BYTES] = memo[entry + memory.SNAPSHOT_BYTES]
    tails[k, TAIL_BYTES] = length - tails[k, SNAPSHOT_BYTES]
    tails[k, SINCE] = memo[entry + memory.SINCE]
    if is_long(plan, e, tails, k, newest, records_max):
        return 0
    tails[k, RECORDS] -= more
    slab = entry + memory.HEAD
    used = ledger.used_words(memo, slab)
    room = used + entity_of(plan, e, E_GROWTH) * (more + 1)
    s = slabs.obtain(words, meta, table, old_table, key, slabs.class_of(room), 0)
    if s != 0:
        slabs.place(words, s, memo, slab, used)
        slabs.put(meta, table, key, s)
        meta[slabs.ENTITIES] += 1
    return s


@jit_inline
def begin(
    plan: Int64s,
    fingerprint: int,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    data: Bytes,
    at: int,
    end: int,
    key: int,
    e: int,
    tails: Int64s,
    k: int,
) -> tuple[int, int]:
    """The slab of a value's snapshot (0: it has none), and where its tail begins (-1: it is broken)."""
    s = 0
    start = at
    tails[k, RECORDS] = 0
    tails[k, SINCE] = NONE
    while end - at >= packing.HEADER and data[at] == MAGIC_0 and data[at + 1] == MAGIC_1:
        size = get_raw(data, at + 4, 4)
        behind = at + packing.HEADER + size
        if get_raw(data, at + 8, 8) == fingerprint:
            s = slabs.create(plan, words, meta, table, old_table, key, e, size)
            room = slabs.room_in(words, s)
            if packing.unpack(plan, data, at + packing.HEADER, behind, words, s, e, room) < 0:
                slabs.forget(words, meta, table, old_table, s)
                return 0, -1
            tails[k, SINCE] = words[s]
        at = behind
    tails[k, SNAPSHOT_BYTES] = at - start
    tails[k, TAIL_BYTES] = end - at
    if tails[k, SINCE] == NONE and at < end:
        tails[k, SINCE] = get_raw(data, at + HEAD, 8)
    return s, at


@jit_inline
def fold_tail(
    plan: Int64s,
    partial: Int64s,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    data: Bytes,
    at: int,
    end: int,
    key: int,
    s: int,
    e: int,
    row: Int64s,
    stop_event: int,
    stop_time: int,
    tails: Int64s,
    k: int,
) -> tuple[int, int]:
    """Fold the records data[at:end] into the slab at s (0: none yet): what became of it, and where it is."""
    record = pointer(row, entity_of(plan, e, E_RECORD))
    while at < end:
        head = get_raw(data, at, 8)
        kind, size, number = head & 0xFF, head >> 8 & 0xFF, head >> 16 & 0xFF
        time = get_raw(data, at + HEAD, 8)
        event = get_raw(data, at + HEAD + 8, 8)
        if stop_event != 0 and event == stop_event and time == stop_time and kind < RELEASE:
            return STOPPED, s
        if kind == RECORD:
            for j in range(size):
                record[j] = get_raw(data, at + HEAD + 8 * j, 8)
            by = plan if number == 0 else pointer(partial, (number - 1) * partial.shape[1])
            if s == 0:  # with room for all that follows, which would move it again and again
                growth = min(entity_of(plan, e, E_GROWTH), 4 * (size + 1))
                s = slabs.create(
                    plan, words, meta, table, old_table, key, e, growth * ((end - at) // (HEAD + 8 * size))
                )
            s = slabs.fold(by, words, meta, table, old_table, key, s, e, pointer(row, 0))
        elif kind != VOID:
            cell = entity_of(plan, e, E_CELLS) + number
            amount = get_raw(data, at + HEAD + 16, 8)
            last = get_raw(data, at + HEAD + 24, 8)
            if kind == RESERVE:
                if book(plan, words, meta, table, old_table, e, cell, key, time, amount, last):
                    put_raw(data, at + AT_MOST, GRANTED, 8)
            else:
                slabs.give_hold_back(plan, words, meta, table, old_table, e, cell, key, last, amount)
            s = slabs.locate(meta, table, old_table, key)
        tails[k, RECORDS] += 1
        at += HEAD + 8 * size
    return FOLDED, s


@jit
def survey(
    plan: Int64s, partials: int, tag: int, fingerprint: int, data: Bytes, at: int, end: int, e: int
) -> int:
    """Whether a value is whole, and all of this plan: FOLDED, FOREIGN or BROKEN."""
    sections = 0
    own = 0
    while end - at >= packing.HEADER and data[at] == MAGIC_0 and data[at + 1] == MAGIC_1:
        sections += 1
        own += get_raw(data, at + 8, 8) == fingerprint
        at += packing.HEADER + get_raw(data, at + 4, 4)
    foreign = sections > 0 and own == 0
    width = entity_of(plan, e, E_WIDTH)
    while at < end:
        if at + HEAD > end:
            return BROKEN
        head = get_raw(data, at, 8)
        kind, size, number = head & 0xFF, head >> 8 & 0xFF, head >> 16 & 0xFF
        if at + HEAD + 8 * size > end:
            return BROKEN
        if head >> 24 & 0xFF_FFFF_FFFF != tag:
            foreign = True
        elif kind == RECORD or kind == VOID:
            if size != width or (kind == RECORD and number > partials):
                return BROKEN
        elif kind == RESERVE or kind == RELEASE:
            if size != (5 if kind == RESERVE else 4) or number >= entity_of(plan, e, layout.E_CELLS_N):
                return BROKEN
            if cell_of(plan, entity_of(plan, e, E_CELLS) + number, layout.C_KIND) != HOLDS:
                return BROKEN
        else:
            return BROKEN
        at += HEAD + 8 * size
    if at != end:
        return BROKEN
    return FOREIGN if foreign else FOLDED


@jit
def book(
    plan: Int64s,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    e: int,
    cell: int,
    key: int,
    time: int,
    amount: int,
    most: int,
) -> bool:
    """Hold an amount of a limit where there is room for it; whether there was."""
    slab = pointer(words, 0)
    s = slabs.locate(meta, table, old_table, key)
    already = ledger.held(plan, slab, s, e, cell, time) if s != 0 else 0
    if already + amount > most:
        return False
    if amount != 0:
        if s == 0:
            s = slabs.create(plan, words, meta, table, old_table, key, e, 2)
        else:
            s = slabs.make_room(plan, words, meta, table, old_table, key, s, e, 2)
        ledger.advance(plan, slab, s, e, time)
        bucket = ledger.bucket_of(plan, cell_of(plan, cell, layout.C_WINDOWS), time)
        ledger.hold(plan, slab, s, e, cell, bucket, amount)
    return True
