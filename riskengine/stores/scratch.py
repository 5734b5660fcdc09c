"""A server in this process, to go through the motions of a shared store where nobody sees it.

It does what our scripts do while nothing goes wrong: one engine asks it, and no other ever did. Its data ends
with it. What may go wrong all the same can be had: that it is away, and that what it was told was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from riskengine.features import FeatureSet
from riskengine.packing import HEADER
from riskengine.stores import StoreError, resp
from riskengine.stores.kept import AT_BATCH, piece
from riskengine.stores.line import Item, Reply, script_names
from riskengine.stores.link import Call
from riskengine.stores.place import Place
from riskengine.stores.redis import RedisStore
from riskengine.stores.resp import Int64s, as_array, split
from riskengine.stores.wire import CLAIM_BYTES, ENTITY_CHARS

EPOCH: Final = b"scratch"
EVENT: Final = -22  # where the event begins in the name of its claim

_Answer = bytes | int | None | Sequence["_Answer"]


class Scratch:
    """The server and the way to it, behind the door of a `Link`."""

    def __init__(self, tags: tuple[bytes, ...]) -> None:
        """`tags` are those of the store's place that this one stands in for."""
        self.timeout_s = 1.0
        self.names = script_names()
        self.refused: str | None = None
        self.unsure = False
        self.dropped = self.failovers = 0
        self.renewed: list[frozenset[int]] = []
        self.place = Place("scratch:", EPOCH, tags=tags)
        self._values: dict[bytes, bytes] = {self.place.epoch_name(part): EPOCH for part in range(len(tags))}
        self._entries: dict[bytes, bytes] = {}
        self._log: list[bytes] = []
        self._later: list[tuple[bytes, Callable[[list[Item]], None] | None]] = []
        self._reply = Reply()
        self._is_away = self._loses = False
        self._queued: list[list[bytes]] | None = None  # of a transaction
        calls = (self._observe, self._conclude, self._conclude_all, self._compact, self._edit)
        by_name = {call.__name__[1:]: call for call in calls}
        self._scripts = {sha.encode(): by_name.get(name, _nothing) for name, sha in self.names.items()}

    def store(self, features: FeatureSet) -> RedisStore:
        """A store on it."""
        link: Any = self  # a link in all but its class
        store = RedisStore(features, link, self.place)
        store.compile_seldom()
        return store

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nothing is answered inside."""
        self._is_away = True
        try:
            yield
        finally:
            self._is_away = False

    @contextmanager
    def losing(self) -> Iterator[None]:
        """What is told inside never arrives."""
        self._loses = True
        try:
            yield
        finally:
            self._loses = False
            self._later.clear()

    # -- the door of a link

    @property
    def is_behind(self) -> bool:
        """Whether something that was told is still to be sent."""
        return bool(self._later)

    @property
    def is_at_hand(self) -> bool:
        """Whether it answers."""
        return not self._is_away

    @property
    def transacts(self) -> bool:
        """Whether it takes transactions, as a lone server does."""
        return len(self.place.tags) == 1

    def ask(self, request: bytes | memoryview, at: int = 0, replies: int = 1) -> Reply:
        """Answer one request, which has so many replies; the last is good until the next request."""
        reply = self._answered(memoryview(request), replies)
        reply.leave_out(replies - 1)
        return reply

    def ask_all(self, requests: memoryview, ends: Sequence[int], parts: Int64s) -> Reply:
        """Answer several requests, each ending at one of `ends`."""
        return self._answered(requests[: ends[-1]], len(ends))

    def _answered(self, requests: memoryview, calls: int) -> Reply:
        if self._is_away:
            raise StoreError("away", "the store is away in this rehearsal")
        self._catch_up()
        data = b"".join(encoded(self._served(words)) for words in split(bytes(requests)))
        reply, size = self._reply, len(data)
        items = size // 4 + 1  # none is shorter: ":1\r\n"
        if size > len(reply.data):
            reply.data = np.empty(2 * size, np.uint8)
        if items > len(reply.offsets):
            reply.offsets, reply.lengths = np.empty(items, np.int64), np.empty(items, np.int64)
        reply.begin(calls)
        reply.data[:size] = as_array(data)
        reply.start = 0
        reply.end, reply.count, _, _ = resp.scan_all(
            reply.data, 0, size, reply.offsets, reply.lengths, 0, -1, reply.firsts, 0, calls
        )
        return reply

    def tell(self, request: bytes | memoryview, at: int = 0) -> None:
        """Take in one request that nobody waits for."""
        self.later(request, at)
        if not self._is_away:
            self._catch_up()

    def tell_all(
        self,
        requests: memoryview,
        ends: Sequence[int],
        parts: Int64s,
        after: Callable[[int, list[Item]], None] | None = None,
    ) -> None:
        """`tell` several things; `after` gets the number of each and what is answered."""
        for k, words in enumerate(split(bytes(requests[: ends[-1]]))):
            answer = self._served(words) if not self._loses else b""
            if after is not None:
                after(k, [answer if isinstance(answer, bytes) else b""])

    def later(
        self,
        request: bytes | memoryview,
        at: int = 0,
        replies: int = 1,
        after: Callable[[list[Item]], None] | None = None,
    ) -> None:
        """Take in one request when something is asked next; `after` gets what is answered."""
        self._later.append((bytes(request), after))

    def hurry(self, timeout_ms: int, connect_ms: int) -> None:
        """It is never waited for."""

    def settle(self) -> None:
        """Serve what was taken in for later."""
        self._catch_up()

    def call(self, *words: bytes | str | int, at: int = 0) -> list[Item]:
        """A command off the hot path, and what it answers."""
        return self.ask(resp.command(words), at).of(0)

    def each(self) -> Sequence[Call]:
        """`call` of the only server."""
        return [self.call]

    def close(self) -> None:
        """There is nobody to hang up on."""

    # -- the server

    def _catch_up(self) -> None:
        told, self._later = self._later, []
        for request, after in told:
            if not self._loses:
                for words in split(request):
                    answer = self._served(words)
                if after is not None:
                    after([answer if isinstance(answer, bytes) else b""])

    def _served(self, command: list[bytes]) -> _Answer:
        name, *words = command
        values = self._values
        if name == b"EXEC":
            queued, self._queued = self._queued or [], None
            return [self._served(each) for each in queued]
        if self._queued is not None:
            self._queued.append(command)
            return b"QUEUED"
        if name == b"MULTI":
            self._queued = []
            return b"OK"
        if name in (b"EVALSHA", b"EVAL"):
            count = int(words[1])
            script = self._enter if name == b"EVAL" else self._scripts[words[0]]
            return script(words[2 : 2 + count], words[2 + count :])
        if name == b"APPEND":
            values[words[0]] = values.get(words[0], b"") + words[1]
            return len(values[words[0]])
        if name == b"GET":
            return values.get(words[0])
        if name == b"MGET":
            return [values.get(key) for key in words]
        if name == b"SET":
            there = words[0] in values
            if not (there and b"NX" in words):
                values[words[0]] = words[1]
            return b"OK"
        if name == b"DEL":
            return int(values.pop(words[0], None) is not None)
        if name == b"HGETALL":
            return [each for entry in self._entries.items() for each in entry]
        if name == b"LRANGE":
            return self._log[int(words[1]) :]
        assert name in (b"PTTL", b"PEXPIRE"), name
        return -1

    def _observe(self, keys: list[bytes], given: list[bytes]) -> _Answer:
        """As observe.lua."""
        values, n = self._values, int(given[1])
        claims, entities = keys[2 : 2 + n], keys[2 + n :]
        known = [values.get(claim) for claim in claims]
        before = [values.get(entity) for entity in entities]
        out: list[_Answer] = [EPOCH, values.get(keys[1]), b""]
        if any(claim is not None for claim in known):
            out[2] = b"".join(b"0" if claim is None else b"1" for claim in known)
            for name, claim in zip(claims, known, strict=True):
                if claim is not None:
                    out += self._kept(name, claim)
        for name, claim, value in zip(claims, known, given[8 : 8 + n], strict=True):
            if claim is None:
                values[name] = value
        recipe = iter(np.frombuffer(given[7], "<u2").tolist())
        for entity, records in zip(entities, given[8 + n :], strict=True):
            start = 0
            for _ in range(next(recipe)):
                number, size = next(recipe), next(recipe)
                if known[number - 1] is None:
                    values[entity] = values.get(entity, b"") + records[start : start + size]
                start += size
        return [*out, *before]

    def _enter(self, keys: list[bytes], given: list[bytes]) -> _Answer:
        """As enter.lua."""
        values, appended = self._values, given[3]
        if not any(name in values for name in keys[1:]):
            values.update(zip(keys[1:], given[4:], strict=True))
            return 1
        for at in range(0, len(appended), ENTITY_CHARS + 4):
            name = given[2] + appended[at : at + ENTITY_CHARS]
            size = int.from_bytes(appended[at + ENTITY_CHARS :][:4], "little")
            values[name] = values[name][:-size]
            if not values[name]:
                del values[name]
        return 0

    def _kept(self, name: bytes, claim: bytes) -> list[Item]:
        """The claim of an event with its trace, and its decision."""
        start, decision = name[: EVENT - 1], self._values.get(name[: EVENT - 1] + b"d" + name[EVENT:])
        batch = claim[AT_BATCH:CLAIM_BYTES]
        traces = self._values.get(start + b"t" + batch)
        if traces is not None and decision is None:
            return [claim + piece(traces, claim), piece(self._values[start + b"k" + batch], claim)]
        return [claim, decision]

    def _conclude(self, keys: list[bytes], given: list[bytes]) -> _Answer:
        """As conclude.lua, but for what is given back."""
        n = int(given[1])
        for i, name in enumerate(keys[1 : 1 + n]):
            self._values[name] = given[6 + 2 * i]
            self._values[name[: EVENT - 1] + b"d" + name[EVENT:]] = given[7 + 2 * i]
        return b"1" * n

    def _conclude_all(self, keys: list[bytes], given: list[bytes]) -> _Answer:
        """As conclude_all.lua, but for what is given back."""
        self._values[keys[1]], self._values[keys[2]] = given[5], given[6]
        return 1

    def _compact(self, keys: list[bytes], given: list[bytes]) -> _Answer:
        """As compact.lua, but for what is kept of events that nobody decided."""
        value = self._values[keys[0]]
        if value[:HEADER] != given[0]:
            return 0
        self._values[keys[0]] = given[2] + value[int(given[1]) :]
        return 1

    def _edit(self, keys: list[bytes], given: list[bytes]) -> _Answer:
        """As edit.lua."""
        there = b""
        for at in range(1, len(given), 3):
            field, value, said = given[at : at + 3]
            there += b"1" if field in self._entries else b"0"
            self._entries.pop(field, None)
            if value:
                self._entries[field] = value
            self._log.append(said)
            self._values[keys[1]] = b"%d" % len(self._log)
        return there


def _nothing(keys: list[bytes], given: list[bytes]) -> _Answer:
    """What a script answers that did nothing."""
    return 0


def encoded(answer: _Answer) -> bytes:
    """An answer in RESP."""
    if answer is None:
        return b"$-1\r\n"
    if isinstance(answer, bytes):
        return resp.bulk(answer)
    if isinstance(answer, int):
        return b":%d\r\n" % answer
    return b"*%d\r\n" % len(answer) + b"".join(map(encoded, answer))
