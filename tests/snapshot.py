"""Texts people read, held against files: change one on purpose with RISKENGINE_REWRITE_SNAPSHOTS=1."""

from __future__ import annotations

import os
from pathlib import Path

SNAPSHOTS = Path(__file__).parent / "snapshots"


def matches_snapshot(name: str, text: str) -> None:
    """Assert that `text` is what tests/snapshots/NAME.txt says, or write it there when asked to."""
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("RISKENGINE_REWRITE_SNAPSHOTS") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), (
        f"no {path.name} yet: run with RISKENGINE_REWRITE_SNAPSHOTS=1 and read what it wrote"
    )
    assert text == path.read_text(encoding="utf-8")
