"""The parts of a running sidecar, as its routes see them."""

from __future__ import annotations

from dataclasses import dataclass

from riskengine.engine import Engine
from riskengine.errors import RiskEngineError
from riskengine.service.gathering import Gatherer
from riskengine.service.metrics import Metrics
from riskengine.service.policies import Policies
from riskengine.service.settings import Settings
from riskengine.stores import StoreError


@dataclass(slots=True)
class Sidecar:
    """One process of it. `stopping` is set when it is asked to end: it answers on, and wants no more."""

    engine: Engine
    settings: Settings
    policies: Policies
    gatherer: Gatherer
    metrics: Metrics
    stopping: bool = False

    def checks(self) -> dict[str, tuple[bool, str]]:
        """How each part fares: whether traffic may come on its account, and a line about it.

        A store that is away is no reason to send traffic elsewhere: what is decided by contract meanwhile is
        journaled and counted later, which no caller could do by itself.
        """
        engine, settings = self.engine, self.settings
        found: dict[str, tuple[bool, str]] = {}
        kind = settings.store.partition(":")[0]
        try:
            info = engine.info()
            lost = f", {info.lost_events:,} events lost" if info.lost_events else ""
            found["store"] = True, f"{kind}, {info.entities:,} entities{lost}"
            found["epoch"] = True, engine.epoch or "that of this process"
        except StoreError as error:
            found["store"] = True, f"{kind}, degraded: {error.kind}"
            found["epoch"] = True, "missing: rebuild the store" if error.kind == "epoch" else "not known"
        except RiskEngineError as error:
            found["store"] = False, str(error)
        if engine.journal is None:
            found["journal"] = True, "none"
        else:
            status = engine.journal.status
            writes, queued = status["failure"] is None, status["queued"]
            found["journal"] = writes, f"{queued:,} to write" if writes else "failing"
        definition = engine.definition
        models = [name for name in (definition.model, *definition.challengers) if name is not None]
        found["model"] = True, ", ".join(models) or "none"
        behind, act = self.policies.behind, self.policies.current
        how = "of the folder" if act is None else f"activated by {act.author or 'somebody'}"
        told = f"{definition.name} {engine.fingerprint}, {how}"
        found["policy"] = behind is None, told if behind is None else f"{told}; {behind}"
        held, most = self.gatherer.held, settings.queue_events
        found["backlog"] = held < most, f"{held:,} of {most:,} events"
        if self.stopping or not self.gatherer.is_open:
            found["process"] = False, "stopping" if self.stopping else "starting"
        return found
