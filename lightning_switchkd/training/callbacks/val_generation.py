"""Exact match of the student's greedy answers on some validation records, logged as ``val/exact_match``."""

from __future__ import annotations

import lightning as L
import torch

from lightning_switchkd.models.generation import batches
from lightning_switchkd.training.callbacks.validation_questions import ValidationQuestions
from lightning_switchkd.training.metrics import Means
from lightning_switchkd.training.module import SwitchKD


class ValGeneration(L.Callback):
    """Asks the student the last question of validation records and compares with the last answer.

    Args:
        records: how many, evenly spaced over the validation data; 0 asks nothing.
        max_new_tokens: longest answer.
        batch_size: questions asked at once.
    """

    def __init__(self, num_samples: int = 128, max_new_tokens: int = 16, batch_size: int = 64) -> None:
        self.num_samples = num_samples
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Every rank asks its share; sums and counts are added up."""
        assert isinstance(pl_module, SwitchKD)
        if self.num_samples == 0 or trainer.sanity_checking:
            return
        questions = ValidationQuestions(trainer.datamodule, pl_module.device, self.max_new_tokens)  # type: ignore[attr-defined]
        mean = Means(["exact_match"]).to(pl_module.device)
        share = self.num_samples, trainer.global_rank, trainer.world_size
        asked = questions.samples(*share)
        said = [x for batch in batches(asked, self.batch_size) for x in questions.ask(pl_module.distiller, batch)]
        pairs = list(zip(said, asked, strict=True))[: questions.number(*share)]
        right = sum(answer == sample.answer.strip() for answer, sample in pairs)
        mean.update({"exact_match": torch.tensor(right, device=pl_module.device)}, {"exact_match": len(pairs)})
        pl_module.log("val/exact_match", mean.compute_and_reset()["exact_match"], prog_bar=True)
