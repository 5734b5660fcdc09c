"""A forest of 200 trees: what a row costs, beside LightGBM's two ways in and treelite's.

One thread each, the same model and rows; all must give Booster.predict's answers (ours to the bit) before
any is timed. They are timed in turns. The lone calls include what Python costs to make them.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import lightgbm
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import medians
from riskengine.forest import T_DEPTHS, Forest, walk

TITLE = "200 trees of 31 leaves over 64 features, a tenth of the values missing"
COMMAND = "python -m benchmarks --only forest"
TARGETS: Mapping[str, str] = {
    "times_booster_1": ">= 8",
    "times_booster_64": ">= 4",
    "times_booster_1024": ">= 4",
    "contributions_1_times_predict": "<= 2",
    "contributions_64_times_predict": "<= 2",
    "contributions_1024_times_predict": "<= 2",
}

TREES: Final = 200
LEAVES: Final = 31
FEATURES: Final = 64
TRAINED_ON: Final = 20_000
ROWS: Final = 1024  # no batch is timed twice in a round: a branch that has seen its row before is foreseen
SIZES: Final = (1, 8, 64, 1024)

Float64s = NDArray[np.float64]


def measure() -> dict[str, Any]:
    """Time a row alone and in batches. AssertionError where an answer is wrong."""
    booster, rows = trained()
    want = np.asarray(booster.predict(rows, num_threads=1))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "model.txt"))
        booster.save_model(path)
        forest, of_treelite = Forest.load(path), treelite_predict(path)
        loading_s = medians({"load": lambda: Forest.load(path)}, 5)["load"]
    fast = single_row_fast(booster)
    assert [fast(row) for row in rows] == want.tolist()
    np.testing.assert_allclose(of_treelite(rows), want, rtol=1e-6)
    raw = np.asarray(booster.predict(rows, raw_score=True, num_threads=1))
    rounding = float(
        forest.unit / 2 * forest.trees[:, T_DEPTHS].sum()
    )  # half a unit for each split of a path
    assert rounding < 1e-4

    contenders: dict[str, Callable[[], object]] = {"fast_1": lambda: [fast(row) for row in rows]}
    for n in SIZES:
        batches = [rows[at : at + n].copy() for at in range(0, ROWS, n)]
        predictions = [ours(forest, batch) for batch in batches]
        shares = [contributions(forest, batch) for batch in batches]
        assert b"".join(call().tobytes() for call in predictions) == want.tobytes()
        sums = np.concatenate([call().sum(axis=1) for call in shares]) + forest.bias
        np.testing.assert_allclose(sums, raw, rtol=0, atol=rounding)
        contenders[f"ours_{n}"] = partial(each, predictions)
        contenders[f"contributions_{n}"] = partial(each, shares)
        contenders[f"booster_{n}"] = partial(
            each, [partial(booster.predict, batch, num_threads=1) for batch in batches]
        )
        contenders[f"treelite_{n}"] = partial(each, [partial(of_treelite, batch) for batch in batches])
    seconds = medians(contenders)
    assert len(getattr(walk, "signatures", (0,))) == 1, "a second kernel was compiled"

    results: dict[str, Any] = {"load_ms": loading_s * 1e3}
    for n in SIZES:
        names = ("ours", "contributions", *(["fast"] if n == 1 else []), "booster", "treelite")
        for name in names:
            results[f"{name}_{n}_row_us"] = seconds[f"{name}_{n}"] / ROWS * 1e6
        for name in names[2:]:
            results[f"times_{name}_{n}"] = seconds[f"{name}_{n}"] / seconds[f"ours_{n}"]
        results[f"contributions_{n}_times_predict"] = seconds[f"contributions_{n}"] / seconds[f"ours_{n}"]
    return results


def each(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()


def trained() -> tuple[lightgbm.Booster, Float64s]:
    """A model of the size that is asked, and rows it has not seen."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(TRAINED_ON + ROWS, FEATURES))
    fraud = x @ rng.normal(size=FEATURES) + rng.normal(size=len(x)) * 3 > 4
    x[rng.random(x.shape) < 0.1] = np.nan
    booster = lightgbm.train(
        {"objective": "binary", "num_leaves": LEAVES, "num_threads": 1, "verbosity": -1, "seed": 0},
        lightgbm.Dataset(x[:TRAINED_ON], fraud[:TRAINED_ON].astype(float)),
        TREES,
    )
    assert booster.num_trees() == TREES
    return booster, x[TRAINED_ON:]


def ours(forest: Forest, rows: Float64s) -> Callable[[], Float64s]:
    """A call as the engine makes it: cells by column, the answers into an array that is there."""
    cells, columns, out = np.ascontiguousarray(rows.T), np.arange(FEATURES), np.empty(len(rows))

    def predict() -> Float64s:
        forest.predict(cells, columns, out)
        return out

    return predict


def contributions(forest: Forest, rows: Float64s) -> Callable[[], Float64s]:
    cells, columns, every = np.ascontiguousarray(rows.T), np.arange(FEATURES), np.arange(len(rows))
    return lambda: forest.contributions(cells, columns, every)


def single_row_fast(booster: lightgbm.Booster) -> Callable[[Float64s], float]:
    """LightGBM's C call for one row after another, by ctypes: nothing of its Python is in the way."""
    library: Any = vars(lightgbm.basic)["_LIB"]
    settings = ctypes.c_void_p()
    normal, begin, all_trees, float64 = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(-1), ctypes.c_int(1)
    failed = library.LGBM_BoosterPredictForMatSingleRowFastInit(
        booster._handle, normal, begin, all_trees, float64, ctypes.c_int32(FEATURES),
        ctypes.c_char_p(b"num_threads=1"), ctypes.byref(settings),
    )  # fmt: skip
    assert not failed
    given, length, answer = np.empty(FEATURES), ctypes.c_int64(), (ctypes.c_double * 1)()
    call, data, length_at = (
        library.LGBM_BoosterPredictForMatSingleRowFast,
        given.ctypes.data_as(ctypes.c_void_p),
        ctypes.byref(length),
    )

    def predict(row: Float64s) -> float:
        given[:] = row
        call(settings, data, length_at, answer)
        return answer[0]

    return predict


def treelite_predict(path: str) -> Callable[[Float64s], Float64s]:
    """Treelite's own interpreter, GTIL: what it has without a C compiler."""
    import treelite

    model = treelite.frontend.load_lightgbm_model(path)
    return lambda rows: np.asarray(treelite.gtil.predict(model, rows, nthread=1)).reshape(-1)
