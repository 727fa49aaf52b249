"""Validation records as questions, asked in the midst of training with the training's own ids and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_switchkd.data.datamodule import LLaVADataModule
from lightning_switchkd.data.records import Record
from lightning_switchkd.evaluation.generate import Prompts, answers
from lightning_switchkd.vlm.seams import VLM


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

    def records(self, count: int, rank: int = 0, world_size: int = 1) -> list[Record]:
        """At most ``count`` records, evenly spaced over the validation data; a rank's share of them."""
        dataset = self.data.dataset("val")
        count = min(count, len(dataset))
        return [dataset.record(i * len(dataset) // count) for i in range(rank, count, world_size)]

    def ask(self, vlm: VLM, records: Sequence[Record], encoder: VLM | None = None, teacher: bool = False) -> list[str]:
        """Greedy answers of a model.

        Args:
            vlm: projects and decodes.
            records: what is asked.
            encoder: encodes the images; None is ``vlm`` itself.
            teacher: prepare the images by the teacher's processor, where that differs.
        """
        prompts = Prompts.of(
            [self.data.prompter.encode_question(record) for record in records],
            [image for record in records for image in record.pictures()],
            self.data.pixels[-1 if teacher else 0],
            self.data.processor.tokenizer.pad_token_id,
            self.device,
        )
        stop_ids = self.data.prompter.stop_ids
        return answers(vlm, prompts, self.data.processor, stop_ids, self.max_new_tokens, encoder)
