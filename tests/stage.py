"""A small policy in a folder, and an engine on it with its clock in hand: where tests of the engine play."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from riskengine.engine import Engine
from riskengine.errors import EventError
from riskengine.judge import Result
from riskengine.stores.memory import MemoryStore
from riskengine.stores.redis import RedisStore

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
T0 = 1_794_362_400_000  # 2026-11-11T10:00:00+08:00, a Wednesday
KEY = b"a key of the stage"


def policy(**sections: Any) -> dict[str, Any]:
    """A policy of two event types and a few entities, with the sections given."""
    return {
        "policy": "stage",
        "timezone": "Asia/Shanghai",
        "country": "CN",
        "entities": {"user": "user_id", "device": "device_id", "campaign": "campaign_id"},
        "events": {
            "coupon_claim": {"required": ["user_id"], "fields": {"score": "number"}},
            "payment": {"required": ["user_id", "amount"]},
        },
        **sections,
    }


def write(folder: Path, sections: Mapping[str, Any]) -> Path:
    """Put a policy into a folder (JSON is YAML)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.yaml").write_text(json.dumps(sections, ensure_ascii=False), encoding="utf-8")
    return folder


def claim(event_id: str, at: int = 0, **fields: Any) -> dict[str, Any]:
    """A coupon claim of user u1, `at` ms after T0."""
    return {"event_id": event_id, "type": "coupon_claim", "time": T0 + at, "user_id": "u1", **fields}


def payment(event_id: str, at: int = 0, amount: float = 1, **fields: Any) -> dict[str, Any]:
    """A payment of user u1, `at` ms after T0."""
    return {
        "event_id": event_id, "type": "payment", "time": T0 + at, "user_id": "u1", "amount": amount, **fields
    }  # fmt: skip


class Stage:
    """An engine and the clock it goes by, which is `now`. Closes with `with`."""

    def __init__(self, folder: Path, sections: Mapping[str, Any], **options: Any) -> None:
        self.folder = folder
        self.now = T0
        options = {"store": "memory://", "key": KEY, "clock": lambda: self.now, **options}
        self.engine = Engine.open(write(folder, sections), **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()

    def row(self, event: Mapping[str, Any], now: int | None = None) -> dict[str, Any]:
        """Score an event, at its own time unless `now` is said, and return its features."""
        self.now = max(self.now, event["time"]) if now is None else now
        features = self.engine.score(event, features=True).features
        assert isinstance(features, dict)
        return features

    def actions(self, events: Sequence[Mapping[str, Any]]) -> list[str]:
        """What becomes of each event, in one batch."""
        return [action(result) for result in self.engine.score_many(events)]

    def reload(self, sections: Mapping[str, Any]) -> None:
        self.engine.reload(write(self.folder, sections))


def action(result: Result) -> str:
    """The action decided, or the code of the first problem."""
    return result.problems[0].code if isinstance(result, EventError) else result.action


def store_of(engine: Engine) -> RedisStore:
    """The store that an engine shares with others, to be looked into."""
    assert isinstance(engine._store, RedisStore)
    return engine._store


def standing_still(at: Any, method: str) -> tuple[threading.Event, threading.Event]:
    """Have whoever calls a method stand still before it: that it has come there, and that it may go on."""
    call, entered, go_on = getattr(at, method), threading.Event(), threading.Event()

    def late(*given: Any) -> Any:
        entered.set()
        assert go_on.wait(60)
        return call(*given)

    setattr(at, method, late)
    return entered, go_on


def caught_up(engine: Engine) -> bool:
    """Have an engine tell its store what that missed; whether all of it is told."""
    engine.catch_up()
    return not engine.is_behind


def memory(engine: Engine) -> MemoryStore:
    """The in-process store of an engine, to be looked into."""
    assert isinstance(engine._store, MemoryStore)
    return engine._store
