"""A real browser on a page of this test, which is a file."""

import os
import unittest
from pathlib import Path
from tempfile import TemporaryDirectory

from notice import notice

from turnout.testing import run


class Notice(unittest.TestCase):
    def test_it_returns_what_the_notice_says(self) -> None:
        with TemporaryDirectory() as folder:
            page = Path(folder) / "page.html"
            page.write_text("<p role=status>All is well.</p>")
            os.environ["SITE_URL"] = page.as_uri()
            result = run(notice)
        self.assertEqual(result.result, "All is well.")
        self.assertIn("keep#1", result.steps)
