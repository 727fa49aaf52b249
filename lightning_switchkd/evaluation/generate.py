"""Greedy answers of a model to questions about images; the one place that decodes, in training and after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaProcessor

from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.processor import load_processor
from lightning_switchkd.data.records import IMAGE_TOKEN, Record, Turn
from lightning_switchkd.errors import UserError
from lightning_switchkd.vlm.build import VLMSpec, build
from lightning_switchkd.vlm.seams import VLM


@dataclass(frozen=True)
class Question:
    """A conversation that waits for its last answer.

    Attributes:
        turns: everything before that answer; ``<image>`` stands for the next image.
        images: decoded images, in the order of their placeholders.
        answer: what is right; empty where nobody knows.
        source: group that scores are reported by.
        id: the record's own id.
    """

    turns: tuple[Turn, ...]
    images: tuple[Image.Image, ...]
    answer: str = ""
    source: str = ""
    id: str = ""

    @classmethod
    def of_record(cls, record: Record, images: ImageFolder) -> Question:
        """The record's last question, its images read."""
        read = tuple(images.read(ref) for ref in record.images)
        return cls(record.turns[:-1], read, record.answer, record.source, record.id)


@dataclass(frozen=True)
class Prompts:
    """Questions made ready for a model: left-padded, so that all answers begin at one place.

    Attributes:
        input_ids: ``[B, T]`` int64.
        attention_mask: ``[B, T]`` int64.
        pixel_values: ``[M, 3, H, W]``; one blank image where no question has any.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor

    @classmethod
    def of(cls, questions: Sequence[Question], processor: LlavaProcessor, device: torch.device | str) -> Prompts:
        """Writes the questions with the processor's chat template."""
        texts = [
            processor.apply_chat_template(
                [{"role": turn.role, "content": turn.text} for turn in question.turns], add_generation_prompt=True
            )
            for question in questions
        ]
        images = [image.convert("RGB") for question in questions for image in question.images]
        inputs = processor(
            text=texts, images=images or None, return_tensors="pt", padding=True, padding_side="left",
            add_special_tokens=False,
        ).to(device)  # fmt: skip
        if images:
            pixel_values = inputs["pixel_values"]
        else:
            pixel_values = torch.zeros_like(
                processor.image_processor(Image.new("RGB", (8, 8)), return_tensors="pt").pixel_values
            )
        return cls(inputs["input_ids"], inputs["attention_mask"], pixel_values.to(device))


@torch.no_grad()
def answers(
    vlm: VLM,
    prompts: Prompts,
    processor: LlavaProcessor,
    stop_ids: list[int],
    max_new_tokens: int,
    features: Tensor | None = None,
) -> list[str]:
    """Greedy answers, stripped of white space.

    Args:
        vlm: the model that projects and decodes.
        prompts: what is asked.
        processor: decodes ids to text.
        stop_ids: ids that end an answer.
        max_new_tokens: longest answer.
        features: ``[M, P, H_v]`` vision features of another encoder (the visual switch), or None for the model's own.
    """
    if features is None:
        features = vlm.encode_image(prompts.pixel_values.to(next(vlm.parameters()).dtype))
    generated = vlm.generate(prompts.input_ids, prompts.attention_mask, vlm.project(features), max_new_tokens, stop_ids)
    return [text.strip() for text in processor.batch_decode(generated, skip_special_tokens=True)]


def batches(questions: Iterable[Question], size: int) -> Iterable[list[Question]]:
    """Questions in lists of at most ``size``."""
    batch: list[Question] = []
    for question in questions:
        batch.append(question)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass(frozen=True)
class LoadedModel:
    """A model folder, ready to be asked."""

    vlm: VLM
    processor: LlavaProcessor
    stop_ids: list[int]

    def ask(self, questions: Sequence[Question], max_new_tokens: int, blind: bool = False) -> list[str]:
        """Greedy answers; ``blind`` blanks every image."""
        prompts = Prompts.of(questions, self.processor, next(self.vlm.parameters()).device)
        if blind:
            prompts = Prompts(prompts.input_ids, prompts.attention_mask, torch.zeros_like(prompts.pixel_values))
        return answers(self.vlm, prompts, self.processor, self.stop_ids, max_new_tokens)


def load_model(folder: str, device: str = "auto", dtype: str = "float32") -> LoadedModel:
    """A model folder (or hub id) with its processor.

    Raises:
        UserError: there is no such folder, or it holds no supported model.
    """
    processor = load_processor(folder)
    spec: Any = VLMSpec(checkpoint=folder, dtype=dtype)  # type: ignore[arg-type]
    vlm = build(spec, processor.tokenizer, "student").eval()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    stop = vlm.model.generation_config.eos_token_id
    stop_ids = [stop] if isinstance(stop, int) else list(stop or [processor.tokenizer.eos_token_id])
    return LoadedModel(vlm.to(device), processor, stop_ids)


def generate(
    model: str, question: str, image: str | None = None, max_new_tokens: int = 128, device: str = "auto"
) -> None:
    """Asks a model folder one question and prints its greedy answer.

    Args:
        model: folder of an exported student, or any LLaVA folder or hub id.
        question: what to ask.
        image: image file the question is about.
        max_new_tokens: longest answer.
        device: ``cpu``, ``cuda`` or ``auto``.
    """
    if image is not None and not Path(image).is_file():
        raise UserError(f"--image: there is no file '{image}'.")
    loaded = load_model(model, device)
    images = () if image is None else (ImageFolder(Path(image).resolve().parent).read(Path(image).name),)
    text = question if image is None or IMAGE_TOKEN in question else f"{IMAGE_TOKEN}\n{question}"
    print(loaded.ask([Question((Turn("user", text),), images)], max_new_tokens)[0])
