"""What a policy may come to cost: the most bytes one entity's state can take, feature by feature.

An upper bound on the packed value in the store, which `check` holds against its limit and `--explain`
shows. Each share of memory that several features use is divided among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from riskengine.definition import Definition, Feature, Limit, Window

ENTITY_BYTES_MAX: Final = 32 * 1024

WORD: Final = 8  # bytes of a time, a count, a sum; packing makes most of them smaller
MEMBER_BYTES: Final = 16  # key and last time
MARK_BYTES: Final = 16  # event hash and time
HOLD_BYTES: Final = 16  # bucket and amount
MARKS_CAP: Final = 256  # events now labelled so, behind since_last of a label
PREVIOUS_BYTES: Final = {"number": 24, "bool": 24, "time": 24, "location": 32, "string": 56}
SINCE_BYTES: Final = 16
SPEED_BYTES: Final = 32
PERIOD_MS: Final = {"day": 86_400_000, "week": 7 * 86_400_000, "month": 28 * 86_400_000}  # at least

Stream = tuple[tuple[str, ...], str | None, str | None]  # event types, label, where


def state_bytes(definition: Definition) -> dict[str, dict[str, int]]:
    """Worst-case bytes by entity, then by feature or limit; every entity of the policy is there."""
    costs: dict[str, dict[str, int]] = {name: {} for name in definition.entities}
    slack_ms = definition.lateness_ms + definition.skew_ms
    columns: dict[tuple[str, Stream], set[tuple[str, str | None]]] = {}
    users: dict[tuple[str, Stream], dict[Window, list[str]]] = {}
    shared: dict[tuple[str, object], list[Feature]] = {}
    for feature in definition.features.values():
        if feature.by is None:
            continue
        costs[feature.by][feature.name] = 0
        for stream in _streams(feature):
            columns.setdefault((feature.by, stream), set()).update(_columns(feature))
            assert feature.window is not None
            users.setdefault((feature.by, stream), {}).setdefault(feature.window, []).append(feature.name)
        if feature.window is None or feature.aggregate == "distinct":
            kept = (feature.aggregate, feature.label, feature.types, feature.field, _where(feature))
            shared.setdefault((feature.by, kept), []).append(feature)
    for (entity, stream), windows in users.items():
        width = WORD * (1 + len(columns[entity, stream]))
        for window, names in windows.items():
            _divide(costs[entity], names, entries(window, slack_ms) * width)
    for (entity, _), features in shared.items():
        _divide(costs[entity], [feature.name for feature in features], max(map(_fixed_bytes, features)))
    for limit in definition.limits.values():
        if limit.mode != "off":
            costs[limit.by][limit.name] = entries(limit.window, slack_ms) * HOLD_BYTES
    return costs


def entries(window: Window, slack_ms: int) -> int:
    """The most buckets of a window that one entity keeps: those it sums, and those a late read may need."""
    if window.kind != "over":
        return 2 + -(-window.delay_ms // PERIOD_MS[window.kind])
    buckets = window.width_ms // window.bucket_ms
    return buckets + -(-(slack_ms + window.delay_ms) // window.bucket_ms) + 2


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
    return entries(feature.window, slack_ms) * len(_streams(feature))


def _streams(feature: Feature) -> list[Stream]:
    if feature.window is None or feature.aggregate == "distinct":
        return []
    own: Stream = (tuple(sorted(feature.types)), feature.label, _where(feature))
    return [own, (own[0], None, own[2])] if feature.aggregate == "rate" else [own]


def _columns(feature: Feature) -> list[tuple[str, str | None]]:
    """What each entry of a stream keeps for this feature, beside its time."""
    if feature.aggregate in ("count", "rate"):
        return [("count", None)]
    if feature.aggregate in ("sum", "min", "max"):
        return [(feature.aggregate, feature.field)]
    columns: list[tuple[str, str | None]] = [("present", feature.field), ("sum", feature.field)]
    if feature.aggregate == "std":
        columns += [("square high", feature.field), ("square low", feature.field)]
    return columns


def _fixed_bytes(feature: Feature) -> int:
    if feature.aggregate == "distinct":
        return feature.cap * MEMBER_BYTES
    if feature.label is not None:
        return MARKS_CAP * MARK_BYTES
    if feature.aggregate == "previous":
        return PREVIOUS_BYTES[feature.type]
    return SPEED_BYTES if feature.aggregate == "speed" else SINCE_BYTES


def _where(feature: Feature) -> str | None:
    return None if feature.where is None else feature.where.canonical()


def _divide(costs: dict[str, int], names: Sequence[str], size: int) -> None:
    share, rest = divmod(size, len(names))
    for position, name in enumerate(names):
        costs[name] += share + (rest if position == 0 else 0)
