"""The OpenAPI 3.1 document of all routes, those that FastAPI never sees too, and a page that shows it.

Schemas come from the msgspec types that are read and written. The page needs nothing from a network.
"""

from __future__ import annotations

import html
import json
from typing import Any, Final

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from riskengine.decision import Decision
from riskengine.service import shapes
from riskengine.service.access import NEEDED
from riskengine.service.problems import KINDS, ProblemDetails

_TITLES: Final = dict(reversed([*KINDS.values()]))  # of a status that several have, the first one's
_TYPES: Final = (
    Decision, ProblemDetails, shapes.LabelRecord, shapes.LabelDone, shapes.Released, shapes.Removed,
    shapes.Recorded, shapes.ListEntry, shapes.ListEntryShown, shapes.PathOrigin, shapes.PolicyFiles,
    shapes.CheckReport, shapes.PolicyShown, shapes.PolicyActivation, shapes.Rollback, shapes.ActivationShown,
    shapes.Activated, shapes.History, shapes.Contract, shapes.Alerts, shapes.Readiness,
)  # fmt: skip
_TEMPLATE: Final = "#/components/schemas/{name}"
_EVENT: Final = {
    "type": "object",
    "description": "An event. The policy says which fields a type has and needs; unknown ones are journaled.",
    "required": ["event_id", "type"],
    "properties": {
        "event_id": {"type": "string", "minLength": 1, "maxLength": 256},
        "type": {"type": "string"},
        "time": {"type": ["string", "integer"], "description": "RFC 3339, or ms since 1970; now unless said"},
        "follows": {
            "type": "string",
            "description": "the challenged or reviewed event that this one settles",
        },
    },
    "additionalProperties": True,
}
EVENT_SENT: Final = {
    "event_id": "e1",
    "type": "coupon_claim",
    "user_id": "u1",
    "device_id": "d1",
    "campaign_id": "everyday-coupons",
    "coupon_type": "ten-off",
    "amount": 10,
}
DECIDED: Final = {
    "event_id": "e1",
    "decision_id": "5d0c6ab29f9c5a9e3b1f0e7c2d4a6b80",
    "action": "deny",
    "risk": 0.0,
    "challenge": None,
    "reasons": [
        {
            "rule": "one-coupon-a-device",
            "message": {"zh": "该设备今天已领取过此券", "en": "This device has claimed this coupon today"},
            "risk": 0.0,
        }
    ],
    "fired": ["one-coupon-a-device"],
    "shadow": [],
    "model": None,
    "policy": "7f1b0c9d2e3a4b5c",
    "flags": [],
    "time": 1_794_362_400_000,
}
_KEY: Final = {
    "type": "http",
    "scheme": "bearer",
    "description": "an API key with the scope named, or admin. A sidecar without keys needs none",
}
_DEADLINE: Final = {
    "name": "X-Deadline-Ms",
    "in": "header",
    "description": "past it the event type's `fail:` answers, flagged degraded:deadline",
    "schema": {"type": "integer", "minimum": 1, "maximum": 60_000, "default": 50},
}
_FEATURES: Final = {
    "name": "features",
    "in": "query",
    "description": "whether decisions carry every feature",
    "schema": {"enum": ["true", "false"], "default": "false"},
}


def operation(
    body: Any, gives: Any, *problems: int, sends: object = None, answers: object = None, needed: bool = True
) -> dict[str, Any]:
    """What FastAPI is to say of a route: types of its body and of its answer, and statuses of problems.

    `sends` and `answers` are examples; `needed`: whether there must be a body.
    """
    extra: dict[str, Any] = {}
    if body is not None:
        problems = (400, 408, 413, 415, *problems)
        extra["requestBody"] = {"required": needed, "content": {"application/json": _content(body, sends)}}
    answer = {"description": "Done", "content": {"application/json": _content(gives, answers)}}
    return {
        "openapi_extra": extra,
        "responses": {200: answer, **_problems(*dict.fromkeys((*problems, 500)))},
        "response_model": None,
    }


def _content(type: Any, example: object) -> dict[str, Any]:
    return {"schema": _schema(type)} if example is None else {"schema": _schema(type), "example": example}


def plain(media_type: str, told: str) -> dict[str, Any]:
    """The same of a route that answers with text."""
    answer = {"description": told, "content": {media_type: {"schema": {"type": "string"}}}}
    return {"responses": {200: answer, **_problems(500)}, "response_model": None}


def describe(app: FastAPI) -> dict[str, Any]:
    """The whole document."""
    from importlib import metadata

    try:
        version = metadata.version("riskengine")
    except metadata.PackageNotFoundError:
        version = "0"
    found = get_openapi(title="riskengine", version=version, routes=app.routes, openapi_version="3.1.0")
    for methods in found["paths"].values():
        for route in methods.values():
            for status, answer in list(route["responses"].items()):
                if status == "422" and "application/json" in answer.get("content", {}):
                    del route["responses"][status]  # FastAPI's own, which nothing here sends
    for known in app.routes:  # FastAPI leaves out of examples what is null in them
        if isinstance(known, APIRoute) and known.include_in_schema:
            for method in known.methods or ():
                route = found["paths"][known.path_format][method.lower()]
                route |= known.openapi_extra or {}
                for status, answer in known.responses.items():
                    route["responses"][str(status)]["content"] = answer["content"]
    batch = {"type": "array", "maxItems": 1_000, "items": _ref("Event")}
    item = {"anyOf": [_ref("Decision"), _ref("ProblemDetails")]}
    found["paths"] = {
        "/v1/score": {
            "post": _scoring(
                "Decide one event", _ref("Event"), _ref("Decision"), EVENT_SENT, DECIDED, 409, 422
            )
        },
        "/v1/score/batch": {
            "post": _scoring(
                "Decide up to 1,000 events, as one by one; a bad one gets a problem in its place",
                batch,
                {"type": "array", "items": item},
                [EVENT_SENT],
                [DECIDED],
            )
        },
        **found["paths"],
    }
    label = found["paths"]["/v1/labels"]["post"]["responses"]["200"]["content"]["application/json"]
    labelled = {"anyOf": [_ref("LabelDone"), _ref("ProblemDetails")]}  # msgspec describes no such union
    label["schema"] = {"anyOf": [_ref("LabelDone"), {"type": "array", "items": labelled}]}
    for path, methods in found["paths"].items():
        for method, route in methods.items():
            scope = NEEDED[method.upper(), path]
            if scope is not None:
                route["security"] = [{"key": [scope]}]
                refused = _problems(401, 403, 429)
                route["responses"].update({str(status): told for status, told in refused.items()})
    _, components = msgspec.json.schema_components(_TYPES, ref_template=_TEMPLATE)
    found["components"] = {"schemas": {"Event": _EVENT, **components}, "securitySchemes": {"key": _KEY}}
    return found


def _scoring(
    told: str, body: dict[str, Any], gives: dict[str, Any], example: object, answer: object, *problems: int
) -> dict[str, Any]:
    kinds = ("application/json", "application/msgpack")
    return {
        "summary": told,
        "parameters": [_FEATURES, _DEADLINE],
        "requestBody": {
            "required": True,
            "content": {
                kind: {"schema": body, "example": example} if kind == kinds[0] else {"schema": body}
                for kind in kinds
            },
        },
        "responses": {
            "200": {
                "description": "Decided; Server-Timing tells the time taken",
                "content": {
                    kind: {"schema": gives, "example": answer} if kind == kinds[0] else {"schema": gives}
                    for kind in kinds
                },
            },
            **{
                str(status): problem
                for status, problem in _problems(400, 408, 413, 415, *problems, 500, 503).items()
            },
        },
    }


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {
            "description": _TITLES[status],
            "content": {
                "application/problem+json": {"schema": _ref("ProblemDetails"), "example": _problem(status)}
            },
        }
        for status in statuses
    }


def _problem(status: int) -> dict[str, Any]:
    """A problem of this status, as it might be told."""
    kind = next(name for name, (known, _) in KINDS.items() if known == status)
    example: dict[str, Any] = {
        "type": f"urn:riskengine:problem:{kind}",
        "title": _TITLES[status],
        "status": status,
        "detail": _TITLES[status],
        "problems": [],
    }
    if status == 422:
        message = "expected a number, found text"
        example["problems"] = [
            {
                "pointer": "/amount",
                "code": "wrong-type",
                "message": message,
                "expected": "a number",
                "found": "text",
            }
        ]
    return example


def _schema(type: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components((type,), ref_template=_TEMPLATE)
    return schema


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _TEMPLATE.format(name=name)}


def page(described: dict[str, Any]) -> str:
    """The document as a page to read: one file, no script, nothing from elsewhere."""
    routes = "".join(
        _route(method, path, route)
        for path, methods in described["paths"].items()
        for method, route in methods.items()
    )
    shapes = "".join(
        f"<h3 id='{html.escape(name)}'>{html.escape(name)}</h3>{_pre(schema)}"
        for name, schema in described["components"]["schemas"].items()
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>riskengine</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "pre{background:#8881;padding:.7rem;overflow:auto;font-size:.85rem}code{font-size:.95em}"
        "summary{cursor:pointer;padding:.3rem 0}b{display:inline-block;width:5rem}"
        "@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#8bf}}</style>"
        f"<h1>riskengine {html.escape(described['info']['version'])}</h1>"
        "<p>The same for programs: <a href='openapi.json'>openapi.json</a>. What is no success is "
        f"<code>application/problem+json</code>.</p><h2>Routes</h2>{routes}<h2>Schemas</h2>{shapes}</html>"
    )


def _route(method: str, path: str, route: dict[str, Any]) -> str:
    told = html.escape(route.get("description") or route.get("summary", ""))
    rest = {name: route[name] for name in ("parameters", "requestBody", "responses") if name in route}
    return (
        f"<details><summary><b>{method.upper()}</b><code>{html.escape(path)}</code></summary>"
        f"<p>{told}</p>{_pre(rest)}</details>"
    )


def _pre(value: object) -> str:
    return f"<pre>{html.escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
