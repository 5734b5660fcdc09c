"""What is known of one entity: the fold of small records, kept in one slab of int64 words.

`apply` folds a record into a slab, `aggregates.read` turns a slab into feature values. Both stores use these
two and nothing else, so they agree by construction. A slab is laid out by the entity's `Plan`:

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

from typing import Final

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
    TIMELINE,
)
from riskengine.kernel import constant, jit, jit_inline, prefetch, stack
from riskengine.layout import (
    C_AT,
    C_CAP,
    C_COLUMNS,
    C_KIND,
    C_SLOT,
    C_WINDOWS,
    C_WINDOWS_N,
    C_WORDS,
    E_CELLS,
    E_CELLS_N,
    E_FIXED,
    E_FIXED_N,
    E_RECORD,
    E_REGIONS,
    E_REGIONS_N,
    E_RETENTION,
    K_OP,
    K_SLOT,
    META_TOTALS,
    META_USED,
    NEVER_MS,
    NONE,
    P_SLACK,
    RECORD_HASH,
    RECORD_MASK,
    RECORD_SLOTS,
    RECORD_TIME,
    SIGN_BIT,
    SLIDING,
    SQUARE_SHIFT,
    T_SINCE,
    T_WORDS,
    W_BUCKET,
    W_BUCKETS,
    W_DELAY,
    W_KIND,
    Int64s,
    cell_of,
    column_of,
    entity_of,
    offset_in,
    region_words,
    running_of,
    totals_of,
    window_of,
)

EDGES: Final = 8  # windows of a timeline whose edges tidying remembers; of others it computes them again
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
