"""Answer files: read those of any system, match answers to questions, and write files for benchmark servers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.extras import requires
from lightning_switchkd.core.files import iter_jsonl
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.scorers.short_answer import evalai

IDS = ("question_id", "questionId", "id", "index", "image")
TEXTS = ("text", "answer", "prediction", "pred_answer")
NUM_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of an answer file.

    Attributes:
        id: Id of the question.
        text: The answer.
        prompt: The prompt, if the file has it. It distinguishes questions that share an id.
        error: Reason why the answer is missing.
    """

    id: str
    text: str
    prompt: str = ""
    error: str = ""


@dataclass
class Matched:
    """Answers matched to their questions, and the defects of the file.

    Attributes:
        texts: One answer per question, or None.
        errors: Reasons why answers are missing, by id.
        missing: Ids of questions without an answer.
        unknown: Ids of answers without a question.
        doubled: Ids of questions with several answers. The first answer counts.
        damaged: Lines that cannot be parsed.
    """

    texts: list[str | None]
    errors: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def defects(self) -> dict[str, list[str]]:
        """Return the defects by kind. The dict is empty for a clean file."""
        kinds = {name: getattr(self, name) for name in ("missing", "unknown", "doubled", "damaged")}
        kinds["failed"] = list(self.errors)
        return {kind: ids for kind, ids in kinds.items() if ids}

    def summary(self) -> str:
        """Return the defects as one line."""
        return "; ".join(f"{len(ids)} {kind} ({_shorten(ids)})" for kind, ids in self.defects().items())


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:NUM_SHOWN]) + (", …" if len(names) > NUM_SHOWN else "")


def read_answers(file: Path) -> tuple[list[Answer], list[str]]:
    """Read an answer file.

    Args:
        file: JSONL with one answer per line in LLaVA's format (``question_id``, ``text``, ``prompt``), or JSON: a list
            of such answers, or ``{id: text}`` as for MMMU.

    Returns:
        The answers, and the lines that cannot be parsed.

    Raises:
        UserError: The file is missing, or is not valid JSON.
    """
    if not file.is_file():
        raise UserError(f"--answers: file {file} does not exist. Give the file with the answers.")
    answers: list[Answer] = []
    damaged: list[str] = []
    for location, row in _rows(file):
        answer = _answer(row)
        if answer is None:
            damaged.append(location)
        else:
            answers.append(answer)
    return answers, damaged


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    if file.suffix == ".json":
        try:
            content = orjson.loads(file.read_bytes())
        except orjson.JSONDecodeError as error:
            raise UserError(
                f"{file} is not valid JSON: {error}. If it has one answer per line, rename it to .jsonl."
            ) from None
        rows = [{"id": k, "text": v} for k, v in content.items()] if isinstance(content, dict) else content
        yield from ((f"entry {number}", row) for number, row in enumerate(rows))
        return
    yield from ((f"line {number}", row) for number, _, row in iter_jsonl(file))


def _answer(row: Any) -> Answer | None:
    if not isinstance(row, dict):
        return None
    name = next((row[key] for key in IDS if isinstance(row.get(key), str | int)), None)
    text = next((row[key] for key in TEXTS if isinstance(row.get(key), str)), None)
    if name is None or text is None:
        return None
    return Answer(str(name), text.strip(), str(row.get("prompt") or ""), str(row.get("error") or ""))


def match(items: Sequence[Item], answers: Iterable[Answer], damaged: Sequence[str] = ()) -> Matched:
    """Match answers to questions by id.

    If several questions share an id, the prompt decides: it must start with the question. Answers without a prompt are
    matched in the order of the questions.

    Args:
        items: The questions.
        answers: The answers.
        damaged: Lines of the answer file that cannot be parsed.
    """
    indices_by_id: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        indices_by_id.setdefault(item.id, []).append(number)
    matched = Matched([None] * len(items), damaged=list(damaged))
    seen: set[int] = set()
    for answer in answers:
        index = _index(items, indices_by_id.get(answer.id, []), answer, seen)
        if index is None:
            matched.unknown.append(answer.id)
        elif index in seen:
            matched.doubled.append(answer.id)
        else:
            seen.add(index)
            if answer.error:
                matched.errors[answer.id] = answer.error
            else:
                matched.texts[index] = answer.text
    matched.missing = [item.id for number, item in enumerate(items) if number not in seen]
    return matched


def _index(items: Sequence[Item], indices: Sequence[int], answer: Answer, seen: set[int]) -> int | None:
    if len(indices) <= 1:
        return indices[0] if indices else None
    if not answer.prompt:
        return next((index for index in indices if index not in seen), indices[-1])
    prompt = _plain(answer.prompt)
    matching = [index for index in indices if prompt.startswith(_plain(items[index].question))]
    return max(matching, key=lambda index: len(items[index].question), default=None)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("<image>", "")).strip().lower()


def export(
    kind: str, items: Sequence[Item], texts: Sequence[str | None], file: Path, further_ids: Sequence[str] = ()
) -> None:
    """Write the file that a benchmark's server requires. An unanswered question gets an empty answer.

    Args:
        kind: Format. ``vqav2`` and ``vizwiz``: JSON for EvalAI, with answers normalized as in LLaVA. ``mmbench``: XLSX.
        items: All questions.
        texts: Their answers.
        file: File to write.
        further_ids: Ids that the server also requires. They get an empty answer.

    Raises:
        UserError: openpyxl is not installed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "mmbench":
        _xlsx(items, texts, file)
        return
    key = "image" if kind == "vizwiz" else "question_id"
    rows = [
        {
            key: item.image if kind == "vizwiz" else int(item.id) if item.id.isdecimal() else item.id,
            "answer": evalai(text or ""),
        }
        for item, text in zip(items, texts, strict=True)
    ]
    ids = {item.id for item in items}
    rows += [{key: int(name) if name.isdecimal() else name, "answer": ""} for name in further_ids if name not in ids]
    file.write_text(json.dumps(rows), encoding="utf-8")


def _xlsx(items: Sequence[Item], texts: Sequence[str | None], file: Path) -> None:
    with requires("report", "The file of MMBench's server"):
        from openpyxl import Workbook

    letters = sorted({letter for item in items for letter in item.options})
    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(["index", "question", "hint", *letters, "prediction", "category"])
    for item, text in zip(items, texts, strict=True):
        options = [item.options.get(letter, "") for letter in letters]
        sheet.append([int(item.id), item.question, item.hint, *options, text or "", item.category])
    book.save(file)
