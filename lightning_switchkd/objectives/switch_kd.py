"""Switch-KD (arXiv 2604.14629): L_CE + λ1·L_Align + λ2·L_VSD. Both distances are DBiLD."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import Pathway
from lightning_switchkd.losses.dbild import logits_difference_kl
from lightning_switchkd.losses.divergence import check_temperature
from lightning_switchkd.losses.logits import LogitsChunk, Statistics
from lightning_switchkd.losses.select import Kneedle, Selection
from lightning_switchkd.losses.statistics import region_statistics
from lightning_switchkd.objectives.base import Objective, nonzero
from lightning_switchkd.objectives.kd import DivergenceLoss
from lightning_switchkd.objectives.terms import Kind, LossTerm, Need, TokenLoss

Direction = Literal["reverse", "forward", "symmetric"]
"""KL(student ‖ teacher), KL(teacher ‖ student), or the mean of both."""


class DBiLDLoss(TokenLoss):
    """DBiLD between the teacher's logits and a pathway's: a term led by the teacher and a term led by that pathway.

    Args:
        temperature: τ of the logit differences.
        select: Finds the leading ids in the leader's logits.
        direction: Of the divergence. The paper's is reverse.
        tau_squared: Multiply by τ², which keeps the size of the gradient when τ grows.
        backprop_through_leader: Whether the pathway learns from the ids that it leads itself. If not, that term is only
            logged.
        pathway: The pathway whose logits learn.
        kind: Which tokens.
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
            raise UserError(
                f"objective: unknown direction '{direction}'. Set it to {' or '.join(get_args(Direction))}."
            )
        check_temperature(temperature)
        self.temperature = temperature
        self.select = select
        self.direction = direction
        self.scale = temperature**2 if tau_squared else 1.0
        self.backprop_through_leader = backprop_through_leader

    def forward(self, chunk: LogitsChunk) -> Tensor:
        """Compute ``[n]`` nats: the teacher-led and the pathway-led term, added."""
        selected = [chunk.select(leader, self.select) for leader in ("teacher", self.pathway)]  # ids, mask [n, K] each
        width = max(ids.shape[1] for ids, _ in selected)
        ids, masks = zip(*([F.pad(x, (0, width - x.shape[1])) for x in pair] for pair in selected), strict=True)
        teacher, student = ([chunk.logits_at(p, leading) for leading in ids] for p in ("teacher", self.pathway))
        if not self.backprop_through_leader:
            student[1] = student[1].detach()
        directions = ("reverse", "forward") if self.direction == "symmetric" else (self.direction,)
        values = [
            logits_difference_kl(  # both leaders in one call: [2n]
                teacher=torch.cat(teacher),
                student=torch.cat(student),
                mask=torch.cat(masks),
                temperature=self.temperature,
                reverse=direction == "reverse",
            )
            for direction in directions
        ]
        return self.scale * torch.stack(values).mean(0).view(2, -1).sum(0)

    def statistics(self, chunk: LogitsChunk) -> Statistics:
        """Describe the leading ids of both leaders."""
        return region_statistics(chunk, self.pathway, self.select)


class SwitchKDObjective(Objective):
    """Cross-entropy + λ1·L_Align + λ2·L_VSD. A λ of 0 drops its term and the pathway that only it needs.

    Args:
        lambda_align: λ1. With ``lambda_vsd`` 0 this is the ablation ``dbild``.
        lambda_vsd: λ2. With ``lambda_align`` 0 this is the ablation ``vsd``.
        temperature: τ of the logit differences.
        select: Finds the leading ids. The paper's is Kneedle.
        direction: Of the divergence. The paper's is reverse.
        tau_squared: Multiply all terms by τ².
        backprop_through_leader: Whether a pathway learns from the ids that it leads itself. If not, that term is only
            logged.
        switch_divergence: Of the switch pathway. ``fkl`` is KL(teacher ‖ switch) over the whole vocabulary at τ.
        image_tokens: Add both terms at image tokens (``align_image``, ``vsd_image``), as LLaVA-KD does with its own.
        warmup_steps: Optimizer steps over which both λ grow linearly.
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
        weighted: dict[str, tuple[float, LossTerm]] = {}
        for kind in kinds:
            suffix = "" if kind == "answer" else "_image"
            switch: LossTerm = DBiLDLoss(*settings, "switch", kind)
            if switch_divergence == "fkl":
                switch = DivergenceLoss("fkl", temperature, pathway="switch", kind=kind)
            weighted[f"align{suffix}"] = lambda_align, DBiLDLoss(*settings, "student", kind)
            weighted[f"vsd{suffix}"] = lambda_vsd, switch
        super().__init__(*nonzero(weighted), warmup_steps)
