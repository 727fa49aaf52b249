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
    NO_IMAGE,
    STUDENT_INIT,
    TERMS,
    label,
    upgrade_result,
)
from lightning_switchkd.evaluation.report.charts import draw_losses, draw_scores, read_metrics
from lightning_switchkd.evaluation.report.comparison import Comparison, Systems, compare, of_benchmark, sentence
from lightning_switchkd.evaluation.report.examples import examples_of
from lightning_switchkd.evaluation.report.page import page
from lightning_switchkd.evaluation.report.published import PUBLISHED, read_published
from lightning_switchkd.evaluation.report.tables import (
    Section,
    all_comparisons,
    benchmark_section,
    comparison_section,
    defects,
    overview,
    published_section,
)
from lightning_switchkd.evaluation.score import read_results


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
            and `score --output FOLDER/BENCHMARK.json` write such folders.
        output: folder for the report.
        benchmarks: show only these, in this order.
        run: run folder, whose method and training curves are shown.
        baseline: system that the last one is compared with. Default: the student before.
        published: YAML file with published results.
        examples: number of example questions per benchmark, with images if the files still exist.
    """
    tables = read_published(published)
    results = {upgrade_result(name): read_results(Path(folder)) for name, folder in systems.items()}
    check_baseline(baseline, results)
    names = _benchmarks(
        results, benchmarks or [column for table in tables for column in table.benchmarks], not benchmarks
    )
    if not names:
        raise UserError(
            f"--systems: {', '.join(systems.values())} have no results. Write some with `score --output` or `evaluate`."
        )
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    about = describe(run)
    last = list(results)[-1]
    against = baseline or STUDENT_INIT
    found = [c for name in names if against in results and (c := compare(results, name, last, against))]
    result = sentence(found, results) if found and against != last else ""
    comparisons = all_comparisons(results, names)
    sections = [
        *([Section("Scores", list(overview(results, names)))] if len(names) > 1 else []),
        *(benchmark_section(results, name) for name in names),
        *published_section(results, tables),
        *comparison_section(results, comparisons),
    ]
    terms = _terms(results, bool(comparisons))
    images = {"scores": draw_scores(folder / "scores.png", results, names)}
    if run and (losses := draw_losses(folder / "losses.png", read_metrics(Path(run)))):
        images["losses"] = losses
    (folder / "report.md").write_text(_markdown(about, result, terms, sections), encoding="utf-8")
    content = {"about": about, "result": result, **_as_json(results, names, comparisons)}
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    chosen = {n: examples_of(of_benchmark(results, n), examples, last, against) for n in names}
    labels = {system: label(system, results) for system in results}
    ours, theirs = label(last, results), label(against, results)
    groups = [
        f"{ours} is correct, {theirs} is not",
        f"{theirs} is correct, {ours} is not",
        "both are correct, or neither is",
    ]
    html = page(about, result, terms, sections, images, chosen, labels, groups if result else [])
    (folder / "report.html").write_text(html, encoding="utf-8")
    lines = ["", *map(markdown_table, overview(results, names)), "", result]
    lines += [line for name in names for line in defects(results, name)]
    print("\n".join(lines) + f"\nReport: {folder}/report.html, report.md, results.json")


def _benchmarks(systems: Systems, first: Sequence[str], others: bool) -> list[str]:
    """Return the benchmarks that have results: the first ones in their order, and the others if wanted."""
    available = [name for results in systems.values() for name in results if not name.endswith(f".{NO_IMAGE}")]
    return [name for name in dict.fromkeys([*first, *(available if others else [])]) if name in available]


def _terms(systems: Systems, compared: bool) -> dict[str, str]:
    """Return the explanations of the terms that a report uses."""
    used = {*map(label, systems), "95 % interval", *(["p"] if compared else [])}
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


def _markdown(about: Mapping[str, str], result: str, terms: Mapping[str, str], sections: Sequence[Section]) -> str:
    blocks = ["# Evaluation", "\n".join(f"- {name}: {value}" for name, value in about.items()), result]
    for section in sections:
        blocks += [f"## {section.title}", *(p if isinstance(p, str) else markdown_table(p) for p in section.parts)]
    blocks += ["## Terms", "\n".join(f"- **{term}**: {meaning}" for term, meaning in terms.items())]
    return "\n\n".join(filter(None, blocks)) + "\n"


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
