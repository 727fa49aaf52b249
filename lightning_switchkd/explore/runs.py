"""Runs beside each other: their curves, and what their reports say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_switchkd.errors import UserError
from lightning_switchkd.evaluation.report import BLIND
from lightning_switchkd.evaluation.score import QUESTIONS, Result

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
    from pandas import DataFrame, concat, read_csv

    parts = [DataFrame(columns=["run", "metric", "step", "value"])]
    for run in runs:
        file = Path(run, "metrics.csv")
        if not file.is_file():
            raise UserError(f"{run} has no metrics.csv: it is no run, or has not logged yet.")
        table = read_csv(file)
        for column in (c for c in table.columns if any(c.endswith(m) for m in metrics)):
            some = table[["step", column]].dropna().rename(columns={column: "value"})
            parts.append(some.assign(run=Path(run).name, metric=column))
    filled = [part for part in parts if len(part)]
    return concat(filled, ignore_index=True)[["run", "metric", "step", "value"]] if filled else parts[0]


def _results(report: str | Path) -> Mapping[str, Mapping[str, Result]]:
    folders = sorted(path for path in Path(report).glob("*") if path.is_dir())
    found = {f.name: {_name(file): file for file in sorted(f.glob(f"*{QUESTIONS}"))} for f in folders}
    if not any(found.values()):
        raise UserError(
            f"{report} is no report of `evaluate`: it holds no results. `make train` leaves one, RUN/report."
        )
    return {
        system: {name: Result.read(file.with_name(f"{name}.json")) for name, file in of.items()}
        for system, of in found.items()
    }


def _name(file: Path) -> str:
    return file.name.removesuffix(QUESTIONS)


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
