"""The shared store held to the naive twin, its values folded at nearly every point, by engines in turns."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from servers import apart
from strategies import Step, World
from test_parity import KEY, EngineSubject, comparable, stories, take, twin_of, write_policy

from riskengine.engine import Engine
from riskengine.stores import unfolding
from riskengine.stores.address import begin


class Sharing(EngineSubject):
    """An engine on a store that another one writes too."""

    def __init__(self, folder: Path, world: World, store: str) -> None:
        self.folder, self.now = folder, 0
        write_policy(folder, world.policy, world.tables)
        self.engine = Engine.open(folder, store=store, clock=lambda: self.now, key=KEY)


@settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    max_examples=12,
    phases=(Phase.explicit, Phase.generate),  # to shrink one of these takes minutes
)
@given(story=stories())
def test_whoever_writes_and_whoever_folds_the_twin_is_right(
    story: tuple[World, list[Step]], server: str
) -> None:
    world, steps = story
    store = apart(server)
    begin(store, world.policy["policy"])
    twin = twin_of(world)
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as two,
        Sharing(Path(one), world, store) as first,
        Sharing(Path(two), world, store) as second,
    ):
        patch.setattr(unfolding, "TAIL_RECORDS", -1)  # whatever is longer than its snapshot is folded
        for number, step in enumerate(steps):
            expected = comparable(take(twin, step))
            engine, other = (first, second) if number % 2 else (second, first)
            engine.now = other.now = max(first.now, second.now)
            answers = take(engine, step)
            if type(step).__name__ == "Reload":
                take(other, step)
            for answer, right in zip(answers, take_again(expected), strict=True):
                if isinstance(answer, dict) and "features" not in answer:  # a retry of the other's: none kept
                    answer["features"] = right["features"]
            assert comparable(answers) == expected, f"at step {number}"


def take_again(expected: list[object]) -> list[dict[str, object]]:
    """What the twin said, to be looked into."""
    return [one if isinstance(one, dict) else {"features": None} for one in expected]
