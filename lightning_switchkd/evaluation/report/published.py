"""Published rows, and our own beside them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from lightning_switchkd.core.errors import UserError

PUBLISHED = "conf/published.yaml"
MME_POINTS = 2000


@dataclass(frozen=True)
class PublishedTable:
    """A table of papers' figures.

    Attributes:
        title: what it compares.
        benchmarks: its columns.
        systems: rows in per cent, by system.
    """

    title: str
    benchmarks: list[str]
    systems: dict[str, list[float]]

    def named(self) -> dict[str, dict[str, float]]:
        """Scores by benchmark, by system."""
        return {name: dict(zip(self.benchmarks, row, strict=True)) for name, row in self.systems.items()}

    def rows(self, ours: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
        """Table rows, the heading first: papers, then ours; the average of all, and that of the columns which we have.

        Args:
            ours: scores in per cent by benchmark, by system.
        """
        have = [name for name in self.benchmarks if any(name in scores for scores in ours.values())]
        some = 0 < len(have) < len(self.benchmarks)
        heading = ["", *self.benchmarks, "average", *([f"of {len(have)}"] if some else [])]
        lines = [heading]
        for name, scores in {**self.named(), **ours}.items():
            cells = [f"{scores[column]:.1f}" if column in scores else "" for column in self.benchmarks]
            averages = [self.benchmarks, *([have] if some else [])]
            lines.append([name, *cells, *(average(scores, columns) for columns in averages)])
        return lines


def average(scores: Mapping[str, float], columns: list[str]) -> str:
    """The plain mean over columns; nothing where one is missing.

    >>> average({"gqa": 60.0, "pope": 85.0}, ["gqa", "pope"]), average({"gqa": 60.0}, ["gqa", "pope"])
    ('72.5', '')
    """
    if not all(column in scores for column in columns):
        return ""
    return f"{statistics.mean(scores[column] for column in columns):.1f}"


def read_published(file: str) -> list[PublishedTable]:
    """The tables of a file.

    Raises:
        UserError: there is no such file, or a row has not as many figures as its table has columns.
    """
    if not Path(file).is_file():
        raise UserError(f"--published: there is no file {file}. That of this package is {PUBLISHED}.")
    tables = []
    for raw in yaml.safe_load(Path(file).read_text(encoding="utf-8"))["tables"]:
        columns = raw["benchmarks"]
        for name, row in raw["systems"].items():
            if len(row) != len(columns):
                raise UserError(f"--published: {file}: '{name}' has {len(row)} figures for {len(columns)} benchmarks.")
        systems = {
            name: [
                100 * x / MME_POINTS if c == "mme" and x > 100 else float(x) for c, x in zip(columns, row, strict=True)
            ]
            for name, row in raw["systems"].items()
        }
        tables.append(PublishedTable(raw["title"], columns, systems))
    return tables
