"""Which positions are supervised, and by what. The only shift by one in the package."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_switchkd.core.types import IGNORE_INDEX


def supervised_positions(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Positions whose **next** token is supervised, and that token.

    A row of logits predicts the token after it, so position t of a record is a row when label t + 1 is not ``IGNORE_INDEX``.
    The last position of a record has no next token: rows never reach into the following record.

    Args:
        labels: ``[B, T]`` int64, unshifted; ``IGNORE_INDEX`` where nothing is learnt.

    Returns:
        ``positions [N]`` int64 into the flattened ``[B * T]`` axis, ascending, and ``targets [N]`` int64.

    Source: METHOD section 2.

    >>> supervised_positions(torch.tensor([[-100, -100, 7, 8], [5, -100, 9, -100]]))
    (tensor([1, 2, 5]), tensor([7, 8, 9]))
    """
    following = labels[:, 1:]
    sample, column = torch.nonzero(following != IGNORE_INDEX, as_tuple=True)
    return sample * labels.shape[1] + column, following[sample, column]


def count_supervised(labels: Tensor) -> Tensor:
    """How many rows :func:`supervised_positions` finds in each record.

    Args:
        labels: ``[B, T]`` int64, unshifted.

    Returns:
        ``[B]`` int64.

    >>> count_supervised(torch.tensor([[-100, -100, 7, 8], [5, -100, 9, -100]]))
    tensor([2, 1])
    """
    return (labels[:, 1:] != IGNORE_INDEX).sum(dim=1)
