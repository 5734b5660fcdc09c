"""The database a journal is in: opened and checked, written a group at a time, read by pages.

SQLAlchemy makes the tables and reads; groups are written through the driver itself, a few statements for any
number of events (through SQLAlchemy's own inserts a row took 46 us).
"""

from __future__ import annotations

import functools
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from riskengine.journal import tables
from riskengine.journal.address import Address
from riskengine.journal.blocks import Block, pack_dropped, without
from riskengine.journal.fresh import SPAN, Fresh, numbered
from riskengine.journal.tables import SCHEMA_VERSION, Row
from riskengine.journal.trouble import JournalError

Item = Block | tuple[str, Row]  # a block, or a row of the table of that name

BUSY_SECONDS: Final = 0.5  # how long SQLite waits for another process's write lock
CONNECT_SECONDS: Final = 2  # how long a server is called
STATEMENT_MS: Final = 5_000  # how long it may take over one statement
PAGE_BYTES: Final = 8_192  # of SQLite's file: 4,096 takes a third more calls
CACHE_KB: Final = 16_384
# That a commit brings from the WAL into the file, once there are so many. By SQLite's own 1,000 it took the
# core for 25 ms every third of a second at 15,000 events/s, and of requests with a deadline of 50 ms one in
# a hundred was late.
CHECKPOINT_PAGES: Final = 128
_APPLICATION_ID: Final = 0x5249534B  # "RISK", in the file's header: tells a journal from another SQLite file
MOVED_IDS: Final = 1_000  # in one transaction, where nobody writes entries with them
_DAMAGED: Final = "The file is damaged: move it aside and put a copy of it in its place."
_FRESH_SPAN: Final = sa.text(f"{SPAN}, (SELECT last FROM about)")
_IDS_POSTGRES: Final = (
    "INSERT INTO ids SELECT t, %s + k - 1 FROM unnest(%s::text[]) WITH ORDINALITY AS u (t, k) ORDER BY t, k "
    "ON CONFLICT DO NOTHING"
)


class Database:
    """An open database. One thread writes; any may read."""

    def __init__(self, address: Address, engine: sa.Engine, identity: tuple[int, int] | None) -> None:
        """Use `Database.open`."""
        self.address = address
        self.is_sqlite = address.file is not None
        self._engine = engine
        self._identity = identity
        self._fresh = Fresh()
        mark = "?" if self.is_sqlite else "%s"
        self._inserts = {
            table.name: f"INSERT INTO {table.name} VALUES ({', '.join([mark] * len(table.columns))})"
            for table in (tables.blocks, *(table for table, _ in tables.KINDS))
        }

    @classmethod
    def open(cls, address: Address, create: bool) -> Database:
        """Connect, and make the tables in a new database if `create`. Raises JournalError."""
        return _open_file(address, create) if address.file is not None else _open_server(address, create)

    def close(self) -> None:
        """Let go of the connections."""
        self._engine.dispose()

    def is_replaced(self) -> bool:
        """Whether another file lies there now, or none: SQLite would go on writing to a deleted one."""
        return self.address.file is not None and _identity(self.address.file) != self._identity

    # -- writing

    def write(self, items: Sequence[Item], spool: tuple[str, int] | None = None) -> None:
        """Write a group in one transaction, numbered after everything that is there.

        `spool` is how far a spool file is taken in by it. Raises what the driver raises.
        """
        try:
            with self._transaction() as cursor:
                self._write(cursor, items, spool)
        except BaseException:
            self._fresh.failed()
            raise

    def _write(self, cursor: Any, items: Sequence[Item], spool: tuple[str, int] | None) -> None:
        size = sum(len(item.ids) if isinstance(item, Block) else 1 for item in items)
        cursor.execute(f"UPDATE about SET last = last + {self._mark()} WHERE id = 1 RETURNING last", (size,))
        seq: int = cursor.fetchone()[0] - size
        rows: dict[str, list[Row]] = {}
        runs: list[tuple[int, list[str], list[int]]] = []  # first number, ids, blocks' places in `here`
        here: list[Row | None] = []
        together = False
        for item in items:
            if not isinstance(item, Block):
                rows.setdefault(item[0], []).append((seq + 1, *map(self.text, item[1][1:])))
                seq += 1
                together = False
                continue
            if not together:
                runs.append((seq + 1, [], []))
                together = True
            runs[-1][1].extend(item.ids)
            runs[-1][2].append(len(here))
            here.append((seq + 1, len(item.ids), item.at_ms, item.until_ms, None, item.body, item.sealed))
            seq += len(item.ids)
        for first, names, places in runs:
            again = self._number(cursor, first, names)
            for place in places if again else ():
                row = here[place]
                assert row is not None
                dropped = {
                    number - row[0]: names[number - first]
                    for number in again
                    if row[0] <= number < row[0] + row[1]
                }
                if len(dropped) == row[1]:  # nothing of it is kept, and its numbers are nobody's
                    here[place] = None
                elif dropped:
                    here[place] = (*row[:4], pack_dropped(dropped), without(row[5], dropped), row[6])
        rows[tables.blocks.name] = [row for row in here if row is not None]
        for name, many in rows.items():
            if many:
                cursor.executemany(self._inserts[name], many)
        if spool is not None:
            cursor.execute(
                f"INSERT INTO spools VALUES ({self._mark()}, {self._mark()}) "
                "ON CONFLICT (id) DO UPDATE SET taken = excluded.taken",
                spool,
            )

    def _number(self, cursor: Any, first: int, event_ids: list[str]) -> list[int]:
        """Enter the ids of events numbered from `first` on; the numbers of those that were there before."""
        if "\0" in "".join(event_ids):
            event_ids = [self.text(event_id) for event_id in event_ids]
        if self.is_sqlite:
            return self._fresh.enter(cursor, first, event_ids)
        cursor.execute(_IDS_POSTGRES, (first, event_ids))
        if cursor.rowcount == len(event_ids):
            return []
        cursor.execute("SELECT event_id, seq FROM ids WHERE event_id = ANY(%s)", (event_ids,))
        found = dict(cursor.fetchall())
        return [i for i, event_id in enumerate(event_ids, first) if found[event_id] != i]

    def enter_ids(self, through: int) -> None:
        """Have the table of ids know every event that is numbered up to `through`. Raises JournalError."""
        fresh, more = Fresh(), self.is_sqlite
        while more:
            try:
                with self._transaction() as cursor:
                    more = fresh.move(cursor, MOVED_IDS, through)
            except sqlite3.Error as error:
                raise JournalError(explain(self.address, error)) from error

    def script(self, *statements: sa.Delete | sa.Update) -> None:
        """Run statements in one transaction. Raises JournalError."""
        try:
            with self._engine.connect() as connection:
                if self.is_sqlite:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                for statement in statements:
                    connection.execute(statement)
                connection.commit()
        except sa.exc.DBAPIError as error:
            raise JournalError(explain(self.address, error)) from error

    def forget(self) -> None:
        """Make sure that what was deleted cannot be read from the files any more."""
        if self.is_sqlite:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            return
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for table in (tables.blocks, tables.ids, tables.labels, tables.releases, tables.alerts):
                connection.exec_driver_sql(f"VACUUM {table.name}")

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with self._engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            cursor = raw.cursor()
            try:
                if self.is_sqlite:
                    cursor.execute("BEGIN IMMEDIATE")
                yield cursor
                if self.is_sqlite:
                    cursor.execute("COMMIT")
                else:
                    raw.commit()
            except BaseException:
                try:
                    raw.rollback()
                except Exception:  # the connection is gone: the first error is the one to tell
                    connection.invalidate()
                raise
            finally:
                cursor.close()

    def _mark(self) -> str:
        return "?" if self.is_sqlite else "%s"

    def text(self, value: Any) -> Any:
        """A value as a column of text holds it: PostgreSQL's has no NUL, and SQLite's JSON ends there."""
        if not isinstance(value, str) or "\0" not in value:
            return value
        return value.replace("\0", "\u2400")

    # -- reading

    def select(self, query: sa.Executable) -> list[Row]:
        """Rows. Raises JournalError."""
        try:
            with self._engine.connect() as connection:
                return [tuple(row) for row in connection.execute(query)]
        except sa.exc.SQLAlchemyError as error:  # the driver's, and that no connection has become free
            text = told(error)
            mend = f" {_DAMAGED}" if _is_damaged(text) else ""
            raise JournalError(f"the journal {self.address.shown} cannot be read: {text}.{mend}") from error

    def place_of(self, event_id: str) -> int | None:
        """The number of an event."""
        return self.places_of((event_id,)).get(event_id)

    def places_of(self, event_ids: Iterable[str]) -> dict[str, int]:
        """The numbers of those of these events that have one."""
        texts = {self.text(event_id): event_id for event_id in event_ids}
        places = self._fresh_places(texts) if self.is_sqlite else {}
        ids = tables.ids
        query = sa.select(ids.c.event_id, ids.c.seq).where(ids.c.event_id.in_(texts.keys() - places.keys()))
        places.update(self.select(query))
        return {texts[text]: seq for text, seq in places.items()}

    def _fresh_places(self, texts: Iterable[str]) -> dict[str, int]:
        """The numbers of those of these ids that the table of ids may not have."""
        fresh = tables.fresh
        first, end, last = self.select(_FRESH_SPAN)[0]
        if first is None:
            return {}
        places = self._fresh.places((first, end))
        if places is None:  # somebody else writes here
            places = dict(numbered(self.select(sa.select(fresh.c.seq, fresh.c.ids))))
        found = ((text, places.get(text)) for text in texts)
        return {text: seq for text, seq in found if seq is not None and seq <= last}

    def of_event(self, table: sa.Table, event_id: str) -> list[Row]:
        """Rows of a table about an event, in arrival order."""
        return self.select(
            sa.select(table).where(table.c.event_id == self.text(event_id)).order_by(table.c.seq)
        )

    def size_bytes(self) -> int:
        """What it takes on disk."""
        if self.address.file is not None:
            names = (self.address.file, f"{self.address.file}-wal")
            return sum(os.path.getsize(name) for name in names if os.path.exists(name))
        sizes = [f"pg_total_relation_size('{table.name}')" for table in tables.schema.sorted_tables]
        return int(self.select(sa.select(sa.text(" + ".join(sizes))))[0][0])


def told(error: BaseException) -> str:
    """The first line of what a driver says, without a full stop."""
    said = str(getattr(error, "orig", None) or error).strip()
    return (said.splitlines() or [type(error).__name__])[0].removesuffix(".")


def explain(address: Address, error: BaseException) -> str:
    """One paragraph for people: why the journal cannot be written, and what to do."""
    if isinstance(error, JournalError):
        return str(error)
    text = told(error)
    mend = "Check the disk and the file's permissions."
    if address.server is not None:
        mend = "It is called again every second."
    elif "locked" in text or "busy" in text:
        mend = "Another process holds a write lock on it for long: end that process, or its transaction."
    elif "full" in text:
        mend = "Free space on that disk."
    elif "readonly" in text or "read-only" in text:
        mend = "Give this process the right to write the file and its folder."
    elif _is_damaged(text):
        mend = _DAMAGED
    return f"the journal {address.shown} cannot be written: {text}. {mend}"


def _is_damaged(text: str) -> bool:
    return "malformed" in text or "not a database" in text


# -- SQLite


def _open_file(address: Address, create: bool) -> Database:
    file = address.file
    assert file is not None
    if not os.path.exists(file):
        folder = os.path.dirname(file) or "."
        if not create:
            raise JournalError(f"there is no journal at {file}. Check the path.")
        if not os.path.isdir(folder):
            raise JournalError(f"the journal {file} cannot be made: there is no folder {folder}.")
    elif os.path.isdir(file):
        raise JournalError(f"the journal {file} cannot be opened: it is a folder. Name a file in it.")
    # Only `create` may make a file: a reader that came after a deletion would leave an empty one behind.
    uri = f"{Path(file).absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
    engine = sa.create_engine(
        "sqlite+pysqlite://",
        poolclass=sa.QueuePool,
        creator=functools.partial(_dial, uri, address.commit == "sync"),
    )
    try:
        with engine.connect() as connection:
            _check_file(connection, file, create)
    except sa.exc.DatabaseError as error:
        engine.dispose()
        if "not a database" in str(error.orig):
            raise JournalError(f"{file} is not a SQLite file. Name another file for the journal.") from error
        mend = (
            "Give this process the right to write the file and its folder, or name another place for it: "
            "sqlite:///FILE."
        )
        if _is_damaged(str(error.orig)):
            mend = _DAMAGED
        raise JournalError(f"the journal {file} cannot be opened: {error.orig}. {mend}") from error
    except JournalError:
        engine.dispose()
        raise
    return Database(address, engine, _identity(file))


def _identity(file: str) -> tuple[int, int] | None:
    """Device and inode."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _dial(uri: str, sync: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri,
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,  # transactions are begun by us, and immediate
        check_same_thread=False,  # the pool lends a connection to one thread at a time
    )
    # In WAL, NORMAL survives kill -9, and a power cut costs the tail; FULL waits for the disk.
    connection.execute(f"PRAGMA synchronous = {'FULL' if sync else 'NORMAL'}")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    connection.execute("PRAGMA secure_delete = ON")  # what retention deletes is not left in free pages
    return connection


def _check_file(connection: Connection, file: str, create: bool) -> None:
    """Make the tables in a new file; refuse another program's file and another version's."""
    if _is_journal(connection, file):
        if create:
            _check_writable(connection)
        _add(connection)
        return
    if not create:
        raise JournalError(f"the journal {file} is empty. Put a copy of it in its place.")
    connection.exec_driver_sql(f"PRAGMA page_size = {PAGE_BYTES}")
    patience, pause = 100, threading.Event()
    while True:  # other processes may be making it at this moment; WAL's switch does not wait for them
        try:
            mode = connection.exec_driver_sql("PRAGMA journal_mode = WAL").scalar_one()
            break
        except sa.exc.OperationalError as error:
            patience -= 1
            if "locked" not in str(error.orig) or not patience:
                raise
            pause.wait(0.01)
    if mode != "wal":
        raise JournalError(
            f"the journal {file} cannot be read while it is written there: SQLite's WAL does not work "
            "there (a network file system?). Put it on a local disk."
        )
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    if not _is_journal(connection, file):
        _make(connection)
        connection.exec_driver_sql(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.commit()


def _check_writable(connection: Connection) -> None:
    """Raise what SQLite raises where the file cannot be written. That another process writes is no harm."""
    try:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    except sa.exc.OperationalError as error:
        if "locked" not in str(error.orig):
            raise
    else:
        connection.rollback()


def _is_journal(connection: Connection, file: str) -> bool:
    """False where the file is still empty. Raises JournalError where it is something else."""
    application = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    found = connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()
    if application == _APPLICATION_ID:
        _check_version(file, version)
        return True
    if application or found:
        raise JournalError(
            f"{file} is a SQLite file, but not a riskengine journal. Name another file for the journal."
        )
    return False


def _make(connection: Connection) -> None:
    tables.schema.create_all(connection)
    connection.execute(sa.insert(tables.about).values(id=1, version=SCHEMA_VERSION, last=0))


def _add(connection: Connection) -> None:
    """Make the tables that a journal of an older layout has not, which makes it one of this layout."""
    version = sa.select(tables.about.c.version)
    if connection.execute(version).scalar_one() == SCHEMA_VERSION:
        return
    is_sqlite = connection.dialect.name == "sqlite"
    if is_sqlite:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    for table in tables.ADDED:
        table.create(connection, checkfirst=True)
    connection.execute(sa.update(tables.about).values(version=SCHEMA_VERSION))
    if is_sqlite:
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.commit()


def _check_version(where: str, version: int) -> None:
    if version in (SCHEMA_VERSION, *tables.EXTENDED):
        return
    mend = (
        "Update riskengine to open it."
        if version > SCHEMA_VERSION
        else "Keep it as it is for the riskengine that made it, and begin a new one."
    )
    raise JournalError(
        f"the journal {where} has layout {version}, and this riskengine reads and writes layout "
        f"{SCHEMA_VERSION}. {mend}"
    )


# -- PostgreSQL


def _open_server(address: Address, create: bool) -> Database:
    assert address.server is not None
    limits: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "options": f"-c statement_timeout={STATEMENT_MS} -c lock_timeout={STATEMENT_MS} -c timezone=UTC",
        "keepalives_idle": 2,
        "keepalives_interval": 1,
        "keepalives_count": 3,
        "tcp_user_timeout": STATEMENT_MS,
    }
    try:
        engine = sa.create_engine(
            address.server, connect_args=limits, pool_pre_ping=True, pool_use_lifo=True, hide_parameters=True
        )
    except ModuleNotFoundError as error:
        raise JournalError(
            "a journal in PostgreSQL needs its driver: pip install 'riskengine[postgresql]'"
        ) from error
    try:
        with engine.connect() as connection:
            _check_server(connection, address.shown, create)
            connection.commit()
    except sa.exc.DBAPIError as error:
        engine.dispose()
        raise JournalError(
            f"the journal {address.shown} cannot be opened: {told(error)}. Check that the server runs, and "
            "the user's rights."
        ) from error
    except JournalError:
        engine.dispose()
        raise
    return Database(address, engine, None)


def _check_server(connection: Connection, shown: str, create: bool) -> None:
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_APPLICATION_ID,))  # one makes the tables
    inspector = sa.inspect(connection)
    names = set(inspector.get_table_names())
    ours = {table.name for table in tables.schema.sorted_tables if table not in tables.ADDED}
    if ours <= names:
        columns = {column["name"] for column in inspector.get_columns("about")}
        if columns == {"id", "version", "last"}:
            _check_version(shown, connection.execute(sa.select(tables.about.c.version)).scalar_one())
            _add(connection)
            return
    if ours & names:
        taken = ", ".join(sorted(ours & names))
        raise JournalError(
            f"the database {shown} has tables of another program ({taken}). Name another database for the "
            "journal."
        )
    if not create:
        raise JournalError(f"there is no journal in {shown}. Check the URL.")
    _make(connection)


def spools_taken(database: Database, names: Iterable[str]) -> dict[str, int]:
    """How far spool files are taken in, by their ids."""
    query = sa.select(tables.spools).where(tables.spools.c.id.in_(list(names)))
    return {row[0]: row[1] for row in database.select(query)}
