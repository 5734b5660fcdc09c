"""`riskengine simulate`: labelled traffic of a campaign under attack, into files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from riskengine.cli.terminal import bar, count, say, show_json

if TYPE_CHECKING:
    from riskengine.simulate import Scenario


def simulate(
    output: Annotated[
        str, typer.Option("--out", metavar="FILE", help="Events: .jsonl or .parquet; - is standard output.")
    ],
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="What becomes known of them, when it would be.", show_default=False
        ),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Who did each, found out or not.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same events.")] = 7,
    days: Annotated[int, typer.Option(min=1, max=400, help="The last of them is the campaign day.")] = 1,
    users: Annotated[int, typer.Option(min=1, max=5_000_000, help="Ordinary customers.")] = 10_000,
    scenario: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Who comes, and when it is busy (YAML).", show_default=False),
    ] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=N", help="N crews of a kind a day, by 10,000 customers.", show_default=False
        ),
    ] = None,
    intensity: Annotated[
        float | None,
        typer.Option(min=0, max=1000, help="Times as many crews of every kind.", show_default=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, to standard output.")
    ] = False,
) -> None:
    """Make labelled traffic: customers, and those who prey on a campaign.

    Nobody is refused here: in `riskengine demo` they learn what is decided, and change their ways.
    A scenario file may say intensity, mix (KIND: N), rush ({hour: 20, times: 10}) and shop_tablets.
    """
    if len({output, labels, truth} - {None}) < sum(one is not None for one in (output, labels, truth)):
        raise typer.BadParameter("--out, --labels and --truth name one file twice")
    if as_json and output == "-":
        raise typer.BadParameter("--json prints the summary where --out - prints the events: choose one")
    from riskengine import files
    from riskengine import simulate as simulator

    chosen = _scenario(scenario, mix or [], intensity)
    for path in (output, labels, truth):
        if path is not None:
            files.check_writable(path)
    with bar("simulating") as moved:
        total = simulator.expected(days, users)
        traffic = simulator.simulate(
            seed, days, users, lambda done: moved(done, max(total, done)), scenario=chosen
        )
    events = traffic.events
    files.write_records(output, events)
    if labels is not None:
        files.write_records(labels, traffic.labels)
    if truth is not None:
        files.write_records(
            truth, [{"event_id": one.event["event_id"], "kind": one.kind} for one in traffic.told]
        )
    kinds = Counter(one.kind for one in traffic.told)
    if as_json:
        show_json({"ok": True, "seed": seed, "events": len(events), "kinds": kinds})
        return
    say(f"wrote {count(len(events), 'event')} to {output}")
    say(", ".join(f"{kind} {n:,}" for kind, n in kinds.most_common()))
    if labels is not None:
        say(f"wrote {count(len(traffic.labels), 'label')} to {labels}")


def _scenario(path: Path | None, mix: list[str], intensity: float | None) -> Scenario:
    """What is asked for: a file, then what the options say otherwise."""
    import dataclasses

    from riskengine.simulate.scenario import DEFAULT, load_scenario, mixed

    said: dict[str, float] = {}
    for one in mix:
        name, _, number = one.partition("=")
        try:
            said[name] = float(number)
        except ValueError:
            raise typer.BadParameter(
                f"{one!r}: write KIND=N, such as device-farm=3", param_hint="--mix"
            ) from None
    try:
        scenario = mixed(load_scenario(path) if path is not None else DEFAULT, said)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--mix") from None
    return scenario if intensity is None else dataclasses.replace(scenario, intensity=intensity)
