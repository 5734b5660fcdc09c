"""What a journal holds: decided events, labels, edits, releases and policies, as values.

They stand apart from the journal, so that an engine without one need not import a database (0.16 s).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A decided event. `seq` is 0 until it is journaled.

    decision: JSON as it was answered. event: with everything personal masked (masking.py). row: `pack_row` of
    the served features in policy order, two numbers for a location. trace: what it moved and when it was
    judged, as MessagePack of `served.Moved`. content: 16 bytes that tell a retry from another event.
    """

    event_id: str
    decision_id: str
    event_time_ms: int
    type: str
    action: str
    risk: float
    decision: bytes
    event: Mapping[str, Any]
    row: bytes = b""
    policy: str = ""
    features: str = ""
    flags: tuple[str, ...] = ()
    trace: bytes = b""
    content: bytes = b""
    seq: int = 0


class LabelEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What became known of an event. `time_ms`: when it became known; `received_ms`: when it came here."""

    event_id: str
    label: str
    time_ms: int
    source: str | None = None
    received_ms: int = 0
    seq: int = 0


class EditEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A list or table edit. `key` is the entity's keyed hash; `value` a table row as JSON.

    Of an entry that spreads `value` is the id of its paths; of a path (what such an entry reached) its id and
    itself.
    """

    kind: Literal["list", "table", "path"]
    op: Literal["put", "delete"]
    name: str
    entity: str
    key: int  # unsigned, 64 bits
    value: bytes | None = None
    expires_ms: int | None = None
    reason: str | None = None
    author: str | None = None
    time_ms: int
    seq: int = 0


class ReleaseEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A grant that was given back."""

    event_id: str
    time_ms: int
    seq: int = 0


class Activation(msgspec.Struct, frozen=True, kw_only=True):
    """A policy that somebody made the serving one, or None for `files` where the folders serve again.

    `files` by name is what the folder would have. `of` is the activation that a rollback brings back;
    `difference` is the unified diff of the files from those that served before.
    """

    id: str
    action: Literal["activate", "rollback", "folder"]
    fingerprint: str
    files: Mapping[str, str] | None
    time_ms: int
    author: str | None = None
    reason: str | None = None
    of: str | None = None
    difference: str = ""

    def encode(self) -> bytes:
        """Packed: a policy is text that says much twice."""
        return zlib.compress(msgspec.msgpack.encode(self))

    @classmethod
    def decode(cls, data: bytes) -> Activation:
        """What `encode` packed."""
        return msgspec.msgpack.decode(zlib.decompress(data), type=cls)


class PolicyEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A policy that became the active one; with `activation` by somebody's act, and not by a start."""

    fingerprint: str
    time_ms: int
    activation: Activation | None = None
    seq: int = 0


class AlertEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An episode of an alert: it began, it goes on, or (with `end_ms`) it is over.

    Later entries of one `id` take the place of earlier ones. `key` is the campaign, rule or terminal that it
    is counted by, or # and a keyed hash where that names a person; `key_hash` finds it again after a restart.
    `peak` and `above` are counts, or shares from 0 to 1. `events` are the first that counted in it. `origin`
    is the process that watches it.
    """

    id: str
    alert: str
    by: str | None
    key: str | None
    key_hash: int
    start_ms: int
    peak: float
    peak_ms: int
    updated_ms: int
    above: float
    share: bool
    over_ms: int
    events: tuple[str, ...]
    end_ms: int | None = None
    zh: str | None = None
    en: str | None = None
    policy: str = ""
    origin: str = ""
    seq: int = 0

    @property
    def begins(self) -> bool:
        """Whether this is the first that is told of the episode."""
        return self.end_ms is None and self.updated_ms == self.start_ms


AnyEntry = AlertEntry | Entry | LabelEntry | EditEntry | ReleaseEntry | PolicyEntry
