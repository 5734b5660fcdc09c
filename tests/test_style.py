"""The style of the code as ordinary tests: layers, clocks, docstrings, kernels and what lies at the top."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import riskengine

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "riskengine"

# Imports point down or sideways, never up. A new module says here which floor it lives on.
FLOORS: tuple[tuple[str, ...], ...] = (
    # values, and what reads and writes them
    (
        "errors", "fibers", "kernel", "calendar", "geo", "hashing", "definition", "vocabulary", "source",
        "normal", "scalars", "sharing", "spreads", "intake", "reading", "columns", "event", "files",
        "entries", "answer", "rooms",
    ),
    # arithmetic on them
    ("cells", "layout", "ledger", "aggregates", "packing", "expression", "program", "decision", "csvtable",
     "tables", "footprint", "shipped"),
    ("features", "rules", "modeltext", "forest", "calibration", "card", "stores", "journal", "masking",
     "alerts"),
    ("sections", "policy", "models", "spreading", "compiled", "served", "watch",
     "warming", "judge", "journaled", "turns", "motions", "engine"),
    ("rows", "replay", "rebuild"),
    # consumers of the engine and of replay
    (
        "check", "ruletest", "samples", "training", "evaluation", "charts", "publishing", "reporting",
        "judging", "rehearsal", "backtest", "simulate", "service", "client",
    ),
    ("demo",),
    ("cli", "__main__"),
)  # fmt: skip
LAYERS = {module: layer for layer, modules in enumerate(FLOORS) for module in modules}
MAY_READ_A_CLOCK = {
    "engine",
    "stores",
    "journal",
    "service",
    "cli",
    "client",
    "fibers",
}  # stores and fibers: how long to wait for a server; journal: how long what may be lost has waited
CLOCKS = {
    ("time", "time"), ("time", "time_ns"), ("time", "monotonic"), ("time", "monotonic_ns"),
    ("time", "perf_counter"), ("time", "perf_counter_ns"), ("time", "process_time"),
    ("time", "gmtime"), ("time", "localtime"),
    ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today"),
}  # fmt: skip
AT_THE_TOP = {"riskengine", "rules", "models", "benchmarks", "tests", "pyproject.toml", "README.md"}
PUBLIC = {
    "Decision", "Engine", "EventError", "ModelScore", "PolicyError", "Problem", "Reason", "RiskEngineError",
}  # fmt: skip

MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]


def test_every_module_has_its_layer() -> None:
    unknown = {room(path) for path in MODULES} - LAYERS.keys() - {"riskengine"}
    assert not unknown, "add these to FLOORS of this file, on the floor they belong to"


def test_imports_point_down() -> None:
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in MODULES
        if room(path) != "riskengine"  # the package itself shows its public names
        for name, line in imports(path)
        if LAYERS.get(name, 0) > LAYERS.get(room(path), 0)
    ]
    assert upward == []


def test_imports_have_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        if room(path) != "riskengine":
            graph.setdefault(room(path), set()).update(
                name for name, _ in imports(path) if name != room(path)
            )
    TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def test_only_the_edges_read_a_clock() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {ast.unparse(node)}"
        for path in MODULES
        if room(path) not in MAY_READ_A_CLOCK
        for node in ast.walk(tree(path))
        if reads_a_clock(node)
    ]
    assert found == []


def test_every_module_says_what_it_is() -> None:
    assert [str(path.relative_to(ROOT)) for path in SOURCES if not ast.get_docstring(tree(path))] == []


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"util", "utils", "helper", "helpers", "misc", "common"}
    assert [str(path.relative_to(ROOT)) for path in SOURCES if path.stem in drawers] == []


def test_kernels_are_compiled_one_way() -> None:
    """Only kernel.py knows numba's options; a stray `njit` could bring fastmath or lose the cache."""
    options = {"njit", "jit", "vectorize", "guvectorize"}
    other = [
        f"{path.relative_to(ROOT)}: {ast.unparse(node)}"
        for path in MODULES
        if room(path) != "kernel"
        for node in ast.walk(tree(path))
        if (
            isinstance(node, ast.Attribute)
            and ast.unparse(node.value) in ("numba", "nb")
            and node.attr in options
        )
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "numba"
            and options & {a.name for a in node.names}
        )
    ]
    assert other == []


def test_an_exception_from_the_linters_gives_its_reason() -> None:
    ends_bare = re.compile(r"#\s*(type:\s*ignore(\[[\w, -]*\])?|noqa(:\s*[A-Z0-9, ]+)?)\s*(# as above)?\s*$")
    bare = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if ends_bare.search(line)
    ]
    assert bare == []


def test_no_test_is_skipped() -> None:
    pattern = re.compile(r"\b(pytest|mark)\.(skip|skipif|xfail|importorskip)\b")
    skipped = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if pattern.search(path.read_text(encoding="utf-8"))
    ]
    assert skipped == []


def test_nothing_else_lies_at_the_top() -> None:
    assert {name for name in top() if not name.startswith(".")} <= AT_THE_TOP


def test_public_names() -> None:
    """What other people's code may import. A name more or less is a decision, not an accident."""
    assert set(riskengine.__all__) == PUBLIC
    assert [name for name in PUBLIC if not hasattr(riskengine, name)] == []


@pytest.mark.parametrize(
    ("text", "clock"),
    [
        ("time.time()", True),
        ("datetime.datetime.now(UTC)", True),
        ("datetime.now()", True),
        ("dt.date.today()", True),
        ("event.time", False),
        ("datetime.fromisoformat(text)", False),
    ],
)
def test_a_clock_is_known_when_seen(text: str, clock: bool) -> None:
    assert any(reads_a_clock(node) for node in ast.walk(ast.parse(text))) is clock


def room(path: Path) -> str:
    """The module or subpackage a file belongs to: riskengine/stores/memory.py is in `stores`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "riskengine" if parts == ("__init__",) else parts[0]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of ours that a file imports when it runs; what only a type checker sees is left out."""
    whole = tree(path)
    typing_only = {
        id(inner)
        for node in ast.walk(whole)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for branch in node.body
        for inner in ast.walk(branch)
    }
    for node in ast.walk(whole):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("riskengine."):
                yield name.split(".")[1], node.lineno


def reads_a_clock(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return any((node.module, alias.name) in CLOCKS for alias in node.names)
    if not isinstance(node, ast.Attribute):
        return False
    owner = node.value
    name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
    return (name, node.attr) in CLOCKS


def top() -> set[str]:
    """What the repository has at its top; of a copy without history, what lies there."""
    if (ROOT / ".git").exists() and (git := shutil.which("git")):
        listed = subprocess.run(
            [git, "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
        return {line.split("/")[0] for line in listed.splitlines()}
    return {path.name for path in ROOT.iterdir()}
