"""From what fired to what is done: risk, action, challenge, and the reasons, as one frozen value."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from riskengine.answer import Decision as Decision
from riskengine.answer import Message as Message
from riskengine.answer import ModelScore as ModelScore
from riskengine.answer import Reason as Reason
from riskengine.hashing import Words, sip24_words
from riskengine.kernel import jit, jit_allocating
from riskengine.rooms import Empty

Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]
Bytes = NDArray[np.uint8]

ALLOW, REVIEW, CHALLENGE, DENY = range(4)  # severities, as definition.ACTIONS lists them
BY_RULES, BY_RISK, LOWERED = range(3)  # who may say the kind of a challenge, beside refused limits


class Verdict(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What a batch of n events comes to, step by step; see `decide` and `name_decisions`."""

    hits: Bytes  # (n, R + L): rules that fire, then limits that refuse
    p: Float64s  # (n): the model's
    risk: Float64s  # (n)
    base: Int64s  # (n): severity before limits
    voices: Bytes  # (n)
    severity: Int64s  # (n), limits included
    names: Words  # (n, 2)

    @classmethod
    def room(cls, n: int, width: int, empty: Empty = np.empty) -> Verdict:
        """Room for n events and `width` rules and limits."""
        return cls(
            empty((n, width), np.uint8), np.zeros(n), empty(n), empty(n, np.int64),
            empty(n, np.uint8), empty(n, np.int64), empty((n, 2), np.uint64),
        )  # fmt: skip


@jit
def decide(
    hits: Bytes,
    live: Bytes,
    severity: Int64s,
    risk_of: Float64s,
    firm: Bytes,
    allows: Bytes,
    thresholds: Float64s,
    type_index: NDArray[np.int32],
    p: Float64s,
    cells: Float64s,
    blocked: Int64s,
    risk: Float64s,
    base: Int64s,
    voices: Bytes,
) -> None:
    """Judge each event by its rules and thresholds; limits come after.

    hits (n, R and more) of rules with `severity`, `risk_of`, `firm`, `live` and `allows` (R); thresholds
    (event types, 3) for review, challenge, deny, NaN is never; `blocked` are columns of cells that say
    whether the event is on the list of that name. Writes risk (n), base (n) severity, and voices (n):
    BY_RULES, BY_RISK where the threshold asks for a challenge too, LOWERED where a `then: allow` rule has
    left only firm rules to speak. Noisy-or, J. Pearl 1988, in policy order.
    """
    for i in range(hits.shape[0]):
        clean = 1.0 - p[i]
        worst = ALLOW
        worst_firm = ALLOW
        allowed = False
        for r in range(len(live)):
            if hits[i, r] and live[r]:
                clean *= 1.0 - risk_of[r]
                worst = max(worst, severity[r])
                if firm[r]:
                    worst_firm = max(worst_firm, severity[r])
                if allows[r]:
                    allowed = True
        risk[i] = 1.0 - clean
        voices[i] = BY_RULES
        for level in range(3):
            if risk[i] >= thresholds[type_index[i], level]:
                worst = max(worst, level + 1)
                if level + 1 == CHALLENGE:
                    voices[i] = BY_RISK
        if allowed:
            for column in blocked:
                if cells[column, i] == 1.0:
                    allowed = False
        base[i] = worst_firm if allowed else worst
        if allowed:
            voices[i] = LOWERED


@jit_allocating
def name_decisions(claims: Words, contents: Words, salt: Words, names: Words) -> None:
    """Write each decision's 128-bit id (n, 2): a hash of event, content and (by the salt) policy."""
    parts = np.empty(4, np.uint64)
    for i in range(claims.shape[0]):
        parts[0] = claims[i, 0]
        parts[1] = claims[i, 1]
        parts[2] = contents[i, 0]
        parts[3] = contents[i, 1]
        names[i, 0] = sip24_words(salt[0], salt[1], parts, 4)
        names[i, 1] = sip24_words(salt[1], salt[0], parts, 4)
