"""A bucket in memory, and commands that do as if they were PostgreSQL's."""

import os
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace
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


class Bucket:
    """What the flow uses of a bucket."""

    def __init__(self, damaged: bool = False) -> None:
        self.stored = {f"shop/2025-01-0{day}.dump": b"old" for day in range(1, 8)}
        self.objects = self
        self.damaged = damaged

    def upload_file(self, path: str, name: str, ExtraArgs: Any) -> None:
        self.stored[name] = b"half" if self.damaged else Path(path).read_bytes()

    def download_fileobj(self, name: str, file: Any) -> None:
        file.write(self.stored[name])

    def filter(self, Prefix: str) -> list[Any]:
        return [SimpleNamespace(key=name) for name in self.stored]

    def Object(self, name: str) -> Any:  # noqa: N802  as boto3 has it
        return SimpleNamespace(delete=lambda: self.stored.pop(name, None))


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
        bucket = Bucket()
        with patch.object(backup, "bucket", lambda: bucket):
            result = run(backup.backup, crash_at=4)
        self.assertEqual((result.state, result.result["rows"]), ("succeeded", 3))
        self.assertEqual(result.result["removed"], ["shop/2025-01-01.dump"])
        self.assertEqual(len(bucket.stored), 7)

    def test_a_database_that_is_away_for_a_moment_costs_no_backup(self) -> None:
        for name in ("pg_dump", "createdb"):
            away = f"if mkdir {name}.was_away 2>/dev/null; then exit 1; fi"
            Path(name).write_text(f"#!/bin/sh\n{away}\n{COMMANDS[name]}\n")
        bucket = Bucket()
        with patch.object(backup, "bucket", lambda: bucket):
            result = run(backup.backup)
        self.assertEqual((result.state, len(bucket.stored)), ("succeeded", 7))
        tries = {key: step.tries for key, step in result.steps.items()}
        self.assertEqual((tries["shell#1"], tries["restore#1"], tries["store#1"]), (2, 2, 1))

    def test_missing_credentials_are_told_at_once(self) -> None:
        files = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        none = files | {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_EC2_METADATA_DISABLED": "true"}
        with patch.dict(os.environ, none | {"PATH": os.environ["PATH"]}, clear=True):
            result = run(backup.backup)
        self.assertEqual(result.steps["store#1"].tries, 1)
        self.assertIn("Unable to locate credentials", str(result.error))

    def test_one_that_cannot_be_restored_is_removed(self) -> None:
        bucket = Bucket(damaged=True)
        with patch.object(backup, "bucket", lambda: bucket):
            result = run(backup.backup)
        self.assertEqual((result.state, result.undo, len(bucket.stored)), ("failed", "done", 7))
