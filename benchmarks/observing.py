"""Logging overhead: steps with DBiLDStatistics and VisionGradients against steps without.

    python -m benchmarks.observing [--steps 40 --vocabulary 32768]

Lightning trains a random pair, and the callbacks are active in every second step. The table shows the median time of
both kinds of steps (log lines included) and their ratio, for the demo's vocabulary and a large one. The split of the
vision gradient by term needs extra backward passes and has its own rows.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import lightning as L
import torch

from benchmarks.pair import train
from benchmarks.table import header, row
from lightning_switchkd.core.profiling import synchronized_time
from lightning_switchkd.training.callbacks import DBiLDStatistics, VisionGradients


class EverySecondGradients(VisionGradients):
    """Record gradients in odd steps only."""

    def _after_forward(self, distiller: Any, inputs: Any, output: Any) -> None:
        assert self._trainer is not None
        if self._trainer.global_step % 2:
            super()._after_forward(distiller, inputs, output)

    def _split_due(self, step: int) -> bool:
        return bool(self.split_every_n_steps and step % 2)


class EverySecondStatistics(DBiLDStatistics):
    """Collect statistics in odd steps only."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Enable or disable the statistics."""
        self._begin(trainer, pl_module, "train", bool(trainer.global_step % 2))


class Clock(L.Callback):
    """Start of every step. List it before the other callbacks, and :class:`ClockEnd` after them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self.start = synchronized_time(pl_module.device.type)


class ClockEnd(L.Callback):
    """End of every step of a :class:`Clock`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop the clock."""
        self.clock.seconds.append(synchronized_time(pl_module.device.type) - self.clock.start)


def measure(vocabulary: int, steps: int, split: bool) -> tuple[float, float, float]:
    """Return the median seconds of a step without and with logging, and the median ratio of neighboring steps."""
    clock = Clock()
    callbacks = [EverySecondStatistics(), EverySecondGradients(int(split))]
    train(vocabulary, 2 * steps + 2, [clock, *callbacks, ClockEnd(clock)], log_every_n_steps=10)
    without, logged = clock.seconds[2::2], clock.seconds[3::2]
    ratio = statistics.median(b / a for a, b in zip(without, logged, strict=True))
    return statistics.median(without), statistics.median(logged), ratio


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="pairs of steps to time")
    parser.add_argument("--vocabulary", type=int, default=32768, help="size of the large vocabulary")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} thread(s)\n")
    header("vocabulary", "logged", "step without, s", "step with, s", "ratio")
    for vocabulary in (384, arguments.vocabulary):
        for split in (False, True):
            without, logged, ratio = measure(vocabulary, arguments.steps, split)
            name = "sets and pathways, split by term" if split else "sets and pathways (default)"
            row(vocabulary, name, f"{without:.3f}", f"{logged:.3f}", f"{ratio:.3f}")
