"""The flows that are served, with the limits that operators have set in place of declared ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from turnout.service.flowcontrol.overrides import limit_name, limits_of, with_overrides
from turnout.service.project import AnyFlow


class ServedFlows:
    """The flows of the project, by name; `counts` are limits by the names of `limit_name`."""

    def __init__(self) -> None:
        self.by_name: Mapping[str, AnyFlow] = {}
        self._counts: Mapping[str, int] = {}

    def serve(self, flows: Iterable[AnyFlow]) -> list[AnyFlow]:
        """Serve the flows of a (re)loaded project; returns them as they count now."""
        self.by_name = {flow.name: flow for flow in flows}
        return [with_overrides(flow, self._counts) for flow in self.by_name.values()]

    def override(self, counts: Mapping[str, int]) -> list[AnyFlow]:
        """Count by other limits than flow files say; returns the flows whose limits change."""
        changed = {name for name, _ in counts.items() ^ self._counts.items()}
        self._counts = counts
        return [
            with_overrides(flow, counts)
            for flow in self.by_name.values()
            if not changed.isdisjoint(limit_name(flow.name, rule) for rule in limits_of(flow))
        ]
