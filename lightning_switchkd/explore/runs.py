"""Comparison of runs: their training curves and their evaluation reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.labels import NO_IMAGE, upgrade_result
from lightning_switchkd.evaluation.report.charts import read_metrics
from lightning_switchkd.evaluation.score import Result, read_results

if TYPE_CHECKING:
    from pandas import DataFrame


def curves(runs: Sequence[str | Path], metrics: Sequence[str]) -> DataFrame:
    """Read logged metrics by step.

    Args:
        runs: Run folders.
        metrics: Metric names, or ends of names: ``train/loss/ce``, ``k_teacher``.

    Returns:
        Columns ``run``, ``metric``, ``step``, ``value``.

    Raises:
        UserError: A folder has no metrics.csv.
    """
    from pandas import DataFrame

    rows = []
    for run in map(Path, runs):
        if not (logged := read_metrics(run)):
            raise UserError(f"{run} has no metrics.csv. Use the folder of a run that has logged metrics.")
        for name, points in logged.items():
            if any(name.endswith(metric) for metric in metrics):
                rows += [(run.name, name, step, value) for step, value in points]
    return DataFrame(rows, columns=["run", "metric", "step", "value"])


def scores(report: str | Path) -> DataFrame:
    """Read the scores of a report in percent: ``system``, ``benchmark``, ``no_image``, ``category``, ``score``.

    Args:
        report: Output folder of `evaluate`.
    """
    from pandas import DataFrame

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
    from pandas import DataFrame, concat

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
