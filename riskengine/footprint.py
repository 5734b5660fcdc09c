"""What a policy may come to cost: the most bytes one entity's state can take, feature by feature.

An upper bound on the packed snapshot of an entity (packing.py), over the very cells that the plan lays out;
`check` holds it against its limit and `--explain` shows it. Records not folded in yet come on top, at most
as many bytes again or 64 records. What several features share is divided among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from riskengine.cells import (
    ADD,
    GREATEST,
    HOLDS,
    LEAST,
    MARKS,
    MARKS_CAP,
    MEMBERS,
    ONE,
    SQUARE_HIGH,
    SQUARE_LOW,
    TIMELINE,
    Cell,
    Cells,
)
from riskengine.definition import Definition, Feature, Limit, Window

ENTITY_BYTES_MAX: Final = 32 * 1024

HEAD_BYTES: Final = 24 + 7  # of a value, and the time of its newest record
REGION_BYTES: Final = 3  # the number of a cell's entries
SINCE_BYTES: Final = 6  # from one time of an entity to another, at most 2**41 ms
RAW_BYTES: Final = 8  # a hash, or a remembered word
BUCKET_BYTES: Final = 7  # the number of a hold's bucket
COUNT_BYTES: Final = 5  # up to 2**34 events in one bucket
SUM_BYTES: Final = 10  # any int64
NET_BYTES: Final = 1  # how often an event is labelled so
# A column of a timeline; extremes are at most 2**43 units, behind a byte that says whether there is one.
COLUMN_BYTES: Final[Mapping[int, int]] = {
    ONE: COUNT_BYTES, ADD: SUM_BYTES, SQUARE_HIGH: SUM_BYTES, SQUARE_LOW: SUM_BYTES, LEAST: 8, GREATEST: 8,
}  # fmt: skip
HOUR_MS: Final = 3_600_000
PERIOD_MS_MIN: Final = {"day": 22 * HOUR_MS, "week": 166 * HOUR_MS, "month": 670 * HOUR_MS}  # clocks change


def state_bytes(definition: Definition) -> dict[str, dict[str, int]]:
    """Worst-case bytes by entity, then by feature or limit; every entity of the policy is there."""
    kept = Cells(definition)
    costs: dict[str, dict[str, int]] = {}
    for name, entity in kept.entities.items():
        cost = costs[name] = {
            user: 0 for cell in entity.cells for users in cell.users.values() for user in users
        }
        if cost:
            _divide(cost, list(cost), HEAD_BYTES)
        for cell in entity.cells:
            users = [user for several in cell.users.values() for user in several]
            _divide(cost, users, REGION_BYTES if cell.kind <= HOLDS else 0)
            if cell.kind == TIMELINE:
                for window, users in cell.users.items():
                    assert window is not None
                    _divide(cost, users, entries(window, kept.slack_ms) * _entry_bytes(cell))
            else:
                _divide(cost, users, _entries_of(cell, kept.slack_ms) * _entry_bytes(cell))
    return costs


def counters(definition: Definition) -> dict[str, dict[str, int]]:
    """Cells by entity, each counted for the first feature or limit that uses it. See cells.CELLS_MAX."""
    counts: dict[str, dict[str, int]] = {}
    for name, entity in Cells(definition).entities.items():
        count = counts[name] = dict[str, int]()
        for cell in entity.cells:
            first = next(iter(cell.users.values()))[0]
            count[first] = count.get(first, 0) + 1
    return counts


def entries(window: Window, slack_ms: int) -> int:
    """The most buckets of a window that one entity keeps: those it sums, and those a late read may need."""
    behind_ms = slack_ms + window.delay_ms
    if window.kind != "over":
        return 3 + -(-behind_ms // PERIOD_MS_MIN[window.kind])
    return window.width_ms // window.bucket_ms + -(-behind_ms // window.bucket_ms) + 2


def cells(feature: Feature | Limit, slack_ms: int) -> int:
    """The most entries that one entity keeps for this feature alone."""
    if isinstance(feature, Limit):
        return entries(feature.window, slack_ms)
    if feature.aggregate == "value":
        return 0
    if feature.aggregate == "distinct":
        return feature.cap
    if feature.window is None:
        return MARKS_CAP if feature.label is not None else 1
    return entries(feature.window, slack_ms) * (2 if feature.aggregate == "rate" else 1)


def _entries_of(cell: Cell, slack_ms: int) -> int:
    """Entries of a cell that is no timeline."""
    if cell.kind == HOLDS:
        return entries(cell.windows[0], slack_ms)
    return cell.cap if cell.kind in (MEMBERS, MARKS) else 1


def _entry_bytes(cell: Cell) -> int:
    if cell.kind == TIMELINE:
        return SINCE_BYTES + sum(COLUMN_BYTES[op] for op, _ in cell.columns)
    if cell.kind == HOLDS:
        return BUCKET_BYTES + SUM_BYTES
    if cell.kind in (MEMBERS, MARKS):
        return RAW_BYTES + SINCE_BYTES + (NET_BYTES if cell.kind == MARKS else 0)
    # A byte that says whether there is a sighting, its time, and what is remembered of it.
    return 1 + SINCE_BYTES + RAW_BYTES * (cell.words - 1)


def _divide(costs: dict[str, int], names: Sequence[str], size: int) -> None:
    share, rest = divmod(size, len(names))
    for position, name in enumerate(names):
        costs[name] += share + (rest if position == 0 else 0)
