"""Features from slabs: what the windows of an entity say at a time.

Slabs are those that ledger.py writes; kernels take the plan, a slab's words and a record as it has them.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from riskengine.calendar import period_of_local
from riskengine.cells import (
    GREATEST,
    LEAST,
    ONE,
    TEXT_WORDS,
)
from riskengine.geo import haversine_km
from riskengine.kernel import constant, jit, jit_inline, pointer, stack
from riskengine.layout import (
    C_AT,
    C_COLUMNS,
    C_WINDOWS,
    C_WORDS,
    COUNT,
    DISTINCT,
    E_AFTER_N,
    E_BEFORE_N,
    E_CELLS,
    E_FIXED,
    E_READS,
    E_RECORD,
    E_RETENTION,
    K_OP,
    K_SLOT,
    MAX,
    MEAN,
    MIN,
    NONE,
    P_READS,
    PREVIOUS_LOCATION,
    PREVIOUS_NUMBER,
    PREVIOUS_TEXT,
    R_CELL,
    R_COLUMN,
    R_COLUMN2,
    R_DIGITS,
    R_EXTRA,
    R_OP,
    R_OTHER,
    R_OUT,
    R_SIZE,
    R_WINDOW,
    RATE,
    RECORD_MASK,
    RECORD_SLOTS,
    RECORD_TIME,
    SINCE_FIRST,
    SINCE_LAST,
    SINCE_MARK,
    SLIDING,
    SUM,
    T_SINCE,
    T_WORDS,
    W_BUCKET,
    W_BUCKETS,
    W_DELAY,
    W_KIND,
    Float64s,
    Int64s,
    cell_of,
    column_of,
    entity_of,
    latitude,
    longitude,
    offset_in,
    running_of,
    totals_of,
    unscaled,
    window_of,
)
from riskengine.ledger import (
    bucket_of,
    count_of,
    extreme,
    move_head,
    region_start,
    set_used,
    totals_at,
    totals_run,
    used_words,
)

LIMBS: Final = 12  # of variance_numerator


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
