"""A batch as one transaction of a lone server: every value as it was, then what is appended, then the claims.

From within a script a command takes Redis longer than by itself, so what there is most of is read and
appended by plain commands, between MULTI and EXEC: an event of six keys took Valkey 27 us so, and 40 in one
script. The script that comes last, enter.lua, enters the claims. Where it finds one, it takes back what was
appended, and the batch is asked by observe.lua: retries are rare.
A server that does not take a command when it comes refuses the transaction as a whole, and does none of it.
"""

from __future__ import annotations

from riskengine.kernel import jit
from riskengine.layout import Int64s
from riskengine.packing import Bytes, put_bytes, put_raw
from riskengine.stores import resp
from riskengine.stores.resp import DOLLAR, STAR, as_array, bulk, command, put_end, put_line
from riskengine.stores.wire import (
    CLAIM_BYTES,
    ENTITY_CHARS,
    gather,
    put_claim,
    put_claim_name,
    put_entity_name,
    put_number,
    put_pieces,
)

MULTI, EXEC = (as_array(command((name,))) for name in ("MULTI", "EXEC"))
MGET, APPEND, PEXPIRE = (as_array(bulk(name)) for name in (b"MGET", b"APPEND", b"PEXPIRE"))
APART = 3  # replies besides those of what is appended: to MULTI, MGET and the script; EXEC's comes last
BOTH = 2  # epoch and edits, before the values


@jit
def write(
    out: Bytes,
    plan: Int64s,
    tag: int,
    prefix: Bytes,
    kinds: Bytes,
    shared: Bytes,
    opening: Bytes,
    epoch_key: Bytes,
    epoch: Bytes,
    life_s: int,
    batch: Bytes,
    contents: Int64s,
    time: Int64s,
    claims: Int64s,
    keys: Int64s,
    records: Int64s,
    asked: Bytes,
    amounts: Int64s,
    mosts: Int64s,
    slots: Int64s,
    entities: Int64s,
    sizes: Int64s,
    pieces: Int64s,
    names: Int64s,
    after: Int64s,
) -> tuple[int, int, int]:
    """Write the transaction of a batch; return its bytes, replies before that of EXEC, and values in that.

    Entities are found as wire.gather does; `names` (K) is scratch. `shared` (two keys), `opening` (EVAL and
    the script), `epoch_key` and `epoch` are strings of RESP made beforehand.
    """
    count, _ = gather(plan, keys, records, asked, slots, entities, sizes, pieces, after)
    n = len(time)
    size = len(prefix)
    at = put_bytes(out, 0, MULTI, 0, len(MULTI))
    at = put_line(out, at, STAR, 1 + BOTH + count)
    at = put_bytes(out, at, MGET, 0, len(MGET))
    at = put_bytes(out, at, shared, 0, len(shared))
    for k in range(count):
        names[k] = at  # the same bytes are needed again
        at = put_entity_name(out, at, prefix, size, 0, kinds, entities[k, 1], entities[k, 0])
    name_bytes = at - names[count - 1] if count else 0
    appended = 0
    for k in range(count):
        if sizes[k] == 0:
            continue
        appended += 1
        at = put_line(out, at, STAR, 3)
        at = put_bytes(out, at, APPEND, 0, len(APPEND))
        at = put_bytes(out, at, out, names[k], name_bytes)
        at = put_pieces(
            out, at, plan, tag, records, asked, amounts, mosts, time, claims, entities, k, sizes, after
        )
    at = put_line(out, at, STAR, 8 + 2 * n)
    at = put_bytes(out, at, opening, 0, len(opening))
    at = put_number(out, at, 1 + n)
    at = put_bytes(out, at, epoch_key, 0, len(epoch_key))
    for i in range(n):
        at = put_claim_name(out, at, prefix, size, 0, 99, claims[i, 0], claims[i, 1])
    at = put_bytes(out, at, epoch, 0, len(epoch))
    at = put_number(out, at, 1000 * life_s)
    at = put_line(out, at, DOLLAR, size)
    at = put_end(out, put_bytes(out, at, prefix, 0, size))
    at = put_line(out, at, DOLLAR, (ENTITY_CHARS + 4) * appended)
    for k in range(count):
        if sizes[k]:
            end = put_bytes(out, at, out, names[k] + name_bytes - 2 - ENTITY_CHARS, ENTITY_CHARS)
            at = put_raw(out, end, sizes[k], 4)
    at = put_end(out, at)
    for i in range(n):
        at = put_line(out, at, DOLLAR, CLAIM_BYTES)
        at = put_end(out, put_claim(out, at, contents, time, life_s, batch, i))
    return put_bytes(out, at, EXEC, 0, len(EXEC)), appended + APART, count


@jit
def read(
    offsets: Int64s, lengths: Int64s, first: int, end: int, count: int, values: Int64s
) -> tuple[bool, int, int]:
    """Look through the reply of EXEC: `values` gets the number of each entity's item.

    Returns whether the claims were entered; the number of an item that is an error, or -1; and how many bytes
    all values have. Where claims were known there is nothing left that went wrong.
    """
    size = 0
    for k in range(count):
        values[k] = first + BOTH + k
        size += max(lengths[values[k]], 0)
    if lengths[end - 1] == resp.INTEGER and offsets[end - 1] == 0:
        return False, -1, size
    for at in range(first, end):
        if lengths[at] == resp.ERROR:
            return False, at, size
    return True, -1, size


@jit
def write_lives(
    out: Bytes,
    prefix: Bytes,
    kinds: Bytes,
    lives_ms: Int64s,
    lengths: Int64s,
    values: Int64s,
    entities: Int64s,
    count: int,
    sizes: Int64s,
) -> tuple[int, int]:
    """Write how long entities live that there were none of before; return its bytes, and how many they are.

    Where nobody says so, a value lives until it is folded again, and from then on as long as others.
    """
    at = 0
    found = 0
    for k in range(count):
        if sizes[k] and lengths[values[k]] < 0:
            e = entities[k, 1]
            at = put_line(out, at, STAR, 3)
            at = put_bytes(out, at, PEXPIRE, 0, len(PEXPIRE))
            at = put_entity_name(out, at, prefix, len(prefix), 0, kinds, e, entities[k, 0])
            at = put_number(out, at, lives_ms[e])
            found += 1
    return at, found
