"""Finds an artefact of a run, for operators."""

from __future__ import annotations

from turnout.service.domain.artefact import MAX_LISTED
from turnout.service.domain.errors import NotFound
from turnout.service.journal.contract import Reads
from turnout.service.journal.records import StoredArtefact

from .names import no_run

_NAMED = 10


async def find_artefact(reader: Reads, run_id: str, name: str) -> StoredArtefact:
    """Return the artefact of a run with a name; raises `NotFound`, naming those there are."""
    run = await reader.run(run_id)
    if run is None:
        raise no_run(run_id)
    artefact = reader.artefact(run.seq, name)
    if artefact is not None:
        return artefact
    found = await reader.artefacts(run.seq, MAX_LISTED)
    listed = ", ".join(repr(each.name) for each in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    there = f"it has {listed}{more}" if found else "it has none"
    raise NotFound(f"run {run.id} has no artefact {name[:80]!r}; {there}")
