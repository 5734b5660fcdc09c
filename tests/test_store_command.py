"""`riskengine store show`, `export`, `import` and `holds`: what an operator sees and does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from clusters import cluster
from servers import apart, valkey
from stage import KEY, T0, Stage, claim, memory, payment, policy, store_of
from typer.testing import CliRunner

from riskengine.cli import app
from riskengine.stores import StoreError
from riskengine.stores.address import begin
from riskengine.stores.owed import Owing
from riskengine.stores.undecided import STOP
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


@pytest.fixture(scope="module", params=["valkey", "cluster"])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a Valkey, and of a cluster."""
    with ExitStack() as stack:
        if request.param == "cluster":
            yield stack.enter_context(cluster(replicas=False)).url
        else:
            yield stack.enter_context(valkey())


def nodes(server: str) -> list[Any]:
    """Every server that keeps a part of the data."""
    if not server.startswith("redis+cluster"):
        return [redis.Redis.from_url(server)]
    with redis.RedisCluster.from_url(f"redis://{server.rpartition('/')[2].partition(',')[0]}") as found:
        masters = [(node.host, node.port) for node in found.get_primaries()]
    return [redis.Redis(host, port) for host, port in masters]


def time_passes(server: str, store: str, ms: int = 700_000) -> None:
    """As if events that were entered and not decided had come so long ago, and those that owe something."""
    kept_open = re.compile(rf"{prefix_of(store)}:[^:]+:[^:]+:(\{{..\}})?([co])".encode())
    for client in nodes(server):
        with client:
            for name in client.scan_iter(match=f"{prefix_of(store)}:*"):
                found, left = kept_open.match(name), client.pttl(name)
                if found and left > ms and (found[2] == b"o" or client.strlen(name) == CLAIM_BYTES):
                    client.pexpire(name, left - ms)


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


def test_a_state_comes_back_as_it_went(server: str, tmp_path: Path) -> None:
    """From one server to another (or a cluster), from there into memory, and back to the first."""
    with ExitStack() as stack, valkey() as other:
        stores = [apart(other), apart(server), "memory://", apart(other)]
        stages = []
        for n, store in enumerate(stores):
            if not store.startswith("memory"):
                begin(store, "stage")
            stages.append(stack.enter_context(Stage(tmp_path / str(n), SECTIONS, store=store)))
        live(stages[0])
        for n in range(70):  # so that one is folded, and has a tail
            stages[0].row(claim(f"more{n}", 13_000 + n, user_id="u1", device_id=f"more{n}"))
        for n, (one, two) in enumerate(pairwise(stages)):
            file = tmp_path / f"state{n}"
            assert one.engine.export_state(file) == two.engine.import_state(file) == 77
        first, *others = [known(stage) for stage in stages]
        assert others == [first] * 3


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
    store = store_of(stage.engine)
    store.conclude = lambda *_: {}  # type: ignore[method-assign]  # as if killed after the wait
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
    with Stage(tmp_path / "one", SECTIONS, store=store) as one:
        died(one, claim("e1", device_id="d1"))
        assert command("holds", *where) == (0, "[]\n"), "it may be decided yet"
        time_passes(server, store)
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


def test_a_journal_that_is_not_there_is_told_where_nothing_is_open(server: str, tmp_path: Path) -> None:
    store = apart(server)
    begin(store, "stage")
    where = "--store", store, "--rules", str(tmp_path / "one")
    kept, none = (f"sqlite:///{tmp_path / name}" for name in ("kept.db", "nope.db"))
    with Stage(tmp_path / "one", SECTIONS, store=store, journal=kept):
        pass
    assert command("holds", *where, "--journal", kept) == (0, "nothing was left open\n")
    code, told = command("holds", *where, "--journal", kept, "--journal", none)
    assert code != 0
    assert "nope.db" in told
    assert not (tmp_path / "nope.db").exists()


def test_a_folder_that_is_not_there_is_told(server: str, tmp_path: Path) -> None:
    store = apart(server)
    begin(store, "stage")
    with Stage(tmp_path / "one", SECTIONS):
        pass
    out = tmp_path / "no" / "c.dump"
    _, told = command("export", "--store", store, "--rules", str(tmp_path / "one"), "--out", str(out))
    assert told.endswith(f"{out} cannot be written: there is no folder {out.parent}. Make it first.")


def test_what_a_denied_event_was_to_give_back_is_given_back_once(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster a decision is in one place, what it gives back in others: an engine dies in between."""
    store = apart(server)
    begin(store, "stage")
    where = "--store", store, "--rules", str(tmp_path / "one"), "--json"
    rules = {"low": {"on": "any", "when": "score < 0", "then": "deny", "mode": "live"}}
    late: list[Any] = []
    with Stage(tmp_path / "one", {**SECTIONS, "rules": rules}, store=store) as one:
        with monkeypatch.context() as patch:
            patch.setattr(Owing, "_tell", lambda owing, denied: late.append((owing, denied)))
            said = [claim(f"e{n}", n, device_id=f"d{n % 2}", score=-1) for n in range(4)]
            assert set(one.actions(said)) == {"deny"}
        assert command("holds", *where) == (0, "[]\n"), "its engine may be at it"
        time_passes(server, store)
        code, told = command("holds", *where)
        assert code == 0, told
        if late:
            assert [(one["holds"], one["outcome"]) for one in json.loads(told)] == 4 * [
                ({"two-a-device": 1.0}, "settled by its decision")
            ]
        assert command("holds", *where) == (0, "[]\n")
        for owing, denied in late:  # who lives on gives back nothing more
            owing._tell(denied)
        for device in ("d0", "d1"):
            events = [claim(f"{device}-{n}", 9, device_id=device, score=1) for n in range(3)]
            assert one.actions(events) == ["allow", "allow", "deny"]
        assert len(late) == (4 if server.startswith("redis+cluster") else 0)


def test_what_came_to_some_partitions_only_is_left_open_too(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine dies between the masters of a cluster that it asks, before it came to the event's own."""
    store = apart(server)
    begin(store, "stage")
    where = "--store", store, "--rules", str(tmp_path / "one"), "--json"
    with Stage(tmp_path / "one", SECTIONS, store=store) as one:
        opened = store_of(one.engine)
        link, event = opened._link, claim("e1", device_id="d1")
        home = opened.place.part_of(one.engine._claim_key("e1"))

        ask_all = link.ask_all

        def ask_some(requests: Any, ends: Any, parts: Any) -> Any:
            for start, end, part in zip((0, *ends[:-1]), ends, parts, strict=True):
                if part != home or len(parts) == 1:
                    ask_all(requests[start:end], (end - start,), np.array([part]))
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(type(link), "transacts", False)
            patch.setattr(link, "ask_all", ask_some)
            with pytest.raises(KeyboardInterrupt):
                one.engine.score(event)
        assert command("holds", *where) == (0, "[]\n"), "it may be decided yet"
        time_passes(server, store)
        code, told = command("holds", *where, "--release")
        assert (code, [(x["holds"], x["outcome"]) for x in json.loads(told)]) == (
            0, [({"two-a-device": 1.0}, "given back")]
        )  # fmt: skip
        assert command("holds", *where) == (0, "[]\n")
        events = [claim(f"after{n}", 9, device_id="d1") for n in range(3)]
        assert one.actions(events) == ["allow", "allow", "deny"]
        again = one.engine.score(event)
        assert (again.action, again.flags) == ("deny", ("redecided",)), "its place is taken"


def test_of_a_rebuilt_store_nothing_old_looks_left_open(server: str, tmp_path: Path) -> None:
    """What nobody asks for any more is forgotten at once: on a cluster not before other partitions have."""
    store = apart(server)
    begin(store, "stage")
    journal = f"sqlite:///{tmp_path / 'journal.db'}"
    limits = {"two-a-device": {**SECTIONS["limits"]["two-a-device"], "over": "1h"}}
    with Stage(tmp_path / "one", {**SECTIONS, "features": {}, "limits": limits}, journal=journal) as one:
        assert set(one.actions([claim(f"e{n}", n, device_id=f"d{n}") for n in range(50)])) == {"allow"}
    where = "--store", store, "--rules", str(tmp_path / "one")
    ended = CliRunner().invoke(app, ["rebuild", *where, "--from", journal])
    assert ended.exit_code == 0, ended.output
    time_passes(server, store)
    assert command("holds", *where, "--json") == (0, "[]\n")


def test_what_is_given_back_by_half_is_given_back_in_full_the_next_time(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator's process dies behind each of its calls: nothing is given back twice, nor forgotten."""
    store = apart(server)
    begin(store, "stage")
    where = "--store", store, "--rules", str(tmp_path / "one"), "--json"
    limits = {
        f"two-a-{entity}": {"count": "coupon_claim", "by": entity, "over": "30d", "max": 2, "then": "deny"}
        for entity in ("device", "campaign", "user")
    }
    with Stage(tmp_path / "one", {**SECTIONS, "limits": limits}, store=store) as one:
        link = type(store_of(one.engine)._link)
        for n in range(5):
            own: dict[str, Any] = {"user_id": f"v{n}", "device_id": f"v{n}", "campaign_id": f"v{n}"}
            died(one, claim(f"e{n}", **own))
            time_passes(server, store)
            with monkeypatch.context() as patch:
                patch.setattr(link, "call", breaking(link.call, n))
                command("holds", *where, "--release")
            said = json.loads(command("holds", *where, "--release")[1])
            assert {listed["outcome"] for listed in said} <= {"given back"}
            assert said or n > 0, "it was stopped, and gave nothing back"
            assert command("holds", *where) == (0, "[]\n")
            actions = [one.engine.score(claim(f"after{n}-{i}", 1 + i, **own)).action for i in range(3)]
            assert actions == ["allow", "allow", "deny"]
            assert one.engine.score(claim(f"e{n}", **own)).action == "deny"


def breaking(call: Any, after: int) -> Any:
    """`Link.call`, cut off behind so many calls that give something back."""
    done = 0

    def cut(link: Any, *words: Any, at: int = 0) -> Any:
        nonlocal done
        answer = call(link, *words, at=at)
        if words[:2] in (("EVAL", STOP), ("EVALSHA", link.names["give_back"])):
            done += 1
            if done > after:
                raise StoreError("away", "the line was cut")
        return answer

    return cut


def test_what_was_journaled_is_settled_by_its_decision(server: str, tmp_path: Path) -> None:
    """Whether the journal is asked by an operator, or by the engine to which the event comes again."""
    store = apart(server)
    begin(store, "stage")
    journal = f"sqlite:///{tmp_path / 'journal.db'}"
    where = "--store", store, "--rules", str(tmp_path / "one"), "--journal", journal, "--json"
    with Stage(tmp_path / "one", SECTIONS, store=store, journal=journal) as one:
        for event_id, device in (("e1", "d1"), ("e2", "d2")):
            died(one, claim(event_id, device_id=device))
        decision = one.engine.score(claim("e2", device_id="d2"))
        assert decision.flags == (), "it is what the journal says"
        assert one.engine.release("e2"), "and the store knows what it holds"
        time_passes(server, store)
        code, told = command("holds", *where)
        (listed,) = json.loads(told)
        assert (code, listed["outcome"]) == (0, "settled by its decision")
        assert one.engine.score(claim("e1", device_id="d1")).flags == ()
        assert one.engine.release("e1")
        for device in ("d1", "d2"):
            said = [one.engine.score(claim(f"{device}-{n}", 9, device_id=device)).action for n in range(3)]
            assert said == ["allow", "allow", "deny"]
