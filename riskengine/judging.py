"""Files of rows and labels become what training and evaluation work on, held against the policy first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from riskengine.card import MODEL_FILE, Card, differences
from riskengine.evaluation import Inputs
from riskengine.files import Rejects, read_labels
from riskengine.forest import Forest, explain
from riskengine.policy import feature_fingerprint, load_definition
from riskengine.rows import Head, RowsError, read_head, read_rows
from riskengine.samples import Samples, TrainingError, join

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]


def read_samples(
    rows: str,
    labels: str,
    rules: Path,
    features: Sequence[str] | None,
    types: Sequence[str] | None,
    by: str | None,
    say: Callable[[str], None],
) -> Samples:
    """Rows with their labels, of features that the policy in `rules` has and means as the rows do.

    `say` is told of labels that cannot be used. Raises RowsError, FileError, PolicyError.
    """
    head = read_head(rows)
    check_policy(head, rows, head.usable if features is None else features, rules)
    found = read_rows(rows, features, by)
    if types is not None:
        import pyarrow as pa
        import pyarrow.compute as pc

        kept = np.asarray(pc.is_in(found.types, value_set=pa.array(types)))
        found = replace(
            found,
            ids=found.ids.filter(pa.array(kept)),
            types=found.types.filter(pa.array(kept)),
            times=found.times[kept],
            values=found.values[kept],
            keys=None if found.keys is None else found.keys[kept],
        )
    with Rejects() as rejects:
        told = read_labels(labels, rejects.add)
    for reject in rejects.first:
        say(str(reject))
    if rejects.count > len(rejects.first):
        say(f"... and {rejects.count - len(rejects.first):,} more labels could not be used")
    samples = join(found, told)
    if len(samples) and not (samples.known_ms < np.iinfo(np.int64).max).any():
        raise TrainingError(f"{labels} has no label of the events in {rows}: are they of one history?")
    return samples


def check_policy(head: Head, rows: str, features: Sequence[str], rules: Path) -> None:
    """Refuse rows of features that the policy lacks or means in another way: RowsError names each."""
    definition = load_definition(rules)
    now = {name: feature_fingerprint(one, definition) for name, one in definition.features.items()}
    made = {name: head.fingerprints[name] for name in features if name in head.fingerprints}
    if found := differences(made, now):
        raise RowsError(
            f"{rows} does not fit the policy {rules}: {'; '.join(found)}. Make the rows again with "
            "riskengine replay, choose features with --feature, or name their policy with --rules."
        )


def score(card: Card, forest: Forest, samples: Samples, rows: Int64s) -> Float64s:
    """The model's calibrated scores of chosen rows, from the forest that serves it."""
    chosen = [samples.rows.features.index(name) for name in card.features]
    cells = np.ascontiguousarray(samples.rows.values[rows].T)
    scores = np.empty(len(rows))
    forest.predict(cells, np.array(chosen, np.int64), scores)
    card.curve().apply(scores)
    return scores


@dataclass(frozen=True, slots=True)
class Share:
    """A feature of an event, None where it is missing, and what it adds to the raw score."""

    feature: str
    value: float | None
    share: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an event has its score: `bias` and the shares, the largest first, add up to `raw`."""

    event_id: str
    score: float  # calibrated, as it is served
    raw: float
    bias: float
    shares: tuple[Share, ...]


def explain_event(model: Path, card: Card, forest: Forest, samples: Samples, event_id: str) -> Explanation:
    """What each feature adds to an event's raw score, by exact TreeSHAP. RowsError where it has no row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    at = pc.index(samples.rows.ids, pa.scalar(event_id, pa.string())).as_py()
    if at < 0:
        raise RowsError(f"the rows have none of event {event_id}: name one of theirs")
    row = [float(samples.rows.column(name)[at]) for name in card.features]
    shares, bias = explain(model / MODEL_FILE, row)
    values = [None if value != value else value for value in row]
    told = map(Share, card.features, values, shares.tolist())
    return Explanation(
        event_id=event_id,
        score=float(score(card, forest, samples, np.array([at]))[0]),
        raw=bias + float(shares.sum()),
        bias=bias,
        shares=tuple(sorted(told, key=lambda one: -abs(one.share))),
    )


def inputs_of(samples: Samples, rows: Int64s, scores: Float64s, amount: str | None) -> Inputs:
    """What `evaluate` judges by; `amount` is the feature that says what a missed fraud costs."""
    if amount is not None and amount not in samples.rows.features:
        raise RowsError(f"the rows have no feature {amount} to take the money of: see --amount")
    return Inputs(
        times=samples.times[rows],
        types=np.array(samples.rows.types.take(rows).to_pylist(), object),
        scores=scores,
        fraud=samples.fraud[rows],
        keys=None if samples.rows.keys is None else samples.rows.keys[rows],
        amounts=None if amount is None else samples.rows.column(amount)[rows],
        timezone=samples.rows.head.timezone,
    )
