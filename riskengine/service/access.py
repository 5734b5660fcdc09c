"""API keys: what each may do, how fast, and the file that keeps them as hashes.

A key is `rk_ID_SECRET`. The file has the SHA-256 of the secret, which is 192 random bits: a slow hash would
gain nothing. A sidecar takes in a changed file within a second.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import struct
import tempfile
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec

from riskengine.errors import RiskEngineError
from riskengine.files import FileError, unwritable
from riskengine.service.problems import Headers, RefusedError

Scope = Literal["score", "label", "lists", "policy", "read", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
LOOK_SECONDS: Final = 0.5  # between looks at the file
_BUCKET: Final = struct.Struct("dd")  # requests left, and when

# What a route asks for; None: anybody may. `admin` may do everything. A test holds this against OpenAPI.
NEEDED: Final[Mapping[tuple[str, str], Scope | None]] = {
    ("POST", "/v1/score"): "score",
    ("POST", "/v1/score/batch"): "score",
    ("POST", "/v1/labels"): "label",
    ("POST", "/v1/decisions/{event_id}/release"): "score",
    ("GET", "/v1/decisions/{event_id}"): "read",
    ("GET", "/v1/alerts"): "read",
    ("GET", "/v1/lists/{name}/{entity}/{value}"): "read",
    ("PUT", "/v1/lists/{name}/{entity}/{value}"): "lists",
    ("DELETE", "/v1/lists/{name}/{entity}/{value}"): "lists",
    ("GET", "/v1/paths/{path}"): "read",
    ("DELETE", "/v1/paths/{path}"): "lists",
    ("GET", "/v1/tables/{name}/{key}"): "read",
    ("PUT", "/v1/tables/{name}/{key}"): "lists",
    ("DELETE", "/v1/tables/{name}/{key}"): "lists",
    ("GET", "/v1/policy"): "read",
    ("GET", "/v1/policy/history"): "read",
    ("GET", "/v1/policy/contract"): "score",
    ("POST", "/v1/policy/check"): "policy",
    ("POST", "/v1/policy/activate"): "policy",
    ("POST", "/v1/policy/rollback"): "policy",
    ("GET", "/livez"): None,
    ("GET", "/readyz"): None,
    ("GET", "/metrics"): "read",
    ("GET", "/openapi.json"): None,
    ("GET", "/docs"): None,
}
_ROUTES: Final = [
    (method, re.compile(re.sub(r"\{\w+\}", ".+", route)), scope)
    for (method, route), scope in NEEDED.items()
    if "{" in route
]


class Key(msgspec.Struct, frozen=True):
    """A key as the file keeps it. `per_second`: requests it may make, None for any number."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    hash: str
    made_ms: int
    per_second: int | None = None


class Keys(msgspec.Struct, frozen=True):
    """The file."""

    keys: tuple[Key, ...] = ()


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file; none where there is no file. Raises RiskEngineError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Keys).keys
    except FileNotFoundError:
        return ()
    except msgspec.DecodeError as error:
        raise RiskEngineError(f"{path} is no file of API keys: {error}") from None


def make_key(path: Path, name: str, scopes: tuple[Scope, ...], per_second: int | None, now_ms: int) -> str:
    """Add a key to a file and return it: nobody can read it again. Raises RiskEngineError."""
    if not scopes:
        raise RiskEngineError(f"a key may do nothing without a scope: give --scope, of {', '.join(SCOPES)}")
    keys = read_keys(path)
    known = {key.id for key in keys}
    key_id = next(found for found in iter(lambda: secrets.token_hex(4), "") if found not in known)
    secret = secrets.token_hex(24)
    _write(path, (*keys, Key(key_id, name, scopes, _hash(secret), now_ms, per_second)))
    return f"rk_{key_id}_{secret}"


def rotate_key(path: Path, key_id: str, now_ms: int) -> str:
    """Give a key another secret and return it whole; the old one ends. Raises RiskEngineError."""
    keys = read_keys(path)
    _known(path, keys, key_id)
    secret = secrets.token_hex(24)
    _write(
        path,
        tuple(
            msgspec.structs.replace(key, hash=_hash(secret), made_ms=now_ms) if key.id == key_id else key
            for key in keys
        ),
    )
    return f"rk_{key_id}_{secret}"


def revoke_key(path: Path, key_id: str) -> None:
    """Take a key out of a file. Raises RiskEngineError."""
    keys = read_keys(path)
    _known(path, keys, key_id)
    _write(path, tuple(key for key in keys if key.id != key_id))


class Access:
    """Who may do what. Without a single key at the start, everybody may do everything."""

    def __init__(
        self, path: Path | None, shared: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`shared` is a folder by which workers keep one count of each key's requests."""
        self._path = path
        self._shared = shared
        self._clock = clock
        self._counting: dict[str, int] = {}  # by key: descriptor of the file that workers share
        self._seen = _state(path)
        self._looked = clock()
        self._keys = {key.id: key for key in read_keys(path)} if path is not None else {}
        self._tokens: dict[str, tuple[float, float]] = {}  # by key: how many it had, and when
        self.required: Final = bool(self._keys)

    def admit(self, scope: MutableMapping[str, Any]) -> Headers:
        """The headers that an answer to this request is to carry. Raises RefusedError."""
        if not self.required:
            return ()
        method, path = scope["method"], scope["path"]
        needed = _needed("GET" if method == "HEAD" else method, path)
        if needed is None:
            return ()
        key = self._key(scope)
        if needed not in key.scopes and "admin" not in key.scopes:
            raise RefusedError("scope-missing", f"this key has not the scope {needed}")
        scope["riskengine.key"] = key.name
        return () if key.per_second is None else self._take(key, key.per_second)

    def _key(self, scope: Mapping[str, Any]) -> Key:
        self._look()
        given = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                given = value
        challenge = ((b"www-authenticate", b"Bearer"),)
        if not given:
            raise RefusedError("key-missing", "send Authorization: Bearer KEY", headers=challenge)
        kind, _, text = given.decode("latin-1").partition(" ")
        parts = text.strip().split("_")
        sound = kind.lower() == "bearer" and len(parts) == 3 and parts[0] == "rk"
        key = self._keys.get(parts[1]) if sound else None
        # Compared where there is no such key too, so that time tells nothing of which ids there are.
        same = hmac.compare_digest(_hash(parts[-1]), key.hash if key is not None else _NOBODY)
        if key is None or not same:
            raise RefusedError("key-unknown", "this key is not known (any more)", headers=challenge)
        return key

    def _look(self) -> None:
        """Take in the file where it has changed; what cannot be read leaves the keys as they were."""
        now = self._clock()
        if self._path is None or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        state = _state(self._path)
        if state != self._seen:
            try:
                self._keys = {key.id: key for key in read_keys(self._path)}
            except (RiskEngineError, OSError):
                return
            self._seen = state

    def _take(self, key: Key, per_second: int) -> Headers:
        """One request from a bucket that fills at `per_second` and holds one second's worth."""
        left = self._left(key.id, float(per_second))
        # https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
        headers = (
            (b"ratelimit-policy", b'"key";q=%d;w=1' % per_second),
            (b"ratelimit", b'"key";r=%d;t=1' % max(int(left), 0)),
        )
        if left < 0:
            raise RefusedError(
                "rate",
                f"this key may make {per_second:,} requests a second",
                headers=(*headers, (b"retry-after", b"1")),
            )
        return headers

    def _left(self, key_id: str, per_second: float) -> float:
        """How many requests a key has left after this one; below 0 it is one too many."""
        if self._shared is None:
            now = self._clock()
            left, kept = _one_less(self._tokens.get(key_id), per_second, now)
            self._tokens[key_id] = kept, now
            return left
        file = self._counting.get(key_id)
        if file is None:
            path = self._shared / f"key-{key_id}"
            file = self._counting[key_id] = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)  # for three calls of the system; the clock is the machine's
        try:
            now = self._clock()
            said = os.pread(file, _BUCKET.size, 0)
            left, kept = _one_less(_BUCKET.unpack(said) if said else None, per_second, now)
            os.pwrite(file, _BUCKET.pack(kept, now), 0)
            return left
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def _one_less(known: tuple[float, float] | None, per_second: float, now: float) -> tuple[float, float]:
    """What a bucket has after one request (below 0: it is refused), and what is to be kept of it."""
    had, at = known or (per_second, now)
    tokens = min(per_second, had + max(now - at, 0.0) * per_second)
    left = tokens - 1.0
    return left, tokens if left < 0 else left


def _needed(method: str, path: str) -> Scope | None:
    """The scope a request needs; routes that are not there are nobody's to find out without a key."""
    if (method, path) in NEEDED:
        return NEEDED[method, path]
    for verb, route, scope in _ROUTES:
        if verb == method and route.fullmatch(path):
            return scope
    return "read"


def _known(path: Path, keys: tuple[Key, ...], key_id: str) -> None:
    if key_id not in {key.id for key in keys}:
        there = ", ".join(key.id for key in keys) or "none"
        raise RiskEngineError(f"{path} has no key {key_id!r}: there are: {there}")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


_NOBODY: Final = _hash("")


def _state(path: Path | None) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def _write(path: Path, keys: tuple[Key, ...]) -> None:
    """Replace the file as a whole; only its owner may read it. Raises FileError."""
    try:
        handle, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(Keys(keys)), indent=2) + b"\n")
            os.replace(made, path)
        except BaseException:
            os.unlink(made)
            raise
    except OSError as error:
        raise FileError(unwritable(str(path), error.strerror)) from None
