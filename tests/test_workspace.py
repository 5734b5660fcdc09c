"""The arrays that batches of a shared store are asked and concluded with, whatever their size comes to be."""

from __future__ import annotations

from pathlib import Path

import pytest
from stage import KEY, policy, write

from riskengine.engine import Engine
from riskengine.features import FeatureSet
from riskengine.stores import wire
from riskengine.stores.workspace import Workspace


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    folder: Path = tmp_path_factory.mktemp("policy")
    write(folder, policy(features={"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}}))
    with Engine.open(folder, key=KEY) as engine:
        return engine.policy.features


@pytest.mark.parametrize("parts", [1, 4, 64])
def test_there_is_room_for_all_calls_of_a_batch_also_of_none(features: FeatureSet, parts: int) -> None:
    """Kernels look at no bounds: what they may write there must have its place."""
    work, kinds = Workspace(), len(features.entities)
    work.serve(features, parts)
    for n in (0, 1, 8, 9, 64, 3, 128, 0):
        room = work.room(n)
        calls = min(parts, n * kinds + n + 1)  # the first partition is always asked
        scratch = room.scratch
        assert scratch.groups.shape[0] > calls
        assert scratch.groups.shape[1] == wire.GROUP_SIZE
        assert min(len(scratch.ends), len(scratch.parts) * calls) >= calls
        assert len(scratch.claimants) >= n * (kinds + 1 if parts > 1 else 1)
        assert min(map(len, (scratch.entities, scratch.items, scratch.tails, scratch.long))) >= n * kinds
        assert len(room.slots) >= 4 * n * kinds
        assert room.asked.shape == (n, len(features.limit_names))
        assert not room.flags.any()


def test_what_was_asked_for_is_forgotten_by_the_next_batch_of_as_many(features: FeatureSet) -> None:
    work = Workspace()
    work.serve(features, 1)
    room = work.room(2)
    room.flags.fill(1)
    room.handed.fill(1)
    again = work.room(2)
    assert again is room
    assert not again.flags.any()
    assert not again.handed.any()
