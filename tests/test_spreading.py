"""Blocks that reach a person's other accounts, against the naive walk, on both stores, and taken back."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import pytest
from clusters import cluster
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import Naive
from servers import apart, running
from stage import DAY, HOUR, KEY, T0, Stage, claim, memory, policy, write
from test_service import start

from riskengine import Decision, cli
from riskengine.client import Client
from riskengine.engine import Engine
from riskengine.journal import Journal
from riskengine.policy import load_definition
from riskengine.rebuild import Rebuilt, from_journal_urls, resume
from riskengine.replay import replay_journal
from riskengine.rows import RowsFile
from riskengine.stores.address import begin
from riskengine.stores.paths import PathEdit

KINDS = ("user", "device", "phone")
FIELDS = {"user": "user_id", "device": "device_id", "phone": "phone"}
PHONES = [f"+86138000010{n:02}" for n in range(40)]


def link(by: str, member: str, cap: int, over: str = "7d") -> dict[str, Any]:
    return {"distinct": member, "on": "any", "by": by, "over": over, "cap": cap}


def reaching(hops: int = 2, degree: int = 3, cap: int = 32) -> dict[str, Any]:
    """A policy whose blocks go from users to devices and phones and on; near ones have a rule each."""
    near = {
        f"near-{entity}-{step}": {
            "on": "any",
            "when": f"listed('near_{step}', {entity})",
            "then": "challenge" if step == 1 else "review",
            "mode": "live",
            "message": {"en": "Linked", "zh": "关联"},
        }
        for entity in KINDS
        for step in (1, 2)
    }
    return policy(
        entities={**FIELDS, "ip": "ip", "campaign": "campaign_id"},
        features={
            "user_devices": link("user", "device", cap),
            "user_phones": link("user", "phone", cap),
            "device_users": link("device", "user", cap),
            "phone_users": link("phone", "user", cap, "1d"),
        },
        lists={
            "blocked": {
                "of": [*KINDS, "ip"],
                "spreads": {"to": ["near_1", "near_2"], "along": list(KINDS), "hops": hops, "degree": degree},
            },
            "near_1": {"of": list(KINDS)},
            "near_2": {"of": list(KINDS)},
        },
        rules={
            "blocked": {"on": "any", "when": "listed('blocked', user)", "then": "deny", "mode": "live"},
            **near,
        },
    )


def by(event_id: str, at: int, user: str, device: str | None = None, phone: str | None = None) -> Any:
    """A claim of a user on a device with a phone."""
    given = {"device_id": device, "phone": phone}
    return claim(event_id, at, user_id=user, **{name: value for name, value in given.items() if value})


def near(engine: Engine, entity: str, value: str) -> dict[str, int]:
    """The distance of what a value is near to, by the id of its path."""
    found: dict[str, int] = {}
    for name in ("near_1", "near_2"):
        entry = engine.list_get(name, entity, value)
        for path in entry.get("paths", ()) if entry is not None else ():
            assert (name == "near_1") == (path["distance"] == 1)
            assert path["via"][-1]["entity"] == entity
            assert len(path["via"]) == path["distance"] + 1
            found[path["path"]] = path["distance"]
    return found


# -- against the twin

Op = tuple[Any, ...]
WHO = {"user": [f"u{n}" for n in range(6)], "device": [f"d{n}" for n in range(5)], "phone": PHONES[:4]}


@st.composite
def stories(draw: st.DrawFn) -> list[Op]:
    """Events in batches, blocks put, put again, expiring and lifted between them."""
    story: list[Op] = []
    at = n = 0
    for _ in range(draw(st.integers(2, 9))):
        what = draw(st.sampled_from(("score", "score", "score", "put", "lift")))
        at += draw(st.sampled_from((1000, HOUR, DAY, 5 * DAY)))
        if what == "score":
            events = []
            for _ in range(draw(st.integers(1, 6))):
                n += 1
                at += draw(st.sampled_from((0, 0, 1, 60_000)))
                late = draw(st.sampled_from((0, 0, 0, 60_000, DAY)))
                user, device, phone = (draw(st.sampled_from(WHO[kind])) for kind in KINDS)
                alone = draw(st.integers(0, 3))
                events.append(
                    by(f"e{n}", at - late, user, device if alone else None, phone if alone > 1 else None)
                )
            story.append(("score", at, events))
        else:
            kind = draw(st.sampled_from(KINDS))
            value = draw(st.sampled_from(WHO[kind]))
            expires = draw(st.sampled_from((None, None, T0 + at + HOUR, T0 + at + 2 * DAY)))
            story.append((what, at, kind, value, expires))
    return story


def played(engine: Engine, clock: list[int], op: Op, together: bool) -> list[list[str]]:
    """One step of a story; what fired for each event."""
    clock[0] = T0 + op[1]
    if op[0] == "score":
        batches = [op[2]] if together else [[event] for event in op[2]]
        results = [result for batch in batches for result in engine.score_many(batch)]
        return [sorted(result.fired) for result in results if isinstance(result, Decision)]
    if op[0] == "put":
        engine.list_put("blocked", op[2], op[3], expires=op[4])
    else:
        engine.list_delete("blocked", op[2], op[3])
    return []


def expected(twin: Naive, op: Op) -> list[list[str]]:
    now = T0 + op[1]
    if op[0] == "score":
        return [sorted(twin.score(event, now)["fired"]) for event in op[2]]
    if op[0] == "put":
        twin.list_put("blocked", op[2], op[3], op[4], now)
    else:
        twin.list_delete("blocked", op[2], op[3], now)
    return []


def all_near(engine: Engine) -> dict[tuple[str, str], list[int]]:
    found = {
        (kind, value): sorted(near(engine, kind, value).values()) for kind in KINDS for value in WHO[kind]
    }
    return {one: distances for one, distances in found.items() if distances}


def all_near_naive(twin: Naive, now: int) -> dict[tuple[str, str], list[int]]:
    found = {
        (kind, value): sorted(len(via) - 1 for via in twin._standing("blocked", kind, (value,), now).values())
        for kind in KINDS
        for value in WHO[kind]
    }
    return {one: distances for one, distances in found.items() if distances}


@given(story=stories(), hops=st.integers(1, 3), degree=st.sampled_from((1, 2, 3, 8)))
@settings(max_examples=40, deadline=None)
def test_blocks_spread_as_the_naive_walk_says(story: list[Op], hops: int, degree: int) -> None:
    """In memory, in batches and one by one."""
    sections = reaching(hops, degree)
    _spread_clamped(sections, hops)
    with TemporaryDirectory() as folder:
        definition = load_definition(write(Path(folder), sections))
        clock = [T0]
        engines = [Engine.open(definition, key=KEY, clock=lambda: clock[0]) for _ in range(2)]
        twin = Naive(sections)
        for op in story:
            wanted = expected(twin, op)
            assert played(engines[0], clock, op, True) == wanted
            assert played(engines[1], clock, op, False) == wanted
            assert all_near(engines[0]) == all_near(engines[1]) == all_near_naive(twin, clock[0])
        for engine in engines:
            engine.close()


@given(story=stories())
@settings(max_examples=8, deadline=None)
def test_two_engines_on_a_shared_store_spread_alike(story: list[Op], server: str) -> None:
    """In turns; and what one engine of the two knows, a third that comes later knows too."""
    sections = reaching()
    with TemporaryDirectory() as folder:
        definition = load_definition(write(Path(folder), sections))
        clock = [T0]
        store = apart(server)
        begin(store, "stage")
        with (
            Engine.open(definition, store=store, key=KEY, clock=lambda: clock[0]) as one,
            Engine.open(definition, store=store, key=KEY, clock=lambda: clock[0]) as other,
        ):
            twin = Naive(sections)
            for turn, op in enumerate(story):
                assert played((one, other)[turn % 2], clock, op, True) == expected(twin, op)
            assert all_near(one) == all_near(other) == all_near_naive(twin, clock[0])
            with Engine.open(definition, store=store, key=KEY, clock=lambda: clock[0]) as third:
                assert all_near(third) == all_near(one)


def test_a_cluster_spreads_as_one_store_does(tmp_path: Path) -> None:
    """What a block reaches lies in other slots than the block."""
    sections = reaching()
    with cluster(replicas=False) as servers:
        store = apart(servers.url)
        begin(store, "stage")
        with (
            Stage(tmp_path / "a", sections) as alone,
            Stage(tmp_path / "b", sections, store=store) as shared,
            Stage(tmp_path / "c", sections, store=store) as other,
        ):
            stages = (alone, shared, other)
            for stage in (alone, shared):
                family(stage)
            other.now = T0 + 1000
            for stage in (alone, shared):
                stage.engine.list_put("blocked", "user", "u1")
            known = everything(alone.engine)
            assert sum(map(len, known.values())) == 2
            assert [everything(stage.engine) for stage in stages] == [known] * 3
            marked = [by("e1", 2000, "u1", "d3"), by("e2", 2001, "u4", "d3")]
            assert alone.actions(marked) == other.actions(marked) == ["deny", "challenge"]
            known = everything(alone.engine)
            assert [everything(stage.engine) for stage in stages] == [known] * 3
            assert alone.engine.list_delete("blocked", "user", "u1")
            assert shared.engine.list_delete("blocked", "user", "u1")
            assert not any(any(everything(stage.engine).values()) for stage in stages)


def _spread_clamped(sections: Mapping[str, Any], hops: int) -> None:
    """Of one step there is one list."""
    if hops == 1:
        sections["lists"]["blocked"]["spreads"]["to"] = "near_1"


# -- what it keeps, and how it is undone


def family(stage: Stage) -> None:
    """u1 and u2 share d1; u2 and u3 share d2."""
    pairs = [("u1", "d1"), ("u2", "d1"), ("u2", "d2"), ("u3", "d2")]
    assert stage.actions([by(f"f{n}", n, user, device) for n, (user, device) in enumerate(pairs)]) == [
        "allow"
    ] * len(pairs)
    stage.now = T0 + 1000


def test_a_block_walks_and_the_decision_names_the_path(tmp_path: Path) -> None:
    with Stage(tmp_path, reaching()) as stage:
        family(stage)
        stage.engine.list_put("blocked", "user", "u1", expires=T0 + DAY, reason="chargeback", author="ana")
        block = stage.engine.list_get("blocked", "user", "u1")
        assert block is not None
        entry = stage.engine.list_get("near_2", "user", "u2")
        assert entry is not None
        assert {name: entry[name] for name in ("expires", "reason", "author", "distance")} == {
            "expires": T0 + DAY, "reason": "chargeback", "author": "ana", "distance": 2
        }  # fmt: skip
        (path,) = entry["paths"]
        assert [step["entity"] for step in path["via"]] == ["user", "device", "user"]
        assert path["path"] == block["path"]
        assert "u1" not in str(entry), "entities go by their keyed hash"
        decision = stage.engine.score(by("e1", 2000, "u2", "d9"))
        (reason,) = decision.reasons
        assert reason.message is not None
        assert reason.message.en == f"Linked - blocked: user -> device -> user (2 steps, path {path['path']})"
        assert reason.message.zh == f"关联 · blocked：user → device → user（2 步，路径 {path['path']}）"
        assert (decision.action, reason.rule) == ("review", "near-user-2")
        assert stage.engine.score(by("e1", 2000, "u2", "d9")) == decision, "a retry"
        assert stage.engine.list_get("near_2", "device", "d2") is None, "three steps away"
        assert stage.engine.score(by("e2", 3000, "u7", "d1")).fired == ("near-device-1",)


def test_lifting_by_the_paths_id_undoes_it(tmp_path: Path) -> None:
    with Stage(tmp_path, reaching()) as stage:
        family(stage)
        stage.engine.list_put("blocked", "user", "u1")
        stage.engine.list_put("blocked", "user", "u3")
        first = stage.engine.list_get("blocked", "user", "u1")
        assert first is not None
        assert len(near(stage.engine, "user", "u2")) == 2
        told = stage.engine.path(first["path"])
        assert told is not None
        assert [len(one["via"]) for one in told["reached"]] == [2, 3]
        assert stage.engine.lift(first["path"], author="ana")
        assert stage.engine.list_get("blocked", "user", "u1") is None
        assert near(stage.engine, "device", "d1") == {}
        assert list(near(stage.engine, "user", "u2").values()) == [2], "u3 is blocked yet"
        assert stage.actions([by("e1", 2000, "u2")]) == ["review"]
        assert stage.engine.list_delete("blocked", "user", "u3")
        assert stage.actions([by("e2", 3000, "u2", "d1")]) == ["allow"]
        assert memory(stage.engine).lists.reached(first["path"]) == [], "nothing is left of it"
        assert not stage.engine.lift(first["path"])
        assert stage.engine.path(first["path"]) is None


def test_a_block_that_expires_lets_go_of_what_it_reached(tmp_path: Path) -> None:
    with Stage(tmp_path, reaching()) as stage:
        family(stage)
        stage.engine.list_put("blocked", "user", "u1", expires=T0 + HOUR)
        first = stage.engine.list_get("blocked", "user", "u1")
        stage.engine.list_put("blocked", "user", "u1", expires=T0 + 2 * HOUR)
        assert first is not None
        assert list(near(stage.engine, "user", "u2")) == [first["path"]], "it stands under the id it had"
        stage.now = T0 + 2 * HOUR
        assert stage.actions([by("e1", 2 * HOUR - 1, "u2"), by("e2", 2 * HOUR, "u2")]) == ["review", "allow"]
        assert near(stage.engine, "user", "u2") == {}
        stage.engine.list_put("blocked", "user", "u1")
        assert list(near(stage.engine, "user", "u2")) != [first["path"]], "that one was another block"


def test_an_event_marks_its_other_entities_for_the_next_event(tmp_path: Path) -> None:
    with Stage(tmp_path, reaching()) as stage:
        stage.engine.list_put("blocked", "phone", PHONES[0])
        stage.now = T0 + 1000
        one = by("e1", 1, "u1", "d1", PHONES[0])
        batch = [one, one, by("e2", 2, "u1"), by("e3", 3, "u2", "d1"), by("e4", 4, "u2", "d2")]
        results = stage.engine.score_many(batch)
        fired = [result.fired for result in results if isinstance(result, Decision)]
        assert fired == [(), (), ("near-user-1",), ("near-device-1",), ("near-user-2",)]
        assert near(stage.engine, "device", "d2") == {}, "three steps away"
        ids = set(near(stage.engine, "user", "u1")) | set(near(stage.engine, "user", "u2"))
        assert len(ids) == 1
        assert stage.engine.score(one).fired == (), "a retry has the answer it had"
        assert stage.engine.list_delete("blocked", "phone", PHONES[0])
        assert stage.engine.score(one).fired == ()
        assert near(stage.engine, "user", "u1") == {}, "a retry marks nothing"


def test_what_is_late_marks_nothing(tmp_path: Path) -> None:
    with Stage(tmp_path, reaching()) as stage:
        stage.engine.list_put("blocked", "device", "d1")
        stage.now = T0 + DAY
        assert stage.engine.score(by("e1", 1, "u1", "d1")).flags == ("late",)
        assert near(stage.engine, "user", "u1") == {}


def test_what_many_share_is_not_walked_through(tmp_path: Path) -> None:
    """Neither by the block nor by events, whether it is blocked itself or on the way."""
    with Stage(tmp_path, reaching(degree=2)) as stage:
        stage.now = T0 + 100
        events = [by(f"e{n}", n, f"u{n}", "tablet") for n in range(3)]
        events += [by("x1", 10, "u1", "d1"), by("x2", 11, "u1", None, PHONES[1])]
        stage.engine.score_many(events)
        stage.engine.list_put("blocked", "device", "tablet")
        assert near(stage.engine, "user", "u1") == {}
        stage.engine.list_put("blocked", "device", "d1")
        assert list(near(stage.engine, "user", "u1").values()) == [1]
        assert list(near(stage.engine, "device", "tablet").values()) == [2], "reached, and no further"
        assert near(stage.engine, "user", "u2") == {}
        stage.engine.score(by("y", 200, "u2", "tablet", PHONES[2]))
        assert near(stage.engine, "user", "u2") == {}
        assert near(stage.engine, "phone", PHONES[2]) == {}


def test_weak_identifiers_are_not_walked(tmp_path: Path) -> None:
    with Stage(tmp_path, reaching()) as stage:
        events = [by(f"e{n}", n, f"u{n}") | {"ip": "203.0.113.7"} for n in range(2)]
        stage.engine.score_many(events)
        stage.engine.list_put("blocked", "ip", "203.0.113.7")
        assert "path" not in (stage.engine.list_get("blocked", "ip", "203.0.113.7") or {})
        stage.engine.list_put("blocked", "user", "u0")
        stage.engine.score(by("e9", 9, "u5") | {"ip": "203.0.113.7"})
        for user in ("u1", "u5"):
            assert near(stage.engine, "user", user) == {}


def test_an_entity_has_no_more_paths_than_it_may(tmp_path: Path) -> None:
    with Stage(tmp_path, reaching(degree=256, cap=300)) as stage:
        stage.now = T0 + 1000
        for n in range(20):
            stage.engine.list_put("blocked", "user", f"b{n}")
        stage.engine.score_many([by(f"e{n}", n, f"b{n}", "d1") for n in range(20)])
        assert len(near(stage.engine, "device", "d1")) == 16
        stage.engine.list_delete("blocked", "user", "b0")
        stage.engine.score(by("e20", 100, "b19", "d1"))
        assert len(near(stage.engine, "device", "d1")) == 16, "what was lifted leaves its place"


def test_who_is_cleared_by_hand_is_clear_until_touched_again(tmp_path: Path) -> None:
    with Stage(tmp_path, reaching()) as stage:
        family(stage)
        stage.engine.list_put("blocked", "user", "u1")
        assert stage.engine.list_delete("near_2", "user", "u2")
        assert not stage.engine.list_delete("near_2", "user", "u2")
        assert stage.actions([by("e1", 2000, "u2")]) == ["allow"]
        stage.engine.score(by("e2", 3000, "u2", "d1"))
        assert list(near(stage.engine, "user", "u2").values()) == [2]


# -- through everything that may come between


def everything(engine: Engine) -> dict[tuple[str, str], dict[str, int]]:
    return {(kind, value): near(engine, kind, value) for kind in KINDS for value in WHO[kind]}


def test_a_journal_and_an_export_bring_it_back(tmp_path: Path) -> None:
    journal = f"sqlite:///{tmp_path / 'journal.db'}"
    with Stage(tmp_path / "a", reaching(), journal=journal) as stage:
        family(stage)
        stage.engine.list_put("blocked", "user", "u1")
        stage.engine.list_put("blocked", "user", "u3", expires=T0 + DAY)
        stage.engine.list_put("blocked", "user", "u3", expires=T0 + 2 * DAY)
        stage.engine.list_put("blocked", "user", "u5")
        stage.actions([by("e1", 2000, "u1", "d3"), by("e2", 2001, "u4", "d3"), by("e3", 2002, "u5", "d4")])
        assert stage.engine.list_delete("blocked", "user", "u5")
        known = everything(stage.engine)
        assert sum(map(len, known.values())) == 6
        stage.engine.export_state(tmp_path / "state")
    with Stage(tmp_path / "b", reaching(), journal=journal) as stage:
        stage.now = T0 + 5000
        assert resume(stage.engine).events == 7
        assert everything(stage.engine) == known
        assert stage.actions([by("e4", 5000, "u4")]) == ["review"]
    with Stage(tmp_path / "c", reaching()) as stage:
        stage.now = T0 + 5000
        stage.engine.import_state(tmp_path / "state")
        assert everything(stage.engine) == known
    with Journal.open(journal) as opened:
        said = [entry for entry in opened.replay() if getattr(entry, "kind", None) == "path"]
        assert said, "what a block came to is written down"


def test_rows_that_a_journal_gives_back_know_who_was_near(tmp_path: Path) -> None:
    """Blocks, what events marked and what was lifted are replayed where they happened."""
    sections = reaching()
    sections["features"]["linked"] = {
        "value": "(1 if listed('near_1', device) else 0) + (2 if listed('near_2', user) else 0)"
    }
    journal = f"sqlite:///{tmp_path / 'journal.db'}"
    served: dict[str, Any] = {}
    with Stage(tmp_path / "a", sections, journal=journal) as stage:

        def score(event: dict[str, Any]) -> None:
            served[event["event_id"]] = stage.row(event)["linked"]

        family(stage)
        stage.engine.list_put("blocked", "user", "u1")
        score(by("e1", 2000, "u2", "d1"))
        score(by("e2", 3000, "u1", "d3"))
        score(by("e3", 4000, "u4", "d3"))
        score(by("e4", 5000, "u4", "d3"))
        stage.now = T0 + 6000
        assert stage.engine.list_delete("blocked", "user", "u1")
        score(by("e5", 7000, "u4", "d3"))
        definition = stage.engine.definition
    assert served == {"e1": 3, "e2": 0, "e3": 1, "e4": 3, "e5": 0}
    rows = str(tmp_path / "rows.parquet")
    with pytest.MonkeyPatch.context() as patch, Journal.open(journal) as opened:
        patch.setenv("RISKENGINE_HASH_KEY", KEY.decode())
        done = replay_journal(definition, opened.replay(), lambda policy: RowsFile(rows, policy))
    assert (done.incomparable, dict(done.features or {})) == (0, {})
    told = {row["event_id"]: row["linked"] for row in pq.read_table(rows).to_pylist()}
    assert {name: told[name] for name in served} == served


def test_a_list_is_shown_with_its_ends_reasons_and_paths(
    tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RISKENGINE_HASH_KEY", KEY.decode())
    store = apart(server)
    begin(store, "stage")
    with Stage(tmp_path / "a", reaching(), store=store) as stage:
        family(stage)
        soon = max(T0, time.time_ns() // 1_000_000) + DAY  # the command goes by the machine's clock
        stage.engine.list_put("blocked", "user", "u1", expires=soon, reason="chargeback", author="ana")
        stage.engine.list_put("blocked", "user", "u9", expires=1)
        stage.engine.list_put("blocked", "device", "d9")
        path = next(iter(near(stage.engine, "device", "d1")))
    show = ["lists", "show"]
    where = ["--store", store, "--rules", str(tmp_path / "a")]
    assert cli.run([*show, "blocked", *where]) == 0
    told = capsys.readouterr()
    assert "138" not in told.out
    lines = told.out.splitlines()
    assert len(lines) == 2
    assert told.err == "2 entries on blocked\n"
    assert any("chargeback, by ana" in line and "until 20" in line and path in line for line in lines)
    assert any(line.startswith("device ") and "for good" in line for line in lines)
    assert cli.run([*show, "near_1", "device", *where, "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["entity"], entry["reason"], entry["distance"]) == ("device", "chargeback", 1)
    assert [one["path"] for one in entry["paths"]] == [path]
    assert cli.run([*show, "near_2", *where]) == 0
    assert f"path {path} from blocked in 2 steps: user " in capsys.readouterr().out
    for words, said in (
        (["blokked"], "blocked"),
        (["blocked", "phon"], "phone"),
    ):
        assert cli.run([*show, *words, *where]) != 0
        assert f"did you mean {said}?" in capsys.readouterr().err
    assert cli.run([*show, "blocked", "--store", "memory://", "--rules", str(tmp_path / "a")]) != 0
    assert "lists of the memory store are in the process that serves" in capsys.readouterr().err


def test_a_shared_store_is_rebuilt_with_it(tmp_path: Path, server: str) -> None:
    journal = f"sqlite:///{tmp_path / 'journal.db'}"
    store = apart(server)
    begin(store, "stage")
    with Stage(tmp_path / "a", reaching(), store=store, journal=journal) as stage:
        family(stage)
        stage.engine.list_put("blocked", "user", "u1")
        stage.actions([by("e1", 2000, "u1", "d3"), by("e2", 2001, "u4", "d3")])
        known = everything(stage.engine)
        stage.engine.export_state(tmp_path / "state")
        definition = stage.engine.definition
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RISKENGINE_HASH_KEY", KEY.decode())
        from_journal_urls(store, definition, [journal], Rebuilt())
    with Stage(tmp_path / "b", reaching(), store=store) as stage:
        stage.now = T0 + 5000
        assert everything(stage.engine) == known
        assert sum(map(len, known.values())) == 4
    other = apart(server)
    begin(other, "stage")
    with Stage(tmp_path / "c", reaching(), store=other) as stage:
        stage.now = T0 + 5000
        stage.engine.import_state(tmp_path / "state")
        assert everything(stage.engine) == known


def test_it_outlives_another_policy(tmp_path: Path) -> None:
    with Stage(tmp_path, reaching()) as stage:
        family(stage)
        stage.engine.list_put("blocked", "user", "u1")
        known = everything(stage.engine)
        other = reaching()
        del other["lists"]["blocked"]["spreads"]
        stage.reload(other)
        assert everything(stage.engine) == known
        stage.engine.score(by("e1", 2000, "u1", "d4"))
        assert near(stage.engine, "device", "d4") == {}, "this policy spreads nothing"
        stage.reload(reaching())
        assert everything(stage.engine) == known
        stage.engine.score(by("e2", 3000, "u1", "d4"))
        assert list(near(stage.engine, "device", "d4").values()) == [1]
        stage.reload(other)
        assert stage.engine.list_delete("blocked", "user", "u1")
        assert sum(map(len, everything(stage.engine).values())) == 0


def test_a_block_older_than_the_policy_is_passed_on(tmp_path: Path) -> None:
    plain = reaching()
    del plain["lists"]["blocked"]["spreads"]
    with Stage(tmp_path, plain) as stage:
        stage.engine.list_put("blocked", "user", "u1")
        stage.reload(reaching())
        stage.engine.score(by("e1", 1, "u1", "d1"))
        (found,) = near(stage.engine, "device", "d1")
        assert stage.engine.lift(found)
        assert near(stage.engine, "device", "d1") == {}


def test_what_came_while_the_store_was_away_is_caught_up(tmp_path: Path) -> None:
    with running() as server:
        store = apart(server.url, timeout=400)
        begin(store, "stage")
        with Stage(tmp_path, reaching(), store=store) as stage:
            stage.engine.list_put("blocked", "user", "u1")
            stage.now = T0 + 1000
            assert stage.engine.score(by("e1", 1, "u1", "d1")).flags == ()
            server.hold(True)
            decision = stage.engine.score(by("e2", 2, "u1", "d2"))
            assert (decision.flags, decision.action) == (("degraded:store",), "deny")
            decision = stage.engine.score(by("e3", 3, "u3", "d1"))
            assert decision.reasons[0].message is not None
            assert "user -> device (1 step" in (decision.reasons[0].message.en or ""), "known by heart"
            server.hold(False)
            deadline = time.monotonic() + 60
            n = 0
            while stage.engine.score(by(f"p{n}", 4, f"p{n}")).flags:
                n += 1
                assert time.monotonic() < deadline, "it never came back"
            assert list(near(stage.engine, "device", "d2").values()) == [1]
            assert list(near(stage.engine, "user", "u3").values()) == [2]


def test_who_lifts_a_block_undoes_what_another_marks_meanwhile(tmp_path: Path, server: str) -> None:
    """One engine marks before it has learned that the other has lifted the block."""
    store = apart(server)
    begin(store, "stage")
    with (
        Stage(tmp_path / "a", reaching(), store=store) as one,
        Stage(tmp_path / "b", reaching(), store=store) as other,
    ):
        one.engine.list_put("blocked", "user", "u1")
        assert other.engine.score(by("e1", 1, "u1", "d1")).action == "deny"
        edits = other.engine._store.lists.all_paths()
        late = [PathEdit(*edit) for edit in edits]
        assert one.engine.list_delete("blocked", "user", "u1")
        one.engine._store.spread(late)  # as if it had come after
        for stage in (one, other):
            assert near(stage.engine, "device", "d1") == {}
            assert stage.engine.score(by(f"e{id(stage)}", 5, "u9", "d1")).action == "allow"
        one.engine.list_put("blocked", "user", "u7")  # and whoever puts the next takes it out
        assert list(one.engine._store.lists.all_paths()) == []


# -- over HTTP


def test_a_sidecar_shows_paths_and_lifts_by_them(tmp_path: Path) -> None:
    write(tmp_path / "rules", reaching())
    served = start(tmp_path)
    try:
        with Client(f"http://127.0.0.1:{served.port}", deadline=60) as client:
            event = {"type": "coupon_claim", "user_id": "u1", "device_id": "d1"}
            client.score({**event, "event_id": "e1"})
            client.list_put("blocked", "user", "u1", reason="chargeback", author="ana")
            entry = client.list_get("near_1", "device", "d1")
            assert entry is not None
            (path,) = entry["paths"]
            assert (entry["reason"], entry["distance"], path["distance"]) == ("chargeback", 1, 1)
            decision = client.score({**event, "event_id": "e2", "user_id": "u2"})
            assert decision.action == "challenge"
            assert decision.reasons[0].message is not None
            assert path["path"] in (decision.reasons[0].message.en or "")
            told = client.path(path["path"])
            assert told is not None
            assert (told["list"], told["entity"], told["reason"]) == ("blocked", "user", "chargeback")
            assert [one["distance"] for one in told["reached"]] == [1, 2]
            assert client.lift(path["path"])
            assert not client.lift(path["path"])
            assert client.path(path["path"]) is None
            assert client.list_get("near_1", "device", "d1") is None
            assert client.score({**event, "event_id": "e3"}).action == "allow"
    finally:
        assert served.stop() == 0
