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

from riskengine import Engine, RiskEngineError, cli
from riskengine.definition import Definition
from riskengine.demo import Day, Report, judge, play, render_page, with_shipped_model
from riskengine.policy import load_definition
from riskengine.simulate import CAMPAIGN_DAY_MS, HONEST, IN_VAIN, KINDS, at_stake

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "rules"
USERS = 3_000


@dataclasses.dataclass(frozen=True)
class Played:
    day: Day
    definition: Definition
    report: Report


@pytest.fixture(scope="module")
def played() -> Played:
    shown: list[int] = []
    with Engine.open(RULES) as engine:
        day = play(engine, 7, USERS, shown.append)
        report = judge(7, day, engine.definition)
        assert shown == sorted(shown)
        assert 0 < shown[-1] <= len(day.decisions) == len(day.traffic.told)
        return Played(day, engine.definition, report)


# -- what it says


def test_the_shipped_policy_stops_most_abuse_and_spares_customers(played: Played) -> None:
    report, people = played.report, sum(played.report.customers.values())
    assert report.stopped.fen + report.held.fen > 0.9 * report.abuse.fen
    assert report.customers["denied"] + report.customers["failed"] < 0.003 * people
    assert report.customers["asked"] < 0.02 * people


def test_every_attempt_is_counted_once(played: Played) -> None:
    """Counted a second time, the plain way."""
    report = played.report
    last: dict[str, tuple[str, str, int]] = {}
    for one, decision in zip(played.day.traffic.told, played.day.decisions, strict=True):
        assert decision.event_id == one.event["event_id"]
        assert (decision.action, decision.challenge) == (one.outcome.action, one.outcome.challenge)
        is_step = one.kind in KINDS and not at_stake(one.event)
        if (
            one.event["time"] >= CAMPAIGN_DAY_MS
            and (one.attempt in last or "follows" not in one.event)
            and not is_step
        ):
            last[one.attempt] = one.kind, decision.action, "follows" in one.event

    def number(kind: str, *actions: str) -> int:
        return sum(one == kind and action in actions for one, action, _ in last.values())

    for kind in report.kinds:
        assert kind.stopped.events == number(kind.kind, "deny", "challenge")
        assert kind.held.events == number(kind.kind, "review")
        assert kind.missed.events == number(kind.kind, "allow")
        assert kind.first_stop_ms is None or kind.stopped.events
    assert sum(report.customers.values()) == sum(kind == HONEST for kind, *_ in last.values())
    assert report.customers["denied"] == number(HONEST, "deny")
    assert report.customers["asked"] == sum(
        kind == HONEST and action == "allow" and follows for kind, action, follows in last.values()
    )
    assert report.in_vain == sum(kind == IN_VAIN for kind, *_ in last.values())
    assert sum(slot.hit for slot in report.slots) <= report.hit
    assert sum(one.abuse for one in report.bins) >= report.abuse.events
    decisions = {d.event_id: d for d in played.day.decisions}
    for rule in report.rules:
        met = [
            one
            for one in played.day.traffic.told
            if one.event["time"] >= CAMPAIGN_DAY_MS
            for d in [decisions[one.event["event_id"]]]
            if (rule.name in d.shadow if rule.is_shadow else rule.name in d.fired and d.action != "allow")
        ]
        assert rule.abuse.events == sum(one.kind in KINDS for one in met)
        assert rule.customers == sum(one.kind == HONEST for one in met)


def test_an_order_charged_22_times_is_paid_once(played: Played) -> None:
    charges: dict[str, list[str]] = {}
    for one in played.day.traffic.told:
        if one.event.get("payment_account", "").startswith("card-again"):
            charges.setdefault(one.event["order_id"], []).append(one.outcome.action)
    assert charges
    assert all(of == ["allow"] + 21 * ["deny"] for of in charges.values())


def test_three_decisions_are_told_and_true(played: Played) -> None:
    """What a rule is said to have seen is what the features of that very decision say."""
    assert [story.title for story in played.report.stories] == [
        "Denied on a hard fact",
        "Soft signals that add up",
        "A customer who was hit by mistake",
    ]
    rows = [d.features for d in played.day.decisions]
    for story in played.report.stories:
        for because in story.because:
            for name, value in re.findall(r"(\w+) was (\d+)(?:,|$)", because.saw):
                if name in played.definition.features:
                    assert any(row[name] == float(value) for row in rows if isinstance(row, dict))
    soft = played.report.stories[1]
    risks = [float(risk) for because in soft.because for risk in re.findall(r"risk ([\d.]+)", because.does)]
    assert len(risks) >= 2
    expected = 1 - np.prod([1 - risk for risk in risks])
    assert f"= {expected:.2f}; review begins at 0.50" in soft.risk


def test_events_that_a_policy_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("policy: p\nevents: {login: {}}\n", encoding="utf-8")
    with (
        Engine.open(load_definition(tmp_path)) as engine,
        pytest.raises(RiskEngineError, match="The demo needs the event types of the shipped policy"),
    ):
        play(engine, 7, 100)


# -- the command


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_tells_the_day(room: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["demo", "--users", str(USERS)]) == 0
    sys.stdout.flush()
    told = capfd.readouterr()
    assert "simulating a campaign of 3,000 customers" in told.err
    for part in ("stopped", "missed", "hit by mistake", "card-testing", "Three decisions", "Try next"):
        assert part in told.out
    assert max(len(line) for line in told.out.splitlines() if "pictures" not in line) <= 80
    assert told.out.splitlines()[-1] == f"The day in pictures: {room / 'riskengine-demo.html'}"
    assert (room / "riskengine-demo.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in room.iterdir()] == ["riskengine-demo.html"]


def test_the_shipped_model_acts_where_it_fits(
    room: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def missed(*more: str) -> int:
        assert cli.run(["demo", "--users", "1000", "--json", *more]) == 0
        sys.stdout.flush()
        return int(json.loads(capfd.readouterr().out)["missed"]["events"])

    assert missed() < missed("--model", "none")
    (tmp_path / "p.yaml").write_text("policy: p\nevents: {login: {}}\n", encoding="utf-8")
    assert with_shipped_model(load_definition(tmp_path)).model is None


def test_the_command_for_programs(
    room: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same seed gives the same report; a changed rule gives another."""

    def told(*more: str) -> dict[str, Any]:
        assert (
            cli.run(["demo", "--users", "2000", "--json", "--model", "none", "--out", "page.html", *more])
            == 0
        )
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
    changed = room / "mine" / "qr.yaml"
    changed.write_text(
        changed.read_text("utf-8").replace("    by: code\n", "    by: code\n    mode: shadow\n"), "utf-8"
    )
    missed = {kind["kind"]: kind["missed"]["fen"] for kind in told("--seed", "5", "--rules", "mine")["kinds"]}
    before = {kind["kind"]: kind["missed"]["fen"] for kind in first["kinds"]}
    assert missed["copied-code"] > before["copied-code"]
    assert missed["charged-again"] == before["charged-again"]


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


def test_the_page_runs_nothing_and_fetches_nothing(played: Played) -> None:
    page = render_page(played.report)
    found = Structure(page)
    assert "script" not in found.tags
    assert {value for _, name, value in found.attributes if name in ("href", "src")} == {"data:,"}
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert "http" not in page
    assert "url(" not in page
    assert found.tags.count("svg") == 1 + sum(
        (kind.stopped + kind.held + kind.missed).events > 0 for kind in played.report.kinds
    ) + len(played.report.bins)
    assert page.count('role="img"') == page.count("aria-label=") == found.tags.count("svg")


def test_the_page_shows_text_as_text(played: Played) -> None:
    """A rule may be called anything a policy allows, and a message may say anything."""
    story = played.report.stories[0]
    because = dataclasses.replace(story.because[0], message="<b onclick=x>", asks="a < b & c")
    report = dataclasses.replace(
        played.report, stories=(dataclasses.replace(story, because=(because,)),), policy="<script>"
    )
    found = Structure(render_page(report))
    assert "script" not in found.tags
    assert "onclick" not in [name for _, name, _ in found.attributes]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("browser", BROWSERS)
def test_the_page_in_a_browser(played: Played, browser: str, width: int, dark: bool, tmp_path: Path) -> None:
    look = BROWSERS[browser](render_page(played.report), width, dark, tmp_path)
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
