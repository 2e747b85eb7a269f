"""Two pages of readings, served on loopback."""

import json
import os
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import polars as pl
import readings

from turnout.testing import run


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        page = int(self.path[-1])
        body = {"readings": [{"sensor": "a", "value": 1.0 + 3 * page}], "pages": 2}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


class Readings(unittest.TestCase):
    def test_the_pages_of_a_day_become_one_file(self) -> None:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        before = Path.cwd()
        url = {"READINGS_URL": f"http://127.0.0.1:{server.server_port}"}
        try:
            with TemporaryDirectory() as folder, patch.dict(os.environ, url):
                os.chdir(folder)
                result = run(readings.summary_of_yesterday, crash_at=2)
                self.assertEqual(result.state, "succeeded")
                rows = pl.read_parquet(result.result).rows()
        finally:
            os.chdir(before)
            server.shutdown()
            server.server_close()
            thread.join()
        self.assertEqual(rows, [("a", 2.5, 4.0)])
