"""One raw LLaVA record -> one validated `Record`, or a `RecordError` that says what is wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import orjson

from lightning_switchkd.core.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from lightning_switchkd.data.images import ImageFolder

T = TypeVar("T")

IMAGE_TOKEN = "<image>"
"""Where an image stands in the text of a user turn."""

TURN = 20
"""About so many bytes of ordinary text make as many tokens as a chat template puts around one turn: five."""

Role = Literal["system", "user", "assistant"]

Code = Literal[
    "bad_json",
    "schema",
    "roles",
    "image_count",
    "image_missing",
    "image_decode",
    "image_size",
    "empty_answer",
    "too_long",
    "no_supervision",
]
"""What can be wrong with a record (docs/data.md says it in words)."""

_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_OTHER_MEDIA = ("video", "videos", "audio", "audios")


@dataclass(frozen=True)
class Place:
    """Where a raw record lies.

    Attributes:
        path: its file, as messages name it.
        index: its position in that file.
        images: what reads its images; None where nobody will.
        group: its data set's name, for records that do not say it themselves; empty is the stem of `path`.
    """

    path: str
    index: int
    images: ImageFolder | None = None
    group: str = ""

    @property
    def source(self) -> str:
        """The data set that a record belongs to if it says no other."""
        return self.group or PurePath(self.path).stem


class RecordError(UserError):
    """A record that cannot be used.

    Attributes:
        code: the kind of defect, one of `Code`.
        problem: what is wrong and how to mend it.
        place: where the record lies; None until `at` says it.
        id: its own id, where it could be read.
        source: its data set, where it could be read.
    """

    def __init__(
        self, code: Code, problem: str, place: Place | None = None, id: object = None, source: str = ""
    ) -> None:
        super().__init__(code, problem, place, id, source)  # as they are: a worker's error travels by pickle
        self.code, self.problem, self.place, self.id, self.source = code, problem, place, id, source

    def at(self, place: Place, id: object = None, source: str = "") -> RecordError:
        """The same error, of this record."""
        return RecordError(self.code, self.problem, place, id, source or place.source)

    def __str__(self) -> str:
        if self.place is None:
            return f"{self.problem} [{self.code}]"
        name = "" if self.id is None else f" (id {self.id!r})"
        return f"record {self.place.index}{name} of {self.place.path}: {self.problem} [{self.code}]"


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
class Record:
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
    place: Place

    @property
    def answer(self) -> str:
        """The last assistant turn: what generation is compared with."""
        return self.turns[-1].text

    def pictures(self, count: int | None = None) -> tuple[Image, ...]:
        """Its images, decoded; of all, or of the first `count`.

        Raises:
            RecordError: one of them is missing or cannot be read.
        """
        return tuple(self._read(lambda folder, ref: folder.read(ref), count))

    def files(self) -> tuple[bytes, ...]:
        """Its image files, byte for byte.

        Raises:
            RecordError: one of them is missing.
        """
        return tuple(self._read(lambda folder, ref: folder.bytes_of(ref)))

    def _read(self, read: Callable[[ImageFolder, ImageRef], T], count: int | None = None) -> Iterator[T]:
        if self.place.images is None:
            raise ValueError("these records were opened without their images")
        for ref in self.images[:count]:
            try:
                yield read(self.place.images, ref)
            except RecordError as error:
                raise error.at(self.place, self.id, self.source) from None


def parse_record(raw: Any, place: Place) -> Record:
    """Validate one raw record.

    Args:
        raw: the record as its source gave it.
        place: where it lies.

    Raises:
        RecordError: the record breaks the schema; the error names id, index and file.
    """
    name = raw.get("id") if isinstance(raw, Mapping) else None
    try:
        if not isinstance(raw, Mapping):
            raise RecordError("schema", f"a record must be a JSON object, not {type(raw).__name__}")
        images = _images(raw)
        return Record(
            id=_id(name, place.index),
            images=images,
            turns=_place_images(_turns(raw), len(images)),
            source=_source(raw, place),
            place=place,
        )
    except RecordError as error:
        raise error.at(place, name) from None


def measure(raw: Any) -> tuple[int, int]:
    """UTF-8 bytes of a raw record's text, and how many images it has: an estimate that a broken record does not break.

    Every turn counts `TURN` bytes more, for what a template puts around it.

    >>> measure({"image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat?"}]})
    (33, 1)
    """
    try:
        texts = [str(message.get("value", message.get("content"))) for message in _messages(raw)]
    except (AttributeError, TypeError, RecordError):
        return 0, 0
    named = raw.get("image") or raw.get("images") or []
    images = len(named) if isinstance(named, list) else 1
    size = sum(len(text.encode("utf-8", "replace")) + TURN for text in texts)
    return size, images or sum(text.count(IMAGE_TOKEN) for text in texts)


def _id(name: object, index: int) -> str:
    if name is None:
        return str(index)
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise RecordError("schema", f"'id' must be a string or an integer, not {name!r}")
    return str(name)


def _source(raw: Mapping[str, Any], place: Place) -> str:
    source = raw.get("source") or place.source
    if not isinstance(source, str):
        raise RecordError("schema", f"'source' must be a string, not {source!r}")
    return source


def _images(raw: Mapping[str, Any]) -> tuple[ImageRef, ...]:
    for key in _OTHER_MEDIA:
        if raw.get(key):
            raise RecordError("schema", f"'{key}' is not supported: this package trains on images and text")
    if raw.get("image") and raw.get("images"):
        raise RecordError("schema", "both 'image' and 'images' are given: keep one of them")
    value = raw.get("image") or raw.get("images") or []
    return tuple(_image(one) for one in (value if isinstance(value, list) else [value]))


def _image(value: Any) -> ImageRef:
    """A path, or a file with its bytes as Hugging Face's datasets write it."""
    if isinstance(value, str) and value:
        return ImageRef(value)
    if isinstance(value, Mapping):
        path, data = value.get("path") or "", value.get("bytes")
        if isinstance(path, str) and isinstance(data, bytes | None) and (path or data):
            return ImageRef(path or "without a name", data)
    raise RecordError("schema", f"an image must be a file name or a list of file names, not {str(value)[:80]!r}")


def _messages(raw: Mapping[str, Any]) -> list[Any]:
    messages = raw.get("conversations") or raw.get("messages")
    if isinstance(messages, str):  # Parquet files often hold the conversation as JSON
        try:
            messages = orjson.loads(messages)
        except orjson.JSONDecodeError as error:
            raise RecordError("bad_json", f"'conversations' is text, but no JSON: {error}") from None
    if not isinstance(messages, list) or not messages:
        raise RecordError("schema", "'conversations' must be a non-empty list of {'from': …, 'value': …} turns")
    return messages


def _turns(raw: Mapping[str, Any]) -> tuple[Turn, ...]:
    turns = tuple(_turn(message, position) for position, message in enumerate(_messages(raw)))
    dialogue = turns[1:] if turns[0].role == "system" else turns
    for position, turn in enumerate(dialogue):
        expected = ("user", "assistant")[position % 2]
        if turn.role != expected:
            raise RecordError(
                "roles",
                f"turn {position + len(turns) - len(dialogue)} is from {turn.role}, expected {expected}: "
                "user (human) and assistant (gpt) must alternate, beginning with the user",
            )
    if not dialogue or dialogue[-1].role != "assistant":
        raise RecordError("roles", "the conversation must end with an assistant (gpt) turn: there is no final answer")
    return turns


def _turn(message: Any, position: int) -> Turn:
    if not isinstance(message, Mapping):
        raise RecordError("schema", f"turn {position} must be an object with 'from' and 'value', not {message!r}")
    role, text = message.get("from", message.get("role")), message.get("value", message.get("content"))
    if not isinstance(role, str) or role not in _ROLES:
        raise RecordError("roles", f"turn {position} is from {role!r}: use one of {', '.join(_ROLES)}")
    if not isinstance(text, str):
        raise RecordError("schema", f"the text of turn {position} must be a string, not {type(text).__name__}")
    if _ROLES[role] == "assistant" and not text.strip():
        raise RecordError("empty_answer", f"the answer in turn {position} is empty: write one or remove the record")
    return Turn(_ROLES[role], text)


def _place_images(turns: tuple[Turn, ...], images: int) -> tuple[Turn, ...]:
    """Check that placeholders and images agree; a single image without a placeholder goes before the first question."""
    if images:
        if any(IMAGE_TOKEN in turn.text for turn in turns if turn.role != "user"):
            raise RecordError("image_count", f"{IMAGE_TOKEN} stands outside a user turn: move it into the question")
        placeholders = sum(turn.text.count(IMAGE_TOKEN) for turn in turns)
        if placeholders == 0 and images == 1:
            first = next(position for position, turn in enumerate(turns) if turn.role == "user")
            question = Turn("user", f"{IMAGE_TOKEN}\n{turns[first].text}")
            turns = (*turns[:first], question, *turns[first + 1 :])
        elif placeholders != images:
            raise RecordError(
                "image_count", f"{placeholders} {IMAGE_TOKEN} placeholders for {images} images: make equal"
            )
    for position, turn in enumerate(turns):
        if turn.role == "user" and not turn.text.strip():
            raise RecordError("schema", f"the question in turn {position} is empty: write one or remove the record")
    return turns
