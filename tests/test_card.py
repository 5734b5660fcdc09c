"""A model's card: what is written is read, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from riskengine.card import CARD_FILE, MODEL_FILE, Card, Estimate, Span, Spread, load_model, model_digest
from riskengine.modeltext import ModelError

FEATURES = ("claims_1h", "user_age")
FINGERPRINTS = {"claims_1h": "00000000000000aa", "user_age": "00000000000000bb"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of one split, and its card."""
    import lightgbm

    draw = np.random.default_rng(3)
    rows = draw.normal(size=(400, 2))
    data = lightgbm.Dataset(rows, (rows[:, 0] > 1).astype(float), feature_name=list(FEATURES))
    parameters = {"objective": "binary", "verbosity": -1, "num_leaves": 3, "deterministic": True}
    lightgbm.train(parameters, data, 2).save_model(tmp_path / MODEL_FILE)
    card_of(tmp_path).save(tmp_path)
    return tmp_path


def card_of(folder: Path) -> Card:
    return Card(
        name="m1",
        note="of no use",
        model=model_digest((folder / MODEL_FILE).read_bytes()),
        policy="demo",
        policy_fingerprint="0123456789abcdef",
        types=("coupon_claim",),
        features=FEATURES,
        fingerprints=FINGERPRINTS,
        monotone={"claims_1h": 1},
        calibration={"kind": "isotonic", "x": [0.1, 0.7], "y": [0.0, 1.0]},
        quantiles_at=(0.0, 0.5, 1.0),
        spreads={"claims_1h": Spread(0.25, (1.0, 2.0, 7.0)), "user_age": Spread(1.0)},
        trained=Span(1, 2, 400, 60),
        metrics={"average_precision": Estimate(0.5, 0.4, 0.6)},
        rounds=2,
    )


def test_what_is_saved_is_loaded(folder: Path) -> None:
    card, forest = load_model(folder)
    assert card == card_of(folder)
    assert forest.features == card.features
    scores = np.array([0.0, 0.4, 1.0])
    card.curve().apply(scores)
    assert scores.tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_a_card_speaks_of_its_own_model_only(folder: Path) -> None:
    path = folder / MODEL_FILE
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(ModelError, match=r"speaks of another model\.txt"):
        Card.load(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "found format 2, expected 1"),
        ({"features": ["claims_1h"]}, "expected features, and a fingerprint of each"),
        ({"features": ["claims_1h", "user_age", "claims_1h"]}, "a feature is named twice"),
        ({"calibration": {"kind": "guess"}}, "calibration.kind: found 'guess'"),
        ({"rounds": "many"}, r"Expected `int`, got `str` - at `\$.rounds`"),
        ({"colour": "red"}, "unknown field `colour`"),
    ],
)
def test_another_card_is_refused(folder: Path, change: dict[str, object], said: str) -> None:
    path = folder / CARD_FILE
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | change))
    with pytest.raises(ModelError, match=said):
        Card.load(folder)


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"card\.json cannot be read: No such file"):
        Card.load(tmp_path)


def test_trees_of_other_features_are_refused(folder: Path) -> None:
    card = msgspec.structs.replace(card_of(folder), features=FEATURES[::-1])
    card.save(folder)
    with pytest.raises(ModelError, match="name other features"):
        load_model(folder)


def test_features_that_changed_are_named_with_what_became_of_them(folder: Path) -> None:
    card = card_of(folder)
    card.check({**FINGERPRINTS, "more": "00000000000000cc"}, "the policy rules")
    with pytest.raises(ModelError) as caught:
        card.check({"claims_1h": "00000000000000cc", "user_aged": "00000000000000dd"}, "the policy rules")
    assert "feature claims_1h is defined in another way now" in str(caught.value)
    assert "there is no feature user_age (the nearest is user_aged)" in str(caught.value)
    with pytest.raises(ModelError, match=r"no feature user_age \(age is what it was\)"):
        card.check({"claims_1h": "00000000000000aa", "age": "00000000000000bb"}, "the policy rules")
