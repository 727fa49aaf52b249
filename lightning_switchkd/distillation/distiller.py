"""Student, frozen teacher and objective as one module: a forward pass runs the pathways, then the objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lightning_switchkd.core.labels import supervised_positions
from lightning_switchkd.core.types import Batch, Pathway
from lightning_switchkd.distillation.pathways import PathwayOutput, student_pathway, switch_pathway, teacher_pathway
from lightning_switchkd.distillation.teacher_cache import HiddenStateCache
from lightning_switchkd.losses.logits import Heads, SupervisedTokens
from lightning_switchkd.models.adapter import FrozenTeacher, VLMAdapter
from lightning_switchkd.models.attention import watch_attention
from lightning_switchkd.objectives.base import Objective, ObjectiveOutput
from lightning_switchkd.objectives.terms import Need, ObjectiveInputs

T = TypeVar("T")


@dataclass(frozen=True)
class KeptPositions:
    """Which final hidden states a step reads.

    Attributes:
        positions: ``[K]`` into the flattened ``[B * T]`` axis, ascending.
        answer: ``[N]`` those of them whose next token is supervised; all of them where only such are read.
        targets: ``[N]`` that token.
        image: ``[M · P]`` those of them that are image tokens.
    """

    positions: Tensor
    answer: Tensor | slice
    targets: Tensor
    image: Tensor


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
        student: VLMAdapter,
        teacher: VLMAdapter | None,
        objective: Objective,
        vocabulary: int,
        logits_gib: float | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = None if teacher is None else FrozenTeacher(teacher)
        self.objective = objective
        objective.build(student, teacher)
        self.vocabulary = vocabulary
        self.logits_gib = logits_gib
        if Need.FIRST_ATTENTION in objective.needs:
            for name, vlm in {"student": student, "teacher": teacher}.items():
                if vlm is not None:
                    watch_attention(vlm.language_model, name)
        self.register_state_dict_post_hook(_drop_teacher)
        self.register_load_state_dict_post_hook(_expect_no_teacher)

    def forward(
        self, batch: Batch, totals: Tensor, step: int, cache: HiddenStateCache | None = None
    ) -> ObjectiveOutput:
        """Runs the pathways that the objective needs and evaluates it.

        Args:
            batch: one micro-batch.
            totals: ``[4]`` units of the whole optimizer step over all ranks, in the order of ``Counts``.
            step: optimizer steps taken so far.
            cache: the teacher's rows of the records it holds, in place of its pathway.
        """
        features = self.features(batch)
        views = self.views(batch, features, cache)
        terms = cast(ObjectiveOutput, self.objective(views, totals, step, self.logits_gib))
        return replace(terms, features=features)

    def run(self, function: Callable[[], T]) -> T:
        """Calls a function that runs the models beside :meth:`forward`, as decoding does; sharded weights are there."""
        return function()

    def features(self, batch: Batch) -> dict[Pathway, Tensor]:
        """V^S(x_v) ``[M, P, H_v]``, computed once: one view of it for each pathway that reads it."""
        features = self.student.encode_image(batch.pixel_values)
        pathways: tuple[Pathway, ...] = ("student", "switch") if Need.SWITCH in self.objective.needs else ("student",)
        return {pathway: features.view_as(features) for pathway in pathways}

    def views(
        self, batch: Batch, features: dict[Pathway, Tensor], cache: HiddenStateCache | None = None
    ) -> ObjectiveInputs:
        """Runs the pathways, and keeps what the objective needs of them."""
        return self.kept_views(batch, self.run_pathways(batch, features, cache is None), cache)

    def kept_views(
        self, batch: Batch, ran: Mapping[Pathway, PathwayOutput], cache: HiddenStateCache | None = None
    ) -> ObjectiveInputs:
        """What the objective needs of the pathways that ran."""
        kept, needs = self.kept(batch), self.objective.needs
        hidden = {pathway: output.hidden.flatten(0, 1)[kept.positions] for pathway, output in ran.items()}
        if cache is not None and Need.TEACHER in needs:
            hidden["teacher"] = cache.rows(batch, kept.positions, self.teacher_rows)
        has_image = torch.zeros(len(batch), dtype=torch.bool, device=kept.positions.device)
        has_image[batch.image_sample[batch.image_sample >= 0]] = True

        def rows(chosen: Tensor | slice, targets: Tensor) -> SupervisedTokens:
            visual = has_image[batch.sample_of[kept.positions[chosen]]]
            return SupervisedTokens(
                {pathway: states[chosen] for pathway, states in hidden.items()}, targets, visual, self.vocabulary
            )

        at_images = None
        if Need.IMAGE_TOKENS in needs:
            at_images = rows(kept.image, batch.input_ids.flatten()[kept.positions[kept.image]])
        embeds, attention = {}, {}
        for pathway, output in ran.items():
            if Need.IMAGE_EMBEDS in needs:
                embeds[pathway] = output.image_embeds[batch.image_sample >= 0]
            if output.attention is not None:
                attention[pathway] = output.attention.text_to_image(batch, self.student.image_token_id)
        at_answers = rows(kept.answer, kept.targets)
        return ObjectiveInputs(
            at_answers, self.heads(), at_images, embeds, attention, self.student.feature_space.tokens
        )

    def kept(self, batch: Batch) -> KeptPositions:
        """The positions whose final hidden states the objective reads."""
        positions, targets = supervised_positions(batch.labels)
        if Need.IMAGE_TOKENS not in self.objective.needs:
            return KeptPositions(positions, slice(None), targets, positions[:0])
        is_image = batch.input_ids.flatten() == self.student.image_token_id
        answers = torch.zeros_like(is_image)
        answers[positions] = True
        union = (answers | is_image).nonzero()[:, 0]
        answer, image = (mask[union].nonzero()[:, 0] for mask in (answers, is_image))
        return KeptPositions(union, answer, targets, image)

    def teacher_rows(self, batch: Batch) -> Tensor:
        """The teacher pathway at the kept positions ``[N, H]``."""
        return teacher_pathway(self.frozen_teacher, batch).hidden.flatten(0, 1)[self.kept(batch).positions]

    def run_pathways(
        self, batch: Batch, features: dict[Pathway, Tensor], teacher: bool = True
    ) -> dict[Pathway, PathwayOutput]:
        """Every pathway the objective needs; without the teacher's if so asked."""
        needs = self.objective.needs
        ran: dict[Pathway, PathwayOutput] = {"student": student_pathway(self.student, batch, features["student"])}
        if teacher and Need.TEACHER in needs:
            ran["teacher"] = teacher_pathway(self.frozen_teacher, batch)
        if Need.SWITCH in needs:
            ran["switch"] = switch_pathway(self.frozen_teacher, batch, features["switch"])
        return ran

    def heads(self) -> Heads:
        """Each pathway's output head; the switch pathway ends in the teacher's."""
        if self.teacher is None:
            return {"student": self.student.head}
        teacher = self.teacher.vlm.head
        return {"student": self.student.head, "teacher": teacher, "switch": teacher}

    @property
    def frozen_teacher(self) -> VLMAdapter:
        """The teacher's VLM; only call where the objective needs one."""
        assert self.teacher is not None, "the consistency check lets no objective through that lacks its teacher"
        return self.teacher.vlm


def _drop_teacher(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}teacher.")]:
        del state[key]


def _expect_no_teacher(_: nn.Module, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [k for k in incompatible.missing_keys if "teacher" not in k.split(".")]
