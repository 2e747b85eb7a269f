"""Flows that end their process or block its loop for good, some to be undone; innocent company."""

import asyncio
import os
import signal
from pathlib import Path

from turnout import Event, Fail, RunError, current, flow, task, webhook

witness = os.open(os.environ["TURNOUT_TEST_WITNESS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def executing(step: str) -> None:
    run = current()
    os.write(witness, f"{run.run.id} {step} {run.attempt}\n".encode())


@flow(on=webhook("/exits"))
async def exits() -> None:
    executing("exits")
    await asyncio.sleep(0.2)
    os._exit(99)


@flow(on=webhook("/blocks"))
async def blocks() -> None:
    executing("blocks")
    await asyncio.sleep(0.2)
    while True:
        pass


# ---------------------------------------------------------------- undone


def die_if(where: str) -> None:
    """End the process if the run's event says so, `…-once` only the first time."""
    dies = current().event.params["dies"]
    once = Path(os.environ["TURNOUT_TEST_WITNESS"] + ".once")
    if dies == where or (dies == f"{where}-once" and not once.exists()):
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@task
async def book(what: str) -> str:
    executing(f"book-{what}")
    return what


@task
async def pay() -> None:
    executing("pay")
    die_if("step")
    if current().event.params["dies"] == "hook":
        raise Fail("no money")
    os._exit(99)


def give_back(what: str) -> None:
    executing(f"give-back-{what}")
    die_if(f"undo-{what}")


def tell(error: RunError) -> None:
    executing(f"tell-{error.type}")
    die_if("hook")


@flow(on=webhook("/trip/{dies}"), on_failure=tell)
async def trip(event: Event) -> None:
    executing("trip")
    for what in ("flight", "hotel", "car"):
        current().on_undo(give_back, await book(what))
    if event.params["dies"] == "body":
        os._exit(99)  # with nothing between
    await pay()


@flow(on=webhook("/thread/{dies}"), on_failure=tell)
def in_a_thread() -> None:
    executing("trip")
    current().on_undo(give_back, "boat")
    os._exit(99)


@task
async def before() -> str:
    executing("before")
    return os.urandom(8).hex()


@flow(on=webhook("/minted"))
async def innocent() -> str:
    mark = await before()
    executing("body")
    # Long enough to be running at the first two deaths; then isolated runs run one at a time.
    await asyncio.sleep(0.5 if current().run.crashes < 2 else 0.02)
    return mark
