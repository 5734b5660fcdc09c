"""The state of a shared store on its way into a file, and back out of one (statefile.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from riskengine import packing
from riskengine.errors import RiskEngineError
from riskengine.features import FeatureSet
from riskengine.stores import StoreError
from riskengine.stores.cluster import AnyLink
from riskengine.stores.place import Place, kind_of, missing_epoch, read_word
from riskengine.stores.plans import LaidOut, Plans
from riskengine.stores.scanning import TOGETHER, by_part
from riskengine.stores.statefile import StateFile, Value

# Put values (ARGV from the second on, each with ms that it lives) at keys (from the second on).
PUT: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
for i = 2, #KEYS do
  redis.call('SET', KEYS[i], ARGV[2 * i - 2], 'PX', ARGV[2 * i - 1])
end
return 1
"""


def values(link: AnyLink, place: Place, plan: LaidOut, plans: Plans) -> Iterator[Value]:
    """Every entity that a plan has, as (key, entity, packed value). Raises StoreError for a broken one."""
    kinds = {kind_of(entity): entity for entity in plan.entities}
    start = len(place.within(0)) + 1
    for part, names in by_part(link, place, b"e"):
        for name, value in zip(names, link.call("MGET", *names, at=part), strict=True):
            entity = kinds.get(name[start : start + 2])
            if entity is None or not isinstance(value, bytes):  # another policy's, or it went meanwhile
                continue
            try:
                section = plans.folded(value, entity, plan)
            except ValueError as error:
                raise StoreError("broken", f"the state of a {entity} is broken: {error}") from None
            if section:
                yield read_word(name[start + 2 :]), entity, section


def put(
    link: AnyLink, place: Place, features: FeatureSet, lives_ms: Sequence[int], path: Path, state: StateFile
) -> int:
    """Put the entities of a file into the store, over what is there; return how many.

    Raises RiskEngineError and puts nothing unless the whole file is sound and of this plan.
    """
    if state.head.plan != features.fingerprint:
        raise RiskEngineError(
            f"{path} was written under plan {state.head.plan}, this one's is {features.fingerprint}: take it "
            "in with the policy that wrote it, and reload this one then"
        )
    for n, (_, entity, value) in enumerate(state, 1):
        problem = packing.examine(value, features.fingerprint)
        if entity not in features.entities:
            problem = f"it is of an entity the policy does not have: {entity}"
        if problem is not None:
            raise RiskEngineError(f"{path} cannot be taken in: of value {n}, {problem}")
    n = 0
    for part, some in _together(state, place):
        names = [place.entity_name(entity, key) for key, entity, _ in some]
        words: list[bytes | int] = []
        for _, entity, value in some:
            words += [value, lives_ms[features.entities.index(entity)]]
        answer = link.call(
            "EVAL", PUT, 1 + len(names), place.epoch_name(part), *names, place.epoch, *words, at=part
        )[0]
        if answer == -1:
            raise StoreError("epoch", missing_epoch(place))
        n += len(names)
    return n


def _together(state: Iterable[Value], place: Place) -> Iterator[tuple[int, list[Value]]]:
    """Values of one partition, some at a time."""
    groups: dict[int, list[Value]] = {}
    for value in state:
        part = place.part_of(value[0])
        some = groups.setdefault(part, [])
        some.append(value)
        if len(some) == TOGETHER:
            yield part, groups.pop(part)
    yield from groups.items()
