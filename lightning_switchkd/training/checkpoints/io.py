"""Checkpoints that are on the disk whole or not at all."""

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
    """Writes beside the place, then renames: whoever is killed in between leaves the checkpoint before it as it was.

    (Lightning's own goes through memory and the system's folder for temporary files, from where a copy is half there
    for a while.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes the file.

        Raises:
            UserError: it does not fit on the disk, or may not be written; what was there before is still there.
        """
        path = Path(path)
        for stale in path.parent.glob(f".*{PARTIAL}"):  # of a process that was killed
            stale.unlink()
        try:
            with atomic_path(path, fsync=True) as partial:
                torch.save(checkpoint, partial)
        except (OSError, RuntimeError) as error:  # torch wraps the error of its writer
            said = error if isinstance(error, OSError) else error.__context__
            if not isinstance(said, OSError):
                raise
            there = newest(path.parent)
            held = f"The newest whole one is {there}" if there else "There is none yet"
            raise UserError(
                f"The checkpoint {path} could not be written ({said}). {held}. Make room "
                "on that disk, or set checkpoint.dirpath to another; then go on with --ckpt_path=last (make: "
                "RESUME=auto)."
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a file without unpickling code."""
        checkpoint: dict[str, Any] = super().load_checkpoint(path, map_location or (lambda s, _: s), weights_only=True)
        return checkpoint


def newest(folder: Path, but: Path | None = None) -> Path | None:
    """The checkpoint that was written last: ``last.ckpt``, or, where that is missing, the newest of its folder.

    Args:
        folder: of checkpoints.
        but: another than this one.
    """
    last = folder / "last.ckpt"
    if but is None and last.is_file():
        return last
    others = [file for file in folder.glob("*.ckpt") if file.is_file() and (but is None or not file.samefile(but))]
    return max(others, key=lambda file: file.stat().st_mtime, default=None)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A Lightning checkpoint, loaded without unpickling code.

    Raises:
        UserError: There is no such file, it is damaged, or this package did not write it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint '{path}'. `fit` writes them to runs/<name>/checkpoints/.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        before = newest(path.parent, but=path)
        other = f"The one before it is {before}: --ckpt_path={before}." if before else "Its folder holds no other."
        raise UserError(
            f"'{path}' cannot be read as a checkpoint ({str(error).strip().splitlines()[0]}). It may be damaged or cut "
            f"short. {other}"
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"'{path}' is no Lightning checkpoint. Give a .ckpt that `fit` wrote.")
    metadata_of(checkpoint, f"'{path}'")
    return checkpoint
