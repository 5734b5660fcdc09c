"""What the sidecar counts, for Prometheus. Names and rules are labels; nothing of an event's content is."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from riskengine.decision import Decision
from riskengine.engine import Engine, Result
from riskengine.errors import EventError
from riskengine.service.gathering import Gatherer

SECONDS: Final = (
    0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
)  # fmt: skip
EVENTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000)
RISK: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


class Histogram:
    """How often a value was at most each bound. Fed by one thread."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def fill(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Add what was counted to a family, cumulated as Prometheus has it."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, n in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += n
            buckets.append((bound, total))
        family.add_metric(labels, buckets, self._sum)


class Metrics(Collector):
    """Counted on the event loop in plain dicts (a labelled counter of the client costs 1 us a touch)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._gatherer: Gatherer | None = None
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: dict[str, Histogram] = {}
        self._decisions: Counter[tuple[str, str]] = Counter()
        self._fired: Counter[str] = Counter()
        self._shadow: Counter[str] = Counter()
        self._flags: Counter[str] = Counter()
        self._problems: Counter[str] = Counter()
        self._risk = Histogram(RISK)
        self._batches = Histogram(EVENTS)
        self._scoring = Histogram(SECONDS)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def watch(self, gatherer: Gatherer) -> None:
        """Also tell of this queue."""
        self._gatherer = gatherer

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests[route, status] += 1
        histogram = self._seconds.get(route)
        if histogram is None:
            histogram = self._seconds[route] = Histogram(SECONDS)
        histogram.add(seconds)

    def batch(self, events: int, seconds: float) -> None:
        """The engine scored a batch."""
        self._batches.add(events)
        self._scoring.add(seconds)

    def results(self, events: Sequence[Any], results: Sequence[Result]) -> None:
        """Events were answered."""
        decisions, risk = self._decisions, self._risk
        for event, result in zip(events, results, strict=True):
            if type(result) is not Decision:
                assert isinstance(result, EventError)
                self._problems[result.problems[0].code] += 1
                continue
            decisions[event["type"].strip(), result.action] += 1
            risk.add(result.risk)
            if result.fired:
                self._fired.update(result.fired)
            if result.shadow:
                self._shadow.update(result.shadow)
            if result.flags:
                self._flags.update(result.flags)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Metric families, for the registry."""
        yield _counter("requests", "Requests answered.", ("route", "status"), self._requests)
        seconds = HistogramMetricFamily(
            "riskengine_request_seconds", "From the head of a request to its answer.", labels=("route",)
        )
        for route, histogram in list(self._seconds.items()):
            histogram.fill(seconds, (route,))
        yield seconds
        yield _counter("decisions", "Events decided.", ("type", "action"), self._decisions)
        yield _counter("fired", "Live rules that fired, limits that refused.", ("rule",), self._fired)
        yield _counter("shadow", "The same of rules and limits in shadow.", ("rule",), self._shadow)
        yield _counter("flags", "Flags of decisions (degraded:..., late).", ("flag",), self._flags)
        yield _counter("problems", "Events that could not be decided.", ("code",), self._problems)
        for name, told, histogram in (
            ("risk", "Risk of what was decided.", self._risk),
            ("batch_events", "Events in a batch of the engine.", self._batches),
            ("batch_seconds", "Time the engine took for a batch.", self._scoring),
        ):
            family = HistogramMetricFamily(f"riskengine_{name}", told, labels=())
            histogram.fill(family, ())
            yield family
        if self._gatherer is not None:
            yield GaugeMetricFamily(
                "riskengine_queue_events", "Events waiting or being scored.", value=self._gatherer.held
            )
        for name, value in msgspec.to_builtins(self._engine.info()).items():
            yield GaugeMetricFamily(f"riskengine_store_{name}", f"The store's {name}.", value=value)
        if self._engine.journal is not None:
            status = self._engine.journal.status
            for name in ("queued", "committed", "failures"):
                told = f"The journal's entries or attempts: {name}."
                yield GaugeMetricFamily(f"riskengine_journal_{name}", told, value=status[name])


def _counter(name: str, told: str, labels: Sequence[str], counts: Counter[Any]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"riskengine_{name}", told, labels=labels)
    for key, n in list(counts.items()):
        family.add_metric([str(part) for part in (key if isinstance(key, tuple) else (key,))], n)
    return family
