"""One worker of several: `riskengine serve --workers N` runs it, and says on standard input what to do."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import msgspec

from riskengine.cli.compiling import compiling_told
from riskengine.cli.exits import ended
from riskengine.service import logs
from riskengine.service.access import Access
from riskengine.service.workers import READY, Task, shared_file


def main() -> None:
    """Serve until SIGTERM, or until the supervisor is gone."""
    sys.exit(ended(_work))


def _work() -> None:
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 65_536)
        if not part:  # the supervisor is gone already
            return
        line += part
    task = msgspec.json.decode(line, type=Task)
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    settings, folder = task.settings, Path(task.folder)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it serves: what it starts with is read just now
    access = Access(Path(settings.keys), folder)
    told = compiling_told() if settings.log == "text" else nullcontext()
    with logs.written(settings.log, task.slot), told, socket.socket(fileno=task.socket) as listening:
        from riskengine.service import server

        server.run(
            settings,
            access,
            listening,
            lambda _: print(READY, flush=True),
            shared=shared_file(folder, task.slot),
        )


def _end_with_supervisor() -> None:
    while os.read(0, 1):  # not sys.stdin: its lock would be held when the process ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
