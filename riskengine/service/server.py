"""Runs the sidecar: opens the engine, serves until asked to stop, and leaves nothing undone."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from riskengine.engine import Engine
from riskengine.errors import RiskEngineError
from riskengine.service.access import Access
from riskengine.service.alerting import Alerting
from riskengine.service.front import Front
from riskengine.service.gathering import Gatherer
from riskengine.service.metrics import WRITE_SECONDS, Metrics
from riskengine.service.policies import Policies
from riskengine.service.rehearsal import rehearse
from riskengine.service.routes import application
from riskengine.service.scoring import Scoring
from riskengine.service.settings import Settings
from riskengine.service.sidecar import Sidecar

_log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0  # between looks at what is to be done though no event comes
# A thread that runs Python lets another one in after so long: the loop asks to be let in after each kernel,
# some twenty times a batch, and with Python's own 5 ms a policy being compiled held up a batch for 100.
SWITCH_SECONDS = 0.0001
IDLE_SECONDS = 30  # that a connection is kept on which nothing is asked


def run(
    settings: Settings,
    access: Access,
    listening: socket.socket,
    ready: Callable[[str], None],
    resume: Callable[[Engine], None] | None = None,
    shared: Path | None = None,
) -> None:
    """Open everything, serve until SIGTERM or Ctrl-C, and leave nothing undone.

    `resume` is what an engine needs before it serves; `shared` is this worker's file in the folder that
    workers share. Raises RiskEngineError.
    """
    policies = Policies.find(settings, leads=shared is None or shared.name.endswith("-0"))
    origin = f"{socket.gethostname()}/{'one' if shared is None else shared.name}"
    with Engine.open(
        policies.definition, store=settings.store, journal=settings.journal_url, origin=origin
    ) as engine:
        rehearse(engine.definition, engine.scratch)
        if resume is not None:
            resume(engine)
        serve(engine, settings, access, policies, listening, lambda: ready(policies.definition.name), shared)


def build(
    engine: Engine, settings: Settings, access: Access, policies: Policies, shared: Path | None = None
) -> tuple[Front, Sidecar]:
    """The whole application on an engine, which it does not close."""
    metrics = Metrics(engine, shared)
    gatherer = Gatherer(
        lambda events, features: engine.score_told(events, features),
        settings.queue_events,
        metrics.batch,
        lambda: engine.waits,
        engine.at_once,
        lambda: engine.floats,
    )
    alerting = Alerting(engine, settings)
    metrics.watch(gatherer, alerting)
    sidecar = Sidecar(engine, settings, policies, gatherer, metrics)
    rest = application(sidecar)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        gatherer.start()
        # The first route that a thread answers imports what threads need, on the loop: 30 to 110 ms.
        await run_in_threadpool(policies.serve, engine)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, _reread, loop, policies)
        writing = asyncio.create_task(_write_often(metrics))
        looking = asyncio.create_task(_look_often(engine))
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            await asyncio.to_thread(policies.close)
            await gatherer.close()
            writing.cancel()
            looking.cancel()
            await asyncio.to_thread(alerting.close)
            metrics.write()

    rest.router.lifespan_context = lifespan
    return Front(Scoring(engine, gatherer, metrics, settings), metrics, rest, settings, access), sidecar


def serve(
    engine: Engine,
    settings: Settings,
    access: Access,
    policies: Policies,
    listening: socket.socket,
    ready: Callable[[], None],
    shared: Path | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C: then take nothing new, answer what is under way, and return."""
    sys.setswitchinterval(SWITCH_SECONDS)
    front, sidecar = build(engine, settings, access, policies, shared)
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
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    _Server(config, sidecar, ready).run(sockets=[listening])


async def _write_often(metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(WRITE_SECONDS)
        metrics.write()


async def _look_often(engine: Engine) -> None:
    """End episodes of alerts, and count what the store missed, also where no event comes any more.

    And log when the store ceases to answer, and when it has been told what it missed.
    """
    failed, is_away = engine.store_errors, False
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if engine.alert_status.get("open"):
            await asyncio.to_thread(engine.look_at_alerts)
        before, failed = failed, engine.store_errors
        kinds = sorted(kind for kind, batches in failed.items() if batches > before.get(kind, 0))
        if kinds and not is_away:
            is_away = True
            _log.warning(
                "the store fails (%s): events are decided by the fail of their type; see /readyz?verbose",
                ", ".join(kinds),
            )
        if engine.is_behind:
            await asyncio.to_thread(engine.catch_up)
        elif is_away and not kinds:
            is_away = False
            _log.warning("the store answers again, and has been told what it missed")


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
    """uvicorn, ending in peace: its own raises the signal again after the drain, and dies by it.

    On SIGTERM it goes on for a moment as it was, while /readyz tells the load balancer to stay away.
    """

    def __init__(self, config: uvicorn.Config, sidecar: Sidecar, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._sidecar = sidecar
        self._ready = ready
        self._stop_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # What is there now stays: looking through it for garbage stopped everything for 100 ms.
            gc.collect()
            gc.freeze()
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        notice = self._sidecar.settings.notice_seconds
        self._sidecar.stopping = True
        if sig == signal.SIGTERM and notice and self._stop_at is None:
            self._stop_at = time.monotonic() + notice
        else:  # asked again, or by a person who waits
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self.should_exit = True
        return await super().on_tick(counter)

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
