"""A shop on loopback that answers, or does not, and says its load."""

import json
import os
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch

from autoscale import autoscale

from turnout.testing import serve


class Shop(BaseHTTPRequestHandler):
    status, load = 200, 0

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/load" else Shop.status)
        self.end_headers()
        self.wfile.write(json.dumps({"load": Shop.load}).encode())

    def log_message(self, *_: object) -> None:
        pass


class Autoscale(unittest.IsolatedAsyncioTestCase):
    def setUp(self) -> None:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        for clean in (thread.join, server.server_close, server.shutdown):  # the last one first
            self.addCleanup(clean)
        url = f"http://127.0.0.1:{server.server_port}"
        there = {"HEALTH_URL": f"{url}/health", "LOAD_URL": f"{url}/load"}
        patched = patch.dict(os.environ, there)
        patched.start()
        self.addCleanup(patched.stop)

    async def test_a_shop_that_answers_is_left_alone(self) -> None:
        Shop.status = 200
        async with serve(autoscale) as service:
            self.assertEqual((await service.run(autoscale)).result, "healthy")

    async def test_one_that_is_down_is_scaled_once_in_five_minutes(self) -> None:
        Shop.status, Shop.load = 500, 81
        async with serve(autoscale) as service:
            first = await service.run(autoscale)
            Shop.load = 80
            again = await service.run(autoscale)
            await service.advance("6m")  # its own ticks come meanwhile
            runs = await service.runs(autoscale)
        self.assertEqual(first.steps["healthy#1"].tries, 3)
        self.assertIn("scaled already", again.result)
        done = [each for each in runs if each.result == "Auto-scaling completed"]
        self.assertEqual(["emit#2" in each.steps for each in done], [True, False])
