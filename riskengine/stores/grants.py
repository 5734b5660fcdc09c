"""What the events of a batch are granted of limits in a shared store: asked for, found, given back.

A reservation is a record in the log of its entity, and whether it was granted is for the log to say, in its
order. Decided is as the in-process store would. Where that needs what the log refused, as an event that is
denied had held the place for a moment, it is asked for again.
"""

from __future__ import annotations

import secrets
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from riskengine import ledger
from riskengine.decision import DENY, Verdict
from riskengine.features import FeatureSet, Touches
from riskengine.fibers import pause
from riskengine.kernel import bind
from riskengine.layout import L_CELL, L_ENTITY, NONE, Int64s
from riskengine.stores import Followed, StoreError, kept, reservations, slabs, values, wire
from riskengine.stores.cluster import AnyLink
from riskengine.stores.holds import held_of, holds_in
from riskengine.stores.moves import Entry, Moves
from riskengine.stores.place import Place
from riskengine.stores.plans import Plans
from riskengine.stores.requests import ALONE, NO_ENTITIES, Asked
from riskengine.stores.resp import Bytes, command
from riskengine.stores.terms import Terms
from riskengine.stores.undecided import BY_DENIAL, RESUMED, UNDECIDED_MS
from riskengine.stores.unfolding import Unfolding
from riskengine.stores.workspace import Workspace

NOTHING_HELD: Final = np.empty((0, 2), np.int64)
NO_KEYS: Final = np.empty(0, np.int64)
BY_FAIL: Final = b"failed"  # it holds in any case: nobody could be asked when it was decided
ANEW: Final = b"anew"


class Grants(NamedTuple):
    """Limits under one plan, in one life of the data; of a batch at a time, by what it `Asked`."""

    link: AnyLink
    place: Place
    features: FeatureSet
    terms: Terms
    work: Workspace
    moves: Moves
    plans: Plans
    unfolding: Unfolding

    def ask(self, asked: Asked, followed: Followed | None) -> None:
        """What each event wants; of the event that is followed, what can be is taken over first."""
        if followed is not None:
            asked.follows = np.array([np.frombuffer(followed.claim, np.int64)])
        self.want(asked)
        if followed is not None and not asked.touches.batch.late[0] and followed.chain[0].holds:
            self._take_over(asked, followed)

    def want(self, asked: Asked, prior: Int64s = NOTHING_HELD, prior_keys: Int64s = NO_KEYS) -> None:
        """What each event wants, where it holds `prior` (L, 2: bucket and amount) of these keys already."""
        touches = asked.touches
        reservations.ask(
            self.features.flat,
            touches.batch.type_index,
            touches.batch.late,
            touches.keys,
            touches.cells,
            prior,
            prior_keys,
            asked.asked,
            asked.amounts,
            asked.mosts,
        )

    def _take_over(self, asked: Asked, followed: Followed) -> None:
        """Take over what the followed event holds, and give back what this one does not ask for.

        Once only: whoever comes second, a release or another follow-up, finds the mark.
        """
        touches, own = asked.touches, asked.touches.batch.claim[0].tobytes()
        trace = followed.chain[0]
        claim = kept.claim_of(self.link, self.place, own)
        if claim is not None and (
            len(claim) > wire.CLAIM_BYTES or claim[:16] != touches.batch.content[0].tobytes()
        ):
            asked.asked[:] = 0  # decided already, or another event: `observe` finds out
            asked.was_known = True
            return
        if claim is not None:  # it was entered before, which takes over first, or not at all
            mark = self.place.claim_name(b"r", followed.claim)
            if self.link.call("GET", mark, at=self.place.part_of(followed.claim))[0] != own:
                return
        prior, prior_keys = trace.held_in(self.features)
        self.want(asked, prior, prior_keys)
        handed = asked.asked[0] == reservations.HANDED
        pieces: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
        for limit in np.flatnonzero((prior[:, 1] != NONE) & ~handed).tolist():
            e = int(self.features.plan.limits[limit, L_ENTITY])
            bucket, amount = prior[limit].tolist()
            record = self.terms.release(limit, int(touches.batch.time[0]), bytes(8), amount, bucket)
            pieces.setdefault((e, int(prior_keys[e])), []).append((0, record))
        new, known = self.moves.once(Entry(b"r", followed.claim, own), pieces)
        if new or known == own:
            asked.handed[:] = handed
            asked.granted[0, handed] = 1
            asked.asked[0, handed] = 0
            asked.buckets[0, handed] = prior[handed, 0]
        else:
            self.want(asked)

    def settle(self, asked: Asked, verdict: Verdict, counted: bool, followed: Followed | None) -> None:
        """Find what the log granted, decide as the in-process store does, and see where the two differ.

        They differ where an event that was denied held for a moment what a later one of the batch was refused
        for: that one asks again, which is a second wait.
        """
        work, features, touches = self.work, self.features, asked.touches
        batch = touches.batch
        asked.traces = np.empty((batch.n, self.terms.traces.width), np.int64)
        where = (features.flat, *work.arrays, touches.keys, batch.time)
        if asked.undone or asked.resumed or asked.forgotten:
            self.place_buckets(asked)
        if asked.forgotten and asked.undone:
            reservations.book_all(*where, asked.asked, asked.amounts, asked.mosts, asked.granted)
            self._undo(asked)
            asked.granted[:] = 0
        if asked.resumed or asked.forgotten:
            asked.granted[:, asked.handed != 0] = 1
            self._settle_given(asked, verdict)
            if asked.gave_back:
                self._settle_given_back(asked, verdict)
            return
        if asked.undone:
            reservations.book_all(*where, asked.asked, asked.amounts, asked.mosts, asked.granted)
            self._undo(asked)
            reservations.give_back_all(*where, asked.granted, asked.amounts)
            asked.granted[:, asked.handed != 0] = 1
        else:
            reservations.grant_all(
                *where,
                asked.asked,
                asked.handed,
                asked.amounts,
                asked.mosts,
                asked.granted,
                asked.buckets,
            )
        prior, prior_keys = NOTHING_HELD, NO_KEYS
        if followed is not None and asked.handed.any():
            prior, prior_keys = followed.chain[0].held_in(self.features)
            prior[asked.handed == 0] = NONE
        late = batch.late
        if asked.met:
            late = late.copy()
            late[list(asked.met)] = True
        slabs.settle(
            features.flat,
            *work.arrays,
            batch.type_index,
            batch.time,
            late,
            counted,
            touches.keys,
            touches.cells,
            verdict.base,
            prior,
            prior_keys,
            verdict.hits,
            verdict.severity,
            batch.event_hash,
            touches.masks,
            touches.records,
            self.terms.traces.kept,
            asked.traces,
            self.terms.traces.at_holds,
        )
        again = asked.room.again
        if self._compare(asked, again):
            try:
                self._ask_again(asked, verdict, again)
            except StoreError:  # what was granted at first stands; what came of the rest is found later
                asked.left_open = {i for i, _ in pairs(again)}
                self._settle_given(asked, verdict)

    def stand_in(self, touches: Touches) -> None:
        """Before an event is decided that another engine has entered: wait for that one, then stop it.

        From here on it can reserve nothing anew for the event, nor give anything back before deciding: what
        is in the log is all that there will be.
        """
        place, claim = self.place, touches.batch.claim[0].tobytes()
        home = place.part_of(claim)
        names = [place.claim_name(letter, claim) for letter in (b"c", b"d")]
        while self.link.call("GET", names[1], at=home)[0] is None:
            known = kept.claim_of(self.link, place, claim)
            if known is not None and len(known) > wire.CLAIM_BYTES:
                return  # the decision itself may be forgotten
            if not kept.is_in_flight(self.link, place, claim, known or bytes(wire.CLAIM_BYTES)):
                for part in self._limit_parts(touches):
                    name = place.claim_name(b"b", claim, part)
                    self.link.call("SET", name, RESUMED, "NX", "PX", UNDECIDED_MS, at=part)
                return
            pause(kept.LOOK_AGAIN_S)

    def find(self, asked: Asked) -> None:
        """What an event that was entered before holds: as the log says, or who folded it out of there."""
        touches, plan, place = asked.touches, self.features.plan, self.place
        claim = touches.batch.claim[0].tobytes()
        found: set[tuple[str, int, int]] = set()
        for e in {int(row[L_ENTITY]) for row in plan.limits}:
            name, key = self.features.entities[e], int(touches.keys[0, e])
            if key == 0:
                continue
            value = self.link.call("GET", place.entity_name(name, key), at=place.part_of(key))[0]
            holds = holds_in(value, name, key, self.plans, self.terms.plan)
            found.update((name, key, hold.cell) for hold in holds if hold.claim == claim)
        # What is folded meanwhile is kept before it is gone from the tail: so this is read after it.
        for part in self._limit_parts(touches):
            names = [place.claim_name(letter, claim, part) for letter in (b"b", b"h")]
            before, kept = self.link.call("MGET", *names, at=part)
            if isinstance(before, bytes) and before.startswith(BY_DENIAL):
                asked.gave_back.add(part)
            held = held_of(kept, self.plans, self.terms.plan)
            found.update((hold.entity, hold.key, hold.cell) for hold in held)
        for limit, row in enumerate(plan.limits):
            e = int(row[L_ENTITY])
            spot = self.features.entities[e], int(touches.keys[0, e]), self.terms.cell(limit)
            asked.granted[0, limit] = spot in found

    def settle_open(self, asked: Asked, held: Bytes) -> None:
        """An event that was entered and not decided here is to hold what its decision says, and no more."""
        touches = asked.touches
        claim = touches.batch.claim[0].tobytes()
        self.stand_in(touches)
        asked.resumed = True
        handed = asked.handed != 0
        self.find(asked)
        asked.granted[0, self._given_back(asked)] = 0
        missing = np.flatnonzero(held[0] * (asked.granted[0] == 0) * ~handed).tolist()
        if missing:
            pieces: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
            for limit in missing:
                amount = int(asked.amounts[0, limit])
                record = self.terms.reservation(
                    limit, int(touches.batch.time[0]), claim, amount, slabs.AMOUNT_MAX
                )
                pieces.setdefault(self._spot(touches, 0, limit), []).append((0, record))
            self.moves.once(Entry(b"f", claim, BY_FAIL), pieces)
        asked.granted[:, handed] = 1
        asked.give_back[:] = asked.granted * (held == 0)

    def place_buckets(self, asked: Asked) -> None:
        """Where each event holds what it asks for; what is handed over stays where it is."""
        reservations.place_buckets(self.features.flat, asked.touches.batch.time, asked.handed, asked.buckets)

    def hold(self, asked: Asked, held: Bytes) -> None:
        """Let each event's trace say that it holds these limits, and no more."""
        asked.traces = np.full((asked.touches.batch.n, self.terms.traces.width), NONE, np.int64)
        holds = asked.traces[:, self.terms.traces.at_holds :]
        holds[:, ::2] = np.where(held, asked.buckets, 0)
        holds[:, 1::2] = np.where(held, asked.amounts, NONE)

    def compile_seldom(self) -> None:
        """Have the kernels ready that few batches come to, and a rehearsal does not: each takes seconds."""
        flat, arrays = self.features.flat, self.work.arrays
        asked = self.work.room(1)
        where = (flat, *arrays, NO_ENTITIES, NO_KEYS)
        bind(slabs.give_hold_back, flat, *arrays, 0, 0, 0, 0, 0)
        bind(values.book, flat, *arrays, 0, 0, 0, 0, 0, 0)
        bind(reservations.book_all, *where, asked.asked, asked.amounts, asked.mosts, asked.granted)
        bind(reservations.give_back_all, *where, asked.granted, asked.amounts)
        bind(ledger.held, flat, arrays[0], 0, 0, 0, 0)
        out = np.empty(wire.CLAIM_BYTES, np.uint8)
        bind(wire.put_claim, out, 0, NOTHING_HELD, NO_KEYS, 0, ALONE, 0)
        bind(wire.put_reservation, out, 0, 0, 0, 0, 0, 0, 0, 0)

    def _settle_given(self, asked: Asked, verdict: Verdict) -> None:
        """Decide by what was granted, and note what is to be given back."""
        touches = asked.touches
        reservations.settle_given(
            self.features.flat,
            touches.batch.type_index,
            touches.batch.time,
            touches.keys,
            touches.cells,
            asked.amounts,
            asked.buckets,
            asked.granted,
            verdict.base,
            verdict.hits,
            verdict.severity,
            asked.traces,
            self.terms.traces.at_holds,
        )
        self._compare(asked, asked.room.again)

    def _settle_given_back(self, asked: Asked, verdict: Verdict) -> None:
        """Of a lone event that gave something back before it was decided: from now on it holds nothing."""
        granted = asked.granted.copy()
        if verdict.severity[0] != DENY:  # its policy was another then
            asked.granted[:] = 0
            self._settle_given(asked, verdict)
        asked.give_back[:] = granted
        asked.give_back[0, self._given_back(asked)] = 0

    def _given_back(self, asked: Asked) -> NDArray[np.bool_]:
        """Which limits a lone event has given back already, of those that it reserved (L)."""
        parts = asked.touches.keys[0, self.features.plan.limits[:, L_ENTITY]] & self.terms.mask
        returned: NDArray[np.bool_] = np.isin(parts, list(asked.gave_back)) & (asked.handed == 0)
        return returned

    def _compare(self, asked: Asked, again: Bytes) -> int:
        """How many reservations are to be made `again`; and what is to be given back."""
        met = list(asked.met)
        if met:
            asked.traces[met, self.terms.traces.at_holds + 1 :: 2] = NONE
        count = reservations.compare(
            asked.traces, self.terms.traces.at_holds, asked.granted, again, asked.give_back
        )
        if met:
            asked.give_back[met] = 0  # who decides that event sees to what it holds
        return count

    def _undo(self, asked: Asked) -> None:
        """Take back what partitions appended of events that were known: a record, and what was reserved."""
        touches, plan, work = asked.touches, self.features.plan, self.work
        batch = touches.batch
        calls: dict[tuple[int, int], list[bytes]] = {}
        names: dict[tuple[int, int], list[bytes]] = {}
        for (i, e), record in asked.undone.items():
            key, releases = int(touches.keys[i, e]), b""
            for limit in np.flatnonzero(plan.limits[:, L_ENTITY] == e).tolist():
                if asked.granted[i, limit]:
                    amount, bucket = int(asked.amounts[i, limit]), int(asked.buckets[i, limit])
                    releases += self.terms.release(limit, int(batch.time[i]), bytes(8), amount, bucket)
                    cell = int(plan.limits[limit, L_CELL])
                    slabs.give_hold_back(self.features.flat, *work.arrays, e, cell, key, bucket, amount)
                    asked.granted[i, limit] = 0
            spot = i, self.place.part_of(key)
            calls.setdefault(spot, []).extend((record, releases))
            names.setdefault(spot, []).append(self.place.entity_name(self.features.entities[e], key))
        for (i, part), words in calls.items():
            entities = names[i, part]
            claim = self.place.claim_name(b"c", batch.claim[i].tobytes(), part)
            value = np.empty(wire.CLAIM_BYTES, np.uint8)
            wire.put_claim(value, 0, asked.contents, batch.time, asked.claims_live_s, asked.batch, i)
            sha = self.link.names["undo"]
            request = command(("EVALSHA", sha, 1 + len(entities), claim, *entities, value.tobytes(), *words))
            self.link.tell(request, part)

    def _ask_again(self, asked: Asked, verdict: Verdict, again: Bytes) -> None:
        """Give back what denied events hold, and reserve anew what others were refused for it."""
        touches, plan = asked.touches, self.features.plan
        spots = {self._spot(touches, i, limit) for i, limit in pairs(again)}
        events = {i for i, limit in pairs(asked.give_back) if self._spot(touches, i, limit) in spots}
        released = [(i, limit) for i, limit in pairs(asked.give_back) if i in events]
        token = secrets.token_bytes(8)
        claims: dict[int, Entry] = {}
        pieces: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
        for wanted, said in ((released, BY_DENIAL), (pairs(again), ANEW)):
            for i, limit in wanted:
                claim = touches.batch.claim[i].tobytes()
                claims.setdefault(i, Entry(b"b", claim, said + token))
                time, amount = int(touches.batch.time[i]), int(asked.amounts[i, limit])
                if said is ANEW:
                    record = self.terms.reservation(limit, time, claim, amount, int(asked.mosts[i, limit]))
                else:
                    record = self.terms.release(limit, time, claim, amount, int(asked.buckets[i, limit]))
                spot = self._spot(touches, i, limit)
                pieces.setdefault(spot, []).append((list(claims).index(i), record))
        moved = self.moves.together(list(claims.values()), pieces)
        known = moved.known.values()
        if any(isinstance(value, bytes) and value.endswith(token) for value in known):
            raise StoreError("away", "the store has done as asked, and what came of it was lost on the way")
        numbers = {i: number for number, i in enumerate(claims)}
        self.unfolding.take_in_moved(moved)
        work, lost = self.work, False
        for i, limit in (*released, *pairs(again)):
            e, key = self._spot(touches, i, limit)
            cell, amount = int(plan.limits[limit, L_CELL]), int(asked.amounts[i, limit])
            new = moved.new[numbers[i], self.place.part_of(key)]
            if asked.give_back[i, limit]:
                if new:  # else another engine stopped us, and the decision gives it back
                    bucket = int(asked.buckets[i, limit])
                    slabs.give_hold_back(self.features.flat, *work.arrays, e, cell, key, bucket, amount)
                continue
            time, most = int(touches.batch.time[i]), int(asked.mosts[i, limit])
            granted = new and values.book(self.features.flat, *work.arrays, e, cell, key, time, amount, most)
            asked.granted[i, limit] = granted
            lost = lost or not granted
        if lost:  # others came in between: what they left is what there is
            self._settle_given(asked, verdict)

    def _limit_parts(self, touches: Touches) -> set[int]:
        """The partitions that a lone event reserves in, and gives back in."""
        entities = {int(row[L_ENTITY]) for row in self.features.plan.limits}
        return {self.place.part_of(int(touches.keys[0, e])) for e in entities}

    def _spot(self, touches: Touches, i: int, limit: int) -> tuple[int, int]:
        """Entity and key that an event asks a limit of."""
        e = int(self.features.plan.limits[limit, L_ENTITY])
        return e, int(touches.keys[i, e])


def pairs(table: Bytes) -> list[tuple[int, int]]:
    """Rows and columns of what is not 0, in order."""
    return [(int(i), int(j)) for i, j in zip(*np.nonzero(table), strict=True)]
