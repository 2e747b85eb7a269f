"""Far more events than the flow can run: all are kept, memory stays flat, the backlog drains."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.program import Program

from .ledger import broken_promises, snapshot
from .load import Generator, Ledger

FLOWS = Path(__file__).parent / "flows" / "work.py"
ROOM_MIB = 100

HOARD = """
from turnout.service.intake.emitter import TriggerEmitter

honest, hoard = TriggerEmitter.__call__, []

async def greedy(self, events, positions=None):
    hoard.append(bytearray(b"x" * 131072))
    return await honest(self, events, positions)

TriggerEmitter.__call__ = greedy
"""

pytestmark = pytest.mark.timeout(300)


def spike(
    tmp_path: Path, seed: int, count: int, sabotage: str = ""
) -> tuple[Program, Ledger, float, str]:
    """Post `count` events at full speed, drain; returns the growth in MiB and a report."""
    program = Program(
        flows=FLOWS,
        data=tmp_path / "data",
        log=tmp_path / "log",
        spawned=True,
        sabotage=sabotage,
        env={
            "TURNOUT_TEST_WITNESS": str(tmp_path / "witness"),
            "TURNOUT_TEST_GATE": str(tmp_path / "gate"),
            "TURNOUT_TEST_SECONDS": "0.005",
            "TURNOUT_TEST_AT_ONCE": "4",
        },
    )
    with program:
        program.start().ready()
        idle = program.rss_mib()
        load = Generator(
            port=program.port, seed=seed, threads=16, most=count, github_share=0.0, padding=300
        )
        began = time.monotonic()
        with load.running() as ledger:
            peak = idle
            while sum(ledger.statuses.values()) < count:
                time.sleep(0.05)
                peak = max(peak, program.rss_mib())
        posted = time.monotonic() - began
        backlog = program.unfinished()
        while program.unfinished():
            time.sleep(0.1)
            peak = max(peak, program.rss_mib())
        drained = time.monotonic() - began - posted
        report = (
            f"{dict(ledger.statuses)} in {posted:.1f} s ({count / posted:.0f}/s), backlog "
            f"{backlog}, drained in {drained:.1f} s; RSS idle {idle:.0f}, peak {peak:.0f} MiB"
        )
        assert program.stop() == 0
    return program, ledger, peak - idle, report


def test_a_spike_is_kept_and_drained_in_flat_memory(
    tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    count = 20_000 if full else 3_000
    program, ledger, growth, report = spike(tmp_path, seed, count)
    say(report)
    last = snapshot(program.data)
    broken = broken_promises(last, accepted=ledger.accepted)
    assert not broken, broken[:10]
    assert set(ledger.statuses) == {202}
    assert set(last.states()) == {"succeeded"}
    assert growth <= ROOM_MIB


@pytest.mark.full
def test_hoarded_memory_is_noticed(tmp_path: Path, seed: int) -> None:
    _, _, growth, _ = spike(tmp_path, seed, 1_000, HOARD)
    assert growth > ROOM_MIB
