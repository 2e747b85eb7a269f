"""Overrides: limits that an operator has set for a while, by the names of `limit_name`.

An override acts as if the flow file said another count: nothing else knows of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from turnout.service.project import AnyFlow

from .limit import Limit


def limits_of(flow: AnyFlow) -> Iterator[Limit]:
    """Yield the limits that a flow declares."""
    for rule in flow.concurrency:
        if isinstance(rule, Limit):
            yield rule


def limit_name(flow: str, rule: Limit) -> str:
    """Return the name under which a limit is overridden: `limit:NAME`, or `flow:FLOW/PLACE`."""
    return f"flow:{flow}/{rule.rule_id}" if rule.name is None else f"limit:{rule.name}"


def short_names(flow: AnyFlow) -> dict[str, str]:
    """Return how operators name the limits of a flow, by `limit_name`.

    A named one by its name, the first of the flow's own by that of the flow, others with their
    id: `bill/limit.2`.
    """
    names: dict[str, str] = {}
    own = 0
    for rule in limits_of(flow):
        if rule.name is not None:
            names[limit_name(flow.name, rule)] = rule.name
        else:
            own += 1
            short = flow.name if own == 1 else f"{flow.name}/{rule.rule_id}"
            names[limit_name(flow.name, rule)] = short
    return names


def with_overrides(flow: AnyFlow, counts: Mapping[str, int]) -> AnyFlow:
    """Return a flow as it would be if its file said these counts."""
    if not any(limit_name(flow.name, rule) in counts for rule in limits_of(flow)):
        return flow
    rules = tuple(
        replace(rule, count=counts.get(limit_name(flow.name, rule), rule.count))
        if isinstance(rule, Limit)
        else rule
        for rule in flow.concurrency
    )
    return replace(flow, concurrency=rules)
