"""A batch as one transaction of a lone server: what is asked, what is read, and what is taken back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from servers import Server, apart, running
from stage import Stage, caught_up, claim, payment, policy, store_of

from riskengine.stores import StoreError, requests, resp, transaction
from riskengine.stores.address import begin
from riskengine.stores.line import Reply, enter
from riskengine.stores.link import Link
from riskengine.stores.redis import RedisStore
from riskengine.stores.requests import Asked
from riskengine.stores.resp import split
from riskengine.stores.workspace import Workspace

SECTIONS = policy(
    features={
        "claims": {"count": "coupon_claim", "by": "user", "over": "1h"},
        "devices": {"distinct": "device", "on": "any", "by": "user", "over": "1d", "cap": 8},
        "paid": {"sum": "amount", "on": "payment", "by": "device", "over": "1d"},
    },
    limits={
        "two-a-device": {
            "count": "coupon_claim", "by": "device", "per": "day", "max": 2, "then": "deny"
        },
        "budget": {
            "sum": "amount", "on": "payment", "by": "campaign", "per": "day", "max": 50, "then": "deny"
        },
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as found:
        yield found


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with redis.Redis.from_url(server.url) as found:
        yield found


def opened(server: Server, folder: Path) -> Stage:
    store = apart(server.url)
    begin(store, "stage")
    return Stage(folder, SECTIONS, store=store)


def seen(store: RedisStore, patch: pytest.MonkeyPatch) -> list[tuple[Asked, bool]]:
    """Every batch that becomes a transaction from now on, and whether its events were entered by that."""
    found: list[tuple[Asked, bool]] = []
    transacted = store._transacted

    def noted(asked: Asked) -> Any:
        answer = transacted(asked)
        found.append((asked, answer is not None))
        return answer

    patch.setattr(store, "_transacted", noted)
    return found


def naive(words: Sequence[bytes], prefix: bytes) -> list[list[bytes]]:
    """The transaction of a batch, by the call of observe.lua that does the same."""
    last = 3 + int(words[2])
    keys, given = words[3:last], words[last:]
    n = int(given[1])
    claims, entities, values, records = keys[2 : 2 + n], keys[2 + n :], given[8 : 8 + n], given[8 + n :]
    appended = [(name, each) for name, each in zip(entities, records, strict=True) if each]
    blob = b"".join(name.removeprefix(prefix) + len(each).to_bytes(4, "little") for name, each in appended)
    return [
        [b"MULTI"],
        [b"MGET", *keys[:2], *entities],
        *([b"APPEND", name, each] for name, each in appended),
        [b"EVAL", enter(), b"%d" % (1 + n), keys[0], *claims, given[0], given[3], prefix, blob, *values],
        [b"EXEC"],
    ]


actors = st.sampled_from(["a", "b", "c"])
events = st.lists(
    st.builds(
        lambda pays, user, device, campaign, amount: (
            {"type": "payment", "amount": amount} if pays else {"type": "coupon_claim"}
        )
        | {"user_id": user}
        | ({"device_id": device} if device else {})
        | ({"campaign_id": campaign} if campaign else {}),
        st.booleans(), actors, st.none() | actors, st.none() | actors, st.integers(1, 40),
    ),
    min_size=1, max_size=9,
)  # fmt: skip


@given(batches=st.lists(events, min_size=1, max_size=3))
def test_it_asks_what_observe_lua_would_be_asked(
    batches: list[list[dict[str, Any]]], server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rules")
    with opened(server, folder) as stage, pytest.MonkeyPatch.context() as patch:
        store = store_of(stage.engine)
        transacted, looked_at = store._transacted, 0

        def compared(asked: Asked) -> Any:
            nonlocal looked_at
            looked_at += 1
            calls = requests.observing(store._terms, Workspace(), asked, asked.asked)
            (words,) = split(bytes(calls.data))
            request, before = requests.transacting(store._terms, Workspace(), asked)
            most = store._terms.transaction_bytes + asked.touches.batch.n * store._terms.event_bytes
            assert len(request) <= most, "so much room it was given"
            commands = list(split(bytes(request)))
            assert commands == naive(words, store.place.within(0))
            assert before == len(commands) - 1, "each has a reply"
            return transacted(asked)

        patch.setattr(store, "_transacted", compared)
        for number, batch in enumerate(batches):
            stage.engine.score_many(
                [{"event_id": f"e{number}-{i}", "time": stage.now, **event} for i, event in enumerate(batch)]
            )
        assert looked_at == len(batches)


values = st.none() | st.binary(max_size=5)
failed = st.just(StoreError("broken", "no"))
outcomes = st.integers(0, 9) | failed


@given(before=st.lists(st.integers(), max_size=4), found=st.lists(values, max_size=6), data=st.data())
def test_what_is_read_of_its_reply(before: list[int], found: list[bytes | None], data: st.DataObject) -> None:
    came = [*data.draw(st.lists(outcomes, max_size=4)), data.draw(st.integers(0, 1) | failed)]
    items: list[Any] = [*before, b"epoch", b"0", *found, *came]
    errors = [k for k, item in enumerate(items) if isinstance(item, StoreError)]
    lengths = [
        resp.ERROR if k in errors
        else resp.NIL if item is None
        else resp.INTEGER if isinstance(item, int)
        else len(item)
        for k, item in enumerate(items)
    ]  # fmt: skip
    offsets = [item if isinstance(item, int) and abs(item) < 2**62 else 0 for item in items]
    places = np.zeros(len(found), np.int64)
    told = transaction.read(np.array(offsets), np.array(lengths), len(before), len(items), len(found), places)
    wrong = -1 if not errors or came[-1] == 0 else errors[0]
    assert told == (
        came[-1] != 0 and not errors,
        wrong,
        sum(len(value) for value in found if value is not None),
    )
    assert places.tolist() == [len(before) + 2 + k for k in range(len(found))]


def state(client: Any, store: RedisStore) -> dict[bytes, tuple[bytes, bool]]:
    """What the server has of entities and claims, and whether that lives for ever."""
    names = sorted(client.scan_iter(match=store.place.data + b"[ec]*"))
    return {name: (client.get(name), client.ttl(name) < 0) for name in names if not name.endswith(b"edits")}


@pytest.mark.parametrize("at", [0, 2])
def test_where_an_event_is_known_nothing_is_left_of_it(
    at: int, server: Server, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values are what they were to the byte, those of entities that were not there are gone."""
    with opened(server, tmp_path) as stage:
        store = store_of(stage.engine)
        first = [claim(f"a{i}", device_id=f"d{i % 2}") for i in range(4)]
        before = stage.engine.score_many(first)
        assert caught_up(stage.engine)
        kept = state(client, store)
        lives = {name: client.pttl(name) for name in kept}
        was: list[Any] = []
        transacted = store._transacted

        def looked_at(asked: Asked) -> Any:
            answer = transacted(asked)
            was.append((answer is None, state(client, store)))
            return answer

        monkeypatch.setattr(store, "_transacted", looked_at)
        batch = [claim("b0", 1, device_id="new"), claim("b1", 1, user_id="u2")]
        batch.insert(at, first[1])
        assert stage.engine.score_many(batch)[at] == before[1]
        assert was == [(True, kept)]
        assert all(client.pttl(name) <= left for name, left in lives.items())
        assert stage.row(claim("c", 2, device_id="d0"))["claims"] == 6
        assert stage.row(claim("d", 2, user_id="u2"))["claims"] == 2


def test_after_a_retry_it_is_tried_again_when_none_was_known(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(server, tmp_path) as stage:
        found = seen(store_of(stage.engine), monkeypatch)
        batches = [[claim(f"{name}{i}") for i in range(2)] for name in "abcd"]
        for batch in (batches[0], batches[0], batches[1], batches[2]):
            stage.engine.score_many(batch)
        assert [entered for _, entered in found] == [True, False, True], "the third was asked one by one"


def test_what_is_new_lives_no_longer_than_by_the_script(
    server: Server, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(server, tmp_path) as stage:
        store = store_of(stage.engine)
        stage.engine.score_many([claim(f"a{i}", device_id=f"d{i}") for i in range(3)])
        monkeypatch.setattr(Link, "transacts", False)
        stage.engine.score(claim("b", 1, user_id="u2", device_id="d9"))
        assert caught_up(stage.engine)
        found = state(client, store)
        assert found, "there is something to look at"
        assert not any(is_for_ever for _, is_for_ever in found.values())
        names = [
            store.place.entity_name("device", stage.engine.policy.schema.entity_key("device", device))
            for device in ("d9", "d0")
        ]
        by_script, by_batch = map(client.pttl, names)
        assert 0 < by_batch <= by_script


@pytest.mark.parametrize("retry", [True, False])
def test_a_reply_that_is_lost(
    retry: bool, server: Server, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves everything once, and lives no longer: whether it is sent again or the engine catches up."""
    with opened(server, tmp_path) as stage:
        store = store_of(stage.engine)
        stage.engine.score(claim("before"))
        link = store._link
        ask = link.ask

        def lost(*words: Any) -> Reply:
            ask(*words)
            monkeypatch.setattr(link, "ask", ask)
            link.unsure = True
            raise StoreError("slow", "on the way back")

        monkeypatch.setattr(link, "ask", lost)
        batch = [claim(f"a{i}", 1, device_id=f"d{i}") for i in range(3)]
        told = stage.engine.score_many(batch)
        assert all(decision.flags == ("degraded:store",) for decision in told if hasattr(decision, "flags"))
        if retry:
            assert stage.engine.score_many(batch) == told
        assert caught_up(stage.engine)
        assert not any(is_for_ever for _, is_for_ever in state(client, store).values())
        assert stage.row(claim("after", 2))["claims"] == 5
        assert stage.engine.score(claim("more", 3, device_id="d0")).action == "allow"


def test_a_server_that_answers_less_than_it_was_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(server, tmp_path) as stage:
        store = store_of(stage.engine)
        stage.engine.score(claim("before"))
        link, ask = store._link, store._link.ask

        def asked(request: Any, at: int = 0, replies: int = 1) -> Reply:
            return ask(resp.command(("MGET", "none")) if replies > 1 else request, at)

        monkeypatch.setattr(link, "ask", asked)
        decision = stage.engine.score(claim("e", 1))
        assert (decision.action, decision.flags) == ("review", ("degraded:broken",))
        monkeypatch.setattr(link, "ask", ask)
        assert stage.row(claim("after", 2))["claims"] == 3


def test_a_server_that_takes_no_transactions(
    server: Server, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.execute_command("ACL", "SETUSER", "default", "-multi")
    try:
        with opened(server, tmp_path) as stage:
            found = seen(store_of(stage.engine), monkeypatch)
            assert (
                stage.actions([claim("a", device_id="d"), payment("b", 1, 40, campaign_id="c")])
                == ["allow"] * 2
            )
            assert stage.actions([payment("c", 2, 40, campaign_id="c"), claim("d", 2)]) == ["deny", "allow"]
            assert found == []
    finally:
        client.execute_command("ACL", "SETUSER", "default", "+multi")
