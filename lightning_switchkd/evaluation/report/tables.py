"""The tables of a report."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.benchmarks.definition import Benchmark
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol
from lightning_switchkd.evaluation.labels import INTERVAL, NO_IMAGE, TEXT_ONLY_BASELINE, label
from lightning_switchkd.evaluation.report.comparison import Comparison, Systems, compare, of_benchmark
from lightning_switchkd.evaluation.report.page import Part, Rows, Section
from lightning_switchkd.evaluation.report.published import PublishedTable
from lightning_switchkd.evaluation.results import Result

MAX_COLUMNS = 6
"""Columns of a table in the terminal."""

RULES: dict[ScoringProtocol, str] = {"llava": "LLaVA", "lmms": "lmms-eval", "vlmevalkit": "VLMEvalKit"}
"""The harness whose rules each protocol follows."""


def overview(systems: Systems, names: Sequence[str]) -> list[Rows]:
    """Return the scores of all systems: one row per system, or per benchmark if there are several."""
    if len(names) == 1:
        results = of_benchmark(systems, names[0])
        heading = [_title(next(iter(results.values()))), "score, %", INTERVAL]
        return [[heading, *([label(s, systems), _cell(r.score), _interval(r)] for s, r in results.items())]]
    tables = []
    for start in range(0, len(systems), MAX_COLUMNS - 1):
        shown = list(systems)[start : start + MAX_COLUMNS - 1]
        rows = [[f"score, % [{INTERVAL}]", *(label(system, systems) for system in shown)]]
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
    """Return the results on a benchmark: scores of all systems, scores by category with their meanings, and rules."""
    first = next(iter(of_benchmark(systems, name).values()))
    try:
        definition = Benchmark.read(first.definition)
    except UserError:  # the result comes from another machine
        definition = None
    known = definition.categories if definition else {}
    meanings = {category: known[category] for category in first.categories if category in known}
    rules = f"follow the rules of {RULES[first.protocol]} (--protocol={first.protocol})."
    is_exact = definition is not None and definition.scoring == "exact"
    rules = (
        f"An answer is correct if it equals the expected one. Prompts {rules}"
        if is_exact
        else f"Prompts and scoring {rules}"
    )
    parts: list[Part] = [_scores(systems, name), _details(systems, name), meanings, rules, *defects(systems, name)]
    return Section(_title(first), [part for part in parts if part])


def _scores(systems: Systems, name: str) -> Rows:
    """Return the scores of all systems, with and without images."""
    results, no_image = of_benchmark(systems, name), of_benchmark(systems, f"{name}.{NO_IMAGE}")
    rows = [["", "score, %", INTERVAL]]
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
    return rows


def _details(systems: Systems, name: str) -> Rows:
    """Return the scores by category, and further figures. The list is empty if there are none."""
    results = of_benchmark(systems, name)
    first = next(iter(results.values()))
    unit = "points of 200" if first.in_points else "%"
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
    parts: list[Part] = []
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
    """Return McNemar's tests of all pairs of systems. A column with a single value becomes a sentence."""
    rows = [["A", "B", "benchmark", f"A − B [{INTERVAL}]", "only A correct", "only B correct", "p"]]
    for c in comparisons:
        counts = [f"{c.test.second:,}", f"{c.test.first:,}", c.p_text.removeprefix("= ")]
        points = f"{c.points:+.1f}{c.interval_text}"
        rows.append([label(c.system, systems), label(c.baseline, systems), c.benchmark, points, *counts])
    columns = list(zip(*rows, strict=True))
    constant = [column for column in columns if len(rows) > 2 and len(set(column[1:])) == 1]
    common = ", ".join(f"{heading} {value}" for heading, value, *_ in constant)
    table = [list(row) for row in zip(*(column for column in columns if column not in constant), strict=True)]
    parts: list[Part] = [*([f"All rows: {common}."] if common else []), table]
    return [Section("Paired comparisons", parts)] if comparisons else []


def _title(result: Result) -> str:
    return f"{result.title}, {result.num_questions}"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _interval(result: Result) -> str:
    return "" if result.score is None else f"{result.low:.1f} to {result.high:.1f}"
