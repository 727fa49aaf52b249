"""Skip, log and count optimizer steps with a non-finite gradient, and stop a run that has too many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import append_jsonl
from lightning_switchkd.core.types import Batch


class SkipNonfinite(L.Callback):
    """Skip an optimizer step whose gradient contains NaN or infinity. Weights and running averages do not change.

    Each skipped step is written to ``nonfinite.jsonl`` in the run folder, with the loss and the sample ids of every
    micro-batch. With several ranks, each rank writes its own file. ``train/skipped_steps`` counts these steps.

    With float16 the loss is checked instead of the gradient, because the loss scaler itself searches for the largest
    scale with finite gradients. Each step costs one synchronization with the device.

    Args:
        limit: Maximum number of skipped steps. One more stops the run.
    """

    def __init__(self, limit: int = 20) -> None:
        if limit < 0:
            raise UserError(
                f"skip_nonfinite.limit must be 0 or more, got {limit}. Set it to 0 to stop at the first such step."
            )
        self.limit = limit
        self.skipped_steps = 0
        self._window: list[tuple[Tensor, tuple[str, ...]]] = []  # loss and sample ids of each micro-batch
        self._nonfinite = False

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Clear non-finite gradients before clipping. The optimizer skips parameters whose ``.grad`` is None."""
        if _has_loss_scaler(trainer):
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in parameters]
        self._nonfinite = not _on_all_ranks(trainer, bool(torch.nn.utils.get_total_norm(gradients).isfinite()))
        if self._nonfinite:
            for parameter in parameters:
                parameter.grad = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Note the micro-batches of a window, and report the window if its step was skipped."""
        if batch.window_start:
            self._window = []
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self._window.append((loss.detach(), batch.sample_ids))
        if not batch.window_end:
            return
        if _has_loss_scaler(trainer):
            finite = all(bool(torch.isfinite(loss)) for loss, _ in self._window)
            self._nonfinite = not _on_all_ranks(trainer, finite)
        if self._nonfinite:
            self.skipped_steps += 1
            file = self._write(trainer)
            if self.skipped_steps > self.limit:
                raise UserError(
                    f"{self.skipped_steps} optimizer steps had a non-finite gradient, more than skip_nonfinite.limit "
                    f"({self.limit}). {file} lists the samples of each step. Exclude samples that recur "
                    "(data.exclude). Otherwise lower model.lr, or set trainer.precision to bf16-mixed or 32-true. "
                    "Then resume from the last checkpoint with --ckpt_path=last."
                )
        if trainer.global_step % trainer.log_every_n_steps == 0 and self.skipped_steps:  # type: ignore[attr-defined]
            pl_module.log("train/skipped_steps", float(self.skipped_steps), batch_size=1)

    def _write(self, trainer: L.Trainer) -> Path:
        rank = f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        file = Path(trainer.default_root_dir) / f"nonfinite{rank}.jsonl"
        batches = [{"loss": str(float(loss)), "records": list(sample_ids)} for loss, sample_ids in self._window]
        append_jsonl(file, [{"step": trainer.global_step - 1, "batches": batches}])
        return file

    def state_dict(self) -> dict[str, Any]:
        """Return the count."""
        return {"left_out": self.skipped_steps}  # the key of 0.1.0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count."""
        self.skipped_steps = state_dict["left_out"]


def _has_loss_scaler(trainer: L.Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _on_all_ranks(trainer: L.Trainer, decision: bool) -> bool:
    return trainer.strategy.reduce_boolean_decision(decision, all=True) if trainer.world_size > 1 else decision
