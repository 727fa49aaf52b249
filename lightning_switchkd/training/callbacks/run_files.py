"""Files in a run folder that document the run and reproduce it, and the archive of earlier runs."""

from __future__ import annotations

import json
import platform
import shutil
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import TrainerFn

from lightning_switchkd import __version__
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.renamed import upgrade_config
from lightning_switchkd.core.runs import (
    changed_settings,
    command_line,
    git,
    hyperparameters,
    read_config,
    relative_to_root,
)
from lightning_switchkd.core.text import program
from lightning_switchkd.training.checkpoints.io import read_checkpoint
from lightning_switchkd.training.loggers import log_text, resume_logs

PREVIOUS = "previous"
"""Folder, inside a run folder, of the earlier runs."""

RESULTS = ("metrics.csv", "checkpoints", "student")
"""Files of a run that has logged or saved something."""

HEADER = """\
# Complete configuration of this run: all files, flags and defaults. To reproduce the run, in the folder it started in:
#   {program} fit --config {folder}/config.yaml --trainer.default_root_dir=ANOTHER_FOLDER
# Packages, git commit and the original command: environment.json{patch}
"""


class RunFiles(SaveConfigCallback):
    """Write ``config.yaml``, ``environment.json`` and, if git has uncommitted changes, ``uncommitted.patch``.

    TensorBoard shows the configuration as text, and every logger but ``metrics.csv`` receives the hyperparameters. A
    resumed run continues its logs (``loggers.resume_logs``) and prints which settings have changed.
    """

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Collect the configuration. Lightning calls this first, on rank 0."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        self._config = relative_to_root(config, str(trainer.default_root_dir))
        self._text = yaml.safe_dump(self._config, sort_keys=False, width=100, allow_unicode=True)
        if stage == TrainerFn.FITTING and self.config.ckpt_path is not None:
            self._print_changes(Path(self.config.ckpt_path).parent.parent)

    def _print_changes(self, run: Path) -> None:
        if (run / "config.yaml").is_file():
            stored = upgrade_config(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
            if changes := changed_settings(stored, self._config):
                print(f"Changed since the checkpoint: {', '.join(changes)}.")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the files, and pass the configuration to the loggers. A start that failed has changed nothing."""
        resume_logs(trainer)
        if not trainer.is_global_zero:
            return
        self._write(Path(trainer.default_root_dir), describe_environment(trainer))
        log_text(trainer, "config", f"```yaml\n{self._text}\n```")
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):
                logger.log_hyperparams(hyperparameters(self._config))

    def _write(self, folder: Path, environment: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        diff = git("diff", "HEAD")
        patch = ". Uncommitted changes: uncommitted.patch" if diff else ""
        header = HEADER.format(program=program(), folder=folder, patch=patch)
        (folder / "config.yaml").write_text(header + self._text, encoding="utf-8")
        (folder / "environment.json").write_text(f"{json.dumps(environment, indent=2)}\n", encoding="utf-8")
        if diff:
            (folder / "uncommitted.patch").write_text(f"{diff}\n", encoding="utf-8")


def check_not_finished(trainer: L.Trainer, ckpt_path: Path, config: dict[str, Any]) -> None:
    """Check that a resumed run has steps left, if settings that decide its result have changed.

    Args:
        trainer: Trainer of the resumed run.
        ckpt_path: Checkpoint to resume from.
        config: Configuration of the resumed run.

    Raises:
        UserError: Nothing would be trained with the changed settings.
    """
    run = ckpt_path.parent.parent
    if not (run / "config.yaml").is_file():
        return
    checkpoint = read_checkpoint(ckpt_path)
    loop = checkpoint["loops"]["fit_loop"]
    epochs = loop["epoch_progress"]["current"]["completed"] if loop["epoch_loop.batch_progress"]["is_last_batch"] else 0
    if 0 <= trainer.max_steps <= checkpoint["global_step"] or 0 <= (trainer.max_epochs or -1) <= epochs:
        flat = (hyperparameters(c).items() for c in (read_config(run), config))
        stored, current = ({name.replace("/", "."): value for name, value in items} for items in flat)
        if changes := changed_settings(stored, current):
            raise UserError(
                f"{ckpt_path} is the end of its run, so nothing would be trained with the changed settings: "
                f"{', '.join(changes)}. Use another run folder (RUN=, --output), or raise trainer.max_steps or "
                "trainer.max_epochs."
            )


def describe_environment(trainer: L.Trainer) -> dict[str, Any]:
    """Return command, time, versions, hardware and git state, as plain values."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": command_line(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "lightning_switchkd": __version__,
        "git": {"commit": git("rev-parse", "HEAD"), "changed": (git("status", "--porcelain") or "").splitlines()},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": cuda or [platform.processor() or platform.machine()],
        "processes": trainer.world_size,
        "packages": {d.metadata["Name"]: d.version for d in sorted(distributions(), key=lambda d: d.metadata["Name"])},
    }


class PreviousRun(L.Callback):
    """Archive an earlier run in the run folder, and put it back if the new run fails before its first step.

    The files move to ``previous/1``, ``previous/2``, ..., so that two runs never mix. The few files of a run that
    failed before it logged or saved anything stay, and are overwritten.

    Args:
        trainer: Its ``default_root_dir`` is the run folder.

    Raises:
        UserError: The folder cannot be written.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self.folder = Path(trainer.default_root_dir)
        self.archive: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if trainer.is_global_zero and any((self.folder / name).exists() for name in RESULTS):
                self.archive = self._move_to_archive()
        except OSError as error:
            raise UserError(
                f"trainer.default_root_dir: cannot write to {self.folder} ({error}). Choose another folder (RUN=...)."
            ) from None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the archive from now on."""
        self.archive = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Put the earlier run back."""
        if self.archive is None:
            return
        for path in self.folder.iterdir():
            if path.name != PREVIOUS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self.archive.iterdir():
            path.rename(self.folder / path.name)
        self.archive.rmdir()
        if not any(self.archive.parent.iterdir()):
            self.archive.parent.rmdir()
        print(f"Moved the earlier run back to {self.folder}.")
        self.archive = None

    def _move_to_archive(self) -> Path:
        number = 1
        while (self.folder / PREVIOUS / str(number)).exists():
            number += 1
        archive = self.folder / PREVIOUS / str(number)
        archive.mkdir(parents=True)
        for path in self.folder.iterdir():
            if path.name != PREVIOUS:
                path.rename(archive / path.name)
        print(f"Moved the earlier run in {self.folder} to {archive}. To resume a run instead, set --ckpt_path=last.")
        return archive
