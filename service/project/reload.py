"""Watches flow files for changes: `turnout serve --reload`.

For development: a missed change costs one more save. Watches the `*.py` files next to the flow
files and in the named folders, not in subfolders, where a virtual environment may be. If kernel
notifications fail (no inotify instance left, a file name that is not UTF-8) it polls a few times a
second. Not here: loading (`loader`), running attempts (`app`).
"""

from __future__ import annotations

import logging
from asyncio import sleep, to_thread
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

SETTLE_MILLISECONDS = 100
RETRY_SECONDS = 1.0


async def changes(
    paths: Sequence[Path], *, warn: Callable[[str], object]
) -> AsyncIterator[set[Path]]:
    """Yield the Python files that changed since the last yield, until cancelled.

    `warn` is called once with the reason if notifications fail.
    """
    from watchfiles import Change, awatch  # a compiled library, needed with --reload only

    def is_python(_change: Change, path: str) -> bool:
        name = Path(path).name
        return name.endswith(".py") and not name.startswith(".")

    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # the service logs its own reloads
    folders = await to_thread(_folders, paths)
    polls = False
    while True:
        try:
            async for found in awatch(
                *folders,
                watch_filter=is_python,
                step=SETTLE_MILLISECONDS,
                recursive=False,
                force_polling=polls or None,
            ):
                yield {Path(path) for _, path in found}
        except (OSError, RuntimeError) as error:  # what watchfiles raises for the kernel's limits
            if not polls:
                warn(str(error))
            polls = True
            await sleep(RETRY_SECONDS)


def _folders(paths: Sequence[Path]) -> set[Path]:
    return {path if path.is_dir() else path.absolute().parent for path in paths}
