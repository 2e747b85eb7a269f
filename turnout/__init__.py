"""turnout: events in, flows run, nothing lost.

The names authors use. Each is imported at its first use, so that `import turnout` stays cheap and
a program pays only for the triggers it names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turnout._kafka import kafka as kafka
    from turnout.handlers.actions.agent import AgentAnswer as AgentAnswer
    from turnout.handlers.actions.agent import agent as agent
    from turnout.handlers.actions.agent_budget import AgentSpent as AgentSpent
    from turnout.handlers.actions.budget import BudgetSpent as BudgetSpent
    from turnout.handlers.actions.budget import budget as budget
    from turnout.handlers.actions.http import http as http
    from turnout.handlers.actions.http_response import HttpError as HttpError
    from turnout.handlers.actions.http_response import HttpRefused as HttpRefused
    from turnout.handlers.actions.http_response import HttpResponse as HttpResponse
    from turnout.handlers.actions.poll import poll as poll
    from turnout.handlers.actions.shell import shell as shell
    from turnout.handlers.actions.shell_result import ShellError as ShellError
    from turnout.handlers.actions.shell_result import ShellRefused as ShellRefused
    from turnout.handlers.actions.shell_result import ShellResult as ShellResult
    from turnout.handlers.flow import flow as flow
    from turnout.handlers.gather import gather as gather
    from turnout.handlers.notify import notify as notify
    from turnout.handlers.task import task as task
    from turnout.service.domain.deadline import deadline as deadline
    from turnout.service.domain.errors import Overloaded as Overloaded
    from turnout.service.domain.event import Event as Event
    from turnout.service.domain.labels import label as label
    from turnout.service.domain.pending import Pending as Pending
    from turnout.service.domain.pending import PollTimeout as PollTimeout
    from turnout.service.domain.resource import resource as resource
    from turnout.service.domain.retry import retry as retry
    from turnout.service.domain.run import Fail as Fail
    from turnout.service.domain.run import Refused as Refused
    from turnout.service.domain.run import Rejected as Rejected
    from turnout.service.domain.run import Retry as Retry
    from turnout.service.domain.run import RunError as RunError
    from turnout.service.domain.run import Skip as Skip
    from turnout.service.domain.windows.absent import absent as absent
    from turnout.service.domain.windows.all_of import all_of as all_of
    from turnout.service.domain.windows.batch import batch as batch
    from turnout.service.domain.windows.count import count as count
    from turnout.service.domain.windows.debounce import debounce as debounce
    from turnout.service.domain.windows.sequence import sequence as sequence
    from turnout.service.flowcontrol.dependency import dependency as dependency
    from turnout.service.flowcontrol.limit import limit as limit
    from turnout.service.flowcontrol.rate_limit import rate_limit as rate_limit
    from turnout.service.flowcontrol.throttle import throttle as throttle
    from turnout.service.flowcontrol.unique import unique as unique
    from turnout.service.governance.secrets import secret as secret
    from turnout.service.steps.approval import approval as approval
    from turnout.service.steps.artefacts import artefact as artefact
    from turnout.service.steps.cache import by_input as by_input
    from turnout.service.steps.context import current as current
    from turnout.service.steps.emitting import emit as emit
    from turnout.service.steps.first import first as first
    from turnout.service.steps.patching import patched as patched
    from turnout.service.steps.wait import sleep as sleep
    from turnout.service.steps.wait import wait_for as wait_for
    from turnout.service.telemetry.own_metrics import metric as metric
    from turnout.triggers.events import event as event
    from turnout.triggers.files import delete as delete
    from turnout.triggers.files import files as files
    from turnout.triggers.files import move as move
    from turnout.triggers.signatures import hmac as hmac
    from turnout.triggers.timers import at as at
    from turnout.triggers.timers import cron as cron
    from turnout.triggers.timers import every as every
    from turnout.triggers.webhook import webhook as webhook

_ROOMS = {
    "flow": "handlers.flow",
    "http": "handlers.actions.http",
    "HttpError": "handlers.actions.http_response",
    "HttpRefused": "handlers.actions.http_response",
    "HttpResponse": "handlers.actions.http_response",
    "gather": "handlers.gather",
    "notify": "handlers.notify",
    "poll": "handlers.actions.poll",
    "agent": "handlers.actions.agent",
    "AgentAnswer": "handlers.actions.agent",
    "AgentSpent": "handlers.actions.agent_budget",
    "budget": "handlers.actions.budget",
    "BudgetSpent": "handlers.actions.budget",
    "shell": "handlers.actions.shell",
    "ShellError": "handlers.actions.shell_result",
    "ShellRefused": "handlers.actions.shell_result",
    "ShellResult": "handlers.actions.shell_result",
    "task": "handlers.task",
    "kafka": "_kafka",
    "approval": "service.steps.approval",
    "emit": "service.steps.emitting",
    "first": "service.steps.first",
    "artefact": "service.steps.artefacts",
    "by_input": "service.steps.cache",
    "current": "service.steps.context",
    "Event": "service.domain.event",
    "absent": "service.domain.windows.absent",
    "all_of": "service.domain.windows.all_of",
    "batch": "service.domain.windows.batch",
    "count": "service.domain.windows.count",
    "debounce": "service.domain.windows.debounce",
    "sequence": "service.domain.windows.sequence",
    "dependency": "service.flowcontrol.dependency",
    "limit": "service.flowcontrol.limit",
    "unique": "service.flowcontrol.unique",
    "deadline": "service.domain.deadline",
    "Overloaded": "service.domain.errors",
    "Refused": "service.domain.run",
    "rate_limit": "service.flowcontrol.rate_limit",
    "throttle": "service.flowcontrol.throttle",
    "secret": "service.governance.secrets",
    "label": "service.domain.labels",
    "Pending": "service.domain.pending",
    "PollTimeout": "service.domain.pending",
    "resource": "service.domain.resource",
    "retry": "service.domain.retry",
    "Fail": "service.domain.run",
    "Rejected": "service.domain.run",
    "Retry": "service.domain.run",
    "RunError": "service.domain.run",
    "Skip": "service.domain.run",
    "patched": "service.steps.patching",
    "sleep": "service.steps.wait",
    "wait_for": "service.steps.wait",
    "metric": "service.telemetry.own_metrics",
    "event": "triggers.events",
    "delete": "triggers.files",
    "files": "triggers.files",
    "move": "triggers.files",
    "hmac": "triggers.signatures",
    "at": "triggers.timers",
    "cron": "triggers.timers",
    "every": "triggers.timers",
    "webhook": "triggers.webhook",
}

__all__ = [*_ROOMS]


if not TYPE_CHECKING:  # a type checker that saw it would take any misspelt name

    def __getattr__(name: str) -> Any:
        room = _ROOMS.get(name)
        if room is None:
            raise AttributeError(f"module 'turnout' has no attribute {name!r}")
        value = getattr(import_module(f"turnout.{room}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return [*globals(), *_ROOMS]
