"""Student, frozen teacher and objective as one module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lightning_switchkd.core.labels import supervised_positions
from lightning_switchkd.core.types import Batch, Pathway
from lightning_switchkd.distillation.pathways import PathwayOutput, PhaseTimer, run_pathways, teacher_pathway, untimed
from lightning_switchkd.distillation.teacher_cache import HiddenStateCache
from lightning_switchkd.losses.logits import Heads, SupervisedTokens
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.attention import watch_attention
from lightning_switchkd.models.frozen import FrozenTeacher
from lightning_switchkd.objectives.base import Objective, ObjectiveOutput
from lightning_switchkd.objectives.terms import Need, ObjectiveInputs

T = TypeVar("T")


@dataclass(frozen=True)
class KeptPositions:
    """The positions whose final hidden states the objective reads.

    Attributes:
        positions: ``[K]`` into the flattened ``[B * T]`` axis, ascending.
        answer: ``[N]`` selects the positions whose next token is supervised. A full slice where all are.
        targets: ``[N]`` the supervised tokens.
        image: ``[M · P]`` selects the image tokens.
    """

    positions: Tensor
    answer: Tensor | slice
    targets: Tensor
    image: Tensor


class Distiller(nn.Module):
    """A student, its frozen teacher and an objective. The teacher is in no state dict, and loading expects none.

    Args:
        student: The model that learns.
        teacher: The model it learns from. None for objectives that need no teacher.
        objective: Cross-entropy plus terms.
        vocabulary: Number of real token ids, common to both models. Terms compare logits on these only.
        logits_gib: Memory limit for the logits of one chunk, in GiB. None uses the engine's default.
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
        self,
        batch: Batch,
        totals: Tensor,
        step: int,
        cache: HiddenStateCache | None = None,
        timer: PhaseTimer = untimed,
    ) -> ObjectiveOutput:
        """Run the pathways that the objective needs, then evaluate the objective.

        Args:
            batch: One micro-batch.
            totals: ``[4]`` units of the whole optimizer step over all ranks, in the order of ``Counts``.
            step: Optimizer steps taken so far.
            cache: The teacher's hidden states of samples that were computed before.
            timer: Measures each phase.
        """
        needs = self.objective.needs
        pathways: set[Pathway] = set()
        if Need.TEACHER in needs and cache is None:
            pathways.add("teacher")
        if Need.SWITCH in needs:
            pathways.add("switch")
        teacher = None if self.teacher is None else self.teacher.vlm
        outputs, features = run_pathways(self.student, teacher, batch, pathways, timer)

        kept = self.kept_positions(batch)
        hidden = {pathway: output.hidden.flatten(0, 1)[kept.positions] for pathway, output in outputs.items()}  # [K, H]
        if Need.TEACHER in needs and cache is not None:
            hidden["teacher"] = self.cached_teacher(batch, kept.positions, cache)

        with timer("heads and losses"):
            inputs = self._objective_inputs(batch, kept, hidden, outputs)
            result = cast(ObjectiveOutput, self.objective(inputs, totals, step, self.logits_gib))
        return replace(result, features=features)

    def run(self, function: Callable[[], T]) -> T:
        """Call a function that runs the models outside :meth:`forward`, for example decoding.

        FSDP2 registers this method: sharded weights are gathered while it runs.
        """
        return function()

    def kept_positions(self, batch: Batch) -> KeptPositions:
        """Find the positions whose final hidden states the objective reads."""
        positions, targets = supervised_positions(batch.labels)  # [N], [N]
        if Need.IMAGE_TOKENS not in self.objective.needs:
            return KeptPositions(positions, slice(None), targets, positions[:0])
        is_image = batch.input_ids.flatten() == self.student.image_token_id  # [B * T]
        is_answer = torch.zeros_like(is_image)
        is_answer[positions] = True
        union = (is_answer | is_image).nonzero()[:, 0]  # [K]
        answer, image = (mask[union].nonzero()[:, 0] for mask in (is_answer, is_image))
        return KeptPositions(union, answer, targets, image)

    def cached_teacher(self, batch: Batch, positions: Tensor, cache: HiddenStateCache) -> Tensor:
        """Read the teacher's hidden states ``[K, H]`` from the cache. Missing samples are computed and stored.

        Args:
            batch: One micro-batch.
            positions: ``[K]`` of :meth:`kept_positions`.
            cache: Of the split that the batch comes from.
        """
        cached = cache.read(batch, positions)  # per sample [k, H], or None
        missing = [place for place, states in enumerate(cached) if states is None]
        if missing:
            part = batch if len(missing) == len(cached) else batch.only(missing)
            hidden = teacher_pathway(self.frozen_teacher, part).hidden.flatten(0, 1)
            computed = cache.write(part, self.kept_positions(part).positions, hidden)
            for place, states in zip(missing, computed, strict=True):
                cached[place] = states
        device = batch.input_ids.device
        return torch.cat([states.to(device, non_blocking=True) for states in cached if states is not None])

    def _objective_inputs(
        self,
        batch: Batch,
        kept: KeptPositions,
        hidden: dict[Pathway, Tensor],
        outputs: dict[Pathway, PathwayOutput],
    ) -> ObjectiveInputs:
        needs = self.objective.needs
        has_image = torch.zeros(len(batch), dtype=torch.bool, device=kept.positions.device)  # [B]
        has_image[batch.image_sample[batch.image_sample >= 0]] = True

        def tokens(chosen: Tensor | slice, targets: Tensor) -> SupervisedTokens:
            visual = has_image[batch.sample_of[kept.positions[chosen]]]
            states = {pathway: of_pathway[chosen] for pathway, of_pathway in hidden.items()}
            return SupervisedTokens(states, targets, visual, self.vocabulary)

        image_tokens, image_embeds, attention = None, {}, {}
        if Need.IMAGE_TOKENS in needs:
            image_tokens = tokens(kept.image, batch.input_ids.flatten()[kept.positions[kept.image]])
        for pathway, output in outputs.items():
            if Need.IMAGE_EMBEDS in needs:
                image_embeds[pathway] = torch.stack(output.image_embeds)[batch.image_sample >= 0]
            if output.attention:
                attention[pathway] = output.attention[0].text_to_image(batch, self.student.image_token_id)
        return ObjectiveInputs(
            answer_tokens=tokens(kept.answer, kept.targets),
            heads=self.heads(),
            image_tokens=image_tokens,
            image_embeds=image_embeds,
            attention=attention,
            tokens_per_image=self.student.feature_space.tokens,
        )

    def heads(self) -> Heads:
        """Return each pathway's output head. The switch pathway ends in the teacher's."""
        if self.teacher is None:
            return {"student": self.student.head}
        teacher = self.teacher.vlm.head
        return {"student": self.student.head, "teacher": teacher, "switch": teacher}

    @property
    def frozen_teacher(self) -> VLMAdapter:
        """The teacher. Only for objectives that need one."""
        assert self.teacher is not None, "distillation.checks refuses an objective whose teacher is missing"
        return self.teacher.vlm


def _drop_teacher(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}teacher.")]:
        del state[key]


def _expect_no_teacher(_: nn.Module, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [k for k in incompatible.missing_keys if "teacher" not in k.split(".")]
