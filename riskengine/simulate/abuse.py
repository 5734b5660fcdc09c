"""What preys on a campaign, kind by kind, each as it is done in the field.

Every function gives the events of one kind; `scale` is 1 for a campaign of ten thousand customers. Nothing
here looks at a policy: abuse does what pays, and whether it is stopped is for the engine to say.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Final

from riskengine.simulate.customers import HOUR_MS, MINUTE_MS, REGIONS, a_claim, a_scan, near

Event = dict[str, Any]
Kind = Callable[[random.Random, int, float], Iterator[tuple[Event, bool]]]


def attack(draw: random.Random, start_ms: int, scale: float) -> list[tuple[Event, str]]:
    """All kinds of abuse of one day: events in no order, each with its kind or "ordinary"."""
    return [
        (event, name if is_abuse else "ordinary")
        for name, kind in _KINDS.items()
        for event, is_abuse in kind(draw, start_ms, scale)
    ]


def device_farm(draw: random.Random, start_ms: int, scale: float) -> Iterator[tuple[Event, bool]]:
    """A rack of phones; on each, account after account is made, claims what there is, and is left."""
    for rack in range(_number(3, scale)):
        begins = start_ms + draw.choice((0, 10, 20)) * HOUR_MS + draw.randrange(20) * MINUTE_MS
        region = draw.choice(list(REGIONS))
        for phone in range(16):
            device, at = f"farm{rack}-{phone:02}", begins + draw.randrange(5 * MINUTE_MS)
            for account in range(draw.randrange(18, 30)):
                at += draw.randrange(MINUTE_MS, 4 * MINUTE_MS)
                who = _bot(draw, f"f{rack}{phone:02}{account:02}", device, region, at - 3 * MINUTE_MS)
                who["ip"] = f"203.0.{rack % 256}.{10 + phone % 4}"
                address = f"{rack} Warehouse Road, {region}"
                yield {"type": "coupon_claim", "time": at, **who, **a_claim(draw), "address": address}, True


def number_pool(draw: random.Random, start_ms: int, scale: float) -> Iterator[tuple[Event, bool]]:
    """Rented SIM cards: each number is used for one account after another, each on a freshly reset device."""
    for pool in range(_number(40, scale)):
        at = start_ms + draw.choice((0, 10, 20)) * HOUR_MS + draw.randrange(40 * MINUTE_MS)
        region = draw.choice(list(REGIONS))
        number = f"171{draw.randrange(10**8):08}"
        for account in range(draw.randrange(6, 14)):
            at += draw.randrange(MINUTE_MS, 6 * MINUTE_MS)
            name = f"n{pool}-{account:02}"
            who = _bot(draw, name, f"reset-{name}", region, at - 20 * MINUTE_MS)
            who |= {
                "phone": number,
                "phone_kind": "virtual",
                "ip": f"198.51.{pool % 100}.{draw.randrange(1, 255)}",
            }
            address = f"{pool} Pickup Point, {region}"
            yield {"type": "coupon_claim", "time": at, **who, **a_claim(draw), "address": address}, True


def copied_code(draw: random.Random, start_ms: int, scale: float) -> Iterator[tuple[Event, bool]]:
    """A photo of a code goes round in a chat: its buyer scans it first, then everyone else."""
    for photo in range(_number(12, scale)):
        at = start_ms + draw.randrange(9, 21) * HOUR_MS
        packet = a_scan(draw)
        region = draw.choice(list(REGIONS))
        for scan in range(draw.randrange(20, 60)):
            who = _person(draw, f"c{photo}-{scan}", region)
            yield {"type": "qr_scan", "time": at, **who, **packet}, scan > 0
            at += int(draw.expovariate(1 / (2 * MINUTE_MS)))


def harvested_codes(draw: random.Random, start_ms: int, scale: float) -> Iterator[tuple[Event, bool]]:
    """Caps collected or resold by the hundred, scanned at one till by the two people who bought them."""
    for batch in range(_number(6, scale)):
        at = start_ms + draw.randrange(8, 22) * HOUR_MS
        region = draw.choice(list(REGIONS))
        buyers = [_person(draw, f"h{batch}-{i}", region) for i in range(2)]
        for _ in range(draw.randrange(50, 90)):
            at += draw.randrange(8_000, 40_000)
            packet = a_scan(draw) | {"terminal_id": f"t-insider{batch}"}
            yield {"type": "qr_scan", "time": at, **draw.choice(buyers), **packet}, True


def colluding_shop(draw: random.Random, start_ms: int, scale: float) -> Iterator[tuple[Event, bool]]:
    """A shop sells to its own accounts for the coupons: parcels, if any, go to a few helpers."""
    for shop in range(_number(4, scale)):
        region = draw.choice(list(REGIONS))
        for order in range(draw.randrange(40, 70)):
            at = start_ms + draw.randrange(9 * HOUR_MS, 23 * HOUR_MS)
            price = draw.choice((19.9, 20.0, 21.9))
            yield (
                {
                    "type": "payment",
                    "time": at,
                    **_person(draw, f"s{shop}-{order}", region),
                    "order_id": f"o-shop{shop}-{order}",
                    "payment_account": f"card-shop{shop}-{order % 30}",
                    "merchant_id": f"m-shop{shop}",
                    "currency": "CNY",
                    "list_price": price,
                    "discount": 10.0,
                    "coupon_type": "ten-off",
                    "amount": round(price - 10, 2),
                    "recipient": f"helper{shop}-{draw.randrange(3)}",
                    "address": f"{shop} Market Street, {region}",
                    "pages_viewed": draw.choice((0, 1, 1)),
                    "dwell_s": round(draw.uniform(0.4, 4.0), 1),
                },
                True,
            )


def card_testing(draw: random.Random, start_ms: int, scale: float) -> Iterator[tuple[Event, bool]]:
    """Stolen cards, tried one after another for a yuan; those that answer are charged at once."""
    for tester in range(_number(6, scale)):
        at = start_ms + draw.randrange(24) * HOUR_MS
        region = draw.choice(list(REGIONS))
        who = _bot(draw, f"t{tester}", f"tester{tester}", region, at - HOUR_MS)
        for card in range(draw.randrange(20, 45)):
            at += draw.randrange(15_000, 90_000)
            sums = [1.0] if draw.random() < 0.8 else [1.0, float(draw.randrange(400, 2_500))]
            for k, amount in enumerate(sums):
                yield (
                    {
                        "type": "payment",
                        "time": at + k * 20_000,
                        **who,
                        "order_id": f"o-test{tester}-{card}-{k}",
                        "payment_account": f"stolen{tester}-{card}",
                        "merchant_id": f"m{draw.randrange(200)}",
                        "currency": "CNY",
                        "list_price": amount,
                        "discount": 0.0,
                        "amount": amount,
                        "recipient": f"drop{tester}",
                        "address": f"{tester} Nowhere Lane, {region}",
                        "pages_viewed": 1,
                        "dwell_s": round(draw.uniform(0.5, 3.0), 1),
                    },
                    True,
                )


def charged_again(draw: random.Random, start_ms: int, scale: float) -> Iterator[tuple[Event, bool]]:
    """A gateway that times out is asked anew each time, as another request: one order, 22 charges."""
    for order in range(_number(2, scale)):
        at = start_ms + 20 * HOUR_MS + draw.randrange(40 * MINUTE_MS)
        region = draw.choice(list(REGIONS))
        price = float(draw.randrange(80, 400))
        paid = {
            **_person(draw, f"again{order}", region),
            "order_id": f"o-again{order}",
            "payment_account": f"card-again{order}",
            "merchant_id": f"m{draw.randrange(200)}",
            "currency": "CNY",
            "list_price": price,
            "discount": 0.0,
            "amount": price,
            "recipient": f"r-again{order}",
            "address": f"{order} Garden Road, {region}",
            "pages_viewed": 6,
            "dwell_s": 75.0,
        }
        for charge in range(22):
            yield {"type": "payment", "time": at, **paid}, charge > 0
            at += draw.randrange(2_000, 9_000)


_KINDS: Final[dict[str, Kind]] = {
    "device-farm": device_farm,
    "number-pool": number_pool,
    "copied-code": copied_code,
    "harvested-codes": harvested_codes,
    "colluding-shop": colluding_shop,
    "card-testing": card_testing,
    "charged-again": charged_again,
}
KINDS: Final = tuple(_KINDS)


def _number(n: int, scale: float) -> int:
    return max(1, round(n * scale))


def _person(draw: random.Random, name: str, region: str) -> Event:
    """Someone real who takes part: an old account on a phone of their own."""
    return {
        "user_id": f"x-{name}",
        "device_id": f"xd-{name}",
        "ip": f"100.{draw.randrange(64, 128)}.{draw.randrange(256)}.{draw.randrange(1, 255)}",
        "phone": f"139{draw.randrange(10**8):08}",
        "phone_verified": True,
        "phone_kind": "mobile",
        "account_created": 1_700_000_000_000 + draw.randrange(80_000_000) * 1_000,
        "channel": "miniprogram",
        "region": region,
        "location": near(draw, region),
    }


def _bot(draw: random.Random, name: str, device: str, region: str, created_ms: int) -> Event:
    """An account made for the purpose, minutes ago."""
    return {
        "user_id": f"x-{name}",
        "device_id": device,
        "ip": f"203.0.113.{draw.randrange(1, 255)}",
        "phone": f"137{draw.randrange(10**8):08}",
        "phone_verified": True,
        "phone_kind": "mobile",
        "account_created": created_ms,
        "channel": "app",
        "region": region,
        "location": near(draw, region),
        "user_agent": "Android 9; sdk_gphone_x86",
    }
