"""Scores of a benchmark's answers, collected over batches and ranks by a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_switchkd.evaluation.benchmarks.definition import Benchmark
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol
from lightning_switchkd.evaluation.significance import Floats


class Judgements(Metric):
    """Scores of answers on a benchmark, over batches and ranks.

    A question that several ranks or batches contain (samplers pad) counts once, with its first answer.

    Args:
        benchmark: The benchmark.
        items: Its questions.
        protocol: Rules to apply where evaluation harnesses disagree.
    """

    full_state_update = False
    indices: list[Tensor]
    values: list[Tensor]

    def __init__(self, benchmark: Benchmark, items: Sequence[Item], protocol: ScoringProtocol = "llava") -> None:
        super().__init__()
        self.benchmark, self.items, self.protocol = benchmark, list(items), protocol
        self.add_state("indices", default=[], dist_reduce_fx="cat")
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, indices: Iterable[int], texts: Sequence[str | None]) -> None:
        """Add answers.

        Args:
            indices: Indices of their questions.
            texts: The answers. A missing answer (None) scores 0.
        """
        indices = list(indices)
        judged = [
            self.benchmark.judge(self.items[i], text, self.protocol) for i, text in zip(indices, texts, strict=True)
        ]
        self.indices.append(torch.tensor(indices, dtype=torch.int64, device=self.device))
        values = [(answer.score, answer.reply) for answer in judged]
        self.values.append(torch.tensor(values, dtype=torch.float64, device=self.device).reshape(-1, 2))

    def judged(self) -> Floats:
        """Return ``[N, 2]``: the score of every question, and its reply. A question without an answer has 0."""
        judged = np.zeros((len(self.items), 2))
        if not len(self.indices):
            return judged
        indices, values = (dim_zero_cat(state).cpu().numpy() for state in (self.indices, self.values))
        _, first = np.unique(indices, return_index=True)
        judged[indices[first]] = values[first]
        return judged

    def compute(self) -> float:
        """Return the benchmark's headline score in percent."""
        return self.benchmark.rules(self.protocol).tally.score(self.items, self.judged())
