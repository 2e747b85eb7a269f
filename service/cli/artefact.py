"""`turnout artefact`: the content of a file that a run keeps."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from .options import run_async, with_settings

if TYPE_CHECKING:
    from turnout.service.settings import Settings


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("name", metavar="NAME")
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
    help="Write it to a new file.  [default: standard output]",
)  # fmt: skip
@with_settings
def artefact(settings: Settings, run_id: str, name: str, output: Path | None) -> None:
    """Get the content of an artefact: a file that a task has attached to its run.

    `turnout show RUN` lists them. It works with the service running or down. On a terminal the
    content needs a file: it may hold anything.

    \b
    turnout artefact 3f9a1c2b report.pdf -o report.pdf
    turnout artefact 3f9a1c2b dump.zst | zstd -d | psql
    """
    if output is None and sys.stdout.isatty():
        raise click.UsageError("refusing to print to a terminal: add -o FILE, or a pipe")
    run_async(_write(settings, run_id, name, output), prints=True)


async def _write(settings: Settings, run_id: str, name: str, output: Path | None) -> None:
    from turnout.service.operate.artefacts import find_artefact

    from .session import open_journal_reader

    async with open_journal_reader(settings) as reader:
        found = await find_artefact(reader, run_id, name)
        with _opened(output) as file:
            for part in reader.blob_chunks(found.blob):
                file.write(part)


@contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    """Open standard output, or a new file that is there only when it is whole."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        file = output.open("xb")
    except FileExistsError:
        raise click.UsageError(f"{output} already exists; name a new file") from None
    except OSError as error:
        raise click.UsageError(f"cannot write {output}: {error.strerror}") from None
    try:
        with file:
            yield file
    except BaseException:
        output.unlink(missing_ok=True)
        raise
