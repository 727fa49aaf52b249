"""VLMEvalKit with exact matching: its extraction of answers and its ratings. No language model is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
from differential.cases import Case
from differential.loading import importable, require
from differential.rule import Rule

from lightning_switchkd.evaluation.benchmarks.tallies import PERCEPTION

NAME = "VLMEvalKit"
SOURCE = "open-compass/VLMEvalKit"
CHOICES, VQA, YES_NO = (f"vlmeval.dataset.utils.{name}" for name in ("multiple_choice", "vqa_eval", "yorn"))
UNUSED = ("sty", "validators")
"""What ``vlmeval.smp`` imports for colors and addresses."""


def rules(checkout: Path) -> list[Rule]:
    """Return the rules of VLMEvalKit."""
    require(checkout, [f"{name.replace('.', '/')}.py" for name in (CHOICES, VQA, YES_NO)], SOURCE)
    importable(checkout, "vlmeval", initialized=("vlmeval.smp", "vlmeval.utils"), unused=UNUSED)
    choices, vqa, yes_no = map(import_module, (CHOICES, VQA, YES_NO))
    yes_no.load = pd.DataFrame.copy  # a table instead of its file

    def replies(cases: Sequence[Case]) -> list[float]:
        return [float(yes_no.YOrN_Extraction(case.answer) == _label(case)) for case in cases]

    def by_letter(cases: Sequence[Case]) -> list[float]:
        return [_letter_score(choices, _row(case)) for case in cases]

    def people(cases: Sequence[Case]) -> list[float]:
        lines = [{"answer": str(list(case.item.answers)), "prediction": case.answer} for case in cases]
        return list(vqa.hit_calculate([vqa.process_line(line, method="vqa_score") for line in lines], "TextVQA"))

    def gqa(cases: Sequence[Case]) -> list[float]:
        lines = [{"answer": case.item.answers[0], "prediction": case.answer} for case in cases]
        return list(vqa.hit_calculate([vqa.process_line(line, method="accuracy") for line in lines], "GQA"))

    return [
        Rule(NAME, "mme", "vlmevalkit", replies, lambda cases: _mme_figures(yes_no, cases)),
        Rule(NAME, "pope", "vlmevalkit", replies, lambda cases: _pope_figures(yes_no, cases)),
        Rule(NAME, "gqa", "vlmevalkit", gqa),
        Rule(NAME, "scienceqa", "vlmevalkit", by_letter),
        Rule(NAME, "mmbench", "vlmevalkit", by_letter, lambda cases: _mmbench_figures(choices, cases)),
        Rule(NAME, "mmmu", "vlmevalkit", lambda cases: _mmmu(choices, cases)),
        Rule(NAME, "textvqa", "vlmevalkit", people),
        Rule(NAME, "vizwiz", "vlmevalkit", people),
    ]


def _label(case: Case) -> str:
    return case.item.answers[0].capitalize()


def _row(case: Case) -> dict[str, Any]:
    item = case.item
    return {"question": item.question, "prediction": case.answer, "GT": item.answers[0], **item.options}


def _letter_score(choices: Any, row: Any) -> float:
    return float(choices.eval_vanilla(None, row)["hit"])


def _mmbench_figures(choices: Any, cases: Sequence[Case]) -> dict[str, float]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        groups.setdefault(case.item.image, []).append(_row(case))
    found = [choices.prefetch_circular_group(pd.DataFrame(rows)) for rows in groups.values()]
    hits = [0 if result is None else result["hit"] for result in found]  # None: exact matching finds no answer
    return {"headline": 100 * sum(hits) / len(hits)}


def _mmmu(choices: Any, cases: Sequence[Case]) -> list[float]:
    rows = []
    for case in cases:
        answers = case.item.answers
        row = {"A": None, "B": None, **_row(case), "answer": answers[0] if len(answers) == 1 else str(list(answers))}
        rows.append(row)
    table = choices.MMMU_preproc(pd.DataFrame(rows))
    answers = [answer if answer in [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ"] else "A" for answer in table["answer"]]
    table["GT"] = answers  # as in mcq_vanilla_eval
    return [_letter_score(choices, row) for row in table.to_dict("records")]


def _mme_figures(yes_no: Any, cases: Sequence[Case]) -> dict[str, float]:
    (row,) = _rated(yes_no.MME_rating, yes_no, cases)
    return {name: float(row[name]) for name in PERCEPTION} | {
        "perception": float(row["perception"]),
        "cognition": float(row["reasoning"]),
        "headline": float(row["perception"]) / (2 * len(PERCEPTION)),
    }


def _pope_figures(yes_no: Any, cases: Sequence[Case]) -> dict[str, float]:
    rows = {row["split"]: row for row in _rated(yes_no.POPE_rating, yes_no, cases)}
    overall = {"accuracy": rows["Overall"]["acc"]} | {name: rows["Overall"][name] for name in ("precision", "recall")}
    by_split = {split: row["Overall"] for split, row in rows.items() if split != "Overall"}
    return overall | by_split | {"headline": rows["Overall"]["Overall"]}


def _rated(rating: Callable[[pd.DataFrame], pd.DataFrame], yes_no: Any, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return the rows of the rating of a scored prediction file."""
    table = pd.DataFrame(
        {
            "image_path": [case.item.image for case in cases],
            "category": [case.item.category for case in cases],
            "answer": [_label(case) for case in cases],
            "extracted": [yes_no.YOrN_Extraction(case.answer) for case in cases],
        }
    )
    return rating(table.assign(score=table["answer"] == table["extracted"])).to_dict("records")
