"""Calendar arithmetic against zoneinfo and datetime."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from riskengine.calendar import (
    DAY,
    MONTH,
    WEEK,
    hour_of,
    offset_at,
    period,
    timezone_table,
    weekday_of,
)

ZONES = [
    "UTC",
    "Asia/Shanghai",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour of summer time
    "Africa/Casablanca",  # changes around Ramadan
    "Asia/Kathmandu",
    "Pacific/Apia",  # skipped a whole day in 2011
    "Africa/Monrovia",  # -0:44:30 until 1972
    "America/Sao_Paulo",
]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST_MS = int(datetime(2100, 12, 31, tzinfo=UTC).timestamp() * 1000)

times = st.integers(0, LAST_MS)
zones = st.sampled_from(ZONES)


def local(zone: str, t: int) -> datetime:
    return (EPOCH + timedelta(milliseconds=t)).astimezone(zoneinfo.ZoneInfo(zone))


@settings(deadline=None)  # the first example compiles the kernel
@given(zones, times)
@example("Pacific/Apia", 1_325_239_200_000)
@example("Pacific/Apia", 1_325_239_199_999)
def test_every_calendar_function_agrees_with_datetime(zone: str, t: int) -> None:
    table = timezone_table(zone)
    here = local(zone, t)
    date = here.date()
    assert hour_of(t, *table) == here.hour
    assert weekday_of(t, *table) == here.isoweekday()
    assert period(DAY, t, *table) == (date - EPOCH.date()).days
    monday = date - timedelta(days=date.weekday())
    assert period(WEEK, t, *table) * 7 == (monday - EPOCH.date()).days + 3
    assert period(MONTH, t, *table) == (date.year - 1970) * 12 + date.month - 1


@pytest.mark.parametrize("zone", ZONES)
def test_offsets_change_at_the_very_millisecond(zone: str) -> None:
    transitions, offsets = timezone_table(zone)
    for t, before, after in zip(transitions[1:], offsets[:-1], offsets[1:], strict=True):
        assert local(zone, int(t) - 1).utcoffset() == timedelta(milliseconds=int(before))
        assert local(zone, int(t)).utcoffset() == timedelta(milliseconds=int(after))
        assert offset_at(int(t) - 1, transitions, offsets) == before
        assert offset_at(int(t), transitions, offsets) == after


@settings(deadline=None)  # the first example compiles the kernel
@given(zones, st.integers(-10 * LAST_MS, 10 * LAST_MS))
def test_times_outside_the_years_keep_the_nearest_offset(zone: str, t: int) -> None:
    transitions, offsets = timezone_table(zone)
    assert offset_at(t, transitions, offsets) == offsets[np.searchsorted(transitions, t, "right") - 1]


@settings(deadline=None)  # the first example compiles the kernel
@given(st.integers(-800_000, 2_900_000))
def test_months_before_1970_are_negative_and_right(day: int) -> None:
    assert period(MONTH, day * 86_400_000, *timezone_table("UTC")) == (lambda month: month.astype("int64"))(
        np.datetime64(day, "D").astype("datetime64[M]")
    )


@pytest.mark.parametrize("name", ["Asia/Beijing", "", "../../secret", "asia shanghai"])
def test_a_name_without_a_zone_is_refused_with_an_example(name: str) -> None:
    with pytest.raises(ValueError, match="is not an IANA time zone such as"):
        timezone_table(name)
