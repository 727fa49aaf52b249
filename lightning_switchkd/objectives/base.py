"""An objective is cross-entropy plus named, weighted terms; a term says what it needs and what it is counted by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Flag, auto
from typing import ClassVar, Literal, cast

from torch import Tensor, nn

from lightning_switchkd.batch import Counts
from lightning_switchkd.errors import UserError
from lightning_switchkd.losses.chunk import Chunk, Heads, Rows, Side, Statistics
from lightning_switchkd.losses.head import sum_rows

Unit = Literal["token", "visual_token", "image_token", "image"]
UNITS: tuple[str, ...] = tuple(f.name for f in fields(Counts))


class Need(Flag):
    """What a term needs of the step: decides which pathways run and which consistency checks apply."""

    STUDENT = 0
    TEACHER = auto()
    SWITCH = auto()


class RowTerm(nn.Module, ABC):
    """A loss on supervised rows. May own adapters: they are optimised and saved like any part.

    Attributes:
        needs: Pathways it reads besides the student's.
        unit: What its sum is divided by, over the whole optimizer step. ``visual_token`` leaves text-only records out.
    """

    needs: Need = Need.STUDENT
    unit: ClassVar[Unit] = "token"

    @abstractmethod
    def forward(self, rows: Chunk) -> Tensor:
        """``[n]`` nats, one value per row of the chunk."""

    def observe(self, rows: Chunk) -> Statistics:
        """What there is to tell of the rows beside the loss, from logits that are there anyway; ``[n]`` each."""
        return {}


class CrossEntropy(RowTerm):
    """Next-token cross-entropy over the student's whole head, as Hugging Face computes it."""

    def forward(self, rows: Chunk) -> Tensor:
        return rows.log_normaliser("student") - rows.at("student", rows.targets[:, None])[:, 0]


@dataclass(frozen=True)
class Terms:
    """What one micro-batch contributes.

    Attributes:
        loss: scalar to be differentiated, Σ weight · (sum over local units / units in the whole optimizer step); added
            up over ranks and accumulated micro-batches it is the loss of the step.
        sums: detached sums over this micro-batch's units, by term; ``correct`` counts right top-1 tokens in validation.
        units: what each of ``sums`` is counted by.
        statistics: what the terms tell of their rows, by term, while the objective is ``observed``.
        shares: each term's part of the loss, to be differentiated alone, while the objective is ``separate``.
        features: V^S(x_v) ``[M, P, H_v]`` as each pathway reads it: the gradient here is what that pathway sends into
            the vision encoder.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    units: dict[str, str]
    statistics: dict[str, Statistics] = field(default_factory=dict)
    shares: dict[str, Tensor] = field(default_factory=dict)
    features: dict[Side, Tensor] = field(default_factory=dict)

    def counts(self, counts: Counts) -> dict[str, int]:
        """How many units of a micro-batch each of ``sums`` is over."""
        return {name: getattr(counts, unit) for name, unit in self.units.items()}


class Objective(nn.Module):
    """Cross-entropy plus weighted terms.

    Args:
        terms: named terms besides cross-entropy (``ce``, weight 1, is always there).
        weights: weight of each term (the paper's λ).
        warmup_steps: optimizer steps over which the weights grow linearly from 0; 0 keeps them constant.

    Attributes:
        observed: whether ``Terms.statistics`` is filled; a callback that reads them sets it.
        separate: whether ``Terms.shares`` is filled in training, at the cost of the heads once more for each term.
    """

    def __init__(
        self,
        terms: Mapping[str, RowTerm] | None = None,
        weights: Mapping[str, float] | None = None,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        self.terms = nn.ModuleDict({"ce": CrossEntropy(), **(terms or {})})
        self.weights = dict(weights or {})
        self.warmup_steps = warmup_steps
        self.observed = self.separate = False
        for name, weight in self.weights.items():
            if not 0 < weight < float("inf"):
                raise UserError(
                    f"objective: the weight of '{name}' is {weight}; it must be a positive number. To leave it out, "
                    "choose the objective without it (conf/experiment/)."
                )
        if warmup_steps < 0:
            raise UserError(f"objective: warmup_steps is {warmup_steps}. Set it to 0 (constant weights) or more.")

    @property
    def needs(self) -> Need:
        """Everything that some term needs."""
        needs = Need.STUDENT
        for term in self._terms().values():
            needs |= term.needs
        return needs

    def _terms(self) -> dict[str, RowTerm]:
        return cast(dict[str, RowTerm], dict(self.terms.items()))

    def weight(self, name: str, step: int) -> float:
        """Weight of a term at an optimizer step."""
        if name == "ce":
            return 1.0
        return self.weights[name] * (min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0)

    def forward(self, rows: Rows, heads: Heads, totals: Tensor, step: int, logits_gib: float | None = None) -> Terms:
        """Evaluates every term on this micro-batch.

        Args:
            rows: supervised rows of the pathways.
            heads: their output heads.
            totals: ``[4]`` units of the whole optimizer step over all ranks, in the order of ``Counts``.
            step: optimizer steps taken so far, for the weights' schedule.
            logits_gib: most memory for logits at a time; None leaves it to the head.
        """
        terms = self._terms()
        units: dict[str, str] = {**{name: term.unit for name, term in terms.items()}, "correct": "token"}
        weights = {
            name: self.weight(name, step) / totals[UNITS.index(units[name])].clamp(min=1).double() for name in terms
        }
        found = sum_rows(
            rows, heads, terms, weights, logits_gib=logits_gib, top1=not self.training, observe=self.observed
        )
        shares = {
            name: sum_rows(rows, heads, {name: term}, weights, logits_gib=logits_gib).loss
            for name, term in (terms.items() if self.separate and self.training else ())
        }
        return Terms(found.loss, found.sums, {name: units[name] for name in found.sums}, found.statistics, shares)
