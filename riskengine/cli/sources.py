"""What `--in` and `--from` may name: a journal, or a file of events."""

from __future__ import annotations

import os
from typing import Final

import typer

SQLITE: Final = b"SQLite format 3\0"
HISTORY: Final = (".jsonl", ".ndjson", ".json", ".parquet", ".pq")


def journal_url(source: str, option: str) -> str | None:
    """The URL of a journal; None for a file of events. BadParameter of `option` for anything else."""
    if "://" in source:
        return source
    if source != "-" and not os.path.exists(source):
        raise typer.BadParameter(f"there is no {source}", param_hint=option)
    if source == "-" or source.lower().endswith(HISTORY):
        return None
    if os.path.isfile(source):
        with open(source, "rb") as file:
            if file.read(len(SQLITE)) == SQLITE:
                return f"sqlite:///{source}"
    raise typer.BadParameter(
        f"{source} is neither a journal nor events: expected a journal (sqlite:///FILE or "
        "postgresql://USER@HOST/DATABASE), .jsonl or .parquet",
        param_hint=option,
    )
