"""What a call from elsewhere comes to; the signature is the webhook's work."""

import unittest

import called

from turnout.testing import run


class Called(unittest.TestCase):
    def test_a_bill_is_taken_note_of(self) -> None:
        result = run(called.billed, {"receipt": "receipt-7"})
        self.assertEqual(result.result, "receipt-7 is paid")
