"""`riskengine serve`: the sidecar, which answers over HTTP."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from riskengine.cli.compiling import compiling_told
from riskengine.cli.folders import RulesOption, rules_folder
from riskengine.cli.terminal import bar, count, say
from riskengine.errors import RiskEngineError

if TYPE_CHECKING:
    from riskengine.engine import Engine


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
    host: Annotated[
        str | None, typer.Option(help="The address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="The port; 0 takes any that is free.", show_default="8080")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; the memory store has one.", show_default="1")
    ] = None,
    from_folder: Annotated[
        bool, typer.Option("--from-folder", help="Serve the folder's policy, not what was activated last.")
    ] = False,
) -> None:
    """Answer over HTTP, until Ctrl-C or SIGTERM. SIGHUP reads the policy's folder again.

    Every option has a variable too: --port is RISKENGINE_PORT. The routes are at /docs.
    """
    from riskengine.service.access import Access
    from riskengine.service.settings import Settings

    folder = str(rules_folder(rules)) if rules is not None or not os.environ.get("RISKENGINE_RULES") else None
    settings = Settings.read(
        os.environ,
        rules=folder,
        store=store,
        journal=journal,
        host=host,
        port=port,
        workers=workers,
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
    with compiling_told():
        from riskengine.engine import Engine
        from riskengine.service import server
        from riskengine.service.policies import Policies
        from riskengine.service.rehearsal import rehearse

        listening = server.take_port(settings)
        policies = Policies.find(settings)
        with (
            listening,
            Engine.open(policies.definition, store=settings.store, journal=settings.journal_url) as engine,
        ):
            rehearse(engine.definition)
            if settings.store.startswith("memory:"):
                _resume(engine)
            place = f"{settings.host}:{listening.getsockname()[1]}"

            def ready() -> None:
                say(f"serving {engine.definition.name} at http://{place} (docs at http://{place}/docs)")
                if (act := policies.current) is not None:
                    say(
                        f"{act.author or 'somebody'} activated this policy over HTTP: a rollback, SIGHUP or "
                        f"--from-folder goes back to that of {settings.rules}"
                    )
                if access.required:
                    say(f"API keys are those of {settings.keys}")
                else:
                    say("without API keys: whoever can reach this machine's loopback may do everything")

            server.serve(engine, settings, access, policies, listening, ready)
    say("stopped: everything that was under way is answered and journaled")


def _resume(engine: Engine) -> None:
    """Make the counters of the memory store again out of the journal that it was served with."""
    from riskengine.rebuild import resume

    began = time.perf_counter()
    with bar("reading the journal") as moved:
        done = resume(engine, moved)
    if done.events:
        took = f"{time.perf_counter() - began:.1f} s"
        say(f"the counters are those of {count(done.events, 'event')} in the journal, read in {took}")
