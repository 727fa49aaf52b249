"""Inference on a benchmark: in batches, on one or several processes, resumable after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch.utils.data import DataLoader, Dataset

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import append_jsonl, iter_jsonl, write_jsonl
from lightning_switchkd.data.samples import SampleError
from lightning_switchkd.evaluation.benchmarks.items import Item, as_question
from lightning_switchkd.models.generation import LoadedModel, Preparer, Prompts, Question

Line = dict[str, Any]

MAX_FAILED_FRACTION = 0.01
"""A higher fraction of questions that cannot be asked is an error."""


@dataclass(frozen=True)
class AnswerLog:
    """Answers on disk. Each process appends to its own file. At the end the files are merged in the questions' order.

    Attributes:
        file: ``NAME.jsonl`` in LLaVA's format. ``NAME.asked.json`` next to it records the settings.
        items: The questions.
        prompts: One prompt per question.
        settings: Everything else that the answers depend on.
    """

    file: Path
    items: Sequence[Item]
    prompts: Sequence[str]
    settings: Mapping[str, Any]

    def parts(self) -> list[Path]:
        """List the files of processes that have not been merged yet."""
        return sorted(self.file.parent.glob(f"{self.file.stem}.part-*.jsonl"))

    def begin(self) -> None:
        """Record the settings. Delete the answers of other settings, such as another model or other questions."""
        questions = hashlib.sha256(repr([(i.id, p) for i, p in zip(self.items, self.prompts, strict=True)]).encode())
        settings = json.dumps({**self.settings, "questions": questions.hexdigest()[:16]}, indent=1)
        settings_file = self.file.with_suffix(".asked.json")
        if not settings_file.is_file() or settings_file.read_text(encoding="utf-8") != settings:
            for old in (self.file, *self.parts()):
                old.unlink(missing_ok=True)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        settings_file.write_text(settings, encoding="utf-8")

    def lines(self) -> dict[int, Line]:
        """Return the lines on disk by index of the question. An answer takes precedence over an error."""
        lines: dict[int, Line] = {}
        for file in (self.file, *self.parts()):
            for _, _, line in iter_jsonl(file) if file.is_file() else ():
                if line is None:  # cut by a crash
                    continue
                index = int(line["answer_id"])
                if index not in lines or "error" in lines[index]:
                    lines[index] = line
        return lines

    def unanswered(self) -> list[int]:
        """Return the indices of the questions without an answer, longest prompt first."""
        lines = self.lines()
        indices = [i for i in range(len(self.items)) if i not in lines or "error" in lines[i]]
        return sorted(indices, key=lambda i: -len(self.prompts[i]))

    def line(self, index: int, text: str, error: str = "") -> Line:
        """Build a line in LLaVA's format."""
        return {
            "question_id": self.items[index].id,
            "prompt": self.prompts[index],
            "text": text,
            "answer_id": str(index),
            "model_id": self.settings["model"],
            "metadata": {},
            **({"error": error} if error else {}),
        }

    def append(self, rank: int, lines: Sequence[Line]) -> None:
        """Append lines of a process."""
        append_jsonl(self.file.with_suffix(f".part-{rank}.jsonl"), lines)

    def finish(self) -> None:
        """Merge all lines in the order of the questions."""
        write_jsonl(self.file, (line for _, line in sorted(self.lines().items())))
        for part in self.parts():
            part.unlink()


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
        self.answer_log.append(self.global_rank, lines)

    def on_predict_end(self) -> None:
        """Let one process merge the answers when all processes have finished."""
        self.trainer.strategy.barrier("answered")
        if self.trainer.is_global_zero:
            self.answer_log.finish()
        self.trainer.strategy.barrier("written")


class InferenceBar(TQDMProgressBar):
    """Progress bar that shows the model and the benchmark."""

    name = ""

    @property
    def predict_description(self) -> str:
        """Return the name, which :func:`ask` sets for each benchmark."""
        return self.name


def inference_trainer(accelerator: str, devices: int) -> L.Trainer:
    """Create a trainer for inference, on one device or with several processes."""
    return L.Trainer(
        accelerator=accelerator,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        callbacks=[InferenceBar()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


def check_asked(log: AnswerLog) -> None:
    """Check that nearly all questions could be asked.

    Raises:
        UserError: More than 1 % could not. The message has the first reason.
    """
    failed = [line for _, line in sorted(log.lines().items()) if "error" in line]
    if len(failed) > MAX_FAILED_FRACTION * len(log.items):
        raise UserError(
            f"{len(failed):,} of {len(log.items):,} questions could not be asked ({log.file}). The first, "
            f"{failed[0]['question_id']}: {failed[0]['error']} Fix the data, then run the command again. Finished "
            "answers are kept."
        )


def ask(trainer: L.Trainer, asker: Asker, name: str) -> None:
    """Ask all unanswered questions, on all processes of a trainer.

    Args:
        trainer: Trainer from :func:`inference_trainer`.
        asker: Model and questions.
        name: Name for the progress bar.
    """
    for bar in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(bar, InferenceBar):
            bar.name = name
    if trainer.is_global_zero:
        asker.answer_log.begin()
    trainer.strategy.barrier("begun")
    # Before any process writes: all processes need the same list, because Lightning synchronizes them in predict.
    asker.indices = asker.answer_log.unanswered()
    if asker.indices:
        trainer.predict(asker, return_predictions=False)
