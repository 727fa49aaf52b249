"""One line on a run: what it trains, on what, and how long."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L

from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.models.spec import VLMSpec


def describe_run(
    trainer: L.Trainer, distiller: Distiller, student: VLMSpec, teacher: VLMSpec | None, rates: Sequence[float]
) -> str:
    """Describe a run that is about to start.

    Args:
        trainer: Trainer with its data module.
        distiller: The models with their objective.
        student: The model that learns.
        teacher: The model to learn from, if the objective reads it.
        rates: The learning rates, ascending.
    """
    data, steps = trainer.datamodule, trainer.estimated_stepping_batches  # type: ignore[attr-defined]
    per_step = data.hparams["batch_size"] * trainer.world_size * trainer.accumulate_grad_batches
    trainable = sum(p.numel() for p in distiller.parameters() if p.requires_grad)
    line = (
        f"Training with {type(distiller.objective).__name__} (loss terms: {', '.join(distiller.objective.terms)}), "
        f"teacher {'none' if teacher is None else teacher.name}, student {student.name} ({trainable:,} trainable "
        f"parameters). Data: {len(data.dataset('train').samples):,} samples, {per_step} per step, "
        f"{'with' if data.paths('val') else 'no'} validation data. "
        f"Schedule: {steps:,} steps, learning rate {' to '.join(f'{rate:g}' for rate in rates)}."
    )
    if trainer.max_steps > steps:
        line += f" trainer.max_epochs={trainer.max_epochs} ends it before trainer.max_steps={trainer.max_steps}."
    batches, first = int(steps * trainer.accumulate_grad_batches), first_validation(trainer)
    if data.paths("val") and first is not None and first > batches:
        line += (
            f" It ends before the first validation, which is due after {first:,} batches. To validate at its end, set "
            f"trainer.val_check_interval={batches} and trainer.check_val_every_n_epoch=null."
        )
    return line


def first_validation(trainer: L.Trainer) -> int | None:
    """Return the number of micro-batches before the first validation. None without validation, or if it is timed."""
    trainer.fit_loop.setup_data()  # sets val_check_batch
    interval, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if not trainer.enable_validation or interval is None:
        return None
    return int(interval if epochs is None else (epochs - 1) * trainer.num_training_batches + interval)
