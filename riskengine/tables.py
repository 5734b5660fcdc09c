"""Reference tables as sorted arrays: a batch's entity keys in, the rows' columns out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from riskengine.definition import Table
from riskengine.kernel import Call, Holder, jit

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]
Row = Mapping[str, float | str | None]
Rows = Mapping[int, Row]  # by the entity's key, as int64

T_ENTITY, T_FIRST, T_ROWS, T_SIZE = range(4)  # columns of TableSet.tables
D_TABLE, D_FIRST, D_TEXT, D_OUT, D_SIZE = range(5)  # columns of TableSet.columns


class Names(Protocol):
    """What a table needs to know of the events (event.Schema does)."""

    @property
    def entities(self) -> tuple[str, ...]:
        """Names of entities, in the order of a batch's keys."""

    def text_hash(self, value: str) -> int:
        """The 64-bit hash of a string value."""


class Columns(Protocol):
    """Where a table's columns stand in the row (program.Layout)."""

    def number(self, name: str) -> int:
        """Column of a number."""

    def string(self, name: str) -> int:
        """Column of a string."""


@dataclass(frozen=True, eq=False, slots=True)
class TableSet:
    """All tables of a policy. Each table's keys are sorted; every column lists its values in that order."""

    tables: Int64s  # (tables, T_SIZE)
    columns: Int64s  # (columns, D_SIZE)
    keys: Int64s  # entity keys as int64, table after table
    numbers: Float64s  # values of number columns
    offs: Int64s  # of string columns, -1 - offset into pool
    lens: NDArray[np.int32]
    hashes: NDArray[np.uint64]
    pool: NDArray[np.uint8]

    @classmethod
    def compile(
        cls, tables: Mapping[str, Table], rows: Mapping[str, Rows], schema: Names, layout: Columns
    ) -> TableSet:
        """Compile tables with their rows by name: a resident table's own, or what is stored of a live one."""
        table_rows, column_rows = [], []
        sorted_keys: list[int] = []
        numbers: list[float] = []
        offs: list[int] = []
        lens: list[int] = []
        hashes: list[int] = []
        pool = bytearray(1)
        for at, (name, table) in enumerate(tables.items()):
            by_key = rows.get(name, {})
            order = sorted(by_key)
            table_rows.append((schema.entities.index(table.key), len(sorted_keys), len(order)))
            sorted_keys.extend(order)
            for column, kind in table.columns.items():
                if kind == "string":
                    column_rows.append((at, len(offs), 1, layout.string(f"{name}.{column}")))
                    for key in order:
                        value = by_key[key].get(column)
                        data = value.encode() if isinstance(value, str) else b""
                        offs.append(-1 - len(pool))
                        lens.append(len(data) if data else -1)
                        hashes.append(schema.text_hash(value) if isinstance(value, str) and data else 0)
                        pool += data
                else:
                    column_rows.append((at, len(numbers), 0, layout.number(f"{name}.{column}")))
                    numbers.extend(_number(by_key[key].get(column)) for key in order)
        return cls(
            np.array(table_rows, np.int64).reshape(-1, T_SIZE),
            np.array(column_rows, np.int64).reshape(-1, D_SIZE),
            np.array(sorted_keys, np.int64),
            np.array(numbers, np.float64),
            np.array(offs, np.int64),
            np.array(lens, np.int32),
            np.array(hashes, np.uint64),
            np.frombuffer(pool, np.uint8),
        )

    def filling(
        self,
        keys: Int64s,
        cells: Float64s,
        off: Int64s,
        length: NDArray[np.int32],
        text_hash: NDArray[np.uint64],
        hold: Holder,
    ) -> Call | None:
        """The call that writes the columns of each event's rows; an event without a row keeps missing values.

        keys int64 (n, E); cells float64 (columns, n), missing beforehand; the rest (n, strings). None where
        there is nothing to write.
        """
        if not len(self.columns):
            return None
        return hold(
            gather,
            self.tables,
            self.columns,
            self.keys,
            self.numbers,
            self.offs,
            self.lens,
            self.hashes,
            keys,
            cells,
            off,
            length,
            text_hash,
        )


@jit
def gather(
    tables: Int64s,
    columns: Int64s,
    sorted_keys: Int64s,
    numbers: Float64s,
    offs: Int64s,
    lens: NDArray[np.int32],
    hashes: NDArray[np.uint64],
    keys: Int64s,
    cells: Float64s,
    off: Int64s,
    length: NDArray[np.int32],
    text_hash: NDArray[np.uint64],
) -> None:
    """Find each event's row of each table by bisection and copy its columns."""
    for i in range(keys.shape[0]):
        table = -1
        row = -1
        for d in range(columns.shape[0]):
            if columns[d, D_TABLE] != table:
                table = columns[d, D_TABLE]
                row = find_row(
                    sorted_keys,
                    tables[table, T_FIRST],
                    tables[table, T_ROWS],
                    keys[i, tables[table, T_ENTITY]],
                )
            if row < 0:
                continue
            at = columns[d, D_FIRST] + row
            out = columns[d, D_OUT]
            if columns[d, D_TEXT]:
                off[i, out] = offs[at]
                length[i, out] = lens[at]
                text_hash[i, out] = hashes[at]
            else:
                cells[out, i] = numbers[at]


@jit
def find_row(sorted_keys: Int64s, first: int, rows: int, key: int) -> int:
    """Row of a key among `rows` sorted ones, or -1."""
    if key == 0:
        return -1
    low = first
    high = first + rows
    while low < high:
        middle = (low + high) >> 1
        if sorted_keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low - first if low < first + rows and sorted_keys[low] == key else -1


def _number(value: float | str | None) -> float:
    return float(value) if value is not None else float("nan")
