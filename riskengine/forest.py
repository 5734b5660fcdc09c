"""A LightGBM model as flat arrays, and the one kernel that walks them.

`Forest.load` reads model.txt itself, and `predict` gives what `Booster.predict` gives, bit for bit. Only
`explain` asks LightGBM.

A row is first measured: each feature becomes its rank among the model's thresholds on it, and whatever is
said about missing values, zeros and categories is settled there. The walk then compares small integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from riskengine.kernel import SIXTEEN, below, jit, jit_inline, pointer, viewed
from riskengine.modeltext import MEND, MISSING_NONE, MISSING_ZERO, ModelError, TreeModel, parse

Float64s = NDArray[np.float64]
Int32s = NDArray[np.int32]
Uint16s = NDArray[np.uint16]
Int64s = NDArray[np.int64]

# LightGBM's kZeroThreshold, a float: whatever is not farther from zero is zero.
ZERO: Final = float(np.float32(1e-35))

# All that the kernel reads of a model is one array of words, and so one argument: with each of its parts by
# itself, a lone row's call took 1.3 us of 5.7. W_...: where each part begins, how many there are, and the
# bits of three doubles.
W_ASKED, W_AXES, W_THRESHOLDS, W_SETS, W_CATEGORIES, W_TREES, W_NODES, W_VALUES = range(8)
W_PAIRS, W_SPLITS, W_LEAVES, W_PARTINGS, W_ABOVE, W_BEGINS, W_CHANGES = range(8, 15)
W_FEATURES_N, W_ASKED_N, W_AXES_N, W_SETS_N, W_TREES_N, W_LANES_N, W_SPLITS_N, W_CHANGES_N = range(15, 23)
W_DIVISOR, W_SIGMOID, W_UNIT, W_SIZE = range(23, 27)
LINE: Final = 8  # words of a cache line; each part begins one

# An axis is a feature as some nodes see it: with one rule for what is missing, or one set of categories. A
# row has a rank on each.
# Columns of Forest.asked, by feature that has thresholds: where they stand and in how many levels, and the
# axes from S_AXIS to S_END.
S_FEATURE, S_FIRST, S_LEVELS, S_AXIS, S_END, S_SIZE = range(6)
# Columns of Forest.axes: what has the rank A_MISSING instead of its own.
A_MISSING, A_RULE, A_SIZE = range(3)
IF_NAN, IF_NAN_OR_ZERO = range(2)
# Columns of Forest.sets, whose axes come last: where the words of the set stand that has rank 0 while all
# else has 1, and how many they are.
C_FEATURE, C_FIRST, C_COUNT, C_SIZE = range(4)

# A node is one word: its left child (the right one is next to it), its axis, and the rank above which a row
# goes right. A leaf is its own left child, and no rank is above its: walks may go on for longer than needed.
CHILD: Final = 32
AXIS: Final = 16
HALF: Final = 0xFFFF
RANKS_MAX: Final = 0xFFFF
AXES_MAX: Final = 0x10000

# Columns of Forest.trees, the shallowest first: the root, which tree of the file it is, and the greatest
# depth of the LANES trees that it stands with. In the file's order these are a fifth deeper.
T_ROOT, T_AT, T_DEPTHS, T_SIZE = range(4)
# Columns of Forest.splits: of the leaves, left to right and a bit each, P_LOW and P_HIGH are those a row can
# still come to when it goes right.
P_AXIS, P_RANK, P_LOW, P_HIGH, P_SIZE = range(5)
ALL: Final = np.uint16(0xFFFF)
SWEEP_LEAVES_MAX: Final = 32
# The product of this and a power of 2 below 2**32 has another number in its highest 5 bits for each
# (Leiserson, Prokop, Randall, "Using de Bruijn sequences to index a 1 in a computer word", 1998).
DE_BRUIJN: Final = np.uint32(0x077CB531)

# Rows measured together: 128 axes of 64 ranks are 16 KB, and as much of the first cache is left for a tree.
BLOCK: Final = 64
SCRATCH: Final = 2  # blocks behind the axes' ranks
# Trees that a row walks at a time, so that each waits for its memory while the others go on. One at a time
# takes three times as long.
LANES: Final = 8
SWEEP_MIN: Final = 10  # from so many rows on, 64 are swept; with caches that others have used, 8 would do

# Columns of Forest.above: the split above a node (above a root itself), the feature it asks, and what the
# answer changes in units of Forest.unit.
U_PARENT, U_FEATURE, U_CHANGE, U_SIZE = range(4)
# The same of both answers to a split that is swept, and whose leaves they lead to.
G_FEATURE, G_LEFT, G_RIGHT, G_LEFT_CHANGE, G_RIGHT_CHANGE, G_SIZE = range(6)
# What all splits together can change is at most 2**30 units: sums of 32 bits have room, and their order is
# nothing to them.
UNITS_BITS: Final = 30
CHANGES_MAX: Final = 16_777_216  # of 4 bytes; in larger models each path is climbed

EVERY: Final = np.arange(1024)
NO_SHARES: Final = np.empty(0, np.float64)
WRONG: Final = (
    "",
    "{columns} columns for a model of {features} features",
    "{places} places for {rows} rows",
    "columns name rows of cells beyond its {cells}",
    "rows beyond the {rows} of cells",
)


@dataclass(frozen=True, eq=False, slots=True)
class Forest:
    """A binary LightGBM model. Made by `load` or `parse`; safe to use from many threads."""

    features: tuple[str, ...]  # in the model's order
    bias: float  # what the contributions of a row are added to: the mean raw score of the training rows
    divisor: float  # the number of trees where their outputs are averaged, else 1
    unit: float  # of a change, in raw score: a power of two
    room: int  # words that a row takes to walk, and a block to be swept
    room_swept: int
    words: Int64s  # the parts below and others, and before them W_SIZE words that say where each is
    asked: Int64s  # (features, S_SIZE)
    axes: Int64s  # (axes, A_SIZE)
    thresholds: Float64s  # by feature and level
    sets: Int64s  # (sets, C_SIZE)
    trees: Int64s  # (trees, T_SIZE), padded to a multiple of LANES
    nodes: Int64s  # each tree's together, breadth first
    pairs: Int64s  # of splits, by tree
    splits: Uint16s  # (splits, P_SIZE), those of a tree together; none where a tree is too large
    changes: Int32s  # by leaf and feature: what its path gives; none where that is too many

    @classmethod
    def load(cls, path: str | Path) -> Forest:
        """Read a model.txt. Raises ModelError if it cannot be read or is no binary model of plain trees."""
        try:
            text = Path(path).read_bytes().decode("utf-8")
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise ModelError(f"{path} is not UTF-8 text: expected LightGBM's model.txt. {MEND}") from error
        return _parsed(text, str(path))

    @classmethod
    def parse(cls, text: str, file: str = "model.txt") -> Forest:
        """Read the text of a model.txt; `file` is what errors call it. Raises ModelError as `load` does."""
        return _compile(parse(text, file), file)

    def predict(self, cells: Float64s, columns: Int64s, out: Float64s) -> None:
        """Write each row's probability of fraud to `out` (n), as Booster.predict gives it.

        cells: (columns, n), one contiguous row a column; columns: (features,), which of them is each feature.
        """
        n = cells.shape[1]
        self._walk(cells, columns, EVERY[:n] if n <= len(EVERY) else np.arange(n), out, NO_SHARES)

    def contributions(self, cells: Float64s, columns: Int64s, rows: Int64s) -> Float64s:
        """What each feature adds to the raw score of the chosen rows: (len(rows), features).

        Along a row's path through a tree the expected output changes at every split; each change is put
        down to the feature that was asked (A. Saabas, "Interpreting random forests", 2014). What is expected
        at a node is the mean of its leaves' outputs weighted by leaf_count, as in LightGBM's pred_contrib.
        A row's contributions and `bias` add up to its raw score (what the sigmoid is taken of), but for
        rounding: the change at each split is rounded to a whole number of `unit`, which is about a billionth
        of what all trees together can change.
        """
        shares = np.empty((len(rows), len(self.features)))
        if len(rows):
            self._walk(cells, columns, rows, np.empty(len(rows)), shares.reshape(-1))
        return shares

    def _walk(self, cells: Float64s, columns: Int64s, rows: Int64s, out: Float64s, shares: Float64s) -> None:
        made = np.zeros if len(shares) else np.empty  # sums begin and end as zeros
        room = made(self.room if len(out) < SWEEP_MIN else self.room_swept, np.int64)
        # numba would compile the kernel again for cells that lie in another way.
        wrong = walk(self.words, np.ascontiguousarray(cells), columns, rows, room, out, shares)
        if wrong:
            said = WRONG[wrong].format(
                columns=len(columns), features=len(self.features), places=len(out), cells=len(cells),
                rows=cells.shape[1],
            )  # fmt: skip
            raise ValueError(said)


def explain(model: str | Path, row: Sequence[float]) -> tuple[Float64s, float]:
    """Exact TreeSHAP of one row by LightGBM's pred_contrib: by feature, and the bias.

    Slow (it loads LightGBM and the model): for a person who asks, not for serving. Lundberg et al.,
    "Consistent individualized feature attribution for tree ensembles", 2018. Raises ModelError.
    """
    forest = Forest.load(model)
    if len(row) != len(forest.features):
        raise ModelError(f"{model} has {len(forest.features)} features, the row has {len(row)} values.")
    import lightgbm

    booster = lightgbm.Booster(model_file=str(model))
    # LightGBM leaves these, and what it calls the raw score, as sums where a model averages its trees.
    shares = booster.predict(np.array([row], np.float64), pred_contrib=True)[0] / forest.divisor
    return shares[:-1], float(shares[-1])


# -- the kernel


@jit
def walk(
    words: Int64s,
    cells: Float64s,
    columns: Int64s,
    rows: Int64s,
    room: Int64s,
    out: Float64s,
    shares: Float64s,
) -> int:
    """Take the chosen rows through every tree; what of WRONG is, or 0.

    `room` is scratch; `shares`, by row and feature, has no place where none are asked for. Where they are,
    `room` is zeros: it begins with the sums of features.
    """
    n, width = rows.shape[0], words[W_FEATURES_N]
    if columns.shape[0] != width:
        return 1
    if out.shape[0] != n:
        return 2
    for i in range(width):
        if not 0 <= columns[i] < cells.shape[0]:
            return 3
    for i in range(n):
        if not 0 <= rows[i] < cells.shape[1]:
            return 4
    wanted, numbers = shares.shape[0] > 0, viewed(words, 0, np.float64)
    divisor, sigmoid = numbers[W_DIVISOR], numbers[W_SIGMOID]
    first = 0
    while first < n:
        swept = n - first >= SWEEP_MIN and words[W_SPLITS_N] > 0
        count = min(n - first, BLOCK) if swept else 1
        ranks = viewed(room, width * BLOCK // 2 if swept else (width + 1) // 2, np.uint16)
        measure(words, cells, columns, pointer(rows, first), count, BLOCK if swept else 1, ranks)
        if swept:
            sweep(words, room, ranks, count, pointer(out, first), wanted, pointer(shares, first * width))
        else:
            out[first] = walk_row(words, room, ranks, wanted, pointer(shares, first * width))
        first += count
    for i in range(n):
        out[i] = 1.0 / (1.0 + math.exp(-sigmoid * (out[i] / divisor)))
    return 0


@jit_inline
def measure(
    words: Int64s,
    cells: Float64s,
    columns: Int64s,
    rows: Int64s,
    count: int,
    stride: int,
    ranks: Uint16s,
) -> None:
    """Write the ranks of the first `count` of `rows`, `stride` places an axis.

    A feature's rank is found by how many of sixteen thresholds are below it, a level after the other. By
    halves, each waiting for the one before, a lone row took 1.0 us for 64 features instead of 0.4.
    """
    thresholds = viewed(words, words[W_THRESHOLDS], np.float64)
    axes = pointer(words, words[W_AXES])
    for s in range(words[W_ASKED_N]):
        asked = pointer(words, words[W_ASKED] + s * S_SIZE)
        column = pointer(cells, columns[asked[S_FEATURE]] * cells.shape[1])
        for i in range(count):
            x = column[rows[i]]
            level, size, rank = asked[S_FIRST], SIXTEEN, 0
            for _ in range(asked[S_LEVELS]):
                at = rank * SIXTEEN
                rank = at + below(thresholds, level + at, x)
                level += size
                size *= SIXTEEN
            nan = x != x
            zero = nan | (abs(x) <= ZERO)
            a = asked[S_AXIS]
            while a < asked[S_END]:  # a range would be made a vector's, for the two that there are
                missing = zero if axes[a * A_SIZE + A_RULE] == IF_NAN_OR_ZERO else nan
                ranks[a * stride + i] = np.uint16(axes[a * A_SIZE + A_MISSING] if missing else rank)
                a += 1
    categories = viewed(words, words[W_CATEGORIES], np.uint32)
    for s in range(words[W_SETS_N]):
        asked = pointer(words, words[W_SETS] + s * C_SIZE)
        column = pointer(cells, columns[asked[C_FEATURE]] * cells.shape[1])
        for i in range(count):
            x = column[rows[i]]
            rank = 1
            if x > -1.0 and x < 2147483648.0:  # others are no int32, and NaN is none
                number = int(x)
                if number >> 5 < asked[C_COUNT]:
                    rank -= int(categories[asked[C_FIRST] + (number >> 5)]) >> (number & 31) & 1
            ranks[(words[W_AXES_N] + s) * stride + i] = np.uint16(rank)


@jit_inline
def walk_row(words: Int64s, room: Int64s, ranks: Uint16s, wanted: bool, shares: Float64s) -> float:
    """The raw score of a measured row, LANES trees at a time; their outputs are added in the file's order."""
    axes, width, numbers = (
        words[W_AXES_N] + words[W_SETS_N],
        words[W_FEATURES_N],
        viewed(words, 0, np.float64),
    )
    met = pointer(room, (width + 1) // 2 + (axes + 3) // 4)
    nodes, values, unit = pointer(words, words[W_NODES]), pointer(numbers, words[W_VALUES]), numbers[W_UNIT]
    for t in range(0, words[W_LANES_N], LANES):
        trees = pointer(words, words[W_TREES] + t * T_SIZE)
        n0, n1, n2, n3 = trees[T_ROOT], trees[T_SIZE + T_ROOT], trees[2 * T_SIZE], trees[3 * T_SIZE]
        n4, n5, n6, n7 = trees[4 * T_SIZE], trees[5 * T_SIZE], trees[6 * T_SIZE], trees[7 * T_SIZE]
        for _ in range(trees[T_DEPTHS]):
            n0 = step(nodes, ranks, n0)
            n1 = step(nodes, ranks, n1)
            n2 = step(nodes, ranks, n2)
            n3 = step(nodes, ranks, n3)
            n4 = step(nodes, ranks, n4)
            n5 = step(nodes, ranks, n5)
            n6 = step(nodes, ranks, n6)
            n7 = step(nodes, ranks, n7)
        met[trees[T_AT]] = n0
        met[trees[T_SIZE + T_AT]] = n1
        met[trees[2 * T_SIZE + T_AT]] = n2
        met[trees[3 * T_SIZE + T_AT]] = n3
        met[trees[4 * T_SIZE + T_AT]] = n4
        met[trees[5 * T_SIZE + T_AT]] = n5
        met[trees[6 * T_SIZE + T_AT]] = n6
        met[trees[7 * T_SIZE + T_AT]] = n7
    found = 0.0
    for t in range(words[W_TREES_N]):
        found += values[met[t]]
    if wanted:
        sums = viewed(room, 0, np.int32)
        if words[W_CHANGES_N] > 0:
            add_up(words, met, sums)
        else:
            climb(words, met, sums)
        for k in range(width):
            shares[k] = sums[k] * unit
            sums[k] = 0
    return found


@jit_inline
def step(nodes: Int64s, ranks: Uint16s, node: int) -> int:
    """The child of `node` that a row goes to."""
    word = nodes[node]
    child: int = (word >> CHILD) + np.int64(np.int64(ranks[word >> AXIS & HALF]) > word & HALF)
    return child


@jit_inline
def add_up(words: Int64s, met: Int64s, sums: Int32s) -> None:
    """Add what the leaves that a row met give to each feature, four trees at a time.

    A list of features and changes a leaf, where only a tenth of the features are on a path, takes 1.8 us a
    row instead of 1.1: an addition in memory has to wait for the one before.
    """
    begins, width = pointer(words, words[W_BEGINS]), words[W_FEATURES_N]
    changes = viewed(words, words[W_CHANGES], np.int32)
    for t in range(0, words[W_LANES_N], 4):
        a0, a1 = pointer(changes, begins[met[t]]), pointer(changes, begins[met[t + 1]])
        a2, a3 = pointer(changes, begins[met[t + 2]]), pointer(changes, begins[met[t + 3]])
        for k in range(width):
            sums[k] += a0[k] + a1[k] + a2[k] + a3[k]


@jit_inline
def climb(words: Int64s, met: Int64s, sums: Int32s) -> None:
    """`add_up`, from each leaf up to its root."""
    above = viewed(words, words[W_ABOVE], np.int32)
    for t in range(words[W_TREES_N]):
        node = met[t]
        while above[node * U_SIZE + U_PARENT] != node:
            sums[above[node * U_SIZE + U_FEATURE]] += above[node * U_SIZE + U_CHANGE]
            node = np.int64(above[node * U_SIZE + U_PARENT])


@jit_inline
def sweep(
    words: Int64s,
    room: Int64s,
    ranks: Uint16s,
    count: int,
    out: Float64s,
    wanted: bool,
    shares: Float64s,
) -> None:
    """Ask every split of the whole block; a row's leaf is the leftmost that none of them rules out.

    C. Lucchese et al., "QuickScorer", 2015, with the rows side by side: 16 ranks are compared at a time, and
    nothing is looked up on the way. Two splits a turn: one takes 1.25 times as long, three no less. Then each
    split gives to the rows whose leaf is below it; that they add up leaf by leaf takes four times as long.
    """
    axes, width, numbers = (
        words[W_AXES_N] + words[W_SETS_N],
        words[W_FEATURES_N],
        viewed(words, 0, np.float64),
    )
    low, high = pointer(ranks, axes * BLOCK), pointer(ranks, (axes + 1) * BLOCK)
    sums = viewed(room, 0, np.int32)
    bits = viewed(room, (2 * width + axes + SCRATCH) * BLOCK // 4, np.uint32)
    values, pairs = pointer(numbers, words[W_VALUES]), pointer(words, words[W_PAIRS])
    leaves = viewed(words, words[W_LEAVES], np.uint32)
    split = viewed(words, words[W_SPLITS], np.uint16)
    parting, masks = (
        viewed(words, words[W_PARTINGS], np.int32),
        viewed(words, words[W_PARTINGS], np.uint32),
    )
    for i in range(count):
        out[i] = 0.0
    for t in range(words[W_TREES_N]):
        for i in range(BLOCK):
            low[i] = high[i] = ALL
        for _ in range(pairs[t]):
            ranks_a = pointer(ranks, split[P_AXIS] * BLOCK)
            ranks_b = pointer(ranks, split[P_SIZE + P_AXIS] * BLOCK)
            rank_a, rank_b = split[P_RANK], split[P_SIZE + P_RANK]
            low_a, low_b = split[P_LOW], split[P_SIZE + P_LOW]
            high_a, high_b = split[P_HIGH], split[P_SIZE + P_HIGH]
            for i in range(BLOCK):
                a, b = ranks_a[i] > rank_a, ranks_b[i] > rank_b
                low[i] &= (low_a if a else ALL) & (low_b if b else ALL)
                high[i] &= (high_a if a else ALL) & (high_b if b else ALL)
            split = pointer(split, 2 * P_SIZE)
        for i in range(BLOCK):
            left = np.uint32(low[i]) | (np.uint32(high[i]) << np.uint32(16))
            bits[i] = left & (~left + np.uint32(1))
        for i in range(count):
            leaf = np.int64(np.uint32(bits[i] * DE_BRUIJN) >> np.uint32(27))
            out[i] += values[np.int64(leaves[t * SWEEP_LEAVES_MAX + leaf])]
        if wanted:
            for _ in range(2 * pairs[t]):
                to = pointer(sums, int(parting[G_FEATURE]) * BLOCK)
                left, right = masks[G_LEFT], masks[G_RIGHT]
                left_change, right_change = parting[G_LEFT_CHANGE], parting[G_RIGHT_CHANGE]
                for i in range(BLOCK):
                    to[i] += left_change if bits[i] & left else np.int32(0)
                    to[i] += right_change if bits[i] & right else np.int32(0)
                parting, masks = pointer(parting, G_SIZE), pointer(masks, G_SIZE)
    if wanted:
        unit = numbers[W_UNIT]
        for k in range(width):
            for i in range(count):
                shares[i * width + k] = sums[k * BLOCK + i] * unit
            for i in range(BLOCK):
                sums[k * BLOCK + i] = 0


# -- trees to arrays


@lru_cache(maxsize=2)
def _parsed(text: str, file: str) -> Forest:
    """`Forest.parse`, or what it made of this very text before.

    A policy is activated more often than its model is trained: of 65 ms that this takes beside the traffic,
    35 were for the model.
    """
    return Forest.parse(text, file)


def _compile(model: TreeModel, file: str) -> Forest:
    """Lay all trees out at once, level by level."""
    trees = model.trees
    splits = np.array([len(tree.feature) for tree in trees])
    sizes = 2 * splits + 1
    starts = np.concatenate([[0], np.cumsum(sizes)])
    total = int(starts[-1])
    # Everything by node: of each tree its splits, then its leaves.
    tree_of = np.repeat(np.arange(len(trees)), sizes)
    is_split = np.arange(total) - starts[tree_of] < splits[tree_of]
    nodes = np.flatnonzero(is_split)
    feature = np.concatenate([tree.feature for tree in trees])
    left, right = np.full(total, -1), np.full(total, -1)
    for child, given in ((left, [tree.left for tree in trees]), (right, [tree.right for tree in trees])):
        own = np.concatenate(given)
        of = tree_of[nodes]
        child[nodes] = starts[of] + np.where(own >= 0, own, splits[of] + ~own)
    values, weights = np.zeros(total), np.zeros(total)
    values[~is_split] = np.concatenate([tree.value for tree in trees])
    weights[~is_split] = np.concatenate([tree.count for tree in trees])

    levels = [starts[:-1]]
    depth_of = np.zeros(total, np.int64)
    while len(inner := levels[-1][is_split[levels[-1]]]):
        levels.append(np.stack([left[inner], right[inner]], axis=1).ravel())
        depth_of[levels[-1]] = len(levels) - 1
    order = np.concatenate(levels)
    order = order[np.argsort(tree_of[order], kind="stable")]
    place = np.empty(total, np.int64)
    place[order] = np.arange(total)

    expected = values.copy()  # the mean output of the training rows that came by
    for level in reversed(levels):
        inner = level[is_split[level]]
        a, b = left[inner], right[inner]
        weights[inner] = weights[a] + weights[b]
        share = np.where(weights[inner] > 0, weights[a] / np.maximum(weights[inner], 1), 0.5)
        expected[inner] = share * expected[a] + (1 - share) * expected[b]

    measured, axis, rank = _axes(model, feature, file)
    laid = np.arange(total + 1) << CHILD | HALF
    laid[place[nodes]] = place[left[nodes]] << CHILD | axis << AXIS | rank
    outputs = np.zeros(total + 1)  # the last node is a leaf of nothing, all there is of the trees that pad
    outputs[place[~is_split]] = values[~is_split]
    table = _trees(starts[:-1], np.maximum.reduceat(depth_of, starts[:-1]), total)

    divisor = float(len(trees)) if model.average else 1.0
    asked = np.zeros(total, np.int64)
    asked[left[nodes]] = asked[right[nodes]] = feature
    parent = np.arange(total)
    parent[left[nodes]] = parent[right[nodes]] = nodes
    change = (expected - expected[parent]) / divisor
    unit = _unit(np.abs(change), parent, levels, starts)
    above = np.zeros((total + 1, U_SIZE), np.int32)
    above[total, U_PARENT] = total
    above[place, U_PARENT] = place[parent]
    above[place, U_FEATURE] = asked
    above[place, U_CHANGE] = np.rint(change / unit)
    leaves = place[~is_split]
    begins = np.full(total + 1, len(leaves) * len(model.features))
    begins[leaves] = np.arange(len(leaves)) * len(model.features)
    swept = _sweep(laid, starts[:-1], above) if splits.max() < SWEEP_LEAVES_MAX else NOT_SWEPT

    changes = _changes(above, leaves, len(model.features))
    words, parts = _packed(
        {
            W_ASKED: measured.asked,
            W_AXES: measured.axes,
            W_THRESHOLDS: measured.thresholds,
            W_SETS: measured.sets,
            W_CATEGORIES: measured.categories,
            W_TREES: table,
            W_NODES: laid,
            W_VALUES: outputs,
            W_PAIRS: swept.pairs,
            W_SPLITS: swept.splits,
            W_LEAVES: swept.leaves,
            W_PARTINGS: swept.partings,
            W_ABOVE: above,
            W_BEGINS: begins,
            W_CHANGES: changes,
        },
        {
            W_FEATURES_N: len(model.features),
            W_ASKED_N: len(measured.asked),
            W_AXES_N: len(measured.axes),
            W_SETS_N: len(measured.sets),
            W_TREES_N: len(trees),
            W_LANES_N: len(table),
            W_SPLITS_N: len(swept.splits),
            W_CHANGES_N: len(changes),
        },
        {W_DIVISOR: divisor, W_SIGMOID: model.sigmoid, W_UNIT: unit},
    )
    axes, width = len(measured.axes) + len(measured.sets), len(model.features)
    room = (axes + 3) // 4 + len(table) + (width + 1) // 2
    return Forest(
        features=model.features,
        bias=float(expected[starts[:-1]].sum()) / divisor,
        divisor=divisor,
        unit=unit,
        room=room,
        room_swept=max(room, (2 * width + axes + SCRATCH + 2) * BLOCK // 4),
        words=words,
        asked=parts[W_ASKED],
        axes=parts[W_AXES],
        thresholds=parts[W_THRESHOLDS],
        sets=parts[W_SETS],
        trees=parts[W_TREES],
        nodes=parts[W_NODES],
        pairs=parts[W_PAIRS],
        splits=parts[W_SPLITS],
        changes=parts[W_CHANGES],
    )


def _packed(
    parts: Mapping[int, NDArray[Any]], counts: Mapping[int, int], numbers: Mapping[int, float]
) -> tuple[Int64s, dict[int, NDArray[Any]]]:
    """Forest.words of these, and each part as it stands there."""
    sizes = [-(-part.nbytes // (8 * LINE)) * LINE for part in parts.values()]
    starts = np.cumsum([W_SIZE, *sizes])
    room = np.zeros(int(starts[-1]) + LINE, np.int64)
    aligned = -room.ctypes.data // 8 % LINE
    words = room[aligned : aligned + int(starts[-1])]
    placed = {}
    for (name, part), start, size in zip(parts.items(), starts.tolist(), sizes, strict=False):
        there = words[start : start + size].view(part.dtype)[: part.size].reshape(part.shape)
        there[...] = part
        words[name], placed[name] = start, there
    for name, count in counts.items():
        words[name] = count
    for name, number in numbers.items():
        words.view(np.float64)[name] = number
    return words, placed


def _trees(roots: Int64s, depths: Int64s, nothing: int) -> Int64s:
    """Forest.trees; `nothing` is the leaf that those are which pad."""
    table = np.empty((-(-len(roots) // LANES) * LANES, T_SIZE), np.int64)
    order = np.argsort(depths, kind="stable")
    table[:, T_ROOT], table[:, T_AT], table[:, T_DEPTHS] = nothing, np.arange(len(table)), 0
    table[: len(roots), T_ROOT], table[: len(roots), T_AT] = roots[order], order
    table[: len(roots), T_DEPTHS] = depths[order]
    table[:, T_DEPTHS] = table[:, T_DEPTHS].reshape(-1, LANES).max(axis=1).repeat(LANES)
    return table


def _unit(size: Float64s, parent: Int64s, levels: Sequence[Int64s], starts: Int64s) -> float:
    """Forest.unit, where `size` is how much each node changes of what is expected at its parent."""
    so_far = size.copy()
    for level in levels[1:]:
        so_far[level] += so_far[parent[level]]
    most = float(np.maximum.reduceat(so_far, starts[:-1]).sum())
    # The least keeps what is divided by it finite, where a model says next to nothing.
    return math.ldexp(1.0, max(math.frexp(most)[1] - UNITS_BITS, -1000))


def _changes(above: Int32s, leaves: Int64s, features: int) -> Int32s:
    """Forest.changes of these leaves, and of one that changes nothing."""
    if (len(leaves) + 1) * features > CHANGES_MAX:
        return np.empty(0, np.int32)
    changes = np.zeros((len(leaves) + 1, features), np.int32)
    at, row = leaves, np.arange(len(leaves))
    while len(at):
        changes[row, above[at, U_FEATURE]] += above[at, U_CHANGE]
        up = above[at, U_PARENT]
        below = up != at
        at, row = up[below], row[below]
    return changes.ravel()


@dataclass(frozen=True, slots=True)
class _Swept:
    pairs: Int64s
    splits: Uint16s
    leaves: NDArray[np.uint32]  # (trees * SWEEP_LEAVES_MAX,): a leaf's node, by its bit times DE_BRUIJN
    partings: NDArray[np.uint32]  # (splits, G_SIZE)


NOT_SWEPT: Final = _Swept(
    np.empty(0, np.int64),
    np.empty((0, P_SIZE), np.uint16),
    np.empty(0, np.uint32),
    np.empty((0, G_SIZE), np.uint32),
)


def _sweep(nodes: Int64s, roots: Int64s, above: Int32s) -> _Swept:
    """What `sweep` reads of the trees that begin at `roots`."""
    words, features, changes = nodes.tolist(), above[:, U_FEATURE].tolist(), above[:, U_CHANGE].tolist()
    splits: list[tuple[int, int, int, int]] = []
    partings: list[tuple[int, int, int, int, int]] = []
    leaves = np.zeros(len(roots) * SWEEP_LEAVES_MAX, np.uint32)
    pairs = []
    for t, root in enumerate(roots.tolist()):
        before, leaf = len(splits), 0
        open_splits: list[tuple[int, int, int]] = []  # the split, and the leaves its sides begin with
        waiting = [(root, 0)]
        while waiting:
            node, done = waiting.pop()
            child, axis, rank = words[node] >> CHILD, words[node] >> AXIS & HALF, words[node] & HALF
            if child == node:
                leaves[t * SWEEP_LEAVES_MAX + ((int(DE_BRUIJN) << leaf & 0xFFFFFFFF) >> 27)] = node
                leaf += 1
            elif done == 0:
                open_splits.append((len(splits), leaf, leaf))
                splits.append((0, 0, 0, 0))
                partings.append((0, 0, 0, 0, 0))
                waiting += [(node, 2), (child + 1, 0), (node, 1), (child, 0)]
            elif done == 1:
                at, begin, _ = open_splits.pop()
                open_splits.append((at, begin, leaf))
            else:
                at, begin, middle = open_splits.pop()
                to_left, to_right = (1 << middle) - (1 << begin), (1 << leaf) - (1 << middle)
                splits[at] = axis, rank, ~to_left & 0xFFFF, (~to_left & 0xFFFFFFFF) >> 16
                partings[at] = features[child], to_left, to_right, changes[child], changes[child + 1]
        if len(splits) - before & 1:
            splits.append((0, 0, int(ALL), int(ALL)))  # one that rules out nothing, and gives nothing
            partings.append((0, 0, 0, 0, 0))
        pairs.append((len(splits) - before) // 2)
    return _Swept(
        np.array(pairs, np.int64),
        np.array(splits, np.uint16).reshape(-1, P_SIZE),
        leaves,
        (np.array(partings, np.int64).reshape(-1, G_SIZE) & 0xFFFFFFFF).astype(np.uint32),
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    asked: Int64s
    axes: Int64s
    thresholds: Float64s
    sets: Int64s
    categories: NDArray[np.uint32]


def _axes(model: TreeModel, feature: Int64s, file: str) -> tuple[_Measured, Int64s, Int64s]:
    """What `measure` reads; and the axis and the rank of every split."""
    decision = np.concatenate([tree.decision for tree in model.trees])
    threshold = np.concatenate([tree.threshold for tree in model.trees])
    axis, rank = np.zeros(len(feature), np.int64), np.zeros(len(feature), np.int64)
    features = len(model.features)

    numeric = decision & 1 == 0
    own, bound = feature[numeric], threshold[numeric]
    # LightGBM takes what is next to zero for zero: all of that lies on one side of every threshold.
    bound = np.where((bound >= 0) & (bound < ZERO), ZERO, bound)
    bound = np.where((bound < 0) & (bound >= -ZERO), np.nextafter(-ZERO, -1.0), bound)
    by_feature = np.lexsort((bound, own))
    sorted_own, sorted_bound = own[by_feature], bound[by_feature]
    new = np.ones(len(own), np.bool_)
    new[1:] = (sorted_own[1:] != sorted_own[:-1]) | (sorted_bound[1:] != sorted_bound[:-1])
    which = np.empty(len(own), np.int64)
    which[by_feature] = np.cumsum(new) - 1
    thresholds, owner = sorted_bound[new], sorted_own[new]
    first = np.searchsorted(owner, np.arange(features + 1))
    count = np.diff(first)
    if count.max() > RANKS_MAX:
        name = model.features[int(count.argmax())]
        raise ModelError(
            f"{file}: found {count.max()} thresholds of {name}, expected {RANKS_MAX} or fewer. "
            "Train with a smaller max_bin."
        )
    rank[numeric] = which - first[own]
    below_zero = np.bincount(owner[thresholds < 0], minlength=features)
    kind, leftward = decision[numeric] >> 2, decision[numeric] & 2 != 0
    missing = np.where(kind == MISSING_NONE, below_zero[own], np.where(leftward, 0, count[own]))
    rule = np.where(kind == MISSING_ZERO, IF_NAN_OR_ZERO, IF_NAN)
    axes, of = np.unique(np.stack([own, missing, rule], axis=1), axis=0, return_inverse=True)
    axis[numeric] = of.ravel()

    ends = np.searchsorted(axes[:, 0], np.arange(features + 1))
    asked, levels, filled = [], [], 0
    for i in np.flatnonzero(count).tolist():
        found = _levels(thresholds[first[i] : first[i + 1]])
        asked.append((i, filled, len(found), ends[i], ends[i + 1]))
        levels += found
        filled += sum(map(len, found))

    sets = [tree.sets for tree in model.trees for _ in tree.feature]
    known: dict[tuple[int, tuple[int, ...]], int] = {}
    for split in np.flatnonzero(~numeric):
        key = int(feature[split]), sets[split][int(threshold[split])]
        axis[split] = len(axes) + known.setdefault(key, len(known))
    categories = np.array([word for _, words in known for word in words], np.uint32)
    begins = np.cumsum([0, *(len(words) for _, words in known)])
    of_sets = [(own, begins[i], len(words)) for i, (own, words) in enumerate(known)]
    if len(axes) + len(known) > AXES_MAX:
        raise ModelError(
            f"{file}: found {len(axes) + len(known)} features and sets of categories, expected {AXES_MAX} or "
            "fewer. Train with fewer categorical features."
        )
    measured = _Measured(
        np.array(asked, np.int64).reshape(-1, S_SIZE),
        axes[:, 1:],
        np.concatenate([*levels, np.empty(0)]),
        np.array(of_sets, np.int64).reshape(-1, C_SIZE),
        categories,
    )
    return measured, axis, rank


def _levels(thresholds: Float64s) -> list[Float64s]:
    """A feature's thresholds, ascending, for a search by sixteens: above each sixteen one level has its last.

    The topmost has sixteen. What is not there is infinite, and nothing is above it.
    """
    count = 1
    while SIXTEEN**count <= len(thresholds):
        count += 1
    levels = []
    for above in range(count - 1, -1, -1):
        size = SIXTEEN ** (count - above) if above else (len(thresholds) // SIXTEEN + 1) * SIXTEEN
        lasts = thresholds[SIXTEEN**above - 1 :: SIXTEEN**above]
        levels.append(np.full(size, np.inf))
        levels[-1][: len(lasts)] = lasts
    return levels
