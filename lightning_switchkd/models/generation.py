"""Greedy answers of a model to questions about images. Training and evaluation both generate text here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import LlavaProcessor

from lightning_switchkd.core.types import Vision
from lightning_switchkd.data.images import Pixels
from lightning_switchkd.data.processor import image_tokens, load_processor
from lightning_switchkd.data.samples import IMAGE_TOKEN, Turn
from lightning_switchkd.models.adapter import VLMAdapter
from lightning_switchkd.models.auto import load_checkpoint
from lightning_switchkd.models.spec import DType, VLMSpec

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A conversation without its last answer.

    Attributes:
        turns: All turns before the answer. ``<image>`` stands for the next image.
        images: Decoded images, in the order of their placeholders.
        answer: The correct answer. Empty if unknown.
        source: Group that scores are reported by.
    """

    turns: tuple[Turn, ...]
    images: tuple[Image.Image, ...]
    answer: str = ""
    source: str = ""


@dataclass(frozen=True)
class Prompts:
    """Model inputs of a batch of questions, left-padded so that all answers start at the same position.

    Attributes:
        input_ids: ``[B, T]`` int64.
        attention_mask: ``[B, T]`` int64.
        pixel_values: ``[M, 3, height, width]``. One blank image if no question has an image.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor

    def to(self, device: torch.device) -> Prompts:
        """Return a copy on a device."""
        return Prompts(self.input_ids.to(device), self.attention_mask.to(device), self.pixel_values.to(device))

    @property
    def vision(self) -> Vision:
        """The images, as a vision encoder takes them."""
        return {"pixel_values": self.pixel_values}

    @classmethod
    def of(cls, ids: Sequence[list[int]], pixel_values: Tensor, pad_id: int, device: torch.device | str) -> Prompts:
        """Pad ids on the left. The images are in the order of their placeholders."""
        longest = max(map(len, ids))
        return cls(
            torch.tensor([[pad_id] * (longest - len(row)) + row for row in ids], device=device),
            torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=device),
            pixel_values.to(device),
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
    """Generate greedy answers, without surrounding white space.

    Args:
        vlm: The model that projects and decodes.
        prompts: The questions.
        processor: Decodes ids to text.
        stop_ids: Ids that end an answer.
        max_new_tokens: Longest answer.
        encoder: The model that encodes the images. None takes ``vlm``. A student as ``encoder`` and a teacher as
            ``vlm`` form the visual switch.
    """
    encoder = encoder or vlm
    image_embeds = vlm.project(encoder.encode(prompts.vision), prompts.vision)
    generated = vlm.generate(prompts.input_ids, prompts.attention_mask, image_embeds, max_new_tokens, stop_ids)
    return [text.strip() for text in processor.batch_decode(generated, skip_special_tokens=True)]


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Group items into lists of at most ``size``.

    >>> list(batches("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@dataclass(frozen=True)
class Preparer:
    """Converts questions into a model's inputs. Needs no model, so loader processes can do the work.

    Attributes:
        processor: The processor of the model's folder. Its chat template formats the questions.
        pixels: Preprocesses images.
        image_tokens: Number of placeholders for each image.
    """

    processor: LlavaProcessor
    pixels: Pixels
    image_tokens: int

    def __call__(
        self, questions: Sequence[Question], no_image: bool = False, device: torch.device | str = "cpu"
    ) -> Prompts:
        """Convert questions into one batch. ``no_image`` replaces every image by a blank image."""
        images = [image for question in questions for image in question.images]
        pixels = self.pixels.blank().expand(len(images) or 1, -1, -1, -1) if no_image else self.pixels.stack(images)
        ids = [self._ids(question) for question in questions]
        return Prompts.of(ids, pixels, self.processor.tokenizer.pad_token_id, device)

    def _ids(self, question: Question) -> list[int]:
        messages = [{"role": turn.role, "content": turn.text} for turn in question.turns]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        if question.images:
            text = text.replace(IMAGE_TOKEN, IMAGE_TOKEN * self.image_tokens)
        return list(self.processor.tokenizer(text, add_special_tokens=False).input_ids)


@dataclass(frozen=True)
class LoadedModel:
    """A model folder in memory, ready to answer questions.

    Attributes:
        vlm: The model, in eval mode.
        prepare: Converts questions into the model's inputs.
        stop_ids: Ids that end an answer.
    """

    vlm: VLMAdapter
    prepare: Preparer
    stop_ids: list[int]

    def ask(self, questions: Sequence[Question], max_new_tokens: int, no_image: bool = False) -> list[str]:
        """Answer one batch of questions. ``no_image`` replaces every image by a blank image."""
        device = next(self.vlm.parameters()).device
        return self.answers(self.prepare(questions, no_image, device), max_new_tokens)

    def ask_all(
        self,
        questions: Iterable[Question],
        number: int,
        name: str,
        batch_size: int,
        max_new_tokens: int,
        no_image: bool,
    ) -> list[str]:
        """Answer ``number`` questions in batches, with a progress bar called ``name``."""
        texts: list[str] = []
        with tqdm(total=number, desc=name, unit="question") as bar:
            for batch in batches(questions, batch_size):
                texts += self.ask(batch, max_new_tokens, no_image)
                bar.update(len(batch))
        return texts

    @torch.no_grad()
    def alternatives(self, question: Question, answer: str, count: int) -> list[list[tuple[str, float]]]:
        """Find the most likely tokens, with their probabilities, at each position of an answer and at its end.

        Args:
            question: The question.
            answer: The answer whose tokens are examined.
            count: Number of alternatives for each position.
        """
        tokenizer, device = self.prepare.processor.tokenizer, next(self.vlm.parameters()).device
        prompts = self.prepare([question], device=device)
        answer_ids = tokenizer(answer, add_special_tokens=False).input_ids
        ids = torch.cat([prompts.input_ids, torch.tensor([answer_ids], dtype=torch.int64, device=device)], 1)  # [1, T]
        image_embeds = self.vlm.project(self.vlm.encode(prompts.vision), prompts.vision)
        hidden = self.vlm.decode(ids, torch.ones_like(ids), image_embeds)  # [1, T, H]
        answer_hidden = hidden[0, prompts.input_ids.shape[1] - 1 :]
        best = self.vlm.head.exactly(answer_hidden)[:, : len(tokenizer)].softmax(-1).topk(count)
        return [
            [(tokenizer.decode([token]), p) for token, p in zip(tokens, values, strict=True)]
            for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def answers(self, prompts: Prompts, max_new_tokens: int) -> list[str]:
        """Generate greedy answers to prepared questions."""
        return answers(self.vlm, prompts, self.prepare.processor, self.stop_ids, max_new_tokens)


def load_model(folder: str, device: str = "auto", dtype: DType = "float32", where: str = "--model") -> LoadedModel:
    """Load a model folder or hub id, with its processor.

    Args:
        folder: Folder or hub id.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU if available.
        dtype: Data type of the weights.
        where: The flag that names the folder, for error messages.

    Raises:
        UserError: The folder does not exist or contains no supported model.
    """
    vlm = load_checkpoint(folder, VLMSpec(dtype=dtype), where).eval()
    processor = load_processor(folder)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    stop = vlm.model.generation_config.eos_token_id
    stop_ids = [stop] if isinstance(stop, int) else list(stop or [processor.tokenizer.eos_token_id])
    prepare = Preparer(processor, Pixels(processor.image_processor), image_tokens(processor))
    return LoadedModel(vlm.to(device), prepare, stop_ids)
