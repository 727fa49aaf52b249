"""Which positions are supervised, and by what. The only shift by one in the package."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_switchkd.core.types import IGNORE


def supervised(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Positions whose **next** token is supervised, and that token.

    A row of logits predicts the token after it, so position t of a record is a row when label t + 1 is not ``IGNORE``.
    The last position of a record has no next token: rows never reach into the following record.

    Args:
        labels: ``[B, T]`` int64, unshifted; ``IGNORE`` where nothing is learnt.

    Returns:
        ``positions [N]`` int64 into the flattened ``[B * T]`` axis, ascending, and ``targets [N]`` int64.

    Source: METHOD section 2.

    >>> supervised(torch.tensor([[-100, -100, 7, 8], [5, -100, 9, -100]]))
    (tensor([1, 2, 5]), tensor([7, 8, 9]))
    """
    following = labels[:, 1:]
    record, column = torch.nonzero(following != IGNORE, as_tuple=True)
    return record * labels.shape[1] + column, following[record, column]


def count_supervised(labels: Tensor) -> Tensor:
    """How many rows :func:`supervised` finds in each record.

    Args:
        labels: ``[B, T]`` int64, unshifted.

    Returns:
        ``[B]`` int64.

    >>> count_supervised(torch.tensor([[-100, -100, 7, 8], [5, -100, 9, -100]]))
    tensor([2, 1])
    """
    return (labels[:, 1:] != IGNORE).sum(dim=1)
