"""The way to a Redis Cluster: a line to each master, and what is asked spread over them in one wait.

Data is cut into PARTS partitions, each in one slot of the cluster by a tag in the names of its keys, evenly
over the slots. Which master has a slot is learned through redis-py in a thread of its own, and from the
masters' redirections at once. What is sent again after one moves nothing twice.

Every partition that something of an event is appended to has a claim of it, so that an event sent again after
any part of a call was lost completes what is missing and moves nothing twice. All are asked before any has
answered: one that does not know an event appends it, though another may refuse it (an event_id with other
content, a retry long after). That is taken back at once (undo.lua); another engine that folds the record in
that very moment keeps it. What a master acknowledged and its replica had not got is lost in a failover, as
Redis has it: where the old master lives on, at most what came within cluster-node-timeout. While a slot is
being moved, Redis refuses calls that name several of its keys: they are asked again until the deadline, and
events that need them are then decided without the store, and counted when it has moved.
"""

from __future__ import annotations

import random
import threading
import time
from binascii import crc_hqx
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import redis

from riskengine.fibers import pause
from riskengine.stores import StoreError, resp
from riskengine.stores.line import PUT_OFF, Breaker, Item, Line, Reply, said, script_names, unreached
from riskengine.stores.link import AHEAD_MAX, TOLD_BYTES_MAX, Call, Link
from riskengine.stores.place import LETTERS
from riskengine.stores.resp import Int64s

# As many masters can share the data out, and a batch makes a call for each partition that it touches: with
# 256 of them an event took servers 10 to 40 % longer.
PARTS: Final = 64
SLOTS: Final = 1 << 14
REFRESH_S: Final = 0.1  # at least, between two looks at who serves what
PAUSE_S: Final = 0.001  # before something is asked again; doubled each time
ASKING: Final = resp.command(("ASKING",))
REDIRECTIONS: Final = ("MOVED", "ASK")
PASSING: Final = ("TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY")  # of a cluster that changes


def tags() -> tuple[bytes, ...]:
    """What the names of keys have of each partition: its slot is in the partition's share of all slots."""
    found: dict[int, bytes] = {}
    backwards = LETTERS[::-1]  # so that none is a tag of data that was cut into 256
    for first, second in product(backwards, backwards):
        tag = (first + second).encode()
        found.setdefault(slot_of(tag) * PARTS // SLOTS, b"{%b}" % tag)
    assert len(found) == PARTS, "two letters find them all"
    return tuple(found[part] for part in range(PARTS))


def slot_of(tag: bytes) -> int:
    """The slot of keys with this tag (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec)."""
    return crc_hqx(tag, 0) % SLOTS


class Topology:
    """Which master serves which partition, by its address. Learned from any node that answers."""

    def __init__(self, urls: Sequence[str], connect_s: float) -> None:
        self.owners: list[str] = []  # by partition; replaced as a whole
        self.masters: tuple[str, ...] = ()
        self.failovers = 0  # masters that serve nothing any more of what they served
        self._slots = [slot_of(tag[1:-1]) for tag in tags()]
        self._seeds = list(dict.fromkeys(map(_address, urls)))
        self._template = urls[0]
        self._connect_s = connect_s
        self._known: tuple[str, ...] = ()
        self._looking = threading.Lock()
        self._last = 0.0

    def url(self, address: str) -> str:
        """The URL of a node: user, password and settings are those of all."""
        parts = urlsplit(self._template)
        user = parts.netloc.rpartition("@")[0]
        host, _, port = address.rpartition(":")
        if ":" in host and not host.startswith("["):
            address = f"[{host}]:{port}"
        return urlunsplit(parts._replace(netloc=f"{user}@{address}" if user else address))

    def learn(self) -> None:
        """Ask nodes in turn, those last known first. Raises StoreError where none can tell."""
        last: Exception | None = None
        for address in dict.fromkeys((*self._known, *self._seeds)):
            try:
                with redis.Redis.from_url(
                    self.url(address),
                    socket_connect_timeout=self._connect_s,
                    socket_timeout=self._connect_s,
                    retry=None,
                ) as node:
                    untyped: Any = node
                    self._take_in(untyped.execute_command("CLUSTER SLOTS"), address)
                return
            except redis.AuthenticationError as error:
                raise StoreError(
                    "denied", f"the cluster does not let us in ({error}): give user and password in its URL"
                ) from None
            except redis.ResponseError as error:
                if "cluster support disabled" in str(error):
                    raise StoreError("broken", "the server is no cluster: open it with redis://") from None
                last = error
            except (redis.RedisError, OSError, StoreError) as error:
                last = error
        assert last is not None, "an address has a node"
        raise StoreError("away", unreached(f"the cluster at {', '.join(self._seeds)}", last))

    def refresh(self) -> None:
        """Learn anew, elsewhere: what is known stays good until then."""
        if time.monotonic() - self._last < REFRESH_S or not self._looking.acquire(blocking=False):
            return
        threading.Thread(target=self._refresh, name="riskengine-topology", daemon=True).start()

    def move(self, part: int, address: str) -> None:
        """Know of one partition that a master said is with another."""
        owners = self.owners.copy()
        owners[part] = address
        self.owners = owners

    def _refresh(self) -> None:
        try:
            with suppress(StoreError):
                self.learn()
        finally:
            self._last = time.monotonic()
            self._looking.release()

    def _take_in(self, shares: Sequence[Sequence[Any]], asked: str) -> None:
        """Each share is its first and last slot, its master, and the master's replicas."""
        by_slot: dict[int, str] = {}
        known: list[str] = []
        for first, last, *nodes in shares:
            addresses = [_node(node, asked) for node in nodes]
            known += addresses
            for slot in self._slots:
                if first <= slot <= last:
                    by_slot[slot] = addresses[0]
        if len(by_slot) < len(set(self._slots)):
            raise StoreError("away", "the cluster is not whole: some of its slots are served by nobody")
        self.owners = [by_slot[slot] for slot in self._slots]
        before, self.masters = self.masters, tuple(dict.fromkeys(self.owners))
        self.failovers += len(set(before) - set(self.masters))
        self._known = tuple(dict.fromkeys(known))


class Told(NamedTuple):
    """A request that nobody waits for: the partition it is for, and who gets what is answered."""

    request: bytes
    at: int
    after: Callable[[list[Item]], None] | None


@dataclass(eq=False, slots=True)
class _Node:
    """One master: the line to it, and what it was told and has not answered."""

    address: str
    line: Line
    breaker: Breaker = field(default_factory=Breaker)
    flight: deque[Told] = field(default_factory=deque)


class ClusterLink:
    """All masters of a cluster, behind the door of a `Link`. Not shared between threads."""

    transacts: Final = False

    def __init__(self, urls: Sequence[str], timeout_ms: int, connect_ms: int) -> None:
        self.timeout_s = timeout_ms / 1000
        self.names: Mapping[str, str] = script_names()
        self.refused: str | None = None  # what a server said last of something that was told
        self.unsure = False  # whether the last request may have been served, though its reply never came
        self.dropped = 0  # of what was told, as there was too much of it
        self.topology = Topology(urls, connect_ms / 1000)
        self.topology.learn()
        self.renewed: list[frozenset[int]] = []  # partitions of one log whose server was reached anew
        self._owners = self.topology.owners  # as they were when that was looked at last
        self._connect_s = connect_ms / 1000
        self._nodes: dict[str, _Node] = {}
        self._unsent: dict[int, deque[Told]] = {}  # by partition
        self._unsent_bytes = 0
        self._gathered = _Gathered()

    def hurry(self, timeout_ms: int, connect_ms: int) -> None:
        """Wait no longer than this from now on."""
        self.timeout_s, self._connect_s = timeout_ms / 1000, connect_ms / 1000
        for node in self._nodes.values():
            node.line.connect_s = self._connect_s

    @property
    def failovers(self) -> int:
        """How often a replica has taken the place of a master, as far as was seen."""
        return self.topology.failovers

    @property
    def is_behind(self) -> bool:
        """Whether something that was told is still to be sent."""
        return any(self._unsent.values())

    @property
    def is_at_hand(self) -> bool:
        """Whether who asks waits for replies and nothing else, as far as is known."""
        nodes = self._nodes.values()
        return not self.is_behind and len(nodes) > 0 and all(node.line.is_open for node in nodes)

    def ask(self, request: bytes | memoryview, at: int = 0, replies: int = 1) -> Reply:
        """Send one request of partition `at` and wait for its reply. StoreError where it fails."""
        assert replies == 1, "what a master sends elsewhere is sent again one by one"
        return self.ask_all(memoryview(request), (len(request),), np.array([at]))

    def ask_all(self, requests: memoryview, ends: Sequence[int], parts: Int64s) -> Reply:
        """Ask several things at once, request k of partition parts[k] ending at ends[k].

        The reply has the items of all; it is good until the next. What a master sends elsewhere, or cannot
        serve for a moment, is asked again until the deadline: masters may have served it twice.
        """
        deadline = time.monotonic() + self.timeout_s
        starts = (0, *ends[:-1])
        texts = [requests[start:end] for start, end in zip(starts, ends, strict=True)]
        where = parts.tolist()
        self._gathered.begin(len(texts))
        self.unsure = False
        left, asking, longer = list(range(len(texts))), dict[int, str](), PAUSE_S
        try:
            while True:
                left, error = self._round(texts, where, left, asking, deadline)
                if not left:
                    self.unsure = False
                    return self._gathered.reply
                pause_s = longer * random.uniform(0.5, 1.0) if error is not None else 0.0
                if time.monotonic() + pause_s >= deadline:
                    raise error or StoreError("away", "the cluster changes hands just now")
                if error is not None:
                    if error.kind not in ("away", "slow", "loading", "read-only"):
                        raise error
                    pause(pause_s)
                    longer *= 2
        except StoreError:
            raise
        except BaseException:  # replies that nobody has read would be taken for those of the next request
            self._hang_up()
            raise

    def tell(self, request: bytes | memoryview, at: int = 0) -> None:
        """Send one request of partition `at` and do not wait; as `Link.tell`."""
        self.later(request, at)
        self._send_now()

    def tell_all(
        self,
        requests: memoryview,
        ends: Sequence[int],
        parts: Int64s,
        after: Callable[[int, list[Item]], None] | None = None,
    ) -> None:
        """`tell` several things at once, as `ask_all` has them.

        `after` gets the number of each and what is answered, unless that is an error, and may tell more. It
        is waited for: else it would come with the next request, and never if that had been the last.
        """
        start = 0
        for k, (end, part) in enumerate(zip(ends, parts.tolist(), strict=True)):
            self._later(requests[start:end], part, None if after is None else partial(after, k))
            start = end
        self._send_now()
        if after is not None:
            self._hear(time.monotonic() + self.timeout_s)
            self._send_now()

    def later(
        self,
        request: bytes | memoryview,
        at: int = 0,
        replies: int = 1,
        after: Callable[[list[Item]], None] | None = None,
    ) -> None:
        """Keep a request until it can be sent: one, as each may be sent on to another master.

        `after` is as that of `tell_all`, and comes with the next request.
        """
        assert replies == 1, "one by one"
        self._later(request, at, after)

    def _later(
        self, request: bytes | memoryview, at: int, after: Callable[[list[Item]], None] | None
    ) -> None:
        told = Told(bytes(request), at, after)
        waiting = self._unsent.setdefault(at, deque())
        waiting.append(told)
        self._unsent_bytes += len(told.request)
        while self._unsent_bytes > TOLD_BYTES_MAX and waiting:
            self._unsent_bytes -= len(waiting.popleft().request)
            self.dropped += 1

    def settle(self) -> None:
        """Have all that was told answered. StoreError where it is not in time."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            self._catch_up(deadline)
            for node in list(self._nodes.values()):
                try:
                    self._acknowledge(node, deadline)
                except StoreError as error:
                    raise self._lost(node, error) from None
            if not self.is_behind:
                return
            for part in self._unsent:
                self._node(self.topology.owners[part]).breaker.check()
            if time.monotonic() >= deadline:
                raise StoreError("away", "not every master of the cluster answers")
            pause(PAUSE_S)

    def call(self, *words: bytes | str | int, at: int = 0) -> list[Item]:
        """A command off the hot path, and what it answers."""
        return self.ask(resp.command(words), at).of(0)

    def each(self) -> Sequence[Call]:
        """A `call` to every master."""
        return [partial(self._call_at, address) for address in self.topology.masters]

    def close(self) -> None:
        """Hang up."""
        self._hang_up()

    # -- one wait

    def _round(
        self,
        texts: Sequence[memoryview],
        parts: Sequence[int],
        left: Sequence[int],
        asking: dict[int, str],
        deadline: float,
    ) -> tuple[list[int], StoreError | None]:
        """Send what is `left` to whom it belongs, all before any reply is read.

        Returns what is to be asked again, and why where that is no redirection. `asking` is who serves a
        request just this time.
        """
        self._catch_up(deadline)
        owners = self.topology.owners
        if owners is not self._owners:
            self._note_owners(owners)
        shares: dict[str, list[int]] = {}
        for k in left:
            shares.setdefault(asking.get(k) or owners[parts[k]], []).append(k)
        again: list[int] = []
        trouble: StoreError | None = None
        alone: StoreError | None = None
        sent: list[tuple[_Node, list[int], list[int]]] = []
        for address, wanted in shares.items():
            node = self._node(address)
            block: list[bytes | memoryview] = []
            own: list[int] = []
            try:
                node.breaker.check()
            except StoreError as error:
                alone = error
                continue
            for k in wanted:
                if k in asking:
                    block.append(ASKING)
                    own.append(-1)
                block.append(texts[k])
                own.append(k)
            try:
                if not node.line.is_open:  # opening has a deadline of its own
                    self._open(node)
                    deadline = time.monotonic() + self.timeout_s
                self.unsure = True
                node.line.send(b"".join(block), deadline)
                sent.append((node, wanted, own))
            except StoreError as error:
                trouble = self._lost(node, error)
                again += wanted
        asking.clear()
        for node, wanted, own in sent:
            try:
                self._acknowledge(node, deadline)
                reply = node.line.receive(deadline, len(own))
            except StoreError as error:
                trouble = self._lost(node, error)
                again += wanted
                continue
            node.breaker.answered()
            for k, message in self._gathered.take(own, reply):
                again.append(k)
                trouble = self._redirect(node, k, parts[k], message, asking, deadline) or trouble
        if alone is not None:
            self.topology.refresh()
            raise alone
        return again, trouble

    def _redirect(
        self, node: _Node, k: int, part: int, message: str, asking: dict[int, str], deadline: float
    ) -> StoreError | None:
        """What an error of a master means for what is asked again; raised where that would not help."""
        kind, _, rest = message.partition(" ")
        if kind in REDIRECTIONS:
            address = rest.partition(" ")[2]
            if address.startswith(":"):  # the master does not know its own name: it is on that very host
                address = _address(node.line.url).rpartition(":")[0] + address
            if kind == "ASK":
                asking[k] = address
            else:
                self.topology.move(part, address)
                self.topology.refresh()
            return None
        if kind == "NOSCRIPT":
            node.line.load()
            return None
        if kind in PASSING:
            self.topology.refresh()
            return said(message)
        raise said(message)

    def _lost(self, node: _Node, error: StoreError) -> StoreError:
        """A master that cannot be asked: what it was told and did not answer is told again."""
        node.breaker.failed(error)
        self._keep(node.flight, first=True)
        node.flight.clear()
        self.topology.refresh()
        return error

    def _node(self, address: str) -> _Node:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = _Node(address, Line(self.topology.url(address), self._connect_s))
        return node

    def _open(self, node: _Node) -> None:
        """Have a line to a master; where that is a new one, the master may have lost what it had."""
        if not node.line.is_open:
            node.line.open()
            owned = (part for part, owner in enumerate(self._owners) if owner == node.address)
            self._renew(frozenset(owned))

    def _renew(self, parts: frozenset[int]) -> None:
        if parts and parts not in self.renewed:
            self.renewed.append(parts)

    def _note_owners(self, owners: list[str]) -> None:
        """Note which partitions have another master: where it was a replica, it may lack what came last."""
        moved: dict[str, set[int]] = {}
        for part, (before, now) in enumerate(zip(self._owners, owners, strict=True)):
            if before != now:
                moved.setdefault(before, set()).add(part)
        self._owners = owners
        for parts in moved.values():
            self._renew(frozenset(parts))

    def _call_at(self, address: str, *words: bytes | str | int) -> list[Item]:
        node, deadline = self._node(address), time.monotonic() + self.timeout_s
        try:
            self._open(node)
            node.line.send(resp.command(words), deadline)
            self._acknowledge(node, deadline)
            reply = node.line.receive(deadline)
        except StoreError as error:
            raise self._lost(node, error) from None
        message = reply.error()
        if message is not None:
            raise said(message)
        return reply.of(0)

    # -- what was told

    def _send_now(self) -> None:
        """Send what was told to masters that there is a line to; the next `ask_all` sees to the rest."""
        deadline = time.monotonic() + self.timeout_s
        shares: dict[str, list[Told]] = {}
        owners = self.topology.owners
        for part in list(self._unsent):
            node = self._nodes.get(owners[part])
            if node is not None and node.line.is_open and len(node.flight) <= AHEAD_MAX:
                shares.setdefault(owners[part], []).extend(self._unsent.pop(part))
        for address, share in shares.items():
            node = self._nodes[address]
            node.flight += share
            block = b"".join([told.request for told in share])
            self._unsent_bytes -= len(block)
            try:
                node.line.send(block, deadline)
            except StoreError as error:
                self._lost(node, error)

    def _catch_up(self, deadline: float) -> None:
        """Send what has not been sent, as far as masters can be reached, and what comes after what was."""
        self._hear(deadline)
        if sum(map(len, self._unsent.values())) <= AHEAD_MAX:
            self._send_now()  # all that there is for a master, where it can be reached, at one go
        until = deadline - self.timeout_s / 2
        owners = self.topology.owners
        away: set[str] = set()
        for part in list(self._unsent):
            address = owners[part]
            node = self._node(address)
            if address in away or node.breaker.leaves_alone:  # which is no failure of its own
                continue
            waiting = self._taken(part)
            try:
                self._open(node)
                while waiting:
                    node.flight.append(waiting.popleft())
                    node.line.send(node.flight[-1].request, deadline)
                    if len(node.flight) > AHEAD_MAX:
                        self._acknowledge(node, deadline)
                    if time.monotonic() > until:
                        raise StoreError(
                            "behind", "the store is back, and still catching up with what it missed"
                        )
            except StoreError as error:
                away.add(address)
                if error.kind == "behind":
                    raise
                if not node.line.is_open:
                    self._lost(node, error)
            finally:
                self._keep(waiting)

    def _hear(self, deadline: float) -> None:
        """Read the answers that something comes after."""
        for node in list(self._nodes.values()):
            if any(told.after is not None for told in node.flight):
                try:
                    self._acknowledge(node, deadline)
                except StoreError as error:
                    self._lost(node, error)

    def _taken(self, part: int) -> deque[Told]:
        """Take out what waits for a partition."""
        waiting = self._unsent.pop(part)
        self._unsent_bytes -= sum(len(told.request) for told in waiting)
        return waiting

    def _keep(self, more: Iterable[Told], first: bool = False) -> None:
        """Have it wait, before or behind what waits."""
        for told in reversed(list(more)) if first else more:
            waiting = self._unsent.setdefault(told.at, deque())
            (waiting.appendleft if first else waiting.append)(told)
            self._unsent_bytes += len(told.request)

    def _acknowledge(self, node: _Node, deadline: float) -> None:
        """Read the replies to what a master was told."""
        if not node.flight:
            return
        reply = node.line.receive(deadline, len(node.flight))
        wrong = reply.errors(reply.replies)
        told_all = list(node.flight)
        node.flight.clear()
        for r, told in enumerate(told_all):
            if r not in wrong:
                if told.after is not None:
                    told.after(reply.of(r))
                continue
            message = wrong[r]
            if message.startswith((*REDIRECTIONS, *PUT_OFF)):
                self._keep([told])
                if message.startswith("MOVED"):
                    self._redirect(node, 0, told.at, message, {}, deadline)
                continue
            self.refused = message

    def _hang_up(self) -> None:
        for node in self._nodes.values():
            self._keep(node.flight, first=True)
            node.flight.clear()
            node.line.close()


AnyLink = Link | ClusterLink


class _Spread(Reply):
    """Replies that came of several masters: none begins where the one before ends."""

    __slots__ = ("ends",)

    def __init__(self) -> None:
        super().__init__()
        self.ends = np.zeros_like(self.firsts)  # the number behind each reply's last item

    def _end(self, reply: int) -> int:
        return int(self.ends[reply])


class _Gathered:
    """Replies of several masters in the buffers of one."""

    def __init__(self) -> None:
        self.reply = _Spread()
        self._end = 0

    def begin(self, calls: int) -> None:
        """Make room for the replies to some requests."""
        if calls > len(self.reply.firsts):
            self.reply.firsts, self.reply.ends = np.empty((2, 2 * calls), np.int64)
        self.reply.count, self.reply.replies, self._end = 0, calls, 0

    def take(self, own: Sequence[int], more: Reply) -> list[tuple[int, str]]:
        """Take in replies to the requests `own` (-1: to none); return which are errors, and what they say."""
        reply = self.reply
        strings = more.lengths[: more.count] != resp.INTEGER
        first = int(more.start)
        size = int(more.end) - first
        self._make_room(more.count, size)
        items = slice(reply.count, reply.count + more.count)
        reply.data[self._end : self._end + size] = more.data[first : first + size]
        reply.lengths[items] = more.lengths[: more.count]
        reply.offsets[items] = more.offsets[: more.count]
        reply.offsets[items][strings] += self._end - first
        whose = np.array(own)
        firsts = more.firsts[: len(own)] + reply.count
        wanted = whose >= 0
        reply.firsts[whose[wanted]] = firsts[wanted]
        reply.ends[whose[wanted]] = np.append(firsts[1:], reply.count + more.count)[wanted]
        reply.count += more.count
        self._end += size
        if not np.any(more.lengths[: more.count] == resp.ERROR):
            return []
        wrong = ((k, more.error(r)) for r, k in enumerate(own))
        return [(k, message) for k, message in wrong if message is not None and k >= 0]

    def _make_room(self, items: int, size: int) -> None:
        reply = self.reply
        if reply.count + items > len(reply.offsets):
            room = np.empty(reply.count + 2 * items, np.int64)
            reply.offsets = np.concatenate((reply.offsets[: reply.count], room))
            reply.lengths = np.concatenate((reply.lengths[: reply.count], room))
        if self._end + size > len(reply.data):
            larger = np.empty(2 * (self._end + size), np.uint8)
            larger[: self._end] = reply.data[: self._end]
            reply.data = larger


def _address(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _node(node: Sequence[object], asked: str) -> str:
    host, port = node[0], node[1]
    if isinstance(host, bytes):
        host = host.decode()
    return f"{host or asked.rpartition(':')[0]}:{port}"
