"""Ctrl-C and SIGTERM: finish the step, save a checkpoint and end the run, so that it resumes exactly."""

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

from lightning_switchkd.core.errors import Interrupted
from lightning_switchkd.core.types import Batch

HOW_TO_RESUME = "To resume, repeat the command with --ckpt_path=last. `make` resumes by itself."


class Interruption(Checkpoint):
    """Turn SIGINT and SIGTERM into a checkpoint between two optimizer steps, and end the run there.

    The checkpoint is ``last.ckpt`` in the folder of the ``ModelCheckpoint`` that keeps it. It is written after a whole
    accumulation window and after the validation that is due there, but not at the very end of an epoch. A second signal
    stops at once. Under SLURM, Lightning's requeueing handles SIGTERM.

    The base class ``Checkpoint`` makes Lightning run this callback after those whose state it saves.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._saved: Path | None = None
        self._previous_handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the signal handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        slurm = isinstance(trainer._accelerator_connector.cluster_environment, SLURMEnvironment)
        for signum in (signal.SIGINT,) if slurm else (signal.SIGINT, signal.SIGTERM):
            self._previous_handlers[signum] = signal.signal(signum, self._receive)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the previous signal handlers."""
        self._restore_handlers()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the previous signal handlers."""
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)
        self._previous_handlers = {}

    def _receive(self, signum: int, _: FrameType | None) -> None:
        self._signal = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.write(2, b"\nFinishing this step, then saving a checkpoint. A second signal stops at once.\n")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save after a signal, unless a validation or the end of the epoch follows."""
        if not batch.window_end or not self._stop_requested(trainer):
            return
        loop = trainer.fit_loop.epoch_loop
        assert trainer.fit_loop._data_fetcher is not None
        if not (loop.batch_progress.is_last_batch or loop._should_check_val_fx(trainer.fit_loop._data_fetcher)):
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after a signal, once the validation is complete."""
        at_epoch_end = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if trainer.state.fn == TrainerFn.FITTING and not at_epoch_end and self._stop_requested(trainer):
            self._save(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End the run before the next step. By now the last step is logged.

        Raises:
            Interrupted: The run was interrupted, and its checkpoint is saved.
        """
        if self._saved is not None:
            stop = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
            done = f"Interrupted after step {trainer.global_step} of {stop}. Checkpoint saved in {self._saved}."
            raise Interrupted(self._signal or signal.SIGTERM, f"{done} {HOW_TO_RESUME}")

    def _stop_requested(self, trainer: L.Trainer) -> bool:
        """Return whether any rank received a signal. All ranks reduce one number at the same step."""
        received = self._signal is not None
        return trainer.strategy.reduce_boolean_decision(received, all=False) if trainer.world_size > 1 else received

    def _save(self, trainer: L.Trainer) -> None:
        callbacks = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        folder = max(callbacks, key=lambda c: bool(c.save_last)).dirpath  # the folder that --ckpt_path=last reads
        assert folder is not None
        path = Path(folder) / "last.ckpt"
        if trainer.is_global_zero and path.is_symlink():
            path.unlink()  # keep the checkpoint that the link points to
        trainer.save_checkpoint(path, weights_only=False)
        self._saved = path
