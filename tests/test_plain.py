"""Kernels as plain Python: no index may leave its array, which compiled kernels ask nobody about."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_no_kernel_of_the_shared_store_leaves_its_arrays() -> None:
    """The scenarios of every store, on a real server, with numba switched off."""
    words = "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "test_stores.py"
    done = subprocess.run(
        [sys.executable, *words, "-k", "plays and valkey"],
        cwd=HERE, env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
