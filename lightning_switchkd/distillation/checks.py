"""Checks that student, teacher and data fit together, before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields

import torch
from transformers import PreTrainedTokenizerBase

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.objectives.base import Objective
from lightning_switchkd.objectives.terms import Need

FEATURE_SPACE_FIXES = {
    "width": "The teacher's projector reads the student's features. Choose vision encoders of the same width "
    "(model.student.vision), or an objective without the switch (METHOD=dbild).",
    "tokens": "Choose vision encoders with the same image size and patch size, or set the same feature_strategy.",
    "layer": "Set model.student.feature_layer (or vision_feature_layer in the folder's config.json) to the teacher's.",
    "strategy": "Set model.student.feature_strategy (vision_feature_select_strategy in config.json) to the teacher's.",
}

PACKING_KERNELS = ("flash_attention", "flex_attention")
"""Name prefixes of attention kernels that skip pairs of tokens from different packed samples."""


def check_packing(student: VLMAdapter, teacher: VLMAdapter | None) -> None:
    """Check that every model's attention kernel supports packed samples efficiently.

    Raises:
        UserError: A kernel does not. The message names the model and the setting.
    """
    for name, model in {"student": student, "teacher": teacher}.items():
        if model is not None and not model.attention.startswith(PACKING_KERNELS):
            raise UserError(
                f"data.packing needs a variable-length attention kernel, but the {name} uses '{model.attention}'. This "
                "kernel computes all pairs of tokens in a packed row and masks those of different samples. With n "
                "samples in a row, the attention would cost about n times as much as in a padded batch. Set "
                f"model.{name}.attn_implementation to flash_attention_2 (needs a GPU and 16-bit values) or "
                "flex_attention, or set data.packing=false. data.group_window already limits padding to a few percent."
            )


def check_cache(objective: Objective, sharded_teacher: bool) -> None:
    """Check that a teacher cache holds all that the objective reads, and that each rank may skip the teacher.

    Raises:
        UserError: The cache cannot serve this run.
    """
    if objective.needs & (Need.IMAGE_EMBEDS | Need.FIRST_ATTENTION):
        raise UserError(
            f"model.teacher_cache stores the teacher's final hidden states only, but {type(objective).__name__} also "
            "reads its first attention or its image embeddings. Set model.teacher_cache to null."
        )
    if sharded_teacher:
        raise UserError(
            "model.teacher_cache does not work with FSDP2: processes skip the teacher where the cache has its hidden "
            "states, but a sharded teacher needs all processes. Set model.teacher_cache to null, or use TRAINER=ddp."
        )


def check_data(student: VLMAdapter, tokenizer: PreTrainedTokenizerBase, image_tokens: int) -> None:
    """Check that the student can read the processor's ids and images.

    Args:
        student: The model that learns.
        tokenizer: The processor's tokenizer.
        image_tokens: Image tokens that the processor writes for each image.

    Raises:
        UserError: The number of image tokens, their id or the size of the head does not match.
    """
    tokens = student.feature_space.tokens
    if tokens != image_tokens:
        raise UserError(
            f"The processor (data.processor) writes {image_tokens} image tokens per image, but the student's vision "
            f"encoder produces {tokens} image features. Use the student's own processor, or correct patch_size, "
            "vision_feature_select_strategy and num_additional_image_tokens in processor_config.json."
        )
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    if student.image_token_id != image_token_id:
        raise UserError(
            f"<image> is id {image_token_id} in the processor's tokenizer (data.processor), but id "
            f"{student.image_token_id} in the student's config.json (image_token_index). Use the student's own "
            "processor."
        )
    if student.head_size < len(tokenizer):
        raise UserError(
            f"The tokenizer (data.processor) has {len(tokenizer)} ids, but the student's head has only "
            f"{student.head_size} columns. Use the student's own processor, or resize the student's embeddings."
        )


def check_pair(
    student: VLMAdapter,
    teacher: VLMAdapter | None,
    needs: Need,
    vocabulary: int,
) -> None:
    """Check that student and teacher match, as far as the objective requires (docs/explanation/method.md, section 6).

    Args:
        student: The model that learns.
        teacher: The model it learns from, or None.
        needs: The inputs of the objective.
        vocabulary: Number of ids of the tokenizer (data.processor).

    Raises:
        UserError: They do not match. The message names both values and the setting to change.
    """
    if Need.TEACHER not in needs:
        return
    if teacher is None:
        raise UserError(
            "The objective needs a teacher, but model.teacher is null. Set model.teacher.checkpoint to the teacher's "
            "folder or hub id, or train without a teacher (METHOD=sft)."
        )
    if teacher.head_size < vocabulary:
        raise UserError(
            f"The tokenizer (data.processor) has {vocabulary} ids, but the teacher's head has only {teacher.head_size} "
            "columns. Teacher and student must share one vocabulary. Choose a teacher with the student's tokenizer "
            "(model.teacher)."
        )
    _check_features(student, teacher, Need.SWITCH in needs)
    if Need.SWITCH in needs and not any(p.requires_grad for p in student.part_parameters("vision")):
        raise UserError(
            "The visual-switch loss trains only the student's vision encoder, but model.freeze contains 'vision'. "
            "Remove 'vision' from model.freeze, or choose an objective without the switch (METHOD=dbild, or "
            "--model.objective.init_args.lambda_vsd=0)."
        )


def _check_features(student: VLMAdapter, teacher: VLMAdapter, switch: bool) -> None:
    for field in fields(student.feature_space):
        if not switch and field.name != "tokens":
            continue  # both models read the same ids, so the number of image tokens must always match
        ours, theirs = getattr(student.feature_space, field.name), getattr(teacher.feature_space, field.name)
        if ours != theirs:
            raise UserError(
                f"Student and teacher do not share a feature space: {field.name} of the image features is {ours} in "
                f"the student (model.student) and {theirs} in the teacher (model.teacher). "
                f"{FEATURE_SPACE_FIXES[field.name]}"
            )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that both tokenizers give every token the same id, because losses compare logits id by id.

    Raises:
        UserError: They differ. The message names one token.
    """
    ours, theirs = tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    if differing := _differing(ours.keys() | theirs.keys(), ours, theirs):
        token = differing[0]
        raise UserError(
            f"Student and teacher do not share a vocabulary: {len(differing)} tokens differ. The first is {token!r} "
            f"with id {ours.get(token)} in the student's tokenizer (data.processor) and {theirs.get(token)} in the "
            "teacher's (model.teacher). Choose a teacher with the same tokenizer. If only unused tokens differ, save "
            "one model again with the other's tokenizer."
        )


def check_student_vocabulary(tokenizer: PreTrainedTokenizerBase, lm_tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the processor gives every token of the student's pretrained language model the id it was trained with.

    Raises:
        UserError: They differ. The message names one token.
    """
    ours, theirs = tokenizer.get_vocab(), lm_tokenizer.get_vocab()
    if differing := _differing(theirs.keys(), ours, theirs):
        token = differing[0]
        raise UserError(
            f"The student's language model (model.student) was trained with another tokenizer than data.processor's: "
            f"{len(differing)} of its tokens differ. The first is {token!r} with id {theirs[token]} in the model and "
            f"{ours.get(token)} in the processor. Set data.processor to one with the student's tokenizer."
        )


def _differing(tokens: Iterable[str], ours: Mapping[str, int], theirs: Mapping[str, int]) -> list[str]:
    return sorted((token for token in tokens if ours.get(token) != theirs.get(token)), key=repr)


def same_encoder(student: VLMAdapter, teacher: VLMAdapter) -> bool:
    """Return whether both vision encoders have equal weights. If so, z^W = z^T and the switch's loss is 0 at first."""
    ours, theirs = student.part_parameters("vision"), teacher.part_parameters("vision")
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and torch.equal(a.detach().to(b.dtype), b) for a, b in zip(ours, theirs, strict=True)
    )
