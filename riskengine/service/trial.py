"""A policy is tried in a process of its own: checked, its rule tests run, and compared with another.

A second of Python beside the scoring thread would hold its answers up; and what hangs can be ended.
`python -m riskengine.service.trial` reads a `Trial` as JSON and writes an `Outcome`, and the policy as it was
read, which the process that serves needs not read again.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import msgspec

from riskengine.definition import Definition
from riskengine.errors import Finding, Place

SECONDS_MAX: Final = 60  # for the tests of a policy; a thousand take ten
WAIT_SECONDS_MAX: Final = 30  # for the trial that runs before
# At first it has what scoring leaves: at a lower priority only, Linux let it go on for 5 ms while a request
# waited. In a flood that may be nothing, just when it makes a new rule urgent: then it begins again at that
# priority. The shipped policy takes 2 s.
IDLE_SECONDS_MAX: Final = 5.0
FILES_MAX: Final = 500
DIFFERENCE_MAX: Final = 200_000  # characters
YAML: Final = (".yaml", ".yml")
READ: Final = (*YAML, ".csv", ".txt")  # what a policy can be made of
IDLE: Final = "idle"  # priorities: what others leave, ...
LOW: Final = "low"  # ... and a little in any case
_ONE: Final = threading.Lock()  # at a time: there may be two cores


class Trial(msgspec.Struct, frozen=True):
    """What is to be tried. `rules` is the folder beside which models are looked for."""

    files: dict[str, str]
    rules: str
    before: dict[str, str] | None = None
    tests: bool = False


class Failed(msgspec.Struct, frozen=True):
    """An expectation of a rule test that did not hold."""

    place: Place
    test: str
    message: str


class Outcome(msgspec.Struct, frozen=True):
    """What came of it. `tests` counts those that were run; None: none were to be."""

    findings: list[Finding]
    tests: int | None = None
    failed: tuple[Failed, ...] = ()
    difference: str = ""

    @property
    def ok(self) -> bool:
        """Whether the policy may be used."""
        return not any(finding.severity == "error" for finding in self.findings)

    @property
    def serves(self) -> bool:
        """Whether it may, and passed the rule tests that it brings."""
        return self.ok and bool(self.tests) and not self.failed


class Tried(NamedTuple):
    """`definition` where it passed its tests too: as `load_definition` has it, with models beside `rules`."""

    outcome: Outcome
    definition: Definition | None


class BusyError(Exception):
    """Other policies are being tried, or this one takes too long."""


def run(trial: Trial) -> Tried:
    """Try a policy in another process. Raises BusyError."""
    if not _ONE.acquire(timeout=WAIT_SECONDS_MAX):
        raise BusyError("other policies are being tried just now: try again")
    said = msgspec.json.encode(trial)
    try:
        try:
            told = _ask(said, IDLE, IDLE_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            told = _ask(said, LOW, SECONDS_MAX)
    except subprocess.TimeoutExpired:
        raise BusyError(f"its rule tests take more than {SECONDS_MAX} s: split the policy's tests") from None
    finally:
        _ONE.release()
    outcome, _, pickled = told.partition(b"\n")
    # What is unpickled runs as code: this was pickled by `main`, in the process that `_ask` started, and came
    # through a pipe that nobody else has. Of who sent the policy it holds texts and numbers.
    definition = pickle.loads(pickled) if pickled else None
    return Tried(msgspec.json.decode(outcome, type=Outcome), definition)


def _ask(said: bytes, priority: str, seconds: float) -> bytes:
    """What a process answers within so many seconds."""
    command = [sys.executable, "-m", "riskengine.service.trial"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        # Told here, not by itself: by the time that its modules are there it had taken 100 ms from scoring.
        _stand_back(process.pid, priority)
        try:
            told, _ = process.communicate(said, seconds)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return told


def _stand_back(process: int, priority: str) -> None:
    """Let others go before it."""
    with suppress(OSError):  # where a sandbox forbids it; or it has ended already
        os.setpriority(os.PRIO_PROCESS, process, 10)
        if priority == IDLE and sys.platform == "linux":
            os.sched_setscheduler(process, os.SCHED_IDLE, os.sched_param(0))


@contextmanager
def laid_out(files: Mapping[str, str]) -> Iterator[Path]:
    """A folder with these files, for as long as the block lasts. Raises ValueError for a name."""
    with tempfile.TemporaryDirectory(prefix="riskengine-policy-") as parent:
        folder = Path(parent) / "rules"
        folder.mkdir()
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        yield folder


def wrong_name(files: Mapping[str, str]) -> str | None:
    """The first name that is no path below a policy's folder, or cannot be a file beside the others."""
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    for name in files:
        path = PurePosixPath(name)
        sound = name.isprintable() and "\\" not in name and name == str(path) and len(name) <= 200
        if not sound or path.is_absolute() or ".." in path.parts or name in folders:
            return name
    return None


def read_folder(folder: str | Path) -> dict[str, str]:
    """What a policy's folder says, by file."""
    root = Path(folder)
    return {
        str(path.relative_to(root)): path.read_text(encoding="utf-8-sig", errors="replace")
        for path in sorted(root.rglob("*"))
        if path.suffix in READ and path.is_file()
    }


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """The unified diff of YAML files; of others only that they changed."""
    parts: list[str] = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        if not name.endswith(YAML):
            what = "added" if old is None else "removed" if new is None else "changed"
            parts.append(f"{name}: {what}\n")
            continue
        lines = difflib.unified_diff(
            (old or "").splitlines(keepends=True),
            (new or "").splitlines(keepends=True),
            "/dev/null" if old is None else f"a/{name}",
            "/dev/null" if new is None else f"b/{name}",
        )
        parts += [line if line.endswith("\n") else f"{line}\n" for line in lines]
    said = "".join(parts)
    return said if len(said) <= DIFFERENCE_MAX else f"{said[:DIFFERENCE_MAX]}\n... (cut)\n"


def _tried(trial: Trial, folder: Path) -> Tried:
    from riskengine import check
    from riskengine.policy import examine

    examined = examine(folder)
    if examined.definition is not None:
        own = dataclasses.replace(examined.definition, folder=trial.rules)
        examined = dataclasses.replace(examined, definition=own)
    outcome = Outcome(check.findings_of(examined), difference=difference(trial.before or {}, trial.files))
    if not trial.tests or not outcome.ok:
        return Tried(outcome, None)
    from riskengine.engine import Engine
    from riskengine.ruletest import run_tests

    def opened(definition: Any, clock: Any) -> Engine:
        return Engine.open(dataclasses.replace(definition, folder=trial.rules), clock=clock)

    report = run_tests(folder, open_engine=opened)
    failed = [
        Failed(
            failure.place,
            result.name,
            "; ".join(f"{m.what}: expected {m.expected}, found {m.found}" for m in failure.mismatches),
        )
        for result in report.results
        for failure in result.failures
    ]
    outcome = msgspec.structs.replace(
        outcome,
        findings=[*outcome.findings, *report.findings],
        tests=len(report.results),
        failed=tuple(failed),
    )
    return Tried(outcome, examined.definition if outcome.serves else None)


def main() -> None:
    """Try what standard input says."""
    trial = msgspec.json.decode(sys.stdin.buffer.read(), type=Trial)
    with laid_out(trial.files) as folder:
        outcome, definition = _tried(trial, folder)
    # Places are told as the sender knows them.
    said = msgspec.json.encode(outcome)
    said = said.replace(f'"{folder}/'.encode(), b'"').replace(f'"{folder}"'.encode(), b'"."')
    sys.stdout.buffer.write(said.replace(f"{folder}/".encode(), b"") + b"\n")
    if definition is not None:
        sys.stdout.buffer.write(pickle.dumps(definition, pickle.HIGHEST_PROTOCOL))


if __name__ == "__main__":
    main()
