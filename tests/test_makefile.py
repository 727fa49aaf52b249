"""The Makefile refuses names that it does not know, before it builds anything."""

from __future__ import annotations

import subprocess

import pytest
from command import ROOT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["EXPE=sft"], "Unknown variable EXPE. Known: METHOD DATA MODEL"),
        (["METHOD=swich_kd"], "does not exist. Available: align_kd bild"),
        (["OVERLAYS=best nope"], "does not exist. Available: best early"),
    ],
)
def test_unknown_names(arguments: list[str], message: str) -> None:
    command = ["make", "--dry-run", "train", *arguments]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert message in process.stderr
    assert len(process.stderr.splitlines()) == 1


def test_values_with_spaces_and_equal_signs() -> None:
    arguments = ["ARGS=--trainer.max_steps=5 --model.lr=3", "OVERLAYS=best teacher_cache", "RUN=runs/x"]
    command = ["make", "--dry-run", "train", *arguments]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--trainer.max_steps=5 --model.lr=3" in process.stdout
    assert "--config conf/overlay/best.yaml --config conf/overlay/teacher_cache.yaml" in process.stdout
