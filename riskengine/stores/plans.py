"""Values written under one plan, read under another: what is known of plans, and how records change over.

Cells are known by their definition: what both plans define alike keeps its history, and the rest of a value
stands for nothing to the plan that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from riskengine import layout, packing
from riskengine.features import CellSpec, FeatureSet
from riskengine.layout import E_RECORD, E_WIDTH, NONE, RECORD_MASK, SIGN_BIT, Int64s, Plan
from riskengine.stores import slabs, values
from riskengine.stores.memo import NOTHING
from riskengine.stores.resp import Bytes
from riskengine.stores.transition import Transition, blank, translate

MAGIC: Final = packing.MAGIC.to_bytes(2, "little")
TAG_HEX: Final = 10  # digits of a fingerprint that a record carries
PARTIALS_MAX: Final = 255  # ways in which records of other plans move one: a byte of a record tells them
OTHERS_MAX: Final = 1  # plans of which a value keeps a snapshot beside the writer's own


class LaidOut(msgspec.Struct, frozen=True, eq=False):
    """What of a policy's plan is needed to read what was written under it."""

    fingerprint: str
    entities: tuple[str, ...]
    entity_fields: Mapping[str, tuple[object, ...]]
    entity_slots: tuple[Mapping[tuple[int, str], int], ...]
    specs: tuple[tuple[CellSpec, ...], ...]
    limit_names: tuple[str, ...]
    plan: Plan
    flat: Int64s
    record_words: int

    @classmethod
    def of(cls, features: FeatureSet) -> LaidOut:
        """What is needed of a policy at hand. Names that are more than text become text."""
        return cls(
            features.fingerprint,
            features.entities,
            {name: (repr(fields),) for name, fields in features.entity_fields.items()},
            features.entity_slots,
            tuple(
                tuple(CellSpec((repr(spec.key),), spec.kind, spec.columns) for spec in specs)
                for specs in features.specs
            ),
            features.limit_names,
            features.plan,
            features.flat,
            features.record_words,
        )

    @property
    def number(self) -> int:
        """The fingerprint as a section carries it."""
        return int.from_bytes(bytes.fromhex(self.fingerprint), "little", signed=True)

    @property
    def tag(self) -> int:
        """What of the fingerprint a record carries."""
        return self.number & 0xFF_FFFF_FFFF

    def encode(self) -> bytes:
        """As bytes, to be kept for those who meet values of this plan."""
        tables = [(t.shape, t.astype("<i8").tobytes()) for t in self.plan if isinstance(t, np.ndarray)]
        return msgspec.msgpack.encode(
            _Encoded(
                self.fingerprint,
                self.entities,
                {name: str(fields[0]) for name, fields in self.entity_fields.items()},
                tuple([(*slot, at) for slot, at in slots.items()] for slots in self.entity_slots),
                tuple([(str(s.key[0]), s.kind, s.columns) for s in specs] for specs in self.specs),
                self.limit_names,
                tables,
                self.plan.slack_ms,
                self.record_words,
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> LaidOut:
        """Out of what `encode` made."""
        known = msgspec.msgpack.decode(data, type=_Encoded)
        tables: list[Any] = [np.frombuffer(t, "<i8").astype(np.int64).reshape(s) for s, t in known.tables]
        plan = Plan(**dict(zip(Plan._fields, [*tables, known.slack_ms], strict=True)))
        return cls(
            known.fingerprint,
            known.entities,
            {name: (fields,) for name, fields in known.entity_fields.items()},
            tuple({(kind, field): at for kind, field, at in slots} for slots in known.entity_slots),
            tuple(tuple(CellSpec((k,), kind, tuple(c)) for k, kind, c in specs) for specs in known.specs),
            known.limit_names,
            plan,
            plan.flatten(),
            known.record_words,
        )


class _Encoded(msgspec.Struct, frozen=True):
    fingerprint: str
    entities: tuple[str, ...]
    entity_fields: dict[str, str]
    entity_slots: tuple[list[tuple[int, str, int]], ...]
    specs: tuple[list[tuple[str, int, tuple[tuple[int, str, int], ...]]], ...]
    limit_names: tuple[str, ...]
    tables: list[tuple[tuple[int, ...], bytes]]
    slack_ms: int
    record_words: int


class Plans:
    """Every plan that was met, by its tag. `fetch` gets the bytes of one that was not, from the store."""

    def __init__(self, fetch: Callable[[str], bytes | None]) -> None:
        self._fetch = fetch
        self._by_tag: dict[int, LaidOut] = {}
        self._steps: dict[tuple[str, str], Transition] = {}
        self._partial: dict[str, _Partial] = {}

    def add(self, plan: LaidOut) -> None:
        """Know a plan."""
        self._by_tag[plan.tag] = plan

    def of(self, tag: int) -> LaidOut | None:
        """The plan with a tag; None where nobody knows it."""
        if tag not in self._by_tag:
            data = self._fetch(tag.to_bytes(5, "little").hex())
            if data is None:
                return None
            self._by_tag[tag] = LaidOut.decode(data)
        return self._by_tag[tag]

    def step(self, old: LaidOut, new: LaidOut) -> Transition:
        """From one plan to another."""
        names = old.fingerprint, new.fingerprint
        if names not in self._steps:
            self._steps[names] = Transition.between(old, new)
        return self._steps[names]

    def partial(self, new: LaidOut) -> Int64s:
        """The plan as records of others move it (Transition.partial), row after row: values.take_in's."""
        return self._partial_of(new).rows

    def _partial_of(self, new: LaidOut) -> _Partial:
        if new.fingerprint not in self._partial:
            self._partial[new.fingerprint] = _Partial(np.empty((0, len(new.flat)), np.int64), {})
        return self._partial[new.fingerprint]

    def converted(self, value: bytes, entity: str, new: LaidOut) -> bytes:
        """A value as it would be had all of it been written under one plan. ValueError for a broken value.

        Of records that others wrote byte 2 says by which row of `partial` they move the plan (0: by itself).
        """
        sections, tail = sections_of(value)
        own = sections.get(new.number)
        if own is None:
            own = b""
            for number, section in sections.items():
                old = self.of(number & 0xFF_FFFF_FFFF)
                if old is not None:
                    own = self._section(section, entity, old, new)
                    break
        records = [own]
        at = 0
        while at < len(tail):
            end = at + values.HEAD + 8 * tail[at + 1]
            records.append(self.adapted(tail[at:end], entity, new))
            at = end
        return b"".join(records)

    def others(self, value: bytes, entity: str, own: LaidOut) -> list[bytes]:
        """What a value is by the other plans that wrote in it, as sections: they may be in use still.

        No more than OTHERS_MAX: those whose records are the latest.
        """
        sections, tail = sections_of(value)
        tags = [number & 0xFF_FFFF_FFFF for number in sections]
        at = 0
        while at < len(tail):
            tag = int.from_bytes(tail[at + 3 : at + 8], "little")
            if tag in tags:
                tags.remove(tag)
            tags.append(tag)
            at += values.HEAD + 8 * tail[at + 1]
        made: list[bytes] = []
        for tag in reversed(tags):
            plan = self.of(tag)
            if tag != own.tag and plan is not None and entity in plan.entities and len(made) < OTHERS_MAX:
                made.append(self.folded(value, entity, plan))
        return [section for section in made if section]

    def folded(self, value: bytes, entity: str, plan: LaidOut) -> bytes:
        """The section of a plan that a value comes to; empty where it holds nothing. ValueError: broken."""
        own = self.converted(value, entity, plan)
        if not own:
            return b""
        e = plan.entities.index(entity)
        words, s, _, _ = self._unfolded(own, e, plan)
        return packed(plan, words, s, e) if s else b""

    def fold(self, value: bytes, entity: str, plan: LaidOut) -> tuple[Bytes, int]:
        """A value, converted, with what was granted marked in it (values.take_in), and where its tail begins.

        ValueError for a broken value.
        """
        own = self.converted(value, entity, plan)
        _, _, data, tail_at = self._unfolded(own, plan.entities.index(entity), plan)
        return data, tail_at

    def _unfolded(self, value: bytes, e: int, plan: LaidOut) -> tuple[Int64s, int, Bytes, int]:
        """Memory with a value's slab, where that is (0: nowhere), the value read, where its tail begins."""
        growth = int(plan.plan.entities[e, layout.E_GROWTH])
        words = np.zeros((1 << 12) + 64 * (len(value) + growth), np.int64)
        meta, table, old_table = (
            np.zeros(slabs.META_SIZE, np.int64),
            np.zeros(16, np.int64),
            np.zeros(2, np.int64),
        )
        slabs.lay_out(words, meta)
        tails, outcome = np.zeros((1, values.TAIL_SIZE), np.int64), np.empty(1, np.int64)
        data = np.frombuffer(bytearray(value), np.uint8)
        values.take_in(
            plan.flat, self.partial(plan), plan.tag, plan.number, words, meta, table, old_table, data,
            np.zeros(1, np.int64), np.array([len(value)]), np.zeros(1, np.int64), 1,
            np.array([[1, e, 0, 0]]), blank(plan)[np.newaxis], 0, 0, NOTHING, 0, 0, tails, outcome,
        )  # fmt: skip
        s = slabs.locate(meta, table, old_table, 1) if outcome[0] == values.FOLDED else 0
        return words, s, data, int(tails[0, values.SNAPSHOT_BYTES])

    def _section(self, section: bytes, entity: str, old: LaidOut, new: LaidOut) -> bytes:
        """A snapshot of one plan as another has it; empty where nothing of it is left."""
        if entity not in old.entities or entity not in new.entities:
            return b""
        before, now = old.entities.index(entity), new.entities.index(entity)
        step = self.step(old, new)
        if old.entity_fields[entity] != new.entity_fields[entity]:
            return b""
        words = np.zeros(1 << 10 | 64 * len(section), np.int64)
        meta, table, old_table = (
            np.zeros(slabs.META_SIZE, np.int64),
            np.zeros(16, np.int64),
            np.zeros(2, np.int64),
        )
        slabs.lay_out(words, meta)
        data = np.frombuffer(bytearray(section), np.uint8)
        s = slabs.create(old.flat, words, meta, table, old_table, 1, before, len(section))
        room = slabs.room_in(words, s)
        if packing.unpack(old.flat, data, packing.HEADER, len(section), words, s, before, room) < 0:
            raise ValueError("its snapshot is broken")
        meta[slabs.GENERATION] = 1
        keys = np.ones(1, np.int64)
        slabs.migrate(
            old.flat,
            new.flat,
            step.entities,
            step.cells,
            step.columns,
            0,
            words,
            meta,
            table,
            old_table,
            keys,
        )
        s = slabs.locate(meta, table, old_table, 1)
        return packed(new, words, s, now) if s else b""

    def adapted(self, record: bytes, entity: str, new: LaidOut) -> bytes:
        """A record as it would be under a plan; empty where it moves nothing there."""
        tag = int.from_bytes(record[3:8], "little")
        if tag == new.tag:
            return record
        old = self.of(tag)
        return b"" if old is None else self._record(record, entity, old, new)

    def _record(self, record: bytes, entity: str, old: LaidOut, new: LaidOut) -> bytes:
        """A record of one plan as another has it; empty where it moves nothing there."""
        if entity not in old.entities or entity not in new.entities:
            return b""
        before = old.entities.index(entity)
        words = np.frombuffer(record, "<i8", offset=values.HEAD).astype(np.int64)
        if record[0] == values.VOID:
            return b""
        if record[0] != values.RECORD:
            now = new.entities.index(entity)
            name = old.specs[before][record[2]].key
            places = [c for c, spec in enumerate(new.specs[now]) if spec.key == name]
            if not places or old.entity_fields[entity] != new.entity_fields[entity]:
                return b""
            return record[:2] + bytes(places) + new.tag.to_bytes(5, "little") + record[values.HEAD :]
        row = np.full(old.record_words, NONE, np.int64)
        first = int(old.plan.entities[before, E_RECORD])
        row[first : first + len(words)] = words
        mask = int(words[RECORD_MASK])
        changed = translate(old, new, before, row, mask)
        if changed is None:
            return b""
        out, moved, now = changed
        first, width = int(new.plan.entities[now, E_RECORD]), int(new.plan.entities[now, E_WIDTH])
        out[first + RECORD_MASK] = moved | (mask & (1 << SIGN_BIT))
        partial = self._number(old, new) if self.step(old, new).is_partial(new, now, moved) else 0
        head = bytes((values.RECORD, width, partial)) + new.tag.to_bytes(5, "little")
        return head + out[first : first + width].astype("<i8").tobytes()

    def _number(self, old: LaidOut, new: LaidOut) -> int:
        """By which row of `partial`, from 1 on, records of a plan move another."""
        known = self._partial_of(new)
        if old.fingerprint not in known.numbers:
            row = self.step(old, new).partial(new)
            same = np.flatnonzero((known.rows == row).all(axis=1))
            if not len(same):
                if len(known.rows) == PARTIALS_MAX:
                    raise ValueError(f"it has records of more than {PARTIALS_MAX} policies")
                known.rows = np.vstack((known.rows, row))
            known.numbers[old.fingerprint] = int(same[0]) + 1 if len(same) else len(known.rows)
        return known.numbers[old.fingerprint]


@dataclass(slots=True)
class _Partial:
    """One plan as records of others move it, and which row is whose (from 1 on)."""

    rows: Int64s
    numbers: dict[str, int]


def packed(plan: LaidOut, words: Int64s, s: int, e: int) -> bytes:
    """A slab as a section."""
    out: Bytes = np.empty(packing.packed_size_max(words, s), np.uint8)
    end = packing.pack(plan.flat, words, s, e, plan.number, out, 0)
    return out[:end].tobytes()


def sections_of(value: bytes) -> tuple[dict[int, bytes], bytes]:
    """The snapshots of a value by the number of their plan, and its tail. ValueError for a broken value."""
    sections: dict[int, bytes] = {}
    at = 0
    while value[at : at + 2] == MAGIC:
        end = at + packing.HEADER + packing.snapshot_size(value[at:])
        sections[int.from_bytes(value[at + 8 : at + 16], "little", signed=True)] = value[at:end]
        at = end
    return sections, value[at:]
