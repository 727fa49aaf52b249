"""Loggers that a resumed run continues, and helpers for what TensorBoard shows besides scalars."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger
from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

MAIN_METRICS = re.compile(r"(train|val|test)/(loss/.+|[^/]+)")
"""Losses and scores, which TensorBoard shows first."""

MAIN_SETTINGS = {
    "method": "_method",
    "model/objective/class_path": "_objective",
    "model/lr": "_lr",
    "data/batch_size": "_batch_size",
}
"""Settings that TensorBoard's HPARAMS shows first, because it sorts by name."""

FINAL_METRICS = ("train/loss/total", "val/loss/total", "val/accuracy", "val/exact_match")
"""Metrics that HPARAMS shows next to the settings."""


class _ResumableWriter(ExperimentWriter):
    """Keep the rows of an existing file, which Lightning's writer deletes."""

    def _check_log_dir_exists(self) -> None:
        if self._fs.isfile(self.metrics_file_path):
            with self._fs.open(self.metrics_file_path, "r", newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])

    def drop_from(self, step: int) -> None:
        """Delete the rows of this step and later ones."""
        if not self._fs.isfile(self.metrics_file_path):
            return
        with self._fs.open(self.metrics_file_path, "r", newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]
        with self._fs.open(self.metrics_file_path, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


class CSVLogger(LightningCSVLogger):
    """Write ``metrics.csv``. Every row is written at once, and a resumed run appends to the file.

    Args:
        save_dir: Folder of the file.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> _ResumableWriter:
        """The writer of the file."""
        if not isinstance(self._experiment, _ResumableWriter):
            self._experiment = _ResumableWriter(log_dir=self.log_dir)
        return self._experiment


class TensorBoardLogger(LightningTensorBoardLogger):
    """Log to TensorBoard with losses and scores on top.

    All other metrics get a tag of :func:`tensorboard_tag`. ``epoch`` is not logged, nor are counts of skipped samples
    while they are 0.

    Args:
        save_dir: Folder of the event files.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars."""
        shown = {
            tensorboard_tag(name): value
            for name, value in metrics.items()
            if name != "epoch" and (value or not name.startswith("data/skipped_samples"))
        }
        super().log_metrics(shown, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Show the settings in HPARAMS. The metrics next to them are the latest scalars, also of an unfinished run."""
        named = {MAIN_SETTINGS.get(name, name): value for name, value in params.items()}
        experiment, start, _ = hparams(named, dict.fromkeys(FINAL_METRICS))
        for summary in (experiment, start):
            self.experiment.file_writer.add_summary(summary)

    @rank_zero_only
    def save(self) -> None:
        """Write buffered events. Unlike the base class, write no hparams.yaml: the settings are in config.yaml."""
        self.experiment.flush()


def tensorboard_tag(name: str) -> str:
    """Return the name of a metric in TensorBoard, which sorts groups by name: details follow losses and scores.

    >>> tensorboard_tag("val/accuracy"), tensorboard_tag("train/dbild/align/overlap")
    ('val/accuracy', 'watch_train/dbild/align/overlap')
    """
    return name if MAIN_METRICS.fullmatch(name) else f"watch_{name}"


@rank_zero_only
def resume_logs(trainer: L.Trainer) -> None:
    """Delete what an interrupted run logged after the checkpoint that this run resumes from. At step 0 delete all."""
    step = trainer.global_step
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            logger.experiment.drop_from(step)
    for writer in tensorboards(trainer):
        if step and writer.file_writer is not None:  # TensorBoard then hides earlier events of this step and later ones
            writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step=step)


def tensorboards(trainer: L.Trainer) -> Iterator[SummaryWriter]:
    """Yield the TensorBoard writers of a run. Other ranks than 0 have none."""
    if trainer.is_global_zero:
        yield from (logger.experiment for logger in trainer.loggers if isinstance(logger, LightningTensorBoardLogger))


def log_counts(trainer: L.Trainer, tag: str, counts: Tensor) -> None:
    """Log a histogram of small integers to TensorBoard.

    Args:
        trainer: The trainer with the loggers.
        tag: Name of the histogram.
        counts: ``[L]``. Entry i counts how often the integer i occurred.
    """
    observed = counts.nonzero()[:, 0].tolist()
    if not observed:
        return
    smallest, largest = observed[0], observed[-1]
    integers = range(smallest, largest + 1)
    frequencies = counts[smallest : largest + 1].tolist()
    for writer in tensorboards(trainer):
        writer.add_histogram_raw(
            tensorboard_tag(tag),
            min=smallest,
            max=largest,
            num=sum(frequencies),
            sum=sum(i * n for i, n in zip(integers, frequencies, strict=True)),
            sum_squares=sum(i**2 * n for i, n in zip(integers, frequencies, strict=True)),
            bucket_limits=[i + 0.5 for i in integers],
            bucket_counts=frequencies,
            global_step=trainer.global_step,
        )


def log_figure(trainer: L.Trainer, tag: str, figure: Any) -> None:
    """Log a matplotlib figure to TensorBoard and to every logger that takes images (Weights & Biases)."""
    for writer in tensorboards(trainer):
        writer.add_figure(tag, figure, global_step=trainer.global_step, close=False)
    for logger in trainer.loggers:
        if trainer.is_global_zero and hasattr(logger, "log_image"):
            logger.log_image(key=tag, images=[figure])


def log_text(trainer: L.Trainer, tag: str, markdown: str) -> None:
    """Log a Markdown text to TensorBoard."""
    for writer in tensorboards(trainer):
        writer.add_text(tag, markdown, global_step=trainer.global_step)
