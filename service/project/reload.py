"""Watches flow files while somebody writes them: `turnout serve --reload`.

For development: a change that is missed costs one more save. Looks at the `*.py` files beside the
flow files and in the named folders, not below them: a project's virtual environment may be there.
Where the kernel's notifications fail (no inotify instance is left, a name beside the files is no
UTF-8) it looks at the files a few times a second instead. Loading is `loader`'s, and what becomes
of running attempts is the service's.
"""

from __future__ import annotations

import logging
from asyncio import sleep, to_thread
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

SETTLE_MILLISECONDS = 100
AGAIN_SECONDS = 1.0


async def changes(
    paths: Sequence[Path], *, warn: Callable[[str], object]
) -> AsyncIterator[set[Path]]:
    """Yield the Python files that changed since the last yield, until cancelled.

    `warn` is told once why notifications fail.
    """
    from watchfiles import Change, awatch  # a compiled library nobody needs without --reload

    def is_python(_change: Change, path: str) -> bool:
        name = Path(path).name
        return name.endswith(".py") and not name.startswith(".")

    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # the service tells what it reloads
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
            await sleep(AGAIN_SECONDS)


def _folders(paths: Sequence[Path]) -> set[Path]:
    return {path if path.is_dir() else path.absolute().parent for path in paths}
