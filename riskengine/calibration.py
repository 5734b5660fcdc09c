"""What a score is worth: a model's output becomes the share of such events that are fraud.

Any calibration is a table of knots, so that one kernel serves all and a card can show it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from riskengine.kernel import jit
from riskengine.modeltext import ModelError

Float64s = NDArray[np.float64]

KINDS: Final = ("none", "isotonic", "platt")
KNOTS_MAX: Final = 100_000
# A Platt curve is drawn through knots this far apart in log odds, 641 of them: within 6e-5 of it for slopes
# of 0.4 to 1.5, within 8e-4 up to 4.
PLATT_STEP: Final = 1 / 16
PLATT_END: Final = 20.0
MEND: Final = "Train the model again."


@dataclass(frozen=True, eq=False, slots=True)
class Calibration:
    """Knots x to y, lines between them, level outside; without knots the score stays what it is."""

    kind: str
    x: Float64s  # (knots,), ascending
    y: Float64s  # (knots,), 0 to 1, nowhere descending

    @classmethod
    def none(cls) -> Calibration:
        """The score as it is."""
        return cls("none", np.empty(0), np.empty(0))

    @classmethod
    def isotonic(cls, x: Float64s, y: Float64s) -> Calibration:
        """The curve of scikit-learn's IsotonicRegression: X_thresholds_ and y_thresholds_. ModelError."""
        return cls.from_json({"kind": "isotonic", "x": x.tolist(), "y": y.tolist()})

    @classmethod
    def platt(cls, slope: float, intercept: float) -> Calibration:
        """1 / (1 + exp(-(slope * log odds of the score + intercept))), as a table.

        J. Platt, "Probabilistic outputs for support vector machines", 1999. ModelError if slope <= 0.
        """
        if not (0 < slope < math.inf and math.isfinite(intercept)):
            raise ModelError(
                f"calibration: found slope {slope} and intercept {intercept}, expected a slope above 0: "
                "this score says nothing of fraud. Train on other data or features."
            )
        odds = np.arange(-PLATT_END, PLATT_END + PLATT_STEP, PLATT_STEP)
        # Beyond 700 exp leaves the doubles, and the curve is level long before.
        curve = 1 / (1 + np.exp(np.clip(-(slope * odds + intercept), -700, 700)))
        return cls("platt", 1 / (1 + np.exp(-odds)), curve)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], place: str = "calibration") -> Calibration:
        """Read what `to_json` wrote; `place` is what errors call it. Raises ModelError."""
        kind = value.get("kind")
        if kind not in KINDS:
            raise ModelError(f"{place}.kind: found {kind!r}, expected one of {', '.join(KINDS)}. {MEND}")
        if kind == "none":
            return cls.none()
        x, y = _numbers(value, "x", place), _numbers(value, "y", place)
        if not 1 <= len(x) == len(y) <= KNOTS_MAX:
            found = f"{len(x)} and {len(y)} knots"
            raise ModelError(f"{place}: found {found}, expected as many x as y, 1 to {KNOTS_MAX:,}. {MEND}")
        if not (np.diff(x) > 0).all():
            raise ModelError(f"{place}.x: found numbers that do not ascend, expected them to. {MEND}")
        if not (np.diff(y) >= 0).all() or y[0] < 0 or y[-1] > 1:
            raise ModelError(f"{place}.y: found a curve that is not one from 0 up to 1. {MEND}")
        return cls(str(kind), x, y)

    def to_json(self) -> dict[str, Any]:
        """For card.json: {"kind", "x", "y"}; reading it back gives the same table to the bit."""
        if self.kind == "none":
            return {"kind": "none"}
        return {"kind": self.kind, "x": self.x.tolist(), "y": self.y.tolist()}

    def apply(self, p: Float64s) -> None:
        """Replace scores (n) by what they are worth, in place. NaN stays NaN."""
        if len(self.x):
            calibrate(self.x, self.y, p)


@jit
def calibrate(x: Float64s, y: Float64s, p: Float64s) -> None:
    """Read every score off the table. The result never descends where the score ascends."""
    last = x.shape[0] - 1
    for i in range(p.shape[0]):
        score = p[i]
        if score <= x[0]:
            p[i] = y[0]
        elif score >= x[last]:
            p[i] = y[last]
        elif score == score:
            low, high = 0, last
            while high - low > 1:
                middle = (low + high) >> 1
                if x[middle] <= score:
                    low = middle
                else:
                    high = middle
            rise = (score - x[low]) * (y[high] - y[low]) / (x[high] - x[low])
            p[i] = min(y[low] + rise, y[high])  # rounding may lift it above


def _numbers(value: Mapping[str, Any], key: str, place: str) -> Float64s:
    given = value.get(key)
    if not isinstance(given, list) or not all(
        isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        for number in given
    ):
        raise ModelError(f"{place}.{key}: expected a list of finite numbers. {MEND}")
    return np.array(given, np.float64)
