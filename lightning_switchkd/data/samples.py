"""One raw LLaVA record -> one validated `Sample`, or a `SampleError` that says what is wrong and how to mend it."""

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
"""Where an image stands in the text of a user turn."""

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
    """Where a raw record lies.

    Attributes:
        path: its file, as messages name it.
        index: its position in that file.
        images: what reads its images; None where nobody will.
        group: its data set's name, for records that do not say it themselves; empty is the stem of `path`.
    """

    path: str
    index: int
    images: ImageReader | None = None
    group: str = ""

    @property
    def source(self) -> str:
        """The data set that a record belongs to if it says no other."""
        return self.group or PurePath(self.path).stem


class SampleError(UserError):
    """A record that cannot be used.

    Attributes:
        code: the kind of defect, one of `DefectCode`.
        problem: what is wrong and how to mend it.
        place: where the record lies; None until `at` says it.
        id: its own id, where it could be read.
        source: its data set, where it could be read.
    """

    def __init__(
        self,
        code: DefectCode,
        problem: str,
        location: SampleLocation | None = None,
        id: object = None,
        source: str = "",
    ) -> None:
        super().__init__(code, problem, location, id, source)  # as they are: a worker's error travels by pickle
        self.code, self.problem, self.location, self.id, self.source = code, problem, location, id, source

    def at(self, location: SampleLocation, id: object = None, source: str = "") -> SampleError:
        """The same error, of this record."""
        return SampleError(self.code, self.problem, location, id, source or location.source)

    def __str__(self) -> str:
        if self.location is None:
            return f"{self.problem} [{self.code}]"
        name = "" if self.id is None else f" (id {self.id!r})"
        return f"record {self.location.index}{name} of {self.location.path}: {self.problem} [{self.code}]"


@dataclass(frozen=True)
class ImageRef:
    """An image of a record.

    Attributes:
        path: relative to the image root; of an image that came with its record, only a name.
        data: the file's bytes, where they came with the record.
    """

    path: str
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Turn:
    """One message. In a record with images, `<image>` in a user turn stands for the next image."""

    role: Role
    text: str

    @property
    def text_only(self) -> str:
        """What it says, without the places of images.

        >>> Turn("user", "<image>\\nWhat is it?").text_only
        'What is it?'
        """
        return self.text.replace(IMAGE_TOKEN, "").strip()


@dataclass(frozen=True)
class Sample:
    """One conversation: an optional system turn, then user and assistant in turn, ending with the assistant.

    Attributes:
        id: the record's own id, as text; its index where it has none.
        images: image references, in the order of their placeholders; empty for a text-only record.
        turns: the conversation; a text-only record's `<image>` is literal text.
        source: the data set it belongs to (its `source` field, else its place's): scores are grouped by it.
        place: where it lies.
    """

    id: str
    images: tuple[ImageRef, ...]
    turns: tuple[Turn, ...]
    source: str
    location: SampleLocation

    @property
    def answer(self) -> str:
        """The last assistant turn: what generation is compared with."""
        return self.turns[-1].text

    def load_images(self, count: int | None = None) -> tuple[Image, ...]:
        """Its images, decoded; of all, or of the first `count`.

        Raises:
            RecordError: one of them is missing or cannot be read.
        """
        return tuple(self._read(lambda folder, ref: folder.read(ref), count))

    def image_bytes(self) -> tuple[bytes, ...]:
        """Its image files, byte for byte.

        Raises:
            RecordError: one of them is missing.
        """
        return tuple(self._read(lambda folder, ref: folder.bytes_of(ref)))

    def _read(self, read: Callable[[ImageReader, ImageRef], T], count: int | None = None) -> Iterator[T]:
        if self.location.images is None:
            raise ValueError("these records were opened without their images")
        for ref in self.images[:count]:
            try:
                yield read(self.location.images, ref)
            except SampleError as error:
                raise error.at(self.location, self.id, self.source) from None
