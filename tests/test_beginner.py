"""The mistakes of the first hour, each made on purpose: what is said is a snapshot, and says what to do."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from snapshot import matches_snapshot

from riskengine import cli
from riskengine.cli import terminal
from riskengine.errors import RiskEngineError
from riskengine.service.port import take_port
from riskengine.service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
EVENT = {
    "event_id": "e1",
    "type": "coupon_claim",
    "time": "2026-11-11T10:00:00+08:00",
    "user_id": "u1",
    "device_id": "d1",
    "campaign_id": "double-eleven",
}


@pytest.fixture(autouse=True)
def _room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mistake is made in a folder of its own, beside a policy and a file of events that are right."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("RISKENGINE_DEBUG", raising=False)
    assert cli.run(["init", "rules"]) == 0
    write("events.jsonl", EVENT)


def write(name: str, *events: dict[str, Any]) -> None:
    Path(name).write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")


def edit(name: str, old: str, new: str) -> None:
    text = Path(name).read_text(encoding="utf-8")
    assert old in text
    Path(name).write_text(text.replace(old, new), encoding="utf-8")


def says(
    name: str, capfd: pytest.CaptureFixture[str], *arguments: str, code: int, hidden: str | None = None
) -> None:
    """A command ends with this code, and prints what tests/snapshots/beginner/NAME.txt says.

    `hidden` differs from run to run, and is shown as PORT.
    """
    capfd.readouterr()
    found = cli.run(arguments)
    sys.stdout.flush()
    told = capfd.readouterr()
    command = f"$ riskengine {' '.join(arguments)}\n"
    text = f"{command}{told.out}{told.err}".replace(str(ROOT), "...")
    text = text if hidden is None else text.replace(hidden, "PORT")
    text = re.sub(r"in [\d.]+ s \([\d,]+/s\)", "in ... s", text)
    text = re.sub(r"^(first use of some kernels|compiled [\d,]+ kernel).*\n", "", text, flags=re.MULTILINE)
    assert "Traceback" not in text
    assert found == code, text
    matches_snapshot(f"beginner/{name}", text)


SCORE = ("score", "--in", "events.jsonl", "--out", "decisions.jsonl")


def test_the_wrong_folder(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("empty").mkdir()
    says("folder-missing", capfd, "check", "ruels", code=1)
    says("folder-empty", capfd, "test", "empty", code=1)
    says("folder-is-a-file", capfd, "check", "rules/coupon.yaml", code=1)
    says("folder-of-the-demo", capfd, "demo", "--rules", "empty", code=1)
    monkeypatch.chdir("rules")
    says("folder-inside", capfd, "check", code=0)


def test_init_where_something_is(capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in Path("rules").rglob("*") if path.is_file()}
    says("init-twice", capfd, "init", "rules", code=2)
    says("init-over-a-file", capfd, "init", "events.jsonl", code=2)
    says("init-below-a-file", capfd, "init", "events.jsonl/rules", code=2)
    assert before == {path: path.read_bytes() for path in Path("rules").rglob("*") if path.is_file()}


def test_a_field_is_missing(capfd: pytest.CaptureFixture[str]) -> None:
    write("events.jsonl", {name: EVENT[name] for name in ("event_id", "type", "time", "user_id")})
    says("field-missing", capfd, *SCORE, code=1)


def test_an_event_without_id(capfd: pytest.CaptureFixture[str]) -> None:
    write("events.jsonl", {name: value for name, value in EVENT.items() if name != "event_id"})
    says("event-without-id", capfd, *SCORE, code=1)


def test_an_event_of_no_known_type(capfd: pytest.CaptureFixture[str]) -> None:
    write("events.jsonl", {**EVENT, "type": "coupon_clam"})
    says("event-type", capfd, *SCORE, code=1)


def test_a_misspelt_feature(capfd: pytest.CaptureFixture[str]) -> None:
    edit("rules/account.yaml", "phone_users_30d >= 3", "phone_user_30d >= 3")
    says("feature-misspelt", capfd, "check", code=1)
    says("feature-misspelt-scored", capfd, *SCORE, code=1)


def test_tabs_in_yaml(capfd: pytest.CaptureFixture[str]) -> None:
    edit("rules/account.yaml", "  card-shared:", "\tcard-shared:")
    says("yaml-tab", capfd, "check", code=1)


def test_an_array_where_lines_are_expected(capfd: pytest.CaptureFixture[str]) -> None:
    Path("array.json").write_text(json.dumps([EVENT]), encoding="utf-8")
    says("json-array", capfd, "score", "--in", "array.json", "--out", "decisions.jsonl", code=2)
    Path("spread.json").write_text(json.dumps(EVENT, indent=2), encoding="utf-8")
    says("json-spread", capfd, "score", "--in", "spread.json", "--out", "decisions.jsonl", code=2)


def test_a_file_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    says("file-missing", capfd, "score", "--in", "event.jsonl", "--out", "decisions.jsonl", code=2)
    says("file-folder-missing", capfd, "score", "--in", "events.jsonl", "--out", "out/d.jsonl", code=2)
    says("file-without-format", capfd, "simulate", "--out", "events.csv", code=2)
    says("page-folder-missing", capfd, "demo", "--out", "out/page.html", code=2)
    says("page-is-a-folder", capfd, "demo", "--out", "rules", code=2)


def test_no_permission(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by the system's own error, because whoever runs the tests as root may write anywhere."""

    def refused(*_: object, **__: object) -> Any:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(io, "FileIO", refused)
        says("permission-decisions", capfd, *SCORE, code=2)
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *_: False)
        says("permission-events", capfd, "simulate", "--out", "new.jsonl", code=2)
        patch.setattr("pathlib.Path.resolve", lambda path: Path("/srv/reports"))
        says("permission-page", capfd, "demo", "--out", "page.html", code=2)
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryDirectory", refused)
        says("permission-init", capfd, "init", "mine", code=2)
    assert sorted(path.name for path in Path().iterdir()) == ["events.jsonl", "rules"]


def test_a_sidecar_that_cannot_be(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        says("serve-port-taken", capfd, "serve", "--port", str(port), code=2, hidden=str(port))
    says("serve-workers", capfd, "serve", "--workers", "2", code=2)
    says("serve-without-keys", capfd, "serve", "--host", "0.0.0.0", code=2)
    says("serve-empty-host", capfd, "serve", "--host", "", code=2)
    says("serve-no-such-port", capfd, "serve", "--port", "99999", code=2)
    says("serve-port-below-none", capfd, "serve", "--port", "-1", code=2)
    says("serve-port-is-no-number", capfd, "serve", "--port", "http", code=2)
    says("serve-no-such-host", capfd, "serve", "--host", "nowhere.invalid", code=2)
    says("serve-no-such-name", capfd, "serve", "--host", "x" * 70, code=2)
    assert cli.run(["keys", "make", "shop", "--scope", "score"]) == 0  # without one it would not get so far
    says("serve-not-our-address", capfd, "serve", "--host", "192.0.2.1", code=2)  # of the examples' network
    Path("keys.json").unlink()
    assert sorted(path.name for path in Path().iterdir()) == ["events.jsonl", "rules"]


def test_a_port_that_asks_for_a_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by a user who has none: root gives up its own for as long."""
    said_first = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    port = int(said_first.read_text("utf-8")) - 1 if said_first.exists() else 0
    if port < 1:  # everybody may have every port here, or nobody says which: refused as Linux would

        def refused(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(socket.socket, "bind", refused)
        port = 1023
    settings = Settings(port=port)
    assert settings.address  # what it imports is read by whoever may
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    try:
        with pytest.raises(RiskEngineError) as caught:
            take_port(settings)
    finally:
        os.seteuid(user)
    said = f"{caught.value}\n".replace(f"port {port}", "port PORT")
    matches_snapshot("beginner/serve-port-without-permission", said)


def test_ctrl_c_in_the_demo() -> None:
    """Interrupted at work: one line, code 130, and no page half written."""
    arguments = ["demo", "--users", "100000"]
    with subprocess.Popen(
        [sys.executable, "-m", "riskengine", *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = ""
        while "learn what is decided" not in said:  # the kernels may have to be compiled before
            said = process.stderr.readline()
            assert said, process.wait(60)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert said.endswith("interrupted\n")
        assert "Traceback" not in said
        assert process.wait(60) == 130
    assert sorted(path.name for path in Path().iterdir()) == ["events.jsonl", "rules"]


LOST = """
import ctypes, time
from riskengine.cli import exits

def work():
    print("within", flush=True)
    time.sleep(60)

exits.heed_interrupts()
exits.sys.exit(exits.ended(lambda: (ctypes.CFUNCTYPE(None)(work)(), time.sleep(60))))
"""


def test_ctrl_c_in_a_callback_is_not_lost() -> None:
    """What Python raises there it only prints; the command is to end all the same."""
    with subprocess.Popen(
        [sys.executable, "-c", LOST], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "within\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "interrupted\n")
        assert process.returncode == 130


def test_colours_only_where_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert terminal.paint("x", "red") == "x"
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert terminal.paint("x", "red", "bold") == "\x1b[31;1mx\x1b[0m"
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert terminal.paint("x", "red") == "x"
