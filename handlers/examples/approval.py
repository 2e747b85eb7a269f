"""Ask a person, and wait for days; on a no, or no answer, what was reserved is given back.

`curl -d '{"traveller": "ada", "hotel": "Sea View"}'` to /hooks/travel starts it; `turnout approve`
or the one-time page answers.
"""

from pydantic import BaseModel

from turnout import approval, current, flow, retry, task, webhook


class Trip(BaseModel):
    """What is asked for."""

    traveller: str
    hotel: str


class Budget(BaseModel):
    """What the person fills in."""

    euros: int


async def release(trip: Trip, result: str | None, key: str) -> None:
    """Give the room back; `result` is None if it may never have been reserved."""
    current().log.info("room.released", room=result, key=key)


@task(undo=release, retry=retry(3, delay="1s"), timeout="30s")
async def reserve(trip: Trip) -> str:
    """Reserve a room; its undo runs when the run fails for good or is cancelled."""
    return f"{trip.hotel} for {trip.traveller}"


@task(timeout="30s")
async def ask(text: str) -> None:
    """Send it to whoever decides; a task, so that one mail goes out, whatever is waited for."""
    current().log.info("question.sent", text=text)


@flow(on=webhook("/travel", verify="none"))
async def travel(trip: Trip) -> str:
    """Reserve, ask, and wait for two days without holding anything but the room."""
    room = await reserve(trip)
    asked = approval("travel office", fields=Budget, timeout="2d")
    await ask(f"{room}: yes or no at {asked.link}")
    said = await asked  # Rejected and TimeoutError fail the run, which undoes `reserve`
    return f"{room}, {said.fields.euros} euros"
