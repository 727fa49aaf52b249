"""The positions that are supervised, and their targets. The only shift by one in the package."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_switchkd.core.types import IGNORE_INDEX


def supervised_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Find the positions whose **next** token is supervised, and that token.

    The logits at a position predict the token after it. Position t of a sample is supervised if label t + 1 is not
    ``IGNORE_INDEX``. The last position of a sample has no next token, so no prediction crosses into the next sample.

    Args:
        labels: ``[B, T]`` int64, unshifted, ``IGNORE_INDEX`` where nothing is learned.

    Returns:
        ``positions [N]`` int64 into the flattened ``[B * T]`` axis, ascending, and ``targets [N]`` int64.

    Source: docs/explanation/method.md, section 2.

    >>> supervised_positions(torch.tensor([[-100, -100, 7, 8], [5, -100, 9, -100]]))
    (tensor([1, 2, 5]), tensor([7, 8, 9]))
    """
    next_labels = labels[:, 1:]
    sample, column = torch.nonzero(next_labels != IGNORE_INDEX, as_tuple=True)
    return sample * labels.shape[1] + column, next_labels[sample, column]


def count_supervised(labels: Tensor) -> Tensor:
    """Count the positions that :func:`supervised_positions` finds in each sample.

    Args:
        labels: ``[B, T]`` int64, unshifted.

    Returns:
        ``[B]`` int64.

    >>> count_supervised(torch.tensor([[-100, -100, 7, 8], [5, -100, 9, -100]]))
    tensor([2, 1])
    """
    return (labels[:, 1:] != IGNORE_INDEX).sum(dim=1)
