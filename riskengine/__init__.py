"""riskengine: real-time fraud and anti-abuse scoring. `Engine.open(rules)`, then `engine.score(event)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Decision",
    "Engine",
    "EventError",
    "ModelScore",
    "PolicyError",
    "Problem",
    "Reason",
    "RiskEngineError",
]

if TYPE_CHECKING:
    from riskengine.answer import Decision, ModelScore, Reason
    from riskengine.engine import Engine
    from riskengine.errors import EventError, PolicyError, Problem, RiskEngineError

_HOMES = {
    "Decision": "answer", "ModelScore": "answer", "Reason": "answer", "Engine": "engine",
    "EventError": "errors", "PolicyError": "errors", "Problem": "errors", "RiskEngineError": "errors",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: numba and numpy take half a second to come."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
