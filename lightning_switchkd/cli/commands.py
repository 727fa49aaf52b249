"""The commands that are plain functions: their arguments become flags."""

from __future__ import annotations

import os
from collections.abc import Callable
from inspect import signature
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the data loader's workers are forked after tokenizers ran


from pathlib import Path

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.processor import load_processor
from lightning_switchkd.data.repack import repack
from lightning_switchkd.evaluation.chat import generate
from lightning_switchkd.evaluation.report.report import report
from lightning_switchkd.evaluation.runner import evaluate
from lightning_switchkd.evaluation.score import score
from lightning_switchkd.experiments.sweep import ablation
from lightning_switchkd.models.convert import convert
from lightning_switchkd.models.export import write_student
from lightning_switchkd.training.checkpoints.io import read_checkpoint
from lightning_switchkd.training.checkpoints.metadata import metadata_of, student_weights


def export(ckpt: str, output: str, processor: str | None = None) -> None:
    """Writes the student of a checkpoint as a Hugging Face folder.

    Args:
        ckpt: checkpoint that `fit` wrote.
        output: folder to write; must not exist yet, or be an earlier export.
        processor: folder of the processor it was trained with, if it has moved since.
    """
    folder = Path(output)
    if folder.exists() and not (folder / "config.json").is_file():
        raise UserError(f"--output: '{folder}' exists and is no model folder. Give a new folder.")
    checkpoint = read_checkpoint(ckpt)
    facts = metadata_of(checkpoint, ckpt)
    folder.parent.mkdir(parents=True, exist_ok=True)
    weights = student_weights(checkpoint["state_dict"], facts["lora_scale"])
    write_student(weights, load_processor(processor or facts["processor"], facts["square_pad"]), folder, facts)
    print(f"Student written to {folder}. Ask it: python -m lightning_switchkd generate --model {folder} --image FILE")


COMMANDS: dict[str, Callable[..., Any]] = {
    "export": export,
    "convert": convert,
    "generate": generate,
    "evaluate": evaluate,
    "score": score,
    "report": report,
    "ablation": ablation,
    "repack": repack,
}


def switched_on(function: Callable[..., Any], arguments: list[str]) -> list[str]:
    """``--strict`` alone is ``--strict=true``, for every truth value that a command takes.

    >>> def score(strict: bool = False) -> None: ...
    >>> switched_on(score, ["--strict", "--output", "x"]), switched_on(score, ["--strict", "false"])
    (['--strict=true', '--output', 'x'], ['--strict', 'false'])
    """
    names = {f"--{name}" for name, of in signature(function).parameters.items() if of.annotation in (bool, "bool")}
    following = [*arguments[1:], "--"]
    return [
        f"{word}=true" if word in names and after.lower() not in ("true", "false") else word
        for word, after in zip(arguments, following, strict=True)
    ]
