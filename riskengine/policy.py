"""A policy folder becomes one checked `Definition`, or every reason why it may not.

`sections` reads what the files say; here is which files those are, and the fingerprints of what they
said: a policy's goes into every decision, a feature's names what is kept for it.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

from riskengine.definition import Definition, Feature, List
from riskengine.errors import Finding, Place, PolicyError, nearest
from riskengine.expression import Expression
from riskengine.scalars import parse_duration
from riskengine.sections import Loader
from riskengine.source import Source, read_source

__all__ = [
    "Examination",
    "definition_fingerprint",
    "examine",
    "feature_fingerprint",
    "load_definition",
    "parse_duration",
]


@dataclass(frozen=True, slots=True)
class Examination:
    """What reading a folder gave: `definition` is None when an error is among the findings."""

    definition: Definition | None
    findings: tuple[Finding, ...]  # in the order of the files
    sources: Mapping[str, Source]  # by the name their places carry


def load_definition(folder: str | Path) -> Definition:
    """Read and check a policy folder. Raises PolicyError with every finding if one of them is an error."""
    with collector_paused():
        examined = examine(folder)
        definition, findings = examined.definition, examined.findings
        del examined
    if definition is None:
        raise PolicyError(findings)
    return definition


@contextmanager
def collector_paused() -> Iterator[None]:
    """Read or compile a policy: hundreds of thousands of objects that die by their counts alone.

    The collector would walk them again and again for nothing (with 1,000 rules 239 ms against 126).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def examine(folder: str | Path) -> Examination:
    """Read and check a policy folder; never raises for what is in it.

    Every `*.yaml` and `*.yml` below the folder is read, sorted by path, except rule tests
    (`*.test.yaml`). Maps are merged over the files; a name defined twice is an error.
    """
    root = Path(folder)
    if root.is_file():
        missing = Finding(
            code="no-policy",
            place=Place(str(folder), 1, 1),
            message="this is a file, and a policy is a folder",
            mend=f"name the folder it is in: {root.parent}",
        )
        return Examination(None, (missing,), {})
    if not root.is_dir():
        missing = Finding(
            code="no-policy",
            place=Place(str(folder), 1, 1),
            message="there is no such folder",
            mend=_nearby(root) or "name a folder of *.yaml files; `riskengine init DIR` makes one",
        )
        return Examination(None, (missing,), {})
    paths = sorted(
        path
        for suffix in ("*.yaml", "*.yml")
        for path in root.rglob(suffix)
        if path.is_file() and not path.stem.endswith(".test")
    )
    if not paths:
        missing = Finding(
            code="no-policy",
            place=Place(str(folder), 1, 1),
            message="the folder has no *.yaml file",
            mend="`riskengine init DIR` writes a policy to start from",
        )
        return Examination(None, (missing,), {})
    sources = [read_source(path, str(path)) for path in paths]
    loader = Loader(root, sources)
    definition = loader.load()
    findings = [finding for source in sources for finding in source.findings] + loader.findings
    findings.sort(key=lambda finding: finding.place)
    if any(finding.severity == "error" for finding in findings):
        definition = None
    return Examination(definition, tuple(findings), {source.file: source for source in sources})


def _nearby(wanted: Path) -> str | None:
    """The folder that was probably meant."""
    if not wanted.parent.is_dir():
        return None
    near = nearest(wanted.name, (path.name for path in wanted.parent.iterdir() if path.is_dir()))
    return f"did you mean {wanted.parent / near}?" if near else None


def definition_fingerprint(definition: Definition, models: Mapping[str, str] | None = None) -> str:
    """16 hex digits of everything a policy says; comments, places and the order of keys do not count.

    `models`: fingerprints of the models that it names, by name.
    """
    return _digest(
        {
            "models": models or {},
            "settings": _SETTINGS_OF(definition),
            "fields": definition.fields,
            "events": definition.events,
            "entities": definition.entities,
            "tables": definition.tables,
            "lists": {name: _list_of(one) for name, one in definition.lists.items()},
            "features": {
                name: (_FEATURE_OF(feature), _source_of(feature.where), _source_of(feature.value))
                for name, feature in definition.features.items()
            },
            "limits": {
                name: (_LIMIT_OF(limit), _source_of(limit.where), _source_of(limit.max))
                for name, limit in definition.limits.items()
            },
            "rules": {name: _RULE_OF(rule) for name, rule in definition.rules.items()},
            "decide": definition.decide,
            "alerts": {
                name: (_ALERT_OF(alert), _source_of(alert.when)) for name, alert in definition.alerts.items()
            },
        }
    )


_SETTINGS_OF = attrgetter(
    "name", "tenant", "timezone", "country", "lateness_ms", "skew_ms", "model", "challengers"
)
_FEATURE_OF = attrgetter(
    "aggregate", "by", "types", "label", "field", "window", "before", "cap", "keep_ms", "type"
)
_LIMIT_OF = attrgetter(
    "types", "by", "window", "field", "then", "challenge", "message", "mode", "owner", "tags", "wrong_when"
)
_ALERT_OF = attrgetter(
    "types", "over_ms", "above", "clear", "is_share", "least", "by", "actions", "hits", "message", "owner",
    "tags",
)  # fmt: skip
_RULE_OF = attrgetter(
    "types", "when.source", "then", "risk", "challenge", "message", "mode", "rollout", "firm", "expires_ms",
    "owner", "tags", "wrong_when",
)  # fmt: skip


def _list_of(known: List) -> Any:
    """What is said of a list; one that spreads nowhere is what it was before lists could."""
    said = {"name": known.name, "of": known.of}
    return said if known.spreads is None else {**said, "spreads": known.spreads}


def _source_of(expression: Expression | None) -> str | None:
    return None if expression is None else expression.source


def feature_fingerprint(feature: Feature, definition: Definition) -> str:
    """16 hex digits of what a feature means: its definition and that of all it is made from.

    Two features of different name that mean the same have the same fingerprint.
    """
    return _digest(_meaning(feature, definition))


def _meaning(feature: Feature, definition: Definition) -> dict[str, Any]:
    named = [name for name in (feature.by, feature.field) if name is not None]
    entities = {name: definition.entities[name] for name in named if name in definition.entities}
    fields = {field for entity in entities.values() for field in entity.fields}
    fields.update(name for name in named[1:] if name in definition.fields)
    features: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    for part in (feature.where, feature.value):
        for symbol in part.symbols() if part is not None else ():
            root = symbol.name.partition(".")[0]
            if symbol.name in definition.fields:
                fields.add(symbol.name)
            elif symbol.name in definition.features:
                features[symbol.name] = _meaning(definition.features[symbol.name], definition)
            elif root in definition.tables:
                table = definition.tables[root]
                columns[symbol.name] = (_plain(definition.entities[table.key]), dict(table.columns))
    plain = _plain(feature)
    del plain["name"]
    phones = any(definition.fields[name].type == "phone" for name in fields)
    by_calendar = feature.window is not None and feature.window.kind != "over"
    return {
        **plain,
        "country": definition.country if phones else None,
        "timezone": definition.timezone if by_calendar or feature.value is not None else None,
        "entities": {name: _plain(entity) for name, entity in entities.items()},
        "fields": {name: _plain(definition.fields[name]) for name in fields},
        "features": features,
        "columns": columns,
    }


def _plain(value: Any) -> Any:
    """A value of a definition as maps, lists and scalars, without the places of the files."""
    if isinstance(value, Expression):
        return value.canonical()
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    names = getattr(value, "__dataclass_fields__", None)
    if names is None:
        return value
    return {name: _plain(getattr(value, name)) for name in names if name != "place"}


def _digest(plain: Any) -> str:
    data = msgspec.json.encode(plain, order="sorted")
    return hashlib.blake2b(data, digest_size=8).hexdigest()
