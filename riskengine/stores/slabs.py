"""Entity slabs in one reserved stretch of memory, found by 64-bit keys: the kernels of the in-process store.

Nothing here stops the world for longer than a batch: memory is reserved once and touched as it is
needed, the key table grows by moving a few slots a call, and the forgotten are swept a few at a time.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from riskengine import ledger
from riskengine.decision import DENY
from riskengine.features import (
    L_CELL, L_DIGITS, L_ENTITY, L_FIELD, L_LIVE, L_MAX, L_SEVERITY, L_WHERE,
)  # fmt: skip
from riskengine.kernel import jit
from riskengine.ledger import (
    E_CELLS, E_CELLS_N, E_READS_N, E_RECORD, E_REGIONS, E_RETENTION, E_WIDTH, META_CLASS, META_PLAN, NONE,
    RECORD_MASK, Float64s, Int64s, Plan,
)  # fmt: skip

SIZES: Final = np.array(
    [8, 12, 16, 20, 24, 28, 32]
    + [(4 + quarter) << octave for octave in range(3, 19) for quarter in range(1, 5)],
    np.int64,
)  # words of a slab, by size class: steps of a quarter octave waste an eighth on average
CLASSES: Final = len(SIZES)
FREE_SLOT: Final = 0  # refs of a slot never used, and of one whose entity was forgotten
TOMBSTONE: Final = -1
EVICT_SAMPLE: Final = 32

# Words of Slabs.meta.
TOP, ENTITIES, FILLED, MOVED, HAND, EVICTIONS, EXPIRED, FREED, LOST, GENERATION, META_SIZE = range(11)


class Slabs(NamedTuple):
    """The store's memory. A slot of the table holds a key and where its slab starts in `words`.

    While the table grows, `old_keys` and `old_refs` hold what has not moved yet, else one free slot.
    """

    words: Int64s
    free: Int64s  # first free slab of each class, linked through its first word; 0 is none
    meta: Int64s
    keys: Int64s
    refs: Int64s
    old_keys: Int64s
    old_refs: Int64s


# ---- the key table ----------------------------------------------------------------------------------


@jit
def find(keys: Int64s, refs: Int64s, key: int) -> int:
    """Slot of a key, or -1. Keys are hashes already: their low bits are the home slot."""
    mask = len(keys) - 1
    at = key & mask
    while refs[at] != FREE_SLOT:
        if keys[at] == key and refs[at] > 0:
            return at
        at = (at + 1) & mask
    return -1


@jit
def put(slabs: Slabs, key: int, ref: int) -> None:
    """Enter a key that is in neither table."""
    mask = len(slabs.keys) - 1
    at = key & mask
    while slabs.refs[at] > 0:
        at = (at + 1) & mask
    if slabs.refs[at] == FREE_SLOT:
        slabs.meta[FILLED] += 1
    slabs.keys[at] = key
    slabs.refs[at] = ref


@jit
def locate(slabs: Slabs, key: int) -> int:
    """Where the slab of a key starts, or 0. A key met in the old table moves to the new one."""
    at = find(slabs.keys, slabs.refs, key)
    if at >= 0:
        return slabs.refs[at]  # type: ignore[no-any-return]  # numpy's scalar, an int inside the kernel
    at = find(slabs.old_keys, slabs.old_refs, key)
    if at < 0:
        return 0
    ref = slabs.old_refs[at]
    slabs.old_refs[at] = TOMBSTONE
    put(slabs, key, ref)
    return ref  # type: ignore[no-any-return]  # as above


@jit
def move(slabs: Slabs, budget: int) -> bool:
    """Move up to `budget` slots of the old table; return whether all have moved."""
    at = slabs.meta[MOVED]
    end = min(at + budget, len(slabs.old_keys))
    for slot in range(at, end):
        if slabs.old_refs[slot] > 0:
            put(slabs, slabs.old_keys[slot], slabs.old_refs[slot])
            slabs.old_refs[slot] = TOMBSTONE
    slabs.meta[MOVED] = end
    return end == len(slabs.old_keys)


# ---- slabs ------------------------------------------------------------------------------------------


@jit
def class_of(words: int) -> int:
    """The smallest size class that holds so many words."""
    low = 0
    high = CLASSES - 1
    while low < high:
        middle = (low + high) >> 1
        if SIZES[middle] < words:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def slab_class(words: Int64s, s: int) -> int:
    """Size class of a slab."""
    return (words[s + 1] >> META_CLASS) & 0xFF  # type: ignore[no-any-return]  # as above


@jit
def take(slabs: Slabs, wanted: int) -> int:
    """A slab of a size class, from the free ones or from fresh memory; 0 when there is neither."""
    s = slabs.free[wanted]
    if s != 0:
        slabs.free[wanted] = slabs.words[s]
        slabs.meta[FREED] -= SIZES[wanted]
        return s  # type: ignore[no-any-return]  # as above
    top = slabs.meta[TOP]
    if top + SIZES[wanted] > len(slabs.words):
        return 0
    slabs.meta[TOP] = top + SIZES[wanted]
    return top  # type: ignore[no-any-return]  # as above


@jit
def give_back(slabs: Slabs, s: int, size_class: int) -> None:
    """Return a slab to the free ones of its class."""
    slabs.words[s] = slabs.free[size_class]
    slabs.free[size_class] = s
    slabs.meta[FREED] += SIZES[size_class]


@jit
def forget(slabs: Slabs, keys: Int64s, refs: Int64s, slot: int) -> None:
    """Drop the entity of a slot."""
    s = refs[slot]
    give_back(slabs, s, slab_class(slabs.words, s))
    refs[slot] = TOMBSTONE
    slabs.meta[ENTITIES] -= 1


@jit
def obtain(slabs: Slabs, wanted: int, keep: int) -> int:
    """A slab of a class; when memory is full, the longest silent of a few entities make room.

    `keep` is a slab that must stay. Returns 0 when nothing was to be had.
    """
    s = take(slabs, wanted)
    tries = 0
    while s == 0 and tries < 4096:
        tries += 1
        evict(slabs, keep)
        for bigger in range(wanted, min(wanted + 4, CLASSES)):
            if slabs.free[bigger] != 0:
                s = slabs.free[bigger]
                slabs.free[bigger] = slabs.words[s]
                slabs.meta[FREED] -= SIZES[bigger]
                slabs.words[s + 1] = bigger << META_CLASS
                return s  # type: ignore[no-any-return]  # as above
    if s == 0:
        slabs.meta[LOST] += 1
        return 0
    slabs.words[s + 1] = wanted << META_CLASS
    return s


@jit
def evict(slabs: Slabs, keep: int) -> None:
    """Forget the longest silent of the next few entities under the hand."""
    mask = len(slabs.keys) - 1
    at = slabs.meta[HAND] & mask
    oldest = -1
    seen = 0
    for _ in range(len(slabs.keys)):
        ref = slabs.refs[at]
        if ref > 0 and ref != keep:
            if oldest < 0 or slabs.words[ref] < slabs.words[slabs.refs[oldest]]:
                oldest = at
            seen += 1
            if seen == EVICT_SAMPLE:
                break
        at = (at + 1) & mask
    slabs.meta[HAND] = at
    if oldest >= 0:
        forget(slabs, slabs.keys, slabs.refs, oldest)
        slabs.meta[EVICTIONS] += 1


@jit
def sweep(plan: Plan, slabs: Slabs, now: int, budget: int) -> None:
    """Forget, among the next `budget` slots, entities silent for longer than any of their windows."""
    mask = len(slabs.keys) - 1
    at = slabs.meta[HAND] & mask
    for _ in range(min(budget, len(slabs.keys))):
        s = slabs.refs[at]
        if s > 0 and ((slabs.words[s + 1] >> META_PLAN) & 0xFFFF) == slabs.meta[GENERATION]:
            e = slabs.words[s + 1] & 0xFF
            if slabs.words[s] != NONE and now - slabs.words[s] > plan.entities[e, E_RETENTION] + plan.slack_ms:
                forget(slabs, slabs.keys, slabs.refs, at)
                slabs.meta[EXPIRED] += 1
        at = (at + 1) & mask
    slabs.meta[HAND] = at


@jit
def create(plan: Plan, slabs: Slabs, key: int, e: int, growth: int) -> int:
    """A new slab for an entity with `growth` words of room; 0 when memory is full and nothing gives."""
    fixed = plan.entities[e, ledger.E_FIXED] + plan.entities[e, ledger.E_FIXED_N]
    s = obtain(slabs, class_of(fixed + growth), 0)
    if s != 0:
        size_class = slab_class(slabs.words, s)
        meta = e | (slabs.meta[GENERATION] << META_PLAN) | (size_class << META_CLASS)
        ledger.empty_slab(plan, slabs.words, s, e, meta)
        put(slabs, key, s)
        slabs.meta[ENTITIES] += 1
    return s


@jit
def make_room(plan: Plan, slabs: Slabs, key: int, s: int, e: int, growth: int) -> int:
    """Give a slab `growth` words of room: by tidying it, else by moving it. Returns where it is, or 0."""
    words = slabs.words
    room = SIZES[slab_class(words, s)]
    if ledger.used_words(words, s) + growth <= room:
        return s
    ledger.tidy(plan, words, s, e)
    used = ledger.used_words(words, s)
    # A large slab that is nearly full after tidying would be tidied again at once: it grows instead.
    if used + growth <= room - (room >> 3 if room > 32 else 0):
        return s
    target = obtain(slabs, class_of(max(used + growth, used + (used >> 2))), s)
    if target == 0:
        return 0
    size_class = slab_class(words, target)
    for k in range(used):
        words[target + k] = words[s + k]
    words[target + 1] = (words[target + 1] & ~(0xFF << META_CLASS)) | (size_class << META_CLASS)
    give_back(slabs, s, slab_class(words, s))
    slabs.refs[find(slabs.keys, slabs.refs, key)] = target
    return target


@jit
def growth_of(plan: Plan, e: int, mask: int) -> int:
    """Words that a record with this mask may add to a slab."""
    first_cell = plan.entities[e, E_CELLS]
    first_region = plan.entities[e, E_REGIONS]
    growth = 0
    for c in range(plan.entities[e, E_CELLS_N]):
        cell = first_cell + c
        if (mask >> c) & 1 and plan.cells[cell, ledger.C_KIND] <= ledger.HOLDS:
            growth += plan.regions[first_region + plan.cells[cell, ledger.C_AT]]
    return growth


@jit
def fold(plan: Plan, slabs: Slabs, key: int, s: int, e: int, records: Int64s, row: int) -> int:
    """Apply a record to the slab of an entity (`s` is 0 for a new one); return where the slab is, or 0."""
    mask = records[row, plan.entities[e, E_RECORD] + RECORD_MASK]
    growth = growth_of(plan, e, mask)
    s = create(plan, slabs, key, e, growth) if s == 0 else make_room(plan, slabs, key, s, e, growth)
    if s != 0:
        ledger.apply(plan, slabs.words, s, e, records, row)
    return s


# ---- what the store does ----------------------------------------------------------------------------


@jit
def observe(
    plan: Plan, slabs: Slabs, empty: Int64s, keys: Int64s, records: Int64s, read_at: Int64s, cells: Float64s,
    bits: Int64s, scratch: Int64s, texts: Int64s,
) -> None:  # fmt: skip
    """Event by event: read what stands before each record, fold the record, read the row."""
    for i in range(keys.shape[0]):
        for e in range(keys.shape[1]):
            key = keys[i, e]
            if key == 0 or plan.entities[e, E_WIDTH] == 0:
                continue
            s = locate(slabs, key)
            reads = plan.entities[e, E_READS_N] > 0
            if reads:
                known = s if s != 0 else empty[e]
                ledger.read(plan, slabs.words, known, e, read_at[i], 1, cells, bits, i, scratch, texts)
            if records[i, plan.entities[e, E_RECORD] + RECORD_MASK] != 0:
                s = fold(plan, slabs, key, s, e, records, i)
            if reads:
                known = s if s != 0 else empty[e]
                ledger.read(plan, slabs.words, known, e, read_at[i], 0, cells, bits, i, scratch, texts)


@jit
def amend(plan: Plan, slabs: Slabs, keys: Int64s, entities: Int64s, records: Int64s) -> None:
    """Fold records that come after their event: row k of `records` into entity `entities[k]`, `keys[k]`."""
    for k in range(len(keys)):
        fold(plan, slabs, keys[k], locate(slabs, keys[k]), entities[k], records, k)


@jit
def amount_of(limits: Int64s, maxima_digits: int, value: float) -> int:
    """A limit's maximum in minor units, rounded down; NONE where it is missing."""
    if np.isnan(value):
        return NONE
    scaled = value
    for _ in range(abs(maxima_digits)):
        scaled = scaled * 10.0 if maxima_digits > 0 else scaled / 10.0
    if scaled >= 9.0e18:
        return 9_000_000_000_000_000_000
    if scaled <= -9.0e18:
        return -9_000_000_000_000_000_000
    nearest = np.rint(scaled)  # 0.29 * 100 is 28.999999999999996: what is that close was meant
    if abs(scaled - nearest) <= 1e-15 * max(1.0, abs(scaled)):
        return int(nearest)
    return int(np.floor(scaled))


@jit
def settle(
    plan: Plan, slabs: Slabs, limits: Int64s, limit_types: NDArray[np.uint8], type_index: NDArray[np.int32],
    time: Int64s, late: NDArray[np.bool_], counted: bool, keys: Int64s, cells: Float64s,
    base: Int64s, prior: Int64s, prior_keys: Int64s, refused: NDArray[np.uint8], final: Int64s, holds: Int64s,
) -> None:  # fmt: skip
    """Event by event: try every limit, decide, and hold what is granted unless the event is denied.

    `prior` int64 (L, 2) are bucket and amount held by the event that a lone event follows (amount NONE:
    nothing), at `prior_keys` (E); empty for a batch, and used up by this call. Writes refused (n, L), final severity (n) and
    holds (n, L, 2): bucket and amount, amount NONE where nothing stays held.
    """
    follows = prior.shape[0] > 0
    for i in range(len(time)):
        worst = base[i]
        for limit in range(limits.shape[0]):
            e = limits[limit, L_ENTITY]
            cell = limits[limit, L_CELL]
            key = keys[i, e]
            where = limits[limit, L_WHERE]
            refused[i, limit] = 0
            holds[i, limit, 0] = 0
            holds[i, limit, 1] = NONE
            asks = key != 0 and limit_types[limit, type_index[i]] and (where < 0 or cells[where, i] == 1.0)
            amount = 1
            if limits[limit, L_FIELD] >= 0:
                value = cells[limits[limit, L_FIELD], i]
                amount = 0 if np.isnan(value) else max(0, ledger.minor_of(value, limits[limit, L_DIGITS]))
            if follows and prior[limit, 1] != NONE and not late[i]:
                if asks and counted and prior_keys[e] == key and prior[limit, 1] == amount:
                    holds[i, limit, 0] = prior[limit, 0]
                    holds[i, limit, 1] = amount
                    continue
                give_hold_back(plan, slabs, e, cell, prior_keys[e], prior[limit, 0], prior[limit, 1])
                prior[limit, 1] = NONE
            if not asks:
                continue
            most = amount_of(limits, limits[limit, L_DIGITS], cells[limits[limit, L_MAX], i])
            granted = False
            if not late[i] and counted and most != NONE:
                s = locate(slabs, key)
                already = 0
                if s != 0:
                    already = ledger.held(plan, slabs.words, s, e, cell, time[i])
                granted = already + amount <= most
            if granted:
                holds[i, limit, 0] = ledger.bucket_of(plan, plan.cells[cell, ledger.C_WINDOWS], time[i])
                holds[i, limit, 1] = amount
            else:
                refused[i, limit] = 1
                if limits[limit, L_LIVE]:
                    worst = max(worst, limits[limit, L_SEVERITY])
        final[i] = worst
        for limit in range(limits.shape[0]):
            if holds[i, limit, 1] == NONE:
                continue
            e = limits[limit, L_ENTITY]
            cell = limits[limit, L_CELL]
            handed = follows and prior[limit, 1] != NONE
            if worst == DENY:
                if handed:
                    give_hold_back(plan, slabs, e, cell, keys[i, e], holds[i, limit, 0], holds[i, limit, 1])
                holds[i, limit, 1] = NONE
            elif not handed and holds[i, limit, 1] != 0:
                s = locate(slabs, keys[i, e])
                if s == 0:
                    s = create(plan, slabs, keys[i, e], e, 2)
                else:
                    s = make_room(plan, slabs, keys[i, e], s, e, 2)
                if s != 0:
                    ledger.advance(plan, slabs.words, s, e, time[i])
                    ledger.hold(plan, slabs.words, s, e, cell, holds[i, limit, 0], holds[i, limit, 1])


@jit
def give_hold_back(plan: Plan, slabs: Slabs, e: int, cell: int, key: int, bucket: int, amount: int) -> None:
    """Return what is held in a bucket of a limit."""
    s = locate(slabs, key)
    if s != 0 and amount != 0:
        s = make_room(plan, slabs, key, s, e, 2)
        if s != 0:
            ledger.hold(plan, slabs.words, s, e, cell, bucket, -amount)


# ---- plans change -----------------------------------------------------------------------------------


@jit
def migrate(
    old: Plan, new: Plan, entity_map: Int64s, cell_map: Int64s, column_map: Int64s, generation: int,
    slabs: Slabs, keys: Int64s,
) -> None:  # fmt: skip
    """Bring the slabs of `keys` from an old plan (`generation`) to the new one; what is unchanged stays.

    entity_map: old entity to new, -1 is gone. cell_map: new cell to old, -1 is new. column_map: new
    timeline column to its number in the old timeline, -1 is new and starts from nothing.
    """
    words = slabs.words
    for key in keys:
        s = locate(slabs, key) if key != 0 else 0
        if s == 0 or ((words[s + 1] >> META_PLAN) & 0xFFFF) != generation:
            continue
        e_old = words[s + 1] & 0xFF
        e = entity_map[e_old]
        if e < 0:
            forget(slabs, slabs.keys, slabs.refs, find(slabs.keys, slabs.refs, key))
            continue
        first_cell = new.entities[e, E_CELLS]
        last_cell = first_cell + new.entities[e, E_CELLS_N]
        fixed = new.entities[e, ledger.E_FIXED]
        used = fixed + new.entities[e, ledger.E_FIXED_N]
        for cell in range(first_cell, last_cell):
            if new.cells[cell, ledger.C_KIND] <= ledger.HOLDS and cell_map[cell] >= 0:
                region = old.cells[cell_map[cell], ledger.C_AT]
                used += ledger.count_of(words, s, region) * new.cells[cell, ledger.C_WORDS]
        copy = np.empty(used, np.int64)
        ledger.empty_slab(new, copy, 0, e, e | (slabs.meta[GENERATION] << META_PLAN))
        copy[0] = words[s]
        write = fixed + new.entities[e, ledger.E_FIXED_N]
        for cell in range(first_cell, last_cell):
            source = cell_map[cell]
            if source < 0:
                continue
            size = new.cells[cell, ledger.C_WORDS]
            at = new.cells[cell, ledger.C_AT]
            if new.cells[cell, ledger.C_KIND] > ledger.HOLDS:
                read = s + old.entities[e_old, ledger.E_FIXED] + old.cells[source, ledger.C_AT]
                for k in range(size):
                    copy[fixed + at + k] = words[read + k]
                continue
            region = old.cells[source, ledger.C_AT]
            n = ledger.count_of(words, s, region)
            old_size = old.cells[source, ledger.C_WORDS]
            read = ledger.region_start(old, words, s, e_old, region)
            for i in range(n):
                copy_entry(new, cell, column_map, words, read + i * old_size, copy, write)
                write += size
            ledger.set_count(copy, 0, at, n)
        ledger.set_used(copy, 0, write)
        move_in(slabs, key, s, copy, write)


@jit
def copy_entry(
    new: Plan, cell: int, column_map: Int64s, words: Int64s, read: int, copy: Int64s, write: int
) -> None:
    """Copy one entry of a region to its new layout."""
    size = new.cells[cell, ledger.C_WORDS]
    copy[write] = words[read]
    if new.cells[cell, ledger.C_KIND] != ledger.TIMELINE:
        for k in range(1, size):
            copy[write + k] = words[read + k]
        return
    first = new.cells[cell, ledger.C_COLUMNS]
    for k in range(size - 1):
        source = column_map[first + k]
        if source >= 0:
            copy[write + 1 + k] = words[read + 1 + source]
        else:
            op = new.columns[first + k, ledger.K_OP]
            copy[write + 1 + k] = NONE if op == ledger.LEAST or op == ledger.GREATEST else 0


@jit
def move_in(slabs: Slabs, key: int, s: int, copy: Int64s, used: int) -> None:
    """Put a finished slab in the place of the one at `s` (0: of none); without memory the entity is lost."""
    target = obtain(slabs, class_of(used), s)
    if target == 0:
        if s != 0:
            forget(slabs, slabs.keys, slabs.refs, find(slabs.keys, slabs.refs, key))
        return
    size_class = slab_class(slabs.words, target)
    for k in range(used):
        slabs.words[target + k] = copy[k]
    slabs.words[target + 1] = (copy[1] & ~(0xFF << META_CLASS)) | (size_class << META_CLASS)
    if s != 0:
        give_back(slabs, s, slab_class(slabs.words, s))
        slabs.refs[find(slabs.keys, slabs.refs, key)] = target
    else:
        put(slabs, key, target)
        slabs.meta[ENTITIES] += 1


# ---- lists ------------------------------------------------------------------------------------------


@jit
def enter(keys: Int64s, until: Int64s, key: int, expires: int) -> None:
    """Put a list entry into its table, which has free slots (`until` 0)."""
    mask = len(keys) - 1
    at = key & mask
    while until[at] != 0:
        at = (at + 1) & mask
    keys[at] = key
    until[at] = expires


@jit
def look_up(
    listed: Int64s, salts: Int64s, list_keys: Int64s, until: Int64s, keys: Int64s, time: Int64s,
    cells: Float64s,
) -> None:  # fmt: skip
    """Write, for every (list, entity, column), whether each event's entity is listed at its time."""
    for pair in range(listed.shape[0]):
        e = listed[pair, 1]
        out = listed[pair, 2]
        for i in range(keys.shape[0]):
            cells[out, i] = 0.0
            if keys[i, e] != 0:
                at = find(list_keys, until, keys[i, e] ^ salts[pair])
                if at >= 0 and time[i] < until[at]:
                    cells[out, i] = 1.0
