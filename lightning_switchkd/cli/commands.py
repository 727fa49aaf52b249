"""Commands that are plain functions. Their arguments become flags."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.text import program
from lightning_switchkd.data.processor import load_processor
from lightning_switchkd.data.repack import repack
from lightning_switchkd.evaluation.ask import ask
from lightning_switchkd.evaluation.chat import generate
from lightning_switchkd.evaluation.report.report import report
from lightning_switchkd.evaluation.runner import evaluate
from lightning_switchkd.evaluation.score import score
from lightning_switchkd.models.convert import convert
from lightning_switchkd.models.export import write_student
from lightning_switchkd.training.checkpoints.io import read_checkpoint
from lightning_switchkd.training.checkpoints.metadata import metadata_of, student_weights


def export(ckpt: str, output: str, processor: str | None = None) -> None:
    """Export the student of a checkpoint as a Hugging Face folder.

    Args:
        ckpt: checkpoint written by `fit`.
        output: folder to write: new, or an earlier export.
        processor: folder of the training processor, if the folder has moved since training.

    Raises:
        UserError: The checkpoint cannot be read, or ``output`` is neither new nor an earlier export.
    """
    folder = Path(output)
    if folder.exists() and not (folder / "config.json").is_file():
        raise UserError(f"--output: '{folder}' exists and is not a model folder. Give a new folder.")
    checkpoint = read_checkpoint(ckpt)
    metadata = metadata_of(checkpoint, ckpt)
    folder.parent.mkdir(parents=True, exist_ok=True)
    weights = student_weights(checkpoint["state_dict"], metadata["lora_scale"])
    write_student(weights, load_processor(processor or metadata["processor"], metadata["square_pad"]), folder, metadata)
    print(f"Student written to {folder}. Try it: {program()} generate --model {folder} --image FILE")


COMMANDS: dict[str, Callable[..., Any]] = {
    "export": export,
    "convert": convert,
    "generate": generate,
    "ask": ask,
    "evaluate": evaluate,
    "score": score,
    "report": report,
    "repack": repack,
}


def expand_switches(function: Callable[..., Any], arguments: list[str]) -> list[str]:
    """Expand ``--strict`` to ``--strict=true``, for every flag of a command that is a bool.

    Args:
        function: The command.
        arguments: Its flags.

    >>> def score(strict: bool = False) -> None: ...
    >>> expand_switches(score, ["--strict", "--output", "x"]), expand_switches(score, ["--strict", "false"])
    (['--strict=true', '--output', 'x'], ['--strict', 'false'])
    >>> expand_switches(score, [])
    []
    """
    names = {
        f"--{name}"
        for name, parameter in signature(function).parameters.items()
        if parameter.annotation in (bool, "bool")
    }
    following = [*arguments, "--"][1:]
    return [
        f"{word}=true" if word in names and after.lower() not in ("true", "false") else word
        for word, after in zip(arguments, following, strict=True)
    ]
