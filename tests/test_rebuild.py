"""Counters made anew: whatever is asked afterwards is answered as if nothing had been lost."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from strategies import Reload, Step, World
from test_parity import KEY, EngineSubject, Tables, comparable, stories, take, write_policy

from riskengine.engine import Engine
from riskengine.policy import load_definition
from riskengine.rebuild import Journals, Rebuilt, count_entries
from riskengine.replay import blurred


class Journaled(EngineSubject):
    """An engine on the in-process store, with a journal."""

    def __init__(self, folder: Path, policy: Mapping[str, Any], *, tables: Tables | None = None) -> None:
        self.folder, self.now = folder, 0
        write_policy(folder, policy, tables or {})
        journal = f"sqlite:///{folder.parent / 'journal.db'}"
        self.engine = Engine.open(folder, journal=journal, clock=lambda: self.now, key=KEY)


@settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
)
@given(story=stories())
def test_what_was_journaled_is_all_that_there_is(story: tuple[World, list[Step]]) -> None:
    world, steps = story
    before, after = steps[: len(steps) // 2], steps[len(steps) // 2 :]
    assume(not any(isinstance(step, Reload) for step in before))
    with tempfile.TemporaryDirectory() as folder:
        with Journaled(Path(folder, "one"), world.policy, tables=world.tables) as served:
            assume(not blurred(load_definition(served.folder)))
            for step in before:
                take(served, step)
            journal = served.engine.journal
            assert journal is not None
            journal.flush()
            with EngineSubject(Path(folder, "two"), world.policy, tables=world.tables) as rebuilt:
                rebuilt.now = served.now
                count_entries(rebuilt.engine, Journals([journal]).more(), Rebuilt())
                for number, step in enumerate(after):
                    expected, answers = take(served, step), take(rebuilt, step)
                    for answer, other in zip(answers, expected, strict=True):
                        if isinstance(answer, dict) and "features" not in answer:  # a retry: none are kept
                            answer["features"] = other["features"]
                    assert comparable(answers) == comparable(expected), f"{number} steps later"
