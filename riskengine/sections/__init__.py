"""The sections of a policy's files, read into definitions and held against one another.

Sections are read in the order in which they speak of each other: fields before entities, entities before
features, features before rules. A name whose own definition is wrong stays known, so that one mistake is
reported once and not again wherever the name is used.
"""

from __future__ import annotations

from riskengine.cells import CELLS_MAX
from riskengine.definition import Definition
from riskengine.footprint import ENTITY_BYTES_MAX, counters, state_bytes
from riskengine.sections.alerts import Alerts


class Loader(Alerts):
    """One reading of all of a policy's sections."""

    def load(self) -> Definition | None:
        """Read everything. None where not even a policy can be made; else see `findings`."""
        self._merge()
        settings = self._settings()
        self._events_and_entities()
        self._tables()
        self._lists()
        self._scopes()
        self._features()
        self._spreads()
        limits = self._limits()
        rules = self._rules()
        decide = self._decide()
        alerts = self._alerts()
        if settings is None:
            return None
        definition = Definition(
            **settings,
            fields=self.fields,
            events=self.events,
            entities=self.entities,
            tables=self.tables,
            lists=self.lists,
            features=self.features,
            limits=limits,
            rules=rules,
            decide=decide,
            alerts=alerts,
        )
        if not any(source.findings for source in self.sources):
            self._state(definition)
        del self.where_scope, self.max_scope, self.value_scope, self.when_scope  # they hold the loader
        return definition

    def _state(self, definition: Definition) -> None:
        """Refuse what could grow past the bounds of one entity's value, and say what it is made of."""
        for entity, counts in counters(definition).items():
            total = sum(counts.values())
            if total <= CELLS_MAX:
                continue
            source, key, _ = self.sections["entities"][entity]
            shown = ", ".join(list(counts)[:8])
            source.error(
                key,
                "too-many-counters",
                f"one {entity} would need {total} different counters",
                found=shown + (f", and {len(counts) - 8} more" if len(counts) > 8 else ""),
                expected=f"at most {CELLS_MAX}: features of the same events and `where` share one, whatever "
                "their windows",
                mend="give features the same `on` and `where`, or remove some",
            )
        for entity, costs in state_bytes(definition).items():
            total = sum(costs.values())
            if total <= ENTITY_BYTES_MAX:
                continue
            source, key, _ = self.sections["entities"][entity]
            dear = sorted(costs.items(), key=lambda cost: (-cost[1], cost[0]))
            shown = ", ".join(f"{name} {size:,}" for name, size in dear[:8])
            source.error(
                key,
                "too-much-state",
                f"one {entity} may come to hold {total:,} bytes",
                found=shown + (f", and {len(dear) - 8} more" if len(dear) > 8 else ""),
                expected=f"at most {ENTITY_BYTES_MAX:,} bytes an entity",
                mend=f"shorten the windows, lower the cap or remove the dearest: {dear[0][0]}",
            )
