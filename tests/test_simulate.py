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

from riskengine import Engine, EventError, cli
from riskengine.files import Reject, read_events, read_labels
from riskengine.simulate import CAMPAIGN_DAY_MS, DAY_MS, KINDS, ORDINARY, Traffic, kind_of, simulate

RULES = Path(__file__).resolve().parent.parent / "rules"


@pytest.fixture(scope="module")
def traffic() -> Traffic:
    return simulate(seed=3, days=2, users=1_000)


def test_the_same_seed_gives_the_same_traffic(traffic: Traffic) -> None:
    assert simulate(seed=3, days=2, users=1_000) == traffic
    assert simulate(seed=4, days=2, users=1_000) != traffic


def test_events_come_in_order_and_each_has_one_label(traffic: Traffic) -> None:
    times = [event["time"] for event in traffic.events]
    assert times == sorted(times)
    assert times[0] >= CAMPAIGN_DAY_MS - DAY_MS
    assert times[-1] < CAMPAIGN_DAY_MS + 2 * DAY_MS
    ids = [event["event_id"] for event in traffic.events]
    assert len(set(ids)) == len(ids)
    assert sorted(label["event_id"] for label in traffic.labels) == ids
    known = [label["time"] for label in traffic.labels]
    assert known == sorted(known)


def test_labels_name_the_kind_and_are_known_later(traffic: Traffic) -> None:
    at = {event["event_id"]: event["time"] for event in traffic.events}
    for label in traffic.labels:
        assert label["time"] >= at[label["event_id"]] + DAY_MS
        assert (label["label"] == "legit") == (kind_of(label) == ORDINARY)
    assert {kind_of(label) for label in traffic.labels} == {ORDINARY, *KINDS}
    with pytest.raises(ValueError, match="is not one of `simulate`"):
        kind_of({"event_id": "e", "label": "fraud", "source": "chargeback"})


def test_days_have_hours_and_the_campaign_day_is_the_busiest(traffic: Traffic) -> None:
    hours: Counter[int] = Counter()
    days: Counter[int] = Counter()
    for event in traffic.events:
        since = event["time"] - (CAMPAIGN_DAY_MS - DAY_MS)
        days[since // DAY_MS] += 1
        if since < DAY_MS:
            hours[since // 3_600_000] += 1
    assert days[1] > 3 * days[0]
    assert sum(hours[hour] for hour in (2, 3, 4)) < 0.2 * sum(hours[hour] for hour in (19, 20, 21))


def test_abuse_looks_as_it_does_in_the_field() -> None:
    traffic = simulate(seed=11, users=4_000)
    kinds = {label["event_id"]: kind_of(label) for label in traffic.labels}
    of: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in traffic.events:
        of[kinds[event["event_id"]]].append(event)

    def per(kind: str, thing: str, what: str) -> float:
        """How many different `what` there are for each `thing`, on average."""
        pairs = {(event[thing], event[what]) for event in of[kind]}
        return len(pairs) / len({thing for thing, _ in pairs})

    assert per("device-farm", "device_id", "user_id") > 15
    assert per("number-pool", "phone", "user_id") > 5
    assert per("copied-code", "code_id", "user_id") > 15
    assert per("harvested-codes", "terminal_id", "code_id") > 40
    assert per("colluding-shop", "recipient", "user_id") > 8
    assert per("card-testing", "device_id", "payment_account") > 15
    assert set(Counter(event["order_id"] for event in of["charged-again"]).values()) == {21}
    assert per(ORDINARY, "device_id", "user_id") < 1.2
    assert 0.05 < 1 - len(of[ORDINARY]) / len(traffic.events) < 0.3


def test_the_shipped_policy_takes_every_event(traffic: Traffic) -> None:
    now = np.array([event["time"] for event in traffic.events], np.int64)
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


def test_events_to_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["simulate", "--out", "-", "--users", "100"]) == 0
    sys.stdout.flush()
    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == simulate(users=100).events
    assert cli.run(["simulate", "--out", "-", "--json"]) == 2
    assert cli.run(["simulate", "--out", "x.jsonl", "--labels", "x.jsonl"]) == 2
