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

import torch
from torch import Tensor

from lightning_switchkd.batch import Batch
from lightning_switchkd.vlm.seams import VLM


def student_pathway(student: VLM, batch: Batch, student_features: Tensor) -> Tensor:
    """L^S(P^S(V^S(x_v)), x_t) without the head.

    Args:
        student: the model that learns.
        batch: token ids ``[B, T]``, packed ``[1, T]``.
        student_features: V^S(x_v) ``[M, P, H_v]``, computed once for this pathway and the switch.

    Returns:
        Hidden states ``[B, T, H_S]``.
    """
    return student.decode(batch.input_ids, batch.attention_mask, student.project(student_features), batch.position_ids)


def teacher_pathway(teacher: VLM, batch: Batch) -> Tensor:
    """L^T(P^T(V^T(x_v)), x_t) without the head, ``[B, T, H_T]``; nothing is differentiated.

    ``no_grad``, never ``inference_mode``: the result meets autograd again in the losses.
    """
    pixel_values = batch.pixel_values if batch.pixel_values_teacher is None else batch.pixel_values_teacher
    with torch.no_grad():
        image_embeds = teacher.project(teacher.encode_image(pixel_values))
        return teacher.decode(batch.input_ids, batch.attention_mask, image_embeds, batch.position_ids)


def switch_pathway(teacher: VLM, batch: Batch, student_features: Tensor) -> Tensor:
    """L^T(P^T(V^S(x_v)), x_t) without the head, ``[B, T, H_T]``.

    Differentiated *through* the frozen teacher: its weights need no gradient, its activations keep their graph.
    """
    return teacher.decode(batch.input_ids, batch.attention_mask, teacher.project(student_features), batch.position_ids)
