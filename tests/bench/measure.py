"""Figures that are medians of interleaved rounds, each with its noise.

The machine is shared and its speed drifts; what is compared is therefore measured in turn (A B A B)
and compared round by round: a ratio is the median of the rounds' ratios, not a ratio of medians.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass


class Unavailable(Exception):
    """Raised when something cannot be measured on this machine; the text says why."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: `quick` looks, otherwise results worth keeping are made."""

    quick: bool = False
    huge: bool = False

    @property
    def rounds(self) -> int:
        """How often each thing is measured."""
        return 2 if self.quick else 5

    @property
    def seconds(self) -> float:
        """How long one measurement of a rate lasts."""
        return 1.0 if self.quick else 2.0


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
    """Compare round by round; with what was measured in fewer rounds, median with median."""
    if len(ours) != len(reference):
        ours, reference = [statistics.median(ours)], [statistics.median(reference)]
    return Spread.of(one / other for one, other in zip(ours, reference, strict=True))


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value that `part` (0..1) of the values do not exceed."""
    kept = sorted(values)
    return kept[min(len(kept) - 1, int(part * len(kept)))]


def interleave(
    rounds: int,
    measures: Mapping[str, Callable[[], Mapping[str, float]]],
    lost: dict[str, str] | None = None,
) -> dict[str, dict[str, list[float]]]:
    """Measure each in turn, `rounds` times; returns figures by name and kind, round by round.

    What turns out to be `Unavailable` is left out and put into `lost` with the reason.
    """
    found: dict[str, dict[str, list[float]]] = {name: {} for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            if name not in found:
                continue
            try:
                figures = measure()
            except Unavailable as error:
                if lost is None:
                    raise
                lost[name] = str(error)
                del found[name]
                continue
            for figure, value in figures.items():
                found[name].setdefault(figure, []).append(value)
    return found
