"""The loss engine: from hidden states to a loss with its gradients, chunk by chunk.

The hidden states of a chunk go through the heads, the terms read the logits, and the gradients of hidden states and
heads are computed at once. Then the logits are freed. Peak memory is that of one chunk, whatever the number of tokens
(docs/explanation/method.md, section 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import Pathway
from lightning_switchkd.losses.logits import Heads, LogitsChunk, Statistics, SupervisedTokens, pieces
from lightning_switchkd.losses.precomputed_grads import attach_gradients

LOGITS_GIB = {"cpu": 0.25, "cuda": 2.0}
"""Default memory for the logits of a chunk, in GiB. On a GPU, fewer chunks are fewer kernels to launch."""


class LossTerm(Protocol):
    """The part of a term that :func:`sum_losses` needs (``objectives.terms.TokenLoss``)."""

    @property
    def unit(self) -> str:
        """The unit that the sum is divided by. ``visual_token`` excludes text-only samples."""

    def __call__(self, chunk: LogitsChunk) -> Tensor:
        """Compute ``[n]`` nats."""

    def statistics(self, chunk: LogitsChunk) -> Statistics:
        """Describe the tokens, ``[n]`` each."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield the term's own parameters."""


class Gradients:
    """The gradients of a loss over all chunks with respect to hidden states, heads and the terms' own parameters.

    Args:
        tokens: All tokens.
        heads: The heads as they are.
        cast: The heads in the dtype that chunks multiply in.
        terms: The terms, which may own parameters.
    """

    def __init__(self, tokens: SupervisedTokens, heads: Heads, cast: Heads, terms: Mapping[str, LossTerm]) -> None:
        self._hidden = {pathway: states for pathway, states in tokens.hidden.items() if states.requires_grad}
        self._heads = {
            pathway: [x for x in (heads[pathway].weight, heads[pathway].bias) if x is not None and x.requires_grad]
            for pathway in tokens.hidden
        }
        self._own = [p for term in terms.values() for p in term.parameters() if p.requires_grad]
        trained_heads = (pathway for pathway, parameters in self._heads.items() if parameters)
        self.learning: frozenset[Pathway] = frozenset({*self._hidden, *trained_heads})
        self._sums = {
            id(states): torch.zeros_like(states, dtype=cast[pathway].weight.dtype)
            for pathway, states in self._hidden.items()
        }

    def add(self, loss: Tensor, chunk: LogitsChunk, part: slice) -> None:
        """Add the gradients of a chunk's loss. The logits of the chunk are used up.

        Args:
            loss: The chunk's loss.
            chunk: The tokens whose logits the terms have read.
            part: The place of the chunk among all tokens.
        """
        leaves = [*chunk.read_whole.values(), *chunk.read_normalizer.values(), *(leaf for _, _, leaf in chunk.read_at)]
        inputs = [x for x in (*leaves, *self._own) if x.requires_grad]
        grads = {}
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
            grads = {id(x): g for x, g in zip(inputs, gradients, strict=True) if g is not None}
        for parameter in self._own:
            if id(parameter) in grads:
                self._accumulate(parameter, grads[id(parameter)])
        for pathway in self.learning:
            at = [(ids, grads[id(leaf)]) for p, ids, leaf in chunk.read_at if p == pathway and id(leaf) in grads]
            whole, normalizer = (grads.get(id(read.get(pathway))) for read in (chunk.read_whole, chunk.read_normalizer))
            if whole is not None or normalizer is not None or (at and self._heads[pathway]):
                self._dense(pathway, chunk, part, at, whole, normalizer)
            elif any(ids.numel() for ids, _ in at):
                self._sparse(pathway, chunk, part, at)

    def attached(self, loss: Tensor) -> Tensor:
        """Return the loss with its gradients attached. This object is empty afterwards."""
        inputs = [*self._hidden.values(), *(x for parameters in self._heads.values() for x in parameters), *self._own]
        sums = [self._sums.pop(id(x)) if id(x) in self._sums else torch.zeros_like(x) for x in inputs]
        return attach_gradients(loss, inputs, sums)

    @torch.no_grad()
    def _dense(
        self,
        pathway: Pathway,
        chunk: LogitsChunk,
        part: slice,
        at: list[tuple[Tensor, Tensor]],
        whole: Tensor | None,
        normalizer: Tensor | None,
    ) -> None:
        """Go through the gradient of all logits, computed in the memory of the logits."""
        head, logits = chunk.heads[pathway], chunk.release(pathway)  # [n, V]
        slope = head.slope(logits)
        if normalizer is None:
            logits.zero_()
        else:
            parts = (pieces(x, logits) for x in (logits, chunk.read_normalizer[pathway].detach(), normalizer))
            for z, log_z, factor in zip(*parts, strict=True):
                z.sub_(log_z[:, None]).exp_().mul_(factor[:, None])  # the gradient of a log normalizer is the softmax
        if whole is not None:
            logits[:, : whole.shape[1]].add_(whole)
        for ids, gradient in at:
            logits.scatter_add_(1, ids, gradient)
        if isinstance(slope, Tensor) or slope != 1.0:
            logits.mul_(slope)
        gradient = logits.to(head.weight.dtype)
        if pathway in self._hidden:
            torch.mm(gradient, head.weight, out=self._sums[id(self._hidden[pathway])][part])  # [n, H]
        hidden = chunk.tokens.hidden[pathway].to(gradient.dtype)
        for parameter in self._heads[pathway]:
            if parameter.dim() == 1:
                self._accumulate(parameter, gradient.sum(0))
            elif id(parameter) in self._sums:
                self._sums[id(parameter)].addmm_(gradient.t(), hidden)  # [V, H]
            else:
                self._sums[id(parameter)] = gradient.t() @ hidden

    @torch.no_grad()
    def _sparse(self, pathway: Pathway, chunk: LogitsChunk, part: slice, at: list[tuple[Tensor, Tensor]]) -> None:
        """Go through a few rows of the head: only few logits have a gradient, and the head needs none."""
        head = chunk.heads[pathway]
        ids, gradient = (torch.cat(parts, 1) for parts in zip(*at, strict=True))  # [n, K]
        gradient = (gradient * head.slope(chunk.raw_logits(pathway).gather(1, ids))).to(head.weight.dtype)
        states = F.embedding_bag(ids, head.weight, per_sample_weights=gradient, mode="sum")  # [n, H]
        self._sums[id(self._hidden[pathway])][part] = states

    def _accumulate(self, x: Tensor, gradient: Tensor) -> None:
        self._sums[id(x)] = self._sums[id(x)] + gradient if id(x) in self._sums else gradient


@dataclass(frozen=True)
class LossSums:
    """The result of :func:`sum_losses`.

    Attributes:
        loss: Differentiable scalar, Σ weight · sum.
        sums: Detached scalars by term, over its units. Also ``correct`` if asked for.
        statistics: By term, ``[n]`` each over the tokens that are units of the term.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    statistics: dict[str, Statistics]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def sum_losses(
    tokens: SupervisedTokens,
    heads: Heads,
    terms: Mapping[str, LossTerm],
    weights: Mapping[str, Tensor | float],
    *,
    logits_gib: float | None = None,
    top1: bool = False,
    collect_statistics: bool = False,
) -> LossSums:
    """Sum every term over its units, and weight the sums into a loss whose gradients are computed already.

    Without tokens, every sum is 0, and so are the gradients.

    Args:
        tokens: Hidden states ``[N, H]`` by pathway.
        heads: Output heads by pathway.
        terms: Named terms, each ``[n]`` nats per token.
        weights: Weight of each term's sum in the loss.
        logits_gib: Memory limit for logits in GiB. A chunk holds as many tokens as fit, at least one. None uses
            `LOGITS_GIB`.
        top1: Also count under ``correct`` the tokens whose most likely prediction is right.
        collect_statistics: Also collect the terms' statistics of the tokens that they count.

    Raises:
        UserError: A term read the logits of a learning pathway, but its value has no gradient.
    """
    casts = {id(head): head.cast() for head in heads.values()}
    cast = {pathway: casts[id(head)] for pathway, head in heads.items()}
    gradients = Gradients(tokens, heads, cast, terms)
    learning: frozenset[Pathway] = gradients.learning if torch.is_grad_enabled() else frozenset()
    count, size = len(tokens.targets), chunk_size(tokens, cast, logits_gib)
    sums_of_chunks: list[dict[str, Tensor]] = []
    statistics: list[dict[str, Statistics]] = []
    with torch.autocast(tokens.targets.device.type, enabled=False):
        for start in range(0, max(count, 1), size):
            part = slice(start, min(start + size, count))
            chunk = LogitsChunk(tokens.part(part), cast, learning)
            sums = {name: _over_units(_evaluate(name, term, chunk), term, chunk).sum() for name, term in terms.items()}
            if collect_statistics:
                statistics.append({name: _statistics(term, chunk) for name, term in terms.items()})
            if top1:
                sums["correct"] = (chunk.raw_logits("student").argmax(-1) == chunk.targets).sum()
            if learning:
                gradients.add(_weighted(sums, weights), chunk, part)
            sums_of_chunks.append({name: value.detach().double() for name, value in sums.items()})
    total = {name: torch.stack([sums[name] for sums in sums_of_chunks]).sum() for name in sums_of_chunks[0]}
    dtype = torch.promote_types(cast["student"].weight.dtype, torch.float32)
    loss = _weighted(total, weights).to(dtype)
    return LossSums(
        gradients.attached(loss) if learning else loss,
        {name: value.to(dtype) for name, value in total.items()},
        _join(statistics),
    )


def chunk_size(tokens: SupervisedTokens, heads: Heads, logits_gib: float | None) -> int:
    """Return how many tokens make a chunk: as many as have their logits of all pathways in so many GiB, at least 1."""
    weights = [heads[pathway].weight for pathway in tokens.hidden]
    gib = LOGITS_GIB.get(tokens.targets.device.type, LOGITS_GIB["cpu"]) if logits_gib is None else logits_gib
    bytes_per_token = sum(len(weight) * max(4, weight.element_size()) for weight in weights)
    return max(1, int(gib * 2**30 / bytes_per_token))


def _evaluate(name: str, term: LossTerm, chunk: LogitsChunk) -> Tensor:
    """Evaluate a term, and refuse a value that silently lost its gradient."""
    chunk.pathways_read.clear()
    value = term(chunk)
    if chunk.learning & chunk.pathways_read and not value.requires_grad:
        raise UserError(
            f"objective: the term '{name}' ({type(term).__name__}) read the logits of "
            f"{', '.join(sorted(chunk.learning & chunk.pathways_read))}, but its value has no gradient, so nothing "
            "would be learned from it. Read them by chunk.logits, logits_at or log_normalizer (not raw_logits), and do "
            "not detach the result."
        )
    return value


def _weighted(sums: Mapping[str, Tensor], weights: Mapping[str, Tensor | float]) -> Tensor:
    return torch.stack([value * weights[name] for name, value in sums.items() if name in weights]).sum()


def _over_units(values: Tensor, term: LossTerm, chunk: LogitsChunk) -> Tensor:
    return values.masked_fill(~chunk.tokens.visual, 0.0) if term.unit == "visual_token" else values


@torch.no_grad()
def _statistics(term: LossTerm, chunk: LogitsChunk) -> Statistics:
    values = term.statistics(chunk)
    return {k: v[chunk.tokens.visual] for k, v in values.items()} if term.unit == "visual_token" else values


def _join(chunks: list[dict[str, Statistics]]) -> dict[str, Statistics]:
    """Concatenate the statistics of all chunks. Terms without statistics are dropped."""
    return {
        name: {key: torch.cat([chunk[name][key] for chunk in chunks]) for key in values}
        for name, values in (chunks[0] if chunks else {}).items()
        if values
    }
