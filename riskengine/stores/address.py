"""A store's URL becomes a store: read, connected, checked for what we need of a server, and found begun."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from inspect import signature
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
from redis.connection import ConnectionPool, SSLConnection

from riskengine.errors import RiskEngineError, nearest
from riskengine.features import FeatureSet
from riskengine.stores import StoreError
from riskengine.stores.cluster import AnyLink, ClusterLink, tags
from riskengine.stores.edits import losses_of
from riskengine.stores.line import Item, facts_of
from riskengine.stores.link import Link
from riskengine.stores.place import Place, missing_epoch
from riskengine.stores.redis import RedisStore
from riskengine.stores.requests import together
from riskengine.stores.resp import command
from riskengine.stores.scanning import scan

SCHEMES: Final = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")
UNREADABLE: Final = (
    "the store's URL cannot be read: expected redis://USER:PASSWORD@HOST:PORT/DB, the port a number (in a "
    "password / is %2F, ? is %3F, # is %23, [ is %5B)"
)
OURS: Final = ("prefix", "timeout", "connect", "at_once")  # options of a URL
# What redis-py takes besides that can be said as text; what it takes as an object would fail much later.
THEIRS: Final = (
    "db", "username", "password", "client_name", "lib_name", "lib_version", "protocol",
    "health_check_interval", "retry_on_timeout", "socket_timeout", "socket_connect_timeout",
    "socket_read_size", "max_connections",
)  # fmt: skip
TCP: Final = ("socket_keepalive",)
TLS: Final = tuple(
    name
    for name in signature(SSLConnection).parameters
    if name.startswith("ssl_") and name != "ssl_ocsp_context"
)
TIMEOUT_MS: Final = 1000  # a service says less
AT_ONCE: Final = 3  # batches under way: while one waits for the server, another has the processor
EPOCH_CHARS: Final = 4
VERSION_MIN: Final = (6, 2)
OPENING_MS: Final = 5000
SURVEY_MS: Final = 5000
SAMPLE: Final = 500  # keys of each kind that are weighed
# By the letter of their names; of a batch decisions are together in one key, and so are traces.
KINDS: Final = {
    "e": "entities", "c": "claims", "t": "traces", "d": "decisions", "k": "decisions", "l": "labels",
    "r": "settled", "o": "owed",
}  # fmt: skip
EVENTS: Final = ("claims", "decisions", "labels", "settled")  # kinds whose keys are named by an event


class Address(msgspec.Struct, frozen=True):
    """Where a store is, and how long to wait for it."""

    urls: tuple[str, ...]  # as redis-py reads them: of a server, or of some nodes of a cluster
    cluster: bool
    prefix: str
    timeout_ms: int
    connect_ms: int
    at_once: int  # batches that an engine may have under way

    @classmethod
    def read(cls, url: str) -> Address:
        """Read a URL: ours are `prefix`, `timeout` and `connect` (ms), `at_once`; the rest is redis-py's."""
        try:
            parts = urlsplit(url)
            user, at, hosts = parts.netloc.rpartition("@")
            scheme, _, cluster = parts.scheme.partition("+")
            nodes = [parts._replace(netloc=user + at + host) for host in hosts.split(",")]
            if cluster:
                nodes = [_node(node._replace(scheme=scheme)) for node in nodes]
            for node in nodes:
                _ = node.port
        except ValueError:  # its text may have a piece of the password
            raise RiskEngineError(UNREADABLE) from None
        if parts.scheme == "memory":
            raise RiskEngineError(
                "a store in memory ends with its process, and is never begun or looked into: name a shared "
                "store, such as redis://HOST:PORT/DB"
            )
        if parts.scheme not in SCHEMES:
            raise RiskEngineError(
                f"no store is known by {parts.scheme or 'no scheme'}: it is memory://, redis://HOST:PORT/DB, "
                "rediss:// (TLS), unix://SOCKET or redis+cluster://HOST:PORT,HOST:PORT (rediss+cluster://)"
            )
        if len(nodes) > 1 and not cluster:
            raise RiskEngineError("one server has one address: several hosts are those of redis+cluster://")
        if cluster and parts.path.strip("/") not in ("", "0"):
            raise RiskEngineError("a cluster has no databases but 0: take the number out, and give a prefix=")
        if scheme != "unix":
            _check_database(parts)
        ours = {"prefix": "re", "timeout": str(TIMEOUT_MS), "connect": "", "at_once": str(AT_ONCE)}
        theirs = []
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name in ours:
                ours[name] = value
            else:
                _check_option(name, parts)
                theirs.append((name, value))
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", ours["prefix"]):
            raise RiskEngineError(
                "the store's prefix= is 1 to 40 letters, digits, dots, dashes or underscores"
            )
        ours["connect"] = ours["connect"] or ours["timeout"]
        for name in ("timeout", "connect"):
            if not re.fullmatch(r"[1-9][0-9]{0,6}", ours[name]):
                raise RiskEngineError(f"the store's {name}= is a number of milliseconds, such as {name}=20")
        if not re.fullmatch(r"[1-9]", ours["at_once"]):
            raise RiskEngineError("the store's at_once= is how many batches may be under way: 1 to 9")
        query = urlencode(theirs)
        plain = tuple(_spelled(node._replace(query=query, fragment="")) for node in nodes)
        try:
            ConnectionPool.from_url(plain[0])  # connects to nothing yet
        except ValueError as error:  # it names the option, and not its value
            raise RiskEngineError(f"the store's URL cannot be used: {error}") from None
        timeout, connect, at_once = (int(ours[name]) for name in ("timeout", "connect", "at_once"))
        return cls(plain, bool(cluster), ours["prefix"], timeout, connect, at_once)

    def link(self, patience_ms: int = 0) -> AnyLink:
        """The way there; each wait is at least so long. StoreError where no node of a cluster answers."""
        timeout_ms, connect_ms = max(patience_ms, self.timeout_ms), max(patience_ms, self.connect_ms)
        if self.cluster:
            return ClusterLink(self.urls, timeout_ms, connect_ms)
        return Link(self.urls[0], timeout_ms, connect_ms)

    def hurried(self) -> AnyLink:
        """A link that was made with patience, and has no more of it than the URL says."""
        link = self.link(OPENING_MS)
        link.hurry(self.timeout_ms, self.connect_ms)
        return link


def open_store(url: str, features: FeatureSet, tenant: str) -> RedisStore:
    """Open the shared store at a URL. Raises RiskEngineError for a URL, a server or data that will not do.

    Nobody waits for a decision yet: its deadlines hold from when it is open.
    """
    address = Address.read(url)
    link = address.link(OPENING_MS)
    try:
        check_server(link)
        place = find(link, address, tenant)
        if not place.epoch:
            raise StoreError("epoch", missing_epoch(place))
        store = RedisStore(features, link, place, address.hurried, address.at_once)
        link.hurry(address.timeout_ms, address.connect_ms)
        return store
    except BaseException:
        link.close()
        raise


def begin(url: str, tenant: str) -> Place:
    """Begin a store where there is none: an epoch without any data. One that has begun stays as it is.

    Of a cluster the first partition is begun last: where that has an epoch and others do not, data was lost.
    """
    address = Address.read(url)
    link = address.link(OPENING_MS)
    try:
        check_server(link)
        place = find(link, address, tenant)
        if not place.epoch:
            write_epoch(link, place, secrets.token_hex(EPOCH_CHARS // 2).encode(), begin=True)
            place = find(link, address, tenant)
        if any(epoch != place.epoch for epoch in epochs(link, place)):
            raise StoreError("epoch", missing_epoch(place))
        return place
    finally:
        link.close()


def write_epoch(link: AnyLink, place: Place, epoch: bytes, begin: bool = False) -> None:
    """Say of every partition which life of the data this is; to `begin`, only where the first has none."""
    others = range(1, len(place.tags))
    each_part(link, others, [("SET", place.epoch_name(part), epoch) for part in others])
    link.call("SET", place.epoch_name(0), epoch, *(["NX"] if begin else []))
    stands = link.call("GET", place.epoch_name(0))[0]
    if begin and isinstance(stands, bytes) and stands != epoch:  # another was faster
        each_part(link, others, [("SET", place.epoch_name(part), stands) for part in others])


def epochs(link: AnyLink, place: Place) -> list[Item]:
    """The epoch that each partition has."""
    parts = range(len(place.tags))
    return each_part(link, parts, [("GET", place.epoch_name(part)) for part in parts])


def each_part(
    link: AnyLink, parts: Sequence[int], commands: Sequence[Sequence[bytes | str | int]]
) -> list[Item]:
    """Ask each partition something at once, and what each answers (one item)."""
    if not commands:
        return []
    reply = link.ask_all(*together([command(words) for words in commands], parts))
    return [reply.item(int(reply.firsts[k])) for k in range(len(commands))]


def find(link: AnyLink, address: Address, tenant: str) -> Place:
    """Where a tenant's data is; an empty epoch where none has begun."""
    place = Place(f"{address.prefix}:{tenant}:", b"", tags=tags() if address.cluster else (b"",))
    epoch = link.call("GET", place.epoch_key)[0]
    return msgspec.structs.replace(place, epoch=epoch) if isinstance(epoch, bytes) else place


def check_server(link: AnyLink) -> None:
    """Look that servers can do what we need, and forget nothing by themselves. Raises RiskEngineError."""
    for call in link.each():
        info = call("INFO")[0]
        facts = facts_of(info) if isinstance(info, bytes) else {}
        version = tuple(int(part) for part in re.findall(r"\d+", facts.get("redis_version", ""))[:2])
        if version and version < VERSION_MIN:
            raise RiskEngineError(
                f"the server is Redis {facts['redis_version']}: 6.2 is the oldest that will do (or Valkey)"
            )
        if facts.get("cluster_enabled") == "1" and not isinstance(link, ClusterLink):
            raise RiskEngineError(
                "the server is a node of a cluster: open it with redis+cluster:// in the place of redis://"
            )
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
    lost_events: int  # that servers had answered for and lost, as engines found out
    kinds: dict[str, tuple[int, int]]


def survey(url: str, tenant: str) -> Survey:
    """Look through a store. It takes a while where there is much, and holds nobody up."""
    address = Address.read(url)
    link = address.link(SURVEY_MS)
    try:
        place = find(link, address, tenant)
        sizes: dict[str, list[int]] = {kind: [] for kind in KINDS.values()}
        counts = dict.fromkeys(sizes, 0)
        server, memory, memory_max, slow_calls = "unknown", 0, 0, 0
        for call in link.each():
            info, slow = call("INFO")[0], call("SLOWLOG", "LEN")[0]
            facts = facts_of(info) if isinstance(info, bytes) else {}
            server = facts.get("valkey_version") or facts.get("redis_version", server)
            memory += int(facts.get("used_memory", 0))
            memory_max += int(facts.get("maxmemory", 0))
            slow_calls += slow if isinstance(slow, int) else 0
        letter_at = len(place.within(0))
        for call, names in scan(link, place.data) if place.epoch else ():
            for name in names:
                kind = KINDS.get(name[letter_at : letter_at + 1].decode(), "other")
                if name[letter_at:].startswith(b"plan."):
                    kind = "plans"
                if kind in EVENTS and not place.is_at_home(name):
                    kind = "copies"  # of claims, on a cluster
                counts[kind] = counts.get(kind, 0) + 1
                if len(sizes.setdefault(kind, [])) < SAMPLE:
                    size = call("MEMORY", "USAGE", name)[0]
                    if isinstance(size, int):
                        sizes[kind].append(size)
        kinds = {}
        for kind, some in sizes.items():
            mean = sum(some) / len(some) if some else 0
            kinds[kind] = counts[kind], round(mean * counts[kind])
        lost = sum(loss.events for loss in losses_of(link, place)) if place.epoch else 0
        return Survey(server, place.epoch.decode() or "none", memory, memory_max, slow_calls, lost, kinds)
    finally:
        link.close()


def _check_database(parts: SplitResult) -> None:
    """Raises RiskEngineError unless the path of a URL, which is no socket's, is a number or nothing."""
    if "@" in parts.path + parts.fragment:  # the end of a password that has a slash or a #
        raise RiskEngineError(UNREADABLE)
    if not re.fullmatch(r"/?|/[0-9]{1,9}/?", parts.path):
        raise RiskEngineError(
            f"the store's URL ends in the database {parts.path.lstrip('/')!r}: it is a number, as in "
            "redis://HOST:PORT/0; what keeps stores apart by name is prefix="
        )


def _check_option(name: str, parts: SplitResult) -> None:
    """Raises RiskEngineError for an option of a URL that is not ours unless redis-py takes it there."""
    theirs = THEIRS + {"unix": (), "redis": TCP, "rediss": TCP + TLS}[parts.scheme.partition("+")[0]]
    if name in theirs:
        return
    if "@" in parts.query and "@" not in parts.netloc:  # it is the end of a password that has a ?
        raise RiskEngineError(UNREADABLE)
    if name in TLS:
        raise RiskEngineError(f"the store's {name}= is for TLS: open it with rediss:// (rediss+cluster://)")
    near = nearest(name, OURS + theirs)
    raise RiskEngineError(
        f"the store's URL has the unknown option {name!r}{f' (did you mean {near}?)' if near else ''}: ours "
        f"are {', '.join(OURS)}; of the connection {', '.join(theirs)}"
    )


def _spelled(parts: SplitResult) -> str:
    """A URL as redis-py reads it: urlunsplit leaves slashes out where there is no host, as at a socket."""
    url = urlunsplit(parts)
    return url if "://" in url else url.replace(":", "://", 1)


def _node(parts: SplitResult) -> SplitResult:
    """The URL of a node; its port is 6379 unless said."""
    if parts.port is None:
        return parts._replace(netloc=f"{parts.netloc}:6379")
    return parts
