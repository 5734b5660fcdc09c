"""A store's URL becomes a store: read, connected, checked for what we need of a server, and found begun."""

from __future__ import annotations

import re
import secrets
from itertools import chain
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from riskengine.errors import RiskEngineError
from riskengine.features import FeatureSet
from riskengine.stores import StoreError
from riskengine.stores.link import Link, facts_of
from riskengine.stores.place import Place, missing_epoch
from riskengine.stores.redis import RedisStore
from riskengine.stores.scanning import scan

SCHEMES: Final = ("redis", "rediss", "unix")
TIMEOUT_MS: Final = 1000  # a service says less
EPOCH_CHARS: Final = 4
VERSION_MIN: Final = (6, 2)
SURVEY_MS: Final = 5000
SAMPLE: Final = 500  # keys of each kind that are weighed
KINDS: Final = {"e": "entities", "c": "claims", "d": "decisions", "l": "labels", "r": "settled"}


class Address(msgspec.Struct, frozen=True):
    """Where a store is, and how long to wait for it."""

    url: str  # as redis-py reads it
    prefix: str
    timeout_ms: int
    connect_ms: int

    @classmethod
    def read(cls, url: str) -> Address:
        """Read a URL: ours are `prefix`, `timeout` and `connect` (ms), the rest is redis-py's."""
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise RiskEngineError(f"the store's URL cannot be read: {error}") from None
        if parts.scheme not in SCHEMES:
            raise RiskEngineError(
                f"no store is known by {parts.scheme or 'no scheme'}: it is memory://, redis://HOST:PORT/DB, "
                "rediss:// (TLS) or unix://SOCKET"
            )
        ours = {"prefix": "re", "timeout": str(TIMEOUT_MS), "connect": ""}
        theirs = []
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name in ours:
                ours[name] = value
            else:
                theirs.append((name, value))
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", ours["prefix"]):
            raise RiskEngineError(
                "the store's prefix= is 1 to 40 letters, digits, dots, dashes or underscores"
            )
        ours["connect"] = ours["connect"] or ours["timeout"]
        for name in ("timeout", "connect"):
            if not re.fullmatch(r"[1-9][0-9]{0,6}", ours[name]):
                raise RiskEngineError(f"the store's {name}= is a number of milliseconds, such as {name}=20")
        plain = urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(theirs), ""))
        return cls(plain, ours["prefix"], int(ours["timeout"]), int(ours["connect"]))


def open_store(url: str, features: FeatureSet, tenant: str) -> RedisStore:
    """Open the shared store at a URL. Raises RiskEngineError for a URL, a server or data that will not do."""
    address = Address.read(url)
    link = Link(address.url, address.timeout_ms, address.connect_ms)
    try:
        check_server(link)
        place = find(link, address, tenant)
        if not place.epoch:
            raise StoreError("epoch", missing_epoch(place))
        return RedisStore(features, link, place)
    except BaseException:
        link.close()
        raise


def begin(url: str, tenant: str) -> Place:
    """Begin a store where there is none: an epoch without any data. One that has begun stays as it is."""
    address = Address.read(url)
    link = Link(address.url, address.timeout_ms, address.connect_ms)
    try:
        check_server(link)
        key = find(link, address, tenant).epoch_key
        link.call("SET", key, secrets.token_hex(EPOCH_CHARS // 2), "NX")
        return find(link, address, tenant)
    finally:
        link.close()


def find(link: Link, address: Address, tenant: str) -> Place:
    """Where a tenant's data is; an empty epoch where none has begun."""
    place = Place(f"{address.prefix}:{tenant}:", b"")
    epoch = link.call("GET", place.epoch_key)[0]
    return msgspec.structs.replace(place, epoch=epoch) if isinstance(epoch, bytes) else place


def check_server(link: Link) -> None:
    """Look that a server can do what we need, and forgets nothing by itself. Raises RiskEngineError."""
    info = link.call("INFO")[0]
    facts = facts_of(info) if isinstance(info, bytes) else {}
    version = tuple(int(part) for part in re.findall(r"\d+", facts.get("redis_version", ""))[:2])
    if version and version < VERSION_MIN:
        raise RiskEngineError(
            f"the server is Redis {facts['redis_version']}: 6.2 is the oldest that will do (or Valkey)"
        )
    if facts.get("redis_mode") == "cluster" or facts.get("cluster_enabled") == "1":
        raise RiskEngineError("the server is a node of a cluster: a store needs a server of its own so far")
    policy = facts.get("maxmemory_policy", "noeviction")
    if facts.get("maxmemory", "0") != "0" and policy != "noeviction":
        raise RiskEngineError(
            f"a full server would forget counters (maxmemory-policy is {policy}): set it to noeviction"
        )


class Survey(msgspec.Struct, frozen=True):
    """What a store holds: of each kind of key how many, and their bytes (of many, from a sample)."""

    server: str
    epoch: str
    memory: int
    memory_max: int
    slow_calls: int
    kinds: dict[str, tuple[int, int]]


def survey(url: str, tenant: str) -> Survey:
    """Look through a store. It takes a while where there is much, and holds nobody up."""
    address = Address.read(url)
    link = Link(address.url, max(address.timeout_ms, SURVEY_MS), address.connect_ms)
    try:
        info = link.call("INFO")[0]
        facts = facts_of(info) if isinstance(info, bytes) else {}
        place = find(link, address, tenant)
        names: dict[str, list[bytes]] = {kind: [] for kind in KINDS.values()}
        counts = dict.fromkeys(names, 0)
        for name in chain.from_iterable(scan(link, place.data)) if place.epoch else ():
            kind = KINDS.get(name[len(place.data) : len(place.data) + 1].decode(), "other")
            counts[kind] = counts.get(kind, 0) + 1
            if len(names.setdefault(kind, [])) < SAMPLE:
                names[kind].append(name)
        kinds = {}
        for kind, some in names.items():
            sizes = [size for name in some if isinstance(size := link.call("MEMORY", "USAGE", name)[0], int)]
            mean = sum(sizes) / len(sizes) if sizes else 0
            kinds[kind] = counts.get(kind, 0), round(mean * counts.get(kind, 0))
        slow = link.call("SLOWLOG", "LEN")[0]
        return Survey(
            facts.get("valkey_version") or facts.get("redis_version", "unknown"),
            place.epoch.decode() or "none",
            int(facts.get("used_memory", 0)),
            int(facts.get("maxmemory", 0)),
            slow if isinstance(slow, int) else 0,
            kinds,
        )
    finally:
        link.close()
