"""One raw LLaVA record -> one validated `Record`, or a `RecordError` that says what is wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lightning_switchkd.errors import UserError

IMAGE_TOKEN = "<image>"
"""Where an image stands in the text of a user turn."""

Role = Literal["system", "user", "assistant"]
ImageRef: TypeAlias = str
"""An image of a record: its path relative to the image root."""

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

_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_OTHER_MEDIA = ("video", "videos", "audio", "audios")


class RecordError(UserError):
    """A record that cannot be used.

    Attributes:
        code: the kind of defect, one of `Code`.
        problem: what is wrong and how to mend it.
        where: which record of which file; filled in by whoever knows it.
    """

    def __init__(self, code: Code, problem: str, where: str = "") -> None:
        super().__init__(code, problem, where)  # the arguments as they are: a worker's error travels by pickle
        self.code, self.problem, self.where = code, problem, where

    def __str__(self) -> str:
        return f"{self.where}: {self.problem} [{self.code}]" if self.where else f"{self.problem} [{self.code}]"


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
        source: the data set it belongs to (its `source` field, else the stem of its file): scores are grouped by it.
        index: its position in its file.
    """

    id: str
    images: tuple[ImageRef, ...]
    turns: tuple[Turn, ...]
    source: str
    index: int

    @property
    def answer(self) -> str:
        """The last assistant turn: what generation is compared with."""
        return self.turns[-1].text


def parse_record(raw: Any, index: int, origin: str | Path) -> Record:
    """Validate one raw record.

    Args:
        raw: the record as JSON gave it.
        index: its position in `origin`.
        origin: the file it comes from.

    Raises:
        RecordError: the record breaks the schema; the error names id, index and file.
    """
    name = raw.get("id") if isinstance(raw, Mapping) else None
    try:
        if not isinstance(raw, Mapping):
            raise RecordError("schema", f"a record must be a JSON object, not {type(raw).__name__}")
        images = _images(raw)
        return Record(
            id=_id(name, index),
            images=images,
            turns=_place_images(_turns(raw), len(images)),
            source=_source(raw, origin),
            index=index,
        )
    except RecordError as error:
        raise RecordError(error.code, error.problem, describe(name, index, origin)) from None


def describe(name: object, index: int, origin: str | Path) -> str:
    """How messages name a record: index, id and file."""
    return f"record {index} (id {name!r}) of {origin}" if name is not None else f"record {index} of {origin}"


def _id(name: object, index: int) -> str:
    if name is None:
        return str(index)
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise RecordError("schema", f"'id' must be a string or an integer, not {name!r}")
    return str(name)


def _source(raw: Mapping[str, Any], origin: str | Path) -> str:
    source = raw.get("source") or Path(origin).stem
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
    refs = [value] if isinstance(value, str) else value
    if not isinstance(refs, list) or not all(isinstance(ref, str) and ref for ref in refs):
        raise RecordError("schema", f"an image must be a file name or a list of file names, not {value!r}")
    return tuple(refs)


def _turns(raw: Mapping[str, Any]) -> tuple[Turn, ...]:
    messages = raw.get("conversations", raw.get("messages"))
    if not isinstance(messages, list) or not messages:
        raise RecordError("schema", "'conversations' must be a non-empty list of {'from': …, 'value': …} turns")
    turns = tuple(_turn(message, position) for position, message in enumerate(messages))
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
