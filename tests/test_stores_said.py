"""Other ways to a shared store than a plain connection, and what a server says that will not do as asked."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis
from servers import apart, running, until
from stage import Stage, claim, payment, policy

from riskengine.decision import Decision
from riskengine.fibers import afloat
from riskengine.stores import StoreError
from riskengine.stores.address import begin
from riskengine.stores.line import Item
from riskengine.stores.link import Link
from riskengine.stores.resp import command

TLS = Path(__file__).parent / "tls"
FEATURES = {"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}}
SECTIONS = policy(
    events={
        "coupon_claim": {"required": ["user_id"], "fail": "review"},
        "payment": {"required": ["user_id", "amount"]},
    },
    features=FEATURES,
)


@contextmanager
def encrypted(port: int) -> Iterator[int]:
    """The port of a server of TLS, which passes on to a port what it is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                threading.Thread(target=between, args=(client,), daemon=True).start()

    def between(client: socket.socket) -> None:
        with (
            suppress(OSError),
            context.wrap_socket(client, server_side=True) as inner,
            socket.create_connection(("127.0.0.1", port)) as server,
        ):
            inner.settimeout(0.02)
            server.settimeout(0.02)
            while pass_on(inner, server) and pass_on(server, inner):
                pass

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.close()


def pass_on(one: socket.socket, other: socket.socket) -> bool:
    """Send on what has come; False where there is nobody any more."""
    try:
        data = one.recv(1 << 14)
    except TimeoutError:
        return True
    other.settimeout(20)
    other.sendall(data)
    other.settimeout(0.02)
    return bool(data)


def counts(store: str, folder: Path) -> None:
    begin(store, "stage")
    with Stage(folder, SECTIONS, store=store) as stage:
        decisions = stage.engine.score_many([claim(f"e{n}", n) for n in range(100)])
        assert all(isinstance(decision, Decision) and not decision.flags for decision in decisions)
        assert stage.row(claim("last", 200))["claims"] == 101


def test_a_store_behind_tls(tmp_path: Path) -> None:
    with running() as server, encrypted(server.port) as port:
        url = f"rediss://localhost:{port}/0"
        counts(apart(url, ssl_ca_certs=TLS / "cert.pem"), tmp_path)
        with pytest.raises(StoreError, match=r"cannot be reached: .*certificate"):
            begin(apart(url), "stage")


def test_a_store_at_a_socket(tmp_path: Path) -> None:
    with running() as server:
        counts(apart(f"unix://{server.socket}"), tmp_path)


def said(client: redis.Redis) -> str:
    """The first word of what a server says that does nothing just now."""
    try:
        client.get("nothing")
    except redis.ResponseError as error:
        return str(error).split()[0]
    except redis.BusyLoadingError:
        return "LOADING"
    return ""


def test_several_requests_told_in_one_piece() -> None:
    """Each has an answer; where one is put off all are told again, and one that is no good is forgotten."""
    with running() as server, redis.Redis.from_url(server.url) as client:
        link = Link(server.url, 5000, 5000)
        piece = b"".join(command(("SET", f"k{n}", n)) for n in range(3))
        link.later(piece, replies=3)
        link.tell(command(("SET", "after", 1)))
        assert link.call("GET", "k2") == [b"2"]
        client.replicaof("127.0.0.1", 1)
        link.later(command(("SET", "k0", "again")) + command(("GET", "k1")), replies=2)
        assert link.call("GET", "k0") == [b"0"], "it was put off"
        assert link.refused is not None
        assert link.refused.startswith("READONLY")
        client.replicaof("NO", "ONE")
        link.call("PING")
        assert link.call("GET", "k0") == [b"again"]
        link.later(command(("INCR", "after")) + command(("LPUSH", "k1", 1)), replies=2)
        assert link.call("GET", "after") == [b"2"]
        assert link.refused.startswith("WRONGTYPE")
        assert not link.is_behind
        link.close()


def test_a_loop_goes_on_while_a_store_behind_tls_is_waited_for() -> None:
    """Requests and replies larger than what a socket takes at once."""
    with running() as server, encrypted(server.port) as port:
        url = f"rediss://localhost:{port}/0?ssl_ca_certs={TLS / 'cert.pem'}"
        link = Link(url, 20_000, 20_000)
        link.call("PING")
        large = b"x" * 400_000

        async def play() -> tuple[list[Item], int]:
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0)

            ticking = asyncio.create_task(tick())
            found = await afloat(lambda: (link.call("SET", "large", large), link.call("GET", "large")))
            ticking.cancel()
            return found[1], ticks

        found, ticks = asyncio.run(play())
        assert found == [large]
        assert ticks > 1
        link.close()


def test_a_master_that_became_a_replica(tmp_path: Path) -> None:
    """While it reads its new master's data it is loading, then takes no writes; master again, it has all."""
    slow = {"key-load-delay": "10000", "loading-process-events-interval-bytes": "1024"}
    settings = {"repl-diskless-sync-delay": "0", "enable-debug-command": "yes"}
    with (
        running(**settings) as server,
        running(**settings) as other,
        redis.Redis.from_url(server.url) as one,
        redis.Redis.from_url(other.url) as two,
    ):
        store = apart(server.url)
        begin(store, "stage")
        with Stage(tmp_path, SECTIONS, store=store) as stage:
            asked = [claim(f"e{n}", n) for n in range(100)]
            for event in asked:
                stage.engine.score(event)
            two.replicaof("127.0.0.1", server.port)
            until(lambda: two.info("replication").get("master_link_status") == "up")
            two.replicaof("NO", "ONE")
            two.execute_command("DEBUG", "CHANGE-REPL-ID")  # or it would go on where it was
            for name, value in slow.items():
                one.config_set(name, value)
            one.replicaof("127.0.0.1", other.port)
            for kind in ("loading", "read-only"):

                def met(kind: str = kind) -> bool:
                    asked.append(claim(f"e{len(asked)}", len(asked)))
                    stage.engine.score(asked[-1])
                    return stage.engine.store_errors[kind] > 0

                until(met)
            until(lambda: said(one) == "")
            one.replicaof("NO", "ONE")
            until(lambda: stage.engine.score(payment(f"p{time.monotonic()}")).flags == ())
            assert stage.row(claim("last", 2000))["claims"] == len(asked) + 1
