"""Where a journal is and how it is written, as its URL says: sqlite:///FILE?commit=sync or postgresql://..."""

from __future__ import annotations

import hashlib
import os
from typing import Final, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from riskengine.journal.trouble import JournalError

Commit = Literal["async", "sync"]
COMMITS: Final = ("async", "sync")
_EXAMPLE: Final = "Write it as sqlite:///journal.db or postgresql://USER@HOST/DATABASE"


class Address(NamedTuple):
    """A journal's URL, read."""

    file: str | None  # of SQLite
    server: URL | None  # of PostgreSQL, without what is ours in the query
    commit: Commit
    spool: str  # what the names of spool files begin with
    shown: str  # for people: no password in it

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read a URL. What is wrong with it is said without repeating it: it may hold a password."""
        try:
            url = make_url(text)
        except sa.exc.ArgumentError as error:
            raise JournalError(f"the journal's URL cannot be read. {_EXAMPLE}") from error
        commit = _single(url, "commit") or "async"
        if commit not in COMMITS:
            raise JournalError("the journal's URL says another commit than async or sync: choose one")
        spool = _single(url, "spool")
        rest = url.difference_update_query(["commit", "spool"])
        backend = url.get_backend_name()
        if backend == "sqlite":
            if url.database in (None, "", ":memory:"):
                raise JournalError("the journal's URL names no file. Write sqlite:///journal.db")
            file = str(url.database)
            if rest.query:
                names = ", ".join(sorted(rest.query))
                raise JournalError(f"the journal's URL says {names}: it may say commit and spool")
            return cls(file, None, _commit(commit), spool or f"{file}-spool", file)
        if backend != "postgresql":
            raise JournalError(
                f"a journal is kept in SQLite or PostgreSQL, not in {backend}. {_EXAMPLE.replace('it ', '')}"
            )
        if not url.database:
            raise JournalError("the journal's URL names no database. Write postgresql://USER@HOST/DATABASE")
        name = f"{url.host}:{url.port or 5432}/{url.database}"
        digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
        server = rest.set(drivername="postgresql+psycopg")
        shown = rest.set(password=None, query={}, drivername="postgresql").render_as_string()
        return cls(None, server, _commit(commit), os.path.abspath(spool or f"journal-{digest}-spool"), shown)


def with_commit(url: str, commit: str) -> str:
    """A journal's URL with another commit, where it says none itself. Raises JournalError."""
    try:
        read = make_url(url)
    except sa.exc.ArgumentError as error:
        raise JournalError(f"the journal's URL cannot be read. {_EXAMPLE}") from error
    if "commit" in read.query:
        return url
    return read.update_query_dict({"commit": commit}).render_as_string(hide_password=False)


def _commit(text: str) -> Commit:
    return "sync" if text == "sync" else "async"


def _single(url: URL, name: str) -> str | None:
    found = url.query.get(name)
    return found if isinstance(found, str) or found is None else found[-1]
