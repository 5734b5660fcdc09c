"""From one plan to the next: where each entity, cell and column of a policy's state stands after a reload.

What keeps its definition keeps its history, wherever the new plan lays it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from riskengine import layout
from riskengine.cells import ADD, GREATEST, LEAST, ONE, SLOT_WORDS
from riskengine.features import CellSpec
from riskengine.layout import NONE, Int64s, Plan

NOTHING: Final = (0, NONE)  # behind a record: what adds nothing, and what is neither least nor greatest


class LaidOut(Protocol):
    """What of a plan tells where its cells are: a features.FeatureSet, or one that was kept in a store."""

    @property
    def entities(self) -> tuple[str, ...]:
        """Names of entities, in plan order."""

    @property
    def entity_fields(self) -> Mapping[str, tuple[object, ...]]:
        """What each entity is made of."""

    @property
    def entity_slots(self) -> tuple[Mapping[tuple[int, str], int], ...]:
        """Of each entity, the first word of each slot of its record."""

    @property
    def specs(self) -> tuple[tuple[CellSpec, ...], ...]:
        """Of each entity, its cells by name."""

    @property
    def plan(self) -> Plan:
        """The arrays."""

    @property
    def record_words(self) -> int:
        """Words of the records of all entities."""


@dataclass(frozen=True, eq=False, slots=True)
class Transition:
    """How slabs of one plan become those of another; the arrays are those of `slabs.migrate`."""

    entities: Int64s
    cells: Int64s
    columns: Int64s
    spans: Sequence[tuple[int, int]]  # of each new cell, where its columns begin and end

    @classmethod
    def between(cls, old: LaidOut, new: LaidOut) -> Transition:
        """From one plan to another."""
        entities = [new.entities.index(name) if name in new.entities else -1 for name in old.entities]
        cells = np.full(len(new.plan.cells), -1, np.int64)
        columns = np.full(len(new.plan.columns), -1, np.int64)
        for e, specs in enumerate(new.specs):
            name = new.entities[e]
            if name not in old.entities or old.entity_fields[name] != new.entity_fields[name]:
                continue
            at = old.entities.index(name)
            known = {spec.key: c for c, spec in enumerate(old.specs[at])}
            for c, spec in enumerate(specs):
                if spec.key not in known:
                    continue
                cell = int(new.plan.entities[e, layout.E_CELLS]) + c
                source = known[spec.key]
                cells[cell] = int(old.plan.entities[at, layout.E_CELLS]) + source
                first = int(new.plan.cells[cell, layout.C_COLUMNS])
                before = old.specs[at][source].columns
                for k, column in enumerate(spec.columns):
                    if column in before:
                        columns[first + k] = before.index(column)
        spans = [
            (int(row[layout.C_COLUMNS]), int(row[layout.C_COLUMNS] + row[layout.C_COLUMNS_N]))
            for row in new.plan.cells
        ]
        return cls(np.array(entities, np.int64), cells, columns, spans)

    def is_partial(self, new: LaidOut, entity: int, mask: int) -> bool:
        """Whether a record of the old plan moves a cell of the new one that has a column more."""
        first = int(new.plan.entities[entity, layout.E_CELLS])
        return any(
            (mask >> c) & 1 and bool((self.columns[slice(*self.spans[first + c])] < 0).any())
            for c in range(int(new.plan.entities[entity, layout.E_CELLS_N]))
        )

    def partial(self, new: LaidOut) -> Int64s:
        """The new plan, flat, as records of the old one move it: columns that the old one had not stay put.

        What they keep would not be that of a feature that starts from nothing. Kernels take records with
        NOTHING behind them by it (see `blank`).
        """
        columns = new.plan.columns.copy()
        for cell, (first, last) in enumerate(self.spans):
            e = int(np.searchsorted(new.plan.entities[:, layout.E_CELLS], cell, side="right")) - 1
            behind = new.record_words - int(new.plan.entities[e, layout.E_RECORD]) - layout.RECORD_SLOTS
            for column in range(first, last):
                if self.columns[column] < 0:
                    op = int(columns[column, layout.K_OP])
                    columns[column] = ADD if op == ONE else op, behind + (op in (LEAST, GREATEST))
        return new.plan._replace(columns=columns).flatten()

    def then(self, step: Transition, middle: Plan) -> Transition:
        """This transition and then another; `middle` is the plan between them."""
        entities = np.array([step.entities[e] if e >= 0 else -1 for e in self.entities.tolist()], np.int64)
        cells = np.array([self.cells[c] if c >= 0 else -1 for c in step.cells.tolist()], np.int64)
        columns = np.full_like(step.columns, -1)
        # A column's number within its timeline leads to the middle plan's column, and that further back.
        for cell, source in enumerate(step.cells.tolist()):
            if source >= 0 and cells[cell] >= 0:
                first = int(middle.cells[source, layout.C_COLUMNS])
                for k in range(*step.spans[cell]):
                    if step.columns[k] >= 0:
                        columns[k] = self.columns[first + step.columns[k]]
        return Transition(entities, cells, columns, step.spans)


def blank(plan: LaidOut) -> Int64s:
    """Room for a record, with NOTHING behind it."""
    record = np.full(plan.record_words + len(NOTHING), NONE, np.int64)
    record[plan.record_words :] = NOTHING
    return record


def translate(
    old: LaidOut, new: LaidOut, e: int, record: Int64s, mask: int
) -> tuple[Int64s, int, int] | None:
    """A record of an old plan's entity as the new plan has it: `blank`, mask, entity; None if it is gone.

    Where it `is_partial`, it is one for the `partial` plan.
    """
    name = old.entities[e]
    if name not in new.entities or old.entity_fields[name] != new.entity_fields[name]:
        return None
    now = new.entities.index(name)
    at_old = int(old.plan.entities[e, layout.E_RECORD])
    at = int(new.plan.entities[now, layout.E_RECORD])
    out = blank(new)
    out[at : at + 2] = record[at_old : at_old + 2]
    for slot, place in new.entity_slots[now].items():
        if slot in old.entity_slots[e]:
            words = SLOT_WORDS[slot[0]]
            to = at + layout.RECORD_SLOTS + place
            source = at_old + layout.RECORD_SLOTS + old.entity_slots[e][slot]
            out[to : to + words] = record[source : source + words]
    known = {spec.key: c for c, spec in enumerate(old.specs[e])}
    translated = 0
    for c, spec in enumerate(new.specs[now]):
        if spec.key in known and (mask >> known[spec.key]) & 1:
            translated |= 1 << c
    return out, translated, now
