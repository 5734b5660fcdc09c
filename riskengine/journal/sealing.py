"""Personal values encrypted beside their hashes, for whoever has the key: AES-256-GCM, a nonce a block.

RISKENGINE_JOURNAL_KEY has one key, or several with commas between them: the first encrypts, all decrypt. A
key is known by eight digits of its hash, so a new one can be put in front and the old one kept for reading.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import msgspec

from riskengine.journal.trouble import JournalError

VARIABLE: Final = "RISKENGINE_JOURNAL_KEY"
KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_ID_BYTES: Final = 4


class Sealer:
    """Encrypts with one key, decrypts with any of several. Safe to share between threads."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """`keys` of 32 bytes each, at least one: the first encrypts."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 20 ms that only this needs

        self._ciphers = {_id(key): AESGCM(key) for key in keys}
        self._first = _id(keys[0])

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        """A sealer for the keys of RISKENGINE_JOURNAL_KEY; None where there are none. Raises JournalError."""
        if not text or not text.strip():
            return None
        keys = []
        for i, word in enumerate(text.split(","), 1):
            try:
                key = bytes.fromhex(word.strip())
            except ValueError:
                key = b""
            if len(key) != KEY_BYTES:
                raise JournalError(
                    f"key {i} of {VARIABLE} is no key: write 64 hexadecimal digits (openssl rand -hex 32), "
                    "and commas between several"
                )
            keys.append(key)
        return cls(keys)

    @property
    def key_id(self) -> str:
        """What the key is known by that encrypts."""
        return self._first.hex()

    def seal(self, values: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> bytes:
        """Encrypt the values of a block's events; they can be opened with the same ids only."""
        nonce = os.urandom(_NONCE_BYTES)
        return self._first + nonce + self._ciphers[self._first].encrypt(nonce, _encode(values), _bound(ids))

    def open(self, sealed: bytes, ids: Sequence[str]) -> list[dict[str, Any]]:
        """What was sealed. Raises JournalError for a key that is not here, and for damaged bytes."""
        from cryptography.exceptions import InvalidTag

        cipher = self._ciphers.get(sealed[:_ID_BYTES])
        if cipher is None:
            has = ", ".join(key.hex() for key in self._ciphers)
            raise JournalError(
                f"this is encrypted with key {sealed[:_ID_BYTES].hex()}, and {VARIABLE} has {has}: add the "
                "old key behind the new one, with a comma between them"
            )
        nonce, data = sealed[_ID_BYTES : _ID_BYTES + _NONCE_BYTES], sealed[_ID_BYTES + _NONCE_BYTES :]
        try:
            plain = cipher.decrypt(nonce, data, _bound(ids))
        except InvalidTag:
            raise JournalError("the encrypted part of this entry is damaged or has been exchanged") from None
        return msgspec.json.decode(plain, type=list[dict[str, Any]])

    def is_current(self, sealed: bytes) -> bool:
        """Whether the first key encrypted it."""
        return sealed[:_ID_BYTES] == self._first


def _id(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=_ID_BYTES, person=b"journal key").digest()


def _bound(ids: Sequence[str]) -> bytes:
    return hashlib.blake2b("\0".join(ids).encode(), digest_size=16).digest()


def _encode(values: Sequence[Mapping[str, Any]]) -> bytes:
    return msgspec.json.encode(values)
