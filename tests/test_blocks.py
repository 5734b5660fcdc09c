"""Blocks of decided events: the kernel that writes them against its naive twin, and what is read back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from naive import journal_event, journal_row
from strategies import STARTS, Score, streams, worlds
from test_parity import KEY, write_policy

from riskengine import Engine
from riskengine.compiled import Policy
from riskengine.decision import Decision
from riskengine.entries import Entry
from riskengine.features import Touches
from riskengine.journal.blocks import (
    _whole_characters,
    count,
    dropped_of,
    ids_of,
    pack_dropped,
    pack_entries,
    unpack,
    unpack_row,
    without,
)
from riskengine.served import Served, read_trace

START_MS = int(datetime.fromisoformat(STARTS[0]).timestamp()) * 1000


class Collector:
    """In the place of a journal: keeps what would be written."""

    sealer = None
    is_away = False

    def append_later(self, served: Served) -> None: ...
    def wait_for_room(self) -> None: ...
    def settle(self) -> None: ...
    def close(self) -> None: ...
    def append(self, entries: object) -> None: ...
    def decision(self, event_id: str) -> None: ...


@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
@given(st.data())
def test_what_the_kernel_writes_is_what_the_twin_says(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    world = data.draw(worlds())
    steps = data.draw(streams(world, START_MS, steps=8))
    folder = tmp_path_factory.mktemp("blocks")
    write_policy(folder, world.policy, world.tables)
    now = [0]
    told: list[tuple[Served, Touches, Sequence[Decision]]] = []

    def serve(policy: Policy, found: Touches, decisions: Sequence[Decision], *more: Any) -> Served:
        told.append((Served(policy, found, decisions, *more), found, list(decisions)))
        return told[-1][0]

    with (
        Engine.open(folder, clock=lambda: now[0], key=KEY) as engine,
        patch("riskengine.judge.Served", serve),
    ):
        engine._journal = engine._turns.judges[0]._journal = Collector()  # type: ignore[assignment]  # all that scoring calls
        for step in steps:
            if isinstance(step, Score):
                now[0] = step.now
                events = [{**event, "odd": "x", "more": 7} for event in step.events]
                engine.score_many(events + list(step.events[:1]))
        policy = engine.policy
        assume(told)
        for served, found, decisions in told:
            batch, strings = found.batch, found.strings
            cells = found.cells.take(policy.row_columns, 0)
            kept = served.entries()
            assert [entry.event_id for entry in kept] == list(served.event_ids)
            for i, (entry, decision) in enumerate(zip(kept, decisions, strict=True)):
                assert msgspec.json.decode(entry.decision, type=Decision) == decision
                assert dict(entry.event) == journal_event(policy, batch, i)
                assert repr(unpack_row(entry.row)) == repr(journal_row(policy, cells, strings, i))
                moved = read_trace(entry.trace)
                marks = zip(policy.entity_marks, batch.keys[i].tolist(), strict=True)
                assert moved.keys == {mark: key for mark, key in marks if key}
                assert moved.masks == found.masks[i].tolist()
                assert moved.layout == entry.features == policy.features.fingerprint
                assert entry.content == batch.content[i].tobytes()
                assert (entry.policy, entry.flags) == (policy.fingerprint, decision.flags)


@given(dropped=st.frozensets(st.integers(0, 5)))
def test_what_is_dropped_of_a_block_leaves_its_place_alone(dropped: frozenset[int]) -> None:
    said = {
        "event_id": "",
        "decision_id": "",
        "action": "allow",
        "risk": 0,
        "policy": "",
        "flags": [],
        "time": 0,
    }
    entries = [
        Entry(
            event_id=f"e{i}", decision_id="", event_time_ms=0, type="claim", action="allow", risk=0.0,
            decision=msgspec.json.encode({**said, "event_id": f"e{i}"}), event={"no": i},
        )
        for i in range(6)
    ]  # fmt: skip
    block = pack_entries(entries)
    body = without(block.body, dropped)
    assert count(body) == 6
    assert body == block.body if not dropped else len(body) < len(block.body)
    left = [entry for i, entry in enumerate(unpack(block.body, 7)) if i not in dropped]
    assert list(unpack(body, 7, dropped=dropped)) == left
    packed = pack_dropped({i: f"e{i}" for i in dropped})
    assert ids_of(body, dropped_of(packed)) == [f"e{i}" for i in range(6)]
    assert dropped_of(msgspec.msgpack.encode(sorted(dropped))) == dict.fromkeys(dropped, "")  # layout 3


@given(st.text(), st.integers(0, 24))
def test_a_character_that_was_cut_is_left_out(text: str, size: int) -> None:
    data = text.encode()[:size]
    cells = np.frombuffer(bytearray(b"??" + data + b"?"), np.uint8)
    assert _whole_characters(cells, 2, len(data)) == len(data.decode(errors="ignore").encode())
