"""How a flow is tested: run as it would run, killed at every step, in no time.

Run it where the flows are: `python -m unittest`, or pytest where it is installed.
"""

import unittest

from trip import trip

from turnout.testing import run

WANTED = {"traveller": "t-1", "flight": "TX 1", "hotel": "Sea View"}


class Trip(unittest.TestCase):
    def test_a_crash_changes_nothing(self) -> None:
        for crash_at in (None, 1, 2):
            result = run(trip, WANTED, crash_at=crash_at)
            self.assertEqual(result.state, "succeeded")
            self.assertEqual(list(result.steps), ["book#1", "book#2"])
            booked = [each.rsplit("-", 1)[0] for each in result.result]
            self.assertEqual(booked, ["flight-TX 1", "hotel-Sea View"])

    def test_the_flight_is_given_back_when_the_hotel_is_full(self) -> None:
        result = run(trip, WANTED | {"hotel": "Full House"})
        self.assertEqual((result.state, result.undo), ("failed", "done"))
        self.assertEqual(result.steps["~undo[0]/give_back#1"].state, "succeeded")
