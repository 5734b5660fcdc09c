"""Warnings about policies that load, the four formats, what --explain says, and the editors' schema."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from modelled import write_model
from snapshot import SNAPSHOTS, matches_snapshot

import riskengine
from riskengine.check import FORMATS, check, explain, explain_text, report
from riskengine.errors import Finding, Place
from riskengine.policy import examine, load_definition

SCHEMA = json.loads((Path(riskengine.__file__).parent / "policy.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
WHOLE = (SNAPSHOTS / "whole" / "policy.yaml").read_text(encoding="utf-8")
CAMPAIGNS = (SNAPSHOTS / "whole" / "campaigns.csv").read_text(encoding="utf-8")
SMALL = """\
policy: small
entities: {user: user_id}
events: {payment: {}, coupon_claim: {}}
features:
  payments_1h: {count: payment, by: user, over: 1h}
"""


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.yaml").write_text(text, encoding="utf-8")
    (folder / "campaigns.csv").write_text(CAMPAIGNS, encoding="utf-8")
    return folder


def warned(folder: Path, text: str) -> list[tuple[str, str]]:
    """Code and `found` of every finding; all of them have to be warnings."""
    findings = check(write(folder, text))
    assert {finding.severity for finding in findings} <= {"warning"}, findings
    return [(finding.code, finding.found or "") for finding in findings]


def rule(when: str, more: str = "") -> str:
    return (
        f"{SMALL}rules:\n  used: {{when: payments_1h > 1}}\n  r:\n    when: {json.dumps(when)}\n    {more}\n"
    )


@pytest.mark.parametrize(
    ("when", "more"),
    [
        ("false", ""),
        ("1 > 2", ""),
        ("amount > 5 and amount < 3", ""),
        ("amount > 5 and region == 'CN' and amount <= 5", ""),
        ("5 < amount < 5.0", ""),
        ("3 > amount and 5 < amount", ""),
        ("amount == 1 and amount == 2", ""),
        ("amount * 2 > 10 and amount * 2 < 1", ""),
        ("region == 'CN' and region == 'US'", ""),
        ("region in ['CN', 'HK'] and region == 'US'", ""),
        ("payments_1h > 5 and (payments_1h < 3 and amount > 1)", ""),
        ("amount > 9 and not (amount > 9)", ""),
        ("amount > 5 and amount < 3 or 2 < 1", ""),
        ("account_created > time and account_created < account_created", ""),
        ("amount > 1 and false", ""),
        ("not true", ""),
        ("payments_1h < 0", ""),
        ("0 > payments_1h", ""),
        ("payments_1h <= -1 and amount > 1", ""),
        ("payments_1h == -1", ""),
        ("payments_1h > 2", "rollout: 0%"),
        ("order_id == 'x'", "on: coupon_claim"),
        ("discount > 1 and amount > 2", "on: coupon_claim"),
        ("discount + amount > 2", "on: coupon_claim"),
        ("matches(order_id, 'a*')", "on: coupon_claim"),
        ("amount > 2 and default(discount, 0) > 1", "on: coupon_claim"),
    ],
)
def test_a_rule_that_cannot_fire_is_told(tmp_path: Path, when: str, more: str) -> None:
    assert [code for code, _ in warned(tmp_path, rule(when, more))] == ["never"]


@pytest.mark.parametrize(
    ("when", "more"),
    [
        ("true", ""),
        ("payments_1h <= 0", ""),
        ("payments_1h >= 0", ""),
        ("payments_1h == 0", ""),
        ("payments_1h > -1", ""),
        ("payments_1h != -1", ""),
        ("amount < 0", ""),
        ("payments_1h > 2", "rollout: 1%"),
        ("amount > 3 and amount < 5", ""),
        ("amount >= 5 and amount <= 5", ""),
        ("amount > 5 or amount < 3", ""),
        ("region == 'CN' or region == 'US'", ""),
        ("region in ['CN', 'HK'] and region in ['HK', 'US']", ""),
        ("amount > 5 and discount < 3", ""),
        ("missing(order_id)", "on: coupon_claim"),
        ("not (order_id == 'x')", "on: coupon_claim"),
        ("default(discount, 5) > 1", "on: coupon_claim"),
        ("order_id == 'x'", "on: any"),
        ("amount > 1 if region == 'CN' else amount > 2", ""),
        ("1 / (amount - amount) > 2 or amount > 1", ""),
        ("not (amount > 5 and amount < 3)", ""),
        ("amount > 5 and false", "mode: 'off'"),
    ],
)
def test_a_rule_that_may_fire_is_not(tmp_path: Path, when: str, more: str) -> None:
    assert warned(tmp_path, rule(when, more)) == []


def test_why_a_rule_cannot_fire(tmp_path: Path) -> None:
    def why(when: str, more: str = "") -> str:
        return warned(tmp_path, rule(when, more))[0][1]

    assert why("amount > 5 and amount < 3") == "amount > 5 and amount < 3 cannot both hold"
    assert why("region == 'CN' and region == 'US'") == "region cannot be two texts at once"
    assert why("1 > 2") == "it is false whatever the event says"
    assert why("amount < amount") == "it compares a value with itself"
    assert why("0 > payments_1h") == "payments_1h is never below 0"
    assert why("order_id == 'x'", "on: coupon_claim") == "coupon_claim has no field order_id"


def test_a_where_that_never_holds_is_told(tmp_path: Path) -> None:
    text = SMALL.replace("over: 1h}", "over: 1h, where: amount > 2 and amount < 1}")
    text += "limits:\n  l: {count: payment, by: user, per: day, max: 1, message: No, where: 'false'}\n"
    text += "rules:\n  used: {when: payments_1h > 1}\n"
    assert [code for code, _ in warned(tmp_path, text)] == ["never", "never"]


def test_a_feature_that_nothing_uses_is_told(tmp_path: Path) -> None:
    assert [code for code, _ in warned(tmp_path / "a", SMALL)] == ["unused-feature"]
    only_by_each_other = SMALL + "  half: {value: payments_1h / 2}\n  same: {value: half}\n"
    assert [code for code, _ in warned(tmp_path / "b", only_by_each_other)] == ["unused-feature"] * 3
    by_a_rule = only_by_each_other + "rules:\n  r: {when: same > 1}\n"
    assert warned(tmp_path / "c", by_a_rule) == []
    write_model(tmp_path / "models" / "m", load_definition(tmp_path / "a"))
    assert warned(tmp_path / "d", SMALL + "model: m\n") == [], "a model may be made of any of them"


def test_a_denial_without_a_message_is_told(tmp_path: Path) -> None:
    limit = "limits:\n  l: {count: payment, by: user, per: day, max: 1, then: %s}\n"
    used = SMALL + "rules:\n  r: {when: payments_1h > 1, then: %s%s}\n"
    assert [code for code, _ in warned(tmp_path, used % ("deny", ""))] == ["no-message"]
    assert warned(tmp_path, used % ("deny", ", message: No")) == []
    assert warned(tmp_path, used % ("deny", ", mode: off")) == []
    assert warned(tmp_path, used % ("review", "")) == []
    assert [code for code, _ in warned(tmp_path, used % ("flag", "") + limit % "deny")] == ["no-message"]
    assert warned(tmp_path, used % ("flag", "") + limit % "review") == []


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("amount > 1", "amount > 1.0", True),
        ("amount > 1", "1 < amount", True),
        ("amount > 1 and region == 'CN'", "region=='CN' and (amount > 1)", True),
        ("amount > 1 and (ip == 'x' and discount > 1)", "discount > 1 and amount > 1 and ip == 'x'", True),
        ("amount > 1", "amount >= 1", False),
        ("amount - discount > 1", "discount - amount > 1", False),
        ("region == 'CN'", "region == 'US'", False),
    ],
)  # fmt: skip
def test_two_rules_with_one_condition_are_told(tmp_path: Path, first: str, second: str, same: bool) -> None:
    text = SMALL + "rules:\n  used: {when: payments_1h > 1}\n  a: {when: %s%s}\n  b: {when: %s%s}\n"

    def codes(more_a: str, more_b: str) -> list[str]:
        made = text % (json.dumps(first), more_a, json.dumps(second), more_b)
        return [code for code, _ in warned(tmp_path, made)]

    assert codes("", "") == (["same-condition"] if same else [])
    assert codes(", on: [payment, coupon_claim]", ", on: payment") == (["same-condition"] if same else [])
    assert codes(", on: coupon_claim", ", on: payment").count("same-condition") == 0
    assert codes("", ", mode: off") == []


def test_a_challenge_that_does_nothing_is_told(tmp_path: Path) -> None:
    text = SMALL + "rules:\n  r: {when: payments_1h > 1, then: review, challenge: sms}\n"
    assert [code for code, _ in warned(tmp_path, text)] == ["idle-challenge"]


def test_warnings_are_shown_with_their_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "rules", WARNINGS)
    monkeypatch.chdir(tmp_path)
    matches_snapshot("check/warnings", report(check("rules")))


WARNINGS = """\
policy: warnings
entities: {user: user_id}
events: {payment: {}, coupon_claim: {}}
features:
  payments_1h: {count: payment, by: user, over: 1h}
limits:
  once: {count: payment, by: user, per: day, max: 1}
rules:
  a: {when: amount > 5 and amount < 3, message: 不行, then: deny}
  b: {on: coupon_claim, when: order_id == 'x'}
  c: {when: amount > 100}
  d:
    when: >-
      100 < amount
    challenge: sms
"""
MIXED = [
    Finding(
        code="unknown-name", place=Place("rules/a, b.yaml", 3, 9), message="nothing here is named amont",
        found="amont", expected="a field", mend="did you mean amount?",
        source_line="  when: amont > 5%", length=5,
    ),
    Finding(
        severity="warning", code="no-message", place=Place("rules/规则.yaml", 7, 1),
        message="50% of 'x':\nno",
    ),
]  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_formats(format: Any) -> None:
    matches_snapshot(f"check/format-{format}", report(MIXED, format))
    matches_snapshot(f"check/format-{format}-nothing", report([], format))


def test_json_is_json_and_github_is_a_line_each() -> None:
    value = json.loads(report(MIXED, "json"))
    assert (value["errors"], value["warnings"]) == (1, 1)
    assert value["findings"][0]["line"] == 3
    lines = report(MIXED, "github").splitlines()
    assert [line.split()[0] for line in lines] == ["::error", "::warning"]
    assert "file=rules/a%2C b.yaml,line=3,col=9,endColumn=14" in lines[0]


def test_sarif_has_what_the_standard_asks_for() -> None:
    """The required members of SARIF 2.1.0, sections 3.13 to 3.30."""
    log = json.loads(report(MIXED, "sarif"))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = [entry["id"] for entry in run["tool"]["driver"]["rules"]]
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning")
        assert result["message"]["text"]
        place = result["locations"][0]["physicalLocation"]
        assert re.fullmatch(r"[A-Za-z0-9%/._~-]+", place["artifactLocation"]["uri"])
        assert 1 <= place["region"]["startColumn"] < place["region"]["endColumn"]


def test_explain_says_what_each_feature_costs(tmp_path: Path) -> None:
    definition = load_definition(write(tmp_path, WHOLE))
    explained = explain(definition)
    assert json.loads(json.dumps(explained)) == explained
    assert explained["features"]["ip_claims_1h"] == {
        "entity": "ip", "window": "over 1h", "bucket_ms": 60_000, "error_ms_max": 60_000, "cap": None,
        "cells": 77, "bytes_max": 77 * 11 + 16,
    }  # fmt: skip
    assert explained["features"]["device_users_7d"]["cap"] == 64
    assert explained["features"]["claim_burst"]["bytes_max"] == 0
    assert explained["limits"]["one-per-device-a-day"]["bytes_max"] == 4 * 17 + 13
    for name, entity in explained["entities"].items():
        parts = [*explained["features"].values(), *explained["limits"].values()]
        assert entity["bytes_max"] == sum(part["bytes_max"] for part in parts if part["entity"] == name)
    matches_snapshot("check/explain", explain_text(definition))


# ---- the schema and the check agree -----------------------------------------------------------------


def small(**sections: Any) -> dict[str, Any]:
    return {
        "policy": "small",
        "entities": {"user": "user_id", "ip": "ip"},
        "events": {"payment": {}, "coupon_claim": None},
        **sections,
    }


def feature(**keys: Any) -> dict[str, Any]:
    return small(features={"f": keys})


def limit(**keys: Any) -> dict[str, Any]:
    return small(limits={"l": {"by": "user", "per": "day", "max": 1, **keys}})


def a_rule(**keys: Any) -> dict[str, Any]:
    return small(rules={"r": {"when": "amount > 1", **keys}})


def spread(**said: Any) -> dict[str, Any]:
    """A policy whose list of the blocked spreads as said."""
    of = {"of": ["user", "device"]}
    return small(
        entities={"user": "user_id", "device": "device_id"},
        lists={"blocked": {**of, "spreads": said}, "near": of, "far": of},
        features={
            "user_devices": {"distinct": "device", "on": "any", "by": "user", "over": "7d"},
            "device_users": {"distinct": "user", "on": "any", "by": "device", "over": "7d"},
        },
    )


VALID: list[dict[str, Any]] = [
    small(),
    yaml.load(WHOLE, yaml.BaseLoader) | {"decide": {"payment": {"deny": 0.9}}},
    small(tenant="t", timezone="UTC", country="CN", lateness="1h30m", skew="0s", model=None),
    small(model="none", tables=None, rules={}),
    small(events={"payment": {"required": ["user_id"], "fields": {"points": "number"}, "fail": "closed"}}),
    small(events={"payment": {"fields": {"points": {"type": "number", "unit": 1e-9}, "x": {"type": "ip"}}}}),
    small(entities={"net": {"of": "ip", "as": "subnet24"}, "pair": ["user_id", "ip"]}),
    small(tables={"shops": {"key": "user", "columns": {"trust": "number", "known": "bool"}}}),
    small(lists={"blocked": {"of": ["user", "ip"]}}),
    spread(to="near", along=["user", "device"]),
    spread(to=["near", "far"], along=["device", "user"], hops=3, degree=2),
    feature(count="payment", by="user", over="1h"),
    feature(count=["payment", "coupon_claim"], by="user", per="month", delay="7d", before=True),
    feature(count="fraud", by="user", over="1h"),
    feature(count="fraud", on="payment", by="user", over="1h", where=True),
    feature(distinct="ip", by="user", over="1h", cap=4),
    feature(sum="amount", on="legit", by="user", over="1h"),
    feature(std="amount", by="user", per="week"),
    feature(max="amount", on=["payment"], by="user", over="1h"),
    feature(rate="fraud", on="any", by="user", over="1h"),
    feature(since_first="any", by="user", keep="30d"),
    feature(since_last="fraud", on="payment", by="user"),
    feature(previous="region", by="user", where="amount > 1"),
    feature(speed="location", by="user"),
    feature(value="amount * 2"),
    feature(value=1),
    limit(count="payment"),
    limit(sum="amount", on="payment", max="amount", mode="off", owner="me", tags=["a", 1], message="No"),
    limit(count="any", then="challenge", challenge="sms", where="region == 'CN'"),
    a_rule(),
    a_rule(
        on=["payment"], then="deny", risk=1, mode="live", rollout="12.5%", firm=True, message={"zh": "不行"}
    ),
    a_rule(then="allow", expires="2027-01-31T00:00:00+08:00", firm=False),
    small(rules={"规则-1": {"when": True}}),
    small(decide={"payment": {"review": 0.1, "challenge": 0.5, "deny": 1, "challenge_with": "id"}}),
    small(decide={"payment": None}),
]
BROKEN: list[dict[str, Any]] = [
    spread(to="near"),
    spread(along=["user", "device"]),
    spread(to=[], along=["user", "device"]),
    spread(to=["near", "near"], along=["user", "device"]),
    spread(to={"near": 1}, along=["user", "device"]),
    spread(to="near", along=["user"]),
    spread(to="near", along="user"),
    spread(to="near", along=["user", "device"], hops=4),
    spread(to="near", along=["user", "device"], degree=0),
    spread(to="near", along=["user", "device"], degree=2.5),
    spread(to="near", along=["user", "device"], through=["ip"]),
    small(nonsense={}),
    small(policy=""),
    small(policy="two words"),
    small(policy=["a"]),
    small(country="cn"),
    small(lateness=15),
    small(lateness="15 minutes"),
    small(timezone=8),
    small(rules=[]),
    small(events={"payment": {"fail": "close"}}),
    small(events={"payment": {"require": []}}),
    small(events={"payment": {"required": "user_id"}}),
    small(events={"payment": {"fields": {"points": "float"}}}),
    small(events={"payment": {"fields": {"points": {"unit": 1}}}}),
    small(events={"payment": {"fields": {"points": {"type": "number", "unit": 0.05}}}}),
    small(events={"payment": {"fields": {"points": {"type": "string", "unit": 1}}}}),
    small(events={"payment": {"fields": {"2nd": "string"}}}),
    small(events={"fraud": {}}),
    small(entities={"user": 5}),
    small(entities={"user": ["user_id"]}),
    small(entities={"user": ["user_id", "user_id"]}),
    small(entities={"net": {"of": "ip"}}),
    small(entities={"net": {"of": "ip", "as": "subnet16"}}),
    small(entities={"my user": "user_id"}),
    small(tables={"shops": {"columns": {}}}),
    small(tables={"shops": {"key": "user"}}),
    small(tables={"shops": {"key": "user", "columns": {"trust": "location"}}}),
    small(tables={"shops": {"key": "user", "columns": {}, "file": "x.csv"}}),
    small(lists={"blocked": {}}),
    small(lists={"blocked": {"of": []}}),
    small(lists={"blocked": {"of": "user"}}),
    small(features={"f": None}),
    small(features={"f": {}}),
    feature(cnt="payment", by="user", over="1h"),
    feature(count="payment", sum="amount", by="user", over="1h"),
    feature(count="payment", over="1h"),
    feature(count="payment", by="user"),
    feature(count="payment", by="user", over="1h", per="day"),
    feature(count="payment", by="user", over=3600),
    feature(count="payment", by="user", over="0s"),
    feature(count="payment", by="user", per="hour"),
    feature(count="payment", by="user", over="1h", before="yes"),
    feature(count="payment", by="user", over="1h", cap=5),
    feature(count="payment", on="coupon_claim", by="user", over="1h"),
    feature(count=[], by="user", over="1h"),
    feature(count=["any", "payment"], by="user", over="1h"),
    feature(count=["fraud", "payment"], by="user", over="1h"),
    feature(count={"of": "payment"}, by="user", over="1h"),
    feature(distinct="ip", by="user", over="1h", delay="1h"),
    feature(distinct="ip", by="user", over="1h", cap=0),
    feature(distinct="ip", by="user", over="1h", cap=4097),
    feature(distinct="ip", by="user", over="1h", cap=1.5),
    feature(distinct="ip", by="user", over="1h", on="fraud"),
    feature(min="amount", by="user", over="1h", on="fraud"),
    feature(rate="payment", by="user", over="1h"),
    feature(since_first="fraud", by="user"),
    feature(since_first="any", by="user", over="1h"),
    feature(since_last="any", by="user", keep="1d"),
    feature(since_last="payment", on="payment", by="user"),
    feature(previous="region", by="user", before=True),
    feature(speed="location", by="user", on="legit"),
    feature(value="amount", by="user"),
    feature(value=["amount"]),
    limit(),
    limit(count="payment", sum="amount"),
    limit(count="payment", on="payment"),
    limit(count="fraud"),
    limit(count="payment", over="1h"),
    limit(count="payment", then="flag"),
    limit(count="payment", then="allow"),
    limit(count="payment", rollout="5%"),
    limit(count="payment", message={}),
    limit(count="payment", max=None),
    small(limits={"l": {"count": "payment", "by": "user", "per": "day"}}),
    small(limits={"l": {"count": "payment", "max": 1, "per": "day"}}),
    small(rules={"r": {"then": "deny"}}),
    small(rules={"r": None}),
    small(rules={"my rule": {"when": "amount > 1"}}),
    a_rule(then="denied"),
    a_rule(thn="deny"),
    a_rule(when=""),
    a_rule(when={"amount": 1}),
    a_rule(risk=2),
    a_rule(risk="0.5"),
    a_rule(risk=-0.1),
    a_rule(mode="on"),
    a_rule(rollout=0.5),
    a_rule(rollout="150%"),
    a_rule(challenge="email"),
    a_rule(message={"de": "Nein"}),
    a_rule(message=["No"]),
    a_rule(tags="qr"),
    a_rule(firm="yes"),
    a_rule(firm=True),
    a_rule(then="allow"),
    a_rule(expires="2027-01-31"),
    small(decide={"payment": {"review": 90}}),
    small(decide={"payment": {"allow": 0.1}}),
    small(decide={"payment": {"deny": 0.9, "challenge_with": "sms"}}),
    small(decide={"payment": {"challenge": 0.9, "challenge_with": "email"}}),
]


def errors_of(folder: Path, policy: Any) -> list[Finding]:
    text = json.dumps(policy, ensure_ascii=False)  # every JSON is YAML 1.2
    return [finding for finding in examine(write(folder, text)).findings if finding.severity == "error"]


def fits_schema(policy: Any) -> bool:
    return bool(VALIDATOR.is_valid(policy))


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("policy", VALID)
def test_what_is_valid_passes_both(tmp_path: Path, policy: dict[str, Any]) -> None:
    policy = typed(policy)
    VALIDATOR.validate(policy)
    assert errors_of(tmp_path, policy) == []


@pytest.mark.parametrize("policy", BROKEN)
def test_what_is_broken_fails_both(tmp_path: Path, policy: dict[str, Any]) -> None:
    assert not fits_schema(policy)
    assert errors_of(tmp_path, policy) != []


def test_mutations_of_a_whole_policy_are_judged_alike(tmp_path: Path) -> None:
    """Every map of it in turn: an unknown key, each key gone, each value of another type."""
    whole = typed(yaml.load(WHOLE, yaml.BaseLoader))
    judged = {True: 0, False: 0}
    for number, (said, mutated) in enumerate(mutations(whole)):
        fits = fits_schema(mutated)
        judged[fits] += 1
        if not fits:
            assert errors_of(tmp_path / str(number), mutated) != [], said
    assert judged[False] > 250
    # What fits may still be refused, for a name that is no longer there; what is whole has to pass.
    assert fits_schema(whole)
    assert errors_of(tmp_path / "whole", whole) == []


def mutations(whole: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    wrongs = itertools.cycle((["x"], {"x": {"y": []}}, -7, "no such thing!"))
    for path in list(maps(whole)):
        yield f"{path}: unknown key", changed(whole, path, {"un_known": {"x": [1]}})
        for key, wrong in zip(list(at(whole, path)), wrongs, strict=False):
            yield f"{path}: without {key}", changed(whole, path, {}, without=key)
            yield f"{path}: {key} is {wrong}", changed(whole, path, {key: wrong})


def maps(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        yield path
        for key, part in value.items():
            yield from maps(part, (*path, key))


def at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def changed(
    whole: dict[str, Any], path: tuple[str, ...], more: dict[str, Any], without: str | None = None
) -> dict[str, Any]:
    mutated = copy.deepcopy(whole)
    at(mutated, path).update(more)
    at(mutated, path).pop(without, None)
    return mutated


def typed(value: Any, key: str = "") -> Any:
    """A policy that was read as text alone, with the numbers and booleans of YAML 1.2."""
    if isinstance(value, dict):
        return {name: typed(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [typed(part) for part in value]
    if isinstance(value, str):
        if value == "":
            return None
        if value in ("true", "false"):
            return value == "true"
        if re.fullmatch(r"-?\d+(\.\d+)?", value):
            return float(value) if "." in value else int(value)
    return value
