"""Points at which a program kills itself, and the plans of a test that takes them one by one.

With `SABOTAGE` a program notes each point it passes in the file `CRASH_LOG`, and kills itself
(SIGKILL) at the one that the file `CRASH_PLAN` names: "point|n" is its n-th passing. Points lie
right behind each write that became durable; more are passed by `turnout_test_passed`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

SABOTAGE = """
import asyncio, builtins, os, signal
from pathlib import Path
from turnout.service.journal.sqlite.journal import SqliteJournal

plan, log = Path(os.environ["CRASH_PLAN"]), Path(os.environ["CRASH_LOG"])

def passed(point):
    with log.open("a") as file:
        file.write(point + "\\n")
    if not plan.exists():
        return
    wanted, count = plan.read_text().split("|")
    if wanted != point:
        return
    if count == "1":
        plan.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    plan.write_text(f"{wanted}|{int(count) - 1}")

def watched(name, describe):
    honest = getattr(SqliteJournal, name)
    async def write(self, *arguments, **named):
        known(named.get("entries", ()))
        answer = await honest(self, *arguments, **named)
        for point in describe(*arguments):
            passed(point)
        return answer
    def begin(self, *arguments, **named):  # `append` is a future from the start
        return asyncio.get_running_loop().create_task(write(self, *arguments, **named))
    setattr(SqliteJournal, name, begin)

flows = {}  # by run

def of_step(claim, step):
    return [f"{flows[claim.run_id]} {step.key} {step.state}"]

def known(entries):
    flows.update((run.id, run.flow) for entry in entries for run in entry.runs)

watched("record_step", of_step)
watched("record_with", of_step)
watched("record_artefacts", lambda claim, step, attached: of_step(claim, step))
watched("take", lambda claim, step, taking: of_step(claim, step))
watched("record_waits", lambda claim, steps: [of_step(claim, step)[0] for step in steps])
watched("record", lambda run, outcome: [f"{run.flow} {outcome.state}"])

append = SqliteJournal.append
def watched_append(self, entries, **named):
    known(entries)
    def stored(future):
        if future.exception() is None:
            for entry in entries:
                passed(f"event {entry.event.trigger}")
    future = append(self, entries, **named)
    future.add_done_callback(stored)  # before the program's own: nobody knows of it yet
    return future
SqliteJournal.append = watched_append

claim = SqliteJournal.claim
async def watched_claim(self, seqs, **named):
    claimed = await claim(self, seqs, **named)
    flows.update((run.claim.run_id, run.flow) for run in claimed)
    return claimed
SqliteJournal.claim = watched_claim

builtins.turnout_test_passed = passed
"""


def forgetting(key: str) -> str:
    """Return a sabotage that breaks the promise: no run knows its recorded step of this key."""
    return FORGETTING.replace("KEY", key)


FORGETTING = """
from dataclasses import replace

from turnout.service.journal.sqlite.journal import SqliteJournal

honest_claim = SqliteJournal.claim

async def forgetful(self, seqs, **named):
    return [
        replace(run, recorded={key: step for key, step in run.recorded.items() if key != "KEY"})
        for run in await honest_claim(self, seqs, **named)
    ]

SqliteJournal.claim = forgetful
"""


def plans_of(points: Sequence[str]) -> list[str]:
    """Return a plan for every point of an undisturbed run: the n-th passing of each."""
    seen: Counter[str] = Counter()
    plans = []
    for point in points:
        seen[point] += 1
        plans.append(f"{point}|{seen[point]}")
    return plans
