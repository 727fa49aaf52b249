"""Answers of a benchmark judged over batches and ranks, as a torchmetrics metric."""

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
from lightning_switchkd.evaluation.benchmarks.scoring import Floats


class Judgements(Metric):
    """What answers are worth on a benchmark, over batches and ranks.

    Args:
        benchmark: whose rules.
        items: its questions.
        protocol: whose rules where harnesses disagree.

    A question that several ranks or batches bring (samplers pad) counts once, the first time.
    """

    full_state_update = False
    places: list[Tensor]
    values: list[Tensor]

    def __init__(self, benchmark: Benchmark, items: Sequence[Item], protocol: ScoringProtocol = "llava") -> None:
        super().__init__()
        self.benchmark, self.items, self.protocol = benchmark, list(items), protocol
        self.add_state("places", default=[], dist_reduce_fx="cat")
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, places: Iterable[int], texts: Sequence[str | None]) -> None:
        """Adds answers.

        Args:
            places: numbers of their questions.
            texts: what was answered; None is wrong.
        """
        numbers = list(places)
        judged = [
            self.benchmark.judge(self.items[n], text, self.protocol) for n, text in zip(numbers, texts, strict=True)
        ]
        self.places.append(torch.tensor(numbers, dtype=torch.int64, device=self.device))
        values = [(one.score, one.positive) for one in judged]
        self.values.append(torch.tensor(values, dtype=torch.float64, device=self.device).reshape(-1, 2))

    def judged(self) -> Floats:
        """``[N, 2]``: score, and 1 for a yes, of every question; 0 of one without an answer."""
        found = np.zeros((len(self.items), 2))
        if not len(self.places):
            return found
        places, values = (dim_zero_cat(state).cpu().numpy() for state in (self.places, self.values))
        _, first = np.unique(places, return_index=True)
        found[places[first]] = values[first]
        return found

    def compute(self) -> float:
        """The benchmark's headline in per cent."""
        return self.benchmark.rules.tally.score(self.items, self.judged())
