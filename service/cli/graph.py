"""`turnout graph`: the steps of a run as they ran, as text or for Mermaid."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from turnout.service.domain.short_ids import shorten

from . import tables
from .options import run_async, with_json, with_settings
from .output import heading, lasted, print_json, say
from .tables import Column, short_ids, table
from .times import stamp, utc_option
from .words import step_name

if TYPE_CHECKING:
    from turnout.service.settings import Settings

_MOST_BRANCHES = 12
_BAR = (10, 50)
"""The shortest and the longest bar, in characters."""
_PIPE_BAR = 40
_FIXED = 9 + 6 + 3 * 2
"""What the columns of states and durations and the gaps take beside step and bar."""
_LONGEST_NAME = 34


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--mermaid", is_flag=True, help="A Mermaid gantt diagram, for Markdown pages.")
@utc_option
@with_json
@with_settings
def graph(settings: Settings, run_id: str, mermaid: bool, as_json: bool) -> None:
    """Show the steps of a run as they ran: their order, what overlapped, branches and children.

    A bar says when a step ran within the run. Steps of `gather` and `map` stand below it, those of
    a child run below the step that started it.

    \b
    turnout graph 3f9a1c2b
    turnout graph 3f9a1c2b --mermaid > run.mmd
    """
    from turnout.service.domain.clock import wall_clock

    document = run_async(_graph(settings, run_id))
    now = wall_clock()()
    if as_json:
        print_json(document)
    elif mermaid:
        for line in mermaid_lines(document, now):
            say(line)
    else:
        _print(document, now)


async def _graph(settings: Settings, run_id: str) -> dict[str, Any]:
    from turnout.service.operate.graph import graph_of

    from .session import open_journal_reader

    async with open_journal_reader(settings) as reader:
        return await graph_of(reader, run_id)


# ---------------------------------------------------------------- text


@dataclass(frozen=True, slots=True)
class _Row:
    """A line: a step, a branch with its steps below it, or a child run."""

    name: str
    state: str
    began: datetime | None
    ended: datetime | None


def _print(run: dict[str, Any], now: datetime) -> None:
    name = short_ids([run["run"]], among=0)[run["run"]]
    took = lasted(_instant(run["started_at"]), _instant(run["finished_at"]) or now)
    heading(f"run {name}  {run['flow']}  {run['state']}  {took}".rstrip())
    rows = list(_rows(run, ""))
    if not rows:
        say("no step is recorded")
        return
    own = [(_instant(step["started_at"]), _instant(step["finished_at"])) for step in run["steps"]]
    first = min(began for began, _ in own if began is not None)
    length = max(ended or now for _, ended in own) - first
    say(f"from {stamp(first)}, for {lasted(first, first + length)}")
    bar = _bar_width(rows)
    table(
        (Column("step", 12), Column("state"), Column("took"), Column("when")),
        (
            (
                row.name, row.state,
                lasted(row.began, row.ended) if row.ended else "",
                _bar(row, first, length, now, bar),
            )
            for row in rows
        ),
        empty="",
    )  # fmt: skip


def _bar_width(rows: Sequence[_Row]) -> int:
    width = tables.terminal_width()
    if width is None:
        return _PIPE_BAR
    names = min(max(tables.cells(row.name) for row in rows), _LONGEST_NAME)
    least, most = _BAR
    return max(least, min(most, width - names - _FIXED))


def _bar(row: _Row, first: datetime, length: timedelta, now: datetime, width: int) -> str:
    """Return when a step ran as a bar; an open end for one that goes on."""
    if row.began is None or not first <= row.began <= first + length:
        return ""
    whole = max(length.total_seconds(), 1e-6)
    begins = (row.began - first).total_seconds() / whole
    ends = ((row.ended or now) - first).total_seconds() / whole
    start = min(int(begins * width), width - 1)
    count = max(1, round((ends - begins) * width))
    return "·" * start + "█" * min(count, width - start) + ("…" if row.ended is None else "")


def _rows(run: dict[str, Any], indent: str) -> Iterator[_Row]:
    """Yield the steps of a run as a tree of its branches."""
    yield from _branch([(step["key"].split("/"), step) for step in run["steps"]], indent)


def _branch(steps: Sequence[tuple[list[str], dict[str, Any]]], indent: str) -> Iterator[_Row]:
    groups: dict[str, list[tuple[list[str], dict[str, Any]]]] = {}
    for parts, step in steps:
        head = parts[0].partition("[")[0] if len(parts) > 1 or "[" in parts[0] else parts[0]
        if parts[0].startswith("~"):
            head = parts[0]
        groups.setdefault(head, []).append((parts, step))
    for head, members in groups.items():
        parts, step = members[0]
        if len(members) == 1 and parts == [head]:
            yield from _step_rows(step, f"{indent}{step_name(head)}", indent)
        elif head.startswith("~"):
            for _, each in members:
                yield from _step_rows(each, f"{indent}{step_name(each['key'])}", indent)
        else:
            yield from _group_rows(head, members, indent)


def _group_rows(
    head: str, members: Sequence[tuple[list[str], dict[str, Any]]], indent: str
) -> Iterator[_Row]:
    """Yield a gather or map: itself, and below it each branch."""
    branches: dict[str, list[tuple[list[str], dict[str, Any]]]] = {}
    for parts, step in members:
        branches.setdefault(parts[0].removeprefix(head), []).append((parts[1:], step))
    yield _span(f"{indent}{head}, {len(branches)} branches", [step for _, step in members])
    inner = f"{indent}  "
    shown = _shown(branches)
    for number in shown:
        inside = branches[number]
        own = [step for parts, step in inside if not parts]
        for step in own:
            yield from _step_rows(step, f"{inner}{number or head} {step['task']}".rstrip(), inner)
        below = [(parts, step) for parts, step in inside if parts]
        if len(below) == 1 and len(below[0][0]) == 1:
            [(parts, step)] = below
            yield from _step_rows(step, f"{inner}{number} {parts[0]}", inner)
        elif below:
            yield _span(f"{inner}{number}", [step for _, step in below])
            yield from _branch(below, f"{inner}  ")
    if len(shown) < len(branches):
        yield _Row(f"{inner}… {len(branches) - len(shown)} more branches", "", None, None)


def _shown(branches: dict[str, list[tuple[list[str], dict[str, Any]]]]) -> list[str]:
    """Return the branches to show: the first ones, and of the others the first that failed."""
    names = list(branches)
    failed = [
        name
        for name in names[_MOST_BRANCHES:]
        if any(step["state"] == "failed" for _, step in branches[name])
    ]
    return [*names[:_MOST_BRANCHES], *failed[:_MOST_BRANCHES]]


def _span(name: str, steps: Sequence[dict[str, Any]]) -> _Row:
    """Return the row of a branch: from the begin of its first step to the end of its last."""
    ends = [_instant(step["finished_at"]) for step in steps]
    begins = [at for step in steps if (at := _instant(step["started_at"])) is not None]
    known = [end for end in ends if end is not None]
    ended = max(known) if len(known) == len(ends) else None
    return _Row(name, "", min(begins), ended)


def _step_rows(step: dict[str, Any], name: str, indent: str) -> Iterator[_Row]:
    state = "runs again" if step["runs_again"] else step["state"]
    child = step["child"]
    if child is not None:
        short = short_ids([child["run"]], among=0)[child["run"]]
        name, state = f"{name} → run {short}", child["state"]
    began, ended = _instant(step["started_at"]), _instant(step["finished_at"])
    yield _Row(name, state, began, ended)
    if child is not None:
        yield from _rows(child, f"{indent}  ")


def _instant(at: str | None) -> datetime | None:
    return None if at is None else datetime.fromisoformat(at)


# ---------------------------------------------------------------- Mermaid

_UNSAFE = re.compile(r"[:;#,%\n\r]+")
_STYLES = {"failed": "crit, ", "waiting": "active, ", "retrying": "active, "}


def mermaid_lines(run: dict[str, Any], now: datetime) -> Iterator[str]:
    """Yield a Mermaid gantt diagram: a section for each branch and each child run."""
    name = shorten([run["run"]], among=0)[run["run"]]
    yield "gantt"
    yield f"    title run {name} of {_plain(run['flow'])}, {run['state']}"
    yield "    dateFormat x"
    yield "    axisFormat %H.%M.%S"
    yield from _sections(run, now)


def _sections(run: dict[str, Any], now: datetime) -> Iterator[str]:
    sections: dict[str | None, list[dict[str, Any]]] = {}
    for step in run["steps"]:
        sections.setdefault(step["branch"], []).append(step)
    name = shorten([run["run"]], among=0)[run["run"]]
    for branch, steps in sections.items():
        yield f"    section {_plain(branch or run['flow'])}{'' if branch else f' {name}'}"
        for step in steps:
            key = step["key"].rpartition("/")[2] if branch else step["key"]
            began = _instant(step["started_at"]) or now
            ended = max(_instant(step["finished_at"]) or now, began + timedelta(milliseconds=1))
            style = _STYLES.get(step["state"], "done, ")
            yield f"    {_plain(step_name(key))} :{style}{_ms(began)}, {_ms(ended)}"
    for step in run["steps"]:
        if step["child"] is not None:
            yield from _sections(step["child"], now)


def _plain(text: str) -> str:
    """Return a text without the signs that have a meaning in a gantt diagram."""
    return _UNSAFE.sub(" ", text).strip() or "step"


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
