"""What goes wrong with a journal, in one paragraph for people."""

from __future__ import annotations

from riskengine.errors import RiskEngineError


class JournalError(RiskEngineError):
    """The journal cannot be opened, read or written. `kept`: the call's entries wait in memory."""

    def __init__(self, message: str, kept: bool = False) -> None:
        self.kept = kept
        super().__init__(message)
