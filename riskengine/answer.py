"""A decision as it is answered, and its parts: values that clients have too, who carry no kernel."""

from __future__ import annotations

from typing import Any

import msgspec


class Message(msgspec.Struct, frozen=True, gc=False):
    """What to tell a person, in Chinese and English."""

    zh: str | None = None
    en: str | None = None


class Reason(msgspec.Struct, frozen=True, gc=False):
    """A live rule that fired, a live limit that refused (with risk 0), or what the model saw.

    Of the model, `rule` is "model:" and a feature, `message` its value, and `risk` its part of the model's p.
    """

    rule: str
    message: Message | None
    risk: float


class ModelScore(msgspec.Struct, frozen=True, gc=False):
    """The champion's name and its calibrated probability of fraud."""

    name: str
    p: float


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The answer for one event. `time` is the event's, ms UTC; `features` is there when asked for.

    `challengers` is there when the policy has any: what each says (p), of which nothing follows.
    """

    event_id: str
    decision_id: str
    action: str
    risk: float
    challenge: str | None
    reasons: tuple[Reason, ...]
    fired: tuple[str, ...]
    shadow: tuple[str, ...]
    model: ModelScore | None
    policy: str
    flags: tuple[str, ...]
    time: int
    challengers: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    features: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
