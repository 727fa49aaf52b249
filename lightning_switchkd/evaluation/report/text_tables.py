"""Numbers and tables as text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

MAJORITY = "majority"
"""The column of the text-only baseline."""


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first row the heading, its columns as wide as they must be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def per_cent(shares: Sequence[float]) -> str:
    """One share as ``97.5``, several as ``97.5 ± 0.3`` (mean and sample standard deviation).

    >>> per_cent([0.975]), per_cent([0.97, 0.98])
    ('97.5', '97.5 ± 0.7')
    """
    mean = f"{100 * statistics.mean(shares):.1f}"
    return mean if len(shares) == 1 else f"{mean} ± {100 * statistics.stdev(shares):.1f}"
