"""Rules of LLaVA's scripts. MMBench is not here: they send it to a server."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lightning_switchkd.evaluation.benchmarks.scorers import Reply
from lightning_switchkd.evaluation.benchmarks.scorers.mmmu import choose
from lightning_switchkd.evaluation.benchmarks.scorers.short_answer import challenge, evalai

LETTERS = "ABCDE"


def mme(text: str) -> Reply:
    """Parse an answer by MME's rules: yes or no anywhere in the first four letters.

    Source: MME's ``calculation.py``.

    >>> mme("Eyes"), mme("It is yes")
    ('yes', 'other')
    """
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def pope(text: str) -> Reply:
    """Parse the first sentence. Every answer without a no is a yes.

    Source: ``eval_pope.py``.

    >>> pope("There is no dog."), pope("NO")
    ('no', 'yes')
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def gqa(text: str, answer: str) -> bool:
    """Compare by exact match, ignoring case and periods at the end of the prediction.

    Source: ``convert_gqa_for_eval.py``, then GQA's ``eval.py``.

    >>> gqa("Yes.", "yes"), gqa("yes, it is", "yes")
    (True, False)
    """
    return text.rstrip(".").lower() == answer.lower()


def scienceqa(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that an answer gives: a bare letter, "X. …", or "The answer is X" with one more character.

    Source: ``eval_science_qa.py``.

    >>> scienceqa("B. cat", {"A": "dog", "B": "cat"}), scienceqa("B.", {"A": "dog", "B": "cat"})
    ('B', None)
    """
    text = text.strip()
    if text and text[0] in LETTERS and (len(text) == 1 or text[1:3] == ". "):
        letters = [text[0]]
    else:
        letters = re.findall(r"The answer is ([A-Z]).", text)
    return letters[0] if len(letters) == 1 and letters[0] in LETTERS and letters[0] in options else None


def mmmu(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that an answer gives, as "(X)" or as a word, or None if MMMU's code would guess at random.

    >>> mmmu("A or B", {"A": "$6", "B": "$7"}), mmmu("B. $7", {"A": "$6", "B": "$7"})
    ('B', None)
    """
    return choose(text, options, {"({})": "({})", " {} ": " {} "})


def vqav2(text: str, answers: Sequence[str]) -> float:
    """Score the text that is uploaded to the VQA challenge.

    Source: ``convert_vqav2_for_submission.py``, then GT-Vision-Lab/VQA, ``vqaEval.py``.

    >>> vqav2("Yes.", ["yes"] * 10), vqav2("thats", ["thats"] * 10)
    (1.0, 0.0)
    """
    return challenge(evalai(text), answers)
