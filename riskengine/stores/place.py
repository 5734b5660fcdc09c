"""Where the data of a shared store is: the names of its keys, and the life of it that they belong to."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class Place(msgspec.Struct, frozen=True):
    """Where a store's data is: names begin with `prefix`, and `epoch` says which life of it this is.

    `mark` is what holds the epoch: another one than "epoch" while that life is in the making.
    """

    prefix: str
    epoch: bytes
    mark: str = "epoch"

    @property
    def epoch_key(self) -> bytes:
        """The key that holds the epoch."""
        return f"{self.prefix}{self.mark}".encode()

    @property
    def data(self) -> bytes:
        """What the names of all data of this epoch begin with."""
        return f"{self.prefix}{self.epoch.decode()}:".encode()

    def claim_name(self, letter: bytes, key: bytes) -> bytes:
        """The key of an event's claim (c), or of what else is kept of it by a letter of its own."""
        words = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
        return self.data + letter + spelled(words[0]) + spelled(words[1])

    def entity_name(self, entity: str, key: int) -> bytes:
        """The key of an entity's state."""
        return self.data + b"e" + kind_of(entity) + spelled(key & (2**64 - 1))


def spelled(word: int) -> bytes:
    """64 bits in 11 characters, as wire.put_word writes them."""
    return "".join([*(LETTERS[(word >> (58 - 6 * k)) & 63] for k in range(10)), LETTERS[word & 15]]).encode()


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
