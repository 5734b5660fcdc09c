"""The handbook study without its data: the protocol on made-up weeks, and the policy it is run with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.handbook import __main__ as study
from benchmarks.handbook import protocol
from benchmarks.handbook.protocol import DAY_MS, WEEK_MS
from riskengine.policy import load_definition
from riskengine.rows import Head, Rows
from riskengine.samples import Samples

START_MS = protocol.TEST_WEEKS[0]


def samples(n: int = 6_000) -> Samples:
    """Payments of 200 cards over five weeks around a training week; labels known after a week."""
    draw = np.random.default_rng(5)
    times = np.sort(draw.integers(START_MS - 2 * WEEK_MS, START_MS + 3 * WEEK_MS, n))
    head = Head(policy="p", policy_fingerprint="f", types={}, fingerprints={})
    keys = draw.integers(1, 200, n).astype(np.uint64)
    ids = pa.chunked_array([pa.array([str(i) for i in range(n)])])
    rows = Rows(head, ids, ids, times, ("x",), draw.random((n, 1)), keys)
    return Samples(rows, draw.random(n) < 0.02, times + WEEK_MS)


def test_a_week_is_cut_as_published() -> None:
    given = samples()
    keys = given.rows.keys
    assert keys is not None
    part = protocol.week(given, START_MS)
    times = given.times
    assert times[part.train].min() >= START_MS
    assert times[part.train].max() < START_MS + WEEK_MS
    assert times[part.test].min() >= START_MS + 2 * WEEK_MS
    assert times[part.test].max() < START_MS + 3 * WEEK_MS
    assert given.known_ms[part.train].max() <= START_MS + 2 * WEEK_MS
    kept = set(part.test.tolist())
    for row in np.flatnonzero(times >= START_MS + 2 * WEEK_MS).tolist():
        day = (int(times[row]) - START_MS) // DAY_MS - 14
        earlier = given.fraud & (keys == keys[row]) & (times >= START_MS)
        told = earlier & (times < START_MS + WEEK_MS)
        # One day more is known on each test day: of the day eight days before it.
        told |= earlier & (times >= START_MS + 6 * DAY_MS) & (times < START_MS + (7 + day) * DAY_MS)
        assert (row in kept) == (not told.any())


def test_all_earlier_weeks_end_where_the_one_week_does() -> None:
    given = samples()
    one, every = (protocol.week(given, START_MS, all_earlier) for all_earlier in (False, True))
    assert set(one.train.tolist()) < set(every.train.tolist())
    assert one.test.tolist() == every.test.tolist()
    assert given.times[every.train].max() < START_MS + WEEK_MS


def test_measures_are_perfect_for_perfect_scores() -> None:
    given = samples()
    part = protocol.week(given, START_MS)
    scores = protocol.judge(given, part.test, given.fraud[part.test].astype(np.float64))
    assert (scores.auc, scores.average_precision) == (1.0, 1.0)
    keys = given.rows.keys
    assert keys is not None
    defrauded = np.unique(keys[part.test[given.fraud[part.test]]])  # each is found once
    assert scores.card_precision == pytest.approx(len(defrauded) / 7 / protocol.TOP)


def test_what_is_chosen_is_chosen_before_the_first_test_week() -> None:
    first_test = min(protocol.TEST_WEEKS) + 2 * WEEK_MS
    assert max(protocol.CHOICE_WEEKS) + 3 * WEEK_MS == first_test


def test_the_policy_has_what_the_study_names() -> None:
    features = load_definition(study.RULES).features
    assert set(study.LEFT_OUT) <= set(features)


def test_without_the_data_it_says_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main(["--data", str(tmp_path / "none.parquet")]) == 2
    assert "simulated-data-raw" in capsys.readouterr().err
