"""What is answered when there is no time to score: each event type's `fail:` says it, and a flag tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from riskengine.compiled import Policy
from riskengine.decision import Decision, name_decisions
from riskengine.judge import Result

ACTIONS: Final = {"open": "allow", "closed": "deny", "review": "review"}
DEADLINE: Final = "degraded:deadline"


def answer(policy: Policy, events: Sequence[Any], now_ms: int) -> list[Result]:
    """Decisions by contract alone: what is known of anybody plays no part. Bad events get their errors."""
    batch, errors = policy.schema.parse(events, now_ms)
    names = np.empty((batch.n, 2), np.uint64)
    name_decisions(batch.claim, batch.content, policy.salt, names)
    hexes = names.tobytes().hex()
    results: dict[int, Result] = dict(errors)
    for i, place in enumerate(batch.index.tolist()):
        kind = policy.definition.events[policy.schema.types[batch.type_index[i]]]
        results[place] = Decision(
            batch.ids[i], hexes[32 * i : 32 * i + 32], ACTIONS[kind.fail], 0.0, None, (), (), (), None,
            policy.fingerprint, (DEADLINE,), int(batch.time[i]),
        )  # fmt: skip
    return [results[i] for i in range(len(events))]
