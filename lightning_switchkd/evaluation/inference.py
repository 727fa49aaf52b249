"""Inference on a benchmark: in batches, on one or several processes, resumable after an interruption."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.samples import SampleError
from lightning_switchkd.data.workers import start_method
from lightning_switchkd.evaluation.answer_store import AnswerLog
from lightning_switchkd.evaluation.benchmarks.items import as_question
from lightning_switchkd.models.generation import LoadedModel, Preparer, Prompts, Question
from lightning_switchkd.training.callbacks.progress import ConsoleProgress, clock

MAX_FAILED_FRACTION = 0.01
"""A higher fraction of questions that cannot be asked is an error."""


class _Questions(Dataset[tuple[int, Question | str]]):
    """Indices of questions, each with the question and its images, or with the error that prevents asking it."""

    def __init__(self, log: AnswerLog, indices: Sequence[int]) -> None:
        self.log, self.indices = log, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, Question | str]:
        index = self.indices[position]
        try:
            return index, as_question(self.log.items[index], self.log.prompts[index])
        except SampleError as error:
            return index, error.problem


@dataclass
class QuestionBatch:
    """A batch of questions.

    Attributes:
        indices: Indices of the questions.
        prompts: Inputs of the model. None if no question of the batch can be asked.
        failed: Indices of the questions that cannot be asked, with the errors.
    """

    indices: list[int]
    prompts: Prompts | None
    failed: list[tuple[int, str]]


@dataclass(frozen=True)
class _Collate:
    prepare: Preparer
    no_image: bool

    def __call__(self, entries: Sequence[tuple[int, Question | str]]) -> QuestionBatch:
        valid = [(index, question) for index, question in entries if isinstance(question, Question)]
        failed = [(index, error) for index, error in entries if isinstance(error, str)]
        prompts = self.prepare([question for _, question in valid], self.no_image) if valid else None
        return QuestionBatch([index for index, _ in valid], prompts, failed)


class Asker(L.LightningModule):
    """Module whose ``trainer.predict(Asker(…))`` asks all unanswered questions.

    Args:
        model: Model to ask.
        log: Questions, and the files of the answers.
        batch_size: Questions in a batch, on each process.
        max_new_tokens: Maximum length of an answer.
        no_image: Whether to replace every image with a blank one.
        workers: Number of processes that read images.
    """

    def __init__(
        self, model: LoadedModel, log: AnswerLog, batch_size: int, max_new_tokens: int, no_image: bool, workers: int
    ) -> None:
        super().__init__()
        self.vlm, self.loaded, self.answer_log = model.vlm, model, log
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.no_image, self.workers = no_image, workers
        self.indices: list[int] = []

    def predict_dataloader(self) -> DataLoader[Any]:
        """Load the unanswered questions. Lightning distributes them over the processes."""
        return DataLoader(
            _Questions(self.answer_log, self.indices),
            batch_size=self.batch_size,
            num_workers=self.workers,
            multiprocessing_context=start_method(self.workers),
            collate_fn=_Collate(self.loaded.prepare, self.no_image),
        )

    def transfer_batch_to_device(
        self, batch: QuestionBatch, device: torch.device, dataloader_idx: int
    ) -> QuestionBatch:
        """Move the prompts to the device."""
        return QuestionBatch(batch.indices, batch.prompts.to(device) if batch.prompts else None, batch.failed)

    def predict_step(self, batch: QuestionBatch, batch_idx: int) -> None:
        """Answer a batch, and write the answers to disk at once."""
        texts = self.loaded.answers(batch.prompts, self.max_new_tokens) if batch.prompts else []
        lines = [self.answer_log.line(index, text) for index, text in zip(batch.indices, texts, strict=True)]
        lines += [self.answer_log.line(index, "", error) for index, error in batch.failed]
        self.answer_log.append(lines)

    def on_predict_end(self) -> None:
        """Wait until all processes have answered."""
        self.trainer.strategy.barrier("answered")


class InferenceProgress(ConsoleProgress):
    """Show the model, the benchmark and the number of answers."""

    name = ""

    def show(self, text: str) -> None:
        """Print a line."""
        self.print_line(f"{self.name}: {text}")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start at the number of answers that exist."""
        assert isinstance(pl_module, Asker)
        self._total = len(pl_module.answer_log.items)
        self._first = self._answered = self._total - len(pl_module.indices)
        self._start_time = time.monotonic()
        self._next_line = self._start_time + self.seconds_between_lines
        if self.live:
            columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
            self._progress = Progress(TextColumn("{task.description}"), *columns, console=self._console, transient=True)
            self._task = self._progress.add_task(self.name, total=self._total, completed=self._first)
            self._progress.start()

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: QuestionBatch, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Count the answers of all processes."""
        num_questions = (len(batch.indices) + len(batch.failed)) * trainer.world_size
        self._answered = min(self._total, self._answered + num_questions)
        if self._progress is not None:
            self._progress.update(self._task, completed=self._answered)
        elif self._answered < self._total and self.line_is_due():
            elapsed = time.monotonic() - self._start_time
            left = elapsed / (self._answered - self._first) * (self._total - self._answered)
            self.show(f"{self._answered:,} of {self._total:,} questions, {clock(elapsed)}, {clock(left)} left")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace the bar by one line."""
        self.close()
        elapsed = clock(time.monotonic() - self._start_time)
        before = f" ({self._first:,} answered before)" if self._first else ""
        self.show(f"{self._total:,} questions{before}, {elapsed}")


def inference_trainer(accelerator: str, devices: int) -> L.Trainer:
    """Create a trainer for inference, on one device or with several processes."""
    return L.Trainer(
        accelerator=accelerator,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        callbacks=[InferenceProgress()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


def check_asked(log: AnswerLog) -> None:
    """Check that nearly all questions could be asked.

    Raises:
        UserError: More than 1 % could not. The message has the first reason.
    """
    pairs = zip(log.items, log.lines(), strict=True)
    failed = [(item, line["error"]) for item, line in pairs if line is not None and "error" in line]
    if len(failed) > MAX_FAILED_FRACTION * len(log.items):
        item, error = failed[0]
        raise UserError(
            f"{len(failed):,} of {len(log.items):,} questions could not be asked. The first, {item.id}: {error} "
            "Fix the data, then run the command again. Finished answers are kept."
        )


def ask(trainer: L.Trainer, asker: Asker, name: str) -> None:
    """Ask all unanswered questions, on all processes of a trainer.

    Args:
        trainer: Trainer from :func:`inference_trainer`.
        asker: Model and questions.
        name: Name for the progress lines.
    """
    progress = trainer.progress_bar_callback
    assert isinstance(progress, InferenceProgress)
    progress.name = name
    # Before any process writes: all processes need the same list, because Lightning synchronizes them in predict.
    trainer.strategy.barrier("begun")
    asker.indices = asker.answer_log.unanswered()
    if asker.indices:
        trainer.predict(asker, return_predictions=False)
    else:
        progress.show(f"{len(asker.answer_log.items):,} questions, all answered before")
