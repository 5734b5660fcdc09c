"""Several workers on one port: starts them, replaces those that die, and stops all when asked to.

Each worker is a process of its own with an engine of its own; they share the store, the port and a folder
for what they count. The supervisor imports no engine. A worker ends when the supervisor is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from riskengine.errors import RiskEngineError
from riskengine.service.settings import Settings

LOOK_SECONDS: Final = 0.2  # between looks at the workers
YOUNG_SECONDS: Final = 5.0  # a worker that dies younger than that is replaced after a pause, which grows
PAUSE_SECONDS_MAX: Final = 30.0
MARGIN_SECONDS: Final = 5.0  # beyond what a drain may take, until a worker is killed
READY: Final = "ready"
_log = logging.getLogger(__name__)


class Task(msgspec.Struct, frozen=True):
    """What a worker reads from its standard input, which ends with the supervisor."""

    settings: Settings
    slot: int  # counted from 0
    socket: int  # descriptor
    folder: str  # shared by all workers


class _Slot:
    """A worker's place: its process, and when it may be started again."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: subprocess.Popen[str] | None = None
        self.began = 0.0
        self.deaths = 0  # in a row, each young
        self.start_at = 0.0


class Supervisor:
    """Runs `settings.workers` workers by a command until SIGTERM or SIGINT. SIGHUP reaches each of them."""

    def __init__(self, settings: Settings, listening: socket.socket, command: list[str]) -> None:
        self._settings = settings
        self._listening = listening
        self._command = command
        self._slots = [_Slot(i) for i in range(settings.workers)]
        self._woken = threading.Event()
        self._stopping: float | None = None  # since when
        self._folder = ""

    def run(self, ready: Callable[[], None]) -> None:
        """Raises RiskEngineError where workers do not come up, or do not stop in time."""
        with tempfile.TemporaryDirectory(prefix="riskengine-") as self._folder, self._signals():
            try:
                self._begin(ready)
                while self._stopping is None:
                    self._look()
                    self._woken.wait(LOOK_SECONDS)
            finally:
                late = self._stop()
        if late:
            raise RiskEngineError(f"{late} of the workers did not stop in time and had to be killed")

    def _begin(self, ready: Callable[[], None]) -> None:
        """Start the first worker, which may compile and begins what is to be begun; then the others."""
        for group in (self._slots[:1], self._slots[1:]):
            for slot in group:
                self._start(slot)
            for slot in group:
                if not self._up(slot) and self._stopping is None:
                    raise RiskEngineError("a worker did not start: what it said stands before this line")
        if self._stopping is None:
            ready()

    def _start(self, slot: _Slot) -> None:
        settings = self._settings
        if slot.number or slot.began:
            settings = dataclasses.replace(settings, from_folder=False)
        slot.began = time.monotonic()
        slot.process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._listening.fileno(),),
            start_new_session=True,  # Ctrl-C is told them by us, once
            text=True,
        )
        assert slot.process.stdin is not None
        task = Task(settings, slot.number, self._listening.fileno(), self._folder)
        with contextlib.suppress(BrokenPipeError):
            slot.process.stdin.write(f"{msgspec.json.encode(task).decode()}\n")
            slot.process.stdin.flush()

    @staticmethod
    def _up(slot: _Slot) -> bool:
        """Wait until a worker serves, or has ended."""
        assert slot.process is not None
        assert slot.process.stdout is not None
        return slot.process.stdout.readline().strip() == READY

    def _look(self) -> None:
        """Replace workers that have died."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.process is not None and slot.process.poll() is not None:
                slot.deaths = slot.deaths + 1 if now - slot.began < YOUNG_SECONDS else 1
                pause = min(2.0 ** (slot.deaths - 2), PAUSE_SECONDS_MAX) if slot.deaths > 1 else 0.0
                slot.start_at = now + pause
                how = slot.process.returncode
                _log.error(
                    "worker %d (process %d) has died (%s); another takes its place%s",
                    slot.number,
                    slot.process.pid,
                    signal.Signals(-how).name if how < 0 else f"exit code {how}",
                    f" in {pause:.0f} s" if pause else "",
                )
                self._let_go(slot)
            if slot.process is None and now >= slot.start_at and self._stopping is None:
                self._start(slot)

    def _stop(self) -> int:
        """Let the workers finish what they have; how many had to be killed."""
        begun = time.monotonic()
        for slot in self._slots:  # those that were not told yet
            if slot.process is not None and (self._stopping is None or slot.began >= self._stopping):
                slot.process.send_signal(signal.SIGTERM)
        patience = self._settings.notice_seconds + self._settings.drain_seconds + MARGIN_SECONDS
        late = 0
        while alive := [s for s in self._slots if s.process is not None and s.process.poll() is None]:
            waited = time.monotonic() - begun
            if waited >= self._settings.notice_seconds:
                self._listening.close()  # or callers would wait for an answer that nobody gives
            if waited > patience:
                late = len(alive)
                for slot in alive:
                    assert slot.process is not None
                    slot.process.kill()
                    slot.process.wait()
                break
            time.sleep(LOOK_SECONDS / 4)
        for slot in self._slots:
            self._let_go(slot)
        return late

    @staticmethod
    def _let_go(slot: _Slot) -> None:
        process, slot.process = slot.process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def _tell(self, number: int) -> None:
        for slot in self._slots:
            if slot.process is not None and slot.process.poll() is None:
                slot.process.send_signal(number)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, _: object) -> None:
            if self._stopping is None:
                self._stopping = time.monotonic()
                self._tell(signal.SIGTERM)  # a worker that is starting is waited for
            self._woken.set()

        handlers = {
            signal.SIGTERM: stop,
            signal.SIGINT: stop,
            signal.SIGHUP: lambda number, _: self._tell(number),
        }
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def command() -> list[str]:
    """How a worker is run."""
    return [sys.executable, "-m", "riskengine.cli.worker"]


def shared_file(folder: Path, slot: int) -> Path:
    """Where a worker tells the others what it counted."""
    return folder / f"worker-{slot}"
