"""Published results, and tables that compare our results with them."""

from __future__ import annotations

import statistics
from collections.abc import Container, Mapping
from dataclasses import dataclass

import yaml

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.paths import shipped

PUBLISHED = "conf/published.yaml"
MME_POINTS = 2000


@dataclass(frozen=True)
class PublishedTable:
    """Table of published results.

    Attributes:
        title: Title of the table.
        benchmarks: Columns.
        systems: Scores in percent by system, in the order of the columns.
    """

    title: str
    benchmarks: list[str]
    systems: dict[str, list[float]]

    def scores(self) -> dict[str, dict[str, float]]:
        """Return the scores by benchmark, by system."""
        return {name: dict(zip(self.benchmarks, row, strict=True)) for name, row in self.systems.items()}

    def rows(self, ours: Mapping[str, Mapping[str, float]], partial: Container[str] = ()) -> list[list[str]]:
        """Return the rows of a table, heading first: published systems, then ours.

        The last columns are the average over all benchmarks, and over those that we have results of.

        Args:
            ours: Scores in percent by benchmark, by system.
            partial: Benchmarks of which we have asked only a part. Our scores and averages of them get an asterisk.
        """
        available = [name for name in self.benchmarks if any(name in scores for scores in ours.values())]
        groups = [[name] for name in self.benchmarks] + [self.benchmarks]
        rows = [["", *self.benchmarks, "average"]]
        if 0 < len(available) < len(self.benchmarks):
            groups.append(available)
            rows[0].append(f"of {len(available)}")
        rows += [[name, *(average(scores, group) for group in groups)] for name, scores in self.scores().items()]
        for name, scores in ours.items():
            cells = [(average(scores, group), any(column in partial for column in group)) for group in groups]
            rows.append([name, *(f"{cell}*" if cell and starred else cell for cell, starred in cells)])
        return rows


def average(scores: Mapping[str, float], columns: list[str]) -> str:
    """Format the plain mean over columns. Return an empty text if a column is missing.

    >>> average({"gqa": 60.0, "pope": 85.0}, ["gqa", "pope"]), average({"gqa": 60.0}, ["gqa", "pope"])
    ('72.5', '')
    """
    if not all(column in scores for column in columns):
        return ""
    return f"{statistics.mean(scores[column] for column in columns):.1f}"


def read_published(file: str) -> list[PublishedTable]:
    """Read the tables of a file.

    Raises:
        UserError: The file is missing, or the number of values in a row differs from the number of columns.
    """
    if not shipped(file).is_file():
        raise UserError(f"--published: file {file} does not exist. The package's own file is {PUBLISHED}.")
    tables = []
    for raw in yaml.safe_load(shipped(file).read_text(encoding="utf-8"))["tables"]:
        columns = raw["benchmarks"]
        for name, row in raw["systems"].items():
            if len(row) != len(columns):
                raise UserError(
                    f"--published: {file}: '{name}' has {len(row)} values for {len(columns)} benchmarks. Fix the row."
                )
        systems = {
            name: [
                100 * x / MME_POINTS if c == "mme" and x > 100 else float(x) for c, x in zip(columns, row, strict=True)
            ]
            for name, row in raw["systems"].items()
        }
        tables.append(PublishedTable(raw["title"], columns, systems))
    return tables
