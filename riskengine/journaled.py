"""Journaled events as batches again, as they were judged, for whoever counts them once more."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from riskengine.compiled import Policy, salt_of
from riskengine.decision import Decision, name_decisions
from riskengine.entries import (
    AlertEntry,
    AnyEntry,
    EditEntry,
    Entry,
    LabelEntry,
    PolicyEntry,
    ReleaseEntry,
)
from riskengine.errors import EventError, RiskEngineError
from riskengine.event import Batch
from riskengine.judge import DEGRADED, is_of_contract
from riskengine.masking import HASHED, PLACE
from riskengine.served import read_trace
from riskengine.stores.memory import MemoryStore

if TYPE_CHECKING:
    from riskengine.engine import Engine
    from riskengine.journal import Journal

BATCH: Final = MemoryStore.batch_max
RECOUNTED_MAX: Final = 100_000  # entries of a journal that are looked through as an engine begins
CONCLUDED_MAX: Final = 1_000  # and of which the store is asked whether it knows what was decided

_DECISION: Final = msgspec.json.Decoder(Decision)
_log = logging.getLogger(__name__)


class Judged(NamedTuple):
    """A batch of n events as `Engine.restore` has it: when each was judged (ms), and what was decided."""

    batch: Batch
    now: NDArray[np.int64]
    decisions: Sequence[Decision]


def batches(entries: Iterable[AnyEntry]) -> Iterator[list[Entry] | LabelEntry | ReleaseEntry | EditEntry]:
    """Events together up to whatever comes between them."""
    together: list[Entry] = []
    for entry in entries:
        if isinstance(entry, Entry):
            together.append(entry)
            if len(together) < BATCH:
                continue
        if together:
            yield together
            together = []
        if not isinstance(entry, Entry | PolicyEntry | AlertEntry):
            yield entry
    if together:
        yield together


def parse_entries(
    policy: Policy, entries: Sequence[Entry]
) -> tuple[Batch, NDArray[np.int64], Mapping[int, EventError]]:
    """Journaled events as a batch, with the keys and hashes they had; when each was judged; what is wrong.

    The batch leaves out what is no event of this policy; errors go by place in `entries`.
    """
    traces = [read_trace(entry.trace) for entry in entries]
    now = np.array([trace.now_ms for trace in traces], np.int64)
    events = [{**entry.event, "time": entry.event_time_ms} for entry in entries]
    batch, errors = policy.schema.parse(events, now)
    for i, place in enumerate(batch.index.tolist()):
        entry, trace = entries[place], traces[place]
        for e, mark in enumerate(policy.entity_marks):
            batch.keys[i, e] = trace.keys.get(mark, 0)
        batch.content[i] = np.frombuffer(entry.content, "<u8")
        kinds = policy.masking.fields[int(batch.type_index[i])]
        for name, value in entry.event.items():
            kind, column = kinds.get(name, (PLACE, 0))
            if kind == HASHED and value is not None:
                batch.str_hash[i, column] = int(str(value)[1:], 16)
    return batch, now[batch.index], errors


def restorable(policy: Policy, entries: Sequence[Entry]) -> Judged:
    """Journaled events that are of a policy's kinds.

    Raises RiskEngineError where the journal was written with another hash key.
    """
    batch, now, _ = parse_entries(policy, entries)
    decisions = [_DECISION.decode(entries[i].decision) for i in batch.index.tolist()]
    if batch.n:
        _check_key(batch, decisions)
    return Judged(batch, now, decisions)


def recount(journal: Journal, engine: Engine, now: int) -> None:
    """Restore what a journal has of events of which a shared store was never told what was decided.

    Who decided them without the store tells it when that is back, and who decided them with it once they are
    decided, but may have been killed before. Of the latter those are taken that the store still waits for.
    What the store knows moves nothing; what is older than all that counts is left out. Where this fails, that
    is logged.
    """
    counted = concluded = 0
    flagged = journal.flagged(DEGRADED, RECOUNTED_MAX)
    by_contract = (entry for entry in flagged if is_of_contract(entry.flags))
    try:
        for judged in _counting(engine.policy, by_contract, now):
            counted += engine.restore(*judged)
        for judged in _counting(engine.policy, journal.recent(CONCLUDED_MAX), now):
            concluded += engine.restore_open(*judged)
    except RiskEngineError as error:
        _log.warning(
            "events that were decided while the store did not answer may not be counted in it (%s): count "
            "them from the journal with riskengine rebuild",
            error,
        )
    if counted:
        _log.warning(
            "%d events that had been decided while the store did not answer are counted in it now: the "
            "engine that decided them had not come to it",
            counted,
        )
    if concluded:
        _log.warning(
            "%d events that the store had not heard the decision of are concluded in it now: the engine that "
            "decided them had not come to it",
            concluded,
        )


def _counting(policy: Policy, entries: Iterable[Entry], now: int) -> Iterator[Judged]:
    """Those that still count, as batches."""
    young = (entry for entry in entries if entry.event_time_ms > now - policy.horizon_ms)
    while part := list(islice(young, BATCH)):
        judged = restorable(policy, part)
        if judged.batch.n:
            yield judged


def _check_key(batch: Batch, decisions: Sequence[Decision]) -> None:
    """Look that events are hashed here as they were when they were served: else nothing would ever meet."""
    names = np.empty((batch.n, 2), np.uint64)
    policies = [decision.policy for decision in decisions]
    for policy in set(policies):
        rows = np.flatnonzero(np.array([other == policy for other in policies]))
        salt = np.frombuffer(salt_of(policy), "<u8").astype(np.uint64)
        own = np.empty((len(rows), 2), np.uint64)
        name_decisions(batch.claim[rows], batch.content[rows], salt, own)
        names[rows] = own
    made = names.astype("<u8").tobytes().hex()
    for i, decision in enumerate(decisions):
        if made[32 * i : 32 * i + 32] != decision.decision_id:
            raise RiskEngineError(
                f"the journal was written with another hash key or for another tenant (event "
                f"{decision.event_id} does not have the hash that it has here): set RISKENGINE_HASH_KEY to "
                "what it was when this was served, and name that policy with --rules"
            )
