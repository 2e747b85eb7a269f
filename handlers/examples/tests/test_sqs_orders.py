"""A queue that hides what it has delivered, until a test has it deliver again."""

import os
import unittest
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

import sqs_orders

from turnout.testing import serve

A, B = '{"id": "a", "amount": 1}', '{"id": "b", "amount": 2}'


class Sqs:
    """What the flow uses of a client."""

    def __init__(self, *bodies: str) -> None:
        self.messages = {f"m-{number}": body for number, body in enumerate(bodies)}
        self.hidden: set[str] = set()
        self.loses_deletes = False

    async def receive_message(self, MaxNumberOfMessages: int, **_: Any) -> Any:
        seen = [each for each in self.messages if each not in self.hidden][:MaxNumberOfMessages]
        self.hidden.update(seen)
        if not seen:
            return {}
        return {
            "Messages": [
                {"MessageId": each, "ReceiptHandle": each, "Body": self.messages[each]}
                for each in seen
            ]
        }

    async def delete_message_batch(self, Entries: Any, **_: Any) -> None:
        for each in Entries:
            if not self.loses_deletes:
                self.messages.pop(each["ReceiptHandle"], None)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Sqs"]:
        yield self


class SqsOrders(unittest.IsolatedAsyncioTestCase):
    def setUp(self) -> None:
        where = patch.dict(os.environ, {"QUEUE_URL": "https://sqs/orders"})
        where.start()
        self.addCleanup(where.stop)

    async def drained(
        self, sqs: Sqs, crash_at: int | None = None
    ) -> list[tuple[str, str | None, int]]:
        """Have two ticks, all messages being delivered again for the second; returns the runs."""
        with patch.object(sqs_orders, "sqs", sqs.opened):
            async with serve(sqs_orders.drain_queue, sqs_orders.book_order) as service:
                await service.run(sqs_orders.drain_queue, crash_at=crash_at)
                sqs.hidden.clear()
                sqs.loses_deletes = False
                await service.run(sqs_orders.drain_queue)
                runs = await service.runs(sqs_orders.book_order)
        return [
            (str(run.state), run.result and " ".join(run.result.split()[:2]), run.attempts)
            for run in runs
        ]

    async def test_each_message_starts_one_run_whatever_a_crash_cuts_off(self) -> None:
        for crash_at in (None, 1, 2, 3):
            with self.subTest(crash_at=crash_at):
                sqs = Sqs(A, B)
                runs = await self.drained(sqs, crash_at)
                self.assertEqual(
                    sorted(runs), [("succeeded", "order a", 1), ("succeeded", "order b", 1)]
                )
                self.assertEqual(sqs.messages, {})

    async def test_a_message_that_comes_again_starts_nothing_and_is_deleted_then(self) -> None:
        sqs = Sqs(A)
        sqs.loses_deletes = True
        self.assertEqual(await self.drained(sqs), [("succeeded", "order a", 1)])
        self.assertEqual(sqs.messages, {})

    async def test_what_nobody_can_read_fails_alone(self) -> None:
        sqs = Sqs("no order", A)
        runs = await self.drained(sqs)
        self.assertEqual(sorted(runs, key=str), [("failed", None, 1), ("succeeded", "order a", 1)])
        self.assertEqual(sqs.messages, {})

    async def test_more_than_a_batch_is_taken_in_one_tick(self) -> None:
        sqs = Sqs(*[A] * 25)
        with patch.object(sqs_orders, "sqs", sqs.opened):
            async with serve(sqs_orders.drain_queue, sqs_orders.book_order) as service:
                self.assertEqual((await service.run(sqs_orders.drain_queue)).result, 25)
                self.assertEqual(len(await service.runs(sqs_orders.book_order)), 25)
