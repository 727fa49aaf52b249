"""Short answers: normalization, and agreement with the answers of ten people (VQAv2, TextVQA, VizWiz)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from lightning_switchkd.evaluation.benchmarks.scorers.contractions import CONTRACTIONS

Normalizer = Callable[[str], str]

CACHE_SIZE = 1 << 18
"""Number of normalized texts to cache. People give few different answers."""

MARKS = ';/[]"{}()=+\\_-><@`,?!'
DIGITS = "zero one two three four five six seven eight nine ten"
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(DIGITS.split())}
ARTICLES = ("a", "an", "the")


def without_marks(text: str, period: str = r"\.(?!\d)", thousands: str = r"\d,\d") -> str:
    """Remove punctuation marks and periods.

    A mark is deleted if one of its kind touches a space, or if the text has a comma between digits. Otherwise it
    becomes a space. At most 32 periods are deleted, because the source passes a flag as the count.

    Args:
        text: The answer.
        period: Regular expression of the periods to delete. Default: periods that no digit follows.
        thousands: Regular expression of a comma between digits.
    """
    between_digits = re.search(thousands, text) is not None
    cleaned = text
    for mark in MARKS:
        touches = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if touches or between_digits else " ")
    return re.sub(period, "", cleaned, count=32)


def plain_words(text: str) -> str:
    """Lowercase, write number words as digits, drop articles, and restore the apostrophes of contractions."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def one_line(text: str) -> str:
    """Replace line breaks and tabs by spaces, and strip the text."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=CACHE_SIZE)
def official(text: str) -> str:
    """Normalize as the VQA challenge's own code does.

    Source: GT-Vision-Lab/VQA, ``vqaEval.py``.

    >>> official("1,000 t-shirt")
    '1000 tshirt'
    """
    return plain_words(without_marks(one_line(text)))


@lru_cache(maxsize=CACHE_SIZE)
def evalai(text: str) -> str:
    """Normalize as LLaVA does for EvalAI (``m4c_evaluator.py``).

    Commas and question marks are deleted first, and ``'s`` becomes a word.

    >>> evalai("1,000 t-shirt")
    '1000 t shirt'
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return official(text)


def consensus(prediction: str, answers: Sequence[str], normalize: Normalizer = evalai) -> float:
    """Score the agreement with ten people: the mean of min(1, matches / 3) over all subsets that omit one person.

    Args:
        prediction: The model's answer.
        answers: The people's answers. Each is omitted once by its position, even if its text repeats.
        normalize: Normalization of all texts.

    >>> consensus("2", ["2"] * 3 + ["3"] * 7)
    0.9
    """
    prediction = normalize(prediction)
    matches = [normalize(answer) == prediction for answer in answers]
    return round(sum(min(1.0, (sum(matches) - omitted) / 3) for omitted in matches) / len(matches), 12)


def challenge(prediction: str, answers: Sequence[str]) -> float:
    """Score as the VQA challenge does: if all people agree, it compares the texts as they are.

    Source: GT-Vision-Lab/VQA, ``vqaEval.py``.

    >>> challenge("Yes.", ["yes"] * 10), challenge("Yes.", ["yes"] * 9 + ["no"])
    (0.0, 1.0)
    """
    return consensus(prediction, answers, one_line if len(set(map(one_line, answers))) == 1 else official)
