"""`spreads:` of a list, as a policy says it: which entities a block reaches, by which links, and how far.

Links are the `distinct` features that count one entity by another: what they keep are the entities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from riskengine.definition import Entity, Feature, Field, List, Spread
from riskengine.scalars import read_whole, tell_missing
from riskengine.source import Node, ScalarNode, SequenceNode, Source, describe

SPREAD_KEYS: Final = ("to", "along", "hops", "degree")
HOPS: Final = 2  # where they are not said
DEGREE: Final = 8
HOPS_MAX: Final = 3
DEGREE_MAX: Final = 256
WEAK_FIELDS: Final = ("ip", "address")  # of the vocabulary: many people have one together, and none for long


def links_of(spread: Spread, features: Mapping[str, Feature]) -> Iterator[Feature]:
    """The features that lead from one entity of `along` to others, in policy order."""
    for feature in features.values():
        if (
            feature.aggregate == "distinct"
            and not feature.before  # it would not count the event that it is read with
            and feature.by in spread.along
            and feature.field in spread.along
        ):
            yield feature


def read_spread(
    source: Source,
    node: Node,
    own: List,
    lists: Mapping[str, List],
    spreading: Mapping[str, object],
    entities: Mapping[str, Entity],
    fields: Mapping[str, Field],
    features: Mapping[str, Feature] | None,
) -> Spread | None:
    """Read `spreads:` of the list `own`; whatever is wrong with it is an error of the source.

    `spreading` are the names of all lists that have one; without `features` (some are wrong) no link is
    looked for.
    """
    before = len(source.findings)
    items = source.items(node, "`spreads`", SPREAD_KEYS)
    if missing := {"to", "along"} - items.keys():
        if len(source.findings) == before:
            tell_missing(source, node, f"`spreads` of the list {own.name}", *missing)
        return None
    hops = read_whole(source, items["hops"][1], "`hops`", 1, HOPS_MAX) if "hops" in items else HOPS
    if "degree" in items:
        degree = read_whole(source, items["degree"][1], "`degree`", 1, DEGREE_MAX)
    else:
        degree = DEGREE
    along = _along(source, items["along"][1], own, entities, fields)
    to = _to(source, items["to"][1], own, lists, spreading, along, hops or HOPS_MAX)
    if len(source.findings) > before or hops is None or degree is None:
        return None
    spread = Spread(to, along, hops, degree)
    if features is not None:
        _check_links(source, items["along"][1], spread, features)
    return spread if len(source.findings) == before else None


def _along(
    source: Source, node: Node, own: List, entities: Mapping[str, Entity], fields: Mapping[str, Field]
) -> tuple[str, ...]:
    names: list[str] = []
    for part in source.sequence(node, "`along`"):
        name = source.text_of(part, "the name of an entity")
        if name is None:
            continue
        if name not in entities:
            source.unknown(part, f"there is no entity {name!r}", entities)
            continue
        entity = entities[name]
        types = {fields[field].type for field in entity.fields if field in fields}
        if entity.derive or "ip" in types or set(entity.fields) & set(WEAK_FIELDS):
            source.error(
                part,
                "weak-identifier",
                f"{name} is shared by people who have nothing to do with each other: a block is not walked "
                "along it",
                mend=f"take {name} out of `along`; the list may still be of it",
            )
        names.append(name)
    if type(node) is SequenceNode and len(names) == len(node.value) and len(set(names)) < 2:
        source.error(
            node,
            "wrong-value",
            "a block is walked from one entity to another",
            found=describe(node),
            expected="at least two entities, such as [user, device]",
        )
    if names and not set(names) & set(own.of):
        source.error(
            node,
            "wrong-value",
            f"the list {own.name} is of none of these: no walk could begin",
            expected=f"among others one of {', '.join(own.of)}",
        )
    return tuple(dict.fromkeys(names))


def _to(
    source: Source,
    node: Node,
    own: List,
    lists: Mapping[str, List],
    spreading: Mapping[str, object],
    along: tuple[str, ...],
    hops: int,
) -> tuple[str, ...]:
    parts = [node] if type(node) is ScalarNode else source.sequence(node, "`to`")
    names: list[str] = []
    for part in parts:
        name = source.text_of(part, "the name of a list")
        if name is None:
            continue
        if name not in lists:
            source.unknown(part, f"there is no list {name!r}", lists)
        elif name == own.name or name in spreading:
            source.error(
                part,
                "conflict",
                f"the list {name} spreads itself: what a block reaches stands on a list of its own",
                mend=f"add a list such as `near_{own.name}: {{of: [{', '.join(along)}]}}`",
            )
        elif lacking := [entity for entity in along if entity not in lists[name].of]:
            source.error(
                part,
                "wrong-value",
                f"the list {name} is not of {' or '.join(lacking)}, which `along` reaches",
                mend=f"write `{name}: {{of: [{', '.join((*lists[name].of, *lacking))}]}}`",
            )
        names.append(name)
    if type(node) is SequenceNode and not 1 <= len(names) <= hops:
        source.error(
            node,
            "wrong-value",
            "`to` is one list, or one for each step: the first of what is one step away",
            found=f"{len(names)} lists",
            expected=f"1 to {hops}",
        )
    if len(set(names)) < len(names):
        source.error(node, "conflict", "`to` names a list twice", mend="leave out the later one")
    return tuple(names)


def _check_links(source: Source, node: Node, spread: Spread, features: Mapping[str, Feature]) -> None:
    """Without a link by it nobody could tell how many share an entity, nor go on from it."""
    links = list(links_of(spread, features))
    for entity in spread.along:
        if not any(link.by == entity for link in links):
            other = next(name for name in spread.along if name != entity)
            source.error(
                node,
                "no-link",
                f"nothing tells which others a {entity} belongs to, nor how many share it",
                expected=f"a feature {{distinct: ENTITY, by: {entity}}} of an entity in `along`",
                mend=f"add `{entity}_{other}s_30d: {{distinct: {other}, on: any, by: {entity}, over: 30d}}`",
            )
    for link in links:
        if link.cap <= spread.degree:
            source.error(
                node,
                "wrong-value",
                f"{link.name} keeps {link.cap} members at most: more than {spread.degree} would not be told",
                mend=f"give {link.name} a `cap` above {spread.degree}, or `spreads` a lower `degree`",
            )
