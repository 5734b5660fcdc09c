"""Where people are: regions with their city, and the addresses that networks give them."""

from __future__ import annotations

import random
from typing import Final

REGIONS: Final = {
    "CN-SH": (31.23, 121.47), "CN-BJ": (39.90, 116.40), "CN-GD": (23.13, 113.26), "CN-ZJ": (30.27, 120.16),
    "CN-SC": (30.66, 104.07), "CN-HB": (30.59, 114.31), "CN-JS": (32.06, 118.80), "CN-SN": (34.34, 108.94),
}  # fmt: skip
NAMES: Final = tuple(REGIONS)
CARRIER_IPS: Final = 400  # of a region; behind each are many phones


def near(draw: random.Random, region: str) -> dict[str, float]:
    """A place in the city of a region."""
    lat, lon = REGIONS[region]
    return {"lat": round(lat + draw.gauss(0, 0.05), 5), "lon": round(lon + draw.gauss(0, 0.05), 5)}


def home_ip(i: int) -> str:
    """The address of household `i`."""
    return f"10.{i // 65_536 % 256}.{i // 256 % 256}.{i % 256}"


def office_ip(i: int) -> str:
    """The address that everyone in office, dormitory or shop `i` goes out by."""
    return f"12.{i // 65_536 % 256}.{i // 256 % 256}.{i % 256}"


def carrier_ip(draw: random.Random, region: str) -> str:
    """One of the addresses by which a carrier lets its phones out."""
    i = draw.randrange(CARRIER_IPS)
    return f"11.{NAMES.index(region)}.{i // 256}.{i % 256}"


def proxy_ip(draw: random.Random) -> str:
    """A flat of somebody's that lends its line to a proxy network."""
    return home_ip(draw.randrange(1 << 24))


def rack_ip(draw: random.Random, rack: int) -> str:
    """One of the few addresses of a rented rack."""
    return f"203.0.{rack % 256}.{draw.randrange(10, 14)}"
