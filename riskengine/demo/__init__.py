"""A campaign day under attack, scored and judged: what was stopped and missed, and who was hit by mistake.

`play` lets a campaign happen to an engine; `judge` holds its decisions against what only the simulation
knows; `render_page` shows it all.
"""

from __future__ import annotations

from riskengine.demo.judging import (
    DAYS,
    Bin,
    Day,
    KindReport,
    Report,
    RuleReport,
    Slot,
    Tally,
    judge,
    play,
    with_shipped_model,
)
from riskengine.demo.page import render_page
from riskengine.demo.stories import Because, Story

__all__ = [
    "DAYS",
    "Because",
    "Bin",
    "Day",
    "KindReport",
    "Report",
    "RuleReport",
    "Slot",
    "Story",
    "Tally",
    "judge",
    "play",
    "render_page",
    "with_shipped_model",
]
