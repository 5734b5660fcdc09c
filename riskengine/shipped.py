"""Where the policy and the models are that come with riskengine."""

from __future__ import annotations

from pathlib import Path


def shipped(name: str) -> Path:
    """A folder that an installed wheel carries inside the package, and a checkout beside it."""
    package = Path(__file__).resolve().parent
    inside = package / "_shipped" / name
    return inside if inside.is_dir() else package.parent / name
