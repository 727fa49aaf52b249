"""Parse the shapes of raw samples that people have into a validated `Sample`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from lightning_switchkd.data.samples import IMAGE_TOKEN, ImageRef, Role, Sample, SampleError, SampleLocation, Turn

TURN = 20
"""About so many bytes of ordinary text make as many tokens as a chat template puts around one turn: five."""

_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_OTHER_MEDIA = ("video", "videos", "audio", "audios")


def parse_sample(raw: Any, location: SampleLocation) -> Sample:
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
            raise SampleError("schema", f"a record must be a JSON object, not {type(raw).__name__}")
        images = _images(raw)
        return Sample(
            id=_id(name, location.index),
            images=images,
            turns=_place_images(_turns(raw), len(images)),
            source=_source(raw, location),
            location=location,
        )
    except SampleError as error:
        raise error.at(location, name) from None


def measure(raw: Any) -> tuple[int, int]:
    """UTF-8 bytes of a raw record's text, and how many images it has: an estimate that a broken record does not break.

    Every turn counts `TURN` bytes more, for what a template puts around it.

    >>> measure({"image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat?"}]})
    (33, 1)
    """
    try:
        texts = [str(message.get("value", message.get("content"))) for message in _messages(raw)]
    except (AttributeError, TypeError, SampleError):
        return 0, 0
    named = raw.get("image") or raw.get("images") or []
    images = len(named) if isinstance(named, list) else 1
    size = sum(len(text.encode("utf-8", "replace")) + TURN for text in texts)
    return size, images or sum(text.count(IMAGE_TOKEN) for text in texts)


def _id(name: object, index: int) -> str:
    if name is None:
        return str(index)
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise SampleError("schema", f"'id' must be a string or an integer, not {name!r}")
    return str(name)


def _source(raw: Mapping[str, Any], location: SampleLocation) -> str:
    source = raw.get("source") or location.source
    if not isinstance(source, str):
        raise SampleError("schema", f"'source' must be a string, not {source!r}")
    return source


def _images(raw: Mapping[str, Any]) -> tuple[ImageRef, ...]:
    for key in _OTHER_MEDIA:
        if raw.get(key):
            raise SampleError("schema", f"'{key}' is not supported: this package trains on images and text")
    if raw.get("image") and raw.get("images"):
        raise SampleError("schema", "both 'image' and 'images' are given: keep one of them")
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
    raise SampleError("schema", f"an image must be a file name or a list of file names, not {str(value)[:80]!r}")


def _messages(raw: Mapping[str, Any]) -> list[Any]:
    messages = raw.get("conversations") or raw.get("messages")
    if isinstance(messages, str):  # Parquet files often hold the conversation as JSON
        try:
            messages = orjson.loads(messages)
        except orjson.JSONDecodeError as error:
            raise SampleError("bad_json", f"'conversations' is text, but no JSON: {error}") from None
    if not isinstance(messages, list) or not messages:
        raise SampleError("schema", "'conversations' must be a non-empty list of {'from': …, 'value': …} turns")
    return messages


def _turns(raw: Mapping[str, Any]) -> tuple[Turn, ...]:
    turns = tuple(_turn(message, position) for position, message in enumerate(_messages(raw)))
    dialogue = turns[1:] if turns[0].role == "system" else turns
    for position, turn in enumerate(dialogue):
        expected = ("user", "assistant")[position % 2]
        if turn.role != expected:
            raise SampleError(
                "roles",
                f"turn {position + len(turns) - len(dialogue)} is from {turn.role}, expected {expected}: "
                "user (human) and assistant (gpt) must alternate, beginning with the user",
            )
    if not dialogue or dialogue[-1].role != "assistant":
        raise SampleError("roles", "the conversation must end with an assistant (gpt) turn: there is no final answer")
    return turns


def _turn(message: Any, position: int) -> Turn:
    if not isinstance(message, Mapping):
        raise SampleError("schema", f"turn {position} must be an object with 'from' and 'value', not {message!r}")
    role, text = message.get("from", message.get("role")), message.get("value", message.get("content"))
    if not isinstance(role, str) or role not in _ROLES:
        raise SampleError("roles", f"turn {position} is from {role!r}: use one of {', '.join(_ROLES)}")
    if not isinstance(text, str):
        raise SampleError("schema", f"the text of turn {position} must be a string, not {type(text).__name__}")
    if _ROLES[role] == "assistant" and not text.strip():
        raise SampleError("empty_answer", f"the answer in turn {position} is empty: write one or remove the record")
    return Turn(_ROLES[role], text)


def _place_images(turns: tuple[Turn, ...], images: int) -> tuple[Turn, ...]:
    """Check that placeholders and images agree; a single image without a placeholder goes before the first question."""
    if images:
        if any(IMAGE_TOKEN in turn.text for turn in turns if turn.role != "user"):
            raise SampleError("image_count", f"{IMAGE_TOKEN} stands outside a user turn: move it into the question")
        placeholders = sum(turn.text.count(IMAGE_TOKEN) for turn in turns)
        if placeholders == 0 and images == 1:
            first = next(position for position, turn in enumerate(turns) if turn.role == "user")
            question = Turn("user", f"{IMAGE_TOKEN}\n{turns[first].text}")
            turns = (*turns[:first], question, *turns[first + 1 :])
        elif placeholders != images:
            raise SampleError(
                "image_count", f"{placeholders} {IMAGE_TOKEN} placeholders for {images} images: make equal"
            )
    for position, turn in enumerate(turns):
        if turn.role == "user" and not turn.text.strip():
            raise SampleError("schema", f"the question in turn {position} is empty: write one or remove the record")
    return turns
