"""The command line: what it takes, what it prints, and how it fails. Work is done by the modules below.

Exit codes: 0 good, 1 findings (a bad policy, a failed test, a rejected line), 2 the command could not be
done as it was given, 130 interrupted, 70 a bug of ours. Answers go to standard output, the rest to standard
error; no traceback reaches a user. Heavy imports happen inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from riskengine.errors import EventError, PolicyError, RiskEngineError

if TYPE_CHECKING:
    from riskengine.engine import Engine
    from riskengine.event import Label
    from riskengine.files import Chunk, Output, Progress, Rejects

GOOD, FINDINGS, USAGE, BUG, INTERRUPTED = 0, 1, 2, 70, 130
BAR_AFTER_SECONDS = 2.0

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Real-time fraud and anti-abuse scoring: counters, analysts' rules and a model.",
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and end the process. RISKENGINE_DEBUG=1 shows tracebacks."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Everything that can be raised becomes a message here."""
    try:
        app(args=list(arguments) if arguments is not None else None, prog_name="riskengine")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else GOOD if end.code is None else USAGE
        if code == INTERRUPTED:
            _say("interrupted")
        return code
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINDINGS
    except (PolicyError, EventError) as error:
        return _fail(error, FINDINGS)
    except RiskEngineError as error:
        return _fail(error, USAGE)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(error, USAGE, f"{name}{error.strerror or error}")
    except Exception as error:  # the last line of defence: a bug, told in one line
        kind = type(error).__name__
        return _fail(
            error,
            BUG,
            f"this is a bug in riskengine ({kind}: {_first_line(error)}). Please report it to its "
            "maintainers, with the command and what it prints when RISKENGINE_DEBUG=1 is set.",
        )
    return GOOD


RulesArgument = Annotated[
    Path | None,
    typer.Argument(help="The policy folder (./rules, else the shipped one).", show_default=False),
]
RulesOption = Annotated[
    Path | None,
    typer.Option(
        "--rules",
        metavar="DIR",
        help="The policy folder (./rules, else the shipped one).",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        try:
            number = metadata.version("riskengine")
        except metadata.PackageNotFoundError:
            number = "(not installed: a checkout)"
        typer.echo(f"riskengine {number}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """What stands before a command."""


@app.command()
def check(
    rules: RulesArgument = None,
    format: Annotated[
        Literal["text", "json", "github", "sarif"], typer.Option("--format", help="How findings are told.")
    ] = "text",
    explain: Annotated[bool, typer.Option("--explain", help="Also say what each counter costs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Lint a policy: every error and warning, with its place.

    Warnings alone are no failure.
    """
    from riskengine import check as checker
    from riskengine.policy import examine

    examined = examine(_rules_folder(rules))
    findings = checker.findings_of(examined)
    errors = sum(finding.severity == "error" for finding in findings)
    if as_json or format == "json":
        answer: dict[str, Any] = {"ok": not errors, "findings": findings}
        if explain and examined.definition is not None:
            answer["explain"] = checker.explain(examined.definition)
        _print_json(answer)
    else:
        _print(checker.report(findings, format))
        if explain and examined.definition is not None:
            _print(checker.explain_text(examined.definition))
    raise typer.Exit(FINDINGS if errors else GOOD)


@app.command("test")
def run_rule_tests(
    rules: RulesArgument = None,
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Fail where a rule has no firing or no non-firing example.")
    ] = False,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="PATTERN", help="Only tests with this in 'file: name'; * and ? work."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the rule tests (*.test.yaml) of a policy.

    No test at all is a failure.
    """
    from riskengine import ruletest

    try:
        report = ruletest.run_tests(_rules_folder(rules), run, coverage=coverage, stopwatch=time.perf_counter)
    except PolicyError as error:
        if not as_json:
            raise
        _print_json({"ok": False, "findings": error.findings})
        raise typer.Exit(FINDINGS) from None
    _print(ruletest.to_json(report).decode() if as_json else ruletest.render_report(report))
    raise typer.Exit(GOOD if report.ok else FINDINGS)


@app.command()
def score(
    input_: Annotated[
        str, typer.Option("--in", metavar="FILE", help="Events: .jsonl or .parquet; - is standard input.")
    ],
    output: Annotated[
        str,
        typer.Option("--out", metavar="FILE", help="Decisions: .jsonl or .parquet; - is standard output."),
    ],
    rules: RulesOption = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Labels; each goes in before the first later event."),
    ] = None,
    store: Annotated[str, typer.Option(metavar="URL", help="Where counters are kept.")] = "memory://",
    journal: Annotated[
        str | None, typer.Option(metavar="URL", help="Keep a journal, as sqlite:///FILE.", show_default=False)
    ] = None,
    features: Annotated[bool, typer.Option("--features", help="Also write every feature.")] = False,
    sort: Annotated[
        bool, typer.Option("--sort", help="Score by time; without, the file's order is arrival order.")
    ] = False,
    rejects: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Where lines go that cannot be scored.", show_default=False),
    ] = None,
) -> None:
    """Score a file of events.

    Time is the events' own: "now" is the latest time seen so far.
    Lines that cannot be scored are told and counted; the exit code is then 1.
    """
    from riskengine import files
    from riskengine.engine import Engine

    _refuse_same_file(input_, output)
    actions: Counter[str] = Counter()
    progress = files.Progress()
    interrupted, unknown = False, 0
    with (
        Engine.open(_rules_folder(rules), store=store, journal=journal) as engine,
        files.Rejects(rejects) as refused,
        files.open_output(output, _feature_types(engine) if features else None) as written,
        _bar(progress) as shown,
    ):
        began = time.perf_counter()
        try:
            known = files.read_labels(labels, refused.add) if labels is not None else []
            chunks = files.read_events(input_, refused.add, sort=sort, progress=progress)
            counted = {f.label for f in engine.definition.features.values() if f.label is not None}
            parts = files.merge(chunks, known, counted)
            unknown = _score_all(engine, parts, features, written, refused, actions, shown)
        except KeyboardInterrupt:
            interrupted = True
    _summarise(actions, refused, rejects, time.perf_counter() - began)
    if unknown:
        _say(f"{_count(unknown, 'label')} {'is' if unknown == 1 else 'are'} of no event seen before it")
    if interrupted:
        _say(f"interrupted: the {_count(written.written, 'decision')} made until then are in {output}")
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(FINDINGS if refused.count else GOOD)


# -- score


def _score_all(
    engine: Engine,
    parts: Iterator[Chunk | Label],
    features: bool,
    output: Output,
    rejects: Rejects,
    actions: Counter[str],
    shown: Callable[[], None],
) -> int:
    """Score, write and count; return how many labels were of no event seen before them."""
    from riskengine.files import Chunk

    latest_ms = unknown = 0
    for part in parts:
        if not isinstance(part, Chunk):
            unknown += not engine.label(part.event_id, part.label, part.time, part.source)
            continue
        # A batch is scored and written whole or not at all, so that no line is cut in the middle.
        with _interrupts_wait():
            now = part.now(latest_ms)
            latest_ms = int(now[-1])
            decisions = []
            results = (
                engine.score_many(part.events, features, now=now)
                if part.columns is None
                else engine.score_columns(part.columns, features, now=now)
            )
            for i, result in enumerate(results):
                if isinstance(result, EventError):
                    rejects.add(part.reject(i, str(result)))
                else:
                    decisions.append(result)
            output.write(decisions)
            actions.update(decision.action for decision in decisions)
        shown()
    return unknown


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C inside takes effect at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        asked.append(number)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


@contextmanager
def _bar(progress: Progress) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error, if that is a terminal and the work takes long enough to need one."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("scoring"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("", total=None)
    began = time.monotonic()

    def shown() -> None:
        if bar.live.is_started or time.monotonic() - began > BAR_AFTER_SECONDS:
            bar.start()
            bar.update(task, completed=progress.done, total=progress.total)

    try:
        yield shown
    finally:
        bar.stop()


def _summarise(actions: Counter[str], rejects: Rejects, rejects_file: str | None, seconds: float) -> None:
    count = actions.total()
    for reject in rejects.first:
        _say(str(reject))
    if rejects.count > len(rejects.first):
        _say(f"... and {rejects.count - len(rejects.first):,} more")
    shares = ", ".join(f"{name} {n:,} ({n / count:.1%})" for name, n in actions.most_common())
    _say(f"scored {_count(count, 'event')} in {seconds:.1f} s ({count / seconds:,.0f}/s)")
    if shares:
        _say(shares)
    if rejects.count:
        where = f"they are in {rejects_file}" if rejects_file else "name a file with --rejects to keep them"
        _say(f"{_count(rejects.count, 'line')} could not be used: {where}")


def _feature_types(engine: Engine) -> dict[str, str]:
    return {name: feature.type for name, feature in engine.definition.features.items()}


def _refuse_same_file(source: str, target: str) -> None:
    if source == "-" or target == "-" or not (os.path.exists(source) and os.path.exists(target)):
        return
    if os.path.samefile(source, target):
        raise typer.BadParameter(f"--out is the same file as --in: {target}")


# -- common


def _rules_folder(given: Path | None) -> Path:
    """What was named, else ./rules, else the policy that ships with the package."""
    if given is not None:
        return given
    here = Path("rules")
    if here.is_dir():
        return here
    shipped = _shipped("rules")
    _say(f"there is no ./rules: using the policy that ships with riskengine ({shipped})")
    return shipped


def _shipped(name: str) -> Path:
    """A folder that an installed wheel carries inside the package, and a checkout beside it."""
    package = Path(__file__).resolve().parent
    inside = package / "_shipped" / name
    return inside if inside.is_dir() else package.parent / name


def _fail(error: BaseException, code: int, message: str | None = None) -> int:
    if os.environ.get("RISKENGINE_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    _say(f"error: {message or error}")
    return code


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _print(text: str) -> None:
    print(text.rstrip("\n"))


def _print_json(value: Any) -> None:
    import msgspec

    _print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
