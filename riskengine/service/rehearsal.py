"""Goes once through everything a sidecar may be asked, so that the first caller waits for no kernel."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

from riskengine import motions
from riskengine.definition import Definition
from riskengine.engine import Engine
from riskengine.service import contract
from riskengine.service.bodies import read_body

if TYPE_CHECKING:
    from riskengine.stores.scratch import Scratch


def rehearse(definition: Definition, scratch: Callable[[], Scratch | None] = lambda: None) -> None:
    """Score, follow up, label, release and list, on an engine of its own that is thrown away.

    `scratch` makes what stands in for a shared store, or None where the store is in memory.
    """
    alone = scratch()
    if alone is not None:  # what an engine left open that died is decided anew where no journal has it
        with Engine.open(definition, alone.store, None, lambda: motions.NOW, bytes(16)) as engine:
            motions.go_through(engine, definition, alone)
    other = scratch()
    with (
        tempfile.TemporaryDirectory(prefix="riskengine-") as folder,
        Engine.open(
            definition,
            "memory://?size=64MiB" if other is None else other.store,
            f"sqlite:///{folder}/journal.db?spool={folder}/spool",
            lambda: motions.NOW,
            bytes(16),
        ) as engine,
    ):
        motions.go_through(engine, definition, other)
        contract.answer(engine.policy, motions.events_of(definition), motions.NOW)
    read_body(b"{}")
