"""Events as Stripe sends them; the signature is not asked for in a test, and nobody is paid."""

import unittest
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import stripe
import stripe_payments

from turnout import Event
from turnout.testing import serve, webhook_event


def payment(event: str, product: str, amount: int, kind: str = "payment_intent.succeeded") -> Event:
    paid = {"id": f"pi_{product}", "amount": amount, "metadata": {"product": product}}
    body = {"id": event, "type": kind, "data": {"object": paid}}
    return webhook_event(stripe_payments.paid, body)


class Refunds:
    """Stripe's refunds, which cannot be reached so many times."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.asked: list[tuple[str, str]] = []

    def create(self, params: Any, options: Any) -> Any:
        self.asked.append((params["payment_intent"], options["idempotency_key"]))
        if len(self.asked) <= self.failures:
            raise stripe.APIConnectionError("no answer")
        return SimpleNamespace(id="re_1")


class StripePayments(unittest.IsolatedAsyncioTestCase):
    async def results(self, *events: Event, refunds: Refunds | None = None) -> list[str]:
        there = SimpleNamespace(v1=SimpleNamespace(refunds=refunds or Refunds()))
        with patch.object(stripe_payments, "client", lambda: there):
            async with serve(stripe_payments.paid) as service:
                for event in events:
                    await service.emit(event)
                return [run.result.split(" under ")[0] for run in await service.runs("paid")]

    async def test_an_event_that_comes_again_sells_nothing_more(self) -> None:
        twice = [payment("evt_1", "pears", 350)] * 2
        self.assertEqual(await self.results(*twice), ["pears, sold"])

    async def test_another_kind_of_event_starts_nothing(self) -> None:
        created = payment("evt_2", "pears", 0, kind="payment_intent.created")
        self.assertEqual(await self.results(created), [])

    async def test_what_cannot_be_sold_is_paid_back_under_one_key(self) -> None:
        for product, amount in (("figs", 350), ("pears", 35)):
            refunds = Refunds(failures=2)
            told = await self.results(payment("evt_3", product, amount), refunds=refunds)
            self.assertEqual(told, [f"{product}, paid back by re_1"])
            self.assertEqual([each for each, _ in refunds.asked], [f"pi_{product}"] * 3)
            self.assertEqual(len(set(refunds.asked)), 1)
