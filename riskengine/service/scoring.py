"""What `/v1/score` and `/v1/score/batch` do, from the body of a request to the body of its answer.

Nothing here awaits: `ask` takes a request, and its answer is handed to a callback, at once or when its batch
is scored. So one way leads through an ASGI application and another past it (protocol.py), to the same bytes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from riskengine.decision import Decision
from riskengine.engine import Engine
from riskengine.errors import EventError, RiskEngineError
from riskengine.judge import Result
from riskengine.service import contract, problems
from riskengine.service.bodies import MEDIA_TYPES, Format, format_of, read_batch, read_body
from riskengine.service.gathering import FullError, Gatherer, Job, Outcome
from riskengine.service.logs import where
from riskengine.service.metrics import Metrics
from riskengine.service.problems import RefusedError, refusal, told
from riskengine.service.settings import Settings

SCORE: Final = "/v1/score"
BATCH: Final = "/v1/score/batch"
DEADLINE_MS_MAX: Final = 60_000
_ENCODE: Final[Mapping[Format, Callable[[Any], bytes]]] = {
    "json": msgspec.json.Encoder().encode,
    "msgpack": msgspec.msgpack.Encoder().encode,
}
_LINES: Final[Mapping[Format, bytes]] = {
    format: b"content-type: %b\r\n" % kind
    + b"content-length: %d\r\nserver-timing: queue;dur=%d.%03d, engine;dur=%d.%03d\r\n"
    for format, kind in MEDIA_TYPES.items()
}
_NONE: Final[dict[int, RefusedError]] = {}
_log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What is sent back. `lines` are headers too, as HTTP/1.1 writes them."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    lines: bytes = b""

    @property
    def pairs(self) -> list[tuple[bytes, bytes]]:
        """All headers."""
        written = [line.partition(b": ") for line in self.lines.splitlines()]
        return [*self.headers, *((name, value) for name, _, value in written)]


Respond = Callable[[Answer], None]
Told = tuple[Result, bytes | None]  # with its JSON, where that is at hand (`Engine.score_told`)


class Asked(NamedTuple):
    """What the head of a request to score says. `wrong` is what is wrong with it: then it is refused."""

    route: str
    format: Format
    seconds: float | None  # until it is to be answered, where it says so
    wrong: RefusedError | None

    @classmethod
    def read(cls, route: str, headers: Iterable[tuple[bytes, bytes]]) -> Asked:
        """Read a head. `headers` have lower-case names."""
        content_type, seconds = b"", None
        try:
            for name, value in headers:
                if name == b"content-type":
                    content_type = value
                elif name == b"x-deadline-ms":
                    seconds = _deadline_seconds(value)
            return cls(route, format_of(content_type), seconds, None)
        except RefusedError as refused:
            return cls(route, "json", None, refused)


class Scoring:
    """Scores requests on an engine. To be used on the event loop that `gatherer` was started on."""

    def __init__(self, engine: Engine, gatherer: Gatherer, metrics: Metrics, settings: Settings) -> None:
        self.engine = engine
        self.metrics = metrics
        self._gatherer = gatherer
        self._deadline_seconds = settings.deadline_ms / 1e3

    def ask(
        self,
        asked: Asked,
        query: bytes,
        body: bytes | bytearray,
        began: float,
        respond: Respond,
        answered: float = 0.0,
    ) -> None:
        """Have a request answered: `respond` is called once, maybe before this returns.

        `began` (of time.monotonic) is when the request was read; its caller was last `answered` then, and
        cannot have sent it before.
        """
        if asked.wrong is not None:  # not raised: it is kept, and would gather tracebacks
            respond(Answer(*told(asked.wrong)))
            return
        gatherer = self._gatherer
        try:
            now = time.monotonic()
            seconds = self._deadline_seconds if asked.seconds is None else asked.seconds
            until = min(began, gatherer.came(now, answered, seconds / 2)) + seconds
            gatherer.check(1, until)  # before more is done for it than must be
            poisoned: dict[int, RefusedError] = {}
            all_events: list[Any] | None = None
            if asked.route == BATCH:
                all_events, poisoned = read_batch(body, asked.format)
                events = [event for i, event in enumerate(all_events) if i not in poisoned]
            else:
                events = [read_body(body, asked.format)]
            features = bool(query) and _wants_features(query)
            request = _Request(self, events, features, until, asked.format, respond, now)
            if all_events is not None:
                request.batch, request.poisoned = all_events, poisoned
            if all_events is None:
                gatherer.enter(request)
            elif events:
                gatherer.submit(request)
            else:
                request.finish((), 0.0)
        except RefusedError as refused:
            respond(Answer(*told(refused)))
        except FullError:
            respond(overfull())
        except Exception as error:
            respond(failed(error))


class _Request(Job):
    """A request whose events are being scored."""

    __slots__ = ("batch", "entered", "format", "poisoned", "respond", "scoring")

    def __init__(
        self,
        scoring: Scoring,
        events: list[Any],
        features: bool,
        until: float,
        format: Format,
        respond: Respond,
        entered: float,
    ) -> None:
        self.events = events  # as the base class does: calling it takes 0.2 us
        self.features = features
        self.until = until
        self.is_done = False
        self.fine = 0.0
        self.scoring = scoring
        self.format = format
        self.respond = respond
        self.entered = entered
        self.batch: Sequence[Any] | None = None  # all events of one that came as a batch, ...
        self.poisoned: dict[int, RefusedError] = _NONE  # ... and what is wrong with those that are in no job

    def finish(self, outcome: Outcome, seconds: float) -> None:
        try:
            answer = self._answer(outcome, seconds)
        except RefusedError as refused:
            answer = Answer(*told(refused))
        except Exception as error:
            answer = failed(error)
        self.respond(answer)

    def _answer(self, outcome: Outcome, seconds: float) -> Answer:
        if type(outcome) is list and self.batch is None and self.format == "json":
            result, line = outcome[0]
            if line is not None:
                self.scoring.metrics.decided(self.events[0], result)
                return self._of(line, seconds)
        if outcome is None:
            policy = self.scoring.engine.policy
            outcome = [
                (told, None) for told in contract.answer(policy, self.events, time.time_ns() // 1_000_000)
            ]
        elif isinstance(outcome, RiskEngineError):
            raise RefusedError("journal", str(outcome), headers=((b"retry-after", b"1"),))
        elif isinstance(outcome, Exception):
            raise outcome
        self.scoring.metrics.results(self.events, [result for result, _ in outcome])
        if self.batch is None:
            result, line = outcome[0]
            if isinstance(result, EventError):
                raise refusal(result)
            body = line if line is not None and self.format == "json" else self._encoded(result)
        else:
            rest = iter(outcome)
            items = [self._item(i, self.poisoned.get(i) or next(rest)) for i in range(len(self.batch))]
            body = _ENCODE[self.format](items)
        return self._of(body, seconds)

    def _of(self, body: bytes, seconds: float) -> Answer:
        waited_us = max(int(1e6 * (time.monotonic() - self.entered - seconds)), 0)
        us = int(1e6 * seconds)
        told = len(body), waited_us // 1000, waited_us % 1000, us // 1000, us % 1000
        return Answer(200, (), body, _LINES[self.format] % told)

    def _encoded(self, decision: Decision) -> bytes:
        return _ENCODE[self.format](_shown(decision, self.features))

    def _item(self, i: int, outcome: Told | RefusedError) -> object:
        """One item of a batch's answer: a decision, or a problem with pointers into the batch."""
        if isinstance(outcome, RefusedError):
            problems = tuple(
                msgspec.structs.replace(p, pointer=f"/{i}{p.pointer}") for p in outcome.details.problems
            )
            return msgspec.structs.replace(outcome.details, problems=problems)
        result, line = outcome
        if isinstance(result, EventError):
            return refusal(result, i).details
        return (
            msgspec.Raw(line) if line is not None and self.format == "json" else _shown(result, self.features)
        )


def overfull() -> Answer:
    """The answer where the queue is full or too long to wait in, or the sidecar is about to stop."""
    return _OVERFULL


def failed(error: BaseException) -> Answer:
    """The answer where riskengine itself has gone wrong.

    What went wrong may hold a person's data: only its kind is told, here and in the log.
    """
    _log.error("a request failed: %s", where(error))
    return Answer(*told(RefusedError("bug", f"{type(error).__name__}: please report it")))


def _deadline_seconds(header: bytes) -> float:
    if not header.isdigit() or not 1 <= int(header[:6]) <= DEADLINE_MS_MAX or len(header) > 5:
        raise RefusedError(
            "malformed", f"X-Deadline-Ms is a whole number of milliseconds from 1 to {DEADLINE_MS_MAX}"
        )
    return int(header) / 1e3


def _wants_features(query: bytes) -> bool:
    given = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    wanted = given.get("features", "false")
    if wanted not in ("true", "false"):
        raise RefusedError("malformed", "features is true or false")
    return wanted == "true"


def _shown(decision: Decision, features: bool) -> Decision:
    """A retry gets the first answer, which may have had features that are not asked for now."""
    if features or decision.features is msgspec.UNSET:
        return decision
    return msgspec.structs.replace(decision, features=msgspec.UNSET)


_OVERFULL: Final = Answer(*told(problems.overfull()))
