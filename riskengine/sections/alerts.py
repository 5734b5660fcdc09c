"""Alerts."""

from __future__ import annotations

from typing import Final, cast

from riskengine.definition import (
    ACTIONS,
    Action,
    Alert,
)
from riskengine.scalars import (
    check_name,
    read_choice,
    read_duration,
    read_whole,
    share_of,
    tell_missing,
)
from riskengine.sections.reading import DAY_MS, SECOND_MS
from riskengine.sections.rules import Rules
from riskengine.source import Node, ScalarNode, SequenceNode, Source, describe

ALERT_KEYS: Final = frozenset(
    {
        "on", "when", "action", "hits", "by", "over", "above", "clear", "at_least", "message", "owner",
        "tags",
    }
)  # fmt: skip
BY_RULE: Final = "rule"  # alerts are counted for each rule and limit that fires
ALERT_MS_MIN: Final = 60 * SECOND_MS
ALERT_MS_MAX: Final = 7 * DAY_MS
ALERT_COUNT_MAX: Final = 10**9
ALERTS_MAX: Final = 64
SHARE_LEAST: Final = 20  # events that make a share, unless said


class Alerts(Rules):
    """Reads alerts."""

    def _alerts(self) -> dict[str, Alert]:
        made = {}
        for number, (name, (source, key, node)) in enumerate(self.sections["alerts"].items()):
            check_name(source, key, name, "an alert")
            if number == ALERTS_MAX:
                found = f"{len(self.sections['alerts'])}"
                said = f"a policy has at most {ALERTS_MAX} alerts"
                source.error(
                    key, "too-many-alerts", said, found=found, mend="remove those that nobody looks at"
                )
            alert = self._alert(name, source, key, node)
            if alert is not None:
                made[name] = alert
        return made

    def _alert(self, name: str, source: Source, key: ScalarNode, node: Node) -> Alert | None:
        before = len(source.findings)
        items = source.items(node, "an alert", ALERT_KEYS)
        if len(source.findings) == before:
            lacking = [needed for needed in ("over", "above") if needed not in items]
            if lacking:
                tell_missing(source, key, f"the alert {name}", *lacking)
        on = items.get("on")
        types = (
            tuple(self.sections["events"])
            if on is None
            else self._types(source, on[1], "`on`", labels=False)[1]
        )
        when = None
        if "when" in items:
            when = self._expression(source, items["when"][1], "`when`", self.when_scope, ("bool",))
        actions = self._actions(source, items["action"][1]) if "action" in items else ACTIONS
        hits = by = None
        if "hits" in items:
            known = (*self.sections["rules"], *self.sections["limits"])
            hits = source.text_of(items["hits"][1], "`hits`")
            if hits is not None and hits not in known:
                source.unknown(items["hits"][1], f"there is no rule or limit {hits!r}", known)
        if "by" in items:
            by = self._alert_by(source, items["by"][1])
        over_ms = None
        if "over" in items:
            over_ms = read_duration(source, items["over"][1], "`over`", ALERT_MS_MIN, ALERT_MS_MAX)
        above = self._level(source, items["above"][1], "above") if "above" in items else None
        clear = self._level(source, items["clear"][1], "clear") if "clear" in items else above
        is_share = above is not None and above[1]
        if above is not None and clear is not None and (clear[1] != above[1] or clear[0] > above[0]):
            source.error(
                items["clear"][1],
                "wrong-value",
                "an episode ends at `clear`, which is no more than `above`",
                found=f"{_written(items['clear'][1])}, above {_written(items['above'][1])}",
                expected="a share (30%) where `above` is one, else a count",
            )
        least = 0
        if "at_least" in items and above is not None and not is_share:
            source.error(
                items["at_least"][0],
                "no-meaning",
                "`at_least` says how many events make a share, and `above` is a count",
                mend="remove `at_least`, or write `above` as a share such as 30%",
            )
        elif is_share:
            least = SHARE_LEAST
            if "at_least" in items:
                node = items["at_least"][1]
                least = read_whole(source, node, "`at_least`", 1, ALERT_COUNT_MAX) or least
        message = self._message(source, items.get("message"))
        owner, tags = self._owner(source, items)
        if len(source.findings) > before or over_ms is None or above is None or clear is None:
            return None
        if "when" in items and when is None:
            return None
        return Alert(
            name, types, over_ms, above[0], clear[0], is_share, least, by, when, actions, hits, message,
            owner, tags, source.place(key),
        )  # fmt: skip

    def _actions(self, source: Source, node: Node) -> tuple[Action, ...]:
        parts = source.sequence(node, "`action`") if type(node) is SequenceNode else [node]
        if not parts and type(node) is SequenceNode:
            source.error(node, "wrong-value", "`action` names no action", expected=", ".join(ACTIONS))
        named = [
            read_choice(source, (cast(ScalarNode, part), part), "action", ACTIONS, None) for part in parts
        ]
        return tuple(action for action in ACTIONS if action in named)

    def _alert_by(self, source: Source, node: Node) -> str | None:
        """What an alert is counted by: rule, an entity, or a text field."""
        name = source.text_of(node, "`by`")
        if name is None or name == BY_RULE or name in self.sections["entities"]:
            return name
        texts = [field.name for field in self.fields.values() if field.type in ("string", "phone", "ip")]
        if name in texts or name in self.broken:
            return name
        source.unknown(
            node,
            f"alerts are counted by rule, by an entity or by a text field, and {name!r} is none",
            [BY_RULE, *self.sections["entities"], *texts],
        )
        return None

    def _level(self, source: Source, node: Node, what: str) -> tuple[float, bool] | None:
        """A count, or a share: (0.3, True) of 30%."""
        share = share_of(node.value) if type(node) is ScalarNode else None
        if share is not None:
            return share, True
        value = source.scalar(node) if type(node) is ScalarNode else None
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= ALERT_COUNT_MAX:
            return float(value), False
        mend = None
        if isinstance(value, float) and 0 < value < 1:
            mend = f"write {value * 100:g}% for a share"
        source.error(
            node,
            "wrong-value",
            f"`{what}` is a count of events, or their share",
            found=describe(node),
            expected=f"0 to {ALERT_COUNT_MAX:,}, or 0% to 100%",
            mend=mend,
        )
        return None


def _written(node: Node) -> str:
    return str(node.value) if type(node) is ScalarNode else describe(node)
