"""Values that a shared store answers, folded into a workspace; those with long tails are written back."""

from __future__ import annotations

from typing import Final

import numpy as np

from riskengine import packing
from riskengine.features import FeatureSet
from riskengine.layout import Int64s
from riskengine.stores import StoreError, memo, requests, slabs, values
from riskengine.stores.line import Reply
from riskengine.stores.moves import Moved
from riskengine.stores.plans import Plans, packed
from riskengine.stores.requests import Asked
from riskengine.stores.resp import as_array
from riskengine.stores.terms import Terms
from riskengine.stores.workspace import Workspace

# With 64, folding was a sixth of what a served event took; with 16, the server took 4 us more for snapshots.
TAIL_RECORDS: Final = 32
NO_TIMES: Final = np.empty(0, np.int64)


class Unfolding:
    """Folds values into the workspace by one plan."""

    def __init__(
        self,
        features: FeatureSet,
        terms: Terms,
        plans: Plans,
        work: Workspace,
        written: list[tuple[bytes, int, int]],
    ) -> None:
        """`written` gets the calls that write values back, with the partition of each and its replies."""
        self._features, self._terms, self._plans, self._work = features, terms, plans, work
        self._written = written

    def take_in(self, asked: Asked, reply: Reply, size: int) -> Int64s:
        """Fold the values of a batch, `size` bytes together; what became of each (K), as values.take_in says.

        Raises StoreError for one that is broken.
        """
        features, work, touches, scratch = self._features, self._work, asked.touches, asked.scratch
        count = len(asked.entities)
        work.begin(count, size, touches.batch.n)
        event, time = 0, 0
        if asked.resumed:  # up to where it stands itself
            event, time = int(touches.batch.event_hash.view(np.int64)[0]), int(touches.batch.time[0])
        other, long = values.unfold(
            features.flat,
            self._plans.partial(self._terms.plan),
            self._terms.tag,
            self._terms.fingerprint,
            *work.arrays,
            reply.data,
            reply.offsets,
            reply.lengths,
            scratch.items,
            count,
            asked.entities,
            work.row,
            event,
            time,
            work.memo,
            touches.batch.time,
            TAIL_RECORDS,
            scratch.tails,
            scratch.outcome,
            scratch.long,
        )
        outcome = scratch.outcome[:count]
        # Copied out before anything else is asked of the store, plans of others for one.
        foreign = self._foreign(asked, reply, outcome) if other else {}
        if long and not asked.resumed:
            self._written += requests.folding(self._terms, work, asked, reply, long)
        for k, value in foreign.items():
            outcome[k] = self._take_in_foreign(asked, k, value, (event, time))
        return outcome

    def _foreign(self, asked: Asked, reply: Reply, outcome: Int64s) -> dict[int, bytes]:
        """Values that other policies wrote, too, by number."""
        broken = np.flatnonzero(outcome == values.BROKEN)
        if len(broken):
            k = int(broken[0])
            raise _broken(f"a {self._features.entities[int(asked.entities[k, 1])]}")
        found = {}
        for k in np.flatnonzero(outcome == values.FOREIGN).tolist():
            value = reply.item(int(asked.scratch.items[k]))
            assert isinstance(value, bytes), "a value of another plan is a value"
            found[k] = value
        return found

    def _take_in_foreign(self, asked: Asked, k: int, value: bytes, stop: tuple[int, int]) -> int:
        """Fold a value that other policies wrote, too, and put what it is by each of them in its place."""
        key, e = int(asked.entities[k, 0]), int(asked.entities[k, 1])
        name, work = self._features.entities[e], self._work
        own = self._plans.converted(value, name, self._terms.plan)
        tails, state = np.empty((1, values.TAIL_SIZE), np.int64), np.empty(1, np.int64)
        data = as_array(own)
        values.take_in(
            self._features.flat, self._plans.partial(self._terms.plan), self._terms.tag,
            self._terms.fingerprint, *work.arrays, data, np.zeros(1, np.int64),
            np.array([len(own) if own else -1]), np.zeros(1, np.int64), 1, asked.entities[k : k + 1],
            work.row, *stop, memo.NOTHING, 0, 0, tails, state,
        )  # fmt: skip
        if state[0] == values.BROKEN:
            raise _broken(f"a {name}")
        if not asked.resumed:
            s = slabs.locate(*work.arrays[1:], key)
            sections = [packed(self._terms.plan, work.words, s, e)] if s else []
            sections += self._plans.others(value, name, self._terms.plan)
            tail = data, int(tails[0, values.SNAPSHOT_BYTES]), len(own)
            if sections:
                head, whole = value[: packing.HEADER], b"".join(sections)
                call = requests.folding_one(self._terms, e, key, head, len(value), whole, *tail)
                self._written.append(call)
        return int(state[0])

    def take_in_moved(self, moved: Moved) -> None:
        """Fold the values that a call off the hot path has answered."""
        found = [
            self._plans.converted(value, self._features.entities[e], self._terms.plan)
            if isinstance(value, bytes)
            else b""
            for value, (e, _) in zip(moved.values, moved.spots, strict=True)
        ]
        count = len(found)
        lengths = np.array([len(v) if v else -1 for v in found], np.int64)
        offsets = np.concatenate(([0], np.cumsum([len(v) for v in found])[:-1])).astype(np.int64)
        entities = np.array([(key, e, 0, 0) for e, key in moved.spots], np.int64).reshape(-1, 4)
        work = self._work
        work.begin(count, int(lengths.clip(0).sum()), count + 64)
        tails, outcome = np.empty((count, values.TAIL_SIZE), np.int64), np.empty(count, np.int64)
        other, _ = values.unfold(
            self._features.flat, self._plans.partial(self._terms.plan), self._terms.tag,
            self._terms.fingerprint, *work.arrays, as_array(b"".join(found)), offsets, lengths,
            np.arange(count), count, entities, work.row, 0, 0, memo.NOTHING, NO_TIMES, TAIL_RECORDS, tails,
            outcome, np.empty(count, np.int64),
        )  # fmt: skip
        if other:
            raise _broken("an entity")


def _broken(entity: str) -> StoreError:
    return StoreError("broken", f"the state of {entity} is broken: rebuild the store")
