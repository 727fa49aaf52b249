"""Answer files of any system, and whose question each answer belongs to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.core.files import iter_jsonl
from lightning_switchkd.evaluation.benchmarks.items import Item
from lightning_switchkd.evaluation.benchmarks.scorers.short_answer import evalai

IDS = ("question_id", "questionId", "id", "index", "image")
TEXTS = ("text", "answer", "prediction", "pred_answer")
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of an answer file.

    Attributes:
        id: of the question.
        text: what was said.
        prompt: what was asked, where it is written down: it tells questions of one id apart.
        error: why nothing was said.
    """

    id: str
    text: str
    prompt: str = ""
    error: str = ""


@dataclass
class Matched:
    """Answers at their questions, and whatever is odd about the file.

    Attributes:
        texts: one a question; None where there is none.
        errors: why some questions have none, by id.
        missing: ids of questions without an answer.
        unknown: ids of answers without a question.
        doubled: ids of questions with several answers, of which the first counts.
        damaged: lines that cannot be read.
    """

    texts: list[str | None]
    errors: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def oddities(self) -> dict[str, list[str]]:
        """What is odd, by kind; nothing for a clean file."""
        kinds = {name: getattr(self, name) for name in ("missing", "unknown", "doubled", "damaged")}
        kinds["failed"] = list(self.errors)
        return {name: found for name, found in kinds.items() if found}

    def words(self) -> str:
        """The same in a line."""
        return "; ".join(f"{len(found)} {kind} ({_some(found)})" for kind, found in self.oddities().items())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def read_answers(file: Path) -> tuple[list[Answer], list[str]]:
    """The answers of a file, and the lines that cannot be read.

    Args:
        file: JSONL with a line an answer, as LLaVA and its relatives write it (``question_id``, ``text``, ``prompt``),
            or JSON: a list of such, or ``{id: text}`` as for MMMU.

    Raises:
        UserError: there is no such file, or it is a JSON file that cannot be read at all.
    """
    if not file.is_file():
        raise UserError(f"--answers: there is no file {file}.")
    answers: list[Answer] = []
    damaged: list[str] = []
    for where, row in _rows(file):
        answer = _answer(row)
        if answer is None:
            damaged.append(where)
        else:
            answers.append(answer)
    return answers, damaged


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    if file.suffix == ".json":
        try:
            found = orjson.loads(file.read_bytes())
        except orjson.JSONDecodeError as error:
            raise UserError(f"{file} is no JSON: {error}. With a line an answer, call it .jsonl.") from None
        rows = [{"id": k, "text": v} for k, v in found.items()] if isinstance(found, dict) else found
        yield from ((f"entry {place}", row) for place, row in enumerate(rows))
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
    """Finds each answer's question: by id, and among questions of one id by the prompt, which begins with the question.

    Where no prompt is written down, questions of one id are answered in their order.
    """
    places: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        places.setdefault(item.id, []).append(number)
    found = Matched([None] * len(items), damaged=list(damaged))
    seen: set[int] = set()
    for answer in answers:
        place = _place(items, places.get(answer.id, []), answer, seen)
        if place is None:
            found.unknown.append(answer.id)
        elif place in seen:
            found.doubled.append(answer.id)
        else:
            seen.add(place)
            if answer.error:
                found.errors[answer.id] = answer.error
            else:
                found.texts[place] = answer.text
    found.missing = [item.id for number, item in enumerate(items) if number not in seen]
    return found


def _place(items: Sequence[Item], places: Sequence[int], answer: Answer, seen: set[int]) -> int | None:
    if len(places) <= 1:
        return places[0] if places else None
    if not answer.prompt:
        return next((place for place in places if place not in seen), places[-1])
    asked = _plain(answer.prompt)
    fitting = [place for place in places if asked.startswith(_plain(items[place].question))]
    return max(fitting, key=lambda place: len(items[place].question), default=None)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("<image>", "")).strip().lower()


def export(
    kind: str, items: Sequence[Item], texts: Sequence[str | None], file: Path, further: Sequence[str] = ()
) -> None:
    """Writes what a benchmark's server takes; an unanswered question gets an empty answer.

    Args:
        kind: ``vqav2`` and ``vizwiz``: JSON for EvalAI, answers normalised as LLaVA does; ``mmbench``: XLSX.
        items: all questions.
        texts: their answers.
        file: is written.
        further: ids that the server wants as well, with an empty answer.

    Raises:
        UserError: openpyxl is missing.
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
    asked = {item.id for item in items}
    rows += [{key: int(name) if name.isdecimal() else name, "answer": ""} for name in further if name not in asked]
    file.write_text(json.dumps(rows), encoding="utf-8")


def _xlsx(items: Sequence[Item], texts: Sequence[str | None], file: Path) -> None:
    try:
        from openpyxl import Workbook
    except ImportError:
        raise UserError("MMBench's server takes XLSX files, which need openpyxl: pip install openpyxl") from None
    letters = sorted({letter for item in items for letter in item.options})
    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(["index", "question", "hint", *letters, "prediction", "category"])
    for item, text in zip(items, texts, strict=True):
        options = [item.options.get(letter, "") for letter in letters]
        sheet.append([int(item.id), item.question, item.hint, *options, text or "", item.category])
    book.save(file)
