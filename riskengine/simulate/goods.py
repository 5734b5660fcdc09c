"""What there is to be had: campaigns, coupons, codes with their red packets, shops and their prices."""

from __future__ import annotations

import random
from typing import Any, Final

from riskengine.simulate.places import NAMES

Event = dict[str, Any]

CAMPAIGNS: Final = {"double-eleven": 6, "autumn-coupons": 2, "everyday-coupons": 2}  # how wanted
COUPONS: Final = (("ten-off", 10.0, 4), ("freeship", 6.0, 3), ("five-off", 5.0, 3))  # name, worth, how wanted
NEW_CUSTOMER: Final = ("new-customers", "new-twenty", 20.0)  # campaign, coupon, worth
WORTH: Final = {name: worth for name, worth, _ in COUPONS} | {NEW_CUSTOMER[1]: NEW_CUSTOMER[2]}
PACKETS: Final = ((0.88, 60), (1.88, 25), (2.88, 12), (8.88, 3))
PACKET_CAMPAIGN: Final = "red-packet-2026"
BATCHES: Final = 64
MERCHANTS: Final = 200
# Among them: shops where everything costs the same (tea, a haircut), and shops that clear their shelves.
FIXED_PRICE: Final = {
    f"m{shop}": price for shop, price in zip(range(0, 40, 4), (9.9, 15.0, 18.0, 29.9, 39.0) * 2, strict=True)
}
CLEARANCE: Final = frozenset(f"m{shop}" for shop in range(1, 40, 4))
CORNER_SHOPS: Final = 4  # of a region; a few dozen people buy nearly everything there
TERMINALS: Final = 3_000
CODES_A_BATCH: Final = 10**6


def a_coupon(draw: random.Random) -> Event:
    """A coupon asked for."""
    name, worth, _ = draw.choices(COUPONS, [wanted for *_, wanted in COUPONS])[0]
    return {
        "type": "coupon_claim",
        "campaign_id": draw.choices(list(CAMPAIGNS), list(CAMPAIGNS.values()))[0],
        "coupon_type": name,
        "funder": "platform" if name != "five-off" else "store",
        "merchant_id": a_merchant(draw),
        "amount": worth,
    }


def new_customer_coupon() -> Event:
    """The coupon that only a first account is meant to have."""
    campaign, name, worth = NEW_CUSTOMER
    return {
        "type": "coupon_claim",
        "campaign_id": campaign,
        "coupon_type": name,
        "funder": "platform",
        "amount": worth,
    }


def region_of(batch: int) -> str:
    """Where a batch of codes was shipped to."""
    return NAMES[batch % len(NAMES)]


def a_code(draw: random.Random, region: str) -> Event:
    """A code under a bottle cap sold in a region, with its red packet."""
    batch = draw.randrange(BATCHES // len(NAMES)) * len(NAMES) + NAMES.index(region)
    return code_of(draw, batch)


def code_of(draw: random.Random, batch: int) -> Event:
    """A code of a batch."""
    return {
        "type": "qr_scan",
        "code_id": f"k{batch:02}{draw.randrange(CODES_A_BATCH):010}",
        "batch_id": f"b{batch}",
        "campaign_id": PACKET_CAMPAIGN,
        "code_known": True,
        "amount": draw.choices([worth for worth, _ in PACKETS], [often for _, often in PACKETS])[0],
    }


def a_merchant(draw: random.Random) -> str:
    """A shop on the platform."""
    return f"m{draw.randrange(MERCHANTS)}"


def a_corner_shop(draw: random.Random, region: str) -> str:
    """A small shop round the corner."""
    return f"c-{region}-{draw.randrange(CORNER_SHOPS)}"


def an_order(draw: random.Random, price: float, merchant: str | None = None) -> Event:
    """A basket at a shop (any of the platform's unless said), after some looking around."""
    merchant = merchant or a_merchant(draw)
    price = FIXED_PRICE.get(merchant, price)
    return {
        "type": "payment",
        "order_id": f"o{draw.randrange(10**12):012}",
        "merchant_id": merchant,
        "currency": "CNY",
        "list_price": round(price * draw.uniform(2, 6), 2) if merchant in CLEARANCE else price,
        "discount": 0.0,
        "amount": price,
        "pages_viewed": draw.randrange(2, 25),
        "dwell_s": round(draw.lognormvariate(4, 1), 1),
    }


def with_coupon(order: Event, coupon: str) -> Event:
    """What a coupon changes of an order: at most half of the price."""
    discount = min(WORTH.get(coupon, 5.0), round(order["amount"] / 2, 2))
    return {
        "coupon_type": coupon,
        "funder": "store" if coupon == "five-off" else "platform",
        "discount": discount,
        "amount": round(order["amount"] - discount, 2),
    }


def a_refund(order: Event) -> Event:
    """What is told when an order's money is asked back: all of it, and what had paid for it."""
    told = ("order_id", "merchant_id", "payment_account", "amount", "coupon_type", "funder")
    return {"type": "refund", **{name: order[name] for name in told if name in order}}


def at_stake(event: Event) -> int:
    """What an event is after, in fen: of a payment with a coupon its discount, else its amount."""
    name = "discount" if "coupon_type" in event and event["type"] == "payment" else "amount"
    return round(float(event.get(name, 0)) * 100)
