"""A whole training step against the sum of its parts, and what a warm teacher cache saves of it.

    python -m benchmarks.step [--steps 10 --vocabulary 32768]

A real training by Lightning. After every step its parts are timed bare on the same models and batch: student forward
and backward, teacher forward, switch forward and backward to the vision features, loss head, optimizer. Printed are
medians, and the median ratio of each step to the parts that follow it.
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
from torch import Tensor

from benchmarks.pair import RECORDS, train
from lightning_switchkd.core.labels import supervised_positions
from lightning_switchkd.core.profiling import synchronized_time
from lightning_switchkd.distillation.pathways import student_pathway, switch_pathway
from lightning_switchkd.distillation.teacher_cache import HiddenStateCache
from lightning_switchkd.training.module import SwitchKD

PARTS = ("student", "teacher", "switch", "head", "optimizer")


class Parts(L.Callback):
    """Times every step, and its parts after it.

    Args:
        folder: of the cache that is read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: list[dict[str, float]] = []
        self._cache: HiddenStateCache | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Starts."""
        self._begun = synchronized_time(pl_module.device.type)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stops, and times the parts."""
        step = synchronized_time(pl_module.device.type) - self._begun
        self.found.append({"step": step, **self._parts(trainer.optimizers[0], pl_module, batch)})
        pl_module.zero_grad()

    def _parts(self, optimizer: Any, module: SwitchKD, batch: Any) -> dict[str, float]:
        model, found = module.distiller, {}

        def timed(name: str, work: Callable[[], Any]) -> Any:
            begun = synchronized_time(module.device.type)
            result = work()
            found[name] = synchronized_time(module.device.type) - begun
            return result

        features = model.student.encode_image(batch.pixel_values).detach().requires_grad_()
        views = model.views(batch, model.features(batch))
        rows = views.rows
        learnt = {
            pathway: states.detach().requires_grad_(states.requires_grad) for pathway, states in rows.hidden.items()
        }
        positions = supervised_positions(batch.labels)[0]

        def student() -> None:
            seen = model.student.encode_image(batch.pixel_values)
            hidden = student_pathway(model.student, batch, seen).hidden.flatten(0, 1)[positions]
            torch.autograd.backward([hidden, seen], [torch.ones_like(hidden), torch.ones_like(seen)])

        def switch() -> None:
            hidden = switch_pathway(model.frozen_teacher, batch, features).hidden.flatten(0, 1)[positions]
            hidden.backward(torch.ones_like(hidden))

        def head() -> None:
            totals = batch.counts.tensor(features.device)
            chosen = replace(views, rows=replace(rows, hidden=learnt))
            model.objective(chosen, totals, 0, model.logits_gib).loss.backward()

        timed("student", student)
        timed("teacher", lambda: model.teacher_rows(batch))
        timed("switch", switch)
        timed("head", head)
        timed("optimizer", optimizer.step)
        if self._cache is None:
            teacher: Tensor = rows.hidden["teacher"]
            self._cache = HiddenStateCache(self.folder, RECORDS, teacher.shape[1], teacher.dtype, lambda: 10**9)
            self._cache.rows(batch, positions, model.teacher_rows)
            self._cache = HiddenStateCache(self.folder, RECORDS, teacher.shape[1], teacher.dtype, lambda: 0)
        cache = self._cache
        timed("cache", lambda: cache.rows(batch, positions, model.teacher_rows))
        return found


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--vocabulary", type=int, default=32768)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parts = Parts(Path(folder))
        train(arguments.vocabulary, arguments.steps + 2, [parts])
    found = parts.found[2:]
    median = {name: statistics.median(one[name] for one in found) for name in found[0]}
    ratio = statistics.median(one["step"] / sum(one[part] for part in PARTS) for one in found)
    print(f"{torch.get_num_threads()} thread(s)\n\n| part | seconds | of the parts |\n|---|---|---|")
    total = sum(median[part] for part in PARTS)
    for part in PARTS:
        print(f"| {part} | {median[part]:.4f} | {median[part] / total:.1%} |")
    print(f"| whole step, by Lightning | {median['step']:.4f} | {ratio:.3f} of their sum |")
    read, teacher = median["cache"], median["teacher"]
    print(f"| teacher's rows from a warm cache | {read:.4f} | saves {1 - read / teacher:.1%} of the teacher pathway |")
    print(f"| | | {read / median['step']:.2%} of a step |")


if __name__ == "__main__":
    main()
