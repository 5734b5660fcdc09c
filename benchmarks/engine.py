"""A policy end to end, on one core: one event at a time, batches of dicts, and Arrow columns.

Targets are of the first policy (31 features, 8 limits, 25 rules, kept in `first/`), so that figures of a year
apart can be compared; `pack_*` are of the shipped one, and say what its depth costs an entity touched.

Before anything is timed, all three ways must give the same decisions for the same events. The same again with
a model of 200 trees over every feature that a model can be asked with, trained on rows of such traffic: its
scores must be LightGBM's to the bit.
"""

from __future__ import annotations

import random
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import lightgbm
import numpy as np
import pyarrow as pa

from benchmarks.windows import one_core
from riskengine import Decision, Engine
from riskengine.card import MODEL_FILE, MODEL_TYPES, Card, Span, model_digest
from riskengine.policy import feature_fingerprint, load_definition

TITLE = "the engine on the first policy and on the shipped one, one core"
TARGETS = {
    "single_us": "<= 30",
    "dicts_per_s": ">= 70000",
    "columns_per_s": ">= 100000",
    "model_dicts_per_s": ">= 55000",
    "model_columns_per_s": ">= 55000",
}

RULES: Final = Path(__file__).resolve().parent / "first" / "rules"
PACK: Final = Path(__file__).resolve().parent.parent / "rules"
KEY: Final = bytes(range(16))
START_MS: Final = 1_794_355_200_000  # 2026-11-11T00:00:00Z
EVENTS: Final = 60_000
CHECKED: Final = 6_000
SINGLES: Final = 10_000
BATCH: Final = 256
ROWS: Final = 1_024
REPEATS: Final = 3
TREES: Final = 200
LEAVES: Final = 31
TRAINED_ON: Final = 20_000
MODEL: Final = "trained"

Events = Sequence[dict[str, Any]]


def measure() -> dict[str, Any]:
    """Median and 99th percentile of one `Engine.score` in us, and events a second in batches."""
    stream = traffic(EVENTS)
    with tempfile.TemporaryDirectory() as folder, one_core():
        rules = with_model(Path(folder))
        check(stream[:CHECKED])
        check_model(rules, stream[:CHECKED])
        singles = np.array(one_by_one(stream[:SINGLES])[1][SINGLES // 2 :]) / 1_000
        modelled = np.array(one_by_one(stream[:SINGLES], rules)[1][SINGLES // 2 :]) / 1_000
        dicts_s = min(in_batches(stream)[1] for _ in range(REPEATS))
        columns_s = min(in_columns(stream)[1] for _ in range(REPEATS))
        model_dicts_s = min(in_batches(stream, rules)[1] for _ in range(REPEATS))
        model_columns_s = min(in_columns(stream, rules)[1] for _ in range(REPEATS))
        check(stream[:CHECKED], PACK)
        pack_singles = np.array(one_by_one(stream[:SINGLES], PACK)[1][SINGLES // 2 :]) / 1_000
        pack_dicts_s = min(in_batches(stream, PACK)[1] for _ in range(REPEATS))
        pack_columns_s = min(in_columns(stream, PACK)[1] for _ in range(REPEATS))
        touched, pack_touched = (keys_an_event(stream[:CHECKED], of) for of in (RULES, PACK))
        asked = len(Card.load(rules.parent / "models" / MODEL).features)
    return {
        "events": EVENTS,
        "fields_an_event": sum(map(len, stream)) / EVENTS,
        "single_us": float(np.median(singles)),
        "single_p99_us": float(np.quantile(singles, 0.99)),
        "dicts_per_s": EVENTS / dicts_s,
        "columns_per_s": EVENTS / columns_s,
        "model_features": asked,
        "model_single_us": float(np.median(modelled)),
        "model_dicts_per_s": EVENTS / model_dicts_s,
        "model_columns_per_s": EVENTS / model_columns_s,
        "pack_single_us": float(np.median(pack_singles)),
        "pack_dicts_per_s": EVENTS / pack_dicts_s,
        "pack_columns_per_s": EVENTS / pack_columns_s,
        "keys_an_event": touched,
        "us_a_key": 1e6 * columns_s / EVENTS / touched,
        "pack_keys_an_event": pack_touched,
        "pack_us_a_key": 1e6 * pack_columns_s / EVENTS / pack_touched,
    }


def keys_an_event(events: Events, rules: Path) -> float:
    """How many entities an event touches, on average."""
    with Engine.open(rules, key=KEY) as engine:
        batch, _ = engine.policy.schema.parse(events, START_MS + 3_600_000)
    return float(np.count_nonzero(batch.keys)) / batch.n


def with_model(folder: Path, source: Path = RULES) -> Path:
    """Rules with a model beside them, which they name, trained on what the first policy knows or another."""
    rules = folder / "rules"
    shutil.copytree(source, rules)
    settings = rules / "policy.yaml"
    said = settings.read_text(encoding="utf-8")
    settings.write_text(re.sub("^model: .*$", f"model: {MODEL}", said, flags=re.MULTILINE), encoding="utf-8")
    definition = load_definition(rules)
    names = [feature.name for feature in definition.features.values() if feature.type in MODEL_TYPES]
    decisions = in_batches(traffic(TRAINED_ON, seed=8), source, features=True)[0]
    rows = np.array([row_of(decision, names) for decision in decisions])
    draw = np.random.default_rng(0)
    heights = np.log1p(np.abs(np.nan_to_num(rows)))
    spread = heights.std(axis=0)
    raw = (heights / np.where(spread > 0, spread, 1)) @ draw.normal(size=len(names))
    fraud = raw + draw.normal(size=len(raw)) > np.quantile(raw, 0.97)
    booster = lightgbm.train(
        {"objective": "binary", "num_leaves": LEAVES, "num_threads": 1, "verbosity": -1, "seed": 0},
        lightgbm.Dataset(rows, fraud.astype(float), feature_name=names),
        TREES,
    )
    model = folder / "models" / MODEL
    model.mkdir(parents=True)
    booster.save_model(model / MODEL_FILE)
    Card(
        name=MODEL,
        model=model_digest((model / MODEL_FILE).read_bytes()),
        policy=definition.name,
        policy_fingerprint=decisions[0].policy,
        types=tuple(definition.events),
        features=tuple(names),
        fingerprints={name: feature_fingerprint(definition.features[name], definition) for name in names},
        calibration={"kind": "none"},
        trained=Span(START_MS, START_MS + 3_600_000, len(rows), int(fraud.sum())),
    ).save(model)
    return rules


def row_of(decision: Decision, names: Sequence[str]) -> list[float]:
    assert isinstance(decision.features, dict)
    return [np.nan if decision.features[name] is None else float(decision.features[name]) for name in names]


def check(events: Events, rules: Path = RULES) -> list[Decision]:
    """The three ways agree on every event, and the stream is not so tame that nothing happens."""
    alone, _ = one_by_one(events, rules)
    assert in_batches(events, rules)[0] == alone
    assert in_columns(events, rules)[0] == alone
    assert len({decision.action for decision in alone}) >= 3
    return alone


def check_model(rules: Path, events: Events) -> None:
    """With the model they agree too, and its score is LightGBM's."""
    alone = check(events, rules)
    booster = lightgbm.Booster(model_file=rules.parent / "models" / MODEL / MODEL_FILE)
    assert booster.num_trees() == TREES
    decisions = in_batches(events, rules, features=True)[0]
    rows = np.array([row_of(decision, booster.feature_name()) for decision in decisions])
    scores = [decision.model.p for decision in alone if decision.model is not None]
    assert scores == np.asarray(booster.predict(rows, num_threads=1)).tolist()
    assert sum(reason.rule.startswith("model:") for decision in alone for reason in decision.reasons) > 0


def one_by_one(events: Events, rules: Path = RULES) -> tuple[list[Decision], list[int]]:
    """Decisions, and ns of each call."""
    now = [START_MS]
    decisions, taken_ns = [], []
    with Engine.open(rules, clock=lambda: now[0], key=KEY) as engine:
        for event in events:
            now[0] = event["time"]
            began = time.perf_counter_ns()
            decision = engine.score(event)
            taken_ns.append(time.perf_counter_ns() - began)
            decisions.append(decision)
    return decisions, taken_ns


def in_batches(events: Events, rules: Path = RULES, features: bool = False) -> tuple[list[Decision], float]:
    """Decisions, and seconds for all of them, dicts in and decisions out."""
    parts = [events[i : i + BATCH] for i in range(0, len(events), BATCH)]
    clocks = [np.array([event["time"] for event in part], np.int64) for part in parts]
    decisions: list[Any] = []
    with Engine.open(rules, key=KEY) as engine:
        began = time.perf_counter()
        for part, now in zip(parts, clocks, strict=True):
            decisions += engine.score_many(part, features, now)
        return decisions, time.perf_counter() - began


def in_columns(events: Events, rules: Path = RULES) -> tuple[list[Decision], float]:
    """Decisions, and seconds for all of them, from Arrow batches as a Parquet file gives them."""
    names = sorted({name for event in events for name in event})
    table = pa.table({name: [event.get(name) for event in events] for name in names})
    parts = table.to_batches(max_chunksize=ROWS)
    clocks = [part.column("time").to_numpy() for part in parts]
    decisions: list[Any] = []
    with Engine.open(rules, key=KEY) as engine:
        began = time.perf_counter()
        for part, now in zip(parts, clocks, strict=True):
            decisions += engine.score_columns(part, now=now)
        return decisions, time.perf_counter() - began


def traffic(n: int, seed: int = 7) -> list[dict[str, Any]]:
    """`n` events of a busy hour in time order: claims, scans and payments, two in a hundred by farms."""
    draw = random.Random(seed)
    people = [person(draw, i) for i in range(n // 3)]
    farm = [{**person(draw, i), "user_id": f"f{i}", "device_id": f"rack{i % 9}"} for i in range(100)]
    farm += [{**person(draw, i), "user_id": f"p{i}", "phone": f"1700000{i % 20:04}"} for i in range(100)]
    kinds = {"coupon_claim": claim, "qr_scan": scan, "payment": payment}
    events = []
    for i in range(n):
        who = draw.choice(farm) if draw.random() < 0.02 else draw.choice(people)
        kind = draw.choices(("coupon_claim", "qr_scan", "payment"), (5, 3, 2))[0]
        event = {"event_id": f"e{i}", "type": kind, "time": START_MS + i * 3_600_000 // n}
        events.append({**event, **who, **kinds[kind](draw, i)})
    return events


def person(draw: random.Random, i: int) -> dict[str, Any]:
    return {
        "user_id": f"u{i}",
        "device_id": f"d{i}",
        "ip": f"10.{i // 65_536}.{i // 256 % 256}.{i % 256}",
        "phone": f"1380{i:07}",
        "phone_verified": True,
        "phone_kind": "mobile",
        "account_created": START_MS - draw.randrange(1, 800) * 86_400_000,
        "channel": draw.choice(("app", "miniprogram", "web")),
        "region": draw.choice(("CN-SH", "CN-BJ", "CN-GD")),
        "location": {"lat": round(draw.uniform(22, 40), 5), "lon": round(draw.uniform(104, 121), 5)},
    }


def claim(draw: random.Random, i: int) -> dict[str, Any]:
    return {
        "campaign_id": draw.choice(("double-eleven", "autumn-coupons", "everyday-coupons")),
        "coupon_type": draw.choice(("ten-off", "freeship", "half")),
        "funder": "platform",
        "merchant_id": f"m{draw.randrange(500)}",
        "amount": draw.choice((0.5, 1.2, 3.0)),
        "captcha_passed": True,
        "address": f"{draw.randrange(20_000)} Garden Road",
    }


def scan(draw: random.Random, i: int) -> dict[str, Any]:
    return {
        "code_id": f"k{i}",
        "batch_id": f"b{i % 40}",
        "campaign_id": "red-packet-2026",
        "terminal_id": f"t{draw.randrange(2_000)}",
        "amount": draw.choice((0.88, 1.88)),
    }


def payment(draw: random.Random, i: int) -> dict[str, Any]:
    price = round(draw.gammavariate(2.0, 60.0) + 1.0, 2)
    return {
        "order_id": f"o{i}",
        "payment_account": f"a{draw.randrange(20_000)}",
        "merchant_id": f"m{draw.randrange(500)}",
        "amount": price,
        "currency": "CNY",
        "recipient": f"r{draw.randrange(20_000)}",
        "address": f"{draw.randrange(20_000)} Garden Road",
        "pages_viewed": draw.randrange(1, 20),
        "dwell_s": round(draw.uniform(1, 600), 1),
        "list_price": price,
    }
