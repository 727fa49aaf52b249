"""Rules of VLMEvalKit with exact matching: no language model is asked. It has no VQAv2."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from functools import lru_cache

from lightning_switchkd.evaluation.benchmarks.scorers import API_ERROR, Reply
from lightning_switchkd.evaluation.benchmarks.scorers.mmmu import as_one_text
from lightning_switchkd.evaluation.benchmarks.scorers.short_answer import (
    CACHE_SIZE,
    consensus,
    one_line,
    plain_words,
    without_marks,
)

PERIOD = r"(?<!\d)\.(?!\d)"
"""The periods that it deletes: those between other characters than digits."""

NO_OPTION = "Z"
"""Its letter for an answer that names no option."""

REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def yes_no(text: str) -> Reply:
    """Parse an answer to MME or POPE: a yes or a no as a word. An answer with both is neither.

    Source: ``YOrN_Extraction`` of ``dataset/utils/yorn.py``.

    >>> yes_no("Well, yes"), yes_no("Nope"), yes_no("**Yes**")
    ('yes', 'other', 'other')
    """
    replies = {"yes", "no"} & set(without_marks(text.lower(), PERIOD).split())
    return "yes" if replies == {"yes"} else "no" if replies == {"no"} else "other"


def gqa(text: str, answer: str) -> bool:
    """Compare by exact match, ignoring case and spaces at the ends.

    Source: ``process_line`` of ``dataset/utils/vqa_eval.py``.

    >>> gqa(" YES", "yes"), gqa("yes.", "yes")
    (True, False)
    """
    return text.strip().lower() == answer.strip().lower()


def choice(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option that an answer names, or None.

    One option's letter counts among the last four words, then the letter after "answer is", in any case and even at the
    start of a word. Then one option's text counts, inside of other words as well, if the answer is not long.

    Source: ``can_infer`` of ``utils/matching_util.py``.

    >>> options = {"A": "cat", "B": "dog"}
    >>> [choice(text, options) for text in ("It is a dog", "The answer is b.", "Cannot determine the answer: B")]
    ['B', 'B', None]
    """
    letter = _letter(text, options) or _named(text, options)
    return letter if letter in options else None


def _letter(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that an answer gives, its letter for no option, or None if the options' texts decide."""
    if API_ERROR in text:
        return None
    if any(refusal in text for refusal in REFUSALS):
        return NO_OPTION
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) > len(words) - 5:
        return letters[0]
    if not letters and NO_OPTION in words:
        return NO_OPTION
    stated = re.search(r"answer\s+is\s+\**([ABCD])", text, re.IGNORECASE)
    return stated[1].upper() if stated and stated[1].upper() in options else None


def _named(text: str, options: Mapping[str, str]) -> str | None:
    """Return the only option whose text is in an answer that is at most twice as long as all options."""
    text = text.lower()
    if len(text) > 2 * sum(map(len, options.values())):
        return None
    named = [letter for letter, option in options.items() if option.lower() in text]
    return named[0] if len(named) == 1 else None


def mmmu_open(text: str, answers: Sequence[str]) -> bool:
    """Score an open answer as a choice between the correct answer (A) and "Other Answers" (B).

    Source: ``MMMU_preproc`` and ``mcq_vanilla_eval`` of ``dataset/utils/multiple_choice.py``. Several correct answers
    are one text, as in its table. If the correct answer is itself a letter, that letter is expected.

    >>> mmmu_open("It is 24", ["24"]), mmmu_open("25", ["24"]), mmmu_open("24", ["24", "25"])
    (True, False, False)
    """
    answer = as_one_text(answers)
    expected = answer if len(answer) == 1 and answer in string.ascii_uppercase else "A"
    return (choice(text, {"A": answer, "B": "Other Answers"}) or NO_OPTION) == expected


def short_answer(text: str, answers: Sequence[str]) -> float:
    """Score the agreement with ten people (TextVQA, VizWiz).

    Source: ``process_line`` of ``dataset/utils/vqa_eval.py``. A period after a digit stays.

    >>> short_answer("3.", ["3"] * 10), short_answer("A dog.", ["dog"] * 10)
    (0.0, 1.0)
    """
    return consensus(text, answers, _normalize)


@lru_cache(maxsize=CACHE_SIZE)
def _normalize(text: str) -> str:
    return plain_words(without_marks(one_line(text), PERIOD))
