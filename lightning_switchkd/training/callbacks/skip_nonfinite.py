"""Steps whose gradient is not finite: left out, counted, written down, and fatal when there are many."""

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
    """Leaves out an optimizer step whose gradient holds NaN or infinity: weights and averages stay as they are.

    What its batches held is written to ``nonfinite.jsonl`` in the run's folder (of several ranks, each to a file of its
    own): step, loss of each micro-batch, ids of its records; ``train/skipped_steps`` counts them. With float16, whose
    loss scale looks for the largest that is finite, the loss is looked at in place of the gradient. A step costs one
    read of the device.

    Args:
        limit: more steps left out than this end the run.
    """

    def __init__(self, limit: int = 20) -> None:
        if limit < 0:
            raise UserError(f"skip_nonfinite.limit is {limit}. Set it to 0 (the first such step ends the run) or more.")
        self.limit = limit
        self.left_out = 0
        self._window: list[tuple[Tensor, tuple[str, ...]]] = []
        self._bad = False

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Takes away a gradient that is not finite, before it is clipped: an optimizer passes by what has none."""
        if _scales_loss(trainer):
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in parameters]
        self._bad = not _on_all_ranks(trainer, bool(torch.nn.utils.get_total_norm(gradients).isfinite()))
        if self._bad:
            for parameter in parameters:
                parameter.grad = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keeps what a window held, and writes it down where the step was left out."""
        if batch.window_start:
            self._window = []
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self._window.append((loss.detach(), batch.sample_ids))
        if not batch.window_end:
            return
        if _scales_loss(trainer):
            self._bad = not _on_all_ranks(trainer, all(bool(torch.isfinite(loss)) for loss, _ in self._window))
        if self._bad:
            self.left_out += 1
            place = self._write(trainer)
            if self.left_out > self.limit:
                raise UserError(
                    f"{self.left_out} optimizer steps had a gradient that is not finite, more than skip_nonfinite.limit "
                    f"({self.limit}). {place} names the records of each. If it is always the same ones, leave them out "
                    "(data.exclude); else lower model.lr, or set trainer.precision to bf16-mixed or 32-true. "
                    "--ckpt_path=last goes on from the last checkpoint."
                )
        if trainer.global_step % trainer.log_every_n_steps == 0 and self.left_out:  # type: ignore[attr-defined]
            pl_module.log("train/skipped_steps", float(self.left_out), batch_size=1)

    def _write(self, trainer: L.Trainer) -> Path:
        rank = f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        place = Path(trainer.default_root_dir) / f"nonfinite{rank}.jsonl"
        batches = [{"loss": str(float(loss)), "records": list(ids)} for loss, ids in self._window]
        append_jsonl(place, [{"step": trainer.global_step - 1, "batches": batches}])
        return place

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"left_out": self.left_out}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self.left_out = state_dict["left_out"]


def _scales_loss(trainer: L.Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _on_all_ranks(trainer: L.Trainer, decision: bool) -> bool:
    return trainer.strategy.reduce_boolean_decision(decision, all=True) if trainer.world_size > 1 else decision
