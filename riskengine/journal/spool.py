"""Where entries wait that the database does not take: files of checked records, read back in order.

A file is a head (magic, 16 random bytes that name it) and records (length, CRC-32, MessagePack). Each process
writes one of its own, locked while it lives; what a dead process has left is taken in by the next. The room
of the first RESERVED_BYTES is taken when the file is made: a disk that is full later has it still.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from riskengine.journal.blocks import Block
from riskengine.journal.database import Item

RESERVED_BYTES: Final = 16 * 1_048_576  # of decisions of a shipped policy some 24,000
SPOOL_BYTES: Final = 1_073_741_824  # an hour of 450 decisions a second; then nothing more is taken
SLOTS: Final = 64  # processes on one journal and one machine
RECORD_BYTES_MAX: Final = 268_435_456

_MAGIC: Final = b"RISKSPL1"
_HEAD: Final = len(_MAGIC) + 16
_FRAME: Final = struct.Struct("<II")
_log = logging.getLogger(__name__)


class SpoolError(Exception):
    """A spool cannot be written; its text says why."""


class Spool:
    """One file, open and locked. The journal's writer thread alone uses it."""

    def __init__(self, path: str, descriptor: int) -> None:
        """Use `Spool.claim`."""
        self.path = path
        self._descriptor = descriptor
        self.name = ""
        self.end = _HEAD
        self._begin()

    @classmethod
    def claim(cls, prefix: str) -> Spool:
        """The first file of that prefix that no living process holds, made where there is none.

        Raises SpoolError.
        """
        for slot in range(SLOTS):
            path = f"{prefix}.{slot}"
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise SpoolError(f"{path}: {error.strerror}") from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:  # else its owner has removed it as we opened it
                    return cls(path, descriptor)
            except BlockingIOError:
                pass
            except (OSError, SpoolError) as error:
                os.close(descriptor)
                raise SpoolError(str(error)) from error
            os.close(descriptor)
        raise SpoolError(f"{prefix}.0 to {prefix}.{SLOTS - 1} are all in use")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in it."""
        return self.end == _HEAD

    @classmethod
    def left_behind(cls, prefix: str) -> tuple[list[Spool], bool]:
        """Files of processes that are no more, with something in them; whether there were any at all.

        A process that ends in peace leaves none, unless something waits in it.
        """
        found, any_left = [], False
        for slot in range(SLOTS):
            try:
                descriptor = os.open(f"{prefix}.{slot}", os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                spool = cls(f"{prefix}.{slot}", descriptor)
            except (OSError, SpoolError):  # a living process has it, or it is something else
                os.close(descriptor)
                continue
            any_left = True
            if spool.is_empty:
                spool.remove()
            else:
                found.append(spool)
        return found, any_left

    @classmethod
    def beside(cls, prefix: str, taken: Callable[[str], int]) -> list[str]:
        """Paths of files with something in them behind what is `taken` of the name; of living processes too.

        They are only read: neither locked, as who opens the journal then would pass them over, nor removed.
        """
        found = []
        for slot in range(SLOTS):
            path = f"{prefix}.{slot}"
            with suppress(OSError, SpoolError), open(path, "rb") as file:
                if file.read(_HEAD).startswith(_MAGIC):
                    spool = cls(path, file.fileno())
                    if spool.end > max(_HEAD, taken(spool.name)):
                        found.append(path)
        return found

    def append(self, items: Sequence[Item], sync: bool) -> int:
        """Write items as one record; where it begins. Raises SpoolError, and leaves the file as it was."""
        payload = msgspec.msgpack.encode([_plain(item) for item in items])
        record = _FRAME.pack(len(payload), self._checksum(self.end, payload)) + payload
        if self.end + len(record) > SPOOL_BYTES:
            raise SpoolError(f"{self.path} has {SPOOL_BYTES:,} bytes, which is all that it may have")
        at, view = self.end, memoryview(record + bytes(_FRAME.size))  # nothing follows, whatever was here
        try:
            while view:
                wrote = os.pwrite(self._descriptor, view, at)
                at, view = at + wrote, view[wrote:]
            if sync:
                os.fdatasync(self._descriptor)
        except OSError as error:
            # The frame's first byte decides: without it, what follows is not there.
            with suppress(OSError):
                os.pwrite(self._descriptor, bytes(_FRAME.size), self.end)
            raise SpoolError(f"{self.path}: {error.strerror}") from error
        begin, self.end = self.end, self.end + len(record)
        return begin

    def read(self, after: int = 0) -> Iterator[tuple[int, list[Item]]]:
        """Records from the place `after` on: where each ends, and its items."""
        at = max(after, _HEAD)
        while at < self.end:
            found = self._record(at)
            if found is None:
                return
            payload, at = found
            yield at, [_item(plain) for plain in msgspec.msgpack.decode(payload)]

    def clear(self) -> None:
        """Everything is taken in: begin anew, under another name, in the room it has."""
        with suppress(OSError):
            os.pwrite(self._descriptor, bytes(_HEAD + _FRAME.size), 0)
            if os.fstat(self._descriptor).st_size > RESERVED_BYTES:
                os.ftruncate(self._descriptor, RESERVED_BYTES)
        self._begin()

    def close(self, keep: bool = False) -> None:
        """Let go of the file; one with nothing in it is removed, unless it is to be kept as a sign."""
        if self.is_empty and not keep:
            self.remove()
        else:
            os.close(self._descriptor)

    def remove(self) -> None:
        """Remove the file."""
        with suppress(OSError):
            os.unlink(self.path)
        os.close(self._descriptor)

    # -- the file

    def _begin(self) -> None:
        """Read the head, and find the end; give an empty file a head and its room."""
        head = os.pread(self._descriptor, _HEAD, 0)
        if head.strip(b"\0") and not head.startswith(_MAGIC):
            raise SpoolError(f"{self.path} is no spool file of a journal")
        if len(head) < _HEAD or not head.startswith(_MAGIC):
            with suppress(OSError):  # a file-size limit, a file system that cannot: it grows then
                os.posix_fallocate(self._descriptor, 0, RESERVED_BYTES)
            head = _MAGIC + os.urandom(16)
            try:
                os.pwrite(self._descriptor, bytes(_FRAME.size), _HEAD)
                os.pwrite(self._descriptor, head, 0)
            except OSError as error:
                raise SpoolError(f"{self.path}: {error.strerror}") from error
        self.name = head[len(_MAGIC) :].hex()
        self.end = _HEAD
        while (found := self._record(self.end)) is not None:
            self.end = found[1]

    def _record(self, at: int) -> tuple[bytes, int] | None:
        """The record at a place and where it ends; None at the end, or where it was torn by a crash."""
        frame = os.pread(self._descriptor, _FRAME.size, at)
        if len(frame) < _FRAME.size:
            return None
        size, checksum = _FRAME.unpack(frame)
        if not 0 < size <= RECORD_BYTES_MAX:
            return None
        payload = os.pread(self._descriptor, size, at + _FRAME.size)
        if len(payload) < size or self._checksum(at, payload) != checksum:
            _log.error("%s: the record at byte %d is damaged; it and what follows is left out", self.path, at)
            return None
        return payload, at + _FRAME.size + size

    def _checksum(self, at: int, payload: bytes) -> int:
        """Of a record at its place in this file of this name: what an earlier use left is none of ours."""
        return zlib.crc32(payload, zlib.crc32(b"%s %d" % (self.name.encode(), at)))


def _plain(item: Item) -> Any:
    return item if isinstance(item, Block) else list(item)


def _item(plain: Any) -> Item:
    if isinstance(plain[0], list):
        return msgspec.convert(plain, Block)
    return plain[0], tuple(plain[1])
