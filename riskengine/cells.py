"""What each entity keeps for the features and limits of a policy: its cells, and what fills them.

The plan (features.py) lays them out as arrays, the footprint says what they may come to cost. Nothing else
decides which features share a cell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from riskengine.definition import Definition, Feature, Limit, Window
from riskengine.expression import Expression

DAY_MS: Final = 86_400_000
SIGHT_KEEP_MS: Final = 400 * DAY_MS  # how long "previous" and "since last" are remembered
MARKS_CAP: Final = 256  # events now labelled so, newest kept, behind since_last of a label
PERIOD_MS: Final = {"day": 2 * DAY_MS, "week": 8 * DAY_MS, "month": 32 * DAY_MS}  # at least one period
CELLS_MAX: Final = 62  # of an entity: a record says in one word which of them it moves
TEXT_WORDS: Final = 4  # of a remembered string: hash and its first 24 bytes

# What a cell keeps: those up to HOLDS any number of entries, the others a few fixed words.
TIMELINE, MEMBERS, MARKS, HOLDS, FIRST, LAST, SIGHT = range(7)
# What a record adds to a column of a timeline entry.
ONE, ADD, SQUARE_HIGH, SQUARE_LOW, LEAST, GREATEST = range(6)
# What a record carries for an entity in a slot.
MINOR, KEY_OF, HASH_OF, NUMBER_OF, TEXT_OF, LOCATION_OF = range(6)
SLOT_WORDS: Final = (1, 1, 1, 1, TEXT_WORDS, 1)  # by kind


@dataclass(slots=True)
class Cell:
    """One cell of an entity's state, named by what it keeps so that equal features share it."""

    spec_key: tuple[object, ...]
    kind: int
    types: tuple[str, ...]
    label: str | None
    where: Expression | None
    slot: int = 0
    needs: int = -1
    cap: int = 0
    words: int = 0  # of the fixed area
    columns: list[tuple[int, str]] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    users: dict[Window | None, list[str]] = field(default_factory=dict)  # features and limits, by window

    def column(self, op: int, source: str) -> int:
        """The number of a column of a timeline, made where there is none yet."""
        if (op, source) not in self.columns:
            self.columns.append((op, source))
        return self.columns.index((op, source))

    def window(self, window: Window) -> int:
        """The number of a window, made where there is none yet."""
        if window not in self.windows:
            self.windows.append(window)
        return self.windows.index(window)


@dataclass(slots=True)
class EntityCells:
    """The cells of one entity, the slots of its records, and how features are read from the cells."""

    cells: list[Cell] = field(default_factory=list)
    slots: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)  # to (at, digits)
    slot_words: int = 0
    reads: list[tuple[Feature, Cell, int, tuple[int, ...], Cell | None]] = field(default_factory=list)
    retention_ms: int = 0


class Cells:
    """The cells of every entity of a definition, in the order of the policy."""

    def __init__(self, definition: Definition) -> None:
        """Place every stored feature, then every limit that is not off."""
        self.definition = definition
        self.slack_ms = definition.lateness_ms + definition.skew_ms
        self.entities = {name: EntityCells() for name in definition.entities}
        self.limits: dict[str, Cell] = {}
        for feature in definition.features.values():
            if feature.aggregate != "value":
                self._place(feature)
        for limit in definition.limits.values():
            if limit.mode != "off":
                self._place_limit(limit)

    def _place(self, feature: Feature) -> None:
        """Find or make the cells behind a feature, and note how it is read from them."""
        assert feature.by is not None
        entity = self.entities[feature.by]
        window = -1
        own: tuple[int, ...] = ()
        other: Cell | None = None
        if feature.aggregate in ("since_first", "since_last"):
            kind = FIRST if feature.aggregate == "since_first" else LAST
            if feature.label is not None:
                cell = self._cell(entity, MARKS, feature, (), cap=MARKS_CAP)
            else:
                cell = self._cell(entity, kind, feature, (), words=1)
            self._retain(entity, feature.keep_ms or SIGHT_KEEP_MS)
        elif feature.aggregate in ("previous", "speed"):
            slot_kind, source = self.remembered(feature)
            at = self._slot(entity, slot_kind, source)
            cell = self._cell(entity, SIGHT, feature, (slot_kind, source), words=2 + SLOT_WORDS[slot_kind])
            cell.slot = cell.needs = at
            self._retain(entity, SIGHT_KEEP_MS)
        elif feature.aggregate == "distinct":
            assert feature.field is not None
            slot_kind = KEY_OF if feature.field in self.definition.entities else HASH_OF
            at = self._slot(entity, slot_kind, feature.field)
            cell = self._cell(
                entity, MEMBERS, feature, (slot_kind, feature.field, feature.cap), cap=feature.cap
            )
            cell.slot = cell.needs = at
            window = self._window(entity, cell, feature.window)
        else:
            cell = self._timeline(entity, feature)
            own = self._sums(cell, feature)
            window = self._window(entity, cell, feature.window)
            if feature.aggregate == "rate":
                other = self._cell(entity, TIMELINE, feature, (), label=False)
                own = (own[0], other.column(ONE, ""))
                self._window(entity, other, feature.window)
        for part in (cell, other):
            if part is not None:
                part.users.setdefault(feature.window, []).append(feature.name)
        entity.reads.append((feature, cell, window, own, other))

    def _cell(
        self,
        entity: EntityCells,
        kind: int,
        feature: Feature,
        more: tuple[object, ...],
        *,
        cap: int = 0,
        words: int = 0,
        label: bool = True,
    ) -> Cell:
        named = feature.label if label else None
        where = feature.where.source if feature.where is not None else None
        key = (kind, tuple(sorted(feature.types)), named, where, *more)
        for cell in entity.cells:
            if cell.spec_key == key:
                return cell
        cell = Cell(key, kind, feature.types, named, feature.where, cap=cap, words=words)
        entity.cells.append(cell)
        return cell

    def _timeline(self, entity: EntityCells, feature: Feature) -> Cell:
        """The timeline of a feature's stream. A field that may be absent makes a stream of its own.

        So a record moves all columns of a timeline or none, which follow-ups rely on.
        """
        if feature.aggregate in ("count", "rate"):
            return self._cell(entity, TIMELINE, feature, ())
        assert feature.field is not None
        at = self._slot(entity, MINOR, feature.field)
        if all(feature.field in self.definition.events[t].required for t in feature.types):
            return self._cell(entity, TIMELINE, feature, ())
        cell = self._cell(entity, TIMELINE, feature, (feature.field,))
        cell.needs = at
        return cell

    def _sums(self, cell: Cell, feature: Feature) -> tuple[int, ...]:
        """Columns of a timeline that an aggregate reads, in the order `aggregates.aggregate` wants them."""
        field = feature.field or ""
        match feature.aggregate:
            case "sum":
                return (cell.column(ADD, field),)
            case "min":
                return (cell.column(LEAST, field),)
            case "max":
                return (cell.column(GREATEST, field),)
            case "mean":
                return cell.column(ONE, ""), cell.column(ADD, field)
            case "std":
                return (
                    cell.column(ONE, ""),
                    cell.column(ADD, field),
                    cell.column(SQUARE_HIGH, field),
                    cell.column(SQUARE_LOW, field),
                )
            case _:
                return (cell.column(ONE, ""),)

    def remembered(self, feature: Feature) -> tuple[int, str]:
        """Slot kind and field of what previous and speed remember."""
        assert feature.field is not None
        kind = self.definition.fields[feature.field].type
        if kind == "location":
            return LOCATION_OF, feature.field
        if kind in ("number", "bool", "time"):
            return NUMBER_OF, feature.field
        of_entity = any(feature.field in e.fields for e in self.definition.entities.values())
        return (HASH_OF if of_entity else TEXT_OF), feature.field

    def _slot(self, entity: EntityCells, kind: int, source: str) -> int:
        if (kind, source) not in entity.slots:
            digits = self.definition.fields[source].digits if kind == MINOR else None
            entity.slots[kind, source] = (entity.slot_words, digits or 0)
            entity.slot_words += SLOT_WORDS[kind]
        return entity.slots[kind, source][0]

    def _window(self, entity: EntityCells, cell: Cell, window: Window | None) -> int:
        assert window is not None
        self._retain(
            entity, (PERIOD_MS.get(window.kind) or window.width_ms + window.bucket_ms) + window.delay_ms
        )
        return cell.window(window)

    def _retain(self, entity: EntityCells, keep_ms: int) -> None:
        entity.retention_ms = max(entity.retention_ms, keep_ms + self.slack_ms)

    def _place_limit(self, limit: Limit) -> None:
        entity = self.entities[limit.by]
        where = limit.where.source if limit.where is not None else None
        # What it holds is of no use in another unit, nor by the days of another zone.
        digits = self.definition.fields[limit.field].digits if limit.field is not None else None
        zone = self.definition.timezone if limit.window.kind in PERIOD_MS else None
        key = (HOLDS, limit.name, tuple(sorted(limit.types)), where, limit.field, limit.window, digits, zone)
        cell = Cell(key, HOLDS, (), None, None)
        entity.cells.append(cell)
        self._window(entity, cell, limit.window)
        cell.users[limit.window] = [limit.name]
        self.limits[limit.name] = cell
