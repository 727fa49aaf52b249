"""lmms-eval: ``process_results`` of its tasks, and their aggregation. MMMU's random guess counts as wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
from differential.cases import Case
from differential.loading import importable, printed, require
from differential.references.mmmu import NO_GUESS
from differential.rule import Rule

from lightning_switchkd.evaluation.benchmarks.tallies import PERCEPTION

NAME = "lmms-eval"
SOURCE = "EvolvingLMMs-Lab/lmms-eval, or the folder that it is installed in"
TASKS = {"vizwiz": "vizwiz_vqa", **{name: name for name in ("mme", "pope", "scienceqa", "mmmu", "vqav2", "textvqa")}}
MODULES = {name: f"lmms_eval.tasks.{task}.utils" for name, task in TASKS.items()} | {
    "mmbench": "lmms_eval.tasks.mmbench.en_utils",
    "gqa": "lmms_eval.api.metrics",
    "letters of mmmu": "lmms_eval.tasks._task_utils.mmmu_mcq_utils",
}
UNUSED = (
    "loguru",
    "requests",
    "sacrebleu",
    "lmms_eval.api.registry",
    "lmms_eval.verifiers",
    "lmms_eval.verifiers.openai",
)
"""What these modules import for logs, judges and other metrics."""


def rules(checkout: Path) -> list[Rule]:
    """Return the rules of lmms-eval's tasks."""
    require(checkout, [f"{name.replace('.', '/')}.py" for name in MODULES.values()], SOURCE)
    importable(checkout, "lmms_eval", unused=UNUSED)
    modules = {name: import_module(module) for name, module in MODULES.items()}
    modules["letters of mmmu"].random = NO_GUESS  # type: ignore[attr-defined]

    def rule(benchmark: str) -> Rule:
        module, score, figures = modules[benchmark], SCORES[benchmark], FIGURES.get(benchmark)

        def scores(cases: Sequence[Case]) -> list[float]:
            return [float(score(module, case)) for case in cases]

        return Rule(NAME, benchmark, "lmms", scores, figures and (lambda cases: figures(module, cases)))

    return [rule(benchmark) for benchmark in SCORES]


def _mme(module: Any, case: Case) -> float:
    (result,) = module.mme_process_results(_yes_no(case), [case.answer]).values()
    return result["score"]


def _mme_figures(module: Any, cases: Sequence[Case]) -> dict[str, float]:
    results = [module.mme_process_results(_yes_no(case), [case.answer]) for case in cases]
    points = {
        name: module.mme_aggregate_results([r[f"mme_{name}_score"] for r in results if f"mme_{name}_score" in r])
        for name in ("perception", "cognition")
    }
    return points | {"headline": points["perception"] / (2 * len(PERCEPTION))}


def _pope(module: Any, case: Case) -> float:
    return module.pope_process_results(_yes_no(case), [case.answer])["pope_accuracy"]["score"]


def _pope_figures(module: Any, cases: Sequence[Case]) -> dict[str, float]:
    results = [module.pope_process_results(_yes_no(case), [case.answer])["pope_f1_score"] for case in cases]
    names = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "yes_ratio": "yes ratio"}
    figures = {ours: getattr(module, f"pope_aggregate_{theirs}")(results) for theirs, ours in names.items()}
    figures["headline"] = module.pope_aggregate_f1_score(results)
    return {name: 100 * value for name, value in figures.items()}


def _yes_no(case: Case) -> dict[str, str]:
    return {"question_id": case.item.image, "answer": case.item.answers[0].capitalize(), "category": case.item.category}


def _gqa(module: Any, case: Case) -> float:
    settings = {"ignore_case": True, "ignore_punctuation": True}  # of gqa.yaml
    match = module.exact_match_hf_evaluate(predictions=[case.answer], references=[case.item.answers[0]], **settings)
    return match["exact_match"]


def _scienceqa(module: Any, case: Case) -> float:
    options = list(case.item.options.values())
    doc = {"choices": options, "answer": list(case.item.options).index(case.item.answers[0])}
    return module.sqa_process_results(doc, [case.answer])["exact_match"]


def _mmbench(module: Any, case: Case) -> float:
    index, (answer,) = int(case.item.id), case.item.answers
    return module.mmbench_evaluator.eval_sub_data(pd.DataFrame([_row(module, case)]), {index: answer}, static_only=True)


def _mmbench_figures(module: Any, cases: Sequence[Case]) -> dict[str, float]:
    rows = [_row(module, case) for case in cases]
    with printed():
        overall, _, _ = module.mmbench_evaluator.eval_result(rows, eval_method="static")
    return {"headline": 100 * overall}


def _row(module: Any, case: Case) -> dict[str, Any]:
    """Return a row of a prediction. Its dataset has the text "nan" in the place of a missing option."""
    item = case.item
    options = {letter: item.options.get(letter, "nan") for letter in "ABCD"}
    other = {"question": item.question, "hint": "nan", "source": "", "split": "dev", "L2-category": "x"}
    doc = {"index": int(item.id), "answer": item.answers[0], "category": item.category, **other, **options}
    row: dict[str, Any] = module.mmbench_process_results(doc, [case.answer])["gpt_eval_score"]
    return row


def _mmmu(module: Any, case: Case) -> float:
    item, kind = case.item, "multiple-choice" if case.item.options else "open"
    answer = item.answers[0] if len(item.answers) == 1 else str(list(item.answers))  # a text in its dataset
    doc = {"id": item.id, "question_type": kind, "options": str(list(item.options.values())), "answer": answer}
    judged, _ = module.evaluate_mmmu([module.mmmu_process_results(doc, [case.answer])["mmmu_acc"]])
    return judged[item.id] == "Correct"


def _vqav2(module: Any, case: Case) -> float:
    answers = [{"answer_id": number, "answer": text} for number, text in enumerate(case.item.answers)]
    return module.vqav2_process_results_val({"question_id": 0, "answers": answers}, [case.answer])["exact_match"]


def _textvqa(module: Any, case: Case) -> float:
    doc = {"question_id": 0, "answers": list(case.item.answers)}
    return module.textvqa_process_results(doc, [case.answer])["exact_match"]


def _vizwiz(module: Any, case: Case) -> float:
    doc = {"question_id": 0, "answers": list(case.item.answers)}
    return module.vizwiz_vqa_process_results(doc, [case.answer])["exact_match"]


SCORES: dict[str, Callable[[Any, Case], float]] = {
    "mme": _mme,
    "pope": _pope,
    "gqa": _gqa,
    "scienceqa": _scienceqa,
    "mmbench": _mmbench,
    "mmmu": _mmmu,
    "vqav2": _vqav2,
    "textvqa": _textvqa,
    "vizwiz": _vizwiz,
}
FIGURES: dict[str, Callable[[Any, Sequence[Case]], dict[str, float]]] = {
    "mme": _mme_figures,
    "pope": _pope_figures,
    "mmbench": _mmbench_figures,
}
