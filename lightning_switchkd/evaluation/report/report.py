"""The command `report`: compare the results of several systems, as HTML in one file, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from lightning_switchkd import __version__
from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.runs import UNNAMED, command_line, git, read_config
from lightning_switchkd.core.text import markdown_table
from lightning_switchkd.evaluation.labels import (
    INTERVAL,
    NO_IMAGE,
    STUDENT_INIT,
    TERMS,
    TEXT_ONLY_BASELINE,
    label,
    upgrade_result,
)
from lightning_switchkd.evaluation.report.charts import draw_scores
from lightning_switchkd.evaluation.report.comparison import (
    Comparison,
    Systems,
    check_questions,
    compare,
    of_benchmark,
    sentence,
)
from lightning_switchkd.evaluation.report.curves import training_section
from lightning_switchkd.evaluation.report.examples import examples_of, group_titles
from lightning_switchkd.evaluation.report.page import Section, as_html, as_markdown
from lightning_switchkd.evaluation.report.published import PUBLISHED, PublishedTable, read_published
from lightning_switchkd.evaluation.report.tables import (
    all_comparisons,
    benchmark_section,
    comparison_section,
    defects,
    overview,
    published_section,
)
from lightning_switchkd.evaluation.score import read_results

ONE_RUN = (
    "Each trained student is from a single run, so the comparison does not include the variation between seeds. "
    "To measure it: make sweep SWEEP=demo, or your own sweep (docs/how-to/compare-methods.md)."
)
"""Limit of a comparison between single runs."""


def report(
    systems: dict[str, str],
    output: str,
    benchmarks: list[str] | None = None,
    run: str | None = None,
    baseline: str | None = None,
    published: str = PUBLISHED,
    examples: int = 10,
) -> None:
    """Compare results of `score` and `evaluate` with each other and with published ones: HTML, Markdown, JSON.

    Args:
        systems: name and folder of the results of each system, ``--systems.ours=DIR --systems.theirs=DIR``; `evaluate`
            and `score --output FOLDER/BENCHMARK.json` write such folders, and lmms-eval and VLMEvalKit write theirs.
        output: folder for the report.
        benchmarks: show only these, in this order.
        run: run folder, whose method and training curves are shown.
        baseline: system that the last one is compared with. Default: the student before, else the first system.
        published: YAML file with published results.
        examples: number of example questions per benchmark, with images if the files still exist.
    """
    tables = read_published(published)
    results = {upgrade_result(name): read_results(Path(folder)) for name, folder in systems.items()}
    check_baseline(baseline, results)
    names = _benchmarks(results, benchmarks, [column for table in tables for column in table.benchmarks])
    if not names:
        raise UserError(
            f"--systems: {', '.join(systems.values())} have no results. Write some with `score --output` or `evaluate`."
        )
    for name in names:
        check_questions(results, name)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    about = describe(run)
    models = [system for system in results if system != TEXT_ONLY_BASELINE] or list(results)
    ours, theirs = models[-1], baseline or (STUDENT_INIT if STUDENT_INIT in models else models[0])
    result = _result(results, names, ours, theirs)
    comparisons = all_comparisons(results, names)
    sections = [
        Section("", [ONE_RUN] if run and result else []),
        *_sections(folder, results, names, comparisons, tables),
        *training_section(folder, run),
    ]
    chosen = {name: examples_of(of_benchmark(results, name), examples, ours, theirs) for name in names}
    labels = {system: label(system, results) for system in results}
    groups = group_titles(labels[ours], labels[theirs]) if result else ()
    html = as_html(about, result, sections, chosen, labels, groups)
    (folder / "report.html").write_text(html, encoding="utf-8")
    (folder / "report.md").write_text(as_markdown(about, result, sections), encoding="utf-8")
    content = {"about": about, "result": result, **_as_json(results, names, comparisons)}
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    lines = ["", *map(markdown_table, overview(results, names)), "", result]
    lines += [line for name in names for line in defects(results, name)]
    print("\n".join(lines) + f"\nReport: {folder}/report.html, report.md, results.json")


def _benchmarks(systems: Systems, requested: Sequence[str] | None, first: Sequence[str]) -> list[str]:
    """Return the requested benchmarks that have results; without a request all, beginning with the first ones."""
    available = [name for results in systems.values() for name in results if not name.endswith(f".{NO_IMAGE}")]
    return [name for name in dict.fromkeys(requested or [*first, *available]) if name in available]


def _result(systems: Systems, names: Sequence[str], ours: str, theirs: str) -> str:
    """Compare two systems in one sentence. It is empty if they are one, or have no scores."""
    if theirs == ours:
        return ""
    comparisons = [c for name in names if (c := compare(systems, name, ours, theirs))]
    return sentence(comparisons, systems) if comparisons else ""


def _sections(
    folder: Path,
    systems: Systems,
    names: Sequence[str],
    comparisons: Sequence[Comparison],
    published: Sequence[PublishedTable],
) -> list[Section]:
    """Return the sections on scores. Their chart is drawn to the folder."""
    chart = draw_scores(folder / "scores.png", systems, names)
    return [
        Section("", [chart, _terms(systems, bool(comparisons))]),
        *([Section("Scores", overview(systems, names))] if len(names) > 1 else []),
        *(benchmark_section(systems, name) for name in names),
        *published_section(systems, published),
        *comparison_section(systems, comparisons),
    ]


def _terms(systems: Systems, compared: bool) -> dict[str, str]:
    """Return the explanations of the terms that a report uses."""
    used = {*(label(system, systems) for system in systems), INTERVAL, *(["p"] if compared else [])}
    if any(name.endswith(f".{NO_IMAGE}") for results in systems.values() for name in results):
        used.add(label(NO_IMAGE))
    return {term: meaning for term, meaning in TERMS.items() if term in used}


def check_baseline(baseline: str | None, systems: Mapping[str, object]) -> None:
    """Check that the baseline is one of the systems.

    Raises:
        UserError: It is not.
    """
    if baseline is not None and baseline not in systems:
        raise UserError(f"--baseline: unknown model '{baseline}'. Use one of {', '.join(systems)}.")


def describe(run: str | None) -> dict[str, str]:
    """Describe where the results come from: run, method, times, versions and command.

    Args:
        run: Run folder, if any.
    """
    about = {}
    if run:
        config = read_config(run)
        objective = (config["model"].get("objective") or {}).get("class_path", "SwitchKDObjective")
        named = config.get("method", UNNAMED)
        about = {"run": run, "method": objective.rpartition(".")[2] if named == UNNAMED else named}
        file = Path(run, "environment.json")
        if file.is_file():
            trained = json.loads(file.read_text(encoding="utf-8"))
            about["trained"] = _version(trained["started"], trained["lightning_switchkd"], trained["git"]["commit"])
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {**about, "evaluated": _version(now, __version__, git("rev-parse", "HEAD")), "command": command_line()}


def _version(time: str, version: str, commit: str | None) -> str:
    text = f"{time[:10]} {time[11:16]} UTC, lightning_switchkd {version}"
    return f"{text}, commit {commit[:10]}" if commit else text


def _as_json(systems: Systems, names: Sequence[str], comparisons: Sequence[Comparison]) -> dict[str, object]:
    keys = ("score", "low", "high", "categories", "figures", "questions", "complete", "protocol", "odd", "annotations")
    return {
        "systems": {
            system: {
                name: {key: getattr(result, key) for key in keys}
                for name, result in of_system.items()
                if name.removesuffix(f".{NO_IMAGE}") in names
            }
            for system, of_system in systems.items()
        },
        "pairs": [
            {
                "benchmark": c.benchmark,
                "systems": [c.baseline, c.system],
                "points": c.points,
                "interval": c.interval,
                **vars(c.test),
            }
            for c in comparisons
        ],
    }
