"""The gate of a throttle: what counts, for whom, and what cannot be meant."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.support.gates import NOW, Asking, declare, gates, refused_by
from turnout import limit, throttle
from turnout.service.domain.errors import SetupError
from turnout.service.domain.run import Start
from turnout.service.flowcontrol.admission import Admission
from turnout.service.flowcontrol.gate import Refusal
from turnout.service.project import Project


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def refusal(flow: Any, run: Asking, seconds: float) -> Refusal:
    answer = flow.ask(run, at(seconds))
    assert answer is not None
    return answer  # type: ignore[no-any-return]


# ---------------------------------------------------------------- the gate


def test_no_more_start_than_the_rate_says_and_the_next_at_the_first_free_instant() -> None:
    paced = gates(rate=throttle("2/10s"))
    for number, seconds in enumerate((0, 4)):
        assert refused_by(paced, Asking(str(number)), at(seconds)) is None
    assert refusal(paced, Asking("x"), 5).answer == at(10)
    assert refused_by(paced, Asking("x"), at(9.999999)) == "throttle"
    assert refused_by(paced, Asking("x"), at(10)) is None
    assert refusal(paced, Asking("y"), 10).answer == at(14)


def test_what_has_started_counts_after_it_has_ended() -> None:
    paced = gates(rate=throttle("1/10s"))
    run = Asking("1")
    assert refused_by(paced, run, at(0)) is None
    paced.leave(run, keeps_key=False)
    assert refused_by(paced, Asking("2"), at(9)) == "throttle"


def test_each_key_has_the_rate_to_itself_and_no_key_waits_for_nobody() -> None:
    paced = gates(rate=throttle("1/10s", per=lambda event: event.id))
    assert refused_by(paced, Asking("1", keys={"throttle": "a"})) is None
    assert refused_by(paced, Asking("2", keys={"throttle": "a"})) == "throttle"
    assert refused_by(paced, Asking("3", keys={"throttle": "b"})) is None
    for number in "456":
        free = Asking(number, keys={"throttle": None})
        assert refused_by(paced, free) is None
        assert not free.starts


def test_a_run_that_resumes_is_neither_counted_nor_refused() -> None:
    paced = gates(rate=throttle("1/10s"))
    for number in "123":
        resumed = Asking(number, resumes=True)
        assert refused_by(paced, resumed) is None
        assert not resumed.starts
    assert refused_by(paced, Asking("4")) is None
    assert refused_by(paced, Asking("5", resumes=True)) is None


def test_a_start_is_recorded_with_the_instant_at_which_it_was_decided() -> None:
    paced = gates(rate=[throttle("5/10s"), throttle("crm", "9/m", per=lambda event: event.id)])
    run = Asking("1", keys={"throttle:crm": "acme"})
    assert refused_by(paced, run, at(3)) is None
    assert list(run.starts) == [
        Start("bill", "throttle", "", at(3), at(13)),
        Start("", "throttle:crm", "acme", at(3), at(63)),
    ]


def test_a_run_that_another_gate_refuses_is_not_counted() -> None:
    paced = gates(rate=throttle("1/10s"), concurrency=limit(1))
    first = Asking("1")
    assert refused_by(paced, first, at(0)) is None
    assert refused_by(paced, Asking("2"), at(20)) == "flow"
    paced.leave(first, keeps_key=False)
    assert refused_by(paced, Asking("2"), at(20)) is None


def test_two_rates_of_a_flow_are_both_kept() -> None:
    paced = gates(rate=[throttle("2/s"), throttle("3/10s")])
    assert [rule.rule_id for rule in declare(rate=[throttle("2/s"), throttle("3/10s")]).rate] == [
        "throttle",
        "throttle.2",
    ]
    for seconds in (0, 0, 1):
        assert refused_by(paced, Asking("1"), at(seconds)) is None
    assert refusal(paced, Asking("2"), 2).answer == at(10)


def test_flows_share_a_throttle_by_its_name() -> None:
    admission, crm = Admission(10), throttle("crm", "2/10s")
    bill, remind = gates(admission, rate=crm), gates(admission, rate=crm)
    own = gates(admission, rate=throttle("2/10s"))
    assert refused_by(bill, Asking("1")) is None
    assert refused_by(remind, Asking("2")) is None
    assert refused_by(bill, Asking("3")) == "throttle"
    assert refused_by(remind, Asking("3")) == "throttle"
    assert refused_by(own, Asking("3")) is None


def test_a_start_that_did_not_happen_is_given_back() -> None:
    paced = gates(rate=throttle("1/10s"))
    run = Asking("1")
    assert refused_by(paced, run) is None
    paced.give_back(run)
    paced.leave(run, keeps_key=False)
    assert not run.starts
    assert refused_by(paced, Asking("2")) is None


def test_a_new_rate_counts_what_has_started_under_the_old_one() -> None:
    paced = gates(rate=throttle("3/10s"))
    for number in "123":
        assert refused_by(paced, Asking(number)) is None
    paced.declare(declare(rate=throttle("5/10s")), NOW)
    for number in "45":
        assert refused_by(paced, Asking(number)) is None
    assert refused_by(paced, Asking("6")) == "throttle"
    paced.declare(declare(rate=throttle("2/10s")), NOW)
    assert refusal(paced, Asking("6"), 9).answer == at(10)


def test_what_an_old_name_has_started_counts_for_the_new_one() -> None:
    admission = Admission(10)
    old, new = gates(admission, rate=throttle("1/10s")), gates(admission)
    new.declare(declare("charge", rate=throttle("1/10s")), NOW)
    assert refused_by(old, Asking("1")) is None
    new.take_over(old, NOW)
    assert refused_by(new, Asking("2")) == "throttle"


def test_what_was_started_before_the_process_counts() -> None:
    admission = Admission(10)
    paced = gates(admission, rate=throttle("2/10s", per=lambda event: event.id))
    admission.recall(
        [
            Start("bill", "throttle", "a", at(-20), at(-10)),
            Start("bill", "throttle", "a", at(-5), at(5)),
            Start("other", "throttle", "a", at(-5), at(5)),
            Start("bill", "throttle", "b", at(-4), at(6)),
            Start("bill", "throttle", "b", at(-3), at(7)),
        ]
    )
    assert refused_by(paced, Asking("1", keys={"throttle": "a"})) is None
    assert refused_by(paced, Asking("2", keys={"throttle": "a"})) == "throttle"
    assert refusal(paced, Asking("3", keys={"throttle": "b"}), 0).answer == at(6)


# ---------------------------------------------------------------- what cannot be meant


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (
            "100/m",
            "rate='100/m': write throttle('100/m'), which lets runs wait, or "
            "rate_limit('100/m'), which skips them, or a list of these",
        ),
        (
            [throttle("crm", "1/s"), throttle("crm", "1/s")],
            "rate= names the throttle 'crm' twice",
        ),
        (throttle("1/s", per="customer"), "per='customer': write a function, per=lambda event: …"),  # type: ignore[call-overload]
    ],
)
def test_a_rate_that_cannot_be_meant_is_refused_by_name(rate: Any, said: str) -> None:
    with pytest.raises(SetupError) as refused:
        declare(rate=rate)
    assert refused.value.message == f"flow 'bill': {said}"
    assert refused.value.file == declare.__code__.co_filename


def test_a_name_of_a_throttle_is_text() -> None:
    with pytest.raises(SetupError, match="throttle\\('', '1/s'\\): a name is printable text"):
        throttle("", "1/s")


def test_one_name_has_one_rate() -> None:
    first = declare("bill", rate=throttle("crm", "100/m"))
    flows = [first, declare("remind", rate=throttle("crm", "5/s"))]
    with pytest.raises(SetupError) as refused:
        Project.of(flows)
    assert refused.value.message == (
        f'throttle("crm", "5/s") is throttle("crm", "100/m") in flow \'bill\' '
        f"({first.file}:{first.line}); a name has one meaning: write the rule once and use it in "
        "both flows"
    )
