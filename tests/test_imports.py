"""The code is imported as `turnout.service` and so on, by one name in a process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .support import CHECKOUT

BARE = re.compile(r"^[ \t]*(?:from|import) (?:service|triggers|handlers)(?![\w/])", re.MULTILINE)


def bare_imports(top: Path) -> Iterator[str]:
    """Yield the files that import through a link, which makes other modules of the same code."""
    for folder in ("service", "triggers", "handlers", "turnout/testing", "tests"):
        for path in (top / folder).rglob("*.py"):
            if any(part.startswith(".") for part in path.relative_to(top).parts):
                continue  # an environment, such as one of the bench
            if BARE.search(path.read_text("utf-8")):
                yield path.relative_to(top).as_posix()


def test_nothing_is_imported_through_a_link() -> None:
    assert [*bare_imports(CHECKOUT)] == []


@pytest.mark.parametrize(
    "line",
    ["import service.domain", "from handlers import flow", "    from triggers.kafka import x"],
)
def test_the_check_sees_such_an_import(tmp_path: Path, line: str) -> None:
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "new.py").write_text(f"import re\n{line}\n", "utf-8")
    assert [*bare_imports(tmp_path)] == ["service/new.py"]
