"""Honest people: who they are, what they do in a day, and how they take it when they are asked or refused.

They are not tidy. Families share a tablet, an office goes out by one address, students live at one, people
fly, move, change phones, tap twice, and are helped at the shop's own tablet. A policy has to live with it.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from riskengine.simulate import goods
from riskengine.simulate.places import NAMES, carrier_ip, home_ip, near, office_ip
from riskengine.simulate.world import Act, Agent, Arrival, Outcome

Event = dict[str, Any]

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
NEW: Final = 0  # an account that is made on the first visit
HONEST: Final = "ordinary"
IN_VAIN: Final = (
    "asked-in-vain"  # honest, but for what they had already or nobody has: to refuse harms no one
)

# Share of a day's visits by hour of local time: asleep, morning, lunch, and the evening on the sofa.
QUIET_DAY: Final = (3, 2, 1, 1, 1, 2, 4, 7, 9, 11, 12, 13, 14, 12, 10, 10, 11, 12, 14, 17, 20, 19, 13, 7)
# On the campaign day coupons open at midnight, at ten and at eight in the evening.
CAMPAIGN_DAY: Final = (
    38, 12, 4, 2, 2, 3, 5, 9, 14, 20, 46, 24, 22, 18, 14, 14, 16, 18, 22, 30, 62, 34, 22, 16,
)  # fmt: skip
VISITS_A_USER: Final = {False: 0.35, True: 1.6}
USER_AGENTS: Final = ("iPhone15,3", "iPhone14,7", "HUAWEI ALN-AL00", "Xiaomi 2311DRK48C", "vivo V2309A")
OFFICE_SIZE, DORMITORY_SIZE, TABLET_USERS_A_DAY = 120, 150, 14
PASSES: Final = {"captcha": 0.97, "sms": 0.95, "voice": 0.9, "face": 0.92, "id": 0.85}  # who means well


@dataclass(slots=True)
class Person:
    """Somebody with a phone, a home and a card. `works` and `studies` are the addresses seen from there."""

    name: str
    device: str
    tablet: str | None
    phone: str
    phone_kind: str
    region: str
    ip: str
    works: str | None
    address: str
    account: str
    created_ms: int
    channel: str
    user_agent: str
    spends: float
    is_identified: bool
    wallet: list[str]  # coupons claimed and not yet spent
    favourite: str | None  # the one shop that nearly everything is bought at
    card_bound: bool
    has_welcome: bool = False

    def seen(self, draw: random.Random, at_ms: int) -> Event:
        """What each of their events carries, by where they are at that hour."""
        if self.created_ms == NEW:
            self.created_ms = at_ms - draw.randrange(2 * MINUTE_MS, 3 * HOUR_MS)
        hour = (at_ms // HOUR_MS + 8) % 24
        where, region = draw.random(), self.region
        if self.works is not None and 9 <= hour < 18:
            ip = self.works
        else:
            ip = self.ip if where < 0.6 else carrier_ip(draw, region)
        device = self.tablet if self.tablet is not None and draw.random() < 0.4 else self.device
        return {
            "user_id": self.name,
            "device_id": device,
            "ip": ip,
            "phone": self.phone,
            "phone_verified": True,
            "phone_kind": self.phone_kind,
            "account_created": self.created_ms,
            "id_verified": self.is_identified,
            "card_bound": self.card_bound,
            "channel": self.channel,
            "region": region,
            "location": near(draw, region),
            "user_agent": self.user_agent,
        }


def population(draw: random.Random, n: int, now_ms: int) -> list[Person]:
    """`n` people by household; some work in an office, some live in a dormitory, some came from elsewhere."""
    people: list[Person] = []
    home = 0
    while len(people) < n:
        home += 1
        region = draw.choice(NAMES)
        is_dormitory = draw.random() < 0.03
        size = 1 if is_dormitory else draw.choices((1, 2, 3, 4), (35, 35, 20, 10))[0]
        hall = draw.randrange(max(n // 30 // DORMITORY_SIZE, 1))
        ip = office_ip(1_000_000 + hall) if is_dormitory else home_ip(home)
        address = f"Hall {hall}, Campus Lane" if is_dormitory else f"{home} Garden Road"
        number = f"139{home:08}" if size > 1 and draw.random() < 0.02 else None  # one phone for a couple
        tablet = f"tab{home:06}" if size > 1 and draw.random() < 0.12 else None
        shared = f"card-{home:06}" if size > 1 and draw.random() < 0.25 else None
        for member in range(min(size, n - len(people))):
            i = len(people)
            kind = draw.choices(("mobile", "virtual", "voip"), (985, 12, 3))[0]
            works = None
            if draw.random() < 0.3:
                works = office_ip(draw.randrange(max(n // 3 // OFFICE_SIZE, 1)))
            people.append(
                Person(
                    name=f"u{i:06}",
                    device=f"d{i:06}",
                    tablet=tablet,
                    phone=number
                    if number and member < 2
                    else f"{'170' if kind == 'virtual' else '138'}{i:08}",
                    phone_kind=kind,
                    region=region,
                    ip=ip,
                    works=works,
                    address=f"{address}, {region}",
                    account=shared if shared and member < 2 else f"card-{i:06}",  # the parents'
                    created_ms=NEW if draw.random() < 0.06 else _long_ago(draw, now_ms),
                    channel=draw.choice(("app", "app", "miniprogram", "web")),
                    user_agent=draw.choice(USER_AGENTS),
                    spends=draw.lognormvariate(4.2, 0.6),
                    is_identified=draw.random() < 0.7,
                    wallet=[],
                    favourite=goods.a_corner_shop(draw, region) if draw.random() < 0.12 else None,
                    card_bound=draw.random() < 0.8,
                )
            )
    return people


def visits(
    draw: random.Random,
    people: list[Person],
    start_ms: int,
    is_campaign: bool,
    rush: tuple[int, float] | None,
) -> Iterator[Arrival]:
    """What people set out to do on one day, by time. `rush`: an hour, and how many times as busy it is."""
    hours = list(CAMPAIGN_DAY if is_campaign else QUIET_DAY)
    n = round(len(people) * VISITS_A_USER[is_campaign])
    if rush is not None:
        hour, times = rush
        n += round(n * hours[hour] * (times - 1) / sum(hours))
        hours[hour] = round(hours[hour] * times)
    had: set[tuple[str, str]] = set()  # what each user and each device has had today, as the app shows it
    for moment_ms in sorted(_moments(draw, hours, n)):
        who, seed = draw.choice(people), draw.getrandbits(64)
        yield start_ms + moment_ms, partial(_visit, seed, who, start_ms + moment_ms, had)


def shop_tablets(draw: random.Random, people: list[Person], start_ms: int, n: int) -> Iterator[Arrival]:
    """Shops where staff help customers to a coupon on the shop's own tablet: many accounts, one device."""
    coming: list[Arrival] = []
    for shop in range(n):
        for _ in range(TABLET_USERS_A_DAY):
            at_ms = start_ms + draw.randrange(9 * HOUR_MS, 21 * HOUR_MS)
            who, seed = draw.choice(people), draw.getrandbits(64)
            coming.append((at_ms, partial(_helped, seed, who, at_ms, shop)))
    return iter(sorted(coming, key=lambda one: one[0]))


def tablet_of(shop: int) -> str:
    """The device of a shop, which its brand has registered as trusted."""
    return f"shop-tablet-{shop:03}"


def settle(
    draw: random.Random, act: Act, passes: dict[str, float], patience: int = 2
) -> Generator[Act | list[Act], list[Outcome], str]:
    """Do something and answer what is asked: the action in the end, "failed" where the answer was wrong.

    `passes` is how often each kind of challenge is passed. A wrong answer is told too: a real client does.
    """
    outcome = (yield act)[0]
    for _ in range(patience):
        if outcome.action != "challenge":
            break
        asked = outcome.challenge or "captcha"
        is_right = draw.random() < passes.get(asked, 0.0)
        answer = {**act.event, f"{asked}_passed": is_right}
        at_ms = act.at_ms + draw.randrange(4_000, 30_000)
        act = Act(at_ms, answer, act.kind, outcome.event_id)
        outcome = (yield act)[0]
        if not is_right:
            return "failed"
    return outcome.action


def _visit(seed: int, who: Person, at_ms: int, had: set[tuple[str, str]]) -> Agent:
    """One thing that somebody does, and what else happens on the way."""
    draw = random.Random(seed)
    seen = who.seen(draw, at_ms)
    luck = draw.random()
    if luck < 0.0015:  # a new phone: the old one is gone
        who.device = f"{who.device}n"
        seen["device_id"] = who.device
        changed = {"type": "credential_change", "change": "device", **seen}
        yield Act(at_ms, changed, HONEST)
        at_ms += 2 * MINUTE_MS
    elif luck < 0.004:  # a tunnel, or a position that is wrong
        region = draw.choice(NAMES)
        seen |= {"region": region, "location": near(draw, region)}
    elif luck < 0.006:  # a flight, with a look at the telephone before and after
        yield Act(at_ms, {**seen, **goods.a_code(draw, who.region)}, HONEST)
        at_ms += draw.randrange(150, 260) * MINUTE_MS
        region = draw.choice(NAMES)
        seen |= {"region": region, "location": near(draw, region), "ip": carrier_ip(draw, region)}
    elif luck < 0.0065:  # moved for work: there from now on
        who.region = draw.choice(NAMES)
        who.address = f"{draw.randrange(10**6)} Harbour Street, {who.region}"
    wish = draw.random()
    if wish < 0.45:
        yield from _claim(draw, who, seen, at_ms, had)
    elif wish < 0.75:
        packets = draw.choices((1, 2, 6), (80, 18, 2))[0]  # a bottle, two, a crate opened at a feast
        terminal = f"t{draw.randrange(goods.TERMINALS)}"
        for k in range(packets):
            scan = {**seen, **goods.a_code(draw, _sold_in(draw, who)), "terminal_id": terminal}
            kind = HONEST
            if draw.random() < 0.002:  # a torn label, read wrong
                scan |= {"code_known": False, "amount": 0.0}
                kind = IN_VAIN
            yield from settle(draw, Act(at_ms + k * 40_000, scan, kind), PASSES)
    else:
        yield from _buy(draw, who, seen, at_ms)
        while who.favourite is not None and draw.random() < 0.5:  # and comes by again
            at_ms += draw.randrange(20, 240) * MINUTE_MS
            yield from _buy(draw, who, seen, at_ms)


def _sold_in(draw: random.Random, who: Person) -> str:
    """Where the bottle came from: a gift, a trip and a dealer who does not care bring some from elsewhere."""
    return who.region if draw.random() < 0.96 else draw.choice(NAMES)


def _claim(draw: random.Random, who: Person, seen: Event, at_ms: int, had: set[tuple[str, str]]) -> Agent:
    """Ask for a coupon; now and then for one that this person or this tablet has had today."""
    is_new = at_ms - who.created_ms < 7 * DAY_MS and not who.has_welcome
    coupon = goods.new_customer_coupon() if is_new and draw.random() < 0.5 else goods.a_coupon(draw)
    name = coupon["coupon_type"]
    kind = HONEST
    if (who.name, name) in had or (seen["device_id"], name) in had:
        if draw.random() < 0.97:
            return  # the button is grey
        kind = IN_VAIN
    claim = {**seen, **coupon, "address": who.address}
    if draw.random() < 0.8:
        claim["captcha_passed"] = True  # most clients ask before anyone tells them to
    got = yield from settle(draw, Act(at_ms, claim, kind), PASSES)
    if got in ("allow", "review"):  # the app shows what waits for a look, too
        had |= {(who.name, name), (seen["device_id"], name)}
    if got != "allow":
        return
    who.wallet.append(name)
    who.has_welcome = who.has_welcome or is_new
    if draw.random() < 0.004:  # tapped again
        yield Act(at_ms + draw.randrange(2_000, 9_000), claim, IN_VAIN)


def _buy(draw: random.Random, who: Person, seen: Event, at_ms: int) -> Agent:
    price = round(who.spends * draw.lognormvariate(0, 0.35) + 1, 2)
    if draw.random() < 0.01:
        price = round(price * draw.randrange(5, 15), 2)  # a refrigerator
    loyal = who.favourite if draw.random() < 0.85 else None
    order = goods.an_order(draw, price, loyal)
    if loyal is not None and draw.random() < 0.3:  # they know what they want
        order |= {"pages_viewed": draw.randrange(1, 3), "dwell_s": round(draw.lognormvariate(1.5, 0.7), 1)}
    if who.wallet and draw.random() < 0.7:
        order |= goods.with_coupon(order, who.wallet.pop())
    address = who.address if draw.random() < 0.93 else f"{draw.randrange(10**6)} Gift Street, {who.region}"
    paid = {
        **seen, **order, "payment_account": who.account, "recipient": f"r-{who.name}", "address": address,
    }  # fmt: skip
    got = yield from settle(draw, Act(at_ms, paid, HONEST), PASSES)
    if got == "allow" and draw.random() < 0.02:  # it did not fit
        back = {**seen, **goods.a_refund(order), "payment_account": who.account}
        yield Act(at_ms + draw.randrange(2, 9) * HOUR_MS, back, HONEST)


def _helped(seed: int, who: Person, at_ms: int, shop: int) -> Agent:
    draw = random.Random(seed)
    seen = {**who.seen(draw, at_ms), "device_id": tablet_of(shop), "ip": office_ip(2_000_000 + shop)}
    claim = {**seen, **goods.a_coupon(draw), "coupon_type": f"shop-{shop}-welcome", "captcha_passed": True}
    yield from settle(draw, Act(at_ms, {**claim, "address": who.address}, HONEST), PASSES)


def _long_ago(draw: random.Random, now_ms: int) -> int:
    return now_ms - int(min(draw.lognormvariate(5.3, 1.2), 2_500) * DAY_MS)


def _moments(draw: random.Random, hours: list[int], n: int) -> Iterator[int]:
    """`n` moments of a day in ms, as busy as `hours` says; what opens on the hour is rushed at."""
    for hour in draw.choices(range(24), hours, k=n):
        rushed = hours[hour] >= 2 * hours[hour - 1]
        share = draw.betavariate(1, 4) if rushed else draw.random()
        yield hour * HOUR_MS + int(share * HOUR_MS)
