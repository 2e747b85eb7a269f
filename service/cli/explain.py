"""`turnout explain FLOW`: what starts a flow, what bounds it, what is recorded, what runs again."""

# ruff: noqa: D301  click takes the escape for its own: "\b" keeps the lines of an example apart

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from turnout.service.domain.errors import SetupError

from .options import with_json
from .output import heading, print_facts, print_json, say

if TYPE_CHECKING:
    from turnout.service.project.explain import Call, Explanation

_RULE = "What has an effect, or may answer differently next time, belongs in a @task."


@click.command()
@click.argument("target", metavar="[FILE.py|FOLDER:]FLOW")
@click.option("--schema", is_flag=True, help="Print the JSON schema of each parameter, too.")
@with_json
def explain(target: str, schema: bool, as_json: bool) -> None:
    """Explain a flow: triggers, limits, parameters, what is a step and what runs again.

    From the flow files; no service is needed, and nothing runs. Without a file the working folder
    is searched.

    \b
    turnout explain flows.py:order
    turnout explain order --schema
    """
    from turnout.service.project.explain import explain as explained
    from turnout.service.project.loader import loading

    path, _, name = target.rpartition(":")
    with loading([Path(path or ".")]) as project:
        flow = project.flows.get(name)
        if flow is None:
            known = ", ".join(sorted(project.flows))
            raise SetupError(f"no flow {name!r} in {path or 'this folder'}; there are: {known}")
        found = explained(flow)
        document = found.as_dict()
    if as_json:
        print_json(document)
        return
    _show(found, document)
    if schema:
        for each in document["parameters"]:
            if "schema" in each:
                heading(f"schema of {each['name']}")
                say(json.dumps(each["schema"], indent=2))


def _show(found: Explanation, document: dict[str, Any]) -> None:
    flow = found.flow
    say(f"{flow.name}  {flow.file}:{flow.line}")
    print_facts(
        ("about", found.about), ("owner", flow.owner),
        ("version", flow.version or "that of the code"),
        ("triggers", ", ".join(document["triggers"]) or "none: by hand, the API, or another flow"),
        ("awaits", ", ".join(document["awaits"])),
        ("state", "kept between runs: turnout state" if flow.keeps_state else ""),
    )  # fmt: skip
    _section("policy", (f"{name}={text}" for name, text in found.options.items()))
    _section("parameters", (_parameter(each) for each in document["parameters"]))
    _section("recorded: once done it is not repeated", (_recorded(call) for call in found.recorded))
    _section(
        "runs again, after each wait, retry and restart",
        (f"line {call.line:<4} {call.text}" for call in found.repeated),
    )
    if found.repeated:
        say(f"\n{_RULE}")


def _section(title: str, lines: Iterator[str]) -> None:
    shown = list(lines)
    if shown:
        heading(title)
        for line in shown:
            say(f"  {line}")


def _parameter(each: dict[str, Any]) -> str:
    source = {
        "event": "the event itself", "file": "the event's file", "body": "the raw body",
        "resource": "a resource", "data": "the event's data",
    }[each["from"]]  # fmt: skip
    schema = each.get("schema", {})
    needed = schema.get("required", ())
    fields = ", ".join(
        f"{name}{'' if name in needed else '?'}" for name in schema.get("properties", ())
    )
    default = "" if each["required"] else ", or its default"
    return f"{each['name']}: {each['type']}  from {source}{default}" + f" ({fields})" * bool(fields)


def _recorded(call: Call) -> str:
    policy = ", ".join(
        f"{name} {value}" if value is not True else name for name, value in call.policy.items()
    )
    return f"line {call.line:<4} {call.name:<14} {call.kind}" + f" ({policy})" * bool(policy)
