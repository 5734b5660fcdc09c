"""Where episodes of alerts go from a sidecar: into its log, and to a webhook where there is one."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

import msgspec

from riskengine.engine import Engine
from riskengine.entries import AlertEntry
from riskengine.service.settings import Settings
from riskengine.service.shapes import AlertShown
from riskengine.service.webhook import Delivery, Webhook, secret_of

_log = logging.getLogger(__name__)


class Alerting:
    """Tells of episodes that begin and end. To be closed after the engine's last event."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        """Raises RiskEngineError for a webhook that cannot be."""
        self._webhook: Webhook | None = None
        if settings.alert_webhook is not None:
            self._webhook = Webhook(
                settings.alert_webhook, secret_of(os.environ), settings.alert_webhook_private
            )
        engine.on_alert(self.tell)

    def tell(self, entry: AlertEntry) -> None:
        """An episode changed; nothing here waits."""
        if entry.end_ms is None and not entry.begins:
            return  # it goes on
        state = "opened" if entry.end_ms is None else "closed"
        _log.warning(
            "alert",
            extra={
                "alert": entry.alert, "state": state, "by": entry.by, "key": entry.key,
                "value": round(entry.peak, 6), "above": entry.above, "episode": entry.id,
            },
        )  # fmt: skip
        if self._webhook is not None:
            body = msgspec.json.encode({"event": f"alert.{state}", "episode": AlertShown.of(entry)})
            self._webhook.put(Delivery(f"{entry.id}-{state}", body))

    @property
    def status(self) -> Mapping[str, int]:
        """What the webhook did, by outcome; empty without one."""
        return {} if self._webhook is None else self._webhook.status

    def close(self) -> None:
        """Let the webhook end."""
        if self._webhook is not None:
            self._webhook.close()
