"""Validation records as questions, asked in the midst of training with the training's own ids and pixels."""

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
    """The last question of some validation records.

    Attributes:
        data: where they come from.
        device: where the models are.
        max_new_tokens: longest answer.
    """

    data: LLaVADataModule
    device: torch.device
    max_new_tokens: int

    def samples(self, count: int, rank: int = 0, world_size: int = 1) -> list[Sample]:
        """At most ``count`` records, evenly spaced over the validation data; a rank's share of them.

        All shares are equally long, for sharded models answer together: the last may repeat, beyond :meth:`number`.
        """
        dataset, count = self.data.dataset("val"), self.number(count)
        asked = range(rank, -(-count // world_size) * world_size, world_size)
        return [dataset.sample(min(i, count - 1) * len(dataset) // count) for i in asked]

    def number(self, count: int, rank: int = 0, world_size: int = 1) -> int:
        """How many records of a rank's share are no repetition."""
        return len(range(rank, min(count, len(self.data.dataset("val"))), world_size))

    def ask(self, distiller: Distiller, samples: Sequence[Sample], pathway: Pathway = "student") -> list[str]:
        """Greedy answers.

        Args:
            distiller: holds the models.
            records: what is asked.
            side: the pathway that answers; the switch's is the teacher behind the student's vision encoder.
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
