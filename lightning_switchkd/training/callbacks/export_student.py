"""Export the student as a Hugging Face folder when training ends."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from lightning_switchkd.core.text import program
from lightning_switchkd.models.export import write_student
from lightning_switchkd.training.checkpoints.metadata import student_weights
from lightning_switchkd.training.module import SwitchKD


class ExportStudent(L.Callback):
    """Write ``<run>/<folder>`` at the end of `fit`.

    Args:
        folder: Name of the folder inside the trainer's ``default_root_dir``.
    """

    def __init__(self, folder: str = "student") -> None:
        self.folder = folder

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gather sharded weights and export them on rank 0."""
        if trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]
            return
        assert isinstance(pl_module, SwitchKD)
        state = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            metadata = pl_module.metadata()
            run = Path(trainer.default_root_dir)
            folder = run / self.folder
            data = trainer.datamodule  # type: ignore[attr-defined]
            write_student(student_weights(state, metadata["lora_scale"]), data.processor, folder, metadata)
            is_run = (run / "config.yaml").is_file()
            models = f"--run {run}" if is_run else f"--models.student={folder} --output {run / 'report'}"
            questions = "" if is_run and data.paths("test") else " --benchmarks '[FILE]' --image_root FOLDER"
            print(
                f"Student written to {folder}. Ask it, or evaluate it:\n"
                f"  {program()} generate --model {folder} --image FILE --question TEXT\n"
                f"  {program()} evaluate {models}{questions}"
            )
        trainer.strategy.barrier()  # after the run, any rank may read the folder
