"""Log the exact match of the student's greedy answers to validation questions as ``val/exact_match``."""

from __future__ import annotations

import lightning as L
import torch

from lightning_switchkd.core.text import exact_match
from lightning_switchkd.data.samples import Sample
from lightning_switchkd.models.generation import batches
from lightning_switchkd.training.callbacks.validation_questions import ValidationQuestions, part_of
from lightning_switchkd.training.metrics import Means
from lightning_switchkd.training.module import SwitchKD


class ValGeneration(L.Callback):
    """Let the student answer the last question of validation samples, and compare with the last answer.

    Args:
        num_samples: Number of samples, evenly spaced over the validation data. 0 turns the callback off.
        max_new_tokens: Maximum length of an answer.
        batch_size: Number of questions in a batch.
    """

    def __init__(self, num_samples: int = 128, max_new_tokens: int = 16, batch_size: int = 64) -> None:
        self.num_samples = num_samples
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self._samples: list[Sample] = []

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Answer this rank's part of the questions, then add up over ranks."""
        assert isinstance(pl_module, SwitchKD)
        if self.num_samples == 0 or trainer.sanity_checking:
            return
        questions = ValidationQuestions(trainer.datamodule, pl_module.device, self.max_new_tokens)  # type: ignore[attr-defined]
        self._samples = self._samples or questions.select(self.num_samples)
        if not self._samples:
            return
        samples, num_counted = part_of(self._samples, trainer.global_rank, trainer.world_size)
        answers = [x for batch in batches(samples, self.batch_size) for x in questions.ask(pl_module.distiller, batch)]
        pairs = list(zip(answers, samples, strict=True))[:num_counted]
        correct = sum(exact_match(answer, sample.answer) for answer, sample in pairs)
        mean = Means(["exact_match"]).to(pl_module.device)
        mean.update({"exact_match": torch.tensor(correct, device=pl_module.device)}, {"exact_match": len(pairs)})
        pl_module.log("val/exact_match", mean.compute_and_reset()["exact_match"], prog_bar=True)
