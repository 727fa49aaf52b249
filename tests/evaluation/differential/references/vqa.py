"""VQA challenge: ``vqaEval.py``, with LLaVA's conversion before it. It is written for Python 2."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from differential.cases import Case
from differential.loading import printed, require
from differential.references import llava
from differential.rule import Rule

from lightning_switchkd.evaluation.benchmarks.scorers.short_answer import challenge

SOURCE = "GT-Vision-Lab/VQA"
EVALUATION = "PythonEvaluationTools/vqaEvaluation/vqaEval.py"
DIGITS = 12
"""Decimals to which the evaluation rounds percentages."""


def rules(checkout: Path, llava_checkout: Path | None = None) -> list[Rule]:
    """Return the rule of the challenge, and that of LLaVA's conversion followed by the challenge."""
    require(checkout, (EVALUATION,), SOURCE)
    text = re.sub(r"^(\s*)print (.+)$", r"\1print(\2)", (checkout / EVALUATION).read_text(), flags=re.MULTILINE)
    scope: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # backslashes in its strings
        exec(compile(text, EVALUATION, "exec"), scope)

    def score(cases: Sequence[Case], answers: Sequence[str]) -> list[float]:
        truth = {number: _annotation(case) for number, case in enumerate(cases)}
        results = {number: {"answer": answer} for number, answer in enumerate(answers)}
        questions = SimpleNamespace(qa=truth, getQuesIds=lambda: list(truth))
        with printed():
            (evaluation := scope["VQAEval"](questions, SimpleNamespace(qa=results), n=DIGITS)).evaluate()
        return [evaluation.evalQA[number] / 100 for number in truth]

    def alone(cases: Sequence[Case]) -> list[float]:
        return score(cases, [case.answer for case in cases])

    def after_llava(cases: Sequence[Case]) -> list[float]:
        return score(cases, llava.vqav2_answers(llava_checkout, cases))

    def ours(case: Case) -> float:
        return challenge(case.answer, case.item.answers)

    own = Rule("VQA", "vqav2", "llava", alone, ours=ours)
    return [own] if llava_checkout is None else [own, Rule("LLaVA, then VQA", "vqav2", "llava", after_llava)]


def _annotation(case: Case) -> dict[str, Any]:
    answers = [{"answer_id": number, "answer": text} for number, text in enumerate(case.item.answers)]
    return {"answers": answers, "question_type": "what", "answer_type": "other"}
