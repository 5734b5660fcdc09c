"""Abuse of coupons: many accounts, few people. Each kind changes its ways when it is refused."""

from __future__ import annotations

import random
from collections.abc import Iterator

from riskengine.simulate import goods
from riskengine.simulate.crews import EMULATOR, RENTED, SOLVERS, Crew, bought_age, daytime, opening
from riskengine.simulate.people import DAY_MS, HOUR_MS, MINUTE_MS
from riskengine.simulate.places import NAMES, carrier_ip, proxy_ip, rack_ip
from riskengine.simulate.world import Agent, Event


def device_farm(draw: random.Random, start_ms: int, name: str) -> Iterator[Agent]:
    """A rack of phones; on each, account after account is made, claims what there is, and is left.

    Refused, it works slower, makes fewer accounts on a phone, and in the end goes by proxies.
    """
    crew = Crew(draw, "device-farm", name, purse=40)
    rack, begins = draw.randrange(256), opening(draw, start_ms)

    def phone(number: int) -> Agent:
        device, at = f"farm-{name}-{number:02}", begins + draw.randrange(5 * MINUTE_MS)
        for account in range(draw.randrange(18, 30)):
            if crew.has_enough:
                return
            at += crew.minutes(1, 4)
            ip = rack_ip(draw, rack) if crew.refused < 20 else proxy_ip(draw)
            who = crew.account(
                f"{number:02}{account:02}", at, device=device, ip=ip, age_ms=crew.minutes(1, 6)
            )
            coupon = goods.new_customer_coupon() if draw.random() < 0.5 else goods.a_coupon(draw)
            claim = {**who, **coupon, "address": f"{rack} Warehouse Road, {crew.region}"}
            granted = yield from crew.tries(at, claim)
            if not granted and crew.refused > 8 and draw.random() < 0.5:
                return  # this phone is burnt

    yield from (phone(number) for number in range(16))


def emulator_reset(draw: random.Random, start_ms: int, name: str) -> Iterator[Agent]:
    """An emulator that is a new phone for every account; refused, it changes its line for each as well."""
    crew = Crew(draw, "emulator-reset", name, purse=25)
    ip, at = proxy_ip(draw), opening(draw, start_ms)
    address, is_plain = f"{draw.randrange(400)} Parcel Locker, {crew.region}", draw.random() < 0.3

    def run() -> Agent:
        nonlocal at, ip
        for account in range(draw.randrange(60, 140)):
            if crew.has_enough:
                return
            at += crew.minutes(0.7, 3)
            if crew.refused > 5:
                ip = proxy_ip(draw)
            device = f"reset-{name}-{account:03}"
            who = crew.account(f"{account:03}", at, device=device, ip=ip, age_ms=crew.minutes(1, 4))
            if is_plain:
                who |= {"user_agent": EMULATOR}
            yield from crew.tries(at, {**who, **goods.new_customer_coupon(), "address": address})

    yield run()


def number_pool(draw: random.Random, start_ms: int, name: str) -> Iterator[Agent]:
    """Rented SIM cards: each number serves one account after another, each on a phone set back to new."""
    crew = Crew(draw, "number-pool", name, purse=20, passes=dict(RENTED))
    at = opening(draw, start_ms)

    def number(k: int) -> Agent:
        when, phone = at + draw.randrange(40 * MINUTE_MS), f"171{draw.randrange(10**8):08}"
        for account in range(draw.randrange(5, 12)):
            if crew.has_enough:
                return
            when += crew.minutes(1, 6)
            ip = carrier_ip(draw, crew.region)
            device = f"reset-{name}-{k}-{account}"
            who = crew.account(
                f"{k}-{account}", when, device=device, ip=ip, age_ms=20 * MINUTE_MS, phone=phone
            )
            who |= {"phone_kind": "virtual" if draw.random() < 0.8 else "voip"}
            coupon = goods.new_customer_coupon() if draw.random() < 0.6 else goods.a_coupon(draw)
            claim = {**who, **coupon, "address": f"{name}-{k} Pickup Point, {crew.region}"}
            yield from crew.tries(when, claim)

    yield from (number(k) for k in range(8))


def slow_and_low(draw: random.Random, start_ms: int, name: str) -> Iterator[Agent]:
    """A few accounts a day on one phone over mobile lines, at human hours, all to one door; day after day.

    The door stays, a phone serves for some five days, and tomorrow is another day for whoever was refused.
    """
    crew = Crew(draw, "slow-and-low", name, purse=6)
    lasting = random.Random(name)  # `name` is the same every day
    crew.region = lasting.choice(NAMES)
    address, day = f"{lasting.randrange(10**5)} Elm Street, {crew.region}", start_ms // DAY_MS
    device = f"quiet-{name}-{(day + lasting.randrange(5)) // 5}"
    when = sorted(daytime(draw, start_ms) for _ in range(draw.randrange(3, 6)))

    def run() -> Agent:
        for account, at in enumerate(when):
            if crew.has_enough:
                return
            age_ms = draw.randrange(DAY_MS, 20 * DAY_MS)
            who = crew.account(
                f"{day}-{account}", at, device=device, ip=carrier_ip(draw, crew.region), age_ms=age_ms
            )
            who |= {"user_agent": "vivo V2309A"}
            yield from crew.tries(
                at, {**who, **goods.a_coupon(draw), "captcha_passed": True, "address": address}
            )

    yield run()


def account_market(draw: random.Random, start_ms: int, name: str) -> Iterator[Agent]:
    """Old accounts, bought by the dozen, used on a few phones; what they claim is spent for one buyer."""
    crew = Crew(draw, "account-market", name, purse=15)
    devices = [f"market-{name}-{i}" for i in range(3)]
    ip, recipient = proxy_ip(draw), f"buyer-{name}"
    at = opening(draw, start_ms)

    def run() -> Agent:
        nonlocal at
        for account in range(draw.randrange(25, 50)):
            if crew.has_enough:
                return
            at += crew.minutes(2, 6)
            device = devices[account % 3] if crew.refused < 5 else f"market-{name}-n{account}"
            who = crew.account(f"{account:02}", at, device=device, ip=ip, age_ms=bought_age(draw))
            who |= {"user_agent": "Xiaomi 2311DRK48C", "id_verified": draw.random() < 0.15}  # those cost more
            coupon = goods.a_coupon(draw)
            address = f"{name} Depot, {crew.region}"
            if (yield from crew.tries(at, {**who, **coupon, "address": address})):
                order = goods.an_order(draw, round(draw.uniform(20, 40), 2))
                order |= goods.with_coupon(order, coupon["coupon_type"])
                order |= {"pages_viewed": 1, "dwell_s": 2.5}
                paid = {"payment_account": f"card-market-{name}", "recipient": recipient, "address": address}
                yield from crew.tries(at + crew.minutes(3, 10), {**who, **order, **paid})

    yield run()


def ring_leader(draw: random.Random, start_ms: int, name: str) -> Iterator[Agent]:
    """One person with a dozen accounts, who goes on with fresh ones when some are refused.

    The card that pays, the phone that is called and the door that it all goes to stay the same.
    """
    crew = Crew(draw, "ring-leader", name, purse=12, passes=dict(SOLVERS) | {"face": 0.1})
    phone, card = f"136{draw.randrange(10**8):08}", f"card-ring-{name}"
    address, at = f"{name} Ring Road, {crew.region}", daytime(draw, start_ms) - 6 * HOUR_MS

    def run() -> Agent:
        nonlocal at
        device, fresh = f"ring-{name}-0", 0
        for turn in range(draw.randrange(20, 36)):
            if crew.has_enough:
                return
            at += crew.minutes(8, 25)
            who = crew.account(
                f"{turn}",
                at,
                device=device,
                ip=carrier_ip(draw, crew.region),
                age_ms=2 * HOUR_MS,
                phone=phone,
            )
            claim: Event = {**who, **goods.a_coupon(draw), "captcha_passed": True, "address": address}
            granted = yield from crew.tries(at, claim)
            if not granted:  # a new phone, and on with it
                fresh += 1
                device = f"ring-{name}-{fresh}"
            elif draw.random() < 0.6:
                order = goods.an_order(draw, round(draw.uniform(25, 60), 2))
                order |= goods.with_coupon(order, claim["coupon_type"])
                paid = {"payment_account": card, "recipient": f"ring-{name}", "address": address}
                yield from crew.tries(at + crew.minutes(2, 6), {**who, **order, **paid})

    yield run()
