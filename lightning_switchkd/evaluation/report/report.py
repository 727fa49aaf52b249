"""Results of several systems side by side: HTML in one file, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.report.charts import Curves, grouped_bars, loss_curves, pyplot, radar, read_metrics
from lightning_switchkd.evaluation.report.page import Example, examples_of, page
from lightning_switchkd.evaluation.report.published import PUBLISHED, PublishedTable, read_published
from lightning_switchkd.evaluation.report.text_tables import MAJORITY, markdown
from lightning_switchkd.evaluation.score import Result, read_results
from lightning_switchkd.evaluation.significance import Paired, mcnemar

BLIND = "blind"
HELD_OUT = "val/loss/"
Systems = Mapping[str, Mapping[str, Result]]
"""Results by benchmark (``NAME`` and ``NAME.blind``), by system."""


def report(
    systems: dict[str, str],
    output: str,
    benchmarks: list[str] | None = None,
    run: str | None = None,
    published: str = PUBLISHED,
    examples: int = 6,
) -> None:
    """Results of `score` and `evaluate` side by side, with published rows: HTML in one file, Markdown, JSON.

    Args:
        systems: name and folder of results (files written by `score --output FOLDER/BENCHMARK.json`, or `evaluate`) of
            each system, ``--systems.ours=DIR --systems.theirs=DIR``.
        output: folder of the report.
        benchmarks: only these, in this order.
        run: run folder whose metrics.csv gives training curves.
        published: YAML file of rows to compare with.
        examples: questions shown of each benchmark, with their images where these are still there.
    """
    tables = read_published(published)
    results = {name: read_results(Path(folder)) for name, folder in systems.items()}
    found = dict.fromkeys(name for of in results.values() for name in of if not name.endswith(f".{BLIND}"))
    order = dict.fromkeys(column for table in tables for column in table.benchmarks)
    wanted = benchmarks or [*order, *(name for name in found if name not in order)]
    if not (names := [name for name in wanted if name in found]):
        raise UserError(
            f"--systems: there are no results in {', '.join(systems.values())}. `score --output` writes them."
        )
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    pairs = _pairs(results, names)
    text = "\n\n".join([*_rows_of_papers(results, tables), *(_breakdown(results, name) for name in names), *pairs[0]])
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    (folder / "results.json").write_text(
        json.dumps(_as_json(results, names, pairs[1]), indent=2) + "\n", encoding="utf-8"
    )
    curves = (
        {name: points for name, points in read_metrics(Path(run)).items() if name.startswith(HELD_OUT)} if run else {}
    )
    _draw(folder / "report.png", results, names, curves, tables)
    shown: dict[str, list[Example]] = {
        name: examples_of({s: of[name] for s, of in results.items() if name in of}, examples) for name in names
    }
    (folder / "report.html").write_text(page(text, (folder / "report.png").read_bytes(), shown), encoding="utf-8")
    print(text)
    print(f"\nReport: {folder}/report.html, table.md, report.png, results.json")


def _rows_of_papers(systems: Systems, tables: Sequence[PublishedTable]) -> list[str]:
    """Our rows in the papers' tables, where we have any of their columns."""
    ours = {
        name: {bench: r.score for bench, r in of.items() if r.score is not None}
        for name, of in systems.items()
        if name != MAJORITY
    }
    return [
        f"{table.title} (papers: as published; MME: perception / 20)\n\n{markdown(table.rows(ours))}"
        for table in tables
        if any(column in scores for column in table.benchmarks for scores in ours.values())
    ]


def _breakdown(systems: Systems, name: str) -> str:
    """A benchmark's table: a row a category, two columns a system, the blind score beside the score."""
    columns: list[tuple[str, Result]] = []
    for system, of in systems.items():
        for key, heading in ((name, system), (f"{name}.{BLIND}", BLIND)):
            if key in of:
                columns.append((heading, of[key]))
    first = columns[0][1]
    unit = "%" if max(first.categories.values(), default=0) <= 100 else "points of 200; score in %"
    rows = [[f"{first.title}, {unit}", *(heading for heading, _ in columns)]]
    for kind in first.categories:
        rows.append([kind, *(_cell(result.categories.get(kind)) for _, result in columns)])
    for figure in first.figures:
        if round(first.figures[figure], 9) != round(first.score or 0, 9):
            rows.append([figure, *(_cell(result.figures.get(figure)) for _, result in columns)])
    rows.append(["score", *(_cell(result.score) for _, result in columns)])
    rows.append(["95 % interval", *(f"{r.low:.1f} to {r.high:.1f}" for _, r in columns)])
    lines = [f"{first.questions} questions, protocol {first.protocol}.", *_above_majority(systems, name)]
    for heading, result in columns:
        if result.odd:
            counts = ", ".join(f"{count} {kind}" for kind, count in result.odd.items())
            lines.append(f"Answers of {heading}: {counts}.")
    return f"{markdown(rows)}\n\n" + "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _above_majority(systems: Systems, name: str) -> list[str]:
    """By how many points each system is above what the training answers say."""
    if name not in systems.get(MAJORITY, {}):
        return []
    base = systems[MAJORITY][name].score or 0.0
    gains = [
        f"{system} {(of[name].score or 0) - base:.1f}"
        for system, of in systems.items()
        if system != MAJORITY and name in of
    ]
    return [f"Points above the majority of training answers ({base:.1f}): {', '.join(gains)}."]


def _pairs(systems: Systems, names: Sequence[str]) -> tuple[list[str], list[dict[str, object]]]:
    """Every two systems question by question: a table, and the same for JSON."""
    rows = [["McNemar", "benchmark", "first alone right", "second alone right", "p"]]
    found: list[dict[str, object]] = []
    for name in names:
        asked = {
            s: of[name] for s, of in systems.items() if name in of and of[name].score is not None and s != MAJORITY
        }
        for (one, first), (other, second) in combinations(asked.items(), 2):
            if first.pairs != second.pairs or first.ids != second.ids:
                continue  # not the same questions
            test: Paired = mcnemar(first.right(), second.right())
            rows.append([f"{one}, {other}", name, str(test.first), str(test.second), f"{test.p:.2g}"])
            found.append({"benchmark": name, "systems": [one, other], **vars(test)})
    return ([markdown(rows)] if found else []), found


def _as_json(systems: Systems, names: Sequence[str], pairs: Sequence[Mapping[str, object]]) -> dict[str, object]:
    kept = ("score", "low", "high", "categories", "figures", "questions", "protocol", "odd", "annotations")
    return {
        "systems": {
            system: {
                key: {field: getattr(result, field) for field in kept}
                for key, result in of.items()
                if key.removesuffix(f".{BLIND}") in names
            }
            for system, of in systems.items()
        },
        "pairs": list(pairs),
    }


def _draw(
    file: Path, systems: Systems, names: Sequence[str], curves: Curves, published: Sequence[PublishedTable]
) -> None:
    """Bars of a benchmark's categories, or of benchmarks; a radar chart, papers in grey; held-out loss terms."""
    plt = pyplot()
    single = names[0] if len(names) == 1 else None
    models = {s: of for s, of in systems.items() if s != MAJORITY}
    labels, series = _axes(models, names, single, "")
    blind = {s: v for s, v in _axes(models, names, single, f".{BLIND}")[1].items() if v}
    guessed = _axes({s: of for s, of in systems.items() if s == MAJORITY}, names, single, "")[1].get(MAJORITY)
    radial = len(labels) >= 3
    columns = 1 + radial + bool(curves)
    figure = plt.figure(figsize=(8 + 5.5 * (columns - 1), 4.4))
    bars = figure.add_subplot(1, columns, 1)
    colours = dict(zip(series, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    dashes = guessed if guessed and len(guessed) == len(labels) else None
    grouped_bars(bars, labels, series, blind, colours, dashes)
    bars.set_title(f"{systems[next(iter(models))][single].title}, held out" if single else "Benchmarks")
    if radial:
        papers = next((table.named() for table in published if set(labels) <= set(table.benchmarks)), {})
        greys = {name: str(0.75 - 0.2 * n) for n, name in enumerate(papers)}
        shown = {**{name: [of[label] for label in labels] for name, of in papers.items()}, **series}
        radar(figure.add_subplot(1, columns, 2, projection="polar"), labels, shown, {**greys, **colours})
    if curves:
        loss_curves(figure.add_subplot(1, columns, columns), curves)
    figure.tight_layout()
    figure.savefig(file, dpi=130, bbox_inches="tight")
    plt.close(figure)


def _axes(
    systems: Systems, names: Sequence[str], single: str | None, ending: str
) -> tuple[list[str], dict[str, list[float]]]:
    """What is drawn: categories of the one benchmark, or the benchmarks that all systems have; and the values."""
    if single is not None:
        having = {s: of[single + ending] for s, of in systems.items() if single + ending in of}
        labels = list(next(iter(having.values())).categories) if having else []
        values = {s: [r.categories.get(label, 0.0) for label in labels] for s, r in having.items()}
        if labels or not having:
            return labels, values
    common = [n for n in names if all(n + ending in of and of[n + ending].score is not None for of in systems.values())]
    return common, {s: [of[n + ending].score or 0.0 for n in common] for s, of in systems.items()}
