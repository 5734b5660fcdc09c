"""Features, the windows that limits have too, and what expressions may speak of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Final, cast, get_args

import msgspec

from riskengine.definition import (
    LABELS,
    Aggregate,
    Feature,
    FieldType,
    Label,
    Window,
)
from riskengine.errors import Finding, nearest
from riskengine.expression import Expression, Symbol, Type, parse_and_check
from riskengine.footprint import ENTITY_BYTES_MAX
from riskengine.scalars import (
    ANY,
    check_identifier,
    read_bool,
    read_choice,
    read_duration,
    read_whole,
    tell_missing,
)
from riskengine.sections.naming import Naming
from riskengine.sections.reading import DAY_MS, SECOND_MS
from riskengine.source import Item, Node, ScalarNode, SequenceNode, Source
from riskengine.spreads import read_spread

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
PERIODS: Final = ("day", "week", "month")
WINDOW_MS_MAX: Final = 400 * DAY_MS
KEEP_MS_MAX: Final = 4_000 * DAY_MS  # eleven years of a device's age
BUCKETS_MIN: Final = 60
BUCKETS_MAX: Final = ENTITY_BYTES_MAX // 16
CAP_MAX: Final = 4_096


@lru_cache(maxsize=1024)
def bucket_width_ms(width_ms: int) -> int | None:
    """The largest divisor of a window that is at most a 60th of it; None where there is no usable one."""
    for buckets in range(BUCKETS_MIN, min(width_ms, BUCKETS_MAX) + 1):
        if width_ms % buckets == 0:
            return width_ms // buckets
    return None


class Features(Naming):
    """Reads features, and the links that lists spread by."""

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
                f"{listing(types)} does not carry {field}"
                if len(types) == 1
                else f"none of {listing(types)} carries {field}",
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


def _symbol_type(kind: FieldType) -> Type:
    return "string" if kind in ("phone", "ip") else cast(Type, kind)


def listing(names: Sequence[str]) -> str:
    """Names as a sentence has them: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _not_known(message: str, name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = nearest(name, names)
    if close:
        return f"{message}; did you mean {close!r}?"
    return f"{message}; there are {', '.join(names)}" if names else f"{message}; there are none"


class Scope:
    """What an expression may speak of; `refused` says why a name that exists elsewhere is not among it."""

    def __init__(
        self,
        loader: Features,
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
