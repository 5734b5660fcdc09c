"""Abuse of payments: shops that buy from themselves, stolen cards and accounts, orders charged again."""

from __future__ import annotations

import random
from collections.abc import Iterator

from riskengine.simulate import goods
from riskengine.simulate.crews import HUMANS, STOLEN, Crew, bought_age, daytime
from riskengine.simulate.people import DAY_MS, HONEST, HOUR_MS, MINUTE_MS
from riskengine.simulate.places import NAMES, carrier_ip, near, proxy_ip
from riskengine.simulate.world import Act, Agent


def colluding_shop(draw: random.Random, start_ms: int, name: str) -> Iterator[Agent]:
    """A shop sells to its own accounts for the coupons; parcels, if any, go to helpers, and money back.

    The clumsy are seen to look at nothing. Others have a script leaf through the shop first, ship to one door
    an account, and name a list price that nobody ever paid.
    """
    crew = Crew(draw, "colluding-shop", name, purse=15, passes=dict(HUMANS))
    merchant, at = f"m-shop-{name}", start_ms + 8 * HOUR_MS
    is_careful, accounts = draw.random() < 0.5, draw.choice((12, 30))

    def run() -> Agent:
        nonlocal at
        for order in range(draw.randrange(40, 70)):
            if crew.has_enough:
                return
            at += crew.minutes(4, 20)
            helper, label = draw.randrange(6), order % accounts
            who = crew.account(
                f"{label}",
                at,
                device=f"shop-{name}-{helper}",
                ip=carrier_ip(draw, crew.region),
                age_ms=bought_age(draw),
            )
            price = draw.choice((19.9, 20.0, 21.9))
            bought = goods.an_order(draw, price, merchant) | {
                "coupon_type": "ten-off", "funder": "platform", "discount": 10.0,
                "amount": round(price - 10, 2), "payment_account": f"card-shop-{name}-{label}",
            }  # fmt: skip
            if is_careful:
                bought |= {
                    "list_price": 99.0, "pages_viewed": draw.randrange(3, 7),
                    "dwell_s": round(draw.uniform(20, 40), 1),
                    "recipient": f"helper-{name}-{label}", "address": f"{label} {name} Lane, {crew.region}",
                }  # fmt: skip
            else:
                bought |= {
                    "pages_viewed": draw.choice((0, 1, 1)), "dwell_s": round(draw.uniform(0.4, 4.0), 1),
                    "recipient": f"helper-{name}-{helper % 3}",
                    "address": f"{name} Market Street, {crew.region}",
                }  # fmt: skip
            granted = yield from crew.tries(at, {**who, **bought})
            if granted and draw.random() < 0.3:
                yield Act(at + HOUR_MS, {**who, **goods.a_refund(bought)}, crew.kind)

    yield run()


def card_testing(draw: random.Random, start_ms: int, name: str) -> Iterator[Agent]:
    """Stolen cards, tried one after another for a yuan; those that answer are charged at once."""
    crew = Crew(draw, "card-testing", name, purse=15, passes=dict(STOLEN))
    at = start_ms + draw.randrange(24 * HOUR_MS)

    def run() -> Agent:
        nonlocal at
        device, merchant = f"tester-{name}-0", goods.a_merchant(draw)
        for card in range(draw.randrange(20, 45)):
            if crew.has_enough:
                return
            at += int(draw.uniform(15_000, 90_000) * crew.caution)
            who = crew.account(f"{card // 15}", at, device=device, ip=proxy_ip(draw), age_ms=HOUR_MS)
            sums = [1.0] if draw.random() < 0.8 else [1.0, float(draw.randrange(400, 2_500))]
            for k, amount in enumerate(sums):
                order = goods.an_order(draw, amount) | {
                    "merchant_id": merchant, "payment_account": f"stolen-{name}-{card}", "pages_viewed": 1,
                    "recipient": f"drop-{name}", "address": f"{name} Nowhere Lane, {crew.region}",
                    "dwell_s": round(draw.uniform(0.5, 3.0), 1),
                }  # fmt: skip
                if not (yield from crew.tries(at + k * 20_000, {**who, **order})):
                    if crew.refused % 4 == 0:
                        device = f"tester-{name}-{crew.refused}"
                    break

    yield run()


def account_takeover(draw: random.Random, start_ms: int, name: str) -> Iterator[Agent]:
    """Somebody else's old account: the password is changed, then all goes to a new door from a new phone."""
    crew = Crew(draw, "account-takeover", name, purse=6, passes=dict(STOLEN))
    at = start_ms + draw.randrange(8 * HOUR_MS, 24 * HOUR_MS)

    def run() -> Agent:
        nonlocal at
        owner = crew.account(
            "victim", at, device=f"own-{name}", ip=carrier_ip(draw, crew.region), age_ms=bought_age(draw)
        )
        owner |= {"user_agent": "iPhone14,7", "channel": "app"}
        bought = goods.an_order(draw, round(draw.uniform(40, 120), 2))
        home = {
            "payment_account": f"card-own-{name}",
            "recipient": f"r-{name}",
            "address": f"{name} Old Street, {crew.region}",
        }
        yield Act(start_ms + draw.randrange(6 * HOUR_MS), {**owner, **bought, **home}, HONEST)
        far = draw.choice([region for region in NAMES if region != crew.region])
        thief = {
            **owner,
            "device_id": f"thief-{name}",
            "ip": proxy_ip(draw),
            "region": far,
            "location": near(draw, far),
        }
        yield Act(at, {**thief, "type": "credential_change", "change": "password"}, crew.kind)
        for _ in range(draw.randrange(2, 5)):
            if crew.has_enough:
                return
            at += crew.minutes(3, 15)
            order = goods.an_order(draw, float(draw.randrange(600, 4_000)))
            drop = {
                "payment_account": f"card-own-{name}",
                "recipient": f"drop-{name}",
                "address": f"{name} Drop Lane, {far}",
            }
            yield from crew.tries(at, {**thief, **order, **drop})

    yield run()


def charged_again(draw: random.Random, start_ms: int, name: str) -> Iterator[Agent]:
    """A gateway that times out is asked anew each time, as another request: one order, 22 charges."""
    crew = Crew(draw, "charged-again", name, purse=100)
    at = start_ms + draw.randrange(24 * HOUR_MS)

    def run() -> Agent:
        nonlocal at
        who = crew.account(
            "payer", at, device=f"own-{name}", ip=carrier_ip(draw, crew.region), age_ms=bought_age(draw)
        )
        order = goods.an_order(draw, float(draw.randrange(80, 400))) | {
            "payment_account": f"card-again-{name}", "recipient": f"r-{name}",
            "address": f"{name} Garden Road, {crew.region}",
        }  # fmt: skip
        paid = {**who, **order, "user_agent": "iPhone14,7"}
        yield Act(at, paid, HONEST)
        for _ in range(21):
            at += draw.randrange(2_000, 9_000)
            yield from crew.tries(at, paid)

    yield run()


def refund_abuse(draw: random.Random, start_ms: int, name: str) -> Iterator[Agent]:
    """Bought, received, and called lost: the same person claims order after order back."""
    crew = Crew(draw, "refund-abuse", name, purse=4, passes=dict(HUMANS))
    at = daytime(draw, start_ms)

    def run() -> Agent:
        nonlocal at
        who = crew.account(
            "buyer", at, device=f"own-{name}", ip=carrier_ip(draw, crew.region), age_ms=30 * DAY_MS
        )
        for _ in range(draw.randrange(6, 12)):
            if crew.has_enough:
                return
            at += crew.minutes(10, 40)
            order = goods.an_order(draw, float(draw.randrange(60, 300))) | {
                "payment_account": f"card-back-{name}", "recipient": f"r-{name}",
                "address": f"{name} Back Lane, {crew.region}",
            }  # fmt: skip
            yield Act(at, {**who, **order}, HONEST)
            yield from crew.tries(at + 20 * MINUTE_MS, {**who, **goods.a_refund(order)})

    yield run()
