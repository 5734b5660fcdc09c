"""A LightGBM model as flat arrays, and the one kernel that walks them.

`Forest.load` reads model.txt itself (importing lightgbm costs half a second), and `predict` gives what
`Booster.predict` gives, bit for bit. Only `explain` asks LightGBM.

A row is first measured: each feature becomes its rank among the model's thresholds on it, and whatever is
said about missing values, zeros and categories is settled there. The walk then compares small integers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from riskengine.errors import RiskEngineError
from riskengine.kernel import jit, jit_inline

Float64s = NDArray[np.float64]
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
Uint64s = NDArray[np.uint64]

# LightGBM's kZeroThreshold, a float: whatever is not farther from zero is zero.
ZERO: Final = float(np.float32(1e-35))

# Columns of Forest.axes. An axis is a feature as some nodes see it: with one rule for what is missing.
A_FEATURE, A_RULE, A_FIRST, A_COUNT, A_MISSING, A_SIZE = range(6)
# A_RULE: what has the rank A_MISSING instead of its own. A_FIRST, A_COUNT: where the feature's thresholds
# stand, all of them and ascending, and how many bits a rank takes; of a category, where the words of the set
# stand that has rank 0 while all else has 1, and how many they are.
IF_NAN, IF_NAN_OR_ZERO, CATEGORY = range(3)

# A node is one word: its left child (the right one is next to it), its axis, and the rank above which a row
# goes right. A leaf is its own left child, and no rank is above its: walks may go on for longer than needed.
CHILD: Final = np.uint64(32)
AXIS: Final = np.uint64(16)
HALF: Final = np.uint64(0xFFFF)
RANKS_MAX: Final = 0xFFFF
AXES_MAX: Final = 0x10000

# Columns of Forest.trees. T_DEPTHS is the greatest depth of the LANES trees that this one stands with,
# T_PAIRS how many pairs of splits.
T_ROOT, T_DEPTH, T_DEPTHS, T_PAIRS, T_SIZE = range(5)
# Columns of Forest.above: the split above a node (above a root itself), the feature it asks, and what the
# answer changes in units of Forest.unit.
U_PARENT, U_FEATURE, U_CHANGE, U_SIZE = range(4)
# Columns of Forest.splits: of the leaves, left to right and a bit each, P_LOW and P_HIGH are those a row can
# still come to when it goes right.
P_AXIS, P_RANK, P_LOW, P_HIGH, P_SIZE = range(5)
ALL: Final = np.uint16(0xFFFF)
SWEEP_LEAVES_MAX: Final = 32
# The product of this and a power of 2 below 2**32 has another number in its highest 5 bits for each
# (Leiserson, Prokop, Randall, "Using de Bruijn sequences to index a 1 in a computer word", 1998).
DE_BRUIJN: Final = np.uint32(0x077CB531)

# Rows measured together: 128 axes of 64 ranks are 16 KB, and as much of the first cache is left for a tree.
BLOCK: Final = np.uint64(64)
SCRATCH: Final = 2  # blocks behind the axes' ranks
# Walks interleaved, so that each waits for its memory while the others go on: 8 rows through one tree or one
# row through 8 trees. One walk at a time takes three times as long.
LANES: Final = 8
GROUP_MIN: Final = 3  # from so many rows on, 8 rows through one tree are cheaper than each by itself
SWEEP_MIN: Final = (
    28  # and from so many on, 64 rows swept: 0.7 us a row of a full block where a walk takes 1.6
)

# What all splits together can change is at most 2**30 units: sums of 32 bits have room, and their order is
# nothing to them. A batch of 64 takes 2.0 to 2.5 us a row so; in doubles 2.9, and 3.8 to 4.4 where each leaf
# has a list of features and changes, as only a third of the features are on a path.
UNITS_BITS: Final = 30
CHANGES_MAX: Final = 16_777_216  # of 4 bytes; in larger models each path is climbed

NO_SHARES: Final = np.empty(0, np.int32)
NOT_MET: Final = np.empty(0, np.uint32)

MEND: Final = "Copy the file again or train the model again."
# Of decision_type, bit 0 says categorical, bit 1 that what is missing goes left, bits 2 and 3 what that is.
MISSING_NONE, MISSING_ZERO, MISSING_NAN = range(3)


class ModelError(RiskEngineError):
    """A model that cannot be used. Its text says where, what was found, what was expected, and the mend."""


@dataclass(frozen=True, eq=False, slots=True)
class Forest:
    """A binary LightGBM model. Made by `load` or `parse`; safe to use from many threads."""

    features: tuple[str, ...]  # in the model's order
    bias: float  # what the contributions of a row are added to: the mean raw score of the training rows
    sigmoid: float
    divisor: float  # the number of trees where their outputs are averaged, else 1
    axes: Int64s  # (axes, A_SIZE)
    thresholds: Float64s  # by feature, padded with infinity
    categories: NDArray[np.uint32]
    nodes: Uint64s  # each tree's together, breadth first
    values: Float64s  # by node: a leaf's output
    trees: Uint64s  # (trees, T_SIZE), padded to a multiple of LANES
    tree_count: int
    splits: NDArray[np.uint16]  # (splits, P_SIZE), those of a tree together; none where a tree is too large
    leaves: NDArray[np.uint32]  # (trees * SWEEP_LEAVES_MAX,): a leaf's node, by its bit times DE_BRUIJN
    above: Int32s  # (nodes, U_SIZE)
    begins: Int64s  # by node: where a leaf begins in `changes`
    changes: Int32s  # by leaf and feature: what its path gives; none where that is too many
    unit: float  # of a change, in raw score: a power of two

    @classmethod
    def load(cls, path: str | Path) -> Forest:
        """Read a model.txt. Raises ModelError if it cannot be read or is no binary model of plain trees."""
        try:
            text = Path(path).read_bytes().decode("utf-8")
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise ModelError(f"{path} is not UTF-8 text: expected LightGBM's model.txt. {MEND}") from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, file: str = "model.txt") -> Forest:
        """Read the text of a model.txt; `file` is what errors call it. Raises ModelError as `load` does."""
        return _compile(_parse(text, file), file)

    def predict(self, cells: Float64s, columns: Int64s, out: Float64s) -> None:
        """Write each row's probability of fraud to `out` (n), as Booster.predict gives it.

        cells: (columns, n), one contiguous row a column; columns: (features,), which of them is each feature.
        """
        self._walk(cells, columns, out, NO_SHARES)

    def contributions(self, cells: Float64s, columns: Int64s, rows: Int64s) -> Float64s:
        """What each feature adds to the raw score of the chosen rows: (len(rows), features).

        Along a row's path through a tree the expected output changes at every split; each change is put
        down to the feature that was asked (A. Saabas, "Interpreting random forests", 2014). What is expected
        at a node is the mean of its leaves' outputs weighted by leaf_count, as in LightGBM's pred_contrib.
        A row's contributions and `bias` add up to its raw score (what the sigmoid is taken of), but for
        rounding: the change at each split is rounded to a whole number of `unit`, which is about a billionth
        of what all trees together can change.
        """
        if len(rows) and int(rows.view(np.uint64).max()) >= cells.shape[1]:  # those below 0 too
            raise ValueError(f"rows beyond the {cells.shape[1]} of cells")
        shares = np.zeros(len(rows) * len(self.features), np.int32)
        self._walk(cells.take(rows, axis=1), columns, np.empty(len(rows)), shares)
        return np.multiply(shares.reshape(len(rows), len(columns)), self.unit, dtype=np.float64)

    def _walk(self, cells: Float64s, columns: Int64s, out: Float64s, shares: Int32s) -> None:
        if len(columns) != len(self.features):
            raise ValueError(f"{len(columns)} columns for a model of {len(self.features)} features")
        if cells.shape[1] != len(out):
            raise ValueError(f"{len(out)} places for {cells.shape[1]} rows")
        cells = np.ascontiguousarray(cells)  # numba would compile the kernel again for any other
        ranks = np.empty((len(self.axes) + SCRATCH) * int(BLOCK), np.uint16)
        met = np.empty(len(self.trees) * int(BLOCK), np.uint32) if len(shares) else NOT_MET
        within = walk(
            cells, columns, self.axes, self.thresholds, self.categories, self.nodes, self.values, self.trees,
            self.tree_count, self.splits, self.leaves, self.divisor, self.sigmoid, self.above, self.begins,
            self.changes, ranks, met, out, shares,
        )  # fmt: skip
        if not within:
            raise ValueError(f"columns name rows of cells beyond its {len(cells)}")


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
    cells: Float64s,
    columns: Int64s,
    axes: Int64s,
    thresholds: Float64s,
    categories: NDArray[np.uint32],
    nodes: Uint64s,
    values: Float64s,
    trees: Uint64s,
    tree_count: int,
    splits: NDArray[np.uint16],
    leaves: NDArray[np.uint32],
    divisor: float,
    sigmoid: float,
    above: Int32s,
    begins: Int64s,
    changes: Int32s,
    ranks: NDArray[np.uint16],
    met: NDArray[np.uint32],
    out: Float64s,
    shares: Int32s,
) -> bool:
    """Take every row through every tree; False, and nothing done, where a column is not in cells.

    `ranks` and `met` are scratch; `shares`, by row and feature, has no place where none are asked for.
    Indexes are uint64: numba would look for a negative in any other, which doubles the time of the walk.
    """
    for i in range(columns.shape[0]):
        if not 0 <= columns[i] < cells.shape[0]:
            return False
    rows = np.uint64(out.shape[0])
    wanted, width = shares.shape[0] > 0, np.uint64(columns.shape[0])
    eight = np.uint64(LANES)
    first = np.uint64(0)
    while first < rows:
        count = min(rows - first, BLOCK)
        measure(cells, columns, axes, thresholds, categories, first, count, ranks)
        at = np.uint64(0)
        if count >= np.uint64(SWEEP_MIN) and splits.shape[0] > 0:
            sweep(
                values, trees, tree_count, splits, leaves, np.uint64(axes.shape[0]), ranks, count, out, first,
                met, wanted,
            )  # fmt: skip
            at = count
        while at < count:
            if count - at >= np.uint64(GROUP_MIN):
                take = min(count - at, eight)
                walk_rows(
                    nodes, values, trees, tree_count, ranks, at, take, out, first + at,
                    met, wanted,
                )  # fmt: skip
            else:
                take = np.uint64(1)
                walk_row(
                    nodes, values, trees, tree_count, ranks, at, out, first + at,
                    met, wanted,
                )  # fmt: skip
            at += take
        if wanted and changes.shape[0] > 0:
            share(begins, changes, met, tree_count, count, shares, first, width)
        elif wanted:
            climb(above, met, tree_count, count, shares, first, width)
        first += count
    for i in range(out.shape[0]):
        out[i] = 1.0 / (1.0 + math.exp(-sigmoid * (out[i] / divisor)))
    return True


@jit_inline
def measure(
    cells: Float64s,
    columns: Int64s,
    axes: Int64s,
    thresholds: Float64s,
    categories: NDArray[np.uint32],
    first: np.uint64,
    count: np.uint64,
    ranks: NDArray[np.uint16],
) -> None:
    """Write the ranks of `count` rows from `first` on: BLOCK places an axis, and one BLOCK of scratch."""
    one = np.uint64(1)
    found = np.uint64(axes.shape[0]) * BLOCK
    searched = np.int64(-1)
    for a in range(axes.shape[0]):
        axis = np.uint64(a)
        feature = axes[axis, A_FEATURE]
        column = np.uint64(columns[np.uint64(feature)])
        start, size = np.uint64(axes[axis, A_FIRST]), axes[axis, A_COUNT]
        ranks_of_axis = axis * BLOCK
        if axes[axis, A_RULE] == CATEGORY:
            for i in range(count):
                x = cells[column, first + np.uint64(i)]
                member = False
                if x > -1.0 and x < 2147483648.0:  # others are no int32, and NaN is none
                    number = np.uint64(np.int64(x))
                    if (number >> np.uint64(5)) < np.uint64(size):
                        word = categories[start + (number >> np.uint64(5))]
                        member = (np.uint64(word) >> (number & np.uint64(31))) & one != 0
                ranks[ranks_of_axis + np.uint64(i)] = 0 if member else 1
            continue
        if feature != searched:
            searched = feature
            # A bit of the rank after the other, and each shifted to its place: a branch or a choice would be
            # foreseen wrong every other time, which makes the whole prediction three times as long.
            if count < np.uint64(GROUP_MIN):
                for i in range(count):
                    x = cells[column, first + np.uint64(i)]
                    rank = np.uint64(0)
                    for bit in range(size - 1, -1, -1):
                        middle = start + rank + (one << np.uint64(bit)) - one
                        rank += np.uint64(thresholds[middle] < x) << np.uint64(bit)
                    ranks[found + np.uint64(i)] = rank
            else:
                for i in range(count):
                    ranks[found + np.uint64(i)] = 0
                for bit in range(size - 1, -1, -1):  # of all rows at once, as each waits for the one before
                    middle = start + (one << np.uint64(bit)) - one
                    for i in range(count):
                        rank = np.uint64(ranks[found + np.uint64(i)])
                        above = np.uint64(thresholds[middle + rank] < cells[column, first + np.uint64(i)])
                        ranks[found + np.uint64(i)] = rank + (above << np.uint64(bit))
        missing = axes[axis, A_MISSING]
        zero = ZERO if axes[axis, A_RULE] == IF_NAN_OR_ZERO else -1.0
        for i in range(count):
            x = cells[column, first + np.uint64(i)]
            own = ranks[found + np.uint64(i)]
            ranks[ranks_of_axis + np.uint64(i)] = missing if (x != x) | (abs(x) <= zero) else own


@jit_inline
def step(nodes: Uint64s, ranks: NDArray[np.uint16], node: np.uint64, row: np.uint64) -> np.uint64:
    """The child of `node` that a row of the block goes to."""
    word = nodes[node]
    rank = np.uint64(ranks[((word >> AXIS) & HALF) * BLOCK + row])
    child: np.uint64 = (word >> CHILD) + np.uint64(rank > (word & HALF))
    return child


@jit_inline
def walk_rows(
    nodes: Uint64s,
    values: Float64s,
    trees: Uint64s,
    tree_count: int,
    ranks: NDArray[np.uint16],
    at: np.uint64,
    count: np.uint64,
    out: Float64s,
    place: np.uint64,
    met: NDArray[np.uint32],
    wanted: bool,
) -> None:
    """Take the rows `at` to at + 8 of the block through tree after tree; keep what `count` of them find.

    The others have whatever ranks lie there. No rank leads astray: every node but a leaf has two children.
    """
    b, c, d, e = at + np.uint64(1), at + np.uint64(2), at + np.uint64(3), at + np.uint64(4)
    f, g, h = at + np.uint64(5), at + np.uint64(6), at + np.uint64(7)
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    for t in range(tree_count):
        tree = np.uint64(t)
        n0 = n1 = n2 = n3 = n4 = n5 = n6 = n7 = trees[tree, T_ROOT]
        for _ in range(trees[tree, T_DEPTH]):
            n0 = step(nodes, ranks, n0, at)
            n1 = step(nodes, ranks, n1, b)
            n2 = step(nodes, ranks, n2, c)
            n3 = step(nodes, ranks, n3, d)
            n4 = step(nodes, ranks, n4, e)
            n5 = step(nodes, ranks, n5, f)
            n6 = step(nodes, ranks, n6, g)
            n7 = step(nodes, ranks, n7, h)
        s0 += values[n0]
        s1 += values[n1]
        s2 += values[n2]
        s3 += values[n3]
        s4 += values[n4]
        s5 += values[n5]
        s6 += values[n6]
        s7 += values[n7]
        if wanted:  # of all eight: who is not asked for has a place too
            first = tree * BLOCK
            met[first + at] = n0
            met[first + b] = n1
            met[first + c] = n2
            met[first + d] = n3
            met[first + e] = n4
            met[first + f] = n5
            met[first + g] = n6
            met[first + h] = n7
    for lane in range(count):
        found = s0 if lane == 0 else s1 if lane == 1 else s2 if lane == 2 else s3
        if lane > 3:
            found = s4 if lane == 4 else s5 if lane == 5 else s6 if lane == 6 else s7
        out[place + np.uint64(lane)] = found


@jit_inline
def walk_row(
    nodes: Uint64s,
    values: Float64s,
    trees: Uint64s,
    tree_count: int,
    ranks: NDArray[np.uint16],
    at: np.uint64,
    out: Float64s,
    place: np.uint64,
    met: NDArray[np.uint32],
    wanted: bool,
) -> None:
    """Take the row `at` of the block through 8 trees at a time; their outputs are added in their order."""
    found = 0.0
    for t in range(0, trees.shape[0], LANES):
        a = np.uint64(t)
        b, c, d, e = a + np.uint64(1), a + np.uint64(2), a + np.uint64(3), a + np.uint64(4)
        f, g, h = a + np.uint64(5), a + np.uint64(6), a + np.uint64(7)
        n0, n1, n2, n3 = trees[a, T_ROOT], trees[b, T_ROOT], trees[c, T_ROOT], trees[d, T_ROOT]
        n4, n5, n6, n7 = trees[e, T_ROOT], trees[f, T_ROOT], trees[g, T_ROOT], trees[h, T_ROOT]
        for _ in range(trees[a, T_DEPTHS]):
            n0 = step(nodes, ranks, n0, at)
            n1 = step(nodes, ranks, n1, at)
            n2 = step(nodes, ranks, n2, at)
            n3 = step(nodes, ranks, n3, at)
            n4 = step(nodes, ranks, n4, at)
            n5 = step(nodes, ranks, n5, at)
            n6 = step(nodes, ranks, n6, at)
            n7 = step(nodes, ranks, n7, at)
        found += values[n0]
        found += values[n1]
        found += values[n2]
        found += values[n3]
        found += values[n4]
        found += values[n5]
        found += values[n6]
        found += values[n7]
        if wanted:
            met[a * BLOCK + at] = n0
            met[b * BLOCK + at] = n1
            met[c * BLOCK + at] = n2
            met[d * BLOCK + at] = n3
            met[e * BLOCK + at] = n4
            met[f * BLOCK + at] = n5
            met[g * BLOCK + at] = n6
            met[h * BLOCK + at] = n7
    out[place] = found


@jit_inline
def sweep(
    values: Float64s,
    trees: Uint64s,
    tree_count: int,
    splits: NDArray[np.uint16],
    leaves: NDArray[np.uint32],
    axes: np.uint64,
    ranks: NDArray[np.uint16],
    count: np.uint64,
    out: Float64s,
    first: np.uint64,
    met: NDArray[np.uint32],
    wanted: bool,
) -> None:
    """Ask every split of the whole block; a row's leaf is the leftmost that none of them rules out.

    C. Lucchese et al., "QuickScorer", 2015, with the rows side by side: 16 ranks are compared at a time, and
    nothing is looked up on the way. Two splits a turn: one takes 1.25 times as long, three no less.
    """
    low, high = axes * BLOCK, (axes + np.uint64(1)) * BLOCK
    at, one = np.uint64(0), np.uint64(1)
    for i in range(count):
        out[first + np.uint64(i)] = 0.0
    for t in range(tree_count):
        tree = np.uint64(t)
        for i in range(BLOCK):
            ranks[low + np.uint64(i)] = ALL
            ranks[high + np.uint64(i)] = ALL
        for _ in range(trees[tree, T_PAIRS]):
            ranks_a, ranks_b = (
                np.uint64(splits[at, P_AXIS]) * BLOCK,
                np.uint64(splits[at + one, P_AXIS]) * BLOCK,
            )
            rank_a, rank_b = splits[at, P_RANK], splits[at + one, P_RANK]
            low_a, low_b = splits[at, P_LOW], splits[at + one, P_LOW]
            high_a, high_b = splits[at, P_HIGH], splits[at + one, P_HIGH]
            for i in range(BLOCK):
                row = np.uint64(i)
                a, b = ranks[ranks_a + row] > rank_a, ranks[ranks_b + row] > rank_b
                ranks[low + row] &= (low_a if a else ALL) & (low_b if b else ALL)
                ranks[high + row] &= (high_a if a else ALL) & (high_b if b else ALL)
            at += np.uint64(2)
        for i in range(count):
            row = np.uint64(i)
            bits = np.uint32(ranks[low + row]) | (np.uint32(ranks[high + row]) << np.uint32(16))
            leftmost = bits & (~bits + np.uint32(1))
            leaf = np.uint32(leftmost * DE_BRUIJN) >> np.uint32(27)
            node = np.uint64(leaves[tree * np.uint64(SWEEP_LEAVES_MAX) + np.uint64(leaf)])
            out[first + row] += values[node]
            if wanted:
                met[tree * BLOCK + row] = node


@jit_inline
def share(
    begins: Int64s,
    changes: Int32s,
    met: NDArray[np.uint32],
    tree_count: int,
    count: np.uint64,
    shares: Int32s,
    first: np.uint64,
    width: np.uint64,
) -> None:
    """Add what the leaves that `count` rows met give to each of `width` features, of eight trees at a time.

    Four at a time, the sums are written twice as often. The last trees are added one by one.
    """
    together = tree_count // LANES * LANES
    b, c, d, e = BLOCK, np.uint64(2) * BLOCK, np.uint64(3) * BLOCK, np.uint64(4) * BLOCK
    f, g, h = np.uint64(5) * BLOCK, np.uint64(6) * BLOCK, np.uint64(7) * BLOCK
    for t in range(0, together, LANES):
        for i in range(count):
            at, to = np.uint64(t) * BLOCK + np.uint64(i), (first + np.uint64(i)) * width
            a0 = np.uint64(begins[np.uint64(met[at])])
            a1 = np.uint64(begins[np.uint64(met[at + b])])
            a2 = np.uint64(begins[np.uint64(met[at + c])])
            a3 = np.uint64(begins[np.uint64(met[at + d])])
            a4 = np.uint64(begins[np.uint64(met[at + e])])
            a5 = np.uint64(begins[np.uint64(met[at + f])])
            a6 = np.uint64(begins[np.uint64(met[at + g])])
            a7 = np.uint64(begins[np.uint64(met[at + h])])
            for k in range(width):
                j = np.uint64(k)
                shares[to + j] += (
                    changes[a0 + j] + changes[a1 + j] + changes[a2 + j] + changes[a3 + j]
                    + changes[a4 + j] + changes[a5 + j] + changes[a6 + j] + changes[a7 + j]
                )  # fmt: skip
    for t in range(together, tree_count):
        for i in range(count):
            at, to = np.uint64(t) * BLOCK + np.uint64(i), (first + np.uint64(i)) * width
            a0 = np.uint64(begins[np.uint64(met[at])])
            for k in range(width):
                shares[to + np.uint64(k)] += changes[a0 + np.uint64(k)]


@jit_inline
def climb(
    above: Int32s,
    met: NDArray[np.uint32],
    tree_count: int,
    count: np.uint64,
    shares: Int32s,
    first: np.uint64,
    width: np.uint64,
) -> None:
    """`share`, from each leaf up to its root."""
    for t in range(tree_count):
        for i in range(count):
            node, row = np.uint64(met[np.uint64(t) * BLOCK + np.uint64(i)]), first + np.uint64(i)
            while np.uint64(above[node, U_PARENT]) != node:
                shares[row * width + np.uint64(above[node, U_FEATURE])] += above[node, U_CHANGE]
                node = np.uint64(above[node, U_PARENT])


# -- text to trees


@dataclass(frozen=True, slots=True)
class _Tree:
    """One tree as the file has it: splits numbered from 0, the root; as a child, leaf i is -1 - i."""

    line: int
    feature: Int64s  # (splits,)
    threshold: Float64s  # of a categorical split, the number of its set
    decision: Int64s
    left: Int64s
    right: Int64s
    value: Float64s  # (leaves,)
    count: Int64s  # (leaves,) training rows
    sets: tuple[tuple[int, ...], ...]  # of categories, 32 a word


@dataclass(frozen=True, slots=True)
class _Model:
    features: tuple[str, ...]
    sigmoid: float
    average: bool
    trees: tuple[_Tree, ...]


@dataclass(frozen=True, slots=True)
class _Section:
    """Lines `key=value` of a file, and where each stands."""

    file: str
    line: int
    entries: Mapping[str, tuple[int, str]]

    def text(self, key: str) -> str:
        if key not in self.entries:
            raise ModelError(f"{self.file}:{self.line}: found no line {key}=... in what begins here. {MEND}")
        return self.entries[key][1]

    def error(self, key: str, found: str, expected: str) -> ModelError:
        line = self.entries[key][0] if key in self.entries else self.line
        return ModelError(f"{self.file}:{line}: {key}: found {found}, expected {expected}. {MEND}")

    def number(self, key: str, low: int, high: int) -> int:
        return int(self.integers(key, 1, low, high)[0])

    def integers(self, key: str, count: int, low: int, high: int) -> Int64s:
        """As many integers, each from low to high."""
        words = self._words(key, count)
        try:
            numbers = [int(word) for word in words]
        except ValueError:
            wrong = next(word for word in words if not re.fullmatch(r"[-+]?\d+", word))
            raise self.error(key, repr(wrong[:20]), "an integer") from None
        for number in numbers:
            if not low <= number <= high:
                raise self.error(key, str(number), f"{low} to {high}")
        return np.array(numbers, np.int64)

    def floats(self, key: str, count: int, infinite: bool = False) -> Float64s:
        """As many numbers."""
        words = self._words(key, count)
        numbers = np.array([_float(word) for word in words], np.float64)
        wrong = np.isnan(numbers) if infinite else ~np.isfinite(numbers)
        if wrong.any():
            found = repr(words[int(wrong.argmax())][:20])
            raise self.error(key, found, "a number" if infinite else "a finite number")
        return numbers

    def _words(self, key: str, count: int) -> list[str]:
        words = self.text(key).split()
        if len(words) != count:
            raise self.error(key, f"{len(words)} numbers", f"{count}")
        return words


def _float(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _parse(text: str, file: str) -> _Model:
    """The trees of a model.txt, every index in them checked."""
    sections = list(_sections(text, file))
    header = sections[0]
    _refuse_others(header)
    features = tuple(header.text("feature_names").split())
    count = header.number("max_feature_idx", 0, 1 << 30) + 1
    if len(features) != count:
        raise header.error("feature_names", f"{len(features)} names", f"{count} (max_feature_idx + 1)")
    if len(set(features)) != count:
        twice = next(name for i, name in enumerate(features) if name in features[:i])
        raise header.error("feature_names", f"{twice!r} twice", "different names")
    trees = tuple(_tree(section, count) for section in sections[1:])
    if not trees:
        raise ModelError(f"{file}: found no tree, expected one or more. {MEND}")
    sizes = len(header.text("tree_sizes").split())
    if sizes != len(trees):
        raise header.error("tree_sizes", f"{sizes} sizes", f"{len(trees)}, the trees in the file")
    sigmoid = re.search(r" sigmoid:(\S+)", header.text("objective"))
    slope = 1.0 if sigmoid is None else _float(sigmoid[1])
    if not 0 < slope < math.inf:
        raise header.error("objective", header.text("objective"), "a sigmoid above 0")
    return _Model(features, slope, "average_output" in header.entries, trees)


def _sections(text: str, file: str) -> Iterator[_Section]:
    """The header, then tree after tree."""
    lines = text.split("\n")
    if lines[0].strip() != "tree":
        found = repr(lines[0][:20]) if lines[0] else "nothing"
        raise ModelError(f"{file}:1: found {found}, expected `tree`, LightGBM's first line. {MEND}")
    begun, entries = 1, dict[str, tuple[int, str]]()
    trees, ended = 0, False
    for number, line in enumerate(lines, 1):
        key, _, value = line.strip().partition("=")
        if ended:
            if key.startswith("pandas_categorical:") and key.partition(":")[2] not in ("null", "[]"):
                raise ModelError(
                    f"{file}:{number}: pandas_categorical: found categories of pandas, expected null. "
                    "Train on numbers: a row that is served has no other."
                )
        elif key in ("Tree", "end of trees"):
            yield _Section(file, begun, entries)
            if key == "Tree" and value != str(trees):
                raise ModelError(f"{file}:{number}: found Tree={value}, expected Tree={trees}. {MEND}")
            begun, entries = number, {}
            trees, ended = trees + 1, key != "Tree"
        elif key:
            if key in entries:
                raise ModelError(f"{file}:{number}: found {key} twice (line {entries[key][0]}). {MEND}")
            entries[key] = number, value
    if not ended:
        raise ModelError(
            f"{file}:{len(lines)}: found the end of the file, expected `end of trees`: it is cut off. {MEND}"
        )


def _refuse_others(header: _Section) -> None:
    """Whatever is no binary model."""
    if header.text("num_class") != "1" or header.text("num_tree_per_iteration") != "1":
        raise header.error("num_class", f"{header.text('num_class')} classes", "1, of a binary model")
    objective = header.entries.get("objective", (0, "none, a custom one"))[1]
    if objective.split()[:1] != ["binary"]:
        raise ModelError(
            f"{header.file}:{header.line}: objective: found {objective}, expected binary. "
            "Train with objective=binary: decisions need a probability."
        )


def _tree(section: _Section, features: int) -> _Tree:
    leaves = section.number("num_leaves", 1, 1 << 30)
    splits = leaves - 1
    if section.entries.get("is_linear", (0, "0"))[1] != "0":
        raise ModelError(
            f"{section.file}:{section.line}: found a linear tree, expected plain ones. "
            "Train with linear_tree=false."
        )
    left = section.integers("left_child", splits, -leaves, splits - 1)
    right = section.integers("right_child", splits, -leaves, splits - 1)
    # Every split but the first and every leaf is the child of one split before it: so there is no cycle.
    both = np.concatenate([left, right])
    if not np.array_equal(np.sort(both), [*range(-leaves if splits else 0, 0), *range(1, splits)]):
        raise section.error("left_child and right_child", "splits or leaves twice or never", "each once")
    after = np.where(both >= 0, both, splits) > np.tile(np.arange(splits), 2)
    if not after.all():
        raise section.error("left_child and right_child", "a split under a later one", "a tree")
    decision = section.integers("decision_type", splits, 0, 15)
    if (decision >> 2 > MISSING_NAN).any():
        raise section.error("decision_type", str(decision.max()), "a missing type of 0 to 2 (bits 2 and 3)")
    threshold = section.floats("threshold", splits, infinite=True)  # NaN or not is asked with inf
    categorical = decision & 1 == 1
    sets = _sets(section)
    numbers = threshold[categorical]
    if not np.isin(numbers, np.arange(len(sets))).all():
        raise section.error("threshold", "a categorical split without its set", f"0 to {len(sets) - 1}")
    return _Tree(
        section.line,
        section.integers("split_feature", splits, 0, features - 1),
        threshold,
        decision,
        left,
        right,
        section.floats("leaf_value", leaves),
        section.integers("leaf_count", leaves, 0, 1 << 62),
        sets,
    )


def _sets(section: _Section) -> tuple[tuple[int, ...], ...]:
    """The sets of categories of a tree, as words of 32 bits."""
    count = section.number("num_cat", 0, 1 << 30)
    if count == 0:
        return ()
    size = len(section.text("cat_threshold").split())
    words = section.integers("cat_threshold", size, 0, 0xFFFFFFFF).tolist()
    bounds = section.integers("cat_boundaries", count + 1, 0, size).tolist()
    if bounds[0] != 0 or bounds[-1] != size or sorted(bounds) != bounds:
        raise section.error("cat_boundaries", "bounds out of order", f"ascending from 0 to {size}")
    return tuple(tuple(words[low:high]) for low, high in pairwise(bounds))


# -- trees to arrays


def _compile(model: _Model, file: str) -> Forest:
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

    axes, thresholds, categories, axis, rank = _axes(model, feature, file)
    words = np.arange(total + 1, dtype=np.uint64) << CHILD | HALF
    words[place[nodes]] = place[left[nodes]].astype(np.uint64) << CHILD | axis << AXIS | rank
    outputs = np.zeros(total + 1)  # the last node is a leaf of nothing, all there is of the trees that pad
    outputs[place[~is_split]] = values[~is_split]
    table = np.zeros((-(-len(trees) // LANES) * LANES, T_SIZE), np.uint64)
    table[:, T_ROOT] = total
    table[: len(trees), T_ROOT] = starts[:-1]
    table[: len(trees), T_DEPTH] = np.maximum.reduceat(depth_of, starts[:-1])
    table[:, T_DEPTHS] = table[:, T_DEPTH].reshape(-1, LANES).max(axis=1).repeat(LANES)

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
    changes = _changes(above, place[~is_split], len(model.features))
    begins = np.zeros(total + 1, np.int64)
    begins[place[~is_split]] = np.arange(np.count_nonzero(~is_split)) * len(model.features)
    splits_swept, leaves = _sweep(words, table, len(trees)) if splits.max() < SWEEP_LEAVES_MAX else NOT_SWEPT
    return Forest(
        features=model.features,
        bias=float(expected[starts[:-1]].sum()) / divisor,
        sigmoid=model.sigmoid,
        divisor=divisor,
        axes=axes,
        thresholds=thresholds,
        categories=categories,
        nodes=words,
        values=outputs,
        trees=table,
        tree_count=len(trees),
        splits=splits_swept,
        leaves=leaves,
        above=above,
        begins=begins,
        changes=changes,
        unit=unit,
    )


def _unit(size: Float64s, parent: Int64s, levels: Sequence[Int64s], starts: Int64s) -> float:
    """Forest.unit, where `size` is how much each node changes of what is expected at its parent."""
    so_far = size.copy()
    for level in levels[1:]:
        so_far[level] += so_far[parent[level]]
    most = float(np.maximum.reduceat(so_far, starts[:-1]).sum())
    # The least keeps what is divided by it finite, where a model says next to nothing.
    return math.ldexp(1.0, max(math.frexp(most)[1] - UNITS_BITS, -1000))


def _changes(above: Int32s, leaves: Int64s, features: int) -> Int32s:
    """Forest.changes of these leaves."""
    if len(leaves) * features > CHANGES_MAX:
        return np.empty(0, np.int32)
    changes = np.zeros((len(leaves), features), np.int32)
    at, row = leaves, np.arange(len(leaves))
    while len(at):
        changes[row, above[at, U_FEATURE]] += above[at, U_CHANGE]
        up = above[at, U_PARENT]
        below = up != at
        at, row = up[below], row[below]
    return changes.ravel()


NOT_SWEPT: Final = np.empty((0, P_SIZE), np.uint16), np.empty(0, np.uint32)


def _sweep(nodes: Uint64s, table: Uint64s, trees: int) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """Forest.splits and .leaves; T_PAIRS is filled in."""
    words = nodes.tolist()
    splits: list[tuple[int, int, int, int]] = []
    leaves = np.zeros(trees * SWEEP_LEAVES_MAX, np.uint32)
    for t in range(trees):
        before, leaf = len(splits), 0
        open_splits: list[tuple[int, int]] = []  # the split, and the leaf its left side begins with
        waiting = [(int(table[t, T_ROOT]), False)]
        while waiting:
            node, left_done = waiting.pop()
            child, axis, rank = words[node] >> 32, words[node] >> 16 & 0xFFFF, words[node] & 0xFFFF
            if left_done:
                at, begin = open_splits.pop()
                right = 0xFFFFFFFF & ~((1 << leaf) - (1 << begin))
                splits[at] = axis, rank, right & 0xFFFF, right >> 16
            elif child == node:
                leaves[t * SWEEP_LEAVES_MAX + ((int(DE_BRUIJN) << leaf & 0xFFFFFFFF) >> 27)] = node
                leaf += 1
            else:
                open_splits.append((len(splits), leaf))
                splits.append((0, 0, 0, 0))
                waiting += [(child + 1, False), (node, True), (child, False)]
        if len(splits) - before & 1:
            splits.append((0, 0, int(ALL), int(ALL)))  # one that rules out nothing
        table[t, T_PAIRS] = (len(splits) - before) // 2
    return np.array(splits, np.uint16).reshape(-1, P_SIZE), leaves


def _axes(
    model: _Model, feature: Int64s, file: str
) -> tuple[Int64s, Float64s, NDArray[np.uint32], Uint64s, Uint64s]:
    """Forest.axes, .thresholds and .categories; and the axis and the rank of every split."""
    decision = np.concatenate([tree.decision for tree in model.trees])
    threshold = np.concatenate([tree.threshold for tree in model.trees])
    axis, rank = np.zeros(len(feature), np.uint64), np.zeros(len(feature), np.uint64)

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
    first = np.searchsorted(owner, np.arange(len(model.features)))
    count = np.bincount(owner, minlength=len(model.features))
    if count.max() > RANKS_MAX:
        name = model.features[int(count.argmax())]
        raise ModelError(
            f"{file}: found {count.max()} thresholds of {name}, expected {RANKS_MAX} or fewer. "
            "Train with a smaller max_bin."
        )
    rank[numeric] = which - first[own]
    below_zero = np.bincount(owner[thresholds < 0], minlength=len(model.features))
    kind, leftward = decision[numeric] >> 2, decision[numeric] & 2 != 0
    missing = np.where(kind == MISSING_NONE, below_zero[own], np.where(leftward, 0, count[own]))
    rule = np.where(kind == MISSING_ZERO, IF_NAN_OR_ZERO, IF_NAN)
    # Room for as many as the bits of a rank can say, so that no step of the search need look for the end.
    bits = np.frexp(count.astype(np.float64))[1].astype(np.int64)
    begins = np.cumsum((1 << bits) - 1) - ((1 << bits) - 1)
    padded = np.full(int(((1 << bits) - 1).sum()), np.inf)
    padded[begins[owner] + np.arange(len(owner)) - first[owner]] = thresholds
    asked = np.stack([own, rule, begins[own], bits[own], missing], axis=1)
    axes, of = np.unique(asked, axis=0, return_inverse=True)
    axis[numeric] = of.ravel()

    sets = [tree.sets for tree in model.trees for _ in tree.feature]
    known: dict[tuple[int, tuple[int, ...]], int] = {}
    for split in np.flatnonzero(~numeric):
        key = int(feature[split]), sets[split][int(threshold[split])]
        axis[split] = len(axes) + known.setdefault(key, len(known))
    categories = np.array([word for _, words in known for word in words], np.uint32)
    ends = np.cumsum([0, *(len(words) for _, words in known)])
    of_sets = [(own, CATEGORY, ends[i], len(words), 0) for i, (own, words) in enumerate(known)]
    axes = np.concatenate([axes, np.array(of_sets, np.int64).reshape(-1, A_SIZE)])
    if len(axes) > AXES_MAX:
        raise ModelError(
            f"{file}: found {len(axes)} features and sets of categories, expected {AXES_MAX} or fewer. "
            "Train with fewer categorical features."
        )
    return axes, padded, categories, axis, rank
