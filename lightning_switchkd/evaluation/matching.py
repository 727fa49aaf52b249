"""Answers matched to the questions of a benchmark."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.answer_files import shorten
from lightning_switchkd.evaluation.answers import Answer
from lightning_switchkd.evaluation.benchmarks.items import Item

Key = TypeVar("Key", bound=Hashable)


@dataclass
class Matched:
    """Answers matched to their questions, and the defects of the file.

    Attributes:
        texts: One answer per question, or None.
        errors: Reasons why answers are missing, by id.
        missing: Ids of questions without an answer.
        unknown: Ids of answers without a question.
        doubled: Ids of questions with several answers. The first answer counts.
        damaged: Rows that cannot be read.
        other_prompts: Ids of answers whose prompt does not contain the question.
    """

    texts: list[str | None]
    errors: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    other_prompts: list[str] = field(default_factory=list)

    def defects(self) -> dict[str, list[str]]:
        """Return the defects by kind. The dict is empty for a clean file."""
        kinds = {name: getattr(self, name) for name in ("missing", "unknown", "doubled", "damaged")}
        kinds["failed"] = list(self.errors)
        return {kind: ids for kind, ids in kinds.items() if ids}

    def summary(self) -> str:
        """Return the defects as one line."""
        return "; ".join(f"{len(ids)} {kind} ({shorten(ids)})" for kind, ids in self.defects().items())

    def check(self, answers: str, benchmark: str) -> None:
        """Check that the answers are those of the benchmark.

        Args:
            answers: The answer file.
            benchmark: Name of the benchmark.

        Raises:
            UserError: Less than half of the questions have an answer, or most prompts are those of other questions.
        """
        total = len(self.texts)
        found = sum(text is not None for text in self.texts)
        if 2 * found < total:
            raise UserError(
                f"{answers} answers {found} of the {total} questions of '{benchmark}': {self.summary()}. "
                "Check --benchmark and --id_column, or set --allow_missing."
            )
        if 2 * len(self.other_prompts) > found:
            raise UserError(
                f"{answers}: {len(self.other_prompts)} of {found} prompts do not contain the question of '{benchmark}' "
                f"with the same id ({shorten(self.other_prompts)}). Check --benchmark and --id_column, or set "
                "--allow_missing."
            )


def match(items: Sequence[Item], answers: Iterable[Answer], damaged: Sequence[str] = ()) -> Matched:
    """Match answers to questions by id.

    If several questions share an id, the prompt decides: it must contain the question. Answers without a prompt are
    matched in the order of the questions. Questions with equal id and text share their answer. Samples of lmms-eval are
    matched by id or by row, whichever fits more prompts.

    Args:
        items: The questions.
        answers: The answers.
        damaged: Rows of the answer file that cannot be read.
    """
    answers = list(answers)
    ways = [_by_id(items, answers)]
    if any(answer.row is not None and answer.prompt for answer in answers):
        ways.append([a.row if a.prompt and a.row is not None and a.row < len(items) else None for a in answers])
    indices, other_prompts = max(((way, _other_prompts(items, answers, way)) for way in ways), key=_num_fitting)
    copies = _indices(items, lambda item: (item.id, item.question))
    matched = Matched([None] * len(items), damaged=list(damaged), other_prompts=other_prompts)
    seen: set[int] = set()
    for answer, index in zip(answers, indices, strict=True):
        if index is None:
            matched.unknown.append(answer.id)
        elif index in seen:
            matched.doubled.append(answer.id)
        else:
            same = copies[items[index].id, items[index].question]
            seen.update(same)
            if answer.error:
                matched.errors[answer.id] = answer.error
            else:
                for copy in same:
                    matched.texts[copy] = answer.text
    matched.missing = [item.id for number, item in enumerate(items) if number not in seen]
    return matched


def _num_fitting(way: tuple[list[int | None], list[str]]) -> int:
    indices, other_prompts = way
    return sum(index is not None for index in indices) - len(other_prompts)


def _by_id(items: Sequence[Item], answers: Sequence[Answer]) -> list[int | None]:
    """Return the index of each answer's question. Suffix and folder of an image may differ, or the id be the image."""
    by_id = _indices(items, lambda item: item.id)
    by_plain_id = _indices(items, lambda item: _plain_id(item.id))
    by_image = _indices(items, lambda item: _plain_id(item.image))
    seen: set[int] = set()
    found: list[int | None] = []
    for answer in answers:
        indices = by_id.get(answer.id) or by_plain_id.get(_plain_id(answer.id), [])
        if not indices and answer.prompt:
            indices = [i for i in by_image.get(_plain_id(answer.id), []) if _asks(answer.prompt, items[i])]
        index = _index(items, indices, answer, seen)
        found.append(index)
        seen.update([] if index is None else [index])
    return found


def _indices(items: Sequence[Item], key: Callable[[Item], Key]) -> dict[Key, list[int]]:
    indices: dict[Key, list[int]] = {}
    for index, item in enumerate(items):
        indices.setdefault(key(item), []).append(index)
    return indices


def _plain_id(name: str) -> str:
    """Return an id without the parts that differ between files.

    >>> _plain_id("artwork/images/10.jpg"), _plain_id("artwork/10"), _plain_id("7.0")
    ('artwork/10', 'artwork/10', '7')
    """
    return re.sub(r"\.(0|png|jpe?g|webp)$", "", name.replace("/images/", "/"), flags=re.IGNORECASE)


def _index(items: Sequence[Item], indices: Sequence[int], answer: Answer, seen: set[int]) -> int | None:
    if len(indices) <= 1:
        return indices[0] if indices else None
    if not answer.prompt:
        return next((index for index in indices if index not in seen), indices[-1])
    matching = [index for index in indices if _asks(answer.prompt, items[index])]
    return max(matching, key=lambda index: (len(items[index].question), index not in seen), default=None)


def _other_prompts(items: Sequence[Item], answers: Sequence[Answer], indices: Sequence[int | None]) -> list[str]:
    """Return the ids of answers whose prompt does not contain the question."""
    pairs = zip(answers, indices, strict=True)
    return [a.id for a, index in pairs if index is not None and a.prompt and not _asks(a.prompt, items[index])]


def _asks(prompt: str, item: Item) -> bool:
    return _plain(item.question) in _plain(prompt)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<image( \d+)?>", "", text)).strip().lower()
