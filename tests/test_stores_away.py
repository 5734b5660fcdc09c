"""What is decided while the shared store cannot answer, and that nothing is lost or doubled when it can."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from servers import apart, running, valkey
from stage import Stage, claim, payment, policy

from riskengine.engine import Engine
from riskengine.errors import RiskEngineError
from riskengine.stores import StoreError
from riskengine.stores.address import Address, begin
from riskengine.stores.place import kind_of

COUNTS = {"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}}
ONE = {"one": {"count": "coupon_claim", "by": "device", "per": "day", "max": 1, "then": "deny"}}


def failing(fail: str) -> dict[str, Any]:
    """A policy whose claims fail as said, and whose payments are reviewed."""
    events = {
        "coupon_claim": {"required": ["user_id"], "fail": fail},
        "payment": {"required": ["user_id", "amount"]},
    }
    return policy(events=events, features=COUNTS, limits=ONE)


def until(done: Callable[[], bool]) -> None:
    """Wait for what must come within seconds."""
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("fail", "action", "after"),
    [("open", "allow", "deny"), ("review", "deny", "allow"), ("closed", "deny", "allow")],
)
def test_a_store_that_stands_still(fail: str, action: str, after: str, tmp_path: Path) -> None:
    """It holds nobody up past the deadline; what was decided meanwhile counts once it goes on."""
    with running() as server:
        store = apart(server.url, timeout=400)
        begin(store, "stage")
        with Stage(tmp_path, failing(fail), store=store) as stage:
            stage.engine.score(claim("e0"))
            server.hold(True)
            begun = time.monotonic()
            # What went out before the silence was noticed is served later: it keeps what it reserved.
            assert stage.engine.score(payment("p0")).flags == ("degraded:store",)
            decision = stage.engine.score(claim("e1", device_id="d1"), features=True)
            assert time.monotonic() - begun < 10, "three deadlines, and some load on this machine"
            assert (decision.action, decision.flags) == (action, ("degraded:store",))
            assert decision.features == {"claims": None}
            assert stage.engine.score(payment("p1")).action == "review"
            for n in range(2, 7):
                stage.engine.score(claim(f"e{n}"))
            assert stage.engine.score(claim("e1", device_id="d1")) == decision, "a retry, by heart"
            server.hold(False)
            until(lambda: stage.engine.score(payment(f"p{time.monotonic()}")).flags == ())
            assert stage.row(claim("e8", 1))["claims"] == 8
            assert stage.engine.score(claim("e1", device_id="d1")).action == action
            assert stage.engine.score(claim("e9", 2, device_id="d1")).action == after


def test_a_store_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    """With its file written at once, kill -9 loses nothing that was answered."""
    with running(appendonly="yes", appendfsync="always") as server:
        store = apart(server.url, timeout=500)
        begin(store, "stage")
        with Stage(tmp_path, failing("review"), store=store) as stage:
            for n in range(10):
                stage.engine.score(claim(f"e{n}"))
            server.kill()
            assert stage.engine.score(claim("away")).flags == ("degraded:store",)
            server.start()
            until(lambda: stage.engine.score(payment(f"p{time.monotonic()}")).flags == ())
            assert stage.row(claim("e10", 1))["claims"] == 12


def test_a_store_that_lost_its_data_is_noticed(tmp_path: Path) -> None:
    with valkey() as url:
        store = apart(url)
        begin(store, "stage")
        with Stage(tmp_path, failing("closed"), store=store) as stage:
            stage.engine.score(claim("e0"))
            with redis.Redis.from_url(url) as client:
                client.flushall()
            decision = stage.engine.score(claim("e1"))
            assert (decision.action, decision.flags) == ("deny", ("degraded:epoch",))
            begin(store, "stage")
            stage.engine.score(claim("e2"))
            assert stage.row(claim("e3"))["claims"] == 2, "it begins anew, as someone decided: with e2"


def test_a_full_store_says_so(tmp_path: Path) -> None:
    with valkey(**{"maxmemory-policy": "noeviction"}) as url:
        store = apart(url)
        begin(store, "stage")
        with (
            Stage(tmp_path, failing("open"), store=store) as stage,
            redis.Redis.from_url(url) as client,
        ):
            client.config_set("maxmemory", "1mb")
            decision = stage.engine.score(claim("e1"))
            assert (decision.action, decision.flags) == ("allow", ("degraded:full",))
            client.config_set("maxmemory", "0")
            assert stage.row(claim("e2"))["claims"] == 2


def test_what_a_server_says_is_passed_on(tmp_path: Path) -> None:
    with valkey() as url:
        store = apart(url)
        begin(store, "stage")
        with Stage(tmp_path, failing("review"), store=store) as stage, redis.Redis.from_url(url) as client:
            assert stage.engine.score(claim("e0")).flags == ()
            (name,) = client.scan_iter(match=f"*:e{kind_of('user').decode()}*")
            client.delete(name)
            client.sadd(name, "something else")
            assert stage.engine.score(claim("e1")).flags == ("degraded:wrong-type",)
            client.delete(name)
            assert stage.engine.score(claim("e2")).flags == ()
            client.script_flush()
            assert stage.engine.score(claim("e3")).flags == (), "scripts are loaded again"


def test_a_password_is_asked_for(tmp_path: Path) -> None:
    with running() as server, redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "secret")
        try:
            with pytest.raises(StoreError, match="password"):
                begin(apart(server.url), "stage")
            with pytest.raises(StoreError, match="password"):
                begin(apart(server.url.replace("//", "//:wrong@")), "stage")
            store = apart(server.url.replace("//", "//:secret@"))
            begin(store, "stage")
            with Stage(tmp_path, failing("review"), store=store) as stage:
                assert stage.engine.score(claim("e0")).flags == ()
        finally:
            client.config_set("requirepass", "")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://h:x/0", "cannot be read"),
        ("redis+sentinel://h", "no store is known by redis\\+sentinel"),
        ("redis://h:1,i:2/0", "several hosts are those of redis\\+cluster"),
        ("redis+cluster://h:1/3", "no databases but 0"),
        ("redis://h?prefix=a:b", "prefix="),
        ("redis://h?timeout=fast", "timeout="),
    ],
)
def test_an_address_that_is_none_is_explained(url: str, message: str) -> None:
    with pytest.raises(RiskEngineError, match=message):
        Address.read(url)


def test_servers_that_will_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = failing("review")
    with valkey(maxmemory="10mb", **{"maxmemory-policy": "allkeys-lru"}) as url:
        with pytest.raises(RiskEngineError, match="noeviction"):
            begin(apart(url), "stage")
        with pytest.raises(RiskEngineError, match="cannot be reached"):
            begin("redis://127.0.0.1:1/0", "stage")
        monkeypatch.delenv("RISKENGINE_HASH_KEY")
        with pytest.raises(RiskEngineError, match="RISKENGINE_HASH_KEY"):
            Stage(tmp_path, sections, store=apart(url), key=None)
    with valkey() as url, pytest.raises(StoreError, match="riskengine store init"):
        Engine.open(tmp_path, store=apart(url), key=b"a key")
