"""The flow: plan, wait, read, predict, fire, decide, keep. `Judge._judge` reads once, downward."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np

from riskengine import features as planning
from riskengine import sharing, warming
from riskengine.compiled import Policy
from riskengine.decision import ALLOW, CHALLENGE, Decision, ModelScore, Verdict, decide, name_decisions
from riskengine.definition import ACTIONS
from riskengine.errors import EventError, Problem, RiskEngineError
from riskengine.event import Batch
from riskengine.features import Touches
from riskengine.fibers import mine
from riskengine.hashing import signed
from riskengine.kernel import Call, Holder, bind
from riskengine.layout import Int64s
from riskengine.models import REASON_RISK_MIN
from riskengine.rooms import Empty, Rooms
from riskengine.served import Served
from riskengine.spreading import Found, Spreading, Touch, journaled
from riskengine.stores import FRESH_MS_MIN, Claim, Followed, Lives, Loss, Met, Store, StoreError
from riskengine.stores.traces import exclude
from riskengine.tables import TableSet
from riskengine.watch import Watch

if TYPE_CHECKING:
    from riskengine.journal import Journal

Result = Decision | EventError
_DECISION: Final = msgspec.json.Decoder(Decision)
DEGRADED: Final = "degraded:"  # begins the flags of what was decided without the store, ...
UNKEPT: Final = f"{DEGRADED}journal"  # ... and this one, while the journal takes nothing
UNFOLLOWED: Final = "follows:unknown"  # flag of what followed an event that nothing was known of
TOUCHES_MAX: Final = 10_000  # events that touched a block while the store was away; the oldest go first


def is_of_contract(flags: Sequence[str]) -> bool:
    """Whether an event with these flags was decided without the store."""
    return any(flag.startswith(DEGRADED) and flag != UNKEPT for flag in flags)


class Serving(NamedTuple):
    """What is served: it changes as a whole."""

    policy: Policy
    warming: Mapping[str, int]  # changed features, and until when
    partners: Mapping[str, bytes]  # keys of shared lists, by list


class Judge:
    """Judges batches by one store, one batch at a time. Not locked: the engine that has it locks."""

    def __init__(
        self,
        serving: Serving,
        store: Store,
        journal: Journal | None,
        clock: Callable[[], int],
        watch: Watch,
        lost_until: int,
    ) -> None:
        """`lost_until` (ms): events of before may have been decided, and lost with their journal's end."""
        self.store = store
        self.errors: Counter[str] = Counter()  # by StoreError.kind: batches judged without the store
        self._journal = journal
        self._clock = clock
        self._watch = watch
        self._lost_until = lost_until
        self._serial = 0  # of the batch being judged
        self._lines: bytes | None = None  # what the journal was given of what was judged last
        self.lines: bytes | None = None  # the decisions of the last batch as JSON, one a line, where at hand
        self._shown: Callable[[Touches], None] | None = None  # whom rows are shown to, in a replay
        self._unfollowed: deque[Touch] = deque(maxlen=TOUCHES_MAX)  # of the listed, while the store was away
        self._serve(serving, serving.policy.tables(store.tables))

    def move_on(self, serving: Serving) -> None:
        """Go by this from the next batch on, with all that is known so far."""
        tables = serving.policy.tables(self.store.tables)  # before anything changes: they may not fit
        self.store.reload(serving.policy.features)
        self._serve(serving, tables)

    def _serve(self, serving: Serving, tables: TableSet) -> None:
        self.policy, self._warming, self._partners = serving
        self._rooms = _Rooms()
        self._rows, self._tables = self.store.tables, tables

    def close(self) -> None:
        """Let go of the store, which is closed with it."""
        self._rooms = _Rooms()  # which hold on to the store's arrays
        self.store.close()

    def rehearse(self) -> None:
        """Go through the motions with no event at all, so that the kernels are compiled before one comes."""
        policy = self.policy
        with warming.store_elsewhere(self.store.waits):
            batch, _ = policy.schema.parse((), 0)
            room = _Room.make(policy, 0, False)
            found = policy.features.touches(batch, batch.time, policy.tables({}), room.planned)
            self._predict(policy.features.rows(found), room.verdict)
            self._weigh(found, room.verdict)
        self._judge(batch, 0, True, None, False, None)
        if self._journal is not None:
            Served(policy, found, (), (), 0).block()

    def replay(self, batch: Batch, now: Int64s, shown: Callable[[Touches], None]) -> list[Result]:
        """`Engine.replay`."""
        self._shown = shown
        try:
            return self.decide(batch, now, False)
        finally:
            self._shown = None

    def restore(self, batch: Batch, now: Int64s, decisions: Sequence[Decision]) -> int:
        """`Engine.restore`."""
        policy, store = self.policy, self.store
        fresh_ms = max(policy.definition.lateness_ms + policy.definition.skew_ms, FRESH_MS_MIN)
        keys = batch.claim.tobytes()
        first: dict[bytes, int] = {}
        for i in range(batch.n):
            key = keys[16 * i : 16 * i + 16]
            if key not in store.claims:
                first.setdefault(key, i)
        left: list[int] = []
        counted = 0
        for part, _ in chain(_parts(batch, list(first.values()), [], []), (([i], True) for i in left)):
            rows = None if part is None else np.array(part, np.int64)
            own, nows = (batch, now) if rows is None else (batch.take(rows), now[rows])
            decided = decisions if part is None else [decisions[i] for i in part]
            follows = own.follows is not None and UNFOLLOWED not in decided[0].flags  # which is alone
            followed = self._followed(own) if follows else None
            read_at = np.maximum(own.time, nows - policy.definition.lateness_ms)
            touches = policy.features.touches(own, read_at, self._known_tables())
            for trace in followed.chain if followed is not None else ():
                exclude(policy.features, touches, trace)
            held = policy.held_by(touches, decided)
            age_ms = max(self._clock() - int(nows.max()), 0)
            lives = Lives(max(policy.horizon_ms - age_ms, 1), max(fresh_ms - age_ms, 1))
            restored = store.restore(touches, decided, held, followed, nows, lives)
            counted += restored.counted
            left += [i if part is None else part[i] for i in restored.left_open]
            self._sweep(int(nows[-1]), own.n)
        return counted

    def decide(self, batch: Batch, now: int | Int64s, features: bool, in_room: bool = False) -> list[Result]:
        """Tell retries from new events, and judge the new ones in order.

        `in_room`: whoever asks is done with the batch before this thread, or fiber, asks for another.
        """
        room = None
        if in_room and batch.n:
            rooms = mine(self._rooms) if self.store.waits else self._rooms
            room = rooms.of(self.policy, batch.n)
        self.lines = self._lines = None
        self.store.stand_back(batch)
        if batch.n == 1:
            decided = self._decide_one(batch, now if isinstance(now, int) else int(now[0]), features, room)
            if decided is not None:
                return [decided]
        store = self.store
        claims = store.claims
        self._serial += 1
        serial = self._serial
        keys = batch.claim.tobytes()
        contents = batch.content.tobytes()
        arrived = [now] * batch.n if isinstance(now, int) else now.tolist()
        sure = self._journal is None or b"\1" not in batch.late.tobytes()  # late ones may be journaled
        if batch.n > 1 and batch.follows is None and sure:  # one alone that comes here has been met
            names = batch.claims()
            if len(set(names)) == batch.n and claims.keys().isdisjoint(names):
                return self._decide_new(batch, names, contents, arrived, now, features, room)
        results: list[Result | None] = [None] * batch.n
        entered: list[Claim] = []
        new: list[int] = []
        again: list[int] = []  # undecided, or decided but forgotten
        for i in range(batch.n):
            key = keys[16 * i : 16 * i + 16]
            content = contents[16 * i : 16 * i + 16]
            claim = claims.get(key)
            if claim is None:
                if self._journal is not None and batch.late[i]:
                    results[i] = self._journaled(batch.ids[i], content)
                    if results[i] is not None:
                        entered.append(Claim(key, content, arrived[i], -1, serial))
                        continue
                claim = store.claim(key, content, arrived[i], serial)
                new.append(i)
            elif claim.content != content:
                results[i] = _conflict()
            elif claim.decision is None and claim.serial != serial:
                results[i] = self._journaled(batch.ids[i], content) if self._journal is not None else None
                if results[i] is None:
                    claim.serial = serial
                    again.append(i)
            entered.append(claim)
        undecided: list[int] = []  # as the store says, when asked
        journaled: list[int] = []  # the engine that journaled them never told the store
        for part, counted in _parts(batch, new, again, undecided):
            rows = None if part is None else np.array(part, np.int64)
            own = batch if rows is None else batch.take(rows)
            nows = now if isinstance(now, int) or rows is None else now[rows]
            followed, away = None, None
            if own.follows is not None:
                try:
                    followed = self._followed(own)
                except StoreError as error:
                    away = error
            own_room = room if own.n == batch.n else None
            judged, first, met = self._judge(own, nows, counted, followed, features, own_room, away)
            places = range(batch.n) if part is None else part
            for trace, i, decision in zip(range(first, first + own.n), places, judged, strict=True):
                claim = entered[i]
                claim.decision = decision
                if counted:
                    claim.trace = trace
            if followed is not None:
                entered[places[0]].follows = followed.claim
            for at, answer in met.items():
                i = places[at]
                if answer == "undecided" and self._journal is not None:
                    known = self._journaled(batch.ids[i], entered[i].content)
                    if isinstance(known, Decision):
                        journaled.append(i)
                        answer = known
                    elif known is not None:
                        answer = "conflict"
                if answer == "undecided":
                    undecided.append(i)
                elif answer == "conflict":
                    del store.claims[keys[16 * i : 16 * i + 16]]
                    results[i] = _conflict()
                    for j in range(i + 1, batch.n):  # others of this event_id may be the event that is known
                        if entered[j] is entered[i]:
                            own = batch.take(np.array([j]))
                            results[j] = self.decide(own, arrived[j], features)[0]
                else:
                    entered[i].decision = answer
        answers = [
            result if result is not None else _decided(claim)
            for result, claim in zip(results, entered, strict=True)
        ]
        for i in journaled:  # last, as a store forgets the batch with each
            store.claims.pop(keys[16 * i : 16 * i + 16], None)
            self.restore(batch.take(np.array([i])), np.array([arrived[i]], np.int64), [_decided(entered[i])])
        if batch.n:
            self._sweep(now if isinstance(now, int) else int(now[-1]), batch.n)
        return answers

    def _decide_new(
        self, batch: Batch, names: list[bytes], contents: bytes, arrived: list[int], now: int | Int64s,
        features: bool, room: _Room | None,
    ) -> list[Result]:  # fmt: skip
        """`decide` where every event is new as far as is known here: in half the time."""
        store, entered = self.store, list[Claim]()
        if not store.waits:  # a shared store knows them itself
            serial, claim = self._serial, store.claim
            entered = [
                claim(name, contents[at : at + 16], when, serial)
                for name, at, when in zip(names, range(0, 16 * batch.n, 16), arrived, strict=True)
            ]
        judged, first, met = self._judge(batch, now, True, None, features, room)
        for trace, known, decision in zip(range(first, first + len(entered)), entered, judged, strict=False):
            known.decision = decision
            known.trace = trace
        results: list[Result] = list(judged)
        for i, answer in met.items():  # of which only a shared store can tell
            if answer == "conflict":
                results[i] = _conflict()
            elif answer != "undecided":
                results[i] = answer
        if batch.n:
            self._sweep(now if isinstance(now, int) else int(now[-1]), batch.n)
        for i in [i for i, answer in met.items() if answer == "undecided"]:
            store.claims.pop(names[i], None)
            results[i] = self.decide(batch.take(np.array([i])), arrived[i], features)[0]
        self.lines = None if features or met else self._lines
        return results

    def _decide_one(self, batch: Batch, now: int, features: bool, room: _Room | None) -> Decision | None:
        """`decide` of an event that comes alone, where it is new or a retry of a decided one; else None.

        It needs none of the lists that keep a batch in order.
        """
        store = self.store
        key = batch.claim.tobytes()
        content = batch.content.tobytes()
        claim = store.claims.get(key)
        if claim is not None:
            return claim.decision if claim.content == content else None
        if batch.follows is not None or (self._journal is not None and batch.late[0]):
            return None
        self._serial += 1
        claim = store.claim(key, content, now, self._serial)
        judged, claim.trace, met = self._judge(batch, now, True, None, features, room)
        decision = judged[0]
        if met:  # not new after all
            answer = met[0]
            if not isinstance(answer, Decision):
                del store.claims[key]
                return None
            decision = answer
        claim.decision = decision
        self._sweep(now, 1)
        self.lines = None if features or met else self._lines
        return decision

    def _sweep(self, now: int, events: int) -> None:
        settings = self.policy.definition
        self.store.sweep(now, events, self.policy.horizon_ms, settings.lateness_ms + settings.skew_ms)

    def _judge(
        self,
        batch: Batch,
        now: int | Int64s,
        counted: bool,
        followed: Followed | None,
        features: bool,
        room: _Room | None,
        away: StoreError | None = None,
    ) -> tuple[list[Decision], int, Met]:
        """Plan, wait, read, predict, fire, decide, settle: decisions, first trace, who was met.

        The store is not asked where it is known to be `away`: what it could not say of a followed event it
        will not have heard either.
        """
        policy, store = self.policy, self.store
        if room is None:
            room = _Room.make(policy, batch.n, False)
        read_at = batch.time
        any_late = b"\1" in batch.late.tobytes()  # of one event .any() takes 1 us longer
        if any_late:
            room = _Room.make(policy, batch.n, False)
            read_at = np.maximum(batch.time, now - policy.definition.lateness_ms)
        touches = policy.features.touches(batch, read_at, self._known_tables(), room.planned)
        for trace in followed.chain if followed is not None else ():
            exclude(policy.features, touches, trace)
        try:
            if away is not None:
                store.lists.look_up(touches)  # as far as we know them
                raise away
            met = store.observe(touches, counted, followed)
        except StoreError as error:
            met = self._known_alone(batch)
            alone = self._judge_alone(touches, room.verdict, now, followed, features, error, met)
            return alone, 0, met
        spread = None
        spreading = policy.spreading
        if spreading is not None and store.lists.met & spreading.mask:
            spread = self._follow(spreading, touches, met)
        if store.tables is not self._rows:  # another engine has changed some
            touches = policy.features.refill(touches, self._known_tables())
        if self._partners:
            self._look_up_shared(touches)
        found = policy.features.rows(touches)
        if self._shown is not None:
            self._shown(found)
        verdict = room.verdict
        challenged = self._predict(found, verdict)
        self._weigh(found, verdict)
        unkept = self._journal is not None and self._journal.is_away
        if unkept:
            policy.heed_contract(found, verdict)
        first = store.settle(touches, verdict, counted, followed)
        flags = self._flags(batch, now, any_late, counted, followed, unkept)
        decisions = self._answer(found, verdict, challenged, flags, features)
        if spread is not None:
            self._explain(decisions, spread)
        overtaken = store.conclude(touches, decisions, policy.horizon_ms)
        if overtaken:
            met = {**met, **overtaken}
        if self._journal is not None and decisions:
            sealer = self._journal.sealer
            kept = _to_keep(decisions, met, now, policy.definition.lateness_ms)
            served = Served(policy, found, *kept, sealer)
            self._journal.append_later(served)
            self._lines = served.lines
        if counted and followed is None and self._shown is None:
            self._watch.take(found, verdict, now, met)
        if spread is not None and spread.edits and self._journal is not None:
            with suppress(RiskEngineError):  # its status and the log tell of a journal that takes nothing
                self._journal.append(journaled(spread.edits, self._clock()))
        if self._unfollowed and spreading is not None:
            self._catch_up(spreading)
        return decisions, first, met

    def _followed(self, batch: Batch) -> Followed | None:
        """What is known of the event that a lone one follows."""
        return self.store.followed(batch.follows_claim.tobytes(), batch.claim.tobytes())

    def _look_up_shared(self, touches: Touches) -> None:
        """Find the events' values on lists that are shared with partners, by the partners' hashes."""
        policy, batch, cells = self.policy, touches.batch, touches.cells
        for name, partner in self._partners.items():
            for entity in policy.definition.lists[name].of:
                entries = self.store.list_entries(name, entity)
                if not entries:
                    continue
                (field,) = policy.definition.entities[entity].fields
                column, at = policy.layout.number(f"listed:{name}:{entity}"), policy.schema.string_at[field]
                for i in range(batch.n):
                    size, off = int(batch.str_len[i, at]), int(batch.str_off[i, at])
                    if size < 0:
                        continue
                    value = bytes(batch.text[off : off + size]).decode()
                    entry = entries.get(signed(sharing.member(partner, entity, value)))
                    if entry is not None:
                        until = entry["expires"]
                        cells[column, i] = float(until is None or batch.time[i] < until)

    def _predict(self, found: Touches, verdict: Verdict) -> list[dict[str, float]] | None:
        """The champion's p, also where rules find it; return what the challengers say, if there are any."""
        policy, cells, types = self.policy, found.cells, found.batch.type_index
        champion = policy.champion
        if champion is not None:
            champion.score(cells, types, verdict.p)
            cells[policy.model_column] = verdict.p
            if champion.strange is not None:
                verdict.p[np.isnan(verdict.p)] = 0.0
        if not policy.challengers:
            return None
        said: list[dict[str, float]] = [{} for _ in range(found.batch.n)]
        p = np.empty(found.batch.n)
        for challenger in policy.challengers:
            challenger.score(cells, types, p)
            for i, value in enumerate(p.tolist()):
                if value == value:
                    said[i][challenger.name] = value
        return said

    def _judge_alone(
        self,
        touches: Touches,
        verdict: Verdict,
        now: int | Int64s,
        followed: Followed | None,
        features: bool,
        error: StoreError,
        met: Met,
    ) -> list[Decision]:
        """Decide without the store, by what is known here and what each event's type says of that (`fail`).

        What it was to count is counted when it is back; of what was `met` that is seen to already.
        """
        self.errors[error.kind] += 1
        policy, batch = self.policy, touches.batch
        if self._partners:
            self._look_up_shared(touches)
        found = policy.features.rows(touches)
        challenged = self._predict(found, verdict)
        self._weigh(found, verdict)
        held = policy.refuse_alone(found, verdict)
        any_late = bool(batch.late.any())
        what = "store" if error.kind in ("away", "slow", "behind", "busy", "loading") else error.kind
        unkept = self._journal is not None and self._journal.is_away
        flags = self._flags(batch, now, any_late, True, followed, unkept)
        flags = [(f"{DEGRADED}{what}", *flag) for flag in flags]
        decisions = self._answer(found, verdict, challenged, flags, features)
        spreading = policy.spreading
        if spreading is not None and self.store.lists.met & spreading.mask:
            self._explain(decisions, Found([], spreading.named(touches, self.store.lists)))
            self._unfollowed += spreading.touches(touches)
        self.store.postpone(touches, decisions, held, followed, policy.horizon_ms, met)
        if self._journal is not None and decisions:
            sealer = self._journal.sealer
            self._journal.append_later(Served(policy, found, decisions, met, now, sealer))
        if followed is None:
            self._watch.take(found, verdict, now, met)
        return decisions

    def _known_alone(self, batch: Batch) -> Met:
        """What is known of events that the store cannot tell of: by other doors, or by the journal."""
        met = self.store.postponed(batch)
        if self._journal is None or self._journal.is_away:
            return met
        try:
            entries = self._journal.decisions(batch.ids)
        except RiskEngineError:
            if not self._journal.is_away:
                raise
            return met
        journaled: dict[int, Decision | Literal["conflict"]] = {}
        for i, event_id in enumerate(batch.ids):
            entry = entries.get(event_id)
            if entry is not None:
                is_it = entry.content == batch.content[i].tobytes()
                journaled[i] = _DECISION.decode(entry.decision) if is_it else "conflict"
        return {**journaled, **met}

    def _follow(self, spreading: Spreading, touches: Touches, met: Met) -> Found:
        """Let events that touch what is listed pass it on, in order: the next of the batch meet it."""
        spread = spreading.follow(touches, self.store.lists, met)
        if spread.edits:
            try:
                self.store.spread(spread.edits)
            except StoreError:
                self._unfollowed += spreading.touches(touches)
                return spread._replace(edits=[])
        return spread

    def _catch_up(self, spreading: Spreading) -> None:
        """Let those events pass it on that came while the store was away."""
        store = self.store
        with suppress(RiskEngineError):  # it is away again, or the journal
            edits = spreading.catch_up(self._unfollowed, store.lists, store.members)
            store.spread(edits)
            self._unfollowed.clear()
            if edits and self._journal is not None:
                self._journal.append(journaled(edits, self._clock()))

    def _explain(self, decisions: list[Decision], spread: Found) -> None:
        """Name the paths by which events met what is listed, where a rule asked for it."""
        spreading = self.policy.spreading
        assert spreading is not None
        for i, named in spread.named.items():
            if named and decisions[i].reasons:
                reasons = spreading.explained(decisions[i].reasons, named)
                decisions[i] = msgspec.structs.replace(decisions[i], reasons=reasons)

    def _known_tables(self) -> TableSet:
        """The policy's tables with the live rows known by now: made once for any number of edits."""
        if self.store.tables is not self._rows:
            self._rows = self.store.tables
            self._tables = self.policy.tables(self._rows)
        return self._tables

    def _weigh(self, found: Touches, verdict: Verdict) -> None:
        """What fires, risk and severity before limits, who may say the kind of a challenge, and ids."""
        lone = found.lone
        if lone is None or self.policy.rules.rolls_out:
            judging = self._judging(found, verdict, partial)
        else:
            if not lone.judging:
                lone.judging = self._judging(found, verdict, bind)
            judging = lone.judging
        for call in judging:
            call()

    def _judging(self, found: Touches, verdict: Verdict, hold: Holder) -> list[Call]:
        """The calls that judge a batch by rules and thresholds; the columns of limits are filled later."""
        policy, batch, strings = self.policy, found.batch, found.strings
        rules = policy.rules
        who = batch.event_hash
        if policy.user_entity >= 0 and rules.rolls_out:
            users = batch.keys[:, policy.user_entity]
            who = np.where(users != 0, users, who)
        return [
            *rules.firing(
                found.cells,
                strings.off,
                strings.len,
                strings.hash,
                strings.text,
                found.tables.pool,
                policy.features.timezone,
                batch.type_index,
                batch.time,
                who,
                verdict.hits,
                hold,
            ),
            hold(
                decide,
                verdict.hits,
                rules.live,
                rules.severity,
                rules.risk,
                rules.firm,
                rules.allows,
                policy.thresholds,
                batch.type_index,
                verdict.p,
                found.cells,
                policy.blocked_columns,
                verdict.risk,
                verdict.base,
                verdict.voices,
            ),
            hold(name_decisions, batch.claim, batch.content, policy.salt, verdict.names),
        ]

    def _flags(
        self,
        batch: Batch,
        now: int | Int64s,
        any_late: bool,
        counted: bool,
        followed: Followed | None,
        unkept: bool,
    ) -> list[tuple[str, ...]]:
        common: tuple[str, ...] = ()
        losses = self.store.losses
        if self._warming or losses:
            latest = now if isinstance(now, int) else int(now[0])
            common = tuple(
                sorted(f"warming:{name}" for name, until in self._warming.items() if latest < until)
            )
            common = (*self._lost(losses, latest), *common)
        if not counted:
            common = ("redecided", *common)
        if unkept:
            common = (UNKEPT, *common)
        if batch.follows is not None and followed is None:
            common = (UNFOLLOWED, *common)
        if not any_late and not (self._lost_until and counted):
            return [common] * batch.n
        lost_until = self._lost_until if counted else 0
        if (
            lost_until
            and self._clock()
            > lost_until + self.policy.definition.lateness_ms + self.policy.definition.skew_ms
        ):
            self._lost_until = 0  # what comes from then on is late, and looked up in the journal
        flags = []
        for at, stamped, late in zip(
            batch.time.tolist(), batch.stamped.tolist(), batch.late.tolist(), strict=True
        ):
            flag = common if stamped or at >= lost_until else ("redecided", *common)
            flags.append(("late", *flag) if late else flag)
        return flags

    def _lost(self, losses: Sequence[Loss], latest: int) -> tuple[str, ...]:
        """What says how many events the store lost that windows would have; `+` where there may be more."""
        policy = self.policy
        settings = policy.definition
        reach_ms = policy.window_ms_max + settings.lateness_ms + settings.skew_ms
        missed = [loss for loss in losses if latest < loss.time + reach_ms]
        if not missed:
            return ()
        more = "+" if any(loss.more for loss in missed) else ""
        return (f"lost:{sum(loss.events for loss in missed)}{more}",)

    def _answer(
        self,
        found: Touches,
        verdict: Verdict,
        challenged: list[dict[str, float]] | None,
        flags: list[tuple[str, ...]],
        features: bool,
    ) -> list[Decision]:
        """Decisions of a batch, from its arrays."""
        policy, batch = self.policy, found.batch
        if batch.n == 1 and challenged is None and not features:
            return [self._answer_one(found, verdict, flags[0])]
        hexes = verdict.names.tobytes().hex()
        width = verdict.hits.shape[1]
        masks = verdict.hits.tobytes()
        outcomes = [policy.outcome(masks[width * i : width * i + width]) for i in range(batch.n)]
        fingerprint = policy.fingerprint
        severities = verdict.severity.tolist()
        kinds: list[str | None] = [None] * batch.n
        for i, level in enumerate(severities):
            if level == CHALLENGE:
                kinds[i] = policy.challenge(outcomes[i], verdict.voices[i], batch.type_index[i])
        reasons = [outcome.reasons for outcome in outcomes]
        models: list[ModelScore | None] = [None] * batch.n
        champion = policy.champion
        if champion is not None:
            scores = found.cells[policy.model_column].tolist()
            models = [ModelScore(champion.name, p) if p == p else None for p in scores]
            blamed = [
                i
                for i, level, p in zip(range(batch.n), severities, scores, strict=True)
                if level != ALLOW and p >= REASON_RISK_MIN
            ]
            if blamed:
                for i, more in zip(blamed, champion.reasons(found.cells, blamed, verdict.p), strict=True):
                    reasons[i] += more
        others: list[Any] = [msgspec.UNSET] * batch.n if challenged is None else challenged
        rows: list[Any] = [msgspec.UNSET] * batch.n
        if features:
            rows = [policy.features.row(found, i) for i in range(batch.n)]
        return [
            Decision(
                event_id,
                hexes[at : at + 32],
                ACTIONS[level],
                risk,
                kind,
                why,
                outcome.fired,
                outcome.shadow,
                model,
                fingerprint,
                flag,
                when,
                other,
                row,
            )
            for event_id, at, level, risk, kind, outcome, why, model, flag, when, other, row in zip(
                batch.ids,
                range(0, 32 * batch.n, 32),
                severities,
                verdict.risk.tolist(),
                kinds,
                outcomes,
                reasons,
                models,
                flags,
                batch.time.tolist(),
                others,
                rows,
                strict=True,
            )
        ]

    def _answer_one(self, found: Touches, verdict: Verdict, flags: tuple[str, ...]) -> Decision:
        """`_answer` of a lone event that is no challenger's: without its lists, in half the time."""
        policy, batch = self.policy, found.batch
        outcome = policy.outcome(verdict.hits.tobytes())
        level = verdict.severity.item()
        kind = None
        if level == CHALLENGE:
            kind = policy.challenge(outcome, verdict.voices[0], batch.type_index[0])
        reasons, model, champion = outcome.reasons, None, policy.champion
        if champion is not None:
            p = found.cells.item(policy.model_column, 0)
            if p == p:
                model = ModelScore(champion.name, p)
                if level != ALLOW and p >= REASON_RISK_MIN:
                    reasons += champion.reasons(found.cells, (0,), verdict.p)[0]
        return Decision(
            batch.ids[0],
            verdict.names.tobytes().hex(),
            ACTIONS[level],
            verdict.risk.item(),
            kind,
            reasons,
            outcome.fired,
            outcome.shadow,
            model,
            policy.fingerprint,
            flags,
            batch.time.item(),
        )

    def _journaled(self, event_id: str, content: bytes) -> Result | None:
        """The answer to a retry that only the journal remembers."""
        assert self._journal is not None
        try:
            entry = self._journal.decision(event_id)
        except RiskEngineError:
            if not self._journal.is_away:
                raise
            return None  # nobody can tell: it is decided, and flagged
        if entry is None:
            return None
        return _DECISION.decode(entry.decision) if entry.content == content else _conflict()


class _Room(NamedTuple):
    """Arrays that a batch is planned and judged in."""

    planned: planning.Room
    verdict: Verdict

    @classmethod
    def make(cls, policy: Policy, n: int, lasting: bool, empty: Empty = np.empty) -> _Room:
        width = len(policy.rules.names) + len(policy.features.limit_names)
        return cls(policy.features.room(n, lasting, empty), Verdict.room(n, width, empty))


class _Rooms(Rooms[Policy, _Room]):
    """To judge events in: of a lone one, making it took 16 of 66 us."""

    def make(self, policy: Policy, n: int, empty: Empty) -> _Room:
        return _Room.make(policy, n, n == 1, empty)


def _parts(
    batch: Batch, new: list[int], again: list[int], undecided: list[int]
) -> Iterator[tuple[list[int] | None, bool]]:
    """Cut a batch where order matters: follow-ups, and events seen before, are judged alone.

    Each part is its rows (None: the whole batch) and whether it counts. What is `undecided` by the time that
    the others are judged comes last.
    """
    if batch.follows is None and not again:
        if new:
            yield None if len(new) == batch.n else new, True
        yield from (([i], False) for i in undecided)
        return
    plain: list[int] = []
    for i in sorted(new + again):
        if i not in again and (batch.follows is None or batch.follows[i] is None):
            plain.append(i)
            continue
        if plain:
            yield plain, True
            plain = []
        yield [i], i not in again
    if plain:
        yield plain, True
    yield from (([i], False) for i in undecided)


def _to_keep(
    decisions: list[Decision], met: Met, now: int | Int64s, lateness_ms: int
) -> tuple[list[Decision], Collection[int], int | Int64s]:
    """What the journal is told of a batch, which of its rows are left out, and when each was judged.

    Who decided an event that was met may have died before its journal had it. So ours is told of it too: what
    a journal knows it does not write again. It had not come late then, however late it comes again.
    """
    told = {i: answer for i, answer in met.items() if isinstance(answer, Decision)}
    if not told:
        return decisions, met, now
    nows = np.full(len(decisions), now, np.int64)
    for i, decision in told.items():
        if "late" not in decision.flags:
            nows[i] = min(int(nows[i]), decision.time + lateness_ms)
    return [told.get(i, decision) for i, decision in enumerate(decisions)], met.keys() - told.keys(), nows


def _decided(claim: Claim) -> Decision:
    assert claim.decision is not None, "every event of a batch is decided before its retries are answered"
    return claim.decision


def _conflict() -> EventError:
    return EventError(
        [
            Problem(
                "/event_id",
                "conflict",
                "another event has this event_id: a retry must be the same event",
                "the same content",
                "other content",
            )
        ]
    )
