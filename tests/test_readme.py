"""The README keeps its word: its Python prints what it says, its commands succeed, its YAML is a policy's."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from riskengine.policy import load_definition
from riskengine.ruletest import render_report, run_tests

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    assert found, f"the README has no {language} block"
    return found


def commands() -> list[list[str]]:
    """Every `riskengine` command of the shell blocks, as arguments."""
    parts = [part for block in blocks("sh") for line in block.splitlines() for part in line.split("&&")]
    words = [shlex.split(part, comments=True) for part in parts]
    return [line[1:] for line in words if line and line[0] in ("riskengine", ".venv/bin/riskengine")]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of the rules, where examples may write."""
    shutil.copytree(ROOT / "rules", tmp_path / "rules")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("block", blocks("python"))
def test_python_prints_what_it_says(block: str) -> None:
    expected = re.findall(r"^#> (.*)$", block, flags=re.MULTILINE)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert printed.getvalue().splitlines() == expected


@pytest.mark.parametrize("arguments", commands(), ids=lambda arguments: arguments[0])
def test_commands_succeed(arguments: list[str], room: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "riskengine", *arguments],
        cwd=room,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout or (room / "decisions.jsonl").stat().st_size


def test_installing_names_what_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    named = {name for group in re.findall(r"'\.\[([\w,]+)\]'", README) for name in group.split(",")}
    assert named <= extras.keys()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_ci_runs_the_test_command_of_the_readme() -> None:
    tests = [line.split("&&")[-1].split() for block in blocks("sh") for line in block.splitlines()]
    (command,) = [words[1:] for words in tests if "pytest" in words]  # -m pytest ...
    assert f"step {' '.join(command[1:])}" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_rule_shown_is_the_rule_shipped() -> None:
    shown = next(block for block in blocks("yaml") if block.startswith("rules:"))
    rule = load_definition(ROOT / "rules").rules["phone-pool"]
    assert f"when: {rule.when.source}" in shown
    assert f"risk: {rule.risk}" in shown
    assert rule.message is not None
    assert f"{{zh: {rule.message.zh}, en: {rule.message.en}}}" in shown


def test_the_rule_test_shown_passes(room: Path) -> None:
    for path in (room / "rules").glob("*.test.yaml"):
        path.unlink()
    shown = next(block for block in blocks("yaml") if block.startswith("start:"))
    (room / "rules" / "readme.test.yaml").write_text(shown, encoding="utf-8")
    report = run_tests(room / "rules")
    assert report.ok, render_report(report)


def test_what_it_points_to_is_there() -> None:
    for name in re.findall(r"`([\w.]+/[\w./-]*)`", README):
        assert (ROOT / name).exists(), name
