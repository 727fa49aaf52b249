"""The paired comparison of two systems: numbers, and one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.labels import NO_IMAGE, label
from lightning_switchkd.evaluation.results import Result
from lightning_switchkd.evaluation.significance import Paired, interval_95, mcnemar

Systems = Mapping[str, Mapping[str, Result]]
"""Results by benchmark (``NAME`` and ``NAME.no_image``), by system."""

SIGNIFICANT = 0.05


def check_questions(systems: Systems, name: str) -> None:
    """Check that all systems were asked the same questions of a benchmark, with and without images.

    Raises:
        UserError: They were not.
    """
    results = [(s, r) for key in (name, f"{name}.{NO_IMAGE}") for s, r in of_benchmark(systems, key).items()]
    (first, expected), *others = results
    for system, result in others:
        if (result.pairs, result.ids) != (expected.pairs, expected.ids):
            raise UserError(
                f"Results of '{name}' are on different questions: {expected.num_questions} in {expected.answers} "
                f"({first}), {result.num_questions} in {result.answers} ({system}). "
                "Evaluate all systems on the same questions, in a new folder (evaluate --output)."
            )


def of_benchmark(systems: Systems, name: str) -> dict[str, Result]:
    """Return the results on a benchmark by system."""
    return {system: results[name] for system, results in systems.items() if name in results}


@dataclass(frozen=True)
class Comparison:
    """A system compared with a baseline, on the same questions.

    Attributes:
        benchmark: Name of the benchmark.
        system: The system.
        baseline: The system that it is compared with.
        points: Score minus the baseline's score, in percentage points.
        interval: 95 % interval of the points, from the same resamples of both. None for results of version 0.1.0,
            and if all resamples are equal.
        test: McNemar's test of the baseline and the system.
    """

    benchmark: str
    system: str
    baseline: str
    points: float
    interval: tuple[float, float] | None
    test: Paired

    @property
    def significant(self) -> bool:
        """True if the difference is hardly chance."""
        return self.test.p < SIGNIFICANT

    @property
    def interval_text(self) -> str:
        """The interval in brackets, after a space. Empty if unknown."""
        return "" if self.interval is None else " [{:+.1f}, {:+.1f}]".format(*self.interval)

    @property
    def p_text(self) -> str:
        """The p-value with its relation: ``< 0.001`` or ``= 0.04``."""
        return "< 0.001" if self.test.p < 0.001 else f"= {self.test.p:.2g}"

    @property
    def numbers(self) -> str:
        """Interval, p-value and number of questions, in parentheses."""
        interval = f"95 % interval {self.interval[0]:+.1f} to {self.interval[1]:+.1f}, " if self.interval else ""
        return f"({interval}p {self.p_text}, paired, n = {self.test.num_questions:,})"


def compare(systems: Systems, name: str, system: str, baseline: str) -> Comparison | None:
    """Compare two systems on a benchmark. Return None if one has no score on it."""
    results = of_benchmark(systems, name)
    ours, theirs = results.get(system), results.get(baseline)
    if ours is None or theirs is None or ours.score is None or theirs.score is None:
        return None
    interval = None
    if ours.resamples and theirs.resamples:
        low, high = interval_95(np.subtract(ours.resamples, theirs.resamples))
        interval = (low, high) if low < high else None
    test = mcnemar(theirs.correct(), ours.correct())
    return Comparison(name, system, baseline, ours.score - theirs.score, interval, test)


def sentence(comparisons: Sequence[Comparison], systems: Systems) -> str:
    """Say in one sentence how a system compares with its baseline.

    Args:
        comparisons: The same two systems on one or several benchmarks.
        systems: All systems of the report.
    """
    first = comparisons[0]
    ours, theirs = (label(name, systems) for name in (first.system, first.baseline))
    ours = ours[0].upper() + ours[1:]
    if len(comparisons) > 1:
        above, below = ([c for c in comparisons if sign * c.points > 0] for sign in (1, -1))
        return f"{ours} is above {theirs} on {_count(above, comparisons)}, and below on {_count(below, comparisons)}."
    if not first.significant:
        return f"{ours} is not clearly different from {theirs}: {first.points:+.1f} points {first.numbers}."
    direction = "above" if first.points > 0 else "below"
    return f"{ours} is {abs(first.points):.1f} points {direction} {theirs} {first.numbers}."


def _count(part: Sequence[Comparison], comparisons: Sequence[Comparison]) -> str:
    clear = sum(comparison.significant for comparison in part)
    return f"{len(part)} of {len(comparisons)} benchmarks ({clear} clearly, p < {SIGNIFICANT}, paired)"
