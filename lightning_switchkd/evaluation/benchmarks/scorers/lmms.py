"""Rules of lmms-eval. TextVQA and VizWiz are not here: it scores them by ``short_answer.consensus``, as LLaVA does."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

from lightning_switchkd.evaluation.benchmarks.scorers import API_ERROR, Reply
from lightning_switchkd.evaluation.benchmarks.scorers.llava import mme as official_mme
from lightning_switchkd.evaluation.benchmarks.scorers.mmmu import as_one_text, choose, contains
from lightning_switchkd.evaluation.benchmarks.scorers.short_answer import (
    consensus,
    one_line,
    plain_words,
    without_marks,
)

LETTERS = "ABCDE"
LETTERS_WITH_TEXT = "ABCD"

MISSING_OPTION = "nan"
"""Text of an option that a question of its MMBench does not have. It counts as an option."""

SINGLE_FORMS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")
"""Forms of a letter as a word of an answer, in order of preference."""

PHRASES = (
    *("the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is"),
    *("best answer is", "the correct option is", "correct option is", "the best option is", "best option is"),
    *("the choice is", "choice is", "the correct choice is", "correct choice is", "i choose", "i select", "i pick"),
    *("my answer is", "my choice is", "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
"""Phrases that announce a letter."""


def mme(text: str) -> Reply:
    """Parse an answer by MME's rules, without spaces at the ends and without periods. A single y or n counts.

    Source: ``mme/utils.py``.

    >>> mme("N."), mme("  yes"), mme("It is yes")
    ('no', 'yes', 'other')
    """
    text = text.lower().strip().replace(".", "")
    return official_mme({"y": "yes", "n": "no"}.get(text, text))


def pope(text: str) -> Reply:
    """Parse an answer that is exactly a yes or a no.

    Source: ``pope/utils.py``.

    >>> pope("YES"), pope("Yes.")
    ('yes', 'other')
    """
    text = text.lower().strip()
    return "yes" if text == "yes" else "no" if text == "no" else "other"


def gqa(text: str, answer: str) -> bool:
    """Compare by exact match, ignoring case and punctuation.

    Source: ``gqa/gqa.yaml``, ``exact_match`` of ``api/metrics.py``.

    >>> gqa("tshirt", "t-shirt"), gqa("yes .", "yes")
    (True, False)
    """
    drop = str.maketrans("", "", string.punctuation)
    return text.lower().translate(drop) == answer.lower().translate(drop)


def scienceqa(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that an answer gives: a bare letter in any case, or a capital letter and a period.

    Source: ``scienceqa/utils.py``.

    >>> [scienceqa(text, {"A": "dog", "B": "cat"}) for text in ("b", "B.cat", "b.", "(B)")]
    ['B', 'B', None, None]
    """
    text = text.strip()
    letter = text.upper() if len(text) == 1 else text[:1] if text[1:2] == "." and text[:1].isupper() else ""
    return letter if letter in options else None


def mmbench(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option that an answer names, or None.

    A letter as a word counts, then one option's text, inside of other words as well, then any trace of a letter. Every
    question has four options.

    Source: ``mmbench/mmbench_evals.py`` with ``static`` evaluation, ``_task_utils/mcq_extract.py``.

    >>> options = {"A": "a cat", "B": "a dog"}
    >>> [mmbench(text, options) for text in ("(B)", "It is a dog", "答案是B", "b", "banana")]
    ['B', 'B', 'B', None, None]
    """
    lettered = {letter: options.get(letter, MISSING_OPTION) for letter in LETTERS_WITH_TEXT}
    named = [letter for letter, option in lettered.items() if option.lower() in text.lower()]
    return word(text) or (named[0] if len(named) == 1 else None) or trace(text, lettered)


def word(text: str) -> str | None:
    """Return the letter that is a word of the answer. A bare "A" in more than three words may be an article."""
    if API_ERROR in text:
        return None
    words = text.split()
    bare = [letter for letter in LETTERS if letter in words]
    if len(bare) == 1 and ("A" not in words or len(words) <= 3):
        return bare[0]
    for form in SINGLE_FORMS:
        if len(letters := [letter for letter in LETTERS if form.format(letter) in words]) == 1:
            return letters[0]
    return None


def trace(text: str, letters: Mapping[str, str]) -> str | None:
    """Return the best trace of a letter. The kinds are ranked, and the last trace of the best kind counts."""
    text = text.strip()
    for mark in (*",.!?;:'", '"'):
        text = text.strip(mark)
    text = f" {text} "
    bare, lowered = text.strip(), text.lower()
    traces: list[tuple[int, int, str]] = []  # rank of the kind, position, letter
    for rank, form in ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} ")):
        traces += [(rank, text.rfind(form.format(x)), x) for x in letters]
    for phrase in PHRASES:
        if phrase in lowered:
            end = lowered.find(phrase) + len(phrase)
            traces += [(7, text.find(x, end), x) for x in letters]
    traces += [(10, 0, x) for x in letters if bare.startswith(x) and not bare[1:2].isalpha()]
    traces += [(9, len(text), x) for x in letters if bare.endswith(x) and not bare[-2:-1].isalpha()]
    found = [trace for trace in traces if trace[1] >= 0]
    found = found or [(0, text.rfind(x), x) for x in letters if x in text]
    return max(found, key=lambda trace: trace[:2], default=(0, 0, None))[2]


def mmmu(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that an answer gives, or None if the source would guess at random.

    A letter counts before a space or a period, even at the end of a word. Several letters are ranked as single words,
    so the first one counts if none is.

    Source: ``_task_utils/mmmu_mcq_utils.py``.

    >>> mmmu("FCC or BCC", {"A": "$6", "B": "$7", "C": "$8"}), mmmu("USA is it", {"A": "$6", "B": "$7"})
    ('C', 'A')
    """
    return choose(text, options, {"({})": "({})", "{} ": " {} ", "{}.": " {} "})


def mmmu_open(text: str, answers: Sequence[str]) -> bool:
    """Score an open answer by MMMU's rules. Several correct answers are one text, as in its data.

    Source: ``eval_open`` of ``mmmu/utils.py``.

    >>> mmmu_open("It is 8", ["8"]), mmmu_open("It is 8", ["8", "18"])
    (True, False)
    """
    return contains(text, [as_one_text(answers)])


def vqav2(text: str, answers: Sequence[str]) -> float:
    """Score the agreement with ten people, with all texts normalized.

    Source: ``vqav2/utils.py``.

    >>> vqav2("Yes.", ["yes"] * 10)
    1.0
    """
    return consensus(text, answers, _normalize)


def _normalize(text: str) -> str:
    return plain_words(without_marks(one_line(text), thousands=r"\d,+\d"))
