"""Alerts: counts and shares of decided events, and the episodes in which they stand above their level.

An alert is told of decisions after they are made; nothing it finds changes one. Each alert counts by a key (a
campaign, a rule, a terminal) in a window of BUCKETS buckets. The seats of all keys are one table of fixed
size: where a set of WAYS seats is full, the key that was seen longest ago makes room, but never one whose
episode is open. A kernel counts; Python hears only of episodes that begin, take a sample or end.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from riskengine import vocabulary
from riskengine.decision import Verdict
from riskengine.definition import ACTIONS, ALERT_BUCKETS, Alert, Definition, Rule
from riskengine.entries import AlertEntry
from riskengine.event import Batch, Schema
from riskengine.expression import Expression
from riskengine.features import Touches
from riskengine.kernel import Call, Holder, bind, jit
from riskengine.program import Layout
from riskengine.rules import RuleSet

Bytes = NDArray[np.uint8]
Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]

BUCKETS: Final = ALERT_BUCKETS
WAYS: Final = 8
SETS: Final = 1_024  # a power of two; 8,192 keys take 8 MB
SAMPLES: Final = 10  # events that an episode names
EPISODES_KEPT: Final = 1_000  # closed ones, in memory
OPEN_MAX: Final = 1_000  # what is past it is counted as overflown: a thousand open alerts are read by nobody
KEY_CHARS_MAX: Final = 64
HEARTBEAT_MS: Final = 60_000  # an open episode is told to the journal again no more often
LOST_MS: Final = 600_000  # one whose process has said nothing for that long, and for two windows, is over

BY_ALL, BY_ENTITY, BY_FIELD, BY_RULE = range(4)
# Columns of AlertSet.specs; A_COLUMN is of keys or of hashes, A_CONDITION of `fired`, A_HITS of hits, or -1.
A_ID, A_BUCKET_MS, A_BY, A_COLUMN, A_CONDITION, A_HITS, A_ACTIONS, A_SHARE, A_LEAST, A_SIZE = range(10)
ABOVE, CLEAR = range(2)
# Columns of a seat's head. S_ID 0 is an empty seat; S_HOLD is before when its episode may not end.
S_ID, S_KEY, S_NEWEST, S_LAST, S_MATCHED, S_ALL, S_OPEN, S_SAMPLES, S_PEAK_MS, S_HOLD, S_SIZE = range(11)
OPENED, SAMPLED, CLOSED = range(3)
N_KIND, N_ROW, N_ALERT, N_SEAT, N_RULE, N_KEY, N_PEAK_MS, N_SIZE = range(8)
# Places of `tally`
NOTES, EVICTED, OVERFLOWN, IS_OPEN, T_SIZE = range(5)


@dataclass(frozen=True, eq=False, slots=True)
class AlertSet:
    """A policy's A alerts as arrays; their conditions C are compiled like those of rules.

    specs int64 (A, A_SIZE), levels float64 (A, 2), types uint8 (A, event types), names int64 (R + L) of
    rules and limits, live uint8 (R + L). `texts` are an alert's string columns, where its key may be shown.
    """

    alerts: tuple[Alert, ...]
    conditions: RuleSet
    specs: Int64s
    levels: Float64s
    types: Bytes
    names: Int64s
    live: Bytes
    rule_names: tuple[str, ...]
    texts: tuple[tuple[int, ...] | None, ...]
    fingerprint: str  # of the policy
    timezone: tuple[Int64s, Int64s]
    row_notes: int  # that one event may bring

    @classmethod
    def compile(
        cls,
        definition: Definition,
        schema: Schema,
        layout: Layout,
        hasher: Callable[[bytes], int],
        rules: RuleSet,
        limits: Sequence[str],
        fingerprint: str,
        timezone: tuple[Int64s, Int64s],
    ) -> AlertSet | None:
        """Compile the alerts of a definition; None where it has none."""
        alerts = tuple(definition.alerts.values())
        if not alerts:
            return None
        judged = [alert for alert in alerts if alert.when is not None]
        conditions = RuleSet.compile(
            [Rule(x.name, x.types, _condition(x), mode="live") for x in judged], schema.types, layout, hasher
        )
        rule_names = (*rules.names, *limits)
        specs = np.full((len(alerts), A_SIZE), -1, np.int64)
        types = np.zeros((len(alerts), len(schema.types)), np.uint8)
        texts: list[tuple[int, ...] | None] = []
        for a, alert in enumerate(alerts):
            kind, column = BY_ALL, -1
            if alert.by == "rule":
                kind = BY_RULE
            elif alert.by in definition.entities:
                kind, column = BY_ENTITY, schema.entities.index(alert.by)
            elif alert.by is not None:
                kind, column = BY_FIELD, schema.string_at[alert.by]
            specs[a] = (
                _identity(alert), alert.over_ms // BUCKETS, kind, column,
                judged.index(alert) if alert.when is not None else -1,
                rule_names.index(alert.hits) if alert.hits in rule_names else -1,
                sum(1 << ACTIONS.index(action) for action in alert.actions), alert.is_share, alert.least,
            )  # fmt: skip
            if alert.hits is not None and alert.hits not in rule_names:  # it is off
                specs[a, A_ACTIONS] = 0
            for name in alert.types:
                types[a, schema.types.index(name)] = 1
            texts.append(_shown_columns(alert, definition, schema))
        live = [*rules.live.tolist(), *(definition.limits[name].mode == "live" for name in limits)]
        return cls(
            alerts,
            conditions,
            specs,
            np.array([(alert.above, alert.clear) for alert in alerts], np.float64),
            types,
            np.array([_word(f"rule:{name}") for name in rule_names], np.int64),
            np.array(live, np.uint8),
            rule_names,
            tuple(texts),
            fingerprint,
            timezone,
            sum(2 * (len(rule_names) if alert.by == "rule" else 1) for alert in alerts),
        )


@dataclass(slots=True)
class _Open:
    """An open episode, and where it is counted."""

    entry: AlertEntry
    seat: int
    told_ms: int  # when the journal heard of it last


class Alerts:
    """What is counted for the alerts of a policy. One thread at a time; the engine's lock sees to that.

    `origin` names this process in episodes: after a restart it goes on with those that it left open.
    """

    def __init__(self, compiled: AlertSet, origin: str = "") -> None:
        """Nothing is counted yet."""
        self.origin = origin
        self._set = compiled
        seats = SETS * WAYS
        self._head = np.zeros((seats, S_SIZE), np.int64)
        self._counts = np.zeros((seats, 2, BUCKETS), np.int64)
        self._peaks = np.zeros(seats)
        self._tally = np.zeros(T_SIZE, np.int64)
        self._open: dict[int, _Open] = {}  # by seat
        self._closed: deque[AlertEntry] = deque(maxlen=EPISODES_KEPT)
        self._looked_ms = 0
        self._make_room()

    def _make_room(self) -> None:
        self._notes = np.zeros((max(1_024, 2 * self._set.row_notes + 2), N_SIZE), np.int64)
        self._values = np.zeros(len(self._notes))
        self._look_every_ms = max(min(int(ms) for ms in self._set.specs[:, A_BUCKET_MS]), 1_000)

    def adopt(self, compiled: AlertSet, now: int) -> list[AlertEntry]:
        """Go on under another policy. Alerts that mean the same keep what they counted; others end."""
        known = set(compiled.specs[:, A_ID].tolist())
        gone = [seat for seat in self._open if int(self._head[seat, S_ID]) not in known]
        ended = [self._end(seat, now) for seat in gone]
        self._head[~np.isin(self._head[:, S_ID], list(known))] = 0
        self._set = compiled
        self._make_room()
        return ended

    def close_all(self, now: int) -> list[AlertEntry]:
        """End every episode: the policy has no alerts any more."""
        return [self._end(seat, now) for seat in list(self._open)]

    def take(
        self, found: Touches, verdict: Verdict, now: int | Int64s, left_out: Collection[int]
    ) -> list[AlertEntry]:
        """Count decided events but those rows `left_out` and those that came late; what began or ended."""
        batch = found.batch
        changed: list[AlertEntry] = []
        if not batch.n:  # each of the events was refused
            return changed
        lone = found.lone
        if lone is not None and not left_out:
            if lone.watching is None:
                start = np.zeros(1, np.int64)
                lone.watching = start, self._counting(found, verdict, np.zeros(1, np.uint8), start, bind)
            start, calls = lone.watching
            start[0] = 0
        else:
            skip = batch.late.astype(np.uint8)
            skip[list(left_out)] = 1
            start = np.zeros(1, np.int64)
            calls = self._counting(found, verdict, skip, start, partial)
        for call in calls:
            call()
        while True:
            if self._tally[NOTES]:
                changed += self._hear(batch, int(self._tally[NOTES]))
            if start[0] >= batch.n:
                break
            calls[-1]()
        latest = now if isinstance(now, int) else int(now[-1])
        if latest - self._looked_ms >= self._look_every_ms or latest < self._looked_ms:
            changed += self.look(latest)
        return changed

    def _counting(
        self, found: Touches, verdict: Verdict, skip: Bytes, start: Int64s, hold: Holder
    ) -> list[Call]:
        """The calls that count a batch: its conditions, then the kernel, which goes on from start[0]."""
        known, batch, strings = self._set, found.batch, found.strings
        fired = np.empty((batch.n, len(known.conditions.names)), np.uint8)
        calls: list[Call] = []
        if known.conditions.names:
            calls += known.conditions.firing(
                found.cells, strings.off, strings.len, strings.hash, strings.text, found.tables.pool,
                known.timezone, batch.type_index, batch.time, batch.event_hash, fired, hold,
            )  # fmt: skip
        calls.append(
            hold(
                watch, known.specs, known.levels, known.types, known.names, known.live, fired, verdict.hits,
                verdict.severity, batch.type_index, batch.time, skip, found.keys,
                batch.str_hash.view(np.int64), self._head, self._counts, self._peaks, self._notes,
                self._values, self._tally, start,
            )
        )  # fmt: skip
        return calls

    def _hear(self, batch: Batch, notes: int) -> list[AlertEntry]:
        """Take the notes of a batch: which episodes began, sampled or ended."""
        changed: list[AlertEntry] = []
        for note, value in zip(self._notes[:notes].tolist(), self._values[:notes].tolist(), strict=True):
            kind, row, at, seat, rule, key, peak_ms = note
            time_ms = int(batch.time[row])
            if kind == OPENED:
                entry = self._begin(batch, row, at, key, rule, value)
                self._open[seat] = _Open(entry, seat, time_ms)
                changed.append(entry)
            elif kind == SAMPLED:
                entry = self._open[seat].entry
                self._open[seat].entry = msgspec.structs.replace(
                    entry, events=(*entry.events, batch.ids[row])
                )
            else:
                entry = self._open.pop(seat).entry
                updated_ms = max(entry.updated_ms, time_ms)
                changed.append(
                    msgspec.structs.replace(
                        entry, peak=value, peak_ms=peak_ms, end_ms=time_ms, updated_ms=updated_ms
                    )
                )
                self._closed.append(changed[-1])
        return changed

    def _begin(self, batch: Batch, row: int, at: int, key: int, rule: int, value: float) -> AlertEntry:
        alert = self._set.alerts[at]
        start_ms = int(batch.time[row])
        shown: str | None = None
        if alert.by == "rule":
            shown = self._set.rule_names[rule]
        elif alert.by is not None:
            shown = self._shown(batch, row, at, key)
        named = f"{self.origin}\0{alert.name}\0{key}\0{start_ms}\0{batch.ids[row]}"
        return AlertEntry(
            id=hashlib.blake2b(named.encode("utf-8", "replace"), digest_size=8).hexdigest(),
            alert=alert.name,
            by=alert.by,
            key=shown,
            key_hash=key & (1 << 64) - 1,
            start_ms=start_ms,
            peak=value,
            peak_ms=start_ms,
            updated_ms=start_ms,
            above=alert.above,
            share=alert.is_share,
            over_ms=alert.over_ms,
            events=(batch.ids[row],),
            zh=None if alert.message is None else alert.message.zh,
            en=None if alert.message is None else alert.message.en,
            policy=self._set.fingerprint,
            origin=self.origin,
        )

    def _shown(self, batch: Batch, row: int, at: int, key: int) -> str:
        """A key as people may see it: its text where that names no person, else its hash."""
        columns = self._set.texts[at]
        if columns is None:
            return f"#{key & (1 << 64) - 1:016x}"
        parts = []
        for column in columns:
            off, size = int(batch.str_off[row, column]), int(batch.str_len[row, column])
            parts.append(bytes(batch.text[off : off + size]).decode("utf-8", "replace"))
        return "/".join(parts)[:KEY_CHARS_MAX]

    def _end(self, seat: int, time_ms: int) -> AlertEntry:
        entry = msgspec.structs.replace(self._now(self._open.pop(seat), time_ms), end_ms=time_ms)
        self._head[seat, S_OPEN] = 0
        self._tally[IS_OPEN] -= 1
        self._closed.append(entry)
        return entry

    def _now(self, episode: _Open, time_ms: int) -> AlertEntry:
        seat = episode.seat
        peak, peak_ms = float(self._peaks[seat]), int(self._head[seat, S_PEAK_MS])
        updated_ms = max(episode.entry.updated_ms, time_ms)
        return msgspec.structs.replace(episode.entry, peak=peak, peak_ms=peak_ms, updated_ms=updated_ms)

    # -- time

    def look(self, now: int) -> list[AlertEntry]:
        """End the episodes whose window has emptied by `now`; also those that the journal should hear of."""
        self._looked_ms = now
        changed = []
        for seat, episode in list(self._open.items()):
            at = self._place(seat)
            if at >= 0 and settle(self._set.specs, self._set.levels, at, self._head, self._counts, seat, now):
                changed.append(self._end(seat, now))
            elif now - episode.told_ms >= max(HEARTBEAT_MS, episode.entry.over_ms // 2):
                episode.told_ms = now
                episode.entry = self._now(episode, now)
                changed.append(episode.entry)
        return changed

    def _place(self, seat: int) -> int:
        ids: list[int] = self._set.specs[:, A_ID].tolist()
        return ids.index(int(self._head[seat, S_ID]))

    def open_now(self) -> list[AlertEntry]:
        """The open episodes as they stand."""
        return [self._now(episode, episode.entry.updated_ms) for episode in self._open.values()]

    def episodes(self) -> list[AlertEntry]:
        """Open and closed episodes of this process, the newest first."""
        return sorted([*self.open_now(), *self._closed], key=lambda entry: -entry.start_ms)

    def resume(self, entries: Iterable[AlertEntry], now: int) -> list[AlertEntry]:
        """Go on with episodes that a journal has as open; what ended meanwhile is returned.

        Those of this process's `origin` whose alert is the same go on, and end no sooner than their window
        has been watched again. Those of another are ended where nothing was heard of them for long.
        """
        by_name = {alert.name: a for a, alert in enumerate(self._set.alerts)}
        ended = []
        for entry in entries:
            at = by_name.get(entry.alert)
            if entry.origin != self.origin:
                if now - entry.updated_ms > 2 * entry.over_ms + LOST_MS:
                    ended.append(msgspec.structs.replace(entry, end_ms=entry.updated_ms))
                continue
            alert = None if at is None else self._set.alerts[at]
            same = alert is not None and (alert.by, alert.over_ms, alert.above, alert.is_share) == (
                entry.by, entry.over_ms, entry.above, entry.share,
            )  # fmt: skip
            seat = -1
            if same:
                key = int(np.array(entry.key_hash, np.uint64).view(np.int64))
                place = int(self._set.specs[at, A_ID])
                seat = seat_of(self._head, self._counts, place, key, self._tally)
            if seat < 0 or self._head[seat, S_OPEN]:
                ended.append(msgspec.structs.replace(entry, end_ms=now, updated_ms=now))
                continue
            self._head[seat, S_OPEN] = 1
            self._head[seat, S_SAMPLES] = len(entry.events)
            self._head[seat, S_PEAK_MS] = entry.peak_ms
            self._head[seat, S_HOLD] = now + entry.over_ms
            self._peaks[seat] = entry.peak
            self._tally[IS_OPEN] += 1
            self._open[seat] = _Open(entry, seat, now)
        return ended

    @property
    def status(self) -> Mapping[str, int]:
        """For metrics: episodes `open`, keys `evicted` to make room, what found no room (`overflown`)."""
        return {
            "open": len(self._open),
            "evicted": int(self._tally[EVICTED]),
            "overflown": int(self._tally[OVERFLOWN]),
        }


def _condition(alert: Alert) -> Expression:
    assert alert.when is not None
    return alert.when


def _word(text: str) -> int:
    """63 bits of a text that are not 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1 or 1


def _identity(alert: Alert) -> int:
    """What tells a counter from others: two alerts of the same identity count the same."""
    said = (
        alert.name, alert.types, alert.over_ms, alert.above, alert.clear, alert.is_share, alert.least,
        alert.by, None if alert.when is None else alert.when.source, alert.actions, alert.hits,
    )  # fmt: skip
    return _word(f"alert:{said!r}")


def _shown_columns(alert: Alert, definition: Definition, schema: Schema) -> tuple[int, ...] | None:
    """String columns of an alert's key where it may be shown: it names no person by any of its fields."""
    entity = definition.entities.get(alert.by or "")
    fields = (alert.by or "",) if entity is None else entity.fields
    if entity is not None and entity.derive is not None:
        return None
    of_entities = {name for other in definition.entities.values() for name in other.fields}
    for name in fields:
        field = definition.fields.get(name)
        plain = field is not None and field.type == "string" and name not in of_entities
        if name not in vocabulary.THINGS and (not plain or name == "user_agent"):
            return None
    return tuple(schema.string_at[name] for name in fields)


# -- kernels


@jit
def seat_of(head: Int64s, counts: Int64s, identity: int, key: int, tally: Int64s) -> int:
    """The seat of an alert's key, made where there is none; -1 where all of its set have open episodes."""
    mixed = identity ^ key
    mixed = mixed ^ (mixed >> 32)
    first = (mixed & (SETS - 1)) * WAYS
    chosen = -1
    for seat in range(first, first + WAYS):
        if head[seat, S_ID] == identity and head[seat, S_KEY] == key:
            return seat
        if head[seat, S_OPEN]:
            continue
        if chosen < 0 or (
            head[chosen, S_ID] != 0 and (head[seat, S_ID] == 0 or head[seat, S_LAST] < head[chosen, S_LAST])
        ):
            chosen = seat
    if chosen < 0:
        tally[OVERFLOWN] += 1
        return -1
    if head[chosen, S_ID] != 0:
        tally[EVICTED] += 1
    for column in range(S_SIZE):
        head[chosen, column] = 0
    for which in range(2):
        for place in range(BUCKETS):
            counts[chosen, which, place] = 0
    head[chosen, S_ID] = identity
    head[chosen, S_KEY] = key
    return chosen


@jit
def advance(head: Int64s, counts: Int64s, seat: int, bucket: int) -> None:
    """Move a seat's window on to a bucket."""
    newest = head[seat, S_NEWEST]
    if bucket <= newest:
        return
    for passed in range(max(newest + 1, bucket - BUCKETS + 1), bucket + 1):
        place = passed % BUCKETS
        head[seat, S_MATCHED] -= counts[seat, 0, place]
        head[seat, S_ALL] -= counts[seat, 1, place]
        counts[seat, 0, place] = 0
        counts[seat, 1, place] = 0
    head[seat, S_NEWEST] = bucket


@jit
def value_of(head: Int64s, seat: int, whole: int, is_share: int, least: int) -> float:
    """What an alert compares: a count, or a share of what `whole` has counted; -1 of too few for a share."""
    if not is_share:
        return float(head[seat, S_MATCHED])
    if whole < 0 or head[whole, S_ALL] < least:
        return -1.0
    return float(head[seat, S_MATCHED] / head[whole, S_ALL])


@jit
def settle(
    specs: Int64s, levels: Float64s, a: int, head: Int64s, counts: Int64s, seat: int, now: int
) -> bool:
    """Whether the episode of a seat has ended by `now`."""
    bucket = now // specs[a, A_BUCKET_MS]
    advance(head, counts, seat, bucket)
    whole = seat
    if specs[a, A_BY] == BY_RULE and specs[a, A_SHARE]:
        whole = -1
        mixed = specs[a, A_ID] ^ (specs[a, A_ID] >> 32)
        first = (mixed & (SETS - 1)) * WAYS
        for other in range(first, first + WAYS):
            if head[other, S_ID] == specs[a, A_ID] and head[other, S_KEY] == 0:
                whole = other
                advance(head, counts, whole, bucket)
    value = value_of(head, seat, whole, specs[a, A_SHARE], specs[a, A_LEAST])
    return bool(now >= head[seat, S_HOLD] and value <= levels[a, CLEAR])


@jit
def add(
    specs: Int64s, a: int, head: Int64s, counts: Int64s, tally: Int64s, key: int, time: int, hit: int
) -> int:
    """Count an event at a key; its seat, or -1 where it found none or is older than the window."""
    seat = seat_of(head, counts, specs[a, A_ID], key, tally)
    if seat < 0:
        return -1
    bucket = time // specs[a, A_BUCKET_MS]
    advance(head, counts, seat, bucket)
    if bucket <= head[seat, S_NEWEST] - BUCKETS:
        return -1
    place = bucket % BUCKETS
    counts[seat, 0, place] += hit
    counts[seat, 1, place] += 1
    head[seat, S_MATCHED] += hit
    head[seat, S_ALL] += 1
    head[seat, S_LAST] = max(head[seat, S_LAST], time)
    return seat


@jit
def weigh(
    specs: Int64s, levels: Float64s, a: int, head: Int64s, peaks: Float64s, notes: Int64s,
    values: Float64s, tally: Int64s, seat: int, whole: int, row: int, rule: int, time: int, hit: int,
) -> None:  # fmt: skip
    """Hold a seat that was just counted at against its levels, and note what follows."""
    value = value_of(head, seat, whole, specs[a, A_SHARE], specs[a, A_LEAST])
    kind = -1
    if head[seat, S_OPEN] == 0:
        if not hit or value <= levels[a, ABOVE]:
            return
        if tally[IS_OPEN] >= OPEN_MAX:
            tally[OVERFLOWN] += 1
            return
        tally[IS_OPEN] += 1
        head[seat, S_OPEN] = 1
        head[seat, S_SAMPLES] = 1
        head[seat, S_HOLD] = 0
        peaks[seat] = value
        head[seat, S_PEAK_MS] = time
        kind = OPENED
    elif value <= levels[a, CLEAR] and time >= head[seat, S_HOLD]:
        kind = CLOSED
    else:
        if value > peaks[seat]:
            peaks[seat] = value
            head[seat, S_PEAK_MS] = time
        if not hit or head[seat, S_SAMPLES] >= SAMPLES:
            return
        head[seat, S_SAMPLES] += 1
        kind = SAMPLED
    n = tally[NOTES]
    notes[n, N_KIND] = kind
    notes[n, N_ROW] = row
    notes[n, N_ALERT] = a
    notes[n, N_SEAT] = seat
    notes[n, N_RULE] = rule
    notes[n, N_KEY] = head[seat, S_KEY]
    notes[n, N_PEAK_MS] = head[seat, S_PEAK_MS]
    values[n] = value
    tally[NOTES] = n + 1
    if kind == CLOSED:  # whoever hears of it may find another key in the seat
        values[n] = peaks[seat]
        head[seat, S_OPEN] = 0
        tally[IS_OPEN] -= 1


@jit
def watch(
    specs: Int64s, levels: Float64s, types: Bytes, names: Int64s, live: Bytes, fired: Bytes, hits: Bytes,
    severity: Int64s, type_index: NDArray[np.int32], time: Int64s, skip: Bytes, keys: Int64s, hashes: Int64s,
    head: Int64s, counts: Int64s, peaks: Float64s, notes: Int64s, values: Float64s, tally: Int64s,
    start: Int64s,
) -> None:  # fmt: skip
    """Count events from row start[0] on, as far as `notes` have room; start[0] is then where to go on.

    fired uint8 (n, C) says which conditions hold, hits uint8 (n, R + L) which rules and limits fired,
    severity int64 (n) what was done; keys int64 (n, E) and hashes int64 (n, S) are 0 where absent.
    """
    tally[NOTES] = 0
    most = len(notes)
    for i in range(start[0], len(type_index)):
        start[0] = i + 1
        if skip[i]:
            continue
        for a in range(len(specs)):
            if not types[a, type_index[i]]:
                continue
            hit = (specs[a, A_ACTIONS] >> severity[i]) & 1
            if specs[a, A_CONDITION] >= 0:
                hit &= np.int64(fired[i, specs[a, A_CONDITION]])
            if specs[a, A_HITS] >= 0:
                hit &= np.int64(hits[i, specs[a, A_HITS]])
            by = specs[a, A_BY]
            if by == BY_RULE:
                whole = -1
                if specs[a, A_SHARE]:
                    whole = add(specs, a, head, counts, tally, 0, time[i], 0)
                if not hit:
                    continue
                for r in range(len(names)):
                    if hits[i, r] and live[r]:
                        seat = add(specs, a, head, counts, tally, names[r], time[i], 1)
                        if seat >= 0:
                            weigh(
                                specs, levels, a, head, peaks, notes, values, tally, seat, whole, i, r,
                                time[i], 1,
                            )  # fmt: skip
                continue
            key = 0
            if by == BY_ENTITY:
                key = keys[i, specs[a, A_COLUMN]]
            elif by == BY_FIELD:
                key = hashes[i, specs[a, A_COLUMN]]
            if (by != BY_ALL and key == 0) or (not hit and not specs[a, A_SHARE]):
                continue
            seat = add(specs, a, head, counts, tally, key, time[i], hit)
            if seat >= 0:
                weigh(specs, levels, a, head, peaks, notes, values, tally, seat, seat, i, -1, time[i], hit)
        if tally[NOTES] > most // 2:
            break
