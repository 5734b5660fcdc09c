"""The codec of Redis's wire: cut anywhere, broken anyhow, and as redis-py's own parser reads it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis._parsers import _RESP2Parser
from redis.exceptions import ResponseError

from riskengine.stores import resp
from riskengine.stores.resp import Bytes

strings = st.binary(max_size=60) | st.sampled_from([b"", b"\r\n", b"$3\r\nabc\r\n", b"*1\r\n", b"-ERR"])
items = st.one_of(strings, st.none(), st.integers(-(2**63) + 1, 2**63 - 1))
errors = st.text("abc XYZ_:", min_size=1, max_size=30).map(lambda text: ResponseError(f"ERR {text}"))
arrays = st.lists(items | errors, max_size=8)
replies = items | errors | arrays | st.lists(items | errors | arrays, max_size=6)


def encoded(reply: Any) -> bytes:
    match reply:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % reply
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case list():
            return b"*%d\r\n" % len(reply) + b"".join(map(encoded, reply))
        case _:
            return f"-{reply}\r\n".encode()


def array(data: bytes) -> Bytes:
    return np.frombuffer(bytearray(data) + b"\0", np.uint8)


def read(data: bytes, cuts: list[int]) -> tuple[list[Any], int]:
    """The items of the first reply, found as its bytes come in up to each cut; and where it ends."""
    buffer, offsets, lengths = array(data), np.empty(2, np.int64), np.empty(2, np.int64)
    at, done, total = 0, 0, -1
    for end in [*sorted(cuts), len(data)]:
        while True:
            at, done, total = resp.scan(buffer, at, end, offsets, lengths, done, total)
            if total <= len(offsets):
                break
            offsets, lengths = (np.resize(table, total) for table in (offsets, lengths))
        assert at != resp.BROKEN
        if done == total:
            break
    assert done == total
    found: list[Any] = []
    for offset, length in zip(offsets[:done].tolist(), lengths[:done].tolist(), strict=True):
        if length == resp.INTEGER:
            found.append(offset)
        elif length == resp.ERROR:
            found.append(ResponseError(data[offset:].split(b"\r")[0].decode()))
        else:
            found.append(None if length == resp.NIL else data[offset : offset + length])
    return found, at


def theirs(data: bytes) -> Any:
    """What redis-py reads."""

    class Source:
        at = 0

        def readline(self, **_: Any) -> bytes:
            end = data.index(b"\r\n", self.at)
            line, self.at = data[self.at : end], end + 2
            return line

        def read(self, length: int, **_: Any) -> bytes:
            found, self.at = data[self.at : self.at + length], self.at + length + 2
            return found

    untyped: Any = _RESP2Parser
    parser = untyped(socket_read_size=65536)
    parser._buffer = Source()
    return parser._read_response(disable_decoding=True)


def flat(reply: Any) -> list[Any]:
    """The items of an array, and of those in it."""
    return [item for each in reply for item in flat(each)] if isinstance(reply, list) else [reply]


def alike(one: Any, other: Any) -> bool:
    """redis-py takes the first word of an error away."""
    if isinstance(one, ResponseError):
        return isinstance(other, Exception) and str(one).endswith(str(other))
    return type(one) is type(other) and one == other


@given(reply=replies, rest=st.binary(max_size=20), data=st.data())
def test_replies_are_read_as_redis_py_reads_them(reply: Any, rest: bytes, data: st.DataObject) -> None:
    sent = encoded(reply)
    cuts = data.draw(st.lists(st.integers(0, len(sent)), max_size=4))
    found, end = read(sent + rest, cuts)
    assert end == len(sent), "what comes behind is the next reply's"
    expected = theirs(sent)
    listed = flat(expected)
    assert len(found) == len(listed)
    assert all(alike(a, b) for a, b in zip(found, listed, strict=True))


def test_a_reply_cut_at_every_byte() -> None:
    reply = [b"epoch", None, 12, b"", b"\r\n" * 9, ResponseError("OOM no"), -1]
    sent = encoded(reply)
    for cut in range(len(sent)):
        found, end = read(sent, [cut])
        assert end == len(sent)
        assert all(alike(a, b) for a, b in zip(found, reply, strict=True))


def test_every_byte_at_once() -> None:
    reply = [b"a" * 40, 7, None]
    sent = encoded(reply)
    assert read(sent, list(range(len(sent)))) == (reply, len(sent))


@pytest.mark.parametrize(
    "sent",
    [b"?1\r\n", b":1a\r\n", b":\r\n", b"$3\r\nabcd\r\n", b":99999999999999999999\r\n",
     b"+OK\rx", b"$2\rx"],
)  # fmt: skip
def test_what_is_no_reply_is_not_read(sent: bytes) -> None:
    offsets, lengths = np.empty(4, np.int64), np.empty(4, np.int64)
    at, _, _ = resp.scan(array(sent), 0, len(sent), offsets, lengths, 0, -1)
    assert at == resp.BROKEN


@given(st.integers(0, 2**63 - 1))
def test_numbers(number: int) -> None:
    out = array(b"\0" * 40)
    end = resp.put_line(out, 0, resp.DOLLAR, number)
    assert out[:end].tobytes() == b"$%d\r\n" % number


@given(st.lists(st.binary(max_size=30) | st.text(max_size=9) | st.integers(), max_size=5))
def test_commands_are_what_redis_py_sends(words: list[bytes | str | int]) -> None:
    from redis.connection import Connection

    untyped: Any = Connection
    packed = b"".join(untyped().pack_command("GET", *words))
    assert resp.command(["GET", *words]) == packed
