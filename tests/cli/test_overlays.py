"""Tests of the overlays for debugging: a run of everything, one batch learned by heart, and a profile."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from command import fit_arguments
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_switchkd.cli.main import main


def metrics_of(folder: Path, run: Path, overlay: str, *more: str, method: str = "switch_kd") -> dict[str, list[float]]:
    """Train with an overlay that decides steps, validation and logging, and return the logged values by metric."""
    arguments = fit_arguments(folder, run, *more, method=method, extra=(f"overlay/{overlay}",))
    decided = ("--trainer.max_steps", "--trainer.val_check_interval", "--trainer.log_every_n_steps")
    decided += ("--data.val.",) if overlay == "overfit" else ()
    main([argument for argument in arguments if not argument.startswith(decided)])
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def test_debug_runs_everything(folder: Path, tmp_path: Path) -> None:
    metrics = metrics_of(folder, tmp_path, "debug")
    assert len(metrics["train/loss/total"]) == 5
    for name in ("val/accuracy", "val/exact_match", "val/dbild/vsd/overlap"):
        assert len(metrics[name]) == 2, name
    assert len(metrics["train/vision_gradient/by_term/vsd"]) == 5
    assert "val/panel" in EventAccumulator(str(tmp_path)).Reload().Tags()["images"]
    for name in ("checkpoints/step000002.ckpt", "checkpoints/step000004.ckpt", "student/model.safetensors"):
        assert (tmp_path / name).is_file(), name


def test_overfit_learns_one_batch_by_heart(folder: Path, tmp_path: Path) -> None:
    losses = metrics_of(folder, tmp_path, "overfit", "--model.lr=0.01", method="sft")["train/loss/ce"]
    assert len(losses) == 20
    assert losses[0] > 1
    assert losses[-1] < 0.01


def test_profile_writes_a_trace(folder: Path, tmp_path: Path) -> None:
    metrics_of(folder, tmp_path, "profile")
    (trace,) = (tmp_path / "profile").glob("*.pt.trace.json")
    names = {event["name"] for event in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]}
    assert {"_PairwiseKL", "aten::linear"} <= names
    slowest = (tmp_path / "profile" / "fit-operations.txt").read_text(encoding="utf-8")
    assert "ProfilerStep*" in slowest
    assert " aten::" in slowest  # which operations are among the slowest depends on the machine's load


@pytest.mark.parametrize("overlay", ["debug", "overfit", "profile"])
def test_the_first_line_shows_the_command(overlay: str) -> None:
    file = Path(__file__).parents[2] / "conf" / "overlay" / f"{overlay}.yaml"
    first_line = file.read_text(encoding="utf-8").splitlines()[0]
    assert first_line.startswith("# make train ")
    assert f"OVERLAYS={overlay} RUN=runs/emoji/{overlay}" in first_line
