"""Where a checkpoint continues: what Lightning wrote of its place, put so that nothing is lost or done twice."""

from __future__ import annotations

from typing import Any

import lightning as L


def align_to_step_start(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Let a run continue from the beginning of the optimizer step or validation that was under way.

    A checkpoint that an exception or a clock makes Lightning write may lie within an accumulation window. The gradients
    of the window's first micro-batches are in no file, so these are done again; and a validation is done again as a
    whole. Checkpoints between two steps stay as they are.

    Args:
        checkpoint: a loaded Lightning checkpoint, before its loops are restored; changed in place.
        accumulate: micro-batches of an optimizer step.
    """
    loops = checkpoint["loops"]["fit_loop"]
    training, validation = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
    current, total = training["current"], training["total"]
    done = current["processed"] - current["processed"] % accumulate
    in_flight = current["processed"] < current["ready"]
    if in_flight or (done < current["processed"] and not training["is_last_batch"]):
        before = total["processed"] - current["processed"]
        training["current"] = dict.fromkeys(current, done)
        training["total"] = {**dict.fromkeys(total, before + done), "started": before + done + 1}  # "in a step" to it
        training["is_last_batch"] = False
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # Lightning adds 1 when it restarts in a step
    if (met := validation["current"])["completed"] < met["ready"]:
        everything = validation["total"]["ready"]
        validation["current"] = dict.fromkeys(met, 0)
        validation["total"] = {"ready": everything, "started": everything} | dict.fromkeys(
            ("processed", "completed"), everything - 1
        )


def restore_counters(trainer: L.Trainer, batch_idx: int) -> None:
    """Puts right what a restart leaves in Lightning's counters: to be called as a batch starts.

    What :func:`align_to_step_start` says to one restart ("in a step") must not be read by the next one, from a checkpoint written
    later. And after a restart from the checkpoint of an epoch's last step, Lightning 2.6 counts the next epoch only
    when it is over: checkpoints written in it would continue with the epoch before, once more.
    """
    batches = trainer.fit_loop.epoch_loop.batch_progress.total
    # the one that starts is counted next
    batches.started = batches.ready - 1  # type: ignore[attr-defined]
    if batch_idx == 0:
        for epochs in (trainer.fit_loop.epoch_progress.total, trainer.fit_loop.epoch_progress.current):
            if epochs.ready == epochs.completed:
                epochs.ready = epochs.started = epochs.completed + 1  # type: ignore[attr-defined]
