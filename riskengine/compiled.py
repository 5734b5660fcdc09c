"""A checked definition compiled to arrays: everything one batch needs, in one frozen value."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from riskengine import hashing
from riskengine.alerts import AlertSet
from riskengine.cells import DAY_MS, PERIOD_MS, SIGHT_KEEP_MS
from riskengine.decision import ALLOW, BY_RISK, DENY, LOWERED, REVIEW, Decision, Message, Reason, Verdict
from riskengine.definition import CHALLENGES, Challenge, Definition, Limit, Rule, Table, Window
from riskengine.event import Schema
from riskengine.features import FeatureSet, Touches
from riskengine.hashing import signed
from riskengine.layout import L_ENTITY, L_LIVE, L_SEVERITY, L_WHERE
from riskengine.masking import Masking
from riskengine.models import Model, Scorer, bind_all
from riskengine.policy import collector_paused, definition_fingerprint, feature_fingerprint
from riskengine.program import Layout
from riskengine.rules import RuleSet
from riskengine.spreading import Spreading
from riskengine.tables import Rows, TableSet

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]
Words = NDArray[np.uint64]
OUTCOMES_MAX: Final = 65_536
FAIL: Final = {"open": ALLOW, "review": REVIEW, "closed": DENY}  # the least that is done without the store
SETTLE_MS_MIN: Final = 7 * DAY_MS  # a review may take so long, even where nothing else keeps what it moved


def at_a_stretch() -> None:
    """The pause of those who want none."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What one combination of fired rules and refused limits says; shared by all decisions that have it."""

    fired: tuple[str, ...]
    shadow: tuple[str, ...]
    reasons: tuple[Reason, ...]
    challenge: int  # the most severe asked for, index into CHALLENGES, or -1
    challenge_firm: int  # the same where only firm rules and limits speak


@dataclass(frozen=True, eq=False, slots=True)
class Policy:
    """A policy ready to decide. `Policy.compile` makes one; nothing in it changes but a cache."""

    definition: Definition
    schema: Schema
    layout: Layout
    features: FeatureSet
    rules: RuleSet
    thresholds: Float64s  # (event types, 3): review, challenge, deny; NaN is never
    challenge_with: tuple[int, ...]  # by event type
    fingerprint: str
    feature_fingerprints: Mapping[str, str]
    blocked_columns: Int64s  # columns of membership in the list `blocked`
    user_entity: int  # whose key rollout goes by, or -1
    salt: Words  # (2): what decision ids mix in
    resident: Mapping[str, Rows]  # rows of the tables that have a file
    horizon_ms: int  # how long a label, release or follow-up can still matter
    window_ms_max: int  # how long an event may stand in a window, and so be missing there
    masking: Masking
    entity_marks: tuple[int, ...]  # 32 bits of what each entity means, whatever else the policy says
    row_columns: Int64s  # of cells: the numbers of a row in policy order, two of a location
    row_texts: tuple[tuple[int, int], ...]  # where in a row strings belong, and their string columns
    row_places: Int64s  # a row as the journal's kernel reads it (blocks.Arrays.row)
    layout_text: NDArray[np.uint8]  # MessagePack of the plan's fingerprint
    mark_words: Words  # entity_marks
    model_column: int  # of cells: model.p
    champion: Scorer | None
    challengers: tuple[Scorer, ...]
    alerts: AlertSet | None
    spreading: Spreading | None
    _outcomes: dict[bytes, Outcome] = field(default_factory=dict, repr=False)

    @classmethod
    @collector_paused()
    def compile(
        cls,
        definition: Definition,
        key: bytes,
        models: Mapping[str, Model] | None = None,
        pause: Callable[[], None] = at_a_stretch,
    ) -> Policy:
        """Compile a definition under a hash key, with the models it names (`models.load_models`).

        `pause` is called between its parts, of some milliseconds each. Raises RiskEngineError past a bound of
        the plan.
        """
        models = models or {}
        schema = Schema.compile(definition, key)
        layout = Layout()
        for name in schema.numbers:
            layout.add_number(name)
        for name in schema.strings:
            layout.add_string(name)
        layout.add_number("model.p")

        def hasher(data: bytes) -> int:
            return hashing.string_hash(data, schema.sip)

        features = FeatureSet.compile(definition, schema, layout, hasher)
        pause()
        rules = RuleSet.compile(tuple(definition.rules.values()), schema.types, layout, hasher)
        pause()
        thresholds = np.full((len(schema.types), 3), np.nan)
        challenge_with = [0] * len(schema.types)
        for name, decide in definition.decide.items():
            at = schema.types.index(name)
            challenge_with[at] = CHALLENGES.index(decide.challenge_with)
            for level, value in enumerate((decide.review, decide.challenge, decide.deny)):
                if value is not None:
                    thresholds[at, level] = value
        blocked = definition.lists.get("blocked")
        columns = [layout.number(f"listed:blocked:{entity}") for entity in blocked.of] if blocked else []
        fingerprint = definition_fingerprint(
            definition, {name: model.fingerprint for name, model in models.items()}
        )
        alerts = AlertSet.compile(
            definition, schema, layout, hasher, rules, features.limit_names, fingerprint, features.timezone
        )
        pause()
        fingerprints = {f.name: feature_fingerprint(f, definition) for f in definition.features.values()}
        pause()
        return cls(
            definition,
            schema,
            layout,
            features,
            rules,
            thresholds,
            tuple(challenge_with),
            fingerprint,
            fingerprints,
            np.array(columns, np.int64),
            schema.entities.index("user") if "user" in schema.entities else -1,
            np.frombuffer(salt_of(fingerprint), "<u8").astype(np.uint64),
            {n: _rows(t, schema) for n, t in definition.tables.items() if t.rows is not None},
            _horizon_ms(definition),
            _window_ms_max(definition),
            Masking.compile(definition, schema),
            (marks := tuple(_mark(definition, name) for name in schema.entities)),
            *(row := _row(features)),
            _row_places(*row),
            np.frombuffer(bytearray(msgspec.msgpack.encode(features.fingerprint)), np.uint8),
            np.array(marks, np.uint64),
            layout.number("model.p"),
            *bind_all(definition, models, features, schema.types),
            alerts,
            Spreading.of(definition, features),
        )

    def tables(self, live: Mapping[str, Rows]) -> TableSet:
        """Every table with its rows: those of files, and the live ones given."""
        return TableSet.compile(self.definition.tables, {**live, **self.resident}, self.schema, self.layout)

    def outcome(self, mask: bytes) -> Outcome:
        """What a row of fired rules and refused limits (a byte each, in policy order) comes to."""
        found = self._outcomes.get(mask)
        if found is None:
            if len(self._outcomes) >= OUTCOMES_MAX:
                self._outcomes.clear()
            found = self._outcomes[mask] = self._explain(mask)
        return found

    def challenge(self, outcome: Outcome, voices: int, type_index: int) -> Challenge:
        """The kind of a challenge: the most severe that is asked for by those who may (see `decide`)."""
        if voices == LOWERED:
            return CHALLENGES[outcome.challenge_firm]
        return CHALLENGES[max(outcome.challenge, self.challenge_with[type_index] if voices == BY_RISK else 0)]

    def refuse_alone(self, found: Touches, verdict: Verdict) -> NDArray[np.uint8]:
        """Decide a batch without the store: limits refuse, and each event type's `fail` says the least.

        Where it is open limits grant, and what they grant is returned, uint8 (n, limits): it is to be held
        whether there is room or not.
        """
        batch, plan = found.batch, self.features.plan
        least = self._least(batch.type_index)
        open_ = (least == ALLOW) & ~batch.late
        severity = np.maximum(verdict.base, least)
        limits = len(self.features.limit_names)
        held = np.zeros((batch.n, limits), np.uint8)
        for limit, row in enumerate(plan.limits):
            asks = self._asks(found, limit)
            refused = asks & ~open_
            verdict.hits[:, verdict.hits.shape[1] - limits + limit] = refused
            if row[L_LIVE]:
                severity = np.where(refused, np.maximum(severity, row[L_SEVERITY]), severity)
            held[:, limit] = asks & open_
        verdict.severity[:] = severity
        held[severity == DENY] = 0
        return held

    def held_by(self, found: Touches, decisions: Sequence[Decision]) -> NDArray[np.uint8]:
        """What limits the events of a batch hold that were decided before, uint8 (n, limits).

        It is what they ask for, less what their decisions say was refused; denied events hold nothing.
        """
        held = np.zeros((found.batch.n, len(self.features.limit_names)), np.uint8)
        stands = np.array([decision.action != "deny" for decision in decisions], bool) & ~found.batch.late
        for limit, name in enumerate(self.features.limit_names):
            refused = [name in decision.fired or name in decision.shadow for decision in decisions]
            held[:, limit] = self._asks(found, limit) & stands & ~np.array(refused, bool)
        return held

    def _asks(self, found: Touches, limit: int) -> NDArray[np.bool_]:
        """Which events of a batch want something of a limit."""
        plan = self.features.plan
        row = plan.limits[limit]
        asks: NDArray[np.bool_] = found.keys[:, row[L_ENTITY]] != 0
        asks &= plan.limit_types[limit][found.batch.type_index] != 0
        if row[L_WHERE] >= 0:
            asks &= found.cells[row[L_WHERE]] == 1.0
        return asks

    def heed_contract(self, found: Touches, verdict: Verdict) -> None:
        """Raise each event's severity to the least that its type's `fail` says, before limits are settled."""
        np.maximum(verdict.base, self._least(found.batch.type_index), out=verdict.base)

    def _least(self, type_index: NDArray[np.int32]) -> Int64s:
        fails = [FAIL[self.definition.events[name].fail] for name in self.schema.types]
        return np.array(fails, np.int64)[type_index]

    def _explain(self, mask: bytes) -> Outcome:
        fired, shadow, reasons, challenge, challenge_firm = [], [], [], -1, -1
        limits = [self.definition.limits[name] for name in self.features.limit_names]
        items: tuple[Rule | Limit, ...] = (*self.rules.rules, *limits)
        for item, hit in zip(items, mask, strict=True):
            if not hit:
                continue
            if item.mode == "shadow":
                shadow.append(item.name)
                continue
            fired.append(item.name)
            message = Message(item.message.zh, item.message.en) if item.message is not None else None
            reasons.append(Reason(item.name, message, item.risk if isinstance(item, Rule) else 0.0))
            if item.then == "challenge":
                kind = CHALLENGES.index(item.challenge or CHALLENGES[0])
                challenge = max(challenge, kind)
                if isinstance(item, Limit) or item.firm:
                    challenge_firm = max(challenge_firm, kind)
        return Outcome(tuple(fired), tuple(shadow), tuple(reasons), challenge, challenge_firm)


def salt_of(fingerprint: str) -> bytes:
    """What the ids of a policy's decisions are mixed with (16 bytes)."""
    digest = hashlib.blake2b(digest_size=16, person=b"decision")
    digest.update(fingerprint.encode())
    return digest.digest()


def _mark(definition: Definition, name: str) -> int:
    entity = definition.entities[name]
    known = [definition.fields[field] for field in entity.fields]
    fields = [(field.name, field.type) for field in known]
    said = repr((definition.tenant, definition.country, name, fields, entity.derive))
    return int.from_bytes(hashlib.blake2b(said.encode(), digest_size=4).digest(), "little")


def _rows(table: Table, schema: Schema) -> Rows:
    assert table.rows is not None
    return {signed(schema.entity_key(table.key, value)): row for value, row in table.rows.items()}


def _row(features: FeatureSet) -> tuple[Int64s, tuple[tuple[int, int], ...]]:
    """Where the journal finds a row: columns of numbers, and places and columns of strings."""
    columns: list[int] = []
    texts: list[tuple[int, int]] = []
    for name in features.names:
        column = features.columns[name]
        if column < 0:
            texts.append((len(columns) + len(texts), features.layout.string(name)))
        else:
            columns += [column, column + 1] if features.types[name] == "location" else [column]
    return np.array(columns, np.int64), tuple(texts)


def _row_places(columns: Int64s, texts: tuple[tuple[int, int], ...]) -> Int64s:
    places = list(range(len(columns)))
    for place, column in texts:
        places.insert(place, -1 - column)
    return np.array(places, np.int64)


def _horizon_ms(definition: Definition) -> int:
    """How long after an event its trace may still be asked for.

    A follow-up must not move again what its event moved, nor a label move it twice, while any window sums
    it; a release and a follow-up need what is held while any limit counts it. Last and first sightings
    (kept for 400 days) are left out: a follow-up that comes when the trace is gone is one sighting more of
    what was seen before, and no count is wrong for it. A label of which the newest event is asked for
    (`since_last: fraud`) does hold traces so long. However long, the store keeps no more than TRACES_MAX.
    """
    reaches_ms = [SETTLE_MS_MIN, _window_ms_max(definition)]
    if any(f.window is None and f.label is not None for f in definition.features.values()):
        reaches_ms.append(SIGHT_KEEP_MS)
    return max(reaches_ms) + definition.lateness_ms + definition.skew_ms


def _window_ms_max(definition: Definition) -> int:
    windows = [limit.window for limit in definition.limits.values()]
    windows += [one.window for one in definition.features.values() if one.window is not None]
    return max(map(_reach_ms, windows), default=0)


def _reach_ms(window: Window) -> int:
    """How long an event may stand in a window: sliding limits count every hold in a bucket they touch."""
    return (PERIOD_MS.get(window.kind) or window.width_ms + window.bucket_ms) + window.delay_ms
