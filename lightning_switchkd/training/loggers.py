"""Loggers that go on where an interrupted run stopped, and what TensorBoard shows beside scalars."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


class _Continued(ExperimentWriter):
    """Keeps the rows that are there; Lightning's deletes them."""

    def _check_log_dir_exists(self) -> None:
        if self._fs.isfile(self.metrics_file_path):
            with self._fs.open(self.metrics_file_path, "r", newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])

    def forget_from(self, step: int) -> None:
        """Drops the rows of steps that will be taken again."""
        if not self._fs.isfile(self.metrics_file_path):
            return
        with self._fs.open(self.metrics_file_path, "r", newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
        with self._fs.open(self.metrics_file_path, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


class CSVLogger(LightningCSVLogger):
    """``metrics.csv`` that a resumed run continues instead of starting anew; every row is on disk at once.

    Args:
        save_dir: folder of the file.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> _Continued:
        """What writes the rows."""
        if not isinstance(self._experiment, _Continued):
            self._experiment = _Continued(log_dir=self.log_dir)
        return self._experiment


@rank_zero_only
def resume_logs(trainer: L.Trainer) -> None:
    """Drops what an interrupted run logged after the checkpoint that this one starts from (all of it at step 0)."""
    step = trainer.global_step
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            logger.experiment.forget_from(step)
    for writer in tensorboards(trainer):
        if step and writer.file_writer is not None:  # TensorBoard then leaves out what came at this step and later
            writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step=step)


def tensorboards(trainer: L.Trainer) -> Iterator[SummaryWriter]:
    """The TensorBoard writers of a run, on rank 0; none elsewhere."""
    if trainer.is_global_zero:
        yield from (logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))


def log_counts(trainer: L.Trainer, name: str, counts: Tensor) -> None:
    """A histogram of small integers from how often each occurred.

    Args:
        trainer: whose TensorBoard loggers show it.
        name: its tag.
        counts: ``[L]``, how often the value 0, 1, ... occurred.
    """
    values = counts.nonzero()[:, 0].tolist()
    some = counts[values[0] : values[-1] + 1].tolist() if values else []
    pairs = list(enumerate(some, start=values[0] if values else 0))
    for writer in tensorboards(trainer):
        if pairs:
            writer.add_histogram_raw(
                name,
                min=values[0],
                max=values[-1],
                num=sum(some),
                sum=sum(value * count for value, count in pairs),
                sum_squares=sum(value**2 * count for value, count in pairs),
                bucket_limits=[value + 0.5 for value, _ in pairs],
                bucket_counts=some,
                global_step=trainer.global_step,
            )


def log_figure(trainer: L.Trainer, name: str, figure: Any) -> None:
    """A matplotlib figure, in TensorBoard and in every logger that takes images (Weights & Biases)."""
    for writer in tensorboards(trainer):
        writer.add_figure(name, figure, global_step=trainer.global_step, close=False)
    for logger in trainer.loggers:
        if trainer.is_global_zero and hasattr(logger, "log_image"):
            logger.log_image(key=name, images=[figure])


def log_text(trainer: L.Trainer, name: str, markdown: str) -> None:
    """A page of Markdown in TensorBoard."""
    for writer in tensorboards(trainer):
        writer.add_text(name, markdown, global_step=trainer.global_step)
