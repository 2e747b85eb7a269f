"""The rows of artefacts: files that steps have attached to their run.

Two triggers of the table `steps` delete them with their step. Not here: their content (`blobs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import apsw

from turnout.service.journal.contract import Attachment
from turnout.service.journal.records import StoredArtefact

from .bulk import insert
from .statements import load
from .values import instant

_SQL = load("artefacts")


class ArtefactRow(NamedTuple):
    """The columns of the table `artefacts`."""

    run_seq: int
    key: str
    name: str
    type: str
    bytes: int
    blob: str
    at: int


INSERT = insert("artefacts", ArtefactRow._fields)


def rows_of(run_seq: int, key: str, attached: Sequence[Attachment], at: int) -> list[Any]:
    """Return what `INSERT` writes for the artefacts of a step."""
    rows: list[Any] = []
    for each in attached:
        rows += ArtefactRow(run_seq, key, each.name, each.type, each.file.size, each.blob, at)
    return rows


def named(connection: apsw.Connection, run_seq: int, name: str) -> StoredArtefact | None:
    """Return the artefact of a run that was last recorded under a name."""
    row: Any = connection.execute(_SQL["named"], (run_seq, name)).fetchone()
    return None if row is None else _artefact_from(row)


def listed(connection: apsw.Connection, run_seq: int, limit: int) -> list[StoredArtefact]:
    """Return the artefacts of a run, the last of each name, in the order of their records."""
    return [_artefact_from(row) for row in connection.execute(_SQL["listed"], (run_seq, limit))]


def _artefact_from(row: Sequence[Any]) -> StoredArtefact:
    key, name, type_, size, blob, at = row
    return StoredArtefact(key=key, name=name, type=type_, size=size, blob=blob, at=instant(at))
