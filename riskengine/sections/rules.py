"""Limits, rules and thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, get_args

from riskengine.definition import (
    CHALLENGES,
    Decide,
    Effect,
    Limit,
    Message,
    Mode,
    Rule,
)
from riskengine.expression import rfc3339_ms
from riskengine.scalars import (
    check_name,
    read_bool,
    read_choice,
    read_share,
    share_of,
    tell_missing,
)
from riskengine.sections.features import Features, listing
from riskengine.source import Item, MappingNode, Node, ScalarNode, Source, describe

RULE_KEYS: Final = frozenset(
    {
        "on", "when", "then", "risk", "challenge", "message", "mode", "rollout", "firm", "owner", "tags",
        "expires", "wrong_when",
    }
)  # fmt: skip
LIMIT_KEYS: Final = frozenset(
    {
        "count", "sum", "on", "by", "over", "per", "max", "where", "then", "challenge", "message", "mode",
        "owner", "tags", "wrong_when",
    }
)  # fmt: skip
DECIDE_KEYS: Final = ("review", "challenge", "deny", "challenge_with")
EFFECTS: Final[tuple[Effect, ...]] = get_args(Effect)
REFUSALS: Final = ("review", "challenge", "deny")
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
MESSAGE_CHARS_MAX: Final = 500


class Rules(Features):
    """Reads limits, rules and what is decided for a risk."""

    def _limits(self) -> dict[str, Limit]:
        made = {}
        for name, (source, key, node) in self.sections["limits"].items():
            check_name(source, key, name, "a limit")
            limit = self._limit(name, source, key, node)
            if limit is not None:
                made[name] = limit
        return made

    def _limit(self, name: str, source: Source, key: ScalarNode, node: Node) -> Limit | None:
        before = len(source.findings)
        what = f"the limit {name}"
        items = source.items(node, "a limit", LIMIT_KEYS)
        if ("count" in items) == ("sum" in items):
            if "count" in items:
                source.error(
                    items["sum"][0], "two-aggregates", f"{what} counts and sums", mend="make two of it"
                )
            elif len(source.findings) == before:
                tell_missing(source, key, what, "count", expected="`count: EVENT` or `sum: FIELD`")
            return None
        field = None
        on = items.get("on")
        if "count" in items:
            types = self._types(source, items["count"][1], "`count`", labels=False)[1]
            if on is not None:
                source.error(on[0], "no-meaning", "`count` names its event types itself", mend="remove `on`")
        else:
            field = self._subject_field(source, "sum", items["sum"][1])
            carriers = self.types_of.get(field or "", ())
            types = self._types(source, on[1], "`on`", labels=False)[1] if on is not None else carriers
            if field is not None and types and not set(types) & set(carriers):
                node = on[1] if on is not None else items["sum"][1]
                source.error(node, "not-carried", f"no event of {listing(types)} carries {field}")
        for required in ("by", "max"):
            if required not in items:
                tell_missing(source, key, what, required)
        by = None
        if "by" in items:
            by = self._reference(source, items["by"][1], "entities", self.entities, "entity")
        window = self._window(source, key, what, items, delays=False)
        most = where = None
        if "max" in items:
            most = self._expression(source, items["max"][1], "`max`", self.max_scope, ("number",))
            term = most.term if most is not None else None
            if term is not None and isinstance(term.value, float) and term.value < 0:
                source.error(
                    items["max"][1], "wrong-value", f"{what} can never be granted", expected="0 or more"
                )
        if "where" in items:
            where = self._expression(source, items["where"][1], "`where`", self.where_scope, ("bool",))
        then = read_choice(source, items.get("then"), "then", REFUSALS, "deny")
        challenge = read_choice(source, items.get("challenge"), "challenge", CHALLENGES, None)
        message = self._message(source, items.get("message"))
        mode = read_choice(source, items.get("mode"), "mode", MODES, "live")
        owner, tags = self._owner(source, items)
        if len(source.findings) > before or by not in self.entities or window is None or most is None:
            return None
        if "where" in items and where is None:
            return None
        return Limit(
            name, types, by, window, most, field, where, then, challenge, message, mode, owner, tags,
            source.place(key), self._wrong_when(source, items),
        )  # fmt: skip

    def _rules(self) -> dict[str, Rule]:
        made = {}
        limits = self.sections["limits"]
        for name, (source, key, node) in self.sections["rules"].items():
            check_name(source, key, name, "a rule")
            if name in limits:
                first = limits[name][0].place(limits[name][1])
                source.error(
                    key,
                    "duplicate-name",
                    f"a limit is named {name} too: a decision could not say which of them fired",
                    found=f"the limit at {first}",
                    mend="rename one of them",
                )
            rule = self._rule(name, source, key, node)
            if rule is not None:
                made[name] = rule
        return made

    def _rule(self, name: str, source: Source, key: ScalarNode, node: Node) -> Rule | None:
        before = len(source.findings)
        items = source.items(node, "a rule", RULE_KEYS)
        when = None
        if "when" in items:
            when = self._expression(source, items["when"][1], "`when`", self.when_scope, ("bool",))
        elif len(source.findings) == before:
            tell_missing(source, key, f"the rule {name}", "when")
        on = items.get("on")
        types = (
            tuple(self.sections["events"])
            if on is None
            else self._types(source, on[1], "`on`", labels=False)[1]
        )
        then = read_choice(source, items.get("then"), "then", EFFECTS, "flag")
        challenge = read_choice(source, items.get("challenge"), "challenge", CHALLENGES, None)
        risk = read_share(source, items["risk"][1], "`risk`") if "risk" in items else 0.0
        message = self._message(source, items.get("message"))
        mode = read_choice(source, items.get("mode"), "mode", MODES, "shadow")
        rollout = self._rollout(source, items["rollout"][1]) if "rollout" in items else 1.0
        firm = read_bool(source, items.get("firm"), "firm")
        if firm and then in ("allow", "flag"):
            source.error(
                items["firm"][0],
                "no-meaning",
                f"`firm` keeps `then: allow` from lowering an action, and `then: {then}` raises none",
                mend="remove `firm`",
            )
        expires_ms = self._expires(source, items["expires"][1]) if "expires" in items else None
        if then == "allow" and "expires" not in items:
            tell_missing(
                source, items["then"][1], f"the rule {name}, which allows,", "expires",
                expected="`expires: 2027-01-31T00:00:00+08:00`: an exception ends some day",
            )  # fmt: skip
        owner, tags = self._owner(source, items)
        if len(source.findings) > before or when is None:
            return None
        return Rule(
            name, types, when, then, risk or 0.0, challenge, message, mode,
            1.0 if rollout is None else rollout, firm, expires_ms, owner, tags, source.place(key),
            self._wrong_when(source, items),
        )  # fmt: skip

    def _message(self, source: Source, item: Item | None) -> Message | None:
        if item is None:
            return None
        node = item[1]
        if type(node) is ScalarNode:
            text = self._message_text(source, node)
            return None if text is None else Message(en=text)
        items = source.items(node, "a message", ("zh", "en"))
        if type(node) is MappingNode and not node.value:
            source.error(node, "missing-key", "the message says nothing", expected="`zh`, `en` or both")
        texts = {name: self._message_text(source, value) for name, (_, value) in items.items()}
        return Message(**texts)

    def _message_text(self, source: Source, node: Node, what: str = "the message") -> str | None:
        text = source.text_of(node, "a message" if what == "the message" else what, literal=True)
        if text is not None and len(text) > MESSAGE_CHARS_MAX:
            source.error(
                node,
                "too-long",
                f"{what} has {len(text)} characters",
                expected=f"at most {MESSAGE_CHARS_MAX}",
            )
        return text

    def _rollout(self, source: Source, node: Node) -> float | None:
        share = share_of(node.value) if type(node) is ScalarNode else None
        if share is not None:
            return share
        mend = None
        value = source.scalar(node) if type(node) is ScalarNode else None
        if isinstance(value, int | float) and 0 < value <= 1:
            mend = f"write {value * 100:g}%"
        elif isinstance(value, int | float) and value <= 100:
            mend = f"write {value:g}%"
        source.error(
            node,
            "wrong-value",
            "`rollout` is a share of the users",
            found=describe(node),
            expected="0% to 100%",
            mend=mend,
        )
        return None

    def _expires(self, source: Source, node: Node) -> int | None:
        text = source.text_of(node, "`expires`", literal=True)
        if text is None:
            return None
        ms = rfc3339_ms(text)
        if ms is None:
            source.error(
                node,
                "wrong-value",
                "`expires` is a time with an offset",
                found=describe(node),
                expected="RFC 3339, such as 2027-01-31T00:00:00+08:00",
            )
        return ms

    def _wrong_when(self, source: Source, items: Mapping[str, Item]) -> str | None:
        if "wrong_when" not in items:
            return None
        return self._message_text(source, items["wrong_when"][1], "`wrong_when`")

    def _owner(self, source: Source, items: Mapping[str, Item]) -> tuple[str | None, tuple[str, ...]]:
        owner = source.text_of(items["owner"][1], "`owner`", literal=True) if "owner" in items else None
        if "tags" not in items:
            return owner, ()
        nodes = source.sequence(items["tags"][1], "`tags`")
        tags = (source.text_of(node, "a tag", literal=True) for node in nodes)
        return owner, tuple(tag for tag in tags if tag is not None)

    def _decide(self) -> dict[str, Decide]:
        made = {}
        for name, (source, key, node) in self.sections["decide"].items():
            if name not in self.sections["events"]:
                source.unknown(key, f"there is no event type {name!r}", self.sections["events"])
            items = source.items(node, "thresholds", DECIDE_KEYS)
            shares: dict[str, float] = {}
            for action in REFUSALS:
                share = read_share(source, items[action][1], f"`{action}`") if action in items else None
                if share is None:
                    continue
                milder = max(shares, key=lambda other: shares[other], default=None)
                if milder is not None and shares[milder] > share:
                    source.error(
                        items[action][1],
                        "order",
                        f"{action} begins at a lower risk than {milder}",
                        found=f"{milder} {shares[milder]:g}, {action} {share:g}",
                        expected="review <= challenge <= deny",
                    )
                shares[action] = share
            challenge_with = read_choice(
                source, items.get("challenge_with"), "challenge_with", CHALLENGES, "captcha"
            )
            if "challenge_with" in items and "challenge" not in items:
                source.error(
                    items["challenge_with"][0],
                    "no-meaning",
                    "`challenge_with` says how to challenge, and no risk is",
                    mend="add `challenge: 0.75`, or remove it",
                )
            made[name] = Decide(**shares, challenge_with=challenge_with)
        return made
