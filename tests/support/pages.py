"""The pages as data: their code blocks, and the parts that are written from the code.

`python -m tests.support.pages` rewrites the parts between `<!-- from … -->` and `<!-- end -->`; the
tests compare them, so that a table cannot say what the code no longer does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import click
from prometheus_client.metrics import MetricWrapperBase

from turnout import _reference
from turnout.service.cli import cli
from turnout.service.cli.examples import examples
from turnout.service.cli.fields import FIELDS
from turnout.service.domain.decisions import Reason
from turnout.service.domain.run import FINISHED, TRANSITIONS
from turnout.service.domain.units import format_duration
from turnout.service.domain.waiting import Cause
from turnout.service.settings import Settings
from turnout.service.telemetry import trace_conventions
from turnout.service.telemetry.metrics import Counts, Metrics

from . import CHECKOUT, layers

PAGES = tuple(
    CHECKOUT / name
    for name in (
        "README.md",
        "handlers/README.md",
        "handlers/REFERENCE.md",
        "handlers/FLOW_CONTROL.md",
        "handlers/WINDOWS.md",
        "handlers/ACTIONS.md",
        "handlers/ALERTS.md",
        "handlers/HAND_OFFS.md",
        "handlers/examples/README.md",
        "handlers/INFRASTRUCTURE.md",
        "handlers/DATA.md",
        "handlers/coming_from/SCHEDULE.md",
        "handlers/coming_from/CELERY_BEAT.md",
        "handlers/coming_from/AIRFLOW.md",
        "handlers/coming_from/PREFECT.md",
        "triggers/README.md",
        "service/README.md",
        "service/flowcontrol/README.md",
        "deploy/README.md",
        "deploy/JSON.md",
        "tests/README.md",
        "tests/handlers/README.md",
        ".github/CONTRIBUTING.md",
        ".github/SECURITY.md",
    )
)
"""What people read, in the order they meet it."""

_PART = re.compile(r"(<!-- from ([a-z/_.]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One code block: its language, what other system it needs to run, its place, and its text."""

    language: str
    system: str
    line: int
    text: str

    @property
    def file(self) -> str | None:
        """The name a first line such as `# flows.py` gives the block."""
        named = re.match(r"# (\S+\.\w+)\n", self.text)
        return named[1] if named else None


def blocks(text: str) -> list[Block]:
    """Return the code blocks in order."""
    return [
        Block(found[1], found[2].strip(), text.count("\n", 0, found.start()) + 1, found[3])
        for found in _BLOCK.finditer(text)
    ]


def parts(text: str) -> dict[str, str]:
    """Return the written parts by the file each is written from."""
    return {found[2]: found[3] for found in _PART.finditer(text)}


def rewritten(text: str) -> str:
    """Return a page with every part written anew."""
    return _PART.sub(lambda found: found[1] + WRITERS[found[2]]() + found[4], text)


# ---- what the parts are


def state_diagram() -> str:
    """Return the run states as a mermaid diagram, one line for each allowed move."""
    lines = ["```mermaid", "stateDiagram-v2"]
    for state, targets in TRANSITIONS.items():
        if state in FINISHED:
            lines.append(f"    {state} --> [*]")
        for target in sorted(targets):
            label = " : an operator's retry" if state in FINISHED else ""
            lines.append(f"    {state or '[*]'} --> {target}{label}")
    return "\n".join([*lines, "```", ""])


def settings_table() -> str:
    """Return every setting with its default and meaning."""
    rows = [("Setting", "Default", "Meaning")]
    for name, field in Settings.model_fields.items():
        rows.append((f"`{name}`", _default(name, field.default), field.description or ""))
    return _table(rows)


def _default(name: str, value: Any) -> str:
    if value is None or value == "" or value == ():
        return ""
    if isinstance(value, timedelta):
        return f"`{format_duration(value)}`"
    if name.endswith("_bytes"):
        power = 3 if value % 2**30 == 0 else 2
        return f"`{value // 2 ** (10 * power)}{'KMG'[power - 1]}iB`"
    return f"`{value}`"


def metrics_table() -> str:
    """Return every metric with its labels, type and meaning."""
    return _table([("Metric", "Type", "Meaning"), *sorted(_metrics())])


def spans_table() -> str:
    """Return each kind of span with the attributes it may have."""
    rows = [
        (f"`{name}`", ", ".join(f"`{attribute}`" for attribute in attributes))
        for name, attributes in trace_conventions.ON_SPANS.items()
    ]
    return _table([("Span", "Attributes"), *rows])


def _metrics() -> Iterator[tuple[str, str, str]]:
    metrics = Metrics()
    metrics.observe_counts(Counts)
    wrappers = [each for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)]
    # The labels' names are public in the exposition only, once a child exists.
    named: dict[str, tuple[str, ...]] = {
        family.name: getattr(each, "_labelnames", ())
        for each in wrappers
        for family in each.describe()
    }
    for family in metrics.registry.collect():
        labels = named.get(family.name, getattr(family, "_labelnames", ()))
        yield _metric(family.name, labels, family.type, family.documentation)


def _metric(name: str, labels: tuple[str, ...], kind: str, text: str) -> tuple[str, str, str]:
    shown = name + "_total" * (kind == "counter")
    return (f"`{shown}{'{' + ','.join(labels) + '}' if labels else ''}`", kind, text)


def commands_table() -> str:
    """Return every command with the first sentence of its help."""
    context = click.Context(cli, info_name="turnout")
    rows = [("Command", "What it does")]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        usage = " ".join(command.collect_usage_pieces(click.Context(command)))
        usage = usage.replace("[OPTIONS]", "").replace("|", "\\|")
        rows.append((f"`{' '.join(['turnout', name, *usage.split()])}`", _first(command.help)))
    return _table(rows)


def _first(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


_MORE = {
    "when": "FLOW_CONTROL.md#filters",
    "concurrency": "FLOW_CONTROL.md#one-account-at-a-time-through-an-approval-of-three-days",
    "rate": "FLOW_CONTROL.md#five-requests-a-second-to-a-crm-over-three-flows",
    "priority": "FLOW_CONTROL.md#an-urgent-order-before-a-nightly-backlog",
    "mode": "FLOW_CONTROL.md#one-deploy-per-repository-at-a-time-and-only-the-newest",
    "cancel_on": "FLOW_CONTROL.md#work-that-is-asked-for-once-is-called-off-or-is-too-much",
    "needs": "FLOW_CONTROL.md#a-dependency-that-is-down-for-an-hour",
    "id": "#identity-by-content",
}
"""Where there is more to read about an option, from the page its table is on."""


def options_table(name: str) -> str:
    """Return the options of a public name as its docstring has them, without what comes first."""
    entry = _reference.entry(name, "turnout")
    rows = [(f"Option of `{name}`", "Default", "Meaning")]
    for option in entry.parameters[0 if name == "flow" else 1 :]:
        default = entry.defaults.get(option)
        more = f" ([more]({_MORE[option]}))" if option in _MORE else ""
        meaning = entry.options[option].replace("|", "\\|") + more
        rows.append((f"`{option}=`", "" if default is None else f"`{default}`", meaning))
    return _table(rows)


_REASONS: Mapping[Reason, str] = {
    Reason.FILTERED: "`when=` returned false",
    Reason.DUPLICATE: "the event was delivered before",
    Reason.CONFLICT: "the event was delivered before, with other content",
    Reason.WINDOWED: (
        "its window ignored it or closed without a run, or an operator fired the window"
        " ([more](WINDOWS.md))"
    ),
    Reason.EXPIRED: "its window ended before the pattern was complete",
    Reason.DROPPED: "an operator discarded it (`turnout resume --discard`, `turnout pending drop`)",
    Reason.UNIQUE: "`unique=`: an earlier run has its key",
    Reason.SKIP: '`mode="skip"`: another run of its key was under way',
    Reason.LATEST: '`mode="latest"`: a newer run of its key took its turn',
    Reason.REPLACED: '`mode="replace"`: a newer run of its key has come',
    Reason.RATE_LIMIT: "`rate_limit`: too many in the period",
    Reason.START_TIMEOUT: "it did not start within `start_timeout=`",
    Reason.SHADOW: (
        "the flow says `shadow=True`: it would have started"
        " ([more](#try-a-flow-on-what-comes-without-starting-it))"
    ),
    Reason.CYCLE: "the event is more than 16 events away from its origin",
    Reason.UNMATCHED: "no flow listens to it",
}
"""What each reason means; one that is new and has no line here fails the tests of the pages."""


def reasons_table() -> str:
    """Return the reasons of decisions."""
    rows = [(f"`{reason}`", _REASONS[reason]) for reason in Reason]
    return _table([("Reason", "Meaning"), *rows])


_CAUSES: Mapping[Cause, str] = {
    Cause.NONE: "(in metrics only: it started at once)",
    Cause.PAUSE: "the flow is resumed",
    Cause.LIMIT: "a limit has a free slot",
    Cause.RATE: "the next free instant of a throttle",
    Cause.ORDER: "the run before it with the same ordering key has ended",
    Cause.MODE: "the run under way with the same `key=` has ended",
    Cause.BREAKER: "the dependency is available again",
    Cause.SLOT: "one of the slots of the service (`concurrency`) is free",
    Cause.ISOLATION: (
        "an isolated run has ended: one during which the process died twice in a row, and that"
        " runs alone"
    ),
    Cause.TURN: "its turn comes, after older runs or those of other flows",
    Cause.INSTANT: "its time, or its next try, has come",
    Cause.EVENT: "the event has come",
    Cause.APPROVAL: "a person has answered",
    Cause.CHILD: "the run that it called has ended",
    Cause.POOL: "a thread or a worker process is free (the run is running already)",
    Cause.SERVICE: "a service runs that has the flow",
}
"""Until when a run waits for each cause."""


def causes_table() -> str:
    """Return what a run may wait for."""
    rows = [(f"`{cause}`", _CAUSES[cause]) for cause in Cause]
    return _table([("A run waits for", "until"), *rows])


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body, ""])


def fields_tables() -> str:
    """Return what each command and call answers, and what the fields mean."""
    text = (CHECKOUT / "tests" / "snapshots" / "json_fields.txt").read_text("utf-8")
    documents = [("Document", "Fields")]
    for document in text.split("\n\n"):
        name, *fields = document.splitlines()
        documents.append((f"`{name}`", ", ".join(f"`{field.strip()}`" for field in fields)))
    meanings = [("Field", "Meaning"), *((f"`{name}`", told) for name, told in FIELDS.items())]
    return f"{_table(documents)}\n{_table(meanings)}"


def example(path: str, system: str = "") -> str:
    """Return an example as a code block, and what other system it needs to run."""
    file = CHECKOUT / "handlers" / "examples" / path
    return f"{f'```python {system}'.strip()}\n# {file.name}\n{file.read_text('utf-8')}```\n"


CHAPTERS = {
    "": "React, report, wait, undo",
    "data": "Bring data from one place to another",
    "ai": "Let a model decide, ask data, train",
    "browser": "Drive a browser",
    "systems": "Work with other systems",
}
"""What the examples of each folder are about; a new folder needs a line here."""


def examples_tables() -> str:
    """Return what people want to do, and the example for it, folder by folder."""
    chapters: dict[str, list[tuple[str, ...]]] = {}
    for each in examples().values():
        place = f"{each.folder}/" if each.folder else ""
        files = [f"[{each.name}]({place}{each.name}.py)"]
        files += [f"[{beside.name}]({place}{beside.name})" for beside in each.beside]
        needs = ", ".join(f"`{need}`" for need in each.needs)
        test = f"[test](tests/test_{each.name}.py)"
        rows = chapters.setdefault(each.folder, [("You want to", "Example", "Test", "Needs")])
        rows.append((each.does[0].lower() + each.does[1:], ", ".join(files), test, needs))
    return "\n".join(f"## {CHAPTERS[folder]}\n\n{_table(chapters[folder])}" for folder in chapters)


_SYSTEMS = {
    "celery_orders": "celery",
    "celery_worker": "celery",
    "airflow_orders": "",
    "airflow_dag": "airflow",
    "prefect_orders": "",
    "prefect_flow": "prefect",
    "dagster_orders": "",
    "dagster_job": "dagster",
    "call_turnout": "called",
    "called": "",
}
"""By example of a hand-off: the system that it needs to run."""

WRITERS: Mapping[str, Callable[[], str]] = {
    "service": layers.picture,
    "turnout": _reference.page,
    **{
        f"handlers/examples/systems/{name}.py": partial(example, f"systems/{name}.py", system)
        for name, system in _SYSTEMS.items()
    },
    "handlers/examples": examples_tables,
    "handlers/examples/systems/kubernetes_scale.py": lambda: example(
        "systems/kubernetes_scale.py", "clouds"
    ),
    "handlers/examples/systems/aws_machines.py": lambda: example(
        "systems/aws_machines.py", "clouds"
    ),
    "handlers/examples/systems/autoscale.py": lambda: example("systems/autoscale.py", "clouds"),
    "handlers/examples/systems/backup.py": lambda: example("systems/backup.py", "data"),
    "handlers/examples/systems/sftp_drop.py": lambda: example("systems/sftp_drop.py", "data"),
    "handlers/examples/data/readings.py": lambda: example("data/readings.py", "data"),
    "handlers/examples/data/etl.py": lambda: example("data/etl.py"),
    "handlers/examples/data/sales_report.py": lambda: example("data/sales_report.py"),
    "handlers/examples/dynamic.py": lambda: example("dynamic.py"),
    "handlers/flow.py": lambda: options_table("flow"),
    "triggers/webhook.py": lambda: options_table("webhook"),
    "triggers/files": lambda: options_table("files"),
    "triggers/timers.py": lambda: "\n".join(map(options_table, ("cron", "every", "at"))),
    "triggers/kafka": lambda: options_table("kafka"),
    "service/domain/decisions.py": reasons_table,
    "service/domain/run.py": state_diagram,
    "service/domain/waiting.py": causes_table,
    "service/settings.py": settings_table,
    "service/telemetry/metrics.py": metrics_table,
    "service/telemetry/trace_conventions.py": spans_table,
    "service/cli": commands_table,
    "service/cli/fields.py": fields_tables,
}

if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rewritten(page.read_text("utf-8")), "utf-8")
