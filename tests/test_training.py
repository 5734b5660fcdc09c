"""Training: split by time, the same for the same seed, refused with the reason, judged as it is served."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from stage import DAY, HOUR, T0, payment, policy, write

from riskengine import training
from riskengine.calibration import Calibration
from riskengine.card import Card, load_model
from riskengine.cli import run
from riskengine.event import Label
from riskengine.files import Progress
from riskengine.judging import score
from riskengine.policy import load_definition
from riskengine.publishing import PLOTS, spread
from riskengine.replay import replay_files
from riskengine.rows import RowsFile, read_rows
from riskengine.samples import NEVER, Samples, TrainingError, join

POLICY = policy(
    features={
        "spent": {"value": "amount"},
        "count_1h": {"count": "payment", "by": "user", "over": "1h"},
        "usual": {"mean": "amount", "on": "payment", "by": "user", "over": "7d", "before": True},
        "share": {"value": "amount / usual"},
        "before": {"previous": "region", "on": "any", "by": "user"},
    }
)
N = 4_000


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with policy/, rows.parquet and labels.jsonl of forty days: large amounts are often fraud."""
    folder = tmp_path_factory.mktemp("history")
    write(folder / "policy", POLICY)
    draw = random.Random(7)
    events, labels = [], []
    for number in range(N):
        at = number * 40 * DAY // N
        is_fraud = draw.random() < 0.08
        amount = round(draw.uniform(50, 400) if is_fraud else draw.uniform(1, 120), 2)
        events.append(payment(f"e{number}", at, amount, user_id=f"u{draw.randrange(60)}"))
        known = T0 + at + draw.randrange(HOUR, 2 * DAY)
        labels.append({"event_id": f"e{number}", "label": "fraud" if is_fraud else "legit", "time": known})
    for name, records in (("events", events), ("labels", labels)):
        lines = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
        (folder / f"{name}.jsonl").write_bytes(lines)
    replay_files(
        load_definition(folder / "policy"),
        str(folder / "events.jsonl"),
        None,
        lambda compiled: RowsFile(str(folder / "rows.parquet"), compiled, ["user"]),
        lambda reject: None,
        Progress(),
    )
    return folder


def command(history: Path, *more: str, name: str = "m") -> list[str]:
    return [
        "train", "--in", str(history / "rows.parquet"), "--labels", str(history / "labels.jsonl"),
        "--rules", str(history / "policy"), "--out", str(history / "models"), "--name", name,
        "--trials", "2", "--gap", "2d", "--by", "user", *more,
    ]  # fmt: skip


def samples_of(history: Path) -> Samples:
    rows = read_rows(str(history / "rows.parquet"), by="user")
    told = [msgspec.json.decode(line) for line in (history / "labels.jsonl").read_bytes().splitlines()]
    labels = sorted((Label.parse(record) for record in told), key=lambda label: label.time or 0)
    return join(rows, labels)


def test_a_model_is_made_and_judged_by_the_scores_it_serves(
    history: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(command(history, "--monotone", "spent=1", "--amount", "spent", "--note", "of a test"))
    told = capsys.readouterr()
    assert code == 0, told.err
    folder = history / "models" / "m"
    card, forest = load_model(folder)
    assert card.features == ("spent", "count_1h", "usual", "share")
    assert card.types == ("payment",)
    assert card.monotone == {"spent": 1}
    assert card.note == "of a test"
    assert card.held_out is not None
    assert card.trained.last_ms + 2 * DAY <= card.held_out.first_ms
    assert card.metrics["auc"].value > 0.9
    assert {path.name for path in (folder / PLOTS).iterdir()} == {
        "precision-recall.svg", "calibration.svg", "scores.svg", "by-day.svg", "cost.svg", "importance.svg",
    }  # fmt: skip
    samples = samples_of(history)
    held_out = samples.between(card.held_out.first_ms, card.held_out.last_ms + 1)
    scores = score(card, forest, samples, held_out)
    assert card.scores == spread(scores), "the forest that serves says what was judged"
    rising = np.linspace(0, 400, 200)
    cells = np.vstack([rising, np.ones((1, 200)), np.full((1, 200), 60.0), np.ones((1, 200))])
    out = np.empty(200)
    forest.predict(cells, np.arange(4), out)
    assert (np.diff(out) >= 0).all()


def test_the_same_rows_and_seed_give_the_same_folder(history: Path) -> None:
    assert run(command(history, name="one")) == run(command(history, name="one-again")) == 0
    one, again = history / "models" / "one", history / "models" / "one-again"
    assert (one / "model.txt").read_bytes() == (again / "model.txt").read_bytes()
    assert msgspec.structs.replace(Card.load(again), name="one") == Card.load(one)


def test_a_model_is_evaluated_on_later_rows(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command(history, name="judged")) == 0
    page = history / "report.html"
    asked = [
        "evaluate", "--in", str(history / "rows.parquet"), "--labels", str(history / "labels.jsonl"),
        "--rules", str(history / "policy"), "--model", str(history / "models" / "judged"), "--by", "user",
        "--amount", "spent", "--html", str(page), "--top", "5",
    ]  # fmt: skip
    capsys.readouterr()
    assert run(asked) == 0
    told = capsys.readouterr()
    assert "they flatter it" in told.err
    assert "average_precision" in told.out
    assert "by event type" in told.out
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    card = Card.load(history / "models" / "judged")
    assert card.held_out is not None
    since = np.datetime64(card.held_out.first_ms, "ms").astype("datetime64[D]") + 1
    assert run([*asked, "--since", str(since), "--json"]) == 0
    told = capsys.readouterr()
    assert "flatter" not in told.err
    report = msgspec.json.decode(told.out)
    assert 0 < report["metrics"]["auc"]["low"] < report["metrics"]["auc"]["high"] <= 1


def test_an_event_is_explained_exactly(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command(history, name="explained")) == 0
    asked = [
        "evaluate", "--in", str(history / "rows.parquet"), "--labels", str(history / "labels.jsonl"),
        "--rules", str(history / "policy"), "--model", str(history / "models" / "explained"), "--explain",
    ]  # fmt: skip
    capsys.readouterr()
    assert run([*asked, "e100"]) == 0
    told = capsys.readouterr().out
    assert "event e100 has a score of" in told
    assert run([*asked, "e100", "--json"]) == 0
    why = msgspec.json.decode(capsys.readouterr().out)
    sizes = [abs(one["share"]) for one in why["shares"]]
    assert sizes == sorted(sizes, reverse=True)
    assert {one["feature"] for one in why["shares"]} == {"spent", "count_1h", "usual", "share"}
    assert all(f"{one['share']:+.4f}" in told for one in why["shares"])
    assert why["raw"] == pytest.approx(why["bias"] + sum(one["share"] for one in why["shares"]))
    card, forest = load_model(history / "models" / "explained")
    samples = samples_of(history)
    at = samples.rows.ids.to_pylist().index("e100")
    assert why["score"] == score(card, forest, samples, np.array([at]))[0]
    p = np.array([1 / (1 + math.exp(-why["raw"]))])
    card.curve().apply(p)
    assert p[0] == pytest.approx(why["score"])
    assert run([*asked, "e-none"]) == 2
    assert "the rows have none of event e-none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"count_1h": {"count": "payment", "by": "user", "over": "2h"}},
            "count_1h is defined in another way",
        ),
        ({"usual": None}, "there is no feature usual"),
    ],
)
def test_another_policy_is_refused(
    history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    features = {**POLICY["features"], **change}
    features = {name: one for name, one in features.items() if one is not None and name != "share"}
    other = write(tmp_path / "other", {**POLICY, "features": features})
    assert run(command(history, "--rules", str(other))) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--gap", "60d"], 2, "frauds among 0 labelled rows to learn from"),
        (["--gap", "soon"], 2, "is no time: write 7d"),
        (["--feature", "spend"], 2, "did you mean spent"),
        (["--monotone", "spent=up"], 2, "FEATURE=1 or FEATURE=-1"),
        (["--name", "../m"], 2, "a model's name has letters"),
        (["--type", "coupon_claim"], 2, "there are no rows"),
        (["--amount", "money"], 2, "no feature money"),
        (["--out", "/dev/null/models"], 2, "is no folder that can be written"),
    ],
)
def test_what_cannot_be_is_told(
    history: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, said: str
) -> None:
    assert run(command(history, *more)) == code
    assert said in " ".join(capsys.readouterr().err.split()).replace("│ ", "")


def test_only_labels_known_by_then_are_learned_from(history: Path) -> None:
    samples = samples_of(history)
    first, end = int(samples.times[0]), int(samples.times[-1]) + 1
    by = T0 + 10 * DAY
    known = samples.between(first, end, by)
    assert (samples.known_ms[known] <= by).all()
    assert len(known) == int((samples.known_ms <= by).sum())
    for fold in training.prequential(samples, samples.between(first, end), end, 2 * DAY):
        start = samples.times[fold.test].min()
        assert samples.times[fold.train].max() <= start - 2 * DAY
        assert samples.known_ms[fold.train].max() <= start


def test_the_latest_label_counts_and_none_is_none(history: Path) -> None:
    rows = read_rows(str(history / "rows.parquet"))
    samples = join(rows, [Label("e3", "fraud", 5), Label("e4", "fraud", 6), Label("e3", "legit", 7)])
    assert samples.fraud[:6].tolist() == [False, False, False, False, True, False]
    assert samples.known_ms[[2, 3, 4]].tolist() == [NEVER, 7, 6]
    assert not join(rows, []).fraud.any()


def test_scores_are_calibrated_by_what_tells_later_rows_best() -> None:
    draw = np.random.default_rng(2)
    scores = [draw.random(4_000) for _ in range(3)]
    sound = [draw.random(4_000) < part for part in scores]
    bent = [draw.random(4_000) < part**4 for part in scores]
    assert training.calibrate(scores, bent).kind in ("isotonic", "platt")
    told = np.array([0.5, 0.9])
    training.calibrate(scores, bent).apply(told)
    assert told == pytest.approx([0.5**4, 0.9**4], abs=0.05)
    kept = np.array([0.5, 0.9])
    training.calibrate(scores, sound).apply(kept)
    assert kept == pytest.approx([0.5, 0.9], abs=0.05)
    assert training.calibrate(scores, [np.zeros(4_000, bool)] * 3).kind == "none"
    assert isinstance(training.calibrate(scores[:1], bent[:1]), Calibration)


def test_too_few_frauds_are_told(history: Path) -> None:
    rows = read_rows(str(history / "rows.parquet"))
    labels = [Label(f"e{i}", "fraud" if i < 5 else "legit", int(rows.times[i])) for i in range(N)]
    with pytest.raises(TrainingError, match="found 5 frauds among"):
        training.train(join(rows, labels), 5 * DAY, DAY, 7, 1)


def test_simulated_campaigns_are_learned_from(tmp_path: Path) -> None:
    rules = Path(__file__).resolve().parent.parent / "rules"
    asked = [
        "train", "--simulated", "4", "--users", "1000", "--name", "s", "--out", str(tmp_path),
        "--rules", str(rules), "--by", "user", "--trials", "1",
    ]  # fmt: skip
    assert run(asked) == 0
    card = Card.load(tmp_path / "s")
    assert card.metrics["average_precision"].value > 0.8
    assert card.held_out is not None
    assert run(["train", "--name", "s"]) == 2
