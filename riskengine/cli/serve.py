"""`riskengine serve`: the sidecar, which answers over HTTP."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from riskengine.cli.compiling import compiling_told
from riskengine.cli.folders import RulesOption, rules_folder
from riskengine.cli.terminal import bar, count, say
from riskengine.errors import RiskEngineError

if TYPE_CHECKING:
    from riskengine.engine import Engine
    from riskengine.service.access import Access
    from riskengine.service.settings import Settings


def serve(
    rules: RulesOption = None,
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="Where counters are kept.", show_default="memory://")
    ] = None,
    journal: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where decisions are kept; none keeps none.",
            show_default="sqlite:///journal.db",
        ),
    ] = None,
    journal_commit: Annotated[
        Literal["async", "sync"] | None,
        typer.Option(
            help="sync: each answer waits for its commit. async: a kill loses at most the last 100 ms or "
            "1,000 decisions, whichever is more.",
            show_default="async",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="The address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="The port; 0 takes any that is free.", show_default="8080")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; the memory store has one.", show_default="1")
    ] = None,
    tls_cert: Annotated[
        str | None, typer.Option(metavar="FILE", help="Speak TLS: the certificate, with its chain (PEM).")
    ] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="The certificate's key (PEM).")] = None,
    log: Annotated[
        Literal["text", "json"] | None,
        typer.Option(help="Lines for people, or JSON for programs.", show_default="text"),
    ] = None,
    alert_webhook: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Post episodes of alerts there, signed with RISKENGINE_ALERT_SECRET.",
            show_default=False,
        ),
    ] = None,
    alert_webhook_private: Annotated[
        bool,
        typer.Option(
            "--alert-webhook-private", help="Its address may be one that is not of the public internet."
        ),
    ] = False,
    from_folder: Annotated[
        bool, typer.Option("--from-folder", help="Serve the folder's policy, not what was activated last.")
    ] = False,
) -> None:
    """Answer over HTTP, until Ctrl-C or SIGTERM. SIGHUP reads the policy's folder again.

    Every option has a variable too: --port is RISKENGINE_PORT. The routes are at /docs.
    """
    from riskengine.service import logs
    from riskengine.service import port as port_of
    from riskengine.service.access import Access
    from riskengine.service.settings import Settings

    folder = str(rules_folder(rules)) if rules is not None or not os.environ.get("RISKENGINE_RULES") else None
    settings = Settings.read(
        os.environ,
        rules=folder,
        store=store,
        journal=journal,
        journal_commit=journal_commit,
        host=host,
        port=port,
        workers=workers,
        tls_cert=tls_cert,
        tls_key=tls_key,
        log=log,
        alert_webhook=alert_webhook,
        alert_webhook_private=alert_webhook_private or None,
        from_folder=from_folder or None,
    )
    settings.check()
    access = Access(Path(settings.keys))
    if not settings.on_loopback and not access.required:
        raise RiskEngineError(
            f"{settings.host} can be reached from other machines, and {settings.keys} has no API keys: "
            "anybody could score, label and edit lists. Make one with `riskengine keys make NAME --scope "
            "score`, or listen on 127.0.0.1."
        )
    port_of.check_tls(settings)
    with logs.written(settings.log):
        _serve(settings, access)


def _serve(settings: Settings, access: Access) -> None:
    from riskengine.policy import load_definition
    from riskengine.service import port as port_of
    from riskengine.service.workers import Supervisor, command

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it serves: what it starts with is read just now
    tell = say if settings.log == "text" else logging.getLogger("riskengine.serve").info
    listening = port_of.take_port(settings)
    place = f"{settings.host}:{listening.getsockname()[1]}"
    scheme = "http" if settings.tls_cert is None else "https"

    def ready(name: str) -> None:
        many = f" with {settings.workers} workers" if settings.workers > 1 else ""
        tell(f"serving {name} at {scheme}://{place} (docs at {scheme}://{place}/docs){many}")
        if access.required:
            tell(f"API keys are those of {settings.keys}")
        else:
            tell("without API keys: whoever can reach this machine's loopback may do everything")

    with listening:
        if settings.workers > 1:
            name = load_definition(settings.rules).name
            Supervisor(settings, listening, command()).run(lambda: ready(name))
        else:
            with compiling_told() if settings.log == "text" else nullcontext():
                from riskengine.service import server

                memory = settings.store.startswith("memory:")
                server.run(
                    settings,
                    access,
                    listening,
                    ready,
                    (lambda engine: _resume(engine, tell)) if memory else None,
                )
    tell("stopped: everything that was under way is answered and journaled")


def _resume(engine: Engine, tell: Callable[[str], None]) -> None:
    """Make the counters of the memory store again out of the journal that it was served with."""
    from riskengine.rebuild import resume

    began = time.perf_counter()
    with bar("reading the journal") as moved:
        done = resume(engine, moved)
    if done.events:
        took = f"{time.perf_counter() - began:.1f} s"
        tell(f"the counters are those of {count(done.events, 'event')} in the journal, read in {took}")
