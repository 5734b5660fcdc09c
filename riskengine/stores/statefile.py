"""An exported state as a file: a head, the value of every entity, and a digest that shows any damage.

file    magic, head, values, four zero bytes, digest (16) of all before it
head    length (8), MessagePack of `Head`
value   length (4), MessagePack of key, entity and packed value (see packing.py)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from riskengine.errors import RiskEngineError
from riskengine.files import FileError, unwritable
from riskengine.stores.paths import Name, Trail

MAGIC: Final = b"riskengine-state-2\n"
DIGEST_BYTES: Final = 16
CHUNK_BYTES: Final = 1 << 20

Value = tuple[int, str, bytes]  # key, entity, packed value
Row = dict[str, float | str | None]


class Head(msgspec.Struct, frozen=True):
    """What is kept beside entities, and under which plan they were written."""

    plan: str
    lists: list[tuple[str, str, int, dict[str, int | str | None]]]  # list, entity, key, entry
    tables: dict[str, dict[int, Row]]
    paths: list[tuple[Name, str, Trail]] = []  # what each leads to, its id


class StateFile:
    """A file whose digest is right. Iterating reads the values, from the first on each time."""

    def __init__(self, path: Path, file: BinaryIO, head: Head) -> None:
        self.head = head
        self._path = path
        self._file = file
        self._values = file.tell()

    def __iter__(self) -> Iterator[Value]:
        self._file.seek(self._values)
        try:
            while size := int.from_bytes(self._file.read(4), "little"):
                yield msgspec.msgpack.decode(self._file.read(size), type=Value)
        except msgspec.DecodeError as error:
            raise RiskEngineError(f"{self._path} holds a value that is none: {error}") from None


def write(path: Path, head: Head, values: Iterable[Value]) -> int:
    """Write a state; return the number of values. What was at `path` stays until the new file is whole."""
    part = path.with_name(f"{path.name}.part")
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    n = 0
    try:
        with part.open("wb") as out:

            def put(data: bytes) -> None:
                digest.update(data)
                out.write(data)

            packed = msgspec.msgpack.encode(head)
            put(MAGIC + len(packed).to_bytes(8, "little") + packed)
            for value in values:
                packed = msgspec.msgpack.encode(value)
                put(len(packed).to_bytes(4, "little") + packed)
                n += 1
            put(bytes(4))
            out.write(digest.digest())
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
    except OSError as error:
        raise FileError(unwritable(str(path), error.strerror)) from None
    finally:
        with suppress(OSError):  # it is gone where all went well
            part.unlink()
    return n


@contextmanager
def opened(path: Path) -> Iterator[StateFile]:
    """A file made by `write`. Raises RiskEngineError for any other, and for one changed since."""
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise RiskEngineError(f"{path} is not an exported state: expected a file made by export")
            if not _sound(file):
                raise RiskEngineError(f"{path} is cut short or damaged: export the state again")
            file.seek(len(MAGIC))
            packed = file.read(int.from_bytes(file.read(8), "little"))
            try:
                head = msgspec.msgpack.decode(packed, type=Head)
            except msgspec.DecodeError as error:
                raise RiskEngineError(f"{path} has a head that is none: {error}") from None
            yield StateFile(path, file, head)
    except OSError as error:
        raise RiskEngineError(f"{path} cannot be read: {error.strerror}") from None


def _sound(file: BinaryIO) -> bool:
    """Whether the digest at the end is that of what stands before it."""
    left = file.seek(0, os.SEEK_END) - DIGEST_BYTES
    file.seek(0)
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    while left > 0:
        chunk = file.read(min(left, CHUNK_BYTES))
        digest.update(chunk)
        left -= len(chunk)
    return digest.digest() == file.read()
