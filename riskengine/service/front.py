"""The application that uvicorn calls: scores by itself, and hands everything else on to FastAPI.

A FastAPI route costs 150 us before it does anything; scoring costs a tenth of that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from riskengine.service.access import Access
from riskengine.service.logs import RequestLog, request_id
from riskengine.service.metrics import Metrics
from riskengine.service.problems import Headers, RefusedError, told
from riskengine.service.scoring import BATCH, SCORE, Answer, Asked, Scoring, failed
from riskengine.service.settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

DROPPED_TIMES: Final = 4  # a body of up to so many times the bound is read, to be refused with good manners


class GoneError(Exception):
    """The client went away before its request was whole."""


class Front:
    """An ASGI application. `scoring` scores; `rest` has the other routes and the lifespan."""

    def __init__(
        self, scoring: Scoring, metrics: Metrics, rest: Application, settings: Settings, access: Access
    ) -> None:
        self.scoring = scoring
        self.metrics = metrics
        self.settings = settings
        self.access = access
        self.log = RequestLog(settings.log_requests)
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        began = time.monotonic()
        route = scope["path"]
        own = request_id(scope["headers"])
        more: Headers = ((b"x-request-id", own),)
        try:
            more += self.access.admit(scope)
            if route in (SCORE, BATCH):
                if scope["method"] != "POST":
                    raise RefusedError("method", "send a POST", headers=((b"allow", b"POST"),))
                answer = await self._scored(scope, receive, route, began)
            else:
                route, status = await self._passed_on(scope, receive, send, more)
                self._told(scope, route, status, time.monotonic() - began, own)
                return
        except GoneError:
            return
        except RefusedError as refused:
            answer = Answer(*told(refused))
        except Exception as error:
            answer = failed(error)
        headers = [*answer.pairs, *more]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})
        self._told(scope, _safe(route), answer.status, time.monotonic() - began, own)

    def _told(self, scope: Scope, route: str, status: int, seconds: float, own: bytes) -> None:
        self.metrics.request(route, status, seconds)
        self.log.tell(scope["method"], route, status, seconds, own, scope.get("riskengine.key"))

    async def _scored(self, scope: Scope, receive: Receive, route: str, began: float) -> Answer:
        body = await self._body(scope, receive)
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def respond(answer: Answer) -> None:
            if not answered.done():  # the drain has come to its end, and given it up
                answered.set_result(answer)

        asked = Asked.read(route, scope["headers"])
        self.scoring.ask(asked, scope["query_string"], body, began, respond)
        return await answered

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The body, bounded in size and time.

        What is a little too large is read to its end and dropped: an answer in the middle of sending is lost
        on many clients.
        """
        most = self.settings.body_bytes
        for name, value in scope["headers"]:
            if name == b"content-length" and (not value.isdigit() or int(value[:19]) > most * DROPPED_TIMES):
                raise _too_large(most)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.settings.body_seconds):
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
            raise too_slow(self.settings.body_seconds) from None

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


def too_slow(seconds: float) -> RefusedError:
    """Refused because it took too long to come."""
    return RefusedError(
        "slow", f"send the whole request within {seconds} s", headers=((b"connection", b"close"),)
    )


def _too_large(most: int) -> RefusedError:
    return RefusedError(
        "too-large", f"a body has at most {most:,} bytes", headers=((b"connection", b"close"),)
    )


def _safe(route: str) -> str:
    return route if route in (SCORE, BATCH) else "other"
