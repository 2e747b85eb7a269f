"""A queue hands out every run once, in arrival order per key, also if it does not fit in memory."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from tests.support.gates import declare
from turnout.service.dispatch.blocked import Blocked, Key
from turnout.service.dispatch.memory import WINDOW, Memory
from turnout.service.dispatch.queue import Queue
from turnout.service.domain.conditions import Conditions
from turnout.service.domain.run import RunState
from turnout.service.flowcontrol.admission import Admission, FlowGates
from turnout.service.flowcontrol.limit import limit
from turnout.service.flowcontrol.priority import NORMAL
from turnout.service.journal.records import NewRun, Queued

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ORDER_X: Key = ("order", "x", 0)
LIMIT_X: Key = ("limit", "x", NORMAL)


def queued(seq: int, order_key: str | None = None, limit_key: str | None = None) -> Queued:
    return Queued(
        seq=seq, arrival=seq, id=f"run{seq}", flow="bill", order_key=order_key,
        keys={"limit": limit_key}, queued_at=NOW,
        due_at=None, isolated=False,
    )  # fmt: skip


def due(seq: int) -> Queued:
    run = queued(seq, limit_key="x")
    run.due_at, run.is_due = datetime.fromtimestamp(seq, UTC), True
    return run


def new(seq: int) -> NewRun:
    return NewRun(id=f"run{seq}", flow="bill", state=RunState.QUEUED, seq=seq)


def fresh(memory: int = 0, slots: int = 1000) -> Queue:
    gates = FlowGates(Admission(slots))
    gates.declare(declare(concurrency=limit(1, per=lambda event: event.id)), NOW)
    queue = Queue("bill", Memory(memory), gates)
    read(queue, [])
    return queue


def read(queue: Queue, rows: Iterable[Queued], *, more: bool = False) -> None:
    """Answer a read of the journal."""
    _, epoch = queue.start_reading(NORMAL)
    queue.finish_reading(NORMAL, list(rows), more=more, epoch=epoch)


def arrive(queue: Queue, *seqs: int, **keys: str) -> None:
    for seq in seqs:
        queue.arrived(new(seq), queued(seq, **keys))


def take_all(queue: Queue) -> list[int]:
    taken = []
    while queue.first(NORMAL) is not None:
        taken.append(queue.take_to_start(NORMAL).seq)
    return taken


def test_a_new_run_starts_on_insert_only_when_nothing_older_waits() -> None:
    queue = fresh()
    assert queue.reserve(new(1), NOW)
    queue.end_starting()
    waits = new(2)
    queue.expect(waits)
    assert not queue.idle
    queue.discard_arriving(waits)
    assert queue.idle
    arrive(queue, 3)
    assert not queue.reserve(new(4), NOW)
    assert queue.waiting == 2


def newest(seq: int, key: str = "a") -> NewRun:
    run = new(seq)
    run.keys, run.conditions = {"mode": key, "limit": None}, Conditions(mode="latest")
    return run


def outdated(seq: int, key: str = "a") -> Queued:
    run = queued(seq)
    run.keys = {"mode": key, "limit": None}
    return run


def test_a_run_is_outdated_while_a_newer_one_is_written_that_takes_its_place() -> None:
    queue = fresh()
    first, other = outdated(1), outdated(2, "b")
    read(queue, [first, other])
    assert not queue.is_outdated(first)
    queue.expect(newest(3))
    assert queue.is_outdated(first)
    assert not queue.is_outdated(other)
    queue.expect(newest(4))
    queue.discard_arriving(newest(3))
    assert queue.is_outdated(first)
    first.begun = True
    assert not queue.is_outdated(first), "an operator has queued it again"
    first.begun = False
    queue.arrived(newest(4), outdated(4))
    assert not queue.is_outdated(first)


def test_a_new_run_starts_on_insert_when_all_that_wait_are_outdated_by_it() -> None:
    queue = fresh()
    read(queue, [outdated(1)])
    queue.expect(newest(2))
    assert not queue.reserve(newest(3, "b"), NOW), "those of another key wait for their turn"
    queue.discard_arriving(newest(3, "b"))
    assert not queue.reserve(new(4), NOW), "it ends none"
    queue.discard_arriving(new(4))
    assert queue.reserve(newest(5), NOW)
    read(queue, [outdated(6, "b")])
    assert not queue.reserve(newest(7), NOW)


def test_a_new_run_never_waits_with_its_key_but_takes_it_with_a_slot() -> None:
    queue = fresh(slots=1)
    first, second = new(1), new(2)
    first.order_key = second.order_key = "x"
    assert queue.reserve(first, NOW)
    assert not queue.reserve(second, NOW)
    queue.discard_arriving(second)
    queue.leave(first)
    assert not queue.gates.order.held()


def test_rows_beyond_the_window_stay_in_memory_within_its_bound_and_release_it() -> None:
    queue = fresh(memory=10_000)
    arrive(queue, *range(1, WINDOW * 2))
    assert queue.waiting == WINDOW
    shared = Memory(WINDOW * 1024 + 10_000)
    queue = Queue("bill", shared, FlowGates(Admission(1)))
    read(queue, [])
    arrive(queue, *range(1, WINDOW * 2))
    assert WINDOW < queue.waiting < WINDOW + 20
    assert not queue.head(NORMAL).keeps_new
    assert [queue.head(NORMAL).take().seq for _ in range(3)] == [1, 2, 3]
    assert queue.taken == 3
    queue.clear()
    assert shared.left == WINDOW * 1024 + 10_000


def test_rows_beyond_the_window_stay_in_the_journal_and_are_read_in_order() -> None:
    queue = fresh()
    arrive(queue, *range(1, WINDOW + 10))
    assert take_all(queue) == list(range(1, WINDOW + 1))
    assert queue.lacks(NORMAL)
    read(queue, (queued(seq) for seq in range(WINDOW + 1, WINDOW + 10)))
    assert take_all(queue) == list(range(WINDOW + 1, WINDOW + 10))
    assert not queue.lacks(NORMAL)


def test_a_run_that_arrives_while_the_journal_is_read_comes_once() -> None:
    queue = fresh()
    _, epoch = queue.start_reading(NORMAL)
    arrive(queue, 1)
    queue.finish_reading(NORMAL, [queued(1)], more=False, epoch=epoch)
    assert queue.lacks(NORMAL)  # it may have been inserted after the read: read once more
    read(queue, [])
    assert take_all(queue) == [1]


def test_a_run_that_ends_while_the_journal_is_read_is_not_taken_from_the_answer() -> None:
    queue = fresh()
    _, epoch = queue.start_reading(NORMAL)
    queue.forget(queued(1))
    queue.finish_reading(NORMAL, [queued(1), queued(2)], more=False, epoch=epoch)
    assert take_all(queue) == [2]
    queue.clear()
    read(queue, [queued(1)])  # an operator has queued it again
    assert take_all(queue) == [1]


def test_what_ends_while_two_reads_go_on_is_in_neither_answer() -> None:
    queue = fresh()
    queue.start_read()  # of due runs
    _, epoch = queue.start_reading(NORMAL)
    queue.forget(due(1))
    queue.finish_reading(NORMAL, [queued(2)], more=False, epoch=epoch)
    assert not queue.is_queued(due(1))
    queue.end_read()
    assert queue.is_queued(due(1))


def test_a_run_that_is_queued_again_during_a_read_that_it_ended_in_is_in_the_next_answer() -> None:
    queue = fresh()
    queue.start_read()  # of due runs
    queue.forget(queued(1))
    queue.clear()  # an operator has queued it again
    read(queue, [queued(1)])
    assert take_all(queue) == [1]


def test_rows_read_before_a_clear_are_ignored() -> None:
    queue = fresh()
    _, epoch = queue.start_reading(NORMAL)
    queue.clear()
    queue.finish_reading(NORMAL, [queued(5)], more=False, epoch=epoch)
    assert queue.head(NORMAL).first is None
    assert queue.start_reading(NORMAL)[0] == 0  # 1 to 4 may be there too


def test_runs_of_an_evicted_key_read_before_a_clear_are_ignored() -> None:
    queue = fresh()
    evict(queue, ORDER_X, WINDOW + 1)
    wake(queue, ORDER_X, WINDOW + 1)
    key, wakeups, epoch = queue.start_fetching()
    queue.clear()
    rows = [queued(WINDOW + 1, "x")]
    queue.finish_fetching(key, rows, up_to=None, wakeups=wakeups.count, epoch=epoch)
    assert not list(queue.rows())


def test_the_turn_of_a_run_that_ends_while_its_evicted_key_is_read_goes_to_the_next() -> None:
    queue = fresh()
    evict(queue, ORDER_X, WINDOW + 2)
    wake(queue, ORDER_X, WINDOW + 1)
    assert len(take_all(queue)) == WINDOW
    key, wakeups, epoch = queue.start_fetching()
    queue.forget(queued(WINDOW + 1, "x"))
    rows = [queued(WINDOW + 1, "x"), queued(WINDOW + 2, "x")]
    queue.finish_fetching(key, rows, up_to=None, wakeups=wakeups.count, epoch=epoch)
    assert take_all(queue) == [WINDOW + 2]
    assert queue.is_queued(queued(WINDOW + 1, "x")), "the read has ended"


def evict(queue: Queue, key: Key, count: int) -> None:
    """Block so many runs by a key; those beyond the window are evicted."""
    for seq in range(1, count + 1):
        keys = {"order_key": "x"} if key[0] == "order" else {"limit_key": "x"}
        arrive(queue, seq, **keys)
        queue.blocked.add(queue.head(NORMAL).take(), key)


def wake(queue: Queue, key: Key, count: int) -> None:
    for _ in range(count):
        queue.wake_key(key)


def test_a_blocked_run_is_woken_when_its_key_is_free_and_blocks_no_other() -> None:
    queue = fresh()
    evict(queue, ORDER_X, 2)
    assert ORDER_X in queue.blocked
    assert ("order", "y", 0) not in queue.blocked
    wake(queue, ORDER_X, 1)
    assert ORDER_X in queue.blocked
    wake(queue, ORDER_X, 1)
    assert ORDER_X not in queue.blocked
    assert take_all(queue) == [1, 2]


def test_a_woken_run_that_is_blocked_again_keeps_its_place() -> None:
    queue = fresh()
    evict(queue, ORDER_X, WINDOW + 1)
    wake(queue, ORDER_X, 1)
    queue.blocked.add(queue.head(NORMAL).take(), ORDER_X)
    assert queue.blocked.count == WINDOW
    wake(queue, ORDER_X, 3)
    assert take_all(queue) == [1, 2, 3]


def test_blocked_runs_beyond_the_bound_are_evicted_and_their_wakeups_pend() -> None:
    queue = fresh()
    evict(queue, ORDER_X, WINDOW + 1)
    assert queue.blocked.count == WINDOW
    wake(queue, ORDER_X, WINDOW)
    assert ORDER_X in queue.blocked  # the evicted one
    wake(queue, ORDER_X, 1)
    key, wakeups, epoch = queue.start_fetching()
    assert (key, wakeups.count, wakeups.after) == (ORDER_X, 1, 0)
    assert ORDER_X in queue.blocked  # while it is read, nothing newer may overtake it
    rows = [queued(WINDOW + 1, "x")]
    queue.finish_fetching(key, rows, up_to=None, wakeups=wakeups.count, epoch=epoch)
    assert take_all(queue)[-1] == WINDOW + 1
    assert ORDER_X not in queue.blocked


def test_an_evicted_key_is_read_for_every_pending_wakeup_up_to_the_window() -> None:
    queue = fresh()
    evict(queue, LIMIT_X, WINDOW + 4)
    arrive(queue, WINDOW + 5)
    wake(queue, LIMIT_X, WINDOW + 1)
    key, wakeups, epoch = queue.start_fetching()
    wake(queue, LIMIT_X, 1)  # during the read
    rows = [queued(seq) for seq in range(WINDOW + 1, WINDOW + 7)]  # two belong to the window
    queue.finish_fetching(key, rows, up_to=WINDOW + 6, wakeups=wakeups.count, epoch=epoch)
    assert not queue.blocked.wakeups
    wake(queue, LIMIT_X, 2)
    assert LIMIT_X not in queue.blocked, "runs of the window do not block the key"
    assert take_all(queue) == list(range(1, WINDOW + 6))


def test_a_run_whose_key_became_free_does_not_overtake_an_older_run_of_another_key() -> None:
    queue = fresh()
    head, (_, epoch) = queue.head(NORMAL), queue.start_reading(NORMAL)
    queue.finish_reading(NORMAL, [queued(5)], up_to=6, more=False, epoch=epoch, passed_over=True)
    rows = [queued(seq, limit_key="x") for seq in (4, 6)]  # left in the journal by that read
    queue.finish_fetching(LIMIT_X, rows, up_to=None, wakeups=2, epoch=epoch)
    assert [run.seq for run in head.woken] == [4, 6]
    assert take_all(queue) == [4, 5, 6]


def test_a_run_of_an_evicted_key_that_has_not_asked_goes_before_newer_ones_that_are_read() -> None:
    queue = fresh()
    head, (_, epoch) = queue.head(NORMAL), queue.start_reading(NORMAL)
    rows = [queued(5, "x"), queued(8, "x")]  # an operator retried them
    queue.finish_reading(NORMAL, rows, up_to=8, more=False, epoch=epoch, passed_over=True)
    read_of_x = [queued(6, "x")]  # left in the journal by that read
    queue.finish_fetching(ORDER_X, read_of_x, up_to=6, wakeups=1, epoch=epoch)
    assert [run.seq for run in head.woken] == [5]
    assert [run.seq for run in head.window] == [8]
    assert queue.blocked.count == 1
    wake(queue, ORDER_X, 1)
    assert [run.seq for run in head.woken] == [5, 6]


def test_an_evicted_run_is_not_passed_over_when_a_newer_one_gives_its_turn_away() -> None:
    queue = fresh()
    evict(queue, LIMIT_X, WINDOW)
    _, epoch = queue.start_reading(NORMAL)
    queue.finish_reading(NORMAL, [], up_to=WINDOW + 3, more=False, epoch=epoch, passed_over=True)
    assert not queue.blocked.add(queued(WINDOW + 2, limit_key="x"), LIMIT_X)
    assert not queue.blocked.add(queued(WINDOW + 1, limit_key="x"), LIMIT_X)
    wake(queue, LIMIT_X, WINDOW)
    assert queue.blocked.next(LIMIT_X, after=WINDOW + 2) is None
    key, wakeups, epoch = queue.start_fetching()
    assert wakeups.after == WINDOW
    assert not queue.blocked.add(queued(WINDOW + 3, limit_key="x"), LIMIT_X)  # during the read
    rows = [queued(seq, limit_key="x") for seq in (WINDOW + 1, WINDOW + 2)]
    queue.finish_fetching(key, rows, up_to=None, wakeups=1, epoch=epoch)
    wake(queue, LIMIT_X, 2)
    key, wakeups, epoch = queue.start_fetching()
    assert (key, wakeups.count) == (LIMIT_X, 1)


def test_a_run_that_waits_for_its_ordering_key_first_stays_when_a_limit_key_is_read() -> None:
    queue = fresh()
    head, (_, epoch) = queue.head(NORMAL), queue.start_reading(NORMAL)
    rows = [queued(5, "x", "x")]
    queue.finish_reading(NORMAL, rows, up_to=8, more=False, epoch=epoch, passed_over=True)
    queue.finish_fetching(LIMIT_X, [], up_to=None, wakeups=1, epoch=epoch)
    assert [run.seq for run in head.window] == [5]


def test_due_and_queued_runs_take_turns_the_oldest_of_each_also_of_woken_ones() -> None:
    queue = fresh()
    queue.blocked.add(queued(1), ORDER_X)
    queue.blocked.add(due(8), LIMIT_X)
    arrive(queue, 2, 3, 4)
    for seq in (7, 9):
        queue.add_due(due(seq))
    wake(queue, ORDER_X, 1)
    wake(queue, LIMIT_X, 1)
    assert take_all(queue) == [1, 7, 2, 8, 3, 9, 4]
    assert queue.empty


def test_a_due_run_goes_before_those_that_are_due_later_whichever_is_added_first() -> None:
    """The queue may be cleared between two due runs of one read; the first comes again then."""
    queue = fresh()
    for seq in (7, 9, 8, 5):
        queue.add_due(due(seq))
    assert take_all(queue) == [5, 7, 8, 9]


def resumed(seq: int) -> Queued:
    run = due(seq)
    run.resumes = True
    return run


def test_a_resumed_run_waits_for_older_ones_that_are_not_read_yet() -> None:
    queue = fresh()
    queue.clear()
    queue.add_due(resumed(4))
    assert queue.first(NORMAL) is None, "the journal may hold an older one"
    read(queue, [queued(2), queued(6)])
    assert take_all(queue) == [2, 4, 6]


def test_runs_that_keep_a_slot_take_their_turns_like_all_others() -> None:
    queue = fresh()
    for run, holds in ((due(9), True), (resumed(5), True), (due(7), False), (resumed(3), False)):
        queue.head(NORMAL).add_due(run, holds=holds)
    arrive(queue, 2, 4, 8)
    assert take_all(queue) == [2, 7, 3, 9, 4, 5, 8]


def test_only_runs_that_keep_a_slot_are_handed_out_while_no_other_slot_is_free() -> None:
    queue = fresh()
    queue.gates.declare(declare(concurrency=limit(1, hold="run")), NOW)
    keeps = due(9)
    queue.gates.held[0].hold(keeps)
    queue.add_due(keeps)
    queue.add_due(due(7))
    arrive(queue, 1, 2)
    assert take_all(queue) == [9, 1, 7, 2], "the others are refused, but not passed over"


def test_runs_whose_keys_became_free_start_in_the_order_they_arrived() -> None:
    queue = fresh()
    for seq, key in ((5, "x"), (6, "y")):
        queue.blocked.add(queued(seq), ("limit", key, NORMAL))
    queue.wake_key(("limit", "y", NORMAL))
    queue.wake_key(("limit", "x", NORMAL))
    assert take_all(queue) == [5, 6]


def test_due_and_queued_runs_take_turns_at_a_limit_and_due_ones_are_never_evicted() -> None:
    blocked = Blocked()
    for seq in range(1, WINDOW + 2):
        blocked.add(queued(seq, limit_key="x"), LIMIT_X)
    assert list(blocked.evicted) == [LIMIT_X]
    assert blocked.add(due(1001), LIMIT_X)
    assert blocked.add(due(1000), LIMIT_X)
    woken = [blocked.next(LIMIT_X) for _ in range(5)]
    assert [run.seq for run in woken if run is not None] == [1, 1000, 2, 1001, 3]


def test_a_rename_moves_what_runs_and_arrives_to_the_new_name() -> None:
    admission = Admission(10)
    old = Queue("old", Memory(), FlowGates(admission))
    name = Queue("name", Memory(), FlowGates(admission))
    for queue in (old, name):
        read(queue, [])
    running, arriving = new(1), new(2)
    running.order_key = "x"
    assert old.reserve(running, NOW)
    old.expect(arriving)
    name.take_over(old, NOW)
    assert (running.flow, arriving.flow) == ("name", "name")
    assert (name.starting, name.waiting, list(name.gates.order.holders("x"))) == (1, 1, ["run1"])
    name.leave(running)
    assert not name.gates.inside
    assert admission.slots.free == 10


def test_a_due_run_whose_turn_it_is_keeps_it_when_its_flow_is_renamed() -> None:
    old, renamed = fresh(), fresh()
    arrive(old, 1)
    assert old.take_to_start(NORMAL).seq == 1
    renamed.take_over(old, NOW)
    arrive(renamed, 2)
    renamed.add_due(due(7))
    assert take_all(renamed) == [7, 2]


def test_a_turn_that_is_passed_on_is_not_offered_to_evicted_runs_that_have_had_it() -> None:
    queue = fresh()
    evict(queue, LIMIT_X, WINDOW + 4)
    wake(queue, LIMIT_X, WINDOW)
    queue.wake_key(LIMIT_X, after=WINDOW + 2)
    queue.blocked.add(queued(WINDOW + 1, limit_key="x"), LIMIT_X)  # it comes back meanwhile
    _, wakeups, _ = queue.start_fetching()
    assert (wakeups.count, wakeups.after) == (1, WINDOW)
    for after, together in [(WINDOW + 2, WINDOW + 2), (0, 0)]:
        queue.wake_key(LIMIT_X, after=after)
        assert queue.blocked.wakeups[LIMIT_X].after == together


def test_a_woken_run_that_has_ended_gives_its_turn_to_the_next_one() -> None:
    queue = fresh()
    for seq in (1, 2):
        queue.blocked.add(queued(seq, limit_key="x"), LIMIT_X)
    queue.wake_key(LIMIT_X)
    ended = queue.head(NORMAL).first
    assert ended is not None
    queue.forget(ended)
    assert queue.drop_ended(ended, NORMAL)
    assert take_all(queue) == [2]
    assert not queue.ended


def test_a_due_run_that_has_ended_is_not_behind_its_key_any_more() -> None:
    queue = fresh()
    for run in (due(1), due(2)):
        queue.blocked.add(run, LIMIT_X)
    queue.forget(due(1))
    queue.wake_key(LIMIT_X)
    assert take_all(queue) == [2]
    assert LIMIT_X not in queue.blocked
