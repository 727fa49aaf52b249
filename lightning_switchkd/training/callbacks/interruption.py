"""Ctrl-C and SIGTERM: the step is finished, everything is saved, and the run can be continued exactly."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from lightning_switchkd.core.types import Batch

HOW_TO_GO_ON = "To go on, give the same command with --ckpt_path=last (make: RESUME=auto)."


class Interrupted(SystemExit):
    """Ends a run that somebody asked to stop, after it was saved; the exit status is the shell's for that signal."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(128 + signum)
        self.message = message


class Interruption(Checkpoint):
    """Turns SIGINT and SIGTERM into a checkpoint between two optimizer steps, and ends the run there.

    The checkpoint is ``last.ckpt`` in the folder of the ``ModelCheckpoint`` that keeps it. It is written where nothing
    is halfway: after a whole accumulation window, after the validation that is due there, and not at the very end of an
    epoch. A second signal stops at once. Under SLURM, SIGTERM stays with Lightning's requeueing.

    It is a ``Checkpoint`` so that Lightning runs it after the callbacks whose state it saves.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._saved: Path | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the signals over."""
        if threading.current_thread() is not threading.main_thread():
            return
        slurm = isinstance(trainer._accelerator_connector.cluster_environment, SLURMEnvironment)
        for signum in (signal.SIGINT,) if slurm else (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._receive)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives the signals back."""
        self._give_back()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Gives the signals back."""
        self._give_back()

    def _give_back(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _receive(self, signum: int, _: FrameType | None) -> None:
        self._signal = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.write(2, b"\nFinishing this step and saving; a second signal stops at once.\n")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Saves, if asked to, where a restart finds nothing halfway."""
        if not batch.window_end or not self._asked(trainer):
            return
        loop = trainer.fit_loop.epoch_loop
        assert trainer.fit_loop._data_fetcher is not None
        halfway = loop.batch_progress.is_last_batch or loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        if not halfway:
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves, if asked to, after the validation that was due."""
        at_epoch_end = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if trainer.state.fn == TrainerFn.FITTING and not at_epoch_end and self._asked(trainer):
            self._save(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ends the run before the next step: by now the last one is logged as well."""
        if self._saved is not None:
            stop = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
            done = f"Interrupted after step {trainer.global_step} of {stop}; saved in {self._saved}."
            raise Interrupted(self._signal or signal.SIGTERM, f"{done} {HOW_TO_GO_ON}")

    def _asked(self, trainer: L.Trainer) -> bool:
        """Whether any rank got a signal; all ranks ask at the same step, at the cost of one number reduced."""
        asked = self._signal is not None
        return trainer.strategy.reduce_boolean_decision(asked, all=False) if trainer.world_size > 1 else asked

    def _save(self, trainer: L.Trainer) -> None:
        schedule = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        folder = max(schedule, key=lambda c: bool(c.save_last)).dirpath  # the one that --ckpt_path=last asks
        assert folder is not None
        path = Path(folder) / "last.ckpt"
        if trainer.is_global_zero and path.is_symlink():
            path.unlink()  # it points at a checkpoint of the schedule, which stays
        trainer.save_checkpoint(path)
        self._saved = path
