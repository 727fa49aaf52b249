"""A progress bar that counts optimizer steps over the whole run, across epochs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

SHOWN_METRICS = {"train/loss/": "", "val/accuracy": "val token accuracy", "val/exact_match": "val exact match"}
"""Metrics that the bar shows: prefix and short name. ``total`` is not shown, because the terms say more."""


class _MetricsBelow(Progress):
    """Bars with a line of metrics below them, so that a narrow terminal cuts neither the counter nor the time left."""

    metrics = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bars, then the metrics."""
        yield from super().get_renderables()
        if self.metrics:
            yield Text(self.metrics)


class ConsoleProgress(ProgressBar):
    """Base of progress bars: a live bar in a terminal, a line at regular intervals in a file or CI log.

    Args:
        seconds_between_lines: Interval of the lines where the output is not a terminal.
    """

    def __init__(self, seconds_between_lines: float = 10.0) -> None:
        super().__init__()
        self.seconds_between_lines = seconds_between_lines
        self._disabled = False
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._next_line = 0.0

    @property
    def live(self) -> bool:
        """Check whether to show a live bar."""
        return self._console.is_terminal and not self._disabled

    def print_line(self, text: str) -> None:
        """Print a line."""
        if not self._disabled:
            self._console.print(text, highlight=False, soft_wrap=True)

    def line_is_due(self) -> bool:
        """Check whether the interval since the last line has passed. If so, it starts again."""
        due = time.monotonic() >= self._next_line
        if due:
            self._next_line = time.monotonic() + self.seconds_between_lines
        return due

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar before the error is printed."""
        self.close()

    def disable(self) -> None:
        """Turn all output off. Lightning calls this on every rank except 0."""
        self._disabled = True

    def enable(self) -> None:
        """Undo :meth:`disable`."""
        self._disabled = False

    def close(self) -> None:
        """Remove the live bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class StepProgressBar(ConsoleProgress):
    """Show steps, time left, the latest loss terms and validation scores, and a second bar during validation."""

    _progress: _MetricsBelow | None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar at the step where the run starts or resumes."""
        total = trainer.estimated_stepping_batches
        self._total = None if total == float("inf") else int(total)
        self._start_time, self._first_step, self._next_line = time.monotonic(), trainer.global_step, 0.0
        if not self.live:
            return
        self._progress = _MetricsBelow(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            expand=True,
        )
        self._train = self._progress.add_task("train", total=self._total, completed=trainer.global_step)
        self._validation: TaskID | None = None
        self._progress.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the bar after an optimizer step."""
        if self._disabled:
            return
        if self._progress is not None:
            self._progress.metrics = format_metrics(trainer.callback_metrics)
            self._progress.update(self._train, completed=trainer.global_step)
        elif batch.window_end and trainer.global_step != self._total and self.line_is_due():
            self._print_step(trainer)

    def _print_step(self, trainer: L.Trainer) -> None:
        elapsed, num_steps = time.monotonic() - self._start_time, trainer.global_step - self._first_step
        left = (
            "" if self._total is None else f", {clock(elapsed / num_steps * (self._total - trainer.global_step))} left"
        )
        steps = f"step {trainer.global_step}" + ("" if self._total is None else f"/{self._total}")
        self.print_line(f"{steps}  {clock(elapsed)}{left}  {format_metrics(trainer.callback_metrics)}")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open a second bar for the validation batches."""
        if self._progress is not None:
            batches = sum(trainer.num_val_batches) if isinstance(trainer.num_val_batches, list) else 0
            total = None if batches == float("inf") else batches
            self._validation = self._progress.add_task("validation", total=total)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Update the second bar."""
        if self._progress is not None and self._validation is not None:
            self._progress.advance(self._validation)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the second bar."""
        if self._progress is not None and self._validation is not None:
            self._progress.remove_task(self._validation)
            self._validation = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Update the bar a last time, after the last validation, and leave it on the screen."""
        if self._progress is not None:
            self._progress.metrics = format_metrics(trainer.callback_metrics)
        elif trainer.global_step > self._first_step:
            self._print_step(trainer)
        self.close()


def format_metrics(metrics: dict[str, Any]) -> str:
    """Format the metrics that the bar shows.

    >>> format_metrics({"train/loss/ce": 0.3123, "train/loss/total": 0.9, "val/accuracy": 0.5, "lr": 1.0})
    'ce 0.312  val token accuracy 0.5'
    """
    parts = []
    for name, value in metrics.items():
        for prefix, short in SHOWN_METRICS.items():
            if name.startswith(prefix) and not name.endswith("/total"):
                parts.append(f"{short or name.removeprefix(prefix)} {float(value):.3g}")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Format a duration.

    >>> clock(3671.4)
    '1:01:11'
    """
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
