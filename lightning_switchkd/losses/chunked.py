"""From hidden rows to a loss with its gradients, chunk by chunk: logits of more than one chunk never exist.

The rows of a chunk go through the heads, the terms read the logits, and the gradients of hidden rows and head are made
at once; then the logits are freed. Peak memory is one chunk's, whatever the number of rows (METHOD section 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_switchkd.core.types import Pathway
from lightning_switchkd.losses.logits import Heads, LogitsChunk, Statistics, SupervisedTokens, pieces
from lightning_switchkd.losses.precomputed_grads import attach_gradients

LOGITS_GIB = {"cpu": 0.25, "cuda": 2.0}
"""Memory that the logits of a chunk take up by default: on a GPU fewer chunks are fewer kernels to launch."""


class LossTerm(Protocol):
    """What :func:`sum_losses` needs of a loss term (``objectives.terms.TokenLoss``)."""

    @property
    def unit(self) -> str: ...

    def __call__(self, rows: LogitsChunk) -> Tensor: ...

    def statistics(self, rows: LogitsChunk) -> Statistics: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...


class Gradients:
    """The gradients of a loss over all chunks with respect to hidden rows, heads and the terms' own parameters.

    Args:
        rows: all rows.
        heads: as they are.
        cast: as chunks multiply by them.
        terms: which may own parameters.
    """

    def __init__(self, rows: SupervisedTokens, heads: Heads, cast: Heads, terms: Mapping[str, LossTerm]) -> None:
        self._hidden = {pathway: states for pathway, states in rows.hidden.items() if states.requires_grad}
        self._heads = {
            pathway: [x for x in (heads[pathway].weight, heads[pathway].bias) if x is not None and x.requires_grad]
            for pathway in rows.hidden
        }
        self._own = [p for term in terms.values() for p in term.parameters() if p.requires_grad]
        self.learning = frozenset({*self._hidden, *(pathway for pathway, wants in self._heads.items() if wants)})
        self._made = {
            id(states): torch.zeros_like(states, dtype=cast[pathway].weight.dtype)
            for pathway, states in self._hidden.items()
        }

    def add(self, loss: Tensor, chunk: LogitsChunk, part: slice) -> None:
        """Carries the gradients of what the terms have read of a chunk on; its logits are used up.

        Args:
            loss: the chunk's.
            chunk: the rows.
            part: where they lie among all.
        """
        leaves = [*chunk.read_whole.values(), *chunk.read_normalizer.values(), *(leaf for _, _, leaf in chunk.read_at)]
        wanted = [x for x in (*leaves, *self._own) if x.requires_grad]
        found = {}
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
            found = {id(x): g for x, g in zip(wanted, gradients, strict=True) if g is not None}
        for parameter in self._own:
            if id(parameter) in found:
                self._sum(parameter, found[id(parameter)])
        for pathway in self.learning:
            at = [(ids, found[id(leaf)]) for of, ids, leaf in chunk.read_at if of == pathway and id(leaf) in found]
            whole, normaliser = (found.get(id(read.get(pathway))) for read in (chunk.read_whole, chunk.read_normalizer))
            if whole is not None or normaliser is not None or (at and self._heads[pathway]):
                self._dense(pathway, chunk, part, at, whole, normaliser)
            elif any(ids.numel() for ids, _ in at):
                self._sparse(pathway, chunk, part, at)

    def attached(self, loss: Tensor) -> Tensor:
        """The loss, differentiable; afterwards nothing is left here."""
        inputs = [*self._hidden.values(), *(x for wants in self._heads.values() for x in wants), *self._own]
        made = [self._made.pop(id(x)) if id(x) in self._made else torch.zeros_like(x) for x in inputs]
        return attach_gradients(loss, inputs, made)

    @torch.no_grad()
    def _dense(
        self,
        pathway: Pathway,
        chunk: LogitsChunk,
        part: slice,
        at: list[tuple[Tensor, Tensor]],
        whole: Tensor | None,
        normaliser: Tensor | None,
    ) -> None:
        """By the gradient of all logits, made in the memory of the logits."""
        head, logits = chunk.heads[pathway], chunk.release(pathway)
        slope = head.slope(logits)
        if normaliser is None:
            logits.zero_()
        else:
            parts = (pieces(x, logits) for x in (logits, chunk.read_normalizer[pathway].detach(), normaliser))
            for z, log_z, factor in zip(*parts, strict=True):
                z.sub_(log_z[:, None]).exp_().mul_(factor[:, None])  # a log normaliser's gradient is the softmax
        if whole is not None:
            logits[:, : whole.shape[1]].add_(whole)
        for ids, gradient in at:
            logits.scatter_add_(1, ids, gradient)
        if isinstance(slope, Tensor) or slope != 1.0:
            logits.mul_(slope)
        gradient = logits.to(head.weight.dtype)
        if pathway in self._hidden:
            torch.mm(gradient, head.weight, out=self._made[id(self._hidden[pathway])][part])
        hidden = chunk.rows.hidden[pathway].to(gradient.dtype)
        for parameter in self._heads[pathway]:
            if parameter.dim() == 1:
                self._sum(parameter, gradient.sum(0))
            elif id(parameter) in self._made:
                self._made[id(parameter)].addmm_(gradient.t(), hidden)
            else:
                self._made[id(parameter)] = gradient.t() @ hidden

    @torch.no_grad()
    def _sparse(self, pathway: Pathway, chunk: LogitsChunk, part: slice, at: list[tuple[Tensor, Tensor]]) -> None:
        """By a few rows of the head, where only few logits have a gradient, and the head wants none."""
        head = chunk.heads[pathway]
        ids, gradient = (torch.cat(parts, 1) for parts in zip(*at, strict=True))
        gradient = (gradient * head.slope(chunk.raw_logits(pathway).gather(1, ids))).to(head.weight.dtype)
        made = F.embedding_bag(ids, head.weight, per_sample_weights=gradient, mode="sum")
        self._made[id(self._hidden[pathway])][part] = made

    def _sum(self, x: Tensor, gradient: Tensor) -> None:
        self._made[id(x)] = self._made[id(x)] + gradient if id(x) in self._made else gradient


@dataclass(frozen=True)
class LossSums:
    """What :func:`sum_losses` finds.

    Attributes:
        loss: scalar, Σ weight · sum; differentiable.
        sums: scalars by term, over its units; not differentiated. Also ``correct`` where asked for.
        statistics: by term, ``[n]`` each over the rows that are units of the term.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    statistics: dict[str, Statistics]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def sum_losses(
    rows: SupervisedTokens,
    heads: Heads,
    terms: Mapping[str, LossTerm],
    weights: Mapping[str, Tensor | float],
    *,
    logits_gib: float | None = None,
    top1: bool = False,
    collect_statistics: bool = False,
) -> LossSums:
    """Sums every term over its units, and weighs the sums to a loss whose gradients are made already.

    With no row every sum is 0, and so are the gradients.

    Args:
        rows: supervised rows ``[N, H]`` by pathway.
        heads: output heads by pathway.
        terms: named terms, each ``[n]`` nats per row.
        weights: of each term's sum in the loss.
        logits_gib: most memory for logits at a time: as many rows make a chunk as fit in, at least one; None is
            `LOGITS_GIB`.
        top1: also count under ``correct`` the rows whose most likely token is the right one.
        collect_statistics: also collect what the terms can tell of the rows they count, from the logits that are there anyway.
    """
    casts = {id(head): head.cast() for head in heads.values()}
    cast = {pathway: casts[id(head)] for pathway, head in heads.items()}
    gradients = Gradients(rows, heads, cast, terms)
    learning: frozenset[Pathway] = gradients.learning if torch.is_grad_enabled() else frozenset()
    number, size = len(rows.targets), chunk_size(rows, cast, logits_gib)
    found: list[dict[str, Tensor]] = []
    seen: list[dict[str, Statistics]] = []
    with torch.autocast(rows.targets.device.type, enabled=False):
        for start in range(0, max(number, 1), size):
            part = slice(start, min(start + size, number))
            chunk = LogitsChunk(rows.part(part), cast, learning)
            sums = {name: _over_units(term(chunk), term, chunk.rows).sum() for name, term in terms.items()}
            if collect_statistics:
                seen.append({name: _observed(term, chunk) for name, term in terms.items()})
            if top1:
                sums["correct"] = (chunk.raw_logits("student").argmax(-1) == chunk.targets).sum()
            if learning:
                gradients.add(_weighed(sums, weights), chunk, part)
            found.append({name: value.detach().double() for name, value in sums.items()})
    total = {name: torch.stack([sums[name] for sums in found]).sum() for name in found[0]}
    dtype = torch.promote_types(cast["student"].weight.dtype, torch.float32)
    loss = _weighed(total, weights).to(dtype)
    return LossSums(
        gradients.attached(loss) if learning else loss,
        {name: value.to(dtype) for name, value in total.items()},
        {name: _joined([part[name] for part in seen]) for name in (seen[0] if seen else ()) if seen[0][name]},
    )


def chunk_size(rows: SupervisedTokens, heads: Heads, logits_gib: float | None) -> int:
    """How many rows make a chunk: as many as have their logits of all pathways in so many GiB; at least one."""
    weights = [heads[pathway].weight for pathway in rows.hidden]
    gib = LOGITS_GIB.get(rows.targets.device.type, LOGITS_GIB["cpu"]) if logits_gib is None else logits_gib
    size = sum(len(weight) * max(4, weight.element_size()) for weight in weights)
    return max(1, int(gib * 2**30 / size))


def _weighed(sums: Mapping[str, Tensor], weights: Mapping[str, Tensor | float]) -> Tensor:
    return torch.stack([value * weights[name] for name, value in sums.items() if name in weights]).sum()


def _over_units(values: Tensor, term: LossTerm, rows: SupervisedTokens) -> Tensor:
    return values.masked_fill(~rows.visual, 0.0) if term.unit == "visual_token" else values


@torch.no_grad()
def _observed(term: LossTerm, chunk: LogitsChunk) -> Statistics:
    found = term.statistics(chunk)
    return {k: v[chunk.rows.visual] for k, v in found.items()} if term.unit == "visual_token" else found


def _joined(parts: list[Statistics]) -> Statistics:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
