"""A yes, a no and a silence; two days of it take no time."""

import unittest

from approval import travel

from turnout.testing import serve

WANTED = {"traveller": "ada", "hotel": "Sea View"}


class Approval(unittest.IsolatedAsyncioTestCase):
    """The run waits; an answer, or time, lets it go on."""

    async def test_a_yes_books_the_trip(self) -> None:
        """The fields are checked against the model."""
        async with serve(travel) as service:
            waiting = await service.run(travel, WANTED)
            self.assertEqual(waiting.state, "waiting")
            booked = await service.answer(waiting.id, fields={"euros": 300}, by="grace")
            self.assertEqual(booked.result, "Sea View for ada, 300 euros")

    async def test_a_no_and_a_silence_give_the_room_back(self) -> None:
        """The undo is a recorded step of the failed run."""
        async with serve(travel) as service:
            refused = await service.run(travel, WANTED)
            refused = await service.answer(refused.id, approved=False, reason="too dear")
            silent = await service.run(travel, WANTED)
            await service.advance("3d")
            for result in (refused, await service.look(silent.id)):
                self.assertEqual((result.state, result.undo), ("failed", "done"))
