"""What is compared: a reference's rule for a benchmark, and ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from differential.cases import Case
from lightning_switchkd.evaluation.benchmarks.definition import Benchmark
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol

Value = float | str
"""Score of an answer from 0 to 1, or the text that is written for a server."""


@dataclass(frozen=True)
class Rule:
    """A reference's rule for a benchmark.

    Attributes:
        reference: Name of the reference.
        benchmark: Name in ``conf/benchmarks.yaml``.
        protocol: Our protocol of the same rule.
        score: The reference's score of each answer.
        figures: Its figures of all answers together, by the names that we have for them. ``headline`` is the score.
        ours: Our score of an answer. Default: that of the protocol.
    """

    reference: str
    benchmark: str
    protocol: ScoringProtocol
    score: Callable[[Sequence[Case]], Sequence[Value]]
    figures: Callable[[Sequence[Case]], Mapping[str, float]] | None = None
    ours: Callable[[Case], Value] | None = None

    def our_scores(self, cases: Sequence[Case]) -> list[Value]:
        """Return our score of each answer."""
        if self.ours is not None:
            return [self.ours(case) for case in cases]
        definition = read(self.benchmark)
        return [definition.judge(case.item, case.answer, self.protocol).score for case in cases]

    def our_figures(self, cases: Sequence[Case]) -> dict[str, float]:
        """Return our figures of all answers together: the headline, the scores by category, and further ones."""
        definition = read(self.benchmark)
        judged = [definition.judge(case.item, case.answer, self.protocol) for case in cases]
        values = np.array([(judgement.score, judgement.reply) for judgement in judged], dtype=np.float64)
        tally = definition.rules(self.protocol).tally
        headline, categories, figures = tally.scores([case.item for case in cases], values)
        return {"headline": headline} | categories | figures


def read(benchmark: str) -> Benchmark:
    """Read a benchmark's definition. An answer to MMMU without a letter is wrong, instead of a random letter."""
    definition = Benchmark.read(benchmark)
    if benchmark == "mmmu":
        definition.settings["fallback"] = "wrong"
    return definition
