"""Switch-KD (arXiv 2604.14629): L_CE + λ1·L_Align + λ2·L_VSD, both distances being DBiLD."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import Pathway
from lightning_switchkd.losses.dbild import logits_difference_kl
from lightning_switchkd.losses.logits import LogitsChunk, Statistics
from lightning_switchkd.losses.select import Kneedle, Selection
from lightning_switchkd.losses.statistics import region_statistics
from lightning_switchkd.objectives.base import Objective, nonzero
from lightning_switchkd.objectives.kd import DivergenceLoss
from lightning_switchkd.objectives.terms import Kind, LossTerm, Need, TokenLoss

Direction = Literal["reverse", "forward", "symmetric"]
"""KL(student ‖ teacher), KL(teacher ‖ student), or the mean of both."""


class DBiLDLoss(TokenLoss):
    """DBiLD between the teacher's logits and a side's: two terms, led by teacher and by that side.

    Args:
        temperature: τ of the logits differences.
        select: finds the leading set of ids in the leader's logits.
        direction: of the divergence; the paper's is reverse.
        tau_squared: multiply by τ², which keeps the gradient's size when τ grows.
        backprop_through_leader: whether the side learns from the set that it leads itself; without, that term is only logged.
        side: whose logits learn.
        kind: at which rows.
    """

    def __init__(
        self,
        temperature: float,
        select: Selection,
        direction: Direction = "reverse",
        tau_squared: bool = False,
        backprop_through_leader: bool = True,
        pathway: Pathway = "student",
        kind: Kind = "answer",
    ) -> None:
        super().__init__(pathway, kind)
        self.needs |= Need.TEACHER
        if direction not in get_args(Direction):
            raise UserError(f"objective: there is no direction '{direction}'. Set {' or '.join(get_args(Direction))}.")
        self.temperature = temperature
        self.select = select
        self.direction = direction
        self.scale = temperature**2 if tau_squared else 1.0
        self.backprop_through_leader = backprop_through_leader

    def forward(self, rows: LogitsChunk) -> Tensor:
        led = [rows.select(leader, self.select) for leader in ("teacher", self.pathway)]
        width = max(ids.shape[1] for ids, _ in led)
        ids, masks = zip(*([F.pad(x, (0, width - x.shape[1])) for x in pair] for pair in led), strict=True)
        teacher, student = ([rows.logits_at(pathway, of) for of in ids] for pathway in ("teacher", self.pathway))
        if not self.backprop_through_leader:
            student[1] = student[1].detach()
        directions = ("reverse", "forward") if self.direction == "symmetric" else (self.direction,)
        values = [
            logits_difference_kl(  # of both leaders at once
                teacher=torch.cat(teacher),
                student=torch.cat(student),
                mask=torch.cat(masks),
                temperature=self.temperature,
                reverse=direction == "reverse",
            )
            for direction in directions
        ]
        return self.scale * torch.stack(values).mean(0).view(2, -1).sum(0)

    def statistics(self, rows: LogitsChunk) -> Statistics:
        return region_statistics(rows, self.pathway, self.select)


class SwitchKDObjective(Objective):
    """Cross-entropy + λ1·L_Align + λ2·L_VSD. A λ of 0 leaves its term out, and the pathway that only it needs.

    Args:
        lambda_align: λ1. With ``lambda_vsd`` 0 this is the ablation ``dbild``.
        lambda_vsd: λ2. With ``lambda_align`` 0 this is the ablation ``vsd``.
        temperature: τ of the logits differences.
        select: how the leading ids are found; the paper's is Kneedle.
        direction: of the divergence; the paper's is reverse.
        tau_squared: multiply all terms by τ².
        backprop_through_leader: whether a side learns from the set that it leads itself; without, that term is only logged.
        switch_divergence: of the switch pathway; ``fkl`` is KL(teacher ‖ switch) over the whole vocabulary at τ.
        image_tokens: add both terms at image tokens (``align_image``, ``vsd_image``), as LLaVA-KD does with its own.
        warmup_steps: optimizer steps over which both λ grow linearly.
    """

    def __init__(
        self,
        lambda_align: float = 1.0,
        lambda_vsd: float = 1.0,
        temperature: float = 3.0,
        select: Selection | None = None,
        direction: Direction = "reverse",
        tau_squared: bool = False,
        backprop_through_leader: bool = True,
        switch_divergence: Literal["dbild", "fkl"] = "dbild",
        image_tokens: bool = False,
        warmup_steps: int = 0,
    ) -> None:
        settings = temperature, select or Kneedle(), direction, tau_squared, backprop_through_leader
        kinds: tuple[Kind, ...] = ("answer", "image") if image_tokens else ("answer",)
        weighed: dict[str, tuple[float, LossTerm]] = {}
        for kind in kinds:
            ending = "" if kind == "answer" else "_image"
            switch: LossTerm = DBiLDLoss(*settings, "switch", kind)
            if switch_divergence == "fkl":
                switch = DivergenceLoss("fkl", temperature, pathway="switch", kind=kind)
            weighed[f"align{ending}"] = lambda_align, DBiLDLoss(*settings, "student", kind)
            weighed[f"vsd{ending}"] = lambda_vsd, switch
        super().__init__(*nonzero(weighed), warmup_steps)
