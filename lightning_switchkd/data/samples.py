"""The validated form of one LLaVA sample, and the error that reports an invalid one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal, Protocol, TypeVar

from PIL.Image import Image

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import DefectCode

T = TypeVar("T")

IMAGE_TOKEN = "<image>"
"""Placeholder of an image in the text of a user turn."""

Role = Literal["system", "user", "assistant"]


class ImageReader(Protocol):
    """Reads the images of samples (``data.images.ImageFolder``)."""

    root: Path | None

    def read(self, ref: ImageRef) -> Image:
        """Decode an image."""

    def bytes_of(self, ref: ImageRef) -> bytes:
        """Read an image file."""


@dataclass(frozen=True)
class SampleLocation:
    """The location of a raw sample.

    Attributes:
        path: Its file, as messages show it.
        index: Its position in that file.
        images: Reads its images. None if images are not needed.
        group: Name of its data set, for samples without a `source` field. Empty: the stem of `path`.
    """

    path: str
    index: int
    images: ImageReader | None = None
    group: str = ""

    @property
    def source(self) -> str:
        """The data set of a sample without a `source` field."""
        return self.group or PurePath(self.path).stem


class SampleError(UserError):
    """An invalid sample.

    Attributes:
        code: The kind of defect, one of `DefectCode`.
        problem: The problem, the value and the fix.
        location: The location of the sample. None until `at` sets it.
        id: The sample's own id, if it could be read.
        source: Its data set, if it could be read.
    """

    def __init__(
        self,
        code: DefectCode,
        problem: str,
        location: SampleLocation | None = None,
        id: object = None,
        source: str = "",
    ) -> None:
        super().__init__(code, problem, location, id, source)  # all arguments: a worker's error is pickled
        self.code, self.problem, self.location, self.id, self.source = code, problem, location, id, source

    def at(self, location: SampleLocation, id: object = None, source: str = "") -> SampleError:
        """Return the same error with the location of the sample."""
        return SampleError(self.code, self.problem, location, id, source or location.source)

    def __str__(self) -> str:
        if self.location is None:
            return f"{self.problem} [{self.code}]"
        name = "" if self.id is None else f" (id {self.id!r})"
        return f"Sample {self.location.index}{name} of {self.location.path}: {self.problem} [{self.code}]"


@dataclass(frozen=True)
class ImageRef:
    """A reference to an image of a sample.

    Attributes:
        path: Path relative to the image root. Only a name if `data` is set.
        data: The bytes of the image file, if the sample contains them.
    """

    path: str
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Turn:
    """One message. In a sample with images, each `<image>` in a user turn stands for the next image."""

    role: Role
    text: str

    @property
    def text_only(self) -> str:
        r"""The text without image placeholders.

        >>> Turn("user", "<image>\nWhat is it?").text_only
        'What is it?'
        """
        return self.text.replace(IMAGE_TOKEN, "").strip()


@dataclass(frozen=True)
class Sample:
    """One conversation: an optional system turn, then alternating user and assistant turns, ending with the assistant.

    Attributes:
        id: The sample's own id as text. Its index if it has no id.
        images: Image references in the order of their placeholders. Empty for a text-only sample.
        turns: The conversation. In a text-only sample, `<image>` is literal text.
        source: Its data set (the `source` field, otherwise that of its location). Scores are grouped by it.
        location: Its location.
    """

    id: str
    images: tuple[ImageRef, ...]
    turns: tuple[Turn, ...]
    source: str
    location: SampleLocation

    @property
    def answer(self) -> str:
        """The last assistant turn, which generated answers are compared with."""
        return self.turns[-1].text

    def load_images(self, count: int | None = None) -> tuple[Image, ...]:
        """Decode the images, or only the first `count`.

        Raises:
            SampleError: An image is missing or cannot be decoded.
        """
        return tuple(self._read(lambda folder, ref: folder.read(ref), count))

    def image_bytes(self) -> tuple[bytes, ...]:
        """Read the image files without decoding them.

        Raises:
            SampleError: An image is missing.
        """
        return tuple(self._read(lambda folder, ref: folder.bytes_of(ref)))

    def _read(self, read: Callable[[ImageReader, ImageRef], T], count: int | None = None) -> Iterator[T]:
        if self.location.images is None:
            raise ValueError("This source was opened without an image reader. Pass `images` to open_source.")
        for ref in self.images[:count]:
            try:
                yield read(self.location.images, ref)
            except SampleError as error:
                raise error.at(self.location, self.id, self.source) from None
