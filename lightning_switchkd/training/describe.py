"""One line on a run: what it trains, on what, and how long."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L

from lightning_switchkd.models.spec import VLMSpec
from lightning_switchkd.objectives.base import Objective


def describe_run(
    trainer: L.Trainer, objective: Objective, student: VLMSpec, teacher: VLMSpec | None, rates: Sequence[float]
) -> str:
    """Describe a run that is about to start.

    Args:
        trainer: Trainer with its data module.
        objective: The loss.
        student: The model that learns.
        teacher: The model to learn from, if the objective reads it.
        rates: The learning rates, ascending.
    """
    data, steps = trainer.datamodule, trainer.estimated_stepping_batches  # type: ignore[attr-defined]
    per_step = data.hparams["batch_size"] * trainer.world_size * trainer.accumulate_grad_batches
    line = (
        f"Training with {type(objective).__name__} (loss terms: {', '.join(objective.terms)}), "
        f"teacher {'none' if teacher is None else teacher.name}, student {student.name}. "
        f"Data: {len(data.dataset('train')):,} samples, {per_step} per step, "
        f"{'with' if data.paths('val') else 'no'} validation set. "
        f"Schedule: {steps:,} steps, learning rate {' to '.join(f'{rate:g}' for rate in rates)}."
    )
    if trainer.max_steps > steps:
        line += f" trainer.max_epochs={trainer.max_epochs} ends it before trainer.max_steps={trainer.max_steps}."
    return line
