"""The command `export`."""

from __future__ import annotations

from pathlib import Path

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.text import program
from lightning_switchkd.data.processor import load_processor
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
