"""The whole semantics a second time, in plain Python: dicts, loops and whole event lists.

`Naive` answers the same questions as the engine, from the policy as parsed YAML. It shares no code with
the engine and keeps no clever state: every feature is computed by looping over every event of its entity,
every limit by summing every hold. It is the oracle that property tests compare the engine with.
"""

from __future__ import annotations

import ast
import hashlib
import ipaddress
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any
from zoneinfo import ZoneInfo

import phonenumbers

ACTIONS = ("allow", "review", "challenge", "deny")
CHALLENGES = ("captcha", "sms", "voice", "face", "id")
LABELS = ("fraud", "legit")
AGGREGATES = (
    "count", "distinct", "sum", "mean", "min", "max", "std", "rate",
    "since_first", "since_last", "previous", "speed", "value",
)  # fmt: skip
DAY_MS = 86_400_000
EARTH_KM = 6371.0088
MINOR_MAX = 2**43
TEXT_BYTES_MAX = 4096
ID_BYTES_MAX = 256
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME_MIN_MS, TIME_MAX_MS = -62_135_596_800_000, 253_402_300_799_999  # the years 1 to 9999

COMMON: dict[str, Any] = {
    "user_id": "string", "device_id": "string", "ip": "ip", "phone": "phone", "phone_verified": "bool",
    "phone_kind": "string", "account_created": "time", "id_verified": "bool", "channel": "string",
    "region": "string", "location": "location", "user_agent": "string",
}  # fmt: skip
MONEY: dict[str, Any] = {"type": "number", "unit": 0.01}
VOCABULARY: dict[str, dict[str, Any]] = {
    "coupon_claim": {
        "campaign_id": "string", "coupon_type": "string", "funder": "string", "merchant_id": "string",
        "amount": MONEY, "captcha_passed": "bool", "address": "string",
    },
    "qr_scan": {
        "code_id": "string", "batch_id": "string", "campaign_id": "string", "terminal_id": "string",
        "region": "string", "amount": MONEY,
    },
    "payment": {
        "order_id": "string", "payment_account": "string", "merchant_id": "string", "amount": MONEY,
        "currency": "string", "recipient": "string", "address": "string", "coupon_type": "string",
        "discount": MONEY, "pages_viewed": {"type": "number", "unit": 1},
        "dwell_s": {"type": "number", "unit": 0.001}, "list_price": MONEY,
    },
}  # fmt: skip

Policy = Mapping[str, Any]
Key = tuple[str, ...]
Entry = tuple[str, str, Key]  # of a list: its name, entity and key
Via = tuple[tuple[str, Key], ...]


class ProblemError(Exception):
    """An event (or label) that is not scored; nothing moved. `code` says why."""

    def __init__(self, code: str, where: str = "") -> None:
        super().__init__(f"{code} {where}".strip())
        self.code = code


# Values of expressions. Missing is None; numbers are float, text is str, bools are bool.


@dataclass(frozen=True, order=True)
class Time:
    ms: float


@dataclass(frozen=True, order=True)
class Duration:
    seconds: float


@dataclass(frozen=True)
class Location:
    lat: float
    lon: float


Value = float | bool | str | Time | Duration | Location | None


@dataclass
class Seen:
    """An accepted event, as normalised under the policy of its arrival."""

    event_id: str
    type: str
    time: int
    fields: dict[str, Value]
    minor: dict[str, int]  # numbers with a unit, in units
    content: object
    follows: str | None
    late: bool = False
    earlier: Seen | None = None  # the event that this one follows, when it is known
    moved: dict[tuple[str, Key], set[str]] = field(default_factory=dict)  # features moved, by entity key
    streams: dict[tuple[str, Key], set[object]] = field(default_factory=dict)  # and their streams
    label: str | None = None
    labelled_at: int | None = None
    decision: dict[str, Any] = field(default_factory=dict)


@dataclass
class Sighting:
    """An event in the list of one entity key, with the features that it moves there."""

    event: Seen
    moves: set[str]


@dataclass
class Hold:
    """A granted reservation: it stays in the bucket of `time` until it is released."""

    limit: str
    key: Key
    shadow: bool
    time: int
    amount: int
    owner: str
    granted_to: str  # the owner, or the first of the events that handed it on


class Naive:
    """One policy with all that was ever seen. `now` may be given with each call (it must not go back);
    where it is not given it is the running maximum of event time."""

    def __init__(
        self,
        policy: Policy,
        *,
        tables: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
        event_hash: Callable[[str], int] | None = None,
        member_key: Callable[[str, str], object] | None = None,
        model: Callable[[str, Mapping[str, Any]], float | None] | None = None,
    ) -> None:
        """`event_hash` breaks ties on time; `member_key` is what a row shows of a previous entity value;
        `model` is what the policy's model says (p) of a row, by event type."""
        self.policy = policy
        self.zone = ZoneInfo(policy.get("timezone", "UTC"))
        self.tables: dict[str, dict[str, dict[str, Value]]] = {}
        self.lists: dict[tuple[str, str, Key], int | None] = {}
        self.blocks: dict[Entry, int] = {}  # entries that stand: which of those made they are
        self.blocks_made: list[Entry] = []
        self.paths: dict[Entry, dict[int, Via]] = {}  # to what was reached, by the entry they come from
        self.events: dict[str, Seen] = {}
        self.known: dict[tuple[str, Key], list[Sighting]] = {}
        self.newest: dict[tuple[str, Key], int] = {}  # time of the newest record or hold of an entity
        self.holds: list[Hold] = []
        self.warming: dict[str, int] = {}  # feature -> when a reload brought it
        self.now: int | None = None
        self.event_hash = event_hash or plain_hash
        self.member_key = member_key or (lambda _name, value: value)
        self.model = model or (lambda _type, _row: None)
        self._load(tables or {})

    # The doors.

    def score(
        self, event: Mapping[str, Any], now: int | None = None, features: bool = True
    ) -> dict[str, Any]:
        """The decision as the JSON map (plus `features`), or a raised ProblemError."""
        seen, now = self._accept(event, now)
        if (before := self.events.get(seen.event_id)) is not None:
            if before.content != seen.content:
                raise ProblemError("conflict", seen.event_id)
            return answer(before.decision, features)
        if seen.time > now + self.skew_ms:
            raise ProblemError("future", seen.event_id)
        self.now = now
        seen.late = seen.time < now - self.lateness_ms
        seen.earlier = self.events.get(seen.follows) if seen.follows is not None else None
        self.events[seen.event_id] = seen
        if not seen.late:
            self._count(seen)
        row = Row(self, seen, read_time=max(seen.time, now - self.lateness_ms))
        seen.decision = self._decide(seen, row, self._flags(seen, now))
        if not seen.late:
            self._spread(seen, row)
        return answer(seen.decision, features)

    def score_many(
        self, events: Iterable[Mapping[str, Any]], now: int | None = None, features: bool = True
    ) -> list[dict[str, Any] | ProblemError]:
        """One by one is the law of a batch."""
        answers: list[dict[str, Any] | ProblemError] = []
        for event in events:
            try:
                answers.append(self.score(event, now, features))
            except ProblemError as problem:
                answers.append(problem)
        return answers

    def label(
        self,
        event_id: str,
        label: str,
        time: int | None = None,
        source: str | None = None,
        now: int | None = None,
    ) -> bool:
        """Judge an event; False when it is unknown. The latest label by time wins, of equals the last."""
        if label not in LABELS:
            raise ProblemError("label", label)
        time = time if time is not None else now if now is not None else self.now
        seen = self.events.get(event_id)
        if seen is None or time is None:
            return False
        if seen.labelled_at is None or time >= seen.labelled_at:
            seen.label, seen.labelled_at = label, time
        return True

    def release(self, event_id: str, now: int | None = None) -> bool:
        """Return every grant that this event still holds; True if there was one."""
        held = [hold for hold in self.holds if hold.owner == event_id]
        self.holds = [hold for hold in self.holds if hold.owner != event_id]
        return bool(held)

    def list_put(
        self, name: str, entity: str, value: str, expires: int | None = None, now: int | None = None
    ) -> None:
        entry = name, entity, self._entry_key(entity, value)
        now = now if now is not None else self.now
        before = self.lists.get(entry, 0)
        if not (entry in self.blocks and (before is None or (now is not None and now < before))):
            self.blocks[entry] = len(self.blocks_made)
            self.blocks_made.append(entry)
        self.lists[entry] = expires
        if "spreads" in self.policy["lists"][name] and now is not None:
            self._walk(entry, now)

    def list_delete(self, name: str, entity: str, value: str, now: int | None = None) -> None:
        entry = name, entity, self._entry_key(entity, value)
        self.lists.pop(entry, None)
        self.blocks.pop(entry, None)
        self.paths.pop(entry, None)

    # How blocks spread. A path is (the block's number, the entities that it leads through).

    def _walk(self, block: Entry, now: int) -> None:
        """From a block along the members that link features count just now, the nearest first."""
        name, begin = block[0], block[1:]
        spreads = self.policy["lists"][name]["spreads"]
        level: list[Via] = [(begin,)]
        met = {begin}
        for _ in range(spreads.get("hops", 2)):
            further = []
            for via in level:
                found = self._linked(spreads, *via[-1], now)
                if any(len(members) > spreads.get("degree", 8) for _, members in found):
                    continue
                for entity, members in found:
                    for key in sorted(members):
                        if (entity, key) not in met:
                            met.add((entity, key))
                            further.append((*via, (entity, key)))
            for via in further:
                self._reach(name, self.blocks[block], via, now)
            level = further

    def _linked(
        self, spreads: Mapping[str, Any], entity: str, key: Key, now: int
    ) -> list[tuple[str, set[Key]]]:
        """By each link feature of an entity, whom it leads to."""
        found = []
        for name, spec in self.policy["features"].items():
            if spec.get("distinct") not in spreads["along"] or spec["by"] != entity:
                continue
            last: dict[Key, int] = {}
            for sighting in self.visible(entity, key, now):
                if name in sighting.moves:
                    member = entity_key(self.policy, spec["distinct"], sighting.event.fields)
                    assert member is not None
                    last[member] = max(sighting.event.time, last.get(member, sighting.event.time))
            newest = sorted(last, key=lambda member: last[member])[-spec.get("cap", 256) :]
            oldest = self.buckets(spec, now)[0]
            found.append((spec["distinct"], {m for m in newest if self.bucket(spec, last[m]) >= oldest}))
        return found

    def _standing(self, source: str, entity: str, key: Key, time: int) -> dict[int, Via]:
        """The paths to an entity, from entries of one list, whose entry stands at a time."""
        standing: dict[int, Via] = {}
        for (_, *reached), paths in self.paths.items():
            for block, via in paths.items() if reached == [entity, key] else ():
                entry = self.blocks_made[block]
                expires = self.lists.get(entry, 0)
                if (
                    entry[0] == source
                    and self.blocks.get(entry) == block
                    and (expires is None or time < expires)
                ):
                    standing[block] = via
        return standing

    def _reach(self, source: str, block: int, via: Via, time: int) -> None:
        """Enter an entity at the end of a path, unless it is as near already or has 16 others."""
        known = self._standing(source, *via[-1], time)
        if block in known and len(known[block]) <= len(via):
            return
        if block not in known and len(known) >= 16:
            return
        to = self.policy["lists"][source]["spreads"]["to"]
        to = [to] if isinstance(to, str) else to
        for name in to:
            self.paths.get((name, *via[-1]), {}).pop(block, None)
        self.paths.setdefault((to[min(len(via) - 1, len(to)) - 1], *via[-1]), {})[block] = via

    def _spread(self, seen: Seen, row: Row) -> None:
        """Pass on what the event touched to its other entities, all as they were before it."""
        for name, spec in self.policy.get("lists", {}).items():
            spreads = spec.get("spreads")
            if spreads is None:
                continue
            here = [
                (e, key)
                for e in spreads["along"]
                if (key := entity_key(self.policy, e, seen.fields)) is not None
            ]
            passed: dict[tuple[int, tuple[str, Key]], Via] = {}
            for entity, key in here:
                counts = [
                    row.feature(feature)
                    for feature, link in self.policy["features"].items()
                    if link.get("distinct") in spreads["along"] and link["by"] == entity
                ]
                if any(count > spreads.get("degree", 8) for count in counts):
                    continue
                sources = dict(self._standing(name, entity, key, seen.time))
                if self.is_listed_key(name, entity, key, seen.time):
                    sources[self.blocks[name, entity, key]] = ((entity, key),)
                for block, via in sources.items():
                    for other in here if len(via) <= spreads.get("hops", 2) else ():
                        if other not in via and len(via) < len(passed.get((block, other), via + via)):
                            passed[block, other] = (*via, other)
            for (block, _), via in sorted(passed.items(), key=lambda item: len(item[1])):
                self._reach(name, block, via, seen.time)

    def table_put(self, name: str, key: str, row: Mapping[str, Any], now: int | None = None) -> None:
        spec = self.policy["tables"][name]
        entry = self._entry_key(spec["key"], key)[0]
        self.tables.setdefault(name, {})[entry] = {
            column: table_value(kind, row.get(column)) for column, kind in spec["columns"].items()
        }

    def table_delete(self, name: str, key: str, now: int | None = None) -> None:
        entry = self._entry_key(self.policy["tables"][name]["key"], key)[0]
        self.tables.get(name, {}).pop(entry, None)

    def reload(
        self,
        policy: Policy,
        *,
        tables: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
        now: int | None = None,
    ) -> None:
        """Switch the policy: unchanged features and limits keep their history, others start empty."""
        now = now if now is not None else self.now
        old, self.policy = self.policy, policy
        self.zone = ZoneInfo(policy.get("timezone", "UTC"))
        kept = {
            name
            for name in policy.get("features", {})
            if name in old.get("features", {}) and identity(old, name) == identity(policy, name)
        }
        for sightings in self.known.values():
            for sighting in sightings:
                sighting.moves &= kept  # the same set as the event's `moved`
        self.holds = [hold for hold in self.holds if limit_kept(old, policy, hold.limit)]
        self.warming = {name: since for name, since in self.warming.items() if name in kept}
        if now is not None:
            self.now = now
            new = [name for name, spec in policy.get("features", {}).items() if name not in kept]
            self.warming |= {
                name: now for name in new if aggregate_of(policy["features"][name])[0] != "value"
            }
        self._load(tables or {})

    # An event, from outside to values.

    def _accept(self, event: Mapping[str, Any], now: int | None) -> tuple[Seen, int]:
        given = parse_time(event["time"]) if event.get("time") is not None else None
        if now is None:
            if given is None and self.now is None:
                raise ProblemError("time", "no clock and no time")
            now = max(moment for moment in (given, self.now) if moment is not None)
        return parse(self.policy, event, given, now), now

    # Counting.

    def _count(self, seen: Seen) -> None:
        """Put the event into the list of each entity where it moves something that its chain did not."""
        for entity in self.policy.get("entities", {}):
            key = entity_key(self.policy, entity, seen.fields)
            if key is None:
                continue
            moves = {name for name in features_by(self.policy, entity) if self._eligible(name, seen)}
            for ancestor in chain(seen.earlier):
                moves -= ancestor.moved.get((entity, key), set())
                streams = ancestor.streams.get((entity, key), set())
                moves = {name for name in moves if stream_of(self.policy, name) not in streams}
            if not moves:
                continue
            seen.moved[entity, key] = moves
            seen.streams[entity, key] = {stream_of(self.policy, name) for name in moves} - {None}
            self._advance(entity, key, seen.time)
            self.known.setdefault((entity, key), []).append(Sighting(seen, moves))

    def _advance(self, entity: str, key: Key, time: int) -> None:
        """A record or a hold came: after silence for longer than anything is kept, all is forgotten."""
        if self._is_forgotten(entity, key, time):
            self.known.pop((entity, key), None)
        self.newest[entity, key] = max(time, self.newest.get((entity, key), time))

    def _is_forgotten(self, entity: str, key: Key, time: int) -> bool:
        return time - self.newest.get((entity, key), time) > self._retention_ms(entity)

    def _eligible(self, name: str, seen: Seen) -> bool:
        """Whether the event contributes to a feature: its type, its field and its `where`."""
        spec = self.policy["features"][name]
        what = counted_field(self.policy, spec)
        if seen.type not in types_of(self.policy, spec):
            return False
        if what is not None and self.member(what, seen) is None:
            return False
        return self.where_holds(spec, seen)

    def where_holds(self, spec: Mapping[str, Any], seen: Seen) -> bool:
        """`where` speaks of the event's own fields only; a missing answer does not hold."""
        if "where" not in spec:
            return True
        return Evaluation(lambda name: own_value(seen, name), self.zone).condition(spec["where"])

    def member(self, what: str, seen: Seen) -> object:
        """The value of a field, or the key of an entity where its name stands instead; None is absent."""
        if what in self.policy.get("entities", {}):
            return entity_key(self.policy, what, seen.fields)
        return seen.fields.get(what)

    def visible(self, entity: str, key: Key, read_time: int) -> list[Sighting]:
        """What is known of an entity: nothing any more when it was idle past its retention."""
        return [] if self._is_forgotten(entity, key, read_time) else self.known.get((entity, key), [])

    def _retention_ms(self, entity: str) -> int:
        features = self.policy.get("features", {}).values()
        needs = [feature_need_ms(spec) for spec in features if spec.get("by") == entity]
        needs += [
            window_need_ms(spec) for spec in self.policy.get("limits", {}).values() if spec["by"] == entity
        ]
        return max(needs, default=0) + self.lateness_ms + self.skew_ms

    # Windows.

    def bucket(self, spec: Mapping[str, Any], time: int) -> int:
        """The number of the bucket (sliding) or of the calendar period that a time falls into."""
        if "per" in spec:
            return period_of(spec["per"], time, self.zone)
        return time // bucket_of(duration_ms(spec["over"]))

    def buckets(self, spec: Mapping[str, Any], read_time: int) -> range:
        """The buckets that a read at a time covers, whole."""
        last = self.bucket(spec, read_time - duration_ms(spec.get("delay", "0s")))
        if "per" in spec:
            return range(last, last + 1)
        width_ms = duration_ms(spec["over"])
        return range(last - width_ms // bucket_of(width_ms) + 1, last + 1)

    # Deciding.

    def _flags(self, seen: Seen, now: int) -> list[str]:
        flags = ["late"] if seen.late else []
        if seen.follows is not None and seen.earlier is None:
            flags.append("follows:unknown")
        return flags + [f"warming:{name}" for name in sorted(self.warming) if self._is_warming(name, now)]

    def _is_warming(self, name: str, now: int) -> bool:
        """Whether the window of a feature that a reload brought reaches back to before the reload."""
        spec, since = self.policy["features"][name], self.warming[name]
        if "over" not in spec and "per" not in spec:
            return False
        longest = {"day": "1d", "week": "7d", "month": "31d"}
        width_ms = duration_ms(spec.get("over") or longest[spec["per"]])
        return now < since + width_ms + duration_ms(spec.get("delay", "0s"))

    def _decide(self, seen: Seen, row: Row, flags: list[str]) -> dict[str, Any]:
        fired = [(name, rule) for name, rule in self._rules("live") if self._fires(name, rule, seen, row)]
        shadow = [name for name, rule in self._rules("shadow") if self._fires(name, rule, seen, row)]
        p = row.p()
        risk = noisy_or([p or 0.0, *(rule.get("risk", 0.0) for _, rule in fired)])
        features = row.features()  # before the limits: they never read features, and no feature reads them
        self._hand_over(seen)
        refused = self._reserve(seen, row)
        refused_live = [(name, limit) for name, limit in self._limits("live") if name in refused]
        action, challenge = self._act(seen, risk, fired, refused_live)
        if action == "deny":
            self.release(seen.event_id)
        for hold in self.holds:
            if hold.granted_to == seen.event_id and hold.amount:
                self._advance(self.policy["limits"][hold.limit]["by"], hold.key, seen.time)
        return {
            "event_id": seen.event_id,
            "action": action,
            "risk": risk,
            "challenge": challenge,
            "reasons": [reason(name, rule, rule.get("risk", 0.0)) for name, rule in fired]
            + [reason(name, limit, 0.0) for name, limit in refused_live],
            "fired": [name for name, _ in fired] + [name for name, _ in refused_live],
            "shadow": shadow + [name for name, _ in self._limits("shadow") if name in refused],
            "model": None if p is None else {"name": self.policy["model"], "p": p},
            "flags": flags,
            "time": seen.time,
            "features": features,
        }

    def _rules(self, mode: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, rule in self.policy.get("rules", {}).items():
            if rule.get("mode", "shadow") == mode:
                yield name, rule

    def _limits(self, mode: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, limit in self.policy.get("limits", {}).items():
            if limit.get("mode", "live") == mode:
                yield name, limit

    def _fires(self, name: str, rule: Mapping[str, Any], seen: Seen, row: Row) -> bool:
        if seen.type not in spelled_out(self.policy, rule["on"]):
            return False
        if "expires" in rule and seen.time >= parse_time(rule["expires"]):
            return False
        rollout = float(str(rule.get("rollout", "100%")).rstrip("%"))
        if rollout not in (0.0, 100.0):
            raise NotImplementedError(f"{name}: the twin knows a rollout of 0% or 100% only")
        return rollout == 100.0 and row.condition(rule["when"])

    def _act(
        self,
        seen: Seen,
        risk: float,
        fired: list[tuple[str, Mapping[str, Any]]],
        refused: list[tuple[str, Mapping[str, Any]]],
    ) -> tuple[str, str | None]:
        """The most severe of what rules, limits and thresholds say, and how to challenge.

        A fired `allow` rule leaves only refused limits and firm rules to speak, unless an entity of the
        event is on the list `blocked`.
        """
        rules = [rule for _, rule in fired]
        thresholds = self.policy.get("decide", {}).get(seen.type, {})
        lowered = any(rule.get("then", "flag") == "allow" for rule in rules) and not self._is_blocked(seen)
        if lowered:
            rules, thresholds = [rule for rule in rules if rule.get("firm", False)], {}
        says = [(rule.get("then", "flag"), rule.get("challenge", "captcha")) for rule in rules]
        says += [(limit.get("then", "deny"), limit.get("challenge", "captcha")) for _, limit in refused]
        says += [
            (action, thresholds.get("challenge_with", "captcha"))
            for action in ("review", "challenge", "deny")
            if thresholds.get(action) is not None and risk >= thresholds[action]
        ]
        action = max((say for say, _ in says if say in ACTIONS), key=ACTIONS.index, default="allow")
        if action != "challenge":
            return action, None
        return action, max((how for say, how in says if say == "challenge"), key=CHALLENGES.index)

    def _is_blocked(self, seen: Seen) -> bool:
        entities = self.policy.get("lists", {}).get("blocked", {}).get("of", [])
        return any(self.is_listed("blocked", entity, seen) for entity in entities)

    def is_listed(self, name: str, entity: str, seen: Seen) -> bool:
        """Whether the event's entity has an entry that has not expired at the event's time."""
        key = entity_key(self.policy, entity, seen.fields)
        return key is not None and (
            self.is_listed_key(name, entity, key, seen.time)
            or any(
                block in self._standing(self.blocks_made[block][0], entity, key, seen.time)
                for block in self.paths.get((name, entity, key), {})
            )
        )

    def is_listed_key(self, name: str, entity: str, key: Key, time: int) -> bool:
        """Whether an entity has an entry of its own that has not expired."""
        expires = self.lists.get((name, entity, key), 0)
        return expires is None or time < expires

    # Limits: a state machine over the order of the log.

    def _hand_over(self, seen: Seen) -> None:
        """A follow-up takes over what its own limits ask for anyway; the rest of the first's holds return."""
        if seen.earlier is None or seen.late:
            return
        wanted = {
            (name, entity_key(self.policy, limit["by"], seen.fields), self._amount(limit, seen))
            for mode in ("live", "shadow")
            for name, limit in self._limits(mode)
            if self._applies(limit, seen)
        }
        for hold in [hold for hold in self.holds if hold.owner == seen.earlier.event_id]:
            if (hold.limit, hold.key, hold.amount) in wanted:
                hold.owner = seen.event_id
            else:
                self.holds.remove(hold)

    def _reserve(self, seen: Seen, row: Row) -> set[str]:
        """Try every limit in policy order, each on its own; the names of those that refused."""
        refused = set()
        for mode in ("live", "shadow"):
            for name, limit in self._limits(mode):
                if not self._applies(limit, seen):
                    continue
                key = entity_key(self.policy, limit["by"], seen.fields)
                assert key is not None
                if any(hold.owner == seen.event_id and hold.limit == name for hold in self.holds):
                    continue  # taken over, granted without a new check
                amount = self._amount(limit, seen)
                if seen.late or not self._has_room(name, limit, key, seen.time, amount, row):
                    refused.add(name)
                else:
                    shadow, who = mode == "shadow", seen.event_id
                    self.holds.append(Hold(name, key, shadow, seen.time, amount, who, who))
        return refused

    def _applies(self, limit: Mapping[str, Any], seen: Seen) -> bool:
        return (
            seen.type in limit_types(self.policy, limit)
            and entity_key(self.policy, limit["by"], seen.fields) is not None
            and self.where_holds(limit, seen)
        )

    def _amount(self, limit: Mapping[str, Any], seen: Seen) -> int:
        return max(0, seen.minor.get(limit["sum"], 0)) if "sum" in limit else 1

    def _has_room(
        self, name: str, limit: Mapping[str, Any], key: Key, time: int, amount: int, row: Row
    ) -> bool:
        most = row.value(limit["max"])
        if most is None:
            return False
        digits = digits_of(self.policy, limit["sum"]) if "sum" in limit else 0
        return self.held(name, limit, key, time) + amount <= floor_minor(as_number(most), digits)

    def held(self, name: str, limit: Mapping[str, Any], key: Key, time: int) -> int:
        """What is held at a time: of its calendar period, or of every bucket touching the window around."""
        bucket = self.bucket(limit, time)
        width_ms = duration_ms(limit["over"]) if "over" in limit else 0
        reach = width_ms // bucket_of(width_ms) if width_ms else 0
        return sum(
            hold.amount
            for hold in self.holds
            if (hold.limit, hold.key) == (name, key) and abs(self.bucket(limit, hold.time) - bucket) <= reach
        )

    # Settings of the policy.

    @property
    def lateness_ms(self) -> int:
        return duration_ms(self.policy.get("lateness", "15m"))

    @property
    def skew_ms(self) -> int:
        return duration_ms(self.policy.get("skew", "5m"))

    def _load(self, tables: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        for name, rows in tables.items():
            self.tables[name] = {}
            for key, row in rows.items():
                self.table_put(name, key, row)

    def _entry_key(self, entity: str, value: str) -> Key:
        """The key of an entity given as one value, as lists and tables do."""
        (source,) = fields_of(self.policy, entity)
        key = entity_key(self.policy, entity, {source: normal_text(self.policy, source, value)})
        if key is None:
            raise ProblemError("value", entity)
        return key


class Row:
    """The values of one event at its read time, each feature by its definition."""

    def __init__(self, naive: Naive, seen: Seen, read_time: int) -> None:
        self.naive, self.seen, self.read_time = naive, seen, read_time
        self.cache: dict[str, Value] = {}

    def features(self) -> dict[str, Any]:
        """Every feature as plain JSON: durations in seconds, times in ms, missing as None."""
        return {name: self._plain(name) for name in self.naive.policy.get("features", {})}

    def p(self) -> float | None:
        """The model's answer."""
        return self.naive.model(self.seen.type, self.features())

    def condition(self, source: object) -> bool:
        return self._evaluation().condition(source)

    def value(self, source: object) -> Value:
        return self._evaluation().value_of(source)

    def feature(self, name: str) -> Value:
        if name not in self.cache:
            self.cache[name] = self._compute(name)
        return self.cache[name]

    def _plain(self, name: str) -> Any:
        value = self.feature(name)
        aggregate, what = aggregate_of(self.naive.policy["features"][name])
        if aggregate == "previous" and isinstance(value, str):
            if what in entity_fields(self.naive.policy):
                return self.naive.member_key(what, value)
            return value.encode()[:24].decode(errors="ignore")  # what is kept of a text besides its hash
        return plain(value)

    def _evaluation(self) -> Evaluation:
        return Evaluation(
            self._lookup,
            self.naive.zone,
            column=self._column,
            listed=lambda name, entity: self.naive.is_listed(name, entity, self.seen),
        )

    def _lookup(self, name: str) -> Value:
        if name in self.naive.policy.get("features", {}):
            return self.feature(name)
        return own_value(self.seen, name)

    def _column(self, table: str, column: str) -> Value:
        if table == "model":
            return self.p()
        key = entity_key(self.naive.policy, self.naive.policy["tables"][table]["key"], self.seen.fields)
        if key is None:
            return None
        return self.naive.tables.get(table, {}).get(key[0], {}).get(column)

    def _compute(self, name: str) -> Value:
        spec = self.naive.policy["features"][name]
        aggregate, what = aggregate_of(spec)
        if aggregate == "value":
            return self.value(what)
        key = entity_key(self.naive.policy, spec["by"], self.seen.fields)
        if key is None:
            return None
        visible = self.naive.visible(spec["by"], key, self.read_time)
        events = [sighting.event for sighting in visible if name in sighting.moves]
        if spec.get("before", False) or aggregate in ("previous", "speed"):
            events = [event for event in events if event is not self.seen]
        label = label_of(spec)
        judged = [event for event in events if label is None or event.label == label]
        if aggregate == "rate":
            return ratio(len(self._inside(spec, judged)), len(self._inside(spec, events)))
        if aggregate == "count":
            return float(len(self._inside(spec, judged)))
        if aggregate == "distinct":
            return self._distinct(spec, what, judged)
        if aggregate in ("sum", "mean", "min", "max", "std"):
            minor = [event.minor[what] for event in self._inside(spec, judged)]
            return STATISTICS[aggregate](minor, digits_of(self.naive.policy, what))
        if aggregate == "since_first":
            return self._since(min((event.time for event in judged), default=None))
        if aggregate == "since_last":
            return self._since(max((event.time for event in judged), default=None))
        newest = max(
            judged, key=lambda event: (event.time, self.naive.event_hash(event.event_id)), default=None
        )
        if newest is None or newest.time > self.read_time:
            return None
        return (
            newest.fields[what] if aggregate == "previous" else self._speed(newest.fields[what], newest.time)
        )

    def _inside(self, spec: Mapping[str, Any], events: list[Seen]) -> list[Seen]:
        covered = self.naive.buckets(spec, self.read_time)
        return [event for event in events if self.naive.bucket(spec, event.time) in covered]

    def _distinct(self, spec: Mapping[str, Any], what: str, events: list[Seen]) -> float:
        """Members whose last sighting is not before the window, of the `cap` seen last.

        Which of several members on the same last time is dropped cannot change how many are counted.
        """
        last: dict[object, int] = {}
        for event in events:
            member = self.naive.member(what, event)
            last[member] = max(event.time, last.get(member, event.time))
        newest = sorted(last.values())[-spec.get("cap", 256) :]
        oldest_bucket = self.naive.buckets(spec, self.read_time)[0]
        return float(sum(self.naive.bucket(spec, time) >= oldest_bucket for time in newest))

    def _since(self, time: int | None) -> Value:
        if time is None or time > self.read_time:
            return None
        return Duration((self.read_time - time) / 1000.0)

    def _speed(self, place: Value, time: int) -> Value:
        here = self.seen.fields.get("location")
        if not isinstance(here, Location) or not isinstance(place, Location) or time == self.read_time:
            return None
        return distance_km(place, here) / ((self.read_time - time) / 3_600_000.0)


# Aggregates over int minor units.


def _sum(minor: list[int], digits: int) -> float:
    return major(float(sum(minor)), digits)


def _mean(minor: list[int], digits: int) -> float | None:
    return major(float(sum(minor)) / float(len(minor)), digits) if minor else None


def _min(minor: list[int], digits: int) -> float | None:
    return major(float(min(minor)), digits) if minor else None


def _max(minor: list[int], digits: int) -> float | None:
    return major(float(max(minor)), digits) if minor else None


def _std(minor: list[int], digits: int) -> float | None:
    """Of the sample, from exact sums; missing for fewer than two."""
    n = len(minor)
    if n < 2:
        return None
    spread = n * sum(x * x for x in minor) - sum(minor) ** 2
    return major(math.sqrt(float(spread) / float(n * (n - 1))), digits)


STATISTICS: dict[str, Callable[[list[int], int], float | None]] = {
    "sum": _sum, "mean": _mean, "min": _min, "max": _max, "std": _std,
}  # fmt: skip


def ratio(part: int, whole: int) -> float | None:
    return float(part) / float(whole) if whole else None


def major(minor: float, digits: int) -> float:
    """From units to the number: 1234 with two digits is 12.34, 3 with -2 digits is 300."""
    return minor / 10.0**digits if digits >= 0 else minor * 10.0**-digits


def noisy_or(risks: Iterable[float]) -> float:
    """1 - product of (1 - risk), the model's first and then in policy order."""
    q = 1.0
    for risk in risks:
        q *= 1.0 - risk
    return 1.0 - q


def distance_km(a: Location, b: Location) -> float:
    """Great circle (haversine) on a sphere of the mean Earth radius."""
    lat_a, lat_b = math.radians(a.lat), math.radians(b.lat)
    half_lat = math.sin(math.radians(b.lat - a.lat) / 2.0)
    half_lon = math.sin(math.radians(b.lon - a.lon) / 2.0)
    h = half_lat * half_lat + math.cos(lat_a) * math.cos(lat_b) * half_lon * half_lon
    return 2.0 * EARTH_KM * math.asin(math.sqrt(min(1.0, h)))


# Windows and time.


def bucket_of(width_ms: int) -> int:
    """The bucket of a sliding window: the largest divisor of its width that is at most a 60th of it."""
    return next(g for g in range(width_ms // 60, 0, -1) if width_ms % g == 0)


def period_of(per: str, time: int, zone: ZoneInfo) -> int:
    """A number for the local day, ISO week (from Monday) or month that a time falls into."""
    local = local_time(time, zone)
    if per == "day":
        return local.toordinal()
    if per == "week":
        return (local.toordinal() - 1) // 7  # day 1 of the proleptic calendar was a Monday
    return local.year * 12 + local.month


def local_time(ms: float, zone: ZoneInfo) -> datetime:
    return (EPOCH + timedelta(milliseconds=math.floor(ms))).astimezone(zone)


UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": DAY_MS, "w": 7 * DAY_MS}


def duration_ms(text: str) -> int:
    matched = re.fullmatch(r"(\d+)(ms|s|m|h|d|w)", text)
    assert matched, text
    return int(matched[1]) * UNITS_MS[matched[2]]


def parse_time(given: object) -> int:
    """Epoch ms from epoch ms or from RFC 3339 with an offset."""
    if isinstance(given, int) and not isinstance(given, bool):
        if not TIME_MIN_MS <= given <= TIME_MAX_MS:
            raise ProblemError("time", repr(given))
        return given
    if isinstance(given, str) and re.match(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d", given):
        try:
            parsed = datetime.fromisoformat(given)
        except ValueError:
            parsed = datetime.min
        if parsed.tzinfo is not None:
            return (parsed - EPOCH) // timedelta(milliseconds=1)
    raise ProblemError("time", repr(given))


def window_need_ms(spec: Mapping[str, Any]) -> int:
    """How long a window needs what was seen: its width and a bucket more, or more than any one period."""
    if "over" in spec:
        width_ms = duration_ms(spec["over"])
        width_ms += bucket_of(width_ms)
    else:
        width_ms = {"day": 2, "week": 8, "month": 32}[spec["per"]] * DAY_MS
    return width_ms + duration_ms(spec.get("delay", "0s"))


def feature_need_ms(spec: Mapping[str, Any]) -> int:
    """How long a feature needs what was seen."""
    if "over" in spec or "per" in spec:
        return window_need_ms(spec)
    return duration_ms(spec.get("keep", "400d"))


# Events.


def parse(policy: Policy, event: Mapping[str, Any], given: int | None, now: int) -> Seen:
    """Normalise an event, or raise its first problem."""
    event_id, kind = name_of(event, "event_id"), event.get("type")
    if event_id is None:
        raise ProblemError("event_id")
    if not isinstance(kind, str) or kind not in policy["events"]:
        raise ProblemError("type", repr(kind))
    follows = name_of(event, "follows")
    fields: dict[str, Value] = {}
    minor: dict[str, int] = {}
    for name, spec in declared(policy, kind).items():
        value = normal(policy, name, spec, event.get(name), minor)
        if value is not None:
            fields[name] = value
    for name in policy["events"][kind].get("required", []):
        if name != "time" and name not in fields:
            raise ProblemError("required", name)
    content = (kind, follows, given, tuple(sorted(fields.items())))
    return Seen(event_id, kind, now if given is None else given, fields, minor, content, follows)


def name_of(event: Mapping[str, Any], field_name: str) -> str | None:
    """The id of an event, kept as it is; None where it is absent or blank."""
    given = event.get(field_name)
    if given is None:
        return None
    if not isinstance(given, str) or len(utf8(given)) > ID_BYTES_MAX:
        raise ProblemError("id", field_name)
    return given if given.strip() else None


def declared(policy: Policy, kind: str) -> dict[str, Any]:
    """The fields that an event type may carry, with their types; anything else is unknown and ignored."""
    names = {
        *COMMON,
        *VOCABULARY.get(kind, {}),
        *policy["events"][kind].get("fields", {}),
        *entity_fields(policy),
    }
    return {name: field_spec(policy, name) for name in names}


def field_spec(policy: Policy, name: str) -> Mapping[str, Any]:
    """The one type of a field: as any event type of the policy declares it, else as shipped, else string."""
    for spec in policy["events"].values():
        if name in (spec.get("fields") or {}):
            return as_spec(spec["fields"][name])
    for shipped in (COMMON, *VOCABULARY.values()):
        if name in shipped:
            return as_spec(shipped[name])
    return {"type": "string"}


def as_spec(spec: Any) -> Mapping[str, Any]:
    return {"type": spec} if isinstance(spec, str) else spec


def normal(policy: Policy, name: str, spec: Mapping[str, Any], given: Any, minor: dict[str, int]) -> Value:
    """A field's value as everything sees it; None where it is absent."""
    kind = spec["type"]
    if given is None or (isinstance(given, str) and not given.strip()):
        return None
    if kind == "bool":
        if not isinstance(given, bool):
            raise ProblemError("bool", name)
        return given
    if kind == "time":
        return Time(float(parse_time(given)))
    if kind == "location":
        return normal_location(name, given)
    if kind == "number":
        number = as_number(given, name)
        if "unit" not in spec:
            return number
        minor[name] = to_minor(given, digits_of(policy, name), name)
        return major(float(minor[name]), digits_of(policy, name))
    if not isinstance(given, str) or len(utf8(unicodedata.normalize("NFC", given).strip())) > TEXT_BYTES_MAX:
        raise ProblemError("string", name)
    return normal_text(policy, name, given)


def normal_text(policy: Policy, name: str, given: str) -> str:
    """NFC, trimmed; phones to E.164 and addresses to canonical text where they can be read at all."""
    text = unicodedata.normalize("NFC", given).strip()
    kind = field_spec(policy, name)["type"]
    if kind == "phone":
        try:
            parsed = phonenumbers.parse(text, policy.get("country"))
        except phonenumbers.NumberParseException:
            return text
        return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)
    if kind == "ip":
        return str(address_of(text) or text)
    return text


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address a text says; IPv4 seen through IPv6 is IPv4, and one with a scope is none."""
    if "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def normal_location(name: str, given: Any) -> Location:
    if not isinstance(given, Mapping) or "lat" not in given or "lon" not in given:
        raise ProblemError("location", name)
    lat, lon = as_number(given["lat"], name), as_number(given["lon"], name)
    if abs(lat) > 90 or abs(lon) > 180:
        raise ProblemError("location", name)
    return Location(round(lat * 1e7) / 1e7, round(lon * 1e7) / 1e7)


def as_number(given: Any, name: str = "") -> float:
    """A finite float of an int or a float; bools and text are not numbers."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise ProblemError("number", name)
    try:
        number = float(given)
    except OverflowError:
        raise ProblemError("number", name) from None
    if not math.isfinite(number):
        raise ProblemError("number", name)
    return number


def to_minor(given: float, digits: int, name: str) -> int:
    with localcontext(prec=700):
        minor = int(Decimal(repr(given)).scaleb(digits).to_integral_value(ROUND_HALF_EVEN))
    if abs(minor) > MINOR_MAX:
        raise ProblemError("range", name)
    return minor


def floor_minor(most: float, digits: int) -> int:
    """A limit's maximum; below nothing one is like another, and a very large one is as good as none."""
    if most < 0:
        return -1
    if most * 10.0 ** max(digits, 0) >= 9.2e18:
        return 9 * 10**18
    with localcontext(prec=700):
        exact = Decimal(repr(most)).scaleb(digits).to_integral_value(ROUND_FLOOR)
    return min(int(exact), 9 * 10**18)


def digits_of(policy: Policy, name: str) -> int:
    return -Decimal(repr(field_spec(policy, name)["unit"])).adjusted()


def utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ProblemError("surrogate") from None


def table_value(kind: str, given: Any) -> Value:
    if given is None or given == "":
        return None
    if kind == "time":
        return Time(float(parse_time(given)))
    if kind == "number":
        return as_number(given)
    if kind == "bool":
        return bool(given)
    return unicodedata.normalize("NFC", given).strip()


# Entities.


def fields_of(policy: Policy, entity: str) -> tuple[str, ...]:
    spec = policy["entities"][entity]
    if isinstance(spec, str):
        return (spec,)
    return (spec["of"],) if isinstance(spec, Mapping) else tuple(spec)


def entity_fields(policy: Policy) -> set[str]:
    return {name for entity in policy.get("entities", {}) for name in fields_of(policy, entity)}


def entity_key(policy: Policy, entity: str, fields: Mapping[str, Value]) -> Key | None:
    """What an event's entity is known by; None when any of its fields is absent."""
    parts = [fields.get(name) for name in fields_of(policy, entity)]
    if None in parts:
        return None
    key = tuple(str(part) for part in parts)  # a number as the decimal that it prints as
    if isinstance(policy["entities"][entity], Mapping):
        net = subnet24(key[0])
        return None if net is None else (net,)
    return key


def subnet24(text: str) -> str | None:
    """The /24 (IPv4) or /64 (IPv6) of an address; None for text that is no address."""
    address = address_of(text)
    if address is None:
        return None
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 64), strict=False))


# Features and limits as written.


def aggregate_of(spec: Mapping[str, Any]) -> tuple[str, Any]:
    """The aggregate of a feature and what stands behind it."""
    return next((name, spec[name]) for name in AGGREGATES if name in spec)


def features_by(policy: Policy, entity: str) -> list[str]:
    return [name for name, spec in policy.get("features", {}).items() if spec.get("by") == entity]


def label_of(spec: Mapping[str, Any]) -> str | None:
    """The label that stands where an event type may stand, if one does."""
    aggregate, what = aggregate_of(spec)
    place = what if aggregate in ("count", "rate", "since_first", "since_last") else spec.get("on")
    return place if isinstance(place, str) and place in LABELS else None


def counted_field(policy: Policy, spec: Mapping[str, Any]) -> str | None:
    """The field (or entity, for distinct) without which an event does not count."""
    aggregate, what = aggregate_of(spec)
    if aggregate in ("distinct", "sum", "mean", "min", "max", "std", "previous", "speed"):
        return str(what)
    return None


def types_of(policy: Policy, spec: Mapping[str, Any]) -> list[str]:
    """The event types that a feature is made from."""
    aggregate, what = aggregate_of(spec)
    place = spec.get("on", "any")
    if aggregate in ("count", "since_first", "since_last") and label_of(spec) is None:
        place = what
    elif place in LABELS:
        place = "any"
    types = spelled_out(policy, place)
    if (
        place == "any"
        and (name := counted_field(policy, spec)) is not None
        and name not in policy["entities"]
    ):
        return [kind for kind in types if name in declared(policy, kind)]
    return types


def limit_types(policy: Policy, limit: Mapping[str, Any]) -> list[str]:
    return spelled_out(policy, limit["on"] if "sum" in limit else limit["count"])


def spelled_out(policy: Policy, place: Any) -> list[str]:
    if place == "any":
        return list(policy["events"])
    return [place] if isinstance(place, str) else list(place)


def stream_of(policy: Policy, name: str) -> object:
    """What a feature over time windows is one of several numbers of: an event counts in all of it or in none.

    None for other features. A follow-up does not move a stream that its first moved, be a number of it new.
    """
    spec = policy["features"][name]
    aggregate, what = aggregate_of(spec)
    if aggregate not in ("count", "sum", "mean", "min", "max", "std", "rate"):
        return None
    types = types_of(policy, spec)
    optional = aggregate not in ("count", "rate") and any(
        what not in policy["events"][kind].get("required", ()) for kind in types
    )
    return sorted(types).__repr__(), label_of(spec), spec.get("where"), what if optional else None


def identity(policy: Policy, name: str) -> object:
    """All that a feature's history depends on: unchanged over a reload, the history stays."""
    spec = policy["features"][name]
    if "value" in spec:
        return spec
    counted = counted_field(policy, spec)
    return (
        spec,
        types_of(policy, spec),
        policy["entities"][spec["by"]],
        policy["entities"].get(counted)
        if counted in policy["entities"]
        else counted and field_spec(policy, counted),
        policy.get("timezone") if "per" in spec else None,
    )


def limit_kept(old: Policy, new: Policy, name: str) -> bool:
    """A limit keeps its holds over a reload while what they are measured in stays; `max` may change."""
    return limit_identity(old, name) is not None and limit_identity(old, name) == limit_identity(new, name)


def limit_identity(policy: Policy, name: str) -> object:
    limit = policy.get("limits", {}).get(name)
    if limit is None or limit.get("mode", "live") == "off":
        return None
    return (
        limit_types(policy, limit),
        limit.get("where"),
        policy["entities"][limit["by"]],
        field_spec(policy, limit["sum"]) if "sum" in limit else None,
        (limit.get("over"), limit.get("per"), policy.get("timezone") if "per" in limit else None),
    )


def chain(seen: Seen | None) -> Iterator[Seen]:
    """An event, what it follows, what that follows, and so on."""
    while seen is not None:
        yield seen
        seen = seen.earlier


# Expressions.


class Evaluation:
    """Evaluates expressions over values by name. A missing value is None, and stays None in arithmetic."""

    def __init__(
        self,
        lookup: Callable[[str], Value],
        zone: ZoneInfo,
        column: Callable[[str, str], Value] | None = None,
        listed: Callable[[str, str], bool] | None = None,
    ) -> None:
        self.lookup, self.zone, self.column, self.listed = lookup, zone, column, listed

    def condition(self, source: object) -> bool:
        return self.value_of(source) is True

    def value_of(self, source: object) -> Value:
        """The value of a source text (or of a number or bool as YAML gives them)."""
        return self._value(ast.parse(str(source), mode="eval").body)

    def _value(self, node: ast.expr) -> Value:
        value = self._raw(node)
        return None if isinstance(value, float) and math.isnan(value) else value

    def _raw(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant(value=bool() | str() as value):
                return value
            case ast.Constant(value=int() | float() as value):
                return float(value)
            case ast.Name(id="true" | "false" as name):
                return name == "true"
            case ast.Name(id=name):
                return self.lookup(name)
            case ast.Attribute(value=ast.Name(id=table), attr=column) if self.column is not None:
                return self.column(table, column)
            case ast.BoolOp(op=ast.And(), values=parts):
                return all(self._value(part) is True for part in parts)
            case ast.BoolOp(op=ast.Or(), values=parts):
                return any(self._value(part) is True for part in parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self._value(operand) is not True
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return negative(self._value(operand))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._value(operand)
            case ast.BinOp(left=left, op=op, right=right):
                return arithmetic(op, self._value(left), self._value(right))
            case ast.Compare(left=left, ops=ops, comparators=rights):
                return self._compare(left, ops, rights)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self._value(body) if self._value(test) is True else self._value(orelse)
            case ast.Call(
                func=ast.Name(id="listed"), args=[ast.Constant(value=str(name)), ast.Name(id=entity)]
            ):
                assert self.listed is not None
                return self.listed(name, entity)
            case ast.Call(func=ast.Name(id=function), args=arguments):
                return self._call(function, [self._value(argument) for argument in arguments])
        raise NotImplementedError(ast.dump(node))

    def _compare(self, left: ast.expr, ops: Sequence[ast.cmpop], rights: Sequence[ast.expr]) -> bool:
        """Every pair must hold; a pair with a missing operand does not, whatever the operator."""
        value = self._value(left)
        holds = []
        for op, right in zip(ops, rights, strict=True):
            if isinstance(right, ast.List | ast.Tuple):
                found = any(compare(ast.Eq(), value, self._value(item)) for item in right.elts)
                holds.append(value is not None and found == isinstance(op, ast.In))
            else:
                other = self._value(right)
                holds.append(compare(op, value, other))
                value = other
        return all(holds)

    def _call(self, function: str, given: list[Value]) -> Value:
        if function == "missing":
            return given[0] is None
        if function == "default":
            return given[0] if given[0] is not None else given[1]
        if function == "matches":
            return matches(given[0], given[1])
        if any(value is None for value in given):
            return None
        match function, given:
            case "abs", [float() as x]:
                return abs(x)
            case "abs", [Duration(seconds)]:
                return Duration(abs(seconds))
            case "min" | "max", _:
                extreme: Value = (min if function == "min" else max)(given)  # type: ignore[type-var]  # all of one type, which mypy cannot know
                return extreme
            case "log", [float() as x]:
                return math.log(x) if x > 0.0 else None
            case "hour", [Time() as time]:
                return float(local_time(time.ms, self.zone).hour)
            case "weekday", [Time() as time]:
                return float(local_time(time.ms, self.zone).isoweekday())
            case "days" | "hours" | "minutes", [float() as n]:
                return Duration(n * {"days": 86400.0, "hours": 3600.0, "minutes": 60.0}[function])
            case "distance_km", [Location() as a, Location() as b]:
                return distance_km(a, b)
        raise NotImplementedError(function)


def compare(op: ast.cmpop, a: Value, b: Value) -> bool:
    """False with a missing operand. Text beside a time is read as RFC 3339."""
    if a is None or b is None:
        return False
    if isinstance(a, Time) and isinstance(b, str):
        b = Time(float(parse_time(b)))
    if isinstance(b, Time) and isinstance(a, str):
        a = Time(float(parse_time(a)))
    if type(a) is not type(b):
        raise NotImplementedError(f"{a!r} beside {b!r}")
    order = (a > b) - (a < b) if not isinstance(a, Location) else int(a != b)  # type: ignore[operator]  # both of one type, which mypy cannot know
    match op:
        case ast.Eq():
            return order == 0
        case ast.NotEq():
            return order != 0
        case ast.Lt():
            return order < 0
        case ast.LtE():
            return order <= 0
        case ast.Gt():
            return order > 0
        case ast.GtE():
            return order >= 0
    raise NotImplementedError(ast.dump(op))


def arithmetic(op: ast.operator, a: Value, b: Value) -> Value:
    """Missing with a missing operand and for a division by zero."""
    match op, a, b:
        case (_, None, _) | (_, _, None):
            return None
        case ast.Add(), float(), float():
            return a + b
        case ast.Add(), Time(ms), Duration(s):
            return Time(ms + s * 1000.0)
        case ast.Add(), Duration(s), Time(ms):
            return Time(ms + s * 1000.0)
        case ast.Add(), Duration(x), Duration(y):
            return Duration(x + y)
        case ast.Sub(), float(), float():
            return a - b
        case ast.Sub(), Time(x), Time(y):
            return Duration((x - y) / 1000.0)
        case ast.Sub(), Time(ms), Duration(s):
            return Time(ms - s * 1000.0)
        case ast.Sub(), Duration(x), Duration(y):
            return Duration(x - y)
        case ast.Mult(), float(), float():
            return a * b
        case ast.Mult(), Duration(s), float(n):
            return Duration(s * n)
        case ast.Mult(), float(n), Duration(s):
            return Duration(n * s)
        case ast.Div(), float(), float():
            return a / b if b != 0.0 else None
        case ast.Div(), Duration(s), float(n):
            return Duration(s / n) if n != 0.0 else None
        case ast.Div(), Duration(x), Duration(y):
            return x / y if y != 0.0 else None
        case ast.Mod(), float(), float():
            return a % b if b != 0.0 else None
    raise NotImplementedError(f"{a!r} {ast.dump(op)} {b!r}")


def negative(value: Value) -> Value:
    if isinstance(value, Duration):
        return Duration(-value.seconds)
    return -value if isinstance(value, float) else None


def matches(text: Value, glob: Value) -> bool:
    """Whether a whole text fits a glob of * and ?, letter case and all."""
    if not isinstance(text, str) or not isinstance(glob, str):
        return False
    pattern = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in glob)
    return re.fullmatch(pattern, text, re.DOTALL) is not None


# Answers.


def own_value(seen: Seen, name: str) -> Value:
    return Time(float(seen.time)) if name == "time" else seen.fields.get(name)


def plain(value: Value) -> Any:
    match value:
        case Time(ms):
            return ms
        case Duration(seconds):
            return seconds
        case Location(lat, lon):
            return {"lat": lat, "lon": lon}
    return value


def reason(name: str, spec: Mapping[str, Any], risk: float) -> dict[str, Any]:
    return {"rule": name, "message": spec.get("message"), "risk": risk}


def answer(decision: dict[str, Any], features: bool) -> dict[str, Any]:
    return {name: value for name, value in decision.items() if features or name != "features"}


def blame(shares: Iterable[float], p: float, most: int) -> list[tuple[int, float]]:
    """Which features raised a model's `p` most, and what part of it each has, by what each adds."""
    raised = [max(share, 0.0) for share in shares]
    total = 1e-300
    for share in raised:
        total += share
    parts = [(f, share * (p / total)) for f, share in enumerate(raised) if share > 0]
    return sorted(parts, key=lambda part: -part[1])[:most]


def plain_hash(event_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=8).digest(), "big")


def journal_event(policy: Any, batch: Any, i: int) -> dict[str, Any]:
    """What the journal keeps of event `i` of a batch: its masked fields, written out one by one."""
    event = batch.raw[i]
    kind = policy.schema.types[batch.type_index[i]]
    definition = policy.definition
    personal = {name for entity in definition.entities.values() for name in entity.fields} | {"user_agent"}
    kept: dict[str, Any] = {"event_id": batch.ids[i], "type": kind}
    if not batch.stamped[i]:
        kept["time"] = int(batch.time[i])
    for name in definition.events[kind].fields:
        field = definition.fields[name]
        if field.type in ("string", "phone", "ip"):
            at = policy.schema.string_at[name]
            off, size = int(batch.str_off[i, at]), int(batch.str_len[i, at])
            if size >= 0 and (name in personal or field.type != "string"):
                kept[name] = f"#{int(batch.str_hash[i, at]):016x}"
            elif size >= 0:
                kept[name] = bytes(batch.text[off : off + size]).decode()
            continue
        at = policy.schema.number_at[f"{name}.lat" if field.type == "location" else name]
        value = float(batch.numbers[i, at])
        if value != value:
            continue
        if field.type == "location":
            lon = float(batch.numbers[i, at + 1])
            kept[name] = {"lat": math.floor(value * 10 + 0.5) / 10, "lon": math.floor(lon * 10 + 0.5) / 10}
        else:
            kept[name] = bool(value) if field.type == "bool" else value
    if batch.follows is not None and batch.follows[i] is not None:
        kept["follows"] = batch.follows[i]
    for name, given in event.items():
        if name not in definition.events[kind].fields and name not in ("event_id", "type", "time", "follows"):
            kept[name] = policy.masking._undeclared(given) if given is not None else None
    return kept


def journal_row(policy: Any, cells: Any, strings: Any, i: int) -> list[float | str | None]:
    """The row that the journal keeps of event `i`: numbers, and what is remembered of strings."""
    row: list[float | str | None] = [float(value) for value in cells[:, i]]
    for place, column in policy.row_texts:
        size, off = int(strings.len[i, column]), int(strings.off[i, column])
        text = None if size < 0 else f"{int(strings.hash[i, column]):016x}"
        if size > 0:
            text = bytes(strings.text[off : off + size]).decode(errors="ignore")
        row.insert(place, text)
    return row
