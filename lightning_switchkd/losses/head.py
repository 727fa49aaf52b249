"""From hidden rows to summed loss terms: the heads are applied to supervised rows only, each at most once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from lightning_switchkd.losses.divergence import normaliser_and_entropy
from lightning_switchkd.losses.select import Selection

Side = Literal["student", "teacher", "switch"]
Statistics = dict[str, Tensor]
"""What a term can tell of its rows beside the loss: name -> ``[n]``, one value per row."""

Heads = Mapping[Side, Callable[[Tensor], Tensor]]
"""Each pathway's output head, ``[n, H] -> [n, V]``; the switch pathway ends in the teacher's."""


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


class Term(Protocol):
    """What :func:`sum_rows` needs of a loss term (``objectives.base.RowTerm``)."""

    @property
    def unit(self) -> str: ...

    def __call__(self, rows: Chunk) -> Tensor: ...

    def observe(self, rows: Chunk) -> Statistics: ...


@dataclass
class Chunk:
    """Rows seen through their heads. Terms share what they ask for: a projection or selection is made once."""

    rows: Rows
    heads: Heads
    _logits: dict[Side, Tensor] = field(default_factory=dict)
    _selected: dict[tuple[Side, Selection], tuple[Tensor, Tensor]] = field(default_factory=dict)
    _spread: dict[Side, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def targets(self) -> Tensor:
        """``[n]`` the tokens to predict."""
        return self.rows.targets

    def whole(self, side: Side) -> Tensor:
        """``[n, V]`` logits of the whole head, at least float32."""
        if side not in self._logits:
            logits = self.heads[side](self.rows.hidden[side])
            self._logits[side] = logits if logits.dtype == torch.float64 else logits.float()
        return self._logits[side]

    def all(self, side: Side) -> Tensor:
        """``[n, vocabulary]`` logits of the real token ids, those both models have."""
        return self.whole(side)[:, : self.rows.vocabulary]

    def at(self, side: Side, ids: Tensor) -> Tensor:
        """``[n, K]`` logits at chosen ids ``[n, K]``."""
        return self.all(side).gather(1, ids)

    def select(self, side: Side, selection: Selection) -> tuple[Tensor, Tensor]:
        """Ids and mask ``[n, K]`` that ``selection`` finds in a side's logits; no gradient passes through."""
        key = (side, selection)
        if key not in self._selected:
            self._selected[key] = selection(self.all(side).detach())
        return self._selected[key]

    def spread(self, side: Side) -> tuple[Tensor, Tensor]:
        """Log normaliser and entropy ``[n]`` of a side's distribution over the real token ids; not differentiated."""
        if side not in self._spread:
            self._spread[side] = normaliser_and_entropy(self.all(side).detach())
        return self._spread[side]


def sum_rows(
    rows: Rows, heads: Heads, terms: Mapping[str, Term], *, top1: bool = False, observe: bool = False
) -> tuple[dict[str, Tensor], dict[str, Statistics]]:
    """Sums every term over its units; with no row each sum is a finite 0 that can be differentiated.

    Args:
        rows: supervised rows ``[N, H]`` by pathway.
        heads: output heads by pathway.
        terms: named terms, each ``[n]`` nats per row.
        top1: also count under ``correct`` the rows whose most likely token is the right one.
        observe: also collect what the terms can tell of the rows they count, from the logits that are there anyway.

    Returns:
        Sums by term (scalars), and statistics by term, each ``[n]`` over the rows that are units of the term.
    """
    chunk = Chunk(rows, heads)
    sums: dict[str, Tensor] = {}
    statistics: dict[str, Statistics] = {}
    for name, term in terms.items():
        values, only_visual = term(chunk), term.unit == "visual_token"
        sums[name] = (values.masked_fill(~rows.visual, 0.0) if only_visual else values).sum()
        if observe and (seen := term.observe(chunk)):
            statistics[name] = {key: value[rows.visual] if only_visual else value for key, value in seen.items()}
    if top1:
        sums["correct"] = (chunk.whole("student").argmax(-1) == rows.targets).sum().to(torch.float32)
    return sums, statistics
