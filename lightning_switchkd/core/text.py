"""Answers compared, and tables and numbers as text. The only place for each of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def exact_match(prediction: str, answer: str) -> bool:
    r"""Compare a prediction with the right answer: equal up to white space at both ends, case-sensitive.

    >>> exact_match(" a cat\n", "a cat"), exact_match("A cat", "a cat")
    (True, False)
    """
    return prediction.strip() == answer.strip()


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    r"""Format rows as a Markdown table. The first row is the heading, and columns are padded to equal width.

    Line breaks in a cell become spaces, and ``|`` is escaped.

    >>> print(markdown_table([["system", "score"], ["a|b", "1.0"]]))
    | system | score |
    |--------|-------|
    | a\|b   | 1.0   |
    """
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def percent(shares: Sequence[float]) -> str:
    """Format one share as ``97.5``, several as ``97.5 ± 0.3`` (mean and sample standard deviation).

    >>> percent([0.975]), percent([0.97, 0.98])
    ('97.5', '97.5 ± 0.7')
    """
    mean = f"{100 * statistics.mean(shares):.1f}"
    return mean if len(shares) == 1 else f"{mean} ± {100 * statistics.stdev(shares):.1f}"
