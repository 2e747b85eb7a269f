"""An S3 in memory, and commands that do as if they were PostgreSQL's."""

import os
import tempfile
import unittest
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import backup

from turnout.testing import run

COMMANDS = {
    "pg_dump": "echo everything",
    "psql": "echo 3",
    "createdb": "",
    "dropdb": "",
    "pg_restore": "grep -q everything",
}


class Body:
    def __init__(self, content: bytes) -> None:
        self.content = content

    async def iter_chunks(self, size: int) -> AsyncIterator[bytes]:
        yield self.content


class S3:
    """What the flow uses of a client."""

    def __init__(self, damaged: bool = False) -> None:
        self.stored = {f"shop/2025-01-0{day}.dump": b"old" for day in range(1, 8)}
        self.damaged = damaged

    async def put_object(self, Key: str, Body: Any, **_: Any) -> None:
        self.stored[Key] = b"half" if self.damaged else Body.read()

    async def get_object(self, Key: str, **_: Any) -> Any:
        return {"Body": Body(self.stored[Key])}

    async def delete_object(self, Key: str, **_: Any) -> None:
        self.stored.pop(Key, None)

    async def list_objects_v2(self, **_: Any) -> Any:
        return {"Contents": [{"Key": name} for name in self.stored]}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["S3"]:
        yield self


class Backup(unittest.TestCase):
    def setUp(self) -> None:
        before, folder = Path.cwd(), tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, before)
        os.chdir(folder.name)
        for name, text in COMMANDS.items():
            Path(name).write_text(f"#!/bin/sh\n{text}\n")
            Path(name).chmod(0o755)
        path = patch.dict(os.environ, {"PATH": f"{folder.name}:{os.environ['PATH']}"})
        path.start()
        self.addCleanup(path.stop)

    def test_a_backup_that_was_restored_takes_the_place_of_the_oldest(self) -> None:
        s3 = S3()
        with patch.object(backup, "s3", s3.opened):
            result = run(backup.backup, crash_at=4)
        self.assertEqual((result.state, result.result["rows"]), ("succeeded", 3))
        self.assertEqual(result.result["removed"], ["shop/2025-01-01.dump"])
        self.assertEqual(len(s3.stored), 7)

    def test_one_that_cannot_be_restored_is_removed(self) -> None:
        s3 = S3(damaged=True)
        with patch.object(backup, "s3", s3.opened):
            result = run(backup.backup)
        self.assertEqual((result.state, result.undo, len(s3.stored)), ("failed", "done", 7))
