"""Figures that are medians of interleaved rounds, each with its noise.

The machine is shared and its speed drifts; what is compared is therefore measured in turn (A B A B)
and compared round by round: a ratio is the median of the rounds' ratios, not a ratio of medians.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: `quick` looks, otherwise results worth keeping are made."""

    quick: bool = False
    huge: bool = False

    @property
    def rounds(self) -> int:
        """How often each thing is measured."""
        return 3 if self.quick else 5

    @property
    def seconds(self) -> float:
        """How long one measurement of a rate lasts."""
        return 1.0 if self.quick else 3.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Rounds of one figure: their median and their extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarise the rounds."""
        kept = sorted(values)
        return cls(statistics.median(kept), kept[0], kept[-1])


def ratio(ours: Sequence[float], reference: Sequence[float]) -> Spread:
    """Compare round by round."""
    return Spread.of(one / other for one, other in zip(ours, reference, strict=True))


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value that `part` (0..1) of the values do not exceed."""
    kept = sorted(values)
    return kept[min(len(kept) - 1, int(part * len(kept)))]


def interleave(
    rounds: int, measures: Mapping[str, Callable[[], Mapping[str, float]]]
) -> dict[str, dict[str, list[float]]]:
    """Measure each in turn, `rounds` times; returns figures by name and kind, round by round."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            for figure, value in measure().items():
                found[name].setdefault(figure, []).append(value)
    return found
