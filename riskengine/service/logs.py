"""What the sidecar says of itself: lines for people, or JSON for programs. Never what events hold.

Messages are ours, and so are the fields beside them (`extra=`): routes as the code writes them, names of
keys, statuses, ids of requests. An exception tells its kind and its place, not its text, which may hold data.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from riskengine.service.outlet import Outlet

Form = Literal["text", "json"]
ROOT: Final = "riskengine"
SCORING: Final = ("/v1/score", "/v1/score/batch")
READING: Final = ("GET", "HEAD", "OPTIONS")
STORM_SECONDS: Final = 1.0  # of refusals as busy one is told in so long, with how many there were
_SOUND: Final = re.compile(rb"[\w.-]{1,64}")  # ids of requests that are taken over
_PREFIX: Final = secrets.token_hex(4).encode()
_NUMBERS: Final = itertools.count(1)
_USUAL: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


_outlets: Final[list[Outlet]] = []  # that of this process


@contextmanager
def written(form: Form, worker: int | None = None) -> Iterator[None]:
    """Have everything that `riskengine` logs written to standard error, each record a line.

    Inside, nothing that this process says there waits for who reads it.
    """
    formatter = _Json(worker) if form == "json" else _Text()
    outlet = Outlet.instead(lambda n: formatter.format(_untaken(n)))
    _outlets[:] = [] if outlet is None else [outlet]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger(ROOT)
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False
    for name in ("uvicorn", "uvicorn.error", "asyncio"):  # their errors too; what they tell else we say
        other = logging.getLogger(name)
        other.handlers = [handler]
        other.setLevel(logging.ERROR)
        other.propagate = False
    try:
        yield
    finally:
        if outlet is not None:
            outlet.leave()
            handler.setStream(sys.stderr)


def dropped() -> int:
    """How many records found no room, because nobody read standard error."""
    return sum(outlet.dropped for outlet in _outlets)


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The id that a request brings as X-Request-Id, else one of ours."""
    for name, value in headers:
        if name == b"x-request-id" and _SOUND.fullmatch(value):
            return value
    return b"%b-%x" % (_PREFIX, next(_NUMBERS))


class RequestLog:
    """Tells of requests that failed or changed something; of all, where that is asked for."""

    def __init__(self, everything: bool) -> None:
        self.everything = everything
        self._log = logging.getLogger(f"{ROOT}.requests")
        self._storm_until = 0.0
        self._untold = 0

    def tell(
        self, method: str, route: str, status: int, seconds: float, request_id: bytes, key: str | None
    ) -> None:
        """A request was answered. `route` is as the code has it, `key` the name of its API key."""
        changes = method not in READING and route not in SCORING
        if status < 500 and not changes and not self.everything:
            return
        now = time.monotonic()
        if status == 503 and not changes and now < self._storm_until:
            self._untold += 1
            return
        told: dict[str, Any] = {
            "request_id": request_id.decode("ascii"), "method": method, "route": route, "status": status,
            "ms": round(1e3 * seconds, 3), "key": key,
        }  # fmt: skip
        if status == 503 and not changes:
            told["untold"] = self._untold or None
            self._storm_until, self._untold = now + STORM_SECONDS, 0
        level = logging.INFO if status < 500 else logging.ERROR if status == 500 else logging.WARNING
        self._log.log(level, "request", extra=told)


def where(error: BaseException) -> str:
    """The kind of an error and where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{place}"


def _more(record: logging.LogRecord) -> dict[str, Any]:
    """The fields beside a message."""
    found = {
        name: value for name, value in record.__dict__.items() if name not in _USUAL and value is not None
    }
    if record.exc_info and record.exc_info[1] is not None:
        found["error"] = where(record.exc_info[1])
    return found


def _untaken(n: int) -> logging.LogRecord:
    said = "records of this log were dropped: nobody read standard error, or it could not be written"
    level = logging.WARNING
    return logging.makeLogRecord(
        {"name": ROOT, "levelno": level, "levelname": logging.getLevelName(level), "msg": said, "dropped": n}
    )


class _Json(logging.Formatter):
    def __init__(self, worker: int | None) -> None:
        super().__init__()
        self._same = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        said = {"time": at, "level": record.levelname.lower(), "message": record.getMessage()}
        return msgspec.json.encode({**said, **self._same, **_more(record)}, enc_hook=str).decode()


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        more = "".join(f" {name}={value}" for name, value in _more(record).items())
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return f"{level}{record.getMessage()}{more}"
