"""Events with everything personal in them replaced by its keyed hash, for the journal.

What is personal is said by the policy that judged the event: another one may know a field as plain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from riskengine import hashing
from riskengine.definition import Definition
from riskengine.event import Batch, Event, Schema
from riskengine.hashing import Words
from riskengine.normal import tidy_text

# What is done with a field's value.
KEPT, NUMBER, BOOL, TIME, PLACE, HASHED, UNKNOWN = range(7)
NUMBER_SHOWN_MAX: Final = 10**9  # an undeclared whole number from here on may be a phone's or an account's
_UNDECLARED: Final = (UNKNOWN, 0)


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

    @classmethod
    def compile(cls, definition: Definition, schema: Schema) -> Masking:
        """Tell what is personal in each event type of a definition."""
        personal = {name for entity in definition.entities.values() for name in entity.fields}
        personal.add("user_agent")
        envelope = dict.fromkeys(("event_id", "type", "follows"), (KEPT, 0)) | {"time": (TIME, 0)}
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
        fields = tuple({name: kinds[name] for name in event.fields} | envelope for event in events)
        return cls(fields, schema.sip)

    def mask(self, batch: Batch, events: Sequence[Event]) -> list[dict[str, Any]]:
        """The events (n) of a batch as JSON may say them; `events` are those of `batch.raw`."""
        strings, columns = batch.str_hash.shape[1], batch.numbers.shape[1]
        hashes = batch.str_hash.astype(">u8").tobytes().hex()
        lengths = batch.str_len.ravel().tolist()
        numbers = batch.numbers.ravel().tolist()
        masked = []
        for i, (event, type_index) in enumerate(zip(events, batch.type_index.tolist(), strict=True)):
            fields = self.fields[type_index]
            kept: dict[str, Any] = {}
            for name, value in event.items():
                kind, column = fields.get(name, _UNDECLARED)
                if value is None:
                    kept[_name(name)] = None
                elif kind == HASHED:
                    at = i * strings + column
                    kept[name] = f"#{hashes[16 * at : 16 * at + 16]}" if lengths[at] >= 0 else None
                elif kind == KEPT:
                    kept[name] = value if type(value) is str else str(value)
                elif kind == UNKNOWN:
                    kept[_name(name)] = self._undeclared(value)
                elif kind == PLACE:
                    at = i * columns + column
                    kept[name] = {"lat": round(numbers[at], 1), "lon": round(numbers[at + 1], 1)}
                elif type(value) is int or type(value) is float or type(value) is bool:
                    kept[name] = value
                else:  # a time as text, a number of numpy: as it was read
                    number = numbers[i * columns + column]
                    if number != number:
                        kept[name] = None
                    else:
                        kept[name] = (
                            number if kind == NUMBER else bool(number) if kind == BOOL else int(number)
                        )
            masked.append(kept)
        return masked

    def _undeclared(self, value: object) -> object:
        if isinstance(value, str):
            data = tidy_text(str(value)).encode("utf-8", "surrogatepass")  # nobody has looked at these
            return f"#{hashing.string_hash(data, self.sip):016x}"
        if type(value) is bool or type(value) is float:
            return value
        if type(value) is int:
            if abs(value) < NUMBER_SHOWN_MAX:
                return value
            return f"#{hashing.string_hash(b'%x' % value, self.sip):016x}"
        return f"<{type(value).__name__}>"


def _name(name: str) -> str:
    """A name that can be written: half a surrogate pair cannot."""
    return name if name.isascii() else name.encode("utf-8", "replace").decode()
