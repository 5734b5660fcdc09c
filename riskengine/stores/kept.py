"""What is kept of an event: its claim, and beside it, or together with its batch's, its trace and decision.

A claim is content (16), time (8), for how long it was entered (4, in s), the event's number in its batch (2)
and the batch's name (11); then the trace, where the event was concluded by itself. One that was concluded
with its batch has its trace in the batch's traces (conclusions.write_conclude_all).
"""

from __future__ import annotations

from typing import Final

import msgspec

from riskengine.decision import Decision
from riskengine.stores import StoreError
from riskengine.stores.cluster import AnyLink
from riskengine.stores.place import Place, missing_epoch
from riskengine.stores.wire import CLAIM_BYTES

AT_LIFE, AT_NUMBER, AT_BATCH = 24, 28, 30
IN_FLIGHT_MS: Final = 50  # an event that came this short a while ago is being decided by another engine
SURE_MS: Final = IN_FLIGHT_MS // 2  # who decides sooner after it came has the store hear of it in this time
LOOK_AGAIN_S: Final = 0.002
ALONE: Final = b"!" * 11  # instead of a batch's name: what is concluded by itself

_DECISIONS: Final = msgspec.msgpack.Decoder(Decision)


def decision_of(answer: bytes) -> Decision:
    """What was decided of an event, as it is kept of it."""
    return _DECISIONS.decode(answer)


def claim_of(link: AnyLink, place: Place, key: bytes) -> bytes | None:
    """An event's claim with its trace, if it was decided; None where nothing is known of it.

    Raises StoreError where the epoch is not the one expected.
    """
    part = place.part_of(key)
    epoch, claim = link.call("MGET", place.epoch_name(part), place.claim_name(b"c", key), at=part)
    if epoch != place.epoch:
        raise StoreError("epoch", missing_epoch(place))
    if not isinstance(claim, bytes):
        return None
    batch = _batch_of(claim)
    if batch is None:
        return claim
    traces = link.call("GET", place.within(part) + b"t" + batch, at=part)[0]
    return claim + piece(traces, claim) if isinstance(traces, bytes) else claim


def decided_together(link: AnyLink, place: Place, key: bytes) -> bytes | None:
    """The decision on an event that is kept together with its batch's, if it is."""
    part = place.part_of(key)
    claim = link.call("GET", place.claim_name(b"c", key), at=part)[0]
    if not isinstance(claim, bytes):
        return None
    batch = _batch_of(claim)
    if batch is None:
        return None
    decisions = link.call("GET", place.within(part) + b"k" + batch, at=part)[0]
    return piece(decisions, claim) if isinstance(decisions, bytes) else None


def is_in_flight(link: AnyLink, place: Place, key: bytes, claim: bytes) -> bool:
    """Whether an event has come so lately that another door, or engine, is deciding it just now."""
    left = link.call("PTTL", place.claim_name(b"c", key), at=place.part_of(key))[0]
    life = life_ms_of(claim)
    return isinstance(left, int) and life - IN_FLIGHT_MS < left <= life


def piece(pieces: bytes, claim: bytes) -> bytes:
    """What belongs to an event of what is kept together of its batch."""
    at = 4 * int.from_bytes(claim[AT_NUMBER:AT_BATCH], "little")
    start, end = (int.from_bytes(pieces[k : k + 4], "little") for k in (at, at + 4))
    return pieces[start:end]


def _batch_of(claim: bytes) -> bytes | None:
    """The name of the batch that an event is concluded with; None where it is, or was, by itself."""
    batch = claim[AT_BATCH:CLAIM_BYTES]
    return None if len(claim) > CLAIM_BYTES or batch == ALONE else batch


def life_ms_of(claim: bytes) -> int:
    """For how long a claim was entered."""
    return 1000 * int.from_bytes(claim[AT_LIFE:AT_NUMBER], "little")
