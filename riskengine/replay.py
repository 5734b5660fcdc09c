"""History through the engine again: events and labels, or a journal, become the rows that were served.

There is no second feature code. Rows come from the very engine that serves, with the in-process store, and
each event meets what was known when it came: events in their order, labels when they became known. No model
is asked: rows do not depend on one, and rows are what a policy needs whose model no longer fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from riskengine import files
from riskengine.compiled import Policy
from riskengine.definition import Definition, Feature
from riskengine.engine import Engine
from riskengine.entries import (
    AnyEntry,
    Entry,
)
from riskengine.errors import EventError, RiskEngineError
from riskengine.event import Label
from riskengine.features import Touches, text_at
from riskengine.files import Chunk, Progress, Reject
from riskengine.journaled import batches, parse_entries
from riskengine.models import NONE, served_fingerprint
from riskengine.stores.memory import MemoryStore

if TYPE_CHECKING:
    from riskengine.rows import RowsFile

__all__ = [
    "Journaled",
    "Replayed",
    "blurred",
    "replay",
    "replay_files",
    "replay_journal",
]

BATCH: Final = MemoryStore.batch_max


@dataclass(slots=True)
class Replayed:
    """What a replay of files came to."""

    events: int = 0  # rows written
    again: int = 0  # events sent once more: they have their row
    unknown_labels: int = 0  # labels that move something, of no event before them


@dataclass(slots=True)
class Journaled:
    """What a replay of a journal came to, against what was served."""

    events: int = 0
    same: int = 0  # rows equal to the served ones, bit for bit
    other: int = 0  # rows that differ
    incomparable: int = 0  # served by another policy
    features: dict[str, int] | None = None  # by name: in how many rows they differ


def replay_files(
    definition: Definition,
    events: str,
    labels: str | None,
    rows: Callable[[Policy], RowsFile],
    rejects: Callable[[Reject], None],
    progress: Progress,
    sort: bool = False,
    moved: Callable[[], None] = lambda: None,
) -> Replayed:
    """Replay files of events and labels into the file of rows that `rows` opens.

    Time is the events' own. `moved` is called now and then. Raises FileError, RowsError, RiskEngineError;
    lines that cannot be used go to `rejects`.
    """
    with Engine.open(definition, model=NONE) as engine, rows(engine.policy) as written:
        moving = {f.label for f in definition.features.values() if f.label is not None}
        known = files.read_labels(labels, rejects, moving) if labels is not None and moving else []
        chunks = files.read_events(events, rejects, sort=sort, progress=progress)
        replayed = replay(engine, files.merge(chunks, known, moving), written.write, rejects, moved)
    replayed.events = written.written
    return replayed


def replay(
    engine: Engine,
    parts: Iterable[Chunk | Label],
    shown: Callable[[Touches], None],
    rejects: Callable[[Reject], None],
    moved: Callable[[], None] = lambda: None,
) -> Replayed:
    """Drive an engine through events and labels (`files.merge`); `shown` gets every finished row."""
    replayed = Replayed()
    latest_ms = 0
    schema = engine.policy.schema
    for part in parts:
        if isinstance(part, Label):
            replayed.unknown_labels += not engine.label(part.event_id, part.label, part.time, part.source)
            continue
        now = part.now(latest_ms)
        latest_ms = int(now[-1])
        for start in range(0, len(part), BATCH):
            here = slice(start, start + BATCH)
            if part.columns is None:
                batch, errors = schema.parse(part.events[here], now[here])
            else:
                batch, errors = schema.parse_columns(part.columns.slice(start, BATCH), now[here])
            before = replayed.events
            results = engine.replay(batch, now[here][batch.index], _counting(replayed, shown))
            for i, result in zip(batch.index.tolist(), results, strict=True):
                if isinstance(result, EventError):
                    errors[i] = result
            for i, error in sorted(errors.items()):
                rejects(part.reject(start + i, str(error)))
            replayed.again += len(part.events[here]) - len(errors) - (replayed.events - before)
        moved()
    return replayed


def replay_journal(
    definition: Definition,
    entries: Iterable[AnyEntry],
    rows: Callable[[Policy], RowsFile],
    moved: Callable[[int], None] = lambda seq: None,
) -> Journaled:
    """Replay a journal (`Journal.replay`) into the file of rows that `rows` opens.

    Entities go by the keys that the journal keeps, so the hash key of serving must be set. Rows of the same
    features are compared with those that were served. What the journal keeps only in part (`blurred`) gives
    features of its own. Raises RiskEngineError.
    """
    with Engine.open(definition, model=NONE) as engine, rows(engine.policy) as written:
        comparing = _Comparing(engine.policy, served_fingerprint(definition), written.write)
        for part in batches(entries):
            if isinstance(part, list):
                batch, now, errors = parse_entries(engine.policy, part)
                if errors:
                    i, error = min(errors.items())
                    raise RiskEngineError(
                        f"entry {part[i].seq} of the journal (event {part[i].event_id}) is no event of this "
                        f"policy: {error}. Replay it with the policy that served it."
                    )
                comparing.entries = part
                engine.replay(batch, now, comparing.seen)
                moved(part[-1].seq)
            else:
                engine.redo(part)
    comparing.found.events = written.written
    return comparing.found


def blurred(definition: Definition) -> dict[str, str]:
    """Features that a journal cannot give back exactly, and why: it keeps less of some fields than came.

    Places are rounded, and of personal text only a hash is kept.
    """
    personal = {name for entity in definition.entities.values() for name in entity.fields} | {"user_agent"}
    found: dict[str, str] = {}

    def why(feature: Feature) -> str | None:
        for name in _inputs(feature):
            field = definition.fields.get(name)
            if field is not None and field.type == "location":
                return "the journal rounds places to a tenth of a degree"
            hashed = field is not None and (
                field.type in ("phone", "ip") or (field.type == "string" and field.name in personal)
            )
            if hashed and (name != feature.field or feature.aggregate == "previous"):
                return "the journal keeps only a hash of personal text"
            if name in definition.features and definition.features[name] is not feature:
                reason = why(definition.features[name])
                if reason is not None:
                    return reason
        return None

    for name, feature in definition.features.items():
        reason = why(feature)
        if reason is not None:
            found[name] = reason
    return found


# -- files


def _counting(replayed: Replayed, shown: Callable[[Touches], None]) -> Callable[[Touches], None]:
    def seen(found: Touches) -> None:
        replayed.events += found.batch.n
        shown(found)

    return seen


# -- journals


class _Comparing:
    """Passes rows on, and counts how many are what was served."""

    def __init__(self, policy: Policy, fingerprint: str, write: Callable[[Touches], None]) -> None:
        self.entries: list[Entry] = []
        self.found = Journaled(features={})
        self._policy = policy
        self._fingerprint = fingerprint
        self._write = write
        self._names = _row_names(policy)

    def seen(self, found: Touches) -> None:
        """One batch, or a part of it."""
        policy = self._policy
        rows: list[list[Any]] = found.cells[policy.row_columns].T.tolist()
        for place, column in policy.row_texts:
            for i, row in enumerate(rows):
                row.insert(place, text_at(found.strings, column, i))
        served = {entry.event_id: entry for entry in self.entries}
        for event_id, row in zip(found.batch.ids, rows, strict=True):
            entry = served[event_id]
            # Journaled by another engine than decided it, a row may be another policy's than the decision.
            if entry.policy != self._fingerprint or entry.features != policy.features.fingerprint:
                self.found.incomparable += 1
                continue
            differing = {
                name
                for name, one, other in zip(self._names, msgspec.msgpack.decode(entry.row), row, strict=True)
                if not _same(one, other)
            }
            self.found.same += not differing
            self.found.other += bool(differing)
            assert self.found.features is not None
            for name in differing:
                self.found.features[name] = self.found.features.get(name, 0) + 1
        self._write(found)


def _row_names(policy: Policy) -> list[str]:
    """The features of a journaled row, a location twice."""
    return [
        name
        for name in policy.features.names
        for _ in range(2 if policy.features.types[name] == "location" else 1)
    ]


def _same(one: float | str | None, other: float | str | None) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return one == other


def _inputs(feature: Feature) -> Iterator[str]:
    if feature.field is not None:
        yield feature.field
    for part in (feature.where, feature.value):
        for symbol in part.symbols() if part is not None else ():
            yield symbol.name
