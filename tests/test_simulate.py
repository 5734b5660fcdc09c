"""Simulated traffic: repeatable, labelled, in order, taken by the shipped policy, and like the real thing."""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from riskengine import Engine, EventError, PolicyError, cli
from riskengine.files import Reject, read_events, read_labels
from riskengine.simulate import (
    CAMPAIGN_DAY_MS,
    DAY_MS,
    HONEST,
    IN_VAIN,
    KINDS,
    Outcome,
    Traffic,
    kind_of,
    simulate,
    trusted_devices,
)
from riskengine.simulate.scenario import DEFAULT, load_scenario, mixed

RULES = Path(__file__).resolve().parent.parent / "rules"


@pytest.fixture(scope="module")
def traffic() -> Traffic:
    return simulate(seed=3, days=2, users=2_000)


def test_the_same_seed_gives_the_same_traffic(traffic: Traffic) -> None:
    assert simulate(seed=3, days=2, users=2_000) == traffic
    assert simulate(seed=4, days=2, users=2_000) != traffic


def test_events_come_in_order_and_labels_when_they_are_known(traffic: Traffic) -> None:
    times = [event["time"] for event in traffic.events]
    assert times == sorted(times)
    assert times[0] >= CAMPAIGN_DAY_MS - 8 * DAY_MS  # an account's owner shops in the days before it is taken
    assert times[-1] < CAMPAIGN_DAY_MS + 2 * DAY_MS
    ids = [event["event_id"] for event in traffic.events]
    assert len(set(ids)) == len(ids)
    known = [label["time"] for label in traffic.labels]
    assert known == sorted(known)
    assert len({label["event_id"] for label in traffic.labels}) == len(traffic.labels)


def test_labels_say_what_an_investigation_finds_and_some_abuse_is_never_found(traffic: Traffic) -> None:
    told = {one.event["event_id"]: one for one in traffic.told}
    for label in traffic.labels:
        one = told[label["event_id"]]
        assert label["time"] >= one.event["time"] + DAY_MS // 4
        assert kind_of(label) == one.kind
        assert (label["label"] == "legit") == (one.kind in (HONEST, IN_VAIN))
    abuse = [one for one in traffic.told if one.kind in KINDS]
    found = sum(label["label"] == "fraud" for label in traffic.labels)
    assert 0.8 * len(abuse) < found < 0.9 * len(abuse)
    with pytest.raises(ValueError, match="is not one of `simulate`"):
        kind_of({"event_id": "e", "label": "fraud", "source": "chargeback"})


def test_days_have_hours_and_the_campaign_day_is_the_busiest(traffic: Traffic) -> None:
    hours: Counter[int] = Counter()
    days: Counter[int] = Counter()
    for one in traffic.told:
        since = one.event["time"] - (CAMPAIGN_DAY_MS - DAY_MS)
        if one.kind == HONEST and since >= 0:
            days[since // DAY_MS] += 1
            if since < DAY_MS:
                hours[since // 3_600_000] += 1
    assert days[1] > 3 * days[0]
    assert sum(hours[hour] for hour in (2, 3, 4)) < 0.2 * sum(hours[hour] for hour in (19, 20, 21))


def test_a_rush_is_an_hour_many_times_as_busy() -> None:
    def at_eight(traffic: Traffic) -> int:
        first = CAMPAIGN_DAY_MS + 20 * 3_600_000
        return sum(first <= event["time"] < first + 3_600_000 for event in traffic.events)

    calm = mixed(DEFAULT, dict.fromkeys(KINDS, 0))
    rushed = load_from("rush: {hour: 20, times: 10}\nintensity: 0\n")
    assert (
        8 < at_eight(simulate(users=500, scenario=rushed)) / at_eight(simulate(users=500, scenario=calm)) < 12
    )


def test_abuse_looks_as_it_does_in_the_field() -> None:
    traffic = simulate(seed=11, users=8_000)
    of: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in traffic.told:
        of[one.kind].append(one.event)

    def per(kind: str, thing: str, what: str) -> float:
        """How many different `what` there are for each `thing`, on average."""
        pairs = {(event[thing], event[what]) for event in of[kind]}
        return len(pairs) / len({thing for thing, _ in pairs})

    assert set(of) == {HONEST, IN_VAIN, *KINDS}
    assert per("device-farm", "device_id", "user_id") > 15
    assert per("emulator-reset", "address", "device_id") > 40
    assert per("number-pool", "phone", "user_id") > 4
    assert per("account-market", "address", "user_id") > 20
    assert per("ring-leader", "phone", "user_id") > 15
    assert per("copied-code", "code_id", "user_id") > 15
    assert per("code-enumeration", "batch_id", "code_id") > 100
    assert per("leaked-pack", "batch_id", "code_id") > 100
    assert per("terminal-insider", "terminal_id", "code_id") > 40
    assert per("code-resale", "device_id", "region") > 4
    assert per("colluding-shop", "merchant_id", "order_id") > 30
    assert per("card-testing", "device_id", "payment_account") > 15
    assert set(Counter(event["order_id"] for event in of["charged-again"]).values()) == {21}
    assert {event["type"] for event in of["account-takeover"]} == {"credential_change", "payment"}
    assert per(HONEST, "device_id", "user_id") < 1.3
    assert 0.1 < 1 - len(of[HONEST]) / len(traffic.told) < 0.35


def test_honest_shops_look_like_dishonest_ones() -> None:
    """What a rule against collusion must live with: one price, goods on sale, and regulars."""
    traffic = simulate(seed=11, days=3, users=8_000)
    bought = [one.event for one in traffic.told if one.kind == HONEST and one.event["type"] == "payment"]
    prices, shops = defaultdict(set), defaultdict(list)
    for event in bought:
        prices[event["merchant_id"]].add(round(event["amount"] + event["discount"], 2))
        shops[event["user_id"]].append(event["merchant_id"])
    sold = Counter(event["merchant_id"] for event in bought)
    assert sum(sold[shop] > 10 and len(sums) == 1 for shop, sums in prices.items()) >= 5
    on_sale = [event for event in bought if event["list_price"] > 2 * (event["amount"] + event["discount"])]
    assert 0.01 < len(on_sale) / len(bought) < 0.1
    regulars = [user for user, visited in shops.items() if len(visited) >= 4 and len(set(visited)) == 1]
    assert len(regulars) > 20
    back = [one.event for one in traffic.told if one.kind == HONEST and one.event["type"] == "refund"]
    assert {event.get("funder") for event in back} == {None, "platform", "store"}


def test_careful_shops_hide_what_clumsy_ones_show() -> None:
    scenario = load_from("mix: {colluding-shop: 20}\n")
    orders: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in simulate(seed=11, users=5_000, scenario=scenario).told:
        if one.kind == "colluding-shop" and one.event["type"] == "payment":
            orders[one.event["merchant_id"]].append(one.event)
    looked = {shop: min(event["pages_viewed"] for event in events) for shop, events in orders.items()}
    assert {pages > 1 for pages in looked.values()} == {True, False}
    for shop, events in orders.items():
        listed = {event["list_price"] for event in events}
        assert (listed == {99.0}) == (looked[shop] > 1)


def test_slow_and_low_goes_on_for_days_with_one_door() -> None:
    told = [one for one in simulate(seed=11, days=6, users=5_000).told if one.kind == "slow-and-low"]
    crews = defaultdict(list)
    for one in told:
        crews[one.event["address"]].append(one.event)
    for events in crews.values():
        assert len({event["time"] // DAY_MS for event in events}) >= 5
        assert len({event["device_id"] for event in events}) == 2
        assert len({event["user_id"] for event in events}) == len(events)
    assert len(crews) == 4


def test_who_is_refused_learns_and_who_is_asked_answers() -> None:
    """The same seed under two policies: abuse that is stopped goes on for less long, in other ways."""

    def decided(action: str, challenge: str | None = None) -> Traffic:
        def decide(events: list[dict[str, Any]]) -> list[Outcome]:
            return [Outcome(event["event_id"], action, challenge) for event in events]

        return simulate(seed=5, users=4_000, decide=decide)

    def number(traffic: Traffic, kind: str) -> int:
        return sum(one.kind == kind for one in traffic.told)

    allowed, refused = simulate(seed=5, users=4_000), decided("deny")
    assert decided("allow").events == allowed.events
    for kind in ("device-farm", "card-testing", "code-enumeration", "ring-leader"):
        assert 0 < number(refused, kind) < number(allowed, kind)
    assert len({e["device_id"] for e in refused.events if e["user_id"].startswith("x-ring")}) > len(
        {e["device_id"] for e in allowed.events if e["user_id"].startswith("x-ring")}
    )
    asked = decided("challenge", "captcha")
    answers = [one for one in asked.told if "follows" in one.event]
    assert answers
    assert all(one.attempt != one.event["event_id"] for one in answers)
    right = Counter((one.kind == HONEST, one.event["captcha_passed"]) for one in answers)
    assert (
        right[True, True] > 0.95 * right[True, False] + 0.95 * right[True, True]
    )  # who means well can read it
    assert (
        0.1 < right[False, False] / (right[False, False] + right[False, True]) < 0.3
    )  # a wrong answer is told
    people = {one.attempt for one in answers if one.kind == HONEST}
    assert len(people) > 0.9 * len({one.attempt for one in asked.told if one.kind == HONEST})
    faces = {one.attempt for one in decided("challenge", "face").told if one.kind == "device-farm"}
    assert len(faces) < 200


# -- scenarios


def load_from(text: str, path: Path | None = None) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scenario.yaml"
        file.write_text(text, "utf-8")
        return load_scenario(file)


def test_a_scenario_says_who_comes() -> None:
    scenario = load_from("mix: {device-farm: 5, card-testing: 0}\nintensity: 2\nshop_tablets: 7\n")
    assert scenario.mix["device-farm"] == 5
    assert scenario.mix["ring-leader"] == DEFAULT.mix["ring-leader"]
    assert (scenario.intensity, scenario.rush, scenario.shop_tablets) == (2, None, 7)
    assert len(trusted_devices(10_000, scenario)) == 7
    kinds = {one.kind for one in simulate(users=3_000, scenario=scenario).told}
    assert "device-farm" in kinds
    assert "card-testing" not in kinds


def test_what_is_wrong_with_a_scenario_is_told_with_its_place() -> None:
    with pytest.raises(PolicyError) as error:
        load_from("mix: {device-farms: 5, card-testing: -1}\nintensity: lots\nrush: {hour: 24}\nbogus: 1\n")
    assert [(f.code, f.place.line) for f in error.value.findings] == [
        ("unknown-name", 4),
        ("unknown-name", 1),
        ("wrong-value", 1),
        ("missing-key", 3),
        ("wrong-value", 2),
    ]


def test_the_shipped_policy_takes_every_event(traffic: Traffic) -> None:
    now = np.array([event["time"] for event in traffic.events], np.int64)
    now = np.maximum.accumulate(now)
    with Engine.open(RULES) as engine:
        results = engine.score_many(traffic.events, now=now)
    assert [result for result in results if isinstance(result, EventError)] == []


def test_nothing_to_simulate() -> None:
    for days, users in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least one day and one user"):
            simulate(days=days, users=users)


def test_the_command_writes_what_score_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--users", "300", "--seed", "9", "--days", "2"]
    assert cli.run(["simulate", "--out", "e.jsonl", "--labels", "l.jsonl", *options]) == 0
    told = capfd.readouterr()
    assert told.out == ""
    traffic = simulate(seed=9, days=2, users=300)
    assert f"wrote {len(traffic.events):,} events to e.jsonl" in told.err
    rejects: list[Reject] = []
    read = [event for chunk in read_events("e.jsonl", rejects.append) for event in chunk.events]
    assert read == traffic.events
    labels = read_labels("l.jsonl", rejects.append)
    assert rejects == []
    assert [label.event_id for label in labels] == [label["event_id"] for label in traffic.labels]
    score = ["score", "--rules", str(RULES), "--labels", "l.jsonl", "--out", "d.jsonl"]
    assert cli.run([*score, "--in", "e.jsonl"]) == 0
    first = Path("d.jsonl").read_bytes()
    capfd.readouterr()
    assert cli.run(["simulate", "--out", "e.parquet", "--json", *options]) == 0
    sys.stdout.flush()
    summary = json.loads(capfd.readouterr().out)
    assert summary["events"] == len(traffic.events) == sum(summary["kinds"].values())
    assert pq.read_metadata("e.parquet").num_rows == len(traffic.events)
    assert cli.run([*score, "--in", "e.parquet"]) == 0
    assert Path("d.jsonl").read_bytes() == first
    assert not list(tmp_path.glob("*.partial"))


def test_the_command_mixes_a_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text("mix: {charged-again: 20}\n", "utf-8")
    few = ["--users", "500", "--out", "e.jsonl", "--truth", "t.jsonl"]
    assert (
        cli.run(["simulate", *few, "--scenario", "s.yaml", "--mix", "ring-leader=0", "--intensity", "3"]) == 0
    )
    kinds = Counter(json.loads(line)["kind"] for line in Path("t.jsonl").read_text("utf-8").splitlines())
    assert kinds["charged-again"] == 3 * 21
    assert "ring-leader" not in kinds
    for wrong in (["--mix", "ring-leder=1"], ["--mix", "ring-leader"], ["--mix", "ring-leader=-1"]):
        assert cli.run(["simulate", *few, *wrong]) == 2
    assert cli.run(["simulate", "--out", "e.jsonl", "--truth", "e.jsonl"]) == 2


def test_events_to_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["simulate", "--out", "-", "--users", "100"]) == 0
    sys.stdout.flush()
    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == simulate(users=100).events
    assert cli.run(["simulate", "--out", "-", "--json"]) == 2
    assert cli.run(["simulate", "--out", "x.jsonl", "--labels", "x.jsonl"]) == 2
