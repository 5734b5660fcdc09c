"""Alerts counted the plain way: every event kept, every window summed anew. The twin of riskengine.alerts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BUCKETS = 60
SAMPLES = 10


@dataclass
class Key:
    """What is known of one key of one alert."""

    newest: int = 0  # bucket
    seen: list[tuple[int, bool]] = field(default_factory=list)  # bucket, whether it counted
    episode: dict[str, Any] | None = None


class NaiveAlerts:
    """One alert: {on, over_ms, above, clear, share, least, by}; `by` is a field, "rule" or None."""

    def __init__(self, name: str, alert: Mapping[str, Any]) -> None:
        self.name = name
        self.alert = alert
        self.width = alert["over_ms"] // BUCKETS
        self.keys: dict[Any, Key] = {}
        self.episodes: list[dict[str, Any]] = []

    def see(
        self, event: Mapping[str, Any], hit: bool, rules: tuple[str, ...] = (), late: bool = False
    ) -> None:
        """An event was decided; `hit`: it is one that counts; `rules`: what fired."""
        by = self.alert["by"]
        if late or event["type"] not in self.alert["on"]:
            return
        if by == "rule":
            whole = self.keys.setdefault("", Key())
            self.count(whole, event, False)
            for rule in rules if hit else ():
                key = self.keys.setdefault(rule, Key())
                if self.count(key, event, True):
                    self.judge(rule, key, whole, event, True)
            return
        name = None if by is None else event.get(by)
        if by is not None and name is None:
            return
        if not hit and not self.alert["share"]:
            return
        key = self.keys.setdefault(name, Key())
        if self.count(key, event, hit):
            self.judge(name, key, key, event, hit)

    def count(self, key: Key, event: Mapping[str, Any], hit: bool) -> bool:
        """Enter an event; False for one that is older than the window."""
        bucket = event["time"] // self.width
        key.newest = max(key.newest, bucket)
        if bucket <= key.newest - BUCKETS:
            return False
        key.seen.append((bucket, hit))
        return True

    def value(self, key: Key, whole: Key) -> float:
        """What is compared with the levels; -1 of too few for a share."""
        matched = sum(hit for bucket, hit in key.seen if bucket > key.newest - BUCKETS)
        if not self.alert["share"]:
            return float(matched)
        all_ = sum(bucket > whole.newest - BUCKETS for bucket, _ in whole.seen)
        return -1.0 if all_ < self.alert["least"] else matched / all_

    def judge(self, name: Any, key: Key, whole: Key, event: Mapping[str, Any], hit: bool) -> None:
        """Begin, go on with or end the episode of a key."""
        value = self.value(key, whole)
        if key.episode is None:
            if hit and value > self.alert["above"]:
                key.episode = {
                    "alert": self.name, "key": name, "start": event["time"], "end": None, "peak": value,
                    "peak_time": event["time"], "events": [event["event_id"]],
                }  # fmt: skip
                self.episodes.append(key.episode)
        elif value <= self.alert["clear"]:
            key.episode["end"] = event["time"]
            key.episode = None
        else:
            if value > key.episode["peak"]:
                key.episode |= {"peak": value, "peak_time": event["time"]}
            if hit and len(key.episode["events"]) < SAMPLES:
                key.episode["events"].append(event["event_id"])

    def look(self, now: int) -> None:
        """Time has passed."""
        for key in self.keys.values():
            if key.episode is None:
                continue
            whole = self.keys[""] if self.alert["by"] == "rule" and self.alert["share"] else key
            for one in {id(key): key, id(whole): whole}.values():
                one.newest = max(one.newest, now // self.width)
            if self.value(key, whole) <= self.alert["clear"]:
                key.episode["end"] = now
                key.episode = None
