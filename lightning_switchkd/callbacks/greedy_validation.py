"""Exact match of the student's greedy answers on some validation records, logged as ``val/exact_match``."""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
import torch

from lightning_switchkd.data.datamodule import LLaVADataModule
from lightning_switchkd.data.records import Record
from lightning_switchkd.evaluation.generate import Prompts, answers, batches
from lightning_switchkd.evaluation.metrics import UnitMean
from lightning_switchkd.module import SwitchKD


class GreedyValidation(L.Callback):
    """Asks the student the last question of validation records and compares with the last answer.

    Args:
        records: how many, evenly spaced over the validation data; 0 asks nothing.
        max_new_tokens: longest answer.
        batch_size: questions asked at once.
    """

    def __init__(self, records: int = 128, max_new_tokens: int = 16, batch_size: int = 64) -> None:
        self.records = records
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Every rank asks its share; sums and counts are added up."""
        assert isinstance(pl_module, SwitchKD)
        if self.records == 0 or trainer.sanity_checking:
            return
        data: LLaVADataModule = trainer.datamodule  # type: ignore[attr-defined]
        images, pad_id = data.dataset("val").images, data.processor.tokenizer.pad_token_id
        student, mean = pl_module.distiller.student, UnitMean().to(pl_module.device)
        for batch in batches(self._records(trainer, data), self.batch_size):
            ids = [data.prompter.encode_question(record) for record in batch]
            pictures = [images.read(ref) for record in batch for ref in record.images]
            prompts = Prompts.of(ids, pictures, data.pixels[0], pad_id, pl_module.device)
            said = answers(student, prompts, data.processor, data.prompter.stop_ids, self.max_new_tokens)
            right = sum(answer == record.answer.strip() for answer, record in zip(said, batch, strict=True))
            mean.update(torch.tensor(float(right), device=pl_module.device), len(batch))
        pl_module.log("val/exact_match", mean.compute(), prog_bar=True)

    def _records(self, trainer: L.Trainer, data: LLaVADataModule) -> Iterator[Record]:
        dataset = data.dataset("val")
        n = min(self.records, len(dataset))
        for i in range(trainer.global_rank, n, trainer.world_size):
            yield dataset.record(i * len(dataset) // n)
