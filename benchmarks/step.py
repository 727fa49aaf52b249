"""Time of a whole training step against the sum of its parts, and the time that a teacher cache saves.

    python -m benchmarks.step [--steps 10 --vocabulary 32768]

Lightning trains a random pair. After every step, its parts are timed on the same models and batch: student forward and
backward, teacher forward, switch forward and backward to the vision features, loss head, optimizer. The tables show
medians, and the median ratio of each step to its parts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks.pair import SAMPLES, train
from benchmarks.table import header, row
from lightning_switchkd.core.profiling import synchronized_time
from lightning_switchkd.distillation.pathways import student_pathway, switch_pathway, teacher_pathway
from lightning_switchkd.distillation.teacher_cache import HiddenStateCache
from lightning_switchkd.objectives.terms import ObjectiveInputs
from lightning_switchkd.training.module import SwitchKD

PARTS = ("student", "teacher", "switch", "head", "optimizer")


class Parts(L.Callback):
    """Time every step, and its parts after it.

    Args:
        folder: Folder of the teacher cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: list[dict[str, float]] = []
        self._cache: HiddenStateCache | None = None
        self._inputs: ObjectiveInputs | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Keep the inputs of the objective."""

        def keep(_: Any, args: tuple[Any, ...]) -> None:
            self._inputs = args[0]

        pl_module.distiller.objective.register_forward_pre_hook(keep)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self._start = synchronized_time(pl_module.device.type)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop the clock, and time the parts."""
        step = synchronized_time(pl_module.device.type) - self._start
        self.seconds.append({"step": step, **self._parts(trainer.optimizers[0], pl_module, batch)})
        pl_module.zero_grad()

    def _parts(self, optimizer: Any, module: SwitchKD, batch: Any) -> dict[str, float]:
        model, inputs, seconds = module.distiller, self._inputs, dict[str, float]()
        assert inputs is not None
        tokens = inputs.answer_tokens

        def timed(name: str, work: Callable[[], Any]) -> None:
            start = synchronized_time(module.device.type)
            work()
            seconds[name] = synchronized_time(module.device.type) - start

        features = [t.detach().requires_grad_() for t in model.student.encode(batch.vision)]
        leaves = {
            pathway: states.detach().requires_grad_(states.requires_grad) for pathway, states in tokens.hidden.items()
        }
        positions = model.kept_positions(batch).positions

        def student() -> None:
            encoded = model.student.encode(batch.vision)
            hidden = student_pathway(model.student, batch, encoded).hidden.flatten(0, 1)[positions]
            torch.autograd.backward([hidden, *encoded], [torch.ones_like(out) for out in (hidden, *encoded)])

        def switch() -> None:
            hidden = switch_pathway(model.frozen_teacher, batch, features).hidden.flatten(0, 1)[positions]
            hidden.backward(torch.ones_like(hidden))

        def head() -> None:
            totals = batch.counts.tensor(module.device)
            detached = replace(inputs, answer_tokens=replace(tokens, hidden=leaves))
            model.objective(detached, totals, 0, model.logits_gib).loss.backward()

        timed("student", student)
        timed("teacher", lambda: teacher_pathway(model.frozen_teacher, batch))
        timed("switch", switch)
        timed("head", head)
        timed("optimizer", optimizer.step)
        if self._cache is None:
            teacher = tokens.hidden["teacher"]
            settings = (self.folder, SAMPLES, teacher.shape[1], teacher.dtype)
            model.cached_teacher(batch, positions, HiddenStateCache(*settings, lambda: 10**9))  # fills the cache
            self._cache = HiddenStateCache(*settings, lambda: 0)
        cache = self._cache
        timed("cache", lambda: model.cached_teacher(batch, positions, cache))
        return seconds


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="steps to time")
    parser.add_argument("--vocabulary", type=int, default=32768, help="token ids of both models")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parts = Parts(Path(folder))
        train(arguments.vocabulary, arguments.steps + 2, [parts])
    steps = parts.seconds[2:]
    median = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
    ratio = statistics.median(step["step"] / sum(step[part] for part in PARTS) for step in steps)
    total = sum(median[part] for part in PARTS)
    print(f"{torch.get_num_threads()} thread(s)\n")
    header("part", "seconds", "share of the parts")
    for part in PARTS:
        row(part, f"{median[part]:.4f}", f"{median[part] / total:.1%}")
    row("whole step by Lightning", f"{median['step']:.4f}", f"{ratio:.3f} × the sum of the parts")
    read, teacher = median["cache"], median["teacher"]
    row("reading the teacher cache", f"{read:.4f}", f"saves {1 - read / teacher:.1%} of the teacher pathway")
    row("", "", f"{read / median['step']:.2%} of a step")


if __name__ == "__main__":
    main()
