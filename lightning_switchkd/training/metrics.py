"""Torchmetrics of sums and counts: ranks are added up, divided once, and a checkpoint keeps what is not logged yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_switchkd.losses.logits import Statistics
from lightning_switchkd.models.frozen import keep_dtype


class ResumableMetric(Metric):
    """Sums that are computed at every log line and survive a checkpoint in between.

    States keep their dtype when a module is cast (``bf16-true`` casts whole modules). Their names are in checkpoints.
    """

    full_state_update = False

    def summed_state(self) -> dict[str, Tensor]:
        """Return the states added up over all ranks, for a checkpoint. Every rank must call this."""
        with self.sync_context():
            return {name: cast(Tensor, state).detach().cpu().clone() for name, state in self.metric_state.items()}

    def restore(self, states: Mapping[str, Tensor], rank: int) -> None:
        """Load the result of :meth:`summed_state` on rank 0. Other ranks start from zero."""
        self.reset()
        if rank == 0:
            for name, state in states.items():
                setattr(self, name, state.to(self.device))

    def compute_and_reset(self) -> Any:
        """Return the value, then start again from zero."""
        self._update_count = max(1, self._update_count)  # a rank without updates still takes part in the sum
        values = self.compute()
        self.reset()
        return values

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> torch.nn.Module:
        return super()._apply(keep_dtype(fn), *args, **kwargs)


class Means(ResumableMetric):
    """Named sums, each divided by its number of units. A mean over no units is 0.

    Args:
        names: Names of the means.

    >>> means = Means(["ce", "vsd"])
    >>> means.update({"ce": torch.tensor(6.0)}, {"ce": 4})
    >>> means.compute()
    {'ce': tensor(1.5000), 'vsd': tensor(0.)}
    """

    totals: Tensor  # [number of names] float64
    units: Tensor  # [number of names] float64

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        zeros = torch.zeros(len(self.names), dtype=torch.float64)
        self.add_state("totals", default=zeros, dist_reduce_fx="sum")
        self.add_state("units", default=zeros.clone(), dist_reduce_fx="sum")

    def update(self, totals: Mapping[str, Tensor], units: Mapping[str, int]) -> None:
        """Add sums (scalars by name) and the number of units of each."""
        for position, name in enumerate(self.names):
            if name in totals:
                self.totals[position] += totals[name]
                self.units[position] += units[name]

    def compute(self) -> dict[str, Tensor]:
        """Return the mean per unit by name, float32 scalars."""
        means = (self.totals / self.units.clamp(min=1)).float()
        return dict(zip(self.names, means.unbind(), strict=True))


class TokenStatistics(ResumableMetric):
    """Means of statistics over tokens. For set sizes k also a histogram, which makes quantiles exact.

    Args:
        names: Names of the statistics. Those that begin with ``k_`` are set sizes.
        max_k: The largest k.

    >>> statistics = TokenStatistics(["k_teacher", "overlap"], max_k=8)
    >>> statistics.update({"k_teacher": torch.tensor([4, 4, 7]), "overlap": torch.tensor([1.0, 0.5, 0.0])})
    >>> {name: round(float(value), 2) for name, value in statistics.compute()[0].items()}
    {'k_teacher': 5.0, 'overlap': 0.5, 'k_teacher_p10': 4.0, 'k_teacher_p50': 4.0, 'k_teacher_p90': 7.0}
    """

    totals: Tensor  # [number of names] float64
    rows: Tensor  # scalar int64, number of tokens
    sizes: Tensor  # [number of set sizes, max_k + 1] int64
    QUANTILES = (10, 50, 90)

    def __init__(self, names: Iterable[str], max_k: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.size_names = tuple(name for name in self.names if name.startswith("k_"))
        self.add_state("totals", default=torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", default=torch.tensor(0), dist_reduce_fx="sum")
        sizes = torch.zeros(len(self.size_names), max_k + 1, dtype=torch.int64)
        self.add_state("sizes", default=sizes, dist_reduce_fx="sum")

    def update(self, statistics: Statistics) -> None:
        """Add the statistics of n tokens, ``[n]`` each."""
        self.totals += torch.stack([statistics[name].sum(dtype=torch.float64) for name in self.names])
        self.rows += len(statistics[self.names[0]])
        for position, name in enumerate(self.size_names):
            self.sizes[position].scatter_add_(0, statistics[name], torch.ones_like(statistics[name]))

    def compute(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return means and quantiles by name (NaN without tokens), and histograms ``[max_k + 1]`` of set sizes."""
        means = dict(zip(self.names, (self.totals / self.rows).unbind(), strict=True))
        histograms = dict(zip(self.size_names, self.sizes.unbind(), strict=True))
        for name, counts in histograms.items():
            cumulative = counts.cumsum(0)  # [max_k + 1]
            for percent in self.QUANTILES:  # the smallest k that at least this percentage of tokens does not exceed
                quantile = (cumulative * 100 < percent * self.rows).sum().double()
                means[f"{name}_p{percent}"] = quantile.masked_fill(self.rows == 0, math.nan)
        return {name: value.float() for name, value in means.items()}, histograms
