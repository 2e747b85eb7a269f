"""Artefacts of a run: files that a step attaches under a name, and that later steps read.

Content is written to a file at once, and recorded together with the step by the try that ends it:
a try that is repeated, before or after a crash, leaves nothing. Not here: names and types
(`domain.artefact`), files and rows (`journal`).
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from turnout.service.domain.artefact import MAX_A_STEP, check_name, check_type
from turnout.service.domain.errors import MisplacedTask, NotFound, NotKept
from turnout.service.governance import secrets
from turnout.service.journal.contract import Attachment, StagedFile

from .author_code import where
from .scope import Scope, current_scope

MAX_ON_LOOP_BYTES = 16 * 2**20
"""The most bytes that an async task attaches: they are held in memory until it ends."""
_CHUNK_BYTES = 2**20


class Attached:
    """What one try of a step has attached so far; the last content of each name."""

    __slots__ = ("_by_name",)

    def __init__(self) -> None:
        self._by_name: dict[str, Attachment] = {}

    def add(self, made: Attachment) -> None:
        """Add an artefact, in place of one of the same name."""
        before = self._by_name.get(made.name)
        if before is None and len(self._by_name) >= MAX_A_STEP:
            raise NotKept(
                f"{made.name!r} is one artefact too many: a step has {MAX_A_STEP} at most; pack "
                "them into one file"
            )
        self._by_name[made.name] = made
        if before is not None:
            _discard([before.file])

    def __iter__(self) -> Iterator[Attachment]:
        return iter(self._by_name.values())

    def discard(self) -> None:
        """Delete what the journal has not kept."""
        _discard([each.file for each in self])


def _discard(files: Sequence[StagedFile]) -> None:
    """Delete files, on the loop soon: nothing waits for it."""

    def work() -> None:
        for each in left:
            with suppress(OSError):  # the next start deletes it
                each.discard()

    left = [each for each in files if not each.is_kept]
    if left and _is_on_loop():
        asyncio.get_running_loop().run_in_executor(None, work)
    else:
        work()


class Attaching:
    """Content that comes in parts: `write` all of it, then `done`, else `discard`; they block.

    Outside a run the content is only checked.
    """

    def __init__(self, name: str, type_: str | None) -> None:
        self._name = check_name(name)
        self._type = check_type(type_, name)
        secrets.refuse_live(name, "the name of an artefact")
        self._scope = _step("attach()")
        services = None if self._scope is None else self._scope.context.services
        self._services = services
        self._file: StagedFile | None = None
        self._rest = b""
        self.size = 0

    def refuse_size(self, size: int) -> None:
        """Raise `NotKept` for content of so many bytes, if it may not have them."""
        services = self._services
        if services is not None and size > services.settings.max_artefact_bytes:
            raise NotKept(
                f"artefact {self._name!r} has more than {services.settings.max_artefact_bytes:,} "
                "bytes (max_artefact_bytes); raise the setting, or store it elsewhere"
            )

    def hold(self, data: bytes) -> None:
        """Take the whole content from memory, without blocking."""
        self._check(data)
        if self._services is not None:
            self._file = self._services.journal.stage_bytes(data)

    def write(self, data: bytes) -> None:
        """Write more of it; raises `NotKept` where it is too large or holds a secret's value."""
        self._check(data)
        if self._services is None:
            return
        if self._file is None:
            self._file = self._services.journal.stage_file(
                min_free_bytes=self._services.settings.min_free_bytes
            )
        self._file.write(data)

    def _check(self, data: bytes) -> None:
        self.size += len(data)
        self.refuse_size(self.size)
        if not secrets.live_forms:
            return
        found = secrets.find_live(self._rest + data)
        if found is not None:
            raise NotKept(f"artefact {self._name!r} holds the value of secret {found!r}")
        longest = max(len(form.stored) for form in secrets.live_forms)
        self._rest = (self._rest + data)[-longest:]  # a value may begin here and end in the next

    def done(self) -> None:
        """Attach what was written to the try of the step that runs."""
        if self._file is None:
            self.hold(b"")
        scope, file = self._scope, self._file
        if scope is None or file is None:
            return
        if scope.attached is None:
            scope.attached = Attached()
        scope.attached.add(Attachment(self._name, self._type, file, file.close()))
        if scope.is_over:
            raise MisplacedTask(
                f"attach({self._name!r}, …) came after its task had ended, so it is not kept: "
                "await the thread that attaches, within the timeout of the task"
            )

    def discard(self) -> None:
        """Delete what was written."""
        if self._file is not None:
            _discard([self._file])


def attach(name: str, content: bytes | Path, type_: str | None) -> str:
    """Attach content to the step that runs; see `RunContext.attach`. Returns the name."""
    if not isinstance(content, bytes | Path):
        raise NotKept(
            f"attach({str(name)[:80]!a}, …) takes bytes or a Path, not {type(content).__name__}: "
            "write text.encode(), or Path(…) for a file"
        )
    attaching = Attaching(name, type_)
    on_loop = _is_on_loop()
    if on_loop and (isinstance(content, Path) or len(content) > MAX_ON_LOOP_BYTES):
        what = "a file" if isinstance(content, Path) else f"{len(content):,} bytes"
        raise MisplacedTask(
            f"attach({name!r}, …), called at {where()}, would hold up the service while it writes "
            f"{what}: write `await asyncio.to_thread(current().attach, …)`, or a `def` task"
        )
    try:
        if isinstance(content, Path):
            _write_file(attaching, content)
        elif on_loop:
            attaching.hold(content)
        else:
            attaching.write(content)
        attaching.done()
    except BaseException:
        attaching.discard()
        raise
    return name


def _write_file(attaching: Attaching, path: Path) -> None:
    with os.fdopen(_open_below_working_folder(path), "rb", buffering=0) as file:
        attaching.refuse_size(os.fstat(file.fileno()).st_size)
        while part := file.read(_CHUNK_BYTES):
            attaching.write(part)


def _is_on_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _open_below_working_folder(path: Path) -> int:
    """Open a regular file of the working folder; no link leads out of it, and into no own data."""
    root = Path.cwd().resolve()
    try:
        found = path.resolve(strict=True)
        _refuse_outside(path, found, root)
        descriptor = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a loop of links
        raise NotKept(f"{str(path)!a} cannot be attached: {error}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotKept(f"{str(path)!a} cannot be attached: it is not a regular file")
        with suppress(OSError):  # where there is no /proc, a folder swapped for a link is not seen
            opened = Path(f"/proc/self/fd/{descriptor}").readlink()
            _refuse_outside(path, opened, root)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_outside(path: Path, found: Path, root: Path) -> None:
    if not found.is_relative_to(root):
        raise NotKept(
            f"{str(path)!a} cannot be attached: it is not in the working folder, {root}; write "
            "it there, or attach its bytes"
        )
    scope = current_scope.get()
    services = None if scope is None else scope.context.services
    if services is None:
        return
    for own in (services.settings.data, services.settings.secrets_folder):
        if own is not None and found.is_relative_to(own.resolve()):
            raise NotKept(f"{str(path)!a} cannot be attached: {own} is turnout's own")


def _step(what: str) -> Scope | None:
    """Return the scope of the step that runs, None outside a run; raises `MisplacedTask`."""
    scope = current_scope.get()
    if scope is None:
        return None
    if scope.context.services is None:
        raise MisplacedTask(
            f'{what} is not for pool="process": return the bytes or the path, and let a task in a '
            "thread do this"
        )
    if scope.step is None:
        raise MisplacedTask(
            f"{what}, called at {where()}, is for tasks: the body of a flow runs again after each "
            "wait and retry; do it in the task that makes or uses the file"
        )
    return scope


# ---------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Artefact:
    """An artefact of the run, by its name; made by `artefact`."""

    name: str
    type: str | None = None

    @property
    def path(self) -> Path:
        """The file that holds it: to be read only, while this step runs.

        Raises `NotFound` where the run has none of this name, `MisplacedTask` outside a task.
        """
        scope = _step(f"artefact({self.name!r})")
        if scope is None or scope.context.services is None:
            raise NotFound(f"artefact({self.name!r}): there is no run here that could have it")
        journal = scope.context.services.journal
        found = journal.artefact(scope.context.claimed.claim.run_seq, self.name)
        if found is None:
            raise NotFound(
                f"the run has no artefact {self.name!r}: a step that has ended attaches it, with "
                "current().attach(…)"
            )
        return journal.blob_path(found.blob)

    def read(self) -> bytes:
        """Return the content, in a `def` task.

        In an `async def` task: `await asyncio.to_thread(artefact(name).read)`. Raises what `path`
        raises.
        """
        path = self.path
        if _is_on_loop():
            raise MisplacedTask(
                f"artefact({self.name!r}).read(), called at {where()}, would hold up the service: "
                f"write `await asyncio.to_thread(artefact({self.name!r}).read)`, or a `def` task"
            )
        return path.read_bytes()


def artefact(name: str, *, type: str | None = None) -> Artefact:
    """Refer to an artefact of the run by its name: to read it, or to have something write it.

    A task attaches a file with `current().attach(name, content)`; a later task of the same run,
    also after a restart, gets it by its name: `.read()` returns the bytes, `.path` is a file.

    * `name`: the name it was attached under: one part of a path, at most 255 bytes
    * `type`: the media type of what is to be written; by default what the name says

    Raises `NotKept` for what can be no name. Members raise `NotFound` where the run has no such
    artefact, and `MisplacedTask` in the body of a flow and in a task with `pool="process"`.

    ```python
    from turnout import artefact, current, flow, task


    @task
    def export(day: str) -> str:
        return current().attach(f"sales-{day}.csv", f"{day},10".encode())


    @task
    def count(name: str) -> int:
        with artefact(name).path.open() as lines:
            return sum(1 for _ in lines)


    @flow
    def report(day: str) -> int:
        return count(export(day))
    ```
    """
    check_name(name)
    if type is not None:
        check_type(type, name)
    return Artefact(name, type)
