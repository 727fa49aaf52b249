"""Ends of a command that are printed as one paragraph, without a traceback."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import TracebackType

PHASES = {
    "student_pathway": "the student pathway",
    "teacher_pathway": "the teacher pathway",
    "switch_pathway": "the switch pathway",
    "encode": "a vision encoder",
    "decode": "a language model",
    "sum_losses": "the output heads and losses",
    "backward": "the backward pass",
    "optimizer_step": "the optimizer",
    "generate": "generating answers during validation",
    "save_checkpoint": "saving a checkpoint",
    "configure_model": "loading the models",
}
"""Phase of a step by the name of the function that runs it. Out-of-memory errors are located by these names."""

FIXES = {
    "sum_losses": "lower model.logits_gib (fewer logits in memory at a time)",
    "generate": "lower val_generation.batch_size, or set val_generation.num_samples=0 and answer_panel.num_samples=0",
}
"""Fixes that apply to one phase."""

GENERAL_FIXES = (
    "lower data.batch_size and raise trainer.accumulate_grad_batches (the same steps in smaller pieces), lower "
    "data.max_length, set activation_checkpointing=[vision,lm] of model.student and [lm] of model.teacher (less "
    "memory, more time), set trainer.precision=bf16-mixed, use TRAINER=fsdp2 (docs/how-to/train-on-many-gpus.md)"
)


class UserError(ValueError):
    """A mistake in the user's input. The message states the problem, the value and the fix."""


class Interrupted(SystemExit):
    """End a run after a signal and its checkpoint.

    Args:
        signum: The signal. The exit status is the shell's for this signal.
        message: Printed before the exit.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(128 + signum)
        self.message = message


def check_limits(values: Mapping[str, float | None], limits: Mapping[str, tuple[float, float]]) -> None:
    """Check numbers of the user.

    Args:
        values: Numbers by the name of their setting or flag. None is not set.
        limits: Lowest and highest value, both allowed.

    Raises:
        UserError: A number is outside its limits.

    >>> check_limits({"data.batch_size": 0}, {"data.batch_size": (1, math.inf)})
    Traceback (most recent call last):
    lightning_switchkd.core.errors.UserError: data.batch_size must be at least 1, got 0.
    """
    for name, (low, high) in limits.items():
        if (value := values[name]) is not None and not low <= value <= high:
            expected = f"at least {low}" if high == math.inf else f"between {low} and {high}"
            raise UserError(f"{name} must be {expected}, got {value}.")


def out_of_memory(error: BaseException) -> str | None:
    """Explain an out-of-memory error: the phase, the amount requested and the settings that help.

    Args:
        error: The caught error, with its traceback.

    Returns:
        The message. None if memory is not the problem.
    """
    is_host_error = "can't allocate memory" in str(error)
    if not (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or is_host_error):
        return None
    functions = [name for name in _functions(error.__traceback__) if name in PHASES]
    if len(functions) > 1 and "optimizer_step" in functions:  # Lightning runs the whole step inside optimizer_step
        functions.remove("optimizer_step")
    amount = re.search(r"allocate (\d+ bytes|[\d.]+ [KMG]?i?B)", str(error))
    requested = f"{amount[1]} more than available" if amount else "more than available"
    phase = ", in ".join(PHASES[name] for name in reversed(functions)) or "the program"
    fixes = [fix for function, fix in FIXES.items() if function in functions]
    return f"Out of memory: {phase} requested {requested}. Try in this order: {'; '.join([*fixes, GENERAL_FIXES])}."


def _functions(traceback: TracebackType | None) -> list[str]:
    """Return the names of the functions on the stack, outermost first, each once."""
    names: dict[str, None] = {}
    while traceback is not None:
        names[traceback.tb_frame.f_code.co_name] = None
        traceback = traceback.tb_next
    return list(names)
