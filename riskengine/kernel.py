"""How every kernel is compiled: once, cached on disk, without the GIL, IEEE arithmetic as written."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a kernel with numba on first use; under NUMBA_DISABLE_JIT=1 it stays plain Python."""
    return cast(
        Callable[P, R],
        numba.njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)(function),
    )
