"""Abuse of one-code-per-item red packets: guessed, copied, leaked, collected and resold codes."""

from __future__ import annotations

import random
from collections.abc import Iterator

from riskengine.simulate import goods
from riskengine.simulate.crews import HUMANS, Crew, daytime
from riskengine.simulate.people import HONEST, HOUR_MS, MINUTE_MS
from riskengine.simulate.places import NAMES, carrier_ip, near, proxy_ip
from riskengine.simulate.world import Act, Agent, Event


def code_enumeration(draw: random.Random, start_ms: int, name: str) -> Iterator[Agent]:
    """A script that counts codes up: most are nobody's, a few are somebody's. It changes its line."""
    crew = Crew(draw, "code-enumeration", name, purse=60)
    batch, at = draw.randrange(goods.BATCHES), daytime(draw, start_ms)
    first = draw.randrange(goods.CODES_A_BATCH)

    def run() -> Agent:
        nonlocal at
        ip, device, user = proxy_ip(draw), f"script-{name}-0", 0
        for k in range(draw.randrange(150, 300)):
            if crew.has_enough:
                return
            at += int(draw.uniform(1_500, 9_000) * crew.caution)
            who = crew.account(f"{user}", at, device=device, ip=ip, age_ms=HOUR_MS)
            packet = goods.code_of(draw, batch) | {"code_id": f"k{batch:02}{first + k:010}"}
            if draw.random() < 0.93:
                packet |= {"code_known": False}
            if not (yield from crew.tries(at, {**who, **packet})) and crew.refused % 10 == 0:
                user += 1
                ip, device = proxy_ip(draw), f"script-{name}-{user}"

    yield run()


def copied_code(draw: random.Random, start_ms: int, name: str) -> Iterator[Agent]:
    """A photo of a code goes round in a chat: its buyer scans it first, then everyone else."""
    crew = Crew(draw, "copied-code", name, purse=100, passes=dict(HUMANS))
    at, packet = daytime(draw, start_ms), goods.a_code(draw, crew.region)

    def run() -> Agent:
        nonlocal at
        for scan in range(draw.randrange(20, 60)):
            who = _somebody(crew, f"{scan}", at)
            event = {**who, **packet, "terminal_id": f"t{draw.randrange(goods.TERMINALS)}"}
            if scan == 0:
                yield Act(at, event, HONEST)
            else:
                yield from crew.tries(at, event)
            at += int(draw.expovariate(1 / (2 * MINUTE_MS)))

    yield run()


def leaked_pack(draw: random.Random, start_ms: int, name: str) -> Iterator[Agent]:
    """The codes of a part of a batch, copied at the printer's: cashed fast, far from where it is sold."""
    crew = Crew(draw, "leaked-pack", name, purse=50)
    batch, at = draw.randrange(goods.BATCHES), daytime(draw, start_ms)
    crew.region = draw.choice([region for region in NAMES if region != goods.region_of(batch)])

    def run() -> Agent:
        nonlocal at
        for k in range(draw.randrange(120, 220)):
            if crew.has_enough:
                return
            at += int(draw.uniform(4_000, 20_000) * crew.caution)
            who = crew.account(
                f"{k // 4}",
                at,
                device=f"pack-{name}-{k // 8}",
                ip=carrier_ip(draw, crew.region),
                age_ms=3 * HOUR_MS,
            )
            yield from crew.tries(at, {**who, **goods.code_of(draw, batch)})

    yield run()


def terminal_insider(draw: random.Random, start_ms: int, name: str) -> Iterator[Agent]:
    """Caps collected by the hundred at one till, scanned there by the two who work at it."""
    crew = Crew(draw, "terminal-insider", name, purse=25, passes=dict(HUMANS))
    at, terminal = daytime(draw, start_ms), f"t{draw.randrange(goods.TERMINALS)}"

    def run() -> Agent:
        nonlocal at
        buyers = [_somebody(crew, f"{i}", at) for i in range(2)]
        for _ in range(draw.randrange(50, 90)):
            if crew.has_enough:
                return
            at += int(draw.uniform(8_000, 40_000) * crew.caution)
            packet = goods.a_code(draw, crew.region) | {"terminal_id": terminal}
            yield from crew.tries(at, {**draw.choice(buyers), **packet})

    yield run()


def code_resale(draw: random.Random, start_ms: int, name: str) -> Iterator[Agent]:
    """Codes bought from all over the country as pictures, cashed on one phone by a handful of accounts."""
    crew = Crew(draw, "code-resale", name, purse=20, passes=dict(HUMANS))
    at, device = daytime(draw, start_ms), f"resale-{name}"

    def run() -> Agent:
        nonlocal at
        for k in range(draw.randrange(40, 80)):
            if crew.has_enough:
                return
            at += crew.minutes(0.5, 3)
            who = _somebody(crew, f"{k % 5}", at) | {"device_id": device}
            bought = draw.choice(NAMES)  # the position is made up to fit where the code was sold
            packet = goods.a_code(draw, bought) | {"region": bought, "location": near(draw, bought)}
            yield from crew.tries(at, {**who, **packet})

    yield run()


def _somebody(crew: Crew, label: str, at_ms: int) -> Event:
    """Someone real who takes part: an account of some age on a phone of their own."""
    draw = random.Random(f"{crew.name}/{label}")  # the same person each time
    age_ms = draw.randrange(60, 900) * 24 * HOUR_MS
    who = crew.account(
        label,
        at_ms - at_ms % (24 * HOUR_MS),
        device=f"own-{crew.name}-{label}",
        ip=carrier_ip(draw, crew.region),
        age_ms=age_ms,
        phone=f"139{draw.randrange(10**8):08}",
    )
    return who | {"channel": "miniprogram", "user_agent": "iPhone14,7"}
