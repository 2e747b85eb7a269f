"""The exit codes of commands, and the line at the end of each command's help that tells them."""

from __future__ import annotations

import click

PROBLEM = 1
USAGE = 2
UNAVAILABLE = 69
UNEXPECTED = 70
IO = 74
CUT_OFF = 75
CONFIG = 78
INTERRUPTED = 130
PIPE = 141

_REFUSED = "it was refused, or there is no such run, event or trigger"
_PROBLEMS = {
    "check": "there is a problem",
    "doctor": "a check fails",
    "run": "the run does not succeed",
    "serve": "never",
    "runs": "never",
    "events": "the filter names an event that is not clear",
    "dead list": "never",
    "backup": "the journal has lost results, or another backup is under way",
    "restore": "the file is damaged, or no backup",
    "upgrade": "there is too little space for it",
    "retry": "one of the runs was refused",
    "cancel": "one of the runs was refused",
    "dead replay": "one of the runs was refused",
    "dead drop": "one of the runs was refused",
}
"""When a command exits 1, where that is not the common reason."""

_ASK_NO_SERVICE = {
    "serve", "check", "run", "new", "help", "explain", "backup", "restore", "upgrade",
}  # fmt: skip
"""Commands that never ask a running service."""


def add_to_help(group: click.Group, prefix: str = "") -> None:
    """Tell the exit codes at the end of the help of each command of a group."""
    for name, command in group.commands.items():
        full = f"{prefix}{name}"
        if isinstance(command, click.Group):
            add_to_help(command, f"{full} ")
        command.epilog = command.epilog or _told(full)


def _told(name: str) -> str:
    problem = _PROBLEMS.get(name, _REFUSED)
    one = "" if problem == "never" else f"1 {problem}; "
    service = "" if name in _ASK_NO_SERVICE else "69 no service answers, or it is too busy; "
    is_serve = name == "serve"
    unexpected = "70 an unexpected error; " if is_serve else ""
    cut_off = "75 steps were cut off; " if is_serve else ""
    return (
        f"Exit codes: 0 done; {one}2 wrong usage; {service}{unexpected}"
        f"74 the journal's disk failed or is full; {cut_off}78 wrong settings or flow files."
    )
