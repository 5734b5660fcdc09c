"""The client against a real sidecar, against none, and against one that misbehaves."""

from __future__ import annotations

import asyncio
import http.server
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_service import ROOT, Served, claim, lay_out, sidecar, start

from riskengine.answer import Decision
from riskengine.client import (
    AWAY,
    AsyncClient,
    Client,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    RateError,
    ServiceError,
    UnauthorizedError,
    UnavailableError,
)
from riskengine.errors import EventError
from riskengine.service.access import make_key


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with sidecar(tmp_path_factory.mktemp("asked")) as served:
        yield served


def url(server: Served) -> str:
    return f"http://127.0.0.1:{server.port}"


def payment(event_id: str) -> dict[str, Any]:
    return {"event_id": event_id, "type": "payment", "user_id": "u1", "amount": 5}


def test_it_asks_what_an_engine_would_be_asked(server: Served) -> None:
    with Client(url(server), deadline=30) as client:
        event = claim("c1", device_id="c1")
        decision = client.score(event, features=True)
        assert isinstance(decision, Decision)
        assert (decision.action, decision.flags) == ("allow", ())
        assert isinstance(decision.features, dict)
        assert client.score(event, features=True) == decision
        with pytest.raises(EventError) as wrong:
            client.score({"event_id": "c2", "type": "payment", "amount": "1"})
        assert {problem.pointer for problem in wrong.value.problems} == {"/amount", "/user_id"}
        with pytest.raises(EventError, match="event_id"):
            client.score({**event, "user_id": "another"})
        many = client.score_many([claim("c3"), {}, claim("c1", device_id="c1")] + [claim("c4")] * 1_000)
        assert len(many) == 1_003
        assert isinstance(many[1], EventError)
        assert many[2] == client.score(event)
        assert many[3] == many[1_002]
        assert client.score_many([]) == []
        assert client.label("c1", "fraud", source="a person") is True
        assert client.label("none", "fraud") is False
        assert (client.release("c1"), client.release("c1")) == (True, False)
        client.list_put("blocked", "device", "bad/one ü", reason="resold", author="ann")
        entry = client.list_get("blocked", "device", "bad/one ü")
        assert entry is not None
        assert (entry["reason"], entry["author"], entry["expires"]) == ("resold", "ann", None)
        assert client.score(claim("c5", device_id="bad/one ü")).fired == ("listed-device",)
        assert client.list_delete("blocked", "device", "bad/one ü") is True
        assert client.list_get("blocked", "device", "bad/one ü") is None
        client.list_put("blocked", "pair", ["u1", "d1"])
        assert client.list_delete("blocked", "pair", ["u1", "d1"]) is True
        client.table_put("budgets", "c1", {"most": 5})
        assert client.table_get("budgets", "c1") == {"most": 5}
        assert client.table_delete("budgets", "c1") is True
        assert client.table_get("budgets", "c1") is None
        with pytest.raises(ConflictError) as refused:
            client.table_put("makes", "d9", {})
        assert (refused.value.status, refused.value.kind) == (409, "conflict")
        with pytest.raises(NotFoundError):
            client.list_put("nope", "user", "u1")
        with pytest.raises(ServiceError) as typed:
            client.table_put("budgets", "c1", {"most": "5"})
        assert [problem.pointer for problem in typed.value.problems] == ["/most"]


def test_it_asks_from_an_event_loop_too(server: Served) -> None:
    async def play() -> None:
        async with AsyncClient(url(server), deadline=30) as client:
            events = [claim(f"a{i}", user_id=f"a{i}") for i in range(100)]
            decisions = await asyncio.gather(*(client.score(event) for event in events))
            assert [decision.event_id for decision in decisions] == [event["event_id"] for event in events]
            assert {decision.flags for decision in decisions} == {()}
            assert await client.score_many(events) == decisions
            assert await client.label("a1", "legit") is True
            assert await client.release("none") is False
            await client.list_put("blocked", "device", "d5")
            assert await client.list_get("blocked", "device", "d5") is not None
            assert await client.list_delete("blocked", "device", "d5") is True
            await client.table_put("budgets", "c2", {"most": 1})
            assert await client.table_get("budgets", "c2") == {"most": 1}
            assert await client.table_delete("budgets", "c2") is True
            with pytest.raises(EventError):
                await client.score({})

    asyncio.run(play())


def test_connections_are_kept(server: Served) -> None:
    made = len(established(server))
    with Client(url(server), deadline=30) as client:
        for i in range(20):
            client.score(claim(f"k{i}"))
        assert len(established(server)) == made + 1


def established(server: Served) -> set[str]:
    """Connections to the server, as the machine's own list has them."""
    port = f":{server.port:04X}"
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return {words[1] for words in map(str.split, lines) if words[2].endswith(port) and words[3] == "01"}


def test_keys(tmp_path: Path) -> None:
    lay_out(tmp_path / "rules")
    score = make_key(tmp_path / "keys.json", "shop", ("score",), None, 0)
    slow = make_key(tmp_path / "keys.json", "slow", ("lists",), 1, 0)
    server = start(tmp_path, "--journal", "none")
    try:
        with Client(url(server), score, deadline=30) as client:
            assert client.score(claim("k1")).action == "allow"
            with pytest.raises(ForbiddenError, match="scope"):
                client.label("k1", "fraud")
        for key in (None, f"{score}x"):
            with Client(url(server), key, deadline=30) as client, pytest.raises(UnauthorizedError):
                client.score(claim("k2"))
        with Client(url(server), slow, deadline=0.5) as client:
            client.list_delete("blocked", "device", "d1")
            with pytest.raises(RateError):
                client.list_delete("blocked", "device", "d1")
        with Client(url(server), slow, deadline=5) as client:  # it waits as long as it is told to
            began = time.monotonic()
            for _ in range(2):
                client.list_delete("blocked", "device", "d1")
            assert time.monotonic() - began >= 0.9
    finally:
        assert server.stop() == 0


def test_while_no_sidecar_answers_the_policy_says_what_is_done(tmp_path: Path) -> None:
    sections = json.loads((lay_out(tmp_path / "rules") / "policy.yaml").read_text(encoding="utf-8"))
    sections["events"]["payment"]["fail"] = "closed"
    sections["events"]["coupon_claim"]["fail"] = "open"
    (tmp_path / "rules" / "policy.yaml").write_text(json.dumps(sections), encoding="utf-8")
    server = start(tmp_path, "--journal", "none")
    told = Client(url(server), deadline=1, fail={"payment": "review"})
    with Client(url(server), deadline=5) as client, told:
        first = client.score(payment("p1"))
        assert (first.action, first.flags) == ("allow", ())
        server.process.send_signal(signal.SIGSTOP)
        try:
            with Client(url(server), deadline=0.3) as hasty:
                began = time.monotonic()
                assert hasty.score(payment("p2")).action == "review"  # it never heard of the contract
                assert 0.1 <= time.monotonic() - began < 1.0
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert server.stop() == 0
        away = client.score(payment("p3"))
        assert (away.event_id, away.action, away.flags, away.policy) == ("p3", "deny", (AWAY,), first.policy)
        assert client.score(claim("c3")).action == "allow"
        assert client.score({"event_id": "x", "type": "unheard"}).action == "review"
        many = client.score_many([claim("c4"), payment("p4")])
        assert [item.action for item in many if isinstance(item, Decision)] == ["allow", "deny"]
        timed = client.score({**claim("c5"), "time": "2026-11-11T00:00:00+08:00"})
        assert timed.time == 1_794_326_400_000
        assert told.score(payment("p5")).action == "review"
        began = time.monotonic()
        for i in range(100):  # it is left alone for a while, not asked in vain each time
            client.score(payment(f"q{i}"))
        assert time.monotonic() - began < 1.0
        with pytest.raises(UnavailableError, match="cannot be reached"):
            client.label("p1", "fraud")


Reply = tuple[int | None, dict[str, str], bytes]


class Scripted(http.server.ThreadingHTTPServer):
    """Answers what `script` says, one after the other, and notes what was asked; None hangs up."""

    def __init__(self, script: list[Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Replies)
        self.script = script
        self.asked: list[tuple[float, bytes]] = []


class Replies(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, Scripted)
        self.server.asked.append((time.monotonic(), self.rfile.read(int(self.headers["content-length"]))))
        status, headers, said = self.server.script.pop(0)
        if status is None:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def scripted(*script: Reply) -> Iterator[tuple[str, list[tuple[float, bytes]]]]:
    with Scripted(list(script)) as replies:
        thread = threading.Thread(target=replies.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{replies.server_address[1]}", replies.asked
        finally:
            replies.shutdown()
            thread.join()


DECIDED = json.dumps(
    {
        "event_id": "e1", "decision_id": "d", "action": "allow", "risk": 0.0, "challenge": None,
        "reasons": [], "fired": [], "shadow": [], "model": None, "policy": "p", "flags": [], "time": 1,
    }
).encode()  # fmt: skip


def message_from(there: socket.socket) -> bytes:
    """A request or an answer, which may come in pieces."""
    said = b""
    while True:
        head, end, body = said.partition(b"\r\n\r\n")
        size = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        if end and len(body) >= int(size[1] if size is not None else 0):
            return said
        more = there.recv(65_536)
        assert more, said
        said += more


@contextmanager
def forgetful(port: int) -> Iterator[str]:
    """Passes requests on to a sidecar, and loses the first answer."""

    def relay() -> None:
        for keeps in itertools.chain([False], itertools.repeat(True)):
            try:
                near, _ = listening.accept()
            except OSError:
                return
            with near, socket.create_connection(("127.0.0.1", port)) as far:
                far.sendall(message_from(near))
                said = message_from(far)
                if keeps:
                    near.sendall(said)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=relay)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_release_whose_first_answer_was_lost_tells_the_truth(server: Served) -> None:
    assert server.score(claim("lost", device_id="lost")).value["action"] == "allow"
    with forgetful(server.port) as there, Client(there, deadline=30) as client:
        assert client.release("lost") is True
    assert server.score(claim("next", device_id="lost")).value["action"] == "allow"
    assert server.score(claim("refused", device_id="lost")).value["action"] == "deny"
    with forgetful(server.port) as there, Client(there, deadline=30) as client:
        assert client.release("refused") is False, "it never held anything"


def test_it_tries_again_with_the_same_event_and_waits_as_told() -> None:
    script: list[Reply] = [(503, {"retry-after": "1"}, b""), (None, {}, b""), (200, {}, DECIDED)]
    with scripted(*script) as (there, asked), Client(there, deadline=5, fail="review") as client:
        assert client.score(claim("e1")).action == "allow"
    assert len({body for _, body in asked}) == 1
    first, second, third = (at for at, _ in asked)
    assert second - first >= 1.0
    assert third - second < 0.5
    with scripted((503, {"retry-after": "9"}, b"")) as (there, asked):
        with Client(there, deadline=1, fail="closed") as client:
            began = time.monotonic()
            decision = client.score(claim("e1"))  # there is no time to wait so long
        assert (decision.action, decision.flags, time.monotonic() - began < 0.5) == ("deny", (AWAY,), True)
        assert len(asked) == 1
    with scripted(*[(500, {}, b"not JSON")] * 3) as (there, asked):
        with Client(there, deadline=1) as client, pytest.raises(UnavailableError, match="answered 500"):
            client.label("e1", "fraud")
        assert len(asked) == 3


def test_many_threads_share_it(server: Served) -> None:
    with Client(url(server), deadline=30) as client, ThreadPoolExecutor(16) as pool:
        decisions = list(pool.map(lambda i: client.score(claim(f"t{i}")), range(200)))
    assert {decision.flags for decision in decisions} == {()}


def test_nobody_there_at_all() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def ask() -> Decision:
        async with AsyncClient(f"http://127.0.0.1:{port}", deadline=0.5) as client:
            return await client.score(claim("n1"))

    assert asyncio.run(ask()).flags == (AWAY,)
    with pytest.raises(ValueError, match="deadline"):
        Client(deadline=0)


def test_a_client_carries_no_engine() -> None:
    program = (
        "import sys, riskengine.client\n"
        "heavy = {'numba', 'numpy', 'lightgbm', 'pyarrow', 'sqlalchemy', 'redis', 'fastapi', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0
