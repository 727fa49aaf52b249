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

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_switchkd.core.types import Batch
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.attention import LayerAttention, noted_attention


@dataclass(frozen=True)
class PathwayOutput:
    """What a pathway makes of a batch.

    Attributes:
        hidden: final hidden states ``[B, T, H]``, packed ``[1, T, H]``; the head is not applied.
        image_embeds: the projector's output ``[M, P, H]``, a blank image's included.
        attention: the first decoder layer's, where the language model is watched.
    """

    hidden: Tensor
    image_embeds: Tensor
    attention: LayerAttention | None


def student_pathway(student: VLMAdapter, batch: Batch, student_features: Tensor) -> PathwayOutput:
    """L^S(P^S(V^S(x_v)), x_t).

    Args:
        student: the model that learns.
        batch: token ids ``[B, T]``, packed ``[1, T]``.
        student_features: V^S(x_v) ``[M, P, H_v]``, computed once for this pathway and the switch.
    """
    return _from_features(student, batch, student_features)


def teacher_pathway(teacher: VLMAdapter, batch: Batch) -> PathwayOutput:
    """L^T(P^T(V^T(x_v)), x_t); nothing is differentiated.

    ``no_grad``, never ``inference_mode``: the result meets autograd again in the losses.
    """
    pixel_values = batch.pixel_values if batch.pixel_values_teacher is None else batch.pixel_values_teacher
    with torch.no_grad():
        return _from_features(teacher, batch, teacher.encode_image(pixel_values))


def switch_pathway(teacher: VLMAdapter, batch: Batch, student_features: Tensor) -> PathwayOutput:
    """L^T(P^T(V^S(x_v)), x_t).

    Differentiated *through* the frozen teacher: its weights need no gradient, its activations keep their graph.
    """
    return _from_features(teacher, batch, student_features)


def _from_features(vlm: VLMAdapter, batch: Batch, features: Tensor) -> PathwayOutput:
    image_embeds = vlm.project(features)
    with noted_attention() as seen:
        hidden = vlm.decode(batch.input_ids, batch.attention_mask, image_embeds, batch.position_ids)
    return PathwayOutput(hidden, image_embeds, seen[0] if seen else None)
