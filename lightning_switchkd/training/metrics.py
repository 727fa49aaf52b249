"""torchmetrics that hold sums and counts: ranks are added up and divided once, and a restart goes on counting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_switchkd.losses.logits import Statistics
from lightning_switchkd.models.adapter import keep_dtype


class ResumableMetric(Metric):
    """Sums that are collected at every log line and survive a checkpoint in between.

    Its states keep their dtype when a module is cast (``bf16-true`` casts whole modules).
    """

    full_state_update = False

    def summed_state(self) -> dict[str, Tensor]:
        """The states added up over all ranks, for a checkpoint; every rank has to ask."""
        with self.sync_context():
            return {name: cast(Tensor, state).detach().cpu().clone() for name, state in self.metric_state.items()}

    def restore(self, states: Mapping[str, Tensor], rank: int) -> None:
        """Takes up what :meth:`summed_state` gave: rank 0 all of it, the others nothing."""
        self.reset()
        if rank == 0:
            for name, state in states.items():
                setattr(self, name, state.to(self.device))

    def compute_and_reset(self) -> Any:
        """``compute``, then start again from nothing."""
        self._update_count = max(1, self._update_count)  # a rank that saw nothing still has to add up
        values = self.compute()
        self.reset()
        return values

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> torch.nn.Module:
        return super()._apply(keep_dtype(fn), *args, **kwargs)


class Means(ResumableMetric):
    """Named sums over units, each divided by its number of units, 0 where there was none.

    >>> means = Means(["ce", "vsd"])
    >>> means.update({"ce": torch.tensor(6.0)}, {"ce": 4})
    >>> means.compute()
    {'ce': tensor(1.5000), 'vsd': tensor(0.)}
    """

    totals: Tensor
    units: Tensor

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        zeros = torch.zeros(len(self.names), dtype=torch.float64)
        self.add_state("totals", default=zeros, dist_reduce_fx="sum")
        self.add_state("units", default=zeros.clone(), dist_reduce_fx="sum")

    def update(self, totals: Mapping[str, Tensor], units: Mapping[str, int]) -> None:
        """Adds sums over so many units each."""
        for place, name in enumerate(self.names):
            if name in totals:
                self.totals[place] += totals[name]
                self.units[place] += units[name]

    def compute(self) -> dict[str, Tensor]:
        """Mean per unit by name, float32."""
        means = (self.totals / self.units.clamp(min=1)).float()
        return dict(zip(self.names, means.unbind(), strict=True))


class TokenStatistics(ResumableMetric):
    """Means of per-row statistics, and for the k of leading sets how often each k occurred: quantiles are exact.

    Args:
        names: the statistics; those beginning with ``k_`` are numbers of entries.
        limit: the largest k.

    >>> seen = TokenStatistics(["k_teacher", "overlap"], limit=8)
    >>> seen.update({"k_teacher": torch.tensor([4, 4, 7]), "overlap": torch.tensor([1.0, 0.5, 0.0])})
    >>> {name: round(float(value), 2) for name, value in seen.compute()[0].items()}
    {'k_teacher': 5.0, 'overlap': 0.5, 'k_teacher_p10': 4.0, 'k_teacher_p50': 4.0, 'k_teacher_p90': 7.0}
    """

    totals: Tensor
    rows: Tensor
    sizes: Tensor
    QUANTILES = (10, 50, 90)

    def __init__(self, names: Iterable[str], limit: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.set_names = tuple(name for name in self.names if name.startswith("k_"))
        self.add_state("totals", default=torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", default=torch.tensor(0), dist_reduce_fx="sum")
        sizes = torch.zeros(len(self.set_names), limit + 1, dtype=torch.int64)
        self.add_state("sizes", default=sizes, dist_reduce_fx="sum")

    def update(self, statistics: Statistics) -> None:
        """Adds rows, ``[n]`` each."""
        self.totals += torch.stack([statistics[name].sum(dtype=torch.float64) for name in self.names])
        self.rows += len(statistics[self.names[0]])
        for place, name in enumerate(self.set_names):
            self.sizes[place].scatter_add_(0, statistics[name], torch.ones_like(statistics[name]))

    def compute(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Means and quantiles by name (not a number with no row), and histograms ``[limit + 1]``: rows with this k."""
        means = dict(zip(self.names, (self.totals / self.rows).unbind(), strict=True))
        histograms = dict(zip(self.set_names, self.sizes.unbind(), strict=True))
        for name, sizes in histograms.items():
            below = sizes.cumsum(0)
            for percent in self.QUANTILES:  # the smallest k that so many rows do not exceed
                quantile = (below * 100 < percent * self.rows).sum().double()
                means[f"{name}_p{percent}"] = quantile.masked_fill(self.rows == 0, math.nan)
        return {name: value.float() for name, value in means.items()}, histograms
