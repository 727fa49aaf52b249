"""Runs beside each other: their curves, and what their reports say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.report.charts import read_metrics
from lightning_switchkd.evaluation.report.report import BLIND
from lightning_switchkd.evaluation.score import Result, read_results

if TYPE_CHECKING:
    from pandas import DataFrame


def curves(runs: Sequence[str | Path], metrics: Sequence[str]) -> DataFrame:
    """Logged values by step: ``run``, ``metric``, ``step``, ``value``.

    Args:
        runs: folders.
        metrics: names, or their ends: ``train/loss/ce``, ``k_teacher``.

    Raises:
        UserError: a folder has no metrics.csv.
    """
    from pandas import DataFrame

    rows = []
    for run in map(Path, runs):
        if not (found := read_metrics(run)):
            raise UserError(f"{run} has no metrics.csv: it is no run, or has not logged yet.")
        for name, points in found.items():
            if any(name.endswith(metric) for metric in metrics):
                rows += [(run.name, name, step, value) for step, value in points]
    return DataFrame(rows, columns=["run", "metric", "step", "value"])


def _results(report: str | Path) -> Mapping[str, Mapping[str, Result]]:
    found = {folder.name: read_results(folder) for folder in sorted(Path(report).glob("*")) if folder.is_dir()}
    if not any(found.values()):
        raise UserError(f"{report} is no report of `evaluate`: it holds no results. `make train` leaves RUN/report.")
    return found


def scores(report: str | Path) -> DataFrame:
    """A report's scores in per cent: ``system``, ``benchmark``, ``blind``, ``category``, ``score``."""
    from pandas import DataFrame

    rows = []
    for system, of in _results(report).items():
        for name, result in of.items():
            blind = name.endswith(f".{BLIND}")
            for category, score in {**result.categories, "score": result.score}.items():
                rows.append((system, name.removesuffix(f".{BLIND}"), blind, category, score))
    return DataFrame(rows, columns=["system", "benchmark", "blind", "category", "score"])


def answers_of(report: str | Path) -> DataFrame:
    """Every answer of a report: ``system``, ``benchmark``, ``blind``, ``id``, ``answer``, ``score``."""
    from pandas import DataFrame, concat

    parts = [
        DataFrame({"id": result.ids, "answer": result.texts, "score": result.scores}).assign(
            system=system, benchmark=name.removesuffix(f".{BLIND}"), blind=name.endswith(f".{BLIND}")
        )
        for system, of in _results(report).items()
        for name, result in of.items()
    ]
    return concat(parts, ignore_index=True)[["system", "benchmark", "blind", "id", "answer", "score"]]
