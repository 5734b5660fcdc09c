"""Retries, follow-ups and releases over HTTP, on both stores: one count, one row, the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from servers import running
from stage import policy, write
from test_service import Served, claim, start
from test_survival import journaled

from riskengine import cli

POLICY = policy(
    events={
        "coupon_claim": {"required": ["user_id"], "fail": "review", "fields": {"captcha_passed": "bool"}},
    },
    features={"user_claims": {"count": "coupon_claim", "by": "user", "over": "1h"}},
    limits={
        "one-a-device": {"count": "coupon_claim", "by": "device", "over": "1d", "max": 1, "then": "deny"}
    },
    rules={
        "doubt": {
            "on": "coupon_claim",
            "when": "user_id == 'doubtful' and not default(captcha_passed, false)",
            "then": "challenge",
            "challenge": "captcha",
            "mode": "live",
        }
    },
)


SENT: set[str] = set()  # events, to the sidecar at hand


@pytest.fixture(params=["memory", "redis"], scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A sidecar whose journal has each event once at its end."""
    SENT.clear()
    room = tmp_path_factory.mktemp(request.param)
    rules = write(room / "rules", POLICY)
    with running() as redis:
        store = "memory://"
        if request.param == "redis":
            store = f"{redis.url}?timeout=20000"
            assert cli.run(("store", "init", "--store", store, "--rules", str(rules))) == 0
        served = start(room, "--store", store, RISKENGINE_HASH_KEY="a key of these tests")
        try:
            yield served
        finally:
            assert served.stop() == 0
    rows = journaled(room)
    assert rows.keys() == SENT
    assert {len(found) for found in rows.values()} == {1}


def score(server: Served, event_id: str, user: str, **fields: Any) -> dict[str, Any]:
    SENT.add(event_id)
    answer = server.score(claim(event_id, user_id=user, **fields), "?features=true")
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.value
    return found


def test_two_hundred_at_once_with_one_id_are_one(server: Served) -> None:
    event = claim("swarm", user_id="swarm", device_id="swarm")
    SENT.add("swarm")
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: server.score(event), range(200)))
    assert {(answer.status, answer.body) for answer in answers} == {(200, answers[0].body)}
    assert answers[0].value["action"] == "allow"
    after = score(server, "after", "swarm", device_id="swarm")
    assert (after["features"]["user_claims"], after["action"]) == (2, "deny")


def test_a_challenge_is_settled_by_what_follows_it(server: Served) -> None:
    first = score(server, "first", "doubtful", device_id="d1")
    assert (first["action"], first["challenge"], first["flags"]) == ("challenge", "captcha", [])
    assert score(server, "other", "another", device_id="d1")["action"] == "deny", "it is held for the first"
    settled = {"device_id": "d1", "follows": "first", "captcha_passed": True}
    second = score(server, "second", "doubtful", **settled)
    assert (second["action"], second["fired"], second["flags"]) == ("allow", [], []), "it takes that over"
    assert second["features"]["user_claims"] == 1, "and moves nothing"
    assert score(server, "second", "doubtful", **settled) == second
    assert score(server, "first", "doubtful", device_id="d1") == first
    assert server.ask("POST", "/v1/decisions/first/release").value["released"] is False, (
        "it holds nothing now"
    )
    third = score(server, "third", "another", device_id="d1", follows="second", captcha_passed=True)
    assert third["action"] == "allow"
    for released in (True, False):
        answer = server.ask("POST", "/v1/decisions/third/release").value
        assert (answer["released"], "before" in answer) == (released, not released)
    assert score(server, "next", "another", device_id="d1")["action"] == "allow"
    assert score(server, "lost", "another", follows="nobody")["flags"] == ["follows:unknown"]
