"""`riskengine journal`: looks into a journal, takes from it, and keeps it small."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from riskengine.cli.commands import Commands
from riskengine.cli.terminal import bar, count, say, show, show_json
from riskengine.errors import RiskEngineError

if TYPE_CHECKING:
    from riskengine.journal import Journal

JournalOption = Annotated[
    str,
    typer.Option(
        "--journal", metavar="URL", help="Where it is: sqlite:///FILE or postgresql://USER@HOST/DATABASE."
    ),
]
_DEFAULT = "sqlite:///journal.db"
_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

journal = Commands(no_args_is_help=True, help="Look into a journal, take from it, and keep it small.")


@journal.command()
def info(
    journal: JournalOption = _DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what a journal holds: how many entries of each kind, since when, and how large it is."""
    from riskengine.journal import keeping

    with opened(journal) as found:
        facts = keeping.info(found)
    if as_json:
        show_json(facts)
        return
    since, until = shown_time(facts["first_ms"]), shown_time(facts["last_ms"])
    show(f"{facts['journal']}: layout {facts['layout']}, {facts['bytes']:,} bytes")
    show(f"{count(facts['decisions'], 'decision')} from {since} to {until}")
    show(
        ", ".join(f"{facts[name]:,} {name}" for name in ("labels", "edits", "releases", "policies", "alerts"))
    )
    if facts["sealed_blocks"]:
        key = facts["key"] or "not given"
        show(f"personal values are encrypted in {count(facts['sealed_blocks'], 'block')} (key: {key})")


@journal.command("show")
def show_event(
    event_id: Annotated[str, typer.Argument(metavar="EVENT_ID")],
    journal: JournalOption = _DEFAULT,
) -> None:
    """Show a decision, as JSON; where RISKENGINE_JOURNAL_KEY is set, with the personal values in clear."""
    import msgspec

    from riskengine.journal import JournalError, keeping

    unread: JournalError | None = None
    with opened(journal) as found:
        entry = found.decision(event_id)
        if entry is None:
            raise RiskEngineError(f"the journal has no event of this id. Look at the URL: {journal}")
        told = {
            "seq": entry.seq,
            "decision": msgspec.Raw(entry.decision),
            "event": entry.event,
            "labels": [
                {"label": label.label, "time": label.time_ms, "source": label.source}
                for label in found.labels(event_id)
            ],
        }
        if found.sealer is not None:
            try:
                told["personal"] = keeping.in_clear(found, event_id)
            except JournalError as error:
                unread = error
    show_json(told)
    if isinstance(unread, keeping.UnsealedError):
        say(str(unread))
    elif unread is not None:
        raise unread


@journal.command()
def prune(
    older: Annotated[str, typer.Option("--older", metavar="AGE", help="As 400d, 36h.")],
    journal: JournalOption = _DEFAULT,
) -> None:
    """Delete decisions, labels, releases and episodes of alerts that are older, for good.

    Serving goes on meanwhile. Edits of lists and tables stay: what is in effect now may be old, and a rebuild
    needs it.
    """
    from riskengine.journal import keeping

    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", older)
    if match is None:
        raise typer.BadParameter(f"{older} is no age: write 400d, 36h, 90m or 10s", param_hint="--older")
    before_ms = time.time_ns() // 1_000_000 - int(match[1]) * _UNITS_MS[match[2]]
    with opened(journal) as found, bar("pruning") as moved:
        done = keeping.prune(found, before_ms, moved)
    say(f"deleted {count(done, 'decision')} from before {shown_time(before_ms)}")


@journal.command()
def export(
    output: Annotated[str, typer.Option("--out", metavar="FILE", help="Decisions: .parquet.")],
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="TIME", help="As 2026-11-11 or 2026-11-11T08:00:00Z.", show_default=False
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Up to this time.", show_default=False)
    ] = None,
    journal: JournalOption = _DEFAULT,
) -> None:
    """Write the decisions of a time span to Parquet, each with its event (masked), row and labels."""
    from riskengine.journal import keeping

    if not output.endswith((".parquet", ".pq")):
        raise typer.BadParameter(
            f"decisions are written as Parquet: name {output} .parquet", param_hint="--out"
        )
    from_ms, to_ms = _time(from_, "--from", 0), _time(to, "--to", 2**62)
    if from_ms >= to_ms:
        raise typer.BadParameter(
            f"the span would begin at {shown_time(from_ms)} (--from) and end at {shown_time(to_ms)} (--to): "
            "--from must be the earlier of the two",
            param_hint="--from",
        )
    with opened(journal) as found, bar("exporting") as moved:
        done = keeping.export(found, output, from_ms, to_ms, moved)
    say(f"wrote {count(done, 'decision')} to {output}")


@journal.command()
def reseal(journal: JournalOption = _DEFAULT) -> None:
    """Encrypt with the first key of RISKENGINE_JOURNAL_KEY what an older one of it encrypted."""
    from riskengine.journal import keeping

    with opened(journal) as found, bar("encrypting") as moved:
        done = keeping.reseal(found, moved)
    say(f"encrypted {count(done, 'block')} anew: the old keys are needed no more")


@contextmanager
def opened(url: str) -> Iterator[Journal]:
    """A journal that is there; what waits beside it, and is not in it yet, is told of."""
    from riskengine.journal import Journal, keeping

    with Journal.open(url, create=False) as found:
        if spools := keeping.spools_beside(found):
            say(
                f"entries that are not in the journal yet wait beside it, in {', '.join(spools)}: the next "
                "sidecar or engine to open it takes them in, where none runs that wrote them"
            )
        yield found


def _time(text: str | None, option: str, otherwise: int) -> int:
    if text is None:
        return otherwise
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text} is no time: write 2026-11-11T08:00:00Z", param_hint=option
        ) from None
    return int(found.replace(tzinfo=found.tzinfo or UTC).timestamp() * 1_000)


def shown_time(ms: int | None) -> str:
    """A time as people read it."""
    if ms is None:
        return "never"
    return datetime.fromtimestamp(ms / 1_000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
