"""`turnout check`: every problem of every flow file at once, with file and line; no flow runs.

A file runs statement by statement, so that one mistake does not hide the next. Not here: what makes
flows one project (`project`), forgotten awaits (`unawaited`), other mistakes that the source shows
(`misused`, `misplaced`, `arguments`), and what may surprise (`cautions`).
"""

from __future__ import annotations
import __future__

import ast
import warnings as python_warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from turnout.service.domain.alerts import Channel
from turnout.service.domain.errors import FOREIGN, SetupError
from turnout.service.domain.trigger import parts_of
from turnout.service.domain.units import utc_now
from turnout.service.governance.secrets import Secret, has_value

from . import AnyFlow, problems
from .arguments import arguments
from .budgets import unequal_budgets
from .cautions import cautions
from .commands import commands
from .loader import (
    all_or_nothing,
    explain,
    flow_files,
    flows_of,
    fresh_module,
    inside_classes,
    tasks_of,
    unreachable,
)
from .misplaced import misplaced
from .misused import misused
from .unawaited import unawaited
from .untrusted_urls import untrusted_urls


@dataclass(frozen=True, slots=True)
class Findings:
    """What `check` found: flows that load, errors, and warnings."""

    flows: tuple[AnyFlow, ...]
    problems: tuple[SetupError, ...]
    warnings: tuple[SetupError, ...]


def check(
    paths: Sequence[Path], *, env: bool = False, secrets_folder: Path | None = None
) -> Findings:
    """Find every problem of every file, not just the first; no flow runs.

    With `env` a secret that has no value here is a problem, else a warning.
    """
    found: list[SetupError] = []
    modules: list[ModuleType] = []
    unknown: list[SetupError] = []
    with all_or_nothing(keep=False):
        try:
            files = flow_files(paths)
        except SetupError as error:
            return Findings((), (error,), ())
        for file in files:
            try:
                modules.append(_examine(file, found))
            except SetupError as error:
                found.append(error)
            unknown += _unknown_secrets(file, secrets_folder)
        flows = flows_of(modules)
        found += problems(flows, tasks_of(modules))
        found += unreachable(flows, modules)
        found += inside_classes(modules)
        found += unequal_budgets(modules)
        warnings = [*cautions(flows), *_over(flows)]
        unknown += _unknown_to_channels(flows, files, secrets_folder)
        for module in modules:
            found += unawaited(module)
            for look in (misused, misplaced, arguments, commands):
                problems_of_source, warnings_of_source = look(module)
                found += problems_of_source
                warnings += warnings_of_source
            warnings += untrusted_urls(module)
        if not flows and not found:
            found.append(
                SetupError("no flow found; decorate a function with @flow", file=str(files[0]))
            )
    if env:
        found += unknown
    else:
        warnings += unknown
    return Findings(tuple(flows), _by_line(found), _by_line(warnings))


def _over(flows: Sequence[AnyFlow]) -> Iterator[SetupError]:
    """Yield the timers whose only instant is past, which is right in a flow that has run."""
    for flow in flows:
        for trigger in flow.triggers:
            scheduled = parts_of(trigger).scheduled
            with suppress(*FOREIGN):  # what cannot be a schedule is a problem already
                if scheduled is not None and scheduled.next_at(utc_now(), {}) is None:
                    yield SetupError(
                        f"{flow.words}: {trigger.name} is past and never ticks again; give it a "
                        "later instant, or remove it",
                        file=flow.file,
                        line=flow.line,
                    )


def _by_line(found: list[SetupError]) -> tuple[SetupError, ...]:
    return tuple(sorted(found, key=lambda each: (each.file or "", each.line or 0)))


def _examine(path: Path, found: list[SetupError]) -> ModuleType:
    """Run a flow file statement by statement, continuing after one that fails.

    So every mistake is found at once. An error that follows from a reported one (a name that the
    failed statement would have defined) is not reported again.
    """
    missing: set[str] = set()
    with fresh_module(path) as (module, source):
        tree = ast.parse(source, str(module.__file__))
        flags = __future__.annotations.compiler_flag if _postpones_annotations(tree) else 0
        for statement in tree.body:
            block = ast.Module([statement], [])
            code = compile(block, str(module.__file__), "exec", flags, dont_inherit=True)
            try:
                # What is not awaited is a problem of its own, which says the line.
                with python_warnings.catch_warnings():
                    python_warnings.filterwarnings("ignore", "coroutine .* was never awaited")
                    exec(code, module.__dict__)
            except BaseException as error:  # foreign code may raise anything
                if isinstance(error, KeyboardInterrupt):
                    raise
                if not (isinstance(error, NameError) and error.name in missing):
                    found.append(explain(error, path.absolute()))
                missing |= _names_defined(statement)
    return module


def _postpones_annotations(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == "__future__"
        and any(alias.name == "annotations" for alias in node.names)
        for node in tree.body
    )


def _names_defined(statement: ast.stmt) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
    return names


def _unknown_secrets(file: Path, secrets_folder: Path | None) -> list[SetupError]:
    """Return each `secret("NAME")` of a file that has no value here, with its line."""
    return [
        SetupError(
            f"secret {name!r} has no value here; set the environment variable {name}",
            file=str(file),
            line=line,
        )
        for name, line in _secrets_in(file)
        if not has_value(name, secrets_folder)
    ]


def _unknown_to_channels(
    flows: Sequence[AnyFlow], files: Sequence[Path], secrets_folder: Path | None
) -> Iterator[SetupError]:
    """Yield the secrets without a value that channels of alerts have by default: `SMTP_URL`."""
    written = {name for file in files for name, _ in _secrets_in(file)}
    for flow in flows:
        for channel, name in _secrets_of_channels(flow):
            if name not in written and not has_value(name, secrets_folder):
                yield SetupError(
                    f"{flow.words}: {channel.name} takes the secret {name!r}, which has no value "
                    f"here; set the environment variable {name}",
                    file=flow.file,
                    line=flow.line,
                )


def _secrets_of_channels(flow: AnyFlow) -> Iterator[tuple[Channel, str]]:
    for channel in flow.alerts:
        made: Any = channel  # of any class
        for each in fields(made) if is_dataclass(made) else ():
            value = getattr(channel, each.name)
            if isinstance(value, Secret):
                yield channel, value.name


def _secrets_in(file: Path) -> list[tuple[str, int]]:
    """Return the secrets that a file names, with their lines.

    Read from the syntax tree, so that secrets in the bodies of flows are found too.
    """
    try:
        return list(_secret_names(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError, OSError):
        return []


def _secret_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            called, first = node.func, node.args[0]
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            if name == "secret" and isinstance(first, ast.Constant) and first.value:
                yield str(first.value), node.lineno
