"""Conversations to token ids and labels: prompt styles, the supervised mask, truncation, the matching chat template.

Text between two control tokens is encoded in one piece, as a tokenizer does with a whole prompt. Only the start of an
answer splits it, as in generation. So the mask is exact, and the ids equal those of `chat_template`.
The text of a turn never becomes a control token, because it is encoded with ``split_special_tokens=True``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from string import Template
from typing import Any, TypeAlias

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.types import IGNORE_INDEX
from lightning_switchkd.data.samples import IMAGE_TOKEN, Role, Sample, SampleError, Turn

_Part: TypeAlias = tuple[str | list[int], bool]  # text to encode or token ids, and whether they are supervised


@dataclass(frozen=True)
class PromptStyle:
    """The text format of a conversation.

    Attributes:
        name: Its name in the settings.
        headers: Text before a turn, by role.
        footers: Text after a turn, by role. After an answer it follows the end of turn and is not supervised.
        end_of_turn: Ends every answer, supervised. None: the tokenizer's end-of-sequence token.
        control_tokens: The control tokens in headers, footers and `end_of_turn`.
        answer_prefix: Text at the start of every answer, supervised.
        system: The system prompt of conversations without one.
        images_only: Keep only the images of a question (LLaVA's pretraining on captions).
    """

    name: str
    headers: dict[Role, str]
    footers: dict[Role, str]
    end_of_turn: str | None
    control_tokens: tuple[str, ...] = ()
    answer_prefix: str = ""
    system: str | None = None
    images_only: bool = False


STYLES = {
    style.name: style
    for style in (
        PromptStyle(
            name="qwen_chatml",
            headers={
                "system": "<|im_start|>system\n",
                "user": "<|im_start|>user\n",
                "assistant": "<|im_start|>assistant\n",
            },
            footers={"system": "<|im_end|>\n", "user": "<|im_end|>\n", "assistant": "\n"},
            end_of_turn="<|im_end|>",
            control_tokens=("<|im_start|>", "<|im_end|>"),
        ),
        PromptStyle(
            name="tinyllava_v1",
            headers={"system": "", "user": "USER: ", "assistant": " ASSISTANT:"},
            footers={"system": " ", "user": "", "assistant": ""},
            end_of_turn=None,
            answer_prefix=" ",  # BPE merges the space with the first word of the answer, in generation too
            system="A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        ),
        PromptStyle(
            name="plain",
            headers={"system": "", "user": "", "assistant": ""},
            footers={"system": "", "user": "", "assistant": ""},
            end_of_turn="\n",
            images_only=True,
        ),
    )
}


def prompt_style(name: str, system: str | None = None) -> PromptStyle:
    """Return the style called `name`, with its own system prompt or `system` if given.

    Raises:
        UserError: The name is unknown.
    """
    if name not in STYLES:
        raise UserError(f"Unknown prompt_style {name!r}. Use one of {', '.join(STYLES)}.")
    style = STYLES[name]
    return style if system is None else replace(style, system=system)


@dataclass(frozen=True)
class Encoded:
    """One tokenized conversation.

    Attributes:
        input_ids: Token ids. Each image is a run of `<image>` ids.
        labels: Of the same length, unshifted, `IGNORE_INDEX` except on answers and their end of turn.
        images: Number of the sample's images, from the first, that remain after truncation.
        truncated: Whether exchanges were cut off.
    """

    input_ids: list[int]
    labels: list[int]
    images: int
    truncated: bool = False


class Prompter:
    """Encodes conversations in one prompt style with one tokenizer.

    Args:
        tokenizer: A Hugging Face tokenizer with the style's control tokens and `<image>`.
        style: The prompt style.
        image_tokens: Ids of one image.
        max_length: Maximum number of ids of a sample.

    Raises:
        UserError: The tokenizer lacks a control token of the style.
    """

    def __init__(self, tokenizer: Any, style: PromptStyle, image_tokens: int, max_length: int) -> None:
        self.tokenizer, self.style = tokenizer, style
        self.image_tokens, self.max_length = image_tokens, max_length
        self.control_ids: dict[str, int] = {
            token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self.end_of_turn: str = tokenizer.eos_token if style.end_of_turn is None else style.end_of_turn
        for token in (*style.control_tokens, IMAGE_TOKEN, *([self.end_of_turn] if style.end_of_turn is None else [])):
            if token not in self.control_ids:
                raise UserError(
                    f"prompt_style {style.name!r} needs the special token {token!r}, which the tokenizer lacks. "
                    "Choose another style, or a processor whose tokenizer has the token."
                )
        self._split = re.compile("(" + "|".join(map(re.escape, self.control_ids)) + ")")

    def encode(self, sample: Sample) -> Encoded:
        """Encode a sample for training: complete exchanges from the first, as many as fit into `max_length`.

        Raises:
            SampleError: ``no_supervision`` if not even the first exchange fits. For `plain`, ``roles`` or
                ``image_count`` if the sample is not one question, one answer and an image.
        """
        input_ids: list[int] = []
        labels: list[int] = []
        truncated = False
        exchanges = [[part for turn in turns for part in self._turn(turn, sample)] for turns in self._exchanges(sample)]
        for ids, exchange_labels in self._tokenize(exchanges):
            if len(input_ids) + len(ids) > self.max_length:
                truncated = True
                break
            input_ids += ids
            labels += exchange_labels
        if not input_ids:
            raise SampleError(
                "no_supervision",
                f"The first question and answer have {len(ids)} tokens, more than max_length {self.max_length}. "
                "Raise max_length or shorten the sample.",
            )
        num_images = input_ids.count(self.control_ids[IMAGE_TOKEN]) // self.image_tokens
        return Encoded(input_ids, labels, num_images, truncated)

    def encode_question(self, sample: Sample) -> list[int]:
        """Encode the prompt of the last answer: everything up to and including the assistant's header.

        Raises:
            SampleError: ``too_long`` if the prompt is longer than `max_length`.
        """
        turns = [turn for exchange in self._exchanges(sample) for turn in exchange][:-1]
        header = self._control_text(self.style.headers["assistant"])
        ((ids, _),) = self._tokenize([[*(part for turn in turns for part in self._turn(turn, sample)), *header]])
        if len(ids) > self.max_length:
            problem = f"The question has {len(ids)} tokens, more than max_length {self.max_length}. Raise max_length."
            raise SampleError("too_long", problem)
        return ids

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end generation: the style's end of turn and the tokenizer's end of sequence."""
        ids = {self.control_ids.get(self.end_of_turn), self.tokenizer.eos_token_id}
        return sorted(id for id in ids if id is not None)

    def _exchanges(self, sample: Sample) -> Iterator[list[Turn]]:
        """Yield pairs of question and answer. The first includes the system turn."""
        if self.style.images_only:
            _check_caption(sample)
        turns = list(sample.turns)
        if turns[0].role != "system" and self.style.system is not None:
            turns.insert(0, Turn("system", self.style.system))
        first = 3 if turns[0].role == "system" else 2
        yield turns[:first]
        for start in range(first, len(turns), 2):
            yield turns[start : start + 2]

    def _turn(self, turn: Turn, sample: Sample) -> Iterator[_Part]:
        yield from self._control_text(self.style.headers[turn.role])
        if turn.role == "assistant":
            yield self.style.answer_prefix + turn.text, True
            yield from self._control_text(self.end_of_turn, supervised=True)
        elif turn.role == "user" and sample.images:
            yield from self._question(turn.text)
        elif not self.style.images_only:
            yield turn.text, False
        yield from self._control_text(self.style.footers[turn.role])

    def _question(self, text: str) -> Iterator[_Part]:
        for position, piece in enumerate(text.split(IMAGE_TOKEN)):
            if position > 0:
                yield [self.control_ids[IMAGE_TOKEN]] * self.image_tokens, False
            if not self.style.images_only:
                yield piece, False

    def _control_text(self, text: str, supervised: bool = False) -> Iterator[_Part]:
        """Split a text of the style at its control tokens, which become ids."""
        for piece in self._split.split(text):
            yield [self.control_ids[piece]] if piece in self.control_ids else piece, supervised

    def _tokenize(self, exchanges: Sequence[Sequence[_Part]]) -> list[tuple[list[int], list[int]]]:
        """Encode each exchange as ids and labels. Adjacent texts are joined. One tokenizer call encodes all."""
        runs = [
            [("".join(run) if is_text else list(chain(*run)), supervised) for is_text, supervised, run in _runs(parts)]
            for parts in exchanges
        ]
        texts = [run for exchange in runs for run, _ in exchange if isinstance(run, str) and run]
        settings = {"add_special_tokens": False, "split_special_tokens": True, "return_attention_mask": False}
        encoded = iter(self.tokenizer(texts, verbose=False, **settings)["input_ids"] if texts else ())
        pairs = []
        for exchange in runs:
            input_ids: list[int] = []
            labels: list[int] = []
            for run, supervised in exchange:
                ids = run if isinstance(run, list) else next(encoded) if run else []
                input_ids += ids
                labels += ids if supervised else [IGNORE_INDEX] * len(ids)
            pairs.append((input_ids, labels))
        return pairs


def _runs(parts: Sequence[_Part]) -> Iterator[tuple[bool, bool, list[Any]]]:
    """Group adjacent parts of one kind. Yield whether they are text, whether they are supervised, and the parts."""
    for (is_text, supervised), run in groupby(parts, key=lambda part: (isinstance(part[0], str), part[1])):
        yield is_text, supervised, [value for value, _ in run]


def _check_caption(sample: Sample) -> None:
    if not sample.images:
        raise SampleError("image_count", "prompt_style 'plain' needs an image in every sample. Choose another style.")
    if sum(turn.role != "system" for turn in sample.turns) != 2:
        raise SampleError("roles", "prompt_style 'plain' needs one question and one answer. Choose another style.")


_TEMPLATE = Template(
    """
{%- macro write(content) -%}
    {%- if content is string -%}{{ content }}
    {%- else -%}
        {%- set seen = namespace(text=false) -%}
        {%- for part in content -%}
            {%- if part.type == 'image' -%}{{ '<image>' }}
            {%- else -%}
                {%- if loop.previtem is defined and not seen.text and not part.text.startswith('\\n') -%}
                    {{ '\\n' }}
                {%- endif -%}
                {%- set seen.text = true -%}
                {{ part.text }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- macro images(content) -%}{{ '<image>' * (write(content).split('<image>') | length - 1) }}{%- endmacro -%}
{%- if $system and messages[0].role != 'system' -%}{{ $system_header + $system + $system_footer }}{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {{ $assistant_header + $answer_prefix + write(message.content) + $end_of_turn + $assistant_footer }}
    {%- elif message.role == 'user' -%}{{ $user_header + $question(message.content) + $user_footer }}
    {%- elif not $images_only -%}{{ $system_header + write(message.content) + $system_footer }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ $assistant_header }}{%- endif -%}
""".strip()
)


def chat_template(style: PromptStyle) -> str:
    """Return the Jinja chat template of a style, for export.

    The content of a message is a string with `<image>`, or a list of ``{"type": "image"}`` and ``{"type": "text"}``.
    In a list, a newline follows images that precede the text, as in LLaVA.

    The ids equal those of `Prompter`, with two exceptions that a template cannot avoid. Control tokens in the text of
    a turn become control tokens. A newline at the start of an answer may merge with the header before it.
    """
    literals = {f"{role}_header": text for role, text in style.headers.items()}
    literals |= {f"{role}_footer": text for role, text in style.footers.items()}
    names = {name: json.dumps(text, ensure_ascii=False) for name, text in literals.items()}
    return _TEMPLATE.substitute(
        names,
        answer_prefix=json.dumps(style.answer_prefix),
        end_of_turn="eos_token" if style.end_of_turn is None else json.dumps(style.end_of_turn),
        system=json.dumps(style.system or "", ensure_ascii=False),
        question="images" if style.images_only else "write",
        images_only=json.dumps(style.images_only),
    )
