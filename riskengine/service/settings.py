"""What the sidecar may be told: by flags, else by RISKENGINE_* in the environment, else as it stands here."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from riskengine.errors import RiskEngineError
from riskengine.service import webhook

PREFIX: Final = "RISKENGINE_"
BATCH_EVENTS_MAX: Final = 1_000  # events of one request to /v1/score/batch
DEPTH_MAX: Final = 32  # objects and arrays in each other; an event has 2, a policy's files 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The sidecar's settings. Each has a variable: that of `queue_events` is RISKENGINE_QUEUE_EVENTS."""

    rules: str = "rules"
    store: str = "memory://"
    journal: str = "sqlite:///journal.db"  # none: keeps no journal
    journal_commit: Literal["async", "sync"] = "async"  # sync: an answer waits for its commit
    host: str = "127.0.0.1"
    port: int = 8080
    tls_cert: str | None = None  # PEM, with the chain to the authority
    tls_key: str | None = None
    workers: int = 1  # processes
    log: Literal["text", "json"] = "text"
    log_requests: bool = False  # each request, not only what changes something or fails
    keys: str = "keys.json"  # the file of API keys (`riskengine keys`)
    alert_webhook: str | None = (
        None  # where episodes of alerts are posted, signed with RISKENGINE_ALERT_SECRET
    )
    alert_webhook_private: bool = False  # it may be an address that is not of the public internet
    queue_events: int = 4_000  # waiting or being scored; what comes past it is refused with 503
    body_bytes: int = 1_048_576
    body_seconds: int = 5  # to send a request's body in
    deadline_ms: int = 50  # where a request brings no X-Deadline-Ms
    notice_seconds: int = 1  # from SIGTERM on, /readyz says 503 so long before new connections are refused
    drain_seconds: int = 10  # for requests under way when it is asked to stop
    from_folder: bool = False  # ends what was activated over HTTP: the policy of `rules` serves

    @classmethod
    def read(cls, environment: Mapping[str, str], **flags: Any) -> Self:
        """Flags that are not None, else the environment, else the defaults. May raise RiskEngineError."""
        chosen: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            name = f"{PREFIX}{field.name.upper()}"
            given = environment.get(name)
            if flags.get(field.name) is not None:
                chosen[field.name] = flags[field.name]
            elif given and field.name == "log" and given not in ("text", "json"):
                raise RiskEngineError(f"{name} is text or json")
            elif given and field.name == "journal_commit" and given not in ("async", "sync"):
                raise RiskEngineError(f"{name} is async or sync")
            elif given:
                chosen[field.name] = _READ.get(str(field.type), _text)(name, given)
        settings = cls(**chosen)
        for field in dataclasses.fields(cls):
            least = 0 if field.name in ("port", "drain_seconds", "notice_seconds") else 1
            value = getattr(settings, field.name)
            if field.type == "int" and value < least:
                raise RiskEngineError(f"{field.name} is {value}: give {least} or more")
        if settings.port > 65_535:
            raise RiskEngineError(f"port is {settings.port}: ports end at 65535")
        return settings

    @property
    def journal_url(self) -> str | None:
        """The journal's URL, or None for none."""
        if self.journal == "none" or self.journal_commit == "async":
            return None if self.journal == "none" else self.journal
        from riskengine.journal.address import with_commit  # and with it SQLAlchemy

        return with_commit(self.journal, self.journal_commit)

    @property
    def address(self) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
        """Where to listen, as sockets take it. Raises RiskEngineError where the host leads nowhere."""
        try:
            known = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError):  # the latter of a name no host can have
            raise RiskEngineError(
                f"there is no address {self.host!r}: give --host an address of this machine, 127.0.0.1 to "
                "answer only its own programs, or 0.0.0.0 for every address it has"
            ) from None
        family, _, _, _, address = known[0]
        return family, address

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach it. Raises as `address` does."""
        return ipaddress.ip_address(self.address[1][0]).is_loopback

    def check(self) -> None:
        """Refuse what cannot work, before anything is opened. Raises RiskEngineError with the reason."""
        if self.alert_webhook is not None:
            webhook.check(self.alert_webhook, webhook.secret_of(os.environ))
        if self.workers > 1 and self.store.startswith("memory:"):
            raise RiskEngineError(
                f"{self.workers} workers cannot share the store {self.store}: it lives in one process, so "
                "each would count for itself and grant every limit again. Use one worker, or --store redis://..."
            )


def _text(name: str, given: str) -> str:
    return given


def _truth(name: str, given: str) -> bool:
    if given.lower() not in ("0", "1", "false", "true"):
        raise RiskEngineError(f"{name} is neither true nor false")
    return given.lower() in ("1", "true")


def _number(name: str, given: str) -> int:
    try:
        return int(given)
    except ValueError:
        raise RiskEngineError(f"{name} is not a whole number") from None


_READ: Final[Mapping[str, Callable[[str, str], Any]]] = {"int": _number, "bool": _truth}
