"""The output head of a language model, applied in full precision a part of the vocabulary at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

COLUMNS = 2**14
"""Of a head, multiplied together on a CPU: of more, BLAS first makes a copy, which takes memory and time."""


@dataclass(frozen=True)
class Head:
    """Output head of a language model: z = s · (Wh + b), and with a cap c · tanh(z / c) of it.

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
        """Hidden states ``[..., H]`` -> logits ``[..., V]``, padding columns included."""
        return self._shaped(F.linear(hidden, self.weight, self.bias))

    def exactly(self, hidden: Tensor) -> Tensor:
        """The same of hidden states ``[n, H]`` in at least float32: on a GPU also where the product is of 16 bits."""
        hidden = hidden.to(self.weight.dtype)
        if hidden.is_cuda and self.weight.element_size() == 2:
            logits = torch.mm(hidden, self.weight.t(), out_dtype=torch.float32)
            return self._shaped(logits if self.bias is None else logits.add_(self.bias))
        size = len(self.weight) if hidden.is_cuda else COLUMNS
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        logits = hidden.new_empty(len(hidden), len(self.weight), dtype=dtype)
        for start in range(0, len(self.weight), size):
            part = slice(start, start + size)
            logits[:, part] = F.linear(hidden, self.weight[part], None if self.bias is None else self.bias[part])
        return self._shaped(logits)

    def _shaped(self, logits: Tensor) -> Tensor:
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """dz/d(Wh + b), where the logits are z."""
        return self.scale if self.softcap is None else self.scale * (1 - (logits / self.softcap).square())

    @property
    def dtype(self) -> torch.dtype:
        """What it multiplies in: autocast's, or else its weight's."""
        device = self.weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        if dtype == torch.float16 or self.weight.dtype == torch.float64:
            return torch.promote_types(self.weight.dtype, torch.float32)  # float16: the loss scale comes too late here
        return dtype

    def cast(self) -> Head:
        """The head in that dtype."""
        bias = None if self.bias is None else self.bias.to(self.dtype)
        return replace(self, weight=self.weight.to(self.dtype), bias=bias)
