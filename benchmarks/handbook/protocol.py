"""The published protocol: which transactions a model learns from, which it is judged by, and how.

Le Borgne, Siblini, Lebichot, Bontempi: "Reproducible Machine Learning for Credit Card Fraud Detection",
chapters 3 to 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from riskengine.evaluation import precision_by_day
from riskengine.samples import Samples

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
TOP = 100

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]


def date_ms(text: str) -> int:
    """Midnight UTC of a date such as 2018-08-15."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


START_MS = date_ms("2018-04-01")
TEST_WEEKS = tuple(
    map(date_ms, ("2018-08-15", "2018-08-08", "2018-08-01", "2018-07-25"))
)  # start of training
CHAPTER_3 = date_ms("2018-07-25")
# Whatever is chosen is chosen on these: the last of their test weeks ends where the first published begins.
CHOICE_WEEKS = tuple(date_ms("2018-07-18") - i * WEEK_MS for i in range(6))


@dataclass(frozen=True, slots=True)
class Scores:
    """The published measures of one test week."""

    auc: float
    average_precision: float
    card_precision: float


@dataclass(frozen=True, eq=False, slots=True)
class Week:
    """Rows to learn from, and those of the test week that the protocol keeps."""

    train: Int64s
    test: Int64s


def week(samples: Samples, start_ms: int, all_earlier: bool = False, from_ms: int = START_MS) -> Week:
    """A training week, a week in which its labels become known, and the test week after it.

    Cards known as defrauded are left out of the test: those with a fraud in the training week, and for each
    test day those with one up to the day eight days before. `all_earlier` learns from all since `from_ms`.
    """
    keys = samples.rows.keys
    assert keys is not None
    test_ms = start_ms + 2 * WEEK_MS
    train = samples.between(from_ms if all_earlier else start_ms, start_ms + WEEK_MS, test_ms)
    of_week = samples.between(start_ms, start_ms + WEEK_MS)
    known = np.unique(keys[of_week[samples.fraud[of_week]]])
    kept = []
    for day in range(7):
        late = samples.between(test_ms - WEEK_MS + (day - 1) * DAY_MS, test_ms - WEEK_MS + day * DAY_MS)
        known = np.union1d(known, keys[late[samples.fraud[late]]])
        of_day = samples.between(test_ms + day * DAY_MS, test_ms + (day + 1) * DAY_MS)
        kept.append(of_day[~np.isin(keys[of_day], known)])
    return Week(train, np.concatenate(kept))


def judge(samples: Samples, test: Int64s, scores: Float64s) -> Scores:
    """AUC ROC, average precision, and the mean of the days' precision among the TOP cards."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    keys = samples.rows.keys
    assert keys is not None
    fraud = samples.fraud[test]
    daily = precision_by_day(samples.times[test] // DAY_MS, keys[test], scores, fraud, TOP)
    return Scores(
        float(roc_auc_score(fraud, scores)),
        float(average_precision_score(fraud, scores)),
        float(np.mean(list(daily.values()))),
    )


def mean(all_scores: Iterable[Scores]) -> Scores:
    """The mean over test weeks."""
    table = np.array([(s.auc, s.average_precision, s.card_precision) for s in all_scores])
    return Scores(*map(float, table.mean(0)))
