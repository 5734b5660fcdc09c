"""Entity slabs in one reserved stretch of memory, found by 64-bit keys: the kernels of the in-process store.

Nothing here stops the world for longer than a batch: memory is reserved once and touched as it is
needed, the key table grows by moving a few slots a call, and the forgotten are swept a few at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from riskengine import aggregates, layout, ledger
from riskengine.cells import GREATEST, HOLDS, LEAST, TIMELINE
from riskengine.decision import DENY
from riskengine.kernel import jit, jit_allocating, jit_inline, pointer, prefetch, stack
from riskengine.layout import (
    E_AFTER_N,
    E_BEFORE_N,
    E_CELLS,
    E_CELLS_N,
    E_GROWTH,
    E_RECORD,
    E_REGIONS,
    E_RETENTION,
    E_WIDTH,
    L_CELL,
    L_DIGITS,
    L_ENTITY,
    L_FIELD,
    L_LIVE,
    L_MAX,
    L_SEVERITY,
    L_WHERE,
    META_CLASS,
    META_PLAN,
    NEVER_MS,
    NONE,
    P_LIMIT_TYPES,
    P_LIMITS_N,
    P_SLACK,
    P_TYPES_N,
    RECORD_MASK,
    T_ALL,
    T_PLAIN,
    T_WORDS,
    Float64s,
    Int64s,
    cell_of,
    entity_of,
    limit_of,
    region_words,
)

if TYPE_CHECKING:
    from riskengine.features import FeatureSet, Touches

SIZES: Final = np.array(
    [8, 10, 12, 14, 16, 18, 20, 24, 28, 32]
    + [(4 + quarter) << octave for octave in range(3, 19) for quarter in range(1, 5)],
    np.int64,
)  # words of a block, by size class: steps of a quarter octave waste an eighth on average
CLASSES: Final = len(SIZES)
SMALLEST: Final = 8  # words; whatever is cut off is even, and no smaller
NO_ROOM: Final = np.empty(0, np.int64)
FREE_SLOT: Final = 0  # refs of a slot never used, and of one whose entity was forgotten
TOMBSTONE: Final = -1
EVICT_SAMPLE: Final = 32  # stretches of memory of which the longest silent is freed
AMOUNT_MAX: Final = 9 * 10**18  # a maximum from here on is as good as none
AHEAD: Final = 4  # touches between calling memory in and using it, at each of three steps
TOTALS_FROM: Final = 32  # words of a slab that are worth totals
MET: Final = 16  # touches, a power of two, of which it is remembered where their slab was found
LINE: Final = 8  # words of a cache line
LINES_MAX: Final = 48  # called in at most, of one slab

# `meta`: counters, then (from FREE on) the first free slab of each class.
TOP, ENTITIES, FILLED, MOVED, SAMPLED, SWEPT, MIGRATED, EVICTIONS, EXPIRED, FREED, LOST = range(11)
GENERATION, TRACED, FREE = range(11, 14)
META_SIZE: Final = FREE + CLASSES

# The kernels share four int64 arrays: `words`, all slabs; `meta`; `table`, slots of a key and where its slab
# starts; `old_table`, while the table grows, what has not moved to the new one yet. They are passed one by
# one: a tuple of arrays is copied, and its arrays counted, at every call.
#
# `words` begins with an entity of which nothing is known, so that a key without a slab can be read at 0. From
# FIRST to meta[TOP] it is tiled by blocks: one word for the key of the entity (0: the block is free), and its
# slab, whose second word says the size class. A free slab's first word is the next free one of its class, its
# third the one before.
FIRST: Final = 8


# ---- the key table ----------------------------------------------------------------------------------


@jit_inline
def find(table: Int64s, key: int) -> int:
    """Slot of a key, or -1. Keys are hashes already: their low bits are the home slot."""
    mask = (len(table) >> 1) - 1
    at = key & mask
    while table[2 * at + 1] != FREE_SLOT:
        if table[2 * at] == key and table[2 * at + 1] > 0:
            return at
        at = (at + 1) & mask
    return -1


@jit
def put(meta: Int64s, table: Int64s, key: int, ref: int) -> None:
    """Enter a key that is in neither table."""
    mask = (len(table) >> 1) - 1
    at = key & mask
    while table[2 * at + 1] > 0:
        at = (at + 1) & mask
    if table[2 * at + 1] == FREE_SLOT:
        meta[FILLED] += 1
    table[2 * at] = key
    table[2 * at + 1] = ref


@jit_inline
def locate(meta: Int64s, table: Int64s, old_table: Int64s, key: int) -> int:
    """Where the slab of a key starts, or 0. A key met in the old table moves to the new one."""
    at = find(table, key)
    if at >= 0:
        return table[2 * at + 1]  # type: ignore[no-any-return]  # numpy's scalar, an int inside the kernel
    if meta[MOVED] >= len(old_table) >> 1:
        return 0
    at = find(old_table, key)
    if at < 0:
        return 0
    ref = old_table[2 * at + 1]
    old_table[2 * at + 1] = TOMBSTONE
    put(meta, table, key, ref)
    return ref  # type: ignore[no-any-return]  # an int in the kernel


@jit
def move(meta: Int64s, table: Int64s, old_table: Int64s, budget: int) -> bool:
    """Move up to `budget` slots of the old table; return whether all have moved."""
    at = meta[MOVED]
    slots = len(old_table) >> 1
    end = min(at + budget, slots)
    for slot in range(at, end):
        if old_table[2 * slot + 1] > 0:
            put(meta, table, old_table[2 * slot], old_table[2 * slot + 1])
            old_table[2 * slot + 1] = TOMBSTONE
    meta[MOVED] = end
    return bool(end == slots)


# ---- blocks -----------------------------------------------------------------------------------------


@jit
def lay_out(words: Int64s, meta: Int64s) -> None:
    """Begin fresh memory, with nothing left to move from an old table (of one slot)."""
    words[0] = NONE
    meta[MOVED] = 1
    meta[TOP] = FIRST
    meta[SWEPT] = FIRST
    meta[MIGRATED] = FIRST


@jit
def class_of(used: int) -> int:
    """The smallest size class whose blocks hold a slab of so many words; CLASSES where none does."""
    low = 0
    high = CLASSES
    while low < high:
        middle = (low + high) >> 1
        if SIZES[middle] < used + 1:
            low = middle + 1
        else:
            high = middle
    return low


@jit_inline
def slab_class(words: Int64s, s: int) -> int:
    """Size class of the block of a slab, in use or free."""
    return (words[s + 1] >> META_CLASS) & 0x7F  # type: ignore[no-any-return]  # an int in the kernel


@jit_inline
def room_in(words: Int64s, s: int) -> int:
    """Words that the slab in a block may take."""
    return SIZES[slab_class(words, s)] - 1  # type: ignore[no-any-return]  # an int in the kernel


@jit
def link(words: Int64s, meta: Int64s, s: int, size_class: int) -> None:
    """Make a block a free one of a class."""
    after = meta[FREE + size_class]
    words[s - 1] = 0
    words[s] = after
    words[s + 1] = size_class << META_CLASS
    words[s + 2] = 0
    if after != 0:
        words[after + 2] = s
    meta[FREE + size_class] = s
    meta[FREED] += SIZES[size_class]


@jit
def unlink(words: Int64s, meta: Int64s, s: int) -> None:
    """Take a block from the free ones of its class."""
    after = words[s]
    before = words[s + 2]
    if before != 0:
        words[before] = after
    else:
        meta[FREE + slab_class(words, s)] = after
    if after != 0:
        words[after + 2] = before
    meta[FREED] -= SIZES[slab_class(words, s)]


@jit
def cut(words: Int64s, meta: Int64s, s: int, size: int, wanted: int) -> None:
    """Make a stretch of `size` words a block of a class, and free blocks of the rest.

    A rest too small for a block stays with it: then `size` itself is that of a class.
    """
    rest = size - SIZES[wanted]
    if rest < SMALLEST:
        words[s + 1] = class_of(size - 1) << META_CLASS
        return
    words[s + 1] = wanted << META_CLASS
    at = s + SIZES[wanted]
    while rest > 0:
        part = min(class_of(rest - 1), CLASSES - 1)
        while SIZES[part] > rest or 0 < rest - SIZES[part] < SMALLEST:
            part -= 1
        link(words, meta, at, part)
        at += SIZES[part]
        rest -= SIZES[part]


@jit
def obtain(
    words: Int64s, meta: Int64s, table: Int64s, old_table: Int64s, key: int, wanted: int, keep: int
) -> int:
    """A slab of at least a class for a key; when memory is full, who was silent the longest makes room.

    `keep` is a slab that must stay (0: none). Returns 0 when nothing was to be had.
    """
    s = 0
    if wanted < CLASSES:
        if meta[FREE + wanted] != 0:
            s = meta[FREE + wanted]
            unlink(words, meta, s)
        elif meta[TOP] + SIZES[wanted] <= len(words):
            s = meta[TOP] + 1
            meta[TOP] += SIZES[wanted]
            words[s + 1] = wanted << META_CLASS
        else:
            s = reclaim(words, meta, table, old_table, wanted, keep)
    if s == 0:
        meta[LOST] += 1
    else:
        words[s - 1] = key
    return s


@jit
def reclaim(words: Int64s, meta: Int64s, table: Int64s, old_table: Int64s, wanted: int, keep: int) -> int:
    """Make a block of a class where there is none and no fresh memory; 0 when none can be made.

    From a larger free one, else from the blocks in a stretch of memory: of a few stretches, the one whose
    latest entity has been silent the longest. They are taken in the order of keys, which are hashes, as
    neighbours in memory came at the same time.
    """
    for larger in range(wanted + 1, CLASSES):
        s = meta[FREE + larger]
        if s != 0:
            unlink(words, meta, s)
            cut(words, meta, s, SIZES[larger], wanted)
            return s  # type: ignore[no-any-return]  # an int in the kernel
    best = 0
    best_end = 0
    best_newest = NEVER_MS
    looked = 0
    slot = meta[SAMPLED]
    for _ in range(max(len(table), len(old_table)) >> 1):
        for slots in (table, old_table):
            s = slots[2 * (slot & ((len(slots) >> 1) - 1)) + 1]
            if s > 0:
                at = block_after(words, s)
                end, newest = stretch(words, meta, at, SIZES[wanted], keep, best_newest)
                if end != 0:
                    best = at
                    best_end = end
                    best_newest = newest
                looked += 1
        slot += 1
        if best != 0 and looked >= EVICT_SAMPLE:
            break
    meta[SAMPLED] = slot
    if best == 0:  # behind nobody: then from the beginning, or from behind `keep`
        best = FIRST
        best_end, _ = stretch(words, meta, best, SIZES[wanted], keep, NEVER_MS)
        if best_end == 0 and keep != 0:
            best = block_after(words, keep)
            best_end, _ = stretch(words, meta, best, SIZES[wanted], keep, NEVER_MS)
        if best_end == 0:
            return 0
    at = best
    while at < best_end:
        s = at + 1
        at = block_after(words, s)
        if words[s - 1] != 0:
            forget(words, meta, table, old_table, s)
            meta[EVICTIONS] += 1
        unlink(words, meta, s)
    for walk in (SWEPT, MIGRATED):
        if best < meta[walk] < best_end:
            meta[walk] = best_end
    cut(words, meta, best + 1, best_end - best, wanted)
    return best + 1


@jit
def block_after(words: Int64s, s: int) -> int:
    """Where the block behind that of a slab begins."""
    return s - 1 + SIZES[slab_class(words, s)]  # type: ignore[no-any-return]  # an int in the kernel


@jit
def stretch(words: Int64s, meta: Int64s, at: int, size: int, keep: int, before: int) -> tuple[int, int]:
    """Where the blocks from `at` on that make up `size` words end, and when the latest of them was heard of.

    An end of 0: they were heard of at `before` or later, hold the slab `keep`, or memory ends.
    """
    end = at
    newest = NONE
    while True:
        if end >= meta[TOP]:
            return 0, newest
        s = end + 1
        if words[end] != 0:
            newest = max(newest, words[s])
            if s == keep or newest >= before:
                return 0, newest
        end = block_after(words, s)
        # The rest must make a block too, unless it stays with the only one.
        over = end - at - size
        if over == 0 or over >= SMALLEST or (over > 0 and s == at + 1):
            return end, newest


@jit
def forget(words: Int64s, meta: Int64s, table: Int64s, old_table: Int64s, s: int) -> None:
    """Drop the entity of a slab, and free its block."""
    slot = find(table, words[s - 1])
    if slot >= 0:
        table[2 * slot + 1] = TOMBSTONE
    else:
        old_table[2 * find(old_table, words[s - 1]) + 1] = TOMBSTONE
    link(words, meta, s, slab_class(words, s))
    meta[ENTITIES] -= 1


@jit
def sweep(
    plan: Int64s, words: Int64s, meta: Int64s, table: Int64s, old_table: Int64s, now: int, budget: int
) -> None:
    """Forget, among the next `budget` blocks, entities silent for longer than any of their windows."""
    plan = pointer(plan, 0)
    if meta[TOP] == FIRST:
        return
    at = meta[SWEPT]
    for _ in range(budget):
        if at >= meta[TOP]:
            at = FIRST
        s = at + 1
        if words[at] != 0 and ((words[s + 1] >> META_PLAN) & 0xFFFF) == meta[GENERATION]:
            retention = entity_of(plan, words[s + 1] & 0xFF, E_RETENTION) + plan[P_SLACK]
            if words[s] != NONE and now - words[s] > retention:
                forget(words, meta, table, old_table, s)
                meta[EXPIRED] += 1
        at = block_after(words, s)
    meta[SWEPT] = at


# ---- slabs ------------------------------------------------------------------------------------------


@jit
def create(
    plan: Int64s,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    key: int,
    e: int,
    growth: int,
) -> int:
    """A new slab for an entity with `growth` words of room; 0 when memory is full and nothing gives."""
    plan = pointer(plan, 0)
    fixed = entity_of(plan, e, layout.E_FIXED) + entity_of(plan, e, layout.E_FIXED_N)
    s = obtain(words, meta, table, old_table, key, class_of(fixed + growth), 0)
    if s != 0:
        size_class = slab_class(words, s)
        head = e | (meta[GENERATION] << META_PLAN) | (size_class << META_CLASS)
        ledger.empty_slab(plan, pointer(words, 0), s, e, head)
        put(meta, table, key, s)
        meta[ENTITIES] += 1
    return s


@jit
def make_room(
    plan: Int64s,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    key: int,
    s: int,
    e: int,
    growth: int,
) -> int:
    """Give a slab `growth` words of room: by tidying it, else by moving it. Returns where it is, or 0.

    One that has become long starts to keep totals.
    """
    plan, slab = pointer(plan, 0), pointer(words, 0)
    room = room_in(words, s)
    if ledger.used_words(slab, s) + growth <= room:
        return s
    ledger.tidy(plan, slab, s, e)
    used = ledger.used_words(slab, s)
    totals = 0
    if used >= TOTALS_FROM and not ledger.totals_run(slab, s):
        totals = layout.running_of(plan, e, T_WORDS)
    # A large slab that is nearly full after tidying would be tidied again soon: it grows instead.
    if used + totals + growth <= room - (room >> 2 if room > TOTALS_FROM else 0):
        if totals:
            ledger.run_totals(plan, slab, s, e)
        return s
    used += totals
    wanted = class_of(max(used + growth, used + (used >> (1 if used >= TOTALS_FROM else 2))))
    target = obtain(words, meta, table, old_table, key, wanted, s)
    if target == 0:
        return 0
    place(words, target, words, s, used - totals)
    if totals:
        ledger.run_totals(plan, slab, target, e)
    link(words, meta, s, slab_class(words, s))
    table[2 * find(table, key) + 1] = target
    return target


@jit
def place(words: Int64s, target: int, source: Int64s, at: int, used: int) -> None:
    """Copy the slab at source[at] into the block of the one at `target`."""
    size_class = slab_class(words, target)
    for k in range(used):
        words[target + k] = source[at + k]
    words[target + 1] = (words[target + 1] & ~(0x7F << META_CLASS)) | (size_class << META_CLASS)


@jit
def growth_of(plan: Int64s, e: int, mask: int) -> int:
    """Words that a record with this mask may add to a slab."""
    first_cell = entity_of(plan, e, E_CELLS)
    first_region = entity_of(plan, e, E_REGIONS)
    growth = 0
    for c in range(entity_of(plan, e, E_CELLS_N)):
        cell = first_cell + c
        if (mask >> c) & 1 and cell_of(plan, cell, layout.C_KIND) <= HOLDS:
            growth += region_words(plan, first_region + cell_of(plan, cell, layout.C_AT))
    return growth


@jit_inline
def fold(
    plan: Int64s,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    key: int,
    s: int,
    e: int,
    record: Int64s,
) -> int:
    """Apply a record to the slab of an entity (`s` is 0 for a new one); return where the slab is, or 0."""
    slab = pointer(words, 0)
    if s == 0 or ledger.used_words(slab, s) + entity_of(plan, e, E_GROWTH) > room_in(words, s):
        mask = record[entity_of(plan, e, E_RECORD) + RECORD_MASK]
        growth = growth_of(plan, e, mask)
        s = (
            create(plan, words, meta, table, old_table, key, e, growth)
            if s == 0
            else make_room(plan, words, meta, table, old_table, key, s, e, growth)
        )
    if s != 0:
        ledger.apply(plan, slab, s, e, record)
    return s


# ---- what the store does ----------------------------------------------------------------------------


@jit_inline
def call_slot(table: Int64s, key: int) -> None:
    """Call in the home slot of a key."""
    prefetch(table, 2 * (key & ((len(table) >> 1) - 1)))


@jit_inline
def call_slab(words: Int64s, table: Int64s, key: int) -> int:
    """Call in the head of a key's slab, once its slot has come; where it starts, or 0."""
    at = find(table, key)
    if at < 0:
        return 0
    s = table[2 * at + 1]
    prefetch(words, s)
    prefetch(words, s + LINE)
    return s  # type: ignore[no-any-return]  # an int in the kernel


@jit_inline
def call_rest(plan: Int64s, words: Int64s, s: int, e: int) -> None:
    """Call in what is needed of a slab besides, once its head has come."""
    used = ledger.used_words(words, s)
    if (
        layout.running_of(plan, e, T_ALL)
        and ledger.totals_run(words, s)
        and used + entity_of(plan, e, E_GROWTH) <= room_in(words, s)  # else it will be tidied
    ):
        ledger.call_ends(plan, words, s, e)
        return
    end = s + used
    for line in range(max(s + 2 * LINE, end - LINE * LINES_MAX), end, LINE):
        prefetch(words, line)


@jit
def observe(
    plan: Int64s,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    keys: Int64s,
    records: Int64s,
    read_at: Int64s,
    cells: Float64s,
    bits: Int64s,
    scratch: Int64s,
    texts: Int64s,
) -> None:
    """Entity by entity, event by event: read what stands before a record, fold it, read the row.

    Entities know nothing of each other, so their order is free: with one after the other, its plan and the
    branches it takes stay in the processor's caches. What the next keys need is called in meanwhile: half of
    the time went into waiting for memory. Where a slab was found is good until it moves, or others make room.
    """
    plan, slab, room = pointer(plan, 0), pointer(words, 0), pointer(scratch, 0)
    n = keys.shape[0]
    entities = keys.shape[1] if n > 0 else 0
    met = stack(MET)  # where slabs start, by the number of the touch
    evictions = meta[EVICTIONS]
    lost = -MET  # the last touch at which any may have gone
    touch = -3 * AHEAD
    i = i_rest = i_slab = i_slot = 0
    e = e_rest = e_slab = e_slot = kept_from(plan, 0, entities)
    while e < entities:
        if e_slot < entities:
            call_slot(table, keys[i_slot, e_slot])
            i_slot += 1
            if i_slot == n:
                i_slot, e_slot = 0, kept_from(plan, e_slot + 1, entities)
        if touch >= -2 * AHEAD and e_slab < entities:
            met[(touch + 2 * AHEAD) & (MET - 1)] = call_slab(slab, table, keys[i_slab, e_slab])
            i_slab += 1
            if i_slab == n:
                i_slab, e_slab = 0, kept_from(plan, e_slab + 1, entities)
        if touch >= -AHEAD and e_rest < entities:
            s = met[(touch + AHEAD) & (MET - 1)]
            if s != 0 and lost < touch - AHEAD:
                call_rest(plan, slab, s, e_rest)
            i_rest += 1
            if i_rest == n:
                i_rest, e_rest = 0, kept_from(plan, e_rest + 1, entities)
        if touch >= 0:
            key = keys[i, e]
            if key != 0:
                s = met[touch & (MET - 1)]
                if s == 0 or lost >= touch - 2 * AHEAD:
                    s = locate(meta, table, old_table, key)
                row, bits_row = pointer(cells, i), pointer(bits, i)
                spelt = pointer(texts, i * texts.shape[1])
                record = pointer(records, i * records.shape[1])
                record_at = entity_of(plan, e, E_RECORD)
                done = False
                if s != 0 and layout.running_of(plan, e, T_PLAIN) and read_at[i] == record[record_at]:
                    done = aggregates.step(plan, slab, s, e, record, row, n, room_in(slab, s))
                if not done and entity_of(plan, e, E_BEFORE_N) > 0:
                    aggregates.read(plan, slab, s, e, read_at[i], 1, row, bits_row, n, spelt, room)
                if not done and record[record_at + RECORD_MASK] != 0:
                    found = s
                    s = fold(plan, words, meta, table, old_table, key, s, e, record)
                    if s != found and found != 0:
                        for k in range(MET):
                            met[k] = s if met[k] == found else met[k]
                    if meta[EVICTIONS] != evictions:
                        evictions = meta[EVICTIONS]
                        lost = touch
                if not done and entity_of(plan, e, E_AFTER_N) > 0:
                    aggregates.read(plan, slab, s, e, read_at[i], 0, row, bits_row, n, spelt, room)
            i += 1
            if i == n:
                i, e = 0, kept_from(plan, e + 1, entities)
        touch += 1


@jit_inline
def kept_from(plan: Int64s, e: int, entities: int) -> int:
    """The first entity from `e` on of which anything is kept; `entities` where there is none."""
    while e < entities and entity_of(plan, e, E_WIDTH) == 0:
        e += 1
    return e


def look(
    features: FeatureSet, arrays: tuple[Int64s, Int64s, Int64s, Int64s], touches: Touches, scratch: Int64s
) -> Int64s:
    """`observe` of one event that moves nothing; what each limit holds at its time (L, minor units)."""
    words, meta, table, old_table = arrays
    observe(
        features.flat, *arrays, touches.keys, touches.records, touches.read_at, touches.cells, touches.bits,
        scratch, touches.texts,
    )  # fmt: skip
    held = np.zeros(len(features.limit_names), np.int64)
    for limit, row in enumerate(features.plan.limits):
        e, cell = int(row[L_ENTITY]), int(row[L_CELL])
        s = locate(meta, table, old_table, int(touches.keys[0, e]))
        if s != 0:
            held[limit] = ledger.held(features.flat, words, s, e, cell, int(touches.read_at[0]))
    return held


def members(
    plan: Int64s, words: Int64s, meta: Int64s, table: Int64s, old_table: Int64s,
    spots: Sequence[tuple[int, int]], links: Mapping[int, Sequence[tuple[int, int]]], time: int,
) -> list[list[Int64s]]:  # fmt: skip
    """Of entities (number, key), the members of their cells in windows (`links`, by entity) at a time."""
    found = []
    for e, key in spots:
        s = locate(meta, table, old_table, key)
        lists = []
        for cell, window in links[e]:
            out = np.empty(
                aggregates.members(plan, words, s, e, cell, window, time, NO_ROOM) if s else 0, np.int64
            )
            if len(out):
                aggregates.members(plan, words, s, e, cell, window, time, out)
            lists.append(np.sort(out))
        found.append(lists)
    return found


@jit
def amend(
    plan: Int64s,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    keys: Int64s,
    entities: Int64s,
    records: Int64s,
) -> None:
    """Fold records that come after their event: row k of `records` into entity `entities[k]`, `keys[k]`."""
    plan = pointer(plan, 0)
    for k in range(len(keys)):
        fold(
            plan,
            words,
            meta,
            table,
            old_table,
            keys[k],
            locate(meta, table, old_table, keys[k]),
            entities[k],
            pointer(records, k * records.shape[1]),
        )


@jit
def amount_of(digits: int, value: float) -> int:
    """A limit's maximum in minor units, floor(Decimal(repr(value)) * 10**digits); NONE where it is missing.

    A float stands for all numbers that round to it, and `repr` writes that of the fewest digits, the nearest
    of equals: in minor units a multiple of the largest power of ten that has one so near. Where there is not
    even a whole number so near, rounding down is the same for all of them. `digits` is -6 to 9; what is below
    nothing gives -1, and what reaches AMOUNT_MAX gives that.
    """
    if np.isnan(value):
        return NONE
    if value < 0.0:
        return -1
    power = 1.0
    for _ in range(digits):
        power *= 10.0
    if value * power >= 9.2e18:
        return AMOUNT_MAX
    if value * power < 0.5:
        return 0
    # value * power as a float and what it was rounded by (T. J. Dekker, A floating-point technique for
    # extending the available precision, 1971).
    product = value * power
    high = value * 134217729.0
    high = high - (high - value)
    high_power = power * 134217729.0
    high_power = high_power - (high_power - power)
    low = value - high
    low_power = power - high_power
    error = ((high * high_power - product) + high * low_power + low * high_power) + low * low_power
    whole = int(np.rint(product)) + int(np.rint(error))
    part = (product - np.rint(product)) + (error - np.rint(error))  # from -1 to 1; exact where it decides
    mantissa, exponent = math.frexp(value)
    reach_up = math.ldexp(power, exponent - 54)  # half of the last place, in minor units
    reach_down = reach_up if mantissa != 0.5 else reach_up / 2.0
    even = int(math.ldexp(mantissa, 53)) & 1 == 0  # then what lies halfway rounds to it as well
    step = 10**18 if reach_up >= 0.25 else 1
    while step > 0:
        rest = whole % step
        if rest == 0 and part < 0.0:
            rest = step
        below = float(rest) + part  # how far down and up the next multiples of the step are
        above = float(step - rest) - part
        down = below < reach_down or (even and below == reach_down)
        up = above < reach_up or (even and above == reach_up)
        if down and up:
            up = above < below or (above == below and ((whole - rest) // step) % 2 == 1)
        if down or up:
            whole += step - rest if up else -rest
            part = 0.0
            break
        step //= 10
    if part < 0.0:
        whole -= 1
    for _ in range(-digits):
        whole //= 10
    return min(whole, AMOUNT_MAX)


@jit
def settle(
    plan: Int64s,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    type_index: NDArray[np.int32],
    time: Int64s,
    late: NDArray[np.bool_],
    counted: bool,
    keys: Int64s,
    cells: Float64s,
    base: Int64s,
    prior: Int64s,
    prior_keys: Int64s,
    hits: NDArray[np.uint8],
    final: Int64s,
    event_hash: NDArray[np.uint64],
    masks: Int64s,
    records: Int64s,
    kept: Int64s,
    traces: Int64s,
    at_holds: int,
) -> None:
    """Event by event: try every limit, decide, and hold what is granted unless the event is denied.

    `prior` int64 (L, 2) are bucket and amount held by the event that a lone event follows (amount NONE:
    nothing), at `prior_keys` (E); empty for a batch, and used up by this call. Writes which limits refused
    into the last columns of `hits`, final severity (n), and `traces` from row meta[TRACED] on, a row an
    event: time, hash, keys, masks, the words `kept` of its records, and from `at_holds` on bucket and amount
    of each limit, amount NONE where nothing stays held.
    """
    plan, slab = pointer(plan, 0), pointer(words, 0)
    follows = prior.shape[0] > 0
    limits = plan[P_LIMITS_N]
    # To call in the slabs of later events, as `observe` does, gains nothing here: they were met just before
    # (1.15 us an event with it, 1.08 without).
    for i in range(len(time)):
        row = meta[TRACED] + i
        worst = base[i]
        for limit in range(limits):
            e = limit_of(plan, limit, L_ENTITY)
            cell = limit_of(plan, limit, L_CELL)
            digits = limit_of(plan, limit, L_DIGITS)
            where = limit_of(plan, limit, L_WHERE)
            field = limit_of(plan, limit, L_FIELD)
            key = keys[i, e]
            hits[i, hits.shape[1] - limits + limit] = 0
            traces[row, at_holds + 2 * limit] = 0
            traces[row, at_holds + 2 * limit + 1] = NONE
            on_type = plan[plan[P_LIMIT_TYPES] + limit * plan[P_TYPES_N] + type_index[i]]
            asks = key != 0 and on_type != 0 and (where < 0 or cells[where, i] == 1.0)
            amount = 1
            if field >= 0:
                amount = 0 if np.isnan(cells[field, i]) else max(0, layout.minor_of(cells[field, i], digits))
            if follows and prior[limit, 1] != NONE and not late[i]:
                if asks and counted and prior_keys[e] == key and prior[limit, 1] == amount:
                    traces[row, at_holds + 2 * limit] = prior[limit, 0]
                    traces[row, at_holds + 2 * limit + 1] = amount
                    continue
                give_hold_back(
                    plan,
                    words,
                    meta,
                    table,
                    old_table,
                    e,
                    cell,
                    prior_keys[e],
                    prior[limit, 0],
                    prior[limit, 1],
                )
                prior[limit, 1] = NONE
            if not asks:
                continue
            most = amount_of(digits, cells[limit_of(plan, limit, L_MAX), i])
            granted = False
            if not late[i] and counted and most != NONE:
                s = locate(meta, table, old_table, key)
                already = ledger.held(plan, slab, s, e, cell, time[i]) if s != 0 else 0
                granted = already + amount <= most
            if granted:
                traces[row, at_holds + 2 * limit] = ledger.bucket_of(
                    plan, cell_of(plan, cell, layout.C_WINDOWS), time[i]
                )
                traces[row, at_holds + 2 * limit + 1] = amount
            else:
                hits[i, hits.shape[1] - limits + limit] = 1
                if limit_of(plan, limit, L_LIVE):
                    worst = max(worst, limit_of(plan, limit, L_SEVERITY))
        final[i] = worst
        for limit in range(limits):
            amount = traces[row, at_holds + 2 * limit + 1]
            if amount == NONE:
                continue
            e = limit_of(plan, limit, L_ENTITY)
            cell = limit_of(plan, limit, L_CELL)
            bucket = traces[row, at_holds + 2 * limit]
            key = keys[i, e]
            handed = follows and prior[limit, 1] != NONE
            if worst == DENY:
                if handed:
                    give_hold_back(plan, words, meta, table, old_table, e, cell, key, bucket, amount)
                traces[row, at_holds + 2 * limit + 1] = NONE
            elif not handed and amount != 0:
                s = locate(meta, table, old_table, key)
                if s == 0:
                    s = create(plan, words, meta, table, old_table, key, e, 2)
                else:
                    s = make_room(plan, words, meta, table, old_table, key, s, e, 2)
                if s != 0:
                    ledger.advance(plan, slab, s, e, time[i])
                    ledger.hold(plan, slab, s, e, cell, bucket, amount)
        traces[row, 0] = time[i]
        traces[row, 1] = np.int64(event_hash[i])
        to = 2
        for e in range(keys.shape[1]):
            traces[row, to + e] = keys[i, e]
            traces[row, to + keys.shape[1] + e] = masks[i, e]
        to += 2 * keys.shape[1]
        for k in range(len(kept)):
            traces[row, to + k] = records[i, kept[k]]


@jit
def give_hold_back(
    plan: Int64s,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    e: int,
    cell: int,
    key: int,
    bucket: int,
    amount: int,
) -> None:
    """Return what is held in a bucket of a limit."""
    plan = pointer(plan, 0)
    s = locate(meta, table, old_table, key)
    if s != 0 and amount != 0:
        s = make_room(plan, words, meta, table, old_table, key, s, e, 2)
        if s != 0:
            ledger.hold(plan, pointer(words, 0), s, e, cell, bucket, -amount)


# ---- plans change -----------------------------------------------------------------------------------


@jit
def next_keys(words: Int64s, meta: Int64s, keys: Int64s) -> bool:
    """Fill `keys` from the blocks behind those of the last call (0: free); whether these were the last."""
    at = meta[MIGRATED]
    for k in range(len(keys)):
        keys[k] = 0
        if at < meta[TOP]:
            keys[k] = words[at]
            at = block_after(words, at + 1)
    meta[MIGRATED] = at
    return bool(at >= meta[TOP])


@jit_allocating
def migrate(
    old: Int64s,
    new: Int64s,
    entity_map: Int64s,
    cell_map: Int64s,
    column_map: Int64s,
    generation: int,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    keys: Int64s,
) -> None:
    """Bring the slabs of `keys` from an old plan (`generation`) to the new one; what is unchanged stays.

    entity_map: old entity to new, -1 is gone. cell_map: new cell to old, -1 is new. column_map: new
    timeline column to its number in the old timeline, -1 is new and starts from nothing.
    """
    old, new, slab = pointer(old, 0), pointer(new, 0), pointer(words, 0)
    for key in keys:
        s = locate(meta, table, old_table, key) if key != 0 else 0
        if s == 0 or ((words[s + 1] >> META_PLAN) & 0xFFFF) != generation:
            continue
        e_old = words[s + 1] & 0xFF
        e = entity_map[e_old]
        if e < 0:
            forget(words, meta, table, old_table, s)
            continue
        first_cell = entity_of(new, e, E_CELLS)
        last_cell = first_cell + entity_of(new, e, E_CELLS_N)
        fixed = entity_of(new, e, layout.E_FIXED)
        used = fixed + entity_of(new, e, layout.E_FIXED_N)
        for cell in range(first_cell, last_cell):
            if cell_of(new, cell, layout.C_KIND) <= HOLDS and cell_map[cell] >= 0:
                region = cell_of(old, cell_map[cell], layout.C_AT)
                used += ledger.count_of(slab, s, region) * cell_of(new, cell, layout.C_WORDS)
        copy = np.empty(used, np.int64)
        to = pointer(copy, 0)
        ledger.empty_slab(new, to, 0, e, e | (meta[GENERATION] << META_PLAN))
        copy[0] = words[s]
        write = fixed + entity_of(new, e, layout.E_FIXED_N)
        for cell in range(first_cell, last_cell):
            source = cell_map[cell]
            if source < 0:
                continue
            size = cell_of(new, cell, layout.C_WORDS)
            at = cell_of(new, cell, layout.C_AT)
            if cell_of(new, cell, layout.C_KIND) > HOLDS:
                read = s + entity_of(old, e_old, layout.E_FIXED) + cell_of(old, source, layout.C_AT)
                for k in range(size):
                    copy[fixed + at + k] = words[read + k]
                continue
            region = cell_of(old, source, layout.C_AT)
            n = ledger.count_of(slab, s, region)
            old_size = cell_of(old, source, layout.C_WORDS)
            read = ledger.region_start(old, slab, s, e_old, region)
            for i in range(n):
                copy_entry(new, cell, column_map, words, read + i * old_size, copy, write)
                write += size
            ledger.set_count(to, 0, at, n)
        ledger.set_used(to, 0, write)
        move_in(words, meta, table, old_table, key, s, copy, write)


@jit
def copy_entry(
    new: Int64s, cell: int, column_map: Int64s, words: Int64s, read: int, copy: Int64s, write: int
) -> None:
    """Copy one entry of a region to its new layout."""
    size = cell_of(new, cell, layout.C_WORDS)
    copy[write] = words[read]
    if cell_of(new, cell, layout.C_KIND) != TIMELINE:
        for k in range(1, size):
            copy[write + k] = words[read + k]
        return
    first = cell_of(new, cell, layout.C_COLUMNS)
    for k in range(size - 1):
        source = column_map[first + k]
        if source >= 0:
            copy[write + 1 + k] = words[read + 1 + source]
        else:
            op = layout.column_of(new, first + k, layout.K_OP)
            copy[write + 1 + k] = NONE if op == LEAST or op == GREATEST else 0


@jit
def move_in(
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    key: int,
    s: int,
    copy: Int64s,
    used: int,
) -> None:
    """Put a finished slab in the place of the one at `s` (0: of none); without memory the entity is lost."""
    target = obtain(words, meta, table, old_table, key, class_of(used), s)
    if target == 0:
        if s != 0:
            forget(words, meta, table, old_table, s)
        return
    place(words, target, copy, 0, used)
    if s != 0:
        link(words, meta, s, slab_class(words, s))
        table[2 * find(table, key) + 1] = target
    else:
        put(meta, table, key, target)
        meta[ENTITIES] += 1


# ---- lists ------------------------------------------------------------------------------------------


@jit
def enter(entries: Int64s, key: int, expires: int) -> bool:
    """Put a list entry into its table (key and expiry, as `find` reads it); whether it took a free slot.

    The table must have one. An expiry of TOMBSTONE takes the entry out.
    """
    mask = (len(entries) >> 1) - 1
    at = key & mask
    while entries[2 * at + 1] != FREE_SLOT and entries[2 * at] != key:
        at = (at + 1) & mask
    fresh = entries[2 * at + 1] == FREE_SLOT
    entries[2 * at] = key
    entries[2 * at + 1] = expires
    return bool(fresh)


@jit
def look_up(
    listed: Int64s, salts: Int64s, entries: Int64s, keys: Int64s, time: Int64s, cells: Float64s
) -> int:
    """Write, for every (list, entity, column), whether each event's entity is listed at its time.

    Return which of them were met by any event, a bit each; the last one is of all from the 63rd on.
    """
    met = 0
    for pair in range(listed.shape[0]):
        e = listed[pair, 1]
        out = listed[pair, 2]
        for i in range(keys.shape[0]):
            cells[out, i] = 0.0
            if keys[i, e] != 0:
                at = find(entries, keys[i, e] ^ salts[pair])
                if at >= 0 and time[i] < entries[2 * at + 1]:
                    cells[out, i] = 1.0
                    met |= 1 << min(pair, 62)
    return met
