"""Flow files as an author writes them, for the loader and for `check`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from turnout.service.domain.errors import SetupError
from turnout.service.project import loader


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Leave modules and the path as they were."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith((loader.PACKAGE, "helper_of_")):
            del sys.modules[name]
    sys.path[:] = path


def write(path: Path, text: str) -> Path:
    path.write_text(dedent(text).lstrip())
    return path


def flow_file(path: Path, name: str = "bill", body: str = "pass") -> Path:
    return write(
        path,
        f"""
        from turnout import flow

        @flow
        def {name}() -> None:
            {body}
        """,
    )


def refusal(*paths: Path) -> SetupError:
    with pytest.raises(SetupError) as caught:
        loader.load(list(paths))
    return caught.value
