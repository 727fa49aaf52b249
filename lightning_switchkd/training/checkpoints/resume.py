"""Adjustments of Lightning's loop counters, so that a resumed run neither skips nor repeats a step."""

from __future__ import annotations

from typing import Any

import lightning as L


def align_to_step_start(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Move a checkpoint's position back to the start of the optimizer step or validation that was in progress.

    A checkpoint that Lightning writes after an exception or by a timer may be inside an accumulation window. No file
    holds the gradients of the window's first micro-batches, so these are computed again. A validation is repeated as a
    whole. A checkpoint between two steps does not change.

    Args:
        checkpoint: A loaded Lightning checkpoint, before its loops are restored. Changed in place.
        accumulate: Number of micro-batches in an optimizer step.
    """
    loops = checkpoint["loops"]["fit_loop"]
    training, validation = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
    current, total = training["current"], training["total"]
    step_start = current["processed"] - current["processed"] % accumulate
    in_batch = current["processed"] < current["ready"]
    in_window = step_start < current["processed"] and not training["is_last_batch"]
    if in_batch or in_window:
        before_epoch = total["processed"] - current["processed"]
        training["current"] = dict.fromkeys(current, step_start)
        # Lightning restarts inside a step if more batches were started than processed
        training["total"] = {
            **dict.fromkeys(total, before_epoch + step_start),
            "started": before_epoch + step_start + 1,
        }
        training["is_last_batch"] = False
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # Lightning adds 1 when it restarts in a step
    if (current := validation["current"])["completed"] < current["ready"]:
        ready = validation["total"]["ready"]
        validation["current"] = dict.fromkeys(current, 0)
        validation["total"] = {"ready": ready, "started": ready} | dict.fromkeys(("processed", "completed"), ready - 1)


def restore_counters(trainer: L.Trainer, batch_idx: int) -> None:
    """Correct what a restart leaves in Lightning's counters. Call this at the start of every batch.

    The mark that :func:`align_to_step_start` sets ("inside a step") is for one restart. It must not reach checkpoints
    that are written later.

    After a restart from the last step of an epoch, Lightning 2.6 counts the next epoch only at its end. Checkpoints
    written in that epoch would resume in the epoch before.
    """
    batches = trainer.fit_loop.epoch_loop.batch_progress.total
    batches.started = batches.ready - 1  # type: ignore[attr-defined]  # Lightning counts this batch right after
    if batch_idx == 0:
        for epochs in (trainer.fit_loop.epoch_progress.total, trainer.fit_loop.epoch_progress.current):
            if epochs.ready == epochs.completed:
                epochs.ready = epochs.started = epochs.completed + 1  # type: ignore[attr-defined]
