"""Where the data of a shared store is: the names of its keys, and the life of it that they belong to."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class Place(msgspec.Struct, frozen=True):
    """Where a store's data is: names begin with `prefix`, and `epoch` says which life of it this is.

    `mark` is what holds the epoch: another one than "epoch" while that life is in the making.
    On a cluster data is cut into partitions, each with a tag in its names that puts it into one slot. What
    there is once of is in the first one.
    """

    prefix: str
    epoch: bytes
    mark: str = "epoch"
    tags: tuple[bytes, ...] = (b"",)  # of each partition, a power of two of them

    @property
    def epoch_key(self) -> bytes:
        """The key that holds the epoch."""
        return self.epoch_name(0)

    def epoch_name(self, part: int) -> bytes:
        """The key of a partition that holds the epoch too."""
        return self.prefix.encode() + self.tags[part] + self.mark.encode()

    @property
    def data(self) -> bytes:
        """What the names of all data of this epoch begin with."""
        return f"{self.prefix}{self.epoch.decode()}:".encode()

    def within(self, part: int) -> bytes:
        """What the names of the data of a partition begin with."""
        return self.data + self.tags[part]

    def part_of(self, key: bytes | int) -> int:
        """The partition of an event, by its claim, or of an entity, by its key."""
        word = key if isinstance(key, int) else int.from_bytes(key[:8], "little")
        return word & (len(self.tags) - 1)

    def name(self, what: str) -> bytes:
        """The key of what there is once of."""
        return self.within(0) + what.encode()

    def claim_name(self, letter: bytes, key: bytes, part: int | None = None) -> bytes:
        """The key of an event's claim (c), or of what else is kept of it by a letter of its own.

        That is in the event's partition, unless another is given.
        """
        words = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
        where = self.part_of(key) if part is None else part
        return self.within(where) + letter + spelled(words[0]) + spelled(words[1])

    def is_at_home(self, name: bytes) -> bool:
        """Whether a claim, or what is kept beside it, is in the partition of its event."""
        at = len(self.data)
        tag, word = name[at : at + len(self.tags[0])], name[len(self.within(0)) + 1 :][:11]
        return self.tags[self.part_of(word_of(word))] == tag

    def entity_name(self, entity: str, key: int) -> bytes:
        """The key of an entity's state."""
        return self.within(self.part_of(key)) + b"e" + kind_of(entity) + spelled(key & (2**64 - 1))


def spelled(word: int) -> bytes:
    """64 bits in 11 characters, as wire.put_word writes them."""
    return "".join([*(LETTERS[(word >> (58 - 6 * k)) & 63] for k in range(10)), LETTERS[word & 15]]).encode()


def word_of(text: bytes) -> int:
    """The 64 bits that `spelled` wrote."""
    word = 0
    for letter in text[:10].decode():
        word = word << 6 | LETTERS.index(letter)
    return word << 4 | LETTERS.index(text[10:11].decode())


def read_word(text: bytes) -> int:
    """The same as a signed number, as keys of entities are."""
    word = word_of(text)
    return word - (1 << 64) if word >= 1 << 63 else word


def kind_of(entity: str) -> bytes:
    """Two characters that tell an entity's kind in the names of keys."""
    digest = hashlib.blake2b(entity.encode(), digest_size=2, person=b"riskengine.kind").digest()
    return (LETTERS[digest[0] & 63] + LETTERS[digest[1] & 63]).encode()


def missing_epoch(place: Place) -> str:
    """What is wrong where the epoch is not the one that was there when the store was opened."""
    return (
        f"the store at {place.prefix} is empty or begins anew: it was emptied, or lost its data. Counters "
        "would start from nothing: rebuild them (riskengine rebuild), or begin empty (riskengine store init)"
    )
