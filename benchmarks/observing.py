"""What it costs to look: steps with DBiLDStatistics and VisionGradients against the same steps without.

    python -m benchmarks.observing [--steps 40 --vocabulary 32768]

One real training by Lightning, in which every second step is looked at. Printed is the median time of the looked-at
steps as a ratio to the others of the same run (log lines included), for the embedded pair's vocabulary and a large one;
and the same for the split by term, which costs backwards.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import lightning as L
import torch

from benchmarks.pair import train
from lightning_switchkd.core.profiling import synchronized_time
from lightning_switchkd.training.callbacks import DBiLDStatistics, VisionGradients


class EverySecondGradients(VisionGradients):
    """Listens at odd steps only."""

    def _after_forward(self, distiller: Any, inputs: Any, terms: Any) -> None:
        assert self._trainer is not None
        if self._trainer.global_step % 2:
            super()._after_forward(distiller, inputs, terms)

    def _split_due(self, step: int) -> bool:
        return bool(self.split_every_n_steps and step % 2)


class EverySecondStatistics(DBiLDStatistics):
    """Looks at odd steps only."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Turns looking on and off."""
        self._begin(trainer, pl_module, "train", bool(trainer.global_step % 2))


class Clock(L.Callback):
    """Times every step; listed first and last, so that the other callbacks lie between."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Starts."""
        self.begun = synchronized_time(pl_module.device.type)


class ClockEnd(L.Callback):
    """Stops a :class:`Clock`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stops."""
        self.clock.seconds.append(synchronized_time(pl_module.device.type) - self.clock.begun)


def measure(vocabulary: int, steps: int, split: bool) -> tuple[float, float, float]:
    """Median seconds of a step without looking, with, and the median ratio of neighbours."""
    clock = Clock()
    looking = [EverySecondStatistics(), EverySecondGradients(int(split))]
    train(vocabulary, 2 * steps + 2, [clock, *looking, ClockEnd(clock)], log_every_n_steps=10)
    plain, seen = clock.seconds[2::2], clock.seconds[3::2]
    ratio = statistics.median(b / a for a, b in zip(plain, seen, strict=True))
    return statistics.median(plain), statistics.median(seen), ratio


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="pairs of steps that are timed")
    parser.add_argument("--vocabulary", type=int, default=32768, help="the large one")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} thread(s)\n\n| vocabulary | looked at | step without, s | step with, s | ratio |")
    print("|---|---|---|---|---|")
    for vocabulary in (384, arguments.vocabulary):
        for split in (False, True):
            plain, seen, ratio = measure(vocabulary, arguments.steps, split)
            what = "sets and pathways, split by term" if split else "sets and pathways (the default)"
            print(f"| {vocabulary} | {what} | {plain:.3f} | {seen:.3f} | {ratio:.3f} |", flush=True)
