"""Answers about documents and charts: ANLS (DocVQA, ST-VQA) and relaxed accuracy (ChartQA)."""

from __future__ import annotations

from collections.abc import Sequence


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Score by ANLS: one minus the normalized edit distance to the closest correct answer, without regard to case.

    Source: the ST-VQA and DocVQA challenges (Biten et al. 2019) and their script. The script keeps a
    similarity equal to the threshold. Below it, the score is 0.

    >>> anls("STOD", ["Stop"]), anls("go", ["Stop", "Halt"])
    (0.75, 0.0)
    """
    similarity = max(
        1 - edit_distance(_plain(prediction), _plain(answer)) / max(len(prediction), len(answer), 1)
        for answer in answers
    )
    return similarity if similarity >= threshold else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def edit_distance(first: str, second: str) -> int:
    """Return the number of insertions, deletions and substitutions that turn one text into the other (Levenshtein).

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, 1):
        diagonal, row[0] = row[0], number
        for i, other in enumerate(second, 1):
            diagonal, row[i] = row[i], min(row[i] + 1, row[i - 1] + 1, diagonal + (letter != other))
    return row[-1]


def relaxed_match(prediction: str, answer: str, tolerance: float = 0.05) -> bool:
    """Compare by ChartQA's relaxed accuracy: numbers may differ by 5 %, other texts only in case.

    Source: Masry et al. 2022, section 5.1, and Pix2Struct's ``metrics.py``. A percentage is a fraction. A correct
    answer of zero has no relative error, so it is compared as text.

    >>> relaxed_match("0.21", "20%"), relaxed_match("2012", "2012 "), relaxed_match("0.0", "0")
    (True, True, False)
    """
    predicted, correct = _number(prediction), _number(answer)
    if predicted is not None and correct:
        return abs(predicted - correct) / abs(correct) <= tolerance
    return prediction.strip().lower() == answer.strip().lower()


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
