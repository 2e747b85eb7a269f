"""No broker is needed: the record is decoded as the trigger would decode it."""

import unittest

from records import payment

from turnout.testing import kafka_event, serve


class Records(unittest.IsolatedAsyncioTestCase):
    """A record is an event of the flow's trigger."""

    async def test_a_payment_is_booked(self) -> None:
        """The key of the record is the key of its order."""
        async with serve(payment) as service:
            record = kafka_event(payment, {"order": "7", "amount": 3}, key="7")
            (result,) = await service.emit(record)
            self.assertEqual(result.result, "booked 7")
