"""Knowledge distillation over the whole vocabulary (Hinton et al. 2015, arXiv 1503.02531)."""

from __future__ import annotations

from torch import Tensor

from lightning_switchkd.losses.chunk import Chunk
from lightning_switchkd.losses.divergence import forward_kl
from lightning_switchkd.objectives.base import Need, Objective, RowTerm


class ForwardKLTerm(RowTerm):
    """KL(teacher ‖ student) over all real token ids, in nats per token."""

    needs = Need.TEACHER

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, rows: Chunk) -> Tensor:
        return forward_kl(teacher=rows.all("teacher"), student=rows.all("student"), temperature=self.temperature)


class ForwardKL(Objective):
    """Cross-entropy + weight · KL(teacher ‖ student): ``kd_fkl``.

    Args:
        weight: λ of the divergence.
        temperature: τ dividing both sides' logits.
        warmup_steps: optimizer steps over which λ grows linearly.
    """

    def __init__(self, weight: float = 1.0, temperature: float = 3.0, warmup_steps: int = 0) -> None:
        super().__init__({"fkl": ForwardKLTerm(temperature)}, {"fkl": weight}, warmup_steps)
