"""SipHash-2-4 against its published vectors and a twin in plain Python; how keys are derived."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from riskengine import hashing

# The first 16 of `vectors_sip64` in the reference implementation (github.com/veorq/SipHash, vectors.h): keys
# 00..0f, messages of 0, 1, 2, ... bytes counting from 00; and that of 15 bytes from the paper's appendix A.
VECTORS = (
    "310e0edd47db6f72", "fd67dc93c539f874", "5a4fa9d909806c0d", "2d7efbd796666785",
    "b7877127e09427cf", "8da699cd64557618", "cee3fe586e46c9cb", "37d1018bf50002ab",
    "6224939a79f5f593", "b0e4a90bdf82009e", "f3b9dd94c5bb5d7a", "a7ad6b22462fb3f4",
    "fbe50e86bc8f1e75", "903d84c02756ea14", "eef27a8e90ca23f7", "e545be4961ca29a1",
)  # fmt: skip
MASK = 2**64 - 1
# Of b"secret" and "tenant".
KEYS = [
    "487f4e426d126834", "fb467c8f4190c0d7", "480d1f801fa8bc2f", "3e8d5bbc57f49875",
]  # fmt: skip
ENTITY_KEY = 10538693662221736309
EVENT_HASH = 16742537524193155521


def siphash(k0: int, k1: int, message: bytes) -> int:
    """SipHash-2-4 as the paper writes it."""

    def rotate(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) & MASK

    def sip_round() -> None:
        v[0] = (v[0] + v[1]) & MASK
        v[2] = (v[2] + v[3]) & MASK
        v[1] = rotate(v[1], 13) ^ v[0]
        v[3] = rotate(v[3], 16) ^ v[2]
        v[0] = rotate(v[0], 32)
        v[2] = (v[2] + v[1]) & MASK
        v[0] = (v[0] + v[3]) & MASK
        v[1] = rotate(v[1], 17) ^ v[2]
        v[3] = rotate(v[3], 21) ^ v[0]
        v[2] = rotate(v[2], 32)

    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    padded = message + bytes(7 - len(message) % 8) + bytes([len(message) % 256])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        sip_round()
        sip_round()
        v[0] ^= word
    v[2] ^= 0xFF
    for _ in range(4):
        sip_round()
    return v[0] ^ v[1] ^ v[2] ^ v[3]


@pytest.mark.parametrize("size", range(len(VECTORS)))
def test_the_kernel_gives_the_published_vectors(size: int) -> None:
    k0, k1 = np.frombuffer(bytes(range(16)), np.uint64)
    found = hashing.sip24(k0, k1, hashing.as_bytes(bytes(range(size))), 0, size)
    assert int(found).to_bytes(8, "little").hex() == VECTORS[size]


@given(st.integers(0, MASK), st.integers(0, MASK), st.binary(max_size=600), st.integers(0, 9))
def test_the_kernel_is_its_twin(k0: int, k1: int, message: bytes, start: int) -> None:
    data = hashing.as_bytes(bytes(start) + message)
    found = hashing.sip24(np.uint64(k0), np.uint64(k1), data, start, len(message))
    assert int(found) == siphash(k0, k1, message)


@given(st.integers(0, MASK), st.integers(0, MASK), st.lists(st.integers(0, MASK), max_size=40))
def test_hashing_words_is_hashing_their_bytes(k0: int, k1: int, words: list[int]) -> None:
    array = np.array(words, np.uint64)
    found = hashing.sip24_words(np.uint64(k0), np.uint64(k1), array, len(words))
    assert int(found) == siphash(k0, k1, array.astype("<u8").tobytes())


def test_a_tenant_has_keys_of_its_own() -> None:
    keys = hashing.derive_keys(b"secret", "one")
    assert keys.shape == (4,)
    assert keys.dtype == np.uint64
    assert len({*keys.tolist(), *hashing.derive_keys(b"secret", "two").tolist()}) == 8
    assert len({*keys.tolist(), *hashing.derive_keys(b"Secret", "one").tolist()}) == 8
    assert keys.tolist() == hashing.derive_keys(b"secret", "one").tolist()


def test_a_key_may_be_longer_than_blake2_takes() -> None:
    assert len(set(hashing.derive_keys(b"k" * 100, "t").tolist())) == 4


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(ValueError, match="RISKENGINE_HASH_KEY"):
        hashing.derive_keys(b"", "tenant")


def test_keys_do_not_change_with_the_version() -> None:
    # What is in a store and in journals depends on this.
    keys = hashing.derive_keys(b"secret", "tenant")
    assert [f"{key:016x}" for key in keys.tolist()] == KEYS
    assert hashing.entity_key("device", [b"d1"], keys) == ENTITY_KEY
    assert hashing.claim("e1", keys)[0] == hashing.event_hash("e1", keys) == EVENT_HASH


def test_entities_never_share_a_key() -> None:
    keys = hashing.derive_keys(b"secret", "tenant")
    parts = [[b"a"], [b"b"], [b"ab"], [b"a", b"b"], [b"b", b"a"], [b"ab", b"c"], [b"a", b"bc"], [b"a", b"a"]]
    names = ["user", "device", "user_device"]
    found = {hashing.entity_key(name, part, keys) for name in names for part in parts}
    assert len(found) == len(names) * len(parts)


def test_a_missing_component_makes_a_missing_entity() -> None:
    keys = hashing.derive_keys(b"secret", "tenant")
    assert hashing.entity_key("pair", [b"a", b""], keys) == hashing.MISSING
    assert hashing.string_hash(b"", keys) == hashing.MISSING


def test_zero_is_reserved() -> None:
    assert int(hashing.nonzero(np.uint64(0))) == 1
    assert int(hashing.nonzero(np.uint64(7))) == 7


def test_it_works_without_numba() -> None:
    code = (
        "from riskengine.hashing import *\n"
        "keys = derive_keys(b'secret', 'tenant')\n"
        "print(claim('e1', keys), entity_key('device', [b'd1'], keys))"
    )
    keys = hashing.derive_keys(b"secret", "tenant")
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (
        found.stdout.strip() == f"{hashing.claim('e1', keys)} {hashing.entity_key('device', [b'd1'], keys)}"
    )
