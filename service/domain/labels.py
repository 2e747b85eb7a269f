"""Labels of a flow's own on the count of its runs: `metrics={"region": label(…, values=[…])}`.

Their values are declared, so that what events bring never decides how many series there are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import foreign
from .errors import SetupError
from .event import Event

OTHER = "other"
MOST_LABELS = 3
MOST_SERIES = 100
MAX_VALUE_CHARACTERS = 100

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN = frozenset({"flow", "outcome", "job", "instance", "le", "quantile"})


@dataclass(frozen=True, slots=True)
class Label:
    """A function of the event, and the values that it may have."""

    of: Callable[[Event], object]
    values: tuple[str, ...]

    def value(self, event: Event) -> str:
        """Return the declared value of an event, else `other`; raises what the function raises."""
        answer = foreign.ask(self.of, event)
        text = str.__str__(answer) if isinstance(answer, str) else answer
        return text if isinstance(text, str) and text in self.values else OTHER


def label(value: Callable[[Event], object], /, *, values: Sequence[str]) -> Label:
    """Declare a label of a flow's metrics: `label(lambda event: event.data["region"], values=…)`.

    It goes to `@flow(metrics={"region": …})` and tells the flow's runs apart in
    `turnout_runs_total`. An event of which the function returns anything else, or raises an error,
    counts as `other`, and so does a run that ends while it is not running, such as one that is
    cancelled before its start.

    * `value`: a function of the event, asked when the run has ended
    * `values`: the values it may have, as text: they are declared, so that events cannot make new
      series

    Raises `SetupError` for what is no function, and for values that are no list of texts.

    ```python
    from turnout import event, flow, label


    @flow(
        on=event("order.placed"),
        metrics={"region": label(lambda event: event.data["region"], values=["eu", "us"])},
    )
    async def ship(order: dict[str, str]) -> str:
        return f"shipped to {order['region']}"
    ```
    """
    if not callable(value):
        raise SetupError(f"label({value!r}): write a function, label(lambda event: …, values=[…])")
    foreign.refuse_unaskable("label", value)
    return Label(value, _checked_values(values))


def _checked_values(values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise SetupError(f'label(values={values!r}): list what it may be, values=["eu", "us"]')
    for each in values:
        if not isinstance(each, str) or not each.isprintable():
            raise SetupError(f"label(values=…): a value is text that can be printed, not {each!r}")
        if not 0 < len(each) <= MAX_VALUE_CHARACTERS:
            raise SetupError(
                f"label(values=…): a value has 1 to {MAX_VALUE_CHARACTERS} characters; "
                f"{each[:20]!r} has {len(each)}"
            )
        if each == OTHER:
            raise SetupError(
                f"label(values=…): {OTHER!r} stands for all that is not listed; leave it out"
            )
    twice = next((each for each in values if values.count(each) > 1), None)
    if twice is not None:
        raise SetupError(f"label(values=…): {twice!r} is listed twice")
    return tuple(str.__str__(each) for each in values)


def checked_labels(metrics: Any) -> dict[str, Label]:
    """Return the labels of a flow by name; raises `SetupError` for what cannot be labels."""
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise SetupError(
            f'metrics={metrics!r}: write metrics={{"region": label(lambda event: …, values=[…])}}'
        )
    for name, each in metrics.items():
        _check_label(name, each)
    if len(metrics) > MOST_LABELS:
        raise SetupError(
            f"metrics= has {len(metrics)} labels, {', '.join(metrics)}: {MOST_LABELS} at most, "
            "since their values multiply; leave some out"
        )
    series = math.prod(len(each.values) + 1 for each in metrics.values())
    if series > MOST_SERIES:
        raise SetupError(
            f"metrics=: the values of {', '.join(metrics)} make {series} series, {OTHER!r} "
            f"included: {MOST_SERIES} at most; list fewer values"
        )
    return dict(metrics)


def _check_label(name: Any, value: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SetupError(
            f'metrics= names a label {name!r}: write small letters, digits and _, such as "region"'
        )
    if name in _TAKEN:
        raise SetupError(
            f"metrics= names a label {name!r}, which turnout or Prometheus sets; choose another "
            "name"
        )
    if not isinstance(value, Label):
        raise SetupError(
            f"metrics={{{name!r}: {value!r}}}: write {name!r}: label(lambda event: …, values=[…])"
        )
