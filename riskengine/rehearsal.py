"""Simulated campaigns as history to learn from: each with its own people, eight weeks after the one before.

A single simulated campaign has all its fraud on its last day, and no label in time to learn from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from riskengine import files
from riskengine.definition import Definition
from riskengine.engine import Engine
from riskengine.errors import RiskEngineError
from riskengine.files import Chunk
from riskengine.models import NONE
from riskengine.replay import replay
from riskengine.rows import RowsFile
from riskengine.simulate import DAY_MS, simulate

APART_MS: Final = 56 * DAY_MS  # whole weeks, and longer than any label takes
GAP_MS: Final = 31 * DAY_MS  # the generator's last label comes after 30 days
HELD_OUT_MS: Final = APART_MS + 10 * DAY_MS  # the last two campaigns
DAYS: Final = 8  # of each: a week of ordinary days before the campaign's
_TIMES: Final = {"time", "account_created"}


def rehearse(
    definition: Definition,
    count: int,
    users: int,
    seed: int,
    rows: str,
    labels: str,
    by: str | None = None,
    shown: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the rows of `count` campaigns, and their labels; the last is at the time of `simulate`.

    Every campaign is replayed by an engine of its own: nobody in it has been seen before. Labels count no
    features in it, for it is over before they are known. Raises RowsError, FileError.
    """
    told: list[dict[str, Any]] = []
    written: RowsFile | None = None
    with Engine.open(definition, model=NONE) as first:
        written = RowsFile(rows, first.policy, (by,) if by is not None else ())
    with written:
        for number in range(count):
            traffic = simulate(seed + number, DAYS, users)
            events = traffic.events
            earlier_ms = (count - 1 - number) * APART_MS
            for record in (*events, *traffic.labels):
                record["event_id"] = f"{number + 1}-{record['event_id']}"
                for name in _TIMES & record.keys():
                    record[name] -= earlier_ms
            told += traffic.labels
            with Engine.open(definition, model=NONE) as engine:
                replay(engine, _chunks(events), written.write, _refuse)
            shown(number + 1, count)
    files.write_records(labels, told)


def _chunks(events: list[dict[str, Any]]) -> list[Chunk]:
    size = files.CHUNK_EVENTS
    return [
        Chunk("simulated", part, range(at + 1, at + 1 + len(part)), [b""] * len(part))
        for at in range(0, len(events), size)
        if (part := events[at : at + size])
    ]


def _refuse(reject: files.Reject) -> None:
    raise RiskEngineError(f"the policy cannot read simulated events: {reject.reason}")
