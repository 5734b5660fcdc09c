"""Lists shared with partners: the format, what is matched when an event comes, what is refused."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers import apart, valkey

from riskengine import Decision, Engine, RiskEngineError, cli, sharing
from riskengine.check import findings_of
from riskengine.entries import EditEntry
from riskengine.journal import Journal
from riskengine.policy import examine
from riskengine.sharing import Record
from riskengine.stores.address import begin

T0 = 1_794_326_400_000
DAY = 86_400_000
KEY = "k" * 32
PHONE = "+8613800138000"
VECTORS = {  # a partner in another language can hold its own against these
    ("phone", PHONE): "73170b5b39c8a0d9",
    ("account", "card-9"): "a8c14d3567cae5a7",
    ("device", "设备一"): "a801d3db363cab70",
}
POLICY: dict[str, Any] = {
    "policy": "sharing-tests",
    "country": "CN",
    "entities": {
        "user": "user_id",
        "phone": "phone",
        "account": "payment_account",
        "pair": ["user_id", "phone"],
    },
    "events": {"payment": {"required": ["user_id"]}},
    "lists": {"acme-blocked": {"of": ["phone", "account"], "shared": "acme"}, "blocked": {"of": ["phone"]}},
    "rules": {
        "shared-phone": {
            "when": "listed('acme-blocked', phone)",
            "then": "deny",
            "message": "no",
            "mode": "live",
        },
        "shared-card": {"when": "listed('acme-blocked', account)", "then": "review", "mode": "live"},
        "own": {"when": "listed('blocked', phone)", "risk": 0.5, "mode": "live"},
    },
}


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RISKENGINE_PARTNER_KEY_ACME", KEY)
    monkeypatch.setenv("RISKENGINE_HASH_KEY", "another key, of our own")
    folder = tmp_path / "rules"
    folder.mkdir()
    (folder / "policy.yaml").write_text(json.dumps(POLICY), encoding="utf-8")
    return folder


def pay(i: int, **fields: Any) -> dict[str, Any]:
    return {"event_id": f"e{i}", "type": "payment", "user_id": f"u{i}", "time": T0, **fields}


def fired_of(engine: Engine, events: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    decisions = [one for one in engine.score_many(events) if isinstance(one, Decision)]
    assert len(decisions) == len(events)
    return [one.fired for one in decisions]


def twin(key: str, entity: str, value: str) -> str:
    """The hash as the README says it."""
    message = b"riskengine-shared-list/1\0" + entity.encode() + b"\0" + value.encode()
    return hmac.new(key.encode(), message, hashlib.sha256).hexdigest()[:16]


@pytest.mark.parametrize(("entity", "value"), VECTORS)
def test_hashes_are_those_of_the_format(entity: str, value: str) -> None:
    found = f"{sharing.member(KEY.encode(), entity, value):016x}"
    assert found == VECTORS[entity, value] == twin(KEY, entity, value)


def test_the_readme_says_the_same_vectors() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    for (entity, _), digits in list(VECTORS.items())[:2]:
        assert f"`{entity}`" in readme
        assert f"`{digits}`" in readme


def test_what_a_partner_shared_is_met_in_every_spelling(rules: Path) -> None:
    records = [
        Record(twin(KEY, "phone", PHONE), "acme", "mule", T0 + DAY),
        Record(twin(KEY, "account", "card-9")),
    ]
    with Engine.open(rules, clock=lambda: T0) as engine:
        assert engine.score(pay(1, phone="13800138000")).fired == ()
        for record, entity in zip(records, ("phone", "account"), strict=True):
            assert engine.take_shared("acme-blocked", entity, [record])["new"] == 1
        assert engine.score(pay(2, phone="138 0013 8000")).fired == ("shared-phone",)
        assert engine.score(pay(3, phone="13900139000")).fired == ()
        assert engine.score(pay(4, payment_account=" card-9 ")).fired == ("shared-card",)
        assert engine.score(pay(5, phone="card-9", payment_account=PHONE)).fired == ()  # another entity
        batch = [pay(10 + i, phone="13800138000" if i % 3 else f"139001390{i:02}") for i in range(30)]
        fired = [bool(one) for one in fired_of(engine, batch)]
        assert fired == [i % 3 != 0 for i in range(30)]
        assert engine.list_get("acme-blocked", "phone", "13800138000") == {
            "expires": T0 + DAY, "reason": "mule", "author": "acme", "time": T0,
        }  # fmt: skip
        later = [pay(50 + i, phone=PHONE, time=T0 + i * 60_000) for i in range(2)]
        assert engine.list_delete("acme-blocked", "phone", PHONE)
        assert fired_of(engine, later) == [(), ()]


def test_an_entry_ends_with_its_time(rules: Path) -> None:
    now = [T0]
    with Engine.open(rules, clock=lambda: now[0]) as engine:
        engine.list_put("acme-blocked", "phone", PHONE, expires=T0 + 60_000)
        assert engine.score(pay(1, phone=PHONE, time=T0 + 59_999)).fired == ("shared-phone",)
        assert engine.score(pay(2, phone=PHONE, time=T0 + 60_000)).fired == ()


def test_import_says_what_changes_and_a_dry_run_changes_nothing(rules: Path) -> None:
    hashes = [twin(KEY, "phone", f"+861380013800{i}") for i in range(5)]
    with Engine.open(rules, clock=lambda: T0) as engine:
        engine.take_shared("acme-blocked", "phone", [Record(h, expires=T0 + DAY) for h in hashes[:3]])
        more = [
            Record(hashes[0], expires=T0 + 2 * DAY), Record(hashes[1], expires=T0 + 60_000),
            Record(hashes[2]), Record(hashes[3], expires=T0), Record(hashes[4]),
        ]  # fmt: skip
        expected = {"new": 1, "extended": 2, "already": 1, "expired": 1}
        assert engine.take_shared("acme-blocked", "phone", more, dry_run=True) == expected
        assert engine.take_shared("acme-blocked", "phone", more) == expected
        assert engine.take_shared("acme-blocked", "phone", more)["already"] == 4
        kept = {record.hash: record.expires for record in engine.share("acme-blocked", "phone")}
        assert kept == {hashes[0]: T0 + 2 * DAY, hashes[1]: T0 + DAY, hashes[2]: None, hashes[4]: None}
        for name, entity in (("blocked", "phone"), ("acme-blocked", "user"), ("none", "phone")):
            with pytest.raises(RiskEngineError, match="acme-blocked of phone, account"):
                engine.share(name, entity)


def test_a_shared_list_is_journaled(rules: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/j.db"
    with Engine.open(rules, journal=url, clock=lambda: T0) as engine:
        engine.take_shared("acme-blocked", "phone", [Record(twin(KEY, "phone", PHONE), "acme", "mule")])
    with Journal.open(url, create=False) as journal:
        edits = [entry for entry in journal.replay() if isinstance(entry, EditEntry)]
    with Engine.open(rules, clock=lambda: T0) as engine:
        for edit in edits:
            engine.redo(edit)
        assert engine.score(pay(1, phone=PHONE)).fired == ("shared-phone",)


def test_two_parties_exchange_a_file(rules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "phones.jsonl")
    with valkey() as server:
        ours, theirs = apart(server), apart(server)
        for url in (ours, theirs):
            begin(url, "sharing-tests")
        with Engine.open(rules, store=theirs) as engine:
            engine.list_put("acme-blocked", "phone", "13800138000", reason="mule", author="ann")
            engine.list_put("acme-blocked", "phone", "13900139000", expires=1)
        common = ["--rules", str(rules), "--store"]
        assert cli.run(["lists", "export", "acme-blocked", "phone", "--out", file, *common, theirs]) == 0
        assert "1 entry" in capsys.readouterr().err
        text = Path(file).read_text(encoding="utf-8")
        header, record = map(json.loads, text.splitlines())
        assert (header["partner"], header["list"], header["entity"]) == ("acme", "acme-blocked", "phone")
        assert record == {
            "hash": twin(KEY, "phone", PHONE),
            "source": "ann",
            "reason": "mule",
            "expires": None,
        }
        assert "138" not in text.replace(str(header["created"]), "").replace(header["digest"], "")
        taking = ["lists", "import", "acme-blocked", "--in", file, *common, ours]
        assert cli.run([*taking, "--dry-run"]) == 0
        assert "1 would be new, 0 would be extended" in capsys.readouterr().out
        assert cli.run([*taking, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["new"] == 1
        with Engine.open(rules, store=ours) as engine:
            event = {"event_id": "e", "type": "payment", "user_id": "u", "phone": "138-0013-8000"}
            assert engine.score(event).fired == ("shared-phone",)


TAMPERED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "damaged": (lambda data: data.replace(b"mule", b"mole"), "damaged or cut short"),
    "cut": (lambda data: data[:-10], "damaged or cut short"),
    "a record less": (lambda data: data.rsplit(b"\n", 2)[0] + b"\n", "damaged or cut short"),
    "another list's header": (
        lambda data: data.replace(b'"entity":"phone"', b'"entity":"device"'),
        "damaged",
    ),
    "empty": (lambda data: b"", "is no shared list"),
    "no list": (lambda data: b"hash,reason\n1,2\n", "is no shared list"),
    "another version": (lambda data: data.replace(b'"version":1', b'"version":2'), "is of format"),
    "another partner": (lambda data: data.replace(b'"acme"', b'"emca"'), "shared under the name emca"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_file_that_is_not_as_it_was_written_is_refused_whole(how: str, tmp_path: Path) -> None:
    change, said = TAMPERED[how]
    file = tmp_path / "list.jsonl"
    records = [Record(twin(KEY, "phone", f"p{i}"), "acme", "mule") for i in range(3)]
    sharing.write(file, KEY.encode(), "acme", "l", "phone", T0, records)
    assert sharing.read(file, KEY.encode(), "acme")[1] == records
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(RiskEngineError, match=said):
        sharing.read(file, KEY.encode(), "acme")


def test_another_key_is_told(tmp_path: Path) -> None:
    file = tmp_path / "list.jsonl"
    sharing.write(file, b"x" * 32, "acme", "l", "phone", T0, [])
    with pytest.raises(RiskEngineError, match=r"another key .* RISKENGINE_PARTNER_KEY_ACME") as caught:
        sharing.read(file, KEY.encode(), "acme")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("hash_", ["xyz", "2ED7BC8E2B72FF9E", "2ed7bc8e2b72ff9e00"])
def test_a_partner_who_writes_no_hashes_is_told(hash_: str, tmp_path: Path) -> None:
    file = tmp_path / "list.jsonl"
    sharing.write(file, KEY.encode(), "acme", "l", "phone", T0, [Record(hash_)])
    with pytest.raises(RiskEngineError, match="line 2 has no hash of 16 hex digits"):
        sharing.read(file, KEY.encode(), "acme")


def test_keys_are_needed_where_something_is_kept(
    rules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RISKENGINE_PARTNER_KEY_ACME")
    Engine.open(rules).close()  # for tests of rules it needs none
    journal = f"sqlite:///{tmp_path}/j.db"
    with pytest.raises(RiskEngineError, match="set RISKENGINE_PARTNER_KEY_ACME"):
        Engine.open(rules, journal=journal)
    (tmp_path / "key").write_text(f"{KEY}\n", encoding="utf-8")
    monkeypatch.setenv("RISKENGINE_PARTNER_KEY_ACME_FILE", str(tmp_path / "key"))
    Engine.open(rules, journal=journal).close()
    (tmp_path / "key").write_text("short", encoding="utf-8")
    with pytest.raises(RiskEngineError, match="too short"):
        Engine.open(rules, journal=journal)
    monkeypatch.setenv("RISKENGINE_PARTNER_KEY_ACME_FILE", str(tmp_path / "none"))
    with pytest.raises(RiskEngineError, match="cannot be read"):
        Engine.open(rules, journal=journal)
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("riskengine")]
    assert left == [], "an engine that cannot be opened lets go of its journal"


def test_a_shared_list_spreads_to_nobody(rules: Path) -> None:
    features = {
        "users": {"distinct": "user", "on": "payment", "by": "phone", "over": "7d"},
        "phones": {"distinct": "phone", "on": "payment", "by": "user", "over": "7d"},
    }
    spread = {"to": "near", "along": ["user", "phone"]}
    for shared, own in (("from", "near"), ("near", "from")):
        lists: dict[str, Any] = {
            "from": {"of": ["user", "phone"], "spreads": spread}, "near": {"of": ["user", "phone"]},
        }  # fmt: skip
        lists[shared]["shared"] = "acme"
        policy = {**POLICY, "lists": lists, "features": features, "rules": {}}
        (rules / "policy.yaml").write_text(json.dumps(policy), encoding="utf-8")
        said = [found.message for found in findings_of(examine(rules)) if found.severity == "error"]
        assert any(f"{shared} is shared with a partner" in one for one in said), own


def test_a_shared_list_is_of_single_fields(rules: Path) -> None:
    policy = {**POLICY, "lists": {"l": {"of": ["phone", "pair"], "shared": "acme"}}, "rules": {}}
    (rules / "policy.yaml").write_text(json.dumps(policy), encoding="utf-8")
    (found,) = findings_of(examine(rules))
    assert (found.code, "pair is composite" in found.message) == ("wrong-value", True)
