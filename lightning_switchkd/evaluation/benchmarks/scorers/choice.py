"""Multiple-choice answers: ScienceQA, MMBench, MMMU. Also MMMU's open questions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol

LETTERS = "ABCDE"


def scienceqa_letter(text: str, choices: int, protocol: ScoringProtocol = "llava") -> str | None:
    """Return the letter that an answer gives, or None.

    Source: LLaVA's ``eval_science_qa.py``. It accepts a bare letter, "X. …", or "The answer is X" with one more
    character.

    Args:
        text: The answer.
        choices: Number of choices.
        protocol: Rules to apply.

    >>> scienceqa_letter("B. cat", 3), scienceqa_letter("B.", 3), scienceqa_letter("B.", 3, "lmms")
    ('B', None, 'B')
    """
    if protocol == "lmms":
        letter = text.upper() if len(text) == 1 else text[:1] if text[1:2] == "." and text[:1].isupper() else ""
    elif text in LETTERS and len(text) == 1:
        letter = text
    elif len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        letter = text[0]
    else:
        matches = re.findall(r"The answer is ([A-Z]).", text)
        letter = matches[0] if len(matches) == 1 else ""
    return letter if letter and letter in LETTERS[:choices] else None


def mmbench_letter(text: str, options: Mapping[str, str], protocol: ScoringProtocol = "vlmevalkit") -> str | None:
    """Return the letter of the option that an answer names, or None. No language model is used as a judge.

    Source: VLMEvalKit's ``can_infer``. It accepts one option's letter among the last four words, "answer is X", or one
    option's text. lmms-eval's static extractor accepts only letters.

    Args:
        text: The answer.
        options: Text of each option by letter.
        protocol: Rules to apply. ``llava`` leaves scoring to a server, so ``vlmevalkit`` applies.

    >>> mmbench_letter("It is a dog", {"A": "cat", "B": "dog"})
    'B'
    """
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    letters = [word for word in words if word in options]
    if len(set(letters)) == 1 and words.index(letters[0]) > len(words) - 5:
        return letters[0]
    if (matches := re.findall(r"answer is ([A-Z])\b", text, re.IGNORECASE)) and matches[0] in options:
        return str(matches[0])
    if protocol == "lmms" or len(text) > 2 * sum(map(len, options.values())):
        return None
    named = [letter for letter, option in options.items() if option.lower() in text.lower()]
    return named[0] if len(named) == 1 else None


def mmmu_letter(text: str, options: Mapping[str, str], protocol: ScoringProtocol = "llava") -> str | None:
    """Return the letter that an answer gives, or None if the official code would guess at random.

    Source: MMMU's ``eval_utils.py``. It looks for "(X)", then for " X ", then in answers of more than five words for an
    option's text. The last match counts. lmms-eval looks for "X " and then for "X.", without a space before.

    >>> mmmu_letter("A or B", {"A": "$6", "B": "$7"}), mmmu_letter("B. $7", {"A": "$6", "B": "$7"})
    ('B', None)
    """
    text = f" {text.strip(_ENDS)} "
    patterns = ["({})", "{} ", "{}."] if protocol == "lmms" else ["({})", " {} "]
    for pattern in patterns:
        if last := {x: text.rfind(pattern.format(x)) for x in options if pattern.format(x) in text}:
            return max(last, key=lambda letter: last[letter])
    lowered = text.lower()
    if len(text.split()) > 5:
        named = {letter: lowered.rfind(o.lower()) for letter, o in options.items() if o.lower() in lowered}
        if named:
            return max(named, key=lambda letter: named[letter])
    return None


_ENDS = ",.!?;:'"
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def mmmu_open(text: str, answers: str | Sequence[str]) -> bool:
    """Return whether an open answer contains a correct text, or a correct number rounded to two decimals.

    Source: MMMU's ``eval_utils.py``.

    >>> mmmu_open("The answer is 10", "10"), mmmu_open("18", "8")
    (True, False)
    """
    correct = [value for answer in ([answers] if isinstance(answers, str) else answers) for value in _normalize(answer)]
    for candidate in _candidates(text):
        if isinstance(candidate, str):
            if any(isinstance(answer, str) and answer in candidate for answer in correct):
                return True
        elif candidate in correct:
            return True
    return False


def _candidates(text: str) -> list[str | float]:
    """Return the possible meanings of an open answer: the ends of its sentences, and all numbers in them."""
    parts = [part.strip() for part in re.split(r"\n", text.strip().strip(".").lower())]
    keys = []
    for i, part in enumerate(parts):
        indicators = (*_INDICATORS, "=") if i == len(parts) - 1 else _INDICATORS
        tails = [part.split(indicator)[-1].strip() for indicator in indicators if indicator in part]
        if tails and (shortest := min(tails, key=len)) not in (":", ",", ".", "!", "?", ";", "'"):
            keys.append(shortest)
    keys = keys or parts
    numbers = [number for key in keys for pattern in _NUMBERS for number in re.findall(pattern, key)]
    return [value for piece in (*keys, *numbers) for value in _normalize(piece)]


def _normalize(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lowered = text.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]
