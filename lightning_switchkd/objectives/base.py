"""An objective is cross-entropy plus named, weighted terms, each divided by its units in the whole optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import cast, get_args

import torch
from torch import Tensor, nn

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import Counts, Pathway
from lightning_switchkd.losses.chunked import LossSums, sum_losses
from lightning_switchkd.losses.logits import Statistics
from lightning_switchkd.objectives.terms import (
    UNITS,
    CrossEntropy,
    FeatureLoss,
    Kind,
    LanguageModel,
    LossTerm,
    Need,
    ObjectiveInputs,
    TokenLoss,
)


@dataclass(frozen=True)
class ObjectiveOutput:
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
    term_losses: dict[str, Tensor] = field(default_factory=dict)
    features: dict[Pathway, Tensor] = field(default_factory=dict)

    def counts(self, counts: Counts) -> dict[str, int]:
        """How many units of a micro-batch each of ``sums`` is over."""
        return {name: getattr(counts, unit) for name, unit in self.units.items()}


def nonzero(weighed: Mapping[str, tuple[float, LossTerm]]) -> tuple[dict[str, LossTerm], dict[str, float]]:
    """Terms and weights as :class:`Objective` takes them; a weight of 0 leaves its term out, and what only it needs."""
    kept = {name: pair for name, pair in weighed.items() if pair[0] != 0}
    return {name: term for name, (_, term) in kept.items()}, {name: weight for name, (weight, _) in kept.items()}


class Objective(nn.Module):
    """Cross-entropy plus weighted terms.

    Args:
        terms: named terms besides cross-entropy (``ce``, weight 1, is always there).
        weights: weight of each term (the paper's λ).
        warmup_steps: optimizer steps over which the weights grow linearly from 0; 0 keeps them constant.

    Attributes:
        observed: whether ``ObjectiveOutput.statistics`` is filled; a callback that reads them sets it.
        separate: whether ``ObjectiveOutput.term_losses`` is filled in training, at the cost of the heads once more for each term.
    """

    def __init__(
        self,
        terms: Mapping[str, LossTerm] | None = None,
        weights: Mapping[str, float] | None = None,
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        self.terms = nn.ModuleDict({"ce": CrossEntropy(), **(terms or {})})
        self.weights = dict(weights or {})
        self.warmup_steps = warmup_steps
        self.collect_statistics = self.split_terms = False
        for name, weight in self.weights.items():
            if not 0 < weight < float("inf"):
                raise UserError(
                    f"objective: the weight of '{name}' is {weight}; it must be a positive number. To leave it out, "
                    "choose the objective without it (conf/method/)."
                )
        if warmup_steps < 0:
            raise UserError(f"objective: warmup_steps is {warmup_steps}. Set it to 0 (constant weights) or more.")

    @property
    def needs(self) -> Need:
        """Everything that some term needs."""
        return reduce(or_, (term.needs for term in self._terms().values()))

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> None:
        """Makes the terms' adapters."""
        for term in self._terms().values():
            term.build(student, teacher)

    def _terms(self) -> dict[str, LossTerm]:
        return cast(dict[str, LossTerm], dict(self.terms.items()))

    def weight(self, name: str, step: int) -> float:
        """Weight of a term at an optimizer step."""
        if name == "ce":
            return 1.0
        return self.weights[name] * (min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0)

    def forward(
        self, views: ObjectiveInputs, totals: Tensor, step: int, logits_gib: float | None = None
    ) -> ObjectiveOutput:
        """Evaluates every term on this micro-batch.

        Args:
            views: of the pathways.
            totals: ``[4]`` units of the whole optimizer step over all ranks, in the order of ``Counts``.
            step: optimizer steps taken so far, for the weights' schedule.
            logits_gib: most memory for logits at a time; None leaves it to the head.
        """
        terms = self._terms()
        units: dict[str, str] = {**{name: term.unit for name, term in terms.items()}, "correct": "token"}
        weights = {
            name: self.weight(name, step) / totals[UNITS.index(units[name])].clamp(min=1).double() for name in terms
        }

        def summed(chosen: Mapping[str, LossTerm], whole: bool = False) -> LossSums:
            found = [_sum_view(views, name, t, weights) for name, t in chosen.items() if isinstance(t, FeatureLoss)]
            for kind in get_args(Kind):
                of_kind = {name: t for name, t in chosen.items() if isinstance(t, TokenLoss) and t.kind == kind}
                if of_kind:
                    top1 = whole and kind == "answer" and not self.training
                    collect = whole and self.collect_statistics
                    settings = {"logits_gib": logits_gib, "top1": top1, "collect_statistics": collect}
                    found.append(sum_losses(views.of(kind), views.heads, of_kind, weights, **settings))
            return _joined(found)

        found = summed(terms, whole=True)
        apart = terms if self.split_terms and self.training else {}
        term_losses = {name: summed({name: term}).loss for name, term in apart.items()}
        return ObjectiveOutput(
            found.loss, found.sums, {name: units[name] for name in found.sums}, found.statistics, term_losses
        )


def _sum_view(views: ObjectiveInputs, name: str, term: FeatureLoss, weights: Mapping[str, Tensor]) -> LossSums:
    with torch.autocast(views.rows.targets.device.type, enabled=False):
        value = term(views)
    return LossSums(weights[name].to(value.dtype) * value, {name: value.detach()}, {})


def _joined(parts: list[LossSums]) -> LossSums:
    loss = torch.stack([part.loss for part in parts]).sum()
    sums = {name: value for part in parts for name, value in part.sums.items()}
    return LossSums(loss, sums, {name: value for part in parts for name, value in part.statistics.items()})
