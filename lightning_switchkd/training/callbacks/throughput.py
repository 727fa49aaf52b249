"""Log how fast the run trains, how long it waits for data, and how much time is left."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import Tensor

from lightning_switchkd.core.profiling import peak_memory, reset_peak_memory
from lightning_switchkd.core.types import Batch
from lightning_switchkd.distillation.flops import StepCost, step_cost
from lightning_switchkd.training.module import SwitchKD

UNITS = ("samples", "supervised_tokens", "tokens", "positions", "token_pairs", "images", "seconds_waited")
"""Quantities that are counted, in the order of the counting tensor."""


class Throughput(L.Callback):
    """Log ``throughput/*`` at every log line, over all ranks and without validation time.

    - ``samples_per_s``
    - ``tokens_per_s``: real tokens, including image tokens
    - ``supervised_tokens_per_s``
    - ``padding_share``: fraction of all positions
    - ``data_wait_share``: fraction of the time spent waiting for the data loader
    - ``peak_memory_gib``: allocated on the GPU since the last log line; on a CPU, the peak of the process so far
    - ``model_tflops_per_s``: average of a process (``distillation.flops``)
    - ``mfu``: the same as a fraction of the device's peak, if the peak is known
    - ``minutes_left``: at the average pace of this run so far, including validation

    Args:
        peak_tflops: Peak TFLOP/s of one device, for ``mfu``. None uses Lightning's table of GPUs.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        self.peak_tflops = peak_tflops
        self._paused = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        assert isinstance(pl_module, SwitchKD)
        self._cost: StepCost = step_cost(pl_module.distiller)
        self._peak_flops = 1e12 * self.peak_tflops if self.peak_tflops else _known_peak(trainer, pl_module.device)
        self._start_time, self._first_step = time.perf_counter(), trainer.global_step
        self._reset(pl_module.device)

    def _reset(self, device: torch.device) -> None:
        self._counts = torch.zeros(len(UNITS), dtype=torch.float64, device=device)
        self._interval_start, self._paused = time.perf_counter(), 0.0
        if device.type == "cuda":
            reset_peak_memory("cuda")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pause the clock."""
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue the clock."""
        self._paused += time.perf_counter() - self._validation_start

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count a micro-batch. Log the rates at every log line."""
        self._counts += self._count(batch, trainer)
        if batch.window_end and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            values = self._compute(trainer, pl_module.device)
            pl_module.log_dict({f"throughput/{k}": v for k, v in values.items()}, batch_size=len(batch))
            self._reset(pl_module.device)

    def _count(self, batch: Batch, trainer: L.Trainer) -> Tensor:
        """Return ``[7]``, one micro-batch's quantity for each of ``UNITS``."""
        lengths = batch.lengths.double()  # [B]
        stream: Any = trainer.train_dataloader
        on_host = {
            "samples": len(batch),
            "supervised_tokens": batch.counts.token,
            "positions": batch.input_ids.numel(),
            "images": batch.counts.image,
            "seconds_waited": stream.pop_wait_seconds(),
        }
        counts = torch.tensor([on_host.get(unit, 0) for unit in UNITS], dtype=torch.float64)
        counts = counts.to(lengths.device, non_blocking=True)
        counts[UNITS.index("tokens")], counts[UNITS.index("token_pairs")] = lengths.sum(), lengths.square().sum()
        return counts

    def _compute(self, trainer: L.Trainer, device: torch.device) -> dict[str, float]:
        summed: Any = trainer.strategy.reduce(self._counts, reduce_op="sum")
        total = dict(zip(UNITS, summed.tolist(), strict=True))  # `tolist` waits for the device
        now, world_size = time.perf_counter(), trainer.world_size
        seconds = now - self._interval_start - self._paused
        memory: Any = trainer.strategy.reduce(torch.tensor(peak_memory(device.type), device=device), reduce_op="max")
        flops = self._cost.total(total["tokens"], total["token_pairs"], total["images"], total["supervised_tokens"])
        values = {
            "samples_per_s": total["samples"] / seconds,
            "tokens_per_s": total["tokens"] / seconds,
            "supervised_tokens_per_s": total["supervised_tokens"] / seconds,
            "padding_share": 1 - total["tokens"] / total["positions"],
            "data_wait_share": total["seconds_waited"] / world_size / seconds,
            "peak_memory_gib": float(memory) / 2**30,
            "model_tflops_per_s": flops / world_size / seconds / 1e12,
        }
        if self._peak_flops:
            values["mfu"] = flops / world_size / seconds / self._peak_flops
        if (num_steps := trainer.estimated_stepping_batches) != float("inf"):
            seconds_per_step = (now - self._start_time) / (trainer.global_step - self._first_step)
            values["minutes_left"] = seconds_per_step * (num_steps - trainer.global_step) / 60
        return values


def _known_peak(trainer: L.Trainer, device: torch.device) -> float | None:
    """Return the device's peak FLOP/s at the trainer's precision, or None if Lightning's table lacks the device."""
    dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
    return get_available_flops(device, dtype)
