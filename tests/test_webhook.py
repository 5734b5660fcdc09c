"""The alerts' webhook: what it posts, when it tries again, where it never goes."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from riskengine import Engine, RiskEngineError
from riskengine.service import webhook
from riskengine.service.alerting import Alerting
from riskengine.service.settings import Settings
from riskengine.service.webhook import Delivery, Target, Webhook, is_public, sign

SECRET = b"0123456789abcdef0123456789abcdef"
PATIENCE = 60.0


class Receiver:
    """A server that answers with what it is told to, and remembers what it got."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.gate.wait(PATIENCE)
                receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook?a=b"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.gate.set()
    made.server.shutdown()
    made.server.server_close()


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_delivery_is_signed(receiver: Receiver) -> None:
    hook = Webhook(receiver.url, SECRET, private=True)
    hook.put(Delivery("id-1", b'{"a":1}'))
    wait_for(lambda: hook.status["sent"] == 1)
    hook.close()
    ((headers, body),) = receiver.got
    assert body == b'{"a":1}'
    assert headers["x-riskengine-delivery"] == "id-1"
    stamp = headers["x-riskengine-timestamp"]
    assert abs(int(stamp) - time.time()) < 300
    expected = hmac.new(SECRET, f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    assert headers["x-riskengine-signature"] == f"v1={expected}"


def test_a_signature_that_a_receiver_can_check_itself_by() -> None:
    """The README's example."""
    made = sign(b"0123456789abcdef", 1_800_000_000, b'{"event":"alert.opened"}')
    assert made == hmac.new(b"0123456789abcdef", b'1800000000.{"event":"alert.opened"}', "sha256").hexdigest()


def test_it_tries_again_in_order_until_it_is_taken(receiver: Receiver) -> None:
    receiver.answers = [503, 429, 500, 204]
    hook = Webhook(receiver.url, SECRET, private=True, pause_seconds=0.001)
    hook.put(Delivery("first", b"1"))
    hook.put(Delivery("second", b"2"))
    wait_for(lambda: hook.status["sent"] == 2)
    hook.close()
    assert [body for _, body in receiver.got] == [b"1", b"1", b"1", b"1", b"2"]
    assert hook.status == {"sent": 2, "retried": 3, "failed": 0, "dropped": 0}


@pytest.mark.parametrize("status", [400, 404, 302, 307])
def test_what_another_attempt_will_not_mend_is_given_up(
    receiver: Receiver, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers = [status]
    hook = Webhook(receiver.url, SECRET, private=True, pause_seconds=0.001)
    hook.put(Delivery("id", b"secret body"))
    wait_for(lambda: hook.status["failed"] == 1)
    hook.close()
    assert len(receiver.got) == 1  # a redirect was not followed either
    assert str(status) in caplog.text
    assert "secret body" not in caplog.text


def test_it_gives_up_in_the_end(receiver: Receiver) -> None:
    receiver.answers = [500] * 20
    hook = Webhook(receiver.url, SECRET, private=True, pause_seconds=0.001)
    hook.put(Delivery("id", b"1"))
    wait_for(lambda: hook.status["failed"] == 1)
    hook.close()
    assert len(receiver.got) == webhook.ATTEMPTS


def test_nobody_there_is_tried_again() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        hook = Webhook(url, SECRET, private=True, pause_seconds=0.001)
        hook.put(Delivery("id", b"1"))
        wait_for(lambda: hook.status["failed"] == 1)
        hook.close()
    assert hook.status["retried"] == webhook.ATTEMPTS - 1


def test_a_slow_receiver_holds_up_nobody(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhook, "QUEUE", 3)
    receiver.gate.clear()
    hook = Webhook(receiver.url, SECRET, private=True)
    for i in range(10):
        hook.put(Delivery(str(i), b"1"))
    assert hook.status["dropped"] >= 6
    assert caplog.text.count("deliveries are dropped") == 1
    receiver.gate.set()
    wait_for(lambda: sum(hook.status[name] for name in ("sent", "dropped")) == 10)
    hook.close()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:10.0.0.1",
        "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:7f00:1::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)


def test_it_does_not_go_inwards(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """Neither by an address nor by a name that means one, and it says what would allow it."""
    for host in ("127.0.0.1", "localhost"):
        hook = Webhook(receiver.url.replace("127.0.0.1", host), SECRET, pause_seconds=0.001)
        hook.put(Delivery("id", b"1"))
        wait_for(lambda hook=hook: hook.status["failed"] == 1)  # type: ignore[misc]  # mypy knows no type of it
        hook.close()
        assert hook.status["retried"] == 0
    assert receiver.got == []
    assert "--alert-webhook-private allows it" in caplog.text


def test_the_address_that_was_looked_at_is_called(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that means a public address when it is looked at, and a private one a moment later."""
    port = receiver.server.server_address[1]
    asked: list[str] = []
    called: list[tuple[str, int]] = []

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(0, 0, 0, "", ("8.8.8.8" if len(asked) == 1 else "127.0.0.1", port))]

    def call(address: tuple[str, int], *_: Any) -> socket.socket:
        called.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", call)
    hook = Webhook(f"http://rebound.example:{port}/", SECRET, pause_seconds=0.001)
    hook.put(Delivery("id", b"1"))
    wait_for(lambda: hook.status["failed"] == 1)
    hook.close()
    assert called == [("8.8.8.8", port)]
    assert asked == ["rebound.example"] * 2  # the second time it was private, and no attempt was made


def test_a_name_that_cannot_be_found_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    hook = Webhook("http://nowhere.example/", SECRET, pause_seconds=0.001)
    hook.put(Delivery("id", b"1"))
    wait_for(lambda: hook.status["failed"] == 1)
    hook.close()
    assert hook.status["retried"] == webhook.ATTEMPTS - 1


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/b",
        "a.example/x",
        "http://",
        "http://u:p@a.example/",
        "http://a.example:x/",
        "http://a/#b",
        "http://a/ b",
    ],
)
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(RiskEngineError, match="webhook") as caught:
        Target.parse(url)
    assert "u:p" not in str(caught.value)


def test_its_settings_are_looked_at_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(webhook.SECRET_VARIABLE, raising=False)
    settings = Settings.read({"RISKENGINE_ALERT_WEBHOOK": "https://a.example/x"})
    with pytest.raises(RiskEngineError, match="openssl rand"):
        settings.check()
    monkeypatch.setenv(webhook.SECRET_VARIABLE, SECRET.decode())
    settings.check()
    assert not settings.alert_webhook_private
    assert Target.parse("https://a.example/x?y") == (True, "a.example", 443, "/x?y")


def test_episodes_reach_the_log_and_the_webhook(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(webhook.SECRET_VARIABLE, SECRET.decode())
    policy = {
        "policy": "p",
        "entities": {"user": "user_id"},
        "events": {"scan": {"required": ["user_id"]}},
        "alerts": {"busy": {"by": "user", "over": "10m", "above": 1, "message": {"zh": "忙", "en": "Busy"}}},
    }
    (tmp_path / "policy.yaml").write_text(json.dumps(policy), encoding="utf-8")
    now = [1_794_326_400_000]
    settings = Settings(alert_webhook=receiver.url, alert_webhook_private=True)
    with caplog.at_level(logging.INFO, "riskengine"), Engine.open(tmp_path, clock=lambda: now[0]) as engine:
        alerting = Alerting(engine, settings)
        for i in range(20):
            now[0] += 60_000
            engine.score({"event_id": f"e{i}", "type": "scan", "user_id": "13800138000"})
        now[0] += 3_600_000
        engine.look_at_alerts()
        wait_for(lambda: alerting.status["sent"] == 2)
        alerting.close()
    opened, closed = (json.loads(body) for _, body in receiver.got)
    assert (opened["event"], closed["event"]) == ("alert.opened", "alert.closed")
    assert opened["episode"]["message"] == {"zh": "忙", "en": "Busy"}
    assert opened["episode"]["end"] is None
    assert closed["episode"]["end"] == now[0]
    assert closed["episode"]["peak"] == 10
    assert opened["episode"]["id"] == closed["episode"]["id"]
    ids = [headers["x-riskengine-delivery"] for headers, _ in receiver.got]
    assert ids == [f"{opened['episode']['id']}-opened", f"{opened['episode']['id']}-closed"]
    told = [
        (one.__dict__["alert"], one.__dict__["state"]) for one in caplog.records if one.message == "alert"
    ]
    assert told == [("busy", "opened"), ("busy", "closed")]
    assert "13800138000" not in caplog.text + str(receiver.got)
