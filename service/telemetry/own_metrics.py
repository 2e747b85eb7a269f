"""Metrics that flow files declare: `metric("rows", kind="counter")`.

Their values belong to the process of the service, so those of worker processes are sent there. This
module knows nothing of Prometheus; `metrics` shows what is here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal, overload

from turnout.service.domain.errors import SetupError
from turnout.service.domain.labels import checked_values, declared_value, refuse_label_names

Kind = Literal["counter", "gauge"]
LabelValues = tuple[str, ...]

MOST_METRICS = 50
MAX_NAME_CHARACTERS = 60

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SUFFIXES = ("_total", "_count", "_sum", "_bucket", "_created", "_info")


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a metric is; `labels` are the values that each label may have."""

    name: str
    kind: Kind
    text: str
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def words(self) -> str:
        """The metric as it is declared, for messages."""
        labels = f" with the labels {', '.join(name for name, _ in self.labels)}"
        return f"a {self.kind}{labels if self.labels else ''}"

    def values_of(self, given: Mapping[str, object]) -> LabelValues:
        """Return the values of the labels, `other` for those not declared; raises `SetupError`."""
        if given.keys() != {name for name, _ in self.labels}:
            wanted = ", ".join(f"{name}=…" for name, _ in self.labels) or "no labels"
            raise SetupError(
                f"metric {self.name!r} is changed with {wanted}, not with "
                f"{', '.join(f'{name}=…' for name in given) or 'none'}"
            )
        return tuple(declared_value(given[name], values) for name, values in self.labels)


@dataclass(slots=True)
class OwnMetric:
    """A declared metric with its values, by the values of its labels; for any thread."""

    declaration: Declaration
    values: dict[LabelValues, float] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def change(self, labels: LabelValues, amount: float) -> None:
        """Add to a counter, or set a gauge."""
        with self._lock:
            before = self.values.get(labels, 0.0) if self.declaration.kind == "counter" else 0.0
            self.values[labels] = before + amount


_declared: dict[str, OwnMetric] = {}
_lock = Lock()


def declared(declaration: Declaration) -> OwnMetric:
    """Return the metric of a declaration; raises `SetupError` where another one has its name."""
    with _lock:
        known = _declared.get(declaration.name)
        if known is None:
            if len(_declared) >= MOST_METRICS:
                raise SetupError(
                    f"metric({declaration.name!r}): there are {MOST_METRICS} metrics already, "
                    "which is the bound; a name is declared, and not made of data"
                )
            known = _declared[declaration.name] = OwnMetric(declaration)
            if not declaration.labels:
                known.values[()] = 0.0
    before, now = known.declaration, declaration
    if (before.kind, before.labels) != (now.kind, now.labels):
        raise SetupError(
            f"metric({now.name!r}) is {now.words} here and was declared before as {before.words}, "
            "or with other values: one name is one metric; choose another name, or restart the "
            "service if the flow file has changed"
        )
    return known


def own_metrics() -> list[OwnMetric]:
    """Return all metrics that were declared in this process."""
    with _lock:
        return list(_declared.values())


Change = tuple[Declaration, LabelValues, float]


def apply(change: Change) -> None:
    """Change a metric here."""
    declaration, labels, amount = change
    declared(declaration).change(labels, amount)


_changed: Callable[[Change], None] = apply


def forward(send: Callable[[Change], None]) -> None:
    """Hand every change to `send` from now on: this is a worker process."""
    global _changed
    _changed = send


@dataclass(frozen=True, slots=True)
class CounterMetric:
    """A counter that a flow file has declared."""

    declaration: Declaration

    def inc(self, amount: float = 1, /, **labels: str) -> None:
        """Add to it; raises `SetupError` for a negative amount, and for labels it does not have."""
        _check_amount(self.declaration, "inc", amount)
        if amount < 0:
            raise SetupError(
                f"metric({self.declaration.name!r}).inc({amount!r}): a counter only grows; declare "
                'kind="gauge"'
            )
        _changed((self.declaration, self.declaration.values_of(labels), float(amount)))


@dataclass(frozen=True, slots=True)
class GaugeMetric:
    """A gauge that a flow file has declared."""

    declaration: Declaration

    def set(self, value: float, /, **labels: str) -> None:
        """Set it; raises `SetupError` for what is no number, and for labels it does not have."""
        _check_amount(self.declaration, "set", value)
        _changed((self.declaration, self.declaration.values_of(labels), float(value)))


def _check_amount(declaration: Declaration, method: str, amount: Any) -> None:
    if not isinstance(amount, int | float) or not math.isfinite(amount):
        raise SetupError(
            f"metric({declaration.name!r}).{method}({amount!r}): write a number that is finite"
        )


@overload
def metric(
    name: str,
    /,
    *,
    kind: Literal["counter"],
    text: str = ...,
    labels: Mapping[str, Sequence[str]] | None = ...,
) -> CounterMetric: ...
@overload
def metric(
    name: str,
    /,
    *,
    kind: Literal["gauge"],
    text: str = ...,
    labels: Mapping[str, Sequence[str]] | None = ...,
) -> GaugeMetric: ...
def metric(
    name: str, /, *, kind: Kind, text: str = "", labels: Mapping[str, Sequence[str]] | None = None
) -> Any:
    """Declare a metric of your own, once, at the top of a flow file.

    `/metrics` shows a counter `rows` as `turnout_own_rows_total`, a gauge `depth` as
    `turnout_own_depth`. Change it in a task: the body of a flow runs again after each wait, and
    would count again. A task that is tried again counts again. In a worker process it works too.
    Values start at 0 with each start of the service.

    * `name`: small letters, digits and `_`, without `turnout_` and `_total`
    * `kind`: `"counter"` has `inc(amount)`, `"gauge"` has `set(value)`
    * `text`: what it means, for people who find it
    * `labels`: the values that each label may have, `{"table": ["orders", "bills"]}`, 3 labels at
      most: `inc(3, table="orders")`. What is not declared counts as `other`

    Raises `SetupError` for what cannot be a metric, and for a name that is another metric already.

    ```python
    from turnout import event, flow, metric, task

    rows = metric("rows", kind="counter", text="Rows imported.")


    @task
    async def load(count: int) -> int:
        rows.inc(count)
        return count


    @flow(on=event("import.wanted"))
    async def imports(wanted: dict[str, int]) -> int:
        return await load(wanted["rows"])
    ```
    """
    if kind not in ("counter", "gauge"):
        raise SetupError(f'metric({name!r}, kind={kind!r}): write kind="counter" or kind="gauge"')
    _check_texts(name, text)
    declaration = Declaration(name, kind, text or "Declared in a flow file.", _checked(labels))
    declared(declaration)
    return CounterMetric(declaration) if kind == "counter" else GaugeMetric(declaration)


def _check_texts(name: Any, text: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > MAX_NAME_CHARACTERS:
        raise SetupError(
            f"metric({name!r}): a name has small letters, digits and _, {MAX_NAME_CHARACTERS} "
            'characters at most, such as "rows"'
        )
    ending = next((each for each in _SUFFIXES if name.endswith(each)), None)
    if ending is not None or name.startswith("turnout_"):
        raise SetupError(
            f"metric({name!r}): leave out {ending or 'turnout_'}, which turnout or Prometheus adds"
        )
    if not isinstance(text, str) or not (text.isprintable() or not text):
        raise SetupError(f"metric({name!r}, text={text!r}): write one line of text")


def _checked(labels: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if labels is None:
        return ()
    if not isinstance(labels, Mapping):
        raise SetupError(f'labels={labels!r}: write labels={{"table": ["orders", "bills"]}}')
    checked = {name: checked_values(f"labels[{name!r}]", each) for name, each in labels.items()}
    refuse_label_names("labels", checked)
    return tuple(checked.items())
