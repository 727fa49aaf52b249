"""The three pathways of Switch-KD, from images and token ids to final hidden states.

=========  ========================  ==================  =======================================
pathway    vision encoder            projector and LM    gradient reaches
=========  ========================  ==================  =======================================
student    student                   student             all of the student
teacher    teacher                   teacher             nothing
switch     **student**               teacher             the student's vision encoder alone
=========  ========================  ==================  =======================================
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_switchkd.core.types import Batch, Features, Pathway, Vision
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.attention import LayerAttention, recorded_attention

PhaseTimer = Callable[[str], AbstractContextManager[None]]
"""Measures the phase of a step that runs inside its context."""


def untimed(phase: str) -> AbstractContextManager[None]:
    """Measure nothing."""
    return nullcontext()


@dataclass(frozen=True)
class PathwayOutput:
    """The result of one pathway for a batch.

    Attributes:
        hidden: Final hidden states ``[B, T, H]``, packed ``[1, T, H]``, before the output head.
        image_embeds: The projector's output ``[P, H]`` for each image, including a blank one.
        attention: Queries and keys of the first decoder layer, or of every layer if asked. Empty unless the language
            model is watched (``models.attention``).
    """

    hidden: Tensor
    image_embeds: list[Tensor]
    attention: list[LayerAttention]


def student_pathway(
    student: VLMAdapter, batch: Batch, student_features: Features, every_layer: bool = False
) -> PathwayOutput:
    """Compute L^S(P^S(V^S(x_v)), x_t).

    Args:
        student: The model that learns.
        batch: Token ids ``[B, T]``, packed ``[1, T]``.
        student_features: V^S(x_v).
        every_layer: Note the attention of every decoder layer, not only the first.
    """
    return _from_features(student, batch, student_features, batch.vision, every_layer)


def teacher_pathway(teacher: VLMAdapter, batch: Batch, every_layer: bool = False) -> PathwayOutput:
    """Compute L^T(P^T(V^T(x_v)), x_t) without gradients.

    ``no_grad``, never ``inference_mode``: the losses feed the result to autograd again.
    """
    vision = batch.vision_teacher
    with torch.no_grad():
        return _from_features(teacher, batch, teacher.encode(vision), vision, every_layer)


def switch_pathway(
    teacher: VLMAdapter, batch: Batch, student_features: Features, every_layer: bool = False
) -> PathwayOutput:
    """Compute L^T(P^T(V^S(x_v)), x_t): the student's vision features through the teacher's projector and LM.

    The gradient passes *through* the frozen teacher. Its weights need none, its activations keep their graph.
    """
    return _from_features(teacher, batch, student_features, batch.vision, every_layer)


def run_pathways(
    student: VLMAdapter,
    teacher: VLMAdapter | None,
    batch: Batch,
    pathways: Collection[Pathway],
    timer: PhaseTimer = untimed,
    every_layer: bool = False,
) -> tuple[dict[Pathway, PathwayOutput], dict[Pathway, Features]]:
    """Run the student's pathway and others over one micro-batch. The student's images are encoded once.

    Args:
        student: The model that learns.
        teacher: The frozen teacher; None where only the student's pathway runs.
        batch: Token ids ``[B, T]``, packed ``[1, T]``, and pixels ``[M, 3, H, W]``.
        pathways: Those that run beside the student's.
        timer: Measures each phase.
        every_layer: Note the attention of every decoder layer, not only the first.

    Returns:
        The output of each pathway. And V^S(x_v) as each pathway reads it: the gradient at such views is what its
        pathway sends into the vision encoder.
    """
    with timer("vision encoder of the student"):
        encoded = student.encode(batch.vision)
    readers: tuple[Pathway, ...] = ("student", "switch") if "switch" in pathways else ("student",)
    features = {pathway: [tensor.view_as(tensor) for tensor in encoded] for pathway in readers}
    outputs: dict[Pathway, PathwayOutput] = {}
    with timer("student pathway"):
        outputs["student"] = student_pathway(student, batch, features["student"], every_layer)
    if "teacher" in pathways:
        assert teacher is not None
        with timer("teacher pathway"):
            outputs["teacher"] = teacher_pathway(teacher, batch, every_layer)
    if "switch" in pathways:
        assert teacher is not None
        with timer("switch pathway"):
            outputs["switch"] = switch_pathway(teacher, batch, features["switch"], every_layer)
    return outputs, features


def _from_features(
    vlm: VLMAdapter, batch: Batch, features: Features, vision: Vision, every_layer: bool
) -> PathwayOutput:
    image_embeds = vlm.project(features, vision)
    with recorded_attention(every_layer) as layers:
        hidden = vlm.decode(batch.input_ids, batch.attention_mask, image_embeds, batch.position_ids)  # [B, T, H]
    return PathwayOutput(hidden, image_embeds, layers)
