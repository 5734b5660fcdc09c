"""Events as people send them become a `Batch`: arrays of normalised, checked and hashed cells.

`Schema.parse` takes mappings, `Schema.parse_columns` an Arrow batch; both give the same cells. What is wrong
with an event is told with all its problems, and the other events do not notice.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple, NoReturn

import msgspec
import numpy as np

from riskengine import hashing
from riskengine.definition import LABELS, Definition, Entity, Field
from riskengine.definition import Label as LabelName
from riskengine.errors import EventError, Problem
from riskengine.hashing import Bytes, Words, claim, derive_keys, event_hash
from riskengine.intake import (
    BAD,
    BOOL,
    GOOD,
    HEAD,
    HUGE_UNIT,
    IP,
    LATITUDE,
    LONGITUDE,
    PHONE,
    PLAIN,
    PLAN_HEAD,
    TEXT,
    TIME,
    UNIT,
    Bools,
    Cells,
    Floats,
    Int32s,
    Ints,
    finish,
)
from riskengine.kernel import Call, bind
from riskengine.normal import (
    IP_BYTES_MAX,
    MINOR_MAX,
    PHONE_BYTES_MAX,
    ip_text,
    phone_text,
    quantise,
    subnet,
    tidy_text,
    to_minor,
)
from riskengine.reading import ASCII_SPACE, Reading, read, read_label
from riskengine.rooms import Empty

__all__ = [
    "Batch", "Label", "Schema", "claim", "decode_line", "derive_keys", "event_hash", "to_minor",
]  # fmt: skip

PLANS_MAX: Final = 1024  # shapes of events remembered; then all are forgotten and learned anew
LONE_TEXT_MAX: Final = 8_192  # bytes of text of an event that is parsed by itself
KEYS_MAX: Final = 128  # an event with more names than this is not remembered
# np.empty takes 0.1 us longer for a type than for its dtype: there are twenty in a lone event's 12 us.
_I64, _I32, _U64, _F64, _BOOL = (np.dtype(name) for name in ("i8", "i4", "u8", "f8", "?"))
_NO_ENDS = np.empty(0, _I64)
_NO_PLANS = np.empty((0, 0), _I32)
_NO_VALUES = np.empty(0, _F64)
_NUMBER_TYPES = frozenset({int, float})
_BOOL_TYPES = frozenset({bool})
_ID_TYPES = frozenset({str})
_TEXT_TYPES = ("string", "phone", "ip")
_ENVELOPE = ("event_id", "time", "follows")
_QUICK, _EXACT, _SLOW = range(3)  # how closely events are looked at

_UNREADABLE = (
    Problem(
        "", "unreadable", "this event fails when it is read, or says something else each time", "plain values"
    ),
)

Event = Mapping[str, object]
Errors = dict[int, EventError]
_Packed = tuple[Bytes, int, Ints, Floats]


class Batch(msgspec.Struct, frozen=True, eq=False, gc=False):
    """n good events, S string columns, K number columns, E entities (`Schema` names them).

    A string lies at text[str_off : str_off + str_len] (UTF-8, normalised); str_len is -1 and str_hash 0 where
    it is absent. An absent number is NaN; column 0 is `time`; bools are 0.0 and 1.0; a number with a unit is
    minor / 10 ** digits exactly (see `to_minor`). An absent entity has key 0.
    """

    n: int
    ids: list[str]
    type_index: Int32s  # [n], into Schema.types
    time: Ints  # [n], ms
    stamped: Bools  # [n]: the event had no time and got `now`
    late: Bools  # [n]: time < now - lateness
    numbers: Floats  # [n, K]
    str_off: Ints  # [n, S]
    str_len: Int32s  # [n, S], bytes
    text: Bytes
    str_hash: Words  # [n, S]
    keys: Words  # [n, E]
    event_hash: Words  # [n]
    claim: Words  # [n, 2]
    content: Words  # [n, 2]: equal for a retry, and only for it
    follows: list[str | None] | None  # None where no event of the batch follows another
    follows_claim: Words  # [n, 2], 0 where it follows none
    raw: Sequence[Event]  # [n], as they were given
    index: Ints  # [n]: place in the input
    lasting: bool = False  # one lone event after another is parsed into these very arrays

    def claims(self) -> list[bytes]:
        """What stores know each event by."""
        data = self.claim.tobytes()
        return [data[at : at + 16] for at in range(0, len(data), 16)]

    def take(self, rows: Ints) -> Batch:
        """The batch of these rows alone; `text` is shared."""
        places = rows.tolist()
        follows = None if self.follows is None else [self.follows[i] for i in places]
        return Batch(
            len(places), [self.ids[i] for i in places], self.type_index[rows], self.time[rows],
            self.stamped[rows], self.late[rows], self.numbers[rows], self.str_off[rows], self.str_len[rows],
            self.text, self.str_hash[rows], self.keys[rows], self.event_hash[rows], self.claim[rows],
            self.content[rows], follows if follows and any(follows) else None, self.follows_claim[rows],
            [self.raw[i] for i in places], self.index[rows],
        )  # fmt: skip


class Room(NamedTuple):
    """Arrays that a batch of n events is parsed into. A lone event would spend a fifth of its time on them.

    A batch parsed into a room is good until the next one is.
    """

    cells: Cells
    text: bytearray  # of a lone event
    text_view: Bytes
    head: bytearray  # of a lone event: `now`, then `sizes`, then its values
    values: Floats
    sizes: Ints  # of `intake.finish`
    lone: _Lone
    places: Ints  # 0 to n - 1
    now: Ints
    time: Ints
    stamped: Bools
    late: Bools
    str_hash: Words
    keys: Words
    event_hash: Words
    claim: Words
    content: Words
    follows_claim: Words


class _Lone:
    """What is the same for every lone event that is parsed into a room: its batch, and the kernel's call."""

    __slots__ = ("batch", "finish", "ids", "plans", "raw")

    def __init__(self) -> None:
        self.ids = [""]
        self.raw: list[Event] = [{}]
        self.plans = _NO_PLANS  # that `finish` is bound to
        self.finish: Call | None = None
        self.batch: Batch | None = None


class Label(msgspec.Struct, frozen=True, gc=False):
    """What became known of an event. `time` (ms) is when it became known; None means now."""

    event_id: str
    label: LabelName
    time: int | None = None
    source: str | None = None

    @classmethod
    def parse(cls, record: object) -> Label:
        """A label from its record (`event_id`, `label`, `time`, `source`). EventError tells all problems."""
        values, problems = read_label(record, LABELS)
        if problems:
            raise EventError(problems)
        return cls(**values)


def decode_line(line: bytes) -> Event:
    """One line of JSON as a mapping. EventError where it is no JSON or no object."""
    try:
        event = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # msgspec tells the place, never the text.
        message = f"this is not JSON: {error}"
        raise EventError([Problem("", "json", message, "a JSON object", f"{len(line)} bytes")]) from None
    if not isinstance(event, dict):
        found = type(event).__name__
        raise EventError([Problem("", "not-an-object", "a line is one JSON object", "object", found)])
    return event


class Schema:
    """What the events of a policy look like, compiled: see `Batch` for what parsing gives.

    `sip` holds the tenant's SipHash keys. Parsing is safe from several threads at once.
    """

    def __init__(self, definition: Definition, key: bytes) -> None:
        fields = definition.fields
        self.definition: Final = definition
        self.types: Final = tuple(definition.events)
        self.strings: Final = tuple(name for name in sorted(fields) if fields[name].type in _TEXT_TYPES)
        self.numbers: Final = ("time", *_number_columns(fields))
        self.entities: Final = tuple(definition.entities)
        self.type_at: Final = {name: at for at, name in enumerate(self.types)}
        self.string_at: Final = {name: at for at, name in enumerate(self.strings)}
        self.number_at: Final = {name: at for at, name in enumerate(self.numbers)}
        self.entity_at: Final = {name: at for at, name in enumerate(self.entities)}
        self.sip: Final = derive_keys(key, definition.tenant)
        # By field: which event types may carry it.
        self.declared: Final[Mapping[str, Bools]] = {
            name: np.array([name in event.fields for event in definition.events.values()]) for name in fields
        }
        self._tables = _Tables.compile(self)
        self._plans = _Plans()
        kinds = [fields[name].type for name in self.strings]
        # Room for new spellings, an event: every address and phone may need one.
        self._tail = kinds.count("ip") * IP_BYTES_MAX + kinds.count("phone") * PHONE_BYTES_MAX

    @classmethod
    def compile(cls, definition: Definition, key: bytes) -> Schema:
        """Compile what `definition` says of fields, events and entities, for the hash key `key`.

        ValueError for an entity over a field that is neither text nor, in a composite one, a number with a
        unit: `check` refuses such a policy.
        """
        return cls(definition, key)

    def text_hash(self, value: str) -> int:
        """The `str_hash` of a string value, normalised as text; 0 for a blank one."""
        return hashing.string_hash(tidy_text(value).encode(), self.sip)

    def entity_key(self, entity: str, value: str | Sequence[str]) -> int:
        """The key of one entity by its value (composite: its values), as `Batch.keys` has it; 0 if missing.

        A subnet takes any address of it. Raises KeyError for an unknown entity, ValueError for another
        number of values than the entity has fields and for a number that is none.
        """
        defined = self.definition.entities[entity]
        values = (value,) if isinstance(value, str) else tuple(value)
        if len(values) != len(defined.fields):
            raise ValueError(
                f"entity {entity} is made of {', '.join(defined.fields)}: {len(values)} values given"
            )
        parts = [self.normal(name, part) for name, part in zip(defined.fields, values, strict=True)]
        if defined.derive == "subnet24":
            return hashing.entity_key(entity, [subnet(part) for part in parts], self.sip)
        words = [
            self._number_word(name, part) if name in self.number_at else part.encode()
            for name, part in zip(defined.fields, parts, strict=True)
        ]
        return hashing.entity_key(entity, words, self.sip)

    def _number_word(self, name: str, text: str) -> int:
        """What a number is hashed as in a composite entity: the bits of its value in units, and its name."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not abs(value) <= float(MINOR_MAX):
            raise ValueError(f"{name} is a number, and its value is none: write it as 19.90")
        digits = self.definition.fields[name].digits or 0
        minor = quantise(value, digits)
        units = minor / 10**digits if digits >= 0 else float(minor * 10**-digits)
        bits = int(np.float64(units + 0.0).view(np.uint64))
        return hashing.name_hash("field", name, self.sip) ^ bits

    def nothing(self, now: int) -> Batch:
        """One event without a field, to look at the world with."""
        empty, _ = self.parse((), now)
        arrays = {
            name: np.zeros((1, *value.shape[1:]), value.dtype)
            for name in empty.__struct_fields__
            if isinstance(value := getattr(empty, name), np.ndarray) and name != "text"
        }
        arrays["numbers"][:] = np.nan
        arrays["str_len"][:] = -1
        arrays["time"][:] = now
        return msgspec.structs.replace(empty, n=1, ids=["-"], raw=[{}], **arrays)

    def normal(self, name: str, value: str) -> str:
        """The normalised text of a string, phone or ip field; a number's as it is."""
        if name in self.number_at:
            return value.strip()
        return self._spell(name, value)

    def parse(
        self, events: Sequence[Event], now: int | Ints, room: Room | None = None
    ) -> tuple[Batch, Errors]:
        """Parse events as at `now` (ms; one, or int64[n]): the good ones, and by place what is wrong.

        The batch is made in `room` where one is given.
        """
        if len(self._plans.made) > PLANS_MAX:
            self._plans = _Plans()
        if room is None:
            room = self.room(len(events))
        elif len(events) == 1:
            lone = self._parse_one(events[0], now, room)
            if lone is not None:
                return lone, {}
        nows = _nows(now, room.now)
        for care in (_QUICK, _EXACT, _SLOW):
            found = _Gathered(self._plans)
            found.gather(self, events, nows, care)
            packed = found.pack(self._tail)
            if packed is not None:
                break
        else:  # read slowly, every value is what it seems, unless an event says something else each time
            found, packed = self._gather_apart(events, nows)
        text, used, ends, values = packed
        raw = list(events)
        index = room.places
        if found.errors:
            index = np.delete(index, list(found.errors))
            raw = [raw[i] for i in index.tolist()]
            nows = nows[index]
            room = self.room(len(raw))

        plans = found.plans.rows(PLAN_HEAD + len(self.strings) + 2 * len(self.numbers) + 2)
        filled = (plans, values, len(found.numbers), ends)
        follows = found.all_follows()
        batch = self._finish(room, filled, text, used, nows, found.ids, follows, raw, index, found.errors)
        return batch, found.errors

    def _parse_one(self, event: Event, now: int | Ints, room: Room) -> Batch | None:
        """`parse` for one event of a shape met before, all as it should be; else None.

        It does what _Gathered does for many, whose lists took 3.5 of a lone event's 13 us.
        """
        lone = room.lone
        if not isinstance(now, int):
            if now.shape != room.now.shape:
                return None
            now = int(now[0])
        try:
            kind = event["type"]
            plan = self._plans.shapes[tuple(event)][kind]
            if plan is None or plan.follows:
                return None
            found = plan.get(event)
            strings = found[: plan.texts]
            numbers = found[plan.texts : plan.numbers]
            for place in found[plan.bools :]:
                numbers += (place["lat"], place["lon"])
            flags = found[plan.numbers : plan.bools]
            text = "\0".join(strings).encode()
            used = len(text)
            if (
                type(strings[0]) is not str
                or not _NUMBER_TYPES.issuperset(map(type, numbers))
                or (flags and not _BOOL_TYPES.issuperset(map(type, flags)))
                or text.count(0) != len(strings) - 1
                or used > LONE_TEXT_MAX
            ):
                return None
            plan.pack_into(room.head, 0, now, len(numbers), used, plan.index, *numbers, *flags)
        except Exception:  # as in `_Gathered.gather`: looked at closely, it is told what is wrong
            return None
        room.text[:used] = text
        plans = self._plans.rows(PLAN_HEAD + len(self.strings) + 2 * len(self.numbers) + 2)
        if plans is not lone.plans or lone.finish is None:
            lone.plans = plans
            lone.finish = bind(finish, *self._finishing(room, plans, room.values, _NO_ENDS, room.text_view))
            if lone.batch is None:
                lone.batch = _batch(room, 1, lone.ids, None, room.text_view, lone.raw, room.places, True)
        wanted, _, bad = lone.finish()
        lone.ids[0] = strings[0]
        lone.raw[0] = event
        if not wanted and not bad:
            return lone.batch
        if bad and not wanted:
            return None
        errors: Errors = {}
        filled = (plans, room.values, len(numbers), _NO_ENDS)
        batch = self._finish(
            room, filled, room.text_view, used, room.now, [strings[0]], None, (event,), room.places, errors
        )
        return None if errors else batch

    def _gather_apart(self, events: Sequence[Event], nows: Ints) -> tuple[_Gathered, _Packed]:
        """Gather slowly what each event says by itself, and leave out those that nothing can be made of."""
        left = list(events)
        for i, event in enumerate(events):
            alone = _Gathered(self._plans)
            alone.gather(self, [event], nows[i : i + 1], _SLOW)
            if alone.pack(0) is None:
                left[i] = _Unreadable()
        found = _Gathered(self._plans)
        found.gather(self, left, nows, _SLOW)
        packed = found.pack(self._tail)
        if packed is None:  # what was sound alone is not any more: refuse them all rather than guess
            found = _Gathered(self._plans)
            found.gather(self, [_Unreadable()] * len(events), nows, _SLOW)
            packed = found.pack(self._tail)
        assert packed is not None  # it is empty
        return found, packed

    def parse_columns(self, events: Any, now: int | Ints) -> tuple[Batch, Errors]:
        """Parse the rows of an Arrow record batch or table; else as `parse`.

        The columns are fields: strings, numbers, bools, timestamps with a time zone, a location as a struct
        of lat and lon; nulls are absent. ValueError where two columns have one name.
        """
        from riskengine.columns import Columns, Rows, as_record_batch  # pyarrow takes 0.2 s to import

        batch = as_record_batch(events)
        n = batch.num_rows
        room = self.room(n)
        columns = Columns(self, batch, room.cells)
        columns.fill()
        tail = n * self._tail + 1
        text = columns.text(tail)
        errors: Errors = {}
        parsed = self._finish(
            room, (_NO_PLANS, _NO_VALUES, 0, _NO_ENDS), text, len(text) - tail, _nows(now, room.now),
            columns.ids, columns.follows, Rows(batch), room.places, errors,
        )  # fmt: skip
        return parsed, errors

    def room(self, n: int, empty: Empty = np.empty) -> Room:
        """Room for a batch of n events."""
        strings, columns = len(self.strings), len(self.numbers)
        cells = Cells.room(n, strings, columns, empty)
        text = bytearray(LONE_TEXT_MAX + self._tail + 1 if n == 1 else 0)
        head = bytearray(24 + (8 * (1 + columns) if n == 1 else 0))
        now = np.frombuffer(head, _I64, 1) if n == 1 else empty(n, _I64)
        return Room(
            cells, text, np.frombuffer(text, np.uint8), head, np.frombuffer(head, _F64, -1, 24),
            np.frombuffer(head, _I64, 2, 8), _Lone(), np.arange(n), now, empty(n, _I64),
            empty(n, _BOOL), empty(n, _BOOL),
            empty((n, strings), _U64), empty((n, len(self.entities)), _U64), empty(n, _U64),
            empty((n, 2), _U64), empty((n, 2), _U64), empty((n, 2), _U64),
        )  # fmt: skip

    def _finish(
        self, room: Room, filled: tuple[Int32s, Floats, int, Ints], text: Bytes, used: int, now: Ints,
        ids: list[str], follows: list[str | None] | None, raw: Sequence[Event], index: Ints, errors: Errors,
    ) -> Batch:  # fmt: skip
        """Settle all rows, with Python's help where a kernel asks for it; leave out what is bad."""
        n = len(raw)
        cells = room.cells
        plans, values, room.sizes[0], ends = filled
        helped = False
        while True:
            room.sizes[1] = used
            wanted, used, bad = finish(*self._finishing(room, plans, values, ends, text, now, helped))
            if not wanted:
                break
            text, used = self._help(cells, text, cells.scratch[5 * n : 5 * n + wanted].tolist(), raw)
            helped = True
        batch = _batch(room, n, ids, follows, text, raw, index)
        if not bad:
            return batch
        state = cells.scratch[:n]
        for i in np.flatnonzero(state == BAD).tolist():
            errors[int(index[i])] = EventError(_problems(self.definition, raw[i], int(now[i])))
        return batch.take(np.flatnonzero(state == GOOD))

    def _finishing(
        self, room: Room, plans: Int32s, values: Floats, ends: Ints, text: Bytes, now: Ints | None = None,
        helped: bool = False,
    ) -> tuple[Any, ...]:  # fmt: skip
        """What `finish` is called with."""
        tables = self._tables
        cells, *_, time, stamped, late, str_hash, keys, hashed, claims, content, follows_claim = room
        return (
            tables.spec, tables.hashes, tables.powers, plans, values, room.sizes, ends, text,
            room.now if now is None else now, helped, cells.type_index, cells.str_off, cells.str_len,
            cells.numbers, cells.scratch, cells.bits, cells.words, cells.groups, cells.network, time, stamped,
            late, str_hash, keys, hashed, claims, content, follows_claim,
        )  # fmt: skip

    def _help(
        self, cells: Cells, text: Bytes, wanted: Iterable[int], raw: Sequence[Event]
    ) -> tuple[Bytes, int]:
        """Settle the cells that a kernel cannot: rare scripts, most phones, decimals next to a half.

        Returns the text with their spellings and room for the kernel's own behind, and where this begins.
        """
        strings = len(self.strings)
        extra: list[bytes] = []
        end = len(text)
        for cell in wanted:
            i, column = divmod(cell, strings + len(self.numbers))
            if column < strings:
                off, size = cells.str_off[i, column], cells.str_len[i, column]
                spelt = self._spell(self.strings[column], text[off : off + size].tobytes().decode()).encode()
                cells.str_off[i, column], cells.str_len[i, column] = end, len(spelt)
                extra.append(spelt)
                end += len(spelt)
            else:
                name = self.numbers[column - strings]
                digits = self.definition.fields[name].digits
                assert digits is not None  # only a number with a unit has halves
                minor = quantise(_exact(raw[i], name, float(cells.numbers[i, column - strings])), digits)
                cells.numbers[i, column - strings] = (
                    minor / 10**digits if digits >= 0 else minor * 10.0**-digits
                )
        room = bytes(len(raw) * self._tail + 1)
        return np.concatenate((text, np.frombuffer(b"".join(extra) + room, np.uint8))), end

    def _spell(self, name: str, value: str) -> str:
        text = tidy_text(value)
        match self.definition.fields[name].type:
            case "phone":
                return phone_text(text, self.definition.country)
            case "ip":
                return ip_text(text)
            case _:
                return text


def _batch(
    room: Room, n: int, ids: list[str], follows: list[str | None] | None, text: Bytes, raw: Sequence[Event],
    index: Ints, lasting: bool = False,
) -> Batch:  # fmt: skip
    """The events that a room was filled with."""
    cells, *_, time, stamped, late, str_hash, keys, hashed, claims, content, follows_claim = room
    return Batch(
        n, ids, cells.type_index, time, stamped, late, cells.numbers, cells.str_off, cells.str_len, text,
        str_hash, keys, hashed, claims, content, follows, follows_claim, raw, index, lasting,
    )  # fmt: skip


class _Tables(NamedTuple):
    """A schema as the kernels read it (intake.py says how)."""

    spec: Ints
    hashes: Words  # 4 keys, then the hash of each name: type, string and number column, entity
    powers: Floats  # 10 ** |digits|

    @classmethod
    def compile(cls, schema: Schema) -> _Tables:
        definition = schema.definition
        fields = definition.fields
        strings, columns = len(schema.strings), len(schema.numbers)
        string_kinds = [{"phone": PHONE, "ip": IP}.get(fields[name].type, TEXT) for name in schema.strings]
        number_kinds = [TIME, *(_number_kind(fields, name) for name in schema.numbers[1:])]

        tail: list[int] = []
        base = HEAD + strings + columns + 2 * len(schema.types) + len(schema.entities)
        required: list[int] = []
        for event in definition.events.values():
            columns_needed = [
                at
                for name in event.required
                if name in event.fields
                for at in _columns_of(schema, fields[name])
            ]
            required += [base + len(tail), len(columns_needed)]
            tail += columns_needed
        entities: list[int] = []
        for entity in definition.entities.values():
            entities.append(base + len(tail))
            tail += [int(entity.derive == "subnet24"), len(entity.fields)]
            tail += [_component(schema, entity, field_name) for field_name in entity.fields]
        at_strings = HEAD
        at_numbers = at_strings + strings
        at_required = at_numbers + columns
        at_entities = at_required + len(required)
        head = [
            strings, columns, len(entities), int(definition.country == "CN"), definition.lateness_ms,
            definition.skew_ms, at_strings, at_numbers, at_required, at_entities,
        ]  # fmt: skip
        fields_in_order = (*schema.strings, *schema.numbers)
        named = (("type", schema.types), ("field", fields_in_order), ("entity", schema.entities))
        hashes = [hashing.name_hash(kind, name, schema.sip) for kind, names in named for name in names]
        digits = [fields[name].digits if name in fields else None for name in schema.numbers]
        return cls(
            np.array([*head, *string_kinds, *number_kinds, *required, *entities, *tail], _I64),
            np.concatenate((schema.sip, np.array(hashes, _U64))),
            np.array([10.0 ** abs(d or 0) for d in digits]),
        )


class _Plan:
    """How to read the events of one shape: which values, in which order, and where they belong."""

    __slots__ = ("bools", "follows", "get", "index", "numbers", "pack_into", "places", "row", "texts")

    def __init__(self, schema: Schema, index: int, reading: Reading) -> None:
        assert reading.type is not None  # a reading without problems has a type
        values = reading.values
        fields = schema.definition.fields
        strings = len(schema.strings)
        texts = [("event_id", strings)]
        if "follows" in values:
            texts.append(("follows", strings + 1))
        numbers: list[tuple[str, int]] = []
        bools: list[tuple[str, int]] = []
        places: list[tuple[str, int]] = []
        for name in ("time", *reading.type.fields):
            if name not in values:
                continue
            kind = "time" if name == "time" else fields[name].type
            if kind in _TEXT_TYPES:
                texts.append((name, schema.string_at[name]))
            elif kind == "location":
                places.append((name, schema.number_at[f"{name}.lat"]))
            elif kind == "bool":
                bools.append((name, schema.number_at[name]))
            elif type(values[name]) is str:
                texts.append((name, strings + 2 + schema.number_at[name]))
            else:
                numbers.append((name, schema.number_at[name]))
        self.index = index
        self.follows = "follows" in values
        self.places = tuple(name for name, _ in places)
        # One call for all values: first texts, where numbers end, where bools end; behind these are places.
        self.get = _getter([*(name for name, _ in (*texts, *numbers, *bools)), *self.places])
        self.texts = len(texts)
        self.numbers = self.texts + len(numbers)
        self.bools = self.numbers + len(bools)
        of_numbers = [*(at for _, at in numbers), *(at + j for _, at in places for j in (0, 1))]
        self.pack_into = struct.Struct(f"3q{1 + len(of_numbers) + len(bools)}d").pack_into
        targets = [*(at for _, at in texts), *of_numbers, *(at for _, at in bools)]
        self.row = [schema.type_at[reading.type.name], len(texts), len(of_numbers), len(bools), *targets]

    def numbers_of(self, found: tuple[Any, ...]) -> tuple[Any, ...]:
        """Of what `get` found, the numbers, then latitude and longitude of each place."""
        numbers = found[self.texts : self.numbers]
        for place in found[self.bools :]:
            numbers += (place["lat"], place["lon"])
        return numbers


class _Plans:
    """The shapes of events met so far. A thread that still reads by old plans keeps them."""

    def __init__(self) -> None:
        # By names, then by type; None: look closer.
        self.shapes: dict[tuple[object, ...], dict[object, _Plan | None]] = {}
        self.exact: dict[tuple[object, ...], _Plan] = {}  # by type, names and the values' types
        self.made: dict[tuple[object, ...], _Plan] = {}  # by type, and names and types of what is read
        self._rows: Int32s = np.empty((0, 0), _I32)
        self._lock = threading.Lock()

    def plan(self, schema: Schema, reading: Reading) -> _Plan:
        assert reading.type is not None  # a reading without problems has a type
        shape = (reading.type.name, *reading.values, *map(type, reading.values.values()))
        plan = self.made.get(shape)
        if plan is None:
            with self._lock:
                plan = self.made.get(shape)
                if plan is None:
                    plan = _Plan(schema, len(self.made), reading)
                    self.made[shape] = plan
        return plan

    def remember(self, event: Event, reading: Reading, plan: _Plan) -> None:
        """Read events like this one by `plan`, if its names and types alone say that this is right."""
        if not reading.plain or len(event) > KEYS_MAX:
            return
        if len(self.exact) < 4 * PLANS_MAX:
            self.exact[_signature(event)] = plan
        kind, names = event["type"], tuple(event)
        if len(self.shapes) < 4 * PLANS_MAX or names in self.shapes:
            # Where a null stands, a value may stand in the next event of the same names.
            assert reading.type is not None  # a reading without problems has a type
            full = all(event.get(name) is not None for name in _ENVELOPE if name in event) and all(
                event[name] is not None for name in reading.type.fields if name in event
            )
            by_type = self.shapes.setdefault(names, {})
            by_type[kind] = plan if full and by_type.get(kind, plan) is plan else None

    def rows(self, width: int) -> Int32s:
        """All plans as the kernel reads them."""
        rows = self._rows
        if len(rows) < len(self.made):
            with self._lock:
                plans = sorted(self.made.values(), key=lambda plan: plan.index)
                rows = np.zeros((len(plans), width), _I32)
                for plan in plans:
                    rows[plan.index, : len(plan.row)] = plan.row
                self._rows = rows
        return rows


class _Gathered:
    """The values of a batch of events, one after another, in the order of each event's plan."""

    def __init__(self, plans: _Plans) -> None:
        self.plans = plans
        self.errors: Errors = {}
        self.ids: list[str] = []
        self.rows: list[int] = []  # each event's plan
        self.texts: list[str] = []
        self.numbers: list[int | float] = []
        self.bools: list[bool] = []
        self.follows: dict[int, str] = {}

    def gather(self, schema: Schema, events: Sequence[Event], nows: Ints, care: int) -> None:
        """Take the values of every event.

        An event is known by its type and names: that their values have the types of the first such event is
        seen later, for all at once, in `pack` (types in the signature of each event: 1.5 us more an event).
        """
        shapes = self.plans.shapes if care == _QUICK else {}
        ids, rows, texts, numbers, bools = self.ids, self.rows, self.texts, self.numbers, self.bools
        for i, event in enumerate(events):
            try:
                kind = event["type"]  # first: what is no mapping may have no end
                plan = shapes[tuple(event)][kind]
                if plan is not None:
                    found = plan.get(event)
                    own = plan.numbers_of(found)
            except Exception:  # whatever is no mapping fails here in its own way
                plan = None
            if plan is None:
                try:
                    closer = self._look(schema, event, int(nows[i]), care)
                    if isinstance(closer, EventError):
                        self.errors[i] = closer
                        continue
                    plan, event = closer
                    found = plan.get(event)
                    own = plan.numbers_of(found)
                except Exception:  # a mapping of its own kind, which fails, or which changes as it is read
                    self.errors[i] = EventError(_UNREADABLE)
                    continue
            if plan.follows:
                self.follows[len(ids)] = found[1]
            ids.append(found[0])
            rows.append(plan.index)
            texts += found[: plan.texts]
            numbers += own
            bools += found[plan.numbers : plan.bools]

    def _look(self, schema: Schema, event: Event, now: int, care: int) -> tuple[_Plan, Event] | EventError:
        """The plan of one event by the types of its values, or by reading it."""
        if care < _SLOW and type(event) is dict:
            try:
                plan = self.plans.exact[_signature(event)]
            except (KeyError, TypeError):
                plan = None
            if plan is not None and all(_is_plain_place(event[name]) for name in plan.places):
                return plan, event
        reading = read(schema.definition, event, now)
        if reading.problems:
            return EventError(reading.problems)
        plan = self.plans.plan(schema, reading)
        self.plans.remember(event, reading, plan)
        return plan, reading.values

    def pack(self, room: int) -> _Packed | None:
        """What `intake.finish` wants: all texts and `room` bytes an event, how much is used, ends, values.

        None if a value has not the type its plan wants.
        """
        if not (
            _NUMBER_TYPES.issuperset(map(type, self.numbers))
            and _BOOL_TYPES.issuperset(map(type, self.bools))
            and _ID_TYPES.issuperset(map(type, self.ids))
        ):
            return None
        try:
            # Joining asks every item whether it is a str. Looking for the ends in a kernel is 0.05 us a
            # string cheaper than asking each for its length.
            text = bytearray("\0".join(self.texts).encode())
            # struct packs floats a third faster than np.fromiter, and refuses alike what is no float64.
            items = self.rows + self.numbers + self.bools
            values = np.frombuffer(bytearray(struct.pack(f"{len(items)}d", *items)), _F64)
        except (TypeError, UnicodeEncodeError, OverflowError, struct.error):
            return None
        ends = _NO_ENDS
        if text.count(0) != len(self.texts) - 1:
            ends = np.cumsum([len(text.encode()) + 1 for text in self.texts], dtype=_I64) - 1
        used = len(text)
        text += bytes(len(self.rows) * room + 1)
        return np.frombuffer(text, np.uint8), used, ends, values

    def all_follows(self) -> list[str | None] | None:
        follows = {i: text for i, text in self.follows.items() if text.strip(ASCII_SPACE)}
        return [follows.get(i) for i in range(len(self.ids))] if follows else None


class _Unreadable(dict[str, object]):
    """What stands for an event that nothing can be made of."""

    def get(self, name: str, default: object = None) -> NoReturn:
        raise KeyError(name)


def _problems(definition: Definition, event: Event, now: int) -> Sequence[Problem]:
    """What is wrong with an event that a kernel refused."""
    try:
        return read(definition, event, now).problems or _UNREADABLE
    except Exception:  # as in `_Gathered.gather`
        return _UNREADABLE


def _exact(event: Event, name: str, number: float) -> int | float:
    """The whole number that a cell was made of, where it was one: a float64 may be a little off."""
    try:
        given = event[name]
        return int(given) if isinstance(given, int | np.integer) and float(given) == number else number
    except Exception:  # as in `_Gathered.gather`
        return number


def _signature(event: Event) -> tuple[object, ...]:
    return (event["type"], *event, *map(type, event.values()))


def _is_plain_place(place: object) -> bool:
    return (
        type(place) is dict
        and type(place.get("lat")) in _NUMBER_TYPES
        and type(place.get("lon")) in _NUMBER_TYPES
    )


def _getter(names: Sequence[str]) -> Callable[[Event], tuple[Any, ...]]:
    """The values of these names as a tuple, also where it is one or none."""
    if not names:
        return lambda event: ()
    if len(names) == 1:
        name = names[0]
        return lambda event: (event[name],)
    return itemgetter(*names)


def _nows(now: int | Ints, out: Ints) -> Ints:
    if not isinstance(now, np.ndarray):
        out.fill(now)
    elif now.shape != out.shape:
        raise ValueError(f"{out.size} events need {out.size} values of now, not {now.shape}")
    else:
        out[:] = now
    return out


def _number_columns(fields: Mapping[str, Field]) -> list[str]:
    names: list[str] = []
    for name in sorted(fields):
        if fields[name].type == "location":
            names += [f"{name}.lat", f"{name}.lon"]
        elif fields[name].type not in _TEXT_TYPES:
            names.append(name)
    return names


def _number_kind(fields: Mapping[str, Field], column: str) -> int:
    if column not in fields:
        return LATITUDE if column.endswith(".lat") else LONGITUDE
    field = fields[column]
    if field.digits is not None:
        return UNIT if field.digits >= 0 else HUGE_UNIT
    return {"bool": BOOL, "time": TIME}.get(field.type, PLAIN)


def _columns_of(schema: Schema, field: Field) -> list[int]:
    """The columns of a field as `required` counts them: strings first, then numbers."""
    if field.type in _TEXT_TYPES:
        return [schema.string_at[field.name]]
    names = [f"{field.name}.lat", f"{field.name}.lon"] if field.type == "location" else [field.name]
    return [len(schema.strings) + schema.number_at[name] for name in names]


def _component(schema: Schema, entity: Entity, name: str) -> int:
    field = schema.definition.fields[name]
    if field.digits is not None and len(entity.fields) > 1:
        return len(schema.strings) + schema.number_at[name]
    if name not in schema.string_at:
        raise ValueError(f"entity {entity.name} is made of {name}, which is a {field.type}; it must be text")
    return schema.string_at[name]
