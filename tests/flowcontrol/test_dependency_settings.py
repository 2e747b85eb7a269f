"""What counts against a dependency, and what is refused when one is declared."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.gates import declare
from turnout import Fail, Retry, Skip, dependency
from turnout.service.domain.errors import InvalidData, SetupError
from turnout.service.project import Project

from .breakers import CRM, flows

__all__ = ["flows"]  # the fixture


class CrmDown(Exception):
    pass


class CrmGone(Fail):
    pass


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (ConnectionError("refused"), True),
        (TimeoutError(), True),
        (ExceptionGroup("both", [Skip(), OSError()]), True),
        (Fail("no such customer"), False),
        (Skip("paid already"), False),
        (Retry("not yet"), False),
        (InvalidData("no id"), False),
        (asyncio.CancelledError(), False),
        (ExceptionGroup("both", [Fail(), OSError()]), False),
    ],
)
def test_any_error_counts_but_those_that_say_nothing_about_it(
    error: BaseException, counts: bool
) -> None:
    assert CRM.is_failed_by(error) is counts


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (CrmDown(), True),
        (CrmGone(), True),
        (ExceptionGroup("both", [KeyError(), CrmDown()]), True),
        (ConnectionError("another system"), False),
        (KeyError("a fault of the flow"), False),
        (TimeoutError(), False),
    ],
)
def test_declared_errors_are_the_only_ones_that_count(error: BaseException, counts: bool) -> None:
    crm = dependency("crm", errors=(CrmDown, CrmGone))
    assert crm.is_failed_by(error) is counts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"open_after": "half"},
            "dependency('crm'): open_after='half' is no share of the last attempts; write "
            'open_after="50% of 20", of at most 1000',
        ),
        (
            {"open_after": "0% of 20"},
            "dependency('crm'): open_after='0% of 20' is no share of the last attempts; write "
            'open_after="50% of 20", of at most 1000',
        ),
        (
            {"probe": "0s"},
            "dependency('crm'): probe='0s' leaves it no time; write probe=\"30s\"",
        ),
        (
            {"errors": "OSError"},
            "dependency('crm'): errors='OSError': write types of errors, "
            "errors=(OSError, TimeoutError)",
        ),
        ({"name": ""}, "dependency(''): a name is 1 to 200 printable characters"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SetupError) as caught:
        dependency(**{"name": "crm"} | options)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ("crm", "flow 'bill': needs='crm': write needs=dependency(\"crm\"), or a list of them"),
        ([CRM, CRM], "flow 'bill': needs= names dependency 'crm' twice"),
        (3, "flow 'bill': needs=3: write needs=dependency(\"crm\"), or a list of them"),
    ],
)
def test_needs_takes_dependencies(needs: Any, message: str) -> None:
    with pytest.raises(SetupError) as caught:
        declare(needs=needs)
    assert caught.value.message == message


def test_flows_that_share_a_name_say_the_same_of_it() -> None:
    other = dependency("crm", probe="1m", errors=OSError)
    flows = [declare("bill", needs=CRM), declare("load", needs=[other])]
    with pytest.raises(SetupError) as caught:
        Project.of(flows)
    bill, load = flows
    assert str(caught.value) == (
        f"{load.file}:{load.line}: flow 'load' needs "
        'dependency("crm", open_after="50% of 20", probe="1m", errors=(OSError,)), and flow '
        f"'bill' ({bill.file}:{bill.line}) needs "
        'dependency("crm", open_after="50% of 4", probe="30s"); say it once and give both flows '
        "the same value"
    )
    Project.of([declare("bill", needs=CRM), declare("load", needs=[CRM])])


def test_a_share_is_rounded_up_to_attempts() -> None:
    counts = {"50% of 20": 10, "33% of 10": 4, "1% of 10": 1, "100% of 5": 5, " 50 %of 3 ": 2}
    assert {text: dependency("crm", open_after=text).failures for text in counts} == counts
