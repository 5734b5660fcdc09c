"""What every request of a shared store says under one plan and in one life of its data, made beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from riskengine.features import FeatureSet
from riskengine.layout import E_CELLS, E_RETENTION, E_WIDTH, L_CELL, L_ENTITY
from riskengine.stores import FRESH_MS_MIN, values, wire
from riskengine.stores.line import enter
from riskengine.stores.place import Place, kind_of
from riskengine.stores.plans import LaidOut
from riskengine.stores.resp import as_array, bulk
from riskengine.stores.traces import Traces
from riskengine.stores.undecided import UNDECIDED_MS

MARGIN_MS: Final = 60_000  # that clocks may differ by


class Terms:
    """Parts of requests as RESP has them, and for how long what is entered lives.

    `scripts` are what the server calls ours by, by name.
    """

    def __init__(self, features: FeatureSet, plan: LaidOut, place: Place, scripts: Mapping[str, str]) -> None:
        self.features, self.plan = features, plan
        self.fingerprint, self.tag = plan.number, plan.tag
        self.traces = Traces(features, 0)
        self.trace_bytes = (
            64 + 19 * len(features.entities) + 10 * features.record_words + 22 * len(features.limit_names)
        )
        self.kinds = np.frombuffer(b"".join(kind_of(name) for name in features.entities) + b"\0", np.uint8)
        slack_ms = features.plan.slack_ms
        self.lives_ms = [2 * int(row[E_RETENTION]) + slack_ms for row in features.plan.entities]
        self.entities_live = np.array(self.lives_ms, np.int64)
        self.fresh_ms = max(slack_ms, FRESH_MS_MIN)
        parts = range(len(place.tags))
        self.mask = len(parts) - 1
        self.prefixes = as_array(b"".join(place.within(part) for part in parts))
        self.prefix_size = len(place.within(0))
        self.opening = {
            name: as_array(b"$7\r\nEVALSHA\r\n" + bulk(sha.encode())) for name, sha in scripts.items()
        }
        self.entering = as_array(bulk(b"EVAL") + bulk(enter()))
        epochs = [bulk(place.epoch_name(part)) for part in parts]
        shared = [epochs[part] + bulk(place.within(part) + b"edits") for part in parts]
        self.epoch_keys, self.epoch_size = as_array(b"".join(epochs)), len(epochs[0])
        self.shared, self.shared_size = as_array(b"".join(shared)), len(shared[0])
        self.epoch, self.plain_epoch = as_array(bulk(place.epoch)), as_array(place.epoch)
        # The most that a transaction has at all, and of each event: its claim, and what entities get of it.
        names = self.prefix_size + 60
        widths = [int(row[E_WIDTH]) for row in features.plan.entities if row[E_WIDTH]]
        appended = sum(2 * names + 40 + values.HEAD + 8 * width for width in widths)
        self.transaction_bytes = 400 + len(self.shared) + len(self.entering) + len(self.prefixes)
        self.event_bytes = names + 60 + appended + len(features.limit_names) * values.RESERVATION
        # What is late is not counted: a partition's own claim need not outlive that.
        self.elsewhere_ms = self.fresh_ms + MARGIN_MS
        entities = b"".join(b"%014d" % ms for ms in self.lives_ms)
        self.lives = b"%d" % UNDECIDED_MS, b"%d" % self.elsewhere_ms, entities
        self.claims_there_ms = self.elsewhere_ms if self.mask else UNDECIDED_MS
        self.enter_for(UNDECIDED_MS)

    def enter_for(self, life_ms: int) -> None:
        """Enter claims for so long from now on: those concluded with their batch live as long as traces."""
        self.claims_live_s = -(-life_ms // 1000)
        lives = b"%d" % (1000 * self.claims_live_s), *self.lives[1:]
        self.lives_said = as_array(b"".join(map(bulk, lives)))

    def reservation(self, limit: int, time: int, claim: bytes, amount: int, most: int) -> bytes:
        """A record of what an event wants of a limit."""
        out = np.empty(values.RESERVATION, np.uint8)
        event, rest = np.frombuffer(claim, np.int64).tolist()
        wire.put_reservation(out, 0, self.cell(limit), self.tag, time, event, rest, amount, most)
        return out.tobytes()

    def release(self, limit: int, time: int, claim: bytes, amount: int, bucket: int) -> bytes:
        """A record of what an event gives back of a limit."""
        out = np.empty(values.BOOKING, np.uint8)
        event = int.from_bytes(claim[:8], "little", signed=True)
        wire.put_release(out, 0, self.cell(limit), self.tag, time, event, amount, bucket)
        return out.tobytes()

    def cell(self, limit: int) -> int:
        """Where a limit holds, among the cells of its entity."""
        plan = self.features.plan
        return int(plan.limits[limit, L_CELL] - plan.entities[int(plan.limits[limit, L_ENTITY]), E_CELLS])
