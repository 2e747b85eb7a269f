"""Take payments of Stripe: each is verified, and sold once; what cannot be sold is paid back.

Give Stripe the address `https://YOUR-HOST/hooks/stripe` and the event `payment_intent.succeeded`.
`STRIPE_WEBHOOK_SECRET` is the signing secret that it shows for this address (`whsec_…`),
`STRIPE_API_KEY` the key under which money goes back. Stripe sends an event again until it has been
answered, and whenever somebody asks for that; its id makes one run of all of them.
"""

# /// script
# dependencies = ["stripe>=13"]
# ///

from functools import cache

import stripe
from pydantic import BaseModel

from turnout import current, flow, retry, secret, task, webhook

PRICES = {"pears": 350, "plums": 420}
"""What there is, and what it costs in cents."""

payments = webhook(
    "/stripe",
    verify="stripe",
    secret=secret("STRIPE_WEBHOOK_SECRET"),
    id=lambda event: event.data["id"],
    dedupe="30d",  # so long Stripe can send it again
)


class Payment(BaseModel):
    """A PaymentIntent; of everything Stripe sends, only the fields in use are declared."""

    id: str
    amount: int
    metadata: dict[str, str]


class Subject(BaseModel):
    """What an event is about."""

    object: Payment


class Succeeded(BaseModel):
    """An event of Stripe."""

    data: Subject


@cache
def client() -> stripe.StripeClient:
    """Return Stripe's own client."""
    return stripe.StripeClient(secret("STRIPE_API_KEY").reveal())


@task
async def sell(product: str) -> str:
    """Do with it what is to be done, under a key that is the same for each try."""
    return f"{product}, sold under {current().key()[:8]}"


again = retry(5, on=(stripe.APIConnectionError, stripe.APIError, stripe.RateLimitError))


@task(retry=again, timeout="2m")
def pay_back(payment: str) -> str:
    """Give the money back; asked twice under one key, Stripe gives it back once."""
    refund = client().v1.refunds.create(
        {"payment_intent": payment}, {"idempotency_key": current().key()}
    )
    return str(refund.id)


@flow(on=payments, when=lambda event: event.data["type"] == "payment_intent.succeeded")
async def paid(succeeded: Succeeded) -> str:
    """Sell what was paid for, or give the money back."""
    payment = succeeded.data.object
    product = payment.metadata.get("product", "nothing")
    if PRICES.get(product) == payment.amount:
        return await sell(product)
    return f"{product}, paid back by {await pay_back.run(payment.id)}"
