"""Where state lives: what an engine asks of a store, and the values that pass between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

import msgspec

from riskengine.decision import Decision, Verdict
from riskengine.errors import RiskEngineError
from riskengine.event import Batch
from riskengine.features import FeatureSet, Touches
from riskengine.layout import NONE, Int64s
from riskengine.packing import Bytes
from riskengine.stores.paths import PathEdit
from riskengine.stores.traces import Trace

if TYPE_CHECKING:
    from riskengine.stores.lists import Lists
    from riskengine.stores.place import Place

Row = dict[str, float | str | None]
Spot = tuple[int, int]  # number of an entity, key
Links = Mapping[
    int, Sequence[tuple[int, int]]
]  # by number of an entity: its member cells, and a window of each
Kind = Literal[
    "away", "slow", "behind", "full", "read-only", "wrong-type", "denied", "busy", "loading", "epoch",
    "broken",
]  # fmt: skip
Met = Mapping[int, Decision | Literal["conflict", "undecided"]]
NONE_MET: Final[Met] = MappingProxyType({})


class StoreError(RiskEngineError):
    """The store could not answer. `kind` is one word for metrics and flags."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Claim(msgspec.Struct, gc=False):
    """What is kept of an event once seen: enough to answer a retry and to find what it moved."""

    key: bytes
    content: bytes
    time: int  # when it arrived, ms
    trace: int  # row number, or -1
    serial: int  # of the batch that entered it
    follows: bytes | None = None
    decision: Decision | None = None
    label: str | None = None
    label_time: int = NONE
    forgotten: bool = False  # decided, but the decision itself is no longer kept


# Whether an event held something that it holds no more: given back now, or by a release before, as far as is
# known (in memory it is not: there no answer is ever lost).
Released = Literal["now", "before", "nothing"]


@dataclass(frozen=True, slots=True)
class Followed:
    """The claim of an event that is followed, and its trace with those of the events it follows itself."""

    claim: bytes
    chain: tuple[Trace, ...]


# A shared store keeps decisions by its own clock, and what is tried again takes a moment in any case.
FRESH_MS_MIN: Final = 1000


class Lives(NamedTuple):
    """How long, in ms, what is kept of a batch is kept from now on."""

    horizon_ms: int  # what its events moved
    fresh_ms: int  # its decisions


class Restored(NamedTuple):
    """What became of events that were decided before: how many were counted, and which are not decided yet.

    Those had been entered here and never concluded: given alone, they are counted and settled too.
    """

    counted: int
    left_open: Sequence[int]


@dataclass(frozen=True, slots=True)
class Info:
    """Sizes and losses, for operators. `bytes` is what entities take, the key table included.

    `failovers` is how often this engine saw a replica take the place of a master of its cluster, and
    `lost_events` how many events servers answered for and lost in this life of the data, as any engine found.
    """

    entities: int
    bytes: int
    reserved: int
    evictions: int
    expired: int
    lost: int
    claims: int
    failovers: int = 0
    lost_events: int = 0


class Loss(msgspec.Struct, frozen=True):
    """Events that servers had answered for and lost: so many are known, and there may be more of them."""

    events: int
    time: int  # of the last of them, ms
    more: bool


class Store(Protocol):
    """State behind one door. Not locked: the engine that owns it locks.

    For a batch: `claim` each event, `observe`, `settle`, `conclude`, then `sweep`. Where another event is
    followed, `followed` comes first. `claims` are the events known without a wait; `tables` is there to be
    read, and is replaced as a whole where it changes.
    """

    features: FeatureSet
    claims: dict[bytes, Claim]

    @property
    def lists(self) -> Lists:
        """Entries of lists as far as they are known here, to be read."""

    @property
    def tables(self) -> Mapping[str, dict[int, Row]]:
        """Live rows, to be read; replaced as a whole where they change."""

    @property
    def batch_max(self) -> int:
        """How many events are judged at once."""

    @property
    def waits(self) -> bool:
        """Whether it answers over a network."""

    @property
    def place(self) -> Place | None:
        """Where in a shared store its data is; None in memory."""

    @property
    def at_once(self) -> int:
        """How many batches may be under way at once, each by another of its doors."""

    def another(self) -> Store:
        """Another door to the same state, for another thread: where more than one is to be had."""

    @property
    def is_behind(self) -> bool:
        """Whether what was decided without it has not been counted yet."""

    def catch_up(self) -> None:
        """Count what was decided without it. StoreError where it does not answer in time."""

    def keyed_by(self, check: bytes) -> None:
        """Raise RiskEngineError where what is here was hashed with another key (`hashing.check_value`)."""

    def open_among(self, claims: Sequence[bytes]) -> set[bytes]:
        """Which of these events were entered and not decided: their engine died in between."""

    @property
    def losses(self) -> tuple[Loss, ...]:
        """What its servers lost in this life of the data, or may have; the same object until that changes."""

    @property
    def is_at_hand(self) -> bool:
        """Whether who asks waits for a reply and nothing else, as far as is known."""

    @property
    def is_to_be_opened(self) -> bool:
        """Whether the way to its servers is not open, and it is worth a try just now."""

    def reach(self) -> bool:
        """Open the way to its servers where it is not open; whether they answer."""

    def stand_back(self, batch: Batch) -> None:
        """Wait while another door is at one of these events: what it decides is found then."""

    def claim(self, key: bytes, content: bytes, time: int, serial: int) -> Claim:
        """Enter a new event. The caller has looked that `claims` has no such key."""

    def followed(self, key: bytes, by: bytes) -> Followed | None:
        """What an event moved that `by` follows; None where nothing is known of it any more."""

    def observe(self, touches: Touches, counted: bool = True, followed: Followed | None = None) -> Met:
        """The one wait: count a batch, and fill in each event's features, list and text columns.

        Returns what is known of events that turn out not to be new; what was filled in for them is void.
        """

    def settle(
        self, touches: Touches, verdict: Verdict, counted: bool = True, followed: Followed | None = None
    ) -> int:
        """Try limits, decide, hold what is granted, keep what each event moved: the number of the first."""

    def conclude(self, touches: Touches, decisions: Sequence[Decision], horizon_ms: int) -> Met:
        """Keep decisions for retries, and for `horizon_ms` what the events moved.

        Returns what others have decided meanwhile of events that took long: their decisions stand.
        """

    def postponed(self, batch: Batch) -> Met:
        """What other doors have decided of these events without the servers, meanwhile."""

    def postpone(
        self,
        touches: Touches,
        decisions: Sequence[Decision],
        held: Bytes,
        followed: Followed | None,
        horizon_ms: int,
        met: Met,
    ) -> None:
        """Keep what was decided without the store (its `observe` failed), to count it when it is back.

        held uint8 (n, L): limits that each event holds in any case, whether there is room or not.
        """

    def restore(
        self,
        touches: Touches,
        decisions: Sequence[Decision],
        held: Bytes,
        followed: Followed | None,
        now: Int64s,
        lives: Lives,
    ) -> Restored:
        """Count events (n) that were decided before, at `now` (n), and keep what was decided.

        held uint8 (n, L) are the limits that each holds, room or not. One that is known here moves nothing.
        """

    def sweep(self, now: int, events: int, horizon_ms: int, fresh_ms: int) -> None:
        """Forget what nobody needs any more."""

    def release(self, key: bytes) -> Released:
        """Return every grant that an event still holds, and say whether there was any."""

    def label(self, key: bytes, label: str, time: int) -> bool:
        """Let a label count for an event, in the place of the one it had; False where it is not known."""

    def list_put(self, name: str, entity: str, key: int, entry: Mapping[str, Any]) -> None:
        """Enter or replace an entry; `entry['expires']` is ms or None."""

    def list_get(self, name: str, entity: str, key: int) -> dict[str, Any] | None:
        """An entry, or None."""

    def list_entries(self, name: str, entity: str) -> Mapping[int, dict[str, Any]]:
        """Every entry by its key, as far as they are known here; without waiting for anything."""

    def list_delete(self, name: str, entity: str, key: int) -> bool:
        """Remove an entry; whether it was there."""

    def look_at_edits(self) -> None:
        """Learn of the edits that others have made."""

    def spread(self, edits: Sequence[PathEdit]) -> None:
        """Enter and take out paths from listed entities; who is on a list by them follows from it."""

    def members(self, spots: Sequence[Spot], links: Links, time: int) -> list[list[Int64s]]:
        """The members that entities have in windows at a time: of each entity a sorted list by its links."""

    def table_put(self, name: str, key: int, row: Row) -> None:
        """Enter or replace a live row."""

    def table_delete(self, name: str, key: int) -> bool:
        """Remove a live row; whether it was there."""

    def reload(self, features: FeatureSet) -> None:
        """Serve another plan. Cells of equal definition keep what they know."""

    def look(self, touches: Touches) -> Int64s:
        """Read the features of entities at a time (n = 1) without an event; what each limit holds then."""

    def info(self) -> Info:
        """Sizes and losses so far."""

    def export(self, path: Path) -> int:
        """Write entities, lists and live tables to a file; return the number of entities."""

    def take_in(self, path: Path) -> int:
        """Read a file written by `export` under the same plan; return the number of entities."""

    def close(self) -> None:
        """Let go of everything."""
