"""Counters and histograms of the hot path: plain numbers, read when Prometheus scrapes.

They replace the classes of the client library where every event and step counts: an update takes
0.15 to 0.23 µs instead of 0.24 to 0.55. Safe to update from any thread.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import Lock
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

M = TypeVar("M")

OwnLabels = tuple[tuple[str, str], ...]
"""Labels that only some meters of a family have, with their values."""


class Counter:
    """A number that only grows."""

    __slots__ = ("_lock", "value")

    def __init__(self) -> None:
        self._lock = Lock()
        self.value = 0

    def inc(self, count: int = 1) -> None:
        """Count `count` more."""
        with self._lock:
            self.value += count


class Histogram:
    """The number of amounts up to each of the ascending `bounds`, and the sum of all amounts."""

    __slots__ = ("_bounds", "_lock", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._lock = Lock()
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, amount: float) -> None:
        """Count an amount."""
        with self._lock:
            self.counts[bisect_left(self._bounds, amount)] += 1
            self.total += amount

    def buckets(self) -> list[tuple[str, int]]:
        """Return (bound, number of amounts up to it) pairs, the last for all amounts."""
        with self._lock:
            counts = list(self.counts)
        bounds = (*(str(float(bound)) for bound in self._bounds), "+Inf")
        up_to = 0
        return [
            (bound, up_to := up_to + count) for bound, count in zip(bounds, counts, strict=True)
        ]


def observe_together(
    first: Histogram, amount: float, second: Histogram, other_amount: float
) -> None:
    """Count amounts in two histograms that are observed together only, at the cost of one."""
    with first._lock:
        first.counts[bisect_left(first._bounds, amount)] += 1
        first.total += amount
        second.counts[bisect_left(second._bounds, other_amount)] += 1
        second.total += other_amount


def observe_and_count(histogram: Histogram, amount: float, counter: Counter) -> None:
    """Observe an amount and count one more in a counter that changes here only."""
    with histogram._lock:
        histogram.counts[bisect_left(histogram._bounds, amount)] += 1
        histogram.total += amount
        counter.value += 1


class _Family(Collector, Generic[M]):
    """One meter for each combination of label values, made on first use."""

    def __init__(self, name: str, text: str, labels: Sequence[str], make: Callable[[], M]) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._make = make
        self._made: dict[tuple[str, ...], M] = {}

    def labels(self, *values: str) -> M:
        """Return the meter for these label values; hot paths hold on to it."""
        if len(values) != len(self._labels):
            raise ValueError(f"{self._name} has the labels {self._labels}, not {values}")
        meter = self._made.get(values)
        if meter is None:
            meter = self._made.setdefault(tuple(map(str, values)), self._make())
        return meter

    def describe(self) -> list[CounterMetricFamily | HistogramMetricFamily]:
        """Return the family without its meters."""
        return [self._empty()]

    @abstractmethod
    def _empty(self) -> CounterMetricFamily | HistogramMetricFamily:
        """Return the family to fill."""


class CounterFamily(_Family[Counter]):
    """Counters of one name."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        super().__init__(name, text, labels, Counter)
        self._made_with_own: dict[tuple[tuple[str, ...], OwnLabels], Counter] = {}

    def labels_with_own(self, *values: str, own: OwnLabels) -> Counter:
        """Return the counter for these values and labels that others of the family do not have.

        To Prometheus a label that is not there is empty, so sums over the others are as before.
        """
        key = tuple(map(str, values)), own
        counter = self._made_with_own.get(key)
        if counter is None:
            counter = self._made_with_own.setdefault(key, Counter())
        return counter

    def _empty(self) -> CounterMetricFamily:
        return CounterMetricFamily(self._name, self._text, labels=self._labels)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the family with the current values."""
        family = self._empty()
        for values, counter in list(self._made.items()):
            family.add_metric(values, counter.value)
        for (values, own), counter in list(self._made_with_own.items()):
            names = [*self._labels, *(name for name, _ in own)]
            with_own = CounterMetricFamily(self._name, self._text, labels=names)
            with_own.add_metric([*values, *(value for _, value in own)], counter.value)
            family.samples += with_own.samples
        yield family


class HistogramFamily(_Family[Histogram]):
    """Histograms of one name, all with the same `bounds`."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], *, bounds: Sequence[float]
    ) -> None:
        super().__init__(name, text, labels, partial(Histogram, bounds))

    def _empty(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._text, labels=self._labels)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the family with the current values."""
        family = self._empty()
        for values, histogram in list(self._made.items()):
            family.add_metric(values, histogram.buckets(), histogram.total)
        yield family
