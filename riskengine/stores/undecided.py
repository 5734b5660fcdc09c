"""Events that were entered and never decided: their engine died in between, and holds what it reserved.

A retry decides them. Where none comes, an operator lists them and gives back what they hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from riskengine.errors import RiskEngineError
from riskengine.features import FeatureSet
from riskengine.ledger import E_CELLS, L_CELL, L_ENTITY
from riskengine.stores import StoreError
from riskengine.stores.cluster import AnyLink
from riskengine.stores.holds import Hold, held_of, holds_in
from riskengine.stores.place import Place, kind_of, missing_epoch, read_word
from riskengine.stores.plans import LaidOut, Plans
from riskengine.stores.scanning import scan

UNDECIDED_MS: Final = 7 * 86_400_000
BY_DENIAL: Final = b"denied"  # as conclude.lua looks for it
RESUMED: Final = b"resumed"
VALUES_TOGETHER: Final = 200

# Of claims (KEYS), those that nobody decided for so long (ARGV: ms of age): number, value, age in ms, what
# was given back or reserved before a decision, what was folded of what they hold.
OPEN: Final = """
local found = {}
for i, name in ipairs(KEYS) do
  local claim = redis.call('GET', name)
  if claim and #claim == 41 then
    local a, b, c, d = string.byte(claim, 25, 28)
    local age = 1000 * (a + 256 * (b + 256 * (c + 256 * d))) - redis.call('PTTL', name)
    local start, event = string.sub(name, 1, -24), string.sub(name, -22)
    if age >= tonumber(ARGV[1]) and redis.call('EXISTS', start .. 't' .. string.sub(claim, 31)) == 0
      and not redis.call('GET', start .. 'd' .. event) then
      local values = redis.call('MGET', start .. 'b' .. event, start .. 'h' .. event)
      for _, value in ipairs({i, claim, age, values[1] or '', values[2] or ''}) do
        found[#found + 1] = value
      end
    end
  end
end
return found
"""

# Give back what an undecided event (KEYS: epoch, claim, decision, mark, entities) holds: ARGV are the epoch,
# the mark, ms that it lives, and a record for each entity. An empty decision stops an engine that lives on,
# whose batch is not decided together any more: its name is taken from the claim.
GIVE_UP: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
local mark = redis.call('GET', KEYS[4])
local claim = redis.call('GET', KEYS[2])
if not claim or #claim ~= 41 or redis.call('EXISTS', KEYS[3]) == 1
  or redis.call('EXISTS', string.sub(KEYS[2], 1, -24) .. 't' .. string.sub(claim, 31)) == 1
  or mark and string.sub(mark, 1, 6) == 'denied' then
  return 0
end
for i = 5, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    redis.call('APPEND', KEYS[i], ARGV[i - 1])
  end
end
redis.call('SET', KEYS[4], ARGV[2], 'PX', ARGV[3])
redis.call('SET', KEYS[3], '', 'PX', ARGV[3])
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
    link: AnyLink, place: Place, features: FeatureSet, plan: LaidOut, plans: Plans, older_ms: int
) -> list[Undecided]:
    """Events that came at least so long ago and were not decided, in the order of their time.

    From here on no engine can reserve or give back anything for them before it decides.
    """
    found: dict[bytes, tuple[int, int]] = {}
    holds: dict[bytes, dict[tuple[str, int, int], Hold]] = {}
    settled: set[bytes] = set()
    if len(place.tags) > 1:
        raise RiskEngineError(
            "what a crash left open is not listed on a cluster yet: it is settled where the event comes again"
        )
    for call, names in scan(link, place.data + b"c"):
        items = call("EVAL", OPEN, len(names), *names, older_ms)
        for i, value, age, mark, kept in _fives(items):
            assert isinstance(i, int), "numbers of claims"
            assert isinstance(value, bytes), "what has a length is a string"
            assert isinstance(age, int), "an age is a number"
            name = names[i - 1]
            claim = _claim_of(name)
            found[claim] = int.from_bytes(value[16:24], "little", signed=True), age
            own = holds[claim] = {}
            if isinstance(mark, bytes) and mark.startswith(BY_DENIAL):
                settled.add(claim)
            elif not mark:
                link.call("SET", place.claim_name(b"b", claim), RESUMED, "NX", "PX", UNDECIDED_MS)
            for hold in held_of(kept, plans, plan):
                own[hold.entity, hold.key, hold.cell] = hold
    if found:
        limited = {features.entities[int(row[L_ENTITY])] for row in features.plan.limits}
        for entity in sorted(limited):
            for hold in _held_by_all(link, place, entity, plan, plans):
                if hold.claim in found:
                    holds[hold.claim][hold.entity, hold.key, hold.cell] = hold
    for claim in settled:
        holds[claim].clear()
    return sorted(
        (Undecided(claim, time, age, tuple(holds[claim].values())) for claim, (time, age) in found.items()),
        key=lambda one: (one.time, one.claim),
    )


def give_up(link: AnyLink, place: Place, one: Undecided) -> bool:
    """Give back what an undecided event holds; False where it was decided meanwhile.

    When it comes again it is decided anew, with nothing held and its limits refused.
    """
    names = [place.claim_name(letter, one.claim) for letter in (b"c", b"d", b"b")]
    entities = [place.entity_name(hold.entity, hold.key) for hold in one.holds]
    answer = link.call(
        "EVAL", GIVE_UP, 4 + len(entities), place.epoch_key, *names, *entities, place.epoch, BY_DENIAL,
        UNDECIDED_MS, *(hold.release for hold in one.holds),
    )[0]  # fmt: skip
    if answer == -1:
        raise StoreError("epoch", missing_epoch(place))
    return answer == 1


def _held_by_all(link: AnyLink, place: Place, entity: str, plan: LaidOut, plans: Plans) -> Iterator[Hold]:
    """What stands granted in the tails of all entities of a kind."""
    start = place.data + b"e" + kind_of(entity)
    for call, names in scan(link, start):
        for at in range(0, len(names), VALUES_TOGETHER):
            some = names[at : at + VALUES_TOGETHER]
            for name, value in zip(some, call("MGET", *some), strict=True):
                yield from holds_in(value, entity, read_word(name[len(start) :]), plans, plan)


def _fives(items: Sequence[bytes | int | None]) -> Iterator[Sequence[bytes | int | None]]:
    return (items[at : at + 5] for at in range(0, len(items), 5))


def _claim_of(name: bytes) -> bytes:
    """The claim that a key is of."""
    words = read_word(name[-22:-11]), read_word(name[-11:])
    return b"".join((word & (2**64 - 1)).to_bytes(8, "little") for word in words)
