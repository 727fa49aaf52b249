"""An objective: cross-entropy plus named, weighted terms, each divided by its units in the whole optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import cast, get_args

import torch
from torch import Tensor, nn

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import Counts, Features, Pathway
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
    """The contribution of one micro-batch.

    Attributes:
        loss: Differentiable scalar, Σ weight · (sum over local units / units in the whole optimizer step). Added up
            over ranks and accumulated micro-batches, it is the loss of the step.
        sums: Detached sums over this micro-batch's units, by term. ``correct`` counts right top-1 tokens in validation.
        units: The unit that each of ``sums`` is counted by.
        statistics: Statistics of each term's tokens, while the objective's ``collect_statistics`` is set.
        term_losses: Each term's part of the loss, differentiable alone, while the objective's ``split_terms`` is set.
        features: V^S(x_v) as each pathway reads it. The gradient there is what that pathway sends into the vision
            encoder.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    units: dict[str, str]
    statistics: dict[str, Statistics] = field(default_factory=dict)
    term_losses: dict[str, Tensor] = field(default_factory=dict)
    features: dict[Pathway, Features] = field(default_factory=dict)

    def counts(self, counts: Counts) -> dict[str, int]:
        """Return the number of units that each of ``sums`` runs over."""
        return {name: getattr(counts, unit) for name, unit in self.units.items()}


def nonzero(weighted: Mapping[str, tuple[float, LossTerm]]) -> tuple[dict[str, LossTerm], dict[str, float]]:
    """Split weighted terms as :class:`Objective` takes them. A weight of 0 drops the term and what only it needs."""
    kept = {name: pair for name, pair in weighted.items() if pair[0] != 0}
    return {name: term for name, (_, term) in kept.items()}, {name: weight for name, (weight, _) in kept.items()}


class Objective(nn.Module):
    """Cross-entropy plus weighted terms.

    Args:
        terms: Named terms besides cross-entropy (``ce``, weight 1, always present).
        weights: Weight of each term (the paper's λ).
        warmup_steps: Optimizer steps over which the weights grow linearly from 0. 0 keeps them constant.

    Attributes:
        collect_statistics: Whether ``ObjectiveOutput.statistics`` is filled. Set by a callback that reads them.
        split_terms: Whether ``ObjectiveOutput.term_losses`` is filled in training. Each term then runs its heads again.
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
                    f"objective: the weight of '{name}' must be a positive number, got {weight}. To drop the term, "
                    "choose a method without it (conf/method/)."
                )
        if warmup_steps < 0:
            raise UserError(f"objective: warmup_steps must be 0 (constant weights) or more, got {warmup_steps}.")

    @property
    def needs(self) -> Need:
        """Everything that some term needs."""
        return reduce(or_, (term.needs for term in self._terms().values()))

    def build(self, student: LanguageModel, teacher: LanguageModel | None) -> None:
        """Create the terms' adapters."""
        for term in self._terms().values():
            term.build(student, teacher)

    def _terms(self) -> dict[str, LossTerm]:
        return cast(dict[str, LossTerm], dict(self.terms.items()))

    def weight(self, name: str, step: int) -> float:
        """Return the weight of a term at an optimizer step."""
        if name == "ce":
            return 1.0
        return self.weights[name] * (min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0)

    def forward(
        self, inputs: ObjectiveInputs, totals: Tensor, step: int, logits_gib: float | None = None
    ) -> ObjectiveOutput:
        """Evaluate every term on this micro-batch.

        Args:
            inputs: What the pathways computed.
            totals: ``[4]`` units of the whole optimizer step over all ranks, in the order of ``Counts``.
            step: Optimizer steps taken so far, for the schedule of the weights.
            logits_gib: Memory limit for the logits of one chunk, in GiB. None uses the engine's default.
        """
        terms = self._terms()
        units: dict[str, str] = {**{name: term.unit for name, term in terms.items()}, "correct": "token"}
        weights = {
            name: self.weight(name, step) / totals[UNITS.index(units[name])].clamp(min=1).double() for name in terms
        }

        def evaluate(chosen: Mapping[str, LossTerm], full: bool = False) -> LossSums:
            sums = [_sum_feature_loss(inputs, n, t, weights) for n, t in chosen.items() if isinstance(t, FeatureLoss)]
            for kind in get_args(Kind):
                of_kind = {name: t for name, t in chosen.items() if isinstance(t, TokenLoss) and t.kind == kind}
                if of_kind:
                    settings = {
                        "logits_gib": logits_gib,
                        "top1": full and kind == "answer" and not self.training,
                        "collect_statistics": full and self.collect_statistics,
                    }
                    sums.append(sum_losses(inputs.tokens(kind), inputs.heads, of_kind, weights, **settings))
            return _join(sums)

        result = evaluate(terms, full=True)
        split = terms if self.split_terms and self.training else {}
        term_losses = {name: evaluate({name: term}).loss for name, term in split.items()}
        return ObjectiveOutput(
            result.loss, result.sums, {name: units[name] for name in result.sums}, result.statistics, term_losses
        )


def _sum_feature_loss(inputs: ObjectiveInputs, name: str, term: FeatureLoss, weights: Mapping[str, Tensor]) -> LossSums:
    with torch.autocast(inputs.answer_tokens.targets.device.type, enabled=False):
        value = term(inputs)
    return LossSums(weights[name].to(value.dtype) * value, {name: value.detach()}, {})


def _join(parts: list[LossSums]) -> LossSums:
    loss = torch.stack([part.loss for part in parts]).sum()
    sums = {name: value for part in parts for name, value in part.sums.items()}
    return LossSums(loss, sums, {name: value for part in parts for name, value in part.statistics.items()})
