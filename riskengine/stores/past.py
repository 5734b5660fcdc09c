"""Events that were decided before: what is known of one, and what is done for it afterwards."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from riskengine.features import FeatureSet
from riskengine.fibers import pause
from riskengine.layout import FRAUD, L_ENTITY, LEGIT, SIGN_BIT
from riskengine.stores import Followed, Released, kept, wire
from riskengine.stores.cluster import AnyLink
from riskengine.stores.known import Known
from riskengine.stores.moves import Entry, Moves
from riskengine.stores.place import Place
from riskengine.stores.plans import Plans
from riskengine.stores.terms import Terms
from riskengine.stores.traces import FOLLOWS_MAX, Trace

TAKES_OVER: Final = b"over"
BY_ITSELF: Final = b"self"
BY_RELEASE: Final = b"released"


class Past(NamedTuple):
    """What a shared store keeps of decided events, as long as it keeps it."""

    link: AnyLink
    place: Place
    features: FeatureSet
    terms: Terms
    plans: Plans
    moves: Moves

    def followed(self, key: bytes, by: bytes) -> Followed | None:
        """What an event moved that `by` follows; None where nothing is known of it any more.

        Two engines may meet the one that follows at once, and only one of them know the other: that one takes
        its place, while the other one has it hold more beside it, and which of the two is kept is a race. So
        whoever comes first says which it is, for all.
        """
        followed = self._chain(key)
        said = TAKES_OVER if followed is not None else BY_ITSELF
        new, known = self.moves.once(Entry(b"m", by, said), {})
        if new or known == said:
            return followed
        return self._chain(key) if known == TAKES_OVER else None

    def _chain(self, key: bytes) -> Followed | None:
        chain: list[Trace] = []
        at: bytes | None = key
        while at is not None and len(chain) < FOLLOWS_MAX:
            known = self.recall(at)
            if known is None:
                break
            chain.append(known.trace(self.features))
            at = known.follows
        return Followed(key, tuple(chain)) if chain else None

    def recall(self, key: bytes) -> Known | None:
        """What is kept of a decided event."""
        part = self.place.part_of(key)
        while True:
            claim = kept.claim_of(self.link, self.place, key)
            if claim is None:
                return None
            if len(claim) > wire.CLAIM_BYTES:
                break
            if not kept.is_in_flight(self.link, self.place, key, claim):
                return None
            pause(kept.LOOK_AGAIN_S)
        settled = self.link.call("GET", self.place.claim_name(b"r", key), at=part)[0]
        return Known.read(claim, key, settled, self.plans)

    def release(self, key: bytes) -> Released:
        """Return every grant that an event still holds, and say whether there was any."""
        known = self.recall(key)
        if known is None or not known.holds or known.settled not in (None, BY_RELEASE):
            return "nothing"
        if known.settled == BY_RELEASE and not self.terms.mask:
            return "before"
        trace = known.trace(self.features)
        pieces: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
        for name, (bucket, amount) in trace.holds.items():
            if name in self.features.limit_names:
                limit = self.features.limit_names.index(name)
                e = int(self.features.plan.limits[limit, L_ENTITY])
                at = trace.keys.get(self.features.entities[e], 0)
                record = self.terms.release(limit, known.time, bytes(8), amount, bucket)
                pieces.setdefault((e, at), []).append((0, record))
        new, settled = self.moves.once(Entry(b"r", key, BY_RELEASE), pieces)
        return "now" if new else "before" if settled == BY_RELEASE else "nothing"

    def label(self, key: bytes, label: str, time: int) -> bool:
        """Let a label count for the event's entities, in the place of the one it had; False when too old.

        The labels of an event are a chain of claims: the next one is entered where nobody was faster. By its
        end is known which one stands: of two of one time the last.
        """
        known = self.recall(key)
        if known is None:
            return False
        value, part = msgspec.msgpack.encode((label, time)), self.place.part_of(key)
        before: str | None = None
        before_time = time
        number = 0
        while True:
            entry = Entry(b"l", key, value, b".%d" % number)
            (said,) = self.link.call("GET", self.place.claim_name(b"l", key) + entry.end, at=part)
            if said is None:
                if (label, time) == (before, before_time):
                    return True
                new, said = self.moves.once(entry, self._label_pieces(known, before, label))
                if new:
                    return True
            elif said == value and self.terms.mask:  # a crash may have left undone what it moves elsewhere
                self.moves.once(entry, self._label_pieces(known, before, label))
            assert isinstance(said, bytes), "a label has a value"
            before, before_time = msgspec.msgpack.decode(said, type=tuple[str, int])
            if time < before_time:
                return True
            number += 1

    def _label_pieces(
        self, known: Known, before: str | None, label: str
    ) -> dict[tuple[int, int], list[tuple[int, bytes]]]:
        """Records that take away what the label before counted, and add what this one does."""
        pieces: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
        if before == label:
            return pieces
        for name, sign in ((before, 1 << SIGN_BIT), (label, 0)):
            if name is None:
                continue
            kind = FRAUD if name == "fraud" else LEGIT
            for e, key, record in known.labelled(self.terms.plan, self.plans, kind, sign):
                pieces.setdefault((e, key), []).append((0, record))
        return pieces
