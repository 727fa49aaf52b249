"""Student, frozen teacher and objective as one module: a forward pass runs the pathways, then the objective."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_switchkd.batch import Batch
from lightning_switchkd.cache import RecordCache
from lightning_switchkd.losses.chunk import Heads, Rows, Side
from lightning_switchkd.losses.rows import supervised
from lightning_switchkd.objectives.base import Need, Objective, Terms
from lightning_switchkd.pathways import student_pathway, switch_pathway, teacher_pathway
from lightning_switchkd.vlm.seams import VLM, Frozen


class Distiller(nn.Module):
    """Holds the pair and its objective. The teacher appears in no state dict; loading does not expect it.

    Args:
        student: the model that learns.
        teacher: the model it learns from; None for objectives that need none.
        objective: cross-entropy plus terms.
        vocabulary: real token ids that both models share; terms compare logits on these only.
        logits_gib: most memory for logits at a time; None leaves it to the head.
    """

    def __init__(
        self,
        student: VLM,
        teacher: VLM | None,
        objective: Objective,
        vocabulary: int,
        logits_gib: float | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = None if teacher is None else Frozen(teacher)
        self.objective = objective
        self.vocabulary = vocabulary
        self.logits_gib = logits_gib
        self.register_state_dict_post_hook(_drop_teacher)
        self.register_load_state_dict_post_hook(_expect_no_teacher)

    def forward(self, batch: Batch, totals: Tensor, step: int, cache: RecordCache | None = None) -> Terms:
        """Runs the pathways that the objective needs and evaluates it.

        Args:
            batch: one micro-batch.
            totals: ``[4]`` units of the whole optimizer step over all ranks, in the order of ``Counts``.
            step: optimizer steps taken so far.
            cache: the teacher's rows of the records it holds, in place of its pathway.
        """
        features = self.features(batch)
        rows = self.rows(batch, features, cache)
        terms = cast(Terms, self.objective(rows, self.heads(), totals, step, self.logits_gib))
        return replace(terms, features=features)

    def features(self, batch: Batch) -> dict[Side, Tensor]:
        """V^S(x_v) ``[M, P, H_v]``, computed once: one view of it for each pathway that reads it."""
        features = self.student.encode_image(batch.pixel_values)
        sides: tuple[Side, ...] = ("student", "switch") if Need.SWITCH in self.objective.needs else ("student",)
        return {side: features.view_as(features) for side in sides}

    def rows(self, batch: Batch, features: dict[Side, Tensor], cache: RecordCache | None = None) -> Rows:
        """Runs the pathways and keeps their supervised rows."""
        positions, targets = supervised(batch.labels)
        hidden: dict[Side, Tensor] = {
            side: states.flatten(0, 1)[positions]
            for side, states in self.pathways(batch, features, cache is None).items()
        }
        if cache is not None and Need.TEACHER in self.objective.needs:
            hidden["teacher"] = cache.rows(batch, self.teacher_rows)
        has_image = torch.zeros(len(batch), dtype=torch.bool, device=positions.device)
        has_image[batch.image_row[batch.image_row >= 0]] = True
        return Rows(
            hidden=hidden,
            targets=targets,
            visual=has_image[batch.record_of[positions]],
            vocabulary=self.vocabulary,
        )

    def teacher_rows(self, batch: Batch) -> Tensor:
        """The teacher pathway's supervised rows ``[N, H]``."""
        return teacher_pathway(self.frozen_teacher, batch).flatten(0, 1)[supervised(batch.labels)[0]]

    def pathways(self, batch: Batch, features: dict[Side, Tensor], teacher: bool = True) -> dict[Side, Tensor]:
        """Final hidden states ``[B, T, H]`` of every pathway the objective needs; without the teacher's if so asked."""
        needs = self.objective.needs
        hidden: dict[Side, Tensor] = {"student": student_pathway(self.student, batch, features["student"])}
        if teacher and Need.TEACHER in needs:
            hidden["teacher"] = teacher_pathway(self.frozen_teacher, batch)
        if Need.SWITCH in needs:
            hidden["switch"] = switch_pathway(self.frozen_teacher, batch, features["switch"])
        return hidden

    def heads(self) -> Heads:
        """Each pathway's output head; the switch pathway ends in the teacher's."""
        if self.teacher is None:
            return {"student": self.student.head}
        teacher = self.teacher.vlm.head
        return {"student": self.student.head, "teacher": teacher, "switch": teacher}

    @property
    def frozen_teacher(self) -> VLM:
        """The teacher's VLM; only call where the objective needs one."""
        assert self.teacher is not None, "the consistency check lets no objective through that lacks its teacher"
        return self.teacher.vlm


def _drop_teacher(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}teacher.")]:
        del state[key]


def _expect_no_teacher(_: nn.Module, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [k for k in incompatible.missing_keys if "teacher" not in k.split(".")]
