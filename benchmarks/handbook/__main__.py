"""The handbook study: its transactions through our replay and training, judged by its published protocol.

    python -m benchmarks.handbook --data transactions.parquet [--keep DIR] [--search TRIALS]

Features are declared in rules/policy.yaml and nowhere else. What was chosen (features and parameters) was
chosen on weeks that end before the first published test week; figures of both are printed.

Found with LightGBM 4.7 (AUC, average precision, CP@100): one training week .888, .740, .311 in the test and
.890, .752, .304 on the choice weeks; all earlier weeks .882, .750, .312; chapter 3 .880, .747, .303. What
did it: the customer's mean without known frauds, rates of small frauds by terminal, and leaving out what says
more about the week than about the payment (gaps, paces and undelayed counts by terminal took three of the
choice weeks from .757 to .754, among more features than these). Models of all earlier weeks take the
parameters found for one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.handbook import convert
from benchmarks.handbook.protocol import (
    CHAPTER_3,
    CHOICE_WEEKS,
    DAY_MS,
    START_MS,
    TEST_WEEKS,
    WEEK_MS,
    Scores,
    judge,
    mean,
    week,
)
from riskengine import training
from riskengine.files import Progress, read_labels
from riskengine.policy import load_definition
from riskengine.replay import replay_files
from riskengine.rows import RowsFile, read_rows
from riskengine.samples import Samples, join
from riskengine.training import Fold

RULES: Final = Path(__file__).parent / "rules"
SEEDS: Final = (7, 8, 9)  # three models are averaged: on one week of frauds a seed moves a figure by .003
WARM_MS: Final = START_MS + 35 * DAY_MS  # of all earlier weeks, those whose longest windows have filled

# What only serves to make other features, or is about the week more than about the payment: with it, the
# choice weeks went down.
LEFT_OUT: Final = (
    "user_paid_180d", "user_payments_180d", "user_defrauded_180d", "user_frauds_180d",
    "user_mean_before_90d", "user_mean_before_180d", "user_std_before_90d", "user_max_before_30d",
    "user_max_before_1d", "user_max_before_3d", "user_max_before_7d", "user_max_before_14d",
    "user_mean_amount_1d", "user_mean_amount_3d", "user_mean_amount_7d", "user_mean_amount_14d",
    "user_mean_amount_30d", "user_std_3d", "user_std_7d", "user_std_14d",
)  # fmt: skip
# Found in a dozen trials by hand on CHOICE_WEEKS. `--search 14` found nothing better there than training's
# own defaults, which reach .7521 with one seed.
PARAMETERS: Final[Mapping[str, Any]] = {
    **training.DEFAULTS,
    "learning_rate": 0.03,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
}
ROUNDS: Final = 350
# Ten times the rows bear larger trees, and one model.
ROUNDS_ALL: Final = 300
PARAMETERS_ALL: Final[Mapping[str, Any]] = {
    **PARAMETERS,
    "learning_rate": 0.05,
    "num_leaves": 16,
    "min_data_in_leaf": 100,
    "bagging_fraction": 0.5,
}

PUBLISHED: Final = (
    ("logistic regression", Scores(0.868, 0.623, 0.297)),
    ("random forest (validation-selected)", Scores(0.870, 0.678, 0.299)),
    ("XGBoost default", Scores(0.859, 0.660, 0.285)),
    ("XGBoost 100 trees, 0.1, depth 3", Scores(0.871, 0.694, 0.304)),
    ("balanced random forest (chapter 6)", Scores(0.879, 0.680, 0.305)),
    ("feed-forward network (chapter 7)", Scores(0.876, 0.675, 0.303)),
    ("LSTM (chapter 7)", Scores(0.876, 0.665, 0.297)),
)
PUBLISHED_CHAPTER_3: Final = (
    ("random forest", Scores(0.867, 0.658, 0.287)),
    ("XGBoost default", Scores(0.862, 0.639, 0.273)),
)
TARGETS: Final = (
    ("one training week: average precision", "one", "average_precision", 0.735),
    ("one training week: AUC", "one", "auc", 0.885),
    ("one training week: CP@100", "one", "card_precision", 0.310),
    ("all earlier weeks: average precision", "all", "average_precision", 0.75),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 2 when the data is not there, with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.handbook",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="the handbook's transactions, a Parquet file"
    )
    parser.add_argument(
        "--keep", type=Path, help="keep events, labels and rows there, and use those there are"
    )
    parser.add_argument("--search", type=int, metavar="TRIALS", help="search parameters on the choice weeks")
    options = parser.parse_args(arguments)
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        return study(options.data, options.keep, options.search)
    with tempfile.TemporaryDirectory() as folder:
        return study(options.data, Path(folder), options.search)


def study(data: Path, folder: Path, trials: int | None) -> int:
    """Convert, replay, train, judge, print."""
    rows, labels = folder / "rows.parquet", folder / "labels.parquet"
    if not rows.exists():
        if (code := convert.main(["--data", str(data), "--out", str(folder)])) != 0:
            return code
        began = time.perf_counter()
        done = replay_files(
            load_definition(RULES),
            str(folder / "events.parquet"),
            str(labels),
            lambda policy: RowsFile(str(rows), policy, ["user"]),
            lambda reject: print(reject, file=sys.stderr),
            Progress(),
        )
        seconds = time.perf_counter() - began
        print(f"replayed {done.events:,} events in {seconds:.0f} s ({done.events / seconds:,.0f}/s)")
    samples = read(rows, labels)
    print(f"{len(samples):,} rows of {len(samples.rows.features)} features\n")
    if trials is not None:
        return search(samples, trials)
    chosen = mean(one_week(samples, start) for start in CHOICE_WEEKS)
    one = [one_week(samples, start) for start in TEST_WEEKS]
    every = [all_weeks(samples, start) for start in TEST_WEEKS]
    show("chosen on (test weeks that end before 2018-08-08)", [("one training week", chosen)])
    found = [("riskengine, the same single week", mean(one)), ("riskengine, all earlier weeks", mean(every))]
    show("prequential test, mean of four folds", [*PUBLISHED, *found])
    spread = np.std([scores.average_precision for scores in one])
    print(f"  average precision over the four folds: ± {spread:.3f} with one week\n")
    ours = [("riskengine, the same single week", one_week(samples, CHAPTER_3))]
    show("chapter 3, single split", [*PUBLISHED_CHAPTER_3, *ours])
    by_name = {"one": mean(one), "all": mean(every)}
    for name, which, measure, target in TARGETS:
        value = getattr(by_name[which], measure)
        print(f"  {name:38} {value:.4f}  {'met' if value >= target else 'MISSED'} (target {target})")
    return 0


def read(rows: Path, labels: Path) -> Samples:
    """The rows with their labels, without the features that are left out."""
    found = read_rows(str(rows), by="user")
    used = [name for name in found.features if name not in LEFT_OUT]
    places = [found.features.index(name) for name in used]
    found = replace(found, features=tuple(used), values=found.values[:, places])
    return join(found, read_labels(str(labels), lambda reject: print(reject, file=sys.stderr)))


def one_week(samples: Samples, start_ms: int) -> Scores:
    """Judged in the test week, after learning from one week only."""
    return _judged(samples, start_ms, False, PARAMETERS, ROUNDS, SEEDS)


def all_weeks(samples: Samples, start_ms: int) -> Scores:
    """The same with every week up to the training week's end."""
    return _judged(samples, start_ms, True, PARAMETERS_ALL, ROUNDS_ALL, SEEDS[:1])


def _judged(
    samples: Samples,
    start_ms: int,
    all_earlier: bool,
    parameters: Mapping[str, Any],
    rounds: int,
    seeds: Sequence[int],
) -> Scores:
    part = week(samples, start_ms, all_earlier, WARM_MS)
    scores = np.zeros(len(part.test))
    for seed in seeds:
        model = training.fit(samples, part.train, parameters, rounds, {}, seed)
        scores += training.predict(model, samples, part.test)
    return judge(samples, part.test, scores)


def search(samples: Samples, trials: int) -> int:
    """Print the parameters that do best on the choice weeks."""
    folds = []
    for start in CHOICE_WEEKS:
        part = week(samples, start)
        folds.append(Fold(part.train, part.test))
    found = training.search(
        samples,
        folds,
        {},
        SEEDS[0],
        trials,
        shown=lambda done, total: print(f"{done} of {total}", end="\r"),
        trees_max=600,
    )
    print(f"average precision {found.score:.4f} with {found.rounds} trees: {dict(found.parameters)}")
    return 0


def show(title: str, table: Sequence[tuple[str, Scores]]) -> None:
    """A table of measures."""
    print(f"  {title:48} {'AUC':>6} {'AP':>6} {'CP@100':>7}")
    for name, scores in table:
        print(f"  {name:48} {scores.auc:6.3f} {scores.average_precision:6.3f} {scores.card_precision:7.3f}")
    print()


assert CHOICE_WEEKS[0] + 3 * WEEK_MS <= min(TEST_WEEKS) + 2 * WEEK_MS, "chosen before the first test week"

if __name__ == "__main__":
    sys.exit(main())
