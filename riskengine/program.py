"""Checked expressions become a program in arrays, and one fixed kernel runs programs over batches.

A reload makes new arrays and compiles nothing: the kernel is an interpreter whose every instruction works
on up to 64 events at once, a column at a time, so that what an instruction costs is spread over them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from riskengine.calendar import hour_of, weekday_of
from riskengine.expression import Expression, Symbol, Term
from riskengine.geo import haversine_km
from riskengine.kernel import Call, Holder, jit

Bytes = NDArray[np.uint8]
Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]
Words = NDArray[np.uint64]

# Lanes at a time: 64 doubles are 512 bytes, so a program of dozens of columns stays in the first cache.
BLOCK: Final = np.uint64(64)
TIME_MS_MAX: Final = 8.64e15  # a hundred million days: beyond it a time has no hour

# Instructions are rows of OPERATION, destination column, operands a, b, c, d. In a K the operand b is the
# index of a constant; in an RK it is the left side of the operation (constant - a).
WIDTH: Final = 6
CONST, COPY = 0, 1
LT, LE, GT, GE, EQ, NE = 2, 3, 4, 5, 6, 7
LTK, LEK, GTK, GEK, EQK, NEK = 8, 9, 10, 11, 12, 13
AND, OR, NOT, AND3, OR3 = 14, 15, 16, 17, 18
ADD, SUB, MUL, DIV, MOD = 19, 20, 21, 22, 23
ADDK, MULK, DIVK, SUBRK, DIVRK = 24, 25, 26, 27, 28
NEG, ABS, LOG, MIN, MAX = 29, 30, 31, 32, 33
IF, DEFAULT, DEFAULTK, MISSING = 34, 35, 36, 37
HOUR, WEEKDAY, DISTANCE = 38, 39, 40
ONE_OF, NOT_ONE_OF = 41, 42  # a is a column; the constants b to b + c, ascending
TEXT_IN, TEXT_NOT_IN = 43, 44  # a is a string column; the members b to b + c, by (length, bytes)
HASH_IN, HASH_NOT_IN = 45, 46  # a is a string column; the hashes b to b + c, ascending
TEXT_EQ, TEXT_NE, HASH_EQ, HASH_NE = 47, 48, 49, 50  # a and b are string columns
TEXT_MISSING, MATCHES = 51, 52  # a is a string column; b is the member that is the glob

INPUT: Final = -1  # no instruction: a column that is there already
READS: Final[dict[int, int]] = {  # how many of the operands, from a on, are number columns
    **dict.fromkeys(range(INPUT, MATCHES + 1), 0),
    COPY: 1, NOT: 1, NEG: 1, ABS: 1, LOG: 1, MISSING: 1, HOUR: 1, WEEKDAY: 1, ONE_OF: 1, NOT_ONE_OF: 1,
    **dict.fromkeys((LTK, LEK, GTK, GEK, EQK, NEK, ADDK, MULK, DIVK, SUBRK, DIVRK, DEFAULTK), 1),
    **dict.fromkeys((LT, LE, GT, GE, EQ, NE, AND, OR, ADD, SUB, MUL, DIV, MOD, MIN, MAX, DEFAULT), 2),
    AND3: 3, OR3: 3, IF: 3, DISTANCE: 4,
}  # fmt: skip

_READS: Final = np.array([READS[operation] for operation in (*range(MATCHES + 1), INPUT)])  # INPUT is last

# Term to instruction: both operands columns, the right one constant, the left one constant.
_BINARY: Final[dict[str, tuple[int, int | None, int | None]]] = {
    "lt": (LT, LTK, GTK), "le": (LE, LEK, GEK), "gt": (GT, GTK, LTK), "ge": (GE, GEK, LEK),
    "eq": (EQ, EQK, EQK), "ne": (NE, NEK, NEK),
    "add": (ADD, ADDK, ADDK), "sub": (SUB, None, SUBRK), "mul": (MUL, MULK, MULK),
    "div": (DIV, DIVK, DIVRK), "mod": (MOD, None, None), "min": (MIN, None, None), "max": (MAX, None, None),
    "default": (DEFAULT, DEFAULTK, None),
}  # fmt: skip
_UNARY: Final = {
    "not": NOT, "neg": NEG, "abs": ABS, "log": LOG, "missing": MISSING, "hour": HOUR, "weekday": WEEKDAY,
}  # fmt: skip
_COMMUTES: Final = frozenset((EQ, NE, ADD, MUL))


class Layout:
    """Which column holds what: number columns of `cells` and string columns, by name.

    Shared by everything that reads or writes a row. Allocate the columns of a batch after the last compile:
    programs add columns of their own, at the end.
    """

    def __init__(self) -> None:
        self.width = 0  # number columns
        self.numbers: dict[str, int] = {}
        self.strings: dict[str, int] = {}
        self._scratch: list[int] = []

    @property
    def strings_width(self) -> int:
        """How many string columns there are."""
        return len(self.strings)

    def add_number(self, name: str) -> int:
        """Return the number column of `name`, a new one if there is none yet."""
        column = self.numbers.get(name)
        if column is None:
            column = self.numbers[name] = self.temp()
        return column

    def add_string(self, name: str, kind: Literal["text", "hash"] = "text") -> int:
        """Return the string column of `name`, a new one if there is none yet; `kind` is for the reader."""
        return self.strings.setdefault(name, len(self.strings))

    def number(self, name: str) -> int:
        """Return the number column of `name`; KeyError if nothing added it."""
        return self.numbers[name]

    def string(self, name: str) -> int:
        """Return the string column of `name`; KeyError if nothing added it."""
        return self.strings[name]

    def temp(self) -> int:
        """Return a new number column without a name."""
        self.width += 1
        return self.width - 1

    def scratch(self, index: int) -> int:
        """Return the number column for passing results; every program may overwrite it."""
        while len(self._scratch) <= index:
            self._scratch.append(self.temp())
        return self._scratch[index]


@dataclass(frozen=True, eq=False, slots=True)
class Program:
    """Instructions and what they name. Make one with `compile`, run it with `execute`.

    code int32 (instructions, 6); consts float64; members int64 (m, 2): offset and length in `pool` of a
    string constant; hashes uint64; pool uint8; outputs int32: the column of each expression's result.
    """

    code: Int32s
    consts: Float64s
    members: Int64s
    hashes: Words
    pool: Bytes
    outputs: Int32s


def compile(
    expressions: Sequence[Expression],
    layout: Layout,
    hasher: Callable[[bytes], int],
    into: Sequence[int] | None = None,
) -> Program:
    """Compile expressions to one program; what several of them compute is computed once.

    Every symbol must have its column in `layout` (KeyError otherwise). Results get columns of their own,
    or those given by `into`; an expression sees results that earlier ones put into a symbol's column.
    `hasher` is the keyed hash of a string's UTF-8 bytes, as string columns carry it.
    """
    assembler = _Assembler(layout, hasher)
    for index, expression in enumerate(expressions):
        assembler.add(expression.term, None if into is None else into[index])
    return assembler.finish()


def execute(
    program: Program,
    cells: Float64s,
    str_off: Int64s,
    str_len: Int32s,
    str_hash: Words,
    text: Bytes,
    pool: Bytes,
    timezone: tuple[Int64s, Int64s],
) -> None:
    """Run a program in place on `cells`, float64 (layout.width, n), NaN is missing.

    Strings are (n, S): int64 offsets into `text`, or -1 - offset into `pool`; int32 lengths, -1 is missing;
    uint64 hashes. `timezone` is `calendar.timezone_table` of the policy's zone. Arrays are C-contiguous.
    """
    executing(program, cells, str_off, str_len, str_hash, text, pool, timezone, partial)()


def executing(
    program: Program, cells: Float64s, str_off: Int64s, str_len: Int32s, str_hash: Words, text: Bytes,
    pool: Bytes, timezone: tuple[Int64s, Int64s], hold: Holder,
) -> Call:  # fmt: skip
    """`execute`, to be called later."""
    return hold(
        run, cells, str_off, str_len, str_hash, text, pool, timezone[0], timezone[1],
        program.code, program.consts, program.members, program.hashes, program.pool,
    )  # fmt: skip


class _Assembler:
    """Values are numbered as they are made: a result by its instruction, an input by its column.

    An operand is the number of a value, or ~i for the constant i.
    """

    def __init__(self, layout: Layout, hasher: Callable[[bytes], int]) -> None:
        self.layout = layout
        self.hasher = hasher
        self.instructions: list[tuple[int, ...]] = []  # operation, a, b, c, d; value i is made by the i-th
        self.columns: list[int] = []  # of a value; -1 where none is chosen yet
        self.known: dict[tuple[int, ...], int] = {}
        self.inputs: dict[int, int] = {}  # column to value
        self.symbols: dict[str, int] = {}  # name to value
        self.consts: list[float] = []
        self.const_index: dict[float | str, int] = {}
        self.ranges: dict[tuple[float, ...] | tuple[str, ...] | tuple[str, tuple[str, ...]], int] = {}
        self.members: list[tuple[int, int]] = []
        self.hashes: list[int] = []
        self.pool = bytearray()
        self.outputs: list[int] = []  # columns

    def add(self, term: Term, column: int | None) -> None:
        value = self.emit(term)
        if value < 0:
            value = self.make(CONST, ~value)
        made_here = self.instructions[value][0] != INPUT
        if column is None:
            if self.columns[value] < 0:
                self.columns[value] = self.layout.temp()
        elif made_here and self.columns[value] < 0:
            self.columns[value] = column
        elif self.columns[value] != column:
            self.instructions.append((COPY, value, 0, 0, 0))
            self.columns.append(column)
            value = len(self.columns) - 1
        if column is not None:
            assert column not in self.inputs, "a column is read before its expression is computed"
            self.inputs[column] = value
        self.outputs.append(self.columns[value])

    def emit(self, term: Term) -> int:
        op = term.op
        value = term.value
        if op == "symbol" and isinstance(value, Symbol):
            known = self.symbols.get(value.name)
            if known is None:
                known = self.symbols[value.name] = self.input(self.layout.numbers[value.name])
            return known
        if op == "number" and isinstance(value, float):
            return ~self.const(value)
        binary = _BINARY.get(op)
        if binary is not None:
            return self.binary(binary, self.emit(term.args[0]), self.emit(term.args[1]))
        if op == "and" or op == "or":
            return self.logic(op, [self.column(self.emit(arg)) for arg in term.args])
        unary = _UNARY.get(op)
        if unary is not None:
            return self.make(unary, self.column(self.emit(term.args[0])))
        if op == "if":
            return self.make(IF, *[self.column(self.emit(arg)) for arg in term.args])
        if op == "distance":
            return self.make(DISTANCE, *[self.column(self.emit(arg)) for arg in term.args])
        if op == "one_of" or op == "not_one_of":
            assert isinstance(term.value, tuple)
            first = self.numbers([value for value in term.value if isinstance(value, float)])
            operation = ONE_OF if op == "one_of" else NOT_ONE_OF
            return self.make(operation, self.column(self.emit(term.args[0])), first, len(term.value))
        return self.text(term)

    def binary(self, operations: tuple[int, int | None, int | None], a: int, b: int) -> int:
        plain, right, left = operations
        if b < 0 <= a and right is not None:
            return self.make(right, a, ~b)
        if a < 0 <= b and left is not None:
            return self.make(left, b, ~a)
        a, b = self.column(a), self.column(b)
        if b < a and plain in _COMMUTES:
            a, b = b, a
        return self.make(plain, a, b)

    def logic(self, op: str, values: list[int]) -> int:
        two, three = (AND, AND3) if op == "and" else (OR, OR3)
        values = sorted(set(values))
        if len(values) == 1:
            values = values * 2  # of a missing bool it makes a false one
        result = values[0]
        at = 1
        while at < len(values):
            if at + 1 < len(values):
                result = self.make(three, result, values[at], values[at + 1])
            else:
                result = self.make(two, result, values[at])
            at += 2
        return result

    def text(self, term: Term) -> int:
        op = term.op
        symbols = [arg.value for arg in term.args if isinstance(arg.value, Symbol)]
        columns = [self.layout.strings[symbol.name] for symbol in symbols]
        hashed = any(symbol.kind == "hash" for symbol in symbols)
        if op == "text_missing":
            return self.make(TEXT_MISSING, columns[0])
        if op == "text_eq" or op == "text_ne":
            equal, other = (HASH_EQ, HASH_NE) if hashed else (TEXT_EQ, TEXT_NE)
            return self.make(equal if op == "text_eq" else other, *sorted(columns))
        if op == "matches":
            assert isinstance(term.value, str)
            return self.make(MATCHES, columns[0], self.strings((term.value,)))
        assert op in ("text_in", "text_not_in"), op
        assert isinstance(term.value, tuple)
        texts = tuple(value for value in term.value if isinstance(value, str))
        if hashed:
            within, without = HASH_IN, HASH_NOT_IN
            first = self.hashed(texts)
        else:
            within, without = TEXT_IN, TEXT_NOT_IN
            first = self.strings(texts)
        return self.make(within if op == "text_in" else without, columns[0], first, len(texts))

    def make(self, operation: int, a: int, b: int = 0, c: int = 0, d: int = 0) -> int:
        key = (operation, a, b, c, d)
        value = self.known.get(key)
        if value is None:
            value = self.known[key] = len(self.columns)
            self.instructions.append(key)
            self.columns.append(-1)
        return value

    def input(self, column: int) -> int:
        value = self.inputs.get(column)
        if value is None:
            value = self.inputs[column] = len(self.columns)
            self.instructions.append((INPUT, 0, 0, 0, 0))
            self.columns.append(column)
        return value

    def column(self, operand: int) -> int:
        """Return a value for an operand that may be a constant."""
        return operand if operand >= 0 else self.make(CONST, ~operand)

    def const(self, number: float) -> int:
        key: float | str = number if number and number == number else repr(number)  # 0.0 == -0.0, nan != nan
        index = self.const_index.get(key)
        if index is None:
            index = self.const_index[key] = len(self.consts)
            self.consts.append(number)
        return index

    def numbers(self, values: list[float]) -> int:
        key = tuple(values)
        if key not in self.ranges:
            self.ranges[key] = len(self.consts)
            self.consts += values
        return self.ranges[key]

    def strings(self, texts: tuple[str, ...]) -> int:
        if texts not in self.ranges:
            self.ranges[texts] = len(self.members)
            for data in sorted((text.encode() for text in texts), key=lambda data: (len(data), data)):
                self.members.append((len(self.pool), len(data)))
                self.pool += data
        return self.ranges[texts]

    def hashed(self, texts: tuple[str, ...]) -> int:
        key = ("hashes", texts)
        if key not in self.ranges:
            self.ranges[key] = len(self.hashes)
            self.hashes += sorted(self.hasher(text.encode()) for text in texts)
        return self.ranges[key]

    def finish(self) -> Program:
        return Program(
            code=self.code(),
            consts=np.array(self.consts, np.float64),
            members=np.array(self.members, np.int64).reshape(-1, 2),
            hashes=np.array(self.hashes, np.uint64),
            pool=np.frombuffer(bytes(self.pool), np.uint8).copy(),  # writable, as the kernel was compiled for
            outputs=np.array(self.outputs, np.int32),
        )

    def code(self) -> Int32s:
        """Give every passing result a scratch column, and the column back after its last use."""
        columns = self.columns
        code = np.array(self.instructions, np.int64).reshape(-1, WIDTH - 1)
        is_read = _READS[code[:, 0], None] > np.arange(WIDTH - 2)
        last_use = np.full(len(columns), -1)
        np.maximum.at(last_use, code[:, 1:][is_read], np.nonzero(is_read)[0])
        dying: list[list[int]] = [[] for _ in columns]
        for value, at in enumerate(last_use.tolist()):
            if columns[value] < 0:
                dying[at].append(value)
        free: list[int] = []
        used = 0
        for at, dead in enumerate(dying):
            # The destination is taken before the operands are given back: a loop that writes where it
            # reads does not vectorize.
            if columns[at] < 0:
                if free:
                    columns[at] = free.pop()
                else:
                    columns[at] = self.layout.scratch(used)
                    used += 1
            for value in dead:
                free.append(columns[value])
        column_of = np.array(columns, np.int64)
        rows: Int32s = np.empty((len(columns), WIDTH), np.int32)
        rows[:, 0] = code[:, 0]
        rows[:, 1] = column_of
        rows[:, 2:] = code[:, 1:]
        rows[:, 2:][is_read] = column_of[code[:, 1:][is_read]]
        return np.compress(code[:, 0] != INPUT, rows, axis=0)


@jit
def run(
    cells: Float64s,
    str_off: Int64s,
    str_len: Int32s,
    str_hash: Words,
    text: Bytes,
    table_pool: Bytes,
    transitions: Int64s,
    offsets: Int64s,
    code: Int32s,
    consts: Float64s,
    members: Int64s,
    hashes: Words,
    pool: Bytes,
) -> None:
    """Interpret `code` over all lanes, block by block. Shapes as in `execute` and `Program`.

    Indices are unsigned: of a signed one the compiler must think that it may count from the end, and does
    not vectorize (500 comparisons of 64 lanes: 32 us signed, 7 us unsigned; of one lane 3.8 us and 1.6 us).
    """
    n = np.uint64(cells.shape[1])
    first = np.uint64(0)
    while first < n:
        last = min(first + BLOCK, n)
        for i in range(code.shape[0]):
            op = code[i, 0]
            d = np.uint64(code[i, 1])
            a = np.uint64(code[i, 2])
            b = np.uint64(code[i, 3])
            c = np.uint64(code[i, 4])
            if op == LTK:
                k = consts[b]
                for j in range(first, last):
                    cells[d, j] = 1.0 if cells[a, j] < k else 0.0
            elif op == LEK:
                k = consts[b]
                for j in range(first, last):
                    cells[d, j] = 1.0 if cells[a, j] <= k else 0.0
            elif op == GTK:
                k = consts[b]
                for j in range(first, last):
                    cells[d, j] = 1.0 if cells[a, j] > k else 0.0
            elif op == GEK:
                k = consts[b]
                for j in range(first, last):
                    cells[d, j] = 1.0 if cells[a, j] >= k else 0.0
            elif op == EQK:
                k = consts[b]
                for j in range(first, last):
                    cells[d, j] = 1.0 if cells[a, j] == k else 0.0
            elif op == NEK:
                k = consts[b]
                for j in range(first, last):
                    x = cells[a, j]
                    cells[d, j] = 1.0 if (x < k) | (x > k) else 0.0
            elif op == AND:
                for j in range(first, last):
                    cells[d, j] = 1.0 if (cells[a, j] == 1.0) & (cells[b, j] == 1.0) else 0.0
            elif op == OR:
                for j in range(first, last):
                    cells[d, j] = 1.0 if (cells[a, j] == 1.0) | (cells[b, j] == 1.0) else 0.0
            elif op == AND3:
                for j in range(first, last):
                    two = (cells[a, j] == 1.0) & (cells[b, j] == 1.0)
                    cells[d, j] = 1.0 if two & (cells[c, j] == 1.0) else 0.0
            elif op == OR3:
                for j in range(first, last):
                    two = (cells[a, j] == 1.0) | (cells[b, j] == 1.0)
                    cells[d, j] = 1.0 if two | (cells[c, j] == 1.0) else 0.0
            elif op == NOT:
                for j in range(first, last):
                    cells[d, j] = 0.0 if cells[a, j] == 1.0 else 1.0
            elif op == LT:
                for j in range(first, last):
                    cells[d, j] = 1.0 if cells[a, j] < cells[b, j] else 0.0
            elif op == LE:
                for j in range(first, last):
                    cells[d, j] = 1.0 if cells[a, j] <= cells[b, j] else 0.0
            elif op == GT:
                for j in range(first, last):
                    cells[d, j] = 1.0 if cells[a, j] > cells[b, j] else 0.0
            elif op == GE:
                for j in range(first, last):
                    cells[d, j] = 1.0 if cells[a, j] >= cells[b, j] else 0.0
            elif op == EQ:
                for j in range(first, last):
                    cells[d, j] = 1.0 if cells[a, j] == cells[b, j] else 0.0
            elif op == NE:
                for j in range(first, last):
                    x = cells[a, j]
                    y = cells[b, j]
                    cells[d, j] = 1.0 if (x < y) | (x > y) else 0.0
            elif op == CONST:
                k = consts[a]
                for j in range(first, last):
                    cells[d, j] = k
            elif op == COPY:
                for j in range(first, last):
                    cells[d, j] = cells[a, j]
            elif op == ADD:
                for j in range(first, last):
                    cells[d, j] = cells[a, j] + cells[b, j]
            elif op == ADDK:
                k = consts[b]
                for j in range(first, last):
                    cells[d, j] = cells[a, j] + k
            elif op == SUB:
                for j in range(first, last):
                    cells[d, j] = cells[a, j] - cells[b, j]
            elif op == SUBRK:
                k = consts[b]
                for j in range(first, last):
                    cells[d, j] = k - cells[a, j]
            elif op == MUL:
                for j in range(first, last):
                    cells[d, j] = cells[a, j] * cells[b, j]
            elif op == MULK:
                k = consts[b]
                for j in range(first, last):
                    cells[d, j] = cells[a, j] * k
            elif op == DIV:
                for j in range(first, last):
                    cells[d, j] = quotient(cells[a, j], cells[b, j])
            elif op == DIVK:
                k = consts[b]
                for j in range(first, last):
                    cells[d, j] = quotient(cells[a, j], k)
            elif op == DIVRK:
                k = consts[b]
                for j in range(first, last):
                    cells[d, j] = quotient(k, cells[a, j])
            elif op == MOD:
                for j in range(first, last):
                    cells[d, j] = remainder(cells[a, j], cells[b, j])
            elif op == NEG:
                for j in range(first, last):
                    cells[d, j] = -cells[a, j]
            elif op == ABS:
                for j in range(first, last):
                    cells[d, j] = abs(cells[a, j])
            elif op == LOG:
                for j in range(first, last):
                    x = cells[a, j]
                    cells[d, j] = math.log(x) if x > 0.0 else math.nan
            elif op == MIN:  # of equals the first, as in Python: it shows in the sign of a zero
                for j in range(first, last):
                    x = cells[a, j]
                    y = cells[b, j]
                    cells[d, j] = y if (y < x) | (y != y) else x
            elif op == MAX:
                for j in range(first, last):
                    x = cells[a, j]
                    y = cells[b, j]
                    cells[d, j] = y if (y > x) | (y != y) else x
            elif op == IF:
                for j in range(first, last):
                    cells[d, j] = cells[b, j] if cells[a, j] == 1.0 else cells[c, j]
            elif op == DEFAULT:
                for j in range(first, last):
                    x = cells[a, j]
                    cells[d, j] = x if x == x else cells[b, j]
            elif op == DEFAULTK:
                k = consts[b]
                for j in range(first, last):
                    x = cells[a, j]
                    cells[d, j] = x if x == x else k
            elif op == MISSING:
                for j in range(first, last):
                    x = cells[a, j]
                    cells[d, j] = 1.0 if x != x else 0.0
            elif op == HOUR:
                for j in range(first, last):
                    x = cells[a, j]
                    known = abs(x) <= TIME_MS_MAX
                    ms = math.floor(x) if known else 0
                    cells[d, j] = hour_of(ms, transitions, offsets) if known else math.nan
            elif op == WEEKDAY:
                for j in range(first, last):
                    x = cells[a, j]
                    known = abs(x) <= TIME_MS_MAX
                    ms = math.floor(x) if known else 0
                    cells[d, j] = weekday_of(ms, transitions, offsets) if known else math.nan
            elif op == DISTANCE:
                e = np.uint64(code[i, 5])
                for j in range(first, last):
                    cells[d, j] = haversine_km(cells[a, j], cells[b, j], cells[c, j], cells[e, j])
            elif op in (ONE_OF, NOT_ONE_OF):
                for j in range(first, last):
                    x = cells[a, j]
                    found = holds_number(consts, code[i, 3], code[i, 4], x)
                    cells[d, j] = 1.0 if (x == x) & (found == (op == ONE_OF)) else 0.0
            elif op in (TEXT_IN, TEXT_NOT_IN):
                for j in range(first, last):
                    size = str_len[j, a]
                    off = str_off[j, a]
                    if size < 0:
                        found = op == TEXT_NOT_IN
                    elif off >= 0:
                        found = holds_text(pool, members, code[i, 3], code[i, 4], text, off, size)
                    else:
                        found = holds_text(pool, members, code[i, 3], code[i, 4], table_pool, -1 - off, size)
                    cells[d, j] = 1.0 if found == (op == TEXT_IN) else 0.0
            elif op in (HASH_IN, HASH_NOT_IN):
                for j in range(first, last):
                    found = holds_hash(hashes, code[i, 3], code[i, 4], str_hash[j, a])
                    cells[d, j] = 1.0 if (str_len[j, a] >= 0) & (found == (op == HASH_IN)) else 0.0
            elif op in (TEXT_EQ, TEXT_NE):
                for j in range(first, last):
                    size = str_len[j, a]
                    other = str_len[j, b]
                    if size < 0 or other < 0:
                        cells[d, j] = 0.0
                        continue
                    same = False
                    if size == other:
                        x_off = str_off[j, a]
                        y_off = str_off[j, b]
                        x_text = text if x_off >= 0 else table_pool
                        y_text = text if y_off >= 0 else table_pool
                        x_off = x_off if x_off >= 0 else -1 - x_off
                        y_off = y_off if y_off >= 0 else -1 - y_off
                        same = order(x_text, x_off, y_text, y_off, size) == 0
                    cells[d, j] = 1.0 if same == (op == TEXT_EQ) else 0.0
            elif op in (HASH_EQ, HASH_NE):
                for j in range(first, last):
                    both = (str_len[j, a] >= 0) & (str_len[j, b] >= 0)
                    same = str_hash[j, a] == str_hash[j, b]
                    cells[d, j] = 1.0 if both & (same == (op == HASH_EQ)) else 0.0
            elif op == TEXT_MISSING:
                for j in range(first, last):
                    cells[d, j] = 1.0 if str_len[j, a] < 0 else 0.0
            elif op == MATCHES:
                glob = members[b, 0]
                glob_end = glob + members[b, 1]
                for j in range(first, last):
                    size = str_len[j, a]
                    off = str_off[j, a]
                    if size < 0:
                        found = False
                    elif off >= 0:
                        found = fits(pool, glob, glob_end, text, off, off + size)
                    else:
                        found = fits(pool, glob, glob_end, table_pool, -1 - off, size - 1 - off)
                    cells[d, j] = 1.0 if found else 0.0
        first = last


@jit
def quotient(x: float, y: float) -> float:
    """Return x / y, missing for y = 0."""
    return x / y if y != 0.0 else math.nan


@jit
def remainder(x: float, y: float) -> float:
    """Return x % y as Python's floats have it (the sign is y's), missing for y = 0."""
    if y == 0.0 or x - x != 0.0 or y != y:
        return math.nan
    rest = float(np.fmod(x, y))
    if rest == 0.0:
        return math.copysign(0.0, y)
    return rest + y if (rest < 0.0) != (y < 0.0) else rest


@jit
def holds_number(values: Float64s, first: int, count: int, x: float) -> bool:
    """Whether x is among `count` ascending values."""
    low, high = first, first + count
    while low < high:
        middle = (low + high) // 2
        if values[middle] < x:
            low = middle + 1
        else:
            high = middle
    return low < first + count and values[low] == x


@jit
def holds_hash(hashes: Words, first: int, count: int, x: int) -> bool:
    """Whether x is among `count` ascending hashes."""
    low, high = first, first + count
    while low < high:
        middle = (low + high) // 2
        if hashes[middle] < x:
            low = middle + 1
        else:
            high = middle
    return low < first + count and hashes[low] == x


@jit
def holds_text(
    pool: Bytes, members: Int64s, first: int, count: int, text: Bytes, off: int, size: int
) -> bool:
    """Whether text[off : off + size] is among `count` members, which ascend by (length, bytes)."""
    low, high = first, first + count
    while low < high:
        middle = (low + high) // 2
        sign = members[middle, 1] - size
        if sign == 0:
            sign = order(pool, members[middle, 0], text, off, size)
            if sign == 0:
                return True
        if sign < 0:
            low = middle + 1
        else:
            high = middle
    return False


@jit
def order(x: Bytes, x_off: int, y: Bytes, y_off: int, size: int) -> int:
    """Compare `size` bytes: 0 if equal, else -1 or 1 by the first that differ."""
    for i in range(size):
        if x[x_off + i] != y[y_off + i]:
            return -1 if x[x_off + i] < y[y_off + i] else 1
    return 0


@jit
def fits(pool: Bytes, glob: int, glob_end: int, text: Bytes, at: int, end: int) -> bool:
    """Whether text[at:end] fits the glob pool[glob:glob_end]: * is any run, ? one character (not byte).

    Linear but for the runs: after a mismatch only the last star is tried again, one character further.
    """
    star = -1  # the place in the glob after the last star
    resume = at  # where the text after that star begins
    while at < end:
        if glob < glob_end and pool[glob] == 42:
            glob += 1
            star = glob
            resume = at
            continue
        if glob < glob_end and pool[glob] == 63:
            glob += 1
            at = next_character(text, at, end)
            continue
        if glob < glob_end and pool[glob] == text[at]:
            glob += 1
            at += 1
            continue
        if star < 0:
            return False
        glob = star
        resume = next_character(text, resume, end)
        at = resume
    while glob < glob_end and pool[glob] == 42:
        glob += 1
    return glob == glob_end


@jit
def next_character(text: Bytes, at: int, end: int) -> int:
    """Return where the UTF-8 character after the one at `at` begins."""
    at += 1
    while at < end and (text[at] & 0xC0) == 0x80:
        at += 1
    return at


if isinstance(run, FunctionType):  # numpy's scalars warn of what IEEE arithmetic does; compiled code does not
    run = np.errstate(all="ignore")(run)
