"""The policies of this repository: without findings, fully tested, within the memory bound, as promised."""

from __future__ import annotations

import itertools
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage import memory

from riskengine import Decision, Engine
from riskengine.check import explain_text, findings_of
from riskengine.definition import Definition, Limit, Rule
from riskengine.footprint import ENTITY_BYTES_MAX, state_bytes
from riskengine.packing import HEADER
from riskengine.policy import examine, load_definition
from riskengine.ruletest import render_report, run_tests
from riskengine.simulate import simulate
from riskengine.spreads import links_of

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "rules"
POLICIES = [RULES, *(ROOT / "benchmarks" / name / "rules" for name in ("handbook", "first", "six"))]


@pytest.fixture(scope="module")
def shipped() -> Definition:
    return load_definition(RULES)


def test_nothing_is_found_wrong() -> None:
    assert findings_of(examine(RULES)) == []


def test_the_handbook_policy_keeps_features_for_a_model_to_come() -> None:
    assert {finding.code for finding in findings_of(examine(POLICIES[1]))} <= {"unused-feature"}


@pytest.mark.parametrize("rules", POLICIES, ids=lambda path: path.parent.name)
def test_an_entity_stays_small(rules: Path) -> None:
    bytes_of = {entity: sum(of.values()) for entity, of in state_bytes(load_definition(rules)).items()}
    assert {entity: size for entity, size in bytes_of.items() if size > ENTITY_BYTES_MAX} == {}


def test_a_campaign_keeps_every_entity_within_what_check_says(shipped: Definition) -> None:
    bound = {entity: sum(of.values()) for entity, of in state_bytes(shipped).items()}
    events = simulate(seed=5, days=2, users=1_500).events
    now = np.maximum.accumulate(np.array([event["time"] for event in events], np.int64))
    largest: dict[str, int] = {}
    with Engine.open(shipped) as engine:
        assert all(isinstance(done, Decision) for done in engine.score_many(events, now=now))
        for _, entity, value in memory(engine).values():
            largest[entity] = max(largest.get(entity, 0), len(value) - HEADER)
    assert {entity for entity, size in largest.items() if size > bound[entity]} == set()
    assert set(largest) >= {"user", "device", "ip", "merchant", "account", "address", "charge", "code"}


def test_every_rule_and_limit_is_shown_firing_and_not() -> None:
    report = run_tests(RULES, coverage=True)
    assert report.ok, render_report(report)


def test_the_handbook_rules_do_what_they_say() -> None:
    report = run_tests(POLICIES[1])
    assert report.ok, render_report(report)


def test_every_shipped_model_fits() -> None:
    names = [path.name for path in (ROOT / "models").iterdir() if path.is_dir()]
    assert names
    for name in names:
        with Engine.open(RULES, model=name) as engine:
            decision = engine.score(
                {"event_id": "e", "type": "qr_scan", "user_id": "u", "code_id": "c", "device_id": "d"}
            )
        assert decision.model is not None
        assert decision.model.name == name
        assert 0 <= decision.model.p <= 1


def test_what_acts_says_why_in_both_languages(shipped: Definition) -> None:
    """A customer or an agent reads these; a rule in shadow will act one day."""
    silent = [
        item.name
        for item in rules_and_limits(shipped)
        if item.message is None or not item.message.zh or not item.message.en
    ]
    assert silent == []


def test_everything_has_an_owner(shipped: Definition) -> None:
    assert [item.name for item in rules_and_limits(shipped) if item.owner is None] == []


def test_everything_says_when_it_is_wrong(shipped: Definition) -> None:
    """Whoever tunes a rule, or answers somebody whom it hit, wants to know whom it was not meant for."""
    everything = rules_and_limits(shipped)
    assert [item.name for item in everything if not item.wrong_when] == []
    told = [item.wrong_when for item in everything]
    assert len(set(told)) == len(told)
    shown = explain_text(shipped)
    assert [text for text in told if text is not None and text not in shown] == []


def test_every_alert_is_told_of_in_both_languages(shipped: Definition) -> None:
    assert len(shipped.alerts) >= 5
    for alert in shipped.alerts.values():
        assert alert.message is not None, alert.name
        assert alert.message.zh, alert.name
        assert alert.message.en, alert.name
        assert alert.owner, alert.name


def test_every_feature_is_used(shipped: Definition) -> None:
    """Without a model a counter that no rule reads is only a cost."""
    sources = [rule.when.source for rule in shipped.rules.values()]
    sources += [feature.value.source for feature in shipped.features.values() if feature.value is not None]
    spreads = [known.spreads for known in shipped.lists.values() if known.spreads is not None]
    sources += [link.name for spread in spreads for link in links_of(spread, shipped.features)]
    assert [name for name in shipped.features if not any(name in source for source in sources)] == []


def test_a_policy_of_every_day_size(shipped: Definition) -> None:
    """What the pack promises: its event types, most aggregates, rules live and in shadow."""
    assert set(shipped.events) == {"coupon_claim", "qr_scan", "payment", "refund", "credential_change"}
    assert len(shipped.features) >= 30
    assert len(shipped.limits) >= 10
    assert len(shipped.rules) >= 40
    assert {rule.mode for rule in shipped.rules.values()} == {"live", "shadow"}
    assert {feature.aggregate for feature in shipped.features.values()} >= {
        "count", "distinct", "sum", "mean", "min", "max", "std", "rate",
        "since_first", "since_last", "previous", "speed", "value",
    }  # fmt: skip


def test_the_readme_counts_right_and_names_what_there_is(shipped: Definition) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    counted = len(shipped.rules), len(shipped.limits), len(shipped.alerts), len(shipped.features)
    assert "{} rules, {} limits and {} alerts on {} features".format(*counted) in readme
    section = readme.split("## What the shipped rules cover")[1].split("\n## ")[0]
    table = "".join(line for line in section.splitlines() if line.startswith("| ") and "`rules/`" not in line)
    whole = re.findall(r"(?<![\w-])[a-z]+(?:-[a-z]+){1,9}\b(?!-?\\)", table.split("| stopped |")[0])
    known = {*shipped.rules, *shipped.limits, *shipped.alerts}
    assert [name for name in whole if name not in known] == []


def test_the_sample_shows_every_action_and_spares_ordinary_customers() -> None:
    lines = (RULES / "samples" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    known_ms = itertools.accumulate((time_ms(event["time"]) for event in events), max)
    with Engine.open(RULES) as engine:
        decisions = engine.score_many(events, now=np.array([*known_ms], np.int64))
    actions, hit = set(), []
    for event, decision in zip(events, decisions, strict=True):
        assert isinstance(decision, Decision)
        actions.add(decision.action)
        if decision.fired and not is_incident(event):
            hit.append((event["event_id"], decision.fired))
    assert actions == {"allow", "review", "challenge", "deny"}
    assert hit == []


def rules_and_limits(definition: Definition) -> list[Rule | Limit]:
    return [*definition.rules.values(), *definition.limits.values()]


def is_incident(event: dict[str, Any]) -> bool:
    """What the sample has of abuse and accidents: a farm, a card tester, a copied code, a double charge."""
    return (
        event["user_id"].startswith(("farm", "tester"))
        or event.get("code_id") == "code-7777"
        or event.get("order_id") == "o900"
        or event.get("campaign_id") == "summer-coupons"
    )


def time_ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1_000)
