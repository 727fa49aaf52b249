"""Rows seen through their output heads: the logits that loss terms read, while there are any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_switchkd.losses.divergence import normaliser_and_entropy
from lightning_switchkd.losses.select import Selection

Side = Literal["student", "teacher", "switch"]
Statistics = dict[str, Tensor]
"""What a term can tell of its rows beside the loss: name -> ``[n]``, one value per row."""

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


Heads = Mapping[Side, Head]
"""Each pathway's output head; the switch pathway ends in the teacher's."""


@dataclass(frozen=True)
class Rows:
    """The supervised rows of one micro-batch.

    Attributes:
        hidden: ``[N, H]`` final hidden states by pathway (only the pathways that ran).
        targets: ``[N]`` the token each row has to predict.
        visual: ``[N]`` bool, True where the row's record has an image.
        vocabulary: number of real token ids, common to both models; head columns beyond it are padding.
    """

    hidden: dict[Side, Tensor]
    targets: Tensor
    visual: Tensor
    vocabulary: int

    def part(self, part: slice) -> Rows:
        """Some of the rows, without the graph of their hidden states."""
        hidden = {side: states[part].detach() for side, states in self.hidden.items()}
        return replace(self, hidden=hidden, targets=self.targets[part], visual=self.visual[part])


@dataclass
class Chunk:
    """Rows seen through their heads. Terms share what they ask for: a projection or selection is made once.

    What they read of a side that learns can be differentiated; `losses.head` carries it on to hidden rows and head.

    Attributes:
        rows: the rows.
        heads: in the dtype that they multiply in.
        learning: sides whose hidden rows or head want a gradient.
    """

    rows: Rows
    heads: Heads
    learning: frozenset[Side] = frozenset()
    read_at: list[tuple[Side, Tensor, Tensor]] = field(default_factory=list)
    read_whole: dict[Side, Tensor] = field(default_factory=dict)
    read_normaliser: dict[Side, Tensor] = field(default_factory=dict)
    _logits: dict[Side, Tensor] = field(default_factory=dict)
    _selected: dict[tuple[Side, Selection], tuple[Tensor, Tensor]] = field(default_factory=dict)
    _spread: dict[Side, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def targets(self) -> Tensor:
        """``[n]`` the tokens to predict."""
        return self.rows.targets

    @torch.no_grad()
    def logits(self, side: Side) -> Tensor:
        """``[n, V]`` logits of the whole head, at least float32; a gradient passes through :meth:`all` and the like."""
        if side not in self._logits:
            self._logits[side] = self.heads[side].exactly(self.rows.hidden[side])
        return self._logits[side]

    def all(self, side: Side) -> Tensor:
        """``[n, vocabulary]`` logits of the real token ids, those both models have. Where few will do, :meth:`at`."""
        if side not in self.read_whole:
            self.read_whole[side] = self._leaf(side, self.logits(side)[:, : self.rows.vocabulary])
        return self.read_whole[side]

    def at(self, side: Side, ids: Tensor) -> Tensor:
        """``[n, K]`` logits at chosen ids ``[n, K]``."""
        read = self._leaf(side, self.logits(side).gather(1, ids))
        if read.requires_grad:
            self.read_at.append((side, ids, read))
        return read

    def log_normaliser(self, side: Side) -> Tensor:
        """``[n]`` log Σ exp of all the head's logits, padding columns included."""
        if side not in self.read_normaliser:
            parts = [_log_sum_exp(part) for part in pieces(self.logits(side))]
            self.read_normaliser[side] = self._leaf(side, torch.cat(parts))
        return self.read_normaliser[side]

    @torch.no_grad()
    def select(self, side: Side, selection: Selection) -> tuple[Tensor, Tensor]:
        """Ids and mask ``[n, K]`` that ``selection`` finds in a side's logits; no gradient passes through."""
        key = (side, selection)
        if key not in self._selected:
            self._selected[key] = selection(self.logits(side)[:, : self.rows.vocabulary])
        return self._selected[key]

    @torch.no_grad()
    def spread(self, side: Side) -> tuple[Tensor, Tensor]:
        """Log normaliser and entropy ``[n]`` of a side's distribution over the real token ids; not differentiated."""
        if side not in self._spread:
            found = [normaliser_and_entropy(p[:, : self.rows.vocabulary]) for p in pieces(self.logits(side))]
            normaliser, entropy = (torch.cat(parts) for parts in zip(*found, strict=True))
            self._spread[side] = normaliser, entropy
        return self._spread[side]

    def free(self, side: Side) -> Tensor:
        """The logits, for their last use."""
        return self._logits.pop(side)

    def _leaf(self, side: Side, value: Tensor) -> Tensor:
        return value.detach().requires_grad_(torch.is_grad_enabled() and side in self.learning)


def _log_sum_exp(logits: Tensor) -> Tensor:
    """`torch.logsumexp` in half of its passes; a row has a finite logit."""
    highest = logits.amax(-1, keepdim=True)
    return (logits - highest).exp_().sum(-1).log_().add_(highest[:, 0])


def pieces(x: Tensor, like: Tensor | None = None) -> tuple[Tensor, ...]:
    """A few rows at a time: what is made of them between two passes stays in the cache, and out of the peak."""
    like = x if like is None else like
    parts: tuple[Tensor, ...] = x.split(max(1, (2**19 if like.is_cpu else 2**24) // like.shape[1]))
    return parts
