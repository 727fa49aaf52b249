"""A loss whose gradients were made before its backward pass came by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def attach_gradients(loss: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """The loss as a function of `inputs` whose gradients are known.

    Args:
        loss: scalar.
        inputs: tensors that require a gradient.
        gradients: d loss / d input, one for each input, of its shape and any floating dtype. They are handed over: a
            backward pass scales them in place.

    Returns:
        ``loss``, differentiable once: a second backward pass raises a RuntimeError.
    """
    found: Tensor = _Ahead.apply(loss, list(gradients), *inputs)
    return found


class _Ahead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.gradients, ctx.dtypes = gradients, [x.dtype for x in inputs]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of this loss were made ahead, for one backward pass; it has been")
        scaled = not (grad.is_cpu and grad == 1)  # on a GPU, looking would wait for the device
        found = []
        for dtype in ctx.dtypes:  # held by nobody else, a gradient becomes a parameter's without a copy
            gradient = gradients.pop(0)
            found.append((gradient.mul_(grad) if scaled else gradient).to(dtype))
        return None, None, *found
