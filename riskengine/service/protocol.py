"""uvicorn's HTTP protocol, with a short way for requests to score and an end to patience.

A request to score costs uvicorn a task, an event, two messages and two timers: half of what it takes in all.
Here it goes from the parser to `Scoring` and from there to the socket. What is not plain about it (a query,
chunks, HTTP/1.0, a request before it that is not answered yet) takes uvicorn's own way, through the ASGI
application, to the same answer. Clients send the same few heads again and again: a head that the parser has
read is known by its bytes when it comes again, and is not parsed a second time (5 us of 60).

uvicorn waits for the head of a request for as long as the client likes, and httptools takes any amount of it.
Here each connection has a time by which something must have come.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any, Final, NamedTuple

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from riskengine.service.front import Front, too_slow
from riskengine.service.logs import request_id
from riskengine.service.problems import Headers, RefusedError, told
from riskengine.service.scoring import BATCH, SCORE, Answer, Asked, failed

HEAD_BYTES_MAX: Final = 65_536
SHORT_BYTES_MAX: Final = 65_536  # of a body that may take the short way
KNOWN_HEADS: Final = 1_024  # and all are forgotten when there are more, ...
KNOWN_BYTES_MAX: Final = 2_048  # ... each of so many bytes at most
LOOK_SECONDS: Final = 1.0  # between looks at how long connections have been silent
IDLE, HEAD, BODY, OURS = range(4)  # what a connection is waiting for: a request, the rest of it, us
_ROUTES: Final = {route.encode(): route for route in (SCORE, BATCH)}


class _Event:
    """What the base class tells that there is more of a body, or none."""

    def set(self) -> None:
        pass


class _Short:
    """A request on the short way: what the base class wants to know of the one it is at."""

    __slots__ = ("began", "disconnected", "keep_alive", "more_body", "response_complete", "scope")

    message_event: Final = _Event()

    def __init__(self, began: float, more_body: bool, scope: dict[str, Any] | None) -> None:
        self.began = began
        self.more_body = more_body  # until all of it is there
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = True
        self.scope = scope  # where there are API keys


class _Head(NamedTuple):
    """What the parser found in the head of a plain request."""

    route: str
    headers: list[tuple[bytes, bytes]]
    asked: Asked
    body_bytes: int
    names_itself: bool  # by an id of its own: the next one has another


class Shared:
    """What the connections of a server share: heads that came before, and the lines of every answer."""

    def __init__(self, front: Front) -> None:
        self.front = front
        self.known: dict[bytes, _Head] = {}
        self._defaults: list[tuple[bytes, bytes]] | None = None  # uvicorn makes new ones each second
        self._openings: dict[int, bytes] = {}  # status line and default headers, by status

    def remember(self, head: bytes, read: _Head) -> None:
        """Know a head by its bytes from now on."""
        if len(head) <= KNOWN_BYTES_MAX and not read.names_itself:
            if len(self.known) >= KNOWN_HEADS:
                self.known.clear()
            self.known[head] = read

    def opening(self, status: int, defaults: list[tuple[bytes, bytes]]) -> bytes:
        """The first lines of an answer."""
        if defaults is not self._defaults:
            self._defaults = defaults
            self._openings.clear()
        found = self._openings.get(status)
        if found is None:
            lines = [STATUS_LINE[status], *[b"%b: %b\r\n" % header for header in defaults]]
            found = self._openings[status] = b"".join(lines)
        return found


class Speaker:
    """Makes the protocol of each connection, as uvicorn asks for it, and watches over their silence."""

    def __init__(self, front: Front) -> None:
        """`front` is the application that uvicorn calls for all that is not plain."""
        self._shared = Shared(front)
        self._looks = False

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Protocol:
        """A connection's protocol."""
        made = Protocol(self._shared, config, server_state, app_state, _loop)
        if not self._looks:
            self._looks = True
            made.loop.call_later(LOOK_SECONDS, self._look, made.loop, made.connections)
        return made

    def _look(self, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        """End what has been waited for too long, on all connections."""
        for connection in list(connections):
            connection.lose_patience(loop.time())
        self._looks = bool(connections)
        if self._looks:
            loop.call_later(LOOK_SECONDS, self._look, loop, connections)


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        shared: Shared,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.shared = shared
        self.front = shared.front
        self.head: _Head | None = None  # of what is being read, where it takes the short way, ...
        self.body = bytearray()  # ... and what has come of its body
        self.fresh: bytes | None = None  # what has come at once, from a request's beginning on
        self.waits_for = IDLE
        self.since = 0.0  # when it began to wait for that, by the loop's clock
        self.head_bytes = 0
        self.answered = 0.0  # when it last was, on the short way
        self.is_over = False  # nothing more is read

    # -- what uvicorn and its parser call

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own narrows it so
        """A connection is there."""
        super().connection_made(transport)
        self._wait_for_a_request()

    def data_received(self, data: bytes) -> None:
        """Something has come."""
        if self.is_over:
            return
        self.fresh = None
        if self.waits_for == IDLE:
            end = data.find(b"\r\n\r\n") + 4
            known = self.shared.known.get(data[:end])
            if known is not None and len(data) == end + known.body_bytes:
                self._ask(known, data[end:], time.monotonic())
                return
            self.fresh = data
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._read_again(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._hang_up(RefusedError("malformed", "this is not HTTP/1.1"))
        if self.waits_for == HEAD:
            self.head_bytes += len(data)
            if self.head_bytes > HEAD_BYTES_MAX:
                detail = f"a request's head has at most {HEAD_BYTES_MAX:,} bytes"
                self._hang_up(RefusedError("head-too-large", detail))

    def on_message_begin(self) -> None:
        """A request begins; its scope is made when it turns out to need one."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self.head_bytes = 0
        self.waits_for = HEAD
        self.since = self.loop.time()

    def on_headers_complete(self) -> None:
        """The head is there: the way is chosen."""
        if self.parser.should_upgrade():
            return
        self.head = self._plain_head()
        if self.head is not None:
            self.body = bytearray()
            self.cycle = _Short(time.monotonic(), True, None)  # type: ignore[assignment]  # it has all that is asked of a cycle
            self.waits_for = BODY  # and for as long as the head may take
            return
        url, headers, waits_for_100 = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)
        self.expect_100_continue = waits_for_100
        self.waits_for = OURS  # the application has its own patience with bodies
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body is there."""
        if self.head is not None:
            self.body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request is there."""
        if self.parser.should_upgrade():
            return
        self.waits_for = OURS
        head = self.head
        if head is None:
            super().on_message_complete()
            return
        data = self.fresh
        if data is not None:
            end = data.find(b"\r\n\r\n") + 4
            if len(data) == end + head.body_bytes:
                self.shared.remember(data[:end], head)
        self._ask(head, self.body, self.cycle.began)  # type: ignore[attr-defined]  # it is a _Short

    def on_response_complete(self) -> None:
        """As uvicorn's, but for a timer each request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self.waits_for = OURS
            self._start_asgi_task(*self.pipeline.pop())
        elif self.waits_for == OURS:
            self._wait_for_a_request()

    def _read_again(self, rest: bytes) -> None:
        """Go on with a request that asks for HTTP/2 too, as Java's client does: the parser gives up its body.

        It is answered as if it had not asked, which HTTP allows.
        """
        method, url, headers = self.parser.get_method(), self.url, self.headers
        lines = [b"%b: %b\r\n" % header for header in headers if header[0] not in (b"upgrade", b"connection")]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(b"%b %b HTTP/1.1\r\n%b\r\n" % (method, url, b"".join(lines)) + rest)

    # -- the short way

    def _plain_head(self) -> _Head | None:
        """What the head says that was just read, where its request may take the short way."""
        route = _ROUTES.get(self.url)
        cycle = self.cycle
        if route is None or (cycle is not None and not cycle.response_complete):
            return None  # it came before that one was answered
        if self.parser.get_method() != b"POST" or self.expect_100_continue:
            return None
        if self.parser.get_http_version() != "1.1" or not self.parser.should_keep_alive():
            return None
        body_bytes = -1
        names_itself = False
        for name, value in self.headers:
            if name == b"content-length":
                if len(value) > 6 or not value.isdigit() or int(value) > SHORT_BYTES_MAX:
                    return None
                body_bytes = int(value)
            elif name == b"transfer-encoding":
                return None
            elif name == b"x-request-id":
                names_itself = True
        if body_bytes < 0:
            return None
        return _Head(route, self.headers, Asked.read(route, self.headers), body_bytes, names_itself)

    def _ask(self, head: _Head, body: bytes | bytearray, began: float) -> None:
        """Have a request answered that is there as a whole."""
        self.waits_for = OURS
        front = self.front
        own = request_id(head.headers if head.names_itself else ())
        more: Headers = ()
        scope = None
        if front.access.required:
            scope = {"method": "POST", "path": head.route, "headers": head.headers}
        cycle = _Short(began, False, scope)
        self.cycle = cycle  # type: ignore[assignment]  # a _Short has all that is asked of a cycle
        if scope is not None:
            try:
                more = front.access.admit(scope)
            except RefusedError as refused:
                self._answer(head.route, cycle, own, (), Answer(*told(refused)))
                return
            except Exception as error:
                self._answer(head.route, cycle, own, (), failed(error))
                return
        respond = partial(self._answer, head.route, cycle, own, more)
        front.scoring.ask(head.asked, b"", body, began, respond, self.answered)

    def _answer(self, route: str, cycle: _Short, own: bytes, more: Headers, answer: Answer) -> None:
        self.answered = time.monotonic()
        seconds = self.answered - cycle.began
        front = self.front
        front.metrics.request(route, answer.status, seconds)
        if answer.status >= 500 or front.log.everything:
            key = None if cycle.scope is None else cycle.scope.get("riskengine.key")
            front.log.tell("POST", route, answer.status, seconds, own, key)
        if cycle.disconnected or self.transport.is_closing():
            return
        cycle.response_complete = True
        keeps = cycle.keep_alive and (b"connection", b"close") not in answer.headers
        self._write(answer, own, more, keeps)
        self.on_response_complete()

    def _write(self, answer: Answer, own: bytes, more: Headers, keeps: bool) -> None:
        status, headers, body, lines = answer
        if more:
            headers = (*headers, *more)
        for header in headers:
            lines += b"%b: %b\r\n" % header
        if own:
            lines += b"x-request-id: %b\r\n" % own
        if not keeps and (b"connection", b"close") not in headers:
            lines += b"connection: close\r\n"
        opening = self.shared.opening(status, self.server_state.default_headers)
        self.transport.write(b"%b%b\r\n%b" % (opening, lines, body))
        if not keeps:
            self.transport.close()

    # -- patience

    def _wait_for_a_request(self) -> None:
        self.waits_for = IDLE
        self.since = self.loop.time()

    def lose_patience(self, now: float) -> None:
        """End it where what it waits for has not come by now (of the loop's clock)."""
        waited = now - self.since
        if self.waits_for == IDLE:
            if waited > self.timeout_keep_alive:
                self.transport.close()
        elif self.waits_for in (HEAD, BODY) and waited > self.front.settings.body_seconds:
            self._hang_up(too_slow(self.front.settings.body_seconds))

    def _hang_up(self, refused: RefusedError) -> None:
        """Read nothing more: say why and close the connection, once what is under way is answered."""
        if self.transport.is_closing():
            return
        self.is_over = True
        self.front.metrics.request("other", refused.details.status, 0.0)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            self.flow.pause_reading()
            cycle.keep_alive = False
        else:
            self._write(Answer(*told(refused)), b"", (), False)
