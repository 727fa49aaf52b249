"""Tables of the benchmarks."""

from __future__ import annotations


def row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def header(*cells: str) -> None:
    """Print the heading of a Markdown table."""
    row(*cells)
    row(*["---"] * len(cells))
