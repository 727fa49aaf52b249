"""LLaVA: scripts that convert answers for GQA and two servers, and scripts that score POPE, ScienceQA and TextVQA."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from differential.cases import SPLITS, Case
from differential.loading import importable, load_file, printed, require, run_script
from differential.rule import Rule

from lightning_switchkd.evaluation.benchmarks.scorers.short_answer import evalai

NAME = "LLaVA"
SOURCE = "haotian-liu/LLaVA"
CONVERSIONS = {
    name: f"scripts/convert_{name}.py" for name in ("gqa_for_eval", "vqav2_for_submission", "vizwiz_for_submission")
}
POPE, SCIENCEQA = "llava/eval/eval_pope.py", "llava/eval/eval_science_qa.py"
M4C = "llava/eval/m4c_evaluator.py"
FIGURES = {"Accuracy": "accuracy", "Precision": "precision", "Recall": "recall", "Yes ratio": "yes ratio"}
"""What ``eval_pope.py`` prints, and our names."""


def rules(checkout: Path) -> list[Rule]:
    """Return the rules of LLaVA's scripts."""
    require(checkout, (*CONVERSIONS.values(), POPE, SCIENCEQA, M4C), SOURCE)
    importable(checkout, "llava")
    eval_pope = load_file(checkout / POPE).eval_pope
    m4c = load_file(checkout / M4C)
    m4c.tqdm = iter  # no bar for each answer
    evaluator = m4c.TextVQAAccuracyEvaluator()

    def pope(cases: Sequence[Case]) -> list[float]:
        return _pope(eval_pope, cases)[0]

    def textvqa(cases: Sequence[Case]) -> list[float]:
        rows = [{"pred_answer": case.answer, "gt_answers": list(case.item.answers)} for case in cases]
        return [float(evaluator.eval_pred_list([row])) for row in rows]

    def uploaded(case: Case) -> str:
        return evalai(case.answer)

    return [
        Rule(NAME, "pope", "llava", pope, lambda cases: _pope_figures(eval_pope, cases)),
        Rule(NAME, "gqa", "llava", lambda cases: _gqa(checkout / CONVERSIONS["gqa_for_eval"], cases)),
        Rule(NAME, "scienceqa", "llava", lambda cases: _scienceqa(checkout / SCIENCEQA, cases)),
        Rule(NAME, "textvqa", "llava", textvqa),
        Rule(NAME, "vqav2_test", "llava", lambda cases: vqav2_answers(checkout, cases), ours=uploaded),
        Rule(NAME, "vizwiz_test", "llava", lambda cases: _vizwiz(checkout, cases), ours=uploaded),
    ]


def _pope(eval_pope: Callable[..., None], cases: Sequence[Case]) -> tuple[list[float], str]:
    """Return the score of each answer, and what the script prints."""
    answers = [{"text": case.answer} for case in cases]
    with TemporaryDirectory() as folder, printed() as text:
        labels = _lines(Path(folder, "labels.json"), ({"label": case.item.answers[0]} for case in cases))
        eval_pope(answers, labels)  # replaces the texts by yes and no
    pairs = zip(answers, cases, strict=True)
    return [float(answer["text"] == case.item.answers[0]) for answer, case in pairs], text.getvalue()


def _pope_figures(eval_pope: Callable[..., None], cases: Sequence[Case]) -> dict[str, float]:
    figures = {}
    for split in SPLITS:
        _, text = _pope(eval_pope, [case for case in cases if case.item.category == split])
        values = {name: 100 * float(value) for name, value in re.findall(r"^([\w ]+): ([\d.e-]+)$", text, re.MULTILINE)}
        figures |= {split: values["F1 score"]} | {f"{split} {ours}": values[name] for name, ours in FIGURES.items()}
    return figures | {"headline": sum(figures[split] for split in SPLITS) / len(SPLITS)}


def _gqa(script: Path, cases: Sequence[Case]) -> list[float]:
    """Convert the answers, and compare as GQA's own script does: by equality."""
    with TemporaryDirectory() as folder:
        source, target = _answers(Path(folder, "answers.jsonl"), cases), Path(folder, "converted.json")
        run_script(script, src=source, dst=target)
        converted = [row["prediction"] for row in json.loads(target.read_text())]
    return [float(text == case.item.answers[0]) for text, case in zip(converted, cases, strict=True)]


def _scienceqa(script: Path, cases: Sequence[Case]) -> list[float]:
    items = {str(number): case.item for number, case in enumerate(cases)}
    correct = {number: "ABCDE".index(item.answers[0]) for number, item in items.items()}
    problems = {n: {"choices": list(item.options.values()), "answer": correct[n]} for n, item in items.items()}
    with TemporaryDirectory() as folder:
        root, out = Path(folder), Path(folder, "result.json")
        (root / "problems.json").write_text(json.dumps(problems))
        (root / "pid_splits.json").write_text(json.dumps({"test": list(problems)}))
        answers = _answers(root / "answers.jsonl", cases)
        run_script(script, base_dir=root, result_file=answers, output_file=root / "output.json", output_result=out)
        chosen = json.loads(out.read_text())["results"]
    return [float(chosen[number] == correct[number]) for number in items]


def vqav2_answers(checkout: Path, cases: Sequence[Case]) -> list[str]:
    """Return the texts that LLaVA uploads to the server of VQAv2."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        _lines(root / "llava_vqav2_mscoco_test2015.jsonl", ({"question_id": str(n)} for n in range(len(cases))))
        _answers(root / "answers" / "split" / "model" / "merge.jsonl", cases)
        run_script(checkout / CONVERSIONS["vqav2_for_submission"], dir=root, ckpt="model", split="split")
        rows = json.loads((root / "answers_upload" / "split" / "model.json").read_text())
    return [row["answer"] for row in rows]


def _vizwiz(checkout: Path, cases: Sequence[Case]) -> list[str]:
    with TemporaryDirectory() as folder:
        root, out = Path(folder), Path(folder, "upload", "result.json")
        asked = _lines(root / "test.jsonl", ({"question_id": str(n), "image": f"{n}.jpg"} for n in range(len(cases))))
        answers, script = _answers(root / "answers.jsonl", cases), checkout / CONVERSIONS["vizwiz_for_submission"]
        run_script(script, annotation_file=asked, result_file=answers, result_upload_file=out)
        rows = json.loads(out.read_text())
    return [row["answer"] for row in rows]


def _answers(file: Path, cases: Sequence[Case]) -> Path:
    """Write an answer file of LLaVA's, with the numbers of the cases as ids."""
    rows = ({"question_id": str(n), "prompt": "<image>", "text": case.answer} for n, case in enumerate(cases))
    return _lines(file, rows)


def _lines(file: Path, rows: Any) -> Path:
    """Write rows as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
