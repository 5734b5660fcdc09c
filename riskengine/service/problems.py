"""What went wrong with a request, as RFC 9457 problem details with JSON pointers (RFC 6901)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from riskengine.errors import EventError, Problem

MEDIA_TYPE: Final = b"application/problem+json"
Headers = tuple[tuple[bytes, bytes], ...]

# What can go wrong: the status it is told with, and its title.
KINDS: Final = {
    "malformed": (400, "The request cannot be read"),
    "key-missing": (401, "An API key is needed"),
    "key-unknown": (401, "The API key is not known"),
    "scope-missing": (403, "The API key may not do this"),
    "not-found": (404, "There is no such thing"),
    "method": (405, "The method is not allowed here"),
    "slow": (408, "The request did not come in time"),
    "conflict": (409, "It is in conflict with what is there"),
    "too-large": (413, "The request is too large"),
    "media-type": (415, "The content type is not understood"),
    "head-too-large": (431, "The head of the request is too large"),
    "invalid": (422, "The content is not right"),
    "policy": (422, "The policy may not be used"),
    "rate": (429, "Too many requests with this API key"),
    "bug": (500, "A bug in riskengine"),
    "not-ready": (503, "It is not ready"),
    "store": (503, "The store cannot be asked"),
    "journal": (503, "The journal cannot be written"),
    "busy": (503, "There is more to do than can be done in time"),
}


class ProblemDetails(msgspec.Struct, frozen=True, gc=False):
    """What every answer that is no success carries. `problems` point into the body that was sent."""

    type: str
    title: str
    status: int
    detail: str
    problems: tuple[Problem, ...] = ()


class RefusedError(Exception):
    """A request is answered with this problem."""

    def __init__(
        self, kind: str, detail: str, problems: Sequence[Problem] = (), headers: Headers = ()
    ) -> None:
        status, title = KINDS[kind]
        self.details = ProblemDetails(
            f"urn:riskengine:problem:{kind}", title, status, detail, tuple(problems)
        )
        self.headers = headers
        super().__init__(detail)


def refusal(error: EventError, at: int | None = None) -> RefusedError:
    """The problem of a record; `at` is its place in a batch, where it came in one."""
    prefix = "" if at is None else f"/{at}"
    problems = [
        Problem(f"{prefix}{p.pointer}", p.code, p.message, p.expected, p.found) for p in error.problems
    ]
    kind = "conflict" if any(p.code == "conflict" for p in problems) else "invalid"
    return RefusedError(kind, str(error), problems)


def overfull() -> RefusedError:
    """Refused because the queue is full or too long to wait in, or the sidecar is about to stop."""
    return RefusedError(
        "busy",
        "too much is waiting for this to be decided in time: send it again in a second",
        headers=((b"retry-after", b"1"),),
    )


def told(refused: RefusedError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of a problem."""
    body = msgspec.json.encode(refused.details)
    headers: Headers = (
        (b"content-type", MEDIA_TYPE),
        (b"content-length", b"%d" % len(body)),
        *refused.headers,
    )
    return refused.details.status, list(headers), body
