"""Figures as SVG: lines and bars with their axes, for the folders of models and for reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 560
HEIGHT: Final = 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 40, 48
# Colours that stay apart for eyes that do not tell red from green, on light ground and on dark.
COLOURS: Final = ("#1f5fd6", "#d9480f", "#b7860b", "#7a8496")
STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#566072}.t{font-size:14px;fill:#1c2430}"
    ".g{stroke:#d5d9e0;fill:none}"
    "@media(prefers-color-scheme:dark){text{fill:#a3adbd}.t{fill:#e8ecf2}.g{stroke:#323b49}}"
)

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """A named row of points, drawn as a line, or as dots."""

    name: str
    points: Sequence[Point]
    dots: bool = False


def lines(title: str, x_name: str, y_name: str, drawn: Sequence[Line], y_max: float | None = None) -> str:
    """Lines over two axes that begin at zero, or at the least x."""
    every = [point for line in drawn for point in line.points]
    x_low, x_high = min([0.0, *(x for x, _ in every)]), max([x for x, _ in every] or [1.0])
    y_high = y_max if y_max is not None else max([y for _, y in every] or [1.0])
    x_at = _scale(x_low, x_high or 1.0, LEFT, WIDTH - RIGHT)
    y_at = _scale(0.0, y_high or 1.0, HEIGHT - BOTTOM, TOP)
    parts = _axes(title, x_name, y_name, (x_low, x_high or 1.0), y_high or 1.0)
    for at, line in enumerate(drawn):
        colour = COLOURS[at % len(COLOURS)]
        spots = [(x_at(x), y_at(y)) for x, y in line.points]
        if line.dots:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in spots]
        elif spots:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    parts += _legend([line.name for line in drawn])
    return _svg(title, parts, HEIGHT)


def bars(title: str, x_name: str, y_name: str, names: Sequence[str], groups: Sequence[Line]) -> str:
    """Bars side by side for each name; the values are the y of each group's points."""
    highest = max([y for group in groups for _, y in group.points] or [1.0]) or 1.0
    y_at = _scale(0.0, highest, HEIGHT - BOTTOM, TOP)
    parts = _axes(title, x_name, y_name, None, highest)
    slot = (WIDTH - LEFT - RIGHT) / max(1, len(names))
    width = slot * 0.8 / max(1, len(groups))
    for at, group in enumerate(groups):
        for i, (_, y) in enumerate(group.points):
            x, top = LEFT + i * slot + slot * 0.1 + at * width, y_at(y)
            parts.append(
                f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{HEIGHT - BOTTOM - top:.1f}" '
                f'fill="{COLOURS[at % len(COLOURS)]}"><title>{escape(names[i])}: {y:.4g}</title></rect>'
            )
    every = max(1, -(-len(names) // 8))
    for i in range(0, len(names), every):
        x = LEFT + (i + 0.5) * slot
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(names[i])}</text>'
        )
    parts += _legend([group.name for group in groups])
    return _svg(title, parts, HEIGHT)


def ranking(title: str, values: Sequence[tuple[str, float]]) -> str:
    """Bars from left to right with their names, the longest as wide as there is room."""
    height = TOP + 20 * len(values) + 12
    most = max([value for _, value in values] or [1.0]) or 1.0
    parts = [f'<text class="t" x="12" y="24">{escape(title)}</text>']
    for i, (name, value) in enumerate(values):
        y = TOP + 20 * i
        parts.append(f'<text x="216" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect x="224" y="{y + 2}" width="{(WIDTH - 240) * value / most:.1f}" height="13" '
            f'fill="{COLOURS[0]}"><title>{escape(name)}: {value:.4g}</title></rect>'
        )
    return _svg(title, parts, height)


def _scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    span = high - low or 1.0
    return lambda value: first + (min(max(value, low), high) - low) / span * (last - first)


def _axes(title: str, x_name: str, y_name: str, x: tuple[float, float] | None, y_high: float) -> list[str]:
    low = HEIGHT - BOTTOM
    parts = [
        f'<text class="t" x="12" y="24">{escape(title)}</text>',
        f'<path class="g" d="M{LEFT} {TOP}V{low}H{WIDTH - RIGHT}"/>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 10}" text-anchor="end">{escape(x_name)}</text>',
        f'<text x="12" y="{HEIGHT - 10}">{escape(y_name)}</text>',
    ]
    for i in range(5):
        y = low - (low - TOP) * i / 4
        if i:
            parts.append(f'<path class="g" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke-dasharray="2 4"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{y_high * i / 4:.3g}</text>')
        if x is not None:
            at = LEFT + (WIDTH - LEFT - RIGHT) * i / 4
            shown = x[0] + (x[1] - x[0]) * i / 4
            parts.append(f'<text x="{at:.1f}" y="{low + 16}" text-anchor="middle">{shown:.3g}</text>')
    return parts


def _legend(names: Sequence[str]) -> list[str]:
    if len(names) < 2:
        return []
    parts, x = [], WIDTH - RIGHT
    for at, name in reversed(list(enumerate(names))):
        x -= 7 * len(name) + 26
        parts.append(
            f'<rect x="{x}" y="14" width="10" height="10" fill="{COLOURS[at % len(COLOURS)]}"/>'
            f'<text x="{x + 14}" y="23">{escape(name)}</text>'
        )
    return parts


def _svg(title: str, parts: Sequence[str], height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}"><style>{STYLE}</style>' + "".join(parts) + "</svg>\n"
    )
