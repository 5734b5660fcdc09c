"""Models in the engine: found or refused, asked in the one pass, part of the risk, and able to say why."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import naive
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelled import predicted, write_model
from stage import DAY, HOUR, MINUTE, Stage, claim, payment, policy, write

from riskengine import Decision, Engine, PolicyError, RiskEngineError, cli, warming
from riskengine.check import check
from riskengine.demo.stories import tell
from riskengine.files import open_output
from riskengine.forest import walk
from riskengine.judge import Judge, Result
from riskengine.models import (
    REASON_RISK_MIN,
    REASONS_MAX,
    Model,
    blame,
    models_folders,
    served_fingerprint,
)
from riskengine.modeltext import ModelError
from riskengine.policy import definition_fingerprint, load_definition
from riskengine.ruletest import run_tests
from riskengine.shipped import shipped
from riskengine.simulate import HONEST

FEATURES = {
    "claims_1d": {"count": "coupon_claim", "by": "user", "over": "1d"},
    "device_users_7d": {"distinct": "user", "on": "coupon_claim", "by": "device", "over": "7d"},
    "user_age": {"since_first": "any", "by": "user"},
    "previous_score": {"previous": "score", "by": "user"},
    "is_big": {"value": "amount > 50"},
    "last_campaign": {"previous": "campaign_id", "by": "user"},
}
KINDS = ("coupon_claim", "payment")
MEASURED = ("claims_1d", "device_users_7d", "user_age", "previous_score", "is_big")
EVENTS = [
    claim(f"e{i}", i * MINUTE, user_id=f"u{i % 7}", device_id=f"d{i % 3}", score=i % 5, campaign_id="c")
    for i in range(60)
] + [payment(f"p{i}", HOUR + i * MINUTE, amount=i * 9, user_id=f"u{i % 7}") for i in range(20)]  # fmt: skip


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A folder for a policy, with two models beside it."""
    folder = write(tmp_path / "rules", policy(features=FEATURES))
    definition = load_definition(folder)
    write_model(tmp_path / "models" / "m1", definition, MEASURED)
    curve = {"kind": "isotonic", "x": [0.2, 0.5, 0.9], "y": [0.1, 0.6, 0.8]}
    write_model(tmp_path / "models" / "m2", definition, MEASURED[:2], seed=1, calibration=curve)
    return folder


def sections(**more: Any) -> dict[str, Any]:
    return policy(features=FEATURES, **more)


def opened(folder: Path, /, **more: Any) -> Stage:
    return Stage(folder, sections(**more))


def scored(stage: Stage, events: list[dict[str, Any]] = EVENTS, together: int = 16) -> list[Decision]:
    found: list[Decision] = []
    for at in range(0, len(events), together):
        part = events[at : at + together]
        now = np.array([event["time"] for event in part])
        found += [d for d in stage.engine.score_many(part, True, now) if isinstance(d, Decision)]
    assert len(found) == len(events)
    return found


def plain(decisions: Sequence[Result]) -> list[Result]:
    """Without features, as they are journaled."""
    return [
        msgspec.structs.replace(result, features=msgspec.UNSET) if isinstance(result, Decision) else result
        for result in decisions
    ]


def row_of(decision: Decision) -> Mapping[str, Any]:
    assert isinstance(decision.features, Mapping)
    return decision.features


# ---- p, and what follows from it


def test_the_champion_is_lightgbm_to_the_bit(rules: Path) -> None:
    booster = write_model(rules.parent / "models" / "m1", load_definition(rules), MEASURED)
    with opened(rules, model="m1") as stage:
        decisions = scored(stage)
    for decision in decisions:
        assert decision.model is not None
        assert decision.model.name == "m1"
        assert decision.model.p == predicted(booster, row_of(decision))
        assert decision.risk == 1.0 - (1.0 - decision.model.p)
    assert len({decision.risk for decision in decisions}) > 5
    assert any(row_of(decision)["previous_score"] is None for decision in decisions)


def test_the_calibrated_score_is_the_one_that_counts(rules: Path) -> None:
    with opened(rules, model="m2") as stage:
        scores = [d.model.p for d in scored(stage) if d.model is not None]
    assert min(scores) >= 0.1
    assert max(scores) <= 0.8


def test_rules_and_thresholds_see_the_score(rules: Path) -> None:
    rule = {"on": "any", "when": "model.p >= 0.5", "then": "deny", "mode": "live", "risk": 0.5}
    unsaid = {"on": "any", "when": "missing(model.p)", "then": "challenge", "mode": "live"}
    with opened(rules, model="m1", rules={"likely": rule, "unsaid": unsaid}) as stage:
        for decision in scored(stage):
            assert decision.model is not None
            p = decision.model.p
            assert decision.fired == (("likely",) if p >= 0.5 else ())
            assert decision.risk == 1.0 - (1.0 - p) * (1.0 - 0.5 if p >= 0.5 else 1.0)
    with opened(rules, model="m1", decide={"coupon_claim": {"review": 0.3, "deny": 0.6}}) as stage:
        for decision in scored(stage):
            assert decision.model is not None
            levels = {"allow": (0, 0.3), "review": (0.3, 0.6), "deny": (0.6, 1.1)}
            low, high = levels[decision.action]
            is_claim = decision.event_id.startswith("e")
            assert low <= decision.risk < high if is_claim else decision.action == "allow"


def test_events_of_other_types_than_it_was_trained_on_have_no_score(rules: Path) -> None:
    definition = load_definition(rules)
    write_model(rules.parent / "models" / "m1", definition, MEASURED, types=["payment", "of another policy"])
    unsaid = {"on": "any", "when": "missing(model.p)", "then": "review", "mode": "live"}
    with opened(rules, model="m1", challengers=["m2"], rules={"unsaid": unsaid}) as stage:
        for decision in scored(stage):
            scored_ = decision.event_id.startswith("p")
            assert (decision.model is not None) == scored_
            assert decision.fired == (() if scored_ else ("unsaid",))
            assert decision.risk > 0 if scored_ else decision.risk == 0
            assert isinstance(decision.challengers, dict)
            assert set(decision.challengers) == {"m2"}


def test_without_a_model_nothing_is_said(rules: Path) -> None:
    with opened(rules) as stage:
        for decision in scored(stage):
            assert (decision.model, decision.risk, decision.challengers) == (None, 0.0, msgspec.UNSET)
            assert b"challengers" not in msgspec.json.encode(decision)


def test_batches_columns_and_lone_events_agree(rules: Path) -> None:
    more = {"decide": {"coupon_claim": {"review": 0.3}, "payment": {"challenge": 0.2}}}
    answers = []
    for together in (1, 2, 7, 80):
        with opened(rules, model="m1", challengers=["m2"], **more) as stage:
            answers.append(scored(stage, together=together))
    assert answers[0] == answers[1] == answers[2] == answers[3]
    assert {decision.action for decision in answers[0]} == {"allow", "review", "challenge"}


# ---- reasons


def test_a_decision_that_is_not_allow_says_what_the_model_saw(rules: Path) -> None:
    with opened(rules, model="m1", decide={kind: {"review": 0.4} for kind in KINDS}) as stage:
        decisions = scored(stage)
        model = Model.load(rules.parent / "models" / "m1")
    blamed = [decision for decision in decisions if decision.action != "allow"]
    assert 5 < len(blamed) < len(decisions)
    assert all(decision.reasons == () for decision in decisions if decision.action == "allow")
    for decision in blamed:
        assert decision.model is not None
        row = row_of(decision)
        values = [np.nan if row[name] is None else float(row[name]) for name in MEASURED]
        every = np.arange(len(MEASURED))
        share = model.forest.contributions(np.array(values)[:, None], every, np.zeros(1, np.int64))[0]
        raised = np.maximum(share, 0).sum()
        parts = {
            name: max(part, 0) * (decision.model.p / raised)
            for name, part in zip(MEASURED, share, strict=True)
        }
        order = sorted(MEASURED, key=lambda name: -parts[name])
        expected = [(f"model:{name}", parts[name]) for name in order if parts[name] >= REASON_RISK_MIN]
        assert [(reason.rule, reason.risk) for reason in decision.reasons] == expected[:REASONS_MAX]
        assert sum(reason.risk for reason in decision.reasons) <= decision.model.p + 1e-12
        for reason in decision.reasons:
            assert reason.message is not None
            assert reason.message.en == said(reason.rule.removeprefix("model:"), row)
    told = {reason.message for decision in blamed for reason in decision.reasons}
    assert any(message and message.zh and message.zh.endswith(" 缺失") for message in told)


@given(st.data(), st.integers(1, 4), st.integers(1, 6), st.integers(1, 4))
def test_who_is_to_blame_is_found_as_its_twin_finds_it(
    data: st.DataObject, n: int, features: int, most: int
) -> None:
    few = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 0.5, 5e-324])  # with equal ones
    share = few | st.floats(-10, 10)
    shares = data.draw(
        st.lists(st.lists(share, min_size=features, max_size=features), min_size=1, max_size=5)
    )
    p = data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n))
    rows = data.draw(st.lists(st.integers(0, n - 1), min_size=len(shares), max_size=len(shares)))
    columns = data.draw(st.permutations(range(features + 2)))[:features]
    cells = np.arange(float((features + 2) * n)).reshape(-1, n)
    shape = len(shares), most
    found, parts, values = np.full(shape, -1), np.full(shape, np.nan), np.full(shape, np.nan)
    blame(
        np.array(shares), np.array(p), cells, np.array(columns), np.array(rows), found, parts, values
    )  # fmt: skip
    for i, row in enumerate(rows):
        known = naive.blame(shares[i], p[row], most)
        known = [(f, part) for f, part in known if part > 0]  # a part may be too small to be one
        assert list(zip(found[i].tolist(), parts[i].tolist(), strict=True))[: len(known)] == known
        assert parts[i, len(known) :].tolist() == [0.0] * (most - len(known))
        assert values[i].tolist() == [cells[columns[f], row] for f in found[i].tolist()]


def said(name: str, row: Mapping[str, Any]) -> str:
    value = row[name]
    if value is None:
        return f"{name} is missing"
    if isinstance(value, bool):
        return f"{name} = {'true' if value else 'false'}"
    return f"{name} = {value:.0f}{' s' if name == 'user_age' else ''}"


def test_reasons_of_rules_come_first_and_small_ones_not_at_all(rules: Path) -> None:
    always = {"on": "any", "when": "true", "then": "review", "risk": 0.25, "mode": "live"}
    with opened(rules, model="m1", rules={"always": always}) as stage:
        decisions = scored(stage)
    assert all(decision.reasons[0].rule == "always" for decision in decisions)
    assert {decision.fired for decision in decisions} == {("always",)}
    assert all(reason.risk >= REASON_RISK_MIN for decision in decisions for reason in decision.reasons)
    assert {len(decision.reasons) for decision in decisions} > {2, 4}


def test_a_retry_has_the_same_reasons_and_from_the_journal_too(rules: Path, tmp_path: Path) -> None:
    more = {"model": "m1", "challengers": ["m2"], "decide": {"coupon_claim": {"review": 0.3}}}
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    with Stage(rules, sections(**more), journal=url) as stage:
        first = scored(stage)
        stage.now = EVENTS[-1]["time"]
        assert plain(stage.engine.score_many(EVENTS)) == plain(first)
    assert any(decision.reasons for decision in first)
    with Stage(rules, sections(**more), journal=url) as stage:
        stage.now = EVENTS[-1]["time"] + DAY  # late: the journal is asked first
        again = stage.engine.score_many(EVENTS)
    assert plain(again) == plain(first)


# ---- challengers


def test_challengers_are_asked_and_act_on_nothing(rules: Path) -> None:
    with opened(rules, model="m2") as stage:
        alone = {d.event_id: d.model.p for d in scored(stage) if d.model is not None}
    thresholds = {"coupon_claim": {"review": 0.3}}
    with opened(rules, model="m1", decide=thresholds) as stage:
        champion = scored(stage)
    with opened(rules, model="m1", challengers=["m2"], decide=thresholds) as stage:
        both = scored(stage)
    for one, other in zip(champion, both, strict=True):
        assert other.challengers == {"m2": alone[one.event_id]}
        same = msgspec.structs.replace(
            other, challengers=msgspec.UNSET, policy=one.policy, decision_id=one.decision_id
        )
        assert same == one
    with opened(rules, model="none", challengers=["m2", "m1"]) as stage:
        for decision in scored(stage):
            assert decision.model is None
            assert decision.risk == 0
            assert isinstance(decision.challengers, dict)
            assert list(decision.challengers) == ["m2", "m1"]


def test_challengers_are_written_to_files(rules: Path, tmp_path: Path) -> None:
    with opened(rules, model="m1", challengers=["m2"]) as stage:
        decisions = scored(stage)
    with open_output(str(tmp_path / "d.parquet")) as output:
        output.write(decisions)
    rows = pq.read_table(tmp_path / "d.parquet").to_pylist()
    assert [dict(row["challengers"]) for row in rows] == [decision.challengers for decision in decisions]


# ---- what is refused, and where models are looked for


def refused(rules: Path, /, **more: Any) -> str:
    with pytest.raises(PolicyError) as caught:
        opened(rules, **more)
    told = [finding for finding in check(rules) if finding.severity == "error"]
    assert told == list(caught.value.findings), "check says what opening says"
    return str(caught.value)


def test_a_model_that_is_not_there(rules: Path) -> None:
    text = refused(rules, model="m12")
    column = (rules / "policy.yaml").read_text(encoding="utf-8").index('"m12"') + 1
    assert f"{rules / 'policy.yaml'}:1:{column}: error: there is no model m12 in" in text
    assert str(rules.parent / "models") in text
    assert "did you mean m" in text
    assert "or say `model: none`" in text
    assert "there is no model x in" in refused(rules, model="m1", challengers=["m2", "x"])


def test_a_model_of_other_features(rules: Path) -> None:
    changed = {**FEATURES, "claims_1d": {"count": "coupon_claim", "by": "device", "over": "1d"}}
    del changed["is_big"]
    with pytest.raises(PolicyError) as caught:
        Stage(rules, policy(features=changed, model="m1"))
    assert "feature claims_1d is defined in another way now; there is no feature is_big" in str(caught.value)
    assert [finding.code for finding in check(rules)].count("no-model") == 1
    with Stage(rules, policy(features=changed, model="none")) as stage:
        assert stage.engine.score(claim("a")).model is None


def test_a_model_asked_with_text(rules: Path) -> None:
    definition = load_definition(rules)
    write_model(rules.parent / "models" / "text", definition, ["claims_1d", "last_campaign"])
    assert "feature last_campaign is a string, and a model is asked with numbers" in refused(
        rules, model="text"
    )


def test_a_model_of_other_events(rules: Path) -> None:
    write_model(rules.parent / "models" / "other", load_definition(rules), MEASURED, types=["login"])
    assert "it was trained on login, which are no events of the policy" in refused(rules, model="other")


def test_a_folder_that_is_damaged(rules: Path) -> None:
    (rules.parent / "models" / "m1" / "model.txt").write_text("x", encoding="utf-8")
    assert "model m1 cannot be used: " in refused(rules, model="m1")


def test_a_model_is_named_once(rules: Path) -> None:
    assert "model m1 is named twice" in refused(rules, model="m1", challengers=["m1"])
    assert "`challengers` is a list" in refused(rules, challengers="m1")


def test_a_reload_is_refused_and_the_old_policy_goes_on(rules: Path) -> None:
    with opened(rules, model="m1") as stage:
        before = stage.engine.score(claim("a"))
        with pytest.raises(PolicyError, match="there is no model m3"):
            stage.reload(sections(model="m3"))
        assert stage.engine.fingerprint == before.policy
        assert stage.engine.score(claim("b")).model is not None
        stage.reload(sections(model="m2"))
        after = stage.engine.score(claim("c")).model
        assert after is not None
        assert after.name == "m2"
        stage.reload(sections(model="none"))
        assert stage.engine.score(claim("d")).model is None


def test_models_are_looked_for_beside_the_rules_then_here(
    rules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    with opened(rules, model="m1") as stage:
        beside = stage.engine.score(claim("a")).model
    shutil.move(rules.parent / "models", here / "models")
    with opened(rules, model="m1") as stage:
        assert stage.engine.score(claim("a")).model == beside
    write_model(rules.parent / "models" / "m1", load_definition(rules), MEASURED, seed=9)
    with opened(rules, model="m1") as stage:
        assert stage.engine.score(claim("a")).model != beside, "beside the rules comes first"
    assert models_folders(str(rules)) == [rules.parent / "models", Path("models"), shipped("models")]
    assert models_folders(str(shipped("rules"))) == [shipped("models"), Path("models")]
    assert models_folders(None) == [Path("models"), shipped("models")]
    monkeypatch.chdir(rules)
    assert models_folders(".")[0] == Path("../models")
    with Engine.open(".", model="m1") as engine:
        assert engine.definition.model == "m1"


def test_another_model_of_the_same_name_is_another_policy(rules: Path) -> None:
    with opened(rules, model="m1") as stage:
        first = stage.engine.score(claim("a"))
        assert stage.engine.fingerprint == served_fingerprint(load_definition(rules))
    write_model(rules.parent / "models" / "m1", load_definition(rules), MEASURED, seed=9)
    with opened(rules, model="m1") as stage:
        second = stage.engine.score(claim("a"))
    assert first.policy != second.policy
    assert first.decision_id != second.decision_id
    with opened(rules) as stage:
        assert stage.engine.fingerprint == definition_fingerprint(load_definition(rules))


def test_another_model_than_the_policys(rules: Path) -> None:
    write(rules, sections(model="m1", challengers=["m2"]))
    definition = load_definition(rules)
    with Engine.open(definition, model="m2") as engine:
        model = engine.score(claim("a")).model
        assert model is not None
        assert model.name == "m2"
        assert engine.definition.challengers == ()
    with Engine.open(rules, model="none") as engine:
        decision = engine.score(claim("a"))
        assert (decision.model, decision.challengers) == (None, msgspec.UNSET)
        engine.reload(rules)
        assert engine.score(claim("b")).model is None, "as it was opened"
    with pytest.raises(ModelError, match=r"^there is no model m3 in .*\. Train one \(riskengine train"):
        Engine.open(rules, model="m3")
    with pytest.raises(RiskEngineError, match=r"there is no model \.\./models/m1"):
        Engine.open(rules, model="../models/m1")


# ---- the commands


def test_the_commands_know_models(rules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(rules, sections(model="m1", decide={"coupon_claim": {"review": 0.3}}))
    source, target = tmp_path / "e.jsonl", tmp_path / "d.jsonl"
    source.write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in EVENTS))

    def models(*more: str) -> set[str | None]:
        arguments = ["score", "--rules", str(rules), "--in", str(source), "--out", str(target), *more]
        assert cli.run(arguments) == 0
        lines = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
        assert len(lines) == len(EVENTS)
        return {line["model"] and line["model"]["name"] for line in lines}

    assert models() == {"m1"}
    assert models("--model", "m2") == {"m2"}
    assert models("--model", "none") == {None}
    assert cli.run(["score", "--rules", str(rules), "--in", str(source), "--out", "-", "--model", "m9"]) == 2
    sys.stdout.flush()
    assert "there is no model m9" in capsys.readouterr().err
    write(rules, sections(model="m9"))
    assert cli.run(["check", str(rules)]) == 1
    assert "error: there is no model m9" in capsys.readouterr().out
    rows = tmp_path / "rows.parquet"
    replay = ["replay", "--rules", str(rules), "--in", str(source), "--out", str(rows)]
    assert cli.run(replay) == 0, "rows are what a new model is trained on: they need none"
    assert pq.read_table(rows).num_rows == len(EVENTS)


def test_rule_tests_run_with_the_model(rules: Path) -> None:
    rule = {"on": "any", "when": "model.p > 0", "then": "review", "mode": "live"}
    write(rules, sections(model="m1", rules={"asked": rule}))
    (rules / "a.test.yaml").write_text(
        """
start: 2026-11-11T00:00:00+08:00
tests:
  - name: every event has a score
    events:
      - {at: 0s, type: coupon_claim, user_id: u1, expect: {action: review, fired: [asked]}}
""",
        encoding="utf-8",
    )
    assert run_tests(rules).ok


def test_a_story_tells_of_the_model(rules: Path) -> None:
    always = {"on": "any", "when": "true", "then": "review", "risk": 0.25, "mode": "live"}
    with opened(rules, model="m1", rules={"always": always}) as stage:
        decision = scored(stage)[-1]
        story = tell("A payment", EVENTS[-1], decision, HONEST, stage.engine.definition)
    assert decision.model is not None
    p, risk = decision.model.p, decision.risk
    assert story.risk == f"Risk = 1 - (1 - {p:.2f}) x (1 - 0.25) = {risk:.2f}."
    assert [because.name for because in story.because] == [reason.rule for reason in decision.reasons]
    assert story.because[1].does == f"{decision.reasons[1].risk:.2f} of the model's risk"
    assert story.because[1].message.startswith(decision.reasons[1].rule.removeprefix("model:"))


def test_only_a_policy_with_a_model_waits_for_its_kernels(
    rules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(warming, "is_cached", lambda kernel: kernel is not walk)
    monkeypatch.setattr(Judge, "rehearse", lambda judge: asked.append(judge.policy.definition.model))
    for more in ({}, {"model": "m1"}, {"challengers": ["m2"]}):
        opened(rules, **more).engine.close()
    assert asked == ["m1", None]


def test_a_journal_is_replayed_without_its_model(rules: Path, tmp_path: Path) -> None:
    from riskengine.journal import Journal
    from riskengine.replay import replay_journal
    from riskengine.rows import RowsFile

    url = f"sqlite:///{tmp_path / 'journal.db'}"
    with Stage(rules, sections(model="m1"), journal=url) as stage:
        scored(stage)
    definition = load_definition(rules)
    journal = Journal.open(url)
    rows = str(tmp_path / "rows.parquet")
    found = replay_journal(definition, journal.replay(), lambda policy: RowsFile(rows, policy))
    journal.close()
    assert (found.events, found.same, found.incomparable) == (len(EVENTS), len(EVENTS), 0)
