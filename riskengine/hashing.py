"""Values become keyed 64-bit numbers: SipHash-2-4 kernels and how their keys are derived.

The store, the logs and the links between entities see only these numbers, never a phone or an address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from riskengine.kernel import jit

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint64]
P = ParamSpec("P")
R = TypeVar("R")

MISSING = 0  # no key, no hash: a value that hashes to 0 is given 1


def signed(key: int) -> int:
    """A 64-bit key as the stores carry it, in an int64."""
    return key - (1 << 64) if key >= 1 << 63 else key


def unsigned(key: int) -> int:
    """The 64-bit key that stores carry as an int64."""
    return key & ((1 << 64) - 1)


def derive_keys(key: bytes, tenant: str) -> Words:
    """The two SipHash keys of a tenant, as uint64[4]: k0, k1 of the first and of the second hash.

    `key` is the secret (RISKENGINE_HASH_KEY) of any length but 0; ValueError otherwise. Tenants do not
    share numbers: the same phone is another number in another tenant.
    """
    if not key:
        raise ValueError("the hash key is empty: give RISKENGINE_HASH_KEY some random bytes")
    halves = (_digest(tenant, key, person, 16) for person in (b"riskengine.sip.1", b"riskengine.sip.2"))
    return np.frombuffer(b"".join(halves), "<u8").astype(np.uint64)


def check_value(key: bytes, tenant: str) -> bytes:
    """16 hex digits that tell whether two who hash use the same key, and nothing of the key."""
    return _digest(tenant, key, b"riskengine.check", 8).hex().encode()


def _digest(tenant: str, key: bytes, person: bytes, size: int) -> bytes:
    if len(key) > hashlib.blake2b.MAX_KEY_SIZE:
        key = hashlib.blake2b(key).digest()
    return hashlib.blake2b(tenant.encode(), digest_size=size, key=key, person=person).digest()


def string_hash(value: bytes, keys: Words) -> int:
    """The 64-bit number of normalised UTF-8 bytes, as `Batch.str_hash` has it; 0 for no bytes."""
    return _hash(value, keys, 0) if value else MISSING


def event_hash(event_id: str, keys: Words) -> int:
    """The 64-bit number of an event: it orders events of the same time."""
    return _hash(event_id.encode(), keys, 0)


def claim(event_id: str, keys: Words) -> tuple[int, int]:
    """The 128-bit name of an event in the store; the first half is its `event_hash`."""
    value = event_id.encode()
    return _hash(value, keys, 0), _hash(value, keys, 2)


def entity_key(name: str, parts: Sequence[bytes | int], keys: Words) -> int:
    """The 64-bit key of an entity from its normalised components; 0 when one is missing (empty).

    A number comes as the word that stands for it (`Schema.entity_key`).

    It is the hash, by the second key, of the hashes of its name and of each component: two entities never
    hash the same message, and what a row has hashed of a string serves every entity made of it.
    """
    if b"" in parts:
        return MISSING
    hashed = (part if isinstance(part, int) else string_hash(part, keys) for part in parts)
    words = np.array([name_hash("entity", name, keys), *hashed], np.uint64)
    return int(sip24_words(keys[2], keys[3], words, len(words))) or 1


def name_hash(kind: str, name: str, keys: Words) -> int:
    """The 64-bit number of a name in a policy: of an event type, a field or an entity."""
    return _hash(f"{kind}:{name}".encode(), keys, 0)


def as_bytes(value: bytes) -> Bytes:
    """Writable uint8 of `value` and one spare byte: kernels are compiled for writable arrays only."""
    return np.frombuffer(bytearray(value) + b"\0", np.uint8)


def _hash(value: bytes, keys: Words, at: int) -> int:
    return int(sip24(keys[at], keys[at + 1], as_bytes(value), 0, len(value))) or 1


def wrapping(kernel: Callable[P, R]) -> Callable[P, R]:
    """uint64 sums are meant to wrap around. Kernels do; plain Python (numba disabled) must be told."""
    return np.errstate(over="ignore")(kernel) if isinstance(kernel, FunctionType) else kernel


# Every operand is a uint64: numba makes a float64 of a uint64 and a signed integer.
_V0, _V1 = np.uint64(0x736F6D6570736575), np.uint64(0x646F72616E646F6D)
_V2, _V3 = np.uint64(0x6C7967656E657261), np.uint64(0x7465646279746573)
_FF = np.uint64(0xFF)
_0, _1, _2, _3, _4, _5, _6, _7, _8 = (np.uint64(number) for number in range(9))
_13, _16, _17, _21, _24 = (np.uint64(bits) for bits in (13, 16, 17, 21, 24))
_32, _40, _43, _47, _48, _51, _56 = (np.uint64(bits) for bits in (32, 40, 43, 47, 48, 51, 56))


@wrapping
@jit
def _round(v0: np.uint64, v1: np.uint64, v2: np.uint64, v3: np.uint64) -> tuple[np.uint64, ...]:
    v0 = v0 + v1
    v2 = v2 + v3
    v1 = ((v1 << _13) | (v1 >> _51)) ^ v0
    v3 = ((v3 << _16) | (v3 >> _48)) ^ v2
    v0 = (v0 << _32) | (v0 >> _32)
    v2 = v2 + v1
    v0 = v0 + v3
    v1 = ((v1 << _17) | (v1 >> _47)) ^ v2
    v3 = ((v3 << _21) | (v3 >> _43)) ^ v0
    v2 = (v2 << _32) | (v2 >> _32)
    return v0, v1, v2, v3


@jit
def load(data: Bytes, at: np.uint64) -> np.uint64:
    """The 8 bytes from data[at] as a little-endian word.

    With an unsigned index there is no index from the end to think of, and the compiler makes one load of the
    eight: hashing 20 bytes takes 21 ns, with a signed one 30 ns.
    """
    return (
        np.uint64(data[at])
        | (np.uint64(data[at + _1]) << _8)
        | (np.uint64(data[at + _2]) << _16)
        | (np.uint64(data[at + _3]) << _24)
        | (np.uint64(data[at + _4]) << _32)
        | (np.uint64(data[at + _5]) << _40)
        | (np.uint64(data[at + _6]) << _48)
        | (np.uint64(data[at + _7]) << _56)
    )


@jit
def sip24(k0: np.uint64, k1: np.uint64, data: Bytes, start: int, size: int) -> np.uint64:
    """SipHash-2-4 of data[start : start + size] (Aumasson and Bernstein, 2012), 64 bits."""
    v0, v1, v2, v3 = k0 ^ _V0, k1 ^ _V1, k0 ^ _V2, k1 ^ _V3
    at = np.uint64(start)
    for _ in range(size // 8):
        w = load(data, at)
        at = at + _8
        v3 = v3 ^ w
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0 = v0 ^ w
    w = np.uint64(size) << _56
    shift = _0
    for _ in range(size % 8):
        w = w | (np.uint64(data[at]) << shift)
        at = at + _1
        shift = shift + _8
    return _finish(v0, v1, v2, v3, w)


@jit
def sip24_words(k0: np.uint64, k1: np.uint64, words: Words, count: int) -> np.uint64:
    """SipHash-2-4 of words[:count], each taken as 8 little-endian bytes."""
    v0, v1, v2, v3 = k0 ^ _V0, k1 ^ _V1, k0 ^ _V2, k1 ^ _V3
    for i in range(count):
        w = words[i]
        v3 = v3 ^ w
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0 = v0 ^ w
    return _finish(v0, v1, v2, v3, np.uint64(8 * count) << _56)


@jit
def _finish(v0: np.uint64, v1: np.uint64, v2: np.uint64, v3: np.uint64, last: np.uint64) -> np.uint64:
    v3 = v3 ^ last
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0 = v0 ^ last
    v2 = v2 ^ _FF
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return (v0 ^ v1) ^ (v2 ^ v3)


@jit
def nonzero(value: np.uint64) -> np.uint64:
    """`value`, or 1 where it is 0: 0 says missing."""
    return _1 if value == _0 else value
