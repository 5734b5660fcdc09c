"""A folder becomes a Definition: what is read, what is refused and how that is told, what it costs."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snapshot import SNAPSHOTS, matches_snapshot

from riskengine import vocabulary
from riskengine.definition import Definition, Entity, Field, Message, Window
from riskengine.errors import Place, PolicyError, render
from riskengine.footprint import ENTITY_BYTES_MAX, cells, state_bytes
from riskengine.policy import (
    definition_fingerprint,
    examine,
    feature_fingerprint,
    load_definition,
    parse_duration,
)
from riskengine.sections.features import bucket_width_ms

# Nearly everything the format has.
WHOLE = (SNAPSHOTS / "whole" / "policy.yaml").read_text(encoding="utf-8")
CAMPAIGNS = (SNAPSHOTS / "whole" / "campaigns.csv").read_text(encoding="utf-8")

# The least a policy needs, for one thing to go wrong in.
SMALL = """\
policy: small
entities: {user: user_id, device: device_id, ip: ip}
events: {payment: {}, coupon_claim: {}}
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def load(folder: Path, text: str) -> Definition:
    return load_definition(write(folder, {"policy.yaml": text, "campaigns.csv": CAMPAIGNS}))


@pytest.fixture
def whole(tmp_path: Path) -> Definition:
    return load(tmp_path, WHOLE)


def test_settings_fields_and_entities(whole: Definition) -> None:
    assert (whole.name, whole.tenant) == ("campaign-protection", "campaign-protection")
    assert (whole.timezone, whole.country, whole.model) == ("Asia/Shanghai", "CN", "coupon-v1")
    assert (whole.lateness_ms, whole.skew_ms) == (600_000, 300_000)
    assert whole.entities["ip_net"] == Entity("ip_net", ("ip",), "subnet24")
    assert whole.entities["order"] == Entity("order", ("user_id", "order_id"))
    assert whole.fields["amount"] == Field("amount", "number", 2)
    assert whole.fields["ip"] == Field("ip", "ip")
    assert whole.fields["pages_viewed"] == Field("pages_viewed", "number", 0)
    assert list(whole.events) == ["coupon_claim", "qr_scan", "payment"]
    assert [event.fail for event in whole.events.values()] == ["open", "review", "review"]
    scan = whole.events["qr_scan"].fields
    assert list(scan) == sorted(scan)
    # of everyone, of its own vocabulary, of an entity; but not of another type's vocabulary
    assert {"user_agent", "terminal_id", "payment_account"} <= set(scan)
    assert not {"discount", "funder"} & set(scan)
    assert whole.events["coupon_claim"].required == ("user_id", "device_id", "campaign_id")


def test_tables_and_lists(whole: Definition) -> None:
    rows = whole.tables["campaigns"].rows
    assert rows is not None
    assert rows["c1"] == {
        "starts": 1_793_462_400_000.0, "ends": 1_796_054_400_000.0, "region": "CN", "daily_budget": 100.5,
    }  # fmt: skip
    assert set(rows["c2"].values()) == {None}
    assert whole.tables["shops"].rows is None
    assert whole.lists["blocked"].of == ("user", "device", "phone", "account", "address", "ip")


def test_features(whole: Definition) -> None:
    features = whole.features
    assert list(features)[-2:] == ["claim_jump", "claim_burst"], "in the order of the file"
    assert features["device_claims_today"].window == Window("day")
    assert features["merchant_fraud_7d"].window == Window("over", 604_800_000, 10_080_000, 604_800_000)
    assert features["device_users_7d"].cap == 64
    assert features["user_regions_1d"].types == ("coupon_claim", "qr_scan", "payment")
    assert features["user_mean_amount_30d"].types == ("coupon_claim", "payment")
    assert features["merchant_fraud_sum_7d"].label == "fraud"
    assert features["merchant_frauds_7d"].types == ("payment",)
    assert features["account_spend_1h"].before
    assert features["user_age"].keep_ms == 500 * 86_400_000
    types = {name: feature.type for name, feature in features.items()}
    assert types["user_age"] == types["user_idle"] == types["merchant_last_fraud"] == "duration"
    assert types["user_prev_region"] == "string"
    assert types["claim_jump"] == "bool"
    assert types["claim_burst"] == types["user_speed"] == "number"
    where = features["big_claims_1d"].where
    assert where is not None
    assert where.source == "amount > 50"
    assert features["big_claims_1d"].place is not None
    assert (
        features["big_claims_1d"].place.line
        == WHOLE.splitlines().index(
            "  big_claims_1d: {count: coupon_claim, by: user, over: 1d, where: amount > 50}"
        )
        + 1
    )


def test_limits_and_rules(whole: Definition) -> None:
    budget = whole.limits["campaign-budget"]
    assert (budget.field, budget.then, budget.mode, budget.types) == (
        "amount",
        "deny",
        "live",
        ("coupon_claim",),
    )
    rule = whole.rules["expired-campaign"]
    assert rule.message == Message(zh="活动已结束", en="The campaign is over")
    assert (rule.rollout, rule.firm, rule.mode, rule.tags) == (0.25, True, "live", ("qr", "2026"))
    burst = whole.rules["burst"]
    assert burst.message == Message(en="Slow down")
    assert (burst.then, burst.mode, burst.rollout, burst.types) == (
        "flag",
        "shadow",
        1.0,
        tuple(whole.events),
    )
    assert whole.rules["friends"].expires_ms == 1_801_324_800_000
    assert whole.rules["checked"].mode == "off", "YAML 1.2: `off` is a word"
    assert dataclasses.astuple(whole.decide["coupon_claim"]) == (0.5, 0.75, 0.92, "captcha")


def test_a_policy_without_a_model(tmp_path: Path) -> None:
    assert load(tmp_path, SMALL + "model: none\n").model is None
    assert load(tmp_path, SMALL).model is None


def test_files_are_merged_in_order_of_their_paths(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "b.yaml": "rules:\n  second: {when: amount > 2}\n",
            "a/x.yml": "rules:\n  first: {when: amount > 1}\n",
            "policy.yaml": SMALL,
            "policy.test.yaml": "tests: [nonsense",
            "empty.yaml": "# nothing yet\n",
        },
    )
    assert list(load_definition(tmp_path).rules) == ["first", "second"]


def test_a_name_defined_in_two_files_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path,
        {
            "rules/a.yaml": SMALL + "rules:\n  same: {when: amount > 1}\n",
            "rules/b.yaml": "policy: other\nrules:\n  same: {when: amount > 2}\n",
        },
    )
    monkeypatch.chdir(tmp_path)
    matches_snapshot("policy/two-files", told("rules"))


def test_a_declared_type_wins_over_the_vocabulary(tmp_path: Path) -> None:
    text = SMALL.replace("payment: {}", "payment: {fields: {amount: {type: number, unit: 1}}}")
    assert load(tmp_path, text).fields["amount"] == Field("amount", "number", 0)


def test_vocabulary_names_have_one_type() -> None:
    for fields in (vocabulary.COMMON, *vocabulary.BY_TYPE.values()):
        assert all(vocabulary.FIELDS[name] is field for name, field in fields.items())


@pytest.mark.parametrize(
    ("unit", "digits"),
    [("0.01", 2), ("1", 0), ("1e-9", 9), ("100", -2), ("1000000", -6), ("0.010", 2), ("1.0", 0), ("1e2", -2)],
)
def test_units(tmp_path: Path, unit: str, digits: int) -> None:
    text = SMALL.replace("payment: {}", f"payment: {{fields: {{points: {{type: number, unit: {unit}}}}}}}")
    assert load(tmp_path, text).fields["points"].digits == digits


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("250ms", 250), ("30s", 30_000), ("15m", 900_000), ("1h30m", 5_400_000), ("7d", 604_800_000),
        ("0s", 0), ("", None), ("7", None), ("7 d", None), ("d", None), ("1.5h", None), ("-1s", None),
        ("1w", None), ("1h 30m", None), ("٣d", None),
    ],
)  # fmt: skip
def test_durations(text: str, ms: int | None) -> None:
    assert parse_duration(text) == ms


@given(st.integers(1_000, 400 * 86_400_000))
def test_a_bucket_is_the_largest_divisor_of_at_most_a_60th(width_ms: int) -> None:
    bucket_ms = bucket_width_ms(width_ms)
    usable = [n for n in range(60, min(width_ms, 2_048) + 1) if width_ms % n == 0]
    assert bucket_ms == (width_ms // usable[0] if usable else None)


# One mistake each: NAME.yaml, and what is told of it in NAME.txt.
MISTAKES = sorted(path.stem for path in (SNAPSHOTS / "policy").glob("*.yaml"))


def told(folder: str | Path) -> str:
    return "\n\n".join(map(render, examine(folder).findings)) + "\n"


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (SNAPSHOTS / "policy" / f"{name}.yaml").read_text(encoding="utf-8")
    write(tmp_path, {"rules/policy.yaml": text, "rules/campaigns.csv": CAMPAIGNS})
    monkeypatch.chdir(tmp_path)
    examined = examine("rules")
    assert examined.definition is None
    assert examined.findings
    matches_snapshot(f"policy/{name}", told("rules"))


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    text = (
        SMALL
        + "features:\n  f: {count: paymnt, by: user, over: 1h}\n"
        + "rules:\n  r: {when: amount}\n  s: {then: no}\n"
    )
    with pytest.raises(PolicyError) as caught:
        load(tmp_path, text)
    assert [(finding.code, finding.place.line) for finding in caught.value.findings] == [
        ("unknown-name", 5), ("type", 7), ("missing-key", 8), ("unknown-name", 8),
    ]  # fmt: skip
    assert "the policy has 4 errors" in str(caught.value)


def test_no_folder_and_an_empty_one(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(PolicyError) as caught:
            load_definition(folder)
        assert [finding.code for finding in caught.value.findings] == ["no-policy"]


CSV_MISTAKES = {
    "no-key": "campaign,trust\nc1,1\n",
    "no-column": "user_id,trst\nu1,1\n",
    "bad-number": 'user_id,trust\nu1,1\nu2,high\n"u,3",1e999\nu4,1_0\n',
    "bad-bool-and-time": "user_id,trust,known,since\nu1,1,yes,2026-11-11\nu2,2,TRUE,2026-11-11T00:00:00Z\n",
    "twice": "user_id,trust\nu1,1\n u1 ,2\n,3\n",
    "ragged": "user_id,trust\nu1\n\nu2,1,2\n",
    "open-quote": 'user_id,trust\n"u1,1\n',
    "same-column": "user_id,trust,trust\nu1,1,2\n",
    "empty": "",
}


@pytest.mark.parametrize("name", CSV_MISTAKES)
def test_mistakes_in_tables_are_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = "trust: number" + (", known: bool, since: time" if "since" in CSV_MISTAKES[name] else "")
    text = SMALL + f"tables: {{shops: {{key: user, columns: {{{columns}}}, from: shops.csv}}}}\n"
    write(tmp_path, {"rules/policy.yaml": text, "rules/shops.csv": CSV_MISTAKES[name]})
    monkeypatch.chdir(tmp_path)
    assert examine("rules").definition is None
    matches_snapshot(f"table/{name}", told("rules"))


@pytest.mark.parametrize("head", ["user_id", "user", "key"])
def test_a_table_is_keyed_by_the_field_the_entity_or_key(tmp_path: Path, head: str) -> None:
    text = SMALL + "tables: {shops: {key: user, columns: {known: bool, name: string}, from: shops.csv}}\n"
    csv = f'name,{head},known\n"Ann\n, B", u1 ,true\nCafe\u0301,u2,FALSE\n'
    table = load_definition(write(tmp_path, {"p.yaml": text, "shops.csv": csv})).tables["shops"]
    assert table.rows == {"u1": {"known": 1.0, "name": "Ann\n, B"}, "u2": {"known": 0.0, "name": "Caf\u00e9"}}


def test_a_table_that_is_not_text(tmp_path: Path) -> None:
    text = SMALL + "tables: {shops: {key: user, columns: {known: bool}, from: shops.csv}}\n"
    write(tmp_path, {"p.yaml": text})
    (tmp_path / "shops.csv").write_bytes(b"user_id,known\n\xff,true\n")
    assert [(f.code, f.place.line) for f in examine(tmp_path).findings] == [("encoding", 2)]
    (tmp_path / "shops.csv").write_bytes(b"user_id,known\n\0,true\n")
    assert [(f.code, f.place.line) for f in examine(tmp_path).findings] == [("encoding", 2)]


def test_the_fingerprint_is_of_what_is_said_and_not_of_how(tmp_path: Path, whole: Definition) -> None:
    lines = WHOLE.splitlines()
    first = definition_fingerprint(whole)
    assert len(first) == 16
    start, end = lines.index("limits:"), lines.index("rules:")
    moved = "# a comment\n" + "\n".join([*lines[start:end], *lines[:start], *lines[end:]]) + "\n"
    moved = moved.replace("then: deny\n    risk: 0.6\n", "risk: 0.60 # said before\n    then: deny\n")
    assert definition_fingerprint(load(tmp_path / "moved", moved)) == first


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("risk: 0.6", "risk: 0.61"), ("lateness: 10m", "lateness: 11m"), ("rollout: 25%", "rollout: 26%"),
        ("amount > 50", "amount > 51"), ("max: 1,", "max: 2,"), ("review: 0.50", "review: 0.51"),
        ("The campaign is over", "It is over"), ("model: coupon-v1", "model: v2"), ("cap: 64", "cap: 65"),
        ("fail: open", "fail: closed"), ("trusted: {of: [user]}", "trusted: {of: [user, ip]}"),
        ("device_coupon: [device_id, coupon_type]", "device_coupon: [coupon_type, device_id]"),
        ("trust: number", "trust: number, name: string"), ("unit: 0.01", "unit: 0.001"),
    ],
)  # fmt: skip
def test_whatever_changes_a_policy_changes_its_fingerprint(
    tmp_path: Path, whole: Definition, old: str, new: str
) -> None:
    changed = load(tmp_path / "changed", WHOLE.replace(old, new))
    assert definition_fingerprint(changed) != definition_fingerprint(whole)


def test_a_table_row_is_part_of_the_policy(tmp_path: Path, whole: Definition) -> None:
    files = {"policy.yaml": WHOLE, "campaigns.csv": CAMPAIGNS.replace("100.5", "100.6")}
    changed = load_definition(write(tmp_path / "changed", files))
    assert definition_fingerprint(changed) != definition_fingerprint(whole)


def test_a_features_fingerprint_is_of_its_meaning(tmp_path: Path, whole: Definition) -> None:
    def prints(text: str) -> dict[str, str]:
        made = load(tmp_path / str(abs(hash(text))), text)
        return {name: feature_fingerprint(feature, made) for name, feature in made.features.items()}

    first = {name: feature_fingerprint(feature, whole) for name, feature in whole.features.items()}
    assert len(set(first.values())) == len(first)
    assert prints(WHOLE.replace("risk: 0.6", "risk: 0.7").replace("lateness: 10m", "lateness: 5m")) == first
    spaced = prints(WHOLE.replace("where: amount > 50", "where: '(amount)  > 50.0'"))
    assert spaced == first, "however a condition is written"
    moved = prints(WHOLE.replace("Asia/Shanghai", "UTC"))
    calendar = {"device_claims_today", "claim_jump", "claim_burst"}
    assert {name for name in first if moved[name] != first[name]} == calendar
    units = prints(WHOLE.replace("unit: 0.01", "unit: 0.001"))
    amounts = {name for name, feature in whole.features.items() if "amount" in (feature.field or "")}
    assert {name for name in first if units[name] != first[name]} == amounts | {"big_claims_1d"}
    burst = prints(WHOLE.replace("by: ip, over: 5m", "by: ip, over: 6m"))
    assert {name for name in first if burst[name] != first[name]} == {
        "ip_claims_5m",
        "claim_burst",
        "claim_jump",
    }
    renamed = prints(WHOLE.replace("device_users_7d", "users_of_device"))
    assert renamed["users_of_device"] == first["device_users_7d"]


def test_state_is_counted_per_entity_and_divided_among_its_features(whole: Definition) -> None:
    costs = state_bytes(whole)
    assert list(costs) == list(whole.entities)
    slack_ms = whole.lateness_ms + whole.skew_ms
    # 60 buckets of a minute, 15 for lateness and skew, 2; 6 bytes of time and 5 of count; and a share of the
    # entity's head of 31 bytes, and the region's 3 between the two
    assert costs["ip"]["ip_claims_1h"] == (60 + 15 + 2) * 11 + 16
    assert costs["ip"]["ip_claims_5m"] == (60 + 180 + 2) * 11 + 18
    assert costs["device"] == {
        "device_claims_today": (3 + 1) * 11 + 14, "device_users_7d": 64 * 14 + 13,
        "one-per-device-a-day": (3 + 1) * 17 + 13,
    }  # fmt: skip
    # labelled events and all events, now and 7 days behind
    assert cells(whole.features["merchant_fraud_7d"], slack_ms) == 2 * (60 + 61 + 2)
    assert all(sum(cost.values()) <= ENTITY_BYTES_MAX for cost in costs.values())


def test_one_cell_serves_features_that_mean_the_same(tmp_path: Path) -> None:
    one = "  a: {distinct: device, by: user, over: 1h}\n"
    two = one + "  b: {distinct: device, by: user, over: 7d, before: true}\n"
    first = state_bytes(load(tmp_path / "one", SMALL + "features:\n" + one))["user"]
    both = state_bytes(load(tmp_path / "two", SMALL + "features:\n" + two))["user"]
    assert sum(first.values()) == sum(both.values())
    assert both["a"] - both["b"] in (0, 1, 2)


def test_places_name_the_file_as_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"rules/policy.yaml": SMALL + "rules:\n  r: {when: amount > 1}\n"})
    monkeypatch.chdir(tmp_path)
    rule = load_definition("rules").rules["r"]
    assert rule.place == Place("rules/policy.yaml", 5, 3)
    assert rule.when.place == Place("rules/policy.yaml", 5, 13)


def test_a_thousand_rules_load(tmp_path: Path) -> None:
    """Reading is linear: see benchmarks for how fast."""
    rules = "".join(
        f"  rule-{i}:\n    on: payment\n    when: amount > {i} and ip_claims_5m >= 3\n    risk: 0.6\n"
        for i in range(1_000)
    )
    made = load(tmp_path, WHOLE.replace("rules:\n", "rules:\n" + rules))
    assert len(made.rules) == 1_004
    assert definition_fingerprint(made) == definition_fingerprint(made)


def test_values_are_frozen(whole: Definition) -> None:
    changed: Any = whole.rules["burst"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.risk = 1.0


TOKENS = re.findall(r"[\w.%]+|\s+|.", WHOLE)


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(TOKENS) - 1),
            st.sampled_from(["", " ", "\n", "x", "[", "}", ":", "any", "1", "fraud", "~"]),
        ),
        max_size=4,
    )
)
def test_nothing_that_is_written_breaks_the_reading(changes: list[tuple[int, str]]) -> None:
    """Whatever is wrong is told, with a place inside the file."""
    tokens = list(TOKENS)
    for at, token in changes:
        tokens[at] = token
    text = "".join(tokens)
    with tempfile.TemporaryDirectory() as name:
        examined = examine(write(Path(name), {"policy.yaml": text, "campaigns.csv": CAMPAIGNS}))
    lines = re.split("\n", text)
    for finding in examined.findings:
        assert finding.place.line <= len(lines)
        assert finding.place.column <= len(lines[finding.place.line - 1]) + 1
        assert render(finding)
    assert (examined.definition is None) == any(f.severity == "error" for f in examined.findings)
