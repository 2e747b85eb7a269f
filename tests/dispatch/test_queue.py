"""A lane hands out every run once, in arrival order per key, whatever does not fit in memory."""

from __future__ import annotations

from datetime import UTC, datetime

from turnout.service.dispatch.queue import WINDOW, Key, Lane, Memory
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


def fresh(memory: int = 0) -> Lane:
    lane = Lane("bill", Memory(memory))
    lane.read([], more=False, epoch=lane.start_reading())
    return lane


def test_a_lane_is_idle_only_when_nothing_older_waits() -> None:
    lane = fresh()
    assert lane.idle
    lane.arriving = 1
    assert not lane.idle
    lane.arriving = 0
    lane.arrived(queued(1))
    assert not lane.idle


def test_rows_beyond_the_window_stay_in_memory_while_it_lasts_and_give_it_back() -> None:
    lane = fresh(memory=10_000)
    for seq in range(1, WINDOW * 2):
        lane.arrived(queued(seq))
    assert lane.memory.left <= 0
    held = len(lane.window)
    assert held == WINDOW
    lane = fresh(memory=WINDOW * 1024 + 10_000)
    for seq in range(1, WINDOW * 2):
        lane.arrived(queued(seq))
    assert WINDOW < len(lane.window) < WINDOW + 20
    assert lane.unread
    assert [lane.take().seq for _ in range(3)] == [1, 2, 3]
    assert lane.taken == 3
    lane.forget_all()
    assert lane.memory.left == WINDOW * 1024 + 10_000


def test_rows_beyond_the_window_stay_in_the_journal_and_are_read_in_order() -> None:
    lane = fresh()
    for seq in range(1, WINDOW + 10):
        lane.arrived(queued(seq))
    assert len(lane.window) == WINDOW
    assert lane.unread
    lane.window.clear()
    rows = [queued(seq) for seq in range(WINDOW + 1, WINDOW + 10)]
    lane.read(rows, more=False, epoch=lane.start_reading())
    assert [run.seq for run in lane.window] == list(range(WINDOW + 1, WINDOW + 10))
    assert not lane.unread


def test_a_run_that_arrives_while_the_journal_is_read_comes_once() -> None:
    lane = fresh()
    epoch = lane.start_reading()
    lane.arrived(queued(1))
    lane.read([queued(1)], more=False, epoch=epoch)
    assert lane.unread  # it may have come after the read: look once more
    lane.read([], more=False, epoch=lane.start_reading())
    assert [run.seq for run in lane.window] == [1]


def test_a_parked_run_is_ready_when_its_key_is_free_and_blocks_no_other() -> None:
    lane = fresh()
    lane.park(queued(1, "x"), ("order", "x"))
    lane.park(queued(2, "x"), ("order", "x"))
    assert lane.has_parked("x", None)
    assert not lane.has_parked("y", None)
    lane.freed(("order", "x"))
    assert [run.seq for run in lane.ready] == [1]
    lane.freed(("order", "x"))
    assert not lane.has_parked("x", None)


def test_a_run_that_was_called_in_vain_waits_in_its_place() -> None:
    lane = fresh()
    key: Key = ("order", "x")
    for seq in range(1, WINDOW + 2):
        lane.park(queued(seq, "x"), key)
    lane.freed(key)
    lane.park(lane.take(), key)
    assert lane.parked_count == WINDOW
    for _ in range(3):
        lane.freed(key)
    assert [run.seq for run in lane.ready] == [1, 2, 3]


def test_parked_runs_beyond_the_bound_are_wanted_from_the_journal() -> None:
    lane = fresh()
    for seq in range(1, WINDOW + 2):
        lane.arrived(queued(seq, "x"))
        lane.park(lane.take(), ("order", "x"))
    assert lane.parked_count == WINDOW
    for _ in range(WINDOW):
        lane.freed(("order", "x"))
    assert lane.has_parked("x", None)  # the one that was dropped
    lane.freed(("order", "x"))
    assert lane.wanted.pop(("order", "x")) == 1
    assert lane.has_parked("x", None)  # while it is read, nothing newer may overtake it
    lane.fetched(("order", "x"), [queued(WINDOW + 1, "x")], more=False, free=1)
    assert lane.ready[-1].seq == WINDOW + 1
    assert not lane.has_parked("x", None)


def test_a_spilled_key_is_read_for_all_that_may_run_up_to_the_window() -> None:
    lane = fresh()
    key: Key = ("limit", "x")
    for seq in range(1, WINDOW + 5):
        lane.arrived(queued(seq))
        lane.park(lane.take(), key)
    lane.arrived(queued(WINDOW + 5))
    for _ in range(WINDOW + 1):
        lane.freed(key)
    free = lane.wanted.pop(key)
    lane.freed(key)  # while the journal is read
    rows = [queued(seq) for seq in range(WINDOW + 1, WINDOW + 7)]  # two are to come
    lane.fetched(key, rows, more=True, free=free)
    assert [run.seq for run in lane.ready] == list(range(1, WINDOW + 3))
    assert [run.seq for run in lane.rows()] == [
        *range(1, WINDOW + 3), WINDOW + 5, WINDOW + 3, WINDOW + 4,
    ]  # fmt: skip
    assert not lane.wanted
    for _ in range(2):
        lane.freed(key)
    assert not lane.has_parked(None, "x"), "those to come are no more than waited for"


def test_what_was_read_before_everything_was_forgotten_does_not_count() -> None:
    lane = fresh()
    epoch = lane.start_reading()
    lane.forget_all()
    lane.read([queued(5)], more=False, epoch=epoch)
    assert not lane.window
    assert lane.unread  # 1 to 4 may be there too
    assert lane.cursor == 0


def test_due_and_queued_runs_take_turns_and_what_was_called_goes_first_in_its_own() -> None:
    lane = fresh()
    for seq in (1, 2, 3):
        lane.arrived(queued(seq))
    for seq in (7, 8):
        lane.due.append(due(seq))
    lane.call_up(queued(4))
    lane.call_up(due(9))
    assert [lane.starts().seq for _ in range(7)] == [4, 9, 1, 7, 2, 8, 3]
    assert lane.empty


def test_due_and_queued_runs_take_turns_at_a_limit_and_due_ones_never_spill() -> None:
    key: Key = ("limit", "x")
    lane = fresh()
    for seq in range(1, WINDOW + 2):
        lane.park(queued(seq), key)
    assert key in lane.spilled
    assert lane.park(due(1001), key)
    assert lane.park(due(1000), key)
    for _ in range(5):
        lane.freed(key)
    assert [run.seq for run in lane.ready] == [1, 2, 3]
    assert [run.seq for run in lane.called] == [1000, 1001]
