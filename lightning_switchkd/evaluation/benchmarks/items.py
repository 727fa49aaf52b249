"""Questions of a benchmark, in the form that every scorer and every model reads."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from PIL import Image

from lightning_switchkd.core.files import file_version
from lightning_switchkd.data.images import ImageFolder
from lightning_switchkd.data.samples import IMAGE_TOKEN, ImageReader, ImageRef, SampleError, Turn
from lightning_switchkd.models.generation import Question


class Picture(Hashable, Protocol):
    """An image that is read on demand."""

    def __call__(self) -> Image.Image:
        """Read and decode the image. Raise ``SampleError`` if it is missing or damaged."""

    def version(self) -> str:
        """Return a text that changes when the image changes. It does not read the image."""


@dataclass(frozen=True, slots=True)
class FilePicture:
    """Image file in a folder, or the bytes of an image file."""

    folder: ImageReader
    ref: ImageRef

    def __call__(self) -> Image.Image:
        """Read and decode the image."""
        return self.folder.read(self.ref)

    def version(self) -> str:
        """Return the version of the file, or a hash of its bytes."""
        if self.ref.data is not None:
            return sha256(self.ref.data).hexdigest()
        return file_version(Path(self.folder.root or "", self.ref.path))


@dataclass(frozen=True, slots=True)
class Base64Picture:
    """Image in a cell of a table, encoded as base64."""

    name: str
    text: str

    def __call__(self) -> Image.Image:
        """Decode the image."""
        try:
            data = base64.b64decode(self.text, validate=True)
        except binascii.Error as error:
            problem = f"The image of {self.name} is not valid base64: {error}. Write the table again."
            raise SampleError("image_decode", problem) from None
        return ImageFolder(None).read(ImageRef(self.name, data))

    def version(self) -> str:
        """Return a hash of the text."""
        return sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a benchmark.

    Attributes:
        id: Id in answer files. Several questions may share one (in MME and TextVQA, the id of the image).
        question: The question alone, without hint, options and instructions.
        answers: Correct answers: one text, one letter, or the answers of several people. Empty if unknown.
        options: Text of each option by letter. Empty for an open question.
        pictures: Its images.
        image: Name of its image. Questions about the same image are not independent evidence.
        category: Category for the scores by category.
        ability: Larger category, whose score is a further figure.
        hint: Context of the question.
        ocr: Words that another program read in the image, separated by commas.
        prompt: The complete prompt, if the benchmark's files contain it.
        history: Turns before the question.
    """

    id: str
    question: str
    answers: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()
    image: str = ""
    category: str = ""
    ability: str = ""
    hint: str = ""
    ocr: str = ""
    prompt: str = ""
    history: tuple[Turn, ...] = ()


def as_question(item: Item, prompt: str = "") -> Question:
    """Read the item's images, and build the question for a model.

    Args:
        item: The item.
        prompt: Prompt, with or without image placeholders. Default: the item's own prompt.

    Raises:
        SampleError: An image is missing or damaged, or the number of placeholders differs from the number of images.
    """
    text = prompt or item.prompt
    images = tuple(map(_read, item.pictures))
    num_placeholders = sum(turn.text.count(IMAGE_TOKEN) for turn in item.history) + text.count(IMAGE_TOKEN)
    if num_placeholders == 0 and images:
        text = f"{IMAGE_TOKEN * len(images)}\n{text}"
    elif num_placeholders != len(images):
        problem = f"Question '{item.id}' has {num_placeholders} <image> placeholders for {len(images)} images."
        raise SampleError("image_count", f"{problem} Use one placeholder per image.")
    answer = item.answers[0] if item.answers else ""
    return Question((*item.history, Turn("user", text)), images, answer, item.category)


@lru_cache(maxsize=8)
def _read(picture: Picture) -> Image.Image:
    """Read an image once for the questions about it, which follow each other."""
    return picture()
