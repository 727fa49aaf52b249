"""MMMU's rules, which ``llava`` and ``lmms`` share. Source: MMMU's ``eval_utils.py``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

ENDS = ",.!?;:'"
INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def choose(text: str, options: Mapping[str, str], forms: Mapping[str, str]) -> str | None:
    """Return the letter that an answer gives, or None if the source would guess at random.

    If no form of a letter occurs, an answer of more than five words may name an option's text. The last of several
    letters or texts counts.

    Args:
        text: The answer. The marks at its ends are removed, one kind after the other.
        options: Text of each option by letter.
        forms: Forms of a letter in order of preference, each with the form whose last position ranks several letters.
            If no letter has that form, the first one counts.
    """
    for mark in ENDS:
        text = text.strip(mark)
    text = f" {text} "
    for form, ranking in forms.items():
        if letters := [letter for letter in options if form.format(letter) in text]:
            return max(letters, key=lambda letter: text.rfind(ranking.format(letter)))
    text = text.lower()
    named = [letter for letter, option in options.items() if option.lower() in text] if len(text.split()) > 5 else []
    return max(named, key=lambda letter: text.rfind(options[letter].lower()), default=None)


def contains(text: str, answers: Sequence[str]) -> bool:
    """Return whether an open answer contains a correct text, or a correct number rounded to two decimals.

    >>> contains("The answer is 10", ["10"]), contains("18", ["8"])
    (True, False)
    """
    correct = [value for answer in answers for value in _normalize(answer)]
    for candidate in _candidates(text):
        if isinstance(candidate, str):
            if any(isinstance(answer, str) and answer in candidate for answer in correct):
                return True
        elif candidate in correct:
            return True
    return False


def as_one_text(answers: Sequence[str]) -> str:
    """Return the correct answers of an open question as the text that tables contain: of a list, if it has several.

    >>> as_one_text(["8"]), as_one_text(["8", "18"])
    ('8', "['8', '18']")
    """
    return answers[0] if len(answers) == 1 else str(list(answers))


def _candidates(text: str) -> list[str | float]:
    """Return the possible meanings of an open answer: the ends of its lines or the whole text, and their numbers."""
    text = text.strip().strip(".").lower()
    *lines, last = text.split("\n")
    ends = [*(_end(line, INDICATORS) for line in lines), _end(last, (*INDICATORS, "="))]
    keys = [end for end in ends if end and end not in tuple(ENDS)] or [text]
    numbers = [number for key in keys for pattern in NUMBERS for number in re.findall(pattern, key)]
    return [value for piece in (*keys, *numbers) for value in _normalize(piece)]


def _end(line: str, indicators: Sequence[str]) -> str:
    """Return the shortest end of a line after an indicator. An empty one gives way to that of the next indicator."""
    shortest = ""
    for indicator in indicators:
        if indicator in line:
            end = line.split(indicator)[-1].strip()
            shortest = end if not shortest or len(end) < len(shortest) else shortest
    return shortest


def _normalize(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lowered = text.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]
