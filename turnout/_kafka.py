"""`turnout.kafka`: the trigger `kafka("orders", group="billing")` and the action `kafka.publish`.

Trigger and action live in folders that do not know each other; here they meet under one name.
"""

from __future__ import annotations

from turnout.handlers.kafka import publish as _publish
from turnout.triggers.kafka import kafka as _trigger


class Kafka:
    """Call it for a trigger; `publish` is the action."""

    __call__ = staticmethod(_trigger)
    publish = _publish


kafka = Kafka()
