"""torchmetrics that hold sums and counts, so that ranks are added up and divided once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_switchkd.batch import Counts
from lightning_switchkd.objectives.base import Terms


class UnitMean(Metric):
    """Sum over units divided by the number of units, 0 where there was none.

    >>> mean = UnitMean()
    >>> mean.update(torch.tensor(6.0), 4)
    >>> mean.update(torch.tensor(0.0), 0)
    >>> mean.compute()
    tensor(1.5000)
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: int | Tensor) -> None:
        """Adds a sum over ``count`` units."""
        self.total += total
        self.count += count

    def compute(self) -> Tensor:
        """The mean per unit, float32."""
        return self.total / self.count.clamp(min=1)


class TermMeans(nn.Module):
    """One :class:`UnitMean` per term of an objective, and their weighted total.

    Args:
        names: the terms.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.means = nn.ModuleDict({name: UnitMean() for name in names})

    def update(self, terms: Terms, counts: Counts) -> None:
        """Adds what one micro-batch contributed."""
        for name, total in terms.sums.items():
            cast(UnitMean, self.means[name]).update(total, getattr(counts, terms.units[name]))

    def collect(self) -> dict[str, Tensor]:
        """Mean of every term over all ranks since the last call; starts again from nothing."""
        values = {name: cast(UnitMean, mean).compute() for name, mean in self.means.items()}
        for mean in self.means.values():
            cast(UnitMean, mean).reset()
        return values
