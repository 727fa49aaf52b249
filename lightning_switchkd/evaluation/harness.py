"""Results of other harnesses: samples of lmms-eval and prediction files of VLMEvalKit, with their own scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.answer_files import check_readable, read_answer_rows
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.readers import literal
from lightning_switchkd.evaluation.benchmarks.scorers import ScoringProtocol
from lightning_switchkd.evaluation.benchmarks.tallies import Mean
from lightning_switchkd.evaluation.results import Result, is_result

Row = Mapping[str, Any]
Scores = list[float | None]

NO_METRICS = {
    *("doc_id", "doc", "target", "arguments", "input", "resps", "filtered_resps", "submission", "filter"),
    *("doc_hash", "prompt_hash", "target_hash", "token_counts", "input_media"),
}
"""Keys of lmms-eval's samples. All others are metrics."""

SCORES_IN_METRIC = ("score", "is_correct", "correct", "true_false", "accuracy", "acc")
"""Keys with the score in a metric of lmms-eval that is an object."""

SCORES = ("hit", "score", "eval_score", "verifier_score", "match", "acc", "correct", "is_correct")
"""Columns of VLMEvalKit with the score of a question."""

MATCHES = "eval_match"
"""Column of VLMEvalKit with one value per correct answer, from which its score is computed."""

IMAGES = ("image_id", "imageId", "image_path", "image_source", "image")
"""Columns that name a question's image."""


def is_lmms_sample(row: Row) -> bool:
    """Return whether a row is a sample of lmms-eval's ``--log_samples``."""
    return isinstance(row.get("doc_id"), int) and ("filtered_resps" in row or "resps" in row)


def response(row: Row) -> str | None:
    """Return the model's answer in a sample of lmms-eval. None if it is not a single text."""
    value = row.get("filtered_resps", row.get("resps"))
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else None


def read_harness_result(file: Path, metric: str | None = None, max_score: float = 1.0) -> Result:
    """Read the scores that a harness gave to the questions of any task.

    Args:
        file: Samples of lmms-eval, or a scored prediction file of VLMEvalKit.
        metric: Metric or column of the scores. Default: the only one that every question has.
        max_score: Score of a perfect answer.

    Returns:
        The mean score, with intervals. Its benchmark is named after task and harness, because the harness's rules may
        differ from ours.

    Raises:
        UserError: The file has no such scores, or several kinds of them.
    """
    read = read_answer_rows(file)
    head = next((row for _, row in read if isinstance(row, Mapping)), {})
    protocol: ScoringProtocol = "lmms" if is_lmms_sample(head) else "vlmevalkit"
    key = "doc_id" if protocol == "lmms" else "index"
    if head and not head.keys() & {"filtered_resps", "resps", "prediction"}:
        raise UserError(f"{file} has neither samples of lmms-eval nor predictions of VLMEvalKit. Set --benchmark.")
    damaged = [place for place, row in read if not isinstance(row, Mapping) or key not in row]
    check_readable(file, len(read), damaged)
    rows = [row for _, row in read if isinstance(row, Mapping) and key in row]
    if protocol == "lmms":
        name, task = "lmms-eval", file.stem.partition("samples_")[2] or file.stem
        metrics, texts = _lmms_metrics(rows), [response(row) for row in rows]
        questions = [_question(row) for row in rows]
    else:
        name, task, questions = "VLMEvalKit", _without_model(file), rows
        metrics, texts = _vlmevalkit_metrics(rows, task), [str(row.get("prediction", "")) for row in rows]
    chosen, scores = _choose(metrics, metric, file)
    if not all(0 <= score <= max_score for score in scores):
        raise UserError(f"{file}: scores of '{chosen}' are not between 0 and {max_score:g}. Set --max_score.")
    first = {str(row[key]): index for index, row in reversed(list(enumerate(rows)))}
    doubled = [number for number, count in Counter(str(row[key]) for row in rows).items() if count > 1]
    odd = {kind: found for kind, found in (("doubled", doubled), ("damaged", damaged)) if found}
    ids = sorted(first, key=lambda number: (len(number), number))  # the same order for every system
    result = Result(
        benchmark=f"{task}_{protocol}",
        definition="",
        title=f"{task} ({name}: {chosen})",
        protocol=protocol,
        annotations="",
        answers=str(file),
        questions=len(ids),
        score=None,
        odd={kind: len(found) for kind, found in odd.items()},
        examples_of_odd={kind: found[:10] for kind, found in odd.items()},
        pairs=ids,
        texts=[texts[first[number]] for number in ids],
    )
    items = [_item(number, questions[first[number]]) for number in ids]
    result.set_scores(Mean(), items, np.array([[scores[first[number]] / max_score, 0] for number in ids]))
    return result


def _question(sample: Row) -> Row:
    """Return what a sample tells about its question: its row (older versions), or a metric that is an object.

    >>> _question({"doc_id": 0, "mme_perception_score": {"category": "color", "score": 1.0}})["category"]
    'color'
    """
    return next((value for value in (sample.get("doc"), *sample.values()) if isinstance(value, Mapping)), {})


def _item(number: str, question: Row) -> Item:
    image = next((str(question[name]) for name in IMAGES if question.get(name)), "")
    return Item(number, "", image=image, category=str(question.get("category") or ""))


def harness_files(folder: Path, in_subfolders: bool) -> list[Path]:
    """Return the files with scores of another harness in a folder.

    Args:
        folder: The folder.
        in_subfolders: If it has none, return those of its subfolders. Both harnesses name one after the model.
    """
    return _scored(folder.iterdir()) or (_scored(folder.rglob("*")) if in_subfolders else [])


def _scored(files: Iterable[Path]) -> list[Path]:
    return [file for file in sorted(files) if file.is_file() and not is_result(file) and _has_scores(file)]


def _has_scores(file: Path) -> bool:
    if file.suffix == ".jsonl":
        return "samples_" in file.name
    if file.suffix not in (".xlsx", ".tsv", ".json"):
        return False
    head: Row = next((row for _, row in read_answer_rows(file) if isinstance(row, Mapping)), {})
    return {"index", "prediction"} <= head.keys() and bool(head.keys() & {*SCORES, MATCHES})


def _without_model(file: Path) -> str:
    """Return the name of a file without the name of its model. VLMEvalKit names a folder above it after the model."""
    prefixes = (f"{folder.name}_" for folder in file.absolute().parents if folder.name)
    return next((file.stem.removeprefix(p) for p in prefixes if file.stem.startswith(p)), file.stem)


def _lmms_metrics(rows: Sequence[Row]) -> dict[str, Scores]:
    names = dict.fromkeys(name for row in rows for name in row if name not in NO_METRICS)
    return {name: [_score(row.get(name)) for row in rows] for name in names}


def _vlmevalkit_metrics(rows: Sequence[Row], task: str) -> dict[str, Scores]:
    if MATCHES in rows[0]:
        return {MATCHES: [_of_matches(literal(row.get(MATCHES)), task) for row in rows]}
    return {name: [_score(row.get(name)) for row in rows] for name in SCORES if name in rows[0]}


def _of_matches(values: Any, task: str) -> float | None:
    """Return VLMEvalKit's score of a question from the values of its correct answers, in DocVQA distances."""
    if not isinstance(values, list) or not values:
        return None
    if "DocVQA" in task or "InfoVQA" in task:
        similarity = 1 - min(values)
        return float(similarity) if similarity >= 0.5 else 0.0
    return float(max(values) if "ChartQA" in task or "OCRVQA" in task else np.mean(values))


def _score(value: Any) -> float | None:
    """Return the score in a value: a number, a truth value, their text, or an object with one of them."""
    if isinstance(value, Mapping):
        value = next((value[name] for name in SCORES_IN_METRIC if name in value), None)
    if isinstance(value, str):
        value = {"true": 1.0, "false": 0.0}.get(value.lower(), value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _choose(metrics: Mapping[str, Scores], metric: str | None, file: Path) -> tuple[str, list[float]]:
    """Return name and values of the metric. Several metrics with the same values are one."""
    complete = {name: [v for v in values if v is not None] for name, values in metrics.items() if None not in values}
    complete = complete or _complementary(metrics)
    if metric is not None and metric not in complete:
        known = ", ".join(complete) or "none"
        raise UserError(f"--metric: {file} has no score '{metric}' for every question. Complete scores: {known}.")
    if not complete:
        raise UserError(f"{file} has no score for every question. Give a benchmark whose rules apply (--benchmark).")
    first = metric or next(iter(complete))
    if metric is None and any(values != complete[first] for values in complete.values()):
        raise UserError(
            f"{file} has several scores: {', '.join(complete)}. Choose one with `score --answers FILE --metric NAME "
            "--output FOLDER/TASK.json`."
        )
    return first, complete[first]


def _complementary(metrics: Mapping[str, Scores]) -> dict[str, list[float]]:
    """Return the only score of each question, if its name depends on the kind of question (MME)."""
    parts = {name: values for name, values in metrics.items() if any(value is not None for value in values)}
    scores = [[value for value in row if value is not None] for row in zip(*parts.values(), strict=True)]
    if not parts or any(len(row) != 1 for row in scores):
        return {}
    return {" + ".join(parts): [score for (score,) in scores]}
