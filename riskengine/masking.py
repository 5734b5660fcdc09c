"""What the journal may keep of an event: everything personal is replaced by its keyed hash.

What is personal is said by the policy that judged the event: another one may know a field as plain. Declared
fields are written by a kernel (journal/blocks.py), from the batch's own hashes; the others are masked here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from riskengine import hashing
from riskengine.definition import Definition
from riskengine.event import Batch, Event, Schema
from riskengine.hashing import Words
from riskengine.journal.blocks import (
    BOOL,
    HASHED,
    KEPT,
    NUMBER,
    PLACE,
    TIME,
    UNKNOWN,
    Int32s,
    pack_head,
)
from riskengine.kernel import jit
from riskengine.normal import tidy_text

__all__ = ["BOOL", "HASHED", "KEPT", "NUMBER", "PLACE", "TIME", "UNKNOWN", "Masking"]

NUMBER_SHOWN_MAX: Final = 10**9  # an undeclared whole number from here on may be a phone's or an account's
_ENVELOPE: Final = ("event_id", "type", "time", "follows")


@dataclass(frozen=True, eq=False, slots=True)
class Masking:
    """What the journal may keep of an event's fields, under one policy.

    Names are kept. Strings of entities, phones, addresses, user agents and undeclared fields become # and
    their hash (the batch's own for a declared field, so that equal values stay equal); places are rounded to
    a tenth of a degree; undeclared numbers are kept below NUMBER_SHOWN_MAX, and of anything else undeclared
    only what type it is of: a journal can always be written, whatever an event carries.
    """

    fields: tuple[Mapping[str, tuple[int, int]], ...]  # by event type: name to what is done, and its column
    sip: Words
    head: bytes  # of the blocks under this policy
    table: Int32s  # `fields` without the envelope, as the kernel reads them (blocks.Arrays.fields)
    counts: Int32s
    personal: tuple[frozenset[str], ...]  # by event type: declared fields that are not kept as they came

    @classmethod
    def compile(cls, definition: Definition, schema: Schema) -> Masking:
        """Tell what is personal in each event type of a definition."""
        personal = {name for entity in definition.entities.values() for name in entity.fields}
        personal.add("user_agent")
        kinds: dict[str, tuple[int, int]] = {}
        for name, field in definition.fields.items():
            if field.type in ("string", "phone", "ip"):
                hashed = name in personal or field.type != "string"
                kinds[name] = (HASHED if hashed else KEPT, schema.string_at[name])
            elif field.type == "location":
                kinds[name] = (PLACE, schema.number_at[f"{name}.lat"])
            else:
                kind = {"bool": BOOL, "time": TIME}.get(field.type, NUMBER)
                kinds[name] = (kind, schema.number_at[name])
        events = definition.events.values()
        names = sorted({name for event in events for name in event.fields})
        most = max((len(event.fields) for event in events), default=0)
        table = np.zeros((len(events), most, 3), np.int32)
        for t, event in enumerate(events):
            for f, name in enumerate(event.fields):
                table[t, f] = (names.index(name), *kinds[name])
        envelope = {"event_id": (KEPT, 0), "type": (KEPT, 0), "time": (TIME, 0), "follows": (KEPT, 0)}
        return cls(
            tuple({name: kinds[name] for name in event.fields} | envelope for event in events),
            schema.sip,
            pack_head(names, schema.types),
            table,
            np.array([len(event.fields) for event in events], np.int32),
            tuple(
                frozenset(name for name in event.fields if kinds[name][0] in (HASHED, PLACE))
                for event in events
            ),
        )

    def extras(self, batch: Batch) -> dict[int, tuple[int, bytes]]:
        """By row, where there is any: how many undeclared fields an event has, and these as MessagePack.

        Also `follows`. An event with as many names as declared values has nothing else.
        """
        found: dict[int, tuple[int, bytes]] = {}
        for i in self._suspects(batch):
            try:
                event = batch.raw[i]
                kept = self._undeclared_of(event, int(batch.type_index[i]))
            except Exception:  # a mapping of its own kind, which was read before and now fails
                kept = {}
            if batch.follows is not None and batch.follows[i] is not None:
                kept["follows"] = batch.follows[i]
            if kept:
                pairs = [msgspec.msgpack.encode(part) for pair in kept.items() for part in pair]
                found[i] = len(kept), b"".join(pairs)
        return found

    def personal_of(self, event: Event, type_index: int) -> dict[str, Any]:
        """What the journal does not keep in clear of an event: for whoever has the key (sealing.py)."""
        fields, personal = self.fields[type_index], self.personal[type_index]
        return {
            _name(name): _sayable(value)
            for name, value in event.items()
            if value is not None and (name in personal or name not in fields)
        }

    def _suspects(self, batch: Batch) -> Iterator[int]:
        """Rows that may have an undeclared field."""
        raw = batch.raw
        if not isinstance(raw, list | tuple):  # rows of an Arrow batch, each made when it is asked for
            yield from raw.undeclared([self.fields[t] for t in batch.type_index.tolist()])  # type: ignore[attr-defined]  # it is a columns.Rows
            return
        counts = np.empty(batch.n, np.int64)
        count_present(
            self.table, self.counts, batch.type_index, batch.stamped, batch.numbers, batch.str_len, counts
        )
        for i, n in enumerate(counts.tolist()):
            try:
                if len(raw[i]) != n:
                    yield i
            except Exception:  # as above
                yield i

    def _undeclared_of(self, event: Event, type_index: int) -> dict[str, Any]:
        fields = self.fields[type_index]
        return {
            _name(name): None if value is None else self._undeclared(value)
            for name, value in event.items()
            if name not in fields
        }

    def _undeclared(self, value: object) -> object:
        if isinstance(value, str):
            data = tidy_text(str(value)).encode("utf-8", "surrogatepass")  # nobody has looked at these
            return f"#{hashing.string_hash(data, self.sip):016x}"
        if type(value) is bool:
            return value
        if type(value) is float:
            return value if abs(value) < float("inf") else None  # as JSON has it
        if type(value) is int:
            if abs(value) < NUMBER_SHOWN_MAX:
                return value
            return f"#{hashing.string_hash(b'%x' % value, self.sip):016x}"
        return f"<{type(value).__name__}>"


@jit
def count_present(
    table: Int32s,
    counts: Int32s,
    type_index: Int32s,
    stamped: Any,
    numbers: Any,
    str_len: Int32s,
    out: Any,
) -> None:
    """Count the names that each event (n) came with, as far as its declared values tell."""
    for i in range(len(type_index)):
        kind = type_index[i]
        n = 2 if stamped[i] else 3  # event_id, type, time
        for f in range(counts[kind]):
            how, column = table[kind, f, 1], table[kind, f, 2]
            if how == KEPT or how == HASHED:
                n += 1 if str_len[i, column] >= 0 else 0
            else:
                n += 1 if numbers[i, column] == numbers[i, column] else 0
        out[i] = n


def _sayable(value: object) -> object:
    try:
        msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return f"<{type(value).__name__}>"
    return value


def _name(name: str) -> str:
    """A name that can be written: half a surrogate pair cannot."""
    return name if name.isascii() else name.encode("utf-8", "replace").decode()
