"""A real browser on a page of this test."""

import json
import os
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prices import prices

from turnout.testing import run

PAGE = b"""<table><thead><tr><th>product</th><th>price</th></tr></thead>
<tbody><tr><td>pears</td><td>0.10</td></tr></tbody></table>
<a href="/prices.csv" download>Download</a>"""


class Shop(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        is_file = self.path.endswith(".csv")
        self.send_response(200)
        self.send_header("Content-Type", "text/csv" if is_file else "text/html")
        self.end_headers()
        self.wfile.write(b"product,price\npears,0.10\n" if is_file else PAGE)

    def log_message(self, *_: object) -> None:
        pass


class Prices(unittest.TestCase):
    def test_the_rows_of_the_table_come_back(self) -> None:
        with ThreadingHTTPServer(("127.0.0.1", 0), Shop) as shop:
            threading.Thread(target=shop.serve_forever, daemon=True).start()
            os.environ["PRICES_URL"] = f"http://127.0.0.1:{shop.server_port}/"
            result = run(prices)
            shop.shutdown()
        self.assertEqual(result.result, [{"product": "pears", "price": "0.10"}])
        kept = json.loads(result.steps["keep#1"].result or b"")
        self.assertEqual(kept, ["page.png", "prices.csv"])
