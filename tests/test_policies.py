"""The policy by HTTP: checked, activated, rolled back, kept over restarts, and the same in every sidecar."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from servers import apart, until, valkey
from stage import policy
from test_service import JSON, Answer, Served, claim, start

from benchmarks.crowd import Told, crowd
from riskengine.engine import HASH_KEY_VARIABLE
from riskengine.policy import definition_fingerprint, load_definition
from riskengine.service import trial
from riskengine.service.access import make_key
from riskengine.service.trial import difference, wrong_name
from riskengine.stores.activations import Activations
from riskengine.stores.address import begin

SHARED = {HASH_KEY_VARIABLE: "a key of these tests"}
SOON_SECONDS = 2.0
PAUSE_SECONDS = 0.01  # of who presses a server that has a policy to try on the side
COUNTED = {"claims_1h": {"count": "coupon_claim", "by": "user", "over": "1h", "where": "amount > 1"}}


def files(level: str = "review", **sections: Any) -> dict[str, str]:
    """A policy of one live rule, which says what is done to every claim, with the test of that."""
    then = "flag" if level == "allow" else level
    rule = {"on": "coupon_claim", "when": "user_id != ''", "then": then, "mode": "live"}
    said = policy(rules={"each-claim": rule}, **sections)
    event = {"at": "0s", "type": "coupon_claim", "user_id": "u1", "expect": {"action": level}}
    tests = {"start": "2026-11-11T00:00:00+08:00", "tests": [{"name": "it acts", "events": [event]}]}
    return {"policy.yaml": f"{json.dumps(said, indent=1)}\n", "claims.test.yaml": json.dumps(tests)}


def lay_out(folder: Path, given: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in given.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def activate(server: Served, given: dict[str, str], reason: str | None = None, **headers: str) -> Answer:
    body = {"files": given, "reason": reason}
    return server.ask("POST", "/v1/policy/activate", body, {**JSON, **headers})


def served(server: Served, event_id: str = "look") -> str:
    """What is done to a claim."""
    action: str = server.score(claim(f"{event_id}{time.monotonic_ns()}")).value["action"]
    return action


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    with valkey() as url:
        yield url


def test_a_policy_is_activated_kept_and_rolled_back(tmp_path: Path) -> None:
    lay_out(tmp_path / "rules", files("allow"))
    key = make_key(tmp_path / "keys.json", "ann", ("admin",), None, 0)
    bearer = {"authorization": f"Bearer {key}"}
    server = start(tmp_path)

    def ask(method: str, path: str, body: object = None) -> Any:
        answer = server.ask(method, path, body, {**JSON, **bearer})
        assert answer.status == 200, answer.body
        return answer.value

    def action() -> str:
        found: str = ask("POST", "/v1/score", claim(f"e{time.monotonic_ns()}"))["action"]
        return found

    try:
        assert ask("GET", "/v1/policy")["activation"] is None
        server.problem(server.ask("POST", "/v1/policy/rollback", None, {**JSON, **bearer}), 409, "conflict")
        done = activate(server, files("review"), "a farm", **bearer).value
        assert (done["tests"], done["findings"]) == (1, [])
        act = done["activation"]
        assert (act["action"], act["author"], act["reason"], act["of"]) == ("activate", "ann", "a farm", None)
        assert "--- a/policy.yaml\n+++ b/policy.yaml\n" in act["difference"]
        assert '-   "then": "flag",\n+   "then": "review",\n' in act["difference"]
        assert action() == "review"
        shown = ask("GET", "/v1/policy?files=true")
        assert shown["activation"] == act
        assert shown["fingerprint"] == act["fingerprint"]
        assert shown["files"] == files("review")
        activate(server, files("deny"), **bearer)
        assert action() == "deny"
        assert server.stop() == 0

        server = start(tmp_path)  # a restart serves what was activated last, and says so
        assert any(line.startswith("ann activated this policy over HTTP") for line in server.told)
        assert action() == "deny"
        back = ask("POST", "/v1/policy/rollback", {"reason": "too hard"})
        assert (back["of"], back["reason"], action()) == (act["id"], "too hard", "review")
        assert ask("POST", "/v1/policy/rollback")["of"] is None  # and further back: the folder's
        assert action() == "allow"
        server.problem(server.ask("POST", "/v1/policy/rollback", None, {**JSON, **bearer}), 409, "conflict")
        told = ask("GET", "/v1/policy/history")["activations"]
        assert [a["action"] for a in told] == ["rollback", "rollback", "activate", "activate"]
        assert [a["time"] for a in told] == sorted((a["time"] for a in told), reverse=True)
        contract = ask("GET", "/v1/policy/contract")
        assert contract["fail"] == {"coupon_claim": "review", "payment": "review"}
    finally:
        assert server.stop() == 0


def test_what_does_not_check_or_fails_its_tests_is_not_activated(tmp_path: Path) -> None:
    lay_out(tmp_path / "rules", files("allow"))
    server = start(tmp_path, "--journal", "none")
    try:
        wrong = {**files(), "more/rules.yaml": "rules:\n  odd: {on: coupon_claim, when: scoer > 1}\n"}
        found = server.problem(activate(server, wrong), 422, "policy")["problems"]
        assert [(p["pointer"], p["code"]) for p in found] == [("/files/more~1rules.yaml", "unknown-name")]
        assert found[0]["message"].startswith("2:")
        failing = {**files("deny"), "claims.test.yaml": files("review")["claims.test.yaml"]}
        found = server.problem(activate(server, failing), 422, "policy")["problems"]
        assert (found[0]["pointer"], found[0]["code"]) == ("/files/claims.test.yaml", "rule-test")
        assert "action: expected review, found deny" in found[0]["message"]
        untested = {"policy.yaml": files()["policy.yaml"]}
        assert "no rule test" in server.problem(activate(server, untested), 422, "policy")["detail"]
        stranger = files(tenant="another")
        assert "tenant" in server.problem(activate(server, stranger), 422, "invalid")["detail"]
        outside = files(
            tables={"passwd": {"key": "user", "columns": {"x": "string"}, "from": "../../../../etc/passwd"}}
        )
        found = server.problem(activate(server, outside), 422, "policy")["problems"]
        assert [p["code"] for p in found] == ["outside"]
        assert "root:" not in json.dumps(found)
        for name in ("../x.yaml", "/etc/x.yaml", "a\\b.yaml", "", "policy.yaml/x.yaml", "./a.yaml"):
            server.problem(activate(server, {**files(), name: ""}), 422, "invalid")
        assert served(server) == "allow"
        assert server.ask("GET", "/v1/policy/history").value == {"activations": []}
        assert activate(server, files("deny")).status == 200  # kept as long as this process lives
        assert served(server) == "deny"
    finally:
        assert server.stop() == 0


def test_sighup_reads_the_folder_again(tmp_path: Path) -> None:
    rules = lay_out(tmp_path / "rules", files("allow"))
    server = start(tmp_path)
    try:
        lay_out(rules, files("review"))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: served(server) == "review", 10)
        lay_out(rules, {"policy.yaml": "policy: stage\nruels: 1\n"})
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert served(server) == "review"
        lay_out(rules, files("deny"))
        assert activate(server, files("allow")).status == 200
        assert served(server) == "allow"
        server.process.send_signal(signal.SIGHUP)  # ends what was activated, for good
        until(lambda: served(server) == "deny", 10)
        acts = server.ask("GET", "/v1/policy/history").value["activations"]
        assert [(a["action"], a["author"]) for a in acts] == [("folder", "SIGHUP"), ("activate", None)]
    finally:
        assert server.stop() == 0
    assert any("the old policy goes on serving" in line for line in server.told)
    server = start(tmp_path)
    assert served(server) == "deny"
    assert server.stop() == 0


def test_all_sidecars_on_one_store_move_together_under_load(tmp_path: Path, redis: str) -> None:
    """Within 2 s of the answer each serves the new policy, none half of it; no request fails meanwhile."""
    store = apart(redis, timeout=10_000)
    rules = lay_out(tmp_path / "rules", files("allow"))
    begin(store, load_definition(rules).tenant)
    rooms = [tmp_path / name for name in ("one", "two")]
    for room in rooms:
        room.mkdir()
    asked = ("--rules", str(rules), "--store", store)
    servers = [start(room, *asked, **SHARED) for room in rooms]
    seen: dict[str, Counter[str]] = {}
    problems: list[Answer] = []
    stop = threading.Event()

    def press(server: Served, who: int) -> None:
        i = 0
        while not stop.wait(PAUSE_SECONDS):
            answer = server.batch([claim(f"{who}-{i}-{j}") for j in range(5)])
            if answer.status != 200:
                problems.append(answer)
                continue
            for decision in answer.value:
                seen.setdefault(decision["policy"], Counter())[decision["action"]] += 1
            i += 1

    threads = [threading.Thread(target=press, args=(server, i)) for i, server in enumerate(servers * 2)]
    try:
        for thread in threads:
            thread.start()
        new = activate(servers[0], files("deny"), "in a hurry").value["activation"]
        assert served(servers[0]) == "deny"
        until(lambda: served(servers[1]) == "deny", SOON_SECONDS)
        assert servers[1].ask("GET", "/v1/policy").value["activation"] == new
        back = servers[1].ask("POST", "/v1/policy/rollback").value
        until(lambda: served(servers[0]) == "allow", SOON_SECONDS)
        histories = [server.ask("GET", "/v1/policy/history").value for server in servers]
        assert histories[0] == histories[1] == {"activations": [back, new]}
        activate(servers[1], files("review"))
        until(lambda: served(servers[0]) == "review", SOON_SECONDS)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        codes = [server.stop() for server in servers]
    assert codes == [0, 0]
    assert problems == []
    assert len(seen) == 3
    assert all(len(actions) == 1 for actions in seen.values()), seen  # a policy does one thing to all
    again = start(rooms[0], *asked, **SHARED)  # and what the store keeps outlives all sidecars
    assert served(again) == "review"
    assert again.stop() == 0


def claims() -> Iterator[bytes]:
    """Requests without end."""
    for i in count():
        body = json.dumps(claim(f"c{i}", user_id=f"u{i % 50}")).encode()
        head = "POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json"
        yield f"{head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def test_no_request_fails_while_policies_change(tmp_path: Path) -> None:
    """In one process: by HTTP, back again, and by a signal; every answer is of one policy, and whole."""
    rules = lay_out(tmp_path / "rules", files("allow"))
    server = start(tmp_path)
    asked = claims()

    def change() -> None:
        for level in ("deny", "review"):
            assert activate(server, files(level)).status == 200
            assert served(server) == level
        assert server.ask("POST", "/v1/policy/rollback").status == 200
        lay_out(rules, files("review"))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: served(server) == "review", 30)

    async def play() -> Told:
        told = Told()
        changing = asyncio.create_task(asyncio.to_thread(change))
        while not changing.done():
            told.take_in(await crowd(server.port, 16, asked, 0.2, PAUSE_SECONDS))
        await changing
        return told

    try:
        told = asyncio.run(play())
    finally:
        code = server.stop()
    assert code == 0
    assert set(told.statuses) == {200}, (told.statuses, server.told)
    assert told.degraded == 0


def test_lists_and_tables_are_in_effect_everywhere_within_a_second(tmp_path: Path, redis: str) -> None:
    store = apart(redis, timeout=10_000)
    given = files(
        "allow",
        lists={"blocked": {"of": ["device"]}},
        tables={"budgets": {"key": "campaign", "columns": {"most": "number"}}},
    )
    said = json.loads(given["policy.yaml"])
    said["rules"] = {
        "listed": {"on": "coupon_claim", "when": "listed('blocked', device)", "then": "deny", "mode": "live"},
        "spent": {"on": "coupon_claim", "when": "budgets.most < 5", "then": "review", "mode": "live"},
    }
    rules = lay_out(tmp_path / "rules", {"policy.yaml": json.dumps(said)})
    begin(store, load_definition(rules).tenant)
    key = make_key(tmp_path / "keys.json", "ann", ("admin",), None, 0)
    bearer = {"authorization": f"Bearer {key}", **JSON}
    asked = ("--rules", str(rules), "--store", store)
    servers = [start(tmp_path, *asked, **SHARED) for _ in range(2)]

    def fired(server: Served, **fields: str) -> list[str]:
        found: list[str] = server.score(
            claim(f"e{time.monotonic_ns()}", **fields), authorization=bearer["authorization"]
        ).value["fired"]
        return found

    def listed(server: Served) -> Any:
        return server.ask("GET", "/v1/lists/blocked/device/d1", None, bearer)

    try:
        one, two = servers
        assert fired(two, device_id="d1", campaign_id="c1") == []
        expires = time.time_ns() // 1_000_000 + 1_500
        entry = {"reason": "resold", "expires": expires, "author": "not me"}
        assert one.ask("PUT", "/v1/lists/blocked/device/d1", entry, bearer).status == 200
        until(lambda: fired(two, device_id="d1") == ["listed"], 1.0)
        shown = listed(two).value
        assert (shown["author"], shown["reason"], shown["expires"]) == ("ann", "resold", expires)
        assert two.ask("PUT", "/v1/tables/budgets/c1", {"most": 3}, bearer).status == 200
        until(lambda: fired(one, campaign_id="c1") == ["spent"], 1.0)
        until(lambda: fired(one, device_id="d1") == [], 3.0)  # it has expired
        assert two.ask("DELETE", "/v1/tables/budgets/c1", None, bearer).value == {"removed": True}
        until(lambda: fired(one, campaign_id="c1") == [], 1.0)
    finally:
        assert [server.stop() for server in servers] == [0, 0]


def test_what_the_store_cannot_tell_is_refused(redis: str) -> None:
    log = Activations.open(apart(redis, timeout=10_000), "t")
    log._client.xadd(log._key, {b"a": b"?"})
    with pytest.raises(Exception, match="none that this version reads"):
        log.newer()
    log.close()


def test_a_trial_that_is_left_no_core_goes_on_at_a_low_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = trial._ask

    def noted(said: bytes, priority: str, seconds: float) -> bytes:
        asked.append(priority)
        return ask(said, priority, seconds)

    monkeypatch.setattr(trial, "_ask", noted)
    given = trial.Trial(files(), str(tmp_path / "rules"), tests=True)
    outcome = trial.run(given).outcome
    assert outcome.serves
    assert (outcome.tests, outcome.failed) == (1, ())
    monkeypatch.setattr(trial, "IDLE_SECONDS_MAX", 0.01)
    assert trial.run(given).outcome == outcome
    assert asked == [trial.IDLE, trial.IDLE, trial.LOW]


def test_a_trial_hands_over_the_policy_as_it_read_it(tmp_path: Path) -> None:
    """Once it passed: the same definition, whose models are looked for beside the folder."""
    rules = str(lay_out(tmp_path / "rules", files("deny", features=COUNTED)))
    given = trial.read_folder(rules)
    tried = trial.run(trial.Trial(given, rules, tests=True))
    assert tried.definition is not None
    read = load_definition(rules)
    assert tried.definition.folder == rules
    assert definition_fingerprint(tried.definition) == definition_fingerprint(read)
    told, known = (re.sub(r"file='[^']*/", "file='", repr(each)) for each in (tried.definition, read))
    assert told == known
    assert "policy.yaml" in told
    assert trial.run(trial.Trial(given, rules)).definition is None
    failing = {name: text.replace('"action": "deny"', '"action": "review"') for name, text in given.items()}
    assert failing != given
    again = trial.run(trial.Trial(failing, rules, tests=True))
    assert (again.definition, again.outcome.ok, again.outcome.serves) == (None, True, False)


def test_differences() -> None:
    before = {"a.yaml": "x: 1\ny: 2\n", "b.csv": "1", "c.yaml": "z: 1", "d.csv": "2"}
    after = {"a.yaml": "x: 1\ny: 3\n", "b.csv": "2", "e.yaml": "w: 1\n"}
    assert difference(before, after).splitlines() == [
        "--- a/a.yaml", "+++ b/a.yaml", "@@ -1,2 +1,2 @@", " x: 1", "-y: 2", "+y: 3", "b.csv: changed",
        "--- a/c.yaml", "+++ /dev/null", "@@ -1 +0,0 @@", "-z: 1", "d.csv: removed",
        "--- /dev/null", "+++ b/e.yaml", "@@ -0,0 +1 @@", "+w: 1",
    ]  # fmt: skip
    assert difference(after, after) == ""
    assert wrong_name({"a.yaml": "", "b/c.yaml": ""}) is None
    assert wrong_name({"b": "", "b/c.yaml": ""}) == "b"
