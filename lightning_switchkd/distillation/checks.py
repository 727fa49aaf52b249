"""What must agree between student, teacher and data before the first step; each mismatch is one clear error."""

from __future__ import annotations

from dataclasses import fields

import torch
from transformers import PreTrainedTokenizerBase

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.objectives.terms import Need

FEATURE_SPACE_MENDING = {
    "width": "The teacher's projector reads the student's features: give both vision towers of one width "
    "(model.student.vision), or choose an objective without the switch (METHOD=dbild).",
    "tokens": "Choose towers with the same image and patch size, or the same feature_strategy.",
    "layer": "Set model.student.feature_layer (or vision_feature_layer in the folder's config.json) to the teacher's.",
    "strategy": "Set model.student.feature_strategy (vision_feature_select_strategy in config.json) to the teacher's.",
}


PACKING_KERNELS = ("flash_attention", "flex_attention")
"""Beginnings of the names of attention kernels that cost nothing between packed records."""


def check_packing(student: VLMAdapter, teacher: VLMAdapter | None) -> None:
    """Packed records need attention kernels of variable length.

    Raises:
        UserError: a model's kernel is none; the message names the model and the setting.
    """
    for name, model in {"student": student, "teacher": teacher}.items():
        if model is not None and not model.attention.startswith(PACKING_KERNELS):
            raise UserError(
                f"data.packing puts the records of a micro-batch into one row, but the {name}'s attention "
                f"({model.attention}) computes every pair of tokens in that row and then masks those of different "
                "records: the row would cost about as many times the padded batch's attention as it holds records. "
                f"Set model.{name}.attn_implementation to a kernel of variable length (flash_attention_2, on a GPU "
                "and in 16-bit values; or flex_attention), or leave data.packing off: data.group_window already keeps "
                "padding to a few percent."
            )


def check_data(student: VLMAdapter, tokenizer: PreTrainedTokenizerBase, image_tokens: int) -> None:
    """The student must read the ids and images that the processor makes.

    Raises:
        UserError: image placeholders, their id, or the head do not fit.
    """
    tokens = student.feature_space.tokens
    if tokens != image_tokens:
        raise UserError(
            f"The processor (data.processor) writes {image_tokens} image tokens per image, but the student's vision "
            f"tower makes {tokens} image features. Use the processor that belongs to the student, or set its "
            "patch_size, vision_feature_select_strategy and num_additional_image_tokens (processor_config.json)."
        )
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    if student.image_token_id != image_token_id:
        raise UserError(
            f"<image> is id {image_token_id} in the processor's tokenizer (data.processor) and id "
            f"{student.image_token_id} in the student's config.json (image_token_index). Use its own processor."
        )
    if student.head_size < len(tokenizer):
        raise UserError(
            f"The tokenizer (data.processor) has {len(tokenizer)} ids, but the student's head has only "
            f"{student.head_size} columns. Use the student's own processor, or resize its embeddings."
        )


def check_pair(
    student: VLMAdapter,
    teacher: VLMAdapter | None,
    needs: Need,
    vocabulary: int,
) -> None:
    """METHOD section 6, as far as the objective needs it.

    Args:
        student: the model that learns.
        teacher: the model it learns from, or None.
        needs: what the objective reads.
        vocabulary: ids of the tokenizer (data.processor).

    Raises:
        UserError: names both sides, both values and the setting that would bridge them.
    """
    if Need.TEACHER not in needs:
        return
    if teacher is None:
        raise UserError(
            "The objective compares with a teacher, but model.teacher is null. Set model.teacher.checkpoint to the "
            "teacher's folder or hub id, or train without one (METHOD=sft)."
        )
    if teacher.head_size < vocabulary:
        raise UserError(
            f"The tokenizer (data.processor) has {vocabulary} ids, but the teacher's head has only "
            f"{teacher.head_size} columns. Teacher and student must share one vocabulary; choose a teacher of the "
            "student's language-model family (model.teacher)."
        )
    _check_features(student, teacher, Need.SWITCH in needs)
    if Need.SWITCH in needs and not any(p.requires_grad for p in student.part_parameters("vision")):
        raise UserError(
            "The visual-switch loss trains the student's vision encoder and nothing else, but the vision encoder is "
            "frozen (model.freeze contains 'vision'). Take 'vision' out of model.freeze, or choose an objective "
            "without the switch (METHOD=dbild, or --model.objective.init_args.lambda_vsd=0)."
        )


def _check_features(student: VLMAdapter, teacher: VLMAdapter, switch: bool) -> None:
    ours, theirs = student.feature_space, teacher.feature_space
    for field in fields(ours):
        if not switch and field.name != "tokens":
            continue  # the same ids go to both models, so the number of image tokens always has to agree
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if a != b:
            raise UserError(
                f"Student and teacher do not share a feature space: {field.name} of the image features is {a} in the "
                f"student (model.student) and {b} in the teacher (model.teacher). {FEATURE_SPACE_MENDING[field.name]}"
            )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase) -> None:
    """Logits are compared id by id: both tokenizers must give all tokens the same ids.

    Raises:
        UserError: they do not; the message names one.
    """
    ours, theirs = tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    if ours == theirs:
        return
    differing = sorted((t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t)), key=repr)
    token = differing[0]
    raise UserError(
        f"Student and teacher do not share a vocabulary: {len(differing)} tokens differ, first {token!r} with id "
        f"{ours.get(token)} in the student's tokenizer (data.processor) and {theirs.get(token)} in the teacher's "
        "(model.teacher). Logits can only be compared id by id: choose a teacher of the same tokenizer, or re-save "
        "one of the two with the tokenizer of the other if they differ in unused tokens only."
    )


def same_encoder(student: VLMAdapter, teacher: VLMAdapter) -> bool:
    """True where both vision encoders hold equal weights: then z^W = z^T and the switch has nothing to teach yet."""
    ours, theirs = student.part_parameters("vision"), teacher.part_parameters("vision")
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and torch.equal(a.detach().to(b.dtype), b) for a, b in zip(ours, theirs, strict=True)
    )
