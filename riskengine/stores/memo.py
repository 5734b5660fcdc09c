"""What values were folded to, remembered: one that has grown since is folded on from there.

Folding is a function of a value's bytes alone, and between two reads a value mostly grows by a record or two.
So the slab that came of one is kept, by the entity's key, with the length and a digest of those bytes. What
begins with the same bytes is that slab and what follows them; anything else is folded from its beginning.
Nothing need be told where a server loses data, others write a snapshot, or an entity is forgotten.

It is one array, as each that a kernel is handed takes time: counters, an index of two words a slot (key, and
when its entry was written), and a ring of entries, the oldest of which give way. An entry is a head and a
slab.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from riskengine import ledger
from riskengine.kernel import jit, jit_inline, prefetch
from riskengine.layout import Int64s
from riskengine.packing import Bytes, digest

# Counters: words of the ring written ever, slots of the index, words of the ring.
WRITTEN, SLOTS, SIZE, COUNTERS = range(4)
# Of an entry: of how many bytes it is, their digest, what was told of them, and words that its slab may take.
LENGTH, DIGEST, RECORDS, SNAPSHOT_BYTES, SINCE, ROOM, HEAD = range(7)
RING_WORDS: Final = 1 << 19  # 4 MiB a door: some 6,000 entities, those that are met again soonest
INDEX_SLOTS: Final = 1 << 15  # where two keys have one slot, the later one has it
BYTES_MIN: Final = 512  # a value of fewer is folded as fast as it would be found here
LINE: Final = 8  # words
LINES: Final = 12  # called in of an entry; few are longer
NOTHING: Final = np.empty(0, np.int64)  # where nothing is to be remembered


def memory(words: int = RING_WORDS, slots: int = INDEX_SLOTS) -> Int64s:
    """Room for entries of so many words in all, found by so many slots: powers of two."""
    memo = np.full(COUNTERS + 2 * slots + words, 0)  # touched: each page that comes later takes 4 us
    memo[SLOTS], memo[SIZE] = slots, words
    return memo


def forget(memo: Int64s) -> None:
    """Know nothing any more, as values are folded by another plan from now on."""
    memo[WRITTEN] += 2 * memo[SIZE]


@jit_inline
def slot_of(memo: Int64s, key: int) -> int:
    """Where a key stands in the index, if it does."""
    return COUNTERS + 2 * (key & (memo[SLOTS] - 1))  # type: ignore[no-any-return]  # an int in the kernel


@jit_inline
def entry_of(memo: Int64s, key: int) -> int:
    """Where the entry of a key begins, or -1."""
    slot = slot_of(memo, key)
    if memo[slot] != key or memo[WRITTEN] - memo[slot + 1] > memo[SIZE]:
        return -1
    return COUNTERS + 2 * memo[SLOTS] + (memo[slot + 1] & (memo[SIZE] - 1))  # type: ignore[no-any-return]  # an int in the kernel


@jit_inline
def call_slot(memo: Int64s, key: int) -> None:
    """Call in the place of a key in the index, ..."""
    prefetch(memo, slot_of(memo, key))


@jit_inline
def call_entry(memo: Int64s, key: int) -> None:
    """... and once that has come, its entry."""
    entry = entry_of(memo, key)
    if entry >= 0:
        for line in range(LINES):
            prefetch(memo, entry + line * LINE)


@jit
def recall(memo: Int64s, key: int, data: Bytes, at: int, end: int) -> int:
    """Where the entry of a key begins, if data[at:end] begins with what that is of; else -1."""
    entry = entry_of(memo, key)
    if entry >= 0:
        behind = at + memo[entry + LENGTH]
        if behind > end or digest(data, at, behind) != memo[entry + DIGEST]:
            return -1
    return entry


@jit
def keep(
    memo: Int64s,
    key: int,
    length: int,
    mark: int,
    records: int,
    snapshot: int,
    since: int,
    words: Int64s,
    s: int,
) -> None:
    """Remember that so many bytes, of this digest (`mark`), come to the slab at `s`.

    Where there was an entry of the key that has the room, and is not about to give way, it is written over.
    """
    used = ledger.used_words(words, s)
    size = memo[SIZE]
    slot = slot_of(memo, key)
    entry = entry_of(memo, key)
    if entry < 0 or memo[entry + ROOM] < used or memo[WRITTEN] - memo[slot + 1] > size >> 1:
        room = (HEAD + used + (used >> 2) + LINE) // LINE * LINE - HEAD
        if HEAD + room > size >> 3:
            return
        place = memo[WRITTEN]
        left = size - (place & (size - 1))
        if left < HEAD + room:  # no entry goes round
            place += left
        memo[WRITTEN] = place + HEAD + room
        memo[slot] = key
        memo[slot + 1] = place
        entry = COUNTERS + 2 * memo[SLOTS] + (place & (size - 1))
        memo[entry + ROOM] = room
    memo[entry + LENGTH] = length
    memo[entry + DIGEST] = mark
    memo[entry + RECORDS] = records
    memo[entry + SNAPSHOT_BYTES] = snapshot
    memo[entry + SINCE] = since
    for k in range(used):
        memo[entry + HEAD + k] = words[s + k]
