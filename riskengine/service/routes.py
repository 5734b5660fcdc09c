"""Everything but scoring, as FastAPI routes. Bodies are read and answers written by msgspec, as elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar, cast

import msgspec
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response

from riskengine.decision import Decision
from riskengine.engine import Engine
from riskengine.entries import Activation, LabelEntry
from riskengine.errors import EventError, Place, Problem, RiskEngineError
from riskengine.event import Label
from riskengine.journal import JournalError
from riskengine.reading import WrongError, read_time
from riskengine.service import document, trial
from riskengine.service.bodies import read_body
from riskengine.service.document import operation
from riskengine.service.policies import NotPossibleError, Policies
from riskengine.service.problems import MEDIA_TYPE, RefusedError, refusal, told
from riskengine.service.settings import BATCH_EVENTS_MAX
from riskengine.service.shapes import (
    Activated,
    ActivationShown,
    Alerts,
    AlertShown,
    CheckReport,
    Contract,
    History,
    LabelDone,
    LabelRecord,
    ListEntry,
    ListEntryShown,
    NotReady,
    PathOrigin,
    PolicyActivation,
    PolicyFiles,
    PolicyShown,
    Readiness,
    Recorded,
    Released,
    Removed,
    Rollback,
    RuleShown,
)
from riskengine.service.sidecar import Sidecar
from riskengine.stores import StoreError

# Examples, for the document.
_ENTRY: Final = {"expires": "2026-12-31T00:00:00+08:00", "reason": "a device farm"}
_ENTRY_SHOWN: Final = {
    "expires": 1_798_646_400_000, "reason": "a device farm", "author": "ann", "time": 1_794_362_400_000
}  # fmt: skip
_STEP: Final = {"entity": "device", "key": "63186f4c6e77f302"}
_ORIGIN: Final = {
    "path": "35bccd9b4b61bb38", "list": "blocked", **_STEP, **_ENTRY_SHOWN,
    "reached": [
        {
            "list": "near_blocked", "distance": 1, "time": 1_794_362_400_000,
            "via": [_STEP, {"entity": "user", "key": "31f8f505fd3e7b89"}],
        }
    ],
}  # fmt: skip
_RECORDED: Final = {
    "decision": document.DECIDED,
    "event": {**document.EVENT_SENT, "user_id": "#31f8f505fd3e7b89", "device_id": "#63186f4c6e77f302"},
    "labels": [{"event_id": "e1", "label": "fraud", "time": 1_794_362_400_000, "source": "chargeback"}],
}
_POLICY: Final[dict[str, Any]] = {
    "policy": "campaign-protection", "fingerprint": "7f1b0c9d2e3a4b5c", "activation": None,
    "events": ["coupon_claim"], "features": ["device_claims_today"],
    "limits": [
        {
            "name": "one-coupon-a-device", "on": ["coupon_claim"], "then": "deny", "mode": "live",
            "risk": 0.0, "owner": "growth-risk",
        }
    ],
    "rules": [
        {
            "name": "device-farm", "on": ["coupon_claim"], "then": "challenge", "mode": "live",
            "risk": 0.6, "owner": "growth-risk",
        }
    ],
}  # fmt: skip
_READY: Final = {"ready": True, "checks": {"store": "12,044 entities", "journal": "0 entries wait"}}
_ROW: Final = {"daily_budget": 5_000}
_FILES: Final = {"policy.yaml": "policy: campaign-protection\n...", "coupon.test.yaml": "start: ..."}
_ACTIVATION: Final[dict[str, Any]] = {
    "id": "9f86d081884c7d65",
    "action": "activate",
    "fingerprint": "7f1b0c9d2e3a4b5c",
    "author": "ann",
    "reason": "a new farm",
    "time": 1_794_362_400_000,
    "of": None,
    "difference": "--- a/coupon.yaml\n+++ b/coupon.yaml\n...",
}


_EPISODE: Final[dict[str, Any]] = {
    "id": "9f86d081884c7d65", "alert": "codes-invalid-at-a-terminal", "by": "terminal", "key": "till-7",
    "start": 1_794_362_400_000, "end": None, "updated": 1_794_362_460_000, "peak": 0.6,
    "peak_time": 1_794_362_460_000, "above": 0.3, "share": True, "over": 3_600.0, "events": ["e1", "e2"],
    "message": {"zh": "...", "en": "..."}, "policy": "7f1b0c9d2e3a4b5c", "origin": "host/one",
}  # fmt: skip


async def _read(request: Request) -> Any:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedError("media-type", "send application/json, and say so in Content-Type")
    return read_body(await request.body())


async def _read_any(request: Request) -> Any:
    return await _read(request) if await request.body() else None


Body = Annotated[Any, Depends(_read)]
MaybeBody = Annotated[Any, Depends(_read_any)]  # None where there is none


def application(sidecar: Sidecar) -> FastAPI:
    """The routes of a sidecar."""
    engine = sidecar.engine
    app = FastAPI(title="riskengine", docs_url=None, redoc_url=None, openapi_url=None)
    app.router.redirect_slashes = False
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(RiskEngineError, _failed)
    for status in (400, 404, 405):  # what FastAPI raises by itself
        app.add_exception_handler(status, _unrouted)
    app.add_exception_handler(RequestValidationError, _misasked)
    _follow_up(app, engine)
    _lists(app, engine)
    _tables(app, engine)
    _policy(app, engine, sidecar.policies)
    _alerts(app, engine)
    _operating(app, sidecar)
    return app


def _follow_up(app: FastAPI, engine: Engine) -> None:
    @app.post(
        "/v1/labels",
        **operation(
            LabelRecord | list[LabelRecord],
            LabelDone | list[LabelDone],
            404,
            422,
            503,
            sends={"event_id": "e1", "label": "fraud", "source": "chargeback"},
            answers={"event_id": "e1", "known": True},
        ),
    )
    def label(body: Body) -> Response:
        """Say what became known of events: one label or an array of up to 1,000."""
        if not isinstance(body, list):
            done = _label(engine, body)
            if isinstance(done, RefusedError):
                raise done
            return _reply(done)
        if len(body) > BATCH_EVENTS_MAX:
            raise RefusedError("too-large", f"at most {BATCH_EVENTS_MAX:,} labels at once")
        answers = [_label(engine, record, i) for i, record in enumerate(body)]
        return _reply([a.details if isinstance(a, RefusedError) else a for a in answers])

    @app.post(
        "/v1/decisions/{event_id:path}/release",
        **operation(None, Released, 422, 503, answers={"event_id": "e1", "released": True}),
    )
    def release(event_id: str) -> Response:
        """Give back what an event holds of limits: its order was cancelled.

        Asked again it says so, where there is a journal: whoever missed the first answer knows then.
        """
        if engine.release(event_id):
            return _reply(Released(event_id, True))
        before = engine.journal.released(event_id) if engine.journal is not None else None
        return _reply(Released(event_id, False, msgspec.UNSET if before is None else before))

    @app.get(
        "/v1/decisions/{event_id:path}", **operation(None, Recorded, 404, 409, 422, 503, answers=_RECORDED)
    )
    def recorded(event_id: str) -> Response:
        """What the journal holds of an event: its decision, the event (masked), its labels."""
        if engine.journal is None:
            raise RefusedError("conflict", "this sidecar keeps no journal, so it can show no decision")
        entry = engine.journal.decision(event_id)
        if entry is None:
            raise RefusedError("not-found", "the journal has no event of this id")
        return _reply(
            Recorded(
                decision=msgspec.json.decode(entry.decision, type=Decision),
                event=dict(entry.event),
                labels=[_shown_label(found) for found in engine.journal.labels(event_id)],
            )
        )


def _label(engine: Engine, record: Any, at: int | None = None) -> LabelDone | RefusedError:
    try:
        label = Label.parse(record)
        known = engine.label(label.event_id, label.label, label.time, label.source)
    except EventError as error:
        return refusal(error, at)
    if known:
        return LabelDone(label.event_id, True)
    pointer = "/event_id" if at is None else f"/{at}/event_id"
    message = "no event of this id is known (any more)"
    return RefusedError("not-found", message, [Problem(pointer, "unknown-event", message)])


def _lists(app: FastAPI, engine: Engine) -> None:
    path = "/v1/lists/{name}/{entity}/{value:path}"

    @app.get(path, **operation(None, ListEntryShown, 404, 422, 503, answers=_ENTRY_SHOWN))
    def get_entry(name: str, entity: str, value: str) -> Response:
        """The entry of a value. Of a composite entity, its values with slashes between them."""
        found = engine.list_get(name, entity, _member(engine, name, entity, value))
        if found is None:
            raise RefusedError("not-found", f"it is not on the list {name}")
        return _reply(found)

    @app.put(path, **operation(ListEntry, ListEntryShown, 404, 422, 503, sends=_ENTRY, answers=_ENTRY_SHOWN))
    def put_entry(name: str, entity: str, value: str, body: Body, request: Request) -> Response:
        """Enter a value into a list, or replace its entry; in effect from the next batch on, everywhere.

        Its author is the API key's name, where there are keys.
        """
        entry = _typed(body, ListEntry)
        member = _member(engine, name, entity, value)
        try:
            expires = read_time(entry.expires)
        except WrongError:
            message = "expires is an RFC 3339 time or milliseconds since 1970"
            raise RefusedError("invalid", message, [Problem("/expires", "wrong-type", message)]) from None
        author = _author(request) or entry.author
        engine.list_put(name, entity, member, expires, entry.reason, author)
        return _reply(engine.list_get(name, entity, member))

    @app.delete(path, **operation(None, Removed, 404, 422, 503, answers={"removed": True}))
    def delete_entry(name: str, entity: str, value: str, request: Request) -> Response:
        """Take a value off a list; whether it was on it."""
        member = _member(engine, name, entity, value)
        return _reply(Removed(engine.list_delete(name, entity, member, _author(request))))

    by_path = "/v1/paths/{path}"

    @app.get(by_path, **operation(None, PathOrigin, 404, 422, 503, answers=_ORIGIN))
    def get_path(path: str) -> Response:
        """The block that a decision's path comes from, and what it reached."""
        found = engine.path(path)
        if found is None:
            raise RefusedError("not-found", "no entry that stands has paths of this id")
        return _reply(found)

    @app.delete(by_path, **operation(None, Removed, 404, 422, 503, answers={"removed": True}))
    def delete_path(path: str, request: Request) -> Response:
        """Lift the block that a path comes from, and with it everything that it reached."""
        return _reply(Removed(engine.lift(path, _author(request))))


def _member(engine: Engine, name: str, entity: str, value: str) -> str | list[str]:
    """The value as the engine takes it, once there is such a list of such an entity."""
    definition = engine.definition
    known = definition.lists.get(name)
    if known is None or entity not in known.of:
        what = f"no list {name}" if known is None else f"nothing of {entity} on the list {name}"
        raise RefusedError("not-found", f"the policy has {what}" if _plain(name, entity) else "no such list")
    fields = definition.entities[entity].fields
    if len(fields) == 1:
        return value
    values = value.split("/")
    if len(values) != len(fields):
        raise RefusedError("invalid", f"{entity} is made of {' and '.join(fields)}: give {'/'.join(fields)}")
    return values


def _tables(app: FastAPI, engine: Engine) -> None:
    path = "/v1/tables/{name}/{key:path}"

    @app.get(path, **operation(None, dict[str, Any], 404, 422, 503, answers=_ROW))
    def get_row(name: str, key: str) -> Response:
        """A row of a table; times are in milliseconds."""
        _known_table(engine, name)
        row = engine.table_get(name, key)
        if row is None:
            raise RefusedError("not-found", f"table {name} has no such row")
        return _reply(row)

    @app.put(path, **operation(dict[str, Any], dict[str, Any], 404, 409, 422, 503, sends=_ROW, answers=_ROW))
    def put_row(name: str, key: str, body: Body, request: Request) -> Response:
        """Enter or replace a row of a live table; in effect from the next batch on, in every sidecar."""
        _live_table(engine, name)
        engine.table_put(name, key, _typed(body, dict[str, Any]), _author(request))
        return _reply(engine.table_get(name, key))

    @app.delete(path, **operation(None, Removed, 404, 409, 422, 503, answers={"removed": True}))
    def delete_row(name: str, key: str, request: Request) -> Response:
        """Remove a row of a live table; whether it was there."""
        _live_table(engine, name)
        return _reply(Removed(engine.table_delete(name, key, _author(request))))


def _known_table(engine: Engine, name: str) -> None:
    if name not in engine.definition.tables:
        raise RefusedError(
            "not-found", f"the policy has no table {name}" if _plain(name) else "no such table"
        )


def _live_table(engine: Engine, name: str) -> None:
    _known_table(engine, name)
    if engine.definition.tables[name].rows is not None:
        raise RefusedError(
            "conflict", f"table {name} comes from a file of the policy: edit the file, then reload"
        )


def _policy(app: FastAPI, engine: Engine, policies: Policies) -> None:
    @app.get("/v1/policy", **operation(None, PolicyShown, 422, answers=_POLICY))
    def show(files: Annotated[Literal["true", "false"], Query()] = "false") -> Response:
        """The policy that is serving, how it came to that, and with `?files=true` what its files say."""
        policy, act = engine.policy, policies.current
        definition = policy.definition
        return _reply(
            PolicyShown(
                policy=definition.name,
                fingerprint=policy.fingerprint,
                activation=None if act is None else _shown_activation(act),
                events=list(definition.events),
                features=list(definition.features),
                limits=[
                    RuleShown(x.name, list(x.types), x.then, x.mode, 0.0, x.owner)
                    for x in definition.limits.values()
                ],
                rules=[
                    RuleShown(x.name, list(x.types), x.then, x.mode, x.risk, x.owner)
                    for x in definition.rules.values()
                ],
                files=dict(policies.files) if files == "true" else msgspec.UNSET,
            )
        )

    @app.get("/v1/policy/history", **operation(None, History, 503, answers={"activations": [_ACTIVATION]}))
    def history() -> Response:
        """What was activated, by whom, when and with what difference; the newest first, up to 100."""
        return _reply(History([_shown_activation(act) for act in reversed(policies.history())]))

    @app.get(
        "/v1/policy/contract",
        **operation(
            None, Contract, answers={"fingerprint": "7f1b0c9d2e3a4b5c", "fail": {"payment": "closed"}}
        ),
    )
    def contract() -> Response:
        """What clients do by themselves while no sidecar answers: `fail` of each event type."""
        kinds = engine.definition.events
        return _reply(Contract(engine.fingerprint, {name: kind.fail for name, kind in kinds.items()}))

    @app.post(
        "/v1/policy/check",
        **operation(
            PolicyFiles, CheckReport, 422, 503, sends={"files": _FILES}, answers={"ok": True, "findings": []}
        ),
    )
    def check_policy(body: Body) -> Response:
        """Lint the files of a policy, as `riskengine check` does. Nothing of them is kept."""
        found = _tried(lambda: policies.check(_files(_typed(body, PolicyFiles).files)))
        return _reply(CheckReport(found.ok, found.findings))

    @app.post(
        "/v1/policy/activate",
        **operation(
            PolicyActivation,
            Activated,
            422,
            503,
            sends={"files": _FILES, "reason": "a new farm"},
            answers={"activation": _ACTIVATION, "tests": 33, "findings": []},
        ),
    )
    def activate(body: Body, request: Request) -> Response:
        """Serve the policy of these files, where it checks and passes its own rule tests.

        All sidecars and workers on the same Redis serve it within 2 s of the answer, and after a restart too.
        """
        asked = _typed(body, PolicyActivation)
        files = _files(asked.files)
        act, outcome = _tried(lambda: policies.activate(files, _author(request), asked.reason))
        if act is None:
            raise RefusedError("policy", _why_not(outcome), list(_problems(outcome)))
        return _reply(Activated(_shown_activation(act), outcome.tests or 0, outcome.findings))

    @app.post(
        "/v1/policy/rollback",
        **operation(
            Rollback,
            ActivationShown,
            409,
            422,
            503,
            sends={"reason": "too hard"},
            answers=_ACTIVATION | {"action": "rollback"},
            needed=False,
        ),
    )
    def rollback(body: MaybeBody, request: Request) -> Response:
        """Serve what served before the last activation; asked again, what served before that."""
        asked = _typed({} if body is None else body, Rollback)
        try:
            return _reply(_shown_activation(policies.rollback(_author(request), asked.reason)))
        except NotPossibleError as error:
            raise RefusedError("conflict", str(error)) from None


T = TypeVar("T")


def _tried(do: Callable[[], T]) -> T:
    try:
        return do()
    except trial.BusyError as busy:
        raise RefusedError("busy", str(busy), headers=((b"retry-after", b"5"),)) from None


def _files(files: dict[str, str]) -> dict[str, str]:
    """The files of a policy, once their names are such as a folder below could have."""
    if len(files) > trial.FILES_MAX:
        raise RefusedError("too-large", f"a policy has at most {trial.FILES_MAX} files")
    if trial.wrong_name(files) is not None:
        message = (
            "a file's name is a path below the policy's folder, such as coupon.yaml, and is no folder too"
        )
        raise RefusedError("invalid", message, [Problem("/files", "file-name", message)])
    return files


def _why_not(outcome: trial.Outcome) -> str:
    if outcome.tests == 0:
        return "the policy brings no rule test that runs, which counts as a failure: nothing was switched"
    if not outcome.ok:
        return "the policy, or one of its rule tests, does not check: nothing was switched"
    return f"rule tests failed ({len(outcome.failed)} expectations): nothing was switched"


def _problems(outcome: trial.Outcome) -> Iterator[Problem]:
    """What stands against a policy, each with the file it is in and the place there."""

    def pointer(place: Place) -> str:
        return "/files/" + place.file.replace("~", "~0").replace("/", "~1")

    for found in outcome.findings:
        if found.severity == "error":
            message = f"{found.place.line}:{found.place.column}: {found.message}"
            message = f"{message} ({found.mend})" if found.mend else message
            yield Problem(pointer(found.place), found.code, message, found.expected, found.found)
    for failed in outcome.failed:
        message = f"{failed.place.line}:{failed.place.column}: {failed.test}: {failed.message}"
        yield Problem(pointer(failed.place), "rule-test", message)


def _shown_activation(act: Activation) -> ActivationShown:
    return ActivationShown(
        id=act.id,
        action=act.action,
        fingerprint=act.fingerprint,
        author=act.author,
        reason=act.reason,
        time=act.time_ms,
        of=act.of,
        difference=act.difference,
    )


def _author(request: Request) -> str | None:
    """The name of the API key, where there are keys."""
    name: str | None = request.scope.get("riskengine.key")
    return name


def _alerts(app: FastAPI, engine: Engine) -> None:
    @app.get("/v1/alerts", **operation(None, Alerts, 422, 503, answers={"alerts": [_EPISODE]}))
    def alerts(open: Annotated[Literal["true", "false"], Query()] = "false") -> Response:
        """Episodes of alerts, the newest first, up to 200; with `?open=true` those that go on.

        With a journal they are those of every process that writes it.
        """
        engine.look_at_alerts()
        found = {} if engine.journal is None else {one.id: one for one in engine.journal.alerts(most=200)}
        found |= {one.id: one for one in engine.alerts()}
        chosen = [one for one in found.values() if open == "false" or one.end_ms is None]
        chosen.sort(key=lambda one: -one.start_ms)
        return _reply(Alerts([AlertShown.of(one) for one in chosen[:200]]))


def _operating(app: FastAPI, sidecar: Sidecar) -> None:
    @app.get("/livez", **operation(None, Readiness, answers={"ready": True}))
    async def livez() -> Response:
        """Whether the process answers at all."""
        return _reply(Readiness(True))

    @app.get("/readyz", **operation(None, Readiness, 503, answers=_READY))
    def readyz(verbose: Annotated[str | None, Query()] = None) -> Response:
        """Whether traffic should come here. With `?verbose`, how each part fares, a line each."""
        checks = sidecar.checks()
        lines = {name: line for name, (_, line) in checks.items()} if verbose is not None else {}
        failing = [
            Problem(f"/checks/{name}", name, line) for name, (good, line) in checks.items() if not good
        ]
        if not failing:
            return _reply(Readiness(True, lines))
        said = "; ".join(f"{problem.code}: {problem.message}" for problem in failing)
        details = RefusedError("not-ready", said, failing).details
        found = NotReady(**msgspec.structs.asdict(details), checks=lines)
        return Response(msgspec.json.encode(found), 503, media_type=MEDIA_TYPE.decode())

    @app.get("/metrics", include_in_schema=True, **document.plain("text/plain", "Metrics for Prometheus."))
    def show_metrics() -> Response:
        """Everything that is counted, in Prometheus' text format."""
        return Response(sidecar.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/openapi.json", include_in_schema=False)
    def openapi() -> Response:
        return _reply(document.describe(app))

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        return HTMLResponse(document.page(document.describe(app)))


def _typed(body: Any, type: type[Any]) -> Any:
    """The body as this type. What msgspec finds wrong is told with its pointer, never with the value."""
    try:
        return msgspec.convert(body, type)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$")
        pointer = place.rstrip("`").replace(".", "/").replace("[", "/").replace("]", "")
        if "..." in place:  # a key of a map: msgspec does not say which
            pointer = pointer.partition("/...")[0]
        raise RefusedError("invalid", said, [Problem(pointer, "wrong-type", said)]) from None


def _shown_label(entry: LabelEntry) -> LabelRecord:
    return LabelRecord(entry.event_id, cast(Any, entry.label), entry.time_ms, entry.source)


def _plain(*names: str) -> bool:
    """Whether names may be repeated in a message: long or strange ones may be somebody's data."""
    return all(name.isidentifier() and len(name) <= 64 for name in names)


def _reply(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _problem(refused: RefusedError) -> Response:
    status, headers, body = told(refused)
    names: Sequence[tuple[str, str]] = [(name.decode(), value.decode()) for name, value in headers]
    return Response(body, status, headers=dict(names))


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return _problem(error)


async def _failed(_: Request, error: Exception) -> Response:
    if isinstance(error, EventError):
        return _problem(refusal(error))
    if isinstance(error, StoreError):
        return _problem(RefusedError("store", str(error), headers=((b"retry-after", b"1"),)))
    if isinstance(error, JournalError):
        return _problem(RefusedError("journal", str(error), headers=((b"retry-after", b"1"),)))
    return _problem(RefusedError("invalid", str(error)))


async def _unrouted(_: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 400)
    if status == 405:
        allow = (getattr(error, "headers", None) or {}).get("Allow", "")
        return _problem(
            RefusedError("method", f"allowed here: {allow}", headers=((b"allow", allow.encode()),))
        )
    if status == 404:
        return _problem(RefusedError("not-found", "there is no such route: /docs lists them"))
    return _problem(RefusedError("malformed", "the request cannot be read"))


async def _misasked(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    places = ", ".join(".".join(map(str, found["loc"])) for found in error.errors())
    return _problem(RefusedError("invalid", f"not as the route has it: {places}"))
