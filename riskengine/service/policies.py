"""Which policy a sidecar serves: the one that was activated last, else that of its folder.

An activation is kept in the store that sidecars share, else in the journal, and goes before the folder
until a rollback to before it, or SIGHUP, brings the folder back: whoever only knows folders never meets one.
All sidecars and workers on one store look for newer ones all the time.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from riskengine.definition import Definition
from riskengine.engine import SHARED, Engine
from riskengine.entries import Activation
from riskengine.errors import PolicyError, RiskEngineError
from riskengine.journal import Journal, JournalError
from riskengine.policy import load_definition
from riskengine.service import trial
from riskengine.service.settings import Settings
from riskengine.service.trial import Outcome, Trial
from riskengine.stores.activations import KEPT, Activations

LOOK_SECONDS: Final = 0.3  # between looks at what others activated
RETRY_SECONDS: Final = 5.0  # before what could not be served is tried again
FLUSH_SECONDS: Final = 5.0
PAUSE_SECONDS: Final = 0.005  # between parts of preparing a policy, of 1 to 5 ms: scoring goes on meanwhile
LEADER_SECONDS: Final = 1.0  # for the worker that leads to do what all were told
_log = logging.getLogger(__name__)


class NotPossibleError(RiskEngineError):
    """There is nothing to go back to."""


class Policies:
    """Decides what is served. `find` what that is, open an engine on `definition`, then `serve` with it.

    Its methods wait for processes, servers and files: call them from threads.
    """

    def __init__(
        self, settings: Settings, definition: Definition, files: Mapping[str, str], leads: bool
    ) -> None:
        """Use `Policies.find`."""
        self._leads = leads
        self.definition = definition  # that of the start
        self.files = files  # of the policy that serves
        self.current: Activation | None = None  # None: the folder's serves
        self.behind: str | None = None  # why a newer one is not served
        self._settings = settings
        self._shared: Activations | None = None
        self._past: list[Activation] = []
        self._lock = threading.Lock()  # around whatever changes what is served
        self._stop = threading.Event()
        self._follower: threading.Thread | None = None

    @classmethod
    def find(cls, settings: Settings, leads: bool = True) -> Policies:
        """What is to serve from the start. Raises PolicyError and RiskEngineError.

        Of several workers one `leads`: what all are told at once, it does for all.
        """
        definition, files = load_definition(settings.rules), trial.read_folder(settings.rules)
        found = cls(settings, definition, files, leads)
        if settings.store.partition(":")[0].partition("+")[0] in SHARED:
            found._shared = Activations.open(settings.store, definition.tenant)
            found._past = found._shared.newer()
        elif settings.journal_url is not None:
            with Journal.open(settings.journal_url) as journal:
                found._past = journal.activations()
        if found._past and found._past[-1].files is not None and not settings.from_folder:
            act = found.current = found._past[-1]
            try:
                found.definition, found.files = found._read(act.files)
            except PolicyError as error:
                raise RiskEngineError(
                    f"{error}\n\n{act.author or 'somebody'} activated this policy over HTTP, and it cannot "
                    "be served here any more: serve --from-folder goes back to that of --rules"
                ) from None
            if leads:
                _log.info(
                    "%s activated this policy over HTTP: a rollback, SIGHUP or --from-folder goes back to "
                    "that of %s",
                    act.author or "somebody",
                    settings.rules,
                )
        return found

    def serve(self, engine: Engine) -> None:
        """Go on with an engine that was opened on `definition`, and follow what others activate."""
        self._engine = engine
        if self._settings.from_folder and self._past and self._past[-1].files is not None:
            self._act("folder", None, "serve --from-folder", None)
        if self._shared is not None:
            self._follower = threading.Thread(target=self._follow, name="riskengine-policies", daemon=True)
            self._follower.start()

    def close(self) -> None:
        """Follow no more."""
        self._stop.set()
        if self._follower is not None:
            self._follower.join()
        if self._shared is not None:
            self._shared.close()

    # -- asked for

    def check(self, files: Mapping[str, str]) -> Outcome:
        """What `riskengine check` says of these files. Raises trial.BusyError."""
        return trial.run(Trial(dict(files), self._settings.rules)).outcome

    def activate(
        self, files: Mapping[str, str], author: str | None, reason: str | None
    ) -> tuple[Activation | None, Outcome]:
        """Serve these files where they check and pass their own rule tests; None where they do not.

        It is kept, and serves here, before this returns. Raises RiskEngineError, trial.BusyError.
        """
        before = self.files
        tried = trial.run(Trial(dict(files), self._settings.rules, dict(before), tests=True))
        outcome = tried.outcome
        if not outcome.serves:
            return None, outcome
        known = outcome.difference if self.files is before else None
        act = self._act("activate", files, author, reason, difference=known, definition=tried.definition)
        return act, outcome

    def rollback(self, author: str | None, reason: str | None) -> Activation:
        """Serve what served before: once more, and it goes further back. Raises NotPossibleError."""
        with self._lock:
            past = self.history()
            now = self.current
            if now is None:
                raise NotPossibleError("nothing was activated before: the policy of the folder serves")
            places = {act.id: i for i, act in enumerate(past)}
            origin = places.get(now.of or now.id)
            if origin is None:
                raise NotPossibleError(f"what served before is not kept any more: {KEPT} activations are")
            before = past[origin - 1] if origin else None
            if before is not None and before.action == "rollback":
                before = next((act for act in past if act.id == before.of), None)
        if before is None or before.files is None:
            return self._act("rollback", None, author, reason)
        return self._act("rollback", before.files, author, reason, before.id)

    def reread(self, author: str) -> None:
        """Serve the folder's policy, as it is now. Raises PolicyError where it does not check.

        Where another was activated that ends, for all that share the store.
        """
        if self.current is not None:
            if not self._leads:
                self._stop.wait(LEADER_SECONDS)  # and then there is no leader, or it is about to start
            if self.current is not None:
                self._act("folder", None, author, None)
            return
        with self._lock:
            definition, files = self._read(None)
            self._engine.switch(self._engine.prepare(definition, _let_score))
            self.files = files

    def history(self) -> Sequence[Activation]:
        """The activations that are kept, the oldest first. Raises StoreError."""
        return self._shared.all() if self._shared is not None else list(self._past)

    # -- how it comes to be served

    def _act(
        self,
        action: Literal["activate", "rollback", "folder"],
        files: Mapping[str, str] | None,
        author: str | None,
        reason: str | None,
        of: str | None = None,
        difference: str | None = None,
        definition: Definition | None = None,
    ) -> Activation:
        """`definition`: what the files say, where somebody has read them already."""
        with self._lock:
            own = files
            if definition is None or own is None:
                definition, own = self._read(files)
            policy = self._engine.prepare(definition, _let_score)
            act = Activation(
                id=secrets.token_hex(8),
                action=action,
                fingerprint=policy.fingerprint,
                files=None if files is None else dict(files),
                time_ms=time.time_ns() // 1_000_000,
                author=author,
                reason=reason,
                of=of,
                difference=trial.difference(self.files, own) if difference is None else difference,
            )
            if self._shared is not None:
                self._shared.append(act)
            else:
                self._past = [*self._past, act][-KEPT:]
            self._engine.switch(policy, act)
            self._serves(act, own)
            if self._engine.journal is not None:
                try:
                    self._engine.journal.flush(FLUSH_SECONDS)
                except JournalError as error:
                    if self._shared is None:
                        raise JournalError(f"it serves, and is not in the journal yet: {error}") from None
            _log.info("policy", extra={"action": action, "policy": act.fingerprint, "author": author})
            return act

    def _serves(self, act: Activation, files: Mapping[str, str]) -> None:
        self.current = act if act.files is not None else None
        self.files = files
        self.behind = None

    def _read(self, files: Mapping[str, str] | None) -> tuple[Definition, Mapping[str, str]]:
        """The checked policy of these files, or of the folder. Raises PolicyError."""
        if files is None:
            return load_definition(self._settings.rules), trial.read_folder(self._settings.rules)
        with trial.laid_out(files) as folder:
            return dataclasses.replace(load_definition(folder), folder=self._settings.rules), files

    def _follow(self) -> None:
        """Serve what other sidecars and workers activate."""
        wanted: Activation | None = None
        again = 0.0
        away = False
        while not self._stop.wait(LOOK_SECONDS):
            with self._lock:  # nothing is activated here between the look and what follows from it
                try:
                    newer = self._shared.newer() if self._shared is not None else []
                    away = False
                except RiskEngineError as error:
                    if not away:
                        _log.warning("activations cannot be read: %s", error)
                    away = True
                    continue
                if newer:
                    wanted, again = newer[-1], 0.0
                if wanted is None or time.monotonic() < again:
                    continue
                try:
                    self._take_in(wanted)
                    wanted = None
                except (RiskEngineError, OSError) as error:
                    again = time.monotonic() + RETRY_SECONDS
                    why = f"{len(error.findings)} findings" if isinstance(error, PolicyError) else str(error)
                    self.behind = f"what was activated last cannot be served here: {why}"
                    _log.error("%s", self.behind)

    def _take_in(self, act: Activation) -> None:
        if self.current is not None and act.id == self.current.id:
            return
        definition, files = self._read(act.files)
        policy = self._engine.prepare(definition, _let_score)
        if policy.fingerprint != self._engine.fingerprint:
            self._engine.switch(policy)
        self._serves(act, files)
        _log.info("policy", extra={"action": "follow", "policy": policy.fingerprint})


def _let_score() -> None:
    time.sleep(PAUSE_SECONDS)
