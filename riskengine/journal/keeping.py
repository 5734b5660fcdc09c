"""What is done to a journal now and then: shown, exported, pruned, encrypted with another key."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from riskengine.entries import Entry
from riskengine.journal import tables
from riskengine.journal.blocks import dropped_of, ids_of, unpack, unpack_row
from riskengine.journal.database import Database, spools_taken
from riskengine.journal.door import Journal, blocks_between
from riskengine.journal.spool import Spool
from riskengine.journal.tables import Row
from riskengine.journal.trouble import JournalError

PRUNE_BLOCKS: Final = 64  # in one transaction: the writer waits no longer than for that
PRUNE_EVENTS: Final = 2_000
EXPORT_EVENTS: Final = 10_000  # in one group of rows, and the rest of the block it ends in

Moved = Callable[[int, int | None], None]  # how much is done, of how much


class UnsealedError(JournalError):
    """Nothing was encrypted when an event was journaled."""


def info(journal: Journal) -> dict[str, Any]:
    """How much a journal holds: entries of each kind, the time they span (ms), bytes, what is sealed."""
    blocks = tables.blocks
    database = journal.database
    query = sa.select(sa.func.count(), sa.func.min(blocks.c.at), sa.func.max(blocks.c.until))
    many, first, last = database.select(query)[0]
    return {
        "journal": database.address.shown,
        "layout": tables.SCHEMA_VERSION,
        "commit": database.address.commit,
        "decisions": _decisions(database, sa.true()),
        "blocks": many,
        **{
            table.name: database.select(sa.select(sa.func.count()).select_from(table))[0][0]
            for table, _ in tables.KINDS
        },
        "first_ms": first,
        "last_ms": last,
        "bytes": database.size_bytes(),
        "sealed_blocks": database.select(sa.select(sa.func.count(blocks.c.sealed)))[0][0],
        "key": None if journal.sealer is None else journal.sealer.key_id,
        "spool_files": len(spools_beside(journal)),
    }


def spools_beside(journal: Journal) -> list[str]:
    """The spool files with entries that are not in the journal yet."""
    database = journal.database
    return Spool.beside(database.address.spool, lambda name: spools_taken(database, [name]).get(name, 0))


def in_clear(journal: Journal, event_id: str) -> dict[str, Any]:
    """The personal values of an event, as they came. Raises JournalError without the key, or the event.

    Raises UnsealedError where they were not encrypted.
    """
    database = journal.database
    seq = database.place_of(event_id)
    if seq is None:
        raise JournalError(f"the journal {database.address.shown} has no event of this id")
    row = next(row for row in blocks_between(database, seq - 1, seq) if row[0] <= seq < row[0] + row[1])
    if row[5] is None:
        raise UnsealedError("nothing was encrypted when this event was journaled: only hashes are kept of it")
    if journal.sealer is None:
        raise JournalError("the personal values are encrypted: set RISKENGINE_JOURNAL_KEY to read them")
    personal: dict[str, Any] = journal.sealer.open(row[5], _ids(row))[seq - row[0]]
    return personal


def prune(journal: Journal, before_ms: int, moved: Moved = lambda done, total: None) -> int:
    """Delete decisions judged before a time, and what else came before it; how many decisions.

    Labels, releases and episodes of alerts go too. Edits of lists and tables stay, and so do policies and how
    an episode stands that has not ended: what is in effect now may be old. It goes in small steps, so that
    the writer waits for none for long, and can be interrupted between any two. What is deleted cannot be read
    from the file any more.
    """
    database, blocks, alerts = journal.database, tables.blocks, tables.alerts
    every = alerts.alias()
    latest = sa.select(sa.func.max(every.c.seq)).group_by(every.c.id)
    is_open = sa.and_(alerts.c.ended.is_(None), alerts.c.seq.in_(latest))
    old = blocks.c.until < before_ms
    total = _decisions(database, old)
    changed, done = False, 0
    try:
        while True:
            query = (
                sa.select(blocks.c.seq, blocks.c.n, blocks.c.dropped, blocks.c.body)
                .where(old)
                .order_by(blocks.c.at)
            )
            rows = database.select(query.limit(PRUNE_BLOCKS))
            if not rows:
                break
            chosen, ids = [], []
            for seq, n, packed, body in rows:
                dropped = dropped_of(packed)
                chosen.append((seq, n))
                done += n - len(dropped)
                ids += ids_of(body, dropped)
                if len(ids) >= PRUNE_EVENTS:
                    break
            first = {seq for seq, _ in chosen}
            database.enter_ids(max(first))
            bound = [tables.ids.c.seq.between(seq, seq + n - 1) for seq, n in chosen]
            for at in range(0, len(ids), 500):
                names = [database.text(event_id) for event_id in ids[at : at + 500]]
                database.script(sa.delete(tables.ids).where(tables.ids.c.event_id.in_(names), sa.or_(*bound)))
            database.script(sa.delete(blocks).where(blocks.c.seq.in_(first)))
            changed = True
            moved(done, total)
        database.script(
            sa.delete(tables.labels).where(tables.labels.c.received < before_ms),
            sa.delete(tables.releases).where(tables.releases.c.time < before_ms),
            sa.delete(alerts).where(alerts.c.updated < before_ms, sa.not_(is_open)),
        )
    finally:
        if changed:
            database.forget()
    return done


def export(
    journal: Journal, path: str, from_ms: int, to_ms: int, moved: Moved = lambda done, total: None
) -> int:
    """Write decisions judged from a time (included) to another (excluded) to Parquet; how many.

    What is journaled meanwhile is left out. The file appears whole, at the end. Raises JournalError, OSError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("seq", pa.int64()), ("event_id", pa.string()), ("decision_id", pa.string()),
            ("time", pa.timestamp("ms", "UTC")), ("judged", pa.timestamp("ms", "UTC")), ("type", pa.string()),
            ("action", pa.string()), ("risk", pa.float64()), ("flags", pa.list_(pa.string())),
            ("policy", pa.string()), ("decision", pa.string()), ("event", pa.string()),
            ("row", pa.string()), ("labels", pa.list_(pa.string())),
        ]
    )  # fmt: skip
    partial = Path(f"{path}.partial")
    read = written = 0
    blocks = tables.blocks
    last = journal.database.select(sa.select(tables.about.c.last))[0][0]
    within = sa.and_(blocks.c.until >= from_ms, blocks.c.at < to_ms, blocks.c.seq <= last)
    total = _decisions(journal.database, within)  # some of the first and the last blocks are not written
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as file:
            rows: list[dict[str, Any]] = []
            for entries in _blocks_of(journal, within):
                read += len(entries)
                rows += _exported(entries, from_ms, to_ms)
                if len(rows) >= EXPORT_EVENTS:
                    file.write_table(_with_labels(journal, rows, schema))
                    written += len(rows)
                    rows = []
                    moved(read, total)
            if rows:
                file.write_table(_with_labels(journal, rows, schema))
                written += len(rows)
            moved(read, total)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return written


def reseal(journal: Journal, moved: Moved = lambda done, total: None) -> int:
    """Encrypt with the first key what an older one encrypted, block by block; how many blocks.

    When it is through, the old keys are needed no more. Raises JournalError for a key that is missing.
    """
    sealer, database, blocks = journal.sealer, journal.database, tables.blocks
    if sealer is None:
        raise JournalError(
            "there is no key: set RISKENGINE_JOURNAL_KEY to the new key, a comma and the old one"
        )
    total = database.select(sa.select(sa.func.count(blocks.c.sealed)))[0][0]
    last = database.select(sa.select(tables.about.c.last))[0][0]
    done = changed = 0
    for row in blocks_between(database, 0, last):
        seq, sealed = row[0], row[5]
        if sealed is None:
            continue
        done += 1
        if not sealer.is_current(sealed):
            ids = _ids(row)
            again = sealer.seal(sealer.open(sealed, ids), ids)
            database.script(sa.update(blocks).where(blocks.c.seq == seq).values(sealed=again))
            changed += 1
        moved(done, total)
    if changed:
        database.forget()
    return changed


def _ids(row: Row) -> list[str]:
    """The ids of a block, a row of `blocks_between`."""
    return ids_of(row[4], dropped_of(row[3]))


def _decisions(database: Database, which: sa.ColumnElement[bool]) -> int:
    """How many decisions there are in such blocks: events that had been decided before are none."""
    blocks = tables.blocks
    events = database.select(sa.select(sa.func.sum(blocks.c.n)).where(which))[0][0] or 0
    packed = database.select(sa.select(blocks.c.dropped).where(which, blocks.c.dropped.is_not(None)))
    return int(events) - sum(len(dropped_of(row[0])) for row in packed)


def _blocks_of(journal: Journal, which: sa.ColumnElement[bool]) -> Iterator[list[Entry]]:
    """The decisions of each of such blocks."""
    blocks = tables.blocks
    places = sa.select(blocks.c.seq).where(which).order_by(blocks.c.seq).limit(1_000)
    after = -1
    while some := [row[0] for row in journal.database.select(places.where(blocks.c.seq > after))]:
        after = some[-1]
        for place in some:
            query = sa.select(blocks.c.seq, blocks.c.dropped, blocks.c.body).where(blocks.c.seq == place)
            for seq, dropped, body in journal.database.select(query):
                yield list(unpack(body, seq, dropped=dropped_of(dropped)))


def _exported(entries: Iterable[Entry], from_ms: int, to_ms: int) -> Iterator[dict[str, Any]]:
    """Rows of those that were judged in a time span."""
    for entry in entries:
        judged = msgspec.msgpack.decode(entry.trace)[3] if len(entry.trace) > 1 else entry.event_time_ms
        if from_ms <= judged < to_ms:
            yield {
                "seq": entry.seq, "event_id": entry.event_id, "decision_id": entry.decision_id,
                "time": entry.event_time_ms, "judged": judged, "type": entry.type,
                "action": entry.action, "risk": entry.risk, "flags": list(entry.flags),
                "policy": entry.policy, "decision": entry.decision.decode(),
                "event": msgspec.json.encode(entry.event).decode(),
                "row": msgspec.json.encode(unpack_row(entry.row)).decode(), "labels": [],
            }  # fmt: skip


def _with_labels(journal: Journal, rows: list[dict[str, Any]], schema: Any) -> Any:
    import pyarrow as pa

    by_id = {row["event_id"]: row for row in rows}
    names, labels = list(by_id), tables.labels
    for at in range(0, len(names), 500):
        some = [journal.database.text(name) for name in names[at : at + 500]]
        query = sa.select(labels).where(labels.c.event_id.in_(some)).order_by(labels.c.seq)
        for found in map(tables.label, journal.database.select(query)):
            if found.event_id in by_id:
                by_id[found.event_id]["labels"].append(found.label)
    return pa.Table.from_pylist(rows, schema=schema)
