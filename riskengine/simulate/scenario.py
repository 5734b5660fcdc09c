"""A scenario: how many crews of each kind prey on ten thousand customers a day, and how the day runs.

A scenario file is YAML: `intensity`, `mix` (kind to crews), `rush` ({hour, times}), `shop_tablets`. What it
leaves out is as in `DEFAULT`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Final

from yaml import Node, ScalarNode

from riskengine.errors import PolicyError, nearest
from riskengine.simulate import codes, farming, spending
from riskengine.simulate.world import Agent
from riskengine.source import Source, read_source

Kind = Callable[[Random, int, str], Iterator[Agent]]

KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "device-farm": farming.device_farm,
        "emulator-reset": farming.emulator_reset,
        "number-pool": farming.number_pool,
        "slow-and-low": farming.slow_and_low,
        "account-market": farming.account_market,
        "ring-leader": farming.ring_leader,
        "code-enumeration": codes.code_enumeration,
        "copied-code": codes.copied_code,
        "leaked-pack": codes.leaked_pack,
        "terminal-insider": codes.terminal_insider,
        "code-resale": codes.code_resale,
        "colluding-shop": spending.colluding_shop,
        "card-testing": spending.card_testing,
        "account-takeover": spending.account_takeover,
        "charged-again": spending.charged_again,
        "refund-abuse": spending.refund_abuse,
    }
)
ON_QUIET_DAYS: Final = 0.1  # of the crews of a campaign day
EVERY_DAY: Final = frozenset({"slow-and-low"})  # who keep at it, the same crews day after day


@dataclass(frozen=True, slots=True)
class Scenario:
    """Crews of each kind on a campaign day of ten thousand customers, times `intensity`.

    `rush`: the hour that is as many times as busy as it would be.
    """

    mix: Mapping[str, float]
    intensity: float = 1.0
    rush: tuple[int, float] | None = None
    shop_tablets: float = 2.0

    def crews(self, kind: str, users: int, is_campaign: bool, draw: Random) -> int:
        """How many crews of a kind set out on a day; a part of one by chance."""
        wanted = self.mix.get(kind, 0.0) * self.intensity * users / 10_000
        if not is_campaign and kind not in EVERY_DAY:
            wanted *= ON_QUIET_DAYS
        return int(wanted) + (draw.random() < wanted % 1)


DEFAULT: Final = Scenario(
    MappingProxyType(
        {
            "device-farm": 2, "emulator-reset": 2, "number-pool": 3, "slow-and-low": 8,
            "account-market": 2, "ring-leader": 4, "code-enumeration": 2, "copied-code": 6,
            "leaked-pack": 2, "terminal-insider": 4, "code-resale": 3, "colluding-shop": 2,
            "card-testing": 5, "account-takeover": 8, "charged-again": 2, "refund-abuse": 3,
        }
    )
)  # fmt: skip


def mixed(scenario: Scenario, mix: Mapping[str, float]) -> Scenario:
    """The scenario with other numbers of some kinds. Raises ValueError for a kind that is not there."""
    for name, number in mix.items():
        if name not in KINDS:
            near = nearest(name, list(KINDS))
            raise ValueError(
                f"there is no kind {name!r}: " + (f"did you mean {near}?" if near else ", ".join(KINDS))
            )
        if not 0 <= number < 1e6:
            raise ValueError(f"{name}={number:g}: a number of crews, 0 or more")
    return replace(scenario, mix={**scenario.mix, **mix})


def load_scenario(path: Path) -> Scenario:
    """Read a scenario file. Raises PolicyError with every finding."""
    source = read_source(path, str(path))
    scenario = DEFAULT
    if source.root is not None:
        known = ("intensity", "mix", "rush", "shop_tablets")
        said = {name: value for name, (_, value) in source.items(source.root, "a scenario", known).items()}
        mix = dict(DEFAULT.mix)
        if "mix" in said:
            for name, (_, value) in source.items(said["mix"], "`mix`", KINDS).items():
                mix[name] = _number(source, value, f"`{name}`")
        rush: tuple[int, float] | None = None
        if "rush" in said:
            of = source.items(said["rush"], "`rush`", ("hour", "times"))
            if missing := [name for name in ("hour", "times") if name not in of]:
                source.error(said["rush"], "missing-key", f"`rush` has no `{missing[0]}`")
            else:
                hour = _number(source, of["hour"][1], "`hour`", 23)
                rush = int(hour), _number(source, of["times"][1], "`times`", 1_000)
        plain = {
            name: _number(source, said[name], f"`{name}`")
            for name in ("intensity", "shop_tablets")
            if name in said
        }
        scenario = replace(DEFAULT, mix=mix, rush=rush, **plain)
    if source.findings:
        raise PolicyError(source.findings)
    return scenario


def _number(source: Source, node: Node, what: str, most: float = 1e6) -> float:
    value = source.scalar(node) if isinstance(node, ScalarNode) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        source.error(node, "wrong-value", f"{what} is a number from 0 to {most:g}", expected=f"0 to {most:g}")
        return 0.0
    return float(value)
