"""What a flow file calls by a name or option that turnout does not have, and what it means.

Python's own words for it (`unexpected keyword argument`, `cannot import name`) say neither what
there is nor what was probably meant. Not here: where in the file it is (`loader.explain`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, get_args, get_type_hints

from turnout.service.domain.errors import message_of
from turnout.service.domain.guess import closest

_UNEXPECTED = re.compile(r"([\w.]+)\(\) got an unexpected keyword argument '(\w+)'")
_MISSING = re.compile(r"([\w.]+)\(\) missing \d+ required [\w-]+ arguments?: (.+)")
_TOO_MANY = re.compile(r"([\w.]+)\(\) takes (.+) positional arguments? but \d+ ")
_QUOTED = re.compile(r"'(\w+)'")
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
    "http": {"data": "json=, or content= for bytes and text", "body": "json= or content=",
             "files": "content=", "auth": 'headers={"Authorization": secret("NAME")}',
             "token": 'headers={"Authorization": secret("NAME")}', "query": "params=",
             "follow_redirects": "redirects=", "allow_redirects": "redirects=",
             "max_retries": "retry=", "stream": 'to=artefact("NAME")',
             "status": "allow={404}", "expect": "allow={404}", "max_size": "max_bytes="},
    "poll": {"interval": "every=", "delay": "every=", "wait": "every=", "period": "every=",
             "retry": "retry= of the task it calls", "until": "timeout=",
             "max_wait": "timeout=", "within": "timeout="},
    "approval": {"message": "text=", "question": "text=", "prompt": "text=", "form": "fields=",
                 "model": "fields=", "schema": "fields=", "context": "data=",
                 "expires": "timeout=", "within": "timeout="},
    "wait_for": {"filter": "match=", "where": "match=", "within": "timeout="},
    "budget": {"limit": "max_changes=", "max": "max_changes=", "count": "max_changes=",
               "period": "per=", "window": "per=", "within": "per="},
    "attach": {"content_type": "type=", "mime": "type="},
    "debounce": {"key": "per=", "by": "per=", "delay": 'debounce(webhook("/x"), "5s")',
                 "wait": 'debounce(webhook("/x"), "5s")', "max_wait": "max="},
    "batch": {"key": "per=", "by": "per=", "size": 'batch(webhook("/x"), 500, "2s")',
              "max_size": 'batch(webhook("/x"), 500, "2s")',
              "within": 'batch(webhook("/x"), 500, "2s")'},
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
    kinds = (_UNEXPECTED, _MISSING, _TOO_MANY)
    found = next((said for said in (each.match(message) for each in kinds) if said), None)
    name = "" if found is None else found[1].rpartition(".")[2]
    function = _of_turnout(name, names)
    if found is None or function is None:
        return None
    if found.re is _UNEXPECTED:
        return unexpected(name, function, found[2])
    if found.re is _MISSING:
        return missing(name, function, _QUOTED.findall(found[2]))
    return too_many(name, function)


def _of_turnout(name: str, names: Mapping[str, Any]) -> Callable[..., Any] | None:
    """Return the function of turnout's that a file calls by this name of its definition."""
    turnout = import_module("turnout")
    value = getattr(turnout, name, None) if name in turnout.__all__ else None
    is_used = any(each is value or each is turnout for each in names.values())
    return value if value is not None and is_used else None


def unexpected(name: str, function: Callable[..., Any], option: str) -> str:
    """Return what to say of an option that a function of turnout's does not have."""
    options = options_of(function)
    meant = _OPTIONS.get(name, {}).get(option)
    if meant is None and (close := closest(option, options)):
        meant = f"{close}="
    hint = f"did you mean {meant}?" if meant else f"it has {', '.join(f'{o}=' for o in options)}"
    return f"{name}() has no option {option!r}; {hint}"


def missing(name: str, function: Callable[..., Any], lacking: Iterable[str]) -> str:
    """Return what to say of a call without arguments that a function of turnout's needs."""
    options = options_of(function)
    needed = [f"{each}=" if each in options else each for each in lacking]
    return f"{name}() needs {' and '.join(needed)}; {_example(name, function)}"


def too_many(name: str, function: Callable[..., Any]) -> str:
    """Return what to say of more arguments without a name than a function of turnout's takes."""
    options = ", ".join(f"{each}=" for each in options_of(function))
    return (
        f"{name}() is given too much without a name; its options are written with theirs "
        f"({options}); {_example(name, function)}"
    )


def options_of(function: Callable[..., Any]) -> list[str]:
    """Return the options of a function that are written with their names."""
    options: list[str] = []
    for each in inspect.signature(function).parameters.values():
        if each.kind is each.KEYWORD_ONLY:
            options.append(each.name)
        elif each.kind is each.VAR_KEYWORD:  # `**options: Unpack[…]`, a typed dict of them
            plain = getattr(function, "__func__", function)
            unpacked = get_type_hints(plain).get(each.name)
            options += [name for kind in get_args(unpacked) for name in kind.__annotations__]
    return options


def _example(name: str, function: Callable[..., Any]) -> str:
    """Return how it is written, by the first call of it that its documentation shows."""
    text = inspect.getdoc(getattr(function, "__call__", function)) or ""  # noqa: B004  kafka is a value
    shown = re.search(rf"`(@?{name}\([^`]+\))`", text)
    return f"write {shown[1]}" if shown else f"`turnout help {name}` says how it is written"
