"""The output head of a language model, applied in at least float32 and in blocks of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

COLUMNS = 2**14
"""Columns of a head multiplied together on a CPU. For more columns, BLAS first copies the weight."""


@dataclass(frozen=True)
class Head:
    """Output head of a language model: z = s · (Wh + b), optionally capped to c · tanh(z / c).

    Attributes:
        weight: W ``[V, H]``, tied to the embeddings or not.
        bias: b ``[V]``.
        scale: s.
        softcap: c.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Compute logits ``[..., V]``, padding columns included, from hidden states ``[..., H]``."""
        return self._scale_and_cap(F.linear(hidden, self.weight, self.bias))

    def exactly(self, hidden: Tensor) -> Tensor:
        """Compute logits ``[n, V]`` in at least float32 from hidden states ``[n, H]``.

        On a GPU, a product of 16-bit matrices also returns float32.
        """
        hidden = hidden.to(self.weight.dtype)
        if hidden.is_cuda and self.weight.element_size() == 2:
            logits = torch.mm(hidden, self.weight.t(), out_dtype=torch.float32)
            return self._scale_and_cap(logits if self.bias is None else logits.add_(self.bias))
        size = len(self.weight) if hidden.is_cuda else COLUMNS
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        logits = hidden.new_empty(len(hidden), len(self.weight), dtype=dtype)
        for start in range(0, len(self.weight), size):
            part = slice(start, start + size)
            logits[:, part] = F.linear(hidden, self.weight[part], None if self.bias is None else self.bias[part])
        return self._scale_and_cap(logits)

    def _scale_and_cap(self, logits: Tensor) -> Tensor:
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Return dz/d(Wh + b) at logits z."""
        return self.scale if self.softcap is None else self.scale * (1 - (logits / self.softcap).square())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix product: autocast's if active, otherwise the weight's."""
        device = self.weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        if dtype == torch.float16 or self.weight.dtype == torch.float64:
            return torch.promote_types(self.weight.dtype, torch.float32)  # float16: the loss is scaled only afterwards
        return dtype

    def cast(self) -> Head:
        """Return the head in its :attr:`dtype`."""
        bias = None if self.bias is None else self.bias.to(self.dtype)
        return replace(self, weight=self.weight.to(self.dtype), bias=bias)
