"""What a checkpoint says of itself, so that it can be exported alone and is not resumed with the wrong models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.models.lora import merged

METADATA_KEY = "lightning_switchkd"
"""Key of the record in a Lightning checkpoint."""

STUDENT_PREFIX = "_distiller.student.model."
"""Where the student's own Hugging Face weights lie in a checkpoint's state dict."""


def student_weights(state: Mapping[str, Tensor], lora_scale: float | None) -> dict[str, Tensor]:
    """The student's own Hugging Face weights in the state dict of a checkpoint or run, adapters merged."""
    own = {name.removeprefix(STUDENT_PREFIX): w for name, w in state.items() if name.startswith(STUDENT_PREFIX)}
    return own if lora_scale is None else merged(own, lora_scale)


def metadata_of(checkpoint: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The record of a loaded checkpoint.

    Raises:
        UserError: It was not written by this package.
    """
    if not isinstance(checkpoint.get(METADATA_KEY), dict):
        raise UserError(
            f"{where} is no checkpoint of lightning_switchkd: it has no '{METADATA_KEY}' record. Give a .ckpt that "
            "`fit` wrote (runs/<name>/checkpoints/last.ckpt)."
        )
    return dict(checkpoint[METADATA_KEY])


def check_resumable(
    checkpoint: Mapping[str, Any], state: Mapping[str, Tensor], teacher_fingerprint: str | None
) -> None:
    """Refuses to resume with other models than the checkpoint was made with.

    Args:
        checkpoint: the loaded checkpoint.
        state: the present module's state dict, to compare names and shapes with.
        teacher_fingerprint: of the present teacher, or None without one.

    Raises:
        UserError: The student has other weights, or the teacher is another one.
    """
    metadata = metadata_of(checkpoint, "The checkpoint to resume from (--ckpt_path)")
    theirs = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
    ours = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if theirs != ours:
        name = min(n for n in theirs.keys() | ours.keys() if theirs.get(n) != ours.get(n))
        raise UserError(
            f"The checkpoint (--ckpt_path) holds another student than model.student: {name} is "
            f"{theirs.get(name, 'absent')} in the checkpoint and {ours.get(name, 'absent')} here. Resume with the "
            "configuration of its run (config.yaml beside its checkpoints folder), or start anew without --ckpt_path."
        )
    if metadata["teacher_fingerprint"] != teacher_fingerprint:
        raise UserError(
            f"The checkpoint (--ckpt_path) was trained with another teacher ({metadata['teacher']}, weights "
            f"{metadata['teacher_fingerprint']}) than model.teacher (weights {teacher_fingerprint}). Resume with that "
            "teacher and objective; to go on with another one, export the student and start a new run from its folder."
        )
