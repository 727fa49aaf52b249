"""Example questions of a report, chosen to show where two systems differ."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.samples import SampleError
from lightning_switchkd.evaluation.benchmarks.definition import Benchmark
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.results import Result

IMAGE_SIZE = 160
"""Longest side of an example's image, in pixels."""

SHARES = (0.4, 0.3, 0.3)
"""Fractions of the examples that only the system, only the baseline, and both or neither answer correctly."""


@dataclass(frozen=True)
class Example:
    """A question with the answers of all systems.

    Attributes:
        group: 0: only the system is correct. 1: only the baseline is. 2: both or neither.
        category: Category of the question.
        question: Text of the question.
        images: PNG files.
        correct: Correct answers.
        answers: Answer and score by system.
    """

    group: int
    category: str
    question: str
    images: list[bytes]
    correct: Sequence[str]
    answers: dict[str, tuple[str, float]]


def examples_of(results: Mapping[str, Result], count: int, system: str, baseline: str) -> list[Example]:
    """Choose questions of a benchmark.

    First come questions that the system answers correctly and the baseline does not, then the reverse, then others.
    Each group takes the kinds of questions in turn, in random order.

    Args:
        results: Results on the benchmark by system.
        count: Number of questions.
        system: The system.
        baseline: The system that it is compared with, which may be missing.
    """
    first = next(iter(results.values()))
    items = _items(first) if count else {}
    ours = results.get(system, first)
    theirs = results.get(baseline, ours)
    order = random.Random(0).sample(range(len(first.ids)), len(first.ids))
    groups: tuple[list[int], ...] = ([], [], [])
    for index in order:
        correct, others_correct = ours.scores[index] >= 0.5, theirs.scores[index] >= 0.5
        groups[2 if correct == others_correct else int(others_correct)].append(index)
    spread = [_spread(group, [_kind(items.get(i), ours.scores[i]) for i in group]) for group in groups]
    chosen = [group[: round(share * count)] for group, share in zip(spread, SHARES, strict=True)]
    for position in (2, 0, 1):  # a group that is too small leaves its places to others
        missing = count - sum(map(len, chosen))
        chosen[position] += spread[position][len(chosen[position]) :][:missing]
    return [
        _example(
            number,
            items.get(index),
            first.ids[index],
            {name: (result.texts[index] or "", result.scores[index]) for name, result in results.items()},
        )
        for number, group in enumerate(chosen)
        for index in group
    ]


def group_titles(ours: str, theirs: str) -> tuple[str, str, str]:
    """Return the headings of the groups, given the labels of the system and the baseline."""
    return (
        f"{ours} is correct, {theirs} is not",
        f"{theirs} is correct, {ours} is not",
        "both are correct, or neither is",
    )


def _kind(item: Item | None, score: float) -> str:
    return f"{item.category if item else ''} {score >= 0.5}"


def _spread(indices: Sequence[int], kinds: Sequence[str]) -> list[int]:
    """Order indices so that their kinds take turns.

    >>> _spread([1, 2, 3, 4], ["a", "a", "b", "a"])
    [1, 3, 2, 4]
    """
    turns = dict.fromkeys(kinds, 0)
    ranked = []
    for index, kind in zip(indices, kinds, strict=True):
        turns[kind] += 1
        ranked.append((turns[kind], index))
    return [index for _, index in sorted(ranked, key=lambda pair: pair[0])]


def _items(result: Result) -> dict[int, Item]:
    """Read the labeled questions of a result again, by index. Questions whose files are gone are missing."""
    try:
        items = [item for item in Benchmark.read(result.definition).items(Path(result.annotations)) if item.answers]
    except UserError:
        return {}
    pairs = enumerate(zip(items, result.ids, strict=False))
    return {index: item for index, (item, recorded_id) in pairs if item.id == recorded_id}


def _example(group: int, item: Item | None, name: str, answers: dict[str, tuple[str, float]]) -> Example:
    if item is None:
        return Example(group, "", f"question {name}", [], [], answers)
    images = []
    for picture in item.pictures:
        try:
            images.append(_png(picture()))
        except SampleError:
            continue
    options = "".join(f"\n{letter}. {text}" for letter, text in item.options.items())
    return Example(group, item.category, item.question + options, images, list(dict.fromkeys(item.answers)), answers)


def _png(image: Image.Image) -> bytes:
    thumbnail = image.copy()
    thumbnail.thumbnail((IMAGE_SIZE, IMAGE_SIZE))
    buffer = io.BytesIO()
    thumbnail.save(buffer, format="PNG")
    return buffer.getvalue()
