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
    from riskengine.demo import Report, Story, Tally

RULES_SHOWN = 14
PRACTICE_USERS = 100


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
        from riskengine.simulate import expected

        policy = day.with_shipped_model(load_definition(folder)) if model is None else folder
        with Engine.open(policy, model=model) as engine:  # what is wrong is told before anyone waits
            if not as_json:
                say(f"simulating a campaign of {users:,} customers, who learn what is decided ...")
            # Kernels are compiled or loaded before the clock runs.
            with Engine.open(policy, model=model) as practice:
                day.play(practice, seed, PRACTICE_USERS)
            with bar("living through it") as moved:
                total = expected(day.DAYS, users)
                played = day.play(
                    engine, seed, users, lambda done: moved(done, max(total, done)), time.perf_counter
                )
            report, seconds = day.judge(seed, played, engine.definition), played.seconds
    _write(output, day.render_page(report))
    if as_json:
        show_json(_plain(report, seconds, output))
    else:
        show("\n".join(_told(report, seconds, folder, output)))


def _told(report: Report, seconds: float, folder: Path, output: Path) -> Iterator[str]:
    yield from _headline(report, seconds)
    yield from _by_kind(report)
    yield from _by_rule(report)
    yield from _by_alert(report)
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
    abuse, people = report.abuse, sum(report.customers.values())
    ends = report.customers
    yield (
        f"{count(report.events, 'event')} of one day, {abuse.events:,} attempts of abuse among them "
        f"(seed {report.seed})"
    )
    yield f"decided in {seconds:.1f} s, with the days before; what follows is by money and by attempts"
    yield ""
    sides: tuple[tuple[str, Tally, Style], ...] = (
        ("stopped", report.stopped, "green"), ("held for review", report.held, "yellow"),
        ("missed", report.missed, "red"),
    )  # fmt: skip
    for name, tally, style in sides:
        share = _share(tally.fen, abuse.fen)
        after = f"{_yuan(tally.fen):>12} yuan in {count(tally.events, 'attempt')}"
        yield f"  {_fill(name, 16, style)} {share:>6} of the money, {after}"
    refused = ends["denied"] + ends["failed"]
    yield (
        f"  {_fill('hit by mistake', 16, 'yellow')} {_share(refused, people, 2):>6} of {people:,} customers "
        f"refused, {_yuan(report.hit_fen)} yuan,"
    )
    yield (
        f"  {'':16} {_share(ends['asked'], people, 2):>6} asked and let in, "
        f"{_share(ends['held'], people, 2)} held for review"
    )


def _by_kind(report: Report) -> Iterator[str]:
    yield ""
    yield paint(
        f"{'By kind of abuse':20} {'stopped':>8} {'held':>6} {'missed':>7} {'of money':>9} {'yuan lost':>10}"
        f" {'first stop':>11}",
        "bold",
    )
    for kind in report.kinds:
        whole = kind.stopped + kind.held + kind.missed
        if whole.events:
            first = "never" if kind.first_stop_ms is None else f"{kind.first_stop_ms / 60_000:,.0f} min"
            yield (
                f"  {kind.kind:18} {kind.stopped.events:>8,} {kind.held.events:>6,} {kind.missed.events:>7,} "
                f"{_share(kind.stopped.fen, whole.fen):>9} {_yuan(kind.missed.fen):>10} {first:>11}"
            )


def _by_rule(report: Report) -> Iterator[str]:
    yield ""
    yield paint(
        f"{'By rule (* is a limit)':32} {'abuse events':>13} {'after yuan':>14} {'customers hit':>15}", "bold"
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


def _by_alert(report: Report) -> Iterator[str]:
    if report.alerts:
        yield paint(f"{'Alerts that began':38} {'episodes':>8}  {'the first, after minutes':>25}", "bold")
    for alert in report.alerts:
        at = f"{(alert.first_ms - report.slots[0].start_ms) / 60_000:,.0f}"
        key = "" if alert.key is None else f"  {alert.key}"
        yield f"  {alert.name:38} {alert.episodes:>8,}  {at:>5}{key}"


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
        "seconds": seconds,
        "stopped": dataclasses.asdict(report.stopped),
        "held": dataclasses.asdict(report.held),
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


def _share(part: int, whole: int, digits: int = 1) -> str:
    return f"{part / whole:.{digits}%}" if whole else "-"


def _fill(text: str, width: int, style: Style) -> str:
    """Painted, then padded: escape codes have no width."""
    return paint(text, style) + " " * (width - len(text))
