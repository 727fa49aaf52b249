"""Answers of any system, read from a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.evaluation.answer_files import check_readable, read_answer_rows
from lightning_switchkd.evaluation.harness import is_lmms_sample, response

IDS = ("questionid", "qid", "id", "index", "key", "image", "imageid")
"""Columns of ids, the first one that a file has. Column names are compared without case and punctuation."""

ANSWERS = (
    *("text", "response", "output", "outputs", "completion", "generation", "reply", "hypothesis"),
    *("pred", "predict", "prediction", "predicted", "predanswer", "predictedanswer", "predtext"),
    *("modelanswer", "modeloutput", "modelresponse", "modelprediction", "generatedtext", "generatedanswer"),
)
"""Columns of a model's answers. ``answer`` is one in a file that has none of these and no questions."""

REASONING_TAGS = ("think", "analysis")
"""Tags that lmms-eval removes by default."""

API_FAILURE = "Failed to obtain answer"
"""Start of the answer that VLMEvalKit writes for a failed request."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One row of an answer file.

    Attributes:
        id: Id of the question.
        text: The answer.
        prompt: The prompt, if the file has it. It distinguishes questions that share an id.
        error: Reason why the answer is missing.
        row: Row of the question in its data set, in the samples of lmms-eval.
    """

    id: str
    text: str
    prompt: str = ""
    error: str = ""
    row: int | None = None


def without_reasoning(text: str) -> str:
    """Remove the reasoning before an answer, as lmms-eval does.

    A closing tag without an opening one ends the reasoning. An opening tag without a closing one stays.

    >>> without_reasoning("<think>A cat? No.</think> dog"), without_reasoning("No.</think>dog")
    ('dog', 'dog')
    """
    for tag in REASONING_TAGS:
        text = re.sub(f"<{tag}>.*?</{tag}>", "", text, flags=re.DOTALL)
        if f"<{tag}>" not in text:
            text = text.rpartition(f"</{tag}>")[2]
    return text.strip()


def _plain_column(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@dataclass(frozen=True)
class Columns:
    """The columns of an answer file.

    Attributes:
        id: Column of the ids.
        answer: Column of the answers.
        prompt: Column of the prompts.
    """

    id: str
    answer: str
    prompt: str

    @classmethod
    def of(cls, names: Sequence[str], file: Path, id_column: str | None, answer_column: str | None) -> Columns:
        """Recognize the columns of a file by their names.

        Args:
            names: All columns.
            file: The file, for messages.
            id_column: The user's choice.
            answer_column: The user's choice.

        Raises:
            UserError: A column is missing, or several may hold the answers.
        """
        plain = {_plain_column(name): name for name in reversed(names)}
        for flag, name in (("--id_column", id_column), ("--answer_column", answer_column)):
            if name is not None and name not in names:
                raise UserError(f"{flag}: {file} has no column '{name}'. It has {', '.join(names)}.")
        ids = [plain[name] for name in IDS if name in plain]
        answers = [name for name in names if _plain_column(name) in ANSWERS]
        answers += [plain["answer"]] if "answer" in plain and (not answers or answers == [plain.get("text")]) else []
        if answers == [plain.get("answer")] and "question" in plain:
            problem = f"'{answers[0]}' may be the correct answer, because the file also has '{plain['question']}'"
        elif len(answers) > 1:
            problem = f"columns {' and '.join(map(repr, answers))} may hold the model's answers"
        else:
            problem = "" if answers else f"no column is known to hold the model's answers among {', '.join(names)}"
        if problem and answer_column is None:
            raise UserError(f"{file}: {problem}. Set --answer_column=NAME.")
        if not ids and id_column is None:
            raise UserError(f"{file}: no column is known to hold ids among {', '.join(names)}. Set --id_column=NAME.")
        asked = plain.get("prompt") or (plain.get("question") if "index" in plain else "")  # VLMEvalKit: question
        return cls(id_column or ids[0], answer_column or answers[0], asked or "")

    def read(self, row: Mapping[str, Any]) -> Answer | str:
        """Read an answer. Return the problem if there is none, or "" if a column is missing."""
        name, text = row.get(self.id), row.get(self.answer)
        if isinstance(name, float) and name.is_integer():
            name = int(name)
        if isinstance(text, bool) or not isinstance(text, str | int | float):
            kinds = {type(None): "null", list: "a list", dict: "an object"}
            return f"{self.answer} is {kinds.get(type(text), 'true or false')}" if self.answer in row else ""
        if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
            return ""
        error = str(row.get("error") or "") or (str(text) if str(text).startswith(API_FAILURE) else "")
        return Answer(str(name), without_reasoning(str(text)), str(row.get(self.prompt) or ""), error)


def read_answers(
    file: Path, answer_column: str | None = None, id_column: str | None = None
) -> tuple[list[Answer], list[str]]:
    """Read an answer file.

    Args:
        file: Answers of any system in a format of :func:`answer_files.read_answer_rows`: one per row in LLaVA's columns
            (``question_id``, ``text``, ``prompt``) or others, ``{id: text}`` as for MMMU, samples of lmms-eval, or
            predictions of VLMEvalKit.
        answer_column: Column of the answers. Default: recognized by its name.
        id_column: Column of the ids. Default: recognized by its name.

    Returns:
        The answers, and the rows that cannot be read.

    Raises:
        UserError: The file or its columns cannot be read, or too many of its rows.
    """
    rows = read_answer_rows(file)
    objects = [row for _, row in rows if isinstance(row, Mapping)]
    if not objects:
        check_readable(file, len(rows), [place for place, _ in rows])
    names = list(dict.fromkeys(name for row in objects for name in row))
    from_lmms = is_lmms_sample(objects[0])
    read = _lmms_answer if from_lmms else Columns.of(names, file, id_column, answer_column).read
    answers: list[Answer] = []
    damaged: list[str] = []
    for place, row in rows:
        answer = read(row) if isinstance(row, Mapping) else ""
        if isinstance(answer, Answer):
            answers.append(answer)
        else:
            damaged.append(f"{place} ({answer})" if answer else place)
    check_readable(file, len(rows), damaged)
    return answers, damaged


def _lmms_answer(row: Mapping[str, Any]) -> Answer | str:
    """Read a sample of lmms-eval. Its id is in the question, or in the values of its metrics."""
    text = response(row)
    if text is None:
        return "no single response" if is_lmms_sample(row) else ""
    doc = row["doc"] if isinstance(row.get("doc"), Mapping) else {}
    values = [doc, *(value for value in row.values() if isinstance(value, Mapping))]
    cells = [(_plain_column(column), cell) for value in values for column, cell in value.items()]
    found = {column: cell for column, cell in reversed(cells) if isinstance(cell, str | int)}
    name = next((found[column] for column in IDS if column in found), row["doc_id"])
    prompt = next((asked for asked in (row.get("input"), doc.get("question")) if isinstance(asked, str)), "")
    return Answer(str(name), without_reasoning(text), prompt, row=int(row["doc_id"]))
