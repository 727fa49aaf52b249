"""The logits of a chunk of tokens, while they exist: what token losses read."""

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
"""What a term reports about its tokens besides the loss: name -> ``[n]``, one value per token."""

Heads = Mapping[Pathway, Head]
"""Each pathway's output head. The switch pathway ends in the teacher's."""


@dataclass(frozen=True)
class SupervisedTokens:
    """Final hidden states of one micro-batch that go through the heads, and the tokens they have to predict.

    Attributes:
        hidden: ``[N, H]`` final hidden states of each pathway that ran.
        targets: ``[N]`` the token that each hidden state has to predict.
        visual: ``[N]`` bool, True where the sample has an image.
        vocabulary: Number of real token ids, common to both models. Head columns beyond it are padding.
    """

    hidden: dict[Pathway, Tensor]
    targets: Tensor
    visual: Tensor
    vocabulary: int

    def part(self, part: slice) -> SupervisedTokens:
        """Return some of the tokens, without the graph of their hidden states."""
        hidden = {pathway: states[part].detach() for pathway, states in self.hidden.items()}
        return replace(self, hidden=hidden, targets=self.targets[part], visual=self.visual[part])


@dataclass
class LogitsChunk:
    """The logits of a few tokens. Terms share what they ask for: a projection or a selection is computed once.

    ``logits``, ``logits_at`` and ``log_normalizer`` of a learning pathway are differentiable. `losses.chunked` carries
    their gradients on to the hidden states and the head. ``raw_logits``, ``select`` and ``log_z_and_entropy`` are not.

    Attributes:
        tokens: The tokens.
        heads: The heads in the dtype that they multiply in.
        learning: Pathways whose hidden states or head need a gradient.
        pathways_read: Pathways read since this set was last cleared.
    """

    tokens: SupervisedTokens
    heads: Heads
    learning: frozenset[Pathway] = frozenset()
    pathways_read: set[Pathway] = field(default_factory=set)
    read_at: list[tuple[Pathway, Tensor, Tensor]] = field(default_factory=list)
    read_whole: dict[Pathway, Tensor] = field(default_factory=dict)
    read_normalizer: dict[Pathway, Tensor] = field(default_factory=dict)
    _logits: dict[Pathway, Tensor] = field(default_factory=dict)
    _selected: dict[tuple[Pathway, Selection], tuple[Tensor, Tensor]] = field(default_factory=dict)
    _log_z_and_entropy: dict[Pathway, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def targets(self) -> Tensor:
        """``[n]`` the tokens to predict."""
        return self.tokens.targets

    def logits(self, pathway: Pathway) -> Tensor:
        """Return ``[n, vocabulary]`` differentiable logits of the real token ids. For few ids use :meth:`logits_at`."""
        self.pathways_read.add(pathway)
        if pathway not in self.read_whole:
            self.read_whole[pathway] = self._leaf(pathway, self._real(pathway))
        return self.read_whole[pathway]

    def logits_at(self, pathway: Pathway, ids: Tensor) -> Tensor:
        """Return ``[n, K]`` differentiable logits at chosen ids ``[n, K]``."""
        read = self._leaf(pathway, self.raw_logits(pathway).gather(1, ids))
        if read.requires_grad:
            self.read_at.append((pathway, ids, read))
        return read

    def log_normalizer(self, pathway: Pathway) -> Tensor:
        """Return ``[n]`` log Σ exp of all logits of the head, padding columns included. Differentiable."""
        self.pathways_read.add(pathway)
        if pathway not in self.read_normalizer:
            parts = [_log_sum_exp(part) for part in pieces(self.raw_logits(pathway))]
            self.read_normalizer[pathway] = self._leaf(pathway, torch.cat(parts))
        return self.read_normalizer[pathway]

    @torch.no_grad()
    def raw_logits(self, pathway: Pathway) -> Tensor:
        """Return ``[n, V]`` logits of the whole head, at least float32, **without gradient**."""
        self.pathways_read.add(pathway)
        if pathway not in self._logits:
            self._logits[pathway] = self.heads[pathway].exactly(self.tokens.hidden[pathway])
        return self._logits[pathway]

    @torch.no_grad()
    def select(self, pathway: Pathway, selection: Selection) -> tuple[Tensor, Tensor]:
        """Return the ids and the mask ``[n, K]`` that ``selection`` finds in a pathway's logits, without gradient."""
        self.pathways_read.add(pathway)
        key = (pathway, selection)
        if key not in self._selected:
            self._selected[key] = selection(self._real(pathway))
        return self._selected[key]

    @torch.no_grad()
    def log_z_and_entropy(self, pathway: Pathway) -> tuple[Tensor, Tensor]:
        """Return log normalizer and entropy ``[n]`` of the distribution over the real token ids, without gradient."""
        self.pathways_read.add(pathway)
        if pathway not in self._log_z_and_entropy:
            vocabulary = self.tokens.vocabulary
            parts = [divergence.log_z_and_entropy(p[:, :vocabulary]) for p in pieces(self.raw_logits(pathway))]
            log_z, entropy = (torch.cat(values) for values in zip(*parts, strict=True))
            self._log_z_and_entropy[pathway] = log_z, entropy
        return self._log_z_and_entropy[pathway]

    def release(self, pathway: Pathway) -> Tensor:
        """Hand over the memory of the logits, for their last use."""
        return self._logits.pop(pathway)

    def _real(self, pathway: Pathway) -> Tensor:
        return self.raw_logits(pathway)[:, : self.tokens.vocabulary]

    def _leaf(self, pathway: Pathway, value: Tensor) -> Tensor:
        return value.detach().requires_grad_(torch.is_grad_enabled() and pathway in self.learning)


def _log_sum_exp(logits: Tensor) -> Tensor:
    """Compute `torch.logsumexp` in half of its passes. Every row has a finite logit."""
    highest = logits.amax(-1, keepdim=True)
    return (logits - highest).exp_().sum(-1).log_().add_(highest[:, 0])


def pieces(x: Tensor, like: Tensor | None = None) -> tuple[Tensor, ...]:
    """Split rows so that intermediate results stay in the processor's cache and out of the memory peak."""
    like = x if like is None else like
    parts: tuple[Tensor, ...] = x.split(max(1, (2**19 if like.is_cpu else 2**24) // like.shape[1]))
    return parts
