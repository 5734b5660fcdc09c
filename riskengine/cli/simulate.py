"""`riskengine simulate`: labelled traffic of a campaign under attack, into files."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from riskengine.cli.terminal import bar, count, say, show_json


def simulate(
    output: Annotated[
        str, typer.Option("--out", metavar="FILE", help="Events: .jsonl or .parquet; - is standard output.")
    ],
    labels: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="One label for each event, with its kind.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same events.")] = 7,
    days: Annotated[int, typer.Option(min=1, max=400, help="The last of them is the campaign day.")] = 1,
    users: Annotated[int, typer.Option(min=1, max=5_000_000, help="Ordinary customers.")] = 10_000,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON, to standard output.")
    ] = False,
) -> None:
    """Make labelled traffic: customers, and those who prey on a campaign.

    Farms, number pools, copied and harvested codes, a colluding shop, card testing, repeated charges.
    """
    if labels == output:
        raise typer.BadParameter("--labels and --out are the same")
    if as_json and output == "-":
        raise typer.BadParameter("--json prints the summary where --out - prints the events: choose one")
    from riskengine import files
    from riskengine import simulate as simulator

    files.check_writable(output)
    if labels is not None:
        files.check_writable(labels)
    with bar("simulating") as moved:
        traffic = simulator.simulate(seed, days, users, moved)
    files.write_records(output, traffic.events)
    if labels is not None:
        files.write_records(labels, traffic.labels)
    kinds = Counter(simulator.kind_of(label) for label in traffic.labels)
    if as_json:
        show_json({"ok": True, "seed": seed, "events": len(traffic.events), "kinds": kinds})
        return
    say(f"wrote {count(len(traffic.events), 'event')} to {output}")
    say(", ".join(f"{kind} {n:,}" for kind, n in kinds.most_common()))
    if labels is not None:
        say(f"wrote {count(len(traffic.labels), 'label')} to {labels}")
