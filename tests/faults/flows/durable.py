"""Flows an outside test kills, retries, edits, cancels: each leaves lines where it has been."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from turnout import (
    RunError,
    by_input,
    current,
    flow,
    gather,
    retry,
    sleep,
    task,
    wait_for,
    webhook,
)

told = webhook("/told/{id}")


def leave(folder: str, line: str) -> None:
    with Path(folder, "lines").open("a") as file:
        file.write(f"{line}\n")


def there(folder: str, marker: str) -> bool:
    return Path(folder, marker).exists()


def die_once(folder: str, where: str) -> None:
    """End this process as a crash does, the first time it comes here."""
    marker = Path(folder, f"died-{where}")
    if Path(folder, f"die-{where}").exists() and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@task
async def a(folder: str) -> str:
    leave(folder, "a")
    return "a"


@task
def b(folder: str) -> str:
    leave(folder, "b")
    return "b"


@task(retry=retry(2, delay="1ms"))
async def c(folder: str) -> str:
    leave(folder, "c")
    if not there(folder, "mended"):
        raise ConnectionError("c is down")
    return "c"


@task
async def tidy(folder: str) -> None:
    leave(folder, "tidy")


@flow(on=webhook("/abc"))
async def abc(folder: str) -> str:
    try:
        return await a(folder) + await b.run(folder) + await c(folder)
    finally:
        await tidy(folder)


@task(retry=retry(3, delay="1ms"))
def fetch(url: str) -> str:
    with urlopen(url) as answer:
        return str(answer.read().decode())


@flow(on=webhook("/fetches"))
async def fetches(url: str) -> str:
    return await fetch.run(url)


# ---------------------------------------------------------------- the end


def cancel_hotel(folder: str) -> None:
    leave(folder, "undo hotel")


def cancel_flight(folder: str) -> None:
    leave(folder, "undo flight")
    die_once(folder, "undo")


def alarm(error: RunError) -> None:
    folder = str(current().event.data["folder"])
    leave(folder, f"alarm {error.type} in {error.step}")
    die_once(folder, "alarm")


@flow(on=webhook("/trip"), retry=retry(1, delay="1ms"), on_failure=alarm)
async def trip(data: dict[str, Any]) -> None:
    folder = str(data["folder"])
    await a(folder)
    current().on_undo(cancel_hotel, folder)
    await b.run(folder)
    current().on_undo(cancel_flight, folder)
    await c(folder)


# ---------------------------------------------------------------- kept results


@task(cache=by_input(ttl="1h"))
def costly(folder: str, number: int) -> int:
    leave(folder, f"costly {number}")
    time.sleep(0.3)
    return number * 2


@flow(on=webhook("/costs"))
async def costs(data: dict[str, Any]) -> int:
    return await costly.run(number=data["number"], folder=data["folder"])


# ---------------------------------------------------------------- cancelled


@flow
async def child(folder: str) -> None:
    leave(folder, "child")
    try:
        await sleep("1d")
    finally:
        leave(folder, "child left")


@task
def in_thread(folder: str) -> None:
    leave(folder, f"thread {current().run.flow} {threading.current_thread().name[:12]}")
    while not current().cancelled:
        time.sleep(0.01)
    leave(folder, "thread told")


@task(pool="process")
def in_process(folder: str) -> None:
    below = subprocess.Popen(["sleep", "600"])
    Path(folder, "pids").write_text(f"{os.getpid()} {below.pid}")
    current().log.info("process.started", where=current().run.id)
    while True:
        pass


@task
async def on_loop(folder: str) -> None:
    try:
        await asyncio.sleep(86_400)
    except BaseException as error:
        leave(folder, f"loop {type(error).__name__}")
        raise


@flow(on=webhook("/wide"))
async def wide(data: dict[str, Any]) -> None:
    folder = str(data["folder"])
    parts: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        "child": lambda: child(folder),
        "thread": lambda: in_thread.run(folder),
        "process": lambda: in_process.run(folder),
        "loop": lambda: on_loop(folder),
    }
    await gather(*(parts[part]() for part in data["parts"]))


@task(pool="process", timeout="1s")
def endless(folder: str) -> None:
    in_process.function(folder)


@flow(on=webhook("/endless"))
async def never_ends(folder: str) -> None:
    await endless.run(folder)


# ---------------------------------------------------------------- waiting


@flow(on=webhook("/early"), awaits=[told])
async def early(data: dict[str, Any]) -> str:
    folder = str(data["folder"])
    await a(folder)
    while not there(folder, "go"):  # noqa: ASYNC110  the test has nothing but files
        await asyncio.sleep(0.01)
    event = await wait_for(told, match={"id": data["id"]}, timeout="1h")
    return str(event.data["word"])
