"""Types of an author whose values lie in the journals beside this file. It never changes."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel


class Order(BaseModel):
    """What an event asks for."""

    n: int
    customer: str = "acme"


@dataclass
class Receipt:
    """A step's result whose field no JSON could keep."""

    order: int
    seal: complex


class Refused(Exception):
    """An error with a constructor that no pickle could call."""

    def __init__(self, order: int, *, because: str) -> None:
        super().__init__(f"order {order} is refused: {because}")
        self.order = order
        self.because = because


def release(order: int, place: str) -> str:
    """Undo a booking."""
    return f"released {place} of {order}"
