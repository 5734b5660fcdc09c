"""The sidecar over real HTTP: a server on a free port answers, refuses, gathers, and ends in peace."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import uvloop
from stage import policy, write

from riskengine import cli
from riskengine.errors import RiskEngineError
from riskengine.fibers import pause
from riskengine.service import gathering
from riskengine.service.access import LOOK_SECONDS, NEEDED, SCOPES, make_key, revoke_key, rotate_key
from riskengine.service.bodies import read_batch, read_body
from riskengine.service.gathering import (
    FEW,
    INLINE_MAX,
    PART,
    READ_SECONDS,
    SURE_LEAST,
    FullError,
    Gatherer,
    Job,
    Outcome,
)
from riskengine.service.problems import RefusedError
from riskengine.service.settings import DEPTH_MAX, Settings

ROOT = Path(__file__).resolve().parent.parent
JSON = {"content-type": "application/json"}
POLICY = policy(
    entities={
        "user": "user_id", "device": "device_id", "campaign": "campaign_id",
        "pair": ["user_id", "device_id"],
    },
    lists={"blocked": {"of": ["device", "pair"]}},
    tables={
        "budgets": {"key": "campaign", "columns": {"most": "number", "until": "time"}},
        "makes": {"key": "device", "columns": {"make": "string"}, "from": "makes.csv"},
    },
    features={"user_claims": {"count": "coupon_claim", "by": "user", "over": "1h"}},
    limits={"one-a-device": {"count": "coupon_claim", "by": "device", "over": "1d", "max": 1}},
    rules={
        "listed-device": {
            "on": "coupon_claim", "when": "listed('blocked', device)", "then": "deny", "mode": "live"
        },
        "busy-user": {"on": "coupon_claim", "when": "user_claims > 3", "risk": 0.2, "mode": "shadow"},
    },
)  # fmt: skip
SETTINGS = {
    "RISKENGINE_DEADLINE_MS": "30000", "RISKENGINE_BODY_SECONDS": "1", "RISKENGINE_NOTICE_SECONDS": "0"
}  # fmt: skip


def claim(event_id: str, **fields: Any) -> dict[str, Any]:
    """A coupon claim of user u1, now."""
    return {"event_id": event_id, "type": "coupon_claim", "user_id": "u1", **fields}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """A sidecar in a process of its own."""

    process: subprocess.Popen[str]
    port: int
    told: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, body: object = None, headers: dict[str, str] = JSON) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, sent, headers)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())
        finally:
            connection.close()

    def score(self, event: object, query: str = "", **headers: str) -> Answer:
        return self.ask("POST", f"/v1/score{query}", event, {**JSON, **headers})

    def batch(self, events: object, **headers: str) -> Answer:
        return self.ask("POST", "/v1/score/batch", events, {**JSON, **headers})

    def problem(self, answer: Answer, status: int, kind: str) -> dict[str, Any]:
        assert answer.status == status, answer.body
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.value["type"] == f"urn:riskengine:problem:{kind}"
        assert answer.value["status"] == status
        found: dict[str, Any] = answer.value
        return found

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(by)
        assert self.process.stderr is not None
        self.told += self.process.stderr.read().splitlines()
        self.process.stderr.close()
        return self.process.wait(60)


def start(folder: Path, *arguments: str, **variables: str) -> Served:
    """Run `riskengine serve` on a free port, in `folder`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "riskengine", "serve", "--port", "0", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **SETTINGS, **variables},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    told: list[str] = []
    for line in process.stderr:
        told.append(line.rstrip())
        if found := re.search(r"serving .* at https?://127\.0\.0\.1:(\d+) ", line):
            return Served(process, int(found[1]), told)
    process.stderr.close()
    raise AssertionError((process.wait(), told))


def lay_out(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "makes.csv").write_text("key,make\nd9,nine\n", encoding="utf-8")
    return write(folder, POLICY)


@contextlib.contextmanager
def sidecar(room: Path, *arguments: str) -> Iterator[Served]:
    """A sidecar of the stage's policy, which ends in peace and has met nothing that it did not expect."""
    lay_out(room / "rules")
    served = start(room, *arguments)
    try:
        yield served
    finally:
        code = served.stop()
    assert code == 0
    assert served.told[-1].startswith("stopped: ")
    assert not [line for line in served.told if "Traceback" in line]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with sidecar(tmp_path_factory.mktemp("sidecar")) as served:
        yield served


# -- scoring


def test_an_event_is_decided(server: Served) -> None:
    answer = server.score(claim("one", device_id="one"))
    assert answer.status == 200
    assert answer.value["action"] == "allow"
    assert "features" not in answer.value
    assert re.fullmatch(r"queue;dur=[\d.]+, engine;dur=[\d.]+", answer.headers["server-timing"])
    refused = server.score(claim("one-more", device_id="one"), "?features=true")
    assert refused.value["fired"] == ["one-a-device"]
    assert refused.value["features"]["user_claims"] >= 2


def test_a_retry_has_the_same_bytes(server: Served) -> None:
    first = server.score(claim("again", user_id="again"), "?features=true")
    assert server.score(claim("again", user_id="again"), "?features=true").body == first.body
    assert "features" not in server.score(claim("again", user_id="again")).value
    changed = server.problem(server.score(claim("again", user_id="other")), 409, "conflict")
    assert changed["problems"][0]["pointer"] == "/event_id"


def test_messagepack_carries_the_same(server: Served) -> None:
    headers = {"content-type": "application/msgpack"}
    event = claim("packed", device_id="packed")
    answer = server.ask("POST", "/v1/score", msgspec.msgpack.encode(event), headers)
    assert answer.headers["content-type"] == "application/msgpack"
    assert msgspec.msgpack.decode(answer.body) == server.score(event).value
    many = server.ask("POST", "/v1/score/batch", msgspec.msgpack.encode([event, {}]), headers)
    assert [item.get("status", 200) for item in msgspec.msgpack.decode(many.body)] == [200, 422]


def test_a_poisoned_event_fails_alone(server: Served) -> None:
    sound = json.dumps(claim("sound"))
    deep = '{"a":' * (DEPTH_MAX + 1) + "1" + "}" * (DEPTH_MAX + 1)
    twice = '{"event_id":"twice","event_id":"thrice","type":"coupon_claim"}'
    body = f'[{sound}, {{"event_id":"bad","type":"payment","amount":"1"}}, 5, {twice}, {deep}, {sound}]'
    items = server.batch(body.encode()).value
    assert [item.get("status", 200) for item in items] == [200, 422, 422, 400, 400, 200]
    assert items[0] == items[5]
    assert {problem["pointer"] for problem in items[1]["problems"]} == {"/1/amount", "/1/user_id"}
    assert items[3]["problems"] == [
        {
            "pointer": "/3", "code": "duplicate-name", "expected": None, "found": None,
            "message": "an object has one name twice (event_id): which of the values is meant?",
        }
    ]  # fmt: skip
    assert server.batch([]).value == []
    server.problem(server.batch({}), 400, "malformed")
    server.problem(server.batch([{}] * 1001), 413, "too-large")


def test_many_at_once_with_one_id_count_once(server: Served) -> None:
    """200 at the same moment: identical bodies, one count, one row in the journal."""
    event = claim("swarm", user_id="swarm", device_id="swarm")
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: server.score(event), range(200)))
    assert {answer.body for answer in answers} == {answers[0].body}
    assert answers[0].value["action"] == "allow"
    after = server.score(claim("after", user_id="swarm"), "?features=true")
    assert after.value["features"]["user_claims"] == 2
    assert server.ask("GET", "/v1/decisions/swarm").value["decision"] == answers[0].value


def test_past_the_deadline_the_contract_answers(server: Served) -> None:
    events = [claim(f"late{i}", user_id="hasty") for i in range(1000)]
    hasty = server.batch(events, **{"x-deadline-ms": "1"}).value
    assert {(item["action"], *item["flags"]) for item in hasty} == {("review", "degraded:deadline")}
    decided = server.batch(events).value  # it was scored, and counted, all the same
    assert {(item["action"], *item["flags"]) for item in decided} == {("allow",)}
    assert [item["decision_id"] for item in decided] == [item["decision_id"] for item in hasty]
    for wrong in ("0", "-1", "1.5", "60001", "soon"):
        server.problem(server.score(claim("w"), **{"x-deadline-ms": wrong}), 400, "malformed")


# -- abuse


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (os.urandom(1_000_000), 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 1000 + b"1" + b"}" * 1000, 400),
        (b'{"amount": NaN}', 400),
        (b'{"amount": Infinity}', 400),
        (b'{"amount": 1e999}', 400),
        (b'{"event_id": "a", "event_id" : "b"}', 400),
        (rb'{"event_id": "\"", "event_id": "\\"}', 400),
        (rb'{"event_id": "\ud800", "type": "payment"}', 400),
        (b'{"event_id": "\xff"}', 400),
        (b"", 400),
        (b"null", 422),
        (b" " * 1_048_577, 413),
    ],
    ids=range(13),
)
def test_what_is_no_event_is_refused(server: Served, body: bytes, status: int) -> None:
    for path in ("/v1/score", "/v1/labels", "/v1/policy/check"):
        answer = server.ask("POST", path, body)
        assert answer.status in (status, 422) if path != "/v1/score" else answer.status == status, answer.body
        assert answer.headers["content-type"] == "application/problem+json"
    assert server.score(claim("calm")).status == 200


def test_a_wrong_content_type_is_told(server: Served) -> None:
    for path in ("/v1/score", "/v1/score/batch", "/v1/labels"):
        server.problem(server.ask("POST", path, b"{}", {"content-type": "text/plain"}), 415, "media-type")
    assert (
        server.ask(
            "POST", "/v1/score", claim("u8"), {"content-type": "Application/JSON; charset=utf-8"}
        ).status
        == 200
    )


def test_slow_senders_are_cut_off_and_hold_up_nobody(server: Served) -> None:
    slow = []
    for _ in range(50):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        connection.sendall(b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        connection.sendall(b"content-length: 100\r\n\r\n{")
        slow.append(connection)
    assert server.score(claim("swift")).status == 200
    for connection in slow:
        with connection:
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")


# -- follow-up, lists, tables, policy


def test_labels_and_releases(server: Served) -> None:
    server.score(claim("held", device_id="held"))
    assert server.ask("POST", "/v1/decisions/held/release").value == {"event_id": "held", "released": True}
    again = server.ask("POST", "/v1/decisions/held/release").value
    assert again["released"] is False
    assert abs(again["before"] - time.time() * 1000) < 60_000
    assert server.score(claim("next", device_id="held")).value["action"] == "allow"
    label = {"event_id": "held", "label": "fraud", "source": "a person"}
    assert server.ask("POST", "/v1/labels", label).value == {"event_id": "held", "known": True}
    server.problem(server.ask("POST", "/v1/labels", {**label, "event_id": "none"}), 404, "not-found")
    server.problem(server.ask("POST", "/v1/labels", {**label, "label": "bad"}), 422, "invalid")
    many = server.ask("POST", "/v1/labels", [label, {**label, "event_id": "none"}, 5]).value
    assert [item.get("status", 200) for item in many] == [200, 404, 422]
    assert many[1]["problems"][0]["pointer"] == "/1/event_id"
    recorded = server.ask("GET", "/v1/decisions/held").value
    assert recorded["decision"]["event_id"] == "held"
    assert recorded["labels"][0]["label"] == "fraud"
    assert recorded["event"]["device_id"].startswith("#")
    server.problem(server.ask("GET", "/v1/decisions/none"), 404, "not-found")


def test_lists_are_in_effect_at_once(server: Served) -> None:
    path = "/v1/lists/blocked/device/bad%2Fone"
    server.problem(server.ask("GET", path), 404, "not-found")
    put = server.ask("PUT", path, {"reason": "resold", "author": "ann", "expires": "2100-01-01T00:00:00Z"})
    assert put.value["expires"] == 4_102_444_800_000
    assert server.score(claim("blocked", device_id="bad/one")).value["fired"] == ["listed-device"]
    assert server.ask("GET", path).value == put.value
    assert server.ask("DELETE", path).value == {"removed": True}
    assert server.score(claim("free", device_id="bad/one")).value["action"] == "allow"
    assert server.ask("PUT", "/v1/lists/blocked/pair/u1/d1", {}).status == 200
    server.problem(server.ask("PUT", "/v1/lists/blocked/pair/u1", {}), 422, "invalid")
    server.problem(server.ask("PUT", "/v1/lists/blocked/user/u1", {}), 404, "not-found")
    server.problem(server.ask("PUT", "/v1/lists/nope/user/u1", {}), 404, "not-found")
    wrong = server.problem(server.ask("PUT", path, {"reason": 5}), 422, "invalid")
    assert wrong["problems"][0]["pointer"] == "/reason"
    server.problem(server.ask("PUT", path, {"expires": "soon"}), 422, "invalid")


def test_tables(server: Served) -> None:
    path = "/v1/tables/budgets/c1"
    server.problem(server.ask("GET", path), 404, "not-found")
    put = server.ask("PUT", path, {"most": 5, "until": "2100-01-01T00:00:00Z"})
    assert put.value == server.ask("GET", path).value == {"most": 5, "until": 4_102_444_800_000}
    assert server.ask("DELETE", path).value == {"removed": True}
    wrong = server.problem(server.ask("PUT", path, {"most": "5", "mots": 1}), 422, "invalid")
    assert {problem["pointer"] for problem in wrong["problems"]} == {"/most", "/mots"}
    assert server.ask("GET", "/v1/tables/makes/d9").value == {"make": "nine"}
    server.problem(server.ask("PUT", "/v1/tables/makes/d9", {}), 409, "conflict")
    server.problem(server.ask("DELETE", "/v1/tables/makes/d9"), 409, "conflict")
    server.problem(server.ask("GET", "/v1/tables/none/d9"), 404, "not-found")


def test_the_policy_is_shown_and_another_one_checked(server: Served) -> None:
    shown = server.ask("GET", "/v1/policy").value
    assert shown["fingerprint"] == server.score(claim("fp")).value["policy"]
    assert [rule["mode"] for rule in shown["rules"]] == ["live", "shadow"]
    good = {"policy.yaml": json.dumps(policy())}
    assert server.ask("POST", "/v1/policy/check", {"files": good}).value["ok"] is True
    bad = server.ask("POST", "/v1/policy/check", {"files": {"a/b.yaml": "policy: x\nruels: 1\n"}}).value
    assert bad["ok"] is False
    assert {finding["place"]["file"] for finding in bad["findings"]} == {"a/b.yaml"}
    for name in ("../x.yaml", "/etc/x.yaml", "a\\b.yaml", ""):
        server.problem(server.ask("POST", "/v1/policy/check", {"files": {name: ""}}), 422, "invalid")


# -- operating it


def test_it_says_how_it_fares(server: Served) -> None:
    assert server.ask("GET", "/livez").value == {"ready": True}
    assert server.ask("GET", "/readyz").value == {"ready": True}
    checks = server.ask("GET", "/readyz?verbose").value["checks"]
    assert list(checks) == ["store", "epoch", "journal", "model", "policy", "backlog"]
    server.score(claim("metered"))
    text = server.ask("GET", "/metrics").body.decode()
    assert re.search(
        r'^riskengine_decisions_total\{action="allow",type="coupon_claim"\} \d+', text, re.MULTILINE
    )
    assert 'riskengine_request_seconds_bucket{le="5e-05",route="/v1/score"}' in text
    assert "metered" not in text


def test_routes_that_are_not_there(server: Served) -> None:
    server.problem(server.ask("GET", "/v2"), 404, "not-found")
    server.problem(server.ask("GET", "/v1/score"), 405, "method")
    server.problem(server.ask("PATCH", "/v1/labels", {}), 405, "method")


def test_openapi_has_every_route_and_the_page_needs_no_network(server: Served) -> None:
    described = server.ask("GET", "/openapi.json").value
    assert described["openapi"].startswith("3.1")
    assert set(described["paths"]) == {
        "/v1/alerts",
        "/v1/score", "/v1/score/batch", "/v1/labels", "/v1/decisions/{event_id}",
        "/v1/decisions/{event_id}/release", "/v1/lists/{name}/{entity}/{value}", "/v1/paths/{path}",
        "/v1/tables/{name}/{key}", "/v1/policy", "/v1/policy/history",
        "/v1/policy/contract", "/v1/policy/check", "/v1/policy/activate",
        "/v1/policy/rollback", "/livez", "/readyz", "/metrics",
    }  # fmt: skip
    schemas = described["components"]["schemas"]
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))
    assert named <= schemas.keys()
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            for status, told in (*route["responses"].items(), ("sent", route.get("requestBody", {}))):
                for kind, content in told.get("content", {}).items():
                    if "json" in kind:  # whoever writes a client begins with an example that is right
                        place = f"{method} {path} {status}"
                        assert "example" in content, place
                        whole = {**content["schema"], "components": described["components"]}
                        jsonschema.validate(content["example"], whole)
    page = server.ask("GET", "/docs").body.decode()
    assert "<script" not in page
    assert re.findall(r"(?:src|href)='(?!openapi\.json)([^'#]*)", page) == []
    assert all(path in page for path in described["paths"])


def test_the_requests_of_the_readme(tmp_path: Path) -> None:
    """Each curl of the README, asked of a server with the shipped policy, is answered as it is shown."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```bash\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    first, *asked = block.strip().split("\n\n", 1)[0].splitlines() + block.split("\ncurl ")[1:]
    assert shlex.split(first)[:2] == ["riskengine", "serve"]
    server = start(tmp_path, "--rules", str(ROOT / "rules"))
    try:
        for step in asked:
            command, _, shown = step.partition("\n#> ")
            answer = _curl(server, shlex.split(command))
            parts = [re.escape(part) for part in shown.strip().split("...")]
            assert re.fullmatch(".*".join(parts), answer.body.decode()), answer.body
        (program,) = re.findall(r"^```py\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(program.replace("localhost:8080", f"127.0.0.1:{server.port}"), {"__name__": "readme"})
        assert printed.getvalue().splitlines() == re.findall(r"^#> (.*)$", program, flags=re.MULTILINE)
    finally:
        assert server.stop() == 0


def _curl(server: Served, words: list[str]) -> Answer:
    """Do what a curl command says."""
    method, path, body, headers = "GET", "", None, {}
    while words:
        word = words.pop(0)
        if word == "-X":
            method = words.pop(0)
        elif word == "-H":
            name, _, value = words.pop(0).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = words.pop(0).encode()
            method = "POST" if method == "GET" else method
        else:
            assert word.startswith("localhost:8080/"), word
            path = word.removeprefix("localhost:8080")
    return server.ask(method, path, body, headers)


# -- keys


def test_a_first_key_asks_for_a_restart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A sidecar that began without any key goes on without: a later key changes nothing of that."""
    make = ["keys", "make", "shop", "--scope", "score", "--file", str(tmp_path / "keys.json")]
    assert cli.run(make) == 0
    assert "one that began without any is open to all until you restart it" in capfd.readouterr().err
    assert cli.run(make) == 0
    assert capfd.readouterr().err.endswith("A sidecar with keys takes it in within a second\n")


def test_a_file_of_keys_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "no" / "keys.json"
    with pytest.raises(RiskEngineError, match=f"^{nowhere} cannot be written: there is no folder"):
        make_key(nowhere, "shop", ("score",), None, 0)

    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "keys.json.part")

    file = tmp_path / "keys.json"
    for call in ("open", "replace"):  # root may write everywhere
        with monkeypatch.context() as patch:
            patch.setattr(os, call, denied)
            with pytest.raises(RiskEngineError, match=f"^{file} cannot be written: Permission denied"):
                make_key(file, "shop", ("score",), None, 0)
    assert not list(tmp_path.iterdir())


def test_every_route_asks_for_its_scope(tmp_path: Path) -> None:
    """Route by scope, and with no key: 401 and 403 where due. Revoked and rotated keys end while it runs."""
    lay_out(tmp_path / "rules")
    file = tmp_path / "keys.json"
    keys = {scope: make_key(file, scope, (scope,), None, 0) for scope in SCOPES}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not [key for key in keys.values() if key.split("_")[2] in file.read_text(encoding="utf-8")]
    rated = make_key(file, "rated", ("read",), 3, 0)
    server = start(tmp_path, "--journal", "none")
    try:

        def status(method: str, path: str, key: str | None) -> int:
            headers = JSON if key is None else {**JSON, "authorization": f"Bearer {key}"}
            return server.ask(method, path, None if method == "GET" else {}, headers).status

        described = server.ask("GET", "/openapi.json").value["paths"]
        routes = {(method.upper(), path) for path, methods in described.items() for method in methods}
        assert routes == set(NEEDED) - {("GET", "/openapi.json"), ("GET", "/docs")}
        for method, path in NEEDED:
            needed = NEEDED[method, path]
            real = path.format(event_id="e/1", name="none", entity="user", value="u", key="k", path="p")
            if needed is None:
                assert status(method, real, None) == 200
                continue
            assert status(method, real, None) == 401
            for scope, key in keys.items():
                assert (status(method, real, key) == 403) is (scope not in (needed, "admin")), (path, scope)
        assert status("GET", "/v1/unknown", None) == 401
        for wrong in (keys["read"][:-1], "rk_00000000_x", "x", "rk__", keys["read"].replace("rk", "kr")):
            assert status("GET", "/v1/policy", wrong) == 401
        bearer = {"authorization": f"Bearer {keys['lists']}", **JSON}
        assert server.ask("PUT", "/v1/lists/blocked/device/d1", {}, bearer).value["author"] == "lists"

        answers = [
            server.ask("GET", "/v1/policy", None, {"authorization": f"Bearer {rated}"}) for _ in range(20)
        ]
        first, last = answers[0], next(answer for answer in answers if answer.status != 200)
        assert (first.headers["ratelimit-policy"], first.headers["ratelimit"]) == (
            '"key";q=3;w=1',
            '"key";r=2;t=1',
        )
        server.problem(last, 429, "rate")
        assert last.headers["retry-after"] == "1"

        renewed = rotate_key(file, keys["read"].split("_")[1], 0)
        revoke_key(file, keys["admin"].split("_")[1])
        time.sleep(2 * LOOK_SECONDS)
        found = [status("GET", "/v1/policy", key) for key in (renewed, keys["read"], keys["admin"])]
        assert found == [200, 401, 401]
    finally:
        assert server.stop() == 0


def test_keys_are_made_listed_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def told(*arguments: str, code: int = 0) -> str:
        assert cli.run(("keys", *arguments)) == code
        sys.stdout.flush()
        found = capfd.readouterr()
        return found.err if code else found.out

    assert "there is no scope 'scroe'" in told("make", "shop", "--scope", "scroe", code=2)
    key = told("make", "shop", "--scope", "score", "--scope", "label", "--per-second", "9").strip()
    key_id = key.split("_")[1]
    assert told("list").split() == [key_id, "shop", "score,label", "9/s"]
    assert json.loads(told("list", "--json"))[0]["scopes"] == ["score", "label"]
    assert told("rotate", key_id).strip() != key
    told("revoke", key_id)
    assert told("list") == ""
    assert f"no key '{key_id}': there are: none" in told("revoke", key_id, code=2)
    Path("keys.json").write_text("x", encoding="utf-8")
    assert "no file of API keys" in told("list", code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]


# -- its parts


class Waited(Job):
    """A job that somebody awaits."""

    __slots__ = ("done",)

    @classmethod
    def submit(
        cls, gatherer: Gatherer, events: list[Any], features: bool = False, seconds: float = 60
    ) -> Waited:
        loop = asyncio.get_running_loop()
        job = cls(events, features, loop.time() + seconds)
        job.done = loop.create_future()
        gatherer.submit(job)
        return job

    done: asyncio.Future[Outcome]

    def finish(self, outcome: Outcome, seconds: float) -> None:
        if isinstance(outcome, Exception):
            self.done.set_exception(outcome)
        else:
            self.done.set_result(outcome)


def test_what_waits_is_bounded_and_comes_out_in_batches() -> None:
    """While the engine is at work, what comes is gathered; past the bound it is refused at once."""
    at_work, go_on = threading.Event(), threading.Event()
    batches: list[int] = []

    def score(events: list[Any], features: bool) -> list[Any]:
        batches.append(len(events))
        at_work.set()
        assert go_on.wait(60)
        return [(event, features) for event in events]

    async def play() -> None:
        gatherer = Gatherer(score, 5, lambda n, seconds: None, lambda: True)
        with pytest.raises(FullError):
            Waited.submit(gatherer, [0])
        gatherer.start()
        jobs = [Waited.submit(gatherer, [0])]
        await asyncio.to_thread(at_work.wait)
        jobs += [Waited.submit(gatherer, [1]), Waited.submit(gatherer, [2, 3])]
        jobs += [Waited.submit(gatherer, [4], True)]
        with pytest.raises(FullError):
            Waited.submit(gatherer, [5])
        go_on.set()
        results: list[Any] = [await job.done for job in jobs]
        assert results == [[(0, False)], [(1, False)], [(2, False), (3, False)], [(4, True)]]
        assert batches == [1, 3, 1]
        assert gatherer.held == 0
        await gatherer.close()
        with pytest.raises(FullError):
            Waited.submit(gatherer, [6])

    asyncio.run(play())


@pytest.mark.parametrize("waits", [False, True])
def test_a_batch_that_fails_is_taken_apart(waits: bool) -> None:
    def score(events: list[Any], features: bool) -> list[Any]:
        if "poison" in events:
            raise ValueError(events)
        return events

    async def play() -> None:
        gatherer = Gatherer(score, 100, lambda n, seconds: None, lambda: waits)
        gatherer.start()
        jobs = [Waited.submit(gatherer, [name]) for name in ("a", "poison", "b")]
        outcomes: list[Any] = await asyncio.gather(*(job.done for job in jobs), return_exceptions=True)
        assert [outcome for outcome in outcomes if not isinstance(outcome, ValueError)] == [["a"], ["b"]]
        await gatherer.close()

    asyncio.run(play())


def test_the_loop_scores_small_batches_itself_where_nothing_is_waited_for() -> None:
    here = threading.current_thread()
    scored: list[tuple[int, bool]] = []
    waits = False

    def score(events: list[Any], features: bool) -> list[Any]:
        scored.append((len(events), threading.current_thread() is here))
        return events

    async def play() -> None:
        nonlocal waits
        gatherer = Gatherer(score, 4 * INLINE_MAX, lambda n, seconds: None, lambda: waits)
        gatherer.start()
        for events in ([0] * INLINE_MAX, [0] * (INLINE_MAX + 1)):
            await Waited.submit(gatherer, events).done
        jobs = [Waited.submit(gatherer, [0] * (INLINE_MAX // 2)) for _ in range(3)]
        await asyncio.gather(*(job.done for job in jobs))
        waits = True
        await Waited.submit(gatherer, [0]).done
        await gatherer.close()

    asyncio.run(play())
    assert scored == [
        (INLINE_MAX, True), (INLINE_MAX + 1, False), (INLINE_MAX, True), (INLINE_MAX // 2, True), (1, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("jobs", "doors", "sizes", "beside"),
    [
        (1, 2, [1], 1),
        (PART + 2, 2, [PART, 2], 1),  # too few to be worth it
        (2 * PART, 2, [PART, PART], 2),
        (4 * PART, 2, [2 * PART, 2 * PART], 2),
        (4 * PART, 3, [22, 21, 21], 3),
        (3 * INLINE_MAX, 2, [INLINE_MAX, INLINE_MAX, INLINE_MAX // 2, INLINE_MAX // 2], 2),
    ],
)
def test_fibers_share_what_waits(
    jobs: int, doors: int, sizes: list[int], beside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every door has its part under way before any is done with one, where there is enough."""
    monkeypatch.setattr(gathering, "HOLD_SECONDS", 60)
    scored: list[int] = []
    most = 0
    under_way = 0

    def score(events: list[Any], features: bool) -> list[Any]:
        nonlocal most, under_way
        scored.append(len(events))
        under_way += 1
        most = max(most, under_way)
        pause(0.05)
        under_way -= 1
        return events

    async def play() -> None:
        gatherer = Gatherer(score, 1000, lambda n, seconds: None, lambda: True, doors, lambda: True)
        gatherer.start()
        waited = [Waited.submit(gatherer, [i]) for i in range(jobs)]
        assert [await job.done for job in waited] == [[i] for i in range(jobs)]
        await gatherer.close()

    asyncio.run(play())
    assert scored == sizes
    assert most == beside


def test_as_few_as_are_under_way_are_a_batch_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two callers none waits for the other."""
    monkeypatch.setattr(gathering, "HOLD_SECONDS", 60)
    scored: list[list[int]] = []

    def score(events: list[Any], features: bool) -> list[Any]:
        scored.append(events)
        pause(0.3)
        return events

    async def play() -> None:
        gatherer = Gatherer(score, 1000, lambda n, seconds: None, lambda: True, 3, lambda: True)
        gatherer.start()
        first = [Waited.submit(gatherer, [i]) for i in range(2)]
        await asyncio.sleep(0.01)
        later = [Waited.submit(gatherer, [2])]
        await asyncio.sleep(0.01)
        assert scored == [[0, 1]]
        later.append(Waited.submit(gatherer, [3]))
        await asyncio.sleep(0.01)
        assert scored == [[0, 1], [2, 3]]
        for job in first + later:
            await job.done
        await gatherer.close()

    asyncio.run(play())


def test_few_wait_for_no_batch_that_stands_still() -> None:
    """Another door may do better."""

    def score(events: list[Any], features: bool) -> list[Any]:
        pause(0.5 if len(events) > 1 else 0.0)
        return events

    async def play() -> None:
        gatherer = Gatherer(score, 1000, lambda n, seconds: None, lambda: True, 3, lambda: True)
        gatherer.start()
        slow = [Waited.submit(gatherer, [i]) for i in range(PART)]
        await asyncio.sleep(0.01)
        assert await Waited.submit(gatherer, [PART]).done == [PART]
        assert not any(job.done.done() for job in slow)
        assert [await job.done for job in slow] == [[i] for i in range(PART)]
        await gatherer.close()

    asyncio.run(play())


def test_a_job_past_its_deadline_is_told_so_and_scored_all_the_same() -> None:
    go_on = threading.Event()
    scored: list[int] = []

    def score(events: list[Any], features: bool) -> list[Any]:
        assert go_on.wait(60)
        scored.extend(events)
        return events

    async def play() -> None:
        gatherer = Gatherer(score, 100, lambda n, seconds: None, lambda: True)
        gatherer.start()
        began = time.monotonic()
        late = [Waited.submit(gatherer, [i], seconds=0.05 * i) for i in (2, 1)]
        patient = Waited.submit(gatherer, [3])
        assert all(began < job.due < job.until for job in late)  # to be answered by then takes a moment too
        assert [await job.done for job in late] == [None, None]
        assert 0.09 < time.monotonic() - began < 5
        go_on.set()
        results: Any = await patient.done
        assert results == [3]
        assert scored == [2, 1, 3]
        await gatherer.close()

    asyncio.run(play())


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_job_that_is_due_at_once_stands_in_nobodys_way(new_loop: Callable[[], Any]) -> None:
    """uvloop has no timer for what is due within half a millisecond, but a handle that knows no time."""

    def score(events: list[Any], features: bool) -> list[Any]:
        return events

    async def play() -> None:
        gatherer = Gatherer(score, 100, lambda n, seconds: None, lambda: False)
        gatherer.start()
        jobs = [Waited.submit(gatherer, [i], seconds=seconds) for i, seconds in enumerate((60, 0.0001, 60))]
        outcomes: list[Any] = [await job.done for job in jobs]
        assert [outcomes[0], outcomes[2]] == [[0], [2]]
        assert outcomes[1] in (None, [1])
        await gatherer.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(play())


def test_what_waits_in_sockets_counts_where_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read may have come since the loop last looked, or since its caller was answered."""
    monkeypatch.setattr(gathering, "READ_SECONDS", 60)  # whatever else this machine does
    monkeypatch.setattr(gathering, "PAUSE_SECONDS", 0.5)

    def score(events: list[Any], features: bool) -> list[Any]:
        time.sleep(0.02)
        return events

    async def play() -> None:
        gatherer = Gatherer(score, 10_000, lambda n, seconds: None, lambda: False)
        gatherer.start()
        first = time.monotonic()
        assert gatherer.came(first, 0.0, 60) == first
        assert gatherer.came(time.monotonic(), 0.0, 60) == first  # of the same look
        jobs = [Waited.submit(gatherer, [i]) for i in range(FEW + 1)]
        assert gatherer.came(time.monotonic(), 0.0, 60) == first
        await jobs[0].done
        second = time.monotonic()
        assert gatherer.came(second, 0.0, 60) == first
        assert gatherer.came(second, 0.0, 0.01) == second - 0.01
        assert gatherer.came(second, first + 0.01, 60) == first + 0.01
        with pytest.raises(FullError):  # what has waited for so long could not be done any more
            gatherer.check(100, first + 0.01)
        for job in jobs:
            await job.done
        refused = 0
        while refused < 100:  # not for ever, where nothing is held: it may not take so long any more
            gatherer.came(time.monotonic(), 0.0, 60)
            try:
                gatherer.check(1000, time.monotonic() + 0.01)
                break
            except FullError:
                refused += 1
        assert 1 < refused < 50
        await asyncio.sleep(1)
        third = time.monotonic()
        assert gatherer.came(third, 0.0, 60) == third  # there was nothing to do: it has just come
        await gatherer.close()

    asyncio.run(play())


def test_less_is_let_in_after_answers_that_came_late() -> None:
    """How long a queue takes is a guess: where it was wrong, the next ones are shorter, and grow again."""
    go_on = threading.Event()

    def score(events: list[Any], features: bool) -> list[Any]:
        assert go_on.wait(60)
        return events

    async def play() -> None:
        gatherer = Gatherer(score, 10_000, lambda n, seconds: None, lambda: True)
        gatherer.start()
        before = gatherer.sure
        waiting = [Waited.submit(gatherer, [i]) for i in range(FEW + 1)]
        late = [Waited.submit(gatherer, [i], seconds=0.01) for i in range(3)]
        assert [await job.done for job in late] == [None] * 3
        go_on.set()
        for job in waiting:
            await job.done
        while gatherer.held:
            await asyncio.sleep(0.01)
        lower = gatherer.sure
        assert SURE_LEAST < lower < before
        for i in range(100):
            await Waited.submit(gatherer, [i]).done
        assert lower < gatherer.sure <= before
        await gatherer.close()

    asyncio.run(play())


def test_of_thousands_at_once_the_first_wait_for_no_last() -> None:
    async def play() -> None:
        gatherer = Gatherer(lambda events, features: events, 10_000, lambda n, seconds: None, lambda: False)
        gatherer.start()
        jobs = [Waited.submit(gatherer, [i]) for i in range(2 * INLINE_MAX)]
        time.sleep(2 * READ_SECONDS)
        jobs.append(Waited.submit(gatherer, [2 * INLINE_MAX]))
        assert all(job.done.done() for job in jobs[:INLINE_MAX])  # before the loop goes on
        results: list[Any] = [await job.done for job in jobs]
        assert results == [[i] for i in range(2 * INLINE_MAX + 1)]
        assert gatherer.held == 0
        await Waited.submit(gatherer, [0]).done
        await gatherer.close()

    asyncio.run(play())


def test_names_twice_are_found_whatever_the_quotes() -> None:
    assert read_body(rb'{"a": "\"", "b\"": {"a": ["x", {"a": 1}]}}') == {
        "a": '"',
        'b"': {"a": ["x", {"a": 1}]},
    }
    for text in (b'{"a":1,"a":1}', rb'{"a":"\"\"", "b":{"c":1,"c":2}}', rb'{"a":1,"\u0061":2}'):
        with pytest.raises(RefusedError, match="twice"):
            read_body(text)
    events, poisoned = read_batch(b'[{"a":1},{"a":1,"a":2}]', "json")
    assert (len(events), list(poisoned)) == (2, [1])


def test_settings_come_from_flags_then_variables() -> None:
    variables = {"RISKENGINE_PORT": "9000", "RISKENGINE_HOST": "::1", "RISKENGINE_JOURNAL": "none"}
    settings = Settings.read(variables, port=9001, host=None)
    assert (settings.port, settings.host, settings.journal_url) == (9001, "::1", None)
    assert settings.on_loopback
    assert not Settings(host="0.0.0.0").on_loopback
    for wrong in ({"RISKENGINE_PORT": "x"}, {"RISKENGINE_PORT": "70000"}, {"RISKENGINE_QUEUE_EVENTS": "0"}):
        with pytest.raises(RiskEngineError):
            Settings.read(wrong)


def test_the_library_does_not_import_the_service() -> None:
    program = (
        "import sys, riskengine\nfrom riskengine import cli, Engine\n"
        "assert not {'fastapi', 'starlette', 'uvicorn', 'prometheus_client', 'pydantic'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0


def test_what_was_acknowledged_is_journaled_when_it_is_stopped(tmp_path: Path) -> None:
    """Ctrl-C under load: every answer of 200 is in the journal."""
    from riskengine.journal import Journal

    lay_out(tmp_path / "rules")
    server = start(tmp_path)
    acknowledged: list[str] = []

    def press(who: int) -> None:
        for i in range(10_000):
            try:
                answer = server.score(claim(f"{who}-{i}"))
            except (OSError, http.client.HTTPException):  # it takes no more
                return
            if answer.status == 200:
                acknowledged.append(answer.value["event_id"])

    with ThreadPoolExecutor(4) as pool:
        for who in range(4):
            pool.submit(press, who)
        while len(acknowledged) < 40:
            time.sleep(0.01)
        assert server.stop(signal.SIGINT) == 0
    assert server.told[-1].startswith("stopped: ")
    with Journal.open(f"sqlite:///{tmp_path / 'journal.db'}", create=False) as journal:
        assert [event_id for event_id in acknowledged if journal.decision(event_id) is None] == []


# -- life


def test_it_gives_notice_before_it_stops(tmp_path: Path) -> None:
    """SIGTERM: /readyz says 503 while everything is still answered; what is under way at the end is too."""
    lay_out(tmp_path / "rules")
    server = start(tmp_path, RISKENGINE_NOTICE_SECONDS="1", RISKENGINE_BODY_SECONDS="10")
    slow = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    event = json.dumps(claim("under-way")).encode()
    slow.sendall(b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
    slow.sendall(b"content-length: %d\r\n\r\n%b" % (len(event), event[:9]))
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    told = server.ask("GET", "/readyz?verbose")
    stopping = server.problem(told, 503, "not-ready")
    assert [problem["code"] for problem in stopping["problems"]] == ["process"]
    assert stopping["checks"]["process"] == "stopping"
    assert "checks" not in server.ask("GET", "/readyz").value
    assert server.score(claim("in-time")).status == 200
    while time.monotonic() - began < 30:
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
        except OSError:
            break
    assert time.monotonic() - began >= 1.0
    slow.sendall(event[9:])
    with slow:
        assert slow.recv(65_536).startswith(b"HTTP/1.1 200 ")
    assert server.stop() == 0
    assert time.monotonic() - began < 20


def test_tls(tmp_path: Path) -> None:
    lay_out(tmp_path / "rules")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(ROOT / "tests" / "tls" / "cert.pem", cert)
    shutil.copy(ROOT / "tests" / "tls" / "key.pem", key)
    server = start(tmp_path, "--tls-cert", str(cert), "--tls-key", str(key), "--journal", "none")
    try:
        trusted = ssl.create_default_context(cafile=cert)
        connection = http.client.HTTPSConnection("localhost", server.port, timeout=60, context=trusted)
        connection.request("POST", "/v1/score", json.dumps(claim("sealed")), JSON)
        assert connection.getresponse().status == 200
        connection.close()
        with pytest.raises((OSError, http.client.HTTPException)):
            server.ask("GET", "/livez")
    finally:
        assert server.stop() == 0


def test_what_cannot_be_served_is_told_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cert.pem").write_text("x", encoding="utf-8")
    for arguments, said in (
        (("--host", "0.0.0.0"), "0.0.0.0 can be reached from other machines, and keys.json has no API keys"),
        (("--tls-cert", "cert.pem"), "TLS takes both"),
        (("--tls-cert", "none.pem", "--tls-key", "cert.pem"), "none.pem cannot be read"),
        (("--tls-cert", "cert.pem", "--tls-key", "cert.pem"), "no certificate with its key"),
        (("--workers", "2"), "2 workers cannot share the store memory://"),
    ):
        assert cli.run(("serve", "--port", "0", *arguments)) == 2
        assert said in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["cert.pem"]
