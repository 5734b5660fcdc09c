"""The models a policy names: found in their folders, held against its features, and bound to its rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from riskengine.calibration import Calibration
from riskengine.card import MODEL_TYPES, Card, differences, load_model
from riskengine.decision import Message, Reason
from riskengine.definition import Definition
from riskengine.errors import Finding, Place, PolicyError, nearest
from riskengine.forest import Forest
from riskengine.kernel import jit
from riskengine.modeltext import ModelError
from riskengine.policy import definition_fingerprint, feature_fingerprint
from riskengine.shipped import shipped

if TYPE_CHECKING:
    from riskengine.features import FeatureSet

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]

NONE: Final = "none"  # where a policy or a person wants no model
FOLDER: Final = "models"
REASON: Final = "model:"  # before the feature in a reason's name; no rule or limit may have a colon
REASONS_MAX: Final = 3
KNOWN_MAX: Final = 256  # values of a feature
REASON_RISK_MIN: Final = 0.05  # less of p than that is not worth a line, nor p the walk that asks why
TINY: Final = 1e-300  # what no feature raised is divided by, instead of 0
WITHOUT: Final = "say `model: none`"


@dataclass(frozen=True, eq=False, slots=True)
class Model:
    """A model's folder, read."""

    card: Card
    forest: Forest
    calibration: Calibration

    @classmethod
    def load(cls, folder: str | Path) -> Model:
        """Raises ModelError."""
        card, forest = load_model(folder)
        return cls(card, forest, card.curve())

    @property
    def fingerprint(self) -> str:
        """16 hex digits of what it answers, whatever its name."""
        said = msgspec.json.encode([self.card.model, self.card.calibration, self.card.types], order="sorted")
        return hashlib.blake2b(said, digest_size=8).hexdigest()


def asked_for(definition: Definition, model: str | None) -> Definition:
    """The policy with another model, as `--model` names it; "none" takes its challengers away too."""
    if model is None:
        return definition
    if model == NONE:
        return replace(definition, model=None, challengers=())
    return replace(
        definition, model=model, challengers=tuple(name for name in definition.challengers if name != model)
    )


def load_models(definition: Definition) -> dict[str, Model]:
    """Every model that a policy names, the champion and its challengers.

    Raises PolicyError, with what is wrong at its place in the files, where one is missing or does not fit;
    ModelError where it is no file that names it.
    """
    models, findings = examine_models(definition)
    if findings:
        raise PolicyError(findings)
    return models


def examine_models(definition: Definition) -> tuple[dict[str, Model], list[Finding]]:
    """`load_models`, which tells what is wrong with those that the files name, and goes on."""
    models: dict[str, Model] = {}
    findings = []
    names = [name for name in (definition.model, *definition.challengers) if name is not None]
    for name in names:
        try:
            models[name] = _load(name, definition)
        except _UnfitError as error:
            place = definition.model_places.get(name)
            if place is None:
                raise ModelError(f"{error}. {error.mend[0].upper()}{error.mend[1:]}.") from error
            findings.append(
                Finding(
                    code="no-model",
                    place=place,
                    message=str(error),
                    mend=error.mend,
                    source_line=_line(place),
                    length=len(name),
                )
            )
    return models, findings


def served_fingerprint(definition: Definition) -> str:
    """The fingerprint that the policy's decisions carry, with its models as they are now."""
    models, _ = examine_models(definition)
    return definition_fingerprint(definition, {name: model.fingerprint for name, model in models.items()})


def models_folders(rules: str | None) -> list[Path]:
    """Where models are looked for: beside the policy's folder, in ./models, and among the shipped ones."""
    beside = [] if rules is None else [Path(os.path.normpath(Path(rules) / ".." / FOLDER))]
    found: dict[Path, Path] = {}
    for path in (*beside, Path(FOLDER), shipped(FOLDER)):
        found.setdefault(path.resolve(), path)
    return [*found.values()]


class _UnfitError(Exception):
    def __init__(self, message: str, mend: str) -> None:
        super().__init__(message)
        self.mend = mend


def _load(name: str, definition: Definition) -> Model:
    model = _read(name, definition)
    fingerprints = {f.name: feature_fingerprint(f, definition) for f in definition.features.values()}
    wrong = differences(model.card.fingerprints, fingerprints)
    wrong += [
        f"feature {feature} is a {definition.features[feature].type}, and a model is asked with numbers"
        for feature in model.card.features
        if feature in definition.features and definition.features[feature].type not in MODEL_TYPES
    ]
    if not set(model.card.types) & set(definition.events):
        wrong.append(f"it was trained on {', '.join(model.card.types)}, which are no events of the policy")
    if wrong:
        raise _UnfitError(
            f"model {name} does not fit this policy: {'; '.join(wrong)}",
            f"train it again on rows of this policy (riskengine replay, then train), or {WITHOUT}",
        )
    return model


def _read(name: str, definition: Definition) -> Model:
    places = models_folders(definition.folder)
    known: list[str] = []
    for place in places:
        here = sorted(path.name for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
        if name in here:
            try:
                return Model.load(place / name)
            except ModelError as error:
                raise _UnfitError(
                    f"model {name} cannot be used: {str(error).rstrip('.')}", WITHOUT
                ) from error
        known += here
    near = nearest(name, known)
    there = (
        f"did you mean {near}?" if near else f"there are: {', '.join(known)}" if known else "there is none"
    )
    raise _UnfitError(
        f"there is no model {name} in {', '.join(map(str, places))} ({there})",
        f"train one (riskengine train --name {name}), name another, or {WITHOUT}",
    )


def _line(place: Place) -> str | None:
    try:
        return Path(place.file).read_text(encoding="utf-8").splitlines()[place.line - 1]
    except (OSError, UnicodeDecodeError, IndexError):
        return None


@dataclass(frozen=True, eq=False, slots=True)
class Scorer:
    """A model bound to the rows of a policy."""

    name: str
    forest: Forest
    calibration: Calibration
    columns: Int64s  # of cells, by feature of the model
    told: tuple[_Told, ...]  # of each of those
    strange: NDArray[np.bool_] | None  # by event type: not among those it was trained on; None: all were

    @classmethod
    def bind(cls, name: str, model: Model, features: FeatureSet, types: Sequence[str]) -> Scorer:
        """Find the model's features among the policy's, whose event types are `types`."""
        names = model.forest.features
        strange = np.array([kind not in model.card.types for kind in types])
        return cls(
            name,
            model.forest,
            model.calibration,
            np.array([features.columns[feature] for feature in names], np.int64),
            tuple(_Told(feature, features.types[feature]) for feature in names),
            strange if strange.any() else None,
        )

    def score(self, cells: Float64s, type_index: NDArray[np.int32], p: Float64s) -> None:
        """Write each row's probability of fraud to `p` (n); NaN for types it was not trained on."""
        self.forest.predict(cells, self.columns, p)
        self.calibration.apply(p)
        if self.strange is not None:
            p[self.strange[type_index]] = np.nan

    def reasons(self, cells: Float64s, rows: Sequence[int], p: Float64s) -> list[tuple[Reason, ...]]:
        """Why the chosen rows have their `p` (n): the features that raised it, the one that did most first.

        p is shared out among those that add to the raw score, by what each adds; others are left out.
        """
        places = np.array(rows, np.int64)
        cells = np.ascontiguousarray(cells)
        shares = self.forest.contributions(cells, self.columns, places)
        shape = len(places), REASONS_MAX
        features, parts, values = np.empty(shape, np.int64), np.empty(shape), np.empty(shape)
        blame(shares, p, cells, self.columns, places, features, parts, values)
        found: list[tuple[Reason, ...]] = []
        for row in zip(features.tolist(), values.tolist(), parts.tolist(), strict=True):
            reasons: list[Reason] = []
            for at, value, part in zip(*row, strict=True):
                if part < REASON_RISK_MIN:
                    break  # and so are the others: the greatest is first
                told = self.told[at]
                reasons.append(Reason(told.rule, told.known.get(value) or told.message(value), part))
            found.append(tuple(reasons))
        return found


@jit
def blame(
    shares: Float64s,
    p: Float64s,
    cells: Float64s,
    columns: Int64s,
    rows: Int64s,
    features: Int64s,
    parts: Float64s,
    values: Float64s,
) -> None:
    """Write which features raised `p` most in the chosen rows, what part of it each has, and its value.

    shares: (len(rows), features), what each adds; p: (n,); features, parts and values: (len(rows), the most
    that are wanted), the greatest part first, and of equal ones that of the first feature. Where fewer raised
    it the parts left are 0. With numpy's calls, a sort of each row among them, it took 10 us a row.
    """
    for i in range(len(rows)):
        total = TINY
        for f in range(shares.shape[1]):
            if shares[i, f] > 0.0:
                total += shares[i, f]
        scale = p[rows[i]] / total
        features[i] = 0
        parts[i] = 0.0  # which what is to stand there must be above
        for f in range(shares.shape[1]):
            part = shares[i, f] * scale
            at = parts.shape[1]
            while at > 0 and part > parts[i, at - 1]:
                at -= 1
                if at + 1 < parts.shape[1]:
                    features[i, at + 1] = features[i, at]
                    parts[i, at + 1] = parts[i, at]
            if at < parts.shape[1]:
                features[i, at] = f
                parts[i, at] = part
        for k in range(parts.shape[1]):
            values[i, k] = cells[columns[features[i, k]], rows[i]]


def bind_all(
    definition: Definition, models: Mapping[str, Model], features: FeatureSet, types: Sequence[str]
) -> tuple[Scorer | None, tuple[Scorer, ...]]:
    """The champion and the challengers of a policy, bound to its rows."""

    def bound(name: str) -> Scorer:
        return Scorer.bind(name, models[name], features, types)

    champion = bound(definition.model) if definition.model is not None else None
    return champion, tuple(bound(name) for name in definition.challengers)


class _Told:
    """A feature as reasons tell of it; of values that it had of late it is `known` what they say.

    They are whole numbers, most of them, and small ones. One cache for all features took 0.5 us a row more.
    """

    __slots__ = ("_kind", "_missing", "_name", "known", "rule")

    def __init__(self, name: str, kind: str) -> None:
        self.rule = REASON + name
        self.known: dict[float, Message] = {}
        self._name, self._kind = name, kind
        self._missing = Message(f"{name} 缺失", f"{name} is missing")

    def message(self, value: float) -> Message:
        """What a value says that is not known yet, or is missing (NaN): that one is never found again."""
        if value != value:
            return self._missing
        said = f"{self._name} = {_said(value + 0.0, self._kind)}"  # where -0.0 is 0.0
        if len(self.known) >= KNOWN_MAX:
            self.known.clear()
        message = self.known[value] = Message(said, said)
        return message


def _said(value: float, kind: str) -> str:
    if kind == "bool":
        return "true" if value else "false"
    said = str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return f"{said} s" if kind == "duration" else said
