"""Tests of the progress bar in narrow terminals and in files."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lightning_switchkd.training.callbacks.progress import StepProgressBar

METRICS = {
    "val/exact_match": 0.461,
    "val/accuracy": 0.829,
    "train/loss/ce": 0.456,
    "train/loss/align": 0.574,
    "train/loss/vsd": 0.0601,
}
SHOWN = "val exact match 0.461 val token accuracy 0.829 ce 0.456 align 0.574 vsd 0.0601"


def bar_in(console: Console, step: int) -> tuple[StepProgressBar, Any]:
    """Return a bar in a run of 12,000 steps that started at step 0 and has finished ``step`` steps."""
    bar, trainer = StepProgressBar(), SimpleNamespace(estimated_stepping_batches=12_000, global_step=0)
    bar._console = console
    trainer.callback_metrics, trainer.num_val_batches = METRICS, [6]
    bar.on_train_start(trainer, None)  # type: ignore[arg-type]
    trainer.global_step = step
    bar.on_train_batch_end(trainer, None, None, SimpleNamespace(window_end=True), 0)  # type: ignore[arg-type]
    return bar, trainer


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_shows_everything(width: int) -> None:
    bar, trainer = bar_in(Console(file=io.StringIO(), force_terminal=True, width=width), step=1234)
    assert bar._progress is not None
    bar.on_validation_start(trainer, None)  # type: ignore[arg-type]
    screen = Console(file=io.StringIO(), width=width)
    screen.print(bar._progress.get_renderable())
    train, validation, *metrics = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    name, drawn, steps, elapsed, left = train.split()
    assert (name, steps) == ("train", "1234/12000")
    assert set(drawn) <= set("━╸╺")
    assert elapsed.count(":") == left.count(":") == 2
    assert validation.startswith("validation ")
    assert " 0/6 " in validation
    assert " ".join(" ".join(metrics).split()) == SHOWN
    assert max(map(len, [train, validation, *metrics])) <= width
    bar.on_train_end(trainer, None)  # type: ignore[arg-type]


def test_a_file_gets_whole_lines() -> None:
    """The last line waits for the last validation."""
    log = io.StringIO()
    bar, trainer = bar_in(Console(file=log, width=80), step=12_000)
    assert not log.getvalue()
    bar.on_train_end(trainer, None)  # type: ignore[arg-type]
    (line,) = log.getvalue().splitlines()
    assert line.startswith("step 12000/12000  0:00:0")
    assert ", 0:00:00 left  val exact match 0.461" in line
    assert " ".join(line.split()).endswith(SHOWN)
