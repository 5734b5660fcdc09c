"""Distance between two places on the ground, in arithmetic that the kernels share."""

from __future__ import annotations

import math
from typing import Final

from riskengine.kernel import jit

EARTH_RADIUS_KM: Final = 6371.0088  # mean radius (IUGG)


@jit
def haversine_km(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """Return the great-circle distance in km of two places in degrees; NaN if any part is NaN."""
    half_north = math.sin(math.radians(other_latitude - latitude) / 2.0)
    half_east = math.sin(math.radians(other_longitude - longitude) / 2.0)
    cosines = math.cos(math.radians(latitude)) * math.cos(math.radians(other_latitude))
    chord = half_north * half_north + cosines * half_east * half_east
    if chord > 1.0:  # by a rounding, at the antipodes
        chord = 1.0
    return 2.0 * EARTH_RADIUS_KM * math.asin(math.sqrt(chord))
