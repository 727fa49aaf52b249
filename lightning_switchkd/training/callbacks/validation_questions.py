"""Validation samples as questions, answered during training with the same prompts and pixels as in training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_switchkd.core.types import Pathway
from lightning_switchkd.data.datamodule import LLaVADataModule
from lightning_switchkd.data.samples import Sample, SampleError
from lightning_switchkd.distillation.distiller import Distiller
from lightning_switchkd.models.generation import Prompts, answers

log = logging.getLogger(__name__)


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

    def select(self, num_samples: int) -> list[Sample]:
        """Return up to ``num_samples`` samples, evenly spaced over the validation data. Invalid ones are skipped."""
        dataset, selected, invalid = self.data.dataset("val"), list[Sample](), list[SampleError]()
        indices = dataset.samples.tolist()
        num_samples = min(num_samples, len(indices))
        for i in range(num_samples):
            try:
                selected.append(dataset.question(indices[i * len(indices) // num_samples]))
            except SampleError as error:
                invalid.append(error)
        if invalid:
            message = "Skipped %d of %d validation questions that cannot be asked. The first: %s"
            log.warning(message, len(invalid), num_samples, invalid[0])
        return selected

    def ask(self, distiller: Distiller, samples: Sequence[Sample], pathway: Pathway = "student") -> list[str]:
        """Return the greedy answers to the samples' last questions.

        Args:
            distiller: The models.
            samples: The samples.
            pathway: The pathway that answers. The switch is the teacher behind the student's vision encoder.
        """
        prompts = Prompts.of(
            [self.data.prompter.encode_question(sample) for sample in samples],
            self.data.pixels[-1 if pathway == "teacher" else 0].stack(
                [image for sample in samples for image in sample.load_images()]
            ),
            self.data.processor.tokenizer.pad_token_id,
            self.device,
        )
        vlm = distiller.student if pathway == "student" else distiller.frozen_teacher
        encoder = vlm if pathway == "teacher" else distiller.student
        settings = self.data.processor, self.data.prompter.stop_ids, self.max_new_tokens, encoder
        return distiller.run(lambda: answers(vlm, prompts, *settings))


def part_of(samples: Sequence[Sample], rank: int, world_size: int) -> tuple[list[Sample], int]:
    """Return a rank's part of the samples, and how many of them to count.

    All parts have the same length, because sharded models answer on all ranks at once. The last sample of a part may be
    a repetition, which does not count.
    """
    padded = range(rank, -(-len(samples) // world_size) * world_size, world_size)
    return [samples[min(i, len(samples) - 1)] for i in padded], len(range(rank, len(samples), world_size))
