"""A flow: what an author declares, as a value: a function, its triggers and its policy.

Calling a flow calls the function: nothing is recorded, so unit tests need no turnout.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from types import CodeType
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeVar

from . import foreign
from .alerts import AlertRule, Channel
from .binding import Binding
from .condition import Condition, condition_of
from .conditions import Conditions
from .deadline import Deadline
from .errors import SetupError
from .event import Event
from .event_columns import EventColumns
from .labels import Label
from .retry import RetryPolicy
from .trigger import Trigger
from .windows.firing import Firing, firing_of
from .windows.window import Window

_OWN = frozenset({"turnout.handlers.flow", "turnout.service.flowcontrol.mode"})

P = ParamSpec("P")
R = TypeVar("R", covariant=True)

Pool = Literal["thread", "process"]

CODE_VERSION = "__turnout_code_version__"
"""The name under which the loader leaves a flow file's hash in its module."""


class Rule(Protocol):
    """A rule of flow control that a flow declares; the rules are in `service/flowcontrol`.

    `per` returns the key by which the rule tells runs apart, None if all count alike. `rule_id` is
    the name under which a run keeps that key, `option` how an author writes it, such as `per=`.
    """

    @property
    def per(self) -> Callable[[Event], Hashable] | None: ...  # noqa: D102
    @property
    def rule_id(self) -> str: ...  # noqa: D102
    @property
    def option(self) -> str: ...  # noqa: D102


class NamedRule(Rule, Protocol):
    """A rule that flows share if it has a `name`; `words` is the rule as it is written."""

    @property
    def name(self) -> str | None: ...  # noqa: D102
    @property
    def words(self) -> str: ...  # noqa: D102


class LimitRule(NamedRule, Protocol):
    """A limit of `count` runs at once."""

    @property
    def count(self) -> int: ...  # noqa: D102

    def warning(self, flow: Flow[..., Any], /) -> str | None:
        """Return what `turnout check` warns of where a flow declares this rule."""


class Warns(Rule, Protocol):
    """A rule of which `turnout check` may warn."""

    def warning(self, flow: Flow[..., Any], /) -> str | None:
        """Return what `turnout check` warns of where a flow declares this rule."""


class Cancels(Rule, Protocol):
    """A rule that cancels runs by the events of a trigger."""

    @property
    def trigger(self) -> Trigger: ...  # noqa: D102

    def key(self, event: Event) -> str | None:
        """Return the key of the runs that an event cancels, None for none."""


def key_of(rule: Rule, event: Event) -> str | None:
    """Return the key of a rule for an event, as text; None if the rule or the event has none."""
    key = None if rule.per is None else foreign.ask(rule.per, event)
    return None if key is None else foreign.as_key(rule.option, key)


class Need(Protocol):
    """A dependency that a flow declares by `needs=`; its breaker is in `service/flowcontrol`."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def probe(self) -> timedelta: ...  # noqa: D102
    def is_failed_by(self, error: BaseException) -> bool:
        """Whether an error that ends an attempt counts as a failure of the dependency."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Flow(Generic[P, R]):
    """A function, what starts it, and the policy it runs under."""

    function: Callable[P, R]
    name: str
    triggers: tuple[Trigger, ...] = ()
    window: Window | None = None
    awaits: tuple[Trigger, ...] = ()
    when: Callable[[Event], bool] | None = None
    concurrency: tuple[LimitRule, ...] = ()
    rate: tuple[NamedRule, ...] = ()
    priority: Callable[[Event], object] | str | None = None
    ordered_by: Callable[[Event], Hashable] | None = None
    unique: Rule | None = None
    mode: Warns | None = None
    cancel_on: Cancels | None = None
    conditions: Conditions | None = None
    needs: tuple[Need, ...] = ()
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: timedelta | None = None
    start_timeout: timedelta | None = None
    shadow: bool = False
    pool: Pool = "thread"
    on_dead: Literal["continue", "block"] = "continue"
    on_failure: Callable[..., Any] | None = None
    was: str | None = None
    alerts: tuple[Channel, ...] = ()
    expect_every: timedelta | None = None
    deadline: Deadline | None = None
    finish_within: timedelta | None = None
    owner: str | None = None
    tags: tuple[str, ...] = ()
    description: str | None = None
    metrics: Mapping[str, Label] = field(default_factory=dict)
    version: str | None = None
    file: str = ""
    line: int = 0

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function itself: no journal, no retries."""
        return self.function(*args, **kwargs)

    @cached_property
    def words(self) -> str:
        """The flow in words, for messages."""
        return f"flow {self.name!r}"

    @cached_property
    def binding(self) -> Binding:
        """How an event fills the function's parameters; raises `SetupError` when it cannot.

        A flow without a trigger may take lists that no event fills, but the members of a window:
        it is the one of `on_timeout=`.
        """
        if self.takes_list or (not self.triggers and self._takes_members_only):
            return self.member_binding
        return Binding.of(self.function, file=self.file, line=self.line, flow=self.name)

    @cached_property
    def takes_list(self) -> bool:
        """Whether a run of its window is called with a list, one item for each member."""
        return self.window is not None and self.window.settings.gives_list

    @cached_property
    def member_binding(self) -> Binding:
        """How the members of a window fill the parameters, each a list; raises `SetupError`."""
        return Binding.of(self.function, file=self.file, line=self.line, flow=self.name, many=True)

    @cached_property
    def _takes_members_only(self) -> bool:
        """Whether only the members of a window can fill its parameters, such as `list[Event]`."""
        try:
            Binding.of(self.function, file=self.file, line=self.line, flow=self.name)
        except SetupError:
            return self._may_take_lists
        return False

    @cached_property
    def firing(self) -> Firing:
        """What the run of a window is made of besides its members."""
        return firing_of(self.code_version, self.conditions)

    @cached_property
    def is_async(self) -> bool:
        """Whether the function runs on the loop (`async def`) or in a pool (`def`)."""
        return inspect.iscoroutinefunction(self.function)

    @cached_property
    def code_version(self) -> str:
        """The declared `version`, else 12 hex digits of the SHA-256 of the flow file as loaded.

        Empty outside a project.
        """
        if self.version is not None:
            return self.version
        module = sys.modules.get(self.function.__module__)
        return getattr(module, CODE_VERSION, "")

    @cached_property
    def condition(self) -> Condition | None:
        """What `when=` says, in words, and where; None without it."""
        if self.when is None:
            return None
        return condition_of("when", self.when, self.file, self.line)

    @cached_property
    def keeps_state(self) -> bool:
        """Whether the function uses `current().state`, as far as the names in it tell."""
        return _names_state(getattr(self.function, "__code__", None))

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """Every rule of flow control that it declares."""
        more = (self.unique, self.mode, self.cancel_on)
        return (*self.concurrency, *self.rate, *(rule for rule in more if rule is not None))

    @cached_property
    def keyed(self) -> tuple[Rule, ...]:
        """The rules that tell its runs apart by a key."""
        return tuple(rule for rule in self.rules if rule.per is not None)

    @cached_property
    def alert_rules(self) -> tuple[AlertRule, ...]:
        """What may open an alert about it."""
        asked = {
            AlertRule.FAILURE: self.alerts,
            AlertRule.EXPECT_EVERY: self.expect_every,
            AlertRule.DEADLINE: self.deadline,
            AlertRule.FINISH_WITHIN: self.finish_within,
        }
        return tuple(rule for rule, given in asked.items() if given)

    @cached_property
    def watched(self) -> tuple[Trigger, ...]:
        """The triggers whose events do not start it: those it may wait for, and of `cancel_on=`."""
        return self.awaits if self.cancel_on is None else (*self.awaits, self.cancel_on.trigger)

    @cached_property
    def collects(self) -> bool:
        """Whether each event that fits joins the one batch that is open, whatever is in it."""
        window = self.window
        of_key = self.ordered_by is not None or bool(self.keyed) or self.priority is not None
        may_pass = self.when is not None or self.shadow or of_key
        return window is not None and window.kind == "batch" and window.per is None and not may_pass

    @cached_property
    def asks(self) -> bool:
        """Whether code of the author's is asked about an event before it starts a run."""
        priority = self.priority if callable(self.priority) else None
        per = None if self.window is None else self.window.per
        asked = (self.when, self.ordered_by, priority, per, *(rule.per for rule in self.keyed))
        # What `ordered_by="key"` stands for is turnout's own, and changes nothing.
        return any(each is not None and each.__module__ not in _OWN for each in asked)

    def wants(self, event: Event) -> bool:
        """Whether `when=` lets the event start a run."""
        return self.when is None or foreign.is_true("when=", foreign.ask(self.when, event))

    def order_key(self, event: Event) -> str | None:
        """Return the key runs are serialised by, as text; None is no order at all."""
        if self.ordered_by is None:
            return None
        key = foreign.ask(self.ordered_by, event)
        return None if key is None else foreign.as_key("ordered_by=", key)

    def bind(self, event: Event) -> Mapping[str, Any]:
        """Return the arguments for `event`; raises `InvalidData` naming the field."""
        return foreign.ask(self.binding.arguments, event)

    def bind_member(self, event: Event) -> Mapping[str, Any]:
        """Return what one member of a window fills in; raises `InvalidData` naming the field."""
        if self.takes_list:
            return foreign.ask(self.binding.of_member, event)
        return self.bind(event)

    def bind_columns(self, columns: EventColumns) -> Mapping[str, list[Any]]:
        """Return what each of these events fills in, as `bind_member` does."""
        return foreign.ask(self.binding.of_columns, columns)

    def bind_members(self, events: Sequence[Event]) -> Mapping[str, Any]:
        """Return the arguments for the members that the run of a window is called with.

        A flow that takes no list gets the first one of an absence, which has opened it, else the
        last one: its window was another one when it opened.
        """
        if self.takes_list or (self.window is None and self._may_take_lists):
            return foreign.ask(self.member_binding.of_members, events)
        is_absence = self.window is not None and self.window.kind == "absent"
        return self.bind(events[0 if is_absence else -1])

    @cached_property
    def _may_take_lists(self) -> bool:
        """Whether each of its parameters can be a list of what members fill in."""
        try:
            return bool(self.member_binding.members)
        except SetupError:
            return False

    def window_key(self, event: Event) -> str | None:
        """Return the key of the window of an event, empty without `per=`; None: it has none."""
        assert self.window is not None
        if self.window.per is None:
            return ""
        key = foreign.ask(self.window.per, event)
        return None if key is None else foreign.as_key("per=", key)


def _names_state(code: object) -> bool:
    if not isinstance(code, CodeType):
        return False
    names = set(code.co_names)
    uses = {"current", "state"} <= names and not names.isdisjoint({"get", "set"})
    return uses or any(_names_state(inner) for inner in code.co_consts)
