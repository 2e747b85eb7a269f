"""A circuit breaker: when it opens, who tries again, and what ends the wait."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from tests.support.gates import NOW, Asking
from turnout import dependency
from turnout.service.domain.breaker import BreakerState
from turnout.service.domain.run import DependencyPause, Outcome, RunError, RunState
from turnout.service.flowcontrol.dependency import Breaker, Dependency

from .breakers import CRM, DONE, SECOND, SILENT, Flows, broken, flows

__all__ = ["flows"]  # the fixture


# ---------------------------------------------------------------- what it does


def test_it_opens_when_the_share_of_the_last_attempts_has_failed(flows: Flows) -> None:
    for outcome in (broken("crm"), DONE, DONE, DONE, broken("crm")):
        flows.run(outcome)
    assert flows.state == "closed", "the first failure is none of the last four"
    flows.run(broken("crm"), "load")
    assert flows.state == "open"
    assert flows.written[-1].reason == (
        "2 of the last 4 attempts failed, the last one: ConnectionError: refused"
    )


def test_while_it_is_open_all_that_need_it_wait_and_others_do_not(flows: Flows) -> None:
    flows.open()
    assert flows.waits_until() == flows.waits_until("load") == NOW + 30 * SECOND
    flows.run(DONE, "free")


def test_one_run_goes_alone_and_its_success_closes(flows: Flows) -> None:
    flows.open()
    flows.pass_(30)
    probe = flows.start("load")
    assert flows.state == "probing"
    assert flows.waits_until() == flows.now + 30 * SECOND
    flows.end(probe, DONE)
    assert flows.state == "closed"
    assert flows.freed == ["crm"], "those who wait are asked at once"
    flows.start()


def test_a_probe_that_fails_opens_it_for_as_long_again(flows: Flows) -> None:
    flows.open()
    flows.pass_(40)
    flows.run(broken("crm"))
    assert flows.waits_until() == flows.now + 30 * SECOND
    assert flows.written[-1].reason == "the probe failed: ConnectionError: refused"


@pytest.mark.parametrize("outcome", [None, SILENT, Outcome(state=RunState.QUEUED, counts=False)])
def test_a_probe_without_a_verdict_is_followed_by_another_at_once(
    flows: Flows, outcome: Outcome | None
) -> None:
    flows.open()
    flows.pass_(30)
    for _ in range(3):
        flows.end(flows.start(), outcome)
        assert flows.state == "probing"
    assert flows.freed == ["crm"] * 3
    flows.run(DONE)
    assert flows.state == "closed"


def test_a_probe_that_hangs_has_a_deadline_and_its_late_success_still_counts(flows: Flows) -> None:
    flows.open()
    flows.pass_(30)
    slow = flows.start()
    flows.pass_(30)
    second = flows.start()
    assert flows.waits_until() == flows.now + 30 * SECOND
    flows.end(slow, DONE)
    assert flows.state == "closed"
    flows.end(second, broken("crm"))
    assert flows.breakers.statuses()[0].failed == 0, "it began before the breaker closed"


def test_failed_probes_are_free_for_a_day_since_it_was_last_closed(flows: Flows) -> None:
    def is_free(run: Asking) -> bool:
        return bool(flows.breakers.probed_by(run, flows.flows["bill"].needs, flows.now))

    assert not is_free(flows.start())
    flows.open()
    for hours, free in ((10, True), (10, True), (10, False)):
        flows.pass_(3600 * hours)
        probe = flows.start()
        assert is_free(probe) is free
        flows.end(probe, broken("crm"))
        flows = flows.restarted()
    flows.pass_(3600)
    flows.run(DONE)
    flows.open()
    flows.pass_(30)
    slow = flows.start()
    flows.pass_(30)
    second = flows.start()
    assert is_free(slow) and is_free(second)
    flows.end(second, DONE)
    assert is_free(slow), "it began as a probe, whatever has become of the breaker"


def test_attempts_of_an_earlier_generation_count_for_nothing(flows: Flows) -> None:
    early = [flows.start() for _ in range(6)]
    flows.open()
    flows.end(early.pop(), DONE)
    assert flows.state == "open"
    flows.pass_(30)
    probe = flows.start()
    flows.end(early.pop(), DONE)
    flows.end(early.pop(), broken("crm"))
    assert flows.state == "probing"
    flows.end(probe, DONE)
    for run in early:
        flows.end(run, broken("crm"))
    assert flows.state == "closed"


def test_what_waited_is_released_at_ten_a_second_and_what_is_new_at_once(flows: Flows) -> None:
    flows.open()
    waiting_since = flows.now
    flows.pass_(30)
    flows.run(DONE)
    flows.pass_(1)
    started = []
    for _ in range(20):
        run = flows.ask(since=waiting_since)
        while not run.token:
            assert flows.answer is not None and isinstance(flows.answer.answer, datetime)
            flows.now = flows.answer.answer
            run = flows.ask(since=waiting_since)
        started.append(flows.now)
        flows.start("load"), flows.start("load", since=flows.now)
    assert started[-1] - started[0] == 19 * SECOND / 10
    assert len(started) == len(set(started))


def test_a_run_pauses_it_until_then_but_never_for_longer_than_an_hour(flows: Flows) -> None:
    pause = DependencyPause("crm", NOW + timedelta(hours=3))
    flows.run(Outcome(state=RunState.RETRYING, error=RunError("Retry", "429"), pause=pause))
    assert flows.waits_until() == NOW + timedelta(hours=1)
    assert flows.written[-1].reason == "run 1 of bill asked: Retry: 429"


def test_a_pause_makes_an_open_one_wait_longer_and_never_shorter(flows: Flows) -> None:
    early = [flows.start(), flows.start()]
    flows.open()
    for run, seconds, until in zip(early, (10, 50), (30, 50), strict=True):
        pause = DependencyPause("crm", NOW + seconds * SECOND)
        flows.end(run, Outcome(state=RunState.RETRYING, pause=pause))
        assert flows.waits_until() == NOW + until * SECOND
    assert [each.generation for each in flows.written] == [1, 1]


# ---------------------------------------------------------------- half open for days


def test_a_process_that_dies_with_the_probe_lets_the_next_one_try(flows: Flows) -> None:
    flows.open()
    flows.pass_(30)
    flows.start()
    again = flows.restarted()
    assert again.state == "probing"
    again.run(DONE, "load")
    assert again.restarted().state == "closed"


def test_a_flow_that_is_gone_with_its_probe_lets_another_flow_try(flows: Flows) -> None:
    flows.open()
    flows.pass_(30)
    flows.start("load")
    flows.serve({"bill": {"needs": CRM}})
    flows.pass_(30)
    flows.run(DONE, "bill")
    assert flows.state == "closed"


def test_a_flow_that_needs_it_no_more_gives_its_probe_up_at_once(flows: Flows) -> None:
    flows.open()
    flows.pass_(30)
    probe = flows.start("load")
    flows.serve({"bill": {"needs": CRM}, "load": {}})
    flows.run(DONE, "bill")
    flows.end(probe, broken("crm"))
    assert flows.state == "closed"


def test_a_renamed_flow_keeps_its_probe(flows: Flows) -> None:
    flows.open()
    flows.pass_(30)
    probe = flows.start("load")
    flows.gates["bill"].take_over(flows.gates.pop("load"), flows.now)
    probe.flow = "bill"
    flows.end(probe, DONE)
    assert flows.state == "closed"


def test_a_paused_or_deleted_run_at_the_head_of_one_flow_holds_up_no_other(flows: Flows) -> None:
    flows.open()
    flows.pass_(86_400)  # `load` is paused and never asks; nothing is reserved for it
    flows.run(DONE, "bill")
    assert flows.state == "closed"


def test_a_start_that_is_taken_back_lets_the_next_one_try(flows: Flows) -> None:
    flows.open()
    flows.pass_(30)
    deleted = flows.start()
    flows.end(deleted)  # the journal did not find it any more
    flows.run(DONE)
    assert flows.state == "closed"


def test_settings_of_a_reload_keep_the_state_and_what_was_counted(flows: Flows) -> None:
    flows.run(broken("crm"))
    flows.serve({"bill": {"needs": dependency("crm", open_after="20% of 10", probe="5s")}})
    flows.run(broken("crm"))
    assert flows.state == "open"
    assert flows.waits_until() == NOW + 5 * SECOND


def test_runs_inside_when_a_reload_declares_it_say_nothing_about_an_open_one(flows: Flows) -> None:
    flows.open()
    running = flows.start("free")
    flows.serve({"bill": {"needs": CRM}, "free": {"needs": CRM}})
    flows.end(running, DONE)
    assert flows.state == "open"


def test_a_clock_set_back_over_a_restart_keeps_it_open_no_longer(flows: Flows) -> None:
    flows.open()
    flows.now -= timedelta(hours=5)
    again = flows.restarted()
    assert again.waits_until() == again.now + 30 * SECOND
    again.pass_(30)
    again.run(DONE)
    again.now -= timedelta(hours=5)
    third = again.restarted()
    third.start(), third.start()


def test_what_waited_is_still_released_slowly_after_a_restart(flows: Flows) -> None:
    since = flows.now
    flows.open()
    flows.pass_(30)
    flows.run(DONE)
    again = flows.restarted()
    again.start(since=since)
    assert again.waits_until(since=since) == again.now + SECOND / 10


# ---------------------------------------------------------------- what is declared


def test_a_breaker_is_one_gate_that_flows_share(flows: Flows) -> None:
    first, second = flows.gates["bill"].needs, flows.gates["load"].needs
    assert first == second and isinstance(first[0], Breaker)
    assert isinstance(first[0].declared, Dependency)
    assert first[0].stored.state is BreakerState.CLOSED
