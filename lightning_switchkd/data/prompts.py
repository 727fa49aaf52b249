"""Conversation -> token ids and labels: prompt styles, the supervised mask, truncation, the matching chat template.

Text between two control tokens is encoded in one piece, as a tokenizer does with a whole prompt; only the start of an
answer splits it, as it does in generation. So the mask cannot drift, and the ids equal those of `chat_template`.
The text of a turn never becomes a control token: it is encoded with ``split_special_tokens=True``.
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

_Part: TypeAlias = tuple[str | list[int], bool]  # a text still to encode, or token ids; and whether they are learnt


@dataclass(frozen=True)
class PromptStyle:
    """How a conversation is written.

    Attributes:
        name: what settings call it.
        headers: what comes before the text of a turn, by role.
        footers: what comes after it, by role; after an answer it follows the end of turn and is not learnt.
        controls: the control tokens written in headers, footers and end.
        lead: what an answer begins with, learnt with it.
        end: the end of turn, learnt with every answer; None is the tokenizer's end-of-sequence token.
        system: the system prompt of conversations that bring none.
        images_only: of a question only the images are kept (LLaVA's pretraining on captions).
    """

    name: str
    headers: dict[Role, str]
    footers: dict[Role, str]
    end: str | None
    controls: tuple[str, ...] = ()
    lead: str = ""
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
            end="<|im_end|>",
            controls=("<|im_start|>", "<|im_end|>"),
        ),
        PromptStyle(
            name="tinyllava_v1",
            headers={"system": "", "user": "USER: ", "assistant": " ASSISTANT:"},
            footers={"system": " ", "user": "", "assistant": ""},
            end=None,
            lead=" ",  # BPE reads the space with the first word of the answer, in generation too
            system="A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        ),
        PromptStyle(
            name="plain",
            headers={"system": "", "user": "", "assistant": ""},
            footers={"system": "", "user": "", "assistant": ""},
            end="\n",
            images_only=True,
        ),
    )
}


def prompt_style(name: str, system: str | None = None) -> PromptStyle:
    """The style called `name`, with its own system prompt or the one given.

    Raises:
        UserError: no style has that name.
    """
    if name not in STYLES:
        raise UserError(f"prompt_style {name!r} is unknown: use one of {', '.join(STYLES)}")
    style = STYLES[name]
    return style if system is None else replace(style, system=system)


@dataclass(frozen=True)
class Encoded:
    """One tokenised conversation.

    Attributes:
        input_ids: every image stands as its run of `<image>` ids.
        labels: as long, unshifted, `IGNORE_INDEX` except on answers and their end of turn.
        images: how many of the record's images, from the first, are still there after truncation.
        whole: nothing was cut off.
    """

    input_ids: list[int]
    labels: list[int]
    images: int
    whole: bool = True


class Prompter:
    """Writes records in one style with one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer that knows the style's control tokens and `<image>`.
        style: the prompt style.
        image_tokens: ids that stand for one image.
        max_length: most ids a record may have.

    Raises:
        UserError: the tokenizer lacks a control token of the style.
    """

    def __init__(self, tokenizer: Any, style: PromptStyle, image_tokens: int, max_length: int) -> None:
        self.tokenizer, self.style = tokenizer, style
        self.image_tokens, self.max_length = image_tokens, max_length
        self.control: dict[str, int] = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self.end: str = style.end if style.end is not None else tokenizer.eos_token
        for token in (*style.controls, IMAGE_TOKEN, *([self.end] if style.end is None else [])):
            if token not in self.control:
                raise UserError(
                    f"the tokenizer has no special token {token!r}, which prompt_style {style.name!r} needs: "
                    "choose another style, or a processor whose tokenizer has it"
                )
        self._split = re.compile("(" + "|".join(map(re.escape, self.control)) + ")")

    def encode(self, sample: Sample) -> Encoded:
        """The record for training: whole exchanges from the first, as many as `max_length` holds.

        Raises:
            RecordError: ``no_supervision`` where not even the first exchange fits; for `plain`, ``roles`` or
                ``image_count`` where the record is not one question, one answer and an image.
        """
        input_ids: list[int] = []
        labels: list[int] = []
        whole = True
        exchanges = [[part for turn in turns for part in self._turn(turn, sample)] for turns in self._exchanges(sample)]
        for ids, exchange_labels in self._tokenize(exchanges):
            if len(input_ids) + len(ids) > self.max_length:
                whole = False
                break
            input_ids += ids
            labels += exchange_labels
        if not input_ids:
            raise SampleError(
                "no_supervision",
                f"the first question and answer make {len(ids)} tokens, more than max_length {self.max_length}: "
                "raise max_length or shorten the record",
            )
        return Encoded(input_ids, labels, input_ids.count(self.control[IMAGE_TOKEN]) // self.image_tokens, whole)

    def encode_question(self, sample: Sample) -> list[int]:
        """The ids that ask for the last answer: everything up to and with the assistant's header.

        Raises:
            RecordError: ``too_long`` where they are more than `max_length`.
        """
        turns = [turn for exchange in self._exchanges(sample) for turn in exchange][:-1]
        header = self._control_text(self.style.headers["assistant"])
        ((ids, _),) = self._tokenize([[*(part for turn in turns for part in self._turn(turn, sample)), *header]])
        if len(ids) > self.max_length:
            raise SampleError(
                "too_long", f"the question makes {len(ids)} tokens, more than max_length {self.max_length}"
            )
        return ids

    @property
    def stop_ids(self) -> list[int]:
        """The ids at which generation ends: the style's end of turn and the tokenizer's end of sequence."""
        stops = {self.control.get(self.end), self.tokenizer.eos_token_id}
        return sorted(stop for stop in stops if stop is not None)

    def _exchanges(self, sample: Sample) -> Iterator[list[Turn]]:
        """Question and answer, pair by pair; the first with the system turn."""
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
            yield self.style.lead + turn.text, True
            yield from self._control_text(self.end, learnt=True)
        elif turn.role == "user" and sample.images:
            yield from self._question(turn.text)
        elif not self.style.images_only:
            yield turn.text, False
        yield from self._control_text(self.style.footers[turn.role])

    def _question(self, text: str) -> Iterator[_Part]:
        for position, piece in enumerate(text.split(IMAGE_TOKEN)):
            if position > 0:
                yield [self.control[IMAGE_TOKEN]] * self.image_tokens, False
            if not self.style.images_only:
                yield piece, False

    def _control_text(self, text: str, learnt: bool = False) -> Iterator[_Part]:
        """A text of the style, in which control tokens are control tokens."""
        for piece in self._split.split(text):
            yield [self.control[piece]] if piece in self.control else piece, learnt

    def _tokenize(self, exchanges: Sequence[Sequence[_Part]]) -> list[tuple[list[int], list[int]]]:
        """Ids and labels of each exchange; neighbouring texts are one to the tokenizer, which is asked once for all."""
        runs = [
            [("".join(run) if is_text else list(chain(*run)), learnt) for is_text, learnt, run in _runs(parts)]
            for parts in exchanges
        ]
        texts = [run for exchange in runs for run, _ in exchange if isinstance(run, str) and run]
        settings = {"add_special_tokens": False, "split_special_tokens": True, "return_attention_mask": False}
        encoded = iter(self.tokenizer(texts, verbose=False, **settings)["input_ids"] if texts else ())
        found = []
        for exchange in runs:
            input_ids: list[int] = []
            labels: list[int] = []
            for run, learnt in exchange:
                ids = run if isinstance(run, list) else next(encoded) if run else []
                input_ids += ids
                labels += ids if learnt else [IGNORE_INDEX] * len(ids)
            found.append((input_ids, labels))
        return found


def _runs(parts: Sequence[_Part]) -> Iterator[tuple[bool, bool, list[Any]]]:
    """Neighbours of one kind: whether they are texts, whether they are learnt, and what they are."""
    for (is_text, learnt), run in groupby(parts, key=lambda part: (isinstance(part[0], str), part[1])):
        yield is_text, learnt, [value for value, _ in run]


def _check_caption(sample: Sample) -> None:
    if not sample.images:
        raise SampleError("image_count", "prompt_style 'plain' needs an image in every record: choose another style")
    if sum(turn.role != "system" for turn in sample.turns) != 2:
        raise SampleError("roles", "prompt_style 'plain' needs one question and one answer: choose another style")


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
        {{ $assistant_header + $lead + write(message.content) + $end + $assistant_footer }}
    {%- elif message.role == 'user' -%}{{ $user_header + $question(message.content) + $user_footer }}
    {%- elif not $images_only -%}{{ $system_header + write(message.content) + $system_footer }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ $assistant_header }}{%- endif -%}
""".strip()
)


def chat_template(style: PromptStyle) -> str:
    """The Jinja chat template that writes as `style` does, for export.

    A message's content is a string with `<image>` in it, or a list of ``{"type": "image"}`` and ``{"type": "text"}``;
    in a list, images that come before the text are followed by a newline, as LLaVA writes them.

    The ids are those of `Prompter`, with two exceptions a template cannot avoid: control tokens in the text of a turn
    become control tokens, and a newline that begins an answer may merge with the header before it.
    """
    literals = {f"{role}_header": text for role, text in style.headers.items()}
    literals |= {f"{role}_footer": text for role, text in style.footers.items()}
    names = {name: json.dumps(text, ensure_ascii=False) for name, text in literals.items()}
    return _TEMPLATE.substitute(
        names,
        lead=json.dumps(style.lead),
        end="eos_token" if style.end is None else json.dumps(style.end),
        system=json.dumps(style.system or "", ensure_ascii=False),
        question="images" if style.images_only else "write",
        images_only=json.dumps(style.images_only),
    )
