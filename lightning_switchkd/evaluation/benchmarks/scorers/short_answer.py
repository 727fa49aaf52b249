"""Short answers, compared with the answers of several people (VQAv2, TextVQA, VizWiz) or with one (GQA)."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Literal

from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol

Normalizer = Literal["official", "evalai", "lmms", "vlmevalkit"]

CACHE_SIZE = 1 << 18
"""Number of normalized texts to cache. People give few different answers."""

MARKS = ';/[]"{}()=+\\_-><@`,?!'
DIGITS = "zero one two three four five six seven eight nine ten"
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(DIGITS.split())}
ARTICLES = ("a", "an", "the")

NEGATED = "ai are ca could did does do had has have is might must need ought sha should was were wo would"
SUBJECTS = "he how i it she that there they we what when where who why you somebody someone something y'all"
ENDINGS = {"d": "'d", "ll": "'ll", "s": "'s", "re": "'re", "ve": "'ve", "dve": "'d've"}
OTHER_WORDS = {"hell", "id", "ill", "its", "shell", "shed", "wed", "well", "were"}
OTHERS = {
    "maam": "ma'am",
    "oclock": "o'clock",
    "twas": "'twas",
    "somebody'd": "somebodyd",
}  # the last entry is the source's


@cache
def contractions() -> dict[str, str]:
    """Map contractions without their apostrophe to those with it. Skip those that are other words."""
    table = {f"{word}nt": f"{word}n't" for word in NEGATED.split()}
    table |= {f"{word}ntve": f"{word}n't've" for word in NEGATED.split()}
    for subject in SUBJECTS.split():
        for plain, ending in ENDINGS.items():
            table[subject.replace("'", "") + plain] = subject + ending
    for word in ("could", "might", "must", "should", "would"):
        table[f"{word}ve"] = f"{word}'ve"
    return {key: to for key, to in table.items() if key not in OTHER_WORDS} | OTHERS


def without_marks(text: str, period: str = r"\.(?!\d)") -> str:
    """Remove punctuation marks and periods.

    A mark is deleted if one of its kind touches a space, or if the text has a comma between digits. Otherwise it
    becomes a space. At most 32 periods are deleted, because the source passes a flag as the count.

    Args:
        text: The answer.
        period: Regular expression of the periods to delete. Default: periods that no digit follows.
    """
    between_digits = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in MARKS:
        touches = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if touches or between_digits else " ")
    return re.sub(period, "", cleaned, count=32)


def plain_words(text: str) -> str:
    """Lowercase, write number words as digits, drop articles, and restore the apostrophes of contractions."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(contractions().get(word, word) for word in words if word not in ARTICLES)


def _spaces(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=CACHE_SIZE)
def official(text: str) -> str:
    """Normalize as the VQA challenge's own code does.

    Source: GT-Vision-Lab/VQA, ``vqaEval.py``.

    >>> official("1,000 t-shirt")
    '1000 tshirt'
    """
    return plain_words(without_marks(_spaces(text)))


@lru_cache(maxsize=CACHE_SIZE)
def evalai(text: str) -> str:
    """Normalize as LLaVA does for EvalAI (``m4c_evaluator.py``).

    Commas and question marks are deleted first, and ``'s`` becomes a word.

    >>> evalai("1,000 t-shirt")
    '1000 t shirt'
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return plain_words(without_marks(_spaces(text)))


@lru_cache(maxsize=CACHE_SIZE)
def vlmevalkit(text: str) -> str:
    """Normalize as VLMEvalKit does: as :func:`official`, but keep a period after a digit.

    >>> vlmevalkit("3."), vlmevalkit("A dog.")
    ('3.', 'dog')
    """
    return plain_words(without_marks(_spaces(text), r"(?<!\d)\.(?!\d)"))


NORMALIZERS: dict[Normalizer, Callable[[str], str]] = {
    "official": official,
    "evalai": evalai,
    "lmms": official,
    "vlmevalkit": vlmevalkit,
}


def consensus(prediction: str, answers: Sequence[str], normalizer: Normalizer = "evalai") -> float:
    """Score the agreement with ten people: the mean of min(1, matches / 3) over all subsets that omit one person.

    Args:
        prediction: The model's answer.
        answers: The people's answers. Each is omitted once by its position, even if its text repeats.
        normalizer: Normalization. ``official`` compares raw texts if all people agree. ``evalai`` and ``lmms`` always
            normalize.

    >>> consensus("2", ["2"] * 3 + ["3"] * 7)
    0.9
    """
    if normalizer != "official" or len(set(map(_spaces, answers))) > 1:
        normalize = NORMALIZERS[normalizer]
        prediction, answers = normalize(prediction), [normalize(answer) for answer in answers]
    else:
        prediction, answers = _spaces(prediction), [_spaces(answer) for answer in answers]
    matches = [answer == prediction for answer in answers]
    return round(sum(min(1.0, (sum(matches) - omitted) / 3) for omitted in matches) / len(matches), 12)


def equal(prediction: str, answer: str, protocol: ScoringProtocol = "llava") -> bool:
    """Compare by GQA's exact match. ``llava`` strips only periods at the end of the prediction.

    >>> equal("Yes.", "yes"), equal("Yes.", "yes", "vlmevalkit")
    (True, False)
    """
    if protocol == "llava":
        return prediction.rstrip(".").lower() == answer.lower()
    if protocol == "lmms":
        drop = str.maketrans("", "", string.punctuation)
        return prediction.lower().translate(drop) == answer.lower().translate(drop)
    return prediction.strip().lower() == answer.strip().lower()
