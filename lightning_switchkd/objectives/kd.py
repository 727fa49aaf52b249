"""Knowledge distillation over the whole vocabulary (Hinton et al. 2015, arXiv 1503.02531), by three divergences."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import Pathway
from lightning_switchkd.losses.divergence import check_temperature, forward_kl, jensen_shannon, reverse_kl
from lightning_switchkd.losses.logits import LogitsChunk
from lightning_switchkd.objectives.base import Objective
from lightning_switchkd.objectives.terms import Kind, Need, TokenLoss

Divergence = Literal["fkl", "rkl", "jsd"]
"""KL(teacher ‖ student), KL(student ‖ teacher), or the Jensen-Shannon divergence between both."""


class DivergenceLoss(TokenLoss):
    """A divergence between the teacher's and a pathway's distribution over all real token ids, in nats per token.

    Args:
        divergence: Which one.
        temperature: τ dividing the logits of both.
        beta: The teacher's weight in the mixture of ``jsd``.
        pathway: The pathway whose distribution learns.
        kind: Which tokens.
    """

    def __init__(
        self,
        divergence: Divergence,
        temperature: float,
        beta: float = 0.5,
        pathway: Pathway = "student",
        kind: Kind = "answer",
    ) -> None:
        super().__init__(pathway, kind)
        self.needs |= Need.TEACHER
        if divergence not in get_args(Divergence):
            raise UserError(
                f"objective: unknown divergence '{divergence}'. Set it to {' or '.join(get_args(Divergence))}."
            )
        check_temperature(temperature)
        self.divergence, self.temperature, self.beta = divergence, temperature, beta

    def forward(self, chunk: LogitsChunk) -> Tensor:
        """Compute ``[n]`` nats."""
        teacher, student = chunk.logits("teacher"), chunk.logits(self.pathway)  # [n, vocabulary]
        if self.divergence == "jsd":
            return jensen_shannon(teacher=teacher, student=student, temperature=self.temperature, beta=self.beta)
        divergence = forward_kl if self.divergence == "fkl" else reverse_kl
        return divergence(teacher=teacher, student=student, temperature=self.temperature)


class KD(Objective):
    """Cross-entropy + weight · divergence between teacher and student: ``kd_fkl``, ``kd_rkl``, ``kd_jsd``.

    Args:
        divergence: ``fkl`` KL(teacher ‖ student), ``rkl`` KL(student ‖ teacher), ``jsd`` generalized Jensen-Shannon
            (Agarwal et al. 2024, arXiv 2306.13649).
        weight: λ of the divergence.
        temperature: τ dividing the logits of both.
        beta: The teacher's weight in ``jsd``.
        warmup_steps: Optimizer steps over which λ grows linearly.
    """

    def __init__(
        self,
        divergence: Divergence = "fkl",
        weight: float = 1.0,
        temperature: float = 3.0,
        beta: float = 0.5,
        warmup_steps: int = 0,
    ) -> None:
        term = DivergenceLoss(divergence, temperature, beta)
        super().__init__({divergence: term}, {divergence: weight}, warmup_steps)
