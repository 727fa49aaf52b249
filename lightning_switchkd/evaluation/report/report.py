"""The command `report`: compare the results of several systems, as HTML in one file, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TypeVar

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.text import markdown_table
from lightning_switchkd.evaluation.labels import NO_IMAGE, TEXT_ONLY_BASELINE, label, upgrade_result
from lightning_switchkd.evaluation.report.charts import Curves, grouped_bars, loss_curves, pyplot, radar, read_metrics
from lightning_switchkd.evaluation.report.page import Section, examples_of, page
from lightning_switchkd.evaluation.report.published import PUBLISHED, PublishedTable, read_published
from lightning_switchkd.evaluation.score import Result, read_results
from lightning_switchkd.evaluation.significance import mcnemar

T = TypeVar("T")
VALIDATION_LOSS = "val/loss/"
Systems = Mapping[str, Mapping[str, Result]]
"""Results by benchmark (``NAME`` and ``NAME.no_image``), by system."""


def report(
    systems: dict[str, str],
    output: str,
    benchmarks: list[str] | None = None,
    run: str | None = None,
    published: str = PUBLISHED,
    examples: int = 6,
) -> None:
    """Compare results of `score` and `evaluate` with each other and with published ones: HTML, Markdown, JSON.

    Args:
        systems: name and folder of the results of each system, ``--systems.ours=DIR --systems.theirs=DIR``; `evaluate`
            and `score --output FOLDER/BENCHMARK.json` write such folders.
        output: folder for the report.
        benchmarks: show only these, in this order.
        run: run folder whose metrics.csv provides the training curves.
        published: YAML file with published results.
        examples: number of example questions per benchmark, with images if the files still exist.
    """
    tables = read_published(published)
    results = {upgrade_result(name): read_results(Path(folder)) for name, folder in systems.items()}
    available = dict.fromkeys(
        name for of_system in results.values() for name in of_system if not name.endswith(f".{NO_IMAGE}")
    )
    published_order = dict.fromkeys(column for table in tables for column in table.benchmarks)
    requested = benchmarks or [*published_order, *(name for name in available if name not in published_order)]
    if not (names := [name for name in requested if name in available]):
        raise UserError(
            f"--systems: {', '.join(systems.values())} have no results. Write some with `score --output` or `evaluate`."
        )
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    tests, test_rows = _mcnemar_tests(results, names)
    sections = [*_published_tables(results, tables), *(part for name in names for part in _breakdown(results, name))]
    sections += [test_rows] if tests else []
    text = "\n\n".join(section if isinstance(section, str) else markdown_table(section) for section in sections)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(_as_json(results, names, tests), indent=2) + "\n", encoding="utf-8")
    metrics = read_metrics(Path(run)) if run else {}
    curves = {name: points for name, points in metrics.items() if name.startswith(VALIDATION_LOSS)}
    _draw(folder / "report.png", results, names, curves, tables)
    shown = {name: examples_of(_labeled(results, _of_benchmark(results, name)), examples) for name in names}
    chart = (folder / "report.png").read_bytes()
    (folder / "report.html").write_text(page(sections, chart, shown), encoding="utf-8")
    print(text)
    print(f"\nReport: {folder}/report.html, table.md, report.png, results.json")


def _of_benchmark(systems: Systems, name: str) -> dict[str, Result]:
    return {system: of_system[name] for system, of_system in systems.items() if name in of_system}


def _labeled(systems: Systems, values: Mapping[str, T]) -> dict[str, T]:
    """Replace the names of systems with their labels."""
    return {label(system, systems): value for system, value in values.items()}


def _published_tables(systems: Systems, tables: Sequence[PublishedTable]) -> list[Section]:
    """Return the published tables that share a column with our results, with our rows added."""
    ours = {
        label(system, systems): {name: r.score for name, r in of_system.items() if r.score is not None}
        for system, of_system in systems.items()
        if system != TEXT_ONLY_BASELINE
    }
    sections: list[Section] = []
    for table in tables:
        if any(column in scores for column in table.benchmarks for scores in ours.values()):
            sections += [f"{table.title} (papers: as published; MME: perception / 20)", table.rows(ours)]
    return sections


def _breakdown(systems: Systems, name: str) -> list[Section]:
    """Return a benchmark's table: one row per category, and for each system its score with and without images."""
    columns: list[tuple[str, Result]] = []
    for system, of_system in systems.items():
        for key, heading in ((name, label(system, systems)), (f"{name}.{NO_IMAGE}", label(NO_IMAGE))):
            if key in of_system:
                columns.append((heading, of_system[key]))
    first = columns[0][1]
    unit = "%" if max(first.categories.values(), default=0) <= 100 else "points of 200; score in %"
    rows = [[f"{first.title}, {unit}", *(heading for heading, _ in columns)]]
    for category in first.categories:
        rows.append([category, *(_cell(result.categories.get(category)) for _, result in columns)])
    for figure in first.figures:
        if round(first.figures[figure], 9) != round(first.score or 0, 9):
            rows.append([figure, *(_cell(result.figures.get(figure)) for _, result in columns)])
    rows.append(["score", *(_cell(result.score) for _, result in columns)])
    rows.append(["95 % interval", *(f"{r.low:.1f} to {r.high:.1f}" for _, r in columns)])
    notes = [f"{first.questions} questions, protocol {first.protocol}.", *_above_text_only_baseline(systems, name)]
    for heading, result in columns:
        if result.odd:
            counts = ", ".join(f"{count} {kind}" for kind, count in result.odd.items())
            notes.append(f"Answers of {heading}: {counts}.")
    return [rows, "\n".join(notes)]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _above_text_only_baseline(systems: Systems, name: str) -> list[str]:
    """Return a note with the points that each system is above the text-only baseline."""
    results = _of_benchmark(systems, name)
    if TEXT_ONLY_BASELINE not in results:
        return []
    baseline = results.pop(TEXT_ONLY_BASELINE).score or 0.0
    gains = [f"{label(system, systems)} {(result.score or 0) - baseline:.1f}" for system, result in results.items()]
    return [f"Points above the text-only baseline ({baseline:.1f}): {', '.join(gains)}."]


def _mcnemar_tests(systems: Systems, names: Sequence[str]) -> tuple[list[dict[str, object]], list[list[str]]]:
    """Compare every two systems question by question. Return the tests for JSON, and the rows of a table."""
    rows = [["McNemar's test of A, B", "benchmark", "only A correct", "only B correct", "p"]]
    tests: list[dict[str, object]] = []
    for name in names:
        scored = {
            system: result
            for system, result in _of_benchmark(systems, name).items()
            if result.score is not None and system != TEXT_ONLY_BASELINE
        }
        for (a, first), (b, second) in combinations(scored.items(), 2):
            if first.pairs != second.pairs or first.ids != second.ids:
                continue  # not the same questions
            test = mcnemar(first.correct(), second.correct())
            both = f"{label(a, systems)}, {label(b, systems)}"
            rows.append([both, name, str(test.first), str(test.second), f"{test.p:.2g}"])
            tests.append({"benchmark": name, "systems": [a, b], **vars(test)})
    return tests, rows


def _as_json(systems: Systems, names: Sequence[str], tests: Sequence[Mapping[str, object]]) -> dict[str, object]:
    keys = ("score", "low", "high", "categories", "figures", "questions", "protocol", "odd", "annotations")
    return {
        "systems": {
            system: {
                name: {key: getattr(result, key) for key in keys}
                for name, result in of_system.items()
                if name.removesuffix(f".{NO_IMAGE}") in names
            }
            for system, of_system in systems.items()
        },
        "pairs": list(tests),
    }


def _draw(
    file: Path, systems: Systems, names: Sequence[str], curves: Curves, published: Sequence[PublishedTable]
) -> None:
    """Draw the scores as bars and as a radar chart (published systems in gray), and the validation loss terms.

    One benchmark is drawn by category, several by benchmark.
    """
    plt = pyplot()
    single = names[0] if len(names) == 1 else None
    models = {system: of_system for system, of_system in systems.items() if system != TEXT_ONLY_BASELINE}
    axes, by_model = _values(models, names, single, "")
    series = _labeled(systems, by_model)
    no_image = {s: v for s, v in _labeled(systems, _values(models, names, single, f".{NO_IMAGE}")[1]).items() if v}
    others = {system: of_system for system, of_system in systems.items() if system == TEXT_ONLY_BASELINE}
    baseline = _values(others, names, single, "")[1].get(TEXT_ONLY_BASELINE)
    has_radar = len(axes) >= 3
    columns = 1 + has_radar + bool(curves)
    figure = plt.figure(figsize=(8 + 5.5 * (columns - 1), 4.4))
    bars = figure.add_subplot(1, columns, 1)
    colors = dict(zip(series, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    grouped_bars(bars, axes, series, no_image, colors, baseline if baseline and len(baseline) == len(axes) else None)
    bars.set_title(f"{systems[next(iter(models))][single].title}, held out" if single else "Benchmarks")
    if has_radar:
        papers = next((table.scores() for table in published if set(axes) <= set(table.benchmarks)), {})
        grays = {name: str(0.75 - 0.2 * n) for n, name in enumerate(papers)}
        lines = {**{name: [scores[axis] for axis in axes] for name, scores in papers.items()}, **series}
        radar(figure.add_subplot(1, columns, 2, projection="polar"), axes, lines, {**grays, **colors})
    if curves:
        loss_curves(figure.add_subplot(1, columns, columns), curves)
    figure.tight_layout()
    figure.savefig(file, dpi=130, bbox_inches="tight")
    plt.close(figure)


def _values(
    systems: Systems, names: Sequence[str], single: str | None, ending: str
) -> tuple[list[str], dict[str, list[float]]]:
    """Return the labels to draw, and the values by system.

    The labels are the categories of a single benchmark, or the benchmarks that all systems have results of.
    """
    if single is not None:
        results = _of_benchmark(systems, single + ending)
        labels = list(next(iter(results.values())).categories) if results else []
        if labels or not results:
            return labels, {s: [r.categories.get(name, 0.0) for name in labels] for s, r in results.items()}
    common = [n for n in names if all(n + ending in of and of[n + ending].score is not None for of in systems.values())]
    return common, {s: [of[n + ending].score or 0.0 for n in common] for s, of in systems.items()}
