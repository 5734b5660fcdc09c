"""What the sidecar counts, for Prometheus. Names and rules are labels; nothing of an event's content is.

Several workers share a folder: each writes there what it counted, and whoever is asked sums all up. A worker
that takes the place of a dead one goes on from what that one wrote: sums never go back.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from riskengine.decision import Decision
from riskengine.engine import Engine
from riskengine.entries import AlertEntry
from riskengine.errors import EventError, RiskEngineError
from riskengine.judge import DEGRADED, Result
from riskengine.service import logs
from riskengine.service.alerting import Alerting
from riskengine.service.gathering import Gatherer

SECONDS: Final = (
    0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
)  # fmt: skip
EVENTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000)
RISK: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
WRITE_SECONDS: Final = 0.5  # between a worker's writes of what it counted
SEEN_MAX: Final = 4_096  # kinds of decisions between two times that they are told apart
Names = tuple[str, ...]


class Histogram(msgspec.Struct):
    """How often a value was at most each bound. Fed by one thread."""

    bounds: tuple[float, ...]
    counts: list[int]
    sum: float = 0.0

    @classmethod
    def of(cls, bounds: tuple[float, ...]) -> Histogram:
        """One without values."""
        return cls(bounds, [0] * (len(bounds) + 1))

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def take_in(self, other: Histogram) -> None:
        """Add what another counted."""
        if other.bounds == self.bounds:
            self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
            self.sum += other.sum

    def fill(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Add what was counted to a family, cumulated as Prometheus has it."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, n in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += n
            buckets.append((bound, total))
        family.add_metric(labels, buckets, self.sum)


class Counts(msgspec.Struct):
    """Everything that is counted in one process, by label."""

    requests: dict[tuple[str, int], int] = {}
    seconds: dict[str, Histogram] = {}
    decisions: dict[tuple[str, str], int] = {}
    fired: dict[str, int] = {}
    shadow: dict[str, int] = {}
    flags: dict[str, int] = {}
    problems: dict[str, int] = {}
    store_errors: dict[str, int] = {}
    alerts: dict[str, int] = {}  # episodes that began, by alert
    webhook: dict[str, int] = {}  # deliveries by outcome
    log_dropped: int = 0
    risk: Histogram = msgspec.field(default_factory=lambda: Histogram.of(RISK))
    batches: Histogram = msgspec.field(default_factory=lambda: Histogram.of(EVENTS))
    scoring: Histogram = msgspec.field(default_factory=lambda: Histogram.of(SECONDS))
    gauges: dict[str, float] = {}  # what there is just now; those of a process that ended are void

    def take_in(self, other: Counts) -> None:
        """Add what another process counted."""
        for name in _TALLIES:
            tally: dict[Any, int] = getattr(self, name)
            for key, n in list(getattr(other, name).items()):
                tally[key] = tally.get(key, 0) + n
        for route, histogram in list(other.seconds.items()):
            self.seconds.setdefault(route, Histogram.of(SECONDS)).take_in(histogram)
        self.log_dropped += other.log_dropped
        self.risk.take_in(other.risk)
        self.batches.take_in(other.batches)
        self.scoring.take_in(other.scoring)
        for name, value in list(other.gauges.items()):
            self.gauges[name] = self.gauges.get(name, 0.0) + value


_TALLIES: Final = (
    "requests",
    "decisions",
    "fired",
    "shadow",
    "flags",
    "problems",
    "store_errors",
    "alerts",
    "webhook",
)
_GAUGES: Final = {
    "queue_events": "Events waiting or being scored.",
    "alerts_open": "Episodes of alerts that go on.",
    "alerts_evicted": "Keys of alerts that made room for others.",
    "alerts_overflown": "Events and episodes of alerts for which there was no room.",
    "journal_queued": "The journal's entries: queued.",
    "journal_committed": "The journal's entries: committed.",
    "journal_failures": "The journal's attempts: failures.",
}


class Metrics(Collector):
    """Counted on the event loop in plain dicts (a labelled counter of the client costs 1 us a touch)."""

    def __init__(self, engine: Engine, own: Path | None = None) -> None:
        """`own` is this worker's file in the folder that workers share; None: there is one process."""
        self._engine = engine
        self._own = own
        self._gatherer: Gatherer | None = None
        self._counts = _read(own) or Counts() if own is not None else Counts()
        self._counts.gauges = {}
        # Decisions by type, action, what fired, what did in shadow, and flags: one look-up an event, not one
        # for each of them (0.5 us less). Told apart when somebody asks, or when they are many.
        self._seen: dict[tuple[str, str, Names, Names, Names], int] = {}
        self._lock = threading.Lock()  # around what is told apart
        self._before = dict(self._counts.store_errors)
        self._dropped_before = self._counts.log_dropped
        self._webhook_before = dict(self._counts.webhook)
        self._alerting: Alerting | None = None
        engine.on_alert(self._alerted)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def watch(self, gatherer: Gatherer, alerting: Alerting | None = None) -> None:
        """Also tell of this queue, and of where alerts go."""
        self._gatherer = gatherer
        self._alerting = alerting

    def _alerted(self, entry: AlertEntry) -> None:
        if entry.begins:
            _count(self._counts.alerts, (entry.alert,))

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        counts = self._counts
        key = route, status
        counts.requests[key] = counts.requests.get(key, 0) + 1
        histogram = counts.seconds.get(route)
        if histogram is None:
            histogram = counts.seconds[route] = Histogram.of(SECONDS)
        histogram.add(seconds)

    def batch(self, events: int, seconds: float) -> None:
        """The engine scored a batch."""
        self._counts.batches.add(events)
        self._counts.scoring.add(seconds)

    def results(self, events: Sequence[Any], results: Sequence[Result]) -> None:
        """Events were answered."""
        for event, result in zip(events, results, strict=True):
            if isinstance(result, EventError):
                _count(self._counts.problems, (result.problems[0].code,))
            else:
                self.decided(event, result)

    def decided(self, event: Mapping[str, Any], decision: Decision) -> None:
        """An event was decided."""
        seen = self._seen
        key = event["type"], decision.action, decision.fired, decision.shadow, decision.flags
        known = seen.get(key)
        if known is None:
            if len(seen) >= SEEN_MAX:
                self._tell_apart()
            known = 0
        seen[key] = known + 1
        self._counts.risk.add(decision.risk)

    def _tell_apart(self) -> None:
        """Add what was seen to what is counted. On the event loop, or while nothing is decided."""
        with self._lock:
            _add_seen(self._counts, self._seen)
            self._seen.clear()

    def write(self) -> None:
        """Let the other workers read what was counted."""
        if self._own is not None:
            partial = self._own.with_suffix(".partial")
            partial.write_bytes(msgspec.msgpack.encode(self._now()))
            os.replace(partial, self._own)

    def text(self) -> bytes:
        """Everything, of all workers, in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Metric families, for the registry."""
        counts = Counts()
        counts.take_in(self._now())
        if self._own is not None:
            for path in self._own.parent.glob("worker-*"):
                if path != self._own and path.suffix != ".partial":
                    counts.take_in(_read(path) or Counts())
        yield _counter("requests", "Requests answered.", ("route", "status"), counts.requests)
        seconds = HistogramMetricFamily(
            "riskengine_request_seconds", "From the head of a request to its answer.", labels=("route",)
        )
        for route, histogram in counts.seconds.items():
            histogram.fill(seconds, (route,))
        yield seconds
        degraded = {k.removeprefix(DEGRADED): n for k, n in counts.flags.items() if k.startswith(DEGRADED)}
        yield _counter("decisions", "Events decided.", ("type", "action"), counts.decisions)
        yield _counter("fired", "Live rules that fired, limits that refused.", ("rule",), counts.fired)
        yield _counter("shadow", "The same of rules and limits in shadow.", ("rule",), counts.shadow)
        yield _counter("degraded", "Events decided by contract, by why.", ("kind",), degraded)
        yield _counter("flags", "Flags of decisions (degraded:..., late).", ("flag",), counts.flags)
        yield _counter("problems", "Events that could not be decided.", ("code",), counts.problems)
        yield _counter(
            "store_errors", "Batches that the store did not answer.", ("kind",), counts.store_errors
        )
        yield _counter("alerts", "Episodes of alerts that began.", ("alert",), counts.alerts)
        yield _counter("webhook", "Deliveries to the alerts' webhook.", ("outcome",), counts.webhook)
        yield CounterMetricFamily(
            "riskengine_log_records_dropped",
            "Records of the log that nobody read in time, or that could not be written.",
            value=counts.log_dropped,
        )
        for name, told, histogram in (
            ("risk", "Risk of what was decided.", counts.risk),
            ("batch_events", "Events in a batch of the engine.", counts.batches),
            ("batch_seconds", "Time the engine took for a batch.", counts.scoring),
        ):
            family = HistogramMetricFamily(f"riskengine_{name}", told, labels=())
            histogram.fill(family, ())
            yield family
        for name, told in _GAUGES.items():
            if name in counts.gauges:
                yield GaugeMetricFamily(f"riskengine_{name}", told, value=counts.gauges[name])
        yield from self._of_store()

    def _of_store(self) -> Iterator[Metric]:
        """Sizes of the store, which workers share; none while it cannot be asked."""
        try:
            info = msgspec.to_builtins(self._engine.info())
        except RiskEngineError:
            info = {}
        yield GaugeMetricFamily("riskengine_store_up", "Whether the store answers.", value=bool(info))
        for name, value in info.items():
            yield GaugeMetricFamily(f"riskengine_store_{name}", f"The store's {name}.", value=value)

    def _now(self) -> Counts:
        """What this process counted, with what there is in it just now."""
        with self._lock:
            counts = msgspec.structs.replace(
                self._counts,
                decisions=self._counts.decisions.copy(),
                fired=self._counts.fired.copy(),
                shadow=self._counts.shadow.copy(),
                flags=self._counts.flags.copy(),
            )
            _add_seen(counts, self._seen.copy())  # the event loop goes on meanwhile
        counts.store_errors = dict(self._before)
        for kind, n in self._engine.store_errors.copy().items():
            counts.store_errors[kind] = counts.store_errors.get(kind, 0) + n
        counts.log_dropped = self._dropped_before + logs.dropped()
        for name, n in self._engine.alert_status.items():
            counts.gauges[f"alerts_{name}"] = float(n)
        if self._alerting is not None:
            counts.webhook = dict(self._webhook_before)
            for name, n in self._alerting.status.items():
                counts.webhook[name] = counts.webhook.get(name, 0) + n
        if self._gatherer is not None:
            counts.gauges["queue_events"] = float(self._gatherer.held)
        if self._engine.journal is not None:
            status = self._engine.journal.status
            for name in ("queued", "committed", "failures"):
                counts.gauges[f"journal_{name}"] = float(status[name])
        return counts


def _add_seen(counts: Counts, seen: Mapping[tuple[str, str, Names, Names, Names], int]) -> None:
    for (kind, action, fired, shadow, flags), n in seen.items():
        key = kind.strip(), action
        counts.decisions[key] = counts.decisions.get(key, 0) + n
        _count(counts.fired, fired, n)
        _count(counts.shadow, shadow, n)
        _count(counts.flags, flags, n)


def _count(tally: dict[str, int], names: Sequence[str], n: int = 1) -> None:
    for name in names:
        tally[name] = tally.get(name, 0) + n


def _read(path: Path) -> Counts | None:
    """What a worker wrote; None where it has written nothing yet."""
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Counts)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _counter(name: str, told: str, labels: Sequence[str], counts: Mapping[Any, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"riskengine_{name}", told, labels=labels)
    for key, n in list(counts.items()):
        family.add_metric([str(part) for part in (key if isinstance(key, tuple) else (key,))], n)
    return family
