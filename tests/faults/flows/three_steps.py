"""Three recorded steps for every webhook, dropped file and tick; each execution is witnessed."""

import asyncio
import os
import random

from turnout import Event, current, every, files, flow, secret, task, webhook

witness = os.open(os.environ["TURNOUT_TEST_WITNESS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def executing(step: str) -> str:
    """Write the execution down before anything else; returns what only this one can return."""
    run = current()
    os.write(witness, f"{run.run.id} {step} {run.attempt}\n".encode())
    return os.urandom(8).hex()


@task
async def first() -> str:
    mark = executing("first")
    await asyncio.sleep(random.random() * 0.004)
    return mark


@task
async def second(before: str) -> str:
    mark = executing("second")
    await asyncio.sleep(random.random() * 0.004)
    return mark + before


@task
def third(before: str) -> str:
    return executing("third") + before


@flow(
    on=[
        webhook("/minted"),
        webhook("/github", verify="github", secret=secret("FAULTS_HMAC")),
        files(
            os.environ["TURNOUT_TEST_INBOX"] + "/*.txt",
            settle=os.environ.get("TURNOUT_TEST_SETTLE", "50ms"),
        ),
        every(os.environ.get("TURNOUT_TEST_TICK", "200ms")),
    ]
)
async def three_steps(event: Event) -> dict[str, str | None]:
    mark = await third.run(await second(await first()))
    return {"mark": mark, "file": None if event.path is None else event.path.name}
