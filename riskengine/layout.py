"""How records, slabs and the tables of a plan are laid out in int64 words, and numbers as such words.

Kernels find all of it by the constants here, in the one array that `Plan.flatten` makes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from riskengine.kernel import constant, jit, jit_inline

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]

NONE: Final = -(2**63)  # a word that holds nothing
NEVER_MS: Final = 2**63 - 1
SLIDING: Final = 0  # window kinds; 1, 2, 3 are calendar.DAY, WEEK, MONTH

# A record: time, event hash, which cells it moves (SIGN_BIT: takes away), then the entity's slots.
RECORD_TIME: Final = 0
RECORD_HASH: Final = 1
RECORD_MASK: Final = 2
RECORD_SLOTS: Final = 3
SIGN_BIT: Final = 62

# Columns of Plan.entities, one row an entity.
E_RECORD, E_WIDTH, E_CELLS, E_CELLS_N, E_FIXED, E_FIXED_N, E_REGIONS, E_REGIONS_N = range(8)
E_READS, E_BEFORE_N, E_AFTER_N, E_RETENTION, E_GROWTH, E_SIZE = range(8, 14)

# Columns of Plan.cells.
C_KIND, C_AT, C_WORDS, C_COLUMNS, C_COLUMNS_N, C_WINDOWS, C_WINDOWS_N, C_SLOT, C_CAP, C_SIZE = range(10)
# C_KIND: what a cell keeps, and where (C_AT: word in the fixed area, or number of the region).
# See cells.py for the kinds.

# Columns of Plan.columns: what a record adds to a timeline entry (ONE, ADD, ...).
K_OP, K_SLOT, K_SIZE = range(3)

# Columns of Plan.windows.
W_KIND, W_BUCKET, W_BUCKETS, W_DELAY, W_SIZE = range(5)

# Columns of Plan.reads: one feature each; an entity's are ordered so that those read before the record stand
# first (E_BEFORE_N), then the others (E_AFTER_N), and equal (cell, window) are neighbours.
R_OP, R_CELL, R_WINDOW, R_COLUMN, R_COLUMN2, R_DIGITS, R_OUT, R_OTHER, R_EXTRA, R_SIZE = range(10)
(
    COUNT,
    SUM,
    MEAN,
    MIN,
    MAX,
    STD,
    RATE,
    DISTINCT,
    SINCE_FIRST,
    SINCE_LAST,
    SINCE_MARK,
    PREVIOUS_NUMBER,
    PREVIOUS_TEXT,
    PREVIOUS_LOCATION,
    SPEED,
) = range(15)

# The head of a flattened plan: where its tables begin, and its settings.
(
    P_ENTITIES,
    P_CELLS,
    P_COLUMNS,
    P_WINDOWS,
    P_REGIONS,
    P_READS,
    P_TRANSITIONS,
    P_OFFSETS,
    P_SLOTS,
    P_MOVERS,
    P_MOVES,
    P_KINDS,
    P_LIMITS,
    P_LIMIT_TYPES,
    P_TOTALS,
    P_RUNNING,
    P_SLACK,
    P_ENTITIES_N,
    P_TRANSITIONS_N,
    P_SLOTS_N,
    P_TYPES_N,
    P_LIMITS_N,
    P_HEAD,
) = range(23)

# Columns of Plan.slots: what (MINOR, KEY_OF, ...) goes where in a record.
S_ENTITY, S_AT, S_KIND, S_SOURCE, S_DIGITS, S_SIZE = range(6)

# Columns of Plan.movers: what an event must have to move a cell.
M_WHERE, M_NEEDS, M_LABEL, M_SIZE = range(4)
EVENT, FRAUD, LEGIT = range(3)  # what M_LABEL says moves a cell

# Columns of Plan.running: words that an entity's totals take, whether it keeps nothing that has none, and
# whether it is of the common kind that `step` knows.
T_WORDS, T_ALL, T_PLAIN, T_SIZE = range(4)
T_SINCE: Final = 1  # of a window's totals: head, time from which on they count, a word a column

# Columns of Plan.limits.
L_ENTITY, L_CELL, L_WHERE, L_MAX, L_FIELD, L_DIGITS, L_SEVERITY, L_LIVE, L_SIZE = range(9)

META_ENTITY: Final = 0  # bits 0-7
META_PLAN: Final = 8  # bits 8-23
META_CLASS: Final = 24  # bits 24-30
META_TOTALS: Final = 31
META_USED: Final = 32  # bits 32-62
POWERS: Final = np.array([10.0**digits for digits in range(16)])
SQUARE_SHIFT: Final = 43  # a square is kept as high * 2**43 + low, so that both add without carry


class Plan(NamedTuple):
    """How every entity's records and state are laid out; int64 tables indexed by the constants above.

    Kernels take them as the one array that `flatten` makes: a tuple of arrays is copied and its arrays
    counted at every call of a kernel by another (observe took 15 us an event so, 274 increments).
    """

    entities: Int64s  # (E, E_SIZE)
    cells: Int64s  # (cells, C_SIZE)
    columns: Int64s  # (columns, K_SIZE)
    windows: Int64s  # (windows, W_SIZE)
    regions: Int64s  # words of one entry, for each region
    reads: Int64s  # (features, R_SIZE)
    transitions: Int64s  # the policy's time zone, see calendar.timezone_table
    offsets: Int64s
    slots: Int64s  # (slots, S_SIZE): what goes where in a record
    movers: Int64s  # (cells, M_SIZE): what an event must have to move a cell
    moves: Int64s  # (cells, event types), 1 where events of the type move the cell
    kinds: Int64s  # (3, E): masks of the cells that events, labels fraud, and labels legit move
    limits: Int64s  # (limits, L_SIZE)
    limit_types: Int64s  # (limits, event types)
    totals: Int64s  # (windows): where a window's totals stand among those of its entity; -1 has none
    running: Int64s  # (E, T_SIZE)
    slack_ms: int  # lateness + skew: how far behind T a read may be

    def flatten(self) -> Int64s:
        """All tables in one array, behind a head that says where each begins (P_*)."""
        tables = [table for table in self if isinstance(table, np.ndarray)]
        head = np.zeros(P_HEAD, np.int64)
        head[:P_SLACK] = P_HEAD + np.cumsum([0, *(table.size for table in tables[:-1])])
        head[P_SLACK] = self.slack_ms
        head[P_ENTITIES_N] = len(self.entities)
        head[P_TRANSITIONS_N] = len(self.transitions)
        head[P_SLOTS_N] = len(self.slots)
        head[P_TYPES_N] = self.moves.shape[1]
        head[P_LIMITS_N] = len(self.limits)
        return np.concatenate((head, *(table.ravel() for table in tables)))


@jit
def entity_of(plan: Int64s, e: int, what: int) -> int:
    """Field E_* of an entity."""
    return constant(plan, constant(plan, P_ENTITIES) + e * E_SIZE + what)


@jit
def cell_of(plan: Int64s, cell: int, what: int) -> int:
    """Field C_* of a cell."""
    return constant(plan, constant(plan, P_CELLS) + cell * C_SIZE + what)


@jit
def column_of(plan: Int64s, column: int, what: int) -> int:
    """Field K_* of a timeline's column."""
    return constant(plan, constant(plan, P_COLUMNS) + column * K_SIZE + what)


@jit
def window_of(plan: Int64s, window: int, what: int) -> int:
    """Field W_* of a window."""
    return constant(plan, constant(plan, P_WINDOWS) + window * W_SIZE + what)


@jit
def slot_of(plan: Int64s, slot: int, what: int) -> int:
    """Field S_* of a slot."""
    return constant(plan, constant(plan, P_SLOTS) + slot * S_SIZE + what)


@jit
def mover_of(plan: Int64s, cell: int, what: int) -> int:
    """Field M_* of a cell."""
    return constant(plan, constant(plan, P_MOVERS) + cell * M_SIZE + what)


@jit
def limit_of(plan: Int64s, limit: int, what: int) -> int:
    """Field L_* of a limit."""
    return constant(plan, constant(plan, P_LIMITS) + limit * L_SIZE + what)


@jit
def region_words(plan: Int64s, region: int) -> int:
    """Words of one entry of a region."""
    return constant(plan, constant(plan, P_REGIONS) + region)


@jit
def totals_of(plan: Int64s, window: int) -> int:
    """Where a window's totals stand among those of its entity, or -1."""
    return constant(plan, constant(plan, P_TOTALS) + window)


@jit
def running_of(plan: Int64s, e: int, what: int) -> int:
    """Field T_* of an entity."""
    return constant(plan, constant(plan, P_RUNNING) + e * T_SIZE + what)


@jit
def offset_in(plan: Int64s, t: int) -> int:
    """Local time minus UTC at `t`, ms: calendar.offset_at over the plan's own table."""
    at = constant(plan, P_TRANSITIONS)
    low = 0
    high = constant(plan, P_TRANSITIONS_N) - 1
    if t >= constant(plan, at + high):
        low = high
    while high - low > 1:
        middle = (low + high) >> 1
        if constant(plan, at + middle) <= t:
            low = middle
        else:
            high = middle
    return constant(plan, constant(plan, P_OFFSETS) + low)


@jit_inline
def unscaled(value: float, digits: int) -> float:
    """Minor units to the unit's own: value / 10**digits."""
    return value / POWERS[digits] if digits >= 0 else value * POWERS[-digits]  # type: ignore[no-any-return]  # a float in the kernel


@jit
def minor_of(value: float, digits: int) -> int:
    """A quantised value in minor units: exact, as value is minor / 10**digits and at most 2**43 units."""
    return int(np.rint(value * POWERS[digits] if digits >= 0 else value / POWERS[-digits]))


@jit
def pack_location(lat: float, lon: float) -> int:
    """A location in one word: 1e-7 degrees, latitude in the upper half."""
    return (int(np.rint(lat * 1e7)) << 32) | (int(np.rint(lon * 1e7)) & 0xFFFFFFFF)


@jit
def latitude(word: int) -> float:
    """Degrees of latitude in a packed location."""
    return (word >> 32) / 1e7


@jit
def longitude(word: int) -> float:
    """Degrees of longitude in a packed location."""
    low = word & 0xFFFFFFFF
    return (low - (1 << 32) if low >= (1 << 31) else low) / 1e7
