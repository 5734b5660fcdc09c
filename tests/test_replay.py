"""Replay gives the rows that were served, and nothing that was not known then."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import postgres
import pyarrow.parquet as pq
import pytest
from stage import DAY, HOUR, KEY, MINUTE, T0, claim, payment, policy, write

from riskengine.cli import run
from riskengine.engine import Engine
from riskengine.files import Progress, Reject
from riskengine.journal import Journal
from riskengine.policy import load_definition
from riskengine.replay import blurred, replay_files, replay_journal
from riskengine.rows import Rows, RowsError, RowsFile, read_head, read_rows

POLICY = policy(
    entities={
        "user": "user_id",
        "device": "device_id",
        "phone": "phone",
        "ip_net": {"of": "ip", "as": "subnet24"},
        "user_device": ["user_id", "device_id"],
    },
    lists={"blocked": {"of": ["user"]}},
    features={
        "claims_1h": {"count": "coupon_claim", "by": "device", "over": "1h"},
        "users_1d": {"distinct": "user", "on": "any", "by": "device", "over": "1d"},
        "regions_1d": {"distinct": "region", "on": "any", "by": "user", "over": "1d"},
        "net_claims_1h": {"count": "coupon_claim", "by": "ip_net", "over": "1h"},
        "phone_users": {"distinct": "user", "on": "any", "by": "phone", "over": "7d"},
        "spent_1h": {"sum": "amount", "on": "payment", "by": "user", "over": "1h"},
        "usual": {"mean": "amount", "on": "payment", "by": "user", "over": "7d", "before": True},
        "spread": {"std": "amount", "on": "payment", "by": "user_device", "over": "7d"},
        "share": {"value": "spent_1h / usual"},
        "user_age": {"since_first": "any", "by": "user"},
        "before": {"previous": "region", "on": "any", "by": "user"},
        "frauds_7d": {"count": "fraud", "on": "any", "by": "device", "over": "7d"},
        "last_fraud": {"since_last": "fraud", "on": "payment", "by": "user"},
        "fraud_rate": {"rate": "fraud", "on": "payment", "by": "user", "over": "7d"},
        "of_phone": {"count": "any", "by": "user", "over": "1d", "where": "matches(phone, '+86138*')"},
    },
    limits={
        "one-a-device": {
            "count": "coupon_claim",
            "by": "device",
            "per": "day",
            "max": 3,
            "then": "deny",
            "message": {"en": "no more"},
        }
    },
    rules={
        "blocked": {"on": "any", "when": "listed('blocked', user)", "then": "deny", "mode": "live"},
        "many": {"on": "any", "when": "users_1d >= 4", "risk": 0.4, "mode": "live"},
    },
    decide={"coupon_claim": {"review": 0.3}, "payment": {"review": 0.3}},
)


def traffic(seed: int, n: int) -> list[dict[str, Any]]:
    """Events of a few people who share a few devices, by time."""
    draw = random.Random(seed)
    made = []
    at = 0
    for number in range(n):
        at += draw.randrange(1, 20 * MINUTE)
        common = {
            "user_id": f"u{draw.randrange(6)}",
            "device_id": draw.choice(["d1", "d2", "D 3", None]),
            "ip": f"203.0.113.{draw.randrange(300) % 256}" if draw.random() < 0.8 else "nowhere",
            "phone": draw.choice(["+86 138 0013 8000", "13900139000", None]),
            "region": draw.choice(["north", "南", "a region with quite a long name of its own"]),
        }
        said = {name: value for name, value in common.items() if value is not None}
        if draw.random() < 0.5:
            made.append(claim(f"e{number}", at, **said))
        else:
            made.append(payment(f"e{number}", at, round(draw.uniform(1, 500), 2), **said))
    return made


def labels_of(events: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {
            "event_id": event["event_id"],
            "label": draw.choice(["fraud", "legit"]),
            "time": event["time"] + draw.randrange(HOUR, DAY),
        }
        for event in events
        for _ in range(draw.randrange(3))
    ]


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> str:
    path.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in records))
    return str(path)


def replayed(
    tmp_path: Path, events: Sequence[dict[str, Any]], labels: Sequence[dict[str, Any]], name: str = "rows"
) -> list[dict[str, Any]]:
    """The rows of a history, as mappings."""
    out = str(tmp_path / f"{name}.parquet")
    rejects: list[Reject] = []
    replay_files(
        load_definition(write(tmp_path / "policy", POLICY)),
        write_lines(tmp_path / "events.jsonl", events),
        write_lines(tmp_path / "labels.jsonl", labels),
        lambda compiled: RowsFile(out, compiled),
        rejects.append,
        Progress(),
    )
    assert rejects == []
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return rows


def test_what_was_served_live_is_replayed_from_its_journal_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RISKENGINE_HASH_KEY", KEY.decode())
    folder = write(tmp_path / "policy", POLICY)
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    served: dict[str, dict[str, Any]] = {}
    clock = [T0]
    draw = random.Random(5)
    events = traffic(11, 400)
    with Engine.open(folder, journal=url, clock=lambda: clock[0]) as engine:
        at = 0
        while at < len(events):
            together = draw.choice([1, 1, 2, 7, 30])
            part = events[at : at + together]
            at += together
            clock[0] = max(event["time"] for event in part) + draw.choice([0, 50, 20 * MINUTE])
            if draw.random() < 0.1:
                del part[-1]["time"]  # stamped when it comes
            decisions = (
                [engine.score(part[0], features=True)]
                if len(part) == 1
                else engine.score_many(part, features=True)
            )
            for decision in decisions:
                assert not isinstance(decision, Exception), decision
                assert isinstance(decision.features, dict)
                served[decision.event_id] = decision.features
            engine.score_many(part[:1])  # a retry: no row of its own
            for event in draw.sample(events[:at], 2):
                engine.label(event["event_id"], draw.choice(["fraud", "legit"]))
            if draw.random() < 0.1:
                engine.list_put("blocked", "user", "u5", expires=clock[0] + HOUR)
            if draw.random() < 0.2:
                engine.release(events[at - 1]["event_id"])
        settled = {**events[0], "event_id": "again", "follows": events[-1]["event_id"], "time": clock[0]}
        last = engine.score(settled, features=True)
        assert isinstance(last.features, dict)
        served["again"] = last.features
    out = str(tmp_path / "rows.parquet")
    with Journal.open(url, create=False) as journal:
        done = replay_journal(load_definition(folder), journal.replay(), lambda p: RowsFile(out, p))
    # What a hash cannot say is told, and is all that may differ.
    assert set(blurred(load_definition(folder))) == {"of_phone"}
    assert set(done.features or {}) == {"of_phone"}
    assert done.events == len(served)
    assert done.incomparable == 0
    rows = {row["event_id"]: row for row in pq.read_table(out).to_pylist()}
    assert list(rows) == list(served)
    for event_id, features in served.items():
        for name, value in features.items():
            if name != "of_phone":
                assert rows[event_id][name] == value, (event_id, name)
    for source in (url, url.removeprefix("sqlite:///")):
        assert run(["replay", "--in", source, "--out", out, "--rules", str(folder)]) == 0


def test_a_journal_in_postgresql_is_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKENGINE_HASH_KEY", KEY.decode())
    folder, out = write(tmp_path / "policy", POLICY), tmp_path / "rows.parquet"
    events = traffic(12, 50)
    with postgres.running() as server:
        with Engine.open(folder, journal=server.url, clock=lambda: events[-1]["time"]) as engine:
            engine.score_many(events)
        assert run(["replay", "--in", server.url, "--out", str(out), "--rules", str(folder)]) == 0
    assert pq.read_table(out)["event_id"].to_pylist() == [event["event_id"] for event in events]


def test_what_is_neither_a_journal_nor_events_is_not_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "note.txt").write_text("hello")
    for source, told in (
        (tmp_path / "note.txt", "neither a journal nor"),
        (tmp_path / "gone", "there is no"),
    ):
        assert run(["replay", "--in", str(source), "--out", str(tmp_path / "rows.parquet")]) == 2
        assert told in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_later_events_and_labels_change_no_earlier_row(tmp_path: Path) -> None:
    events = traffic(3, 300)
    labels = sorted(labels_of(events, 4), key=lambda label: label["time"])
    whole = replayed(tmp_path, events, labels)
    middle_ms = events[150]["time"]
    earlier = [event for event in events if event["time"] < middle_ms]
    assert replayed(tmp_path, earlier, labels) == whole[: len(earlier)]
    later = [label for label in labels if label["time"] >= middle_ms]
    told = [label["label"] for label in later]
    random.Random(9).shuffle(told)
    turned = [{**label, "label": other} for label, other in zip(later, told, strict=True)]
    known = [label for label in labels if label["time"] < middle_ms]
    shuffled = replayed(tmp_path, events, known + turned)
    assert shuffled[: len(earlier)] == whole[: len(earlier)]
    assert shuffled != whole, "labels do count, later"


def test_rows_are_those_of_scoring_the_same_file(tmp_path: Path) -> None:
    events = traffic(8, 200)
    rows = replayed(tmp_path, events, [])
    with Engine.open(tmp_path / "policy") as engine:
        now = np.maximum.accumulate(np.array([event["time"] for event in events]))
        decisions = engine.score_many(events, features=True, now=now)
    assert [row["event_id"] for row in rows] == [event["event_id"] for event in events]
    for row, decision in zip(rows, decisions, strict=True):
        assert not isinstance(decision, Exception)
        assert isinstance(decision.features, dict)
        assert {name: row[name] for name in decision.features} == decision.features


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    events = traffic(1, 150)
    labels = labels_of(events, 2)
    replayed(tmp_path, events, labels, "one")
    replayed(tmp_path, events, labels, "two")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_a_file_of_rows_says_what_made_it(tmp_path: Path) -> None:
    replayed(tmp_path, traffic(1, 20), [])
    head = read_head(str(tmp_path / "rows.parquet"))
    with Engine.open(tmp_path / "policy") as engine:
        assert head.policy_fingerprint == engine.fingerprint
        assert dict(head.fingerprints) == dict(engine.policy.feature_fingerprints)
    assert head.policy == "stage"
    assert head.timezone == "Asia/Shanghai"
    assert "before" not in head.usable
    assert "claims_1h" in head.usable


def test_rows_are_read_by_time_and_as_numbers(tmp_path: Path) -> None:
    events = traffic(6, 60)
    replayed(tmp_path, [events[1], events[0], *events[2:]], [])
    path = str(tmp_path / "rows.parquet")
    rows = read_rows(path, ["usual", "claims_1h"], between=(events[0]["time"], events[40]["time"]))
    assert isinstance(rows, Rows)
    assert rows.times.tolist() == [event["time"] for event in events[:40]]
    assert rows.ids.to_pylist() == [event["event_id"] for event in events[:40]]
    assert np.isnan(rows.column("usual")[0])
    with pytest.raises(RowsError, match="has no feature usuall: did you mean usual"):
        read_rows(path, ["usuall"])
    with pytest.raises(RowsError, match="before is a string"):
        read_rows(path, ["before"])
    with pytest.raises(RowsError, match="--by user"):
        read_rows(path, by="user")


def test_a_replay_that_is_cut_short_leaves_nothing(tmp_path: Path) -> None:
    events = traffic(2, 50)
    out = tmp_path / "rows.parquet"

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay_files(
            load_definition(write(tmp_path / "policy", POLICY)),
            write_lines(tmp_path / "events.jsonl", events),
            None,
            lambda compiled: RowsFile(str(out), compiled),
            lambda reject: None,
            Progress(),
            moved=interrupt,
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.jsonl", "policy"]


def test_the_command_tells_of_what_it_cannot_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = traffic(2, 5)
    bad = [*events, {"event_id": "x", "type": "payment", "time": events[-1]["time"]}, events[0]]
    source = write_lines(tmp_path / "events.jsonl", bad)
    folder = str(write(tmp_path / "policy", POLICY))
    out = tmp_path / "rows.parquet"
    code = run(["replay", "--in", source, "--out", str(out), "--rules", folder, "--by", "device"])
    said = capsys.readouterr().err
    assert code == 1
    assert "events.jsonl:6" in said
    assert "/user_id" in said
    assert "1 event came again" in said
    assert pq.read_table(out).column_names[-1] == "by:device"
    assert run(["replay", "--in", source, "--out", str(tmp_path / "rows.csv"), "--rules", folder]) == 2
    assert run(["replay", "--in", source, "--out", str(out), "--rules", folder, "--by", "devise"]) == 2
    assert "did you mean device?" in capsys.readouterr().err
