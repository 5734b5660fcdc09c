"""A campaign day under attack, scored and judged: what was stopped and missed, and who was hit by mistake.

`play` scores simulated traffic; `judge` holds the decisions against the labels; `render_page` shows it all.
"""

from __future__ import annotations

from riskengine.demo.judging import (
    ALLOW,
    Bin,
    KindReport,
    Report,
    RuleReport,
    Slot,
    Tally,
    judge,
    play,
    watched_by_model,
)
from riskengine.demo.page import render_page
from riskengine.demo.stories import Because, Story

__all__ = [
    "ALLOW",
    "Because",
    "Bin",
    "KindReport",
    "Report",
    "RuleReport",
    "Slot",
    "Story",
    "Tally",
    "judge",
    "play",
    "render_page",
    "watched_by_model",
]
