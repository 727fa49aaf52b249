"""Rows seen through their output heads: the logits that loss terms read, while there are any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_switchkd.core.types import Pathway
from lightning_switchkd.losses import divergence
from lightning_switchkd.losses.select import Selection
from lightning_switchkd.models.head import Head

Statistics = dict[str, Tensor]
"""What a term can tell of its rows beside the loss: name -> ``[n]``, one value per row."""

Heads = Mapping[Pathway, Head]
"""Each pathway's output head; the switch pathway ends in the teacher's."""


@dataclass(frozen=True)
class SupervisedTokens:
    """The supervised rows of one micro-batch.

    Attributes:
        hidden: ``[N, H]`` final hidden states by pathway (only the pathways that ran).
        targets: ``[N]`` the token each row has to predict.
        visual: ``[N]`` bool, True where the row's record has an image.
        vocabulary: number of real token ids, common to both models; head columns beyond it are padding.
    """

    hidden: dict[Pathway, Tensor]
    targets: Tensor
    visual: Tensor
    vocabulary: int

    def part(self, part: slice) -> SupervisedTokens:
        """Some of the rows, without the graph of their hidden states."""
        hidden = {pathway: states[part].detach() for pathway, states in self.hidden.items()}
        return replace(self, hidden=hidden, targets=self.targets[part], visual=self.visual[part])


@dataclass
class LogitsChunk:
    """Rows seen through their heads. Terms share what they ask for: a projection or selection is made once.

    What they read of a side that learns can be differentiated; `losses.head` carries it on to hidden rows and head.

    Attributes:
        rows: the rows.
        heads: in the dtype that they multiply in.
        learning: sides whose hidden rows or head want a gradient.
    """

    rows: SupervisedTokens
    heads: Heads
    learning: frozenset[Pathway] = frozenset()
    read_at: list[tuple[Pathway, Tensor, Tensor]] = field(default_factory=list)
    read_whole: dict[Pathway, Tensor] = field(default_factory=dict)
    read_normalizer: dict[Pathway, Tensor] = field(default_factory=dict)
    _logits: dict[Pathway, Tensor] = field(default_factory=dict)
    _selected: dict[tuple[Pathway, Selection], tuple[Tensor, Tensor]] = field(default_factory=dict)
    _spread: dict[Pathway, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def targets(self) -> Tensor:
        """``[n]`` the tokens to predict."""
        return self.rows.targets

    @torch.no_grad()
    def raw_logits(self, pathway: Pathway) -> Tensor:
        """``[n, V]`` logits of the whole head, at least float32; a gradient passes through :meth:`logits` and the like."""
        if pathway not in self._logits:
            self._logits[pathway] = self.heads[pathway].exactly(self.rows.hidden[pathway])
        return self._logits[pathway]

    def logits(self, pathway: Pathway) -> Tensor:
        """``[n, vocabulary]`` logits of the real token ids, those both models have. Where few will do, :meth:`logits_at`."""
        if pathway not in self.read_whole:
            self.read_whole[pathway] = self._leaf(pathway, self.raw_logits(pathway)[:, : self.rows.vocabulary])
        return self.read_whole[pathway]

    def logits_at(self, pathway: Pathway, ids: Tensor) -> Tensor:
        """``[n, K]`` logits at chosen ids ``[n, K]``."""
        read = self._leaf(pathway, self.raw_logits(pathway).gather(1, ids))
        if read.requires_grad:
            self.read_at.append((pathway, ids, read))
        return read

    def log_normalizer(self, pathway: Pathway) -> Tensor:
        """``[n]`` log Σ exp of all the head's logits, padding columns included."""
        if pathway not in self.read_normalizer:
            parts = [_log_sum_exp(part) for part in pieces(self.raw_logits(pathway))]
            self.read_normalizer[pathway] = self._leaf(pathway, torch.cat(parts))
        return self.read_normalizer[pathway]

    @torch.no_grad()
    def select(self, pathway: Pathway, selection: Selection) -> tuple[Tensor, Tensor]:
        """Ids and mask ``[n, K]`` that ``selection`` finds in a side's logits; no gradient passes through."""
        key = (pathway, selection)
        if key not in self._selected:
            self._selected[key] = selection(self.raw_logits(pathway)[:, : self.rows.vocabulary])
        return self._selected[key]

    @torch.no_grad()
    def log_z_and_entropy(self, pathway: Pathway) -> tuple[Tensor, Tensor]:
        """Log normaliser and entropy ``[n]`` of a side's distribution over the real token ids; not differentiated."""
        if pathway not in self._spread:
            found = [
                divergence.log_z_and_entropy(p[:, : self.rows.vocabulary]) for p in pieces(self.raw_logits(pathway))
            ]
            normaliser, entropy = (torch.cat(parts) for parts in zip(*found, strict=True))
            self._spread[pathway] = normaliser, entropy
        return self._spread[pathway]

    def release(self, pathway: Pathway) -> Tensor:
        """The logits, for their last use."""
        return self._logits.pop(pathway)

    def _leaf(self, pathway: Pathway, value: Tensor) -> Tensor:
        return value.detach().requires_grad_(torch.is_grad_enabled() and pathway in self.learning)


def _log_sum_exp(logits: Tensor) -> Tensor:
    """`torch.logsumexp` in half of its passes; a row has a finite logit."""
    highest = logits.amax(-1, keepdim=True)
    return (logits - highest).exp_().sum(-1).log_().add_(highest[:, 0])


def pieces(x: Tensor, like: Tensor | None = None) -> tuple[Tensor, ...]:
    """A few rows at a time: what is made of them between two passes stays in the cache, and out of the peak."""
    like = x if like is None else like
    parts: tuple[Tensor, ...] = x.split(max(1, (2**19 if like.is_cpu else 2**24) // like.shape[1]))
    return parts
