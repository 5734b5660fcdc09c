"""The application that uvicorn calls: scores by itself, and hands everything else on to FastAPI.

A FastAPI route costs 150 us before it does anything; scoring costs a tenth of that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from riskengine.decision import Decision
from riskengine.engine import Engine, Result
from riskengine.errors import EventError, RiskEngineError
from riskengine.service import contract
from riskengine.service.access import Access
from riskengine.service.bodies import MEDIA_TYPES, Format, format_of, read_batch, read_body
from riskengine.service.gathering import FullError, Gatherer, Job
from riskengine.service.metrics import Metrics
from riskengine.service.problems import MEDIA_TYPE, Headers, RefusedError, overfull, refusal
from riskengine.service.settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

SCORE: Final = "/v1/score"
BATCH: Final = "/v1/score/batch"
DEADLINE_MS_MAX: Final = 60_000
DROPPED_TIMES: Final = 4  # a body of up to so many times the bound is read, to be refused with good manners
_ENCODE: Final[Mapping[Format, Callable[[Any], bytes]]] = {
    "json": msgspec.json.Encoder().encode,
    "msgpack": msgspec.msgpack.Encoder().encode,
}
_log = logging.getLogger(__name__)


class GoneError(Exception):
    """The client went away before its request was whole."""


class Front:
    """An ASGI application. `gatherer` scores; `rest` has the other routes and the lifespan."""

    def __init__(
        self,
        engine: Engine,
        gatherer: Gatherer,
        metrics: Metrics,
        rest: Application,
        settings: Settings,
        access: Access,
    ) -> None:
        self._engine = engine
        self._gatherer = gatherer
        self._metrics = metrics
        self._rest = rest
        self._settings = settings
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        began = time.perf_counter()
        route = scope["path"]
        more: Headers = ()
        try:
            more = self._access.admit(scope)
            if route in (SCORE, BATCH):
                if scope["method"] != "POST":
                    raise RefusedError("method", "send a POST", headers=((b"allow", b"POST"),))
                status, headers, body = await self._scored(scope, receive, route == BATCH, began)
            else:
                route, status = await self._passed_on(scope, receive, send, more)
                self._metrics.request(route, status, time.perf_counter() - began)
                return
        except GoneError:
            return
        except RefusedError as refused:
            status, headers, body = told(refused)
        except Exception as error:
            # What went wrong may hold a person's data: only its kind is told, here and in the log.
            _log.error("a request to %s failed: %s", _safe(route), _where(error))
            status, headers, body = told(RefusedError("bug", f"{type(error).__name__}: please report it"))
        await send({"type": "http.response.start", "status": status, "headers": [*headers, *more]})
        await send({"type": "http.response.body", "body": body})
        self._metrics.request(_safe(route), status, time.perf_counter() - began)

    # -- scoring

    async def _scored(
        self, scope: Scope, receive: Receive, is_batch: bool, began: float
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        content_type, deadline = b"", b""
        for name, value in scope["headers"]:
            if name == b"content-type":
                content_type = value
            elif name == b"x-deadline-ms":
                deadline = value
        format = format_of(content_type)
        seconds = self._deadline_seconds(deadline)
        features = bool(scope["query_string"]) and _wants_features(scope["query_string"])
        body = await self._body(scope, receive)
        poisoned: dict[int, RefusedError] = {}
        if is_batch:
            events, poisoned = read_batch(body, format)
        else:
            events = [read_body(body, format)]
        sound = [event for i, event in enumerate(events) if i not in poisoned] if poisoned else events
        results, timing = await self._results(sound, features, began + seconds)
        self._metrics.results(sound, results)
        encode = _ENCODE[format]
        if not is_batch:
            if isinstance(results[0], EventError):
                raise refusal(results[0])
            answer = encode(_shown(results[0], features))
        else:
            rest = iter(results)
            answer = encode([_item(i, poisoned.get(i) or next(rest), features) for i in range(len(events))])
        return (
            200,
            [
                (b"content-type", MEDIA_TYPES[format]),
                (b"content-length", b"%d" % len(answer)),
                (b"server-timing", timing),
            ],
            answer,
        )

    async def _results(
        self, events: list[Any], features: bool, until: float
    ) -> tuple[Sequence[Result], bytes]:
        """Have events scored; past `until` (of perf_counter) the contract answers."""
        if not events:
            return (), b"engine;dur=0"
        entered = time.perf_counter()
        try:
            job = self._gatherer.submit(events, features)
        except FullError:
            raise overfull() from None
        loop = asyncio.get_running_loop()
        timer = loop.call_later(max(until - entered, 0.0), _expire, job)
        try:
            results = await job.done
        except RiskEngineError as error:
            raise RefusedError("journal", str(error), headers=((b"retry-after", b"1"),)) from None
        finally:
            timer.cancel()
        if results is None:
            return contract.answer(self._engine.policy, events, time.time_ns() // 1_000_000), b"engine;dur=0"
        waited = time.perf_counter() - entered - job.seconds
        return results, b"queue;dur=%.3f, engine;dur=%.3f" % (1e3 * max(waited, 0.0), 1e3 * job.seconds)

    def _deadline_seconds(self, header: bytes) -> float:
        if not header:
            return self._settings.deadline_ms / 1e3
        if not header.isdigit() or not 1 <= int(header[:6]) <= DEADLINE_MS_MAX or len(header) > 5:
            raise RefusedError(
                "malformed", f"X-Deadline-Ms is a whole number of milliseconds from 1 to {DEADLINE_MS_MAX}"
            )
        return int(header) / 1e3

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The body, bounded in size and time.

        What is a little too large is read to its end and dropped: an answer in the middle of sending is lost
        on many clients.
        """
        most = self._settings.body_bytes
        for name, value in scope["headers"]:
            if name == b"content-length" and (not value.isdigit() or int(value[:19]) > most * DROPPED_TIMES):
                raise _too_large(most)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise GoneError
                    part = message.get("body", b"")
                    size += len(part)
                    if size <= most:
                        parts.append(part)
                    more = message.get("more_body", False)
                    if size > most * DROPPED_TIMES or (size > most and not more):
                        raise _too_large(most)
                    if not more:
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            raise RefusedError(
                "slow",
                f"send the body within {self._settings.body_seconds} s",
                headers=((b"connection", b"close"),),
            ) from None

    # -- the rest

    async def _passed_on(self, scope: Scope, receive: Receive, send: Send, more: Headers) -> tuple[str, int]:
        """Have FastAPI answer; the route (as it is written in code, with no value in it) and the status."""
        body = b"" if scope["method"] in ("GET", "HEAD") else await self._body(scope, receive)
        given = False
        status = 500

        async def whole() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        await self._rest(scope, whole, noted)
        return getattr(scope.get("route"), "path_format", "other"), status


def told(refused: RefusedError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of a problem."""
    body = msgspec.json.encode(refused.details)
    headers: Headers = (
        (b"content-type", MEDIA_TYPE),
        (b"content-length", b"%d" % len(body)),
        *refused.headers,
    )
    return refused.details.status, list(headers), body


def _item(i: int, result: Result | RefusedError, features: bool) -> object:
    """One item of a batch's answer: a decision, or a problem with pointers into the batch."""
    if isinstance(result, EventError):
        return refusal(result, i).details
    if isinstance(result, RefusedError):
        problems = tuple(
            msgspec.structs.replace(p, pointer=f"/{i}{p.pointer}") for p in result.details.problems
        )
        return msgspec.structs.replace(result.details, problems=problems)
    return _shown(result, features)


def _shown(decision: Decision, features: bool) -> Decision:
    """A retry gets the first answer, which may have had features that are not asked for now."""
    if features or decision.features is msgspec.UNSET:
        return decision
    return msgspec.structs.replace(decision, features=msgspec.UNSET)


def _expire(job: Job) -> None:
    if not job.done.done():
        job.done.set_result(None)


def _wants_features(query: bytes) -> bool:
    given = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
    wanted = given.get("features", "false")
    if wanted not in ("true", "false"):
        raise RefusedError("malformed", "features is true or false")
    return wanted == "true"


def _too_large(most: int) -> RefusedError:
    return RefusedError(
        "too-large", f"a body has at most {most:,} bytes", headers=((b"connection", b"close"),)
    )


def _safe(route: str) -> str:
    return route if route in (SCORE, BATCH) else "other"


def _where(error: BaseException) -> str:
    """The kind of an error and where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{place}"
