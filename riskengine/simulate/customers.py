"""Ordinary customers: who they are, and what they do in the course of a day.

They are not all tidy: families share a tablet, a carrier shows many phones as one address, some tap twice,
some come by a tunnel from another city. A policy has to live with that.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

Event = dict[str, Any]

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000

# Share of a day's events by hour of local time: asleep, morning, lunch, and the evening on the sofa.
QUIET_DAY: Final = (3, 2, 1, 1, 1, 2, 4, 7, 9, 11, 12, 13, 14, 12, 10, 10, 11, 12, 14, 17, 20, 19, 13, 7)
# On the campaign day coupons open at midnight, at ten and at eight in the evening.
CAMPAIGN_DAY: Final = (
    38,
    12,
    4,
    2,
    2,
    3,
    5,
    9,
    14,
    20,
    46,
    24,
    22,
    18,
    14,
    14,
    16,
    18,
    22,
    30,
    62,
    34,
    22,
    16,
)
EVENTS_A_USER: Final = {False: 0.35, True: 1.6}

REGIONS: Final = {
    "CN-SH": (31.23, 121.47), "CN-BJ": (39.90, 116.40), "CN-GD": (23.13, 113.26),
    "CN-ZJ": (30.27, 120.16), "CN-SC": (30.66, 104.07),
}  # fmt: skip
CAMPAIGNS: Final = {"double-eleven": 6, "autumn-coupons": 2, "everyday-coupons": 2}  # how wanted
COUPONS: Final = (("ten-off", 10.0, 4), ("freeship", 6.0, 3), ("five-off", 5.0, 3))  # name, worth, how wanted
USER_AGENTS: Final = ("iPhone15,3", "iPhone14,7", "HUAWEI ALN-AL00", "Xiaomi 2311DRK48C", "vivo V2309A")


@dataclass(frozen=True, slots=True)
class Customer:
    """Someone with a phone, a home and a card. `common` is what each of their events carries."""

    common: Event
    address: str
    account: str
    spends: float  # a usual basket, yuan


def customers(draw: random.Random, n: int, now_ms: int) -> list[Customer]:
    """`n` people; families share a device, students an address, and a carrier's customers one of two IPs."""
    people = []
    for i in range(n):
        device, ip, address = f"d{i:06}", _ip(10, i), f"{draw.randrange(1, 400)} Garden Road, flat {i}"
        if i % 40 in (1, 2) and i > 2:  # a family tablet: one device, two or three people
            device = f"d{i - i % 40:06}"
        if i % 25 == 0:  # a dormitory
            address = f"{1 + i // 1_000} Campus Lane"
        if i % 8 == 0:  # a carrier
            ip = _ip(11, i // 8 % 2)
        region = draw.choice(list(REGIONS))
        virtual = draw.random() < 0.01
        people.append(
            Customer(
                common={
                    "user_id": f"u{i:06}",
                    "device_id": device,
                    "ip": ip,
                    "phone": f"{'170' if virtual else '138'}{i:08}",
                    "phone_verified": True,
                    "phone_kind": "virtual" if virtual else "mobile",
                    "account_created": now_ms - int(draw.paretovariate(0.6) * HOUR_MS) % (900 * DAY_MS),
                    "channel": draw.choice(("app", "app", "miniprogram", "web")),
                    "region": region,
                    "location": near(draw, region),
                    "user_agent": draw.choice(USER_AGENTS),
                },
                address=f"{address}, {region}",
                account=f"card-{i:06}",
                spends=draw.lognormvariate(4.2, 0.6),
            )
        )
    return people


def events_of_a_day(users: int, is_campaign: bool) -> int:
    """How many things that many customers set out to do; about one event each comes of them."""
    return round(users * EVENTS_A_USER[is_campaign])


def ordinary(
    draw: random.Random, people: list[Customer], start_ms: int, is_campaign: bool
) -> Iterator[Event]:
    """What they do on one day, in no order."""
    hours = CAMPAIGN_DAY if is_campaign else QUIET_DAY
    claimed: set[tuple[str, str]] = set()  # what each device has had today, as the app shows it
    for moment in _moments(draw, hours, events_of_a_day(len(people), is_campaign)):
        who = draw.choice(people)
        kind = draw.random()
        at_ms = start_ms + moment
        common = who.common if draw.random() > 0.003 else _elsewhere(draw, who.common)
        if kind < 0.45:
            claim = {**common, **a_claim(draw), "address": who.address}
            claim["captcha_passed"] = draw.random() < 0.8  # some clients ask before anyone tells them to
            wanted = (claim["device_id"], claim["coupon_type"])
            if wanted in claimed and draw.random() < 0.97:
                continue  # the button is grey
            claimed.add(wanted)
            yield {"type": "coupon_claim", "time": at_ms, **claim}
            if draw.random() < 0.004:  # tapped twice
                yield {"type": "coupon_claim", "time": at_ms + draw.randrange(900, 4_000), **claim}
        elif kind < 0.75:
            packets = draw.choices((1, 2, 6), (80, 18, 2))[0]  # a bottle, two, a crate opened at a feast
            for k in range(packets):
                yield {"type": "qr_scan", "time": at_ms + k * 40_000, **common, **a_scan(draw)}
        else:
            yield {"type": "payment", "time": at_ms, **common, **a_payment(draw, who)}


def a_claim(draw: random.Random) -> Event:
    """A coupon asked for."""
    name, worth, _ = draw.choices(COUPONS, [wanted for *_, wanted in COUPONS])[0]
    return {
        "campaign_id": draw.choices(list(CAMPAIGNS), list(CAMPAIGNS.values()))[0],
        "coupon_type": name,
        "funder": "platform" if name != "five-off" else "store",
        "merchant_id": f"m{draw.randrange(200)}",
        "amount": worth,
    }


def a_scan(draw: random.Random) -> Event:
    """A code under a bottle cap, scanned once, with its red packet."""
    code = draw.randrange(10**12)
    return {
        "code_id": f"k{code:012}",
        "batch_id": f"b{code % 60}",
        "campaign_id": "red-packet-2026",
        "terminal_id": f"t{draw.randrange(3_000)}",
        "amount": draw.choices((0.88, 1.88, 2.88, 8.88), (60, 25, 12, 3))[0],
    }


def a_payment(draw: random.Random, who: Customer) -> Event:
    """A basket, with a coupon or without, after some looking around."""
    price = round(who.spends * draw.lognormvariate(0, 0.35) + 1, 2)
    paid: Event = {
        "order_id": f"o{draw.randrange(10**10):010}",
        "payment_account": who.account,
        "merchant_id": f"m{draw.randrange(200)}",
        "currency": "CNY",
        "list_price": price,
        "recipient": f"r-{who.common['user_id']}",
        "address": who.address,
        "pages_viewed": draw.randrange(1, 25),
        "dwell_s": round(draw.lognormvariate(4, 1), 1),
    }
    discount = 0.0
    if draw.random() < 0.4:
        name, worth, _ = draw.choice(COUPONS)
        discount = min(worth, round(price / 2, 2))
        paid["coupon_type"] = name
    return {**paid, "discount": discount, "amount": round(price - discount, 2)}


def near(draw: random.Random, region: str) -> dict[str, float]:
    """A place in the city of a region."""
    lat, lon = REGIONS[region]
    return {"lat": round(lat + draw.gauss(0, 0.05), 5), "lon": round(lon + draw.gauss(0, 0.05), 5)}


def _elsewhere(draw: random.Random, common: Event) -> Event:
    """The same person, seen in another city: a tunnel, or a position that is wrong."""
    region = draw.choice(list(REGIONS))
    return {**common, "region": region, "location": near(draw, region)}


def _moments(draw: random.Random, hours: tuple[int, ...], n: int) -> Iterator[int]:
    """`n` moments of a day in ms, as busy as `hours` says; what opens on the hour is rushed at."""
    for hour in draw.choices(range(24), hours, k=n):
        rushed = hours[hour] >= 2 * hours[hour - 1]
        share = draw.betavariate(1, 4) if rushed else draw.random()
        yield hour * HOUR_MS + int(share * HOUR_MS)


def _ip(first: int, i: int) -> str:
    return f"{first}.{i // 65_536 % 256}.{i // 256 % 256}.{i % 256}"
