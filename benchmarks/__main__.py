"""`python -m benchmarks [--only NAME] [--data FILE] [--json FILE]`: runs them and says which targets are met.

A wrong answer is a failure (exit 1). A missed target is told as it is, and is none: machines differ.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import harness


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="How fast it is, and whether right."
    )
    parser.add_argument("--only", metavar="NAME", action="append", help="just this one; may be given again")
    parser.add_argument("--data", metavar="FILE", help="the handbook's data (else RISKENGINE_HANDBOOK)")
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    chosen = parser.parse_args(arguments)
    if not __debug__:
        parser.error("run without -O: the answers are checked by assertions")
    if chosen.data is not None:
        os.environ["RISKENGINE_HANDBOOK"] = chosen.data
    known = harness.discover()
    unknown = set(chosen.only or ()).difference(known)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    surroundings = harness.surroundings()
    for name, value in surroundings.items():
        print(f"{name:12} {value}")
    reports = [run(name) for name in known if not chosen.only or name in chosen.only]
    if chosen.json is not None:
        with open(chosen.json, "w", encoding="utf-8") as file:
            json.dump({"surroundings": surroundings, "benchmarks": reports}, file, indent=2)
            file.write("\n")
    wrong = [report["name"] for report in reports if report["error"] is not None]
    if wrong:
        print(f"\nfailed: {', '.join(wrong)}")
    return 1 if wrong else 0


def run(name: str) -> dict[str, Any]:
    """One benchmark: its results and verdicts, or the error that kept it from a right answer."""
    print(f"\n{name}", end="", flush=True)
    began = time.perf_counter()
    try:
        module = harness.load(name)
        print(f": {module.TITLE}", flush=True)
        results = module.measure()
        verdicts = harness.judge(module.TARGETS, results)
    except Exception as error:  # one that fails leaves the others to run
        print()
        traceback.print_exc(file=sys.stdout)
        print("  WRONG answer" if isinstance(error, AssertionError) else "  no answer, so no timing")
        return {"name": name, "error": f"{type(error).__name__}: {error}"}
    show(results, verdicts)
    print(f"  took {time.perf_counter() - began:.1f} s")
    told = [{"name": v.name, "target": v.target, "found": v.found, "met": v.met} for v in verdicts]
    return {"name": name, "title": module.TITLE, "error": None, "results": results, "targets": told}


def show(results: Mapping[str, Any], verdicts: Sequence[harness.Verdict]) -> None:
    width = max(map(len, [*results, *(verdict.name for verdict in verdicts)]), default=0)
    targets = {verdict.name: verdict for verdict in verdicts}
    for name, value in results.items():
        verdict = targets.get(name)
        said = "" if verdict is None else f"   {'met' if verdict.met else 'MISSED'} (target {verdict.target})"
        print(f"  {name:{width}}  {number(value):>12}{said}")
    for verdict in verdicts:
        if verdict.found is None:
            print(f"  {verdict.name:{width}}  {'not measured':>12}   MISSED (target {verdict.target})")


def number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
