"""Asks a sidecar over HTTP: the calls of an engine, for programs that do not carry one.

Nothing of the engine is imported, no kernel and no numpy. What is asked, and when again, is decided once, in
plain generators; `Client` and `AsyncClient` have the same calls, and only send what their steps say.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, Literal, NamedTuple, ParamSpec, Self, TypeVar, overload
from urllib.parse import quote

import httpx
import msgspec

from riskengine.answer import Decision
from riskengine.errors import EventError, Problem, RiskEngineError

__all__ = [
    "AsyncClient",
    "Client",
    "ConflictError",
    "ForbiddenError",
    "NotFoundError",
    "RateError",
    "ServiceError",
    "UnauthorizedError",
    "UnavailableError",
]

Event = Mapping[str, Any]
Fail = Literal["open", "closed", "review"]
Result = Decision | EventError
T = TypeVar("T")
P = ParamSpec("P")

ACTIONS: Final[Mapping[str, str]] = {"open": "allow", "closed": "deny", "review": "review"}
AWAY: Final = "degraded:sidecar"
TRIES_MAX: Final = 3
PAUSE_S: Final = 0.03  # at most, before the second try; twice that before the third
ALONE_S: Final = 0.5  # at most, how long a sidecar that is away is not asked for decisions
LEARN_S: Final = 30.0  # at least, between looks at the contract
BATCH_MAX: Final = 1_000  # events of one request
SIDECAR_MS: Final = 50  # what a sidecar takes at most, where it is not told otherwise


class ServiceError(RiskEngineError):
    """The sidecar refused. `status` is HTTP's, `kind` the problem's, `problems` point into what was sent."""

    def __init__(
        self,
        message: str,
        status: int = 0,
        kind: str = "",
        problems: Sequence[Problem] = (),
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.problems = tuple(problems)
        self.request_id = request_id  # as the sidecar's log has it


class UnauthorizedError(ServiceError):
    """The API key is missing, or not known (any more)."""


class ForbiddenError(ServiceError):
    """The API key may not do this."""


class NotFoundError(ServiceError):
    """There is no such list, table, entity or route."""


class ConflictError(ServiceError):
    """It is in conflict with what is there: a table from a file cannot be edited."""


class RateError(ServiceError):
    """The API key asks more often than it may."""


class UnavailableError(ServiceError):
    """No answer within the deadline, or none but that there is too much to do."""


ERRORS: Final[Mapping[int, type[ServiceError]]] = {
    401: UnauthorizedError, 403: ForbiddenError, 404: NotFoundError, 409: ConflictError, 429: RateError
}  # fmt: skip
AGAIN: Final = frozenset((408, 429))  # and all from 500 on: asked again, within the deadline


class _Send(NamedTuple):
    """Send a request, and give back what came: an answer, or what went wrong."""

    method: str
    path: str
    content: bytes | None
    headers: Mapping[str, str]
    timeout_s: float


class _Pause(NamedTuple):
    """Wait."""

    seconds: float


_Outcome = httpx.Response | httpx.TransportError | None
_Steps = Generator[_Send | _Pause, _Outcome, T]


class _Call(NamedTuple, Generic[T]):
    """What is asked, how its answer is read, and what stands for it while no sidecar answers.

    `again` reads the answer where it was asked before, and an answer may have been lost.
    """

    method: str
    path: str
    body: Any
    read: Callable[[httpx.Response], T]
    away: Callable[[], T] | None = None
    accepts: tuple[int, ...] = (200,)
    again: Callable[[httpx.Response], T] | None = None


class _Asker:
    """What both clients know and decide; they send what its steps say."""

    def __init__(self, key: str | None, deadline: float, fail: Mapping[str, Fail] | Fail | None) -> None:
        if not deadline > 0:
            raise ValueError("a deadline is a number of seconds above 0")
        self.headers = {"accept": "application/json", "user-agent": "riskengine-client"}
        if key is not None:
            self.headers["authorization"] = f"Bearer {key}"
        self._deadline = deadline
        self._given = fail
        self._learned: Mapping[str, str] = {}
        self._fingerprint = ""  # of the policy whose contract was learned
        self._seen = ""  # of the policy that decided last
        self._learn_at = 0.0
        self._alone_until = 0.0
        self._lock = threading.Lock()

    # -- calls

    def score(self, event: Event, features: bool = False) -> _Steps[Decision]:
        """Decide one event. Raises EventError with every problem of it, and ServiceError."""
        path = "/v1/score?features=true" if features else "/v1/score"
        return self._steps(_Call("POST", path, event, self._decision, lambda: self._instead(event)))

    def score_many(self, events: Sequence[Event], features: bool = False) -> _Steps[list[Result]]:
        """Decide events in order, as one by one; a bad one gets its EventError in its place."""
        path = "/v1/score/batch?features=true" if features else "/v1/score/batch"
        results: list[Result] = []
        for start in range(0, len(events), BATCH_MAX):
            some = events[start : start + BATCH_MAX]
            results += yield from self._steps(
                _Call("POST", path, some, self._results, partial(self._all_instead, some))
            )
        return results

    def label(
        self,
        event_id: str,
        label: Literal["fraud", "legit"],
        time: int | None = None,
        source: str | None = None,
    ) -> _Steps[bool]:
        """Say what became known of an event, at `time` (ms; now unless said). False: it is not known."""
        body = {"event_id": event_id, "label": label, "time": time, "source": source}
        return self._steps(_Call("POST", "/v1/labels", body, _known, accepts=(200, 404)))

    def release(self, event_id: str) -> _Steps[bool]:
        """Give back what an event holds of limits; whether it held anything.

        Where a first answer was lost: whether it held anything before (by the journal of the sidecar).
        """
        path = f"/v1/decisions/{quote(event_id, safe='')}/release"
        return self._steps(_Call("POST", path, None, _released, again=_released_by_now))

    def list_put(
        self,
        name: str,
        entity: str,
        value: str | Sequence[str],
        expires: int | None = None,
        reason: str | None = None,
        author: str | None = None,
    ) -> _Steps[None]:
        """Enter a value into a list, until `expires` (ms). With an API key, the author is the key's name."""
        body = {"expires": expires, "reason": reason, "author": author}
        yield from self._entry("PUT", _list_place(name, entity, value), body)

    def list_get(self, name: str, entity: str, value: str | Sequence[str]) -> _Steps[dict[str, Any] | None]:
        """The entry of a value: expires, reason, author, time; None when it is not listed."""
        return self._entry("GET", _list_place(name, entity, value))

    def list_delete(self, name: str, entity: str, value: str | Sequence[str]) -> _Steps[bool]:
        """Remove a value from a list; whether it was there."""
        return self._removal(_list_place(name, entity, value))

    def path(self, id: str) -> _Steps[dict[str, Any] | None]:
        """The entry that paths of an id come from, and what they reach; None where none has it."""
        return self._entry("GET", f"/v1/paths/{quote(id, safe='')}")

    def lift(self, id: str) -> _Steps[bool]:
        """Take off its list what paths of an id come from, and with it all that they reach."""
        return self._removal(f"/v1/paths/{quote(id, safe='')}")

    def table_put(self, name: str, key: str, row: Mapping[str, Any]) -> _Steps[None]:
        """Enter or replace a row of a live table."""
        yield from self._entry("PUT", _table_place(name, key), dict(row))

    def table_get(self, name: str, key: str) -> _Steps[dict[str, Any] | None]:
        """A row of a table (times in ms); None when there is none."""
        return self._entry("GET", _table_place(name, key))

    def table_delete(self, name: str, key: str) -> _Steps[bool]:
        """Remove a row of a live table; whether it was there."""
        return self._removal(_table_place(name, key))

    def _entry(self, method: str, place: str, body: Any = None) -> _Steps[dict[str, Any] | None]:
        accepts = (200, 404) if method == "GET" else (200,)
        return self._steps(_Call(method, place, body, _entry, accepts=accepts))

    def _removal(self, place: str) -> _Steps[bool]:
        return self._steps(_Call("DELETE", place, None, _removed))

    # -- steps

    def _steps(self, call: _Call[T]) -> _Steps[T]:
        """What to do for a call, one thing at a time; returns its value, or raises."""
        until = time.monotonic() + self._deadline
        if call.away is not None:
            if time.monotonic() < self._alone_until:
                return call.away()
            yield from self._learn(until)
        body = None if call.body is None else msgspec.json.encode(call.body)
        why: ServiceError = UnavailableError("the sidecar did not answer in time")
        for attempt in range(TRIES_MAX):
            left = until - time.monotonic()
            if left <= 0:
                break
            # The first try leaves time for a second, which may reach another sidecar.
            own = left if attempt else left / 2
            outcome = yield _Send(call.method, call.path, body, self._headers(body, own), own)
            if isinstance(outcome, httpx.Response):
                if outcome.status_code not in AGAIN and outcome.status_code < 500:
                    self._alone_until = 0.0
                    if attempt and call.again is not None:
                        call = call._replace(read=call.again)
                    return self._read(call, outcome)
                why = _unavailable(outcome)
            else:
                why = UnavailableError(f"the sidecar cannot be reached: {type(outcome).__name__}")
            pause = random.uniform(0, PAUSE_S * 2**attempt)
            if isinstance(outcome, httpx.Response):
                pause += _retry_after(outcome)
            if attempt == TRIES_MAX - 1 or time.monotonic() + pause >= until:
                break
            yield _Pause(pause)
        if call.away is None:
            raise why
        self._alone_until = time.monotonic() + random.uniform(0.5, 1.0) * ALONE_S
        return call.away()

    def _learn(self, until: float) -> _Steps[None]:
        """Ask what to do while no sidecar answers, when there is a new policy. Failing that is no harm."""
        if self._given is not None:
            return
        with self._lock:
            now = time.monotonic()
            if now < self._learn_at or (self._fingerprint and self._seen == self._fingerprint):
                return
            self._learn_at = now + LEARN_S
        outcome = yield _Send("GET", "/v1/policy/contract", None, self.headers, (until - now) / 4)
        if isinstance(outcome, httpx.Response) and outcome.status_code == 200:
            contract = outcome.json()
            self._learned, self._fingerprint = contract["fail"], contract["fingerprint"]
            self._seen = self._seen or self._fingerprint

    def _headers(self, body: bytes | None, left: float) -> Mapping[str, str]:
        headers = self.headers if body is None else {**self.headers, "content-type": "application/json"}
        # Its own answer by contract is better than ours: it counts the event all the same.
        most_ms = int(left * 800)
        return headers if most_ms >= SIDECAR_MS else {**headers, "x-deadline-ms": str(max(most_ms, 1))}

    def _read(self, call: _Call[T], answer: httpx.Response) -> T:
        if answer.status_code in call.accepts:
            return call.read(answer)
        details = _details(answer)
        problems = msgspec.convert(details.get("problems", []), list[Problem])
        kind = str(details.get("type", "")).rpartition(":")[2]
        if problems and call.away is not None and answer.status_code in (409, 422):
            raise EventError(problems)
        what = ERRORS.get(answer.status_code, ServiceError)
        message = str(details.get("detail") or f"the sidecar answered {answer.status_code}")
        raise what(message, answer.status_code, kind, problems, answer.headers.get("x-request-id"))

    def _decision(self, answer: httpx.Response) -> Decision:
        decision = msgspec.json.decode(answer.content, type=Decision)
        self._seen = decision.policy
        return decision

    def _results(self, answer: httpx.Response) -> list[Result]:
        results: list[Result] = []
        for item in msgspec.json.decode(answer.content):
            if "decision_id" in item:
                results.append(msgspec.convert(item, Decision))
            else:
                problems = msgspec.convert(item["problems"], list[Problem])
                results.append(EventError(problems or [Problem("", "refused", item["detail"])]))
        return results

    def _all_instead(self, events: Sequence[Event]) -> list[Result]:
        return [self._instead(event) for event in events]

    def _instead(self, event: Event) -> Decision:
        """The decision while no sidecar answers."""
        kind = event.get("type")
        if isinstance(self._given, str):
            fail: str = self._given
        else:
            fail = (self._given or self._learned).get(str(kind), "review")
        return Decision(
            str(event.get("event_id", "")), "", ACTIONS[fail], 0.0, None, (), (), (), None, self._fingerprint,
            (AWAY,), _time_ms(event.get("time")),
        )  # fmt: skip


class _Method(Generic[P, T]):
    """A call of both clients: that of `Client` gives its value, that of `AsyncClient` a coroutine for it."""

    def __init__(self, asked: Callable[Concatenate[_Asker, P], _Steps[T]]) -> None:
        self._asked = asked
        self.__doc__ = asked.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.__name__ = name

    @overload
    def __get__(self, client: None, owner: type) -> Callable[Concatenate[_Asker, P], _Steps[T]]: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Any:
        asked = self._asked
        if client is None:
            return asked

        @wraps(asked)
        def ask(*given: P.args, **named: P.kwargs) -> T | Coroutine[Any, Any, T]:
            return client._run(asked(client._asker, *given, **named))

        return ask


class _Calls:
    """What can be asked."""

    score = _Method(_Asker.score)
    score_many = _Method(_Asker.score_many)
    label = _Method(_Asker.label)
    release = _Method(_Asker.release)
    list_put = _Method(_Asker.list_put)
    list_get = _Method(_Asker.list_get)
    list_delete = _Method(_Asker.list_delete)
    path = _Method(_Asker.path)
    lift = _Method(_Asker.lift)
    table_put = _Method(_Asker.table_put)
    table_get = _Method(_Asker.table_get)
    table_delete = _Method(_Asker.table_delete)

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        key: str | None = None,
        *,
        deadline: float = 1.0,
        fail: Mapping[str, Fail] | Fail | None = None,
        verify: Any = True,
        connections: int = 100,
    ) -> None:
        self._asker = _Asker(key, deadline, fail)
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._open(base_url=url, verify=verify, limits=limits)

    def _open(self, **settings: Any) -> None:
        """Make what sends."""
        raise NotImplementedError


class Client(_Calls):
    """A sidecar, asked from threads. Keeps its connections; safe to share; close it, or use `with`.

    `key` is an API key. Whatever is asked has `deadline` seconds in all, tries again included: all of it may
    be asked twice without harm. While no sidecar answers, `score` and `score_many` give what the event
    type's `fail:` says, flagged degraded:sidecar; the sidecar is asked for it beforehand, or `fail` says it:
    one for all types, or by type ("review" for others). `verify` is False, or a context of ssl, for TLS.
    """

    def _open(self, **settings: Any) -> None:
        self._http = httpx.Client(**settings)

    def __enter__(self) -> Self:
        """Itself: `with` closes it at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def _run(self, steps: _Steps[T]) -> T:
        outcome: _Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                value: T = done.value
                return value
            outcome = None
            if isinstance(step, _Pause):
                time.sleep(step.seconds)
                continue
            try:
                outcome = self._http.request(
                    step.method, step.path, content=step.content, headers=step.headers, timeout=step.timeout_s
                )
            except httpx.TransportError as error:
                outcome = error


class AsyncClient(_Calls):
    """`Client`, for callers in an event loop. `aclose` it, or use `async with`."""

    def _open(self, **settings: Any) -> None:
        self._http = httpx.AsyncClient(**settings)

    async def __aenter__(self) -> Self:
        """Itself: `async with` closes it at the end."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def _run(self, steps: _Steps[T]) -> T:
        outcome: _Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                value: T = done.value
                return value
            outcome = None
            if isinstance(step, _Pause):
                await asyncio.sleep(step.seconds)
                continue
            try:
                async with asyncio.timeout(step.timeout_s):
                    outcome = await self._http.request(
                        step.method, step.path, content=step.content, headers=step.headers, timeout=None
                    )
            except TimeoutError:
                outcome = httpx.ReadTimeout("no answer in time")
            except httpx.TransportError as error:
                outcome = error


def _list_place(name: str, entity: str, value: str | Sequence[str]) -> str:
    parts = (value,) if isinstance(value, str) else value
    return "/".join(
        ("/v1/lists", quote(name, safe=""), quote(entity, safe=""), *(quote(p, safe="") for p in parts))
    )


def _table_place(name: str, key: str) -> str:
    return f"/v1/tables/{quote(name, safe='')}/{quote(key, safe='')}"


def _known(answer: httpx.Response) -> bool:
    return answer.status_code == 200 and bool(answer.json()["known"])


def _released(answer: httpx.Response) -> bool:
    return bool(answer.json()["released"])


def _released_by_now(answer: httpx.Response) -> bool:
    return _released(answer) or "before" in answer.json()


def _removed(answer: httpx.Response) -> bool:
    return bool(answer.json()["removed"])


def _entry(answer: httpx.Response) -> dict[str, Any] | None:
    found: dict[str, Any] | None = answer.json() if answer.status_code == 200 else None
    return found


def _details(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _unavailable(answer: httpx.Response) -> UnavailableError | RateError:
    details = _details(answer)
    what = RateError if answer.status_code == 429 else UnavailableError
    message = str(details.get("detail") or f"the sidecar answered {answer.status_code}")
    kind = str(details.get("type", "")).rpartition(":")[2]
    return what(message, answer.status_code, kind, (), answer.headers.get("x-request-id"))


def _retry_after(answer: httpx.Response) -> float:
    given = answer.headers.get("retry-after", "")
    return float(given) if given.isdigit() else 0.0


def _time_ms(given: object) -> int:
    """The event's own time where it says one, else now."""
    if isinstance(given, int):
        return given
    if isinstance(given, str):
        try:
            return round(datetime.fromisoformat(given).astimezone(UTC).timestamp() * 1000)
        except ValueError:
            pass
    return time.time_ns() // 1_000_000
