"""Short answers against those of several people (VQAv2, TextVQA, VizWiz), or against one (GQA)."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Literal

from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol

Normaliser = Literal["official", "evalai", "lmms", "vlmevalkit"]

KEPT = 1 << 18
"""Normalised texts that are kept: people give few different answers."""

MARKS = ';/[]"{}()=+\\_-><@`,?!'
DIGITS = "zero one two three four five six seven eight nine ten"
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(DIGITS.split())}
ARTICLES = ("a", "an", "the")

NEGATED = "ai are ca could did does do had has have is might must need ought sha should was were wo would"
SUBJECTS = "he how i it she that there they we what when where who why you somebody someone something y'all"
ENDINGS = {"d": "'d", "ll": "'ll", "s": "'s", "re": "'re", "ve": "'ve", "dve": "'d've"}
WORDS_OF_THEIR_OWN = {"hell", "id", "ill", "its", "shell", "shed", "wed", "well", "were"}
OTHERS = {"maam": "ma'am", "oclock": "o'clock", "twas": "'twas", "somebody'd": "somebodyd"}  # the last as in the source


@cache
def contractions() -> dict[str, str]:
    """Contractions without their apostrophe -> with it, but for those that are words of their own."""
    table = {f"{word}nt": f"{word}n't" for word in NEGATED.split()}
    table |= {f"{word}ntve": f"{word}n't've" for word in NEGATED.split()}
    for subject in SUBJECTS.split():
        for plain, ending in ENDINGS.items():
            table[subject.replace("'", "") + plain] = subject + ending
    for word in ("could", "might", "must", "should", "would"):
        table[f"{word}ve"] = f"{word}'ve"
    return {key: to for key, to in table.items() if key not in WORDS_OF_THEIR_OWN} | OTHERS


def without_marks(text: str, period: str = r"\.(?!\d)") -> str:
    """Marks deleted where any of the kind touches a space, or digits are parted by a comma; else made spaces.

    Then periods go that stand before no digit, at most 32 of them (a flag is passed as a count in the source).

    Args:
        text: what is said.
        period: the periods that go.
    """
    between_digits = re.search(r"\d,\d", text) is not None
    found = text
    for mark in MARKS:
        touches = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if touches or between_digits else " ")
    return re.sub(period, "", found, count=32)


def plain_words(text: str) -> str:
    """Lower case, number words as digits, no articles, contractions with their apostrophes."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(contractions().get(word, word) for word in words if word not in ARTICLES)


def _spaces(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=KEPT)
def official(text: str) -> str:
    """As the VQA challenge's own code normalises.

    Source: GT-Vision-Lab/VQA, ``vqaEval.py``.

    >>> official("1,000 t-shirt")
    '1000 tshirt'
    """
    return plain_words(without_marks(_spaces(text)))


@lru_cache(maxsize=KEPT)
def evalai(text: str) -> str:
    """As LLaVA normalises for EvalAI (``m4c_evaluator.py``): commas and question marks go first, ``'s`` stands alone.

    >>> evalai("1,000 t-shirt")
    '1000 t shirt'
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return plain_words(without_marks(_spaces(text)))


@lru_cache(maxsize=KEPT)
def vlmevalkit(text: str) -> str:
    """As VLMEvalKit normalises: like :func:`official`, but a period behind a digit stays.

    >>> vlmevalkit("3."), vlmevalkit("A dog.")
    ('3.', 'dog')
    """
    return plain_words(without_marks(_spaces(text), r"(?<!\d)\.(?!\d)"))


NORMALISERS: dict[Normaliser, Callable[[str], str]] = {
    "official": official,
    "evalai": evalai,
    "lmms": official,
    "vlmevalkit": vlmevalkit,
}


def consensus(prediction: str, answers: Sequence[str], normaliser: Normaliser = "evalai") -> float:
    """Share of ten people who agree, three being enough: the mean over each one left out of min(1, matches / 3).

    Args:
        prediction: what the model said.
        answers: what the people said; each is left out by its place, not by its text.
        normaliser: ``official`` compares raw where all people say the same; ``evalai`` and ``lmms`` never do.

    >>> consensus("2", ["2"] * 3 + ["3"] * 7)
    0.9
    """
    if normaliser != "official" or len(set(map(_spaces, answers))) > 1:
        normalise = NORMALISERS[normaliser]
        prediction, answers = normalise(prediction), [normalise(answer) for answer in answers]
    else:
        prediction, answers = _spaces(prediction), [_spaces(answer) for answer in answers]
    same = [answer == prediction for answer in answers]
    return round(sum(min(1.0, (sum(same) - mine) / 3) for mine in same) / len(same), 12)


def equal(prediction: str, answer: str, protocol: ScoringProtocol = "llava") -> bool:
    """GQA's exact match. Never trimmed by ``llava`` beyond periods at the end.

    >>> equal("Yes.", "yes"), equal("Yes.", "yes", "vlmevalkit")
    (True, False)
    """
    if protocol == "llava":
        return prediction.rstrip(".").lower() == answer.lower()
    if protocol == "lmms":
        drop = str.maketrans("", "", string.punctuation)
        return prediction.lower().translate(drop) == answer.lower().translate(drop)
    return prediction.strip().lower() == answer.strip().lower()
