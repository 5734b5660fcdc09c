"""Counters made anew from what was kept of them: journals of decisions, or files of events and labels.

A journal is counted as it was decided: no rule is asked again, and what an event holds of limits is what its
decision says. Files know of no decision, so that their events are judged again, by the policy and its model.
"""

from __future__ import annotations

import heapq
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import numpy as np

from riskengine import files, hashing
from riskengine.definition import Definition
from riskengine.engine import Engine
from riskengine.entries import AlertEntry, AnyEntry, EditEntry, Entry, LabelEntry, ReleaseEntry
from riskengine.errors import RiskEngineError
from riskengine.features import FeatureSet
from riskengine.journaled import batches, restorable
from riskengine.judge import is_of_contract
from riskengine.layout import L_DIGITS
from riskengine.models import NONE
from riskengine.replay import replay
from riskengine.served import read_trace
from riskengine.stores.address import open_store
from riskengine.stores.owed import Owed
from riskengine.stores.redis import RedisStore
from riskengine.stores.renewal import renewal
from riskengine.stores.undecided import Undecided, limit_of

if TYPE_CHECKING:
    from riskengine.journal import Journal

Moved = Callable[[int, int | None], None]  # how much is done, of how much (None: nobody knows)


PASSES: Final = 20  # over a journal that grows while it is read
SMALL_PASS: Final = 200  # events after which the next pass is short enough to switch first
EARLY_MAX: Final = 100_000  # labels and releases that are kept for an event behind them
SETTLES_S: Final = 0.5  # a journal that is written behind has by then what was decided before the switch


def _untold(done: int, total: int | None) -> None:
    """Nobody is told."""


@dataclass(slots=True)
class Rebuilt:
    """What a rebuild has counted so far."""

    events: int = 0
    labels: int = 0
    releases: int = 0
    edits: int = 0
    known: int = 0  # events that had been counted: another journal has them too, or they came meanwhile
    foreign: int = 0  # events that are none of this policy: they count for nothing in it
    unknown: int = 0  # labels and releases of events that hold and count nothing any more
    # The last of these. Engines of one journal write it in turns, one that was away from it later than the
    # others: an event may stand behind what is said of it.
    early: deque[LabelEntry | ReleaseEntry] = field(default_factory=partial(deque, maxlen=EARLY_MAX))

    @property
    def read(self) -> int:
        """Events that were read of journals."""
        return self.events + self.known + self.foreign


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
            if not (isinstance(entry, Entry) and self._stands_elsewhere(j, entry)):
                yield entry

    def _stands_elsewhere(self, j: int, entry: Entry) -> bool:
        """Whether it was decided without the store, and by another engine with it: what that said stands."""
        if not is_of_contract(entry.flags):
            return False
        others = (journal.decision(entry.event_id) for k, journal in enumerate(self._journals) if k != j)
        return any(
            other is not None and other.content == entry.content and not is_of_contract(other.flags)
            for other in others
        )


def resume(engine: Engine, moved: Moved = _untold) -> Rebuilt:
    """Count what an engine's own journal holds: where its store is in memory, it begins where it ended."""
    rebuilt = Rebuilt()
    if engine.journal is not None:
        count_entries(engine, Journals([engine.journal]).more(), rebuilt, moved)
    return rebuilt


def from_journal_urls(
    url: str, definition: Definition, journals: Sequence[str], rebuilt: Rebuilt, moved: Moved = _untold
) -> None:
    """`from_journals`, by their URLs."""
    with _opened(journals) as read:
        from_journals(url, definition, read, rebuilt, moved)


@contextmanager
def _opened(urls: Sequence[str]) -> Iterator[list[Journal]]:
    """Journals that are there, by their URLs."""
    from riskengine.journal import Journal  # and with it SQLAlchemy

    with ExitStack() as stack:
        yield [stack.enter_context(Journal.open(url, create=False)) for url in urls]


def from_journals(
    url: str,
    definition: Definition,
    journals: Sequence[Journal],
    rebuilt: Rebuilt,
    moved: Moved = _untold,
    clock: Callable[[], int] | None = None,
) -> None:
    """Rebuild the shared store at a URL from journals, while the one that is there serves on.

    What is decided meanwhile is counted once the new counters serve: an event that they know moves nothing.
    Whatever this raises before that (KeyboardInterrupt too), the store is then what it was: RiskEngineError
    for a store, a journal or a hash key that will not do, and for journals with nothing to count. From then
    on Ctrl-C waits for the end.
    """
    with (
        renewal(url, definition.tenant) as made,
        Engine.open(definition, store=made.store, model=NONE, clock=clock) as engine,
    ):
        reading = Journals(journals)

        def kept(done: int, total: int | None) -> None:
            made.keep()
            moved(done, total)

        for _ in range(PASSES):
            if count_entries(engine, reading.more(), rebuilt, kept) <= SMALL_PASS:
                break
        engine.info()  # what was told has come
        _check_found(rebuilt)
        with _to_the_end():
            made.switch()
            for _ in range(PASSES):
                time.sleep(SETTLES_S)
                if not count_entries(engine, reading.more(), rebuilt, moved):
                    break
            made.clean()


def from_files(
    url: str,
    definition: Definition,
    events: Sequence[str],
    labels: str | None,
    rejects: Callable[[files.Reject], None],
    rebuilt: Rebuilt,
    moved: Moved = _untold,
) -> None:
    """Rebuild the shared store at a URL from files of events, judged anew; else as `from_journals`."""
    with renewal(url, definition.tenant) as made, Engine.open(definition, store=made.store) as engine:

        def kept(done: int, total: int | None) -> None:
            made.keep()
            moved(done, total)

        for file in events:
            count_files(engine, file, labels if file == events[-1] else None, rejects, rebuilt, kept)
        engine.info()
        _check_found(rebuilt)
        with _to_the_end():
            made.switch()
            made.clean()


def _check_found(rebuilt: Rebuilt) -> None:
    """Counters never start from nothing by themselves, nor by a wrong file."""
    if not rebuilt.events + rebuilt.known + rebuilt.edits:
        raise RiskEngineError(
            "there is nothing in it that this policy counts, so the counters stay as they are: look at what "
            "--from names. A store that is to begin empty is begun by riskengine store init"
        )


@contextmanager
def _to_the_end() -> Iterator[None]:
    """Ctrl-C waits: with the new counters serving, stopping would leave out what came around the switch.

    Where that fails instead, it says that they serve.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, lambda *_: None) if is_main else None
    try:
        yield
    except RiskEngineError as error:
        raise RiskEngineError(
            "the new counters may serve already, without what was decided just before: rebuild them again "
            f"({error})"
        ) from error
    finally:
        if is_main:
            signal.signal(signal.SIGINT, before)


Outcome = Literal["left open", "settled by its decision", "given back"]


class LeftOpen(msgspec.Struct, frozen=True):
    """An event whose engine died over it: half of its hash, when it was and came, what it held."""

    claim: str
    time: str
    age_s: int
    holds: dict[str, float]  # by limit
    outcome: Outcome


def left_open(
    url: str, definition: Definition, journals: Sequence[str], older_ms: int, release: bool
) -> list[LeftOpen]:
    """Events of a shared store that crashes left open for so long; see `riskengine store holds`.

    What journals (by URL) have a decision for is settled by it, and what the store has one for (on a cluster
    a denied event may hold something still); with `release`, the rest is given back.
    """
    opened: list[RedisStore] = []

    def opener(features: FeatureSet) -> RedisStore:
        opened.append(open_store(url, features, definition.tenant))
        return opened[0]

    with _opened(journals) as read, Engine.open(definition, store=opener, model=NONE) as engine:
        store, features = opened[0], engine.policy.features
        digits = dict(zip(features.limit_names, features.plan.limits[:, L_DIGITS].tolist(), strict=True))
        found = store.undecided(older_ms)
        settled = _settle(engine, {one.claim for one in found}, read) if found and read else set()
        told = []
        for denied in store.give_back_owed(older_ms):
            amounts = [(piece.limit, piece.amount) for piece in denied.pieces]
            told.append(_left_open(denied, amounts, digits, "settled by its decision"))
        for one in found:
            holds = [(limit_of(hold, features), hold.amount) for hold in one.holds]
            outcome: Outcome = "left open"
            if one.claim in settled:
                outcome = "settled by its decision"
            elif release and store.give_up(one):
                outcome = "given back"
            told.append(_left_open(one, holds, digits, outcome))
        return told


def _left_open(
    one: Undecided | Owed,
    holds: Iterable[tuple[str | None, int]],
    digits: Mapping[str, int],
    outcome: Outcome,
) -> LeftOpen:
    amounts: dict[str, float] = {}
    for name, amount in holds:
        if name is not None and name in digits:
            amounts[name] = amounts.get(name, 0) + amount / 10 ** digits[name]
    time_ = datetime.fromtimestamp(one.time / 1000, UTC).isoformat(timespec="seconds")
    return LeftOpen(one.claim[:8].hex(), time_, one.age_ms // 1000, amounts, outcome)


def _settle(engine: Engine, claims: set[bytes], journals: Sequence[Journal]) -> set[bytes]:
    """Settle undecided events by the decisions that journals have; return those that were."""
    known: list[AnyEntry] = []
    settled: set[bytes] = set()
    sip = engine.policy.schema.sip
    for entry in Journals(journals).more():
        if isinstance(entry, Entry):
            claim = np.array(hashing.claim(entry.event_id, sip), np.uint64).tobytes()
            if claim in claims - settled:
                known.append(entry)
                settled.add(claim)
    count_entries(engine, known, Rebuilt())
    return settled


def count_entries(
    engine: Engine, entries: Iterable[AnyEntry], rebuilt: Rebuilt, moved: Moved = _untold
) -> int:
    """Count journaled entries; return how many events there were. What an engine knows already moves nothing.

    Entities go by the keys that the journal keeps, so the hash key of serving must be set.
    Raises RiskEngineError for a journal that cannot be read and a store that cannot be reached.
    """
    before = rebuilt.read
    for part in batches(entries):
        if isinstance(part, list):
            judged = restorable(engine.policy, part)
            counted = engine.restore(*judged) if judged.batch.n else 0
            rebuilt.events += counted
            rebuilt.known += judged.batch.n - counted
            rebuilt.foreign += len(part) - judged.batch.n
        elif isinstance(part, EditEntry):
            rebuilt.edits += 1
            engine.redo(part)
        else:
            _say(engine, part, rebuilt)
        moved(rebuilt.read, None)
    early = list(rebuilt.early)
    rebuilt.early.clear()
    rebuilt.unknown -= len(early)
    for one in early:
        _say(engine, one, rebuilt)
    return rebuilt.read - before


def _say(engine: Engine, entry: LabelEntry | ReleaseEntry, rebuilt: Rebuilt) -> None:
    """Have a label or a release act again; one of an event that is not known may come again."""
    if not engine.redo(entry):
        rebuilt.unknown += 1
        rebuilt.early.append(entry)
    elif isinstance(entry, LabelEntry):
        rebuilt.labels += 1
    else:
        rebuilt.releases += 1


def count_files(
    engine: Engine,
    events: str,
    labels: str | None,
    rejects: Callable[[files.Reject], None],
    rebuilt: Rebuilt,
    moved: Moved = _untold,
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
    if isinstance(entry, AlertEntry):
        return entry.updated_ms
    return entry.received_ms if isinstance(entry, LabelEntry) else entry.time_ms
