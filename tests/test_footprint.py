"""What a policy may come to cost is never less than what it does cost; and what `check` passes compiles."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stage import memory
from strategies import World, worlds
from test_parity import write_policy

from riskengine import Engine, PolicyError
from riskengine.cells import CELLS_MAX
from riskengine.compiled import Policy
from riskengine.footprint import ENTITY_BYTES_MAX, counters, state_bytes
from riskengine.policy import load_definition
from riskengine.sections.naming import ENTITIES_MAX

T0 = 1_794_326_400_123
AMOUNT_MAX = 2**43 / 100
SUMS = ("sum", "mean", "min", "max", "std")


def features(*windows: Mapping[str, str]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for w, window in enumerate(windows):
        made[f"count{w}"] = {"count": "payment", "by": "user", **window}
        made |= {f"{s}{w}": {s: "amount", "on": "payment", "by": "user", **window} for s in SUMS}
    return made


FULL: dict[str, dict[str, Any]] = {
    "one window": {"features": features({"over": "1m"})},
    "windows that cut across each other": {
        "features": features({"over": "61s"}, {"over": "2m"}, {"over": "97s"}, {"over": "7s"}),
    },
    "a delay": {"features": features({"over": "1m"}, {"over": "1m", "delay": "77s"})},
    "optional fields": {
        "features": features({"over": "1m"})
        | {f"points{s}": {s: "points", "on": "payment", "by": "user", "over": "90s"} for s in SUMS}
    },
    "labels": {
        "features": {
            **{f"bad_{s}": {s: "amount", "on": "fraud", "by": "user", "over": "1m"} for s in ("sum", "std")},
            "rate": {"rate": "fraud", "on": "payment", "by": "user", "over": "2m"},
            "last": {"since_last": "fraud", "on": "payment", "by": "user"},
        }
    },
    "members": {
        "features": {
            "few": {"distinct": "device", "on": "payment", "by": "user", "over": "10m", "cap": 7},
            "many": {"distinct": "device", "on": "payment", "by": "user", "over": "10m", "cap": 900},
            "words": {"distinct": "region", "on": "payment", "by": "user", "per": "month"},
        }
    },
    "sightings": {
        "features": {
            "first": {"since_first": "any", "by": "user"},
            "last": {"since_last": "payment", "by": "user"},
            "speed": {"speed": "location", "by": "user"},
            **{f"was_{name}": {"previous": name, "by": "user"} for name in ("region", "amount", "location")},
        }
    },
    "limits": {
        "limits": {
            "times": {"count": "payment", "by": "user", "over": "1m", "max": 10**9},
            "spent": {"sum": "amount", "on": "payment", "by": "user", "over": "5s", "max": 10**15},
            "daily": {"count": "payment", "by": "user", "per": "day", "max": 10**9},
        }
    },
    "periods": {
        "timezone": "America/New_York",
        "lateness": "9d",
        "features": features({"per": "day"}, {"per": "week", "delay": "20d"}, {"per": "month"}),
        "limits": {"daily": {"count": "payment", "by": "user", "per": "day", "max": 10**9}},
    },
}


@pytest.mark.parametrize("case", FULL)
def test_an_entity_filled_to_its_bounds_stays_within_its_footprint(case: str, tmp_path: Path) -> None:
    policy = {
        "policy": "full",
        "lateness": "20s",
        "skew": "2s",
        "entities": {"user": "user_id", "device": "device_id"},
        "events": {
            "payment": {"required": ["amount"], "fields": {"points": {"type": "number", "unit": 0.01}}}
        },
        **FULL[case],
    }
    write_policy(tmp_path, policy, {})
    bound = sum(state_bytes(load_definition(tmp_path))["user"].values())
    slow = "lateness" in FULL[case]
    step_ms = 6 * 3_600_000 if slow else 97
    now = T0
    largest = 0
    with Engine.open(tmp_path, clock=lambda: now) as engine:
        for part in range(20):
            events: list[dict[str, Any]] = []
            for i in range(150):
                now += step_ms
                number = 150 * part + i
                amount = AMOUNT_MAX if number % 2 else -AMOUNT_MAX if number % 3 else None
                events.append(
                    {
                        "event_id": f"e{number}", "type": "payment", "time": now, "user_id": "u1",
                        "device_id": f"d{number}", "region": f"街道 number {number:020}",
                        "amount": amount or AMOUNT_MAX / 3, "location": {"lat": number / 100, "lon": -1},
                        **({"points": amount} if amount else {}),
                    }
                )  # fmt: skip
            engine.score_many(events)
            for event in events[::2]:
                engine.label(event["event_id"], "fraud")
            sizes = [len(value) for _, entity, value in memory(engine).values() if entity == "user"]
            assert len(sizes) == 1
            largest = max(largest, *sizes)
    assert largest <= bound
    assert bound <= 4 * largest, "nor is it far more than what can be reached"


def test_more_counters_than_a_record_can_name_are_told(tmp_path: Path) -> None:
    last = {"since_last": "payment", "by": "user"}
    kept = {f"f{i}": {**last, "where": f"amount > {i}"} for i in range(62)}
    policy: dict[str, Any] = {
        "policy": "wide", "entities": {"user": "user_id"}, "events": {"payment": {}}, "lateness": "0s",
        "skew": "0s", "features": kept,
    }  # fmt: skip
    write_policy(tmp_path, policy, {})
    definition = load_definition(tmp_path)
    assert sum(counters(definition)["user"].values()) == CELLS_MAX
    Policy.compile(definition, b"key")
    policy["features"] = {**kept, "mean": {"mean": "amount", "on": "payment", "by": "user", "over": "1m"}}
    write_policy(tmp_path, policy, {})
    with pytest.raises(PolicyError) as caught:
        load_definition(tmp_path)
    (finding,) = caught.value.findings
    assert (finding.code, finding.place.line) == ("too-many-counters", 1)
    assert finding.found is not None
    assert "f0, f1" in finding.found
    assert "63" in finding.message


@st.composite
def wide(draw: st.DrawFn) -> World:
    """A policy that may be too much in one way or another."""
    world = draw(worlds())
    policy = json.loads(json.dumps(world.policy))
    extra = draw(st.integers(0, 70))
    policy.setdefault("features", {}).update(
        {
            f"extra{i}": {
                draw(st.sampled_from(["count", "since_last"])): draw(st.sampled_from(["login", "payment"])),
                "by": draw(st.sampled_from(sorted(policy["entities"]))),
                "where": f"missing(region) or channel == 'c{i}'",
            }
            for i in range(extra)
        }
    )
    for feature in policy["features"].values():
        if "count" in feature and "over" not in feature and "per" not in feature:
            feature["per"] = "day"
    for i in range(draw(st.sampled_from([0, 0, 0, 300]))):
        policy["entities"][f"e{i}"] = f"e{i}"
    return World(policy, world.tables)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(world=wide())
def test_what_check_passes_compiles(world: World) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_policy(Path(folder), world.policy, world.tables)
        try:
            definition = load_definition(folder)
        except PolicyError as error:
            codes = {finding.code for finding in error.findings}
            assert codes <= {"too-many-counters", "too-much-state", "too-many-entities"}
            return
    assert len(definition.entities) <= ENTITIES_MAX
    assert all(sum(costs.values()) <= ENTITY_BYTES_MAX for costs in state_bytes(definition).values())
    policy = Policy.compile(definition, b"key")
    for entity, specs in zip(policy.features.entities, policy.features.specs, strict=True):
        assert len(specs) == sum(counters(definition)[entity].values())
