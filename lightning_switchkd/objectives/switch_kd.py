"""Switch-KD (arXiv 2604.14629): L_CE + λ1·L_Align + λ2·L_VSD, both distances being DBiLD."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_switchkd.losses.chunk import Chunk, Side, Statistics
from lightning_switchkd.losses.difference import logits_difference_kl
from lightning_switchkd.losses.select import Kneedle, Selection
from lightning_switchkd.losses.statistics import region_statistics
from lightning_switchkd.objectives.base import Need, Objective, RowTerm, Unit


class Align(RowTerm):
    """DBiLD between the teacher's logits and the student's: two terms, led by teacher and by student.

    Args:
        temperature: τ of the logits differences.
        select: finds the leading set of ids in the leader's logits.
        reverse: reverse KL (the paper's), else forward.
        tau_squared: multiply by τ², which keeps the gradient's size when τ grows.
    """

    side: ClassVar[Side] = "student"
    needs = Need.TEACHER

    def __init__(
        self,
        temperature: float,
        select: Selection,
        reverse: bool = True,
        tau_squared: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.select = select
        self.reverse = reverse
        self.scale = temperature**2 if tau_squared else 1.0

    def forward(self, rows: Chunk) -> Tensor:
        led = [rows.select(leader, self.select) for leader in ("teacher", self.side)]
        width = max(ids.shape[1] for ids, _ in led)
        ids, masks = zip(*([F.pad(x, (0, width - x.shape[1])) for x in pair] for pair in led), strict=True)
        teacher, student = (torch.cat([rows.at(side, of) for of in ids]) for side in ("teacher", self.side))
        values = logits_difference_kl(  # of both leaders at once
            teacher=teacher,
            student=student,
            mask=torch.cat(masks),
            temperature=self.temperature,
            reverse=self.reverse,
        )
        return self.scale * values.view(2, -1).sum(0)

    def observe(self, rows: Chunk) -> Statistics:
        return region_statistics(rows, self.side, self.select)


class VisualSwitch(Align):
    """DBiLD between the teacher's logits and the switch pathway's; text-only records take no part in it."""

    side: ClassVar[Side] = "switch"
    unit: ClassVar[Unit] = "visual_token"
    needs = Need.TEACHER | Need.SWITCH


class SwitchKDObjective(Objective):
    """Cross-entropy + λ1·L_Align + λ2·L_VSD. A λ of 0 leaves its term out, and the pathway that only it needs.

    Args:
        lambda_align: λ1. With ``lambda_vsd`` 0 this is the ablation ``dbild``.
        lambda_vsd: λ2. With ``lambda_align`` 0 this is the ablation ``vsd``.
        temperature: τ of the logits differences.
        select: how the leading ids are found; the paper's is Kneedle.
        reverse: reverse KL (the paper's) or forward.
        tau_squared: multiply both terms by τ².
        warmup_steps: optimizer steps over which both λ grow linearly.
    """

    def __init__(
        self,
        lambda_align: float = 1.0,
        lambda_vsd: float = 1.0,
        temperature: float = 3.0,
        select: Selection | None = None,
        reverse: bool = True,
        tau_squared: bool = False,
        warmup_steps: int = 0,
    ) -> None:
        select = select or Kneedle()
        distances: dict[str, tuple[float, type[Align]]] = {
            "align": (lambda_align, Align),
            "vsd": (lambda_vsd, VisualSwitch),
        }
        kept = {name: pair for name, pair in distances.items() if pair[0] != 0}
        super().__init__(
            {name: term(temperature, select, reverse, tau_squared) for name, (_, term) in kept.items()},
            {name: weight for name, (weight, _) in kept.items()},
            warmup_steps,
        )
