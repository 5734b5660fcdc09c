"""Bytes of a body become plain values, or a problem: strict JSON (no name twice), MessagePack."""

from __future__ import annotations

import json
import re
from typing import Any, Final, Literal, NoReturn

import msgspec
import numpy as np

from riskengine.errors import Problem
from riskengine.service.problems import RefusedError
from riskengine.service.settings import BATCH_EVENTS_MAX, DEPTH_MAX
from riskengine.service.strictness import is_plain

Format = Literal["json", "msgpack"]
FORMATS: Final[dict[bytes, Format]] = {
    b"application/json": "json",
    b"application/msgpack": "msgpack",
    b"application/x-msgpack": "msgpack",
    b"application/vnd.msgpack": "msgpack",
}
MEDIA_TYPES: Final[dict[Format, bytes]] = {"json": b"application/json", "msgpack": b"application/msgpack"}
_CHARSETS: Final = (b"utf-8", b"utf8", b"us-ascii")
_JSON: Final = msgspec.json.Decoder()
_PACKED: Final = msgspec.msgpack.Decoder()
_ITEMS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_PLAIN_NAME: Final = re.compile(r"[\w.-]{1,64}")


def format_of(content_type: bytes) -> Format:
    """JSON or MessagePack, by a Content-Type header. Raises RefusedError."""
    known = FORMATS.get(content_type)
    if known is None:
        kind, *parameters = (part.strip() for part in content_type.lower().split(b";"))
        known = FORMATS.get(kind)
        for parameter in parameters:
            if parameter.startswith(b"charset=") and parameter[8:].strip(b'"') not in _CHARSETS:
                raise RefusedError("media-type", "send UTF-8, the one charset that JSON has")
    if known is None:
        raise RefusedError(
            "media-type", "send application/json or application/msgpack, and say so in Content-Type"
        )
    return known


def read_body(body: bytes | bytearray, format: Format = "json") -> Any:
    """The value of a body. Raises RefusedError."""
    value = _decode(body, format)
    _look_through(body, format, value)
    return value


def read_batch(body: bytes | bytearray, format: Format) -> tuple[list[Any], dict[int, RefusedError]]:
    """The events of a batch, and by place what is wrong with those that cannot be told what they say.

    Raises RefusedError where it is no array, or too long.
    """
    events = _decode(body, format)
    if not isinstance(events, list):
        raise RefusedError("malformed", "a batch is an array of events")
    if len(events) > BATCH_EVENTS_MAX:
        raise RefusedError(
            "too-large", f"a batch has at most {BATCH_EVENTS_MAX:,} events, this one has {len(events):,}"
        )
    try:
        _look_through(body, format, events)
    except RefusedError:
        poisoned = {}
        raws = _ITEMS.decode(body) if format == "json" else [msgspec.msgpack.encode(e) for e in events]
        for i, (raw, event) in enumerate(zip(raws, events, strict=True)):
            try:
                _look_through(bytes(raw), format, event)
            except RefusedError as refused:
                poisoned[i] = refused
        return events, poisoned
    return events, {}


def _decode(body: bytes | bytearray, format: Format) -> Any:
    try:
        return _JSON.decode(body) if format == "json" else _PACKED.decode(body)
    except RecursionError:
        _refuse_depth()
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, OverflowError) as error:
        what = "JSON" if format == "json" else "MessagePack"
        # msgspec tells the place, never the text; of other errors only the kind is safe to tell.
        why = str(error) if isinstance(error, msgspec.DecodeError) else type(error).__name__
        raise RefusedError("malformed", f"this is not {what}: {why}") from None


def _look_through(body: bytes | bytearray, format: Format, value: Any) -> None:
    """Refuse what is nested too deep, and JSON objects with a name twice.

    Of most JSON a kernel sees that there is nothing to refuse. Else: every name and string stands between two
    quotes, and a name that is there twice is lost in `value`. Where there are as many quotes as `value` asks
    for, nothing was lost; where there are more, some are escaped, or a name was there twice: the json module
    looks again (10 us an event).
    """
    if format == "json" and is_plain(np.frombuffer(bytearray(body), np.uint8)):
        return
    quotes = 2 * _strings(value, DEPTH_MAX)
    if format == "json" and body.count(b'"') != quotes:
        json.loads(body, object_pairs_hook=_refuse_duplicates)


def _strings(value: Any, depth: int) -> int:
    """How many strings and names are in a value, counted by kind: looking at each item takes thrice that."""
    if type(value) is dict:
        items: Any = value.values()
        # JSON has no other names than strings; those of MessagePack are not counted for anything.
        found = len(value)
    elif type(value) is list:
        items = value
        found = 0
    else:
        return int(type(value) is str)
    if not depth:
        _refuse_depth()
    kinds = list(map(type, items))
    found += kinds.count(str)
    if dict in kinds or list in kinds:
        found += sum(
            [_strings(item, depth - 1) for item in items if type(item) is dict or type(item) is list]
        )
    return found


def _refuse_depth() -> NoReturn:
    raise RefusedError(
        "malformed", f"objects and arrays may be nested {DEPTH_MAX} deep, not deeper"
    ) from None


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            said = f" ({name})" if _PLAIN_NAME.fullmatch(name) else ""
            message = f"an object has one name twice{said}: which of the values is meant?"
            raise RefusedError("malformed", message, [Problem("", "duplicate-name", message)])
        seen.add(name)
