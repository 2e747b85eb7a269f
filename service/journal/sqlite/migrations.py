"""Brings a journal of an earlier version up to date, after a snapshot of it.

Each migration is one transaction together with the version it leads to, so a crash leaves the
journal at a version, and the next start goes on from there. Before the first one the whole
database is copied beside itself, as `journal-vN.db`, N being the version it has: with that file
and the program that wrote it one can go back. It needs as much free space as the journal takes.
Until the last one is done the file `upgrading-from` says N, so that a start after a crash keeps
this snapshot: no program has written the versions between.

The snapshot of an earlier upgrade is deleted then, and this one at the first start after a week.
Not here: large results, which migrations leave alone.

A new journal is made from `schema.sql`, which is what the migrations lead to, in one transaction.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw

from turnout.service.domain.errors import SetupError
from turnout.service.domain.foreign import short_key
from turnout.service.domain.units import utc_now
from turnout.service.journal.records import UpgradePlan
from turnout.service.telemetry.logs import get_logger

from .files import write_whole

APPLICATION_ID = 0x7475726E  # "turn": the database of another program is never migrated
KEPT_SECONDS = 7 * 86_400
"""How long the snapshot of an upgrade is kept at least."""

_MIGRATIONS = Path(__file__).parent / "migrations"
_SCHEMA = Path(__file__).parent / "schema.sql"
_SNAPSHOTS = "journal-v*.db"
_BEGUN = "upgrading-from"
_SPARE_BYTES = 16 * 2**20  # at least, for what the migrations write
_COPIED_PAGES = 4096
_BYTES_PER_SECOND = 50 * 2**20
"""Measured: half of what 200,000 runs took from version 19 on two shared cores, copy included."""

Progress = Callable[[str], None]
"""Is told what is being done, in words, in the thread that does it."""

log = get_logger("turnout.journal")


def newest_version() -> int:
    """Return the journal version this program writes: the number of the last migration."""
    return max(int(file.name[:4]) for file in _MIGRATIONS.glob("*.sql"))


def version_of(connection: apsw.Connection, path: Path) -> int:
    """Return the journal version, 0 for an empty file; refuse foreign and newer files."""
    found = int(connection.pragma("user_version"))
    owner = int(connection.pragma("application_id"))
    empty = connection.execute("SELECT count(*) FROM sqlite_schema").get == 0
    if owner != APPLICATION_ID and not empty:
        raise SetupError(
            f"{path} is another program's database; point TURNOUT_DATA at turnout's own folder"
        )
    if found > newest_version():
        raise SetupError(
            f"{path} has journal version {found} and this turnout knows {newest_version()}: "
            "upgrade turnout, or point TURNOUT_DATA at another folder"
        )
    return found


def plan_upgrade(
    connection: apsw.Connection, path: Path, *, min_free_bytes: int = 0
) -> UpgradePlan:
    """Return what `migrate` would do; reads only."""
    found = version_of(connection, path)
    size = int(connection.pragma("page_count")) * int(connection.pragma("page_size"))
    steps = _steps_after(found)
    copied = 0 if _begun(path.parent, found) else size
    return UpgradePlan(
        found=found,
        newest=newest_version(),
        steps=[file.stem for file in steps],
        bytes=size,
        needed_bytes=copied + max(min_free_bytes, _SPARE_BYTES) if steps else 0,
        free_bytes=shutil.disk_usage(path.parent).free,
        seconds=size / _BYTES_PER_SECOND if steps else 0,
    )


def _steps_after(version: int) -> Sequence[Path]:
    return sorted(file for file in _MIGRATIONS.glob("*.sql") if int(file.name[:4]) > version)


def migrate(
    connection: apsw.Connection,
    path: Path,
    *,
    min_free_bytes: int = 0,
    progress: Progress = lambda _doing: None,
) -> None:
    """Bring a journal to the newest version; raises `SetupError` when there is no space for it."""
    found, newest = version_of(connection, path), newest_version()
    if found == 0:
        _apply(connection, _SCHEMA, newest)
        return
    if found == newest:
        _delete_snapshots(path.parent, older_than=utc_now().timestamp() - KEPT_SECONDS)
        return
    begun = _begun(path.parent, found)
    plan = plan_upgrade(connection, path, min_free_bytes=min_free_bytes)
    snapshot = begun or _make_snapshot(connection, path, plan, progress)
    _delete_snapshots(path.parent, older_than=snapshot.stat().st_mtime)
    apply_migrations(connection, after=found, progress=progress)
    (path.parent / _BEGUN).unlink(missing_ok=True)
    log.info("journal.upgraded", version=newest, before=found, snapshot=str(snapshot))


def apply_migrations(
    connection: apsw.Connection, *, after: int, progress: Progress = lambda _doing: None
) -> None:
    """Apply what came after a version, each migration with its version in one transaction."""
    connection.create_scalar_function("short_key", _short_key, 1, deterministic=True)
    steps = _steps_after(after)
    for done, file in enumerate(steps, 1):
        progress(f"the journal is upgraded: step {done} of {len(steps)}, {file.stem}")
        _apply(connection, file, int(file.name[:4]))


def _apply(connection: apsw.Connection, file: Path, version: int) -> None:
    with connection:
        connection.execute(file.read_text("utf-8"))
        connection.pragma("application_id", APPLICATION_ID)
        connection.pragma("user_version", version)


def _short_key(*given: Any) -> str | None:
    """Return a key of an earlier version as it is stored now."""
    (stored,) = given
    return None if stored is None else short_key(stored)


def _begun(folder: Path, found: int) -> Path | None:
    """Return the snapshot of an upgrade that a crash has cut off, None if there is none."""
    try:
        version = int((folder / _BEGUN).read_text())
    except (FileNotFoundError, ValueError):
        return None
    snapshot = folder / f"journal-v{version}.db"
    return snapshot if version < found and snapshot.is_file() else None


def _make_snapshot(
    connection: apsw.Connection, path: Path, plan: UpgradePlan, progress: Progress
) -> Path:
    """Copy the database as it is beside itself, durably; an older copy of the name is replaced."""
    snapshot = path.with_name(f"journal-v{plan.found}.db")
    draft = path.with_name(f"{snapshot.name}.part")
    draft.unlink(missing_ok=True)  # a crash left it
    if not plan.has_space:
        raise SetupError(
            f"the journal {path} must be upgraded from version {plan.found} to {plan.newest}, and "
            f"the snapshot made before that needs {plan.needed_bytes} bytes free; the disk has "
            f"{plan.free_bytes}: free some"
        )
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT, 0o600))
    with closing(apsw.Connection(str(draft))) as copy:
        copy.pragma("journal_mode", "memory")
        copy.pragma("synchronous", "off")  # it is synced as a whole
        with copy.backup("main", connection, "main") as backup:
            while not backup.done:
                backup.step(_COPIED_PAGES)
                part = 100 * (backup.page_count - backup.remaining) // max(backup.page_count, 1)
                progress(f"the journal is copied to {snapshot.name} before its upgrade: {part} %")
    sync(draft)
    draft.replace(snapshot)
    sync(path.parent)
    write_whole(path.parent / _BEGUN, f"{plan.found}\n".encode(), synced=True)
    return snapshot


def _delete_snapshots(folder: Path, *, older_than: float) -> None:
    for snapshot in (*folder.glob(_SNAPSHOTS), *folder.glob(f"{_SNAPSHOTS}.part")):
        if snapshot.stat().st_mtime < older_than:
            snapshot.unlink()


def sync(path: Path) -> None:
    """Sync a file, or the names in a folder; SQLite syncs its log itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
