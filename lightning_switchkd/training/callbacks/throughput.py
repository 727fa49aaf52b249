"""How fast it trains, what it waits for, and how long it will take."""

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


class Throughput(L.Callback):
    """Logs ``throughput/*`` at every log line, over all ranks; validation time does not count.

    ``samples_per_s``, ``tokens_per_s`` (real ones, image tokens included), ``supervised_tokens_per_s``,
    ``padding_share`` (of all positions), ``data_wait_share`` (of the time, waiting for the loader), ``peak_memory_gib``
    (allocated on the GPU since the last line; on a CPU the process's largest so far), ``model_tflops_per_s`` (a
    process's average; ``vlm.flops``), ``mfu`` (as a share of the device's peak, where that is known) and
    ``minutes_left`` (at the pace of this run so far, validation included).

    Args:
        peak_tflops: what one device can do at best, for ``mfu``; None asks Lightning's table of GPUs.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        self.peak_tflops = peak_tflops
        self._paused = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        assert isinstance(pl_module, SwitchKD)
        self._cost: StepCost = step_cost(pl_module.distiller)
        self._peak = 1e12 * self.peak_tflops if self.peak_tflops else _known_peak(trainer, pl_module.device)
        self._begun, self._first_step = time.perf_counter(), trainer.global_step
        self._restart(pl_module.device)

    def _restart(self, device: torch.device) -> None:
        self._seen = torch.zeros(len(UNITS), dtype=torch.float64, device=device)
        self._since, self._paused = time.perf_counter(), 0.0
        if device.type == "cuda":
            reset_peak_memory("cuda")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops the clock."""
        self._validating_since = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets it run on."""
        self._paused += time.perf_counter() - self._validating_since

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Counts a micro-batch, and logs where a log line is due."""
        self._seen += self._counted(batch, trainer)
        if batch.window_end and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            values = self._values(trainer, pl_module.device)
            pl_module.log_dict({f"throughput/{k}": v for k, v in values.items()}, batch_size=len(batch))
            self._restart(pl_module.device)

    def _counted(self, batch: Batch, trainer: L.Trainer) -> Tensor:
        lengths = batch.lengths.double()  # [B]
        stream: Any = trainer.train_dataloader
        numbers = [len(batch), batch.counts.token, 0, batch.input_ids.numel(), 0, batch.counts.image, stream.pop_wait_seconds()]
        counted = torch.tensor(numbers, dtype=torch.float64).to(lengths.device, non_blocking=True)
        counted[UNITS.index("tokens")], counted[UNITS.index("token_pairs")] = lengths.sum(), lengths.square().sum()
        return counted

    def _values(self, trainer: L.Trainer, device: torch.device) -> dict[str, float]:
        summed: Any = trainer.strategy.reduce(self._seen, reduce_op="sum")
        seen = dict(zip(UNITS, summed.tolist(), strict=True))  # the device has caught up here
        now, world = time.perf_counter(), trainer.world_size
        seconds = now - self._since - self._paused
        memory: Any = trainer.strategy.reduce(torch.tensor(peak_memory(device.type), device=device), reduce_op="max")
        flops = self._cost.total(seen["tokens"], seen["token_pairs"], seen["images"], seen["supervised_tokens"])
        values = {
            "samples_per_s": seen["samples"] / seconds,
            "tokens_per_s": seen["tokens"] / seconds,
            "supervised_tokens_per_s": seen["supervised_tokens"] / seconds,
            "padding_share": 1 - seen["tokens"] / seen["positions"],
            "data_wait_share": seen["seconds_waited"] / world / seconds,
            "peak_memory_gib": float(memory) / 2**30,
            "model_tflops_per_s": flops / world / seconds / 1e12,
        }
        if self._peak:
            values["mfu"] = flops / world / seconds / self._peak
        if (total := trainer.estimated_stepping_batches) != float("inf"):
            pace = (now - self._begun) / (trainer.global_step - self._first_step)
            values["minutes_left"] = pace * (total - trainer.global_step) / 60
        return values


def _known_peak(trainer: L.Trainer, device: torch.device) -> float | None:
    dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
    return get_available_flops(device, dtype)
