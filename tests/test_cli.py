"""The command line as its users meet it: answers, exit codes, messages, and never a traceback."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from riskengine import cli, files, ruletest
from riskengine.cli import terminal
from riskengine.cli.compiling import compiling_told
from riskengine.decision import Decision
from riskengine.engine import Engine
from riskengine.entries import Entry
from riskengine.errors import EventError
from riskengine.journal import Journal
from riskengine.kernel import cache_folder

ROOT = Path(__file__).resolve().parent.parent
START_MS = 1_794_326_400_000  # 2026-11-11T00:00:00+08:00

POLICY = """\
policy: t
timezone: Asia/Shanghai
model: none
entities: {user: user_id, device: device_id}
events:
  pay: {required: [user_id], fields: {amount: {type: number, unit: 0.01}}}
features:
  pays_1h: {count: pay, by: user, over: 1h}
  frauds_1d: {count: fraud, on: pay, by: user, over: 1d}
  last_amount: {previous: amount, by: user}
limits:
  five-a-day: {count: pay, by: user, per: day, max: 5, then: review}
rules:
  big: {on: pay, when: amount > 100, then: deny, mode: live, message: {zh: 太大, en: Too much}}
  was-fraud: {on: pay, when: frauds_1d > 0, then: review, mode: live}
"""
TESTS = """\
start: 2026-11-11T00:00:00+08:00
tests:
  - name: big is denied
    events:
      - {at: 0s, type: pay, user_id: u, amount: 101, expect: {action: deny, fired: [big]}}
  - name: small is allowed
    events:
      - {at: 0s, type: pay, user_id: u, amount: 1, expect: {action: allow, fired: []}}
"""


@pytest.fixture(autouse=True)
def _room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own that has ./rules, with a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("RISKENGINE_DEBUG", raising=False)
    Path("rules").mkdir()
    Path("rules/policy.yaml").write_text(POLICY, encoding="utf-8")
    Path("rules/t.test.yaml").write_text(TESTS, encoding="utf-8")


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> Ran:
        capfd.readouterr()
        code = cli.run(arguments)
        sys.stdout.flush()
        said = capfd.readouterr()
        assert "Traceback" not in said.err + said.out
        return Ran(code, said.out, said.err)

    return run


def events(n: int, step_ms: int = 1_000) -> list[dict[str, Any]]:
    return [
        {
            "event_id": f"e{i}",
            "type": "pay",
            "time": START_MS + i * step_ms,
            "user_id": f"u{i % 7}",
            "device_id": f"d{i % 3}",
            "amount": (i * 37 % 120) + 0.5,
        }
        for i in range(n)
    ]


def write_lines(path: str, records: list[dict[str, Any]]) -> str:
    Path(path).write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in records))
    return path


def read_lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def one_by_one(records: list[dict[str, Any]], features: bool = False) -> list[dict[str, Any]]:
    """What `score` must say: each event alone, in the order of the file."""
    decisions = []
    latest = 0
    with Engine.open("rules") as engine:
        for record in records:
            latest = max(latest, record["time"])
            (decision,) = engine.score_many([record], features, now=np.array([latest], np.int64))
            assert not isinstance(decision, EventError)
            decisions.append(json.loads(msgspec.json.encode(decision)))
    return decisions


# -- help, version, usage


COMMANDS = ("demo", "init", "check", "test", "score", "simulate", "replay", "store")


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_reads_well_in_80_columns(run: Any, command: list[str]) -> None:
    ran = run(*command, "--help")
    assert ran.code == 0
    assert ran.err == ""
    assert max(len(line) for line in ran.out.splitlines()) <= 80
    assert "<bool>" not in ran.out, "a switch takes no value"
    assert f"Usage: riskengine {' '.join(command)}".strip() in ran.out
    assert run(*command, "-h").out == ran.out


def test_version(run: Any) -> None:
    ran = run("--version")
    assert ran.code == 0
    assert re.fullmatch(r"riskengine (\d+\.\d+\.\d+|\(not installed: a checkout\))\n", ran.out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chek"], "Did you mean 'check'?"),
        (["score", "--in", "e.jsonl"], "Missing option '--out'"),
        (["score", "--in", "e.jsonl", "--out", "d.jsonl", "--fast"], "No such option"),
        (["check", "--format", "xml"], "xml"),
    ],
)
def test_usage_errors_exit_with_2(run: Any, arguments: list[str], message: str) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert message in ran.err


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys, riskengine.cli; print({'numba', 'numpy', 'sqlalchemy', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


HEAVY = ("fastapi", "lightgbm", "pandas", "pyarrow", "sklearn", "sqlalchemy")


@pytest.mark.parametrize(
    "script",
    [
        "import riskengine",
        "from riskengine import cli; cli.run(['score', '--in', 'e.jsonl', '--out', 'd.jsonl'])",
        "from riskengine import Engine; Engine.open('rules').score({'event_id': 'e', 'type': 'pay', "
        "'user_id': 'u'})",
    ],
)
def test_nothing_heavy_is_imported_to_score(script: str) -> None:
    write_lines("e.jsonl", events(3))
    script += f"\nimport sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_importing_the_package_imports_no_compiler() -> None:
    script = "import sys, riskengine; print({'numba', 'numpy', 'msgspec', 'typer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(shell: str) -> None:
    """What a shell asks when a tab is pressed after `riskengine s`, and the script that makes it ask."""
    asked = {
        "bash": {"COMP_WORDS": "riskengine s", "COMP_CWORD": "1"},
        "zsh": {"_TYPER_COMPLETE_ARGS": "riskengine s"},
        "fish": {"_TYPER_COMPLETE_ARGS": "riskengine s", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    run = [sys.executable, "-m", "riskengine"]
    found = subprocess.run(
        run,
        env={**os.environ, **asked, "_RISKENGINE_COMPLETE": f"complete_{shell}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.findall(r"\b(score|simulate|demo)\b", re.sub(r'":.*', "", found.stdout)) == [
        "score",
        "simulate",
    ]
    script = subprocess.run(
        run,
        env={**os.environ, "_RISKENGINE_COMPLETE": f"source_{shell}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"_RISKENGINE_COMPLETE=complete_{shell}" in script


def test_compiling_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    """The first time a kernel of ours is compiled, people read what they wait for and where it is kept."""
    kernel = {"__name__": "riskengine.made_up"}
    exec("def doubled(x):\n    return 2 * x", kernel)
    double: Any = numba.njit(kernel["doubled"])
    with compiling_told():
        assert double(2) == 4
        assert double(3) == 6
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"first use of some kernels: compiling them, once, into {cache_folder()}")
    assert re.fullmatch(r"compiled 1 kernel in \d+ s", said[1])
    with compiling_told():
        assert double(4) == 8
    assert capfd.readouterr().err == ""


def test_compiling_shows_each_kernel_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    kernel = {"__name__": "riskengine.made_up"}
    exec("def tripled(x):\n    return 3 * x", kernel)
    triple: Any = numba.njit(kernel["tripled"])
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    with compiling_told():
        triple(2)
    assert re.search(r"\r  kernel 1 of \d+: tripled", stderr.getvalue())


def on_a_terminal(*arguments: str, **environment: str) -> tuple[int, str]:
    """A command whose three streams are a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "riskengine", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not block:
            break
        said += block
    os.close(ours)
    return process.wait(60), said.decode()


def test_colours_on_a_terminal_unless_told_not_to() -> None:
    colour = re.compile(r"\x1b\[(\d+;)*3\d(;\d+)*m")
    code, said = on_a_terminal("--help")
    assert code == 0
    assert colour.search(said)
    code, said = on_a_terminal("--help", NO_COLOR="1")
    assert code == 0
    assert not colour.search(said)


# -- check


def test_check_of_a_good_policy(run: Any) -> None:
    ran = run("check")
    assert ran.code == 0
    assert "error" not in ran.out
    assert ran.err == ""
    assert run("check", "rules").out == ran.out


BAD = POLICY.replace("amount > 100", "amont > 100")


def test_check_of_a_bad_policy(run: Any) -> None:
    Path("rules/policy.yaml").write_text(BAD, encoding="utf-8")
    ran = run("check")
    assert ran.code == 1
    assert "rules/policy.yaml:14:24: error: nothing here is named amont" in ran.out
    for arguments in (["--json"], ["--format", "json"]):
        ran = run("check", *arguments)
        told = json.loads(ran.out)
        assert (ran.code, told["ok"], told["findings"][0]["code"]) == (1, False, "unknown-name")
        assert ran.err == ""
    assert json.loads(run("check", "--format", "sarif").out)["version"] == "2.1.0"
    assert run("check", "--format", "github").out.startswith("::error file=rules/policy.yaml,line=14")


def test_check_explains_what_counters_cost(run: Any) -> None:
    assert "pays_1h" in run("check", "--explain").out
    told = json.loads(run("check", "--explain", "--json").out)
    assert told["explain"]["features"]["pays_1h"]["bucket_ms"] == 60_000


def test_a_folder_that_is_not_there(run: Any) -> None:
    for command in ("check", "test"):
        ran = run(command, "nowhere")
        assert ran.code == 1
        assert "there is no such folder" in ran.out + ran.err


def test_without_rules_the_shipped_policy_is_used(run: Any) -> None:
    for path in Path("rules").iterdir():
        path.unlink()
    Path("rules").rmdir()
    ran = run("check")
    assert ran.code == 0
    assert "using the policy that ships with riskengine" in ran.err


# -- test


def test_rule_tests(run: Any) -> None:
    ran = run("test")
    assert ran.code == 0
    assert "2 passed, 0 failed" in ran.out
    ran = run("test", "--run", "small", "--json")
    assert ran.code == 0
    assert [test["name"] for test in json.loads(ran.out)["tests"]] == ["small is allowed"]
    ran = run("test", "--coverage")
    assert ran.code == 1
    assert "was-fraud" in ran.out


def test_rule_tests_that_fail(run: Any) -> None:
    Path("rules/policy.yaml").write_text(POLICY.replace("amount > 100", "amount > 200"), encoding="utf-8")
    ran = run("test")
    assert ran.code == 1
    assert "1 passed, 1 failed" in ran.out
    assert run("test", "--run", "nothing like it").code == 1


def test_rule_tests_of_a_bad_policy(run: Any) -> None:
    Path("rules/policy.yaml").write_text(BAD, encoding="utf-8")
    ran = run("test")
    assert ran.code == 1
    assert "amont" in ran.err
    ran = run("test", "--json")
    assert ran.code == 1
    assert json.loads(ran.out)["findings"][0]["code"] == "unknown-name"


# -- score


def test_scoring_a_file_is_scoring_one_by_one(run: Any) -> None:
    records = events(2_500)
    ran = run("score", "--in", write_lines("e.jsonl", records), "--out", "d.jsonl")
    assert ran.code == 0
    assert ran.out == ""
    assert re.search(r"scored 2,500 events in [\d.]+ s \([\d,]+/s\)", ran.err)
    assert read_lines("d.jsonl") == one_by_one(records)


def test_a_file_may_span_months(run: Any) -> None:
    """Decisions older than a retry may be are forgotten by the engine: not before they are written."""
    records = events(300, step_ms=6 * 3_600_000)
    assert run("score", "--in", write_lines("e.jsonl", records), "--out", "d.jsonl").code == 0
    assert read_lines("d.jsonl") == one_by_one(records)


def test_order_is_that_of_the_file_unless_sorted(run: Any) -> None:
    records = events(200)
    shuffled = records[100:] + records[:100]
    write_lines("e.jsonl", shuffled)
    assert run("score", "--in", "e.jsonl", "--out", "d.jsonl").code == 0
    assert read_lines("d.jsonl") == one_by_one(shuffled)
    assert run("score", "--in", "e.jsonl", "--out", "s.jsonl", "--sort").code == 0
    assert read_lines("s.jsonl") == one_by_one(records)


def test_a_summary_for_programs(run: Any) -> None:
    records = events(40)
    write_lines("e.jsonl", [*records, {"event_id": "x"}])
    ran = run("score", "--in", "e.jsonl", "--out", "d.jsonl", "--json")
    assert ran.code == 1
    told = json.loads(ran.out)
    assert (told["ok"], told["events"], told["rejected"]) == (False, 40, 1)
    assert sum(told["actions"].values()) == 40
    ran = run("score", "--in", "e.jsonl", "--out", "-", "--json")
    assert ran.code == 2
    assert "choose one" in ran.err


def test_features_are_written_when_asked_for(run: Any) -> None:
    records = events(20)
    write_lines("e.jsonl", records)
    assert run("score", "--in", "e.jsonl", "--out", "d.jsonl", "--features").code == 0
    found = read_lines("d.jsonl")
    assert found == one_by_one(records, features=True)
    assert found[7]["features"]["pays_1h"] == 2
    assert run("score", "--in", "e.jsonl", "--out", "d.parquet", "--features").code == 0
    rows = pq.read_table("d.parquet").to_pylist()
    assert [row["features"]["pays_1h"] for row in rows] == [row["features"]["pays_1h"] for row in found]
    assert rows[0]["features"]["last_amount"] is None


def test_parquet_gives_what_json_lines_give(run: Any) -> None:
    records = events(1_500)
    write_lines("e.jsonl", records)
    pq.write_table(pa.Table.from_pylist(records), "e.parquet")
    assert run("score", "--in", "e.jsonl", "--out", "a.jsonl").code == 0
    assert run("score", "--in", "e.parquet", "--out", "b.jsonl").code == 0
    assert read_lines("a.jsonl") == read_lines("b.jsonl")
    assert run("score", "--in", "e.parquet", "--out", "c.parquet").code == 0
    table = pq.read_table("c.parquet").to_pylist()
    assert [(row["event_id"], row["action"], row["fired"]) for row in table] == [
        (row["event_id"], row["action"], row["fired"]) for row in read_lines("a.jsonl")
    ]


def test_labels_count_only_after_they_became_known(run: Any) -> None:
    records = events(30)
    write_lines("e.jsonl", records)
    write_lines("l.jsonl", [{"event_id": "e0", "label": "fraud", "time": START_MS + 10_500}])
    assert run("score", "--in", "e.jsonl", "--out", "d.jsonl", "--labels", "l.jsonl").code == 0
    hit = [row["event_id"] for row in read_lines("d.jsonl") if "was-fraud" in row["fired"]]
    assert hit == ["e14", "e21", "e28"]


def test_a_label_that_no_event_has_is_told(run: Any) -> None:
    write_lines("e.jsonl", events(3))
    write_lines("l.jsonl", [{"event_id": "nobody", "label": "fraud", "time": START_MS}])
    ran = run("score", "--in", "e.jsonl", "--out", "d.jsonl", "--labels", "l.jsonl")
    assert "1 label is of no event seen before it" in ran.err


def test_what_cannot_be_scored_is_told_counted_and_kept(run: Any) -> None:
    records = events(3)
    lines = [
        json.dumps(records[0]),
        "{broken",
        json.dumps(records[1]),
        json.dumps({**records[2], "amount": "much"}),
        json.dumps({"event_id": "x", "type": "pya", "time": START_MS}),
    ]
    Path("e.jsonl").write_text("\n".join(lines), encoding="utf-8")
    ran = run("score", "--in", "e.jsonl", "--out", "d.jsonl", "--rejects", "r.jsonl")
    assert ran.code == 1
    assert [row["event_id"] for row in read_lines("d.jsonl")] == ["e0", "e1"]
    rejected = read_lines("r.jsonl")
    assert [(row["line"], row["raw"]) for row in rejected] == [(n, lines[n - 1]) for n in (2, 4, 5)]
    assert all(f"e.jsonl:{row['line']}: {row['reason']}" in ran.err for row in rejected)
    assert "3 lines could not be used: they are in r.jsonl" in ran.err
    assert "name a file with --rejects" in run("score", "--in", "e.jsonl", "--out", "d.jsonl").err


def test_many_rejects_are_not_all_shown(run: Any) -> None:
    Path("e.jsonl").write_text("{\n" * 100, encoding="utf-8")
    ran = run("score", "--in", "e.jsonl", "--out", "d.jsonl")
    assert ran.code == 1
    assert "... and 90 more" in ran.err
    assert "100 lines could not be used" in ran.err
    assert "scored 0 events" in ran.err


def test_a_journal_keeps_what_was_decided(run: Any) -> None:
    records = events(50)
    write_lines("e.jsonl", records)
    assert run("score", "--in", "e.jsonl", "--out", "d.jsonl", "--journal", "sqlite:///j.db").code == 0
    with Journal.open("sqlite:///j.db", create=False) as journal:
        kept = [json.loads(entry.decision) for entry in journal.replay() if isinstance(entry, Entry)]
    assert kept == read_lines("d.jsonl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--in", "none.jsonl", "--out", "d.jsonl"], "none.jsonl cannot be read"),
        (["--in", "rules", "--out", "d.jsonl"], "suffix tells no format"),
        (["--in", "e.jsonl", "--out", "d.csv"], "suffix tells no format"),
        (["--in", "e.jsonl", "--out", "no/d.jsonl"], "cannot be written"),
        (["--in", "e.jsonl", "--out", "e.jsonl"], "the same file as --in"),
        (["--in", "e.jsonl", "--out", "./../" + "LINK/e.jsonl"], "the same file as --in"),
        (["--in", "e.jsonl", "--out", "d.jsonl", "--store", "mysql://x"], "store"),
        (["--in", "e.jsonl", "--out", "d.jsonl", "--journal", "x.db"], "sqlite:///"),
        (["--in", "e.jsonl", "--out", "d.jsonl", "--labels", "none.jsonl"], "none.jsonl cannot be read"),
        (["--in", "e.jsonl", "--out", "d.jsonl", "--rejects", "no/r.jsonl"], "cannot be written"),
        (["--in", "array.json", "--out", "d.jsonl"], "one JSON array"),
    ],
)
def test_what_cannot_be_done_exits_with_2(run: Any, arguments: list[str], message: str) -> None:
    write_lines("e.jsonl", events(3))
    before = Path("e.jsonl").read_bytes()
    Path("array.json").write_text("[{}]", encoding="utf-8")
    Path("d.jsonl").touch()
    arguments = [part.replace("LINK", Path.cwd().name) for part in arguments]
    ran = run("score", *arguments)
    assert ran.code == 2
    assert message in " ".join(ran.err.replace("│", " ").split())
    assert Path("e.jsonl").read_bytes() == before


def test_a_bar_is_shown_on_a_terminal_when_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    write_lines("e.jsonl", events(3_000))
    for after, shown in ((0.0, True), (60.0, False)):
        stderr = Terminal()
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setattr(terminal, "BAR_AFTER_SECONDS", after)
        assert cli.run(["score", "--in", "e.jsonl", "--out", "d.jsonl"]) == 0
        assert ("scoring" in stderr.getvalue()) is shown


# -- processes


def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "riskengine", *arguments], stderr=subprocess.PIPE, **options
    )


@pytest.fixture
def streaming() -> Iterator[subprocess.Popen[bytes]]:
    """`score` on a pipe that has given three events and stays open; their decisions are written."""
    with start("score", "--in", "-", "--out", "d.jsonl", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for record in events(3):
            process.stdin.write(msgspec.json.encode(record) + b"\n")
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not Path("d.jsonl").exists() or Path("d.jsonl").read_bytes().count(b"\n") < 3:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
        process.kill()


def test_ctrl_c_keeps_what_was_written(streaming: subprocess.Popen[bytes]) -> None:
    streaming.send_signal(signal.SIGINT)
    assert streaming.stderr is not None
    said = streaming.stderr.read().decode()
    assert streaming.wait(60) == 130
    assert "interrupted: the 3 decisions made until then are in d.jsonl" in said
    assert "Traceback" not in said
    assert [row["event_id"] for row in read_lines("d.jsonl")] == ["e0", "e1", "e2"]


def test_a_pipe_is_answered_event_by_event_until_it_ends(streaming: subprocess.Popen[bytes]) -> None:
    assert streaming.stdin is not None
    assert streaming.stderr is not None
    streaming.stdin.close()
    said = streaming.stderr.read().decode()
    assert streaming.wait(60) == 0
    assert "scored 3 events" in said


def test_a_reader_that_has_enough_is_no_error() -> None:
    write_lines("e.jsonl", events(20_000))
    with start("score", "--in", "e.jsonl", "--out", "-", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["event_id"] == "e0"
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait(60) == 1
    assert "Traceback" not in said
    assert "Exception" not in said


# -- what was not foreseen


def test_a_bug_of_ours_is_one_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr(ruletest, "run_tests", broken)
    assert cli.run(["test"]) == 70
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "this is a bug in riskengine (ZeroDivisionError: first)" in said
    assert "RISKENGINE_DEBUG=1" in said
    monkeypatch.setenv("RISKENGINE_DEBUG", "1")
    assert cli.run(["test"]) == 70
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(errno.EACCES, "Permission denied", "x.yaml"), 2, "error: x.yaml: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: No space left on device"),
    ],
)
def test_what_the_system_says_becomes_a_message(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ruletest, "run_tests", broken)
    ran = run("test")
    assert (ran.code, ran.err) == (code, f"{message}\n")


def test_an_interrupt_waits_for_the_batch(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However early it comes, no line is cut and no event of a written batch is missing."""
    write = files._LinesOutput.write

    def interrupted(self: Any, decisions: list[Decision]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        write(self, decisions)

    monkeypatch.setattr(files._LinesOutput, "write", interrupted)
    write_lines("e.jsonl", events(3_000))
    ran = run("score", "--in", "e.jsonl", "--out", "d.jsonl")
    assert ran.code == 130
    assert "the 1,024 decisions made until then" in ran.err
    assert [row["event_id"] for row in read_lines("d.jsonl")] == [f"e{i}" for i in range(1024)]
