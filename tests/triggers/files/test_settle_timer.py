"""When a file is at rest: pure decisions over a clock the test moves."""

from __future__ import annotations

from turnout.triggers.files.scan import Version
from turnout.triggers.files.settle_timer import CONFIRM_SECONDS, READ_RETRY_SECONDS, SettleTimer

WALL = 1_000_000_000_000


def version(age_seconds: float, size: int = 1) -> Version:
    stamp = WALL - int(age_seconds * 1e9)
    return Version(1, size, stamp, stamp)


def test_an_old_file_is_due_at_once() -> None:
    timer = SettleTimer(1.0, trust_stamps=True)
    timer.see("a", version(60), now=5.0, wall_ns=WALL)
    assert timer.due(5.0, 10) == ["a"]


def test_a_fresh_file_is_due_when_its_stamps_are_old_enough() -> None:
    timer = SettleTimer(1.0, trust_stamps=True)
    timer.see("a", version(0.25), now=5.0, wall_ns=WALL)
    assert timer.due(5.74, 10) == []
    assert timer.due(5.75, 10) == ["a"]


def test_a_stamp_from_the_future_waits_the_whole_time_and_no_longer() -> None:
    timer = SettleTimer(1.0, trust_stamps=True)
    timer.see("a", version(-3600), now=5.0, wall_ns=WALL)
    assert timer.next_due() == 6.0


def test_old_mtime_with_a_fresh_inode_change_is_not_trusted() -> None:
    # a copy that sets the source's mtime before it has written everything
    timer = SettleTimer(1.0, trust_stamps=True)
    timer.see("a", version(3600)._replace(changed_ns=WALL), now=5.0, wall_ns=WALL)
    assert timer.next_due() == 6.0


def test_on_a_network_share_only_watching_counts() -> None:
    timer = SettleTimer(1.0, trust_stamps=False)
    timer.see("a", version(3600), now=5.0, wall_ns=WALL)
    assert timer.next_due() == 6.0


def test_each_change_starts_the_time_again() -> None:
    timer = SettleTimer(1.0, trust_stamps=False)
    timer.see("a", version(0, size=1), now=5.0, wall_ns=WALL)
    timer.see("a", version(0, size=2), now=5.9, wall_ns=WALL)
    assert timer.due(6.1, 10) == []
    assert timer.due(6.9, 10) == ["a"]
    timer.see("a", version(0, size=2), now=6.5, wall_ns=WALL)
    assert timer.next_due() == 6.9, "the same version changes nothing"


def test_a_file_renamed_into_place_is_confirmed_quickly_unless_touched() -> None:
    timer = SettleTimer(1.0, trust_stamps=True)
    timer.see("a", version(0), now=5.0, wall_ns=WALL, renamed=True)
    timer.see("b", version(0), now=5.0, wall_ns=WALL, renamed=True)
    timer.touched("b", now=5.0, wall_ns=WALL)
    assert timer.due(5.0 + CONFIRM_SECONDS, 10) == ["a"]
    assert timer.due(6.0, 10) == ["a", "b"]


def test_an_unreadable_file_is_put_off_until_patience_ends() -> None:
    timer, now = SettleTimer(0.0, trust_stamps=True), 5.0
    timer.see("a", version(9), now=now, wall_ns=WALL)
    for wait in READ_RETRY_SECONDS:
        assert timer.unreadable("a", now=now)
        assert timer.due(now + wait - 0.01, 10) == []
        now += wait
        assert timer.due(now, 10) == ["a"]
    assert not timer.unreadable("a", now=now)


def test_due_files_stay_due_until_dropped_and_come_in_shares() -> None:
    timer = SettleTimer(0.0, trust_stamps=True)
    for number in range(5):
        timer.see(f"f{number}", version(9), now=5.0, wall_ns=WALL)
    share = timer.due(5.0, 3)
    assert len(share) == 3
    assert len(timer.due(5.0, 10)) == 5
    for path in share:
        timer.drop(path)
    assert not set(timer.due(5.0, 10)) & set(share)
    assert len(timer) == 2
