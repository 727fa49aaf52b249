"""Greedy answers of a model to questions about images; the one place that decodes, in training and after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import LlavaProcessor

from lightning_switchkd.data.images import Pixels
from lightning_switchkd.data.processor import image_tokens, load_processor
from lightning_switchkd.data.samples import IMAGE_TOKEN, Turn
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.auto import build
from lightning_switchkd.models.spec import DType, VLMSpec

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A conversation that waits for its last answer.

    Attributes:
        turns: everything before that answer; ``<image>`` stands for the next image.
        images: decoded images, in the order of their placeholders.
        answer: what is right; empty where nobody knows.
        source: group that scores are reported by.
    """

    turns: tuple[Turn, ...]
    images: tuple[Image.Image, ...]
    answer: str = ""
    source: str = ""


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

    def to(self, device: torch.device) -> Prompts:
        """The same on a device."""
        return Prompts(self.input_ids.to(device), self.attention_mask.to(device), self.pixel_values.to(device))

    @classmethod
    def of(
        cls,
        ids: Sequence[list[int]],
        images: Sequence[Image.Image],
        pixels: Pixels,
        pad_id: int,
        device: torch.device | str,
    ) -> Prompts:
        """Pads ids on the left and makes pixels of all images, in the order of their placeholders."""
        longest = max(map(len, ids))
        return cls(
            torch.tensor([[pad_id] * (longest - len(row)) + row for row in ids], device=device),
            torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=device),
            torch.stack([pixels(image) for image in images] or [pixels.blank()]).to(device),
        )


@torch.no_grad()
def answers(
    vlm: VLMAdapter,
    prompts: Prompts,
    processor: LlavaProcessor,
    stop_ids: list[int],
    max_new_tokens: int,
    encoder: VLMAdapter | None = None,
) -> list[str]:
    """Greedy answers, stripped of white space.

    Args:
        vlm: the model that projects and decodes.
        prompts: what is asked.
        processor: decodes ids to text.
        stop_ids: ids that end an answer.
        max_new_tokens: longest answer.
        encoder: the model that encodes the images; None is ``vlm`` itself. A student here and a teacher as ``vlm`` make
            the visual switch.
    """
    encoder = encoder or vlm
    features = encoder.encode_image(prompts.pixel_values.to(next(encoder.parameters()).dtype))
    generated = vlm.generate(prompts.input_ids, prompts.attention_mask, vlm.project(features), max_new_tokens, stop_ids)
    return [text.strip() for text in processor.batch_decode(generated, skip_special_tokens=True)]


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of at most ``size``.

    >>> list(batches("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@dataclass(frozen=True)
class Preparer:
    """Writes questions down as a model wants them; needs no model, so that loader processes can do it.

    Attributes:
        processor: of the model's folder; its chat template writes the questions.
        pixels: makes images ready.
        image_tokens: how many placeholders an image has.
    """

    processor: LlavaProcessor
    pixels: Pixels
    image_tokens: int

    def __call__(
        self, questions: Sequence[Question], blind: bool = False, device: torch.device | str = "cpu"
    ) -> Prompts:
        """The questions as one batch; ``blind`` blanks every image."""
        images = [image for question in questions for image in question.images]
        ids = [self._ids(question) for question in questions]
        prompts = Prompts.of(ids, images, self.pixels, self.processor.tokenizer.pad_token_id, device)
        if blind:
            prompts = replace(prompts, pixel_values=torch.zeros_like(prompts.pixel_values))
        return prompts

    def _ids(self, question: Question) -> list[int]:
        messages = [{"role": turn.role, "content": turn.text} for turn in question.turns]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        if question.images:
            text = text.replace(IMAGE_TOKEN, IMAGE_TOKEN * self.image_tokens)
        return list(self.processor.tokenizer(text, add_special_tokens=False).input_ids)


@dataclass(frozen=True)
class LoadedModel:
    """A model folder, ready to be asked."""

    vlm: VLMAdapter
    prepare: Preparer
    stop_ids: list[int]

    def ask(self, questions: Sequence[Question], max_new_tokens: int, blind: bool = False) -> list[str]:
        """Greedy answers; ``blind`` blanks every image."""
        device = next(self.vlm.parameters()).device
        return self.answers(self.prepare(questions, blind, device), max_new_tokens)

    def ask_all(
        self, questions: Iterable[Question], number: int, name: str, batch_size: int, max_new_tokens: int, blind: bool
    ) -> list[str]:
        """Greedy answers to many, batch by batch, with a progress bar of this name."""
        found: list[str] = []
        with tqdm(total=number, desc=name, unit="q") as bar:
            for batch in batches(questions, batch_size):
                found += self.ask(batch, max_new_tokens, blind)
                bar.update(len(batch))
        return found

    @torch.no_grad()
    def alternatives(self, question: Question, answer: str, count: int) -> list[list[tuple[str, float]]]:
        """What each token of an answer, and its end, might have been: the likeliest tokens and their probabilities."""
        tokenizer, device = self.prepare.processor.tokenizer, next(self.vlm.parameters()).device
        prompts = self.prepare([question], device=device)
        said = torch.tensor([tokenizer(answer, add_special_tokens=False).input_ids], dtype=torch.int64, device=device)
        ids = torch.cat([prompts.input_ids, said], 1)
        features = self.vlm.encode_image(prompts.pixel_values.to(next(self.vlm.parameters()).dtype))
        hidden = self.vlm.decode(ids, torch.ones_like(ids), self.vlm.project(features))
        rows = hidden[0, prompts.input_ids.shape[1] - 1 :]
        best = self.vlm.head.exactly(rows)[:, : len(tokenizer)].softmax(-1).topk(count)
        return [
            [(tokenizer.decode([token]), p) for token, p in zip(tokens, values, strict=True)]
            for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def answers(self, prompts: Prompts, max_new_tokens: int) -> list[str]:
        """Greedy answers to questions that are ready."""
        return answers(self.vlm, prompts, self.prepare.processor, self.stop_ids, max_new_tokens)


def load_model(folder: str, device: str = "auto", dtype: DType = "float32") -> LoadedModel:
    """A model folder (or hub id) with its processor.

    Raises:
        UserError: there is no such folder, or it holds no supported model.
    """
    processor = load_processor(folder)
    vlm = build(VLMSpec(checkpoint=folder, dtype=dtype), processor.tokenizer, "student").eval()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    stop = vlm.model.generation_config.eos_token_id
    stop_ids = [stop] if isinstance(stop, int) else list(stop or [processor.tokenizer.eos_token_id])
    prepare = Preparer(processor, Pixels(processor.image_processor), image_tokens(processor))
    return LoadedModel(vlm.to(device), prepare, stop_ids)
