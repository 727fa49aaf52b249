"""Checkpoint files: written atomically, read without unpickling code."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import PARTIAL, atomic_path
from lightning_switchkd.training.checkpoints.metadata import metadata_of


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint atomically: a kill during the write leaves the previous file unchanged.

    Lightning's own plugin serializes to memory and copies from the system's temporary folder, so a file can be half
    written for a while.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the file.

        Raises:
            UserError: The disk is full or not writable. The previous file is unchanged.
        """
        path = Path(path)
        for stale in path.parent.glob(f".*.ckpt{PARTIAL}"):  # of processes that were killed
            stale.unlink()
        try:
            with atomic_path(path, fsync=True) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            reason = error if isinstance(error, OSError) else error.__context__  # torch wraps the writer's error
            if not isinstance(reason, OSError):
                raise
            last = newest(path.parent)
            kept = f"The newest complete checkpoint is {last}" if last else "No complete checkpoint exists yet"
            raise UserError(
                f"Cannot write the checkpoint {path}: {reason}. {kept}. Free space on the disk, or set "
                "checkpoint.dirpath to another disk. Then resume with --ckpt_path=last."
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a file without unpickling code."""
        checkpoint: dict[str, Any] = super().load_checkpoint(path, map_location or (lambda s, _: s), weights_only=True)
        return checkpoint


def newest(folder: Path, exclude: Path | None = None) -> Path | None:
    """Return the latest checkpoint: ``last.ckpt``, or the newest file of the folder if that is missing.

    Args:
        folder: Folder of checkpoints.
        exclude: A file to ignore.
    """
    last = folder / "last.ckpt"
    if exclude is None and last.is_file():
        return last
    files = [f for f in folder.glob("*.ckpt") if f.is_file() and (exclude is None or not f.samefile(exclude))]
    return max(files, key=lambda file: file.stat().st_mtime, default=None)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a Lightning checkpoint without unpickling code.

    Raises:
        UserError: The file is missing or damaged, or another program wrote it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"The checkpoint '{path}' does not exist. `fit` writes checkpoints to runs/<name>/checkpoints/."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        previous = newest(path.parent, exclude=path)
        fix = f"Resume from the previous one: --ckpt_path={previous}." if previous else "Its folder has no other one."
        raise UserError(
            f"'{path}' cannot be read as a checkpoint ({str(error).strip().splitlines()[0]}). The file may be damaged "
            f"or incomplete. {fix}"
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"'{path}' is not a Lightning checkpoint. Give a .ckpt that `fit` wrote.")
    metadata_of(checkpoint, f"'{path}'")
    return checkpoint
