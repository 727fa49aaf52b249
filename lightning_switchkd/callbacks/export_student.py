"""Writes the student as a Hugging Face folder when training ends."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from lightning_switchkd.checkpoints.export import write_student
from lightning_switchkd.module import SwitchKD


class ExportStudent(L.Callback):
    """Writes ``<run>/<folder>`` at the end of `fit`, so that no further command is needed.

    Args:
        folder: name of the folder inside the trainer's ``default_root_dir``.
    """

    def __init__(self, folder: str = "student") -> None:
        self.folder = folder

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exports on rank 0."""
        if not trainer.is_global_zero or trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]
            return
        assert isinstance(pl_module, SwitchKD)
        write_student(
            pl_module.distiller.student,
            trainer.datamodule.processor,  # type: ignore[attr-defined]
            Path(trainer.default_root_dir) / self.folder,
            pl_module.record(),
        )
