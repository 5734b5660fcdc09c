"""`riskengine demo`: a campaign day under attack, scored on the embedded store and told in a page of text."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from riskengine.cli.compiling import compiling_told
from riskengine.cli.terminal import Style, bar, count, paint, say, show, show_json
from riskengine.errors import RiskEngineError
from riskengine.shipped import shipped

if TYPE_CHECKING:
    from riskengine.demo import Report, Story

RULES_SHOWN = 14
PRACTICE_EVENTS = 512


def demo(
    output: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the HTML page goes.")] = Path(
        "riskengine-demo.html"
    ),
    rules: Annotated[
        Path | None,
        typer.Option(
            "--rules", metavar="DIR", help="Your policy instead of the shipped one.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another model than the policy's, or none.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed is another day.")] = 7,
    users: Annotated[int, typer.Option(min=100, max=100_000, help="Ordinary customers.")] = 10_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Watch a campaign day under attack: what is stopped, missed and hit by mistake.

    Everything is simulated and happens in this process; the page needs no network.
    """
    _refuse_unwritable(output)
    folder = rules if rules is not None else shipped("rules")
    with compiling_told():
        from riskengine import demo as day
        from riskengine.engine import Engine
        from riskengine.policy import load_definition
        from riskengine.simulate import simulate

        policy = day.watched_by_model(load_definition(folder)) if model is None else folder
        with Engine.open(policy, model=model) as engine:  # what is wrong is told before anyone waits
            if not as_json:
                say(f"simulating a campaign day of {users:,} customers, and scoring it ...")
            with bar("simulating") as moved:
                traffic = simulate(seed, users=users, shown=moved)
            # Kernels are compiled or loaded before the clock runs.
            with Engine.open(policy, model=model) as practice:
                day.play(practice, traffic.events[:PRACTICE_EVENTS], lambda done: None)
            with bar("scoring") as moved:
                total = len(traffic.events)
                began = time.perf_counter()
                decisions = day.play(engine, traffic.events, lambda done: moved(done, total))
                seconds = time.perf_counter() - began
            report = day.judge(seed, traffic, decisions, engine.definition)
    _write(output, day.render_page(report))
    if as_json:
        show_json(_plain(report, seconds, output))
    else:
        show("\n".join(_told(report, seconds, folder, output)))


def _told(report: Report, seconds: float, folder: Path, output: Path) -> Iterator[str]:
    yield from _headline(report, seconds)
    yield from _by_kind(report)
    yield from _by_rule(report)
    yield ""
    yield paint("Three decisions" if len(report.stories) == 3 else "Decisions", "bold")
    for number, story in enumerate(report.stories, 1):
        yield from _story(number, story)
    yield paint("Try next", "bold")
    for command, why in _next(folder):
        yield f"  {command:34}  {paint(f'# {why}', 'dim')}"
    yield ""
    yield f"The day in pictures: {output.resolve()}"


def _headline(report: Report, seconds: float) -> Iterator[str]:
    abuse = report.stopped + report.missed
    people = sum(report.customers.values())
    denied = report.customers["deny"]
    yield (
        f"{count(report.events, 'event')} of one day, {abuse.events:,} of them abuse (seed {report.seed}), "
        f"scored in {seconds:.1f} s"
    )
    yield ""
    lines: tuple[tuple[str, int, int, str, Style], ...] = (
        ("stopped", report.stopped.events, abuse.events, f"{_yuan(report.stopped.fen)} yuan kept", "green"),
        ("missed", report.missed.events, abuse.events, f"{_yuan(report.missed.fen)} yuan lost", "red"),
        (
            "hit by mistake", report.hit, people,
            f"{denied:,} denied, {report.hit - denied:,} asked or held", "yellow",
        ),
    )  # fmt: skip
    for name, events, whole, rest, style in lines:
        of = f"of {whole:,} {'customers' if name == 'hit by mistake' else 'abuse'}"
        yield f"  {_fill(name, 15, style)} {events:>6,} {of:19} {_share(events, whole):>6}   {rest}"


def _by_kind(report: Report) -> Iterator[str]:
    yield ""
    yield paint(
        f"{'By kind of abuse':26} {'stopped':>9} {'missed':>9} {'yuan kept':>14} {'yuan lost':>14}", "bold"
    )
    for kind in report.kinds:
        yield (
            f"  {kind.kind:24} {kind.stopped.events:>9,} {kind.missed.events:>9,} "
            f"{_yuan(kind.stopped.fen):>14} {_yuan(kind.missed.fen):>14}"
        )


def _by_rule(report: Report) -> Iterator[str]:
    yield ""
    yield paint(
        f"{'By rule (* is a limit)':32} {'abuse stopped':>13} {'yuan kept':>14} {'customers hit':>15}", "bold"
    )
    live = [rule for rule in report.rules if not rule.is_shadow]
    for rule in live[:RULES_SHOWN]:
        name = f"{rule.name}{' *' if rule.is_limit else ''}"
        yield f"  {name:30} {rule.abuse.events:>13,} {_yuan(rule.abuse.fen):>14} {rule.customers:>15,}"
    if len(live) > RULES_SHOWN:
        yield f"  and {len(live) - RULES_SHOWN} more: see the page"
    watched = [rule for rule in report.rules if rule.is_shadow]
    if watched:
        yield paint("In shadow (acting on nobody yet)  abuse seen  missed by others  customers seen", "bold")
    for rule in watched:
        name = f"{rule.name}{' *' if rule.is_limit else ''}"
        yield f"  {name:30} {rule.abuse.events:>11,} {rule.abuse_missed:>17,} {rule.customers:>15,}"


def _story(number: int, story: Story) -> Iterator[str]:
    import textwrap

    yield f"{number}. {story.title}"
    yield from _wrapped(story.what, "   ")
    for because in story.because:
        yield from _wrapped(f"- {because.name} {because.does}: {because.message}.", "   ", "     ")
        yield from textwrap.wrap(because.asks, 78, initial_indent="     ", subsequent_indent="       ")
        if because.saw:
            yield from _wrapped(f"Here {because.saw}.", "     ")
    yield from _wrapped(story.risk, "   ")
    yield ""


def _wrapped(text: str, first: str, rest: str | None = None) -> Iterator[str]:
    import textwrap

    yield from textwrap.wrap(
        text, 78, initial_indent=first, subsequent_indent=first if rest is None else rest
    )


def _next(folder: Path) -> Iterator[tuple[str, str]]:
    if folder == shipped("rules"):
        yield "riskengine init rules", "your own copy of the policy"
        folder = Path("rules")
    yield f"riskengine check {folder}", "after every edit: places and mends"
    yield f"riskengine test {folder}", "the examples beside the rules"
    yield f"riskengine demo --rules {folder}", "this day again, under your rules"


def _plain(report: Report, seconds: float, output: Path) -> dict[str, Any]:
    """What --json prints: the report as it is, with its sums; money in fen."""
    import dataclasses

    return {
        "ok": True,
        "events": report.events,
        "seconds": seconds,
        "stopped": dataclasses.asdict(report.stopped),
        "missed": dataclasses.asdict(report.missed),
        "hit": report.hit,
        **dataclasses.asdict(report),
        "page": str(output.resolve()),
    }


def _refuse_unwritable(output: Path) -> None:
    if output.is_dir():
        raise RiskEngineError(f"{output} is a folder. Name a file, such as {output / 'demo.html'}")
    if not output.parent.is_dir():
        raise RiskEngineError(
            f"{output} cannot be written: there is no folder {output.parent}. Make it first."
        )
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise RiskEngineError(
            f"{output} cannot be written: you may not write into {output.parent.resolve()}. "
            "Name another file with --out."
        )


def _write(output: Path, page: str) -> None:
    partial = output.with_name(f"{output.name}.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)


def _yuan(fen: int) -> str:
    return f"{fen / 100:,.2f}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _fill(text: str, width: int, style: Style) -> str:
    """Painted, then padded: escape codes have no width."""
    return paint(text, style) + " " * (width - len(text))
