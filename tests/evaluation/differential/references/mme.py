"""MME: ``calculation.py`` of its evaluation tool, which reads one file per category."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from differential.cases import Case
from differential.loading import load_file, printed, require
from differential.rule import Rule

from lightning_switchkd.evaluation.benchmarks.tallies import COGNITION, PERCEPTION

SOURCE = "MME's eval_tool, with calculation.py"
CALCULATION = "calculation.py"


def rules(checkout: Path) -> list[Rule]:
    """Return the rule of MME's evaluation tool."""
    require(checkout, (CALCULATION,), SOURCE)
    metrics = load_file(checkout / CALCULATION).calculate_metrics()

    def scores(cases: Sequence[Case]) -> list[float]:
        return [float(metrics.parse_pred_ans(case.answer.lower()) == case.item.answers[0]) for case in cases]

    return [Rule("MME", "mme", "llava", scores, lambda cases: _figures(metrics, cases))]


def _figures(metrics: Any, cases: Sequence[Case]) -> dict[str, float]:
    with TemporaryDirectory() as folder, printed() as text:
        for category in (*PERCEPTION, *COGNITION):
            lines = [_line(case) for case in cases if case.item.category == category]
            Path(folder, f"{category}.txt").write_text("".join(lines), encoding="utf-8")
        metrics.process_result(folder)
    perception, cognition = map(float, re.findall(r"total score: (\S+)", text.getvalue()))
    by_category = {name: float(value) for name, value in re.findall(r"(\w+)  score: (\S+)", text.getvalue())}
    return by_category | {"perception": perception, "cognition": cognition, "headline": perception / 20}


def _line(case: Case) -> str:
    """Return the line of an answer, whose columns are separated by tabs."""
    return "\t".join((case.item.image, "?", case.item.answers[0], re.sub(r"\s", " ", case.answer))) + "\n"
