"""The README keeps its word: what it shows is what happens, in an installation made from the wheel.

The wheel is built and installed into a fresh environment outside the checkout, with a cache of its own. Its
dependencies come from the environment that runs the tests: to install those again would take minutes and test
pip; that they are declared is a test of its own.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from riskengine.policy import load_definition
from riskengine.ruletest import render_report, run_tests

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Distributions that are imported under another name.
IMPORTED_AS = {"prometheus-client": "prometheus_client", "pyyaml": "yaml", "scikit-learn": "sklearn"}


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    assert found, f"the README has no {language} block"
    return found


@dataclass(frozen=True)
class Step:
    """A command of the README, and the lines that it shows."""

    command: str
    shown: list[str]


def session() -> list[Step]:
    """Every command of the console blocks, in order: one reader does them all, in one folder."""
    steps: list[Step] = []
    for line in "".join(blocks("console")).splitlines():
        if line.startswith("$ "):
            steps.append(Step(line[2:], []))
        else:
            steps[-1].shown.append(line)
    return steps


# -- installed from the wheel


@dataclass(frozen=True)
class Installed:
    """A fresh environment with riskengine in it, and an empty folder to work in."""

    python: Path
    room: Path
    environment: Mapping[str, str]

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            shell=True,
            cwd=self.room,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(made)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = made.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    base = tmp_path_factory.mktemp("fresh")
    environment = base / "venv"
    venv.create(environment, symlinks=True)
    bin_folder = environment / "bin"
    (site,) = environment.glob("lib/python*/site-packages")
    outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "dependencies.pth").write_text("\n".join(sorted(outer)) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(bin_folder / "python"), "install", "--no-deps"]
    done = subprocess.run(
        [*pip, "--force-reinstall", str(wheel)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    room = base / "room"
    room.mkdir()
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    path = f"{bin_folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return Installed(
        bin_folder / "python",
        room,
        {**kept, "PATH": path, "NUMBA_CACHE_DIR": str(base / "cache"), "COLUMNS": "80"},
    )


def test_the_wheel_carries_what_init_copies(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = [path for path in (ROOT / "rules").rglob("*") if path.is_file()]
    assert shipped
    for path in shipped:
        assert f"riskengine/_shipped/rules/{path.relative_to(ROOT / 'rules')}" in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_every_command_of_the_readme(installed: Installed) -> None:
    """From the first run ever, which compiles the kernels and says so, to the last."""
    where = installed.run("python -c 'import riskengine; print(riskengine.__file__)'").stdout
    assert where.startswith(str(installed.python.parent.parent)), where
    steps = session()
    commands = [step.command.split()[1] for step in steps if step.command.startswith("riskengine")]
    assert commands[:3] == ["demo", "demo", "init"]
    for number, step in enumerate(steps):
        done = installed.run(step.command)
        told = plain(done.stdout)
        assert "Traceback" not in told
        if number == 0:
            assert told.startswith("first use of some kernels: compiling them, once, into "), told
        expected_failure = any(": error: " in line for line in step.shown)
        assert done.returncode == (1 if expected_failure else 0), f"{step.command}\n{told}"
        missing = first_missing(told.splitlines(), [plain(line) for line in step.shown])
        assert missing is None, f"$ {step.command}\n{told}\n\nlacks: {missing}"
    page = installed.room / "riskengine-demo.html"
    assert page.stat().st_size > 10_000
    assert (installed.room / "decisions.jsonl").stat().st_size
    assert "compiling" not in installed.run("riskengine test rules").stdout


def plain(text: str) -> str:
    """Text without what differs from run to run: seconds and rates."""
    return re.sub(r"[\d.]+ s( \([\d,]+/s\))?$", "... s", text, flags=re.MULTILINE)


def first_missing(told: list[str], shown: list[str]) -> str | None:
    """The first line shown that was not told, in order; `...` stands for any lines."""
    lines: Iterator[str] = iter(told)
    for line in shown:
        if line != "..." and not any(found == line for found in lines):
            return line
    return None


def test_every_import_is_a_declared_dependency() -> None:
    """What the fresh environment above borrows, a real installation gets from the wheel's metadata."""
    named = [re.split(r"[<>=~! ;\[]", line)[0].lower() for line in PROJECT["dependencies"]]
    known = {IMPORTED_AS.get(name, name) for name in named} | {"riskengine"} | set(sys.stdlib_module_names)
    imported = {
        name.split(".")[0]
        for path in (ROOT / "riskengine").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= known | {"llvmlite"}  # numba's own


# -- the rest of what it shows


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


def test_installing_names_what_exists() -> None:
    named = {name for group in re.findall(r"'\.\[([\w,]+)\]'", README) for name in group.split(",")}
    assert named <= PROJECT["optional-dependencies"].keys()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_the_two_commands() -> None:
    """Each installs, then does the one thing; what they end in runs in this file and in .ci/run."""
    first, second = (block.strip() for block in blocks("sh"))
    assert [part.split()[0] for part in first.split(" && ")] == [
        "python3",
        ".venv/bin/pip",
        ".venv/bin/riskengine",
    ]
    assert first.endswith(f".venv/bin/{session()[0].command}")
    tests = second.split("&&")[-1].split()[1:]
    assert f"step {' '.join(tests[1:])}" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


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
