"""Multiple choice: ScienceQA, MMBench, MMMU; and MMMU's open questions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol

LETTERS = "ABCDE"


def scienceqa_letter(text: str, choices: int, protocol: ScoringProtocol = "llava") -> str | None:
    """The letter that an answer gives, of so many choices; None where it gives none.

    Source: LLaVA's ``eval_science_qa.py``: a bare letter, "X. …", or "The answer is X" with one more character.

    >>> scienceqa_letter("B. cat", 3), scienceqa_letter("B.", 3), scienceqa_letter("B.", 3, "lmms")
    ('B', None, 'B')
    """
    if protocol == "lmms":
        found = text.upper() if len(text) == 1 else text[:1] if text[1:2] == "." and text[:1].isupper() else ""
    elif text in LETTERS and len(text) == 1:
        found = text
    elif len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        found = text[0]
    else:
        said = re.findall(r"The answer is ([A-Z]).", text)
        found = said[0] if len(said) == 1 else ""
    return found if found and found in LETTERS[:choices] else None


def mmbench_letter(text: str, options: Mapping[str, str], protocol: ScoringProtocol = "vlmevalkit") -> str | None:
    """The option that an answer names, without a judge; None is a miss.

    Source: VLMEvalKit's ``can_infer``: one option's letter as a word among the last four, or "answer is X", or one
    option's text. lmms-eval's static extractor takes letters alone.

    Args:
        text: the answer.
        options: text by letter.
        protocol: ``llava`` leaves this to a server; it is taken as ``vlmevalkit`` here.

    >>> mmbench_letter("It is a dog", {"A": "cat", "B": "dog"})
    'B'
    """
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    letters = [word for word in words if word in options]
    if len(set(letters)) == 1 and words.index(letters[0]) > len(words) - 5:
        return letters[0]
    if (said := re.findall(r"answer is ([A-Z])\b", text, re.IGNORECASE)) and said[0] in options:
        return str(said[0])
    if protocol == "lmms" or len(text) > 2 * sum(map(len, options.values())):
        return None
    named = [letter for letter, option in options.items() if option.lower() in text.lower()]
    return named[0] if len(named) == 1 else None


def mmmu_letter(text: str, options: Mapping[str, str], protocol: ScoringProtocol = "llava") -> str | None:
    """The letter that an answer gives; None where the official code would guess at random.

    Source: MMMU's ``eval_utils.py``: "(X)", else " X ", else, in more than five words, an option's text; the last one
    holds. lmms-eval looks for "X " and then "X." with nothing before.

    >>> mmmu_letter("A or B", {"A": "$6", "B": "$7"}), mmmu_letter("B. $7", {"A": "$6", "B": "$7"})
    ('B', None)
    """
    text = f" {text.strip(_ENDS)} "
    ways = ["({})", "{} ", "{}."] if protocol == "lmms" else ["({})", " {} "]
    for way in ways:
        if found := {letter: text.rfind(way.format(letter)) for letter in options if way.format(letter) in text}:
            return max(found, key=lambda letter: found[letter])
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
    """Whether an open answer is right: it holds a right text, or says a right number, to two decimals.

    Source: MMMU's ``eval_utils.py``.

    >>> mmmu_open("The answer is 10", "10"), mmmu_open("18", "8")
    (True, False)
    """
    right = [value for answer in ([answers] if isinstance(answers, str) else answers) for value in _normal(answer)]
    for said in _said(text):
        if isinstance(said, str):
            if any(isinstance(answer, str) and answer in said for answer in right):
                return True
        elif said in right:
            return True
    return False


def _said(text: str) -> list[str | float]:
    """What an open answer may mean: the ends of its sentences, and all numbers in them."""
    parts = [part.strip() for part in re.split(r"\n", text.strip().strip(".").lower())]
    keys = []
    for i, part in enumerate(parts):
        indicators = (*_INDICATORS, "=") if i == len(parts) - 1 else _INDICATORS
        tails = [part.split(indicator)[-1].strip() for indicator in indicators if indicator in part]
        if tails and (shortest := min(tails, key=len)) not in (":", ",", ".", "!", "?", ";", "'"):
            keys.append(shortest)
    keys = keys or parts
    numbers = [number for key in keys for pattern in _NUMBERS for number in re.findall(pattern, key)]
    return [value for piece in (*keys, *numbers) for value in _normal(piece)]


def _normal(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lowered = text.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]
