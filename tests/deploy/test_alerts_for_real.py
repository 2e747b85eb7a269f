"""Each alert is told, and that it is over, by a real service, Prometheus and Alertmanager.

A scene has a service of its own, with its operator (`tests/support/alerting.py`), and makes what
the alerts are about come and go. The scenes play side by side, since they mostly wait; the longest
takes two minutes. In each nothing else may be told, and beside them a service that is well is told
of nothing.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

import pytest
import yaml

from tests.conftest import Say
from tests.faults.machine import run_tool, small_disk
from tests.support import CHECKOUT
from tests.support.alerting import Pager, faster, operator
from tests.support.injected_clock import InjectedClock
from tests.support.program import Program, turnout, until
from tests.support.prometheus import tool

RULES = CHECKOUT / "deploy" / "turnout.rules.yml"
OVER_A_MINUTE = 64


def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


# ---- a scene


class Scene:
    """A program, who is told of it, and files by which a test says what goes wrong in it."""

    def __init__(self, folder: Path, pager: Pager, program: Program) -> None:
        self.folder = folder
        self.pager = pager
        self.program = program
        self.episode = pager.episode

    def send(self, path: str, data: object = None) -> bool:
        """Send an event; returns whether it was accepted."""
        body = json.dumps(data).encode()
        answer = self.program.ask(f"/hooks/{path}", method="POST", body=body, timeout=20)
        return answer is not None and answer.status == 202

    def steer(self, *command: str) -> None:
        """Give an operator's command, which must succeed."""
        done = turnout(*command, "--data", self.program.data, env=self.program.env)
        assert done.returncode == 0, done.stderr

    @contextmanager
    def sending(self, path: str, *, a_second: float, data: object = None) -> Iterator[None]:
        """Send events all the while."""
        stopped = threading.Event()

        def send() -> None:
            while not stopped.wait(1 / a_second):
                self.send(path, data)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        try:
            yield
        finally:
            stopped.set()
            sender.join(30)

    def until_scraped(self) -> None:
        """Wait until Prometheus has seen the process that runs now."""
        started = "turnout_start_timestamp_seconds"
        (now,) = self.program.metrics(started).values()
        until(lambda: self.pager.prometheus.ask(started) == now, 40, "a scrape")

    def switch(self, name: str) -> Path:
        """Return a file that the program looks for; it is not there yet."""
        return self.folder / name

    def checked(self, *beside: str) -> None:
        """Check that nobody was told of anything but the episodes, and `beside`."""
        wanted = {(each.alert, tuple(each.labels.items())) for each in self.pager.episodes}
        rules = alerts()
        for told in list(self.pager.told):
            rule = rules[told.name]
            assert told.severity == rule["labels"]["severity"]
            assert told.runbook == rule["annotations"]["runbook"]
            assert "<no value>" not in told.summary, told
            if told.name not in beside:
                assert (told.name, tuple(told.own.items())) in wanted, f"nothing caused {told}"


@contextmanager
def scene(
    folder: Path,
    flows: str,
    *,
    env: Mapping[str, str] | None = None,
    sabotage: str = "",
    data: Path | None = None,
) -> Iterator[Scene]:
    """Serve flows, which find the folder of the scene as `HERE`, before an operator."""
    folder.mkdir(exist_ok=True)
    here = f"from pathlib import Path\nHERE = Path({str(folder)!r})\n"
    (folder / "flows.py").write_text(HEAD + here + flows)
    program = Program(
        flows=folder / "flows.py",
        data=data or folder / "data",
        log=folder / "log",
        env=env or {},
        sabotage=here + sabotage,
    )
    with program.start():
        until(lambda: program.ask("/healthz"), 40, "/healthz")  # it need not be ready
        with operator(folder / "operator", scrapes=program.port) as pager:
            made = Scene(folder, pager, program)
            made.until_scraped()
            yield made


HEAD = """
import asyncio
import time
from turnout import *
from turnout import dependency
"""


def pass_time(seconds: float) -> None:
    """Let time pass that is a fact itself: what is wrong must be so for that long."""
    end = time.monotonic() + seconds
    until(lambda: time.monotonic() > end, seconds + 5, "the time")


# ---- the scenes


TIMERS = """
@flow(on=every("2s", missed="skip", name="skips"))
async def skips(): ...

@flow(on=every("2s", missed="run_all", name="makes-up"))
async def makes_up(): ...
"""


def it_is_down_for_a_minute_and_then_dies_again_and_again(folder: Path) -> Pager:
    with scene(folder, TIMERS) as it:
        pass_time(6)
        down = it.episode("TurnoutDown", "kill -9")
        it.program.kill()
        down.fires()
        pass_time(OVER_A_MINUTE)
        missed = it.episode(
            "TurnoutTicksMissed", "down over ticks", trigger="skips", result="missed"
        )
        late = it.episode("TurnoutTicksLate", "down for 64 s", trigger="makes-up")
        it.program.start().ready()
        for each in (down, missed, late):
            each.end()
        down.resolves()
        missed.fires()
        late.fires()
        missed.resolves()
        late.resolves()
        restarts = it.episode("TurnoutRestarts", "four kills")
        for _ in range(4):
            it.program.kill()
            it.program.start().ready()
            it.until_scraped()
        restarts.end()
        restarts.fires()
        restarts.resolves()
        it.checked("TurnoutDown", "TurnoutTicksMissed")
        return it.pager


def it_stands_still_for_a_minute(folder: Path) -> Pager:
    with scene(folder, TIMERS) as it:
        pass_time(6)
        it.program.signal(SIGSTOP)
        pass_time(OVER_A_MINUTE)
        late = it.episode("TurnoutTicksLate", "SIGSTOP for 64 s", trigger="makes-up")
        it.program.signal(SIGCONT)
        late.end()
        late.fires()
        late.resolves()
        it.checked("TurnoutDown", "TurnoutTicksMissed")
        return it.pager


FLOWS = """
crm = dependency("crm", open_after="100% of 3", probe="3s", errors=OSError)

@flow(on=webhook("/sync"), needs=crm, retry=retry(9, delay="1s"))
async def sync():
    await asyncio.sleep(1.5)  # a dependency that is down takes its time to say so
    if not (HERE / "crm").exists():
        raise OSError("the CRM does not answer")

@flow(on=files(f"{HERE}/inbox/*.csv", name="inbox"))
async def reads(): ...

@flow(on=webhook("/bill"))
async def bill(order: dict):
    if order["fails"]:
        raise Fail("as asked")

@flow(on=webhook("/trip"))
async def trip(order: dict):
    await book(order)
    raise Fail("no seats")

async def give_back(order: dict, result: None, key: str) -> None:
    if not (HERE / "hotel").exists():
        raise Fail("the hotel does not answer")

@task(undo=give_back)
async def book(order: dict) -> None: ...

@flow(on=webhook("/picky"), when=lambda event: event.data["n"] > 1)
async def picky(order: dict): ...

@task(pool="process")
def train(file: str) -> None:
    while not Path(file).exists():
        time.sleep(0.1)

@flow(on=webhook("/model"))
async def model():
    await train.run(str(HERE / "trained"))
"""


def flows_fail_and_what_they_need(folder: Path) -> Pager:
    with scene(folder, FLOWS, env={"TURNOUT_PROCESSES": "1"}) as it:
        trigger = it.episode("TurnoutTriggerDown", "a folder that is missing", trigger="inbox")
        breaker = it.episode("TurnoutBreakerOpen", "its dependency fails", dependency="crm")
        pool = it.episode("TurnoutPoolBusy", "3 tasks, 1 process", pool="processes")
        for _ in range(3):
            assert it.send("sync") and it.send("model")
        undo = it.episode("TurnoutUndoFailed", "undo= fails", flow="trip")
        kept = it.episode("TurnoutDeadLetters", "its undo failed", flow="trip")
        assert it.send("trip", {})
        kept.end()  # nothing more comes
        fails = it.episode("TurnoutRunsFail", "runs fail", flow="bill")
        dead = it.episode("TurnoutDeadLetters", "runs fail", flow="bill")
        with it.sending("bill", a_second=3, data={"fails": True}):
            dead.fires()
            fails.fires()
        for each in (fails, dead):
            each.end()
        for each in (trigger, breaker, pool, undo, kept):
            each.fires()
        with it.sending("bill", a_second=20, data={"fails": False}):
            for each in (trigger, breaker, pool, undo):
                each.end()
            it.switch("inbox").mkdir()
            for name in ("crm", "trained", "hotel"):
                it.switch(name).touch()
            (run,) = it.program.api("/runs?flow=trip")["items"]
            it.steer("retry", run["id"])
            filters = it.episode("TurnoutFilterErrors", "when= raises", flow="picky")
            assert it.send("picky", {})
            filters.end()
            filters.fires()
            for each in (trigger, breaker, pool, undo, kept, filters, dead, fails):
                each.resolves(90)
        check_that_old_dead_letters_are_not_told_after_a_stop(it)
        # The event that `when=` could not judge is a dead letter; all runs of `trip` fail.
        it.checked("TurnoutDeadLetters", "TurnoutRunsFail")
        return it.pager


def check_that_old_dead_letters_are_not_told_after_a_stop(it: Scene) -> None:
    before = list(it.pager.told)
    assert it.program.metrics("turnout_dead_letters")
    assert it.program.stop() == 0
    until(lambda: it.pager.prometheus.ask('up{job="turnout"}') == 0, 20, "a scrape without answer")
    it.program.start().ready()
    pass_time(20)  # past the quarter of an hour that is compared
    assert it.pager.told == before, [str(each) for each in it.pager.told[len(before) :]]


SLOW_DISK = """
from turnout.service.journal.sqlite.writer import Writer
import time

honest = Writer._commit

class Slow:
    def __init__(self, connection):
        self.connection = connection

    def execute(self, text):
        while (HERE / "still").exists():
            time.sleep(0.02)
        if (HERE / "slow").exists():
            time.sleep(0.4)
        return self.connection.execute(text)

def commit(self):
    connection, self._connection = self._connection, Slow(self._connection)
    try:
        honest(self)
    finally:
        self._connection = connection

Writer._commit = commit
"""

ORDERS = """
@flow(on=webhook("/orders"))
async def orders(): ...
"""


def the_disk_is_slow(folder: Path) -> Pager:
    with scene(folder, ORDERS, sabotage=SLOW_DISK) as it, it.sending("orders", a_second=10):
        slow = it.switch("slow")
        slow.touch()
        cause = "commits of 400 ms"
        told = [
            it.episode("TurnoutSlowDisk", cause),
            it.episode("TurnoutAnswersLateFast", cause),
            it.episode("TurnoutAnswersLateSlowly", cause),
        ]
        for each in told:
            each.fires()
        slow.unlink()
        for each in told:
            each.end()
        for each in told:
            each.resolves()
        it.checked()
        return it.pager


def the_disk_stands_still(folder: Path) -> Pager:
    with scene(folder, ORDERS, sabotage=SLOW_DISK) as it:
        still = it.switch("still")
        still.touch()
        queue = it.episode("TurnoutWritesQueue", "400 senders, a disk that stands still")
        senders = threading.Thread(target=lambda: asyncio.run(post_at_once(it.program.port, 400)))
        senders.start()
        queue.fires()
        still.unlink()
        queue.end()
        queue.resolves()
        senders.join(60)
        it.checked("TurnoutSlowDisk", "TurnoutAnswersLateFast", "TurnoutAnswersLateSlowly")
        return it.pager


async def post_at_once(port: int, count: int) -> None:
    """Send events over connections of their own, and wait for all answers."""

    async def post() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /hooks/orders HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"
            b"Connection: close\r\n\r\n"
        )
        await reader.read()
        writer.close()

    await asyncio.gather(*(post() for _ in range(count)))


LINES = """
@flow(on=webhook("/line"))
async def line():
    await asyncio.sleep(0.5)

@flow(on=webhook("/paused"), concurrency=1)
async def paused():
    await asyncio.sleep(0.5)

@flow(on=webhook("/stuck"), concurrency=1)
async def stuck():
    while not (HERE / "goes-on").exists():
        await asyncio.sleep(0.1)
"""


def runs_wait(folder: Path) -> Pager:
    with scene(folder, LINES) as it:
        it.steer("pause", "paused")
        stuck = it.episode("TurnoutBacklog", "a run that does not end", flow="stuck")
        for _ in range(40):
            assert it.send("paused")
        for _ in range(2):
            assert it.send("stuck")
        until(lambda: time.monotonic() - stuck.began > OVER_A_MINUTE, 90, "a minute")
        waited = it.episode("TurnoutBacklog", "a pause of 64 s", flow="paused")
        it.steer("resume", "paused")
        stuck.fires()
        it.switch("goes-on").touch()
        stuck.end()
        waited.fires()
        until(lambda: it.program.unfinished() == 0, 60, "the end of all runs")
        waited.end()
        waited.resolves()
        stuck.resolves()
        it.checked()
        return it.pager


def all_slots_are_taken(folder: Path) -> Pager:
    with scene(folder, LINES, env={"TURNOUT_CONCURRENCY": "1"}) as it:
        fast = it.episode("TurnoutStartsLateFast", "one slot, runs of 0.5 s")
        slowly = it.episode("TurnoutStartsLateSlowly", "one slot, runs of 0.5 s")
        for _ in range(50):
            assert it.send("line")
        fast.fires()
        slowly.fires()
        until(lambda: it.program.unfinished() == 0, 60, "the end of all runs")
        fast.end()
        slowly.end()
        fast.resolves()
        slowly.resolves()
        it.checked()
        return it.pager


GATED = """
@flow(on=webhook("/orders"))
async def orders():
    while not (HERE / "goes-on").exists():
        await asyncio.sleep(0.1)
"""


def events_are_refused(folder: Path) -> Pager:
    with scene(folder, GATED, env={"TURNOUT_MAX_UNFINISHED_RUNS": "5"}) as it:
        for _ in range(5):
            assert it.send("orders")
        assert not it.send("orders")
        cause = "max_unfinished_runs"
        fast = it.episode("TurnoutRefusesFast", cause)
        slowly = it.episode("TurnoutRefusesSlowly", cause)
        with it.sending("orders", a_second=5):
            fast.fires()
            slowly.fires()
            it.switch("goes-on").touch()
            until(lambda: it.send("orders"), 20, "an accepted event")
            fast.end()
            slowly.end()
            fast.resolves()
            slowly.resolves()
        it.checked()
        return it.pager


BLOCKS = """
@flow(on=webhook("/blocks"))
async def blocks(order: dict):
    time.sleep(order["seconds"])
"""


def code_blocks_the_loop(folder: Path) -> Pager:
    with scene(folder, BLOCKS) as it:
        blocked = it.episode("TurnoutLoopBlocked", "time.sleep in async def")
        with it.sending("blocks", a_second=1, data={"seconds": 1.4}):
            blocked.fires()
        blocked.end()
        blocked.resolves()
        it.program.said("loop.blocked", 10)
        it.checked("TurnoutAnswersLateFast", "TurnoutAnswersLateSlowly")  # answers wait too
        return it.pager


def the_disk_fills(folder: Path) -> Pager:
    with (
        small_disk(folder.with_name("disk"), 1024) as disk,
        scene(folder, ORDERS, data=disk / "data") as it,
    ):
        filling = it.episode("TurnoutDiskFilling", "12 MiB/s on 1 GiB")
        with (disk / "ballast").open("wb", buffering=0) as ballast:
            while "TurnoutDiskFilling" not in it.pager.fired():
                ballast.write(bytes(3 * 2**20))
                pass_time(0.25)
                assert time.monotonic() - filling.began < 60
        free = it.program.metrics("turnout_disk_free_bytes")[""]
        assert free > 256 * 2**20, "it is told in time"
        filling.fires()
        (disk / "ballast").unlink()
        filling.end()
        filling.resolves(90)
        it.checked()
        return it.pager


def the_disk_is_nearly_full(folder: Path) -> Pager:
    with (
        small_disk(folder.with_name("small-disk"), 200) as disk,
        scene(folder, ORDERS, data=disk / "data") as it,
    ):
        full = it.episode("TurnoutDiskFilling", "a disk of 200 MiB")
        full.fires()
        run_tool("mount", "-o", "remount,size=1g", str(disk))
        full.end()
        full.resolves()
        it.checked()
        return it.pager


def backups_fail(folder: Path) -> Pager:
    with small_disk(folder.with_name("backups"), 64) as disk, scene(folder, ORDERS) as it:
        ballast = disk / "ballast"
        with pytest.raises(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16)) or file.write(bytes(512))
        failed = it.episode("TurnoutBackupOld", "no space for backups")
        done = turnout("backup", "--to", disk, "--data", it.program.data, env=it.program.env)
        assert done.returncode != 0
        failed.fires(90)  # an hour is a minute here
        ballast.unlink()
        it.steer("backup", "--to", str(disk))
        failed.end()
        failed.resolves()
        it.checked()
        return it.pager


def the_clock_is_set_back(folder: Path) -> Pager:
    folder.mkdir()
    clock = InjectedClock(folder)
    with scene(folder, ORDERS, env=clock.env) as it:
        assert it.send("orders")
        behind = it.episode("TurnoutClockBehind", "set back by 5 minutes")
        clock.set("-5m")
        behind.fires()
        clock.set("+0s")
        behind.end()
        behind.resolves()
        it.checked()
        return it.pager


WELL = """
crm = dependency("crm", probe="3s")

@flow(on=[webhook("/orders"), every("20s"), cron("* * * * *")], needs=crm)
async def orders():
    await asyncio.sleep(0.01)
    await count.run()

@task(pool="process")
def count() -> int:
    return 1

@flow(on=files(f"{HERE}/inbox/*.csv"))
async def reads(): ...
"""


def all_is_well(folder: Path) -> Pager:
    folder.mkdir()
    (folder / "inbox").mkdir()
    with scene(folder, WELL) as it, it.sending("orders", a_second=5):
        pass_time(45)
        assert it.program.stop() == 0  # a deploy
        it.program.start().ready()
        pass_time(45)
        assert it.send("orders")
        assert not it.pager.told, [str(each) for each in it.pager.told]
        it.checked()
        return it.pager


SCENES: list[Callable[[Path], Pager]] = [
    it_is_down_for_a_minute_and_then_dies_again_and_again,
    it_stands_still_for_a_minute,
    flows_fail_and_what_they_need,
    the_disk_is_slow,
    the_disk_stands_still,
    runs_wait,
    all_slots_are_taken,
    events_are_refused,
    code_blocks_the_loop,
    the_disk_fills,
    the_disk_is_nearly_full,
    backups_fail,
    the_clock_is_set_back,
    all_is_well,
]


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(400)
def test_each_alert_is_told_and_that_it_is_over(tmp_path: Path, say: Say) -> None:
    tool("prometheus")
    tool("prometheus-alertmanager")
    with ThreadPoolExecutor(len(SCENES)) as stage:
        played = {
            each.__name__: stage.submit(each, tmp_path / each.__name__[:20]) for each in SCENES
        }
    errors = []
    told: list[Any] = []
    for name, future in played.items():
        error = future.exception()
        if error is None:
            told += future.result().episodes
        else:
            error.add_note(f"in {name}")
            errors.append(error)
    for each in told:
        say(
            f"{each.alert}: {each.cause}: told after {each.fired_after:.0f} s, "
            f"over after {each.resolved_after:.0f} s"
        )
    if errors:
        raise BaseExceptionGroup("scenes", errors)
    assert {each.alert for each in told} == alerts().keys()


def test_only_durations_differ_from_the_rules_of_an_operator() -> None:
    assert faster("for: 15m") == "for: 15s"
    assert faster("a[6h] offset 15m > 60") == "a[360s] offset 15s > 60"
    assert faster("rate(a[1m]) < 4 * 3600") == "rate(a[3s]) < 4 * 60"
    duration = re.compile(r"\d+[smhd]\b|(?<=\* )\d+")
    rules = RULES.read_text("utf-8")
    assert duration.sub("", faster(rules)) == duration.sub("", rules)
