"""Rows and labels become a model: split by time, searched on earlier folds, calibrated, judged on later rows.

Nothing is ever judged by rows that are older than those it learned from, and between the two lies a gap in
which labels become known. The same rows and seed give the same model, byte for byte.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from riskengine.calibration import Calibration
from riskengine.samples import Samples, TrainingError

if TYPE_CHECKING:
    import lightgbm

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]

FOLDS: Final = 3
FRAUDS_MIN: Final = 20  # fewer, and a figure says nothing
TREES_MAX: Final = 300  # what a decision waits for
PATIENCE: Final = 60  # rounds without a better mean over the folds
THREADS: Final = 1  # LightGBM adds up in another order with others; two on a busy machine wait for each other

# Of what LightGBM would do by itself: a split may stand between any two values (frauds are few, and lie at
# the edges), and trees start from even odds.
FIXED: Final[Mapping[str, Any]] = {
    "objective": "binary",
    "metric": "average_precision",
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": THREADS,
    "verbosity": -1,
    "max_bin": 1023,
    "min_data_in_bin": 1,
    "bin_construct_sample_cnt": 1_000_000,
    "feature_pre_filter": False,
    "boost_from_average": False,
}
DEFAULTS: Final[Mapping[str, Any]] = {
    "learning_rate": 0.05,
    "num_leaves": 8,
    "min_data_in_leaf": 20,
    "lambda_l2": 1.0,
    "feature_fraction": 0.5,
    "bagging_fraction": 1.0,
    "bagging_freq": 0,
    "scale_pos_weight": 1.0,
}
SPACE: Final[Mapping[str, Sequence[Any]]] = {
    "learning_rate": (0.03, 0.05, 0.08),
    "num_leaves": (4, 6, 8, 12, 16, 31),
    "min_data_in_leaf": (5, 10, 20, 50, 100),
    "lambda_l2": (0.1, 1.0, 5.0, 20.0),
    "feature_fraction": (0.2, 0.35, 0.5, 0.8),
    "bagging_fraction": (0.6, 0.8, 1.0),
    "scale_pos_weight": (1.0, 1.0, 3.0),
}


@dataclass(frozen=True, eq=False, slots=True)
class Fold:
    """Row numbers to learn from, and later ones to judge by."""

    train: Int64s
    test: Int64s


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found: parameters, trees, and the mean average precision over the folds."""

    parameters: Mapping[str, Any]
    rounds: int
    score: float
    tried: int


@dataclass(frozen=True, eq=False, slots=True)
class Trained:
    """A model and how it came to be; scores of `held_out` rows are calibrated."""

    model: str
    features: tuple[str, ...]
    calibration: Calibration
    found: Found
    train: Int64s
    held_out: Int64s
    scores: Float64s
    raw: Float64s  # before calibration
    unlabelled: int
    importance: Mapping[str, float]
    versions: Mapping[str, str] = field(default_factory=dict)


def train(
    samples: Samples,
    held_out_ms: int,
    gap_ms: int,
    seed: int,
    trials: int,
    monotone: Mapping[str, int] | None = None,
    more: Callable[[], bool] = lambda: True,
    shown: Callable[[int, int], None] = lambda done, total: None,
    trees_max: int = TREES_MAX,
) -> Trained:
    """Train on all but the last `held_out_ms` of the rows and the `gap_ms` before it; judge by the last.

    Parameters come from at most `trials` draws, as long as `more` says so. Raises TrainingError.
    """
    if not len(samples):
        raise TrainingError("there are no rows: nothing can be learned.")
    first_ms, end_ms = int(samples.times[0]), int(samples.times[-1]) + 1
    test_ms = end_ms - held_out_ms
    train_end_ms = test_ms - gap_ms
    before = samples.between(first_ms, train_end_ms, test_ms)
    held_out = samples.between(test_ms, end_ms)
    _enough(samples, before, "to learn from", "give more history, or lower --hold-out or --gap")
    _enough(samples, held_out, "to judge by", "give more history, or raise --hold-out")
    folds = prequential(samples, before, train_end_ms, gap_ms)
    found = search(samples, folds, monotone or {}, seed, trials, more, shown, trees_max)
    earlier = [
        fit(samples, fold.train, found.parameters, found.rounds, monotone or {}, seed) for fold in folds
    ]
    calibration = calibrate(
        [predict(model, samples, fold.test) for model, fold in zip(earlier, folds, strict=True)],
        [samples.fraud[fold.test] for fold in folds],
    )
    model = fit(samples, before, found.parameters, found.rounds, monotone or {}, seed)
    raw = predict(model, samples, held_out)
    scores = raw.copy()
    calibration.apply(scores)
    gains = model.feature_importance("gain")
    return Trained(
        model=model.model_to_string(),
        features=samples.rows.features,
        calibration=calibration,
        found=found,
        train=before,
        held_out=held_out,
        scores=scores,
        raw=raw,
        unlabelled=int(np.searchsorted(samples.times, train_end_ms)) - len(before),
        importance=dict(zip(samples.rows.features, map(float, gains), strict=True)),
        versions=versions(),
    )


def prequential(samples: Samples, before: Int64s, end_ms: int, gap_ms: int) -> list[Fold]:
    """Folds of the rows `before`: each learns from a stretch and is judged by a later one, after the gap.

    The later half is cut in FOLDS; fewer are made where frauds are too few. Raises TrainingError.
    """
    times = samples.times[before]
    start_ms = int(times[0])
    for count in range(FOLDS, 0, -1):
        width_ms = (end_ms - start_ms) // (2 * count)
        folds = []
        for i in range(count):
            test_ms = end_ms - (count - i) * width_ms
            known = samples.known_ms[before] <= test_ms
            train = before[(times < test_ms - gap_ms) & known]
            test = before[(times >= test_ms) & (times < test_ms + width_ms)]
            folds.append(Fold(train, test))
        if all(_frauds(samples, part) >= FRAUDS_MIN for f in folds for part in (f.train, f.test)):
            return folds
    raise TrainingError(
        f"found {_frauds(samples, before)} frauds over {(end_ms - start_ms) / 86_400_000:.1f} days to learn "
        f"from, expected enough for a first and a second half with {FRAUDS_MIN} each and the gap between: "
        "give more history, or lower --gap."
    )


def search(
    samples: Samples,
    folds: Sequence[Fold],
    monotone: Mapping[str, int],
    seed: int,
    trials: int,
    more: Callable[[], bool] = lambda: True,
    shown: Callable[[int, int], None] = lambda done, total: None,
    trees_max: int = TREES_MAX,
) -> Found:
    """Draw parameters and keep those with the best mean average precision over the folds.

    The first draw is DEFAULTS. How many trees is read off the mean of the folds' curves.
    """
    draw = np.random.default_rng(seed)
    pairs = [_datasets(samples, fold) for fold in folds]
    best: Found | None = None
    for trial in range(max(1, trials)):
        chosen = dict(DEFAULTS)
        if trial:
            chosen |= {name: values[int(draw.integers(len(values)))] for name, values in SPACE.items()}
            chosen["bagging_freq"] = int(chosen["bagging_fraction"] < 1.0)
        rounds, score = _grow(pairs, _parameters(samples, chosen, monotone, seed), trees_max)
        if best is None or score > best.score:
            best = Found(chosen, rounds, score, trial + 1)
        best = Found(best.parameters, best.rounds, best.score, trial + 1)
        shown(trial + 1, max(1, trials))
        if not more():
            break
    assert best is not None
    return best


def fit(
    samples: Samples,
    rows: Int64s,
    parameters: Mapping[str, Any],
    rounds: int,
    monotone: Mapping[str, int],
    seed: int,
) -> lightgbm.Booster:
    """Trees of chosen rows."""
    import lightgbm

    told = _parameters(samples, parameters, monotone, seed)
    return lightgbm.train(told, _dataset(samples, rows), rounds)


def predict(model: lightgbm.Booster, samples: Samples, rows: Int64s) -> Float64s:
    """The model's scores (len(rows)), not calibrated."""
    told = model.predict(np.ascontiguousarray(samples.rows.values[rows]), num_threads=THREADS)
    return np.asarray(told, np.float64)


def calibrate(scores: Sequence[Float64s], fraud: Sequence[NDArray[np.bool_]]) -> Calibration:
    """What scores are worth, by folds in time: isotonic or Platt, whichever tells the last fold better.

    Both are fitted on the folds before it, and the better (least log loss; neither is an answer too) again
    on all. A single fold is cut in two.
    """
    if len(scores) == 1:
        middle = len(scores[0]) // 2
        scores, fraud = [scores[0][:middle], scores[0][middle:]], [fraud[0][:middle], fraud[0][middle:]]
    earlier, told = np.concatenate(scores[:-1]), np.concatenate(fraud[:-1])
    kinds = (_none, _platt, _isotonic)
    if told.any() and fraud[-1].any():
        loss = [_log_loss(kind(earlier, told), scores[-1], fraud[-1]) for kind in kinds]
        chosen = kinds[int(np.argmin(loss))]
    else:
        chosen = _none
    return chosen(np.concatenate(scores), np.concatenate(fraud))


def versions() -> dict[str, str]:
    """Of what takes part in training."""
    import lightgbm
    import sklearn

    return {
        "lightgbm": lightgbm.__version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _enough(samples: Samples, rows: Int64s, what: str, mend: str) -> None:
    frauds = _frauds(samples, rows)
    if frauds < FRAUDS_MIN or len(rows) - frauds < FRAUDS_MIN:
        raise TrainingError(
            f"found {frauds} frauds among {len(rows)} labelled rows {what}, expected at least {FRAUDS_MIN} "
            f"frauds and as many others: {mend}."
        )


def _frauds(samples: Samples, rows: Int64s) -> int:
    return int(samples.fraud[rows].sum())


def _parameters(
    samples: Samples, chosen: Mapping[str, Any], monotone: Mapping[str, int], seed: int
) -> dict[str, Any]:
    told = {**FIXED, **chosen, "seed": seed}
    if monotone:
        told["monotone_constraints"] = [monotone.get(name, 0) for name in samples.rows.features]
        told["monotone_constraints_method"] = "advanced"
    return told


def _dataset(samples: Samples, rows: Int64s, like: lightgbm.Dataset | None = None) -> lightgbm.Dataset:
    import lightgbm

    return lightgbm.Dataset(
        np.ascontiguousarray(samples.rows.values[rows]),
        samples.fraud[rows].astype(np.float64),
        feature_name=list(samples.rows.features),
        params=dict(FIXED),
        reference=like,
        free_raw_data=False,
    )


def _datasets(samples: Samples, fold: Fold) -> tuple[lightgbm.Dataset, lightgbm.Dataset]:
    train = _dataset(samples, fold.train)
    return train, _dataset(samples, fold.test, train)


def _grow(
    pairs: Sequence[tuple[lightgbm.Dataset, lightgbm.Dataset]], parameters: dict[str, Any], trees_max: int
) -> tuple[int, float]:
    """Grow a model on each fold, side by side; the number of trees with the best mean, and that mean."""
    import lightgbm

    boosters = []
    for train, test in pairs:
        booster = lightgbm.Booster(parameters, train)
        booster.add_valid(test, "test")
        boosters.append(booster)
    best, best_round = -1.0, 0
    for at in range(1, trees_max + 1):
        for booster in boosters:
            booster.update()
        mean = float(np.mean([booster.eval_valid()[0][2] for booster in boosters]))
        if mean > best:
            best, best_round = mean, at
        if at - best_round >= PATIENCE:
            break
    return best_round, best


def _none(scores: Float64s, fraud: NDArray[np.bool_]) -> Calibration:
    return Calibration.none()


def _platt(scores: Float64s, fraud: NDArray[np.bool_]) -> Calibration:
    from sklearn.linear_model import LogisticRegression

    odds = np.log(np.clip(scores, 1e-12, 1 - 1e-12)) - np.log1p(-np.clip(scores, 1e-12, 1 - 1e-12))
    fitted = LogisticRegression(C=1e6).fit(odds[:, None], fraud)
    slope = float(fitted.coef_[0, 0])
    return Calibration.platt(slope, float(fitted.intercept_[0])) if slope > 0 else Calibration.none()


def _isotonic(scores: Float64s, fraud: NDArray[np.bool_]) -> Calibration:
    from sklearn.isotonic import IsotonicRegression

    # No score is surer than as many rows can make it: one that is 1 would overrule every rule there is.
    least, most = 1 / (len(fraud) + 2), 1 - 1 / (int(fraud.sum()) + 2)
    fitted = IsotonicRegression(y_min=least, y_max=most, out_of_bounds="clip").fit(scores, fraud)
    return Calibration.isotonic(*_ascending(fitted.X_thresholds_, fitted.y_thresholds_))


def _ascending(x: Float64s, y: Float64s) -> tuple[Float64s, Float64s]:
    """Knots with distinct x: of equal ones the last."""
    last = np.append(np.diff(x) > 0, True)
    return x[last], y[last]


def _log_loss(calibration: Calibration, scores: Float64s, fraud: NDArray[np.bool_]) -> float:
    told = scores.copy()
    calibration.apply(told)
    told = np.clip(told, 1e-6, 1 - 1e-6)
    return float(-np.where(fraud, np.log(told), np.log1p(-told)).mean())
