"""Answers compared, and tables, numbers and quantities as text. The only place for each of them."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path


def program() -> str:
    """Return the command that runs this package, as the user started it."""
    return "switchkd" if Path(sys.argv[0]).stem == "switchkd" else f"{python()} -m lightning_switchkd"


def python() -> str:
    """Return the command of this Python: its path if it is in the working directory, such as ``.venv/bin/python``.

    The shell's Python may be another one.
    """
    executable, here = Path(sys.executable), Path.cwd()
    return str(executable.relative_to(here)) if executable.is_relative_to(here) else "python"


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


def with_prefix(value: float, unit: str) -> str:
    """Format a quantity with the prefix of its size. Bytes (``B``) have binary prefixes.

    >>> with_prefix(20.6e12, "FLOP"), with_prefix(15.1e9, "B"), with_prefix(3, "B")
    ('20.6 TFLOP', '14.1 GiB', '3.0 B')
    """
    base, infix = (1024, "i") if unit == "B" else (1000, "")
    power = max(0, min(5, int(math.log(value, 1000)))) if value > 0 else 0
    prefix = f"{'KMGTP'[power - 1]}{infix}" if power else ""
    return f"{value / base**power:.1f} {prefix}{unit}"


def duration(seconds: float) -> str:
    """Format a duration in the unit of its size.

    >>> duration(12.3), duration(750), duration(16_000)
    ('12 s', '12.5 minutes', '4.4 hours')
    """
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.2g} s"
