"""Metadata of a checkpoint: enough to export its student alone, and to refuse a resume with other models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.renamed import CALLBACKS
from lightning_switchkd.models.lora import merged

METADATA_KEY = "lightning_switchkd"
"""Key of the metadata in a Lightning checkpoint."""

STUDENT_PREFIX = "_distiller.student.model."
"""Prefix of the student's own Hugging Face weights in a checkpoint's state dict."""


def student_weights(state: Mapping[str, Tensor], lora_scale: float | None) -> dict[str, Tensor]:
    """Return the student's Hugging Face weights from the state dict of a checkpoint or run, with merged adapters."""
    weights = {name.removeprefix(STUDENT_PREFIX): w for name, w in state.items() if name.startswith(STUDENT_PREFIX)}
    return weights if lora_scale is None else merged(weights, lora_scale)


def metadata_of(checkpoint: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the metadata of a loaded checkpoint.

    Args:
        checkpoint: The loaded checkpoint.
        name: Its name in messages.

    Raises:
        UserError: Another program wrote the checkpoint.
    """
    if not isinstance(checkpoint.get(METADATA_KEY), dict):
        raise UserError(
            f"{name} is not a checkpoint of lightning_switchkd: the key '{METADATA_KEY}' is missing. Give a .ckpt that "
            "`fit` wrote (runs/<name>/checkpoints/last.ckpt)."
        )
    return dict(checkpoint[METADATA_KEY])


def upgrade_checkpoint(checkpoint: dict[str, Any]) -> None:
    """Rename the keys of a checkpoint of version 0.1.0 in place. A newer checkpoint does not change.

    Lightning stores the state of a callback under its class name. All other keys are still the same.
    """
    if "callbacks" in checkpoint:
        checkpoint["callbacks"] = {CALLBACKS.get(key, key): state for key, state in checkpoint["callbacks"].items()}


def check_resumable(
    checkpoint: Mapping[str, Any], state: Mapping[str, Tensor], teacher_fingerprint: str | None
) -> None:
    """Refuse to resume with other models than those of the checkpoint.

    Args:
        checkpoint: The loaded checkpoint.
        state: The current module's state dict. Names and shapes are compared.
        teacher_fingerprint: Fingerprint of the current teacher, or None without a teacher.

    Raises:
        UserError: The student has other weights, or the teacher is another model.
    """
    metadata = metadata_of(checkpoint, "The checkpoint to resume from (--ckpt_path)")
    saved = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
    current = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if saved != current:
        name = min(n for n in saved.keys() | current.keys() if saved.get(n) != current.get(n))
        raise UserError(
            f"The checkpoint (--ckpt_path) holds another student than model.student: {name} is "
            f"{saved.get(name, 'absent')} in the checkpoint and {current.get(name, 'absent')} in this run. Resume with "
            "the config.yaml of its run folder, or start a new run without --ckpt_path."
        )
    if metadata["teacher_fingerprint"] != teacher_fingerprint:
        raise UserError(
            f"The checkpoint (--ckpt_path) was trained with another teacher: {metadata['teacher']} (weights "
            f"{metadata['teacher_fingerprint']}), but model.teacher has weights {teacher_fingerprint}. Resume with "
            "that teacher and objective. To continue with another teacher, export the student and start a new run from "
            "its folder."
        )
