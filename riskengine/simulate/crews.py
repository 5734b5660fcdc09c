"""What all who prey on a campaign share: accounts made or bought, a purse, and lessons from refusals."""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final

from riskengine.simulate.people import DAY_MS, HOUR_MS, MINUTE_MS, USER_AGENTS, settle
from riskengine.simulate.places import NAMES, near
from riskengine.simulate.world import Act, Event, Outcome

# How often each challenge is passed: solvers see through captchas, a SIM card at hand answers texts, and
# nobody lends a face for a coupon.
SOLVERS: Final = {"captcha": 0.75, "sms": 0.9, "voice": 0.7, "face": 0.02, "id": 0.03}
RENTED: Final = {"captcha": 0.75, "sms": 0.85, "voice": 0.15, "face": 0.02, "id": 0.03}
STOLEN: Final = {"captcha": 0.75, "sms": 0.05, "voice": 0.05, "face": 0.02, "id": 0.03}
HUMANS: Final = {"captcha": 0.95, "sms": 0.9, "voice": 0.85, "face": 0.5, "id": 0.3}  # real, and in on it
EMULATOR: Final = "Android 9; sdk_gphone_x86"  # one that nobody took the trouble to disguise


@dataclass(slots=True)
class Crew:
    """Who works together. `purse` is how many refusals they can pay for before it stops being worth it."""

    draw: random.Random
    kind: str
    name: str
    purse: int
    passes: dict[str, float] = field(default_factory=lambda: dict(SOLVERS))
    region: str = ""
    refused: int = 0
    had: int = 0
    _made: dict[str, Event] = field(default_factory=dict)  # what stays the same of an account

    def __post_init__(self) -> None:
        self.region = self.region or self.draw.choice(NAMES)

    @property
    def has_enough(self) -> bool:
        """Whether going on costs more than it brings."""
        return self.refused > self.purse + self.had // 4

    @property
    def caution(self) -> float:
        """How much slower they go by now: once more for every fifth refusal that they could pay for."""
        return 1.0 + 5.0 * self.refused / max(self.purse, 1)

    def tries(self, at_ms: int, event: Event) -> Generator[Act | list[Act], list[Outcome], bool]:
        """Do something and answer what is asked; whether it was granted."""
        act = Act(at_ms, event, self.kind)
        action = yield from settle(self.draw, act, self.passes)
        if action in ("deny", "failed"):
            self.refused += 1
            return False
        self.had += 1
        return True

    def account(
        self, label: str, at_ms: int, *, device: str, ip: str, age_ms: int, phone: str | None = None
    ) -> Event:
        """An account of theirs as its events show it; `age_ms` is how long before its first it was made."""
        draw = self.draw
        if label not in self._made:
            self._made[label] = {
                "user_id": f"x-{self.name}-{label}",
                "phone": phone or f"137{draw.randrange(10**8):08}",
                "phone_verified": True,
                "phone_kind": "mobile",
                "account_created": at_ms - age_ms,
                "id_verified": False,
                "card_bound": False,
                "channel": "app",
                "user_agent": draw.choice(USER_AGENTS),
            }
        return self._made[label] | {
            "device_id": device, "ip": ip, "region": self.region, "location": near(draw, self.region),
        }  # fmt: skip

    def minutes(self, low: float, high: float) -> int:
        """A pause between two things, longer with caution, in ms."""
        return int(self.draw.uniform(low, high) * MINUTE_MS * self.caution)


def opening(draw: random.Random, start_ms: int) -> int:
    """When coupons open on a day: midnight, ten and eight in the evening."""
    return start_ms + draw.choice((0, 10, 20)) * HOUR_MS + draw.randrange(30 * MINUTE_MS)


def daytime(draw: random.Random, start_ms: int) -> int:
    """A moment of a day when shops are open."""
    return start_ms + draw.randrange(8 * HOUR_MS, 22 * HOUR_MS)


def bought_age(draw: random.Random) -> int:
    """How old an account of the market is, ms."""
    return draw.randrange(90, 700) * DAY_MS
