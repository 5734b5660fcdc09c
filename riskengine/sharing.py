"""Lists that are shared with a partner: entries are keyed hashes, under a key that only the two of them have.

Neither side learns a value that it did not know: who has the key and the value finds the entry, nobody else.
A file of such a list is JSON Lines, a header and a record an entry; its digest is keyed too, so that one that
was damaged, cut short or made with another key is refused as a whole.
"""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from riskengine.errors import RiskEngineError

FORMAT: Final = "riskengine-shared-list"
VERSION: Final = 1
KEY_VARIABLE: Final = "RISKENGINE_PARTNER_KEY_"
KEY_CHARS_MIN: Final = 32
_HASH: Final = re.compile(r"[0-9a-f]{16}")


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line. `digest` is hex of HMAC-SHA256 over the other fields and the lines that follow."""

    format: str
    version: int
    partner: str
    key_id: str
    list: str
    entity: str
    created: int  # ms UTC
    records: int
    digest: str


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry: 16 hex digits of its hash, its source and reason, and its end (ms UTC; null: for good)."""

    hash: str
    source: str | None = None
    reason: str | None = None
    expires: int | None = None


def member(key: bytes, entity: str, value: str) -> int:
    """The 64 bits that stand for a value: the first 8 bytes of HMAC-SHA256 over FORMAT/1, entity and value.

    `value` is normalised as events are (a phone in E.164, an address as RFC 5952 has it, text in NFC and
    trimmed), the three parts are UTF-8 with a zero byte between them.
    """
    message = f"{FORMAT}/{VERSION}\0{entity}\0{value}".encode()
    return int.from_bytes(hmac.digest(key, message, "sha256")[:8], "big") or 1


def key_id(key: bytes) -> str:
    """8 hex digits that tell one key from another, and nothing of it."""
    return hmac.digest(key, f"{FORMAT}/{VERSION}\0key".encode(), "sha256")[:4].hex()


def variable_of(partner: str) -> str:
    """The variable that a partner's key is in; with _FILE at its end, the file it is in."""
    return KEY_VARIABLE + re.sub(r"[^A-Z0-9]", "_", partner.upper())


def key_of(partner: str, environment: Mapping[str, str]) -> bytes | None:
    """The key agreed with a partner; None where there is none. Raises RiskEngineError for one too short."""
    name = variable_of(partner)
    text = environment.get(name, "")
    file = environment.get(f"{name}_FILE")
    if not text and file:
        try:
            text = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RiskEngineError(f"{name}_FILE names a file that cannot be read: {error}") from None
    if text and len(text) < KEY_CHARS_MIN:
        raise RiskEngineError(
            f"the key in {name} is too short: agree with {partner} on {KEY_CHARS_MIN} characters or more "
            "(openssl rand -hex 32)"
        )
    return text.encode() or None


def write(
    path: Path, key: bytes, partner: str, name: str, entity: str, created: int, records: Sequence[Record]
) -> None:
    """Write a list; the file appears whole. Raises OSError."""
    body = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
    header = Header(FORMAT, VERSION, partner, key_id(key), name, entity, created, len(records), "")
    header = msgspec.structs.replace(header, digest=_digest(key, header, body))
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(msgspec.json.encode(header) + b"\n" + body)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path, key: bytes, partner: str) -> tuple[Header, list[Record]]:
    """Read a list that a partner wrote. Raises RiskEngineError, and OSError for what cannot be opened."""
    first, _, body = path.read_bytes().partition(b"\n")
    try:
        header = msgspec.json.decode(first, type=Header)
    except msgspec.DecodeError:
        raise RiskEngineError(f"{path} is no shared list: its first line is not the header of one") from None
    if (header.format, header.version) != (FORMAT, VERSION):
        raise RiskEngineError(
            f"{path} is of format {header.format} {header.version}, and this reads {FORMAT} {VERSION}"
        )
    if header.partner != partner:
        raise RiskEngineError(
            f"{path} is shared under the name {header.partner}, and this list's is {partner}"
        )
    if header.key_id != key_id(key):
        raise RiskEngineError(
            f"{path} was made with another key (id {header.key_id}; ours is {key_id(key)}): set "
            f"{variable_of(partner)} to the key that was agreed on"
        )
    if not hmac.compare_digest(header.digest.encode(), _digest(key, header, body).encode()):
        raise RiskEngineError(
            f"{path} is damaged or cut short: its digest is another. Nothing of it was taken: ask for it "
            "again"
        )
    try:
        records = [msgspec.json.decode(line, type=Record) for line in body.splitlines()]
    except msgspec.DecodeError as error:
        raise RiskEngineError(f"{path} has a line that is no record: {error}") from None
    wrong = next((at for at, record in enumerate(records, 2) if not _HASH.fullmatch(record.hash)), None)
    if wrong is not None or len(records) != header.records:
        where = f"line {wrong} has no hash of 16 hex digits" if wrong else f"it says {header.records} records"
        raise RiskEngineError(f"{path} is not as the format has it: {where}")
    return header, records


def _digest(key: bytes, header: Header, body: bytes) -> str:
    said = (
        header.format, header.version, header.partner, header.key_id, header.list, header.entity,
        header.created, header.records,
    )  # fmt: skip
    return hmac.digest(key, msgspec.json.encode(said) + b"\n" + body, "sha256").hex()
