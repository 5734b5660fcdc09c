"""Calendar periods in a policy's time zone, as arithmetic on int64 milliseconds.

`zoneinfo` cannot run inside a kernel, so a zone becomes two arrays once, and kernels search them.
"""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from riskengine.kernel import jit

DAY: Final = 1
WEEK: Final = 2
MONTH: Final = 3
KINDS: Final = {"day": DAY, "week": WEEK, "month": MONTH}

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000

FIRST_YEAR: Final = 1970
LAST_YEAR: Final = 2100
PROBE_S: Final = 3 * 86_400  # no zone since 1970 kept an offset for less than 6.9 days (tzdata 2025)

Int64s = NDArray[np.int64]


@lru_cache(maxsize=64)
def timezone_table(name: str) -> tuple[Int64s, Int64s]:
    """Return `(transitions_ms, offsets_ms)` of an IANA zone for 1970 to 2100, read-only and of equal length.

    From `transitions_ms[i]` on (UTC, inclusive) local time is UTC + `offsets_ms[i]`. The first transition
    is the smallest int64, so that every time has an offset; outside the years the nearest offset holds.
    Raises ValueError for a name that no zone has.
    """
    try:
        zone = zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is not an IANA time zone such as 'Asia/Shanghai' or 'UTC'") from error
    first_s = int(datetime(FIRST_YEAR, 1, 1, tzinfo=UTC).timestamp())
    last_s = int(datetime(LAST_YEAR + 1, 1, 1, tzinfo=UTC).timestamp())
    transitions_ms = [int(np.iinfo(np.int64).min)]
    offsets_ms = [_offset_ms(zone, first_s)]
    for probe_s in range(first_s + PROBE_S, last_s + 1, PROBE_S):
        offset_ms = _offset_ms(zone, probe_s)
        if offset_ms != offsets_ms[-1]:
            transitions_ms.append(_change_s(zone, probe_s - PROBE_S, probe_s) * 1000)
            offsets_ms.append(offset_ms)
    table = np.array(transitions_ms, np.int64), np.array(offsets_ms, np.int64)
    for array in table:
        array.flags.writeable = False
    return table


def _offset_ms(zone: zoneinfo.ZoneInfo, at_s: int) -> int:
    offset = datetime.fromtimestamp(at_s, zone).utcoffset()
    assert offset is not None
    return offset.days * DAY_MS + offset.seconds * 1000


def _change_s(zone: zoneinfo.ZoneInfo, before_s: int, after_s: int) -> int:
    """Return the first second in (before, after] at which the offset is that of `after`."""
    wanted_ms = _offset_ms(zone, after_s)
    while after_s - before_s > 1:
        middle_s = (before_s + after_s) // 2
        if _offset_ms(zone, middle_s) == wanted_ms:
            after_s = middle_s
        else:
            before_s = middle_s
    return after_s


@jit
def offset_at(t: int, transitions: Int64s, offsets: Int64s) -> int:
    """Return local time minus UTC, ms, at `t` (ms UTC)."""
    high = len(transitions) - 1
    if t >= transitions[high]:  # zones without summer time are answered here
        return offsets[high]  # type: ignore[no-any-return]  # numpy's scalar, an int inside the kernel
    low = 0  # transitions[low] <= t < transitions[high]
    while high - low > 1:
        middle = (low + high) // 2
        if transitions[middle] <= t:
            low = middle
        else:
            high = middle
    return offsets[low]  # type: ignore[no-any-return]  # an int in the kernel


@jit
def period(kind: int, t: int, transitions: Int64s, offsets: Int64s) -> int:
    """Return the number of the calendar period that holds `t` (ms UTC) in the zone of the table.

    `kind` 1: days since 1970-01-01; 2: ISO weeks since the one of 1970-01-01 (which starts Monday
    1969-12-29); 3: months since January 1970. Periods before those are negative.
    """
    return period_of_local(kind, t + offset_at(t, transitions, offsets))


@jit
def period_of_local(kind: int, local: int) -> int:
    """Return the number of the calendar period that holds a local time (ms since 1970-01-01T00:00)."""
    day = local // DAY_MS
    if kind == DAY:
        return day
    if kind == WEEK:
        return (day + 3) // 7
    return month_of_day(day)


@jit
def month_of_day(day: int) -> int:
    """Return months since January 1970 of a day since 1970-01-01 (H. Hinnant, civil_from_days)."""
    shifted = day + 719_468  # days since 0000-03-01, where eras of 400 years begin
    era = shifted // 146_097
    of_era = shifted - era * 146_097
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month_from_march = (5 * of_year + 2) // 153
    return (year + era * 400 - 1970) * 12 + month_from_march + 2


@jit
def hour_of(t: int, transitions: Int64s, offsets: Int64s) -> int:
    """Return the local hour, 0 to 23, at `t` (ms UTC)."""
    local = t + offset_at(t, transitions, offsets)
    return (local - local // DAY_MS * DAY_MS) // HOUR_MS


@jit
def weekday_of(t: int, transitions: Int64s, offsets: Int64s) -> int:
    """Return the local ISO weekday, 1 Monday to 7 Sunday, at `t` (ms UTC)."""
    day = (t + offset_at(t, transitions, offsets)) // DAY_MS
    return (day + 3) % 7 + 1
