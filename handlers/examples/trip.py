"""Book a trip, all of it or nothing: what was booked is given back when a later part fails."""

from pydantic import BaseModel

from turnout import Fail, current, flow, retry, task, webhook


class Trip(BaseModel):
    """What is asked for."""

    traveller: str
    flight: str
    hotel: str


@task(retry=retry(5, delay="1m"))
async def give_back(kind: str, result: str | None, key: str) -> None:
    """Cancel a booking by its key, known or not; doing it twice is as good as once."""
    current().log.info("booking.cancelled", kind=kind, booking=result, key=key)


@task(retry=retry(3, delay="1h", factor=6, max="1d"), timeout="30s", undo=give_back)
async def book(kind: str, name: str) -> str:
    """Book a part at its seller; this one sells everything but full hotels."""
    if name == "Full House":
        raise Fail(f"no room in {kind} {name}")
    return f"{kind}-{name}-{current().key()[:6]}"


@flow(on=webhook("/trips", verify="none"))
async def trip(wanted: Trip) -> list[str]:
    """Book the parts one after the other."""
    return [await book("flight", wanted.flight), await book("hotel", wanted.hotel)]
