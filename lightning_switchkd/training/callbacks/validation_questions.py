"""Validation samples as questions, answered during training with the same prompts and pixels as in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_switchkd.core.types import Pathway
from lightning_switchkd.data.datamodule import LLaVADataModule
from lightning_switchkd.data.samples import Sample
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.models.generation import Prompts, answers


@dataclass(frozen=True)
class ValidationQuestions:
    """The last questions of some validation samples.

    Attributes:
        data: The data module with the samples.
        device: Device of the models.
        max_new_tokens: Maximum length of an answer.
    """

    data: LLaVADataModule
    device: torch.device
    max_new_tokens: int

    def samples(self, num_samples: int, rank: int = 0, world_size: int = 1) -> list[Sample]:
        """Return a rank's part of up to ``num_samples`` samples, evenly spaced over the validation data.

        All parts have the same length, because sharded models answer on all ranks at once. The last sample of a part
        may be a repetition. :meth:`num_unique` tells how many samples to count.
        """
        dataset, num_samples = self.data.dataset("val"), self.num_unique(num_samples)
        positions = range(rank, -(-num_samples // world_size) * world_size, world_size)
        return [dataset.sample(min(i, num_samples - 1) * len(dataset) // num_samples) for i in positions]

    def num_unique(self, num_samples: int, rank: int = 0, world_size: int = 1) -> int:
        """Return how many samples of a rank's part are not repetitions."""
        return len(range(rank, min(num_samples, len(self.data.dataset("val"))), world_size))

    def ask(self, distiller: Distiller, samples: Sequence[Sample], pathway: Pathway = "student") -> list[str]:
        """Return the greedy answers to the samples' last questions.

        Args:
            distiller: The models.
            samples: The samples.
            pathway: The pathway that answers. The switch is the teacher behind the student's vision encoder.
        """
        prompts = Prompts.of(
            [self.data.prompter.encode_question(sample) for sample in samples],
            [image for sample in samples for image in sample.load_images()],
            self.data.pixels[-1 if pathway == "teacher" else 0],
            self.data.processor.tokenizer.pad_token_id,
            self.device,
        )
        vlm = distiller.student if pathway == "student" else distiller.frozen_teacher
        encoder = vlm if pathway == "teacher" else distiller.student
        settings = self.data.processor, self.data.prompter.stop_ids, self.max_new_tokens, encoder
        return distiller.run(lambda: answers(vlm, prompts, *settings))
