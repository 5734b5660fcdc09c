"""Runs the sidecar: takes the port, opens the engine, serves until asked to stop, leaves nothing undone."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from riskengine.engine import Engine
from riskengine.errors import RiskEngineError
from riskengine.service.access import Access
from riskengine.service.front import Front
from riskengine.service.gathering import Gatherer
from riskengine.service.metrics import Metrics
from riskengine.service.policies import Policies
from riskengine.service.routes import application
from riskengine.service.scoring import Scoring
from riskengine.service.settings import Settings

_log = logging.getLogger(__name__)
CONNECTIONS_WAITING = 2_048  # to be accepted: a campaign opens with a burst
IDLE_SECONDS = 30  # that a connection is kept on which nothing is asked


def take_port(settings: Settings) -> socket.socket:
    """A socket that listens where the settings say (port 0: any). RiskEngineError where it cannot be had."""
    port, host = settings.port, settings.host
    family, address = settings.address
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(CONNECTIONS_WAITING)
    except OSError as error:
        taken.close()
        if error.errno == errno.EADDRINUSE:
            message = (
                f"port {port} of {host} is taken, maybe by another sidecar: stop the program that has it "
                f"(`{_who_has(port)}` says which), or choose another port with --port (--port 0 takes any "
                "that is free)"
            )
        elif error.errno in (errno.EACCES, errno.EPERM):
            message = (
                f"port {port} of {host} may not be used by this user: choose one above 1023 with --port, "
                "such as 8080"
            )
        elif error.errno == errno.EADDRNOTAVAIL:
            message = (
                f"{host} is no address of this machine: give --host one that it has, 127.0.0.1 to answer "
                "only its own programs, or 0.0.0.0 for all"
            )
        else:
            message = (
                f"port {port} of {host} cannot be used ({error.strerror}): choose another with --host and "
                "--port"
            )
        raise RiskEngineError(message) from None
    return taken


def _who_has(port: int) -> str:
    """The command that names who listens on a port, by system."""
    if sys.platform == "win32":
        return f"netstat -ano | findstr :{port}"
    return f"ss -ltnp sport = :{port}" if sys.platform == "linux" else f"lsof -iTCP:{port} -sTCP:LISTEN"


def build(engine: Engine, settings: Settings, access: Access, policies: Policies) -> Front:
    """The whole application on an engine, which it does not close."""
    metrics = Metrics(engine)
    gatherer = Gatherer(
        lambda events, features: engine.score_many(events, features),
        settings.queue_events,
        metrics.batch,
        lambda: engine.waits,
    )
    metrics.watch(gatherer)
    rest = application(engine, gatherer, metrics, settings, policies)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        gatherer.start()
        policies.serve(engine)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, _reread, loop, policies)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            await asyncio.to_thread(policies.close)
            await gatherer.close()

    rest.router.lifespan_context = lifespan
    return Front(Scoring(engine, gatherer, metrics, settings), metrics, rest, settings, access)


def serve(
    engine: Engine,
    settings: Settings,
    access: Access,
    policies: Policies,
    listening: socket.socket,
    ready: Callable[[], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C: then take nothing new, answer what is under way, and return."""
    front = build(engine, settings, access, policies)
    config = uvicorn.Config(
        front,
        http=_speaker(front),
        ws="none",
        lifespan="on",
        proxy_headers=False,  # nothing here asks who the client is
        log_config=None,
        access_log=False,  # paths hold values of lists: they are nobody's to log
        server_header=False,
        timeout_graceful_shutdown=settings.drain_seconds,
        timeout_keep_alive=IDLE_SECONDS,
        h11_max_incomplete_event_size=65_536,
    )
    _Server(config, ready).run(sockets=[listening])


def _reread(loop: asyncio.AbstractEventLoop, policies: Policies) -> None:
    """SIGHUP: the policy of the folder serves, where it checks; else the old one, and the log says why."""

    def work() -> None:
        try:
            policies.reread("SIGHUP")
        except (RiskEngineError, OSError) as error:
            _log.error("SIGHUP: the old policy goes on serving: %s", error)

    loop.run_in_executor(None, work)


def _speaker(front: Front) -> Any:
    """What uvicorn is to speak HTTP with."""
    try:
        from riskengine.service.protocol import Speaker
    except ImportError:  # httptools has no wheel for this machine: slower, and heads may come slowly
        return "h11"
    return Speaker(front)


class _Server(uvicorn.Server):
    """uvicorn, ending in peace: its own raises the signal again after the drain, and dies by it."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # What is there now stays: looking through it for garbage stopped everything for 100 ms.
            gc.collect()
            gc.freeze()
            self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
