"""What operators see: logs with ids and nobody's data, answers with ids, the units of the README."""

from __future__ import annotations

import configparser
import json
import logging
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import stage
from servers import apart, running, until
from stage import Stage
from test_policies import SHARED, activate, files, lay_out
from test_service import JSON, ROOT, Served, claim, start

from riskengine.engine import HASH_KEY_VARIABLE, Engine
from riskengine.policy import load_definition
from riskengine.service import metrics
from riskengine.service.logs import SCORING, RequestLog, request_id
from riskengine.service.server import LOOK_SECONDS
from riskengine.stores.address import begin

MARK = "geheim"  # in every value that a person could be known by


def logged(server: Served) -> list[dict[str, Any]]:
    """What a sidecar that has stopped said, once every line of it is JSON."""
    return [json.loads(line) for line in server.told]


def test_logs_are_json_with_ids_and_hold_nobodys_data(tmp_path: Path) -> None:
    """Every way in is driven with marked values, in order and out of it: no log, metric or error has them."""
    given = files(
        "review",
        lists={"blocked": {"of": ["user", "device"]}},
        tables={"budgets": {"key": "campaign", "columns": {"most": "number", "note": "string"}}},
    )
    lay_out(tmp_path / "rules", given)
    server = start(tmp_path, "--log", "json", RISKENGINE_LOG_REQUESTS="1")
    told: list[bytes] = []
    ours = {**JSON, "x-request-id": "req-1.a"}

    def ask(method: str, path: str, body: object = None, headers: dict[str, str] = JSON) -> None:
        answer = server.ask(method, path, body, headers)
        assert answer.headers["x-request-id"]
        if answer.status >= 400 or path == "/metrics":
            told.append(answer.body)

    event = claim(f"e-{MARK}", user_id=MARK, device_id=MARK, ip=MARK, phone=MARK, campaign_id=MARK, note=MARK)
    sound = {**claim(f"f-{MARK}"), "user_id": MARK, "device_id": MARK, "campaign_id": MARK}
    try:
        ask("POST", "/v1/score", event)
        ask("POST", "/v1/score", sound)
        ask("POST", "/v1/score", {**sound, "user_id": f"{MARK}2"})
        ask("POST", "/v1/score", {"type": "unheard", "event_id": MARK, MARK: {MARK: MARK}})
        ask("POST", "/v1/score/batch", [event, sound, MARK, {MARK: MARK}])
        ask("POST", "/v1/score", f'{{"event_id": "{MARK}"'.encode())
        ask("POST", f"/v1/decisions/f-{MARK}/release")
        ask("GET", f"/v1/decisions/{MARK}")
        ask("POST", "/v1/labels", {"event_id": f"f-{MARK}", "label": "fraud", "source": MARK})
        ask("POST", "/v1/labels", {"event_id": MARK, "label": "bad"})
        for method in ("PUT", "GET", "DELETE"):
            body = {"reason": MARK, "author": MARK} if method == "PUT" else None
            ask(method, f"/v1/lists/blocked/device/{MARK}", body)
            ask(method, f"/v1/lists/{MARK}-x/{MARK}-y/{MARK}", body)
            row = {"most": 1, "note": MARK} if method == "PUT" else None
            ask(method, f"/v1/tables/budgets/{MARK}", row)
            ask(method, f"/v1/tables/{MARK}-x/{MARK}", row)
        ask("PUT", f"/v1/lists/blocked/device/{MARK}", {"expires": MARK})
        ask("PUT", f"/v1/tables/budgets/{MARK}", {"most": MARK})
        ask("GET", f"/{MARK}?{MARK}={MARK}")
        ask("POST", f"/v1/score?features={MARK}", event)
        ask("GET", "/v1/policy", None, {"authorization": f"Bearer {MARK}", "cookie": MARK})
        assert activate(server, files("deny"), MARK).status == 200
        ask("POST", "/v1/policy/rollback", {"reason": MARK})
        assert server.ask("GET", "/livez", None, ours).headers["x-request-id"] == "req-1.a"
        assert server.score(sound, **{"x-request-id": "req-2.b"}).headers["x-request-id"] == "req-2.b"
        for wrong in ("a b", "x" * 65, "\xfc"):
            assert server.score(sound, **{"x-request-id": wrong}).headers["x-request-id"] != wrong
        ask("GET", "/metrics")
    finally:
        assert server.stop() == 0
    records = logged(server)
    assert MARK not in "\n".join(server.told)
    found = [body for body in told if MARK.encode() in body]
    assert found == []
    assert {record["level"] for record in records} == {"info"}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", record["time"]) for record in records)
    requests = [record for record in records if record["message"] == "request"]
    by_id = {record["request_id"]: record for record in requests}
    assert len(by_id) == len(requests)
    assert (by_id["req-1.a"]["route"], by_id["req-1.a"]["status"]) == ("/livez", 200)
    assert (by_id["req-2.b"]["method"], by_id["req-2.b"]["route"]) == ("POST", "/v1/score")
    assert "/v1/lists/{name}/{entity}/{value}" in {record["route"] for record in requests}
    assert records[0]["message"].startswith("serving stage at http://")


def test_a_store_that_is_away_is_told_and_leaves_it_ready(tmp_path: Path) -> None:
    rules = lay_out(tmp_path / "rules", files("allow"))
    with running() as redis:
        store = apart(redis.url, timeout=2_000)
        begin(store, load_definition(rules).tenant)
        server = start(tmp_path, "--store", store, **SHARED)
        try:
            checks = server.ask("GET", "/readyz?verbose").value["checks"]
            assert re.fullmatch(r"redis, [\d,]+ entities", checks["store"])
            assert re.fullmatch(r"[0-9a-f]{4}", checks["epoch"])
            redis.kill()
            decision = server.score(claim("alone")).value
            assert (decision["action"], decision["flags"]) == ("review", ["degraded:store"])
            ready = server.ask("GET", "/readyz?verbose")
            assert (ready.status, ready.value["checks"]["store"]) == (200, "redis, degraded: away")
            text = server.ask("GET", "/metrics").body.decode()
            assert 'riskengine_degraded_total{kind="store"} 1.0' in text
            assert re.search(r'riskengine_store_errors_total\{kind="away"\} \d', text)
            assert "riskengine_store_up 0.0" in text
            server.problem(server.ask("PUT", "/v1/tables/none/x", {}), 404, "not-found")
            redis.start()  # empty: another life of the data, which is told and not taken for the old one
            until(
                lambda: server.ask("GET", "/readyz?verbose").value["checks"]["epoch"].startswith("missing"),
                20,
            )
            epoch = begin(store, load_definition(rules).tenant).epoch.decode()
            checks = server.ask("GET", "/readyz?verbose").value["checks"]  # no event has come since
            assert checks["epoch"] == epoch
        finally:
            assert server.stop() == 0


def test_what_a_store_missed_is_counted_though_nobody_asks_any_more(tmp_path: Path) -> None:
    counted = {"n": {"count": "coupon_claim", "by": "user", "over": "1h"}}
    rules = lay_out(tmp_path / "rules", files("allow", features=counted))
    with running(appendonly="yes", appendfsync="always") as redis:
        store = apart(redis.url, timeout=2_000)
        begin(store, load_definition(rules).tenant)
        server = start(tmp_path, "--store", store, **SHARED)
        try:
            redis.kill()
            decision = server.score(claim("alone"), **{"x-deadline-ms": "10000"}).value
            assert decision["flags"] == ["degraded:store"]
            redis.start()
            with Engine.open(rules, store=store, key=SHARED[HASH_KEY_VARIABLE].encode()) as engine:
                until(lambda: engine.look("user", [claim("alone")["user_id"]]).features == {"n": 1})
            time.sleep(3 * LOOK_SECONDS)
        finally:
            assert server.stop() == 0
    told = [line for line in server.told if line.startswith("warning: the store")]
    assert told == [
        "warning: the store fails (away): events are decided by the fail of their type; see /readyz?verbose",
        "warning: the store answers again, and has been told what it missed",
    ]


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def test_requests_that_are_told() -> None:
    log = RequestLog(False)
    logger = logging.getLogger("riskengine.requests")
    kept = Kept()
    logger.addHandler(kept)
    logger.setLevel(logging.INFO)
    try:
        log.tell("POST", SCORING[0], 200, 0.1, b"a", None)
        log.tell("GET", "/v1/policy", 404, 0.1, b"b", None)
        log.tell("PUT", "/v1/tables/{name}/{key}", 200, 0.0015, b"c", "ann")
        for _ in range(100):  # a storm is told in a line a second
            log.tell("POST", SCORING[0], 503, 0.1, b"d", None)
        log.tell("POST", SCORING[0], 500, 0.1, b"e", None)
    finally:
        logger.removeHandler(kept)
    found = [(r.levelname, r.__dict__["request_id"], r.__dict__["ms"]) for r in kept.records]
    assert found == [("INFO", "c", 1.5), ("WARNING", "d", 100.0), ("ERROR", "e", 100.0)]
    assert request_id([(b"x-request-id", b"\xff")]) != request_id([])


def test_decisions_of_a_kind_are_counted_together_and_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many kinds there are, and when somebody asks: nothing is lost or counted twice."""
    monkeypatch.setattr(metrics, "SEEN_MAX", 2)
    rules = {
        f"rule-{i}": {"on": "any", "when": f"score > {i}", "then": "flag", "mode": mode}
        for i, mode in enumerate(("live", "live", "shadow", "shadow"))
    }
    with Stage(tmp_path, stage.policy(rules=rules)) as played:
        counted = metrics.Metrics(played.engine)
        for i in range(30):
            event = stage.claim(f"e{i}", i, score=i % 5)
            counted.results([event], [played.engine.score(event)])
            if i % 7 == 0:
                counted.text()
        told = counted.text().decode()
    assert 'riskengine_decisions_total{action="allow",type="coupon_claim"} 30.0' in told
    for i, name in enumerate(("fired", "fired", "shadow", "shadow")):
        assert f'riskengine_{name}_total{{rule="rule-{i}"}} {6.0 * (4 - i)}' in told


def test_the_units_of_the_readme(tmp_path: Path) -> None:
    """The systemd unit is one that systemd takes, and the container file one that has what `serve` needs."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (unit,) = re.findall(r"^```ini\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    (container,) = re.findall(r"^```dockerfile\n(.*?)^```$", readme, flags=re.MULTILINE | re.DOTALL)
    said = configparser.ConfigParser(strict=False, interpolation=None)
    said.optionxform = str  # type: ignore[assignment,method-assign]  # as the module's own documentation has it
    said.read_string(unit)
    assert said["Service"]["ExecStart"].split()[1] == "serve"
    assert said["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"
    if analyze := shutil.which("systemd-analyze"):
        there = tmp_path / "riskengine.service"
        there.write_text(unit.replace(said["Service"]["ExecStart"].split()[0], "/bin/true"), encoding="utf-8")
        done = subprocess.run(
            [analyze, "verify", "--man=no", str(there)], capture_output=True, text=True, check=False
        )
        assert [line for line in done.stderr.splitlines() if "riskengine.service" in line] == []
    instructions = [line.split()[0] for line in container.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert instructions[0] == "FROM"
    assert instructions[-1] == "CMD"
    command = json.loads(container.splitlines()[-1].removeprefix("CMD "))
    assert command[:2] == ["riskengine", "serve"]
