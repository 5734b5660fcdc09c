"""The demo: its day, its judgement, its words and its page, in the text and in real browsers."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import BROWSERS

from riskengine import Decision, Engine, RiskEngineError, cli
from riskengine.definition import Definition
from riskengine.demo import Report, judge, play, render_page, watched_by_model
from riskengine.policy import load_definition
from riskengine.simulate import KINDS, ORDINARY, Traffic, kind_of, simulate

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "rules"
USERS = 1_500


@dataclasses.dataclass(frozen=True)
class Day:
    traffic: Traffic
    decisions: list[Decision]
    definition: Definition
    report: Report


@pytest.fixture(scope="module")
def day() -> Day:
    return played(seed=7, users=USERS)


def played(seed: int, users: int) -> Day:
    traffic = simulate(seed, users=users)
    shown: list[int] = []
    with Engine.open(RULES) as engine:
        decisions = play(engine, traffic.events, shown.append)
        report = judge(seed, traffic, decisions, engine.definition)
        assert shown == sorted(shown)
        assert shown[-1] == len(traffic.events)
        return Day(traffic, decisions, engine.definition, report)


# -- what it says


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_shipped_policy_stops_most_abuse_and_spares_customers(seed: int) -> None:
    report = played(seed, USERS).report
    whole = report.stopped + report.missed
    assert report.stopped.events > 0.75 * whole.events
    assert report.stopped.fen > 0.75 * whole.fen
    assert report.hit < 0.01 * sum(report.customers.values())
    for kind in report.kinds:
        assert kind.stopped.events > 0.5 * (kind.stopped.events + kind.missed.events), kind


def test_every_event_is_counted_once(day: Day) -> None:
    """Counted a second time, the plain way."""
    kinds = {label["event_id"]: kind_of(label) for label in day.traffic.labels}
    report = day.report
    assert report.events == len(day.traffic.events) == len(kinds)
    for kind in report.kinds:
        mine = [d for d in day.decisions if kinds[d.event_id] == kind.kind]
        assert kind.missed.events == sum(d.action == "allow" for d in mine)
        assert kind.stopped.events == len(mine) - kind.missed.events
    customers = [d for d in day.decisions if kinds[d.event_id] == ORDINARY]
    assert sum(report.customers.values()) == len(customers)
    assert report.hit == sum(d.action != "allow" for d in customers)
    assert sum(slot.allowed + slot.hit for slot in report.slots) == len(customers)
    assert sum(slot.hit for slot in report.slots) == report.hit
    assert sum(slot.stopped for slot in report.slots) == report.stopped.events
    assert sum(slot.missed for slot in report.slots) == report.missed.events
    assert sum(one.customers for one in report.bins) == len(customers)
    assert sum(one.abuse for one in report.bins) == report.stopped.events + report.missed.events
    for rule in report.rules:
        met = [d for d in day.decisions if rule.name in (d.shadow if rule.is_shadow else d.fired)]
        acted = [d for d in met if rule.is_shadow or d.action != "allow"]
        assert rule.abuse.events == sum(kinds[d.event_id] != ORDINARY for d in acted)
        assert rule.customers == sum(kinds[d.event_id] == ORDINARY for d in acted)


def test_an_order_charged_22_times_is_paid_once(day: Day) -> None:
    charges = [
        decision.action
        for event, decision in zip(day.traffic.events, day.decisions, strict=True)
        if event.get("order_id") == "o-again0"
    ]
    assert charges == ["allow"] + 21 * ["deny"]


def test_three_decisions_are_told_and_true(day: Day) -> None:
    """What a rule is said to have seen is what the features of that very decision say."""
    assert [story.title for story in day.report.stories] == [
        "Denied on a hard fact",
        "Soft signals that add up",
        "A customer who was hit by mistake",
    ]
    rows = [d.features for d in day.decisions]
    for story in day.report.stories:
        for because in story.because:
            for name, value in re.findall(r"(\w+) was (\d+)(?:,|$)", because.saw):
                if name in day.definition.features:
                    assert any(row[name] == float(value) for row in rows if isinstance(row, dict))
    soft = day.report.stories[1]
    risks = [float(risk) for because in soft.because for risk in re.findall(r"risk ([\d.]+)", because.does)]
    assert len(risks) >= 2
    expected = 1 - np.prod([1 - risk for risk in risks])
    assert f"= {expected:.2f}; review begins at 0.50" in soft.risk


def test_events_that_a_policy_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("policy: p\nevents: {login: {}}\n", encoding="utf-8")
    with (
        Engine.open(load_definition(tmp_path)) as engine,
        pytest.raises(RiskEngineError, match="The demo needs the event types coupon_claim"),
    ):
        play(engine, simulate(users=100).events, lambda done: None)


# -- the command


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_tells_the_day(room: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["demo", "--users", str(USERS)]) == 0
    sys.stdout.flush()
    told = capfd.readouterr()
    assert "simulating a campaign day of 1,500 customers" in told.err
    for part in ("stopped", "missed", "hit by mistake", *KINDS, "Three decisions", "Try next"):
        assert part in told.out
    assert max(len(line) for line in told.out.splitlines() if "pictures" not in line) <= 80
    assert told.out.splitlines()[-1] == f"The day in pictures: {room / 'riskengine-demo.html'}"
    assert (room / "riskengine-demo.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in room.iterdir()] == ["riskengine-demo.html"]


def test_the_day_with_the_shipped_model(room: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def stopped(*more: str) -> int:
        assert cli.run(["demo", "--users", "300", "--json", *more]) == 0
        sys.stdout.flush()
        return int(json.loads(capfd.readouterr().out)["stopped"]["events"])

    assert stopped("--model", "campaign-v1") > stopped()


def test_the_shipped_model_watches_where_it_fits(tmp_path: Path) -> None:
    shipped_policy = load_definition(RULES)
    watched = watched_by_model(shipped_policy)
    assert watched.challengers == ("campaign-v1",)
    traffic = simulate(users=300)
    with Engine.open(watched) as engine:
        decisions = play(engine, traffic.events, lambda done: None)
    with Engine.open(shipped_policy) as engine:
        assert [d.action for d in play(engine, traffic.events, lambda done: None)] == [
            d.action for d in decisions
        ]
    row = next(row for row in judge(7, traffic, decisions, watched).rules if row.name == "model campaign-v1")
    assert row.is_shadow
    assert row.abuse.events > row.abuse_missed > 0
    (tmp_path / "p.yaml").write_text("policy: p\nevents: {login: {}}\n", encoding="utf-8")
    assert not watched_by_model(load_definition(tmp_path)).challengers


def test_the_command_for_programs(
    room: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same seed gives the same report; a changed rule gives another."""

    def told(*more: str) -> dict[str, Any]:
        assert cli.run(["demo", "--users", "300", "--json", "--out", "page.html", *more]) == 0
        sys.stdout.flush()
        report: dict[str, Any] = json.loads(capfd.readouterr().out)
        del report["seconds"]
        return report

    first = told("--seed", "5")
    assert first == told("--seed", "5")
    assert first != told("--seed", "6")
    assert first["ok"] is True
    assert first["page"] == str(room / "page.html")
    assert first["stopped"]["events"] == sum(kind["stopped"]["events"] for kind in first["kinds"])
    assert cli.run(["init", "mine"]) == 0
    capfd.readouterr()
    changed = room / "mine" / "coupon.yaml"
    changed.write_text(
        changed.read_text("utf-8").replace("phone_users_30d >= 4", "phone_users_30d >= 2"), "utf-8"
    )
    stopped = {
        kind["kind"]: kind["stopped"]["events"] for kind in told("--seed", "5", "--rules", "mine")["kinds"]
    }
    before = {kind["kind"]: kind["stopped"]["events"] for kind in first["kinds"]}
    assert stopped["number-pool"] > before["number-pool"]
    assert stopped["copied-code"] == before["copied-code"]


# -- the page


class Structure(HTMLParser):
    """Checks that tags close in order, and notes what a page would run or fetch."""

    VOID = ("meta", "link", "br", "rect")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_runs_nothing_and_fetches_nothing(day: Day) -> None:
    page = render_page(day.report)
    found = Structure(page)
    assert "script" not in found.tags
    assert {value for _, name, value in found.attributes if name in ("href", "src")} == {"data:,"}
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert "http" not in page
    assert "url(" not in page
    assert found.tags.count("svg") == 1 + len(KINDS) + len(day.report.bins)
    assert page.count('role="img"') == page.count("aria-label=") == found.tags.count("svg")


def test_the_page_shows_text_as_text(day: Day) -> None:
    """A rule may be called anything a policy allows, and a message may say anything."""
    story = day.report.stories[0]
    because = dataclasses.replace(story.because[0], message="<b onclick=x>", asks="a < b & c")
    report = dataclasses.replace(
        day.report, stories=(dataclasses.replace(story, because=(because,)),), policy="<script>"
    )
    found = Structure(render_page(report))
    assert "script" not in found.tags
    assert "onclick" not in [name for _, name, _ in found.attributes]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("browser", BROWSERS)
def test_the_page_in_a_browser(day: Day, browser: str, width: int, dark: bool, tmp_path: Path) -> None:
    look = BROWSERS[browser](render_page(day.report), width, dark, tmp_path)
    assert look.complaints == []
    assert look.fetched == []
    assert (look.width, look.dark) == (width, dark)
    assert look.scroll_width <= width
    assert look.too_wide == []
    assert look.smallest_text >= 10
    assert look.shapes > 100
    assert min(contrast(*pair) for pair in look.colours) >= 4.5  # WCAG's bound for text


@pytest.mark.parametrize("browser", BROWSERS)
def test_the_browser_would_tell(browser: str, tmp_path: Path) -> None:
    """A page with every fault that the test above looks for."""
    page = (
        "<!doctype html><html><head><title>x</title><script>console.error('told'); nowhere();</script></head>"
        '<body><img src="nothing.png"><div style="width: 900px; font-size: 5px">wide</div></body></html>'
    )
    look = BROWSERS[browser](page, 400, False, tmp_path)
    assert len(look.complaints) == 3
    assert look.scroll_width > 400
    assert look.too_wide
    assert look.smallest_text == 5
    assert look.shapes == 0


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two CSS colours, WCAG 2.2."""
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of rgb(r, g, b), WCAG 2.2; nothing painted behind is white."""
    numbers = [float(part) for part in re.findall(r"[\d.]+", colour)]
    if len(numbers) == 4 and numbers[3] == 0:
        return 1.0
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(numbers[:3]) / 255
    ]
    return float(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
