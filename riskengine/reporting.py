"""A report on a model as one HTML page: figures, plots and tables, with no script and no network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from riskengine.evaluation import Report, Slice
from riskengine.publishing import pictures

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --panel: #f4f5f7; --ink: #1c2430; --soft: #566072;
  --line: #d5d9e0; }
@media (prefers-color-scheme: dark) { :root { --ground: #12161d; --panel: #1b212b; --ink: #e8ecf2;
  --soft: #a3adbd; --line: #323b49; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 8px; }
h2 { font-size: 1.15rem; margin: 32px 0 4px; }
.soft, th { color: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 16px; }
.plots svg { display: block; width: 100%; background: var(--panel); border-radius: 8px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .875rem; }
td, th { text-align: right; padding: 4px 0 4px 12px; border-bottom: 1px solid var(--line);
  font-weight: normal; }
td:first-child, th:first-child { text-align: left; padding-left: 0; }
"""


def render(name: str, report: Report) -> str:
    """The whole page."""
    body = "\n".join(_body(name, report))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>riskengine: model {escape(name)}</title>\n"
        f'<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _body(name: str, report: Report) -> Iterator[str]:
    yield f"<h1>Model {escape(name)}</h1>"
    yield f'<p class="soft">{report.rows:,} rows with {report.frauds:,} frauds.</p>'
    yield from _table(
        ("", "value", "95 % from", "to"),
        (
            (key.replace("_", " "), f"{one.value:.4f}", f"{one.low:.4f}", f"{one.high:.4f}")
            for key, one in report.metrics.items()
        ),
    )
    yield (
        f'<p class="soft">Intervals by bootstrap of {escape(report.drawn)}; precision at k is of '
        f"{report.top} entities a day, by day. Cheapest: review {report.best.reviewed:,} rows from a score "
        f"of {report.best.score:.3f} on, which costs {report.best.cost:,.2f}.</p>"
    )
    yield '<div class="plots">'
    yield from pictures(report).values()
    yield "</div>"
    yield "<h2>By event type</h2>"
    yield from _slices(report.by_type)
    yield "<h2>By day</h2>"
    yield from _slices(report.by_day)


def _slices(slices: Sequence[Slice]) -> Iterator[str]:
    yield from _table(
        ("", "rows", "frauds", "AUC", "average precision", "precision at k"),
        (
            (one.name, f"{one.rows:,}", f"{one.frauds:,}", *map(_figure, (one.auc, one.average_precision,
             one.precision_at_k)))
            for one in slices
        ),
    )  # fmt: skip


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield '<div class="wide"><table><tr>' + "".join(f"<th>{escape(text)}</th>" for text in head) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
    yield "</table></div>"
