"""What a user is told where something cannot work: a paragraph, without a traceback."""

from __future__ import annotations

import re
from types import TracebackType

import torch

PLACES = {
    "student_pathway": "the student pathway",
    "teacher_pathway": "the teacher pathway",
    "switch_pathway": "the switch pathway",
    "encode_image": "a vision encoder",
    "decode": "a language model",
    "sum_rows": "the output heads and losses",
    "backward": "the backward pass",
    "optimizer_step": "the optimizer",
    "generate": "the answers asked in validation",
    "save_checkpoint": "writing a checkpoint",
    "configure_model": "loading the models",
}
"""Functions that tell where a step was."""

HELP = {
    "sum_rows": "model.logits_gib (less memory for logits at a time)",
    "generate": "val_generation.batch_size, val_generation.num_samples=0, answer_panel.num_samples=0",
}
ALWAYS = (
    "data.batch_size with trainer.accumulate_grad_batches (the same steps in smaller pieces), data.max_length, "
    "activation_checkpointing=[vision,lm] of model.student and [lm] of model.teacher (less memory for time), "
    "trainer.precision=bf16-mixed, TRAINER=fsdp2 (docs/scaling.md)"
)


class UserError(ValueError):
    """Something the user gave cannot work. The message says what is wrong, where, and how to mend it."""


def out_of_memory(error: BaseException) -> str | None:
    """What to say where memory ran out: which part asked, for how much, and which settings help; None elsewhere.

    Args:
        error: as it arrived, with its traceback.
    """
    on_host = "can't allocate memory" in str(error)
    if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or on_host):
        return None
    names = [name for name in _functions(error.__traceback__) if name in PLACES]
    if len(names) > 1 and "optimizer_step" in names:  # the whole step is within it
        names.remove("optimizer_step")
    amount = re.search(r"allocate (\d+ bytes|[\d.]+ [KMG]?i?B)", str(error))
    asked = f" asked for {amount[1]} more than there is" if amount else " asked for more than there is"
    helps = [text for function, text in HELP.items() if function in names]
    where = ", in ".join(PLACES[name] for name in reversed(names)) or "the program"
    return f"Out of memory: {where}{asked}. What helps, mildest first: {'; '.join([*helps, ALWAYS])}."


def _functions(traceback: TracebackType | None) -> list[str]:
    """Names on the way to the error, outer ones first, each once."""
    found: dict[str, None] = {}
    while traceback is not None:
        found[traceback.tb_frame.f_code.co_name] = None
        traceback = traceback.tb_next
    return list(found)
