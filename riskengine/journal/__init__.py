"""The journal: what was decided, learned and changed, kept in a database in the order it happened.

`Journal` is the door (door.py). Behind it: blocks of decided events (blocks.py), the tables (tables.py) in
SQLite or PostgreSQL (database.py), what waits while these are away (spool.py), encryption (sealing.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from riskengine.journal.blocks import pack_row, unpack_row
from riskengine.journal.trouble import JournalError

if TYPE_CHECKING:
    from riskengine.journal.door import Journal

__all__ = ["Journal", "JournalError", "pack_row", "unpack_row"]


def __getattr__(name: str) -> Any:
    """The door is opened when first asked for: SQLAlchemy comes with it, and takes 0.16 s."""
    if name != "Journal":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from riskengine.journal.door import Journal

    return Journal
