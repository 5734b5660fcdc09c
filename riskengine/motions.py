"""Goes once through everything that an engine may be asked, so that nobody waits for a kernel later.

A kernel is compiled, or read from its cache (a fifth of a second in all), when it is first called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from riskengine.definition import Definition
from riskengine.judge import Result

if TYPE_CHECKING:
    from riskengine.stores.scratch import Scratch

NOW: Final = 1_800_000_000_000
_VALUES: Final[dict[str, Any]] = {
    "string": "x", "phone": "13800138000", "ip": "203.0.113.7", "number": 1, "bool": True, "time": NOW,
    "location": {"lat": 0, "lon": 0},
}  # fmt: skip
_TAIL: Final = 70  # records that make an entity's tail long enough to be folded


class Performer(Protocol):
    """What is asked of an engine."""

    def score(self, event: Mapping[str, Any]) -> Any:
        """`Engine.score`."""

    def score_many(self, events: Sequence[Mapping[str, Any]], features: bool = False) -> list[Result]:
        """`Engine.score_many`."""

    def label(self, event_id: str, label: Any) -> bool:
        """`Engine.label`."""

    def release(self, event_id: str) -> bool:
        """`Engine.release`."""

    def list_put(self, name: str, entity: str, value: str | Sequence[str]) -> None:
        """`Engine.list_put`."""

    def reload(self, rules: Definition) -> Any:
        """`Engine.reload`."""


def events_of(definition: Definition) -> list[dict[str, Any]]:
    """Two events of every type, each with all of its fields."""
    types = {name: field.type for name, field in definition.fields.items()}
    entities = {name for entity in definition.entities.values() for name in entity.fields}
    return [
        {
            "event_id": f"{name}{i}",
            "type": name,
            **{field: _VALUES[types.get(field, "string")] for field in {*kind.fields, *entities} - {"time"}},
        }
        for name, kind in definition.events.items()
        for i in range(2)
    ]


def go_through(engine: Performer, definition: Definition, scratch: Scratch | None) -> None:
    """Score, follow up, label, release, list and reload, on an engine that is of no use afterwards.

    Its clock says NOW. `scratch` is what its store is on, if that is a shared one: then it also goes away,
    and loses what it is told.
    """
    events = events_of(definition)
    named = [(event, event["event_id"]) for event in events]
    engine.score(events[0])
    engine.score_many(events, features=True)
    engine.score_many([{**event, "event_id": f"{id}-b"} for event, id in named])
    engine.score_many([{**events[0], "event_id": "c", "follows": events[0]["event_id"]}])
    engine.release("c")  # of some a limit grants the first alone, which this one took over
    for _, id in named:
        engine.label(id, "fraud")
        engine.release(id)
    for known in definition.lists.values():
        for entity in known.of:
            fields = definition.entities[entity].fields
            engine.list_put(known.name, entity, ["1"] * len(fields) if len(fields) > 1 else "x")
    engine.score(events[0])
    engine.score({**events[0], "event_id": "d"})
    if scratch is not None:
        with scratch.losing():
            engine.score_many([{**event, "event_id": f"{id}-lost"} for event, id in named])
        engine.score_many([{**event, "event_id": f"{id}-lost"} for event, id in named])
        with scratch.away():
            engine.score_many([{**event, "event_id": f"{id}-away"} for event, id in named])
            engine.score({**events[0], "event_id": "away"})
        for start in ("e", "f"):
            engine.score_many([{**events[0], "event_id": f"{start}{i}"} for i in range(_TAIL)])
    other = _with_less(definition)
    for n, policy in enumerate((other, definition) if other is not None else ()):
        engine.reload(policy)
        engine.score_many([{**event, "event_id": f"{id}-{n}"} for event, id in named])


def _with_less(definition: Definition) -> Definition | None:
    """The same policy with one counter only, where it has more: what it keeps is laid out otherwise."""
    counters = [feature for feature in definition.features.values() if feature.aggregate != "value"]
    if len(counters) < 2:
        return None
    return dataclasses.replace(
        definition, model=None, challengers=(), lists={}, rules={}, alerts={},
        features={counters[0].name: counters[0]},
    )  # fmt: skip
