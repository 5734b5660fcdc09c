"""Goes once through everything a sidecar may be asked, so that the first caller waits for no kernel.

A kernel is compiled, or read from its cache (a fifth of a second in all), when it is first called.
"""

from __future__ import annotations

import tempfile
from typing import Any, Final

from riskengine.definition import Definition
from riskengine.engine import Engine
from riskengine.service import contract

_NOW: Final = 1_800_000_000_000
_VALUES: Final[dict[str, Any]] = {
    "string": "x", "phone": "13800138000", "ip": "203.0.113.7", "number": 1, "bool": True, "time": _NOW,
    "location": {"lat": 0, "lon": 0},
}  # fmt: skip


def rehearse(definition: Definition) -> None:
    """Score, follow up, label, release and list, on an engine of its own that is thrown away."""
    events: list[dict[str, Any]] = [
        {
            "event_id": f"{name}{i}",
            "type": name,
            **{field: _VALUES[definition.fields[field].type] for field in kind.fields if field != "time"},
        }
        for name, kind in definition.events.items()
        for i in range(2)
    ]
    with (
        tempfile.TemporaryDirectory(prefix="riskengine-") as folder,
        Engine.open(
            definition,
            "memory://?size=64MiB",
            f"sqlite:///{folder}/journal.db?spool={folder}/spool",
            lambda: _NOW,
        ) as engine,
    ):
        engine.score_many(events[:1])
        engine.score_many(events, features=True)
        engine.score_many([{**event, "event_id": f"b{i}"} for i, event in enumerate(events)])
        engine.score_many([{**events[0], "event_id": "c", "follows": events[0]["event_id"]}])
        for event in events:  # of some a limit grants the first alone: only that one has something to release
            engine.label(event["event_id"], "fraud")
            engine.release(event["event_id"])
        for known in definition.lists.values():
            for entity in known.of:
                fields = definition.entities[entity].fields
                engine.list_put(known.name, entity, ["1"] * len(fields) if len(fields) > 1 else "x")
        engine.score_many([{**events[0], "event_id": "d"}])
        contract.answer(engine.policy, events, _NOW)
