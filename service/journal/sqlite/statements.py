"""Loads the fixed statements of `sql/*.sql`, by name.

Each statement follows a line `-- name: NAME` and may be run as it is in a shell. Comments are
stripped, since the driver keeps only short texts prepared. Not here: statements made from column
lists (`bulk`, `columns`).
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent / "sql"
_NAME = "-- name: "


def load(file: str) -> dict[str, str]:
    """Return the statements of a file, by name."""
    statements: dict[str, list[str]] = {}
    name = ""
    for line in (_FOLDER / f"{file}.sql").read_text("utf-8").splitlines():
        if line.startswith(_NAME):
            name = line.removeprefix(_NAME).strip()
            assert name not in statements, f"two statements in {file}.sql are named {name}"
            statements[name] = []
        elif line.strip() and not line.lstrip().startswith("--"):
            statements[name].append(line.strip())
    return {name: " ".join(lines).removesuffix(";") for name, lines in statements.items()}
