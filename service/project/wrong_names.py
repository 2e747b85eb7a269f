"""What a flow file calls by a name or option that turnout does not have, and what it means.

Python's own words for it (`unexpected keyword argument`, `cannot import name`) say neither what
there is nor what was probably meant. Not here: where in the file it is (`loader.explain`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from turnout.service.domain.errors import message_of
from turnout.service.domain.guess import closest

_UNEXPECTED = re.compile(r"([\w.]+)\(\) got an unexpected keyword argument '(\w+)'")
_MISSING = re.compile(r"([\w.]+)\(\) missing \d+ required [\w-]+ arguments?: (.+)")
_TOO_MANY = re.compile(r"([\w.]+)\(\) takes .+ positional arguments? but \d+ ")
_CANNOT_IMPORT = re.compile(r"cannot import name '(\w+)' from 'turnout(?:\.testing)?'")

_NAMES: Mapping[str, str] = {
    "schedule": "cron(…) or every(…)", "interval": "every(…)", "timer": "cron(…) or every(…)",
    "periodic": "every(…)", "cronjob": "cron(…)", "step": "task", "activity": "task",
    "workflow": "flow", "job": "flow", "dag": "flow", "pipeline": "flow", "hook": "webhook",
    "http": "webhook", "route": "webhook", "post": "webhook", "watch": "files", "file": "files",
    "directory": "files", "folder": "files", "topic": "kafka", "consumer": "kafka",
    "wait": "sleep, wait_for or approval", "signal": "wait_for", "approve": "approval",
    "parallel": "gather", "concurrency": "limit", "log": "current().log",
    "logger": "current().log", "get_logger": "current().log", "context": "current",
    "publish": "emit, or kafka.publish", "send": "emit, or kafka.publish", "cache": "by_input",
    "env": "secret", "settings": "secret", "BaseModel": "BaseModel from pydantic",
    "Path": "Path from pathlib",
}  # fmt: skip
"""What other tools call it, and what it is here."""

_CRON = 'on=cron("0 9 * * *")'
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "flow": {
        "webhook": 'on=webhook("/orders")', "files": 'on=files("inbox/*.csv")',
        "cron": _CRON, "schedule": _CRON, "every": 'on=every("15m")',
        "interval": 'on=every("15m")', "kafka": 'on=kafka("orders", group="billing")',
        "event": 'on=event("order.placed")', "trigger": "on=", "triggers": "on=",
        "filter": "when=", "condition": "when=", "retry_delay": 'retry=retry(3, delay="5s")',
        "delay": 'retry=retry(3, delay="5s")', "max_concurrency": "concurrency=",
        "max_instances": "concurrency=", "max_active_runs": "concurrency=",
        "limit": "concurrency=", "throttle": 'rate=throttle("100/m")',
        "rate_limit": 'rate=rate_limit("10/s")', "order_by": "ordered_by=",
        "depends_on": "needs=", "on_error": "on_failure=", "queue": "priority=",
        "undo": "undo= of the task that has the effect", "cache": "cache= of a task",
    },
    "task": {
        "retry_delay": 'retry=retry(3, delay="5s")', "delay": 'retry=retry(3, delay="5s")',
        "concurrency": 'limit=limit("crm", 3)', "rate": "rate= of the flow",
        "cache_ttl": 'cache=by_input(ttl="1h")', "ttl": 'cache=by_input(ttl="1h")',
        "on_failure": "undo=, or on_failure= of the flow", "compensate": "undo=",
        "default": "fallback=", "rollback": "undo=",
    },
    "retry": {
        "backoff": "factor=", "max_delay": "max=", "retries": "retry(3)",
        "attempts": "retry(3)", "times": "retry(3)",
        "exceptions": "on=", "retry_on": "on=", "wait": "delay=",
    },
    "cron": {"timezone": "tz=", "zone": "tz="}, "at": {"timezone": "tz=", "zone": "tz="},
    "webhook": {"method": 'methods=["POST"]', "path": 'webhook("/orders")',
                "token": 'secret=secret("NAME")', "auth": 'verify="github"'},
    "kafka": {"group_id": "group=", "offset": 'start="latest"',
              "topic": 'kafka("orders", group="billing")',
              "auto_offset_reset": 'start="latest"',
              "bootstrap_servers": "the setting TURNOUT_KAFKA_BOOTSTRAP_SERVERS"},
    "files": {"path": 'files("inbox/*.csv")', "pattern": 'files("inbox/*.csv")',
              "delay": "settle=", "recursive": '"**" in the pattern: "inbox/**/*.csv"'},
    "limit": {"key": "per=", "by": "per="}, "throttle": {"key": "per=", "by": "per="},
    "rate_limit": {"key": "per=", "by": "per="},
}  # fmt: skip
"""By function: what other tools, or other functions here, call an option."""


def meaning_of(error: BaseException, names: Mapping[str, Any]) -> str | None:
    """Return what an error of a wrong name or option means; None if it is none of turnout's.

    `names` are those that the author's code knows where it was raised.
    """
    if isinstance(error, ImportError):
        return _import(error)
    if isinstance(error, AttributeError):
        is_ours = error.obj is import_module("turnout")
        return _no_name(error.name or "") if is_ours else None
    if isinstance(error, TypeError):
        return _call(message_of(error), names)
    return None


def _import(error: ImportError) -> str | None:
    message = message_of(error)
    if "partially initialized module" in message:
        return (
            f"circular import: {error.name} imports what imports it again; move what both need "
            "into a third file, whose name begins with _"
        )
    found = _CANNOT_IMPORT.match(message)
    return None if found is None else _no_name(found[1])


def _no_name(name: str) -> str:
    turnout = import_module("turnout")
    meant = _NAMES.get(name) or closest(name, turnout.__all__)
    hint = f"; did you mean {meant}?" if meant else f"; it has {', '.join(sorted(turnout.__all__))}"
    return f"turnout has no {name!r}{hint}"


def _call(message: str, names: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a call of a function of turnout's, called where `names` are."""
    for pattern, explain in (
        (_UNEXPECTED, _unexpected), (_MISSING, _missing), (_TOO_MANY, _too_many),
    ):  # fmt: skip
        found = pattern.match(message)
        if found is not None:
            name = found[1].rpartition(".")[2]
            function = _of_turnout(name, names)
            return None if function is None else explain(name, function, found)
    return None


def _of_turnout(name: str, names: Mapping[str, Any]) -> Callable[..., Any] | None:
    """Return the function of turnout's that a file calls by this name of its definition."""
    turnout = import_module("turnout")
    value = getattr(turnout, name, None) if name in turnout.__all__ else None
    is_used = any(each is value or each is turnout for each in names.values())
    return value if value is not None and is_used else None


def _unexpected(name: str, function: Callable[..., Any], found: re.Match[str]) -> str:
    option, options = found[2], _options(function)
    meant = _OPTIONS.get(name, {}).get(option)
    if meant is None and (close := closest(option, options)):
        meant = f"{close}="
    hint = f"did you mean {meant}?" if meant else f"it has {', '.join(f'{o}=' for o in options)}"
    return f"{name}() has no option {option!r}; {hint}"


def _missing(name: str, function: Callable[..., Any], found: re.Match[str]) -> str:
    options = _options(function)
    missing = [f"{each}=" if each in options else each for each in re.findall(r"'(\w+)'", found[2])]
    return f"{name}() needs {' and '.join(missing)}; {_example(name, function)}"


def _too_many(name: str, function: Callable[..., Any], found: re.Match[str]) -> str:
    options = ", ".join(f"{each}=" for each in _options(function))
    return (
        f"{name}() is given too much without a name; its options are written with theirs "
        f"({options}); {_example(name, function)}"
    )


def _options(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


def _example(name: str, function: Callable[..., Any]) -> str:
    """Return how it is written, by the first call of it that its documentation shows."""
    text = inspect.getdoc(getattr(function, "__call__", function)) or ""  # noqa: B004  kafka is a value
    shown = re.search(rf"`(@?{name}\([^`]+\))`", text)
    return f"write {shown[1]}" if shown else f"`turnout help {name}` says how it is written"
