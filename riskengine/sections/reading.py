"""A policy's files as sections of names, and what every section is read with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from riskengine.definition import (
    Entity,
    EventType,
    Feature,
    Field,
    List,
    Table,
)
from riskengine.errors import Finding, Place
from riskengine.expression import Symbol
from riskengine.source import Node, ScalarNode, Source

SETTINGS: Final = ("policy", "tenant", "timezone", "country", "lateness", "skew", "model", "challengers")
SECTIONS: Final = ("events", "entities", "tables", "lists", "features", "limits", "rules", "decide", "alerts")
SECOND_MS: Final = 1_000
DAY_MS: Final = 86_400_000
Entry = tuple[Source, ScalarNode, Node]  # where a name is defined, and as what

_ONE_OF: Final = {
    "events": "the event type", "entities": "the entity", "tables": "the table", "lists": "the list",
    "features": "the feature", "limits": "the limit", "rules": "the rule", "decide": "the thresholds of",
    "alerts": "the alert",
}  # fmt: skip


class Reading:
    """The state of one reading: what is known so far, and what is wrong."""

    def __init__(self, root: Path, sources: Sequence[Source]) -> None:
        self.root = root
        self.sources = sources
        self.findings: list[Finding] = []  # those of no source: of tables
        self.settings: dict[str, Entry] = {}
        self.model: str | None = None
        self.model_places: dict[str, Place] = {}
        self.sections: dict[str, dict[str, Entry]] = {section: {} for section in SECTIONS}
        self.fields: dict[str, Field] = {}
        self.events: dict[str, EventType] = {}
        self.entities: dict[str, Entity] = {}
        self.tables: dict[str, Table] = {}
        self.lists: dict[str, List] = {}
        self.spreads: dict[str, tuple[Source, Node]] = {}  # of lists, by name
        self.features: dict[str, Feature] = {}
        self.broken: set[str] = set()  # features and table columns whose own definition is wrong
        self.busy: list[str] = []  # value features being read, each for the sake of the next
        self.symbols: dict[str, Symbol] = {}  # of features
        self.types_of: dict[str, tuple[str, ...]] = {}  # field to the event types that carry it

    def _merge(self) -> None:
        known = (*SETTINGS, *SECTIONS)
        for source in self.sources:
            if source.root is None:
                continue
            for name, (key, node) in source.items(source.root, "a policy file", known).items():
                if name in SETTINGS:
                    self._define(self.settings, "the setting", name, (source, key, node))
                    continue
                for member, (member_key, value) in source.items(node, f"`{name}`").items():
                    self._define(self.sections[name], _ONE_OF[name], member, (source, member_key, value))

    def _define(self, names: dict[str, Entry], what: str, name: str, entry: Entry) -> None:
        first = names.setdefault(name, entry)
        if first is not entry:
            source, key, _ = entry
            source.error(
                key,
                "duplicate-name",
                f"{what} {name} is defined twice",
                found=f"first at {first[0].place(first[1])}",
                mend="remove or rename one of them",
            )

    def _valued(self, entry: Entry) -> tuple[Source, Node]:
        return entry[0], entry[2]

    def _reference(
        self, source: Source, node: Node, section: str, known: Mapping[str, object], what: str
    ) -> str | None:
        """A name of a section. One whose own definition is wrong is accepted: that has been reported."""
        name = source.text_of(node, f"the name of an {what}")
        if name is None or name in known or name in self.sections[section]:
            return name
        source.unknown(node, f"there is no {what} {name!r}", self.sections[section])
        return None
