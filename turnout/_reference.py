"""The reference: an entry for every public name, made of its signature and its docstring.

`turnout help NAME` prints an entry and `handlers/REFERENCE.md` holds all of them, so the text an
editor shows, the command and the page are one. A docstring is Markdown: the promise, a list item
for each parameter, what it raises, and an example.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from textwrap import indent
from typing import Any

from ._paragraphs import EXAMPLE, cut, paragraphs
from ._signatures import defaults_of, parameters_of, shown, subject_of, written

MODULES = ("turnout", "turnout.testing")

_PARTS = {"kafka": ("publish",), "notify": ("slack", "email", "webhook")}
"""What is called through a name and has an entry of its own."""

_OPTION = re.compile(r"^\* `(\w+)`: (.*?)(?=^\* |^$|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Member:
    """What belongs to a name and is used through it, as `current().key` is."""

    name: str
    signature: str
    text: str


@dataclass(frozen=True)
class Entry:
    """What there is to say about one public name."""

    name: str
    module: str
    kind: str
    signature: str
    text: str
    parameters: Sequence[str]
    defaults: Mapping[str, str]
    members: Sequence[Member] = ()

    @property
    def promise(self) -> str:
        """The first sentence."""
        return self.text.partition("\n")[0]

    @property
    def heading(self) -> str:
        """The name, told from those that differ by a capital letter or by their module only."""
        kind = f"{self.kind} of {self.module}" if self.is_second else self.kind
        return f"{self.name} ({kind})" if kind else self.name

    @property
    def is_second(self) -> bool:
        """Whether a module before this one has the name too."""
        return (self.name, self.module) != next(each for each in names() if each[0] == self.name)

    @property
    def options(self) -> Mapping[str, str]:
        """What each parameter means, by its name."""
        return {name: " ".join(text.split()) for name, text in _OPTION.findall(self.text)}

    @property
    def example(self) -> str | None:
        """The program that shows how it is used; None if there is none."""
        found = EXAMPLE.search(self.text)
        return None if found is None else found[1]

    @property
    def body(self) -> str:
        """The whole text, each option with its default."""
        return _OPTION.sub(self._with_default, self.text)

    def plain(self, width: int) -> str:
        """Return it for a terminal of so many columns."""
        imported = f"from {self.module} import {self.name.partition('.')[0]}"
        parts = [self.signature, imported, *paragraphs(self.body, width)]
        for each in self.members:
            told = "\n\n".join(paragraphs(each.text, width - 4))
            parts += [each.signature, indent(told, "    ")]
        return "\n\n".join(parts) + "\n"

    def markdown(self) -> str:
        """Return it as a section of a page."""
        parts = [f"### {self.heading}", f"```text\n{self.signature}\n```", self.body]
        parts += [f"**`{each.signature}`** {each.text}" for each in self.members]
        return "\n\n".join(parts)

    def _with_default(self, found: re.Match[str]) -> str:
        default = self.defaults.get(found[1])
        told = "" if default is None else f" = `{default}`"
        return f"* `{found[1]}`{told}: {found[2]}"


@dataclass(frozen=True)
class Part:
    """A member or an option of an entry, asked for by its own name."""

    of: Entry
    signature: str
    text: str

    def plain(self, width: int) -> str:
        """Return it for a terminal of so many columns."""
        whole = f"The whole entry: turnout help {self.of.name}"
        return "\n\n".join([self.signature, *paragraphs(self.text, width), whole]) + "\n"


def names() -> Iterator[tuple[str, str]]:
    """Yield each public name with the module it is imported from."""
    for module in MODULES:
        for name in sorted(importlib.import_module(module).__all__, key=str.lower):
            yield name, module
            yield from ((f"{name}.{part}", module) for part in _PARTS.get(name, ()))


def entry(name: str, module: str) -> Entry:
    """Return the entry of a public name."""
    value = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    subject = subject_of(value)
    return Entry(
        name=name,
        module=module,
        kind=_kind(value),
        signature=shown(name, value, subject),
        text=_CONSTANTS.get(name) or inspect.getdoc(subject) or "",
        parameters=parameters_of(name, subject),
        defaults=defaults_of(subject),
        members=tuple(_members(name, value)),
    )


def entries() -> Iterator[Entry]:
    """Yield every entry, in the order of the page."""
    for name, module in names():
        yield entry(name, module)


def page() -> str:
    """Return all entries as Markdown."""
    parts = []
    for module in MODULES:
        made = [entry(name, where) for name, where in names() if where == module]
        links = ", ".join(f"[`{each.name}`](#{_anchor(each.heading)})" for each in made)
        parts += [f"## from {module} import …", links, *(each.markdown() for each in made)]
    return "\n\n".join(parts) + "\n"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def find(name: str) -> Entry | Part | None:
    """Return what a user means: `emit`, `current.key`, `state.get`, `webhook.respond`, `reveal`."""
    said = re.sub(r"\(.*?\)", "", name).removeprefix("turnout.")
    asked = said.removeprefix("testing.")
    for known, module in names():
        if known == asked and (said == asked or module == "turnout.testing"):
            return entry(known, module)
    owner, _, part = asked.rpartition(".")
    for each in entries():
        if owner in ("", each.name):
            found = _part(each, part, options=bool(owner))
            if found is not None:
                return found
    for each in entries():
        for member in each.members:
            if owner and f".{_written(member)}".endswith(f".{asked}"):
                return Part(each, member.signature, member.text)
    return None


def _written(member: Member) -> str:
    """Return how a member is reached, without what it is called with: `current.state.get`."""
    return re.sub(r"\(…?\)|^await ", "", member.signature).partition("(")[0]


def _part(one: Entry, name: str, *, options: bool) -> Part | None:
    for member in one.members:
        if member.name == name:
            return Part(one, member.signature, member.text)
    if options and name in one.options:
        default = one.defaults.get(name)
        told = "" if default is None else f" = {default}"
        return Part(one, f"{one.name}({name}{told})", one.options[name])
    return None


def overview(width: int) -> Iterator[tuple[str, str]]:
    """Yield each module with a line for each of its names."""
    for module in MODULES:
        made = [entry(name, where) for name, where in names() if where == module]
        told = ((each.name, each.promise.partition(": `")[0].rstrip(".")) for each in made)
        yield module, "\n".join(cut(f"  {name:<14} {text}", width) for name, text in told)


def unknown(name: str, others: Sequence[str]) -> str:
    """Return what to say of a name that is neither here nor among `others`, with a guess."""
    known = [*(each for each, _ in names()), *others]
    close = get_close_matches(name, known, n=1) or get_close_matches(name.lower(), known, n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"there is no {name!r} to import{guess or ';'} `turnout help` lists all names."


def _kind(value: Any) -> str:
    if not inspect.isclass(value):
        return ""
    return "exception" if issubclass(value, BaseException) else "class"


# ---------------------------------------------------------------- what belongs to a name

_CONSTANTS = {
    "START": """The instant a test begins at: midnight UTC on 1 January 2026.

The clock of `serve` shows it, unless `start=` says otherwise, and events made for tests have it.
Raises nothing: it is a value.

```python
from turnout import flow
from turnout.testing import START, run


@flow
async def nothing() -> None: ...


def test_no_time_passes() -> None:
    assert START.isoformat() == "2026-01-01T00:00:00+00:00"
    assert run(nothing).took.total_seconds() == 0
```
"""
}
"""Names that are values: they have no docstring of their own."""

_THROUGH: Mapping[str, tuple[str, ...]] = {
    "artefact": (
        "turnout.service.steps.artefacts:Artefact.path",
        "turnout.service.steps.artefacts:Artefact.read",
    ),
    "approval": (
        "turnout.service.steps.approval:Asked.link",
        "turnout.service.steps.approval:Approval.name",
        "turnout.service.steps.approval:Approval.by",
        "turnout.service.steps.approval:Approval.fields",
    ),
    "current": tuple(
        f"turnout.service.steps.context:RunContext.{name}"
        for name in (
            "run",
            "event",
            "attempt",
            "tenant",
            "trace",
            "log",
            "cancelled",
            "key",
            "on_undo",
            "attach",
            "state",
            "history",
        )
    ),
    "state": (
        "turnout.service.steps.flow_state:State.get",
        "turnout.service.steps.flow_state:State.set",
    ),
    "budget": ("turnout.handlers.actions.budget:Budget.take",),
    "http": tuple(
        f"turnout.handlers.actions.http:Http.{name}"
        for name in ("get", "head", "post", "put", "patch", "delete")
    ),
    "shell": ("turnout.handlers.actions.shell:Shell.blocking",),
    "flow": (
        "turnout.handlers.flow:AsyncFlow.map",
        "turnout.handlers.flow:SyncFlow.run",
    ),
    "task": (
        "turnout.handlers.task:AsyncTask.map",
        "turnout.handlers.task:SyncTask.run",
    ),
    "secret": (
        "turnout.service.governance.secrets:Secret.reveal",
        "turnout.service.governance.secrets:Secret.is_declared",
    ),
}
"""What a user meets through a name that makes it, or a part of a class that is not all public."""

_FIELDS = {
    "Approval.name": "Who was asked, or what for.",
    "Approval.by": "Who answered, as far as it is known; empty if not.",
    "Approval.fields": "What the person filled in, an instance of `fields`.",
}

_SPOKEN = {
    "current": "current()",
    "secret": "secret(…)",
    "Http": "http",
    "HttpResponse": "answer",
    "Shell": "shell",
    "ShellResult": "result",
    "Artefact": "artefact(…)",
    "approval": "approval(…)",
    "Budget": "budget(…)",
    "Approval": "said",
    "State": "current().state",
    "Service": "service",
    "Clock": "service.clock",
    "Event": "event",
    "RunError": "error",
}
"""How a member's owner is written: `current().run`, `said.by`."""


def _members(name: str, value: Any) -> Iterator[Member]:
    through = _THROUGH.get(name, ())
    for place in (*through, *(_THROUGH["state"] if name == "current" else ())):
        module, _, path = place.partition(":")
        owner, _, member = path.partition(".")
        spoken = _SPOKEN.get(owner) or _SPOKEN.get(name, name.upper())
        yield _member(spoken, getattr(importlib.import_module(module), owner), member)
    if inspect.isclass(value) and not issubclass(value, BaseException):
        fields: Mapping[str, object] = getattr(value, "__dataclass_fields__", {})
        for member in vars(value):
            if not member.startswith("_") and member not in fields:
                yield _member(_SPOKEN.get(name, name), value, member)


def _member(spoken: str, owner: type, name: str) -> Member:
    value = inspect.getattr_static(owner, name, None)
    text = _FIELDS.get(f"{owner.__name__}.{name}") or inspect.getdoc(value) or ""
    if isinstance(value, property) or not callable(value):
        return Member(name, f"{spoken}.{name}", text)
    form = written(inspect.signature(value), skip_first=True)
    prefix = "await " if inspect.iscoroutinefunction(value) else ""
    return Member(name, f"{prefix}{spoken}.{name}{form}", text)
