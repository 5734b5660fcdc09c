"""The shipped policy end to end, on one core: one event at a time, batches of dicts, and Arrow columns.

Before anything is timed, all three ways must give the same decisions for the same events.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from benchmarks.windows import one_core
from riskengine import Decision, Engine

TITLE = "the engine on the shipped policy, one core"
TARGETS = {"single_us": "<= 30", "dicts_per_s": ">= 70000", "columns_per_s": ">= 100000"}

RULES: Final = Path(__file__).resolve().parent.parent / "rules"
KEY: Final = bytes(range(16))
START_MS: Final = 1_794_355_200_000  # 2026-11-11T00:00:00Z
EVENTS: Final = 60_000
CHECKED: Final = 6_000
SINGLES: Final = 10_000
BATCH: Final = 256
ROWS: Final = 1_024
REPEATS: Final = 3

Events = Sequence[dict[str, Any]]


def measure() -> dict[str, Any]:
    """Median and 99th percentile of one `Engine.score` in us, and events a second in batches."""
    stream = traffic(EVENTS)
    with one_core():
        check(stream[:CHECKED])
        singles = np.array(one_by_one(stream[:SINGLES])[1][SINGLES // 2 :]) / 1_000
        dicts_s = min(in_batches(stream)[1] for _ in range(REPEATS))
        columns_s = min(in_columns(stream)[1] for _ in range(REPEATS))
    return {
        "events": EVENTS,
        "fields_an_event": sum(map(len, stream)) / EVENTS,
        "single_us": float(np.median(singles)),
        "single_p99_us": float(np.quantile(singles, 0.99)),
        "dicts_per_s": EVENTS / dicts_s,
        "columns_per_s": EVENTS / columns_s,
    }


def check(events: Events) -> None:
    """The three ways agree on every event, and the stream is not so tame that nothing happens."""
    alone, _ = one_by_one(events)
    assert in_batches(events)[0] == alone
    assert in_columns(events)[0] == alone
    assert len({decision.action for decision in alone}) >= 3


def one_by_one(events: Events) -> tuple[list[Decision], list[int]]:
    """Decisions, and ns of each call."""
    now = [START_MS]
    decisions, taken_ns = [], []
    with Engine.open(RULES, clock=lambda: now[0], key=KEY) as engine:
        for event in events:
            now[0] = event["time"]
            began = time.perf_counter_ns()
            decision = engine.score(event)
            taken_ns.append(time.perf_counter_ns() - began)
            decisions.append(decision)
    return decisions, taken_ns


def in_batches(events: Events) -> tuple[list[Decision], float]:
    """Decisions, and seconds for all of them, dicts in and decisions out."""
    parts = [events[i : i + BATCH] for i in range(0, len(events), BATCH)]
    clocks = [np.array([event["time"] for event in part], np.int64) for part in parts]
    decisions: list[Any] = []
    with Engine.open(RULES, key=KEY) as engine:
        began = time.perf_counter()
        for part, now in zip(parts, clocks, strict=True):
            decisions += engine.score_many(part, now=now)
        return decisions, time.perf_counter() - began


def in_columns(events: Events) -> tuple[list[Decision], float]:
    """Decisions, and seconds for all of them, from Arrow batches as a Parquet file gives them."""
    names = sorted({name for event in events for name in event})
    table = pa.table({name: [event.get(name) for event in events] for name in names})
    parts = table.to_batches(max_chunksize=ROWS)
    clocks = [part.column("time").to_numpy() for part in parts]
    decisions: list[Any] = []
    with Engine.open(RULES, key=KEY) as engine:
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
