"""Asks a model the questions of a benchmark: in batches, on one or several processes, going on where it was stopped."""

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

from lightning_switchkd.core.files import append_jsonl, iter_jsonl, write_jsonl
from lightning_switchkd.data.samples import SampleError
from lightning_switchkd.evaluation.benchmarks.items import Item, as_question
from lightning_switchkd.models.generation import LoadedModel, Preparer, Prompts, Question

Line = dict[str, Any]


@dataclass(frozen=True)
class AnswerLog:
    """Answers as they come: each process appends to a file of its own, and at the end they become one, in order.

    Attributes:
        file: ``NAME.jsonl``, in LLaVA's format; ``NAME.asked.json`` beside it says what was asked.
        items: the questions.
        prompts: what is asked, one a question.
        asked: what else the answers depend on.
    """

    file: Path
    items: Sequence[Item]
    prompts: Sequence[str]
    asked: Mapping[str, Any]

    def parts(self) -> list[Path]:
        """Files of a run that was stopped."""
        return sorted(self.file.parent.glob(f"{self.file.stem}.part-*.jsonl"))

    def begin(self) -> None:
        """Takes away the answers of another model, or to other questions."""
        questions = hashlib.sha256(repr([(i.id, p) for i, p in zip(self.items, self.prompts, strict=True)]).encode())
        now = json.dumps({**self.asked, "questions": questions.hexdigest()[:16]}, indent=1)
        beside = self.file.with_suffix(".asked.json")
        if not beside.is_file() or beside.read_text(encoding="utf-8") != now:
            for old in (self.file, *self.parts()):
                old.unlink(missing_ok=True)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(now, encoding="utf-8")

    def lines(self) -> dict[int, Line]:
        """What is written down, by number of the question; an answer goes before a failure."""
        found: dict[int, Line] = {}
        for file in (self.file, *self.parts()):
            for _, _, line in iter_jsonl(file) if file.is_file() else ():
                if line is None:  # cut by a crash
                    continue
                place = int(line["answer_id"])
                if place not in found or "error" in found[place]:
                    found[place] = line
        return found

    def todo(self) -> list[int]:
        """Numbers of the questions without an answer, the longest prompt first."""
        found = self.lines()
        left = [n for n in range(len(self.items)) if n not in found or "error" in found[n]]
        return sorted(left, key=lambda n: -len(self.prompts[n]))

    def line(self, place: int, text: str, error: str = "") -> Line:
        """An answer, as LLaVA writes it."""
        return {
            "question_id": self.items[place].id,
            "prompt": self.prompts[place],
            "text": text,
            "answer_id": str(place),
            "model_id": self.asked["model"],
            "metadata": {},
            **({"error": error} if error else {}),
        }

    def append(self, rank: int, lines: Sequence[Line]) -> None:
        """Writes answers of a process down."""
        append_jsonl(self.file.with_suffix(f".part-{rank}.jsonl"), lines)

    def finish(self) -> None:
        """Writes all answers in the order of the questions."""
        write_jsonl(self.file, (line for _, line in sorted(self.lines().items())))
        for part in self.parts():
            part.unlink()


class _Questions(Dataset[tuple[int, Question | str]]):
    """Questions with their images read, or why they cannot be."""

    def __init__(self, log: AnswerLog, places: Sequence[int]) -> None:
        self.log, self.places = log, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[int, Question | str]:
        place = self.places[index]
        try:
            return place, as_question(self.log.items[place], self.log.prompts[place])
        except SampleError as error:
            return place, error.problem


@dataclass(frozen=True)
class _Collate:
    prepare: Preparer
    blind: bool

    def __call__(self, entries: Sequence[tuple[int, Question | str]]) -> Asked:
        whole = [(place, question) for place, question in entries if isinstance(question, Question)]
        failed = [(place, error) for place, error in entries if isinstance(error, str)]
        prompts = self.prepare([question for _, question in whole], self.blind) if whole else None
        return Asked([place for place, _ in whole], prompts, failed)


@dataclass
class Asked:
    """A batch.

    Attributes:
        places: numbers of its questions.
        prompts: ready for the model; None where no question can be asked.
        failed: numbers of the questions that cannot be, and why.
    """

    places: list[int]
    prompts: Prompts | None
    failed: list[tuple[int, str]]


class Asker(L.LightningModule):
    """``trainer.predict(Asker(…))`` asks what is not answered yet.

    Args:
        model: who is asked.
        log: what is asked, and where the answers go.
        batch_size: questions at once, on each process.
        max_new_tokens: longest answer.
        blind: blank every image.
        workers: processes that read images.
    """

    def __init__(
        self, model: LoadedModel, log: AnswerLog, batch_size: int, max_new_tokens: int, blind: bool, workers: int
    ) -> None:
        super().__init__()
        self.vlm, self.loaded, self.log_of_answers = model.vlm, model, log
        self.batch_size, self.max_new_tokens, self.blind, self.workers = batch_size, max_new_tokens, blind, workers
        self.places: list[int] = []

    def predict_dataloader(self) -> DataLoader[Any]:
        """What is left; Lightning deals it out to the processes."""
        return DataLoader(
            _Questions(self.log_of_answers, self.places),
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=_Collate(self.loaded.prepare, self.blind),
        )

    def transfer_batch_to_device(self, batch: Asked, device: torch.device, dataloader_idx: int) -> Asked:
        """Moves the prompts."""
        return Asked(batch.places, batch.prompts.to(device) if batch.prompts else None, batch.failed)

    def predict_step(self, batch: Asked, batch_idx: int) -> None:
        """Asks, and writes the answers down at once."""
        texts = self.loaded.answers(batch.prompts, self.max_new_tokens) if batch.prompts else []
        lines = [self.log_of_answers.line(place, text) for place, text in zip(batch.places, texts, strict=True)]
        lines += [self.log_of_answers.line(place, "", error) for place, error in batch.failed]
        self.log_of_answers.append(self.global_rank, lines)

    def on_predict_end(self) -> None:
        """When all are done, one process puts the answers together."""
        self.trainer.strategy.barrier("answered")
        if self.trainer.is_global_zero:
            self.log_of_answers.finish()
        self.trainer.strategy.barrier("written")


class AskingBar(TQDMProgressBar):
    """Says who is asked what; batches done, and the time left."""

    name = ""

    @property
    def predict_description(self) -> str:
        """Set before each benchmark."""
        return self.name


def asking_trainer(accelerator: str, devices: int) -> L.Trainer:
    """A trainer that only asks, on one device or several processes."""
    return L.Trainer(
        accelerator=accelerator,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        callbacks=[AskingBar()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


def ask(trainer: L.Trainer, asker: Asker, name: str) -> None:
    """Asks what is not answered yet, all processes of a trainer together.

    Args:
        trainer: of :func:`asking_trainer`.
        asker: who is asked what.
        name: for the progress bar.
    """
    for bar in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(bar, AskingBar):
            bar.name = name
    if trainer.is_global_zero:
        asker.log_of_answers.begin()
    trainer.strategy.barrier("begun")
    asker.places = asker.log_of_answers.todo()  # before any process writes: Lightning has all of them meet in predict
    if asker.places:
        trainer.predict(asker, return_predictions=False)
