"""The keys of a run: what the rules of its flow answer about the event, asked once, at submit."""

from __future__ import annotations

from turnout.service.domain.event import Event
from turnout.service.domain.flow import key_of
from turnout.service.domain.run import Keys
from turnout.service.governance import secrets
from turnout.service.project import AnyFlow


def keys_of(flow: AnyFlow, event: Event) -> Keys | None:
    """Return the key of every keyed rule of a flow, by rule; None if it has no such rule.

    Raises what the author's function raises, and `NotKept` for a key that holds a secret.
    """
    if not flow.keyed:
        return None
    keys = {rule.rule_id: key_of(rule, event) for rule in flow.keyed}
    if secrets.live_forms:
        for rule in flow.keyed:
            secrets.refuse_live(keys[rule.rule_id], f"the key of {rule.option}")
    return keys


def with_order(keys: Keys | None, order_key: str | None, priority: int | None) -> Keys | None:
    """Return the keys of a run; of one with a class its ordering key too.

    By it the journal finds the class of the runs of that key, which is the one of its head.
    """
    if priority is None or order_key is None:
        return keys
    return {**(keys or {}), "order": order_key}
