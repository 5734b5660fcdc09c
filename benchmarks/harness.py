"""What every benchmark shares: finding them, timing fairly, judging targets, and saying on what they ran.

A benchmark is a module beside this one with TITLE, TARGETS ({result: ">= 5"}) and measure() -> results by
name. It asserts that the answers are right before it times anything.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any, Final

import benchmarks

PACKAGES: Final = (
    "riskengine",
    "numpy",
    "numba",
    "polars",
    "lightgbm",
    "treelite",
    "rule-engine",
    "zen-engine",
    "redis",
)
NO_BENCHMARKS: Final = ("__main__", "harness", "crowd")
COMPARED: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<=": lambda found, bound: found <= bound,
    ">=": lambda found, bound: found >= bound,
    "<": lambda found, bound: found < bound,
    ">": lambda found, bound: found > bound,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target, and what was found; `found` is None where the benchmark gave no such number."""

    name: str
    target: str
    found: float | None
    met: bool


def discover() -> list[str]:
    """The names of all benchmarks, in alphabetical order."""
    modules = pkgutil.iter_modules(benchmarks.__path__)
    return sorted(m.name for m in modules if not m.ispkg and m.name not in NO_BENCHMARKS)


def load(name: str) -> ModuleType:
    """One benchmark. Raises TypeError for a module that is none, and whatever its import raises."""
    loaded = importlib.import_module(f"benchmarks.{name}")
    lacking = [part for part in ("TITLE", "TARGETS", "measure") if not hasattr(loaded, part)]
    if lacking:
        raise TypeError(f"benchmarks/{name}.py lacks {', '.join(lacking)}")
    return loaded


def medians(contenders: Mapping[str, Callable[[], object]], repeats: int = 7) -> dict[str, float]:
    """Median seconds of each contender; they take turns, so that a busy moment hits them all.

    Each runs once unmeasured first: kernels are compiled or loaded then.
    """
    for run in contenders.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def judge(targets: Mapping[str, str], results: Mapping[str, Any]) -> list[Verdict]:
    """Each target against its result. Raises ValueError for a target that cannot be read."""
    verdicts = []
    for name, target in targets.items():
        sign, _, bound = target.partition(" ")
        if sign not in COMPARED:
            raise ValueError(f"the target {target!r} of {name} is not like '>= 5'")
        found = results.get(name)
        met = found is not None and COMPARED[sign](float(found), float(bound))
        verdicts.append(Verdict(name, target, None if found is None else float(found), met))
    return verdicts


def surroundings() -> dict[str, str]:
    """The versions and the hardware that the numbers belong to."""
    return {
        "python": platform.python_version(),
        **dict(_versions()),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
