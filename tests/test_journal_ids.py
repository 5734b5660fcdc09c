"""Ids of journaled events: on their way into SQLite's table of them they are found, and known once."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import cast

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from test_journal import entry

from riskengine.journal import Journal, fresh, keeping, tables
from riskengine.journal.address import Address
from riskengine.journal.blocks import dropped_of, pack_entries
from riskengine.journal.database import Database

EVENT_IDS = ["a", 'say "b"', "\\", '","', "新年", "\0", "\u2028", "x" * 300]
# What SQLite's text cannot hold is replaced, so that these two would be one event.
assert "\u2400" not in EVENT_IDS
TOGETHER = st.lists(st.sampled_from(EVENT_IDS), min_size=1, max_size=5)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "fail", "fail", "reopen", "enter", "prune"]),
        st.booleans(),
        TOGETHER,
    ),
    max_size=25,
)


@pytest.fixture(scope="module", autouse=True)
def _few_are_enough() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fresh, "ENOUGH", 4)
        yield


@given(STEPS)
def test_two_who_write_know_what_a_dictionary_does(steps: list[tuple[str, bool, list[str]]]) -> None:
    numbers: dict[str, int] = {}
    last = 0
    with TemporaryDirectory() as folder, ExitStack() as stack:
        address = Address.parse(f"sqlite:///{folder}/j.db")
        writers = [opened(stack, address) for _ in range(2)]
        for what, other, event_ids in steps:
            writer = writers[other]
            match what:
                case "write":
                    writer.write([pack_entries([entry(event_id) for event_id in event_ids])])
                    expected = {
                        i: event_id
                        for i, event_id in enumerate(event_ids)
                        if numbers.setdefault(event_id, last + 1 + i) != last + 1 + i
                    }
                    assert dropped(writer, last + 1, event_ids) == expected
                    last += len(event_ids)
                case "fail":
                    block = pack_entries([entry(event_id) for event_id in event_ids])
                    with pytest.raises(sqlite3.Error):
                        writer.write([block, ("labels", (0, "too few"))])
                case "reopen":
                    writers[other] = opened(stack, address)
                case "enter":
                    writer.enter_ids(last)
                    assert stored(writer) == numbers
                case "prune":
                    keeping.prune(cast(Journal, SimpleNamespace(database=writer)), before_ms=2**60)
                    numbers.clear()
            for who in (*writers, opened(stack, address)):
                assert who.places_of(EVENT_IDS) == numbers


def opened(stack: ExitStack, address: Address) -> Database:
    return stack.enter_context(closing(Database.open(address, create=True)))


def dropped(database: Database, first: int, event_ids: list[str]) -> dict[int, str]:
    """Of events written together: of those that were all known before there is no block."""
    query = sa.select(tables.blocks.c.dropped).where(tables.blocks.c.seq == first)
    found = database.select(query)
    return dropped_of(found[0][0]) if found else dict(enumerate(event_ids))


def stored(database: Database) -> dict[str, int]:
    """The table of ids."""
    found: dict[str, int] = dict(database.select(sa.select(tables.ids.c.event_id, tables.ids.c.seq)))
    return {event_id.replace("\u2400", "\0"): seq for event_id, seq in found.items()}


def test_a_reader_finds_what_is_committed_while_ids_move(tmp_path: Path) -> None:
    committed = [f"0-{k}" for k in range(3)]
    over = threading.Event()
    missing: set[str] = set()
    too_early: list[int] = []

    def read() -> None:
        while not over.is_set():
            sought = set(committed[-12:])
            next_one = int(committed[-1].split("-")[0]) + 1
            places = database.places_of([*sought, f"{next_one}-0", f"{next_one + 1}-0"])
            missing.update(sought - places.keys())
            last = database.select(sa.select(tables.about.c.last))[0][0]
            too_early.extend(seq for seq in places.values() if seq > last)

    with closing(Database.open(Address.parse(f"sqlite:///{tmp_path}/j.db"), create=True)) as database:
        reader = threading.Thread(target=read)
        for i in range(400):
            event_ids = [f"{i}-{k}" for k in range(3)]
            database.write([pack_entries([entry(event_id) for event_id in event_ids])])
            committed.extend(event_ids)
            if not i:
                reader.start()
        over.set()
        reader.join()
        assert not missing
        assert not too_early
        assert len(stored(database)) > 1_000  # they did move


def test_a_journal_of_the_layout_before_goes_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/j.db"
    with Journal.open(url) as journal:
        journal.append([entry("e1")])
        journal.flush()
        journal.database.enter_ids(1)
    with sqlite3.connect(tmp_path / "j.db") as old:
        old.executescript("DROP TABLE fresh; UPDATE about SET version = 3; PRAGMA user_version = 3")
    old.close()
    with Journal.open(url, create=False) as journal:
        assert journal.decision("e1") is not None
        journal.append([entry("e1"), entry("e2")])
        journal.flush()
        assert [one.event_id for one in journal.recent(10)] == ["e1", "e2"]
    with sqlite3.connect(tmp_path / "j.db") as new:
        versions = new.execute("PRAGMA user_version"), new.execute("SELECT version FROM about")
        assert [found.fetchone() for found in versions] == [(tables.SCHEMA_VERSION,)] * 2
    new.close()
