"""`riskengine alerts`: episodes of alerts, out of a journal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from riskengine.cli.journal import JournalOption, opened, shown_time
from riskengine.cli.terminal import say, show, show_json

if TYPE_CHECKING:
    from riskengine.entries import AlertEntry


def alerts(
    journal: JournalOption = "sqlite:///journal.db",
    open_only: Annotated[bool, typer.Option("--open", help="Only those that go on.")] = False,
    most: Annotated[int, typer.Option("--most", min=1, help="The newest, up to so many.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List the episodes of alerts that a journal holds, the newest first."""
    with opened(journal) as found:
        episodes = found.alerts(open_only=open_only, most=most)
    if as_json:
        from riskengine.service.shapes import AlertShown

        show_json([AlertShown.of(episode) for episode in episodes])
        return
    for episode in episodes:
        show(told(episode))
    if not episodes:
        say(f"{journal} has no {'open ' if open_only else ''}episodes of alerts")


def told(episode: AlertEntry) -> str:
    """An episode in a line."""
    level = f"{{:{'.1%' if episode.share else ',.0f'}}}".format
    until = "goes on" if episode.end_ms is None else f"to {shown_time(episode.end_ms)}"
    where = "" if episode.by is None else f" at {episode.by} {episode.key}"
    return (
        f"{shown_time(episode.start_ms)} {until}: {episode.alert}{where}, {level(episode.peak)} "
        f"(above {level(episode.above)}); {', '.join(episode.events[:3])}"
    )
