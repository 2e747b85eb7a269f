"""The classes of queued runs, for flows that declare `priority=`.

A class has a cursor of its own, which finds queued runs by their priority. So runs that were queued
before their flow declared classes get the normal one, once.
"""

from __future__ import annotations

from collections.abc import Sequence

import apsw

from .statements import load
from .values import dump_list

_SQL = load("classes")


def use_classes(connection: apsw.Connection, flows: Sequence[str]) -> bool:
    """Note that only these flows declare classes; whether a queued run got one by that."""
    listed = (dump_list(flows),)
    connection.execute(_SQL["keep_only"], listed)
    changed = 0
    for (flow,) in connection.execute(_SQL["unclassed"], listed).fetchall():
        connection.execute(_SQL["classify"], (flow,))
        changed += connection.changes()
        connection.execute(_SQL["add"], (flow,))
    return changed > 0
