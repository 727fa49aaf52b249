"""Two systems compared question by question."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Paired:
    """McNemar's test, exact.

    Attributes:
        first: questions that the first alone has right.
        second: questions that the second alone has right.
        both: questions that both have right.
        neither: questions that none has right.
        p: probability of so large a difference between ``first`` and ``second``, were they equally good.
    """

    first: int
    second: int
    both: int
    neither: int
    p: float


def mcnemar(first: Mapping[str, bool], second: Mapping[str, bool]) -> Paired:
    """Compares what two systems have right, on the questions that both were asked.

    >>> mcnemar({"a": True, "b": True, "c": False}, {"a": True, "b": False, "c": False})
    Paired(first=1, second=0, both=1, neither=1, p=1.0)
    """
    common = first.keys() & second.keys()
    one = sum(first[key] and not second[key] for key in common)
    other = sum(second[key] and not first[key] for key in common)
    both = sum(first[key] and second[key] for key in common)
    return Paired(one, other, both, len(common) - one - other - both, _two_sided(one, other))


def _two_sided(one: int, other: int) -> float:
    """Of a fair coin: twice the probability of at most the smaller number of so many throws."""
    n = one + other
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(min(one, other) + 1)]
    return min(1.0, 2 * sum(math.exp(log - n * math.log(2)) for log in logs))
