"""The bodies of requests and answers that are no decision: as OpenAPI says and as they are read."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from riskengine.decision import Decision
from riskengine.entries import AlertEntry
from riskengine.errors import Finding
from riskengine.service.problems import ProblemDetails


class LabelRecord(msgspec.Struct, frozen=True):
    """What became known of an event, at `time` (RFC 3339 or ms; now unless said)."""

    event_id: str
    label: Literal["fraud", "legit"]
    time: int | str | None = None
    source: str | None = None


class LabelDone(msgspec.Struct, frozen=True):
    """A label was taken."""

    event_id: str
    known: bool


class Released(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether the event held anything that was given back. `before`: when it was given back earlier (ms)."""

    event_id: str
    released: bool
    before: int | msgspec.UnsetType = msgspec.UNSET


class Removed(msgspec.Struct, frozen=True):
    """Whether there was something to remove."""

    removed: bool


class Recorded(msgspec.Struct, frozen=True):
    """What the journal holds of an event; everything personal in `event` is a keyed hash."""

    decision: Decision
    event: dict[str, Any]
    labels: list[LabelRecord]


class ListEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a value is on a list, and until when (RFC 3339 or ms; for good unless said)."""

    expires: int | str | None = None
    reason: str | None = None
    author: str | None = None


class Step(msgspec.Struct, frozen=True):
    """An entity on a path; `key` is a keyed hash of its value."""

    entity: str
    key: str


class PathShown(msgspec.Struct, frozen=True):
    """How an entry of `list` reaches another entity: id, how many steps, since when (ms), by which."""

    path: str
    list: str
    distance: int
    time: int
    via: tuple[Step, ...]


class ListEntryShown(msgspec.Struct, frozen=True):
    """The entry of a value; times in ms.

    `path` is the id of what it reaches, where it spreads. Of a value that others reach: `distance` of the
    nearest, and `paths`.
    """

    expires: int | None
    reason: str | None
    author: str | None
    time: int
    path: str | msgspec.UnsetType = msgspec.UNSET
    distance: int | msgspec.UnsetType = msgspec.UNSET
    paths: tuple[PathShown, ...] | msgspec.UnsetType = msgspec.UNSET


class Reached(msgspec.Struct, frozen=True):
    """What an entry has reached, the list that it is on for that."""

    list: str
    distance: int
    time: int
    via: tuple[Step, ...]


class PathOrigin(msgspec.Struct, frozen=True):
    """The entry that paths of an id come from, and all that they reach; times in ms."""

    path: str
    list: str
    entity: str
    key: str
    expires: int | None
    reason: str | None
    author: str | None
    time: int
    reached: tuple[Reached, ...]


class PolicyFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The files of a policy folder: names, and what they say."""

    files: dict[str, str]


class CheckReport(msgspec.Struct, frozen=True):
    """Whether a policy may be used, and everything there is to say about it."""

    ok: bool
    findings: list[Finding]


class PolicyActivation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The files of a policy that is to serve, rule tests and tables among them, and why."""

    files: dict[str, str]
    reason: str | None = None


class Rollback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why it is to go back."""

    reason: str | None = None


class ActivationShown(msgspec.Struct, frozen=True):
    """A change of the policy that serves: who (the API key's name), when (ms), and how its files differ.

    `of` is the activation that a rollback brought back; None: the folder that sidecars were started with.
    """

    id: str
    action: Literal["activate", "rollback", "folder"]
    fingerprint: str
    author: str | None
    reason: str | None
    time: int
    of: str | None
    difference: str


class Activated(msgspec.Struct, frozen=True):
    """A policy serves now. `tests` is how many of its rule tests passed; `findings` are warnings."""

    activation: ActivationShown
    tests: int
    findings: list[Finding]


class History(msgspec.Struct, frozen=True):
    """Activations, the newest first."""

    activations: list[ActivationShown]


class Contract(msgspec.Struct, frozen=True):
    """What is done when no sidecar can be asked, by event type."""

    fingerprint: str
    fail: dict[str, Literal["open", "closed", "review"]]


class RuleShown(msgspec.Struct, frozen=True):
    """A rule or a limit of the policy that serves."""

    name: str
    on: list[str]
    then: str
    mode: str
    risk: float
    owner: str | None


class PolicyShown(msgspec.Struct, frozen=True):
    """The policy that serves. `activation` is None where it is that of the folder."""

    policy: str
    fingerprint: str
    activation: ActivationShown | None
    events: list[str]
    features: list[str]
    limits: list[RuleShown]
    rules: list[RuleShown]
    files: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


class AlertShown(msgspec.Struct, frozen=True):
    """An episode of an alert. `end` is None while it is open; times are ms, `over` is seconds.

    `peak` and `above` are counts, or where `share` is true shares from 0 to 1. `key` is what it is counted
    by; where that names a person, it is # and a keyed hash. `events` are the first that counted in it;
    `origin` is the process that watches it.
    """

    id: str
    alert: str
    by: str | None
    key: str | None
    start: int
    end: int | None
    updated: int
    peak: float
    peak_time: int
    above: float
    share: bool
    over: float
    events: list[str]
    message: dict[str, str | None]
    policy: str
    origin: str

    @classmethod
    def of(cls, entry: AlertEntry) -> AlertShown:
        """An episode as it is shown."""
        return cls(
            entry.id, entry.alert, entry.by, entry.key, entry.start_ms, entry.end_ms, entry.updated_ms,
            entry.peak, entry.peak_ms, entry.above, entry.share, entry.over_ms / 1e3, list(entry.events),
            {"zh": entry.zh, "en": entry.en}, entry.policy, entry.origin,
        )  # fmt: skip


class Alerts(msgspec.Struct, frozen=True):
    """Episodes of alerts, the newest first."""

    alerts: list[AlertShown]


class Readiness(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether it is ready; `checks` tells of each part where that was asked for."""

    ready: bool
    checks: dict[str, str] = {}


class NotReady(ProblemDetails, frozen=True, omit_defaults=True):
    """A problem with one more part: all `checks`, where they were asked for."""

    checks: dict[str, str] = msgspec.field(default_factory=dict)
