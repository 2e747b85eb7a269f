"""A Secrets Manager with one secret, and a folder for it."""

import os
import stat
import unittest
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import aws_secrets
from botocore.exceptions import ClientError

from turnout.testing import Result, run


class Manager:
    """What the flow uses of a client."""

    def __init__(self, **values: str) -> None:
        self.values = values

    async def get_secret_value(self, SecretId: str) -> Any:
        if SecretId not in self.values:
            missing = {"Error": {"Code": "ResourceNotFoundException", "Message": SecretId}}
            raise ClientError(missing, "GetSecretValue")
        return {"SecretString": self.values[SecretId], "VersionId": f"version of {SecretId}"}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Manager"]:
        yield self


class AwsSecrets(unittest.TestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def brought(self, names: str, **values: str) -> Result:
        """Bring secrets; a variable stands in for the setting that only a service reads."""
        env = {"TURNOUT_SECRETS_FOLDER": str(self.folder), "AWS_SECRETS": names}
        manager = Manager(**values)
        with (
            patch.dict(os.environ, env | {"CRM_KEY": "a-key-of-the-test"}),
            patch.object(aws_secrets, "manager", manager.opened),
        ):
            return run(aws_secrets.bring_secrets)

    def test_a_secret_is_written_for_nobody_else_and_its_version_returned(self) -> None:
        (self.folder / ".CRM_KEY.part").write_text("of a try that was cut off")
        for value in ("the-first-value", "another-value"):
            result = self.brought("shop/CRM_KEY", **{"shop/CRM_KEY": value})
            self.assertEqual(result.result, ["version of shop/CRM_KEY"])
            (kept,) = self.folder.iterdir()
            self.assertEqual((kept.name, kept.read_text()), ("CRM_KEY", value))
            self.assertEqual(stat.S_IMODE(kept.stat().st_mode), 0o600)

    def test_one_that_is_not_there_keeps_back_no_other(self) -> None:
        result = self.brought("shop/GONE shop/CRM_KEY", **{"shop/CRM_KEY": "the-first-value"})
        self.assertEqual(result.state, "failed")
        self.assertIn("1 of 2 not brought", str(result.error))
        self.assertEqual([each.name for each in self.folder.iterdir()], ["CRM_KEY"])

    def test_a_name_that_leads_elsewhere_is_refused(self) -> None:
        result = self.brought("shop/..", **{"shop/..": "the-first-value"})
        self.assertEqual((result.state, list(self.folder.iterdir())), ("failed", []))
