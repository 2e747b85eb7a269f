"""The power goes: what was acknowledged is on the disk, because it was synced, not only written.

A SIGKILL proves nothing here: the page cache survives it. The journal lives on an ext4 image; the
process is frozen, the file system shut down under it without a flush, then mounted again. Freezing
first matters: in a raw cut an fsync may return success while the file system goes down.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Generator as Rounds
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.support.program import Program

from .ledger import FINISHED, snapshot
from .load import SECRET, Generator, Ledger
from .machine import need_root, run_tool

FLOWS = Path(__file__).parent / "flows" / "three_steps.py"
IMAGE_MIB = 1024

pytestmark = pytest.mark.timeout(120)


class Disk:
    """An ext4 file system on a loop device whose power can be cut."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "disk.ext4"
        self.place = folder / "disk"
        self.place.mkdir()
        with self.image.open("wb") as image:
            image.truncate(IMAGE_MIB * 2**20)
        run_tool("mkfs.ext4", "-q", str(self.image))

    def mount(self) -> None:
        run_tool("mount", "-o", "loop", str(self.image), str(self.place))

    def cut_power(self) -> None:
        """Stop the file system where it is: nothing that is not on the disk gets there."""
        run_tool("xfs_io", "-x", "-c", "shutdown", str(self.place))

    def unmount(self) -> None:
        run_tool("umount", str(self.place))

    def discard(self) -> None:
        subprocess.run(["umount", "-l", str(self.place)], capture_output=True, check=False)
        self.image.unlink()


@contextmanager
def disk(folder: Path) -> Iterator[Disk]:
    need_root("a power cut", "xfs_io", "mkfs.ext4", "mount")
    made = Disk(folder)
    made.mount()
    try:
        yield made
    finally:
        made.discard()


def cut_rounds(
    folder: Path, rounds: int, seed: int, synchronous: str
) -> Rounds[tuple[Ledger, set[str]], None, None]:
    """Cut the power once a round; yields what was promised in it and which runs came back."""
    dice = random.Random(seed)
    inbox = folder / "inbox"
    inbox.mkdir()
    with disk(folder) as under:
        program = Program(
            flows=FLOWS,
            data=under.place / "data",
            log=folder / "log",
            env={
                "TURNOUT_TEST_WITNESS": str(folder / "witness"),
                "TURNOUT_TEST_INBOX": str(inbox),
                "FAULTS_HMAC": SECRET,
                "TURNOUT_SYNCHRONOUS": synchronous,
            },
        )
        with program:
            for number in range(rounds):
                program.start().ready()
                load = Generator(
                    port=program.port, seed=seed + number, threads=6, answer_seconds=0.25
                )
                with load.running() as ledger:
                    time.sleep(dice.uniform(0.1, 0.5))
                    program.signal(signal.SIGSTOP)
                    load.stop()  # every answer sent before the freeze is read
                under.cut_power()
                program.kill()
                under.unmount()
                under.mount()
                yield ledger, set(snapshot(program.data).runs)
            program.start().ready()
            program.quiet(30)
            program.check_journal()
            assert program.stop() == 0
            assert set(snapshot(program.data).states()) <= FINISHED
            under.unmount()


def test_the_power_cut_loses_nothing_acknowledged(
    tmp_path: Path, seed: int, full: bool, say: Say
) -> None:
    acknowledged = lost = cuts = 0
    promised: dict[str, tuple[str, ...]] = {}
    with closing(cut_rounds(tmp_path, 40 if full else 5, seed, "full")) as rounds:
        for ledger, kept in rounds:
            promised |= ledger.accepted
            missing = [event for event, runs in promised.items() if not set(runs) <= kept]
            cuts, acknowledged, lost = cuts + 1, len(promised), len(missing)
            assert not missing, f"cut {cuts}: {lost} of {acknowledged} lost, such as {missing[:3]}"
    say(f"{cuts} power cuts: {lost} of {acknowledged} acknowledged events lost")
    assert acknowledged > cuts * 10, "hardly anything was acknowledged: the test saw nothing"


def test_unsynced_commits_are_lost_and_noticed(tmp_path: Path, seed: int, say: Say) -> None:
    acknowledged = lost = cuts = 0
    with closing(cut_rounds(tmp_path, 8, seed, "normal")) as rounds:
        for ledger, kept in rounds:
            cuts += 1
            acknowledged += len(ledger.accepted)
            lost += sum(not set(runs) <= kept for runs in ledger.accepted.values())
            if lost:
                break
    say(f"synchronous=normal, {cuts} power cuts: {lost} of {acknowledged} lost")
    assert lost, "the cut does not lose unsynced commits: the test above proves nothing"
