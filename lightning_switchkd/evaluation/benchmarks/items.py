"""The questions of a benchmark, as any scorer and any model takes them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from PIL import Image

from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.samples import IMAGE_TOKEN, ImageReader, ImageRef, SampleError, Turn
from lightning_switchkd.models.generation import Question

Picture = Callable[[], Image.Image]
"""Reads and decodes an image when it is called. Raises ``SampleError`` where it is missing or damaged."""


@dataclass(frozen=True, slots=True)
class FilePicture:
    """An image file below a folder, or the bytes of one."""

    folder: ImageReader
    ref: ImageRef

    def __call__(self) -> Image.Image:
        """The image."""
        return self.folder.read(self.ref)


@dataclass(frozen=True, slots=True)
class Base64Picture:
    """An image as the text of a table's cell."""

    name: str
    text: str

    def __call__(self) -> Image.Image:
        """The image."""
        try:
            data = base64.b64decode(self.text, validate=True)
        except binascii.Error as error:
            raise SampleError("image_decode", f"image of {self.name} is no base64 text: {error}") from None
        return ImageFolder(None).read(ImageRef(self.name, data))


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a benchmark.

    Attributes:
        id: as answer files name it; several questions may share one (MME, TextVQA: the image's).
        question: the question alone, without hints, options and instructions.
        answers: what is right: one text, one letter, or the answers of several people; empty where nobody knows.
        options: texts by letter; empty for an open question.
        pictures: its images.
        image: name of its image; questions about one image are no independent evidence.
        category: what scores are broken down by.
        hint: context that some questions come with.
        ocr: words that another program read in the image, comma by comma.
        prompt: the ready prompt, where the benchmark's files hold it.
        history: turns before the question.
    """

    id: str
    question: str
    answers: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()
    image: str = ""
    category: str = ""
    hint: str = ""
    ocr: str = ""
    prompt: str = ""
    history: tuple[Turn, ...] = ()


def as_question(item: Item, prompt: str = "") -> Question:
    """The item with its images read, ready for a model.

    Args:
        item: the question.
        prompt: what is asked, with or without places of images; by default the item's own prompt.

    Raises:
        RecordError: an image is missing or damaged, or images and their places do not agree.
    """
    text = prompt or item.prompt
    images = tuple(picture() for picture in item.pictures)
    placed = sum(turn.text.count(IMAGE_TOKEN) for turn in item.history) + text.count(IMAGE_TOKEN)
    if placed == 0 and images:
        text = f"{IMAGE_TOKEN * len(images)}\n{text}"
    elif placed != len(images):
        raise SampleError("image_count", f"question '{item.id}' has {placed} places for {len(images)} images")
    answer = item.answers[0] if item.answers else ""
    return Question((*item.history, Turn("user", text)), images, answer, item.category)
