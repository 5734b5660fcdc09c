"""Settings, and what features are made of: events and their fields, entities, tables, lists."""

from __future__ import annotations

import zoneinfo
from collections.abc import Collection, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final, cast, get_args

from riskengine import vocabulary
from riskengine.csvtable import read_table
from riskengine.definition import (
    LABELS,
    Entity,
    EventType,
    Field,
    FieldType,
    List,
    Table,
)
from riskengine.errors import nearest
from riskengine.scalars import (
    check_identifier,
    check_name,
    read_choice,
    read_duration,
    read_name,
    tell_missing,
)
from riskengine.sections.reading import DAY_MS, SECOND_MS, Reading
from riskengine.source import Item, Node, ScalarNode, SequenceNode, Source, describe

EVENT_KEYS: Final = ("required", "fields", "fail")
TABLE_KEYS: Final = ("key", "columns", "from")
FIELD_TYPES: Final[tuple[FieldType, ...]] = get_args(FieldType)
COLUMN_TYPES: Final = ("number", "string", "bool", "time")
FAILS: Final = ("open", "closed", "review")
LATENESS_MS_MAX: Final = 30 * DAY_MS
COMPOSITE_MAX: Final = 8
ENTITIES_MAX: Final = 255  # a slab says in one byte which it is of


class Naming(Reading):
    """Reads settings, events, entities, tables and lists."""

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


def _say_field(field: Field) -> str:
    return (
        field.type
        if field.digits is None
        else f"{field.type} in units of {Decimal(1).scaleb(-field.digits):f}"
    )


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
