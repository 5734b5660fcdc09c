"""LightGBM's model.txt becomes trees, every index in them checked; whatever is no binary model is refused.

We read it ourselves because importing lightgbm costs half a second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from riskengine.errors import RiskEngineError

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]

MEND: Final = "Copy the file again or train the model again."
# Of decision_type, bit 0 says categorical, bit 1 that what is missing goes left, bits 2 and 3 what that is.
MISSING_NONE, MISSING_ZERO, MISSING_NAN = range(3)


class ModelError(RiskEngineError):
    """A model that cannot be used. Its text says where, what was found, what was expected, and the mend."""


@dataclass(frozen=True, slots=True)
class Tree:
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
class TreeModel:
    """A whole file."""

    features: tuple[str, ...]
    sigmoid: float
    average: bool
    trees: tuple[Tree, ...]


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


def parse(text: str, file: str) -> TreeModel:
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
    return TreeModel(features, slope, "average_output" in header.entries, trees)


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


def _tree(section: _Section, features: int) -> Tree:
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
    return Tree(
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
