"""The tables of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from lightning_switchkd.evaluation.labels import NO_IMAGE, TEXT_ONLY_BASELINE, label
from lightning_switchkd.evaluation.report.comparison import Comparison, Systems, compare, of_benchmark
from lightning_switchkd.evaluation.report.published import PublishedTable
from lightning_switchkd.evaluation.score import Result

Rows = list[list[str]]
"""A table whose first row is the heading."""

MAX_COLUMNS = 6
"""Columns of a table in the terminal."""


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        title: Its heading.
        parts: Paragraphs and tables.
    """

    title: str
    parts: list[str | Rows]


def overview(systems: Systems, names: Sequence[str]) -> list[Rows]:
    """Return the scores of all systems: one row per system, or per benchmark if there are several."""
    if len(names) == 1:
        results = of_benchmark(systems, names[0])
        heading = [_title(next(iter(results.values()))), "score, %", "95 % interval"]
        return [[heading, *([label(s, systems), _cell(r.score), _interval(r)] for s, r in results.items())]]
    tables = []
    for start in range(0, len(systems), MAX_COLUMNS - 1):
        shown = list(systems)[start : start + MAX_COLUMNS - 1]
        rows = [["score, % [95 % interval]", *(label(system, systems) for system in shown)]]
        for name in names:
            results = of_benchmark(systems, name)
            cells = [
                f"{_cell(results[s].score)} [{results[s].low:.1f}, {results[s].high:.1f}]" if s in results else ""
                for s in shown
            ]
            rows.append([_title(next(iter(results.values()))), *cells])
        tables.append(rows)
    return tables


def benchmark_section(systems: Systems, name: str) -> Section:
    """Return the results on a benchmark: scores of all systems, and scores by category."""
    results, no_image = of_benchmark(systems, name), of_benchmark(systems, f"{name}.{NO_IMAGE}")
    first = next(iter(results.values()))
    rows = [["", "score, %", "95 % interval"]]
    rows[0] += [label(NO_IMAGE)] * bool(no_image)
    baseline = results.get(TEXT_ONLY_BASELINE)
    rows[0] += ["points above text-only baseline"] * (baseline is not None)
    for system, result in results.items():
        row = [label(system, systems), _cell(result.score), _interval(result)]
        if no_image:
            row.append(_cell(no_image[system].score) if system in no_image else "")
        if baseline is not None:
            above = (result.score or 0) - (baseline.score or 0)
            row.append("" if system == TEXT_ONLY_BASELINE else f"{above:+.1f}")
        rows.append(row)
    parts: list[str | Rows] = [rows, f"Protocol {first.protocol}."]
    if details := _details(systems, name):
        parts.insert(1, details)
    return Section(_title(first), parts + list(defects(systems, name)))


def _details(systems: Systems, name: str) -> Rows:
    """Return the scores by category, and further figures. The list is empty if there are none."""
    results = of_benchmark(systems, name)
    first = next(iter(results.values()))
    unit = "points of 200" if max(first.categories.values(), default=0) > 100 else "%"
    rows = [[f"kind of question, {unit}", *(label(system, systems) for system in results)]]
    for category in first.categories:
        rows.append([category, *(_cell(result.categories.get(category)) for result in results.values())])
    for figure, value in first.figures.items():
        if round(value, 9) != round(first.score or 0, 9):
            rows.append([figure, *(_cell(result.figures.get(figure)) for result in results.values())])
    return rows if len(rows) > 1 else []


def defects(systems: Systems, name: str) -> list[str]:
    """Return a line for each system whose answers are not complete."""
    lines = []
    for key, suffix in ((name, ""), (f"{name}.{NO_IMAGE}", f", {label(NO_IMAGE)}")):
        for system, result in of_benchmark(systems, key).items():
            if result.odd:
                counts = ", ".join(f"{count} {kind}" for kind, count in result.odd.items())
                lines.append(f"Answers of {label(system, systems)}{suffix} to {result.title}: {counts}.")
    return lines


def published_section(systems: Systems, tables: Sequence[PublishedTable]) -> list[Section]:
    """Return the published tables that share a column with our results, with our rows added."""
    results = {system: of for system, of in systems.items() if system != TEXT_ONLY_BASELINE}
    partial = {name: r for of in results.values() for name, r in of.items() if r.partial}
    ours = {
        label(system, systems): {name: r.score for name, r in of.items() if r.score is not None}
        for system, of in results.items()
    }
    parts: list[str | Rows] = []
    for table in tables:
        if any(column in scores for column in table.benchmarks for scores in ours.values()):
            parts += [f"{table.title} (papers: as published; MME: perception / 20)", table.rows(ours, partial)]
            if notes := [f"{name}: {partial[name].num_questions}" for name in table.benchmarks if name in partial]:
                parts.append(f"* Not comparable with published results. Only a part was asked: {'; '.join(notes)}.")
    return [Section("Published results", parts)] if parts else []


def all_comparisons(systems: Systems, names: Sequence[str]) -> list[Comparison]:
    """Compare every two systems on every benchmark."""
    models = [system for system in systems if system != TEXT_ONLY_BASELINE]
    pairs = ((name, a, b) for name in names for a, b in combinations(models, 2))
    return [c for name, a, b in pairs if (c := compare(systems, name, b, a)) is not None]


def comparison_section(systems: Systems, comparisons: Sequence[Comparison]) -> list[Section]:
    """Return McNemar's tests of all pairs of systems."""
    rows = [["A", "B", "benchmark", "A − B [95 % interval]", "only A correct", "only B correct", "p"]]
    for c in comparisons:
        counts = [f"{c.test.second:,}", f"{c.test.first:,}", c.p_text.removeprefix("= ")]
        points = f"{c.points:+.1f}{c.interval_text}"
        rows.append([label(c.system, systems), label(c.baseline, systems), c.benchmark, points, *counts])
    return [Section("Paired comparisons", [rows])] if comparisons else []


def _title(result: Result) -> str:
    return f"{result.title}, {result.num_questions}"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _interval(result: Result) -> str:
    return "" if result.score is None else f"{result.low:.1f} to {result.high:.1f}"
