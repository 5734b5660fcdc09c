"""What is known of one entity: the fold of small records, kept in one slab of int64 words.

`apply` folds a record into a slab, `read` turns a slab into feature values. Both stores use these two
and nothing else, so they agree by construction. A slab is laid out by the entity's `Plan`:

    word 0      newest record time T
    word 1      entity, plan generation, size class, whether totals run, words in use (see META_*)
    2 ...       entries in each region, two 32-bit counts a word
    fixed       first, last and newest sightings
    totals      of each sliding window its head and what is behind it, where they run (see `run_totals`)
    regions     timelines (time, columns...), members (key, last time), marks (hash, time, net),
                holds (bucket, held), one behind the other without gaps

Counting state is order-free: sums, maxima and minima over int64. A timeline entry stands for records
that no window can tell apart any more, so one timeline serves every window of its stream, a sparse
entity stores each event once, and a busy one is bounded by its windows' buckets.

Kernels take the plan, a slab's words and a record as arrays or as pointers into them (kernel.pointer); those
that are called for every event pass pointers on.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from riskengine.calendar import period_of_local
from riskengine.cells import (
    ADD,
    FIRST,
    GREATEST,
    HOLDS,
    LAST,
    LEAST,
    MARKS,
    MEMBERS,
    ONE,
    SIGHT,
    SQUARE_HIGH,
    SQUARE_LOW,
    TEXT_WORDS,
    TIMELINE,
)
from riskengine.geo import haversine_km
from riskengine.kernel import constant, jit, jit_inline, pointer, prefetch, stack

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]

NONE: Final = -(2**63)  # a word that holds nothing
NEVER_MS: Final = 2**63 - 1
SLIDING: Final = 0  # window kinds; 1, 2, 3 are calendar.DAY, WEEK, MONTH

# A record: time, event hash, which cells it moves (SIGN_BIT: takes away), then the entity's slots.
RECORD_TIME: Final = 0
RECORD_HASH: Final = 1
RECORD_MASK: Final = 2
RECORD_SLOTS: Final = 3
SIGN_BIT: Final = 62

# Columns of Plan.entities, one row an entity.
E_RECORD, E_WIDTH, E_CELLS, E_CELLS_N, E_FIXED, E_FIXED_N, E_REGIONS, E_REGIONS_N = range(8)
E_READS, E_BEFORE_N, E_AFTER_N, E_RETENTION, E_GROWTH, E_SIZE = range(8, 14)

# Columns of Plan.cells.
C_KIND, C_AT, C_WORDS, C_COLUMNS, C_COLUMNS_N, C_WINDOWS, C_WINDOWS_N, C_SLOT, C_CAP, C_SIZE = range(10)
# C_KIND: what a cell keeps, and where (C_AT: word in the fixed area, or number of the region).
# See cells.py for the kinds.

# Columns of Plan.columns: what a record adds to a timeline entry (ONE, ADD, ...).
K_OP, K_SLOT, K_SIZE = range(3)

# Columns of Plan.windows.
W_KIND, W_BUCKET, W_BUCKETS, W_DELAY, W_SIZE = range(5)

# Columns of Plan.reads: one feature each; an entity's are ordered so that those read before the record stand
# first (E_BEFORE_N), then the others (E_AFTER_N), and equal (cell, window) are neighbours.
R_OP, R_CELL, R_WINDOW, R_COLUMN, R_COLUMN2, R_DIGITS, R_OUT, R_OTHER, R_EXTRA, R_SIZE = range(10)
(
    COUNT,
    SUM,
    MEAN,
    MIN,
    MAX,
    STD,
    RATE,
    DISTINCT,
    SINCE_FIRST,
    SINCE_LAST,
    SINCE_MARK,
    PREVIOUS_NUMBER,
    PREVIOUS_TEXT,
    PREVIOUS_LOCATION,
    SPEED,
) = range(15)

# The head of a flattened plan: where its tables begin, and its settings.
(
    P_ENTITIES,
    P_CELLS,
    P_COLUMNS,
    P_WINDOWS,
    P_REGIONS,
    P_READS,
    P_TRANSITIONS,
    P_OFFSETS,
    P_SLOTS,
    P_MOVERS,
    P_MOVES,
    P_KINDS,
    P_LIMITS,
    P_LIMIT_TYPES,
    P_TOTALS,
    P_RUNNING,
    P_SLACK,
    P_ENTITIES_N,
    P_TRANSITIONS_N,
    P_SLOTS_N,
    P_TYPES_N,
    P_LIMITS_N,
    P_HEAD,
) = range(23)

# Columns of Plan.slots: what (MINOR, KEY_OF, ...) goes where in a record.
S_ENTITY, S_AT, S_KIND, S_SOURCE, S_DIGITS, S_SIZE = range(6)

# Columns of Plan.movers: what an event must have to move a cell.
M_WHERE, M_NEEDS, M_LABEL, M_SIZE = range(4)
EVENT, FRAUD, LEGIT = range(3)  # what M_LABEL says moves a cell

# Columns of Plan.running: words that an entity's totals take, whether it keeps nothing that has none, and
# whether it is of the common kind that `step` knows.
T_WORDS, T_ALL, T_PLAIN, T_SIZE = range(4)
T_SINCE: Final = 1  # of a window's totals: head, time from which on they count, a word a column

# Columns of Plan.limits.
L_ENTITY, L_CELL, L_WHERE, L_MAX, L_FIELD, L_DIGITS, L_SEVERITY, L_LIVE, L_SIZE = range(9)

META_ENTITY: Final = 0  # bits 0-7
META_PLAN: Final = 8  # bits 8-23
META_CLASS: Final = 24  # bits 24-30
META_TOTALS: Final = 31
META_USED: Final = 32  # bits 32-62
POWERS: Final = np.array([10.0**digits for digits in range(16)])
LIMBS: Final = 12  # of variance_numerator
EDGES: Final = 8  # windows of a timeline whose edges tidying remembers; of others it computes them again
SQUARE_SHIFT: Final = 43  # a square is kept as high * 2**43 + low, so that both add without carry


class Plan(NamedTuple):
    """How every entity's records and state are laid out; int64 tables indexed by the constants above.

    Kernels take them as the one array that `flatten` makes: a tuple of arrays is copied and its arrays
    counted at every call of a kernel by another (observe took 15 us an event so, 274 increments).
    """

    entities: Int64s  # (E, E_SIZE)
    cells: Int64s  # (cells, C_SIZE)
    columns: Int64s  # (columns, K_SIZE)
    windows: Int64s  # (windows, W_SIZE)
    regions: Int64s  # words of one entry, for each region
    reads: Int64s  # (features, R_SIZE)
    transitions: Int64s  # the policy's time zone, see calendar.timezone_table
    offsets: Int64s
    slots: Int64s  # (slots, S_SIZE): what goes where in a record
    movers: Int64s  # (cells, M_SIZE): what an event must have to move a cell
    moves: Int64s  # (cells, event types), 1 where events of the type move the cell
    kinds: Int64s  # (3, E): masks of the cells that events, labels fraud, and labels legit move
    limits: Int64s  # (limits, L_SIZE)
    limit_types: Int64s  # (limits, event types)
    totals: Int64s  # (windows): where a window's totals stand among those of its entity; -1 has none
    running: Int64s  # (E, T_SIZE)
    slack_ms: int  # lateness + skew: how far behind T a read may be

    def flatten(self) -> Int64s:
        """All tables in one array, behind a head that says where each begins (P_*)."""
        tables = [table for table in self if isinstance(table, np.ndarray)]
        head = np.zeros(P_HEAD, np.int64)
        head[:P_SLACK] = P_HEAD + np.cumsum([0, *(table.size for table in tables[:-1])])
        head[P_SLACK] = self.slack_ms
        head[P_ENTITIES_N] = len(self.entities)
        head[P_TRANSITIONS_N] = len(self.transitions)
        head[P_SLOTS_N] = len(self.slots)
        head[P_TYPES_N] = self.moves.shape[1]
        head[P_LIMITS_N] = len(self.limits)
        return np.concatenate((head, *(table.ravel() for table in tables)))


@jit
def entity_of(plan: Int64s, e: int, what: int) -> int:
    """Field E_* of an entity."""
    return constant(plan, constant(plan, P_ENTITIES) + e * E_SIZE + what)


@jit
def cell_of(plan: Int64s, cell: int, what: int) -> int:
    """Field C_* of a cell."""
    return constant(plan, constant(plan, P_CELLS) + cell * C_SIZE + what)


@jit
def column_of(plan: Int64s, column: int, what: int) -> int:
    """Field K_* of a timeline's column."""
    return constant(plan, constant(plan, P_COLUMNS) + column * K_SIZE + what)


@jit
def window_of(plan: Int64s, window: int, what: int) -> int:
    """Field W_* of a window."""
    return constant(plan, constant(plan, P_WINDOWS) + window * W_SIZE + what)


@jit
def slot_of(plan: Int64s, slot: int, what: int) -> int:
    """Field S_* of a slot."""
    return constant(plan, constant(plan, P_SLOTS) + slot * S_SIZE + what)


@jit
def mover_of(plan: Int64s, cell: int, what: int) -> int:
    """Field M_* of a cell."""
    return constant(plan, constant(plan, P_MOVERS) + cell * M_SIZE + what)


@jit
def limit_of(plan: Int64s, limit: int, what: int) -> int:
    """Field L_* of a limit."""
    return constant(plan, constant(plan, P_LIMITS) + limit * L_SIZE + what)


@jit
def region_words(plan: Int64s, region: int) -> int:
    """Words of one entry of a region."""
    return constant(plan, constant(plan, P_REGIONS) + region)


@jit
def totals_of(plan: Int64s, window: int) -> int:
    """Where a window's totals stand among those of its entity, or -1."""
    return constant(plan, constant(plan, P_TOTALS) + window)


@jit
def running_of(plan: Int64s, e: int, what: int) -> int:
    """Field T_* of an entity."""
    return constant(plan, constant(plan, P_RUNNING) + e * T_SIZE + what)


@jit
def offset_in(plan: Int64s, t: int) -> int:
    """Local time minus UTC at `t`, ms: calendar.offset_at over the plan's own table."""
    at = constant(plan, P_TRANSITIONS)
    low = 0
    high = constant(plan, P_TRANSITIONS_N) - 1
    if t >= constant(plan, at + high):
        low = high
    while high - low > 1:
        middle = (low + high) >> 1
        if constant(plan, at + middle) <= t:
            low = middle
        else:
            high = middle
    return constant(plan, constant(plan, P_OFFSETS) + low)


# ---- slabs ------------------------------------------------------------------------------------------


@jit
def used_words(words: Int64s, s: int) -> int:
    """Words in use of the slab at `s`."""
    return (words[s + 1] >> META_USED) & 0x7FFFFFFF  # type: ignore[no-any-return]  # an int in the kernel


@jit
def set_used(words: Int64s, s: int, used: int) -> None:
    """Record how many words of the slab are in use."""
    words[s + 1] = (words[s + 1] & 0xFFFFFFFF) | (used << META_USED)


@jit
def count_of(words: Int64s, s: int, region: int) -> int:
    """Entries in a region."""
    return (words[s + 2 + (region >> 1)] >> ((region & 1) * 32)) & 0x7FFFFFFF  # type: ignore[no-any-return]  # an int in the kernel


@jit
def set_count(words: Int64s, s: int, region: int, count: int) -> None:
    """Set the number of entries in a region."""
    at = s + 2 + (region >> 1)
    if region & 1:
        words[at] = (words[at] & 0xFFFFFFFF) | (count << 32)
    else:
        words[at] = (words[at] >> 32 << 32) | count


@jit_inline
def totals_run(words: Int64s, s: int) -> bool:
    """Whether the slab keeps running totals."""
    return bool((words[s + 1] >> META_TOTALS) & 1)


@jit_inline
def first_region(plan: Int64s, words: Int64s, s: int, e: int) -> int:
    """First word of the first region (an index into `words`)."""
    at = totals_at(plan, s, e)
    return at + running_of(plan, e, T_WORDS) if totals_run(words, s) else at


@jit_inline
def region_start(plan: Int64s, words: Int64s, s: int, e: int, region: int) -> int:
    """First word of a region (an index into `words`)."""
    at = first_region(plan, words, s, e)
    first = entity_of(plan, e, E_REGIONS)
    for r in range(region):
        at += count_of(words, s, r) * region_words(plan, first + r)
    return at


@jit
def cell_of_region(plan: Int64s, e: int, region: int) -> int:
    """The cell that keeps its entries in this region."""
    cell = entity_of(plan, e, E_CELLS)
    while cell_of(plan, cell, C_KIND) > HOLDS or cell_of(plan, cell, C_AT) != region:
        cell += 1
    return cell


@jit
def empty_slab(plan: Int64s, words: Int64s, s: int, e: int, meta: int) -> None:
    """Lay out a slab that knows nothing. `meta` carries entity, plan generation and size class."""
    fixed = entity_of(plan, e, E_FIXED)
    end = fixed + entity_of(plan, e, E_FIXED_N)
    words[s] = NONE
    words[s + 1] = (meta & ((1 << META_TOTALS) - 1)) | (end << META_USED)
    for i in range(2, fixed):
        words[s + i] = 0
    for i in range(fixed, end):
        words[s + i] = NONE


@jit
def insert(words: Int64s, s: int, region: int, at: int, size: int) -> None:
    """Open a gap of one entry (`size` words) at word `at` of `region`. The slab must have the room."""
    end = s + used_words(words, s)
    for i in range(end - 1, at - 1, -1):
        words[i + size] = words[i]
    set_used(words, s, end - s + size)
    set_count(words, s, region, count_of(words, s, region) + 1)


@jit
def remove(words: Int64s, s: int, region: int, at: int, size: int) -> None:
    """Close the entry of `size` words at word `at` of `region`."""
    end = s + used_words(words, s)
    for i in range(at, end - size):
        words[i] = words[i + size]
    set_used(words, s, end - s - size)
    set_count(words, s, region, count_of(words, s, region) - 1)


# ---- windows ----------------------------------------------------------------------------------------


@jit_inline
def bucket_of(plan: Int64s, window: int, t: int) -> int:
    """Bucket (sliding) or calendar period that holds time `t`, in ms."""
    kind = window_of(plan, window, W_KIND)
    if kind == SLIDING:
        return t // window_of(plan, window, W_BUCKET)
    return period_of_local(kind, t + offset_in(plan, t))


@jit
def last_dead(plan: Int64s, window: int, newest: int) -> int:
    """Newest bucket that no read of this window, made at `newest` - slack or later, can count."""
    reached = newest - constant(plan, P_SLACK) - window_of(plan, window, W_DELAY)
    return bucket_of(plan, window, reached) - window_of(plan, window, W_BUCKETS)


@jit
def all_dead(plan: Int64s, first: int, n: int, t: int, newest: int) -> bool:
    """Whether no window can count a record of time `t` any more."""
    for w in range(first, first + n):
        if bucket_of(plan, w, t) > last_dead(plan, w, newest):
            return False
    return True


@jit
def dead_before(plan: Int64s, first: int, n: int, newest: int) -> int:
    """Time before which records are `all_dead` and from which none is; NONE where one window is a period."""
    horizon = NEVER_MS
    for w in range(first, first + n):
        if window_of(plan, w, W_KIND) != SLIDING:
            return NONE
        horizon = min(horizon, (last_dead(plan, w, newest) + 1) * window_of(plan, w, W_BUCKET))
    return horizon


@jit_inline
def indistinct(plan: Int64s, first: int, n: int, a: int, b: int, newest: int) -> bool:
    """Whether no window that is still alive can tell a record of time `a` from one of time `b` >= a."""
    if a == b:
        return True
    for w in range(first, first + n):
        if window_of(plan, w, W_KIND) == SLIDING:
            width = window_of(plan, w, W_BUCKET)
            if b - a < width and b % width >= b - a:
                continue
            # The later of two buckets is dead last, and that of the newest record is alive.
            if b == newest or b // width > last_dead(plan, w, newest):
                return False
            continue
        bucket_a = bucket_of(plan, w, a)
        bucket_b = bucket_of(plan, w, b)
        if bucket_a != bucket_b and max(bucket_a, bucket_b) > last_dead(plan, w, newest):
            return False
    return True


# ---- apply ------------------------------------------------------------------------------------------


@jit_inline
def advance(plan: Int64s, words: Int64s, s: int, e: int, t: int) -> None:
    """Let the slab know of time `t`. Silence longer than the entity's retention forgets everything."""
    newest = words[s]
    if newest == NONE:
        words[s] = t
    elif t > newest:
        if t - newest > entity_of(plan, e, E_RETENTION):
            empty_slab(plan, words, s, e, words[s + 1])
        words[s] = t


@jit
def apply(plan: Int64s, words: Int64s, s: int, e: int, record: Int64s) -> None:
    """Fold the entity's part of a record into the slab, which must have E_GROWTH words of room.

    O(cells moved) plus the shift of a new timeline entry; late records find their place from the end.
    """
    r = entity_of(plan, e, E_RECORD)
    t = record[r + RECORD_TIME]
    event = record[r + RECORD_HASH]
    mask = record[r + RECORD_MASK]
    sign = -1 if (mask >> SIGN_BIT) & 1 else 1
    advance(plan, words, s, e, t)
    newest = words[s]
    first_cell = entity_of(plan, e, E_CELLS)
    fixed = s + entity_of(plan, e, E_FIXED)
    for c in range(entity_of(plan, e, E_CELLS_N)):
        if not (mask >> c) & 1:
            continue
        cell = first_cell + c
        kind = cell_of(plan, cell, C_KIND)
        at = cell_of(plan, cell, C_AT)
        slot = r + RECORD_SLOTS + cell_of(plan, cell, C_SLOT)
        if kind == TIMELINE:
            apply_timeline(plan, words, s, e, cell, t, newest, sign, record, r)
        elif kind == MEMBERS:
            apply_member(plan, words, s, e, cell, record[slot], t, newest)
        elif kind == MARKS:
            apply_mark(plan, words, s, e, cell, event, t, sign)
        elif kind == FIRST:
            if words[fixed + at] == NONE or t < words[fixed + at]:
                words[fixed + at] = t
        elif kind == LAST:
            if t > words[fixed + at]:
                words[fixed + at] = t
        elif kind == SIGHT and (
            t > words[fixed + at] or (t == words[fixed + at] and event > words[fixed + at + 1])
        ):
            words[fixed + at] = t
            words[fixed + at + 1] = event
            for i in range(cell_of(plan, cell, C_WORDS) - 2):
                words[fixed + at + 2 + i] = record[slot + i]


@jit_inline
def apply_timeline(
    plan: Int64s,
    words: Int64s,
    s: int,
    e: int,
    cell: int,
    t: int,
    newest: int,
    sign: int,
    record: Int64s,
    r: int,
) -> None:
    """Add a record's columns to the timeline entry of its time, made where there is none."""
    first = cell_of(plan, cell, C_WINDOWS)
    n = cell_of(plan, cell, C_WINDOWS_N)
    region = cell_of(plan, cell, C_AT)
    size = cell_of(plan, cell, C_WORDS)
    if t < newest and all_dead(plan, first, n, t, newest):
        return
    start = region_start(plan, words, s, e, region)
    at = start + count_of(words, s, region) * size  # behind the last entry that is not later
    end = at
    while at > start and words[at - size] > t:
        at -= size
    running = totals_run(words, s)
    if at > start and indistinct(plan, first, n, words[at - size], t, newest):
        at -= size
        words[at] = t
        if running:
            note_merged(plan, words, s, e, cell, at - start)
    elif not (at < end and indistinct(plan, first, n, t, words[at], newest)):
        insert(words, s, region, at, size)
        words[at] = t
        for k in range(1, size):
            op = column_of(plan, cell_of(plan, cell, C_COLUMNS) + k - 1, K_OP)
            words[at + k] = NONE if op == LEAST or op == GREATEST else 0
        if running:
            note_inserted(plan, words, s, e, cell, at - start, t)
    column = cell_of(plan, cell, C_COLUMNS)
    for k in range(1, size):
        op = column_of(plan, column, K_OP)
        value = record[r + RECORD_SLOTS + column_of(plan, column, K_SLOT)] if op != ONE else 0
        column += 1
        if op == ONE:
            value = sign
        elif op == ADD:
            value *= sign
        elif op == SQUARE_HIGH:
            value = sign * square_high(value)
        elif op == SQUARE_LOW:
            value = sign * square_low(value)
        words[at + k] = joined(op, words[at + k], value)
        if running:
            add_to_totals(plan, words, s, e, cell, at - start, k, op, value)


@jit_inline
def joined(op: int, a: int, b: int) -> int:
    """A column's value for the records of two."""
    return a + b if op < LEAST else extreme(op, a, b)


@jit
def extreme(op: int, a: int, b: int) -> int:
    """The smaller (LEAST) or larger of two values, either of which may be NONE."""
    if a == NONE:
        return b
    if b == NONE:
        return a
    return min(a, b) if op == LEAST else max(a, b)


@jit
def square_high(value: int) -> int:
    """value**2 >> 43, for values up to 2**43, without leaving int64."""
    v = abs(value)
    a = v >> 22
    b = v & 0x3FFFFF
    cross = a * b
    rest = ((cross & 0xFFFFF) << 23) + b * b
    return 2 * a * a + (cross >> 20) + (rest >> SQUARE_SHIFT)


@jit
def square_low(value: int) -> int:
    """value**2 mod 2**43."""
    v = abs(value)
    a = v >> 22
    b = v & 0x3FFFFF
    rest = (((a * b) & 0xFFFFF) << 23) + b * b
    return rest & ((1 << SQUARE_SHIFT) - 1)


@jit
def find_key(words: Int64s, start: int, n: int, size: int, key: int) -> int:
    """Word of the first entry whose first word is >= key, in a region sorted by it."""
    low = 0
    high = n
    while low < high:
        middle = (low + high) >> 1
        if words[start + middle * size] < key:
            low = middle + 1
        else:
            high = middle
    return start + low * size


@jit
def apply_member(
    plan: Int64s, words: Int64s, s: int, e: int, cell: int, key: int, t: int, newest: int
) -> None:
    """Remember when a member was last seen; of more than `cap` the longest unseen is forgotten."""
    region = cell_of(plan, cell, C_AT)
    start = region_start(plan, words, s, e, region)
    n = count_of(words, s, region)
    at = find_key(words, start, n, 2, key)
    if at < start + 2 * n and words[at] == key:
        if t > words[at + 1]:
            words[at + 1] = t
        return
    if n >= cell_of(plan, cell, C_CAP):
        oldest = start
        for i in range(start + 2, start + 2 * n, 2):  # equal times keep the larger key, as keys ascend
            if words[i + 1] < words[oldest + 1]:
                oldest = i
        if t < words[oldest + 1] or (t == words[oldest + 1] and key < words[oldest]):
            return
        remove(words, s, region, oldest, 2)
        if oldest < at:
            at -= 2
    insert(words, s, region, at, 2)
    words[at] = key
    words[at + 1] = t


@jit
def apply_mark(plan: Int64s, words: Int64s, s: int, e: int, cell: int, event: int, t: int, sign: int) -> None:
    """Count labels of one event net, so that a label and its reversal may come in either order."""
    region = cell_of(plan, cell, C_AT)
    start = region_start(plan, words, s, e, region)
    n = count_of(words, s, region)
    at = find_key(words, start, n, 3, event)
    if at < start + 3 * n and words[at] == event:
        words[at + 2] += sign
        if words[at + 2] == 0:
            remove(words, s, region, at, 3)
        return
    if n >= cell_of(plan, cell, C_CAP):
        oldest = start
        for i in range(start + 3, start + 3 * n, 3):
            if words[i + 1] < words[oldest + 1]:
                oldest = i
        if t < words[oldest + 1] or (t == words[oldest + 1] and event < words[oldest]):
            return
        remove(words, s, region, oldest, 3)
        if oldest < at:
            at -= 3
    insert(words, s, region, at, 3)
    words[at] = event
    words[at + 1] = t
    words[at + 2] = sign


@jit
def tidy(plan: Int64s, words: Int64s, s: int, e: int) -> None:
    """Bring a slab to its canonical form: merge what no window can tell apart, drop what none can count.

    The canonical form depends on the set of records and T only, not on their order.
    """
    newest = words[s]
    first = entity_of(plan, e, E_REGIONS)
    read = first_region(plan, words, s, e)
    write = read
    for region in range(entity_of(plan, e, E_REGIONS_N)):
        size = region_words(plan, first + region)
        n = count_of(words, s, region)
        cell = cell_of_region(plan, e, region)
        kind = cell_of(plan, cell, C_KIND)
        window = cell_of(plan, cell, C_WINDOWS)
        n_windows = cell_of(plan, cell, C_WINDOWS_N)
        begin = write
        if kind == TIMELINE:
            write = tidy_timeline(plan, words, cell, read, n, write, newest)
            set_count(words, s, region, (write - begin) // size)
            read += n * size
            continue
        horizon = dead_before(plan, window, n_windows, newest)
        for _ in range(n):
            keep = True
            if kind == MEMBERS:
                t = words[read + 1]
                keep = t >= horizon and (horizon != NONE or not all_dead(plan, window, n_windows, t, newest))
            elif kind == HOLDS:
                reached = bucket_of(plan, window, newest - constant(plan, P_SLACK))
                keep = words[read + 1] != 0 and words[read] >= reached - window_of(plan, window, W_BUCKETS)
            if keep:
                if write != read:
                    for k in range(size):
                        words[write + k] = words[read + k]
                write += size
            read += size
        set_count(words, s, region, (write - begin) // size)
    set_used(words, s, write - s)
    if totals_run(words, s):
        keep_totals(plan, words, s, e)


@jit
def tidy_timeline(plan: Int64s, words: Int64s, cell: int, read: int, n: int, write: int, newest: int) -> int:
    """Move `n` entries from word `read` to word `write`, the dead left out, the indistinct merged.

    Return where they end. Entries ascend in time: an entry is another one than those before it from `edge`
    on, where a bucket of a sliding window that is alive ends or where one comes alive.
    """
    size = cell_of(plan, cell, C_WORDS)
    column = cell_of(plan, cell, C_COLUMNS)
    first = cell_of(plan, cell, C_WINDOWS)
    last = first + cell_of(plan, cell, C_WINDOWS_N)
    periods = first  # sliding windows stand before periods
    horizon = NEVER_MS
    edges = stack(EDGES)  # of the first windows: where the bucket of `kept` ends, or what is alive begins
    while periods < last and window_of(plan, periods, W_KIND) == SLIDING:
        alive = alive_from(plan, periods, newest)
        horizon = min(horizon, alive)
        if periods - first < EDGES:
            edges[periods - first] = alive
        periods += 1
    kept = NONE  # time of the entry before `write`
    edge = NEVER_MS
    for _ in range(n):
        t = words[read]
        if kept == NONE:
            if t < horizon and all_dead(plan, periods, last - periods, t, newest):
                read += size
                continue
        elif t < edge and indistinct(plan, periods, last - periods, kept, t, newest):
            words[write - size] = t
            for k in range(1, size):
                op = column_of(plan, column + k - 1, K_OP)
                words[write - size + k] = joined(op, words[write - size + k], words[read + k])
            kept = t
            read += size
            continue
        if t >= edge or kept == NONE:
            edge = NEVER_MS
            for w in range(first, periods):
                if w - first >= EDGES:
                    edge = min(edge, edge_after(plan, w, t, newest))
                    continue
                if t >= edges[w - first]:
                    width = window_of(plan, w, W_BUCKET)
                    edges[w - first] = t - t % width + width
                edge = min(edge, edges[w - first])
        if write != read:
            for k in range(size):
                words[write + k] = words[read + k]
        kept = t
        write += size
        read += size
    return write


@jit_inline
def alive_from(plan: Int64s, window: int, newest: int) -> int:
    """Time from which records are in a bucket of a sliding window that can still be counted."""
    return (last_dead(plan, window, newest) + 1) * window_of(plan, window, W_BUCKET)


@jit
def edge_after(plan: Int64s, window: int, t: int, newest: int) -> int:
    """Time from which a sliding window tells a record from an earlier one of time `t`."""
    alive = alive_from(plan, window, newest)
    width = window_of(plan, window, W_BUCKET)
    return alive if t < alive else t - t % width + width


# ---- running totals ---------------------------------------------------------------------------------


@jit
def run_totals(plan: Int64s, words: Int64s, s: int, e: int) -> None:
    """Begin to keep totals. The slab must have the room (T_WORDS).

    Of each sliding window without a delay: where in the timeline what it counts began when it was last read
    (its head), from which time on it counted, and the columns' totals from the head to the timeline's end.
    Reading moves the head to where the window begins now, so that a value costs what has left since.
    """
    size = running_of(plan, e, T_WORDS)
    end = s + used_words(words, s)
    start = first_region(plan, words, s, e)
    for i in range(end - 1, start - 1, -1):
        words[i + size] = words[i]
    words[s + 1] |= 1 << META_TOTALS
    set_used(words, s, end - s + size)
    for i in range(start, start + size):
        words[i] = NEVER_MS  # so counts no window from a time that anybody knows
    keep_totals(plan, words, s, e)


@jit
def keep_totals(plan: Int64s, words: Int64s, s: int, e: int) -> None:
    """Let the heads of a slab that was tidied stand where what they count begins now.

    Tidying merges nothing over an edge that a window can still tell, so its totals stay what they were. One
    that counts from before such edges, or from where nobody knows, has its head at the end, with nothing
    behind it.
    """
    totals = totals_at(plan, s, e)
    first_cell = entity_of(plan, e, E_CELLS)
    for cell in range(first_cell, first_cell + entity_of(plan, e, E_CELLS_N)):
        if cell_of(plan, cell, C_KIND) != TIMELINE:
            continue
        size = cell_of(plan, cell, C_WORDS)
        column = cell_of(plan, cell, C_COLUMNS)
        first = cell_of(plan, cell, C_WINDOWS)
        start = region_start(plan, words, s, e, cell_of(plan, cell, C_AT))
        n = count_of(words, s, cell_of(plan, cell, C_AT))
        for window in range(first, first + cell_of(plan, cell, C_WINDOWS_N)):
            if totals_of(plan, window) < 0:
                continue
            head = totals + totals_of(plan, window)
            since = words[head + T_SINCE]
            if since != NEVER_MS and since >= alive_from(plan, window, words[s]):
                words[head] = find_key(words, start, n, size, since) - start
                continue
            words[head] = n * size
            words[head + T_SINCE] = NEVER_MS
            for k in range(1, size):
                op = column_of(plan, column + k - 1, K_OP)
                words[head + T_SINCE + k] = NONE if op == LEAST or op == GREATEST else 0


@jit_inline
def totals_at(plan: Int64s, s: int, e: int) -> int:
    """First word of a slab's totals."""
    return s + entity_of(plan, e, E_FIXED) + entity_of(plan, e, E_FIXED_N)


@jit_inline
def note_inserted(plan: Int64s, words: Int64s, s: int, e: int, cell: int, at: int, t: int) -> None:
    """A timeline has a new entry, of time `t`, `at` words behind its start: later heads stand further on."""
    first = cell_of(plan, cell, C_WINDOWS)
    for window in range(first, first + cell_of(plan, cell, C_WINDOWS_N)):
        if totals_of(plan, window) >= 0:
            head = totals_at(plan, s, e) + totals_of(plan, window)
            if at < words[head] or (at == words[head] and t < words[head + T_SINCE]):
                words[head] += cell_of(plan, cell, C_WORDS)


@jit_inline
def note_merged(plan: Int64s, words: Int64s, s: int, e: int, cell: int, at: int) -> None:
    """An entry, `at` words behind the start, has become later: heads behind it look where they belong."""
    first = cell_of(plan, cell, C_WINDOWS)
    for window in range(first, first + cell_of(plan, cell, C_WINDOWS_N)):
        if totals_of(plan, window) >= 0:
            head = totals_at(plan, s, e) + totals_of(plan, window)
            if at < words[head]:
                words[head + T_SINCE] = NEVER_MS


@jit_inline
def add_to_totals(
    plan: Int64s, words: Int64s, s: int, e: int, cell: int, at: int, k: int, op: int, value: int
) -> None:
    """Column `k` of the entry `at` words behind the start has taken in a value: so do the totals it is in."""
    first = cell_of(plan, cell, C_WINDOWS)
    for window in range(first, first + cell_of(plan, cell, C_WINDOWS_N)):
        if totals_of(plan, window) >= 0:
            head = totals_at(plan, s, e) + totals_of(plan, window)
            if at >= words[head]:
                words[head + T_SINCE + k] = joined(op, words[head + T_SINCE + k], value)


@jit_inline
def move_head(
    plan: Int64s, words: Int64s, head: int, cell: int, window: int, start: int, end: int, t: int, newest: int
) -> bool:
    """Let a window's totals, at word `head`, be those at `t`; False where entries are later than its buckets.

    One walk over what left the window, all columns at once: the processor guesses wrong where it ends, and
    would again for each column.
    """
    width = window_of(plan, window, W_BUCKET)
    until = t - t % width + width
    if newest >= until:
        return False
    since = until - window_of(plan, window, W_BUCKETS) * width
    before = words[head + T_SINCE]
    if since == before:
        return True
    words[head + T_SINCE] = since
    size = cell_of(plan, cell, C_WORDS)
    column = cell_of(plan, cell, C_COLUMNS)
    sums = head + T_SINCE
    at = start + words[head]
    if since < before:
        while at > start and words[at - size] >= since:
            at -= size
            for k in range(1, size):
                op = column_of(plan, column + k - 1, K_OP)
                words[sums + k] = joined(op, words[sums + k], words[at + k])
        words[head] = at - start
        return True
    left = False  # whether an extreme has
    while at < end and words[at] < since:
        for k in range(1, size):
            if column_of(plan, column + k - 1, K_OP) < LEAST:
                words[sums + k] -= words[at + k]
            elif words[at + k] == words[sums + k]:
                left = True
        at += size
    words[head] = at - start
    if left:
        for k in range(1, size):
            op = column_of(plan, column + k - 1, K_OP)
            if op >= LEAST:
                total = NONE
                for i in range(at + k, end, size):
                    total = extreme(op, total, words[i])
                words[sums + k] = total
    return True


@jit_inline
def call_ends(plan: Int64s, words: Int64s, s: int, e: int) -> None:
    """Call in what folding and reading will meet of a slab with totals and T_ALL: its heads and ends."""
    totals = totals_at(plan, s, e)
    at = totals + running_of(plan, e, T_WORDS)
    prefetch(words, at - 1)
    first_cell = entity_of(plan, e, E_CELLS)
    for cell in range(first_cell, first_cell + entity_of(plan, e, E_CELLS_N)):
        if cell_of(plan, cell, C_KIND) != TIMELINE:
            continue
        size = cell_of(plan, cell, C_WORDS)
        first = cell_of(plan, cell, C_WINDOWS)
        for window in range(first, first + cell_of(plan, cell, C_WINDOWS_N)):
            head = at + words[totals + totals_of(plan, window)]
            prefetch(words, head)
            prefetch(words, head + 2 * size - 1)
        at += count_of(words, s, cell_of(plan, cell, C_AT)) * size
        prefetch(words, at - size)
    prefetch(words, at + 1)


# ---- limits: a state machine over the order of the log ----------------------------------------------


@jit
def held(plan: Int64s, words: Int64s, s: int, e: int, cell: int, t: int) -> int:
    """What is held of a limit at time `t`: its calendar period, or every bucket its window can touch."""
    region = cell_of(plan, cell, C_AT)
    window = cell_of(plan, cell, C_WINDOWS)
    bucket = bucket_of(plan, window, t)
    reach = window_of(plan, window, W_BUCKETS) if window_of(plan, window, W_KIND) == SLIDING else 0
    start = region_start(plan, words, s, e, region)
    total = 0
    for i in range(start, start + 2 * count_of(words, s, region), 2):
        if bucket - reach <= words[i] <= bucket + reach:
            total += words[i + 1]
    return total


@jit
def hold(plan: Int64s, words: Int64s, s: int, e: int, cell: int, bucket: int, amount: int) -> None:
    """Add to (or, with a negative amount, give back) what is held in a bucket. Needs 2 words of room."""
    region = cell_of(plan, cell, C_AT)
    start = region_start(plan, words, s, e, region)
    n = count_of(words, s, region)
    at = find_key(words, start, n, 2, bucket)
    if at < start + 2 * n and words[at] == bucket:
        words[at + 1] += amount
    else:
        insert(words, s, region, at, 2)
        words[at] = bucket
        words[at + 1] = amount


# ---- read -------------------------------------------------------------------------------------------


@jit
def read(
    plan: Int64s,
    words: Int64s,
    s: int,
    e: int,
    t: int,
    before: int,
    cells: Float64s,
    bits: Int64s,
    n: int,
    texts: Int64s,
    scratch: Int64s,
) -> None:
    """Write an entity's features at time `t`, those read before the record or after it, into an event's row.

    `cells` is float64, one value every `n` words, and `bits` the same memory as int64. `texts` takes
    remembered strings, TEXT_WORDS words each, a hash of 0 where there is none. `scratch` has room for the
    columns of two timelines.
    """
    plan, words, scratch = pointer(plan, 0), pointer(words, 0), pointer(scratch, 0)
    known = words[s] != NONE and t - words[s] <= entity_of(plan, e, E_RETENTION)
    fixed = s + entity_of(plan, e, E_FIXED)
    totals = totals_at(plan, s, e)
    running = known and totals_run(words, s)
    done_cell = -1
    done_window = -1
    summed = start = end = 0
    sums = scratch
    first = constant(plan, P_READS) + entity_of(plan, e, E_READS) * R_SIZE
    last = first + entity_of(plan, e, E_BEFORE_N) * R_SIZE
    if not before:
        first = last
        last += entity_of(plan, e, E_AFTER_N) * R_SIZE
    for f in range(first, last, R_SIZE):
        op = constant(plan, f + R_OP)
        cell = constant(plan, f + R_CELL)
        window = constant(plan, f + R_WINDOW)
        out = constant(plan, f + R_OUT)
        if op <= RATE:
            if cell != done_cell:
                done_cell = cell
                done_window = -1
                summed = 0
                region = cell_of(plan, cell, C_AT)
                start = region_start(plan, words, s, e, region)
                end = start + count_of(words, s, region) * cell_of(plan, cell, C_WORDS)
            if window != done_window:
                done_window = window
                head = totals + totals_of(plan, window) if running and totals_of(plan, window) >= 0 else 0
                if head != 0 and move_head(plan, words, head, cell, window, start, end, t, words[s]):
                    sums = pointer(words, head + T_SINCE + 1)
                    summed = 0
                else:
                    sums = scratch
                    summed = window_sums(
                        plan, words, cell, window, start, end, t, words[s], known, scratch, summed
                    )
            if op == RATE:
                total = total_of(
                    plan, words, s, e, f, window, t, known, pointer(scratch, cell_of(plan, cell, C_WORDS))
                )
                cells[out * n] = sums[constant(plan, f + R_COLUMN)] / total if total > 0 else np.nan
            else:
                cells[out * n] = aggregate(plan, f, op, sums)
        elif op == DISTINCT:
            cells[out * n] = members_since(plan, words, s, e, cell, window, t) if known else 0
        elif op == SINCE_FIRST or op == SINCE_LAST:
            seen = words[fixed + cell_of(plan, cell, C_AT)]
            cells[out * n] = (t - seen) / 1000.0 if known and seen != NONE and seen <= t else np.nan
        elif op == SINCE_MARK:
            seen = newest_mark(plan, words, s, e, cell) if known else NONE
            cells[out * n] = (t - seen) / 1000.0 if seen != NONE and seen <= t else np.nan
        else:
            at = fixed + cell_of(plan, cell, C_AT)
            there = known and words[at] != NONE and words[at] <= t
            if op == PREVIOUS_NUMBER:
                if there:
                    bits[out * n] = words[at + 2]
                else:
                    cells[out * n] = np.nan
            elif op == PREVIOUS_TEXT:
                for k in range(TEXT_WORDS):  # an entity's value has its hash only (R_EXTRA is 1)
                    texts[out * TEXT_WORDS + k] = 0
                    if there and k < constant(plan, f + R_EXTRA):
                        texts[out * TEXT_WORDS + k] = words[at + 2 + k]
            elif op == PREVIOUS_LOCATION:
                cells[out * n] = latitude(words[at + 2]) if there else np.nan
                cells[(out + 1) * n] = longitude(words[at + 2]) if there else np.nan
            else:
                cells[out * n] = np.nan
                place = constant(plan, f + R_OTHER)  # column of the event's latitude; longitude follows
                if there and t > words[at]:
                    km = haversine_km(
                        latitude(words[at + 2]),
                        longitude(words[at + 2]),
                        cells[place * n],
                        cells[(place + 1) * n],
                    )
                    cells[out * n] = km / ((t - words[at]) / 3_600_000.0)


@jit_inline
def step(
    plan: Int64s, words: Int64s, s: int, e: int, record: Int64s, cells: Float64s, n: int, room: int
) -> bool:
    """`apply` and then `read` at the record's time, at once, in the common case; else False and nothing.

    The common case is an entity of one timeline that counts and adds over sliding windows (T_PLAIN), with
    running totals, and a record later than all before. Window by window, what leaves and what comes is added
    and the features are written while all of it is at hand: half the time of `apply` and `read`.
    """
    r = entity_of(plan, e, E_RECORD)
    t = record[r + RECORD_TIME]
    newest = words[s]
    if record[r + RECORD_MASK] != 1 or t < newest or t - newest > entity_of(plan, e, E_RETENTION):
        return False
    cell = entity_of(plan, e, E_CELLS)
    size = cell_of(plan, cell, C_WORDS)
    used = used_words(words, s)
    if not totals_run(words, s) or used + size > room:
        return False
    window = cell_of(plan, cell, C_WINDOWS)
    width = window_of(plan, window, W_BUCKET)
    end = s + used
    last = words[end - size]
    # The finest window tells the record from the last entry, as its own bucket is alive.
    if used == entity_of(plan, e, E_FIXED) + running_of(plan, e, T_WORDS) or not (
        t - last >= width or t % width < t - last
    ):
        return False
    words[s] = t
    set_used(words, s, used + size)
    words[s + 2] += 1
    words[end] = t
    column = cell_of(plan, cell, C_COLUMNS)
    for k in range(1, size):
        op = column_of(plan, column + k - 1, K_OP)
        words[end + k] = (
            1 if op == ONE else record[r + RECORD_SLOTS + column_of(plan, column + k - 1, K_SLOT)]
        )
    totals = totals_at(plan, s, e)
    start = totals + running_of(plan, e, T_WORDS)
    f = constant(plan, P_READS) + entity_of(plan, e, E_READS) * R_SIZE
    reads_end = f + entity_of(plan, e, E_AFTER_N) * R_SIZE
    while f < reads_end:
        window = constant(plan, f + R_WINDOW)
        width = window_of(plan, window, W_BUCKET)
        since = t - t % width - (window_of(plan, window, W_BUCKETS) - 1) * width
        head = totals + totals_of(plan, window)
        sums = head + T_SINCE
        before = words[sums]
        at = start + words[head]
        first = words[sums + 1] + words[end + 1]
        second = words[sums + 2] + words[end + 2] if size > 2 else 0
        for k in range(3, size):
            words[sums + k] += words[end + k]
        if since > before:
            while words[at] < since:
                first -= words[at + 1]
                if size > 2:
                    second -= words[at + 2]
                for k in range(3, size):
                    words[sums + k] -= words[at + k]
                at += size
        elif since < before:  # it was reset
            while at > start and words[at - size] >= since:
                at -= size
                first += words[at + 1]
                if size > 2:
                    second += words[at + 2]
                for k in range(3, size):
                    words[sums + k] += words[at + k]
        words[head] = at - start
        words[sums] = since
        words[sums + 1] = first
        if size > 2:
            words[sums + 2] = second
        while f < reads_end and constant(plan, f + R_WINDOW) == window:
            a = words[sums + 1 + constant(plan, f + R_COLUMN)]
            op = constant(plan, f + R_OP)
            value = float(a)
            if op != COUNT:
                if op == MEAN:
                    value = float(words[sums + 1 + constant(plan, f + R_COLUMN2)]) / value
                value = unscaled(value, constant(plan, f + R_DIGITS))
            cells[constant(plan, f + R_OUT) * n] = value
            f += R_SIZE
    return True


@jit_inline
def window_sums(
    plan: Int64s, words: Int64s, cell: int, window: int, start: int, end: int, t: int, newest: int,
    known: bool, sums: Int64s, summed: int,
) -> int:  # fmt: skip
    """Fold the entries of words[start:end], a timeline, inside the window at `t` into `sums`, one a column.

    `summed` is what the call for another window of the timeline returned, and the sums as it left them, else
    0: where that window lies within this one, only the entries before it are added.
    """
    size = cell_of(plan, cell, C_WORDS)
    first = cell_of(plan, cell, C_COLUMNS)
    if not known:
        clear(plan, first, size, sums)
        return 0
    kind = window_of(plan, window, W_KIND)
    top = bucket_of(plan, window, t - window_of(plan, window, W_DELAY))
    if kind == SLIDING:
        width = window_of(plan, window, W_BUCKET)
        since = (top - window_of(plan, window, W_BUCKETS) + 1) * width
        until = (top + 1) * width
        to_end = newest < until
        if summed == 0 or not to_end or (summed < end and words[summed] < since):
            clear(plan, first, size, sums)
            summed = end
            while summed > start and words[summed - size] >= until:
                summed -= size
        at = summed
        while at > start and words[at - size] >= since:
            at -= size
        add_entries(plan, words, at, summed, first, size, sums)
        return at if to_end else 0
    clear(plan, first, size, sums)
    at = end - size
    while at >= start:
        # Local dates may repeat for minutes where clocks go back over midnight: look one period further.
        number = period_of_local(kind, words[at] + offset_in(plan, words[at]))
        if number == top:
            add_entries(plan, words, at, at + size, first, size, sums)
        elif number < top - 1:
            break
        at -= size
    return 0


@jit_inline
def clear(plan: Int64s, first: int, size: int, sums: Int64s) -> None:
    """Begin the sums of a timeline's columns."""
    for k in range(size - 1):
        op = column_of(plan, first + k, K_OP)
        sums[k] = NONE if op == LEAST or op == GREATEST else 0


@jit_inline
def add_entries(
    plan: Int64s, words: Int64s, low: int, high: int, first: int, size: int, sums: Int64s
) -> None:
    """Fold the timeline entries in words[low:high] into the sums.

    A column at a time, in a register. With this, and wider windows going on where narrower ones ended, a read
    of three windows of forty entries takes half the time that it took entry by entry.
    """
    for k in range(size - 1):
        op = column_of(plan, first + k, K_OP)
        total = sums[k]
        if op < LEAST:
            for at in range(low + 1 + k, high, size):
                total += words[at]
        else:
            for at in range(low + 1 + k, high, size):
                total = extreme(op, total, words[at])
        sums[k] = total


@jit
def total_of(
    plan: Int64s, words: Int64s, s: int, e: int, f: int, window: int, t: int, known: bool, sums: Int64s
) -> int:
    """What a rate, whose row of Plan.reads begins at plan[f], is a share of: events, labelled or not."""
    cell = constant(plan, f + R_OTHER)
    region = cell_of(plan, cell, C_AT)
    start = region_start(plan, words, s, e, region)
    end = start + count_of(words, s, region) * cell_of(plan, cell, C_WORDS)
    window_sums(plan, words, cell, window, start, end, t, words[s], known, sums, 0)
    return sums[constant(plan, f + R_COLUMN2)]  # type: ignore[no-any-return]  # an int in the kernel


@jit_inline
def aggregate(plan: Int64s, f: int, op: int, sums: Int64s) -> float:
    """The value of one windowed feature, whose row of Plan.reads begins at plan[f], from its sums."""
    a = sums[constant(plan, f + R_COLUMN)]
    if op == COUNT:
        return float(a)
    digits = constant(plan, f + R_DIGITS)
    if op == SUM:
        return unscaled(float(a), digits)
    b = sums[constant(plan, f + R_COLUMN2)]
    if op == MEAN:
        return unscaled(float(b) / float(a), digits) if a > 0 else np.nan
    if op == MIN or op == MAX:
        return unscaled(float(a), digits) if a != NONE else np.nan
    if a < 2:
        return np.nan
    spread = variance_numerator(
        a, b, sums[constant(plan, f + R_OTHER)], sums[constant(plan, f + R_EXTRA)], stack(LIMBS)
    )
    return unscaled(math.sqrt(spread / (float(a) * float(a - 1))), digits)


@jit_inline
def unscaled(value: float, digits: int) -> float:
    """Minor units to the unit's own: value / 10**digits."""
    return value / POWERS[digits] if digits >= 0 else value * POWERS[-digits]  # type: ignore[no-any-return]  # a float


@jit
def minor_of(value: float, digits: int) -> int:
    """A quantised value in minor units: exact, as value is minor / 10**digits and at most 2**43 units."""
    return int(np.rint(value * POWERS[digits] if digits >= 0 else value / POWERS[-digits]))


@jit
def variance_numerator(n: int, total: int, high: int, low: int, limbs: Int64s) -> float:
    """n * (high * 2**43 + low) - total**2, exact, then rounded once to float64.

    Sums of squares cancel: in floats the difference loses everything when the mean is large. Twelve
    limbs of 2**24 hold it exactly; `limbs` is the room for them.
    """
    for k in range(LIMBS):
        limbs[k] = 0
    v = abs(total)
    for i in range(3):  # n in three limbs against each part, so that no product passes 2**48
        n_limb = (n >> (24 * i)) & 0xFFFFFF
        for j in range(3):
            low_limb = (low >> (24 * j)) & 0xFFFFFF
            limbs[i + j] += n_limb * low_limb
            high_limb = (high >> (24 * j)) & 0xFFFFFF  # times 2**43 = 2**24 * 2**19
            product = n_limb * high_limb
            limbs[i + j + 1] += (product & 0x1F) << 19
            limbs[i + j + 2] += product >> 5
            limbs[i + j] -= ((v >> (24 * i)) & 0xFFFFFF) * ((v >> (24 * j)) & 0xFFFFFF)
    carry = 0
    top = -1
    for k in range(LIMBS):
        carry += limbs[k]
        limbs[k] = carry & 0xFFFFFF
        carry >>= 24
        if limbs[k]:
            top = k
    if top < 0:
        return 0.0
    # The top three limbs hold at least 49 significant bits; gather 62 and mark what is below as sticky.
    bits = 0
    while limbs[top] >> bits:
        bits += 1
    value = limbs[top]
    k = top - 1
    left = 62 - bits  # bits still wanted
    exponent = 24 * top
    sticky = False
    while k >= 0:
        if left >= 24:
            value = (value << 24) | limbs[k]
            exponent -= 24
            left -= 24
        elif left > 0:
            value = (value << left) | (limbs[k] >> (24 - left))
            exponent -= left
            sticky = sticky or (limbs[k] & ((1 << (24 - left)) - 1)) != 0
            left = 0
        else:
            sticky = sticky or limbs[k] != 0
        k -= 1
    if sticky:
        value |= 1
    return math.ldexp(float(value), exponent)


@jit
def members_since(plan: Int64s, words: Int64s, s: int, e: int, cell: int, window: int, t: int) -> int:
    """Members last seen since the window at `t` began (exact below the cap)."""
    region = cell_of(plan, cell, C_AT)
    start = region_start(plan, words, s, e, region)
    end = start + 2 * count_of(words, s, region)
    since = bucket_of(plan, window, t) - window_of(plan, window, W_BUCKETS) + 1
    n = 0
    if window_of(plan, window, W_KIND) == SLIDING:
        since *= window_of(plan, window, W_BUCKET)
        for i in range(start + 1, end, 2):
            n += words[i] >= since
    else:
        for i in range(start + 1, end, 2):
            n += bucket_of(plan, window, words[i]) >= since
    return n


@jit
def members(plan: Int64s, words: Int64s, s: int, e: int, cell: int, window: int, t: int, out: Int64s) -> int:
    """How many members `members_since` counts; they are written into `out` as far as it has room."""
    region = cell_of(plan, cell, C_AT)
    start = region_start(plan, words, s, e, region)
    since = bucket_of(plan, window, t) - window_of(plan, window, W_BUCKETS) + 1
    n = 0
    for i in range(start, start + 2 * count_of(words, s, region), 2):
        if bucket_of(plan, window, words[i + 1]) >= since:
            if n < len(out):
                out[n] = words[i]
            n += 1
    return n


@jit
def newest_mark(plan: Int64s, words: Int64s, s: int, e: int, cell: int) -> int:
    """Time of the newest event now labelled so, or NONE."""
    region = cell_of(plan, cell, C_AT)
    start = region_start(plan, words, s, e, region)
    newest = NONE
    for i in range(start, start + 3 * count_of(words, s, region), 3):
        if words[i + 2] > 0:
            newest = max(newest, words[i + 1])
    return newest


# ---- locations --------------------------------------------------------------------------------------


@jit
def pack_location(lat: float, lon: float) -> int:
    """A location in one word: 1e-7 degrees, latitude in the upper half."""
    return (int(np.rint(lat * 1e7)) << 32) | (int(np.rint(lon * 1e7)) & 0xFFFFFFFF)


@jit
def latitude(word: int) -> float:
    """Degrees of latitude in a packed location."""
    return (word >> 32) / 1e7


@jit
def longitude(word: int) -> float:
    """Degrees of longitude in a packed location."""
    low = word & 0xFFFFFFFF
    return (low - (1 << 32) if low >= (1 << 31) else low) / 1e7
