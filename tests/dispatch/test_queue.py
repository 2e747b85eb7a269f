"""A queue hands out every run once, in arrival order per key, also if it does not fit in memory."""

from __future__ import annotations

from datetime import UTC, datetime

from turnout.service.dispatch.queue import WINDOW, Key, Memory, Queue
from turnout.service.journal.records import Queued


def queued(seq: int, order_key: str | None = None) -> Queued:
    return Queued(
        seq=seq, flow="bill", order_key=order_key, limit_key=None, due_at=None, isolated=False
    )


def due(seq: int) -> Queued:
    at = datetime.fromtimestamp(seq, UTC)
    return Queued(
        seq=seq, flow="bill", order_key=None, limit_key="x", due_at=at, isolated=False, is_due=True
    )


def fresh(memory: int = 0) -> Queue:
    queue = Queue("bill", Memory(memory))
    queue.finish_reading([], more=False, epoch=queue.start_reading())
    return queue


def test_a_lane_is_idle_only_when_nothing_older_waits() -> None:
    queue = fresh()
    assert queue.idle
    queue.arriving = 1
    assert not queue.idle
    queue.arriving = 0
    queue.enqueue(queued(1))
    assert not queue.idle


def test_rows_beyond_the_window_stay_in_memory_within_its_bound_and_release_it() -> None:
    queue = fresh(memory=10_000)
    for seq in range(1, WINDOW * 2):
        queue.enqueue(queued(seq))
    assert queue.memory.left <= 0
    held = len(queue.window)
    assert held == WINDOW
    queue = fresh(memory=WINDOW * 1024 + 10_000)
    for seq in range(1, WINDOW * 2):
        queue.enqueue(queued(seq))
    assert WINDOW < len(queue.window) < WINDOW + 20
    assert queue.unread
    assert [queue.take().seq for _ in range(3)] == [1, 2, 3]
    assert queue.taken == 3
    queue.clear()
    assert queue.memory.left == WINDOW * 1024 + 10_000


def test_rows_beyond_the_window_stay_in_the_journal_and_are_read_in_order() -> None:
    queue = fresh()
    for seq in range(1, WINDOW + 10):
        queue.enqueue(queued(seq))
    assert len(queue.window) == WINDOW
    assert queue.unread
    queue.window.clear()
    rows = [queued(seq) for seq in range(WINDOW + 1, WINDOW + 10)]
    queue.finish_reading(rows, more=False, epoch=queue.start_reading())
    assert [run.seq for run in queue.window] == list(range(WINDOW + 1, WINDOW + 10))
    assert not queue.unread


def test_a_run_that_arrives_while_the_journal_is_read_comes_once() -> None:
    queue = fresh()
    epoch = queue.start_reading()
    queue.enqueue(queued(1))
    queue.finish_reading([queued(1)], more=False, epoch=epoch)
    assert queue.unread  # it may have been inserted after the read: read once more
    queue.finish_reading([], more=False, epoch=queue.start_reading())
    assert [run.seq for run in queue.window] == [1]


def test_a_blocked_run_is_woken_when_its_key_is_free_and_blocks_no_other() -> None:
    queue = fresh()
    queue.block(queued(1, "x"), ("order", "x"))
    queue.block(queued(2, "x"), ("order", "x"))
    assert queue.has_blocked("x", None)
    assert not queue.has_blocked("y", None)
    queue.wake_next(("order", "x"))
    assert [run.seq for run in queue.woken] == [1]
    queue.wake_next(("order", "x"))
    assert not queue.has_blocked("x", None)


def test_a_woken_run_that_is_blocked_again_keeps_its_place() -> None:
    queue = fresh()
    key: Key = ("order", "x")
    for seq in range(1, WINDOW + 2):
        queue.block(queued(seq, "x"), key)
    queue.wake_next(key)
    queue.block(queue.take(), key)
    assert queue.blocked_count == WINDOW
    for _ in range(3):
        queue.wake_next(key)
    assert [run.seq for run in queue.woken] == [1, 2, 3]


def test_blocked_runs_beyond_the_bound_are_evicted_and_their_wakeups_pend() -> None:
    queue = fresh()
    for seq in range(1, WINDOW + 2):
        queue.enqueue(queued(seq, "x"))
        queue.block(queue.take(), ("order", "x"))
    assert queue.blocked_count == WINDOW
    for _ in range(WINDOW):
        queue.wake_next(("order", "x"))
    assert queue.has_blocked("x", None)  # the evicted one
    queue.wake_next(("order", "x"))
    assert queue.pending_wakeups.pop(("order", "x")) == 1
    assert queue.has_blocked("x", None)  # while it is read, nothing newer may overtake it
    queue.finish_fetching(("order", "x"), [queued(WINDOW + 1, "x")], more=False, wakeups=1)
    assert queue.woken[-1].seq == WINDOW + 1
    assert not queue.has_blocked("x", None)


def test_an_evicted_key_is_read_for_every_pending_wakeup_up_to_the_window() -> None:
    queue = fresh()
    key: Key = ("limit", "x")
    for seq in range(1, WINDOW + 5):
        queue.enqueue(queued(seq))
        queue.block(queue.take(), key)
    queue.enqueue(queued(WINDOW + 5))
    for _ in range(WINDOW + 1):
        queue.wake_next(key)
    wakeups = queue.pending_wakeups.pop(key)
    queue.wake_next(key)  # during the read
    rows = [queued(seq) for seq in range(WINDOW + 1, WINDOW + 7)]  # two belong to the window
    queue.finish_fetching(key, rows, more=True, wakeups=wakeups)
    assert [run.seq for run in queue.woken] == list(range(1, WINDOW + 3))
    assert [run.seq for run in queue.rows()] == [
        *range(1, WINDOW + 3), WINDOW + 5, WINDOW + 3, WINDOW + 4,
    ]  # fmt: skip
    assert not queue.pending_wakeups
    for _ in range(2):
        queue.wake_next(key)
    assert not queue.has_blocked(None, "x"), "runs of the window do not block the key"


def test_rows_read_before_a_clear_are_ignored() -> None:
    queue = fresh()
    epoch = queue.start_reading()
    queue.clear()
    queue.finish_reading([queued(5)], more=False, epoch=epoch)
    assert not queue.window
    assert queue.unread  # 1 to 4 may be there too
    assert queue.cursor == 0


def test_due_and_queued_runs_take_turns_and_woken_ones_go_first_of_their_kind() -> None:
    queue = fresh()
    for seq in (1, 2, 3):
        queue.enqueue(queued(seq))
    for seq in (7, 8):
        queue.due.append(due(seq))
    queue.wake(queued(4))
    queue.wake(due(9))
    assert [queue.take_to_start().seq for _ in range(7)] == [4, 9, 1, 7, 2, 8, 3]
    assert queue.empty


def test_due_and_queued_runs_take_turns_at_a_limit_and_due_ones_are_never_evicted() -> None:
    key: Key = ("limit", "x")
    queue = fresh()
    for seq in range(1, WINDOW + 2):
        queue.block(queued(seq), key)
    assert key in queue.evicted
    assert queue.block(due(1001), key)
    assert queue.block(due(1000), key)
    for _ in range(5):
        queue.wake_next(key)
    assert [run.seq for run in queue.woken] == [1, 2, 3]
    assert [run.seq for run in queue.woken_due] == [1000, 1001]
