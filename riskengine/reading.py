"""One event read slowly and exactly: plain values of its declared fields, or all that is wrong with it.

`event.py` asks here about events of a new shape, about odd types (numpy scalars, datetimes, subclasses) and
about rows that a kernel marked bad. Problems never show a value that may be personal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np

from riskengine.definition import Definition, EventType, Field
from riskengine.errors import Problem, nearest
from riskengine.hashing import as_bytes
from riskengine.intake import ID_BYTES_MAX, TEXT_BYTES_MAX
from riskengine.normal import (
    MINOR_MAX,
    NO_TIME,
    TIME_MAX_MS,
    TIME_MIN_MS,
    parse_time,
    quantise,
    tidy_text,
    time_ms,
)

ASCII_SPACE = "\t\n\v\f\r\x1c\x1d\x1e\x1f "  # what the kernels trim
Plain = str | int | float | bool | Mapping[str, int | float]


@dataclass(frozen=True, slots=True)
class Reading:
    """What an event says, in exact built-in types and in the order of `Schema`, or why it cannot be scored.

    `plain` is whether `values` are the very objects of the event: its like can be read without asking.
    """

    type: EventType | None
    values: Mapping[str, Plain]
    problems: tuple[Problem, ...]
    plain: bool


class WrongError(Exception):
    """A value that is not what its field wants."""

    def __init__(self, code: str, expected: str, found: str, at: str = "") -> None:
        self.code, self.expected, self.found, self.at = code, expected, found, at


def read(definition: Definition, event: object, now: int) -> Reading:
    """Read one event as at `now` (epoch ms)."""
    if not isinstance(event, Mapping):
        problem = _problem("", "not-an-object", "an event is an object of names and values", "object", event)
        return Reading(None, {}, (problem,), False)
    problems = [
        _problem("", "key", "a name in this event is not a string", "string", key)
        for key in event
        if not isinstance(key, str)
    ]
    values: dict[str, Plain] = {}
    plain = type(event) is dict

    for name in ("event_id", "follows"):
        found = event.get(name)
        try:
            text = _id(found)
        except WrongError as wrong:
            problems.append(_explain(name, wrong))
            continue
        if text is not None:
            values[name] = text
            plain = plain and text is found
        if name == "event_id" and not (text and text.strip(ASCII_SPACE)):
            problems.append(
                Problem(
                    "/event_id",
                    "required",
                    "the event has no event_id: give each one of its own, and the same when it is sent again",
                    "string",
                    describe(found),
                )
            )

    kind = _type(definition, event.get("type"), problems)
    try:
        moment = read_time(event.get("time"))
    except WrongError as wrong:
        problems.append(_explain("time", wrong))
        moment = None
    given = event.get("time")
    if isinstance(given, str):  # a kernel reads the text alike, and a blank one as absent
        values["time"] = given if type(given) is str else str.__str__(given)
    elif moment is not None:
        values["time"] = given if type(given) is int or type(given) is float else moment
    plain = plain and values.get("time") is given
    if moment is not None and moment > now + definition.skew_ms:
        message = f"the event is {moment - now} ms ahead of now; {definition.skew_ms} ms are allowed"
        expected = f"at most {now + definition.skew_ms}"
        problems.append(Problem("/time", "future", message, expected, str(moment)))

    if kind is not None:
        for name in kind.fields:
            given = event.get(name)
            if given is None:
                continue
            try:
                value = read_value(definition.fields[name], given)
            except WrongError as wrong:
                problems.append(_explain(name, wrong))
                continue
            if value is not None:
                values[name] = value
            plain = plain and value is given
        for name in kind.required:
            if name in kind.fields and _is_absent(event.get(name)):
                message = f"{kind.name} events need {name}"
                expected = definition.fields[name].type
                problems.append(
                    Problem(_pointer(name), "required", message, expected, describe(event.get(name)))
                )
    return Reading(kind, values, tuple(problems), plain)


def read_value(field: Field, given: object) -> Plain | None:
    """The exact built-in value of a field, not yet normalised; None for a blank text, which says nothing.

    A text that only has to be normalised stays the same object. Raises WrongError.
    """
    if isinstance(given, str):
        text = _text(given, TEXT_BYTES_MAX)
        if field.type in ("string", "phone", "ip"):
            return text
        if field.type == "time":
            read_time(text)
            return text
        if not text.strip():
            return None
    match field.type:
        case "number":
            return _number(given, field.digits)
        case "bool":
            if isinstance(given, bool | np.bool_):
                return given if type(given) is bool else bool(given)
            raise WrongError("bool", "true or false", describe(given))
        case "time":
            moment = read_time(given)
            return given if type(given) is int or type(given) is float else moment
        case "location":
            return _location(given)
        case _:
            raise WrongError(field.type, _EXPECTED[field.type], describe(given))


def read_time(given: object) -> int | None:
    """Epoch ms of epoch ms, RFC 3339 text or a datetime with a time zone; None where nothing is said."""
    if given is None:
        return None
    if isinstance(given, str):
        text = _text(given, TEXT_BYTES_MAX)
        return _time_of_text(text) if text.strip(ASCII_SPACE) else None
    if isinstance(given, datetime):
        if given.utcoffset() is None:
            raise WrongError("time", _EXPECTED["time"], "datetime without a time zone")
        moment = time_ms(given)
    elif isinstance(given, int | np.integer) and not isinstance(given, bool):
        moment = int(given)
    elif isinstance(given, float | np.floating) and float(given).is_integer():
        moment = int(given)  # JSON knows one kind of number, and a column with nulls is often of floats
    else:
        raise WrongError("time", _EXPECTED["time"], describe(given))
    if not TIME_MIN_MS <= moment <= TIME_MAX_MS:
        raise WrongError("time-range", "a time in the years 1 to 9999", _number_text(moment))
    return moment


def read_label(record: object, labels: Sequence[str]) -> tuple[dict[str, Any], tuple[Problem, ...]]:
    """The fields of a label's record (`event_id`, `label`, `time`, `source`) and what is wrong with them."""
    if not isinstance(record, Mapping):
        return {}, (_problem("", "not-an-object", "a label is an object", "object", record),)
    values: dict[str, Any] = {}
    problems = []
    for name, reader in (("event_id", _id), ("time", read_time), ("source", _id)):
        try:
            values[name] = reader(record.get(name))
        except WrongError as wrong:
            problems.append(_explain(name, wrong))
    event_id = values.get("event_id", "")
    if event_id is None or ("event_id" in values and not event_id.strip(ASCII_SPACE)):
        problems.append(Problem("/event_id", "required", "the label has no event_id", "string", "nothing"))
    label = record.get("label")
    if not isinstance(label, str) or label not in labels:
        shown = f"'{label}'" if isinstance(label, str) and _NAME.fullmatch(label) else describe(label)
        expected = " or ".join(labels)
        problems.append(Problem("/label", "label", f"expected {expected}, found {shown}", expected, shown))
    values["label"] = label
    return values, tuple(problems)


def describe(value: object) -> str:
    """What kind of value this is, in words of JSON; never the value itself."""
    match value:
        case None:
            return "nothing"
        case bool() | np.bool_():
            return "boolean"
        case int() | np.integer():
            return "integer"
        case float() | np.floating() | Decimal():
            return "number"
        case str():
            return f"string of {len(value)} character{'' if len(value) == 1 else 's'}"
        case bytes():
            return f"{len(value)} bytes"
        case Mapping():
            return "object"
        case Sequence():
            return f"array of {len(value)}"
        case _:
            return type(value).__name__


_EXPECTED = {
    "number": "a finite number",
    "string": "string",
    "phone": "string",
    "ip": "string",
    "time": "RFC 3339 text with an offset or Z, or whole epoch milliseconds",
    "location": 'an object {"lat": -90 to 90, "lon": -180 to 180}',
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


def _id(given: object) -> str | None:
    """An id, as it is: ids are names, nothing in them is normalised."""
    if given is None:
        return None
    if not isinstance(given, str):
        raise WrongError("string", "string", describe(given))
    return _text(given, ID_BYTES_MAX)


def _type(definition: Definition, given: object, problems: list[Problem]) -> EventType | None:
    known = ", ".join(definition.events)
    if given is None or (isinstance(given, str) and not given.strip()):
        problems.append(
            Problem("/type", "required", "the event has no type", f"one of {known}", describe(given))
        )
    elif not isinstance(given, str):
        problems.append(
            _problem("/type", "string", f"expected a string, found {describe(given)}", known, given)
        )
    elif given not in definition.events:
        # A name is shown, so that a slip of the pen can be seen; what looks like anything else is not.
        shown = f"'{given}'" if _NAME.fullmatch(given) else describe(given)
        near = nearest(given, definition.events) if len(given) <= 64 else None
        mend = f"; did you mean '{near}'?" if near else ""
        message = f"the policy knows no event type {shown}{mend}"
        problems.append(Problem("/type", "unknown-type", message, f"one of {known}", shown))
    else:
        return definition.events[given]
    return None


def _text(given: str, bytes_max: int) -> str:
    text = given if type(given) is str else str.__str__(given)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        found = f"{describe(text)} with half a surrogate pair"
        raise WrongError("unicode", "Unicode text", found) from None
    if size > bytes_max and (bytes_max == ID_BYTES_MAX or len(tidy_text(text).encode()) > bytes_max):
        raise WrongError("too-long", f"at most {bytes_max} bytes of UTF-8", f"{size} bytes")
    return text


def _time_of_text(text: str) -> int:
    data = text.strip(ASCII_SPACE).encode()
    moment = parse_time(as_bytes(data), 0, len(data))
    if moment == NO_TIME:
        raise WrongError("time", _EXPECTED["time"], describe(text))
    if not TIME_MIN_MS <= moment <= TIME_MAX_MS:
        raise WrongError("time-range", "a time in the years 1 to 9999", describe(text))
    return int(moment)


def _number(given: object, digits: int | None, at: str = "") -> int | float:
    if isinstance(given, bool | np.bool_) or not isinstance(
        given, int | float | np.integer | np.floating | Decimal
    ):
        raise WrongError("number", _EXPECTED["number"], describe(given), at)
    if isinstance(given, int | np.integer):
        number: int | float = given if type(given) is int else int(given)
    else:
        number = given if type(given) is float else float(given)
    try:
        finite = math.isfinite(number)
    except OverflowError:
        finite = False
    if not finite:
        raise WrongError("number", _EXPECTED["number"], _number_text(number), at)
    if digits is not None and abs(quantise(number, digits)) > MINOR_MAX:
        unit = f"1e{-digits}"
        raise WrongError(
            "number-range", f"at most {MINOR_MAX} units of {unit} either way", _number_text(number), at
        )
    return number


def _location(given: object) -> Mapping[str, int | float]:
    if not isinstance(given, Mapping):
        raise WrongError("location", _EXPECTED["location"], describe(given))
    parts = {}
    for name, bound in (("lat", 90), ("lon", 180)):
        if given.get(name) is None:
            raise WrongError("location", _EXPECTED["location"], f"object without {name}")
        parts[name] = _number(given[name], None, f"/{name}")
        if abs(parts[name]) > bound:
            found = _number_text(parts[name])
            raise WrongError("location-range", f"a number from -{bound} to {bound}", found, f"/{name}")
    same = type(given) is dict and all(parts[name] is given[name] for name in parts)
    return given if same else parts


def _number_text(number: int | float) -> str:
    if isinstance(number, int) and abs(number) >= 10**20:
        return f"an integer of {number.bit_length()} bits"
    return repr(number)


def _is_absent(given: object) -> bool:
    return given is None or (isinstance(given, str) and not given.strip())


def _explain(name: str, wrong: WrongError) -> Problem:
    message = f"expected {wrong.expected}, found {wrong.found}"
    return Problem(_pointer(name) + wrong.at, wrong.code, message, wrong.expected, wrong.found)


def _problem(pointer: str, code: str, message: str, expected: str, found: object) -> Problem:
    return Problem(pointer, code, message, expected, describe(found))


def _pointer(name: str) -> str:
    return "/" + name.replace("~", "~0").replace("/", "~1")
