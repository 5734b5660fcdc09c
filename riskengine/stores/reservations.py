"""What the events of a batch ask of limits, and what the log of a shared store grants them: the kernels."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from riskengine import layout, ledger
from riskengine.decision import DENY
from riskengine.kernel import jit, pointer
from riskengine.layout import (
    L_CELL,
    L_DIGITS,
    L_ENTITY,
    L_FIELD,
    L_LIVE,
    L_MAX,
    L_SEVERITY,
    L_WHERE,
    NONE,
    P_LIMIT_TYPES,
    P_LIMITS_N,
    P_TYPES_N,
    Float64s,
    Int64s,
    cell_of,
    limit_of,
)
from riskengine.packing import Bytes
from riskengine.stores import slabs
from riskengine.stores.values import book

HANDED: Final = 2  # what a limit is asked for has been held by the event that is followed


@jit
def ask(
    plan: Int64s,
    type_index: NDArray[np.int32],
    late: NDArray[np.bool_],
    keys: Int64s,
    cells: Float64s,
    prior: Int64s,
    prior_keys: Int64s,
    asked: Bytes,
    amounts: Int64s,
    mosts: Int64s,
) -> None:
    """What every event of a batch wants of which limit: asked uint8 (n, L), amounts and maxima (n, L).

    `prior` (L, 2) is what a lone event takes over, as in slabs.settle; where it does, asked is HANDED.
    """
    for i in range(keys.shape[0]):
        for limit in range(plan[P_LIMITS_N]):
            digits = limit_of(plan, limit, L_DIGITS)
            where = limit_of(plan, limit, L_WHERE)
            field = limit_of(plan, limit, L_FIELD)
            key = keys[i, limit_of(plan, limit, L_ENTITY)]
            on_type = plan[plan[P_LIMIT_TYPES] + limit * plan[P_TYPES_N] + type_index[i]]
            wants = key != 0 and on_type != 0 and (where < 0 or cells[where, i] == 1.0)
            amount = 1
            if field >= 0:
                amount = 0 if np.isnan(cells[field, i]) else max(0, layout.minor_of(cells[field, i], digits))
            most = slabs.amount_of(digits, cells[limit_of(plan, limit, L_MAX), i])
            amounts[i, limit] = amount
            mosts[i, limit] = most
            handed = (
                len(prior) > 0
                and prior[limit, 1] == amount
                and prior_keys[limit_of(plan, limit, L_ENTITY)] == key
            )
            asked[i, limit] = 0
            if wants and not late[i]:
                asked[i, limit] = HANDED if handed else most != NONE


@jit
def grant_all(
    plan: Int64s,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    keys: Int64s,
    time: Int64s,
    asked: Bytes,
    handed: Bytes,
    amounts: Int64s,
    mosts: Int64s,
    granted: Bytes,
    buckets: Int64s,
) -> None:
    """What the log grants a batch, as `place_buckets`, `book_all` and then `give_back_all` say.

    What is `handed` over (L) is granted besides.
    """
    place_buckets(plan, time, handed, buckets)
    book_all(plan, words, meta, table, old_table, keys, time, asked, amounts, mosts, granted)
    give_back_all(plan, words, meta, table, old_table, keys, time, granted, amounts)
    for i in range(granted.shape[0]):
        for limit in range(granted.shape[1]):
            if handed[limit]:
                granted[i, limit] = 1


@jit
def book_all(
    plan: Int64s,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    keys: Int64s,
    time: Int64s,
    asked: Bytes,
    amounts: Int64s,
    mosts: Int64s,
    granted: Bytes,
) -> None:
    """What the log grants a batch: granted uint8 (n, L). The workspace holds it afterwards."""
    plan = pointer(plan, 0)
    for i in range(asked.shape[0]):
        for limit in range(asked.shape[1]):
            e = limit_of(plan, limit, L_ENTITY)
            granted[i, limit] = asked[i, limit] and book(
                plan, words, meta, table, old_table, e, limit_of(plan, limit, L_CELL), keys[i, e], time[i],
                amounts[i, limit], mosts[i, limit],
            )  # fmt: skip


@jit
def give_back_all(
    plan: Int64s,
    words: Int64s,
    meta: Int64s,
    table: Int64s,
    old_table: Int64s,
    keys: Int64s,
    time: Int64s,
    granted: Bytes,
    amounts: Int64s,
) -> None:
    """Undo `book_all`."""
    plan = pointer(plan, 0)
    for i in range(granted.shape[0]):
        for limit in range(granted.shape[1]):
            if granted[i, limit]:
                e = limit_of(plan, limit, L_ENTITY)
                cell = limit_of(plan, limit, L_CELL)
                bucket = ledger.bucket_of(plan, cell_of(plan, cell, layout.C_WINDOWS), time[i])
                slabs.give_hold_back(
                    plan, words, meta, table, old_table, e, cell, keys[i, e], bucket, amounts[i, limit]
                )


@jit
def place_buckets(plan: Int64s, time: Int64s, handed: Bytes, buckets: Int64s) -> None:
    """The bucket in which each event holds what it asks of each limit: buckets (n, L).

    What is `handed` over (L) stays where it is.
    """
    for i in range(buckets.shape[0]):
        for limit in range(buckets.shape[1]):
            if handed[limit]:
                continue
            window = cell_of(plan, limit_of(plan, limit, L_CELL), layout.C_WINDOWS)
            buckets[i, limit] = ledger.bucket_of(plan, window, time[i])


@jit
def compare(traces: Int64s, at_holds: int, granted: Bytes, again: Bytes, give_back: Bytes) -> int:
    """Where what stays held (as traces say) is not what the log granted.

    again: held, but the log refused it; how many these are is returned. give_back: granted, and not held.
    """
    count = 0
    for i in range(granted.shape[0]):
        for limit in range(granted.shape[1]):
            held = traces[i, at_holds + 2 * limit + 1] != NONE
            again[i, limit] = held and not granted[i, limit]
            give_back[i, limit] = granted[i, limit] and not held
            count += again[i, limit]
    return count


@jit
def settle_given(
    plan: Int64s,
    type_index: NDArray[np.int32],
    time: Int64s,
    keys: Int64s,
    cells: Float64s,
    amounts: Int64s,
    buckets: Int64s,
    granted: Bytes,
    base: Int64s,
    hits: Bytes,
    final: Int64s,
    traces: Int64s,
    at_holds: int,
) -> None:
    """Decide by what was granted: what slabs.settle writes, where no limit is tried any more."""
    limits = plan[P_LIMITS_N]
    for i in range(len(time)):
        worst = base[i]
        for limit in range(limits):
            e = limit_of(plan, limit, L_ENTITY)
            where = limit_of(plan, limit, L_WHERE)
            on_type = plan[plan[P_LIMIT_TYPES] + limit * plan[P_TYPES_N] + type_index[i]]
            wants = keys[i, e] != 0 and on_type != 0 and (where < 0 or cells[where, i] == 1.0)
            refused = wants and not granted[i, limit]
            hits[i, hits.shape[1] - limits + limit] = refused
            if refused and limit_of(plan, limit, L_LIVE):
                worst = max(worst, limit_of(plan, limit, L_SEVERITY))
        final[i] = worst
        for limit in range(limits):
            held = granted[i, limit] and worst != DENY
            traces[i, at_holds + 2 * limit] = buckets[i, limit] if held else 0
            traces[i, at_holds + 2 * limit + 1] = amounts[i, limit] if held else NONE
