"""A new version of the flow files, taken on by the running process; one with a mistake is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from turnout.service.dispatch.attempts import until_writable
from turnout.service.domain.errors import JournalFull, SetupError
from turnout.service.http.ingest import Ingest, check_exposure, unlock
from turnout.service.project import Project
from turnout.service.project.cautions import cautions
from turnout.service.project.loader import loading
from turnout.service.telemetry.logs import get_logger

from .process import Process, resources_of

log = get_logger("turnout")


def warn_of(project: Project) -> None:
    """Log what may surprise in the flows of a project, as `turnout check` warns of it."""
    for warning in cautions(list(project.flows.values())):
        log.warning(
            "flow.warned", location=f"{warning.file}:{warning.line}", warning=warning.message
        )


async def reload_files(
    process: Process, ingest: Ingest, flow_paths: Sequence[Path], changed: Sequence[str]
) -> None:
    """Load the flow files again; on an error log it and keep what is loaded.

    Runs in the task that opens resources, because the same task must close them.
    """
    try:
        with loading(flow_paths) as project:
            check_exposure(project.triggers.values(), process.settings.host)
            unlock(project.triggers.values())
            await reload_project(process, project)
    except SetupError as error:
        log.error("reload.failed", error=str(error))  # noqa: TRY400  it names file and line
        ingest.not_replaced()
        process.not_reloaded = str(error)
    else:
        ingest.replace(process.routes())
        process.not_reloaded = None
        warn_of(project)
        log.info("reload.done", flows=len(project.flows), changed=list(changed))


async def reload_project(process: Process, project: Project) -> None:
    """Switch to a new version of the project; raises `SetupError` and keeps the old one.

    Unchanged triggers never stop. Flows that are new, come back or take over a name (`was=`)
    start runs once their held ordering keys are read from the journal. Resources of replaced
    code stay open until the service stops, since runs may still use them.
    """
    await process.resources.start(resources_of(project))
    fresh = {
        flow.name
        for flow in project.flows.values()
        if flow.was is not None or flow.name not in process.project.flows
    }
    gone = [
        name
        for name, emitter in process.emitters.items()
        if project.triggers.get(name) != emitter.trigger
    ]
    await process.supervisor.stop(*gone) if gone else None
    for name in gone:
        process.emitters.pop(name).status.retire()
    known = set(process.emitters)
    process.pauses.hold(fresh)
    process.apply(project)
    process.pools.renew()
    await _take_over(process, project)
    process.pauses.hold(())
    await process.pauses.refresh()
    process.windows.recheck()  # of flows that come back, or have another name now
    process.alerts.recheck()
    await process.describe()
    for name in set(process.emitters) - known:
        process.supervisor.start(process.emitters[name])


async def _take_over(process: Process, project: Project) -> None:
    """Move what is of old names (`was=`) to the new ones, and read the held ordering keys."""
    renamed = project.renamed
    for was, name in renamed.items():
        process.dispatcher.adopt(was, name)
    await _rename(process, renamed)
    await process.dispatcher.restore()
    await _rename(process, renamed)  # for what was routed to an old name meanwhile
    await process.overrides.refresh()


async def _rename(process: Process, renamed: Mapping[str, str]) -> None:
    """Rename flows in one write: what comes in next finds the runs of each under its new name."""
    while renamed:
        try:
            await process.journal.rename_flows(renamed)
            break
        except JournalFull:
            await until_writable(process.journal)
    for name in renamed.values():
        process.dispatcher.reread_queue(name)
