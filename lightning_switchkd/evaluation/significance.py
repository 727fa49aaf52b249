"""Bootstrap intervals and McNemar's test. The only place for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

Floats = NDArray[np.float64]

SUM_RESAMPLES, GROUP_RESAMPLES = 1000, 2000


def resample_sums(sums: Floats) -> Floats:
    """Draw bootstrap resamples of units, and sum what they add up to: ``[R, C]``.

    Units are drawn one resample at a time, so memory does not grow with resamples × units.

    Args:
        sums: ``[U, C]``, what each unit adds to each sum.
    """
    generator = np.random.default_rng(0)
    drawn = np.empty((SUM_RESAMPLES, sums.shape[1]))
    for row in range(SUM_RESAMPLES):
        counts = np.bincount(generator.integers(0, len(sums), len(sums)), minlength=len(sums))
        drawn[row] = counts @ sums
    return drawn


def resample_groups(num_groups: int) -> Floats:
    """Draw bootstrap resamples of groups, such as images: how often each is drawn, ``[R, G]``."""
    generator = np.random.default_rng(0)
    counts = generator.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=GROUP_RESAMPLES)
    return counts.astype(np.float64)


def interval_95(values: Floats) -> tuple[float, float]:
    """Return the 2.5th and the 97.5th percentile of a figure over resamples ``[R]``."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def interval_of_score(scores: Floats, num_units: int) -> tuple[float, float]:
    """Return the 95 % interval of a score in percent.

    Where all units are correct or none is, all resamples are equal. Wilson's interval then shows how little few units
    say.

    Args:
        scores: The score over resamples ``[R]``.
        num_units: Units that were drawn from.

    >>> [round(end, 1) for end in interval_of_score(np.zeros(3), 10)]
    [0.0, 27.8]
    """
    low, high = interval_95(scores)
    if num_units and low == high and low in (0, 100):
        wilson = binomtest(num_units * (low == 100), num_units).proportion_ci(method="wilson")
        return 100 * float(wilson.low), 100 * float(wilson.high)
    return low, high


@dataclass(frozen=True)
class Paired:
    """McNemar's exact test.

    Attributes:
        first: Questions that only the first system answers correctly.
        second: Questions that only the second system answers correctly.
        both: Questions that both answer correctly.
        neither: Questions that neither answers correctly.
        p: Two-sided p-value: the probability of such a difference if both systems were equally good.
    """

    first: int
    second: int
    both: int
    neither: int
    p: float

    @property
    def num_questions(self) -> int:
        """The number of questions that both were asked."""
        return self.first + self.second + self.both + self.neither


def mcnemar(first: Mapping[str, bool], second: Mapping[str, bool]) -> Paired:
    """Compare two systems on the questions that both were asked.

    >>> mcnemar({"a": True, "b": True, "c": False}, {"a": True, "b": False, "c": False})
    Paired(first=1, second=0, both=1, neither=1, p=1.0)
    """
    common = first.keys() & second.keys()
    one = sum(first[key] and not second[key] for key in common)
    other = sum(second[key] and not first[key] for key in common)
    both = sum(first[key] and second[key] for key in common)
    p = float(binomtest(one, one + other, 0.5).pvalue) if one + other else 1.0
    return Paired(one, other, both, len(common) - one - other - both, p)
