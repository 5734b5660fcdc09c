"""Kernels that turn the values of a batch of events into its cells: tidied, checked, hashed.

`finish` settles every row of a batch. A row with anything wrong is only marked: `reading.py` then says what,
for people.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from riskengine.hashing import Bytes, Words, nonzero, sip24, sip24_words
from riskengine.kernel import jit
from riskengine.normal import (
    IP_BYTES_MAX,
    MINOR_MAX,
    NO_TIME,
    PHONE_BYTES_MAX,
    TIME_MAX_MS,
    TIME_MIN_MS,
    format_ip,
    is_near_half,
    mobile,
    parse_ipv4,
    parse_ipv6,
    parse_time,
    tidy,
)
from riskengine.rooms import Empty

Ints = NDArray[np.int64]
Int32s = NDArray[np.int32]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TEXT_BYTES_MAX = 4096
ID_BYTES_MAX = 256


class Cells(NamedTuple):
    """What is filled before hashing: n rows, S string and K number columns.

    `scratch` holds the state of each row, then its offset and length of event_id and of follows (-1: none),
    then room for the cells that want help; `words`, `groups` and `network` are for what is hashed: a kernel
    that makes arrays of its own counts who holds those it is given, 1 us longer for a lone event.
    """

    type_index: Int32s  # [n]
    str_off: Ints  # [n, S]
    str_len: Int32s  # [n, S]; -1: absent
    numbers: Floats  # [n, K]; NaN: absent
    scratch: Ints  # [n + 4 n + n (S + K)]
    bits: Words  # [n, K]: the memory of `numbers`
    words: Words  # [4 + S + K]
    groups: Ints  # [8]
    network: Bytes  # [9]

    @classmethod
    def room(cls, n: int, strings: int, columns: int, empty: Empty = np.empty) -> Cells:
        """Room for n rows."""
        numbers = empty((n, columns))
        return cls(
            empty(n, np.int32), empty((n, strings), np.int64), empty((n, strings), np.int32),
            numbers, empty(n * (5 + strings + columns), np.int64), numbers.view(np.uint64),
            np.empty(4 + strings + columns, np.uint64), np.empty(8, np.int64), np.empty(9, np.uint8),
        )  # fmt: skip


# State of a row.
TODO, GOOD, BAD, HELP = 0, 1, 2, 3

# Head of the schema's integers: counts, settings, and where its tables begin.
STRINGS, NUMBERS, ENTITIES, CHINA, LATENESS, SKEW = range(6)
STRING_KINDS, NUMBER_KINDS, REQUIRED, KEYS, HEAD = range(6, 11)
TEXT, PHONE, IP = range(3)  # kinds of string columns
PLAIN, UNIT, HUGE_UNIT, BOOL, TIME, LATITUDE, LONGITUDE = range(7)  # kinds of number columns; 1000 is huge
LOCATION_SCALE = 1e7

# Head of a plan: event type, how many texts, numbers and bools an event of this plan has.
PLAN_TYPE, PLAN_TEXTS, PLAN_NUMBERS, PLAN_BOOLS, PLAN_HEAD = range(5)


@jit
def finish(
    spec: Ints, hashes: Words, powers: Floats, plans: Int32s, values: Floats,
    sizes: Ints, ends: Ints, text: Bytes, now: Ints, helped: bool, type_index: Int32s,
    str_off: Ints, str_len: Int32s, numbers: Floats, scratch: Ints, bits: Words, words: Words, groups: Ints,
    network: Bytes, time: Ints, stamped: Bools, late: Bools,
    str_hash: Words, keys: Words, event_hash: Words, claim: Words, content: Words, follows_claim: Words,
) -> tuple[int, int, int]:  # fmt: skip
    """Settle rows: normalise their cells in place, check them, hash them. Marks each row GOOD, BAD or HELP.

    `values` (empty where the cells are filled already) are put into cells first, see `_scatter`. `sizes` are
    how many of them are numbers, and how many bytes of `text` are used: new spellings are written behind
    these. Returns how many cells want help, how many bytes are used now and how many rows are bad. Where help
    was wanted, it is called again with `helped`, for those rows alone, after Python has settled the cells
    listed at the end of `scratch`, each as row * (S + K) + column.
    """
    n = time.size
    tail = sizes[1]
    state = scratch[:n]
    spans = scratch[n : 5 * n].reshape((n, 4))
    help_wanted = scratch[5 * n :]
    if values.size and not helped:
        _scatter(
            spec, plans, values, sizes[0], text, tail, ends, type_index, str_off, str_len, numbers,
            state, spans,
        )  # fmt: skip
    strings, columns, entities = spec[STRINGS], spec[NUMBERS], spec[ENTITIES]
    types = hashes.size - 4 - strings - columns - entities
    k0, k1, k2, k3 = hashes[0], hashes[1], hashes[2], hashes[3]
    zero, one = np.uint64(0), np.uint64(1)
    wanted = 0
    for i in range(n):
        if state[i] != (HELP if helped else TODO):
            continue
        good = True
        asked = wanted

        for s in range(strings):
            str_hash[i, s] = zero
            size = int(str_len[i, s])
            if size < 0:
                continue
            off = str_off[i, s]
            kind = spec[spec[STRING_KINDS] + s]
            if not helped:
                off, size, is_tidy = tidy(text, off, size)
                if kind == PHONE and size:
                    spelt = mobile(text, off, size, spec[CHINA] != 0, tail) if is_tidy else -1
                    if spelt > 0:
                        off, size = tail, spelt
                        tail += PHONE_BYTES_MAX
                    is_tidy = spelt >= 0
                str_off[i, s] = off
                str_len[i, s] = size
                if not is_tidy:
                    help_wanted[wanted] = i * (strings + columns) + s
                    wanted += 1
                    continue
            if size == 0:
                str_len[i, s] = -1
                continue
            if kind == IP and parse_ipv4(text, off, size) < 0 and parse_ipv6(text, off, size, groups):
                spelt = format_ip(groups, text, tail)
                same = spelt == size
                for j in range(min(spelt, size)):
                    same = same and text[off + j] == text[tail + j]
                if not same:
                    off, size = tail, spelt
                    str_off[i, s] = off
                    str_len[i, s] = size
                    tail += IP_BYTES_MAX
            if size > TEXT_BYTES_MAX:
                good = False
                continue
            str_hash[i, s] = nonzero(sip24(k0, k1, text, off, size))

        for k in range(1, columns):
            value = numbers[i, k]
            if np.isnan(value):
                continue
            kind = spec[spec[NUMBER_KINDS] + k]
            if kind in (UNIT, HUGE_UNIT):
                scaled = value * powers[k] if kind == UNIT else value / powers[k]
                if not helped and is_near_half(scaled):
                    help_wanted[wanted] = i * (strings + columns) + strings + k
                    wanted += 1
                    continue
                minor = np.rint(scaled)
                if abs(minor) > MINOR_MAX:
                    good = False
                value = minor / powers[k] if kind == UNIT else minor * powers[k]
            elif kind == TIME:
                good = good and TIME_MIN_MS <= value <= TIME_MAX_MS and value == np.rint(value)
            elif kind in (LATITUDE, LONGITUDE):
                good = good and abs(value) <= (90.0 if kind == LATITUDE else 180.0)
                value = np.rint(value * LOCATION_SCALE) / LOCATION_SCALE
            numbers[i, k] = value + 0.0  # there is one zero: -0.0 + 0.0 is 0.0

        if not helped:
            stamped[i] = np.isnan(numbers[i, 0])
            if stamped[i]:
                numbers[i, 0] = now[i]
            elif not TIME_MIN_MS <= numbers[i, 0] <= TIME_MAX_MS or numbers[i, 0] != np.rint(numbers[i, 0]):
                state[i] = BAD
                continue
        time[i] = int(numbers[i, 0])
        late[i] = time[i] < now[i] - spec[LATENESS]
        if time[i] > now[i] + spec[SKEW]:
            good = False

        id_size, follows_size = spans[i, 1], spans[i, 3]
        if id_size > ID_BYTES_MAX or follows_size > ID_BYTES_MAX or is_blank(text, spans[i, 0], id_size):
            good = False
        if not good:
            state[i] = BAD
            wanted = asked
            continue
        if wanted > asked:
            state[i] = HELP
            continue
        required = spec[REQUIRED] + 2 * type_index[i]
        for r in range(spec[required], spec[required] + spec[required + 1]):
            column = spec[r]
            if column < strings:
                good = good and str_len[i, column] >= 0
            else:
                good = good and not np.isnan(numbers[i, column - strings])
        state[i] = GOOD if good else BAD
        if not good:
            continue

        claim[i, 0] = nonzero(sip24(k0, k1, text, spans[i, 0], id_size))
        claim[i, 1] = nonzero(sip24(k2, k3, text, spans[i, 0], id_size))
        event_hash[i] = claim[i, 0]
        follows_claim[i, 0] = zero
        follows_claim[i, 1] = zero
        if follows_size > 0 and not is_blank(text, spans[i, 2], follows_size):
            follows_claim[i, 0] = nonzero(sip24(k0, k1, text, spans[i, 2], follows_size))
            follows_claim[i, 1] = nonzero(sip24(k2, k3, text, spans[i, 2], follows_size))

        # Content names the fields that are there, so that a field declared later makes no other content of
        # an event that does not carry it.
        words[0] = hashes[4 + type_index[i]]
        words[1] = follows_claim[i, 0]
        words[2] = zero if stamped[i] else one
        words[3] = zero if stamped[i] else np.uint64(time[i])
        count = 4
        for s in range(strings):
            if str_len[i, s] >= 0:
                words[count] = hashes[4 + types + s] ^ str_hash[i, s]
                count += 1
        for k in range(1, columns):
            if not np.isnan(numbers[i, k]):
                words[count] = hashes[4 + types + strings + k] ^ bits[i, k]
                count += 1
        content[i, 0] = sip24_words(k0, k1, words, count)
        content[i, 1] = sip24_words(k2, k3, words, count)

        # Not a function of its own: with ten arrays to hand over, calls cost 0.6 us an event.
        for e in range(entities):
            words[0] = hashes[4 + types + strings + columns + e]
            entity = spec[spec[KEYS] + e]
            parts = spec[entity + 1]
            present = True
            for c in range(parts):
                column = spec[entity + 2 + c]
                if column >= strings:  # a number with a unit, by its exact value
                    k = column - strings
                    words[1 + c] = hashes[4 + types + column] ^ bits[i, k]
                    present = present and not np.isnan(numbers[i, k])
                    continue
                words[1 + c] = str_hash[i, column]
                if spec[entity] and words[1 + c] != zero:
                    size = _network(text, str_off[i, column], int(str_len[i, column]), groups, network)
                    words[1 + c] = nonzero(sip24(k0, k1, network, 0, size)) if size else zero
                present = present and words[1 + c] != zero
            keys[i, e] = nonzero(sip24_words(k2, k3, words, 1 + parts)) if present else zero
    bad = 0
    for i in range(n):
        bad += state[i] == BAD
    return wanted, tail, bad


@jit
def _scatter(
    spec: Ints, plans: Int32s, values: Floats, numbers_count: int, text: Bytes, used: int, ends: Ints,
    type_index: Int32s, str_off: Ints, str_len: Int32s, numbers: Floats, state: Ints, spans: Ints,
) -> None:  # fmt: skip
    """Put the values of n events where their plans say.

    values holds each event's row of `plans`, then the numbers of all events, then their bools; text[:used]
    all texts, one after another with a 0x00 between them, which end at `ends` (empty: they hold no 0x00
    themselves, so it is looked for).
    """
    strings, columns = spec[STRINGS], spec[NUMBERS]
    at = 0
    seen = 0
    number = state.size
    flag = number + numbers_count
    for i in range(state.size):
        plan = plans[int(values[i])]
        type_index[i] = plan[PLAN_TYPE]
        state[i] = TODO
        for s in range(strings):
            str_off[i, s] = 0
            str_len[i, s] = -1
        for k in range(columns):
            numbers[i, k] = np.nan
        spans[i, 2] = 0
        spans[i, 3] = -1
        target = PLAN_HEAD
        for _ in range(plan[PLAN_TEXTS]):
            off = at
            if ends.size:
                at = ends[seen]
            else:
                while at < used and text[at] != 0:
                    at += 1
            size = at - off
            at += 1
            seen += 1
            column = plan[target]
            target += 1
            if column < strings:
                str_off[i, column] = off
                str_len[i, column] = size
            elif column < strings + 2:
                spans[i, 2 * (column - strings)] = off
                spans[i, 2 * (column - strings) + 1] = size
            else:
                off, size, _tidy = tidy(text, off, size)
                if size:
                    moment = parse_time(text, off, size)
                    if moment == NO_TIME:
                        state[i] = BAD
                    else:
                        numbers[i, column - strings - 2] = moment
        for _ in range(plan[PLAN_NUMBERS]):
            if not np.isfinite(values[number]):
                state[i] = BAD
            numbers[i, plan[target]] = values[number]
            target += 1
            number += 1
        for _ in range(plan[PLAN_BOOLS]):
            numbers[i, plan[target]] = values[flag]
            target += 1
            flag += 1


@jit
def is_blank(text: Bytes, off: int, size: int) -> bool:
    """Whether an id is empty or only ASCII white space."""
    _off, size, _tidy = tidy(text, off, size)
    return size == 0


@jit
def _network(text: Bytes, off: int, size: int, groups: Ints, network: Bytes) -> int:
    """Write the network of an address as `normal.subnet` says; the bytes it took, 0 for no address."""
    address = parse_ipv4(text, off, size)
    if address >= 0:
        network[0] = 4
        for j in range(3):
            network[1 + j] = (address >> (24 - 8 * j)) & 0xFF
        return 4
    if not parse_ipv6(text, off, size, groups):
        return 0
    network[0] = 6
    for j in range(4):
        network[1 + 2 * j] = groups[j] >> 8
        network[2 + 2 * j] = groups[j] & 0xFF
    return 9


@jit
def put_texts(
    ends: Ints, shift: int, valid: Bools, wanted: Bools, type_index: Int32s, str_off: Ints, str_len: Int32s,
    column: int,
) -> None:  # fmt: skip
    """Put a column of strings, which lie one after another from `shift` on, where event types want it.

    String i ends where `ends[i + 1]` is; it is null where not `valid` (empty: none is). wanted bool[types].
    """
    for i in range(len(ends) - 1):
        there = (valid.size == 0 or valid[i]) and wanted[type_index[i]]
        str_off[i, column] = ends[i] - ends[0] + shift
        str_len[i, column] = ends[i + 1] - ends[i] if there else -1


@jit
def put_numbers(
    found: Floats, valid: Bools, wanted: Bools, type_index: Int32s, state: Ints, numbers: Floats, column: int
) -> None:
    """Put a column of numbers where event types want it; a row is BAD where what is `valid` is not finite."""
    for i in range(len(found)):
        numbers[i, column] = np.nan
        if wanted[type_index[i]]:
            numbers[i, column] = found[i]
            if (valid.size == 0 or valid[i]) and not np.isfinite(found[i]):
                state[i] = BAD


@jit
def parse_times(text: Bytes, str_off: Ints, str_len: Int32s, out: Floats, state: Ints) -> None:
    """A column of RFC 3339 texts as epoch ms; a row whose text is none is BAD. Blank texts are absent."""
    for i in range(out.size):
        out[i] = np.nan
        if str_len[i] >= 0:
            off, size, _tidy = tidy(text, str_off[i], str_len[i])
            if size:
                moment = parse_time(text, off, size)
                if moment == NO_TIME:
                    state[i] = BAD
                else:
                    out[i] = moment
