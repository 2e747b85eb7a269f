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
        return declared_value(foreign.ask(self.of, event), self.values)


def declared_value(answer: object, values: Sequence[str]) -> str:
    """Return an answer if it is one of the declared values, else `other`."""
    text = str.__str__(answer) if isinstance(answer, str) else None
    return text if text is not None and text in values else OTHER


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
    return Label(value, checked_values("label(values=…)", values))


def checked_values(where: str, values: Any) -> tuple[str, ...]:
    """Return the values of a label; raises `SetupError` that says `where`."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise SetupError(f'{where}: list what it may be, such as ["eu", "us"], not {values!r}')
    for each in values:
        if not isinstance(each, str) or not each.isprintable():
            raise SetupError(f"{where}: a value is text that can be printed, not {each!r}")
        if not 0 < len(each) <= MAX_VALUE_CHARACTERS:
            raise SetupError(
                f"{where}: a value has 1 to {MAX_VALUE_CHARACTERS} characters; "
                f"{each[:20]!r} has {len(each)}"
            )
        if each == OTHER:
            raise SetupError(f"{where}: {OTHER!r} stands for all that is not listed; leave it out")
    twice = next((each for each in values if values.count(each) > 1), None)
    if twice is not None:
        raise SetupError(f"{where}: {twice!r} is listed twice")
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
        if not isinstance(each, Label):
            raise SetupError(
                f"metrics={{{name!r}: {each!r}}}: write {name!r}: label(lambda event: …, "
                "values=[…])"
            )
    refuse_label_names("metrics", {name: each.values for name, each in metrics.items()})
    return dict(metrics)


def refuse_label_names(option: str, labels: Mapping[Any, Sequence[str]]) -> None:
    """Raise `SetupError` for names that cannot be labels, and for too many labels or values."""
    for name in labels:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise SetupError(
                f"{option}= names a label {name!r}: write small letters, digits and _, such as "
                '"region"'
            )
        if name in _TAKEN:
            raise SetupError(
                f"{option}= names a label {name!r}, which turnout or Prometheus sets; choose "
                "another name"
            )
    if len(labels) > MOST_LABELS:
        raise SetupError(
            f"{option}= has {len(labels)} labels, {', '.join(labels)}: {MOST_LABELS} at most, "
            "since their values multiply; leave some out"
        )
    series = math.prod(len(values) + 1 for values in labels.values())
    if series > MOST_SERIES:
        raise SetupError(
            f"{option}=: the values of {', '.join(labels)} make {series} series, {OTHER!r} "
            f"included: {MOST_SERIES} at most; list fewer values"
        )
