"""Random small policies and random streams of what may happen to them, for property tests.

Pools of values are small, so that things collide; times step over buckets, periods, clock changes and
retentions. Every policy drawn is valid under the format, and its sums have units.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from naive import AGGREGATES, Policy, aggregate_of, bucket_of, duration_ms, label_of, stream_of, types_of

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
STATE_BYTES_MAX = 24_000  # of one entity: well inside the 32 KB that a policy may cost

EVENTS = ("coupon_claim", "payment", "login")
ENTITIES: dict[str, Any] = {
    "user": "user_id",
    "device": "device_id",
    "ip": "ip",
    "phone": "phone",
    "campaign": "campaign_id",
    "ip_net": {"of": "ip", "as": "subnet24"},
    "device_coupon": ["device_id", "coupon_type"],
    "user_amount": ["user_id", "amount"],
}
LISTED = ("user", "device", "ip", "phone")
ZONES = ("UTC", "Asia/Shanghai", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu")
SUMMED = ("amount", "thousands", "pages_viewed", "dwell_s")  # numbers with units of 0.01, 1000, 1, 0.001
NUMBERS = ("amount", "score", "thousands", "discount")
BOOLS = ("phone_verified", "captcha_passed", "vip")
TEXTS = ("region", "channel", "coupon_type", "phone_kind")

# Mornings after which something happens in one of ZONES: clock changes, ends of weeks, months and years.
STARTS = (
    "2026-03-08T06:55:00+00:00",
    "2026-11-01T05:55:00+00:00",
    "2026-04-04T14:55:00+00:00",
    "2026-12-31T15:55:00+00:00",
    "2027-02-28T18:10:00+00:00",
    "2026-11-08T23:50:00+00:00",
)
STEPS_MS = (
    *[0] * 6,
    1,
    7,
    999,
    SECOND,
    SECOND,
    10 * SECOND,
    10 * SECOND,
    MINUTE,
    MINUTE,
    7 * MINUTE,
    HOUR,
    5 * HOUR,
)
LEAPS_MS = (DAY, 3 * DAY, 500 * DAY)
LAGS_MS = (*[0] * 9, 1, 500, SECOND, 61 * SECOND, 9 * MINUTE, 15 * MINUTE, 15 * MINUTE + 1, HOUR, 2 * DAY)
LEADS_MS = (1, SECOND, MINUTE, 5 * MINUTE, 5 * MINUTE + 1)

USERS = ("u1", "u1", "u1", "u1", "u1", "u2", "u2", " u1", "用户", "caf\u00e9", "cafe\u0301", "")
DEVICES = ("d1", "d1", "d1", "d2", "d3")
IPS = ("10.0.0.1", "10.0.0.2", "10.0.9.9", "2001:db8::1", "2001:DB8:0:0::2", "::ffff:10.0.0.1", "somewhere")
PHONES = ("13800138000", "+8613800138000", "138 0013 8000", "+12025550123", "no phone")
REGIONS = (
    "SH",
    "BJ",
    "Ａ區",
    " SH",
    "a region with a name past 24 bytes: 1",
    "a region with a name past 24 bytes: 2",
)
PLACES = ((31.2304, 121.4737), (39.9042, 116.4074), (-33.8688, 151.2093), (31.23040004, 121.4737), (0, -180))
AMOUNTS = (
    0, 1, 1, 5, 5, 9.99, 10, 0.005, 0.015, 0.1, 0.2, -3, 12.345,
    2**43 / 100, -(2**43) / 100, 80_000_000_000.03,
)  # fmt: skip
NUMBERS_OF = {  # what is kept of a stream for each aggregate
    "count": {"records"},
    "rate": {"records"},
    "sum": {"sum"},
    "min": {"min"},
    "max": {"max"},
    "mean": {"records", "sum"},
    "std": {"records", "sum", "squares"},
}
WORDS = {"std": 5, "mean": 3, "rate": 4}  # of a bucket, where it is not two
WHOLES = (0, 1, 2, 3, 500, 1500, 2500, -1, 1e6)


# Policies.


@dataclass(frozen=True)
class World:
    """A policy with the rows of its resident tables, by table and key."""

    policy: dict[str, Any]
    tables: dict[str, dict[str, dict[str, Any]]]
    past: tuple[Policy, ...] = ()  # the policies before it


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A policy of a few features, limits and rules over some of the entities."""
    required: list[str] = draw(st.sampled_from(([], ["user_id"], ["user_id", "amount"])))
    policy: dict[str, Any] = {
        "policy": "drawn",
        "timezone": draw(st.sampled_from(ZONES)),
        "country": "CN",
        "lateness": draw(st.sampled_from(("15m", "15m", "0s", "1m", "2h"))),
        "skew": draw(st.sampled_from(("5m", "5m", "0s", "1m"))),
        "entities": {"user": "user_id", **draw(some_of(ENTITIES, 1, 4))},
        "events": {
            "coupon_claim": {
                "required": required,
                "fields": {"score": "number", "seen": "time", "vip": "bool"},
            },
            "payment": {"fields": {"thousands": {"type": "number", "unit": 1000}, "score": "number"}},
            "login": {},
        },
    }
    tables: dict[str, dict[str, dict[str, Any]]] = {}
    policy["tables"] = {}
    if "campaign" in policy["entities"]:
        columns = {"budget": "number", "ends": "time", "home": "string", "open": "bool"}
        policy["tables"]["campaigns"] = {
            "key": "campaign",
            "columns": columns,
            "from": "tables/campaigns.csv",
        }
        tables["campaigns"] = draw(resident_rows())
    if "device" in policy["entities"]:
        columns = {"trust": "number", "since": "time", "home": "string"}
        policy["tables"]["devices"] = {"key": "device", "columns": columns}
    listed = [entity for entity in policy["entities"] if entity in LISTED]
    policy["lists"] = {name: {"of": listed} for name in ("blocked", "trusted")}
    policy["features"] = draw(feature_maps(policy, "f", 1, 7))
    policy["limits"] = draw(limit_maps(policy))
    policy["features"] |= draw(value_maps(policy))
    policy["rules"] = draw(rule_maps(policy))
    policy["decide"] = draw(decide_maps())
    return World(policy, tables)


@st.composite
def successors(draw: st.DrawFn, world: World) -> World:
    """The same policy after an analyst's hand: features gone and new, limits with another `max`, new rules.

    A new feature has a `where` that no other has, or is a new number of a stream that is kept for others:
    nothing that is kept for another can serve it.
    """
    past = (*world.past, world.policy)
    policy = dict(world.policy)
    kept = {
        name: spec for name, spec in policy["features"].items() if "value" not in spec and draw(st.booleans())
    }
    fresh = draw(feature_maps(policy, "n", 0, 3))
    widening = set()
    for name, spec in fresh.items():
        beside = draw(st.one_of(st.none(), besides(past)))
        if beside is not None:
            fresh[name] = beside
            widening.add(name)
            continue
        unique = f"default(amount, 0) > -{draw(st.integers(10**13, 10**14))}"
        fresh[name] = {**spec, "where": f"({spec['where']}) and {unique}" if "where" in spec else unique}
    policy["features"] = {**kept, **within_budget({**policy, "features": kept}, fresh, widening)}
    policy["limits"] = {
        name: {**limit, "max": draw(maxima(policy, limit))} for name, limit in policy["limits"].items()
    }
    policy["rules"] = draw(rule_maps(policy))
    tables = {"campaigns": draw(resident_rows())} if "campaigns" in policy["tables"] else {}
    return World(policy, tables, past)


@st.composite
def besides(draw: st.DrawFn, past: tuple[Policy, ...]) -> dict[str, Any] | None:
    """A feature of a stream that the last policy has, of numbers that no policy has kept of it; or None."""
    last = past[-1]
    found = []
    for name, model in last["features"].items():
        stream = stream_of(last, name)
        if stream is None or "rate" in model:
            continue
        for what in SUMMED:
            kept = {
                number
                for policy in past
                for other, known in policy["features"].items()
                if known.get("by") == model["by"] and stream_of(policy, other) == stream
                for number in NUMBERS_OF[aggregate_of(known)[0]]
                if number == "records" or aggregate_of(known)[1] == what
            }
            for aggregate in ("sum", "min", "max", "mean", "std"):
                spec = {aggregate: what, "on": model.get("on", model.get("count")), "by": model["by"]}
                if "where" in model:
                    spec["where"] = model["where"]
                if label_of(spec) is not None and aggregate in ("min", "max"):
                    continue
                if types_of(last, spec) and stream_of({**last, "features": {"": spec}}, "") == stream:
                    found += [] if kept & NUMBERS_OF[aggregate] else [spec]
    return {**draw(st.sampled_from(found)), **draw(windows())} if found else None


def some_of(pool: Mapping[str, Any], least: int, most: int) -> st.SearchStrategy[dict[str, Any]]:
    chosen = st.lists(st.sampled_from(sorted(pool)), min_size=least, max_size=most, unique=True)
    return chosen.map(lambda names: {name: pool[name] for name in names})


def resident_rows() -> st.SearchStrategy[dict[str, dict[str, Any]]]:
    row = st.fixed_dictionaries(
        {
            "budget": st.sampled_from((None, 0, 5, 10.01, 20, 1e12)),
            "ends": st.sampled_from((None, *STARTS)),
            "home": st.sampled_from((None, "SH", "Ａ區")),
            "open": st.sampled_from((None, True, False)),
        }
    )
    return st.dictionaries(st.sampled_from(("c1", "c2", "c3")), row, max_size=3)


@st.composite
def feature_maps(draw: st.DrawFn, policy: Policy, prefix: str, least: int, most: int) -> dict[str, Any]:
    drawn = draw(st.lists(features(policy), min_size=least, max_size=most))
    return within_budget(policy, {f"{prefix}{number}": spec for number, spec in enumerate(drawn)})


@st.composite
def features(draw: st.DrawFn, policy: Policy) -> dict[str, Any]:
    """One feature of any aggregate but `value`."""
    aggregate = draw(st.sampled_from(("count", *AGGREGATES[:-1])))
    spec: dict[str, Any] = {}
    judged = draw(st.integers(0, 3)) == 0
    label = draw(st.sampled_from(("fraud", "legit")))
    if aggregate in ("count", "since_last"):
        spec = {aggregate: label, "on": draw(places())} if judged else {aggregate: draw(places())}
    elif aggregate == "rate":
        spec = {"rate": label, "on": draw(places())}
    elif aggregate == "since_first":
        spec = {"since_first": draw(places())}
        if draw(st.booleans()):
            spec["keep"] = draw(st.sampled_from(("1h", "2d", "40d")))
    elif aggregate == "distinct":
        spec = {"distinct": draw(st.sampled_from((*policy["entities"], *TEXTS))), "on": draw(carriers(None))}
        if draw(st.booleans()):
            spec["cap"] = draw(st.sampled_from((1, 2, 3)))
    elif aggregate in ("previous", "speed"):
        remembered = (
            "region",
            "amount",
            "seen",
            "phone_verified",
            "location",
            "device_id",
            "coupon_type",
            "score",
        )
        what = "location" if aggregate == "speed" else draw(st.sampled_from(remembered))
        spec = {aggregate: what}
        if draw(st.booleans()):
            spec["on"] = draw(carriers(what))
    else:
        what = draw(st.sampled_from((*["amount"] * 4, *SUMMED)))
        spec = {aggregate: what, "on": draw(carriers(what))}
        if judged and aggregate in ("sum", "mean", "std"):
            spec["on"] = label
    spec["by"] = draw(st.sampled_from(sorted(policy["entities"])))
    if aggregate not in ("since_first", "since_last", "previous", "speed"):
        spec |= draw(windows())
        if aggregate != "distinct" and draw(st.integers(0, 3)) == 0:
            spec["delay"] = draw(st.sampled_from(("1s", "1m", "1h", "1d")))
    if aggregate not in ("previous", "speed") and draw(st.integers(0, 3)) == 0:
        spec["before"] = True
    if draw(st.integers(0, 2)) == 0:
        spec["where"] = draw(conditions(policy, own_only=True))
    return spec


def places() -> st.SearchStrategy[Any]:
    """What stands where event types stand."""
    return st.sampled_from(("any", "coupon_claim", "payment", "login", ["coupon_claim", "login"]))


def carriers(what: str | None) -> st.SearchStrategy[Any]:
    """Event types of which at least one carries a field."""
    if what in ("thousands", "pages_viewed", "dwell_s"):
        return st.sampled_from(("payment", ["payment", "login"], "any"))
    if what in ("amount", "score"):
        return st.sampled_from(("payment", "coupon_claim", ["payment", "coupon_claim"], "any"))
    if what == "seen":
        return st.sampled_from(("coupon_claim", ["coupon_claim", "login"], "any"))
    if what in ("coupon_type", None):
        return st.sampled_from(("payment", "coupon_claim", "any"))
    return places()


def windows() -> st.SearchStrategy[dict[str, str]]:
    sliding = st.sampled_from(("1m", "7m", "1h", "1h", "90m", "1d", "7d", "30d")).map(
        lambda width: {"over": width}
    )
    return st.one_of(sliding, st.sampled_from(("day", "week", "month")).map(lambda per: {"per": per}))


def within_budget(policy: Policy, specs: dict[str, Any], widening: Collection[str] = ()) -> dict[str, Any]:
    """As many of these as one entity's state may come to hold, with those that the policy has.

    Those named in `widening` put their numbers beside those of another, for as long as that keeps them.
    """
    spent = dict.fromkeys(policy["entities"], 0)
    longest = dict.fromkeys(policy["entities"], 0)
    for spec in (*policy.get("features", {}).values(), *policy.get("limits", {}).values()):
        if "by" in spec:
            spent[spec["by"]] += bytes_of(policy, spec)
        if "by" in spec and "over" in spec:
            longest[spec["by"]] = max(longest[spec["by"]], entries_of(policy, spec))
    fitting = {}
    for name, spec in specs.items():
        cost = bytes_of(policy, spec)
        if name in widening:
            cost += 8 * max(WORDS.values()) * longest[spec["by"]]
        if spent[spec["by"]] + cost <= STATE_BYTES_MAX:
            spent[spec["by"]] += cost
            fitting[name] = spec
    return fitting


def bytes_of(policy: Policy, spec: Mapping[str, Any]) -> int:
    """A generous guess at the most bytes that one entity keeps for a feature or limit."""
    if "distinct" in spec:
        return 16 * int(spec.get("cap", 256))
    if "over" not in spec:
        return 16 * 256 if "since_last" in spec else 64 * (3 + duration_ms(spec.get("delay", "0s")) // DAY)
    return 8 * WORDS.get(aggregate_of(spec)[0], 2) * entries_of(policy, spec)


def entries_of(policy: Policy, spec: Mapping[str, Any]) -> int:
    """How many buckets a window keeps, and some."""
    width_ms = duration_ms(spec["over"])
    slack_ms = duration_ms(policy["lateness"]) + duration_ms(policy["skew"])
    reach_ms = width_ms + slack_ms + duration_ms(spec.get("delay", "0s"))
    return reach_ms // bucket_of(width_ms) + 4


@st.composite
def limit_maps(draw: st.DrawFn, policy: Policy) -> dict[str, Any]:
    drawn = {f"limit-{number}": draw(limits(policy)) for number in range(draw(st.integers(0, 4)))}
    return within_budget(policy, drawn)


@st.composite
def limits(draw: st.DrawFn, policy: Policy) -> dict[str, Any]:
    spec: dict[str, Any] = {"by": draw(st.sampled_from(sorted(policy["entities"]))), **draw(windows())}
    if draw(st.booleans()):
        spec["count"] = draw(places())
    else:
        spec |= {"sum": "amount", "on": draw(carriers("amount"))}
    spec["max"] = draw(maxima(policy, spec))
    spec["then"] = draw(st.sampled_from(("deny", "deny", "challenge", "review")))
    spec["mode"] = draw(st.sampled_from(("live", "live", "shadow", "off")))
    if draw(st.booleans()):
        spec["challenge"] = draw(st.sampled_from(("sms", "face")))
    if draw(st.integers(0, 2)) == 0:
        spec["where"] = draw(conditions(policy, own_only=True))
    return spec


def maxima(policy: Policy, limit: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """A constant mostly, else the event's own field or a column of a resident table."""
    known: tuple[Any, ...] = (0, 1, 1, 2, 3) if "count" in limit else (0, 5, 10, 10.01, 19.99, 1e12)
    own: tuple[Any, ...] = ("score", "max(score, 2)")
    table = ("campaigns.budget", "default(campaigns.budget, 1)") if "campaigns" in policy["tables"] else ()
    return st.sampled_from((*known, *known, *own, *table))


@st.composite
def value_maps(draw: st.DrawFn, policy: Policy) -> dict[str, Any]:
    count = draw(st.integers(0, 2))
    return {f"v{number}": {"value": draw(numbers(policy, own_only=False))} for number in range(count)}


@st.composite
def rule_maps(draw: st.DrawFn, policy: Policy) -> dict[str, Any]:
    drawn = {f"rule-{number}": draw(rules(policy)) for number in range(draw(st.integers(0, 5)))}
    if draw(st.booleans()):
        friend = draw(st.sampled_from(("listed('trusted', user)", "amount < 10", "listed('blocked', user)")))
        drawn["friends"] = {"on": "any", "when": friend, "then": "allow", "mode": "live"}
        drawn["friends"]["expires"] = "2030-01-01T00:00:00Z"
    return drawn


@st.composite
def rules(draw: st.DrawFn, policy: Policy) -> dict[str, Any]:
    then = draw(st.sampled_from(("flag", "flag", "review", "challenge", "deny", "allow")))
    rule: dict[str, Any] = {
        "on": draw(places()),
        "when": draw(conditions(policy, own_only=False)),
        "then": then,
        "risk": draw(st.sampled_from((0, 0.1, 0.35, 0.6, 0.99, 1))),
        "mode": draw(st.sampled_from(("live", "live", "live", "shadow", "off"))),
    }
    if then == "allow" or draw(st.integers(0, 5)) == 0:
        rule["expires"] = draw(st.sampled_from((*STARTS, "2030-01-01T00:00:00Z", "2030-01-01T00:00:00Z")))
    if then == "challenge":
        rule["challenge"] = draw(st.sampled_from(("captcha", "sms", "voice", "id")))
    if then not in ("allow", "flag"):
        rule["firm"] = draw(st.booleans())
    if draw(st.integers(0, 5)) == 0:
        rule["rollout"] = draw(st.sampled_from(("0%", "100%")))
    return rule


@st.composite
def decide_maps(draw: st.DrawFn) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in EVENTS:
        shares = sorted(draw(st.lists(st.sampled_from((0.1, 0.35, 0.5, 0.9)), min_size=3, max_size=3)))
        thresholds = dict(zip(("review", "challenge", "deny"), shares, strict=True))
        chosen = draw(st.lists(st.sampled_from(sorted(thresholds)), max_size=3, unique=True))
        found[kind] = {name: thresholds[name] for name in chosen}
        if "challenge" in chosen:
            found[kind]["challenge_with"] = draw(st.sampled_from(("captcha", "sms", "face")))
    return found


# Expressions. Each strategy draws the text of one type.


@st.composite
def conditions(draw: st.DrawFn, policy: Policy, *, own_only: bool, depth: int = 0) -> str:
    """A bool of the event's own fields, or also of features, columns and lists."""

    def inner() -> str:
        return draw(conditions(policy, own_only=own_only, depth=depth + 1))

    def number() -> str:
        return draw(numbers(policy, own_only=own_only))

    choice = draw(st.integers(0, 13 if depth < 2 else 8))
    named = [] if own_only else named_features(policy, "string")
    text = draw(st.sampled_from((*TEXTS[:2], *TEXTS[:2], *named)))
    match choice:
        case 0 | 1 | 2:
            order = draw(st.sampled_from(("<", "<=", ">", ">=", "==", "!=")))
            return f"{number()} {order} {number()}"
        case 3:
            word = draw(st.sampled_from(("==", "!=")))
            return f"{text} {word} {draw(st.sampled_from((repr('SH'), 'channel', 'region')))}"
        case 4:
            return f"{text} {draw(st.sampled_from(('in', 'not in')))} ['SH', 'web', 'Ａ區']"
        case 5:
            return f"missing({draw(st.sampled_from((*NUMBERS, *BOOLS, *TEXTS, 'location', 'seen', *named)))})"
        case 6:
            return draw(st.sampled_from((*BOOLS, *([] if own_only else named_features(policy, "bool")))))
        case 7:
            return draw(
                st.sampled_from(
                    (
                        "hour(time) >= 12", "weekday(time) in [1, 6, 7]", "time - seen > hours(2)",
                        "seen < '2026-12-31T16:00:00Z'", "matches(region, '*S?')", "matches(channel, 'a*')",
                        "1 < amount <= 10", "default(region, 'BJ') == 'BJ'", "captcha_passed == true",
                        "distance_km(location, location) < 1", "default(captcha_passed, true)",
                    )
                )
            )  # fmt: skip
        case 8:
            return draw(looked_up(policy)) if not own_only else "amount >= 5"
        case 9 | 10:
            return f"({inner()} and {inner()})"
        case 11:
            return f"({inner()} or {inner()})"
        case 12:
            return f"not ({inner()})"
        case _:
            return f"({inner()} if {inner()} else {inner()})"


@st.composite
def numbers(draw: st.DrawFn, policy: Policy, *, own_only: bool, depth: int = 0) -> str:
    def inner() -> str:
        return draw(numbers(policy, own_only=own_only, depth=depth + 1))

    known = [] if own_only else named_features(policy, "number")
    ages = [] if own_only else [f"({name} / hours(1))" for name in named_features(policy, "duration")]
    choice = draw(st.integers(0, 9 if depth < 2 else 4))
    match choice:
        case 0 | 1 | 2:
            return draw(st.sampled_from((*NUMBERS, *known, *known, *known, *ages)))
        case 3 | 4:
            return draw(st.sampled_from(("0", "1", "2", "5", "0.5", "100")))
        case 5 | 6:
            return f"({inner()} {draw(st.sampled_from(('+', '-', '*', '/', '%')))} {inner()})"
        case 7:
            return f"{draw(st.sampled_from(('min', 'max')))}({inner()}, {inner()})"
        case 8:
            return f"default({inner()}, {inner()})"
        case _:
            return draw(st.sampled_from(("abs({})", "log({})", "-{}"))).format(inner())


def looked_up(policy: Policy) -> st.SearchStrategy[str]:
    """Conditions on lists, columns, ages and previous values."""
    found = [f"listed('blocked', {entity})" for entity in policy["lists"]["blocked"]["of"]]
    if "campaigns" in policy["tables"]:
        found += ["time > campaigns.ends", "region == campaigns.home", "campaigns.open"]
        found += ["amount > campaigns.budget"]
    if "devices" in policy["tables"]:
        found += ["amount > devices.trust", "time - devices.since < hours(1)", "region != devices.home"]
    for name in named_features(policy, "duration"):
        found += [f"{name} < hours(1)", f"{name} >= days(2)"]
    for name in named_features(policy, "string"):
        own = policy["features"][name]["previous"]
        found += [f"{name} == {own}", f"{name} != {own}"]
    found += [f"time - {name} < days(1)" for name in named_features(policy, "time")]
    found += [f"distance_km({name}, location) > 100" for name in named_features(policy, "location")]
    return st.sampled_from(found)


def named_features(policy: Policy, kind: str) -> list[str]:
    """The policy's features (those drawn so far) of a type."""
    return [name for name, spec in policy.get("features", {}).items() if type_of(spec) == kind]


def type_of(spec: Mapping[str, Any]) -> str:
    aggregate, what = aggregate_of(spec)
    if aggregate in ("since_first", "since_last"):
        return "duration"
    if aggregate != "previous":
        return "number"
    kinds = {
        "amount": "number",
        "score": "number",
        "seen": "time",
        "phone_verified": "bool",
        "location": "location",
    }
    return kinds.get(what, "string")


# Streams.


@dataclass(frozen=True)
class Score:
    """A batch of events at one moment; of one event, a lone call."""

    now: int
    events: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Label:
    now: int
    event_id: str
    label: str
    time: int


@dataclass(frozen=True)
class Release:
    now: int
    event_id: str


@dataclass(frozen=True)
class ListEdit:
    """An entry put, or taken away where `put` is False."""

    now: int
    put: bool
    name: str
    entity: str
    value: str
    expires: int | None = None


@dataclass(frozen=True)
class Reload:
    now: int
    world: World


@dataclass(frozen=True)
class TableEdit:
    """A row of a live table, put whole."""

    now: int
    name: str
    key: str
    row: dict[str, Any]


Step = Score | Label | Release | ListEdit | TableEdit | Reload


@st.composite
def streams(draw: st.DrawFn, world: World, start_ms: int, *, steps: int = 20, batch: int = 6) -> list[Step]:
    """A story in order of arrival. Its clock never goes back; the time of its events does.

    Half of the stories are narrow: one crowd around few things in little time, so that limits fill.
    """
    now = start_ms
    narrow = draw(st.booleans())
    told: list[Told] = []
    story: list[Step] = []
    for _ in range(draw(st.integers(steps // 4, steps))):
        now += draw(st.sampled_from(STEPS_MS[:-4] if narrow else (*STEPS_MS, *STEPS_MS, *LEAPS_MS)))
        kind = draw(st.integers(0, 21))
        if kind < 14 or not told:
            size = draw(st.sampled_from((1, 1, 1, 2, 3, batch)))
            sent = []
            for _ in range(size):
                sent.append(draw(events(world.policy, now, told, narrow)))
                if all(other.event["event_id"] != sent[-1]["event_id"] for other in told):
                    told.append(Told(sent[-1], now))
            story.append(Score(now, tuple(sent)))
        elif kind < 16:
            at = draw(st.sampled_from((0, 0, 0, 1, SECOND, 10 * MINUTE)))
            story.append(
                Label(now, draw(told_ids(told)), draw(st.sampled_from(("fraud", "fraud", "legit"))), now - at)
            )
        elif kind < 18:
            story.append(Release(now, draw(told_ids(told, settled_since(world.policy, now)))))
        elif kind < 21:
            story.append(draw(edits(world.policy, now)))
        else:
            world = draw(successors(world))
            story.append(Reload(now, world))
    return story


@dataclass(frozen=True)
class Told:
    """An event sent before, and when for the first time."""

    event: dict[str, Any]
    arrived: int


def told_ids(told: list[Told], since: int | None = None) -> st.SearchStrategy[str]:
    """An event told (since a time): one of the last few mostly, seldom one that never was."""
    known = [event.event["event_id"] for event in told if since is None or event.arrived >= since]
    return st.sampled_from((*known[-3:], *known[-3:], *known, "never-seen"))


def retried_since(policy: Policy, now: int) -> int:
    """Since when an engine without a journal still knows its decisions."""
    return now - duration_ms(policy["lateness"]) - duration_ms(policy["skew"])


def settled_since(policy: Policy, now: int) -> int:
    """Since when an engine without a journal can still release an event, or see it followed."""
    widths = {"day": DAY, "week": 7 * DAY, "month": 31 * DAY}
    reach_ms = [
        widths[limit["per"]] if "per" in limit else duration_ms(limit["over"]) for limit in live(policy)
    ]
    return retried_since(policy, now) - max(reach_ms, default=0)


def live(policy: Policy) -> list[Mapping[str, Any]]:
    return [limit for limit in policy["limits"].values() if limit["mode"] != "off"]


def edits(policy: Policy, now: int) -> st.SearchStrategy[ListEdit | TableEdit]:
    if "devices" not in policy["tables"]:
        return list_edits(policy, now)
    rows = st.fixed_dictionaries(
        {}, optional={"trust": st.sampled_from((0.5, 2, 100)), "since": st.just(now), "home": st.just("SH")}
    )
    return st.one_of(
        list_edits(policy, now),
        st.builds(TableEdit, st.just(now), st.just("devices"), st.sampled_from(DEVICES), rows),
    )


@st.composite
def list_edits(draw: st.DrawFn, policy: Policy, now: int) -> ListEdit:
    entity = draw(st.sampled_from(policy["lists"]["blocked"]["of"]))
    pool = {"user": ("u1", "u2"), "device": DEVICES, "ip": IPS[:4], "phone": PHONES}[entity]
    expires = draw(st.sampled_from((None, None, now, now + MINUTE, now + HOUR)))
    put = draw(st.integers(0, 3)) > 0
    name = draw(st.sampled_from(("blocked", "trusted")))
    return ListEdit(now, put, name, entity, draw(st.sampled_from(pool)), expires if put else None)


@st.composite
def events(draw: st.DrawFn, policy: Policy, now: int, told: list[Told], narrow: bool) -> dict[str, Any]:
    """A new event, or one told before: the same, with other content, or followed."""
    recent = [other.event for other in told if other.arrived >= retried_since(policy, now)]
    kinds = ("retry", "respelt", "follow", "settle", *["new"] * (6 if narrow else 9))
    kind = draw(st.sampled_from(kinds))
    if kind in ("retry", "respelt") and recent:
        event = draw(st.sampled_from(recent))
        return event if kind == "retry" else respelt(event, draw(st.booleans()))
    event = draw(new_events(policy, now, f"e{len(told)}", narrow))
    if kind in ("follow", "settle"):
        known = told_ids(told, settled_since(policy, now))
        event["follows"] = draw(st.one_of(known, known, known, st.just(event["event_id"])))
    if kind == "settle":  # about the same things as the first
        first = next((other.event for other in told if other.event["event_id"] == event["follows"]), event)
        again = {"event_id": event["event_id"], "follows": event["follows"], "time": now}
        return {**first, **again, "captcha_passed": True}
    return event


def respelt(event: dict[str, Any], same: bool) -> dict[str, Any]:
    """The event in another spelling, or with other content under the same id."""
    if not same:
        return {**event, "region": "elsewhere"}
    spelt = {name: value for name, value in event.items() if value is not None}
    return {
        **spelt,
        "unknown": ["fields", "do", "not", "count"],
        "channel": f" {event.get('channel') or ''}\t",
    }


@st.composite
def new_events(draw: st.DrawFn, policy: Policy, now: int, event_id: str, narrow: bool) -> dict[str, Any]:
    event: dict[str, Any] = {"event_id": event_id, "type": draw(st.sampled_from((*EVENTS, EVENTS[0])))}
    match draw(st.sampled_from(("stamped", "ahead", *["past"] * 6))):
        case "ahead":
            event["time"] = now + draw(st.sampled_from(LEADS_MS))
        case "past":
            event["time"] = now - draw(st.sampled_from(LAGS_MS))
    pools: dict[str, tuple[Any, ...]] = {
        "user_id": USERS, "device_id": DEVICES, "ip": IPS, "phone": PHONES, "campaign_id": ("c1", "c2", "c9"),
        "coupon_type": ("a", "b"), "region": REGIONS, "channel": ("app", "web"), "amount": AMOUNTS,
        "location": tuple({"lat": lat, "lon": lon} for lat, lon in PLACES),
    }  # fmt: skip
    rare: dict[str, tuple[Any, ...]] = {
        "score": (0, 1, 2, 3, -1.5, 1e300), "thousands": WHOLES, "pages_viewed": WHOLES,
        "dwell_s": AMOUNTS[:8], "discount": AMOUNTS[:8],
        "phone_verified": (True, False), "captcha_passed": (True, False),
        "vip": (True, False), "seen": (now, now - 3 * HOUR, "2026-12-31T15:59:59Z"), "phone_kind": ("voip",),
    }  # fmt: skip
    if narrow:
        pools |= {
            "user_id": ("u1", "u1", "u2"),
            "device_id": ("d1",),
            "campaign_id": ("c1",),
            "amount": (1, 5),
        }
    absent = draw(st.sets(st.sampled_from(sorted(pools)), max_size=0 if narrow else 2))
    for name, pool in pools.items():
        if name not in absent:
            event[name] = draw(st.sampled_from(pool))
    for name in draw(st.lists(st.sampled_from(sorted(rare)), max_size=4, unique=True)):
        event[name] = draw(st.sampled_from(rare[name]))
    wrong = ({"amount": 2**43}, {"amount": "5"}, {"region": 5}, {"type": "unheard-of"}, {"captcha_passed": 1})
    return {**event, **draw(st.sampled_from((*[{}] * 60, *wrong)))}
