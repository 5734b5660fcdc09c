"""The sections of a policy's files, read into definitions and held against one another.

Sections are read in the order in which they speak of each other: fields before entities, entities before
features, features before rules. A name whose own definition is wrong stays known, so that one mistake is
reported once and not again wherever the name is used.
"""

from __future__ import annotations

import zoneinfo
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast, get_args

import msgspec

from riskengine import vocabulary
from riskengine.cells import CELLS_MAX
from riskengine.csvtable import read_table
from riskengine.definition import (
    ACTIONS,
    CHALLENGES,
    LABELS,
    Action,
    Aggregate,
    Alert,
    Decide,
    Definition,
    Effect,
    Entity,
    EventType,
    Feature,
    Field,
    FieldType,
    Label,
    Limit,
    List,
    Message,
    Mode,
    Rule,
    Table,
    Window,
)
from riskengine.errors import Finding, Place, nearest
from riskengine.expression import Expression, Symbol, Type, parse_and_check, rfc3339_ms
from riskengine.footprint import ENTITY_BYTES_MAX, counters, state_bytes
from riskengine.scalars import (
    ANY,
    check_identifier,
    check_name,
    read_bool,
    read_choice,
    read_duration,
    read_name,
    read_share,
    read_whole,
    share_of,
    tell_missing,
)
from riskengine.source import Item, MappingNode, Node, ScalarNode, SequenceNode, Source, describe
from riskengine.spreads import read_spread

SETTINGS: Final = ("policy", "tenant", "timezone", "country", "lateness", "skew", "model", "challengers")
SECTIONS: Final = ("events", "entities", "tables", "lists", "features", "limits", "rules", "decide", "alerts")

EVENT_KEYS: Final = ("required", "fields", "fail")
TABLE_KEYS: Final = ("key", "columns", "from")
RULE_KEYS: Final = frozenset(
    {
        "on", "when", "then", "risk", "challenge", "message", "mode", "rollout", "firm", "owner", "tags",
        "expires", "wrong_when",
    }
)  # fmt: skip
LIMIT_KEYS: Final = frozenset(
    {
        "count", "sum", "on", "by", "over", "per", "max", "where", "then", "challenge", "message", "mode",
        "owner", "tags", "wrong_when",
    }
)  # fmt: skip
ALERT_KEYS: Final = frozenset(
    {
        "on", "when", "action", "hits", "by", "over", "above", "clear", "at_least", "message", "owner",
        "tags",
    }
)  # fmt: skip
DECIDE_KEYS: Final = ("review", "challenge", "deny", "challenge_with")
_WINDOWED: Final = frozenset({"on", "by", "over", "per", "delay", "where", "before"})
FEATURE_KEYS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        **dict.fromkeys(("count", "sum", "mean", "min", "max", "std", "rate"), _WINDOWED),
        "distinct": _WINDOWED - {"delay"} | {"cap"},
        "since_first": frozenset({"by", "where", "before", "keep"}),
        "since_last": frozenset({"on", "by", "where", "before"}),
        "previous": frozenset({"on", "by", "where"}),
        "speed": frozenset({"on", "by", "where"}),
        "value": frozenset(),
    }
)
AGGREGATES: Final[tuple[Aggregate, ...]] = get_args(Aggregate)
FIELD_TYPES: Final[tuple[FieldType, ...]] = get_args(FieldType)
COLUMN_TYPES: Final = ("number", "string", "bool", "time")
EFFECTS: Final[tuple[Effect, ...]] = get_args(Effect)
REFUSALS: Final = ("review", "challenge", "deny")
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
FAILS: Final = ("open", "closed", "review")
PERIODS: Final = ("day", "week", "month")

SECOND_MS: Final = 1_000
DAY_MS: Final = 86_400_000
WINDOW_MS_MAX: Final = 400 * DAY_MS
KEEP_MS_MAX: Final = 4_000 * DAY_MS  # eleven years of a device's age
LATENESS_MS_MAX: Final = 30 * DAY_MS
BUCKETS_MIN: Final = 60
BUCKETS_MAX: Final = ENTITY_BYTES_MAX // 16
CAP_MAX: Final = 4_096
COMPOSITE_MAX: Final = 8
ENTITIES_MAX: Final = 255  # a slab says in one byte which it is of
MESSAGE_CHARS_MAX: Final = 500
BY_RULE: Final = "rule"  # alerts are counted for each rule and limit that fires
ALERT_MS_MIN: Final = 60 * SECOND_MS
ALERT_MS_MAX: Final = 7 * DAY_MS
ALERT_COUNT_MAX: Final = 10**9
ALERTS_MAX: Final = 64
SHARE_LEAST: Final = 20  # events that make a share, unless said

Entry = tuple[Source, ScalarNode, Node]  # where a name is defined, and as what


@lru_cache(maxsize=1024)
def bucket_width_ms(width_ms: int) -> int | None:
    """The largest divisor of a window that is at most a 60th of it; None where there is no usable one."""
    for buckets in range(BUCKETS_MIN, min(width_ms, BUCKETS_MAX) + 1):
        if width_ms % buckets == 0:
            return width_ms // buckets
    return None


class Loader:
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

    def load(self) -> Definition | None:
        """Read everything. None where not even a policy can be made; else see `findings`."""
        self._merge()
        settings = self._settings()
        self._events_and_entities()
        self._tables()
        self._lists()
        self._scopes()
        self._features()
        self._spreads()
        limits = self._limits()
        rules = self._rules()
        decide = self._decide()
        alerts = self._alerts()
        if settings is None:
            return None
        definition = Definition(
            **settings,
            fields=self.fields,
            events=self.events,
            entities=self.entities,
            tables=self.tables,
            lists=self.lists,
            features=self.features,
            limits=limits,
            rules=rules,
            decide=decide,
            alerts=alerts,
        )
        if not any(source.findings for source in self.sources):
            self._state(definition)
        del self.where_scope, self.max_scope, self.value_scope, self.when_scope  # they hold the loader
        return definition

    # ---- files to sections --------------------------------------------------------------------------

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

    def _settings(self) -> dict[str, Any] | None:
        entry = self.settings.get("policy")
        if entry is None:
            source = self.sources[0]
            if not any(other.root is None and other.findings for other in self.sources):
                source.error_at(
                    1,
                    1,
                    "missing-key",
                    "the policy has no name",
                    expected="`policy: NAME` in one of the files",
                    mend="add a line such as `policy: campaign-protection`",
                )
            return None
        name = read_name(*self._valued(entry), "the policy's name")
        tenant = name
        if "tenant" in self.settings:
            tenant = read_name(*self._valued(self.settings["tenant"]), "the tenant")
        if "model" in self.settings:
            source, node = self._valued(self.settings["model"])
            if not source.is_null(node) and node.value != "none":
                self.model = self._model_name(source, node, "the model")
        return {
            "name": name or "",
            "tenant": tenant or "",
            "timezone": self._timezone(),
            "country": self._country(),
            "lateness_ms": self._setting_ms("lateness", 15 * 60 * SECOND_MS),
            "skew_ms": self._setting_ms("skew", 5 * 60 * SECOND_MS),
            "model": self.model,
            "challengers": self._challengers(),
            "model_places": self.model_places,
            "folder": str(self.root),
        }

    def _challengers(self) -> tuple[str, ...]:
        if "challengers" not in self.settings:
            return ()
        source, node = self._valued(self.settings["challengers"])
        names = [
            self._model_name(source, item, "a challenger") for item in source.sequence(node, "`challengers`")
        ]
        return tuple(name for name in names if name is not None)

    def _model_name(self, source: Source, node: Node, what: str) -> str | None:
        name = read_name(source, node, what)
        if name is None:
            return None
        first = self.model_places.setdefault(name, place := source.place(node))
        if first is not place:
            source.error(
                node,
                "duplicate-name",
                f"model {name} is named twice",
                found=f"first at {first}",
                mend="remove one of them: a model is asked once",
            )
            return None
        return name

    def _timezone(self) -> str:
        entry = self.settings.get("timezone")
        if entry is None:
            return "UTC"
        source, node = self._valued(entry)
        name = source.text_of(node, "the time zone")
        if name is None:
            return "UTC"
        try:
            zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            close = nearest(name, zoneinfo.available_timezones())
            source.error(
                node,
                "unknown-name",
                f"there is no time zone {name!r}",
                expected="an IANA name such as Asia/Shanghai or UTC",
                mend=f"did you mean {close!r}?" if close else None,
            )
            return "UTC"
        return name

    def _country(self) -> str | None:
        entry = self.settings.get("country")
        if entry is None:
            return None
        source, node = self._valued(entry)
        name = source.text_of(node, "the country")
        if name is not None:
            import phonenumbers  # 30 ms, and only a policy with a country needs it

            if name not in phonenumbers.SUPPORTED_REGIONS:
                upper = name.upper()
                source.error(
                    node,
                    "unknown-name",
                    f"there is no country {name!r}",
                    expected="two letters of ISO 3166 such as CN: local phone numbers are read by its plan",
                    mend=f"did you mean {upper}?" if upper in phonenumbers.SUPPORTED_REGIONS else None,
                )
        return name

    def _setting_ms(self, name: str, default_ms: int) -> int:
        entry = self.settings.get(name)
        if entry is None:
            return default_ms
        found = read_duration(*self._valued(entry), f"`{name}`", 0, LATENESS_MS_MAX)
        return default_ms if found is None else found

    # ---- events, fields, entities -------------------------------------------------------------------

    def _events_and_entities(self) -> None:
        declared: dict[str, dict[str, Field]] = {}
        first: dict[str, tuple[Source, Node]] = {}
        maps: dict[str, tuple[Source, dict[str, Item]]] = {}
        entries = self.sections["events"]
        if not entries and "policy" in self.settings:
            source, key, _ = self.settings["policy"]
            source.error(
                key,
                "missing-key",
                "the policy has no events",
                mend="add a section such as `events: {payment: {required: [user_id]}}`",
            )
        for name, (source, key, node) in entries.items():
            check_identifier(source, key, name, "an event type")
            if name in LABELS:
                source.error(
                    key, "reserved", f"{name} is a label, not an event type", mend="choose another name"
                )
            items = source.items(node, "an event type", EVENT_KEYS)
            maps[name] = (source, items)
            declared[name] = {}
            if "fields" not in items:
                continue
            for field_name, (field_key, value) in source.items(items["fields"][1], "`fields`").items():
                check_identifier(source, field_key, field_name, "a field")
                made = self._field(source, field_name, value)
                if made is None:
                    made = vocabulary.FIELDS.get(field_name, Field(field_name, "string"))
                    self.broken.add(field_name)
                declared[name][field_name] = made
                known = self.fields.setdefault(field_name, made)
                if known is made:
                    first[field_name] = (source, field_key)
                elif known != made and field_name not in self.broken:
                    at = first[field_name][0].place(first[field_name][1])
                    source.error(
                        field_key,
                        "conflict",
                        f"the field {field_name} has one type in the whole policy",
                        found=f"{_say_field(made)} here, {_say_field(known)} at {at}",
                        mend="declare the same type and unit, or rename one of the fields",
                    )
        for name in entries:
            for field_name, field in (*vocabulary.COMMON.items(), *vocabulary.BY_TYPE.get(name, {}).items()):
                self.fields.setdefault(field_name, field)
        self._entities()
        entity_fields = {field for entity in self.entities.values() for field in entity.fields}
        for name, (source, items) in maps.items():
            carried = entity_fields.union(vocabulary.COMMON, vocabulary.BY_TYPE.get(name, ()), declared[name])
            for field_name in carried:
                self.types_of[field_name] = (*self.types_of.get(field_name, ()), name)
            required: list[str] = []
            if "required" in items:
                for node in source.sequence(items["required"][1], "`required`"):
                    field_name = source.text_of(node, "a required field") or ""
                    if field_name in carried:
                        required.append(field_name)
                    elif field_name:
                        source.unknown(node, f"{name} has no field {field_name!r}", carried)
            fail = read_choice(source, items.get("fail"), "fail", FAILS, "review")
            self.events[name] = EventType(name, tuple(required), tuple(sorted(carried)), fail)

    def _field(self, source: Source, name: str, node: Node) -> Field | None:
        if type(node) is ScalarNode:
            kind = self._type(source, node, FIELD_TYPES)
            return None if kind is None else Field(name, cast(FieldType, kind))
        items = source.items(node, "a field", ("type", "unit"))
        if "type" not in items:
            if items or not node.value:
                tell_missing(source, node, "a field", "type")
            return None
        kind = self._type(source, items["type"][1], FIELD_TYPES)
        if kind is None or "unit" not in items:
            return None if kind is None else Field(name, cast(FieldType, kind))
        unit = items["unit"][1]
        if kind != "number":
            source.error(items["unit"][0], "no-meaning", f"a {kind} has no unit", mend="remove `unit`")
            return None
        digits = _unit_digits(unit.value) if type(unit) is ScalarNode else None
        if digits is None:
            source.error(
                unit,
                "wrong-value",
                f"the unit of {name} is not a power of ten",
                found=describe(unit),
                expected="1e-9 to 1e6, such as 0.01 for money in cents or 1 for whole numbers",
            )
            return None
        return Field(name, "number", digits)

    def _type(self, source: Source, node: Node, known: Collection[str]) -> str | None:
        name = source.text_of(node, "a type")
        if name is None or name in known:
            return name
        source.unknown(node, f"there is no type {name!r}", known)
        return None

    def _entities(self) -> None:
        for number, (name, (source, key, node)) in enumerate(self.sections["entities"].items()):
            if number == ENTITIES_MAX:
                source.error(
                    key,
                    "too-many-entities",
                    f"a policy has at most {ENTITIES_MAX} entities",
                    found=f"{len(self.sections['entities'])}",
                    mend="remove those that no feature, limit or list uses",
                )
            check_identifier(source, key, name, "an entity")
            entity = self._entity(source, name, node)
            if entity is None:
                self.broken.add(name)
                continue
            self.entities[name] = entity
            for field_name in entity.fields:
                self.fields.setdefault(field_name, Field(field_name, "string"))

    def _entity(self, source: Source, name: str, node: Node) -> Entity | None:
        if type(node) is SequenceNode:
            parts = source.sequence(node, "a composite entity")
            fields = [self._entity_field(source, part, composite=True) for part in parts]
            if None in fields:
                return None
            if not 2 <= len(fields) <= COMPOSITE_MAX or len(set(fields)) < len(fields):
                source.error(
                    node,
                    "wrong-value",
                    f"the composite entity {name} is made of 2 to {COMPOSITE_MAX} different fields",
                    found=", ".join(map(str, fields)) or "no field",
                    mend=f"write `{name}: {fields[0]}`" if len(set(fields)) == 1 else None,
                )
                return None
            return Entity(name, tuple(cast(list[str], fields)))
        if type(node) is ScalarNode:
            field = self._entity_field(source, node)
            return None if field is None else Entity(name, (field,))
        items = source.items(node, "an entity", ("of", "as"))
        if not {"of", "as"} <= items.keys():
            tell_missing(source, node, "a derived entity", *({"of", "as"} - items.keys()))
            return None
        field = self._entity_field(source, items["of"][1])
        derive = read_choice(source, items["as"], "as", ("subnet24",), None)
        if field is None or derive is None:
            return None
        kind = self.fields.get(field, vocabulary.FIELDS.get(field, Field(field, "string"))).type
        if kind != "ip":
            source.error(
                items["of"][1],
                "wrong-type",
                f"subnet24 is of an ip, and {field} is a {kind}",
                expected="a field of type ip",
                mend=f"declare it: `fields: {{{field}: ip}}`",
            )
            return None
        self.fields.setdefault(field, Field(field, "ip"))
        return Entity(name, (field,), "subnet24")

    def _entity_field(self, source: Source, node: Node, composite: bool = False) -> str | None:
        name = source.text_of(node, "the field of an entity")
        if name is None or not check_identifier(source, node, name, "a field"):
            return None
        # A vocabulary field keeps its type even where no event type of the policy carries it by itself.
        field = self.fields.setdefault(name, vocabulary.FIELDS.get(name, Field(name, "string")))
        if field.type in ("string", "phone", "ip") or (composite and field.digits is not None):
            return name
        mend = None
        if field.type == "number" and composite:
            mend = f"declare its unit: `fields: {{{name}: {{type: number, unit: 0.01}}}}`"
        elif field.digits is not None:
            mend = f"put it together with a text: [user_id, {name}]"
        source.error(
            node,
            "wrong-type",
            f"counters are kept by text, and {name} is a {field.type}",
            expected="a field of type string, phone or ip; in a composite entity also a number with a unit",
            mend=mend,
        )
        return None

    # ---- tables and lists ---------------------------------------------------------------------------

    def _tables(self) -> None:
        for name, (source, key, node) in self.sections["tables"].items():
            check_identifier(source, key, name, "a table")
            items = source.items(node, "a table", TABLE_KEYS)
            if not {"key", "columns"} <= items.keys():
                tell_missing(source, key, f"the table {name}", *({"key", "columns"} - items.keys()))
                self.broken.add(name)
                continue
            columns: dict[str, str] = {}
            for column, (column_key, value) in source.items(items["columns"][1], "`columns`").items():
                check_identifier(source, column_key, column, "a column")
                kind = self._type(source, value, COLUMN_TYPES)
                columns[column] = kind or "number"
                if kind is None:
                    self.broken.add(f"{name}.{column}")
            entity = self._reference(source, items["key"][1], "entities", self.entities, "entity")
            rows: Mapping[str, Mapping[str, float | str | None]] | None = None
            if entity is not None and entity in self.entities:
                made = self.entities[entity]
                if len(made.fields) > 1 or made.derive:
                    source.error(
                        items["key"][1],
                        "wrong-value",
                        f"a table is kept by an entity of one field, and {entity} is composite or derived",
                    )
                elif "from" in items and not any(f"{name}.{column}" in self.broken for column in columns):
                    rows = self._rows(source, items["from"][1], made, columns)
            elif "from" in items:
                rows = {}
            self.tables[name] = Table(name, entity or "", cast(Any, columns), rows)

    def _rows(
        self, source: Source, node: Node, entity: Entity, columns: Mapping[str, str]
    ) -> Mapping[str, Mapping[str, float | str | None]]:
        name = source.text_of(node, "the file of a table")
        if name is None:
            return {}
        path = self.root / name
        if not path.resolve().is_relative_to(self.root.resolve()):
            source.error(node, "outside", "the file of a table is inside the policy's folder", found=name)
            return {}
        if not path.is_file():
            known = [str(other.relative_to(self.root)) for other in sorted(self.root.rglob("*.csv"))]
            source.unknown(node, f"there is no file {name!r} in the policy's folder", known)
            return {}
        rows, findings = read_table(path, str(path), (*entity.fields, entity.name, "key"), columns)
        self.findings += findings
        return rows

    def _lists(self) -> None:
        for name, (source, key, node) in self.sections["lists"].items():
            check_name(source, key, name, "a list")
            items = source.items(node, "a list", ("of", "shared", "spreads"))
            if "spreads" in items:
                self.spreads[name] = (source, items["spreads"][1])
            if "of" not in items:
                tell_missing(source, key, f"the list {name}", "of")
                continue
            members = source.sequence(items["of"][1], "`of`")
            if type(items["of"][1]) is SequenceNode and not members:
                source.error(items["of"][1], "wrong-value", "a list is of at least one entity")
            names = [self._reference(source, part, "entities", self.entities, "entity") for part in members]
            shared = read_name(source, items["shared"][1], "the partner") if "shared" in items else None
            for part, entity in zip(members, names, strict=True):
                made = self.entities.get(entity or "")
                if shared is not None and made is not None and (len(made.fields) > 1 or made.derive):
                    said = f"a shared list is of entities of one field, and {entity} is composite or derived"
                    source.error(part, "wrong-value", said)
            if names and None not in names:
                self.lists[name] = List(name, tuple(dict.fromkeys(cast(list[str], names))), shared=shared)

    def _spreads(self) -> None:
        """Once features are known: they are the links."""
        for name, (source, node) in self.spreads.items():
            if name in self.lists:
                own = self.lists[name]
                known = self.lists, self.spreads, self.entities, self.fields
                links = self.features if len(self.features) == len(self.sections["features"]) else None
                spread = read_spread(source, node, own, *known, links)
                self.lists[name] = replace(own, spreads=spread)
                met = [self.lists.get(to) for to in (name, *(spread.to if spread is not None else ()))]
                partners = [other.name for other in met if other is not None and other.shared is not None]
                if partners:
                    source.error(
                        node,
                        "no-meaning",
                        f"{partners[0]} is shared with a partner: it has hashes, from which no way leads "
                        "to other entities",
                        mend="spread a list of your own",
                    )

    # ---- what expressions may speak of --------------------------------------------------------------

    def _scopes(self) -> None:
        own: dict[str, Symbol] = {"time": Symbol("time", "time")}
        for field in self.fields.values():
            own[field.name] = Symbol(field.name, _symbol_type(field.type))
        resident: dict[str, Symbol] = {}
        live: dict[str, Symbol] = {}
        for table in self.tables.values():
            for column, kind in table.columns.items():
                symbol = Symbol(f"{table.name}.{column}", kind)
                (live if table.rows is None else resident)[symbol.name] = symbol
        model = {"model.p": Symbol("model.p", "number")} if self.model is not None else {}
        self.where_scope = Scope(
            self,
            own,
            refused="`where` is decided before anything is looked up: it speaks of the event's own fields",
        )
        self.max_scope = Scope(
            self,
            own | resident,
            refused="`max` speaks of constants, the event's own fields and columns of tables with `from:`",
        )
        self.value_scope = Scope(self, own | resident | live, features=True, lists=True)
        self.when_scope = Scope(self, own | resident | live | model, features=True, lists=True)

    def feature_symbol(self, name: str) -> Symbol | None:
        """The symbol of a feature; a value feature is read for it if it has not been yet."""
        symbol = self.symbols.get(name)
        if symbol is None and name in self.sections["features"]:
            if name in self.busy:
                self._cycle(name)
                self.broken.add(name)
                return Symbol(name, "number")
            self._feature(name)
            symbol = self.symbols[name]
        return symbol

    def _cycle(self, name: str) -> None:
        loop = [*self.busy[self.busy.index(name) :], name]
        source, key, _ = self.sections["features"][name]
        source.error(
            key,
            "cycle",
            f"the value of {name} is made from itself",
            found=" -> ".join(loop),
            mend="let one of them be made from fields or counters only",
        )

    def _expression(
        self, source: Source, node: Node, what: str, scope: Scope, wanted: tuple[Type, ...]
    ) -> Expression | None:
        text = source.text_of(node, what, literal=True)
        if text is None or type(node) is not ScalarNode:
            return None
        outer, scope.broken = scope.broken, False  # a value may be read in the midst of another
        read = parse_and_check(text, source.text_place(node), scope, wanted)
        broken, scope.broken = scope.broken, outer
        if isinstance(read, Expression):
            return read
        # Types of what is itself wrong are guesses: what follows from them is not worth a line.
        said = [finding for finding in read if not (broken and finding.code == "type")]
        source.adopt(node, (self._explain(finding, scope) for finding in said))
        return None

    def _explain(self, finding: Finding, scope: Scope) -> Finding:
        """Say of a name that exists, but not for this expression, why not."""
        name = finding.found or ""
        root = name.partition(".")[0]
        if finding.code != "unknown-name":
            return finding
        if name == "model.p":
            message, mend = "model.p is known to `when` only", None
            if scope is self.when_scope:
                message, mend = "the policy has no model", "add `model: NAME`, a folder in models/"
        elif scope.refused and (name in self.sections["features"] or root in self.sections["tables"]):
            what = "a feature" if name in self.sections["features"] else "looked up"
            message, mend = f"{name} is {what}, and {scope.refused}", None
        elif name in self.sections["entities"] and name not in self.fields:
            message = f"{name} is an entity, not a field"
            entity = self.entities.get(name)
            mend = f"write {entity.fields[0]}" if entity is not None and len(entity.fields) == 1 else None
        else:
            return finding
        return msgspec.structs.replace(finding, message=message, expected=None, mend=mend)

    # ---- features -----------------------------------------------------------------------------------

    def _features(self) -> None:
        for name, (source, key, _) in self.sections["features"].items():
            if check_identifier(source, key, name, "a feature") and name in self.fields:
                source.error(
                    key,
                    "conflict",
                    f"{name} is a field of the events: a feature of that name could not be told from it",
                    mend="rename the feature",
                )
            if name not in self.symbols:
                self._feature(name)
        self.features = {
            name: self.features[name] for name in self.sections["features"] if name in self.features
        }

    def _feature(self, name: str) -> None:
        """Read one feature into `features` and `symbols`; a wrong one is `broken` and has a symbol only."""
        source, key, node = self.sections["features"][name]
        made = self._read_feature(name, source, key, node)
        if made is None:
            self.broken.add(name)
            self.symbols[name] = Symbol(name, "number")
            return
        self.features[name] = made
        if made.type == "string":
            self.symbols[name] = Symbol(name, "string", "hash")
        else:
            self.symbols[name] = Symbol(name, made.type)

    def _read_feature(self, name: str, source: Source, key: ScalarNode, node: Node) -> Feature | None:
        before = len(source.findings)
        items = source.items(node, "a feature")
        if not items:
            if len(source.findings) == before:
                said = f"the feature {name} does not say what it computes"
                source.error(key, "missing-key", said, found="nothing", expected=", ".join(AGGREGATES))
            return None
        aggregates = [found for found in AGGREGATES if found in items]
        if len(aggregates) != 1:
            self._which_aggregate(name, source, key, items, aggregates)
            return None
        aggregate = aggregates[0]
        allowed = FEATURE_KEYS[aggregate]
        for found, (found_key, _) in items.items():
            if found != aggregate and found not in allowed:
                self._refuse_key(source, found_key, found, aggregate, allowed)
        if aggregate == "value":
            return self._value_feature(name, source, key, items["value"][1], before)

        label, types, field = self._subject(source, aggregate, items)
        by = None
        if "by" in items:
            by = self._reference(source, items["by"][1], "entities", self.entities, "entity")
        else:
            tell_missing(source, key, f"the feature {name}", "by")
        window = None
        if "over" in allowed:
            window = self._window(source, key, f"the feature {name}", items)
        where = None
        if "where" in items:
            where = self._expression(source, items["where"][1], "`where`", self.where_scope, ("bool",))
        kept_ms = 0
        if aggregate == "since_first":
            kept_ms = WINDOW_MS_MAX
            if "keep" in items:
                kept_ms = read_duration(source, items["keep"][1], "`keep`", SECOND_MS, KEEP_MS_MAX) or 0
        cap = 256
        if "cap" in items:
            cap = read_whole(source, items["cap"][1], "`cap`", 1, CAP_MAX) or cap
        own_before = read_bool(source, items.get("before"), "before")
        if len(source.findings) > before or by not in self.entities:
            return None
        return Feature(
            name=name,
            aggregate=aggregate,
            by=by,
            types=types,
            label=label,
            field=field,
            window=window,
            before=own_before,
            where=where,
            cap=cap,
            keep_ms=kept_ms,
            type=self._feature_type(aggregate, field),
            place=source.place(key),
        )

    def _which_aggregate(
        self, name: str, source: Source, key: ScalarNode, items: Mapping[str, Item], found: Sequence[str]
    ) -> None:
        if found:
            second = items[found[1]][0]
            source.error(
                second,
                "two-aggregates",
                f"the feature {name} computes {' and '.join(found)}",
                expected="one of them",
                mend="make two features of it",
            )
            return
        known = set().union(*FEATURE_KEYS.values())
        unknown = next((item[0] for other, item in items.items() if other not in known), key)
        source.unknown(unknown, f"the feature {name} does not say what it computes", AGGREGATES)

    def _refuse_key(
        self, source: Source, key: ScalarNode, name: str, aggregate: str, allowed: Collection[str]
    ) -> None:
        elsewhere = set().union(*FEATURE_KEYS.values())
        if name in elsewhere:
            source.error(
                key,
                "no-meaning",
                f"`{name}` has no meaning with {aggregate}",
                expected=", ".join(sorted(allowed)) or "no other key",
                mend=f"remove `{name}`",
            )
        else:
            source.unknown(key, f"a feature of {aggregate} has no key {name!r}", allowed)

    def _value_feature(
        self, name: str, source: Source, key: ScalarNode, node: Node, findings_before: int
    ) -> Feature | None:
        self.busy.append(name)
        value = self._expression(
            source, node, "`value`", self.value_scope, ("number", "bool", "time", "duration")
        )
        self.busy.pop()
        if value is None or len(source.findings) > findings_before or name in self.broken:
            return None
        return Feature(
            name=name, aggregate="value", by=None, value=value, type=value.type, place=source.place(key)
        )

    def _subject(
        self, source: Source, aggregate: Aggregate, items: Mapping[str, Item]
    ) -> tuple[Label | None, tuple[str, ...], str | None]:
        """What a feature is made from: a label if one stands for event types, the types, the field."""
        node = items[aggregate][1]
        on = items.get("on")
        if aggregate in ("count", "since_first", "since_last"):
            label, types = self._types(source, node, f"`{aggregate}`", labels=aggregate != "since_first")
            if label is not None:
                types = (
                    self._types(source, on[1], "`on`", labels=False)[1]
                    if on
                    else tuple(self.sections["events"])
                )
            elif on is not None:
                source.error(
                    on[0],
                    "no-meaning",
                    f"`{aggregate}` names its event types itself",
                    mend="remove `on`; it stands beside a label, as in {count: fraud, on: payment}",
                )
            return label, types, None
        if aggregate == "rate":
            label_name = read_choice(source, items["rate"], "rate", LABELS, None)
            types = (
                self._types(source, on[1], "`on`", labels=False)[1] if on else tuple(self.sections["events"])
            )
            return label_name, types, None
        field = self._subject_field(source, aggregate, node)
        carriers = tuple(self.sections["events"])
        if field is not None and not (aggregate == "distinct" and field in self.sections["entities"]):
            carriers = self.types_of.get(field, ())
        if on is None:
            if field is not None and not carriers:
                source.error(node, "not-carried", f"no event of the policy carries {field}")
            return None, carriers, field
        labels = aggregate in ("sum", "mean", "std")
        label, types = self._types(source, on[1], "`on`", labels=labels)
        if label is not None:
            return label, carriers, field
        if field is not None and types and not set(types) & set(carriers):
            source.error(
                on[1],
                "not-carried",
                f"{_and(types)} does not carry {field}"
                if len(types) == 1
                else f"none of {_and(types)} carries {field}",
                expected=f"an event that does: {', '.join(carriers)}" if carriers else None,
            )
        return None, types, field

    def _subject_field(self, source: Source, aggregate: Aggregate, node: Node) -> str | None:
        name = source.text_of(node, f"`{aggregate}`")
        if name is None:
            return None
        if aggregate == "distinct":
            if name in self.sections["entities"]:
                return name
            texts = [field for field in self.fields.values() if field.type in ("string", "phone", "ip")]
            if name not in self.fields:
                known = [*self.sections["entities"], *(field.name for field in texts)]
                source.unknown(
                    node,
                    f"there is no entity and no text field {name!r}",
                    known,
                    expected="an entity or a text field",
                )
                return None
            if self.fields[name].type not in ("string", "phone", "ip"):
                kind = self.fields[name].type
                self._wrong_field(source, node, f"distinct counts entities or texts, and {name} is a {kind}")
                return None
            return name
        if name == "time" and aggregate == "previous":
            self._wrong_field(
                source, node, "the time is no field of its own", "write {since_last: any, before: true}"
            )
            return None
        numeric = aggregate in ("sum", "mean", "min", "max", "std")
        wanted = [
            field.name
            for field in self.fields.values()
            if (not numeric or field.digits is not None)
            and (aggregate != "speed" or field.type == "location")
        ]
        field = self.fields.get(name)
        if field is None:
            if name in self.sections["features"]:
                self._wrong_field(
                    source, node, f"{aggregate} is of an event's field, and {name} is a feature"
                )
            else:
                source.unknown(node, f"there is no field {name!r}", wanted)
            return None
        if name in self.broken or name in wanted:
            return name
        if numeric and field.type == "number":
            self._wrong_field(
                source,
                node,
                f"{name} needs a unit: {aggregate} is exact, in decimal fixed point",
                f"declare it: `fields: {{{name}: {{type: number, unit: 0.01}}}}`",
            )
        else:
            kind = "number" if numeric else "location"
            self._wrong_field(source, node, f"{aggregate} is of a {kind}, and {name} is a {field.type}")
        return None

    def _wrong_field(self, source: Source, node: Node, message: str, mend: str | None = None) -> None:
        source.error(node, "wrong-field", message, mend=mend)

    def _feature_type(self, aggregate: Aggregate, field: str | None) -> Type:
        if aggregate in ("since_first", "since_last"):
            return "duration"
        if aggregate == "previous" and field is not None:
            return _symbol_type(self.fields[field].type)
        return "number"

    def _types(
        self, source: Source, node: Node, what: str, *, labels: bool
    ) -> tuple[Label | None, tuple[str, ...]]:
        """The event types a text or a list names, in the order of the policy; or the label it is."""
        events = self.sections["events"]
        if type(node) is ScalarNode:
            text = node.value
            if text in events and not node.tag:
                return None, (text,)
            if text == ANY:
                return None, tuple(events)
        parts = source.sequence(node, what) if type(node) is SequenceNode else [node]
        if not parts and type(node) is SequenceNode:
            source.error(
                node, "wrong-value", f"{what} names no event type", mend="write any, or leave it out"
            )
        named: set[str] = set()
        for part in parts:
            name = source.text_of(part, what)
            if name is None:
                continue
            if name in LABELS:
                if labels and len(parts) == 1:
                    return name, ()
                mend = None
                if labels:
                    message = f"the label {name} stands alone, not in a list"
                else:
                    message = f"{name} is a label, and {what} names event types here"
                    mend = "use since_last" if what == "`since_first`" else None
                source.error(part, "label", message, mend=mend)
            elif name in events:
                named.add(name)
            elif name == ANY:
                source.error(
                    part,
                    "wrong-value",
                    "any stands alone, not in a list",
                    mend=f"write `{what.strip('`')}: any`",
                )
            else:
                known = [*events, ANY, *(LABELS if labels else ())]
                source.unknown(part, f"there is no event type {name!r}", known)
        return None, tuple(name for name in events if name in named)

    def _window(
        self, source: Source, key: Node, what: str, items: Mapping[str, Item], *, delays: bool = True
    ) -> Window | None:
        over, per = items.get("over"), items.get("per")
        if (over is None) == (per is None):
            if over is None:
                tell_missing(
                    source, key, what, "over", expected="`over: 7d` (sliding) or `per: day` (calendar)"
                )
            else:
                assert per is not None
                source.error(per[0], "two-windows", f"{what} has two windows", mend="keep `over` or `per`")
            return None
        delay_ms: int | None = 0
        if delays and "delay" in items:
            delay_ms = read_duration(source, items["delay"][1], "`delay`", 1, WINDOW_MS_MAX)
        if over is None:
            kind = read_choice(source, per, "per", PERIODS, None)
            if kind is None or delay_ms is None:
                return None
            return Window(kind, delay_ms=delay_ms)
        width_ms = read_duration(source, over[1], "`over`", SECOND_MS, WINDOW_MS_MAX)
        if width_ms is None or delay_ms is None:
            return None
        bucket_ms = bucket_width_ms(width_ms)
        if bucket_ms is None:
            source.error(
                over[1],
                "wrong-value",
                f"a window is cut into {BUCKETS_MIN} to {BUCKETS_MAX:,} equal buckets; this one cannot be",
                found=f"{width_ms:,} ms",
                mend="use a rounder width",
            )
            return None
        return Window("over", width_ms, bucket_ms, delay_ms)

    # ---- limits and rules ---------------------------------------------------------------------------

    def _limits(self) -> dict[str, Limit]:
        made = {}
        for name, (source, key, node) in self.sections["limits"].items():
            check_name(source, key, name, "a limit")
            limit = self._limit(name, source, key, node)
            if limit is not None:
                made[name] = limit
        return made

    def _limit(self, name: str, source: Source, key: ScalarNode, node: Node) -> Limit | None:
        before = len(source.findings)
        what = f"the limit {name}"
        items = source.items(node, "a limit", LIMIT_KEYS)
        if ("count" in items) == ("sum" in items):
            if "count" in items:
                source.error(
                    items["sum"][0], "two-aggregates", f"{what} counts and sums", mend="make two of it"
                )
            elif len(source.findings) == before:
                tell_missing(source, key, what, "count", expected="`count: EVENT` or `sum: FIELD`")
            return None
        field = None
        on = items.get("on")
        if "count" in items:
            types = self._types(source, items["count"][1], "`count`", labels=False)[1]
            if on is not None:
                source.error(on[0], "no-meaning", "`count` names its event types itself", mend="remove `on`")
        else:
            field = self._subject_field(source, "sum", items["sum"][1])
            carriers = self.types_of.get(field or "", ())
            types = self._types(source, on[1], "`on`", labels=False)[1] if on is not None else carriers
            if field is not None and types and not set(types) & set(carriers):
                node = on[1] if on is not None else items["sum"][1]
                source.error(node, "not-carried", f"no event of {_and(types)} carries {field}")
        for required in ("by", "max"):
            if required not in items:
                tell_missing(source, key, what, required)
        by = None
        if "by" in items:
            by = self._reference(source, items["by"][1], "entities", self.entities, "entity")
        window = self._window(source, key, what, items, delays=False)
        most = where = None
        if "max" in items:
            most = self._expression(source, items["max"][1], "`max`", self.max_scope, ("number",))
            term = most.term if most is not None else None
            if term is not None and isinstance(term.value, float) and term.value < 0:
                source.error(
                    items["max"][1], "wrong-value", f"{what} can never be granted", expected="0 or more"
                )
        if "where" in items:
            where = self._expression(source, items["where"][1], "`where`", self.where_scope, ("bool",))
        then = read_choice(source, items.get("then"), "then", REFUSALS, "deny")
        challenge = read_choice(source, items.get("challenge"), "challenge", CHALLENGES, None)
        message = self._message(source, items.get("message"))
        mode = read_choice(source, items.get("mode"), "mode", MODES, "live")
        owner, tags = self._owner(source, items)
        if len(source.findings) > before or by not in self.entities or window is None or most is None:
            return None
        if "where" in items and where is None:
            return None
        return Limit(
            name, types, by, window, most, field, where, then, challenge, message, mode, owner, tags,
            source.place(key), self._wrong_when(source, items),
        )  # fmt: skip

    def _rules(self) -> dict[str, Rule]:
        made = {}
        limits = self.sections["limits"]
        for name, (source, key, node) in self.sections["rules"].items():
            check_name(source, key, name, "a rule")
            if name in limits:
                first = limits[name][0].place(limits[name][1])
                source.error(
                    key,
                    "duplicate-name",
                    f"a limit is named {name} too: a decision could not say which of them fired",
                    found=f"the limit at {first}",
                    mend="rename one of them",
                )
            rule = self._rule(name, source, key, node)
            if rule is not None:
                made[name] = rule
        return made

    def _rule(self, name: str, source: Source, key: ScalarNode, node: Node) -> Rule | None:
        before = len(source.findings)
        items = source.items(node, "a rule", RULE_KEYS)
        when = None
        if "when" in items:
            when = self._expression(source, items["when"][1], "`when`", self.when_scope, ("bool",))
        elif len(source.findings) == before:
            tell_missing(source, key, f"the rule {name}", "when")
        on = items.get("on")
        types = (
            tuple(self.sections["events"])
            if on is None
            else self._types(source, on[1], "`on`", labels=False)[1]
        )
        then = read_choice(source, items.get("then"), "then", EFFECTS, "flag")
        challenge = read_choice(source, items.get("challenge"), "challenge", CHALLENGES, None)
        risk = read_share(source, items["risk"][1], "`risk`") if "risk" in items else 0.0
        message = self._message(source, items.get("message"))
        mode = read_choice(source, items.get("mode"), "mode", MODES, "shadow")
        rollout = self._rollout(source, items["rollout"][1]) if "rollout" in items else 1.0
        firm = read_bool(source, items.get("firm"), "firm")
        if firm and then in ("allow", "flag"):
            source.error(
                items["firm"][0],
                "no-meaning",
                f"`firm` keeps `then: allow` from lowering an action, and `then: {then}` raises none",
                mend="remove `firm`",
            )
        expires_ms = self._expires(source, items["expires"][1]) if "expires" in items else None
        if then == "allow" and "expires" not in items:
            tell_missing(
                source, items["then"][1], f"the rule {name}, which allows,", "expires",
                expected="`expires: 2027-01-31T00:00:00+08:00`: an exception ends some day",
            )  # fmt: skip
        owner, tags = self._owner(source, items)
        if len(source.findings) > before or when is None:
            return None
        return Rule(
            name, types, when, then, risk or 0.0, challenge, message, mode,
            1.0 if rollout is None else rollout, firm, expires_ms, owner, tags, source.place(key),
            self._wrong_when(source, items),
        )  # fmt: skip

    def _message(self, source: Source, item: Item | None) -> Message | None:
        if item is None:
            return None
        node = item[1]
        if type(node) is ScalarNode:
            text = self._message_text(source, node)
            return None if text is None else Message(en=text)
        items = source.items(node, "a message", ("zh", "en"))
        if type(node) is MappingNode and not node.value:
            source.error(node, "missing-key", "the message says nothing", expected="`zh`, `en` or both")
        texts = {name: self._message_text(source, value) for name, (_, value) in items.items()}
        return Message(**texts)

    def _message_text(self, source: Source, node: Node, what: str = "the message") -> str | None:
        text = source.text_of(node, "a message" if what == "the message" else what, literal=True)
        if text is not None and len(text) > MESSAGE_CHARS_MAX:
            source.error(
                node,
                "too-long",
                f"{what} has {len(text)} characters",
                expected=f"at most {MESSAGE_CHARS_MAX}",
            )
        return text

    def _rollout(self, source: Source, node: Node) -> float | None:
        share = share_of(node.value) if type(node) is ScalarNode else None
        if share is not None:
            return share
        mend = None
        value = source.scalar(node) if type(node) is ScalarNode else None
        if isinstance(value, int | float) and 0 < value <= 1:
            mend = f"write {value * 100:g}%"
        elif isinstance(value, int | float) and value <= 100:
            mend = f"write {value:g}%"
        source.error(
            node,
            "wrong-value",
            "`rollout` is a share of the users",
            found=describe(node),
            expected="0% to 100%",
            mend=mend,
        )
        return None

    def _expires(self, source: Source, node: Node) -> int | None:
        text = source.text_of(node, "`expires`", literal=True)
        if text is None:
            return None
        ms = rfc3339_ms(text)
        if ms is None:
            source.error(
                node,
                "wrong-value",
                "`expires` is a time with an offset",
                found=describe(node),
                expected="RFC 3339, such as 2027-01-31T00:00:00+08:00",
            )
        return ms

    def _wrong_when(self, source: Source, items: Mapping[str, Item]) -> str | None:
        if "wrong_when" not in items:
            return None
        return self._message_text(source, items["wrong_when"][1], "`wrong_when`")

    def _owner(self, source: Source, items: Mapping[str, Item]) -> tuple[str | None, tuple[str, ...]]:
        owner = source.text_of(items["owner"][1], "`owner`", literal=True) if "owner" in items else None
        if "tags" not in items:
            return owner, ()
        nodes = source.sequence(items["tags"][1], "`tags`")
        tags = (source.text_of(node, "a tag", literal=True) for node in nodes)
        return owner, tuple(tag for tag in tags if tag is not None)

    def _decide(self) -> dict[str, Decide]:
        made = {}
        for name, (source, key, node) in self.sections["decide"].items():
            if name not in self.sections["events"]:
                source.unknown(key, f"there is no event type {name!r}", self.sections["events"])
            items = source.items(node, "thresholds", DECIDE_KEYS)
            shares: dict[str, float] = {}
            for action in REFUSALS:
                share = read_share(source, items[action][1], f"`{action}`") if action in items else None
                if share is None:
                    continue
                milder = max(shares, key=lambda other: shares[other], default=None)
                if milder is not None and shares[milder] > share:
                    source.error(
                        items[action][1],
                        "order",
                        f"{action} begins at a lower risk than {milder}",
                        found=f"{milder} {shares[milder]:g}, {action} {share:g}",
                        expected="review <= challenge <= deny",
                    )
                shares[action] = share
            challenge_with = read_choice(
                source, items.get("challenge_with"), "challenge_with", CHALLENGES, "captcha"
            )
            if "challenge_with" in items and "challenge" not in items:
                source.error(
                    items["challenge_with"][0],
                    "no-meaning",
                    "`challenge_with` says how to challenge, and no risk is",
                    mend="add `challenge: 0.75`, or remove it",
                )
            made[name] = Decide(**shares, challenge_with=challenge_with)
        return made

    def _alerts(self) -> dict[str, Alert]:
        made = {}
        for number, (name, (source, key, node)) in enumerate(self.sections["alerts"].items()):
            check_name(source, key, name, "an alert")
            if number == ALERTS_MAX:
                found = f"{len(self.sections['alerts'])}"
                said = f"a policy has at most {ALERTS_MAX} alerts"
                source.error(
                    key, "too-many-alerts", said, found=found, mend="remove those that nobody looks at"
                )
            alert = self._alert(name, source, key, node)
            if alert is not None:
                made[name] = alert
        return made

    def _alert(self, name: str, source: Source, key: ScalarNode, node: Node) -> Alert | None:
        before = len(source.findings)
        items = source.items(node, "an alert", ALERT_KEYS)
        if len(source.findings) == before:
            lacking = [needed for needed in ("over", "above") if needed not in items]
            if lacking:
                tell_missing(source, key, f"the alert {name}", *lacking)
        on = items.get("on")
        types = (
            tuple(self.sections["events"])
            if on is None
            else self._types(source, on[1], "`on`", labels=False)[1]
        )
        when = None
        if "when" in items:
            when = self._expression(source, items["when"][1], "`when`", self.when_scope, ("bool",))
        actions = self._actions(source, items["action"][1]) if "action" in items else ACTIONS
        hits = by = None
        if "hits" in items:
            known = (*self.sections["rules"], *self.sections["limits"])
            hits = source.text_of(items["hits"][1], "`hits`")
            if hits is not None and hits not in known:
                source.unknown(items["hits"][1], f"there is no rule or limit {hits!r}", known)
        if "by" in items:
            by = self._alert_by(source, items["by"][1])
        over_ms = None
        if "over" in items:
            over_ms = read_duration(source, items["over"][1], "`over`", ALERT_MS_MIN, ALERT_MS_MAX)
        above = self._level(source, items["above"][1], "above") if "above" in items else None
        clear = self._level(source, items["clear"][1], "clear") if "clear" in items else above
        is_share = above is not None and above[1]
        if above is not None and clear is not None and (clear[1] != above[1] or clear[0] > above[0]):
            source.error(
                items["clear"][1],
                "wrong-value",
                "an episode ends at `clear`, which is no more than `above`",
                found=f"{_written(items['clear'][1])}, above {_written(items['above'][1])}",
                expected="a share (30%) where `above` is one, else a count",
            )
        least = 0
        if "at_least" in items and above is not None and not is_share:
            source.error(
                items["at_least"][0],
                "no-meaning",
                "`at_least` says how many events make a share, and `above` is a count",
                mend="remove `at_least`, or write `above` as a share such as 30%",
            )
        elif is_share:
            least = SHARE_LEAST
            if "at_least" in items:
                node = items["at_least"][1]
                least = read_whole(source, node, "`at_least`", 1, ALERT_COUNT_MAX) or least
        message = self._message(source, items.get("message"))
        owner, tags = self._owner(source, items)
        if len(source.findings) > before or over_ms is None or above is None or clear is None:
            return None
        if "when" in items and when is None:
            return None
        return Alert(
            name, types, over_ms, above[0], clear[0], is_share, least, by, when, actions, hits, message,
            owner, tags, source.place(key),
        )  # fmt: skip

    def _actions(self, source: Source, node: Node) -> tuple[Action, ...]:
        parts = source.sequence(node, "`action`") if type(node) is SequenceNode else [node]
        if not parts and type(node) is SequenceNode:
            source.error(node, "wrong-value", "`action` names no action", expected=", ".join(ACTIONS))
        named = [
            read_choice(source, (cast(ScalarNode, part), part), "action", ACTIONS, None) for part in parts
        ]
        return tuple(action for action in ACTIONS if action in named)

    def _alert_by(self, source: Source, node: Node) -> str | None:
        """What an alert is counted by: rule, an entity, or a text field."""
        name = source.text_of(node, "`by`")
        if name is None or name == BY_RULE or name in self.sections["entities"]:
            return name
        texts = [field.name for field in self.fields.values() if field.type in ("string", "phone", "ip")]
        if name in texts or name in self.broken:
            return name
        source.unknown(
            node,
            f"alerts are counted by rule, by an entity or by a text field, and {name!r} is none",
            [BY_RULE, *self.sections["entities"], *texts],
        )
        return None

    def _level(self, source: Source, node: Node, what: str) -> tuple[float, bool] | None:
        """A count, or a share: (0.3, True) of 30%."""
        share = share_of(node.value) if type(node) is ScalarNode else None
        if share is not None:
            return share, True
        value = source.scalar(node) if type(node) is ScalarNode else None
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= ALERT_COUNT_MAX:
            return float(value), False
        mend = None
        if isinstance(value, float) and 0 < value < 1:
            mend = f"write {value * 100:g}% for a share"
        source.error(
            node,
            "wrong-value",
            f"`{what}` is a count of events, or their share",
            found=describe(node),
            expected=f"0 to {ALERT_COUNT_MAX:,}, or 0% to 100%",
            mend=mend,
        )
        return None

    def _state(self, definition: Definition) -> None:
        """Refuse what could grow past the bounds of one entity's value, and say what it is made of."""
        for entity, counts in counters(definition).items():
            total = sum(counts.values())
            if total <= CELLS_MAX:
                continue
            source, key, _ = self.sections["entities"][entity]
            shown = ", ".join(list(counts)[:8])
            source.error(
                key,
                "too-many-counters",
                f"one {entity} would need {total} different counters",
                found=shown + (f", and {len(counts) - 8} more" if len(counts) > 8 else ""),
                expected=f"at most {CELLS_MAX}: features of the same events and `where` share one, whatever "
                "their windows",
                mend="give features the same `on` and `where`, or remove some",
            )
        for entity, costs in state_bytes(definition).items():
            total = sum(costs.values())
            if total <= ENTITY_BYTES_MAX:
                continue
            source, key, _ = self.sections["entities"][entity]
            dear = sorted(costs.items(), key=lambda cost: (-cost[1], cost[0]))
            shown = ", ".join(f"{name} {size:,}" for name, size in dear[:8])
            source.error(
                key,
                "too-much-state",
                f"one {entity} may come to hold {total:,} bytes",
                found=shown + (f", and {len(dear) - 8} more" if len(dear) > 8 else ""),
                expected=f"at most {ENTITY_BYTES_MAX:,} bytes an entity",
                mend=f"shorten the windows, lower the cap or remove the dearest: {dear[0][0]}",
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


_ONE_OF: Final = {
    "events": "the event type", "entities": "the entity", "tables": "the table", "lists": "the list",
    "features": "the feature", "limits": "the limit", "rules": "the rule", "decide": "the thresholds of",
    "alerts": "the alert",
}  # fmt: skip


def _symbol_type(kind: FieldType) -> Type:
    return "string" if kind in ("phone", "ip") else cast(Type, kind)


def _say_field(field: Field) -> str:
    return (
        field.type
        if field.digits is None
        else f"{field.type} in units of {Decimal(1).scaleb(-field.digits):f}"
    )


def _written(node: Node) -> str:
    return str(node.value) if type(node) is ScalarNode else describe(node)


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _not_known(message: str, name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = nearest(name, names)
    if close:
        return f"{message}; did you mean {close!r}?"
    return f"{message}; there are {', '.join(names)}" if names else f"{message}; there are none"


def _unit_digits(text: str) -> int | None:
    """Digits behind the point of a unit that is a power of ten from 1e-9 to 1e6."""
    try:
        unit = Decimal(text)
    except InvalidOperation:
        return None
    if not unit.is_finite() or unit <= 0:
        return None
    exponent = unit.normalize().as_tuple().exponent
    if unit != Decimal(1).scaleb(unit.adjusted()) or not isinstance(exponent, int) or not -9 <= exponent <= 6:
        return None
    return -exponent


class Scope:
    """What an expression may speak of; `refused` says why a name that exists elsewhere is not among it."""

    def __init__(
        self,
        loader: Loader,
        symbols: dict[str, Symbol],
        *,
        features: bool = False,
        lists: bool = False,
        refused: str = "",
    ) -> None:
        self._loader = loader
        self._symbols = symbols
        self._broken = loader.broken
        self._features = features
        self._lists = lists
        self.refused = refused
        self.broken = False  # a name was used whose own definition is wrong

    def lookup(self, name: str) -> Symbol | None:
        """The symbol of a name, or None where it is not known here."""
        symbol = self._symbols.get(name)
        if symbol is None and self._features:
            symbol = self._loader.feature_symbol(name)
            if symbol is not None:
                self._symbols[name] = symbol
        if self._broken and name in self._broken:
            self.broken = True
        return symbol

    def names(self) -> Iterable[str]:
        """Every name that is known here."""
        return (*self._symbols, *(self._loader.sections["features"] if self._features else ()))

    def listed(self, name: str, entity: str) -> Symbol | str:
        """The symbol of `listed('name', entity)`, or why there is none."""
        loader = self._loader
        if not self._lists:
            return (
                "lists are looked up together with the counters: they may be used in `when` and `value` only"
            )
        if name not in loader.sections["lists"]:
            return _not_known(f"there is no list {name!r}", name, loader.sections["lists"])
        found = loader.lists.get(name)
        if found is None:  # its own definition is wrong, and has been reported
            self.broken = True
        elif entity not in found.of:
            return _not_known(f"the list {name!r} has no {entity}", entity, found.of)
        return Symbol(f"listed:{name}:{entity}", "bool")
