"""The forest against LightGBM itself, bit for bit, and against a walk in plain Python; damaged files."""

from __future__ import annotations

import contextlib
import io
import math
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from snapshot import matches_snapshot

from riskengine import forest
from riskengine.forest import Forest
from riskengine.modeltext import ModelError

Float64s = NDArray[np.float64]
ZERO = float(np.float32(1e-35))

# -- models: trained ones, and ones that no training would give


def trained(kind: str) -> lightgbm.Booster:
    """A small model of each kind that serving meets."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(1500, 5)).round(2)
    x[:, 1] = rng.integers(0, 40, 1500)
    x[:, 2] *= rng.random(1500) < 0.5  # half of it zero
    x[rng.random((1500, 5)) < 0.1] = np.nan
    y = (np.nan_to_num(x[:, 0]) + np.sin(np.nan_to_num(x[:, 1])) + rng.normal(size=1500) > 0.7).astype(float)
    parameters: dict[str, Any] = {"objective": "binary", "verbosity": -1, "num_threads": 1, "num_leaves": 9}
    more: dict[str, dict[str, Any]] = {
        "plain": {},
        "none_missing": {"use_missing": False},
        "zero_as_missing": {"zero_as_missing": True},
        "categorical": {"min_data_per_group": 5, "cat_smooth": 1},
        "dart": {"boosting": "dart", "drop_rate": 0.5},
        "averaged": {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6},
        "sigmoid": {"sigmoid": 0.7, "is_unbalance": True},
        "large_trees": {"num_leaves": 200, "min_data_in_leaf": 1},
        "one_leaf": {"min_data_in_leaf": 1000},
        "stopped": {"early_stopping_round": 2, "learning_rate": 0.9, "metric": "auc"},
    }
    data = lightgbm.Dataset(x, y, params=more[kind], categorical_feature=[1] if kind == "categorical" else [])
    valid = [lightgbm.Dataset(x[:200], 1 - y[:200], reference=data)] if kind == "stopped" else None
    return lightgbm.train(parameters | more[kind], data, 21, valid_sets=valid)


KINDS = (
    "plain", "none_missing", "zero_as_missing", "categorical", "dart", "averaged", "sigmoid", "large_trees",
    "one_leaf", "stopped",
)  # fmt: skip
BOOSTERS = {kind: trained(kind) for kind in KINDS}


@dataclass(frozen=True)
class Drawn:
    """A tree: a leaf has a value and a count; a split has what model.txt says of it."""

    feature: int = 0
    decision: int = 0
    threshold: float = 0.0
    words: tuple[int, ...] = ()
    children: tuple[Drawn, Drawn] | None = None
    value: float = 0.0
    count: int = 0


FEATURES = 3
NEAR_ZERO = [0.0, -0.0, ZERO, -ZERO, ZERO / 2, -ZERO / 2, 2 * ZERO, -2 * ZERO, 5e-324, -5e-324]
EDGES = [
    *NEAR_ZERO, math.nextafter(ZERO, 1), math.nextafter(-ZERO, -1), 1.0, -1.0, 0.5, -0.5, 1e300, -1e300,
    31.0, 32.0, 63.9, 64.0, 3.7, -0.999, 2.0**31 - 1, 2.0**31, -(2.0**31) - 1, 2.0**53, 1e-300,
]  # fmt: skip
NUMBERS = st.sampled_from(EDGES) | st.floats(-3, 3).map(lambda x: round(x, 1)) | st.floats(width=64)
THRESHOLDS = st.sampled_from([*EDGES, math.inf, -math.inf]) | st.floats(-3, 3).map(lambda x: round(x, 1))
VALUES = st.sampled_from([math.nan, math.inf, -math.inf]) | NUMBERS
ROWS = st.lists(st.lists(VALUES, min_size=FEATURES, max_size=FEATURES), min_size=1, max_size=21)
LEAVES = st.builds(lambda value, count: Drawn(value=value, count=count), st.floats(-2, 2), st.integers(0, 9))


def splits(below: st.SearchStrategy[Drawn]) -> st.SearchStrategy[Drawn]:
    feature, both = st.integers(0, FEATURES - 1), st.tuples(below, below)
    ways = st.sampled_from([0, 2, 4, 6, 8, 10])
    numeric = st.builds(lambda f, d, t, c: Drawn(f, d, t, (), c), feature, ways, THRESHOLDS, both)
    words = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3).map(tuple)
    categorical = st.builds(lambda f, d, w, c: Drawn(f, d | 1, 0.0, w, c), feature, ways, words, both)
    return numeric | numeric | categorical


TREES = st.recursive(LEAVES, splits, max_leaves=12)
MODELS = st.lists(TREES, min_size=1, max_size=11)


def model_text(trees: list[Drawn], average: bool = False, sigmoid: float = 1.0) -> str:
    """The model.txt of trees that were drawn."""
    names = " ".join(f"f{i}" for i in range(FEATURES))
    head = [
        "tree", "version=v4", "num_class=1", "num_tree_per_iteration=1", "label_index=0",
        f"max_feature_idx={FEATURES - 1}", f"objective=binary sigmoid:{sigmoid!r}",
        *(["average_output"] if average else []),
        f"feature_names={names}", f"feature_infos={' '.join(['[-1:1]'] * FEATURES)}",
    ]  # fmt: skip
    blocks = [tree_text(i, tree) for i, tree in enumerate(trees)]
    sizes = " ".join(str(len(block.encode())) for block in blocks)
    return (
        "\n".join([*head, f"tree_sizes={sizes}", "", ""])
        + "".join(blocks)
        + "end of trees\n\nparameters:\n\nend of parameters\n\npandas_categorical:null\n"
    )


def tree_text(number: int, tree: Drawn) -> str:
    inner: list[Drawn] = []
    leaves: list[Drawn] = []
    left: list[int] = []
    right: list[int] = []

    def place(node: Drawn) -> int:
        if node.children is None:
            leaves.append(node)
            return -len(leaves)
        at = len(inner)
        inner.append(node)
        left.append(0)
        right.append(0)
        left[at] = place(node.children[0])
        right[at] = place(node.children[1])
        return at

    place(tree)
    sets = [node.words for node in inner if node.decision & 1]
    numbers = iter(range(len(sets)))
    thresholds = [next(numbers) if node.decision & 1 else node.threshold for node in inner]

    def line(key: str, values: list[Any]) -> str:
        return f"{key}={' '.join(map(repr, values))}\n"

    bounds = [0]
    for words in sets:
        bounds.append(bounds[-1] + len(words))
    return (
        f"Tree={number}\nnum_leaves={len(leaves)}\nnum_cat={len(sets)}\n"
        + line("split_feature", [node.feature for node in inner])
        + line("split_gain", [1] * len(inner))
        + line("threshold", thresholds)
        + line("decision_type", [node.decision for node in inner])
        + line("left_child", left)
        + line("right_child", right)
        + line("leaf_value", [node.value for node in leaves])
        + line("leaf_weight", [1] * len(leaves))
        + line("leaf_count", [node.count for node in leaves])
        + line("internal_value", [0] * len(inner))
        + line("internal_weight", [1] * len(inner))
        + line("internal_count", [1] * len(inner))
        + (
            line("cat_boundaries", bounds) + line("cat_threshold", [word for words in sets for word in words])
            if sets
            else ""
        )
        + "is_linear=0\nshrinkage=1\n\n\n"
    )


# -- the twin


def goes_left(node: Drawn, x: float) -> bool:
    """As LightGBM's include/LightGBM/tree.h writes it, and its predictor, which drops near zeros."""
    if abs(x) <= ZERO:
        x = 0.0
    if node.decision & 1:
        if math.isnan(x) or math.isinf(x) or not 0 <= (category := int(x)) < 2**31:
            return False
        word, bit = divmod(category, 32)
        return word < len(node.words) and bool(node.words[word] >> bit & 1)
    missing, default_left = node.decision >> 2, bool(node.decision & 2)
    if missing == 2 and math.isnan(x):
        return default_left
    if math.isnan(x):
        x = 0.0
    if missing == 1 and x == 0.0:
        return default_left
    return x <= node.threshold


def expected(tree: Drawn) -> tuple[float, int]:
    """The mean output of the training rows below, and how many they are."""
    if tree.children is None:
        return tree.value, tree.count
    (a, n), (b, m) = map(expected, tree.children)
    return ((a * n + b * m) / (n + m), n + m) if n + m else ((a + b) / 2, 0)


def twin(trees: list[Drawn], row: list[float]) -> tuple[float, list[float]]:
    """The raw score of a row and what each feature adds to it, walking from split to split."""
    raw, shares = 0.0, [0.0] * FEATURES
    for tree in trees:
        while tree.children is not None:
            child = tree.children[0 if goes_left(tree, row[tree.feature]) else 1]
            shares[tree.feature] += expected(child)[0] - expected(tree)[0]
            tree = child
        raw += tree.value
    return raw, shares


def rounding(model: Forest) -> float:
    """How far contributions may be off: half a unit at each split of a path."""
    return float(model.unit / 2 * model.trees[:, forest.T_DEPTHS].sum())


def predicted(model: Forest, rows: Float64s) -> Float64s:
    """What the forest says of rows (n, features), from cells where the columns stand elsewhere."""
    rng = random.Random(0)
    columns = np.array(rng.sample(range(rows.shape[1] + 2), rows.shape[1]), np.int64)
    cells = np.full((rows.shape[1] + 2, len(rows)), 1e9)
    cells[columns] = rows.T
    out = np.empty(len(rows))
    model.predict(cells, columns, out)
    return out


# -- equal to LightGBM


@settings(max_examples=300)
@given(MODELS, ROWS, st.booleans(), st.sampled_from([1.0, 0.3, 2.5]))
def test_any_model_is_lightgbm_bit_for_bit(
    trees: list[Drawn], rows: list[list[float]], average: bool, sigmoid: float
) -> None:
    text = model_text(trees, average, sigmoid)
    x = np.array(rows, np.float64)
    want = np.asarray(lightgbm.Booster(model_str=text).predict(x, num_threads=1))
    model = Forest.parse(text)
    assert predicted(model, x).tobytes() == want.tobytes()
    many = np.arange(70) % len(x)  # enough for a sweep, and for what is left over
    assert predicted(model, x[many]).tobytes() == want[many].tobytes()


@settings(max_examples=300)
@given(MODELS, ROWS)
def test_any_model_is_its_twin(trees: list[Drawn], rows: list[list[float]]) -> None:
    model = Forest.parse(model_text(trees))
    x = np.array(rows, np.float64)
    found = predicted(model, x)
    shares = model.contributions(np.ascontiguousarray(x.T), np.arange(FEATURES), np.arange(len(x)))
    swept = model.contributions(np.ascontiguousarray(x.T), np.arange(FEATURES), np.arange(40) % len(x))
    assert swept.tobytes() == shares[np.arange(40) % len(x)].tobytes()
    assert model.bias == pytest.approx(sum(expected(tree)[0] for tree in trees), abs=1e-12)
    for row, p, own in zip(rows, found, shares, strict=True):
        raw, of_twin = twin(trees, row)
        assert p == 1.0 / (1.0 + math.exp(-raw))
        assert own.tolist() == pytest.approx(of_twin, abs=1e-12 + rounding(model))
        assert own.sum() + model.bias == pytest.approx(raw, abs=1e-12 + rounding(model))
    # A larger model has no room for what each leaf gives: its paths are climbed, to the same sums.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forest, "CHANGES_MAX", -1)
        climbing = Forest.parse(model_text(trees))
    assert len(climbing.changes) == 0
    cells = np.ascontiguousarray(x.T)
    assert climbing.contributions(cells, np.arange(FEATURES), np.arange(len(x))).tobytes() == shares.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_trained_model_is_lightgbm_bit_for_bit(kind: str, data: st.DataObject) -> None:
    booster = BOOSTERS[kind]
    model = Forest.parse(booster.model_to_string())
    n = data.draw(st.sampled_from([1, 2, 3, 8, 9, 63, 64, 65, 130]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    ends = model.thresholds if len(model.thresholds) else np.zeros(1)
    pools = [
        rng.normal(size=(n, 5)), rng.choice(EDGES, (n, 5)), rng.integers(-3, 70, (n, 5)).astype(float),
        rng.choice([np.nan, np.inf, -np.inf], (n, 5)), rng.choice(ends, (n, 5)),
        np.nextafter(rng.choice(ends, (n, 5)), rng.choice([-np.inf, np.inf], (n, 5))),
    ]  # fmt: skip
    rows = np.choose(rng.integers(0, len(pools), (n, 5)), pools)
    want = np.asarray(booster.predict(rows, num_threads=1))
    assert predicted(model, rows).tobytes() == want.tobytes()
    raw = np.asarray(booster.predict(rows, raw_score=True, num_threads=1)) / model.divisor
    shares = model.contributions(np.ascontiguousarray(rows.T), np.arange(5), np.arange(n))
    np.testing.assert_allclose(shares.sum(axis=1) + model.bias, raw, rtol=0, atol=1e-9 + rounding(model))
    assert rounding(model) < 1e-5


def test_the_largest_models_are_climbed(monkeypatch: pytest.MonkeyPatch) -> None:
    text = BOOSTERS["large_trees"].model_to_string()
    model = Forest.parse(text)
    monkeypatch.setattr(forest, "CHANGES_MAX", len(model.changes) - 1)
    larger = Forest.parse(text)
    assert len(larger.changes) == 0
    cells, columns = np.random.default_rng(3).normal(size=(5, 70)), np.arange(5)
    for rows in (np.arange(70), np.arange(9), np.arange(1)):
        shares = model.contributions(cells, columns, rows)
        assert shares.any()
        assert larger.contributions(cells, columns, rows).tobytes() == shares.tobytes()


def test_the_models_are_what_they_are_called() -> None:
    """So that the tests above meet what they are about."""
    text = {kind: booster.model_to_string() for kind, booster in BOOSTERS.items()}
    rules = {kind: set(Forest.parse(text[kind]).axes[:, forest.A_RULE].tolist()) for kind in KINDS}
    assert rules["zero_as_missing"] == {forest.IF_NAN_OR_ZERO}
    assert rules["categorical"] == {forest.IF_NAN}
    assert len(Forest.parse(text["categorical"]).sets) > 1
    assert rules["one_leaf"] == set()
    assert "average_output" in text["averaged"]
    assert Forest.parse(text["averaged"]).divisor == 21
    assert "sigmoid:0.7" in text["sigmoid"]
    assert text["stopped"].count("Tree=") < 21
    assert text["one_leaf"].count("num_leaves=1\n") >= 1
    assert Forest.parse(text["large_trees"]).trees[:, forest.T_DEPTHS].max() > 8
    assert len(Forest.parse(text["large_trees"]).splits) == 0
    assert len(Forest.parse(text["plain"]).splits) > 0


# -- what serving relies on


def test_a_row_is_predicted_alone_as_among_others() -> None:
    rows = np.random.default_rng(1).normal(size=(200, 5))
    model = Forest.parse(BOOSTERS["plain"].model_to_string())
    together = predicted(model, rows)
    alone = np.concatenate([predicted(model, rows[i : i + 1]) for i in range(len(rows))])
    assert alone.tobytes() == together.tobytes()
    cells, columns = np.ascontiguousarray(rows.T), np.arange(5)
    every = model.contributions(cells, columns, np.arange(200))
    chosen = np.array([199, 3, 3, 70])
    assert model.contributions(cells, columns, chosen).tobytes() == every[chosen].tobytes()
    assert model.contributions(cells, columns, chosen[:0]).shape == (0, 5)
    empty = np.empty(0)
    model.predict(np.empty((5, 0)), columns, empty)


def test_threads_share_a_forest() -> None:
    model = Forest.parse(BOOSTERS["large_trees"].model_to_string())
    batches = [np.random.default_rng(seed).normal(size=(150, 5)) for seed in range(8)]
    want = [predicted(model, batch).tobytes() for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            assert [found.tobytes() for found in pool.map(lambda b: predicted(model, b), batches)] == want


def test_columns_that_are_not_there_are_refused() -> None:
    model = Forest.parse(BOOSTERS["plain"].model_to_string())
    cells, out = np.zeros((5, 2)), np.empty(2)
    with pytest.raises(ValueError, match="4 columns for a model of 5 features"):
        model.predict(cells, np.arange(4), out)
    with pytest.raises(ValueError, match="beyond its 5"):
        model.predict(cells, np.arange(1, 6), out)
    with pytest.raises(ValueError, match="3 places for 2 rows"):
        model.predict(cells, np.arange(5), np.empty(3))
    with pytest.raises(ValueError, match="rows beyond the 2"):
        model.contributions(cells, np.arange(5), np.array([2]))
    with pytest.raises(ValueError, match="rows beyond the 2"):
        model.contributions(cells, np.arange(5), np.array([1, -1]))
    with pytest.raises(ValueError, match="beyond its 5"):
        model.contributions(cells, np.arange(1, 6), np.array([0]))


def test_part_of_a_batch_compiles_nothing() -> None:
    model = Forest.parse(BOOSTERS["plain"].model_to_string())
    cells = np.random.default_rng(2).normal(size=(5, 20))
    whole, part = np.empty(20), np.empty(9)
    model.predict(cells, np.arange(5), whole)
    model.predict(cells[:, 3:12], np.arange(5), part)
    assert part.tobytes() == whole[3:12].tobytes()
    assert len(getattr(forest.walk, "signatures", (0,))) == 1


@pytest.mark.parametrize("kind", ["categorical", "zero_as_missing"])
def test_without_compiling_every_bit_is_the_same(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    BOOSTERS[kind].save_model(path)
    done = subprocess.run(
        [sys.executable, "-c", PLAIN.format(path=str(path))],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert hasattr(forest.walk, "py_func"), "this process does compile"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(PLAIN.format(path=str(path)), {})
    assert done.stdout == said.getvalue()


# 31 rows, a block to be swept; then 3 of them, each by itself.
PLAIN = """
import numpy as np
from riskengine.forest import Forest
model = Forest.load({path!r})
cells = np.random.default_rng(5).normal(size=(5, 31)).round(1)
cells[1] = np.arange(31)
cells[cells > 1.5] = np.nan
p, few = np.empty(31), np.empty(3)
model.predict(cells, np.arange(5), p)
model.predict(cells[:, :3], np.arange(5), few)
shares = [model.contributions(cells, np.arange(5), rows) for rows in (np.arange(31), np.array([4, 0, 4]))]
print([part.tobytes().hex() for part in (p, few, *shares)])
"""


def test_serving_does_not_import_lightgbm(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    BOOSTERS["plain"].save_model(path)
    code = (
        "import sys; from riskengine.forest import Forest; Forest.load(sys.argv[1]);"
        "sys.exit('lightgbm' in sys.modules or 'sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["plain", "categorical", "averaged"])
def test_explain_is_exact_and_starts_from_the_same_bias(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    booster = BOOSTERS[kind]
    booster.save_model(path)
    row = [0.3, 7.0, 0.0, math.nan, -1.2]
    shares, bias = forest.explain(path, row)
    raw = np.asarray(booster.predict(np.array([row]), raw_score=True))[0]
    assert shares.sum() + bias == pytest.approx(raw / Forest.load(path).divisor, abs=1e-9)
    assert Forest.load(path).bias == pytest.approx(bias, abs=1e-9)
    with pytest.raises(ModelError, match="has 5 features, the row has 2 values"):
        forest.explain(path, [1.0, 2.0])


# -- files that are no model


def damaged() -> dict[str, str]:
    """Each damage that has an error of its own, by name."""
    tree = Drawn(0, 2, 0.5, (), (Drawn(value=-0.5, count=3), Drawn(1, 1, 0.0, (6,), (Drawn(), Drawn()))))
    good = model_text([tree, Drawn(value=0.25, count=9)])

    def put(old: str, new: str) -> str:
        assert old in good
        return good.replace(old, new, 1)

    return {
        "empty": "",
        "another file": "policy: shop\n",
        "cut off": good[: good.index("end of trees")],
        "no objective": put("objective=binary sigmoid:1.0\n", ""),
        "regression": put("objective=binary sigmoid:1.0", "objective=regression"),
        "no sigmoid above 0": put("sigmoid:1.0", "sigmoid:0"),
        "multiclass": put("num_class=1", "num_class=3"),
        "linear trees": put("is_linear=0", "is_linear=1"),
        "pandas categories": put("pandas_categorical:null", 'pandas_categorical:[["a", "b"]]'),
        "no trees": good[: good.index("Tree=0")] + good[good.index("end of trees") :],
        "a tree is missing": good[: good.index("Tree=0")] + good[good.index("Tree=1") :],
        "the last tree is missing": good[: good.index("Tree=1")] + good[good.index("end of trees") :],
        "a line is missing": put("left_child=-1 -2\n", ""),
        "a line is doubled": put("left_child=-1 -2\n", "left_child=-1 -2\nleft_child=-1 -2\n"),
        "a number is missing": put("leaf_value=-0.5 0.0 0.0", "leaf_value=-0.5 0.0"),
        "not an integer": put("leaf_count=3 0 0", "leaf_count=3 0 x"),
        "not a number": put("leaf_value=-0.5", "leaf_value=nan"),
        "not even that": put("leaf_value=-0.5", "leaf_value=-0.5.5"),
        "no leaves": put("num_leaves=3", "num_leaves=0"),
        "child beyond": put("left_child=-1 -2", "left_child=-1 -4"),
        "child twice": put("left_child=-1 -2", "left_child=-1 -3"),
        "a cycle": put("left_child=-1 -2", "left_child=-1 1").replace(
            "right_child=1 -3", "right_child=-2 -3"
        ),
        "feature beyond": put("split_feature=0 1", "split_feature=0 3"),
        "unknown missing type": put("decision_type=2 1", "decision_type=14 1"),
        "no such set": put("threshold=0.5 0", "threshold=0.5 1"),
        "sets out of order": put("cat_boundaries=0 1", "cat_boundaries=1 1"),
        "names twice": put("feature_names=f0 f1 f2", "feature_names=f0 f1 f1"),
        "names missing": put("feature_names=f0 f1 f2", "feature_names=f0 f1"),
    }


def test_errors_say_where_what_and_what_to_do() -> None:
    shown = []
    for name, text in damaged().items():
        with pytest.raises(ModelError) as caught:
            Forest.parse(text)
        shown.append(f"{name}\n  {caught.value}\n")
    matches_snapshot("forest/damaged", "\n".join(shown))


def test_errors_of_reading_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        Forest.load(tmp_path / "model.txt")
    (tmp_path / "model.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="is not UTF-8 text"):
        Forest.load(tmp_path / "model.txt")
    with pytest.raises(ModelError, match="is not UTF-8 text"):
        forest.explain(tmp_path / "model.txt", [1.0])


@settings(max_examples=300)
@given(st.sampled_from(["plain", "categorical", "one_leaf"]), st.data())
def test_a_damaged_file_is_refused_or_walked_within_bounds(kind: str, data: st.DataObject) -> None:
    """Whatever is accepted is a forest: every walk ends at a leaf of its own tree."""
    lines = TEXTS[kind].split("\n")
    at = data.draw(st.integers(0, lines.index("end of trees")))
    key, _, value = lines[at].partition("=")
    words = value.split(" ")
    word = data.draw(st.integers(0, len(words) - 1))
    way = data.draw(st.sampled_from(["drop", "cut", "twice", "number"]))
    if way == "drop":
        del lines[at]
    elif way == "cut":
        lines[at] = lines[at][: data.draw(st.integers(0, len(lines[at])))]
    elif way == "twice":
        lines.insert(at, lines[at])
    else:
        words[word] = str(data.draw(st.integers(-40, 40) | st.integers(-(2**70), 2**70) | st.floats()))
        lines[at] = f"{key}={' '.join(words)}"
    try:
        model = Forest.parse("\n".join(lines))
    except ModelError:
        return
    assert_walks_end(model)


TEXTS = {kind: booster.model_to_string() for kind, booster in BOOSTERS.items()}


def assert_walks_end(model: Forest) -> None:
    children = model.nodes >> forest.CHILD
    leaf = children == np.arange(len(children))
    assert (children[~leaf] + 1 < len(children)).all()
    axis = model.nodes >> forest.AXIS & forest.HALF
    assert (axis[~leaf] < len(model.axes) + len(model.sets)).all()
    assert (model.nodes[leaf] & forest.HALF == forest.RANKS_MAX).all()
    for root, _, depth in model.trees.tolist():
        reached = {root}
        for _ in range(depth):
            reached = {
                child for node in reached for child in (children[node], children[node] + (not leaf[node]))
            }
        assert leaf[list(reached)].all()
    assert sorted(model.trees[:, forest.T_AT].tolist()) == list(range(len(model.trees)))
    assert (model.asked[:, forest.S_FEATURE] < len(model.features)).all()
    assert (model.sets[:, forest.C_FEATURE] < len(model.features)).all()
    assert (model.splits[:, forest.P_AXIS] < max(len(model.axes) + len(model.sets), 1)).all()
    assert len(model.splits) in (0, 2 * model.pairs.sum())
    begins = model.asked[:, [forest.S_AXIS, forest.S_END]].ravel()
    assert begins.tolist() == sorted(begins)
    assert (begins <= len(model.axes)).all()
    ends = [*model.asked[1:, forest.S_FIRST].tolist(), len(model.thresholds)] if len(model.asked) else []
    for (_, first, levels, *_), end in zip(model.asked.tolist(), ends, strict=True):
        above, last = 0, 1  # thresholds of the levels above, and sixteens of this one
        for level in range(levels):
            size = end - first - above if level == levels - 1 else 16 * last
            assert size % 16 == 0
            assert 0 < size <= 16 * last
            assert np.isposinf(model.thresholds[first + above + size - 1])
            above, last = above + size, size
