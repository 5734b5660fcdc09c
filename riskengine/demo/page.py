"""The day as one HTML page: no script, no network, pictures as inline SVG, light and dark, narrow and wide.

The shapes are SVG that stretches with the page; every text stands beside them as HTML, so that it keeps its
size on a telephone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from riskengine.demo.judging import Bin, KindReport, Report, RuleReport, Slot, Tally
from riskengine.demo.stories import Story

# Blue, vermilion and amber stay apart for eyes that do not tell red from green.
STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --panel: #f4f5f7; --ink: #1c2430; --soft: #566072;
  --line: #d5d9e0; --allowed: #a9b1be; --stopped: #1f5fd6; --missed: #c23c06; --hit: #866000; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161d; --panel: #1b212b; --ink: #e8ecf2;
  --soft: #a3adbd; --line: #323b49; --allowed: #5d6879; --stopped: #6ea4ff; --missed: #ff8257;
  --hit: #e6bd4a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 8px; }
h2 { font-size: 1.15rem; margin: 40px 0 4px; }
h3 { font-size: 1rem; margin: 0 0 4px; }
p { margin: 0 0 12px; }
.soft, figcaption, th { color: var(--soft); }
figure { margin: 12px 0 0; }
svg { display: block; width: 100%; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 12px;
  margin: 20px 0 0; }
.tile, .story { background: var(--panel); border-radius: 8px; padding: 14px 16px; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.stopped { color: var(--stopped); } .missed { color: var(--missed); } .hit { color: var(--hit); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: .875rem; margin: 8px 0; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: 6px; }
.axis { display: flex; justify-content: space-between; font-size: .8rem; color: var(--soft); }
.kind { display: grid; grid-template-columns: 10rem 1fr 21rem; gap: 0 16px; align-items: center;
  margin: 6px 0; }
.kind svg { height: 16px; }
.kind .numbers, td, th { font-variant-numeric: tabular-nums; font-size: .875rem; }
.bins { display: grid; grid-template-columns: repeat(10, 1fr); gap: 4px; }
.bins svg { height: 140px; }
.bins span { display: block; text-align: center; font-size: .75rem; color: var(--soft); }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: right; padding: 4px 0 4px 12px; border-bottom: 1px solid var(--line);
  font-weight: normal; }
td:first-child, th:first-child { text-align: left; padding-left: 0; overflow-wrap: anywhere; }
code { font: .875em ui-monospace, monospace; overflow-wrap: anywhere; }
pre { background: var(--panel); border-radius: 8px; padding: 12px 16px; margin: 8px 0; white-space: pre-wrap;
  overflow-wrap: anywhere; font: .875rem/1.6 ui-monospace, monospace; }
.story { margin: 12px 0; }
.story ul { margin: 0 0 8px; padding-left: 20px; }
@media (max-width: 800px) { .kind { grid-template-columns: 1fr; margin: 14px 0; } .bins { gap: 2px; }
  .bins span { font-size: .65rem; } td, th { padding-left: 8px; } }
"""

TRY_NEXT = (
    ("riskengine init rules", "your own copy of the policy"),
    ("riskengine check rules", "after every edit: places and mends"),
    ("riskengine test rules", "the examples beside the rules"),
    ("riskengine demo --rules rules", "this day again, under your rules"),
)


def render_page(report: Report) -> str:
    """The whole page."""
    body = "\n".join(
        [
            *_head(report),
            *_traffic(report.slots),
            *_kinds(report),
            *_risk(report.bins),
            *_rules(report.rules),
            *_stories(report.stories),
            *_next(),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<title>riskengine: a campaign day under attack</title>\n"
        f'<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def yuan(tally: Tally) -> str:
    """Money with its separators: 1,234.50."""
    return f"{tally.fen / 100:,.2f}"


def _head(report: Report) -> Iterator[str]:
    people = sum(report.customers.values())
    refused = report.customers["denied"] + report.customers["failed"]
    yield "<h1>A campaign day under attack</h1>"
    yield (
        f'<p class="soft">{report.events:,} simulated events (seed {report.seed}), {report.abuse.events:,} '
        f"attempts of abuse among them, decided by the policy {escape(report.policy)}. Who is refused learns "
        "from it: abuse changes its ways, and gives up when it does not pay.</p>"
    )
    yield '<div class="tiles">'
    yield _tile(
        "stopped",
        "of what abuse was after was kept from it",
        _share(report.stopped.fen, report.abuse.fen),
        f"{report.stopped.events:,} attempts at {yuan(report.stopped)} yuan; "
        f"{report.held.events:,} at {yuan(report.held)} wait for a person",
    )
    yield _tile(
        "missed",
        "of it got through",
        _share(report.missed.fen, report.abuse.fen),
        f"{report.missed.events:,} attempts, {yuan(report.missed)} yuan lost",
    )
    yield _tile(
        "hit",
        "of what customers did was refused by mistake",
        _share(refused, people, 2),
        f"{refused:,} of {people:,}, after {report.hit_fen / 100:,.2f} yuan; {report.customers['asked']:,} "
        f"were asked and passed, {report.customers['held']:,} held",
    )
    yield "</div>"


def _tile(css: str, label: str, figure: str, detail: str) -> str:
    return (
        f'<div class="tile"><b class="{css}">{figure}</b>{label}<br><span class="soft">{detail}</span></div>'
    )


def _traffic(slots: Sequence[Slot]) -> Iterator[str]:
    top = max(slot.allowed + slot.hit + slot.stopped + slot.missed for slot in slots)
    yield "<h2>Traffic over the day</h2>"
    yield f'<p class="soft">Events in each quarter of an hour, local time; the top is {top:,}.</p>'
    yield _legend(
        ("allowed", "customers, allowed"),
        ("hit", "customers, asked, held or refused"),
        ("stopped", "abuse, stopped or held"),
        ("missed", "abuse, missed"),
    )
    yield "<figure>"
    yield (
        f'<svg viewBox="0 0 {len(slots)} {top}" preserveAspectRatio="none" style="height:240px" role="img" '
        'aria-label="Traffic and what was stopped, over the day">'
    )
    for x, slot in enumerate(slots):
        low = top
        minutes = (slot.start_ms // 60_000 + 8 * 60) % 1_440
        at = f"{minutes // 60:02}:{minutes % 60:02}"
        parts = (
            ("allowed", slot.allowed), ("hit", slot.hit), ("stopped", slot.stopped), ("missed", slot.missed),
        )  # fmt: skip
        told = ", ".join(f"{count:,} {name}" for name, count in parts if count)
        yield f"<g><title>{at}: {told or 'nothing'}</title>"
        for name, count in parts:
            if count:
                low -= count
                yield f'<rect x="{x}.06" y="{low}" width=".88" height="{count}" fill="var(--{name})"/>'
        yield "</g>"
    yield "</svg>"
    hours = len(slots) // 4
    marks = "".join(f"<span>{hours * i // 4 % 24:02}:00</span>" for i in range(4))
    yield f'<div class="axis">{marks}<span>24:00</span></div>'
    yield "</figure>"


def _kinds(report: Report) -> Iterator[str]:
    yield "<h2>By kind of abuse</h2>"
    yield (
        '<p class="soft">Of the money that each kind was after; most goes to takeovers and stolen cards. '
        "Denied, or asked and failed, is stopped; held waits for a person.</p>"
    )
    yield _legend(("stopped", "stopped"), ("hit", "held"), ("missed", "missed"))
    for kind in report.kinds:
        whole = kind.stopped + kind.held + kind.missed
        if not whole.events:
            continue
        most = max(whole.fen, 1)
        name = escape(kind.kind.replace("-", " "))
        yield (
            f'<div class="kind"><span>{name}</span>'
            f'<svg viewBox="0 0 {most} 1" preserveAspectRatio="none" role="img" aria-label="{name}: '
            f'{kind.stopped.events} stopped, {kind.held.events} held, {kind.missed.events} missed">'
            f'<rect width="{kind.stopped.fen}" height="1" fill="var(--stopped)"/>'
            f'<rect x="{kind.stopped.fen}" width="{kind.held.fen}" height="1" fill="var(--hit)"/>'
            f'<rect x="{kind.stopped.fen + kind.held.fen}" width="{kind.missed.fen}" height="1" '
            'fill="var(--missed)"/></svg><span class="numbers">'
            f"{_share(kind.stopped.fen, whole.fen, 0)} of {whole.events:,} attempts; {yuan(kind.stopped)} "
            f"kept, {yuan(kind.missed)} lost{_waited(kind)}</span></div>"
        )


def _waited(kind: KindReport) -> str:
    """How long it went on before the first was stopped."""
    if kind.first_stop_ms is None:
        return ""
    return f"; first stopped after {kind.first_stop_ms / 60_000:,.0f} min"


def _risk(bins: Sequence[Bin]) -> Iterator[str]:
    people = sum(one.customers for one in bins) or 1
    abuse = sum(one.abuse for one in bins) or 1
    yield "<h2>Risk that the rules saw</h2>"
    yield (
        '<p class="soft">How events spread over the risk, customers and abuse each taken as a whole. The '
        "height is the square root of the share, so that the few are seen too. Limits deny at any risk.</p>"
    )
    yield _legend(("allowed", "customers"), ("missed", "abuse"))
    yield '<div class="bins">'
    for one in bins:
        heights = [100 * math.sqrt(one.customers / people), 100 * math.sqrt(one.abuse / abuse)]
        bars = "".join(
            f'<rect x="{x}" y="{100 - height:.1f}" width="9" height="{height:.1f}" fill="var(--{name})"/>'
            for x, height, name in ((0, heights[0], "allowed"), (10, heights[1], "missed"))
        )
        told = f"{one.low:.1f} to {one.high:.1f}: {one.customers:,} of customers, {one.abuse:,} of abuse"
        yield (
            '<div><svg viewBox="0 0 19 100" preserveAspectRatio="none" role="img" '
            f'aria-label="risk {told}"><title>{told}</title>{bars}</svg>'
            f"<span>{one.low:.1f}</span></div>"
        )
    yield "</div>"


def _rules(rules: Sequence[RuleReport]) -> Iterator[str]:
    yield "<h2>By rule</h2>"
    yield '<p class="soft">An event counts for every rule that fired on it. A limit is marked.</p>'
    yield from _table(
        ("rule", "abuse stopped", "yuan kept", "customers hit"),
        (
            (rule.name + (" (limit)" if rule.is_limit else ""), f"{rule.abuse.events:,}", yuan(rule.abuse),
             f"{rule.customers:,}")
            for rule in rules
            if not rule.is_shadow
        ),
    )  # fmt: skip
    watched = [rule for rule in rules if rule.is_shadow]
    if watched:
        yield "<h2>In shadow</h2>"
        yield '<p class="soft">These rules act on nobody yet. This is whom they would have met.</p>'
        yield from _table(
            ("rule", "abuse", "of it missed by the others", "customers"),
            (
                (rule.name, f"{rule.abuse.events:,}", f"{rule.abuse_missed:,}", f"{rule.customers:,}")
                for rule in watched
            ),
        )


def _stories(stories: Sequence[Story]) -> Iterator[str]:
    yield "<h2>Decisions in words</h2>"
    for story in stories:
        yield f'<div class="story"><h3>{escape(story.title)}</h3><p>{escape(story.what)}</p><ul>'
        for because in story.because:
            saw = f" Here {escape(because.saw)}." if because.saw else ""
            yield (
                f"<li><b>{escape(because.name)}</b> {escape(because.does)}: {escape(because.message)}."
                f'<br><code>{escape(because.asks)}</code><br><span class="soft">{saw}</span></li>'
            )
        yield f'</ul><p class="soft">{escape(story.risk)}</p></div>'


def _next() -> Iterator[str]:
    yield "<h2>What to try next</h2>"
    yield "<pre>" + "\n".join(f"{escape(command)}   # {escape(why)}" for command, why in TRY_NEXT) + "</pre>"


def _legend(*entries: tuple[str, str]) -> str:
    marks = "".join(
        f'<span><i style="background:var(--{name})"></i>{escape(text)}</span>' for name, text in entries
    )
    return f'<div class="legend">{marks}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "<table><tr>" + "".join(f"<th>{escape(text)}</th>" for text in head) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
    yield "</table>"


def _share(part: int, whole: int, digits: int = 1) -> str:
    return f"{part / whole:.{digits}%}" if whole else "none"
