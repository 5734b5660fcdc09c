"""What is known of a trained model: the card beside it, which says what it may be asked and what it is worth.

A folder of models/ holds `model.txt`, LightGBM's own, and `card.json`. A card names the very file and the
very features it speaks of, so that neither another model nor another definition is used in silence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from riskengine.calibration import Calibration
from riskengine.errors import nearest
from riskengine.forest import Forest
from riskengine.modeltext import ModelError

MODEL_FILE: Final = "model.txt"
CARD_FILE: Final = "card.json"
FORMAT: Final = 1
MODEL_TYPES: Final = ("number", "bool", "duration")  # of features: a model is asked with numbers
MEND: Final = "Train the model again, or take the card and model.txt from one place."


class Estimate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A measured figure, and the 95 % interval around it."""

    value: float
    low: float
    high: float


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Rows of a stretch of time: event times in ms, both ends in it, and how many of them were fraud."""

    first_ms: int
    last_ms: int
    rows: int
    frauds: int


class Spread(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """How the values of a column lie: its quantiles at Card.quantiles_at, none where all are missing."""

    missing: float  # the share of rows
    quantiles: tuple[float, ...] = ()


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that a model's folder says beside its trees. Read with `load`, written with `save`."""

    format: int = FORMAT
    name: str
    note: str | None = None  # what whoever uses the model must know
    model: str  # 16 hex digits of model.txt
    policy: str  # name and fingerprint of the policy that made the rows
    policy_fingerprint: str
    types: tuple[str, ...]  # event types of the rows it was trained on
    features: tuple[str, ...]  # in the model's order
    fingerprints: Mapping[str, str]  # by feature: what it meant when the rows were made
    monotone: Mapping[str, int] = {}  # 1: more of it is never less risk; -1: never more
    calibration: Mapping[str, Any]  # as `calibration.Calibration` reads it
    quantiles_at: tuple[float, ...] = ()
    spreads: Mapping[str, Spread] = {}  # of the features, over the training rows
    scores: Spread | None = None  # of the calibrated score, over the held-out rows
    trained: Span
    held_out: Span | None = None  # later rows, from which `metrics` come
    gap_ms: int = 0  # between the two
    unlabelled: int = 0  # rows left out, whose label was not known in time
    metrics: Mapping[str, Estimate] = {}
    rounds: int = 0  # trees
    parameters: Mapping[str, Any] = {}  # LightGBM's
    versions: Mapping[str, str] = {}  # of what trained it
    seed: int = 0

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the card of a model's folder. Raises ModelError, also where model.txt is another one."""
        path = Path(folder) / CARD_FILE
        try:
            card = msgspec.json.decode(_bytes(path), type=cls)
        except msgspec.DecodeError as error:
            raise ModelError(f"{path} is no card of a model: {error}. {MEND}") from error
        if card.format != FORMAT:
            raise ModelError(f"{path}: found format {card.format}, expected {FORMAT}. {MEND}")
        if not card.features or set(card.features) != set(card.fingerprints):
            raise ModelError(f"{path}: expected features, and a fingerprint of each. {MEND}")
        if len(set(card.features)) < len(card.features):
            raise ModelError(f"{path}: a feature is named twice. {MEND}")
        found = model_digest(_bytes(Path(folder) / MODEL_FILE))
        if found != card.model:
            raise ModelError(
                f"{path} speaks of another {MODEL_FILE}: found {found}, expected {card.model}. {MEND}"
            )
        card.curve(str(path))
        return card

    def save(self, folder: str | Path) -> None:
        """Write card.json into a folder that is there. Raises OSError."""
        written = msgspec.json.format(msgspec.json.encode(self), indent=1)
        (Path(folder) / CARD_FILE).write_bytes(written + b"\n")

    def curve(self, place: str = CARD_FILE) -> Calibration:
        """The calibration. `place` is what errors call it. Raises ModelError."""
        return Calibration.from_json(self.calibration, f"{place}: calibration")

    def check(self, fingerprints: Mapping[str, str], whose: str) -> None:
        """Refuse to judge features that are not those of training: ModelError names each of them.

        `fingerprints` are by feature (`compiled.Policy.feature_fingerprints`); `whose`: "the policy rules".
        """
        if found := differences(self.fingerprints, fingerprints):
            raise ModelError(
                f"model {self.name} does not fit {whose}: {'; '.join(found)}. Train it again on rows of that "
                "policy (riskengine replay, then train), or name another model."
            )


def load_model(folder: str | Path) -> tuple[Card, Forest]:
    """A model's card and its trees, which agree on the features. Raises ModelError."""
    card = Card.load(folder)
    path = Path(folder) / MODEL_FILE
    forest = Forest.load(path)
    if forest.features != card.features:
        raise ModelError(f"{path} and {CARD_FILE} name other features. {MEND}")
    return card, forest


def differences(made: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What became of the features of which something was made: which are gone, which mean something else."""
    found = []
    for name, fingerprint in made.items():
        if name not in now:
            found.append(f"there is no feature {name}{_instead(name, fingerprint, now)}")
        elif now[name] != fingerprint:
            found.append(f"feature {name} is defined in another way now")
    return found


def model_digest(model: bytes) -> str:
    """16 hex digits of a model.txt."""
    return hashlib.blake2b(model, digest_size=8).hexdigest()


def _instead(name: str, fingerprint: str, now: Mapping[str, str]) -> str:
    if renamed := [other for other, same in now.items() if same == fingerprint]:
        return f" ({renamed[0]} is what it was)"
    near = nearest(name, now)
    return f" (the nearest is {near})" if near else ""


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}. A model is a folder with {MODEL_FILE} and {CARD_FILE}."
        ) from error
