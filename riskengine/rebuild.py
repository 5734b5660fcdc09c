"""Counters made anew from what was kept of them: journals of decisions, or files of events and labels.

A journal is counted as it was decided: no rule is asked again, and what an event holds of limits is what its
decision says. Files know of no decision, so that their events are judged again, by the policy and its model.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from riskengine import files
from riskengine.decision import Decision
from riskengine.engine import Engine
from riskengine.entries import AnyEntry, EditEntry, Entry, LabelEntry
from riskengine.errors import RiskEngineError
from riskengine.replay import batches, parse_entries, replay
from riskengine.served import read_trace

if TYPE_CHECKING:
    from riskengine.journal import Journal

_DECISION: Final = msgspec.json.Decoder(Decision)

Moved = Callable[[int, int | None], None]  # how much is done, of how much (None: nobody knows)


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild has counted so far."""

    events: int = 0
    labels: int = 0
    releases: int = 0
    edits: int = 0
    foreign: int = 0  # events that are none of this policy: they count for nothing in it
    unknown: int = 0  # labels and releases of events that hold and count nothing any more


class Journals:
    """Journals, one or several, read on from where they were read to: `more` is what has come since."""

    def __init__(self, journals: Sequence[Journal]) -> None:
        self._journals = journals
        self._read = [0] * len(journals)

    def more(self) -> Iterator[AnyEntry]:
        """Entries in the order in which they were served, as far as several clocks can tell."""
        if len(self._journals) == 1:
            yield from self._of(0)
            return
        yield from heapq.merge(*(self._of(j) for j in range(len(self._journals))), key=_when)

    def _of(self, j: int) -> Iterator[AnyEntry]:
        for entry in self._journals[j].replay(self._read[j]):
            self._read[j] = entry.seq
            yield entry


def count_entries(
    engine: Engine, entries: Iterable[AnyEntry], rebuilt: Rebuilt, moved: Moved = lambda done, total: None
) -> int:
    """Count journaled entries; return how many events there were. What an engine knows already moves nothing.

    Entities go by the keys that the journal keeps, so the hash key of serving must be set.
    Raises RiskEngineError for a journal that cannot be read and a store that cannot be reached.
    """
    before = rebuilt.events + rebuilt.foreign
    for part in batches(entries):
        if isinstance(part, list):
            batch, now, errors = parse_entries(engine.policy, part)
            rebuilt.foreign += len(errors)
            rebuilt.events += batch.n
            decisions = [_DECISION.decode(part[i].decision) for i in batch.index.tolist()]
            if batch.n:
                engine.restore(batch, now, decisions)
        elif isinstance(part, EditEntry):
            rebuilt.edits += 1
            engine.redo(part)
        else:
            known = engine.redo(part)
            rebuilt.unknown += not known
            if isinstance(part, LabelEntry):
                rebuilt.labels += known
            else:
                rebuilt.releases += known
        moved(rebuilt.events + rebuilt.foreign, None)
    return rebuilt.events + rebuilt.foreign - before


def count_files(
    engine: Engine,
    events: str,
    labels: str | None,
    rejects: Callable[[files.Reject], None],
    rebuilt: Rebuilt,
    moved: Moved = lambda done, total: None,
) -> None:
    """Judge and count files of events (.jsonl, .parquet), each label before the first later event.

    Raises FileError and RiskEngineError; lines that cannot be used go to `rejects`.
    """
    progress = files.Progress()
    moving = {f.label for f in engine.definition.features.values() if f.label is not None}
    known = files.read_labels(labels, rejects, moving) if labels is not None else []
    chunks = files.read_events(events, rejects, progress=progress)
    replayed = replay(
        engine,
        files.merge(chunks, known, moving),
        lambda found: None,
        rejects,
        lambda: moved(progress.done, progress.total),
    )
    rebuilt.events += replayed.events
    rebuilt.labels += len(known) - replayed.unknown_labels
    rebuilt.unknown += replayed.unknown_labels


def _when(entry: AnyEntry) -> int:
    """When an entry came, ms."""
    if isinstance(entry, Entry):
        try:
            return read_trace(entry.trace).now_ms
        except msgspec.DecodeError:
            raise RiskEngineError(
                f"entry {entry.seq} of the journal (event {entry.event_id}) is damaged: it does not say what "
                "the event moved"
            ) from None
    return entry.received_ms if isinstance(entry, LabelEntry) else entry.time_ms
