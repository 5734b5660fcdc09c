"""Whatever a store cannot do is caused for real: each has an error of its own that says what to do, a flag
and a metric, and all that was decided meanwhile counts once it is mended.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from servers import Server, apart, running, until
from stage import Stage, claim, policy, store_of

from riskengine.decision import Decision
from riskengine.service.metrics import Metrics
from riskengine.stores import StoreError
from riskengine.stores.address import begin
from riskengine.stores.link import Link
from riskengine.stores.place import kind_of

SECTIONS = policy(
    events={"coupon_claim": {"required": ["user_id"], "fail": "review"}},
    features={
        "claims": {"count": "coupon_claim", "by": "user", "over": "1h"},
        "of_device": {"count": "coupon_claim", "by": "device", "over": "1h"},
    },
)
SETTINGS = {
    "appendonly": "yes", "appendfsync": "always", "busy-reply-threshold": "20", "enable-debug-command": "yes",
    "maxmemory-policy": "noeviction", "repl-diskless-sync-delay": "0",
}  # fmt: skip

Fault = Callable[[Server, Any], AbstractContextManager[None]]


def says(client: Any, word: str) -> bool:
    """Whether the server answers so just now."""
    try:
        client.get("nothing")
    except redis.BusyLoadingError:
        return word == "LOADING"
    except redis.RedisError as error:
        return str(error).startswith(word)
    return word == ""


@contextmanager
def full(_: Server, client: Any) -> Iterator[None]:
    client.config_set("maxmemory", "1mb")
    yield
    client.config_set("maxmemory", "0")


@contextmanager
def read_only(_: Server, client: Any) -> Iterator[None]:
    client.replicaof("127.0.0.1", 1)  # nobody is there to copy from
    yield
    client.replicaof("NO", "ONE")


@contextmanager
def without_a_master(_: Server, client: Any) -> Iterator[None]:
    client.config_set("replica-serve-stale-data", "no")
    client.replicaof("127.0.0.1", 1)
    yield
    client.replicaof("NO", "ONE")


@contextmanager
def wrong_type(_: Server, client: Any) -> Iterator[None]:
    (name,) = client.scan_iter(match=f"*:e{kind_of('user').decode()}*")
    client.rename(name, "aside")
    client.sadd(name, "something else")
    yield
    client.delete(name)
    client.rename("aside", name)


@contextmanager
def password(_: Server, client: Any) -> Iterator[None]:
    client.config_set("requirepass", "secret")
    client.client_kill_filter(_type="normal", skipme=True)
    yield
    client.config_set("requirepass", "")


@contextmanager
def no_scripts(_: Server, client: Any) -> Iterator[None]:
    client.execute_command("ACL", "SETUSER", "default", "-@scripting")
    yield
    client.execute_command("ACL", "SETUSER", "default", "+@scripting")


@contextmanager
def busy(server: Server, client: Any) -> Iterator[None]:
    def hold_up() -> None:
        with redis.Redis.from_url(server.url) as other, suppress(redis.ResponseError):
            other.eval("while true do end", 0)

    running_on = threading.Thread(target=hold_up)
    running_on.start()
    until(lambda: says(client, "BUSY"))
    yield
    client.script_kill()
    running_on.join()


@contextmanager
def loading(server: Server, client: Any) -> Iterator[None]:
    for n in range(300):
        client.set(f"other:{n}", "x" * 100)
    client.config_set("loading-process-events-interval-bytes", "1024")
    client.config_set("key-load-delay", "10000")  # us

    def reload() -> None:
        with redis.Redis.from_url(server.url) as other:
            other.execute_command("DEBUG", "RELOAD")

    reading = threading.Thread(target=reload)
    reading.start()
    until(lambda: says(client, "LOADING"))
    yield
    reading.join()


@contextmanager
def epoch(_: Server, client: Any) -> Iterator[None]:
    (name,) = client.scan_iter(match="*:epoch")
    before = client.get(name)
    client.delete(name)
    yield
    client.set(name, before)


@contextmanager
def away(server: Server, _: Any) -> Iterator[None]:
    server.kill()
    yield
    server.start()


@contextmanager
def slow(server: Server, _: Any) -> Iterator[None]:
    server.hold(True)
    yield
    server.hold(False)


# What is caused, the kind of the error, the flag of what is decided, and what the error says to do.
FAULTS: tuple[tuple[Fault, str, str, str], ...] = (
    (full, "full", "full", "raise maxmemory or take load from it"),
    (read_only, "read-only", "read-only", "give the address of its master"),
    (without_a_master, "away", "store", "a replica whose master is down"),
    (wrong_type, "wrong-type", "wrong-type", "give this store a prefix of its own"),
    (password, "denied", "denied", "give (user and password in its|it in the) URL"),
    (no_scripts, "denied", "denied", "allow it scripts and our keys"),
    (busy, "busy", "store", "SCRIPT KILL ends one that wrote nothing"),
    (loading, "loading", "store", "reading its data after a start: wait for it"),
    (epoch, "epoch", "epoch", r"rebuild them \(riskengine rebuild\), or begin empty"),
    (away, "away", "store", "cannot be reached|connection to the store broke"),
    (slow, "slow", "store", "look at its load, and at riskengine store info"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(**SETTINGS) as found:
        yield found


@pytest.mark.parametrize(("n", "transacts"), [(1, False), (3, True)])
@pytest.mark.parametrize(
    ("fault", "kind", "flag", "mend"), FAULTS, ids=[fault[0].__name__ for fault in FAULTS]
)
def test_each_fault_has_an_error_of_its_own(
    fault: Fault, kind: str, flag: str, mend: str, n: int, transacts: bool, server: Server, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """For an event that is asked of by a script, and for a batch that is a transaction."""
    if not transacts:
        monkeypatch.setattr(Link, "transacts", False)
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        store = apart(server.url)
        begin(store, "stage")
        with Stage(tmp_path, SECTIONS, store=store) as stage:
            errors = told(stage)
            metrics = Metrics(stage.engine)
            assert stage.engine.score(claim("before")).flags == ()
            if kind == "slow":
                store_of(stage.engine)._link.hurry(300, 1000)
            with fault(server, client):
                events = [claim(f"meanwhile{i}", 1, device_id=f"d{i}") for i in range(n)]
                decisions = stage.engine.score_many(events)
                metrics.results(events, decisions)
            for decision in decisions:
                assert isinstance(decision, Decision)
                assert (decision.action, decision.flags) == ("review", (f"degraded:{flag}",))
            assert [error.kind for error in errors] == [kind]
            assert re.search(mend, str(errors[0])), errors[0]
            assert "u1" not in str(errors[0])
            text = metrics.text().decode()
            assert f'riskengine_store_errors_total{{kind="{kind}"}} 1.0' in text
            assert f'riskengine_degraded_total{{kind="{flag}"}} {n}.0' in text
            asked = 0

            def well() -> bool:
                nonlocal asked
                asked += 1
                return stage.engine.score(claim(f"well{asked}", user_id="well")).flags == ()

            until(well)
            row = stage.row(claim("after", 2, device_id="d0"))
            assert (row["claims"], row["of_device"]) == (n + 2, 2)


def told(stage: Stage) -> list[StoreError]:
    """Every error that scoring meets from now on."""
    store = store_of(stage.engine)
    errors: list[StoreError] = []
    observe = store.observe

    def noted(*given: Any) -> Any:
        try:
            return observe(*given)
        except StoreError as error:
            errors.append(error)
            raise

    store.observe = noted  # type: ignore[method-assign,assignment]  # in the place of the class's own
    return errors
