"""The store that many engines share: entities as snapshots and records in Redis, folded here.

Redis keeps bytes and their order; every number is computed by the kernels of the in-process store, over
slabs made of the values that one call answers. See DESIGN.md, ideas 2 and 5, for why it is exact.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np

from riskengine.decision import Decision, Verdict
from riskengine.errors import RiskEngineError
from riskengine.event import Batch
from riskengine.features import FeatureSet, Touches
from riskengine.fibers import pause
from riskengine.layout import E_WIDTH, NONE, Int64s
from riskengine.stores import (
    NONE_MET,
    Claim,
    Followed,
    Info,
    Links,
    Lives,
    Loss,
    Met,
    Released,
    Restored,
    Row,
    Spot,
    StoreError,
    carrying,
    kept,
    requests,
    slabs,
    statefile,
    transaction,
    values,
    wire,
)
from riskengine.stores.cluster import AnyLink
from riskengine.stores.edits import Edits
from riskengine.stores.grants import Grants
from riskengine.stores.line import Item, Reply, facts_of, said
from riskengine.stores.lists import Lists
from riskengine.stores.losses import Losses
from riskengine.stores.moves import Moves
from riskengine.stores.owed import Owed, Owing
from riskengine.stores.past import Past
from riskengine.stores.paths import PathEdit
from riskengine.stores.place import Place, missing_epoch
from riskengine.stores.plans import TAG_HEX, LaidOut, Plans
from riskengine.stores.requests import ALONE, Asked, Requests
from riskengine.stores.resp import Bytes, command
from riskengine.stores.retries import Retries
from riskengine.stores.terms import MARGIN_MS, Terms
from riskengine.stores.undecided import UNDECIDED_MS, Undecided, give_up, open_among, undecided
from riskengine.stores.unfolding import Unfolding
from riskengine.stores.workspace import Workspace

MAY_BE_LOST: Final = Loss(0, 2**62, True)  # while nobody knows
LOSS_MARGIN_S: Final = 5.0  # before a claim expires
_log = logging.getLogger(__name__)
CLOSE_S: Final = 2.0  # for what is still to be told, when it is closed
AGAIN_S: Final = 1.0  # until a door is tried again that could not be opened, while others answer
NO_EVENTS: Final[frozenset[bytes]] = frozenset()


class Doubt(NamedTuple):
    """Events (n) that were decided without the server, and may have been counted there all the same."""

    features: FeatureSet  # by which they were planned
    touches: Touches
    decisions: Sequence[Decision]
    held: Bytes  # (n, L)
    followed: Followed | None
    lives: Lives


class _Doors:
    """What the doors of one engine to the same data share: events decided without the store, by claim.

    And what they had answered of late, which may be lost.
    """

    def __init__(self) -> None:
        self.losses = Losses()
        self.lock = threading.Lock()
        self.stores: list[RedisStore] = []
        self.postponed: dict[bytes, Claim] = {}


class RedisStore:
    """State shared through one Redis (6.2 or later) or Valkey server. Not locked: the engine locks.

    Exactly once: an event, and each thing done for it, has a claim that is entered together with what it
    moves. An engine that dies may leave an event undecided: who it comes to again settles it, a journal, or
    an operator (undecided.py). Keys of entities that were new with it expire only once it comes again, or
    they are folded. On a cluster an engine that dies just after it has denied an event may also leave what
    that held, which an operator gives back (owed.py).

    What a server loses of what it had answered for, it loses from the end of its log. With appendfsync always
    that is nothing; with everysec what came in its last one to two seconds, where the machine fails (nothing
    of a process that is killed); with snapshots alone what came since the last one; without a file
    everything, which the missing epoch tells. A replica that takes over lacks what had not reached it: where
    the old master lives on, cut off, at most what came within cluster-node-timeout; where it died, what its
    link to the replica was behind, which min-replicas-max-lag bounds where min-replicas-to-write is set.
    Each engine asks a server that it reaches anew for the last events that it was answered (losses.py), and
    lets all engines know how many are gone: `losses`. What an engine was told that died at the same time as
    the server only its journal can say.
    """

    waits: Final = True
    batch_max: Final = 128  # a script holds up the server for as long as its batch takes

    def __init__(
        self,
        features: FeatureSet,
        link: AnyLink,
        place: Place,
        way: Callable[[], AnyLink] | None = None,
        at_once: int = 1,
        beside: _Doors | None = None,
    ) -> None:
        """`way` makes another link, where there may be more than one batch under way."""
        self.claims: dict[bytes, Claim] = {}  # those of the batch at hand
        self.at: frozenset[bytes] = NO_EVENTS  # its events, for other doors to see
        self.place = place
        self._link = link
        self._edits = Edits(features, link, place)
        self._work = Workspace()
        self._asked: Asked | None = None
        self._resumes = False  # whether who asked last goes on with what another engine had entered
        self._meets_known = False  # whether the last batch that observe.lua was asked had events that it knew
        # Calls that go out before what is concluded: they write values back, and say how long keys live.
        self._before: list[tuple[bytes, int, int]] = []
        self.at_once = at_once
        self._way = way
        self._doors = beside or _Doors()
        self._doors.stores.append(self)
        self._answered = self._doors.losses.door()
        self._in_doubt: deque[Doubt] = deque()
        self._again_s = 0.0  # of the monotonic clock, see AGAIN_S
        self._plans = Plans(self._plan_bytes)
        self._serve(features, announced=beside is None)

    def another(self) -> RedisStore:
        """Another door to the same data, with a connection and room of its own, for another thread."""
        assert self._way is not None, "only where more than one batch may be under way"
        return RedisStore(self.features, self._way(), self.place, self._way, self.at_once, self._doors)

    @property
    def is_behind(self) -> bool:
        """Whether what was decided without the server is still to be told or asked."""
        return self._link.is_behind or bool(self._in_doubt)

    @property
    def losses(self) -> tuple[Loss, ...]:
        """What servers lost in this life of the data, or may have; the same object until that changes."""
        known = self._edits.losses
        return (*known, MAY_BE_LOST) if self._doors.losses.is_in_doubt else known

    def _look_for_losses(self) -> None:
        """Ask servers that were reached anew for what they had answered for, and tell what is gone."""
        losses, epoch = self._doors.losses, self.place.epoch
        renewed, self._link.renewed = self._link.renewed, []
        for parts in renewed:
            losses.suspect(parts, epoch, self._terms.elsewhere_ms / 1000 - LOSS_MARGIN_S)
        if losses.is_looking:
            losses.look(self._link, self.place, self._edits.lose)

    @property
    def is_at_hand(self) -> bool:
        """Whether who asks waits for a reply and nothing else, as far as is known."""
        return self._link.is_at_hand and not self._in_doubt

    @property
    def is_to_be_opened(self) -> bool:
        """Whether the way to its servers is not open, and it is worth a try just now."""
        return not self.is_at_hand and time.monotonic() >= self._again_s

    def reach(self) -> bool:
        """Open the way to its servers where it is not open; whether they answer."""
        try:
            for call in self._link.each():
                call("PING")
        except StoreError:
            self._again_s = time.monotonic() + AGAIN_S
            return False
        return True

    def _serve(self, features: FeatureSet, announced: bool = True) -> None:
        """Go by a plan, once it is `announced` to whoever will read what is written by it."""
        plan, widths = LaidOut.of(features), features.plan.entities[:, E_WIDTH]
        if len(widths) and int(widths.max()) > values.WORDS_MAX:
            raise RiskEngineError(
                f"a record of this policy has more than {values.WORDS_MAX} words: use fewer fields by entity"
            )
        if announced:
            self._link.call("SET", self._plan_name(features.fingerprint[:TAG_HEX]), plan.encode())
        self.features = features
        self._plans.add(plan)
        self._scratch = np.zeros(features.scratch_words, np.int64)
        self._terms = Terms(features, plan, self.place, self._link.names)
        self._work.serve(features, self._terms.mask + 1)
        self._unfolding = Unfolding(features, self._terms, self._plans, self._work, self._before)
        where = self._link, self.place
        self._retries = Retries(self.place, features, self._terms)
        self._moves = Moves(*where, self._terms, self._other_life)
        self._past = Past(*where, features, self._terms, self._plans, self._moves)
        self._owing = Owing(*where, features, self._terms)
        self._grants = Grants(
            *where, features, self._terms, self._work, self._moves, self._plans, self._unfolding
        )

    def _plan_name(self, tag: str) -> bytes:
        return self.place.name(f"plan.{tag}")

    def _plan_bytes(self, tag: str) -> bytes | None:
        data = self._link.call("GET", self._plan_name(tag))[0]
        return data if isinstance(data, bytes) else None

    # -- the wait

    def stand_back(self, batch: Batch) -> None:
        """Wait while another door is at one of these events: what it decides is found then.

        No longer than for a reply. Who goes on meanwhile may find an event that nobody seems to decide.
        """
        others = [store for store in self._doors.stores if store is not self]
        if not others:
            return
        keys = frozenset(batch.claims())
        until = time.monotonic() + self._link.timeout_s
        while True:
            with self._doors.lock:
                if all(keys.isdisjoint(store.at) for store in others) or time.monotonic() > until:
                    self.at = keys
                    return
            pause(kept.LOOK_AGAIN_S)

    def _let_go(self) -> None:
        """Be at no event any more."""
        self.claims.clear()
        self.at = NO_EVENTS

    def claim(self, key: bytes, content: bytes, time: int, serial: int) -> Claim:
        """Enter a new event, as far as this process knows. The next `observe` finds out."""
        claim = self.claims[key] = Claim(key, content, time, -1, serial)
        return claim

    def observe(self, touches: Touches, counted: bool = True, followed: Followed | None = None) -> Met:
        """The one wait: claim events, append records, fold what is known, and read each event's row."""
        place = self.place
        self._resumes = not counted
        try:
            if self._in_doubt:
                self._clear_up()
            if self._before:  # by a batch of which nothing was to be concluded
                self._tell_before()
            if not counted:
                self._grants.stand_in(touches)
            asked, reply, size = self._asked_of(touches, counted, followed)
            edits = int(reply.item(int(reply.firsts[0]) + 1) or b"0")
            self._fold(asked, reply, size)
            if asked.resumed:
                self._grants.find(asked)
            self._edits.catch_up(edits)
        except StoreError:
            if self.place is not place:  # the store was rebuilt, and serves
                return self.observe(touches, counted, followed)
            self._edits.lists.look_up(touches)  # as far as we know them
            raise
        except BaseException:
            self._let_go()
            raise
        self._asked = asked
        if self._link.renewed or self._doors.losses.is_looking:
            self._look_for_losses()
        if touches.batch.n:
            self._answered.add(asked, place.epoch)
        work, features = self._work, self.features
        slabs.observe(
            features.flat,
            *work.arrays,
            touches.keys,
            touches.records,
            touches.read_at,
            touches.cells,
            touches.bits,
            self._scratch,
            touches.texts,
        )
        self._edits.lists.look_up(touches)
        return asked.met

    def _asked_of(
        self, touches: Touches, counted: bool, followed: Followed | None
    ) -> tuple[Asked, Reply, int]:
        """Ask of a batch: what it asked, what was answered, and the bytes of all values.

        Another event of the same id may have been faster at some partitions of a cluster, and not at the
        event's own. Who told of it takes it back from there; that is waited for, as long as for a reply, and
        then this one is entered in its place.
        """
        until = 0.0
        while True:
            asked = self._blank(touches)
            self._grants.ask(asked, followed)
            reply, size = self._answer(asked, counted)
            if asked.was_known and not asked.known:
                continue  # the server has lost it in between: it is a new one
            if not (asked.resumed and asked.is_contested):
                return asked, reply, size
            until = until or time.monotonic() + self._link.timeout_s
            if time.monotonic() > until:
                return asked, reply, size
            pause(kept.LOOK_AGAIN_S)

    def _answer(self, asked: Asked, counted: bool) -> tuple[Reply, int]:
        """What the store answers, once it is known which events are not new; and the bytes of all values."""
        asked.sent_s = time.monotonic()
        if counted and self._link.transacts and not self._meets_known:
            answer = self._transacted(asked)
            if answer is not None:
                return answer
        reply = self._link.ask_all(*requests.observing(self._terms, self._work, asked, asked.asked))
        known, size = self._values(asked, reply)
        if known:
            self._retries.read_marks(asked, reply, counted)
            if not self._terms.mask and (asked.resumed or "undecided" in asked.met.values()):
                self._let_live(asked)
        self._meets_known = known
        return reply, size

    def _transacted(self, asked: Asked) -> tuple[Reply, int] | None:
        """What a lone server answers to a transaction of the batch; None where it knew one of the events."""
        request, before = requests.transacting(self._terms, self._work, asked)
        reply = self._link.ask(request, 0, before + 1)
        first, count = int(reply.firsts[0]), len(asked.entities)
        if reply.count - first <= transaction.BOTH + count:
            raise StoreError("broken", "the store answers less than it was asked: look at the URL")
        entered, wrong, size = transaction.read(
            reply.offsets, reply.lengths, first, reply.count, count, asked.scratch.items
        )
        if wrong >= 0:  # all but this has been done
            script = self._link.names["take_back"]
            self._link.tell(requests.taking_back(bytes(request), reply, script, asked.batch))
            raise said(reply.message(wrong))
        if not entered:
            return None
        lives, new = requests.living(self._terms, self._work, asked, reply)
        if new:
            self._before.append((bytes(lives), 0, new))
        return reply, size

    def _let_live(self, asked: Asked) -> None:
        """Have the entities of events that nobody concluded live as long as others: see `requests.living`."""
        for key, e in asked.entities[:, :2].tolist():
            name = self.place.entity_name(self.features.entities[e], key)
            self._before.append((command(("PEXPIRE", name, self._terms.lives_ms[e])), 0, 1))

    def _blank(self, touches: Touches) -> Asked:
        batch = touches.batch
        room = self._work.room(batch.n)
        claims, contents = batch.claim.view(np.int64), batch.content.view(np.int64)
        return Asked(
            touches, room, room.scratch, room.asked, room.amounts, room.mosts, room.granted, room.give_back,
            room.buckets, room.handed, claims, contents, NONE_MET,
        )  # fmt: skip

    def _values(self, asked: Asked, reply: Reply) -> tuple[bool, int]:
        """Look at the epoch that every answer begins with: whether a claim was met, and the values' bytes."""
        wrong, met, size = wire.read_calls(
            reply.data, reply.offsets, reply.lengths, reply.firsts, asked.calls, asked.scratch.groups,
            self._terms.plain_epoch, asked.scratch.items,
        )  # fmt: skip
        if wrong >= 0:
            raise self._other_life(reply.item(int(reply.firsts[wrong])))
        return met, size

    def _other_life(self, epoch: Item) -> StoreError:
        """The error where data has another epoch than expected; from here on we go by that."""
        error = StoreError("epoch", missing_epoch(self.place))
        if self._terms.mask:  # of one partition; the first one says what is
            epoch = self._link.call("GET", self.place.epoch_key)[0]
        if isinstance(epoch, bytes) and epoch != self.place.epoch:  # it was rebuilt
            self.move(msgspec.structs.replace(self.place, epoch=epoch))
        return error

    def move(self, place: Place) -> None:
        """Go on with another life of the data."""
        self.place = place
        self._doors.losses.forget()
        self._edits.begin(place)
        self._serve(self.features)

    def _fold(self, asked: Asked, reply: Reply, size: int) -> None:
        """Fold the values that came into the workspace."""
        outcome = self._unfolding.take_in(asked, reply, size)
        if asked.resumed:
            self._retries.keep_found(asked, outcome)

    def settle(
        self, touches: Touches, verdict: Verdict, counted: bool = True, followed: Followed | None = None
    ) -> int:
        """Find what was granted of limits, and decide by it; see `Grants.settle`."""
        asked = self._asked
        assert asked is not None, "what is settled has been observed"
        try:
            self._grants.settle(asked, verdict, counted, followed)
        except BaseException:
            self._let_go()
            raise
        return 0

    def compile_seldom(self) -> None:
        """Have the kernels ready that few batches come to, and a rehearsal does not: each takes seconds."""
        self._grants.compile_seldom()

    # -- after the decision

    def conclude(self, touches: Touches, decisions: Sequence[Decision], horizon_ms: int) -> Met:
        """Send decisions and what the events moved: a retry finds them, or decides again.

        It is not waited for, but on a cluster where something is to be given back, and where another engine
        may have taken the events for abandoned: what that one has decided is asked for then, and stands.
        """
        asked = self._asked
        assert asked is not None, "what is concluded has been settled"
        self._asked = None
        batch = touches.batch
        rows: Sequence[int] = range(batch.n)
        if asked.met or asked.left_open:
            rows = [i for i in rows if i not in asked.met and i not in asked.left_open]
        if asked.forgotten:  # what it moved is known from when it was decided
            name = self.place.claim_name(b"d", batch.claim[0].tobytes())
            answer = msgspec.msgpack.encode(decisions[0])
            request = command(("SET", name, answer, "PX", self._terms.fresh_ms, "NX"))
            self._link.tell(request, self.place.part_of(batch.claim[0].tobytes()))
            return NONE_MET
        lives = Lives(horizon_ms, self._terms.fresh_ms)
        for i in asked.left_open:
            held = (asked.traces[:, self._terms.traces.at_holds + 1 :: 2] != NONE).astype(np.uint8)
            one = rows_of(touches, i), decisions[i : i + 1], held[i : i + 1]
            self._in_doubt.append(Doubt(self.features, *one, None, lives))
        if rows:
            self._tell_concluded(asked, rows, decisions, lives)
        if rows and (asked.resumed or time.monotonic() - asked.sent_s >= kept.SURE_MS / 1000):
            return self._overtaken(asked, rows, decisions)
        return NONE_MET

    def _overtaken(self, asked: Asked, rows: Sequence[int], decisions: Sequence[Decision]) -> Met:
        """What stands of events instead of what we have just decided; nothing where the store is away."""
        claims = asked.touches.batch.claims()
        by_part: dict[int, list[int]] = {}
        for i in rows:
            by_part.setdefault(self.place.part_of(claims[i]), []).append(i)
        texts = [
            command(("MGET", *(self.place.claim_name(b"d", claims[i]) for i in places)))
            for places in by_part.values()
        ]
        met: dict[int, Any] = {}
        with suppress(StoreError):
            reply = self._link.ask_all(*requests.together(texts, list(by_part)))
            found = [decision for call in range(len(texts)) for decision in reply.of(call)]
            for i, decision in zip(chain(*by_part.values()), found, strict=True):
                if decision is None and asked.resumed:  # who entered it may have decided it after all
                    decision = kept.decided_together(self._link, self.place, claims[i])
                if decision == b"":  # an operator gave it up
                    met[i] = "undecided"
                elif isinstance(decision, bytes):
                    stands = kept.decision_of(decision)
                    if stands != decisions[i]:
                        met[i] = stands
        return met

    def _tell_concluded(
        self, asked: Asked, rows: Sequence[int], decisions: Sequence[Decision], lives: Lives
    ) -> None:
        rows = self._in_order(asked.touches, rows)
        self._tell_before()
        if asked.batch is not ALONE and not asked.resumed and not asked.left_open:
            self._link.tell(requests.concluding_all(self._terms, self._work, asked, rows, decisions, lives))
            return
        calls = requests.concluding(self._terms, self._work, asked, rows, decisions, lives)
        back = self._terms.mask and asked.give_back.any()
        self._link.tell_all(*calls, self._owing.denied(asked, rows) if back else None)

    def _tell_before(self) -> None:
        for call in self._before:
            self._link.later(*call)
        self._before.clear()

    def _in_order(self, touches: Touches, rows: Sequence[int]) -> Sequence[int]:
        """Events by partition."""
        if not self._terms.mask:
            return rows
        homes = touches.batch.claim.view(np.int64)[:, 0] & self._terms.mask
        return sorted(rows, key=homes.tolist().__getitem__)

    def postponed(self, batch: Batch) -> Met:
        """What other doors have decided of these events without the server, meanwhile."""
        met: dict[int, Decision | Literal["conflict"]] = {}
        with self._doors.lock:
            for i, key in enumerate(batch.claims()):
                claim = self._doors.postponed.get(key)
                if claim is not None and claim.decision is not None:
                    met[i] = claim.decision if claim.content == batch.content[i].tobytes() else "conflict"
        return met

    def postpone(
        self,
        touches: Touches,
        decisions: Sequence[Decision],
        held: Bytes,
        followed: Followed | None,
        horizon_ms: int,
        met: Met,
    ) -> None:
        """Keep what was decided without the store, to be counted when it is back: what it is told then.

        What an event holds in any case it reserves against no maximum. What was `met` is left out. An event
        that another engine enters meanwhile is for that one to decide, which may hold something for it.
        """
        if met:
            new = [i for i in range(touches.batch.n) if i not in met]
            if not new:
                return
            touches, decisions, held = rows_of(touches, new), [decisions[i] for i in new], held[new]
        lives = Lives(horizon_ms, self._terms.fresh_ms)
        # What it holds is found when the store is back, where it may have been entered, or was by another.
        if self._link.unsure or self._resumes or followed is not None:
            self._in_doubt.append(Doubt(self.features, copied(touches), decisions, held, followed, lives))
            self._keep(touches.batch, decisions)
            return
        asked = self._blank(touches)
        self._grants.want(asked)
        asked.mosts[:] = slabs.AMOUNT_MAX
        self._grants.place_buckets(asked)
        self._grants.hold(asked, held)
        asked.batch = self._work.name_batch()
        self._later(requests.observing(self._terms, self._work, asked, held))
        rows = self._in_order(touches, range(touches.batch.n))
        self._later(requests.concluding(self._terms, self._work, asked, rows, decisions, lives, True))
        self._keep(touches.batch, decisions)

    def _keep(self, batch: Batch, decisions: Sequence[Decision]) -> None:
        """Know the claims of a batch, at each of our doors, until the store does."""
        each = zip(batch.claims(), batch.content, batch.time.tolist(), decisions, strict=True)
        with self._doors.lock:
            for key, content, time_, decision in each:
                self._doors.postponed[key] = Claim(key, content.tobytes(), time_, -1, -1, None, decision)

    def _later(self, calls: Requests) -> None:
        for request, part in calls.each():
            self._link.later(request, part)

    def _clear_up(self) -> None:
        """Count what was decided without the store and may have been counted there all the same."""
        while self._in_doubt:
            features, touches, decisions, held, followed, lives = self._in_doubt[0]
            with self._serving(features):
                now = touches.batch.time
                for i in self.restore(touches, decisions, held, followed, now, lives).left_open:
                    one = rows_of(touches, i)
                    self.restore(one, decisions[i : i + 1], held[i : i + 1], followed, one.batch.time, lives)
            self._in_doubt.popleft()

    @contextmanager
    def _serving(self, features: FeatureSet) -> Iterator[None]:
        """Go by the plan that events were planned by, where the policy has changed since, and then back."""
        own = self.features
        if features is own:
            yield
            return
        self._serve(features)
        try:
            yield
        finally:
            self._serve(own, announced=False)

    def restore(
        self,
        touches: Touches,
        decisions: Sequence[Decision],
        held: Bytes,
        followed: Followed | None,
        now: Int64s,
        lives: Lives,
    ) -> Restored:
        """Count events that were decided before, hold what they hold, and keep what was decided."""
        asked = self._blank(touches)
        self._grants.ask(asked, followed)
        handed = asked.handed != 0
        asked.asked[:] = held * ~handed
        asked.mosts[:] = slabs.AMOUNT_MAX
        self._grants.place_buckets(asked)
        if self._terms.mask:  # where a claim elsewhere outlives it, it looks as if nobody had decided it
            lives = lives._replace(horizon_ms=max(lives.horizon_ms, self._terms.elsewhere_ms + MARGIN_MS))
        masks, records = touches.masks.copy(), touches.records.copy()
        reply, size = self._answer(asked, True)
        self._fold(asked, reply, size)
        rows = [i for i in range(touches.batch.n) if i not in asked.met]
        open_ = [i for i, answer in asked.met.items() if answer == "undecided"]
        # What was void for us, who appended nothing, they moved when they were entered.
        touches.masks[open_], touches.records[open_] = masks[open_], records[open_]
        if open_ and touches.batch.n == 1:
            self._grants.settle_open(asked, held)
            rows, open_ = [0], []
        else:
            asked.give_back[:] = handed * (held == 0)  # what a denied event was handed
        if rows:
            self._grants.hold(asked, held)
            self._tell_concluded(asked, rows, decisions, lives)
        return Restored(len(rows), open_)

    def sweep(self, now: int, events: int, horizon_ms: int, fresh_ms: int) -> None:
        """Forget the batch: what is kept of it is in Redis, and goes when its time has come."""
        life_ms = max(horizon_ms, UNDECIDED_MS)
        if life_ms > 1000 * self._terms.claims_live_s or life_ms <= 1000 * (self._terms.claims_live_s - 1):
            self._terms.enter_for(life_ms)
        self._let_go()
        if self._doors.postponed and not self._forget_postponed():
            with self._doors.lock:
                self.claims.update(self._doors.postponed)

    def _forget_postponed(self) -> bool:
        """Let go of what was decided without the server, once that knows all of it; whether it does."""
        with self._doors.lock:
            if any(store.is_behind for store in self._doors.stores):
                return False
            self._doors.postponed.clear()
            return True

    # -- what comes after an event

    def followed(self, key: bytes, by: bytes) -> Followed | None:
        """What an event moved that `by` follows; None where nothing is known of it any more."""
        return self._past.followed(key, by)

    def release(self, key: bytes) -> Released:
        """Return every grant that an event still holds, and say whether there was any."""
        return self._past.release(key)

    def label(self, key: bytes, label: str, time: int) -> bool:
        """Let a label count for the event's entities, in the place of the one it had; False when too old."""
        return self._past.label(key, label, time)

    # -- lists and live tables

    @property
    def tables(self) -> dict[str, dict[int, Row]]:
        """The live rows known, replaced as a whole where they change."""
        return self._edits.tables

    def list_put(self, name: str, entity: str, key: int, entry: Mapping[str, Any]) -> None:
        """Enter or replace an entry; `entry['expires']` is ms or None."""
        self._edits.edit(("list", name, entity, key), entry)

    def list_get(self, name: str, entity: str, key: int) -> dict[str, Any] | None:
        """An entry, or None."""
        self._edits.look()
        return self._edits.lists.get((name, entity, key))

    def list_entries(self, name: str, entity: str) -> Mapping[int, dict[str, Any]]:
        """Every entry by its key, as far as they are known here."""
        return self._edits.lists.of(name, entity)

    def list_delete(self, name: str, entity: str, key: int) -> bool:
        """Remove an entry; whether it was there."""
        return self._edits.edit(("list", name, entity, key), None)

    @property
    def lists(self) -> Lists:
        """Entries of lists as far as they are known here."""
        return self._edits.lists

    def look_at_edits(self) -> None:
        """Learn of the edits that others have made."""
        self._edits.look()

    def spread(self, edits: Sequence[PathEdit]) -> None:
        """Enter and take out paths from listed entities."""
        self._edits.spread(edits)

    def members(self, spots: Sequence[Spot], links: Links, time: int) -> list[list[Int64s]]:
        """The members that entities have at a time: of each a list by its links."""
        moved = self._moves.together([], dict.fromkeys(spots, ()))
        self._unfolding.take_in_moved(moved)
        return slabs.members(self.features.flat, *self._work.arrays, spots, links, time)

    def table_put(self, name: str, key: int, row: Row) -> None:
        """Enter or replace a live row."""
        self._edits.edit(("table", name, "", key), row)

    def table_delete(self, name: str, key: int) -> bool:
        """Remove a live row; whether it was there."""
        return self._edits.edit(("table", name, "", key), None)

    # -- plans

    def reload(self, features: FeatureSet) -> None:
        """Serve another plan. Cells of equal definition keep what they know."""
        self._serve(features, announced=self is self._doors.stores[0])
        self._edits.lists.reload(features)

    # -- looking in, out and back

    def undecided(self, older_ms: int) -> list[Undecided]:
        """Events that came at least so long ago and were never decided, with what they hold."""
        terms = self._terms
        return undecided(
            self._link, self.place, self.features, terms.plan, self._plans, older_ms, terms.elsewhere_ms
        )

    def keyed_by(self, check: bytes) -> None:
        """Raise RiskEngineError where this life of the data is of another hash key: nobody would be found."""
        name = self.place.name("hashkey")
        stands = self._link.call("GET", name)[0]
        if stands is None:
            self._link.call("SET", name, check, "NX")
            stands = self._link.call("GET", name)[0]
        if stands != check:
            raise RiskEngineError(
                f"the store at {self.place.prefix} was written with another hash key, by which nobody would "
                "be found there: set RISKENGINE_HASH_KEY to what the engines have that share it"
            )

    def open_among(self, claims: Sequence[bytes]) -> set[bytes]:
        """Which of these events were entered and not decided."""
        return open_among(self._link, self.place, claims)

    def give_back_owed(self, older_ms: int) -> list[Owed]:
        """What denied events that came at least so long ago hold still, as their engine died: now nothing."""
        return self._owing.give_back(self._past, older_ms)

    def give_up(self, one: Undecided) -> bool:
        """Give back what an undecided event holds; False where it was decided meanwhile."""
        return give_up(self._link, self.place, one)

    def info(self) -> Info:
        """Sizes and losses, as the server tells them: entities are the keys of its database."""
        try:
            self._edits.look()
        except StoreError as error:
            if error.kind != "epoch":
                raise
            epoch = self._link.call("GET", self.place.epoch_key)[0]
            missing = self._other_life(epoch)
            if epoch != self.place.epoch:
                raise missing from None
            self._edits.look()  # it was rebuilt, and no event has come since
        self._look_for_losses()
        facts, size = [], 0
        for call in self._link.each():
            memory, keys = call("INFO", "memory")[0], call("DBSIZE")[0]
            assert isinstance(memory, bytes), "INFO answers a string"
            assert isinstance(keys, int), "DBSIZE answers a number"
            facts.append(facts_of(memory))
            size += keys
        return Info(
            entities=size,
            bytes=sum(int(said.get("used_memory", 0)) for said in facts),
            reserved=sum(int(said.get("maxmemory", 0)) for said in facts),
            evictions=0,
            expired=0,
            lost=self._link.dropped,
            claims=0,
            failovers=max([store._link.failovers for store in self._doors.stores]),  # each sees for itself
            lost_events=sum(loss.events for loss in self._edits.losses),
        )

    def look(self, touches: Touches) -> Int64s:
        """Read the features of entities at a time (n = 1) without an event; what each limit holds then."""
        spots = {(e, int(key)): () for e, key in enumerate(touches.keys[0]) if key}
        moved = self._moves.together([], spots)
        if moved.spots:
            self._unfolding.take_in_moved(moved)
        return slabs.look(self.features, self._work.arrays, touches, self._scratch)

    def export(self, path: Path) -> int:
        """Write entities, lists and live tables to a file; return the number of entities.

        It is no one moment's: what is counted meanwhile may be in it or not. Claims stay behind.
        """
        self._edits.look()
        lists = [(*name, entry) for name, entry in self._edits.lists.items()]
        paths = list(self._edits.lists.all_paths())
        head = statefile.Head(self.features.fingerprint, lists, self.tables, paths)
        return statefile.write(
            path, head, carrying.values(self._link, self.place, self._terms.plan, self._plans)
        )

    def take_in(self, path: Path) -> int:
        """Read a file written by `export` under the same plan, over what is there; the number of entities."""
        with statefile.opened(path) as state:
            n = carrying.put(self._link, self.place, self.features, self._terms.lives_ms, path, state)
        for name, entity, key, entry in state.head.lists:
            self.list_put(name, entity, key, entry)
        self.spread([PathEdit(*path) for path in state.head.paths])
        for table, rows in state.head.tables.items():
            for key, row in rows.items():
                self.table_put(table, key, row)
        return n

    def catch_up(self) -> None:
        """Count what was decided without the server. StoreError where it does not answer in time."""
        self._clear_up()
        self._tell_before()
        self._link.settle()
        self._forget_postponed()

    def close(self) -> None:
        """Hang up; before, what was decided without the server is counted, if it answers by CLOSE_S."""
        try:
            self._link.hurry(int(1e3 * min(self._link.timeout_s, CLOSE_S)), int(1e3 * CLOSE_S))
            self._catch_up_at_last()
        finally:
            self.claims.clear()
            self._link.close()

    def _catch_up_at_last(self) -> None:
        until = time.monotonic() + CLOSE_S
        while True:
            try:
                self.catch_up()
                return
            except StoreError as error:
                left = len(self._doors.postponed)
                if not left and not self._link.is_behind:
                    return
                if time.monotonic() < until and error.kind in ("away", "slow", "behind", "busy", "loading"):
                    time.sleep(kept.LOOK_AGAIN_S)
                    continue
                if not left:
                    _log.error(
                        "the store may not have heard all that was decided last (%s): what that left open, "
                        "riskengine store holds settles by the journal",
                        error,
                    )
                    return
                _log.error(
                    "%d events were decided while the store did not answer, and are not counted in it (%s): "
                    "count them from the journal with riskengine rebuild",
                    left, error,
                )  # fmt: skip
                return


def copied(touches: Touches) -> Touches:
    """A batch as it is, for when its room is used for another."""
    return rows_of(touches, slice(None))


def rows_of(touches: Touches, rows: int | slice | list[int]) -> Touches:
    """Some events of a batch, with arrays of their own; what was answered to it is left out."""
    some = np.arange(touches.batch.n)[rows].reshape(-1)
    return msgspec.structs.replace(
        touches,
        batch=touches.batch.take(some),
        **{name: getattr(touches, name)[some] for name in ("keys", "records", "masks", "texts", "read_at")},
        cells=np.ascontiguousarray(touches.cells[:, some]),
    )
