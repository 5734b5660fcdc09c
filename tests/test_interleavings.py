"""Two and three engines on one real server, or cluster, taking turns at every request as a scheduler says.

A schedule is drawn from a seed: who goes on next, and who is killed where. Each engine works in a thread that
stops before every request to the server and after every answer, so that whatever lies between two requests
of one engine may come to lie there; on a cluster each partition's is one. What holds afterwards, whatever the
schedule:

- of a limit never more is granted than its `max`, and it holds what was granted and not given back, once
  what engines left that were killed is settled (`undecided`, `give_back_owed`);
- every answer that was ever given to an event is the same, and a retry gets it too;
- every event that was accepted is counted once, and one that follows another is not, where that was known;
- of an event's labels the latest counts, once, whoever sent it and however often.

Engines take in single events and batches, retries, follow-ups, labels and releases, and go over to another
policy in between. 300 schedules are played here, and a third as many on a cluster; RISKENGINE_SCHEDULES=10000
plays as many as that, from the seed RISKENGINE_SEED on, in some seven minutes. A failure names the seed that
plays it again.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from clusters import cluster
from servers import apart, valkey
from stage import KEY, T0, claim, policy, store_of, write

from riskengine.decision import Decision
from riskengine.definition import Label
from riskengine.engine import Engine
from riskengine.stores import kept, resp, unfolding
from riskengine.stores.address import begin
from riskengine.stores.cluster import ClusterLink
from riskengine.stores.line import Item, Reply
from riskengine.stores.past import BY_RELEASE
from riskengine.stores.resp import as_array
from riskengine.stores.scratch import encoded

SCHEDULES = int(os.environ.get("RISKENGINE_SCHEDULES", "300"))
EVENTS_MAX = 3  # of a batch
SEED = int(os.environ.get("RISKENGINE_SEED", "0"))
EVENTS = {"coupon_claim": {"required": ["user_id"], "fields": {"quota": "number", "bad": "bool"}}}
FEATURES = {
    "claims": {"count": "coupon_claim", "by": "user", "over": "1h"},
    "frauds": {"count": "fraud", "on": "coupon_claim", "by": "user", "over": "1h"},
}
LIMITS = {
    "few": {"count": "coupon_claim", "by": "device", "over": "1h", "max": "quota", "then": "deny"},
    "some": {"count": "coupon_claim", "by": "campaign", "over": "1h", "max": 4, "then": "review"},
}
RULES = {"bad": {"on": "any", "when": "bad", "then": "deny", "mode": "live"}}
POLICY = policy(events=EVENTS, features=FEATURES, limits=LIMITS, rules=RULES)
# Another plan, whose records these are too: what it defines alike counts for both.
OTHER = policy(
    events=EVENTS,
    features={
        **FEATURES,
        "devices": {"distinct": "device", "on": "coupon_claim", "by": "user", "over": "1h"},
    },
    limits=LIMITS,
    rules=RULES,
)


class KilledError(BaseException):
    """The engine's process is gone, here and now."""


class Stepped:
    """A link that stops at every request, before it and after it, until its client may go on.

    What is told goes out with the next request, or is lost with the engine: both may be.
    """

    def __init__(self, link: Any) -> None:
        self.link = link
        self.told: list[tuple[bytes, int, Callable[[list[Item]], None] | None]] = []  # as stores.cluster.Told
        self.step: Callable[[], None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.link, name)

    def ask(self, request: Any, at: int = 0, replies: int = 1) -> Any:
        return self._stepped(self.link.ask, bytes(request), at, replies)

    def ask_all(self, requests: Any, ends: Any, where: Any) -> Any:
        return self._stepped(self.link.ask_all, memoryview(bytes(requests)), ends, where)

    def call(self, *words: Any, at: int = 0) -> Any:
        return self._stepped(partial(self.link.call, at=at), *words)

    def _stepped(self, call: Callable[..., Any], *given: Any) -> Any:
        self._stop()
        self.flush()
        answer = call(*given)
        self._stop()
        return answer

    def tell(self, request: Any, at: int = 0) -> None:
        self.told.append((bytes(request), at, None))
        self._stop()

    def tell_all(self, requests: Any, ends: Any, where: Any, after: Any = None) -> None:
        self.tell(requests)

    def flush(self) -> None:
        while self.told:
            self._stop()
            request, at, after = self.told.pop(0)
            answer = self.link.ask(request, at).of(0)
            if after is not None:
                after(answer)

    def forget(self) -> None:
        """Lose what was told and not sent."""
        self.told = []

    def _stop(self) -> None:
        if self.step is not None:
            self.step()


class SteppedCluster(Stepped):
    """One of a cluster: partitions are asked, and told, one after the other, in any order."""

    def __init__(self, link: Any) -> None:
        super().__init__(link)
        self.draw = random.Random(0)

    def ask_all(self, requests: Any, ends: Any, where: Any) -> Any:
        answers: dict[int, bytes] = {}
        texts = self._cut(requests, ends)
        for k in self.draw.sample(range(len(texts)), len(texts)):
            answers[k] = self._stepped(self._answer, texts[k], int(where[k]))
        return replied([answers[k] for k in range(len(texts))])

    def later(self, request: Any, at: int = 0, replies: int = 1, after: Any = None) -> None:
        self.told.append((bytes(request), at, after))

    def tell_all(self, requests: Any, ends: Any, where: Any, after: Any = None) -> None:
        for k, text in enumerate(self._cut(requests, ends)):
            self.told.append((text, int(where[k]), None if after is None else partial(after, k)))
        self._stop()
        if after is not None:  # it is waited for
            self.flush()
            self._stop()

    def _answer(self, request: bytes, at: int) -> bytes:
        return encoded(self.link.ask(request, at).of(0))

    @staticmethod
    def _cut(requests: Any, ends: Any) -> list[bytes]:
        return [bytes(requests[start:end]) for start, end in zip((0, *ends[:-1]), ends, strict=True)]


def replied(answers: list[bytes]) -> Reply:
    """Answers of several partitions, as one reply."""
    reply, data, n = Reply(), as_array(b"".join(answers)), len(answers)
    reply.data, reply.replies = data, n
    reply.end, reply.count, _, _ = resp.scan_all(
        data, 0, len(data), reply.offsets, reply.lengths, 0, -1, reply.firsts, 0, n
    )
    return reply


class Client:
    """An engine in a thread of its own, that does one thing after another and stops in between."""

    def __init__(self, folder: Path, sections: dict[str, Any], store: str) -> None:
        self.engine = Engine.open(write(folder, sections), store=store, key=KEY, clock=lambda: T0 + 1000)
        self.own = self.engine.policy
        other = OTHER if sections is POLICY else POLICY
        self.other = self.engine.prepare(write(folder / "other", other))
        opened = store_of(self.engine)
        self.store = opened
        self.on_cluster = isinstance(opened._link, ClusterLink)
        self.link = SteppedCluster(opened._link) if self.on_cluster else Stepped(opened._link)
        opened._link = self.link  # type: ignore[assignment]  # a link in all but name
        self.link.step = self._stop
        self._go, self._stopped = threading.Lock(), threading.Lock()  # handed from thread to thread
        self._go.acquire()
        self._stopped.acquire()
        self._todo: list[Callable[[], None]] = []
        self._dead = False
        self.error: BaseException | None = None
        self.busy = False
        threading.Thread(target=self._work, daemon=True).start()

    def begin(self, todo: list[Callable[[], None]]) -> None:
        """Have these things to do, and stop before the first."""
        self._todo, self.busy, self._dead = todo, bool(todo), False

    def turn(self, dead: bool = False) -> None:
        """Go on to the next stop, or die where it stands."""
        self._dead = dead
        self._go.release()
        assert self._stopped.acquire(timeout=600), "an engine hangs"
        if self.error is not None:
            raise self.error

    def leave(self) -> None:
        """Die where it stands, if a failed schedule left it there: it holds its engine's lock."""
        while self.busy and self.error is None:
            self.turn(dead=True)
        self.link.step = None

    def switch(self) -> None:
        """Go over to the other policy."""
        self.engine.switch(self.other if self.engine.policy is self.own else self.own)

    def anew(self) -> None:
        """Be as a process that starts."""
        if self.engine.policy is not self.own:
            self.quietly(self.switch)

    def quietly(self, call: Callable[[], Any]) -> Any:
        """Do something without stops, in the caller's thread."""
        self.link.step, before = None, self.link.step
        try:
            return call()
        finally:
            self.link.flush()
            self.link.step = before

    def _stop(self) -> None:
        self._stopped.release()
        self._go.acquire()
        if self._dead:
            raise KilledError

    def _work(self) -> None:
        while True:
            self._go.acquire()
            try:
                if self._dead:
                    raise KilledError
                for thing in self._todo:
                    thing()
            except KilledError:  # what it knew and had not sent is gone; a new one begins in its place
                self.link.forget()
                self.store.claims.clear()
                self.store._doors.postponed.clear()
                self.store._asked = None
            except BaseException as error:  # the scheduler raises it
                self.error = error
            self.busy = False
            self._stopped.release()


@pytest.fixture(scope="module", params=["server", "cluster"])
def clients(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Client]]:
    folder = tmp_path_factory.mktemp("clients")
    patch = pytest.MonkeyPatch()
    patch.setattr(unfolding, "TAIL_RECORDS", 2)  # fold nearly all the time
    patch.setattr(kept, "IN_FLIGHT_MS", 0)  # nobody waits for an engine that stands still here, ...
    patch.setattr(kept, "SURE_MS", 0)  # ... and each looks whether it was overtaken
    with ExitStack() as stack:
        if request.param == "cluster":
            url = stack.enter_context(cluster(replicas=False)).url
        else:
            url = stack.enter_context(valkey())
        store = apart(url, timeout=20_000)
        begin(store, "stage")
        made = [
            Client(folder / str(n), sections, store) for n, sections in enumerate((POLICY, POLICY, OTHER))
        ]
        for client in made:  # as each will be in any schedule: it knows both policies, and of no edits
            client.quietly(client.switch)
            client.anew()
            client.quietly(client.store._edits.look)
        yield made
        for client in made:
            client.leave()
            client.engine.close()
    patch.undo()


class Play:
    """One schedule: what is asked, by whom, and what was answered."""

    def __init__(self, seed: int, clients: list[Client]) -> None:
        self.draw = random.Random(seed)
        self.seed = seed
        self.clients = clients[: self.draw.choice([2, 2, 3])]
        if self.draw.random() < 0.3:
            self.clients = [clients[0], clients[2]]
        for client in self.clients:
            client.anew()
            if isinstance(client.link, SteppedCluster):
                client.link.draw = random.Random(seed)
        self.answers: dict[str, list[tuple[str, ...]]] = {}
        self.told: dict[str, list[Decision]] = {}
        self.is_whole = True  # whatever was answered has been sent
        self.released: set[str] = set()
        self.labels: set[tuple[str, Label, int]] = set()  # that were sent: event, label, time
        self.frauds: set[str] = set()
        self.quota = self.draw.choice([1, 2, 3])
        self.events = [self.event(n) for n in range(self.draw.randrange(2, 7))]
        self.following = [self.follow_up(n) for n in range(self.draw.choice([0, 0, 1, 2]))]

    def event(self, n: int) -> dict[str, Any]:
        draw = self.draw
        return claim(
            f"{self.seed}-{n}", draw.randrange(100), user_id=f"u{self.seed}", device_id=f"d{self.seed}",
            campaign_id=f"c{self.seed}", quota=self.quota, bad=draw.random() < 0.25,
        )  # fmt: skip

    def follow_up(self, n: int) -> dict[str, Any]:
        first = self.draw.choice(self.events)
        more = {"event_id": f"{self.seed}-f{n}", "time": T0 + 100 + n, "follows": first["event_id"]}
        return {**first, **more, "bad": self.draw.random() < 0.25}

    def keep(self, event: dict[str, Any], decision: Any) -> None:
        assert isinstance(decision, Decision), decision
        # Where two engines decide a denied event at once, one may know of a refused limit more.
        fired = decision.fired if decision.action != "deny" else ()
        self.answers.setdefault(event["event_id"], []).append((decision.action, *fired))
        self.told.setdefault(event["event_id"], []).append(decision)

    def score(self, client: Client, events: list[dict[str, Any]]) -> None:
        for event, decision in zip(events, client.engine.score_many(events), strict=True):
            self.keep(event, decision)

    def release(self, client: Client, event: dict[str, Any]) -> None:
        if client.engine.release(event["event_id"]):
            self.released.add(event["event_id"])

    def label(self, client: Client, event_id: str, label: Label, time: int) -> None:
        self.labels.add((event_id, label, time))
        client.engine.label(event_id, label, time)

    def things(self, client: Client) -> list[Callable[[], None]]:
        """What a client does: events, of which others do some too, and what comes after them."""
        draw = self.draw
        things: list[Callable[[], None]] = []
        mine = [event for event in (*self.events, *self.following) if draw.random() < 0.7]
        while mine:
            part = draw.randrange(1, EVENTS_MAX + 1)
            things.append(partial(self.score, client, mine[:part]))
            if draw.random() < 0.2:
                things.append(partial(self.release, client, mine[0]))
            if draw.random() < 0.2:
                label: Label = "fraud" if draw.random() < 0.7 else "legit"
                event_id, time = draw.choice(self.events)["event_id"], T0 + 200 + draw.randrange(1000)
                things.append(partial(self.label, client, event_id, label, time))
            if draw.random() < 0.1:
                things.append(client.switch)
            mine = mine[part:]
        return things

    def run(self) -> int:
        """Play it; the number of turns."""
        draw, turns = self.draw, 0
        for client in self.clients:
            client.begin(self.things(client))
        while waiting := [client for client in self.clients if client.busy]:
            dead = draw.random() < 0.02
            self.is_whole = self.is_whole and not dead
            draw.choice(waiting).turn(dead)
            turns += 1
        for client in self.clients:
            if draw.random() < 0.8:
                client.quietly(client.link.flush)
            else:
                client.link.forget()  # it died after its last answer, and before that was sent
                self.is_whole = False
        return turns

    def settle(self) -> None:
        """Where nobody comes again for what was left undecided, it is listed, and given back."""
        one = self.clients[0]
        again = (
            self.events if self.draw.random() < 0.6 else [e for e in self.events if self.draw.random() < 0.5]
        )
        for event in (*again, *self.following):
            one.quietly(partial(self.score, one, [event]))
        one.quietly(lambda: one.store.give_back_owed(0))
        listed = one.quietly(lambda: one.store.undecided(0))
        own = {one.engine._claim_key(event["event_id"]): event["event_id"] for event in self.events}
        for undecided in listed:
            # Had there been a journal, what was answered of it would be known: it is as if nothing had been.
            if undecided.claim in own:
                one.quietly(partial(one.store.give_up, undecided))
                self.answers.pop(own[undecided.claim], None)
        # What was decided without anybody hearing of it is decided too.
        keys = [one.engine._claim_key(event["event_id"]) for event in self.events]
        known = [one.quietly(partial(one.store._past.recall, key)) for key in keys]
        heard = [e for e, there in zip(self.events, known, strict=True) if there is not None or e in again]
        one.quietly(partial(self.score, one, heard))
        for event in (*self.events, *self.following):
            there = one.quietly(partial(one.store._past.recall, one.engine._claim_key(event["event_id"])))
            if there is not None and there.settled is not None:  # by a release, also one whose engine died
                self.released.add(event["event_id"])  # of it, or by an event that follows
                if one.on_cluster and there.settled == BY_RELEASE:  # who was not answered asks again
                    one.quietly(partial(one.engine.release, event["event_id"]))
        told = sorted(self.labels)
        self.draw.shuffle(told)
        latest = {event_id: label for event_id, label, _ in sorted(told, key=lambda said: said[2])}
        for event_id, label, time in told:  # whoever was not answered asks again
            taken = one.quietly(partial(one.engine.label, event_id, label, time))
            assert taken == (event_id in self.answers)
            if taken and latest[event_id] == "fraud":
                self.frauds.add(event_id)

    def check(self) -> None:
        """The invariants. A probe is granted where there is room for it, and refused where there is none."""
        for event_id, answers in self.answers.items():
            assert len(set(answers)) == 1, f"{event_id} was answered {answers}"
        if self.is_whole:
            for event_id, told in self.told.items():
                assert all(decision == told[0] for decision in told), f"{event_id} was answered {told}"
        decided = {event_id: answers[-1] for event_id, answers in self.answers.items()}
        held = [
            event_id
            for event_id, (action, *fired) in decided.items()
            if action != "deny" and "few" not in fired and event_id not in self.released
        ]
        granted = [event_id for event_id, (action, *_) in decided.items() if action != "deny"]
        assert len(held) <= self.quota
        one = self.clients[-1]
        last = {"user_id": f"u{self.seed}", "device_id": f"d{self.seed}"}
        below = claim(f"{self.seed}-below", 200, **last, quota=len(held), bad=False)
        full = one.quietly(lambda: one.engine.score(below, features=True))
        assert full.action == "deny", f"no more than {held} is held"
        above = claim(f"{self.seed}-above", 200, **last, quota=len(held) + 1, bad=False)
        free = one.quietly(lambda: one.engine.score(above, features=True))
        assert free.action == "allow", f"more than {held} is held, of {granted}"
        unknown = [
            follower["event_id"]
            for follower in self.following
            if any("follows:unknown" in decision.flags for decision in self.told[follower["event_id"]])
        ]
        first = [event_id for event_id in decided if not self.is_following(event_id)]
        least = len(first) + len(unknown) + 2
        most = len(self.events) + len(unknown) + 2
        assert least <= free.features["claims"] <= most
        assert free.features["frauds"] == len(self.frauds), self.labels

    def is_following(self, event_id: str) -> bool:
        return any(event["event_id"] == event_id for event in self.following)


def test_whoever_goes_next(clients: list[Client]) -> None:
    turns, schedules = 0, SCHEDULES // 3 if clients[0].on_cluster else SCHEDULES
    for seed in range(SEED, SEED + schedules):
        if seed % 8 == 0:  # to look through all that was left open takes the longer, the more there is
            clear(clients)
        play = Play(seed, clients)
        try:
            turns += play.run()
            play.settle()
            play.check()
        except AssertionError as error:
            raise AssertionError(f"schedule {seed} ({len(play.clients)} engines): {error}") from error
    assert turns > 10 * schedules


def clear(clients: list[Client]) -> None:
    """Forget every event, in the same life of the data."""
    place, link = clients[0].store.place, clients[0].link.link
    for call in link.each():
        call("FLUSHDB")
    for part in range(len(place.tags)):
        link.call("SET", place.epoch_name(part), place.epoch, at=part)
    for client in clients:
        client.quietly(partial(client.store.move, place))
