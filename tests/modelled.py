"""Small models for tests: trained on random rows of a policy's features, in a folder where it finds them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np

from riskengine.card import MODEL_FILE, MODEL_TYPES, Card, Span, model_digest
from riskengine.definition import Definition
from riskengine.policy import feature_fingerprint

ROWS = 400


def usable(definition: Definition) -> list[str]:
    """The features that a model can be asked with."""
    return [feature.name for feature in definition.features.values() if feature.type in MODEL_TYPES]


def write_model(
    folder: Path,
    definition: Definition,
    features: Sequence[str] | None = None,
    types: Iterable[str] | None = None,
    calibration: Mapping[str, Any] | None = None,
    seed: int = 0,
    trees: int = 10,
) -> lightgbm.Booster:
    """A model in `folder`, named as that is: more of any feature, or that it is missing, is more risk."""
    names = list(features or usable(definition))
    draw = np.random.default_rng(seed)
    rows = np.floor(np.exp(draw.uniform(0, 3, (ROWS, len(names))))) - 1  # 0, 1, 2 ... 19
    rows[draw.random(rows.shape) < 0.2] = np.nan
    fraud = np.log1p(np.nan_to_num(rows, nan=8.0)).mean(axis=1) + draw.normal(size=ROWS) / 2 > 1.4
    booster = lightgbm.train(
        {
            "objective": "binary",
            "verbosity": -1,
            "num_leaves": 7,
            "min_data_in_leaf": 5,
            "num_threads": 1,
            "learning_rate": 0.3,
        },
        lightgbm.Dataset(rows, fraud.astype(float), feature_name=names),
        trees,
    )
    folder.mkdir(parents=True, exist_ok=True)
    booster.save_model(folder / MODEL_FILE)
    Card(
        name=folder.name,
        model=model_digest((folder / MODEL_FILE).read_bytes()),
        policy=definition.name,
        policy_fingerprint="0123456789abcdef",
        types=tuple(definition.events if types is None else types),
        features=tuple(names),
        fingerprints={name: feature_fingerprint(definition.features[name], definition) for name in names},
        calibration=calibration or {"kind": "none"},
        trained=Span(1, 2, ROWS, int(fraud.sum())),
    ).save(folder)
    return booster


def predicted(booster: lightgbm.Booster, row: Mapping[str, Any]) -> float:
    """What LightGBM says of one row of features."""
    values = [row[name] for name in booster.feature_name()]
    plain = [math.nan if value is None else float(value) for value in values]
    return float(np.asarray(booster.predict(np.array([plain])))[0])
