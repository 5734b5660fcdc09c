"""Where kernels are cached and when they are compiled anew; and that they compute what plain Python does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_parity import told

from riskengine import warming
from riskengine.kernel import PACKAGE, bind, cache_folder
from riskengine.ledger import find_key
from riskengine.stores import slabs
from riskengine.tables import find_row

ROOT = Path(__file__).resolve().parent.parent
INNER = "from riskengine.kernel import jit\n\n\n@jit\ndef inner(x: int) -> int:\n    return x + {}\n"
OUTER = """from riskengine.inner import inner
from riskengine.kernel import jit


@jit
def outer(x: int) -> int:
    return 10 * inner(x)
"""
RUN = "from riskengine.outer import outer; print(outer(1), sum(outer.stats.cache_hits.values()))"
# One scenario in so many: a slice of every kind.
SLICE = 2


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of our name with our way of compiling, and a kernel that calls one of another module."""
    package = tmp_path / "tree" / PACKAGE.name
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(PACKAGE / "kernel.py", package)
    (package / "inner.py").write_text(INNER.format(2))
    (package / "outer.py").write_text(OUTER)
    return package


def start(package: Path, cache: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "NUMBA_CACHE_DIR": str(cache)}
    environment.pop("NUMBA_DISABLE_JIT", None)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", RUN], cwd=package.parent, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, int]:
    """What the kernel answered, and how many kernels came from the cache."""
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    answer, hits = said.split()
    return int(answer), int(hits)


def test_another_version_of_what_a_kernel_calls_is_another_kernel(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert end(start(package, cache)) == (30, 0)
    assert end(start(package, cache)) == (30, 1)
    (package / "inner.py").write_text(INNER.format(3))
    assert end(start(package, cache)) == (40, 0)
    assert end(start(package, cache)) == (40, 1)
    other = shutil.copytree(package.parent, tmp_path / "other") / PACKAGE.name
    (other / "inner.py").write_text(INNER.format(4))
    assert end(start(other, cache)) == (50, 0)
    assert end(start(package, cache)) == (40, 1), "two checkouts do not put out each other's kernels"


def test_a_part_of_other_kernels_is_called_from_python_too(package: Path, tmp_path: Path) -> None:
    """As a part it has no machine code; called by itself, before or after, it is compiled to it."""
    twice = "@jit\ndef twice(x: int) -> int:\n    return outer(outer(x)) + inner(x)\n"
    (package / "twice.py").write_text(INNER.partition("\n")[0] + "\nfrom riskengine.inner import inner\n"
        f"from riskengine.outer import outer\n\n\n{twice}")  # fmt: skip
    calls = ["inner(1)", "outer(1)", "twice(1)"]
    for order in (calls, calls[::-1]):
        cache = str(tmp_path / order[0])
        code = "".join(f"from riskengine.{call[:5]} import {call[:5]}; " for call in calls)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", f"{code}print({', '.join(order)})"],
            env={**os.environ, "PYTHONPATH": str(package.parent), "NUMBA_CACHE_DIR": cache},
            cwd=package.parent, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        answers = {"inner(1)": "3", "outer(1)": "30", "twice(1)": "323"}
        assert done.stdout.split() == [answers[call] for call in order], done.stderr


def test_the_second_process_compiles_what_decisions_and_labels_need_of_a_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = []
    for name in ("observe", "settle", "amend"):
        kernel = getattr(slabs, name)

        def noted(*arguments: Any, kernel: Any = kernel) -> Any:
            called.append(kernel.__name__)
            return kernel(*arguments)

        monkeypatch.setattr(slabs, name, noted)
    warming.main(False)
    assert called == ["observe", "settle", "amend"]
    called.clear()
    warming.main(True)
    assert called == ["observe", "settle"], "labels go by other ways there"


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_damaged_file_of_the_cache_is_as_good_as_none(package: Path, tmp_path: Path, suffix: str) -> None:
    cache = tmp_path / "cache"
    assert end(start(package, cache)) == (30, 0)
    files = [path for path in cache.rglob(f"*.{suffix}") if "outer" in path.name]
    for file in files:
        file.write_bytes(file.read_bytes()[:20])
    assert files
    assert end(start(package, cache)) == (30, 0)
    assert end(start(package, cache)) == (30, 1)


def test_processes_that_start_at_once_share_a_cache(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    started = [start(package, cache) for _ in range(4)]
    assert [end(process)[0] for process in started] == [30] * 4
    assert end(start(package, cache)) == (30, 1)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def folder() -> Path:
    """`cache_folder`, asked for the first time."""
    return cache_folder.__wrapped__()


def test_kernels_are_kept_in_the_folder_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "a" / "b"))
    assert folder() == tmp_path / "a" / "b" / "riskengine"
    assert folder().stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert folder() == tmp_path / "xdg" / "riskengine"


def test_a_folder_that_cannot_be_written_is_left_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    (tmp_path / "file").touch()  # no folder can be made in it, not even by root
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    second = folder()
    assert second.parent == temporary
    second.rmdir()
    second.touch()
    assert folder().parent == temporary
    assert folder() != second


def test_a_folder_that_others_may_write_to_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    """What is loaded from it is run."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    chosen = tmp_path / "riskengine"
    assert folder() == chosen
    for mode in (0o770, 0o707, 0o777):
        chosen.chmod(mode)
        assert folder().parent == temporary
    chosen.chmod(0o755)
    assert folder() == chosen
    monkeypatch.setattr(os, "getuid", lambda: chosen.stat().st_uid + 1)
    last = folder()
    assert last.parent == temporary
    assert last.name.startswith("riskengine-")


def test_without_compiling_every_decision_is_the_same(tmp_path: Path) -> None:
    """What numba makes of the kernels is what Python makes of them, bit for bit."""
    code = f"import json, test_parity\nprint(json.dumps(test_parity.told({SLICE})))"
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(["tests", "."])},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert hasattr(find_key, "py_func"), "this process does compile"
    assert json.loads(done.stdout) == json.loads(json.dumps(told(SLICE)))


def test_a_bound_call_is_that_of_the_kernel_whatever_its_arrays_hold_by_then() -> None:
    keys = np.array([3, 5, 9], np.int64)
    call = bind(find_row, keys, 0, 3, 9)
    assert call() == find_row(keys, 0, 3, 9) == 2
    keys[:] = 1, 9, 12
    assert call() == find_row(keys, 0, 3, 9) == 1
