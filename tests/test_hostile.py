"""What no client should send, over real sockets: a problem in 50 ms, and everybody else is served."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_service import Answer, Served, claim, sidecar

from riskengine.service.bodies import read_batch, read_body
from riskengine.service.problems import RefusedError
from riskengine.service.protocol import HEAD_BYTES_MAX, SHORT_BYTES_MAX
from riskengine.service.settings import DEPTH_MAX

PROMPT_SECONDS = 0.05
ATTEMPTS = 8  # of which the best counts: a shared machine has pauses of its own


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with sidecar(tmp_path_factory.mktemp("hostile"), "--journal", "none") as served:
        yield served
    assert not [line for line in served.told if "failed" in line], served.told


def head(
    body: bytes | int, *lines: str, content_type: str = "application/json", route: str = "score"
) -> bytes:
    size = body if isinstance(body, int) else len(body)
    named = [f"POST /v1/{route} HTTP/1.1", "host: x", f"content-type: {content_type}", *lines]
    if not any(line.startswith("transfer-encoding") for line in lines):
        named.append(f"content-length: {size}")
    return "\r\n".join(named).encode() + b"\r\n\r\n"


def request(event: Any, *lines: str) -> bytes:
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    return head(body, *lines) + body


def connected(server: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def answered(connection: socket.socket) -> Answer:
    """The next answer on a connection."""
    reply = http.client.HTTPResponse(connection)
    reply.begin()
    body = reply.read()
    return Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, body)


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def refused(server: Served, sent: bytes, status: int) -> dict[str, Any]:
    """The problem that is answered to these bytes, in time."""
    best = float("inf")
    for _ in range(ATTEMPTS):
        with connected(server) as connection:
            began = time.perf_counter()
            connection.sendall(sent)
            answer = answered(connection)
            best = min(best, time.perf_counter() - began)
            found = server.problem(answer, status, str(answer.value["type"]).rpartition(":")[2])
        if best < PROMPT_SECONDS:
            break
    assert best < PROMPT_SECONDS
    assert server.score(claim("calm")).status == 200
    return found


DEEP = b'{"a":' * 1_000 + b"1" + b"}" * 1_000
HOSTILE: dict[str, tuple[bytes, int]] = {
    "a mebibyte of anything": (request(os.urandom(1_048_576)), 400),
    "past the bound": (request(b" " * 1_048_577), 413),
    "far past the bound": (head(10**12), 413),
    "a length of many digits": (head(0).replace(b"length: 0", b"length: " + b"9" * 19), 413),
    "nested": (request(DEEP), 400),
    "nested in an event": (request(json.dumps(claim("a")).encode()[:-1] + b',"x":' + DEEP + b"}"), 400),
    "NaN": (request(b'{"event_id":"a","type":"coupon_claim","user_id":"u","amount":NaN}'), 400),
    "Infinity": (request(b'{"event_id":"a","type":"coupon_claim","user_id":"u","amount":-Infinity}'), 400),
    "past a double": (request(b'{"event_id":"a","type":"coupon_claim","user_id":"u","amount":1e999}'), 400),
    "a name twice": (request(b'{"event_id":"a","user_id":"u","type":"coupon_claim","user_id":"v"}'), 400),
    "half a surrogate": (request(rb'{"event_id":"\ud83d","type":"coupon_claim","user_id":"u"}'), 400),
    "no UTF-8": (request(b'{"event_id":"\xff","type":"coupon_claim","user_id":"u"}'), 400),
    "UTF-16": (request(json.dumps(claim("a")).encode("utf-16")), 400),
    "an empty body": (request(b""), 400),
    "no type of content": (request(claim("a")).replace(b"content-type: application/json\r\n", b""), 415),
    "another type": (head(b"{}", content_type="text/plain") + b"{}", 415),
    "another charset": (head(b"{}", content_type="application/json; charset=gbk") + b"{}", 415),
    "half of MessagePack": (head(b"\x81\xa1", content_type="application/msgpack") + b"\x81\xa1", 400),
    "MessagePack nested": (
        head(20_001, content_type="application/msgpack") + b"\x91" * 20_000 + b"\xc0", 400
    ),
    "a MessagePack array that says 4 billion": (
        head(5, content_type="application/msgpack") + b"\xdd\xff\xff\xff\xff", 400
    ),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(64) + b"\r\n\r\n", 400),
    "HTTP/2 without asking": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "two lengths": (request(claim("a"), "content-length: 5"), 400),
    "a length and chunks": (
        head(5, "transfer-encoding: chunked", "content-length: 5") + b"5\r\nhello\r\n0\r\n\r\n", 400
    ),
    "a length that is no number": (head(0).replace(b"length: 0", b"length: -1"), 400),
    "chunks that are none": (head(b"", "transfer-encoding: chunked") + b"zz\r\n", 400),
    "a head without an end": (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (HEAD_BYTES_MAX // 5), 431),
    "a target without an end": (b"GET /" + b"a" * 2 * HEAD_BYTES_MAX, 431),
    "a deadline that is none": (request(claim("a"), "x-deadline-ms: \u0663"), 400),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_refused_at_once(server: Served, name: str) -> None:
    sent, status = HOSTILE[name]
    refused(server, sent, status)


def test_problems_tell_where_and_repeat_nothing(server: Served) -> None:
    found = refused(server, request({**claim("secret-id"), "amount": "secret"}), 422)
    assert [problem["pointer"] for problem in found["problems"]] == ["/amount"]
    for sent in (rb'{"a":"secret', b'{"secret":1,"secret":2,}', b"[secret]"):
        assert "secret" not in json.dumps(refused(server, request(sent), 400))


@pytest.mark.parametrize("content_type", ["application/json", "application/msgpack"])
def test_poisoned_events_fail_alone(server: Served, content_type: str) -> None:
    events: list[Any] = [claim(f"{content_type}-{i}") for i in range(6)]
    events[1] = {**events[1], "amount": "1"}
    events[2] = None
    events[3] = {**events[3], "x": json.loads("[" * (DEPTH_MAX + 1) + "]" * (DEPTH_MAX + 1))}
    events[4] = {**events[4], "event_id": "x" * 257}
    packed = msgspec.msgpack if content_type == "application/msgpack" else msgspec.json
    answer = server.ask("POST", "/v1/score/batch", packed.encode(events), {"content-type": content_type})
    items = packed.decode(answer.body)
    assert [item.get("status", 200) for item in items] == [200, 422, 422, 400, 422, 200]
    pointers = [problem["pointer"] for item in items for problem in item.get("problems", ())]
    assert pointers == ["/1/amount", "/2", "/4/event_id"]


def test_the_short_way_and_the_long_one_answer_alike(server: Served) -> None:
    """What is plain goes past the ASGI application, chunks and HTTP/1.0 do not: nobody can tell."""
    body = json.dumps(claim("alike", user_id="alike")).encode()
    chunked = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    padded = body + b" " * SHORT_BYTES_MAX
    told: list[tuple[int, set[str], bytes]] = []
    for sent in (
        request(body),
        head(b"", "transfer-encoding: chunked") + chunked,
        request(body).replace(b"/v1/score", b"/v1/score?features=false"),
        request(body).replace(b"/v1/score", b"http://x/v1/%73core"),
        request(padded),
        request(body, "expect: 100-continue"),
        request(body, "connection: upgrade", "upgrade: h2c"),
    ):
        with connected(server) as connection:
            for _ in range(2):  # the connection is good for another one
                connection.sendall(sent)
                answer = answered(connection)
                assert answer.status == 200, (sent, answer)
                told.append((answer.status, set(answer.headers), answer.body))
    assert told.count(told[0]) == len(told)


def test_old_and_closing_clients(server: Served) -> None:
    for sent in (
        request(claim("old")).replace(b"HTTP/1.1", b"HTTP/1.0"),
        request(claim("old"), "connection: close"),
    ):
        with connected(server) as connection:
            connection.sendall(sent)
            answer = answered(connection)
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert is_closed(connection)


def test_requests_in_a_row_are_answered_in_order(server: Served) -> None:
    ids = [f"row{i}" for i in range(50)]
    with connected(server) as connection:
        connection.sendall(b"".join(request(claim(event_id)) for event_id in ids))
        stream = connection.makefile("rb")
        for event_id in ids:
            assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
            size = 0
            while (line := stream.readline()) != b"\r\n":
                if line.startswith(b"content-length:"):
                    size = int(line.partition(b":")[2])
            assert json.loads(stream.read(size))["event_id"] == event_id


def test_a_length_that_is_too_short_ends_the_connection_after_the_answer(server: Served) -> None:
    body = json.dumps(claim("short")).encode()
    with connected(server) as connection:
        connection.sendall(head(len(body)) + body + b"\x00 more than was said\r\n\r\n")
        assert answered(connection).status == 200
        assert is_closed(connection)


def test_those_who_leave_are_not_missed(server: Served) -> None:
    for part in (0.1, 0.5, 0.99, 1.0):
        for _ in range(20):
            sent = request(claim("gone", user_id="gone"))
            with connected(server) as connection:
                connection.sendall(sent[: int(part * len(sent))])
    assert server.score(claim("gone", user_id="gone")).status == 200


def test_slow_heads_and_bodies_are_cut_off_and_hold_up_nobody(server: Served) -> None:
    """Two hundred drip a byte at a time, in the head and in the body, on the short way and on the long."""
    whole = request(claim("slow"))
    long = request(claim("slow")).replace(b"/v1/score ", b"/v1/score?features=true ")
    starts = [whole[:40], whole[:-9], long[:-9], b"GET /metrics HTTP/1.1\r\n"]
    drips = [connected(server) for _ in range(200)]
    for i, connection in enumerate(drips):
        connection.sendall(starts[i % len(starts)])
    began = time.monotonic()
    waits: list[float] = []
    while time.monotonic() - began < 0.8:  # it gives them a second
        for connection in drips[::7]:
            connection.sendall(b"a")
        time.sleep(0.15)
        asked = time.perf_counter()
        assert server.score(claim(f"swift{len(waits)}")).status == 200
        waits.append(time.perf_counter() - asked)
    for connection in drips:
        with connection:
            answer = answered(connection)
            server.problem(answer, 408, "slow")
            assert is_closed(connection)
    assert time.monotonic() - began < 15
    assert sorted(waits)[len(waits) // 2] < PROMPT_SECONDS


# -- anything at all


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
    max_leaves=20,
)


@given(st.binary(max_size=200) | values.map(msgspec.msgpack.encode))
@settings(max_examples=300)
def test_any_messagepack_is_read_or_refused(body: bytes) -> None:
    for read in (read_body, read_batch):
        with contextlib.suppress(RefusedError):
            read(body, "msgpack")


@given(st.lists(values, min_size=1, max_size=5), st.sampled_from(["application/json", "application/msgpack"]))
@settings(max_examples=100)
def test_any_values_are_scored_or_refused_one_by_one(
    server: Served, events: list[Any], content_type: str
) -> None:
    if content_type == "application/msgpack":
        body = msgspec.msgpack.encode(events)
    else:
        try:
            body = msgspec.json.encode(events)
        except (TypeError, msgspec.ValidationError):
            return
    answer = server.ask("POST", "/v1/score/batch", body, {"content-type": content_type})
    assert answer.status in (200, 400), answer.body
    if answer.status == 200:
        packed = msgspec.msgpack if content_type == "application/msgpack" else msgspec.json
        statuses = {item["status"] for item in packed.decode(answer.body)}
        assert statuses <= {400, 422}
