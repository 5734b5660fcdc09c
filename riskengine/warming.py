"""The first run on a machine compiles the kernels; on two cores, those of the store in a process of its own.

They go to the cache on disk (kernel.py says where), and are loaded from there. `python -m riskengine.warming`
is that process; followed by `shared` it is one for a shared store.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from riskengine import forest
from riskengine.compiled import Policy
from riskengine.decision import Verdict
from riskengine.event import Batch
from riskengine.features import Strings, Touches
from riskengine.kernel import is_cached
from riskengine.policy import load_definition
from riskengine.stores import reservations, slabs
from riskengine.stores.memory import NO_KEYS, NOTHING_HELD, SIZE_MIN, MemoryStore

POLICY: Final = """
policy: warming
model: none
entities: {user: user_id}
events: {visit: {required: [user_id]}}
features: {visits: {count: visit, by: user, over: 1d}}
"""


def is_cold(policy: Policy, shared: bool) -> bool:
    """Whether kernels will have to be compiled. Only a policy with a model needs those of models."""
    walks = policy.champion is not None or bool(policy.challengers)
    if not is_cached(slabs.settle) or (walks and not is_cached(forest.walk)):
        return True
    # A rehearsal of any policy comes to this one, and late.
    return shared and not is_cached(reservations.settle_given)


@contextmanager
def store_elsewhere(shared: bool) -> Iterator[None]:
    """Have the store's kernels compiled by another process while inside, where there is a core for it.

    That it fails is no failure: they are compiled here then, when they are first called.
    """
    helper = None
    if sys.executable and (os.cpu_count() or 1) > 1:
        helper = subprocess.Popen(
            [sys.executable, "-m", "riskengine.warming", *(["shared"] if shared else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    try:
        yield
        if helper is not None:
            helper.wait()
    finally:
        if helper is not None and helper.poll() is None:
            helper.kill()
            helper.wait()


def main(shared: bool) -> None:
    """Let a store observe, settle and amend nothing at all."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "policy.yaml").write_text(POLICY, encoding="utf-8")
        policy = Policy.compile(load_definition(folder), bytes(16))
    touches = nothing(policy)
    if shared:
        from riskengine.stores.scratch import Scratch

        other = Scratch((b"",)).store(policy.features)
        other.observe(touches)
        other.settle(touches, Verdict.room(0, len(policy.features.limit_names)))
        return
    store = MemoryStore(policy.features, SIZE_MIN)
    store.observe(touches)
    store.settle(touches, Verdict.room(0, len(policy.features.limit_names)))
    store.amend(policy.features.flat, NO_KEYS, NO_KEYS, NOTHING_HELD)  # for the first label


def nothing(policy: Policy) -> Touches:
    """What a batch without events touches, made without a kernel."""
    parsed, planned = policy.schema.room(0), policy.features.room(0)
    cells, *_, now, time, stamped, late, hashes, keys, event_hash, claim, content, follows = parsed
    batch = Batch(
        0, [], cells.type_index, time, stamped, late, cells.numbers, cells.str_off, cells.str_len,
        parsed.text_view, hashes, keys, event_hash, claim, content, None, follows, (), parsed.places,
    )  # fmt: skip
    strings = Strings(cells.str_off, cells.str_len, hashes, parsed.text_view)
    return Touches(
        batch, keys.view(np.int64), planned.records, planned.masks, planned.cells, planned.bits,
        planned.texts, strings, policy.tables({}), now,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:] == ["shared"])
