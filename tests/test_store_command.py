"""`riskengine store show`, `export`, `import` and `holds`: what an operator sees and does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from servers import apart, valkey
from stage import KEY, T0, Stage, claim, memory, payment, policy
from typer.testing import CliRunner

from riskengine.cli import app
from riskengine.stores.address import begin
from riskengine.stores.redis import RedisStore
from riskengine.stores.wire import CLAIM_BYTES

SECTIONS = policy(
    entities={"user": "user_id", "device": "device_id", "campaign": "campaign_id"},
    lists={"blocked": {"of": ["user"]}},
    tables={"campaigns": {"key": "campaign", "columns": {"ends": "time"}}},
    features={
        "claims": {"count": "coupon_claim", "by": "user", "over": "30d"},
        "devices": {"distinct": "device", "on": "any", "by": "user", "over": "30d"},
        "spread": {"std": "amount", "on": "payment", "by": "user", "over": "30d"},
        "before": {"previous": "channel", "on": "any", "by": "user"},
        "frauds": {"count": "fraud", "on": "any", "by": "user", "over": "30d"},
    },
    limits={
        "two-a-device": {"count": "coupon_claim", "by": "device", "over": "30d", "max": 2, "then": "deny"}
    },
)
PROBE = payment("probe", 50_000, 7, device_id="d0", channel="app")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with valkey() as url:
        yield url


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKENGINE_HASH_KEY", KEY.decode())


def command(*words: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["store", *words])
    said = "" if isinstance(ended.exception, SystemExit | None) else str(ended.exception)
    return ended.exit_code, ended.output + said


def live(stage: Stage) -> None:
    """A little of everything."""
    for n in range(12):
        stage.row(claim(f"c{n}", 1000 * n, user_id=f"u{n % 3}", device_id=f"d{n % 4}", channel="web"))
        stage.row(payment(f"p{n}", 1000 * n + 500, 1.5 * n, user_id=f"u{n % 3}", device_id=f"d{n % 4}"))
    stage.engine.label("p3", "fraud", T0 + 20_000)
    stage.engine.list_put("blocked", "user", "u9")
    stage.engine.table_put("campaigns", "k1", {"ends": T0})


def known(stage: Stage) -> list[Any]:
    """What is answered now, of each user and device."""
    stage.now = T0 + 60_000
    events = [
        {**PROBE, "event_id": f"probe-{u}-{d}", "user_id": f"u{u}", "device_id": f"d{d}"}
        for u in range(3)
        for d in range(4)
    ] + [claim(f"claim-{d}", 55_000, device_id=f"d{d}") for d in range(5)]
    said = [stage.engine.score(event, features=True) for event in events]
    return [(one.action, one.fired, one.features) for one in said] + [
        stage.engine.list_get("blocked", "user", "u9"),
        stage.engine.table_get("campaigns", "k1"),
    ]


@pytest.mark.parametrize(("source", "target"), [("memory", "redis"), ("redis", "redis"), ("redis", "memory")])
def test_a_state_goes_from_store_to_store(source: str, target: str, server: str, tmp_path: Path) -> None:
    def store(kind: str) -> str:
        if kind == "memory":
            return "memory://"
        url = apart(server)
        begin(url, "stage")
        return url

    first, second, file = store(source), store(target), tmp_path / "state"
    rules = "--rules", str(tmp_path / "one")
    with (
        Stage(tmp_path / "one", SECTIONS, store=first) as one,
        Stage(tmp_path / "two", SECTIONS, store=second) as two,
    ):
        live(one)
        if source == "memory":
            one.engine.export_state(file)
        else:
            code, told = command("export", "--store", first, "--out", str(file), *rules)
            assert (code, told.startswith("7 entities written to")) == (0, True), told
        if target == "memory":
            two.engine.import_state(file)
            assert len(memory(two.engine).lists) == 1
        else:
            code, told = command("import", "--store", second, "--in", str(file), *rules)
            assert (code, told.startswith("7 entities read from")) == (0, True), told
        assert known(two) == known(one)


def test_a_state_that_is_none_is_refused(server: str, tmp_path: Path) -> None:
    store = apart(server)
    begin(store, "stage")
    with Stage(tmp_path / "one", SECTIONS) as one:
        live(one)
        one.engine.export_state(tmp_path / "state")
    other = policy(features={"claims": {"count": "coupon_claim", "by": "user", "over": "1h"}})
    with Stage(tmp_path / "other", other, store=store):
        pass
    words = "import", "--store", store, "--rules", str(tmp_path / "other"), "--in"
    assert "was written under plan" in command(*words, str(tmp_path / "state"))[1]
    (tmp_path / "cut").write_bytes((tmp_path / "state").read_bytes()[:-5])
    assert "damaged" in command(*words, str(tmp_path / "cut"))[1]
    assert "names a shared store" in " ".join(
        command("import", "--store", "memory://", "--in", str(tmp_path / "cut"))[1].replace("│", " ").split()
    ).replace("name a", "names a")


def test_an_entity_is_shown(server: str, tmp_path: Path) -> None:
    store = apart(server)
    begin(store, "stage")
    with Stage(tmp_path, SECTIONS, store=store) as stage:
        live(stage)
    where = "--store", store, "--rules", str(tmp_path)
    code, told = command("show", "user", "u0", *where, "--json")
    assert code == 0, told
    said = json.loads(told)
    assert said["features"] == {
        "claims": 4.0, "devices": 4.0, "spread": said["features"]["spread"], "before": "web", "frauds": 1.0
    }  # fmt: skip
    assert said["holds"] == {}
    assert "u0" not in said["key"]
    assert "holds 2 of two-a-device" in command("show", "device", "d1", *where)[1]
    assert "claims = 0" in command("show", "user", "nobody", *where)[1]
    assert "there is no entity 'usr': did you mean user?" in command("show", "usr", "u0", *where)[1]
    with Stage(tmp_path, SECTIONS, store=store) as stage:
        assert stage.row(claim("after", 20_000, user_id="u0"))["claims"] == 5, "looking moves nothing"


def prefix_of(store: str) -> str:
    return store.partition("prefix=")[2].partition("&")[0]


def died(stage: Stage, event: dict[str, Any]) -> None:
    """Score an event, and never tell the store what was decided."""
    store = stage.engine._store
    assert isinstance(store, RedisStore)
    store.conclude = lambda *_: None  # type: ignore[method-assign]  # as if killed after the wait
    stage.engine.score(event)
    del store.conclude  # the class's own again
    if stage.engine.journal is not None:
        stage.engine.journal.flush()


def test_what_a_crash_left_open_is_listed_and_given_back(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = apart(server)
    begin(store, "stage")
    where = "--store", store, "--rules", str(tmp_path / "one"), "--json"
    with Stage(tmp_path / "one", SECTIONS, store=store) as one, redis.Redis.from_url(server) as client:
        died(one, claim("e1", device_id="d1"))
        assert command("holds", *where) == (0, "[]\n"), "it may be decided yet"
        for name in client.scan_iter(match=f"{prefix_of(store)}:*:c*"):
            client.pexpire(name, 7 * 86_400_000 - 700_000)  # as if 700 s had passed
        assert one.engine.score(claim("e2", 1, device_id="d1")).action == "allow"
        for n in range(200):  # folded over and over: it is known all the same
            one.engine.score(claim(f"more{n}", 2, device_id="d1"))
        code, told = command("holds", *where)
        (listed,) = json.loads(told)
        assert (code, listed["holds"], listed["outcome"]) == (1, {"two-a-device": 1.0}, "left open")
        assert one.engine.score(claim("e3", 3, device_id="d1")).action == "deny"
        code, told = command("holds", *where, "--release")
        assert (code, json.loads(told)[0]["outcome"]) == (0, "given back")
        assert one.engine.score(claim("e4", 4, device_id="d1")).action == "allow"
        late = one.engine.score(claim("e1", device_id="d1"))
        assert (late.action, late.flags) == ("deny", ("redecided",)), "its place is taken"
        assert not one.engine.release("e1")
        assert command("holds", *where) == (0, "[]\n")
        assert one.engine.score(claim("e5", 5, device_id="d1")).action == "deny"


def test_what_was_journaled_is_settled_by_its_decision(server: str, tmp_path: Path) -> None:
    """Whether the journal is asked by an operator, or by the engine to which the event comes again."""
    store = apart(server)
    begin(store, "stage")
    journal = f"sqlite:///{tmp_path / 'journal.db'}"
    where = "--store", store, "--rules", str(tmp_path / "one"), "--journal", journal, "--json"
    with (
        Stage(tmp_path / "one", SECTIONS, store=store, journal=journal) as one,
        redis.Redis.from_url(server) as client,
    ):
        for event_id, device in (("e1", "d1"), ("e2", "d2")):
            died(one, claim(event_id, device_id=device))
        decision = one.engine.score(claim("e2", device_id="d2"))
        assert decision.flags == (), "it is what the journal says"
        assert one.engine.release("e2"), "and the store knows what it holds"
        for name in client.scan_iter(match=f"{prefix_of(store)}:*:c*"):
            if client.strlen(name) == CLAIM_BYTES:
                client.pexpire(name, 7 * 86_400_000 - 700_000)
        code, told = command("holds", *where)
        (listed,) = json.loads(told)
        assert (code, listed["outcome"]) == (0, "settled by its decision")
        assert one.engine.score(claim("e1", device_id="d1")).flags == ()
        assert one.engine.release("e1")
        for device in ("d1", "d2"):
            said = [one.engine.score(claim(f"{device}-{n}", 9, device_id=device)).action for n in range(3)]
            assert said == ["allow", "allow", "deny"]
