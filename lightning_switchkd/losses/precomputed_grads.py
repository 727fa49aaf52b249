"""A loss whose gradients are computed before its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def attach_gradients(loss: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Make the loss a function of `inputs` with known gradients.

    Args:
        loss: Scalar.
        inputs: Tensors that require a gradient.
        gradients: d loss / d input for each input, of its shape and any floating dtype. Ownership is taken: the
            backward pass scales them in place.

    Returns:
        ``loss``, differentiable once. A second backward pass raises a RuntimeError.
    """
    attached: Tensor = _Precomputed.apply(loss, list(gradients), *inputs)
    return attached


class _Precomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.gradients, ctx.dtypes = gradients, [x.dtype for x in inputs]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "This loss can be backpropagated only once: its gradients are computed during the forward pass."
            )
        scaled = not (grad.is_cpu and grad == 1)  # on a GPU the comparison would wait for the device
        result = []
        for dtype in ctx.dtypes:  # popped: with no other owner, a gradient becomes a parameter's without a copy
            gradient = gradients.pop(0)
            result.append((gradient.mul_(grad) if scaled else gradient).to(dtype))
        return None, None, *result
