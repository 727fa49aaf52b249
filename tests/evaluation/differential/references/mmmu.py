"""MMMU: its own parser and evaluation. Its random guess for an answer without a letter counts as wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from differential.cases import Case
from differential.loading import load_file, require
from differential.rule import Rule

SOURCE = "MMMU-Benchmark/MMMU"
UTILS = "mmmu/utils/eval_utils.py"

NO_GUESS = SimpleNamespace(choice=lambda letters: "")
"""In the place of the module ``random``: no letter."""


def rules(checkout: Path) -> list[Rule]:
    """Return the rule of MMMU."""
    require(checkout, (UTILS,), SOURCE)
    utils = load_file(checkout / UTILS)
    utils.random = NO_GUESS
    return [Rule("MMMU", "mmmu", "llava", lambda cases: _scores(utils, cases))]


def _scores(utils: Any, cases: Sequence[Case]) -> list[float]:
    samples = [_sample(utils, str(number), case) for number, case in enumerate(cases)]
    judged, _ = utils.evaluate(samples)
    return [float(judged[str(number)] == "Correct") for number in range(len(cases))]


def _sample(utils: Any, name: str, case: Case) -> dict[str, Any]:
    item = case.item
    if item.options:
        parsed = utils.parse_multi_choice_response(case.answer, list(item.options), dict(item.options))
        return {"id": name, "question_type": "multiple-choice", "answer": item.answers[0], "parsed_pred": parsed}
    answer = item.answers[0] if len(item.answers) == 1 else list(item.answers)
    return {
        "id": name,
        "question_type": "open",
        "answer": answer,
        "parsed_pred": utils.parse_open_response(case.answer),
    }
