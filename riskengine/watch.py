"""An engine's alerts at work: fed with what is decided, told to the journal and to whoever asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from riskengine.alerts import Alerts, AlertSet
from riskengine.decision import Verdict
from riskengine.entries import AlertEntry
from riskengine.errors import RiskEngineError
from riskengine.features import Touches
from riskengine.layout import Int64s

if TYPE_CHECKING:
    from riskengine.journal import Journal

Told = Callable[[AlertEntry], None]


class Watch:
    """The alerts of a process, whatever policy declares them. Safe to share between threads."""

    def __init__(self, compiled: AlertSet | None, origin: str, journal: Journal | None) -> None:
        """`origin` names this process in episodes; one of the same goes on with those open in its journal."""
        self._origin = origin
        self._journal = journal
        self._alerts = Alerts(compiled, origin) if compiled is not None else None
        self._told: list[Told] = []
        self._lock = threading.RLock()

    def on_alert(self, told: Told) -> None:
        """Have `told` called with what becomes of episodes, as Engine.on_alert says."""
        with self._lock:
            self._told.append(told)

    def resume(self, now: int) -> None:
        """Go on with the episodes that the journal has as open."""
        if self._alerts is not None and self._journal is not None:
            with self._lock:
                self._tell(self._alerts.resume(self._journal.alerts(open_only=True), now))

    def take(
        self, found: Touches, verdict: Verdict, now: int | Int64s, left_out: Collection[int] = ()
    ) -> None:
        """Count decided events but those rows `left_out`."""
        if self._alerts is None:
            return
        with self._lock:
            alerts = self._alerts
            if alerts is not None:
                self._tell(alerts.take(found, verdict, now, left_out))

    def adopt(self, compiled: AlertSet | None, now: int) -> None:
        """Go by what another policy declares."""
        with self._lock:
            alerts = self._alerts
            if alerts is None:
                self._alerts = Alerts(compiled, self._origin) if compiled is not None else None
            elif compiled is None:
                self._alerts = None
                self._tell(alerts.close_all(now))
            else:
                self._tell(alerts.adopt(compiled, now))

    def look(self, now: int) -> None:
        """End the episodes that have ended by the clock, where no event has come since."""
        with self._lock:
            if self._alerts is not None:
                self._tell(self._alerts.look(now))

    def episodes(self) -> list[AlertEntry]:
        """Open ones and the latest that ended, the newest first."""
        with self._lock:
            return self._alerts.episodes() if self._alerts is not None else []

    @property
    def status(self) -> Mapping[str, int]:
        """Open episodes, keys evicted, what found no room; empty without alerts."""
        alerts = self._alerts
        return {} if alerts is None else alerts.status

    def close(self) -> None:
        """Journal the episodes that are open, for the next process of this origin."""
        with self._lock:
            if self._alerts is not None and self._journal is not None:
                with suppress(RiskEngineError):  # it will be told by closing it
                    self._journal.append(self._alerts.open_now())

    def _tell(self, changed: Sequence[AlertEntry]) -> None:
        """Journal what became of episodes, and tell those who asked; neither may fail what was decided."""
        if not changed:
            return
        if self._journal is not None:
            with suppress(RiskEngineError):  # its status and the log tell of a journal that takes nothing
                self._journal.append(changed)
        for told in self._told:
            for entry in changed:
                told(entry)
