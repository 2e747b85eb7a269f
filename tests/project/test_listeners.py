"""Flows listen to types of events by name and by pattern."""

from __future__ import annotations

from tests.support.inside import remembered_types
from turnout import event, flow
from turnout.service.project import Project


@flow(on=event("order.paid"))
def book() -> None: ...


@flow(on=event("order.*"))
def audit() -> None: ...


@flow(on=[event("order.paid"), event("order.*"), event("**")])
def watch() -> None: ...


def names(project: Project, event_type: str) -> list[str]:
    return [flow.name for flow in project.by_type.of(event_type)]


def test_a_pattern_starts_its_flow_for_each_type_it_matches_and_once_for_each_event() -> None:
    project = Project.of([book, audit, watch])
    assert names(project, "order.paid") == ["book", "audit", "watch"]
    assert names(project, "order.sent") == ["audit", "watch"]
    assert names(project, "order.sent.late") == ["watch"]
    assert names(Project.of([book, audit]), "shop.sent") == []
    assert names(Project.of([book]), "order.sent") == []


def test_types_that_senders_choose_fill_no_memory() -> None:
    project = Project.of([audit])
    for number in range(5000):
        project.by_type.of(f"order.{number}")
    assert remembered_types(project) <= 1024
    assert names(project, "order.sent") == ["audit"]
