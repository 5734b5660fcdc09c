"""The journal: what was decided, learned and changed, kept in a database in the order it happened.

`Journal` is the door (door.py). Behind it: blocks of decided events (blocks.py), the tables (tables.py) in
SQLite or PostgreSQL (database.py), what waits while these are away (spool.py), encryption (sealing.py).
"""

from __future__ import annotations

from riskengine.journal.blocks import pack_row, unpack_row
from riskengine.journal.door import Journal
from riskengine.journal.trouble import JournalError

__all__ = ["Journal", "JournalError", "pack_row", "unpack_row"]
