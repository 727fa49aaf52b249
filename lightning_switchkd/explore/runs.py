"""Comparison of runs: their training curves and their evaluation reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pandas import Categorical, DataFrame, concat

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.labels import NO_IMAGE, label, upgrade_result
from lightning_switchkd.evaluation.report.curves import read_metrics
from lightning_switchkd.evaluation.results import Result
from lightning_switchkd.evaluation.runner import models_of
from lightning_switchkd.evaluation.score import read_results


def same_start(run: str | Path) -> list[Path]:
    """List the runs that start from the same student as a run and are in the same folder, this run included."""
    start = models_of(str(run), {}).get("student_init")
    folders = sorted(file.parent for file in Path(run).parent.glob("*/config.yaml"))
    logged = [folder for folder in folders if (folder / "metrics.csv").is_file()]
    return [folder for folder in logged if models_of(str(folder), {}).get("student_init") == start]


def references(run: str | Path) -> dict[str, Path]:
    """Return the runs that trained a run's teacher and its initial student, by label. Other models have no run."""
    folders = {
        label(name): Path(folder).parent for name, folder in models_of(str(run), {}).items() if name != "student"
    }
    return {name: folder for name, folder in folders.items() if Path(folder, "metrics.csv").is_file()}


def curves(runs: Sequence[str | Path] | Mapping[str, Path], metrics: Sequence[str]) -> DataFrame:
    """Read logged metrics by step.

    Args:
        runs: Run folders, or folders by name.
        metrics: Metric names, or ends of names: ``train/loss/ce``, ``k_teacher``.

    Returns:
        Columns ``run`` (categorical: every run, even without these metrics), ``metric``, ``step``, ``value``.

    Raises:
        UserError: A folder has no metrics.csv.
    """
    named = runs if isinstance(runs, Mapping) else {Path(run).name: Path(run) for run in runs}
    rows = []
    for run, folder in named.items():
        if not (logged := read_metrics(folder)):
            raise UserError(f"{folder} has no metrics.csv. Use the folder of a run that has logged metrics.")
        for name, points in logged.items():
            if any(name.endswith(metric) for metric in metrics):
                rows += [(run, name, step, value) for step, value in points]
    table = DataFrame(rows, columns=["run", "metric", "step", "value"])
    return table.assign(run=Categorical(table["run"], categories=list(named)))


def scores(report: str | Path) -> DataFrame:
    """Read the scores of a report in percent: ``system``, ``benchmark``, ``no_image``, ``category``, ``score``.

    Args:
        report: Output folder of `evaluate`.
    """
    rows = [
        (system, benchmark, no_image, category, score)
        for system, benchmark, no_image, result in _results(report)
        for category, score in {**result.categories, "score": result.score}.items()
    ]
    return DataFrame(rows, columns=["system", "benchmark", "no_image", "category", "score"])


def answers_of(report: str | Path) -> DataFrame:
    """Read every answer of a report: ``system``, ``benchmark``, ``no_image``, ``id``, ``answer``, ``score``.

    Args:
        report: Output folder of `evaluate`.
    """
    parts = [
        DataFrame({"id": result.ids, "answer": result.texts, "score": result.scores}).assign(
            system=system, benchmark=benchmark, no_image=no_image
        )
        for system, benchmark, no_image, result in _results(report)
    ]
    return concat(parts, ignore_index=True)[["system", "benchmark", "no_image", "id", "answer", "score"]]


def _results(report: str | Path) -> list[tuple[str, str, bool, Result]]:
    """Read every result of a report: its system, its benchmark, and whether the images were blank."""
    folders = [folder for folder in sorted(Path(report).glob("*")) if folder.is_dir()]
    results = [
        (upgrade_result(folder.name), name.removesuffix(f".{NO_IMAGE}"), name.endswith(f".{NO_IMAGE}"), result)
        for folder in folders
        for name, result in read_results(folder).items()
    ]
    if not results:
        raise UserError(f"{report} has no results of `evaluate`. `make train` writes a report to RUN/report.")
    return results
