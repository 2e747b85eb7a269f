"""The keys of unfinished runs, so that the runs of one key are found without looking at others.

Whoever ends a run, queues it again, or changes its flow or its keys says so here, in the same
transaction. Not here: a run's own record of its keys, which stays (`runs.keys`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import apsw

from turnout.service.domain.run import Keys

from .bulk import insert
from .statements import load
from .values import dump, dump_list

_SQL = load("run_keys")
_ADD, _REMOVE, _RENAME, _SET_KEYS, _CLASS_OF_KEY = (
    _SQL["add"], _SQL["remove"], _SQL["rename"], _SQL["set_keys"], _SQL["class_of_key"],
)  # fmt: skip


class KeyRow(NamedTuple):
    """The columns of the table `run_keys`."""

    flow: str
    place: str
    key: str
    run_seq: int


INSERT = insert("run_keys", KeyRow._fields)


def add_rows(values: list[Any], flow: str, keys: Keys, seq: int) -> None:
    """Add the rows of a new run's keys to `values`; where it has no key it has no row."""
    for rule_id, key in keys.items():
        if key is not None:
            values += (flow, rule_id, key, seq)  # a `KeyRow`, which would be made for this alone


def class_of_key(connection: apsw.Connection, flow: str, order_key: str) -> int | None:
    """Return the class of the unfinished runs of an ordering key, None if there are none."""
    found: int | None = connection.execute(_CLASS_OF_KEY, (flow, order_key)).get
    return found


def add(connection: apsw.Connection, seqs: Iterable[int]) -> None:
    """Let the unfinished ones of these runs be found by their keys."""
    connection.execute(_ADD, (dump_list(seqs),))


def remove(connection: apsw.Connection, seqs: Iterable[int]) -> None:
    """Let runs be found by their keys no more; call it before their flow or keys change."""
    connection.execute(_REMOVE, (dump_list(seqs),))


def rename(connection: apsw.Connection, was: str, name: str) -> None:
    """Let runs that have the new name of a flow be found by it."""
    connection.execute(_RENAME, (was, name))


def set_keys(connection: apsw.Connection, keys: Mapping[int, Keys]) -> None:
    """Give queued runs, by seq, their keys."""
    remove(connection, keys)
    connection.execute(_SET_KEYS, (dump([(seq, dump(own)) for seq, own in keys.items()]),))
    add(connection, keys)
