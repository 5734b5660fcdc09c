"""Rule tests: they can fail, they say why, and a test file with a mistake in it is told where."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from riskengine.errors import PolicyError, render
from riskengine.ruletest import Report, render_report, run_tests, to_json

POLICY = """\
policy: t
timezone: Asia/Shanghai
model: none
entities: {user: user_id, device: device_id, user_device: [user_id, device_id], shop_entity: shop}
events:
  pay:
    required: [user_id]
    fields: {amount: {type: number, unit: 0.01}, shop: string, ok: bool, opened: time}
  look: {required: [user_id]}
lists: {blocked: {of: [user, user_device]}}
tables:
  shops: {key: shop_entity, columns: {ends: time, cap: number}}
features:
  pays_1h: {count: pay, by: user, over: 1h}
  sum_1h: {sum: amount, on: pay, by: user, over: 1h}
  mean_1h: {mean: amount, on: pay, by: user, over: 1h}
  user_age: {since_first: any, by: user}
  last_shop: {previous: shop, by: user}
  is_big: {value: amount > 100}
  frauds_1d: {count: fraud, on: pay, by: user, over: 1d}
limits:
  three-a-day: {count: pay, by: user, per: day, max: 3, then: review}
  two-a-day-watched: {count: look, by: user, per: day, max: 2, mode: shadow}
rules:
  big: {on: pay, when: amount > 100, then: deny, risk: 0.4, mode: live}
  ask: {on: pay, when: amount > 50 and amount <= 100, then: challenge, challenge: sms, risk: 0.2, mode: live}
  watched: {on: pay, when: amount > 10, then: deny}
  off: {on: pay, when: amount > 0, mode: off}
  blocked:
    {on: any, when: "listed('blocked', user) or listed('blocked', user_device)", then: deny, mode: live}
  closed: {on: pay, when: time > shops.ends, then: deny, mode: live}
  was-fraud: {on: pay, when: frauds_1d > 0, then: review, mode: live}
decide:
  pay: {review: 0.9}
"""
Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A policy folder in the current directory, so that places are short."""
    monkeypatch.chdir(tmp_path)

    def make(tests: str | None, policy: str = POLICY) -> Path:
        rules = Path("rules")
        rules.mkdir(exist_ok=True)
        (rules / "policy.yaml").write_text(policy, encoding="utf-8")
        if tests is not None:
            (rules / "a.test.yaml").write_text(tests, encoding="utf-8")
        return rules

    return make


def file_of(*steps: str, name: str = "a test", lists: str = "") -> str:
    lines = ["start: 2026-11-11T00:00:00+08:00", "tests:", f"  - name: {name}"]
    if lists:
        lines.append(f"    lists: {lists}")
    return "\n".join([*lines, "    events:", *(f"      - {step}" for step in steps), ""])


def run(rules: Path) -> Report:
    return run_tests(rules)


def mismatches(report: Report) -> list[tuple[str, str, str]]:
    assert report.findings == ()
    return [
        (mismatch.what, mismatch.expected, mismatch.found)
        for result in report.results
        for failure in result.failures
        for mismatch in failure.mismatches
    ]


def messages(report: Report) -> list[str]:
    return [finding.message for finding in report.findings]


PASSING = [
    "{at: 0s, type: pay, user_id: u, amount: 1, expect: {action: allow, fired: [], shadow: [], flags: []}}",
    "{at: 0s, type: pay, user_id: u, amount: 1, expect: {risk: 0}}",
    "{at: 0s, type: pay, user_id: u, amount: 101, expect: {action: deny, fired: [big], risk: 0.4}}",
    "{at: 0s, type: pay, user_id: u, amount: 101, expect: {shadow: [watched], not_fired: [ask, blocked]}}",
    "{at: 0s, type: pay, user_id: u, amount: 60, expect: {action: challenge, challenge: sms}}",
    "{at: 0s, type: pay, user_id: u, amount: 60, expect: {risk: {min: 0.1, max: 0.3}}}",
    "{at: 0s, type: pay, user_id: u, amount: 60, expect: {risk: {min: 0.2}}}",
    "{at: 1m, type: pay, user_id: u, amount: 1.2, expect: {features: {sum_1h: 1.2, last_shop: null}}}",
    "{at: 0s, type: pay, user_id: u, amount: 200, expect: {features: {is_big: true, user_age: 0s}}}",
    "{at: 0s, type: pay, user_id: u, amount: 2, time: 2026-11-10T23:00:00+08:00, expect: {flags: [late]}}",
    "{at: 0s, type: pay, user_id: u, amount: x, expect: {problem: number}}",
    "{at: 0s, type: pay, user_id: u, time: 2026-11-12T00:00:00+08:00, expect: {problem: future}}",
]


@pytest.mark.parametrize("step", PASSING)
def test_what_holds_passes(folder: Folder, step: str) -> None:
    report = run(folder(file_of(step)))
    assert mismatches(report) == []
    assert report.ok
    assert len(report.results) == 1


@pytest.mark.parametrize(
    ("expect", "found"),
    [
        ("{action: deny}", ("action", "deny", "challenge")),
        ("{challenge: face}", ("challenge", "face", "sms")),
        ("{fired: []}", ("fired", "[]", "[ask]")),
        ("{fired: [ask, big]}", ("fired", "[ask, big]", "[ask]")),
        ("{shadow: []}", ("shadow", "[]", "[watched]")),
        ("{not_fired: [ask, big]}", ("not_fired", "[ask, big]", "fired: [ask]")),
        ("{not_fired: [watched]}", ("not_fired", "[watched]", "fired: [watched]")),
        ("{flags: [late]}", ("flags", "[late]", "[]")),
        ("{risk: 0.3}", ("risk", "0.3", "0.2")),
        ("{risk: {min: 0.3, max: 0.5}}", ("risk", "0.3 to 0.5", "0.2")),
        ("{features: {pays_1h: 2}}", ("pays_1h", "2", "1")),
        ("{features: {mean_1h: null}}", ("mean_1h", "missing", "60")),
        ("{features: {last_shop: a}}", ("last_shop", "a", "missing")),
        ("{features: {is_big: true}}", ("is_big", "true", "false")),
        ("{features: {user_age: 1h}}", ("user_age", "3600", "0")),
        ("{problem: future}", ("problem", "future", "none: the action is challenge")),
    ],
)
def test_what_does_not_hold_fails(folder: Folder, expect: str, found: tuple[str, str, str]) -> None:
    report = run(folder(file_of(f"{{at: 0s, type: pay, user_id: u, amount: 60, expect: {expect}}}")))
    assert mismatches(report) == [found]
    assert not report.ok
    assert report.failed == 1


def test_a_refused_event_fails_a_test_that_did_not_expect_it(folder: Folder) -> None:
    report = run(
        folder(
            file_of(
                "{at: 0s, type: pay, amount: 60}",
                "{at: 0s, type: pay, user_id: u, amount: 60, expect: {action: challenge}}",
            )
        )
    )
    (found,) = mismatches(report)
    assert found[:2] == ("problem", "none")
    assert "user_id" in found[2]


def test_time_is_virtual_and_each_test_begins_anew(folder: Folder) -> None:
    tests = file_of(
        "{at: 0s, type: pay, user_id: u, amount: 1, expect: {features: {pays_1h: 1, user_age: 0}}}",
        "{at: 59m, type: pay, user_id: u, amount: 1, expect: {features: {pays_1h: 2, user_age: 59m}}}",
        "{at: 90m, type: pay, user_id: u, amount: 1, expect: {features: {pays_1h: 2, user_age: 90m}}}",
        "{type: pay, user_id: u, amount: 1, expect: {fired: [three-a-day], action: review}}",
        "{at: 24h, type: pay, user_id: u, amount: 1, expect: {features: {pays_1h: 1}, fired: []}}",
    )
    again = tests.split("tests:\n")[1].replace("a test", "the same again")
    report = run(folder(tests + again))
    assert mismatches(report) == []
    assert [result.name for result in report.results] == ["a test", "the same again"]


def test_events_have_ids_and_can_be_repeated(folder: Folder) -> None:
    report = run(
        folder(
            file_of(
                '{at: 0s, repeat: 3, every: 1m, type: pay, user_id: "u{n}", expect: {fired: []}}',
                "{at: 3m, id: mine, type: pay, user_id: u1, amount: 60, expect: {action: challenge}}",
                "{at: 4m, follows: mine, type: pay, user_id: u1, amount: 2, expect: {action: allow}}",
                "{at: 4m, follows: t2, type: pay, user_id: u2, amount: 2, expect: {features: {pays_1h: 1}}}",
                "{at: 4m, event_id: mine, type: pay, user_id: u1, amount: 61, expect: {problem: conflict}}",
            )
        )
    )
    assert mismatches(report) == []


def test_labels_releases_lists_and_tables(folder: Folder) -> None:
    report = run(
        folder(
            file_of(
                "{at: 0s, id: a, type: pay, user_id: u, amount: 1, expect: {fired: []}}",
                "{at: 1m, id: b, type: pay, user_id: u, amount: 1}",
                "{at: 1m, id: c, type: pay, user_id: u, amount: 1}",
                "{at: 1m, type: pay, user_id: u, amount: 1, expect: {fired: [three-a-day]}}",
                "{at: 2m, release: b}",
                "{at: 2m, type: pay, user_id: u, amount: 1, expect: {fired: []}}",
                "{at: 3m, label: fraud, of: a}",
                "{at: 3m, type: pay, user_id: u, amount: 1, expect: {fired: [was-fraud, three-a-day]}}",
                "{at: 4m, label: {event: a, label: legit}}",
                "{at: 5m, list: {add: blocked, entity: user, value: v, expires: 1h}}",
                "{at: 6m, type: pay, user_id: v, amount: 1, expect: {action: deny, fired: [blocked]}}",
                "{at: 6m, type: pay, user_id: gone, amount: 1, expect: {fired: [blocked]}}",
                "{at: 7m, list: {remove: blocked, entity: user, value: gone}}",
                "{at: 7m, list: {add: blocked, entity: user_device, value: [w, d1]}}",
                "{at: 7m, type: pay, user_id: gone, amount: 1, expect: {fired: []}}",
                "{at: 7m, type: pay, user_id: w, device_id: d1, amount: 1, expect: {fired: [blocked]}}",
                "{at: 7m, type: pay, user_id: w, device_id: d2, amount: 1, expect: {fired: []}}",
                "{at: 8m, table: {put: shops, key: s, row: {ends: 2026-11-10T00:00:00+08:00, cap: 3}}}",
                "{at: 8m, type: pay, user_id: x, shop: s, amount: 1, expect: {fired: [closed]}}",
                "{at: 9m, table: {delete: shops, key: s}}",
                "{at: 9m, type: pay, user_id: x, shop: s, amount: 1, expect: {fired: []}}",
                "{at: 66m, type: pay, user_id: v, amount: 1, expect: {fired: []}}",
                lists="{blocked: {user: [gone]}}",
            )
        )
    )
    assert mismatches(report) == []


def test_a_label_that_reaches_no_event_fails(folder: Folder) -> None:
    report = run(
        folder(
            file_of(
                "{at: 0s, id: a, type: pay, amount: 1, expect: {problem: required}}",
                "{at: 1m, label: fraud, of: a}",
            )
        )
    )
    assert mismatches(report) == [("result", "done", "the engine does not know that event")]


def test_coverage_names_what_no_test_shows(folder: Folder) -> None:
    rules = folder(
        file_of(
            "{at: 0s, type: pay, user_id: u, amount: 101, expect: {action: deny}}",
            "{at: 0s, type: pay, user_id: u, amount: 60}",  # nothing is expected: no example
            "{at: 1s, type: look, user_id: u, expect: {action: allow}}",
        )
    )
    report = run_tests(rules, coverage=True)
    assert report.failed == 0
    assert not report.ok
    assert report.gaps is not None
    assert {(gap.kind, gap.name): gap.lacks for gap in report.gaps} == {
        ("rule", "big"): ("non-firing",),
        ("rule", "ask"): ("firing",),
        ("rule", "watched"): ("non-firing",),
        ("rule", "blocked"): ("firing",),
        ("rule", "closed"): ("firing",),
        ("rule", "was-fraud"): ("firing",),
        ("limit", "three-a-day"): ("firing",),
        ("limit", "two-a-day-watched"): ("firing",),
    }
    assert run_tests(rules).ok
    assert "rule  ask                no firing example  rules/policy.yaml:26:3" in render_report(report)


def test_the_shadow_counts_for_coverage(folder: Folder) -> None:
    report = run_tests(
        folder(
            file_of(
                "{at: 0s, repeat: 2, every: 1s, type: look, user_id: u, expect: {shadow: []}}",
                "{at: 9s, type: look, user_id: u, expect: {action: allow, shadow: [two-a-day-watched]}}",
            )
        ),
        coverage=True,
    )
    assert mismatches(report) == []
    assert "two-a-day-watched" not in [gap.name for gap in report.gaps or ()]


def test_tests_are_picked_by_name(folder: Folder) -> None:
    step = "{at: 0s, type: pay, user_id: u, amount: 1, expect: {action: allow}}"
    tests = file_of(step, name="Apples") + f"  - name: pears\n    events:\n      - {step}\n"
    rules = folder(tests)
    assert [result.name for result in run_tests(rules, "apple").results] == ["Apples"]
    assert [result.name for result in run_tests(rules, "p?ars").results] == ["pears"]
    assert len(run_tests(rules, "a.test.yaml").results) == 2
    none = run_tests(rules, "cherries")
    assert not none.ok
    assert render_report(none) == "no test matches 'cherries': that counts as a failure"


def test_no_tests_is_a_failure(folder: Folder) -> None:
    report = run(folder(None))
    assert not report.ok
    assert "the folder has no *.test.yaml file" in render_report(report)


def test_a_bad_policy_is_told_first(folder: Folder) -> None:
    with pytest.raises(PolicyError, match="amont"):
        run(folder(file_of("{at: 0s, type: pay}"), POLICY.replace("amount > 100,", "amont > 100,")))


MISTAKES = [
    ("expect: {acton: deny}", "3:41: error: an expectation has no key 'acton'", "did you mean 'action'?"),
    ("expect: {action: denied}", "an action cannot be 'denied'", None),
    ("expect: {challenge: smss}", "a challenge cannot be 'smss'", "did you mean 'sms'?"),
    ("expect: {fired: [bigg]}", "there is no rule or limit 'bigg'", "did you mean 'big'?"),
    ("expect: {fired: [watched]}", "watched is shadow, so it is never among `fired`", "under `shadow`"),
    ("expect: {shadow: [big]}", "big is live, so it is never among `shadow`", None),
    ("expect: {fired: [off]}", "off is off, so it is never among `fired`", None),
    ("expect: {fired: big}", "`fired` is a list", None),
    ("expect: {features: {pays_2h: 1}}", "there is no feature 'pays_2h'", "did you mean 'pays_1h'?"),
    ("expect: {features: {pays_1h: x}}", "pays_1h is a number", None),
    ("expect: {features: {is_big: 1}}", "is_big is a bool", None),
    ("expect: {features: {last_shop: 1}}", "last_shop is a string", None),
    ("expect: {risk: 2}", "a risk is from 0 to 1", None),
    ("expect: {risk: high}", "`risk` is a number", None),
    ("expect: {risk: {min: 0.5, max: 0.1}}", "`min` is at most `max`", None),
    ("expect: {problem: late, action: deny}", "an event with a problem has no decision", None),
    ("expect: {}", "this expects nothing", None),
    ("amont: 3, expect: {action: allow}", "pay has no field 'amont'", "did you mean 'amount'?"),
    ("follows: t9, expect: {action: allow}", "no event 't9' comes before this", None),
    ("repeat: 3, expect: {action: allow}", "`repeat` needs `every: DURATION`", None),
    ("every: 3s, expect: {action: allow}", "`every` needs `repeat: TIMES`", None),
    ("repeat: 1, every: 1s, expect: {action: allow}", "`repeat` is how many times", None),
    ("at: soon, expect: {action: allow}", "`at` is how long after the start", None),
]


@pytest.mark.parametrize(("part", "message", "mend"), MISTAKES)
def test_a_mistake_in_a_test_is_told_with_its_place(
    folder: Folder, part: str, message: str, mend: str | None
) -> None:
    report = run(folder(file_of(f"{{type: pay, user_id: u, amount: 1, {part}}}")))
    assert not report.ok
    assert report.results == ()
    texts = [render(finding) for finding in report.findings]
    told = next(
        (text for text in texts if message.removeprefix("3:41: ").removeprefix("error: ") in text), None
    )
    assert told is not None, texts
    assert told.startswith("rules/a.test.yaml:5:")
    assert mend is None or mend in told


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("{at: 0s, tipe: pay, user_id: u}", "a step is an event with its `type`, or one of `label`"),
        ("{at: 0s, type: pya, user_id: u}", "there is no event type 'pya'"),
        ("{at: 0s, release: t7}", "no event 't7' comes before this"),
        ("{at: 0s, label: fraud}", "`of:` is missing here"),
        ("{at: 0s, label: bad, of: t1}", "a label cannot be 'bad'"),
        ("{at: 0s, label: {event: t1, label: fraud, tim: 1}}", "a label has no key 'tim'"),
        (
            "{at: 0s, label: {event: t1, label: fraud, time: noon}}",
            "a label's time is a time with its offset",
        ),
        ("{at: 0s, list: {add: blockd, entity: user, value: u}}", "the list cannot be 'blockd'"),
        (
            "{at: 0s, list: {add: blocked, entity: device, value: u}}",
            "an entity of blocked cannot be 'device'",
        ),
        ("{at: 0s, list: {entity: user, value: u}}", "say one of `add: NAME` and `remove: NAME`"),
        ("{at: 0s, list: {add: blocked, entity: user}}", "`value:` is missing here"),
        ("{at: 0s, list: {remove: blocked, entity: user, value: u, expires: 1d}}", "has no `expires`"),
        ("{at: 0s, table: {put: shop, key: s, row: {cap: 1}}}", "cannot be 'shop'"),
        ("{at: 0s, table: {put: shops, key: s, row: {cup: 1}}}", "a row of shops has no key 'cup'"),
        ("{at: 0s, table: {put: shops, key: s}}", "needs `row:`"),
        ("{at: 0s, table: {delete: shops, key: s, row: {cap: 1}}}", "has no `row`"),
        ("{at: 0s, release: t1, note: x}", "a release step has no key 'note'"),
        ("[]", "a step is a map"),
    ],
)
def test_a_mistake_in_a_step_is_told(folder: Folder, step: str, message: str) -> None:
    good = "{at: 0s, type: pay, user_id: u, amount: 1, expect: {action: allow}}"
    report = run(folder(file_of(good, step)))
    assert not report.ok
    assert any(message in render(finding) for finding in report.findings), report.findings
    assert all(finding.place.line == 6 for finding in report.findings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("tests: [{name: a, events: []}]", "a test file needs `start:`"),
        ("start: 2026-11-11T00:00:00+08:00\n", "a test file needs `tests:`"),
        ("start: 2026-11-11T00:00:00+08:00\ntests: []", "`tests` is empty"),
        ("start: 2026-11-11\ntests: [{name: a}]", "`start` is a time with its offset"),
        ("start: 0\ntests: [{name: a}]", "a test needs `events:`"),
        ("start: 0\ntests: [{events: []}]", "a test needs `name:`"),
        ("start: 0\ntests: [{name: a, events: []}]", "it cannot fail"),
        ("start: 0\ntests: [{name: a, events: [{at: 0s, type: pay, user_id: u}]}]", "it cannot fail"),
        ("start: 0\nstart: 1\ntests: []", "the key 'start' is given twice"),
        ("start: 0\ntests: [", "this is not YAML"),
        ("start: 0\ntests: [{name: a, lists: {x: {user: [u]}}, events: []}]", "there is no list 'x'"),
    ],
)
def test_a_mistake_in_a_file_is_told(folder: Folder, text: str, message: str) -> None:
    report = run(folder(text))
    assert not report.ok
    assert any(message in render(finding) for finding in report.findings), report.findings


def test_steps_are_in_order_of_time_and_names_are_told_apart(folder: Folder) -> None:
    step = "{at: 0s, type: pay, user_id: u, amount: 1, expect: {action: allow}}"
    report = run(folder(file_of("{at: 1h, type: pay, user_id: u, amount: 1}", step)))
    assert messages(report) == ["steps come in the order in which they happen"]
    tests = file_of(step)
    report = run(folder(tests + tests.split("tests:\n")[1]))
    assert messages(report) == ["there is a test 'a test' already in this file"]
    assert len(report.results) == 1


def test_one_bad_file_does_not_stop_the_others(folder: Folder) -> None:
    rules = folder(file_of("{at: 0s, type: pay, user_id: u, amount: 1, expect: {action: allow}}"))
    (rules / "b.test.yaml").write_text("start: x\n", encoding="utf-8")
    report = run(rules)
    assert len(report.results) == 1
    assert not report.ok


FAILING = """\
rules/a.test.yaml
  FAIL a test
       rules/a.test.yaml:5:9: event t1
         action  expected  allow
                 found     deny
         fired   expected  []
                 found     [big]
         features:
           pays_1h    1
           sum_1h     101.5
           mean_1h    101.5
           user_age   0
           is_big     true
           frauds_1d  0

0 passed, 1 failed"""


def test_a_failure_as_text(folder: Folder) -> None:
    report = run(
        folder(file_of("{at: 0s, type: pay, user_id: u, amount: 101.5, expect: {action: allow, fired: []}}"))
    )
    assert render_report(report) == FAILING


def test_the_report_as_json(folder: Folder) -> None:
    ticks = iter(range(100))
    report = run_tests(
        folder(file_of("{at: 0s, type: pay, user_id: u, amount: 1, expect: {action: deny}}")),
        coverage=True,
        stopwatch=lambda: float(next(ticks)),
    )
    told = json.loads(to_json(report))
    assert (told["ok"], told["passed"], told["failed"], told["findings"]) == (False, 0, 1, [])
    (test,) = told["tests"]
    assert (test["name"], test["passed"], test["seconds"]) == ("a test", False, 1.0)
    assert test["failures"][0]["mismatches"] == [{"what": "action", "expected": "deny", "found": "allow"}]
    assert test["failures"][0]["place"] == {"file": "rules/a.test.yaml", "line": 5, "column": 9}
    assert told["gaps"][0]["lacks"] == ["firing"]
    assert re.search(r"a test  \(1000 ms\)", render_report(report))
