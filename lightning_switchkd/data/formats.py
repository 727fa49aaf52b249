"""Parse the raw shapes of LLaVA samples into a validated `Sample`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from lightning_switchkd.data.samples import IMAGE_TOKEN, ImageRef, Role, Sample, SampleError, SampleLocation, Turn

BYTES_PER_TURN = 20
"""Bytes of ordinary text that give about as many tokens (five) as a chat template adds to one turn."""

_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_OTHER_MEDIA = ("video", "videos", "audio", "audios")


def parse_sample(raw: Any, location: SampleLocation) -> Sample:
    """Validate one raw sample.

    Args:
        raw: The sample as its source returns it.
        location: Its location.

    Raises:
        SampleError: The sample breaks the schema. The error names its id, index and file.
    """
    id = raw.get("id") if isinstance(raw, Mapping) else None
    try:
        if not isinstance(raw, Mapping):
            raise SampleError("schema", f"A sample must be a JSON object, got {type(raw).__name__}.")
        images = _images(raw)
        return Sample(
            id=_id(id, location.index),
            images=images,
            turns=_place_images(_turns(raw), len(images)),
            source=_source(raw, location),
            location=location,
        )
    except SampleError as error:
        raise error.at(location, id) from None


def measure(raw: Any) -> tuple[int, int]:
    r"""Estimate the size of a raw sample: UTF-8 bytes of its text, and number of images. Never fails.

    Each turn adds `BYTES_PER_TURN` bytes for the text of the chat template. An invalid sample measures (0, 0).

    >>> measure({"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}]})
    (33, 1)
    """
    try:
        texts = [str(message.get("value", message.get("content"))) for message in _messages(raw)]
    except (AttributeError, TypeError, SampleError):
        return 0, 0
    images = raw.get("image") or raw.get("images") or []
    num_images = len(images) if isinstance(images, list) else 1
    size = sum(len(text.encode("utf-8", "replace")) + BYTES_PER_TURN for text in texts)
    return size, num_images or sum(text.count(IMAGE_TOKEN) for text in texts)


def _id(id: object, index: int) -> str:
    if id is None:
        return str(index)
    if isinstance(id, bool) or not isinstance(id, str | int):
        raise SampleError("schema", f"'id' must be a string or an integer, got {id!r}.")
    return str(id)


def _source(raw: Mapping[str, Any], location: SampleLocation) -> str:
    source = raw.get("source") or location.source
    if not isinstance(source, str):
        raise SampleError("schema", f"'source' must be a string, got {source!r}.")
    return source


def _images(raw: Mapping[str, Any]) -> tuple[ImageRef, ...]:
    for key in _OTHER_MEDIA:
        if raw.get(key):
            raise SampleError("schema", f"'{key}' is not supported. Only images and text are.")
    if raw.get("image") and raw.get("images"):
        raise SampleError("schema", "Found both 'image' and 'images'. Keep one of them.")
    value = raw.get("image") or raw.get("images") or []
    return tuple(_image(image) for image in (value if isinstance(value, list) else [value]))


def _image(value: Any) -> ImageRef:
    """Parse a path, or a file with its bytes as Hugging Face datasets store it."""
    if isinstance(value, str) and value:
        return ImageRef(value)
    if isinstance(value, Mapping):
        path, data = value.get("path") or "", value.get("bytes")
        if isinstance(path, str) and isinstance(data, bytes | None) and (path or data):
            return ImageRef(path or "without a name", data)
    raise SampleError("schema", f"An image must be a file name or a list of file names, got {str(value)[:80]!r}.")


def _messages(raw: Mapping[str, Any]) -> list[Any]:
    messages = raw.get("conversations") or raw.get("messages")
    if isinstance(messages, str):  # Parquet files often hold the conversation as JSON
        try:
            messages = orjson.loads(messages)
        except orjson.JSONDecodeError as error:
            raise SampleError("bad_json", f"'conversations' is text but not valid JSON: {error}.") from None
    if not isinstance(messages, list) or not messages:
        raise SampleError("schema", "'conversations' must be a non-empty list of {'from': …, 'value': …} turns.")
    return messages


def _turns(raw: Mapping[str, Any]) -> tuple[Turn, ...]:
    turns = tuple(_turn(message, position) for position, message in enumerate(_messages(raw)))
    dialogue = turns[1:] if turns[0].role == "system" else turns
    for position, turn in enumerate(dialogue):
        expected = ("user", "assistant")[position % 2]
        if turn.role != expected:
            raise SampleError(
                "roles",
                f"Turn {position + len(turns) - len(dialogue)} is from {turn.role}, expected {expected}. "
                "User (human) and assistant (gpt) must alternate, starting with the user.",
            )
    if not dialogue or dialogue[-1].role != "assistant":
        raise SampleError("roles", "The final answer is missing. The last turn must be from the assistant (gpt).")
    return turns


def _turn(message: Any, position: int) -> Turn:
    if not isinstance(message, Mapping):
        raise SampleError("schema", f"Turn {position} must be an object with 'from' and 'value', got {message!r}.")
    role, text = message.get("from", message.get("role")), message.get("value", message.get("content"))
    if not isinstance(role, str) or role not in _ROLES:
        raise SampleError("roles", f"Turn {position} is from {role!r}. Use one of {', '.join(_ROLES)}.")
    if not isinstance(text, str):
        raise SampleError("schema", f"The text of turn {position} must be a string, got {type(text).__name__}.")
    if _ROLES[role] == "assistant" and not text.strip():
        raise SampleError("empty_answer", f"The answer in turn {position} is empty. Write one or remove the sample.")
    return Turn(_ROLES[role], text)


def _place_images(turns: tuple[Turn, ...], num_images: int) -> tuple[Turn, ...]:
    """Check placeholders against images. A single image without a placeholder goes before the first question."""
    if num_images:
        if any(IMAGE_TOKEN in turn.text for turn in turns if turn.role != "user"):
            raise SampleError("image_count", f"Found {IMAGE_TOKEN} outside a user turn. Move it into the question.")
        placeholders = sum(turn.text.count(IMAGE_TOKEN) for turn in turns)
        if placeholders == 0 and num_images == 1:
            first = next(position for position, turn in enumerate(turns) if turn.role == "user")
            question = Turn("user", f"{IMAGE_TOKEN}\n{turns[first].text}")
            turns = (*turns[:first], question, *turns[first + 1 :])
        elif placeholders != num_images:
            raise SampleError(
                "image_count",
                f"Found {placeholders} {IMAGE_TOKEN} placeholders but {num_images} image{'s' * (num_images != 1)}. "
                "Use one placeholder per image.",
            )
    for position, turn in enumerate(turns):
        if turn.role == "user" and not turn.text.strip():
            raise SampleError("schema", f"The question in turn {position} is empty. Write one or remove the sample.")
    return turns
