"""What lies in which table, and what an entry is as a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from riskengine.entries import (
    Activation,
    AlertEntry,
    AnyEntry,
    EditEntry,
    LabelEntry,
    PolicyEntry,
    ReleaseEntry,
)

SCHEMA_VERSION: Final = 4
EXTENDED: Final = (3,)  # of layouts that become this one by having the tables ADDED

Row = tuple[Any, ...]  # the columns of a table, in its order; `seq` is first, and 0 while queued

_BIG: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

schema = sa.MetaData()
about = sa.Table(  # one row: the layout, and the last `seq` given out, to entries of any kind
    "about",
    schema,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("last", _BIG, nullable=False),
)
spools = sa.Table(  # how far each spool file has been taken in: the same transaction brought what is in it
    "spools",
    schema,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("taken", _BIG, nullable=False),
)
blocks = sa.Table(  # decided events, a batch in a row: the i-th has the number seq + i
    "blocks",
    schema,
    sa.Column("seq", _BIG, primary_key=True, autoincrement=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("at", _BIG, nullable=False),
    sa.Column("until", _BIG, nullable=False),
    sa.Column("dropped", sa.LargeBinary),  # which of them had been decided before, see blocks.py
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("sealed", sa.LargeBinary),
    sa.Index("blocks_by_time", "at", "until"),
)
ids = sa.Table(
    "ids",
    schema,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("seq", _BIG, nullable=False),
    sqlite_with_rowid=False,
)
fresh = sa.Table(  # ids that are not in `ids` yet, of events numbered seq, seq + 1, ...; see fresh.py
    "fresh",
    schema,
    sa.Column("seq", _BIG, primary_key=True, autoincrement=False),
    sa.Column("ids", sa.Text, nullable=False),  # JSON, null where an event was decided before
)
labels = sa.Table(
    "labels",
    schema,
    sa.Column("seq", _BIG, primary_key=True, autoincrement=False),
    sa.Column("event_id", sa.Text, nullable=False, index=True),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("time", _BIG, nullable=False),
    sa.Column("source", sa.Text),
    sa.Column("received", _BIG, nullable=False),
)
edits = sa.Table(
    "edits",
    schema,
    sa.Column("seq", _BIG, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("op", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("entity", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),  # 16 hex digits: SQL's integers are signed
    sa.Column("value", sa.Text),
    sa.Column("expires", _BIG),
    sa.Column("reason", sa.Text),
    sa.Column("author", sa.Text),
    sa.Column("time", _BIG, nullable=False),
)
releases = sa.Table(
    "releases",
    schema,
    sa.Column("seq", _BIG, primary_key=True, autoincrement=False),
    sa.Column("event_id", sa.Text, nullable=False, index=True),
    sa.Column("time", _BIG, nullable=False),
)
policies = sa.Table(
    "policies",
    schema,
    sa.Column("seq", _BIG, primary_key=True, autoincrement=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("time", _BIG, nullable=False),
    sa.Column("author", sa.Text),
    sa.Column("activation", sa.LargeBinary),
)
alerts = sa.Table(  # an episode's later rows take the place of its earlier ones
    "alerts",
    schema,
    sa.Column("seq", _BIG, primary_key=True, autoincrement=False),
    sa.Column("id", sa.Text, nullable=False, index=True),
    sa.Column("alert", sa.Text, nullable=False),
    sa.Column("start", _BIG, nullable=False),
    sa.Column("ended", _BIG),
    sa.Column("updated", _BIG, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
ADDED: Final = (fresh, alerts)  # to journals that are older: made there when they are opened


def pack(entry: AlertEntry | LabelEntry | EditEntry | ReleaseEntry | PolicyEntry) -> tuple[str, Row]:
    """The table of an entry, and its row."""
    match entry:
        case LabelEntry():
            return "labels", (
                0,
                entry.event_id,
                entry.label,
                entry.time_ms,
                entry.source,
                entry.received_ms,
            )
        case EditEntry():
            return "edits", (
                0,
                entry.kind,
                entry.op,
                entry.name,
                entry.entity,
                f"{entry.key:016x}",
                None if entry.value is None else entry.value.decode(),
                entry.expires_ms,
                entry.reason,
                entry.author,
                entry.time_ms,
            )
        case AlertEntry():
            body = msgspec.msgpack.encode(entry)
            return "alerts", (
                0, entry.id, entry.alert, entry.start_ms, entry.end_ms, entry.updated_ms, body,
            )  # fmt: skip
        case ReleaseEntry():
            return "releases", (0, entry.event_id, entry.time_ms)
        case PolicyEntry():
            act = entry.activation
            return "policies", (
                0,
                entry.fingerprint,
                entry.time_ms,
                None if act is None else act.author,
                None if act is None else act.encode(),
            )


def label(row: Row) -> LabelEntry:
    """A row of `labels`."""
    seq, event_id, name, time_ms, source, received_ms = row
    return LabelEntry(
        event_id=event_id, label=name, time_ms=time_ms, source=source, received_ms=received_ms, seq=seq
    )


def edit(row: Row) -> EditEntry:
    """A row of `edits`."""
    seq, kind, op, name, entity, key, value, expires, reason, author, time_ms = row
    return EditEntry(
        kind=kind,
        op=op,
        name=name,
        entity=entity,
        key=int(key, 16),
        value=None if value is None else value.encode(),
        expires_ms=expires,
        reason=reason,
        author=author,
        time_ms=time_ms,
        seq=seq,
    )


def release(row: Row) -> ReleaseEntry:
    """A row of `releases`."""
    seq, event_id, time_ms = row
    return ReleaseEntry(event_id=event_id, time_ms=time_ms, seq=seq)


def policy(row: Row) -> PolicyEntry:
    """A row of `policies`."""
    seq, fingerprint, time_ms, _, packed = row
    activation = None if packed is None else Activation.decode(packed)
    return PolicyEntry(fingerprint=fingerprint, time_ms=time_ms, activation=activation, seq=seq)


def alert(row: Row) -> AlertEntry:
    """A row of `alerts`."""
    return msgspec.structs.replace(msgspec.msgpack.decode(row[6], type=AlertEntry), seq=row[0])


KINDS: Final[tuple[tuple[sa.Table, Callable[[Row], AnyEntry]], ...]] = (
    (labels, label),
    (edits, edit),
    (releases, release),
    (policies, policy),
    (alerts, alert),
)
