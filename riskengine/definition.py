"""What a policy folder says, typed and frozen.

`policy.py` makes these values from YAML; `features.py` and `rules.py` compile them to arrays.
Nothing here computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from riskengine.errors import Place

if TYPE_CHECKING:
    from riskengine.expression import Expression

FieldType = Literal["number", "string", "bool", "time", "location", "phone", "ip"]
Action = Literal["allow", "review", "challenge", "deny"]
Effect = Literal["allow", "review", "challenge", "deny", "flag"]
Mode = Literal["live", "shadow", "off"]
Challenge = Literal["captcha", "sms", "voice", "face", "id"]
Aggregate = Literal[
    "count", "distinct", "sum", "mean", "min", "max", "std", "rate",
    "since_first", "since_last", "previous", "speed", "value",
]  # fmt: skip
Label = Literal["fraud", "legit"]

ACTIONS: tuple[Action, ...] = ("allow", "review", "challenge", "deny")  # by severity
CHALLENGES: tuple[Challenge, ...] = ("captcha", "sms", "voice", "face", "id")  # by severity
LABELS: tuple[Label, ...] = ("fraud", "legit")
ALERT_BUCKETS = 60  # an alert's window moves in so many steps


@dataclass(frozen=True, slots=True)
class Field:
    """A declared event field. One name has one type in the whole policy."""

    name: str
    type: FieldType
    digits: int | None = None  # of a number with a unit: it is 10 ** -digits (0.01 is 2, 1 is 0, 100 is -2)


@dataclass(frozen=True, slots=True)
class EventType:
    """A declared type of event: what it must and may carry, and what happens without the store."""

    name: str
    required: tuple[str, ...]
    fields: tuple[str, ...]  # every declared field this type may carry, sorted
    fail: Literal["open", "closed", "review"] = "review"


@dataclass(frozen=True, slots=True)
class Entity:
    """What counters are kept by: one field, a derived one, or several together."""

    name: str
    fields: tuple[str, ...]
    derive: Literal["subnet24"] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Reference data by entity. `rows` is None for a live table (edited by API, kept in the store)."""

    name: str
    key: str  # entity
    columns: Mapping[str, Literal["number", "string", "bool", "time"]]
    rows: Mapping[str, Mapping[str, float | str | None]] | None = None  # times in ms, bools as 0.0 / 1.0


@dataclass(frozen=True, slots=True)
class Spread:
    """How far an entry of a list reaches: the entities that belong to its own are entered into other lists.

    `to` are these lists: of entities a step away, two steps, ...; the last is of all that are further.
    `along` are the entities that are walked through and reached. One that has more than `degree` others of a
    kind is not walked through: it is shared, and says nothing of those who share it.
    """

    to: tuple[str, ...]
    along: tuple[str, ...]
    hops: int
    degree: int


@dataclass(frozen=True, slots=True)
class List:
    """A list that analysts edit while it is in use: `blocked`, `trusted`.

    `shared`: its entries are hashes under a key that was agreed on with this partner (sharing.py).
    """

    name: str
    of: tuple[str, ...]  # entities
    spreads: Spread | None = None
    shared: str | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """`over` slides by buckets of `bucket_ms`; day, week and month are calendar periods.

    `over: 1h` has width_ms 3,600,000 and bucket_ms 60,000. Calendar windows have width_ms 0.
    """

    kind: Literal["over", "day", "week", "month"]
    width_ms: int = 0
    bucket_ms: int = 0
    delay_ms: int = 0


@dataclass(frozen=True, slots=True)
class Feature:
    """One named value of a row.

    `types` are the event types it is made from (`any` and lists are already spelled out).
    `label` is set where a label stands in the place of an event type. `field` is what is summed,
    averaged, remembered or, for `distinct`, the entity or string field whose members are counted.
    """

    name: str
    aggregate: Aggregate
    by: str | None
    types: tuple[str, ...] = ()
    label: Label | None = None
    field: str | None = None
    window: Window | None = None
    before: bool = False
    where: Expression | None = None
    value: Expression | None = None
    cap: int = 256
    keep_ms: int = 0  # since_first
    type: Literal["number", "string", "bool", "time", "duration", "location"] = "number"
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """What a person is told, in Chinese and English."""

    zh: str | None = None
    en: str | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `max` in a window, by entity: granted or refused atomically, whatever arrives together."""

    name: str
    types: tuple[str, ...]
    by: str
    window: Window
    max: Expression
    field: str | None = None  # None counts events; else the number summed
    where: Expression | None = None
    then: Literal["review", "challenge", "deny"] = "deny"
    challenge: Challenge | None = None
    message: Message | None = None
    mode: Mode = "live"
    owner: str | None = None
    tags: tuple[str, ...] = ()
    place: Place | None = None
    wrong_when: str | None = None  # whom it may hit that it is not meant for, in a line


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition on the row, and what follows when it holds."""

    name: str
    types: tuple[str, ...]
    when: Expression
    then: Effect = "flag"
    risk: float = 0.0
    challenge: Challenge | None = None
    message: Message | None = None
    mode: Mode = "shadow"
    rollout: float = 1.0  # share, 0 to 1
    firm: bool = False
    expires_ms: int | None = None  # the rule is inert for events at or after this time
    owner: str | None = None
    tags: tuple[str, ...] = ()
    place: Place | None = None
    wrong_when: str | None = None  # whom it may hit that it is not meant for, in a line


@dataclass(frozen=True, slots=True)
class Alert:
    """A count or share of events that is worth a person's look once it passes a level.

    An event counts where `when` holds, its action is among `actions` and `hits` fired; each of them may be
    left out. `by` is what the counts are kept apart by: "rule" (every live rule or limit that fired), an
    entity or a text field; None keeps one count of all. Shares are of all events of `types`, by the same.
    """

    name: str
    types: tuple[str, ...]
    over_ms: int
    above: float  # a count, or a share from 0 to 1: an episode begins past it
    clear: float  # and ends when no more than this is left
    is_share: bool = False
    least: int = 0  # events in the window, fewer of which make no share
    by: str | None = None
    when: Expression | None = None
    actions: tuple[Action, ...] = ACTIONS
    hits: str | None = None  # a rule or limit, live or in shadow
    message: Message | None = None
    owner: str | None = None
    tags: tuple[str, ...] = ()
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Decide:
    """Thresholds (>=) on risk for one event type; None means never."""

    review: float | None = None
    challenge: float | None = None
    deny: float | None = None
    challenge_with: Challenge = "captcha"


@dataclass(frozen=True, slots=True)
class Definition:
    """A whole checked policy. Mappings keep the order of the files (sorted by path, then as written)."""

    name: str
    tenant: str
    timezone: str
    country: str | None
    lateness_ms: int
    skew_ms: int
    model: str | None  # the champion, whose p is part of the risk
    fields: Mapping[str, Field]
    events: Mapping[str, EventType]
    entities: Mapping[str, Entity]
    tables: Mapping[str, Table] = field(default_factory=dict)
    lists: Mapping[str, List] = field(default_factory=dict)
    features: Mapping[str, Feature] = field(default_factory=dict)
    limits: Mapping[str, Limit] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)
    decide: Mapping[str, Decide] = field(default_factory=dict)
    alerts: Mapping[str, Alert] = field(default_factory=dict)
    challengers: tuple[str, ...] = ()  # models that are asked too, and act on nothing
    folder: str | None = None  # where it was read: models are looked for beside it
    model_places: Mapping[str, Place] = field(default_factory=dict)  # by name: where the files say it
