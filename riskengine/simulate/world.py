"""The loop that everybody lives in: agents act in the order of time, and learn what was decided.

An agent is a generator. It yields what it does next, one `Act` or several at once, and is sent the `Outcome`
of each; it ends when it has had enough. Whoever decides sees nothing but events: that an act is abuse is
noted beside them for the judge.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Event = dict[str, Any]

REACTION_MS: Final = 1_500  # nobody answers faster to what was decided
SHOWN_EVENTS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Act:
    """Something done at a moment: its event (without id and time), and who does it.

    `follows` is the event_id of the one that it settles.
    """

    at_ms: int
    event: Event
    kind: str
    follows: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an act."""

    event_id: str
    action: str = "allow"
    challenge: str | None = None


Agent = Generator[Act | list[Act], list[Outcome], None]
Decide = Callable[[list[Event]], Sequence[Outcome]]
Arrival = tuple[int, Callable[[], Agent]]


@dataclass(frozen=True, slots=True)
class Told:
    """An event with what only the simulation knows: who did it, and the attempt that it is part of."""

    event: Event
    kind: str
    outcome: Outcome
    attempt: str  # event_id of the first event of a chain of follow-ups


class World:
    """Runs agents. `decide` is asked at once about all within REACTION_MS; without it all is allowed.

    `shown` is told how many events there are.
    """

    def __init__(
        self, decide: Decide | None = None, shown: Callable[[int], None] = lambda done: None
    ) -> None:
        self.told: list[Told] = []
        self._decide = decide
        self._shown = shown
        self._waiting: list[tuple[int, int, _Turn, int]] = []
        self._order = 0
        self._now_ms = 0  # of what happened last: nobody acts in the past
        self._attempts: dict[str, str] = {}

    def add(self, agent: Agent) -> None:
        """Let an agent live from the time of its first act on."""
        self._plan(agent, None, 0)

    def run(self, arrivals: Iterable[Arrival] = ()) -> None:
        """Until nobody has anything left to do. `arrivals` are agents who come later, by time."""
        coming = iter(arrivals)
        next_one = next(coming, None)
        waiting = self._waiting
        while waiting or next_one is not None:
            # Nobody sets out before that has happened which he may know of: his claim of a minute ago.
            while next_one is not None and (not waiting or next_one[0] <= waiting[0][0] + REACTION_MS):
                self.add(next_one[1]())
                next_one = next(coming, None)
            if not waiting:
                continue
            batch = [heapq.heappop(waiting)]
            if self._decide is not None:
                until_ms = batch[0][0] + REACTION_MS
                while waiting and waiting[0][0] < until_ms:
                    batch.append(heapq.heappop(waiting))
            self._happen(batch)

    def _happen(self, batch: list[tuple[int, int, _Turn, int]]) -> None:
        events = []
        self._now_ms = batch[-1][0]
        for number, (at_ms, _, turn, i) in enumerate(batch, len(self.told) + 1):
            act = turn.acts[i]
            event = {"event_id": f"e{number:07}", "time": at_ms, **act.event}
            if act.follows is not None:
                event["follows"] = act.follows
                self._attempts[event["event_id"]] = self._attempts.get(act.follows, act.follows)
            events.append(event)
        if self._decide is None:
            outcomes: Sequence[Outcome] = [Outcome(event["event_id"]) for event in events]
        else:
            outcomes = self._decide(events)
        for (at_ms, _, turn, i), event, outcome in zip(batch, events, outcomes, strict=True):
            act, name = turn.acts[i], event["event_id"]
            attempt = self._attempts.get(name, name)
            self.told.append(Told(event, act.kind, outcome, attempt))
            if len(self.told) % SHOWN_EVENTS == 0:
                self._shown(len(self.told))
            turn.outcomes[i] = outcome
            turn.left -= 1
            if not turn.left:
                self._plan(turn.agent, [turn.outcomes[k] for k in range(len(turn.acts))], at_ms + REACTION_MS)

    def _plan(self, agent: Agent, outcomes: list[Outcome] | None, earliest_ms: int) -> None:
        try:
            asked = next(agent) if outcomes is None else agent.send(outcomes)
        except StopIteration:
            return
        acts = [asked] if isinstance(asked, Act) else asked
        turn = _Turn(agent, acts, {}, len(acts))
        for i, act in enumerate(acts):
            self._order += 1
            heapq.heappush(self._waiting, (max(act.at_ms, earliest_ms, self._now_ms), self._order, turn, i))


@dataclass(slots=True, eq=False)
class _Turn:
    """What an agent does at once, and what has come of it so far."""

    agent: Agent
    acts: list[Act]
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    left: int = 0
