"""`@flow`: a function, the triggers that start it, and the policy its runs are under."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

from turnout.service import pools
from turnout.service.domain import foreign
from turnout.service.domain.alerts import Channel
from turnout.service.domain.conditions import Conditions, Mode
from turnout.service.domain.deadline import Deadline
from turnout.service.domain.errors import MisplacedTask, SetupError
from turnout.service.domain.event import Event
from turnout.service.domain.flow import Flow, Pool
from turnout.service.domain.labels import Label, checked_labels
from turnout.service.domain.retry import RetryPolicy
from turnout.service.domain.trigger import Trigger
from turnout.service.domain.units import parse_duration, parse_timeout
from turnout.service.domain.windows.checks import is_window
from turnout.service.domain.windows.window import Window
from turnout.service.flowcontrol.bound import checked_max_queued
from turnout.service.flowcontrol.cancel_on import CancelOn, Match, checked_cancel_on
from turnout.service.flowcontrol.dependency import Dependency, dependency
from turnout.service.flowcontrol.limit import Limit, limit
from turnout.service.flowcontrol.mode import checked_mode
from turnout.service.flowcontrol.priority import NAMES, Priority
from turnout.service.flowcontrol.rate_limit import RateLimit, rate_limit
from turnout.service.flowcontrol.start_timeout import parse_start_timeout
from turnout.service.flowcontrol.throttle import Throttle, numbered, throttle
from turnout.service.flowcontrol.unique import Unique
from turnout.service.steps import children
from turnout.service.steps.author_code import where
from turnout.service.steps.durable_wait import refuse_thread
from turnout.service.steps.on_failure import check_hook
from turnout.service.steps.unawaited import to_await

from .task import checked_name, copy_metadata, refuse_unusable, retry_policy

P = ParamSpec("P")
Q = ParamSpec("Q")
A = TypeVar("A")
S = TypeVar("S")
R = TypeVar("R", covariant=True)


Order = Callable[[Event], Hashable] | Literal["key", "partition"]
"""What events are put in order by: a key of their own, or that of their source."""


Rates = Throttle | RateLimit | Sequence[Throttle | RateLimit]
"""How often runs start, or are accepted: one rule, or several."""


OnFailure = Callable[..., Any] | Channel | Sequence[Callable[..., Any] | Channel]
"""Who is told of a failure: a function, by each run, and channels, by alerts."""


class AsyncFlow(Flow[P, Coroutine[Any, Any, S]], Generic[P, S]):
    """An `async def` flow: `await bill(order)` in another flow's run is a child run."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, S]:
        """Assign the child run's key now, start it when awaited; outside a run just call."""
        child = children.call_flow(self, args, kwargs)
        if child is None:
            return to_await(self.function(*args, **kwargs), self.words)
        refuse_thread(self.name)
        return child

    def map(
        self: AsyncFlow[Concatenate[A, Q], S], items: Iterable[A], *, limit: int = 8
    ) -> Coroutine[object, None, list[S]]:
        """Start a child run for every item, at most `limit` unfinished at once; results in order.

        The first failure is raised. At most 10,000 items.
        """
        return children.map_flow(self, items, limit)


class SyncFlow(Flow[P, R]):
    """A `def` flow: its call in a `def` flow, or `await bill.run(…)`, is a child run."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Start a child run and wait for it, in a `def` flow; outside a run call the function."""
        child = children.call_flow(self, args, kwargs)
        if child is None:
            return self.function(*args, **kwargs)
        if not pools.in_thread():
            child.close()
            raise MisplacedTask(
                f"flow {self.name!r}, called at {where()}, is not async: in an `async def` flow "
                f"write `await {self.name}.run(…)`"
            )
        value: R = pools.on_loop(child)
        return value

    def run(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R]:
        """In an `async def` flow: `await bill.run(order)` is a child run.

        Its key is assigned when it is called.
        """
        child = children.call_flow(self, args, kwargs)
        if child is None:
            return to_await(_call_plainly(self.function, args, kwargs), self.words)
        return child

    def map(
        self: SyncFlow[Concatenate[A, Q], S], items: Iterable[A], *, limit: int = 8
    ) -> Coroutine[object, None, list[S]]:
        """Start a child run for every item, at most `limit` unfinished at once; results in order.

        The first failure is raised. At most 10,000 items.
        """
        return children.map_flow(self, items, limit)


async def _call_plainly(
    function: Callable[..., S], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> S:
    return function(*args, **kwargs)


class FlowDecorator(Protocol):
    """What `@flow(...)` returns: makes a flow of the function below it."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, S]], /) -> AsyncFlow[P, S]: ...  # type: ignore[overload-overlap]  # async first: a coroutine function is also a function
    @overload
    def __call__(self, function: Callable[P, S], /) -> SyncFlow[P, S]: ...


@overload
def flow(function: Callable[P, Coroutine[Any, Any, S]], /) -> AsyncFlow[P, S]: ...  # type: ignore[overload-overlap]  # async first: a coroutine function is also a function
@overload
def flow(function: Callable[P, S], /) -> SyncFlow[P, S]: ...
@overload
def flow(
    *,
    on: Trigger | Window | Iterable[Trigger] = ...,
    awaits: Trigger | Iterable[Trigger] = ...,
    when: Callable[[Event], bool] | None = ...,
    concurrency: Limit | int | Sequence[Limit | int] | None = ...,
    rate: Rates | None = ...,
    priority: Priority | None = ...,
    ordered_by: Order | None = ...,
    key: Callable[[Event], Hashable] | None = ...,
    mode: Mode | None = ...,
    unique: Unique | None = ...,
    cancel_on: Trigger | None = ...,
    match: Match | None = ...,
    max_queued: int | None = ...,
    needs: Dependency | Iterable[Dependency] = ...,
    retry: RetryPolicy | int | None = ...,
    timeout: str | timedelta | None = ...,
    start_timeout: str | timedelta | None = ...,
    shadow: bool = ...,
    pool: Pool = ...,
    on_dead: Literal["continue", "block"] = ...,
    on_failure: OnFailure | None = ...,
    expect_every: str | timedelta | None = ...,
    deadline: Deadline | None = ...,
    finish_within: str | timedelta | None = ...,
    name: str | None = ...,
    was: str | None = ...,
    owner: str | None = ...,
    tags: Sequence[str] = ...,
    description: str | None = ...,
    metrics: Mapping[str, Label] | None = ...,
    version: str | int | None = ...,
) -> FlowDecorator: ...
def flow(
    function: Callable[..., Any] | None = None,
    /,
    *,
    on: Trigger | Window | Iterable[Trigger] = (),
    awaits: Trigger | Iterable[Trigger] = (),
    when: Callable[[Event], bool] | None = None,
    concurrency: Limit | int | Sequence[Limit | int] | None = None,
    rate: Rates | None = None,
    priority: Priority | None = None,
    ordered_by: Order | None = None,
    key: Callable[[Event], Hashable] | None = None,
    mode: Mode | None = None,
    unique: Unique | None = None,
    cancel_on: Trigger | None = None,
    match: Match | None = None,
    max_queued: int | None = None,
    needs: Dependency | Iterable[Dependency] = (),
    retry: RetryPolicy | int | None = None,
    timeout: str | timedelta | None = None,
    start_timeout: str | timedelta | None = None,
    shadow: bool = False,
    pool: Pool = "thread",
    on_dead: Literal["continue", "block"] = "continue",
    on_failure: OnFailure | None = None,
    expect_every: str | timedelta | None = None,
    deadline: Deadline | None = None,
    finish_within: str | timedelta | None = None,
    name: str | None = None,
    was: str | None = None,
    owner: str | None = None,
    tags: Sequence[str] = (),
    description: str | None = None,
    metrics: Mapping[str, Label] | None = None,
    version: str | int | None = None,
) -> Any:
    """Declare a flow: with `@flow(on=every("15m"))` each event starts a run of the function.

    A run is on disk before its event is acknowledged. The body runs again from its first line after
    each wait, retry and restart of the service; calls of tasks in it that are recorded do not, so
    what has effects is a task. Parameters are filled by annotation from the event. Inside another
    flow's run, a call of the flow is a child run; outside any run it is a plain call.

    * `on`: the trigger, or a list of triggers, that start it; without one it is started by hand,
      over the API, or by another flow. Or a window over triggers, `debounce(webhook("/x"), "5s")`:
      then several events start one run
    * `awaits`: the trigger, or a list of triggers, it may `wait_for`
    * `when`: a function of the event; a run starts only if it returns true
    * `concurrency`: how many runs may be active at once: a number, `limit(8, per=lambda event: …)`
      for each key, `limit("db", 3)` over all flows that say it, or a list, of which a run takes all
      or none
    * `rate`: how many runs start in a stretch of time, `throttle("100/m")`, or are accepted,
      `rate_limit("10/s")`, or a list
    * `priority`: `"high"`, `"normal"` or `"low"`, or a function of the event that returns one; they
      share starts 8 : 2 : 1
    * `ordered_by`: a function of the event: runs of one key go one after the other, in order of
      arrival; what an operator retries or replays goes behind the others of its key. `"key"` and
      `"partition"` are those of a Kafka record, and a key of `None` has no order
    * `key`: a function of the event: which runs `mode` is about; without it, all of the flow
    * `mode`: what happens to a new run while another one of its key is under way: `"skip"` ends it,
      `"replace"` cancels the older ones, and of those that wait under `"latest"` only the newest
      stays
    * `unique`: what is asked for once, `unique(lambda event: …, until="7d")`; the second to ask
      gets the first run
    * `cancel_on`: the trigger whose events cancel the unfinished runs before them that `match`
    * `match`: which runs an event of `cancel_on` cancels: the names of fields that must be equal,
      or a function
    * `max_queued`: how many runs may wait; a delivery that finds the queue full is refused, with
      429
    * `needs`: what the runs need, `dependency("crm")` or a list: while it is down they wait
    * `retry`: how often a failed attempt is tried again: a number, or `retry(5, delay="2s")`; none
      by default. The run gives its slot back meanwhile. Retries of tasks come on top: they multiply
    * `timeout`: how long one attempt may take, such as `"5m"`; no bound by default
    * `start_timeout`: how long a run may wait for its first start; then it ends as `skipped`
    * `shadow`: true: no event starts a run; each one that would have leaves a decision with the
      reason `shadow`, and what would have happened. A flow that calls it gets `Refused`. Runs that
      were there before go on
    * `pool`: where a `def` flow runs: `"thread"` or `"process"`
    * `on_dead`: what a failed run means for its ordering key: `"continue"`, or `"block"`, which
      stops the key until somebody acts; a retry then goes before the others
    * `on_failure`: who is told when runs have failed for good: `notify.slack(secret("CHAT_URL"))`
      or another channel, once for each cause until the flow has recovered. Or the function that is
      called once for each run, as a recorded step; it gets what it asks for of `error: RunError`
      and `event: Event`. Or a list of channels, and at most one function
    * `expect_every`: the channels are told when no run has succeeded for so long, such as `"26h"`
    * `deadline`: they are told when no run has succeeded by `deadline("06:00", tz="Europe/Berlin")`
    * `finish_within`: they are told when a run has not ended so long after it was accepted
    * `name`: the flow's name, if it is not the function's
    * `was`: the flow's old name, whose runs it adopts
    * `owner`: who answers for it, a person or a team; lists can be filtered by it
    * `tags`: words by which lists can be filtered; 20 at most
    * `description`: what it does, in a line; in alerts and lists
    * `metrics`: labels of its own on the count of its runs, `{"region": label(…, values=[…])}`; 3
      at most
    * `version`: the version of its sequence of steps: runs that wait go on over any change of the
      code while it is the same; under another one a sequence that differs fails them as
      `code_changed`

    Raises `SetupError`, at the file and line of the function, for what cannot be a flow.

    ```python
    from turnout import current, every, flow, task


    @task(timeout="30s")
    async def free_bytes() -> int:
        return 12_000


    @flow(on=every("15m"), retry=2, timeout="5m")
    async def disk() -> int:
        free = await free_bytes()  # a recorded step: it is not repeated
        current().log.info("disk.measured", free=free)
        return free
    ```
    """

    def decorate(function: Callable[..., Any]) -> Any:
        refuse_unusable(function, "flow", pool)
        code = function.__code__
        try:
            kind = AsyncFlow if inspect.iscoroutinefunction(function) else SyncFlow
            made: Flow[..., Any] = kind(
                function=function,
                name=checked_name(function.__name__ if name is None else name),
                **_started_by(on),
                awaits=_triggers(awaits, "awaits"),
                when=_asked(when, "when"),
                concurrency=_concurrency(concurrency),
                priority=_priority(priority),
                ordered_by=_order(ordered_by),
                **_conditions(key, mode, unique, _rates(rate), max_queued),
                cancel_on=_cancel_on(cancel_on, match),
                needs=_needs(needs),
                retry=retry_policy(retry),
                timeout=parse_timeout(timeout),
                start_timeout=parse_start_timeout(start_timeout),
                shadow=_shadow(shadow, on),
                pool=pool,
                on_dead=_on_dead(on_dead),
                **_told(on_failure),
                **_expected(expect_every, deadline, finish_within, shadow=shadow),
                was=None if was is None else checked_name(was),
                owner=_owner(owner),
                tags=_tags(tags),
                description=_description(description),
                metrics=checked_labels(metrics),
                version=_version(version),
                file=code.co_filename,
                line=code.co_firstlineno,
            )
        except SetupError as error:
            raise SetupError(
                f"flow {name or function.__name__!r}: {error.message}",
                file=error.file or code.co_filename,
                line=error.line or code.co_firstlineno,
            ) from None
        copy_metadata(made, function)
        return made

    return decorate if function is None else decorate(function)


def _shadow(shadow: Any, on: Any) -> bool:
    if not isinstance(shadow, bool):
        raise SetupError(f"shadow={shadow!r}: write shadow=True, or leave it out")
    if shadow and is_window(on):
        raise SetupError(
            f"shadow=True with on={on.kind}(…): a shadow keeps no events, and a window is made of "
            f"them; try the flow on the stored events instead: turnout backtest FLOW"
        )
    return shadow


def _started_by(on: Any) -> dict[str, Any]:
    """Return the fields of a flow that say what starts it: triggers, or one window over some."""
    if not is_window(on):
        return {"triggers": _triggers(on)}
    return {"window": on, "triggers": on.triggers}


def _triggers(on: Any, option: str = "on") -> tuple[Trigger, ...]:
    listed = (on,) if isinstance(on, str) or not isinstance(on, Iterable) else tuple(on)
    for each in listed:
        if is_window(each):
            if len(listed) == 1 and option == "on":
                raise SetupError(
                    f"{each.kind}(…) is a window, which stands alone in on=: write "
                    f"on={each.kind}(…), without a list"
                )
            raise SetupError(
                f"{each.kind}(…) is a window, which stands alone in on=: give other triggers a "
                "flow of their own, and name a trigger in awaits= and cancel_on="
            )
        if inspect.isfunction(each):
            raise SetupError(
                f"{option}={each.__name__} is the function itself; call it: "
                f"{option}={each.__name__}(…)"
            )
        if not (hasattr(each, "name") and hasattr(each, "check")):
            raise SetupError(
                f"{option}={each!r} is not a trigger; write {option}=webhook(…), files(…), "
                "cron(…), every(…), at(…) or event(…)"
                + ("" if option == "cancel_on" else ", or a list of them")
            )
        try:
            hash(each)
        except TypeError as error:
            raise SetupError(
                f"{option}={each!r}: a trigger is a value that cannot change, so its class is a "
                f"@dataclass(frozen=True) ({error})"
            ) from None
        if not isinstance(each.name, str):
            raise SetupError(
                f"{option}={each!r}: the name of a trigger is a text, not {each.name!r}"
            )
    return listed


def _concurrency(concurrency: Any) -> tuple[Limit, ...]:
    if concurrency is None:
        return ()
    listed = concurrency if isinstance(concurrency, list | tuple) else [concurrency]
    limits = [_limit(one, concurrency) for one in listed]
    for each in limits:
        _asked(each.per, "per")
    plain = [each.words for each in limits if each.per is None and each.name is None]
    if len(plain) > 1:
        raise SetupError(
            f"concurrency=[{', '.join(plain)}]: each of them counts all runs of the flow, so only "
            "the lowest holds; keep that one, or give the others per= or a name"
        )
    names = [each.name for each in limits if each.name is not None]
    for name in names:
        if names.count(name) > 1:
            raise SetupError(f"concurrency=: the limit {name!r} is named twice; a run takes one")
    return tuple(
        each if number == 1 or each.name is not None else replace(each, rule_id=f"limit.{number}")
        for number, each in enumerate(limits, 1)
    )


def _priority(priority: Any) -> Any:
    if priority is None or priority in NAMES:
        return priority
    if not callable(priority):
        raise SetupError(
            f'priority={priority!r}: write "high", "normal" or "low", or a function of the event '
            "that returns one of them"
        )
    return _asked(priority, "priority")


def _limit(one: Any, given: Any) -> Limit:
    if isinstance(one, int) and not isinstance(one, bool):
        return limit(one)
    if not isinstance(one, Limit):
        raise SetupError(
            f"concurrency={_said(given)}: write a count, limit(8, per=lambda event: …), "
            'limit("db", 3), or a list of them'
        )
    return one


def _rates(rate: Any) -> tuple[Throttle | RateLimit, ...]:
    if rate is None:
        return ()
    listed = list(rate) if isinstance(rate, list | tuple) else [rate]
    for each in listed:
        if not isinstance(each, Throttle | RateLimit):
            example = repr(each) if isinstance(each, str) else '"100/m"'
            raise SetupError(
                f"rate={_said(each)}: write throttle({example}), which lets runs wait, or "
                f"rate_limit({example}), which skips them, or a list of these"
            )
        _asked(each.per, "per")
    return numbered(listed)


def _said(given: Any) -> str:
    """Return what an author gave as it is written: a rule by its function, else its repr."""
    if isinstance(given, Limit | Throttle | RateLimit | Dependency):
        names = {Limit: limit, Throttle: throttle, RateLimit: rate_limit, Dependency: dependency}
        return f"{names[type(given)].__name__}(…)"
    return repr(given)


def _asked(question: Any, option: str) -> Any:
    if question is None:
        return None
    if not callable(question):
        raise SetupError(f"{option}={question!r}: write a function, {option}=lambda event: …")
    foreign.refuse_unaskable(option, question)
    return question


def _order(ordered_by: Any) -> Any:
    if isinstance(ordered_by, str):
        if ordered_by not in _ORDERS:
            raise SetupError(
                f'ordered_by={ordered_by!r}: write "key", "partition", or lambda event: …'
            )
        return _ORDERS[ordered_by]
    return _asked(ordered_by, "ordered_by")


def _conditions(
    key: Any, mode: Any, unique: Any, rates: tuple[Throttle | RateLimit, ...], max_queued: Any
) -> dict[str, Any]:
    """Return the fields of a flow that say what is decided before a run is stored."""
    chosen = checked_mode(mode, _asked(key, "key"))
    if unique is not None and not isinstance(unique, Unique):
        raise SetupError(
            f"unique={unique!r}: write unique=unique(lambda event: …), with until= if the work is "
            "not to be done again for a time"
        )
    if unique is not None:
        _asked(unique.per, "unique")
    asked = Conditions(
        unique=None if unique is None else unique.until,
        mode=None if chosen is None else chosen.kind,
        rate_limits=tuple(each.condition for each in rates if isinstance(each, RateLimit)),
        max_queued=checked_max_queued(max_queued),
    )
    conditions = None if asked == Conditions() else asked
    return {"unique": unique, "mode": chosen, "rate": rates, "conditions": conditions}


def _cancel_on(trigger: Any, match: Any) -> CancelOn | None:
    if trigger is not None:
        listed: Any = [trigger] if isinstance(trigger, str) else trigger
        given = _triggers(listed, "cancel_on")
        if len(given) != 1:
            raise SetupError(f"cancel_on={trigger!r}: name one trigger")
        (trigger,) = given
    return checked_cancel_on(trigger, match)


def _by_key(event: Event) -> str | None:
    return event.extensions.get("partitionkey")


def _by_partition(event: Event) -> str | None:
    return event.extensions.get("partition")


_ORDERS = {"key": _by_key, "partition": _by_partition}


def _needs(needs: Any) -> tuple[Dependency, ...]:
    several = isinstance(needs, Iterable) and not isinstance(needs, str)
    listed = tuple(needs) if several else (needs,)
    for each in listed:
        if not isinstance(each, Dependency):
            raise SetupError(
                f'needs={_said(each)}: write needs=dependency("crm"), or a list of them'
            )
    names = [each.name for each in listed]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SetupError(f"needs= names dependency {twice!r} twice")
    return listed


def _told(on_failure: Any) -> dict[str, Any]:
    """Return the fields of a flow that say who is told of a failure: a function, and channels."""
    listed = list(on_failure) if isinstance(on_failure, list | tuple) else [on_failure]
    channels = [each for each in listed if _is_channel(each)]
    hooks = [each for each in listed if each is not None and not _is_channel(each)]
    for each in hooks:
        if hasattr(each, "channel"):
            raise SetupError(
                f"on_failure={each.name}: say whom it tells, on_failure={each.name}(…), such as "
                'notify.slack(secret("CHAT_URL"))'
            )
        if inspect.iscoroutine(each):
            each.close()
            raise SetupError(
                "on_failure=notify(…): leave out the text: turnout writes what is told"
            )
        check_hook(each)
    if len(hooks) > 1:
        raise SetupError("on_failure=[…] names several functions; call the others from the first")
    names = [each.name for each in channels]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SetupError(f"on_failure=[…] names {twice} twice")
    return {"on_failure": hooks[0] if hooks else None, "alerts": tuple(channels)}


def _is_channel(given: Any) -> bool:
    return (
        not inspect.isfunction(given)
        and callable(getattr(given, "send", None))
        and (isinstance(getattr(given, "name", None), str) and not inspect.iscoroutine(given))
    )


def _expected(
    expect_every: Any, deadline: Any, finish_within: Any, *, shadow: Any
) -> dict[str, Any]:
    """Return the fields of a flow that say what is expected of it."""
    if deadline is not None and not isinstance(deadline, Deadline):
        raise SetupError(f'deadline={deadline!r}: write deadline("06:00", tz="Europe/Berlin")')
    expected = {
        "expect_every": _period("expect_every", expect_every),
        "deadline": deadline,
        "finish_within": _period("finish_within", finish_within),
    }
    if shadow:
        asked = next((name for name, given in expected.items() if given is not None), None)
        if asked is not None:
            raise SetupError(f"shadow=True with {asked}=: a shadow starts no runs; leave one out")
    return expected


_SHORTEST = timedelta(seconds=1)


def _period(option: str, value: Any) -> timedelta | None:
    try:
        length = None if value is None else parse_duration(value)
    except SetupError as error:
        raise SetupError(f"{option}=: {error.message}") from None
    if length is not None and length < _SHORTEST:
        raise SetupError(f"{option}={value!r}: it is one second at least")
    return length


def _owner(owner: Any) -> str | None:
    if owner is None or (isinstance(owner, str) and owner.isprintable() and 0 < len(owner) <= 200):
        return owner
    raise SetupError(f"owner={owner!r}: an owner is 1 to 200 printable characters")


_MOST_TAGS = 20
_TAG = re.compile(r"[\w.:/-]{1,50}")


def _tags(tags: Any) -> tuple[str, ...]:
    if isinstance(tags, str):
        raise SetupError(f"tags={tags!r}: write a list, tags=[{tags!r}]")
    listed = tuple(tags)
    for each in listed:
        if not isinstance(each, str) or not _TAG.fullmatch(each):
            raise SetupError(
                f"tags=: {each!r} is no tag: 1 to 50 letters, digits and _ . : / - without spaces"
            )
    if len(listed) > _MOST_TAGS:
        raise SetupError(f"tags=: a flow has {_MOST_TAGS} tags at most, not {len(listed)}")
    return tuple(dict.fromkeys(listed))


def _description(description: Any) -> str | None:
    text = description
    if text is None or (isinstance(text, str) and text.isprintable() and 0 < len(text) <= 500):
        return text
    raise SetupError(
        f"description={description!r:.80}: a description is a line of 1 to 500 printable characters"
    )


def _version(version: str | int | None) -> str | None:
    if version is None or str(version).isprintable():
        return None if version is None else str(version)
    raise SetupError(f"version={version!r}: write text that can be printed")


def _on_dead(on_dead: str) -> Any:
    if on_dead not in ("continue", "block"):
        raise SetupError(f'on_dead is "continue" or "block", not {on_dead!r}')
    return on_dead
