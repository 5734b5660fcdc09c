"""Events that were entered and never decided: their engine died in between, and holds what it reserved.

A retry decides them. Where none comes, an operator lists them and gives back what they hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from riskengine.features import FeatureSet
from riskengine.layout import E_CELLS, L_CELL, L_ENTITY
from riskengine.stores import StoreError
from riskengine.stores.cluster import AnyLink
from riskengine.stores.holds import Hold, held_of, holds_in
from riskengine.stores.kept import life_ms_of
from riskengine.stores.line import Item
from riskengine.stores.place import Place, kind_of, missing_epoch, read_word
from riskengine.stores.plans import LaidOut, Plans
from riskengine.stores.scanning import by_part

UNDECIDED_MS: Final = 7 * 86_400_000
BY_DENIAL: Final = b"denied"  # as conclude.lua looks for it
RESUMED: Final = b"resumed"

# Of claims (KEYS) of one partition, those that nobody decided for so long (ARGV: ms of age), or that were
# stopped and not given back in full: number, value, age in ms.
OPEN: Final = """
local found = {}
for i, name in ipairs(KEYS) do
  local claim = redis.call('GET', name)
  if claim and #claim == 41 then
    local a, b, c, d = string.byte(claim, 25, 28)
    local age = 1000 * (a + 256 * (b + 256 * (c + 256 * d))) - redis.call('PTTL', name)
    local start, event = string.sub(name, 1, -24), string.sub(name, -22)
    if age >= tonumber(ARGV[1]) and redis.call('EXISTS', start .. 't' .. string.sub(claim, 31)) == 0 then
      local decision = redis.call('GET', start .. 'd' .. event)
      local mark = redis.call('GET', start .. 'b' .. event)
      if not decision or decision == '' and not (mark and string.sub(mark, 1, 6) == 'denied') then
        for _, value in ipairs({i, claim, age}) do
          found[#found + 1] = value
        end
      end
    end
  end
end
return found
"""

# Of claims (KEYS) that came to another partition than their own (ARGV: ms that they live there), those that
# did so long ago (ARGV: ms of age): number, value, age in ms.
AGED: Final = """
local found = {}
for i, name in ipairs(KEYS) do
  local claim = redis.call('GET', name)
  if claim and #claim == 41 then
    local age = ARGV[1] - redis.call('PTTL', name)
    if age >= tonumber(ARGV[2]) then
      for _, value in ipairs({i, claim, age}) do
        found[#found + 1] = value
      end
    end
  end
end
return found
"""

# Stop whoever may still decide an event (KEYS: epoch, claim, decision, mark; ARGV: epoch, ms): an empty
# decision keeps an engine that lives on from it; so that what its batch is decided together is not of it, the
# batch's name is taken from the claim. Answers 0 where it was decided, or given back, before.
STOP: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
local claim = redis.call('GET', KEYS[2])
local decision = redis.call('GET', KEYS[3])
local mark = redis.call('GET', KEYS[4])
if not claim or #claim ~= 41 or decision and decision ~= ''
  or redis.call('EXISTS', string.sub(KEYS[2], 1, -24) .. 't' .. string.sub(claim, 31)) == 1
  or mark and string.sub(mark, 1, 6) == 'denied' then
  return 0
end
redis.call('SET', KEYS[3], '', 'PX', ARGV[2])
redis.call('SETRANGE', KEYS[2], 30, '!!!!!!!!!!!')
return 1
"""


class Undecided(NamedTuple):
    """An event that nobody decided: its claim, its time (ms), how long ago it came, what it holds."""

    claim: bytes
    time: int
    age_ms: int
    holds: tuple[Hold, ...]


def limit_of(hold: Hold, features: FeatureSet) -> str | None:
    """The name of the limit that something is held of; None where this policy has it no more."""
    for name, row in zip(features.limit_names, features.plan.limits, strict=True):
        e = int(row[L_ENTITY])
        cell = int(row[L_CELL] - features.plan.entities[e, E_CELLS])
        if (features.entities[e], cell) == (hold.entity, hold.cell):
            return name
    return None


def undecided(
    link: AnyLink,
    place: Place,
    features: FeatureSet,
    plan: LaidOut,
    plans: Plans,
    older_ms: int,
    elsewhere_ms: int,
) -> list[Undecided]:
    """Events that came at least so long ago and were not decided, in the order of their time.

    From here on no engine can reserve or give back anything for them before it decides. On a cluster what
    they hold is known for as long as a late event counts (claims of other partitions live `elsewhere_ms`):
    later, what has been folded is nobody's.
    """
    if len(place.tags) > 1:
        _bring_home(link, place, older_ms, elsewhere_ms)
    found: dict[bytes, tuple[int, int]] = {}
    parts: dict[bytes, set[int]] = {}
    for part, names in by_part(link, place, b"c"):
        own = [name for name in names if place.is_at_home(name)]
        if own:
            for name, value, age in _aged(own, link.call("EVAL", OPEN, len(own), *own, older_ms, at=part)):
                claim = claim_of(name)
                found[claim] = int.from_bytes(value[16:24], "little", signed=True), age
                parts[claim] = {part}
    if found and len(place.tags) > 1:
        for part, names in by_part(link, place, b"c"):
            for claim in map(claim_of, names):
                if claim in found:
                    parts[claim].add(part)
    spots = [(claim, part) for claim in found for part in sorted(parts[claim])]
    settled = {spot for spot in spots if _stand_in(link, place, *spot).startswith(BY_DENIAL)}
    holds: dict[bytes, dict[tuple[str, int, int], Hold]] = {claim: {} for claim in found}
    for hold in _held_by_all(link, place, features, plan, plans) if found else ():
        if hold.claim in found:
            holds[hold.claim][hold.entity, hold.key, hold.cell] = hold
    for claim, part in spots:  # what is folded meanwhile is kept before it is gone from the tail
        kept = link.call("GET", place.claim_name(b"h", claim, part), at=part)[0]
        for hold in held_of(kept, plans, plan):
            holds[claim][hold.entity, hold.key, hold.cell] = hold
    return sorted(
        (
            Undecided(
                claim, time, age,
                tuple(h for h in holds[claim].values() if (claim, place.part_of(h.key)) not in settled),
            )
            for claim, (time, age) in found.items()
        ),
        key=lambda one: (one.time, one.claim),
    )  # fmt: skip


def open_among(link: AnyLink, place: Place, claims: Sequence[bytes]) -> set[bytes]:
    """Which of these events were entered in their own partitions, and not decided."""
    parts: dict[int, list[bytes]] = {}
    for claim in claims:
        parts.setdefault(place.part_of(claim), []).append(place.claim_name(b"c", claim))
    return {
        claim_of(name)
        for part, own in parts.items()
        for name, *_ in _aged(own, link.call("EVAL", OPEN, len(own), *own, 0, at=part))
    }


def give_up(link: AnyLink, place: Place, one: Undecided) -> bool:
    """Give back what an undecided event holds; False where it was decided meanwhile.

    When it comes again it is decided anew, with nothing held and its limits refused. What is interrupted is
    listed again, and goes on where it stood.
    """
    home = place.part_of(one.claim)
    names = [place.claim_name(letter, one.claim) for letter in (b"c", b"d", b"b")]
    answer = link.call(
        "EVAL", STOP, 4, place.epoch_name(home), *names, place.epoch, UNDECIDED_MS, at=home
    )[0]  # fmt: skip
    if not _done(answer, place):
        return False
    parts = {place.part_of(hold.key) for hold in one.holds} - {home}
    for part in (*sorted(parts), home):  # the last says that it is all
        own = [hold for hold in one.holds if place.part_of(hold.key) == part]
        give_back(link, place, one.claim, part, [(hold.entity, hold.key, hold.release) for hold in own])
    return True


def give_back(
    link: AnyLink, place: Place, claim: bytes, part: int, records: Sequence[tuple[str, int, bytes]]
) -> bool:
    """Give back what an event holds in one partition, by entity and key; False where it was before."""
    return _done(link.call(*giving_back(link, place, claim, part, records), at=part)[0], place)


def giving_back(
    link: AnyLink, place: Place, claim: bytes, part: int, records: Sequence[tuple[str, int, bytes]]
) -> Sequence[bytes | str | int]:
    """The call of give_back.lua."""
    marks = [place.claim_name(letter, claim, part) for letter in (b"b", b"p")]
    entities = [place.entity_name(entity, key) for entity, key, _ in records]
    return (
        "EVALSHA", link.names["give_back"], 3 + len(entities), place.epoch_name(part), *marks, *entities,
        place.epoch, BY_DENIAL, UNDECIDED_MS, *(record for _, _, record in records),
    )  # fmt: skip


def _bring_home(link: AnyLink, place: Place, older_ms: int, elsewhere_ms: int) -> None:
    """Enter in their own partitions what an engine that died there had entered in others only."""
    for part, names in by_part(link, place, b"c"):
        there = [name for name in names if not place.is_at_home(name)]
        if not there:
            continue
        items = link.call("EVAL", AGED, len(there), *there, elsewhere_ms, older_ms, at=part)
        by_home: dict[int, list[tuple[bytes, bytes, int]]] = {}
        for name, value, age in _aged(there, items):
            claim = claim_of(name)
            by_home.setdefault(place.part_of(claim), []).append((claim, value, age))
        for home, some in by_home.items():
            own = [place.claim_name(b"c", claim) for claim, _, _ in some]
            for (_, value, age), name, known in zip(some, own, link.call("MGET", *own, at=home), strict=True):
                if known is None:
                    left_ms = max(life_ms_of(value) - age, 1)
                    link.call("SET", name, value, "NX", "PX", left_ms, at=home)


def _aged(names: Sequence[bytes], items: Sequence[Item]) -> Iterator[tuple[bytes, bytes, int]]:
    """What OPEN and AGED answer: names, values, ages."""
    for i, value, age in zip(*[iter(items)] * 3, strict=True):
        assert isinstance(i, int), "numbers of claims"
        assert isinstance(value, bytes), "what has a length is a string"
        assert isinstance(age, int), "an age is a number"
        yield names[i - 1], value, age


def _done(answer: Item, place: Place) -> bool:
    if answer == -1:
        raise StoreError("epoch", missing_epoch(place))
    return answer == 1


def _stand_in(link: AnyLink, place: Place, claim: bytes, part: int) -> bytes:
    """Stop who decides an event from reserving anew in a partition; return the mark that is there then."""
    name = place.claim_name(b"b", claim, part)
    link.call("SET", name, RESUMED, "NX", "PX", UNDECIDED_MS, at=part)
    mark = link.call("GET", name, at=part)[0]
    return mark if isinstance(mark, bytes) else b""


def _held_by_all(
    link: AnyLink, place: Place, features: FeatureSet, plan: LaidOut, plans: Plans
) -> Iterator[Hold]:
    """What stands granted in the tails of all entities that limits go by."""
    limited = {features.entities[int(row[L_ENTITY])] for row in features.plan.limits}
    kinds = {kind_of(entity): entity for entity in limited}
    start = len(place.within(0)) + 1
    for part, all_names in by_part(link, place, b"e"):
        names = [name for name in all_names if name[start : start + 2] in kinds]
        values = link.call("MGET", *names, at=part) if names else []
        for name, value in zip(names, values, strict=True):
            entity = kinds[name[start : start + 2]]
            yield from holds_in(value, entity, read_word(name[start + 2 :]), plans, plan)


def claim_of(name: bytes) -> bytes:
    """The claim that a key is of."""
    words = read_word(name[-22:-11]), read_word(name[-11:])
    return b"".join((word & (2**64 - 1)).to_bytes(8, "little") for word in words)
